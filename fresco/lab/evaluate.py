"""Prompts x seeds x settings, paired: every run, its likeness to the 50-step picture, its scores, and what they say.

Work is cut into units, one prompt and one seed each, so that a unit's runs share their noise and their reference; with
several processes (`accelerate launch --multi_gpu --num_processes N -m fresco evaluate ...`), process k of N takes every N-th
unit and writes a file of its own; all files of a folder are read as one.

Prompts to use: DrawBench's 200 (https://huggingface.co/datasets/shunk031/DrawBench), saved as text, one prompt a line, or
as CSV with a column "prompt" or "prompts"; for video VBench's `prompts/all_dimension.txt`
(https://github.com/Vchitect/VBench).
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fresco.config import ConfigError, FrescoConfig
from fresco.cost import REFERENCE_STEPS, same_flops_steps
from fresco.denoiser import Model
from fresco.errors import FrescoError
from fresco.lab.judges import CrowdJudge, Judge
from fresco.lab.store import Store, append_line, read_lines
from fresco.lab.sweep import Cell, Result, distinct, key_of, reference_cell, sweep
from fresco.metrics import interval, paired
from fresco.record import References, record

SAME_FLOPS = "full, same FLOPs as {}"
METRICS = ("psnr", "ssim")


@dataclass(frozen=True)
class Task:
    """What is to be measured.

    Attributes:
        prompts: the texts, each once.
        seeds: of the noise, each once; every prompt is run with every seed.
        settings: cells whose labels name them; their own seed is replaced.
        same_flops: also run, for each of them that changes resolution, full resolution at the smallest number of steps
            that costs no less.

    Raises:
        ConfigError: where nothing is left to do, or something is named twice.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[Cell, ...]
    same_flops: bool = False

    def __post_init__(self) -> None:
        for name, values in (("prompts", self.prompts), ("seeds", self.seeds), ("settings", self.labels)):
            if not values:
                raise ConfigError(f"there are no {name}; give at least one")
            twice = sorted({str(v) for v in values if values.count(v) > 1})
            if twice:
                raise ConfigError(f"{name} are named twice: {', '.join(twice)[:200]}; name each once")

    @classmethod
    def of(
        cls, prompts: Iterable[str], seeds: Iterable[int], configs: Mapping[str, FrescoConfig], same_flops: bool = False
    ) -> Task:
        """Return the task of plain settings, {label: settings}."""
        cells = tuple(Cell({}, label, config) for label, config in configs.items())
        return cls(tuple(prompts), tuple(seeds), cells, same_flops)

    @property
    def labels(self) -> tuple[str, ...]:
        """The settings' names."""
        return tuple(cell.label for cell in self.settings)

    @property
    def units(self) -> list[tuple[str, int]]:
        """Every (prompt, seed), prompt by prompt."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    def cells(self, seed: int) -> list[Cell]:
        """Return a unit's runs, each setting once; the 50-step references they need come before them."""
        own = self.seeded(seed)
        return distinct([cell for one in own for cell in (reference_cell(one.config), one)])

    def seeded(self, seed: int) -> list[Cell]:
        """Return the settings with that seed."""
        return [replace(cell, config=cell.config.replace(seed=seed)) for cell in self.settings]

    @property
    def runs(self) -> int:
        """How many runs there are; one setting under two names, or reached by two ways, counts more than once."""
        extra = sum(not cell.config.is_full for cell in self.settings) * self.same_flops
        return len(self.units) * (len(self.cells(0)) + extra)


