"""StepEvent -> the small JSON message the viewer takes. Source: DESIGN 3.

A message is one JSON string with a `type`: "frame" (the newest step of one track), "bundle" (a recorded prompt, all at
once), "bundle-url" (where to fetch one), "note" (one sentence) or "done". Arrays travel as base64: the level of every
finest cell (u8), one variance per token (u16 little-endian, log scale, 0 = undefined) and one bit per token for the
promoted, tokens in scan order (`TokenGrid.scan_order`).

Several runs side by side share a `run` id and have the tracks 0, 1, 2, 3, each with its own `label` and, in its first and
last frame, its own `meta`; the viewer lists the settings in which the metas differ. The first frames may say how many
`tracks` will come, so that the panes are there before the steps are. A track whose `meta.stages` has no low and no mixed
steps is a full-resolution reference, the others are runs. One run with one or several references shows two panes, anything
else a pane for each track; the visitor may change that.

A preview of one frame is a WebP picture. That of a video is one WebP sheet of `frames` pictures in `columns`, row by row
(both keys are absent for one frame), made smaller so that all frames together have at most SHEET_PIXELS. The grid of a
video may have fewer frames than its previews: 1 + n frames of tokens for 1 + 4 n pictures, as video autoencoders pack them.
"""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fresco.config import FrescoConfig
from fresco.trace import StepEvent

VERSION = 1
VMIN, VMAX = 1e-6, 1.0  # one fixed range for every run, so that colours can be compared between runs
SHEET_PIXELS = 2_000_000  # of all frames of a video's preview together: about 100 kB a step
_STEPS = 65534
_WEBP_SIDE = 16383  # the longest side WebP knows


