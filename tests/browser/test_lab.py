"""The lab as visitors use it: sweep, stop, go on, open a run; compare; what each tab shows is what the library measured."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect

from fresco.lab.ablation import ROWS

from .conftest import PATIENCE

EXAMPLES = json.loads((Path(__file__).parents[2] / "assets" / "examples.json").read_text(encoding="utf-8"))
PROMPT = "red apple, noto style, on blue"
SMALL = {"prompt": PROMPT, "seed": 5, "nfe": 6, "reference": "none"}  # one prompt and seed: its 50 steps are run once


@pytest.fixture
def lab(visit):
    """Return a function that opens a tab of the lab by its address."""

    def open_tab(tab, **query):
        page = visit(**({"tab": tab} | query))
        expect(page.page.locator(f"#{tab}-run")).to_be_visible(timeout=PATIENCE)
        return page

    return open_tab


def status(page, tab, text):
    """Wait for what a tab says of its run, and return all of it."""
    line = page.page.locator(f"#{tab}-status")
    expect(line).to_contain_text(text, timeout=PATIENCE)
    return line.inner_text()


def fill(page, **values):
    for name, value in values.items():
        page.put(f"sweep-{name.replace('_', '-')}", value)


def cells(page, *, wait=False):
    """Return [key, label] of the finished cells, as they stand in the table; `wait`: there must be some."""
    if wait:
        expect(page.page.locator("#sweep-grid .lab-cell").first).to_be_visible(timeout=PATIENCE)
    return page.page.locator("#sweep-grid .lab-cell").evaluate_all("all => all.map(b => [b.dataset.key, b.ariaLabel])")


# ------------------------------------------------------------------------------------------------------------------- tabs


@pytest.mark.parametrize("name", ["sweep", "lab"])
def test_the_tab_in_the_address_is_open_and_the_viewer_waits(visit, name):
    page = visit(tab=name, **SMALL)
    expect(page.page.locator("#sweep-run")).to_be_visible(timeout=PATIENCE)
    expect(page.page.locator("#viewer")).to_be_hidden()
    page.page.get_by_role("tab", name="Watch").click()
    expect(page.page.locator("#viewer")).to_be_visible()
    page.page.get_by_role("tab", name="Compare").click()
    expect(page.page.locator("#viewer")).to_be_visible()
    page.page.get_by_role("tab", name="Convergence").click()
    expect(page.page.locator("#viewer")).to_be_hidden()


@pytest.mark.parametrize("tab", ["nothing", "watch"])
def test_any_other_name_is_the_first_tab(visit, tab):
    page = visit(tab=tab)
    expect(page.page.locator("#viewer")).to_be_visible()
    expect(page.page.get_by_role("tab", name="Watch")).to_have_attribute("aria-selected", "true")


def test_a_copied_link_opens_the_tab_again(lab, visit):
    page = lab("compare", **SMALL)
    page.page.click("button#share")
    address = page.page.locator("#address textarea, #address input")
    expect(address).to_have_value(re.compile("tab=compare"))
    query = {k: v[0] for k, v in parse_qs(urlsplit(address.input_value()).query).items()}
    other = visit(**query)
    expect(other.page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")


def test_run_leads_back_to_the_viewer(lab):
    page = lab("sweep", **SMALL)
    page.page.click("button#run")
    expect(page.page.get_by_role("tab", name="Watch")).to_have_attribute("aria-selected", "true", timeout=PATIENCE)
    expect(page.page.locator("#viewer")).to_be_visible(timeout=PATIENCE)
    page.finished()


# ------------------------------------------------------------------------------------------------------------------ sweep


def place_of(chart, key):
    """Return where on the screen a run's point lies."""
    return chart.evaluate(
        """(g, key) => { const box = g.getBoundingClientRect(), { xaxis: x, yaxis: y } = g._fullLayout;
          const t = g._fullData.find(t => t.customdata?.includes(key) && t.name !== 'Pareto front');
          const i = t.customdata.indexOf(key);
          return [box.x + x._offset + x.c2p(t.x[i]), box.y + y._offset + y.c2p(t.y[i])]; }""",
        key,
    )


