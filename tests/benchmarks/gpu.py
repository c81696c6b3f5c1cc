"""The true FLUX.1 and HunyuanVideo configurations with random weights: how much of the FLOPs saved is saved in seconds.

`python -m tests.benchmarks.gpu [--sizes 1024 2048] [--rounds 2] [--video] [--json]`, on one CUDA device; by hand, not in CI.
Time does not depend on what weights say, so none are downloaded; pictures mean nothing, and tokens are promoted by `ratio`. All
rows of a table come from one process. `--tiny` runs the same code with tiny models on a CPU: a test does.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, HunyuanVideoTransformer3DModel, TaylorSeerCacheConfig

from fresco.backends import ModelError, caches
from fresco.backends.flow import FlowSchedule
from fresco.backends.flux import FluxModel
from fresco.backends.flux_hub import HubDenoiser
from fresco.backends.hub import to_uint8
from fresco.config import FrescoConfig
from fresco.cost import TransformerShape
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.record import Mark
from fresco.sampler import sample

DEV = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
SCHNELL = {"use_dynamic_shifting": False, "shift": 1.0}
TINY = {
    "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 20,
    "pooled_projection_dim": 12, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
TINY_VIDEO = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
    "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 16, "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}  # fmt: skip
VIDEO_SIZES = [(129, 720, 1280), (129, 544, 960), (61, 544, 960), (33, 544, 960), (17, 320, 512)]
INTERVAL = 4  # TaylorSeer: one step of so many is computed


def random_weights(cls: Any, device: torch.device, dtype: torch.dtype, **config: Any) -> Any:
    """Return a model of the published configuration, filled on the device itself with small random numbers."""
    with torch.device("meta"):
        model = cls(**config)
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.normal_(0, 0.02)
    for name, module in model.named_modules():  # norms that hardly scale would make everything the same
        if name.endswith("norm") and hasattr(module, "weight") and module.weight is not None:
            module.weight.fill_(1)
    return model


class RandomFlux(FluxModel):
    """A FLUX.1 transformer by itself: any prompt is noise of the right shape, and a picture three of the channels."""

    denoiser = HubDenoiser
    name, provenance, patch, default_guidance = "random weights", "random weights", 2, 1.0

    def __init__(self, transformer: Any, scheduler: dict[str, Any], text_tokens: int, side: int) -> None:
        self.transformer, self.device, self.dtype = transformer, transformer.device, transformer.dtype
        self.schedule, self.native_size = FlowSchedule(scheduler), (1, side, side)
        self.shape = TransformerShape.from_config(transformer.config, text_tokens)

    def encode(self, prompt: str) -> Conditioning:
        """Return random states."""
        made = torch.Generator().manual_seed(len(prompt))
        states = torch.randn(self.shape.text_tokens, self.shape.text_dim, generator=made)
        pooled = torch.randn(self.shape.pooled_dim, generator=made)
        return Conditioning(prompt, {"prompt_embeds": states.to(self.device), "pooled": pooled.to(self.device)})

    def decode(self, latent: torch.Tensor) -> Any:
        """Return three channels as a picture."""
        return to_uint8(latent[:3])

    preview = decode


class Timed:
    """A denoiser that marks where its own calls begin and end, waits for none, and tells a cache of promotions.

    Attributes:
        computed: whether each call ran the blocks, or had their features forecast.
    """

    def __init__(self, denoiser: Any, cached: bool) -> None:
        self._denoiser, self._cached, self._grid = denoiser, cached, None
        self.calls: list[tuple[Mark, Mark]] = []
        self.computed: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        transformer, ran = self._denoiser.transformer, list[bool]()
        if self._cached and grid is not self._grid:
            text = self._denoiser.shape.text_tokens
            if self._grid is None or not caches.remap(transformer, self._grid, grid, text, text_first=True):
                caches.reset(transformer)
        self._grid = grid
        start = Mark(x.device)
        with self._counted(ran) if self._cached else nullcontext():
            velocity: torch.Tensor = self._denoiser(x, grid, sigma, cond)
        self.calls.append((start, Mark(x.device)))
        self.computed.append(bool(ran) or not self._cached)
        return velocity

    @contextmanager
    def _counted(self, ran: list[bool]) -> Iterator[None]:
        """Note whether the first block runs; compiled blocks must not be touched, so this is for cached ones."""
        transformer = self._denoiser.transformer
        counter = transformer.transformer_blocks[0].attn.register_forward_pre_hook(lambda *_: ran.append(True))
        try:
            with transformer.cache_context("cond"):
                yield
        finally:
            counter.remove()


@contextmanager
def taylorseer(transformer: Any) -> Iterator[None]:
    """Have whole blocks forecast between computed steps, as the method's authors do."""
    blocks = [r"transformer_blocks\.\d+", r"single_transformer_blocks\.\d+"]
    transformer.enable_cache(
        TaylorSeerCacheConfig(cache_interval=INTERVAL, disable_cache_before_step=3, max_order=1, cache_identifiers=blocks)
    )
    try:
        yield
    finally:
        transformer.disable_cache()


