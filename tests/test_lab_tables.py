"""The paper's tables: what was published, and our column filled from an evaluation by settings."""

import json
import statistics

import pytest

from fresco import published
from fresco.__main__ import main
from fresco.backends import load_model
from fresco.backends.oracle import OracleModel
from fresco.baselines import CATALOGUE
from fresco.config import FrescoConfig
from fresco.cost import mixed_tokens
from fresco.lab import evaluate, tables
from fresco.lab.store import Store
from fresco.lab.sweep import baseline_cell


def rows_of(found, table):
    return {(row["method"], row["nfe"]): row for row in found["tables"][table - 1]["rows"]}


def test_published_numbers_agree_with_each_other():
    """FLOPs ratios are those of the FLOPs, within what two decimals leave, except where the sources themselves differ."""
    first = [row.published for row in published.ROWS if row.table == 1]
    whole = first[0]["tflops"]
    off = {
        (row.method, row.nfe): row.published["flops"] / (whole / row.published["tflops"])
        for row in published.ROWS
        if row.table == 1
    }
    assert {name for name, ratio in off.items() if abs(ratio - 1) > 0.006} == set()
    ablation = {row.method: row.published for row in published.ROWS if row.table == 5}
    ours = next(row for row in published.ROWS if (row.method, row.nfe) == ("Fresco", 18) and row.table == 1)
    assert ablation["full method"]["latency"] == ours.published["latency"]
    assert ablation["full method"]["image_reward"] == ours.published["image_reward"]
    assert all(row.source for row in published.ROWS)
    assert set(published.TITLES) == {row.table for row in published.ROWS} == {1, 2, 3, 4, 5}


def test_our_column_is_that_of_the_bundled_model(capsys):
    """What is kept of it: same settings as the rows, FLOPs that follow from them, and nothing for another checkpoint's rows."""
    assert main(["tables", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ours"].startswith("sinopia, ")
    first, third = rows_of(found, 1), rows_of(found, 3)
    assert first["Fresco", 18]["image_reward"] == [1.0369, 0.9861, None]
    assert first["full resolution", 30]["flops"] == [1.67, None, pytest.approx(50 / 30)]
    model = load_model("sinopia", device="cpu")
    assert json.loads(tables.BUNDLED.read_text(encoding="utf-8"))["weights"] == [model.provenance]  # else measure anew
    denoiser = model.bind(FrescoConfig.paper())
    for nfe in (30, 18, 11):
        config = FrescoConfig.paper(nfe)
        calls = zip(config.split, (64, mixed_tokens(64, round(config.ratio * 64)), 256), strict=True)
        spent = sum(count * denoiser.flops(tokens) for count, tokens in calls)
        assert first["Fresco", nfe]["flops"][2] == pytest.approx(50 * denoiser.flops(256) / spent, rel=0.01)
    for row in (first["full resolution", 18], first["RALU", 18], first["TaylorSeer N=4", 50]):
        assert 5 < row["psnr"][2] < 60
    assert all(value[2] is None for row in third.values() for value in row.values() if isinstance(value, list))


def test_our_column_is_filled_by_settings(tmp_path, capsys):
    size = (1, 8, 8)
    configs = {
        "whatever": FrescoConfig.paper(18, size=size),
        "thirty": FrescoConfig.full(30, size=size),
        "switch": FrescoConfig.paper(18, size=size, noise="fresh"),
        "other": FrescoConfig.recommended(18, size=size),
    }
    model = OracleModel()
    cached = baseline_cell(model, CATALOGUE["taylorseer-4"], configs["other"])
    plain = evaluate.Task.of(("fox", "owl"), (0, 3), configs)
    task = evaluate.Task(plain.prompts, plain.seeds, (*plain.settings, cached))
    evaluate.generate(OracleModel(), task, tmp_path)
    assert main(["tables", "--results", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lines = Store(tmp_path / "results.jsonl").lines().values()

    def mean(config, name):
        own = [x for x in lines if FrescoConfig.from_json(x["config"]).replace(seed=0) == config]
        assert len(own) == 4
        return statistics.mean(float(x[name]) for x in own)

    first, fifth = rows_of(found, 1), rows_of(found, 5)
    assert first["Fresco", 18]["flops"][2] == pytest.approx(mean(configs["whatever"], "speedup"))
    assert first["Fresco", 18]["psnr"] == [None, None, pytest.approx(mean(configs["whatever"], "psnr"))]
    assert first["full resolution", 30]["flops"][2] == pytest.approx(50 / 30)
    assert first["full resolution", 50]["latency"][2] == 1.0
    assert fifth["without unified noise", 18]["psnr"][2] == pytest.approx(mean(configs["switch"], "psnr"))
    assert fifth["full method", 18]["psnr"] == first["Fresco", 18]["psnr"]
    assert first["Fresco", 30]["flops"][2] is None
    assert first["TaylorSeer N=4", 50]["flops"][2] == pytest.approx(50 / 13)  # 13 of 50 calls computed, as published
    assert first["TaylorSeer N=4", 50]["psnr"][2] < 99
    assert "psnr" not in first["full resolution", 50]
    assert first["TeaCache 0.8", 50]["flops"][2] is None
    name, ours = tables.measured(tmp_path)
    assert name == found["ours"] == "oracle"
    tables.keep(tmp_path, tmp_path / "kept.json")
    assert tables.kept(tmp_path / "kept.json") == ("oracle", 2, ours)
    assert json.loads((tmp_path / "kept.json").read_text())["weights"] == [model.provenance]
    assert ours["", FrescoConfig.recommended(18)]["psnr"] == pytest.approx(mean(configs["other"], "psnr"))


def test_rows_of_other_models_stay_empty():
    """The same settings on another checkpoint are another row: lite's is not filled by FLUX.1-dev's stand-in."""
    rows = {(row.table, row.method, row.nfe): row for row in published.ROWS}
    lite = rows[4, "Fresco + FLUX.1-lite-8B", None]
    assert tables.runs_of(lite, "sinopia") == []
    assert tables.runs_of(lite, "flux-lite") == [("", FrescoConfig.paper(11))]
    assert tables.runs_of(rows[3, "Jenga-ProRes", None], "sinopia") == []
    assert tables.runs_of(rows[1, "Fresco", 11], "sinopia") == [("", FrescoConfig.paper(11))]


def test_an_empty_folder_is_said(tmp_path, capsys):
    assert main(["tables", "--results", str(tmp_path)]) == 2
    assert "no results" in capsys.readouterr().err


def test_a_person_can_read_them(capsys):
    assert main(["tables"]) == 0
    said = capsys.readouterr().out
    assert "ours (sinopia, " in said
    assert "788.03 / - / " in said
