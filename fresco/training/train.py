"""The training loop: scenes in, a FLUX-architecture transformer out; stops and goes on at any step.

Every random number of a step comes from (seed, step): scenes, dropped captions, noise levels and noise. So a run that was
stopped and resumed is the run that was not. The model predicts x0 and its loss is that of the velocity.
Source: arXiv 2511.13720 (x0 prediction); arXiv 2403.03206 (logit-normal, shifted noise levels).
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from numpy.typing import NDArray

from fresco.backends import pick_device as pick_device
from fresco.backends.sinopia import assets_dir
from fresco.schedule import shift
from fresco.training.data import DataError, Library
from fresco.training.recipes import PlainRecipes, Recipes, Split, stream
from fresco.training.scenes import Composer, SceneBatch, pack
from fresco.training.text import CaptionEncoder, Tokenizer

PATCH = 8
HEAD = 64
AXES = (16, 24, 24)
SIGMA_FLOOR = 0.05  # below, the velocity loss would weigh an x0 error beyond all bounds
SIGMA_RANGE = (0.001, 0.999)
UNIFORM = 0.1  # share of noise levels that are uniform, so that both ends are seen
LEVELS = (0.999, 0.95, 0.9, 0.6, 0.1)  # noise levels at which a finished run's error is told
HIGH = 5.0  # how much further the high noise levels are shifted
POOLED_RATE = 8.0  # learning rate of the layer that takes the pooled text, a unit vector: its entries are near 0.05, not 1
DROP = 0.1  # share of captions that are empty, for classifier-free guidance
STRIDE = 1 << 16  # scene indices per step


@dataclass(frozen=True)
class Preset:
    """Size of a model and of its run.

    Attributes:
        double, single, heads: blocks of each kind, and heads of 64.
        res: (sketch, finest) sides in pixels, both native dense grids of 8 x 8 pixel tokens.
        shifts: noise-level shift per resolution.
        batch: pictures per step and resolution.
        fine: share of the steps at the finest resolution: before `fine_from` of the run, and after.
        max_tokens: text tokens.
        concepts: how many concepts; None is all.
        icon: side of the icons in pixels.
        steps, warmup, lr: length of the run, of its warm-up, and the peak of the cosine.
        ema: decay of the averaged weights.
        guidance: classifier-free guidance of the samples and of the exported model.
        bfloat16: whether the transformer computes in it; on a CPU only where it has AMX.
        plain: one thing on a plain backdrop, of the concepts and styles that the bundled model knows; else whole scenes.
        high: share of the noise levels that are shifted `HIGH` times further. Near pure noise the text alone says what the
            picture is, and an unshifted draw hardly comes there: of v1's at the sketch one in twenty lay above sigma 0.9.
    """

    double: int
    single: int
    heads: int
    res: tuple[int, int]
    shifts: tuple[float, float]
    batch: tuple[int, int]
    fine: tuple[float, float]
    fine_from: float
    max_tokens: int
    concepts: int | None
    icon: int
    steps: int
    warmup: int
    lr: float
    ema: float
    guidance: float = 2.0
    bfloat16: bool = True
    plain: bool = False
    high: float = 0.0

    def scaled(self, steps: int | None, lr: float | None, batch: float) -> Preset:
        """Return the preset with other steps, learning rate, and batches multiplied."""
        sizes = (max(1, round(self.batch[0] * batch)), max(1, round(self.batch[1] * batch)))
        return replace(self, steps=steps or self.steps, lr=lr or self.lr, batch=sizes)

    def config(self, text_width: int) -> dict[str, Any]:
        """Return the transformer's config."""
        return {
            "patch_size": 1, "in_channels": 3 * PATCH**2, "num_layers": self.double, "num_single_layers": self.single,
            "attention_head_dim": HEAD, "num_attention_heads": self.heads, "joint_attention_dim": text_width,
            "pooled_projection_dim": text_width, "guidance_embeds": False, "axes_dims_rope": AXES,
        }  # fmt: skip


