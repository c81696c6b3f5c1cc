"""Record the runs that the page plays without the model; what they are is said in examples.json.

`recorded`: every tau at every NFE of one prompt, so that dragging tau answers without a server. `gallery`: one
configuration each, chosen to show one thing. Run from the project's root with `python -m assets.record [slug ...]`; it
rewrites assets/traces/<slug>.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fresco.backends import load_model
from fresco.config import FrescoConfig
from fresco.cost import same_flops_steps
from fresco.metrics import psnr, ssim
from fresco.record import full_step, provenance, record
from fresco.trace import Trace
from viz import bundle

HERE = Path(__file__).parent
LABEL = "Full resolution, {} steps"
THIN = 5  # of the long references that stand beside a single run, every fifth step has a picture


def make(model: Any, prompt: str, config: FrescoConfig, label: str, preview_every: int = 1) -> Trace:
    """Run once and return the trace."""
    events = list(record(model, prompt, config, preview_every=preview_every))
    return Trace(prompt, config, model.name, label, provenance(model), events)


def likeness(trace: Trace, truth: Trace) -> tuple[float, float]:
    """Return (PSNR, SSIM) of the finished pictures."""
    assert trace.picture is not None
    assert truth.picture is not None
    return psnr(trace.picture, truth.picture), ssim(trace.picture, truth.picture)


def save(slug: str, example: Mapping[str, Any], runs: list[Trace], references: list[Trace], step: float) -> None:
    """Write the bundle: the runs, the references with the 50-step one first, and what the gallery says of it."""
    truth = references[0]
    compared = [bundle.Recorded(run, *likeness(run, truth)) for run in runs]
    message = bundle.build(slug, compared, [bundle.Recorded(r) for r in references], step)
    for said, run in zip(message["runs"], runs, strict=True):
        said["config"] = run.config.to_json()
    for said, run in zip(message["references"][1:], references[1:], strict=True):
        said["psnr"], said["ssim"] = likeness(run, truth)
        said["config"] = run.config.to_json()
    message |= {"title": example["title"], "line": example["line"]}
    path = bundle.save(message, HERE / "traces")
    best = compared[len(compared) // 2]
    print(
        f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {50 * step / best.trace.flops:.2f}x fewer FLOPs, {best.psnr:.1f} dB",
        flush=True,
    )


def table(model: Any, slug: str, example: Mapping[str, Any], taus: list[float], nfes: list[int]) -> None:
    """Record a prompt at every tau and NFE."""
    prompt, base = example["prompt"], FrescoConfig.recommended(tau=1.0, seed=example["seed"])
    step = full_step(model, base)
    full = {n: make(model, prompt, base.as_full(n), LABEL.format(n)) for n in {50, *nfes}}
    runs = [make(model, prompt, base.replace(nfe=nfe, tau=tau), "Fresco") for nfe in nfes for tau in taus]
    middle = next(r for r in runs if r.config.nfe == 18 and r.config.tau == taus[3])
    same = same_flops_steps(middle.flops, step)  # beside the run that plays first
    full[same] = make(model, prompt, base.as_full(same), LABEL.format(same))
    save(slug, example, runs, [full[n] for n in (50, *sorted(set(full) - {50}))], step)


def single(model: Any, slug: str, example: Mapping[str, Any]) -> None:
    """Record one configuration beside 50 full steps, as many as its FLOPs buy, and the runs it is to be compared with."""
    prompt, seed = example["prompt"], example["seed"]
    preset = getattr(FrescoConfig, example.get("preset", "recommended"))
    config = preset(**({"seed": seed} | example["settings"]))
    step = full_step(model, config)
    run = make(model, prompt, config, "Fresco")
    beside = [make(model, prompt, config.replace(**b["settings"]), b["label"]) for b in example.get("beside", [])]
    same = same_flops_steps(run.flops, step)
    truth = make(model, prompt, config.as_full(50), LABEL.format(50), example.get("thin", THIN))
    save(slug, example, [run], [truth, *beside, make(model, prompt, config.as_full(same), LABEL.format(same))], step)


def main(wanted: list[str]) -> None:
    """Record the wanted runs, or all."""
    examples = json.loads((HERE / "examples.json").read_text(encoding="utf-8"))
    unknown = set(wanted) - {*examples["recorded"], *examples["gallery"]}
    if unknown:
        sys.exit(f"examples.json has no {', '.join(sorted(unknown))}")
    model = load_model(examples["model"], device="cpu")
    for slug, example in examples["recorded"].items():
        if not wanted or slug in wanted:
            table(model, slug, example, examples["tau"], examples["nfe"])
    for slug, example in examples["gallery"].items():
        if not wanted or slug in wanted:
            single(model, slug, example)


if __name__ == "__main__":
    main(sys.argv[1:])
