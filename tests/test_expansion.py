"""Every way of turning a parent into children against loops over pixels. Source: METHOD 2.1."""

import itertools

import numpy as np
import pytest
import torch

from fresco.expansion import EXPANSIONS
from fresco.grid import TokenGrid
from fresco.tokens import Layout
from tests import oracles
from tests.test_grid import grown
from tests.test_tokens import normal

CASES = [((2, 5, 6), 1, 2), ((1, 5, 7), 2, 1), ((1, 3, 5), 2, 3), ((1, 6, 4), 3, 2), ((1, 7, 6), 2, 2)]


def scene(shape, levels, patch, channels=2):
    """Return a mixed grid, its keys, a state in both forms, and a mask with parents of every level."""
    grid, keys = grown(shape, levels, 21, rounds=levels - 1)
    mask = grid.expandable & (np.arange(len(grid)) % 4 != 1)
    x = normal(len(grid), channels * patch**2, seed=3)
    state = {k: v.reshape(channels, patch, patch) for k, v in zip(keys, x.numpy(), strict=True)}
    return grid, keys, x, state, mask


@pytest.mark.parametrize("name", EXPANSIONS)
@pytest.mark.parametrize(("shape", "levels", "patch"), CASES)
def test_up_is_the_slow_version_at_every_child_on_the_canvas(name, shape, levels, patch):
    """Law: each child's value, on odd mixed grids, with neighbours of other levels (bilinear)."""
    grid, keys, x, state, mask = scene(shape, levels, patch)
    got = EXPANSIONS[name].up(x, grid, torch.tensor(mask), Layout(2, patch))
    parents = [k for k, m in zip(keys, mask, strict=True) if m]
    assert len(parents) > 0
    for key, four in zip(parents, got.numpy(), strict=True):
        for child in oracles.children(shape, levels, key):
            expected = oracles.up(name, state, shape, levels, patch, key, child)
            assert np.allclose(four[2 * (child[2] % 2) + child[3] % 2], expected.ravel(), atol=1e-9), (key, child)


@pytest.mark.parametrize("name", ["hadamard", "hadamard_token"])
@pytest.mark.parametrize(("channels", "patch"), [(1, 1), (3, 2), (2, 3)])
def test_high_lays_three_details_over_four_children(name, channels, patch):
    """Law: columns 2 to 4 of H4 / 2, per latent pixel or (literal paper) per packed token."""
    details = normal(4, 3, channels * patch**2)
    got = EXPANSIONS[name].high(details, Layout(channels, patch)).numpy()
    for m in range(4):
        e = details[m].numpy().reshape(3, channels, patch, patch)
        for a, b in itertools.product((0, 1), repeat=2):
            assert np.allclose(got[m, 2 * a + b], oracles.high(name, e, (1, 0, a, b)).ravel(), atol=1e-12)


@pytest.mark.parametrize("name", EXPANSIONS)
@pytest.mark.parametrize(("shape", "levels", "patch"), CASES[:3])
def test_a_constant_stays_that_constant(name, shape, levels, patch):
    """Law: no expansion brightens or darkens a flat picture, at odd borders either."""
    grid, _, x, _, mask = scene(shape, levels, patch)
    up = EXPANSIONS[name].up(torch.full_like(x, 1.75), grid, torch.tensor(mask), Layout(2, patch))
    assert torch.allclose(up, torch.full_like(up, 1.75), atol=1e-12)


@pytest.mark.parametrize("name", EXPANSIONS)
def test_expansion_is_linear(name):
    """Law: up and high are linear, so a Gaussian stays one."""
    grid, _, x, _, mask = scene((1, 5, 6), 1, 2)
    y, mask = normal(*x.shape, seed=9), torch.tensor(mask)
    method, layout = EXPANSIONS[name], Layout(2, 2)

    def up(value):
        return method.up(value, grid, mask, layout)

    assert torch.allclose(up(2 * x - 3 * y), 2 * up(x) - 3 * up(y), atol=1e-12)


@pytest.mark.parametrize("name", ["hadamard", "hadamard_token"])
def test_unit_noise_in_gives_unit_independent_noise_out(name):
    """Law: gain * up + high is an orthonormal map (H4 / 2): its matrix times its transpose is the identity."""
    layout, method = Layout(1, 2), EXPANSIONS[name]
    grid = TokenGrid.uniform((1, 2, 2), 1, 0)
    mask, columns = torch.tensor([True]), []
    for unit in torch.eye(16, dtype=torch.float64):
        low, details = unit[:4][None], unit[4:].reshape(1, 3, 4)
        noise = method.noise_gain() * method.up(low, grid, mask, layout) + method.high(details, layout)
        columns.append(noise.flatten())
    matrix = torch.stack(columns)
    assert torch.allclose(matrix @ matrix.T, torch.eye(16, dtype=torch.float64), atol=1e-12)


def test_interpolations_add_no_detail_and_keep_the_noise_as_it_is():
    """Law: METHOD 2.4's `plain replication, no noise added`."""
    for name in ("nearest", "bilinear"):
        assert EXPANSIONS[name].high is None
        assert EXPANSIONS[name].noise_gain() == 1.0


def test_bilinear_weights_by_hand():
    """Law: on a ramp 0, 1, 2, 3 the children are at quarter offsets, clamped at the border."""
    grid = TokenGrid.uniform((1, 2, 8), 1, 0)
    x = torch.arange(4, dtype=torch.float64)[:, None]
    up = EXPANSIONS["bilinear"].up(x, grid, torch.ones(4, dtype=torch.bool), Layout(1, 1))
    row = up[:, :2, 0].flatten().tolist()
    assert row == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    assert up[:, 2:, 0].flatten().tolist() == pytest.approx(row)


def test_literal_hadamard_copies_the_patch_where_hadamard_spreads_it():
    """Law: METHOD 2.1: with p = 1 the two are one method; with p = 2 the packed one repeats the whole patch."""
    grid = TokenGrid.uniform((1, 2, 2), 1, 0)
    mask = torch.tensor([True])
    x = torch.arange(4, dtype=torch.float64)[None]
    copied = EXPANSIONS["hadamard_token"].up(x, grid, mask, Layout(1, 2))
    spread = EXPANSIONS["hadamard"].up(x, grid, mask, Layout(1, 2))
    assert copied[0].tolist() == [[0, 1, 2, 3]] * 4
    assert spread[0].tolist() == [[v] * 4 for v in (0, 1, 2, 3)]
    single, details = normal(5, 4)[:1], normal(1, 3, 4)
    for a, b in (("hadamard", "hadamard_token"),):
        one, two = EXPANSIONS[a], EXPANSIONS[b]
        assert torch.allclose(one.up(single, grid, mask, Layout(4, 1)), two.up(single, grid, mask, Layout(4, 1)))
        assert torch.allclose(one.high(details, Layout(4, 1)), two.high(details, Layout(4, 1)))


def test_every_two_expansions_differ():
    """Law: no two names of EXPANSIONS are the same map of a value and its details."""
    grid, _, x, _, mask = scene((1, 6, 8), 1, 2)
    details = normal(int(mask.sum()), 3, 8)
    results = []
    for method in EXPANSIONS.values():
        value = method.noise_gain() * method.up(x, grid, torch.tensor(mask), Layout(2, 2))
        results.append(value if method.high is None else value + method.high(details, Layout(2, 2)))
    for a, b in itertools.combinations(results, 2):
        assert float((a - b).abs().max()) > 0.1
