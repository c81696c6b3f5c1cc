"""Token variance, and the rules that say which tokens are expanded first. Source: paper Eq. 7; METHOD 2.3."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fresco.config import FrescoConfig
from fresco.denoiser import AttentionDenoiser, Denoiser
from fresco.errors import FrescoError
from fresco.grid import Bools, TokenGrid, coarse_shape
from fresco.schedule import Check
from fresco.tokens import Layout

Floats = NDArray[np.floating]
ATTENTION_SHARE = 0.5
"""Weight a of attention in `attention_variance`."""


@dataclass
class History:
    """The last `window` values of a signal, kept per token while the grid changes.

    Attributes:
        signal: "x0" (clean estimates), "z" (states, the paper's) or "channel" (the newest x0 across the D entries of a token).
        window: how many values are kept, >= 2.
        values: newest last, each (N, D).
    """

    signal: str
    window: int
    values: list[torch.Tensor] = field(default_factory=list)

    def push(self, x: torch.Tensor, x0: torch.Tensor) -> None:
        """Append the state (N, D) or clean estimate (N, D), whichever the signal is, of one step."""
        keep = 1 if self.signal == "channel" else self.window
        self.values = [*self.values, x if self.signal == "z" else x0][-keep:]

    def variance(self) -> torch.Tensor:
        """Return (N,) float32: unbiased variance over the window, averaged over channels; NaN before two values.

        Source: paper Eq. 7 (`z`); METHOD 2.3 (`x0`). Deviation: the paper does not publish the window.
        """
        newest = self.values[-1]
        if self.signal == "channel":
            return newest.var(dim=1) if newest.shape[1] > 1 else newest.new_full(newest.shape[:1], math.nan)
        if len(self.values) < 2:
            return newest.new_full(newest.shape[:1], math.nan)
        values = torch.stack(self.values)
        deviation = values - values.mean(dim=0)  # two passes by hand: torch.var over the first axis is 20 times slower
        return deviation.square().sum(dim=0).mean(dim=1) / (len(self.values) - 1)

    def expand(self, mask: torch.Tensor, grid_next: TokenGrid, parent: torch.Tensor, layout: Layout) -> None:
        """Hand each parent's history down to its children, latent pixel by latent pixel."""
        self.values = [place(v, layout.replicate(v[mask]), mask, grid_next, parent) for v in self.values]


def place(
    kept: torch.Tensor, children: torch.Tensor, mask: torch.Tensor, grid_next: TokenGrid, parent: torch.Tensor
) -> torch.Tensor:
    """Return (N', D): kept tokens (N, D) carried over, and children (M, 4, D) in the places of the masked tokens."""
    out = kept[parent]
    born = mask[parent]
    rank = (mask.cumsum(0) - 1)[parent][born]
    out[born] = children[rank, torch.as_tensor(grid_next.child, device=kept.device)[born]]
    return out


@dataclass(frozen=True, eq=False)
class Scene:
    """What a rule may look at: the tokens of one step, their variance (N,), clean estimate (N, D), and the model."""

    grid: TokenGrid
    variance: Floats
    x0: torch.Tensor
    layout: Layout
    denoiser: Denoiser
    seed: int


def _variance(scene: Scene) -> Floats:
    return scene.variance


def _variance_high(scene: Scene) -> Floats:
    return -scene.variance


def _attention(scene: Scene) -> Floats:
    """Most attended first. Source: METHOD 3 (AViTS); paper's ablation."""
    if not isinstance(scene.denoiser, AttentionDenoiser):
        raise FrescoError(
            f"{type(scene.denoiser).__name__} does not report its attention, which selection 'attention' needs; "
            "choose another selection rule"
        )
    return -scene.denoiser.attention(scene.grid).float().cpu().numpy()


def _unit(value: Floats, open_: Bools) -> Floats:
    """Return values scaled so that those of the expandable tokens span 0 to 1; a constant becomes 0, NaN stays."""
    low, high = value[open_].min(initial=np.inf), value[open_].max(initial=-np.inf)
    return (value - low) / (high - low) if high > low else 0 * value


def _attention_variance(scene: Scene) -> Floats:
    """Most of both first: `a attention + (1-a) variance`. Source: METHOD 3 (AViTS).

    Deviation: neither the share a nor the scaling is published; here a = ATTENTION_SHARE, each scaled to 0..1.
    """
    attention, variance = (_unit(v, scene.grid.expandable) for v in (-_attention(scene), scene.variance))
    return -(ATTENTION_SHARE * attention + (1 - ATTENTION_SHARE) * variance)


def _edge(scene: Scene) -> Floats:
    """Strongest gradient of the clean estimate first. Source: paper's ablation (RALU: Canny on the decoded one)."""
    score = np.zeros(len(scene.grid))
    canvas = scene.layout.canvas(scene.x0.float().cpu(), scene.grid)
    for level in np.unique(scene.grid.level):
        dense = scene.layout.at_level(canvas, int(scene.grid.levels - level)).mean(dim=0).numpy()  # (frames, H, W)
        padded = np.pad(dense, ((0, 0), (1, 1), (1, 1)), mode="edge")
        dy, dx = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1], padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
        at, p = scene.grid.level == level, scene.layout.patch
        frames, height, width = dense.shape
        token = np.hypot(dx, dy).reshape(frames, height // p, p, width // p, p).mean(axis=(2, 4))
        score[at] = token[tuple(scene.grid.coord[at].T)]
    return -score


def _even(scene: Scene) -> Floats:
    """Spread evenly whatever the ratio: the order of a recursive (Bayer) dither matrix over (row, col)."""
    row, col = scene.grid.coord[:, 1].copy(), scene.grid.coord[:, 2].copy()
    order = np.zeros(len(scene.grid))
    weight = 0.25
    for _ in range(16):
        order += weight * (2 * ((row ^ col) & 1) + (row & 1))
        row, col, weight = row >> 1, col >> 1, weight / 4
    return order


def _random(scene: Scene) -> Floats:
    return np.random.default_rng([scene.seed, len(scene.grid)]).random(len(scene.grid))


def _all(scene: Scene) -> Floats:
    return np.zeros(len(scene.grid))


SELECTION_RULES: dict[str, Callable[[Scene], Floats]] = {
    "variance": _variance,  # settled tokens first: Fresco
    "variance_high": _variance_high,  # unsettled tokens first: AViTS
    "attention": _attention,
    "attention_variance": _attention_variance,  # AViTS
    "edge": _edge,
    "even": _even,
    "random": _random,
    "all": _all,
}


@dataclass(frozen=True, eq=False)
class Choice:
    """What a check decided: the mask (N,), and both readings of how it was driven (NaN where undefined)."""

    mask: Bools
    tau: float = math.nan
    ratio: float = math.nan


def coarse_fraction(grid: TokenGrid, variance: Floats, tau: float, high: bool = False) -> float:
    """Return the fraction of expandable tokens that tau selects; NaN where there are none."""
    v = variance[grid.expandable]
    return float(np.mean(v >= tau if high else v <= tau)) if len(v) else math.nan


def select(config: FrescoConfig, check: Check, scene: Scene) -> Choice:
    """Return the tokens to expand at a check.

    `tau` takes every expandable token at or below it (`variance_high`: at or above). `ratio` takes the first
    floor(target * cells) of each level by the rule's order, less those already promoted. The closing check takes all.
    An undefined variance selects nothing. Source: METHOD 2.3, 2.6.
    """
    grid, open_ = scene.grid, scene.grid.expandable
    if check.closing:
        return Choice(open_, math.nan, 1.0)
    high = config.selection == "variance_high"
    if config.tau is not None:
        with np.errstate(invalid="ignore"):
            mask = open_ & (scene.variance >= config.tau if high else scene.variance <= config.tau)
        return Choice(mask, config.tau, coarse_fraction(grid, scene.variance, config.tau, high))
    priority = SELECTION_RULES[config.selection](scene)
    mask = np.zeros(len(grid), dtype=bool)
    for level, target in enumerate(check.targets):
        candidates = np.flatnonzero((grid.level == level) & np.isfinite(priority))
        total = math.prod(coarse_shape(grid.shape, grid.levels - level))
        wanted = len(candidates) if config.selection == "all" else math.floor(target * total + 1e-9) - grid.promoted(level)
        chosen = np.argsort(priority[candidates], kind="stable")[: max(int(wanted), 0)]
        mask[candidates[chosen]] = True
    taken = scene.variance[mask]
    tau = float(taken.min() if high else taken.max()) if len(taken) else math.nan
    return Choice(mask, tau, float(mask.sum() / max(int(open_.sum()), 1)))
