"""FLUX-architecture transformers: the stock diffusers class, given gathered tokens and float32 position ids.

No forward is copied. Only the phase-aligned frame and attention recording need an attention processor; it keeps no state
and acts as the stock one unless a call hands it a plan, so that any number of runs can share one transformer.
Source: METHOD 2.5, 2.6; MODELS (FLUX).
"""

from __future__ import annotations

import dataclasses
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor, _get_qkv_projections
from numpy.typing import NDArray

from fresco.backends import ModelError
from fresco.backends.family import Family, Seating, Shape, kept
from fresco.backends.flow import FlowSchedule
from fresco.config import FrescoConfig
from fresco.cost import TransformerShape
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid

Rotary = tuple[torch.Tensor, torch.Tensor]

_INSTALL = threading.Lock()


@dataclass(eq=False)
class AttentionPlan:
    """What one forward asks of the attention processors; handed down as an attention argument.

    Attributes:
        text: number of text tokens, which stand before the image tokens.
        groups: per level present, its queries as (Q,) indices into text + image, and the (cos, sin) of *all* tokens in
            that level's units; None leaves the positions as they are.
        received: (S,) float32 sum of the attention each token received, on the model's device; None is not recorded. Every
            row of attention adds 1 to its sum.
    """

    text: int
    groups: list[tuple[torch.Tensor, Rotary]] | None = None
    received: torch.Tensor | None = None

    def record(self, query: torch.Tensor, key: torch.Tensor, at: torch.Tensor) -> None:
        """Add the attention that the image queries among `at` pay to every key; one head at a time.

        Args:
            query: (batch, Q, heads, size), rotated; the last of the batch is the conditional one.
            key: (batch, S, heads, size), rotated.
            at: (Q,) place of each query in text + image.
        """
        assert self.received is not None
        rows = query[-1, at >= self.text].float()
        for head in range(key.shape[2]):
            scores = rows[:, head] @ key[-1, :, head].float().T / math.sqrt(key.shape[3])
            self.received += scores.softmax(-1).sum(0)


