"""The exported page opened from disk in a browser without a network, and the static site behind a plain file server."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from fresco.config import FrescoConfig
from fresco.grid import TokenGrid
from fresco.trace import StepEvent, Trace
from viz import bundle, export

from .conftest import Visit

TRACES = [Path(__file__).parents[2] / "assets" / "traces" / f"{slug}.json" for slug in ("panda", "strawberry")]  # tables
RUNS = [json.loads(path.read_text(encoding="utf-8")) for path in TRACES]
EVIL = "</script x <!--<script </script><img src=x onerror=alert(1)> \u2028 fox"


def ratio_trace():
    """Return a run driven by a ratio on an odd grid: no tau to switch by, thresholds of its own."""
    random, coarse = np.random.default_rng(3), TokenGrid.uniform((1, 5, 6), 1, 0)
    fine, events = TokenGrid.uniform((1, 5, 6), 1, 1), []
    for k, grid in enumerate([coarse, coarse, coarse, fine]):
        n, last = len(grid), k == 2
        variance = random.uniform(1e-3, 1e-1, n).astype(np.float32) if k else np.full(n, np.nan, np.float32)
        events.append(
            StepEvent(k, 1 - k / 4, 0.75 - k / 4, "full" if k == 3 else "low", last, last, 0.05, 1.0, grid, variance,
                      np.full(n, last), random.integers(0, 256, (1, 20, 24, 3), np.uint8), float(n), 0.01, 0.001,
                      np.zeros(n, np.float32))
        )  # fmt: skip
    return Trace(EVIL, FrescoConfig.recommended(4, ratio=0.4), "oracle", "", {"weights": "none"}, events)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the addresses of the exported pages: one with several prompts, one with a single run of a trace."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "many.html").write_text(export.page(RUNS, title="A talk", text="Drag tau."), encoding="utf-8")
    (folder / "one.html").write_text(export.page(bundle.from_traces([ratio_trace()]), title=EVIL), encoding="utf-8")
    export.static_site(folder / "site", RUNS)
    return folder


@pytest.fixture
def offline(chromium, files):
    """Return a function that opens an exported file with the network off; afterwards nothing was asked or complained of.

    The page's own ban on loading is lifted (`bypass`), so that a request would be seen rather than held back by it.
    """
    visits = []

    def open_file(name, query="", width=1280, height=900, scheme="light", bypass=True):
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=bypass)
        context.set_offline(True)
        seen = Visit(context.new_page(), (files / name).as_uri())
        visits.append(seen)
        seen.page.goto((files / name).as_uri() + query)
        expect(seen.page.locator("#viewer .fv-status")).not_to_be_empty()
        return seen

    yield open_file
    asked, problems = [v.requests[1:] for v in visits], [p for v in visits for p in v.problems]
    for seen in visits:
        seen.page.context.close()
    assert asked == [[] for _ in visits]  # the document itself is the first request
    assert problems == []


def tokens(run, tau, nfe):
    """Return the tokens of every step of a recorded run, from the file."""
    (found,) = [r for r in run["runs"] if (r["tau"], r["nfe"]) == (tau, nfe)]
    return [run["frames"][k]["tokens"] for k in found["frames"]]


def shown_tokens(page):
    return page.player("v.store.tracks.get(0).frames.map(f => f.tokens)")


def test_it_plays_from_disk_and_its_pictures_are_drawn(offline):
    page = offline("many.html")
    assert page.data["playing"] == "true"
    first = int(page.data["step"])
    page.until(f"+d.step > {first}")
    page.page.locator(".fv-play").click()
    page.player("(v.goto(v.store.tracks.get(0).of - 1), v.setLayer(1))")
    # The last picture's middle pixel on the canvas is the recorded picture's, decoded by the same browser.
    page.page.wait_for_function(
        """async (src) => {
          const image = new Image(); image.src = src; await image.decode();
          const pen = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d');
          pen.drawImage(image, image.width >> 1, image.height >> 2, 1, 1, 0, 0, 1, 1);
          const want = pen.getImageData(0, 0, 1, 1).data, canvas = document.querySelector('.fv-canvas');
          const [x, y] = [(image.width >> 1) + 0.5, (image.height >> 2) + 0.5];
          const got = canvas.getContext('2d')
            .getImageData(x / image.width * canvas.width, y / image.height * canvas.height, 1, 1).data;
          return got[3] === 255 && [0, 1, 2].every((c) => Math.abs(want[c] - got[c]) < 24);
        }""",
        arg=RUNS[0]["frames"][next(r for r in RUNS[0]["runs"] if (r["tau"], r["nfe"]) == middle(RUNS[0]))["frames"][-1]][
            "preview"
        ],
        timeout=20_000,
    )


def middle(run):
    return run["taus"][len(run["taus"]) // 2], run["nfes"][len(run["nfes"]) // 2]


def test_the_tau_handle_and_nfe_switch_between_the_recorded_runs(offline):
    page = offline("many.html")
    page.page.locator(".fv-play").click()
    tau, nfe = middle(RUNS[0])
    assert shown_tokens(page) == tokens(RUNS[0], tau, nfe)
    handle = page.page.locator(".fv-tau")
    handle.focus()
    handle.press("ArrowRight")
    up = RUNS[0]["taus"][RUNS[0]["taus"].index(tau) + 1]
    page.until(f"+d.tau === {up}")
    assert shown_tokens(page) == tokens(RUNS[0], up, nfe)
    strip = page.page.locator(".fv-hist")
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    page.page.mouse.move(handle.bounding_box()["x"] + 20, box["y"] + 60)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 13, box["y"] + 60, steps=4)
    page.page.mouse.up()
    low = RUNS[0]["taus"][0]
    page.until(f"+d.tau === {low}")
    page.page.locator(".fv-nfe-seg label").first.click()
    page.until(f"+d.nfe === {RUNS[0]['nfes'][0]}")
    assert shown_tokens(page) == tokens(RUNS[0], low, RUNS[0]["nfes"][0])


def test_the_chooser_opens_another_prompt_by_keyboard(offline):
    page = offline("many.html")
    expect(page.page.locator(".fv-prompt")).to_contain_text(RUNS[0]["prompt"])
    page.page.locator(".fg-list input").first.focus()
    page.page.keyboard.press("ArrowRight")
    expect(page.page.locator(".fv-prompt")).to_contain_text(RUNS[1]["prompt"])
    assert shown_tokens(page) == tokens(RUNS[1], *middle(RUNS[1]))
    assert page.data["run"] == f"recorded:{RUNS[1]['slug']}"


def test_the_address_says_prompt_step_token_and_layer(offline):
    tau, nfe = RUNS[1]["taus"][1], RUNS[1]["nfes"][0]
    page = offline("many.html", f"?run={RUNS[1]['slug']}&step=4&token=0,3,5&layer=4&tau={tau}&nfe={nfe}")
    page.until(f"d.step === '4' && d.token === '0,3,5' && d.layer === '4' && +d.tau === {tau} && +d.nfe === {nfe}")
    assert page.data["playing"] == "false"
    expect(page.page.locator(".fg-list input").nth(1)).to_be_checked()
    expect(page.page.locator(".fv-prompt")).to_contain_text(RUNS[1]["prompt"])


def test_a_single_run_by_ratio_shows_its_own_threshold(offline):
    page = offline("one.html")
    page.page.locator(".fv-play").click()
    page.player("v.goto(2)")
    page.until("d.step === '2' && +d.tau === 0.05")
    expect(page.page.locator(".fv-tau-value")).to_have_text("tau 0.05")
    page.player("v.setTau(0.02)")  # dragging elsewhere shows what it would take, letting go returns to the run's own
    page.until("+d.tau === 0.05 && d.step === '2'")
    page.page.locator(".fv-tau").press("ArrowRight")
    page.until("+d.tau === 0.05")
    assert shown_tokens(page) == [9, 9, 9, 30]
    assert (
        page.page.locator("#viewer img, .fg-gallery:not([hidden])").count() == 0
    )  # the prompt is text, and there is nothing to choose
    expect(page.page.locator(".fv-prompt")).to_contain_text("onerror=alert(1)")
    expect(page.page.locator("h1")).to_have_text(EVIL)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_systems_scheme_and_axe_finds_nothing(offline, scheme):
    page = offline("many.html", "?step=9&token=0,3,5", scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).every(c => +c {} 128)"
    assert page.page.evaluate(ground.format("<" if scheme == "dark" else ">"))
    assert Axe().run(page.page).response["violations"] == []
    other = "light" if scheme == "dark" else "dark"
    page.page.emulate_media(color_scheme=other)  # it changes with the system while it is open
    page.page.wait_for_function(f"document.body.classList.contains('dark') === {'true' if other == 'dark' else 'false'}")


@pytest.mark.parametrize("name", ["many.html", "one.html"])
def test_nothing_is_wider_than_a_phone(offline, name):
    page = offline(name, "?step=2&token=0,3,5", width=390, height=844)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
    for canvas in page.page.locator("#viewer .fv-canvas").all():
        box = canvas.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_the_page_itself_forbids_the_network_and_still_plays(offline):
    page = offline("many.html", bypass=False)
    page.page.context.set_offline(False)
    root = page.page.locator("#viewer .fv-root")
    expect(root).to_have_attribute("data-playing", "true")
    expect(root).to_have_attribute("data-step", "2", timeout=20_000)
    assert page.problems == []
    blocked = page.page.evaluate(
        """() => new Promise((done) => {
          addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));
          fetch('https://example.invalid/').catch(() => {});
        })"""
    )
    assert blocked == "connect-src"
    page.problems.clear()  # the refusal that was asked for; the browser lists the request, though it never left
    del page.requests[1:]


# ----------------------------------------------------------------------------------------------------------- static site


@pytest.fixture
def site(files) -> Iterator[str]:
    """Return the address of a plain file server over the static site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(files / "site")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


def test_the_static_site_fetches_only_the_run_that_is_chosen(chromium, site):
    context = chromium.new_context()
    page = Visit(context.new_page(), site)
    page.page.goto(f"{site}?run={RUNS[1]['slug']}")
    page.until(f"d.run === 'recorded:{RUNS[1]['slug']}' && +d.frames > 0")
    assert page.requests == [f"{site}?run={RUNS[1]['slug']}", f"{site}runs/{RUNS[1]['slug']}.json"]
    page.page.locator(".fg-list label").first.click()
    page.until(f"d.run === 'recorded:{RUNS[0]['slug']}' && +d.frames > 0")
    assert shown_tokens(page) == tokens(RUNS[0], *middle(RUNS[0]))
    assert page.foreign == []
    assert page.problems == []
    context.close()


def test_the_folder_opened_from_disk_says_what_it_needs(offline):
    page = offline("site/index.html")
    assert "web server" in page.status
    assert page.data["frames"] == "0"
