"""The paper's tables with three columns: published, measured again by its sibling, ours. Source: METHOD 1.

Ours is filled from an `evaluate` folder by settings, not by labels, and says of which model. Without a folder it is what was
measured on the bundled model and stands in `assets/benchmark/tables.json`: no row of FLUX.1's, but the same settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fresco import published
from fresco.baselines import CATALOGUE
from fresco.config import ConfigError, FrescoConfig
from fresco.cost import REFERENCE_STEPS
from fresco.lab import ablation
from fresco.lab.evaluate import read_scores
from fresco.lab.own_judge import FOLDER
from fresco.lab.store import Store

JUDGED = {"image_reward": "image-reward", "clip": "clip-score", "clip_iqa": "clip-iqa", "judge": "judge"}
"""Quantity -> the judge that measures it."""


BUNDLED = FOLDER / "tables.json"
Run = tuple[str, FrescoConfig]
"""(name of the baseline whose cache stood around the model, or "", settings): what a measurement is of."""


def runs_of(row: published.Row, model: str) -> list[Run]:
    """Return the runs on a model that stand for a published row; none where it is of another model.

    Rows of FLUX.1-dev may be stood for by any model; rows of other checkpoints by those alone. An ablation row is the preset
    `paper` at NFE 18 with the one switch.
    """
    if row.table == 5:
        return [("", cell.config) for cell in ablation.cells(FrescoConfig.paper(18)) if cell.label == row.method]
    found: list[Run] = []
    for baseline in CATALOGUE.values():
        if baseline.row == (row.table, row.method, row.nfe) and (
            baseline.checkpoint == model or (baseline.checkpoint == "flux-dev" and row.table in (1, 4))
        ):
            cache = baseline.name if baseline.cache else ""
            found.append((cache, baseline.config))
            if baseline.config.watches_attention:  # what it falls back on where a model reports no attention
                found.append((cache, baseline.config.replace(selection="variance_high")))
    return found


def _plain(config: FrescoConfig) -> FrescoConfig:
    """Return the settings without what a measurement is free to choose: size, seed and guidance."""
    return config.replace(size=None, seed=0, guidance=None)


def _cache(line: Mapping[str, Any]) -> str:
    """Return the baseline whose cache stood around the model of a run, which ends its provenance; "" for none."""
    last = str(line["weights"]).rpartition("; ")[2]
    return last if last in CATALOGUE else ""


def measured(folder: Path) -> tuple[str, dict[Run, dict[str, float]]]:
    """Return the model and, by run, the means of an `evaluate` folder: flops, latency, tflops, psnr, whatever was judged.

    `flops` is the mean over runs of 50 full steps' over the run's own; `latency` the geometric mean of the 50-step run's
    seconds over the run's own, of the same prompt and seed.

    Raises:
        ConfigError: where the folder holds no results, or those of several models.
    """
    lines, scores = Store(folder / "results.jsonl").lines(), read_scores(folder)
    if not lines:
        raise ConfigError(f"there are no results in {folder.name}; give a folder that `python -m fresco evaluate` wrote")
    models = sorted({line["model"] for line in lines.values()})
    if len(models) > 1:
        raise ConfigError(f"{folder.name} holds results of several models: {', '.join(models)}; use a folder for each")
    judged: dict[str, dict[str, float]] = {}
    for (key, judge), score in scores.items():
        judged.setdefault(key, {})[judge] = score
    runs = [(line, FrescoConfig.from_json(line["config"])) for line in lines.values()]
    reference = {(line["prompt"], config): line["seconds"] for line, config in runs if not _cache(line)}
    collected: dict[Run, dict[str, list[float]]] = {}
    for line, config in runs:
        own = collected.setdefault((_cache(line), _plain(config)), {})
        values = {"flops": line["speedup"], "tflops": line["flops"] / 1e12}
        seconds = reference.get((line["prompt"], config.as_full(REFERENCE_STEPS)))
        if seconds is not None:
            values["log_latency"] = math.log(seconds / line["seconds"])
        if line["psnr"] is not None and math.isfinite(float(line["psnr"])):
            values["psnr"] = float(line["psnr"])
        values |= {name: judged[line["key"]][judge] for name, judge in JUDGED.items() if judge in judged.get(line["key"], {})}
        for name, value in values.items():
            own.setdefault(name, []).append(value)
    found = {}
    for run, named in collected.items():
        means = {name: float(np.mean(values)) for name, values in named.items()}
        if "log_latency" in means:
            means["latency"] = math.exp(means.pop("log_latency"))
        found[run] = means
    return models[0], found


def keep(folder: Path, path: Path = BUNDLED) -> None:
    """Write what was measured in an `evaluate` folder, for `kept` to read."""
    model, runs = measured(folder)
    rows = [{"cache": name, "config": config.to_json(), **values} for (name, config), values in runs.items()]
    lines = Store(folder / "results.jsonl").lines().values()
    prompts = len({line["prompt"] for line in lines})
    weights = sorted({line["weights"] for line in lines if not _cache(line)})  # of which they are true, and of no others
    found = {"model": model, "weights": weights, "prompts": prompts, "runs": rows}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def kept(path: Path = BUNDLED) -> tuple[str, int, dict[Run, dict[str, float]]]:
    """Return what `keep` wrote: the model, of how many prompts it is the mean, and the means as `measured` returns them."""
    found = json.loads(path.read_text(encoding="utf-8"))
    runs = {(row.pop("cache"), FrescoConfig.from_json(row.pop("config"))): row for row in found["runs"]}
    return found["model"], found["prompts"], runs


def report(folder: Path | None = None) -> dict[str, Any]:
    """Return all tables, JSON-able: {"tables": [{"table", "title", "rows": [{method, nfe, source, QUANTITY: [p, r, o]}]}]}.

    Args:
        folder: an `evaluate` folder for the third column; None is what is kept of the bundled model.
    """
    if folder is None:
        model, prompts, ours = kept()
        said = f"{model}, {prompts} prompts"
    else:
        model, ours = measured(folder)
        said = model
    tables = []
    for number, title in published.TITLES.items():
        rows = []
        for row in published.ROWS:
            if row.table != number:
                continue
            own = next((ours[name, _plain(c)] for name, c in runs_of(row, model) if (name, _plain(c)) in ours), {})
            names = (*published.QUANTITIES, "psnr", "judge")  # the likeness to 50 steps and our own judge: nobody else's
            triples = {name: [row.published.get(name), row.remeasured.get(name), own.get(name)] for name in names}
            rows.append(
                {"method": row.method, "nfe": row.nfe, "source": row.source}
                | {name: triple for name, triple in triples.items() if any(value is not None for value in triple)}
            )
        tables.append({"table": number, "title": title, "rows": rows})
    return {"ours": said, "tables": tables}
