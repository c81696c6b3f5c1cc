"""What all video checkpoints share: a tiled decoder at the end, and previews that need no decoder at all."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn import functional

from fresco.backends.hub import Loaded, memory, to_uint8
from fresco.backends.stock import StockModel
from fresco.denoiser import Conditioning

_CELLS = 24  # latent pixels per side of the picture that previews are learned from
_RIDGE = 1e-3  # of the latents' variance: channels that the picture hardly moves stay out


class VideoModel(StockModel):
    """A text-to-video checkpoint: one token covers one latent frame; frames are never doubled.

    Previews are a linear map from a latent pixel to its mean colour, learned once from the checkpoint's own encoder: a video
    autoencoder would take longer than the step it shows.

    Attributes beyond those of `StockModel`:
        frame_rate: frames per second that it was trained on, for whoever saves a film.
        negative_prompt: what classifier-free guidance leads away from, as published.
    """

    video = True
    frame_rate = 24
    negative_prompt = ""

    def negative(self) -> Conditioning:
        """Return the conditioning of the published negative prompt."""
        return self.encode(self.negative_prompt)

    def __init__(self, loaded: Loaded) -> None:
        """Take over a loaded pipeline; the decoder works in tiles, so that a large video fits."""
        super().__init__(loaded)
        self.pipe.vae.enable_tiling()

    @cached_property
    def colours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(3, C) weights and (3,) offsets: RGB in [-1, 1] from what the decoder takes. Ridge regression on one picture."""
        picture, vae = colour_fields(_CELLS, self.pixels_per_token // self.family.patch), self.pipe.vae
        with torch.no_grad(), memory("previews were prepared", "close other programs, or use a GPU with more memory"):
            video = picture[None, :, None].to(self.device, vae.dtype)
            found = vae.encode(video).latent_dist.mode()[0, :, 0].double().cpu().flatten(1)  # (C, cells)
        seen = functional.adaptive_avg_pool2d(picture, _CELLS).double().flatten(1)  # (3, cells)
        centre, mean = found.mean(1, keepdim=True), seen.mean(1, keepdim=True)
        spread = (found - centre) @ (found - centre).T
        spread += _RIDGE * spread.diagonal().mean() * torch.eye(len(spread), dtype=torch.float64)
        weights = torch.linalg.solve(spread, (found - centre) @ (seen - mean).T).T
        return weights.float(), (mean - weights @ centre)[:, 0].float()

    def preview(self, latent: torch.Tensor) -> NDArray[Any]:
        """Return (T, h, w, 3) uint8: a pixel per latent pixel and a frame per latent frame."""
        weights, offsets = self.colours
        plain = self.plain(self.pipe.vae, latent[None].float())[0].cpu()
        return to_uint8(torch.einsum("dc,cthw->dthw", weights, plain) + offsets[:, None, None, None])


def colour_fields(cells: int, edge: int, seed: int = 0) -> torch.Tensor:
    """Return RGB in [-1, 1], (3, cells*edge, cells*edge): random colours at every scale from the whole down to two pixels."""
    rng, side = torch.Generator().manual_seed(seed), cells * edge
    total, count = torch.zeros(3, side, side), 2
    while count <= side // 2:
        patch = torch.randn(1, 3, count, count, generator=rng) * (2 / count) ** 0.5
        total += functional.interpolate(patch, size=(side, side), mode="bicubic")[0]
        count *= 2
    return torch.tanh(total)
