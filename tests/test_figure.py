"""The paper-style figure: which steps it shows, at which cost the reference stands, and what is drawn where."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import Rectangle
from PIL import Image

from fresco.backends.oracle import OracleModel
from fresco.config import FrescoConfig
from fresco.record import run
from viz import figure, style

MODEL = OracleModel(shape=(1, 9, 10))


@pytest.fixture(scope="module")
def trace():
    return run(MODEL, "fox", FrescoConfig.recommended(nfe=12, tau=0.02))


@pytest.fixture(scope="module")
def reference():
    return run(MODEL, "fox", FrescoConfig.full(9))


def with_costs(trace, costs):
    """Return a trace whose steps cost what is asked, to the number."""
    events = [dataclasses.replace(trace.events[k % len(trace.events)], step=k, flops=float(c)) for k, c in enumerate(costs)]
    return dataclasses.replace(trace, events=events)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 120))
def test_the_reference_stands_at_its_last_step_that_was_paid(reference, costs, budget):
    """Law: UI-ANCHORS: equal cost is the last finished step within the budget; before the first, the first."""
    shown = figure.at_cost(with_costs(reference, costs), budget).step
    paid = [k for k in range(len(costs)) if sum(costs[: k + 1]) <= budget]
    assert shown == (paid[-1] if paid else 0)


@given(st.integers(2, 30))
def test_picks_include_the_ends_and_the_first_promotion(trace, columns):
    steps = figure.pick(trace, columns)
    first = next(e.step for e in trace.events if e.selected.any())
    assert steps == sorted(set(steps))
    assert {0, 11} <= set(steps)
    assert len(steps) <= max(columns, 3)
    if columns > 2:
        assert first in steps


def test_a_full_run_has_no_promotion_to_pick(reference):
    assert figure.pick(reference, 4) == [0, 3, 5, 8]
    assert figure.pick(reference, 99) == list(range(9))


def test_the_rows_show_what_they_say(trace, reference):
    drawn = figure.draw(trace, reference, columns=5)
    steps = figure.pick(trace, 5)
    axes = np.array(drawn.axes).reshape(4, len(steps))
    spent, total = 0.0, reference.flops
    for column, step in enumerate(steps):
        event = trace.events[step]
        spent = sum(e.flops for e in trace.events[: step + 1])
        assert f"step {step + 1} ({event.stage}, {100 * spent / total:.0f} %)" == axes[0, column].get_title()
        assert np.array_equal(axes[0, column].images[0].get_array(), event.preview[0])
        heat = axes[1, column].images[0].get_array()
        for r in range(9):
            for c in range(10):
                v = event.variance[event.grid.cells()[0, r, c]]
                unit = np.clip(np.log(v / 1e-5) / np.log(0.1 / 1e-5), 0, 1)
                want = np.full(3, 160) if np.isnan(v) else np.array(mpl.colormaps["viridis"](unit)[:3]) * 255
                assert np.abs(heat[r, c].astype(float) - want).max() <= 3
        boxes = [p for p in axes[2, column].patches if isinstance(p, Rectangle)]
        assert len(boxes) == len(event.grid) + int(event.selected.sum())
        assert sum(bool(p.get_hatch()) for p in boxes) == event.selected.sum()
        area = sum(p.get_width() * p.get_height() for p in boxes if not p.get_hatch())
        cells = sum(4.0 ** (event.grid.levels - event.grid.level))
        assert area == pytest.approx(cells / 90 * trace.picture.shape[1] * trace.picture.shape[2])
        want = figure.at_cost(reference, spent).preview[0]
        assert np.array_equal(axes[3, column].images[0].get_array(), want)
    assert f"{total / trace.flops:.2f} times fewer FLOPs than 9 full steps" in drawn.get_suptitle()
    assert "tau 0.02" in drawn.get_suptitle()


def test_without_a_reference_no_saving_is_claimed(trace):
    drawn = figure.draw(trace, columns=3)
    assert "fewer" not in drawn.get_suptitle()
    assert len(drawn.axes) == 9


def test_skipped_previews_show_the_one_before(trace):
    thin = dataclasses.replace(
        trace, events=[e if k in (0, 11) else dataclasses.replace(e, preview=None) for k, e in enumerate(trace.events)]
    )
    drawn = figure.draw(thin, columns=4)
    assert np.array_equal(drawn.axes[1].images[0].get_array(), trace.events[0].preview[0])


def test_a_reference_without_previews_between_still_draws(trace, reference):
    thin = dataclasses.replace(
        reference, events=[e if k == 8 else dataclasses.replace(e, preview=None) for k, e in enumerate(reference.events)]
    )
    drawn = figure.draw(trace, thin, columns=3)
    assert len(drawn.axes) == 12


def test_a_run_without_pictures_is_refused_in_words(trace):
    bare = dataclasses.replace(trace, events=[dataclasses.replace(e, preview=None) for e in trace.events])
    with pytest.raises(ValueError, match="preview"):
        figure.draw(bare)


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml"), ("webp", b"RIFF")])
def test_the_ending_of_the_name_says_how(trace, tmp_path, ending, magic):
    path = tmp_path / f"figure.{ending}"
    figure.save(figure.draw(trace, columns=3), path, dpi=60)
    assert path.read_bytes().startswith(magic)
    if ending == "png":
        assert np.asarray(Image.open(path).convert("L")).std() > 10  # not an empty sheet


def test_heat_is_dark_where_settled_and_grey_where_undefined():
    got = style.heat(np.array([1e-9, 1e-5, 1e-3, 0.1, 9.0, np.nan]), 1e-5, 0.1)
    assert got[0].tolist() == got[1].tolist()
    assert got[3].tolist() == got[4].tolist()
    assert got[5].tolist() == [160, 160, 160]
    light = got[:5].astype(int).sum(axis=1)
    assert light[1] < light[2] < light[3]
