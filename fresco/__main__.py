"""`python -m fresco`: the library from a shell. Every command takes --json for programs."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a busy neighbour costs 10x otherwise

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fresco.config import EXPANSIONS, NOISES, POSITIONS, SELECTIONS, SIGNALS, TRANSITIONS, FrescoConfig
from fresco.errors import FrescoError


def _whole(text: str, parts: int, separator: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(separator))
    except ValueError:
        found = ()
    if len(found) != parts:
        raise argparse.ArgumentTypeError(f"{text!r} must be {parts} whole numbers joined by {separator!r}")
    return found


def _steps(text: str) -> tuple[int, ...]:
    return _whole(text, 3, ",")


def _size(text: str) -> tuple[int, ...]:
    return _whole(text, 2, "x")


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        first, *rest = row.values()
        cells = [f"{v:>12.4f}" if isinstance(v, float) else f"{v!s:>12}" for v in rest]
        print(f"{first if isinstance(first, str) else f'{first:g}':<60}" + "".join(cells))


def generate(args: argparse.Namespace) -> dict[str, Any]:
    """Make one picture; optionally save the trace, and compare with full resolution."""
    from PIL import Image

    from fresco.backends import load_model
    from fresco.metrics import psnr, ssim
    from fresco.record import full_step, run

    names = (
        "seed",
        "transition",
        "noise",
        "signal",
        "selection",
        "expansion",
        "frame",
        "window",
        "levels",
        "tau",
        "ratio",
    )
    changes = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    changes |= {"checks": args.checks if args.checks == "every" else int(args.checks)} if args.checks else {}
    changes |= {"guidance": args.guidance} if args.guidance is not None else {}
    changes |= {"size": (1, *args.size)} if args.size else {}
    preset = {"recommended": FrescoConfig.recommended, "paper": FrescoConfig.paper, "full": FrescoConfig.full}[args.preset]
    nfe = sum(args.steps) if args.steps else args.nfe
    config = preset(nfe, **({"stages": args.steps} if args.steps else {}) | changes)
    full = None if args.reference is None else config.as_full(args.reference)
    _check_writable(args.out, args.trace)
    model = load_model(args.model, device=args.device, dtype=args.dtype)
    print(f"{model.name} on {model.device}, {str(model.dtype).removeprefix('torch.')}", file=sys.stderr)
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
    Image.fromarray(picture[0]).save(args.out)
    if args.trace:
        trace.save(args.trace)
    return found


def _check_writable(picture: str, trace: str | None) -> None:
    """Refuse file names that cannot be written before any work is done."""
    from PIL import Image

    if Path(picture).suffix.lower() not in Image.registered_extensions():
        raise FrescoError(f"{picture} has no ending of a picture; use for example .png or .webp")
    for name in (picture, trace):
        if name and not Path(name).resolve().parent.is_dir():
            raise FrescoError(f"{name} lies in a folder that is not there; make the folder first")


def oracle(args: argparse.Namespace) -> dict[str, Any]:
    """Print the exact law of every transition on a Gaussian random field (METHOD 2.4), and Proposition 1."""
    from fresco.backends import oracle

    rows, cols = args.grid
    if not 2 <= rows * cols <= 1024 or min(rows, cols) < 1:
        raise FrescoError(f"grid {rows}x{cols} is out of range: the oracle is exact by dense matrices, 2 to 1024 cells")
    shape = (1, rows, cols)
    return {
        "shape": shape, "exponent": args.exponent, "rows": oracle.table(shape, args.exponent),
        "proposition": oracle.proposition(shape, args.exponent),
    }  # fmt: skip


def cost(args: argparse.Namespace) -> dict[str, Any]:
    """Print the FLOPs of a run from the model's shape alone."""
    from fresco import cost

    return cost.report(args.model, args.size, args.steps, args.ratio)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Make the bundled model: download, render, train, export; run again to go on."""
    from fresco.training import cli

    return cli.train(args)


def _parser() -> argparse.ArgumentParser:
    from fresco.training import cli  # argparse only

    parser = argparse.ArgumentParser(prog="python -m fresco", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        return sub

    sub = command(generate)
    sub.add_argument("prompt")
    sub.add_argument("--out", default="fresco.png")
    sub.add_argument("--trace", help="also save the run as an .npz trace")
    sub.add_argument("--model", default="sinopia")
    sub.add_argument("--device", default="auto", help="cuda, cpu or auto: CUDA when there is one")
    sub.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    sub.add_argument("--preset", choices=["recommended", "paper", "full"], default="recommended")
    sub.add_argument("--nfe", type=int, default=18)
    sub.add_argument("--steps", type=_steps, help="low,mixed,full")
    sub.add_argument("--size", type=_size, help="HEIGHTxWIDTH in pixels")
    sub.add_argument("--tau", type=float)
    sub.add_argument("--ratio", type=float)
    sub.add_argument("--seed", type=int)
    sub.add_argument("--window", type=int)
    sub.add_argument("--levels", type=int)
    sub.add_argument("--checks", choices=["1", "2", "3", "every"])
    sub.add_argument("--guidance", type=float)
    sub.add_argument("--reference", type=int, metavar="STEPS", help="also run full resolution with so many steps, and compare")
    for name, names in {
        "transition": TRANSITIONS, "noise": NOISES, "signal": SIGNALS, "selection": SELECTIONS,
        "expansion": EXPANSIONS, "frame": POSITIONS,
    }.items():  # fmt: skip
        sub.add_argument(f"--{name}", choices=names)

    sub = command(oracle)
    sub.add_argument("--grid", type=_size, default=(16, 16), help="ROWSxCOLS of the field, even")
    sub.add_argument("--exponent", type=float, default=1.25, help="spectrum (1 + k^2)^-exponent")

    sub = command(cost)
    sub.add_argument("--model", default="flux-dev")
    sub.add_argument("--size", type=_size, default=(1024, 1024), help="HEIGHTxWIDTH in pixels")
    sub.add_argument("--steps", type=_steps, default=(6, 7, 5), help="low,mixed,full")
    sub.add_argument("--ratio", type=float, default=0.4, help="share of the coarse tokens promoted")
    cli.add_arguments(command(train))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    args = _parser().parse_args(argv)
    try:
        found = args.run(args)
    except FrescoError as error:
        print(f"fresco: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(found))
    elif "rows" in found:
        _print_table(found["rows"])
        print()
        _print_table(found["proposition"])
    else:
        for name, value in found.items():
            print(f"{name:>24}: {value:.6g}" if isinstance(value, float) else f"{name:>24}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