class FrescoAttnProcessor(FluxAttnProcessor):  # type: ignore[misc]  # diffusers is untyped
    """The stock FLUX attention, unless a plan asks for positions per query level or for a record.

    Queries of a level, and all keys, are rotated in that level's units: a coarse query sees everything in coarse units, a
    fine one everything in fine units; one attention call per level, the same FLOPs in all.
    Source: METHOD 2.5 (`phase_aligned`); arXiv 2511.19778.
    """

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        fresco: AttentionPlan | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return what the stock processor returns: image states, and text states where they came separately."""
        if fresco is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)  # type: ignore[no-any-return]
        parts = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        joint = encoder_hidden_states is not None
        q, k, v, *text = (x.unflatten(-1, (-1, attn.head_dim)) for x in parts[: 6 if joint else 3])
        q, k = attn.norm_q(q), attn.norm_k(k)
        if joint:
            text_q, text_k = attn.norm_added_q(text[0]), attn.norm_added_k(text[1])
            q, k, v = (torch.cat(pair, dim=1) for pair in ((text_q, q), (text_k, k), (text[2], v)))

        everyone = torch.arange(q.shape[1], device=q.device)
        out = torch.empty_like(q)
        assert image_rotary_emb is not None  # FLUX always rotates
        for at, (cos, sin) in fresco.groups or [(everyone, image_rotary_emb)]:
            query = apply_rotary_emb(q[:, at], (cos[at], sin[at]), sequence_dim=1)
            key = apply_rotary_emb(k, (cos, sin), sequence_dim=1)
            out[:, at] = dispatch_attention_fn(
                query, key, v, attn_mask=attention_mask, backend=self._attention_backend,
                parallel_config=self._parallel_config,
            ).to(out.dtype)  # fmt: skip
            if fresco.received is not None:
                fresco.record(query, key, at)

        states = out.flatten(2, 3)
        if not joint:
            return states
        image = attn.to_out[1](attn.to_out[0](states[:, fresco.text :].contiguous()))
        return image, attn.to_add_out(states[:, : fresco.text].contiguous())


def install(transformer: torch.nn.Module) -> None:
    """Give every attention of a transformer the stateless processor; without a plan it is the stock one.

    Raises:
        ModelError: where an attention has a processor of another kind (an IP adapter, say).
    """
    with _INSTALL:  # two runs may come here at once; each processor is swapped whole
        for module in transformer.modules():
            if not isinstance(module, FluxAttention) or isinstance(module.processor, FrescoAttnProcessor):
                continue
            if type(module.processor) is not FluxAttnProcessor:
                raise ModelError(
                    f"position frame 'phase_aligned' and selection 'attention' need the stock FLUX attention; this "
                    f"transformer has {type(module.processor).__name__}: use another frame and selection"
                )
            ours = FrescoAttnProcessor()
            ours._attention_backend = module.processor._attention_backend
            ours._parallel_config = module.processor._parallel_config
            module.set_processor(ours)


def uninstall(transformer: torch.nn.Module) -> None:
    """Put the stock processors back, with the backend they would have now."""
    with _INSTALL:
        for module in transformer.modules():
            if isinstance(module, FluxAttention) and isinstance(module.processor, FrescoAttnProcessor):
                stock = FluxAttnProcessor()
                stock._attention_backend = module.processor._attention_backend
                stock._parallel_config = module.processor._parallel_config
                module.set_processor(stock)


class FluxFamily(Family):
    """FLUX.1: packed tokens as they are, with float32 ids; the phase-aligned frame and the record are the processor's."""

    frames = ("phase_aligned", "coarse", "coarse_corner", "fine")
    pipelines = ("FluxPipeline",)
    records = True
    text_first = True

    def count_channels(self) -> int:
        """Return the latent channels: a token on the way in has C p p numbers."""
        return int(self.transformer.config.in_channels) // self.patch**2

    def install(self) -> Callable[[], None]:
        """Processors are put in when a forward first needs one; return what takes them away, if they were not there before."""
        if any(isinstance(p, FrescoAttnProcessor) for p in self.transformer.attn_processors.values()):
            return lambda: None
        return lambda: uninstall(self.transformer)

    def example(self, text_tokens: int, device: torch.device) -> dict[str, Any]:
        """Return text, its ids, the pooled vector and guidance, as zeros."""
        config = self.transformer.config
        return {
            "encoder_hidden_states": torch.zeros(1, text_tokens, config.joint_attention_dim, device=device),
            "pooled_projections": torch.zeros(1, config.pooled_projection_dim, device=device),
            "txt_ids": torch.zeros(text_tokens, 3, device=device),
            "guidance": torch.zeros(1, device=device) if config.guidance_embeds else None,
        }  # fmt: skip

    def flops(self, text_tokens: int) -> Callable[[int], float]:
        """Return (image tokens) -> FLOPs of one forward of batch 1, by the closed form. Source: METHOD 4."""
        return TransformerShape.from_config(self.transformer.config, text_tokens).flops

    def tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the packed latents themselves, (B, N, D)."""
        return latents

    def latents(self, tokens: torch.Tensor, shape: Shape) -> torch.Tensor:
        """Return the tokens themselves."""
        return tokens

    def incoming(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Return the forward's `hidden_states`."""
        return args[0] if args else kwargs["hidden_states"]  # type: ignore[no-any-return]

    def shape(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Shape:
        """Return (1, rows, cols) from the ids."""
        ids = kwargs["img_ids"].reshape(-1, kwargs["img_ids"].shape[-1])[: self.incoming(args, kwargs).shape[1], 1].float()
        cols = int((ids == ids[0]).sum())
        return 1, len(ids) // cols, cols

    def arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: torch.Tensor, where: Seating
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with tokens, ids, timestep and, where the attention has something to do, a plan."""
        grid, device, batch = where.grid, tokens.device, len(tokens)
        plan = AttentionPlan(int(kwargs["encoder_hidden_states"].shape[1]))
        if where.record:
            plan.received = torch.zeros(plan.text + len(grid), device=device)
        aligned = where.frame == "phase_aligned" and not grid.is_uniform
        if aligned:
            rope = self.transformer.pos_embed
            plan.groups = kept(
                grid, ("groups", plan.text, device, rope.theta, tuple(rope.axes_dim)),
                lambda: self._groups(grid, torch.zeros(plan.text, 3, device=device)),
            )  # fmt: skip
        unit = int(grid.level.max()) if aligned else None
        ids = kept(
            grid, ("ids", where.frame, unit, device), lambda: torch.from_numpy(grid.centers(where.frame, unit)).to(device)
        )  # fmt: skip
        extra = {name: value for name, value in (kwargs.get("joint_attention_kwargs") or {}).items() if name != "fresco"}
        if plan.groups is not None or plan.received is not None:
            install(self.transformer)
            extra["fresco"] = plan
        where.extra["plan"] = plan
        # The pipeline's own roundings: sigma -> t in 0..1000 -> the model's dtype -> sigma.
        time = (torch.full((batch,), where.sigma, device=device) * 1000).to(tokens.dtype) / 1000
        return (), kwargs | {
            "hidden_states": tokens, "timestep": time, "img_ids": ids,
            "joint_attention_kwargs": extra or None,
        }  # fmt: skip

    def _groups(self, grid: TokenGrid, text_ids: torch.Tensor) -> list[tuple[torch.Tensor, Rotary]]:
        """Return the queries and the positions of all tokens in each present level's units, the coarsest first.

        Text queries see the image in the finest present level's units. Source: METHOD 2.5.
        """
        levels, device = sorted(set(grid.level.tolist())), text_ids.device
        groups = []
        for level in levels:
            at = np.flatnonzero(grid.level == level) + len(text_ids)
            if level == levels[-1]:
                at = np.concatenate([np.arange(len(text_ids)), at])
            ids = torch.from_numpy(grid.centers("phase_aligned", unit_level=level)).to(device)
            groups.append((torch.from_numpy(at).to(device), self.transformer.pos_embed(torch.cat([text_ids, ids]))))
        return groups

    def outgoing(self, output: Any) -> torch.Tensor:
        """Return the velocity (B, N, D)."""
        return output[0] if isinstance(output, tuple) else output.sample  # type: ignore[no-any-return]

    def spread(self, output: Any, cells: torch.Tensor, shape: Shape) -> Any:
        """Return the output with one token's velocity per cell."""
        dense = self.outgoing(output)[:, cells]
        return (dense, *output[1:]) if isinstance(output, tuple) else type(output)(sample=dense)

    def attention(self, where: Seating) -> torch.Tensor | None:
        """Return (N,): the mean over image queries, heads and blocks, of the batch's last row."""
        plan: AttentionPlan = where.extra["plan"]
        return None if plan.received is None else plan.received[plan.text :] / plan.received.sum()


class FluxDenoiser:
    """A stock `FluxTransformer2DModel` as a velocity model over tokens of mixed resolution.

    Tokens go in as they are, (N, D), with float32 ids `grid.centers(frame)`. Attributes and methods are those of
    `fresco.denoiser.AttentionDenoiser`. One denoiser serves one run; any number may share a transformer, in one thread
    or in several.
    """

    def __init__(
        self,
        transformer: Any,
        *,
        patch: int,
        native_size: tuple[int, int, int],
        schedule: FlowSchedule,
        shape: TransformerShape,
        device: torch.device | None = None,
        prediction: Literal["velocity", "x0"] = "velocity",
        clamp: float | None = None,
        max_timestep: float = 1.0,
        frame: str = "auto",
        guidance: float | None = None,
        cfg_scale: float = 1.0,
        unconditional: Conditioning | None = None,
        batched: bool = False,
        record_attention: bool = False,
    ) -> None:
        """Bind a transformer to the settings of one run.

        Args:
            transformer: the `FluxTransformer2DModel`, in evaluation mode.
            patch: latent pixels per token side.
            native_size: (frames, height, width) in pixels where a run names none.
            schedule: the model's sigma grid.
            shape: what the FLOPs depend on, text tokens and pixels per token included.
            device: where the model computes; None asks the transformer.
            prediction: whether the transformer returns v = eps - x0 or x0 itself.
            clamp: bound of |x0| after guidance, with prediction "x0"; None is unbounded.
            max_timestep: highest timestep the model was trained on, as a sigma.
            frame: position frame of mixed grids.
            guidance: embedded guidance scale; None for models without.
            cfg_scale: classifier-free guidance `u + scale (c - u)`; 1 makes one call and needs no `unconditional`.
            unconditional: conditioning of the negative prompt, as long as the prompts'.
            batched: guidance as one batch of two instead of two calls; the same to rounding.
            record_attention: keep the attention each token received, for `attention`.

        Raises:
            ValueError: where guidance has no negative prompt, or the embedded scale does not fit the model.
        """
        if cfg_scale != 1 and unconditional is None:
            raise ValueError(f"cfg_scale {cfg_scale:g} needs the conditioning of a negative prompt; pass unconditional")
        if (guidance is not None) != bool(transformer.config.guidance_embeds):
            raise ValueError(
                f"guidance is {guidance}, but the transformer's guidance_embeds is {transformer.config.guidance_embeds}; "
                "pass an embedded guidance scale to models that have one, cfg_scale to the others"
            )
        if clamp is not None and prediction != "x0":
            raise ValueError("clamp bounds a predicted x0; use it with prediction='x0'")
        self.transformer, self.patch, self.native_size, self.schedule, self.shape = (
            transformer, patch, native_size, schedule, shape,
        )  # fmt: skip
        self.family = FluxFamily(transformer, patch)
        self.channels = self.family.channels
        self.device = torch.device(device or transformer.device)
        self.prediction, self.clamp, self.max_timestep = prediction, clamp, max_timestep
        self.frame = self.family.frame(frame)
        self.guidance, self.cfg_scale, self.unconditional, self.batched = guidance, cfg_scale, unconditional, batched
        self.record_attention = record_attention
        self._received: torch.Tensor | None = None

    def token_shape(self, size: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """Return (1, rows, cols) of the finest token grid for (1, height, width) pixels; None is the native size.

        Raises:
            ModelError: on several frames, or sides that are not whole tokens.
        """
        frames, height, width = size or self.native_size
        edge = self.shape.pixels_per_token
        if frames != 1 or height % edge or width % edge or min(height, width) < edge:
            near = tuple(max(edge, round(side / edge) * edge) for side in (height, width))
            raise ModelError(
                f"size {frames} x {height} x {width} does not fit: this model draws 1 frame with sides that are "
                f"multiples of {edge} pixels; try 1 x {near[0]} x {near[1]}"
            )
        return 1, height // edge, width // edge

    def sigmas(self, n: int, tokens: int, start: float = 1.0, end: float = 0.0) -> list[float]:
        """Return n+1 decreasing sigmas in [0, 1] for a token count. Source: METHOD 2.6."""
        return self.schedule.sigmas(n, tokens, start, end)

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of one call: guidance doubles it, recording computes the scores of one row once more."""
        calls = 1 if self.cfg_scale == 1 else 2
        seen = self.shape.attention_flops(tokens, tokens + self.shape.text_tokens) if self.record_attention else 0.0
        return calls * self.shape.flops(tokens) + seen

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        """Return the velocity (N, D) float32 of the state x (N, D) float32, on x's device.

        Args:
            x: the state; token i is `grid`'s token i.
            grid: the tokens.
            sigma: noise level of all tokens, above 0 and at most 1.
            cond: tensors `prompt_embeds` (T, text dim) and `pooled` (pooled dim).

        Raises:
            ValueError: on a state that does not fit the grid, or sigma out of range.
        """
        if len(x) != len(grid) or not 0 < sigma <= 1:
            raise ValueError(
                f"got {len(x)} tokens for a grid of {len(grid)} at sigma {sigma}; counts must agree and sigma be above 0, "
                "at most 1"
            )
        state = x.to(self.device, torch.float32)
        where = Seating(grid, self.frame, min(sigma, self.max_timestep), record=self.record_attention)
        if self.cfg_scale == 1:
            out = self._forward(state, where, [cond])[0]
        else:
            assert self.unconditional is not None  # checked on construction
            pair = [self.unconditional, cond]
            if self.batched:
                without, given = self._forward(state, where, pair)
            else:  # only the conditional call's attention is recorded
                without = self._forward(state, dataclasses.replace(where, record=False), pair[:1])[0]
                given = self._forward(state, where, pair[1:])[0]
            out = without + self.cfg_scale * (given - without)
        self._received = self.family.attention(where)
        if self.prediction == "x0":
            out = (state - (out if self.clamp is None else out.clamp(-self.clamp, self.clamp))) / sigma
        return out.to(x.device)

    def _forward(self, state: torch.Tensor, where: Seating, conds: list[Conditioning]) -> torch.Tensor:
        """Return the transformer's output (batch, N, D) float32, one row per conditioning."""
        dtype, batch = self.transformer.dtype, len(conds)
        text = torch.stack([c.tensors["prompt_embeds"] for c in conds]).to(self.device, dtype)
        given = {
            "encoder_hidden_states": text,
            "pooled_projections": torch.stack([c.tensors["pooled"] for c in conds]).to(self.device, dtype),
            "txt_ids": torch.zeros(text.shape[1], 3, device=self.device),
            "guidance": None if self.guidance is None else torch.full((batch,), self.guidance, device=self.device),
            "return_dict": False,
        }
        tokens = state.to(dtype).expand(batch, -1, -1)
        args, kwargs = self.family.arguments((), given, tokens, where)
        return self.family.outgoing(self.transformer(*args, **kwargs)).float()

    def attention(self, grid: TokenGrid) -> torch.Tensor:
        """Return (N,) float32: the attention each image token of the last call received from image queries.

        The mean over those queries, the heads and all blocks, of the conditional row; with what text tokens received
        it sums to 1.

        Raises:
            ValueError: where nothing was recorded, or for another grid.
        """
        if self._received is None:
            raise ValueError("no attention was recorded; construct with record_attention=True and call first")
        if len(self._received) != len(grid):
            raise ValueError(f"the last call had {len(self._received)} tokens, this grid has {len(grid)}; pass its grid")
        return self._received


class FluxModel(ABC):
    """What all FLUX-architecture checkpoints share; a subclass brings text and pictures.

    Attributes:
        name, provenance, device, dtype: as in `fresco.denoiser.Model`.
        transformer: the stock transformer, in evaluation mode on `device`.
        patch: latent pixels per token side.
        native_size: (frames, height, width) in pixels where a run names none.
        schedule: the sigma grid.
        shape: what the FLOPs depend on.
        default_guidance: guidance scale where a run names none; embedded where the transformer embeds one.
    """

    name: str
    provenance: str
    device: torch.device
    dtype: torch.dtype
    transformer: Any
    patch: int
    native_size: tuple[int, int, int]
    schedule: FlowSchedule
    shape: TransformerShape
    default_guidance: float
    prediction: Literal["velocity", "x0"] = "velocity"
    clamp: float | None = None
    max_timestep: float = 1.0
    denoiser: type[FluxDenoiser] = FluxDenoiser

    def bind(self, config: FrescoConfig) -> FluxDenoiser:
        """Return the denoiser for one run: guidance, position frame and recording fixed."""
        scale = self.default_guidance if config.guidance is None else config.guidance
        embedded = bool(self.transformer.config.guidance_embeds)
        return self.denoiser(
            self.transformer,
            patch=self.patch,
            native_size=self.native_size,
            schedule=self.schedule,
            shape=self.shape,
            device=self.device,
            prediction=self.prediction,
            clamp=self.clamp,
            max_timestep=self.max_timestep,
            frame=config.frame,
            guidance=scale if embedded else None,
            cfg_scale=1.0 if embedded else scale,
            unconditional=None if embedded or scale == 1 else self.encode(""),
            batched=True,  # on two cores 20 % faster than two calls at 64 tokens, 10 % at 256
            record_attention=config.watches_attention,
        )

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of one forward, without guidance."""
        return self.shape.flops(tokens)

    @abstractmethod
    def encode(self, prompt: str) -> Conditioning:
        """Return the conditioning of a prompt: `prompt_embeds` (T, text dim) and `pooled` (pooled dim)."""

    @abstractmethod
    def decode(self, latent: torch.Tensor) -> NDArray[np.uint8]:
        """Return (T, H, W, 3) uint8 from a clean latent (C, frames, rows*p, cols*p)."""

    @abstractmethod
    def preview(self, latent: torch.Tensor) -> NDArray[np.uint8]:
        """Return (T, H, W, 3) uint8, fast: what a step shows."""
