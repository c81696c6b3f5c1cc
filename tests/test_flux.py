"""The FLUX denoiser against stock diffusers: pipeline, scheduler, transformer and native low-resolution runs."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from fresco.backends import ModelError
from fresco.backends.flow import FlowSchedule
from fresco.backends.flux import FluxDenoiser, FrescoAttnProcessor, install, uninstall
from fresco.config import FrescoConfig
from fresco.cost import TransformerShape
from fresco.denoiser import AttentionDenoiser, Conditioning
from fresco.grid import FRAMES, TokenGrid
from fresco.sampler import sample
from tests.tiny_flux import Given

TEXT, SIDE = 5, 8  # text tokens; image tokens per side of the finest grid
DEV = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
SCHNELL = {"shift": 1.0}
FINE = TokenGrid.uniform((1, SIDE, SIDE), 1, 1)
COARSE = TokenGrid.uniform((1, SIDE, SIDE), 1, 0)
MIXED = COARSE.expand(np.arange(len(COARSE)) % 3 == 0)[0]
THREE = TokenGrid.uniform((1, SIDE, SIDE), 2, 0).expand(np.array([True, False, True, False]))[0]
THREE = THREE.expand((THREE.level == 1) & (np.arange(len(THREE)) % 2 == 0))[0]


def transformer(guidance: bool) -> Any:
    torch.manual_seed(3)
    model = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=20, pooled_projection_dim=12, axes_dims_rope=(4, 6, 6), guidance_embeds=guidance,
    ).eval()  # fmt: skip
    for weight in model.parameters():  # large enough that attention is far from uniform
        weight.data.normal_(0, 0.25)
    return model


def prompt(seed: int) -> Conditioning:
    rng = torch.Generator().manual_seed(seed)
    tensors = {"prompt_embeds": torch.randn(TEXT, 20, generator=rng), "pooled": torch.randn(12, generator=rng)}
    return Conditioning(f"prompt {seed}", tensors)


def denoiser(model: Any, scheduler: dict[str, Any] = SCHNELL, **change: Any) -> FluxDenoiser:
    config = FlowMatchEulerDiscreteScheduler(**scheduler).config
    if model.config.guidance_embeds:
        change.setdefault("guidance", 3.5)
    return FluxDenoiser(
        model, patch=2, native_size=(1, SIDE * 2, SIDE * 2), schedule=FlowSchedule(config),
        shape=TransformerShape.from_config(model.config, TEXT, 2), **change,
    )  # fmt: skip


def state(grid: TokenGrid, seed: int = 0) -> torch.Tensor:
    return torch.randn(len(grid), 16, generator=torch.Generator().manual_seed(seed))


def stock(model: Any, x: torch.Tensor, ids: Any, sigma: float, cond: Conditioning) -> torch.Tensor:
    """Return one plain forward of the stock class, written out."""
    with torch.no_grad():
        return model(
            hidden_states=x[None], encoder_hidden_states=cond.tensors["prompt_embeds"][None],
            pooled_projections=cond.tensors["pooled"][None], timestep=torch.tensor([sigma]),
            img_ids=torch.as_tensor(ids, dtype=torch.float32), txt_ids=torch.zeros(TEXT, 3),
            return_dict=False,
        )[0][0]  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> Any:
    return transformer(guidance=False)


class Forced(TokenGrid):
    """A uniform grid that goes the way of mixed ones."""

    is_uniform = False


@pytest.mark.parametrize(
    ("scheduler", "embeds", "cfg"), [(DEV, True, 1.0), (SCHNELL, False, 1.0), (DEV, True, 2.5), (SCHNELL, False, 4.0)]
)
@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_equals_the_stock_pipeline(scheduler: dict[str, Any], embeds: bool, cfg: float, n: int) -> None:
    model = transformer(embeds)
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler), vae=None, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=model,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    cond, negative, latents = prompt(1), prompt(2), state(FINE, n)
    named = {"prompt_embeds": "prompt_embeds", "pooled_prompt_embeds": "pooled"}
    given = {name: cond.tensors[key][None] for name, key in named.items()}
    if cfg > 1:
        given |= {f"negative_{name}": negative.tensors[key][None] for name, key in named.items()}
    edge = SIDE * 2 * pipe.vae_scale_factor
    want = pipe(
        height=edge, width=edge, num_inference_steps=n, guidance_scale=2.2, true_cfg_scale=cfg, latents=latents[None],
        output_type="latent", **given,
    ).images[0]  # fmt: skip
    ours = denoiser(
        model, scheduler, cfg_scale=cfg, unconditional=negative if cfg > 1 else None, guidance=2.2 if embeds else None
    )
    config = FrescoConfig.full(n)
    *_, last = sample(ours, cond, config, noise=Given(latents))
    assert torch.equal(last.x_next, want), (last.x_next - want).abs().max()


@pytest.mark.parametrize("n", [1, 2, 5, 18, 50])
@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_sigmas_are_the_schedulers(n: int, tokens: int) -> None:
    for settings in (DEV, SCHNELL, {"shift": 3.0}):
        scheduler = FlowMatchEulerDiscreteScheduler(**settings)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n), mu=calculate_shift(tokens))
        schedule = FlowSchedule(scheduler.config)
        assert schedule.sigmas(n, tokens) == scheduler.sigmas.tolist()
        near = schedule.sigmas(n, tokens, 1.0 - 1e-12, 0.0)  # the general way, in float64
        np.testing.assert_allclose(near, scheduler.sigmas.numpy(), rtol=3e-7)


def test_a_part_of_the_sigmas_lies_on_the_whole() -> None:
    schedule = FlowSchedule(FlowMatchEulerDiscreteScheduler(**DEV).config)
    assert schedule.alpha(4096) == pytest.approx(math.exp(1.15))
    assert schedule.alpha(1024) == pytest.approx(math.exp(0.63), rel=1e-3)
    whole = schedule.sigmas(10, 4096)
    np.testing.assert_allclose(schedule.sigmas(6, 4096, whole[4]), whole[4:], rtol=1e-6)
    np.testing.assert_allclose(schedule.sigmas(3, 4096, whole[2], whole[5]), whole[2:6], rtol=1e-6)
    for bad in ((0, 1.0, 0.0), (3, 0.2, 0.5), (3, 1.2, 0.0)):
        with pytest.raises(ValueError, match="sigmas need"):
            schedule.sigmas(bad[0], 64, *bad[1:])
    with pytest.raises(ModelError, match="use_karras_sigmas"):
        FlowSchedule(FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True).config)


@pytest.mark.parametrize("frame", FRAMES)
def test_uniform_grids_are_stock_in_every_frame(plain: Any, frame: str) -> None:
    rows, cols = np.indices((SIDE // 2, SIDE // 2)).reshape(2, -1)
    ids = np.stack([0 * rows, rows, cols], axis=1)
    bound = denoiser(plain, frame=frame)
    assert torch.equal(bound(state(COARSE), COARSE, 0.6, prompt(1)), stock(plain, state(COARSE), ids, 0.6, prompt(1)))


@pytest.mark.parametrize(("frame", "inner"), [("coarse", -0.25), ("coarse_corner", 0.0), ("fine", 0.0)])
def test_mixed_grids_get_the_frames_ids(plain: Any, frame: str, inner: float) -> None:
    ids = []
    for level, (_, row, col) in zip(MIXED.level, MIXED.coord, strict=True):
        if frame == "fine":
            ids.append([0, row, col] if level == 1 else [0, 2 * row + 0.5, 2 * col + 0.5])
        else:
            ids.append([0, row / 2 + inner, col / 2 + inner] if level == 1 else [0, row, col])
    got = denoiser(plain, frame=frame)(state(MIXED), MIXED, 0.6, prompt(1))
    assert torch.equal(got, stock(plain, state(MIXED), ids, 0.6, prompt(1)))


@pytest.mark.parametrize("grid", [FINE, COARSE])
def test_phase_aligned_is_native_where_one_level_is_left(plain: Any, grid: TokenGrid) -> None:
    """The processor itself, which uniform grids do not need, against the stock one at the grid's own integer ids."""
    bound = denoiser(plain, frame="phase_aligned")
    want = stock(plain, state(grid), grid.coord, 0.4, prompt(1))
    uninstall(plain)
    got = bound(state(grid), Forced(grid.shape, grid.levels, grid.level, grid.coord), 0.4, prompt(1))
    assert all(isinstance(p, FrescoAttnProcessor) for p in plain.attn_processors.values())
    torch.testing.assert_close(got, want, atol=2e-6, rtol=0)
    uninstall(plain)


