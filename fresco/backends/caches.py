"""Feature caches of diffusers (TaylorSeer, FirstBlockCache, MagCache, ...) when tokens are promoted. Source: MODELS.

They keep features of every token from earlier steps, which no longer fit once a token has become four. `reset` forgets them,
and the warm-up starts anew; `remap` lets each child take over its parent's features, and the cache goes on. The second is an
estimate, as caching itself is, and for transitions that leave the noise level as it is.

Caches are found by their hooks: `transformer.enable_cache` puts them there, and so do diffusers' `apply_...` functions, the
only way for classes without `enable_cache` (SD3, Z-Image).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers.hooks.faster_cache import FasterCacheBlockHook, FasterCacheDenoiserHook
from diffusers.hooks.first_block_cache import FBCBlockHook, FBCHeadBlockHook
from diffusers.hooks.hooks import StateManager
from diffusers.hooks.mag_cache import MagCacheState

from fresco.backends import ModelError
from fresco.grid import TokenGrid

CACHES = ("reset", "remap")
_FIRST_BLOCK = (FBCHeadBlockHook, FBCBlockHook)


def enabled(transformer: Any) -> bool:
    """Return whether a feature cache is on."""
    return any(True for _ in _hooks(transformer))


def check(transformer: Any, mixed: bool = True) -> None:
    """Make sure that the caches that are on can work.

    Args:
        transformer: with caches or without.
        mixed: whether tokens will be of several resolutions.

    Raises:
        ModelError: on blocks that the cache cannot serve, where diffusers itself stops with a `KeyError` or the like; in a
            mixed run on FasterCache, which takes latents for pictures and cannot start anew in the middle of a run.
    """
    hooks = [hook for _, hook in _registered(transformer)]
    if mixed and any(isinstance(hook, FasterCacheBlockHook | FasterCacheDenoiserHook) for hook in hooks):
        raise ModelError(
            "FasterCache cannot be on while tokens are promoted; disable it, or enable TaylorSeerCacheConfig, "
            "FirstBlockCacheConfig or MagCacheConfig in its place"
        )
    about = [(hook, hook._metadata) for hook in hooks if getattr(hook, "_metadata", None) is not None]
    named = all(of.hidden_states_argument_name in inspect.signature(of._cls.forward).parameters for _, of in about)
    forms = {of.return_encoder_hidden_states_index is None for hook, of in about if isinstance(hook, _FIRST_BLOCK)}
    if not named or len(forms) > 1:
        raise ModelError(
            f"this feature cache cannot be on a {type(transformer).__name__}: diffusers' own code for it does not fit what "
            "the blocks take and return; disable it, or enable another"
        )


def reset(transformer: Any, promoted: bool = False) -> None:
    """Make a transformer's feature caches forget what they have seen.

    A cache context that somebody has opened around the call stays open. TaylorSeer counts its steps from here on.

    Args:
        transformer: with caches or without.
        promoted: whether the run goes on with other tokens: MagCache then goes on counting, for its ratios belong to steps.
    """
    kept = []
    for manager in _managers(transformer):
        counts = {name: state.step_index for name, state in manager._state_cache.items() if isinstance(state, MagCacheState)}
        kept.append((manager, manager._context, counts if promoted else {}))
    for module, hook in _hooks(transformer):
        hook.reset_state(module)
    for manager, context, counts in kept:
        manager.set_context(context)
        for name, step in counts.items():
            manager._state_cache[name] = MagCacheState()
            manager._state_cache[name].step_index = step


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


def _registered(transformer: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each module that diffusers has hooked, with the hook."""
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for hook in () if registry is None else registry.hooks.values():
            yield module, hook


def _hooks(transformer: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the hooks that remember; those of offloading do not."""
    return (found for found in _registered(transformer) if found[1]._is_stateful)


def _managers(transformer: Any) -> list[Any]:
    """Return what keeps the hooks' states, one for each name of a cache context; hooks may share one."""
    values = (value for _, hook in _hooks(transformer) for value in vars(hook).values())
    return list({id(value): value for value in values if isinstance(value, StateManager)}.values())


def _states(transformer: Any) -> Iterator[Any]:
    """Yield what the hooks of a cache remember: one object per block and call, or one they share."""
    for manager in _managers(transformer):
        yield from manager._state_cache.values()
    for _, hook in _hooks(transformer):
        state = getattr(hook, "state", None)
        if state is not None:
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
