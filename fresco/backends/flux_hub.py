"""FLUX.1-dev, FLUX.1-schnell and FLUX.1-lite-8B: the real checkpoints, from the hub or a local diffusers folder.

Text and pictures are the stock pipeline's own parts; only the loop is Fresco's. Before weights are read it is said what they
need and what the machine has. Source: METHOD 2.6, 4; MODELS (FLUX facts).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from fresco.backends import ModelError
from fresco.backends.flow import FlowSchedule
from fresco.backends.flux import FluxDenoiser, FluxModel, to_uint8
from fresco.cost import TransformerShape
from fresco.denoiser import Conditioning
from fresco.errors import FrescoError
from fresco.grid import TokenGrid

LOG = logging.getLogger("fresco")
PREVIEW_REPO, PREVIEW_ENV = "madebyollin/taef1", "FRESCO_TAEF1"
WORKING_BYTES = 4 << 30  # activations at 1024 x 1024 with the full decoder; an estimate, so it only chooses a placement
_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae", "scheduler")
_CONFIGS = ["model_index.json", *(f"{part}/*.json" for part in _PARTS)]
_FILES = ["model_index.json", *(f"{part}/*" for part in _PARTS)]  # the repositories hold the weights in other forms, too


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint.

    Attributes:
        name: the backend's name.
        repo: its repository on the hub.
        text_tokens: T5 tokens it was trained with, padding included.
        guidance: scale where a run names none: embedded for dev and lite; 1, so none at all, for schnell.
    """

    name: str
    repo: str
    text_tokens: int
    guidance: float

    @property
    def env(self) -> str:
        """Name of the environment variable that holds a local folder."""
        return "FRESCO_" + self.name.upper().replace("-", "_")


CHECKPOINTS = {
    c.name: c
    for c in (
        Checkpoint("flux-dev", "black-forest-labs/FLUX.1-dev", 512, 3.5),
        Checkpoint("flux-schnell", "black-forest-labs/FLUX.1-schnell", 256, 1.0),
        Checkpoint("flux-lite", "Freepik/flux.1-lite-8B", 512, 3.5),
    )
}


def explain(error: BaseException, repo: str, env: str) -> ModelError:
    """Return one sentence on why a repository cannot be had, and what to do.

    Args:
        error: what the hub's client raised.
        repo: the repository.
        env: environment variable that takes a local folder instead.
    """
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{repo}"
    if isinstance(error, errors.GatedRepoError):
        if get_token() is None:
            return ModelError(
                f"{repo} is gated and HF_TOKEN is missing: accept its licence at {page}, then set HF_TOKEN to a read token "
                "of that account"
            )
        return ModelError(f"the licence of {repo} is not accepted by the account of HF_TOKEN: accept it at {page}, then retry")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{repo} has no such revision; choose a branch, tag or commit listed at {page}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(f"{repo} is not there for this HF_TOKEN; check the token, or unset it, and look at {page}")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ModelError(f"the disk is full, so {repo} cannot be downloaded; free some or set HF_HOME to a larger disk")
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return ModelError(
            f"the hub answered {error.response.status_code} for {repo}; try later, or set {env} to a local folder"
        )
    return ModelError(
        f"{repo} is not in the local cache and the hub cannot be reached; connect, or set {env} to a local folder"
    )


