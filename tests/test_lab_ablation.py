"""The ablation: every row differs from the base in what it says and in nothing else."""

import pytest

from fresco.backends.oracle import OracleModel
from fresco.config import FrescoConfig
from fresco.lab.ablation import MORE, ROWS, cells
from fresco.lab.sweep import sweep
from fresco.record import References

BASES = {
    "paper": FrescoConfig.paper(18),
    "recommended": FrescoConfig.recommended(18),
    "tau": FrescoConfig.recommended(18, tau=0.004),
    "at every step": FrescoConfig.recommended(18, transition="carry", checks="every"),
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_rows_differ_from_the_base_in_exactly_what_they_say(base):
    plain = base.to_json()
    for cell in cells(base, ROWS + MORE):
        other = cell.config.to_json()
        changed = {name: other[name] for name in plain if other[name] != plain[name]}
        assert changed == cell.coords, cell.label
        row = next(row for row in ROWS + MORE if row.name == cell.label)
        assert {name: cell.coords[name] for name in row.overrides} == row.overrides
        companions = set(cell.coords) - set(row.overrides)
        assert companions <= {"checks", "tau", "ratio"}
        assert ("tau" in companions) == (base.tau is not None and cell.config.selection not in ("variance", "variance_high"))
        often = base.checks == "every" and cell.config.transition != "carry"
        assert ("checks" in companions) == (often or (cell.config.transition == "rewind" and base.checks != 1))


def test_the_papers_rows_on_the_papers_preset_are_single_switches():
    found = {cell.label: cell.coords for cell in cells(BASES["paper"])}
    assert found == {
        "full method": {},
        "random": {"selection": "random"},
        "edge": {"selection": "edge"},
        "attention": {"selection": "attention"},
        "without unified noise": {"noise": "fresh"},
        "interpolation": {"expansion": "bilinear"},
    }


def test_a_switch_that_is_on_already_is_left_out():
    labels = [cell.label for cell in cells(FrescoConfig.paper(18, selection="random"), ROWS + MORE)]
    assert "random" not in labels
    assert "signal z" not in labels
    assert "signal x0" in labels


def test_all_rows_that_the_model_can_serve_run_and_differ():
    model, base = OracleModel(), FrescoConfig.recommended(8, size=(1, 16, 16), seed=2)
    rows = cells(base, ROWS + MORE, model.bind(base))
    assert "attention" not in [cell.label for cell in rows]
    assert "attention" in [cell.label for cell in cells(base)]
    results = {r.label: r for r in sweep(model, "fox", rows, kept=References(), preview_every=0)}
    assert list(results) == [cell.label for cell in rows]
    full = results.pop("full method").picture
    positions = {"frame coarse", "frame fine", "frame phase-aligned"}  # which mean nothing to the oracle
    # With one pixel a token the packed vector is its only latent pixel, so copying it is the same thing.
    same = {name for name, result in results.items() if (result.picture == full).all()}
    assert same == positions | {"hadamard, packed token"}
