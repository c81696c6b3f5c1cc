"""`fresco.enable` on stock pipelines: equal to stock in full, equal to `sample()` in mixed runs, and gone afterwards."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FluxPipeline

import fresco
from fresco.backends.family import family_of
from fresco.backends.flow import FlowSchedule
from fresco.backends.flux import FluxDenoiser, FrescoAttnProcessor, uninstall
from fresco.config import FrescoConfig
from fresco.cost import TransformerShape
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.noise import NoiseField
from fresco.plugin import LatentNoise, PluginError, sources
from fresco.sampler import SamplerStep, sample
from fresco.tokens import Layout
from tests import families
from tests.tiny_flux import DEV, EDGE, SCHNELL, tiny_flux

ROWS, COLS, TEXT = 7, 9, 16
GIVEN: dict[str, Any] = {"height": ROWS * EDGE, "width": COLS * EDGE, "max_sequence_length": TEXT}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipelines")
    tiny_flux(True, DEV).save_pretrained(root / "dev")
    tiny_flux(False, SCHNELL).save_pretrained(root / "schnell")
    return root


@pytest.fixture(scope="module")
def pipes(saved: Path) -> dict[str, FluxPipeline]:
    found = {}
    for path in saved.iterdir():
        found[path.name] = FluxPipeline.from_pretrained(path, local_files_only=True)
        found[path.name].set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def case(pipes: dict[str, FluxPipeline]) -> families.Case:
    pipe: Any = pipes["dev"]
    family = family_of(pipe.transformer)

    @torch.no_grad()
    def encode(prompt: str) -> Conditioning:
        states, pooled, _ = pipe.encode_prompt(prompt, None, max_sequence_length=TEXT)
        return Conditioning(prompt, {"prompt_embeds": states[0], "pooled": pooled[0]})

    def bind(steps: int, guided: bool) -> Any:
        return FluxDenoiser(
            pipe.transformer, patch=2, native_size=(1, ROWS * EDGE, COLS * EDGE),
            schedule=FlowSchedule(pipe.scheduler.config),
            shape=TransformerShape.from_config(pipe.transformer.config, TEXT, EDGE), guidance=3.5,
            cfg_scale=2.5 if guided else 1.0, unconditional=encode("an owl") if guided else None,
        )  # fmt: skip

    def forward(*_: Any) -> torch.Tensor:
        raise AssertionError("tests/test_flux.py has the plain forwards")

    guided = {"true_cfg_scale": 2.5, "negative_prompt": "an owl"}
    return families.Case(pipe, family, (1, ROWS, COLS), GIVEN, bind, encode, forward, guided=guided)


class TestAdditions(families.Additions):
    """A LoRA, compiled blocks (more of them in tests/test_compile.py), feature caches."""


@pytest.fixture
def dev(pipes: dict[str, FluxPipeline]) -> Any:
    yield pipes["dev"]
    fresco.disable(pipes["dev"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state_of(pipe: Any) -> dict[str, Any]:
    """Return everything `enable` and a call touch."""
    return {
        "class": type(pipe), "scheduler": id(pipe.scheduler), "config": dict(pipe.config),
        "timesteps": pipe.scheduler.timesteps.tolist(), "pre": len(pipe.transformer._forward_pre_hooks),
        "post": len(pipe.transformer._forward_hooks), "forward": pipe.transformer.forward,
        "processors": {name: type(p) for name, p in pipe.transformer.attn_processors.items()},
    }  # fmt: skip


def by_hand(
    pipe: Any, prompt: str, config: FrescoConfig, seed: int, cfg: float = 1.0, guidance: float = 3.5
) -> list[SamplerStep]:
    """Return the run of `sample()` through the stock transformer, from the pipeline's own initial latents."""
    uninstall(pipe.transformer)

    @torch.no_grad()  # as in the pipeline: attention takes another kernel where a gradient is wanted
    def encode(text: str) -> Conditioning:
        states, pooled, _ = pipe.encode_prompt(text, None, max_sequence_length=TEXT)
        return Conditioning(text, {"prompt_embeds": states[0], "pooled": pooled[0]})

    shape = TransformerShape.from_config(pipe.transformer.config, TEXT, EDGE)
    bound = FluxDenoiser(
        pipe.transformer, patch=2, native_size=(1, ROWS * EDGE, COLS * EDGE), schedule=FlowSchedule(pipe.scheduler.config),
        shape=shape, frame=config.frame, guidance=guidance if pipe.transformer.config.guidance_embeds else None,
        cfg_scale=cfg, unconditional=encode("an owl") if cfg > 1 else None,
        record_attention=config.selection == "attention",
    )  # fmt: skip
    packed, _ = pipe.prepare_latents(1, 4, ROWS * EDGE, COLS * EDGE, pipe.transformer.dtype, "cpu", seeded(seed))
    latents = pipe._unpack_latents(packed, ROWS * EDGE, COLS * EDGE, pipe.vae_scale_factor)
    noise: Any = LatentNoise(latents[0][:, None].float().numpy(), 2, config.levels)
    if config.noise == "fresh" or config.transition == "restart":
        from fresco.plugin import _FreshAfter

        noise = _FreshAfter(noise)
    found = list(sample(bound, encode(prompt), config, noise=noise))
    uninstall(pipe.transformer)
    return found


