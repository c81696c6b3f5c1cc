"""What a token of the bundled model should hold: FLUX's latents, or pixels. Both, small, at equal compute.

    OMP_WAIT_POLICY=PASSIVE python -m tests.benchmarks.tokens vae --data out/data --out out/tokens
    OMP_WAIT_POLICY=PASSIVE python -m tests.benchmarks.tokens latents --data out/data --out out/tokens    # and: pixels
    python -m tests.benchmarks.tokens report --data out/data --out out/tokens

Each token covers 16 x 16 pixels of pictures of 128, so that both have 8 x 8 tokens, one transformer, the same pictures in
the same order and the same noise levels. `latents` is FLUX's geometry: an autoencoder of 8 x 8 pixels to 16 channels,
trained first so that pooling commutes with it (its cost comes on top), 2 x 2 packing, velocity prediction. `pixels` predicts
x0 with the loss of the velocity. Scores by the bundled model's judge on combinations that were kept back. About an hour on
two cores, the second and third command side by side; for the data see `fresco/training`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange  # type: ignore[import-untyped]

from fresco.backends.sinopia import assets_dir
from fresco.lab.own_judge import OwnJudge
from fresco.schedule import shift
from fresco.training import data
from fresco.training.recipes import PlainRecipes, Scene, Split
from fresco.training.scenes import Composer, pack
from fresco.training.text import CaptionEncoder
from fresco.training.train import DROP, POOLED_RATE, PRESETS, SIGMA_RANGE, draw_sigmas, new_model, predict, velocity_loss

SIDE, EDGE = 128, 16  # pixels: of a picture, and of a token
CONCEPTS = 5  # every fifth: so many pictures at this length are enough for the model to know them
POOL = 2048  # scenes that are drawn once
CROP = 64  # pixels: what the autoencoder learns from at once
ALPHA, HIGH, GUIDANCE = 2.0, 0.3, 2.0
NOISE = 0.05  # on latents while the autoencoder is trained, whose own deviation is 1
PRESET = replace(PRESETS["plain"], double=1, single=5)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """Pictures (N, 3, 128, 128) uint8, the text input of their captions, and what they show."""

    pixels: torch.Tensor
    states: torch.Tensor
    pooled: torch.Tensor
    scenes: list[Scene]


def world(folder: Path, split: Split, count: int, every: int = CONCEPTS) -> tuple[World, data.Library]:
    """Return so many scenes of every so-manieth of the bundled model's subjects; in `eval` they are told in full."""
    known = json.loads((assets_dir() / "sinopia.json").read_text(encoding="utf-8"))
    library = data.load(folder, PRESET.icon).called(known["concepts"][::every], known["styles"])
    recipes, composer, text = PlainRecipes(library, 0, split), Composer(library, CPU), CaptionEncoder(PRESET.max_tokens, CPU)
    scenes = [scene for scene in map(recipes, range(4 * count)) if split == "train" or " style, on " in scene.caption][:count]
    pixels = torch.cat([unsigned(composer(pack(scenes[at : at + 128]), SIDE)) for at in range(0, count, 128)])
    return World(pixels, *text(*text.tokenizer([scene.caption for scene in scenes])), scenes), library


def signed(pixels: torch.Tensor) -> torch.Tensor:
    """Return uint8 pixels as float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def unsigned(x: torch.Tensor) -> torch.Tensor:
    """Return pixels in [-1, 1], cut to that range, as uint8: the inverse of `signed`."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_tokens(x: torch.Tensor, edge: int) -> torch.Tensor:
    """Return (B, N, C * edge * edge), ordered (c, dy, dx), of (B, C, H, W)."""
    return functional.pixel_unshuffle(x, edge).flatten(2).transpose(1, 2)


def from_tokens(tokens: torch.Tensor, edge: int) -> torch.Tensor:
    """Return the square (B, C, H, W) of its tokens: the inverse of `to_tokens`."""
    side = SIDE // EDGE
    return functional.pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, side, side), edge)


# ---------------------------------------------------------------------------------------------------------- the autoencoder


