"""Whether a downloaded model works on this machine: equal to stock in full, and as fast as its FLOPs say. Source: METHOD 1, 4.

`python -m fresco check --model flux-dev[:folder]`. Two questions with an exit code: is a full-resolution run the stock
pipeline's, and is a Fresco run deterministic and finite? And a table, without one, since speed is the machine's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fresco.config import FrescoConfig
from fresco.errors import FrescoError
from fresco.metrics import SSIM_SIDE, psnr, ssim
from fresco.record import run
from fresco.trace import Trace

PROMPT = "a red fox in the snow, golden hour, photograph"
REFERENCE_NFE, NFE, STOCK_STEPS = 50, 18, 4
PUBLISHED_SHARE = 4.51 / 4.72  # latency speed-up over FLOPs speed-up at NFE 18 on FLUX.1-dev (METHOD 1)


def check(
    model: Any, prompt: str = PROMPT, size: tuple[int, int, int] | None = None, nfe: int = NFE,
    reference: int = REFERENCE_NFE, tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Return what was found, as a JSON-able dict; "well" says whether all is as it should be.

    Args:
        model: a downloaded model, with the stock pipeline in `pipe`.
        prompt: what is drawn.
        size: (frames, height, width) in pixels; None is the model's.
        nfe: model calls of the Fresco run.
        reference: steps of the full-resolution run it is compared with.
        tell: takes a line of progress.

    Raises:
        FrescoError: where the model has no stock pipeline to compare with.
    """
    if not hasattr(model, "pipe"):
        raise FrescoError(f"{model.name} has no stock pipeline to be checked against; check a downloaded model, like flux-dev")
    size = size or model.native_size
    tell(f"{model.name} on {model.device}; {model.needs}")
    tell(f"the stock pipeline and fresco.enable, {STOCK_STEPS} full steps each")
    differs = _against_stock(model, prompt, size)
    wanted = {
        f"full, {reference}": FrescoConfig.full(reference, size=size),
        f"full, {nfe}": FrescoConfig.full(nfe, size=size),
        f"Fresco, {nfe}": FrescoConfig.recommended(nfe, size=size),
    }
    tell("warming up, and one run twice")
    short = FrescoConfig.recommended(STOCK_STEPS, size=size)
    first, again = (_picture(run(model, prompt, short, preview_every=0)) for _ in range(2))
    repeatable = bool(np.array_equal(first, again))
    traces = {}
    for name, config in wanted.items():
        tell(name)
        traces[name] = run(model, prompt, config, preview_every=0)
    whole = traces[f"full, {reference}"]
    rows = [_row(name, trace, whole) for name, trace in traces.items()]
    finite = all(_picture(trace).std() > 0 for trace in traces.values())  # a run of numbers that are none has raised by now
    questions = {"equal to the stock pipeline": differs == 0, "repeatable": repeatable, "pictures are not flat": finite}
    return {
        "model": model.name, "provenance": model.provenance, "device": _device(model.device), "dtype": str(model.dtype),
        "size": list(size), "prompt": prompt, "stock_difference": differs, "questions": questions, "rows": rows,
        "published_share": PUBLISHED_SHARE, "well": all(questions.values()),
    }  # fmt: skip


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _picture(trace: Trace) -> Any:
    assert trace.picture is not None  # a whole run ends with one
    return trace.picture


def _row(name: str, trace: Trace, whole: Trace) -> dict[str, Any]:
    """Return one row of the table: cost, speed-ups over the reference, and likeness to its picture."""
    one, other = _picture(trace), _picture(whole)
    flops, faster = whole.flops / trace.flops, whole.seconds / trace.seconds
    large = min(one.shape[1:3]) >= SSIM_SIDE
    return {
        "run": name, "seconds": trace.seconds, "TFLOPs": trace.flops / 1e12, "FLOPs x": flops, "seconds x": faster,
        "share": faster / flops, "PSNR": None if trace is whole else psnr(one, other),
        "SSIM": ssim(one, other) if large and trace is not whole else None,
    }  # fmt: skip


def _against_stock(model: Any, prompt: str, size: tuple[int, int, int]) -> float:
    """Return the largest difference between the stock pipeline's latents and those of the same call under Fresco in full."""
    import fresco

    pipe = model.pipe
    given: dict[str, Any] = {
        "height": size[1], "width": size[2], "num_inference_steps": STOCK_STEPS, "output_type": "latent",
    }  # fmt: skip
    given |= {"num_frames": size[0]} if size[0] > 1 else {}

    def made() -> torch.Tensor:
        output = pipe(prompt, **given, generator=torch.Generator("cpu").manual_seed(0), return_dict=False)[0]
        return torch.as_tensor(output).float()

    stock = made()
    with fresco.enable(pipe, FrescoConfig.full(STOCK_STEPS)):
        ours = made()
    if not torch.isfinite(stock).all():
        raise FrescoError(f"the stock pipeline itself returned numbers that are not finite in {model.dtype}; try float32")
    return float((stock - ours).abs().max())
