"""Proposition 1, measured: what re-noising with the field keeps of the same-seed path, and fresh noise loses.

`X_e = a X(s) + b xi` takes a state at sigma s back up to e. With xi independent, `E|X_e - X(e)|^2 >= b^2 d`; with the noise
the run began from it is never more. Source: paper, Proposition 1, Eq. 5-6; METHOD 1, 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fresco.backends import oracle
from fresco.config import FrescoConfig
from fresco.denoiser import Model
from fresco.grid import TokenGrid, coarse_shape
from fresco.lab.calls import Call
from fresco.noise import NoiseField
from fresco.sampler import sample
from fresco.schedule import expanded, transition_weights
from fresco.transition import Path


@dataclass(frozen=True)
class PropositionRow:
    """One state taken back up; distances are squared and per number of the state (d = 1).

    Attributes:
        step: the model call whose state it is, or the row's place in a table.
        sigma_from, sigma_to: s and e.
        unified: distance of the field's re-noised state to the run's own state at e.
        fresh: the same with fresh noise, mean of several draws.
        bound: `b^2`, which no fresh noise can beat in expectation.
    """

    step: int
    sigma_from: float
    sigma_to: float
    unified: float
    fresh: float
    bound: float


def along(model: Model, prompt: str, config: FrescoConfig, *, draws: int = 8) -> list[PropositionRow]:
    """Return the rows of `follow`."""
    return [row for row in follow(model, prompt, config, draws=draws) if isinstance(row, PropositionRow)]


def follow(model: Model, prompt: str, config: FrescoConfig, *, draws: int = 8) -> Iterator[Call | PropositionRow]:
    """Yield every model call, and a row for each step of a run whose own path can be read where it would be re-noised to.

    A state at s goes up to `2 s / (1 + s)`, where an expansion lands. The run's own state there is read between its
    steps, linearly, and only as far back as its tokens have been the same: so none for the first step on a new grid,
    and most for a full-resolution run of many steps.

    Args:
        model, prompt, config: the run.
        draws: fresh fields that the fresh distance is averaged over.
    """
    denoiser = model.bind(config)
    field = NoiseField(config.seed, denoiser.channels, denoiser.patch)
    rng = np.random.default_rng([config.seed, 0x9A07])
    grid: TokenGrid | None = None
    path, eps = Path(), torch.empty(0)
    for step in sample(denoiser, model.encode(prompt), config):
        yield Call.after(step, config)
        if step.grid is not grid:
            grid, path, eps = step.grid, Path(), torch.as_tensor(field.at(step.grid)).to(step.x)
        path.nodes.append((step.sigma, step.x))
        landing = expanded(step.sigma)
        if step.sigma >= 1 or landing > path.nodes[0][0] or len(path.nodes) < 2:
            continue
        a, b = transition_weights(step.sigma, landing)
        rest = a * step.x - path.at(landing)
        apart = [rest + b * torch.as_tensor(rng.standard_normal(tuple(rest.shape))).to(rest) for _ in range(draws)]
        fresh = sum(float(x.square().mean()) for x in apart) / draws
        unified = float((rest + b * eps).square().mean())
        yield PropositionRow(step.step, step.sigma, landing, unified, fresh, b**2)


def exact(
    shape: tuple[int, int, int] = (1, 16, 16), exponent: float = 1.25,
    points: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
) -> list[PropositionRow]:  # fmt: skip
    """Return the exact expectations on the oracle's own flow. Source: METHOD 2.4."""
    return [
        PropositionRow(i, row["sigma"], row["landing"], row["field"], row["fresh"], row["bound"])
        for i, row in enumerate(oracle.proposition(shape, exponent, points))
    ]


def field_pyramid(seed: int, rows: int, cols: int, levels: int, channel: int = 0) -> list[NDArray[np.float64]]:
    """Return the noise seen at each level, coarsest first: one field, each level the Haar low-pass of the next.

    Args:
        seed: of the field.
        rows, cols: latent pixels of the finest level.
        levels: number of doublings.
        channel: latent channel.

    Returns:
        levels + 1 arrays (rows_l, cols_l) of unit noise.
    """
    field = NoiseField(seed, channel + 1, 1)
    found = []
    for halvings in range(levels, -1, -1):
        _, height, width = coarse_shape((1, rows, cols), halvings)
        row, col = np.arange(height)[:, None], np.arange(width)
        found.append(np.asarray(field.pixels(0, row, col, halvings)[..., channel], dtype=np.float64))
    return found
