"""HunyuanVideo: the stock transformer over a ribbon of tokens; every frame is doubled on its own, time never.

Positions come from a forward hook on the transformer's `rope`. The phase-aligned frame needs an attention processor, which is
the stock one unless the hook handed it positions per level. Source: METHOD 2.1 (odd grids), 2.5; MODELS.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch.nn import functional

from fresco.backends import ModelError
from fresco.backends.family import GridFamily, Seating, hooked, seating
from fresco.backends.hub import Checkpoint, by_name, loader
from fresco.backends.stock import StockDenoiser
from fresco.backends.video import VideoModel
from fresco.denoiser import Conditioning

Rotary = tuple[torch.Tensor, torch.Tensor]
Levels = list[tuple[torch.Tensor, Rotary]]
"""Per level present, its queries as (Q,) indices into image + text, and the (cos, sin) of *all* tokens in its units."""

_SWAP = threading.Lock()


class LevelAttnProcessor(HunyuanVideoAttnProcessor2_0):  # type: ignore[misc]  # diffusers is untyped
    """The stock attention, unless the positions that come are `Levels`: then one attention call per level.

    Queries of a level, and all keys, are rotated in that level's units; the same FLOPs in all. Text stays unrotated.
    Source: METHOD 2.5 (`phase_aligned`); arXiv 2511.19778.

    Attributes:
        stock: the processor in whose place it stands.
    """

    stock: HunyuanVideoAttnProcessor2_0

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | Levels | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the image states and the text states, as the stock processor does."""
        if not isinstance(image_rotary_emb, list):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)  # type: ignore[no-any-return]
        assert encoder_hidden_states is not None  # the refiner, which has image or text alone, has another processor
        image, text = hidden_states, encoder_hidden_states
        if attn.add_q_proj is None:  # a single-stream block: shared weights
            both = torch.cat([image, text], dim=1)
            q, k, v = (part(both).unflatten(2, (attn.heads, -1)) for part in (attn.to_q, attn.to_k, attn.to_v))
            q, k = attn.norm_q(q), attn.norm_k(k)
        else:
            q, k, v = (part(image).unflatten(2, (attn.heads, -1)) for part in (attn.to_q, attn.to_k, attn.to_v))
            added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text_q, text_k, text_v = (part(text).unflatten(2, (attn.heads, -1)) for part in added)
            q = torch.cat([attn.norm_q(q), attn.norm_added_q(text_q)], dim=1)
            k = torch.cat([attn.norm_k(k), attn.norm_added_k(text_k)], dim=1)
            v = torch.cat([v, text_v], dim=1)

        out = torch.empty_like(q)
        for at, (cos, sin) in image_rotary_emb:
            query = apply_rotary_emb(q[:, at], (cos[at], sin[at]), sequence_dim=1)
            key = apply_rotary_emb(k, (cos, sin), sequence_dim=1)
            out[:, at] = dispatch_attention_fn(
                query, key, v, attn_mask=attention_mask, backend=self._attention_backend,
                parallel_config=self._parallel_config,
            ).to(out.dtype)  # fmt: skip

        states = out.flatten(2, 3)
        image, text = states[:, : image.shape[1]], states[:, image.shape[1] :]
        if getattr(attn, "to_out", None) is not None:
            image = attn.to_out[1](attn.to_out[0](image))
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return image, text


def _processors(transformer: Any, ours: bool) -> None:
    """Put `LevelAttnProcessor` in the place of every stock processor, or give each its stock one back; backends are kept."""
    with _SWAP:  # two runs may come here at once; each processor is swapped whole
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
            old = block.attn.processor
            if ours and type(old) is HunyuanVideoAttnProcessor2_0:
                new: Any = LevelAttnProcessor()
                new.stock = old
            elif not ours and type(old) is LevelAttnProcessor:
                new = old.stock
            else:
                continue
            new._attention_backend, new._parallel_config = old._attention_backend, old._parallel_config
            block.attn.set_processor(new)


def _rotary(rope: Any, ids: torch.Tensor) -> Rotary:
    """Return the (cos, sin), each (N, head size), of positions (N, 3): the stock formula at places between whole numbers."""
    axes = [get_1d_rotary_pos_embed(dim, ids[:, i], rope.theta, use_real=True) for i, dim in enumerate(rope.rope_dim)]
    return torch.cat([cos for cos, _ in axes], dim=1), torch.cat([sin for _, sin in axes], dim=1)


def _positions(rope: Any, args: tuple[Any, ...], output: Rotary) -> Rotary | Levels | None:
    """Forward hook on `rope`: the positions of the seated tokens; None, so the stock ones, where nobody sits."""
    where = seating()
    if where is None:
        return None
    grid, device = where.grid, args[0].device
    if where.frame != "phase_aligned" or grid.is_uniform:
        return _rotary(rope, where.ids(device))
    levels, text, found = sorted(set(grid.level.tolist())), where.extra["text"], []
    for level in levels:
        at = np.flatnonzero(grid.level == level)
        if level == levels[-1]:  # text queries see the image in the finest present level's units
            at = np.concatenate([at, len(grid) + np.arange(text)])
        cos, sin = _rotary(rope, torch.from_numpy(grid.centers("phase_aligned", unit_level=level)).to(device))
        still = functional.pad(cos, (0, 0, 0, text), value=1.0), functional.pad(sin, (0, 0, 0, text))
        found.append((torch.from_numpy(at).to(device), still))
    return found


