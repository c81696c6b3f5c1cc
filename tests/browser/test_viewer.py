"""The viewer alone, without a server behind it: several runs, video, its interface for scripts, access, piecewise loading.

Messages are made by viz.frame and viz.bundle from the oracle's runs, or from events made here whose pictures are one colour
each, so that what the canvas must show is known to a shade.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from fresco.backends.oracle import OracleModel
from fresco.config import FrescoConfig
from fresco.grid import TokenGrid
from fresco.record import full_step, run
from fresco.trace import StepEvent
from viz import bundle, frame, mount, style

from .conftest import Visit

MODEL = OracleModel(shape=(1, 8, 10))
STEP = full_step(MODEL, FrescoConfig())
CONFIGS = [
    FrescoConfig.recommended(nfe=9, tau=0.01, seed=4),
    FrescoConfig.recommended(nfe=9, tau=0.1, seed=4),
    FrescoConfig.recommended(nfe=6, tau=0.01, seed=4),
    FrescoConfig.full(12, seed=4),
]
LABELS = ["Fresco", "Higher tau", "Fewer calls", "Full resolution, 12 steps"]
AXE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Viewer</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>body {{ margin: 16px; font-family: sans-serif; background: #fff; }} body.dark {{ background: #14171c; }}</style>
{script}</head>
<body class="{theme}"><main><h1 style="font-size: 16px; color: #000; background: #fff">Viewer</h1>
<div id="viewer"><div id="place"></div></div></main><script>
window.sent = []; window.changes = [];
document.addEventListener('fresco:change', (event) => changes.push(event.detail));
const props = {{ value: '' }};
let changed = () => {{}};
window.push = (message) => {{ props.value = message; changed(); }};
window.put = () => frescoMount(document.getElementById('place'), (name, data) => sent.push([name, data]), props,
  {{ backfill: async () => [] }}, null, (name, act) => {{ changed = act; }});
{begin}
</script></body></html>"""
SITE = "http://viewer.test/"


@pytest.fixture
def alone(chromium):
    """Return a function that opens a page with the viewer alone; afterwards nothing was asked of anyone, or complained of."""
    visits = []

    def open_page(width=1280, height=900, dark=False, runs=(), put=True, files=None, **context):
        page = chromium.new_context(viewport={"width": width, "height": height}, **context).new_page()
        text = PAGE.format(script=mount.script(runs), theme="dark" if dark else "", begin="put();" if put else "")
        page.route(SITE + "**", lambda route: route.fulfill(
            body=(files or {}).get(route.request.url.removeprefix(SITE), text),
            content_type="text/html; charset=utf-8"))  # fmt: skip
        seen = Visit(page, SITE)
        visits.append(seen)
        page.goto(SITE)
        return seen

    yield open_page
    foreign, problems = [u for v in visits for u in v.foreign], [p for v in visits for p in v.problems]
    for seen in visits:
        seen.page.context.close()
    assert foreign == []
    assert problems == []


def send(page, messages):
    for message in messages:
        page.page.evaluate("(m) => push(m)", message)


def do(page, call):
    """Call the documented interface; return the state that it says."""
    return page.page.evaluate(f"document.querySelector('.fv-root').frescoViewer.{call}")


@pytest.fixture(scope="module")
def traces():
    return [run(MODEL, "fox", config, label=label) for config, label in zip(CONFIGS, LABELS, strict=True)]


def messages(traces, count=4):
    """Return the messages of a comparison, a step of each track in turn."""
    tracks = []
    for k, trace in enumerate(traces[:count]):
        said = frame.meta(trace.config, prompt="fox", model="oracle", device="cpu", full_step=STEP)
        tracks.append(frame.Track("abc", k, LABELS[k], trace.config.nfe, said, STEP, tracks=count))
    longest = max(len(t.events) for t in traces[:count])
    out = [
        track.add(t.events[i]) for i in range(longest) for track, t in zip(tracks, traces, strict=False) if i < len(t.events)
    ]
    return [*out, frame.done("abc")]


