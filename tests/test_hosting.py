"""What a page runs on, ZeroGPU's guard and duration, and one sentence for each thing that can go wrong there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fresco import hosting
from fresco.backends import ModelError
from fresco.config import FrescoConfig
from fresco.cost import SHAPES
from fresco.errors import FrescoError


def steps(model: str, config: FrescoConfig) -> Iterator[int]:
    yield from range(3)


@pytest.fixture
def zero(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A ZeroGPU Space, by the package's own interface: `spaces.GPU(duration=...)` wraps a function."""
    seen: list[Any] = []

    def gpu(*, duration: Callable[..., int]) -> Callable[[Any], Any]:
        def wrap(task: Any) -> Any:
            def inside(*args: Any) -> Any:
                seen.append(duration(*args))
                return task(*args)

            return inside

        return wrap

    monkeypatch.setenv(hosting.ZERO_ENV, "true")
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    return seen


def test_the_guard(zero: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On ZeroGPU the duration is asked with the generator's arguments; off it nothing is wrapped nor imported."""
    config = FrescoConfig()
    assert hosting.on_zero()
    wrapped = hosting.gpu(lambda model, settings: settings.nfe * 2)(steps)
    assert wrapped is not steps
    assert (list(wrapped("flux-dev", config)), zero) == ([0, 1, 2], [36])
    with pytest.raises(TypeError, match="'len' is no generator function"):
        hosting.gpu(lambda: 1)(len)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200 MIG 3g.71gb")
    assert hosting.hardware() == hosting.Hardware(
        "ZeroGPU", "ZeroGPU (NVIDIA H200 MIG 3g.71gb): a GPU is lent for each run, out of the visitor's daily quota.", "cuda"
    )
    monkeypatch.setitem(sys.modules, "spaces", None)
    with pytest.raises(FrescoError, match="the package spaces is missing; add it"):
        hosting.on_zero()
    monkeypatch.delenv(hosting.ZERO_ENV)
    assert hosting.gpu(lambda *_: 1)(steps) is steps
    assert not hosting.on_zero()


def test_the_hardware_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hosting.ZERO_ENV, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = hosting.hardware()
    assert (found.kind, found.device) == ("CPU", "cpu")
    assert "recorded runs of the others" in found.sentence
    card = SimpleNamespace(name="NVIDIA H200", total_memory=150_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert hosting.hardware() == hosting.Hardware("GPU", "NVIDIA H200, 150 GB.", "cuda")


def flux(name: str, guidance: float) -> Any:
    """A model of the published shape, without weights."""
    shape = SHAPES[name]
    config = {"guidance_embeds": shape.guidance_embeds}
    return SimpleNamespace(
        native_size=(1, 1024, 1024), shape=shape, flops=shape.flops, transformer=SimpleNamespace(config=config),
        default_guidance=guidance,
    )  # fmt: skip


def test_the_duration_follows_the_work() -> None:
    """FLUX.1-dev at 1024 x 1024 by the numbers of METHOD 4: 21.50, 37.66, 46.29 and 74.39 TFLOPs a step."""
    dev, schnell = flux("flux-dev", 3.5), flux("flux-schnell", 1.0)
    full = hosting.run_flops(dev, FrescoConfig.full(50))
    assert full == pytest.approx(3719.5e12, rel=1e-3)
    paper = FrescoConfig.paper(18)  # (6, 7, 5), 40 % promoted: 787.8 where none is promoted later
    own = hosting.run_flops(dev, paper)
    assert 787.8e12 < own < (6 * 21.5 + 12 * 74.39) * 1e12
    assert hosting.run_flops(dev, paper, "full at 50") == pytest.approx(own + full)
    assert hosting.run_flops(dev, paper, "same NFE") == pytest.approx(own + full * 18 / 50)
    assert own + own <= hosting.run_flops(dev, paper, "same FLOPs") < 2 * own + full / 50
    assert hosting.run_flops(schnell, FrescoConfig.full(4)) == pytest.approx(4 * 69.47e12, rel=1e-3)
    twice = hosting.run_flops(schnell, FrescoConfig.full(4, guidance=3.0))  # true guidance: two forwards
    assert twice == pytest.approx(8 * 69.47e12, rel=1e-3)
    assert hosting.run_flops(dev, FrescoConfig.full(1, size=(1, 2048, 2048))) == pytest.approx(418.1e12, rel=1e-3)

    assert hosting.run_flops(SimpleNamespace(name="oracle"), paper) == 0
    assert hosting.seconds(0) == hosting.ZERO_SETUP
    assert hosting.seconds(full) == 33  # 3719.5 / 200 * 1.3 + 8 = 32.2
    with pytest.raises(FrescoError, match="would take about 250 seconds of GPU, more than the 120"):
        hosting.seconds(10 * full)


class Raised(Exception):
    """As gradio's error: a title and a message."""

    def __init__(self, title: str, message: str) -> None:
        super().__init__(message)
        self.title, self.message = title, message


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelError("x is gated and HF_TOKEN is missing"), "HF_TOKEN is missing"),
        (Raised("ZeroGPU quota exceeded", "You have exceeded your free ZeroGPU quota (60s requested vs. 9s left)."), "used up"),
        (
            Raised("ZeroGPU illegal duration", "The requested GPU duration (90s) is larger than the maximum allowed"),
            "fewer steps",
        ),
        (Raised("ZeroGPU pending credits exceeded", "too many credits"), "used up"),
        (Raised("ZeroGPU worker error", "GPU task aborted"), "try again, with fewer steps"),
        (RuntimeError("GPU task aborted"), "try again, with fewer steps"),
    ],
)
def test_one_sentence_each(error: Exception, said: str) -> None:
    found = hosting.explain(error)
    assert found is not None
    assert said in found
    assert "\n" not in found


def test_an_unforeseen_error_is_not_explained_away() -> None:
    assert hosting.explain(KeyError("tokens")) is None


def test_on_zerogpu_the_lab_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is lent for one run at a time, so the lab has small models on the CPU, and says so of large ones."""
    import app
    from fresco.config import ConfigError

    monkeypatch.setattr(hosting, "on_zero", lambda: True)
    monkeypatch.setitem(app.OPTIONS, "device", "cuda")
    assert app.load_for_lab("oracle").device.type == "cpu"
    with pytest.raises(ConfigError, match="the lab runs on the CPU, where flux-dev is too slow; choose sinopia or oracle"):
        app.load_for_lab("flux-dev")
