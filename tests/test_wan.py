"""Wan 2.1 and 2.2 on tiny random pipelines and an odd grid: one transformer, two of them, and one timestep per token."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from diffusers.hooks import SeaCacheConfig
from torch.utils.flop_counter import FlopCounterMode

import fresco
from fresco.backends import ModelError, load_model
from fresco.backends.family import Seating, family_of, seated
from fresco.backends.wan import CHECKPOINTS, WanModel
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.plugin import PluginError
from tests import families
from tests.families import Case, mixed_grid, seeded
from tests.tiny_video import check_previews, check_recorded_run, tiny_wan

SHAPE, SIZE, TEXT = (3, 5, 6), (9, 80, 96), 512
NAMES = {"2.1": "wan2.1-1.3b", "ti2v": "wan2.2-ti2v-5b", "a14b": "wan2.2-t2v-a14b"}


def made(kind: str, folder: Any) -> WanModel:
    tiny_wan(kind).save_pretrained(folder)
    found = load_model(f"{NAMES[kind]}:{folder}", device="cpu", dtype="float32")
    assert isinstance(found, WanModel)
    found.pipe.set_progress_bar_config(disable=True)
    found.negative_prompt = "an owl"
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WanModel]:
    return {kind: made(kind, tmp_path_factory.mktemp("wan")) for kind in NAMES}


@pytest.fixture(scope="module")
def cases(models: dict[str, WanModel]) -> dict[str, Case]:
    def case(kind: str) -> Case:
        model = models[kind]

        def bind(steps: int, guided: bool) -> Any:
            bound = model.bind(FrescoConfig.full(steps, guidance=None if guided else 1.0))
            bound.native_size = SIZE
            return bound

        def forward(transformer: Any, latents: torch.Tensor, sigma: float, cond: Conditioning, shape: Any) -> torch.Tensor:
            per_token = (1, int(np.prod(shape))) if kind == "ti2v" else (1,)
            time = torch.full(per_token, sigma * 1000).to(latents.device)
            text = cond.tensors["prompt_embeds"][None]
            if kind == "a14b" and transformer is model.pipe.transformer and sigma < 0.875:
                transformer = model.pipe.transformer_2
            return transformer(hidden_states=latents, timestep=time, encoder_hidden_states=text).sample

        scale = {"guidance_scale": CHECKPOINTS[NAMES[kind]].guidance, "negative_prompt": "an owl"}
        frames, height, width = SIZE
        return Case(
            model.pipe, model.family, SHAPE, {"num_frames": frames, "height": height, "width": width}, bind, model.encode,
            forward, guided=scale | ({"guidance_scale_2": 3.0} if kind == "a14b" else {}), plain={"guidance_scale": 1.0},
            several="num_videos_per_prompt",
        )  # fmt: skip

    return {kind: case(kind) for kind in NAMES}


@pytest.fixture(scope="module", params=list(NAMES))
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


class TestContract(families.Contract):
    """The family keeps the promises of all families."""


@pytest.mark.parametrize("case", ["2.1"], indirect=True)
class TestAdditions(families.Additions):
    """A LoRA, feature caches; the pipeline tells these its steps."""

    @pytest.mark.parametrize("kind", families.CACHES)
    def test_cache(self, case: Case, kind: str) -> None:
        families.check_cache(case, kind, told=True)


def test_flops(cases: dict[str, Case]) -> None:
    families.check_flops(cases["2.1"], TEXT, ((1, 5, 7), (3, 9, 13)))


def test_a_timestep_per_token_costs_more(cases: dict[str, Case]) -> None:
    """TI2V embeds the one timestep of a call for every token; that is counted."""
    case, shape = cases["ti2v"], (3, 9, 13)
    model, count = copy.deepcopy(case.pipe.transformer).to("meta"), 3 * 9 * 13
    text = Conditioning("", {"prompt_embeds": torch.zeros(TEXT, 16, device="meta")})
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        case.forward(model, torch.zeros(1, 4, 3, 18, 26, device="meta"), 0.6, text, shape)
    assert case.family.flops(TEXT)(count) == pytest.approx(counter.get_total_flops(), rel=1e-12)
    assert case.family.flops(TEXT)(count) > cases["2.1"].family.flops(TEXT)(count)


def test_a_ribbon_may_be_longer_than_the_table(cases: dict[str, Case]) -> None:
    """The table of positions has 32 rows here and 1024 in the published models, fewer than a picture has tokens."""
    case = cases["2.1"]
    rope = case.pipe.transformer.rope
    assert rope.freqs_cos.shape[0] == 32 < int(np.prod(SHAPE))
    with pytest.raises(RuntimeError):
        rope(torch.zeros(1, 4, 1, 2, 2 * 33))


def test_both_transformers_keep_a_cache(cases: dict[str, Case]) -> None:
    """FirstBlockCache hits wherever it may: not at a transformer's first step, and not at the first after a promotion."""
    case, log = cases["a14b"], []
    parts = (case.pipe.transformer, case.pipe.transformer_2)
    handles = [handle for part in parts for handle in families.watched(part, log)]
    for part in parts:
        part.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    try:
        want = case.run(9)[1]
        sigmas = case.family.schedule(case.pipe.scheduler, 9).sigmas(9, 90)
        assert [step for step, new in enumerate(log) if new] == [0, sum(sigma >= 0.875 for sigma in sigmas)]
        with fresco.enable(case.pipe, FrescoConfig.full(9)):
            assert torch.equal(case.run(9)[1], want)
        with fresco.enable(case.pipe, FrescoConfig(nfe=9, stages=(3, 4, 2), selection="random", ratio=0.4)):
            log.clear()
            case.run(9)
        events = fresco.last_trace(case.pipe).events
        takeover = next(step for step, event in enumerate(events) if event.sigma < 0.875)
        assert [step for step, new in enumerate(log) if new] == sorted({0, 3, 7, takeover})
    finally:
        for handle in handles:
            handle.remove()
        for part in parts:
            part.disable_cache()


