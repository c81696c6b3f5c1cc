"""Caches in time: equal to no cache where they must be, and what they promise where they are not. Source: METHOD 3."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from fresco.backends.oracle import OracleDenoiser
from fresco.caching import FLUX_POLYNOMIAL, Drift, FirstBlock, Forecast, TaylorSeer, TeaCache, sharing_copy
from fresco.config import FrescoConfig
from fresco.cost import SHAPES
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.sampler import sample
from tests import oracles
from tests.test_flux import COARSE, FINE, MIXED, TEXT, denoiser, prompt, state, transformer
from tests.test_grid import grown, keys_of

COND = Conditioning("")
PROMOTING = FrescoConfig(nfe=9, stages=(3, 3, 3), transition="renoise", selection="even", frame="coarse")
EXACT = [TaylorSeer(1), TaylorSeer(1, inside=False), TeaCache(0.0), FirstBlock(0.0)]


def final(model: Any, config: FrescoConfig, cond: Conditioning = COND) -> torch.Tensor:
    """Return the last state of a run."""
    return list(sample(model, cond, config))[-1].x_next


def flux(scale: float = 1.0, batched: bool = True, **change: Any) -> Any:
    """Return a tiny FLUX denoiser, with classifier-free guidance where the scale is not 1."""
    unconditional = None if scale == 1 else prompt(2)
    return denoiser(transformer(guidance=False), cfg_scale=scale, unconditional=unconditional, batched=batched, **change)


@pytest.mark.parametrize("cache", EXACT, ids=str)
@pytest.mark.parametrize("config", [FrescoConfig.full(6), PROMOTING], ids=["full", "promoting"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_cache_that_never_skips_changes_no_bit_of_a_flux_run(cache: Any, config: FrescoConfig, scale: float) -> None:
    model = flux(scale)
    cached = cache.wrap(model, config)
    assert torch.equal(final(cached, config, prompt(1)), final(model, config, prompt(1)))
    assert cached.computed == [True] * config.nfe
    assert cached.flops(64) == model.flops(64)


@pytest.mark.parametrize("cache", EXACT, ids=str)
def test_a_cache_that_never_skips_changes_no_bit_of_any_other_run(cache: Any) -> None:
    config = PROMOTING.replace(levels=2, checks=2)
    model = oracles.PatternDenoiser((1, 5, 7), 2, 1)
    assert torch.equal(final(cache.wrap(model, config), config), final(model, config))


@pytest.mark.parametrize("cache", [TaylorSeer(3, 2), TeaCache(1.5, (1.0, 0.0)), FirstBlock(1.1)], ids=str)
@pytest.mark.parametrize("config", [FrescoConfig.full(12), PROMOTING.replace(nfe=12, stages=(4, 4, 4))], ids=["full", "promo"])
def test_a_cached_flux_run_skips_calls_and_the_transformer_never_knows(cache: Any, config: FrescoConfig) -> None:
    """A run beside it on the same weights is untouched, before, between and after the cached calls."""
    model = flux()
    before = final(model, config, prompt(1))
    cached = cache.wrap(model, config)
    steps = sample(cached, prompt(1), config)
    spent = 0.0
    for step in steps:
        assert torch.isfinite(step.x_next).all()
        spent += cached.flops(len(step.grid))
        if step.step == 5:
            assert torch.equal(final(model, config, prompt(1)), before)
    assert 2 < sum(cached.computed) < config.nfe
    assert torch.equal(final(model, config, prompt(1)), before)
    assert not torch.equal(step.x_next, before)
    tokens = [len(s.grid) for s in sample(model, prompt(1), config)]
    whole = sum(model.flops(n) for n in tokens)
    least = sum(model.flops(n) for n, ran in zip(tokens, cached.computed, strict=True) if ran)
    assert least < spent < whole


def test_taylorseer_computes_by_its_rule_and_starts_again_after_promotions() -> None:
    """diffusers' own counter is what is observed: by a hook within the last block's attention, not by our rule."""
    config = FrescoConfig.full(17)
    for interval, warmup in ((4, 1), (3, 2), (5, 3)):
        cache = TaylorSeer(interval, warmup)
        cached = cache.wrap(flux(), config)
        final(cached, config, prompt(1))
        assert cached.computed == [cache.computes(i) for i in range(17)], (interval, warmup)
    config = FrescoConfig(nfe=15, stages=(6, 5, 4), selection="even", frame="coarse", transition="renoise")
    cached = TaylorSeer(3, 1).wrap(flux(), config)
    tokens = [len(s.grid) for s in sample(cached, prompt(1), config)]
    since = [i - max(j for j in range(i + 1) if j == 0 or tokens[j] != tokens[j - 1]) for i in range(15)]
    assert cached.computed == [TaylorSeer(3, 1).computes(s) for s in since]
    shape = flux().shape
    spent = TaylorSeer(3, 1).costs(tokens, shape)
    assert [c > shape.flops(n) / 2 for c, n in zip(spent, tokens, strict=True)] == cached.computed


def test_published_counts_of_calls() -> None:
    """TaylorSeer at 50 steps: N = 4 computes 13 calls, 9 computes 8; 967.91 and 596 TFLOPs within 0.01 %."""
    shape = SHAPES["flux-dev"]
    for cache, count, tflops in ((TaylorSeer(4, 1), 13, 967.91), (TaylorSeer(9, 2), 8, 596.0)):
        assert sum(map(cache.computes, range(50))) == count
        assert sum(cache.costs([4096] * 50, shape)) / 1e12 == pytest.approx(tflops, rel=1e-4)
    assert shape.flops(4096) == shape.shell_flops(4096) + 57 * (shape.head_flops(4096) - shape.shell_flops(4096))


def by_hand(model: Any, x: torch.Tensor, ids: Any, sigma: float, cond: Conditioning, residual: torch.Tensor) -> torch.Tensor:
    """Return a FLUX forward whose blocks are one residual: embed, add, normalise, project."""
    pooled = cond.tensors["pooled"][None]
    with torch.no_grad():
        temb = model.time_text_embed(torch.tensor([sigma]) * 1000, pooled)
        return model.proj_out(model.norm_out(model.x_embedder(x[None]) + residual, temb))[0]


def test_teacache_adds_the_residual_of_the_last_computed_call() -> None:
    """Against a plain transformer whose residual is read with hooks, and embedders and output called by hand."""
    model = transformer(guidance=False)
    drift_large = TeaCache(1e9).wrap(denoiser(model), FrescoConfig.full(9))
    seen: dict[str, torch.Tensor] = {}
    probe = sharing_copy(model)
    probe.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(entry=kwargs["hidden_states"]), with_kwargs=True
    )
    probe.single_transformer_blocks[-1].register_forward_hook(lambda _, args, out: seen.update(exit=out[1]))
    plain = denoiser(probe)
    first = drift_large(state(FINE, 1), FINE, 0.9, prompt(1))
    assert torch.equal(first, plain(state(FINE, 1), FINE, 0.9, prompt(1)))
    residual = seen["exit"] - seen["entry"]
    for sigma, seed in ((0.7, 2), (0.4, 3)):
        got = drift_large(state(FINE, seed), FINE, sigma, prompt(1))
        assert torch.allclose(got, by_hand(model, state(FINE, seed), None, sigma, prompt(1), residual), atol=1e-5)
    promoted = drift_large(state(MIXED, 4), MIXED, 0.4, prompt(1))
    assert torch.equal(promoted, denoiser(model)(state(MIXED, 4), MIXED, 0.4, prompt(1)))
    assert drift_large.computed == [True, False, False, True]


def test_teacache_watches_the_modulated_input_of_the_first_block() -> None:
    """The drift it sums is that of norm1's output in a plain forward, rescaled by the published polynomial."""
    model = transformer(guidance=False)
    cached = TeaCache(1e9).wrap(denoiser(model), FrescoConfig.full(9))
    signals = []
    model.transformer_blocks[0].norm1.register_forward_hook(lambda _, args, out: signals.append(out[0].clone()))
    sigmas = (1.0, 0.98, 0.95, 0.91)
    for sigma in sigmas:
        cached(state(FINE), FINE, sigma, prompt(1))
    assert not signals  # on its own copy
    for sigma in sigmas:
        denoiser(model)(state(FINE), FINE, sigma, prompt(1))
    total = 0.0
    for a, b in itertools.pairwise(signals):
        change = float((b - a).abs().mean() / a.abs().mean())
        total += sum(c * change**k for c, k in zip(FLUX_POLYNOMIAL, (4, 3, 2, 1, 0), strict=True))
    assert cached._gate.drift.total == pytest.approx(total, rel=1e-5)


