"""Prompts x seeds x settings: paired numbers with intervals by hand, resumed, spread over processes, judged later."""

import dataclasses
import json
import math
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fresco.__main__ import main
from fresco.backends.oracle import OracleDenoiser, OracleModel
from fresco.baselines import CATALOGUE
from fresco.cli import settings
from fresco.config import ConfigError, FrescoConfig
from fresco.errors import FrescoError
from fresco.lab import evaluate as lab
from fresco.lab.judges import JudgeError, load_judge
from fresco.lab.store import Store, read_lines
from fresco.metrics import interval, paired, psnr
from fresco.record import run

ROOT = Path(__file__).parents[1]
SIZE = (1, 12, 12)
CONFIGS = {
    "ours": FrescoConfig.recommended(6, size=SIZE),
    "restart": FrescoConfig.recommended(6, size=SIZE, transition="restart", checks=1),
    "full 4": FrescoConfig.full(4, size=SIZE),
}
TASK = lab.Task.of(("fox", "owl", "cat"), (0, 7), CONFIGS, same_flops=True)


class Worded(OracleModel):
    """The random field with a spectrum of its own for every prompt, so that prompts differ; exact all the same."""

    def bind(self, config):
        base, shape = super().bind(config), config.size or self.shape
        fields = {}

        class Denoiser(OracleDenoiser):
            def __call__(self, x, grid, sigma, cond):
                exponent = 0.5 + sum(map(ord, cond.prompt)) % 7 / 4
                own = fields.setdefault(exponent, OracleDenoiser(shape, exponent, channels=3))
                return own(x, grid, sigma, cond)

        return Denoiser(shape, base.exponent, channels=3)


class Greenness:
    """A judge that needs nothing: how green the picture is, and how long the prompt."""

    name = "green"

    def __init__(self):
        self.calls = 0

    def __call__(self, prompt, picture):
        self.calls += 1
        return float(picture[..., 1].mean()) + len(prompt)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("evaluate")
    lab.generate(Worded(), TASK, where)
    return where


def test_intervals_are_the_closed_form():
    """Mean 5, standard deviation 2, n = 4: half = t(0.975, 3) * 2 / 2, and t(0.975, 3) = 3.182446."""
    values = [5 - math.sqrt(6), 5.0, 5.0, 5 + math.sqrt(6)]
    assert statistics.stdev(values) == pytest.approx(2)
    assert interval(values) == pytest.approx((5, 5 - 3.182446, 5 + 3.182446), abs=1e-6)
    assert paired(values, [0, 0, 1, 1]) == pytest.approx(interval([v - w for v, w in zip(values, [0, 0, 1, 1], strict=True)]))
    with pytest.raises(ValueError, match="2 values"):
        interval([1.0])


def test_every_line_is_the_single_run(folder):
    lines = Store(folder / "results.jsonl").lines()
    # 50-step reference, three settings, and full resolution at the cost of two of them: at most six runs a unit
    assert 6 * 4 <= len(lines) <= 6 * 6
    assert len(read_lines(folder / "seconds.jsonl")) == len(lines)
    for line in list(lines.values())[::7]:
        config = FrescoConfig.from_json(line["config"])
        alone, target = (run(Worded(), line["prompt"], c).picture for c in (config, config.as_full(50)))
        assert np.array_equal(Store(folder / "results.jsonl").read(line).picture, alone)
        assert float(line["psnr"]) == pytest.approx(psnr(alone, target))