def test_a_cache_is_told_the_sigma_of_the_stage(cases: dict[str, Case]) -> None:
    """SeaCache weighs frequencies by it; each stage has a grid of its own."""
    case, told = cases["2.1"], []
    case.pipe.transformer.enable_cache(SeaCacheConfig(threshold=0.0))
    hook = case.pipe.transformer._diffusers_hook.get_hook("sea_cache_root")
    handle = case.pipe.transformer.register_forward_pre_hook(lambda *_: told.append(hook.state_manager.context.sigma))
    try:
        with fresco.enable(case.pipe, FrescoConfig(nfe=6, stages=(3, 1, 2), transition="rewind")):
            case.run(6)
    finally:
        handle.remove()
        case.pipe.transformer.disable_cache()
    sigmas = [event.sigma for event in fresco.last_trace(case.pipe).events]
    np.testing.assert_allclose(told, sigmas, rtol=1e-6)
    stock = case.family.schedule(case.pipe.scheduler, 6).sigmas(6, 90)[:6]
    assert not np.allclose(sigmas, stock, rtol=1e-2)


def test_two_transformers_share_a_run(models: dict[str, WanModel]) -> None:
    """Above the boundary the first runs, below the second, each with its own published guidance."""
    model = models["a14b"]
    bound, cond = model.bind(FrescoConfig.full(4, size=SIZE)), model.encode("a red fox")
    grid = TokenGrid.uniform(SHAPE, 1, 1)
    x = torch.randn(len(grid), 16, generator=seeded())
    for sigma, transformer, scale in ((0.9, model.pipe.transformer, 4.0), (0.8, model.pipe.transformer_2, 3.0)):
        with torch.no_grad():
            latents, time = model.family.latents(x[None], SHAPE), torch.tensor([sigma * 1000])
            given, without = (
                transformer(latents, time, text.tensors["prompt_embeds"][None]).sample for text in (cond, model.negative())
            )
        want = model.family.tokens(without + scale * (given - without))[0]
        assert torch.equal(bound(x, grid, sigma, cond), want)
    assert model.bind(FrescoConfig.full(4, guidance=2.0)).second[1] == 2.0


def test_the_checkpoints_scheduler_lends_its_shift(models: dict[str, WanModel]) -> None:
    """Published folders hold UniPC: `sample` runs Euler with its shift; `enable` says how to set that."""
    family, pipe = models["2.1"].family, models["2.1"].pipe
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    euler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    euler.set_timesteps(7)
    assert family.schedule(unipc, 7).sigmas(7, 90) == euler.sigmas.tolist()
    before = pipe.scheduler
    pipe.scheduler = unipc
    try:
        with pytest.raises(PluginError, match=r"pipe\.scheduler = FlowMatchEulerDiscreteScheduler\(shift=5\)"):
            fresco.enable(pipe, FrescoConfig.recommended(7))
    finally:
        pipe.scheduler = before


def test_the_model_makes_the_pipelines_video(models: dict[str, WanModel]) -> None:
    model, (frames, height, width) = models["2.1"], SIZE
    assert next(model.pipe.vae.parameters()).dtype == torch.float32
    latent, want = (
        model.pipe(
            "a red fox", num_frames=frames, height=height, width=width, num_inference_steps=2, output_type=kind,
            generator=seeded(1), return_dict=False,
        )[0][0]
        for kind in ("latent", "np")
    )  # fmt: skip
    got = model.decode(latent)
    assert got.shape == (*SIZE, 3)
    np.testing.assert_allclose(got, want * 255, atol=0.51)
    assert [models[kind].frame_rate for kind in NAMES] == [16, 24, 16]


def test_previews_are_learned_from_the_encoder(models: dict[str, WanModel]) -> None:
    check_previews(models["2.1"])


def test_a_run_from_the_library(models: dict[str, WanModel]) -> None:
    check_recorded_run(models["a14b"], SIZE, SHAPE)


def test_what_cannot_be_run() -> None:
    with torch.device("meta"):
        picture = WanTransformer3DModel(num_layers=1, in_channels=36, out_channels=16, image_dim=1280)
    with pytest.raises(ModelError, match="text to video"):
        family_of(picture)


def test_positions_between_the_rows(cases: dict[str, Case]) -> None:
    """On a mixed grid every token has the factors exp(i p / 10000^(k/F)) of its three places, by NumPy."""
    rope, grid = cases["2.1"].pipe.transformer.rope, mixed_grid(SHAPE)
    cases["2.1"].family.install()
    with seated(Seating(grid, "fine", 0.5)):
        cos, sin = rope(torch.zeros(1, 4, 1, 2, 2 * len(grid)))
    at = 0
    for axis, dim in enumerate((rope.t_dim, rope.h_dim, rope.w_dim)):
        angle = np.outer(grid.centers("fine")[:, axis].astype(float), 10000.0 ** (-np.arange(0, dim, 2) / dim)).repeat(
            2, axis=1
        )
        np.testing.assert_allclose(cos[0, :, 0, at : at + dim], np.cos(angle), atol=1e-6)
        np.testing.assert_allclose(sin[0, :, 0, at : at + dim], np.sin(angle), atol=1e-6)
        at += dim
