"""Token variance and the rules that pick tokens. Source: METHOD 2.3, 2.6."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco.config import FrescoConfig
from fresco.grid import TokenGrid
from fresco.schedule import Check
from fresco.selection import SELECTION_RULES, History, Scene, coarse_fraction, place, select
from fresco.tokens import Layout
from tests import oracles
from tests.test_grid import grown
from tests.test_tokens import normal


class Attentive(oracles.PatternDenoiser):
    """A model that reports a given attention."""

    def __init__(self, weights):
        super().__init__((1, 1, 1))
        self.weights = weights

    def attention(self, grid):
        return torch.tensor(self.weights, dtype=torch.float32)


def scene_of(grid, variance=None, x0=None, layout=None, denoiser=None, seed=0):
    """Return a scene; whatever is not given is flat."""
    layout = layout or Layout(1, 1)
    n = len(grid)
    return Scene(
        grid, np.ones(n) if variance is None else np.asarray(variance, dtype=np.float32),
        torch.zeros(n, layout.dim) if x0 is None else x0, layout, denoiser or oracles.PatternDenoiser(grid.shape), seed,
    )  # fmt: skip


def history_of(signal, window, values):
    """Return a history after pushing (x, x0) pairs."""
    history = History(signal, window)
    for x, x0 in values:
        history.push(x, x0)
    return history


@pytest.mark.parametrize("window", [2, 3, 4, 7])
@pytest.mark.parametrize("signal", ["x0", "z"])
@pytest.mark.parametrize("steps", [2, 3, 6])
def test_variance_is_unbiased_over_the_last_window_and_a_mean_over_entries(signal, window, steps):
    """Law: METHOD 2.3: the last `window` values, fewer while fewer exist, divisor n - 1, mean over channels."""
    values = [(normal(5, 8, seed=i), normal(5, 8, seed=100 + i) * (i + 1)) for i in range(steps)]
    got = history_of(signal, window, values).variance()
    for i in range(5):
        own = [(x if signal == "z" else x0)[i].numpy() for x, x0 in values]
        assert float(got[i]) == pytest.approx(oracles.variance(own, window), rel=1e-6)


def test_variance_is_undefined_before_two_values():
    """Law: METHOD 2.3: one estimate has no variance in time."""
    for signal in ("x0", "z"):
        assert torch.isnan(history_of(signal, 4, [(normal(3, 2), normal(3, 2))]).variance()).all()


def test_channel_variance_needs_one_step_and_sees_only_the_newest_estimate():
    """Law: METHOD 2.3 `channel`: across the channels of x0_hat, one step, unbiased."""
    values = [(normal(4, 6, seed=i), normal(4, 6, seed=50 + i)) for i in range(3)]
    for upto in (1, 3):
        got = history_of("channel", 4, values[:upto]).variance()
        for i in range(4):
            assert float(got[i]) == pytest.approx(oracles.channel_variance(values[upto - 1][1][i].numpy()), rel=1e-6)
    assert torch.isnan(history_of("channel", 4, [(normal(4, 1), normal(4, 1))]).variance()).all()


def test_every_two_signals_differ_and_a_straight_path_shows_why():
    """Law: METHOD 2.3: on a straight path Var_t(z) = Var(sigma) |v|^2 / D however settled x0 is; Var_t(x0) = 0."""
    x0, eps, sigmas = normal(6, 4), normal(6, 4, seed=1), [0.9, 0.8, 0.65, 0.6]
    values = [((1 - s) * x0 + s * eps, x0) for s in sigmas]
    got = {signal: history_of(signal, 4, values).variance() for signal in ("x0", "z", "channel")}
    assert torch.allclose(got["x0"], torch.zeros(6, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(got["z"], np.var(sigmas, ddof=1) * ((eps - x0) ** 2).mean(dim=1), atol=1e-12)
    for a, b in itertools.combinations(got, 2):
        assert float((got[a] - got[b]).abs().min()) > 1e-3


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_children_inherit_the_history_of_their_parent_pixel_by_pixel(patch):
    """Law: METHOD 2.3: after an expansion the history continues; the replicated past, on an odd grid."""
    shape, layout = (1, 5, 6), Layout(2, patch)
    grid, keys = grown(shape, 2, 3, rounds=1)
    mask = grid.expandable & (np.arange(len(grid)) % 3 != 0)
    after, parent = grid.expand(mask)
    values = [(normal(len(grid), layout.dim, seed=i), normal(len(grid), layout.dim, seed=9 + i)) for i in range(3)]
    history = history_of("x0", 4, values)
    history.expand(torch.tensor(mask), after, torch.tensor(parent), layout)
    got = history.variance()
    for i, p in enumerate(parent):
        own = [x0[p].numpy().reshape(2, patch, patch) for _, x0 in values]
        if mask[p]:
            a, b = int(after.coord[i, 1]) % 2, int(after.coord[i, 2]) % 2
            own = [oracles.replicated(v, a, b) for v in own]
        assert float(got[i]) == pytest.approx(oracles.variance(own, 4), rel=1e-6)
    assert len(keys) == len(grid)


def test_place_puts_children_where_their_parent_stood():
    """Law: kept tokens keep their value, each child gets its own quarter."""
    grid = TokenGrid.uniform((1, 3, 4), 1, 0)
    mask = np.array([True, False, True, False])
    after, parent = grid.expand(mask)
    kept, children = torch.arange(4.0)[:, None], 10 + torch.arange(8.0).reshape(2, 4, 1)
    got = place(kept, children, torch.tensor(mask), after, torch.tensor(parent))[:, 0].tolist()
    assert got == [10, 11, 12, 13, 1, 14, 15, 3]


@given(st.integers(0, 10**6), st.floats(0.01, 3), st.booleans())
def test_tau_takes_exactly_the_tokens_at_or_below_it(seed, tau, high):
    """Law: METHOD 1, `v <= tau` is expanded (variance_high: >=), never a finest token, never an undefined one."""
    grid, _ = grown((1, 6, 6), 2, seed)
    rng = np.random.default_rng(seed)
    variance = np.where(rng.random(len(grid)) < 0.2, np.nan, rng.gamma(1.0, 1.0, len(grid))).astype(np.float32)
    variance[0] = tau  # the boundary belongs to the selection
    config = FrescoConfig(tau=tau, selection="variance_high" if high else "variance")
    scene = scene_of(grid, variance)
    tau = float(np.float32(tau))
    variance[0] = tau
    choice = select(config.replace(tau=tau), Check(3, (0.0, 0.0)), scene)
    expected = [
        bool(lv < 2 and not math.isnan(v) and (v >= tau if high else v <= tau))
        for lv, v in zip(grid.level, variance, strict=True)
    ]
    assert choice.mask.tolist() == expected
    assert choice.tau == tau
    open_ = sum(lv < 2 for lv in grid.level)
    if open_:
        assert choice.ratio == pytest.approx(sum(expected) / open_)
        assert coarse_fraction(grid, variance, tau, high) == pytest.approx(sum(expected) / open_)
    else:
        assert math.isnan(coarse_fraction(grid, variance, tau, high))


@pytest.mark.parametrize(("ratio", "cells", "count"), [
    (0.4, 1024, 409), (0.29, 100, 29), (0.57, 100, 57), (0.7, 10, 7), (0.0, 100, 0), (1.0, 100, 100), (0.999, 100, 99),
    (1 / 3, 96, 32), (0.1, 9, 0),
])  # fmt: skip
def test_ratio_takes_the_floor_of_that_fraction(ratio, cells, count):
    """Law: METHOD 2.6; .29 of 100 is 29 although 0.29 * 100 < 29 in floats; 409 of 1,024 as in the paper's FLOPs."""
    grid = TokenGrid.uniform((1, 2, 2 * cells), 1, 0)
    variance = np.random.default_rng(1).permutation(cells) + 1.0
    choice = select(FrescoConfig(ratio=ratio), Check(0, (ratio,)), scene_of(grid, variance))
    assert choice.mask.sum() == count
    assert set(variance[choice.mask]) == set(range(1, count + 1)), "the settled tokens go first"
    assert choice.ratio == pytest.approx(count / cells)
    assert math.isnan(choice.tau) if count == 0 else choice.tau == count


