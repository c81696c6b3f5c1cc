"""Every transition on known x0 and eps, against METHOD 2.2's table row by row. Source: METHOD 2.1, 2.2."""

import itertools
import math

import numpy as np
import pytest
import torch

from fresco.expansion import EXPANSIONS
from fresco.noise import FreshNoise, NoiseField
from fresco.schedule import expanded
from fresco.tokens import Layout
from fresco.transition import TRANSITIONS, Path, Switch
from tests import oracles
from tests.test_grid import grown
from tests.test_tokens import normal

CASES = [((2, 5, 6), 1, 1), ((1, 5, 7), 2, 2), ((1, 3, 5), 2, 3)]
COHERENT = ["carry", "rewind", "renoise", "renoise_x0"]


class Fixture:
    """A mixed odd grid in the middle of a run: state, clean estimate, history, and the oracle's copy of it all."""

    def __init__(self, shape, levels, patch, *, sigma=0.6, straight=False, seed=0, channels=2, share=4):
        self.shape, self.levels, self.patch, self.channels, self.sigma = shape, levels, patch, channels, sigma
        self.grid, self.keys = grown(shape, levels, 31, rounds=levels - 1)
        self.mask = self.grid.expandable & (np.arange(len(self.grid)) % share != 1)
        self.grid_next, self.parent = self.grid.expand(self.mask)
        self.layout, self.field = Layout(channels, patch), NoiseField(7, channels, patch)
        n, dim = len(self.grid), self.layout.dim
        self.unit = torch.tensor(self.field.at(self.grid))
        self.x0 = normal(n, dim, seed=seed)
        self.x = (1 - sigma) * self.x0 + sigma * (self.unit if straight else normal(n, dim, seed=seed + 1))
        self.nodes = []
        for s in (1.0, 0.9, 0.78, 0.7, sigma):
            line = (1 - s) * self.x0 + s * self.unit
            bent = line + s * (1 - s) * normal(n, dim, seed=int(100 * s))
            self.nodes.append((s, line if straight else bent))
        self.nodes[-1] = (sigma, self.x)

    def run(self, name, expansion="hadamard", noise=None, coherent=True, gain=0.0):
        """Return (state as {key: (C, p, p)}, sigma) from the package."""
        switch = Switch(
            sigma=self.sigma, x=self.x, x0=self.x0, grid=self.grid, grid_next=self.grid_next,
            parent=torch.tensor(self.parent), mask=torch.tensor(self.mask), noise=noise or self.field,
            coherent=coherent, expansion=EXPANSIONS[expansion], layout=self.layout, path=Path(list(self.nodes)),
            detail_gain=gain,
        )  # fmt: skip
        x, sigma = TRANSITIONS[name](switch)
        return self.state(x, self.grid_next), sigma

    def state(self, x, grid):
        """Return tensors as the oracle's dict."""
        return oracles.key_state(grid.level, grid.coord, x.numpy(), self.channels, self.patch)

    def slow(self, name, expansion="hadamard", draws=None, coherent=True, gain=0.0):
        """Return the same from the oracle."""
        noise = oracles.Noise(lambda f, y, x: self.field.pixels(f, y, x), self.levels, self.patch, draws)
        nodes = [(s, self.state(x, self.grid)) for s, x in self.nodes]
        path = {k: [(s, x[k]) for s, x in nodes] for k in self.keys}
        chosen = [k for k, m in zip(self.keys, self.mask, strict=True) if m]
        _, sigma, x = oracles.move(
            name, expansion, keys=self.keys, chosen=chosen, sigma=self.sigma, x=self.state(self.x, self.grid),
            x0=self.state(self.x0, self.grid), noise=noise, shape=self.shape, path=path, coherent=coherent, gain=gain,
        )  # fmt: skip
        return x, sigma


def worst(a, b):
    """Return the largest difference of two states over the same tokens, in the same order."""
    assert list(a) == list(b)
    return max(float(np.abs(a[k] - b[k]).max()) for k in a)