def plain(shape, colours, steps=4, track=0, config=None, run_id="plain", label="Fresco"):
    """Return messages of a run whose pictures are one colour each, colours[step][picture], and whose tokens are all coarse."""
    config = config or FrescoConfig.recommended(nfe=steps, tau=0.01)
    said = frame.meta(config, prompt="plain", model="none", device="cpu", full_step=10.0)
    made = frame.Track(run_id, track, label, steps, said, 10.0)
    coarse, random = TokenGrid.uniform(shape, 1, 0), np.random.default_rng(track)
    out = []
    for k in range(steps):
        n = len(coarse)
        picture = np.broadcast_to(np.array(colours[k], np.uint8)[:, None, None, :], (len(colours[k]), 48, 64, 3))
        out.append(made.add(StepEvent(
            k, 1 - k / steps, 1 - (k + 1) / steps, "low", False, False, 0.01, 0.5, coarse,
            random.uniform(1e-3, 1e-1, n).astype(np.float32), np.zeros(n, bool), np.ascontiguousarray(picture),
            float(n), 0.01, 0.001, np.zeros(n, np.float32))))  # fmt: skip
    return out


def shade(page, pane, x=0.5, y=0.5):
    """Return the colour a pane's canvas shows at a place, once its picture is decoded."""
    find = """([pane, x, y]) => {
      const canvas = document.querySelectorAll('.fv-canvas')[pane];
      const p = canvas.getContext('2d').getImageData(x * canvas.width, y * canvas.height, 1, 1).data;
      return p[3] === 255 ? [...p].slice(0, 3) : null;
    }"""
    return np.array(page.page.wait_for_function(find, arg=[pane, x, y], timeout=30_000).json_value())


def settles(page, pane, wanted, within=12):
    """Wait until a pane shows a colour; pictures are decoded off the script's thread."""
    page.page.wait_for_function(
        """([pane, want, within]) => {
          const canvas = document.querySelectorAll('.fv-canvas')[pane];
          const p = canvas.getContext('2d').getImageData(canvas.width * 0.45, canvas.height * 0.55, 1, 1).data;
          return [0, 1, 2].every((c) => Math.abs(p[c] - want[c]) <= within);
        }""",
        arg=[pane, [int(c) for c in wanted], within],
        timeout=30_000,
    )


# ---------------------------------------------------------------------------------------------------------- side by side


def test_four_runs_stand_side_by_side_aligned_by_cost_and_by_step(alone, traces):
    page = alone()
    send(page, messages(traces))
    page.until("d.panes === '4' && d.frames === '9'")
    names = page.page.locator(".fv-pane").evaluate_all(
        """list => list.map((p) => p.querySelector('.fv-ref:not([hidden])')?.selectedOptions[0].text
             ?? p.querySelector('.fv-name').textContent)"""
    )
    assert names == LABELS
    spent = [np.cumsum([e.flops for e in t.events]) for t in traces]
    stops = page.player("v.stops().map(s => [s.at, s.cost, s.tail])")
    for at, cost, tail in stops:
        assert at[1:] == [int((s <= cost * (1 + 1e-9)).sum()) - 1 for s in spent[1:]]
        assert at[0] == (8 if tail else int(np.argmin(abs(spent[0] - cost))))
    later = sorted({float(c) for s in spent[1:] for c in s if c > spent[0][-1] * (1 + 1e-9)})
    assert [c for _, c, tail in stops if tail] == pytest.approx(later)
    do(page, "setAlign('step')")
    assert page.player("v.stops().map(s => s.at)") == [[min(k, len(s) - 1) for s in spent] for k in range(12)]
    state = do(page, "setStep(4)")
    assert [p["step"] for p in state["panes"]] == [4, 4, 4, 4]
    assert page.page.locator(".fv-line-svg .fv-rail").count() == 4