@contextmanager
def compiled(transformer: Any, backend: str) -> Iterator[None]:
    """Compile the repeated blocks, once for every number of tokens."""
    transformer.compile_repeated_blocks(dynamic=True, backend=backend)
    try:
        yield
    finally:
        for module in transformer.modules():
            module._compiled_call_impl = None
        torch._dynamo.reset()


@contextmanager
def synchronisations() -> Iterator[list[Any]]:
    """Collect the times that the host waited for the GPU; on a CPU there are none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found: list[Any] = []
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
            found += [warning for warning in caught if "synchroniz" in str(warning.message)]


def measure(bind: Callable[[FrescoConfig], Any], cond: Conditioning, config: FrescoConfig, cached: bool) -> dict[str, float]:
    """Return seconds of a run, seconds outside the model as a share of those inside, and FLOPs."""
    denoiser, flops = Timed(bind(config), cached), 0.0
    start = Mark(denoiser.device)
    counts = [len(step.grid) for step in sample(denoiser, cond, config)]
    end = Mark(denoiser.device)
    seconds = start.until(end)
    inside = sum(a.until(b) for a, b in denoiser.calls)
    for tokens, computed in zip(counts, denoiser.computed, strict=True):
        flops += denoiser.flops(tokens) if computed else denoiser.shape.shell_flops(tokens)
    return {"seconds": seconds, "overhead": seconds / inside - 1, "flops": flops}


def rows_of(
    bind: Callable[[FrescoConfig], Any], cond: Conditioning, runs: dict[str, FrescoConfig], rounds: int,
    against: dict[str, Any] | None, cached: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return rows of a table, medians of `rounds`; speed-ups are over `against`, or over the first run.

    `waits` counts the times that the host waited for the GPU in a run: at checks and promotions only, if all is well.
    """
    waits = {}
    for name, config in runs.items():
        measure(bind, cond, config, cached)  # warm up, and compile
        with synchronisations() as found_waits:
            measure(bind, cond, config, cached)
        waits[name] = len(found_waits)
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, config in runs.items():
            seen[name].append(measure(bind, cond, config, cached))
    rows: list[dict[str, Any]] = []
    for name, found in seen.items():
        row: dict[str, Any] = {
            "run": name,
            "waits": waits[name],
            **{key: statistics.median(f[key] for f in found) for key in found[0]},
        }
        base = against or (rows[0] if rows else row)
        row |= {"flops_x": base["flops"] / row["flops"], "seconds_x": base["seconds"] / row["seconds"]}
        rows.append(row | {"share": row["seconds_x"] / row["flops_x"]})
    return rows


def fresco_runs(nfes: Sequence[int]) -> dict[str, FrescoConfig]:
    """Return full runs and Fresco's at each NFE, both of its presets, 40 % promoted."""
    found = {}
    for nfe in nfes:
        found[f"full, {nfe}"] = FrescoConfig.full(nfe)
        found[f"Fresco as published, {nfe}"] = FrescoConfig.paper(nfe, ratio=0.4)
        found[f"Fresco recommended, {nfe}"] = FrescoConfig.recommended(nfe, ratio=0.4, tau=None)
    return found