def read_prompts(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the prompts of a file: text with one a line, `.jsonl` with "prompt", or `.csv` with a column of that name.

    Raises:
        FrescoError: where the file is missing or holds none.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FrescoError(
            f"the prompts in {file.name} cannot be read ({type(error).__name__}); give a UTF-8 text file"
        ) from None
    if file.suffix == ".jsonl":
        try:
            found = [json.loads(line)["prompt"] for line in text.split("\n") if line.strip()]
        except (ValueError, KeyError, TypeError):
            raise FrescoError(f"{file.name} must hold one JSON object a line, each with a prompt") from None
    elif file.suffix in (".csv", ".tsv"):
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if file.suffix == ".tsv" else ","))
        names = [name for name in (rows[0] if rows else {}) if name and name.strip().lower() in ("prompt", "prompts")]
        if not names:
            raise FrescoError(f"{file.name} has no column called prompt or prompts; name one so")
        found = [row[names[0]] for row in rows]
    else:
        found = text.splitlines()
    prompts = tuple(dict.fromkeys(p.strip() for p in found if isinstance(p, str) and p.strip()))
    if not prompts:
        raise FrescoError(f"{file.name} holds no prompts; write one a line")
    return prompts


def processes(device: str = "auto") -> tuple[int, int, str | None]:
    """Return (index, count, device) of this process under `accelerate launch`; (0, 1, None) without it.

    On machines without CUDA, or with device "cpu", the processes share the CPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0, 1, None
    from accelerate import PartialState  # type: ignore[import-untyped]

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))  # the first to finish waits for the last
    return state.process_index, state.num_processes, str(state.device)


def wait_for_all() -> None:
    """Return once every process of `accelerate launch` has come here."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def generate(
    model: Model, task: Task, folder: Path, *, index: int = 0, count: int = 1, judges: Sequence[Judge] = (),
    progress: Callable[[Result], None] = lambda result: None,
) -> None:  # fmt: skip
    """Make the runs that are not there yet, and the scores; after a kill at any moment call it again.

    Args:
        model: all runs'.
        task: what to run.
        folder: results, pictures and scores, see `fresco.lab.store`.
        index, count: which process of how many this is.
        judges: who scores the pictures; scores that are there are not made again.
        progress: called with every finished run, also those that were there.
    """
    store = Store(folder / ("results.jsonl" if count == 1 else f"results-{index}.jsonl"))
    scores, scored = store.path.with_name(store.path.name.replace("results", "scores", 1)), set(read_scores(folder))
    lines, units = store.lines(), task.units[index::count]
    if any(key_of(cell.on(model), p, cell.config) not in lines for p, seed in units for cell in task.cells(seed)):
        _warm_up(model, units[0][0], task.cells(units[0][1]))
    for prompt, seed in units:
        for result in _unit(model, task, prompt, seed, store, lines):
            if result.key not in lines:
                store.add(result)
                lines[result.key] = result.to_json()
            for judge in judges:
                if (result.key, judge.name) not in scored:
                    line = {"key": result.key, "judge": judge.name, "score": judge(prompt, result.picture)}
                    append_line(scores, line)
                    scored.add((result.key, judge.name))
            progress(result)


def _unit(
    model: Model, task: Task, prompt: str, seed: int, store: Store, lines: Mapping[str, dict[str, Any]]
) -> Iterator[Result]:
    """Yield the results of one prompt and seed, read where they are there."""
    kept = References(2)
    cells = task.cells(seed)
    keys = {key_of(cell.on(model), prompt, cell.config) for cell in cells}
    done = {key: store.read(lines[key]) for key in keys & set(lines)}
    for result in sweep(model, prompt, cells, kept=kept, done=done, preview_every=0):
        done[result.key] = result
        yield result
    if task.same_flops:
        for cell in _equal_cost(model, task, prompt, seed, {key: r.full_steps for key, r in done.items()}):
            key = key_of(model, prompt, cell.config)
            if key not in done and key in lines:
                done[key] = store.read(lines[key])
            for result in sweep(model, prompt, [cell], kept=kept, done=done, preview_every=0):
                done[key] = result
                yield result


def _equal_cost(model: Model, task: Task, prompt: str, seed: int, full_steps: Mapping[str, float]) -> list[Cell]:
    """Return, for each setting whose cost is known, full resolution at the smallest number of steps that costs no less."""
    found = []
    for cell in task.seeded(seed):
        spent = full_steps.get(key_of(cell.on(model), prompt, cell.config))
        if not cell.config.is_full and spent is not None:
            steps = same_flops_steps(spent, 1.0)
            found.append(Cell({"nfe": steps}, SAME_FLOPS.format(cell.label), cell.config.as_full(steps)))
    return found


