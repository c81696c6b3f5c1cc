"""A finished run or comparison as something to keep: film, picture, figure, trace, page, and the line that cites it.

The JSON trace (version 1) is the `.npz` of `fresco.trace` as one JSON document with the same header: {"format":
"fresco-trace-json", "version": 1, "prompt", "config", "model", "label", "provenance", "flops", "events": [...]}. An event has
its numbers (`null` where undefined), the grid's `shape` and `levels` and, one entry a token in the trace's own order, `level`,
`coord` ([frame, row, col] in cells of that level), `variance`, `selected` and `noise_gap`. `preview` is the clean estimate as a
list of lossless PNG data URIs, one for each frame, or null where it was skipped.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import shlex
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fresco.config import FrescoConfig
from fresco.errors import FrescoError
from fresco.grid import TokenGrid
from fresco.trace import StepEvent, Trace
from viz import bundle, export, figure, film, lesson, link, story
from viz.page.controls import PRESETS

FILMS = {"Film, WebP": ".webp", "Film, GIF": ".gif", "Film, MP4": ".mp4"}
FIGURES = {"Figure, PDF": ".pdf", "Figure, SVG": ".svg", "Figure, PNG": ".png"}
STILL, NPZ, JSON, PAGE = "One step, PNG", "Trace, NPZ", "Trace, JSON", "Page, HTML"
KINDS = (*FILMS, STILL, *FIGURES, NPZ, JSON, PAGE)
VERSION = 1
_SCALARS = (
    "step", "sigma", "sigma_next", "stage", "check", "closing", "tau", "ratio", "flops", "seconds", "preview_seconds",
)  # fmt: skip


class ShareError(FrescoError):
    """Something that cannot be exported as asked."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _list(values: Any) -> list[Any]:
    return [_finite(v) for v in np.asarray(values).tolist()]


def _png(picture: Any) -> list[str]:
    out = []
    for one in picture:
        buffer = io.BytesIO()
        Image.fromarray(one).save(buffer, "PNG")
        out.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return out


