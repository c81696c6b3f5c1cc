"""Feature caches of diffusers (TaylorSeer, FirstBlockCache, MagCache, ...) when tokens are promoted. Source: MODELS.

They keep features of every token from earlier steps, which no longer fit once a token has become four. `reset` forgets them,
and the warm-up starts anew; `remap` lets each child take over its parent's features, and the cache goes on. The second is an
estimate, as caching itself is, and for transitions that leave the noise level as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fresco.grid import TokenGrid

CACHES = ("reset", "remap")


def enabled(transformer: Any) -> bool:
    """Return whether a feature cache is on."""
    return bool(getattr(transformer, "is_cache_enabled", False))


def reset(transformer: Any) -> None:
    """Make a transformer's feature cache forget what it has seen."""
    transformer._reset_stateful_cache()


def remap(transformer: Any, old: TokenGrid, new: TokenGrid, text_tokens: int, text_first: bool = False) -> bool:
    """Give each token of the new grid the features that its parent, or it itself, had in the old one.

    Args:
        transformer: with a cache on.
        old, new: the tokens before and after the promotion.
        text_tokens: how many text tokens there are.
        text_first: whether features of text and image together, text before image, are known, too.

    Returns:
        Whether that could be done; if not, nothing was. Every feature must be (batch, tokens, width), and of the image's
        tokens, the text's or both by their number.
    """
    states, both = list(_states(transformer)), text_tokens + len(old)
    shapes = [tensor.shape for state in states for tensor in _tensors(vars(state))]
    lengths = {len(old), text_tokens, both} if text_first else {len(old), text_tokens}
    known = all(len(shape) == 3 and shape[1] in lengths for shape in shapes)
    if len(old) == text_tokens or not known or any(getattr(state, "inactive_shapes", None) for state in states):
        return False
    _, first = np.unique(new.cells(), return_index=True)
    parent = torch.from_numpy(old.cells().ravel()[first])
    rows = {len(old): parent, both: torch.cat([torch.arange(text_tokens), text_tokens + parent])}
    for state in states:
        for name, value in list(vars(state).items()):
            setattr(state, name, _taken(value, rows))
    return True


def _states(transformer: Any) -> Iterator[Any]:
    """Yield what the hooks of a cache remember: one object per block and call, or one they share."""
    from diffusers.hooks.hooks import StateManager

    seen = set()
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for hook in () if registry is None else registry.hooks.values():
            for kept in vars(hook).values() if hook._is_stateful else ():
                found = kept._state_cache.values() if isinstance(kept, StateManager) else [getattr(hook, "state", None)]
                for state in found:
                    if state is not None and id(state) not in seen:
                        seen.add(id(state))
                        yield state


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _taken(value: Any, rows: dict[int, torch.Tensor]) -> Any:
    """Return the same structure with the features' rows taken that belong to their number."""
    if isinstance(value, torch.Tensor):
        at = rows.get(value.shape[1])
        return value if at is None else value[:, at.to(value.device)]
    if isinstance(value, dict):
        return {name: _taken(part, rows) for name, part in value.items()}
    return type(value)(_taken(part, rows) for part in value) if isinstance(value, tuple | list) else value
