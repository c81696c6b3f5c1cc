"""A live run in the browser: every click counts, nothing sticks, nothing jumps, and a person is never overruled by the page."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from .conftest import PATIENCE, Visit
from .test_page import BUNDLES, FIRST, held

LAST = json.loads(BUNDLES[-1].read_text(encoding="utf-8"))
# What the status line says, in order and each sentence once.
LISTEN = """() => {
  const line = document.querySelector('#viewer .fv-status'), said = window.said = [];
  new MutationObserver(() => { if (said.at(-1) !== line.textContent) said.push(line.textContent); })
    .observe(line, { childList: true, characterData: true, subtree: true });
}"""


def started(page, frames=3):
    """Press Run and return the run's id once some steps are there."""
    run = page.run()
    page.until(f"+d.frames >= {frames}")
    return run


@pytest.mark.parametrize("wait", [0, 50, 150, 400])
def test_run_pressed_after_stop_leads_to_a_run(visit, wait):
    page = visit(nfe=40, reference="none")
    page.page.evaluate(LISTEN)
    run = started(page)
    press = f"""() => {{
      document.querySelector('button#stop').click();
      setTimeout(() => document.querySelector('button#run').click(), {wait});
    }}"""
    page.page.evaluate(press)
    page.until(f"d.mode === 'live' && d.run !== '{run}' && +d.frames > 0")
    again = page.data["run"]
    page.page.click("button#stop")
    page.says("Stopped at step")
    said = page.page.evaluate("window.said")
    assert [text[:15] for text in said if text.startswith(("Stopped", "Starting"))] == [
        "Starting…", "Stopped at step", "Starting…", "Stopped at step",
    ]  # fmt: skip
    page.put("nfe", 4)
    assert page.run() not in (run, again)
    page.finished()
    assert held(page, run) < 40
    assert held(page, again) < 40


def test_run_pressed_during_a_run_replaces_it(visit):
    page = visit(nfe=40, reference="none")
    page.page.evaluate(LISTEN)
    run = started(page)
    page.put("nfe", 4)
    page.page.click("button#run")
    page.says("Finishing the last step of the run before")
    page.until("+d.nfe === 4 && +d.frames === 4")
    page.finished()
    assert page.data["run"] != run
    assert held(page, run) < 40


def test_stop_before_the_first_step_and_stop_without_a_run_do_no_harm(visit):
    page = visit(nfe=4, reference="none")
    page.page.click("button#stop")
    assert page.data["mode"] == "recorded"
    assert page.data["playing"] == "true"
    page.page.evaluate("""() => {
      const press = (name) => document.querySelector(`button#${name}`).click();
      const line = document.querySelector('#viewer .fv-status');
      press('run');
      new MutationObserver((_, watcher) => { watcher.disconnect(); press('stop'); }).observe(line, { childList: true });
    }""")
    page.says("Stopped before its first step.")
    page.run()
    page.finished()
    page.page.click("button#stop")
    assert page.status.startswith("Done.")


def test_a_run_that_fails_leaves_nothing_running(visit):
    page = visit(nfe=4, reference="none")
    page.put("prompt", " ")
    page.page.click("button#run")
    page.toast("prompt is empty")
    page.says("The run did not start")


def test_a_line_that_breaks_is_a_sentence_and_the_steps_so_far_stay(visit):
    page = visit(nfe=40, reference="none")
    page.page.route("**/fresco/run/*", lambda route: route.abort() if route.request.method == "GET" else route.continue_())
    page.page.click("button#run")
    page.says("The connection to the server was lost")
    page.problems.clear()  # Chromium names the request that we broke
    page.page.unroute("**/fresco/run/*")
    page.put("nfe", 4)
    page.run()
    page.finished()


def test_two_tabs_of_one_browser_run_at_once(visit, server):
    one = visit(nfe=6, reference="none", prompt="sunflower, noto style, on purple")
    page = one.page.context.new_page()
    two = Visit(page, server)
    page.goto(f"{server}?nfe=6&reference=none&prompt=owl", timeout=PATIENCE)
    expect(page.locator("#hardware")).to_contain_text("Runs on", timeout=PATIENCE)
    for tab in (one, two):
        tab.page.click("button#run")
    for tab, prompt in ((one, "sunflower, noto style, on purple"), (two, "owl")):
        tab.until("d.mode === 'live' && +d.frames === 6")
        tab.finished()
        assert tab.player("v.state().finished")
        assert tab.player("v.store.tracks.get(0).meta.prompt") == prompt
    assert one.data["run"] != two.data["run"]
    assert two.problems == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_nothing_jumps_while_a_run_streams(visit, width, height):
    """Law: no element moves between the first step and the last; the browser's own measure of jumps stays at 0."""
    page = visit(width, height, nfe=8, reference="same NFE")
    page.run()
    page.page.locator("#viewer .fv-panes").scroll_into_view_if_needed()
    page.page.evaluate("""() => {
      window.jumps = [];
      new PerformanceObserver((list) => {
        for (const e of list.getEntries()) {
          if (!e.hadRecentInput) window.jumps.push([e.value, e.sources.map((s) => s.node?.className ?? '').join(' ')]);
        }
      }).observe({ type: 'layout-shift' });
    }""")
    page.finished()
    page.until("+d.frames === 8 && +d.framesRef === 8")
    assert [jump for jump in page.page.evaluate("window.jumps") if jump[0] > 0.001] == []


