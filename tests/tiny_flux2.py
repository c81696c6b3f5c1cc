"""Tiny random FLUX.2 pipelines, dev and klein, of the real classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from tests.families import strong
from tests.tiny_text import qwen3, tokenizer

EDGE = 4  # pixels per token: the autoencoder halves, a patch is 2
SCHEDULER = {"use_dynamic_shifting": True, "shift": 3.0}


def parts(guidance: bool, text: int) -> dict[str, Any]:
    """Return transformer, autoencoder and scheduler: 4 latent channels, 16 numbers per token, `text` numbers per word."""
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=text, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8),
        latent_channels=4, norm_num_groups=2, sample_size=16,
    )  # fmt: skip
    strong(transformer, vae)
    vae.bn.running_mean.copy_(torch.linspace(-0.4, 0.5, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    return {"transformer": transformer, "vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULER)}


def tiny_flux2() -> Flux2Pipeline:
    """Return dev: an embedded guidance scale, and three layers of a Mistral for text; its tokenizer stands for Pixtral's."""
    made = parts(True, 24)
    encoder = Mistral3ForConditionalGeneration(Mistral3Config(
        vision_config={
            "model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "image_size": 28, "patch_size": 14,
        },
        text_config={
            "model_type": "mistral", "vocab_size": 259, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 31,
            "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
        },
    ))  # fmt: skip
    strong(encoder)
    return Flux2Pipeline(text_encoder=encoder, tokenizer=tokenizer(), **made)


def tiny_klein(distilled: bool) -> Flux2KleinPipeline:
    """Return klein, distilled or base: classifier-free guidance where it is base, and three layers of a Qwen3 for text."""
    made, encoder = parts(False, 24), qwen3(28, 8)
    strong(encoder)
    return Flux2KleinPipeline(text_encoder=encoder, tokenizer=tokenizer(), is_distilled=distilled, **made)
