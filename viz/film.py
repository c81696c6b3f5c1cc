"""A run as a film: the sketch, a layer over it and the full-resolution run at the same cost, side by side.

Animated WebP and GIF through pillow, MP4 through imageio's ffmpeg where that is installed. Nothing here runs a model:
`python -m viz.film run.npz --reference full.npz out.webp` reads traces alone. Of a video, the first frame is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from fresco.errors import FrescoError
from fresco.trace import StepEvent, Trace
from viz import style
from viz.bundle import full_step
from viz.figure import paid

Picture = NDArray[np.uint8]  # (H, W, 3)
OVERLAYS = ("variance", "levels", "promoted", "none")
Overlay = str | Sequence[str]  # one of OVERLAYS, or several side by side
ENDINGS = (".webp", ".gif", ".mp4")
OPACITY = 0.7  # of the variance colours over the grey sketch
STEP, TAIL, HOLD = 500, 100, 2500  # ms: a step, a step of the reference alone, the last picture
FPS = 10  # of an MP4; every duration is a whole number of its frames
_BARS = 32
_MARGIN, _GAP = 20, 12


class FilmError(FrescoError):
    """A film that cannot be made as asked."""


@dataclass(frozen=True)
class Shot:
    """One picture of the film.

    Attributes:
        step: index of the run's step. beside: index of the reference's step, -1 while it is inside its first.
        ms: how long it stays, milliseconds. tail: whether the run is over and the reference goes on alone.
    """

    step: int
    beside: int
    ms: int
    tail: bool = False


def plan(trace: Trace, reference: Trace | None = None) -> list[Shot]:
    """Return the film's shots: one for each step, beside it the last step the reference had finished for the same FLOPs.

    Once the run is over the reference goes on alone, quickly, to show what it spends beyond.
    """
    if not trace.events:
        raise FilmError("the trace has no step to film; record the run again")
    shots, spent = [], 0.0
    for k, event in enumerate(trace.events):
        spent += event.flops
        shots.append(Shot(k, paid(reference, spent) if reference else -1, STEP))
    after = range(shots[-1].beside + 1, len(reference.events)) if reference else range(0)
    shots += [Shot(len(trace.events) - 1, k, TAIL, tail=True) for k in after]
    shots[-1] = Shot(shots[-1].step, shots[-1].beside, HOLD, shots[-1].tail)
    return shots


def caption(trace: Trace, step: int, reference: Trace | None = None) -> str:
    """Return what the strip says of a step: number, stage, sigma, tokens, and the share of 50 full steps' FLOPs spent.

    A stopped run may not know what a full step costs; then the reference says it.
    """
    event = trace.events[step]
    spent = sum(e.flops for e in trace.events[: step + 1])
    tokens = f"{len(event.grid):,} of {math.prod(event.grid.shape):,} tokens"
    sigma = f"sigma {event.sigma:.2f} → {event.sigma_next:.2f}"
    number = f"step {step + 1} of {trace.config.nfe}"
    return "  ·  ".join((number, f"{event.stage} stage", sigma, tokens, _share(trace, reference, spent)))


def _share(trace: Trace, reference: Trace | None, spent: float) -> str:
    """Return the FLOPs spent as a share of 50 full steps; of the whole run where no full step is known."""
    step = full_step([t for t in (reference, trace) if t])
    part = spent / (50 * step) if step else spent / trace.flops
    return f"{100 * part:.1f} % of the FLOPs of {'50 full steps' if step else 'this run'}"


def variance_range(trace: Trace) -> tuple[float, float]:
    """Return (low, high) of the variance colours, one for the whole film: the coarse tokens' middle 98 %, and tau."""
    seen = np.concatenate([e.variance[e.grid.expandable] for e in trace.events])
    seen = seen[np.isfinite(seen) & (seen > 0)]
    taus = [e.tau for e in trace.events if math.isfinite(e.tau) and e.tau > 0 and e.grid.expandable.any()]
    if not len(seen):
        return 1e-5, 1e-1
    low, high = (float(v) for v in np.quantile(seen, [0.01, 0.99]))
    low, high = min([low, *taus]) / 1.5, max([high, *taus]) * 1.5
    return (low, high) if high / low >= 30 else (math.sqrt(low * high) / 6, math.sqrt(low * high) * 6)


# ----------------------------------------------------------------------------------------------------------- one picture


@lru_cache(maxsize=16)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans as matplotlib brings it: the same on every machine, with Greek and Cyrillic."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / name, size)