def test_ratio_quotas_are_cumulative_and_per_level():
    """Law: METHOD 2.6: a target counts what was promoted before, on each level's own number of cells."""
    grid, keys = grown((1, 12, 12), 2, 7, rounds=1, share=0.25)
    before = oracles.expanded_beyond(keys, 0)
    assert 0 < before < 4
    variance = np.random.default_rng(3).random(len(grid))
    for targets in ((0.6, 0.0), (0.6, 0.1), (1.0, 0.05), (before / 9, 0.1)):
        choice = select(FrescoConfig(ratio=0.4, levels=2), Check(0, targets), scene_of(grid, variance))
        for level, cells in ((0, 9), (1, 36)):
            own = [i for i, k in enumerate(keys) if k[0] == level]
            want = math.floor(targets[level] * cells + 1e-9) - oracles.expanded_beyond(keys, level)
            want = min(max(want, 0), len(own))
            best = sorted(own, key=lambda i: variance[i])[:want]
            assert sorted(np.flatnonzero(choice.mask & (grid.level == level))) == sorted(best)


def test_ratio_with_undefined_variance_takes_only_defined_tokens():
    """Law: an undefined variance selects nothing, partly or wholly."""
    grid = TokenGrid.uniform((1, 4, 8), 1, 0)
    variance = np.array([np.nan, 3, np.nan, 1, 2, np.nan, np.nan, np.nan])
    for rule, first in (("variance", [3, 4]), ("variance_high", [1, 4])):
        config = FrescoConfig(ratio=0.25, selection=rule)
        assert np.flatnonzero(select(config, Check(0, (0.25,)), scene_of(grid, variance)).mask).tolist() == sorted(first)
        nothing = select(config, Check(0, (0.9,)), scene_of(grid, np.full(8, np.nan)))
        assert not nothing.mask.any()
        assert math.isnan(nothing.tau)


