"""Fresco inside a stock diffusers pipeline: `enable`, then call the pipeline as ever.

    fresco.enable(pipe, FrescoConfig.recommended(18))
    image = pipe("a fox", num_inference_steps=18, callback_on_step_end=...).images[0]
    fresco.last_trace(pipe)

No forward and no pipeline is copied. For the time of a call, hooks on the transformer hand it the gathered tokens and spread
its velocity over the cells they cover, and a scheduler gives each finished velocity to `fresco.sampler.sample`, whose next
state is what the next forward gets. The pipeline itself sees latents of full shape throughout. Its seeded initial latents
are the noise field. Source: DESIGN 1, 2; MODELS ("Stock pipelines can run Fresco unmodified").
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import threading
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray

from fresco import schedule
from fresco.backends import ModelError, caches
from fresco.backends.family import FAMILIES, Family, Seating, Shape, family_of, seat
from fresco.backends.flow import FlowSchedule
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning, Noise
from fresco.errors import FrescoError
from fresco.grid import TokenGrid
from fresco.noise import Floats, FreshNoise, NoiseField, hashed_normal
from fresco.record import FieldNoise, Mark, Measured, provenance
from fresco.sampler import SamplerStep, sample
from fresco.tokens import Layout
from fresco.trace import Trace


def transformers(pipe: Any) -> list[Any]:
    """Return the transformers of a pipeline; Wan 2.2 has one for each half of the noise levels."""
    found = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
    return [part for part in found if isinstance(part, torch.nn.Module)]


def _able() -> str:
    return "a stock text-to-image or text-to-video pipeline with one of " + ", ".join(FAMILIES)


class PluginError(FrescoError):
    """A pipeline or call that Fresco cannot take part in; the message says what to change."""


class LatentNoise(NoiseField):
    """The noise field whose finest pixels are given: a pipeline's initial latents.

    Coarse noise and details are its Haar low-pass and high-pass, as everywhere. Pixels beyond the canvas, which border
    tokens of odd grids average too, come from a hashed field; its seed is a checksum of the channel, so that a picture has
    the same ones alone and among others.
    Source: METHOD 2.1.

    Args:
        latents: (C, frames, rows*p, cols*p) unit noise.
        patch: latent pixels per token side p.
        levels: number of doublings.
    """

    def __init__(self, latents: NDArray[np.floating[Any]], patch: int, levels: int) -> None:
        seeds = np.array([zlib.crc32(np.ascontiguousarray(channel).tobytes()) for channel in latents], dtype=np.uint64)
        super().__init__(zlib.crc32(seeds.tobytes()), len(latents), patch)
        _, frames, height, width = latents.shape
        edge = patch << levels
        rows, cols = (-(-side // edge) * edge for side in (height, width))
        self._pixels = np.empty((frames, rows, cols, len(latents)))
        if (rows, cols) != (height, width):
            frame, row, col = np.ogrid[:frames, :rows, :cols]
            for channel, seed in enumerate(seeds.tolist()):
                self._pixels[..., channel] = hashed_normal(seed, frame, row, col, 0)
        self._pixels[:, :height, :width] = np.moveaxis(latents, 0, -1)

    def pixels(self, frame: Any, row: Any, col: Any, halvings: int = 0) -> Floats:
        """Return noise (..., C) at latent pixels `halvings` levels above the finest; coordinates broadcast."""
        return super().pixels(frame, row, col, halvings) if halvings else self._pixels[frame, row, col]


class _FreshAfter(FreshNoise):
    """Noise that starts from the given field and is drawn anew later."""

    def __init__(self, field: NoiseField) -> None:
        super().__init__(field.seed, field.channels, field.patch)
        self._field = field


def sources(grid: TokenGrid, patch: int) -> NDArray[np.int64]:
    """Return (cells, p, p): for each latent pixel of the finest cells, row-major, token * p * p + pixel that covers it."""
    cells = grid.cells()
    _, row, col = np.indices(cells.shape)
    shift = (grid.levels - grid.level)[cells]  # halvings of the covering token
    span = np.arange(patch)

    def inside(at: Any, axis: int) -> Any:
        first = (grid.coord[:, axis][cells] * patch) << shift
        return (at[..., None] * patch + span - first[..., None]) >> shift[..., None]

    pixel = inside(row, 1)[..., :, None] * patch + inside(col, 2)[..., None, :]
    found: NDArray[np.int64] = (cells[..., None, None] * patch**2 + pixel).reshape(-1, patch, patch)
    return found


class _Handed:
    """A denoiser whose velocities come from outside: the pipeline's own forwards, guidance included.

    All pictures of a call are one state: they share the tokens, and their channels stand side by side.
    """

    def __init__(self, family: Family, shape: Shape, spacing: FlowSchedule, text_tokens: int, rows: int, pictures: int) -> None:
        self.channels, self.patch, self.device = pictures * family.channels, family.patch, torch.device("cpu")
        self.shape, self.spacing, self.rows = shape, spacing, rows
        self.forward_flops = family.flops(text_tokens)
        self.calls = 1
        self.steps: list[float] | None = None
        self.velocity: torch.Tensor | None = None
        self.seen: torch.Tensor | None = None

    def token_shape(self, size: tuple[int, int, int] | None) -> Shape:
        """Return the token grid of the call."""
        return self.shape

    def sigmas(self, n: int, tokens: int, start: float = 1.0, end: float = 0.0) -> list[float]:
        """Return the sigmas the call itself set, where a run at full resolution asks for them; else the model's."""
        if self.steps is not None and (start, end) == (1.0, 0.0):
            return self.steps
        return self.spacing.sigmas(n, tokens, start, end)

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of one step: every row of the batch, and every forward that guidance takes."""
        return self.calls * self.rows * self.forward_flops(tokens)

    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        """Return the velocity of the forwards that have just run on this state."""
        assert self.velocity is not None
        assert self.velocity.shape == x.shape
        velocity, self.velocity = self.velocity, None
        return velocity

    def attention(self, grid: TokenGrid) -> torch.Tensor:
        """Return (N,) float32: the attention each token received in this step's conditional forward."""
        assert self.seen is not None
        return self.seen


