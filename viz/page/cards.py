"""What the lab's tabs show beside charts, as HTML: grids and rows of runs, fields of noise, a token taken apart.

Plain data in, escaped text out; the classes are assets/style.css's. No gradio here.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from viz import style
from viz.charts import Point, likeness
from viz.frame import webp

Floats = NDArray[np.floating[Any]]
NOTE = (
    "PSNR (dB) and SSIM: likeness to the 50-step full-resolution picture of the same seed. Small numbers: apart from the first"
    " row. Difference: dark is equal, brightest 64 of 255 grey levels or more."
)
THUMB = 160  # pixels: pictures in a table are no larger than that


def said(value: Any) -> str:
    """Return a setting's value as text."""
    if isinstance(value, float):
        return f"{value:g}"
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)


def png(pixels: NDArray[np.uint8]) -> str:
    """Return (H, W, 3) pixels as a PNG data URI, for maps whose pixels are meant to be seen."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumb(picture: NDArray[np.uint8]) -> str:
    """Return the first frame of a (T, H, W, 3) picture as a small WebP data URI."""
    stride = -(-max(picture.shape[1:3]) // THUMB)
    return webp(np.ascontiguousarray(picture[:, ::stride, ::stride]), 85)


def _figure(src: str, caption: str, name: str = "") -> str:
    return f'<figure class="lab-map"><img src="{src}" alt="{html.escape(name)}"><figcaption>{caption}</figcaption></figure>'


def pixels(uri: str) -> NDArray[np.uint8]:
    """Return the picture of a data URI, (1, H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))[None]


def cell(point: Point, best: bool = False, url: str = "") -> str:
    """Return a run as a button that opens it: picture, cost and likeness; `url`: where it is recorded, if it is."""
    old, key = bool(point.get("recorded")), html.escape(point["key"], quote=True)
    label = html.escape(f"Open {point['label']}: {likeness(point)}{', recorded' if old else ''}", quote=True)
    mark = (
        '<span class="lab-best" title="No other run here is both cheaper and more alike">best at its cost</span>'
        if best
        else ""
    )
    note = '<span class="lab-old">recorded</span>' if old else ""
    where = f' data-url="{html.escape(url, quote=True)}"' if old else ""
    return (
        f'<button type="button" class="lab-cell" data-key="{key}"{where} aria-label="{label}">'
        f'<img src="{point["picture"]}" alt=""><span>{html.escape(likeness(point))}</span>{note}{mark}</button>'
    )


def _scrolled(caption: str, note: str, table: str) -> str:
    """Return a table that may be wider than the page, under its caption, which is not."""
    name = html.escape(caption, quote=True)
    return (
        f'<p class="lab-caption">{name}<small>{html.escape(note)}</small></p>'
        f'<div class="lab-scroll" tabindex="0" role="region" aria-label="{name}">{table}</div>'
    )


def places(points: Sequence[Point], axes: Mapping[str, Sequence[Any]]) -> list[list[Point | None]]:
    """Return the points as rows of a grid, the first axis down and the second across; None where there is no run."""
    (down, rows), *rest = axes.items()
    across, columns = rest[0] if rest else ("", [None])
    found = {json.dumps(p["coords"], sort_keys=True): p for p in points}

    def at(row: Any, column: Any) -> Point | None:
        return found.get(json.dumps({down: row} | ({across: column} if across else {}), sort_keys=True))

    return [[at(row, column) for column in columns] for row in rows]


