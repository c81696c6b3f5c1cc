"""Z-Image on a tiny random pipeline: equal to stock where all tokens are fine, positions exact between the rows."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fresco
from fresco.backends import load_model
from fresco.backends.family import Seating, family_of, seated
from fresco.backends.z_image import ZImageDenoiser
from fresco.denoiser import Conditioning
from tests import families
from tests.families import MIXED, Case, assert_near, mixed_grid, reloaded, tiny_preview
from tests.tiny_z_image import EDGE, tiny_z_image

SHAPE, TEXT, SCALE = (1, 5, 6), 40, 2.5
SHORT = 27  # words of the prompt; the negative one is cut at 40, so that the model pads them differently
NEGATIVE = "an owl in a tree at night, seen from far away"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("z") / "pipeline"


def make(pipe: Any) -> Case:
    family = family_of(pipe.transformer)

    @torch.no_grad()
    def encode(prompt: str) -> Conditioning:
        states, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=TEXT)
        return Conditioning(prompt, {"prompt_embeds": states[0]})

    def bind(steps: int, guided: bool) -> ZImageDenoiser:
        return ZImageDenoiser(
            family, native_size=(1, SHAPE[1] * EDGE, SHAPE[2] * EDGE), pixels_per_token=EDGE,
            schedule=family.schedule(pipe.scheduler, steps), flops=family.flops(TEXT if guided else SHORT),
            device=torch.device("cpu"),
            cfg_scale=1 + SCALE if guided else 1.0, unconditional=encode(NEGATIVE) if guided else None,
        )  # fmt: skip

    def forward(model: Any, latents: torch.Tensor, sigma: float, cond: Conditioning, shape: Any) -> torch.Tensor:
        time = (1000 - torch.tensor([sigma * 1000]).to(latents.device)) / 1000
        return -model([latents[0][:, None]], time, [cond.tensors["prompt_embeds"]]).sample[0][None, :, 0]

    return Case(
        pipe, family, SHAPE, {"height": SHAPE[1] * EDGE, "width": SHAPE[2] * EDGE, "max_sequence_length": TEXT}, bind, encode,
        forward, guided={"guidance_scale": SCALE, "negative_prompt": NEGATIVE}, plain={"guidance_scale": 0.0}, close=2e-5,
        uncached=families.NO_CONTEXT | dict.fromkeys(("first block", "mag", "sea"), ("hidden_states", "disable it")),
        graphs=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def case(folder: Path) -> Case:
    return make(reloaded(tiny_z_image(), folder))


class TestContract(families.Contract):
    """The family keeps the promises of all families."""


class TestAdditions(families.Additions):
    """A LoRA, compiled blocks, feature caches."""


def test_half(case: Case) -> None:
    half = make(copy.deepcopy(case.pipe).to(torch.bfloat16))
    half.guided = None
    families.check_half(half)


def test_flops(case: Case) -> None:
    """35 tokens cost what 64 do, 117 what 128 do: the model pads."""
    families.check_flops(case, SHORT)
    flops = case.family.flops(SHORT)
    assert flops(33) == flops(64) < flops(65)


def test_install(case: Case) -> None:
    families.check_install(case)


@pytest.mark.parametrize("frame", ["coarse", "coarse_corner", "fine"])
def test_positions_by_the_formula(case: Case, frame: str) -> None:
    """The tokens' own places stand after the padded text; the padding of the picture stands at the origin."""
    grid, model = mixed_grid(SHAPE, 2), case.pipe.transformer
    size, cell = 2.0 ** (2 - grid.level), 1 if frame == "fine" else 4  # of a token, of the frame's unit, in finest cells
    inner = 0.0 if frame == "coarse_corner" else 0.5
    places = np.zeros((-(-len(grid) // 32) * 32, 3))
    places[: len(grid), 1:] = (grid.coord[:, 1:] + inner) * (size / cell)[:, None] - inner
    places[: len(grid), 0] = 64 + 1  # 40 words are padded to 64
    case.family.install()
    with seated(Seating(grid, frame, 0.5)):
        found = model.patchify_and_embed([torch.zeros(4, 1, 2, 2 * len(grid))], [torch.zeros(40, 12)], 2, 1)
        got = model.rope_embedder(found[3][0])
    want = [np.exp(1j * np.outer(places[:, i], 256.0 ** (-np.arange(0, d, 2) / d))) for i, d in enumerate((4, 6, 6))]
    np.testing.assert_allclose(got.numpy(), np.concatenate(want, axis=1), atol=3e-6)


@pytest.mark.parametrize(("normalization", "truncation"), [(1.0, 1.0), (0.0, 0.4), (0.7, 0.6)])
def test_bounded_and_truncated_guidance(case: Case, normalization: float, truncation: float) -> None:
    """Both as the pipeline has them, in mixed runs too: the bound is over the picture, however it is divided.

    The pipeline decides on truncation by its own timesteps, before the first call; `carry` keeps to these.
    """
    extra = {"cfg_normalization": normalization, "cfg_truncation": truncation}
    config = MIXED["recommended"].replace(transition="carry", checks="every")
    bind = case.bind

    def changed(steps: int, guided: bool) -> ZImageDenoiser:
        bound = bind(steps, guided)
        bound.normalization, bound.truncation = normalization, truncation
        return bound

    ours = dataclasses.replace(case, bind=changed)
    with fresco.enable(case.pipe, config):
        _, latents = case.run(config.nfe, True, **extra)
    want = ours.sample(config, True)[-1]
    order = torch.from_numpy(want.grid_next.cells().ravel())
    assert_near(case.family.tokens(latents)[0], want.x_next[order], case.close)
    free = case.sample(config, True)[-1].x_next
    assert float((free - want.x_next).abs().max()) > 0.01


@pytest.mark.parametrize(("guidance", "call"), [(None, {"guidance_scale": 0.0}), (2.0, {"guidance_scale": 2.0})])
def test_model(case: Case, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guidance: Any, call: Any) -> None:
    monkeypatch.setenv("FRESCO_TAEF1", str(tiny_preview(tmp_path, 4)))
    model = load_model(f"z-image-turbo:{folder}", device="cpu", dtype="float32")
    families.check_model(case, model, guidance, max_sequence_length=512, negative_prompt="", **call)
    families.check_preview(model, SHAPE)