class HunyuanVideoFamily(GridFamily):
    """HunyuanVideo text to video: a ribbon one frame and one row high, positions by a hook on `rope`."""

    frames = ("phase_aligned", "coarse", "coarse_corner", "fine")
    pipelines = ("HunyuanVideoPipeline",)
    depths = ("num_layers", "num_single_layers")
    video = True

    def count_channels(self) -> int:
        """Return the latent channels.

        Raises:
            ModelError: on a checkpoint that takes a picture, or doubles frames.
        """
        config = self.transformer.config
        if config.image_condition_type is not None or config.patch_size_t != 1:
            raise ModelError(
                f"this HunyuanVideo transformer has image_condition_type {config.image_condition_type!r} and patch_size_t "
                f"{config.patch_size_t}; Fresco runs text to video with one frame per token: use such a checkpoint"
            )
        return int(config.in_channels)

    def pixels(self, pipe: Any) -> tuple[int, int]:
        """Return (pixel frames per latent frame, pixels per token side) of a pipeline."""
        return int(pipe.vae_scale_factor_temporal), self.patch * int(pipe.vae_scale_factor_spatial)

    def example(self, text_tokens: int, device: torch.device) -> dict[str, Any]:
        """Return text with its mask, the pooled vector, timestep and guidance."""
        config = self.transformer.config
        return {
            "timestep": torch.zeros(1, device=device),
            "encoder_hidden_states": torch.zeros(1, text_tokens, config.text_embed_dim, device=device),
            "encoder_attention_mask": torch.ones(1, text_tokens, device=device),
            "pooled_projections": torch.zeros(1, config.pooled_projection_dim, device=device),
            "guidance": torch.zeros(1, device=device) if config.guidance_embeds else None,
        }  # fmt: skip

    def install(self) -> Callable[[], None]:
        """Hook `rope`; processors are put in when a forward first needs them. Return what takes away what was not there."""
        away = hooked(self.transformer.rope, _positions)
        before = any(isinstance(p, LevelAttnProcessor) for p in self.transformer.attn_processors.values())

        def undo() -> None:
            away()
            if not before:
                _processors(self.transformer, ours=False)

        return undo

    def arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: torch.Tensor, where: Seating
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the tokens as a ribbon and the seating's timestep.

        Raises:
            ModelError: where the phase-aligned frame meets an attention processor of another kind.
        """
        where.extra["text"] = self.text_tokens(kwargs)
        if where.frame == "phase_aligned" and not where.grid.is_uniform:
            _processors(self.transformer, ours=True)
            blocks = (*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks)
            other = {type(b.attn.processor).__name__ for b in blocks if type(b.attn.processor) is not LevelAttnProcessor}
            if other:
                raise ModelError(
                    "position frame 'phase_aligned' needs the stock HunyuanVideo attention; this transformer has "
                    f"{', '.join(sorted(other))}: use another frame"
                )
        return super().arguments(args, kwargs, tokens, where)


class HunyuanVideoDenoiser(StockDenoiser):
    """HunyuanVideo as a velocity model; guidance is embedded, as published."""

    def conditioning(self, cond: Conditioning, sigma: float) -> dict[str, Any]:
        """Return text states with their mask, the pooled vector and the embedded guidance."""
        given: Mapping[str, torch.Tensor] = cond.tensors
        text = {name: given[name][None].to(self.device, self.transformer.dtype) for name in ("prompt_embeds", "mask", "pooled")}
        scale = None if self.guidance is None else torch.full((1,), self.guidance, dtype=self.transformer.dtype) * 1000.0
        return {
            "timestep": torch.zeros(1, device=self.device),
            "encoder_hidden_states": text["prompt_embeds"],
            "encoder_attention_mask": text["mask"],
            "pooled_projections": text["pooled"],
            "guidance": None if scale is None else scale.to(self.device),
        }  # fmt: skip


class HunyuanVideoModel(VideoModel):
    """HunyuanVideo with its own text encoders and autoencoder."""

    denoiser = HunyuanVideoDenoiser

    def embed(self, text: str) -> dict[str, torch.Tensor]:
        """Return the language model's states under the published prompt template, their mask, and CLIP's pooled vector."""
        states, pooled, mask = self.pipe.encode_prompt(
            prompt=text, device=self.device, max_sequence_length=self.which.text_tokens
        )
        return {"prompt_embeds": states[0], "pooled": pooled[0], "mask": mask[0]}


CHECKPOINTS = by_name(
    Checkpoint(
        "hunyuan-video", "hunyuanvideo-community/HunyuanVideo", "HunyuanVideoPipeline", 256, 6.0,
        size=(129, 720, 1280), working=20 << 30,
    )
)  # fmt: skip

load = loader(CHECKPOINTS, HunyuanVideoModel)