def test_the_summary_is_means_over_prompts_with_t_intervals_by_hand(folder):
    found = lab.summary(Worded(), TASK, folder)
    rows = {row["run"]: row for row in found["rows"]}
    assert list(rows) == ["full, 50 steps", *CONFIGS, "full, same FLOPs as ours", "full, same FLOPs as restart"]
    assert (found["units"], found["units_complete"], found["against"]) == (6, 6, "ours")

    lines = list(Store(folder / "results.jsonl").lines().values())

    def values(config, name):
        own = [x for x in lines if FrescoConfig.from_json(x["config"]).replace(seed=0) == config]
        per_prompt = {}
        for x in own:
            per_prompt.setdefault(x["prompt"], []).append(float(x[name]))
        assert all(len(v) == 2 for v in per_prompt.values())
        return [statistics.mean(per_prompt[prompt]) for prompt in TASK.prompts]

    def by_hand(own):
        half = stats.t.ppf(0.975, 2) * statistics.stdev(own) / math.sqrt(3)
        return [statistics.mean(own), statistics.mean(own) - half, statistics.mean(own) + half]

    for label, config in CONFIGS.items():
        for name in ("psnr", "ssim", "seconds", "speedup", "full_steps"):
            assert rows[label][name] == pytest.approx(by_hand(values(config, name)), nan_ok=True), (label, name)
    difference = [a - b for a, b in zip(values(CONFIGS["restart"], "psnr"), values(CONFIGS["ours"], "psnr"), strict=True)]
    assert rows["restart"]["difference"]["psnr"] == pytest.approx(by_hand(difference))
    assert "difference" not in rows["ours"]
    assert rows["full, 50 steps"]["psnr"] == ["inf", None, None]
    assert rows["full, 50 steps"]["seconds_speedup"] == [1.0, 1.0, 1.0]
    times = {(x["prompt"], x["seed"], FrescoConfig.from_json(x["config"]).replace(seed=0)): x["seconds"] for x in lines}
    ratios = [
        statistics.mean(
            math.log(times[p, s, FrescoConfig.full(50, size=SIZE)] / times[p, s, CONFIGS["full 4"]]) for s in TASK.seeds
        )
        for p in TASK.prompts
    ]
    assert rows["full 4"]["seconds_speedup"] == pytest.approx([math.exp(v) for v in by_hand(ratios)])


def test_same_flops_is_the_smallest_full_run_that_costs_no_less(folder):
    lines = Store(folder / "results.jsonl").lines().values()
    full = {
        (x["prompt"], x["seed"], x["config"]["nfe"]): x for x in lines if x["config"]["stages"] == [0, 0, x["config"]["nfe"]]
    }
    for line in lines:
        if line["config"]["stages"] is None:
            steps = math.ceil(line["full_steps"] - 1e-9)
            assert (line["prompt"], line["seed"], steps) in full
            assert full[line["prompt"], line["seed"], steps]["flops"] >= line["flops"] * (1 - 1e-12)


def test_what_is_lost_is_made_again_and_nothing_else(folder, tmp_path):
    whole = (folder / "results.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (1, 7, len(lines) - 1, len(lines)):
        where = tmp_path / str(kept)
        where.mkdir()
        for name in ("pictures", "seconds.jsonl"):
            (where / name).symlink_to(folder / name) if name == "pictures" else (where / name).write_bytes(
                (folder / name).read_bytes()
            )
        (where / "results.jsonl").write_bytes(b"".join(lines[:kept]) + (lines[kept][:30] if kept < len(lines) else b""))
        before = read_lines(where / "seconds.jsonl")
        lab.generate(Worded(), TASK, where)
        assert (where / "results.jsonl").read_bytes() == whole
        assert len(read_lines(where / "seconds.jsonl")) - len(before) == len(lines) - kept


def test_a_judge_may_come_later_and_scores_each_picture_once(folder):
    before = (folder / "results.jsonl").read_bytes()
    judge = Greenness()
    lab.generate(Worded(), TASK, folder, judges=[judge])
    assert (folder / "results.jsonl").read_bytes() == before
    store = Store(folder / "results.jsonl")
    assert judge.calls == len(store.lines())
    lab.generate(Worded(), TASK, folder, judges=[judge])
    assert judge.calls == len(store.lines())
    scores = lab.read_scores(folder)
    for key, line in store.lines().items():
        assert scores[key, "green"] == pytest.approx(store.read(line).picture[..., 1].mean() + 3)
    row = {r["run"]: r for r in lab.summary(Worded(), TASK, folder)["rows"]}["restart"]
    own = [statistics.mean(scores[k, "green"] for k in _keys(store, p, CONFIGS["restart"])) for p in TASK.prompts]
    assert row["green"][0] == pytest.approx(statistics.mean(own))
    assert row["difference"]["green"][1] < row["difference"]["green"][0] < row["difference"]["green"][2]


def test_a_judge_of_crowds_sees_every_picture_of_a_row(folder):
    """One distance a row, over all its prompts and seeds: here the mean green itself."""

    class Crowd(Greenness):
        def distance(self, pictures):
            assert len(pictures) == len(TASK.units)
            return float(pictures[..., 1].mean())

    store = Store(folder / "results.jsonl")
    rows = {r["run"]: r for r in lab.summary(Worded(), TASK, folder, judges=[Greenness(), Crowd()])["rows"]}
    for label, config in CONFIGS.items():
        own = [store.read(store.lines()[key]).picture for p in TASK.prompts for key in _keys(store, p, config)]
        assert rows[label]["frechet"] == [pytest.approx(np.mean([x[..., 1] for x in own])), None, None]
    assert "frechet" not in lab.summary(Worded(), TASK, folder, judges=[Greenness()])["rows"][0]


def _keys(store, prompt, config):
    return [
        key for key, line in store.lines().items()
        if line["prompt"] == prompt and FrescoConfig.from_json(line["config"]).replace(seed=0) == config
    ]  # fmt: skip


def test_only_whole_units_count(folder, tmp_path):
    lines = (folder / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:-1]))
    (tmp_path / "seconds.jsonl").write_bytes((folder / "seconds.jsonl").read_bytes())
    found = lab.summary(Worded(), TASK, tmp_path)
    assert found["units_complete"] == 5
    assert {row["n"] for row in found["rows"]} == {5}


