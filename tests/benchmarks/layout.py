"""When is the layout there? The low-passed clean estimate against the finished picture, step by step: the README's figure.

    OMP_WAIT_POLICY=PASSIVE python -m tests.benchmarks.layout --out out/layout --figure assets/layout.webp

Each run is likened to its own last picture, so every curve ends at 1. Source: the paper's layout figure (METHOD 1).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
from numpy.typing import NDArray

from fresco.backends import load_model
from fresco.config import FrescoConfig
from fresco.lab.evaluate import read_prompts
from fresco.lab.own_judge import FOLDER
from fresco.metrics import interval
from fresco.record import full_step, run

SIDE = 16  # pixels of the low-passed picture: what a coarse token holds of a 128 pixel one, and no more
RUNS = {
    "Fresco, recommended, NFE 18": FrescoConfig.recommended(18),
    "full resolution, 18 steps": FrescoConfig.full(18),
    "full resolution, 12 steps (the same FLOPs)": FrescoConfig.full(12),
}


def low_passed(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return (SIDE, SIDE, 3) means over blocks of a picture (1, H, W, 3)."""
    _, height, width, _ = picture.shape
    blocks = picture[0].astype(float).reshape(SIDE, height // SIDE, SIDE, width // SIDE, 3)
    return blocks.mean((1, 3))  # type: ignore[no-any-return]


def likeness(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the correlation of two pictures' deviations from their own mean colour."""
    x, y = (v - v.mean((0, 1)) for v in (a, b))
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/layout"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--prompts", type=int)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_model("sinopia", device="cpu")
    found: dict[str, list[list[float]]] = {}
    spent: dict[str, list[float]] = {}
    for prompt in read_prompts(FOLDER / "development.jsonl")[: args.prompts]:
        for label, config in RUNS.items():
            trace = run(model, prompt, config)
            pictures = [low_passed(event.preview) for event in trace.events if event.preview is not None]
            found.setdefault(label, []).append([likeness(p, pictures[-1]) for p in pictures])
            spent[label] = list(np.cumsum([event.flops for event in trace.events]) / full_step(model, config))
        print(prompt, flush=True)
    (args.out / "layout.json").write_text(json.dumps({"likeness": found, "cost": spent}) + "\n")
    for label, curves in found.items():
        means = np.mean(curves, 0)
        print(f"{label}: " + " ".join(f"{m:.3f}" for m in means))
    if args.figure is not None:
        draw(found, spent, args.figure)


def draw(found: dict[str, list[list[float]]], spent: dict[str, list[float]], path: Path) -> None:
    """Write the figure: means and 95 % intervals over prompts, by model call and by cost."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.1), sharey=True, layout="constrained")
    for (label, curves), colour in zip(found.items(), ("#b5442e", "#3a6ea5", "#7a7a7a"), strict=True):
        bounds = np.array([interval(column) for column in np.array(curves).T])
        for axis, x in ((left, np.arange(1, len(bounds) + 1)), (right, np.array(spent[label]))):
            axis.plot(x, bounds[:, 0], color=colour, marker="o", markersize=3, label=label)
            axis.fill_between(x, bounds[:, 1], bounds[:, 2], color=colour, alpha=0.18, linewidth=0)
    low = RUNS["Fresco, recommended, NFE 18"].split[0]
    left.axvline(low + 0.5, color="#b5442e", linestyle=":", linewidth=1)
    left.annotate("low stage ends", (low + 0.6, 0.755), color="#b5442e", rotation=90, va="bottom", fontsize=8)
    left.set(xlabel="model calls", ylabel="layout's likeness to the finished picture", ylim=(0.74, 1.01))
    right.set(xlabel="cost, in full-resolution steps")
    for axis in (left, right):
        axis.xaxis.set_major_locator(mpl.ticker.MultipleLocator(3))
    right.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
