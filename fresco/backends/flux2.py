"""FLUX.2 dev and klein: packed tokens as they are, with float32 ids of four axes. Source: MODELS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from fresco.backends import ModelError
from fresco.backends.family import PackedFamily, Seating, Shape
from fresco.backends.flow import FlowSchedule
from fresco.backends.hub import Checkpoint, by_name, loader
from fresco.backends.stock import StockDenoiser, StockModel
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning


class Flux2Family(PackedFamily):
    """FLUX.2: 32 latent channels, patches of 2 x 2 packed to 128 numbers in (c, dy, dx) order, as FLUX.1's 64 are.

    The autoencoder's batch norm scales each of the 128 with its own mean and deviation, and tokens are what it returns. The
    four places (dy, dx) of one channel have one distribution, for the encoder is a convolution at the stride of one latent
    pixel; so their four means and deviations differ by the error of their estimate only, and a latent pixel of a parent,
    replicated over places, stays what it was to that error. Noise is white after the batch norm, so its Haar split is exact.
    """

    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline")
    depths = ("num_layers", "num_single_layers")

    def schedule(self, scheduler: Any, nfe: int) -> FlowSchedule:
        """Return the scheduler's sigmas; mu depends on the number of steps of the call, too."""
        config = {**scheduler.config, "shift": scheduler.shift}
        return FlowSchedule(config, mu_of=lambda tokens: compute_empirical_mu(tokens, nfe))

    def example(self, text_tokens: int, device: torch.device) -> dict[str, Any]:
        """Return text, its ids and guidance, as zeros."""
        config = self.transformer.config
        return {
            "encoder_hidden_states": torch.zeros(1, text_tokens, config.joint_attention_dim, device=device),
            "txt_ids": text_ids(text_tokens, device),
            "guidance": torch.zeros(1, device=device) if config.guidance_embeds else None,
        }

    def shape(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Shape:
        """Return (1, rows, cols) from the ids.

        Raises:
            ModelError: where the forward has reference pictures.
        """
        ids = kwargs["img_ids"].reshape(-1, kwargs["img_ids"].shape[-1])[: self.incoming(args, kwargs).shape[1]]
        if bool((ids[:, 0] != 0).any()):
            raise ModelError("this call has reference pictures; Fresco runs FLUX.2 from text alone: leave image out")
        rows, cols = (int(side) + 1 for side in ids[:, 1:3].amax(0).tolist())
        return 1, rows, cols

    def places(self, kwargs: Mapping[str, Any], where: Seating, tokens: torch.Tensor) -> dict[str, Any]:
        """Return (B, N, 4) float32 ids (picture, row, col, word)."""
        ids = torch.nn.functional.pad(where.ids(tokens.device), (0, 1))
        return {"img_ids": ids.expand(len(tokens), -1, -1)}


def text_ids(count: int, device: torch.device) -> torch.Tensor:
    """Return (1, count, 4) ids of text tokens: the last axis counts them."""
    ids = torch.zeros(1, count, 4, dtype=torch.int64, device=device)
    ids[0, :, 3] = torch.arange(count, device=device)
    return ids


class Flux2Denoiser(StockDenoiser):
    """FLUX.2 as a velocity model; conditioning has `prompt_embeds` (T, text dim)."""

    def conditioning(self, cond: Conditioning, sigma: float) -> dict[str, Any]:
        """Return text, its ids and, for dev, the guidance scale."""
        text = cond.tensors["prompt_embeds"][None].to(self.device, self.transformer.dtype)
        scale = None if self.guidance is None else torch.full((1,), self.guidance, device=self.device)
        return {"encoder_hidden_states": text, "txt_ids": text_ids(text.shape[1], self.device), "guidance": scale}


class Flux2Model(StockModel):
    """A FLUX.2 checkpoint with its own text encoder and autoencoder."""

    denoiser = Flux2Denoiser

    def bind(self, config: FrescoConfig) -> StockDenoiser:
        """Return the denoiser for one run.

        Raises:
            ModelError: on guidance for a distilled checkpoint, whose pipeline takes none.
        """
        if self.pipe.config.get("is_distilled") and (config.guidance or 0) > 1:
            raise ModelError(f"guidance is {config.guidance:g}, but {self.name} is distilled and takes none; leave it out")
        return super().bind(config)

    def embed(self, text: str) -> dict[str, torch.Tensor]:
        """Return three layers of the text encoder's states, side by side, padded."""
        states, _ = self.pipe.encode_prompt(text, device=self.device, max_sequence_length=self.which.text_tokens)
        return {"prompt_embeds": states[0]}

    def plain(self, vae: Any, latent: torch.Tensor) -> torch.Tensor:
        """Return what the autoencoder decodes, (frames, C, h, w): its batch norm over patches undone."""
        mean, variance = (table.to(latent).view(1, -1, 1, 1) for table in (vae.bn.running_mean, vae.bn.running_var))
        packed = self.pipe._patchify_latents(latent) * (variance + vae.config.batch_norm_eps).sqrt() + mean
        return self.pipe._unpatchify_latents(packed)  # type: ignore[no-any-return]


# The published tiny autoencoder, madebyollin/taef2, is no `AutoencoderTiny`: previews come from the full decoder.
CHECKPOINTS = by_name(
    Checkpoint("flux2-dev", "black-forest-labs/FLUX.2-dev", "Flux2Pipeline", 512, 4.0),
    Checkpoint("flux2-klein", "black-forest-labs/FLUX.2-klein-4B", "Flux2KleinPipeline", 512, 1.0),
)

load = loader(CHECKPOINTS, Flux2Model)
