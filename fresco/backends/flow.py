"""The sigma grid of a stock flow-matching scheduler, whole or from one noise level to another. Source: METHOD 2.6."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from fresco.backends import ModelError
from fresco.schedule import shift, unshift

_UNSUPPORTED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")


@dataclass(frozen=True, eq=False)
class FlowSchedule:
    """The sigmas of a `FlowMatchEulerDiscreteScheduler`, whole or from one noise level to another.

    Attributes:
        config: the scheduler's config.
        alpha_of: (tokens) -> static shift, in place of the config's own; for models whose shift is a table.
        mu_of: (tokens) -> mu of dynamic shifting, in place of the straight line most pipelines draw.
        floor: unshifted time of the last step, the scheduler's `sigma_min`, where the pipeline leaves the spacing to the
            scheduler; None where it passes 1, .., 1/n, as most do.

    Raises:
        ModelError: where the config asks for a spacing that has no place on the shifted uniform grid.
    """

    config: Mapping[str, Any]
    alpha_of: Callable[[int], float] | None = None
    mu_of: Callable[[int], float] | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        odd = [name for name in _UNSUPPORTED if self.config.get(name)]
        odd += ["shift_terminal"] if self.floor is not None and self.config.get("shift_terminal") else []
        if odd:
            raise ModelError(f"the scheduler sets {', '.join(odd)}; only shifted uniform sigmas can be used")

    def _mu(self, tokens: int) -> float:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        if self.mu_of is not None:
            return self.mu_of(tokens)
        names = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        return float(calculate_shift(tokens, *(self.config.get(name, value) for name, value in names.items())))

    def alpha(self, tokens: int) -> float:
        """Return the shift factor for a token count: 1 is none, `exp(mu)` for FLUX dev. Source: METHOD 2.6."""
        if self.alpha_of is not None:
            return self.alpha_of(tokens)
        if not self.config.get("use_dynamic_shifting", False):
            return float(self.config.get("shift", 1.0))
        mu = self._mu(tokens)
        return math.exp(mu) if self.config.get("time_shift_type", "exponential") == "exponential" else mu

    def sigmas(self, n: int, tokens: int, start: float = 1.0, end: float = 0.0) -> list[float]:
        """Return n+1 decreasing sigmas, uniform in unshifted time, from `start` to `end` (both shifted).

        From 1 to 0 they are the scheduler's own numbers, bit for bit, given what the pipeline passes it; only a first
        one that float32 rounds above 1 becomes 1. A part is spaced as the whole run is that has it: with a floor, the last
        step before 0 is the scheduler's own small one; with `shift_terminal`, see `_stretched`.

        Raises:
            ValueError: without a step, or where `end` is not below `start`.
        """
        if n < 1 or not 0 <= end < start <= 1:
            raise ValueError(f"sigmas need n >= 1 and 0 <= end < start <= 1; got n {n}, start {start}, end {end}")
        if n == 1:
            return [start, end]  # where the terminal would be both ends, the scheduler divides by zero
        if start == 1 and end == 0:
            return self._whole(n, tokens)
        alpha, terminal = self.alpha(tokens), self.config.get("shift_terminal")
        first, last = unshift(start, alpha), unshift(end, alpha)
        if terminal and (end > 0 or start > terminal):
            return self._stretched(n, alpha, start, end)
        if self.floor is not None and end == 0 and first > self.floor:
            times = np.append(np.linspace(first, self.floor, n), 0.0)
        else:
            times = np.linspace(first, last, n + 1)
        return [start, *(shift(float(u), alpha) for u in times[1:-1]), end]

    def _whole(self, n: int, tokens: int) -> list[float]:
        dynamic = self.alpha_of is None and self.config.get("use_dynamic_shifting", False)
        change = {} if dynamic else {"shift": self.alpha(tokens), "use_dynamic_shifting": False}
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(self.config), **change)  # own copy: has state
        mu = self._mu(tokens) if dynamic else None
        if self.floor is None:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n), mu=mu)
        else:
            scheduler.sigma_min = self.floor  # made from the config's shift; one set by hand does not change it
            scheduler.set_timesteps(n, mu=mu)
        return [min(float(s), 1.0) for s in scheduler.sigmas]

    def _stretched(self, n: int, alpha: float, start: float, end: float) -> list[float]:
        """Return n+1 sigmas of the run that takes n steps from `start` to `end`, stretched to `shift_terminal`.

        A run of m steps is `1 - (1 - s) / k`, k such that its last step before 0 starts at the terminal, so the stretch
        depends on m. Here m, real-valued, is the one whose run has these n steps; for a part of a whole run it is that
        run's number of steps, so the part lies on it.
        """
        terminal = float(self.config["shift_terminal"])

        def ends(steps: float) -> tuple[float, float, float]:
            k = (1 - shift(1 / steps, alpha)) / (1 - terminal)
            first = unshift(1 - (1 - start) * k, alpha)
            return k, first, unshift(1 - (1 - end) * k, alpha) if end else 0.0

        low, high = 1.0, 2.0
        while high * (ends(high)[1] - ends(high)[2]) < n:
            high *= 2
        while high - low > 1e-12 * high:
            middle = (low + high) / 2
            _, first, last = ends(middle)
            low, high = (middle, high) if middle * (first - last) < n else (low, middle)
        k, first, last = ends(high)
        times = np.linspace(first, last, n + 1)[1:-1]
        return [start, *(1 - (1 - shift(float(u), alpha)) / k for u in times), end]
