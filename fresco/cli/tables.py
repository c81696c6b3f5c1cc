"""Print the paper's tables: published, measured again by its sibling, ours (the bundled model, or a folder of `evaluate`)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fresco.cli import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tables`."""
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="a folder of `evaluate` for our column")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the tables."""
    from fresco.lab import tables

    return tables.report(args.results)


def view(found: dict[str, Any]) -> None:
    """Print one table after the other; a cell is published / measured again / ours."""
    print(f"published / measured again / ours ({found['ours']})")
    for table in found["tables"]:
        names = [n for n in dict.fromkeys(n for row in table["rows"] for n in row) if n not in ("method", "nfe", "source")]
        print(f"\n{table['table']}. {table['title']}\n")
        rows = []
        for row in table["rows"]:
            triples = {name: _said(row.get(name, [None] * 3)) for name in names}
            rows.append({"method": row["method"], "NFE": row["nfe"], **triples})
        show.table(rows, 26, 27)


def _said(triple: list[float | None]) -> str:
    """Return published numbers as they stand, and ours to three figures."""
    return " / ".join("-" if v is None else f"{v:.3g}" if k == 2 else f"{v:g}" for k, v in enumerate(triple))
