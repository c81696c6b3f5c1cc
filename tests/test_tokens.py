"""Packing, replication, the Haar split and averaging against loops over pixels. Source: METHOD 2.1."""

import numpy as np
import pytest
import torch

from fresco.grid import TokenGrid
from fresco.noise import NoiseField
from fresco.tokens import Layout
from tests import oracles
from tests.test_grid import grown

SIZES = [(1, 1), (2, 1), (2, 2), (1, 3), (3, 2)]


def normal(*shape, seed=0):
    """Return float64 normals from NumPy, so that Torch's generator is not part of a test."""
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape))


def dense(latent):
    """Return {(f, y, x): vector} readers of a latent for the oracle."""
    array = latent.numpy()
    return lambda f, y, x: array[:, f, y, x]


@pytest.mark.parametrize(("channels", "patch"), SIZES)
def test_haar_up_is_h4_on_every_block_of_pixels(channels, patch):
    """Law: `H4/2 [low, e1, e2, e3]` pixel by pixel, and every block of the four children packs back."""
    layout = Layout(channels, patch)
    low, details = normal(5, layout.dim), normal(5, 3, layout.dim, seed=1)
    got = layout.haar_up(low, details)
    assert layout.dim == channels * patch**2
    for m in range(5):
        parent = low[m].numpy().reshape(channels, patch, patch)
        e = details[m].numpy().reshape(3, channels, patch, patch)
        for a in range(2):
            for b in range(2):
                child = (1, 0, a, b)
                expected = oracles.replicated(parent, a, b) / 2 + oracles.high("hadamard", e, child)
                assert np.allclose(got[m, 2 * a + b].numpy(), expected.ravel(), atol=1e-12)


@pytest.mark.parametrize(("channels", "patch"), SIZES)
def test_haar_down_inverts_haar_up_and_keeps_energy(channels, patch):
    """Law: H4 / 2 is orthonormal: exact inverse both ways, equal sums of squares."""
    layout = Layout(channels, patch)
    low, details = normal(4, layout.dim), normal(4, 3, layout.dim, seed=1)
    up = layout.haar_up(low, details)
    low2, details2 = layout.haar_down(up)
    assert torch.allclose(low2, low, atol=1e-12)
    assert torch.allclose(details2, details, atol=1e-12)
    assert float((up**2).sum()) == pytest.approx(float((low**2).sum() + (details**2).sum()), rel=1e-12)
    some = normal(4, 4, layout.dim, seed=2)
    assert torch.allclose(layout.haar_up(*layout.haar_down(some)), some, atol=1e-12)


@pytest.mark.parametrize(("channels", "patch"), SIZES)
def test_replicate_repeats_latent_pixels_not_tokens(channels, patch):
    """Law: each latent pixel becomes a 2 x 2 block of itself."""
    layout = Layout(channels, patch)
    x = normal(3, layout.dim)
    got = layout.replicate(x).numpy()
    for m in range(3):
        for a in range(2):
            for b in range(2):
                expected = oracles.replicated(x[m].numpy().reshape(channels, patch, patch), a, b)
                assert np.array_equal(got[m, 2 * a + b], expected.ravel())


@pytest.mark.parametrize(("shape", "levels", "patch"), [((2, 5, 6), 2, 2), ((1, 9, 14), 3, 1), ((1, 3, 7), 1, 3)])
def test_coarse_noise_and_details_expand_to_the_fine_noise(shape, levels, patch):
    """Law: METHOD 2.1, `H^-1 [n_lo, e]` is the children's noise, at every level of a mixed odd grid."""
    field, layout = NoiseField(3, 2, patch), Layout(2, patch)
    grid, _ = grown(shape, levels, 5, rounds=levels - 1)
    mask = grid.expandable & (np.arange(len(grid)) % 4 != 0)
    children = layout.haar_up(torch.tensor(field.at(grid)[mask]), torch.tensor(field.details(grid, mask)))
    after, parent = grid.expand(mask)
    fine, rank = field.at(after), np.cumsum(mask) - 1
    born = np.flatnonzero(mask[parent])
    assert len(born) > mask.sum()
    for i in born:
        assert np.allclose(children[rank[parent[i]], after.child[i]].numpy(), fine[i], atol=1e-12)


