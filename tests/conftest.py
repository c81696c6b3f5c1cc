"""What tests share: two calm threads, hypothesis without luck or clocks, and a tiny FLUX.1-dev in a folder."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: idle threads must not spin

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(max(1, min(2, os.cpu_count() or 1)))
settings.register_profile(
    "fresco", deadline=None, max_examples=30, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fresco")


@pytest.fixture(scope="session")
def flux_dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random FLUX.1-dev pipeline, saved; nobody changes it."""
    from tests.tiny_flux import tiny_flux

    path = tmp_path_factory.mktemp("saved") / "flux-dev"
    tiny_flux().save_pretrained(path)
    return path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine's own names a FLUX.1 checkpoint, and no tiny autoencoder is to be had."""
    from fresco.backends.flux_hub import CHECKPOINTS

    for which in CHECKPOINTS.values():
        monkeypatch.delenv(which.env, raising=False)
    monkeypatch.setenv("FRESCO_TAEF1", str(tmp_path / "none"))