def test_the_latents_are_the_field() -> None:
    """Given the hashed field's own finest pixels, every level and every detail is that field's; odd borders stay unit."""
    for rows, cols in ((8, 8), (4, 12)):
        fine = TokenGrid.uniform((1, rows, cols), 2, 2)
        field = NoiseField(5, 3, 2)
        given = LatentNoise(Layout(3, 2).unpack(torch.from_numpy(field.at(fine)), fine).numpy(), 2, 2)
        for level in range(3):
            grid = TokenGrid.uniform((1, rows, cols), 2, level)
            np.testing.assert_allclose(given.at(grid), field.at(grid), atol=1e-12)
            if level < 2:
                np.testing.assert_allclose(
                    given.details(grid, grid.expandable), field.details(grid, grid.expandable), atol=1e-12
                )
    rng = np.random.default_rng(0)
    odd = [LatentNoise(rng.standard_normal((4, 1, 14, 18)), 2, 1) for _ in range(60)]
    border = TokenGrid.uniform((1, 7, 9), 1, 0)
    at = border.coord[:, 2] == 4  # half of each such token lies beyond the canvas
    values = np.stack([noise.at(border)[at] for noise in odd])
    assert values.var() == pytest.approx(1, abs=0.05)
    assert abs(values.mean()) < 0.05
    again = LatentNoise(np.moveaxis(odd[0]._pixels[:, :14, :18], -1, 0), 2, 1)
    np.testing.assert_array_equal(again.at(border), odd[0].at(border))


@pytest.mark.parametrize(("shape", "levels", "patch"), [((1, 7, 9), 1, 2), ((2, 5, 6), 2, 1), ((1, 8, 6), 2, 2)])
def test_where_each_pixel_comes_from(shape: tuple[int, int, int], levels: int, patch: int) -> None:
    """One gather by `sources` is the layout's canvas, on grids of every mixture."""
    layout, grid = Layout(3, patch), TokenGrid.uniform(shape, levels, 0)
    fine = TokenGrid.uniform(shape, levels, levels)
    rng = np.random.default_rng(0)
    for _ in range(2 * levels + 1):
        x = torch.randn(len(grid), layout.dim)
        want = layout.gather(layout.canvas(x, grid), fine)
        at = torch.from_numpy(sources(grid, patch))
        got = x.reshape(len(grid), 3, patch**2).transpose(0, 1).reshape(3, -1)[:, at.flatten()]
        assert torch.equal(got.reshape(3, len(fine), patch**2).transpose(0, 1).reshape(len(fine), -1), want)
        grid, _ = grid.expand(grid.expandable & (rng.random(len(grid)) < 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "cfg"), [("dev", 1.0), ("dev", 2.5), ("schnell", 1.0), ("schnell", 4.0)])