def image_table(side: int, args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Return the rows of FLUX.1-dev, and of schnell over the same 50 steps of dev, at side x side pixels."""
    tiny = TINY if args.tiny else {}
    text = 16 if args.tiny else 512
    nfes = (9, 5) if args.tiny else (30, 18, 11)
    model = RandomFlux(random_weights(FluxTransformer2DModel, device, dtype, guidance_embeds=True, **tiny), DEV, text, side)
    cond = model.encode("a fox")
    whole = {"full, 50": FrescoConfig.full(50)}
    rows = rows_of(model.bind, cond, whole | fresco_runs(nfes), args.rounds, None)
    base = rows[0]
    few = fresco_runs(nfes[:1] if args.tiny else (18,))
    if not args.no_compile:
        with compiled(model.transformer, "eager" if args.tiny else "inductor"):
            again = rows_of(model.bind, cond, whole | few, args.rounds, None)
        rows += [row | {"run": f"compiled: {row['run']}"} for row in again]
    with taylorseer(model.transformer):
        kept = {name: config.replace(frame="coarse") for name, config in (whole | few).items()}
        again = rows_of(model.bind, cond, kept, args.rounds, base, cached=True)
    rows += [row | {"run": f"TaylorSeer: {row['run']}"} for row in again]
    del model
    fast = RandomFlux(random_weights(FluxTransformer2DModel, device, dtype, **tiny), SCHNELL, text // 2, side)
    schnell = {
        "schnell, full, 4": FrescoConfig.full(4), "schnell + Fresco, 9": FrescoConfig.paper(9, ratio=0.4),
        "schnell + Fresco, 4": FrescoConfig.paper(4, stages=(1, 2, 1), ratio=0.4),
    }  # fmt: skip
    return rows + rows_of(fast.bind, fast.encode("a fox"), schnell, args.rounds, base)


def video_table(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> tuple[str, list[dict[str, Any]]]:
    """Return the size and the rows of HunyuanVideo, at the largest size of VIDEO_SIZES whose full forward fits."""
    from fresco.backends.hunyuan_video import HunyuanVideoDenoiser, HunyuanVideoFamily

    given: dict[str, Any] = TINY_VIDEO if args.tiny else {}
    text = 8 if args.tiny else 256
    transformer = random_weights(HunyuanVideoTransformer3DModel, device, dtype, guidance_embeds=True, **given)
    family = HunyuanVideoFamily(transformer)
    config, flops = transformer.config, family.flops(text)
    cond = Conditioning("a fox", {
        "prompt_embeds": torch.randn(text, config.text_embed_dim), "mask": torch.ones(text),
        "pooled": torch.randn(config.pooled_projection_dim),
    })  # fmt: skip
    sizes = [(5, 80, 112)] if args.tiny else VIDEO_SIZES
    for size in sizes:

        def bind(settings: FrescoConfig, size: tuple[int, int, int] = size) -> Any:
            return HunyuanVideoDenoiser(
                family, native_size=size, pixels_per_token=16, schedule=FlowSchedule({"shift": 7.0}), flops=flops,
                device=device, frame=settings.frame, guidance=6.0, frame_stride=4,
            )  # fmt: skip

        try:
            next(sample(bind(FrescoConfig.full(1)), cond, FrescoConfig.full(1)))
        except ModelError as error:
            print(f"{size}: {error}")
            continue
        return " x ".join(map(str, size)), rows_of(bind, cond, fresco_runs((5,) if args.tiny else (18,)), args.rounds, None)
    raise SystemExit("no size fits")


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table."""
    names = ("run", "seconds", "TFLOPs", "FLOPs x", "seconds x", "share", "overhead", "waits")
    print(f"\n{title}\n\n| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for row in rows:
        cells = [
            row["run"], f"{row['seconds']:.3f}", f"{row['flops'] / 1e12:.4g}", f"{row['flops_x']:.2f}",
            f"{row['seconds_x']:.2f}", f"{row['share']:.3f}", f"{row['overhead']:.2%}", str(row["waits"]),
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the tables, and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048], help="sides in pixels")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--video", action="store_true", help="HunyuanVideo, too")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU: tests the script, measures nothing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny runs the script without one")
    device = torch.device("cpu" if args.tiny else "cuda")
    dtype = torch.float32 if args.tiny else torch.bfloat16
    name = "a CPU, tiny models" if args.tiny else torch.cuda.get_device_name()
    found: dict[str, Any] = {"device": name, "torch": torch.__version__}
    with torch.no_grad():
        for side in args.sizes:
            found[f"FLUX.1, {side} x {side}"] = image_table(side, args, device, dtype)
        if args.video:
            size, rows = video_table(args, device, dtype)
            found[f"HunyuanVideo, {size}"] = rows
    if args.json:
        print(json.dumps(found))
    else:
        for title, rows in found.items():
            if isinstance(rows, list):
                table(f"{title}, random weights, on {name}", rows)
    return found


if __name__ == "__main__":
    main()