def _preview(trace: Trace, step: int) -> Picture | None:
    """Return the newest picture up to a step, (H, W, 3)."""
    return next((e.preview[0] for e in reversed(trace.events[: step + 1]) if e.preview is not None), None)


def _boxes(event: StepEvent, cell: int, keep: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """Return the pixel boxes (left, top, right, bottom), ends included, of the first frame's tokens that are kept."""
    _, rows, cols = event.grid.shape
    boxes = []
    for level, (frame, row, col), wanted in zip(event.grid.level, event.grid.coord, keep, strict=True):
        if wanted and frame == 0:
            side = 1 << int(event.grid.levels - level)
            bottom, right = min((row + 1) * side, rows) * cell - 1, min((col + 1) * side, cols) * cell - 1
            boxes.append((int(col) * side * cell, int(row) * side * cell, int(right), int(bottom)))
    return boxes


def pane(event: StepEvent, picture: Picture | None, overlay: str, cell: int, limits: tuple[float, float]) -> Image.Image:
    """Return a step's picture with a layer over it; a finest cell is `cell` pixels wide.

    Args:
        event: the step.
        picture: (H, W, 3) the clean estimate, or None before there is one.
        overlay: "variance" colours every token, "levels" tints and outlines the coarse ones, "promoted" hatches those that
            are promoted after the step, "none" leaves the picture.
        cell: pixels.
        limits: range of the variance colours.
    """
    _, rows, cols = event.grid.shape
    size = (cols * cell, rows * cell)
    base = Image.new("RGB", size, style.RAIL)
    if picture is not None:
        base = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    measured = np.isfinite(event.variance).any()
    if overlay == "variance" and measured:
        grey = np.asarray(base.convert("L"), dtype=np.float64)[..., None]
        heat = style.heat(event.variance[event.grid.cells()[0]], *limits).astype(np.float64)
        heat = heat.repeat(cell, axis=0).repeat(cell, axis=1)
        base = Image.fromarray(np.rint((1 - OPACITY) * grey + OPACITY * heat).astype(np.uint8))
        _outline(base, _boxes(event, cell, event.selected), style.PROMOTED)
    elif overlay == "levels":
        tint = Image.new("RGB", size, style.STAGES["low"])
        mask = Image.new("L", size, 0)
        coarse = _boxes(event, cell, event.grid.expandable)
        for box in coarse:
            ImageDraw.Draw(mask).rectangle(box, fill=110)
        base = Image.composite(tint, base, mask)
        pen = ImageDraw.Draw(base)
        for box in _boxes(event, cell, ~event.grid.expandable):
            pen.rectangle(box, outline=_between(style.OUTLINE, style.STAGES["low"], 0.5), width=1)
        _outline(base, coarse, style.OUTLINE, 1)
    elif overlay == "promoted":
        base = Image.blend(base, Image.new("RGB", size, style.CASING), 0.35)
        boxes = _boxes(event, cell, event.selected)
        marked, mask = base.copy(), Image.new("L", size, 0)
        pen = ImageDraw.Draw(marked)
        pen.rectangle((0, 0, *size), fill=style.PROMOTED)
        for x in range(-size[1], size[0], 7):
            pen.line([(x, size[1]), (x + size[1], 0)], fill=style.OUTLINE, width=2)
        for box in boxes:
            ImageDraw.Draw(mask).rectangle(box, fill=170)
        base = Image.composite(marked, base, mask)
        _outline(base, boxes, style.PROMOTED)
    return base


def _between(one: str, two: str, part: float) -> tuple[int, ...]:
    a, b = ImageColor.getrgb(one), ImageColor.getrgb(two)
    return tuple(round((1 - part) * x + part * y) for x, y in zip(a, b, strict=True))


def _outline(image: Image.Image, boxes: Sequence[tuple[int, int, int, int]], colour: str, width: int = 2) -> None:
    """Draw a line inside a dark one around each box, so that it shows on any picture."""
    pen = ImageDraw.Draw(image)
    for box in boxes:
        pen.rectangle(box, outline=style.CASING, width=1)
        narrow = min(box[2] - box[0], box[3] - box[1])
        if narrow > 5:
            inner = (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1)
            pen.rectangle(inner, outline=colour, width=width if narrow > 14 else 1)


class _Stage:
    """Where everything stands, the same in every picture of a film."""

    def __init__(self, trace: Trace, reference: Trace | None, overlays: Sequence[str], size: int) -> None:
        self.trace, self.reference, self.overlays = trace, reference, overlays
        _, rows, cols = trace.events[0].grid.shape
        self.cell = max(2, round(size / max(rows, cols)))
        self.pane = (cols * self.cell, rows * self.cell)
        self.limits = variance_range(trace)
        self.count = 1 + len(overlays) + (reference is not None)
        self.width = max(2 * _MARGIN + self.count * self.pane[0] + (self.count - 1) * _GAP, 760)
        self.left = (self.width - self.count * self.pane[0] - (self.count - 1) * _GAP) // 2
        self.top = 98
        self.bottom = self.top + self.pane[1]
        self.legend = self.bottom + 10
        self.bar = self.legend + (64 if "variance" in overlays else 12)
        self.words = self.bar + 32 + (40 if reference else 0)
        self.height = self.words + 48
        self.width += self.width % 2  # H.264 halves the colour planes
        self.height += self.height % 2
        self.step = full_step([t for t in (reference, trace) if t])
        longest = max(t.flops for t in (trace, reference) if t)
        self.domain = max(longest, trace.config.nfe * (self.step or 0.0))

    def draw(self, shot: Shot) -> Image.Image:
        image = Image.new("RGB", (self.width, self.height), style.PAPER)
        pen = ImageDraw.Draw(image)
        self._head(pen)
        event, picture = self.trace.events[shot.step], _preview(self.trace, shot.step)
        places = [self.left + k * (self.pane[0] + _GAP) for k in range(self.count)]
        image.paste(pane(event, picture, "none", self.cell, self.limits), (places[0], self.top))
        self._label(pen, places[0], "Fresco", "finished" if shot.step == self.trace.config.nfe - 1 else f"step {shot.step + 1}")
        for overlay, x in zip(self.overlays, places[1:], strict=False):
            image.paste(pane(event, picture, overlay, self.cell, self.limits), (x, self.top))
            self._label(pen, x, *self._layer(event, overlay))
            if overlay == "variance":
                self._histogram(pen, x, event)
        if self.reference:
            self._beside(image, pen, places[-1], shot.beside)
        self._bars(pen, shot)
        words = caption(self.trace, shot.step, self.reference)
        pen.text((self.width / 2, self.words + 17), words, fill=style.INK, font=_font(13), anchor="mm")
        return image

    @staticmethod
    def _spent(trace: Trace, step: int) -> float:
        return sum(e.flops for e in trace.events[: step + 1])

    def _head(self, pen: ImageDraw.ImageDraw) -> None:
        config, wide = self.trace.config, self.width - 2 * _MARGIN
        drive = f"tau {config.tau:g}" if config.tau is not None else f"ratio {config.ratio:g}"
        about = f"{self.trace.model}  ·  seed {config.seed}  ·  NFE {config.nfe}" + ("" if config.is_full else f"  ·  {drive}")
        prompt = " ".join(self.trace.prompt.split())
        pen.text((_MARGIN, 18), _fit(f"“{prompt}”", _font(18, True), wide), fill=style.INK, font=_font(18, True))
        pen.text((_MARGIN, 46), about, fill=style.MUTED, font=_font(12))

    def _label(self, pen: ImageDraw.ImageDraw, x: int, name: str, now: str) -> None:
        y, wide = self.top - 8, self.pane[0]
        right = pen.textlength(now, _font(12)) if now else 0.0
        name = _fit(name, _font(13, True), wide - right - 8)
        pen.text((x, y), name, fill=style.INK, font=_font(13, True), anchor="ls")
        pen.text((x + wide, y), now, fill=style.MUTED, font=_font(12), anchor="rs")

    @staticmethod
    def _layer(event: StepEvent, overlay: str) -> tuple[str, str]:
        chosen = int(event.selected.sum())
        if overlay == "levels":
            return "Token levels", f"{int(event.grid.expandable.sum()):,} coarse"
        if overlay == "promoted":
            return "Promoted now", f"{chosen:,} token{'' if chosen == 1 else 's'}"
        if not np.isfinite(event.variance).any():
            return "Token variance", "needs two estimates"
        words = f"the last {chosen:,} promoted" if event.closing else f"{chosen:,} promoted"
        return "Token variance", words if chosen else ""

    def _beside(self, image: Image.Image, pen: ImageDraw.ImageDraw, x: int, step: int) -> None:
        assert self.reference is not None
        name = self.reference.label or f"Full resolution, {self.reference.config.nfe} steps"
        # "Full resolution, 50 steps" and "step 9" are too long for one line over a small picture.
        now = f"step {step + 1} of {self.reference.config.nfe}" if step >= 0 else ""
        self._label(pen, x, name.rpartition(",")[0] if name.startswith("Full resolution,") else name, now)
        if step < 0:
            pen.rectangle((x, self.top, x + self.pane[0] - 1, self.bottom - 1), fill=style.RAIL)
            middle = (x + self.pane[0] / 2, self.top + self.pane[1] / 2)
            words = "at this cost still\ninside its first step"
            pen.text(middle, words, fill=style.MUTED, font=_font(13), anchor="mm", align="center")
            return
        picture = _preview(self.reference, step)
        event = self.reference.events[step]
        shown = pane(event, picture, "none", self.cell, self.limits)
        image.paste(shown.resize(self.pane) if shown.size != self.pane else shown, (x, self.top))

    def _histogram(self, pen: ImageDraw.ImageDraw, x: int, event: StepEvent) -> None:
        """Draw the coarse tokens' variances as bars in the colours of the layer, and tau as a line: the layer's key."""
        low, high = self.limits
        wide, base, tall = self.pane[0], self.legend + 38, 34
        bars = min(_BARS, wide // 4)
        edges = np.geomspace(low, high, bars + 1)
        values = np.clip(event.variance[event.grid.expandable & np.isfinite(event.variance)], low, high * (1 - 1e-6))
        counts, _ = np.histogram(values, edges)
        colours = style.heat(np.sqrt(edges[1:] * edges[:-1]), low, high)
        for k, (count, colour) in enumerate(zip(counts, colours, strict=True)):
            left, right = x + round(k * wide / bars), x + round((k + 1) * wide / bars) - 1
            pen.rectangle((left, base, right, base + 5), fill=tuple(colour))
            if count:
                top = base - max(2, round(tall * count / counts.max()))
                pen.rectangle((left, top, right - 1, base - 1), fill=tuple(colour))
        pen.text((x, base + 9), "settled", fill=style.MUTED, font=_font(11))
        pen.text((x + wide, base + 9), "moving", fill=style.MUTED, font=_font(11), anchor="ra")
        tau = event.tau if math.isfinite(event.tau) else self.trace.config.tau
        if tau:
            at = x + wide * math.log(min(high, max(low, tau)) / low) / math.log(high / low)
            pen.line([(at, base - tall - 2), (at, base + 7)], fill=style.PROMOTED, width=2)
            middle = min(max(at, x + 92), x + wide - 92)  # clear of the words at both ends
            pen.text((middle, base + 9), f"tau {tau:.2g}", fill=style.PROMOTED, font=_font(11, True), anchor="ma")

    def _bars(self, pen: ImageDraw.ImageDraw, shot: Shot) -> None:
        """Draw what both runs spend, step by step, on one scale of FLOPs; what is still to come is pale."""
        rows = [(self.trace, shot.step)] + ([(self.reference, shot.beside)] if self.reference else [])
        left, right = _MARGIN, self.width - _MARGIN
        wide = right - left
        for row, (trace, done) in enumerate(rows):
            y, spent = self.bar + 18 + 40 * row, 0.0
            part = self._spent(trace, done)
            name = "Fresco" if row == 0 else trace.label or f"Full resolution, {trace.config.nfe} steps"
            pen.text((left, y - 4), _fit(name, _font(12, True), wide / 2), fill=style.INK, font=_font(12, True), anchor="ls")
            scale = ""
            if not self.reference and self.step and not trace.config.is_full:
                scale = f"  ·  whole bar: {trace.config.nfe} full steps"
            pen.text((right, y - 4), f"{_flops(part)} spent{scale}", fill=style.MUTED, font=_font(12), anchor="rs")
            at = left + _font(12, True).getlength(_fit(name, _font(12, True), wide / 2)) + 18
            for stage in style.STAGES if row == 0 else ():
                pen.rectangle((at, y - 14, at + 9, y - 5), fill=style.STAGES[stage])
                pen.text((at + 14, y - 4), stage, fill=style.MUTED, font=_font(12), anchor="ls")
                at += 28 + _font(12).getlength(stage)
            pen.rectangle((left, y, right, y + 9), fill=style.RAIL)
            for k, event in enumerate(trace.events):
                a, spent = left + wide * spent / self.domain, spent + event.flops
                b = left + wide * spent / self.domain
                colour = style.STAGES[event.stage]
                fill = ImageColor.getrgb(colour) if k <= done else _between(colour, style.PAPER, 0.7)
                pen.rectangle((a, y, max(a, b - (1 if b - a > 4 else 0)), y + 9), fill=fill)


def _fit(text: str, font: ImageFont.FreeTypeFont, wide: float) -> str:
    """Return the text, cut with an ellipsis where it is wider than that."""
    if len(text) < 1000 and font.getlength(text) <= wide:
        return text
    keep = 0
    while keep < len(text) and font.getlength(text[: keep + 1].rstrip() + "…") <= wide:
        keep += 1
    return text[:keep].rstrip() + "…"


def _flops(n: float) -> str:
    for power, name in ((15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if n >= 10**power:
            return f"{n / 10**power:.3g} {name}FLOP"
    return f"{n:.0f} FLOP"


def _chosen(overlay: Overlay) -> tuple[str, ...]:
    """Return the layers to draw, each once, in the order asked for."""
    names = tuple(dict.fromkeys([overlay] if isinstance(overlay, str) else overlay))
    for name in names:
        if name not in OVERLAYS:
            raise FilmError(f"overlay is {name!r}, which is not known; choose one of {', '.join(OVERLAYS)}")
    return tuple(name for name in names if name != "none")


def _compared(trace: Trace, reference: Trace | None) -> None:
    if reference and (reference.prompt, reference.config.seed) != (trace.prompt, trace.config.seed):
        raise FilmError("the reference has another prompt or seed than the run, so there is nothing to compare; choose its own")


def still(
    trace: Trace, step: int, reference: Trace | None = None, *, overlay: Overlay = "variance", size: int = 288
) -> Picture:
    """Return the film's picture of one step, (H, W, 3) uint8.

    Args:
        trace, reference, overlay, size: as in `frames`.
        step: index of the run's step, from 0.

    Raises:
        FilmError: as `frames`, and where there is no such step.
    """
    _compared(trace, reference)
    if not 0 <= step < len(trace.events):
        raise FilmError(f"step {step + 1} is none of the run's {len(trace.events)}; choose one of them")
    return np.array(_Stage(trace, reference, _chosen(overlay), size).draw(plan(trace, reference)[step]))


def frames(
    trace: Trace, reference: Trace | None = None, *, overlay: Overlay = "variance", size: int = 288
) -> Iterator[Picture]:
    """Yield the film's pictures, (H, W, 3) uint8, H and W even, one for each shot of `plan`.

    Args:
        trace: the run; it may have been stopped.
        reference: a full-resolution run of the same seed, shown at the same cost; None leaves it out.
        overlay: the layer beside the sketch, one of OVERLAYS, or several.
        size: longer side of a picture in pixels; rounded, so that all cells are whole pixels.

    Raises:
        FilmError: on an unknown layer, a size out of range, or a trace without steps.
    """
    layers = _chosen(overlay)
    _compared(trace, reference)
    if not 64 <= size <= 1024:
        raise FilmError(f"size is {size}; it must be from 64 to 1024 pixels")
    shots, stage = plan(trace, reference), _Stage(trace, reference, layers, size)
    return (np.array(stage.draw(shot)) for shot in shots)


# ----------------------------------------------------------------------------------------------------------------- files


def write(
    path: str | Path, trace: Trace, reference: Trace | None = None, *, overlay: Overlay = "variance", size: int = 288
) -> Generator[tuple[int, int], None, None]:
    """Write the film as its ending says, and yield (pictures done, all) after each; closing it stops and leaves no file.

    Raises:
        FilmError: on an ending that is no film, or MP4 without ffmpeg.
    """
    target = Path(path)
    kind = target.suffix.lower()
    if kind not in ENDINGS:
        raise FilmError(f"{target.name} does not end in {', '.join(ENDINGS)}; the ending says which film to write")
    writer = _mp4() if kind == ".mp4" else None
    shots, pictures = plan(trace, reference), frames(trace, reference, overlay=overlay, size=size)
    part = target.with_name(f"{target.stem}.part{kind}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if writer is None:
            yield from _write_pillow(part, kind, pictures, shots)
        else:
            yield from _write_mp4(writer, part, pictures, shots)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _write_pillow(part: Path, kind: str, pictures: Iterator[Picture], shots: Sequence[Shot]) -> Iterator[tuple[int, int]]:
    drawn = []
    for k, picture in enumerate(pictures):
        drawn.append(Image.fromarray(picture))
        yield k + 1, len(shots)
    if kind == ".gif":
        palette = _palette(drawn)
        drawn = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in drawn]
    options: dict[str, Any] = {"quality": 82, "method": 3} if kind == ".webp" else {"optimize": False, "disposal": 1}
    drawn[0].save(part, save_all=True, append_images=drawn[1:], duration=[s.ms for s in shots], loop=0, **options)


def _palette(drawn: Sequence[Image.Image]) -> Image.Image:
    """Return one palette for all pictures, so that nothing flickers: our own colours exactly, the rest from the pictures."""
    plain = (style.PAPER, style.INK, style.MUTED, style.RAIL, style.CASING, style.PROMOTED, *style.STAGES.values())
    own: list[tuple[int, ...]] = [ImageColor.getrgb(c) for c in plain]
    own += [_between(c, style.PAPER, 0.7) for c in style.STAGES.values()]
    own += [_between(c, style.PAPER, part) for c in (style.INK, style.MUTED) for part in (0.35, 0.7)]  # edges of letters
    own += [tuple(int(v) for v in c) for c in style.heat(np.geomspace(1, 2, _BARS), 1, 2)]
    wide, high = drawn[0].size
    sample = Image.new("RGB", (wide, 4 * high))
    for k, part in enumerate((0.0, 0.15, 0.4, 1.0)):
        sample.paste(drawn[round(part * (len(drawn) - 1))], (0, k * high))
    rest = np.array(sample.quantize(256 - len(own), method=Image.Quantize.MEDIANCUT).getpalette()).reshape(-1, 3)
    # pillow looks colours up in boxes of four: a near double would now and then be taken for ours.
    far = np.abs(rest[:, None] - np.array(own)[None]).max(axis=2).min(axis=1) > 8
    palette = Image.new("P", (1, 1))
    palette.putpalette([int(v) for colour in (*own, *rest[far]) for v in colour])
    return palette


def _mp4() -> Any:
    """Return imageio with a working ffmpeg behind it."""
    try:
        importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
        return importlib.import_module("imageio.v2")
    except (ImportError, RuntimeError) as error:
        raise FilmError("an MP4 needs ffmpeg; get it with: pip install imageio[ffmpeg] (WebP and GIF need nothing)") from error


def _write_mp4(writer: Any, part: Path, pictures: Iterator[Picture], shots: Sequence[Shot]) -> Iterator[tuple[int, int]]:
    options = {"codec": "libx264", "pixelformat": "yuv420p", "quality": 8, "macro_block_size": 2}
    with contextlib.closing(writer.get_writer(part, fps=FPS, **options)) as film:
        for k, (picture, shot) in enumerate(zip(pictures, shots, strict=True)):
            for _ in range(shot.ms * FPS // 1000):
                film.append_data(picture)
            yield k + 1, len(shots)


def save(
    path: str | Path, trace: Trace, reference: Trace | None = None, *, overlay: Overlay = "variance", size: int = 288,
    progress: Callable[[int, int], None] | None = None,
) -> Path:  # fmt: skip
    """Write the film and return its path.

    Args:
        path: `.webp`, `.gif` or `.mp4`.
        trace, reference, overlay, size: as in `frames`.
        progress: called with (pictures done, all) after each; what it raises stops the film and leaves no file.
    """
    with contextlib.closing(write(path, trace, reference, overlay=overlay, size=size)) as going:
        for done, of in going:
            if progress:
                progress(done, of)
    return Path(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the film that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m viz.film", description="A run as an animated WebP, GIF or MP4.")
    parser.add_argument("trace", metavar="trace.npz")
    parser.add_argument("out", metavar="out.webp", help="its ending says which: .webp, .gif or .mp4")
    parser.add_argument("--reference", metavar="ref.npz", help="a full-resolution trace of the same seed")
    parser.add_argument("--overlay", nargs="+", choices=OVERLAYS, default=["variance"], help="one layer or several")
    parser.add_argument("--size", type=int, default=288, help="longer side of a picture in pixels (288)")
    args = parser.parse_args(argv)

    def progress(done: int, of: int) -> None:
        print(f"\r{done} of {of} pictures", end="", file=sys.stderr, flush=True)

    try:
        reference = Trace.load(args.reference) if args.reference else None
        path = save(args.out, Trace.load(args.trace), reference, overlay=args.overlay, size=args.size, progress=progress)
    except (FrescoError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"\n{path}: {path.stat().st_size / 1e6:.2f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
