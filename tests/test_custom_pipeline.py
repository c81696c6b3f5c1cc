"""`FrescoFluxPipeline` through `DiffusionPipeline.from_pretrained(..., custom_pipeline=...)` on a saved tiny folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

import fresco
from fresco.config import ConfigError, FrescoConfig
from fresco.plugin import PluginError
from tests.tiny_flux import tiny_flux

GIVEN: dict[str, Any] = {
    "height": 28,
    "width": 36,
    "max_sequence_length": 16,
    "num_inference_steps": 6,
    "output_type": "latent",
}
FILE = Path(fresco.__file__).parent / "custom_pipeline.py"


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_the_file_is_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full is the stock pipeline bit for bit, mixed is `enable`'s, and the scheduler is as it was."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    tiny_flux().save_pretrained(tmp_path / "flux")
    options = {"custom_pipeline": str(FILE), "local_files_only": True, "trust_remote_code": True}
    pipe: Any = DiffusionPipeline.from_pretrained(tmp_path / "flux", **options)
    stock: Any = FluxPipeline.from_pretrained(tmp_path / "flux", local_files_only=True)
    for each in (pipe, stock):
        each.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == "FrescoFluxPipeline"
    assert isinstance(pipe, FluxPipeline)
    scheduler = pipe.scheduler
    want = stock("a fox", **GIVEN, generator=seeded()).images
    assert torch.equal(pipe("a fox", **GIVEN, generator=seeded(), fresco=FrescoConfig.full(6)).images, want)

    settings = {"nfe": 6, "transition": "rewind", "ratio": 0.3}
    with fresco.enable(stock, FrescoConfig(**settings)):
        mixed = stock("a fox", **GIVEN, generator=seeded()).images
    assert torch.equal(pipe("a fox", **GIVEN, generator=seeded(), fresco=settings).images, mixed)
    assert fresco.last_trace(pipe).config.transition == "rewind"
    with fresco.enable(stock):
        mixed = stock("a fox", **GIVEN, generator=seeded()).images
    assert torch.equal(pipe(prompt="a fox", **GIVEN, generator=seeded()).images, mixed)
    trace = fresco.last_trace(pipe)
    assert (trace.config.nfe, trace.prompt, len({len(e.grid) for e in trace.events}) > 1) == (6, "a fox", True)
    assert pipe.scheduler is scheduler
    assert not pipe.transformer._forward_pre_hooks

    with pytest.raises(ConfigError, match="transition is 'jump'"):
        pipe("a fox", **GIVEN, fresco={"transition": "jump"})
    with pytest.raises(PluginError, match="pass guidance_scale"):
        pipe("a fox", **GIVEN, fresco=FrescoConfig(guidance=3.0))
    with pytest.raises(PluginError, match="cached is 'forget'; it must be one of reset, remap"):
        pipe("a fox", **GIVEN, cached="forget")
