"""JiT: a full-resolution run whose model sees a growing subset of the tokens; the others' velocity is filled in.

Source: Just-in-Time (arXiv 2603.10744), with the settings and details of its published code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fresco.caching import Wrapped
from fresco.denoiser import Conditioning, Denoiser
from fresco.errors import FrescoError
from fresco.grid import TokenGrid

if TYPE_CHECKING:
    from fresco.config import FrescoConfig
    from fresco.cost import TransformerShape


@dataclass(frozen=True)
class Sparse:
    """JiT's settings.

    Attributes:
        densities: share of the tokens the model sees in each stage, rising to 1.
        ends: where each stage ends, as a share of the calls, rising to 1.
        relax: newly active tokens go 1/relax of the way to their target at a stage's end (the micro-flow).
    """

    densities: tuple[float, ...] = (0.35, 0.62, 1.0)
    ends: tuple[float, ...] = (0.4, 0.65, 1.0)
    relax: int = 3

    def stage(self, step: int, nfe: int) -> int:
        """Return the stage of a call."""
        return next(k for k, end in enumerate(self.ends) if step < int(nfe * end))

    def active(self, step: int, nfe: int, tokens: int) -> int:
        """Return how many of `tokens` the model sees in a call."""
        return int(tokens * self.densities[self.stage(step, nfe)])

    def wrap(self, denoiser: Denoiser, config: FrescoConfig) -> SparseDenoiser:
        """Return the denoiser of one run.

        Raises:
            FrescoError: where the run is not at full resolution throughout.
        """
        if not config.is_full:
            raise FrescoError("sparse tokens need a run at full resolution, which they thin out; use FrescoConfig.full")
        return SparseDenoiser(denoiser, self, config.nfe, config.seed)

    def costs(self, tokens: Sequence[int], shape: TransformerShape) -> list[float]:
        """Return the FLOPs of each call, step i having `tokens[i]` tokens in all."""
        return [shape.flops(self.active(i, len(tokens), n)) for i, n in enumerate(tokens)]


def anchors(grid: TokenGrid, count: int, seed: int) -> NDArray[np.bool_]:
    """Return (N,) bool: every other row and column and the border, made up to `count` tokens, or cut down, at random."""
    _, rows, cols = grid.shape
    row, col = grid.coord[:, 1], grid.coord[:, 2]
    core = (row % 2 == 0) & (col % 2 == 0)
    border = (row == 0) | (row == rows - 1) | (col == 0) | (col == cols - 1)
    first = core | border
    order = np.random.default_rng([seed, len(grid)]).random(len(grid)) + ~first
    found = np.zeros(len(grid), dtype=bool)
    found[np.argsort(order, kind="stable")[:count]] = True
    return found


def blur_weights(size: int, sigma: float) -> torch.Tensor:
    """Return (size, size) float64: a Gaussian, cut off beyond 3 sigma, each row's weights summing to 1 on the canvas."""
    away = torch.arange(size, dtype=torch.float64)[:, None] - torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-0.5 * (away / sigma) ** 2).masked_fill(away.abs() > math.ceil(3 * sigma), 0.0)
    return weights / weights.sum(1, keepdim=True)


def fill(value: torch.Tensor, active: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """Return (N, D) from (M, D) of the active tokens: those stay, the others take the blurred nearest one's.

    The blur's width is 0.4 tokens' mean distance, at least 1. Several active tokens at one distance: the first in order.
    """
    if bool(active.all()):
        return value
    frames, rows, cols = grid.shape
    place = torch.as_tensor(grid.coord, dtype=torch.float64) * torch.tensor([2.0 * (rows + cols), 1.0, 1.0])  # own frame first
    nearest = torch.cdist(place, place[active.cpu()]).argmin(1).to(value.device)
    full = value[nearest]
    sigma = min(max(0.4 / math.sqrt(len(value) / len(grid)), 1.0), 10.0)
    down, across = (blur_weights(n, sigma).to(full) for n in (rows, cols))
    blurred = torch.einsum("rs,fscd,tc->frtd", down, full.reshape(frames, rows, cols, -1), across).reshape(full.shape)
    return torch.where(active[:, None], full, blurred)


def roughness(velocity: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """Return (N,): variance of the velocity over the 3 x 3 tokens around each, mean over D; zeros lie beyond the border."""
    frames, rows, cols = grid.shape
    dense = velocity.reshape(frames, rows, cols, -1).permute(0, 3, 1, 2)
    pool = torch.nn.functional.avg_pool2d
    variance = pool(dense**2, 3, stride=1, padding=1) - pool(dense, 3, stride=1, padding=1) ** 2
    return variance.mean(1).flatten()


class SparseDenoiser(Wrapped):
    """The velocity of all tokens from a model that sees some.

    At a stage's end the roughest unseen tokens are chosen; a third of the way to their target, the filled-in clean estimate
    under the start noise, is folded into that call's velocity, so that the Euler step ends where JiT puts them.

    Source: arXiv 2603.10744. Deviations: sigmas are the model's own, not a beta schedule's; the target's noise is that of the
    start, where the published code draws another, unseeded one; the blur's weights are normalised at the border.
    """

    def __init__(self, denoiser: Denoiser, settings: Sparse, nfe: int, seed: int) -> None:
        super().__init__(denoiser)
        self._settings, self._nfe, self._seed = settings, nfe, seed
        self._active = torch.zeros(0, dtype=torch.bool)
        self._noise = torch.empty(0)
        self._nodes: list[float] = []
        self._few = 0

    def _call(
        self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning, moved: bool
    ) -> tuple[torch.Tensor, bool]:
        step = len(self.computed)
        if step == 0:  # at sigma 1 the state is the noise
            self._noise, self._nodes = x, self.sigmas(self._nfe, len(grid))
            count = self._settings.active(0, self._nfe, len(grid))
            self._active = torch.as_tensor(anchors(grid, count, self._seed), device=x.device)
        seen = self._active.cpu().numpy()
        few = TokenGrid(grid.shape, grid.levels, grid.level[seen], grid.coord[seen])
        state = x[self._active]
        own = self.inner(state, few, sigma, cond)
        velocity = fill(own, self._active, grid)
        self._few = len(few)
        if step + 1 < self._nfe and self._settings.stage(step + 1, self._nfe) > self._settings.stage(step, self._nfe):
            velocity = self._activate(x, grid, sigma, velocity, fill(state - sigma * own, self._active, grid))
        return velocity, True

    def _spent(self, tokens: int, computed: bool) -> tuple[int, float]:
        return self._few, self.inner.flops(self._few) / self.inner.flops(tokens)

    def _activate(
        self, x: torch.Tensor, grid: TokenGrid, sigma: float, velocity: torch.Tensor, x0: torch.Tensor
    ) -> torch.Tensor:
        """Return the velocity of a stage's last call, and let the model see more tokens from the next one on."""
        step = len(self.computed)
        count = self._settings.active(step + 1, self._nfe, len(grid)) - int(self._active.sum())
        score = roughness(velocity, grid).masked_fill(self._active, -torch.inf)
        new = torch.zeros_like(self._active)
        new[score.argsort(descending=True, stable=True)[: max(count, 0)]] = True
        self._active = self._active | new
        after = self._nodes[step + 1]
        landing = x + (after - sigma) * velocity
        target = (1 - after) * x0 + after * self._noise
        bent = velocity + (target - landing) / (self._settings.relax * (after - sigma))
        return torch.where(new[:, None], bent, velocity)
