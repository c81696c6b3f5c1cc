"""Lessons: what the format takes and refuses, and that every number a stop says is that of the run it shows."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco.backends.oracle import OracleModel
from fresco.config import FrescoConfig
from fresco.noise import NoiseField
from fresco.record import run
from viz import bundle, lesson
from viz.lesson import LessonError

ROOT = Path(__file__).parents[1]
OURS = lesson.load(lesson.LESSONS)
RUNS = {s.view.run: bundle.load(ROOT / "assets" / "traces" / f"{s.view.run}.json") for s in OURS.stops}
PLAIN = "---\nrun: strawberry\n---\n# A title\n\nText.\n"


def stop(head="", body="Text.", title="# A title"):
    return lesson.parse(f"---\nrun: strawberry\n{head}\n---\n{title}\n\n{body}\n").stops[0]


@pytest.fixture(scope="module")
def recorded():
    """Return a bundle on an odd grid, and the traces it was made from."""
    model = OracleModel(shape=(1, 5, 6))
    config = FrescoConfig.recommended(nfe=9, tau=0.02, seed=4)
    traces = [run(model, "fox", config), run(model, "fox", config.as_full(9), label="Full resolution, 9 steps")]
    return bundle.from_traces(traces)[0], traces


# ------------------------------------------------------------------------------------------------------------ the format


def test_a_stop_says_all_it_can_say():
    got = stop(
        "step: 6\nlayer: promoted\ntoken: 3,5\ntau: 0.004\nnfe: 18\nalign: step\nbeside: Full\nfigure: field\nask: Why?\n"
        "answer: {step: 7..9, tau: 0.01.., nfe: 11, layer: levels, align: cost, beside: Half, token: settled}\nright: So.\n"
        "hint: Look.\nsources: [arXiv:2601.07462, {A book: https://example.org/x}]"
    )
    assert got.view == lesson.View("strawberry", 5, 4, (0, 3, 5), 0.004, 18, "step", "Full")
    assert got.answer == {"step": [6, 8], "tau": [0.01, None], "nfe": [11, 11], "layer": 3, "align": "cost", "beside": "Half",
                          "token": "settled"}  # fmt: skip
    assert got.sources == (("arXiv:2601.07462", "https://arxiv.org/abs/2601.07462"), ("A book", "https://example.org/x"))
    assert (got.title, got.body, got.ask, got.right, got.hint, got.figure) == (
        "A title",
        "Text.",
        "Why?",
        "So.",
        "Look.",
        "field",
    )


def test_a_file_may_hold_several_stops_and_a_folder_several_files(tmp_path):
    (tmp_path / "b.md").write_text(PLAIN.replace("A title", "Third"))
    (tmp_path / "a.md").write_text(PLAIN.replace("A title", "First") + PLAIN.replace("A title", "Second").replace("\n", "\r\n"))
    assert [s.title for s in lesson.load(tmp_path).stops] == ["First", "Second", "Third"]
    assert [s.title for s in lesson.load(tmp_path / "b.md").stops] == ["Third"]


BAD = [
    ("layer: heat", "layer", "sketch, variance, levels, promoted, difference"),
    ("step: 0", "step", "from 1"),
    ("step: six", "step", "whole number"),
    ("token: 3", "token", "row,col"),
    ("token: [1, x]", "token", "row,col"),
    ("tau: -1", "tau", "above 0"),
    ("nfe: true", "nfe", "whole number"),
    ("align: time", "align", "cost, step"),
    ("colour: red", "colour", "run, step, layer"),
    ("figure: plot", "figure", "field, children"),
    ("ask: Why?", "answer", "go together"),
    ("answer: {step: 3}", "ask", "go together"),
    ("ask: Why?\nanswer: {step: x..}", "step", "7..9"),
    ("ask: Why?\nanswer: {step: 9..7}", "step", "7..9"),
    ("ask: Why?\nanswer: {mood: good}", "mood", "step, tau, nfe, layer, align, token, beside"),
    ("ask: Why?\nanswer: {token: hot}", "token", "settled"),
    ("ask: Why?\nanswer: [1]", "answer", "conditions"),
    ("step: 8\nask: Why?\nanswer: {step: 7..9}", "already", "nothing to do"),
    ("layer: levels\nask: Why?\nanswer: {layer: levels}", "already", "nothing to do"),
    ("sources: [a book]", "source", "https://"),
    ("sources: [{x: 'javascript:alert(1)'}]", "source", "https://"),
    ("right: 3", "right", "text"),
    ("hint: [a: b", "front matter", "quotes"),
]


@pytest.mark.parametrize(("head", "key", "advice"), BAD)
def test_a_mistake_is_one_sentence_that_names_the_stop_and_what_may_stand_there(head, key, advice):
    with pytest.raises(LessonError) as told:
        lesson.parse(PLAIN + f"---\nrun: strawberry\n{head}\n---\n# T\n", "mine.md")
    assert str(told.value).startswith("mine.md, stop 2: ")
    assert key in str(told.value)
    assert advice in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text", ["", "# No front matter\n", "---\nrun: a\n", "Words\n---\nrun: a\n---\n# T\n", "---\n---\n---\n"]
)
def test_a_file_without_front_matter_is_told_how_it_begins(text):
    with pytest.raises(LessonError, match="'---'"):
        lesson.parse(text)


@pytest.mark.parametrize(("head", "want"), [("", "empty"), ("run: ../x", "slug"), ("run:", "slug"), ("- a", "empty")])
def test_a_stop_needs_a_run(head, want):
    with pytest.raises(LessonError, match=want):
        lesson.parse(f"---\n{head}\n---\n# T\n")


def test_a_stop_needs_a_title():
    with pytest.raises(LessonError, match="title"):
        stop(title="No heading")


def test_a_missing_or_foreign_file_is_said(tmp_path):
    (tmp_path / "x.md").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.md", tmp_path / "empty"):
        with pytest.raises(LessonError, match="no lesson"):
            lesson.load(path)
    with pytest.raises(LessonError, match="UTF-8"):
        lesson.load(tmp_path / "x.md")


@given(st.text(max_size=200))
def test_whatever_stands_in_a_file_it_is_a_lesson_or_a_sentence(text):
    for whole in (text, f"---\n{text}\n---\n# T\n", f"---\nrun: a\n---\n# T\n{text}"):
        try:
            good = bool(lesson.parse(whole).stops)
        except LessonError as told:
            good = len(str(told)) < 400
        assert good


# ------------------------------------------------------------------------------------------------------------- the facts


def test_every_fact_is_the_traces_own(recorded):
    """Recomputed from the traces, which never went through the message."""
    message, (trace, full) = recorded
    facts = lesson.Facts(message, lesson.View(message["slug"]))
    whole = next(e.flops for e in full.events)
    for k, e in enumerate(trace.events, 1):
        assert facts.say(f"tokens {k}") == str(len(e.grid))
        assert facts.say(f"promoted {k}") == str(int(e.selected.sum()))
        assert facts.say(f"coarse {k}") == str(int(e.grid.expandable.sum()))
        assert facts.say(f"sigma {k}") == f"{e.sigma:.2f}"
        spent = sum(x.flops for x in trace.events[:k])
        assert facts.say(f"share {k}") == f"{100 * spent / (50 * whole):.1f}"
        # Variances are quantised to 0.02 %: count where no value is that near to the limit.
        for tau in (1e-3, 0.0173, 0.4):
            near = np.abs(np.log(e.variance[np.isfinite(e.variance)] / tau)) < 3e-4
            if not near.any():
                assert facts.say(f"under {tau} {k}") == str(int((e.grid.expandable & (e.variance <= tau)).sum()))
        for cell in range(30):
            token = int(e.grid.cells().ravel()[cell])
            where = f"{cell // 6},{cell % 6}"
            if np.isfinite(e.variance[token]):
                assert _number(facts.say(f"variance {k} {where}")) == pytest.approx(float(e.variance[token]), rel=0.06)
                others = e.variance[np.isfinite(e.variance)]
                share = 100 * float((others < e.variance[token] * (1 - 3e-4)).mean())
                assert abs(float(facts.say(f"quieter {k} {where}")) - share) <= 0.5 + 100 * float(
                    (np.abs(np.log(others / e.variance[token])) < 3e-4).mean()
                )
    promotions = [k for k, e in enumerate(trace.events, 1) if e.selected.any()]
    assert [facts.say("first"), facts.say("last")] == [str(promotions[0]), str(promotions[-1])]
    assert facts.say("cost") == f"{100 * trace.flops / (50 * whole):.0f}"
    assert facts.say("times 50") == f"{50 * whole / trace.flops:.1f}"
    assert facts.say("times same") == f"{9 * whole / trace.flops:.1f}"
    buys = int(facts.say("buys"))
    assert (buys - 1) * whole < trace.flops <= buys * whole * (1 + 1e-9)
    assert [facts.say(n) for n in ("cells", "steps", "seed", "prompt")] == ["30", "9", "4", "fox"]
    closing = [e for e in trace.events if e.closing]
    unsettled = sum(int((e.selected & ~(e.variance <= 0.02)).sum()) for e in closing)
    assert facts.say("forced") == str(unsettled)
    assert facts.say("variance 3 0,0 Full resolution, 9 steps") != facts.say("variance 3 0,0")


def _number(text):
    """Read what `scientific` writes."""
    mantissa, _, power = text.partition("·10")
    return float(mantissa) * 10.0 ** int(power.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")) or 0)


@given(st.floats(1e-6, 1.0))
def test_variances_are_written_as_the_viewer_writes_them(v):
    assert _number(lesson.scientific(v)) == pytest.approx(v, rel=0.051)


@pytest.mark.parametrize(
    ("words", "advice"),
    [("nonsense", "choose of"), ("tokens", "no step"), ("tokens 0", "1 to 9"), ("tokens 10", "1 to 9"), ("under x 3", "tau"),
     ("variance 3 9,9", "outside"), ("variance 3 a", "row,col"), ("quieter 1 0,0", "later"), ("psnr Nobody", "there are"),
     ("psnr", "no PSNR"), ("times 7", "[[times 50]]"), ("?", "choose of"), ("__init__", "choose of")],
)  # fmt: skip
def test_a_fact_that_is_not_there_is_a_sentence(recorded, words, advice):
    facts = lesson.Facts(recorded[0], lesson.View("x"))
    with pytest.raises(LessonError) as told:
        facts.say(words)
    assert advice in str(told.value)
    assert f"[[{words}]]" in str(told.value)


@pytest.mark.parametrize(
    ("view", "advice"),
    [({"step": 9}, "9 steps"), ({"token": (0, 5, 0)}, "outside"), ({"beside": "Half"}, "there are"), ({"nfe": 7}, "nfe 9"),
     ({"tau": 0.5}, "tau 0.02")],
)  # fmt: skip
def test_a_view_that_the_run_does_not_have_is_a_sentence(recorded, view, advice):
    with pytest.raises(LessonError, match=advice):
        lesson.Facts(recorded[0], lesson.View("x", **view))


# --------------------------------------------------------------------------------------------------------------- the text


def render(text, recorded):
    return lesson.markdown(text, lesson.Facts(recorded[0], lesson.View("x")))


def test_equations_become_mathml_and_facts_may_stand_in_them(recorded):
    html = render("So $\\sigma = [[steps]]$ costs \\$5.\n\n$$a \\le b$$", recorded)
    assert html.count("<math") == 2
    assert 'display="block"' in html
    assert "<mn>9</mn>" in html
    assert "costs $5." in html
    assert "$$" not in html


def test_nothing_in_a_lesson_can_run_or_load(recorded):
    html = render(
        "<script>alert(1)</script> <img src=x onerror=alert(1)> [a](javascript:alert(1)) ![p](https://example.org/p.png) "
        "$\\text{<script>x</script>} \\href{javascript:alert(1)}{x} \\style{color:red}{y}$ [b](https://example.org)",
        recorded,
    )
    assert "<script" not in html
    assert "<img" not in html
    assert 'href="javascript' not in html
    assert "style=" not in html
    assert '<a href="https://example.org" target="_blank" rel="noopener">b</a>' in html


def test_an_equation_that_cannot_be_read_is_a_sentence(recorded):
    with pytest.raises(LessonError, match="equation"):
        render("$\\left( x$", recorded)


# ------------------------------------------------------------------------------------------------------------- our lesson


def test_our_lesson_has_seven_stops_that_ask_and_cite():
    message = lesson.message(OURS, RUNS)
    assert len(message["stops"]) == 7
    for said in message["stops"]:
        assert said["ask"]
        assert said["answer"]
        assert said["right"]
        assert said["hint"]
        assert said["sources"]
        assert "Look for" in said["body"]
        assert "[[" not in json.dumps(said)


@pytest.mark.parametrize("k", range(7))
def test_the_numbers_of_a_stop_are_its_runs(k):
    """No number about a run is typed: what is left in the text after the facts is arithmetic, names and settings."""
    said = OURS.stops[k]
    text = re.sub(r"\[\[[^\]]*\]\]", "", " ".join([said.body, said.right, said.ask]))
    text = re.sub(r"\$\$.*?\$\$|arXiv:\S+", "", text, flags=re.S)
    text = re.sub(r"\$([^$]*)\$", lambda m: "" if re.search("[a-z]", m[1]) else f" {m[1]} ", text)  # formulas, and settings
    allowed = {
        "1",
        "2",
        "4",
        "5",
        "6",
        "7",
        "9",
        "50",
        "0.016",
        "0.0005",
        "0.05",
    }  # steps, spreads, the baseline, a tau to drag to
    assert set(re.findall(r"\d+(?:\.\d+)?", text)) <= allowed


def mean_variance(frame, where):
    v = lesson.variance(frame)[lesson.numbers(frame)].reshape(frame["shape"])[0]
    return float(np.mean(v[where]))


def test_what_the_stops_claim_in_words_holds_in_their_runs():
    """Each claim recomputed from the recorded run."""
    by_title = {s.title: s for s in OURS.stops}
    z = RUNS["z-signal"]
    paper = by_title["What the variance shows, and what it does not"].view
    facts = lesson.Facts(z, paper)
    mine = z["frames"][facts.run["frames"][paper.step]]
    other = z["frames"][z["references"][1]["frames"][paper.step]]
    v, w = lesson.variance(mine), lesson.variance(other)
    corner, fruit = int(lesson.numbers(mine)[0]), int(lesson.numbers(mine)[6 * 16 + 8])
    assert v[corner] < v[fruit] / 100  # "less than a hundredth"
    assert w[corner] > w[fruit]  # restless on the right
    assert v[corner] <= facts.run["tau"] < w[corner] * 2
    # "the very same" steps: the pictures before the switch are bit for bit those of the left run
    for a, b in zip(facts.run["frames"][:13], z["references"][1]["frames"][:13], strict=True):
        assert z["frames"][a]["preview"] == z["frames"][b]["preview"]

    s = RUNS["strawberry"]
    tau = lesson.Facts(s, by_title["Tau draws the line"].view)
    frame = tau.frames[5]
    chosen = lesson.promoted(frame)[lesson.numbers(frame)].reshape(16, 16)
    border = np.ones((16, 16), bool)
    border[2:-2, 2:-2] = False
    assert chosen[border].mean() > 0.85  # what goes first is the background
    assert chosen[~border].mean() < 0.5
    assert int(tau.say("under 0.016 6")) > int(tau.say("under 0.004 6")) > int(tau.say("under 0.0005 6"))

    parent = by_title["One parent, four children"].view
    now, after = (lesson.Facts(s, parent).frames[k] for k in (parent.step, parent.step + 1))
    assert lesson.promoted(now)[lesson.numbers(now)[parent.token[1] * 16 + parent.token[2]]]
    assert (lesson.levels(after)[0, parent.token[1], parent.token[2]], lesson.levels(now)[0, 2, 2]) == (1, 0)

    # same sketch up to the switch, then apart, and the field's own noise stays nearer to the 50-step picture
    fresh = RUNS["fresh-noise"]
    said = by_title["Adding noise again: which noise?"].view
    mine = [fresh["frames"][k]["preview"] for k in lesson.Facts(fresh, said).run["frames"]]
    other = next(r for r in fresh["references"] if r["label"] == said.beside)
    theirs = [fresh["frames"][k]["preview"] for k in other["frames"]]
    assert [a == b for a, b in zip(mine, theirs, strict=True)] == [True] * (said.step + 1) + [False] * (17 - said.step)
    assert other["psnr"] > fresh["runs"][0]["psnr"] + 2
    settings = [fresh["runs"][0]["config"], other["config"]]
    assert {k for k in settings[0] if settings[0][k] != settings[1][k]} == {"noise"}

    cost = lesson.Facts(s, by_title["What does it really cost?"].view)
    assert by_title["What does it really cost?"].answer["beside"] == f"Full resolution, {cost.say('buys')} steps"
    assert float(cost.say("psnr Full resolution, 12 steps")) > float(cost.say("psnr")) + 3
    assert 50 / 18 * float(cost.say("times same")) == pytest.approx(float(cost.say("times 50")), rel=0.05)


def test_the_noise_drawn_is_the_runs_field():
    s = RUNS["strawberry"]
    drawn = lesson.noise(s)
    assert (drawn["rows"], drawn["cols"], drawn["patch"]) == (128, 128, 8)
    values = np.frombuffer(base64.b64decode(drawn["values"]), np.int8).reshape(128, 128) / drawn["unit"]
    # the model's own field has three channels; its first is what is drawn
    row, col = np.mgrid[:128, :128]
    want = NoiseField(s["seed"], 3, 8).pixels(0, row, col)[..., 0]
    assert np.abs(values - want).max() <= 0.5 / drawn["unit"] + 1e-9
    coarse = NoiseField(s["seed"], 3, 8).pixels(0, row[:64, :64], col[:64, :64], 1)[..., 0]
    assert np.abs(values.reshape(64, 2, 64, 2).sum((1, 3)) / 2 - coarse).max() <= 2 * 0.5 / drawn["unit"] + 1e-9


def test_a_figure_needs_a_model_on_pixels(recorded):
    with pytest.raises(LessonError, match="sinopia or oracle"):
        lesson.noise({**recorded[0], "model": "flux-dev"})


def test_a_lesson_on_a_run_that_is_not_there_names_its_stop():
    with pytest.raises(LessonError, match=r"stop 1 .*not recorded.*strawberry"):
        lesson.message(lesson.parse(PLAIN.replace("strawberry", "banana")), RUNS)


def test_parts_that_can_be_hidden_exist_on_the_page():
    """Every selector of PARTS meets something in the viewer, the components or the page's own layout."""
    viewer = (ROOT / "viz" / "viewer").glob("*.html")
    text = "".join(p.read_text(encoding="utf-8") for p in viewer)
    text += "".join(p.read_text(encoding="utf-8") for p in (ROOT / "viz").rglob("*.py"))
    for selector in ", ".join(lesson.PARTS.values()).split(", "):
        for name in re.findall(r"[#.]([a-z-]+)", selector):
            assert re.search(rf"""["' ]{name}["' ]""", text), name
