"""Checkpoints of any stock diffusers pipeline, from the hub or a local folder: what all real models share.

Text and pictures are the stock pipeline's own parts; only the loop is Fresco's. Before weights are read it is said what they
need and what the machine has; what cannot work is said in one sentence.

A family's file `fresco/backends/<family>.py` brings four things, and one line per name in `fresco.backends.BACKENDS`:

    CHECKPOINTS = by_name(Checkpoint("sd3.5-medium", "stabilityai/...", "StableDiffusion3Pipeline", 333, 4.5, preview=...))

    class SD3Denoiser(StockDenoiser): ...  # `conditioning`: what the transformer takes beside the tokens
    class SD3Model(StockModel):            # of fresco.backends.stock: a `HubModel` that binds a `StockDenoiser`
        denoiser = SD3Denoiser
        def embed(self, text): ...         # the tensors of one prompt, for example by self.pipe.encode_prompt
        # and where the usual does not hold: `video`, `native`, `plain`, `pixels`, `preview`, `negative`

    load = loader(CHECKPOINTS, SD3Model)   # what `load_model` calls: folders, memory, options, errors

`HubModel` gives `encode` (one prompt at a time, memory said), `decode` and `preview` (by the tiny autoencoder that
`Checkpoint.preview` names, else the full one). `load_pipeline` gives the placed stock pipeline alone. Source: MODELS; METHOD 4.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import inspect
import json
import logging
import math
import os
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

from fresco import hosting
from fresco.backends import ModelError
from fresco.backends.family import family_of
from fresco.denoiser import Conditioning
from fresco.errors import FrescoError
from fresco.grid import TokenGrid

LOG = logging.getLogger("fresco")
_CONFIGS = ["model_index.json", "*/*.json"]
_OTHER_FORMS = ["*.fp16*", "*.bin", "*.msgpack", "*.onnx*", "*.h5"]  # the same weights once more


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint.

    Attributes:
        name: the backend's name.
        repo: its repository on the hub.
        pipeline: its stock pipeline class in diffusers.
        text_tokens: text tokens that the transformer sees, padding included.
        guidance: scale where a run names none; 1 is none at all where the transformer embeds no scale.
        size: (frames, height, width) in pixels where a run names none; None asks the pipeline.
        preview: repository of the `AutoencoderTiny` for previews; None has them from the full decoder.
        working: bytes of activations at that size with the full decoder; an estimate, so it only chooses a placement.
    """

    name: str
    repo: str
    pipeline: str
    text_tokens: int
    guidance: float
    size: tuple[int, int, int] | None = None
    preview: str | None = None
    working: int = 4 << 30

    @property
    def env(self) -> str:
        """Name of the environment variable that holds a local folder, or "@" and a revision on the hub: FRESCO_FLUX_DEV."""
        return _variable(self.name)


def _variable(name: str) -> str:
    return "FRESCO_" + name.rpartition("/")[2].upper().replace("-", "_").replace(".", "_")


def by_name(*checkpoints: Checkpoint) -> dict[str, Checkpoint]:
    """Return checkpoints under their names."""
    return {which.name: which for which in checkpoints}


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
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=patterns, ignore_patterns=_OTHER_FORMS,
            endpoint=os.environ.get("HF_ENDPOINT"),
        )  # fmt: skip
    except Exception as error:  # the hub's own kinds, the HTTP client's and the disk's
        raise explain(error, repo, env) from error
    return Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of a pipeline's folder.

    Raises:
        ModelError: where it is missing or damaged.
    """
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


def parts(folder: Path) -> dict[str, tuple[str, str]]:
    """Return (library, class) of each part of a pipeline's folder, from its model_index.json."""
    found = {name: of for name, of in read_json(folder / "model_index.json").items() if isinstance(of, list) and len(of) == 2}
    return {name: (str(library), str(cls)) for name, (library, cls) in found.items() if library and cls}


