"""HunyuanVideo on a tiny random pipeline and an odd grid: equal to stock when all tokens are fine; the paper's own costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from fresco.__main__ import main
from fresco.backends import ModelError, load_model
from fresco.backends.family import family_of
from fresco.backends.hunyuan_video import HunyuanVideoFamily, HunyuanVideoModel
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.record import run
from tests import families
from tests.families import Case, Forced, mixed_grid, noise_like, seeded
from tests.tiny_video import check_previews, check_recorded_run, tiny_hunyuan

SHAPE = (3, 5, 6)
SIZE = (9, 80, 96)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HunyuanVideoModel:
    folder = tmp_path_factory.mktemp("hunyuan")
    tiny_hunyuan().save_pretrained(folder)
    found = load_model(f"hunyuan-video:{folder}", device="cpu", dtype="float32")
    assert isinstance(found, HunyuanVideoModel)
    found.pipe.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def case(model: HunyuanVideoModel) -> Case:
    def bind(steps: int, guided: bool) -> Any:
        bound = model.bind(FrescoConfig.full(steps))
        bound.native_size = SIZE
        if guided:  # the pipeline can do true guidance beside the embedded one
            bound.cfg_scale, bound.unconditional = 3.0, model.encode("an owl")
        return bound

    def forward(transformer: Any, latents: torch.Tensor, sigma: float, cond: Conditioning, shape: Any) -> torch.Tensor:
        at, device = cond.tensors, latents.device
        return transformer(
            hidden_states=latents, timestep=torch.tensor([sigma * 1000]).to(device), guidance=torch.tensor([6000.0]).to(device),
            encoder_hidden_states=at["prompt_embeds"][None], encoder_attention_mask=at["mask"][None].float(),
            pooled_projections=at["pooled"][None],
        ).sample  # fmt: skip

    frames, height, width = SIZE
    return Case(
        model.pipe, model.family, SHAPE, {"num_frames": frames, "height": height, "width": width}, bind, model.encode, forward,
        guided={"true_cfg_scale": 3.0, "negative_prompt": "an owl"}, several="num_videos_per_prompt",
        graphs=4,  # blocks of two kinds, and those of the text's refiner
    )  # fmt: skip


class TestContract(families.Contract):
    """The family keeps the promises of all families."""


class TestAdditions(families.Additions):
    """A LoRA, compiled blocks, feature caches."""


@pytest.mark.parametrize("level", [0, 1])
def test_phase_aligned_attention_is_stock_on_uniform_grids(case: Case, level: int) -> None:
    """Through our attention processor, too: all fine is the stock forward, all coarse a native low-resolution one."""
    grid, cond, bound = TokenGrid.uniform(case.shape, 1, level), case.encode("a red fox"), case.bind(4, False)
    x = noise_like(case, grid)
    want = bound(x, grid, 0.6, cond)
    calls: list[Any] = []
    attention = case.pipe.transformer.single_transformer_blocks[0].attn
    handle = attention.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs["image_rotary_emb"]), with_kwargs=True
    )
    try:
        got = bound(x, Forced(grid.shape, grid.levels, grid.level, grid.coord), 0.6, cond)
    finally:
        handle.remove()
    assert bound.frame == "phase_aligned"
    assert [type(call) for call in calls] == [list]  # it did go the way of levels
    assert torch.equal(got, want)


def test_flops(case: Case) -> None:
    families.check_flops(case, 256, ((1, 5, 7), (3, 9, 13)))


# The published config of hunyuanvideo-community/HunyuanVideo, written out.
PUBLISHED = {
    "in_channels": 16, "out_channels": 16, "num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 20,
    "num_single_layers": 40, "num_refiner_layers": 2, "mlp_ratio": 4.0, "patch_size": 2, "patch_size_t": 1,
    "qk_norm": "rms_norm", "guidance_embeds": True, "text_embed_dim": 4096, "pooled_projection_dim": 768,
    "rope_theta": 256.0, "rope_axes_dim": (16, 56, 56),
}  # fmt: skip


@pytest.fixture(scope="module")
def published() -> HunyuanVideoFamily:
    with torch.device("meta"):
        return HunyuanVideoFamily(HunyuanVideoTransformer3DModel(**PUBLISHED))


def test_the_papers_flops(published: HunyuanVideoFamily) -> None:
    """720 x 1280 x 125 frames: 45 x 80 tokens in each of 32 latent frames; half of 45 rows is 23. METHOD 4."""
    fine, coarse = (TokenGrid.uniform((32, 45, 80), 1, level) for level in (1, 0))
    assert (len(fine), len(coarse)) == (115_200, 32 * 23 * 40)
    flops = published.flops(256)
    assert flops(len(fine)) / 1e12 == pytest.approx(11_397, abs=0.5)
    assert flops(len(coarse)) / 1e12 == pytest.approx(1_054, abs=0.5)
    for tokens in (len(fine), len(coarse)):  # the leading terms of a transformer of 60 blocks, by hand: METHOD 4
        rows = tokens + 256
        assert flops(tokens) == pytest.approx(60 * (24 * 3072**2 * rows + 4 * 3072 * rows**2), rel=1e-3)


@pytest.mark.parametrize(("stages", "speedup"), [((4, 10, 9), 3.91), ((5, 5, 8), 4.92), ((6, 7, 5), 6.29)])
def test_what_settings_cost(published: HunyuanVideoFamily, stages: tuple[int, int, int], speedup: float) -> None:
    """With 40 % promoted, the paper's 3.91x at NFE 23 and 4.92x at 18 are these stages; its split for FLUX would be faster."""
    flops, coarse = published.flops(256), 32 * 23 * 40
    grid = TokenGrid.uniform((32, 45, 80), 1, 0)
    mixed = len(grid.expand(np.arange(coarse) % 5 < 2)[0])
    cost = sum(n * flops(tokens) for n, tokens in zip(stages, (coarse, mixed, 115_200), strict=True))
    assert 50 * flops(115_200) / cost == pytest.approx(speedup, abs=0.005)


