"""`python -m fresco check` on a tiny saved pipeline: what is well, what is not, the table, JSON and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fresco.__main__ import main
from fresco.cost import TransformerShape
from tests.tiny_flux import tiny_flux

SHORT = ["--device", "cpu", "--dtype", "float32", "--size", "28x36", "--nfe", "6", "--reference", "8"]


pytestmark = pytest.mark.usefixtures("no_hub")


def test_a_whole_check(flux_dev: Path, capsys: Any) -> None:
    """Well, with the costs of the model's shape; the same for people, with the answers spelt out."""
    assert main(["check", "--model", f"flux-dev:{flux_dev}", *SHORT, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["well"]
    assert found["stock_difference"] == 0
    assert found["questions"] == {"equal to the stock pipeline": True, "repeatable": True, "pictures are not flat": True}
    whole, same, own = found["rows"]
    shape = TransformerShape.from_config(tiny_flux().transformer.config, 512)
    assert whole["TFLOPs"] == pytest.approx(8 * shape.flops(63) / 1e12)
    assert same["FLOPs x"] == pytest.approx(8 / 6)
    assert own["FLOPs x"] > same["FLOPs x"]
    for row in found["rows"]:
        assert row["share"] == pytest.approx(whole["seconds"] / row["seconds"] / row["FLOPs x"])
    assert (whole["PSNR"], whole["share"]) == (None, 1)
    assert 5 < own["PSNR"] <= same["PSNR"] + 30

    assert main(["check", "--model", f"flux-dev:{flux_dev}", *SHORT]) == 0
    said = capsys.readouterr().out
    for line in ("equal to the stock pipeline: yes", "Fresco, 6", "full, 8", "28 x 36", "all is well"):
        assert line in said


def test_what_is_wrong_is_said(flux_dev: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that changes a full run, and a sampler that forgets its seed, are found out."""
    from fresco import plugin, record

    real = plugin._Run.advance
    monkeypatch.setattr(plugin._Run, "advance", lambda self, velocity, stock: real(self, velocity, stock * 1.001))
    noise = record.sample

    def unseeded(denoiser: Any, cond: Any, config: Any) -> Any:
        seed = int(torch.randint(1 << 20, ()))
        return noise(denoiser, cond, config.replace(seed=seed))

    monkeypatch.setattr(record, "sample", unseeded)
    assert main(["check", "--model", f"flux-dev:{flux_dev}", *SHORT]) == 1
    said = capsys.readouterr().out
    for line in ("equal to the stock pipeline: NO", "repeatable: NO", "pictures are not flat: yes", "something is wrong"):
        assert line in said
    assert main(["check", "--model", "oracle", *SHORT]) == 2
    assert "check a downloaded model" in capsys.readouterr().err
