"""What every downloaded model shares, on tiny random pipelines of the real classes: options, single files, memory."""

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file

from fresco.backends import BACKENDS, BUNDLED, ModelError, load_model
from fresco.backends.flux_hub import CHECKPOINTS, FluxHubModel
from fresco.backends.hub import QUANTIZERS, HubModel, Options, _class_names, needs
from fresco.config import FrescoConfig
from fresco.sampler import sample
from tests.tiny_flux import tiny_flux

CONFIG = FrescoConfig.recommended(6, size=(1, 28, 36), ratio=0.4, tau=None)  # 7 x 9 tokens: odd
PHASES = {"coarse", "phase_aligned"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "flux-dev"
    tiny_flux().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine's own, and no hub."""
    for which in CHECKPOINTS.values():
        monkeypatch.delenv(which.env, raising=False)
    monkeypatch.setenv("FRESCO_TAEF1", str(tmp_path / "none"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> FluxHubModel:
    return load(folder)


def load(path: Path | str, dtype: str = "float32", **options: Any) -> FluxHubModel:
    found = load_model(f"flux-dev:{path}", device="cpu", dtype=dtype, **options)
    assert isinstance(found, FluxHubModel)
    return found


def states(model: Any, config: FrescoConfig = CONFIG) -> list[torch.Tensor]:
    return [step.x_next for step in sample(model.bind(config), model.encode("a red fox"), config)]


def test_the_options_are_named_once(folder: Path, monkeypatch: Any) -> None:
    from fresco.backends import OPTIONS

    assert tuple(Options.__dataclass_fields__) == OPTIONS
    for changes, said in (
        ({"quantize": "int3"}, "quantize is 'int3'; it must be one of nf4, int8"),
        ({"offload": "disk"}, "offload is 'disk'; it must be one of auto, none"),
        ({"loras": "x"}, r"unknown option\(s\) loras; choose from quantize, lora"),
        ({"offload": "model"}, "on a cpu leave it out"),
        ({"attention": "fast"}, "attention backend 'fast' cannot be used here"),
        ({"attention": "sage"}, "attention backend 'sage' cannot be used here"),
    ):
        with pytest.raises(ModelError, match=said):
            load(folder, **changes)
    monkeypatch.setattr("fresco.hosting.on_zero", lambda: True)
    with pytest.raises(ModelError, match="compile cannot be used on ZeroGPU"):
        load(folder, compile=True)
    for name in BUNDLED:
        assert name in BACKENDS
        with pytest.raises(ModelError, match=f"{name} takes no option compile"):
            load_model(name, compile=True)


@pytest.mark.parametrize("name", [name for name in BACKENDS if name not in BUNDLED])
def test_every_name_has_its_checkpoint(name: str) -> None:
    """In the module that the registry says, for a pipeline whose transformer has a family."""
    import diffusers

    from fresco.backends.family import FAMILIES

    module = importlib.import_module(BACKENDS[name])
    which = module.CHECKPOINTS[name]
    assert (which.name, callable(module.load)) == (name, True)
    takes = _class_names(getattr(diffusers, which.pipeline), "transformer")
    assert set(takes) <= set(FAMILIES)


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_a_single_file_gives_the_same_run(
    folder: Path, plain: FluxHubModel, tmp_path: Path, monkeypatch: Any, suffix: str
) -> None:
    """The transformer from one file, the other parts from the folder of the variable; GGUF in float32 loses nothing."""
    weights, want = plain.transformer.state_dict(), states(plain)
    file = tmp_path / f"other{suffix}"
    if suffix == ".gguf":
        gguf = pytest.importorskip("gguf")
        writer = gguf.GGUFWriter(str(file), "flux")
        for name, value in weights.items():
            writer.add_tensor(name, value.numpy())
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
            write()
    else:
        save_file(weights, file)
    monkeypatch.setenv("FRESCO_FLUX_DEV", str(folder))
    model = load(file)
    assert f"transformer of {file.name}" in model.provenance
    for got, state in zip(states(model), want, strict=True):
        torch.testing.assert_close(got, state, atol=1e-4 if suffix == ".gguf" else 0, rtol=0)  # its linear is another
    with pytest.raises(ModelError, match="quantize 'nf4' is for weights in a folder; load the file"):
        load(file, quantize="nf4")
    with pytest.raises(ModelError, match="there is no file"):
        load(tmp_path / f"missing{suffix}")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ModelError, match=f"in .*other{suffix} cannot be read"):
        load(file)


def test_a_missing_package_is_named(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name in hidden else real(name, *a))
    hidden = {"gguf", "bitsandbytes", "torchao", "peft"}
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setenv("FRESCO_FLUX_DEV", str(folder))
    with pytest.raises(ModelError, match=r"the GGUF file model\.gguf needs the package gguf; run: pip install gguf"):
        load(file)
    for name, how in QUANTIZERS.items():
        with pytest.raises(ModelError, match=f"quantize '{name}' needs the package {how.package}; run: pip install"):
            load(folder, quantize=name)
    with pytest.raises(ModelError, match="a LoRA needs the package peft"):
        load(folder, lora=str(file))
    hidden.clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: object())
    for name in ("nf4", "int8", "torchao-float8"):
        with pytest.raises(ModelError, match=f"quantize '{name}' needs a CUDA device, but this is to run on cpu"):
            load(folder, quantize=name)


def test_fewer_bits_need_less(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Asked for, or saved so; what was saved quantised names its package where that is missing."""
    which, cpu = CHECKPOINTS["flux-dev"], torch.device("cpu")
    plain = needs(which, folder, cpu, torch.bfloat16)
    nf4 = needs(which, folder, cpu, torch.bfloat16, "nf4")
    assert nf4.parts["transformer"] == int(plain.parts["transformer"] * 4.5 / 16)
    assert nf4.parts["text_encoder_2"] == plain.parts["text_encoder_2"]  # a small one stays
    saved = tmp_path / "saved"
    __import__("shutil").copytree(folder, saved)
    config = json.loads((saved / "transformer" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (saved / "transformer" / "config.json").write_text(json.dumps(config))
    assert needs(which, saved, cpu, torch.bfloat16).parts == nf4.parts
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    with pytest.raises(ModelError, match="the transformer of saved, which was saved quantised, needs the package bitsandbytes"):
        load(saved)


def test_int8_weights_by_torchao(folder: Path, plain: FluxHubModel) -> None:
    """Near the run of the full weights, and held in fewer bits; a tiny model's text encoders stay as they are."""
    pytest.importorskip("torchao")
    model, whole = load(folder, quantize="torchao-int8"), plain
    linear = model.transformer.transformer_blocks[0].attn.to_q.weight
    assert type(linear) is not torch.nn.Parameter
    assert torch.equal(model.encode("a fox").tensors["prompt_embeds"], whole.encode("a fox").tensors["prompt_embeds"])
    with torch.no_grad():
        error = (linear.dequantize() - whole.transformer.transformer_blocks[0].attn.to_q.weight).abs().max()
    assert 0 < error < 0.02
    low = FrescoConfig.full(2, size=CONFIG.size)
    close = (states(model, low)[-1] - states(whole, low)[-1]).norm() / states(whole, low)[-1].norm()
    assert 0 < close < 0.1
    assert "quantised torchao-int8" in model.provenance


def lora_file(path: Path, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Write a LoRA of rank 2 on the query projections, as `save_lora_weights` does, and return each weight's change."""
    torch.manual_seed(11)
    transformer: Any = tiny_flux().transformer
    tensors, changes = {}, {}
    for name, module in transformer.named_modules():
        if name.endswith("attn.to_q"):
            down, up = torch.randn(2, module.in_features) * scale, torch.randn(module.out_features, 2) * scale
            tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
            changes[f"{name}.weight"] = up @ down
    save_file(tensors, path)
    return changes


def test_a_lora_is_its_weights_change(folder: Path, plain: FluxHubModel, tmp_path: Path) -> None:
    """Through `load_model` and through an enabled pipeline, equal to adding B A to the weights by hand."""
    pytest.importorskip("peft")
    import fresco

    file = tmp_path / "style.safetensors"
    changes = lora_file(file, 0.3)
    assert len(changes) == 2
    model, merged = load(folder, lora=str(file)), load(folder)
    with torch.no_grad():
        for name, change in changes.items():
            merged.transformer.get_parameter(name).add_(change)
    got, want, without = (states(each)[-1] for each in (model, merged, plain))
    torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-3)
    assert (got - without).norm() > 20 * (got - want).norm()
    assert model.provenance != plain.provenance
    assert "LoRA style.safetensors" in model.provenance

    pipe = FluxPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    given = {"height": 28, "width": 36, "max_sequence_length": 16, "num_inference_steps": 6, "output_type": "latent"}
    runs = []
    for pipeline in (pipe, merged.pipe):
        if pipeline is pipe:
            pipe.load_lora_weights(str(tmp_path), weight_name=file.name)
        with fresco.enable(pipeline, CONFIG.replace(size=None)):
            runs.append(pipeline("a fox", **given, generator=torch.Generator().manual_seed(1)).images)
    torch.testing.assert_close(runs[0], runs[1], atol=2e-3, rtol=1e-3)

    save_file({"unet.conv.lora_A.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ModelError, match=r"the LoRA .*style\.safetensors (cannot be loaded|holds no weights)"):
        load(folder, lora=str(file))
    with pytest.raises(ModelError, match=r"the LoRA .*nowhere\.safetensors cannot be loaded"):
        load(folder, lora=str(tmp_path / "nowhere.safetensors"))


@pytest.mark.parametrize("frame", sorted(PHASES))
def test_group_offload_changes_nothing(folder: Path, plain: FluxHubModel, frame: str) -> None:
    """Layer by layer, here from host to host: the hooks are the real ones."""
    model = load(folder, offload="group")
    assert any("group_offloading" in hook for m in model.transformer.modules() for hook in _hooks(m))
    config = CONFIG.replace(frame=frame)
    for got, want in zip(states(model, config), states(plain, config), strict=True):
        assert torch.equal(got, want)
    latent = torch.randn(4, 1, 6, 8, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(model.decode(latent), plain.decode(latent))


def _hooks(module: torch.nn.Module) -> list[str]:
    registry = getattr(module, "_diffusers_hook", None)
    return [] if registry is None else list(registry.hooks)


def test_the_attention_backend_is_kept(folder: Path, plain: FluxHubModel) -> None:
    """Also by the processors that the phase-aligned frame puts in and takes away; the numbers are that backend's."""
    model = load(folder, attention="_native_math")
    config = CONFIG.replace(frame="phase_aligned")
    got = states(model, config)
    backends = {p._attention_backend.value for p in model.transformer.attn_processors.values()}
    kinds = {type(p).__name__ for p in model.transformer.attn_processors.values()}
    assert (backends, kinds) == ({"_native_math"}, {"FrescoAttnProcessor"})
    torch.testing.assert_close(got[-1], states(plain, config)[-1], atol=1e-3, rtol=1e-3)


def test_latents_are_denormalised_as_the_autoencoder_says() -> None:
    """Scale and shift, or a mean and deviation per channel; frames are the batch, or an axis of their own."""

    class Vae:
        dtype = torch.float32

        def __init__(self, **config: Any) -> None:
            self.config = config

        def decode(self, z: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            self.given = z
            return (z[:, :3],)

    class Plain(HubModel):
        embed = bind = None  # type: ignore[assignment]

    latent = torch.randn(4, 2, 3, 5)
    for video in (False, True):
        model = object.__new__(type("Kind", (Plain,), {"video": video}))
        scaled, normal = Vae(scaling_factor=0.5, shift_factor=0.1), Vae(latents_mean=[1, 2, 3, 4], latents_std=[1, 2, 3, 4])
        for vae, want in (
            (scaled, latent * 2 + 0.1),
            (normal, torch.stack([(latent[c] + 1) * (c + 1) for c in range(4)])),
        ):
            made = model.pixels(vae, latent)
            assert vae.given.shape == ((1, 4, 2, 3, 5) if video else (2, 4, 3, 5))
            torch.testing.assert_close(made, want[:3])


def test_what_is_said_before_loading(folder: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "fresco"):
        model = load(folder)
    assert caplog.messages[0] == model.needs
    assert model.needs.startswith("flux-dev needs 0.4 MB for its weights in float32 (the transformer 0.3 MB)")


def test_a_run_out_of_memory_names_a_size_that_fits(plain: FluxHubModel, monkeypatch: Any) -> None:
    """The sentence's arithmetic on the published FLUX.1-dev, then a forward that fails, after which the next run is fine."""
    from types import SimpleNamespace

    from fresco.backends import hub
    from fresco.grid import TokenGrid

    dev: Any = SimpleNamespace(config={"num_attention_heads": 24, "attention_head_dim": 128}, dtype=torch.bfloat16)
    each = 24 * 3072 * 2  # bytes per token
    assert hub.tokens_that_fit(dev, 5000 * each, 512) == 4488
    monkeypatch.setattr(hub, "free_memory", lambda device: (4608 * each, 0))
    vast = TokenGrid.uniform((1, 128, 128), 1, 1)  # 2048 x 2048
    said = hub.smaller(dev, torch.device("cuda"), vast, 16, 512)
    assert said.startswith("about 4096 tokens fit: use 1024 x 1024 pixels, or quantised weights (quantize), offload='group'")
    wide = TokenGrid.uniform((1, 48, 85), 1, 1)  # fits by the estimate, but has just failed: three quarters of it
    assert hub.smaller(dev, torch.device("cuda"), wide, 16, 512).startswith("about 3060 tokens fit: use 656 x 1168 pixels")

    real = FluxTransformer2DModel.forward
    monkeypatch.undo()

    def full(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if hidden_states.shape[1] == 63:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, hidden_states, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FluxTransformer2DModel, "forward", full)
        with pytest.raises(
            ModelError, match=r"^memory ran out while the transformer ran on 63 tokens; about 47 tokens fit: use "
        ):
            states(plain)
    assert torch.isfinite(states(plain)[-1]).all()


@pytest.mark.parametrize(("height", "width"), [(48, 85), (85, 48)])
def test_odd_grids_of_published_sizes(plain: FluxHubModel, height: int, width: int) -> None:
    """1360 x 768 and 768 x 1360 on FLUX: 48 x 85 tokens; here too, of 4 pixels; every cell is reached, and the run repeats."""
    config = FrescoConfig(nfe=4, stages=(2, 1, 1), size=(1, height * 4, width * 4), ratio=0.4, frame="coarse")
    steps = list(sample(plain.bind(config), plain.encode("a red fox"), config))
    assert [len(step.grid) for step in steps][::3] == [24 * 43, 48 * 85]
    assert 24 * 43 < len(steps[2].grid) < 48 * 85
    assert torch.isfinite(steps[-1].x_next).all()
    assert torch.equal(states(plain, config)[-1], steps[-1].x_next)


def test_four_times_in_two_promotions(plain: FluxHubModel) -> None:
    """FLUX's 2048 x 2048, 128 x 128 tokens, from a sketch of 32 x 32: all three levels stand side by side in between."""
    config = FrescoConfig(
        nfe=4, stages=(1, 2, 1), size=(1, 512, 512), levels=2, checks="every", selection="even", ratio=0.3, frame="coarse"
    )
    steps = list(sample(plain.bind(config), plain.encode("a fox"), config))
    counts = [len(step.grid) for step in steps]
    assert (counts[0], counts[-1]) == (32 * 32, 128 * 128)
    assert counts == sorted(counts)
    assert set(steps[2].grid.level.tolist()) == {0, 1, 2}
    assert torch.isfinite(steps[-1].x_next).all()


@pytest.mark.parametrize(("split", "speedup"), [((4, 2, 3), 10.27), ((1, 2, 1), 22.10)])
def test_schnell_as_published(split: tuple[int, int, int], speedup: float) -> None:
    """Which splits the published speed-ups of schnell + Fresco over 50 steps of dev fit: inferred, with 48 % promoted."""
    from fresco.cost import report

    dev = report("flux-dev", (1024, 1024), split, 0.4)["tflops_reference"]
    assert dev / report("flux-schnell", (1024, 1024), split, 0.48)["tflops"] == pytest.approx(speedup, rel=0.005)
