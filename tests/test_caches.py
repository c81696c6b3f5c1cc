"""Feature caches of diffusers with promotions, on a tiny FLUX: the real caches, against stock and against a loop by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)  # fmt: skip
from diffusers.hooks.hooks import CacheContext

import fresco
from fresco.backends import ModelError, caches
from fresco.backends.flux import FlowSchedule, FluxDenoiser
from fresco.config import FrescoConfig
from fresco.cost import TransformerShape
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.plugin import LatentNoise
from fresco.sampler import sample
from tests.tiny_flux import EDGE, tiny_flux

ROWS, COLS, TEXT, NFE = 7, 9, 16, 9
GIVEN: dict[str, Any] = {
    "height": ROWS * EDGE, "width": COLS * EDGE, "max_sequence_length": TEXT, "num_inference_steps": NFE,
    "output_type": "latent",
}  # fmt: skip
MIXED = FrescoConfig(nfe=NFE, stages=(4, 2, 3), selection="random", ratio=0.4, frame="coarse")
KINDS = {
    "taylorseer": lambda pipe: TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=1, max_order=1),
    "first block": lambda pipe: FirstBlockCacheConfig(threshold=1e9),  # hits wherever it may
    "mag": lambda pipe: MagCacheConfig(
        mag_ratios=[1.0, 1.0, 1.0, 1.0, 0.2, 1.0, 0.2, 1.0, 1.0], num_inference_steps=NFE,
        retention_ratio=0.2, max_skip_steps=1, threshold=0.5
    ),
    "attention broadcast": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: 500, spatial_attention_block_identifiers=("transformer_blocks",),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Any:
    return tiny_flux()


@pytest.fixture(params=list(KINDS))
def pipe(shared: Any, request: Any) -> Iterator[Any]:
    """The pipeline with a cache on, and off afterwards."""
    shared.transformer.enable_cache(KINDS[request.param](shared))
    yield shared
    fresco.disable(shared)
    shared.transformer.disable_cache()


def made(pipe: Any, seed: int = 1, config: FrescoConfig | None = None, cached: str = "reset") -> torch.Tensor:
    if config is not None:
        fresco.enable(pipe, config, cached=cached)
    found: torch.Tensor = pipe("a fox", **GIVEN, generator=torch.Generator().manual_seed(seed)).images
    fresco.disable(pipe)
    return found


def without(pipe: Any, config: FrescoConfig | None) -> torch.Tensor:
    """Return the run of the same pipeline without its cache."""
    kept = pipe.transformer._cache_config
    pipe.transformer.disable_cache()
    found = made(pipe, config=config)
    pipe.transformer.enable_cache(kept)
    return found


def test_in_full_a_cache_is_what_it_is_in_stock(pipe: Any) -> None:
    want = made(pipe)
    assert torch.equal(made(pipe, config=FrescoConfig.full(NFE)), want)
    assert not torch.allclose(want, without(pipe, None), atol=1e-3)  # it does something


def test_a_promotion_starts_a_cache_anew(pipe: Any) -> None:
    """Equal, bit for bit, to a loop by hand that resets at each change of tokens; finite; another picture than without."""
    got = made(pipe, config=MIXED)
    assert torch.isfinite(got).all()
    assert not torch.allclose(got, without(pipe, MIXED), atol=1e-3)
    assert torch.equal(got, by_hand(pipe, MIXED))

    def stop(*_: Any) -> dict[str, Any]:
        raise KeyError

    fresco.enable(pipe, MIXED)
    with pytest.raises(KeyError):  # leaves a cache that is warm
        pipe("an owl", **GIVEN, generator=torch.Generator().manual_seed(2), callback_on_step_end=stop)
    assert torch.equal(made(pipe, config=MIXED), got)


def by_hand(pipe: Any, config: FrescoConfig) -> torch.Tensor:
    class Cached(FluxDenoiser):
        last: TokenGrid | None = None
        step = 0

        def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
            if grid is not self.last:
                self.transformer._reset_stateful_cache()
                head = self.transformer.transformer_blocks[0]._diffusers_hook.get_hook("mag_cache_leader_block_hook")
                if head is not None:  # its ratios belong to steps
                    head.state_manager.set_context(CacheContext("cond"))
                    head.state_manager.get_state().step_index = self.step
            self.last, self.step = grid, self.step + 1
            with self.transformer.cache_context("cond"):
                return super().__call__(x, grid, sigma, cond)

    with torch.no_grad():
        states, pooled, _ = pipe.encode_prompt("a fox", None, max_sequence_length=TEXT)
    bound = Cached(
        pipe.transformer, patch=2, native_size=(1, ROWS * EDGE, COLS * EDGE), schedule=FlowSchedule(pipe.scheduler.config),
        shape=TransformerShape.from_config(pipe.transformer.config, TEXT, EDGE), frame=config.frame, guidance=3.5,
    )  # fmt: skip
    packed, _ = pipe.prepare_latents(
        1, 4, ROWS * EDGE, COLS * EDGE, torch.float32, "cpu", torch.Generator().manual_seed(1)
    )  # fmt: skip
    latents = pipe._unpack_latents(packed, ROWS * EDGE, COLS * EDGE, pipe.vae_scale_factor)
    noise = LatentNoise(latents[0][:, None].numpy(), 2, config.levels)
    *_, last = sample(bound, Conditioning("", {"prompt_embeds": states[0], "pooled": pooled[0]}), config, noise=noise)
    pipe.transformer._reset_stateful_cache()
    return last.x_next[torch.from_numpy(last.grid_next.cells().ravel())][None]


def test_children_take_over_their_parents_features(shared: Any) -> None:
    """`remap` against a search for each child's parent; text stays; what cannot be told apart is left as it was."""
    transformer = shared.transformer
    transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=9, disable_cache_before_step=2, max_order=1))
    try:
        old = TokenGrid.uniform((1, ROWS, COLS), 1, 0)
        mask = np.arange(len(old)) % 3 == 0
        new, _ = old.expand(mask)
        with torch.no_grad():
            for seed in range(2):
                torch.manual_seed(seed)
                with transformer.cache_context("cond"):
                    transformer(
                        torch.randn(1, len(old), 16), torch.randn(1, TEXT, 20), torch.randn(1, 12), torch.ones(1),
                        torch.from_numpy(old.centers("coarse")), torch.zeros(TEXT, 3), torch.ones(1),
                    )  # fmt: skip
        before = features(transformer)
        assert {value.shape[1] for value in before} == {len(old), TEXT, TEXT + len(old)}
        assert not caches.remap(transformer, old, new, len(old), True)  # text and picture of one length
        assert not caches.remap(transformer, new, new, TEXT, True)  # of another number of tokens
        assert not caches.remap(transformer, old, new, TEXT)  # both as one sequence, whose order is not known
        assert all(a is b for a, b in zip(features(transformer), before, strict=True))
        assert caches.remap(transformer, old, new, TEXT, text_first=True)
        parents = []
        for level, (frame, row, col) in zip(new.level, new.coord, strict=True):
            up = (frame, row >> level, col >> level)
            parents.append(next(i for i, at in enumerate(old.coord.tolist()) if tuple(at) == up))
        for value, was in zip(features(transformer), before, strict=True):
            text = {len(old): 0, TEXT: TEXT, TEXT + len(old): TEXT}[was.shape[1]]
            image = was[:, text:]
            assert torch.equal(value[:, :text], was[:, :text])
            assert torch.equal(value[:, text:], image[:, parents] if image.shape[1] else image)
    finally:
        transformer.disable_cache()


