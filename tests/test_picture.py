"""Files of pictures and videos: what was put in comes out, at its speed; what cannot be written is said before."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fresco import picture
from fresco.errors import FrescoError


@pytest.fixture
def video() -> np.ndarray:
    """Five frames of a grey ramp that grows lighter."""
    ramp = np.linspace(0, 120, 48)[None, None, :, None]
    return np.broadcast_to(ramp + 25 * np.arange(5)[:, None, None, None], (5, 32, 48, 3)).astype(np.uint8)


def test_one_frame_is_a_picture(video: np.ndarray, tmp_path: Path) -> None:
    picture.save(tmp_path / "one.png", video[:1])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "one.png")), video[0])


@pytest.mark.parametrize("ending", ["webp", "gif"])
def test_several_frames_move(video: np.ndarray, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"film.{ending}"
    picture.save(path, video, frame_rate=20)
    with Image.open(path) as film:
        assert film.n_frames == 5
        for k, frame in enumerate(video):
            film.seek(k)
            assert abs(np.asarray(film.convert("RGB")).astype(float) - frame).mean() < 4
            assert film.info["duration"] == 50


def test_mp4(video: np.ndarray, tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "film.mp4"
    picture.save(path, video, frame_rate=16)
    reader = ffmpeg.read_frames(str(path))
    about = next(reader)
    frames = [np.frombuffer(frame, np.uint8).reshape(32, 48, 3) for frame in reader]
    assert (about["size"], about["fps"], about["codec"]) == ((48, 32), 16, "h264")
    assert len(frames) == 5
    assert max(abs(got.astype(float) - want).mean() for got, want in zip(frames, video, strict=True)) < 4


def test_what_cannot_be_written(video: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FrescoError, match=r"no ending of a video; use \.mp4"):
        picture.save(tmp_path / "film.png", video)
    with pytest.raises(FrescoError, match="no ending of a picture"):
        picture.check(tmp_path / "one.txt")
    with pytest.raises(FrescoError, match="make the folder first"):
        picture.check(tmp_path / "none" / "one.png")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # what an absent package looks like to import
    with pytest.raises(FrescoError, match=r"pip install imageio\[ffmpeg\]"):
        picture.check(tmp_path / "film.mp4", 5)
    assert list(tmp_path.iterdir()) == []
