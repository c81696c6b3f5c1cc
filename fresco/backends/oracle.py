"""A Gaussian random field whose exact denoiser is known for any mixed token set: the test oracle, and a teaching model.

The clean picture x ~ N(0, S) is a periodic field with a power-law spectrum. A token set sees y = P x (means over the
cells that exist) under unit noise, so E[x0 | z] is one matrix; the sampler is then linear, and the law of its output is
exact. Source: METHOD 2.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse

from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning, Denoiser
from fresco.errors import FrescoError
from fresco.grid import TokenGrid
from fresco.noise import haar
from fresco.sampler import sample
from fresco.schedule import checks, expanded, shift, transition_weights, unshift

Floats = NDArray[np.float64]
Wrap = Callable[[Denoiser, FrescoConfig], Denoiser]
"""Puts something around the denoiser of a run."""


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


def averaging(grid: TokenGrid) -> sparse.csr_array:
    """Return (N, n) float64, n = number of finest cells: each token's mean over the cells that exist."""
    cells = grid.cells().ravel()
    (seen,) = np.nonzero(cells >= 0)  # a sparse set of tokens leaves cells out
    share = 1 / np.bincount(cells[seen], minlength=len(grid))
    return sparse.csr_array((share[cells[seen]], (cells[seen], seen)), shape=(len(grid), len(cells)))


def is_periodic(grid: TokenGrid) -> bool:
    """Return whether the tokens are all those of one level and none is cut off: then their field is periodic, too."""
    level, (frames, rows, cols) = int(grid.level[0]), grid.shape
    edge = 1 << (grid.levels - level)
    whole = rows % edge == 0 and cols % edge == 0
    return whole and grid.is_uniform and len(grid) * edge**2 == frames * rows * cols


def folded(rows: int, cols: int, edge: int, exponent: float) -> Floats:
    """Return (rows/edge, cols/edge) the power of each frequency of the means over edge x edge cells, edge a divisor of both."""
    box = np.zeros((rows, cols))
    box[:edge, :edge] = 1 / edge**2
    kernel = np.fft.ifft2(spectrum(rows, cols, exponent) * np.abs(np.fft.fft2(box)) ** 2).real
    return np.asarray(np.fft.fft2(kernel[::edge, ::edge]).real)


