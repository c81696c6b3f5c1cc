"""The page as visitors use it, in Chromium, with the real model behind it. They wait on the viewer's state, never on a clock.

Every test also fails on a request to another server and on an error in the browser's console (see conftest).
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect

from .conftest import PATIENCE

ASSETS = Path(__file__).parents[2] / "assets"
NAMES = json.loads((ASSETS / "examples.json").read_text(encoding="utf-8"))["recorded"]
BUNDLES = [path for name in NAMES if (path := ASSETS / "traces" / f"{name}.json").exists()]  # in the page's order
FIRST = json.loads(BUNDLES[0].read_text(encoding="utf-8"))
QUICK = {"nfe": 5, "reference": "same NFE"}  # a live run of ten model calls
RUNS = {(run["tau"], run["nfe"]): run for run in FIRST["runs"]}


def recorded_tokens(tau, nfe):
    """Return the tokens of every step of a recorded run, from the file."""
    return [FIRST["frames"][i]["tokens"] for i in RUNS[tau, nfe]["frames"]]


# ------------------------------------------------------------------------------------------------------------ recorded runs


def test_a_recorded_run_plays_on_load(visit):
    page = visit()
    assert page.data["playing"] == "true"
    assert page.data["run"] == f"recorded:{FIRST['slug']}"
    expect(page.page.locator(".fv-prompt")).to_contain_text(FIRST["prompt"])
    first = int(page.data["step"])
    page.until(f"+d.step > {first}")  # it moves by itself


def test_tau_and_nfe_of_a_recorded_run_are_explored_without_a_request(visit):
    """Law: DESIGN 3: scrubbing costs 0 bytes. Each switch must show the file's own run, token for token."""
    page = visit()
    page.page.locator(".fv-play").click()
    page.until("d.playing === 'false'")
    taus, nfe = FIRST["taus"], int(page.data["nfe"])
    # The first run plays before the others are here; then nothing is asked any more.
    whole = f"document.querySelector('#viewer .fv-root').frescoViewer.store.base.length === {len(FIRST['frames'])}"
    page.page.wait_for_function(whole, timeout=PATIENCE)
    asked = len(page.requests)

    handle = page.page.locator(".fv-tau")
    handle.focus()
    for key, tau in (("Home", taus[0]), ("ArrowRight", taus[1]), ("End", taus[-1]), ("ArrowLeft", taus[-2])):
        handle.press(key)
        page.until(f"+d.tau === {tau}")
        assert page.player("v.store.tracks.get(0).frames.map(f => f.tokens)") == recorded_tokens(tau, nfe)

    # Drag to the left end: the handle follows, and the run of the smallest tau takes over when it is let go.
    box, strip = handle.bounding_box(), page.page.locator(".fv-hist").bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.page.mouse.down()
    page.page.mouse.move(strip["x"] + 14, box["y"] + 20, steps=5)
    assert float(page.data["tau"]) < taus[0]
    page.page.mouse.up()
    page.until(f"+d.tau === {taus[0]}")

    for other in FIRST["nfes"]:
        page.page.locator(f".fv-nfe-seg label:has(input[value='{other}'])").click()
        page.until(f"+d.nfe === {other} && +d.frames === {other}")
        assert page.player("v.store.tracks.get(0).frames.map(f => f.tokens)") == recorded_tokens(taus[0], other)
    assert page.requests[asked:] == []


def test_every_recorded_prompt_opens_from_the_gallery(visit):
    page = visit()
    for path in BUNDLES:
        bundle = json.loads(path.read_text(encoding="utf-8"))
        page.page.locator(f"#gallery label:has(input[value='{bundle['slug']}'])").click()
        page.until(f"d.run === 'recorded:{bundle['slug']}'")
        expect(page.control("prompt")).to_have_value(bundle["prompt"])
        expect(page.control("seed")).to_have_value(str(bundle["seed"]))
        assert page.player("v.store.base.length") == len(bundle["frames"])


