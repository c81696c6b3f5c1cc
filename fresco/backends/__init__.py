"""Model families, one file each, imported only when asked for. Source: DESIGN 1, 2."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
    "sd3.5-medium": "fresco.backends.sd3",
    "sd3.5-large": "fresco.backends.sd3",
    "sd3.5-large-turbo": "fresco.backends.sd3",
    "qwen-image": "fresco.backends.qwen_image",
    "flux2-dev": "fresco.backends.flux2",
    "flux2-klein": "fresco.backends.flux2",
    "z-image-turbo": "fresco.backends.z_image",
    "hunyuan-video": "fresco.backends.hunyuan_video",
    "wan2.1-1.3b": "fresco.backends.wan",
    "wan2.2-ti2v-5b": "fresco.backends.wan",
    "wan2.2-t2v-a14b": "fresco.backends.wan",
    "ltx-video": "fresco.backends.ltx",
}
"""Model name -> module with `load(device, dtype, revision) -> Model`."""

BUNDLED = ("sinopia", "oracle")
"""Names whose `load` downloads nothing; that of all others also takes `name` and the options (`fresco.backends.hub`)."""

OPTIONS = ("quantize", "lora", "offload", "compile", "attention")
"""Further keywords of `load_model`, for models that download: those of `fresco.backends.hub.Options`."""


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
    **options: Any,
) -> Model:
    """Load a model of the registry.

    Args:
        name: a name in BACKENDS; those that download also take a local folder, "flux-dev:/path", or a single file with the
            transformer's weights, "flux-dev:/path/model.safetensors" or ".gguf".
        device: "auto" (CUDA when there is one, else CPU), "cpu", "cuda" or "cuda:N".
        dtype: weights' dtype; None is the backend's own choice. The sampler's state stays float32.
        revision: checkpoint revision, for backends that download.
        options: for those too: quantize, lora, offload, compile, attention; see `fresco.backends.hub.Options`.

    Raises:
        ModelError: on an unknown name, a device or dtype that cannot be had, or files that are missing or damaged.
    """
    base, _, folder = name.partition(":")
    if base not in BACKENDS:
        raise ModelError(f"unknown model {name!r}; choose one of {', '.join(BACKENDS)}")
    if folder and base in BUNDLED:
        raise ModelError(f"{base} is not read from a folder; only {', '.join(n for n in BACKENDS if n not in BUNDLED)} are")
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ModelError(f"unknown option(s) {', '.join(unknown)}; choose from {', '.join(OPTIONS)}")
    if options and base in BUNDLED:
        raise ModelError(f"{base} takes no option {', '.join(options)}; only the models that are downloaded do")
    where, kind = pick_device(device), pick_dtype(dtype)
    if base not in BUNDLED:
        options |= {"name": base, "folder": folder or None}
    model: Model = importlib.import_module(BACKENDS[base]).load(where, kind, revision, **options)
    return model
