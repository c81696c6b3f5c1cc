"""Position tables read between their rows, the rows themselves bit for bit. Source: METHOD 2.5; MODELS."""

from __future__ import annotations

import torch


def interpolated(table: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Return table values at fractional places, linear along both axes; at integer places the rows themselves.

    A sinusoid that turns by w from one row to the next is off by at most w^2/8 between them. Places beyond the table are
    its border.

    Args:
        table: (rows, cols, D).
        at: (N, 2) float32, (row, col).

    Returns:
        (N, D) in the table's dtype.
    """
    edge = torch.tensor([side - 1 for side in table.shape[:2]], device=at.device)
    low = at.floor().clamp(min=torch.zeros_like(edge), max=edge)
    part = (at - low).clamp(0, 1)[..., None]
    row, col = low.long().unbind(1)
    next_row, next_col = torch.minimum(low.long() + 1, edge).unbind(1)

    def along(row: torch.Tensor) -> torch.Tensor:
        left, right = table[row, col].float(), table[row, next_col].float()
        return left + part[:, 1] * (right - left)

    top, bottom = along(row), along(next_row)
    return (top + part[:, 0] * (bottom - top)).to(table.dtype)


def turned(table: torch.Tensor, at: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """Return rotary factors at fractional places: the row below, turned on by the rest; exact, the rows bit for bit.

    Args:
        table: (P, F) complex, `exp(i p rate_f)` at p = 0 .. P-1.
        at: (N,) float32 places; beyond the table they are turned on from its ends.
        rates: (F,) radians per unit.

    Returns:
        (N, F) in the table's dtype.
    """
    row = at.floor().clamp(0, len(table) - 1)
    angle = torch.outer(at - row, rates.to(at.device, torch.float32))
    return table[row.long()] * torch.polar(torch.ones_like(angle), angle).to(table.dtype)
