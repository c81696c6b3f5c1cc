"""Coordinate-bound noise: one field for all resolutions. NumPy only. Source: paper Eq. 3; METHOD 2.1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fresco.grid import Ints, TokenGrid

Floats = NDArray[np.floating[Any]]
_U64 = np.uint64


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the splitmix64 finaliser of 64-bit words: every input bit flips every output bit half of the time."""
    h = (h ^ (h >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> _U64(27))) * _U64(0x94D049BB133111EB)
    return h ^ (h >> _U64(31))


def hashed_normal(seed: int, frame: Any, row: Any, col: Any, channel: Any) -> NDArray[np.float64]:
    """Return standard normals that depend on (seed, frame, row, col, channel) and on nothing else.

    Integer arguments broadcast. A chain of splitmix64 rounds gives 64 bits; their halves feed Box-Muller.

    Source: paper Eq. 3. Deviation: its hash h is not published; this one is ours, pinned by golden numbers.
    """
    with np.errstate(over="ignore"):
        h = _mix(np.asarray(seed, dtype=np.uint64) + _U64(0x9E3779B97F4A7C15))
        for part in (frame, row, col, channel):
            h = _mix(h ^ (np.asarray(part, dtype=np.uint64) * _U64(0xD6E8FEB86659FD93) + _U64(0xA0761D6478BD642F)))
    radius = np.sqrt(-2.0 * np.log(((h >> _U64(32)).astype(np.float64) + 0.5) * 2.0**-32))
    angle = ((h & _U64(0xFFFFFFFF)).astype(np.float64) + 0.5) * (2.0 * np.pi * 2.0**-32)
    return np.asarray(radius * np.cos(angle))


def haar(block: Floats) -> tuple[Floats, Floats]:
    """Return the low-pass (...) and details (3, ...) of 2 x 2 blocks (..., 2, 2), orthonormal. Source: METHOD 2.1."""
    n1, n2, n3, n4 = block[..., 0, 0], block[..., 0, 1], block[..., 1, 0], block[..., 1, 1]
    details = np.stack([n1 - n2 + n3 - n4, n1 + n2 - n3 - n4, n1 - n2 - n3 + n4]) / 2
    return (n1 + n2 + n3 + n4) / 2, details


class NoiseField:
    """One infinite field of independent N(0, 1) on the finest latent pixels; coarse noise is its Haar low-pass.

    The value at a coordinate depends on no canvas, query order, device or thread. Coarse pixels always average four
    children; the ones off the canvas are drawn and dropped. Source: paper Eq. 3; METHOD 2.1.

    Args:
        seed: 0 to 2**32 - 1.
        channels: latent channels C.
        patch: latent pixels per token side p.
    """

    def __init__(self, seed: int, channels: int, patch: int) -> None:
        self.seed, self.channels, self.patch = seed, channels, patch

    def pixels(self, frame: Any, row: Any, col: Any, halvings: int = 0) -> Floats:
        """Return noise (..., C) at latent pixels `halvings` levels above the finest; coordinates broadcast."""
        frame, row, col = (np.asarray(a, dtype=np.int64)[..., None] for a in (frame, row, col))
        if halvings == 0:
            return hashed_normal(self.seed, frame, row, col, np.arange(self.channels))
        return self._haar(frame[..., 0], row[..., 0], col[..., 0], halvings)[0]

    def _haar(self, frame: Any, row: Any, col: Any, halvings: int) -> tuple[Floats, Floats]:
        dy, dx = np.arange(2)[:, None], np.arange(2)
        below = self.pixels(frame[..., None, None], 2 * row[..., None, None] + dy, 2 * col[..., None, None] + dx, halvings - 1)
        return haar(np.moveaxis(below, -1, -3))

    def _token_pixels(self, grid: TokenGrid, at: NDArray[np.int64]) -> tuple[Ints, Ints, Ints]:
        """Return frame, row and col, each (M, p, p), of the latent pixels of tokens."""
        coord, span = grid.coord[at], np.arange(self.patch)
        row, col = coord[:, 1, None] * self.patch + span, coord[:, 2, None] * self.patch + span
        frame, row, col = np.broadcast_arrays(coord[:, 0, None, None], row[:, :, None], col[:, None, :])
        return frame, row, col

    def at(self, grid: TokenGrid) -> NDArray[np.float64]:
        """Return (N, D): unit noise of each token at its own level."""
        out = np.empty((len(grid), self.channels * self.patch**2))
        for level in np.unique(grid.level):
            (at,) = np.nonzero(grid.level == level)
            frame, row, col = self._token_pixels(grid, at)
            noise = self.pixels(frame, row, col, int(grid.levels - level))
            out[at] = np.moveaxis(noise, -1, 1).reshape(len(at), -1)
        return out

    def details(self, grid: TokenGrid, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return (M, 3, D): horizontal, vertical and diagonal details under each masked token's latent pixels."""
        where = np.flatnonzero(mask)
        out = np.empty((len(where), 3, self.channels * self.patch**2))
        for level in np.unique(grid.level[where]):
            chosen = grid.level[where] == level
            frame, row, col = self._token_pixels(grid, where[chosen])
            _, high = self._haar(frame, row, col, int(grid.levels - level))  # (3, M, p, p, C)
            out[chosen] = np.moveaxis(high, (0, -1), (1, 2)).reshape(int(chosen.sum()), 3, -1)
        return out


class FreshNoise:
    """Noise that forgets: the start of the run is the field's, everything after it is drawn anew.

    What other mixed-resolution samplers do at a switch, and the ablation "without unified noise". The first call of
    `at` gives the field's values, so that runs of one seed start alike; later draws are independent of it and of each
    other, but repeatable for the seed. Source: METHOD 2.2, 2.4.
    """

    def __init__(self, seed: int, channels: int, patch: int) -> None:
        self._field = NoiseField(seed, channels, patch)
        self._rng = np.random.default_rng([seed, 0xF5E5])
        self._started = False

    def at(self, grid: TokenGrid) -> NDArray[np.float64]:
        """Return (N, D): the field's noise at the first call, fresh noise later."""
        if not self._started:
            self._started = True
            return self._field.at(grid)
        return self._rng.standard_normal((len(grid), self._field.channels * self._field.patch**2))

    def details(self, grid: TokenGrid, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return (M, 3, D) fresh details."""
        return self._rng.standard_normal((int(np.sum(mask)), 3, self._field.channels * self._field.patch**2))