def press(page, chart, key):
    """Click a run's point as a person does, coming from the side."""
    chart.scroll_into_view_if_needed()
    was = None
    while (at := place_of(chart, key)) != was:  # the page may still be scrolling to the viewer
        was = at
        page.page.wait_for_timeout(300)
    x, y = at
    page.page.mouse.move(x - 20, y)
    page.page.mouse.move(x, y, steps=5)
    expect(page.page.locator("#sweep-chart .hoverlayer .hovertext")).to_be_visible()
    page.page.wait_for_timeout(300)  # Plotly opens the point that it last saw the pointer over, and looks seldom
    page.page.mouse.click(x, y)


def test_the_recorded_sweep_is_there_before_anything_is_run_and_what_is_run_joins_it(lab):
    page = lab("sweep")
    known = cells(page, wait=True)
    first, *_, last = EXAMPLES["recorded"]
    places = [(tau, nfe) for tau in EXAMPLES["tau"] for nfe in EXAMPLES["nfe"]]
    assert [key for key, _ in known] == [f"recorded:{first}/{tau}/{nfe}" for tau, nfe in places]
    assert all(label.endswith("recorded") for _, label in known)
    assert "21 runs recorded" in status(page, "sweep", EXAMPLES["recorded"][first]["prompt"])
    # A point opens its run, a picture another one of the same recording, with the whole table behind it.
    chart = page.page.locator("#sweep-chart .js-plotly-plot")
    expect(chart).to_be_visible(timeout=PATIENCE)
    press(page, chart, f"recorded:{first}/0.0005/30")
    page.until(f"d.run === 'recorded:{first}' && +d.tau === 0.0005 && +d.nfe === 30 && +d.frames === 30")
    expect(page.page.locator("#viewer")).to_be_visible()
    page.page.locator(f"#sweep-grid [data-key='recorded:{first}/0.016/11']").click()
    page.until(f"d.run === 'recorded:{first}' && +d.tau === 0.016 && +d.nfe === 11 && +d.frames === 11")
    # Another recording, and the controls go along; then one cell is run beside it, and only that one.
    page.page.locator("#sweep-shelf label", has_text=EXAMPLES["recorded"][last]["title"]).click()
    expect(page.control("prompt")).to_have_value(EXAMPLES["recorded"][last]["prompt"])
    expect(page.page.locator(f"#sweep-grid [data-key='recorded:{last}/0.004/18']")).to_be_visible()
    fill(page, values_1="0.004", values_2="4, 11, 18", curve="")
    page.page.click("#sweep-run")
    assert "21 runs recorded with the page (circles), 1 run here" in status(page, "sweep", "Done.")
    both = cells(page)
    assert [key for key, _ in both if key.startswith("recorded:")] == [f"recorded:{last}/{t}/{n}" for t, n in places]
    assert page.page.locator("#sweep-grid th").all_inner_texts()[:4] == ["nfe 4", "nfe 11", "nfe 18", "nfe 30"]
    ((key, label),) = [c for c in both if not c[0].startswith("recorded:")]
    assert "tau 0.004, nfe 4" in label
    page.page.locator(f"#sweep-grid [data-key='{key}']").click()
    page.until(f"d.run === 'recorded:{key}' && +d.nfe === 4")
    with page.page.expect_download() as got:
        page.page.click("#sweep-csv")
    rows = list(csv.DictReader(io.StringIO(got.value.path().read_text(encoding="utf-8"))))
    assert [r["run"] for r in rows if r["nfe"] == "4"] == ["here"]
    assert sum(r["run"] == "recorded" and r["tau"] != "" for r in rows) == 21