def fetch(repo: str, env: str, revision: str | None, patterns: list[str] | None = None) -> Path:
    """Return the local folder of a repository's files, downloading what the cache lacks.

    Raises:
        ModelError: where it cannot be had; see `explain`.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=patterns, endpoint=os.environ.get("HF_ENDPOINT"))
    except Exception as error:  # the hub's own kinds, the HTTP client's and the disk's
        raise explain(error, repo, env) from error
    return Path(folder)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent} has no file {path.name}; give a folder that a diffusers pipeline was saved to"
        ) from None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise ModelError(f"the file {path} is damaged (no JSON object); download or save it again")
    return data


def parameters(folder: Path) -> dict[str, int]:
    """Return how many parameters each model of a FLUX pipeline folder has, from the configs alone.

    The classes are built on the meta device: no weights are read and no memory is taken.

    Raises:
        ModelError: where a config is missing, damaged or of another architecture.
    """
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    classes: dict[str, tuple[Any, Any]] = {
        "transformer": (FluxTransformer2DModel, FluxTransformer2DModel.from_config),
        "text_encoder_2": (T5EncoderModel, lambda config: T5EncoderModel(T5Config(**config))),
        "text_encoder": (CLIPTextModel, lambda config: CLIPTextModel(CLIPTextConfig(**config))),
        "vae": (AutoencoderKL, AutoencoderKL.from_config),
    }
    index, found = _json(folder / "model_index.json"), {}
    for part, (cls, build) in classes.items():
        is_ = (index.get(part) or [None, None])[1]
        if is_ != cls.__name__:
            raise ModelError(f"{folder.name} is no FLUX.1 pipeline: its {part} is {is_}, not {cls.__name__}")
        config = _json(folder / part / "config.json")
        try:
            with torch.device("meta"):
                found[part] = sum(weight.numel() for weight in build(config).parameters())
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"the file {part}/config.json of {folder.name} describes no {cls.__name__} ({error})") from None
    return found


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True)
class Needs:
    """What a checkpoint needs and what the machine has; in bytes.

    Attributes:
        name: the backend's name.
        parts: weights per model, parameters times bytes each.
        dtype: the weights' dtype.
        device: where it is to run.
        device_free, host_free: memory that is free there and on the host; the same on a CPU.
    """

    name: str
    parts: Mapping[str, int]
    dtype: torch.dtype
    device: torch.device
    device_free: int
    host_free: int

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return sum(self.parts.values())

    @property
    def placement(self) -> str | None:
        """ "resident", "offload" (one model at a time on the device, the others on the host), or None: impossible.

        Impossible is only what the weights alone make so; the activations' room is an estimate and chooses between the two.
        """
        if self.device.type == "cpu":
            return "resident" if self.total <= self.host_free else None
        if self.total + WORKING_BYTES <= self.device_free:
            return "resident"
        if max(self.parts.values()) <= self.device_free and self.total <= self.host_free:
            return "offload"
        return "resident" if self.total <= self.device_free else None

    def sentence(self) -> str:
        """Return what the model needs and what the machine has."""
        has = f"{_gb(self.host_free)} of memory free"
        if self.device.type != "cpu":
            has = f"{_gb(self.device_free)} free on {self.device} and {_gb(self.host_free)} on the host"
        need = f"{self.name} needs {_gb(self.total)} for its weights in {str(self.dtype).removeprefix('torch.')}"
        return f"{need} (the transformer {_gb(self.parts['transformer'])}); this machine has {has}"

    def check(self) -> str:
        """Return the placement.

        Raises:
            ModelError: where the weights cannot fit.
        """
        if self.placement is None:
            do = "use a smaller model (flux-lite, sinopia)" + (", or dtype bfloat16" if self.dtype.itemsize > 2 else "")
            raise ModelError(f"{self.sentence()}: it cannot be loaded here; {do}, or a larger machine")
        return self.placement


def free_memory(device: torch.device) -> tuple[int, int]:
    """Return the bytes free on a device and on the host, a container's limit included."""
    import psutil  # type: ignore[import-untyped]  # comes with accelerate

    host = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        host = min(host, int(limit.read_text()) - int(used.read_text()))
    return (int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else host), host


def needs(name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> Needs:
    """Return what the pipeline in a folder needs and what this machine has."""
    parts = {part: count * dtype.itemsize for part, count in parameters(folder).items()}
    return Needs(name, parts, dtype, device, *free_memory(device))


@contextmanager
def memory(doing: str, advice: str) -> Iterator[None]:
    """Turn running out of memory, on a device or the host, into one sentence.

    Raises:
        ModelError: where memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise ModelError(f"memory ran out while {doing}; {advice}") from None


class HubDenoiser(FluxDenoiser):
    """A `FluxDenoiser` that says in one sentence when memory runs out."""

    def __call__(self, x: torch.Tensor, grid: TokenGrid, sigma: float, cond: Conditioning) -> torch.Tensor:
        """Return the velocity; see `FluxDenoiser`.

        Raises:
            ModelError: where memory ran out.
        """
        with memory(f"the transformer ran on {len(grid)} image tokens", "use a smaller size, or a GPU with more memory"):
            return super().__call__(x, grid, sigma, cond)


class HubModel(FluxModel):
    """A FLUX.1 checkpoint with its own text encoders and autoencoder.

    Attributes beyond those of `FluxModel`:
        pipe: the stock `FluxPipeline` whose parts these are.
        needs: the sentence said before loading.
        preview_vae: the tiny autoencoder, or None: previews then come from the full decoder.
    """

    denoiser = HubDenoiser

    def __init__(self, which: Checkpoint, pipe: Any, *, device: torch.device, needs: str, provenance: str) -> None:
        """Take over a loaded pipeline.

        Args:
            which: the checkpoint.
            pipe: a `FluxPipeline` in evaluation mode, placed.
            device: where it computes.
            needs: the sentence said before loading.
            provenance: where the weights come from.

        Raises:
            ModelError: where its scheduler is not a shifted uniform one.
        """
        self.name, self.which, self.pipe, self.device = which.name, which, pipe, device
        self.needs, self.provenance = needs, provenance
        self.transformer, self.dtype, self.patch = pipe.transformer, pipe.transformer.dtype, 2
        self.default_guidance = which.guidance
        side = int(pipe.default_sample_size * pipe.vae_scale_factor)
        self.native_size = (1, side, side)
        self.schedule = FlowSchedule(pipe.scheduler.config)
        edge = self.patch * int(pipe.vae_scale_factor)
        self.shape = TransformerShape.from_config(pipe.transformer.config, which.text_tokens, edge)
        self.preview_vae: Any = None
        self._lock = threading.Lock()  # a fast tokenizer cannot be set to truncate from two threads at once

    @torch.no_grad()
    def encode(self, prompt: str) -> Conditioning:
        """Return the conditioning of a prompt: CLIP's pooled vector, and T5's states padded to the model's length."""
        text = prompt.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair would stop a tokenizer
        with self._lock, memory("the prompt was encoded", "close other programs, or use a machine with more memory"):
            states, pooled, _ = self.pipe.encode_prompt(
                prompt=text, prompt_2=None, device=self.device, max_sequence_length=self.which.text_tokens
            )
        return Conditioning(prompt, {"prompt_embeds": states[0], "pooled": pooled[0]})

    @torch.no_grad()
    def _pictures(self, vae: Any, latent: torch.Tensor) -> NDArray[Any]:
        size = " x ".join(str(side * self.pipe.vae_scale_factor) for side in latent.shape[2:])
        with memory(f"a picture of {size} was decoded", "use a smaller size, or a GPU with more memory"):
            frames = latent.transpose(0, 1).to(self.device, torch.float32)  # the frames are the batch
            plain = frames / vae.config.scaling_factor + vae.config.shift_factor
            return to_uint8(vae.decode(plain.to(vae.dtype), return_dict=False)[0].transpose(0, 1))

    def decode(self, latent: torch.Tensor) -> NDArray[Any]:
        """Return (T, H, W, 3) uint8 from a clean latent (C, frames, rows*p, cols*p), by the full decoder.

        The sampler's latent is the normalised one: the decoder is given `latent / scaling_factor + shift_factor`.

        Raises:
            ModelError: where memory ran out.
        """
        return self._pictures(self.pipe.vae, latent)

    def preview(self, latent: torch.Tensor) -> NDArray[Any]:
        """Return (T, H, W, 3) uint8 by the tiny autoencoder where there is one; as `decode` otherwise."""
        return self._pictures(self.pipe.vae if self.preview_vae is None else self.preview_vae, latent)


def _tiny_autoencoder(device: torch.device, dtype: torch.dtype, channels: int) -> Any:
    """Return the tiny autoencoder for previews, or None where it cannot be had."""
    from diffusers import AutoencoderTiny

    try:
        named = os.environ.get(PREVIEW_ENV)
        folder = Path(named) if named else fetch(PREVIEW_REPO, PREVIEW_ENV, None, ["config.json", "*.safetensors"])
        vae = AutoencoderTiny.from_pretrained(folder, dtype=dtype, local_files_only=True).eval().to(device)
        if vae.config.latent_channels != channels:
            raise ModelError(f"it has {vae.config.latent_channels} latent channels, the model {channels}")
    except (OSError, ValueError, RuntimeError) as error:  # FrescoErrors are ValueErrors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        LOG.warning("previews come from the full decoder, which is slower: no tiny autoencoder (%s)", reason[:200])
        return None
    return vae


def _fingerprint(folder: Path) -> str:
    """Return 12 hex digits that tell transformers apart: each shard's size and its last mebibyte, not all its gigabytes."""
    digest = hashlib.sha256()
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:12]