def test_two_processes_make_what_one_makes(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("fox\nowl\n\ncat\n")
    arguments = [
        "evaluate", "--model", "oracle", "--prompts", str(tmp_path / "prompts.txt"), "--seeds", "0", "7", "--configs",
        "a=recommended:5,size=1/10/10", "full:3,size=1/10/10", "--same-flops", "--device", "cpu", "--json", "--out",
    ]  # fmt: skip
    assert main([*arguments, str(tmp_path / "one")]) == 0
    one = json.loads(capsys.readouterr().out)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "fresco",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launch, *arguments, str(tmp_path / "two")], cwd=ROOT, capture_output=True, text=True, timeout=300,
        check=False, env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    files = [tmp_path / "two" / f"results-{k}.jsonl" for k in range(2)]
    apart = [file.read_bytes().splitlines() for file in files]
    whole = (tmp_path / "one" / "results.jsonl").read_bytes().splitlines()
    assert min(map(len, apart)) > 0
    assert sorted(apart[0] + apart[1]) == sorted(whole)
    assert not (tmp_path / "two" / "results.jsonl").exists()
    for a, b in zip(one["rows"], two["rows"], strict=True):
        timed = ("seconds", "seconds_speedup")
        assert {k: v for k, v in a.items() if k not in timed} == {k: v for k, v in b.items() if k not in timed}
    before = [file.read_bytes() for file in files]  # one process goes on from two, and finds nothing to do
    assert main([*arguments, str(tmp_path / "two")]) == 0
    assert [file.read_bytes() for file in files] == before
    assert not (tmp_path / "two" / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "\ufeffa red fox\n\n  an owl \na red fox\n"),
        ("p.jsonl", '{"prompt": "a red fox", "category": "Colors"}\n{"prompt": "an owl"}\n'),
        ("drawbench.csv", 'Category,Prompts\nColors,a red fox\n"Count\ning",an owl\n'),
        ("p.tsv", "category\tprompt\nx\ta red fox\ny\tan owl\n"),
    ],
)
def test_prompts_are_read_from_the_files_that_people_have(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert lab.read_prompts(tmp_path / name) == ("a red fox", "an owl")


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [("p.txt", "\n \n", "no prompts"), ("p.csv", "a,b\n1,2\n", "column"), ("p.jsonl", "{}\n", "prompt"), ("no", None, "read")],
)
def test_files_without_prompts_are_refused(tmp_path, name, text, word):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(FrescoError, match=word):
        lab.read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "label", "config"),
    [
        ("recommended:18,tau=0.004", "recommended:18,tau=0.004", FrescoConfig.recommended(18, tau=0.004)),
        ("x=paper:11,stages=5/2/4,noise=fresh", "x", FrescoConfig.paper(11, stages=(5, 2, 4), noise="fresh")),
        ("full", "full", FrescoConfig.full(50)),
        ("fast=full:4,guidance=2", "fast", FrescoConfig.full(4, guidance=2)),
        ("recommended:6,checks=2", "recommended:6,checks=2", FrescoConfig.recommended(6, checks=2)),
    ],
)
def test_settings_are_read_from_one_text(tmp_path, text, label, config):
    assert settings.named(text) == {label: config}
    (tmp_path / "c.json").write_text(json.dumps({label: config.to_json()}))
    assert settings.named(str(tmp_path / "c.json")) == {label: config}


