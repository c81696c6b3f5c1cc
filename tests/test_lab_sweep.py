"""Grids of settings: the cells are the product, each is the single run, and a kill at any moment costs nothing finished."""

import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fresco.__main__ import main
from fresco.backends.oracle import OracleModel
from fresco.baselines import CATALOGUE
from fresco.config import ConfigError, FrescoConfig
from fresco.lab import sweep as lab
from fresco.lab.store import Store, StoreError, read_lines
from fresco.metrics import ssim
from fresco.record import References, run
from fresco.trace import StepEvent, Trace

ROOT = Path(__file__).parents[1]
BASE = FrescoConfig.recommended(6, size=(1, 16, 12), seed=4)


def by_hand(a, b):
    """Return the PSNR of two pictures, spelled out."""
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


@pytest.fixture(scope="module")
def results():
    return list(lab.sweep(OracleModel(), "fox", lab.cells(BASE, {"tau": [0.002, 0.02], "nfe": [5, 7]}), kept=References()))


def test_cells_are_the_product_with_the_first_axis_slowest():
    cells = lab.cells(BASE, {"tau": [0.002, 0.02], "stages": [(2, 2, 2), (3, 1, 2)], "noise": ["field", "fresh"]})
    wanted = list(itertools.product([0.002, 0.02], [(2, 2, 2), (3, 1, 2)], ["field", "fresh"]))
    assert [tuple(cell.coords.values()) for cell in cells] == wanted
    for cell, (tau, stages, noise) in zip(cells, wanted, strict=True):
        assert cell.config == dataclasses.replace(BASE, tau=tau, ratio=None, stages=stages, noise=noise)
    assert cells[1].label == "tau 0.002, stages 2/2/2, noise fresh"
    assert lab.cells(BASE, {})[0].config == BASE


@pytest.mark.parametrize(
    ("axes", "word"),
    [
        ({"taw": [1]}, "taw"),
        ({"tau": []}, "tau"),
        ({"tau": [0.1, 0.1]}, "twice"),
        ({"tau": [-1.0]}, "tau"),
        ({"tau": [0.1], "ratio": [0.2]}, "ratio"),
        ({"selection": "all"}, "selection"),
        ({"nfe": [2]}, "nfe"),
    ],
)
def test_axes_that_cannot_be_run_are_refused(axes, word):
    with pytest.raises(ConfigError, match=word):
        lab.cells(BASE, axes)


def test_every_cell_is_the_single_run(results):
    target = run(OracleModel(), "fox", FrescoConfig.full(50, size=(1, 16, 12), seed=4)).picture
    cells = lab.cells(BASE, {"tau": [0.002, 0.02], "nfe": [5, 7]})
    for cell, result in zip(cells, results, strict=True):
        alone = run(OracleModel(), "fox", cell.config)
        assert (result.label, result.coords, result.config) == (cell.label, cell.coords, cell.config)
        assert np.array_equal(result.picture, alone.picture)
        assert len(result.trace.events) == cell.config.nfe
        for a, b in zip(result.trace.events, alone.events, strict=True):
            assert np.array_equal(a.variance, b.variance, equal_nan=True)
        assert result.seconds == sum(e.seconds for e in result.trace.events)
        assert result.flops == pytest.approx(sum(12.0 * len(e.grid) ** 2 for e in alone.events))
        assert result.full_steps == pytest.approx(sum(len(e.grid) ** 2 for e in alone.events) / 192**2)
        assert result.speedup == pytest.approx(50 / result.full_steps)
        assert result.psnr == pytest.approx(by_hand(alone.picture, target))
        assert result.ssim == pytest.approx(ssim(alone.picture, target))


def test_runs_have_one_name_and_different_runs_have_others():
    model, other = OracleModel(), OracleModel(exponent=2.0, provenance="another field")
    config = FrescoConfig.full(3)
    keys = {
        lab.key_of(model, "fox", config), lab.key_of(model, "owl", config), lab.key_of(other, "fox", config),
        lab.key_of(model, "fox", config.replace(seed=1)), lab.key_of(model, "fox", config.replace(nfe=4)),
    }  # fmt: skip
    assert len(keys) == 5
    assert lab.key_of(model, "fox", FrescoConfig.from_json(config.to_json())) in keys


