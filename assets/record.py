"""Record the runs that the page plays without the model: every tau at every NFE, for each prompt of examples.json.

Run from the project's root with `python -m assets.record [slug ...]`; it rewrites assets/traces/<slug>.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import sys
from pathlib import Path

from fresco.backends import load_model
from fresco.config import FrescoConfig
from fresco.cost import same_flops_steps
from fresco.metrics import psnr, ssim
from fresco.record import full_step, run
from viz import bundle

HERE = Path(__file__).parent


def main(wanted: list[str]) -> None:
    """Record the wanted prompts, or all."""
    examples = json.loads((HERE / "examples.json").read_text(encoding="utf-8"))
    model = load_model(examples["model"], device="cpu")
    for slug, example in examples["recorded"].items():
        if wanted and slug not in wanted:
            continue
        base = FrescoConfig.recommended(tau=1.0, seed=example["seed"])
        step = full_step(model, base)
        full = {
            n: run(model, example["prompt"], base.as_full(n), label=f"Full resolution, {n} steps")
            for n in {50, *examples["nfe"]}
        }
        truth = full[50].picture
        assert truth is not None
        runs = []
        for nfe in examples["nfe"]:
            for tau in examples["tau"]:
                trace = run(model, example["prompt"], base.replace(nfe=nfe, tau=tau), label="Fresco")
                assert trace.picture is not None
                runs.append(bundle.Recorded(trace, psnr(trace.picture, truth), ssim(trace.picture, truth)))
                print(
                    f"{slug}: NFE {nfe}, tau {tau:g}: {50 * step / trace.flops:.2f}x fewer FLOPs, {runs[-1].psnr:.1f} dB",
                    flush=True,
                )
        middle = next(r.trace for r in runs if r.trace.config.nfe == 18 and r.trace.config.tau == examples["tau"][3])
        same = same_flops_steps(middle.flops, step)  # beside the run that plays first
        full[same] = run(model, example["prompt"], base.as_full(same), label=f"Full resolution, {same} steps")
        references = [bundle.Recorded(full[n]) for n in (50, *sorted(set(full) - {50}))]
        path = bundle.save(bundle.build(slug, runs, references, step), HERE / "traces")
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