def parameters(folder: Path, pipeline: str) -> dict[str, int]:
    """Return how many parameters each model of a pipeline's folder has, from the configs alone.

    The classes are built on the meta device: no weights are read and no memory is taken.

    Args:
        folder: what the pipeline was saved to.
        pipeline: the stock pipeline's class; its constructor says which transformer it takes.

    Raises:
        ModelError: where a config is missing, damaged or of another architecture.
    """
    import diffusers
    import transformers

    index, found = parts(folder), {}
    want = _class_names(getattr(diffusers, pipeline), "transformer")
    if (is_ := index.get("transformer", ("", "None"))[1]) not in want:
        raise ModelError(f"{folder.name} is no {pipeline}: its transformer is {is_}, not {' or '.join(want)}")
    for part, (_, name) in index.items():
        cls = getattr(diffusers, name, None) or getattr(transformers, name, None)
        if not (inspect.isclass(cls) and issubclass(cls, torch.nn.Module)):
            continue  # a tokenizer, a scheduler
        config = read_json(folder / part / "config.json")
        try:
            with torch.device("meta"):
                build = getattr(cls, "from_config", None)
                model: Any = build(config) if build else cls(getattr(cls, "config_class").from_dict(config))  # noqa: B009
        except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise ModelError(f"the file {part}/config.json of {folder.name} describes no {name} ({error})") from None
        found[part] = sum(weight.numel() for weight in model.parameters())
    return found


def _class_names(pipeline: Any, part: str) -> list[str]:
    """Return the classes that a pipeline's constructor takes for a part."""
    return [kind.__name__ for kind in pipeline._get_signature_types()[part] if issubclass(kind, torch.nn.Module)]


def gb(size: float) -> str:
    """Return a number of bytes for people: 33.7 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True)
class Needs:
    """What a checkpoint needs and what the machine has; in bytes.

    Attributes:
        name: the backend's name.
        parts: weights per model.
        dtype: the weights' dtype.
        device: where it is to run.
        device_free, host_free: memory that is free there and on the host; the same on a CPU.
        working: activations, estimated.
    """

    name: str
    parts: Mapping[str, int]
    dtype: torch.dtype
    device: torch.device
    device_free: int
    host_free: int
    working: int = Checkpoint.working

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return sum(self.parts.values())

    @property
    def placement(self) -> str | None:
        """ "resident", "model" (one model at a time on the device), "group" (layer by layer), or None: impossible.

        Impossible is only what the weights alone make so; the activations' room is an estimate and chooses between the two.
        """
        if self.device.type == "cpu":
            return "resident" if self.total <= self.host_free else None
        if self.total + self.working <= self.device_free:
            return "resident"
        if max(self.parts.values()) <= self.device_free and self.total <= self.host_free:
            return "model"
        if self.total <= self.device_free:
            return "resident"
        return "group" if self.total <= self.host_free and self.working <= self.device_free else None

    def sentence(self) -> str:
        """Return what the model needs and what the machine has."""
        has = f"{gb(self.host_free)} of memory free"
        if self.device.type != "cpu":
            has = f"{gb(self.device_free)} free on {self.device} and {gb(self.host_free)} on the host"
        need = f"{self.name} needs {gb(self.total)} for its weights in {str(self.dtype).removeprefix('torch.')}"
        return f"{need} (the transformer {gb(self.parts['transformer'])}); this machine has {has}"

    def check(self) -> str:
        """Return the placement.

        Raises:
            ModelError: where the weights cannot fit.
        """
        if self.placement is None:
            do = "use a smaller model (flux-lite, sinopia)" + (", or dtype bfloat16" if self.dtype.itemsize > 2 else "")
            do += ", or quantised weights (quantize='nf4')" if self.device.type == "cuda" else ""
            raise ModelError(f"{self.sentence()}: it cannot be loaded here; {do}, or a larger machine")
        return self.placement


def free_memory(device: torch.device) -> tuple[int, int]:
    """Return the bytes free on a device and on the host, a container's limit included."""
    import psutil  # type: ignore[import-untyped]  # comes with accelerate

    host = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        host = min(host, int(limit.read_text()) - int(used.read_text()))
    if device.type != "cuda":
        return host, host
    try:
        return int(torch.cuda.mem_get_info(device)[0]), host
    except RuntimeError:  # ZeroGPU, outside a run: the card is described, but not there
        return int(torch.cuda.get_device_properties(device).total_memory), host


def quantizers(folder: Path, counts: Mapping[str, int], quantize: str | None) -> dict[str, Quantizer]:
    """Return how each part that is held in fewer bits is, from what was saved and what is asked for.

    Args:
        folder: the pipeline's folder.
        counts: parameters of each part.
        quantize: a name in QUANTIZERS, for the transformers and large text encoders that are not quantised already.
    """
    found = {}
    for part, count in counts.items():
        saved = _saved_quantizer(read_json(folder / part / "config.json"))
        large = part.startswith("transformer") or (part.startswith("text_encoder") and count >= LARGE)
        how = saved or (QUANTIZERS[quantize] if quantize and large else None)
        if how is not None:
            found[part] = how
    return found


