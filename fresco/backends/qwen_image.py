"""Qwen-Image: packed tokens, and the centred rotary table read where each token is. Source: MODELS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fresco.backends import ModelError
from fresco.backends.family import PackedFamily, Seating, Shape, hooked, seating
from fresco.backends.hub import Checkpoint, by_name, loader
from fresco.backends.positions import turned
from fresco.backends.stock import StockDenoiser, StockModel
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid


class QwenImageFamily(PackedFamily):
    """Qwen-Image: tokens go in as they are; the picture's centre is the origin of the rotary table.

    A seated forward gets the table's rows at integer places, and in between the row before, turned on by the rest: exact.
    The text begins where it does for a picture of the dense grid whose cells are the frame's unit.
    """

    pipelines = ("QwenImagePipeline",)
    depths = ("num_layers",)

    def example(self, text_tokens: int, device: torch.device) -> dict[str, Any]:
        """Return text and the guidance scale, as zeros."""
        config = self.transformer.config
        return {
            "encoder_hidden_states": torch.zeros(1, text_tokens, config.joint_attention_dim, device=device),
            "guidance": torch.zeros(1, device=device) if config.guidance_embeds else None,
        }

    def shape(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Shape:
        """Return (1, rows, cols) of the only picture.

        Raises:
            ModelError: where the forward has several pictures.
        """
        shapes = kwargs["img_shapes"][0]
        if len(shapes) != 1:
            raise ModelError(f"this call has {len(shapes)} pictures; Fresco runs Qwen-Image from text alone")
        frames, rows, cols = shapes[0]
        return frames, rows, cols

    def places(self, kwargs: Mapping[str, Any], where: Seating, tokens: torch.Tensor) -> dict[str, Any]:
        """Return the dense grid, which says where the text begins; `_positions` gives the tokens' own places."""
        return {"img_shapes": [[where.extent()]] * len(tokens)}

    def install(self) -> Callable[[], None]:
        """Hook the rotary embedding; return what takes the hook away."""
        return hooked(self.transformer.pos_embed, _positions)


def _positions(rope: Any, args: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> Any:
    """Forward hook on `pos_embed`: (N, head size / 2) complex factors of the seated tokens, and those of the text."""
    where = seating()
    if where is None:
        return None
    device, dims = output[0].device, rope.axes_dim
    ids, (_, *sides) = where.ids(device), where.extent()
    after, before = (freqs.split([d // 2 for d in dims], dim=1) for freqs in rope._get_device_freqs(device))
    turns = []
    for axis, (dim, offset) in enumerate(zip(dims, (0, *(side - side // 2 for side in sides)), strict=True)):
        # The table from `offset` rows before its origin on: only as much as the picture is wide.
        table = torch.cat([before[axis][len(before[axis]) - offset :], after[axis][: offset + 1]])
        rates = 1.0 / torch.pow(rope.theta, torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
        turns.append(turned(table, ids[:, axis], rates))
    return torch.cat(turns, dim=1), output[1]


class QwenImageDenoiser(StockDenoiser):
    """Qwen-Image as a velocity model; conditioning has `prompt_embeds` (T, text dim), all of them words."""

    def conditioning(self, cond: Conditioning, sigma: float) -> dict[str, Any]:
        """Return text and, for models that embed one, the guidance scale."""
        scale = None if self.guidance is None else torch.full((1,), self.guidance, device=self.device)
        text = cond.tensors["prompt_embeds"][None].to(self.device, self.transformer.dtype)
        return {"encoder_hidden_states": text, "guidance": scale}

    def guide(self, without: torch.Tensor, given: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        """Return the guided velocity with each token's length that of the conditional one, as the pipeline has it."""
        guided = super().guide(without, given, grid)
        kept: torch.Tensor = guided * (given.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return kept


class QwenImageModel(StockModel):
    """Qwen-Image with its own text encoder and autoencoder, which is a video's: a picture is one frame."""

    denoiser = QwenImageDenoiser
    video = True

    def embed(self, text: str) -> dict[str, torch.Tensor]:
        """Return the text encoder's states of the prompt's own words, without padding."""
        states, _ = self.pipe.encode_prompt(text, device=self.device, max_sequence_length=512)
        return {"prompt_embeds": states[0]}

    def negative(self) -> Conditioning:
        """Return the conditioning of a space, as published."""
        return self.encode(" ")


# Text is not padded; FLOPs are counted for a prompt of 64 words and signs, beside 4096 image tokens.
CHECKPOINTS = by_name(Checkpoint("qwen-image", "Qwen/Qwen-Image", "QwenImagePipeline", 64, 4.0))

load = loader(CHECKPOINTS, QwenImageModel)
