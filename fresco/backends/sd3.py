"""Stable Diffusion 3 and 3.5: a ribbon, and the table of absolute positions read where each token is. Source: MODELS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fresco.backends import ModelError
from fresco.backends.family import GridFamily, seating, shadowed
from fresco.backends.flow import FlowSchedule
from fresco.backends.hub import Checkpoint, by_name, loader
from fresco.backends.positions import interpolated
from fresco.backends.stock import StockDenoiser, StockModel
from fresco.denoiser import Conditioning


class SD3Family(GridFamily):
    """SD3: absolute sinusoidal positions, a table cropped about its centre to the picture's grid.

    A seated forward reads the same table, cropped to the dense grid whose cells are the frame's unit: rows as they are for
    tokens at integer places, linear between them. The table's fastest sinusoid turns by 1/6 (3.5 medium) or 1/3 (3, 3.5
    large) per cell, so a value between rows is off by at most 0.4 or 1.4 % of one such component, and by far less of the
    slower ones.
    """

    pipelines = ("StableDiffusion3Pipeline",)

    def __init__(self, transformer: Any, patch: int | None = None) -> None:
        """Bind to a transformer; the patch is its config's."""
        super().__init__(transformer, int(transformer.config.patch_size))

    def count_channels(self) -> int:
        """Return the latent channels."""
        return int(self.transformer.config.in_channels)

    def schedule(self, scheduler: Any, nfe: int) -> FlowSchedule:
        """Return the scheduler's sigmas; the pipeline leaves their spacing to it."""
        return FlowSchedule({**scheduler.config, "shift": scheduler.shift}, floor=float(scheduler.sigma_min))

    def example(self, text_tokens: int, device: torch.device) -> dict[str, Any]:
        """Return text, the pooled vector and the timestep, as zeros."""
        config = self.transformer.config
        return {
            "encoder_hidden_states": torch.zeros(1, text_tokens, config.joint_attention_dim, device=device),
            "pooled_projections": torch.zeros(1, config.pooled_projection_dim, device=device),
            "timestep": torch.zeros(1, device=device),
        }

    def blocks(self) -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]:
        """Return a model of one block, the further blocks, and the second attentions that some of them have."""
        config, dual = self.transformer.config, "dual_attention_layers"
        return {"num_layers": 1, dual: ()}, [(config.num_layers - 1, {"num_layers": 2}), (len(config[dual]), {dual: (0,)})]

    def rows_per_picture(self, pipe: Any) -> int:
        """Return 2 where the pipeline guides: both halves of the guidance are one batch."""
        return 2 if pipe.do_classifier_free_guidance else 1

    def install(self) -> Callable[[], None]:
        """Shadow the crop of the table on this instance; return what takes the shadow away."""
        return shadowed(self.transformer.pos_embed, "cropped_pos_embed", _cropped_pos_embed)


def _cropped_pos_embed(embed: Any, height: int, width: int) -> torch.Tensor:
    """Return (1, N, D): the table at each seated token's place, from the corner of the centred crop; else the stock crop.

    Raises:
        ModelError: where the picture has more tokens a side than the table.
    """
    where = seating()
    if where is None:
        crop: torch.Tensor = type(embed).cropped_pos_embed(embed, height, width)
        return crop
    side, (_, rows, cols) = int(embed.pos_embed_max_size), where.extent()
    if max(rows, cols) > side:
        raise ModelError(
            f"the picture has {rows} x {cols} tokens, but this SD3 has positions for {side} x {side}; use a smaller size"
        )
    table = embed.pos_embed.reshape(side, side, -1)
    corner = torch.tensor([(side - rows) // 2, (side - cols) // 2], device=table.device)
    return interpolated(table, where.ids(table.device)[:, 1:] + corner)[None]


class SD3Denoiser(StockDenoiser):
    """SD3 as a velocity model; conditioning has `prompt_embeds` (T, text dim) and `pooled` (pooled dim)."""

    def conditioning(self, cond: Conditioning, sigma: float) -> dict[str, Any]:
        """Return text, the pooled vector and the timestep, 0 to 1000 in float32."""
        dtype = self.transformer.dtype
        return {
            "encoder_hidden_states": cond.tensors["prompt_embeds"][None].to(self.device, dtype),
            "pooled_projections": cond.tensors["pooled"][None].to(self.device, dtype),
            "timestep": torch.full((1,), sigma * 1000, device=self.device),
        }


class SD3Model(StockModel):
    """An SD3.5 checkpoint with its own text encoders and autoencoder."""

    denoiser = SD3Denoiser

    def embed(self, text: str) -> dict[str, torch.Tensor]:
        """Return both CLIPs' 77 states, then T5's, padded; and both CLIPs' pooled vectors."""
        states, _, pooled, _ = self.pipe.encode_prompt(
            text, None, None, do_classifier_free_guidance=False, device=self.device,
            max_sequence_length=self.which.text_tokens - CLIP_TOKENS,
        )  # fmt: skip
        return {"prompt_embeds": states[0], "pooled": pooled[0]}


CLIP_TOKENS = 77
_TEXT, _TINY = CLIP_TOKENS + 256, "madebyollin/taesd3"
_PIPELINE = "StableDiffusion3Pipeline"
CHECKPOINTS = by_name(
    Checkpoint("sd3.5-medium", "stabilityai/stable-diffusion-3.5-medium", _PIPELINE, _TEXT, 4.5, preview=_TINY),
    Checkpoint("sd3.5-large", "stabilityai/stable-diffusion-3.5-large", _PIPELINE, _TEXT, 3.5, preview=_TINY),
    Checkpoint("sd3.5-large-turbo", "stabilityai/stable-diffusion-3.5-large-turbo", _PIPELINE, _TEXT, 1.0, preview=_TINY),
)

load = loader(CHECKPOINTS, SD3Model)
