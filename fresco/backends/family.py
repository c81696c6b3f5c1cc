"""How a stock transformer class takes N tokens of mixed resolution: the part of a model that both ways in share.

`fresco.backends.stock.StockDenoiser` calls a transformer itself; `fresco.plugin` stands inside somebody else's pipeline and
changes what its forwards get. Both ask a `Family` for the same four things: tokens from latents and back, the arguments that
carry N tokens, where those tokens are, and the velocity in what comes out. No forward is copied: packed models take the
gathered tokens and their ids; grid models take a *ribbon*, the N tokens as a 1 x N strip of patches, which stock patch
embedding and unpatchify serve unchanged, and torch-native hooks give their position tables. Source: MODELS.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from types import MethodType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from fresco.backends import ModelError
from fresco.backends.flow import FlowSchedule
from fresco.grid import TokenGrid, coarse_shape

FAMILIES: dict[str, str] = {
    "FluxTransformer2DModel": "fresco.backends.flux:FluxFamily",
    "Flux2Transformer2DModel": "fresco.backends.flux2:Flux2Family",
    "SD3Transformer2DModel": "fresco.backends.sd3:SD3Family",
    "QwenImageTransformer2DModel": "fresco.backends.qwen_image:QwenImageFamily",
    "ZImageTransformer2DModel": "fresco.backends.z_image:ZImageFamily",
    "HunyuanVideoTransformer3DModel": "fresco.backends.hunyuan_video:HunyuanVideoFamily",
    "WanTransformer3DModel": "fresco.backends.wan:WanFamily",
    "LTXVideoTransformer3DModel": "fresco.backends.ltx:LTXFamily",
}
"""Transformer class -> module and class of its family."""

Shape = tuple[int, int, int]


@dataclass(eq=False)
class Seating:
    """Where the tokens of one forward are.

    Attributes:
        grid: the tokens.
        frame: position frame of a mixed grid; "auto" is the family's first.
        sigma: their noise level.
        record: whether to record the attention each token receives (families that can).
        extra: what a family keeps from before the forward until after it.
    """

    grid: TokenGrid
    frame: str
    sigma: float
    record: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def ids(self, device: torch.device) -> torch.Tensor:
        """Return (N, 3) float32 positions (frame, row, col). They stay float32: bfloat16 loses .5 above 128."""
        return kept(self.grid, ("ids", self.frame, device), lambda: torch.from_numpy(self.grid.centers(self.frame)).to(device))

    def extent(self) -> Shape:
        """Return (frames, rows, cols) of the dense grid whose cells are the unit of `ids`: tables are cut to it."""
        grid = self.grid
        level = int(grid.level[0]) if grid.is_uniform else grid.levels if self.frame == "fine" else 0
        return coarse_shape(grid.shape, grid.levels - level)


_KEPT: WeakKeyDictionary[TokenGrid, dict[Any, Any]] = WeakKeyDictionary()
K = TypeVar("K")


def kept(grid: TokenGrid, key: Any, make: Callable[[], K]) -> K:
    """Return what belongs to a grid, made once: sending it to the device at every step would hold the host up."""
    found: dict[Any, K] = _KEPT.setdefault(grid, {})
    if key not in found:
        found[key] = make()
    return found[key]


_SEATED: ContextVar[Seating | None] = ContextVar("fresco_seating", default=None)


def seating() -> Seating | None:
    """Return where the tokens of the forward that runs in this thread are; None is a stock forward."""
    return _SEATED.get()


def seat(where: Seating | None) -> None:
    """Say where the tokens of the next forwards in this thread are; None makes them stock forwards again."""
    _SEATED.set(where)


@contextmanager
def seated(where: Seating) -> Iterator[None]:
    """Seat the tokens for the forwards inside."""
    token = _SEATED.set(where)
    try:
        yield
    finally:
        _SEATED.reset(token)


class Family(ABC):
    """One transformer class, bound to one transformer.

    Attributes:
        transformer: the stock transformer.
        patch: latent pixels per token side p.
        channels: latent channels C; a token has D = C p p numbers in (c, dy, dx) order.
        frames: position frames it can do, the default first.
        pipelines: names of the stock pipelines that `fresco.enable` knows.
        depths: entries of the config that say how many blocks of one kind, all alike, there are: FLOPs are counted with one
            and two of them. None counts the whole model, which takes a minute where it has 60 blocks.
        records: whether it can record attention.
        text_first: whether blocks that see text and image as one sequence have the text before the image.
        counting_step: image tokens by which FLOPs are counted, in multiples of 4; a family that pads tokens names how.
    """

    patch: int = 2
    frames: tuple[str, ...] = ("coarse", "coarse_corner", "fine")
    pipelines: tuple[str, ...] = ()
    depths: tuple[str, ...] = ()
    records = False
    text_first = False
    counting_step = 16

    def __init__(self, transformer: Any, patch: int | None = None) -> None:
        """Bind to a transformer; `patch` is latent pixels per token side where it is not the family's usual one."""
        self.transformer = transformer
        self.patch = patch or self.patch
        self.channels = self.count_channels()

    @abstractmethod
    def count_channels(self) -> int:
        """Return the latent channels C, from the transformer's config."""

    def frame(self, name: str) -> str:
        """Return the position frame of a name; "auto" is the family's default.

        Raises:
            ModelError: where the family cannot do it.
        """
        if name == "auto":
            return self.frames[0]
        if name not in self.frames:
            raise ModelError(
                f"position frame is {name!r}, which {type(self.transformer).__name__} cannot do; choose one of "
                f"auto, {', '.join(self.frames)}"
            )
        return name

    def schedule(self, scheduler: Any, nfe: int) -> FlowSchedule:
        """Return the sigma grid that a pipeline's scheduler makes in a call of `nfe` steps."""
        return FlowSchedule({**scheduler.config, "shift": scheduler.shift})  # a shift set by hand is no config

    def pixels(self, pipe: Any) -> tuple[int, int]:
        """Return (pixel frames per latent frame, pixels per token side) of a pipeline."""
        return 1, self.patch * int(pipe.vae_scale_factor)

    @abstractmethod
    def example(self, text_tokens: int, device: torch.device) -> dict[str, Any]:
        """Return what a forward of batch 1 takes beside the tokens and their places, as zeros: to count its FLOPs."""

    def text_tokens(self, kwargs: Mapping[str, Any]) -> int:
        """Return the number of text tokens of a forward."""
        return int(kwargs["encoder_hidden_states"].shape[1])

    def flops(self, text_tokens: int) -> Callable[[int], float]:
        """Return (image tokens) -> FLOPs of one forward of batch 1, counted on the class itself without weights."""
        cls, kind, patch = type(self), type(self.transformer), self.patch
        # diffusers drops entries that were left to their default, whatever they say now.
        config = {name: value for name, value in self.transformer.config.items() if name != "_use_default_values"}

        def forward(tokens: int, change: dict[str, Any]) -> float:
            meta = torch.device("meta")
            with meta:
                family = cls(kind.from_config(config | change).eval(), patch)
            where = Seating(TokenGrid.uniform((1, 4, tokens // 4), 1, 1), family.frame("auto"), 1.0)
            family.install()
            x = torch.zeros(1, tokens, family.channels * family.patch**2, device=meta)
            args, kwargs = family.arguments((), family.example(text_tokens, meta) | {"return_dict": False}, x, where)
            with seated(where):
                return counted(lambda: family.transformer(*args, **kwargs))

        def count(tokens: int) -> float:
            shallow, more = self.blocks()
            one = forward(tokens, shallow)
            return one + sum(times * (forward(tokens, shallow | change) - one) for times, change in more)

        key = f"{kind.__qualname__} {patch} {text_tokens} {config}"
        return _CURVES.setdefault(key, quadratic(count, self.counting_step))  # each call of an enabled pipeline asks

    def blocks(self) -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]:
        """Return the changes of the config to a shallow model, and how often each further change adds its block to that."""
        depths = self.depths
        return dict.fromkeys(depths, 1), [(self.transformer.config[name] - 1, {name: 2}) for name in depths]

    def install(self) -> Callable[[], None]:
        """Put what gives positions on the transformer, and return what takes it away; without a seating it is inert."""
        return lambda: None

    # Latents of a pipeline and tokens.

    @abstractmethod
    def tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the tokens (B, N, D) of latents as the pipeline holds them: full shape, or a ribbon."""

    @abstractmethod
    def latents(self, tokens: torch.Tensor, shape: Shape) -> torch.Tensor:
        """Return latents as the pipeline holds them, from all cells in row-major order, (B, cells, D)."""

    # A forward of the pipeline, as (args, kwargs).

    @abstractmethod
    def incoming(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Return the latents that a forward was given, full shape, one row per row of its batch."""

    @abstractmethod
    def shape(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Shape:
        """Return (frames, rows, cols) of the token grid of a forward at full shape."""

    @abstractmethod
    def arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: torch.Tensor, where: Seating
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the same forward on N tokens, (B, N, D), in place of the latents.

        The timestep is set to `where.sigma`, on the scale that the class takes.
        """

    @abstractmethod
    def outgoing(self, output: Any) -> torch.Tensor:
        """Return what came out of a forward on N tokens, (B, N, D)."""

    @abstractmethod
    def spread(self, output: Any, cells: torch.Tensor, shape: Shape) -> Any:
        """Return a forward's output at full shape: what token `cells[i]` says stands at cell i, (cells,) row-major."""

    def rows_per_picture(self, pipe: Any) -> int:
        """Return how many rows of a forward's batch belong to one picture: 2 where guidance doubles the batch."""
        return 1

    def attention(self, where: Seating) -> torch.Tensor | None:
        """Return (N,) float32, the mean attention each image token received in the seated forward; None: not recorded."""
        return None


class GridFamily(Family):
    """Models that take a dense latent, (B, C, H, W) or (B, C, T, H, W): N tokens go in as a ribbon.

    Attributes:
        video: whether latents have a frame axis.
    """

    video = False

    def tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Return (B, N, D) from (B, C, [T,] H, W), row-major, frame by frame."""
        x, p = latents if self.video else latents[:, :, None], self.patch
        b, c, t, h, w = x.shape
        tiles = x.reshape(b, c, t, h // p, p, w // p, p).permute(0, 2, 3, 5, 1, 4, 6)
        return tiles.reshape(b, t * (h // p) * (w // p), c * p * p)

    def latents(self, tokens: torch.Tensor, shape: Shape) -> torch.Tensor:
        """Return (B, C, [T,] H, W) from (B, cells, D); shape (1, 1, N) makes a ribbon."""
        (t, rows, cols), p, b = shape, self.patch, len(tokens)
        tiles = tokens.reshape(b, t, rows, cols, -1, p, p).permute(0, 4, 1, 2, 5, 3, 6)
        x = tiles.reshape(b, -1, t, rows * p, cols * p)
        return x if self.video else x[:, :, 0]

    def incoming(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Return the forward's `hidden_states`."""
        return args[0] if args else kwargs["hidden_states"]  # type: ignore[no-any-return]

    def shape(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Shape:
        """Return (frames, rows, cols) from the latents' own shape."""
        side = self.incoming(args, kwargs).shape
        return (side[2] if self.video else 1), side[-2] // self.patch, side[-1] // self.patch

    def arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: torch.Tensor, where: Seating
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the tokens as a ribbon and the seating's timestep."""
        ribbon = self.latents(tokens, (1, 1, tokens.shape[1]))
        if args:
            return (ribbon, *args[1:]), kwargs | self.timing(kwargs, where)
        return args, kwargs | {"hidden_states": ribbon} | self.timing(kwargs, where)

    def timing(self, kwargs: Mapping[str, Any], where: Seating) -> dict[str, Any]:
        """Return the argument that says sigma; 0 to 1000 in the dtype that the forward came with."""
        return {"timestep": torch.full_like(kwargs["timestep"], where.sigma * 1000)}

    def outgoing(self, output: Any) -> torch.Tensor:
        """Return (B, N, D) from a ribbon."""
        return self.tokens(output[0] if isinstance(output, tuple) else output.sample)

    def spread(self, output: Any, cells: torch.Tensor, shape: Shape) -> Any:
        """Return the output with a dense latent in place of the ribbon."""
        dense = self.latents(self.outgoing(output)[:, cells], shape)
        return (dense, *output[1:]) if isinstance(output, tuple) else type(output)(sample=dense)


class PackedFamily(Family):
    """Image models that take packed tokens, (B, N, D) in (c, dy, dx) order: they go in as they are."""

    def count_channels(self) -> int:
        """Return the latent channels: a token on the way in has C p p numbers."""
        return int(self.transformer.config.in_channels) // self.patch**2

    def tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the packed latents themselves, (B, N, D)."""
        return latents

    def latents(self, tokens: torch.Tensor, shape: Shape) -> torch.Tensor:
        """Return the tokens themselves."""
        return tokens

    def incoming(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Return the forward's `hidden_states`."""
        return args[0] if args else kwargs["hidden_states"]  # type: ignore[no-any-return]

    def arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: torch.Tensor, where: Seating
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the tokens, their places and the seating's timestep."""
        # The pipelines' own roundings: sigma -> t in 0..1000 -> the model's dtype -> sigma.
        time = (torch.full((len(tokens),), where.sigma, device=tokens.device) * 1000).to(tokens.dtype) / 1000
        return (), kwargs | {"hidden_states": tokens, "timestep": time} | self.places(kwargs, where, tokens)

    @abstractmethod
    def places(self, kwargs: Mapping[str, Any], where: Seating, tokens: torch.Tensor) -> dict[str, Any]:
        """Return the arguments that say where the tokens (B, N, D) of a forward are."""

    def outgoing(self, output: Any) -> torch.Tensor:
        """Return the velocity (B, N, D)."""
        return output[0] if isinstance(output, tuple) else output.sample  # type: ignore[no-any-return]

    def spread(self, output: Any, cells: torch.Tensor, shape: Shape) -> Any:
        """Return the output with one token's velocity per cell."""
        dense = self.outgoing(output)[:, cells]
        return (dense, *output[1:]) if isinstance(output, tuple) else type(output)(sample=dense)


def hooked(module: Any, hook: Callable[..., Any]) -> Callable[[], None]:
    """Register a forward hook of a module, once; return what takes it away, if it was not there before."""
    if hook in module._forward_hooks.values():
        return lambda: None
    remove: Callable[[], None] = module.register_forward_hook(hook).remove
    return remove


def shadowed(thing: Any, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """Shadow a method on one instance, once; return what takes the shadow away, if it was not there before."""
    if name in vars(thing):
        return lambda: None
    setattr(thing, name, MethodType(method, thing))  # bound, so that a deep copy has its own
    return lambda: vars(thing).pop(name, None)


_CURVES: dict[str, Callable[[int], float]] = {}


def quadratic(flops: Callable[[int], float], step: int = 16) -> Callable[[int], float]:
    """Return FLOPs for any token count from three counts: those of an attention model are a polynomial of degree two.

    Args:
        flops: (tokens) -> FLOPs, counted; asked for 1, 2 and 3 steps when first needed.
        step: number of tokens.
    """

    @lru_cache(maxsize=1)
    def through() -> tuple[float, float, float]:
        a, b, c = (flops(n * step) for n in (1, 2, 3))
        curve = (c - 2 * b + a) / (2 * step**2)
        slope = (b - a) / step - curve * 3 * step
        return a - slope * step - curve * step**2, slope, curve

    def at(tokens: int) -> float:
        constant, slope, curve = through()
        return constant + slope * tokens + curve * tokens * tokens

    return at


def counted(run: Callable[[], Any]) -> float:
    """Return the FLOPs of a function on the meta device; on a CPU the counter sees nothing of fused attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())


def family_of(transformer: Any) -> Family:
    """Return the family of a transformer.

    Raises:
        ModelError: where the class is none that Fresco knows.
    """
    name = type(transformer).__name__
    if name not in FAMILIES:
        raise ModelError(
            f"the transformer is a {name}, which Fresco does not know; it must be one of {', '.join(FAMILIES)} (to compile "
            "one, compile its blocks: compile_repeated_blocks)"
        )
    module, _, cls = FAMILIES[name].partition(":")
    family: Family = getattr(importlib.import_module(module), cls)(transformer)
    return family
