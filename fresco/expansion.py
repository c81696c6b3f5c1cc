"""How a parent token becomes four children. Source: METHOD 2.1; paper Eq. 8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fresco.grid import TokenGrid
from fresco.tokens import Layout

Up = Callable[[torch.Tensor, TokenGrid, torch.Tensor, Layout], torch.Tensor]


@dataclass(frozen=True)
class Expansion:
    """A way to expand: how a parent's value spreads, and how unit details are laid over it.

    Attributes:
        up: (x (N, D), grid, mask (N,), layout) -> (M, 4, D), the masked tokens' values at their children; a constant
            stays that constant.
        high: (details (M, 3, D), layout) -> (M, 4, D), the high-pass part of unit noise; None adds no detail at all.
    """

    up: Up
    high: Callable[[torch.Tensor, Layout], torch.Tensor] | None

    def noise_gain(self) -> float:
        """Return the factor on `up` of unit noise: 1/2 where details restore the unit variance, else 1."""
        return 1.0 if self.high is None else 0.5


def _replicate(x: torch.Tensor, grid: TokenGrid, mask: torch.Tensor, layout: Layout) -> torch.Tensor:
    return layout.replicate(x[mask])


def _copy_token(x: torch.Tensor, grid: TokenGrid, mask: torch.Tensor, layout: Layout) -> torch.Tensor:
    return x[mask][:, None].expand(-1, 4, -1)


def _bilinear(x: torch.Tensor, grid: TokenGrid, mask: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Interpolate the dense latent at the parents' own level; neighbours of other levels count as they look there."""
    out = x.new_empty(int(mask.sum()), 4, layout.dim)
    canvas = layout.canvas(x, grid)
    level, coord = torch.as_tensor(grid.level)[mask.cpu()], torch.as_tensor(grid.coord)[mask.cpu()]
    for value in sorted(set(level.tolist())):
        at = level == value
        dense = layout.at_level(canvas, grid.levels - value)
        fine = torch.nn.functional.interpolate(dense, scale_factor=2, mode="bilinear", align_corners=False)
        for k in range(4):
            child = coord[at].clone()
            child[:, 1:] = 2 * child[:, 1:] + torch.tensor([k // 2, k % 2])
            out[at, k] = layout.gather_dense(fine, child)
    return out


def _haar_high(details: torch.Tensor, layout: Layout) -> torch.Tensor:
    return layout.haar_up(torch.zeros_like(details[:, 0]), details)


def _token_high(details: torch.Tensor, layout: Layout) -> torch.Tensor:
    e1, e2, e3 = details.unbind(1)
    return torch.stack([e1 + e2 + e3, -e1 + e2 - e3, e1 - e2 - e3, -e1 - e2 + e3], 1) / 2


EXPANSIONS: dict[str, Expansion] = {
    "hadamard": Expansion(_replicate, _haar_high),  # latent pixels: each becomes a 2 x 2 block
    "hadamard_token": Expansion(_copy_token, _token_high),  # paper Eq. 8, literal: the packed vector is copied
    "nearest": Expansion(_replicate, None),  # plain replication, no noise added
    "bilinear": Expansion(_bilinear, None),  # plain interpolation, no noise added
}
