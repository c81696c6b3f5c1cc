"""The bundled model's own judge: how well a picture fits a caption of its small world, and how real it looks.

Public judges (CLIP, ImageReward) have never seen this world's drawings at 64 pixels, and need a hub. This one is a small
contrastive image-text model in the manner of CLIP, with three classifiers, trained by `fresco.training.judge` on renders of
the same drawings, never on generated pictures. Its architecture and split were fixed before any run of Fresco was scored.
Two things at once it tells by looking at either half, several by looking closer; a second, tiny net counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fresco.errors import FrescoError
from fresco.metrics import Picture

SIDE = 64  # pixels that it looks at; larger pictures are averaged down to it
FOLDER = Path(__file__).resolve().parents[2] / "assets" / "benchmark"


class _Block(nn.Module):
    """A residual block: two 3 x 3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.na, self.nb = (nn.GroupNorm(8, width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(functional.silu(self.nb(self.a(functional.silu(self.na(x))))))  # type: ignore[no-any-return]


class JudgeNet(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] and sentence vectors (B, 384) into one space of unit vectors; 3 classifiers.

    Args:
        concepts, styles, colours: how many of each the classifiers tell apart.
    """

    def __init__(self, concepts: int, styles: int, colours: int, width: int = 32, joint: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1)]
        for k in (1, 2, 4):
            layers += [
                nn.Conv2d(width * k, width * 2 * k, 3, stride=2, padding=1),
                _Block(width * 2 * k),
                _Block(width * 2 * k),
            ]
        self.eye = nn.Sequential(*layers, nn.GroupNorm(8, width * 8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.see = nn.Linear(width * 8, joint)
        self.read = nn.Sequential(nn.Linear(384, 256), nn.SiLU(), nn.Linear(256, joint))
        self.heads = nn.ModuleDict({
            name: nn.Linear(width * 8, n) for name, n in (("concept", concepts), ("style", styles), ("colour", colours))
        })  # fmt: skip
        self.scale = nn.Parameter(torch.tensor(2.5))  # log of the inverse temperature

    def pictures(self, features: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (B, joint) of features (B, 256)."""
        return functional.normalize(self.see(features), dim=-1)

    def captions(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (B, joint) of sentence vectors (B, 384)."""
        return functional.normalize(self.read(vectors), dim=-1)


class CountNet(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] of one to four of the same thing into logits (B, 4) of how many they are."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1)]
        for k in (1, 2):
            layers += [nn.Conv2d(width * k, width * 2 * k, 3, stride=2, padding=1), _Block(width * 2 * k)]
        self.net = nn.Sequential(
            *layers, nn.GroupNorm(8, width * 4), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width * 4, 4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def views(pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Return squares (B, s, s, 3) of square pictures (B, S, S, 3): either half, quarters, thirds of the middle row."""
    side = pictures.shape[2]
    half, third = side // 2, side // 3
    corners = {"left": (half // 2, 0, half), "right": (half // 2, side - half, half)}
    corners |= {f"quarter {k}": (k // 2 * half, k % 2 * half, half) for k in range(4)}
    corners |= {f"third {k}": ((side - third) // 2, k * third, third) for k in range(3)}
    return {name: pictures[:, y : y + s, x : x + s] for name, (y, x, s) in corners.items()}


def prepared(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Return (B, 3, 64, 64) in [-1, 1] from (B, H, W, 3) uint8: averaged down, or linearly up, to 64 pixels."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if x.shape[2:] == (SIDE, SIDE):
        return x
    if min(x.shape[2:]) >= SIDE:
        return functional.adaptive_avg_pool2d(x, SIDE)
    return functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True)


class OwnJudge:
    """The judge of the bundled model, in the form of `fresco.lab.judges.Judge`.

    A score is 100 times the cosine of picture and caption, as CLIP score is told.
    """

    name = "judge"

    def __init__(self, device: str = "cpu", folder: Path = FOLDER) -> None:
        """Load the judge; it always runs on the CPU, whatever the device.

        Raises:
            FrescoError: where it has not been trained.
        """
        from safetensors.torch import load_file

        if not (folder / "judge.json").is_file():
            raise FrescoError(
                f"the judge has no weights in {folder.name}/; train them: python -m fresco.training.judge (about an hour "
                "on a CPU), or choose another judge"
            )
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
        names = [self.about[kind] for kind in ("concepts", "styles", "colours")]
        self.net = JudgeNet(*(len(n) for n in names)).eval()
        self.net.load_state_dict({k: v.float() for k, v in load_file(folder / "judge.safetensors").items()})
        self.names = dict(zip(("concept", "style", "colour"), names, strict=True))

    @cached_property
    def _text(self) -> Any:
        from fresco.backends.sinopia import TextEncoder

        return TextEncoder(int(self.about["max_tokens"]), torch.device("cpu"))

    @cached_property
    def asked(self) -> dict[str, dict[str, str]]:
        """Prompt of the benchmark -> its line: what it is `told` as, whatever the spelling, and what it asks for."""
        files = [FOLDER / f"{name}.jsonl" for name in ("prompts", "development")]
        rows = [json.loads(line) for file in files if file.is_file() for line in file.read_text(encoding="utf-8").splitlines()]
        return {row["prompt"]: row for row in rows}

    @cached_property
    def real(self) -> Moments:
        """Mean and covariance of the features of real drawings in combinations that it was not trained on."""
        with np.load(self.folder / "judge_real.npz") as file:
            return file["mean"].astype(np.float64), file["covariance"].astype(np.float64)

    @torch.no_grad()
    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (B, 256) features of pictures (B, H, W, 3) uint8: the space of the Frechet distance."""
        return self.net.eye(prepared(pictures)).numpy()  # type: ignore[no-any-return]

    @torch.no_grad()
    def scores(self, prompts: Sequence[str], pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (B, P): 100 times the cosine of each picture (B, H, W, 3) with each prompt, or with what it is `told` as."""
        seen = self.net.pictures(torch.from_numpy(self.features(pictures)))
        told = self.net.captions(self._text([self._told(prompt) for prompt in prompts])[1])
        return (100 * seen @ told.T).numpy()  # type: ignore[no-any-return]

    @torch.no_grad()
    def classify(self, pictures: NDArray[np.uint8]) -> dict[str, list[str]]:
        """Return what each picture shows: {"concept" | "style" | "colour": (B,) names}."""
        seen = torch.from_numpy(self.features(pictures))
        return {k: [self.names[k][i] for i in head(seen).argmax(1).tolist()] for k, head in self.net.heads.items()}

    def sides(self, pictures: NDArray[np.uint8]) -> dict[str, list[str]]:
        """Return {"left" | "right": (B,) names}: the subject that either half of pictures (B, H, W, 3) shows by itself."""
        found = views(pictures)
        return {side: self.classify(found[side])["concept"] for side in ("left", "right")}

    def sightings(self, pictures: NDArray[np.uint8]) -> list[set[str]]:
        """Return (B,) the subjects that pictures (B, H, W, 3) show at large or in any of their `views`.

        For several things, which are too small for one look. How often that finds what is there, and what is not, stands in
        `judge.json`.
        """
        seen = [self.classify(each)["concept"] for each in (pictures, *views(pictures).values())]
        return [set(names) for names in zip(*seen, strict=True)]

    @cached_property
    def _counter(self) -> CountNet:
        from safetensors.torch import load_file

        net = CountNet().eval()
        net.load_state_dict({k: v.float() for k, v in load_file(self.folder / "count.safetensors").items()})
        return net

    @torch.no_grad()
    def count(self, pictures: NDArray[np.uint8]) -> list[str]:
        """Return (B,) "1" to "4": how many of one thing pictures (B, H, W, 3) show."""
        return [str(1 + i) for i in self._counter(prepared(pictures)).argmax(1).tolist()]

    def _told(self, prompt: str) -> str:
        return self.asked[prompt]["told"] if prompt in self.asked else prompt

    def __call__(self, prompt: str, picture: Picture) -> float:
        """Return the score of a picture (T, H, W, 3) uint8 for a prompt; a video's is the mean over its frames."""
        return float(self.scores([prompt], picture).mean())

    def distance(self, pictures: NDArray[np.uint8]) -> float:
        """Return the squared Frechet distance of pictures (B, H, W, 3) to real drawings, in this judge's features."""
        return frechet(moments(self.features(pictures)), self.real)


class Grader(OwnJudge):
    """The judge's classifiers: the share of what a prompt of the benchmark asks for that they see.

    That is object, style, colour and count, or, of two things, which stands on the left and which on the right.
    """

    name = "judge-asked"
    kinds: tuple[str, ...] = ("concept", "style", "colour", "count", "left", "right")

    def __call__(self, prompt: str, picture: Picture) -> float:
        """Return the share, 0 to 1, for a picture (T, H, W, 3) uint8; a video's is the mean over its frames.

        Raises:
            FrescoError: where the prompt is not one of the benchmark's, so that nobody has said what it asks for.
        """
        if prompt not in self.asked:
            raise FrescoError(
                f"{self.name} does not know what {prompt[:60]!r} asks for; use the prompts of assets/benchmark, or `judge`"
            )
        row = self.asked[prompt]
        wanted = [kind for kind in self.kinds if kind in row]
        seen, hits = self.classify(picture), {}
        if "count" in wanted:
            seen["count"] = self.count(picture)
            hits["concept"] = [row["concept"] in names for names in self.sightings(picture)]
        if "left" in wanted:  # of two things the subject is the left one, not what the whole picture looks like
            seen |= self.sides(picture)
            wanted.remove("concept")
        hits = {kind: [name == row[kind] for name in seen[kind]] for kind in wanted} | hits
        return float(np.mean(list(hits.values())))


class ObjectGrader(Grader):
    """As `Grader`, the object alone: every prompt asks for one."""

    name = "judge-object"
    kinds = ("concept",)


Moments = tuple[NDArray[np.float64], NDArray[np.float64]]


def moments(features: NDArray[np.floating[Any]]) -> Moments:
    """Return the mean (F,) and the covariance (F, F) of features (N, F).

    Raises:
        ValueError: below two rows.
    """
    if len(features) < 2:
        raise ValueError(f"a Frechet distance needs at least 2 pictures on each side; got {len(features)}")
    return features.mean(0, dtype=np.float64), np.cov(features.astype(np.float64), rowvar=False)


def frechet(a: Moments, b: Moments) -> float:
    """Return the squared Frechet distance of two Gaussians, each a mean (F,) and a covariance (F, F).

    `|mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)`. Source: Heusel et al. 2017.
    """
    (ma, ca), (mb, cb) = a, b
    values, vectors = np.linalg.eigh(ca)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    return float(((ma - mb) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross)
