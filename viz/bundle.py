"""Recorded runs of one prompt as a single message: every tau at every NFE, to be explored without a server.

Source: DESIGN 3. Steps that several runs share (the whole low stage, at one NFE) are stored once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fresco.errors import FrescoError
from fresco.trace import Trace
from viz.frame import VERSION, meta, same_flops, step_json

_TIMES = ("ms", "preview_ms")
_DRIVE = ("tau", "ratio")  # the player knows the run's tau, and counts the fraction itself


@dataclass(frozen=True)
class Recorded:
    """A finished run and its likeness to the 50-step reference of the same seed (None for a reference)."""

    trace: Trace
    psnr: float | None = None
    ssim: float | None = None


class BundleError(FrescoError):
    """A recorded file that is missing, damaged or foreign."""


def build(slug: str, runs: Sequence[Recorded], references: Sequence[Recorded], full_step: float) -> dict[str, Any]:
    """Return the bundle message of one prompt.

    Args:
        slug: short name, also the file's.
        runs: one per (tau, NFE), each with `config.tau`.
        references: full-resolution runs.
        full_step: FLOPs of one full-resolution step.
    """
    frames: list[dict[str, Any]] = []
    index: dict[str, int] = {}

    def store(trace: Trace) -> list[int]:
        places = []
        for event in trace.events:
            frame = {k: v for k, v in step_json(event).items() if k not in _DRIVE}
            key = json.dumps({k: v for k, v in frame.items() if k not in _TIMES}, sort_keys=True)
            if key not in index:
                index[key] = len(frames)
                frames.append(frame)
            places.append(index[key])
        return places

    def about(trace: Trace) -> dict[str, Any]:
        said = meta(
            trace.config, prompt=trace.prompt, model=trace.model, device=trace.provenance.get("device", ""),
            full_step=full_step, recorded=True, provenance=trace.provenance.get("weights", ""),
        )  # fmt: skip
        said["baselines"]["same_flops"] = same_flops(trace.flops, full_step)
        return said

    first = runs[0].trace
    return {
        "type": "bundle", "v": VERSION, "slug": slug, "prompt": first.prompt,
        "seed": first.config.seed, "model": first.model,
        "provenance": first.provenance,
        "taus": sorted({r.trace.config.tau for r in runs if r.trace.config.tau is not None}),
        "nfes": sorted({r.trace.config.nfe for r in runs}),
        "runs": [
            {"tau": r.trace.config.tau, "nfe": r.trace.config.nfe, "meta": about(r.trace), "frames": store(r.trace),
             "psnr": r.psnr, "ssim": r.ssim}
            for r in runs
        ],
        "references": [
            {"label": r.trace.label, "steps": r.trace.config.nfe, "meta": about(r.trace), "frames": store(r.trace)}
            for r in references
        ],
        "frames": frames,
    }  # fmt: skip


def save(bundle: Mapping[str, Any], folder: Path) -> Path:
    """Write the bundle as `<slug>.json` and return its path."""
    path = folder / f"{bundle['slug']}.json"
    path.write_text(json.dumps(bundle, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
    return path


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Return {slug: bundle without its frames} of every recorded prompt in a folder; damaged files are left out."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = {k: v for k, v in load(path).items() if k != "frames"}
        except BundleError:
            continue
    return found


def load(path: Path) -> dict[str, Any]:
    """Read a bundle.

    Raises:
        BundleError: where the file is missing, damaged or something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = data["type"] == "bundle" and data["v"] <= VERSION
        whole = all(0 <= i < len(data["frames"]) for run in [*data["runs"], *data["references"]] for i in run["frames"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path.name} is missing, damaged or no recorded run; record it again") from error
    if not known or not whole:
        raise BundleError(f"{path.name} is no recorded run of this version; record it again")
    return dict(data)
