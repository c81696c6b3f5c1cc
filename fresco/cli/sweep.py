"""Run a grid of settings on one prompt; kill it at any moment, and the same command goes on where it was."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fresco.cli import settings, show
from fresco.config import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sweep`."""
    parser.add_argument("prompt")
    parser.add_argument(
        "--axis", type=settings.axis, action="append", default=[], metavar="NAME=VALUE,VALUE",
        help="a setting and its values; several axes make their product, for example tau=0.001,0.004 or stages=6/7/5,5/2/4",
    )  # fmt: skip
    parser.add_argument("--ablation", choices=["paper", "all"], help="also the paper's ablation, or all our switches")
    parser.add_argument("--baselines", nargs="+", default=[], metavar="NAME", help="also these of fresco.baselines, as ralu-18")
    parser.add_argument("--curve", action="store_true", help="also full resolution at 4 to 50 steps")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.jsonl, seconds.jsonl and pictures/")
    parser.add_argument("--traces", action="store_true", help="also save every run as an .npz trace")
    settings.add_model(parser)
    settings.add_settings(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run what is not there yet; return every result."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    from fresco.baselines import find
    from fresco.lab import ablation, sweep
    from fresco.lab.store import Store
    from fresco.record import References

    base = settings.from_arguments(args)
    axes = dict(args.axis)
    if len(axes) < len(args.axis):
        raise ConfigError("an axis is given twice; name each once, with all its values")
    baselines = [find(name) for name in args.baselines]
    cells = sweep.cells(base, axes) if axes or not (args.ablation or args.curve or baselines) else []
    model = settings.load(args)
    if args.ablation:
        rows = ablation.ROWS if args.ablation == "paper" else ablation.ROWS + ablation.MORE
        cells += ablation.cells(base, rows, model.bind(base))
    cells += sweep.full_cells(base) if args.curve else []
    cells += [sweep.baseline_cell(model, baseline, base) for baseline in baselines]
    plan = sweep.distinct([one for cell in cells for one in (sweep.reference_cell(cell.config), cell)])
    store = Store(args.out / "results.jsonl", traces=args.traces)
    done = store.done(sweep.key_of(cell.on(model), args.prompt, cell.config) for cell in plan)
    print(f"{model.name} on {model.device}, {str(model.dtype).removeprefix('torch.')}", file=sys.stderr)
    rows_found = []
    with tqdm(total=len(plan), unit="run", disable=None) as bar:
        results = sweep.sweep(
            model, args.prompt, plan, kept=References(), done=done, preview_every=1 if args.traces else 0
        )  # fmt: skip
        for result in results:
            if result.key not in done:
                store.add(result)
            rows_found.append(result.to_json())
            bar.set_postfix_str(result.label)
            bar.update()
    return {"prompt": args.prompt, "model": model.name, "out": str(args.out), "rows": rows_found}


def view(found: dict[str, Any]) -> None:
    """Print the results as a table."""
    names = ("label", "full_steps", "speedup", "seconds", "psnr", "ssim")
    show.table([{name: row[name] for name in names} for row in found["rows"]])
