"""Fresco's sampler: one generator is the whole algorithm, baselines and ablations included. Source: paper; METHOD 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fresco import schedule
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning, Denoiser, Noise
from fresco.grid import TokenGrid
from fresco.noise import FreshNoise, NoiseField
from fresco.selection import Choice, History, Scene, select
from fresco.tokens import Layout
from fresco.transition import Path, Promoter


@dataclass(frozen=True, eq=False)
class SamplerStep:
    """One model call and what followed it.

    Attributes:
        step: index of the call, 0 to nfe - 1.
        stage: "low", "mixed" or "full".
        sigma: noise level of the call; `sigma_next`: of `x_next`, after the transition.
        grid: tokens of the call; `grid_next`: of `x_next`.
        x, x0: (N, D) float32 state and clean estimate of the call.
        variance: (N,) float32 token variance after the call; NaN where undefined.
        selected: (N,) bool, tokens promoted after the call.
        check: whether tokens were looked at; `closing`: whether all that remained was promoted.
        tau, ratio: the threshold and the fraction of expandable tokens it takes; one is given, one derived; NaN where
            undefined.
        x_next: (N', D) float32 state after the Euler step and the transition.
    """

    step: int
    stage: str
    sigma: float
    sigma_next: float
    grid: TokenGrid
    grid_next: TokenGrid
    x: torch.Tensor
    x0: torch.Tensor
    variance: torch.Tensor
    selected: NDArray[np.bool_]
    check: bool
    closing: bool
    tau: float
    ratio: float
    x_next: torch.Tensor


def sample(
    denoiser: Denoiser, cond: Conditioning, config: FrescoConfig, *, noise: Noise | None = None
) -> Iterator[SamplerStep]:
    """Sample one picture, yielding every step: sketch coarse, watch each token, expand those that have settled.

    Denoise; put the clean estimate into the history; measure and select; Euler step; transition. A run at full
    resolution is the same function with `FrescoConfig.full`.

    Args:
        denoiser: the velocity model, bound to guidance and position frame.
        cond: the encoded prompt.
        config: the settings of the run.
        noise: replaces the field of `config.seed`; with identity columns, D = number of finest cells, the last
            `x_next` is the transfer matrix of a linear denoiser.

    Yields:
        `config.nfe` steps; the last `x_next`, (N, D) on the finest grid, is the clean latent.

    Raises:
        FrescoError: where a transition or rule cannot do what the settings ask; the message says what to change.
    """
    shape = denoiser.token_shape(config.size)
    fine = TokenGrid.uniform(shape, config.levels, config.levels)
    coarse = TokenGrid.uniform(shape, config.levels, 0)
    grid = fine if config.is_full or config.head else coarse
    legs = schedule.plan(config, denoiser.sigmas, len(coarse), len(fine))
    checks = schedule.checks(config)

    layout = Layout(denoiser.channels, denoiser.patch)
    coherent = config.noise == "field" and config.transition != "restart"
    noise = noise or (NoiseField if coherent else FreshNoise)(config.seed, denoiser.channels, denoiser.patch)
    history, path = History(config.signal, config.window), Path()
    promote = Promoter(
        config.transition, config.expansion, config.landing, layout, noise, coherent, config.detail_gain, history, path
    )  # fmt: skip
    x = torch.as_tensor(noise.at(grid)).to(denoiser.device, torch.float32)

    for step in range(config.nfe):
        sigma, sigma_next = legs[step]
        velocity = denoiser(x, grid, sigma, cond)
        x0 = x - sigma * velocity
        history.push(x, x0)
        variance = history.variance()

        check, choice = checks.get(step), Choice(np.zeros(len(grid), dtype=bool))
        if check is not None:
            scene = Scene(grid, variance.cpu().numpy(), x0, layout, denoiser, config.seed)
            choice = select(config, check, scene)
            if config.transition in schedule.ESTIMATES_AT_LANDING and choice.mask.any():
                sigma_next = sigma  # this call is spent on the estimate that is noised anew

        x_next = x + (sigma_next - sigma) * velocity
        if config.transition == "rewind":
            path.nodes += [(sigma, x), (sigma_next, x_next)]

        grid_next, x0_next, mask = grid, x0, choice.mask
        while mask.any():  # once, but for a closing check with several levels to go
            grid_next, sigma_next, x_next, x0_next = promote(grid_next, mask, sigma_next, x_next, x0_next)
            mask = grid_next.expandable & (check is not None and check.closing)
        if step + 1 == config.head:  # high-low-high: down to the sketch
            grid_next, sigma_next = coarse, legs[step + 1][0]
            x_next = promote.shrink(grid, coarse, sigma_next, x0)
        if step + 1 < config.nfe:
            if abs(sigma_next - legs[step + 1][0]) > 1e-9:
                legs[step + 1 :] = schedule.respaced(config, denoiser.sigmas, len(fine), step + 1, sigma_next)
            sigma_next = legs[step + 1][0]

        yield SamplerStep(
            step, schedule.stage(config, step), sigma, sigma_next, grid, grid_next, x, x0, variance, choice.mask,
            check is not None, check is not None and check.closing, choice.tau, choice.ratio, x_next,
        )  # fmt: skip
        x, grid = x_next, grid_next
