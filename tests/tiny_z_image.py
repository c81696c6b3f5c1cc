"""A tiny random Z-Image pipeline of the real classes."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

from tests.families import strong
from tests.tiny_text import qwen3, tokenizer

EDGE = 4  # pixels per token: the autoencoder halves, a patch is 2


def tiny_z_image(transformer: type[ZImageTransformer2DModel] = ZImageTransformer2DModel) -> ZImagePipeline:
    """Return a pipeline with 4 latent channels and 4 pixels per token side."""
    torch.manual_seed(0)
    encoder = qwen3(3, 12)
    model = transformer(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12,
        axes_dims=[4, 6, 6], axes_lens=[128, 32, 32],
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8),
        latent_channels=4, norm_num_groups=2, sample_size=16, use_quant_conv=False, use_post_quant_conv=False,
        scaling_factor=0.3611, shift_factor=0.1159,
    )  # fmt: skip
    strong(encoder, model, vae)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, text_encoder=encoder, tokenizer=tokenizer(),
        transformer=model,
    )  # fmt: skip
