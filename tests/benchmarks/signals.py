"""Which variance knows what remains to be done? Rank correlation of each signal with each token's true remaining error.

    OMP_WAIT_POLICY=PASSIVE python -m tests.benchmarks.signals

Development prompts, one seed each; means and 95 % intervals over prompts of Spearman's rho at the steps where tokens are
chosen. Source: METHOD 2.3.
"""

from __future__ import annotations

import argparse
import math

from fresco.backends import load_model
from fresco.config import SIGNALS, FrescoConfig
from fresco.lab.convergence import correlations
from fresco.lab.evaluate import read_prompts
from fresco.lab.own_judge import FOLDER
from fresco.metrics import interval, paired

RUNS = {"recommended, NFE 18": FrescoConfig.recommended(18), "full, 18 steps": FrescoConfig.full(18)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int)
    args = parser.parse_args()
    model = load_model("sinopia", device="cpu")
    found: dict[tuple[str, int, float, str], list[float]] = {}
    for prompt in read_prompts(FOLDER / "development.jsonl")[: args.prompts]:
        for label, config in RUNS.items():
            for row in correlations(model, prompt, config):
                found.setdefault((label, row.step, row.sigma, row.signal), []).append(row.rho)
    print("| run | step | sigma | " + " | ".join(SIGNALS) + " | channel less x0 |\n|" + " --- |" * (4 + len(SIGNALS)))
    for label, step, sigma in dict.fromkeys(key[:3] for key in found):
        columns = {signal: found[label, step, sigma, signal] for signal in SIGNALS}
        if any(math.isnan(v) for values in columns.values() for v in values):
            continue  # a variance is not defined yet
        pairs = [interval(columns[signal]) for signal in SIGNALS] + [paired(columns["channel"], columns["x0"])]
        said = [f"{mean:.2f} ± {(high - low) / 2:.2f}" for mean, low, high in pairs]
        print(f"| {label} | {step + 1} | {sigma:.3f} | {' | '.join(said)} |")


if __name__ == "__main__":
    main()
