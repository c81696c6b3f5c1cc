"""Do mixed tokens work in every position frame? The experiment to make before anything else. Run by hand.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/frames.py --out out/frames

A full run is stopped half-way; 0, 40, 60 or 100 % of its 2 x 2 blocks become coarse tokens with the same picture and the
same noise field (coarse x0 = mean of the block, coarse noise = its Haar low-pass); one call per position frame then
predicts x0, which is compared, coarse tokens replicated, with the prediction on all-fine tokens. Coarse blocks lose detail
whatever the frame, so the table gives the fine and the coarse part apart, and the coarse part against its block means too.
Each sheet: state, all-fine estimate, its block means; then one row per share, the frames from left to right.
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
SHARES = (0.0, 0.4, 0.6, 1.0)  # of the 2 x 2 blocks; .6 coarse is what `ratio` .4 leaves


def decibel(error: torch.Tensor) -> float:
    """Return the PSNR of errors of pixels in [-1, 1]."""
    return float(10 * torch.log10(4 / (error**2).mean().clamp_min(1e-12))) if error.numel() else float("nan")


def coarsened(layout: Layout, state: torch.Tensor, x0: torch.Tensor, grid: TokenGrid, sigma: float) -> torch.Tensor:
    """Return the tokens (N, D) of `grid` at the same sigma, from an all-fine state and its clean estimate.

    `z = (1-s) x + s n`: pooling the noise of four pixels leaves a quarter of its variance, the Haar low-pass (sum / 2) all of
    it, so the coarse noise is the pooled one doubled.
    """
    noise = (state - (1 - sigma) * x0) / sigma
    gain = torch.as_tensor(np.where(grid.level == 0, 2.0, 1.0), dtype=torch.float32)[:, None]
    return (1 - sigma) * layout.gather(x0, grid) + sigma * gain * layout.gather(noise, grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/frames"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--at", type=int, nargs="+", default=[STEPS // 2], help="model calls to look at")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_model("sinopia", device="cpu")
    assert isinstance(model, SinopiaModel)
    rng = np.random.default_rng(0)
    scores: dict[tuple[int, float, float, str], list[list[float]]] = {}
    for prompt in model.example_prompts()[: args.prompts]:
        cond = model.encode(prompt)
        for seed in range(args.seeds):
            config = FrescoConfig.full(STEPS, seed=seed)
            denoiser = model.bind(config)
            layout = Layout(denoiser.channels, denoiser.patch)
            for step in sample(denoiser, cond, config):
                if step.step in args.at:
                    fine, sigma = step.grid, step.sigma
                    state, want = layout.unpack(step.x, fine), layout.unpack(step.x0, fine)
                    mean = torch.nn.functional.interpolate(layout.at_level(want, 1), scale_factor=2, mode="nearest")
                    rows = [np.concatenate([model.decode(x)[0] for x in (state, want, mean)], axis=1)]
                    coarse = TokenGrid.uniform(fine.shape, 1, 0)
                    order = rng.permutation(len(coarse))
                    for share in SHARES:
                        keep = np.ones(len(coarse), dtype=bool)
                        keep[order[: round(share * len(coarse))]] = False
                        grid, _ = coarse.expand(keep)
                        x = coarsened(layout, state, want, grid, sigma)
                        low = torch.as_tensor(grid.level_map() == 0)
                        low = low.repeat_interleave(layout.patch, 1).repeat_interleave(layout.patch, 2)
                        shown = []
                        for frame in FRAMES[:1] if grid.is_uniform else FRAMES:  # frames act on mixed grids only
                            velocity = model.bind(config.replace(frame=frame))(x, grid, sigma, cond)
                            got = layout.canvas(x - sigma * velocity, grid)
                            parts = (got - want, (got - want)[:, ~low], (got - want)[:, low], (got - mean)[:, low])
                            key = (step.step, sigma, share, "(uniform)" if grid.is_uniform else frame)
                            scores.setdefault(key, []).append([decibel(part) for part in parts])
                            shown.append(model.decode(got)[0])
                        rows.append(np.concatenate(shown, axis=1))
                    width = max(row.shape[1] for row in rows)
                    sheet = np.concatenate([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0))) for r in rows])
                    name = f"{prompt.split(',')[0].replace(' ', '-')}-{seed}-{step.step}.png"
                    Image.fromarray(sheet).save(args.out / name)
                if step.step == max(args.at):
                    break
    print(f"{args.prompts} prompts x {args.seeds} seeds, {STEPS} steps; mean PSNR in dB to the all-fine estimate")
    heads = f"{'all':>8}{'fine part':>11}{'coarse part':>13}{'v. its mean':>13}"
    print(f"{'call':>5}{'sigma':>7}{'coarse':>8}  {'frame':14}{heads}")
    for (call, sigma, share, frame), values in scores.items():
        whole, fine_part, coarse_part, to_mean = np.array(values).mean(0)
        print(f"{call:5}{sigma:7.3f}{share:8.0%}  {frame:14}{whole:8.2f}{fine_part:11.2f}{coarse_part:13.2f}{to_mean:13.2f}")


if __name__ == "__main__":
    main()
