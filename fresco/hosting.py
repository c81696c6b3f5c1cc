"""Where a page runs: a CPU, a GPU of its own, or ZeroGPU, which lends one for the seconds of a run. No user interface here.

On ZeroGPU this module must be imported before torch touches CUDA: `spaces` stands in for it. Weights go to "cuda" when the app
starts; only functions wrapped by `gpu` really have a GPU, in a forked process, so they yield NumPy arrays, bytes and numbers.
Source: GRADIO (Spaces).
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fresco.config import FrescoConfig
from fresco.cost import mixed_tokens, same_flops_steps
from fresco.errors import FrescoError
from fresco.grid import coarse_shape

ZERO_ENV = "SPACES_ZERO_GPU"
ZERO_FLOPS = 200e12  # a second, of a ZeroGPU slice (3/7 of an H200) on bf16 transformers: about half its peak
ZERO_SETUP = 8.0  # seconds to fetch the weights into the process, encode the prompt and decode the picture
ZERO_MARGIN = 1.3  # a run that takes longer than it asked for is cut off
ZERO_LONGEST = 120  # seconds that a visitor without an account has a day


def _spaces() -> Any:
    """Return the package `spaces` on ZeroGPU, else None: elsewhere it is not needed."""
    if os.environ.get(ZERO_ENV, "").lower() not in ("1", "t", "true"):
        return None
    try:
        import spaces
    except ImportError:
        raise FrescoError("this Space runs on ZeroGPU, but the package spaces is missing; add it to requirements.txt") from None
    return spaces


_SPACES = _spaces()  # now, before torch touches CUDA


def on_zero() -> bool:
    """Return whether this process runs on ZeroGPU."""
    return _spaces() is not None


@dataclass(frozen=True)
class Hardware:
    """What a page runs on.

    Attributes:
        kind: "ZeroGPU", "GPU" or "CPU".
        sentence: for the page.
        device: for `load_model`.
    """

    kind: str
    sentence: str
    device: str


def hardware() -> Hardware:
    """Return what this process runs on, and what that means for a visitor."""
    import torch

    if on_zero():
        name = torch.cuda.get_device_name()
        return Hardware("ZeroGPU", f"ZeroGPU ({name}): a GPU is lent for each run, out of the visitor's daily quota.", "cuda")
    if torch.cuda.is_available():
        has = torch.cuda.get_device_properties(0)
        return Hardware("GPU", f"{has.name}, {has.total_memory / 1e9:.0f} GB.", "cuda")
    return Hardware(
        "CPU", f"CPU, {os.cpu_count()} cores: live runs of the small bundled model, and recorded runs of the others.", "cpu"
    )  # fmt: skip


def run_flops(model: Any, config: FrescoConfig, reference: str = "none") -> float:
    """Return about how many FLOPs a run and its full-resolution reference take; nothing runs, and no GPU is needed.

    In the mixed stage tokens are taken to rise evenly from the ratio, or from half where tau decides, to all.

    Args:
        model: a loaded model.
        config: the settings.
        reference: a name in `fresco.config.REFERENCES`.
    """
    if not hasattr(model, "transformer"):
        return 0.0  # the oracle is a formula
    frames, height, width = config.size or model.native_size
    edge = getattr(model, "pixels_per_token", None) or model.shape.pixels_per_token
    stride = getattr(model, "frame_stride", 1)
    fine = (1 + (frames - 1) // stride, height // edge, width // edge)
    full, coarse = math.prod(fine), math.prod(coarse_shape(fine, config.levels))
    share = (1 + (0.5 if config.ratio is None else config.ratio)) / 2
    low, mixed, last = config.split
    own = low * model.flops(coarse) + mixed * model.flops(mixed_tokens(coarse, round(share * coarse), full))
    own += (last + config.head) * model.flops(full)
    steps = {"full at 50": 50, "same NFE": config.nfe}.get(reference, 0)
    if reference == "same FLOPs":
        steps = same_flops_steps(own, model.flops(full))
    guidance = config.guidance if config.guidance is not None else _default_guidance(model)
    calls = 1 if model.transformer.config.get("guidance_embeds") or guidance == 1 else 2
    return float(calls * (own + steps * model.flops(full)))


def _default_guidance(model: Any) -> float:
    return float(model.which.guidance if hasattr(model, "which") else model.default_guidance)


def seconds(flops: float) -> int:
    """Return the seconds to ask ZeroGPU for: the work at ZERO_FLOPS, some margin, and what comes before and after.

    Raises:
        FrescoError: where it is more than a visitor may ask for.
    """
    found = math.ceil(ZERO_MARGIN * flops / ZERO_FLOPS + ZERO_SETUP)
    if found > ZERO_LONGEST:
        raise FrescoError(
            f"this run would take about {found} seconds of GPU, more than the {ZERO_LONGEST} that a visitor has a day; use "
            "fewer steps, a smaller size or no reference"
        )
    return found


F = TypeVar("F", bound=Callable[..., Any])


def gpu(duration: Callable[..., int]) -> Callable[[F], F]:
    """Return a decorator: on ZeroGPU a generator has a GPU for the seconds that `duration` names; elsewhere it is as it was.

    Args:
        duration: (the generator's own arguments) -> seconds, for example by `run_flops` and `seconds`.

    Raises:
        TypeError: on what is no plain generator function: only those stream from ZeroGPU, and stop within a step.
    """

    def wrap(generator: F) -> F:
        if not inspect.isgeneratorfunction(generator):
            raise TypeError(f"{getattr(generator, '__name__', generator)!r} is no generator function; yield each step's data")
        spaces = _spaces()
        return generator if spaces is None else spaces.GPU(duration=duration)(generator)  # type: ignore[no-any-return]

    return wrap


def explain(error: BaseException) -> str | None:
    """Return one sentence for a visitor on why a run could not be made; None for an error that nobody foresaw.

    A `FrescoError` says it itself: HF_TOKEN missing, licence not accepted, memory, settings. ZeroGPU's own errors come with a
    title and a message.
    """
    if isinstance(error, FrescoError):
        return str(error)
    said = f"{getattr(error, 'title', '')} {getattr(error, 'message', '') or error}".lower()
    for words, sentence in _ZERO_SENTENCES.items():
        if any(word in said for word in words):
            return sentence
    return None


_ZERO_SENTENCES = {
    ("illegal duration", "larger than the maximum"): (
        "The run asks for more GPU time than ZeroGPU gives a visitor at once: use fewer steps, a smaller size or no reference."
    ),
    ("quota exceeded", "credits exceeded", "exceeded your", "gpu limit"): (
        "The daily ZeroGPU quota is used up: sign in to Hugging Face for more, come back later, or look at the recorded runs."
    ),
    ("task aborted", "worker error"): (
        "ZeroGPU stopped the run before it was finished: try again, with fewer steps if it happens twice."
    ),
    ("no gpu", "gpu is currently available"): "ZeroGPU has no free GPU at the moment: try again in a minute.",
}  # fmt: skip
