"""Print the FLOPs of a run from the model's shape alone."""

from __future__ import annotations

import argparse
from typing import Any

from fresco.cli import settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cost`."""
    parser.add_argument("--model", default="flux-dev")
    parser.add_argument("--size", type=settings.size, default=(1024, 1024), help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--steps", type=settings.steps, default=(6, 7, 5), help="low,mixed,full")
    parser.add_argument("--ratio", type=float, default=0.4, help="share of the coarse tokens promoted")
    parser.add_argument("--baseline", help="a name in fresco.baselines, such as ralu-18, beside its published FLOPs")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the report."""
    from fresco import cost

    if args.baseline:
        from fresco import baselines

        return baselines.report(args.baseline, args.size)
    return cost.report(args.model, args.size, args.steps, args.ratio)