def load(
    device: torch.device, dtype: torch.dtype | None = None, revision: str | None = None, *, name: str, folder: str | None = None
) -> HubModel:
    """Return a FLUX.1 checkpoint.

    Args:
        device: where it is to run. Where a GPU cannot hold all of it, one model at a time is moved there.
        dtype: the weights' dtype; None is bfloat16, as published.
        revision: branch, tag or commit on the hub.
        name: a name in CHECKPOINTS.
        folder: a local diffusers folder; None is the checkpoint's environment variable, else the hub.

    Raises:
        ModelError: where it cannot be had, is damaged, or cannot fit; the message is one sentence that says what to do.
    """
    from diffusers import FluxPipeline

    which, kind = CHECKPOINTS[name], dtype or torch.bfloat16
    local = folder or os.environ.get(which.env)
    if local is not None and revision is not None:
        raise ModelError(f"revision {revision!r} names a version on the hub, but {name} is read from {local}; leave one out")
    if local is not None and not Path(local).is_dir():
        raise ModelError(f"there is no folder {local}; give one that a diffusers FLUX pipeline was saved to")
    path = Path(local) if local is not None else fetch(which.repo, which.env, revision, _CONFIGS)
    about = needs(name, path, device, kind)
    LOG.warning("%s", about.sentence())
    placement = about.check()
    if local is None:
        path = fetch(which.repo, which.env, revision, _FILES)
    try:
        with memory(f"{name} was loaded", f"{about.sentence()}; close other programs"):
            pipe = FluxPipeline.from_pretrained(path, dtype=kind, local_files_only=True)
            for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
                part.eval()
            if placement == "offload":
                pipe.enable_model_cpu_offload(device=device)
            else:
                pipe.to(device)
    except FrescoError:
        raise
    except Exception as error:  # safetensors, json, torch, transformers and diffusers each raise their own kinds
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ModelError(f"the files of {name} in {path} cannot be read ({reason}); download or save them again") from error
    origin = f"{which.repo} at {path.name[:12]}" if local is None else f"{name} in folder {path.name}"
    model = HubModel(
        which, pipe, device=device, needs=about.sentence(), provenance=f"{origin}, fingerprint {_fingerprint(path)}"
    )  # fmt: skip
    model.preview_vae = _tiny_autoencoder(device, kind, pipe.vae.config.latent_channels)
    return model