def test_the_drift_sums_up_and_starts_again() -> None:
    """By hand: changes .1, .1, .1 with threshold .25 compute the fourth look; without summing none of them."""
    values = [1.0, 1.1, 1.21, 1.331, 1.4641]
    for accumulate, expected in ((True, [True, False, False, True, False]), (False, [True, False, False, True, False])):
        drift, seen = Drift(0.25, accumulate=accumulate), []
        for v in values:
            drift.look(torch.full((3,), v, dtype=torch.float64))
            seen.append(drift.compute)
        assert seen == expected
    drift = Drift(0.15, polynomial=(2.0, 0.0))
    drift.look(torch.ones(2))
    drift.look(torch.full((2,), 1.1))
    assert drift.compute  # twice .1
    drift.look(torch.full((3,), 1.1))
    assert drift.compute  # another shape
    drift.look(torch.full((3,), 1.1), force=True)
    assert drift.compute


def test_the_last_call_and_the_first_are_always_computed() -> None:
    for cache in (TeaCache(1e9), TeaCache(1e9, (1.0, 0.0))):
        for model in (flux(), OracleDenoiser((1, 8, 8))):
            config = FrescoConfig.full(6)
            cached = cache.wrap(model, config)
            final(cached, config, prompt(1))
            assert cached.computed == [True, False, False, False, False, True]


class Polynomial:
    """A model whose x0 is a polynomial in the number of its calls' step, told from outside."""

    channels, patch, device = 1, 1, torch.device("cpu")

    def __init__(self) -> None:
        self.step, self.calls = 0, 0

    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        self.calls += 1
        return (x - self.truth(x)) / sigma

    def truth(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 0.3 + 0.5 * self.step)


