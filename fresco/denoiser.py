"""What the sampler asks of a model, as protocols. Source: DESIGN 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fresco.config import FrescoConfig
    from fresco.grid import TokenGrid


@dataclass(frozen=True, eq=False)
class Conditioning:
    """An encoded prompt: the text and whatever tensors one model family needs (embeddings, pooled vector)."""

    prompt: str
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


@runtime_checkable
class Denoiser(Protocol):
    """A velocity model over N tokens of mixed resolution that share one scalar sigma."""

    channels: int
    """Latent channels C."""
    patch: int
    """Latent pixels per token side p; a token is a vector of D = C*p*p in (c, dy, dx) order."""

    device: torch.device
    """Where the state lives."""

    def token_shape(self, size: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """Return (frames, rows, cols) of the finest token grid for a picture of `size` pixels (None: native)."""

    def sigmas(self, n: int, tokens: int, start: float = 1.0, end: float = 0.0) -> list[float]:
        """Return n+1 decreasing sigmas, uniform in unshifted time under the shift for `tokens` tokens."""

    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        """Return the velocity v = eps - x0, (N, D) float32, of the state x, (N, D) float32, at noise level sigma."""

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of one call on `tokens` image tokens, guidance included."""


@runtime_checkable
class AttentionDenoiser(Denoiser, Protocol):
    """A denoiser that also reports how much attention each token received."""

    def attention(self, grid: TokenGrid) -> torch.Tensor:
        """Return (N,) float32, the mean attention each image token received in the last call."""


class Noise(Protocol):
    """A source of standard normal noise for any grid."""

    def at(self, grid: TokenGrid) -> NDArray[np.floating[Any]]:
        """Return (N, D): unit noise of each token at its own level."""

    def details(self, grid: TokenGrid, mask: NDArray[np.bool_]) -> NDArray[np.floating[Any]]:
        """Return (M, 3, D): the horizontal, vertical and diagonal Haar details under each masked token."""


class Model(Protocol):
    """A loaded checkpoint: text in, pictures out, and a denoiser bound to one configuration."""

    name: str
    provenance: str
    device: torch.device
    dtype: torch.dtype

    def bind(self, config: FrescoConfig) -> Denoiser:
        """Return the denoiser for one run: guidance and position frame fixed."""

    def encode(self, prompt: str) -> Conditioning:
        """Return the conditioning of a prompt."""

    def decode(self, latent: torch.Tensor) -> NDArray[np.uint8]:
        """Return (T, H, W, 3) uint8 from a clean latent (C, frames, rows*p, cols*p) with the full decoder."""

    def preview(self, latent: torch.Tensor) -> NDArray[np.uint8]:
        """Return (T, H, W, 3) uint8, fast: what a step shows."""
