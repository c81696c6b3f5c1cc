"""JiT against a loop over tokens. Source: METHOD 3; arXiv 2603.10744 and its published code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.noise import NoiseField
from fresco.sampler import sample
from fresco.sparse import Sparse, anchors, fill, roughness
from tests import oracles
from tests.test_flux import denoiser, prompt, transformer
from tests.test_grid import keys_of

COND = Conditioning("")


def slow_fill(value, seen, shape):
    """Return every token's value: the seen ones', else a Gaussian mean over the nearest seen ones' of the same frame."""
    frames, rows, cols = shape
    nearest = {}
    for f in range(frames):
        for r in range(rows):
            for c in range(cols):
                here = [k for k in seen if k[1] == f]  # in order; the first of the nearest counts
                nearest[f, r, c] = value[min(here, key=lambda k: (k[2] - r) ** 2 + (k[3] - c) ** 2)]
    sigma = min(max(0.4 * math.sqrt(frames * rows * cols / len(seen)), 1.0), 10.0)
    out = {}
    for f, r, c in nearest:
        if any(k[1:] == (f, r, c) for k in seen):
            out[f, r, c] = nearest[f, r, c]
            continue
        total, weight = 0.0, 0.0
        for y in range(rows):
            for x in range(cols):
                if max(abs(y - r), abs(x - c)) <= math.ceil(3 * sigma):
                    w = math.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * sigma**2))
                    total, weight = total + w * nearest[f, y, x], weight + w
        out[f, r, c] = total / weight
    return out


