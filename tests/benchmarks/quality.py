"""The README's quality tables, each by one command; goes on after a kill. Hours on two cores; run by hand.

    OMP_WAIT_POLICY=PASSIVE python -m tests.benchmarks.quality ablation --out out/quality

Prompts of the development set for everything that is chosen by looking; the 200 for `price` alone, once. Same seed, paired,
against the 50-step full-resolution picture; scores by the bundled model's own judge (`fresco.lab.own_judge`).
With `--share 0/2` and `--share 1/2` two processes do half of the prompts each; `--report` prints what is finished.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fresco import published
from fresco.backends import load_model
from fresco.baselines import CATALOGUE, CachedModel, equal_cost
from fresco.config import FrescoConfig
from fresco.denoiser import Model
from fresco.lab import ablation, evaluate
from fresco.lab.judges import load_judge
from fresco.lab.own_judge import FOLDER
from fresco.lab.sweep import Cell
from fresco.lab.tables import Run, runs_of

JUDGES = ("judge", "judge-asked", "judge-object")
OURS = FrescoConfig.recommended(18)
PRICE = (18, 30, 11, 9)
THRESHOLDS = (0.85, 0.35)  # of TeaCache and FirstBlockCache: about 12 of 50 calls on this model


def _cells(configs: dict[str, FrescoConfig]) -> tuple[Cell, ...]:
    return tuple(Cell({}, label, config) for label, config in configs.items())


def price(model: Model) -> tuple[Cell, ...]:
    """Fresco at the paper's NFE, beside full resolution at the same NFE; the same FLOPs come by themselves."""
    found = {}
    for nfe in PRICE:
        found[f"recommended, NFE {nfe}"] = FrescoConfig.recommended(nfe)
        found[f"full, {nfe} steps"] = FrescoConfig.full(nfe)
    return _cells(found)


def switches(model: Model) -> tuple[Cell, ...]:
    """The paper's ablation, then every other switch of this project."""
    return tuple(ablation.cells(OURS, ablation.ROWS + ablation.MORE, model.bind(OURS)))


def peers(model: Model) -> tuple[Cell, ...]:
    """Every method at the cost of about 12 full steps."""
    return tuple(
        Cell({}, label, config, partial(CachedModel, cache=cache, label=str(cache)) if cache else None)
        for label, (config, cache) in equal_cost(False, *THRESHOLDS).items()
    )


def rows(model: Model) -> tuple[Cell, ...]:
    """What stands for the rows of the paper's tables on this model, in their published settings: `fresco tables`."""
    found: dict[Run, Cell] = {}
    for row in published.ROWS:
        for name, config in runs_of(row, model.name):
            if not config.watches_attention:  # this model reports none
                label = f"{row.table} {row.method} {row.nfe or ''}".strip()
                found.setdefault((name, config), Cell({}, label, config, CATALOGUE[name].model if name else None))
    return tuple(found.values())


def sensitivity(model: Model, side: int | None = None) -> tuple[Cell, ...]:
    """Tau, ratio and the split, one at a time; at the native resolution, or of a square of `side` pixels."""
    base = OURS.replace(size=None if side is None else (1, side, side))
    taus = {f"tau {tau:g}": base.replace(tau=tau) for tau in (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)}
    ratios = {f"ratio {ratio:g}": base.replace(ratio=ratio) for ratio in (0.1, 0.2, 0.4, 0.6, 0.8)}
    stages = ("3/7/8", "6/3/9", "6/7/5", "6/10/2", "8/5/5", "9/5/4", "9/8/1", "12/3/3", "12/5/1", "14/3/1")
    splits = {f"split {split}": base.replace(stages=tuple(map(int, split.split("/")))) for split in stages}
    return _cells({"recommended": base} | taus | ratios | splits)


def guidance(model: Model) -> tuple[Cell, ...]:
    """Fresco and full resolution at about its cost, by guidance; each scale has a 50-step reference of its own."""
    found = {"recommended": OURS, "full, 12 steps": FrescoConfig.full(12)}
    return _cells(
        found
        | {f"{name}, guidance {scale:g}": config.replace(guidance=scale)
           for scale in (1.0, 1.5, 3.0) for name, config in found.items()}
    )  # fmt: skip


