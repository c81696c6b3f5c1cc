"""Recorded tables of runs as the sweeps they are: shown before anything is run, and joined by what is run beside them.

A table is a bundle (`viz.bundle`) that holds every tau at every NFE of one prompt. No gradio and no model here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fresco.config import FrescoConfig

AXES = ("tau", "nfe")


@dataclass(frozen=True, eq=False)
class Table:
    """One recorded sweep.

    Attributes:
        slug, title: of the recording. url: where a browser finds it.
        prompt, seed, model, weights: what was run.
        base: the settings that all runs share, at some tau and NFE.
        axes: {"tau": values, "nfe": values}.
        points: a run each, as charts and cards take them, with `recorded` and what `pick` opens as its key.
        curve: full resolution at several step counts, the same way.
    """

    slug: str
    title: str
    url: str
    prompt: str
    seed: int
    model: str
    weights: str
    base: FrescoConfig
    axes: dict[str, list[Any]]
    points: list[dict[str, Any]]
    curve: list[dict[str, Any]]

    def holds(self, values: Mapping[str, Any], base: FrescoConfig, axes: Sequence[str]) -> bool:
        """Return whether a sweep of these settings over these axes is part of the same one.

        Args:
            values: the controls by name: prompt and model. base: the settings of the sweep. axes: names of its axes.
        """
        what = (self.prompt, self.model) == ((values["prompt"] or "").strip(), values["model"])
        return what and set(axes) == set(AXES) and _bare(base) == _bare(self.base)


def _bare(config: FrescoConfig) -> FrescoConfig:
    """Return the settings with the swept ones taken out."""
    return config.replace(nfe=18, stages=None, tau=1.0)


def table(bundle: Mapping[str, Any], url: str) -> Table | None:
    """Return a recorded bundle as a sweep; None where it is not a whole table of settings that are known.

    Args:
        bundle: message of `viz.bundle`. url: where a browser finds it.
    """
    taus, nfes, runs = bundle["taus"], bundle["nfes"], bundle["runs"]
    places = {(run["tau"], run["nfe"]) for run in runs}
    whole = len(taus) * len(nfes) == len(places) == len(runs) > 1
    if not whole or not all("config" in run for run in runs):
        return None
    slug = bundle["slug"]
    points = []
    for run in runs:
        tau, nfe = run["tau"], run["nfe"]
        about = {"key": key_of(slug, tau, nfe), "label": f"tau {tau:g}, nfe {nfe}", "group": f"tau {tau:g}"}
        points.append(_point(bundle, run, about, {"tau": tau, "nfe": nfe}))
    curve = [
        _point(bundle, {"psnr": math.inf, "ssim": 1.0, **run}, {"key": "", "label": f"full, {run['steps']} steps", "group": ""},
               {"nfe": run["steps"]})
        for run in bundle["references"] if run["steps"] == 50 or "psnr" in run
    ]  # fmt: skip
    return Table(
        slug, bundle.get("title") or slug, url, bundle["prompt"], bundle["seed"], bundle["model"],
        bundle["provenance"].get("weights", ""), FrescoConfig.from_json(runs[0]["config"]), {"tau": taus, "nfe": nfes},
        points, curve,
    )  # fmt: skip


def key_of(slug: str, tau: float, nfe: int) -> str:
    """Return what the page's script opens in the viewer: the recording, and which of its runs."""
    return f"recorded:{slug}/{tau!r}/{nfe}"


def _point(
    bundle: Mapping[str, Any], run: Mapping[str, Any], about: Mapping[str, Any], coords: Mapping[str, Any]
) -> dict[str, Any]:
    frames = [bundle["frames"][k] for k in run["frames"]]
    flops = sum(f["flops"] for f in frames)
    steps = 50 * flops / run["meta"]["baselines"]["full50"]
    return {
        **about, "coords": dict(coords), "flops": flops, "seconds": sum(f["ms"] or 0 for f in frames) / 1000,
        "full_steps": steps, "speedup": 50 / steps, "psnr": run["psnr"], "ssim": run["ssim"],
        "picture": next((f["preview"] for f in reversed(frames) if f["preview"]), ""), "recorded": True,
    }  # fmt: skip


def joined(table: Table | None, axes: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Return the axes of a grid that holds a table and a sweep beside it: the sweep's order, both's values, sorted."""
    if table is None:
        return {name: list(values) for name, values in axes.items()}
    return {name: sorted({*values, *table.axes[name]}) for name, values in axes.items()}


def fresh(old: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return recorded points and those run beside them, each place once: what was run here and now is shown."""
    taken = [point["coords"] for point in own]
    return [*(point for point in old if point["coords"] not in taken), *own]
