"""Turn sampler steps into small NumPy events: preview, variance, cost, seconds. Source: DESIGN 1, 2."""

from __future__ import annotations

import json
import math
import platform
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fresco.config import REFERENCES, ConfigError, FrescoConfig
from fresco.cost import same_flops_steps
from fresco.denoiser import Conditioning, Denoiser, Model
from fresco.errors import FrescoError
from fresco.grid import TokenGrid
from fresco.metrics import SSIM_SIDE, psnr, ssim
from fresco.noise import NoiseField
from fresco.sampler import SamplerStep, sample
from fresco.selection import coarse_fraction
from fresco.tokens import Layout
from fresco.trace import StepEvent, Trace


def provenance(model: Model) -> dict[str, Any]:
    """Return what is needed to make a run again: weights, device, dtype, versions."""
    return {
        "weights": model.provenance, "device": str(model.device), "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__.split("+")[0], "python": platform.python_version(),
    }  # fmt: skip


def record(
    model: Model, prompt: str, config: FrescoConfig, *, preview_every: int = 1, cond: Conditioning | None = None
) -> Iterator[StepEvent]:
    """Run the sampler and yield an event per step; closing the generator stops the run.

    Args:
        model: a loaded model.
        prompt: the text; encoded here unless `cond` is given.
        config: the settings.
        preview_every: decode the clean estimate every k steps, and at the last; 0 only at the last.
        cond: the encoded prompt, where the caller has it.
    """
    for measured, preview, seconds in _steps(model, prompt, config, preview_every, cond):
        yield measured.event(preview, seconds)


def _steps(
    model: Model, prompt: str, config: FrescoConfig, preview_every: int, cond: Conditioning | None = None
) -> Iterator[tuple[Measured, Any, float]]:
    """Yield what each step left, its picture or None, and the seconds that took; nothing waits for the device."""
    denoiser = model.bind(config)
    cond = cond or model.encode(prompt)
    layout = Layout(denoiser.channels, denoiser.patch)
    field = FieldNoise(NoiseField(config.seed, denoiser.channels, denoiser.patch))
    steps = sample(denoiser, cond, config)
    for _ in range(config.nfe):
        start = Mark(model.device)
        step = next(steps)
        measured = Measured(step, config, denoiser, field, start)
        last = step.step == config.nfe - 1
        preview, seconds = None, 0.0
        if last or (preview_every and step.step % preview_every == 0):
            wait(model.device)  # so that the picture's seconds are its own; it comes to the host in any case
            begun = time.perf_counter()
            preview = model.decode(layout.unpack(step.x_next, step.grid_next)) if last else model.preview(_clean(step, layout))
            seconds = time.perf_counter() - begun
        yield measured, preview, seconds


def wait(device: torch.device) -> None:
    """Let the device finish, so that seconds are the work's and not the queue's."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Mark:
    """A point in the work of a device; setting one waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))
        self._time = time.perf_counter()

    def reach(self) -> None:
        """Wait until the device is there."""
        if self._event is not None:
            self._event.synchronize()

    def until(self, end: Mark) -> float:
        """Return the seconds from here to a later mark, on the device's own clock where it has one."""
        if self._event is None or end._event is None:
            return end._time - self._time
        end.reach()
        return float(self._event.elapsed_time(end._event)) / 1000


def _clean(step: SamplerStep, layout: Layout) -> torch.Tensor:
    """Return the clean estimate as a latent: at the sketch's own resolution while all tokens are of one size."""
    return layout.unpack(step.x0, step.grid) if step.grid.is_uniform else layout.canvas(step.x0, step.grid)


class FieldNoise:
    """The field's noise on the newest grid, on the device: after a promotion only that of new tokens is asked for."""

    def __init__(self, field: NoiseField) -> None:
        self._field = field
        self._grid: TokenGrid | None = None
        self._noise = torch.empty(0)

    def __call__(self, grid: TokenGrid, device: torch.device) -> torch.Tensor:
        """Return (N, D) float32."""
        if grid is self._grid:
            return self._noise
        new, parent = np.ones(len(grid), dtype=bool), np.zeros(len(grid), dtype=np.int64)
        if self._grid is not None:
            _, first = np.unique(grid.cells(), return_index=True)
            parent = self._grid.cells().ravel()[first]
            new = grid.level != self._grid.level[parent]
        some = TokenGrid(grid.shape, grid.levels, grid.level[new], grid.coord[new])
        drawn = torch.from_numpy(self._field.at(some)).to(device, torch.float32)
        if self._grid is None:
            self._noise = drawn
        else:
            self._noise = self._noise[torch.from_numpy(parent).to(device)]
            self._noise[torch.from_numpy(np.flatnonzero(new)).to(device)] = drawn
        self._grid = grid
        return self._noise


