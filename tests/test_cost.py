"""Closed-form FLOPs against torch's own counter on the meta device, and against the published runs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from fresco.cost import SHAPES, TransformerShape, mixed_tokens, report, run_flops, same_flops_steps

TINY = {
    "in_channels": 12, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 40, "pooled_projection_dim": 24, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
FLUX = {"num_layers": 19, "num_single_layers": 38, "joint_attention_dim": 4096, "pooled_projection_dim": 768}


def counted(config: dict[str, object], text: int, image: int) -> int:
    """Return what FlopCounterMode counts in one forward of the real class; on the CPU it would miss attention."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config)
        inputs = {
            "hidden_states": torch.empty(1, image, model.config.in_channels),
            "encoder_hidden_states": torch.empty(1, text, model.config.joint_attention_dim),
            "pooled_projections": torch.empty(1, model.config.pooled_projection_dim),
            "timestep": torch.empty(1),
            "guidance": torch.empty(1) if model.config.guidance_embeds else None,
            "img_ids": torch.empty(image, 3),
            "txt_ids": torch.empty(text, 3),
        }
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize(("text", "image"), [(7, 20), (12, 256)])
def test_every_product_of_a_tiny_model_is_counted(guidance: bool, text: int, image: int) -> None:
    config = TINY | {"guidance_embeds": guidance}
    shape = TransformerShape.from_config(FluxTransformer2DModel(**config).config, text)
    assert shape.flops(image) == counted(config, text, image)


def test_flux_dev_agrees_with_the_counter() -> None:
    found = counted(FLUX | {"guidance_embeds": True}, 512, 4096)
    assert SHAPES["flux-dev"].flops(4096) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize(("name", "guidance"), [("flux-schnell", False), ("flux-lite", True)])
def test_the_others_agree_block_by_block(name: str, guidance: bool) -> None:
    """At real width with one block of each kind: building all blocks takes long, even without weights."""
    short = dataclasses.replace(SHAPES[name], double_blocks=1, single_blocks=1)
    config = FLUX | {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": guidance}
    assert short.flops(4096) == counted(config, short.text_tokens, 4096)


def test_depths() -> None:
    depths = {name: (shape.double_blocks, shape.single_blocks) for name, shape in SHAPES.items()}
    assert depths == {"flux-dev": (19, 38), "flux-schnell": (19, 38), "flux-lite": (8, 38)}


def test_flux_dev_forwards() -> None:
    tflops = [SHAPES["flux-dev"].flops(tokens) / 1e12 for tokens in (1024, 2048, 2560, 4096, 16384)]
    assert tflops == pytest.approx([21.50, 37.66, 46.29, 74.385, 418.1], rel=2e-4)
    assert SHAPES["flux-schnell"].flops(4096) / 1e12 == pytest.approx(69.47, rel=2e-4)


@pytest.mark.parametrize(
    ("steps", "tflops", "published"),
    [((12, 9, 9), 1296.84, 1295.99), ((6, 7, 5), 788.21, 788.03), ((5, 2, 4), 487.13, 486.85)],
)
def test_the_papers_runs(steps: tuple[int, int, int], tflops: float, published: float) -> None:
    found = report("flux-dev", "1024x1024", steps, 0.4)
    assert found["promoted"] == 409
    assert found["tflops"] == pytest.approx(tflops, abs=0.005)
    assert found["tflops"] == pytest.approx(published, rel=1e-3)
    tokens = [n for n, count in zip((1024, 1024 + 3 * 409, 4096), steps, strict=True) for _ in range(count)]
    assert run_flops(SHAPES["flux-dev"], tokens) / 1e12 == pytest.approx(found["tflops"])
    assert found["speedup_reference"] == pytest.approx(50 * 74.384653 / tflops, rel=1e-4)
    assert found["speedup_same_nfe"] == pytest.approx(sum(steps) * 74.384653 / tflops, rel=1e-4)
    same = found["same_flops_steps"]
    assert (same - 1) * 74.384653 < tflops <= same * 74.384653


def test_2048_is_more_than_five_times_cheaper() -> None:
    assert report("flux-dev", (2048, 2048), (6, 7, 5), 0.4)["speedup_reference"] == pytest.approx(5.4, abs=0.05)


def test_same_flops_is_a_ceiling_that_survives_rounding() -> None:
    unit = SHAPES["flux-dev"].flops(4096)
    for n in (1, 3, 7, 10, 49):
        assert same_flops_steps(math.fsum([unit] * n), unit) == same_flops_steps(sum([unit] * n), unit) == n
        assert same_flops_steps(unit * (n + 0.01), unit) == n + 1
    assert same_flops_steps(0.3 * unit, unit) == 1


def test_mixed_tokens_run_from_coarse_to_full() -> None:
    assert [mixed_tokens(64, n) for n in (0, 25, 64)] == [64, 139, 256]
    assert mixed_tokens(23 * 40, 23 * 40, 45 * 80) == 45 * 80
    with pytest.raises(ValueError, match="from 0 to the 64"):
        mixed_tokens(64, 65)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("flux-pro", "1024x1024", (6, 7, 5), 0.4), "choose one of flux-dev"),
        (("flux-dev", "1000x1024", (6, 7, 5), 0.4), "multiples of 16"),
        (("flux-dev", "big", (6, 7, 5), 0.4), "height x width"),
        (("flux-dev", "1024x1024", (6, 7), 0.4), "three whole numbers"),
        (("flux-dev", "1024x1024", (6, 7, 5), 1.4), "from 0 to 1"),
    ],
)
def test_errors_say_what_to_do(arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        report(*arguments)  # type: ignore[arg-type]