@pytest.mark.parametrize("gain", [0.0, 0.27])
@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("name", TRANSITIONS)
def test_every_transition_with_every_expansion_is_the_row_of_the_table(name, expansion, gain):
    """Law: METHOD 2.2, all tokens, odd mixed grids with patch 1, 2, 3, to 1e-6."""
    for shape, levels, patch in CASES:
        f = Fixture(shape, levels, patch)
        got, sigma = f.run(name, expansion, gain=gain)
        expected, after = f.slow(name, expansion, gain=gain)
        assert sigma == pytest.approx(after, abs=1e-12)
        assert worst(got, expected) < 1e-6, (name, expansion, shape)


@pytest.mark.parametrize("sigma", [0.31, 0.05, 1e-3])
@pytest.mark.parametrize("name", [n for n in TRANSITIONS if n != "rewind"])
def test_every_transition_holds_at_other_sigmas(name, sigma):
    """Law: the coefficients are functions of sigma, not numbers that fit 0.6."""
    f = Fixture((1, 5, 7), 2, 2, sigma=sigma)
    got, after = f.run(name)
    expected, slow_after = f.slow(name)
    assert after == pytest.approx(slow_after, abs=1e-12)
    assert worst(got, expected) < 1e-6


@pytest.mark.parametrize("name", TRANSITIONS)
def test_fresh_noise_takes_the_place_of_the_field(name):
    """Law: with noise `fresh` kept tokens of renoise add variances."""
    f = Fixture((2, 5, 6), 1, 2)
    fresh = FreshNoise(3, 2, 2)
    fresh.at(f.grid)  # the start of the run
    noise = oracles.Recorded(fresh, 2, 2)
    got, _ = f.run(name, noise=noise, coherent=False)
    expected, _ = f.slow(name, draws=list(noise.draws), coherent=False)
    assert worst(got, expected) < 1e-6


@pytest.mark.parametrize("name", COHERENT)
@pytest.mark.parametrize(("shape", "levels", "patch"), CASES)
def test_a_straight_path_of_the_field_lands_on_the_flow_state(name, shape, levels, patch):
    """Law: METHOD 2.1, if z = (1-s) x0 + s n then each coherent row gives (1-s') up(x0) + s' n' exactly."""
    f = Fixture(shape, levels, patch, straight=True)
    got, sigma = f.run(name)
    assert sigma == pytest.approx(0.6 if name == "carry" else 0.75, abs=1e-12)
    clean = {}
    x0 = f.state(f.x0, f.grid)
    for key, chosen in zip(f.keys, f.mask, strict=True):
        for child in oracles.children(shape, levels, key) if chosen else [key]:
            clean[child] = oracles.up("hadamard", x0, shape, levels, patch, key, child) if chosen else x0[key]
    for key, value in got.items():
        unit = oracles.token_noise(lambda *at: f.field.pixels(*at), levels, patch, key)
        assert np.allclose(value, (1 - sigma) * clean[key] + sigma * unit, atol=1e-6), key


def test_carry_leaves_kept_tokens_bitwise_alone():
    """Law: METHOD 2.2, kept tokens untouched and sigma unchanged."""
    f = Fixture((2, 5, 6), 2, 2)
    got, sigma = f.run("carry")
    before = f.state(f.x, f.grid)
    kept = [k for k, m in zip(f.keys, f.mask, strict=True) if not m]
    assert len(kept) >= 3
    assert sigma == f.sigma
    assert all(np.array_equal(got[k], before[k]) for k in kept)


def test_carry_at_sigma_zero_and_one_stays_finite_and_exact():
    """Law: at 0 the children are the clean estimate, at 1 they are the noise estimate with its details."""
    f = Fixture((1, 5, 6), 1, 2, sigma=0.0)
    f.x0 = f.x.clone()
    got, _ = f.run("carry", gain=0.2)
    x0 = f.state(f.x0, f.grid)
    for key, value in got.items():
        source = key if key in x0 else oracles.ancestor(key, key[0] - 1)
        expected = x0[key] if key in x0 else oracles.up("hadamard", x0, f.shape, 1, 2, source, key)
        assert np.allclose(value, expected, atol=1e-6)
    f = Fixture((1, 5, 6), 1, 2, sigma=1.0, straight=True)
    got, _ = f.run("carry")
    for key, value in got.items():
        unit = oracles.token_noise(lambda *at: f.field.pixels(*at), 1, 2, key)
        assert np.allclose(value, unit, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in TRANSITIONS if n not in ("carry", "redraw")])
