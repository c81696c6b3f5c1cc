"""One model call on the way to a measurement: what a page shows meanwhile, and where it may stop."""

from __future__ import annotations

from dataclasses import dataclass

from fresco.config import FrescoConfig
from fresco.sampler import SamplerStep


@dataclass(frozen=True)
class Call:
    """A model call that a measurement has made.

    Attributes:
        step: index of the call. of: how many the run has.
        stage: "low", "mixed" or "full". sigma: noise level of the call. tokens: how many there were.
    """

    step: int
    of: int
    stage: str
    sigma: float
    tokens: int

    @classmethod
    def after(cls, step: SamplerStep, config: FrescoConfig) -> Call:
        """Return the call of a sampler's step."""
        return cls(step.step, config.nfe, step.stage, step.sigma, len(step.grid))
