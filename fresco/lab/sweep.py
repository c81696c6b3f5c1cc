"""Grids of settings, run one by one: each cell's picture, cost and likeness to the 50-step picture of the same seed."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fresco.config import ConfigError, FrescoConfig
from fresco.cost import REFERENCE_STEPS
from fresco.denoiser import Model
from fresco.record import References, full_step, likeness, provenance, record
from fresco.trace import StepEvent, Trace

if TYPE_CHECKING:
    from fresco.baselines import Baseline

CURVE_STEPS = (4, 6, 8, 12, 18, 30, 50)
_FIELDS = tuple(field.name for field in dataclasses.fields(FrescoConfig))


@dataclass(frozen=True, eq=False)
class Cell:
    """One place of a grid.

    Attributes:
        coords: the settings that make it this cell, by name of a FrescoConfig field.
        label: what it is called.
        config: all settings of its run.
        wrap: what makes the model to run of the model at hand, such as a cache around it; None runs the model itself.
    """

    coords: dict[str, Any]
    label: str
    config: FrescoConfig
    wrap: Callable[[Model], Model] | None = None

    def on(self, model: Model) -> Model:
        """Return the model that runs this cell."""
        return model if self.wrap is None else self.wrap(model)


@dataclass(frozen=True, eq=False)
class Result:
    """One finished run.

    Attributes:
        key: names the run: the same model, prompt and settings have the same key, whatever it is called.
        coords, label, config: as in `Cell`.
        model, weights: name and provenance of what ran it, a cache included.
        prompt, seed: of the run.
        flops: of the run. seconds: wall-clock of model and sampler, previews apart.
        full_steps: its cost in full-resolution steps. speedup: FLOPs of 50 full steps over its own.
        psnr, ssim: likeness to the 50-step full-resolution picture of the same seed, dB and -1 to 1; None where the
            pictures differ in size or are too small. psnr is infinite for that picture itself.
        picture: (T, H, W, 3) uint8.
        trace: the whole run; None where the result was read from a file.
    """

    key: str
    coords: dict[str, Any]
    label: str
    config: FrescoConfig
    model: str
    weights: str
    prompt: str
    seed: int
    flops: float
    seconds: float
    full_steps: float
    speedup: float
    psnr: float | None
    ssim: float | None
    picture: NDArray[np.uint8]
    trace: Trace | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything but picture and trace, JSON-able; an infinite psnr is the string "inf"."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("picture", "trace")]
        plain = {name: getattr(self, name) for name in names} | {"config": self.config.to_json()}
        if self.psnr == float("inf"):
            plain["psnr"] = "inf"  # JSON has no infinity
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any], picture: NDArray[np.uint8], trace: Trace | None = None) -> Result:
        """Return the result written by `to_json`, with its picture."""
        psnr = None if data["psnr"] is None else float(data["psnr"])
        config = FrescoConfig.from_json(data["config"])
        return cls(**{**data, "config": config, "psnr": psnr}, picture=picture, trace=trace)


@dataclass(frozen=True, eq=False)
class Step:
    """One model call on the way to a result: what a page shows meanwhile.

    Attributes:
        cell: the cell being worked on. reference: whether it is the 50-step reference that runs, not the cell itself.
        event: the step.
    """

    cell: Cell
    reference: bool
    event: StepEvent


def cells(base: FrescoConfig, axes: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Return the product of the axes over a base, the first axis slowest.

    Args:
        base: the settings that the axes do not name.
        axes: {name of a FrescoConfig field: values}. `tau` takes the place of `ratio` and the other way round.

    Raises:
        ConfigError: on an unknown name, an axis without values or with one twice, or settings that cannot be run.
    """
    for name, values in axes.items():
        if name not in _FIELDS:
            raise ConfigError(f"axis {name!r} is not a setting; choose one of {', '.join(_FIELDS)}")
        if isinstance(values, str) or not len(values):
            raise ConfigError(f"axis {name} is {values!r}; give it a list of at least one value")
        if len({json.dumps(value) for value in values}) < len(values):
            raise ConfigError(f"axis {name} has a value twice: {', '.join(map(str, values))}; name each once")
    if {"tau", "ratio"} <= set(axes):
        raise ConfigError("tau and ratio are two readings of one thing; give one of them as an axis")
    found = []
    for values in itertools.product(*axes.values()):
        coords = dict(zip(axes, values, strict=True))
        label = ", ".join(f"{name} {_said(value)}" for name, value in coords.items())
        found.append(Cell(coords, label or "base", base.replace(**coords)))
    return found


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def full_cells(base: FrescoConfig, steps: Sequence[int] = CURVE_STEPS) -> list[Cell]:
    """Return full-resolution sampling at several step counts, with the size, seed and guidance of `base`."""
    return [Cell({"nfe": n}, f"full, {n} steps", base.as_full(n)) for n in steps]