def slow_roughness(velocity):
    """Return the variance over the nine tokens around each, those beyond the border being zero, mean over the entries."""
    out = {}
    for f, r, c in velocity:
        zero = np.zeros_like(velocity[f, r, c])
        nine = [velocity.get((f, r + a, c + b), zero) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        out[f, r, c] = float(np.mean(np.mean(np.square(nine), axis=0) - np.mean(nine, axis=0) ** 2))
    return out


def slow_jit(settings, nfe, shape, seed, sigmas, first):
    """Return the final state and how many tokens each call saw."""
    grid = TokenGrid.uniform(shape, 1, 1)
    places = [tuple(k[1:]) for k in keys_of(grid)]
    field = NoiseField(seed, 2, 1)
    noise = {p: field.pixels(*p).reshape(2, 1, 1) for p in places}
    y = dict(noise)
    seen = [k for k, m in zip(keys_of(grid), first, strict=True) if m]
    counts = []
    for step in range(nfe):
        sigma, after = sigmas[step], sigmas[step + 1]
        state = {k: y[k[1:]] for k in seen}
        own = oracles.pattern_velocity(seen, state, sigma, 1)
        counts.append(len(seen))
        velocity = slow_fill(own, seen, shape)
        landing = {p: y[p] + (after - sigma) * velocity[p] for p in places}
        ends = [int(nfe * e) for e in settings.ends]
        if step + 1 in ends[:-1]:
            stage = ends.index(step + 1) + 1
            rough = slow_roughness(velocity)
            rest = [p for p in places if (1, *p) not in seen]
            want = int(len(places) * settings.densities[stage]) - len(seen)
            new = sorted(rest, key=lambda p: -rough[p])[:want]
            x0 = slow_fill({k: state[k] - sigma * own[k] for k in seen}, seen, shape)
            for p in new:
                target = (1 - after) * x0[p] + after * noise[p]
                landing[p] = landing[p] + (target - landing[p]) / settings.relax
            seen = [k for k in keys_of(grid) if k in seen or k[1:] in new]
        y = landing
    return y, counts


@pytest.mark.parametrize("shape", [(1, 7, 9), (2, 5, 6)])
@pytest.mark.parametrize("settings", [Sparse(), Sparse((0.32, 0.6, 1.0), relax=2), Sparse((0.5, 1.0), (0.5, 1.0), 1)])
def test_a_whole_run_is_the_slow_one(settings, shape):
    config = FrescoConfig.full(11, seed=4)
    model = oracles.PatternDenoiser(shape, 2)
    wrapped = settings.wrap(model, config)
    steps = list(sample(wrapped, COND, config))
    grid = steps[0].grid
    first = anchors(grid, settings.active(0, 11, len(grid)), 4)
    expected, counts = slow_jit(settings, 11, shape, 4, model.sigmas(11, len(grid)), first)
    got = {k[1:]: v.numpy().reshape(2, 1, 1) for k, v in zip(keys_of(grid), steps[-1].x_next, strict=True)}
    assert max(float(np.abs(got[p] - expected[p]).max()) for p in got) < 1e-3
    assert counts == [int(len(grid) * settings.densities[settings.stage(i, 11)]) for i in range(11)]
    assert counts[0] < counts[-1] == len(grid)
    assert wrapped.seen == len(grid)


def test_the_anchors_hold_every_other_row_and_column():
    grid = TokenGrid.uniform((1, 12, 12), 1, 1)
    found = anchors(grid, 80, 0).reshape(12, 12)  # 25 inner ones and a border of 44, made up to 80
    assert found.sum() == 80
    assert found[::2, ::2].all()
    assert found[[0, -1]].all()
    assert found[:, [0, -1]].all()
    fewer = anchors(grid, 30, 0).reshape(12, 12)
    assert fewer.sum() == 30
    inner = fewer[1:-1, 1:-1]
    assert not inner[::2].any()  # odd rows, within the border, only once all others are in
    assert not (anchors(grid, 80, 1).reshape(12, 12) == found).all()


def test_filling_keeps_what_is_seen_and_a_constant():
    grid = TokenGrid.uniform((2, 6, 5), 1, 1)
    active = torch.arange(60) % 4 == 0
    value = torch.randn(int(active.sum()), 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fill(value, active, grid)[active], value)
    assert torch.allclose(fill(torch.full_like(value, 0.7), active, grid), torch.full((60, 3), 0.7))
    frames = torch.where(grid_frames(grid) == 0, 1.0, -1.0)[:, None]
    assert torch.allclose(fill(frames[active], active, grid), frames)  # nothing crosses from frame to frame


def grid_frames(grid):
    """Return the frame of each token."""
    return torch.as_tensor(grid.coord[:, 0])


def test_roughness_is_the_slow_one():
    grid = TokenGrid.uniform((2, 4, 5), 1, 1)
    velocity = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slow = slow_roughness({k[1:]: v.numpy() for k, v in zip(keys_of(grid), velocity, strict=True)})
    got = roughness(velocity, grid)
    assert all(got[i].item() == pytest.approx(slow[k[1:]]) for i, k in enumerate(keys_of(grid)))


def test_with_every_token_seen_it_is_the_plain_run_bit_for_bit():
    config = FrescoConfig.full(5)
    for model, cond in ((oracles.PatternDenoiser((1, 4, 6)), COND), (denoiser(transformer(guidance=False)), prompt(1))):
        wrapped = Sparse((1.0,), (1.0,)).wrap(model, config)
        assert torch.equal(list(sample(wrapped, cond, config))[-1].x_next, list(sample(model, cond, config))[-1].x_next)


def test_a_flux_model_sees_few_tokens_at_their_own_places_and_is_paid_for_few():
    """The first call equals a plain forward on the anchors with their native ids; its FLOPs are theirs."""
    config = FrescoConfig.full(11, frame="coarse")
    model = denoiser(transformer(guidance=False))
    wrapped = Sparse().wrap(model, config)
    steps = sample(wrapped, prompt(1), config)
    step = next(steps)
    seen = anchors(step.grid, int(0.35 * 64), 0)
    few = TokenGrid(step.grid.shape, 1, step.grid.level[seen], step.grid.coord[seen])
    own = model(step.x[seen], few, 1.0, prompt(1))
    assert torch.allclose((step.x - step.x0)[seen], own, atol=1e-5)
    assert wrapped.flops(64) == pytest.approx(model.flops(22))
    assert model.flops(64) > 1.5 * wrapped.flops(64)


def test_a_run_of_several_resolutions_is_refused():
    with pytest.raises(ValueError, match=r"FrescoConfig\.full"):
        Sparse().wrap(oracles.PatternDenoiser((1, 4, 4)), FrescoConfig())
