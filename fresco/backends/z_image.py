"""Z-Image: a list of ribbons, and the integer rotary table read where each token is. Source: MODELS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF, RopeEmbedder

from fresco.backends import ModelError
from fresco.backends.family import GridFamily, Seating, Shape, seating, shadowed
from fresco.backends.hub import Checkpoint, by_name, loader
from fresco.backends.positions import turned
from fresco.backends.stock import StockDenoiser, StockModel
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid


class ZImageFamily(GridFamily):
    """Z-Image: one ribbon per row of the batch, in a list; time runs 1 - sigma and the output is minus the velocity.

    A seated forward gets the table's rows at integer places, and in between the row before, turned on by the rest: exact. The
    model pads picture and text to multiples of 32 tokens each, which all attend; so its cost goes in steps of 32.
    """

    pipelines = ("ZImagePipeline",)
    depths = ("n_layers", "n_refiner_layers")
    counting_step = SEQ_MULTI_OF

    def count_channels(self) -> int:
        """Return the latent channels.

        Raises:
            ModelError: where the model has no patches of 2 x 2, which the pipeline takes.
        """
        config = self.transformer.config
        if (self.patch, 1) not in zip(config.all_patch_size, config.all_f_patch_size, strict=True):
            raise ModelError(f"this Z-Image has patches of {tuple(config.all_patch_size)}; Fresco knows those of 2 x 2")
        return int(config.in_channels)

    def example(self, text_tokens: int, device: torch.device) -> dict[str, Any]:
        """Return one row's text, as zeros."""
        return {"cap_feats": [torch.zeros(text_tokens, self.transformer.config.cap_feat_dim, device=device)]}

    def text_tokens(self, kwargs: Mapping[str, Any]) -> int:
        """Return the number of text tokens of the longest row, padding included."""
        return max(_padded(len(text)) for text in kwargs["cap_feats"])

    def flops(self, text_tokens: int) -> Callable[[int], float]:
        """Return (image tokens) -> FLOPs of one forward of batch 1, of the padded sequence."""
        count = super().flops(_padded(text_tokens))
        return lambda tokens: count(_padded(tokens))

    def incoming(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Return the rows' latents, (B, C, H, W), of the forward's list.

        Raises:
            ModelError: where a row has several pictures.
        """
        rows = args[0] if args else kwargs["x"]
        if isinstance(rows[0], list):
            raise ModelError("this call has reference pictures; Fresco runs Z-Image from text alone")
        return torch.stack(list(rows)).squeeze(2)

    def arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: torch.Tensor, where: Seating
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the ribbons and the seating's time."""
        ribbons = self.latents(tokens, (1, 1, tokens.shape[1]))[:, :, None]
        time = (1000 - torch.full((len(tokens),), where.sigma * 1000, device=tokens.device)) / 1000  # as the pipeline rounds
        return (), kwargs | {"x": list(ribbons), "t": time}

    def outgoing(self, output: Any) -> torch.Tensor:
        """Return the velocity (B, N, D): minus what comes out."""
        return -self.tokens(_rows(output))

    def spread(self, output: Any, cells: torch.Tensor, shape: Shape) -> Any:
        """Return the output with dense latents in place of the ribbons; the pipeline turns the sign."""
        dense = list(self.latents(self.tokens(_rows(output))[:, cells], shape)[:, :, None])
        return (dense, *output[1:]) if isinstance(output, tuple) else type(output)(sample=dense)

    def rows_per_picture(self, pipe: Any) -> int:
        """Return 2 where the pipeline guides: both halves of the guidance are one batch."""
        return 2 if pipe.do_classifier_free_guidance else 1

    def install(self) -> Callable[[], None]:
        """Shadow the patching on this instance and put a rotary table that can be read between its rows."""
        model = self.transformer
        undo = shadowed(model, "patchify_and_embed", _patchify_and_embed)
        stock = model.rope_embedder
        if isinstance(stock, _Between):
            return undo

        def restore() -> None:
            undo()
            model.rope_embedder = stock

        model.rope_embedder = _Between(stock)
        return restore


def _padded(tokens: int) -> int:
    return -(-tokens // int(SEQ_MULTI_OF)) * int(SEQ_MULTI_OF)


def _rows(output: Any) -> torch.Tensor:
    """Return (B, C, H, W) of the model's list of (C, 1, H, W)."""
    return torch.stack(output[0] if isinstance(output, tuple) else output.sample).squeeze(2)


def _patchify_and_embed(model: Any, *args: Any) -> tuple[Any, ...]:
    """The stock patching; where tokens are seated, with their own (frame, row, col) in place of the ribbon's."""
    found = list(type(model).patchify_and_embed(model, *args))
    where = seating()
    if where is not None:
        ids = where.ids(found[3][0].device)
        found[3] = [torch.cat([ids + at[0], at[len(ids) :]]) for at in found[3]]  # the ribbon's first token is the origin
    return tuple(found)


class _Between:
    """Z-Image's rotary table, read between its rows where places are fractional; whole ones get the stock table's own."""

    def __init__(self, stock: RopeEmbedder) -> None:
        self.stock = stock

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        if not ids.is_floating_point():
            return self.stock(ids)  # type: ignore[no-any-return]
        self.stock(ids[:1].clamp(min=0).long())  # makes the tables, and brings them to this device
        turns = []
        for axis, (dim, table) in enumerate(zip(self.stock.axes_dims, self.stock.freqs_cis, strict=True)):
            rates = 1.0 / self.stock.theta ** (torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
            turns.append(turned(table, ids[:, axis], rates))
        return torch.cat(turns, dim=-1)


class ZImageDenoiser(StockDenoiser):
    """Z-Image as a velocity model; conditioning has `prompt_embeds` (T, text dim), without padding.

    Guidance of the pipeline's scale g is `c + g (c - u)`: `cfg_scale` 1 + g here.

    Attributes:
        normalization: bound of the guided velocity's length, as a share of the conditional one's over the whole picture; 0 is
            none. In a mixed grid a token counts as often as it covers cells, so that the picture decides, not its division.
        truncation: time 1 - sigma after which guidance ends; the velocity is the conditional one then.
    """

    normalization = 0.0
    truncation = 1.0

    def conditioning(self, cond: Conditioning, sigma: float) -> dict[str, Any]:
        """Return text."""
        return {"cap_feats": [cond.tensors["prompt_embeds"].to(self.device, self.transformer.dtype)]}

    def guides(self, sigma: float) -> bool:
        """Return whether guidance acts at a noise level."""
        return super().guides(sigma) and 1 - sigma <= self.truncation

    def guide(self, without: torch.Tensor, given: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        """Return the guided velocity (N, D), no longer than allowed."""
        guided = given + (self.cfg_scale - 1) * (given - without)
        if not self.normalization:
            return guided
        covers = torch.from_numpy(np.bincount(grid.cells().ravel())).to(given.device)[:, None]
        length, most = ((covers * v.square()).sum().sqrt() for v in (guided, given))
        return guided * (most * self.normalization / length).clamp(max=1)


class ZImageModel(StockModel):
    """A Z-Image checkpoint with its own text encoder and autoencoder, which is FLUX.1's."""

    denoiser = ZImageDenoiser

    def cfg_scale(self, scale: float) -> float:
        """Return 1 + g for the pipeline's scale g, of which 0 is none."""
        return 1 + scale

    def embed(self, text: str) -> dict[str, torch.Tensor]:
        """Return the text encoder's states of the prompt's own words, without padding."""
        states, _ = self.pipe.encode_prompt(
            text, device=self.device, do_classifier_free_guidance=False, max_sequence_length=512
        )
        return {"prompt_embeds": states[0]}


# Text is padded to a multiple of 32; FLOPs are counted for 64 words and signs, beside 4096 image tokens.
CHECKPOINTS = by_name(
    Checkpoint(
        "z-image-turbo", "Tongyi-MAI/Z-Image-Turbo", "ZImagePipeline", 64, 0.0, size=(1, 1024, 1024),
        preview="madebyollin/taef1",
    )
)  # fmt: skip

load = loader(CHECKPOINTS, ZImageModel)