def test_what_is_done_is_yielded_and_not_run(results):
    class Unable:
        name, provenance, dtype = OracleModel.name, OracleModel().provenance, OracleModel().dtype

    cells = [lab.Cell({"x": 1}, "again", result.config) for result in results]
    found = list(lab.sweep(Unable(), "fox", cells, kept=References(), done={r.key: r for r in results}))
    assert [r.label for r in found] == ["again"] * 4
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(found, results, strict=True))


def test_the_reference_is_run_once_or_read():
    model, kept = OracleModel(), References()
    cells = [lab.reference_cell(BASE), *lab.cells(BASE, {"nfe": [5]})]
    steps = list(lab.follow(model, "fox", cells, kept=kept))
    made = [s for s in steps if isinstance(s, lab.Step) and s.reference]
    assert [s.event.step for s in made] == list(range(50))
    assert {s.cell for s in made} == {cells[0]}
    reference = next(s for s in steps if isinstance(s, lab.Result))
    assert (reference.psnr, reference.ssim) == (float("inf"), pytest.approx(1.0))
    assert reference.to_json()["psnr"] == "inf"
    again = list(lab.follow(model, "fox", cells[1:], kept=References(), done={reference.key: reference}))
    assert not [s for s in again if isinstance(s, lab.Step) and s.reference]
    assert again[-1].psnr == steps[-1].psnr


def test_a_baseline_is_its_own_run_cache_included():
    model = OracleModel()
    names = ("ralu-18", "taylorseer-4", "jit-11")
    cells = [lab.baseline_cell(model, CATALOGUE[name], BASE) for name in names]
    plain = lab.Cell({}, "plain", BASE.as_full(50))
    found = {r.label: r for r in lab.sweep(model, "fox", [plain, *cells], kept=References(), preview_every=0)}
    assert list(found) == ["plain", *names]
    assert found["taylorseer-4"].config == found["plain"].config
    assert len({r.key for r in found.values()}) == 4
    for name in names:
        baseline = CATALOGUE[name]
        config = baseline.on(model).replace(size=BASE.size, seed=BASE.seed)
        alone = run(baseline.model(model), "fox", config)
        assert np.array_equal(found[name].picture, alone.picture), name
        assert found[name].flops == alone.flops
        assert found[name].weights == alone.provenance["weights"]
    assert found["taylorseer-4"].full_steps < 15
    assert not np.array_equal(found["taylorseer-4"].picture, found["plain"].picture)


def test_closing_stops_within_a_step():
    seen = []

    class Counting(OracleModel):
        def preview(self, latent):
            seen.append(latent)
            return super().preview(latent)

        decode = preview

    model = Counting()
    following = lab.follow(model, "fox", lab.cells(BASE, {"nfe": [5, 6]}), kept=References())
    for step in range(7):
        found = next(following)
        assert isinstance(found, lab.Step)
        assert isinstance(found.event, StepEvent)
        assert (found.reference, found.event.step) == (True, step)
    following.close()
    assert len(seen) == 7


def test_the_full_curve_is_full_resolution_and_comes_closer_with_every_step():
    curve = list(lab.full_curve(OracleModel(), "fox", BASE, (4, 8, 16, 50), kept=References()))
    assert [r.full_steps for r in curve] == [4, 8, 16, 50]
    assert [r.config for r in curve] == [FrescoConfig.full(n, size=BASE.size, seed=4) for n in (4, 8, 16, 50)]
    psnr = [r.psnr for r in curve]
    assert psnr == sorted(psnr)
    assert psnr[-1] == float("inf")


def test_stored_results_come_back_whole(results, tmp_path):
    store = Store(tmp_path / "results.jsonl", traces=True)
    for result in results:
        store.add(result)
    found = Store(tmp_path / "results.jsonl", traces=True).done()
    assert list(found) == [r.key for r in results]
    for result in results:
        other = found[result.key]
        assert other.to_json() == result.to_json()
        assert np.array_equal(other.picture, result.picture)
        assert isinstance(other.trace, Trace)
        assert other.trace.flops == result.trace.flops
    assert list(store.done([results[2].key])) == [results[2].key]
    assert all("seconds" not in line for line in read_lines(tmp_path / "results.jsonl"))


