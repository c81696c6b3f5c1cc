"""The paper's ablation, and the further switches of this project, each as one setting changed. Source: METHOD 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fresco.config import FrescoConfig
from fresco.denoiser import AttentionDenoiser, Denoiser
from fresco.lab.sweep import Cell

RATIO = 0.4  # the paper's, for rules that cannot be driven by tau (METHOD 1)


@dataclass(frozen=True)
class Row:
    """One switch.

    Attributes:
        name: what it is called.
        sentence: what it does, in one sentence.
        overrides: the settings it changes.
    """

    name: str
    sentence: str
    overrides: dict[str, Any] = field(default_factory=dict)


ROWS: tuple[Row, ...] = (
    Row("full method", "Nothing changed."),
    Row("random", "Tokens go in random order.", {"selection": "random"}),
    Row("edge", "Tokens with the strongest edges in the clean estimate go first.", {"selection": "edge"}),
    Row("attention", "The most attended tokens go first.", {"selection": "attention"}),
    Row("without unified noise", "Noise at a switch is drawn afresh instead of read from the field.", {"noise": "fresh"}),
    Row(
        "interpolation", "Children are interpolated from their parents, without noise of their own.", {"expansion": "bilinear"}
    ),
)
"""The paper's ablation: its base and five switches, in its order."""

MORE: tuple[Row, ...] = (
    Row("high variance first", "The least settled tokens go first, as in AViTS.", {"selection": "variance_high"}),
    Row("attention and variance", "Attended, unsettled tokens go first: AViTS' score.", {"selection": "attention_variance"}),
    Row("even", "Tokens go in an even spread over the picture.", {"selection": "even"}),
    Row("all at once", "All tokens go at the first check: no mixed stage.", {"selection": "all"}),
    Row("signal x0", "Variance of the clean estimate.", {"signal": "x0"}),
    Row("signal z", "Variance of the noisy state, as in the paper.", {"signal": "z"}),
    Row("signal channel", "Variance across the channels of the newest estimate.", {"signal": "channel"}),
    Row("carry", "Promote without going back in sigma.", {"transition": "carry"}),
    Row("rewind", "Expand exactly and move kept tokens back along their own path.", {"transition": "rewind"}),
    Row("renoise", "Expand exactly and re-noise kept tokens with the field, the paper's Eq. 4.", {"transition": "renoise"}),
    Row("renoise x0", "Noise every clean estimate anew with the field.", {"transition": "renoise_x0"}),
    Row("restart", "Noise every clean estimate anew with fresh noise, as most other methods do.", {"transition": "restart"}),
    Row("redraw", "Noise every clean estimate anew with fresh noise, at the same sigma.", {"transition": "redraw"}),
    Row("hadamard, packed token", "Eq. 8 as printed: the packed token is copied.", {"expansion": "hadamard_token"}),
    Row("nearest", "Children copy their parent, without noise of their own.", {"expansion": "nearest"}),
    Row("lanczos", "Children are interpolated more sharply, without noise of their own.", {"expansion": "lanczos"}),
    Row("frame coarse", "Mixed tokens at coarse positions, as in RALU.", {"frame": "coarse"}),
    Row("frame fine", "Mixed tokens at fine positions.", {"frame": "fine"}),
    Row("frame phase-aligned", "Every query sees positions in its own stride.", {"frame": "phase_aligned"}),
    Row("detail gain", "Details are raised for the signal power that a coarse token lacks.", {"detail_gain": 0.27}),
)
"""Further switches; the source of each is in METHOD 2.1 to 2.5."""


def _settings(base: FrescoConfig, row: Row) -> dict[str, Any]:
    """Return the row's settings, and those that it cannot run without."""
    changes = dict(row.overrides)
    rule = changes.get("selection", base.selection)
    if base.tau is not None and rule not in ("variance", "variance_high"):
        changes |= {"tau": None, "ratio": RATIO}
    moved = changes.get("transition", "carry")
    if (moved != "carry" and base.checks == "every") or moved == "rewind":  # it has no way back above an earlier promotion
        changes["checks"] = 1
    return {name: value for name, value in changes.items() if getattr(base, name) != value}


def cells(base: FrescoConfig, rows: Sequence[Row] = ROWS, denoiser: Denoiser | None = None) -> list[Cell]:
    """Return the base and every switch that changes it, one at a time.

    A cell's coords are exactly the settings in which it differs from the base: the switch itself, `ratio` for `tau`
    where a rule cannot be driven by tau, one check where the transition cannot promote as often as the base. A switch that
    the base already has on is left out.

    Args:
        base: the full method.
        rows: which switches; ROWS is the paper's ablation, MORE are this project's.
        denoiser: where given, rules that it cannot serve are left out (those that look at attention where it reports none).
    """
    found = []
    for row in rows:
        coords = _settings(base, row)
        config = base.replace(**coords)
        served = denoiser is None or isinstance(denoiser, AttentionDenoiser) or not config.watches_attention
        if served and (coords or not row.overrides):
            found.append(Cell(coords, row.name, config))
    return found