@pytest.mark.parametrize("grid", [MIXED, THREE])
def test_phase_aligned_first_block_by_hand(plain: Any, grid: TokenGrid) -> None:
    """Each level's attention output equals a stock attention at ids in that level's units, its rows picked out."""
    attn = plain.transformer_blocks[0].attn
    seen: dict[str, Any] = {}

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen.update(kwargs=kwargs, output=output)

    handle = attn.register_forward_hook(keep, with_kwargs=True)
    denoiser(plain, frame="phase_aligned")(state(grid), grid, 0.4, prompt(1))
    handle.remove()
    image, text = seen["output"]
    finest = int(grid.level.max())
    for level in range(grid.levels + 1):
        ids = torch.zeros(len(grid), 3)
        for i in range(len(grid)):  # the centre of each token in finest cells, then in cells of this level
            cells = 2.0 ** (grid.levels - grid.level[i])
            centre = (torch.as_tensor(grid.coord[i, 1:]) + 0.5) * cells
            ids[i, 1:] = centre / 2.0 ** (grid.levels - level) - 0.5
        with torch.no_grad():
            rotary = plain.pos_embed(torch.cat([torch.zeros(TEXT, 3), ids]))
            inputs = {key: seen["kwargs"][key] for key in ("hidden_states", "encoder_hidden_states")}
            want, want_text = FluxAttnProcessor()(attn, **inputs, image_rotary_emb=rotary)
        mine = torch.as_tensor(grid.level == level)
        torch.testing.assert_close(image[:, mine], want[:, mine], atol=2e-6, rtol=0)
        other = torch.as_tensor(grid.level != level)
        assert (image[:, other] - want[:, other]).abs().max() > 1e-3  # the test can tell the levels apart
        if level == finest:
            torch.testing.assert_close(text, want_text, atol=2e-6, rtol=0)
    uninstall(plain)


