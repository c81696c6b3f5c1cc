"""Tiny random video pipelines of the real classes: HunyuanVideo, Wan 2.1 and 2.2, LTX-Video."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)  # fmt: skip
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)  # fmt: skip

from fresco.backends.video import VideoModel, colour_fields
from fresco.config import FrescoConfig
from fresco.record import record
from tests.families import strong

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]


def words() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words, so that the published template is about as long as with the real one."""
    split = pre_tokenizers.Whitespace()
    known = [word for word, _ in split.pre_tokenize_str(DEFAULT_PROMPT_TEMPLATE["template"] + " a red fox an owl bird")]
    vocab = {word: i for i, word in enumerate(["<pad>", "<unk>", *dict.fromkeys(known)])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def tiny_hunyuan() -> HunyuanVideoPipeline:
    """Return a pipeline with 4 latent channels and 16 pixels and 4 frames per token."""
    torch.manual_seed(0)
    tokenizer = words()
    names = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1}
    parts: dict[str, Any] = {
        "text_encoder": LlamaModel(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
                num_key_value_heads=2, pad_token_id=0,
            )
        ),
        "text_encoder_2": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(names), hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                projection_dim=12, **ends,
            )
        ),
        "transformer": HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
            num_refiner_layers=1, text_embed_dim=16, pooled_projection_dim=12, rope_axes_dim=(2, 4, 4),
        ),
        "vae": AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2,
        ),
    }  # fmt: skip
    strong(parts["transformer"], parts["text_encoder"], parts["text_encoder_2"])
    parts["vae"].eval()
    return HunyuanVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), tokenizer=tokenizer,
        tokenizer_2=CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=77), **parts,
    )  # fmt: skip


def tiny_wan(kind: str = "2.1") -> WanPipeline:
    """Return a pipeline with 4 latent channels and 16 pixels and 4 frames per token.

    Args:
        kind: "2.1"; "a14b" has two transformers; "ti2v" takes one timestep per token.
    """
    torch.manual_seed(0)

    def transformer() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32, ffn_dim=24,
            num_layers=2, rope_max_seq_len=32,
        )  # fmt: skip

    two = {"transformer_2": transformer()} if kind == "a14b" else {}
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=len(PIECES), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2))
    parts: dict[str, Any] = {
        "text_encoder": encoder, "transformer": transformer(), **two,
        "vae": AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.3, -0.2, 0.1, 0.4],
            latents_std=[1.5, 2.0, 0.8, 1.1],
        ),
    }  # fmt: skip
    strong(parts["transformer"], encoder)
    strong(*two.values(), seed=1)
    parts["vae"].eval()
    return WanPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), tokenizer=T5TokenizerFast(vocab=PIECES, extra_ids=0),
        boundary_ratio=0.875 if two else None, expand_timesteps=kind == "ti2v", **parts,
    )  # fmt: skip


def tiny_ltx() -> LTXPipeline:
    """Return a pipeline with 4 latent channels and 32 pixels and 8 frames per token."""
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "text_encoder": T5EncoderModel(
            T5Config(vocab_size=len(PIECES), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        ),
        "transformer": LTXVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, cross_attention_dim=20, num_layers=2,
            caption_channels=16,
        ),
        "vae": AutoencoderKLLTXVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        ),
    }  # fmt: skip
    strong(parts["transformer"], parts["text_encoder"])
    parts["vae"].latents_mean.copy_(torch.tensor([0.3, -0.2, 0.1, 0.4]))
    parts["vae"].latents_std.copy_(torch.tensor([1.5, 2.0, 0.8, 1.1]))
    parts["vae"].eval()
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
    )
    return LTXPipeline(scheduler=scheduler, tokenizer=T5TokenizerFast(vocab=PIECES, extra_ids=0), **parts)


# What every video model is tested for


def check_previews(model: VideoModel) -> None:
    """The map is the least-squares one: NumPy's, from the decoder's latents of a picture to its mean colours."""
    side, edge, vae = 24, model.pixels_per_token // model.family.patch, model.pipe.vae
    picture = colour_fields(side, edge)
    with torch.no_grad():
        plain = vae.encode(picture[None, :, None].to(vae.dtype)).latent_dist.mode()
    seen = picture.reshape(3, side, edge, side, edge).mean((2, 4)).flatten(1).T.numpy()
    rows = np.concatenate([plain[0, :, 0].flatten(1).T.numpy(), np.ones((side * side, 1))], axis=1)
    want = (rows @ np.linalg.lstsq(rows, seen, rcond=None)[0] + 1) * 127.5
    got = model.preview(normalised(model, plain)[0].float())
    assert got.shape == (1, side, side, 3)
    assert np.abs(got.reshape(-1, 3) - want.clip(0, 255)).mean() < 1  # a ridge keeps it a little off
    assert want.std(axis=0).min() > 2  # the map does say something
    frames = np.stack([model.preview(normalised(model, plain * factor)[0].float())[0] for factor in (1.0, 0.5)])
    both = normalised(model, torch.cat([plain, plain * 0.5], dim=2))[0].float()
    np.testing.assert_array_equal(model.preview(both), frames)


def normalised(model: VideoModel, plain: torch.Tensor) -> torch.Tensor:
    """Return the sampler's latent of what the decoder takes: `plain` is affine per channel, so two points invert it."""
    zero = model.plain(model.pipe.vae, torch.zeros_like(plain))
    return (plain - zero) / (model.plain(model.pipe.vae, torch.ones_like(plain)) - zero)


def check_recorded_run(model: VideoModel, size: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    """A whole run by the library: previews at latent resolution, coarse first, and the decoded video at the end."""
    config = FrescoConfig.recommended(4, size=size)
    events = list(record(model, "a red fox", config))
    p, (frames, rows, cols) = model.family.patch, shape
    assert events[0].preview.shape == (frames, -(-rows // 2) * p, -(-cols // 2) * p, 3)
    assert events[-2].preview.shape == (frames, rows * p, cols * p, 3)
    assert events[-1].preview.shape == (*size, 3)
    assert events[-1].preview.std() > 0
    again = list(record(model, "a red fox", config))
    np.testing.assert_array_equal(again[-1].preview, events[-1].preview)
    assert len(events[0].grid) == frames * -(-rows // 2) * -(-cols // 2)
    other = list(record(model, "a red fox", config.replace(seed=1)))
    assert not np.array_equal(other[-1].preview, events[-1].preview)