def test_only_what_differs_between_the_runs_is_listed(alone, traces):
    page = alone()
    send(page, messages(traces))
    page.until("d.panes === '4'")
    expect(page.page.locator(".fv-diffs table")).to_be_visible()
    rows = page.page.locator(".fv-diffs tr").evaluate_all("l => l.map(r => [...r.cells].map(c => c.textContent))")
    said = {row[0]: row[1:] for row in rows}
    assert said.pop("Setting") == LABELS
    assert said.pop("NFE") == ["9", "9", "6", "12"]
    assert said.pop("tau") == ["0.01", "0.1", "0.01", "–"]
    assert said.pop("low + mixed + full") == [" + ".join(map(str, c.split)) for c in CONFIGS]
    assert said == {}  # seed, prompt, model and all else are the same


def test_each_run_says_what_it_cost(alone, traces):
    page = alone()
    send(page, messages(traces))
    page.until("d.panes === '4'")
    do(page, "setStop(99)")
    page.until(f"+d.step === {CONFIGS[0].nfe - 1}")
    expect(page.page.locator(".fv-costs li")).to_have_count(4)
    for row, trace in zip(page.page.locator(".fv-costs li").all(), traces, strict=True):
        share = trace.flops / (50 * STEP)
        said = f"{100 * share:.1f} %" if share < 0.1 else f"{math.floor(100 * share + 0.5)} %"
        expect(row.locator("b")).to_have_text(f"{said} of {said}")


def test_one_run_and_its_reference_look_as_ever(alone, traces):
    page = alone()
    send(page, messages([traces[0], traces[3]], 2))
    page.until("d.panes === '2' && d.framesRef === '12'")
    for name in ("fv-diffs", "fv-costs", "fv-count-group", "fv-slice-group", "fv-lines"):
        expect(page.page.locator(f".{name}")).to_be_hidden()
    expect(page.page.locator(".fv-ref")).to_be_hidden()
    assert "same cost: reference step" in page.page.locator(".fv-now").inner_text()


def test_a_visitor_puts_other_recorded_runs_beside_the_first(alone, traces):
    """Law: nothing is asked of a server for it, and each pane is the file's own run, token for token."""
    runs = [run(MODEL, "fox", FrescoConfig.recommended(nfe=n, tau=t)) for n in (6, 9) for t in (0.01, 0.1)]
    whole = bundle.build("fox", [bundle.Recorded(t) for t in runs], [bundle.Recorded(traces[3])], STEP)
    page = alone()
    page.page.evaluate("(b) => push(b)", json.dumps(whole))
    page.until("d.mode === 'recorded' && d.panes === '2'")
    do(page, "pause()")
    page.page.locator("label:has(.fv-count[value='3'])").click()
    page.until("d.panes === '3'")
    page.page.locator(".fv-pane").nth(2).locator("select").select_option(label="Fresco, tau 0.01, NFE 6")
    shown = page.player(
        "[...v.store.tracks.values()].find(t => t.label === 'Fresco, tau 0.01, NFE 6').frames.map(f => f.tokens)"
    )
    assert shown == [len(e.grid) for e in runs[0].events]
    expect(page.page.locator(".fv-diffs")).to_be_visible()
    # Choosing what another pane shows makes the two change places.
    first = page.page.locator(".fv-pane").nth(1).locator("select")
    first.select_option(label="Fresco, tau 0.01, NFE 6")
    expect(page.page.locator(".fv-pane").nth(2).locator("select option:checked")).to_have_text(traces[3].label)
    page.page.locator("label:has(.fv-count[value='2'])").click()
    page.until("d.panes === '2'")
    assert page.page.locator(".fv-pane").count() == 2


def test_the_difference_of_any_two_runs(alone):
    """Law: the colour is viridis at the mean channel difference over 40 %."""
    colours = {0: (200, 100, 60), 1: (140, 100, 60), 2: (200, 220, 60)}
    page = alone()
    for track, colour in colours.items():
        send(page, plain((1, 6, 8), [[colour]] * 4, track=track, label=f"Run {track}"))
    page.until("d.panes === '3'")
    do(page, "setOpacity(1)")
    do(page, "setLayer('difference')")
    page.page.locator(".fv-against").select_option("1 now")

    def expected(one, other):
        far = sum(abs(a - b) for a, b in zip(colours[one], colours[other], strict=True)) / 765
        return 255 * np.array(style.MAP(min(1.0, far / 0.4))[:3])

    settles(page, 0, expected(0, 1))
    settles(page, 1, colours[1])  # the run the others are compared with shows itself
    settles(page, 2, expected(2, 1))
    page.page.locator(".fv-against").select_option("2 end")
    settles(page, 0, expected(0, 2))
    settles(page, 2, 255 * np.array(style.MAP(0.0)[:3]))


