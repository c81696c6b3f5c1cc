"""Rank correlation of token variance with the remaining error, against ranks counted by hand and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from fresco.backends.oracle import OracleModel, averaging
from fresco.config import FrescoConfig
from fresco.lab.convergence import correlations
from fresco.sampler import sample

SIZE = (1, 12, 10)


def ranks_by_hand(values):
    """Return 1-based ranks; there are no ties among floats of a run."""
    return np.array([1 + sum(other < value for other in values) for value in values], dtype=float)


def steps_of(config):
    model = OracleModel()
    return list(sample(model.bind(config), model.encode("x"), config))


@pytest.mark.parametrize("window", [3, 4])
def test_a_full_run_against_slow_ranks(window):
    config = FrescoConfig.full(7, size=SIZE, seed=1, window=window)
    steps, rows = steps_of(config), correlations(OracleModel(), "x", config)
    assert [(r.step, r.signal) for r in rows] == [(k, s) for k in range(7) for s in ("z", "x0", "channel")]
    final = steps[-1].x_next.numpy()
    for row in rows:
        past = steps[max(0, row.step - window + 1) : row.step + 1]
        x0 = np.stack([s.x0.numpy().astype(float) for s in past])
        z = np.stack([s.x.numpy().astype(float) for s in past])
        error = np.abs(x0[-1] - final).mean(axis=1)
        if row.signal == "channel" and row.sigma == 1:
            continue  # pure noise tells nothing: x0 is 0 but for rounding
        if row.signal == "channel":
            variance = x0[-1].var(axis=1, ddof=1)
        elif len(past) < 2:
            assert math.isnan(row.rho)
            continue
        else:
            variance = (x0 if row.signal == "x0" else z).var(axis=0, ddof=1).mean(axis=1)
        a, b = ranks_by_hand(variance), ranks_by_hand(error)
        by_hand = 1 - 6 * ((a - b) ** 2).sum() / (len(a) * (len(a) ** 2 - 1))
        assert row.rho == pytest.approx(by_hand, abs=2e-3)  # the run's float32 may swap two neighbours
        assert row.rho == pytest.approx(stats.spearmanr(variance, error).statistic, abs=2e-3)
        assert (row.tokens, row.sigma) == (120, steps[row.step].sigma)


@pytest.mark.parametrize("levels", [1, 2])
def test_mixed_tokens_keep_their_parents_history_and_are_held_against_the_mean_of_their_cells(levels):
    config = FrescoConfig.recommended(9, size=SIZE, seed=1, levels=levels)
    steps = steps_of(config)
    rows = {r.step: r for r in correlations(OracleModel(), "x", config) if r.signal == "x0"}
    final = steps[-1].x_next.numpy()[steps[-1].grid_next.scan_order()]
    mixed = 0
    for step in steps[1:]:
        mixed += not step.grid.is_uniform
        error = np.abs(step.x0.numpy() - averaging(step.grid) @ final).mean(axis=1)
        want = stats.spearmanr(step.variance.numpy(), error).statistic  # the sampler's own record of the variance
        assert rows[step.step].rho == pytest.approx(want, abs=2e-3)
    assert mixed > 1


def test_where_all_tokens_are_equal_nothing_can_be_said():
    rows = correlations(OracleModel(), "x", FrescoConfig.full(3, size=(1, 1, 1)))
    assert all(math.isnan(row.rho) for row in rows)
