"""The static, paper-style figure of a run: steps in columns; sketch, variance, promotions, reference in rows.

matplotlib; PNG, WebP, PDF or SVG by the file's ending. Source: DESIGN 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fresco.trace import StepEvent, Trace
from viz import style


def pick(trace: Trace, columns: int) -> list[int]:
    """Return evenly spaced steps that include the first, the last and the first check."""
    count = len(trace.events)
    steps = set(np.linspace(0, count - 1, min(columns, count)).round().astype(int).tolist())
    check = next((e.step for e in trace.events if e.selected.any()), None)
    if check is not None and check not in steps:
        inner = sorted(steps - {0, count - 1}) or [check]
        steps = steps - {min(inner, key=lambda s: abs(s - check))} | {check}
    return sorted(steps)


def paid(reference: Trace, flops: float) -> int:
    """Return the index of the last step that the reference had finished when it had spent `flops`; -1 inside its first."""
    spent = np.cumsum([e.flops for e in reference.events])
    return int(np.searchsorted(spent, flops * (1 + 1e-9), side="right")) - 1


def at_cost(reference: Trace, flops: float) -> StepEvent:
    """Return the last step that the reference had finished when it had spent `flops`; its first before that."""
    return reference.events[max(paid(reference, flops), 0)]


def _shown(trace: Trace, at: int) -> np.ndarray:
    """Return the preview of a step, or where it was skipped the newest one before it, else the first after it."""
    order = [*reversed(trace.events[: at + 1]), *trace.events[at + 1 :]]
    preview = next((e.preview for e in order if e.preview is not None), None)
    if preview is None:
        raise ValueError("the run has no preview to draw; record it with previews")
    return preview


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _outlines(axes: Axes, event: StepEvent, height: int, width: int) -> None:
    """Outline every token; fill and hatch those promoted after this step."""
    _, rows, cols = event.grid.shape
    for level, (frame, row, col), chosen in zip(event.grid.level, event.grid.coord, event.selected, strict=True):
        if frame:
            continue
        edge = 1 << int(event.grid.levels - level)
        box = (col * edge / cols * width - 0.5, row * edge / rows * height - 0.5)
        size = (edge / cols * width, edge / rows * height)
        axes.add_patch(Rectangle(box, *size, fill=False, lw=0.3, ec=style.OUTLINE, alpha=0.7))
        if chosen:
            axes.add_patch(Rectangle(box, *size, fill=False, lw=0.6, ec=style.PROMOTED, hatch="////", alpha=0.9))


def draw(trace: Trace, reference: Trace | None = None, *, columns: int = 8, vmin: float = 1e-5, vmax: float = 0.1) -> Figure:
    """Return the figure of a run.

    Args:
        trace: the run; steps need previews.
        reference: a full-resolution run of the same seed, shown at the same cost.
        columns: how many steps.
        vmin, vmax: range of the variance colours.
    """
    steps = pick(trace, columns)
    rows = ["clean estimate", "token variance", "promoted now"] + (["full resolution\nat the same cost"] if reference else [])
    figure = Figure(figsize=(1.35 * len(steps) + 1.0, 1.4 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), len(steps), squeeze=False)
    spent = np.cumsum([e.flops for e in trace.events])
    picture = trace.picture
    if picture is None:
        raise ValueError("the run has no preview to draw; record it with previews")
    height, width = picture.shape[1:3]
    whole = reference.flops if reference else None
    for column, step in enumerate(steps):
        event = trace.events[step]
        shown = _shown(trace, step)
        heat = style.heat(event.variance[event.grid.cells()[0]], vmin, vmax)
        layers = [shown[0], heat, shown[0]]
        if reference:
            layers.append(_shown(reference, reference.events.index(at_cost(reference, spent[step])))[0])
        for row, layer in enumerate(layers):
            grid[row, column].imshow(layer, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")
            _bare(grid[row, column])
        _outlines(grid[2, column], event, height, width)
        share = f", {100 * spent[step] / whole:.0f} %" if whole else ""
        grid[0, column].set_title(f"step {step + 1} ({event.stage}{share})", fontsize=7)
    for row, name in enumerate(rows):
        grid[row, 0].set_ylabel(name, fontsize=8)
    drive = f"tau {trace.config.tau:g}" if trace.config.tau is not None else f"ratio {trace.config.ratio:g}"
    cost = (
        f", {whole / trace.flops:.2f} times fewer FLOPs than {reference.config.nfe} full steps" if reference and whole else ""
    )
    figure.suptitle(
        f"“{trace.prompt}”, {trace.model}, seed {trace.config.seed}, NFE {trace.config.nfe}, {drive}{cost}", fontsize=9
    )
    return figure


def save(figure: Figure, path: str | Path, *, dpi: int = 150) -> None:
    """Write a figure; the ending of the name says how."""
    figure.savefig(path, dpi=dpi)
