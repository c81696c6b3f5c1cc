"""The numbers in the figures: what is drawn is what was measured, and the front and the curve are where they should be."""

import io
import json
import math

import numpy as np
import plotly.io as pio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from viz import charts


def point(key, cost, psnr, group="", ssim=0.5):
    return {
        "key": key, "label": f"run {key}", "group": group, "full_steps": cost, "speedup": 50 / cost, "psnr": psnr, "ssim": ssim,
    }  # fmt: skip


POINTS = [
    point("a", 3.0, 15.0, "tau 1"), point("b", 5.0, 18.0, "tau 1"), point("c", 4.0, 14.0, "tau 2"),
    point("d", 6.0, 17.0, "tau 2"), point("e", 8.0, 21.0, "tau 2"),
]  # fmt: skip
CURVE = [point("f8", 8, 28.0), point("f4", 4, 24.0), point("f50", 50, math.inf)]


def traces(figure):
    """Return the figure's lines by name as a browser gets them: through JSON."""
    return {t["name"]: t for t in json.loads(pio.to_json(figure))["data"]}


def listed(values):
    """Return plain numbers; Plotly may send arrays packed."""
    return [None if v is None else float(v) for v in values]


# ------------------------------------------------------------------------------------------------------------ cost, quality


def test_the_front_is_what_nobody_beats():
    assert charts.front(POINTS) == ["a", "b", "e"]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_front_by_definition(pairs):
    """Law: on the front is who has no other run that costs no more, is no worse, and is better in one."""
    points = [point(str(k), float(cost), float(psnr)) for k, (cost, psnr) in enumerate(pairs)]
    places = {(p["full_steps"], p["psnr"]) for p in points}
    beaten = {a for a in places for b in places if b != a and b[0] <= a[0] and b[1] >= a[1]}
    found = [p for key in charts.front(points) for p in points if p["key"] == key]
    assert [(p["full_steps"], p["psnr"]) for p in found] == sorted(places - beaten)


def test_what_cannot_be_compared_is_not_on_the_front():
    assert charts.front([point("x", 1.0, None), point("y", 2.0, math.inf), point("z", 3.0, 9.0)]) == ["z"]


def test_the_curve_is_read_between_its_points_and_not_beyond():
    assert charts.at_cost(CURVE, 5.0) == pytest.approx(25.0)
    assert charts.at_cost(CURVE, 8.0) == 28.0
    assert charts.at_cost(CURVE, 3.9) is None
    assert charts.at_cost(CURVE, 9.0) is None  # the 50-step point is infinitely like itself: no line to it
    assert charts.at_cost([], 5.0) is None


def test_a_pareto_chart_holds_every_run_where_it_is():
    drawn = traces(charts.pareto(POINTS, CURVE))
    assert set(drawn) == {"Pareto front", "full resolution", "tau 1", "tau 2"}
    assert listed(drawn["full resolution"]["x"]) == [4, 8]
    assert listed(drawn["full resolution"]["y"]) == [24, 28]
    assert listed(drawn["tau 2"]["x"]) == [4, 6, 8]
    assert listed(drawn["tau 2"]["y"]) == [14, 17, 21]
    assert drawn["tau 2"]["customdata"] == ["c", "d", "e"]  # what a click opens
    assert drawn["Pareto front"]["customdata"] == ["a", "b", "e"]
    assert drawn["tau 1"]["line"]["color"] != drawn["tau 2"]["line"]["color"]


def test_a_chart_of_ssim_draws_ssim():
    points = [point("a", 3.0, 15.0, "g", ssim=0.7), point("b", 4.0, 14.0, "g", ssim=0.9)]
    figure = charts.pareto(points, [], quality="ssim")
    assert listed(traces(figure)["g"]["y"]) == [0.7, 0.9]
    assert "SSIM" in figure.layout.yaxis.title.text
    assert traces(figure)["Pareto front"]["customdata"] == ["a", "b"]  # by PSNR it would be a alone


def test_one_run_alone_has_no_front_line_and_no_curve():
    assert set(traces(charts.pareto([point("a", 3.0, 15.0)], []))) == {"runs"}


# ------------------------------------------------------------------------------------------------------- the proposition


