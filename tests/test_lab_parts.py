"""One parent taken apart: the parts make its children, and are what the method's formulas say."""

import numpy as np
import pytest
import torch

from fresco.backends import load_model
from fresco.backends.oracle import OracleModel
from fresco.config import FrescoConfig
from fresco.errors import FrescoError
from fresco.grid import TokenGrid
from fresco.lab.parts import expansion_of, first_expansion
from fresco.noise import NoiseField
from fresco.sampler import sample
from fresco.tokens import Layout

SIGNS = {0: [[1, -1], [1, -1]], 1: [[1, 1], [-1, -1]], 2: [[1, -1], [-1, 1]]}


@pytest.fixture(scope="module")
def model():
    return load_model("sinopia", device="cpu")


def promoted(model, config):
    """Return the denoiser and the first step that promotes something."""
    denoiser = model.bind(config)
    step = next(s for s in sample(denoiser, model.encode("fox"), config) if s.selected.any())
    return denoiser, step


@pytest.mark.parametrize(
    "changes",
    [
        {"transition": "carry"},
        {"transition": "renoise", "checks": 1},
        {"transition": "rewind", "checks": 1, "noise": "fresh"},
        {"transition": "restart", "checks": 1},
        {"expansion": "bilinear"},
        {"expansion": "hadamard_token"},
    ],
    ids=str,
)
def test_parts_sum_to_the_children_as_haar_does_on_the_whole(model, changes):
    config = FrescoConfig.recommended(4, size=(1, 64, 64), seed=6, **changes)
    denoiser, step = promoted(model, config)
    layout = Layout(denoiser.channels, denoiser.patch)
    _, parent = step.grid.expand(step.selected)
    for token in np.flatnonzero(step.selected)[::5]:
        parts = expansion_of(denoiser, config, step, int(token))
        children = step.x_next[torch.as_tensor(parent == token)]
        assert np.array_equal(parts.children, layout.pixels(children).numpy())
        low, details = layout.haar_down(children[None])
        whole = layout.pixels(layout.haar_up(low, details)[0]).numpy()
        rows = [np.concatenate([whole[0], whole[1]], -1), np.concatenate([whole[2], whole[3]], -1)]
        assert np.allclose(parts.clean + parts.noise + parts.details.sum(0), np.concatenate(rows, -2), atol=2e-6)
        assert np.allclose(parts.block, np.concatenate(rows, -2), atol=2e-6)
        assert np.allclose(parts.up, parts.clean + parts.noise, atol=1e-6)
        assert np.allclose(parts.parent, (1 - parts.sigma_from) * parts.x0 + parts.sigma_from * parts.eps, atol=1e-5)
        for c, r, q in np.ndindex(parts.parent.shape):  # one latent pixel after the other
            square = parts.block[c, 2 * r : 2 * r + 2, 2 * q : 2 * q + 2]
            assert np.allclose(parts.up[c, 2 * r : 2 * r + 2, 2 * q : 2 * q + 2], square.mean(), atol=2e-6)
            for k, signs in SIGNS.items():
                part = np.array(signs) * (np.array(signs) * square).sum() / 4
                assert np.allclose(parts.details[k, c, 2 * r : 2 * r + 2, 2 * q : 2 * q + 2], part, atol=2e-6)


@pytest.mark.parametrize("transition", ["carry", "rewind", "renoise"])
def test_parts_are_the_formulas(model, transition):
    """Clean by 1 - sigma, the parent's noise by sigma / 2, the field's details by sigma: METHOD 2.1, 2.2."""
    config = FrescoConfig.recommended(5, size=(1, 64, 64), seed=6, transition=transition, checks=1)
    denoiser, step = promoted(model, config)
    token = int(np.flatnonzero(step.selected)[3])
    parts = expansion_of(denoiser, config, step, token)
    assert parts.sigma == step.sigma_next
    twice = np.ones((1, 2, 2))
    assert np.allclose(parts.clean, (1 - parts.sigma) * np.kron(parts.x0, twice), atol=1e-5)
    assert np.allclose(parts.noise, parts.sigma / 2 * np.kron(parts.eps, twice), atol=1e-5)
    frame, row, col = parts.coord
    assert parts.coord == tuple(step.grid.coord[token])
    p = denoiser.patch
    fine = TokenGrid.uniform(step.grid.shape, 1, 1)
    noise = torch.as_tensor(NoiseField(6, denoiser.channels, p).at(fine)).float()
    dense = Layout(denoiser.channels, p).unpack(noise, fine)[:, frame].numpy()
    under = dense[:, 2 * row * p : 2 * (row + 1) * p, 2 * col * p : 2 * (col + 1) * p]
    for k, signs in SIGNS.items():
        unit = sum(signs[i][j] * under[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 2
        assert np.allclose(parts.field[k], unit, atol=1e-5)
        assert np.allclose(parts.details[k], parts.sigma / 2 * np.kron(unit, np.array(signs)[None]), atol=1e-5)


def test_the_first_expansion_of_a_run_or_of_a_place():
    model, config = OracleModel(), FrescoConfig.recommended(8, size=(1, 8, 8), seed=2)
    steps = [s for s in sample(model.bind(config), model.encode("x"), config) if s.selected.any()]
    first = first_expansion(model, "x", config)
    assert (first.step, first.token) == (steps[0].step, int(np.flatnonzero(steps[0].selected)[0]))
    last = steps[-1]
    row, col = 2 * last.grid.coord[np.flatnonzero(last.selected)[-1]][1:] + 1
    found = first_expansion(model, "x", config, (0, int(row), int(col)))
    assert (found.step, found.coord) == (last.step, (0, row // 2, col // 2))


def test_what_cannot_be_taken_apart_is_said():
    model = OracleModel()
    config = FrescoConfig.recommended(8, size=(1, 7, 8), seed=2)
    denoiser, step = promoted(model, config)
    with pytest.raises(FrescoError, match="not promoted"):
        expansion_of(denoiser, config, step, int(np.flatnonzero(~step.selected)[0]))
    with pytest.raises(FrescoError, match="does not exist"):
        expansion_of(denoiser, config, step, 99)
    with pytest.raises(FrescoError, match="border and has 2 children"):
        first_expansion(model, "x", config, (0, 6, 0))
    with pytest.raises(FrescoError, match="not on the grid"):
        first_expansion(model, "x", config, (0, 7, 0))
    with pytest.raises(FrescoError, match="promotes no token"):
        first_expansion(model, "x", FrescoConfig.full(4, size=(1, 8, 8)))
    twice = FrescoConfig.recommended(6, size=(1, 8, 8), levels=2, stages=(2, 2, 2), checks=1, ratio=0.0)
    with pytest.raises(FrescoError, match="expanded twice"):
        first_expansion(model, "x", twice, (0, 0, 0))
