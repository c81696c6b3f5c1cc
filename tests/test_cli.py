"""`python -m fresco`: every command with --json, and every mistake as one sentence and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fresco.__main__ import main
from fresco.backends.oracle import OracleModel, law
from fresco.config import FrescoConfig
from fresco.cost import SHAPES
from fresco.metrics import psnr
from fresco.record import run
from fresco.trace import Trace

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "tests" / "requirements.txt"  # any text will do where the mistake is another one


def said(capsys, *arguments):
    """Run a command that must succeed and return its JSON."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_generate_writes_the_picture_and_the_trace_of_that_very_run(tmp_path, capsys):
    out, kept = tmp_path / "fox.png", tmp_path / "fox.npz"
    found = said(
        capsys, "generate", "fox", "--model", "oracle", "--size", "18x20", "--nfe", "7", "--tau", "0.02", "--seed", "5",
        "--reference", "9", "--out", str(out), "--trace", str(kept),
    )  # fmt: skip
    config = FrescoConfig.recommended(nfe=7, tau=0.02, seed=5, size=(1, 18, 20))
    want = run(OracleModel(), "fox", config)
    picture = np.asarray(Image.open(out))
    assert np.array_equal(picture, want.picture[0])
    assert FrescoConfig.from_json(found["config"]) == config
    assert found["tokens"] == [len(e.grid) for e in want.events]
    assert found["tflops"] == pytest.approx(sum(12.0 * len(e.grid) ** 2 for e in want.events) / 1e12)
    assert found["speedup_flops_50"] == pytest.approx(50 * 12.0 * 360**2 / want.flops)
    assert found["speedup_flops_same_nfe"] == pytest.approx(7 * 12.0 * 360**2 / want.flops)
    full = run(OracleModel(), "fox", config.as_full(9))
    assert found["psnr"] == pytest.approx(psnr(want.picture, full.picture))
    loaded = Trace.load(kept)
    assert loaded.config == config
    assert all(e.preview is not None for e in loaded.events)
    for a, b in zip(loaded.events, want.events, strict=True):
        assert np.array_equal(a.variance, b.variance, equal_nan=True)


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (["--preset", "paper", "--nfe", "6"], FrescoConfig.paper(nfe=6)),
        (["--preset", "full", "--nfe", "4"], FrescoConfig.full(4)),
        (["--steps", "3,2,2", "--ratio", "0.25"], FrescoConfig.recommended(nfe=7, stages=(3, 2, 2), ratio=0.25)),
        (
            ["--nfe", "6", "--transition", "renoise", "--checks", "1", "--noise", "fresh", "--signal", "z", "--window", "3"],
            FrescoConfig.recommended(nfe=6, transition="renoise", checks=1, noise="fresh", signal="z", window=3),
        ),
        (
            ["--nfe", "6", "--levels", "2", "--selection", "even", "--expansion", "nearest", "--frame", "fine"],
            FrescoConfig.recommended(nfe=6, levels=2, selection="even", expansion="nearest", frame="fine"),
        ),
    ],
)
def test_every_option_reaches_the_run(tmp_path, capsys, arguments, config):
    size = ["--model", "oracle", "--size", "8x8", "--guidance", "2", "--out", str(tmp_path / "x.png")]
    found = said(capsys, "generate", "fox", *size, *arguments)
    assert FrescoConfig.from_json(found["config"]) == config.replace(size=(1, 8, 8), guidance=2.0)


def test_oracle_prints_the_law_of_the_sampler(capsys):
    found = said(capsys, "oracle", "--grid", "4x4")
    rows = {row["run"]: row for row in found["rows"]}
    exact = law(FrescoConfig.full(8), (1, 4, 4))
    assert {k: rows["full, 8 steps"][k] for k in exact} == pytest.approx(exact)
    for point in found["proposition"]:  # Proposition 1: the field never does worse than fresh noise
        assert point["field"] <= point["fresh"]
        assert point["fresh"] >= point["bound"]


