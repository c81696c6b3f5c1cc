"""Twenty prompts, unselected, each with its first seed: the README's sheet of what the bundled model draws.

    OMP_WAIT_POLICY=PASSIVE python -m tests.benchmarks.sheet assets/sheet.webp

Every tenth of the benchmark's 200. Left 50 full steps, right Fresco's `recommended` at NFE 18 of the same seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from fresco.backends import load_model
from fresco.config import FrescoConfig
from fresco.lab.evaluate import read_prompts
from fresco.lab.own_judge import FOLDER
from fresco.record import run

ACROSS, ROWS = 5, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    model = load_model("sinopia", device="cpu")
    prompts = read_prompts(FOLDER / "prompts.jsonl")[:: 200 // (ACROSS * ROWS)]
    figure, axes = plt.subplots(ROWS, 2 * ACROSS, figsize=(13, 6.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.01, w_pad=0.01, h_pad=0.02)  # type: ignore[union-attr]
    for pair, prompt in zip(axes.reshape(-1, 2), prompts, strict=True):
        for axis, config in zip(pair, (FrescoConfig.full(50), FrescoConfig.recommended(18)), strict=True):
            picture = run(model, prompt, config, preview_every=0).picture
            assert picture is not None
            axis.imshow(picture[0])
            axis.set_axis_off()
        pair[0].set_title(prompt, fontsize=8, loc="left", y=0.98)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