def train_vae(pictures: torch.Tensor, steps: int, batch: int) -> Any:
    """Return an autoencoder, f8 with 16 channels, for which pooling before is much as pooling after."""
    torch.manual_seed(0)
    width = (32,) * 4
    vae = AutoencoderTiny(
        encoder_block_out_channels=width, decoder_block_out_channels=width, latent_channels=16,
        num_encoder_blocks=(1, 1, 2, 2), num_decoder_blocks=(2, 2, 1, 1), act_fn="silu",
    )  # fmt: skip
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.05)
    for _ in (bar := trange(steps, desc="autoencoder")):
        top, left = torch.randint(SIDE - CROP + 1, (2,)).tolist()
        x = signed(pictures[torch.randint(len(pictures), (batch,)), :, top : top + CROP, left : left + CROP])
        half = functional.avg_pool2d(x, 2)
        latent, small = vae.encode(x).latents, vae.encode(half).latents
        pooled = functional.avg_pool2d(latent, 2)
        mean, spread = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
        seen = vae.decode(latent + NOISE * torch.randn_like(latent)).sample - x
        below = vae.decode(pooled).sample - half
        loss = (
            seen.square().mean() + 0.2 * seen.abs().mean() + 0.5 * below.square().mean()
            + 0.1 * (pooled - small).square().mean()
            + 0.02 * (mean.square().mean() + (spread - 1).square().mean())
        )  # fmt: skip
        bar.set_postfix(error=f"{seen.square().mean():.4f}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return vae.eval()


@torch.no_grad()
def measure_vae(vae: Any, pictures: torch.Tensor) -> dict[str, float]:
    """Return how well the autoencoder keeps pictures, and how nearly pooling commutes with it."""
    x = signed(pictures)
    half, latent = functional.avg_pool2d(x, 2), vae.encode(x).latents
    small, pooled = vae.encode(half).latents, functional.avg_pool2d(latent, 2)

    def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((10 * torch.log10(4 / (a.clamp(-1, 1) - b).square().mean((1, 2, 3)))).mean())

    return {
        "psnr": psnr(vae.decode(latent).sample, x),
        "psnr_small": psnr(vae.decode(small).sample, half),
        "psnr_pooled": psnr(vae.decode(pooled).sample, half),
        "pooling_error": float((pooled - small).square().mean() / small.var((0, 2, 3)).mean()),
    }


# -------------------------------------------------------------------------------------------------------- either kind of token


class Pixels:
    """Tokens of 16 x 16 pixels; the model predicts x0."""

    edge = EDGE

    def enter(self, pixels: torch.Tensor) -> torch.Tensor:
        return signed(pixels)

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def loss(self, found: torch.Tensor, x0: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return velocity_loss(found, x0, sigma)

    def velocity(self, z: torch.Tensor, found: torch.Tensor, sigma: float) -> torch.Tensor:
        return (z - found.clamp(-1.1, 1.1)) / sigma


class Latents:
    """Tokens of 2 x 2 latents, scaled to a deviation of 1; the model predicts the velocity."""

    edge = 2

    def __init__(self, folder: Path) -> None:
        self.vae: Any = AutoencoderTiny.from_pretrained(folder / "vae").eval()
        self.shift, self.scale = self.vae.config.shift_factor, self.vae.config.scaling_factor

    @torch.no_grad()
    def enter(self, pixels: torch.Tensor) -> torch.Tensor:
        found = torch.cat([self.vae.encode(signed(pixels[at : at + 64])).latents for at in range(0, len(pixels), 64)])
        return (found - self.shift) * self.scale  # type: ignore[no-any-return]

    @torch.no_grad()
    def leave(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.vae.decode(x / self.scale + self.shift).sample
        return found

    def loss(self, found: torch.Tensor, x0: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return (found - (eps - x0)).square().mean()

    def velocity(self, z: torch.Tensor, found: torch.Tensor, sigma: float) -> torch.Tensor:
        return found


Space = Pixels | Latents


def train(space: Space, seen: World, steps: int, batch: int, lr: float) -> Any:
    """Return a transformer's averaged weights after so many steps from noise."""
    x = torch.cat([to_tokens(space.enter(part), space.edge) for part in torch.split(seen.pixels, 256)])  # type: ignore[no-untyped-call]
    text = CaptionEncoder(PRESET.max_tokens, CPU)
    blank = [part[0] for part in text(*text.tokenizer([""]))]
    model = new_model({**PRESET.config(seen.pooled.shape[1]), "in_channels": x.shape[2]}, 0).train()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(PRESET.ema))  # type: ignore[no-untyped-call]
    pooled = model.time_text_embed.text_embedder.linear_1.weight
    groups = [{"params": [p for p in model.parameters() if p is not pooled]}, {"params": [pooled]}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, [lr, lr * POOLED_RATE], steps, pct_start=0.03)
    for step in trange(steps, desc=type(space).__name__.lower()):
        draw = torch.Generator().manual_seed(step)
        at = torch.randint(len(x), (batch,), generator=draw)
        gone = torch.rand(batch, generator=draw) < DROP
        sigma = draw_sigmas(batch, ALPHA, draw, HIGH)
        x0 = x[at]
        eps = torch.randn(x0.shape, generator=draw)
        states = torch.where(gone[:, None, None], blank[0], seen.states[at])
        vectors = torch.where(gone[:, None], blank[1], seen.pooled[at])
        found = predict(model, torch.lerp(x0, eps, sigma[:, None, None]), sigma, states, vectors)
        optimizer.zero_grad()
        space.loss(found, x0, eps, sigma).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        ema.update_parameters(model)
    return ema.module.eval()


@torch.no_grad()
def draw(space: Space, model: Any, asked: World, steps: int = 24) -> NDArray[np.uint8]:
    """Return (N, 128, 128, 3) uint8 pictures of captions: an Euler loop with classifier-free guidance."""
    text = CaptionEncoder(PRESET.max_tokens, CPU)
    blank = text(*text.tokenizer([""]))
    n = len(asked.scenes)
    both = torch.cat([blank[0].expand(n, -1, -1), asked.states]), torch.cat([blank[1].expand(n, -1), asked.pooled])
    z = torch.randn(n, (SIDE // EDGE) ** 2, model.config.in_channels, generator=torch.Generator().manual_seed(0))
    for sigma, after in pairwise([shift(1 - k / steps, ALPHA) for k in range(steps)] + [0.0]):
        level = torch.full((2 * n,), min(sigma, SIGMA_RANGE[1]))
        without, given = predict(model, torch.cat([z, z]), level, *both).chunk(2)
        z = z + (after - sigma) * space.velocity(z, without + GUIDANCE * (given - without), sigma)
    return unsigned(space.leave(from_tokens(z, space.edge))).permute(0, 2, 3, 1).numpy()


def graded(judge: OwnJudge, pictures: NDArray[np.uint8], asked: World, library: data.Library) -> str:
    """Return a row of the report: the judge's score, the shares it recognises, the Frechet distance."""
    seen = judge.classify(pictures)
    things = [scene.things[0].concept for scene in asked.scenes]
    styles = [scene.caption.split(", ")[-2].removesuffix(" style") for scene in asked.scenes]
    wanted = {"concept": [library.names[c] for c in things], "style": styles, "colour": [s.colours[0] for s in asked.scenes]}
    shares = [f"{np.mean([a == b for a, b in zip(seen[kind], names, strict=True)]):.2f}" for kind, names in wanted.items()]
    score = judge.scores([scene.caption for scene in asked.scenes], pictures).diagonal().mean()
    return " | ".join([f"{score:.1f}", *shares, f"{judge.distance(pictures):.1f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["vae", "latents", "pixels", "report"])
    parser.add_argument("--data", type=Path, default=Path("out/data"))
    parser.add_argument("--out", type=Path, default=Path("out/tokens"))
    parser.add_argument("--steps", type=int, help="of training; by default 2,000 of the autoencoder, 1,200 of a transformer")
    parser.add_argument(
        "--batch", type=int, help="per step; by default 8 crops for the autoencoder, 16 pictures for a transformer"
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pictures", type=int, default=60, help="kept back, that the report draws")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "vae":
        seen, _ = world(args.data, "train", POOL, every=1)
        vae = train_vae(seen.pixels, args.steps or 2000, args.batch or 8)
        with torch.no_grad():
            latents = vae.encode(signed(seen.pixels[:256])).latents
        vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))
        vae.save_pretrained(args.out / "vae")
        return
    if args.part != "report":
        seen, _ = world(args.data, "train", POOL)
        space = Pixels() if args.part == "pixels" else Latents(args.out)
        train(space, seen, args.steps or 1200, args.batch or 16, args.lr).save_pretrained(args.out / args.part)
        return
    asked, library = world(args.data, "eval", args.pictures)
    latents, judge = Latents(args.out), OwnJudge()
    print({name: round(value, 4) for name, value in measure_vae(latents.vae, asked.pixels).items()})
    real = asked.pixels.permute(0, 2, 3, 1).numpy()
    kept = unsigned(latents.leave(latents.enter(asked.pixels)))
    rows = {"the drawings": real, "through the autoencoder": kept.permute(0, 2, 3, 1).numpy()}
    for name, space in (("latents", latents), ("pixels", Pixels())):
        if (args.out / name).is_dir():
            rows[name] = draw(space, FluxTransformer2DModel.from_pretrained(args.out / name).eval(), asked)
    print("| pictures | judge | object | style | colour | Frechet |\n| --- |" + " --- |" * 5)
    for name, pictures in rows.items():
        print(f"| {name} | {graded(judge, pictures, asked, library)} |")
        Image.fromarray(np.concatenate([np.concatenate(pictures[k : k + 12], 1) for k in range(0, 60, 12)])).save(
            args.out / f"{name.replace(' ', '-')}.png"
        )


if __name__ == "__main__":
    main()
