"""The FLUX.1 loaders, on tiny random pipelines in real diffusers folders, and against a hub that this file serves."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, FluxPipeline

from fresco.backends import ModelError, load_model
from fresco.backends.flux_hub import CHECKPOINTS, FluxHubModel
from fresco.backends.hub import Needs, fetch, memory, parameters
from fresco.config import FrescoConfig
from fresco.cost import SHAPES
from fresco.record import run
from fresco.sampler import sample
from fresco.tokens import Layout
from tests.tiny_flux import DEV, SCHNELL, Given, tiny_flux

SHA = "0123456789abcdef0123456789abcdef01234567"
GIB = 1 << 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved pipelines; `tiny` holds a tiny autoencoder for previews."""
    root = tmp_path_factory.mktemp("flux")
    for name, guidance, scheduler in (("flux-dev", True, DEV), ("flux-schnell", False, SCHNELL)):
        tiny_flux(guidance, scheduler).save_pretrained(root / name)
    torch.manual_seed(5)
    AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ).save_pretrained(root / "tiny")  # fmt: skip
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def local(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The folders, with the tiny autoencoder found and no variable of the machine's own in the way."""
    for which in CHECKPOINTS.values():
        monkeypatch.delenv(which.env, raising=False)
    monkeypatch.setenv("FRESCO_TAEF1", str(folders["tiny"]))
    return folders


def load(name: str, folder: Path, dtype: str = "float32") -> FluxHubModel:
    found = load_model(f"{name}:{folder}", device="cpu", dtype=dtype)
    assert isinstance(found, FluxHubModel)
    return found


@pytest.mark.parametrize(("name", "tokens", "guidance"), [("flux-dev", 512, 3.5), ("flux-schnell", 256, None)])
def test_a_full_run_is_the_stock_pipelines_picture(
    local: dict[str, Path], name: str, tokens: int, guidance: float | None
) -> None:
    """Prompt to pixels, bit for bit up to the decoder, on a grid of 9 x 12 tokens."""
    model = load(name, local[name])
    stock = FluxPipeline.from_pretrained(local[name], local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    start = torch.randn(1, 9 * 12, 16, generator=torch.Generator().manual_seed(3))
    given = {"prompt": "a red fox", "height": 36, "width": 48, "num_inference_steps": 4, "latents": start}
    scale = {} if guidance is None else {"guidance_scale": guidance}
    latents = stock(**given, **scale, max_sequence_length=tokens, output_type="latent").images[0]
    want = stock(**given, **scale, max_sequence_length=tokens, output_type="np").images

    config = FrescoConfig.full(4, size=(1, 36, 48))
    cond = model.encode("a red fox")
    denoiser = model.bind(config)
    *_, last = sample(denoiser, cond, config, noise=Given(start[0]))
    assert cond.tensors["prompt_embeds"].shape == (tokens, 20)
    assert (denoiser.guidance, denoiser.cfg_scale, model.shape.text_tokens) == (guidance, 1.0, tokens)
    assert torch.equal(last.x_next, latents)
    got = model.decode(Layout(4, 2).unpack(last.x_next, last.grid_next))
    assert got.shape == (1, 36, 48, 3)
    difference = np.abs(got.astype(int) - np.round(want * 255).astype(int))
    assert difference.max() <= 1  # two ways to round a half
    assert (difference > 0).mean() < 1e-3
    assert got.std() > 20  # a picture, not a flat field


def test_a_mixed_run_end_to_end(local: dict[str, Path]) -> None:
    """Deterministic, another picture for another prompt, previews by the tiny autoencoder, costs by the shape."""
    model = load("flux-dev", local["flux-dev"])
    config = FrescoConfig.recommended(6, size=(1, 28, 36), ratio=0.4, tau=None)
    trace, again = run(model, "a fox", config), run(model, "a fox", config)
    other = run(model, "an owl", config)
    assert trace.picture is not None
    assert trace.picture.shape == (1, 28, 36, 3)
    np.testing.assert_array_equal(trace.picture, again.picture)
    assert np.abs(trace.picture.astype(int) - other.picture.astype(int)).mean() > 1  # type: ignore[union-attr]
    assert len(trace.events[0].grid) == 4 * 5  # 7 x 9 tokens, halved and rounded up
    assert len(trace.events[-1].grid) == 63
    assert trace.flops == pytest.approx(sum(model.shape.flops(len(e.grid)) for e in trace.events))
    first = trace.events[0].preview
    assert first is not None
    assert first.shape == (1, 16, 20, 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_previews_and_pictures_are_the_decoders_own(local: dict[str, Path], dtype: str, caplog: Any, monkeypatch: Any) -> None:
    model = load("flux-dev", local["flux-dev"], dtype)
    assert model.dtype == model.pipe.vae.dtype == model.preview_vae.dtype == getattr(torch, dtype)
    latent = torch.randn(4, 1, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scaled = (latent[:, 0][None] / 0.3611 + 0.1159).to(model.dtype)
        full = model.pipe.vae.decode(scaled, return_dict=False)[0][0]
        tiny = (
            AutoencoderTiny.from_pretrained(local["tiny"]).to(model.dtype).decode(latent[:, 0][None].to(model.dtype)).sample[0]
        )
    for got, want in ((model.decode(latent), full), (model.preview(latent), tiny)):
        pixels = ((want.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
        np.testing.assert_array_equal(got[0], pixels.numpy())
    assert (model.decode(latent) != model.preview(latent)).mean() > 0.5

    monkeypatch.setenv("FRESCO_TAEF1", str(local["flux-dev"]))  # a folder without one
    with caplog.at_level(logging.WARNING, "fresco"):
        plain = load("flux-dev", local["flux-dev"], dtype)
    assert sum("previews come from the full decoder" in line for line in caplog.messages) == 1
    np.testing.assert_array_equal(plain.preview(latent), plain.decode(latent))


def test_sigmas_and_sizes(local: dict[str, Path]) -> None:
    dev, schnell = (load(name, local[name]) for name in ("flux-dev", "flux-schnell"))
    np.testing.assert_allclose(schnell.schedule.sigmas(4, 4096), [1, 0.75, 0.5, 0.25, 0], atol=1e-7)
    assert schnell.schedule.sigmas(4, 256) == schnell.schedule.sigmas(4, 4096)
    assert dev.schedule.alpha(4096) == pytest.approx(np.exp(1.15))  # the token count's, not the config's `shift` of 3
    assert dev.schedule.alpha(256) == pytest.approx(np.exp(0.5))
    bound = dev.bind(FrescoConfig.recommended())
    assert dev.native_size == (1, 256, 256)  # 128 latent pixels, as FLUX's 1024 is
    assert bound.token_shape(None) == (1, 64, 64)
    assert bound.token_shape((1, 12, 20)) == (1, 3, 5)
    with pytest.raises(ModelError, match="multiples of 4 pixels; try 1 x 12 x 20"):
        bound.token_shape((1, 13, 21))
    assert schnell.bind(FrescoConfig.recommended(guidance=2.5)).cfg_scale == 2.5  # no embedding: true guidance
    assert dev.bind(FrescoConfig.recommended(guidance=2.5)).guidance == 2.5


def real_folder(root: Path, double: int = 19, guidance: bool = True, heads: int = 24) -> Path:
    """Write the configs of a published FLUX.1 checkpoint, without weights."""
    configs: dict[str, dict[str, Any]] = {
        "transformer": {"num_layers": double, "guidance_embeds": guidance, "num_attention_heads": heads},
        "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768},
        "text_encoder_2": {
            "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
        },
        "vae": {
            "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 16,
            "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
            "use_quant_conv": False, "use_post_quant_conv": False,
        },
    }  # fmt: skip
    classes = ("FluxTransformer2DModel", "CLIPTextModel", "T5EncoderModel", "AutoencoderKL")
    for (part, config), _ in zip(configs.items(), classes, strict=True):
        (root / part).mkdir(parents=True)
        (root / part / "config.json").write_text(
            json.dumps(config | {"torch_dtype": "bfloat16", "transformers_version": "4.43.3"})
        )
    index = {part: ["library", name] for part, name in zip(configs, classes, strict=True)}
    (root / "model_index.json").write_text(json.dumps(index))
    return root


def test_what_the_published_checkpoints_need(local: dict[str, Path], tmp_path: Path) -> None:
    """Parameters as published (12 B, 8 B), the placement each GPU gets, and the sentence."""
    dev = parameters(real_folder(tmp_path / "dev"), "FluxPipeline")
    assert dev["transformer"] == 11_901_408_320
    assert dev["text_encoder_2"] == 4_762_310_656
    assert dev["text_encoder"] == 123_060_480
    assert dev["vae"] == 83_819_683
    assert parameters(real_folder(tmp_path / "schnell", guidance=False), "FluxPipeline")["transformer"] == dev[
        "transformer"
    ] - (256 * 3072 + 3072) - (3072 * 3072 + 3072)
    lite = parameters(real_folder(tmp_path / "lite", double=SHAPES["flux-lite"].double_blocks), "FluxPipeline")
    assert 8.1e9 < lite["transformer"] < 8.2e9
    gpu, half = torch.device("cuda", 0), {part: 2 * count for part, count in dev.items()}

    def placed(parts: dict[str, int], free: float, host: float, device: torch.device = gpu) -> str | None:
        return Needs("flux-dev", parts, torch.bfloat16, device, int(free * GIB), int(host * GIB)).placement

    assert [placed(half, free, 64) for free in (141, 80, 40, 24, 16)] == ["resident"] * 3 + ["model", "group"]
    assert placed(half, 3, 64) is None  # no room for the activations
    assert placed(half, 24, 30) is None  # 33.7 GB do not fit on the host either
    assert placed({part: 2 * count for part, count in lite.items()}, 16, 64) == "model"
    cpu = torch.device("cpu")
    assert [placed(half, host, host, cpu) for host in (24, 32, 64)] == [None, "resident", "resident"]
    small = Needs("flux-dev", half, torch.bfloat16, gpu, 16 * GIB, 24 * GIB)
    said = (
        "flux-dev needs 33.7 GB for its weights in bfloat16 (the transformer 23.8 GB); this machine has 17.2 GB free on "
        "cuda:0 and 25.8 GB on the host"
    )
    assert small.sentence() == said
    with pytest.raises(ModelError, match="it cannot be loaded here; use a smaller model"):
        small.check()

    model = load("flux-dev", local["flux-dev"])
    for part, count in parameters(local["flux-dev"], "FluxPipeline").items():
        assert count == sum(weight.numel() for weight in getattr(model.pipe, part).parameters())


def test_too_large_is_said_before_weights_are_read(local: dict[str, Path], tmp_path: Path) -> None:
    folder = real_folder(tmp_path / "huge", heads=1000)
    with pytest.raises(ModelError, match=r"flux-dev needs \d{4,}\.\d GB .* cannot be loaded here"):
        load("flux-dev", folder, "bfloat16")


def test_a_folder_by_variable_and_what_is_wrong_with_one(
    local: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("FRESCO_FLUX_SCHNELL", str(local["flux-schnell"]))
    with caplog.at_level(logging.WARNING, "fresco"):
        model = load_model("flux-schnell", device="cpu", dtype="float32")
    assert model.name == "flux-schnell"
    assert caplog.messages[0] == model.needs  # type: ignore[attr-defined]
    assert model.provenance != load("flux-dev", local["flux-dev"]).provenance
    with pytest.raises(ModelError, match="revision 'main' names a version on the hub"):
        load_model("flux-schnell", revision="main")
    with pytest.raises(ModelError, match="oracle is not read from a folder; only flux-dev, flux-schnell, flux-lite"):
        load_model("oracle:/tmp")
    with pytest.raises(ModelError, match="unknown model 'flux-pro'"):
        load_model("flux-pro")
    with pytest.raises(ModelError, match="there is no folder"):
        load("flux-dev", tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no file model_index\.json"):
        load("flux-dev", tmp_path)

    def broken(name: str, file: str, content: bytes) -> Path:
        copy = tmp_path / name
        shutil.copytree(local["flux-dev"], copy)
        (copy / file).write_bytes(content)
        return copy

    with pytest.raises(ModelError, match="damaged"):
        load("flux-dev", broken("a", "model_index.json", b"{"))
    with pytest.raises(ModelError, match="its transformer is SD3Transformer2DModel, not FluxTransformer2DModel"):
        load("flux-dev", broken("b", "model_index.json", b'{"transformer": ["diffusers", "SD3Transformer2DModel"]}'))
    weights = "transformer/diffusion_pytorch_model.safetensors"
    with pytest.raises(ModelError, match="cannot be read"):
        load("flux-dev", broken("c", weights, (local["flux-dev"] / weights).read_bytes()[:5000]))


def test_out_of_memory_is_one_sentence(local: dict[str, Path]) -> None:
    """A latent of 128 TB is refused by the allocator itself; another error is not taken for it."""
    model = load("flux-dev", local["flux-dev"])
    vast = torch.zeros(1).expand(4, 1, 1 << 21, 1 << 22)
    for decode in (model.decode, model.preview):
        with pytest.raises(ModelError, match="memory ran out while a picture of 4194304 x 8388608 was decoded; use a smaller"):
            decode(vast)
    assert model.pipe.vae.use_tiling  # tried tile by tile, too
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory("this ran", "do that"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    with pytest.raises(ModelError, match="memory ran out while this ran; do that"), memory("this ran", "do that"):
        raise torch.OutOfMemoryError("CUDA out of memory")


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of a hub that the client asks for: one gated repository, served from a folder."""

    root: Path
    licensed = ("Bearer hf_licensed",)

    def log_message(self, *args: Any) -> None:
        """Stay silent."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())
        if "flux.1-lite" in path:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if "/revision/" in path:
            if not path.endswith(("/main", "/v1", SHA)):
                return self.answer(404, X_Error_Code="RevisionNotFound")
            listed = {"id": "repo", "sha": SHA, "siblings": [{"rfilename": f} for f in files]}
            return self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")
        if "/tree/" in path:
            tree = [{"type": "file", "path": f, "size": (self.root / f).stat().st_size, "oid": "0" * 40} for f in files]
            return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        if "/resolve/" in path:
            if self.headers.get("authorization") not in self.licensed:
                return self.answer(403 if self.headers.get("authorization") else 401, X_Error_Code="GatedRepo")
            body = (self.root / path.partition(f"/resolve/{SHA}/")[2]).read_bytes()
            return self.answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=SHA)
        return self.answer(404)

    do_HEAD = do_GET


@pytest.fixture
def hub(local: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub on this machine, with an empty cache and no token."""
    Hub.root = local["flux-dev"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_from_the_hub(hub: Any, local: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gated without a token, with one that has no licence, with one that has; revisions; then from the cache."""
    page = "accept.* at https://huggingface.co/black-forest-labs/FLUX.1-dev"
    with pytest.raises(ModelError, match=f"is gated and HF_TOKEN is missing: {page}, then set HF_TOKEN"):
        load_model("flux-dev", device="cpu")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ModelError, match=f"is not accepted by the account of HF_TOKEN: {page}"):
        load_model("flux-dev", device="cpu")
    monkeypatch.setenv("HF_TOKEN", "hf_licensed")
    with pytest.raises(ModelError, match=r"FLUX\.1-dev has no such revision"):
        load_model("flux-dev", device="cpu", revision="v9")
    with pytest.raises(ModelError, match=r"Freepik/flux\.1-lite-8B is not there"):
        load_model("flux-lite", device="cpu")
    model = load_model("flux-dev", device="cpu", dtype="float32", revision="v1")
    assert model.provenance.startswith(f"black-forest-labs/FLUX.1-dev at {SHA[:12]}")
    want = load("flux-dev", local["flux-dev"])
    for got, weight in zip(model.transformer.parameters(), want.transformer.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(got, weight)
    hub.shutdown()
    hub.server_close()
    monkeypatch.setenv("FRESCO_FLUX_DEV", "@v1")  # as a Space pins it
    again = load_model("flux-dev", device="cpu", dtype="float32")  # from the cache
    assert again.provenance == model.provenance
    with pytest.raises(ModelError, match=r"FLUX\.1-schnell is not in the local cache and the hub cannot be reached"):
        fetch(CHECKPOINTS["flux-schnell"].repo, "FRESCO_FLUX_SCHNELL", None)