@pytest.mark.parametrize("frame", FRAMES)
def test_the_order_of_tokens_means_nothing(plain: Any, frame: str) -> None:
    order = np.random.default_rng(0).permutation(len(MIXED))
    shuffled = TokenGrid(MIXED.shape, MIXED.levels, MIXED.level[order], MIXED.coord[order])
    bound = denoiser(plain, frame=frame)
    want = bound(state(MIXED), MIXED, 0.5, prompt(1))[order]
    got = bound(state(MIXED)[order], shuffled, 0.5, prompt(1))
    torch.testing.assert_close(got / want.std(), want / want.std(), atol=1e-5, rtol=0)


def test_two_runs_share_a_transformer(plain: Any) -> None:
    """Interleaved in one thread, then at once from two: a run gives what it gives alone, and stock stays stock."""
    uninstall(plain)
    aligned, reference = denoiser(plain, frame="phase_aligned", record_attention=True), denoiser(plain)
    alone = aligned(state(MIXED), MIXED, 0.5, prompt(1)), aligned.attention(MIXED)
    uninstall(plain)
    fine = reference(state(FINE), FINE, 0.5, prompt(1))
    assert not any(isinstance(p, FrescoAttnProcessor) for p in plain.attn_processors.values())
    for _ in range(2):
        assert torch.equal(aligned(state(MIXED), MIXED, 0.5, prompt(1)), alone[0])
        assert torch.equal(reference(state(FINE), FINE, 0.5, prompt(1)), fine)
        assert torch.equal(stock(plain, state(FINE), FINE.coord, 0.5, prompt(1)), fine)
    wrong: list[str] = []

    def repeat(bound: FluxDenoiser, grid: TokenGrid, want: torch.Tensor) -> None:
        for _ in range(20):
            if not torch.allclose(bound(state(grid), grid, 0.5, prompt(1)), want, atol=1e-6):
                wrong.append(bound.frame)

    threads = [threading.Thread(target=repeat, args=args) for args in ((aligned, MIXED, alone[0]), (reference, FINE, fine))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    uninstall(plain)


def test_processors_keep_the_backend_and_refuse_strangers(plain: Any) -> None:
    model = transformer(False)
    model.set_attention_backend("_native_math")
    install(model)
    assert {p._attention_backend for p in model.attn_processors.values()} == {"_native_math"}
    got = denoiser(model, frame="phase_aligned")(state(MIXED), MIXED, 0.5, prompt(1))
    want = denoiser(plain, frame="phase_aligned")(state(MIXED), MIXED, 0.5, prompt(1))
    torch.testing.assert_close(got, want, atol=2e-6, rtol=0)
    uninstall(model)
    assert {type(p) for p in model.attn_processors.values()} == {FluxAttnProcessor}
    model.transformer_blocks[0].attn.set_processor(type("Other", (FluxAttnProcessor,), {})())
    with pytest.raises(ModelError, match="Other"):
        install(model)
    uninstall(plain)


@pytest.mark.parametrize(("grid", "frame"), [(MIXED, "coarse"), (MIXED, "phase_aligned"), (FINE, "coarse")])
def test_attention_received(plain: Any, grid: TokenGrid, frame: str) -> None:
    """The record against the weights themselves: attention to values that are one-hot in the key is the weight."""
    bound = denoiser(plain, frame=frame, record_attention=True)
    assert isinstance(bound, AttentionDenoiser)
    velocity = bound(state(grid), grid, 0.5, prompt(1))
    got = bound.attention(grid)
    torch.testing.assert_close(velocity, denoiser(plain, frame=frame)(state(grid), grid, 0.5, prompt(1)), atol=5e-6, rtol=0)
    assert 0 < float(got.sum()) < 1  # text tokens received the rest

    import fresco.backends.flux as flux

    total, rows, original = torch.zeros(TEXT + len(grid), dtype=torch.float64), 0, flux.dispatch_attention_fn

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        nonlocal rows
        weights = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) / 4  # heads of 16
        weights = weights.exp() / weights.exp().sum(-1, keepdim=True)
        one_hot = original(query, key, torch.eye(key.shape[1]).expand(1, key.shape[2], -1, -1).transpose(1, 2))
        torch.testing.assert_close(weights.transpose(1, 2).float(), one_hot, atol=2e-6, rtol=0)
        skip = TEXT if query.shape[1] > (grid.level == grid.level.max()).sum() else 0  # the group with the text queries
        total.add_(weights[0, :, skip:].sum((0, 1)))
        rows += weights[0, :, skip:].shape[0] * weights[0, :, skip:].shape[1]
        return original(query, key, value, **kwargs)

    flux.dispatch_attention_fn = spy
    try:
        bound(state(grid), grid, 0.5, prompt(1))
    finally:
        flux.dispatch_attention_fn = original
    assert rows == 2 * 2 * len(grid)  # blocks x heads x image queries: every one once
    assert float(total.sum()) == pytest.approx(rows)
    torch.testing.assert_close(got, (total[TEXT:] / rows).float(), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="tokens"):
        bound.attention(COARSE)
    with pytest.raises(ValueError, match="record_attention"):
        denoiser(plain).attention(grid)
    uninstall(plain)


