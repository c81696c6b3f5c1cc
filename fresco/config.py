"""FrescoConfig: everything that decides a run besides the prompt and the weights. Source: DESIGN 2, METHOD 2."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from fresco.errors import FrescoError
from fresco.grid import FRAMES
from fresco.schedule import ESTIMATES_AT_LANDING, default_split, landing

SELECTIONS = ("variance", "variance_high", "attention", "attention_variance", "edge", "even", "random", "all")
SIGNALS = ("x0", "z", "channel")
EXPANSIONS = ("hadamard", "hadamard_token", "nearest", "bilinear", "lanczos")
TRANSITIONS = ("carry", "rewind", "renoise", "renoise_x0", "restart", "redraw")
NOISES = ("field", "fresh")
POSITIONS = ("auto", *FRAMES)
REFERENCES = ("full at 50", "same NFE", "same FLOPs", "none")  # what a run can be compared with
MAX_NFE = 1000


class ConfigError(FrescoError):
    """A setting that cannot be run; the message says what was got, what is allowed and what to do."""


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, which is not known; choose one of {', '.join(allowed)}")


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    try:
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        good = False
    if not good or not (low < value if open_low else low <= value) or value > high:
        span = f"{'above' if open_low else 'from'} {low:g}" + (f" to {high:g}" if math.isfinite(high) else "")
        raise ConfigError(f"{name} is {value!r}; it must be a number {span}")


def _whole(value: Any, count: int, low: int) -> bool:
    good = isinstance(value, tuple) and len(value) == count
    return good and all(isinstance(s, int) and not isinstance(s, bool) and s >= low for s in value)


@dataclass(frozen=True)
class FrescoConfig:
    """The settings of one run; JSON-able, checked on construction.

    Attributes:
        size: (frames, height, width) in pixels of the model; None is the model's native size.
        nfe: number of function evaluations: model calls, 1 to 1000.
        stages: model calls in the (low, mixed, full) stage, summing to nfe less the head; None is the default split
            (METHOD 2.6).
        head: model calls at full resolution before the low stage; 0 but for high-low-high sampling.
        switch: sigma at the end of the low stage, and of the mixed stage where there is one; None follows `stages`.
        levels: number of doublings between the coarsest and the finest grid; 1 = half resolution per side.
        tau: variance threshold, > 0; tokens at or below it are promoted. Give tau or ratio, not both.
        ratio: fraction of the coarse tokens to promote at the first check, 0 to 1.
        selection: which tokens go first, a name in SELECTIONS.
        signal: what the variance is taken of, a name in SIGNALS (METHOD 2.3).
        window: number of latest estimates in the variance, >= 2.
        checks: how many times tokens are looked at (1 to 3), or "every" mixed step (with `carry`).
        expansion: how a parent becomes four children, a name in EXPANSIONS (METHOD 2.1).
        transition: how tokens move at a switch, a name in TRANSITIONS (METHOD 2.2).
        landing: how many times as high the noise-to-signal ratio is after a promotion, 2 to 100, with renoise, renoise_x0
            or restart; 2 is the exact expansion's, the lowest there is (METHOD 2.2).
        noise: "field" (coordinate-bound) or "fresh".
        frame: position frame of mixed grids, a name in POSITIONS (METHOD 2.5); "auto" is `phase_aligned` where the model
            can do it, else `coarse`.
        detail_gain: lambda, high-band signal variance per channel; 0 = off. It acts where details are added: the hadamard
            expansions with carry, rewind or renoise (METHOD 2.2).
        guidance: guidance scale; None is the model's own.
        seed: seed of the noise field, 0 to 2**32 - 1.
    """

    size: tuple[int, int, int] | None = None
    nfe: int = 18
    stages: tuple[int, int, int] | None = None
    head: int = 0
    switch: tuple[float, ...] | None = None
    levels: int = 1
    tau: float | None = None
    ratio: float | None = None
    selection: str = "variance"
    signal: str = "x0"
    window: int = 4
    checks: int | Literal["every"] = 1
    expansion: str = "hadamard"
    transition: str = "carry"
    landing: float = 2.0
    noise: str = "field"
    frame: str = "auto"
    detail_gain: float = 0.0
    guidance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "stages", "switch"):  # JSON has lists only
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.tau is None and self.ratio is None:
            object.__setattr__(self, "ratio", 0.4)
        self._check_numbers()
        _choice("selection", self.selection, SELECTIONS)
        _choice("signal", self.signal, SIGNALS)
        _choice("expansion", self.expansion, EXPANSIONS)
        _choice("transition", self.transition, TRANSITIONS)
        _choice("noise", self.noise, NOISES)
        _choice("frame", self.frame, POSITIONS)
        self._check_stages()
        self._check_drive()

    def _check_numbers(self) -> None:
        for name, low, high in (
            ("nfe", 1, MAX_NFE), ("levels", 1, 3), ("window", 2, MAX_NFE), ("seed", 0, 2**32 - 1),
            ("head", 0, MAX_NFE),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
        _number("detail_gain", self.detail_gain, 0.0, 100.0)
        _number("landing", self.landing, 2.0, 100.0)
        if self.landing != 2 and self.transition not in ("renoise", "renoise_x0", "restart"):
            raise ConfigError(
                f"landing {self.landing:g} needs transition renoise, renoise_x0 or restart; got {self.transition!r}, use 2"
            )
        if self.tau is not None:
            _number("tau", self.tau, 0.0, math.inf, open_low=True)
        if self.ratio is not None:
            _number("ratio", self.ratio, 0.0, 1.0)
        if self.guidance is not None:
            _number("guidance", self.guidance, 0.0, 100.0)
        if self.size is not None and not _whole(self.size, 3, 1):
            raise ConfigError(f"size is {self.size!r}; it must be (frames, height, width) in whole positive pixels")

    def _check_stages(self) -> None:
        stages = self.stages
        if stages is not None:
            if not _whole(stages, 3, 0):
                raise ConfigError(f"stages is {stages!r}; it must be three whole numbers (low, mixed, full), each >= 0")
            if sum(stages) + self.head != self.nfe:
                after = f" after a head of {self.head}" if self.head else ""
                raise ConfigError(
                    f"stages {stages} make {sum(stages)} model calls{after}, but nfe is {self.nfe}; make them equal"
                )
            if stages[0] == 0 and stages[1] > 0:
                raise ConfigError(f"stages {stages} have no low stage to select tokens in; give it at least one step")
            if stages[0] == 0 and self.head:
                raise ConfigError(f"head {self.head} needs a low stage to go down to; stages {stages} have none, use head 0")
        elif self.nfe - self.head < 3:
            after = f" after a head of {self.head}" if self.head else ""
            raise ConfigError(
                f"nfe {self.nfe}{after} is below the three stages (low, mixed, full); use at least 3, or a full run"
            )
        low, mixed, full = self.split
        if self.switch is not None:
            need = 0 if low == 0 else 2 if mixed else 1
            if full == 0:
                need -= 1
            if not isinstance(self.switch, tuple) or len(self.switch) != max(need, 0):
                raise ConfigError(f"switch {self.switch} must have {max(need, 0)} value(s) for stages {self.split}")
            for value in self.switch:
                _number("switch", value, 0.0, 1.0, open_low=True)
        if self.switch is not None and len(self.switch) == 2:
            landed = landing(self, self.switch[0])
            if not self.switch[1] < landed:
                raise ConfigError(
                    f"switch {self.switch}: the mixed stage starts at sigma {landed:.3g} and must end below it; lower it"
                )
        if low == 1 and self.transition in ESTIMATES_AT_LANDING:
            raise ConfigError(
                f"transition {self.transition!r} spends the last low call on an estimate; stages {self.split} need a low "
                "stage of at least 2"
            )
        if low and full == 0 and self.transition != "carry":
            raise ConfigError(f"stages {self.split} end without a full step, which only transition 'carry' allows; add one")
        if self.checks != "every":
            if isinstance(self.checks, bool) or not isinstance(self.checks, int) or not 1 <= self.checks <= 3:
                raise ConfigError(f"checks is {self.checks!r}; it must be 1, 2, 3 or 'every'")
        elif self.transition != "carry":
            raise ConfigError(f"checks 'every' needs transition 'carry', which promotes for free; got {self.transition!r}")

    def _check_drive(self) -> None:
        if self.tau is not None and self.ratio is not None:
            raise ConfigError(f"both tau {self.tau:g} and ratio {self.ratio:g} are given; give one, the other is derived")
        if self.tau is not None and self.selection not in ("variance", "variance_high"):
            raise ConfigError(f"tau drives the variance rules only; with selection {self.selection!r} give ratio")

    @property
    def split(self) -> tuple[int, int, int]:
        """Model calls in the (low, mixed, full) stage: `stages`, or the default split of what the head leaves (METHOD 2.6)."""
        return self.stages if self.stages is not None else default_split(self.nfe - self.head)

    @classmethod
    def full(cls, nfe: int = 50, **changes: Any) -> FrescoConfig:
        """Return plain full-resolution sampling: the baseline, and the same function with other settings."""
        return cls(nfe=nfe, stages=(0, 0, nfe), **changes)

    @classmethod
    def paper(cls, nfe: int = 18, **changes: Any) -> FrescoConfig:
        """Return the paper's method as literally as a valid flow state allows (METHOD 2.6)."""
        literal: dict[str, Any] = {
            "selection": "variance", "signal": "z", "ratio": 0.4, "checks": 1, "expansion": "hadamard",
            "transition": "renoise", "noise": "field", "frame": "coarse",
        }  # fmt: skip
        if "tau" in changes:
            literal.pop("ratio")
        return cls(nfe=nfe, **(literal | changes))

    @classmethod
    def recommended(cls, nfe: int = 18, **changes: Any) -> FrescoConfig:
        """Return what we would run, chosen by measurement (README): tokens that have settled are promoted at three checks.

        Variance of x0, exact expansion, re-noising with the coherent field, positions as the model can.
        """
        chosen: dict[str, Any] = {"transition": "renoise", "checks": 3, "signal": "x0"}
        return cls(nfe=nfe, **(chosen | changes))

    def replace(self, **changes: Any) -> FrescoConfig:
        """Return a copy with some settings changed; setting tau unsets ratio and the other way round."""
        if changes.get("tau") is not None and "ratio" not in changes:
            changes["ratio"] = None
        if changes.get("ratio") is not None and "tau" not in changes:
            changes["tau"] = None
        if "nfe" in changes and "stages" not in changes and self.stages is not None:
            changes["stages"] = (0, 0, changes["nfe"]) if self.is_full else None
        return dataclasses.replace(self, **changes)

    @property
    def watches_attention(self) -> bool:
        """Whether the run needs to know how much attention each token receives."""
        return self.selection in ("attention", "attention_variance") and not self.is_full

    @property
    def is_full(self) -> bool:
        """Whether the run stays at full resolution from the first step."""
        return self.split[0] == 0

    def as_full(self, nfe: int) -> FrescoConfig:
        """Return the full-resolution reference of this run: same size, seed and guidance, `nfe` steps."""
        return FrescoConfig.full(nfe, size=self.size, guidance=self.guidance, seed=self.seed)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dict that `from_json` turns back into an equal configuration."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FrescoConfig:
        """Return the configuration written by `to_json`.

        Raises:
            ConfigError: on unknown names or values out of range.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"a configuration must be a JSON object; got {type(data).__name__}")
        unknown = sorted(map(str, set(data) - {f.name for f in dataclasses.fields(cls)}))
        if unknown:
            raise ConfigError(f"unknown setting(s) {', '.join(unknown)}; see FrescoConfig for the names")
        return cls(**data)