def needs(
    which: Checkpoint, folder: Path, device: torch.device, dtype: torch.dtype, quantize: str | None = None,
    file: Path | None = None,
) -> Needs:  # fmt: skip
    """Return what the pipeline in a folder, with its transformer perhaps from a file, needs and what this machine has."""
    counts = parameters(folder, which.pipeline)
    how = quantizers(folder, counts, quantize)
    weights = {
        part: int(count * how[part].bits / 8) if part in how else count * dtype.itemsize for part, count in counts.items()
    }
    if file is not None and file.suffix == ".gguf":
        weights["transformer"] = file.stat().st_size
    return Needs(which.name, weights, dtype, device, *free_memory(device), which.working)


@contextmanager
def memory(doing: str, advice: str | Callable[[], str]) -> Iterator[None]:
    """Turn running out of memory, on a device or the host, into one sentence.

    Args:
        doing: what it ran out while doing, "a prompt was encoded".
        advice: what to do; a function is asked once the memory is free again.

    Raises:
        ModelError: where memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what did fit
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise ModelError(f"memory ran out while {doing}; {advice if isinstance(advice, str) else advice()}") from None


def tokens_that_fit(transformer: Any, free: int, text_tokens: int) -> int:
    """Return about how many image tokens a forward has room for: an estimate from the width alone, text included."""
    config = transformer.config
    width = config.get("dim") or config["num_attention_heads"] * config["attention_head_dim"]
    return max(0, int(free / (ACTIVATIONS * width * transformer.dtype.itemsize)) - text_tokens)


def smaller(transformer: Any, device: torch.device, grid: TokenGrid, edge: int, text_tokens: int) -> str:
    """Return the advice for a run whose transformer has run out of memory: a size that fits, and other ways out.

    Args:
        transformer: the model that ran.
        device: where it ran; what is free there now counts.
        grid: the tokens it ran on; a run ends with all cells of its finest grid.
        edge: picture pixels per token side.
        text_tokens: how many text tokens there are.
    """
    frames, rows, cols = grid.shape
    room = min(tokens_that_fit(transformer, free_memory(device)[0], text_tokens), int(0.75 * len(grid)))  # it has just failed
    scale = math.sqrt(room / (frames * rows * cols))
    height, width = (max(1, int(side * scale)) * edge for side in (rows, cols))
    ways = "quantised weights (quantize), offload='group'" if device.type == "cuda" else "dtype bfloat16"
    return f"about {room} tokens fit: use {height} x {width} pixels, or {ways}, or a larger machine"


@dataclass(frozen=True)
class Quantizer:
    """A way to hold weights in fewer bits, through diffusers' own configs.

    Attributes:
        package: the Python package that does it.
        bits: per weight, its scales included.
        cuda: whether it needs a CUDA device.
    """

    package: str
    bits: float
    cuda: bool

    def check(self, asked: str, device: torch.device) -> None:
        """Make sure that it can work here.

        Raises:
            ModelError: where the package or the device is missing.
        """
        if importlib.util.find_spec(self.package) is None:
            raise ModelError(f"{asked} needs the package {self.package}; run: pip install {self.package}")
        if self.cuda and device.type != "cuda":
            raise ModelError(
                f"{asked} needs a CUDA device, but this is to run on {device}; use one, or weights that need none: as "
                "published, quantize 'torchao-int8', or a GGUF file"
            )


QUANTIZERS = {
    "nf4": Quantizer("bitsandbytes", 4.5, cuda=True),
    "int8": Quantizer("bitsandbytes", 8.1, cuda=True),
    "torchao-int8": Quantizer("torchao", 8.1, cuda=False),
    "torchao-float8": Quantizer("torchao", 8.1, cuda=True),
}
"""Names for `Options.quantize`."""

_GGUF = Quantizer("gguf", 8.5, cuda=False)
OFFLOADS = ("auto", "none", "model", "group")
ACTIVATIONS = 24  # numbers per token and unit of width that live at once in a block: MLP, queries, keys, values, float32 rotary
LARGE = 10**9  # text encoders of so many parameters are quantised, too


@dataclass(frozen=True)
class Options:
    """How a checkpoint is loaded and run.

    Attributes:
        quantize: a name in QUANTIZERS, for the transformer and large text encoders; None keeps the weights as they are. What
            was saved quantised, and a GGUF file, is loaded as it is.
        lora: a LoRA to load into the pipeline: a file, a folder, or a repository on the hub.
        offload: "none" keeps all on the device; "model" moves one model at a time there; "group" moves layer by layer and
            needs the least memory; "auto" is the first of them that fits.
        compile: compile the transformer's repeated blocks, once for every number of tokens.
        attention: an attention backend of diffusers ("flash", "sage", "_native_cudnn", ...); None is its default.

    Raises:
        ModelError: on an unknown name.
    """

    quantize: str | None = None
    lora: str | None = None
    offload: str = "auto"
    compile: bool = False
    attention: str | None = None

    def __post_init__(self) -> None:
        if self.quantize is not None and self.quantize not in QUANTIZERS:
            raise ModelError(f"quantize is {self.quantize!r}; it must be one of {', '.join(QUANTIZERS)}")
        if self.offload not in OFFLOADS:
            raise ModelError(f"offload is {self.offload!r}; it must be one of {', '.join(OFFLOADS)}")


def _saved_quantizer(config: Mapping[str, Any]) -> Quantizer | None:
    """Return how a saved model is quantised, from its config.json; None where it is not."""
    saved = config.get("quantization_config")
    if not saved:
        return None
    method = str(saved.get("quant_method"))
    if method == "bitsandbytes":
        return QUANTIZERS["nf4" if saved.get("load_in_4bit") else "int8"]
    return QUANTIZERS["torchao-int8"] if method == "torchao" else Quantizer(method, 8.1, cuda=False)


def _quantization(name: str, found: Iterable[str], dtype: torch.dtype) -> Any:
    """Return diffusers' config that quantises these parts of a pipeline."""
    import diffusers
    import transformers

    def config(library: Any) -> Any:
        if name == "nf4":
            return library.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        if name == "int8":
            return library.BitsAndBytesConfig(load_in_8bit=True)
        from torchao import quantization as ao  # type: ignore[import-not-found,unused-ignore]

        return library.TorchAoConfig(ao.Int8WeightOnlyConfig() if name == "torchao-int8" else ao.Float8WeightOnlyConfig())

    return diffusers.PipelineQuantizationConfig(
        quant_mapping={part: config(diffusers if part.startswith("transformer") else transformers) for part in found}
    )


