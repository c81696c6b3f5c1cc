"""Plotly figures of a sweep or a run, drawn once from plain data; and a sheet of pictures as a PNG. Source: DESIGN 3.

A point is a mapping with key, label, group, full_steps (cost in full-resolution steps), speedup, psnr, ssim. Figures carry no
colour for text or background: the page's style sheet gives them the theme's, light or dark.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import style

Point = Mapping[str, Any]
QUALITIES = {"psnr": "PSNR to 50 full steps, dB", "ssim": "SSIM to 50 full steps"}  # of the same seed
ROUNDING = 1e-9
SIGNALS = {"z": "noisy state z", "x0": "clean estimate x0", "channel": "across channels"}


def _known(points: Sequence[Point], quality: str) -> list[Point]:
    """Return the points that can be drawn, cheapest first; the reference itself is infinitely like itself."""
    known = [p for p in points if p[quality] is not None and math.isfinite(p[quality])]
    return sorted(known, key=lambda p: (p["full_steps"], -p[quality]))


def front(points: Sequence[Point], quality: str = "psnr") -> list[str]:
    """Return the keys of the points that no other point beats in both cost and quality, cheapest first."""
    best, keys = -math.inf, []
    for point in _known(points, quality):
        if point[quality] > best:
            best = point[quality]
            keys.append(point["key"])
    return keys


def at_cost(curve: Sequence[Point], cost: float, quality: str = "psnr") -> float | None:
    """Return the quality of the full-resolution curve at a cost, straight between its points; None outside them."""
    known = _known(curve, quality)
    costs = [p["full_steps"] for p in known]
    if not known or not costs[0] <= cost <= costs[-1]:
        return None
    return float(np.interp(cost, costs, [p[quality] for p in known]))


def _layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    title = {"size": 13}
    axis = {
        "gridcolor": style.GRID,
        "zerolinecolor": style.GRID,
        "linecolor": style.GRID,
        "ticks": "outside",
        "tickcolor": style.GRID,
    }
    return {
        "template": "none", "paper_bgcolor": style.CLEAR, "plot_bgcolor": style.CLEAR, "height": 380, "hovermode": "closest",
        "margin": {"l": 64, "r": 16, "t": 16, "b": 56}, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": style.MUTED},
        "xaxis": {"title": {"text": x, "font": title}, **axis}, "yaxis": {"title": {"text": y, "font": title}, **axis},
        "clickmode": "event", "dragmode": False, "modebar": {"remove": _TOOLS, "bgcolor": style.CLEAR}, **more,
    }  # fmt: skip


# A finger that drags is to scroll the page, and nothing here needs a closer look.
_TOOLS = ["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale", "resetscale"]


def _note(x: float, y: float, text: str, **more: Any) -> dict[str, Any]:
    """Return words in a chart, in units of its data."""
    return {"x": x, "y": y, "text": text, "showarrow": False, "font": {"size": 12}, **more}


def _shades(count: int) -> list[str]:
    """Return well separated colours of the one palette, without its ends: they must be seen on light and on dark."""
    return [mpl.colors.to_hex(style.MAP(0.2 + 0.6 * k / max(1, count - 1))) for k in range(count)]


def pareto(points: Sequence[Point], curve: Sequence[Point], *, quality: str = "psnr") -> go.Figure:
    """Return cost against quality: the runs by group, their Pareto front, and full resolution at several step counts.

    Every point's `customdata` is its key. Points whose quality is unknown or infinite are not drawn.

    Args:
        points: the runs; those of one `group` are joined.
        curve: full-resolution runs.
        quality: "psnr" or "ssim".
    """
    figure = go.Figure(layout=_layout("cost in full-resolution steps (FLOPs)", QUALITIES[quality]))
    known = _known(points, quality)
    groups = list(dict.fromkeys(p.get("group", "") for p in points))
    old = any(p.get("recorded") for p in points)  # then what was run here is a diamond
    said = "%{text}<br>%{x:.2f} full steps, " + ("%{y:.2f} dB" if quality == "psnr" else "%{y:.3f}") + "<extra></extra>"

    def line(chosen: Sequence[Point], name: str, **looks: Any) -> None:
        figure.add_scatter(
            x=[p["full_steps"] for p in chosen], y=[p[quality] for p in chosen], text=[p["label"] for p in chosen],
            customdata=[p["key"] for p in chosen], name=name, hovertemplate=said, **looks,
        )  # fmt: skip

    best = front(points, quality)
    if len(best) > 1:
        line([p for p in known if p["key"] in best], "Pareto front", mode="lines", hoverinfo="skip",
             line={"width": 9, "color": style.FRONT})  # fmt: skip
    if curve:
        line(_known(curve, quality), "full resolution", mode="lines+markers",
             line={"dash": "dash", "color": style.MUTED}, marker={"symbol": "square", "size": 9})  # fmt: skip
        figure.add_annotation(
            _note(0.01, 0.99, "↑ better than fewer full steps", xref="paper", yref="paper", xanchor="left",
                  yanchor="top"),
        )  # fmt: skip
    for group, colour in zip(groups, _shades(len(groups)), strict=True):
        own = [p for p in known if p.get("group", "") == group]
        symbols = ["circle" if old == p.get("recorded", False) else "diamond" for p in own]
        line(own, group or "runs", mode="lines+markers", line={"width": 1.5, "color": colour},
             marker={"size": 12, "line": {"width": 1, "color": style.PAPER}, "symbol": symbols})  # fmt: skip
    legend = {"entrywidth": 72, "font": {"size": 11}}  # two columns on a phone
    return figure.update_layout(height=420, legend=legend, margin={"l": 52, "r": 8})


def proposition(measured: Sequence[Mapping[str, float]], exact: Sequence[Mapping[str, float]]) -> go.Figure:
    """Return the distance of a re-noised state to the path, with the field and with fresh noise, against the line b².

    Distances that are zero but for rounding, as in the first steps of a run, are not drawn: the axis is logarithmic.

    Args:
        measured: rows along a real run: sigma_from, unified, fresh, bound.
        exact: the same of the oracle, in closed form.
    """
    layout = _layout(
        "sigma of the state that is re-noised<br>solid: this run; dotted: oracle, exact",
        "mean squared distance to the path",
    )
    figure = go.Figure(layout=layout)
    colours = {"unified": style.STAGES["low"], "fresh": style.PROMOTED, "bound": style.MUTED}
    names = {"unified": "the field's noise", "fresh": "fresh noise", "bound": "b², no fresh noise gets below"}
    for rows, where, looks in ((measured, "this run", {"dash": "solid"}), (exact, "oracle, exact", {"dash": "dot"})):
        for name, colour in colours.items() if rows else ():
            figure.add_scatter(
                x=[r["sigma_from"] for r in rows], y=[r[name] if r[name] > ROUNDING else None for r in rows],
                name=f"{names[name]} ({where})",
                mode="lines+markers" if where == "this run" and name != "bound" else "lines",
                line={"color": colour, "width": 2, **looks},
                hovertemplate="sigma %{x:.3f}: %{y:.3g}<extra>" + names[name] + "</extra>",
            )  # fmt: skip
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_xaxes(range=[-0.03, 1.03])
    # Words stand clear of both lines that they name, where these are flat: the field's at low sigma, the others' at high.
    for name, end, worst in (("fresh", 1, max), ("bound", 1, min), ("unified", 0, min)):
        near = [r[name] for r in [*exact, *measured] if abs(r["sigma_from"] - end) <= 0.5 and r[name] > ROUNDING]
        if near:
            side, way = ("bottom", 4) if worst is max else ("top", -4)
            short = names[name].split(",")[0] + (", its bound" if name == "bound" else "")
            note = _note(end, math.log10(worst(near)), short, yanchor=side, yshift=way)
            figure.add_annotation({**note, "xanchor": "right" if end else "left"})
    return figure.update_layout(height=440, showlegend=False, margin={"l": 80, "b": 76})


def beyond(rows: Sequence[Mapping[str, float]]) -> str:
    """Return in a sentence how much farther fresh noise lands than the field's; rows as in `proposition`."""
    apart = [r["fresh"] / r["unified"] for r in rows if r["unified"] > ROUNDING]
    if not apart:
        return "The run was too short to go back on its own path; take more steps."
    times = float(np.median(apart))
    said = f"{times:,.0f}" if times >= 10 else f"{times:.1f}"
    return f"Fresh noise lands {said} times as far from the run's own path as the field's (median of {len(apart)} steps)."


