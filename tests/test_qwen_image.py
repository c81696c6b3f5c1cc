"""Qwen-Image on a tiny random pipeline: equal to stock where all tokens are fine, positions exact between the rows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fresco.backends import load_model
from fresco.backends.family import Seating, family_of, seated
from fresco.backends.qwen_image import QwenImageDenoiser
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from tests import families
from tests.families import Case, mixed_grid, reloaded
from tests.tiny_qwen_image import EDGE, tiny_qwen_image

SHAPE, TEXT = (1, 5, 6), 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qwen") / "pipeline"


def make(pipe: Any) -> Case:
    family = family_of(pipe.transformer)

    @torch.no_grad()
    def encode(prompt: str) -> Conditioning:
        return Conditioning(prompt, {"prompt_embeds": pipe.encode_prompt(prompt, max_sequence_length=TEXT)[0][0]})

    def bind(steps: int, guided: bool) -> QwenImageDenoiser:
        return QwenImageDenoiser(
            family, native_size=(1, SHAPE[1] * EDGE, SHAPE[2] * EDGE), pixels_per_token=EDGE,
            schedule=family.schedule(pipe.scheduler, steps), flops=family.flops(TEXT), device=torch.device("cpu"),
            cfg_scale=3.0 if guided else 1.0, unconditional=encode("an owl") if guided else None,
        )  # fmt: skip

    def forward(model: Any, latents: torch.Tensor, sigma: float, cond: Conditioning, shape: Any) -> torch.Tensor:
        return model(
            hidden_states=latents, encoder_hidden_states=cond.tensors["prompt_embeds"][None],
            timestep=(torch.tensor([sigma]).to(latents.device) * 1000) / 1000, img_shapes=[[shape]],
        ).sample  # fmt: skip

    return Case(
        pipe, family, SHAPE, {"height": SHAPE[1] * EDGE, "width": SHAPE[2] * EDGE, "max_sequence_length": TEXT}, bind, encode,
        forward, guided={"true_cfg_scale": 3.0, "negative_prompt": "an owl"}, steps=(2, 5),
    )  # fmt: skip


@pytest.fixture(scope="module")
def case(folder: Path) -> Case:
    return make(reloaded(tiny_qwen_image(), folder))


class TestContract(families.Contract):
    """The family keeps the promises of all families."""


class TestAdditions(families.Additions):
    """A LoRA, compiled blocks, feature caches."""


def test_half(case: Case) -> None:
    half = make(copy.deepcopy(case.pipe).to(torch.bfloat16))
    half.guided = None
    families.check_half(half)


def test_flops(case: Case) -> None:
    families.check_flops(case, TEXT)


def test_install(case: Case) -> None:
    families.check_install(case)


@pytest.mark.parametrize("frame", ["coarse", "coarse_corner", "fine"])
def test_positions_by_the_formula(case: Case, frame: str) -> None:
    """Every token is turned by its distance from the picture's centre, every word by its own from half the longer side."""
    grid = mixed_grid(SHAPE, 2)
    dense = {"fine": (5, 6)}.get(frame, (2, 2))
    rope = case.pipe.transformer.pos_embed
    case.family.install()
    with seated(Seating(grid, frame, 0.5)):
        image, text = rope([[(1, *dense)]], max_txt_seq_len=TEXT, device=torch.device("cpu"))

    def turns(place: Any, dim: int) -> np.ndarray:
        return np.exp(1j * np.outer(place, 10000.0 ** (-np.arange(0, dim, 2) / dim)))

    size = 2.0 ** (2 - grid.level)  # in finest cells
    cell = 1 if frame == "fine" else 4
    inner = 0.0 if frame == "coarse_corner" else 0.5
    sides = [(grid.coord[:, i + 1] + inner) * size / cell - inner - (dense[i] - dense[i] // 2) for i in (0, 1)]
    want = np.concatenate([turns(0 * size, 4), turns(sides[0], 6), turns(sides[1], 6)], axis=1)
    np.testing.assert_allclose(image.numpy(), want, atol=2e-6)
    words = max(dense) // 2 + np.arange(TEXT)
    np.testing.assert_allclose(text.numpy(), np.concatenate([turns(words, d) for d in (4, 6, 6)], axis=1), atol=2e-5)


def test_guidance_keeps_each_tokens_length(case: Case) -> None:
    bound, rng = case.bind(4, True), torch.Generator().manual_seed(0)
    without, given = torch.randn(2, 7, 16, generator=rng)
    guided = bound.guide(without, given, TokenGrid.uniform((1, 1, 7), 1, 1))
    torch.testing.assert_close(guided.norm(dim=1), given.norm(dim=1))
    along = torch.nn.functional.cosine_similarity(guided, without + 3 * (given - without))
    torch.testing.assert_close(along, torch.ones(7))


@pytest.mark.parametrize(("guidance", "call"), [(None, {"true_cfg_scale": 4.0, "negative_prompt": " "}), (1.0, {})])
def test_model(case: Case, folder: Path, guidance: Any, call: Any) -> None:
    model = load_model(f"qwen-image:{folder}", device="cpu", dtype="float32")
    families.check_model(case, model, guidance, max_sequence_length=512, **call)
    families.check_preview(model, SHAPE)