def test_raising_transitions_at_sigma_zero_stay_there(name):
    """Law: 2 * 0 / (1 + 0) = 0, so nothing but the clean values remains, and nothing overflows."""
    f = Fixture((1, 5, 6), 1, 1, sigma=0.0, straight=True)
    got, sigma = f.run(name)
    x0 = f.state(f.x0, f.grid)
    assert sigma == 0.0
    for key, value in got.items():
        assert np.allclose(value, x0[key] if key in x0 else x0[oracles.ancestor(key, 0)], atol=1e-9)


@pytest.mark.parametrize("name", [n for n in TRANSITIONS if n not in ("carry", "redraw")])
def test_the_landing_is_where_the_exact_expansion_lives(name):
    """Law: sigma' = 2 sigma / (1 + sigma) for every raising transition."""
    for sigma in (0.31, 0.6):
        f = Fixture((1, 4, 4), 1, 1, sigma=sigma, straight=True)
        assert f.run(name)[1] == pytest.approx(2 * sigma / (1 + sigma), abs=1e-12)


def test_renoised_kept_tokens_are_the_same_eps_not_a_second_one():
    """Law: on eps of the field, std of kept noise stays s'; were eps independent it would be smaller."""
    f = Fixture((1, 64, 64), 1, 1, straight=True)
    f.x0 = torch.zeros_like(f.x0)
    f.x = f.sigma * f.unit
    kept = [k for k, m in zip(f.keys, f.mask, strict=True) if not m]
    for coherent in (True, False):
        got, sigma = f.run("renoise", coherent=coherent)
        unit = f.state(f.unit, f.grid)
        ratio = np.array([got[k] / (sigma * unit[k]) for k in kept])
        beta = (1 - sigma) / (1 - f.sigma)
        alpha = math.sqrt(sigma**2 - (beta * f.sigma) ** 2)
        expected = 1.0 if coherent else (beta * f.sigma + alpha) / sigma
        assert np.allclose(ratio, expected, atol=1e-6)


def test_restart_leaves_unit_noise_that_the_field_does_not_know():
    """Law: METHOD 2.2, fresh eps: promoted tokens hold unit noise uncorrelated with the field, kept ones partly."""
    f = Fixture((1, 128, 128), 1, 1, straight=True, channels=1)
    fresh = FreshNoise(11, 1, 1)
    fresh.at(f.grid)
    got, sigma = f.run("restart", noise=fresh, coherent=False)
    assert sigma == pytest.approx(0.75)
    x0, field = f.state(f.x0, f.grid), NoiseField(7, 1, 1).at(f.grid_next)
    kept, promoted = [], []
    for i, key in enumerate(got):
        clean = x0[key] if key in x0 else x0[oracles.ancestor(key, 0)]
        residual = float((got[key] - (1 - sigma) * clean).item()) / sigma
        (kept if key in x0 else promoted).append((residual, field[i, 0]))
    # a kept token's noise is beta s / s' = 1/2 of the old and sqrt(3)/2 of the new: both unit in sum
    for pairs, correlation in ((promoted, 0.0), (kept, 0.5)):
        a = np.array(pairs)
        assert abs((a[:, 0] ** 2).mean() - 1) < 5 * (2 / len(a)) ** 0.5
        assert abs((a[:, 0] * a[:, 1]).mean() - correlation) < 5 * (2 / len(a)) ** 0.5


