"""The lab's runs of one process: what has been run is kept, so a sweep that is stopped goes on where it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fresco.config import FrescoConfig
from fresco.cost import REFERENCE_STEPS
from fresco.denoiser import Model
from fresco.errors import FrescoError
from fresco.grid import TokenGrid
from fresco.lab import ablation, proposition
from fresco.lab import sweep as runs
from fresco.lab.sweep import Cell, Result, Step
from fresco.noise import FreshNoise
from fresco.record import References, provenance
from fresco.trace import Trace

Stream = Generator[Step | Result, None, None]


class Desk:
    """Runs cells, and keeps the newest results by key. One run at a time writes; many may read.

    Args:
        references: finished full-resolution runs of this process.
        keep: how many results.
    """

    def __init__(self, references: References, keep: int = 96) -> None:
        self._references, self._keep = references, keep
        self._results: OrderedDict[str, Result] = OrderedDict()

    def follow(self, model: Model, prompt: str, cells: Sequence[Cell]) -> Stream:
        """Yield every step and every result; kept ones are not run again. Closing it stops within a step."""
        for found in runs.follow(model, prompt, cells, kept=self._references, done=self._results):
            if isinstance(found, Result):
                self._results[found.key] = found
                self._results.move_to_end(found.key)
                while len(self._results) > self._keep:
                    self._results.popitem(last=False)
            yield found

    def sweep(
        self, model: Model, prompt: str, base: FrescoConfig, axes: Mapping[str, Sequence[Any]], steps: Sequence[int],
        known: Sequence[Mapping[str, Any]] = (),
    ) -> Stream:  # fmt: skip
        """Run every combination of the axes but those `known`, by coordinates, then full resolution at several step counts."""
        wanted = [cell for cell in runs.cells(base, axes) if cell.coords not in known]
        return self.follow(model, prompt, [*wanted, *runs.full_cells(base, steps)])

    def ablation(self, model: Model, prompt: str, base: FrescoConfig, more: bool) -> Stream:
        """Run the paper's switches one at a time; `more`: this project's, too."""
        rows = ablation.ROWS + ablation.MORE if more else ablation.ROWS
        return self.follow(model, prompt, ablation.cells(base, rows, model.bind(base)))

    def identity(self, model: Model, prompt: str, config: FrescoConfig) -> Stream:
        """Run full resolution, and the paper's method of the same NFE with field noise, fresh noise, and restarted."""
        base = FrescoConfig.paper(config.nfe, size=config.size, seed=config.seed, guidance=config.guidance)
        changes: dict[str, dict[str, Any]] = {
            "the field's noise": {}, "fresh noise at the switch": {"noise": "fresh"},
            "restarted: all noise fresh": {"transition": "restart"},
        }  # fmt: skip
        switched = [Cell(change, label, base.replace(**change)) for label, change in changes.items()]
        return self.follow(model, prompt, [runs.reference_cell(base), *switched])

    def results(self, keys: Sequence[str]) -> list[Result]:
        """Return the results that are still kept."""
        return [found for key in keys if (found := self._results.get(key))]

    def traces(self, model: Model, key: str) -> tuple[Result, Trace, Trace | None]:
        """Return a result, its trace, and that of the full-resolution reference of its seed where it is still known.

        Raises:
            FrescoError: where the run is no longer kept.
        """
        found = self._results.get(key)
        if found is None or found.trace is None:
            raise FrescoError("That run is no longer kept; run it again")
        full = found.config.as_full(REFERENCE_STEPS)
        events = self._references.find(model, found.prompt, full)
        return found, found.trace, Trace(found.prompt, full, model.name, "", provenance(model), events) if events else None

    def model_of(self, key: str) -> str:
        """Return the name of the model that made a kept run; "" where it is not kept."""
        found = self._results.get(key)
        return found.trace.model if found and found.trace else ""


def sentences() -> dict[str, str]:
    """Return what each of the ablation's switches does, by its label."""
    return {row.name: row.sentence for row in ablation.ROWS + ablation.MORE}


def noise(seed: int, fresh: bool, side: int = 32, levels: int = 2) -> list[NDArray[np.float64]]:
    """Return the noise of one channel at each level, coarsest first; `fresh`: as a sampler sees it that forgets the field."""
    if not fresh:
        return proposition.field_pyramid(seed, side, side, levels)
    anew = FreshNoise(seed, 1, 1)
    sides = [side >> (levels - level) for level in range(levels + 1)]
    return [anew.at(TokenGrid.uniform((1, side, side), levels, k)).reshape(n, n) for k, n in enumerate(sides)]