def _warm_up(model: Model, prompt: str, cells: Sequence[Cell]) -> None:
    """Make the first steps of each kind of run, untimed: the first call in a process is slower than the others."""
    for cell in cells:
        events = record(cell.on(model), prompt, cell.config, preview_every=0)
        next(events)
        events.close()  # type: ignore[attr-defined]


def read_scores(folder: Path) -> dict[tuple[str, str], float]:
    """Return {(key, judge): score} of all processes' files."""
    lines = [line for path in sorted(folder.glob("scores*.jsonl")) for line in read_lines(path)]
    return {(line["key"], line["judge"]): float(line["score"]) for line in lines}


def by_prompt(values: Mapping[tuple[str, int], float], prompts: Iterable[str]) -> list[float]:
    """Return each prompt's mean over its seeds: the independent values that intervals are made of."""
    return [float(np.mean([v for (p, _), v in values.items() if p == prompt])) for prompt in prompts]


def summary(model: Model, task: Task, folder: Path, against: str | None = None, judges: Sequence[Judge] = ()) -> dict[str, Any]:
    """Return what the finished runs say, as a JSON-able dict.

    Every number is a mean over prompts of the mean over seeds, with its 95 % t interval over prompts (with one prompt: over
    seeds), as [mean, low, high]; low and high are None below two. Only units in which every setting is finished count, so
    that all comparisons are paired. `psnr` of the 50-step pictures to themselves is "inf". `seconds_speedup` is the
    geometric mean of the reference's seconds over the run's own, of the same unit.

    Args:
        model, task, folder: as in `generate`.
        against: a label; every other row also gets its paired difference to that one. None is the first setting.
        judges: where one of them can, each row also gets `frechet`, the distance of all its pictures to real ones.

    Raises:
        ConfigError: where `against` is no label.
    """
    lines, scores = Store(folder / "results.jsonl").lines(), read_scores(folder)
    full_steps = {key: line["full_steps"] for key, line in lines.items()}
    judged: dict[str, dict[str, float]] = {}
    for (key, judge), score in scores.items():
        judged.setdefault(key, {})[judge] = score
    against = against or task.labels[0]
    if against not in task.labels:
        raise ConfigError(f"there is no setting called {against!r} to compare with; choose one of {', '.join(task.labels)}")
    table: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    stored: dict[str, list[dict[str, Any]]] = {}
    complete = []
    for prompt, seed in task.units:
        cells = task.seeded(seed)
        cells += _equal_cost(model, task, prompt, seed, full_steps) if task.same_flops else []
        keys = {cell.label: key_of(cell.on(model), prompt, cell.config) for cell in cells}
        reference = key_of(model, prompt, cells[0].config.as_full(REFERENCE_STEPS))
        if reference not in keys.values():
            keys = {f"full, {REFERENCE_STEPS} steps": reference, **keys}
        wanted = len(task.settings) + task.same_flops * sum(not cell.config.is_full for cell in task.settings)
        if len(cells) < wanted or not set(keys.values()) <= set(lines):
            continue
        complete.append((prompt, seed))
        for label, key in keys.items():
            line = lines[key]
            stored.setdefault(label, []).append(line)
            psnr = None if line["psnr"] is None else float(line["psnr"])
            ratio = math.log(lines[reference]["seconds"] / line["seconds"])
            table.setdefault(label, {})[prompt, seed] = {**line, "psnr": psnr, "log_ratio": ratio, **judged.get(key, {})}
    names = sorted({judge for _, judge in scores})
    rows = [_row(label, units, names) for label, units in table.items()]
    crowd = next((judge for judge in judges if isinstance(judge, CrowdJudge)), None)
    if crowd is not None and len(complete) > 1:
        store = Store(folder / "results.jsonl")
        for row in rows:
            pictures = np.concatenate([store.read(line).picture for line in stored[row["run"]]])
            row["frechet"] = _stated([crowd.distance(pictures)])
    base = table.get(against, {})
    for row in rows:
        if row["run"] != against:
            row["difference"] = _difference(table[row["run"]], base, (*METRICS, *names))
    return {
        "model": model.name, "weights": model.provenance, "prompts": len(task.prompts), "seeds": list(task.seeds),
        "units": len(task.units), "units_complete": len(complete), "against": against, "rows": rows,
    }  # fmt: skip


