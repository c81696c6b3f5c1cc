"""Tokens and latent pixels: pack, unpack, and the Haar split between a token and its four children.

A token is a p x p patch of C latent channels, a vector of D = C*p*p in (c, dy, dx) order. All functions are linear in
their features and keep dtype and device. Source: METHOD 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from fresco.grid import TokenGrid, coarse_shape

# Signs of (horizontal, vertical, diagonal) in the four children of a latent pixel, row-major: e1 = (n1-n2+n3-n4)/2, ...
_SIGNS = torch.tensor([[[1.0, -1.0], [1.0, -1.0]], [[1.0, 1.0], [-1.0, -1.0]], [[1.0, -1.0], [-1.0, 1.0]]])


@dataclass(frozen=True)
class Layout:
    """How a token vector is made of latent pixels: C channels, p x p pixels, D = C*p*p."""

    channels: int
    patch: int

    @property
    def dim(self) -> int:
        """Length D of a token vector."""
        return self.channels * self.patch**2

    def pixels(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., C, p, p) from (..., D)."""
        return x.reshape(*x.shape[:-1], self.channels, self.patch, self.patch)

    def _quarters(self, big: torch.Tensor) -> torch.Tensor:
        """Return the four tokens (M, 4, D), row-major, of blocks (M, C, 2p, 2p)."""
        m, p = len(big), self.patch
        blocks = big.reshape(m, self.channels, 2, p, 2, p).permute(0, 2, 4, 1, 3, 5)
        return blocks.reshape(m, 4, self.dim)

    def _block(self, children: torch.Tensor) -> torch.Tensor:
        """Return blocks (M, C, 2p, 2p) of four tokens (M, 4, D): the inverse of `_quarters`."""
        m, p = len(children), self.patch
        parts = children.reshape(m, 2, 2, self.channels, p, p).permute(0, 3, 1, 4, 2, 5)
        return parts.reshape(m, self.channels, 2 * p, 2 * p)

    def replicate(self, x: torch.Tensor) -> torch.Tensor:
        """Return the children (M, 4, D) of tokens (M, D): every latent pixel becomes a 2 x 2 block of itself."""
        return self._quarters(self.pixels(x).repeat_interleave(2, -1).repeat_interleave(2, -2))

    def haar_up(self, low: torch.Tensor, details: torch.Tensor) -> torch.Tensor:
        """Return the children (M, 4, D) of low-pass tokens (M, D) and details (M, 3, D): H4/2, orthonormal.

        Unit independent inputs give unit independent outputs. Source: METHOD 2.1; paper Eq. 8 up to the factor.
        """
        signs = _SIGNS.to(details)
        high = torch.einsum("mkcyx,kab->mcyaxb", self.pixels(details), signs)
        m, p = len(low), self.patch
        return 0.5 * (self.replicate(low) + self._quarters(high.reshape(m, self.channels, 2 * p, 2 * p)))

    def haar_down(self, children: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return low-pass tokens (M, D) and details (M, 3, D) of children (M, 4, D): the inverse of `haar_up`."""
        m, p = len(children), self.patch
        block = self._block(children).reshape(m, self.channels, p, 2, p, 2)
        low = 0.5 * block.sum(dim=(3, 5))
        details = 0.5 * torch.einsum("mcyaxb,kab->mkcyx", block, _SIGNS.to(block))
        return low.reshape(m, self.dim), details.reshape(m, 3, self.dim)

    def unpack(self, x: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        """Return the latent (C, frames, rows*p, cols*p) of a uniform grid, at that grid's own resolution.

        Raises:
            ValueError: on a mixed grid, which has no one resolution; use `canvas`.
        """
        if not grid.is_uniform:
            raise ValueError("a mixed grid has no dense latent of its own; use canvas() for the finest one")
        frames, rows, cols = coarse_shape(grid.shape, int(grid.levels - grid.level[0]))
        order = torch.as_tensor(np.lexsort(grid.coord.T[::-1]), device=x.device)  # tokens stand in tree order
        dense = self.pixels(x[order]).reshape(frames, rows, cols, self.channels, self.patch, self.patch)
        return dense.permute(3, 0, 1, 4, 2, 5).reshape(self.channels, frames, rows * self.patch, cols * self.patch)

    def canvas(self, x: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        """Return the finest latent (C, frames, rows*p, cols*p): latent pixels of coarse tokens are replicated."""
        frames, rows, cols = grid.shape
        out = x.new_empty(self.channels, frames, rows * self.patch, cols * self.patch)
        for at, row, col, frame in self._fine_pixels(grid):
            scale = row.shape[1] // self.patch
            values = self.pixels(x[at.to(x.device)]).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
            inside = (row < out.shape[2])[:, :, None] & (col < out.shape[3])[:, None, :]
            r, c = row[:, :, None].expand_as(inside)[inside], col[:, None, :].expand_as(inside)[inside]
            f = frame[:, None, None].expand_as(inside)[inside]
            out[:, f, r, c] = values.permute(1, 0, 2, 3)[:, inside]
        return out

    def _fine_pixels(self, grid: TokenGrid) -> list[tuple[torch.Tensor, ...]]:
        """Return, per level present, tokens (M,) and their finest pixel rows (M, P), cols (M, P), frames (M,)."""
        level, coord = torch.as_tensor(grid.level), torch.as_tensor(grid.coord)
        found: list[tuple[torch.Tensor, ...]] = []
        for value in sorted(set(grid.level.tolist())):
            at = (level == value).nonzero()[:, 0]
            edge = self.patch << (grid.levels - value)
            span = torch.arange(edge)
            found.append((at, coord[at, 1, None] * edge + span, coord[at, 2, None] * edge + span, coord[at, 0]))
        return found

    def at_level(self, latent: torch.Tensor, halvings: int) -> torch.Tensor:
        """Return a latent (C, frames, H, W) averaged over `2**halvings` blocks of the pixels that exist.

        The result covers whole coarse tokens; pixels with nothing under them repeat the last ones.
        """
        if halvings == 0:
            return latent
        small = functional.avg_pool2d(latent, 1 << halvings, ceil_mode=True, count_include_pad=False)
        edge = self.patch << halvings
        rows, cols = (-(-side // edge) * self.patch for side in latent.shape[2:])
        row, col = torch.arange(rows).clamp(max=small.shape[2] - 1), torch.arange(cols).clamp(max=small.shape[3] - 1)
        return small[:, :, row][:, :, :, col]

    def gather(self, latent: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        """Return the tokens (N, D) of `grid` from a finest latent (C, frames, rows*p, cols*p), coarse ones averaged."""
        out = latent.new_empty(len(grid), self.dim)
        for value in sorted(set(grid.level.tolist())):
            at = torch.as_tensor((grid.level == value).nonzero()[0])
            out[at] = self.gather_dense(self.at_level(latent, grid.levels - value), torch.as_tensor(grid.coord)[at])
        return out

    def gather_dense(self, latent: torch.Tensor, coord: torch.Tensor) -> torch.Tensor:
        """Return the tokens (M, D) at `coord`, (M, 3) in tokens, of a dense latent (C, frames, H, W)."""
        span = torch.arange(self.patch)
        row = (coord[:, 1, None] * self.patch + span)[:, :, None]
        col = (coord[:, 2, None] * self.patch + span)[:, None, :]
        return latent[:, coord[:, 0, None, None], row, col].permute(1, 0, 2, 3).reshape(len(coord), self.dim)
