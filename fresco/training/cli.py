"""`python -m fresco train`: the arguments, and the call; light to import."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train` to a parser."""
    presets = ["gpu", "cpu", "plain", "tiny"]
    parser.add_argument("--preset", choices=presets, default="cpu", help="world, and size of the model and of the run")
    parser.add_argument("--out", type=Path, default=Path("out/sinopia"), help="checkpoint, losses.csv, samples and export/")
    parser.add_argument("--data", type=Path, default=Path("out/data"), help="cache of packages, catalogue and pixels")
    parser.add_argument("--prepare", choices=["catalogue", "icons"], help="only make the data, so far, and stop")
    parser.add_argument("--minutes", type=float, help="stop training after so long, with a checkpoint; run again to go on")
    parser.add_argument("--steps", type=int, help="length of the whole run; may be changed between slices")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0, help="write a checkpoint this often")
    parser.add_argument("--init", type=Path, help="start from the transformer of an exported folder, not from noise")
    parser.add_argument("--lr", type=float, help="peak learning rate")
    parser.add_argument("--batch-scale", type=float, default=1.0, help="multiplies the preset's batches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="cuda, cpu or auto: CUDA when there is one")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; by default on a GPU only")
    parser.add_argument("--workers", type=int, help="processes that write recipes; by default up to 12 beside a GPU, else 0")
    parser.add_argument("--samples", type=int, default=16, help="pictures per resolution on samples.png; 0 is none")


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train the bundled model, or go on from its last checkpoint; export it in the layout that Fresco loads."""
    from fresco.training import data
    from fresco.training.train import PRESETS, Run, pick_device

    preset = PRESETS[args.preset]
    if args.prepare == "catalogue":
        found = data.catalogue(args.data)
        return {"catalogue": str(args.data / data.CATALOGUE), "concepts": len(found["concepts"])}
    library = data.load(args.data, preset.icon)
    if args.prepare:
        return {"icons": len(library.pixels), "concepts": len(library.names), "pixels": preset.icon}
    run = Run(
        preset.scaled(args.steps, args.lr, args.batch_scale), library, args.out, device=pick_device(args.device),
        seed=args.seed, init=args.init, compiled=args.compile, workers=args.workers,
    )  # fmt: skip
    return run.go(minutes=args.minutes, checkpoint_minutes=args.checkpoint_minutes, samples=args.samples)
