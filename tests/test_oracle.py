"""The Gaussian random field: exact velocity, exact law of a whole run, METHOD 2.4's numbers. Source: METHOD 2.4."""

import itertools
import math

import numpy as np
import pytest
import torch

from fresco.backends import oracle
from fresco.backends.oracle import IdentityNoise, OracleDenoiser, covariance
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.noise import NoiseField
from fresco.sampler import sample
from tests import oracles
from tests.test_grid import grown, keys_of

COND = Conditioning("")


def slow_covariance(rows, cols, exponent):
    """Return the covariance of the field as a sum of cosines over all frequencies, unit variance."""
    waves = {}
    for u, v in itertools.product(range(rows), range(cols)):
        ku, kv = (k - n if k > (n - 1) // 2 else k for k, n in ((u, rows), (v, cols)))
        waves[u, v] = (1 + ku**2 + kv**2) ** -exponent
    total = sum(waves.values())
    cells = list(itertools.product(range(rows), range(cols)))
    out = np.empty((len(cells), len(cells)))
    for i, (y, x) in enumerate(cells):
        for j, (t, s) in enumerate(cells):
            out[i, j] = sum(
                p * math.cos(2 * math.pi * (u * (y - t) / rows + v * (x - s) / cols)) for (u, v), p in waves.items()
            )
    return out / total


def slow_means(shape, levels, keys):
    """Return each token's mean over the cells that exist, as a matrix over all finest cells."""
    cells = list(itertools.product(*map(range, shape)))
    out = np.zeros((len(keys), len(cells)))
    for i, key in enumerate(keys):
        under = oracles.cover(shape, levels, key)
        for cell in under:
            out[i, cells.index(cell)] = 1 / len(under)
    return out


@pytest.mark.parametrize(("rows", "cols", "exponent"), [(4, 4, 1.25), (5, 6, 1.25), (3, 7, 0.8), (1, 5, 2.0)])
def test_the_field_has_the_power_law_spectrum_and_unit_variance(rows, cols, exponent):
    """Law: METHOD 2.4: periodic, (1 + k^2)^-1.25 with k in cycles per image, unit pixel variance, by cosines."""
    got = covariance(rows, cols, exponent)
    assert np.allclose(got, slow_covariance(rows, cols, exponent), atol=1e-12)
    assert np.allclose(np.diag(got), 1)


GRIDS = [((1, 5, 6), 1), ((2, 3, 4), 1), ((1, 5, 7), 2), ((1, 4, 4), 2)]


@pytest.mark.parametrize("sigma", [1.0, 0.8, 0.37, 1e-3])
@pytest.mark.parametrize(("shape", "levels"), GRIDS)
def test_velocity_is_the_conditional_expectation_of_a_joint_gaussian(shape, levels, sigma):
    """Law: v = E[eps - x0 | z], by conditioning the joint law of (eps - y, z), y = P x, on mixed odd grids."""
    grid, keys = grown(shape, levels, 13)
    means = slow_means(shape, levels, keys)
    truth = np.kron(np.eye(shape[0]), slow_covariance(shape[1], shape[2], 1.25))
    # (x, eps) are independent; every quantity is a matrix on them
    joint = np.block([
        [truth, np.zeros((len(truth), len(keys)))], [np.zeros((len(keys), len(truth))), np.eye(len(keys))],
    ])  # fmt: skip
    z = np.hstack([(1 - sigma) * means, sigma * np.eye(len(keys))])
    v = np.hstack([-means, np.eye(len(keys))])
    expected = v @ joint @ z.T @ np.linalg.inv(z @ joint @ z.T)
    got = OracleDenoiser(shape)(torch.eye(len(keys)), grid, sigma, COND).numpy()
    assert np.allclose(got, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize(
    ("shape", "levels", "seen"),
    [
        ((1, 16, 16), 1, None), ((1, 16, 8), 2, None), ((2, 6, 8), 1, None),  # coarse grids are periodic
        ((1, 7, 9), 1, None), ((1, 6, 10), 2, None),  # tokens at the border are cut off
        ((2, 6, 8), 1, slice(None, None, 3)),  # a sparse set
    ],
)  # fmt: skip
def test_the_fast_velocity_is_the_one_by_dense_eigenmodes(shape, levels, seen):
    """Law: at every step of a run, coarse, mixed and full, the velocity is that of the whole covariance, taken apart."""
    truth = np.kron(np.eye(shape[0]), covariance(*shape[1:], 1.25))
    model = OracleDenoiser(shape, channels=2)
    config = FrescoConfig.recommended(9, size=shape, levels=levels, ratio=0.4, seed=3)
    kinds = set()
    for step in sample(model, COND, config):
        grid, x = step.grid, step.x
        if seen is not None:
            grid, x = TokenGrid(grid.shape, grid.levels, grid.level[seen], grid.coord[seen]), x[seen]
        kinds.add(oracle.is_periodic(grid))
        means = np.zeros((len(grid), len(truth)))
        for cell, token in enumerate(grid.cells().ravel()):
            if token >= 0:
                means[token, cell] = 1
        means /= means.sum(axis=1, keepdims=True)
        for sigma in (step.sigma, 0.03):
            slow = oracles.field_velocity(truth, means, x.double().numpy(), sigma)
            got = model(x, grid, sigma, COND).numpy()
            assert np.allclose(got, slow, atol=2e-6 * np.abs(slow).max(), rtol=2e-6), (step.stage, sigma)
    assert kinds == ({True, False} if seen is None else {False})  # both ways have been gone


def test_velocity_leaves_an_error_that_the_state_cannot_explain():
    """Law: Monte Carlo: (eps - x0) - v is uncorrelated with z, and its power is the posterior variance."""
    shape, levels, sigma, draws = (1, 5, 6), 1, 0.6, 40000
    grid, keys = grown(shape, levels, 13)
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(slow_covariance(5, 6, 1.25) + 1e-12 * np.eye(30))
    x0 = slow_means(shape, levels, keys) @ root @ rng.standard_normal((30, draws))
    eps = rng.standard_normal((len(keys), draws))
    z = (1 - sigma) * x0 + sigma * eps
    v = OracleDenoiser(shape)(torch.tensor(z).float(), grid, sigma, COND).numpy()
    error = (eps - x0) - v
    scores = error @ z.T / draws / np.sqrt(np.outer(error.var(axis=1), z.var(axis=1)) / draws)
    assert np.abs(scores).max() < 5
    assert error.var() < 0.9 * (eps - x0 - (z * (eps - x0)).sum() / (z * z).sum() * z).var()


def test_velocity_has_its_limits_at_sigma_one_and_zero():
    """Law: at 1 the state is noise and v is z itself; at 0 it is the picture and v is minus the picture."""
    grid, keys = grown((1, 4, 6), 1, 3)
    z = torch.tensor(np.random.default_rng(0).standard_normal((len(keys), 3))).float()
    model = OracleDenoiser((1, 4, 6))
    assert torch.allclose(model(z, grid, 1.0, COND), z, atol=1e-5)
    assert torch.allclose(model(z, grid, 0.0, COND), -z, atol=1e-4)


def test_the_grid_of_sigmas_is_the_one_of_the_table():
    """Law: METHOD 2.4: low stage uniform in sigma, fine stage uniform under shift 2, end 1e-3."""
    model = OracleDenoiser((1, 16, 16))
    assert model.sigmas(4, 64, 1.0, 0.6) == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])
    assert model.sigmas(10, 256) == pytest.approx(oracles.model_sigmas(10, 1.0, 1e-3, 2.0))
    assert model.sigmas(5, 256, 0.8, 0.3) == pytest.approx(oracles.model_sigmas(5, 0.8, 0.3, 2.0))


