"""Compiled blocks on a tiny FLUX: the tracer runs as it is, without the code generator, whose work is not ours to test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from fresco.backends import load_model
from fresco.config import FrescoConfig
from fresco.sampler import sample
from tests.tiny_flux import tiny_flux


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compile") / "flux-dev"
    tiny_flux().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No hub, and compiled code forgotten afterwards."""
    monkeypatch.setenv("FRESCO_TAEF1", str(tmp_path / "none"))
    yield
    torch._dynamo.reset()


def load(path: Path, **options: Any) -> Any:
    return load_model(f"flux-dev:{path}", device="cpu", dtype="float32", **options)


def states(model: Any, config: FrescoConfig) -> list[torch.Tensor]:
    return [step.x_next for step in sample(model.bind(config), model.encode("a red fox"), config)]


@pytest.mark.parametrize("frame", ["coarse", "phase_aligned"])
def test_compiled_once_for_every_number_of_tokens(folder: Path, frame: str, monkeypatch: Any) -> None:
    """One graph per kind of block, and per kind of attention where the frame changes it; never one per token count."""
    monkeypatch.setattr(
        FluxTransformer2DModel, "compile_repeated_blocks",
        lambda self, **given: _compile(self, backend="eager", **given),
    )  # fmt: skip
    config = FrescoConfig(
        nfe=4, stages=(1, 2, 1), size=(1, 28, 36), selection="random", ratio=0.4, checks="every", frame=frame
    )  # fmt: skip
    model = load(folder, compile=True)
    torch._dynamo.utils.counters.clear()
    got = states(model, config)
    first = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert len({len(state) for state in got}) >= 3
    states(model, config.replace(size=(1, 36, 44), seed=3, ratio=0.7))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == first
    assert first <= (2 if frame == "coarse" else 6)
    torch.testing.assert_close(got[-1], states(load(folder), config)[-1], atol=1e-3, rtol=1e-3)


_compile = FluxTransformer2DModel.compile_repeated_blocks
