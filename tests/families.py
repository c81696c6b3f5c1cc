"""What every transformer family is tested for, on tiny random pipelines of the real classes: one `Case` per pipeline.

A test file makes its cases and calls the `check_*` functions; each compares with the stock pipeline or class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import (
    AutoencoderTiny,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import (
    SeaCacheConfig,
    apply_first_block_cache,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)
from diffusers.hooks.sea_cache import apply_sea_cache
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import fresco
from fresco.backends.family import Family, Seating, Shape, seated, seating
from fresco.backends.hub import compile_blocks, gb
from fresco.backends.stock import StockDenoiser
from fresco.config import FrescoConfig
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.plugin import LatentNoise
from fresco.sampler import SamplerStep, sample
from fresco.tokens import Layout

MIXED = {
    "recommended": FrescoConfig.recommended(9, ratio=0.4, tau=None, frame="auto"),
    "paper": FrescoConfig.paper().replace(nfe=9, checks=2, frame="auto"),
    "two levels": FrescoConfig(nfe=9, levels=2, checks="every", selection="even", frame="coarse_corner"),
    "rewind": FrescoConfig(nfe=9, transition="rewind", frame="fine"),
}


class Forced(TokenGrid):
    """A uniform grid that goes the way of mixed ones."""

    is_uniform = False


@dataclass
class Case:
    """A stock pipeline, how it is called, and the same model as a denoiser.

    Attributes:
        pipe: the pipeline, loaded from a folder that it was saved to.
        family: its transformer's family.
        shape: (frames, rows, cols) of the tokens that `call` makes; odd, or they prove little.
        call: size and text length of a call.
        bind: (steps, guided) -> the denoiser of one run, with its `frame` left to "auto".
        encode: prompt -> conditioning, by the pipeline's own encoder.
        forward: (transformer, latents, sigma, conditioning) -> velocity: one plain forward of the class, written out,
            without guidance; latents and velocity as the pipeline holds them, of any (frames, rows, cols), which is the
            last argument.
        guided: what turns guidance on in a call; None where the pipeline has none.
        plain: what turns it off.
        close: tolerance, relative to the largest number, where guidance is one batch in the pipeline and two calls in the
            denoiser; 0 is bit for bit.
        several: name of the argument for several results of a call.
        uncached: what the stock pipeline raises with a feature cache that it cannot have, and what the enabled one does, by
            the cache's name.
        graphs: most graphs that compiled blocks may take in mixed runs, for every number of tokens.
        steps: step counts at which the denoiser is held to the pipeline; without 1 where the stock scheduler, whose last sigma
            is stretched, divides by zero in a single step.
    """

    pipe: Any
    family: Family
    shape: Shape
    call: dict[str, Any]
    bind: Callable[[int, bool], StockDenoiser]
    encode: Callable[[str], Conditioning]
    forward: Callable[[Any, torch.Tensor, float, Conditioning, Shape], torch.Tensor]
    guided: dict[str, Any] | None = None
    plain: dict[str, Any] = field(default_factory=dict)
    close: float = 0.0
    several: str = "num_images_per_prompt"
    uncached: dict[str, tuple[str, str]] = field(default_factory=dict)
    graphs: int = 2
    steps: tuple[int, ...] = (1, 2, 5)

    def ways(self) -> list[bool]:
        """Return whether to guide: both, where the pipeline can."""
        return [False] if self.guided is None else [False, True]

    def run(self, steps: int, guided: bool = False, seed: int = 1, **change: Any) -> tuple[Any, torch.Tensor]:
        """Return (result of the pipeline's call, its last latents)."""
        seen = {}

        def see(_: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen["latents"] = tensors["latents"]
            return tensors

        extra = self.guided if guided and self.guided is not None else self.plain
        given = {"prompt": "a red fox", "output_type": "latent", "callback_on_step_end": see} | self.call | extra | change
        result = self.pipe(**given, num_inference_steps=steps, generator=seeded(seed), return_dict=False)[0]
        return result, seen["latents"]

    def initial(self, seed: int = 1) -> torch.Tensor:
        """Return the latents of one picture that a call starts from."""

        class Enough(Exception):
            pass

        seen: list[torch.Tensor] = []

        def stop(module: Any, args: Any, kwargs: Any) -> None:
            names = list(args) + [kwargs[name] for name in ("hidden_states", "x") if name in kwargs]
            first = names[0]
            seen.append(torch.stack([image[:, 0] for image in first]) if isinstance(first, list) else first)
            raise Enough

        handle = self.pipe.transformer.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with pytest.raises(Enough):
                self.run(2, seed=seed)
        finally:
            handle.remove()
        return seen[0][:1]

    def field(self, seed: int, levels: int) -> LatentNoise:
        """Return the initial latents of a call as a noise field."""
        fine = TokenGrid.uniform(self.shape, 1, 1)
        tokens = self.family.tokens(self.initial(seed))[0].float()
        pixels = Layout(self.family.channels, self.family.patch).unpack(tokens, fine).numpy()
        return LatentNoise(pixels, self.family.patch, levels)

    def sample(self, config: FrescoConfig, guided: bool = False, seed: int = 1) -> list[SamplerStep]:
        """Return the run of `sample()` from the latents of the pipeline's call."""
        bound = self.bind(config.nfe, guided)
        bound.frame = self.family.frame(config.frame)
        return list(sample(bound, self.encode("a red fox"), config, noise=self.field(seed, config.levels)))


def on(model: Any, family: Family) -> Family:
    """Return the family with everything it was told, of another transformer."""
    found = copy.copy(family)
    found.transformer = model
    return found


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reloaded(pipe: Any, folder: Path) -> Any:
    """Return the pipeline after a way through a real diffusers folder."""
    pipe.save_pretrained(folder)
    found = type(pipe).from_pretrained(folder, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def strong(*models: torch.nn.Module, scale: float = 0.25, seed: int = 0) -> None:
    """Draw weights large enough that attention is far from uniform and prompts differ; evaluation mode."""
    generator = seeded(seed)
    for model in models:
        for weight in model.parameters():
            weight.data = scale * torch.randn(weight.shape, generator=generator)
        model.eval()


def state_of(pipe: Any) -> dict[str, Any]:
    """Return everything that `enable` and a call touch."""
    modules = dict(pipe.transformer.named_modules())
    hooks = {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in modules.items()}
    return {
        "class": type(pipe), "scheduler": id(pipe.scheduler), "config": dict(pipe.config), "hooks": hooks,
        "attributes": {name: {key: id(value) for key, value in vars(m).items()} for name, m in modules.items()},
    }  # fmt: skip


def assert_near(got: torch.Tensor, want: torch.Tensor, close: float) -> None:
    """Assert equality, bit for bit where `close` is 0, else relative to the largest number wanted."""
    if close == 0:
        assert torch.equal(got, want), float((got - want).abs().max())
    else:
        torch.testing.assert_close(got, want, atol=close * float(want.abs().max()), rtol=0)


def noise_like(case: Case, grid: TokenGrid, seed: int = 0) -> torch.Tensor:
    """Return a state (N, D)."""
    return torch.randn(len(grid), case.family.channels * case.family.patch**2, generator=seeded(seed))


def mixed_grid(shape: Shape, levels: int = 1) -> TokenGrid:
    """Return a grid with every level in it, a third of the coarse tokens promoted."""
    grid = TokenGrid.uniform(shape, levels, 0)
    for level in range(levels):
        grid = grid.expand((grid.level == level) & (np.arange(len(grid)) % 3 == 0))[0]
    return grid


# (a) the pipeline in full


def check_full_is_stock(case: Case, steps: int = 3) -> None:
    """`enable` with a full configuration changes no bit of a call and leaves nothing behind."""
    case.run(2)  # what a first call makes for itself is no trace of ours
    for guided in case.ways():
        for change in ({case.several: 2}, {"output_type": "np"}):
            want, latents = case.run(steps, guided, **change)
            before = state_of(case.pipe)
            with fresco.enable(case.pipe, FrescoConfig.full(9)):  # the call's steps count
                got, ours = case.run(steps, guided, **change)
            assert torch.equal(torch.as_tensor(got), torch.as_tensor(want))
            assert torch.equal(ours, latents)
            assert state_of(case.pipe) == before
            events = fresco.last_trace(case.pipe).events
            assert [len(event.grid) for event in events] == [int(np.prod(case.shape))] * steps


# (b) the denoiser in full


def check_denoiser_is_the_pipeline(case: Case) -> None:
    """`sample()` in full ends at the pipeline's latents."""
    for guided in case.ways():
        for n in case.steps:
            _, latents = case.run(n, guided)
            *_, last = case.sample(FrescoConfig.full(n), guided)
            want = case.family.tokens(latents)[0].float()
            assert_near(last.x_next, want, case.close if guided else 0.0)
            assert float(want.std()) > 0.01


# (c) the mixed path against plain forwards


def check_mixed_path_is_stock_on_uniform_grids(case: Case) -> None:
    """All fine, and all coarse, through the mixed path: the class's own forward at that resolution, bit for bit."""
    cond, fine = case.encode("a red fox"), TokenGrid.uniform(case.shape, 1, 1)
    coarse = TokenGrid.uniform(case.shape, 1, 0)
    for grid, frame in ((fine, "fine"), (coarse, "coarse"), (coarse, "coarse_corner")):
        forced = Forced(grid.shape, grid.levels, grid.level, grid.coord)
        dense = (case.shape[0], *(1 + grid.coord[:, 1:].max(axis=0)).tolist())
        x = noise_like(case, grid)
        with torch.no_grad():
            latents = case.family.latents(x[None], dense)
            want = case.family.tokens(case.forward(case.pipe.transformer, latents, 0.6, cond, dense))[0]
        for which, name in ((grid, "auto"), (forced, frame)):
            bound = case.bind(4, False)
            bound.frame = case.family.frame(name)
            assert torch.equal(bound(x, which, 0.6, cond), want.float()), (name, len(grid))
    assert seating() is None


def check_install(case: Case) -> None:
    """Installed, stock forwards stay stock; the undo leaves nothing; a second install brings nothing to undo."""
    model = copy.deepcopy(case.pipe.transformer)
    family = on(model, case.family)
    family.install()  # a copy may have come with hooks: take all away, by undoing an install that finds none
    for module in model.modules():
        module._forward_hooks.clear()
        for name in [name for name, value in vars(module).items() if isinstance(value, MethodType)]:
            delattr(module, name)
    cond, fine = case.encode("a red fox"), TokenGrid.uniform(case.shape, 1, 1)
    latents = family.latents(noise_like(case, fine)[None], case.shape)
    with torch.no_grad():
        want = case.forward(model, latents, 0.6, cond, case.shape)
        before = state_of(SimpleNamespace(transformer=model, scheduler=None, config={}))
        undo, second = family.install(), family.install()
        second()
        assert torch.equal(case.forward(model, latents, 0.6, cond, case.shape), want)
        undo()
    assert state_of(SimpleNamespace(transformer=model, scheduler=None, config={})) == before


# (d) mixed grids


def check_mixed_forwards(case: Case) -> None:
    """Finite, repeatable, blind to the order of tokens, not to their places nor to the frame."""
    cond = case.encode("a red fox")
    for levels in (1, 2):
        grid, bound = mixed_grid(case.shape, levels), case.bind(4, False)
        x = noise_like(case, grid)
        results = []
        for frame in case.family.frames:
            bound.frame = frame
            want = bound(x, grid, 0.5, cond)
            assert want.isfinite().all()
            assert torch.equal(bound(x, grid, 0.5, cond), want)
            order = np.random.default_rng(0).permutation(len(grid))
            shuffled = TokenGrid(grid.shape, grid.levels, grid.level[order], grid.coord[order])
            got = bound(x[order], shuffled, 0.5, cond)
            torch.testing.assert_close(got / want.std(), want[order] / want.std(), atol=1e-5, rtol=0)
            # Two fine tokens change places and nothing else: the others see it.
            a, b = np.flatnonzero(grid.level == levels)[[0, -1]]
            coord = grid.coord.copy()
            coord[[a, b]] = coord[[b, a]]
            moved = bound(x, TokenGrid(grid.shape, grid.levels, grid.level, coord), 0.5, cond)
            others = np.delete(np.arange(len(grid)), [a, b])
            assert float((moved - want)[others].abs().max()) > 1e-4 * float(want.std())
            results.append(want)
        for i, one in enumerate(results):
            for other in results[:i]:
                assert float((one - other).abs().max()) > 1e-4 * float(one.std())


# (e) the plugin


def check_plugin_is_the_sampler(case: Case, names: tuple[str, ...] = tuple(MIXED)) -> None:
    """A mixed call of the enabled pipeline is `sample()` on the denoiser, from the call's own latents."""
    case.run(2)  # what a first call makes for itself is no trace of ours
    for name in names:
        for guided in case.ways() if name == names[0] else [False]:
            config = MIXED[name]
            want = case.sample(config, guided, seed=3)
            before = state_of(case.pipe)
            with fresco.enable(case.pipe, config):
                _, latents = case.run(config.nfe, guided, seed=3)
            assert state_of(case.pipe) == before
            trace = fresco.last_trace(case.pipe)
            got = case.family.tokens(latents)[0].float()
            order = torch.from_numpy(want[-1].grid_next.cells().ravel())
            assert_near(got, want[-1].x_next[order].to(latents.dtype).float(), case.close if guided else 0.0)
            assert len({len(event.grid) for event in trace.events}) > 1
            for event, step in zip(trace.events, want, strict=True):
                assert (event.sigma, event.sigma_next) == (step.sigma, step.sigma_next)
                np.testing.assert_array_equal(event.grid.level, step.grid.level)
            bound = case.bind(config.nfe, guided)
            assert trace.flops == pytest.approx(sum(bound.flops(len(step.grid)) for step in want), rel=1e-9)


def check_half(case: Case) -> None:
    """The same in bfloat16, of a case that has such weights: places and the sampler's state stay float32."""
    assert case.pipe.transformer.dtype == torch.bfloat16
    assert case.guided is None  # guided velocities are rounded in the pipeline's own order
    check_full_is_stock(case, steps=2)
    check_plugin_is_the_sampler(case, ("recommended",))


def check_offload(case: Case) -> None:
    """Model offload rewrites the transformer's `forward`; a mixed run is the same."""
    config, pipe = MIXED["recommended"], case.pipe
    with fresco.enable(pipe, config):
        want = case.run(config.nfe)[1]
        plain = pipe.transformer.forward
        _, hook = cpu_offload_with_hook(pipe.transformer, "cpu")
        try:
            assert pipe.transformer.forward is not plain
            assert torch.equal(case.run(config.nfe)[1], want)
        finally:
            hook.remove()


# (f) what people put on a pipeline: a LoRA, compiled blocks, feature caches


def lora_file(transformer: Any, path: Path, scale: float = 0.3) -> dict[str, torch.Tensor]:
    """Write a LoRA of rank 2 on the query projections, as `save_lora_weights` does, and return each weight's change."""
    generator, tensors, changes = seeded(11), {}, {}
    for name, module in transformer.named_modules():
        if name.endswith((".to_q", ".to_qkv_mlp_proj")):  # the latter is FLUX.2's, all projections in one
            down, up = (
                torch.randn(size, generator=generator) * scale for size in ((2, module.in_features), (module.out_features, 2))
            )
            tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
            changes[f"{name}.weight"] = up @ down
    save_file(tensors, path)
    return changes


def transformers_of(case: Case) -> list[Any]:
    """Return the pipeline's transformers; Wan 2.2 A14B has two."""
    return [part for part in (case.pipe.transformer, getattr(case.pipe, "transformer_2", None)) if part is not None]


def check_lora(case: Case, folder: Path) -> None:
    """Loaded by the pipeline's own loader: full is stock, bit for bit, a mixed call the sampler; unloaded, it is gone."""
    plain = case.run(3)[1]
    assert len(lora_file(case.pipe.transformer, folder / "style.safetensors")) >= 2
    case.pipe.load_lora_weights(str(folder), weight_name="style.safetensors")
    try:
        want = case.run(3)[1]
        assert float((want - plain).abs().max()) > 0.01
        with fresco.enable(case.pipe, FrescoConfig.full(3)):
            assert torch.equal(case.run(3)[1], want)
        check_plugin_is_the_sampler(case, ("recommended",))
    finally:
        case.pipe.unload_lora_weights()
    assert torch.equal(case.run(3)[1], plain)


def check_compiled(case: Case) -> None:
    """Compiled blocks are the same to rounding, mixed and full, and no number of tokens is compiled anew."""
    mixed = FrescoConfig(nfe=4, stages=(1, 2, 1), selection="random", ratio=0.4, checks="every", frame="coarse")
    configs = (mixed, mixed.replace(ratio=0.7), FrescoConfig.full(4))
    counts, tokens = [], set()

    def made() -> list[torch.Tensor]:
        found = []
        for seed, config in enumerate(configs):
            with fresco.enable(case.pipe, config):
                found.append(case.run(4, seed=seed)[1])
            counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
            tokens.update(len(event.grid) for event in fresco.last_trace(case.pipe).events)
        return found

    want = made()
    assert len(tokens) >= 4
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    counts.clear()
    try:
        for transformer in transformers_of(case):
            compile_blocks(transformer, backend="eager")  # the tracer as it is, without the code generator
        got = made()
    finally:
        for module in (module for transformer in transformers_of(case) for module in transformer.modules()):
            module._compiled_call_impl = None
        torch._dynamo.reset()
    assert 0 < counts[0] <= case.graphs
    assert counts[0] == counts[1]  # other numbers of tokens
    assert counts[2] <= 2 * counts[1]  # the stock positions of a full run may be another kind of view (Wan)
    for one, other in zip(got, want, strict=True):
        assert_near(one, other, 1e-5)


NO_CONTEXT = dict.fromkeys(("taylorseer", "first block"), ("No cache context is set",) * 2)  # the pipeline opens none
STEPS = 9
OUTLIER = 8  # a step whose ratio says that features change too much to be kept
CACHES: dict[str, tuple[Callable[[], Any], Callable[..., None]]] = {
    "taylorseer": (
        lambda: TaylorSeerCacheConfig(
            cache_interval=3, disable_cache_before_step=2, taylor_factors_dtype=torch.float32,
            cache_identifiers=[r"[a-z_]*(blocks|layers)\.\d+\.(attn1?|attention)"],  # by default Wan's and LTX's stay out
        ),
        apply_taylorseer_cache,
    ),
    "first block": (lambda: FirstBlockCacheConfig(threshold=1e9), apply_first_block_cache),  # hits wherever it may
    "mag": (
        lambda: MagCacheConfig(
            mag_ratios=[0.1 if step == OUTLIER else 1.0 for step in range(STEPS)], num_inference_steps=STEPS,
            retention_ratio=0.2, max_skip_steps=1, threshold=0.5,
        ),
        apply_mag_cache,
    ),
    "attention broadcast": (
        lambda: PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 1001),
            cross_attention_block_skip_range=2, cross_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=lambda: 500, spatial_attention_block_identifiers=("blocks", "layers"),
            cross_attention_block_identifiers=("blocks", "layers"),
        ),
        apply_pyramid_attention_broadcast,
    ),
    "sea": (lambda: SeaCacheConfig(threshold=1e9, max_consecutive_cached=2), apply_sea_cache),
}  # fmt: skip


def computed(kind: str, promoted: list[bool], told: bool) -> list[bool]:
    """Return at which steps a cache of CACHES computes what it keeps, by its own rule, written out.

    Args:
        kind: its name.
        promoted: of each step, whether its tokens are others than the step's before.
        told: whether the pipeline tells caches its steps; SeaCache keeps nothing otherwise.
    """
    found: list[bool] = []
    since, skipped = 0, 0  # steps since the tokens are these, and steps without computing until now
    for step, new in enumerate(promoted):
        since = 0 if new else since + 1 if step else 0
        fresh = since == 0
        now = {
            "taylorseer": since < 2 or since % 3 == 0,
            "first block": fresh,
            "mag": fresh or step < round(0.2 * STEPS) or skipped == 1 or step == OUTLIER,
            "attention broadcast": since % 2 == 0,
            "sea": not told or fresh or skipped == 2 or step == len(promoted) - 1,
        }[kind]
        skipped = 0 if now else skipped + 1
        found.append(now)
    return found


def check_cache(case: Case, kind: str, told: bool = False) -> None:
    """Full is the stock pipeline with the same cache, bit for bit; a promotion starts the cache anew.

    Args:
        case: the pipeline.
        kind: a name in CACHES.
        told: whether the pipeline tells caches its steps.
    """
    plain = case.run(STEPS)[1]
    log: list[bool] = []
    handles = [handle for transformer in transformers_of(case) for handle in watched(transformer, log)]
    make, apply = CACHES[kind]
    for transformer in transformers_of(case):
        if hasattr(transformer, "enable_cache"):
            transformer.enable_cache(make())
        else:  # SD3 and Z-Image
            apply(transformer, make())
    try:
        if kind in case.uncached:
            stock, ours = case.uncached[kind]
            with pytest.raises(Exception, match=stock):
                case.run(STEPS)
            with fresco.enable(case.pipe, FrescoConfig(nfe=STEPS)), pytest.raises(Exception, match=ours):
                case.run(STEPS)
            return
        for guided in reversed(case.ways()):
            forget(case)
            log.clear()
            want = case.run(STEPS, guided)[1]
            if not guided:
                assert log == computed(kind, [False] * STEPS, told)
                assert torch.equal(want, plain) == all(log)
            with fresco.enable(case.pipe, FrescoConfig.full(STEPS)):
                assert torch.equal(case.run(STEPS, guided)[1], want)
        config = FrescoConfig(nfe=STEPS, stages=(4, 3, 2), selection="random", ratio=0.4, checks=1)
        with fresco.enable(case.pipe, config):
            log.clear()
            got = case.run(STEPS)[1]
            grids = [len(event.grid) for event in fresco.last_trace(case.pipe).events]
            changed = [False, *(one != other for one, other in pairwise(grids))]
            assert changed == [False] * 4 + [True, False, False, True, False]
            assert log == computed(kind, changed, told)
            assert got.isfinite().all()
            assert torch.equal(case.run(STEPS)[1], got)
    finally:
        fresco.disable(case.pipe)
        for handle in handles:
            handle.remove()
        for transformer in transformers_of(case):
            uncache(transformer)
    assert torch.equal(case.run(STEPS)[1], plain)


def watched(transformer: Any, log: list[bool]) -> list[Any]:
    """Note of every forward whether the last block's attention was computed; return the hooks' handles."""
    block = [part for part in transformer.children() if isinstance(part, torch.nn.ModuleList) and part[0].children()][-1][-1]
    attention = next(part for name, part in block.named_children() if name.startswith("attn") or name == "attention")
    inner = next(part for part in attention.modules() if isinstance(part, torch.nn.Linear))
    seen: list[bool] = []

    def finish(*_: Any) -> None:
        log.append(bool(seen))
        seen.clear()

    return [inner.register_forward_hook(lambda *_: seen.append(True)), transformer.register_forward_hook(finish)]


def forget(case: Case) -> None:
    """Reset every cache: pipelines themselves do so after a call, but only those of classes with `enable_cache`."""
    for module in (module for transformer in transformers_of(case) for module in transformer.modules()):
        if hasattr(module, "_diffusers_hook"):
            module._diffusers_hook.reset_stateful_hooks(recurse=False)


def uncache(transformer: Any) -> None:
    """Take every cache's hooks off a transformer."""
    if getattr(transformer, "is_cache_enabled", False):
        transformer.disable_cache()
    for module in transformer.modules():
        registry = vars(module).pop("_diffusers_hook", None)
        for name in [] if registry is None else list(registry.hooks):
            registry.remove_hook(name, recurse=False)


# (g) cost


def check_flops(case: Case, text: int, shapes: tuple[Shape, ...] = ((1, 5, 7), (1, 9, 13))) -> None:
    """The count is that of a plain forward of the class at token counts that it was not fitted to."""
    model = copy.deepcopy(case.pipe.transformer).to("meta")
    flops = case.family.flops(text)
    cond = case.encode("a red fox")
    cond = Conditioning(cond.prompt, {name: tensor.to("meta") for name, tensor in cond.tensors.items()})
    for shape in shapes:
        tokens = int(np.prod(shape))
        state = torch.zeros(1, tokens, case.family.channels * case.family.patch**2, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            case.forward(model, case.family.latents(state, shape), 0.6, cond, shape)
        assert flops(tokens) == pytest.approx(counter.get_total_flops(), rel=1e-12)
    # A mixed forward finds all it needs on the model's own device: on this one, any tensor of another stops it.
    grid, family = mixed_grid(case.shape), on(model, case.family)
    family.install()
    state = torch.zeros(1, len(grid), family.channels * family.patch**2, device="meta")
    where = Seating(grid, family.frames[0], 0.6)
    args, kwargs = family.arguments((), family.example(text, torch.device("meta")) | {"return_dict": False}, state, where)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), seated(where):
        assert family.outgoing(model(*args, **kwargs)).device.type == "meta"
    assert flops(len(grid)) == pytest.approx(counter.get_total_flops(), rel=1e-12)


# (h) the loaded model


def check_model(case: Case, model: Any, guidance: float | None = None, **call: Any) -> None:
    """From text to picture the model is the pipeline: encoder, guidance, schedule, transformer, decoder.

    Args:
        case: the pipeline.
        model: the same, loaded from the pipeline's folder.
        guidance: of the run; None is the model's own.
        call: what makes the pipeline's call the same.
    """
    stride, edge = case.family.pixels(case.pipe)
    size = (1 + (case.shape[0] - 1) * stride, case.shape[1] * edge, case.shape[2] * edge)
    config = FrescoConfig.full(3, size=size, guidance=guidance)
    made, _ = case.run(3, output_type="np", **call)
    want = torch.as_tensor(made[0]).reshape(-1, *made[0].shape[-3:]).numpy()
    *_, last = sample(model.bind(config), model.encode("a red fox"), config, noise=case.field(1, 1))
    latent = Layout(case.family.channels, case.family.patch).unpack(last.x_next, last.grid_next)
    picture = model.decode(latent)
    assert picture.dtype == np.uint8
    assert picture.shape == want.shape == (size[0], size[1], size[2], 3)
    assert want.std() > 0.02
    np.testing.assert_allclose(picture / 255, want, atol=0.5 / 255 + 1e-3)
    assert model.bind(config).token_shape(None) == model.bind(config).token_shape(model.native_size)
    assert f"needs {gb(sum(p.numel() for p in parameters_of(model.pipe)) * 4)} for its weights" in model.needs
    mixed = MIXED["recommended"].replace(size=size, guidance=guidance)
    for step in sample(model.bind(mixed), model.encode("a red fox"), mixed):
        assert step.x_next.isfinite().all()


def check_preview(model: Any, shape: Shape) -> None:
    """The tiny autoencoder's own decoding of the sampler's latent; without one, the full decoder's."""
    latent = torch.randn(model.family.channels, shape[0], 2 * shape[1], 2 * shape[2], generator=seeded(0))
    if model.preview_vae is None:
        np.testing.assert_array_equal(model.preview(latent), model.decode(latent))
        return
    with torch.no_grad():
        made = model.preview_vae.decode(latent[:, 0][None]).sample[0]
    want = ((made.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(model.preview(latent)[0], want)
    assert (model.preview(latent) != model.decode(latent)).any()


def parameters_of(pipe: Any) -> list[torch.Tensor]:
    """Return all weights of a pipeline."""
    return [p for part in pipe.components.values() if isinstance(part, torch.nn.Module) for p in part.parameters()]


def tiny_preview(folder: Path, channels: int) -> Path:
    """Save a tiny random autoencoder that doubles, and return where."""
    vae = AutoencoderTiny(
        latent_channels=channels, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    )  # fmt: skip
    vae.save_pretrained(folder)
    return folder


class Contract:
    """What every family promises; a test file's `class TestContract(families.Contract)` runs it on the file's own `case`."""

    def test_full_is_stock(self, case: Case) -> None:
        check_full_is_stock(case)

    def test_denoiser_is_the_pipeline(self, case: Case) -> None:
        check_denoiser_is_the_pipeline(case)

    def test_mixed_path_is_stock_on_uniform_grids(self, case: Case) -> None:
        check_mixed_path_is_stock_on_uniform_grids(case)

    def test_mixed_forwards(self, case: Case) -> None:
        check_mixed_forwards(case)

    def test_plugin_is_the_sampler(self, case: Case) -> None:
        check_plugin_is_the_sampler(case)

    def test_offload(self, case: Case) -> None:
        check_offload(case)


class Additions:
    """What people put on a pipeline, in full and in mixed runs; a test file runs it as it does `Contract`."""

    def test_lora(self, case: Case, tmp_path: Path) -> None:
        check_lora(case, tmp_path)

    def test_compiled(self, case: Case) -> None:
        check_compiled(case)

    @pytest.mark.parametrize("kind", CACHES)
    def test_cache(self, case: Case, kind: str) -> None:
        check_cache(case, kind)