@pytest.mark.parametrize(("shape", "levels", "patch"), [((2, 5, 6), 2, 2), ((1, 7, 5), 3, 1), ((1, 3, 4), 1, 3)])
def test_canvas_of_a_mixed_grid_shows_every_token_where_it_lies(shape, levels, patch):
    """Law: a finest latent pixel shows the latent pixel above it, borders cut off."""
    grid, keys = grown(shape, levels, 6)
    x = normal(len(grid), 2 * patch**2)
    state = {k: v.numpy().reshape(2, patch, patch) for k, v in zip(keys, x, strict=True)}
    expected = oracles.canvas(state, shape, levels, patch)
    assert not np.isnan(expected).any()
    assert np.array_equal(Layout(2, patch).canvas(x, grid).numpy(), expected)


@pytest.mark.parametrize(
    ("shape", "levels", "patch"),
    [((2, 5, 6), 2, 2), ((1, 7, 5), 3, 1), ((1, 3, 4), 1, 3), ((1, 5, 6), 2, 1), ((1, 5, 3), 2, 3), ((1, 9, 5), 3, 2)],
)
def test_gather_averages_the_pixels_that_exist(shape, levels, patch):
    """Law: a coarse clean value is the mean over the cells that exist (METHOD 2.1), a fine one the pixel itself."""
    grid, keys = grown(shape, levels, 7, share=0.4)
    latent = normal(2, shape[0], shape[1] * patch, shape[2] * patch)
    got = Layout(2, patch).gather(latent, grid)
    for key, value in zip(keys, got.numpy(), strict=True):
        assert np.allclose(value, oracles.token_mean(latent.numpy(), levels, patch, key).ravel(), atol=1e-12), key


def test_gather_of_the_canvas_gives_the_tokens_back():
    """Law: replicating and averaging again is the identity wherever all of a coarse pixel lies on the canvas."""
    for shape, levels, patch in (((1, 8, 4), 2, 2), ((2, 4, 8), 2, 3)):
        grid, _ = grown(shape, levels, 9)
        layout, x = Layout(2, patch), normal(len(grid), 2 * patch**2)
        assert torch.allclose(layout.gather(layout.canvas(x, grid), grid), x, atol=1e-12)


@pytest.mark.parametrize("halvings", [0, 1, 2, 3])
def test_at_level_on_a_45_by_80_canvas(halvings):
    """Law: the mean over existing pixels, on HunyuanVideo's odd grid, at its border and inside."""
    latent = normal(1, 1, 45, 80)
    got = Layout(1, 1).at_level(latent, halvings).numpy()
    edge = 2**halvings
    assert got.shape[2:] == (-(-45 // edge), -(-80 // edge))
    for y in (0, 3, got.shape[2] - 2, got.shape[2] - 1):
        for x in (0, 7, got.shape[3] - 1):
            assert got[:, 0, y, x] == pytest.approx(oracles.mean_pixel(latent.numpy(), edge, 0, y, x), abs=1e-12)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_unpack_puts_a_uniform_grid_at_its_own_resolution_in_any_order(level):
    """Law: unpack of one level is its dense latent, also where tokens stand in tree order, not row-major."""
    shape, levels, patch = (2, 5, 6), 2, 2
    grid = TokenGrid.uniform(shape, levels, 0)
    for _ in range(level):
        grid, _ = grid.expand(grid.expandable)
    x = normal(len(grid), 3 * patch**2)
    got = Layout(3, patch).unpack(x, grid).numpy()
    assert got[0].size * 3 == x.numel()
    for value, (f, r, c) in zip(x.numpy(), grid.coord, strict=True):
        block = got[:, f, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
        assert np.array_equal(block, value.reshape(3, patch, patch))
    if level == levels:
        assert np.array_equal(Layout(3, patch).canvas(x, grid).numpy(), got)


def test_unpack_refuses_a_mixed_grid():
    """Law: a mixed grid has no dense latent of its own, and the error names the way out."""
    grid, _ = grown((1, 4, 4), 1, 0)
    with pytest.raises(ValueError, match="canvas"):
        Layout(1, 1).unpack(normal(len(grid), 1), grid)
