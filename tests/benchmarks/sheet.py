"""Twenty prompts, unselected: every tenth of the 200, seed 0, by Fresco and by 50 full steps: the README's picture of quality.

    OMP_WAIT_POLICY=PASSIVE python -m tests.benchmarks.sheet assets/sheet.webp

Under each pair stands whether the bundled model's judge recognises the subject that was asked for.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt

from fresco.backends import load_model
from fresco.config import FrescoConfig
from fresco.lab.evaluate import read_prompts
from fresco.lab.judges import load_judge
from fresco.lab.own_judge import FOLDER
from fresco.record import run

EVERY, ACROSS = 10, 5
RUNS = (FrescoConfig.recommended(18), FrescoConfig.full(50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path)
    args = parser.parse_args()
    model, judge = load_model("sinopia", device="cpu"), load_judge("judge-object")
    prompts = read_prompts(FOLDER / "prompts.jsonl")[::EVERY]
    figure, axes = plt.subplots(len(prompts) // ACROSS, 2 * ACROSS, figsize=(10, 5.6), layout="constrained")
    right = [0, 0]
    for place, prompt in enumerate(prompts):
        row, column = divmod(place, ACROSS)
        for k, config in enumerate(RUNS):
            picture = run(model, prompt, config, preview_every=0).picture
            good = judge(prompt, picture) > 0.5
            right[k] += good
            at = axes[row, 2 * column + k]
            at.imshow(picture[0])
            at.set(xticks=[], yticks=[])
            at.set_xlabel("recognised" if good else "not recognised", fontsize=6, color="#2f7d4f" if good else "#b5442e")
            if k == 0:
                at.set_title(textwrap.fill(prompt, 30), fontsize=6.5, loc="left")
        print(prompt, right, flush=True)
    figure.savefig(args.figure, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