class Measured:
    """What a step leaves behind for its event; numbers are on their way from the device until the event is asked for."""

    def __init__(self, step: SamplerStep, config: FrescoConfig, denoiser: Denoiser, field: FieldNoise, start: Mark) -> None:
        """Measure a step.

        Args:
            step: the step.
            config: the settings of the run.
            denoiser: says the FLOPs.
            field: the noise of the run's field on the step's tokens.
            start: set before the step.
        """
        self._config, self._flops, self._start = config, denoiser.flops(len(step.grid)), start
        self._end = Mark(step.x.device)
        eps = (step.x - (1 - step.sigma) * step.x0) / max(step.sigma, 1e-12)
        gap = (eps - field(step.grid, eps.device)).square().mean(dim=1).sqrt()
        self._variance, self._gap = (value.float().to("cpu", non_blocking=True) for value in (step.variance, gap))
        self._copied = Mark(step.x.device)
        self._given: dict[str, Any] = {
            "step": step.step, "sigma": step.sigma, "sigma_next": step.sigma_next, "stage": step.stage, "check": step.check,
            "closing": step.closing, "grid": step.grid, "selected": step.selected,
        }  # fmt: skip
        self._drive = (step.tau, step.ratio)

    def event(self, preview: Any = None, preview_seconds: float = 0.0) -> StepEvent:
        """Return the step's event, as soon as the device has reached it; `preview` is (T, H, W, 3) uint8 or None.

        Raises:
            FrescoError: where the model returned numbers that are not finite.
        """
        self._copied.reach()
        variance, gap = self._variance.numpy(), self._gap.numpy()
        if not np.isfinite(gap).all():
            raise FrescoError(
                f"the model returned numbers that are not finite at step {self._given['step'] + 1}; try dtype float32, or "
                "other weights"
            )
        tau, ratio = self._drive if self._given["check"] else reading(self._config, self._given["grid"], variance)
        return StepEvent(
            **self._given, tau=tau, ratio=ratio, variance=variance, preview=preview, flops=self._flops,
            seconds=self._start.until(self._end), preview_seconds=preview_seconds, noise_gap=gap,
        )  # fmt: skip