def grid(
    points: Sequence[Point], axes: Mapping[str, Sequence[Any]], best: Sequence[str] = (),
    coming: Mapping[str, Sequence[Any]] | None = None, url: str = "",
) -> str:  # fmt: skip
    """Return the table of a sweep: the first axis down, the second across.

    Args:
        points: finished runs, with `coords` and `picture`.
        axes: one or two settings with their values.
        best: keys of those on the Pareto front.
        coming: the values being run now: their cells are still to come, others are not run.
        url: where the recorded ones among them are.
    """
    (down, rows), *rest = axes.items()
    across, columns = rest[0] if rest else ("", [None])
    coming = coming or {}

    def place(row: Any, column: Any, point: Point | None) -> str:
        if point:
            return f"<td>{cell(point, point['key'] in best, url)}</td>"
        wanted = row in coming.get(down, ()) and (not across or column in coming.get(across, ()))
        return f'<td class="lab-wait">{"to come" if wanted else "not run"}</td>'

    head = "".join(f'<th scope="col">{html.escape(across)} {html.escape(said(v))}</th>' for v in columns) if across else ""
    top = f"<thead><tr><td></td>{head}</tr></thead>" if across else ""
    body = "".join(
        f'<tr><th scope="row">{html.escape(down)} {html.escape(said(row))}</th>'
        + "".join(place(row, column, point) for column, point in zip(columns, found, strict=True))
        + "</tr>"
        for row, found in zip(rows, places(points, axes), strict=True)
    )
    caption = f"{down} by {across}" if across else down
    return _scrolled(
        caption, "Choose a picture to open its run.", f'<table class="lab-grid">{top}<tbody>{body}</tbody></table>'
    )


def _change(value: float | None, first: float | None, unit: str, digits: int = 2) -> str:
    """Return a number and, below it, how far it is from the first row's."""
    if value is None:
        return "–"
    shown = "∞" if value == float("inf") else f"{value:.{digits}f}"
    known = first is not None and value is not first and abs(value) != float("inf") and abs(first) != float("inf")
    apart = f"<small>{value - first:+.{digits}f}</small>" if known and first is not None else ""
    return f"{shown}{unit}{apart}"