Units = Mapping[tuple[str, int], Mapping[str, Any]]


def _values(units: Units, name: str) -> list[float] | None:
    """Return one value per prompt, or per seed where there is one prompt; None where some unit has none."""
    found = {unit: values.get(name) for unit, values in units.items()}
    if any(value is None for value in found.values()):
        return None
    prompts = list(dict.fromkeys(prompt for prompt, _ in found))
    plain = {unit: float(value) for unit, value in found.items() if value is not None}
    return by_prompt(plain, prompts) if len(prompts) > 1 else list(plain.values())


def _stated(values: Sequence[float] | None) -> list[Any] | None:
    """Return [mean, low, high], JSON-able."""
    if values is None or not values:
        return None
    if not all(math.isfinite(v) for v in values):
        return ["inf", None, None]
    return list(interval(values)) if len(values) > 1 else [values[0], None, None]


def _row(label: str, units: Units, judges: Sequence[str]) -> dict[str, Any]:
    names = ("full_steps", "speedup", "seconds", *METRICS, *judges)
    row: dict[str, Any] = {"run": label, "n": len(units)} | {name: _stated(_values(units, name)) for name in names}
    row["flops"] = float(np.mean([u["flops"] for u in units.values()]))
    ratio = _stated(_values(units, "log_ratio"))
    row["seconds_speedup"] = ratio and [None if r is None else math.exp(r) for r in ratio]
    return row


def _difference(a: Units, b: Units, names: Sequence[str]) -> dict[str, list[Any] | None]:
    found: dict[str, list[Any] | None] = {}
    for name in names:
        x, y = _values(a, name), _values(b, name)
        if x is None or y is None or len(x) != len(y) or len(x) < 2 or not all(map(math.isfinite, [*x, *y])):
            found[name] = None
        else:
            found[name] = list(paired(x, y))
    return found


def write_videos(model: Model, task: Task, folder: Path, *, fps: int = 24) -> list[Path]:
    """Write finished videos as `videos/LABEL/PROMPT-INDEX.mp4`, the layout that VBench's own tool reads.

    Then, for each label: `pip install vbench` and `vbench evaluate --videos_path videos/LABEL --dimension NAME`; VBench asks
    for five videos a prompt, so use five seeds.

    Raises:
        FrescoError: where imageio with ffmpeg is missing, or a prompt cannot be a file's name.
    """
    try:
        import imageio.v3 as iio
        import imageio_ffmpeg  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        raise FrescoError("writing videos needs imageio with ffmpeg; run: pip install imageio[ffmpeg]") from None
    store = Store(folder / "results.jsonl")
    lines, written = store.lines(), []
    for cell in task.settings:
        target = folder / "videos" / cell.label.replace("/", "-")
        target.mkdir(parents=True, exist_ok=True)
        for prompt, seed in task.units:
            if "/" in prompt or len(prompt.encode()) > 240:
                raise FrescoError(f"the prompt {prompt[:60]!r} cannot be a file's name, as VBench wants it; leave it out")
            line = lines.get(key_of(cell.on(model), prompt, cell.config.replace(seed=seed)))
            if line is not None:
                name = target / f"{prompt}-{task.seeds.index(seed)}.mp4"
                iio.imwrite(name, store.read(line).picture, fps=fps, macro_block_size=1)
                written.append(name)
    return written