def test_a_sweep_fills_its_grid_and_a_picture_opens_its_run(lab):
    page = lab("sweep", **SMALL)
    fill(page, values_1="0.02, 0.5", values_2="4, 5", curve="3, 4, 5")
    page.page.click("#sweep-run")
    said = status(page, "sweep", "Done.")
    assert re.search(r"of the \d runs within the full-resolution curve lie above it|none can be set against", said)
    found = cells(page)
    assert len(found) == 4
    heads = page.page.locator("#sweep-grid th").all_inner_texts()
    assert heads == ["nfe 4", "nfe 5", "tau 0.02", "tau 0.5"]
    # Each cell is the run that its place in the table says.
    wanted = [(tau, nfe) for tau in ("0.02", "0.5") for nfe in ("4", "5")]
    for (key, label), (tau, nfe) in zip(found, wanted, strict=True):
        assert f"tau {tau}, nfe {nfe}" in label
        page.page.locator(f"#sweep-grid [data-key='{key}']").click()
        page.until(f"d.run === 'recorded:{key}' && +d.tau === {tau} && +d.nfe === {nfe} && +d.frames === {nfe}")
        expect(page.page.locator("#viewer")).to_be_visible()
    # What the cell says it cost is what its steps in the viewer add up to.
    cost = float(re.search(r"([\d.]+) steps", found[-1][1])[1])
    spent, full = page.player(
        "[v.store.tracks.get(0).frames.at(-1).flops_total, v.store.tracks.get(0).meta.baselines.full50 / 50]"
    )
    assert cost == pytest.approx(spent / full, abs=0.006)


def test_a_point_of_the_chart_opens_its_run(lab):
    page = lab("sweep", **SMALL)
    fill(page, values_1="0.02, 0.5", values_2="4", curve="3, 4, 5")
    page.page.click("#sweep-run")
    status(page, "sweep", "Done.")
    chart = page.page.locator("#sweep-chart .js-plotly-plot")
    expect(chart).to_be_visible(timeout=PATIENCE)
    drawn = chart.evaluate("g => g.data.map(t => [t.name, t.customdata])")
    keys = [key for key, _ in cells(page)]
    assert sorted(k for name, own in drawn if name.startswith("tau") for k in own) == sorted(keys)
    key = next(own[0] for name, own in drawn if name == "tau 0.5")
    press(page, chart, key)
    page.until(f"d.run === 'recorded:{key}' && +d.tau === 0.5 && +d.nfe === 4")


def test_stop_keeps_what_is_finished_and_a_second_run_computes_only_the_rest(lab):
    page = lab("sweep", **SMALL)
    fill(page, values_1="0.004, 0.04", values_2="20, 21", curve="3")
    page.page.click("#sweep-run")
    mine = page.page.locator("#sweep-grid .lab-cell:not([data-key^='recorded:'])")  # recorded ones are there from the start
    expect(mine.first).to_be_visible(timeout=PATIENCE)
    assert page.page.locator("#sweep-run").is_disabled()  # a second run of this tab would be one that Stop does not reach
    page.page.click("#sweep-stop")
    status(page, "sweep", "Stopped. Finished cells are kept")
    kept = cells(page)
    assert 1 <= len(kept) < 4
    page.page.evaluate(
        """() => { const line = document.querySelector('#sweep-status');
          window.heard = [];
          new MutationObserver(() => window.heard.push(line.innerText))
            .observe(line, { childList: true, subtree: true, characterData: true }); }"""
    )
    page.page.click("#sweep-run")
    status(page, "sweep", "Done.")
    everything = cells(page)
    assert len(everything) == 4
    assert [c for c in everything if c in kept] == kept  # the same runs, number for number
    ran = {m[1] for text in page.page.evaluate("window.heard") if (m := re.search(r"Running (.+): step", text))}
    assert len(ran) >= 4 - len(kept)
    for _, label in kept:
        assert not any(name in label for name in ran), (label, ran)  # no step of a finished cell was made again