def to_json(trace: Trace) -> dict[str, Any]:
    """Return the trace as JSON; the module's docstring describes it."""
    events = [
        {**{name: _finite(getattr(e, name)) for name in _SCALARS}, "shape": list(e.grid.shape), "levels": e.grid.levels,
         "level": e.grid.level.tolist(), "coord": e.grid.coord.tolist(), "variance": _list(e.variance),
         "selected": e.selected.tolist(), "noise_gap": _list(e.noise_gap),
         "preview": None if e.preview is None else _png(e.preview)}
        for e in trace.events
    ]  # fmt: skip
    return {
        "format": "fresco-trace-json", "version": VERSION, "prompt": trace.prompt, "config": trace.config.to_json(),
        "model": trace.model, "label": trace.label, "provenance": trace.provenance, "flops": trace.flops, "events": events,
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------- runs that can be kept


class Kept:
    """The newest runs' traces by run id and track, while they grow and after; safe across threads."""

    def __init__(self, size: int = 8) -> None:
        self._size, self._lock = size, threading.Lock()
        self._runs: OrderedDict[str, dict[int, Trace]] = OrderedDict()

    def add(self, run: str, track: int, event: StepEvent, about: Callable[[], Trace]) -> None:
        """Keep an event; `about` returns an empty trace when the track is new. A step that comes again replaces itself."""
        with self._lock:
            tracks = self._runs.setdefault(run, {})
            if track not in tracks:
                tracks[track] = about()
            events = tracks[track].events
            if events and event.step < len(events):
                events[event.step] = event
            else:
                events.append(event)
            while len(self._runs) > self._size:
                self._runs.popitem(last=False)

    def find(self, run: str) -> list[Trace]:
        """Return a run's traces, the first track first.

        Raises:
            ShareError: where it is not known any more.
        """
        with self._lock:
            tracks = dict(self._runs.get(run, {}))
        if not tracks:
            raise ShareError(
                f"run {run[:40]!r} is not here any more: the newest {self._size} are kept; press Run to make it again"
            )
        return [dataclasses.replace(tracks[k], events=list(tracks[k].events)) for k in sorted(tracks)]


def from_bundle(b: Mapping[str, Any], tau: float | None = None, nfe: int | None = None) -> list[Trace]:
    """Return a recorded run and its references as traces.

    Deviation: a recorded file holds variances to 0.02 %, pictures as WebP and one noise gap a step, so these are not bit for
    bit the traces it was made from.

    Args:
        b: message of `viz.bundle`. tau, nfe: which run of a table; the one that plays first where they name none.
    """
    wanted = [r for r in b["runs"] if (r["tau"], r["nfe"]) == (tau, nfe)]
    run = wanted[0] if wanted else story.middle(b)
    config = FrescoConfig.from_json(run["config"]) if "config" in run else story.config_of({**b, "runs": [run]})
    traces = [_trace(b, run, config, "Fresco")]
    for r in b["references"]:
        theirs = FrescoConfig.from_json(r["config"]) if "config" in r else config.as_full(r["steps"])
        traces.append(_trace(b, r, theirs, r["label"]))
    return traces


def _trace(b: Mapping[str, Any], run: Mapping[str, Any], config: FrescoConfig, label: str) -> Trace:
    events = [_event(k, b["frames"][i]) for k, i in enumerate(run["frames"])]
    return Trace(b["prompt"], config, b["model"], label, dict(b["provenance"]), events)


def _event(step: int, f: Mapping[str, Any]) -> StepEvent:
    number = lesson.numbers(f)
    first = np.unique(number, return_index=True)[1]  # a token's first cell in scan order: its upper left corner
    level = lesson.levels(f).ravel()[first].astype(np.int64)
    shift = int(f["levels"]) - level
    frame, row, col = np.unravel_index(first, f["shape"])
    grid = TokenGrid(tuple(f["shape"]), int(f["levels"]), level, np.stack([frame, row >> shift, col >> shift], axis=1))
    nan = math.nan
    values = {name: nan if f.get(name) is None else float(f[name]) for name in ("sigma", "sigma_next", "tau", "ratio", "gap")}
    return StepEvent(
        step, values["sigma"], values["sigma_next"], f["stage"], bool(f["check"]), bool(f["final"]), values["tau"],
        values["ratio"], grid, lesson.variance(f).astype(np.float32), lesson.promoted(f), _picture(f), float(f["flops"]),
        float(f["ms"] or 0) / 1000, float(f["preview_ms"] or 0) / 1000, np.full(len(level), values["gap"], np.float32),
    )  # fmt: skip


def _picture(f: Mapping[str, Any]) -> NDArray[np.uint8] | None:
    """Return a recorded preview, (T, H, W, 3) uint8; of a video, a sheet of pictures row by row."""
    if not f.get("preview"):
        return None
    raw = base64.b64decode(f["preview"].partition(",")[2])
    whole = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    count, columns = int(f.get("frames", 1)), int(f.get("columns", 1))
    high, wide = whole.shape[0] // math.ceil(count / columns), whole.shape[1] // columns
    tiles = [whole[k // columns * high :, k % columns * wide :][:high, :wide] for k in range(count)]
    return np.stack(tiles)


def pack(trace: Trace, form: str) -> str:
    """Return a trace as one JSON string: itself ("json"), or {"name", "npz"} with the archive in base64 ("npz").

    Raises:
        ShareError: on another form.
    """
    if form == "json":
        return _dumps(to_json(trace))
    if form != "npz":
        raise ShareError(f"form is {form!r}; choose json or npz")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name_of(trace, NPZ)
        trace.save(path)
        return _dumps({"name": path.name, "npz": base64.b64encode(path.read_bytes()).decode()})


# ------------------------------------------------------------------------------------------------------------------ citing


def command(trace: Trace) -> str:
    """Return the shell command that makes a run again; a setting that no option knows is a trailing comment."""
    config = trace.config
    default = FrescoConfig.full(config.nfe) if config.is_full else FrescoConfig.recommended(config.nfe)
    words = ["python", "-m", "fresco", "generate", trace.prompt, "--model", trace.model, "--nfe", str(config.nfe)]
    if config.is_full:
        words += ["--preset", "full"]
    if config.stages not in (None, default.stages):
        words += ["--steps", ",".join(map(str, config.split))]
    if config.size is not None:
        words += ["--size", "x".join(map(str, config.size[1:]))]
    if config.tau is not None:
        words += ["--tau", f"{config.tau:.12g}"]
    elif not config.is_full:
        words += ["--ratio", f"{config.ratio:.12g}"]
    words += ["--seed", str(config.seed)]
    for name in ("transition", "noise", "signal", "selection", "expansion", "frame", "checks", "window", "levels", "guidance"):
        if getattr(config, name) != getattr(default, name):
            words += [f"--{name}", str(getattr(config, name))]
    rest = {n: getattr(config, n) for n in ("switch", "detail_gain") if getattr(config, n) != getattr(default, n)}
    note = "  # and in Python: " + ", ".join(f"{n}={v!r}" for n, v in rest.items()) if rest else ""
    return shlex.join(words) + note


def cite(trace: Trace, reference: Trace | None = None, address: str = "") -> str:
    """Return one paragraph with everything that is needed to make the run again, and what it cost.

    Args:
        trace: a finished run. reference: beside it, for the cost of a full step.
        address: of the page, before its query; "" leaves the link out.
    """
    config, about = trace.config, trace.provenance
    drive = f"tau {config.tau:g}" if config.tau is not None else f"ratio {config.ratio:g}"
    step = bundle.full_step([t for t in (reference, trace) if t])
    cost = f"{50 * step / trace.flops:.2f} times fewer FLOPs than 50 full steps" if step else f"{trace.flops:.4g} FLOPs"
    settings = [f"seed {config.seed}", f"NFE {config.nfe} ({' + '.join(map(str, config.split))})"]
    if not config.is_full:
        settings += [drive, config.transition, config.selection, config.expansion]
        settings += [f"{name} {getattr(config, name)}" for name in ("noise", "signal", "frame", "window", "checks")]
    weights = about.get("weights") or trace.model
    made = ", ".join(f"{name} {about[name]}" for name in ("dtype", "device", "torch", "python") if about.get(name))
    query = link.write(config, PRESETS["recommended"], prompt=trace.prompt, model=trace.model)
    parts = [
        f"Fresco (arXiv:2601.07462), prompt “{trace.prompt}”, {', '.join(settings)}; {weights}{f' ({made})' if made else ''}; "
        f"{cost}. Made by: {command(trace)}",
        f"{address}?{query}" if address else "",
    ]
    return "  ".join(p for p in parts if p)


# ----------------------------------------------------------------------------------------------------------------- writing


def name_of(trace: Trace, kind: str) -> str:
    """Return a file name for an export: prompt, seed and what it is."""
    endings = {**FILMS, **FIGURES, STILL: ".png", NPZ: ".npz", JSON: ".json", PAGE: ".html"}
    if kind not in endings:
        raise ShareError(f"{kind!r} cannot be exported; choose of {', '.join(KINDS)}")
    words = "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in trace.prompt.lower()).split())[:40]
    return f"fresco-{words or 'run'}-{trace.config.seed}-{kind.split(',')[0].lower().replace(' ', '-')}{endings[kind]}"


def write(
    kind: str, folder: str | Path, traces: Sequence[Trace], *, step: int = 0, layers: film.Overlay = "variance",
    with_lesson: bool = False,
) -> Iterator[tuple[float, str]]:  # fmt: skip
    """Write an export and yield (share done, what is going on); the last word is the file's name. Closing it stops the work.

    Args:
        kind: a name in KINDS.
        folder: where to.
        traces: the run, and its reference where there is one; further ones go into the page only.
        step: of the run, from 0, for a still. layers: beside the sketch, for films and stills.
        with_lesson: whether the page brings our lesson and its runs.

    Raises:
        FrescoError: where it cannot be made: the sentence says why.
    """
    if not traces or not traces[0].events:
        raise ShareError("there is no finished step to export; run something first")
    trace, reference = traces[0], next((t for t in traces[1:] if t.config.is_full), None)
    path = Path(folder) / name_of(trace, kind)
    makers: Mapping[str, Callable[[], None]] = {
        STILL: lambda: Image.fromarray(film.still(trace, step, reference, overlay=layers)).save(path),
        NPZ: lambda: trace.save(path),
        JSON: lambda: _write_text(path, _dumps(to_json(trace))),
        PAGE: lambda: _write_text(path, _page(traces, with_lesson)),
    }
    yield 0.0, f"Writing {path.name}"
    if kind in FILMS:
        for done, of in film.write(path, trace, reference, overlay=layers):
            yield 0.95 * done / of, f"Picture {done} of {of}"
    elif kind in FIGURES:
        figure.save(figure.draw(trace, reference), path)
    else:
        makers[kind]()
    yield 1.0, str(path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _page(traces: Sequence[Trace], with_lesson: bool) -> str:
    bundles: Sequence[Mapping[str, Any]] = bundle.from_traces(traces)
    taught = lesson.load(lesson.LESSONS) if with_lesson else None
    if taught:
        bundles = export.with_lesson(bundles, taught)
    return export.page(bundles, title=f"Fresco: {traces[0].prompt[:120]}", taught=taught)