def test_the_two_panes_are_aligned_by_what_they_have_cost(visit):
    """Law: UI-ANCHORS 2: at every stop the reference shows its last step whose cost Fresco's has reached; by step, the same."""
    page = visit()
    page.page.locator(".fv-play").click()
    own = [FIRST["frames"][i]["flops"] for i in RUNS[float(page.data["tau"]), int(page.data["nfe"])]["frames"]]
    other = [FIRST["frames"][i]["flops"] for i in FIRST["references"][0]["frames"]]
    spent = np.cumsum(other)
    for stop in page.player("v.stops().map(s => [s.a, s.b, s.tail])"):
        if not stop[2]:
            assert stop[1] == int((spent <= np.cumsum(own)[stop[0]] * (1 + 1e-9)).sum()) - 1
    page.page.locator("label:has(.fv-align[value=step])").click()
    assert all(a == b or tail for a, b, tail in page.player("v.stops().map(s => [s.a, s.b, s.tail])"))


# --------------------------------------------------------------------------------------------------------------- live runs


def test_run_calls_the_model_again_for_another_prompt_and_another_tau(visit):
    page = visit(**QUICK, seed=3, tau=0.002)
    ids, pictures = [], []
    for prompt, tau in (("red apple, noto style, on blue", 0.002), ("panda, noto style, on blue", 0.002), (None, 0.2)):
        if prompt:
            page.put("prompt", prompt)
        page.put("tau", tau)
        ids.append(page.run())
        page.finished()
        assert (page.data["frames"], page.data["framesRef"], page.data["nfe"]) == ("5", "5", "5")
        pictures.append(page.previews())
        assert float(page.data["tau"]) == tau
    assert len(set(ids)) == 3
    assert len({tuple(p) for p in pictures}) == 3
    assert all(p.startswith("data:image/webp;base64,") for picture in pictures for p in picture)
    expect(page.page.locator(".fv-prompt")).to_contain_text("panda, noto style, on blue")


def test_after_a_live_run_the_same_recorded_run_can_be_opened_again(visit):
    page = visit(nfe=4, reference="none")
    page.run()
    page.says("Done.")
    page.page.locator("#gallery label").first.click()
    page.until(f"d.mode === 'recorded' && d.run === 'recorded:{FIRST['slug']}' && d.playing === 'true'")


def test_the_same_settings_make_the_same_pictures(visit):
    page = visit(**QUICK, prompt="castle, noto style, on green")
    page.run()
    page.finished()
    first = page.previews()
    page.run()
    page.finished()
    assert page.previews() == first


def test_scrubbing_playing_and_keys_of_a_live_run(visit):
    page = visit(**QUICK)
    page.run()
    page.finished()
    asked = len(page.requests)
    line = page.page.locator(".fv-line")
    line.scroll_into_view_if_needed()
    box = line.bounding_box()
    page.page.mouse.click(box["x"] + 3, box["y"] + 40)
    page.until("d.step === '0'")
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 40, steps=8)
    page.page.mouse.up()
    page.until("d.step === '4'")
    line.focus()
    for key, step in (("ArrowLeft", None), ("Home", "0"), ("ArrowRight", "1"), ("ArrowRight", "2"), ("End", "4")):
        line.press(key)
        if step:
            page.until(f"d.step === '{step}'")
    for layer in "13542":
        line.press(layer)
        page.until(f"d.layer === '{layer}'")
    line.press("Home")
    line.press(" ")
    page.until("d.playing === 'true' && d.step === '2'")
    line.press(" ")
    page.until("d.playing === 'false'")
    page.page.locator(".fv-back").click()
    page.page.locator(".fv-fwd").click()
    page.page.locator(".fv-play").click()
    page.until("d.playing === 'true'")
    assert page.requests[asked:] == []


def test_typing_in_the_prompt_drives_nothing_in_the_viewer(visit):
    """Law: WCAG 2.1.4: single keys act only while the viewer has the focus."""
    page = visit()
    page.page.locator(".fv-play").click()
    page.until("d.playing === 'false'")
    before = page.data
    page.control("prompt").click()
    page.page.keyboard.press("End")
    page.page.keyboard.type(" 1 3 5")
    page.page.keyboard.press("ArrowLeft")
    page.page.keyboard.press("Home")
    assert page.data == before
    expect(page.control("prompt")).to_have_value(f"{FIRST['prompt']} 1 3 5")


