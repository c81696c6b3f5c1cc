"""Scores of a picture for its prompt, through the field's own packages; each is optional and says how to get it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fresco.errors import FrescoError
from fresco.lab.own_judge import Grader, ObjectGrader, OwnJudge

Picture = NDArray[np.uint8]


class JudgeError(FrescoError):
    """A judge that is unknown or not installed; the message says what to do."""


class Judge(Protocol):
    """Whoever scores a picture: higher is better."""

    name: str
    """What its scores are called in results and tables."""

    def __call__(self, prompt: str, picture: Picture) -> float:
        """Return the score of a picture (T, H, W, 3) uint8 for a prompt; a video's is the mean over its frames."""


@runtime_checkable
class CrowdJudge(Protocol):
    """A judge that can also tell how far a set of pictures is from real ones."""

    def distance(self, pictures: Picture) -> float:
        """Return the squared Frechet distance of pictures (B, H, W, 3) uint8 to real ones: lower is better."""


class _Framed:
    """A judge of single frames."""

    name: str

    def __call__(self, prompt: str, picture: Picture) -> float:
        """Return the mean score of the frames."""
        return float(np.mean([self.frame(prompt, Image.fromarray(frame)) for frame in picture]))

    def frame(self, prompt: str, image: Image.Image) -> float:
        """Return one frame's score."""
        raise NotImplementedError


class ImageReward(_Framed):
    """ImageReward v1.0, the paper's main score. Source: arXiv 2304.05977, package image-reward."""

    name = "image-reward"

    def __init__(self, device: str) -> None:
        package = _import("ImageReward", "image-reward")
        self._model = package.load("ImageReward-v1.0", device=device)

    def frame(self, prompt: str, image: Image.Image) -> float:
        """Return the reward, about -2 to 2."""
        return float(self._model.score(prompt, image))


class ClipScore(_Framed):
    """100 times the cosine of CLIP's image and text embeddings. Source: arXiv 2104.08718, package open_clip_torch.

    Deviation: the paper does not say which CLIP it used; ViT-L-14 of OpenAI is this project's choice.
    """

    name = "clip-score"

    def __init__(self, device: str, model: str = "ViT-L-14", weights: str | None = "openai") -> None:
        package = _import("open_clip", "open_clip_torch")
        self._device = device
        self._model, _, self._pixels = package.create_model_and_transforms(model, pretrained=weights, device=device)
        self._model.eval()
        self._tokens = package.get_tokenizer(model)

    @torch.no_grad()
    def frame(self, prompt: str, image: Image.Image) -> float:
        """Return the score, -100 to 100."""
        seen = self._model.encode_image(self._pixels(image)[None].to(self._device))
        read = self._model.encode_text(self._tokens([prompt]).to(self._device))
        return float(100 * torch.nn.functional.cosine_similarity(seen, read)[0])


class ClipIqa(_Framed):
    """CLIP-IQA, which looks at the picture alone. Source: arXiv 2207.12396, package pyiqa."""

    name = "clip-iqa"

    def __init__(self, device: str) -> None:
        self._device = device
        self._metric = _import("pyiqa", "pyiqa").create_metric("clipiqa", device=device)

    @torch.no_grad()
    def frame(self, prompt: str, image: Image.Image) -> float:
        """Return the quality, 0 to 1."""
        pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None].float() / 255
        return float(self._metric(pixels.to(self._device)))


JUDGES: dict[str, Callable[[str], Judge]] = {
    "judge": OwnJudge,
    "judge-asked": Grader,
    "judge-object": ObjectGrader,
    "image-reward": ImageReward,
    "clip-score": ClipScore,
    "clip-iqa": ClipIqa,
}
"""Name -> judge, made with the name of a device; those called judge are the bundled model's own and need no package."""


def load_judge(name: str, device: str = "cpu") -> Judge:
    """Return a judge of the registry.

    Raises:
        JudgeError: on an unknown name, or where its package is not installed.
    """
    if name not in JUDGES:
        raise JudgeError(f"judge {name!r} is not known; choose one of {', '.join(JUDGES)}")
    return JUDGES[name](device)


def _import(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise JudgeError(
            f"this score needs the package {package}, which cannot be imported ({error}); run: pip install {package}"
        ) from None
