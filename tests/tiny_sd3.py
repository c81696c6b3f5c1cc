"""A tiny random Stable Diffusion 3.5 pipeline of the real classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from tests.families import strong

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
EDGE = 4  # pixels per token: the autoencoder halves, a patch is 2


def tiny_sd3() -> StableDiffusion3Pipeline:
    """Return a pipeline with 4 latent channels and 4 pixels per token side; its first block has two attentions, as in 3.5."""
    torch.manual_seed(0)
    names = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocab = {name: i for i, name in enumerate(names)}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]
    ends = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1}

    def clip(width: int) -> CLIPTextModelWithProjection:
        return CLIPTextModelWithProjection(CLIPTextConfig(
            vocab_size=len(vocab), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            projection_dim=width, **ends,
        ))  # fmt: skip

    parts: dict[str, Any] = {
        "text_encoder": clip(8), "text_encoder_2": clip(12),
        "text_encoder_3": T5EncoderModel(
            T5Config(vocab_size=len(pieces), d_model=24, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        ),
        "transformer": SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=20, out_channels=4,
            pos_embed_max_size=24, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8),
            latent_channels=4, norm_num_groups=2, sample_size=16, use_quant_conv=False, use_post_quant_conv=False,
            scaling_factor=1.5305, shift_factor=0.0609,
        ),
    }  # fmt: skip
    strong(*parts.values())
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77),
        tokenizer_2=CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77),
        tokenizer_3=T5TokenizerFast(vocab=pieces, extra_ids=0), **parts,
    )  # fmt: skip