def reading(config: FrescoConfig, grid: TokenGrid, variance: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return (tau, ratio) as this variance would drive them: one is given, the other follows, or is NaN."""
    open_ = variance[grid.expandable]
    if not len(open_) or not np.isfinite(open_).all():
        return config.tau or math.nan, math.nan
    high = config.selection == "variance_high"
    if config.tau is not None:
        return config.tau, coarse_fraction(grid, variance, config.tau, high)
    taken = math.floor((config.ratio or 0.0) * len(open_) + 1e-9)
    ordered = np.sort(open_)[::-1] if high else np.sort(open_)
    return (float(ordered[taken - 1]) if taken else math.nan), taken / len(open_)


class References:
    """Finished full-resolution runs, kept for the same model, prompt, seed, size and settings; safe across threads.

    Moving tau then costs only Fresco's own steps. Source: DESIGN 1.
    """

    def __init__(self, size: int = 12) -> None:
        self._size, self._lock = size, threading.Lock()
        self._runs: OrderedDict[str, list[StepEvent]] = OrderedDict()

    @staticmethod
    def _key(model: Model, prompt: str, config: FrescoConfig, preview_every: int) -> str:
        kind = [model.name, model.provenance, str(model.dtype), prompt, config.to_json(), preview_every]
        return json.dumps(kind, sort_keys=True)

    def find(self, model: Model, prompt: str, config: FrescoConfig, *, preview_every: int = 1) -> list[StepEvent] | None:
        """Return the events of that finished run with those previews, or None."""
        key = self._key(model, prompt, config, preview_every)
        with self._lock:
            found = self._runs.get(key)
            if found is not None:
                self._runs.move_to_end(key)
            return found

    def record(self, model: Model, prompt: str, config: FrescoConfig, *, preview_every: int = 1) -> Iterator[StepEvent]:
        """Yield the events of a run, from memory if it has finished before; an unfinished run is not kept."""
        found = self.find(model, prompt, config, preview_every=preview_every)
        if found is not None:
            yield from found
            return
        events = []
        for event in record(model, prompt, config, preview_every=preview_every):
            events.append(event)
            yield event
        with self._lock:
            self._runs[self._key(model, prompt, config, preview_every)] = events
            while len(self._runs) > self._size:
                self._runs.popitem(last=False)


def race(tracks: Mapping[int, Iterator[StepEvent]]) -> Iterator[tuple[int, StepEvent]]:
    """Interleave runs so that the one which has spent the fewest FLOPs goes next: what each has for the same cost.

    Closing the generator closes every run.
    """
    spent = dict.fromkeys(tracks, 0.0)
    try:
        while spent:
            track = min(spent, key=lambda t: spent[t])
            event = next(tracks[track], None)
            if event is None:
                del spent[track]
                continue
            spent[track] += event.flops
            yield track, event
    finally:
        for events in tracks.values():
            close = getattr(events, "close", None)
            if close:
                close()


@dataclass(frozen=True, eq=False)
class Seen:
    """One event of a comparison.

    Attributes:
        track: 0 is the run itself, 1 its full-resolution reference. config: that track's settings.
        event: the step.
        psnr, ssim: likeness of the step's picture to the reference's final one, once that is known.
    """

    track: int
    config: FrescoConfig
    event: StepEvent
    psnr: float | None = None
    ssim: float | None = None


def full_step(model: Model, config: FrescoConfig) -> float:
    """Return the FLOPs of one full-resolution step under these settings."""
    denoiser = model.bind(config)
    return denoiser.flops(math.prod(denoiser.token_shape(config.size)))


def compare(
    model: Model, prompt: str, config: FrescoConfig, reference: str, kept: References, *, preview_every: int = 1
) -> Iterator[Seen]:
    """Run Fresco and a full-resolution reference of the same seed, whichever has spent fewer FLOPs going next.

    "same FLOPs" can only start once the run's cost is known: the smallest step count that costs no less. When the
    reference has finished, the run's last event comes once more with its likeness to it.

    Args:
        model, prompt, config: the run.
        reference: a name in REFERENCES.
        kept: finished references; moving tau then costs only Fresco's own steps.
        preview_every: decode every k steps.
    """
    if reference not in REFERENCES:
        raise ConfigError(f"reference is {reference!r}, which is not known; choose one of {', '.join(REFERENCES)}")
    cond = model.encode(prompt)
    own = record(model, prompt, config, preview_every=preview_every, cond=cond)
    spent, last, final = 0.0, None, None
    steps = {"full at 50": 50, "same NFE": config.nfe}.get(reference)
    tracks: dict[int, Iterator[StepEvent]] = {0: own}
    full = config.as_full(steps) if steps else config
    if steps:
        done = kept.find(model, prompt, full, preview_every=preview_every)
        final = done[-1].preview if done else None
        tracks[1] = kept.record(model, prompt, full, preview_every=preview_every)
    for track, event in race(tracks):
        if track == 0:
            spent, last = spent + event.flops, event
            yield Seen(0, config, event, *likeness(event.preview, final))
        else:
            yield Seen(1, full, event)
            final = event.preview if event.step == full.nfe - 1 else final
    if reference == "same FLOPs":
        full = config.as_full(same_flops_steps(spent, full_step(model, config)))
        for event in kept.record(model, prompt, full, preview_every=preview_every):
            yield Seen(1, full, event)
            final = event.preview
    if last is not None and final is not None:
        yield Seen(0, config, last, *likeness(last.preview, final))


def likeness(picture: Any, reference: Any) -> tuple[float | None, float | None]:
    """Return (PSNR, SSIM) of two pictures of one size, or nothing: a sketch is smaller than the reference."""
    if picture is None or reference is None or picture.shape != reference.shape:
        return None, None
    return psnr(picture, reference), ssim(picture, reference) if min(picture.shape[1:3]) >= SSIM_SIDE else None


def run(model: Model, prompt: str, config: FrescoConfig, *, label: str = "", preview_every: int = 1) -> Trace:
    """Return the whole trace of one run."""
    steps = list(_steps(model, prompt, config, preview_every))  # no number is asked for before the last step
    events = [measured.event(preview, seconds) for measured, preview, seconds in steps]
    return Trace(prompt, config, model.name, label, provenance(model), events)