def test_a_clicked_token_tells_its_story(visit):
    page = visit()
    page.page.locator(".fv-play").click()
    canvas = page.page.locator(".fv-canvas").first
    frame = FIRST["frames"][0]
    rows, cols = frame["shape"][1:]
    box = canvas.bounding_box()
    canvas.click(position={"x": (6 + 0.5) / cols * box["width"], "y": (9 + 0.5) / rows * box["height"]})
    page.until("d.token === '0,9,6'")
    expect(page.page.locator(".fv-token-title")).to_contain_text("row 9, column 6")
    story = page.page.locator(".fv-hint-token")
    expect(story).to_be_visible()
    # When the file says this cell's token was promoted is what the panel must say.
    run = RUNS[float(page.data["tau"]), int(page.data["nfe"])]
    promoted = [i for i, k in enumerate(run["frames"]) if chosen(FIRST["frames"][k], 9, 6)]
    assert re.search(rf"after step {promoted[-1] + 1}\b", story.inner_text())
    assert page.page.locator(".fv-hist-line .fv-v").get_attribute("d").startswith("M")
    assert page.page.locator(".fv-patch").count() >= 5
    page.page.locator(".fv-patch").first.click()
    page.until("d.step === '0'")
    canvas.press("Escape")
    page.until("d.token === ''")


