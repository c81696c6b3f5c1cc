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
from typing import Any

import torch

from fresco.backends import ModelError
from fresco.backends.flow import FlowSchedule
from fresco.grid import TokenGrid, coarse_shape

FAMILIES: dict[str, str] = {
    "FluxTransformer2DModel": "fresco.backends.flux:FluxFamily",
    "SD3Transformer2DModel": "fresco.backends.sd3:SD3Family",
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
        return torch.from_numpy(self.grid.centers(self.frame)).to(device)

    def extent(self) -> Shape:
        """Return (frames, rows, cols) of the dense grid whose cells are the unit of `ids`: tables are cut to it."""
        grid = self.grid
        level = int(grid.level[0]) if grid.is_uniform else grid.levels if self.frame == "fine" else 0
        return coarse_shape(grid.shape, grid.levels - level)


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
        records: whether it can record attention.
    """

    patch: int = 2
    frames: tuple[str, ...] = ("coarse", "coarse_corner", "fine")
    pipelines: tuple[str, ...] = ()
    records = False

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
        cls, config, patch = type(self), self.transformer.config, self.patch
        kind = type(self.transformer)

        def count(tokens: int) -> float:
            meta = torch.device("meta")
            with meta:
                family = cls(kind.from_config(config).eval(), patch)
            where = Seating(TokenGrid.uniform((1, 1, tokens), 1, 1), family.frame("auto"), 1.0)
            family.install()
            x = torch.zeros(1, tokens, family.channels * family.patch**2, device=meta)
            args, kwargs = family.arguments((), family.example(text_tokens, meta) | {"return_dict": False}, x, where)
            with seated(where):
                return counted(lambda: family.transformer(*args, **kwargs))

        return quadratic(count)

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


def quadratic(flops: Callable[[int], float]) -> Callable[[int], float]:
    """Return FLOPs for any token count from three counts: those of an attention model are a polynomial of degree two.

    Args:
        flops: (tokens) -> FLOPs, counted; asked for 16, 32 and 48 tokens when first needed.
    """

    @lru_cache(maxsize=1)
    def through() -> tuple[float, float, float]:
        a, b, c = (flops(n) for n in (16, 32, 48))
        curve = (c - 2 * b + a) / (2 * 16**2)
        slope = (b - a) / 16 - curve * 48
        return a - slope * 16 - curve * 16**2, slope, curve

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
