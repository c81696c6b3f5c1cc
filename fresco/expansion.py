"""How a parent token becomes four children. Source: METHOD 2.1; paper Eq. 8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fresco.grid import TokenGrid
from fresco.tokens import Layout

Up = Callable[[torch.Tensor, TokenGrid, torch.Tensor, Layout], torch.Tensor]
Down = Callable[[torch.Tensor, int, Layout], torch.Tensor]


@dataclass(frozen=True)
class Expansion:
    """A way to expand: how a parent's value spreads, and how unit details are laid over it.

    Attributes:
        up: (x (N, D), grid, mask (N,), layout) -> (M, 4, D), the masked tokens' values at their children; a constant
            stays that constant.
        high: (details (M, 3, D), layout) -> (M, 4, D), the high-pass part of unit noise; None adds no detail at all.
        down: (finest latent (C, frames, H, W), halvings, layout) -> the dense latent of a coarser level, for runs with a head.
    """

    up: Up
    high: Callable[[torch.Tensor, Layout], torch.Tensor] | None
    down: Down

    def noise_gain(self) -> float:
        """Return the factor on `up` of unit noise: 1/2 where details restore the unit variance, else 1."""
        return 1.0 if self.high is None else 0.5


def _replicate(x: torch.Tensor, grid: TokenGrid, mask: torch.Tensor, layout: Layout) -> torch.Tensor:
    return layout.replicate(x[mask])


def _copy_token(x: torch.Tensor, grid: TokenGrid, mask: torch.Tensor, layout: Layout) -> torch.Tensor:
    return x[mask][:, None].expand(-1, 4, -1)


Resize = Callable[[torch.Tensor], torch.Tensor]


def _smooth(resize: Resize) -> Up:
    """Return an `up` that doubles the dense latent at the parents' own level; other levels count as they look there."""

    def up(x: torch.Tensor, grid: TokenGrid, mask: torch.Tensor, layout: Layout) -> torch.Tensor:
        out = x.new_empty(int(mask.sum()), 4, layout.dim)
        canvas = layout.canvas(x, grid)
        level, coord = torch.as_tensor(grid.level)[mask.cpu()], torch.as_tensor(grid.coord)[mask.cpu()]
        for value in sorted(set(level.tolist())):
            at = level == value
            fine = resize(layout.at_level(canvas, grid.levels - value))
            for k in range(4):
                child = coord[at].clone()
                child[:, 1:] = 2 * child[:, 1:] + torch.tensor([k // 2, k % 2])
                out[at, k] = layout.gather_dense(fine, child)
        return out

    return up


def _bilinear(dense: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(dense, scale_factor=2, mode="bilinear", align_corners=False)


def lanczos_weights(size: int, count: int, scale: float) -> torch.Tensor:
    """Return (count, size) float64: the Lanczos-3 weights of `count` pixels, each `scale` of the `size` old ones wide.

    The kernel widens when it shrinks, and each row's weights are made to sum to 1 within the canvas, as Pillow does.
    Source: Bottleneck Sampling (arXiv 2503.18940) resamples latents by Lanczos.
    """
    centre = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) * scale
    away = (torch.arange(size, dtype=torch.float64) + 0.5 - centre) / max(scale, 1.0)
    weights = (torch.sinc(away) * torch.sinc(away / 3)).masked_fill(away.abs() >= 3, 0.0)
    return weights / weights.sum(1, keepdim=True)


def lanczos(dense: torch.Tensor, rows: int, cols: int, scale: float) -> torch.Tensor:
    """Return (..., rows, cols) from (..., H, W) by Lanczos-3; `scale` old pixels become one."""
    down, across = (
        lanczos_weights(n, m, scale).to(dense) for n, m in ((dense.shape[-2], rows), (dense.shape[-1], cols))
    )  # fmt: skip
    return down @ dense @ across.T


def _lanczos_up(dense: torch.Tensor) -> torch.Tensor:
    return lanczos(dense, 2 * dense.shape[-2], 2 * dense.shape[-1], 0.5)


def _area(latent: torch.Tensor, halvings: int, layout: Layout) -> torch.Tensor:
    return layout.at_level(latent, halvings)


def _lanczos_down(latent: torch.Tensor, halvings: int, layout: Layout) -> torch.Tensor:
    edge = layout.patch << halvings
    rows, cols = (-(-side // edge) * layout.patch for side in latent.shape[-2:])
    return lanczos(latent, rows, cols, 2.0**halvings)


def _haar_high(details: torch.Tensor, layout: Layout) -> torch.Tensor:
    return layout.haar_up(torch.zeros_like(details[:, 0]), details)


def _token_high(details: torch.Tensor, layout: Layout) -> torch.Tensor:
    e1, e2, e3 = details.unbind(1)
    return torch.stack([e1 + e2 + e3, -e1 + e2 - e3, e1 - e2 - e3, -e1 - e2 + e3], 1) / 2


EXPANSIONS: dict[str, Expansion] = {
    "hadamard": Expansion(_replicate, _haar_high, _area),  # latent pixels: each becomes a 2 x 2 block
    "hadamard_token": Expansion(_copy_token, _token_high, _area),  # paper Eq. 8, literal: the packed vector is copied
    "nearest": Expansion(_replicate, None, _area),  # plain replication, no noise added
    "bilinear": Expansion(_smooth(_bilinear), None, _area),  # plain interpolation, no noise added
    "lanczos": Expansion(_smooth(_lanczos_up), None, _lanczos_down),  # the same with a sharper kernel
}
