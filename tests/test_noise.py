"""The coherent noise field: a pure function of coordinates, normal, independent, one field for all levels.

Source: METHOD 2.1. Thresholds of the statistical tests are five standard errors of the statistic; seeds are fixed.
"""

from concurrent.futures import ThreadPoolExecutor
from math import erf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco.grid import TokenGrid
from fresco.noise import FreshNoise, NoiseField, haar, hashed_normal
from tests import oracles
from tests.test_grid import grown

GOLDEN = {
    (0, 0, 0, 0, 0): 1.7110667968804834,
    (0, 0, 0, 0, 1): -0.053451677618774875,
    (1, 0, 0, 0, 0): 0.3799168887455799,
    (0, 0, 1, 0, 0): -1.6138417492465855,
    (0, 0, 0, 1, 0): -1.1177958919879567,
    (7, 1, 44, 79, 15): -0.48743116336102205,
    (2**32 - 1, 3, 127, 127, 63): 0.08701052591446667,
}


@pytest.mark.parametrize(("at", "value"), GOLDEN.items())
def test_golden_numbers_pin_the_hash(at, value):
    """Law: a seed means the same picture for ever, on every machine."""
    assert float(hashed_normal(*at)) == pytest.approx(value, abs=1e-9)


def test_every_coordinate_matters_and_order_of_coordinates_too():
    """Law: seed, frame, row, col and channel each change the value; (row, col) is not (col, row)."""
    base = [3, 3, 3, 3, 3]
    values = [float(hashed_normal(*base))]
    for i in range(5):
        for value in (0, 1, 4):
            values.append(float(hashed_normal(*[value if j == i else b for j, b in enumerate(base)])))
    assert len(set(values)) == len(values)
    assert float(hashed_normal(0, 0, 1, 2, 0)) != float(hashed_normal(0, 0, 2, 1, 0))


def reader(field):
    """Return a one-pixel reader of a field, which is all that the oracle may ask."""
    return lambda f, y, x: field.pixels(f, y, x)


@pytest.mark.parametrize(("patch", "levels"), [(1, 1), (2, 1), (3, 2), (1, 3), (2, 2)])
@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 3, 4)])
def test_noise_and_details_of_every_token_are_the_haar_pyramid(shape, levels, patch):
    """Law: at any level, on odd mixed grids, `at` and `details` are H4 / 2 applied pixel by pixel, to 1e-12."""
    field = NoiseField(5, 2, patch)
    grids = [grown(shape, levels, 11, share=0.6)]
    for level in range(levels):
        grids.append((TokenGrid.uniform(shape, levels, level), oracles.uniform(shape, levels, level)))
    for grid, keys in grids:
        expected = [oracles.token_noise(reader(field), levels, patch, k).ravel() for k in keys]
        assert np.allclose(field.at(grid), expected, atol=1e-12, rtol=0)
        mask = grid.expandable & (np.arange(len(grid)) % 3 != 1)
        below = [oracles.token_details(reader(field), levels, patch, k) for k, m in zip(keys, mask, strict=True) if m]
        expected = np.array(below).reshape(len(below), 3, 2 * patch**2)
        assert np.allclose(field.details(grid, mask), expected, atol=1e-12, rtol=0)


