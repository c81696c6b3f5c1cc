"""The GPU benchmark's own code, on tiny models and a CPU: its arithmetic, not its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fresco.cost import TransformerShape, mixed_tokens
from tests.benchmarks import gpu


def test_the_script_runs(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are there, with the FLOPs of their splits; forecast steps cost next to nothing; shares are the quotient."""
    found = gpu.main(["--tiny", "--sizes", "128", "--rounds", "1", "--video"])
    torch._dynamo.reset()
    image, video = (rows for rows in found.values() if isinstance(rows, list))
    rows = {row["run"]: row for row in image}
    assert len(rows) == len(image) == 1 + 2 * 3 + 2 * (1 + 3) + 3
    config = {**gpu.TINY, "in_channels": 64, "guidance_embeds": True}
    shape = TransformerShape.from_config(config | {"out_channels": None}, 16)
    assert rows["full, 50"]["flops"] == pytest.approx(50 * shape.flops(64))
    low, mixed, last = 4, 2, 3  # of 9
    split = low * shape.flops(16) + mixed * shape.flops(mixed_tokens(16, 6)) + last * shape.flops(64)
    assert rows["Fresco as published, 9"]["flops"] == pytest.approx(split)
    assert rows["compiled: Fresco as published, 9"]["flops"] == pytest.approx(split)
    steps = [i for i in range(50) if i < 3 or (i - 4) % gpu.INTERVAL == 0]
    forecast = len(steps) * shape.flops(64) + (50 - len(steps)) * shape.shell_flops(64)
    assert rows["TaylorSeer: full, 50"]["flops"] == pytest.approx(forecast)
    assert rows["TaylorSeer: Fresco as published, 9"]["flops"] < split
    assert rows["compiled: full, 50"]["flops_x"] == 1  # over its own 50 steps
    assert len(video) == 3
    for row in image + video:
        assert row["share"] == pytest.approx(row["seconds_x"] / row["flops_x"])
        assert row["seconds"] > 0
        assert row["overhead"] > 0
    said = capsys.readouterr().out
    assert said.count("| full, 50 |") == 1
    assert "FLUX.1, 128 x 128, random weights, on a CPU, tiny models" in said
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "there is no CUDA device; --tiny runs the script without one" in capsys.readouterr().err
