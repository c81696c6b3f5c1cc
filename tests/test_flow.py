"""Sigma grids of the stock schedulers: a whole run is the scheduler's, a part lies on the whole it belongs to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

from fresco.backends import ModelError
from fresco.backends.flow import FlowSchedule
from fresco.config import FrescoConfig
from fresco.schedule import plan

QWEN: dict[str, Any] = {
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02,
}  # fmt: skip
SD3: dict[str, Any] = {"shift": 3.0}
STEPS = [2, 3, 7, 18, 50]


def qwen(n: int, tokens: int) -> tuple[FlowSchedule, list[float]]:
    scheduler = FlowMatchEulerDiscreteScheduler(**QWEN)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n), mu=calculate_shift(tokens, 256, 8192, 0.5, 0.9))
    return FlowSchedule(scheduler.config), scheduler.sigmas.tolist()


def sd3(n: int, tokens: int) -> tuple[FlowSchedule, list[float]]:
    """The pipeline leaves the spacing to the scheduler: 1 to sigma_min, shifted once more."""
    scheduler = FlowMatchEulerDiscreteScheduler(**SD3)
    floor = scheduler.sigma_min
    scheduler.set_timesteps(n)
    return FlowSchedule(scheduler.config, floor=floor), scheduler.sigmas.tolist()


def flux2(n: int, tokens: int) -> tuple[FlowSchedule, list[float]]:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n), mu=compute_empirical_mu(tokens, n))
    return FlowSchedule(scheduler.config, mu_of=lambda count: compute_empirical_mu(count, n)), scheduler.sigmas.tolist()


@pytest.mark.parametrize("family", [qwen, sd3, flux2])
@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("tokens", [64, 1024, 4096, 6000])
def test_a_whole_run_is_the_schedulers_and_a_part_lies_on_it(family: Any, n: int, tokens: int) -> None:
    schedule, want = family(n, tokens)
    assert schedule.sigmas(n, tokens) == [min(s, 1.0) for s in want]
    stride = 1 + n // 10
    for i in range(0, n, stride):
        for j in (*range(i + 1, n, stride), n):
            part = schedule.sigmas(j - i, tokens, min(want[i], 1.0), want[j])
            np.testing.assert_allclose(part, want[i : j + 1], rtol=3e-5, err_msg=f"{i} to {j} of {n}")
            assert (part[0], part[-1]) == (min(want[i], 1.0), want[j])


@pytest.mark.parametrize("family", [qwen, sd3, flux2])
@pytest.mark.parametrize(
    ("start", "end"), [(1.0, 0.5), (0.97, 0.0), (0.6, 0.03), (0.3, 0.01), (0.02, 0.0), (0.015, 0.0), (0.004, 0.0)]
)
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_any_part_falls(family: Any, start: float, end: float, n: int) -> None:
    sigmas = family(10, 1024)[0].sigmas(n, 1024, start, end)
    assert len(sigmas) == n + 1
    assert (sigmas[0], sigmas[-1]) == (start, end)
    assert (np.diff(sigmas) < 0).all()


@pytest.mark.parametrize("transition", ["carry", "rewind", "renoise", "renoise_x0"])
def test_a_plan_stands_on_it(transition: str) -> None:
    """The last step before 0 starts at the terminal in full resolution, whatever the transition did before."""
    schedule, want = qwen(18, 4096)
    legs = plan(FrescoConfig(nfe=18, transition=transition), schedule.sigmas, 1024, 4096)
    assert legs[-1] == (want[-2], 0.0)
    assert want[-2] == pytest.approx(0.02)
    assert all(a >= b for a, b in legs)


def test_what_has_no_place_on_the_grid() -> None:
    with pytest.raises(ModelError, match="use_beta_sigmas"):
        FlowSchedule({"use_beta_sigmas": True})
    with pytest.raises(ModelError, match="shift_terminal"):
        FlowSchedule(QWEN, floor=0.003)