def test_a_sweep_can_be_taken_away_as_a_table_and_as_a_picture(lab):
    page = lab("sweep", **SMALL)
    fill(page, values_1="0.02, 0.5", values_2="4", curve="4")
    page.page.click("#sweep-run")
    status(page, "sweep", "Done.")
    with page.page.expect_download() as got:
        page.page.click("#sweep-csv")
    rows = list(csv.DictReader(io.StringIO(got.value.path().read_text(encoding="utf-8"))))
    assert [(r["tau"], r["nfe"]) for r in rows] == [("0.02", "4"), ("0.5", "4"), ("", "4")]
    assert [r["key"] for r in rows[:2]] == [key for key, _ in cells(page)]
    assert float(rows[2]["full_steps"]) == pytest.approx(4)
    assert float(rows[0]["speedup"]) == pytest.approx(50 / float(rows[0]["full_steps"]))
    with page.page.expect_download() as got:
        page.page.click("#sweep-png")
    assert got.value.path().read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"values_1": "much"}, "'much' is no value of tau"),
        ({"values_1": "0.1, 0.1"}, "twice"),
        ({"values_1": ""}, "at least one value"),
        ({"values_2": ",".join(map(str, range(4, 30)))}, "more than the page's 64"),
        ({"values_2": "2"}, "nfe 2"),
    ],
)
def test_impossible_axes_are_one_sentence(lab, values, sentence):
    page = lab("sweep", **SMALL)
    fill(page, **({"values_1": "0.02, 0.5, 0.6"} | values))
    page.page.click("#sweep-run")
    assert "Traceback" not in page.toast(sentence)


# ---------------------------------------------------------------------------------------------------------------- compare


def test_compare_shows_the_chosen_runs_of_one_seed(lab, visit):
    page = lab("compare", **SMALL, tau=0.5)
    page.page.locator("#compare-3 input").click()
    page.page.get_by_role("option", name="a pasted link").click()
    expect(page.page.locator("#compare-link-3")).to_be_visible()
    page.put("compare-link-3", f"{page.server}?nfe=5&ratio=0.25&transition=rewind&checks=1&seed=99&prompt=other")
    page.page.locator("#compare-4 input").click()
    page.page.get_by_role("option", name="RALU, NFE 10").click()
    page.page.click("#compare-run")
    status(page, "compare", "Done.")
    page.until("d.mode === 'live'")
    metas = page.player(
        "[...v.store.tracks.values()].map(t => [t.id, t.frames.length, t.meta.nfe, t.meta.seed, t.meta.prompt])"
    )
    assert [m[:4] for m in metas] == [[0, 6, 6, 5], [1, 6, 6, 5], [2, 5, 5, 5], [3, 10, 10, 5]]
    assert {m[4] for m in metas} == {PROMPT}
    other = page.player("[0, 1, 2, 3].map(k => v.store.tracks.get(k).meta).map(m => [m.tau, m.ratio, m.transition, m.stages])")
    assert other[0][:3] == [0.5, None, "renoise"]
    assert other[1][3] == [0, 0, 6]
    assert other[2][:3] == [None, 0.25, "rewind"]
    # Every picture is set against the full-resolution one, which is itself set against nothing.
    likeness = page.player("[0, 1, 2, 3].map(k => v.store.tracks.get(k).frames.at(-1).psnr)")
    assert likeness[1] is None
    assert all(p > 0 for p in (likeness[0], likeness[2], likeness[3]))


def test_compare_stops_within_a_step(lab):
    page = lab("compare", model="sinopia", prompt="owl", nfe=50, reference="none")
    page.page.click("#compare-run")
    page.until("d.mode === 'live' && +d.frames >= 2")
    page.page.click("#compare-stop")
    page.says("Stopped at step")
    assert int(page.data["frames"]) < 50
    page.put("nfe", 4)
    page.page.get_by_role("tab", name="Watch").click()
    page.run()
    page.finished()


def test_a_link_without_settings_is_one_sentence(lab):
    page = lab("compare", **SMALL)
    page.page.locator("#compare-2 input").click()
    page.page.get_by_role("option", name="a pasted link").click()
    page.put("compare-link-2", "https://example.org/?q=1")
    page.page.click("#compare-run")
    page.toast("holds no settings")


