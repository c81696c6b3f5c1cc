"""Do mixed tokens work in every position frame? The experiment to make before anything else. Run by hand.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/frames.py --out out/frames

A full run is stopped half-way; 0, 40 or 100 % of its 2 x 2 blocks become coarse tokens with the same picture and the same noise
field (coarse x0 = mean of the block, coarse noise = its Haar low-pass); one call per position frame then predicts x0, which
is compared, coarse tokens replicated, with the prediction on all-fine tokens. Coarse blocks lose detail whatever the frame,
so the table gives the fine and the coarse part apart, and the coarse part against the block means as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fresco.backends import load_model
from fresco.backends.sinopia import SinopiaModel
from fresco.config import FrescoConfig
from fresco.grid import FRAMES, TokenGrid
from fresco.sampler import sample
from fresco.tokens import Layout

STEPS = 24
SHARES = (0.0, 0.4, 1.0)


def decibel(error: torch.Tensor) -> float:
    """Return the PSNR of errors of pixels in [-1, 1]."""
    return float(10 * torch.log10(4 / (error**2).mean().clamp_min(1e-12))) if error.numel() else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/frames"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--at", type=int, default=STEPS // 2, help="model call to stop at")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_model("sinopia", device="cpu")
    assert isinstance(model, SinopiaModel)
    rng = np.random.default_rng(0)
    scores: dict[tuple[float, str], list[list[float]]] = {}
    for prompt in model.example_prompts()[: args.prompts]:
        cond = model.encode(prompt)
        for seed in range(args.seeds):
            config = FrescoConfig.full(STEPS, seed=seed)
            denoiser = model.bind(config)
            layout = Layout(denoiser.channels, denoiser.patch)
            step = next(s for s in sample(denoiser, cond, config) if s.step == args.at)
            fine, sigma = step.grid, step.sigma
            state = layout.unpack(step.x, fine)
            want = layout.unpack(step.x0, fine)
            mean = torch.nn.functional.interpolate(layout.at_level(want, 1), scale_factor=2, mode="nearest")
            # z = (1-s) x + s n: pooling averages the noise to std 1/2, its Haar low-pass has std 1, so the coarse
            # noise is pooled twice over: z_lo = (1-s) mean(x) + s 2 mean(n), with n from the estimate in hand.
            noise = (state - (1 - sigma) * want) / sigma
            rows = [np.concatenate([model.decode(x)[0] for x in (state, want, mean)], axis=1)]
            for share in SHARES:
                coarse = TokenGrid.uniform(fine.shape, 1, 0)
                keep = np.ones(len(coarse), dtype=bool)
                keep[rng.permutation(len(coarse))[: round(share * len(coarse))]] = False
                grid, _ = coarse.expand(keep)
                gain = torch.as_tensor(np.where(grid.level == 0, 2.0, 1.0), dtype=torch.float32)[:, None]
                x = (1 - sigma) * layout.gather(want, grid) + sigma * gain * layout.gather(noise, grid)
                is_coarse = torch.as_tensor(grid.level_map() == 0).repeat_interleave(layout.patch, 1).repeat_interleave(
                    layout.patch, 2
                )  # fmt: skip
                shown = []
                for frame in FRAMES:
                    velocity = model.bind(config.replace(frame=frame))(x, grid, sigma, cond)
                    got = layout.canvas(x - sigma * velocity, grid)
                    off, low = got - want, got - mean
                    scores.setdefault((share, frame), []).append(
                        [decibel(off), decibel(off[:, ~is_coarse]), decibel(off[:, is_coarse]), decibel(low[:, is_coarse])]
                    )
                    shown.append(model.decode(got)[0])
                rows.append(np.concatenate(shown, axis=1))
            width = max(row.shape[1] for row in rows)
            sheet = np.concatenate([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0))) for r in rows])
            Image.fromarray(sheet).save(args.out / f"{prompt.split(',')[0].replace(' ', '-')}-{seed}.png")
    print(f"model call {args.at} of {STEPS}, sigma {sigma:.3f}; {args.prompts} prompts x {args.seeds} seeds; PSNR in dB, mean")
    print(f"{'coarse':>7} {'frame':14} {'all':>7} {'fine part':>10} {'coarse part':>12} {'coarse v. mean':>15}")
    for (share, frame), values in scores.items():
        mean_scores = np.array(values).mean(0)
        print(f"{share:7.0%} {frame:14} {mean_scores[0]:7.2f} {mean_scores[1]:10.2f} {mean_scores[2]:12.2f} {mean_scores[3]:15.2f}")


if __name__ == "__main__":
    main()
