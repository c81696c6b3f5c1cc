"""FLOPs of a step and of a run from a model's shape alone; nothing is measured here. Standard library only.

A multiply-add counts as two (2 m n k per matrix product), as `torch.utils.flop_counter.FlopCounterMode` counts; element-wise
work is left out, as there. Source: METHOD 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fresco.errors import FrescoError

REFERENCE_STEPS = 50  # full-resolution steps that published speed-ups are measured against (METHOD 1)


@dataclass(frozen=True)
class TransformerShape:
    """What the FLOPs of a FLUX-architecture transformer depend on.

    Attributes:
        width: hidden width d = heads * head size.
        double_blocks: blocks with separate weights for text and image.
        single_blocks: blocks with shared weights, attention and MLP in parallel.
        text_tokens: text tokens T, padding included.
        token_in: length D of an image token on the way in.
        token_out: length of an image token on the way out.
        text_dim: width of a text embedding.
        pooled_dim: width of the pooled text embedding.
        guidance_embeds: whether a guidance scale is embedded beside the timestep.
        pixels_per_token: picture pixels per token side, autoencoder and patch together; only `report` reads it.
        mlp_ratio: MLP width over d.
        time_dim: sinusoidal channels of the timestep embedding.
    """

    width: int
    double_blocks: int
    single_blocks: int
    text_tokens: int
    token_in: int
    token_out: int
    text_dim: int
    pooled_dim: int
    guidance_embeds: bool
    pixels_per_token: int = 16
    mlp_ratio: float = 4.0
    time_dim: int = 256

    @classmethod
    def from_config(cls, config: Mapping[str, Any], text_tokens: int, pixels_per_token: int = 16) -> TransformerShape:
        """Return the shape of a `diffusers.FluxTransformer2DModel` from its config."""
        return cls(
            width=config["num_attention_heads"] * config["attention_head_dim"],
            double_blocks=config["num_layers"],
            single_blocks=config["num_single_layers"],
            text_tokens=text_tokens,
            token_in=config["in_channels"],
            token_out=(config.get("out_channels") or config["in_channels"]) * config.get("patch_size", 1) ** 2,
            text_dim=config["joint_attention_dim"],
            pooled_dim=config["pooled_projection_dim"],
            guidance_embeds=config["guidance_embeds"],
            pixels_per_token=pixels_per_token,
        )

    def attention_flops(self, queries: int, keys: int) -> float:
        """Return the FLOPs of the score matrix Q K^T alone, over all blocks."""
        return 2.0 * (self.double_blocks + self.single_blocks) * queries * keys * self.width

    def flops(self, image_tokens: int) -> float:
        """Return the FLOPs of one forward on `image_tokens` tokens, batch 1.

        `b ((8 + 4 m) d^2 S + 4 d S^2)` with S = text + image tokens, b blocks and MLP ratio m, plus modulation (one row
        per block), the embedders and the output projection. Source: METHOD 4.
        """
        return self._body(image_tokens) + self.shell_flops(image_tokens)

    def _body(self, image_tokens: int) -> float:
        d, seq = float(self.width), float(self.text_tokens + image_tokens)
        blocks = self.double_blocks + self.single_blocks
        return blocks * ((8 + 4 * self.mlp_ratio) * d * d * seq + 4 * d * seq * seq)

    def head_flops(self, image_tokens: int) -> float:
        """Return the FLOPs of a forward whose blocks after the first are left out: what FirstBlockCache always spends."""
        return self._body(image_tokens) / (self.double_blocks + self.single_blocks) + self.shell_flops(image_tokens)

    def shell_flops(self, image_tokens: int) -> float:
        """Return the FLOPs outside attention and feed-forward layers: what a call costs whose features are forecast.

        Embedders, modulation and the output projection. TaylorSeer's published 967.91 TFLOPs are 13 full calls and 37 such.
        """
        d = float(self.width)
        modulation = (24 * self.double_blocks + 6 * self.single_blocks + 4) * d * d  # 2 streams x 6, 3, and 2 at the end
        vectors = (2 * self.time_dim * d + 2 * d * d) * (1 + self.guidance_embeds) + 2 * self.pooled_dim * d + 2 * d * d
        tokens = 2 * d * (image_tokens * (self.token_in + self.token_out) + self.text_tokens * self.text_dim)
        return modulation + vectors + tokens


def _flux(double_blocks: int, text_tokens: int, guidance_embeds: bool) -> TransformerShape:
    return TransformerShape(3072, double_blocks, 38, text_tokens, 64, 64, 4096, 768, guidance_embeds)


SHAPES: dict[str, TransformerShape] = {
    "flux-dev": _flux(19, 512, True),
    "flux-schnell": _flux(19, 256, False),
    "flux-lite": _flux(8, 512, True),
}


def mixed_tokens(coarse: int, promoted: int, full: int | None = None) -> int:
    """Return how many tokens remain after `promoted` of `coarse` tokens became their children.

    Args:
        coarse: tokens of the coarse grid.
        promoted: how many of them are expanded, 0 to `coarse`.
        full: tokens of the fine grid; None is an even grid, 4 per coarse token. On an odd grid border tokens have fewer
            children, and which tokens are promoted is not known here, so the average is used.

    Raises:
        FrescoError: where more tokens are promoted than there are.
    """
    if not 0 <= promoted <= coarse:
        raise FrescoError(f"promoted is {promoted}; it must be from 0 to the {coarse} coarse tokens")
    return coarse + round(promoted * ((4 * coarse if full is None else full) - coarse) / coarse)


def run_flops(shape: TransformerShape, token_counts: Sequence[int], calls: int = 1) -> float:
    """Return the FLOPs of a run whose step i has `token_counts[i]` tokens; `calls` = 2 with true classifier-free guidance."""
    return calls * sum(shape.flops(tokens) for tokens in token_counts)


def same_flops_steps(flops: float, flops_per_full_step: float) -> int:
    """Return the smallest number of full-resolution steps that costs at least `flops`, and at least 1.

    Source: METHOD 2.6.
    """
    return max(1, math.ceil(flops / flops_per_full_step * (1 - 1e-12)))  # 10 full steps are 10, whatever the rounding


def parse_size(size: str | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) in pixels from "HEIGHTxWIDTH" or a pair.

    Raises:
        FrescoError: on anything else.
    """
    parts = size.lower().split("x") if isinstance(size, str) else list(size)
    try:
        height, width = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise FrescoError(f"size is {size!r}; give height x width in pixels, for example 1024x1024") from None
    if height < 1 or width < 1:
        raise FrescoError(f"size is {size!r}; both sides must be at least 1 pixel")
    return height, width