def test_videos_are_stored_frame_by_frame(results, tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (11, 6, 4, 3)).astype(np.uint8)
    store = Store(tmp_path / "results.jsonl")
    store.add(dataclasses.replace(results[0], picture=video))
    assert np.array_equal(store.done()[results[0].key].picture, video)


def test_a_line_torn_anywhere_is_as_if_never_written(results, tmp_path):
    store = Store(tmp_path / "results.jsonl")
    for result in results:
        store.add(result)
    whole = store.path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        store.path.write_bytes(whole[:cut])
        assert list(store.lines()) == [r.key for r in results[:-1]]
        if (cut - start) % 50 == 0:
            store.add(results[-1])
            assert store.path.read_bytes() == whole


def test_damage_is_said_with_its_place(results, tmp_path):
    store = Store(tmp_path / "results.jsonl")
    store.add(results[0])
    store.add(results[1])
    first, second, _ = store.path.read_bytes().split(b"\n")
    store.path.write_bytes(first[:40] + b"\n" + second + b"\n")
    with pytest.raises(StoreError, match=r"line 1 of results\.jsonl"):
        store.lines()
    store.path.write_bytes(first + b"\n" + second + b"\n")
    (tmp_path / "pictures" / f"{results[1].key}.png").unlink()
    with pytest.raises(StoreError, match=results[1].key):
        store.done()


ARGUMENTS = [
    "sweep", "fox", "--model", "oracle", "--size", "20x20", "--nfe", "12", "--axis", "tau=0.001,0.004,0.016",
    "--axis", "nfe=8,10,12", "--json",
]  # fmt: skip


def test_a_sweep_killed_in_the_middle_goes_on_to_the_same_bytes(tmp_path, capsys):
    assert main([*ARGUMENTS, "--out", str(tmp_path / "whole")]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    whole = (tmp_path / "whole" / "results.jsonl").read_bytes()
    assert whole.count(b"\n") == len(rows) == 10  # the 50-step reference and nine cells

    cut = tmp_path / "cut" / "results.jsonl"
    program = [sys.executable, "-m", "fresco", *ARGUMENTS, "--out", str(cut.parent)]
    child = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < until:
        if cut.is_file() and cut.read_bytes().count(b"\n") >= 3:
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert child.wait(30) == -signal.SIGKILL
    before = cut.read_bytes()
    finished = before.count(b"\n")
    assert 3 <= finished < 10
    assert whole.startswith(before[: before.rfind(b"\n") + 1])
    stamps = {p.name: p.stat().st_mtime_ns for p in (cut.parent / "pictures").iterdir()}
    seconds = read_lines(cut.parent / "seconds.jsonl")[:finished]

    assert main([*ARGUMENTS, "--out", str(cut.parent)]) == 0
    again = json.loads(capsys.readouterr().out)["rows"]
    assert cut.read_bytes() == whole
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in rows]
    assert read_lines(cut.parent / "seconds.jsonl")[:finished] == seconds
    for line in read_lines(cut)[:finished]:  # nothing that was finished has been made again
        name = f"{line['key']}.png"
        assert (cut.parent / "pictures" / name).stat().st_mtime_ns == stamps[name]
    for line in read_lines(cut):
        name = f"pictures/{line['key']}.png"
        assert (cut.parent / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_sweep_of_ablation_and_curve_has_each_run_once(tmp_path, capsys):
    arguments = [
        "--model",
        "oracle",
        "--size",
        "12x12",
        "--nfe",
        "5",
        "--ablation",
        "paper",
        "--curve",
        "--baselines",
        "teacache-0.8",
    ]
    assert main(["sweep", "fox", *arguments, "--out", str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == "oracle on cpu, float32\n"  # no progress bar where there is no terminal
    rows = json.loads(said.out)["rows"]
    assert [row["label"] for row in rows] == [
        "full, 50 steps", "full method", "random", "edge", "without unified noise", "interpolation",
        *(f"full, {n} steps" for n in (4, 6, 8, 12, 18, 30)), "teacache-0.8",
    ]  # fmt: skip
    assert main(["sweep", "fox", *arguments, "--out", str(tmp_path)]) == 0
    assert "full method" in capsys.readouterr().out
    assert len(read_lines(tmp_path / "seconds.jsonl")) == len(rows)
