"""Wan 2.1 and 2.2, text to video: the stock transformer over a ribbon of tokens; every frame is doubled on its own.

Wan reads positions from a table of 1024 rows, which a ribbon overruns; so a pre-hook shows `rope` a single token and a
forward hook gives the positions. Wan 2.2 A14B has two transformers, one for each half of the noise levels; TI2V 5B takes one
timestep per token. Source: METHOD 2.1, 2.5; MODELS.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from fresco.backends import ModelError
from fresco.backends.family import Family, GridFamily, Seating, family_of, hooked, seating
from fresco.backends.flow import FlowSchedule
from fresco.backends.hub import Checkpoint, Loaded, by_name, loader
from fresco.backends.stock import StockDenoiser
from fresco.backends.video import VideoModel
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid

Rotary = tuple[torch.Tensor, torch.Tensor]


def _one_token(rope: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Forward pre-hook on `rope`: one token in place of the ribbon, which no table is long enough for."""
    p = rope.patch_size[-1]
    return None if seating() is None else (args[0][..., :p, :p],)


def _positions(rope: Any, args: tuple[Any, ...], output: Rotary) -> Rotary | None:
    """Forward hook on `rope`: (cos, sin), each (1, N, 1, head size), of the seated tokens; None where nobody sits."""
    where = seating()
    if where is None:
        return None
    ids = where.ids(args[0].device)
    dims = [rope.t_dim, rope.h_dim, rope.w_dim]
    if where.grid.is_uniform:  # whole numbers: the table's own rows
        tables = (rope.freqs_cos.split(dims, dim=1), rope.freqs_sin.split(dims, dim=1))
        rows = ids.long()
        cos, sin = (torch.cat([axis[rows[:, i]] for i, axis in enumerate(table)], dim=1) for table in tables)
    else:
        double = torch.float32 if ids.device.type == "mps" else torch.float64
        axes = [get_1d_rotary_pos_embed(d, ids[:, i], use_real=True, freqs_dtype=double) for i, d in enumerate(dims)]
        cos, sin = torch.cat([cos for cos, _ in axes], dim=1), torch.cat([sin for _, sin in axes], dim=1)
    return cos[None, :, None], sin[None, :, None]


class WanFamily(GridFamily):
    """Wan text to video: a ribbon one frame and one row high, positions by hooks on `rope`.

    Attributes:
        per_token: whether forwards bring one timestep per token (TI2V 5B), which costs more.
    """

    per_token = False

    frames = ("coarse", "coarse_corner", "fine")
    pipelines = ("WanPipeline",)
    depths = ("num_layers",)
    video = True

    def count_channels(self) -> int:
        """Return the latent channels.

        Raises:
            ModelError: on a checkpoint that takes a picture, or doubles frames.
        """
        config = self.transformer.config
        if config.image_dim is not None or config.in_channels != config.out_channels or tuple(config.patch_size) != (1, 2, 2):
            raise ModelError(
                f"this Wan transformer has image_dim {config.image_dim}, {config.in_channels} channels in, "
                f"{config.out_channels} out and patch_size {tuple(config.patch_size)}; Fresco runs text to video with patches "
                "(1, 2, 2): use such a checkpoint"
            )
        return int(config.in_channels)

    def schedule(self, scheduler: Any, nfe: int) -> FlowSchedule:
        """Return the sigmas of the Euler scheduler with this scheduler's shift; the pipeline leaves their spacing to it.

        Checkpoints come with UniPC, a multistep method: its past steps do not outlive a promotion.
        """
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            scheduler = FlowMatchEulerDiscreteScheduler(shift=float(scheduler.config.flow_shift))
        return FlowSchedule({**scheduler.config, "shift": scheduler.shift}, floor=float(scheduler.sigma_min))

    def pixels(self, pipe: Any) -> tuple[int, int]:
        """Return (pixel frames per latent frame, pixels per token side) of a pipeline."""
        return int(pipe.vae_scale_factor_temporal), self.patch * int(pipe.vae_scale_factor_spatial)

    def text_tokens(self, kwargs: Mapping[str, Any]) -> int:
        """Return the number of text tokens of a forward; whether it brings a timestep per token is noted, for `flops`."""
        self.per_token = kwargs["timestep"].ndim == 2
        return super().text_tokens(kwargs)

    def flops(self, text_tokens: int) -> Callable[[int], float]:
        """Return (image tokens) -> FLOPs of one forward of batch 1; a timestep per token is embedded for each."""
        one, config = super().flops(text_tokens), self.transformer.config
        width = config.num_attention_heads * config.attention_head_dim
        more = 2 * width * (config.freq_dim + 7 * width) if self.per_token else 0
        return lambda tokens: one(tokens) + more * (tokens - 1)

    def example(self, text_tokens: int, device: torch.device) -> dict[str, Any]:
        """Return text and timestep."""
        return {
            "timestep": torch.zeros(1, device=device),
            "encoder_hidden_states": torch.zeros(1, text_tokens, self.transformer.config.text_dim, device=device),
        }

    def install(self) -> Callable[[], None]:
        """Hook `rope`; return what takes the hooks away, if they were not there before."""
        rope = self.transformer.rope
        away = hooked(rope, _positions)
        if _one_token in rope._forward_pre_hooks.values():
            return away
        before = rope.register_forward_pre_hook(_one_token)

        def undo() -> None:
            away()
            before.remove()

        return undo

    def timing(self, kwargs: Mapping[str, Any], where: Seating) -> dict[str, Any]:
        """Return the timestep 0 to 1000: one per token, (B, N), where the forward came with one per token."""
        given = kwargs["timestep"]
        shape = given.shape if given.ndim == 1 else (len(given), len(where.grid))
        return {"timestep": given.new_full(shape, where.sigma * 1000)}


