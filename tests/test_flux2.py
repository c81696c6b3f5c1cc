"""FLUX.2 dev and klein on tiny random pipelines: equal to stock where all tokens are fine; tokens in (c, dy, dx) order."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2Pipeline
from PIL import Image

import fresco
from fresco.backends import ModelError, load_model
from fresco.backends.family import Seating, family_of
from fresco.backends.flux2 import Flux2Denoiser
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.tokens import Layout
from tests import families
from tests.families import Case, mixed_grid, reloaded
from tests.tiny_flux2 import EDGE, tiny_flux2, tiny_klein

SHAPE, TEXT = (1, 5, 6), 24


def make(pipe: Any) -> Case:
    family = family_of(pipe.transformer)
    embeds, klein = pipe.transformer.config.guidance_embeds, not isinstance(pipe, Flux2Pipeline)

    @torch.no_grad()
    def encode(prompt: str) -> Conditioning:
        return Conditioning(prompt, {"prompt_embeds": pipe.encode_prompt(prompt, max_sequence_length=TEXT)[0][0]})

    def bind(steps: int, guided: bool) -> Flux2Denoiser:
        return Flux2Denoiser(
            family, native_size=(1, SHAPE[1] * EDGE, SHAPE[2] * EDGE), pixels_per_token=EDGE,
            schedule=family.schedule(pipe.scheduler, steps), flops=family.flops(TEXT), device=torch.device("cpu"),
            guidance=2.5 if embeds else None, cfg_scale=3.0 if guided else 1.0,
            unconditional=encode("") if guided else None,
        )  # fmt: skip

    def forward(model: Any, latents: torch.Tensor, sigma: float, cond: Conditioning, shape: Any) -> torch.Tensor:
        _, rows, cols = shape
        empty = torch.zeros(1, 1, rows, cols)
        text = cond.tensors["prompt_embeds"][None]
        return model(
            hidden_states=latents, encoder_hidden_states=text,
            timestep=(torch.tensor([sigma]).to(latents.device) * 1000) / 1000,
            img_ids=pipe._prepare_latent_ids(empty).to(latents.device),
            txt_ids=pipe._prepare_text_ids(torch.zeros(1, TEXT, 1)).to(latents.device),
            guidance=torch.tensor([2.5]).to(latents.device) if embeds else None,
        ).sample  # fmt: skip

    call = {"height": SHAPE[1] * EDGE, "width": SHAPE[2] * EDGE, "max_sequence_length": TEXT}
    plain = {"guidance_scale": 1.0 if klein else 2.5}
    guided = {"guidance_scale": 3.0} if klein and not pipe.config.is_distilled else None
    # Blocks come in two kinds, one with the text apart and one with all tokens in one, which FirstBlockCache mixes up.
    mixed_up = {"first block": ("unsupported operand" if klein else "No cache context is set", "disable it")}
    uncached = mixed_up if klein else families.NO_CONTEXT | mixed_up
    return Case(pipe, family, SHAPE, call, bind, encode, forward, guided=guided, plain=plain, uncached=uncached)


@pytest.fixture(scope="module", params=["dev", "klein", "klein-base"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    made = tiny_flux2() if request.param == "dev" else tiny_klein(request.param == "klein")
    found = make(reloaded(made, folder := tmp_path_factory.mktemp(request.param)))
    found.pipe.folder = folder
    return found


class TestContract(families.Contract):
    """The family keeps the promises of all families."""


@pytest.mark.parametrize("case", ["dev", "klein-base"], indirect=True)
class TestAdditions(families.Additions):
    """A LoRA, compiled blocks, feature caches."""


@pytest.mark.parametrize("case", ["dev"], indirect=True)
def test_a_cache_context_around_the_call_stays_open(case: Case) -> None:
    """The pipeline of dev opens none, so whoever wants TaylorSeer does; promotions leave it open."""
    log: list[bool] = []
    handles = families.watched(case.pipe.transformer, log)
    make, _ = families.CACHES["taylorseer"]
    case.pipe.transformer.enable_cache(make())
    config = FrescoConfig(nfe=9, stages=(4, 3, 2), selection="random", ratio=0.4)
    try:
        with case.pipe.transformer.cache_context("all"):
            want = case.run(9)[1]
        with fresco.enable(case.pipe, FrescoConfig.full(9)), case.pipe.transformer.cache_context("all"):
            assert torch.equal(case.run(9)[1], want)
        log.clear()
        with fresco.enable(case.pipe, config), case.pipe.transformer.cache_context("all"):
            assert case.run(9)[1].isfinite().all()
        assert log == families.computed("taylorseer", [step in (4, 7) for step in range(9)], told=False)
    finally:
        for handle in handles:
            handle.remove()
        case.pipe.transformer.disable_cache()


def test_half(case: Case) -> None:
    half = make(copy.deepcopy(case.pipe).to(torch.bfloat16))
    half.guided = None
    families.check_half(half)


def test_flops(case: Case) -> None:
    families.check_flops(case, TEXT)


def test_tokens_are_the_pipelines_patches(case: Case) -> None:
    """A latent picture, patched and packed by the pipeline, is the layout's tokens; so the Haar split is that of pixels."""
    latents = torch.randn(1, 4, 10, 12, generator=torch.Generator().manual_seed(0))
    packed = case.pipe._pack_latents(case.pipe._patchify_latents(latents))
    fine = TokenGrid.uniform(SHAPE, 1, 1)
    layout = Layout(case.family.channels, case.family.patch)
    assert torch.equal(layout.unpack(case.family.tokens(packed)[0], fine), latents[0][:, None])


def test_ids_stay_float32_beside_half_weights(case: Case) -> None:
    """Their axes are (picture, row, col, word)."""
    grid = mixed_grid((1, 4, 600))
    where = Seating(grid, "fine", 0.5)
    ids = case.family.places({}, where, torch.zeros(2, len(grid), 16, dtype=torch.bfloat16))["img_ids"]
    assert ids.dtype == torch.float32
    np.testing.assert_array_equal(ids[1, :, 1:3].numpy(), grid.centers("fine")[:, 1:])
    assert float(ids.max()) > 512  # where bfloat16 counts by fours
    assert not ids[..., [0, 3]].any()


def test_reference_pictures_are_refused(case: Case) -> None:
    with fresco.enable(case.pipe, FrescoConfig(nfe=4)), pytest.raises(ModelError, match="reference pictures"):
        case.run(4, image=Image.new("RGB", (64, 64)))


def test_model(case: Case) -> None:
    """The batch norm of the autoencoder is undone; a distilled checkpoint takes no guidance."""
    dev = isinstance(case.pipe, Flux2Pipeline)
    model = load_model(f"{'flux2-dev' if dev else 'flux2-klein'}:{case.pipe.folder}", device="cpu", dtype="float32")
    for guidance in (None, 3.0):
        if guidance and not dev and case.pipe.config.is_distilled:
            with pytest.raises(ModelError, match="guidance is 3, but flux2-klein is distilled"):
                model.bind(FrescoConfig.full(3, guidance=guidance))
            continue
        families.check_model(case, model, guidance, max_sequence_length=512, guidance_scale=guidance or model.which.guidance)
    families.check_preview(model, SHAPE)