def test_the_finest_noise_of_a_token_is_ordered_channel_row_column():
    """Law: D = C p p in (c, dy, dx) order, read off hashed_normal itself."""
    grid = TokenGrid.uniform((2, 3, 4), 1, 1)
    field, patch = NoiseField(9, 3, 2), 2
    got = field.at(grid)
    for i, (f, r, c) in enumerate(grid.coord.tolist()):
        expected = [
            float(hashed_normal(9, f, r * patch + dy, c * patch + dx, ch))
            for ch in range(3)
            for dy in range(2)
            for dx in range(2)
        ]
        assert np.allclose(got[i], expected, atol=1e-12, rtol=0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_haar_splits_and_inverts(seed, size):
    """Law: H4 / 2 is orthonormal and its own inverse: low and details give the block back."""
    block = np.random.default_rng(seed).standard_normal((size, 2, 2))
    low, details = haar(block)
    parts = np.concatenate([low[None], details])
    assert np.allclose(parts, oracles.H4 / 2 @ block.reshape(size, 4).T, atol=1e-12)
    assert np.allclose((oracles.H4 / 2 @ parts).T.reshape(size, 2, 2), block, atol=1e-12)
    assert np.allclose((parts**2).sum(axis=0), (block**2).sum(axis=(1, 2)), atol=1e-9)


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 3)
)  # fmt: skip
def test_the_field_is_infinite_finite_and_scalar_or_batched_alike(seed, frame, row, col, halvings):
    """Law: a pixel asked alone, in a batch, or in reverse order has one value, and it is a finite one."""
    field = NoiseField(seed, 2, 1)
    alone = field.pixels(frame, row, col, halvings)
    rows = np.array([row + 3, row, row + 1])
    assert np.array_equal(field.pixels(frame, rows, col, halvings)[1], alone)
    assert np.array_equal(field.pixels(frame, rows[::-1], col, halvings)[1], alone)
    assert np.isfinite(alone).all()
    assert np.abs(alone).max() < 8


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_value_at_a_coordinate_does_not_know_the_canvas(level):
    """Law: noise of a token is the same on any canvas that has it, odd or not, and for any channel count."""
    small, big = TokenGrid.uniform((1, 5, 7), 2, level), TokenGrid.uniform((2, 16, 9), 2, level)
    noise = dict(zip(map(tuple, big.coord.tolist()), NoiseField(2, 4, 2).at(big), strict=True))
    got = NoiseField(2, 3, 2).at(small)
    for at, value in zip(small.coord.tolist(), got, strict=True):
        assert np.array_equal(value, noise[tuple(at)][: 3 * 4])


def test_the_number_of_levels_does_not_change_the_finest_noise():
    """Law: the field lives on the finest grid; the same canvas with more doublings has the same fine noise."""
    fields = [NoiseField(2, 2, 2).at(TokenGrid.uniform((1, 6, 7), n, n)) for n in (1, 2, 3)]
    assert np.array_equal(fields[0], fields[1])
    assert np.array_equal(fields[0], fields[2])


def test_query_order_and_shuffled_grids_do_not_matter():
    """Law: asking first for something else, or for the tokens in another order, changes nothing."""
    grid, _ = grown((1, 5, 6), 2, 3)
    order = np.random.default_rng(0).permutation(len(grid))
    shuffled = TokenGrid(grid.shape, grid.levels, grid.level[order], grid.coord[order])
    field = NoiseField(4, 2, 2)
    first = field.at(grid)
    field.details(grid, grid.expandable)
    assert np.array_equal(field.at(shuffled), first[order])
    assert np.array_equal(field.at(grid), first)
    rank = np.cumsum(grid.expandable) - 1
    details = field.details(grid, grid.expandable)
    assert np.array_equal(field.details(shuffled, shuffled.expandable), details[rank[order[shuffled.expandable]]])


def test_threads_see_one_field():
    """Law: 64 queries on eight threads give bitwise what one thread gives."""
    field, grids = NoiseField(8, 3, 2), [grown((1, 6, 6), 2, s)[0] for s in range(8)]
    alone = [field.at(g) for g in grids]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(field.at, grids * 8))
    assert all(np.array_equal(a, alone[i % 8]) for i, a in enumerate(together))


def test_coarse_noise_is_the_low_pass_of_the_fine_noise_of_the_same_field():
    """Law: a 45 x 80 canvas, one doubling, patch 1: interior coarse noise is half the sum of its four, to 1e-6."""
    field = NoiseField(1, 2, 1)
    fine = field.at(TokenGrid.uniform((1, 45, 80), 1, 1)).reshape(45, 80, 2)
    coarse = field.at(TokenGrid.uniform((1, 45, 80), 1, 0)).reshape(23, 40, 2)
    inner = fine[:44]
    half_sum = (inner[::2, ::2] + inner[::2, 1::2] + inner[1::2, ::2] + inner[1::2, 1::2]) / 2
    assert np.abs(coarse[:22] - half_sum).max() < 1e-6
    # the last row has two children on the canvas and two off it, which the field still has
    below = field.pixels(0, 45, np.arange(80))
    border = (fine[44, ::2] + fine[44, 1::2] + below[::2] + below[1::2]) / 2
    assert np.abs(coarse[22] - border).max() < 1e-6