# ------------------------------------------------------------------------------------------------------------- one by one


def test_the_ablation_sets_every_switch_against_the_first_row(lab):
    page = lab("ablation", **SMALL)
    page.put("ablation-nfe", 6)
    page.page.click("#ablation-run")
    status(page, "ablation", "Done: 6 runs")
    names = page.page.locator("#ablation-table tbody th").all_inner_texts()
    assert [n.split("\n")[0] for n in names] == [row.name for row in ROWS]
    rows = [[cell.split("\n") for cell in row] for row in page.page.locator("#ablation-table tbody tr").evaluate_all(
        "rows => rows.map(r => [...r.querySelectorAll('td')].slice(2).map(c => c.innerText))")]  # fmt: skip
    first = rows[0]
    assert all(len(cell) == 1 for cell in first)
    for row in rows[1:]:
        for cell, whole in zip(row, first, strict=True):
            own, base = (float(c[0].rstrip("×")) for c in (cell, whole))
            assert float(cell[1]) == pytest.approx(own - base, abs=0.011)
    page.page.locator("#ablation-table .lab-cell").nth(2).click()
    page.until("d.run.startsWith('recorded:') && +d.nfe === 6")
    expect(page.page.locator("#viewer")).to_be_visible()


def test_the_field_adds_up_over_the_levels_and_fresh_noise_does_not(lab):
    page = lab("proposition", **SMALL)
    sums = page.page.locator("#proposition-maps li")
    expect(sums).to_have_count(2)
    for text in sums.all_inner_texts():
        terms = [float(t) for t in re.findall(r"[+-]\d+\.\d+", text)]
        assert sum(terms[:4]) / 2 == pytest.approx(terms[4], abs=0.011)
        assert terms[4] == pytest.approx(terms[5], abs=0.011)
    page.page.locator("#proposition-noise label", has_text="fresh").click()
    expect(sums.first).to_contain_text("≠")
    expect(sums.last).to_contain_text("≠")


def test_the_proposition_is_measured_along_a_run(lab):
    page = lab("proposition", **SMALL)
    page.page.click("#proposition-run")
    status(page, "proposition", "Done.")
    expect(page.page.locator("#proposition-table tbody tr")).to_have_count(4)
    drawn = page.page.locator("#proposition-chart .js-plotly-plot").evaluate(
        "g => Object.fromEntries(g.calcdata.map(c => [c[0].trace.name, c[0].trace._input.y.map(Number)]))"
    )
    fresh, bound = (next(v for k, v in drawn.items() if k.startswith(n) and "oracle" in k) for n in ("fresh", "b²"))
    assert all(f >= b for f, b in zip(fresh, bound, strict=True))


def test_convergence_and_expansion_show_what_they_measured(lab):
    page = lab("convergence", **SMALL)
    page.page.click("#convergence-run")
    means = status(page, "convergence", "Mean over the steps")
    assert re.search(r"x0 -?[\d.]+", means)
    expect(page.page.locator("#convergence-chart .js-plotly-plot")).to_be_visible(timeout=PATIENCE)
    page.page.get_by_role("tab", name="Expansion").click()
    page.page.click("#expansion-run")
    status(page, "expansion", "Done")
    h4, vector, product, four = page.page.locator("#expansion-parts .lab-matrix").evaluate_all(
        "all => all.map(t => [...t.rows].map(r => [...r.cells].map(c => Number(c.innerText))))"
    )
    by_hand = [sum(a * b[0] for a, b in zip(row, vector, strict=True)) for row in h4]
    assert [row[0] for row in product] == pytest.approx(by_hand, abs=0.03)
    assert [row[0] for row in four] == pytest.approx(by_hand, abs=0.03)