class _Scheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # diffusers is untyped
    """The pipeline's scheduler for one call: velocities go to the sampler, which decides what comes next."""

    run: _Run

    @functools.wraps(FlowMatchEulerDiscreteScheduler.set_timesteps)  # the pipeline looks at the signature
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Set the timesteps as ever, and note them."""
        super().set_timesteps(*args, **kwargs)
        self.run.begin(self)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        *args: Any,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Return the next latents, of full shape."""
        stock = super().step(model_output, timestep, sample, *args, return_dict=False, **kwargs)[0]
        found = self.run.advance(model_output, stock)
        return SimpleNamespace(prev_sample=found) if return_dict else (found,)


class _Run:
    """One call of a pipeline: hooks and scheduler while it lasts, the sampler in between."""

    def __init__(self, pipe: Any, config: FrescoConfig, prompt: str, cached: str = "reset", called_back: bool = True) -> None:
        self.pipe, self.config, self.prompt = pipe, config, prompt
        self.cached, self.called_back = cached, called_back
        self.measured: list[Measured] = []
        self.thread = threading.get_ident()
        self.denoiser: _Handed | None = None
        self.families = {part: family_of(part) for part in transformers(pipe)}
        self.family = next(iter(self.families.values()))

    # What is installed, and taken away whatever happens.

    def __enter__(self) -> _Run:
        for transformer in self.families:
            caches.check(transformer, mixed=not self.config.is_full)
            caches.reset(transformer)  # of a call that was interrupted, perhaps
        self.stock = self.pipe.scheduler
        ours = copy.copy(self.stock)  # shifts set by hand are attributes, not config
        ours.__class__, ours.run = _Scheduler, self
        self.undo: list[Callable[[], None]] = []
        for transformer, family in self.families.items():
            self.undo += [
                family.install(),
                transformer.register_forward_pre_hook(self.before, with_kwargs=True).remove,
                transformer.register_forward_hook(self.after, with_kwargs=True).remove,
            ]
        self.pipe.scheduler = ours
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.scheduler = self.stock
        seat(None)
        for undo in self.undo:
            undo()
        if self.denoiser is not None:
            self.settle()
            _RUNS.pop(self.pipe, None)

    # The call begins.

    def begin(self, scheduler: _Scheduler) -> None:
        """Take the number of steps of the call."""
        self.scheduler, n = scheduler, len(scheduler.timesteps)
        if self.config.head:
            raise PluginError(f"a head of {self.config.head} runs in fresco.run, not in a pipeline; use head 0 here")
        if n != self.config.nfe:
            if self.config.stages is not None and not self.config.is_full:
                raise PluginError(
                    f"the call has {n} steps, but the configuration's stages {self.config.stages} have {self.config.nfe}; "
                    f"call with num_inference_steps={self.config.nfe}, or leave stages to their default"
                )
            self.config = self.config.replace(nfe=n)
        self.given = scheduler.sigmas.tolist()

    def start(self, latents: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start the sampler from the latents of the first forward, of full shape."""
        family, config = self.family, self.config
        shape = family.shape(args, kwargs)
        stride, edge = family.pixels(self.pipe)
        size = (1 + (shape[0] - 1) * stride, shape[1] * edge, shape[2] * edge)
        if config.size not in (None, size):
            raise PluginError(
                f"the configuration's size is {config.size}, but the call makes {size}; leave the size to the call's height "
                "and width"
            )
        self.config = config = config.replace(size=size)
        pictures = len(latents) // family.rows_per_picture(self.pipe)
        self.record = config.watches_attention
        if self.record and (pictures > 1 or not family.records):
            raise PluginError(
                "selection 'attention' is for one picture per call" + ("" if family.records else " of a FLUX.1 pipeline")
                + "; use another rule" + (", or call once per picture" if family.records else "")
            )  # fmt: skip
        spacing = FlowSchedule({}) if config.is_full else family.schedule(self.stock, config.nfe)  # full: the call's own
        denoiser = _Handed(family, shape, spacing, family.text_tokens(kwargs), len(latents), pictures)
        denoiser.device = latents.device
        rows = math.prod(shape)
        if config.is_full:
            denoiser.steps = [min(s, 1.0) for s in self.given]
        else:
            want = denoiser.sigmas(config.nfe, rows)
            if not np.allclose(want, self.given, atol=1e-5) or self.stock.config.stochastic_sampling:
                raise PluginError(
                    "this call sets sigmas of its own, or a stochastic scheduler; Fresco spaces each stage's steps itself, so "
                    "leave both to their defaults, or use FrescoConfig.full"
                )
        self.denoiser, self.layout, self.pictures = denoiser, Layout(denoiser.channels, denoiser.patch), pictures
        fine = TokenGrid.uniform(shape, config.levels, config.levels)
        self.grid = fine if config.is_full else TokenGrid.uniform(shape, config.levels, 0)
        self.sigma = schedule.plan(config, denoiser.sigmas, len(self.grid), len(fine))[0][0]
        self.canvas = latents[:pictures]
        pixels = self.layout.unpack(self.fold(family.tokens(self.canvas)), fine).float().cpu().numpy()
        field = LatentNoise(pixels, denoiser.patch, config.levels)
        coherent = config.noise == "field" and config.transition != "restart"
        noise: Noise = field if coherent else _FreshAfter(field)
        self.x = torch.as_tensor(field.at(self.grid)).to(latents.device, torch.float32)
        self.noise_of = FieldNoise(field)
        self.steps = sample(denoiser, Conditioning(self.prompt), config, noise=noise)
        self.changing = True  # whether the pipeline itself changes latents between steps: the first time shows it
        self.index, self.calls, self.text_tokens = 0, 0, family.text_tokens(kwargs)
        self.clock = Mark(latents.device)
        self.place()
        origin = str(getattr(self.pipe.config, "_name_or_path", None) or type(self.pipe).__name__)
        about = SimpleNamespace(
            provenance=Path(origin).name if Path(origin).is_dir() else origin,
            device=latents.device, dtype=self.pipe.transformer.dtype,
        )  # fmt: skip
        self.trace = Trace(self.prompt, config, type(self.pipe).__name__, "enabled pipeline", provenance(about))  # type: ignore[arg-type]
        _TRACES[self.pipe] = self.trace
        _RUNS[self.pipe] = self

    def fold(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (N, B*D) float32 from (B, N, D): the pictures' channels side by side."""
        return tokens.float().transpose(0, 1).reshape(tokens.shape[1], -1)

    def unfold(self, state: torch.Tensor) -> torch.Tensor:
        """Return (B, N, D) from (N, B*D)."""
        return state.reshape(len(state), self.pictures, -1).transpose(0, 1)

    def place(self) -> None:
        """Note which token covers each cell, and one cell of each token."""
        cells = self.grid.cells().ravel()
        _, first = np.unique(cells, return_index=True)
        self.cells, self.first = (torch.from_numpy(at).to(self.x.device) for at in (cells, first))
        pixels = torch.from_numpy(sources(self.grid, self.family.patch)).to(self.x.device)  # (cells, p, p)
        square = self.family.patch**2
        each = (pixels // square * square * self.family.channels + pixels % square)[:, None]  # of a token's first channel
        self.sources = (each + square * torch.arange(self.family.channels, device=self.x.device)[:, None, None]).flatten()

    # Around a forward.

    def before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Give the transformer the tokens in place of the latents."""
        if threading.get_ident() != self.thread:
            return None  # somebody else's forward on a shared transformer
        family = self.family = self.families[module]
        args, kwargs = (), dict(zip(_forward_names(type(module).forward), args, strict=False)) | kwargs
        latents = family.incoming(args, kwargs)
        if self.denoiser is None:
            self.start(latents, args, kwargs)
        elif self.calls == 0 and latents is not self.canvas and (self.called_back or self.changing):
            own = latents[: self.pictures]
            self.changing = not torch.equal(own, self.canvas.to(own))  # waits for the device
            if self.changing:
                self.adopt(own)
        self.calls += 1
        if self.config.is_full:
            return None  # nothing to change: the stock forward
        # The conditional forward comes first; only it is recorded.
        self.seating = Seating(self.grid, family.frame(self.config.frame), self.sigma, self.record and self.calls == 1)
        tokens = self.unfold(self.x).to(latents.dtype).repeat(len(latents) // self.pictures, 1, 1)
        found = family.arguments(args, kwargs, tokens, self.seating)
        self.undo.append(family.install())  # again, where a call on the same transformer has ended meanwhile
        seat(self.seating)
        return found

    def after(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Spread each token's velocity over the cells it covers."""
        if threading.get_ident() != self.thread or self.config.is_full:
            return None
        seat(None)
        assert self.denoiser is not None
        if self.seating.record:
            self.denoiser.seen = self.family.attention(self.seating)
        return self.family.spread(output, self.cells, self.grid.shape)

    def adopt(self, latents: torch.Tensor) -> None:
        """Take over latents that a callback has changed."""
        tokens = self.family.tokens(latents)
        if len(self.grid) == len(self.cells):
            self.x.copy_(self.fold(tokens[:, self.first]))  # in place: the sampler goes on from this tensor
            return
        fine = TokenGrid.uniform(self.grid.shape, self.grid.levels, self.grid.levels)
        change = self.fold(tokens) - self.fold(self.family.tokens(self.canvas))
        self.x += self.layout.gather(self.layout.unpack(change, fine), self.grid)

    # After the step's last forward.

    def advance(self, velocity: torch.Tensor, stock: torch.Tensor) -> torch.Tensor:
        """Run the sampler's step on the velocity, guidance included, and return the next latents, both of full shape.

        Args:
            velocity: what the pipeline made of its forwards.
            stock: the next latents by the stock scheduler, which a run at full resolution takes bit for bit.
        """
        denoiser, family = self.denoiser, self.family
        assert denoiser is not None
        denoiser.velocity, denoiser.calls = self.fold(family.tokens(velocity)[:, self.first]), self.calls
        step = next(self.steps)
        assert step.sigma == self.sigma  # the forward ran on the very state that the sampler went on from
        assert step.x is self.x if self.index else torch.equal(step.x, self.x)
        if self.config.is_full:
            step.x_next.copy_(self.fold(family.tokens(stock)))
        self.measured.append(Measured(step, self.config, denoiser, self.noise_of, self.clock))
        if step.grid_next is not step.grid:
            self.grid = step.grid_next
            self.place()
            for transformer in self.families:
                if caches.enabled(transformer):
                    self.move_cache(transformer, step)
        self.canvas = (
            stock if self.config.is_full else family.latents(self.spread(step.x_next), self.grid.shape).to(stock.dtype)
        )
        self.x, self.sigma, self.calls, self.index = step.x_next, step.sigma_next, 0, self.index + 1
        if not self.config.is_full and self.index < len(self.scheduler.timesteps):
            self.scheduler.timesteps[self.index] = self.sigma * 1000  # what a callback is told
            self.scheduler.sigmas[self.index] = self.sigma  # and a cache (SeaCache, of Wan)
        self.clock = Mark(velocity.device)
        if velocity.device.type == "cpu":
            self.settle()
        return self.canvas

    def move_cache(self, transformer: Any, step: SamplerStep) -> None:
        """Make a feature cache fit the new tokens, as it was asked for and where that can be done."""
        stays = self.config.transition == "carry"  # the noise level, and with it what features mean
        moved = (transformer, step.grid, step.grid_next, self.text_tokens, self.family.text_first)
        if not (self.cached == "remap" and stays and caches.remap(*moved)):
            caches.reset(transformer, promoted=True)

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Return all cells' tokens, (B, cells, D), of the newest grid's: a parent's latent pixels are replicated."""
        dense = self.unfold(x).reshape(self.pictures, -1).index_select(1, self.sources)
        return dense.reshape(self.pictures, len(self.cells), -1)

    def settle(self) -> None:
        """Put the steps so far into the trace; on a GPU that waits for them, so it is not done at every step."""
        measured, self.measured = self.measured, []
        self.trace.events += [step.event() for step in measured]

    def finish(self, output: Any) -> None:
        """Put the finished picture into the trace, where the call made one."""
        if self.denoiser is None or not self.index:
            return
        self.settle()
        made = output[0] if isinstance(output, tuple) else getattr(output, "images", None)
        made = getattr(output, "frames", None) if made is None else made
        if made is None or isinstance(made, torch.Tensor) or len(self.trace.events) < self.config.nfe:
            return
        first = made[0]
        picture = np.stack([np.asarray(frame) for frame in first]) if isinstance(first, list) else np.asarray(first)
        if picture.dtype != np.uint8:
            picture = (picture * 255).round().astype(np.uint8)
        picture = picture if picture.ndim == 4 else picture[None]  # a video has its frames already
        self.trace.events[-1] = dataclasses.replace(self.trace.events[-1], preview=picture)


@functools.cache
def _forward_names(forward: Any) -> list[str]:
    """Return the names of a forward's arguments, in order: families see every argument by its name."""
    return list(inspect.signature(forward).parameters)[1:]


_CONFIGS: weakref.WeakKeyDictionary[Any, FrescoConfig] = weakref.WeakKeyDictionary()
_CACHED: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_TRACES: weakref.WeakKeyDictionary[Any, Trace] = weakref.WeakKeyDictionary()
_RUNS: weakref.WeakKeyDictionary[Any, _Run] = weakref.WeakKeyDictionary()  # those that are going on


def call(pipe: Any, stock: Callable[..., Any], config: FrescoConfig, cached: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what a pipeline's stock `__call__` returns for these arguments, with Fresco in it; see `enable`."""
    given = inspect.signature(stock).bind_partial(pipe, *args, **kwargs).arguments
    prompt = given.get("prompt")
    text = prompt if isinstance(prompt, str) else " | ".join(prompt or [])
    called_back = any(value is not None for name, value in given.items() if name.startswith("callback_on"))
    with _Run(pipe, config, text, cached, called_back) as run:
        output = stock(pipe, *args, **kwargs)
        run.finish(output)
    return output


@functools.cache
def _subclass(cls: Any) -> Any:
    """Return the pipeline's class with a call that runs Fresco; Python looks `__call__` up on the class only."""

    @functools.wraps(cls.__call__)
    def enabled(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self, cls.__call__, _CONFIGS[self], _CACHED[self], args, kwargs)

    members = {"__call__": enabled, "__module__": cls.__module__, "__doc__": cls.__doc__, "_fresco_stock": cls}
    return type(cls.__name__, (cls,), members)


class Enabled:
    """A pipeline that runs Fresco; as a context manager it disables at the end."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def __enter__(self) -> Any:
        return self.pipe

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        disable(self.pipe)


def check(pipe: Any, config: FrescoConfig, cached: str = "reset") -> None:
    """Make sure that a pipeline can run these settings; see `enable`.

    Raises:
        PluginError: where it cannot; the message says what to change.
    """
    if cached not in caches.CACHES:
        raise PluginError(f"cached is {cached!r}; it must be one of {', '.join(caches.CACHES)}")
    parts = transformers(pipe)
    if not parts:
        raise PluginError(f"{type(pipe).__name__} is not supported: it has no transformer; enable {_able()}")
    try:
        families = [family_of(part) for part in parts]
    except ModelError as error:
        raise PluginError(f"{type(pipe).__name__} is not supported: {error}") from None
    names = families[0].pipelines
    if not any(cls.__name__ in names for cls in type(pipe).__mro__):
        raise PluginError(f"{type(pipe).__name__} is not supported; with this transformer, enable {' or '.join(names)}")
    if not config.is_full:
        for family in families:
            family.frame(config.frame)
    if type(pipe.scheduler) is not FlowMatchEulerDiscreteScheduler:
        flow = pipe.scheduler.config.get("flow_shift")  # Wan's checkpoints come with UniPC
        do = f": set pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift={flow:g})" if flow else ""
        raise PluginError(
            f"the pipeline's scheduler is {type(pipe.scheduler).__name__}; Fresco needs FlowMatchEulerDiscreteScheduler{do}"
        )
    if config.guidance is not None:
        raise PluginError("guidance belongs to the call here: leave it out of the configuration and pass guidance_scale")
    if not config.is_full:
        families[0].schedule(pipe.scheduler, config.nfe)  # names the settings that cannot be used


def enable(pipe: Any, config: FrescoConfig | None = None, *, cached: str = "reset") -> Enabled:
    """Make a stock pipeline run Fresco through its ordinary call, until `disable`; or `with fresco.enable(pipe): ...`.

    The call decides the prompt, size, guidance, steps and seed: `num_inference_steps` is the NFE, the generator's latents
    are the noise field. Several pictures of one call share their tokens, chosen by the mean variance. Callbacks, true
    classifier-free guidance and offloading work as ever; with `FrescoConfig.full` the call is the stock one, bit for bit.

    Args:
        pipe: a stock pipeline of one of the families in `fresco.backends.family.FAMILIES`.
        config: the settings; None is `FrescoConfig.recommended()`. Enabling again replaces them.
        cached: what a feature cache of diffusers (`pipe.transformer.enable_cache`) does when tokens are promoted: "reset"
            starts it anew, "remap" hands each child its parent's features where the noise level stays (`carry`).

    Raises:
        PluginError: on another pipeline, transformer or scheduler, or settings that the call decides.
    """
    config = config or FrescoConfig.recommended()
    check(pipe, config, cached)
    if pipe not in _CONFIGS:
        cls: Any = type(pipe)
        pipe.__class__ = _subclass(cls)
    _CONFIGS[pipe], _CACHED[pipe] = config, cached
    return Enabled(pipe)


def disable(pipe: Any) -> None:
    """Make the pipeline stock again; the last trace stays. Nothing happens where it is stock already."""
    if _CONFIGS.pop(pipe, None) is not None:
        pipe.__class__ = type(pipe)._fresco_stock


def last_trace(pipe: Any) -> Trace:
    """Return the trace of the pipeline's last call; an interrupted call has fewer events than its NFE.

    Raises:
        PluginError: where no call has run Fresco yet.
    """
    if pipe not in _TRACES:
        raise PluginError("this pipeline has made no Fresco run yet; enable it and call it")
    if pipe in _RUNS:
        _RUNS[pipe].settle()
    return _TRACES[pipe]
