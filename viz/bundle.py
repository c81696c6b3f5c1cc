"""Recorded runs of one prompt as a single message: every tau at every NFE, to be explored without a server.

Source: DESIGN 3. Steps that several runs share (the whole low stage, at one NFE) are stored once.

A file is one JSON document of which a browser needs only the beginning: `frames` is its last key and has one frame a line,
those of the run that opens first (`opening`) before its first reference's and all others. A reader that takes lines as they
arrive plays after the first run's; a reader that knows JSON alone reads the whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fresco.errors import FrescoError
from fresco.trace import StepEvent, Trace
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


def build(slug: str, runs: Sequence[Recorded], references: Sequence[Recorded], full_step: float | None) -> dict[str, Any]:
    """Return the bundle message of one prompt.

    Args:
        slug: short name, also the file's.
        runs: one per (tau, NFE); a run driven by a ratio has no tau, so its steps keep the threshold they used.
        references: full-resolution runs.
        full_step: FLOPs of one full-resolution step; None where it is not known, then no baseline is claimed.
    """
    taus = sorted({r.trace.config.tau for r in runs if r.trace.config.tau is not None})
    nfes = sorted({r.trace.config.nfe for r in runs})
    frames: list[dict[str, Any]] = []
    index: dict[str, int] = {}

    def store(trace: Trace) -> list[int]:
        places = []
        for event in trace.events:
            frame = {k: v for k, v in step_json(event).items() if k not in _DRIVE or trace.config.ratio is not None}
            key = json.dumps({k: v for k, v in frame.items() if k not in _TIMES}, sort_keys=True)
            if key not in index:
                index[key] = len(frames)
                frames.append(frame)
            places.append(index[key])
        return places

    def about(trace: Trace) -> dict[str, Any]:
        said = meta(
            trace.config, prompt=trace.prompt, model=trace.model, device=trace.provenance.get("device", ""),
            full_step=full_step or 0.0, recorded=True, provenance=trace.provenance.get("weights", ""),
        )  # fmt: skip
        if full_step:
            said["baselines"]["same_flops"] = same_flops(trace.flops, full_step)
        else:
            said["baselines"] = {}
        return said

    first = runs[opening(taus, nfes, [(r.trace.config.tau, r.trace.config.nfe) for r in runs])].trace
    for trace in (first, *(r.trace for r in references[:1])):
        store(trace)
    return {
        "type": "bundle", "v": VERSION, "slug": slug, "prompt": first.prompt,
        "seed": first.config.seed, "model": first.model,
        "provenance": first.provenance,
        "taus": taus, "nfes": nfes,
        "runs": [
            {"tau": r.trace.config.tau, "nfe": r.trace.config.nfe, "meta": about(r.trace), "frames": store(r.trace),
             "psnr": r.psnr, "ssim": r.ssim}
            for r in runs
        ],
        "references": [
            {"label": _label(r.trace), "steps": r.trace.config.nfe, "meta": about(r.trace), "frames": store(r.trace)}
            for r in references
        ],
        "frames": frames,
    }  # fmt: skip


def opening(taus: Sequence[float], nfes: Sequence[int], runs: Sequence[tuple[float | None, int]]) -> int:
    """Return the index of the (tau, NFE) that a viewer opens with: the middle of both lists, or the first there is."""
    middle = (taus[len(taus) // 2] if taus else None, nfes[len(nfes) // 2])
    return runs.index(middle) if middle in runs else 0


def from_traces(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """Return the bundles of ordinary traces: runs of one prompt, seed and model together, with their references.

    Full-resolution traces are the references. Runs that differ in tau and NFE alone and fill the whole table of both are
    one bundle, to be switched by dragging tau; others become a bundle each.

    Raises:
        BundleError: where a trace has no step, or a prompt has references only.
    """
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        if not trace.events:
            raise BundleError(f"the trace of {trace.prompt[:60]!r} has no step; record it again")
        same = {"prompt": trace.prompt, "model": trace.model, "grid": trace.events[0].grid.shape}
        key = same | {k: getattr(trace.config, k) for k in ("seed", "guidance")}
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(trace)
    out: list[dict[str, Any]] = []
    for group in groups.values():
        runs, references = [t for t in group if not t.config.is_full], [t for t in group if t.config.is_full]
        if not runs:
            raise BundleError(f"of {group[0].prompt[:60]!r} there are full-resolution traces only; add the run beside them")
        references.sort(key=lambda t: -t.config.nfe)
        for together in [runs] if _is_table(runs) else [[run] for run in runs]:
            slug = _slug(group[0].prompt, {b["slug"] for b in out})
            step = full_step([*references, *together])
            out.append(build(slug, [Recorded(t) for t in together], [Recorded(t) for t in references], step))
    return out


def full_step(traces: Sequence[Trace]) -> float | None:
    """Return the FLOPs of a step with fine tokens only, from the first trace that made one; None where none did."""
    return next((e.flops for t in traces for e in t.events if _is_fine(e)), None)


def _is_fine(event: StepEvent) -> bool:
    return bool((event.grid.level == event.grid.levels).all())


def _is_table(runs: Sequence[Trace]) -> bool:
    """Whether runs differ in tau and NFE alone, and every tau was run at every NFE."""
    rest = {json.dumps(r.config.to_json() | {"tau": None, "nfe": None, "stages": None}, sort_keys=True) for r in runs}
    places = {(r.config.tau, r.config.nfe) for r in runs}
    table = len({tau for tau, _ in places}) * len({nfe for _, nfe in places})
    return len(rest) == 1 and len(runs) == len(places) == table and (len(runs) == 1 or None not in {t for t, _ in places})


def _label(trace: Trace) -> str:
    return trace.label or f"Full resolution, {trace.config.nfe} steps"


def _slug(prompt: str, taken: set[str]) -> str:
    """Return a short file name made of a prompt's first words that is not taken yet."""
    words = re.findall("[a-z0-9]+", prompt.lower())
    name = "-".join(words)[:32].strip("-") or "run"
    return next(n for k in range(1, len(taken) + 2) if (n := name if k == 1 else f"{name}-{k}") not in taken)


def save(bundle: Mapping[str, Any], folder: Path) -> Path:
    """Write the bundle as `<slug>.json` and return its path."""
    path = folder / f"{bundle['slug']}.json"
    path.write_text(text(bundle), encoding="utf-8")
    return path


def text(bundle: Mapping[str, Any]) -> str:
    """Return the bundle as JSON with one frame a line, after all else."""

    def said(value: object) -> str:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    head = said({k: v for k, v in bundle.items() if k != "frames"})[:-1]
    return f'{head},"frames":[\n' + ",\n".join(map(said, bundle["frames"])) + "\n]}"


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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path.name} is missing, damaged or no recorded run; record it again") from error
    if not known or not whole:
        raise BundleError(f"{path.name} is no recorded run of this version; record it again")
    return dict(data)
