"""Measure settings over prompts and seeds, paired, with intervals; goes on after a kill; `accelerate launch` spreads it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fresco.cli import settings, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    settings.add_model(parser)
    parser.add_argument(
        "--configs", nargs="+", default=["recommended:18"], metavar="CONFIG",
        help="[LABEL=]PRESET[:NFE][,setting=value]..., for example recommended:18,tau=0.004 full:10; a baseline, as ralu-18; "
        "or a .json file of {label: settings}",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", required=True, metavar="FILE",
        help="one prompt a line, or .jsonl, .csv, .tsv with a field prompt; DrawBench's 200 are at "
        "huggingface.co/datasets/shunk031/DrawBench, VBench's in prompts/all_dimension.txt of github.com/Vchitect/VBench",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ablation", choices=["paper", "all"], help="also the ablation of the first setting")
    parser.add_argument("--same-flops", action="store_true", help="also full resolution at the smallest cost not below each")
    parser.add_argument(
        "--judges",
        nargs="+",
        default=[],
        metavar="NAME",
        help="judge, judge-asked, judge-object (the bundled model's own; with a Frechet distance), "
        "image-reward, clip-score, clip-iqa",
    )
    parser.add_argument("--against", metavar="LABEL", help="the setting that others are paired with; the first by default")
    parser.add_argument("--out", type=Path, required=True, help="folder for results*.jsonl, scores*.jsonl, pictures/")
    parser.add_argument("--videos", action="store_true", help="also write videos/LABEL/PROMPT-INDEX.mp4, as VBench reads them")
    parser.add_argument("--fps", type=int, default=24)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make what is missing, and return the summary (of several processes, the first one's)."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    from fresco.baselines import Baseline
    from fresco.config import ConfigError
    from fresco.lab import ablation, evaluate
    from fresco.lab.judges import load_judge
    from fresco.lab.sweep import Cell, baseline_cell

    named = {}
    for text in args.configs:
        for label, config in settings.named(text).items():
            if label in named:
                raise ConfigError(f"two settings are called {label!r}; give one another label, as in other={text}")
            named[label] = config
    prompts = evaluate.read_prompts(args.prompts)
    index, count, device = evaluate.processes(args.device)
    model = settings.load(args, device)
    cells = [
        baseline_cell(model, config, config.config, label) if isinstance(config, Baseline) else Cell({}, label, config)
        for label, config in named.items()
    ]
    if args.ablation:
        base = cells[0].config
        rows = ablation.ROWS if args.ablation == "paper" else ablation.ROWS + ablation.MORE
        cells += [cell for cell in ablation.cells(base, rows, model.bind(base)) if cell.coords]
    task = evaluate.Task(prompts, tuple(args.seeds), tuple(cells), args.same_flops)
    if args.against and args.against not in task.labels:
        raise ConfigError(f"there is no setting called {args.against!r}; choose one of {', '.join(task.labels)}")
    judges = [load_judge(name, str(model.device)) for name in args.judges]
    if index == 0:
        print(f"{model.name} on {model.device}, {str(model.dtype).removeprefix('torch.')}", file=sys.stderr)
    mine = len(task.units[index::count]) * task.runs // len(task.units)
    with tqdm(total=mine, unit="run", disable=None, position=index) as bar:

        def tick(label: str) -> None:
            bar.set_postfix_str(label)
            bar.update()

        evaluate.generate(
            model, task, args.out, index=index, count=count, judges=judges, progress=lambda result: tick(result.label)
        )  # fmt: skip
    evaluate.wait_for_all()
    if index:
        return {}
    found = evaluate.summary(model, task, args.out, args.against, judges)
    if args.videos:
        found["videos"] = len(evaluate.write_videos(model, task, args.out, fps=args.fps))
    return found


def view(found: dict[str, Any]) -> None:
    """Print the summary as a table of means with half-widths of their intervals."""
    if not found:
        return
    print(f"{found['units_complete']} of {found['units']} units (prompt x seed); mean +- half of the 95 % interval\n")
    plain = [n for n, v in found["rows"][0].items() if isinstance(v, list)] if found["rows"] else []
    names = [n for n in plain if any(row[n] is not None for row in found["rows"])]
    if found["rows"]:
        show.table([{"run": r["run"], **{n: _said(r[n]) for n in names}} for r in found["rows"]], 44, 17)


def _said(value: list[Any] | None) -> str:
    if value is None or isinstance(value[0], str):
        return "" if value is None else value[0]
    mean, low, high = value
    return f"{mean:.3f}" + ("" if low is None else f" +-{(high - low) / 2:.3f}")
