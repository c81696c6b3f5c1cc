"""Recorded tables as sweeps: the shipped ones, read again by hand, and what is run beside them."""

import base64
import io
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fresco.config import FrescoConfig
from viz import bundle, charts
from viz.page import cards, recorded

TRACES = Path(__file__).parents[1] / "assets" / "traces"
EXAMPLES = json.loads((TRACES.parent / "examples.json").read_text(encoding="utf-8"))
SLUG = next(iter(EXAMPLES["recorded"]))


@pytest.fixture(scope="module")
def raw():
    return bundle.load(TRACES / f"{SLUG}.json")


@pytest.fixture(scope="module")
def table(raw):
    return recorded.table(raw, f"/somewhere/{SLUG}.json")


def test_every_recorded_prompt_is_a_sweep_and_no_single_run_is():
    for slug in (*EXAMPLES["recorded"], *EXAMPLES["gallery"]):
        found = recorded.table(bundle.load(TRACES / f"{slug}.json"), "")
        assert (found is not None) == (slug in EXAMPLES["recorded"]), slug
        if found:
            assert found.axes == {"tau": EXAMPLES["tau"], "nfe": EXAMPLES["nfe"]}
            assert [p["coords"] for p in found.points] == [
                {"tau": t, "nfe": n} for n, t in itertools.product(EXAMPLES["nfe"], EXAMPLES["tau"])
            ]


def test_a_point_says_what_its_recorded_steps_say(raw, table):
    """Cost, likeness and picture of each run by a walk over the file's own frames."""
    tokens = max(f["tokens"] for f in raw["frames"])
    full = next(f["flops"] for f in raw["frames"] if f["tokens"] == tokens)
    for run, point in zip(raw["runs"], table.points, strict=True):
        spent = 0.0
        for k in run["frames"]:
            spent += raw["frames"][k]["flops"]
        assert point["flops"] == pytest.approx(spent)
        assert point["full_steps"] == pytest.approx(spent / full)
        assert point["speedup"] == pytest.approx(50 * full / spent)
        assert (point["psnr"], point["ssim"]) == (run["psnr"], run["ssim"])
        assert point["picture"] == raw["frames"][run["frames"][-1]]["preview"]
        assert point["key"] == f"recorded:{SLUG}/{run['tau']}/{run['nfe']}"
    assert [(p["coords"]["nfe"], p["full_steps"]) for p in table.curve] == [
        (r["steps"], pytest.approx(r["steps"])) for r in raw["references"]
    ]
    assert [p["psnr"] for p in table.curve] == [math.inf, *(r["psnr"] for r in raw["references"][1:])]


def test_a_table_with_a_hole_is_no_sweep(raw):
    assert recorded.table({**raw, "runs": raw["runs"][1:]}, "") is None
    assert recorded.table({**raw, "runs": [{k: v for k, v in r.items() if k != "config"} for r in raw["runs"]]}, "") is None


def test_a_sweep_of_the_same_settings_joins_and_any_other_does_not(table):
    values = {"prompt": f" {table.prompt} ", "model": "sinopia"}
    same = FrescoConfig.recommended(9, tau=0.3, seed=table.seed)
    assert table.holds(values, same, ["tau", "nfe"])
    assert table.holds(values, same, ["nfe", "tau"])
    assert table.holds(values, same.replace(stages=(4, 3, 2)), ["nfe", "tau"])  # the axis says the stages, too
    for other in ({"seed": table.seed + 1}, {"noise": "fresh"}, {"size": (1, 64, 64)}, {"window": 5}, {"guidance": 1.0}):
        assert not table.holds(values, same.replace(**other), ["tau", "nfe"]), other
    assert not table.holds(values, same, ["tau"])
    assert not table.holds(values, same, ["tau", "window"])
    assert not table.holds({**values, "prompt": "owl"}, same, ["tau", "nfe"])
    assert not table.holds({**values, "model": "oracle"}, same, ["tau", "nfe"])


def test_what_is_run_takes_its_place_among_what_is_recorded(table):
    own = [
        {**table.points[4], "key": "mine", "recorded": False},
        {**table.points[0], "key": "new", "coords": {"tau": 0.5, "nfe": 4}, "recorded": False},
    ]
    axes = recorded.joined(table, {"nfe": [4], "tau": [0.5, table.points[4]["coords"]["tau"]]})
    assert axes == {"nfe": [4, 11, 18, 30], "tau": [*EXAMPLES["tau"], 0.5]}
    assert recorded.joined(None, {"nfe": [9, 4]}) == {"nfe": [9, 4]}  # alone, a sweep keeps its own order
    points = recorded.fresh(table.points, own)
    assert [p["key"] for p in points] == [p["key"] for k, p in enumerate(table.points) if k != 4] + ["mine", "new"]
    places = cards.places(points, axes)
    assert [[p and p["key"] for p in row][-1] for row in places] == ["new", None, None, None]
    shown = cards.grid(points, axes, coming={"nfe": [4], "tau": [0.5, 0.001]}, url="/x.json")
    assert len(re.findall("to come", shown)) == 1  # nfe 4 at tau 0.001; the other of the two is there
    assert len(re.findall("not run", shown)) == 4 * 8 - len(points) - 1
    assert len(re.findall('data-url="/x.json"', shown)) == len(re.findall(r"class=\"lab-old\"", shown)) == 20


def test_recorded_runs_and_own_ones_can_be_told_apart_in_the_chart(table):
    own = {**table.points[0], "key": "mine", "coords": {"tau": 0.5, "nfe": 4}, "recorded": False, "full_steps": 1.0}
    figure = charts.pareto([*table.points, own], table.curve)
    runs = [t for t in figure.data if t.name.startswith("tau")]
    looks = {key: symbol for t in runs for key, symbol in zip(t.customdata, t.marker.symbol, strict=True)}
    assert looks.pop("mine") == "diamond"
    assert set(looks.values()) == {"circle"}
    assert len(looks) == len(table.points)
    alone = charts.pareto([own], [])
    assert alone.data[0].marker.symbol == ("circle",)


def test_a_sheet_leaves_out_what_was_not_run(table):
    red = np.full((1, 8, 8, 3), (250, 10, 10), np.uint8)
    data = charts.sheet([None, table.points[0]], [None, red], 2, "one of two")
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    at = np.argwhere((np.abs(pixels - (250, 10, 10)) < 3).all(axis=-1))
    assert at[:, 1].min() > pixels.shape[1] / 2


def test_a_picture_is_read_back_from_its_address(table):
    uri = table.points[0]["picture"]
    want = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))
    assert np.array_equal(cards.pixels(uri)[0], want)
    assert want.shape == (128, 128, 3)


def test_what_is_recorded_is_shown_without_weights_and_without_torch():
    """A page whose model cannot be loaded still has its sweep: grid and chart, in an interpreter of its own."""
    code = (
        "import sys; from pathlib import Path; from viz import bundle, charts; from viz.page import cards, recorded;"
        f"t = recorded.table(bundle.load(Path('assets/traces/{SLUG}.json')), '/x.json');"
        "html = cards.grid(t.points, t.axes, charts.front(t.points), None, t.url); figure = charts.pareto(t.points, t.curve);"
        "print(html.count('lab-cell'), sum(len(d.x) for d in figure.data if d.name.startswith('tau')), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TRACES.parents[1], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["21", "21", "False"]
