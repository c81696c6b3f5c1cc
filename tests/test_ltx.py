"""LTX-Video on a tiny random pipeline and an odd grid: packed tokens of one latent pixel, a schedule with a terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel

from fresco.backends import ModelError, load_model
from fresco.backends.family import family_of
from fresco.backends.ltx import LTXModel
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning
from tests import families
from tests.families import Case, seeded
from tests.tiny_video import check_previews, check_recorded_run, tiny_ltx

SHAPE, SIZE, TEXT = (3, 5, 6), (17, 160, 192), 128


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LTXModel:
    folder = tmp_path_factory.mktemp("ltx")
    tiny_ltx().save_pretrained(folder)
    found = load_model(f"ltx-video:{folder}", device="cpu", dtype="float32")
    assert isinstance(found, LTXModel)
    found.pipe.set_progress_bar_config(disable=True)
    found.negative_prompt = "an owl"
    return found


@pytest.fixture(scope="module")
def case(model: LTXModel) -> Case:
    def bind(steps: int, guided: bool) -> Any:
        bound = model.bind(FrescoConfig.full(steps, guidance=None if guided else 1.0))
        bound.native_size = SIZE
        return bound

    def forward(transformer: Any, latents: torch.Tensor, sigma: float, cond: Conditioning, shape: Any) -> torch.Tensor:
        frames, rows, cols = shape
        return transformer(
            hidden_states=latents, encoder_hidden_states=cond.tensors["prompt_embeds"][None],
            timestep=torch.tensor([sigma * 1000]).to(latents.device), encoder_attention_mask=cond.tensors["mask"][None],
            num_frames=frames, height=rows, width=cols, rope_interpolation_scale=(8 / 25, 32, 32),
        ).sample  # fmt: skip

    frames, height, width = SIZE
    return Case(
        model.pipe, model.family, SHAPE, {"num_frames": frames, "height": height, "width": width}, bind, model.encode, forward,
        guided={"guidance_scale": 3.0, "negative_prompt": "an owl"}, plain={"guidance_scale": 1.0}, close=1e-5,
        several="num_videos_per_prompt", steps=(2, 5),
    )  # fmt: skip


class TestContract(families.Contract):
    """The family keeps the promises of all families."""


class TestAdditions(families.Additions):
    """A LoRA, compiled blocks, feature caches."""


def test_flops(case: Case) -> None:
    families.check_flops(case, TEXT, ((1, 5, 7), (3, 9, 13)))


def test_the_sigmas_end_at_the_terminal(model: LTXModel) -> None:
    assert model.bind(FrescoConfig.full(8)).sigmas(8, 6160)[-2:] == [pytest.approx(0.1), 0.0]


@pytest.mark.parametrize("timestep", [False, True])
def test_the_model_makes_the_pipelines_video(model: LTXModel, timestep: bool) -> None:
    """With and without a decoder that takes a timestep; 0.9.1 and later have one."""
    frames, height, width = SIZE
    before = model.pipe.vae
    if timestep:
        torch.manual_seed(0)
        model.pipe.vae = type(before).from_config(dict(before.config) | {"timestep_conditioning": True}).eval()
    try:
        latent, want = (
            model.pipe(
                "a red fox", num_frames=frames, height=height, width=width, num_inference_steps=2, output_type=kind,
                generator=seeded(1), return_dict=False,
            )[0][0]
            for kind in ("latent", "np")
        )  # fmt: skip
        got = model.decode(latent.T.reshape(-1, *SHAPE))
    finally:
        model.pipe.vae = before
    assert got.shape == (*SIZE, 3)
    np.testing.assert_allclose(got, want * 255, atol=0.51)


def test_previews_are_learned_from_the_encoder(model: LTXModel) -> None:
    check_previews(model)


def test_a_run_from_the_library(model: LTXModel) -> None:
    check_recorded_run(model, SIZE, SHAPE)


def test_what_cannot_be_run() -> None:
    with torch.device("meta"):
        coarse = LTXVideoTransformer3DModel(num_layers=1, patch_size=2)
    with pytest.raises(ModelError, match="one latent pixel per token"):
        family_of(coarse)