@dataclass(frozen=True, eq=False)
class Loaded:
    """A placed pipeline.

    Attributes:
        which: the checkpoint.
        pipe: the stock pipeline, in evaluation mode.
        device: where it computes.
        needs: the sentence said before loading.
        provenance: where the weights come from, with a fingerprint.
    """

    which: Checkpoint
    pipe: Any
    device: torch.device
    needs: str
    provenance: str


def load_pipeline(
    which: Checkpoint,
    device: torch.device,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    folder: str | None = None,
    options: Options = Options(),
) -> Loaded:
    """Return a checkpoint's stock pipeline, placed.

    Args:
        which: the checkpoint.
        device: where it is to run. Where a GPU cannot hold all of it, one model or one layer at a time is moved there.
        dtype: the weights' dtype; None is bfloat16, as published.
        revision: branch, tag or commit on the hub; None is what the checkpoint's environment variable pins, else the newest.
        folder: a local diffusers folder, or a single file (.safetensors, .gguf) with the transformer, the other parts coming
            from the folder of the checkpoint's environment variable, else the hub; None is that folder, else the hub.
        options: how it is loaded and run.

    Raises:
        ModelError: where it cannot be had, is damaged, or cannot fit; the message is one sentence that says what to do.
    """
    kind, file = dtype or torch.bfloat16, None
    if folder is not None and Path(folder).suffix in (".safetensors", ".gguf"):
        file, folder = Path(folder), None
        if not file.is_file():
            raise ModelError(f"there is no file {file}; give a single file with a transformer's weights, or a folder")
    local = folder or os.environ.get(which.env)
    if local is not None and local.startswith("@"):  # the hub, pinned
        revision, local = revision or local[1:], None
    if local is not None and revision is not None:
        raise ModelError(
            f"revision {revision!r} names a version on the hub, but {which.name} is read from {local}; leave one out"
        )
    if local is not None and not Path(local).is_dir():
        raise ModelError(f"there is no folder {local}; give one that a diffusers {which.pipeline} was saved to")
    path = Path(local) if local is not None else fetch(which.repo, which.env, revision, _CONFIGS)
    about = needs(which, path, device, kind, options.quantize, file)
    LOG.warning("%s", about.sentence())
    _check_packages(which, path, about, file, options)
    placement = about.check()
    if local is None:
        wanted = [part for part in parts(path) if file is None or part != "transformer"]
        files = ["model_index.json", "transformer/config.json", *(f"{part}/*" for part in wanted)]
        path = fetch(which.repo, which.env, revision, files)
    try:
        with memory(f"{which.name} was loaded", f"{about.sentence()}; close other programs"):
            pipe = _build(which, path, file, kind, options)
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    part.eval()
            _place(pipe, device, placement if options.offload == "auto" else options.offload)
    except FrescoError:
        raise
    except Exception as error:  # safetensors, json, torch, transformers and diffusers each raise their own kinds
        raise ModelError(
            f"the files of {which.name} in {file or path} cannot be read ({_first_line(error)}); download or save them again"
        ) from error
    _prepare(pipe, options)
    origin = f"{which.repo} at {path.name[:12]}" if local is None else f"{which.name} in folder {path.name}"
    origin += f", transformer of {file.name}" if file is not None else ""
    origin += f", quantised {options.quantize}" if options.quantize else ""
    origin += f", LoRA {Path(options.lora).name}" if options.lora else ""
    marks = _fingerprint([file] if file is not None else sorted(path.glob("transformer*/*.safetensors")), options.lora)
    return Loaded(which, pipe, device, about.sentence(), f"{origin}, fingerprint {marks}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


def _check_packages(which: Checkpoint, path: Path, about: Needs, file: Path | None, options: Options) -> None:
    """Say what is missing for the options before anything is read."""
    if file is not None and options.quantize:
        raise ModelError(f"quantize {options.quantize!r} is for weights in a folder; load the file {file.name} as it is")
    if file is not None and file.suffix == ".gguf":
        _GGUF.check(f"the GGUF file {file.name}", about.device)
    for part in about.parts:
        saved = _saved_quantizer(read_json(path / part / "config.json"))
        if saved is not None:
            saved.check(f"the {part} of {path.name}, which was saved quantised,", about.device)
    if options.quantize:
        QUANTIZERS[options.quantize].check(f"quantize {options.quantize!r}", about.device)
    if options.lora is not None and importlib.util.find_spec("peft") is None:
        raise ModelError("a LoRA needs the package peft; run: pip install peft")
    if options.compile and hosting.on_zero():
        raise ModelError("compile cannot be used on ZeroGPU, where every run is a new process; leave it out")
    if options.offload == "model" and about.device.type == "cpu":
        raise ModelError("offload 'model' keeps weights on the host until the GPU needs them; on a cpu leave it out")


def _build(which: Checkpoint, path: Path, file: Path | None, dtype: torch.dtype, options: Options) -> Any:
    """Return the stock pipeline from its files."""
    import diffusers

    extra: dict[str, Any] = {}
    if file is not None:
        cls = getattr(diffusers, parts(path)["transformer"][1])
        if not hasattr(cls, "from_single_file"):
            raise ModelError(f"{cls.__name__} cannot be read from a single file; give a diffusers folder")
        config = diffusers.GGUFQuantizationConfig(compute_dtype=dtype) if file.suffix == ".gguf" else None
        extra["transformer"] = cls.from_single_file(
            str(file), config=str(path), subfolder="transformer", dtype=dtype, quantization_config=config,
            local_files_only=True,
        )  # fmt: skip
    if options.quantize:
        counts = parameters(path, which.pipeline)
        how = quantizers(path, counts, options.quantize)
        new = [part for part in how if _saved_quantizer(read_json(path / part / "config.json")) is None]
        extra["quantization_config"] = _quantization(options.quantize, new, dtype)
    return getattr(diffusers, which.pipeline).from_pretrained(path, dtype=dtype, local_files_only=True, **extra)


def _place(pipe: Any, device: torch.device, how: str) -> None:
    """Put a pipeline where it computes: "resident" or "none", "model", or "group"."""
    if how == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif how == "group":
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda")
    else:
        pipe.to(device)


def _prepare(pipe: Any, options: Options) -> None:
    """Load the LoRA, set the attention and compile, in this order."""
    lora = options.lora
    if lora is not None:
        try:
            given = {"weight_name": Path(lora).name} if Path(lora).is_file() else {}
            pipe.load_lora_weights(str(Path(lora).parent) if given else lora, **given)
        except Exception as error:  # the hub's, peft's and safetensors' own kinds
            raise ModelError(
                f"the LoRA {lora} cannot be loaded ({_first_line(error)}); give a file, folder or repository with one for "
                f"{type(pipe.transformer).__name__}"
            ) from error
        if not pipe.get_active_adapters():
            raise ModelError(f"the LoRA {lora} holds no weights for {type(pipe.transformer).__name__}; give one made for it")
    for transformer in (getattr(pipe, name, None) for name in ("transformer", "transformer_2")):
        if transformer is None:
            continue
        if options.attention is not None:
            try:
                transformer.set_attention_backend(options.attention)
            except (ValueError, RuntimeError, ImportError) as error:
                raise ModelError(
                    f"attention backend {options.attention!r} cannot be used here ({_first_line(error)})"
                ) from error
        if options.compile:
            compile_blocks(transformer)


def compile_blocks(transformer: Any, **how: Any) -> None:
    """Compile a transformer's blocks, one graph for every number of tokens; `how` goes to `torch.compile`.

    They are those that the class names as repeated; SD3's names none: then all that stand in lists of its own.
    """
    if not transformer._repeated_blocks:
        lists = [part for part in transformer.children() if isinstance(part, torch.nn.ModuleList)]
        transformer._repeated_blocks = sorted({type(block).__name__ for blocks in lists for block in blocks})
    transformer.compile_repeated_blocks(dynamic=True, **how)


def _fingerprint(files: Iterable[Path], lora: str | None = None) -> str:
    """Return 12 hex digits that tell weights apart: each file's size and its last mebibyte, not all its gigabytes."""
    files = list(files)
    if lora is not None and Path(lora).exists():
        files += [Path(lora)] if Path(lora).is_file() else sorted(Path(lora).glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.parent.name}/{path.name} {size}".encode())
        with path.open("rb") as file:
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:12]


