"""What every transformer family is tested for, on tiny random pipelines of the real classes: one `Case` per pipeline.

A test file makes its cases and calls the `check_*` functions; each compares with the stock pipeline or class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import AutoencoderTiny
from torch.utils.flop_counter import FlopCounterMode

import fresco
from fresco.backends.family import Family, Seating, Shape, seated, seating
from fresco.backends.hub import gb
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


def check_denoiser_is_the_pipeline(case: Case, steps: tuple[int, ...] = (1, 2, 5)) -> None:
    """`sample()` in full ends at the pipeline's latents."""
    for guided in case.ways():
        for n in steps:
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


# (f) cost


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


# (g) the loaded model


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

    def test_mixed_path_is_stock_on_uniform_grids(self, case: Case) -> None:
        check_mixed_path_is_stock_on_uniform_grids(case)

    def test_mixed_forwards(self, case: Case) -> None:
        check_mixed_forwards(case)

    def test_plugin_is_the_sampler(self, case: Case) -> None:
        check_plugin_is_the_sampler(case)

    def test_offload(self, case: Case) -> None:
        check_offload(case)