def test_cost_is_arithmetic_on_the_shape(capsys):
    found = said(capsys, "cost", "--model", "flux-dev", "--size", "512x1024", "--steps", "6,7,5", "--ratio", "0.25")
    tokens = {"low": 512, "mixed": 512 + 3 * 128, "full": 2048}
    assert found["tokens"] == tokens
    each = {name: SHAPES["flux-dev"].flops(n) / 1e12 for name, n in tokens.items()}
    assert found["tflops"] == pytest.approx(6 * each["low"] + 7 * each["mixed"] + 5 * each["full"])
    assert found["speedup_reference"] == pytest.approx(50 * each["full"] / found["tflops"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["generate", "x", "--model", "gpt"], "gpt"),
        (["generate", "x", "--model", "oracle", "--tau", "-1"], "tau"),
        (["generate", "x", "--model", "oracle", "--tau", "nan"], "tau"),
        (["generate", "x", "--model", "oracle", "--tau", "0.1", "--ratio", "0.2"], "both"),
        (["generate", "x", "--model", "oracle", "--nfe", "1"], "nfe"),
        (["generate", "x", "--model", "oracle", "--seed", "-4"], "seed"),
        (["generate", "x", "--model", "oracle", "--size", "999x999"], "size"),
        (["generate", "x", "--model", "oracle", "--checks", "every"], "checks"),
        (["generate", "x", "--model", "oracle", "--selection", "attention", "--ratio", "0.3"], "attention"),
        (["generate", "x", "--model", "oracle", "--device", "toaster"], "toaster"),
        (["generate", "x", "--model", "oracle", "--size", "12x12", "--nfe", "4", "--reference", "0"], "nfe"),
        (["generate", "x", "--model", "oracle", "--size", "12x12", "--nfe", "4", "--out", "no/such/folder/x.png"], "x.png"),
        (["generate", "x", "--model", "oracle", "--size", "12x12", "--nfe", "4", "--out", "x.poem"], "x.poem"),
        (["generate", "x", "--model", "oracle", "--size", "6x6", "--nfe", "4", "--reference", "4"], "size"),
        (["oracle", "--grid", "0x4"], "grid"),
        (["oracle", "--grid", "400x400"], "grid"),
        (["cost", "--model", "gpt"], "gpt"),
        (["cost", "--size", "100x100"], "size"),
        (["cost", "--ratio", "2"], "ratio"),
        (["cost", "--steps", "0,0,0"], "steps"),
        (["sweep", "x", "--model", "oracle", "--axis", "taw=1", "--out", "o"], "taw"),
        (["sweep", "x", "--model", "oracle", "--axis", "nfe=2,5", "--out", "o"], "nfe"),
        (["sweep", "x", "--model", "oracle", "--axis", "tau=0.1", "--axis", "tau=0.2", "--out", "o"], "twice"),
        (["sweep", "x", "--model", "gpt", "--axis", "tau=0.1", "--out", "o"], "gpt"),
        (["sweep", "x", "--model", "oracle", "--size", "99x99", "--axis", "tau=0.1", "--out", "o"], "size"),
        (["evaluate", "--model", "oracle", "--prompts", "none.txt", "--out", "o"], "none.txt"),
        (["evaluate", "--model", "oracle", "--prompts", str(PROMPTS), "--configs", "best:18", "--out", "o"], "best"),
        (["evaluate", "--model", "oracle", "--prompts", str(PROMPTS), "--configs", "full", "full", "--out", "o"], "full"),
        (["evaluate", "--model", "oracle", "--prompts", str(PROMPTS), "--judges", "taste", "--out", "o"], "taste"),
        (["evaluate", "--model", "oracle", "--prompts", str(PROMPTS), "--against", "none", "--out", "o"], "none"),
        (["evaluate", "--model", "oracle", "--prompts", str(PROMPTS), "--seeds", "1", "1", "--out", "o"], "seeds"),
        (["tables", "--results", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_two(capsys, monkeypatch, tmp_path, arguments, word):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert out == ""
    assert last.startswith("fresco: ")
    assert word in last
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())  # nothing half-written is left


@pytest.mark.parametrize("arguments", [
    [], ["paint"], ["cost", "--size", "big"], ["cost", "--steps", "1,2"], ["generate"], ["sweep", "x"],
    ["sweep", "x", "--axis", "tau", "--out", "o"], ["evaluate", "--out", "o"],
])  # fmt: skip
def test_unknown_words_are_usage_and_exit_code_two(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m fresco" in capsys.readouterr().err


def test_without_json_a_person_can_read_it(capsys):
    assert main(["cost"]) == 0
    lines = dict(line.strip().split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["model"] == "flux-dev"
    assert float(lines["speedup_reference"]) == pytest.approx(
        float(lines["tflops_reference"]) / float(lines["tflops"]), rel=1e-4
    )


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "fresco", "cost", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["nfe"] == 18


def test_export_writes_what_the_viewers_own_builder_writes(tmp_path, capsys):
    """The verb and `python -m viz.export` make the same file; an unknown run is one sentence."""
    from viz import export

    assert main(["export", "--out", str(tmp_path / "a.html"), "anchor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert export.main(["--out", str(tmp_path / "b.html"), "anchor"]) == 0
    made = [(tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert made[0] == made[1]
    assert said == {str(tmp_path / "a.html"): pytest.approx(len(made[0]) / 1e6, abs=1e-3)}
    assert main(["export", "--out", str(tmp_path / "c.html"), "nothing"]) == 2
    assert "is no recorded prompt" in capsys.readouterr().err
