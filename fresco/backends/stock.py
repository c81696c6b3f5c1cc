"""A stock diffusers transformer as a velocity model, whichever family it is of. Source: MODELS; DESIGN 2."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch

from fresco.backends import ModelError
from fresco.backends.family import Family, Seating, seated
from fresco.backends.flow import FlowSchedule
from fresco.backends.hub import HubModel, memory, smaller
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid


class StockDenoiser(ABC):
    """A stock transformer over tokens of mixed resolution; attributes and methods are `fresco.denoiser.Denoiser`'s.

    A subclass says what its class takes beside the tokens (`conditioning`). One denoiser serves one run; any number may
    share a transformer, in one thread or in several.
    """

    def __init__(
        self,
        family: Family,
        *,
        native_size: tuple[int, int, int],
        pixels_per_token: int,
        schedule: FlowSchedule,
        flops: Callable[[int], float],
        device: torch.device,
        frame: str = "auto",
        guidance: float | None = None,
        cfg_scale: float = 1.0,
        unconditional: Conditioning | None = None,
        frame_stride: int = 1,
    ) -> None:
        """Bind a transformer to the settings of one run.

        Args:
            family: the transformer's family; its position hooks stay on the transformer, inert for everybody else.
            native_size: (frames, height, width) in pixels where a run names none.
            pixels_per_token: picture pixels per token side, autoencoder and patch together.
            schedule: the model's sigma grid.
            flops: (tokens) -> FLOPs of one forward, without guidance.
            device: where the model computes.
            frame: position frame of mixed grids; "auto" is the family's own.
            guidance: embedded guidance scale; None for models without.
            cfg_scale: classifier-free guidance `u + scale (c - u)`; 1 makes one call and needs no `unconditional`.
            unconditional: conditioning of the negative prompt.
            frame_stride: pixel frames per latent frame, for video; the first latent frame is one pixel frame.

        Raises:
            ValueError: where guidance has no negative prompt.
            ModelError: on a frame that the family cannot do.
        """
        if cfg_scale != 1 and unconditional is None:
            raise ValueError(f"cfg_scale {cfg_scale:g} needs the conditioning of a negative prompt; pass unconditional")
        self.family, self.transformer = family, family.transformer
        self.channels, self.patch, self.device = family.channels, family.patch, torch.device(device)
        self.native_size, self.pixels_per_token, self.frame_stride = native_size, pixels_per_token, frame_stride
        self.schedule, self._flops, self.frame = schedule, flops, family.frame(frame)
        self.guidance, self.cfg_scale, self.unconditional = guidance, cfg_scale, unconditional

    def token_shape(self, size: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """Return (frames, rows, cols) of the finest token grid for (frames, height, width) pixels; None is native.

        Raises:
            ModelError: on sides that are not whole tokens, or a number of frames that the autoencoder does not make.
        """
        (frames, height, width), edge, stride = size or self.native_size, self.pixels_per_token, self.frame_stride
        still = self.native_size[0] == 1
        if height % edge or width % edge or (frames != 1 if still else (frames - 1) % stride):
            near = tuple(max(edge, round(side / edge) * edge) for side in (height, width))
            count = 1 if still else max(0, round((frames - 1) / stride)) * stride + 1
            what = "1 frame" if still else f"1 + a multiple of {stride} frames"
            raise ModelError(
                f"size {frames} x {height} x {width} does not fit: this model draws {what} with sides that are multiples of "
                f"{edge} pixels; try {count} x {near[0]} x {near[1]}"
            )
        return 1 + (frames - 1) // stride, height // edge, width // edge

    def sigmas(self, n: int, tokens: int, start: float = 1.0, end: float = 0.0) -> list[float]:
        """Return n+1 decreasing sigmas in [0, 1] for a token count. Source: METHOD 2.6."""
        return self.schedule.sigmas(n, tokens, start, end)

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of one call: guidance doubles it."""
        return (1 if self.cfg_scale == 1 else 2) * self._flops(tokens)

    @abstractmethod
    def conditioning(self, cond: Conditioning, sigma: float) -> dict[str, Any]:
        """Return what the transformer takes beside the tokens and their places, batch 1: text, timestep, guidance."""

    def guides(self, sigma: float) -> bool:
        """Return whether guidance acts at a noise level."""
        return self.cfg_scale != 1

    def guide(self, without: torch.Tensor, given: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        """Return the guided velocity (N, D) of the unconditional and the conditional one."""
        return without + self.cfg_scale * (given - without)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        """Return the velocity (N, D) float32 of the state x (N, D) float32, on x's device.

        Raises:
            ValueError: on a state that does not fit the grid, or sigma out of range.
            ModelError: where memory ran out.
        """
        if len(x) != len(grid) or not 0 < sigma <= 1:
            raise ValueError(
                f"got {len(x)} tokens for a grid of {len(grid)} at sigma {sigma}; counts must agree and sigma be above 0, "
                "at most 1"
            )
        text = max((len(states) for states in cond.tensors.values() if states.ndim == 2), default=0)
        advice = partial(smaller, self.transformer, self.device, grid, self.pixels_per_token, text)
        with memory(f"the transformer ran on {len(grid)} tokens", advice):
            given = self._forward(x, grid, sigma, cond)
            if self.guides(sigma):
                assert self.unconditional is not None  # checked on construction
                given = self.guide(self._forward(x, grid, sigma, self.unconditional), given, grid)
        return given.to(x.device)

    def _forward(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        """Return the transformer's velocity (N, D) float32."""
        self.family.install()  # once; but the end of somebody's `fresco.enable` takes away what it brought
        tokens = x.to(self.device, self.transformer.dtype)[None]
        where = Seating(grid, self.frame, sigma)
        args, kwargs = self.family.arguments((), self.conditioning(cond, sigma) | {"return_dict": False}, tokens, where)
        with seated(where):
            return self.family.outgoing(self.transformer(*args, **kwargs))[0].float()


class StockModel(HubModel):
    """A checkpoint of a family that has a `StockDenoiser`; a subclass names that and brings `embed`.

    Attributes beyond those of `HubModel`:
        denoiser: the family's denoiser; set by the class.
        embedded: whether the transformer takes the guidance scale as an input: no second forward then.
    """

    denoiser: type[StockDenoiser]

    def cfg_scale(self, scale: float) -> float:
        """Return the scale of `u + scale (c - u)` for the pipeline's guidance scale, of which 1 and below are none."""
        return max(scale, 1.0)

    @property
    def embedded(self) -> bool:
        """Whether the guidance scale is an input of the transformer."""
        config = self.transformer.config
        return bool(config.get("guidance_embeds") or config.get("guidance_embed"))

    def bind(self, config: FrescoConfig) -> StockDenoiser:
        """Return the denoiser for one run: guidance and position frame fixed."""
        scale = self.which.guidance if config.guidance is None else config.guidance
        embedded = self.embedded
        cfg_scale = 1.0 if embedded else self.cfg_scale(scale)
        return self.denoiser(
            self.family,
            native_size=self.native_size,
            pixels_per_token=self.pixels_per_token,
            schedule=self.family.schedule(self.pipe.scheduler, config.nfe),
            flops=self.flops_of,
            device=self.device,
            frame=config.frame,
            guidance=scale if embedded else None,
            cfg_scale=cfg_scale,
            unconditional=None if cfg_scale == 1 else self.negative(),
            frame_stride=self.frame_stride,
        )

    @cached_property
    def flops_of(self) -> Callable[[int], float]:
        """(tokens) -> FLOPs of one forward, without guidance; counted once."""
        return self.family.flops(self.which.text_tokens)

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of one forward, without guidance."""
        return self.flops_of(tokens)
