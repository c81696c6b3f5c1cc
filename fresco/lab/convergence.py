"""Does token variance say which tokens are finished? Its rank correlation with the error that truly remains.

Source: METHOD 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy import stats

from fresco.config import SIGNALS, FrescoConfig
from fresco.denoiser import Model
from fresco.lab.calls import Call
from fresco.sampler import SamplerStep, sample
from fresco.selection import History
from fresco.tokens import Layout


@dataclass(frozen=True)
class ConvergenceRow:
    """How well one signal tells after one step.

    Attributes:
        step, sigma: of the model call. tokens: how many there were.
        signal: "z", "x0" or "channel", what the variance is of.
        rho: Spearman's rank correlation of the tokens' variance with their remaining error, -1 to 1; NaN while the
            variance is undefined, and where all tokens are equal.
    """

    step: int
    sigma: float
    tokens: int
    signal: str
    rho: float


def correlations(model: Model, prompt: str, config: FrescoConfig) -> list[ConvergenceRow]:
    """Return the rows of `follow`."""
    return [row for row in follow(model, prompt, config) if isinstance(row, ConvergenceRow)]


def follow(model: Model, prompt: str, config: FrescoConfig) -> Iterator[Call | ConvergenceRow]:
    """Yield every model call and, once the picture is there, the rank correlation of each step and signal.

    It is that of the tokens' variance with their true remaining error.

    That error is the mean over a token's numbers of `|x0_hat - final x0|`, where the final x0 is the finished latent,
    averaged over a coarse token's cells. All signals are of one run and share its window.

    Args:
        model, prompt, config: the run; its own choice of signal drives it but not what is measured.
    """
    denoiser = model.bind(config)
    layout = Layout(denoiser.channels, denoiser.patch)
    histories = {signal: History(signal, config.window) for signal in SIGNALS}
    seen: list[tuple[SamplerStep, dict[str, torch.Tensor]]] = []
    for step in sample(denoiser, model.encode(prompt), config):
        for history in histories.values():
            history.push(step.x, step.x0)
        seen.append((step, {signal: history.variance() for signal, history in histories.items()}))
        _expand(step, list(histories.values()), layout)
        yield Call.after(step, config)
    final = layout.canvas(step.x_next, step.grid_next)
    for step, variance in seen:
        error = (step.x0 - layout.gather(final, step.grid)).abs().mean(dim=1)
        for signal in ("z", "x0", "channel"):
            rho = _spearman(variance[signal], error)
            yield ConvergenceRow(step.step, step.sigma, len(step.grid), signal, rho)


def _expand(step: SamplerStep, histories: list[History], layout: Layout) -> None:
    """Let histories follow the step's promotions, as the sampler's own does."""
    grid, mask = step.grid, step.selected
    while mask.any():
        grid_next, parent = grid.expand(mask)
        for history in histories:
            chosen, from_ = (torch.as_tensor(a, device=step.x.device) for a in (mask, parent))
            history.expand(chosen, grid_next, from_, layout)
        grid, mask = grid_next, grid_next.expandable & step.closing


def _spearman(variance: torch.Tensor, error: torch.Tensor) -> float:
    a, b = (t.float().cpu().numpy() for t in (variance, error))
    if not a.max() > a.min() or not b.max() > b.min():  # NaN compares as neither
        return math.nan
    return float(stats.spearmanr(a, b).statistic)
