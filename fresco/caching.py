"""Caches in time: calls whose result is forecast or reused instead of computed, around any denoiser. Source: METHOD 3.

A cache is a small frozen description (`TaylorSeer`, `TeaCache`, `FirstBlock`) that wraps the denoiser of one run. On a FLUX
transformer it acts inside, through diffusers' own hooks or torch's, on a structural copy that shares every weight, so that
other runs on the same transformer never meet its hooks. On any other denoiser it acts on the outside, on x0 or velocity.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from fresco.denoiser import AttentionDenoiser, Conditioning, Denoiser
from fresco.errors import FrescoError
from fresco.grid import TokenGrid
from fresco.tokens import Layout

if TYPE_CHECKING:
    from fresco.config import FrescoConfig
    from fresco.cost import TransformerShape

FLUX_POLYNOMIAL = (4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01)
"""TeaCache's rescaling of the relative change for FLUX.1, highest power first. Source: TeaCache4FLUX (arXiv 2411.19108)."""


class Cache(Protocol):
    """What a cache says of itself: how it wraps a denoiser, and what its calls cost."""

    def wrap(self, denoiser: Denoiser, config: FrescoConfig) -> Wrapped:
        """Return the denoiser of one run with the cache around it."""

    def costs(self, tokens: Sequence[int], shape: TransformerShape) -> list[float] | None:
        """Return the FLOPs of each call on FLUX, step i having `tokens[i]` tokens; None where it depends on the picture."""


def same_tokens(grid: TokenGrid, other: TokenGrid) -> bool:
    """Return whether two grids are the same tokens in the same order."""
    return grid is other or (np.array_equal(grid.level, other.level) and np.array_equal(grid.coord, other.coord))


