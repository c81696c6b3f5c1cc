"""What a person reads instead of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[dict[str, Any]], first: int = 60, width: int = 12) -> None:
    """Print rows of one shape under their names."""
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        name, *rest = row.values()
        cells = [f"{v:>{width}.4f}" if isinstance(v, float) else f"{'' if v is None else v!s:>{width}}" for v in rest]
        print(f"{name if isinstance(name, str) else f'{name:g}':<{first}}" + "".join(cells))


def pairs(found: dict[str, Any]) -> None:
    """Print names and values."""
    for name, value in found.items():
        print(f"{name:>24}: {value:.6g}" if isinstance(value, float) else f"{name:>24}: {value}")
