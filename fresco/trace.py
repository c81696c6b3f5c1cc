"""StepEvent and Trace: what a run did, in NumPy and JSON, versioned, without pickles. Source: DESIGN 2.

File format (version 1): a NumPy `.npz` archive. `header` holds UTF-8 JSON: {"format": "fresco-trace", "version": 1,
"prompt", "config", "model", "label", "provenance", "events": [one object per step]}. Step k's arrays are `k.level`
(N,) int8, `k.coord` (N, 3) int32, `k.variance` (N,) float32 with NaN where undefined, `k.selected` (N,) bool,
`k.noise_gap` (N,) float32 and, where there is one, `k.preview` (T, H, W, 3) uint8.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fresco.config import FrescoConfig
from fresco.errors import FrescoError
from fresco.grid import Bools, TokenGrid

VERSION = 1
_FORMAT = "fresco-trace"
_ARRAYS = {"variance": np.float32, "selected": np.bool_, "noise_gap": np.float32}
_SCALARS: dict[str, type] = {
    "step": int, "sigma": float, "sigma_next": float, "stage": str, "check": bool, "closing": bool, "tau": float,
    "ratio": float, "flops": float, "seconds": float, "preview_seconds": float,
}  # fmt: skip
_MAX_CELLS = 1 << 24


class TraceError(FrescoError):
    """A file that is no trace of ours, or a damaged one; the message says which and what to do."""


@dataclass(frozen=True, eq=False)
class StepEvent:
    """What a viewer needs of one model call.

    Attributes:
        step, sigma, sigma_next, stage, check, closing: as in `fresco.sampler.SamplerStep`.
        tau, ratio: the threshold in force and the fraction of the expandable tokens it takes; NaN where undefined.
        grid: tokens of the call.
        variance: (N,) float32, NaN where undefined. selected: (N,) bool, promoted after the call.
        preview: (T, H, W, 3) uint8 of the clean estimate, or None where it was skipped.
        flops: of this call. seconds: wall-clock of call and sampler. preview_seconds: wall-clock of the preview.
        noise_gap: (N,) float32, RMS of (eps_hat - the token's field noise). Source: METHOD 2.6.
    """

    step: int
    sigma: float
    sigma_next: float
    stage: str
    check: bool
    closing: bool
    tau: float
    ratio: float
    grid: TokenGrid
    variance: NDArray[np.float32]
    selected: Bools
    preview: NDArray[np.uint8] | None
    flops: float
    seconds: float
    preview_seconds: float
    noise_gap: NDArray[np.float32]


@dataclass
class Trace:
    """A whole run.

    Attributes:
        prompt: the text.
        config: the settings.
        model: the backend's name.
        label: what the run is called on the page.
        provenance: weights, device, dtype, versions: whatever is needed to make the run again.
        events: the steps so far; a stopped run has fewer than `config.nfe`.
    """

    prompt: str
    config: FrescoConfig
    model: str
    label: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    events: list[StepEvent] = field(default_factory=list)

    @property
    def flops(self) -> float:
        """FLOPs spent."""
        return sum(e.flops for e in self.events)

    @property
    def seconds(self) -> float:
        """Seconds spent in the model and the sampler, previews apart."""
        return sum(e.seconds for e in self.events)

    @property
    def picture(self) -> NDArray[np.uint8] | None:
        """The newest preview, (T, H, W, 3) uint8: the finished picture of a finished run."""
        return next((e.preview for e in reversed(self.events) if e.preview is not None), None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as one compressed `.npz`, replacing an older file only once the new one is whole."""
        header: dict[str, Any] = {
            "format": _FORMAT, "version": VERSION, "prompt": self.prompt, "config": self.config.to_json(),
            "model": self.model, "label": self.label, "provenance": self.provenance, "events": [],
        }  # fmt: skip
        arrays: dict[str, NDArray[Any]] = {}
        for k, e in enumerate(self.events):
            scalars = {name: getattr(e, name) for name in _SCALARS}
            header["events"].append({n: None if v != v else v for n, v in scalars.items()} | e.grid.to_json())
            arrays |= {f"{k}.level": e.grid.level.astype(np.int8), f"{k}.coord": e.grid.coord.astype(np.int32)}
            arrays |= {f"{k}.{name}": getattr(e, name) for name in _ARRAYS}
            if e.preview is not None:
                arrays[f"{k}.preview"] = e.preview
        text = np.frombuffer(json.dumps(header, ensure_ascii=False).encode(), dtype=np.uint8)
        target = Path(path)
        part = target.with_name(target.name + ".part")
        with part.open("wb") as file:
            np.savez_compressed(file, header=text, **arrays)  # type: ignore[arg-type]
        part.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace.

        Raises:
            TraceError: where the file is missing, no trace, damaged, or of a newer version.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                header = json.loads(bytes(archive["header"]).decode())
                if header.get("format") != _FORMAT:
                    raise TraceError(f"{Path(path).name} is an .npz file but no Fresco trace; choose a file saved by Fresco")
                if header["version"] > VERSION:
                    raise TraceError(
                        f"{Path(path).name} has trace version {header['version']}; this program reads up to {VERSION}, "
                        "so update it"
                    )
                events = [cls._event(archive, k, e) for k, e in enumerate(header["events"])]
                config = FrescoConfig.from_json(header["config"])
                return cls(header["prompt"], config, header["model"], header["label"], header["provenance"], events)
        except TraceError:
            raise
        except FileNotFoundError:
            raise TraceError(f"there is no trace file {Path(path).name}; check the path") from None
        except Exception as error:  # a foreign file can fail in any way; to the reader it is one and the same
            raise TraceError(f"{Path(path).name} is damaged or no Fresco trace; record the run again") from error

    @staticmethod
    def _event(archive: Any, k: int, header: dict[str, Any]) -> StepEvent:
        frames, rows, cols = (int(s) for s in header["shape"])
        if frames * rows * cols > _MAX_CELLS:
            raise ValueError("a grid beyond any model")
        level, coord = archive[f"{k}.level"].astype(np.int64), archive[f"{k}.coord"].astype(np.int64)
        if level.ndim != 1 or coord.shape != (len(level), 3):
            raise ValueError("token arrays of different length")
        grid = TokenGrid((frames, rows, cols), int(header["levels"]), level, coord)
        if not grid.tiles():
            raise ValueError("tokens do not tile the canvas")
        arrays: dict[str, Any] = {name: archive[f"{k}.{name}"] for name in _ARRAYS}
        for name, dtype in _ARRAYS.items():
            if arrays[name].shape != (len(level),) or arrays[name].dtype != dtype:
                raise ValueError("token arrays of the wrong length or type")
        preview = archive.get(f"{k}.preview")
        if preview is not None and (preview.dtype != np.uint8 or preview.ndim != 4 or preview.shape[3] != 3):
            raise ValueError("a preview that is no picture")
        scalars: dict[str, Any] = {n: float("nan") if header[n] is None else kind(header[n]) for n, kind in _SCALARS.items()}
        return StepEvent(grid=grid, preview=preview, **scalars, **arrays)