@pytest.mark.parametrize("name", ["carry", "rewind", "renoise"])
def test_detail_gain_multiplies_the_details_and_nothing_else(name):
    """Law: g = sqrt(1 + ((1-s)/s)^2 lambda), s after the expansion; the low-pass of the children is unchanged."""
    f = Fixture((1, 6, 6), 1, 2, share=99)
    plain, sigma = f.run(name)
    gained, _ = f.run(name, gain=0.12)
    factor = math.sqrt(1 + ((1 - sigma) / sigma) ** 2 * 0.12)
    layout, all_kept = f.layout, True
    for i, key in enumerate(f.keys):
        four = oracles.children(f.shape, f.levels, key)
        if not f.mask[i]:
            assert np.array_equal(plain[key], gained[key])
            continue
        all_kept = False
        split = [layout.haar_down(torch.tensor(np.array([s[c].ravel() for c in four]))[None]) for s in (plain, gained)]
        assert torch.allclose(split[0][0], split[1][0], atol=1e-6)
        assert torch.allclose(split[0][1] * factor, split[1][1], atol=1e-6)
    assert not all_kept


def test_every_two_transitions_differ_on_a_bent_path():
    """Law: no two names of TRANSITIONS give the same state."""
    f = Fixture((1, 6, 8), 1, 2)
    results = {}
    for name in TRANSITIONS:
        fresh = FreshNoise(7, 2, 2)
        fresh.at(f.grid)
        restart = name == "restart"
        results[name] = f.run(name, noise=fresh if restart else None, coherent=not restart)
    for a, b in itertools.combinations(results, 2):
        assert worst(results[a][0], results[b][0]) > 1e-2, (a, b)


def test_noising_an_estimate_anew_differs_from_restart_beyond_the_noise():
    """Law: given the very same unit noise, renoise_x0 keeps x0_hat of kept tokens, restart keeps their state."""
    f = Fixture((1, 6, 8), 1, 2)
    a, b = f.run("renoise_x0")[0], f.run("restart")[0]
    kept = [k for k, m in zip(f.keys, f.mask, strict=True) if not m]
    assert min(float(np.abs(a[k] - b[k]).max()) for k in kept) > 1e-2
    assert all(np.allclose(a[k], b[k], atol=1e-9) for k in a if k not in kept)


def path_of(*nodes):
    """Return a path of one-dimensional states."""
    return Path([(s, torch.tensor(x, dtype=torch.float64)[:, None]) for s, x in nodes])


def test_a_path_is_linear_between_its_nodes_and_exact_at_them():
    """Law: METHOD 2.2, linear interpolation of the stored history."""
    path = path_of((1.0, [0.0, 8.0]), (0.8, [1.0, 4.0]), (0.5, [4.0, 1.0]))
    for sigma, expected in ((1.0, [0, 8]), (0.9, [0.5, 6]), (0.8, [1, 4]), (0.6, [3, 2]), (0.5, [4, 1])):
        assert path.at(sigma)[:, 0].tolist() == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="no state at sigma"):
        path_of((0.9, [1.0]), (0.5, [2.0])).at(0.95)


def test_rewind_refuses_to_go_above_where_a_kept_token_was_promoted():
    """Law: METHOD 2.2: a clear error that says from where, to where, why, and what to do."""
    f = Fixture((1, 5, 7), 2, 1)
    newborn = torch.tensor((f.grid.level == 1) & ~f.mask)[:, None]
    assert newborn.any()
    f.nodes = [(s, x.masked_fill(newborn, torch.nan) if s > 0.7 else x) for s, x in f.nodes]
    with pytest.raises(ValueError, match=r"rewind.*0\.600.*0\.750.*promoted.*(renoise|carry)"):
        f.run("rewind")


def test_rewind_may_go_back_exactly_to_where_a_kept_token_was_promoted():
    """Law: METHOD 2.2 allows 2 sigma / (1 + sigma) <= the previous landing, equality included."""
    f = Fixture((1, 5, 7), 2, 1)
    newborn = torch.tensor((f.grid.level == 1) & ~f.mask)[:, None]
    landing = expanded(0.6)
    births = (landing, f.nodes[3][1] + 0.25)
    f.nodes = [(s, x.masked_fill(newborn, torch.nan)) for s, x in f.nodes if s > landing]
    f.nodes += [births, (0.7, births[1] + 0.1), (0.6, f.x)]
    got, sigma = f.run("rewind")
    assert sigma == pytest.approx(landing)
    expected = f.state(births[1], f.grid)
    for key in (k for k, m in zip(f.keys, f.mask, strict=True) if not m):
        assert np.allclose(got[key], expected[key], atol=1e-6)
