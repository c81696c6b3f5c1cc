"""Sigmas, shifts, the split into stages and the checks. Standard library only. Source: METHOD 2.1, 2.6."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fresco.errors import FrescoError

if TYPE_CHECKING:
    from fresco.config import FrescoConfig

SigmaGrid = Callable[[int, int, float, float], list[float]]
"""(n, tokens, start, end) -> n + 1 decreasing sigmas: `Denoiser.sigmas`."""

ESTIMATES_AT_LANDING = ("renoise_x0", "restart")
"""Transitions that noise the clean estimate anew, and so spend a promoting call on a fresh estimate, without a step."""

STAYS = ("carry", "redraw")
"""Transitions that leave sigma where it is; the others raise it to `landing`."""

PAPER_SPLITS = {30: (12, 9, 9), 18: (6, 7, 5), 11: (5, 2, 4)}  # recovered from the published FLOPs, METHOD 1


def shift(u: float, alpha: float) -> float:
    """Return the shifted sigma `alpha u / (1 + (alpha - 1) u)` of unshifted time u in [0, 1]; alpha > 0."""
    return alpha * u / (1 + (alpha - 1) * u)


def unshift(sigma: float, alpha: float) -> float:
    """Return the unshifted time of a shifted sigma: the inverse of `shift`."""
    return sigma / (alpha - (alpha - 1) * sigma)


def expanded(sigma: float) -> float:
    """Return the noise level after one exact expansion: `2 sigma / (1 + sigma)`. Source: METHOD 2.1."""
    return 2 * sigma / (1 + sigma)


def unexpanded(sigma: float) -> float:
    """Return the noise level whose expansion lands on sigma: `sigma / (2 - sigma)`; the inverse of `expanded`."""
    return sigma / (2 - sigma)


def landing(config: FrescoConfig, sigma: float) -> float:
    """Return the noise level after a promotion at sigma: its shift by `config.landing`, or sigma itself.

    A shift by 2 is `expanded`; by Z it is `Z sigma / (1 + (Z - 1) sigma)`, where the noise-to-signal ratio is Z times as
    high. Source: METHOD 2.1; RALU's NT matching (METHOD 3) in terms of the noise level.
    """
    return sigma if config.transition in STAYS else shift(sigma, config.landing)


def takeoff(config: FrescoConfig, sigma: float) -> float:
    """Return the noise level whose promotion lands on sigma: the inverse of `landing`."""
    return sigma if config.transition in STAYS else unshift(sigma, config.landing)


def default_split(nfe: int) -> tuple[int, int, int]:
    """Return the default model calls in (low, mixed, full).

    The paper's three splits where they apply; else low = round(.4 n), full = round(.3 n), the rest mixed, each >= 1.
    Source: METHOD 2.6.

    Raises:
        ValueError: below three calls.
    """
    if nfe < 3:
        raise ValueError(f"nfe {nfe} cannot be split into three stages; use at least 3")
    if nfe in PAPER_SPLITS:
        return PAPER_SPLITS[nfe]
    low, full = max(1, round(0.4 * nfe)), max(1, round(0.3 * nfe))
    return low, nfe - low - full, full


@dataclass(frozen=True)
class Check:
    """One look at the tokens, after model call `step`.

    Attributes:
        step: index of the model call it follows.
        targets: per level, the cumulative fraction of that level's cells to have promoted after it (`ratio` runs).
        closing: whether all that remains is promoted (the end of the mixed stage).
    """

    step: int
    targets: tuple[float, ...]
    closing: bool = False


def checks(config: FrescoConfig) -> dict[int, Check]:
    """Return the checks of a run by the step they follow; none for a full run.

    The first check follows the last low step; the others are spaced evenly over the mixed stage; after the last
    mixed step all that remains is promoted. The target of level 0 is `ratio` at the first check and rises linearly
    to 1; each further level lags by one check, so that a token may be promoted again. Source: METHOD 2.6.
    """
    low, mixed, _ = config.split
    if low == 0:
        return {}
    low += config.head
    count = mixed if config.checks == "every" else min(int(config.checks), mixed)
    ratio = 0.0 if config.ratio is None else config.ratio
    level0 = [ratio + (1 - ratio) * j / count for j in range(count)]
    found = {}
    for j in range(count):
        step = low - 1 + (j * mixed) // count
        found[step] = Check(step, tuple(level0[j - lag] if j >= lag else 0.0 for lag in range(config.levels)))
    end = low + mixed - 1
    return found | {end: Check(end, (1.0,) * config.levels, closing=True)}


def stage(config: FrescoConfig, step: int) -> str:
    """Return the stage of model call `step`: "low", "mixed" or "full"."""
    low, mixed, _ = config.split
    if step < config.head:
        return "full"
    return "low" if step < config.head + low else "mixed" if step < config.head + low + mixed else "full"


Leg = tuple[float, float]
"""(sigma of a model call, sigma at the end of its Euler step)."""


def plan(config: FrescoConfig, sigmas: SigmaGrid, coarse: int, fine: int) -> list[Leg]:
    """Return the nfe legs of a run, as they stand if the first check promotes something.

    With `s` the model's grid for the whole NFE at the fine token count, a full run is `s`. Transitions that raise
    sigma run the low stage on the noise levels that land on `s_i`, so that the first landing is exactly `s_low`; `carry`
    runs it on `s` itself. `renoise_x0` and `restart` spend their last low call on an estimate at the switch: a leg of
    length zero. A head runs on `s` and goes down as a promotion goes up. Source: METHOD 2.6.

    Args:
        config: the run's settings.
        sigmas: the model's grid, `Denoiser.sigmas`.
        coarse: number of tokens of the coarsest uniform grid.
        fine: number of tokens of the finest uniform grid.
    """
    low, n, head = config.split[0], config.nfe, config.head
    s = sigmas(n, fine, 1.0, 0.0)
    if low == 0:
        return _legs(s)
    start = takeoff(config, s[head]) if head else 1.0
    end = config.switch[0] if config.switch else takeoff(config, s[head + low])
    if config.transition in ESTIMATES_AT_LANDING:
        legs = [*_legs(_spaced(sigmas, low - 1, coarse, start, end)), (end, end)]
    elif config.switch:
        legs = _legs(_spaced(sigmas, low, coarse, start, end))
    else:
        legs = _legs([takeoff(config, x) for x in s[head : head + low + 1]])
    # The last leg of the head ends where its state lives; the sampler then goes down to `start`.
    legs = _legs(s[: head + 1]) + legs
    if config.switch:
        return legs + respaced(config, sigmas, fine, head + low, landing(config, end))
    return legs + _legs(s[head + low :])


def respaced(config: FrescoConfig, sigmas: SigmaGrid, fine: int, step: int, sigma: float) -> list[Leg]:
    """Return the legs from `step` on for a state that has landed at `sigma`. Source: METHOD 2.6.

    Raises:
        FrescoError: where an explicit switch does not lie below the landing.
    """
    low, mixed, full = config.split
    end = config.head + low + mixed
    if config.switch is None or len(config.switch) < 2 or step >= end:
        return _legs(_spaced(sigmas, config.nfe - step, fine, sigma, 0.0))
    stop = config.switch[1]
    landed = landing(config, stop)
    still = config.transition in ESTIMATES_AT_LANDING and end - step > 1  # the closing call takes no step
    head = _legs(_spaced(sigmas, end - step - still, fine, sigma, stop)) + [(stop, stop)] * still
    return head + _legs(_spaced(sigmas, full, fine, landed, 0.0))


def _legs(nodes: Sequence[float]) -> list[Leg]:
    return list(itertools.pairwise(nodes))


def _spaced(sigmas: SigmaGrid, n: int, tokens: int, start: float, end: float) -> list[float]:
    if n and not end < start:
        raise FrescoError(f"a stage of {n} step(s) from sigma {start:.3f} must end below it; switch says {end:.3f}, lower it")
    return list(sigmas(n, tokens, start, end)) if n else [start]


def transition_weights(sigma: float, sigma_next: float) -> tuple[float, float]:
    """Return (beta, alpha) of Eq. 4, `z' = beta z + alpha eps`, with eps the *same* noise that z holds.

    `beta = (1 - sigma') / (1 - sigma)`, `alpha = sigma' - beta sigma`. Source: paper Eq. 4; METHOD 2.2 derives them.

    Raises:
        ValueError: at sigma = 1, where a state holds no signal to scale.
    """
    if sigma >= 1:
        raise ValueError(f"a state at sigma {sigma:g} is noise alone; re-noise from sigma below 1")
    beta = (1 - sigma_next) / (1 - sigma)
    return beta, sigma_next - beta * sigma


def fresh_weights(sigma: float, sigma_next: float) -> tuple[float, float]:
    """Return (beta, alpha) for *independent* eps: the variances add, `alpha**2 = sigma'**2 - (beta sigma)**2`.

    Source: Proposition 1 (the independent case); METHOD 2.2, `restart`.

    Raises:
        ValueError: at sigma = 1, or where sigma' < sigma.
    """
    beta, _ = transition_weights(sigma, sigma_next)
    if sigma_next < sigma:
        raise ValueError(f"re-noising goes up: sigma' {sigma_next:g} must not be below sigma {sigma:g}")
    return beta, (sigma_next**2 - (beta * sigma) ** 2) ** 0.5
