"""FLUX.1-dev, FLUX.1-schnell and FLUX.1-lite-8B: the real checkpoints. Source: METHOD 2.6, 4; MODELS (FLUX facts)."""

from __future__ import annotations

from functools import partial

import torch

from fresco.backends.flow import FlowSchedule
from fresco.backends.flux import FluxDenoiser, FluxModel
from fresco.backends.hub import Checkpoint, HubModel, Loaded, by_name, loader, memory, smaller
from fresco.cost import TransformerShape
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid

_TINY = "madebyollin/taef1"

CHECKPOINTS = by_name(
    Checkpoint("flux-dev", "black-forest-labs/FLUX.1-dev", "FluxPipeline", 512, 3.5, preview=_TINY),
    Checkpoint("flux-schnell", "black-forest-labs/FLUX.1-schnell", "FluxPipeline", 256, 1.0, preview=_TINY),
    Checkpoint("flux-lite", "Freepik/flux.1-lite-8B", "FluxPipeline", 512, 3.5, preview=_TINY),
)


class HubDenoiser(FluxDenoiser):
    """A `FluxDenoiser` that says in one sentence when memory runs out."""

    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        """Return the velocity; see `FluxDenoiser`.

        Raises:
            ModelError: where memory ran out.
        """
        advice = partial(
            smaller, self.transformer, self.device, grid, self.shape.pixels_per_token, self.shape.text_tokens
        )  # fmt: skip
        with memory(f"the transformer ran on {len(grid)} tokens", advice):
            return super().__call__(x, grid, sigma, cond)


class FluxHubModel(HubModel, FluxModel):
    """A FLUX.1 checkpoint with its own text encoders and autoencoder."""

    denoiser = HubDenoiser

    def __init__(self, loaded: Loaded) -> None:
        """Take over a loaded `FluxPipeline`.

        Raises:
            ModelError: where its scheduler is not a shifted uniform one.
        """
        super().__init__(loaded)
        self.patch, self.default_guidance = self.family.patch, self.which.guidance
        self.schedule = FlowSchedule(self.pipe.scheduler.config)
        self.shape = TransformerShape.from_config(self.transformer.config, self.which.text_tokens, self.pixels_per_token)

    def embed(self, text: str) -> dict[str, torch.Tensor]:
        """Return CLIP's pooled vector, and T5's states padded to the model's length."""
        states, pooled, _ = self.pipe.encode_prompt(
            prompt=text, prompt_2=None, device=self.device, max_sequence_length=self.which.text_tokens
        )
        return {"prompt_embeds": states[0], "pooled": pooled[0]}


load = loader(CHECKPOINTS, FluxHubModel)