class Wrapped:
    """A denoiser around another one; serves one run. A subclass brings `_call`.

    Attributes:
        inner: the denoiser within.
        share: part of the last call's full cost that was spent, 0 to 1.
        seen: tokens that the model saw in the last call.
        computed: per call so far, whether the model really ran.
    """

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.share, self.seen = inner, 1.0, 0
        self.channels, self.patch, self.device = inner.channels, inner.patch, inner.device
        self.computed: list[bool] = []
        self._grid: TokenGrid | None = None
        self._tokens = -1

    def token_shape(self, size: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """Return the token shape of the denoiser within."""
        return self.inner.token_shape(size)

    def sigmas(self, n: int, tokens: int, start: float = 1.0, end: float = 0.0) -> list[float]:
        """Return the sigmas of the denoiser within."""
        return self.inner.sigmas(n, tokens, start, end)

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of the last call where it had so many tokens, else of a call that computes everything."""
        return self.inner.flops(tokens) * (self.share if tokens == self._tokens else 1.0)

    def attention(self, grid: TokenGrid) -> torch.Tensor:
        """Return the attention of the denoiser within, of its last computed call.

        Raises:
            FrescoError: where it reports none.
        """
        if not isinstance(self.inner, AttentionDenoiser):
            raise FrescoError(f"{type(self.inner).__name__} does not report its attention; choose another selection rule")
        return self.inner.attention(grid)

    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        """Return the velocity (N, D) float32, computed or not."""
        moved = self._grid is not None and not same_tokens(grid, self._grid)
        velocity, computed = self._call(x, grid, sigma, cond, moved)
        self.computed.append(computed)
        self.seen, self.share = self._spent(len(grid), computed)
        self._grid, self._tokens = grid, len(grid)
        return velocity

    def _call(
        self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning, moved: bool
    ) -> tuple[torch.Tensor, bool]:
        """Return the velocity and whether it was computed; `moved`: the tokens are not those of the last call."""
        raise NotImplementedError

    def _spent(self, tokens: int, computed: bool) -> tuple[int, float]:
        """Return how many tokens the model saw in the last call, and the part of the full cost that this was."""
        return (tokens, 1.0) if computed else (0, 0.0)


# ------------------------------------------------------------------------------------- inside a FLUX transformer


def flux_transformer(denoiser: Denoiser) -> Any | None:
    """Return the stock FLUX transformer a denoiser runs on, or None for any other model."""
    transformer = getattr(denoiser, "transformer", None)
    return transformer if type(transformer).__name__ == "FluxTransformer2DModel" else None


def sharing_copy(module: torch.nn.Module) -> Any:
    """Return a copy of a module that has its own submodules and hooks, but the very same parameters and buffers."""
    shared: dict[int, Any] = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, shared)


def on_transformer(denoiser: Any, transformer: Any) -> Any:
    """Return a copy of a FLUX denoiser that runs on another transformer module.

    Raises:
        FrescoError: where guidance takes two calls a step, between which a cache could not tell.
    """
    if denoiser.cfg_scale != 1 and not denoiser.batched:
        raise FrescoError("a feature cache needs guidance as one batch; bind the denoiser with batched=True, or guidance 1")
    twin = copy.copy(denoiser)
    twin.transformer = transformer
    twin.family = copy.copy(denoiser.family)
    twin.family.transformer = transformer
    return twin


class NativeCache(Wrapped):
    """A feature cache of diffusers on a FLUX transformer; forgotten whenever tokens are promoted.

    Its state is bound to the number of tokens, so every promotion resets it and its warm-up starts again (MODELS).

    Args:
        denoiser: a `FluxDenoiser`.
        config: a configuration of `transformer.enable_cache`.
        reused: (shape, tokens) -> FLOPs of a call that is not computed.
    """

    def __init__(self, denoiser: Any, config: Any, reused: Callable[[TransformerShape, int], float]) -> None:
        self._transformer = sharing_copy(denoiser.transformer)
        super().__init__(on_transformer(denoiser, self._transformer))
        self._transformer.enable_cache(config)
        self._reused, self._ran = reused, False
        self._attended: torch.Tensor | None = None
        # The last block's attention runs exactly in the calls that are computed; both processors ask for this norm.
        last = self._transformer.single_transformer_blocks[-1].attn.norm_q
        last.register_forward_hook(lambda *_: setattr(self, "_ran", True))

    def _call(
        self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning, moved: bool
    ) -> tuple[torch.Tensor, bool]:
        if moved:
            self._transformer._reset_stateful_cache()
        self._ran = False
        with self._transformer.cache_context("fresco"):
            velocity = self.inner(x, grid, sigma, cond)
        if self._ran and self.inner.record_attention:  # type: ignore[attr-defined]  # a FLUX denoiser
            self._attended = self.inner.attention(grid)  # type: ignore[attr-defined]
        return velocity, self._ran

    def attention(self, grid: TokenGrid) -> torch.Tensor:
        """Return (N,) float32, what each token received in the last computed call.

        Raises:
            ValueError: where nothing was recorded, or for another grid.
        """
        if self._attended is None or len(self._attended) != len(grid):
            raise ValueError("no attention was recorded for these tokens; bind with selection 'attention' and call first")
        return self._attended

    def _spent(self, tokens: int, computed: bool) -> tuple[int, float]:
        shape: TransformerShape = self.inner.shape  # type: ignore[attr-defined]  # a FLUX denoiser
        return (tokens, 1.0) if computed else (0, self._reused(shape, tokens) / shape.flops(tokens))


class _Gate(torch.nn.Module):
    """In place of all blocks: look at the first block's modulated input, and add the kept residual."""

    def __init__(self, first: Any, drift: Drift) -> None:
        super().__init__()
        self._first, self.drift = (first,), drift  # in a tuple: the block is no part of this module
        self.residual: torch.Tensor | None = None
        self.last = False

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        modulated = self._first[0].norm1(hidden_states, emb=temb)[0]
        self.drift.look(modulated, force=self.last or self.residual is None)
        if self.residual is None or self.drift.compute:  # what comes out is not used: the whole forward follows
            return encoder_hidden_states, hidden_states
        return encoder_hidden_states, hidden_states + self.residual


class FluxTeaCache(Wrapped):
    """TeaCache on a FLUX transformer: while the modulated input of the first block has hardly moved, the blocks' joint
    residual is added again. A forward over embedders, gate and output layers decides; the whole one follows where it must.
    """

    def __init__(self, denoiser: Any, nfe: int, drift: Drift) -> None:
        whole = sharing_copy(denoiser.transformer)
        super().__init__(on_transformer(denoiser, whole))
        self._left, self._entry = nfe, torch.empty(0)
        self._gate = _Gate(whole.transformer_blocks[0], drift)
        hollow = copy.copy(whole)
        hollow._modules = dict(whole._modules)
        hollow.transformer_blocks = torch.nn.ModuleList([self._gate])
        hollow.single_transformer_blocks = torch.nn.ModuleList()
        self._hollow = on_transformer(denoiser, hollow)
        whole.transformer_blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        whole.single_transformer_blocks[-1].register_forward_hook(self._leave)

    def _enter(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._entry = kwargs["hidden_states"]

    def _leave(self, block: Any, args: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._gate.residual = output[1] - self._entry

    def _call(
        self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning, moved: bool
    ) -> tuple[torch.Tensor, bool]:
        self._left -= 1
        self._gate.last = self._left == 0
        if moved:
            self._gate.residual = None
        velocity: torch.Tensor = self._hollow(x, grid, sigma, cond)
        if self._gate.drift.compute:
            velocity = self.inner(x, grid, sigma, cond)
        return velocity, self._gate.drift.compute

    def _spent(self, tokens: int, computed: bool) -> tuple[int, float]:
        shape: TransformerShape = self.inner.shape  # type: ignore[attr-defined]  # a FLUX denoiser
        shell = shape.shell_flops(tokens) / shape.flops(tokens)  # the gate's, which every call pays
        return (tokens, 1.0) if computed else (0, shell)


# ----------------------------------------------------------------------------------------------- around any denoiser


class Drift:
    """Whether a signal has moved enough since the last computation. Source: TeaCache (arXiv 2411.19108).

    The relative L1 change from call to call, rescaled by a polynomial, is summed up until it reaches the threshold.

    Args:
        threshold: at or above it the call is computed; 0 computes every call.
        polynomial: coefficients, highest power first.
        accumulate: else the change since the last computed call is compared, not summed (FirstBlockCache).
    """

    def __init__(self, threshold: float, polynomial: Sequence[float] = (1.0, 0.0), accumulate: bool = True) -> None:
        self.threshold, self.polynomial, self.accumulate = threshold, tuple(polynomial), accumulate
        self.compute, self.total = True, 0.0
        self._before: torch.Tensor | None = None

    def look(self, signal: torch.Tensor, force: bool = False) -> None:
        """Take the signal of a call and set `compute`."""
        before = self._before
        if force or before is None or before.shape != signal.shape:
            self.compute, self.total = True, 0.0
        else:
            change = float((signal - before).abs().mean() / before.abs().mean())
            rescaled = float(np.polyval(self.polynomial, change))
            self.total = self.total + rescaled if self.accumulate else rescaled
            self.compute = self.total >= self.threshold
            self.total *= not self.compute
        if self.accumulate or self.compute:
            self._before = signal


class StateCache(Wrapped):
    """Reuses the last velocity while the state itself has hardly moved: what TeaCache is to a model without blocks."""

    def __init__(self, denoiser: Denoiser, nfe: int, drift: Drift) -> None:
        super().__init__(denoiser)
        self._left, self._drift = nfe, drift
        self._velocity = torch.empty(0)

    def _call(
        self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning, moved: bool
    ) -> tuple[torch.Tensor, bool]:
        self._left -= 1
        self._drift.look(x, force=moved or self._left == 0)
        if self._drift.compute:
            self._velocity = self.inner(x, grid, sigma, cond)
        return self._velocity, self._drift.compute


class Forecast(Wrapped):
    """TaylorSeer in x0 space: between computed calls x0 follows a Taylor polynomial in the step, by differences.

    It survives promotions: factors go by way of the fine canvas to the new tokens, children taking their parent's (MODELS:
    a re-noise makes the velocity jump, x0 not). The call after a promotion is always computed: nobody has seen its tokens.

    Source: TaylorSeer (arXiv 2503.06923). Deviation: its features are those of every block; here it is the model's x0.
    """

    def __init__(self, denoiser: Denoiser, computes: Callable[[int], bool], order: int) -> None:
        super().__init__(denoiser)
        self._computes, self._order = computes, order
        self._layout = Layout(denoiser.channels, denoiser.patch)
        self._factors: list[torch.Tensor] = []
        self._last = 0

    def _call(
        self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning, moved: bool
    ) -> tuple[torch.Tensor, bool]:
        step = len(self.computed)
        if moved:
            assert self._grid is not None
            canvases = [self._layout.canvas(f, self._grid) for f in self._factors]
            self._factors = [self._layout.gather(c, grid) for c in canvases]
        if moved or not self._factors or self._computes(step):
            velocity = self.inner(x, grid, sigma, cond)
            newer = [x - sigma * velocity]
            for older in self._factors[: self._order]:
                newer.append((newer[-1] - older) / (step - self._last))
            self._factors, self._last = newer, step
            return velocity, True
        ahead = step - self._last
        x0 = sum((f * (ahead**k / math.factorial(k)) for k, f in enumerate(self._factors)), torch.zeros_like(x))
        return (x - x0) / sigma, False


# ------------------------------------------------------------------------------------------------- the descriptions


@dataclass(frozen=True)
class TaylorSeer:
    """TaylorSeer: diffusers' own on FLUX, in x0 space elsewhere. Source: arXiv 2503.06923.

    Attributes:
        interval: N, one call in so many is computed; 1 computes all.
        warmup: calls computed at the start, and after each promotion where the cache must forget.
        order: highest order of the Taylor polynomial.
        inside: whether to use diffusers' on FLUX; False forecasts x0 there, too, which outlives promotions.
    """

    interval: int = 4
    warmup: int = 1
    order: int = 2
    inside: bool = True

    def computes(self, step: int) -> bool:
        """Return whether the call `step` calls after the last reset is computed; the rule of diffusers' hook."""
        return step < self.warmup or (step - self.warmup - 1) % self.interval == 0

    def wrap(self, denoiser: Denoiser, config: FrescoConfig) -> Wrapped:
        """Return the denoiser of one run with the cache around it."""
        if not self.inside or flux_transformer(denoiser) is None:
            return Forecast(denoiser, self.computes, self.order)
        from diffusers import TaylorSeerCacheConfig

        # Attention and feed-forward layers are forecast; in a single block both end in proj_out, so that is.
        return NativeCache(
            denoiser,
            TaylorSeerCacheConfig(
                cache_interval=self.interval, disable_cache_before_step=self.warmup, max_order=self.order,
                taylor_factors_dtype=torch.float32,
                cache_identifiers=[
                    r"transformer_blocks\.\d+\.(attn|ff|ff_context)", r"single_transformer_blocks\.\d+\.proj_out",
                ],
                skip_predict_identifiers=[r"single_transformer_blocks\.\d+\.(attn|proj_mlp)"],
            ),
            lambda shape, tokens: shape.shell_flops(tokens),
        )  # fmt: skip

    def costs(self, tokens: Sequence[int], shape: TransformerShape) -> list[float]:
        """Return the FLOPs of each call on FLUX."""
        found, since = [], 0
        for i, count in enumerate(tokens):
            moved = i > 0 and count != tokens[i - 1]
            since = 0 if moved and self.inside else since
            computed = self.computes(since) or moved
            found.append(shape.flops(count) if computed else shape.shell_flops(count) if self.inside else 0.0)
            since += 1
        return found


@dataclass(frozen=True)
class TeaCache:
    """TeaCache, on FLUX with its published polynomial; elsewhere on the state, without one. Source: arXiv 2411.19108.

    Attributes:
        threshold: of the summed, rescaled change; 0 computes every call.
        polynomial: coefficients of the rescaling, highest power first; acts on FLUX only, which it was fitted to.
    """

    threshold: float = 0.25
    polynomial: tuple[float, ...] = FLUX_POLYNOMIAL

    def wrap(self, denoiser: Denoiser, config: FrescoConfig) -> Wrapped:
        """Return the denoiser of one run with the cache around it."""
        if flux_transformer(denoiser) is None:
            return StateCache(denoiser, config.nfe, Drift(self.threshold))
        return FluxTeaCache(denoiser, config.nfe, Drift(self.threshold, self.polynomial))

    def costs(self, tokens: Sequence[int], shape: TransformerShape) -> None:
        """Return None: which calls are computed depends on the picture."""


@dataclass(frozen=True)
class FirstBlock:
    """FirstBlockCache: diffusers' own on FLUX; elsewhere the state stands for the first block's residual.

    Source: ParaAttention's first block cache, as in diffusers.

    Attributes:
        threshold: relative change of the first block's residual below which the other blocks' is used again.
    """

    threshold: float = 0.05

    def wrap(self, denoiser: Denoiser, config: FrescoConfig) -> Wrapped:
        """Return the denoiser of one run with the cache around it."""
        if flux_transformer(denoiser) is None:
            return StateCache(denoiser, config.nfe, Drift(self.threshold, accumulate=False))
        from diffusers import FirstBlockCacheConfig

        return NativeCache(denoiser, FirstBlockCacheConfig(self.threshold), lambda shape, tokens: shape.head_flops(tokens))

    def costs(self, tokens: Sequence[int], shape: TransformerShape) -> None:
        """Return None: which calls are computed depends on the picture."""
