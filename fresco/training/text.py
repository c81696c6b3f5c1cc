"""Captions as the model's text input: tokenised in the workers, encoded in batches on the training device.

The numbers are those of `fresco.backends.sinopia.TextEncoder`, which the trained model is used with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fresco.backends.sinopia import TextEncoder
from fresco.training.scenes import to_device


class Tokenizer:
    """Captions to token ids; can be sent to another process."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer, self.max_tokens = tokenizer, max_tokens

    def __call__(self, captions: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ids and mask, (B, max_tokens) int64; longer captions are cut."""
        found = self._tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="np"
        )
        return found["input_ids"].astype(np.int64), found["attention_mask"].astype(np.int64)


class CaptionEncoder:
    """MiniLM states of captions, on the training device.

    Attributes:
        tokenizer: what makes its input.
        full: the whole encoder, prompts to states, as the backend has it.
    """

    def __init__(self, max_tokens: int, device: torch.device) -> None:
        self.full, self.device = TextEncoder(max_tokens, device), device
        self._model = self.full._model
        self.tokenizer = Tokenizer(self.full._tokenizer, max_tokens)

    @torch.no_grad()
    def __call__(self, ids: NDArray[np.int64], mask: NDArray[np.int64], chunk: int = 1024) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states (B, max_tokens, width), zero at padding, and unit vectors (B, width); float32.

        Args:
            ids, mask: from `tokenizer`.
            chunk: captions per forward.
        """
        states, vectors = [], []
        for at in range(0, len(ids), chunk):
            here = to_device(mask[at : at + chunk], self.device)
            out = self._model(input_ids=to_device(ids[at : at + chunk], self.device), attention_mask=here)
            states.append(out.last_hidden_state.float() * here[..., None])
            vectors.append(torch.nn.functional.normalize(states[-1].sum(1) / here.sum(1, keepdim=True), dim=-1))
        return torch.cat(states), torch.cat(vectors)