# ------------------------------------------------------------------------------------------------------------------ video


def video(page):
    """Show a video of nine pictures over three frames of tokens; return the pictures' colours at the last step."""
    colours = [[(28 * t, 255 - 28 * t, 40 * k) for t in range(9)] for k in range(4)]
    send(page, plain((3, 6, 8), colours))
    page.until("d.frames === '4'")
    do(page, "setStep(3)")
    do(page, "setLayer(1)")
    return colours[3]


def test_every_frame_of_a_video_is_shown(alone):
    page = alone()
    colours = video(page)
    slider = page.page.locator(".fv-slice")
    expect(slider).to_be_visible()
    slider.focus()
    slider.press("Home")
    for k, colour in enumerate(colours):
        settles(page, 0, colour)
        expect(page.page.locator(".fv-slice-now")).to_have_text(f"{k + 1} of 9")
        slider.press("ArrowRight")
    page.page.locator(".fv-line").focus()
    page.page.keyboard.press(",")
    settles(page, 0, colours[7])
    page.page.keyboard.press(".")
    settles(page, 0, colours[8])


def test_the_token_maps_follow_the_frame(alone):
    """Law: of 1 + 4 n pictures the first has tokens of its own, each further four share theirs."""
    page = alone()
    video(page)
    do(page, "setLayer(2)")
    do(page, "setOpacity(1)")
    canvas = page.page.locator(".fv-canvas").first
    for picture, grid in ((0, 0), (1, 1), (4, 1), (5, 2), (8, 2)):
        do(page, f"setFrame({picture})")
        box = canvas.bounding_box()
        canvas.click(position={"x": box["width"] * 0.45, "y": box["height"] * 0.55})
        page.until(f"d.token === '{grid},3,3'")
        code = page.player(
            f"(() => {{ const f = v.store.tracks.get(0).frames[3];"
            f" return [f.q[f.index[{grid} * 48 + 3 * 8 + 3]], v.store.range] }})()"
        )
        unit = np.log(frame.VMIN * (frame.VMAX / frame.VMIN) ** ((code[0] - 1) / 65534) / code[1][0]) / np.log(
            code[1][1] / code[1][0]
        )
        do(page, "setToken(null)")
        page.page.mouse.move(0, 0)
        settles(page, 0, 255 * np.array(style.MAP(unit)[:3]), within=6)
    state = do(page, "setToken([1, 2, 2])")  # a token elsewhere in time brings its frame
    assert (state["frame"], state["frames"]) == (1, 9)


def test_a_picture_has_no_frame_slider(alone, traces):
    page = alone()
    send(page, messages(traces, 1))
    page.until("d.frames === '9'")
    for name in ("fv-slice", "fv-loop", "fv-frame-keys"):
        expect(page.page.locator(f".{name}")).to_be_hidden()
    assert do(page, "setFrame(3)")["frame"] == 0


def test_frames_loop_only_when_asked(alone):
    page = alone()
    video(page)
    do(page, "setFrame(0)")
    page.page.locator(".fv-loop").click()
    page.until("+d.frame > 1")
    expect(page.page.locator(".fv-loop")).to_have_attribute("aria-pressed", "true")
    page.page.locator(".fv-loop").click()
    expect(page.page.locator(".fv-loop")).to_have_attribute("aria-pressed", "false")


# ------------------------------------------------------------------------------------------------- for other scripts