def convergence(rows: Sequence[Mapping[str, Any]], stages: Sequence[str] = ()) -> go.Figure:
    """Return the rank correlation of token variance with the true remaining error per step, a line per signal.

    Args:
        rows: step (0-based), sigma, signal, rho; where rho is not a number the line has a gap.
        stages: the stage of each step: low, mixed or full.
    """
    figure = go.Figure(layout=_layout("step (model call)", "rank correlation rho"))
    for stage in dict.fromkeys(stages):
        at = [k + 1 for k, other in enumerate(stages) if other == stage]
        figure.add_vrect(at[0] - 0.5, at[-1] + 0.5, fillcolor=style.STAGES[stage], opacity=0.12, line_width=0, layer="below")
        figure.add_annotation(_note(at[0] - 0.45, -1.03, stage, xanchor="left", yanchor="bottom"))
    looks = {"z": ("circle", style.MUTED), "x0": ("diamond", style.PROMOTED), "channel": ("square", style.STAGES["low"])}
    for signal, (symbol, colour) in looks.items():
        own = [r for r in rows if r["signal"] == signal]
        figure.add_scatter(
            x=[r["step"] + 1 for r in own], y=[r["rho"] if math.isfinite(r["rho"]) else None for r in own],
            name=SIGNALS[signal], mode="lines+markers", line={"color": colour, "width": 3 if signal == "x0" else 1.5},
            marker={"symbol": symbol, "size": 9}, customdata=[r["sigma"] for r in own],
            hovertemplate="step %{x}, sigma %{customdata:.2f}: rho %{y:.2f}<extra>" + SIGNALS[signal] + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(range=[0.5, max((r["step"] for r in rows), default=0) + 1.5])
    said = ["−1: reversed", "−0.5", "0: nothing", "0.5", "1: exactly"]  # how much the variance tells
    return figure.update_yaxes(range=[-1.05, 1.1], tickvals=[-1, -0.5, 0, 0.5, 1], ticktext=said, automargin=True)


def sheet(points: Sequence[Point | None], pictures: Sequence[NDArray[np.uint8] | None], columns: int, title: str) -> bytes:
    """Return a PNG of all pictures, `columns` in a row, each with its label, cost and likeness.

    Args:
        points: what is said of each; None leaves its place empty.
        pictures: (T, H, W, 3) each; the first frame is shown.
        columns: how many in a row.
        title: said on top.
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(points) / columns)
    figure = Figure(figsize=(2.0 * columns + 0.4, 2.45 * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        point, picture = (points[place], pictures[place]) if place < len(points) else (None, None)
        if point is not None and picture is not None:
            axes.imshow(picture[0])
            axes.set_title(f"{point['label']}\n{likeness(point)}", fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def likeness(point: Point) -> str:
    """Return a run's cost and likeness in one short line."""
    psnr = point["psnr"]
    parts = [f"{point['full_steps']:.2f} steps"]
    if psnr is not None:
        parts.append("the reference" if math.isinf(psnr) else f"{psnr:.1f} dB")
    if point["ssim"] is not None:
        parts.append(f"SSIM {point['ssim']:.2f}")
    return ", ".join(parts)
