"""Proposition 1 along real runs, against closed forms: Fourier modes of the random field, spelled out here."""

import itertools

import numpy as np
import pytest
import torch

from fresco.backends import load_model
from fresco.backends.oracle import OracleModel
from fresco.config import FrescoConfig
from fresco.grid import TokenGrid
from fresco.lab.proposition import along, exact, field_pyramid
from fresco.noise import NoiseField, hashed_normal
from fresco.sampler import sample

SIDE = 16


def power():
    """Return the spectrum (1 + k^2)^-1.25 of unit mean."""
    k = np.minimum(np.arange(SIDE), SIDE - np.arange(SIDE))
    raw = (1.0 + k[:, None] ** 2 + k[None] ** 2) ** -1.25
    return raw / raw.mean()


def gain(sigma):
    """Return what the exact flow has made of each mode of unit noise by sigma."""
    return np.sqrt((1 - sigma) ** 2 * power() + sigma**2)


def distances(sigma):
    """Return per-mode (rest, b): re-noising `a X(s) + b xi` up to 2 s / (1 + s), less X(e)."""
    a, b = 1 / (1 + sigma), sigma / (1 + sigma)
    return a * gain(sigma) - gain(2 * sigma / (1 + sigma)), b


def test_expectations_are_the_closed_form():
    rows = exact((1, SIDE, SIDE), points=(0.2, 0.5, 0.9))
    for row, sigma in zip(rows, (0.2, 0.5, 0.9), strict=True):
        rest, b = distances(sigma)
        assert row.sigma_from == sigma
        assert row.sigma_to == pytest.approx(2 * sigma / (1 + sigma))
        assert row.bound == pytest.approx(b**2)
        assert row.fresh == pytest.approx(np.mean(rest**2) + b**2)
        assert row.unified == pytest.approx(np.mean((rest + b) ** 2))


@pytest.fixture(scope="module")
def rows():
    return along(OracleModel(), "x", FrescoConfig.full(300, size=(1, SIDE, SIDE), seed=3), draws=16)


def test_along_a_run_of_many_steps_the_distances_are_those_of_the_exact_flow_of_that_noise(rows):
    grid = TokenGrid.uniform((1, SIDE, SIDE), 1, 1)
    eps = NoiseField(3, 3, 1).at(grid).T.reshape(3, SIDE, SIDE)
    modes = np.abs(np.fft.fft2(eps)) ** 2 / SIDE**2
    assert len(rows) > 250
    for row in rows[::20]:
        rest, b = distances(row.sigma_from)
        own = float(np.mean((rest + b) ** 2 * modes))
        assert row.bound == pytest.approx(b**2)
        assert row.unified == pytest.approx(own, rel=0.05, abs=2e-5)
        apart = float(np.mean(rest**2 * modes))
        spread = np.sqrt((2 * b**4 + 4 * b**2 * apart) / (3 * SIDE**2 * 16))
        assert abs(row.fresh - apart - b**2) < 5 * spread


def test_fresh_noise_stays_above_its_bound_and_the_field_far_below_it(rows):
    for row in rows[::10]:
        slack = 5 * row.bound * np.sqrt(2 / (3 * SIDE**2 * 16))
        assert row.fresh >= row.bound - slack
        assert row.unified < row.bound


def test_rows_of_a_run_with_promotions_look_back_only_over_the_same_tokens():
    config = FrescoConfig.recommended(14, size=(1, SIDE, SIDE), seed=3)
    model = OracleModel()
    denoiser = model.bind(config)
    steps = list(sample(denoiser, model.encode("x"), config))
    found = {row.step: row for row in along(model, "x", config)}
    assert found
    for k, step in enumerate(steps):
        before = [s for s in steps[: k + 1] if s.grid is step.grid]
        landing = 2 * step.sigma / (1 + step.sigma)
        assert (k in found) == (len(before) > 1 and step.sigma < 1 and landing <= before[0].sigma), k
        if k in found:
            above = [s for s in before if s.sigma >= landing][-1]
            below = next(s for s in before if s.sigma < landing)
            w = (above.sigma - landing) / (above.sigma - below.sigma)
            target = (1 - w) * above.x + w * below.x
            eps = torch.as_tensor(NoiseField(3, 3, 1).at(step.grid)).float()
            moved = step.x / (1 + step.sigma) + step.sigma / (1 + step.sigma) * eps
            assert found[k].unified == pytest.approx(float(((moved - target) ** 2).mean()), rel=1e-3, abs=1e-9)


def test_on_learned_weights_the_field_stays_nearer_to_the_path_than_fresh_noise():
    rows = along(load_model("sinopia", device="cpu"), "fox", FrescoConfig.full(10, size=(1, 64, 64)))
    assert len(rows) >= 7
    assert all(row.unified < row.fresh for row in rows)
    assert all(row.fresh > row.bound for row in rows)


@pytest.mark.parametrize(("rows", "cols", "levels"), [(8, 8, 2), (5, 7, 1), (6, 10, 2)])
def test_the_pyramid_is_one_field(rows, cols, levels):
    found = field_pyramid(9, rows, cols, levels, channel=2)
    assert len(found) == levels + 1
    finest = [[float(hashed_normal(9, 0, r, c, 2)) for c in range(cols)] for r in range(rows)]
    assert found[-1] == pytest.approx(np.array(finest))
    for low, high in itertools.pairwise(found):
        for r in range(high.shape[0] // 2):
            for c in range(high.shape[1] // 2):
                assert low[r, c] == pytest.approx(high[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].sum() / 2)
        assert low.shape == (-(-high.shape[0] // 2), -(-high.shape[1] // 2))
