"""Stable Diffusion 3.5 on a tiny random pipeline: equal to stock where all tokens are fine, positions exact at the rows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fresco.backends import ModelError, load_model
from fresco.backends.family import Seating, family_of, seated
from fresco.backends.sd3 import SD3Denoiser
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from tests import families
from tests.families import Case, mixed_grid, reloaded, tiny_preview
from tests.tiny_sd3 import EDGE, tiny_sd3

SHAPE, T5 = (1, 5, 6), 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sd3") / "pipeline"


def make(pipe: Any) -> Case:
    family = family_of(pipe.transformer)

    @torch.no_grad()
    def encode(prompt: str) -> Conditioning:
        states, _, pooled, _ = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=T5)
        return Conditioning(prompt, {"prompt_embeds": states[0], "pooled": pooled[0]})

    def bind(steps: int, guided: bool) -> SD3Denoiser:
        return SD3Denoiser(
            family, native_size=(1, SHAPE[1] * EDGE, SHAPE[2] * EDGE), pixels_per_token=EDGE,
            schedule=family.schedule(pipe.scheduler, steps), flops=family.flops(77 + T5), device=torch.device("cpu"),
            cfg_scale=3.0 if guided else 1.0, unconditional=encode("an owl") if guided else None,
        )  # fmt: skip

    def forward(model: Any, latents: torch.Tensor, sigma: float, cond: Conditioning, shape: Any) -> torch.Tensor:
        return model(
            hidden_states=latents, encoder_hidden_states=cond.tensors["prompt_embeds"][None],
            pooled_projections=cond.tensors["pooled"][None], timestep=torch.tensor([sigma * 1000]).to(latents.device),
        ).sample  # fmt: skip

    return Case(
        pipe, family, SHAPE, {"height": SHAPE[1] * EDGE, "width": SHAPE[2] * EDGE, "max_sequence_length": T5}, bind, encode,
        forward, guided={"guidance_scale": 3.0, "negative_prompt": "an owl"}, plain={"guidance_scale": 1.0}, close=1e-5,
        uncached=families.NO_CONTEXT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def case(folder: Path) -> Case:
    return make(reloaded(tiny_sd3(), folder))


class TestContract(families.Contract):
    """The family keeps the promises of all families."""


class TestAdditions(families.Additions):
    """A LoRA, compiled blocks, feature caches."""


def test_half(case: Case) -> None:
    half = make(copy.deepcopy(case.pipe).to(torch.bfloat16))
    half.guided = None
    families.check_half(half)


def test_flops(case: Case) -> None:
    families.check_flops(case, 77 + T5)


def test_install(case: Case) -> None:
    families.check_install(case)


@pytest.mark.parametrize("frame", ["coarse", "coarse_corner", "fine"])
def test_positions_by_the_formula(case: Case, frame: str) -> None:
    """Rows where places are whole; between them the table's own formula, to the bound that the family states."""
    grid, embed = mixed_grid(SHAPE, 2), case.pipe.transformer.pos_embed
    dense = (5, 6) if frame == "fine" else (2, 2)
    size, cell = 2.0 ** (2 - grid.level), 1 if frame == "fine" else 4  # of a token, of the frame's unit, in finest cells
    inner = 0.0 if frame == "coarse_corner" else 0.5
    places = [(grid.coord[:, i + 1] + inner) * size / cell - inner + (24 - dense[i]) // 2 for i in (0, 1)]
    case.family.install()
    with seated(Seating(grid, frame, 0.5)):
        got = embed.cropped_pos_embed(2, 2 * len(grid))[0]
    table = embed.pos_embed.reshape(24, 24, 32)
    rate = 8 / 24  # the table's radians per row of its fastest sinusoid: base size / table size
    whole = [(place == np.floor(place)) for place in places]
    for i, (row, col) in enumerate(zip(*places, strict=True)):
        if whole[0][i] and whole[1][i]:
            assert torch.equal(got[i], table[int(row), int(col)])
        want = np.concatenate([turns(col * rate), turns(row * rate)])  # the table has its columns first
        np.testing.assert_allclose(got[i].numpy(), want, atol=rate**2 / 8 + 1e-6)
    assert 0 < sum(whole[0] & whole[1]) < len(grid)


def turns(place: float) -> np.ndarray:
    rates = 10000.0 ** (-np.arange(8) / 8)
    return np.concatenate([np.sin(place * rates), np.cos(place * rates)])


def test_a_picture_larger_than_the_table(case: Case) -> None:
    wide = TokenGrid.uniform((1, 2, 25), 1, 1)
    with pytest.raises(ModelError, match="2 x 25 tokens, but this SD3 has positions for 24 x 24"):
        case.bind(4, False)(torch.zeros(50, 16), wide, 0.5, case.encode("a fox"))


@pytest.mark.parametrize(
    ("name", "guidance", "call"),
    [
        ("sd3.5-medium", None, {"guidance_scale": 4.5}), ("sd3.5-large", 2.0, {"guidance_scale": 2.0}),
        ("sd3.5-large-turbo", None, {"guidance_scale": 0.0}), ("sd3.5-large-turbo", 0.0, {"guidance_scale": 1.0}),
    ],
)  # fmt: skip
def test_model(
    case: Case, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, guidance: Any, call: Any
) -> None:
    monkeypatch.setenv("FRESCO_TAESD3", str(tiny_preview(tmp_path, 4)))
    model = load_model(f"{name}:{folder}", device="cpu", dtype="float32")
    families.check_model(case, model, guidance, max_sequence_length=256, negative_prompt="", **call)
    families.check_preview(model, SHAPE)