def chosen(frame, row, col):
    """Return whether the token over a cell of a one-level, one-frame grid was promoted after this step, by a walk."""
    rows, cols = frame["shape"][1:]
    level = base64.b64decode(frame["level"])
    bits = base64.b64decode(frame["selected"])
    number = {}
    for r in range(rows):
        for c in range(cols):
            fine = level[r * cols + c]
            number.setdefault((fine, r, c) if fine else (fine, r // 2, c // 2), len(number))
    fine = level[row * cols + col]
    k = number[(fine, row, col) if fine else (fine, row // 2, col // 2)]
    return bool(bits[k // 8] >> (7 - k % 8) & 1)


def held(page, run):
    """Return how many of Fresco's steps the server holds of a run."""
    return page.page.evaluate(
        """async (run) => {
          const config = await (await fetch('config')).json();
          const id = config.components.find((c) => c.props.elem_id === 'viewer').id;
          const body = { session_hash: 'x', component_id: id, fn_name: 'backfill', data: [run, 0, [...Array(50).keys()]] };
          const answer = await fetch('gradio_api/component_server',
            { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });
          return (await answer.json()).length;
        }""",
        run,
    )


def test_stop_lands_within_a_step_and_the_next_run_starts(visit):
    page = visit(nfe=50, reference="none", size="1-256-256")  # steps longer than a request takes on any machine
    run = page.run()
    page.until("+d.frames >= 3")
    page.page.click("button#stop")
    page.says("Stopped at step")
    shown = int(page.data["frames"])
    assert 3 <= shown < 50
    line = page.page.locator(".fv-line")
    line.press("Home")
    page.until("d.step === '0'")
    line.press("End")
    page.until(f"+d.step >= {shown - 1}")

    page.put("nfe", 4)
    assert page.run() != run
    page.finished()
    assert page.data["frames"] == "4"
    assert held(page, run) <= shown + 1  # the server made one step more at most, then the model was free


def test_two_visitors_at_once_see_only_their_own_run(visit):
    one = visit(**QUICK, prompt="sunflower, noto style, on purple")
    two = visit(**QUICK, prompt="penguin, twemoji style, on pink", seed=5)
    one.page.click("button#run")
    two.page.click("button#run")
    for page in (one, two):
        page.until("d.mode === 'live' && +d.frames > 0")
        page.finished()
    assert one.data["run"] != two.data["run"]
    for page, prompt, seed in ((one, "sunflower, noto style, on purple", 0), (two, "penguin, twemoji style, on pink", 5)):
        tracks = "[...v.store.tracks.values()]"
        assert page.player(f"{tracks}.map(t => [t.frames.length, t.meta.prompt, t.meta.seed])") == [[5, prompt, seed]] * 2
        assert page.player(f"[...new Set({tracks}.flatMap(t => t.frames.map(f => f.run)))]") == [page.data["run"]]
    assert one.previews() != two.previews()


def test_a_tab_closed_in_mid_run_leaves_the_model_free(visit):
    gone = visit(nfe=50, reference="full at 50")
    run = gone.run()
    gone.page.close()
    page = visit(**QUICK, prompt="rainbow, noto style, on white")
    page.run()
    page.finished()
    assert page.data["frames"] == "5"
    assert held(page, run) < 50


# -------------------------------------------------------------------------------------------------------------------- links


def test_a_copied_link_of_a_recorded_run_restores_settings_step_token_and_layer(visit):
    page = visit()
    page.page.locator(".fv-play").click()
    tau, nfe = FIRST["taus"][1], FIRST["nfes"][0]
    page.page.locator(f".fv-nfe-seg label:has(input[value='{nfe}'])").click()
    page.put("nfe", nfe)
    page.put("tau", tau)
    page.put("seed", FIRST["seed"])
    page.player(f"(v.setTau({tau}), v.goto(4), v.selectToken([0, 3, 5]), v.setLayer(4))")
    page.page.click("button#share")
    address = page.page.locator("#address textarea, #address input")
    expect(address).to_have_value(re.compile("token=0%2C3%2C5"))
    query = {k: v[0] for k, v in parse_qs(urlsplit(address.input_value()).query).items()}
    assert (query["step"], query["layer"], query["prompt"]) == ("4", "4", FIRST["prompt"])

    other = visit(**query)
    other.until(f"d.step === '4' && d.token === '0,3,5' && d.layer === '4' && +d.tau === {tau} && +d.nfe === {nfe}")
    assert other.data["playing"] == "false"
    for name, value in (("nfe", nfe), ("tau", tau), ("prompt", FIRST["prompt"])):
        expect(other.control(name)).to_have_value(str(value))


def test_a_copied_link_of_a_live_run_opens_that_run_at_its_step(visit):
    page = visit(**QUICK, prompt="owl, noto style, on yellow", seed=7, ratio=0.25, transition="rewind", checks=2, window=6)
    page.run()
    page.finished()
    page.player("(v.goto(2), v.selectToken([0, 4, 6]), v.setLayer(3))")
    page.page.click("button#share")
    address = page.page.locator("#address textarea, #address input")
    expect(address).to_have_value(re.compile("step=2"))
    query = {k: v[0] for k, v in parse_qs(urlsplit(address.input_value()).query).items()}

    other = visit(**query)
    assert other.data["token"] == ""  # the recorded run that plays meanwhile is another picture
    assert "Press Run" in other.toast("settings are filled in")
    other.open_advanced()
    for name, value in (("seed", 7), ("nfe", 5), ("ratio", 0.25), ("window", 6), ("transition", "rewind")):
        expect(other.control(name)).to_have_value(str(value))
    other.run()
    other.until("d.step === '2' && d.token === '0,4,6' && d.layer === '3'")
    other.finished()
    assert (other.data["step"], other.data["token"]) == ("2", "0,4,6")
    assert other.previews() == page.previews()


def test_bad_link_values_become_defaults_and_a_sentence(visit):
    page = visit(tau="much", nfe=-4, seed="9e99", transition="jump", model="gpt", token="a,b", step="x", preview_every=99)
    for name in ("tau", "nfe", "seed", "transition", "model", "preview_every"):
        sentence = page.toast(name)
        assert "Traceback" not in sentence
        assert "/" not in sentence
    page.open_advanced()
    for name, value in (("tau", "0.004"), ("nfe", "18"), ("seed", "0"), ("transition", "renoise"), ("model", "sinopia")):
        expect(page.control(name)).to_have_value(value)
    assert page.data["playing"] == "true"


def test_a_link_beyond_the_controls_still_makes_a_run(visit):
    """Values that the library takes and the page's sliders do not must not end in a broken Run button."""
    page = visit(nfe=900, levels=3, window=500, detail_gain=50, reference="same NFE", prompt="owl")
    for name in ("nfe 900", "levels 3", "window 500", "detail_gain 50"):
        page.toast(name)
    page.put("nfe", 4)  # Run at once: the three stages must already agree
    page.run()
    page.finished()
    assert page.player("v.store.tracks.get(0).meta.stages") == [2, 1, 1]


def test_nfe_and_its_three_stages_move_together(visit):
    page = visit(reference="none", prompt="owl")
    for nfe, split in ((11, ["5", "2", "4"]), (7, ["3", "2", "2"])):
        page.put("nfe", nfe)
        for name, calls in zip(("low", "mixed", "full"), split, strict=True):
            expect(page.control(name)).to_have_value(calls)
    page.put("mixed", 1)
    expect(page.control("nfe")).to_have_value("6")
    page.run()
    page.says("Done.")
    assert page.player("v.store.tracks.get(0).frames.map(f => f.stage)") == ["low"] * 3 + ["mixed"] + ["full"] * 2


# ------------------------------------------------------------------------------------------------------------ clumsy people


def test_an_empty_prompt_is_one_clear_sentence_and_the_next_run_works(visit):
    page = visit(**QUICK)
    for nothing in ("", "   "):
        page.put("prompt", nothing)
        page.page.click("button#run")
        said = page.toast("prompt is empty")
        assert "Traceback" not in said
        assert said.count(".py") == 0
        assert page.data["mode"] == "recorded"
        page.page.get_by_test_id("toast-close").first.click()
    page.put("prompt", "owl, noto style, on yellow")
    page.run()
    page.finished()


def test_impossible_settings_are_one_sentence_and_the_next_run_works(visit):
    page = visit(nfe=6, reference="none", prompt="owl")
    page.put("tau", "-1")
    page.page.click("button#run")
    assert "tau is -1" in page.toast("tau is")
    page.put("tau", "0.01")
    page.put("seed", "99999999999999")
    page.page.click("button#run")
    assert "seed is" in page.toast("seed is")
    page.put("seed", "1")
    page.run()
    page.finished()


def test_impatient_clicks_end_in_one_whole_run(visit):
    page = visit(nfe=20, reference="none", prompt="<img src=x onerror=alert(1)> \U0001f98a " + "fox " * 40)
    for _ in range(4):
        page.page.click("button#run")
    page.until("d.mode === 'live' && +d.frames > 0")
    for _ in range(3):
        page.page.click("button#stop")
    page.says("Stopped")
    page.put("nfe", 4)
    for _ in range(3):
        page.page.click("button#run")
    page.until("+d.nfe === 4 && +d.frames === 4")
    page.finished()
    assert page.page.locator("#viewer img").count() == 0  # the prompt is text, not markup


# ------------------------------------------------------------------------------------------------------ looks and access


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("live", [False, True], ids=["recorded", "live"])
def test_axe_finds_nothing_in_the_viewer(visit, dark, live):
    page = visit(dark=dark, nfe=4, reference="same NFE")
    assert page.page.evaluate("document.body.classList.contains('dark')") is dark
    if live:
        page.run()
        page.finished()
        page.player("v.goto(1)")
    else:
        page.page.locator(".fv-play").click()
    page.player("v.selectToken([0, 3, 5])")
    page.until("d.token === '0,3,5' && d.playing === 'false'")
    found = Axe().run(page.page, context="#viewer").response["violations"]
    assert [f"{v['id']}: {v['nodes'][0]['html'][:120]}" for v in found] == []


@pytest.mark.parametrize(
    ("width", "height", "live"), [(390, 844, True), (390, 844, False), (1280, 800, False), (768, 1024, False)]
)
def test_nothing_is_wider_than_the_screen(visit, width, height, live):
    page = visit(width, height, nfe=4, reference="same NFE")
    if live:
        page.run()
        page.finished()
    page.player("v.selectToken([0, 3, 5])")
    page.until("d.token === '0,3,5'")
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    for canvas in page.page.locator("#viewer .fv-canvas").all():
        box = canvas.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert abs(box["width"] - box["height"]) < 2  # a square picture stays square


# -------------------------------------------------------------------------------------------------------------- programs


@pytest.fixture(scope="module")
def client(server):
    return Client(server, verbose=False)


def test_the_api_streams_a_message_per_step(client):
    job = client.submit("red apple", nfe=4, reference="same NFE", seed=2, api_name="/run")
    got = [json.loads(m) for m in job]
    frames = [m for m in got if m["type"] == "frame"]
    assert {(f["track"], f["i"]) for f in frames} == {(t, i) for t in (0, 1) for i in range(4)}
    assert len({f["run"] for f in frames}) == 1
    for track in (0, 1):
        steps = {f["i"]: f for f in frames if f["track"] == track}
        spent = np.cumsum([steps[i]["flops"] for i in range(4)])
        assert np.allclose([steps[i]["flops_total"] for i in range(4)], spent)
    done = got[-1]
    assert done["type"] == "done"
    assert done["fresco"]["flops"] == max(f["flops_total"] for f in frames if f["track"] == 0)
    assert done["fresco"]["speedup_flops"]["same_nfe"] == pytest.approx(
        done["reference"]["flops"] / done["fresco"]["flops"], rel=1e-3
    )
    assert done["fresco"]["settings"]["seed"] == 2


def test_an_api_job_can_be_cancelled_and_leaves_the_model_free(client):
    job = client.submit("red apple", nfe=50, reference="full at 50", api_name="/run")
    seen = next(iter(job))
    assert json.loads(seen)["i"] == 0
    job.cancel()
    again = client.submit("red apple", nfe=4, reference="none", api_name="/run")
    assert json.loads(again.result(timeout=90))["type"] == "done"
    assert len(job.outputs()) < 100


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"tau": -1}, "tau is -1"),
        ({"nfe": 2}, "nfe 2"),
        ({"model": "gpt"}, "gpt"),
        ({"reference": "the best"}, "the best"),
        ({"settings": "{"}, "JSON object"),
        ({"settings": "[1]"}, "JSON object"),
        ({"settings": '{"jump": 1}'}, "unknown setting"),
        ({"settings": '{"nfe": "many"}'}, "nfe is 'many'"),
        ({"settings": '{"size": [1, 7, 7]}'}, "size"),
        ({"settings": '{"stages": 5}'}, "stages"),
        ({"seed": 2**32}, "seed is"),
    ],
)
def test_api_errors_are_one_sentence(client, wrong, sentence):
    with pytest.raises(AppError) as caught:
        client.predict(**({"prompt": "owl", "nfe": 4, "reference": "none"} | wrong), api_name="/run")
    said = str(caught.value)
    assert sentence in said
    assert not re.search(r"Traceback|File \"|\.py|\n", said)


def test_only_what_programs_need_is_public(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/run", "/sweep", "/trace"}
    assert client.view_api(return_format="dict")["unnamed_endpoints"] == {}


def test_the_mcp_tools_are_described(server):
    with urlopen(f"{server}gradio_api/mcp/schema") as answer:
        tools = {t["name"].rpartition("_")[2]: t for t in json.load(answer)}
    wanted = {
        "run": {"prompt", "seed", "tau", "nfe", "model", "reference", "settings"},
        "sweep": {"prompt", "axes", "seed", "model", "curve", "settings"}, "trace": {"run", "track", "form"},
    }  # fmt: skip
    assert {name: set(t["inputSchema"]["properties"]) for name, t in tools.items()} == wanted
    assert "Fresco" in tools["run"]["description"]
    assert "full resolution" in tools["sweep"]["description"]
    assert all(len(p.get("description", "")) > 10 for t in tools.values() for p in t["inputSchema"]["properties"].values())