def token_grid(shape: TransformerShape, size: str | Sequence[int]) -> tuple[int, int]:
    """Return the tokens of a picture at full resolution, and at half of it per side, borders rounded up.

    Raises:
        FrescoError: where the size is not whole tokens.
    """
    height, width = parse_size(size)
    edge = shape.pixels_per_token
    if height % edge or width % edge:
        raise FrescoError(f"size {height}x{width} is not whole tokens; use multiples of {edge} pixels")
    rows, cols = height // edge, width // edge
    return rows * cols, -(-rows // 2) * -(-cols // 2)


def report(model: str | TransformerShape, size: str | Sequence[int], steps: Sequence[int], ratio: float) -> dict[str, Any]:
    """Return what a Fresco run costs and what that buys against full resolution, as a JSON-able dict.

    Args:
        model: a name in SHAPES, or a shape.
        size: picture size, "HEIGHTxWIDTH" or (height, width) in pixels.
        steps: model calls in the (low, mixed, full) stage.
        ratio: fraction of the coarse tokens promoted before the mixed stage, 0 to 1.

    Raises:
        FrescoError: on an unknown model, a size that is not whole tokens, or steps and ratio out of range.
    """
    if isinstance(model, str) and model not in SHAPES:
        raise FrescoError(f"no shape is known for model {model!r}; choose one of {', '.join(SHAPES)}")
    shape = SHAPES[model] if isinstance(model, str) else model
    height, width = parse_size(size)
    full, coarse = token_grid(shape, (height, width))
    if len(steps) != 3 or min(steps) < 0 or sum(steps) < 1:
        raise FrescoError(f"steps are {tuple(steps)}; give three whole numbers (low, mixed, full), each >= 0, not all 0")
    if not 0 <= ratio <= 1:
        raise FrescoError(f"ratio is {ratio:g}; it must be from 0 to 1")
    promoted = math.floor(ratio * coarse)
    tokens = (coarse, mixed_tokens(coarse, promoted, full), full)
    per_step = [shape.flops(count) for count in tokens]
    total = sum(n * flops for n, flops in zip(steps, per_step, strict=True))
    same = same_flops_steps(total, per_step[2])
    names = ("low", "mixed", "full")
    return {
        "model": model if isinstance(model, str) else "custom",
        "size": [height, width],
        "steps": list(steps),
        "nfe": sum(steps),
        "ratio": ratio,
        "promoted": promoted,
        "text_tokens": shape.text_tokens,
        "tokens": dict(zip(names, tokens, strict=True)),
        "tflops_per_step": {name: flops / 1e12 for name, flops in zip(names, per_step, strict=True)},
        "tflops": total / 1e12,
        "reference_steps": REFERENCE_STEPS,
        "tflops_reference": REFERENCE_STEPS * per_step[2] / 1e12,
        "speedup_reference": REFERENCE_STEPS * per_step[2] / total,
        "tflops_same_nfe": sum(steps) * per_step[2] / 1e12,
        "speedup_same_nfe": sum(steps) * per_step[2] / total,
        "same_flops_steps": same,
        "tflops_same_flops": same * per_step[2] / 1e12,
    }