def difference(picture: NDArray[np.uint8], first: NDArray[np.uint8]) -> str:
    """Return the mean absolute difference of two pictures of one size, 0 to 64 grey levels as dark to bright."""
    apart = np.abs(picture[0].astype(np.float64) - first[0]).mean(axis=-1)
    stride = -(-max(apart.shape) // THUMB)
    return png((style.MAP(np.clip(apart / 64, 0, 1))[::stride, ::stride, :3] * 255).astype(np.uint8))


def table(points: Sequence[Point], pictures: Sequence[NDArray[np.uint8]], sentences: Mapping[str, str], caption: str) -> str:
    """Return runs as rows, each against the first: picture, difference, cost, likeness.

    Args:
        points: the runs. pictures: theirs, (T, H, W, 3).
        sentences: what each label does.
        caption: of the table.
    """
    names = (
        "run",
        "picture",
        "difference to the first",
        "cost, full steps",
        "FLOPs, times fewer than 50 steps",
        "PSNR",
        "SSIM",
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = []
    for point, picture in zip(points, pictures, strict=True):
        first, alike = points[0], picture.shape == pictures[0].shape and point is not points[0]
        apart = f'<img src="{difference(picture, pictures[0])}" alt="">' if alike else "–"
        body.append(
            f'<tr><th scope="row">{html.escape(point["label"])}'
            f"<small>{html.escape(sentences.get(point['label'], ''))}</small></th><td>{cell(point)}</td><td>{apart}</td>"
            f"<td>{_change(point['full_steps'], first['full_steps'], '')}</td>"
            f"<td>{_change(point['speedup'], first['speedup'], '×')}</td>"
            f"<td>{_change(point['psnr'], first['psnr'], '')}</td>"
            f"<td>{_change(point['ssim'], first['ssim'], '', 3)}</td></tr>"
        )
    rows = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return _scrolled(caption, NOTE, f'<table class="lab-rows">{rows}</table>')


def pyramid(levels: Sequence[Floats], row: int, col: int, fresh: bool) -> str:
    """Return the noise at each level, coarsest first, with the cell over one finest cell outlined, and its arithmetic.

    Args:
        levels: arrays (rows_l, cols_l), each twice as fine as the one before.
        row, col: the marked cell of the finest level.
        fresh: whether finer levels were drawn anew, so that the sums cannot hold.
    """
    maps, sums = [], []
    for k, noise in enumerate(levels):
        halvings = len(levels) - 1 - k
        r, c = row >> halvings, col >> halvings
        height, width = 100 / noise.shape[0], 100 / noise.shape[1]
        mark = f'<i style="top:{r * height:.4f}%;left:{c * width:.4f}%;height:{height:.4f}%;width:{width:.4f}%"></i>'
        maps.append(
            f'<figure class="lab-map"><div class="lab-field"><img src="{png(style.signed(noise, 2.5))}" alt="">{mark}</div>'
            f"<figcaption>{noise.shape[0]} × {noise.shape[1]}: the marked cell holds <b>{noise[r, c]:+.2f}</b>"
            "</figcaption></figure>"
        )
        if halvings:
            below = levels[k + 1][2 * r : 2 * r + 2, 2 * c : 2 * c + 2]
            total, terms = float(below.sum()) / 2, " ".join(f"{v:+.2f}" for v in below.flat)
            holds = abs(total - noise[r, c]) < 5e-3
            said = "add up to this one" if holds else "know nothing of this one"
            sign = "=" if holds else "≠"
            sums.append(f"<li>({terms}) / 2 = {total:+.2f} <b>{sign}</b> {noise[r, c]:+.2f}: the four cells below {said}</li>")
    what = (
        "Fresh noise: a promoted token is given noise that its parent never had, so it grows into another picture."
        if fresh
        else "One field: whatever the resolution, the same place holds the same noise, so sketch and picture belong together."
    )
    return f'<div class="lab-maps">{"".join(maps)}</div><ul class="lab-sums">{"".join(sums)}</ul><p>{what}</p>'


def _numbers(values: Floats) -> str:
    """Return a matrix as a table of numbers."""
    rows = "".join("<tr>" + "".join(f"<td>{v:+.2f}</td>" for v in row) + "</tr>" for row in np.atleast_2d(values))
    return f'<table class="lab-matrix"><tbody>{rows}</tbody></table>'


def parts(found: Any, channel: int, noise: str) -> str:
    """Return one parent token taken apart: pictures of one channel, the sum, and one latent pixel's numbers through H4.

    Args:
        found: a fresco.lab.parts.Parts.
        channel: latent channel shown.
        noise: the run's noise, "field" or "fresh".
    """
    reach = float(max(np.abs(found.block[channel]).max(), np.abs(found.parent[channel]).max(), 1e-6))
    names = ("horizontal", "vertical", "diagonal")

    def shown(values: Floats, caption: str) -> str:
        return _figure(png(style.signed(values, reach)), caption)

    plus = '<span class="lab-op" aria-hidden="true">+</span>'
    maps = [
        shown(found.parent[channel], f"parent, sigma {found.sigma_from:.3f}"),
        '<span class="lab-op" aria-hidden="true">→</span>',
        shown(found.clean[channel], "its clean estimate, spread"), plus, shown(found.noise[channel], "its noise, spread"), plus,
        plus.join(shown(found.details[k, channel], f"{name} detail") for k, name in enumerate(names)),
        '<span class="lab-op" aria-hidden="true">=</span>',
        shown(found.block[channel], f"four children, sigma {found.sigma:.3f}"),
    ]  # fmt: skip
    # The first of four children has every detail with its own sign, halved.
    vector = 2 * np.array([[found.up[channel, 0, 0]], *found.details[:, channel, 0, 0, None]])
    four = found.block[channel, :2, :2].reshape(4, 1)
    h4 = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    rest = float(np.abs(found.clean + found.noise + found.details.sum(0) - found.block).max())
    origin = "read from the field at these coordinates" if noise == "field" else "drawn anew"
    frame, row, col = found.coord
    pixel = ", ".join(f"{v:+.2f}" for v in found.field[:, channel, 0, 0])
    return (
        f"<p>Token at row {row}, column {col} of level {found.level}"
        f"{f', frame {frame}' if frame else ''}, promoted after step {found.step + 1}. Its details are {origin}.</p>"
        f'<div class="lab-maps lab-sum">{"".join(maps)}</div>'
        f"<p>Orange is below zero, purple above, on one scale: full colour at {reach:.2f}. One square is one latent pixel.</p>"
        f"<p>The first latent pixel of channel {channel}, in numbers: H4/2 times (low-pass, horizontal, vertical, diagonal)"
        f" gives its four children, row by row. There the field's details are ({pixel}); the children hold sigma"
        f" {found.sigma:.3f} times {'these' if noise == 'field' else 'other numbers, drawn anew'}.</p>"
        f'<div class="lab-product">{_numbers(h4)}<span>×</span>{_numbers(vector)}<span>=</span>{_numbers(h4 @ vector)}'
        f"<span>the sampler's own four:</span>{_numbers(four)}</div>"
        f"<p>The parts add up to the children within {rest:.1e}.</p>"
    )