def reference_cell(base: FrescoConfig) -> Cell:
    """Return the run that others are likened to: 50 full-resolution steps of the same size, seed and guidance."""
    return full_cells(base, [REFERENCE_STEPS])[0]


def distinct(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells in order, each run only once whatever it is called."""
    found: list[Cell] = []
    for cell in cells:
        if not any(cell.config == other.config and cell.wrap == other.wrap for other in found):
            found.append(cell)
    return found


def baseline_cell(model: Model, baseline: Baseline, base: FrescoConfig, label: str | None = None) -> Cell:
    """Return a baseline of `fresco.baselines` as a cell, with the size, seed and guidance of `base`."""
    config = baseline.on(model).replace(size=base.size, seed=base.seed, guidance=base.guidance)
    return Cell({"baseline": baseline.name}, label or baseline.name, config, baseline.model if baseline.cache else None)


def key_of(model: Model, prompt: str, config: FrescoConfig) -> str:
    """Return the name of a run, 16 hexadecimal digits of a hash over weights, dtype, prompt and settings."""
    kind = [model.name, model.provenance, str(model.dtype), prompt, config.to_json()]
    return hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:16]


def follow(
    model: Model, prompt: str, cells: Sequence[Cell], *, kept: References, done: Mapping[str, Result] | None = None,
    preview_every: int = 1,
) -> Iterator[Step | Result]:  # fmt: skip
    """Run cells in order, yielding every step and, after its last step, the cell's result.

    Closing the generator stops within a step. The reference runs once, before the first cell that needs it, and is
    remembered in `kept`, as every full-resolution cell is.

    Args:
        model, prompt: of all runs.
        cells: what to run.
        kept: finished full-resolution runs of this process.
        done: finished results by key: yielded instead of run; the 50-step reference is taken from it, too.
        preview_every: decode every k steps; 0 only at the last.
    """
    done, cond = done or {}, None
    for cell in cells:
        own = cell.on(model)
        key = key_of(own, prompt, cell.config)
        if key in done:
            yield dataclasses.replace(done[key], coords=cell.coords, label=cell.label)
            continue
        cond = cond or model.encode(prompt)
        full = cell.config.as_full(REFERENCE_STEPS)
        ready, known = done.get(key_of(model, prompt, full)), kept.find(model, prompt, full, preview_every=preview_every)
        target = ready.picture if ready else known[-1].preview if known else None
        if target is None:
            for event in kept.record(model, prompt, full, preview_every=preview_every):
                yield Step(cell, True, event)
                target = event.preview
        events = []
        if cell.config.is_full and cell.wrap is None:
            steps = kept.record(model, prompt, cell.config, preview_every=preview_every)
        else:
            steps = record(own, prompt, cell.config, preview_every=preview_every, cond=cond)
        for event in steps:
            yield Step(cell, False, event)
            events.append(event)
        trace = Trace(prompt, cell.config, model.name, cell.label, provenance(own), events)
        picture, full_flops = trace.picture, full_step(model, cell.config)
        assert picture is not None  # the last step always decodes
        yield Result(
            key, cell.coords, cell.label, cell.config, model.name, own.provenance, prompt, cell.config.seed, trace.flops,
            trace.seconds, trace.flops / full_flops, REFERENCE_STEPS * full_flops / trace.flops,
            *likeness(picture, target), picture, trace,
        )  # fmt: skip


def sweep(
    model: Model, prompt: str, cells: Sequence[Cell], *, kept: References, done: Mapping[str, Result] | None = None,
    preview_every: int = 1,
) -> Iterator[Result]:  # fmt: skip
    """Run cells in order and yield each one's result; see `follow`, which also yields the steps between."""
    for found in follow(model, prompt, cells, kept=kept, done=done, preview_every=preview_every):
        if isinstance(found, Result):
            yield found


def full_curve(
    model: Model, prompt: str, base: FrescoConfig, steps: Sequence[int] = CURVE_STEPS, *, kept: References,
    done: Mapping[str, Result] | None = None, preview_every: int = 1,
) -> Iterator[Result]:  # fmt: skip
    """Yield full-resolution sampling at several step counts: the curve that a saving must be read against."""
    return sweep(model, prompt, full_cells(base, steps), kept=kept, done=done, preview_every=preview_every)