def choice(model: Model) -> tuple[Cell, ...]:
    """What was weighed for `recommended`, all at NFE 18 and within a tenth or so of its cost."""
    carry = OURS.replace(transition="carry", checks="every")
    once = OURS.replace(transition="renoise", checks=1)
    thrice = OURS.replace(transition="renoise", checks=3)
    return _cells({
        "carry": carry,
        "carry, 7/4/7": carry.replace(stages=(7, 4, 7)),
        "carry, frame fine": carry.replace(frame="fine"),
        "carry, high variance first, frame fine": carry.replace(selection="variance_high", frame="fine"),
        "paper, 6/4/8": FrescoConfig.paper(18, stages=(6, 4, 8)),
        "renoise, no mixed stage, 8/0/10": once.replace(stages=(8, 0, 10)),
        "renoise once": once,
        "renoise once, 4/7/7": once.replace(stages=(4, 7, 7)),
        "renoise once, 6/4/8": once.replace(stages=(6, 4, 8)),
        "renoise once, 6/4/8, frame fine": once.replace(stages=(6, 4, 8), frame="fine"),
        "renoise once, 6/4/8, high variance first": once.replace(stages=(6, 4, 8), selection="variance_high"),
        "renoise once, 6/4/8, signal z": once.replace(stages=(6, 4, 8), signal="z"),
        "renoise once, 6/4/8, tau .004": once.replace(stages=(6, 4, 8), tau=0.004),
        "rewind once, 6/4/8": once.replace(stages=(6, 4, 8), transition="rewind"),
        "renoise twice": thrice.replace(checks=2),
        "renoise twice, 6/4/8": thrice.replace(stages=(6, 4, 8), checks=2),
        "renoise at three checks": thrice,
        "renoise at three checks, 6/4/8": thrice.replace(stages=(6, 4, 8)),
        "renoise at three checks, frame fine": thrice.replace(frame="fine"),
        "renoise at three checks, frame coarse": thrice.replace(frame="coarse"),
        "renoise at three checks, signal z": thrice.replace(signal="z"),
        "renoise at three checks, high variance first": thrice.replace(selection="variance_high"),
        "renoise at three checks, tau .004": thrice.replace(tau=0.004),
    })  # fmt: skip


def doublings(model: Model, side: int | None = None) -> tuple[Cell, ...]:
    """Two doublings instead of one, by how often tokens are looked at; native, or of a square of `side` pixels."""
    once = OURS.replace(size=None if side is None else (1, side, side))
    twice, carry = once.replace(levels=2), {"transition": "carry", "checks": "every"}
    return _cells({
        "recommended": once,
        "full, 12 steps": once.as_full(12),
        "carry, at every step": once.replace(**carry),
        "two doublings, three checks": twice,
        "two doublings, two checks": twice.replace(checks=2),
        "two doublings, one check": twice.replace(checks=1),
        "two doublings, carry, at every step": twice.replace(**carry),
    })  # fmt: skip


# Columns: title, digits, and whether the mean is given with half of its 95 % interval.
COLUMNS = {
    "full_steps": ("full steps", 1, False), "speedup": ("FLOPs x", 2, False), "seconds_speedup": ("seconds x", 2, False),
    "judge": ("judge", 1, True), "d judge": ("d judge", 1, True), "judge-object": ("object", 2, False),
    "judge-asked": ("asked", 2, False), "d judge-asked": ("d asked", 2, True),
    "frechet": ("Frechet", 1, False), "psnr": ("PSNR dB", 1, False), "d psnr": ("d PSNR", 1, True),
    "ssim": ("SSIM", 2, False), "d ssim": ("d SSIM", 2, True),
}  # fmt: skip
COSTS = ("full_steps", "speedup", "judge", "d judge", "judge-object", "frechet", "psnr", "ssim")
PRICES = (*COSTS[:2], "seconds_speedup", *COSTS[2:4], "judge-asked", "d judge-asked", *COSTS[5:])
KNOBS = ("full_steps", "speedup", "judge", "d judge", "frechet", "psnr", "d psnr")


@dataclass(frozen=True)
class Table:
    """One measurement.

    Attributes:
        cells: what is run, on a model.
        columns: of `COLUMNS`, as the README shows them.
        prompts: name of the file in the benchmark's folder.
        same_flops: whether each run also meets full resolution at its own cost.
    """

    cells: Callable[[Model], tuple[Cell, ...]]
    columns: tuple[str, ...]
    prompts: str = "development"
    same_flops: bool = False


