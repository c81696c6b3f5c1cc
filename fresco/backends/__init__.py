"""Model families, one file each, imported only when asked for. Source: DESIGN 1, 2."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fresco.errors import FrescoError

if TYPE_CHECKING:
    import torch

    from fresco.denoiser import Model

BACKENDS: dict[str, str] = {
    "sinopia": "fresco.backends.sinopia",
    "oracle": "fresco.backends.oracle",
    "flux-dev": "fresco.backends.flux_hub",
    "flux-schnell": "fresco.backends.flux_hub",
    "flux-lite": "fresco.backends.flux_hub",
}
"""Model name -> module with `load(device, dtype, revision) -> Model`."""

FAMILIES = ("fresco.backends.flux_hub",)
"""Modules with several checkpoints: their `load` also takes the keywords `name` and `folder`."""


class ModelError(FrescoError):
    """A model that cannot be loaded or run as asked; the message is one sentence for the user."""


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device: "auto" is CUDA when there is one, else the CPU.

    Raises:
        ModelError: on a name torch does not know, or a device that is not there.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ModelError(f"device is {device!r}; it must be auto, cpu, cuda or cuda:N") from None
    if found.type not in ("cpu", "cuda"):
        raise ModelError(f"device is {device!r}; it must be auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ModelError(f"device {device!r} is not there: this machine has {count} CUDA device(s); use auto or cpu")
    return found


def pick_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return a floating dtype from its name; None stays None, the backend's own choice.

    Raises:
        ModelError: on anything but float32, bfloat16 or float16.
    """
    import torch

    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is None or dtype in allowed.values():
        return dtype  # type: ignore[return-value]  # a value of `allowed` is a dtype
    if dtype not in allowed:
        raise ModelError(f"dtype is {dtype!r}; it must be one of {', '.join(allowed)}")
    return allowed[dtype]  # type: ignore[index]  # a key of `allowed` is a string


def load_model(
    name: str,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Model:
    """Load a model of the registry.

    Args:
        name: a name in BACKENDS; those that download also take a local folder, "flux-dev:/path".
        device: "auto" (CUDA when there is one, else CPU), "cpu", "cuda" or "cuda:N".
        dtype: weights' dtype; None is the backend's own choice. The sampler's state stays float32.
        revision: checkpoint revision, for backends that download.

    Raises:
        ModelError: on an unknown name, a device or dtype that cannot be had, or files that are missing or damaged.
    """
    base, _, folder = name.partition(":")
    if base not in BACKENDS:
        raise ModelError(f"unknown model {name!r}; choose one of {', '.join(BACKENDS)}")
    several = BACKENDS[base] in FAMILIES
    if folder and not several:
        able = ", ".join(other for other, module in BACKENDS.items() if module in FAMILIES)
        raise ModelError(f"{base} is not read from a folder; only {able} are")
    where, kind = pick_device(device), pick_dtype(dtype)
    options = {"name": base, "folder": folder or None} if several else {}
    model: Model = importlib.import_module(BACKENDS[base]).load(where, kind, revision, **options)
    return model
