"""What the sampler costs beside the model, and how much of the FLOPs saved is saved in seconds. By hand, not in CI.

`python -m tests.benchmarks.sampler [--model sinopia] [--rounds 5]`. Everything is a ratio within one run, since machines
are noisy: the bare model calls are timed inside the very runs whose rest is called overhead, and Fresco and the full run
alternate.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import statistics
import time
from typing import Any

import torch

from fresco.backends import load_model
from fresco.config import FrescoConfig
from fresco.sampler import sample


class Timed:
    """A denoiser that adds up the seconds of its own calls."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser, self.seconds = denoiser, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def __call__(self, *arguments: Any) -> torch.Tensor:
        start = time.perf_counter()
        velocity: torch.Tensor = self._denoiser(*arguments)
        if velocity.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        return velocity


def measure(model: Any, prompt: str, config: FrescoConfig) -> tuple[float, float, float]:
    """Return (seconds of the run, seconds inside the model, FLOPs)."""
    denoiser, cond = Timed(model.bind(config)), model.encode(prompt)
    start = time.perf_counter()
    flops = sum(denoiser.flops(len(step.grid)) for step in sample(denoiser, cond, config))
    return time.perf_counter() - start, denoiser.seconds, flops


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sinopia")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = load_model(args.model, device=args.device)
    runs = {
        "full, 18": FrescoConfig.full(18),
        "recommended, 18": FrescoConfig.recommended(18),
        "recommended, coarse frame": FrescoConfig.recommended(18, frame="coarse"),
        "paper, 18": FrescoConfig.paper(18),
        "no mixed stage": FrescoConfig.paper(18, stages=(9, 0, 9)),
    }
    for config in runs.values():  # warm up
        measure(model, "red apple, noto style, on blue", config)
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, config in runs.items():
            seen[name].append(measure(model, "red apple, noto style, on blue", config))
    full = seen["full, 18"]
    print(f"{model.name} on {model.device}, {args.rounds} rounds, medians; speed-ups against 18 full steps of the same round")
    print(f"{'run':<28}{'seconds':>9}{'overhead':>10}{'FLOPs x':>9}{'seconds x':>11}{'share':>8}")
    for name, rounds in seen.items():
        whole = statistics.median(r[0] for r in rounds)
        overhead = statistics.median((r[0] - r[1]) / r[1] for r in rounds)
        flops = full[0][2] / rounds[0][2]
        faster = statistics.median(f[0] / r[0] for f, r in zip(full, rounds, strict=True))
        print(f"{name:<28}{whole:>9.2f}{overhead:>10.1%}{flops:>9.2f}{faster:>11.2f}{faster / flops:>8.2f}")


if __name__ == "__main__":
    main()
