"""Check a downloaded model on this machine: equal to the stock pipeline, repeatable; with a table of speed and likeness."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fresco.cli import settings, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    settings.add_model(parser)
    parser.set_defaults(model="flux-dev")
    parser.add_argument("--prompt", help="what is drawn")
    parser.add_argument("--size", type=settings.size, help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--nfe", type=int, default=18)
    parser.add_argument("--reference", type=int, default=50, metavar="STEPS", help="full-resolution steps to compare with")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Load the model and return what was found; "well" decides the exit code."""
    from fresco.check import PROMPT, check

    model = settings.load(args)
    size = (1, *args.size) if args.size else None
    return check(
        model, args.prompt or PROMPT, size, args.nfe, args.reference, tell=lambda line: print(line, file=sys.stderr)
    )  # fmt: skip


def view(found: dict[str, Any]) -> None:
    """Print the answers and the table."""
    rows = found["rows"]
    height, width = found["size"][1:]
    print(f"{found['model']} on {found['device']}, {found['dtype']}, {height} x {width}; {found['provenance']}")
    for question, answer in found["questions"].items():
        print(f"{question:>32}: {'yes' if answer else 'NO'}")
    show.table(rows, first=16)
    print(f"share: of the FLOPs speed-up, in seconds; published at NFE 18 on FLUX.1-dev: {found['published_share']:.3f}")
    print("all is well" if found["well"] else "something is wrong: see the NO above")
