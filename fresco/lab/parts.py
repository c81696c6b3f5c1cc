"""One parent token taken apart into its four children: what they got from the parent, and what from the field.

Whatever the transition, the children's latent pixels are `H4/2` of a low-pass and three details; the low-pass is the
parent's clean estimate and its noise. Source: METHOD 2.1, 2.2; paper Eq. 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fresco.config import FrescoConfig
from fresco.denoiser import Denoiser, Model
from fresco.errors import FrescoError
from fresco.lab.calls import Call
from fresco.noise import NoiseField
from fresco.sampler import SamplerStep, sample
from fresco.tokens import Layout

Floats = NDArray[np.float32]
DETAILS = ("horizontal", "vertical", "diagonal")


@dataclass(frozen=True, eq=False)
class Parts:
    """A parent and its children in latent pixels: C channels, p x p pixels a token, (row, col) row first.

    `clean + noise + details.sum(0) == block`, and `up == clean + noise`.

    Attributes:
        step: the model call after which it was promoted; token: its index on that step's grid.
        coord: (frame, row, col) of the parent in cells of its own level; level: that level.
        sigma_from: noise level of the model call. sigma: noise level of the children.
        parent: (C, p, p) the parent's state at the call, `(1 - sigma_from) x0 + sigma_from eps`.
        x0, eps: (C, p, p) its clean and its noise estimate, which the Euler step leaves as they are.
        up: (C, 2p, 2p) the children's low-pass, each pixel of it the mean of a 2 x 2 block.
        clean: (C, 2p, 2p) the part of `up` that is the clean estimate, weighted by 1 - sigma.
        noise: (C, 2p, 2p) the rest of `up`: half of sigma times eps, where the transition keeps the parent's noise.
        details: (3, C, 2p, 2p) horizontal, vertical, diagonal, as they lie in the children.
        field: (3, C, p, p) the unit details of the noise field under the parent; the children of the hadamard
            expansion hold them times sigma and the detail gain, unless noise is fresh.
        children: (4, C, p, p) the children's states, row-major. block: (C, 2p, 2p) the same as one picture.
    """

    step: int
    token: int
    coord: tuple[int, int, int]
    level: int
    sigma_from: float
    sigma: float
    parent: Floats
    x0: Floats
    eps: Floats
    up: Floats
    clean: Floats
    noise: Floats
    details: Floats
    field: Floats
    children: Floats
    block: Floats


def expansion_of(denoiser: Denoiser, config: FrescoConfig, step: SamplerStep, token: int) -> Parts:
    """Return a token that this step promoted, taken apart.

    Args:
        denoiser: the run's.
        config: the run's settings.
        step: a step that promoted the token.
        token: index on `step.grid`.

    Raises:
        FrescoError: where the token was not promoted, lost children to the canvas border, or was expanded twice at once.
    """
    layout = Layout(denoiser.channels, denoiser.patch)
    at = _children(step, token)
    children = step.x_next[torch.as_tensor(at, device=step.x_next.device)][None].float().cpu()
    low, details = layout.haar_down(children)
    up = 0.5 * layout.replicate(low)
    x, x0 = (t[token : token + 1].float().cpu() for t in (step.x, step.x0))
    eps = (x - (1 - step.sigma) * x0) / max(step.sigma, 1e-12)
    clean = (1 - step.sigma_next) * layout.replicate(x0)
    alone = torch.zeros_like(details).expand(3, -1, -1).clone()
    for k in range(3):
        alone[k, k] = details[0, k]
    high = layout.haar_up(torch.zeros(3, layout.dim), alone)
    mask = np.zeros(len(step.grid), dtype=bool)
    mask[token] = True
    field = NoiseField(config.seed, denoiser.channels, denoiser.patch).details(step.grid, mask)
    frame, row, col = (int(c) for c in step.grid.coord[token])
    return Parts(
        step=step.step, token=token, coord=(frame, row, col), level=int(step.grid.level[token]),
        sigma_from=step.sigma, sigma=step.sigma_next,
        parent=layout.pixels(x)[0].numpy(), x0=layout.pixels(x0)[0].numpy(), eps=layout.pixels(eps)[0].numpy(),
        up=_block(up, layout)[0], clean=_block(clean, layout)[0], noise=_block(up - clean, layout)[0],
        details=_block(high, layout), field=layout.pixels(torch.as_tensor(field[0])).float().numpy(),
        children=layout.pixels(children)[0].numpy(), block=_block(children, layout)[0],
    )  # fmt: skip


def _block(quarters: torch.Tensor, layout: Layout) -> Floats:
    """Return (M, C, 2p, 2p) of four tokens (M, 4, D), row-major."""
    pixels = layout.pixels(quarters).numpy()
    rows = [np.concatenate([pixels[:, 2 * row], pixels[:, 2 * row + 1]], axis=-1) for row in (0, 1)]
    return np.asarray(np.concatenate(rows, axis=-2), dtype=np.float32)


def _children(step: SamplerStep, token: int) -> list[int]:
    """Return the indices on the next grid of a promoted token's four children, row-major."""
    if not 0 <= token < len(step.grid):
        raise FrescoError(f"token {token} does not exist: step {step.step} has tokens 0 to {len(step.grid) - 1}")
    level, (frame, row, col) = step.grid.level[token], step.grid.coord[token]
    wanted = [(frame, 2 * row + dy, 2 * col + dx) for dy in (0, 1) for dx in (0, 1)]
    next_ = step.grid_next
    (same,) = np.nonzero(next_.level == level + 1)
    where = {tuple(c): int(i) for c, i in zip(next_.coord[same].tolist(), same, strict=True)}
    found = [where[c] for c in wanted if c in where]
    if len(found) == 4:
        return found
    if not (step.selected[token] or (step.closing and step.grid.expandable[token])):
        raise FrescoError(f"token {token} was not promoted in step {step.step}; choose one that was")
    if not found:
        raise FrescoError(f"token {token} was expanded twice in step {step.step}; choose another, or use levels 1")
    raise FrescoError(f"token {token} lies at the border and has {len(found)} children; choose one with four")


def first_expansion(model: Model, prompt: str, config: FrescoConfig, cell: tuple[int, int, int] | None = None) -> Parts:
    """Return what `follow` ends with."""
    return next(found for found in follow(model, prompt, config, cell) if isinstance(found, Parts))


def follow(model: Model, prompt: str, config: FrescoConfig, cell: tuple[int, int, int] | None = None) -> Iterator[Call | Parts]:
    """Yield every model call up to the first promotion of a run, or of the token over one place, then that taken apart.

    Args:
        model, prompt, config: the run.
        cell: (frame, row, col) of a finest cell; None takes the first promoted token that has four children.

    Raises:
        FrescoError: where no such token is promoted, or it is at the border.
    """
    denoiser = model.bind(config)
    for step in sample(denoiser, model.encode(prompt), config):
        yield Call.after(step, config)
        if cell is not None:
            shape = step.grid.shape
            if len(cell) != 3 or not all(0 <= at < side for at, side in zip(cell, shape, strict=True)):
                raise FrescoError(f"cell {cell} is not on the grid of {shape} (frames, rows, cols)")
            token = int(step.grid.cells()[tuple(cell)])
            if step.selected[token]:
                yield expansion_of(denoiser, config, step, token)
                return
            continue
        for token in np.flatnonzero(step.selected).tolist():
            try:
                found = expansion_of(denoiser, config, step, token)
            except FrescoError:  # at the border, or expanded twice: another one will do
                continue
            yield found
            return
    raise FrescoError(
        "the run promotes no token that can be taken apart; use a run with a low stage, tau higher or ratio above 0"
    )
