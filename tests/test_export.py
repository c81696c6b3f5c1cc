"""The exported page and the static site, read back as a browser's parser reads them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fresco.config import FrescoConfig
from fresco.errors import FrescoError
from fresco.grid import TokenGrid
from fresco.trace import StepEvent, Trace
from viz import bundle, export

ROOT = Path(__file__).parents[1]
TRACES = sorted((ROOT / "assets" / "traces").glob("*.json"))
EVIL = "</script><script>alert(1)</script></script x <!--<script x \u2028\u2029 \ud800 &lt; \"'` ]]> \U0001f98a"
SHAPE = (1, 5, 6)  # odd on purpose: border tokens are cut
FULL = 30.0


def trace(prompt="a fox", *, nfe=4, full=False, seed=0, label="", **drive):
    """Return a made-up but lawful run: coarse, coarse, mixed, fine; FLOPs = tokens, so a full step costs 30."""
    config = FrescoConfig.full(nfe, seed=seed) if full else FrescoConfig.recommended(nfe, seed=seed, **(drive or {"tau": 0.01}))
    random = np.random.default_rng(nfe)
    coarse = TokenGrid.uniform(SHAPE, 1, 0)
    mixed, _ = coarse.expand(np.arange(len(coarse)) < 3)
    fine = TokenGrid.uniform(SHAPE, 1, 1)
    grids = [fine] * nfe if full else [coarse] * (nfe - 2) + [mixed, fine]
    events = []
    for k, grid in enumerate(grids):
        chosen = np.zeros(len(grid), bool) if grid is fine else grid.level == 0
        if grid is coarse:
            chosen = (np.arange(len(grid)) < 3) & (k == nfe - 3)
        stage = "full" if grid is fine else "mixed" if grid is mixed else "low"
        variance = random.uniform(1e-4, 1e-1, len(grid)).astype(np.float32) if k else np.full(len(grid), np.nan, np.float32)
        picture = random.integers(0, 256, (1, 20, 24, 3), np.uint8)
        events.append(
            StepEvent(k, 1 - k / nfe, 1 - (k + 1) / nfe, stage, bool(chosen.any()), grid is mixed, 0.02 + k, 0.5, grid,
                      variance, chosen, picture, float(len(grid)), 0.01, 0.001, np.zeros(len(grid), np.float32))
        )  # fmt: skip
    return Trace(prompt, config, "oracle", label, {"weights": "none"}, events)


class Reader(HTMLParser):
    """The JSON blocks and messages, the visible words and every address that a document refers to."""

    def __init__(self, document):
        super().__init__(convert_charrefs=True)
        self.blocks, self.words, self.addresses, self.scripts, self._open = [], [], [], 0, None
        self.messages, self._message = {}, None
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.addresses += [named[a] for a in ("src", "href", "action", "data-address") if a in named]
        self._open = named.get("type", "script") if tag == "script" else tag
        self._message = named.get("data-message")
        self.scripts += tag == "script"
        if self._open == "application/json":
            self.blocks.append("")

    def handle_endtag(self, tag):
        self._open = self._message = None

    def handle_data(self, data):
        if self._message:
            self.messages[self._message] = self.messages.get(self._message, "") + data
        elif self._open == "application/json":
            self.blocks[-1] += data
        elif self._open not in ("script", "style"):
            self.words.append(data)


def test_bundles_come_back_out_of_the_page_whatever_the_prompt_says():
    made = bundle.from_traces([trace(EVIL), trace(EVIL, nfe=9, full=True), trace("a plain fox")])
    document = export.page(made, title=EVIL, text=f"{EVIL}\n\nsecond")
    read = Reader(document)
    assert [json.loads(block) for block in read.blocks] == made
    assert read.scripts == 3 + len(made)  # the address, the components, the gallery and the data: nothing a prompt opened
    words = "".join(read.words)
    assert words.count("</script><script>alert(1)</script>") == 3  # title, heading, text: as words
    assert [r["slug"] for r in json.loads(read.messages["gallery"])["runs"]] == [b["slug"] for b in made]
    assert not set("<>&\u2028\u2029") & set(
        "".join([*read.blocks, *read.messages.values()])
    )  # browsers end a script at less than Python's parser does


def test_committed_runs_make_a_page_that_refers_to_nothing_outside():
    made = [bundle.load(path) for path in TRACES]
    document = export.page(made, title="Fresco", text="Drag tau.")
    assert not re.search(r"https?:|//[a-z0-9-]+\.[a-z]{2,}|@import|url\((?!#)", re.sub(r"data:image[^\"]*", "", document))
    read = Reader(document)
    assert all(address.startswith("data:") for address in read.addresses)
    shelf = json.loads(read.messages["gallery"])["runs"]
    assert [r["thumb"][:23] for r in shelf] == ["data:image/webp;base64,"] * len(made)
    assert len({r["line"] for r in shelf}) == len(made)
    assert all(r["facts"]["weights"] for r in shelf)
    assert "default-src 'none'" in document
    assert [json.loads(block) for block in read.blocks] == made
    assert len(document.encode()) < sum(path.stat().st_size for path in TRACES) + 300_000


def test_no_bundle_is_a_sentence():
    with pytest.raises(export.ExportError, match="no run to export"):
        export.page([], title="x")


def test_a_preview_from_a_foreign_file_cannot_become_markup():
    (made,) = bundle.from_traces([trace()])
    for frame in made["frames"]:
        frame["preview"] = 'data:image/webp;base64,AAAA" onerror="alert(1)'
    document = export.page([made, made], title="x")
    assert "onerror" not in re.sub(r"<script.*?</script>", "", document, flags=re.DOTALL)
    shelf = json.loads(Reader(document).messages["gallery"])["runs"]
    assert [(r["slug"], r["thumb"]) for r in shelf] == [("a-fox", ""), ("a-fox-2", "")]


def test_the_static_site_is_small_files_a_space_takes(tmp_path):
    made = [bundle.load(path) for path in TRACES]
    files = export.static_site(tmp_path / "out", made, title='Fresco: "runs"\n\u2028and more \U0001f98a')
    assert {f.relative_to(tmp_path / "out").as_posix() for f in files} == {
        "index.html", "README.md", *(f"runs/{path.name}" for path in TRACES)
    }  # fmt: skip
    assert all(f.stat().st_size < 10_000_000 for f in files)
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert len(index.encode()) < 300_000  # the first paint waits for no run
    addresses = [r["url"] for r in json.loads(Reader(index).messages["gallery"])["runs"]]
    assert [json.loads((tmp_path / "out" / a).read_text(encoding="utf-8")) for a in addresses] == made
    assert not re.search(r"https?:", index)
    head = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    said = dict(line.split(": ", 1) for line in head.splitlines())
    assert (said["sdk"], said["app_file"]) == ("static", "index.html")
    assert json.loads(said["title"]) == 'Fresco: "runs" and more \U0001f98a'
    assert len(said["short_description"]) <= 60


def test_a_file_that_a_space_would_refuse_is_said_before_anything_is_written(tmp_path):
    (made,) = bundle.from_traces([trace()])
    made["provenance"] = {"weights": "x" * export.LARGEST}
    with pytest.raises(export.ExportError, match=r"runs/a-fox.json would have 10\.0 MB"):
        export.static_site(tmp_path / "out", [made])
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------- bundles of ordinary traces


def test_a_run_and_its_references_are_one_bundle_with_their_costs():
    run, long, short = trace(tau=0.01), trace(nfe=9, full=True, label="Fifty"), trace(nfe=5, full=True)
    (made,) = bundle.from_traces([short, run, long])
    assert (made["taus"], made["nfes"], made["slug"]) == ([0.01], [4], "a-fox")
    assert [r["label"] for r in made["references"]] == ["Fifty", "Full resolution, 5 steps"]
    frames = [made["frames"][k] for k in made["runs"][0]["frames"]]
    assert [f["tokens"] for f in frames] == [9, 9, 18, 30]
    assert [f["flops"] for f in frames] == [9, 9, 18, 30]
    assert made["runs"][0]["meta"]["baselines"] == {
        "full50": 50 * FULL, "same_nfe": 4 * FULL, "same_flops": {"steps": 3, "flops": 3 * FULL}
    }  # fmt: skip
    assert not any("tau" in f for f in frames)  # the player knows it from the run


def test_a_ratio_run_has_no_tau_and_keeps_the_threshold_of_each_step():
    (made,) = bundle.from_traces([trace(ratio=0.4)])
    assert (made["taus"], made["runs"][0]["tau"]) == ([], None)
    assert [made["frames"][k]["tau"] for k in made["runs"][0]["frames"]] == [0.02, 1.02, 2.02, 3.02]


def test_a_stopped_run_claims_no_baseline_it_cannot_know():
    run = trace()
    run.events = run.events[:3]  # never at full resolution
    (made,) = bundle.from_traces([run])
    assert made["runs"][0]["meta"]["baselines"] == {}
    (made,) = bundle.from_traces([run, trace(nfe=7, full=True)])
    assert made["runs"][0]["meta"]["baselines"]["full50"] == 50 * FULL


def test_only_a_whole_table_is_switched_by_tau_others_stand_alone():
    table = [trace(tau=tau, nfe=nfe) for tau in (0.01, 0.02) for nfe in (4, 6)]
    (made,) = bundle.from_traces(table)
    assert (made["taus"], made["nfes"], len(made["runs"])) == ([0.01, 0.02], [4, 6], 4)
    alone = bundle.from_traces(table[:3])
    assert [(b["taus"], b["nfes"]) for b in alone] == [([0.01], [4]), ([0.01], [6]), ([0.02], [4])]
    assert len({b["slug"] for b in alone}) == 3
    assert len(bundle.from_traces([trace(seed=1), trace(seed=2)])) == 2  # two noise fields are two pictures
    chooser = export.page(alone, title="x")
    for words in ("NFE 4, tau 0.01", "NFE 6, tau 0.01", "NFE 4, tau 0.02"):
        assert words in chooser


def test_traces_that_make_no_bundle_are_one_sentence():
    with pytest.raises(bundle.BundleError, match="full-resolution traces only"):
        bundle.from_traces([trace(full=True)])
    empty = trace()
    empty.events = []
    with pytest.raises(bundle.BundleError, match="no step"):
        bundle.from_traces([empty])


# --------------------------------------------------------------------------------------------------------------- command


def test_the_command_writes_a_page_of_prompts_and_traces(tmp_path, capsys):
    trace("a fox").save(tmp_path / "fox.npz")
    trace("a fox", nfe=7, full=True).save(tmp_path / "full.npz")
    out = tmp_path / "new" / "page.html"
    names = [TRACES[0].stem, str(tmp_path / "fox.npz"), str(tmp_path / "full.npz")]
    assert export.main(["--out", str(out), "--title", "My talk", *names]) == 0
    read = Reader(out.read_text(encoding="utf-8"))
    assert [json.loads(b)["prompt"] for b in read.blocks] == [bundle.load(TRACES[0])["prompt"], "a fox"]
    assert "My talk" in read.words
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "sentence"), [("unicorn", "no recorded prompt"), ("no.npz", "no trace file"), ("no.json", "missing")]
)
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, name, sentence):
    assert export.main(["--out", str(tmp_path / "page.html"), name]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_exporting_needs_neither_torch_nor_gradio():
    code = (
        "import sys, viz.export, viz.film; print([m for m in ('torch', 'gradio', 'diffusers', 'plotly') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout == "[]\n"


def test_every_error_is_one_of_ours():
    assert issubclass(export.ExportError, FrescoError)


def test_a_lesson_travels_with_the_runs_it_shows(tmp_path):
    """`--lesson` adds them to one run; the words and numbers are in the file, and a static site has the lesson by itself."""
    out = tmp_path / "page.html"
    assert export.main(["--out", str(out), "anchor", "--lesson"]) == 0
    read = Reader(out.read_text(encoding="utf-8"))
    said = json.loads(read.messages["lesson"])
    slugs = [json.loads(block)["slug"] for block in read.blocks]
    assert slugs[0] == "anchor"
    assert {s["view"]["run"] for s in said["stops"]} == set(slugs[1:])
    assert export.main(["--static", str(tmp_path / "site")]) == 0
    index = Reader((tmp_path / "site" / "index.html").read_text(encoding="utf-8"))
    assert len(json.loads(index.messages["lesson"])["stops"]) == len(said["stops"]) == 7
    assert [r["slug"] for r in json.loads(index.messages["gallery"])["runs"]] == export.shelf_order()


def test_the_gallery_teaches_with_at_least_twelve_small_runs():
    examples = json.loads((ROOT / "assets" / "examples.json").read_text(encoding="utf-8"))
    assert len(examples["gallery"]) >= 12
    for slug, said in examples["gallery"].items():
        path = ROOT / "assets" / "traces" / f"{slug}.json"
        got = bundle.load(path)
        assert (got["title"], got["line"], got["prompt"], got["seed"]) == (
            said["title"], said["line"], said["prompt"], said["seed"]
        )  # fmt: skip
        config = FrescoConfig.from_json(got["runs"][0]["config"])
        for name, value in said["settings"].items():
            assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value), (slug, name)
        assert [r["label"] for r in got["references"]][1:-1] == [b["label"] for b in said.get("beside", [])]
        assert path.stat().st_size < 600_000
    assert sum((ROOT / "assets" / "traces" / f"{s}.json").stat().st_size for s in examples["gallery"]) < 4_200_000
