"""The lesson, walked by keyboard alone in a file from disk with the network off; the gallery; a teacher's address."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect

from fresco.trace import Trace
from tests.smoke import free_port, start
from viz import bundle, export, lesson

from .conftest import Visit

OURS = lesson.load(lesson.LESSONS)
SLUGS = list(dict.fromkeys(s.view.run for s in OURS.stops))
PANEL = "document.querySelector('.fl-lesson').dataset"
MINE = """---
run: anchor
step: 3
layer: levels
ask: Which layer shows what tau lets through?
answer: {layer: promoted}
right: That one.
---
# A teacher's own

With $\\tau = 0.004$ there are [[tokens 3]] tokens.
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Return the exported page with our lesson, as a file."""
    path = tmp_path_factory.mktemp("lesson") / "lesson.html"
    bundles = [bundle.load(export.TRACES / f"{slug}.json") for slug in [*SLUGS, "anchor"]]
    path.write_text(export.page(bundles, title="A lesson", taught=OURS), encoding="utf-8")
    return path


@pytest.fixture
def offline(chromium):
    """Return a function that opens a file with the network off; nothing may be asked of it, or complained of."""
    visits = []

    def open_file(path, query="", width=1280, height=900, scheme="light"):
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=True)
        context.set_offline(True)
        seen = Visit(context.new_page(), path.as_uri())
        visits.append(seen)
        seen.page.goto(path.as_uri() + query)
        seen.until("d.mode === 'recorded' && +d.frames > 0")
        return seen

    yield open_file
    asked = [[url for url in v.requests if not url.startswith(v.server)] for v in visits]
    problems = [p for v in visits for p in v.problems]
    for seen in visits:
        seen.page.context.close()
    assert asked == [[] for _ in visits]
    assert problems == []


def ready(page, stop):
    page.page.wait_for_function(f"{PANEL}.stop === '{stop}' && {PANEL}.ready === 'true'", timeout=30_000)


def tab_to(page, selector, most=60):
    """Press Tab until that element has the focus."""
    for _ in range(most):
        if page.page.evaluate("(s) => document.activeElement?.matches(s) ?? false", selector):
            return
        page.page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached with Tab")


def state(page):
    return page.player("v.state()")


def answer(page, stop):
    """Do with the keyboard what a stop asks for, from its front matter, the focus starting on "To the pictures"."""
    key = page.page.keyboard
    tab_to(page, ".fl-go")
    key.press("Enter")
    assert page.page.evaluate("document.activeElement.matches('.fv-canvas')")
    for name, want in stop.answer.items():
        if name == "step":
            for _ in range(30):
                if state(page)["step"] >= want[0]:
                    break
                key.press("ArrowRight")
        elif name == "layer":
            key.press(str(want))
        elif name == "token" and not page.data["token"]:
            # From the middle to the border, where the paper is: to the right and down by tokens, then choose.
            for _ in range(8):
                key.press("Shift+ArrowRight")
            for _ in range(8):
                key.press("Shift+ArrowDown")
            key.press("Enter")
        elif name == "tau":
            tab_to(page, ".fv-tau")
            for _ in range(8):
                if state(page)["tau"] >= want[0]:
                    break
                key.press("ArrowRight")
        elif name == "beside":
            tab_to(page, ".fv-ref")
            for _ in range(12):
                if page.player("v.state().panes[1].label") == want:
                    break
                key.press("ArrowDown")


def test_the_lesson_is_walked_by_keyboard_alone_from_disk_without_a_network(offline, file):
    page = offline(file)
    key = page.page.keyboard
    tab_to(page, ".fl-start")
    key.press("Enter")
    for k, stop in enumerate(OURS.stops, 1):
        ready(page, k)
        shown = state(page)
        view = stop.view
        assert page.data["run"] == f"recorded:{view.run}"
        assert (shown["step"], shown["layer"], shown["align"], shown["playing"]) == (view.step, view.layer, view.align, False)
        assert shown["token"] == (list(view.token) if view.token else None)
        if view.beside:
            assert shown["panes"][1]["label"] == view.beside
        expect(page.page.locator(".fl-title")).to_have_text(stop.title)
        assert page.page.locator(".fl-right").inner_text() == ""
        assert f"stop={k}" in page.page.url
        answer(page, stop)
        page.page.wait_for_function(f"{PANEL}.answered === 'true'", timeout=15_000)
        expect(page.page.locator(".fl-right")).not_to_be_empty()
        # Back to the lesson, as Shift+Tab would: the panel stands before the viewer in the order of focus.
        page.page.evaluate("document.querySelector('.fl-title').focus()")
        tab_to(page, ".fl-next" if k < 7 else ".fl-leave", 200)
        key.press("Enter")
    assert page.page.evaluate(f"{PANEL}.stop") == ""
    assert "stop=" not in page.page.url
    assert page.page.evaluate("document.activeElement.matches('.fl-start')")
    expect(page.page.locator(".fl-start")).to_have_text("Go on at stop 7")


def test_a_link_opens_its_stop_and_setting_up_again_undoes_what_was_touched(offline, file):
    page = offline(file, "?stop=4")
    ready(page, 4)
    view = OURS.stops[3].view
    assert state(page)["layer"] == view.layer
    page.player("(v.setLayer(1), v.setStep(0), v.setTau(0.0005))")
    page.page.click(".fl-again")
    ready(page, 4)
    page.until(f"d.layer === '{view.layer}' && d.step === '{view.step}' && +d.tau === {view.tau}")
    assert page.page.evaluate(f"{PANEL}.answered") == "false"  # setting up is no answer
    page.page.reload()
    ready(page, 4)


def test_the_lesson_blocks_nothing(offline, file):
    """While a stop is open, everything else works: the gallery, the viewer; leaving keeps the place."""
    page = offline(file, "?stop=2")
    ready(page, 2)
    page.page.locator(".fg-list input[value='anchor']").check(force=True)
    page.until("d.run === 'recorded:anchor'")
    page.page.locator(".fv-canvas").first.click()
    assert page.page.evaluate(f"{PANEL}.answered") == "false"  # another run is no answer
    assert page.page.locator("dialog, [aria-modal='true']").count() == 0
    page.page.click(".fl-leave")
    page.page.click(".fl-start")
    ready(page, 2)
    assert page.data["run"] == f"recorded:{OURS.stops[1].view.run}"


def test_the_noise_beside_the_text_is_that_of_the_token_clicked(offline, file):
    page = offline(file, "?stop=2")
    ready(page, 2)
    for row, col in ((0, 0), (5, 9)):
        page.player(f"v.setToken([0, {row}, {col}])")
        page.page.wait_for_function(f"document.querySelector('.fl-figure').dataset.name.endsWith(' 0,{row},{col}')")
        said = page.page.locator(".fl-sum").inner_text().replace("−", "-")
        a, b, c, d, total = map(float, re.findall(r"-?\d+\.\d+", said.replace("- ", "-")))
        field = lesson.noise(bundle.load(export.TRACES / "strawberry.json"))
        values = np.frombuffer(base64.b64decode(field["values"]), np.int8).reshape(128, 128) / 20
        r, q = 16 * (row // 2), 16 * (col // 2)
        assert [a, b, c, d] == pytest.approx(values[r : r + 2, q : q + 2].ravel().tolist(), abs=1e-6)
        assert total == pytest.approx((a + b + c + d) / 2, abs=0.006)


def test_a_teacher_hides_parts_and_brings_a_lesson(offline, tmp_path):
    (tmp_path / "mine.md").write_text(MINE, encoding="utf-8")
    path = tmp_path / "mine.html"
    assert export.main(["--out", str(path), "anchor", "--lesson", str(tmp_path / "mine.md")]) == 0
    page = offline(path, "?stop=1&hide=tau,cost,keys,nonsense")
    ready(page, 1)
    for selector in (".fv-tau-card", ".fv-keys", ".fv-tau-card + .fv-card"):
        expect(page.page.locator(selector)).to_be_hidden()
    expect(page.page.locator(".fv-line")).to_be_visible()
    page.says("nonsense, which is no part of this page")
    expect(page.page.locator(".fl-body math")).to_have_count(1)
    page.page.locator(".fv-canvas").first.focus()
    page.page.keyboard.press("4")
    expect(page.page.locator(".fl-right")).to_contain_text("That one.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_at_a_stop(offline, file, scheme):
    page = offline(file, "?stop=5", scheme=scheme)
    ready(page, 5)
    page.player("v.setStep(6)")
    found = Axe().run(page.page).response["violations"]
    assert [f"{v['id']}: {v['nodes'][0]['html'][:120]}" for v in found] == []


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_stop_fits_a_phone(offline, file, stop):
    page = offline(file, f"?stop={stop}", width=360, height=780)
    ready(page, stop)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_gallery_says_what_a_run_is_and_what_made_it(offline, file):
    page = offline(file, "?run=anchor")
    page.until("d.run === 'recorded:anchor'")
    expect(page.page.locator(".fg-list input[value='anchor']")).to_be_checked()
    expect(page.page.locator(".fg-line")).to_contain_text("empty tokens settle together")
    page.page.locator(".fg-more summary").click()
    said = page.page.locator(".fg-facts").inner_text()
    for words in ("anchor, noto style, on white", "0.004", "renoise", "sha256", "torch"):
        assert words in said
    images = page.page.locator(".fg-list img")
    page.page.wait_for_function("[...document.querySelectorAll('.fg-list img')].every(i => i.complete && i.naturalWidth > 50)")
    assert images.count() == len(SLUGS) + 1


def test_a_damaged_run_is_a_sentence(offline, file, tmp_path):
    text = file.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    start = text.index('data-slug="anchor">') + len('data-slug="anchor">')
    end = text.index("</script>", start)
    broken.write_text(text[:start] + json.dumps({"type": "bundle"}) + text[end:], encoding="utf-8")
    page = offline(broken)
    page.page.locator(".fg-list input[value='anchor']").check(force=True)
    page.says("left out")
    assert page.data["run"] != "recorded:anchor"


# ------------------------------------------------------------------------------------------------- the page, without weights


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Return the address of a page whose model's weights are not there."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRESCO_SINOPIA", str(tmp_path_factory.mktemp("none") / "absent"))
        app = start(port)
    yield f"http://127.0.0.1:{port}/"
    app.terminate()
    app.wait(timeout=30)


@pytest.fixture
def visitor(chromium, bare):
    """Return a function that opens that page; nothing foreign may be asked and no error logged."""
    visits = []

    def open_page(query=""):
        seen = Visit(chromium.new_context(viewport={"width": 1280, "height": 900}).new_page(), bare)
        visits.append(seen)
        seen.page.goto(bare + query, timeout=90_000)
        seen.until("d.mode === 'recorded' && +d.frames > 0")
        expect(seen.control("prompt")).not_to_have_value("", timeout=90_000)  # the page itself is there, too
        return seen

    yield open_page
    foreign, problems = [u for v in visits for u in v.foreign], [p for v in visits for p in v.problems]
    for seen in visits:
        seen.page.context.close()
    assert (foreign, problems) == ([], [])


def test_the_whole_gallery_plays_without_the_models_weights(visitor):
    page = visitor()
    cards = page.page.locator(".fg-list input")
    expect(cards).to_have_count(len(export.shelf_order()))
    for slug in export.shelf_order():
        page.page.locator(f".fg-list input[value='{slug}']").check(force=True)
        page.until(f"d.run === 'recorded:{slug}' && +d.frames > 0")
        known = bundle.load(export.TRACES / f"{slug}.json")
        expect(page.control("prompt")).to_have_value(known["prompt"])
        assert page.player("v.store.base.length") == len(known["frames"])


def test_settings_of_a_run_are_taken_over_with_one_click(visitor):
    page = visitor()
    page.page.locator(".fg-list input[value='random']").check(force=True)
    page.until("d.run === 'recorded:random'")
    page.page.click(".fg-again")
    page.toast("settings are filled in")
    page.open_advanced()
    for name, value in (("selection", "random"), ("ratio", "0.4"), ("nfe", "18")):
        expect(page.control(name)).to_have_value(value)


def test_a_chosen_run_stays_chosen_while_it_loads_and_another_comes(visitor):
    """The settings of the card that was clicked are taken, even in the moment before its run has come."""
    page, held = visitor(), []
    page.open_advanced()
    page.page.route(re.compile("portrait[^/]*[.]json"), lambda route: held.append(route))
    page.page.locator(".fg-list input[value='portrait']").check(force=True)
    anchor = bundle.load(export.TRACES / "anchor.json")
    page.page.evaluate("(b) => document.querySelector('#viewer .fv-root').frescoViewer.receive(b)", anchor)
    page.until("d.run === 'recorded:anchor'")
    page.page.wait_for_timeout(200)  # the viewer tells of its new run in a task of its own
    expect(page.page.locator(".fg-list input:checked")).to_have_value("portrait")
    page.page.click(".fg-again")
    expect(page.control("size")).to_have_value("portrait, 128 × 96")
    held[0].continue_()
    page.until("d.run === 'recorded:portrait'")


def test_a_card_whose_run_cannot_be_read_is_let_go(visitor):
    page = visitor()
    page.page.route(re.compile("portrait[^/]*[.]json"), lambda route: route.fulfill(body="torn"))
    playing = page.data["run"]
    page.page.locator(".fg-list input[value='portrait']").check(force=True)
    page.says("could not be loaded")
    assert page.data["run"] == playing
    expect(page.page.locator(".fg-list input:checked")).to_have_value(playing.removeprefix("recorded:"))


def test_a_stop_and_a_run_of_the_gallery_open_by_their_address(visitor):
    page = visitor("?stop=6&hide=controls,ask")
    page.page.wait_for_function(f"{PANEL}.stop === '6' && {PANEL}.ready === 'true'", timeout=90_000)
    view = OURS.stops[5].view
    page.until(f"d.run === 'recorded:{view.run}' && +d.step === {view.step} && d.playing === 'false'")
    expect(page.page.locator("#controls")).to_be_hidden()
    expect(page.page.locator("#ask")).to_be_hidden()
    page.page.click("button#share")
    expect(page.page.locator("#address textarea, #address input")).to_have_value(re.compile("run=fresh-noise.*stop=6"))
    other = visitor("?run=anchor&step=4&layer=3")
    other.until("d.run === 'recorded:anchor' && d.step === '4' && d.layer === '3'")


def test_a_recorded_run_is_exported_and_cited_without_a_model(visitor):
    page = visitor("?run=anchor")
    page.until("d.run === 'recorded:anchor'")
    page.page.get_by_role("button", name="Export: film").click()
    with page.page.expect_response(re.compile("/gradio_api/queue/join")):
        page.page.click("button#export")
    expect(page.page.locator("#export-status")).to_contain_text(
        "Done: fresco-anchor-noto-style-on-white-0-film.webp", timeout=90_000
    )
    expect(page.page.locator("#export-file")).to_contain_text(".webp")
    page.page.click("button#cite")
    expect(page.page.locator("#citation textarea")).to_have_value(
        re.compile("anchor.*python -m fresco generate.*run=|anchor.*tau=0.004")
    )


def test_the_trace_of_a_run_comes_through_the_api(bare, tmp_path):
    client = Client(bare, verbose=False)
    job = client.submit("fox", nfe=5, model="oracle", reference="same NFE", api_name="/run")
    messages = [json.loads(m) for m in job]
    run = next(m["run"] for m in messages if m["type"] == "frame")
    said = json.loads(client.predict(run, api_name="/trace"))
    frames = {m["i"]: m for m in messages if m["type"] == "frame" and m["track"] == 0}
    assert [len(e["level"]) for e in said["events"]] == [frames[i]["tokens"] for i in range(5)]
    assert [e["flops"] for e in said["events"]] == [frames[i]["flops"] for i in range(5)]
    packed = json.loads(client.predict(run, 1, "npz", api_name="/trace"))
    (tmp_path / packed["name"]).write_bytes(base64.b64decode(packed["npz"]))
    assert Trace.load(tmp_path / packed["name"]).config.is_full
    for wrong in ((run, 7, "json"), ("gone", 0, "json")):
        with pytest.raises(AppError, match=r"tracks|press Run"):
            client.predict(*wrong, api_name="/trace")


def test_the_trace_of_a_sweep_s_run_comes_by_its_key(bare):
    """The run that the cell tells of, step by step: its prompt, settings, length and cost; an unknown key is said."""
    client = Client(bare, verbose=False)
    job = client.submit(
        "fox", json.dumps({"tau": [0.02, 0.5]}), seed=2, model="oracle", settings='{"nfe": 5}', api_name="/sweep"
    )
    cells = {m["config"]["tau"]: m for m in map(json.loads, job) if m["type"] == "cell"}
    for tau, cell in cells.items():
        said = json.loads(client.predict(f"recorded:{cell['key']}", api_name="/trace"))
        assert (said["prompt"], said["config"]) == ("fox", cell["config"])
        assert said["config"]["tau"] == tau
        assert sum(event["flops"] for event in said["events"]) == pytest.approx(cell["flops"], rel=1e-12)
        assert len(said["events"]) == 5
    with pytest.raises(AppError, match="press Run"):
        client.predict("recorded:never", api_name="/trace")


def test_a_visitors_own_run_is_kept_renamed_and_removed_in_this_browser(visitor):
    page = visitor("?model=oracle&prompt=mine&nfe=4&reference=same+NFE")
    page.run()
    page.finished()
    tokens = page.player("v.store.tracks.get(0).frames.map(f => [f.tokens, f.promoted, f.flops])")
    page.page.click(".fg-keep")
    expect(page.page.locator(".fg-list li").first).to_contain_text("mine")
    page.page.reload()
    page.until("d.mode === 'recorded' && +d.frames > 0")
    expect(page.page.locator("#hardware")).to_contain_text("Runs on")  # Gradio is there: it opens the first run once more
    own = page.page.locator(".fg-list input[value^='own-']")
    expect(own).to_have_count(1)
    own.check(force=True)
    page.until("d.run.startsWith('recorded:own-')")
    assert page.player("v.store.tracks.get(0).frames.map(f => [f.tokens, f.promoted, f.flops])") == tokens
    page.page.click(".fg-rename")
    page.page.fill(".fg-name", "My run")
    page.page.keyboard.press("Enter")
    expect(page.page.locator(".fg-list li").first).to_contain_text("My run")
    page.page.click(".fg-remove")
    expect(own).to_have_count(0)
    page.page.reload()
    page.until("d.mode === 'recorded' && +d.frames > 0")
    expect(page.page.locator(".fg-list input")).to_have_count(len(export.shelf_order()))