def test_the_interface_sets_what_it_says_and_tells_of_every_change_once(alone, traces):
    page = alone()
    send(page, messages([traces[0], traces[3]], 2))
    page.until("d.framesRef === '12'")
    for call, name, value in (
        ("setStep(5)", "step", 5), ("setStep(99)", "step", 8), ("setLayer('levels')", "layer", 3),
        ("setLayer(5)", "layer", 5), ("setToken([0, 3, 4])", "token", [0, 3, 4]), ("setAlign('step')", "align", "step"),
        ("setOpacity(0.25)", "opacity", 0.25), ("setTau(0.02)", "tau", 0.02), ("play()", "playing", True),
        ("pause()", "playing", False), ("setToken(null)", "token", None),
    ):  # fmt: skip
        page.page.evaluate("changes.length = 0")
        assert do(page, call)[name] == value
        page.page.wait_for_function("changes.length > 0")
        assert page.page.evaluate(f"changes.filter(c => c.changed.includes('{name}')).map(c => [c.by, c.{name}])") == [
            ["api", value]
        ]
        assert do(page, "state()")[name] == value
    for wrong in (
        "setStep('x')",
        "setLayer(NaN)",
        "setToken([9, 9])",
        "setAlign('time')",
        "setTau(-1)",
        "setFrame({})",
        "setOpacity('x')",
    ):
        do(page, wrong)
    assert do(page, "state()")["align"] == "step"
    assert page.page.evaluate("sent") == [["select", {"tau": 0.02}]]


def test_a_person_is_told_from_a_script_and_from_playback(alone, traces):
    page = alone()
    send(page, messages(traces, 1))
    page.until("d.frames === '9'")
    do(page, "setStep(3)")
    page.page.evaluate("changes.length = 0")
    page.page.locator(".fv-fwd").click()
    page.page.locator(".fv-line").press("3")
    page.page.evaluate("document.querySelector('.fv-back').click()")
    do(page, "play()")
    page.page.wait_for_function("changes.some(c => c.by === 'play' && c.changed.includes('step'))")
    steps = page.page.evaluate("changes.filter(c => c.changed.includes('step') || c.changed.includes('layer')).map(c => c.by)")
    assert steps[:3] == ["user", "user", "api"]


# ------------------------------------------------------------------------------------------------------------- loading


def recorded_bundle(traces):
    runs = [run(MODEL, "fox", FrescoConfig.recommended(nfe=9, tau=t)) for t in (0.01, 0.03, 0.1)]
    return bundle.build("fox", [bundle.Recorded(t, 20.0, 0.5) for t in runs], [bundle.Recorded(traces[3])], STEP)


def test_the_first_run_plays_while_the_rest_is_on_its_way(alone, traces):
    whole = recorded_bundle(traces)
    text = bundle.text(whole)
    opened = whole["runs"][1]["frames"]
    assert opened == list(range(9))  # what opens first lies first
    head = text.index("\n", text.index('"frames":[')) + 1
    cut = head
    for _ in opened:
        cut = text.index("\n", cut) + 1
    page = alone()
    page.page.evaluate("""(text) => {
      window.fetch = async () => new Response(new ReadableStream({ start(c) {
        window.give = (from, to) => c.enqueue(new TextEncoder().encode(text).slice(from, to)); window.end = () => c.close();
      } }));
    }""", text)  # fmt: skip
    send(page, [frame.bundle_url("fox.json")])
    size = len(text.encode())
    page.page.evaluate(f"give(0, {cut - 40})")
    assert page.data["frames"] == "0"
    page.page.evaluate(f"give({cut - 40}, {cut})")
    page.until("d.frames === '9' && d.framesRef === '0' && d.playing === 'true'")
    do(page, "pause()")
    colours = page.player("v.store.range")
    assert max(whole["runs"][0]["frames"]) >= len(opened)
    do(page, "setTau(0.01)")  # not here yet
    page.says("on its way")
    assert page.player("v.store.recorded.tau") == 0.03
    page.page.evaluate(f"(give({cut}, {cut + 7}), give({cut + 7}, {size}), end())")
    page.until("d.tau === '0.01' && d.framesRef === '12'")
    assert page.player("v.store.base.length") == len(whole["frames"])
    assert page.player("v.store.tracks.get(0).frames.map(f => f.tokens)") == [
        whole["frames"][k]["tokens"] for k in whole["runs"][0]["frames"]
    ]
    assert page.player("v.store.range") == colours  # what a colour means does not change while a file loads