def test_the_closing_check_takes_all_that_remains():
    """Law: METHOD 2.6: whatever the drive and even where nothing is defined."""
    grid, _ = grown((1, 6, 6), 2, 1)
    for config in (FrescoConfig(tau=1e-9), FrescoConfig(ratio=0.0), FrescoConfig(ratio=0.5, selection="even")):
        choice = select(config, Check(9, (1.0, 1.0), closing=True), scene_of(grid, np.full(len(grid), np.nan)))
        assert np.array_equal(choice.mask, grid.expandable)


def test_variance_rules_report_the_tau_that_their_ratio_means():
    """Law: METHOD 2.3: show tau and the fraction, let either drive: driving by the other gives the same mask."""
    grid = TokenGrid.uniform((1, 8, 8), 1, 0)
    variance = np.random.default_rng(0).random(16).astype(np.float32)
    for rule in ("variance", "variance_high"):
        by_ratio = select(FrescoConfig(ratio=0.4, selection=rule), Check(0, (0.4,)), scene_of(grid, variance))
        by_tau = select(FrescoConfig(tau=by_ratio.tau, selection=rule), Check(0, (0.0,)), scene_of(grid, variance))
        assert by_ratio.mask.sum() == 6
        assert np.array_equal(by_ratio.mask, by_tau.mask)
        assert by_tau.ratio == by_ratio.ratio == 6 / 16


