"""What every downloaded model shares, on tiny random pipelines of the real classes: options, single files, memory."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import shutil
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
from tests import families

CONFIG = FrescoConfig.recommended(6, size=(1, 28, 36), ratio=0.4, tau=None)  # 7 x 9 tokens: odd
PHASES = {"coarse", "phase_aligned"}


pytestmark = pytest.mark.usefixtures("no_hub")


@pytest.fixture(scope="module")
def plain(flux_dev: Path) -> FluxHubModel:
    return load(flux_dev)


def load(path: Path | str, dtype: str = "float32", **options: Any) -> FluxHubModel:
    found = load_model(f"flux-dev:{path}", device="cpu", dtype=dtype, **options)
    assert isinstance(found, FluxHubModel)
    return found


def states(model: Any, config: FrescoConfig = CONFIG) -> list[torch.Tensor]:
    return [step.x_next for step in sample(model.bind(config), model.encode("a red fox"), config)]


def test_the_options_are_named_once(flux_dev: Path, monkeypatch: Any) -> None:
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
            load(flux_dev, **changes)
    monkeypatch.setattr("fresco.hosting.on_zero", lambda: True)
    with pytest.raises(ModelError, match="compile cannot be used on ZeroGPU"):
        load(flux_dev, compile=True)
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


# Where a checkpoint's card differs from its pipeline's defaults: classifier-free guidance, or (frames, height, width).
CARDS: dict[str, dict[str, Any]] = {
    "flux-schnell": {"guidance": 1.0, "text": 256}, "flux2-klein": {"guidance": 1.0}, "sd3.5-medium": {"guidance": 4.5},
    "sd3.5-large": {"guidance": 3.5}, "sd3.5-large-turbo": {"guidance": 1.0}, "z-image-turbo": {"guidance": 0.0},
    "wan2.2-t2v-a14b": {"guidance": 4.0, "size": (81, 720, 1280)}, "wan2.2-ti2v-5b": {"size": (121, 704, 1280)},
}  # fmt: skip
CLIP = 77  # text tokens of SD3 before T5's
UNPADDED = ("qwen-image", "z-image-turbo")  # their text is as long as the prompt


@pytest.mark.parametrize("name", [name for name in BACKENDS if name not in BUNDLED])
def test_defaults_are_the_pipelines(name: str) -> None:
    """Guidance, text length and the size of a video are those of the stock call, unless the checkpoint's card has its own."""
    module = importlib.import_module(BACKENDS[name])
    which, card = module.CHECKPOINTS[name], CARDS.get(name, {})
    pipeline = getattr(importlib.import_module("diffusers"), which.pipeline)
    call = {key: value.default for key, value in inspect.signature(pipeline.__call__).parameters.items()}
    scale = call["guidance_scale"] if call["guidance_scale"] is not None else call["true_cfg_scale"]  # Qwen-Image's is reserved
    assert which.guidance == card.get("guidance", scale)
    if name not in UNPADDED:
        clip = CLIP if name.startswith("sd3") else 0
        assert which.text_tokens == card.get("text", call["max_sequence_length"]) + clip
    if "num_frames" in call:
        assert which.size == card.get("size", (call["num_frames"], call["height"], call["width"]))
    example = inspect.getmodule(pipeline).EXAMPLE_DOC_STRING
    kind = next((value for value in vars(module).values() if getattr(value, "negative_prompt", "")), None)
    assert kind is None or f'negative_prompt = "{kind.negative_prompt}"' in example


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_a_single_file_gives_the_same_run(
    flux_dev: Path, plain: FluxHubModel, tmp_path: Path, monkeypatch: Any, suffix: str
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
    monkeypatch.setenv("FRESCO_FLUX_DEV", str(flux_dev))
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


# Names of the published single files -> names in diffusers, whose rows stand one after the other; "/0" and "/1" are halves.
ORIGINAL = {
    "img_in": ["x_embedder"], "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "double.img_attn.qkv": ["double.attn.to_q", "double.attn.to_k", "double.attn.to_v"],
    "double.txt_attn.qkv": ["double.attn.add_q_proj", "double.attn.add_k_proj", "double.attn.add_v_proj"],
    "double.img_attn.proj": ["double.attn.to_out.0"], "double.txt_attn.proj": ["double.attn.to_add_out"],
    "double.img_attn.norm.query_norm": ["double.attn.norm_q"], "double.img_attn.norm.key_norm": ["double.attn.norm_k"],
    "double.txt_attn.norm.query_norm": ["double.attn.norm_added_q"],
    "double.txt_attn.norm.key_norm": ["double.attn.norm_added_k"],
    "double.img_mlp.0": ["double.ff.net.0.proj"], "double.img_mlp.2": ["double.ff.net.2"],
    "double.txt_mlp.0": ["double.ff_context.net.0.proj"], "double.txt_mlp.2": ["double.ff_context.net.2"],
    "double.img_mod.lin": ["double.norm1.linear"], "double.txt_mod.lin": ["double.norm1_context.linear"],
    "single.linear1": ["single.attn.to_q", "single.attn.to_k", "single.attn.to_v", "single.proj_mlp"],
    "single.linear2": ["single.proj_out"], "single.modulation.lin": ["single.norm.linear"],
    "single.norm.query_norm": ["single.attn.norm_q"], "single.norm.key_norm": ["single.attn.norm_k"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear/1", "norm_out.linear/0"],  # shift and scale the other way round
}  # fmt: skip


def original_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, int, torch.Tensor]]:
    """Write a file of the published names: a hole on the disk but for the first and the last row of each part.

    Args:
        path: the file.
        shapes: of all tensors, by their names in diffusers; one block of each kind.

    Returns:
        (name in diffusers, row, what was written there).
    """
    header: dict[str, Any] = {}
    wanted: list[tuple[str, int, torch.Tensor]] = []
    writes, end, generator = [], 0, torch.Generator().manual_seed(0)
    for old, parts in ORIGINAL.items():
        for kind in ("weight", "bias"):
            names = [
                f"{part.partition('/')[0]}.{kind}".replace("double.", "transformer_blocks.0.").replace(
                    "single.", "single_transformer_blocks.0."
                )
                for part in parts
            ]
            if names[0] not in shapes:
                continue
            start, tail = end, shapes[names[0]][1:]
            bytes_per_row = 2 * int(np.prod(tail))
            for name, part in zip(names, parts, strict=True):
                half = part.partition("/")[2]
                count = shapes[name][0] // (2 if half else 1)
                for row in (0, count - 1):
                    value = torch.randn(tail, generator=generator).bfloat16()
                    wanted.append((name, int(half or 0) * count + row, value))
                    writes.append((end + row * bytes_per_row, value))
                end += count * bytes_per_row
            key = old.replace("double.", "double_blocks.0.").replace("single.", "single_blocks.0.")
            key += ".scale" if old.endswith("_norm") else f".{kind}"
            rows = (end - start) // bytes_per_row
            header[key] = {"dtype": "BF16", "shape": [rows, *tail], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for offset, value in writes:
            file.seek(8 + len(text) + offset)
            file.write(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return wanted


def test_a_single_file_with_the_published_names(flux_dev: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """At the published width of 3072, which diffusers' converter takes for granted; one block of each kind, 1 GB in all."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, joint_attention_dim=20, pooled_projection_dim=12,
        )  # fmt: skip
    folder, file = tmp_path / "flux-schnell", tmp_path / "flux1-schnell.safetensors"
    shutil.copytree(flux_dev, folder, ignore=shutil.ignore_patterns("transformer"))
    transformer.save_config(folder / "transformer")
    wanted = original_file(file, {name: tuple(value.shape) for name, value in transformer.state_dict().items()})
    assert {name for name, _, _ in wanted} == set(transformer.state_dict())
    monkeypatch.setenv("FRESCO_FLUX_SCHNELL", str(folder))
    model: Any = load_model(f"flux-schnell:{file}", device="cpu", dtype="bfloat16")
    weights = model.transformer.state_dict()
    for name, row, value in wanted:
        assert torch.equal(weights[name][row], value), name


def test_a_missing_package_is_named(flux_dev: Path, tmp_path: Path, monkeypatch: Any) -> None:
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name in hidden else real(name, *a))
    hidden = {"gguf", "bitsandbytes", "torchao", "peft"}
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setenv("FRESCO_FLUX_DEV", str(flux_dev))
    with pytest.raises(ModelError, match=r"the GGUF file model\.gguf needs the package gguf; run: pip install gguf"):
        load(file)
    for name, how in QUANTIZERS.items():
        with pytest.raises(ModelError, match=f"quantize '{name}' needs the package {how.package}; run: pip install"):
            load(flux_dev, quantize=name)
    with pytest.raises(ModelError, match="a LoRA needs the package peft"):
        load(flux_dev, lora=str(file))
    hidden.clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: object())
    for name in ("nf4", "int8", "torchao-float8"):
        with pytest.raises(ModelError, match=f"quantize '{name}' needs a CUDA device, but this is to run on cpu"):
            load(flux_dev, quantize=name)


def test_fewer_bits_need_less(flux_dev: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Asked for, or saved so; what was saved quantised names its package where that is missing."""
    which, cpu = CHECKPOINTS["flux-dev"], torch.device("cpu")
    plain = needs(which, flux_dev, cpu, torch.bfloat16)
    nf4 = needs(which, flux_dev, cpu, torch.bfloat16, "nf4")
    assert nf4.parts["transformer"] == int(plain.parts["transformer"] * 4.5 / 16)
    assert nf4.parts["text_encoder_2"] == plain.parts["text_encoder_2"]  # a small one stays
    saved = tmp_path / "saved"
    shutil.copytree(flux_dev, saved)
    config = json.loads((saved / "transformer" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (saved / "transformer" / "config.json").write_text(json.dumps(config))
    assert needs(which, saved, cpu, torch.bfloat16).parts == nf4.parts
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    with pytest.raises(ModelError, match="the transformer of saved, which was saved quantised, needs the package bitsandbytes"):
        load(saved)


def test_int8_weights_by_torchao(flux_dev: Path, plain: FluxHubModel) -> None:
    """Near the run of the full weights, and held in fewer bits; a tiny model's text encoders stay as they are."""
    pytest.importorskip("torchao")
    model, whole = load(flux_dev, quantize="torchao-int8"), plain
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


def test_a_lora_is_its_weights_change(flux_dev: Path, plain: FluxHubModel, tmp_path: Path) -> None:
    """Through `load_model` and through an enabled pipeline, equal to adding B A to the weights by hand."""
    pytest.importorskip("peft")
    import fresco

    file = tmp_path / "style.safetensors"
    changes = families.lora_file(plain.transformer, file)
    assert len(changes) == 2
    model, merged = load(flux_dev, lora=str(file)), load(flux_dev)
    with torch.no_grad():
        for name, change in changes.items():
            merged.transformer.get_parameter(name).add_(change)
    got, want, without = (states(each)[-1] for each in (model, merged, plain))
    torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-3)
    assert (got - without).norm() > 20 * (got - want).norm()
    assert model.provenance != plain.provenance
    assert "LoRA style.safetensors" in model.provenance

    pipe = FluxPipeline.from_pretrained(flux_dev, local_files_only=True)
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
        load(flux_dev, lora=str(file))
    with pytest.raises(ModelError, match=r"the LoRA .*nowhere\.safetensors cannot be loaded"):
        load(flux_dev, lora=str(tmp_path / "nowhere.safetensors"))


@pytest.mark.parametrize("frame", sorted(PHASES))
def test_group_offload_changes_nothing(flux_dev: Path, plain: FluxHubModel, frame: str) -> None:
    """Layer by layer, here from host to host: the hooks are the real ones."""
    model = load(flux_dev, offload="group")
    assert any("group_offloading" in hook for m in model.transformer.modules() for hook in _hooks(m))
    config = CONFIG.replace(frame=frame)
    for got, want in zip(states(model, config), states(plain, config), strict=True):
        assert torch.equal(got, want)
    latent = torch.randn(4, 1, 6, 8, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(model.decode(latent), plain.decode(latent))


def _hooks(module: torch.nn.Module) -> list[str]:
    registry = getattr(module, "_diffusers_hook", None)
    return [] if registry is None else list(registry.hooks)


def test_the_attention_backend_is_kept(flux_dev: Path, plain: FluxHubModel) -> None:
    """Also by the processors that the phase-aligned frame puts in and takes away; the numbers are that backend's."""
    model = load(flux_dev, attention="_native_math")
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


def test_what_is_said_before_loading(flux_dev: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "fresco"):
        model = load(flux_dev)
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