@pytest.mark.parametrize("layout", [bundle.text, json.dumps, lambda b: json.dumps(b, indent=1)])
def test_any_layout_of_a_file_is_read(alone, traces, layout):
    page = alone(files={"fox.json": layout(recorded_bundle(traces))})
    send(page, [frame.bundle_url("fox.json")])
    page.until("d.mode === 'recorded' && d.frames === '9' && d.framesRef === '12'")


@pytest.mark.parametrize(
    "spoil", [lambda t: t[: len(t) // 2], lambda t: t.replace('"tokens":', '"tokens":1', 9), lambda t: "{}", lambda t: ""]
)
def test_a_damaged_file_is_one_sentence(alone, traces, spoil):
    page = alone(files={"fox.json": spoil(bundle.text(recorded_bundle(traces))) or " "})
    send(page, [frame.bundle_url("fox.json")])
    page.page.wait_for_function("document.querySelector('.fv-status').dataset.level === 'warn'")
    assert page.status.count(".") == 1


def test_what_was_shown_before_the_page_was_there_moves_in_and_plays_on(alone, traces):
    whole = bundle.text(recorded_bundle(traces))
    runs = [{"url": "/fox.json", "prompt": "fox", "seed": 0}]
    page = alone(runs=runs, put=False, files={"fox.json": whole})
    page.page.wait_for_function("document.querySelector('#fresco-early .fv-root')?.dataset.framesRef === '12'")
    page.page.evaluate("window.before = document.querySelector('.fv-root')")
    do(page, "setStep(4)")
    page.page.evaluate("put()")
    assert page.page.evaluate(
        "[document.querySelectorAll('.fv-root').length, document.querySelector('#viewer .fv-root') === before]"
    ) == [1, True]
    assert page.page.locator("#fresco-early").count() == 0
    send(page, [frame.bundle_url("/fox.json")])  # the server's own word for what plays already
    assert (page.data["step"], page.player("v.store.base.length")) == ("4", json.loads(whole)["frames"].__len__())
    assert sum("fox.json" in url for url in page.requests) == 1
    send(page, messages(traces, 1))
    page.until("d.mode === 'live' && d.frames === '9'")
    do(page, "setTau(0.02)")
    assert page.page.evaluate("sent") == [["select", {"tau": 0.02}]]  # the page's own host is told


# -------------------------------------------------------------------------------------------------------------- access


def test_the_step_is_said_in_words(alone, traces):
    page = alone()
    send(page, messages(traces))
    page.until("d.panes === '4'")
    do(page, "setStep(6)")
    event = traces[0].events[6]
    fine = int((event.grid.level_map() == event.grid.levels).sum())
    live = page.page.locator(".fv-summary")
    assert live.get_attribute("aria-live") == "polite"
    expect(live).to_have_text(
        re.compile(rf"^Step 7 of 9, .* {fine} of 80 cells fine, {int(event.selected.sum())} tokens? promoted now")
    )
    expect(live).to_contain_text("Higher tau at step")


def test_it_is_not_said_more_than_once_in_four_seconds_while_it_plays(alone, traces):
    page = alone()
    send(page, messages(traces, 1))
    page.until("d.frames === '9'")
    page.page.evaluate("""() => {
      window.said = []; window.stepped = [];
      const root = document.querySelector('.fv-root'), find = (name) => root.querySelector(name);
      new MutationObserver(() => said.push(performance.now()))
        .observe(find('.fv-summary'), { childList: true, characterData: true, subtree: true });
      find('.fv-speed').value = '4'; find('.fv-speed').dispatchEvent(new Event('change'));
      root.frescoViewer.setStep(0); root.frescoViewer.play();
    }""")
    page.until("d.playing === 'false'")
    gaps = np.diff(page.page.evaluate("said"))
    assert (gaps > 3500).all()


def test_everything_is_reached_and_named_by_keyboard_alone(alone, traces):
    page = alone()
    send(page, messages(traces))
    page.until("d.panes === '4'")
    do(page, "setToken([0, 2, 3])")
    do(page, "setLayer(5)")
    page.until("d.token === '0,2,3' && d.layer === '5'")
    expect(page.page.locator(".fv-against")).to_be_visible()
    wanted = page.page.evaluate("""() => {
      const all = document.querySelectorAll('.fv-root :is(button, select, summary, [tabindex="0"], input)');
      const seen = [...all].filter((n) => n.checkVisibility() && !n.disabled);
      // one tab stop for a group of radio buttons: the chosen one
      return seen.filter((n) => n.type !== 'radio' || n.checked).length;
    }""")
    page.page.locator(".fv-layer:checked").focus()
    names = []
    for _ in range(wanted):
        names.append(page.page.evaluate("""() => {
          const n = document.activeElement;
          const name = n.getAttribute('aria-label') ?? n.labels?.[0]?.textContent ?? n.textContent;
          return n.closest('.fv-root') && [n.tagName, name.trim()];
        }"""))  # fmt: skip
        page.page.keyboard.press("Tab")
    assert None not in names
    assert all(name for _, name in names)
    assert len({tuple(n) for n in names}) == wanted  # no two controls are called the same
    canvas = page.page.locator(".fv-canvas").nth(1)
    canvas.focus()
    page.page.keyboard.press("Shift+ArrowRight")
    said = page.page.locator(".fv-token-said")
    expect(said).to_contain_text(re.compile(r"row \d+, column \d+ .* level \d"))
    before = said.inner_text()
    page.page.keyboard.press("Shift+ArrowDown")
    expect(said).not_to_have_text(before)
    assert "difference layer" in canvas.get_attribute("aria-label")


def test_nothing_moves_for_those_who_asked_for_calm(alone, traces):
    whole = json.dumps(recorded_bundle(traces))
    for motion, playing in (("reduce", "false"), ("no-preference", "true")):
        page = alone(reduced_motion=motion)
        page.page.evaluate("(b) => push(b)", whole)
        page.until(f"d.mode === 'recorded' && d.playing === '{playing}'")
        moving = page.page.locator(".fv-btn").first.evaluate("n => getComputedStyle(n).transitionDuration")
        assert (moving == "0s") == (motion == "reduce")


@pytest.mark.parametrize(("width", "scale"), [(360, 1), (640, 2), (1280, 1)])
def test_no_sideways_scrolling_on_a_phone_or_at_200_percent(alone, traces, width, scale):
    page = alone(width, 800, device_scale_factor=scale)
    send(page, messages(traces))
    page.until("d.panes === '4'")
    do(page, "setToken([0, 2, 3])")
    do(page, "setLayer(5)")
    page.until("d.token === '0,2,3' && d.layer === '5'")
    expect(page.page.locator(".fv-patch").first).to_be_visible()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [canvas.bounding_box() for canvas in page.page.locator(".fv-pane canvas").all()]
    columns = len({round(b["x"]) for b in boxes})
    assert columns == {360: 1, 640: 2, 1280: 4}[width]
    for box in boxes:
        assert abs(box["width"] / box["height"] - 10 / 8) < 0.02
        assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(alone, traces, dark):
    page = alone(dark=dark)
    send(page, messages(traces))
    page.until("d.panes === '4'")
    do(page, "setToken([0, 2, 3])")
    do(page, "setLayer(5)")
    page.until("d.token === '0,2,3' && d.layer === '5'")
    assert violations(page) == []
    video(page)
    page.until("d.panes === '1' && +d.frames === 4")
    assert violations(page) == []


def violations(page: Any) -> list[str]:
    expect(page.page.locator(".fv-now")).not_to_be_empty()
    page.page.wait_for_timeout(400)  # colours of the buttons fade for 0.15 s
    found = Axe().run(page.page, options={"runOnly": {"type": "tag", "values": AXE["runOnly"]}}).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:120]}" for v in found]
