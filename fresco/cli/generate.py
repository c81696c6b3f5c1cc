"""Make one picture; optionally save the trace, and compare with full resolution."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fresco.cli import settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `generate`."""
    parser.add_argument("prompt")
    parser.add_argument("--out", default="fresco.png")
    parser.add_argument("--trace", help="also save the run as an .npz trace")
    settings.add_model(parser)
    settings.add_settings(parser)
    parser.add_argument(
        "--reference", type=int, metavar="STEPS", help="also run full resolution with so many steps, and compare"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run, write the picture, return what it cost."""
    from fresco import picture as files
    from fresco.metrics import psnr, ssim
    from fresco.record import full_step, run

    config = settings.from_arguments(args)
    full = None if args.reference is None else config.as_full(args.reference)
    files.check(args.out, config.size[0] if config.size else 1)
    if args.trace:
        files.check_folder(args.trace)
    model = settings.load(args)
    print(f"{model.name} on {model.device}, {str(model.dtype).removeprefix('torch.')}", file=sys.stderr)
    files.check(args.out, config.size[0] if config.size else getattr(model, "native_size", (1,))[0])
    trace = run(model, args.prompt, config, preview_every=1 if args.trace else 0)
    picture = trace.picture
    assert picture is not None  # the last step always decodes
    step = full_step(model, config)
    found: dict[str, Any] = {
        "picture": args.out, "model": model.name, "device": str(model.device), "config": config.to_json(),
        "tokens": [len(e.grid) for e in trace.events], "tflops": trace.flops / 1e12, "seconds": trace.seconds,
        "speedup_flops_50": 50 * step / trace.flops, "speedup_flops_same_nfe": config.nfe * step / trace.flops,
    }  # fmt: skip
    if full is not None:
        reference = run(model, args.prompt, full, preview_every=0)
        assert reference.picture is not None
        found |= {
            "reference_steps": full.nfe, "reference_seconds": reference.seconds,
            "psnr": psnr(picture, reference.picture), "ssim": ssim(picture, reference.picture),
        }  # fmt: skip
    files.save(args.out, picture, getattr(model, "frame_rate", files.FRAME_RATE))
    if args.trace:
        trace.save(args.trace)
    return found