def moments(x):
    """Return |z| scores of mean, variance and kurtosis of samples that should be N(0, 1)."""
    n = x.size
    return (
        abs(x.mean()) * n**0.5,
        abs((x**2).mean() - 1) / (2 / n) ** 0.5,
        abs((x**4).mean() - 3) / (96 / n) ** 0.5,
        abs((x**3).mean()) / (15 / n) ** 0.5,
    )


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("halvings", [0, 1, 2])
def test_noise_is_standard_normal_at_every_level(seed, halvings):
    """Law: mean 0, variance 1, kurtosis 3, skewness 0 and the normal distribution function, within sampling error."""
    rows, cols = np.indices((96, 80))
    x = NoiseField(seed, 4, 1).pixels(0, rows, cols, halvings).ravel()
    assert max(moments(x)) < 5
    normal = np.array([0.5 * (1 + erf(v / 2**0.5)) for v in np.sort(x)])
    ks = np.abs(normal - (np.arange(x.size) + 0.5) / x.size).max()
    assert ks < 1.95 / x.size**0.5  # p = 0.001


def test_details_are_standard_normal_and_independent_of_the_low_pass():
    """Law: low-pass and the three details are unit and mutually uncorrelated."""
    grid = TokenGrid.uniform((1, 128, 128), 1, 0)
    field = NoiseField(3, 2, 1)
    parts = np.concatenate([field.at(grid)[:, None], field.details(grid, grid.expandable)], axis=1)
    flat = parts.transpose(1, 0, 2).reshape(4, -1)
    for row in flat:
        assert max(moments(row)) < 5
    off = np.corrcoef(flat)[np.triu_indices(4, 1)]
    assert np.abs(off).max() * flat.shape[1] ** 0.5 < 5


@pytest.mark.parametrize("seed", [0, 17])
def test_neighbours_channels_frames_and_seeds_are_uncorrelated(seed):
    """Law: no linear, and no squared, correlation along any coordinate, at lags 1 and 2, nor between seeds."""
    rows, cols = np.indices((128, 128))

    def at(seed_, frame=0, dr=0, dc=0):
        return NoiseField(seed_, 4, 1).pixels(frame, rows + dr, cols + dc)

    x = at(seed)
    others = [at(seed, dr=1), at(seed, dc=1), at(seed, dr=1, dc=1), at(seed, dr=2), at(seed, dc=2), at(seed, frame=1)]
    others += [np.roll(x, 1, axis=-1), np.roll(x, 2, axis=-1), at(seed + 1), at(seed + 2), at(seed + 65536)]
    others += [x.transpose(1, 0, 2)[::-1]]
    n = x.size
    for y in others:
        assert abs((x * y).mean()) * n**0.5 < 5
        assert abs(((x**2 - 1) * (y**2 - 1)).mean()) / 2 * n**0.5 < 5


def test_no_two_of_a_million_pixels_repeat():
    """Law: the hash has no short period: as many distinct values as 64 bits through Box-Muller allow."""
    rows, cols = np.indices((512, 512))
    x = NoiseField(0, 4, 1).pixels(0, rows, cols).ravel()
    assert len(np.unique(x)) >= x.size - 3


def test_fresh_noise_starts_as_the_field_and_then_forgets():
    """Law: METHOD 2.2, the start of a run is the field's; later draws are unit, independent of it and of each other."""
    grid = TokenGrid.uniform((1, 64, 64), 1, 0)
    fine = TokenGrid.uniform((1, 64, 64), 1, 1)
    fresh, field = FreshNoise(6, 2, 2), NoiseField(6, 2, 2)
    assert np.array_equal(fresh.at(grid), field.at(grid))
    details, later, again = fresh.details(grid, grid.expandable), fresh.at(fine), fresh.at(fine)
    for x in (details, later, again):
        assert max(moments(x)) < 5
    n = later.size
    assert abs((later * field.at(fine)).mean()) * n**0.5 < 5
    assert abs((later * again).mean()) * n**0.5 < 5
    n = details.size
    assert abs((details * field.details(grid, grid.expandable)).mean()) * n**0.5 < 5
    repeat = FreshNoise(6, 2, 2)
    repeat.at(grid)
    assert np.array_equal(repeat.details(grid, grid.expandable), details)
    other = FreshNoise(7, 2, 2)
    other.at(grid)
    assert abs((other.details(grid, grid.expandable) * details).mean()) * n**0.5 < 5