def _tiny_autoencoder(repo: str, device: torch.device, dtype: torch.dtype, channels: int) -> Any:
    """Return the tiny autoencoder for previews, or None where it cannot be had."""
    from diffusers import AutoencoderTiny

    env = _variable(repo)
    try:
        named = os.environ.get(env)
        folder = Path(named) if named else fetch(repo, env, None, ["config.json", "*.safetensors"])
        vae = AutoencoderTiny.from_pretrained(folder, dtype=dtype, local_files_only=True).eval().to(device)
        if vae.config.latent_channels != channels:
            raise ModelError(f"it has {vae.config.latent_channels} latent channels, the model {channels}")
    except (OSError, ValueError, RuntimeError) as error:  # FrescoErrors are ValueErrors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        LOG.warning("previews come from the full decoder, which is slower: no tiny autoencoder (%s)", reason[:200])
        return None
    return vae


class HubModel(ABC):
    """A checkpoint with its own text encoders and autoencoder; a subclass brings `embed` and `bind`.

    Attributes beyond those of `fresco.denoiser.Model`:
        which: the checkpoint.
        pipe: the stock pipeline whose parts these are.
        transformer: its transformer; `family`: that one's family.
        frame_stride, pixels_per_token: picture frames per latent frame, and picture pixels per token side.
        needs: the sentence said before loading.
        native_size: (frames, height, width) in pixels where a run names none.
        preview_vae: the tiny autoencoder, or None: previews then come from the full decoder.
        video: whether the autoencoder takes (batch, C, frames, H, W); set by the class.
    """

    video = False
    preview_vae: Any = None

    def __init__(self, loaded: Loaded) -> None:
        """Take over a loaded pipeline."""
        which, pipe = loaded.which, loaded.pipe
        self.name, self.which, self.pipe, self.device = which.name, which, pipe, loaded.device
        self.needs, self.provenance = loaded.needs, loaded.provenance
        self.transformer, self.dtype, self.family = pipe.transformer, pipe.transformer.dtype, family_of(pipe.transformer)
        self.frame_stride, self.pixels_per_token = self.family.pixels(pipe)
        self.native_size = which.size or self.native()
        if which.preview is not None:
            self.preview_vae = _tiny_autoencoder(which.preview, self.device, self.dtype, self.latent_channels())
        self._lock = threading.Lock()  # a fast tokenizer cannot be set to truncate from two threads at once

    def native(self) -> tuple[int, int, int]:
        """Return the size in pixels that the pipeline itself takes where a call names none."""
        side = int(self.pipe.default_sample_size) * self.pixels_per_token // self.family.patch
        return 1, side, side

    def latent_channels(self) -> int:
        """Return the autoencoder's latent channels."""
        return int(self.pipe.vae.config.latent_channels)

    @abstractmethod
    def embed(self, text: str) -> dict[str, torch.Tensor]:
        """Return the tensors of one prompt, without a batch axis; called by one thread at a time, without gradients."""

    def negative(self) -> Conditioning:
        """Return the conditioning that guidance leads away from: that of the empty prompt."""
        return self.encode("")

    @torch.no_grad()
    def encode(self, prompt: str) -> Conditioning:
        """Return the conditioning of a prompt.

        Raises:
            ModelError: where memory ran out.
        """
        text = prompt.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair would stop a tokenizer
        with self._lock, memory("the prompt was encoded", "close other programs, or use a machine with more memory"):
            self.pipe.maybe_free_model_hooks()  # offloaded: the last run's transformer makes room for the text encoders
            return Conditioning(prompt, self.embed(text))

    def plain(self, vae: Any, latent: torch.Tensor) -> torch.Tensor:
        """Return what an autoencoder decodes from the sampler's latent, the normalised one; channels are the second axis."""
        config = vae.config
        if config.get("latents_mean") is not None:
            shape = (1, -1, *[1] * (latent.ndim - 2))
            mean, std = (latent.new_tensor(config[name]).view(shape) for name in ("latents_mean", "latents_std"))
            return latent * std + mean
        return latent / float(config.get("scaling_factor", 1.0)) + float(config.get("shift_factor") or 0.0)

    def pixels(self, vae: Any, latent: torch.Tensor) -> torch.Tensor:
        """Return RGB in [-1, 1], (3, frames, H, W), from a clean latent (C, frames, h, w), float32."""
        batch = latent[None] if self.video else latent.transpose(0, 1)  # the frames are the batch
        made: torch.Tensor = vae.decode(self.plain(vae, batch).to(vae.dtype), return_dict=False)[0]
        return made[0] if self.video else made.transpose(0, 1)

    @torch.no_grad()
    def _pictures(self, vae: Any, latent: torch.Tensor) -> NDArray[Any]:
        scale = self.pixels_per_token // self.family.patch
        size = " x ".join(str(side * scale) for side in latent.shape[2:])
        with memory(f"a picture of {size} was decoded", "use a smaller size, or a GPU with more memory"):
            return to_uint8(self.pixels(vae, latent.to(self.device, torch.float32)))

    def decode(self, latent: torch.Tensor) -> NDArray[Any]:
        """Return (T, H, W, 3) uint8 from a clean latent (C, frames, rows*p, cols*p), by the full decoder.

        Where it does not fit it is decoded tile by tile, from then on.

        Raises:
            ModelError: where memory ran out.
        """
        vae = self.pipe.vae
        try:
            return self._pictures(vae, latent)
        except ModelError as error:
            if getattr(vae, "use_tiling", True):
                raise
            LOG.warning("%s: decoding tile by tile", error)
            vae.enable_tiling()
            return self._pictures(vae, latent)

    def preview(self, latent: torch.Tensor) -> NDArray[Any]:
        """Return (T, H, W, 3) uint8 by the tiny autoencoder where there is one; as `decode` otherwise."""
        return self._pictures(self.pipe.vae if self.preview_vae is None else self.preview_vae, latent)


M = TypeVar("M", bound=HubModel)


def loader(checkpoints: Mapping[str, Checkpoint], model: type[M]) -> Callable[..., M]:
    """Return a backend's `load(device, dtype, revision, *, name, folder, **options)`, as `fresco.load_model` calls it."""

    def load(
        device: torch.device,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        *,
        name: str,
        folder: str | None = None,
        **options: Any,
    ) -> M:
        """Return a checkpoint; see `load_pipeline`, and `Options` for the further keywords."""
        return model(load_pipeline(checkpoints[name], device, dtype, revision, folder, Options(**options)))

    return load


def to_uint8(pixels: torch.Tensor) -> NDArray[Any]:
    """Return (T, H, W, 3) uint8 from RGB in [-1, 1], (3, T, H, W); values beyond are cut off."""
    scaled = (pixels.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()  # type: ignore[no-any-return]
