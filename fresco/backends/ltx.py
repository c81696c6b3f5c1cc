"""LTX-Video: the stock transformer over its own packed tokens, one latent pixel each; positions are an argument.

Source: METHOD 2.5; MODELS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fresco.backends import ModelError
from fresco.backends.family import Family, Seating, Shape
from fresco.backends.hub import Checkpoint, by_name, loader
from fresco.backends.stock import StockDenoiser
from fresco.backends.video import VideoModel
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning

Scale = tuple[float, float, float]
"""What a step in (frame, row, col) is in (seconds, pixels, pixels): `rope_interpolation_scale`."""


class LTXFamily(Family):
    """LTX-Video: packed tokens as they are, with float32 `video_coords`."""

    patch = 1
    pipelines = ("LTXPipeline",)
    depths = ("num_layers",)

    def count_channels(self) -> int:
        """Return the latent channels.

        Raises:
            ModelError: on patches of more than one latent pixel.
        """
        config = self.transformer.config
        if (config.patch_size, config.patch_size_t) != (1, 1):
            raise ModelError(
                f"this LTX transformer has patches of {config.patch_size_t} x {config.patch_size} x {config.patch_size}; "
                "Fresco knows LTX with one latent pixel per token: use such a checkpoint"
            )
        return int(config.in_channels)

    def rows_per_picture(self, pipe: Any) -> int:
        """Return 2 where guidance doubles the batch."""
        return 2 if pipe.do_classifier_free_guidance else 1

    def pixels(self, pipe: Any) -> tuple[int, int]:
        """Return (pixel frames per latent frame, pixels per token side) of a pipeline."""
        return int(pipe.vae_temporal_compression_ratio), int(pipe.vae_spatial_compression_ratio)

    def example(self, text_tokens: int, device: torch.device) -> dict[str, Any]:
        """Return text with its mask, timestep and the scale of positions."""
        return {
            "timestep": torch.zeros(1, device=device),
            "encoder_hidden_states": torch.zeros(1, text_tokens, self.transformer.config.caption_channels, device=device),
            "encoder_attention_mask": torch.ones(1, text_tokens, device=device),
            "rope_interpolation_scale": (1.0, 1.0, 1.0),
        }  # fmt: skip

    def tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the packed latents themselves, (B, N, C)."""
        return latents

    def latents(self, tokens: torch.Tensor, shape: Shape) -> torch.Tensor:
        """Return the tokens themselves."""
        return tokens

    def incoming(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Return the forward's `hidden_states`."""
        return args[0] if args else kwargs["hidden_states"]  # type: ignore[no-any-return]

    def shape(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Shape:
        """Return (frames, rows, cols), which the forward is told."""
        return int(kwargs["num_frames"]), int(kwargs["height"]), int(kwargs["width"])

    def arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: torch.Tensor, where: Seating
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with tokens, timestep, and their coordinates in the forward's own scale."""
        ids, scale = where.ids(tokens.device), kwargs["rope_interpolation_scale"] or (1.0, 1.0, 1.0)
        coords = torch.stack([ids[:, i] * scale[i] for i in range(3)])
        return (), kwargs | {
            "hidden_states": tokens, "timestep": torch.full_like(kwargs["timestep"], where.sigma * 1000),
            "video_coords": coords.expand(len(tokens), -1, -1),
        }  # fmt: skip

    def outgoing(self, output: Any) -> torch.Tensor:
        """Return the velocity (B, N, C)."""
        return output[0] if isinstance(output, tuple) else output.sample  # type: ignore[no-any-return]

    def spread(self, output: Any, cells: torch.Tensor, shape: Shape) -> Any:
        """Return the output with one token's velocity per cell."""
        dense = self.outgoing(output)[:, cells]
        return (dense, *output[1:]) if isinstance(output, tuple) else type(output)(sample=dense)


class LTXDenoiser(StockDenoiser):
    """LTX-Video as a velocity model, with classifier-free guidance.

    Attributes:
        scale: what a step in (frame, row, col) is in (seconds, pixels, pixels).
    """

    scale: Scale = (8 / 25, 32.0, 32.0)

    def conditioning(self, cond: Conditioning, sigma: float) -> dict[str, Any]:
        """Return text states with their mask, and the scale of positions."""
        text = cond.tensors["prompt_embeds"][None].to(self.device, self.transformer.dtype)
        return {
            "timestep": torch.zeros(1, device=self.device),
            "encoder_hidden_states": text,
            "encoder_attention_mask": cond.tensors["mask"][None].to(self.device),
            "rope_interpolation_scale": self.scale,
        }  # fmt: skip


class LTXModel(VideoModel):
    """LTX-Video with its own text encoder and autoencoder."""

    denoiser = LTXDenoiser
    frame_rate = 25  # what the pipeline conditions positions on
    negative_prompt = "worst quality, inconsistent motion, blurry, jittery, distorted"

    def embed(self, text: str) -> dict[str, torch.Tensor]:
        """Return the text encoder's states and their mask."""
        states, mask, _, _ = self.pipe.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=self.which.text_tokens, device=self.device
        )
        return {"prompt_embeds": states[0], "mask": mask[0]}

    def bind(self, config: FrescoConfig) -> LTXDenoiser:
        """Return the denoiser for one run, with positions in this autoencoder's seconds and pixels."""
        found = super().bind(config)
        assert isinstance(found, LTXDenoiser)
        edge = float(self.pixels_per_token)
        found.scale = (self.frame_stride / self.frame_rate, edge, edge)
        return found

    def plain(self, vae: Any, latent: torch.Tensor) -> torch.Tensor:
        """Return what the autoencoder decodes; its mean and spread are buffers."""
        mean, std = (x.to(latent).view(1, -1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
        found: torch.Tensor = latent * std / vae.config.scaling_factor + mean
        return found

    def pixels(self, vae: Any, latent: torch.Tensor) -> torch.Tensor:
        """Return RGB in [-1, 1], (3, frames, H, W); a decoder that takes a timestep gets 0, the pipeline's default."""
        time = torch.zeros(1, device=latent.device, dtype=vae.dtype) if vae.config.timestep_conditioning else None
        made = vae.decode(self.plain(vae, latent[None]).to(vae.dtype), time, return_dict=False)[0]
        return made[0]  # type: ignore[no-any-return]


CHECKPOINTS = by_name(
    Checkpoint("ltx-video", "Lightricks/LTX-Video", "LTXPipeline", 128, 3.0, size=(161, 512, 704), working=8 << 30)
)

load = loader(CHECKPOINTS, LTXModel)