@pytest.mark.parametrize(("shape", "levels"), GRIDS)
def test_identity_noise_holds_the_coefficients_of_the_field(shape, levels):
    """Law: identity columns times the field's finest pixels are the field's noise and details, on odd mixed grids."""
    grid, _ = grown(shape, levels, 8, rounds=levels - 1)
    noise, field, edge = IdentityNoise(grid), NoiseField(4, 1, 1), 2**levels
    padded = itertools.product(range(shape[0]), *(range(-(-side // edge) * edge) for side in shape[1:]))
    pixels = np.array([field.pixels(*at)[0] for at in padded])
    assert noise.columns == len(pixels)
    assert np.allclose(noise.at(grid) @ pixels, field.at(grid)[:, 0], atol=1e-12)
    mask = grid.expandable & (np.arange(len(grid)) % 3 != 0)
    assert np.allclose(noise.details(grid, mask) @ pixels, field.details(grid, mask)[..., 0], atol=1e-12)


def test_fresh_identity_columns_are_orthogonal_to_the_field_and_to_each_other():
    """Law: independent draws take blocks of their own, each of unit power, and running out is an error."""
    grid = TokenGrid.uniform((1, 4, 4), 1, 0)
    fine, _ = grid.expand(grid.expandable)
    noise = IdentityNoise(grid, 2)
    start, details, later = noise.at(grid), noise.details(grid, grid.expandable).reshape(12, -1), noise.at(fine)
    everything = np.vstack([start, details, later])
    assert np.allclose(everything @ everything.T, np.eye(4 + 12 + 16), atol=1e-12)
    with pytest.raises(ValueError, match="more"):
        noise.at(fine)


def transfer(config, shape, draws=0):
    """Return the transfer matrix of a run, rows in row-major order of the finest cells, and its cost."""
    noise = IdentityNoise(TokenGrid.uniform(shape, config.levels, 0), draws)
    steps = list(sample(OracleDenoiser(shape, channels=noise.columns), COND, config, noise=noise))
    cells = {key[1:]: row for key, row in zip(keys_of(steps[-1].grid_next), steps[-1].x_next.numpy(), strict=True)}
    cost = sum(len(s.grid) for s in steps) / math.prod(shape)
    return np.array([cells[c] for c in sorted(cells)], dtype=float), cost


@pytest.mark.parametrize(
    "settings",
    [
        {"transition": "carry", "checks": 2}, {"transition": "renoise"}, {"transition": "renoise_x0"},
        {"transition": "rewind", "switch": (0.7, 0.4)}, {"transition": "carry", "levels": 2, "checks": 2},
        {"transition": "carry", "expansion": "bilinear"}, {"transition": "renoise", "detail_gain": 0.2},
    ],
)  # fmt: skip
def test_a_run_is_its_transfer_matrix_times_the_field(settings):
    """Law: where selection does not look at the state the sampler is linear: T n equals the run on n, odd grid."""
    shape = (1, 5, 7)
    config = FrescoConfig(nfe=10, stages=(4, 3, 3), selection="even", seed=2, **settings)
    edge = 2**config.levels
    field = NoiseField(2, 1, 1)
    padded = itertools.product(range(1), *(range(-(-side // edge) * edge) for side in shape[1:]))
    pixels = np.array([field.pixels(*at)[0] for at in padded])
    matrix, _ = transfer(config, shape)
    final = list(sample(OracleDenoiser(shape), COND, config))[-1]
    values = {key[1:]: float(v) for key, v in zip(keys_of(final.grid_next), final.x_next[:, 0], strict=True)}
    assert np.allclose(matrix @ pixels, [values[c] for c in sorted(values)], atol=2e-5)
    spread = np.abs(matrix).sum(axis=1)
    assert (spread > 0.5).all()


def exact_flow(shape, sigma):
    """Return the transfer matrix of the exact flow by the closed form sqrt((1-s)^2 lambda + s^2) per eigenmode."""
    power, modes = np.linalg.eigh(np.kron(np.eye(shape[0]), slow_covariance(shape[1], shape[2], 1.25)))
    return modes @ np.diag(np.sqrt((1 - sigma) ** 2 * power + sigma**2)) @ modes.T


@pytest.mark.parametrize("shape", [(1, 4, 6), (2, 2, 4)])
def test_full_runs_approach_the_closed_form_in_every_eigenmode(shape):
    """Law: METHOD 2.4: first order in the step, so the distance falls fourfold with twice the steps, towards zero."""
    expected = exact_flow(shape, 1e-3)
    gaps = []
    for nfe in (100, 200, 400):
        matrix, cost = transfer(FrescoConfig.full(nfe), shape)
        assert cost == nfe
        gaps.append(((matrix - expected) ** 2).sum())
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.25)
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.25)
    power, modes = np.linalg.eigh(np.kron(np.eye(shape[0]), slow_covariance(shape[1], shape[2], 1.25)))
    by_mode = np.diag(modes.T @ matrix @ modes)
    assert by_mode == pytest.approx(np.sqrt((1 - 1e-3) ** 2 * power + 1e-6), rel=0.02)


@pytest.mark.parametrize("shape", [(1, 6, 5), (1, 5, 6)])
def test_full_runs_approach_the_exact_flow_on_odd_grids_too(shape):
    """Law: the noise off the canvas is drawn and dropped, so those columns are zero and the others are the flow."""
    matrix, _ = transfer(FrescoConfig.full(300), shape)
    padded = list(itertools.product(range(1), *(range(-(-side // 2) * 2) for side in shape[1:])))
    inside = [i for i, (_, y, x) in enumerate(padded) if y < shape[1] and x < shape[2]]
    outside = sorted(set(range(len(padded))) - set(inside))
    assert len(outside) > 0
    assert np.abs(matrix[:, outside]).max() == 0
    assert np.abs(matrix[:, inside] - exact_flow(shape, 1e-3)).max() < 0.02


@pytest.mark.parametrize("shape", [(1, 6, 5), (1, 5, 6), (2, 3, 3)])
def test_the_public_law_knows_odd_grids(shape):
    """Law: `law` of many full steps is distance 0, Frechet 0 and the field's own variance, odd canvas or not."""
    found = oracle.law(FrescoConfig.full(300), shape)
    assert found["cost"] == 300
    assert found["distance"] < 1e-3
    assert found["frechet"] < 1e-3
    assert found["variance"] == pytest.approx(1, abs=0.03)


def root(matrix):
    """Return the symmetric square root."""
    power, modes = np.linalg.eigh(matrix)
    return modes @ np.diag(np.sqrt(np.maximum(power, 0))) @ modes.T


@pytest.fixture(scope="module")
def field():
    """Return the 16 x 16 field of METHOD 2.4: exact flow, covariance and its root."""
    truth = covariance(16, 16, 1.25)
    power, modes = np.linalg.eigh(truth)
    flow = modes @ np.diag(np.sqrt((1 - 1e-3) ** 2 * power + 1e-6)) @ modes.T
    return flow, truth, root(truth)


def expansion_at(sigma, low=8, full=10, **changes):
    """Return low steps, everybody promoted at sigma, then full steps."""
    return FrescoConfig(nfe=low + full, stages=(low, 0, full), switch=(sigma,), **changes)


ROWS = {
    "full 12": (FrescoConfig.full(12), 0, (12, 0.0155, 0.0157, 0.77)),
    "full 8": (FrescoConfig.full(8), 0, (8, 0.0330, 0.0333, 0.68)),
    "full 6": (FrescoConfig.full(6), 0, (6, 0.0559, 0.0562, 0.59)),
    "exact .7": (expansion_at(0.7, transition="rewind"), 0, (12, 0.0111, 0.0109, 0.81)),
    "exact .7 fresh": (expansion_at(0.7, transition="rewind", noise="fresh"), 1, (12, 0.4998, 0.0109, None)),
    "restart .7": (expansion_at(0.7, transition="restart"), 1, (12, 1.3753, 0.0228, None)),
    "replication .7": (expansion_at(0.7, transition="carry", expansion="nearest"), 0, (12, 0.4530, 0.3598, None)),
    "carry .8": (expansion_at(0.8, transition="carry"), 0, (12, 0.0151, 0.0149, 0.77)),
    "carry .7": (expansion_at(0.7, transition="carry"), 0, (12, 0.0209, 0.0194, 0.75)),
    "4 + 5 exact .6": (expansion_at(0.6, 4, 5, transition="rewind"), 0, (6, 0.0337, 0.0330, 0.68)),
    "4 + 5 renoise_x0 .5": (expansion_at(0.5, 5, 5, transition="renoise_x0"), 0, (6.25, 0.0228, 0.0155, 0.95)),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_the_method(name, field):
    """Law: METHOD 2.4, rows not marked indicative: cost exactly, the rest within 3 %, through sample() itself."""
    config, draws, (cost, distance, frechet, kept) = ROWS[name]
    flow, truth, half = field
    matrix, spent = transfer(config, (1, 16, 16), draws)
    reference = np.zeros_like(matrix)
    reference[:, :256] = flow
    output = matrix @ matrix.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(half @ output @ half), 0)).sum()
    assert spent == cost
    assert ((matrix - reference) ** 2).sum() / 256 == pytest.approx(distance, rel=0.03)
    assert (np.trace(output) + np.trace(truth) - 2 * overlap) / 256 == pytest.approx(frechet, rel=0.03)
    if kept is not None:
        assert np.trace(output) / 256 == pytest.approx(kept, abs=0.006)


@pytest.mark.parametrize(
    ("settings", "draws"),
    [({"transition": "carry"}, 0), ({"transition": "rewind", "noise": "fresh"}, 1), ({"transition": "restart"}, 1)],
)
def test_the_public_law_is_the_law(settings, draws):
    """Law: distance, Frechet distance and variance kept, from the transfer matrix, by their definitions."""
    shape, config = (1, 6, 8), expansion_at(0.7, 4, 5, **settings)
    matrix, cost = transfer(config, shape, draws)
    reference = np.zeros_like(matrix)
    reference[:, :48] = exact_flow(shape, 1e-3)
    output, truth = matrix @ matrix.T, slow_covariance(6, 8, 1.25)
    overlap = np.trace(root(root(truth) @ output @ root(truth)))
    public = oracle.law(config, shape)
    assert public["cost"] == pytest.approx(cost)
    assert public["distance"] == pytest.approx(((matrix - reference) ** 2).sum() / 48, rel=1e-4)
    assert public["frechet"] == pytest.approx((np.trace(output) + np.trace(truth) - 2 * overlap) / 48, rel=1e-3)
    assert public["variance"] == pytest.approx(np.trace(output) / 48, rel=1e-4)


def test_proposition_one_on_the_exact_flow():
    """Law: Eq. 5-6: fresh re-noise is at least b^2 away per pixel, the field's never further; by loops over modes."""
    power = np.maximum(np.linalg.eigvalsh(slow_covariance(4, 6, 1.25)), 0)
    points = (0.2, 0.5, 0.8)
    for row, sigma in zip(oracle.proposition((1, 4, 6), 1.25, points), points, strict=True):
        landing = 2 * sigma / (1 + sigma)
        a = (1 - landing) / (1 - sigma)
        b = landing - a * sigma
        fresh = shared = 0.0
        for p in power:
            before, after = (math.sqrt((1 - s) ** 2 * p + s**2) for s in (sigma, landing))
            shared += (a * before + b - after) ** 2 / len(power)
            fresh += ((a * before - after) ** 2 + b**2) / len(power)
        assert (row["sigma"], row["landing"], row["bound"]) == pytest.approx((sigma, landing, b**2))
        assert (row["fresh"], row["field"]) == pytest.approx((fresh, shared))
        assert row["field"] <= row["fresh"]
        assert row["fresh"] >= row["bound"]


def test_a_model_too_big_for_dense_matrices_is_refused():
    """Law: the oracle is exact or not at all."""
    with pytest.raises(ValueError, match="4096"):
        oracle.OracleModel().bind(FrescoConfig(size=(1, 65, 64)))
    assert oracle.OracleModel().bind(FrescoConfig(size=(1, 5, 6))).token_shape(None) == (1, 5, 6)