def quantise(variance: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """Return variances as u16 on a log scale from VMIN to VMAX: 1 to 65535, clipped; 0 where undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.round(np.log(np.clip(variance.astype(np.float64), VMIN, VMAX) / VMIN) / math.log(VMAX / VMIN) * _STEPS) + 1
    return np.where(np.isfinite(variance), q, 0).astype(np.uint16)


def webp(picture: NDArray[np.uint8], quality: int = 80) -> str:
    """Return the first frame of a (T, H, W, 3) uint8 picture as a WebP data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture[0]).save(buffer, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def sheet(picture: NDArray[np.uint8], quality: int = 80) -> dict[str, Any]:
    """Return what a frame says of a preview (T, H, W, 3) uint8: `preview`, and of a video `frames` and `columns`."""
    count, height, width = picture.shape[:3]
    if count == 1:
        return {"preview": webp(picture, quality)}
    shrink = min(1.0, math.sqrt(SHEET_PIXELS / (count * height * width)))
    wide, high = max(1, int(width * shrink)), max(1, int(height * shrink))
    columns = math.ceil(count / max(1, min(count, _WEBP_SIDE // high)))
    whole = Image.new("RGB", (columns * wide, math.ceil(count / columns) * high))
    for k, one in enumerate(picture):
        tile = Image.fromarray(one)
        small = tile if shrink == 1 else tile.resize((wide, high), Image.Resampling.BOX)
        whole.paste(small, (k % columns * wide, k // columns * high))
    return {"preview": webp(np.asarray(whole)[None], quality), "frames": count, "columns": columns}


def _b64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _number(value: float | None, digits: int = 6) -> float | None:
    """Return a JSON number of few digits; None for what JSON cannot say."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def step_json(event: StepEvent) -> dict[str, Any]:
    """Return what a frame says of the step itself, whichever run or track it belongs to."""
    order = event.grid.scan_order()
    gap = event.noise_gap[np.isfinite(event.noise_gap)]
    return {
        "sigma": _number(event.sigma), "sigma_next": _number(event.sigma_next), "stage": event.stage,
        "shape": list(event.grid.shape), "levels": event.grid.levels,
        "level": _b64(event.grid.level_map().astype(np.uint8)), "tokens": len(event.grid),
        "variance": _b64(quantise(event.variance[order]).astype("<u2")), "vmin": VMIN, "vmax": VMAX,
        "selected": _b64(np.packbits(event.selected[order])), "check": event.check, "final": event.closing,
        "tau": _number(event.tau), "ratio": _number(event.ratio), "gap": _number(float(gap.mean()), 4) if len(gap) else None,
        "flops": event.flops, "ms": _number(1000 * event.seconds, 4),
        "preview_ms": _number(1000 * event.preview_seconds, 4),
        **({"preview": None} if event.preview is None else sheet(event.preview)),
    }  # fmt: skip


def meta(
    config: FrescoConfig, *, prompt: str, model: str, device: str, full_step: float, recorded: bool = False,
    provenance: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Return what a viewer says of a whole run: settings, and what the same picture costs at full resolution.

    Args:
        config: the run's settings.
        prompt, model, device, provenance: as shown.
        full_step: FLOPs of one full-resolution step.
        recorded: whether the run comes from a file.
    """
    settings = {name: value for name, value in config.to_json().items() if name != "switch"}
    return {
        **settings, "prompt": prompt, "model": model, "device": device, "stages": list(config.split), "recorded": recorded,
        "provenance": provenance, "baselines": {"full50": 50 * full_step, "same_nfe": config.nfe * full_step},
    }  # fmt: skip


def same_flops(flops: float, full_step: float) -> dict[str, float]:
    """Return the smallest full-resolution step count whose FLOPs are not below `flops`. Source: METHOD 2.6."""
    steps = max(1, math.ceil(flops / full_step - 1e-9))
    return {"steps": steps, "flops": steps * full_step}


@dataclass
class Track:
    """One run inside a comparison: turns its events into frames and adds up what it has spent.

    Attributes:
        run: id that all tracks of one comparison share.
        track: 0 is the first run, which the viewer's controls drive; 1 and up are references or further runs.
        label: name of the pane. of: number of steps. full_step: FLOPs of one full-resolution step.
        meta: sent with the first frame, and with the last, when "same FLOPs" is known.
        tracks: how many tracks the comparison will have, where that is known; said in the first frame.
        frames: the messages so far, by step.
    """

    run: str
    track: int
    label: str
    of: int
    meta: dict[str, Any]
    full_step: float
    tracks: int | None = None
    flops: float = 0.0
    ms: float = 0.0
    frames: dict[int, str] = field(default_factory=dict)
    _likeness: dict[str, float | None] = field(default_factory=dict)
    _picture: NDArray[np.uint8] | None = None

    def add(self, event: StepEvent, *, psnr: float | None = None, ssim: float | None = None) -> str:
        """Return the frame of an event as a JSON string, and keep it for `backfill`. Adding a step again replaces it."""
        if event.step not in self.frames:
            self.flops, self.ms = self.flops + event.flops, self.ms + 1000 * event.seconds
        self._likeness = {
            "psnr": None if psnr is None else _number(min(psnr, 99.0), 4), "ssim": _number(ssim, 4),
        }  # fmt: skip
        frame = {
            "type": "frame", "v": VERSION, "run": self.run, "track": self.track, "label": self.label,
            "i": event.step, "of": self.of, **step_json(event), "flops_total": self.flops,
            "ms_total": _number(self.ms), **self._likeness,
        }  # fmt: skip
        if event.step == self.of - 1:
            self.meta["baselines"]["same_flops"] = same_flops(self.flops, self.full_step)
            self._picture = event.preview
        if event.step in (0, self.of - 1):
            frame["meta"] = self.meta
        if event.step == 0 and self.tracks is not None:
            frame["tracks"] = self.tracks
        self.frames[event.step] = json.dumps(frame, separators=(",", ":"))
        return self.frames[event.step]

    def summary(self) -> dict[str, Any]:
        """Return what a program wants of a finished run: settings, cost, likeness and the picture."""
        baselines = self.meta["baselines"]
        return {
            "label": self.label, "settings": {k: v for k, v in self.meta.items() if k != "baselines"},
            "flops": self.flops, "seconds": _number(self.ms / 1000),
            "speedup_flops": {name: _number(baselines[name] / self.flops, 4) for name in ("full50", "same_nfe")},
            "same_flops_steps": baselines.get("same_flops", {}).get("steps"), **self._likeness,
            "picture": None if self._picture is None else webp(self._picture, 90),
        }  # fmt: skip


def note(text: str, level: str = "info") -> str:
    """Return a message that shows one sentence in the viewer's status line; level "info" or "warn"."""
    return json.dumps({"type": "note", "text": text, "level": level})


def bundle_url(url: str, linked: bool = True) -> str:
    """Return a message that makes the viewer fetch a recorded prompt from an address of this server.

    Args:
        url: path of the file.
        linked: whether the step and token in the page's address are this prompt's; else they wait for a live run.
    """
    return json.dumps({"type": "bundle-url", "url": url, "linked": linked})


def done(run: str, *, stopped: bool = False, summary: dict[str, Any] | None = None) -> str:
    """Return the message that ends a run; the summary is for programs that wait for the last value."""
    return json.dumps({"type": "done", "run": run, "stopped": stopped, **(summary or {})})