def test_a_baseline_is_named_and_may_be_changed():
    plain, cached = settings.named("ralu-18")["ralu-18"], settings.named("t=taylorseer-4,size=1/8/8")["t"]
    assert plain == CATALOGUE["ralu-18"]
    assert cached == dataclasses.replace(CATALOGUE["taylorseer-4"], config=FrescoConfig.full(50, size=(1, 8, 8)))


@pytest.mark.parametrize(
    "text",
    [
        "ralu-18:3",
        "best",
        "recommended:x",
        "paper:18,tau",
        "paper:18,taw=1",
        "full:4,nfe=3",
        "no.json",
        "paper:2",
        "paper:18,tau=-1",
    ],
)
def test_settings_that_cannot_be_read_are_refused(text):
    with pytest.raises(ConfigError):
        settings.named(text)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"prompts": ()}, "prompts"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"configs": {}}, "settings"),
        ({"prompts": ("a", "a")}, "twice"),
    ],
)
def test_tasks_with_nothing_or_something_twice_are_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        lab.Task.of(**{"prompts": ("a",), "seeds": (0,), "configs": CONFIGS, **changes})


def test_who_to_compare_with_must_be_there(folder):
    with pytest.raises(ConfigError, match="nobody"):
        lab.summary(Worded(), TASK, folder, against="nobody")
    rows = {r["run"]: r for r in lab.summary(Worded(), TASK, folder, against="restart")["rows"]}
    assert rows["ours"]["difference"]["psnr"][0] > 0  # on the oracle the field keeps the same-seed picture


@pytest.mark.parametrize(("name", "module", "package"), [
    ("image-reward", "ImageReward", "image-reward"), ("clip-score", "open_clip", "open_clip_torch"),
    ("clip-iqa", "pyiqa", "pyiqa"),
])  # fmt: skip
def test_a_judge_without_its_package_says_how_to_get_it(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)  # what an absent package looks like to import
    with pytest.raises(JudgeError, match=f"pip install {package}$"):
        load_judge(name)
    with pytest.raises(JudgeError, match="clip-iqa"):
        load_judge("taste")


def test_videos_lie_as_vbench_reads_them(tmp_path):
    imageio = pytest.importorskip("imageio.v3")
    pytest.importorskip("imageio_ffmpeg")
    config = FrescoConfig.recommended(4, size=(3, 16, 16))
    task = lab.Task.of(("a cat.",), (5, 9), {"ours": config})
    lab.generate(OracleModel(shape=(3, 16, 16)), task, tmp_path)
    written = lab.write_videos(OracleModel(shape=(3, 16, 16)), task, tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in written] == [f"videos/ours/a cat.-{k}.mp4" for k in (0, 1)]
    want = run(OracleModel(shape=(3, 16, 16)), "a cat.", config.replace(seed=9)).picture
    found = imageio.imread(written[1])
    assert found.shape == want.shape
    assert psnr(found, want) > 20  # H.264 halves the colours' resolution


def test_without_ffmpeg_videos_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(FrescoError, match=r"pip install imageio\[ffmpeg\]"):
        lab.write_videos(Worded(), TASK, tmp_path)


def test_a_person_can_read_the_summary(tmp_path, capsys):
    (tmp_path / "p.txt").write_text("fox\nowl\n")
    arguments = ["--model", "oracle", "--prompts", str(tmp_path / "p.txt"), "--configs", "recommended:4,size=1/12/12"]
    assert main(["evaluate", *arguments, "--ablation", "paper", "--out", str(tmp_path / "o")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("2 of 2 units")
    assert [line.split("  ")[0] for line in said[3:]] == [
        "full, 50 steps", "recommended:4,size=1/12/12", "random", "edge", "without unified noise", "interpolation",
    ]  # fmt: skip