def test_the_proposition_is_drawn_as_measured():
    measured = [
        {"sigma_from": 0.9, "unified": 1e-15, "fresh": 0.11, "bound": 0.1},
        {"sigma_from": 0.5, "unified": 0.02, "fresh": 0.4, "bound": 0.39},
    ]
    exact = [{"sigma_from": 0.5, "unified": 0.01, "fresh": 0.3, "bound": 0.29}]
    figure = charts.proposition(measured, exact)
    drawn = traces(figure)
    assert len(drawn) == 6
    assert listed(drawn["the field's noise (this run)"]["y"]) == [None, 0.02]  # zero but for rounding has no logarithm
    assert listed(drawn["fresh noise (this run)"]["y"]) == [0.11, 0.4]
    assert listed(drawn["b², no fresh noise gets below (oracle, exact)"]["y"]) == [0.29]
    assert figure.layout.yaxis.type == "log"
    assert len(traces(charts.proposition([], exact))) == 3


def test_how_far_fresh_noise_lands_is_a_median():
    rows = [{"unified": u, "fresh": 1.0} for u in (1e-15, 0.5, 0.25, 0.01)]
    assert "lands 4.0 times" in charts.beyond(rows)  # of 2, 4 and 100; what is zero but for rounding has no ratio
    assert "3 steps" in charts.beyond(rows)
    assert "lands 2,000 times" in charts.beyond([{"unified": 0.0005, "fresh": 1.0}])
    assert "too short" in charts.beyond(rows[:1])


def test_the_words_in_the_proposition_stand_clear_of_both_lines_they_name():
    exact = [{"sigma_from": s, "unified": 0.01, "fresh": 0.3, "bound": 0.2} for s in (0.2, 0.4, 0.6)]
    measured = [
        {"sigma_from": 0.41, "unified": 0.001, "fresh": 0.9, "bound": 0.02},
        {"sigma_from": 0.9, "unified": 1e-7, "fresh": 0.4, "bound": 0.19},
    ]
    words = charts.proposition(measured, exact).layout.annotations
    at = {a.text.split()[0]: (a.x, 10**a.y, a.yanchor, a.xanchor) for a in words}
    assert at == {
        "fresh": (1, pytest.approx(0.4), "bottom", "right"), "b²,": (1, pytest.approx(0.19), "top", "right"),
        "the": (0, pytest.approx(0.001), "top", "left"),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ convergence


def test_the_stages_are_where_their_steps_are():
    rows = [{"step": k, "sigma": 0.5, "signal": "x0", "rho": 0.5} for k in range(6)]
    figure = charts.convergence(rows, ["low", "low", "mixed", "full", "full", "full"])
    assert [(s.x0, s.x1) for s in figure.layout.shapes] == [(0.5, 2.5), (2.5, 3.5), (3.5, 6.5)]
    assert [a.text for a in figure.layout.annotations] == ["low", "mixed", "full"]


def test_convergence_has_a_gap_where_nothing_is_known():
    rows = [
        {"step": k, "sigma": 1 - k / 4, "signal": signal, "rho": rho}
        for signal, rhos in {"x0": [math.nan, 0.8, 0.9], "z": [math.nan, 0.2, -0.1], "channel": [0.3, 0.4, 0.5]}.items()
        for k, rho in enumerate(rhos)
    ]
    drawn = traces(charts.convergence(rows))
    assert listed(drawn["clean estimate x0"]["y"]) == [None, 0.8, 0.9]
    assert listed(drawn["clean estimate x0"]["x"]) == [1, 2, 3]  # people count from one
    assert listed(drawn["noisy state z"]["y"]) == [None, 0.2, -0.1]
    assert listed(drawn["across channels"]["y"]) == [0.3, 0.4, 0.5]


# ---------------------------------------------------------------------------------------------------------------- pictures


def test_a_sheet_shows_every_picture_in_its_place():
    """Each picture has one colour; the sheet, read back, must have these colours from left to right, then below."""
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    pictures = [np.full((1, 8, 8, 3), c, np.uint8) for c in colours]
    data = charts.sheet(POINTS[:3], pictures, 2, "three runs")
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    middles = [np.argwhere((np.abs(pixels.astype(int) - c) < 3).all(axis=-1)).mean(axis=0) for c in colours]
    assert middles[0][0] == pytest.approx(middles[1][0], abs=3)  # one row
    assert middles[0][1] < middles[1][1]
    assert middles[2][0] > middles[0][0]
    assert middles[2][1] == pytest.approx(middles[0][1], abs=3)  # one column


@pytest.mark.parametrize(
    ("psnr", "ssim", "said"),
    [
        (16.24, 0.712, "3.00 steps, 16.2 dB, SSIM 0.71"),
        (math.inf, 1.0, "3.00 steps, the reference, SSIM 1.00"),
        (None, None, "3.00 steps"),
    ],
)
def test_likeness_is_said_in_a_line(psnr, ssim, said):
    assert charts.likeness(point("a", 3.0, psnr, ssim=ssim)) == said