def test_guidance_formula_and_cost(plain: Any) -> None:
    cond, negative, scale = prompt(1), prompt(2), 2.5
    v_c = stock(plain, state(FINE), FINE.coord, 0.7, cond)
    v_u = stock(plain, state(FINE), FINE.coord, 0.7, negative)
    for batched in (False, True):
        bound = denoiser(plain, cfg_scale=scale, unconditional=negative, batched=batched)
        torch.testing.assert_close(bound(state(FINE), FINE, 0.7, cond), v_u + scale * (v_c - v_u), atol=2e-5, rtol=0)
        assert bound.flops(64) == 2 * denoiser(plain).flops(64)
    recording = denoiser(plain, record_attention=True).flops(64) - denoiser(plain).flops(64)
    assert recording == 2 * 2 * 64 * (64 + TEXT) * 32  # blocks, 2 m n k
    with pytest.raises(ValueError, match="negative prompt"):
        denoiser(plain, cfg_scale=2.0)
    with pytest.raises(ValueError, match="guidance_embeds"):
        denoiser(plain, guidance=3.5)


def test_x0_prediction_is_a_velocity(plain: Any) -> None:
    x, sigma = state(FINE), 0.35
    out = stock(plain, x, FINE.coord, sigma, prompt(1))
    for clamp in (None, 0.5):
        v = denoiser(plain, prediction="x0", clamp=clamp)(x, FINE, sigma, prompt(1))
        want = out if clamp is None else out.clip(-clamp, clamp)
        torch.testing.assert_close(x - sigma * v, want, atol=2e-6, rtol=0)


def test_bfloat16_model_keeps_a_float32_state() -> None:
    """Ids of a wide picture and the state keep what bfloat16 would lose: .5 above 128, and steps below 2**-8."""
    model = transformer(False)
    wide = TokenGrid.uniform((1, 2, 1024), 1, 0).expand(np.arange(512) >= 500)[0]
    want = denoiser(model, frame="fine")(state(wide), wide, 0.5, prompt(1))
    half = denoiser(transformer(False).bfloat16(), frame="fine")(state(wide), wide, 0.5, prompt(1))
    assert half.dtype == torch.float32
    assert float((half - want).norm() / want.norm()) < 0.03
    seen: list[torch.Tensor] = []
    rounding = transformer(False).bfloat16()
    rounding.pos_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    denoiser(rounding, frame="fine")(state(wide), wide, 0.5, prompt(1))
    np.testing.assert_array_equal(seen[0][TEXT:].numpy(), wide.centers("fine"))


def test_sizes(plain: Any) -> None:
    bound = denoiser(plain)
    assert bound.token_shape(None) == (1, SIDE, SIDE)
    assert bound.token_shape((1, 6, 20)) == (1, 3, 10)
    for size in ((2, 16, 16), (1, 15, 16), (1, 0, 16)):
        with pytest.raises(ModelError, match="multiples of 2 pixels"):
            bound.token_shape(size)
    with pytest.raises(ValueError, match="counts must agree"):
        bound(state(COARSE), FINE, 0.5, prompt(1))
