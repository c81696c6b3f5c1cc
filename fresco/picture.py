"""Finished pictures and videos as files; the ending says which kind. MP4 needs imageio's ffmpeg, the others pillow alone."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fresco.errors import FrescoError

FRAME_RATE = 24  # of a model that names none
MOVING = (".mp4", ".webp", ".gif")


def check(path: str | Path, frames: int = 1) -> None:
    """Refuse a file name that so many frames cannot be written to, before any work is done.

    Raises:
        FrescoError: on an ending that does not fit, a folder that is not there, or MP4 without ffmpeg.
    """
    kind = Path(path).suffix.lower()
    if kind not in MOVING and (frames > 1 or kind not in Image.registered_extensions()):
        want = "a video; use .mp4, .webp or .gif" if frames > 1 else "a picture; use for example .png or .webp"
        raise FrescoError(f"{path} has no ending of {want}")
    check_folder(path)
    if kind == ".mp4":
        _ffmpeg()


def check_folder(path: str | Path) -> None:
    """Refuse a file name in a folder that is not there.

    Raises:
        FrescoError: where it is not.
    """
    if not Path(path).resolve().parent.is_dir():
        raise FrescoError(f"{path} lies in a folder that is not there; make the folder first")


def save(path: str | Path, video: NDArray[np.uint8], frame_rate: float = FRAME_RATE) -> None:
    """Write (frames, height, width, 3) uint8; several frames become a film.

    Args:
        path: `.mp4` (H.264), `.webp` or `.gif`; for one frame any picture's ending, too.
        video: the frames.
        frame_rate: frames per second.

    Raises:
        FrescoError: as in `check`.
    """
    check(path, len(video))
    if Path(path).suffix.lower() == ".mp4":
        # 4:2:0 has half the colour samples per side: odd sides are stretched to even ones.
        options = {"codec": "libx264", "pixelformat": "yuv420p", "quality": 8, "macro_block_size": 2}
        with contextlib.closing(_ffmpeg().get_writer(str(path), fps=frame_rate, **options)) as film:
            for frame in video:
                film.append_data(frame)
        return
    first, *rest = (Image.fromarray(frame) for frame in video)
    moving: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": 1000 / frame_rate, "loop": 0} if rest else {}
    first.save(path, quality=90, **moving)


def _ffmpeg() -> Any:
    """Return imageio with a working ffmpeg behind it."""
    try:
        importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
        return importlib.import_module("imageio.v2")
    except (ImportError, RuntimeError) as error:
        raise FrescoError("an MP4 needs ffmpeg; get it with: pip install imageio[ffmpeg] (WebP needs nothing)") from error