def test_a_forecast_goes_on_along_a_line() -> None:
    """With x0 linear in the step, order 1 forecasts exactly; order 0 repeats the last."""
    grid = TokenGrid.uniform((1, 4, 4), 1, 1)
    for order in (0, 1):
        model = Polynomial()
        cached = Forecast(model, lambda step: step in (0, 1, 5), order)  # type: ignore[arg-type]
        for step in range(9):
            model.step = step
            x = torch.linspace(-1, 1, 16)[:, None]
            x0 = x - 0.5 * cached(x, grid, 0.5, COND)
            last = 1 if step < 5 else 5
            wanted = step if order == 1 or step in (0, 1, 5) else last
            assert torch.allclose(x0, torch.full_like(x, 0.3 + 0.5 * wanted), atol=1e-6), (order, step)
        assert model.calls == 3


def slow_forecast(model: Any, order: int, computes: Any, calls: list[Any]) -> list[oracles.State]:
    """Return the x0 of each call, token by token; calls are (shape, levels, keys, state, sigma)."""
    factors: list[oracles.State] = []
    found, last, before = [], 0, None
    for step, (keys, x, sigma) in enumerate(calls):
        moved = before is not None and keys != before
        if moved:  # a new token takes what the token above it had
            factors = [{k: next(f[a] for a in lineage(k) if a in f) for k in keys} for f in factors]
        if moved or not factors or computes(step):
            velocity = model(keys, x, sigma)
            newer = [{k: x[k] - sigma * velocity[k] for k in keys}]
            for k in range(min(order, len(factors))):
                newer.append({key: (newer[k][key] - factors[k][key]) / (step - last) for key in keys})
            factors, last = newer, step
            found.append(newer[0])
        else:
            n = step - last
            found.append({k: sum(f[k] * n**i / math.factorial(i) for i, f in enumerate(factors)) for k in keys})
        before = keys
    return found


def lineage(key: oracles.Key) -> list[oracles.Key]:
    """Return a token and the tokens above it, the nearest first."""
    return [oracles.ancestor(key, level) for level in range(key[0], -1, -1)]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_forecasts_of_a_promoting_run_are_the_slow_ones(order: int) -> None:
    """Two levels on an odd grid: what every call of a whole run gave, against a loop over tokens."""
    shape = (1, 5, 7)
    config = FrescoConfig(nfe=13, stages=(5, 4, 4), levels=2, checks=2, selection="even", transition="renoise")
    cache = TaylorSeer(3, 2, order)
    cached = cache.wrap(oracles.PatternDenoiser(shape), config)
    steps = list(sample(cached, COND, config))
    calls = [
        (keys_of(s.grid), oracles.key_state(s.grid.level, s.grid.coord, s.x.double().numpy(), 1, 1), s.sigma) for s in steps
    ]
    slow = slow_forecast(lambda keys, x, sigma: oracles.pattern_velocity(keys, x, sigma, 2), order, cache.computes, calls)
    assert 5 < sum(cached.computed) < 13
    for step, expected in zip(steps, slow, strict=True):
        got = oracles.key_state(step.grid.level, step.grid.coord, step.x0.numpy(), 1, 1)
        assert max(float(np.abs(got[k] - expected[k]).max()) for k in got) < 2e-4, step.step


def test_a_copy_shares_every_weight_and_no_module() -> None:
    model = transformer(guidance=False)
    twin = sharing_copy(model)
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert not {id(m) for m in model.modules()} & {id(m) for m in twin.modules()}
    twin.proj_out.register_forward_hook(lambda *_: pytest.fail("a hook of the copy fired"))
    denoiser(model)(state(COARSE), COARSE, 0.5, prompt(1))


def test_guidance_in_two_calls_is_refused() -> None:
    for cache in (TaylorSeer(), TeaCache(), FirstBlock()):
        with pytest.raises(ValueError, match="batched=True"):
            cache.wrap(flux(2.0, batched=False), FrescoConfig.full(5))


def test_attention_is_that_of_the_last_computed_call() -> None:
    """A forecast call computes no attention; the selection rule still has the newest there is, not NaN."""
    model = flux(record_attention=True)
    cached = TaylorSeer(4, 1).wrap(model, FrescoConfig.full(9))
    for step, sigma in enumerate((1.0, 0.9, 0.8, 0.7)):
        cached(state(MIXED, step), MIXED, sigma, prompt(1))
    assert cached.computed == [True, False, True, False]
    model(state(MIXED, 0), MIXED, 1.0, prompt(1))
    assert len(cached.attention(MIXED)) == len(MIXED)
    assert torch.isfinite(cached.attention(MIXED)).all()
    assert float(cached.attention(MIXED).sum()) < 1 - 1e-3 < 1 + TEXT
    with pytest.raises(ValueError, match="does not report its attention"):
        TeaCache().wrap(OracleDenoiser((1, 4, 4)), FrescoConfig.full(4)).attention(grown((1, 4, 4), 1, 1)[0])
