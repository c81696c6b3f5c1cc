"""Tiny random FLUX pipelines of the real classes, tokenizers built on the spot, to be saved as real diffusers folders."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from fresco.grid import TokenGrid

DEV = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
SCHNELL = {"use_dynamic_shifting": False, "shift": 1.0}
EDGE = 4  # pixels per token: the autoencoder halves, a patch is 2


def tiny_flux(guidance: bool = True, scheduler: dict[str, Any] = DEV, seed: int = 0) -> FluxPipeline:
    """Return a pipeline with 4 latent channels, 16 numbers per token and 4 pixels per token side."""
    torch.manual_seed(seed)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    names = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {name: i for i, name in enumerate(names)}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in letters)]
    ends = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1}
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=20, pooled_projection_dim=12, axes_dims_rope=(4, 6, 6), guidance_embeds=guidance,
    )  # fmt: skip
    for weight in transformer.parameters():  # large enough that attention is far from uniform
        weight.data.normal_(0, 0.25)
    clip = CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=12, **ends,
    )  # fmt: skip
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8),
            latent_channels=4, norm_num_groups=2, sample_size=16, use_quant_conv=False, use_post_quant_conv=False,
            scaling_factor=0.3611, shift_factor=0.1159,
        ),
        text_encoder=CLIPTextModel(clip),
        tokenizer=CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(pieces), d_model=20, d_kv=8, d_ff=24, num_layers=1, num_heads=2)),
        tokenizer_2=T5TokenizerFast(vocab=pieces, extra_ids=0),
        transformer=transformer,
    )  # fmt: skip
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):  # so that prompts differ
        for weight in encoder.parameters():
            weight.data += 0.2 * torch.randn_like(weight)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Given:
    """A noise source that returns the pipeline's own latents, (N, D)."""

    def __init__(self, latents: torch.Tensor) -> None:
        self.latents = latents

    def at(self, grid: TokenGrid) -> np.ndarray:
        assert len(grid) == len(self.latents)
        return self.latents.numpy()

    def details(self, grid: TokenGrid, mask: np.ndarray) -> np.ndarray:
        raise AssertionError("a full run draws no details")