def features(transformer: Any) -> list[torch.Tensor]:
    found = []
    for module in transformer.modules():
        for hook in module._diffusers_hook.hooks.values() if hasattr(module, "_diffusers_hook") else ():
            for state in hook.state_manager._state_cache.values() if hasattr(hook, "state_manager") else ():
                found += [value for orders in state.taylor_factors.values() for value in orders.values()]
    return found


def test_a_remapped_cache_goes_on(shared: Any) -> None:
    """Fewer blocks are computed than with a reset, the run is repeatable, and a transition that noises anew resets."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    shared.transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=4, disable_cache_before_step=2, max_order=1))
    handle = shared.transformer.transformer_blocks[0].attn.to_q.register_forward_hook(count)
    try:
        spent, runs = {}, {}
        for how in ("reset", "remap"):
            runs[how] = made(shared, config=MIXED, cached=how)
            spent[how], calls = calls, 0
            assert torch.isfinite(runs[how]).all()
            assert torch.equal(made(shared, config=MIXED, cached=how), runs[how])
            calls = 0
        assert spent["remap"] < spent["reset"] < NFE
        assert not torch.equal(runs["remap"], runs["reset"])
        anew = MIXED.replace(transition="rewind")
        assert torch.equal(made(shared, config=anew, cached="remap"), made(shared, config=anew))
    finally:
        handle.remove()
        shared.transformer.disable_cache()


def test_faster_cache_is_for_full_runs(shared: Any) -> None:
    """It may not begin to skip before it has seen a step, and a promotion would make it do so; in full it is stock's."""
    asked = iter(range(10**6))  # of each step, by the whole model and by its two attentions
    shared.transformer.enable_cache(
        FasterCacheConfig(
            spatial_attention_timestep_skip_range=(-1, 681),
            is_guidance_distilled=True,
            attention_weight_callback=lambda _: 0.3,
            current_timestep_callback=lambda: 1000 - 100 * (next(asked) // 3 % NFE),
        )
    )
    try:
        want = made(shared)
        assert not torch.allclose(want, without(shared, None), atol=1e-3)
        assert torch.equal(made(shared, config=FrescoConfig.full(NFE)), want)
        with pytest.raises(
            ModelError, match="FasterCache cannot be on while tokens are promoted; disable it, or enable Taylor"
        ):
            made(shared, config=MIXED)
    finally:
        fresco.disable(shared)
        shared.transformer.disable_cache()