def test_full_is_stock_bit_for_bit(saved: Path, name: str, cfg: float, dtype: torch.dtype) -> None:
    pipe = FluxPipeline.from_pretrained(saved / name, dtype=dtype, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    extra = {"true_cfg_scale": cfg, "negative_prompt": "an owl"} if cfg > 1 else {}
    for more in ({"output_type": "latent"}, {"output_type": "np"}, {"sigmas": [1.0, 0.7, 0.2, 0.1], "output_type": "latent"}):
        steps = {} if "sigmas" in more else {"num_inference_steps": 4}
        want = pipe("a fox", **GIVEN, **steps, **extra, **more, generator=seeded(1), num_images_per_prompt=2).images
        before = state_of(pipe)
        with fresco.enable(pipe, FrescoConfig.full(9)):  # the call's four steps count
            got = pipe("a fox", **GIVEN, **steps, **extra, **more, generator=seeded(1), num_images_per_prompt=2).images
        assert torch.equal(torch.as_tensor(got), torch.as_tensor(want))
        assert state_of(pipe) == before
        trace = fresco.last_trace(pipe)
        assert [len(e.grid) for e in trace.events] == [ROWS * COLS] * 4
        shape = TransformerShape.from_config(pipe.transformer.config, TEXT)
        assert trace.flops == pytest.approx(4 * 2 * (2 if cfg > 1 else 1) * shape.flops(ROWS * COLS))
        if "sigmas" in more and name == "schnell":
            np.testing.assert_allclose([e.sigma for e in trace.events], more["sigmas"], atol=1e-6)


MIXED = {
    "recommended": FrescoConfig.recommended(9, ratio=0.4, tau=None),
    "tau": FrescoConfig.recommended(9, tau=0.05),
    "paper": FrescoConfig.paper().replace(nfe=9, checks=2),
    "rewind": FrescoConfig(nfe=9, transition="rewind", frame="fine"),
    "two levels": FrescoConfig(nfe=9, levels=2, checks="every", selection="even", frame="coarse_corner"),
    "renoise_x0": FrescoConfig(nfe=9, transition="renoise_x0", stages=(3, 4, 2), selection="edge", checks=3),
    "restart": FrescoConfig(nfe=9, transition="restart", expansion="bilinear", selection="random"),
    "fresh": FrescoConfig(nfe=9, noise="fresh", transition="renoise"),
    "attention": FrescoConfig(nfe=9, selection="attention"),
}


@pytest.mark.parametrize(("name", "cfg"), [("dev", 1.0), ("schnell", 2.5)])
@pytest.mark.parametrize("which", MIXED)
def test_mixed_is_the_sampler_bit_for_bit(pipes: dict[str, FluxPipeline], name: str, cfg: float, which: str) -> None:
    pipe, config = pipes[name], MIXED[which]
    want = by_hand(pipe, "a red fox", config, 3, cfg)
    extra = {"true_cfg_scale": cfg, "negative_prompt": "an owl"} if cfg > 1 else {}
    before, told = state_of(pipe), []

    def see(_: Any, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        told.append((float(t), tensors["latents"].shape))
        return tensors

    with fresco.enable(pipe, config):
        got = pipe(
            "a red fox", **GIVEN, **extra, num_inference_steps=9, generator=seeded(3), output_type="latent",
            callback_on_step_end=see,
        ).images[0]  # fmt: skip
    trace = fresco.last_trace(pipe)
    assert torch.equal(got, want[-1].x_next[torch.from_numpy(want[-1].grid_next.cells().ravel())])
    assert len({len(e.grid) for e in trace.events}) > 1
    for event, step in zip(trace.events, want, strict=True):
        assert (event.sigma, event.sigma_next, event.stage) == (step.sigma, step.sigma_next, step.stage)
        np.testing.assert_array_equal(event.grid.level, step.grid.level)
        np.testing.assert_array_equal(event.selected, step.selected)
        np.testing.assert_array_equal(event.variance, step.variance.numpy())
    assert {shape for _, shape in told} == {(1, ROWS * COLS, 16)}
    np.testing.assert_allclose([t for t, _ in told], [1000 * step.sigma for step in want], rtol=1e-6)
    assert state_of(pipe) == before


def test_bfloat16_keeps_the_samplers_float32_state(saved: Path) -> None:
    pipe = FluxPipeline.from_pretrained(saved / "dev", dtype=torch.bfloat16, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    want = by_hand(pipe, "a fox", MIXED["recommended"], 3)[-1]
    fresco.enable(pipe, MIXED["recommended"])
    got = pipe("a fox", **GIVEN, num_inference_steps=9, generator=seeded(3), output_type="latent").images[0]
    assert torch.equal(got, want.x_next[torch.from_numpy(want.grid_next.cells().ravel())].bfloat16())


def test_a_picture_and_its_trace(dev: Any, tmp_path: Path) -> None:
    """The ordinary call with its ordinary output; the trace keeps the picture and survives a file."""
    fresco.enable(dev, FrescoConfig.recommended(6, ratio=0.4, tau=None))
    image = dev("a fox", **GIVEN, num_inference_steps=8, generator=seeded(1)).images[0]
    assert image.size == (COLS * EDGE, ROWS * EDGE)
    trace = fresco.last_trace(dev)
    assert trace.picture is not None
    np.testing.assert_array_equal(trace.picture[0], np.asarray(image))
    assert (trace.config.nfe, trace.config.size, trace.prompt) == (8, (1, ROWS * EDGE, COLS * EDGE), "a fox")
    trace.save(tmp_path / "run.npz")
    assert fresco.Trace.load(tmp_path / "run.npz").flops == trace.flops
    full = TransformerShape.from_config(dev.transformer.config, TEXT).flops(ROWS * COLS)
    assert trace.flops < 0.85 * 8 * full
    again = dev("a fox", **GIVEN, num_inference_steps=8, generator=seeded(1)).images[0]
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))
    other = dev("a fox", **GIVEN, num_inference_steps=8, generator=seeded(2)).images[0]
    assert np.abs(np.asarray(other).astype(int) - np.asarray(image).astype(int)).mean() > 1


@pytest.mark.parametrize("selection", ["random", "variance"])
def test_two_prompts_share_their_tokens(dev: Any, selection: str) -> None:
    """Where the rule does not look at the pictures, each is what it is alone; where it does, it sees the mean variance."""
    config = FrescoConfig(nfe=7, selection=selection, frame="coarse")
    latents = torch.randn(2, ROWS * COLS, 16, generator=seeded(4))
    given = {**GIVEN, "num_inference_steps": 7, "output_type": "latent"}
    fresco.enable(dev, config)
    both = dev(["a fox", "an owl"], **given, latents=latents).images
    events = fresco.last_trace(dev).events
    alone, variances = [], []
    for prompt, start in (("a fox", latents[:1]), ("an owl", latents[1:])):
        alone.append(dev(prompt, **given, latents=start).images[0])
        variances.append([e.variance for e in fresco.last_trace(dev).events])
    if selection == "random":
        torch.testing.assert_close(both, torch.stack(alone), atol=2e-4, rtol=0)
    low = [i for i, e in enumerate(events) if e.stage == "low"][1:]
    for i in low:
        np.testing.assert_allclose(events[i].variance, (variances[0][i] + variances[1][i]) / 2, rtol=1e-3)
    fresco.enable(dev, FrescoConfig(nfe=7, selection="attention"))
    with pytest.raises(PluginError, match="one picture per call"):
        dev(["a fox", "an owl"], **given, latents=latents)


def test_interruption_leaves_nothing_behind(dev: Any) -> None:
    """A callback that raises, one that sets `_interrupt`, and then an ordinary call that is none the worse."""
    before = state_of(dev)
    fresco.enable(dev, MIXED["recommended"])
    enabled = state_of(dev)
    given = {**GIVEN, "num_inference_steps": 9, "output_type": "latent"}
    want = dev("a fox", **given, generator=seeded(1)).images

    def fail(*_: Any) -> dict[str, Any]:
        raise KeyError("stop here")

    with pytest.raises(KeyError, match="stop here"):
        dev("a fox", **given, generator=seeded(1), callback_on_step_end=fail)
    assert state_of(dev) == enabled
    assert len(fresco.last_trace(dev).events) == 1

    def stop(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 5
        return tensors

    early = dev("a fox", **given, generator=seeded(1), callback_on_step_end=stop).images
    assert early.shape == want.shape
    assert torch.isfinite(early).all()
    assert not torch.equal(early, want)
    trace = fresco.last_trace(dev)
    assert (len(trace.events), trace.picture) == (6, None)
    assert torch.equal(dev("a fox", **given, generator=seeded(1)).images, want)
    fresco.disable(dev)
    fresco.disable(dev)  # a second time does nothing
    assert state_of(dev) == before
    assert type(dev) is FluxPipeline


def test_a_callback_may_change_the_latents(dev: Any) -> None:
    """In full as in stock; in a mixed run a constant added everywhere moves every token by it, odd borders too."""
    given = {**GIVEN, "num_inference_steps": 6, "output_type": "latent"}

    def nudge(_: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] + (0.5 if step == 1 else 0.0)}

    want = dev("a fox", **given, generator=seeded(1), callback_on_step_end=nudge).images
    fresco.enable(dev, FrescoConfig.full(6))
    assert torch.equal(dev("a fox", **given, generator=seeded(1), callback_on_step_end=nudge).images, want)

    fresco.enable(dev, FrescoConfig(nfe=6, stages=(3, 2, 1), frame="coarse"))
    for at in (0, 3, 4):  # what the step after it sees is coarse, mixed, fine
        tokens: list[torch.Tensor] = []
        handle = dev.transformer.x_embedder.register_forward_pre_hook(lambda _, args, out=tokens: out.append(args[0][0]))

        def once(_: Any, step: int, t: Any, tensors: dict[str, Any], at: int = at) -> dict[str, Any]:
            return {"latents": tensors["latents"] + 0.5} if step == at else tensors

        try:
            for callback in (None, once):
                dev("a fox", **given, generator=seeded(1), callback_on_step_end=callback)
        finally:
            handle.remove()
        for step in range(at + 1):
            assert torch.equal(tokens[step], tokens[6 + step])
        count = len(tokens[at + 1])
        assert {0: count == 20, 3: 20 < count < 63, 4: count == 63}[at]
        torch.testing.assert_close(tokens[6 + at + 1] - tokens[at + 1], torch.full_like(tokens[at + 1], 0.5), atol=1e-5, rtol=0)


def test_another_thread_and_another_pipeline_stay_stock(dev: Any) -> None:
    """A second pipeline on the same transformer, called from the first one's callback in another thread, sees no hook."""
    other = FluxPipeline(**dev.components)
    other.scheduler = FlowMatchEulerDiscreteScheduler.from_config(dev.scheduler.config)
    other.set_progress_bar_config(disable=True)
    given = {**GIVEN, "num_inference_steps": 3, "output_type": "latent"}
    want = other("an owl", **given, generator=seeded(2)).images
    got: list[torch.Tensor] = []

    def meanwhile(_: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        thread = threading.Thread(target=lambda: got.append(other("an owl", **given, generator=seeded(2)).images))
        thread.start()
        thread.join()
        return tensors

    fresco.enable(dev, MIXED["paper"])
    dev("a fox", **given | {"num_inference_steps": 9}, generator=seeded(1), callback_on_step_end=meanwhile)
    assert len(got) == 9
    assert all(torch.equal(image, want) for image in got)
    with pytest.raises(PluginError, match="no Fresco run yet"):
        fresco.last_trace(other)


def test_offload_hooks_and_a_shift_set_by_hand(saved: Path) -> None:
    """Model offload rewrites `forward`; the result is the same. A shift set on the scheduler counts in every stage."""
    pipe = FluxPipeline.from_pretrained(saved / "schnell", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    given = {**GIVEN, "num_inference_steps": 9, "output_type": "latent"}
    fresco.enable(pipe, MIXED["recommended"])
    want = pipe("a fox", **given, generator=seeded(1)).images
    plain = pipe.transformer.forward
    _, hook = cpu_offload_with_hook(pipe.transformer, "cpu")
    assert pipe.transformer.forward is not plain
    assert torch.equal(pipe("a fox", **given, generator=seeded(1)).images, want)
    hook.remove()
    fresco.enable(pipe, MIXED["recommended"].replace(transition="carry", checks="every"))  # which keeps to the grid
    pipe.scheduler.set_shift(3.0)
    pipe("a fox", **given, generator=seeded(1))
    sigmas = [e.sigma for e in fresco.last_trace(pipe).events]
    u = 1 - np.arange(9) / 9
    np.testing.assert_allclose(sigmas, 3 * u / (1 + 2 * u), rtol=1e-5)


def test_a_feature_cache_may_be_on(saved: Path) -> None:
    """A cache that can never hit changes nothing, though the number of tokens changes under it."""
    pipe = FluxPipeline.from_pretrained(saved / "schnell", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    given = {**GIVEN, "num_inference_steps": 9, "output_type": "latent"}
    config = MIXED["recommended"].replace(frame="coarse")
    fresco.enable(pipe, config)
    want = pipe("a fox", **given, generator=seeded(1)).images
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    torch.testing.assert_close(pipe("a fox", **given, generator=seeded(1)).images, want, atol=1e-5, rtol=0)


def test_what_cannot_be_enabled(dev: Any) -> None:
    with pytest.raises(PluginError, match="str is not supported: it has no transformer; enable a stock"):
        fresco.enable("pipe")
    with pytest.raises(PluginError, match="pass guidance_scale"):
        fresco.enable(dev, FrescoConfig.recommended(guidance=3.0))
    stock = dev.scheduler
    dev.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(PluginError, match="FlowMatchHeunDiscreteScheduler; Fresco needs FlowMatchEuler"):
        fresco.enable(dev)
    dev.scheduler = stock
    assert type(dev) is FluxPipeline
    for config, call, said in (
        (FrescoConfig(nfe=9, stages=(3, 4, 2)), {"num_inference_steps": 8}, "call with num_inference_steps=9"),
        (FrescoConfig(nfe=9, size=(1, 16, 16)), {"num_inference_steps": 9}, "leave the size to the call"),
        (FrescoConfig(nfe=4), {"sigmas": [1.0, 0.5, 0.3, 0.1]}, "sets sigmas of its own"),
    ):
        fresco.enable(dev, config)
        before = state_of(dev)
        with pytest.raises(PluginError, match=said):
            dev("a fox", **GIVEN, **call)
        assert state_of(dev) == before
    assert not any(isinstance(p, FrescoAttnProcessor) for p in dev.transformer.attn_processors.values())