TABLES = {
    "price": Table(price, PRICES, "prompts", same_flops=True),
    "price-dev": Table(price, PRICES, same_flops=True),
    "ablation": Table(switches, ("full_steps", "judge", "d judge", "frechet", "psnr", "d psnr", "d ssim")),
    "peers": Table(peers, ("full_steps", "seconds_speedup", "judge", "d judge", "judge-object", "frechet", "psnr", "ssim")),
    "published": Table(rows, COSTS),
    "choice": Table(choice, ("full_steps", "judge", "d judge", "judge-object", "frechet", "psnr", "d psnr", "d ssim")),
    "guidance": Table(guidance, COSTS),
    "doublings": Table(doublings, COSTS),
    "doublings-256": Table(partial(doublings, side=256), COSTS),
    "sensitivity": Table(sensitivity, KNOBS),
    "sensitivity-64": Table(partial(sensitivity, side=64), KNOBS),
}  # fmt: skip


def markdown(found: dict[str, Any], columns: Sequence[str]) -> str:
    """Return a summary as the README's table; d is a paired difference, in bold where its interval leaves out 0."""
    lines = [f"| run | {' | '.join(COLUMNS[name][0] for name in columns)} |", "| --- |" + " --- |" * len(columns)]
    for row in found["rows"]:
        lines.append(f"| {row['run']} | {' | '.join(_said(row, name) for name in columns)} |")
    return "\n".join([f"{found['units_complete']} of {found['units']} prompts; paired with {found['against']}", "", *lines])


def _said(row: dict[str, Any], name: str) -> str:
    _, digits, whole = COLUMNS[name]
    value = (row.get("difference") or {}).get(name[2:]) if name.startswith("d ") else row.get(name)
    if value is None or isinstance(value[0], str):
        return "" if value is None else value[0]
    mean, low, high = value
    half = "" if low is None or not whole else f" ± {(high - low) / 2:.{digits}f}"
    apart = name.startswith("d ") and low is not None and low * high > 0
    return f"**{mean:.{digits}f}{half}**" if apart else f"{mean:.{digits}f}{half}"


def by_category(model: Model, task: evaluate.Task, folder: Path, category: Mapping[str, str], runs: Sequence[str]) -> str:
    """Return the judge's score and the share of what was asked for that it sees, category by category, as a table."""
    lines = ["| category | prompts | " + " | ".join(runs) + " |", "| --- | --- |" + " --- |" * len(runs)]
    for name in dict.fromkeys(category.values()):
        prompts = tuple(prompt for prompt in task.prompts if category[prompt] == name)
        rows = {row["run"]: row for row in evaluate.summary(model, replace(task, prompts=prompts), folder)["rows"]}
        said = [f"{rows[run]['judge'][0]:.1f}, {rows[run]['judge-asked'][0]:.2f}" if run in rows else "" for run in runs]
        lines.append(f"| {name} | {len(prompts)} | {' | '.join(said)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    parser.add_argument("--share", default="0/1", help="which process of how many this is")
    parser.add_argument("--only", type=int, help="the first so many prompts")
    parser.add_argument("--report", action="store_true", help="run nothing, print what is finished")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--categories", nargs="+", metavar="RUN", help="judge and asked of these rows, by kind of prompt")
    args = parser.parse_args()
    table, (index, count) = TABLES[args.table], map(int, args.share.split("/"))
    model = load_model("sinopia", device="cpu")
    file = FOLDER / f"{table.prompts}.jsonl"
    prompts = evaluate.read_prompts(file)[: args.only]
    task = evaluate.Task(prompts, (0,), table.cells(model), table.same_flops)
    judges = [load_judge(name) for name in JUDGES]
    if not args.report:
        evaluate.generate(model, task, args.out, index=index, count=count, judges=judges)
    if args.categories:
        asked = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        print(by_category(model, task, args.out, {row["prompt"]: row["category"] for row in asked}, args.categories))
        return
    found = evaluate.summary(model, task, args.out, judges=judges)
    print(json.dumps(found, indent=1) if args.json else markdown(found, table.columns))


if __name__ == "__main__":
    main()
