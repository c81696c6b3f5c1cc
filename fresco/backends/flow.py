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

_UNSUPPORTED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "shift_terminal")


@dataclass(frozen=True, eq=False)
class FlowSchedule:
    """The sigmas of a `FlowMatchEulerDiscreteScheduler`, whole or from one noise level to another.

    Attributes:
        config: the scheduler's config.
        alpha_of: (tokens) -> static shift, in place of the config's own; for models whose shift is a table.

    Raises:
        ModelError: where the config asks for a spacing that has no place on the shifted uniform grid.
    """

    config: Mapping[str, Any]
    alpha_of: Callable[[int], float] | None = None

    def __post_init__(self) -> None:
        odd = [name for name in _UNSUPPORTED if self.config.get(name)]
        if odd:
            raise ModelError(f"the scheduler sets {', '.join(odd)}; only shifted uniform sigmas can be used")

    def _mu(self, tokens: int) -> float:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

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

        From 1 to 0 they are the scheduler's own numbers, bit for bit, given what FluxPipeline passes it; only a first
        one that float32 rounds above 1 becomes 1.

        Raises:
            ValueError: without a step, or where `end` is not below `start`.
        """
        if n < 1 or not 0 <= end < start <= 1:
            raise ValueError(f"sigmas need n >= 1 and 0 <= end < start <= 1; got n {n}, start {start}, end {end}")
        if start == 1 and end == 0:
            dynamic = self.alpha_of is None and self.config.get("use_dynamic_shifting", False)
            change = {} if dynamic else {"shift": self.alpha(tokens), "use_dynamic_shifting": False}
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(self.config), **change)  # own copy: has state
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n), mu=self._mu(tokens) if dynamic else None)
            return [min(float(s), 1.0) for s in scheduler.sigmas]
        alpha = self.alpha(tokens)
        times = np.linspace(unshift(start, alpha), unshift(end, alpha), n + 1)
        return [start, *(shift(float(u), alpha) for u in times[1:-1]), end]
