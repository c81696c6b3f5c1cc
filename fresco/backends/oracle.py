"""A Gaussian random field whose exact denoiser is known for any mixed token set: the test oracle, and a teaching model.

The clean picture x ~ N(0, S) is a periodic field with a power-law spectrum. A token set sees y = P x (means over the
cells that exist) under unit noise, so E[x0 | z] is one matrix; the sampler is then linear, and the law of its output is
exact. Source: METHOD 2.4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.noise import haar
from fresco.schedule import shift, unshift

Floats = NDArray[np.float64]


def spectrum(rows: int, cols: int, exponent: float) -> Floats:
    """Return (rows, cols) the power of each 2-D frequency, `(1 + k^2)^-exponent`, k in cycles per image, mean 1."""
    k2 = (np.fft.fftfreq(rows) * rows)[:, None] ** 2 + (np.fft.fftfreq(cols) * cols)[None] ** 2
    power = (1 + k2) ** -exponent
    return np.asarray(power / power.mean())


def covariance(rows: int, cols: int, exponent: float) -> Floats:
    """Return (n, n), n = rows*cols: the covariance of the periodic field, unit pixel variance."""
    kernel = np.fft.ifft2(spectrum(rows, cols, exponent)).real
    row, col = (a.ravel() for a in np.indices((rows, cols)))
    return np.asarray(kernel[(row[:, None] - row) % rows, (col[:, None] - col) % cols])


def averaging(grid: TokenGrid) -> Floats:
    """Return (N, n), n = number of finest cells: each token's mean over the cells that exist."""
    cells = grid.cells().ravel()
    matrix = np.zeros((len(grid), len(cells)))
    matrix[cells, np.arange(len(cells))] = 1
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))


class IdentityNoise:
    """Noise as identity columns, so that a linear sampler returns its own transfer matrix.

    Column j of the first block is the finest cell j of the padded canvas; a coarse token's row holds its Haar low-pass.
    Each fresh draw takes a block of its own. Source: METHOD 2.1, 2.4.

    Args:
        grid: any grid of the run.
        draws: how many fresh draws to make room for; 0 is the coherent field.
    """

    def __init__(self, grid: TokenGrid, draws: int = 0) -> None:
        frames, rows, cols = grid.shape
        edge = 1 << grid.levels
        self._padded = frames, -(-rows // edge) * edge, -(-cols // edge) * edge
        self._block = int(np.prod(self._padded))
        self.columns = self._block * (1 + draws)
        self._draws, self._used = draws, 0

    def _field(self, frame: Any, row: Any, col: Any, halvings: int) -> Floats:
        """Return (M, columns): unit rows over the finest cells below each coarse one."""
        out = np.zeros((len(row), *self._padded))
        edge = 1 << halvings
        for m in range(len(row)):
            out[m, frame[m], row[m] * edge : (row[m] + 1) * edge, col[m] * edge : (col[m] + 1) * edge] = 1 / edge
        return self._wide(out.reshape(len(row), -1), 0)

    def _wide(self, rows: Floats, block: int) -> Floats:
        out = np.zeros((len(rows), self.columns))
        out[:, block * self._block : block * self._block + rows.shape[1]] = rows
        return out

    def _fresh(self, count: int) -> Floats:
        self._used += 1
        if self._used > self._draws:
            raise ValueError(f"IdentityNoise has room for {self._draws} fresh draws; give it more")
        return self._wide(np.eye(count), self._used)

    def at(self, grid: TokenGrid) -> Floats:
        """Return (N, columns): the field's rows, or a fresh block after the first call."""
        if self._draws and self._started:
            return self._fresh(len(grid))
        self._started = True
        out = np.empty((len(grid), self.columns))
        for level in np.unique(grid.level):
            at = grid.level == level
            frame, row, col = grid.coord[at].T
            out[at] = self._field(frame, row, col, int(grid.levels - level))
        return out

    _started = False

    def details(self, grid: TokenGrid, mask: NDArray[np.bool_]) -> Floats:
        """Return (M, 3, columns): Haar details of the field, or fresh unit columns."""
        where = np.flatnonzero(mask)
        if self._draws:
            return self._fresh(3 * len(where)).reshape(len(where), 3, -1)
        out = np.empty((len(where), 3, self.columns))
        for i, token in enumerate(where):
            frame, row, col = grid.coord[token]
            dy, dx = (a.ravel() for a in np.indices((2, 2)))
            below = self._field(np.full(4, frame), 2 * row + dy, 2 * col + dx, int(grid.levels - grid.level[token]) - 1)
            out[i] = haar(np.moveaxis(below.reshape(2, 2, -1), -1, 0))[1]
        return out


class OracleDenoiser:
    """The exact velocity of a Gaussian random field seen through any token set; tokens are single pixels.

    `z = (1-sigma) y + sigma n`, `Cov(y) = C = P S P^T`, so `v = (sigma - (1-sigma) C) ((1-sigma)^2 C + sigma^2)^-1 z`.
    Channels are independent copies. Source: METHOD 2.4.

    Args:
        shape: (frames, rows, cols) of the native finest grid; frames are independent.
        exponent: of the spectrum `(1 + k^2)^-exponent`.
        channels: number of columns D.
        alpha: shift of the sigma grid at the finest token count; it scales with the square root of the count.
        sigma_min: where sigma grids end.
    """

    patch = 1
    device = torch.device("cpu")

    def __init__(
        self, shape: tuple[int, int, int] = (1, 16, 16), exponent: float = 1.25, channels: int = 1, alpha: float = 2.0,
        sigma_min: float = 1e-3,
    ) -> None:  # fmt: skip
        self.shape, self.exponent, self.channels = shape, exponent, channels
        self.alpha, self.sigma_min = alpha, sigma_min
        self._modes: dict[bytes, tuple[Floats, Floats]] = {}
        self._finest = int(np.prod(shape))

    def token_shape(self, size: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """Return `size` itself, one token per pixel; None is the native shape."""
        return size or self.shape

    def sigmas(self, n: int, tokens: int, start: float = 1.0, end: float = 0.0) -> list[float]:
        """Return n+1 decreasing sigmas, uniform under shift alpha * sqrt(tokens / finest), not below sigma_min."""
        alpha = self.alpha * (tokens / self._finest) ** 0.5
        first, last = unshift(start, alpha), unshift(max(end, self.sigma_min), alpha)
        nodes = [shift(first + (last - first) * i / n, alpha) for i in range(n + 1)]
        return [start, *nodes[1:-1], max(end, self.sigma_min)]

    def modes(self, grid: TokenGrid) -> tuple[Floats, Floats]:
        """Return eigenvalues (N,) and eigenvectors (N, N) of the covariance of the clean tokens of a grid."""
        key = grid.level.tobytes() + grid.coord.tobytes()
        if key not in self._modes:
            frames, rows, cols = grid.shape
            field = np.kron(np.eye(frames), covariance(rows, cols, self.exponent))
            seen = averaging(grid)
            self._modes = {**dict(list(self._modes.items())[-7:]), key: np.linalg.eigh(seen @ field @ seen.T)}
        return self._modes[key]

    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        """Return the exact E[eps - x0 | x], (N, D) float32."""
        power, modes = self.modes(grid)
        power = np.maximum(power, 0.0)
        gain = (sigma - (1 - sigma) * power) / ((1 - sigma) ** 2 * power + sigma**2)
        return torch.as_tensor(modes @ (gain[:, None] * (modes.T @ x.double().numpy()))).float()

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of one call: two dense products with the modes."""
        return 4.0 * tokens**2 * self.channels