def test_blocks_are_counted_one_by_one() -> None:
    """FLOPs come from models of one and two blocks; a whole model of several has as many."""
    small = PUBLISHED | {
        "num_attention_heads": 2, "attention_head_dim": 10, "rope_axes_dim": (2, 4, 4), "text_embed_dim": 16,
        "pooled_projection_dim": 12, "num_layers": 3, "num_single_layers": 4,
    }  # fmt: skip
    with torch.device("meta"):
        family = HunyuanVideoFamily(HunyuanVideoTransformer3DModel(**small))
    given = family.example(7, torch.device("meta")) | {"hidden_states": torch.zeros(1, 16, 3, 10, 14, device="meta")}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        family.transformer(**given)
    assert family.flops(7)(3 * 5 * 7) == pytest.approx(counter.get_total_flops(), rel=1e-12)


def test_the_model_makes_the_pipelines_video(model: HunyuanVideoModel) -> None:
    """Published guidance, shift, prompt template and text length, from a folder; the tiled decoder's own frames."""
    assert (model.which.guidance, model.pipe.scheduler.config.shift, model.which.text_tokens) == (6.0, 7.0, 256)
    assert model.pipe.vae.use_tiling
    frames, height, width = SIZE
    latent = model.pipe(
        "a red fox", num_frames=frames, height=height, width=width, num_inference_steps=2, output_type="latent",
        generator=seeded(1), return_dict=False,
    )[0][0]  # fmt: skip
    want = model.pipe(
        "a red fox", num_frames=frames, height=height, width=width, num_inference_steps=2, output_type="np",
        generator=seeded(1), return_dict=False,
    )[0][0]  # fmt: skip
    made = model.decode(latent)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, (want * 255).round().astype(np.uint8))
    assert made.shape == (*SIZE, 3)
    fox, owl = (model.encode(f"a red {animal}").tensors for animal in ("fox", "owl"))
    count = int(fox["mask"].sum())
    assert 0 < count < 256  # the padding is masked
    assert not torch.equal(fox["prompt_embeds"][:count], owl["prompt_embeds"][:count])  # and the template left the prompt in


def test_previews_are_learned_from_the_encoder(model: HunyuanVideoModel) -> None:
    check_previews(model)


def test_a_run_from_the_library(model: HunyuanVideoModel) -> None:
    check_recorded_run(model, SIZE, SHAPE)


def test_what_cannot_be_run() -> None:
    with torch.device("meta"):
        picture = HunyuanVideoTransformer3DModel(
            **PUBLISHED | {"num_layers": 1, "num_single_layers": 1, "image_condition_type": "latent_concat"}
        )
    with pytest.raises(ModelError, match="text to video"):
        family_of(picture)


def test_another_attention_is_named(case: Case) -> None:
    """The phase-aligned frame says whose attention is in the way; other frames run with it."""

    class Other(HunyuanVideoAttnProcessor2_0):
        pass

    attention = case.pipe.transformer.transformer_blocks[0].attn
    before = attention.processor
    grid = mixed_grid(case.shape)
    x, cond, bound = noise_like(case, grid), case.encode("a red fox"), case.bind(4, False)
    attention.set_processor(Other())
    try:
        with pytest.raises(ModelError, match="has Other: use another frame"):
            bound(x, grid, 0.5, cond)
        bound.frame = "coarse"
        assert bound(x, grid, 0.5, cond).isfinite().all()
    finally:
        attention.set_processor(before)


def test_from_a_shell_to_a_film(model: HunyuanVideoModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m fresco generate` on a folder writes the very frames of the library's run, at the model's frame rate."""
    model.pipe.save_pretrained(tmp_path / "tiny")
    out = tmp_path / "fox.webp"
    command = [
        "generate",
        "a red fox",
        "--model",
        f"hunyuan-video:{tmp_path / 'tiny'}",
        "--dtype",
        "float32",
        "--device",
        "cpu",
    ]
    given = [*command, "--nfe", "4", "--size", "9x80x96", "--guidance", "4", "--out", str(out), "--json"]
    assert main(given) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["config"]["size"], len(told["tokens"])) == ([*SIZE], 4)
    want = run(model, "a red fox", FrescoConfig.recommended(4, size=SIZE, guidance=4.0), preview_every=0).picture
    assert want is not None
    with Image.open(out) as film:
        assert film.n_frames == 9
        film.seek(8)
        shown = np.asarray(film.convert("RGB"))
    assert np.corrcoef(shown.ravel(), want[8].ravel())[0, 1] > 0.8  # lossy, and random weights draw noise
    assert main([*given[:-2], str(tmp_path / "fox.png")]) == 2
    assert "use .mp4" in capsys.readouterr().err