def test_every_measurement_stops_within_a_call_and_the_next_has_its_turn(lab):
    """Stop cuts each off mid-way; that nothing runs on is seen in the next one's first call: there is one turn at a time."""
    page = lab("proposition", **(SMALL | {"nfe": 50}))
    page.open_advanced()
    for tab, name in (("proposition", "Proposition"), ("convergence", "Convergence"), ("expansion", "Expansion")):
        page.page.get_by_role("tab", name=name).click()
        page.page.click(f"#{tab}-run")
        expect(page.page.locator(f"#{tab}-status")).to_contain_text(re.compile(r"step [2-9]\D", re.I), timeout=PATIENCE)
        page.page.click(f"#{tab}-stop")
        status(page, tab, "Stopped")
        page.page.wait_for_timeout(500)
        assert "Stopped" in page.page.locator(f"#{tab}-status").inner_text()  # no later step has written over it
        assert page.page.locator(f"#{tab}-chart .js-plotly-plot").count() == 0
    page.put("nfe", 4)
    page.page.click("#expansion-run")
    status(page, "expansion", "of 4 calls")


# ---------------------------------------------------------------------------------------------------------------- settings


def test_size_head_and_landing_are_settings_like_all_others(visit):
    """In a link, restored from it, in the run, among the differences, and taken over from the gallery."""
    asked = {"size": "1-64-32", "head": "1", "landing": "4", "transition": "renoise_x0", "checks": "1", "nfe": "7",
             "ratio": "0.5", "stages": "3-1-2"}  # fmt: skip
    page = visit(**{k: v for k, v in SMALL.items() if k != "nfe"}, **asked, tab="compare")
    page.open_advanced()
    assert {name: page.control(name).input_value() for name in ("size", "head", "landing", "nfe", "low", "mixed", "full")} == {
        "size": "1-64-32", "head": "1", "landing": "4", "nfe": "7", "low": "3", "mixed": "1", "full": "2",
    }  # fmt: skip
    page.page.click("button#share")
    address = page.page.locator("#address textarea, #address input")
    expect(address).to_have_value(re.compile("head=1"))
    query = {k: v[0] for k, v in parse_qs(urlsplit(address.input_value()).query).items()}
    assert {k: float(query[k]) if k == "landing" else query[k] for k in asked} == asked | {"landing": 4.0}
    page.page.click("#compare-run")
    status(page, "compare", "Done.")
    metas = page.player("[0, 1, 2].map(k => v.store.tracks.get(k).meta).map(m => [m.size, m.head, m.landing])")
    assert metas == [[[1, 64, 32], 1, 4], [[1, 64, 32], 0, 2], [[1, 64, 32], 0, 2]]
    assert page.player("[...v.store.tracks.values()].map(t => t.frames.at(-1).shape)") == [[1, 8, 4]] * 3
    page.page.locator("#viewer label:has(.fv-count[value='3'])").click()
    differing = page.page.locator("#viewer .fv-diffs-table th[scope=row]")
    expect(differing.filter(has_text="landing")).to_be_visible()
    expect(differing.filter(has_text="head")).to_be_visible()
    expect(differing.filter(has_text="size")).to_have_count(0)  # all three are of one size
    # What cannot go together is changed along, and the stages make room for the head.
    page.put("head", 2)
    expect(page.control("low")).to_have_value("2")
    page.page.locator("#transition input").click()
    page.page.get_by_role("option", name="rewind").click()
    expect(page.control("landing")).to_have_value("2")
    page.page.get_by_role("tab", name="Watch").click()
    page.page.locator("#gallery label:has(input[value='portrait'])").click()
    page.until("d.run === 'recorded:portrait'")  # its settings are there to be taken when it has come
    page.page.locator("#gallery").get_by_role("button", name="Take these settings").click()
    expect(page.control("size")).to_have_value("portrait, 128 × 96")
    expect(page.control("head")).to_have_value("0")


