"""Print the exact law of every transition on a Gaussian random field (METHOD 2.4), and Proposition 1."""

from __future__ import annotations

import argparse
from typing import Any

from fresco.cli import settings, show
from fresco.errors import FrescoError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `oracle`."""
    parser.add_argument("--grid", type=settings.size, default=(16, 16), help="ROWSxCOLS of the field, even")
    parser.add_argument("--exponent", type=float, default=1.25, help="spectrum (1 + k^2)^-exponent")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the rows of METHOD 2.4 and of Proposition 1."""
    from fresco.backends import oracle

    rows, cols = args.grid
    if not 2 <= rows * cols <= 1024 or min(rows, cols) < 1:
        raise FrescoError(f"grid {rows}x{cols} is out of range: the oracle is exact by dense matrices, 2 to 1024 cells")
    shape = (1, rows, cols)
    return {
        "shape": shape, "exponent": args.exponent, "rows": oracle.table(shape, args.exponent),
        "proposition": oracle.proposition(shape, args.exponent),
    }  # fmt: skip


def view(found: dict[str, Any]) -> None:
    """Print both tables."""
    show.table(found["rows"])
    print()
    show.table(found["proposition"])