def test_dragging_tau_with_a_finger_does_not_scroll_the_page(chromium, server):
    """Touches go through the browser's own gesture recognition: a drag along and a little across moves tau, not the page."""
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = Visit(context.new_page(), server)
    page.page.goto(server, timeout=PATIENCE)
    page.until("d.mode === 'recorded' && +d.frames > 0")
    expect(page.page.locator("#hardware")).to_contain_text("Runs on", timeout=PATIENCE)
    page.page.locator(".fv-play").click()
    page.page.locator("#viewer .fv-hist").evaluate("node => node.scrollIntoView({ block: 'center' })")
    strip = page.page.locator("#viewer .fv-hist").bounding_box()
    x, y = strip["x"] + strip["width"] / 2, strip["y"] + strip["height"] / 2
    before, tau = page.page.evaluate("scrollY"), float(page.data["tau"])
    session = context.new_cdp_session(page.page)

    def touch(kind, *points):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    touch("touchStart", (x, y))
    for k in range(1, 9):
        touch("touchMove", (x + 12 * k, y + 9 * k))
    assert float(page.data["tau"]) > tau
    touch("touchEnd")
    page.until(f"+d.tau > {tau}")
    assert page.page.evaluate("scrollY") == before
    assert page.problems == []
    context.close()


@pytest.mark.parametrize("slow", ["every answer", "the opening alone"])
def test_a_choice_made_before_the_page_is_ready_wins(chromium, server, slow):
    """The gallery is there before Gradio's answer to the opening of the page, which names the first run and its settings."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = Visit(context.new_page(), server)
    late = []

    def join(route):
        if slow == "every answer" or len(late) < 2:  # the page opens with two events
            late.append(route.request.post_data)
            page.page.wait_for_timeout(1500)
        route.continue_()

    page.page.route("**/queue/join*", join)
    page.page.goto(server, timeout=PATIENCE, wait_until="commit")
    card = page.page.locator(f"#gallery label:has(input[value='{LAST['slug']}'])")
    card.click(timeout=PATIENCE)
    assert page.page.locator("#hardware").inner_text() == ""  # the opening has not been answered
    expect(page.page.locator("#hardware")).to_contain_text("Runs on", timeout=PATIENCE)
    page.until(f"d.run === 'recorded:{LAST['slug']}'")
    expect(page.control("prompt")).to_have_value(LAST["prompt"], timeout=PATIENCE)
    page.page.wait_for_timeout(2000)  # an answer that comes later would be the fault
    assert page.data["run"] == f"recorded:{LAST['slug']}"
    expect(page.control("prompt")).to_have_value(LAST["prompt"])
    expect(page.page.locator(f"#gallery input[value='{LAST['slug']}']")).to_be_checked()
    assert LAST["prompt"] != FIRST["prompt"]
    assert page.problems == []
    context.close()


def test_an_address_opens_its_run_where_nobody_was_faster(visit):
    page = visit(run=LAST["slug"])
    page.until(f"d.run === 'recorded:{LAST['slug']}'")
    expect(page.control("prompt")).to_have_value(re.compile(re.escape(LAST["prompt"])))


def test_a_prompt_typed_before_the_page_is_ready_stays(chromium, server):
    """What the server says on loading comes late: here only after something was typed."""
    page, held = chromium.new_page(), []
    typed = False
    page.route("**/queue/join*", lambda route: route.continue_() if typed else held.append(route))
    page.goto(server)
    prompt = page.locator("#prompt textarea, #prompt input").first
    prompt.fill("a penguin on red", timeout=PATIENCE)
    typed = True
    for route in held:
        route.continue_()
    expect(page.locator("#hardware")).to_contain_text("Runs on", timeout=PATIENCE)
    page.wait_for_timeout(500)
    expect(prompt).to_have_value("a penguin on red")
    page.close()