def test_even_puts_one_token_into_every_block():
    """Law: at ratio 1/4 each 2 x 2 block has one, at 1/16 each 4 x 4 block; at 1/2 every row and column has half."""
    grid = TokenGrid.uniform((1, 16, 16), 1, 0)
    for ratio, edge, each in ((1 / 4, 2, 1), (1 / 16, 4, 1), (1 / 2, 2, 2), (3 / 4, 2, 3)):
        mask = select(FrescoConfig(ratio=ratio, selection="even"), Check(0, (ratio,)), scene_of(grid)).mask
        blocks = mask.reshape(8 // edge, edge, 8 // edge, edge).sum(axis=(1, 3))
        assert (blocks == each).all()
    half = select(FrescoConfig(ratio=0.5, selection="even"), Check(0, (0.5,)), scene_of(grid)).mask.reshape(8, 8)
    assert (half.sum(axis=0) == 4).all()
    assert (half.sum(axis=1) == 4).all()


def test_random_is_repeatable_uniform_and_follows_the_seed():
    """Law: each token is drawn with the ratio's probability over seeds, and one seed always draws the same."""
    grid = TokenGrid.uniform((1, 16, 16), 1, 0)
    config = FrescoConfig(ratio=0.25, selection="random")

    def draw(seed):
        return select(config, Check(0, (0.25,)), scene_of(grid, seed=seed)).mask

    assert np.array_equal(draw(3), draw(3))
    masks = np.array([draw(s) for s in range(400)])
    assert (masks.sum(axis=1) == 16).all()
    assert np.abs(masks.mean(axis=0) - 0.25).max() < 5 * (0.25 * 0.75 / 400) ** 0.5
    assert len({m.tobytes() for m in masks}) == 400


@pytest.mark.parametrize("patch", [1, 2])
def test_edge_takes_the_tokens_along_a_step(patch):
    """Law: the strongest gradient of the clean estimate goes first; flat parts go last."""
    grid, layout = TokenGrid.uniform((1, 8, 16), 1, 0), Layout(1, patch)
    x0 = torch.tensor((grid.coord[:, 2] >= 5).astype(np.float32))[:, None].expand(-1, patch**2)
    config = FrescoConfig(ratio=0.25, selection="edge")
    mask = select(config, Check(0, (0.25,)), scene_of(grid, x0=x0, layout=layout)).mask.reshape(4, 8)
    assert np.flatnonzero(mask.all(axis=0)).tolist() == [4, 5]
    x0 = torch.tensor((grid.coord[:, 1] >= 2).astype(np.float32))[:, None].expand(-1, patch**2)
    mask = select(config.replace(ratio=0.5), Check(0, (0.5,)), scene_of(grid, x0=x0, layout=layout)).mask.reshape(4, 8)
    assert np.flatnonzero(mask.all(axis=1)).tolist() == [1, 2]


def test_attention_takes_the_most_attended_and_needs_a_model_that_tells():
    """Law: METHOD 3 (AViTS): most attended first; a model without attention is a clear error."""
    grid = TokenGrid.uniform((1, 4, 4), 1, 0)
    config = FrescoConfig(ratio=0.5, selection="attention")
    scene = scene_of(grid, denoiser=Attentive([0.1, 0.5, 0.4, 0.2]))
    assert select(config, Check(0, (0.5,)), scene).mask.tolist() == [False, True, True, False]
    from fresco.backends.oracle import OracleDenoiser

    with pytest.raises(ValueError, match=r"OracleDenoiser.*attention.*choose another"):
        select(config, Check(0, (0.5,)), scene_of(grid, denoiser=OracleDenoiser((1, 4, 4))))


def test_every_two_rules_choose_differently_on_one_fixture():
    """Law: no two names of SELECTION_RULES mean the same."""
    grid = TokenGrid.uniform((1, 16, 16), 1, 0)
    rng = np.random.default_rng(5)
    scene = scene_of(
        grid, rng.random(64), torch.tensor(rng.standard_normal((64, 2))).float(), Layout(2, 1),
        Attentive(rng.random(64)), seed=1,
    )  # fmt: skip
    masks = {r: select(FrescoConfig(ratio=0.4, selection=r), Check(0, (0.4,)), scene).mask for r in SELECTION_RULES}
    assert masks["all"].all()
    assert {int(m.sum()) for r, m in masks.items() if r != "all"} == {25}
    for a, b in itertools.combinations(masks, 2):
        assert (masks[a] != masks[b]).sum() >= 8, (a, b)


@pytest.mark.parametrize("rule", ["variance", "variance_high", "even", "edge", "attention", "all"])
def test_rules_do_not_depend_on_the_order_of_tokens(rule):
    """Law: a rule sees places and values, not indices."""
    grid, _ = grown((1, 8, 8), 1, 2, share=0.3)
    rng = np.random.default_rng(2)
    n = len(grid)
    variance, attention = rng.random(n), rng.random(n)
    x0, order = torch.tensor(rng.standard_normal((n, 1))).float(), rng.permutation(n)
    shuffled = TokenGrid(grid.shape, grid.levels, grid.level[order], grid.coord[order])
    config = FrescoConfig(ratio=0.75, selection=rule)
    one = select(config, Check(0, (0.75,)), scene_of(grid, variance, x0, denoiser=Attentive(attention)))
    two = select(
        config, Check(0, (0.75,)), scene_of(shuffled, variance[order], x0[order], denoiser=Attentive(attention[order]))
    )
    assert one.mask.any()
    assert np.array_equal(one.mask[order], two.mask)