# ------------------------------------------------------------------------------------------------------- looks and access


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_in_what_is_ours(lab, dark):
    page = lab("sweep", **SMALL, dark=dark)
    fill(page, values_1="0.02, 0.5", values_2="4", curve="4")
    page.page.click("#sweep-run")
    status(page, "sweep", "Done.")
    page.page.get_by_role("tab", name="Ablation").click()
    page.put("ablation-nfe", 6)
    page.page.click("#ablation-run")
    status(page, "ablation", "Done")
    page.page.get_by_role("tab", name="Expansion").click()
    page.page.click("#expansion-run")
    status(page, "expansion", "Done")
    page.page.get_by_role("tab", name="Proposition").click()
    expect(page.page.locator("#proposition-maps li")).to_have_count(2)
    for tab, part in (("Sweep", "#sweep-grid"), ("Ablation", "#ablation-table"), ("Expansion", "#expansion-parts"),
                      ("Proposition", "#proposition-maps")):  # fmt: skip
        page.page.get_by_role("tab", name=tab).click()
        expect(page.page.locator(part)).to_be_visible()
        found = Axe().run(page.page, context=part).response["violations"]
        assert [f"{tab} {v['id']}: {v['nodes'][0]['html'][:120]}" for v in found] == []


@pytest.mark.parametrize("tab", ["compare", "sweep", "ablation", "proposition", "convergence", "expansion"])
def test_no_tab_is_wider_than_a_phone(visit, tab):
    page = visit(390, 844, **SMALL, tab=tab)
    page.page.click(f"#{tab}-run")
    status(page, tab, "Mean" if tab == "convergence" else "Done")
    # The page hides what is too wide, so every part is asked; what may scroll inside its own box is left out.
    wide = page.page.evaluate(
        """() => [...document.querySelectorAll('#stage *')].filter((e) => e.getBoundingClientRect().right > 391
             && !e.closest('.lab-scroll, .fv-root, .overflow-menu, #tabs > .tab-wrapper, .js-plotly-plot, #gallery, #examples'))
           .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []


# --------------------------------------------------------------------------------------------------------------- programs


@pytest.fixture(scope="module")
def client(server):
    return Client(server, verbose=False)


def test_the_api_streams_a_sweep(client):
    job = client.submit(PROMPT, axes='{"tau": [0.02, 0.5], "nfe": [4, 5]}', seed=5, curve="[4]", api_name="/sweep")
    got = [json.loads(m) for m in job]
    assert [m["type"] for m in got] == ["cell"] * 4 + ["curve", "done"]
    assert [m["coords"] for m in got[:4]] == [{"tau": t, "nfe": n} for t in (0.02, 0.5) for n in (4, 5)]
    assert all(m["seed"] == m["config"]["seed"] == 5 for m in got[:5])
    assert got[4]["full_steps"] == pytest.approx(4)
    assert all(m["picture"].startswith("data:image/webp;base64,") for m in got[:5])
    best = max(got[:4], key=lambda m: m["psnr"])
    cheapest = min(got[:4], key=lambda m: (m["full_steps"], -m["psnr"]))
    assert got[-1]["front"][0] == cheapest["key"]
    assert got[-1]["front"][-1] == best["key"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"axes": "{"}, "axes is"),
        ({"axes": "[1]"}, "JSON object"),
        ({"axes": '{"jump": [1]}'}, "jump"),
        ({"axes": '{"tau": 1}'}, "list of at least one value"),
        ({"axes": "{}"}, "list of at least one value"),
        ({"axes": json.dumps({"tau": [k / 100 for k in range(1, 70)]})}, "more than 64"),
        ({"curve": "4"}, "JSON list"),
        ({"curve": '["x"]'}, "nfe is 'x'"),
        ({"settings": '{"transition": "jump"}'}, "transition"),
    ],
)
def test_api_errors_are_one_sentence(client, wrong, sentence):
    with pytest.raises(AppError) as caught:
        client.predict(**({"prompt": PROMPT, "seed": 5} | wrong), api_name="/sweep")
    assert sentence in str(caught.value)
    assert not re.search(r"Traceback|File \"|\.py|\n", str(caught.value))