class IdentityNoise:
    """Noise as identity columns, so that a linear sampler returns its own transfer matrix.

    Column j of the first block is the finest cell j of the padded canvas; a coarse token's row holds its Haar low-pass.
    Each fresh draw takes a block of its own. Source: METHOD 2.1, 2.4.

    Args:
        grid: any grid of the run.
        draws: how many fresh draws to make room for; 0 is the coherent field.

    Attributes:
        columns: number of columns D. on_canvas: (n,) the columns of the finest cells, row-major.
    """

    def __init__(self, grid: TokenGrid, draws: int = 0) -> None:
        frames, rows, cols = grid.shape
        edge = 1 << grid.levels
        self._padded = frames, -(-rows // edge) * edge, -(-cols // edge) * edge
        self._block = int(np.prod(self._padded))
        self.columns = self._block * (1 + draws)
        self._draws, self._used = draws, 0
        inside = np.zeros(self._padded, dtype=bool)
        inside[:, :rows, :cols] = True
        self.on_canvas = np.flatnonzero(inside)

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
        self._finest = int(np.prod(shape))
        self._truth: tuple[tuple[int, int], Floats] | None = None
        self._covered: tuple[bytes, list[tuple[NDArray[np.intp], Floats]]] = b"", []

    def token_shape(self, size: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """Return `size` itself, one token per pixel; None is the native shape."""
        return size or self.shape

    def sigmas(self, n: int, tokens: int, start: float = 1.0, end: float = 0.0) -> list[float]:
        """Return n+1 decreasing sigmas, uniform under shift alpha * sqrt(tokens / finest), not below sigma_min."""
        alpha = self.alpha * (tokens / self._finest) ** 0.5
        first, last = unshift(start, alpha), unshift(max(end, self.sigma_min), alpha)
        nodes = [shift(first + (last - first) * i / n, alpha) for i in range(n + 1)]
        return [start, *nodes[1:-1], max(end, self.sigma_min)]

    def covariances(self, grid: TokenGrid) -> list[tuple[NDArray[np.intp], Floats]]:
        """Return for each frame its tokens' places (M,) and the covariance (M, M) of the clean tokens; frames share nothing."""
        key = grid.level.tobytes() + grid.coord.tobytes()
        if self._covered[0] != key:
            frames, rows, cols = grid.shape
            if self._truth is None or self._truth[0] != (rows, cols):
                self._truth = (rows, cols), covariance(rows, cols, self.exponent)
            found, count, means = [], rows * cols, averaging(grid)
            for frame in range(frames):
                (at,) = np.nonzero(grid.coord[:, 0] == frame)
                own = means[at][:, frame * count : (frame + 1) * count]
                # A cell belongs to one token at most, so both products are sums over cells, not dense ones.
                found.append((at, np.asarray(own @ (own @ self._truth[1]).T)))
            self._covered = key, found
        return self._covered[1]

    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        """Return the exact E[eps - x0 | x], (N, D) float32.

        Means over whole cells of one size are a periodic field: a product in the frequency domain. Any other token set is a
        Cholesky solve, which costs less than the eigenvectors of a grid that changes at every promotion.
        """
        z = x.double().numpy()
        solve = self._filtered if is_periodic(grid) else self._solved
        return torch.as_tensor(solve(z, grid, sigma)).float()

    def _filtered(self, z: Floats, grid: TokenGrid, sigma: float) -> Floats:
        frames, rows, cols = grid.shape
        edge = 1 << int(grid.levels - grid.level[0])
        power = np.maximum(folded(rows, cols, edge, self.exponent), 0.0)
        gain = (sigma - (1 - sigma) * power) / ((1 - sigma) ** 2 * power + sigma**2)
        at = tuple(grid.coord.T)
        dense = np.empty((frames, rows // edge, cols // edge, z.shape[1]))
        dense[at] = z
        waves = np.fft.fft2(dense, axes=(1, 2))
        return np.asarray(np.fft.ifft2(gain[None, :, :, None] * waves, axes=(1, 2)).real[at])

    def _solved(self, z: Floats, grid: TokenGrid, sigma: float) -> Floats:
        out = np.empty_like(z)
        for at, clean in self.covariances(grid):
            seen = (1 - sigma) ** 2 * clean
            seen[np.diag_indices(len(at))] += sigma**2
            inner = linalg.cho_solve(linalg.cho_factor(seen, overwrite_a=True, check_finite=False), z[at], check_finite=False)
            out[at] = sigma * inner - (1 - sigma) * (clean @ inner)
        return out

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of one call, counted as two dense products with the tokens' modes however it is solved."""
        return 4.0 * tokens**2 * self.channels


@dataclass(frozen=True)
class OracleModel:
    """The random field as a model without weights: three colour channels, one pixel per token.

    The prompt has no meaning to it but names the field: the same text and seed give the same picture.
    """

    shape: tuple[int, int, int] = (1, 32, 32)
    exponent: float = 1.25
    name: str = "oracle"
    provenance: str = "closed form: Gaussian random field, spectrum (1 + k^2)^-1.25; no weights"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def bind(self, config: FrescoConfig) -> OracleDenoiser:
        """Return the exact denoiser; guidance and position frame mean nothing to it."""
        shape = config.size or self.shape
        if shape[0] * shape[1] * shape[2] > 4096:
            raise FrescoError(f"the oracle is exact by dense matrices, at most 4096 pixels; got {shape}, choose a smaller size")
        return OracleDenoiser(shape, self.exponent, channels=3)

    def encode(self, prompt: str) -> Conditioning:
        """Return an empty conditioning."""
        return Conditioning(prompt)

    def decode(self, latent: torch.Tensor) -> NDArray[np.uint8]:
        """Return (T, H, W, 3) uint8: two standard deviations either way span the range."""
        pixels = (latent.permute(1, 2, 3, 0) * 63.75 + 127.5).clamp(0, 255).round()
        return np.asarray(pixels.to(torch.uint8).cpu().numpy())

    preview = decode


def load(device: torch.device, dtype: torch.dtype | None = None, revision: str | None = None) -> OracleModel:
    """Return the oracle; it is exact, small, and always runs on the CPU in float32."""
    return OracleModel()


def transfer(
    config: FrescoConfig, shape: tuple[int, int, int], exponent: float, wrap: Wrap | None = None
) -> tuple[Floats, float]:
    """Return the run's transfer matrix (n, columns), rows row-major, and its cost in full-resolution steps.

    `wrap` puts something around the denoiser, a cache say; the run must stay linear and must not look at the picture.
    """
    start = TokenGrid.uniform(shape, config.levels, 0)
    fresh = config.noise == "fresh" or config.transition == "restart"
    draws = 3 * len(checks(config)) * config.levels + (config.head > 0)
    noise = IdentityNoise(start, draws=draws if fresh else 0)
    denoiser: Denoiser = OracleDenoiser(shape, exponent, channels=noise.columns)
    denoiser = wrap(denoiser, config) if wrap else denoiser
    cost = 0.0
    for step in sample(denoiser, Conditioning(""), config, noise=noise):
        cost += getattr(denoiser, "seen", len(step.grid)) / np.prod(shape)  # what stands around it knows what it saw
    return step.x_next.double().numpy()[step.grid_next.scan_order()], float(cost)


def flow_map(shape: tuple[int, int, int], exponent: float, sigma_min: float = 1e-3) -> Floats:
    """Return the exact transfer matrix of the full-resolution ODE from sigma 1 to sigma_min: what many steps approach.

    Along an eigenmode of power p the exact path is `z = sqrt((1-sigma)^2 p + sigma^2) eps`. Source: METHOD 2.4.
    """
    frames, rows, cols = shape
    power, modes = np.linalg.eigh(np.kron(np.eye(frames), covariance(rows, cols, exponent)))
    return np.asarray((modes * np.sqrt((1 - sigma_min) ** 2 * np.maximum(power, 0) + sigma_min**2)) @ modes.T)


def _root(matrix: NDArray[Any]) -> Floats:
    power, modes = np.linalg.eigh(matrix)
    return np.asarray((modes * np.sqrt(np.maximum(power, 0))) @ modes.T)


def law(
    config: FrescoConfig, shape: tuple[int, int, int] = (1, 16, 16), exponent: float = 1.25, wrap: Wrap | None = None
) -> dict[str, float]:
    """Return the exact law of a run's output against the random field, per pixel.

    Returns:
        `cost` in full-resolution steps; `distance`, E|x - x_ref|^2 to the picture the exact flow makes of the same
        noise; `frechet`, squared 2-Wasserstein distance of the two Gaussian laws; `variance`, the variance kept.

    Source: METHOD 2.4.
    """
    matrix, cost = transfer(config, shape, exponent, wrap)
    frames, rows, cols = shape
    count = frames * rows * cols
    exact = np.zeros_like(matrix)
    exact[:, IdentityNoise(TokenGrid.uniform(shape, config.levels, 0)).on_canvas] = flow_map(shape, exponent)
    truth, output = np.kron(np.eye(frames), covariance(rows, cols, exponent)), matrix @ matrix.T
    root = _root(truth)
    overlap = np.trace(_root(root @ output @ root))
    return {
        "cost": cost,
        "distance": float(((matrix - exact) ** 2).sum() / count),
        "frechet": float((np.trace(output) + np.trace(truth) - 2 * overlap) / count),
        "variance": float(np.trace(output) / count),
    }


def _switch(low: int, full: int, sigma: float, **changes: Any) -> FrescoConfig:
    return FrescoConfig(nfe=low + full, stages=(low, 0, full), switch=(sigma,), **changes)


def table(shape: tuple[int, int, int] = (1, 16, 16), exponent: float = 1.25) -> list[dict[str, Any]]:
    """Return the rows of METHOD 2.4, each computed by `sample()` itself with identity noise."""
    thirds: dict[str, Any] = {
        "nfe": 18, "stages": (8, 4, 6), "switch": (0.7, 0.45), "checks": 2, "ratio": 1 / 3, "selection": "random",
    }  # fmt: skip
    runs: dict[str, FrescoConfig] = {f"full, {n} steps": FrescoConfig.full(n) for n in (12, 10, 8, 6)}
    runs["8 low + 10 full, exact expansion at 0.7, field"] = _switch(8, 10, 0.7, transition="rewind")
    runs["the same, fresh details"] = _switch(8, 10, 0.7, transition="rewind", noise="fresh")
    runs["the same, restart (fresh re-noise)"] = _switch(8, 10, 0.7, transition="restart")
    runs["the same, plain replication, no noise added"] = _switch(8, 10, 0.7, transition="carry", expansion="nearest")
    runs["the same, bilinear, no noise added"] = _switch(8, 10, 0.7, transition="carry", expansion="bilinear")
    for transition in ("renoise", "renoise_x0"):
        for noise in ("field", "fresh"):
            runs[f"8 low + 10 full at 0.7, {transition}, {noise}"] = _switch(8, 10, 0.7, transition=transition, noise=noise)
    for sigma in (0.8, 0.7):
        runs[f"8 low + 10 full at {sigma}, carry, field"] = _switch(8, 10, sigma, transition="carry")
    runs["8 low + 10 full at 0.7, carry, fresh"] = _switch(8, 10, 0.7, transition="carry", noise="fresh")
    runs["4 low + 5 full, exact expansion at 0.6"] = _switch(4, 5, 0.6, transition="rewind")
    runs["4 low + 5 full at 0.5, renoise_x0 (one more low call)"] = _switch(5, 5, 0.5, transition="renoise_x0")
    for transition in ("renoise", "rewind", "carry", "renoise_x0", "restart"):
        for noise in ("field", "fresh"):
            if (transition, noise) != ("restart", "field"):
                name = f"8 low + 4 mixed + 6 full, thirds, {transition}, {noise}"
                runs[name] = FrescoConfig(**thirds, transition=transition, noise=noise)
    return [{"run": name} | law(config, shape, exponent) for name, config in runs.items()]


def proposition(
    shape: tuple[int, int, int] = (1, 16, 16), exponent: float = 1.25, points: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
) -> list[dict[str, float]]:
    """Return Proposition 1 measured on the exact flow: re-noise X(s) to e with the field, or with fresh noise.

    `X_e = a X(s) + b xi`, a = beta and b = alpha of METHOD 2.2 for the same noise. Fresh xi: `E|X~ - X(e)|^2 >= b^2 d`.
    The field's xi is the noise X started from: never above the fresh one. Values are per pixel (d = 1).

    Source: paper, Proposition 1, Eq. 5-6.
    """
    frames, rows, cols = shape
    power, _ = np.linalg.eigh(np.kron(np.eye(frames), covariance(rows, cols, exponent)))
    power = np.maximum(power, 0)

    def state(sigma: float) -> Floats:  # transfer of each eigenmode from eps to X(sigma)
        return np.asarray(np.sqrt((1 - sigma) ** 2 * power + sigma**2))

    found = []
    for sigma in points:
        landing = expanded(sigma)
        a, b = transition_weights(sigma, landing)
        rest = a * state(sigma) - state(landing)
        found.append({
            "sigma": sigma, "landing": landing, "bound": b**2, "fresh": float(np.mean(rest**2) + b**2),
            "field": float(np.mean((rest + b) ** 2)),
        })  # fmt: skip
    return found