class WanDenoiser(StockDenoiser):
    """A Wan transformer as a velocity model, with classifier-free guidance.

    Attributes:
        second: (family, guidance scale) of the transformer for noise levels below `boundary` (A14B), or None.
        boundary: noise level from which on the first transformer runs.
    """

    second: tuple[Family, float] | None = None
    boundary: float = 0.0

    def conditioning(self, cond: Conditioning, sigma: float) -> dict[str, Any]:
        """Return text states and a timestep, whose value the family sets."""
        text = cond.tensors["prompt_embeds"][None].to(self.device, self.transformer.dtype)
        assert isinstance(self.family, WanFamily)
        time = torch.zeros((1, 1) if self.family.per_token else (1,), device=self.device)
        return {"timestep": time, "encoder_hidden_states": text}

    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        """Return the velocity (N, D) float32 of the state x (N, D) float32; see `StockDenoiser`."""
        if self.second is None or sigma >= self.boundary:
            return super().__call__(x, grid, sigma, cond)
        low = copy.copy(self)
        low.second, (low.family, low.cfg_scale) = None, self.second
        low.transformer = low.family.transformer
        return low(x, grid, sigma, cond)


class WanModel(VideoModel):
    """A Wan checkpoint with its own text encoder and autoencoder, and its one or two transformers."""

    denoiser = WanDenoiser
    negative_prompt = (
        "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall gray, "
        "worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, poorly "
        "drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three legs, many "
        "people in the background, walking backwards"
    )

    def __init__(self, loaded: Loaded) -> None:
        """Take over a loaded pipeline; its autoencoder computes in float32, as published."""
        super().__init__(loaded)
        self.pipe.vae.float()
        assert isinstance(self.family, WanFamily)
        self.family.per_token = bool(self.pipe.config.expand_timesteps)
        self.frame_rate = 24 if self.pipe.config.expand_timesteps else 16  # TI2V 5B was trained on 24, the others on 16

    def embed(self, text: str) -> dict[str, torch.Tensor]:
        """Return the text encoder's states, zeros beyond the prompt."""
        states, _ = self.pipe.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=self.which.text_tokens, device=self.device
        )
        return {"prompt_embeds": states[0]}

    def bind(self, config: FrescoConfig) -> WanDenoiser:
        """Return the denoiser for one run; below the boundary the second transformer takes over, where there is one."""
        found, about = super().bind(config), self.pipe.config
        assert isinstance(found, WanDenoiser)
        if about.boundary_ratio is not None:
            family = family_of(self.pipe.transformer_2)
            family.install()
            scale = LOW_GUIDANCE.get(self.name, found.cfg_scale) if config.guidance is None else config.guidance
            found.second, found.boundary = (family, scale), float(about.boundary_ratio)
        return found


CHECKPOINTS = by_name(
    Checkpoint(
        "wan2.1-1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "WanPipeline", 512, 5.0, size=(81, 480, 832), working=8 << 30
    ),
    Checkpoint(
        "wan2.2-ti2v-5b", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "WanPipeline", 512, 5.0, size=(121, 704, 1280), working=12 << 30
    ),
    Checkpoint(
        "wan2.2-t2v-a14b", "Wan-AI/Wan2.2-T2V-A14B-Diffusers", "WanPipeline", 512, 4.0, size=(81, 720, 1280), working=16 << 30
    ),
)
LOW_GUIDANCE = {"wan2.2-t2v-a14b": 3.0}  # scale of the second transformer, where a run names none

load = loader(CHECKPOINTS, WanModel)