PRESETS = {
    "gpu": Preset(
        3, 6, 6, (128, 256), (2.0, 4.0), (512, 128), (0.25, 0.65), 0.4, 32, None, 256, 12000, 500, 6e-4, 0.9995, high=0.3
    ),
    "cpu": Preset(2, 8, 4, (64, 128), (1.5, 3.0), (48, 12), (0.0, 0.8), 0.8, 24, 300, 64, 20000, 300, 5e-4, 0.999, high=0.3),
    "plain": Preset(
        2, 8, 4, (64, 128), (1.5, 3.0), (16, 8), (0.35, 0.85), 0.45, 16, None, 128, 4300, 100, 6e-4, 0.998, plain=True, high=0.6
    ),
    "tiny": Preset(1, 1, 1, (16, 32), (1.0, 1.5), (8, 4), (0.5, 0.5), 0.0, 12, None, 32, 60, 5, 2e-3, 0.9, bfloat16=False),
}


def patchify(pixels: torch.Tensor) -> torch.Tensor:
    """Return tokens (B, N, 3*8*8), ordered (c, dy, dx), of pixels (B, 3, H, W)."""
    b, c, h, w = pixels.shape
    blocks = pixels.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(b, -1, c * PATCH**2)


def unpatchify(tokens: torch.Tensor) -> torch.Tensor:
    """Return pixels (B, 3, side, side) of the tokens of square pictures: the inverse of `patchify`."""
    side = math.isqrt(tokens.shape[1])
    blocks = tokens.reshape(len(tokens), side, side, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(len(tokens), 3, side * PATCH, side * PATCH)


def velocity_loss(x0_hat: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the velocity that a predicted x0 stands for.

    With z = (1-sigma) x0 + sigma eps, (z - x0_hat) / sigma - (eps - x0) = (x0 - x0_hat) / sigma.

    Args:
        x0_hat, x0: (B, N, D).
        sigma: (B,) noise level; counted as `SIGMA_FLOOR` below it.
    """
    error = (x0 - x0_hat.float()) / sigma.clamp(min=SIGMA_FLOOR)[:, None, None]
    return error.square().mean()


def draw_sigmas(n: int, alpha: float, generator: torch.Generator, high: float = 0.0) -> torch.Tensor:
    """Return (n,) noise levels on the generator's device: logit-normal, a tenth uniform, shifted.

    Args:
        n: how many.
        alpha: shift.
        generator: of the random numbers.
        high: share of them that are shifted by `HIGH` times as much.
    """
    device = generator.device
    normal = torch.randn(n, generator=generator, device=device).sigmoid()
    flat, which, far = torch.rand(3, n, generator=generator, device=device)
    t = torch.where(which < UNIFORM, flat, normal)
    shifts = torch.where(far < high, HIGH * alpha, alpha)
    return (shifts * t / (1 + (shifts - 1) * t)).clamp(*SIGMA_RANGE)


def positions(tokens: int, device: torch.device) -> torch.Tensor:
    """Return (tokens, 3) float32 ids (0, row, col) of a square grid."""
    side = math.isqrt(tokens)
    at = torch.arange(tokens, device=device)
    return torch.stack([torch.zeros_like(at), at // side, at % side], 1).float()


def predict(model: Any, z: torch.Tensor, sigma: torch.Tensor, states: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """Return x0_hat (B, N, D) of tokens z at noise levels sigma (B,)."""
    found: torch.Tensor = model(
        hidden_states=z, timestep=sigma, encoder_hidden_states=states, pooled_projections=pooled, guidance=None,
        img_ids=positions(z.shape[1], z.device), txt_ids=torch.zeros(states.shape[1], 3, device=z.device),
        return_dict=False,
    )[0]  # fmt: skip
    return found


@torch.no_grad()
def draw_pictures(
    model: Any, text: tuple[torch.Tensor, torch.Tensor], blank: tuple[torch.Tensor, torch.Tensor], side: int,
    alpha: float, guidance: float, steps: int = 24, seed: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Return (B, 3, side, side) in [-1, 1]: an Euler loop with classifier-free guidance.

    Args:
        model: predicts x0.
        text, blank: states and vectors of the captions, and of the empty one.
        side: in pixels.
        alpha: shift of the noise levels.
        guidance: scale; 1 is none.
        steps: model calls.
        seed: of the noise.
    """
    states, pooled = text
    n, device = len(states), states.device
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every machine
    z = torch.randn(n, (side // PATCH) ** 2, 3 * PATCH**2, generator=generator).to(device)
    both = torch.cat([blank[0].expand(n, -1, -1), states]), torch.cat([blank[1].expand(n, -1), pooled])
    sigmas = [shift(1 - k / steps, alpha) for k in range(steps)] + [0.0]
    for sigma, after in pairwise(sigmas):
        level = torch.full((2 * n,), min(sigma, SIGMA_RANGE[1]), device=device)
        without, given = predict(model, torch.cat([z, z]), level, *both).float().chunk(2)
        x0 = (without + guidance * (given - without)).clamp(-1.1, 1.1)
        z = z + (after - sigma) * (z - x0) / sigma
    return unpatchify(z).clamp(-1, 1)


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's input from a worker: scenes, tokenised captions, resolution."""

    scenes: SceneBatch
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    side: int


class Feed(torch.utils.data.Dataset[Batch]):
    """Step number to `Batch`; sent to the workers, so without pixels."""

    def __init__(self, preset: Preset, library: Library, tokenizer: Tokenizer, seed: int, split: Split = "train") -> None:
        slim = replace(library, pixels=library.pixels[:0])
        self.recipes = (PlainRecipes if preset.plain else Recipes)(slim, seed, split)
        self.tokenizer, self.preset, self.seed = tokenizer, preset, seed

    def is_fine(self, step: int) -> bool:
        """Return whether a step trains the finest resolution."""
        share = self.preset.fine[step >= self.preset.fine_from * self.preset.steps]
        return bool(np.random.Generator(np.random.Philox(key=[stream(self.seed, "side"), step])).random() < share)

    def __getitem__(self, step: int) -> Batch:
        """Return a step's batch."""
        return self.batch(step, self.is_fine(step), drop=DROP)

    def batch(self, step: int, fine: bool, drop: float = 0.0, size: int | None = None) -> Batch:
        """Return `size` scenes of a step (None: the preset's) at either resolution."""
        n = size or self.preset.batch[fine]
        scenes = pack([self.recipes(step * STRIDE + i) for i in range(n)])
        gone = np.random.Generator(np.random.Philox(key=[stream(self.seed, "drop"), step])).random(n) < drop
        ids, mask = self.tokenizer(["" if g else c for c, g in zip(scenes.captions, gone, strict=True)])
        return Batch(scenes, ids, mask, self.preset.res[fine])


def new_model(config: dict[str, Any], seed: int) -> Any:
    """Return a transformer with seeded weights; modulations and output start at zero, so that every block starts as none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FluxTransformer2DModel(**config)
    zero = [model.proj_out, model.norm_out.linear]
    zero += [m for block in model.transformer_blocks for m in (block.norm1.linear, block.norm1_context.linear)]
    zero += [block.norm.linear for block in model.single_transformer_blocks]
    for linear in zero:
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return model


@contextmanager
def _until_sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a question: has SIGTERM or Ctrl-C come? Then the step is finished and a checkpoint written."""
    asked: list[int] = []
    try:
        old = {s: signal.signal(s, lambda number, _: asked.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: no signals come here
        old = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Run:
    """One training run, in a folder; construct and `go` again to continue it.

    Attributes:
        model: the transformer being trained.
        ema: its averaged weights, in the order of `model.parameters()`.
        after: version of the model that it started from; None where that was noise.
        step: steps done.
        pictures: training pictures seen.
        seconds: spent in training, over all slices.
    """

    def __init__(
        self, preset: Preset, library: Library, out: Path, *, device: torch.device, seed: int = 0, init: Path | None = None,
        compiled: bool | None = None, workers: int | None = None,
    ) -> None:  # fmt: skip
        """Make the model, or take it from the folder's checkpoint.

        Args:
            preset: sizes.
            library: the pictures.
            out: the run's folder.
            device: where it trains.
            seed: decides everything.
            init: exported folder whose transformer is the start, where there is no checkpoint.
            compiled: compile the blocks; None does so on a GPU.
            workers: processes that write recipes; None is up to 12 beside a GPU, else none.

        Raises:
            DataError: where the folder's checkpoint is of another model.
        """
        self.preset, self.out, self.device, self.seed = preset, out, device, seed
        self.library = library if preset.concepts is None else library.subset(preset.concepts)
        if preset.plain:
            known = json.loads((assets_dir() / "sinopia.json").read_text(encoding="utf-8"))
            self.library = library.called(known["concepts"], known["styles"])
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.set_float32_matmul_precision("high")
        self.text = CaptionEncoder(preset.max_tokens, device)
        self.feed = Feed(preset, self.library, self.text.tokenizer, seed)
        self.composer = Composer(self.library, device)
        self.workers = (min(12, os.cpu_count() or 1) if self.cuda else 0) if workers is None else workers
        self.autocast = preset.bfloat16 and (self.cuda or torch.cpu._is_amx_tile_supported())

        self.config = preset.config(self.text.full._model.config.hidden_size)
        self.model = new_model(self.config, seed).to(device).train()
        self.after = None
        if init is not None:
            self.after = json.loads((init / "sinopia.json").read_text(encoding="utf-8")).get("version", "v0")
            start = FluxTransformer2DModel.from_pretrained(init / "transformer", dtype=torch.float32)
            self.model.load_state_dict(start.state_dict())
        self.ema = [p.detach().clone() for p in self.model.parameters()]
        pooled = self.model.time_text_embed.text_embedder.linear_1.weight
        decayed = [p for p in self.model.parameters() if p.ndim > 1 and p is not pooled]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": 0.01, "rate": 1.0},
            {"params": [pooled], "weight_decay": 0.01, "rate": POOLED_RATE},
            {"params": rest, "weight_decay": 0.0, "rate": 1.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=preset.lr, betas=(0.9, 0.98), fused=True)
        self.step, self.pictures, self.seconds = 0, 0, 0.0
        if self._path.is_file():
            self._load()
        if compiled if compiled is not None else self.cuda:
            self.model.compile_repeated_blocks(fullgraph=True, dynamic=False)

    @property
    def _path(self) -> Path:
        return self.out / "checkpoint.pt"

    def _load(self) -> None:
        found = torch.load(self._path, map_location=self.device, weights_only=True)
        if found["config"] != json.loads(json.dumps(self.config)) or found["seed"] != self.seed:
            raise DataError(f"{self._path} is of another model or seed; name another folder with --out")
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        for mine, theirs in zip(self.ema, found["ema"], strict=True):
            mine.copy_(theirs)
        self.step, self.pictures, self.seconds = found["step"], found["pictures"], found["seconds"]
        self.after = found["after"]

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        self.out.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        torch.save(
            {
                "config": json.loads(json.dumps(self.config)), "preset": json.dumps(asdict(self.preset)), "seed": self.seed,
                "after": self.after, "step": self.step, "pictures": self.pictures, "seconds": self.seconds, "ema": self.ema,
                "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            },
            part,
        )  # fmt: skip
        os.replace(part, self._path)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then a cosine to a fiftieth."""
        preset = self.preset
        if step < preset.warmup:
            return preset.lr * (step + 1) / preset.warmup
        progress = min(1.0, (step - preset.warmup) / max(1, preset.steps - preset.warmup))
        return preset.lr * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)

    def loss(self, model: Any, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Return a batch's loss, with noise from the generator (on the training device)."""
        x0 = patchify(self.composer(batch.scenes, batch.side))
        states, pooled = self.text(batch.ids, batch.mask)
        sigma = draw_sigmas(len(x0), self.preset.shifts[self.preset.res.index(batch.side)], generator, self.preset.high)
        eps = torch.randn(x0.shape, generator=generator, device=self.device)
        z = torch.lerp(x0, eps, sigma[:, None, None])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            found = predict(model, z, sigma, states, pooled)
        return velocity_loss(found, x0, sigma)

    def train_step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one step; return loss and gradient norm, on the device: nothing waits for it."""
        generator = torch.Generator(self.device).manual_seed((self.seed << 32) + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step) * group["rate"]
        loss = self.loss(self.model, batch, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            decay = min(self.preset.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.model.parameters()], 1 - decay)
        self.step += 1
        self.pictures += len(batch.ids)
        return loss.detach(), norm.detach()

    def averaged(self) -> Any:
        """Return a copy of the transformer with the averaged weights, not compiled, in evaluation mode."""
        model = FluxTransformer2DModel(**self.config).to(self.device).eval()
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), self.ema, strict=True):
                mine.copy_(theirs)
        return model

    @torch.no_grad()
    def validate(self, model: Any, batches: int = 4) -> dict[tuple[int, float], float]:
        """Return the mean squared error of the clean estimate, {(side, sigma): error}, at `LEVELS`.

        Held-out scenes, always the same ones and the same noise; pixels in [-1, 1]. Nothing of the preset weighs or draws the
        levels, so that runs of different presets compare.
        """
        feed = Feed(self.preset, self.library, self.text.tokenizer, 0, "eval")
        found = dict.fromkeys(((side, sigma) for side in self.preset.res for sigma in LEVELS), 0.0)
        for fine, side in enumerate(self.preset.res):
            for k in range(batches):
                batch = feed.batch(k, bool(fine), size=min(32, self.preset.batch[fine]))
                x0, text = patchify(self.composer(batch.scenes, side)), self.text(batch.ids, batch.mask)
                eps = torch.randn(x0.shape, generator=torch.Generator(self.device).manual_seed(k), device=self.device)
                for sigma in LEVELS:
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                        clean = predict(model, torch.lerp(x0, eps, sigma), x0.new_full((len(x0),), sigma), *text)
                    found[side, sigma] += float((clean.float() - x0).square().mean()) / batches
        return found

    def go(self, *, minutes: float | None = None, checkpoint_minutes: float = 5.0, samples: int = 16) -> dict[str, Any]:
        """Train until the steps, the minutes or a signal end it; write checkpoint, losses, samples and the export.

        Args:
            minutes: of training; what follows takes up to one more.
            checkpoint_minutes: between checkpoints.
            samples: pictures per resolution on `samples.png`.

        Returns:
            What happened, flat and JSON-able.
        """
        from fresco.training.export import export, sheet

        self.out.mkdir(parents=True, exist_ok=True)
        first, begun, seen = self.step, time.monotonic(), self.pictures
        pending: list[tuple[int, int, int, torch.Tensor, torch.Tensor]] = []
        before, saved = self.seconds, begun
        path, names = self.out / "losses.csv", ("step", "side", "loss", "grad_norm", "lr", "pictures", "seconds")
        rows = list(csv.reader(path.open()))[1:] if path.is_file() else []
        with path.open("w", newline="") as file, _until_sigterm() as stopped:
            log = csv.writer(file)
            log.writerow(names)
            log.writerows(row for row in rows if int(row[0]) <= self.step)  # a kill may have come after the checkpoint

            def flush() -> None:
                if self.cuda:
                    torch.cuda.synchronize()
                self.seconds = before + time.monotonic() - begun
                for step, side, pictures, loss, norm in pending:
                    lr = f"{self.rate(step - 1):.3g}"
                    log.writerow((step, side, f"{loss:.5f}", f"{norm:.4f}", lr, pictures, f"{self.seconds:.1f}"))
                file.flush()
                pending.clear()

            loader = torch.utils.data.DataLoader(
                self.feed, batch_size=None, sampler=range(self.step, self.preset.steps), num_workers=self.workers,
                prefetch_factor=4 if self.workers else None,
            )  # fmt: skip
            for batch in loader:
                loss, norm = self.train_step(batch)
                pending.append((self.step, batch.side, self.pictures, loss, norm))
                if len(pending) == 20:
                    flush()
                now = time.monotonic()
                if now - saved > checkpoint_minutes * 60:
                    flush()
                    self.save()
                    saved = now
                if stopped() or (minutes is not None and now - begun > minutes * 60):
                    break
            flush()
            self.save()
        spent = time.monotonic() - begun
        model = self.averaged()
        errors = self.validate(model)
        found = {
            "step": self.step, "of": self.preset.steps, "pictures": self.pictures, "minutes": self.seconds / 60,
            "steps_per_s": (self.step - first) / spent, "pictures_per_s": (self.pictures - seen) / spent,
            **{f"held_out_error_{side}_at_{sigma:g}": error for (side, sigma), error in errors.items()},
            "export": str(self.out / "export"),
        }  # fmt: skip
        export(self, model, self.out / "export", found)
        if samples:
            sheet(self, model, self.out / "samples.png", samples)
        return found
