"""How the judge of the bundled model was trained: `python -m fresco.training.judge --data CACHE --out assets/benchmark`.

Renders of the drawings that the model knows, one on a plain backdrop, in its captions' words; augmented so that a soft or
shifted picture is judged by what it shows. Held out of training: 10 % of the combinations of concept, style and backdrop, on
which accuracy is told, and 3 % of the concept x style pairs, whose drawings are never seen, on which it is told apart. (Whole
concept x backdrop pairs are no use: a judge that never sees a fox on blue learns that blue means no fox.) No generated
picture is ever used.

`--counts` trains the second net, which tells how many of one thing there are, and measures it and the judge's look at either
half on scenes laid out much as `Recipes` does: counts of a concept and ordered pairs that `recipes` holds out.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from fresco.backends.sinopia import TextEncoder, assets_dir
from fresco.lab.own_judge import SIDE, CountNet, JudgeNet, OwnJudge, moments
from fresco.training import data
from fresco.training.recipes import PALETTE, PARAMETERS, Scene, Thing, held_out, is_plural
from fresco.training.scenes import Composer, pack

MAX_TOKENS = 24  # all captions fit: where the last word is cut off, no judge can tell its colour
SIDES = ("left", "right")
IGNORED = -100  # torch's own label of what a cross entropy passes over
# The model's style -> the drawing sets that it stands for.
SETS = {"fluent": ("fluent", "flat"), "noto": ("noto",), "twemoji": ("twemoji",)}
FREE = 0.5  # share of the training pictures on a backdrop of any colour, which nothing is asked about: subjects apart from it
FREE_FORMS = ("{name}, {style} style", "{name} in {style} style", "a {name}")
FORMS = ("{name}, {style} style, on {color}",) * 5 + ("{name} on {color}", "{name} in {style} style", "a {name} on {color}")


@dataclass(frozen=True, eq=False)
class World:
    """What the bundled model knows, as drawings.

    Attributes:
        concepts, styles, colours: names.
        icons: (concept, style) -> drawings.
        composer: draws them.
        text: vectors of captions.
    """

    concepts: list[str]
    styles: list[str]
    colours: list[str]
    icons: dict[tuple[int, int], list[int]]
    composer: Composer
    text: TextEncoder
    known: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, cache: Path) -> World:
        """Return the world of `assets/sinopia`; drawings come from the cache, see `fresco.training.data`."""
        info = json.loads((assets_dir() / "sinopia.json").read_text(encoding="utf-8"))
        library = data.load(cache, SIDE)
        place = {other: i for i, others in enumerate(library.synonyms) for other in others}
        place |= {name: i for i, name in enumerate(library.names)}
        known = [name for name in info["concepts"] if name in place]
        icons = {}
        for c, name in enumerate(known):
            for s, style in enumerate(info["styles"]):
                found = [int(library.icon[place[name], library.styles.index(part)]) for part in SETS[style]]
                if any(i >= 0 for i in found):
                    icons[c, s] = [i for i in found if i >= 0]
        composer = Composer(library, torch.device("cpu"))
        return cls(known, info["styles"], info["colors"], icons, composer, TextEncoder(MAX_TOKENS, torch.device("cpu")))

    def vectors(self, captions: list[str]) -> torch.Tensor:
        """Return sentence vectors (B, 384); each caption is encoded once."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.known]
        for at in range(0, len(new), 64):
            self.known.update(zip(new[at : at + 64], self.text(new[at : at + 64])[1].clone(), strict=True))
        return torch.stack([self.known[caption] for caption in captions])

    def split(self, concept: int, style: int, colour: int) -> str:
        """Return the split of a combination: "train", "combination" (kept back), or "drawing" (the drawing is kept back)."""
        name, kind = self.concepts[concept], self.styles[style]
        if held_out("style", name, kind):
            return "drawing"
        return "combination" if held_out("colour", name, kind, self.colours[colour]) else "train"

    def draw(self, rng: np.random.Generator, n: int, split: str = "train") -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Return pictures (n, 3, 64, 64), captions and labels (n, 3) from one of the splits.

        In "train" all combinations are distinct; half of them stand on a backdrop of any colour, whose label is IGNORED.
        """
        pairs = list(self.icons)
        scenes: list[Scene] = []
        labels: list[tuple[int, int, int]] = []
        seen: set[tuple[int, int, int]] = set()
        while len(scenes) < n:
            c, s = pairs[rng.integers(len(pairs))]
            k = int(rng.integers(len(self.colours)))
            free = split == "train" and rng.random() < FREE
            if free and self.split(c, s, k) == "drawing":
                continue
            if not free and (self.split(c, s, k) != split or (split == "train" and (c, s, k) in seen)):
                continue
            seen.add((c, s, k))
            size = rng.uniform(0.6, 0.98)
            x, y = 0.5 + rng.uniform(-1, 1, 2) * (0.06 + 0.3 * (1 - size))
            icon = self.icons[c, s][rng.integers(len(self.icons[c, s]))]
            forms = FREE_FORMS if free else FORMS
            form = forms[int(rng.integers(len(forms)))]
            caption = form.format(name=self.concepts[c], style=self.styles[s], color=self.colours[k])
            other = next(name for name in PALETTE if name != self.colours[k])
            thing = Thing(c, icon, float(x), float(y), float(size))
            noise = rng.random(PARAMETERS, np.float32)
            scenes.append(Scene(caption, [thing], "plain", "day", (self.colours[k], other), noise))
            labels.append((c, s, IGNORED if free else k))
        batch = pack(scenes)
        for i in (i for i, label in enumerate(labels) if label[2] == IGNORED):
            batch.colours[i, 0] = rng.random(3, np.float32)
        pictures = self.composer(batch, SIDE)
        return pictures, [scene.caption for scene in scenes], torch.tensor(labels)


def several(world: World, rng: np.random.Generator, n: int, split: str = "train") -> tuple[torch.Tensor, list[dict[str, str]]]:
    """Return pictures (n, 3, 64, 64) of one to four of one thing in equal shares, and what each shows.

    Args:
        world, rng, n: what is drawn.
        split: "train", or "eval": counts of a concept that are held out; one thing alone is never held out.
    """
    pairs, scenes, shown = list(world.icons), list[Scene](), list[dict[str, str]]()
    while len(scenes) < n:
        c, s = pairs[rng.integers(len(pairs))]
        number, k = len(scenes) % 4 + 1, int(rng.integers(len(world.colours)))
        kept = held_out("count", str(number), world.concepts[c])
        if is_plural(world.concepts[c]) or (number > 1 and kept != (split == "eval")):
            continue
        icon = world.icons[c, s][rng.integers(len(world.icons[c, s]))]
        scenes.append(_plain([Thing(c, icon, *place) for place in _places(rng, number)], world.colours[k], rng))
        shown.append({"concept": world.concepts[c], "colour": world.colours[k], "count": str(number)})
    return world.composer(pack(scenes), SIDE), shown


def two(world: World, rng: np.random.Generator, n: int) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """Return pictures (n, 3, 64, 64) of two things side by side, in ordered pairs that are held out, and what each shows."""
    pairs, scenes, shown = list(world.icons), list[Scene](), list[dict[str, str]]()
    while len(scenes) < n:
        (a, s), (b, other) = (pairs[rng.integers(len(pairs))] for _ in range(2))
        names, k = [world.concepts[a], world.concepts[b]], int(rng.integers(len(world.colours)))
        if s != other or a == b or not held_out("left", *names):
            continue
        icons = [world.icons[c, s][rng.integers(len(world.icons[c, s]))] for c in (a, b)]
        things = [Thing(c, icon, *place) for c, icon, place in zip((a, b), icons, _places(rng, 2), strict=True)]
        scenes.append(_plain(things, world.colours[k], rng))
        shown.append(
            {"concept": names[0], "style": world.styles[s], "colour": world.colours[k]} | dict(zip(SIDES, names, strict=True))
        )
    return world.composer(pack(scenes), SIDE), shown


def _plain(things: list[Thing], colour: str, rng: np.random.Generator) -> Scene:
    other = next(name for name in PALETTE if name != colour)
    return Scene("", things, "plain", "day", (colour, other), rng.random(PARAMETERS, np.float32))


def _places(rng: np.random.Generator, number: int) -> list[tuple[float, float, float]]:
    """Return (x, y, size) of so many things, in canvases: alone, in a row, or three and four in two rows."""
    if number == 1:
        size = rng.uniform(0.3, 0.98)
        x, y = 0.5 + rng.uniform(-1, 1, 2) * (0.06 + 0.3 * (1 - size))
        return [(float(x), float(y), float(size))]
    if number > 2 and rng.random() < 0.5:
        size, at = rng.uniform(0.34, 0.45), [(0.27, 0.28), (0.73, 0.28), (0.27, 0.73), (0.73, 0.73)][:number]
        if number == 3 and rng.random() < 0.7:
            at[2] = (0.5, 0.73)
    else:
        cell = rng.uniform(0.42, 0.48) if number == 2 else 0.94 / number
        size = rng.uniform(0.34, 0.47) if number == 2 else rng.uniform(0.82, 1.0) * cell
        y = rng.uniform(0.42, 0.58)
        at = [(0.5 + (i - (number - 1) / 2) * cell, y) for i in range(number)]
    moved = [(x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.03, 0.03), size * rng.uniform(0.93, 1)) for x, y in at]
    return [(float(x), float(y), float(s)) for x, y, s in moved]


def pixels(pictures: torch.Tensor) -> NDArray[np.uint8]:
    """Return (B, H, W, 3) uint8 from (B, 3, H, W) in [-1, 1]."""
    return ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()  # type: ignore[no-any-return]


def train_counts(
    world: World, out: Path, *, steps: int, batch: int = 64, lr: float = 2e-3, seed: int = 0, kept: int = 512
) -> dict[str, float]:
    """Train the net that counts, write `count.safetensors`, note in `judge.json` what `scene_accuracy` finds, and return it.

    Args:
        world: what is drawn. out: the judge's folder. steps, batch, lr, seed: of this run.
        kept: how many scenes of either kind it is measured on.
    """
    torch.manual_seed(seed)
    rng, net = np.random.default_rng(seed), CountNet()
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        pictures, shown = several(world, rng, batch)
        loss = functional.cross_entropy(net(soften(pictures, rng)), torch.tensor([int(row["count"]) - 1 for row in shown]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, out / "count.safetensors")
    found = scene_accuracy(world, OwnJudge(folder=out), seed + 1, kept)
    about = json.loads((out / "judge.json").read_text(encoding="utf-8"))
    run = {"steps": steps, "batch": batch, "lr": lr, "seed": seed}
    about |= {"run of the net that counts": run, "accuracy on scenes kept back": found}
    (out / "judge.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return found


def scene_accuracy(world: World, judge: OwnJudge, seed: int = 1, n: int = 512) -> dict[str, float]:
    """Return accuracies on n held-out scenes of several and n of two things.

    "count" of one to four; "left" and "right" of two; "several": the subject is among
    `OwnJudge.sightings`; "several, wrongly": another picture's is.
    """
    rng = np.random.default_rng(seed)
    drawn, shown = several(world, rng, n, "eval")
    tiles, hits = pixels(drawn), dict[str, list[bool]]()
    hits["count"] = [a == row["count"] for a, row in zip(judge.count(tiles), shown, strict=True)]
    seen, names = judge.sightings(tiles), [row["concept"] for row in shown]
    hits["several"] = [name in seen[i] for i, name in enumerate(names)]
    hits["several, wrongly"] = [names[i - 1] in seen[i] for i in range(n) if names[i - 1] != names[i]]
    drawn, shown = two(world, rng, n)
    for side, told in judge.sides(pixels(drawn)).items():
        hits[side] = [name == row[side] for name, row in zip(told, shown, strict=True)]
    return {kind: float(np.mean(values)) for kind, values in hits.items()}


def soften(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return pictures as a small model may draw them: softer, noisier, of another contrast; half stay as they are."""
    out = pictures.clone()
    for i in range(len(out)):
        if rng.random() < 0.5:
            continue
        side = int(rng.integers(24, SIDE + 1))
        small = functional.interpolate(out[i : i + 1], size=(side, side), mode="bilinear", antialias=True)
        out[i] = functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear")[0]
        out[i] = out[i] * rng.uniform(0.8, 1.15) + rng.uniform(-0.1, 0.1)
    noise = torch.from_numpy(rng.standard_normal(out.shape, np.float32)) * torch.from_numpy(
        rng.uniform(0, 0.15, (len(out), 1, 1, 1))
    )
    return (out + noise.float()).clamp(-1, 1)


def loss_of(net: JudgeNet, pictures: torch.Tensor, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the contrastive loss, both ways, plus the cross entropies of the classifiers. Source: CLIP."""
    features = net.eye(pictures)
    logits = net.scale.exp().clamp(max=100) * net.pictures(features) @ net.captions(vectors).T
    right = torch.arange(len(logits))
    loss = (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2
    for k, head in enumerate(net.heads.values()):
        loss = loss + functional.cross_entropy(head(features), labels[:, k])
    return loss


@torch.no_grad()
def accuracy(net: JudgeNet, world: World, seed: int = 1, batches: int = 8) -> dict[str, float]:
    """Return accuracies on combinations kept back: classifiers, and captions told apart by one changed word.

    "caption concept" is a choice among all concepts, "caption colour" among all colours, the rest of the caption the same;
    "unseen drawing" is the concept classifier's on drawings that were never trained on, a chance of less than 1 % by luck.
    """
    rng, net = np.random.default_rng(seed), net.eval()
    hits: dict[str, list[float]] = {}

    def note(name: str, values: torch.Tensor) -> None:
        hits.setdefault(name, []).extend(values.float().tolist())

    for _ in range(batches):
        pictures, _, labels = world.draw(rng, 64, "drawing")
        note("unseen drawing", net.heads["concept"](net.eye(pictures)).argmax(1) == labels[:, 0])
        pictures, _, labels = world.draw(rng, 64, "combination")
        features = net.eye(pictures)
        seen = net.pictures(features)
        for k, (name, head) in enumerate(net.heads.items()):
            note(name, head(features).argmax(1) == labels[:, k])
        for picture, (c, s, k) in zip(seen[:24], labels[:24].tolist(), strict=True):
            asked = {
                "concept": [(name, world.colours[k]) for name in world.concepts],
                "colour": [(world.concepts[c], colour) for colour in world.colours],
            }
            for what, right in (("concept", c), ("colour", k)):
                told = [FORMS[0].format(name=n, style=world.styles[s], color=colour) for n, colour in asked[what]]
                score = net.captions(world.vectors(told)) @ picture
                note(f"caption {what}", score.argmax()[None] == right)
    net.train()
    return {name: float(np.mean(values)) for name, values in hits.items()}


def train(
    world: World, out: Path, *, steps: int, batch: int = 128, lr: float = 2e-3, seed: int = 0, after: Path | None = None
) -> dict[str, Any]:
    """Train, measure on what was kept back and write `judge.safetensors` and `judge.json`.

    Args:
        world: what is drawn. out: folder. steps, batch, lr, seed: of this run.
        after: folder of a judge to go on from, with a learning rate, a schedule and pictures of its own.
    """
    before = json.loads((after / "judge.json").read_text(encoding="utf-8"))["runs"] if after else []
    torch.manual_seed(seed + len(before))
    rng = np.random.default_rng(seed + len(before))
    net = OwnJudge(folder=after).net.train() if after else JudgeNet(*map(len, (world.concepts, world.styles, world.colours)))
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    start = time.monotonic()
    for step in range(steps):
        pictures, captions, labels = world.draw(rng, batch)
        loss = loss_of(net, soften(pictures, rng), world.vectors(captions), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(
                f"step {step} loss {loss.item():.3f} {(step + 1) * batch / (time.monotonic() - start):.0f} pictures/s",
                flush=True,
            )
    found = accuracy(net, world)
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, out / "judge.safetensors")
    words = world.text.max_tokens
    run = {"steps": steps, "batch": batch, "lr": lr, "seed": seed + len(before), "free": FREE, "max_tokens": words}
    about = {
        "concepts": world.concepts, "styles": world.styles, "colours": world.colours, "max_tokens": words,
        "side": SIDE, "runs": [*before, run], "accuracy on combinations kept back": found,
    }  # fmt: skip
    (out / "judge.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return found


@torch.no_grad()
def real(world: World, out: Path, n: int = 2048, seed: int = 3) -> None:
    """Write `judge_real.npz`, the moments of the features of n real drawings of held-out combinations: Frechet's other side."""
    judge, rng = OwnJudge(folder=out), np.random.default_rng(seed)
    batches = [world.draw(rng, 64, "combination")[0] for _ in range(n // 64)]
    features = [judge.features(pixels(x)) for x in batches]
    mean, covariance = moments(np.concatenate(features))
    np.savez_compressed(out / "judge_real.npz", mean=mean.astype(np.float32), covariance=covariance.astype(np.float32))


def sheet(world: World, out: Path, seed: int = 2) -> None:
    """Write `held_out.webp`, real drawings of held-out combinations, and `held_out.jsonl`, what they show: for the tests."""
    pictures, _, labels = world.draw(np.random.default_rng(seed), 80, "combination")
    said = [{"concept": world.concepts[c], "style": world.styles[s], "colour": world.colours[k]} for c, s, k in labels.tolist()]
    _tiles(out / "held_out", pictures, said)


def sheet_of_scenes(world: World, out: Path, seed: int = 2) -> None:
    """Write `held_out_scenes.webp` and `.jsonl`: forty real scenes of several and forty of two things, all held out."""
    rng = np.random.default_rng(seed)
    (first, counts), (second, sides) = several(world, rng, 40, "eval"), two(world, rng, 40)
    _tiles(out / "held_out_scenes", torch.cat([first, second]), counts + sides)


def _tiles(path: Path, pictures: torch.Tensor, said: list[dict[str, str]], across: int = 10) -> None:
    tiles = torch.from_numpy(pixels(pictures)).reshape(-1, across, SIDE, SIDE, 3).permute(0, 2, 1, 3, 4)
    whole = tiles.reshape(-1, across * SIDE, 3).numpy()
    Image.fromarray(whole).save(path.with_suffix(".webp"), lossless=True, method=6)
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")


def main() -> None:
    """Train the judge."""
    parser = argparse.ArgumentParser(description="Train the judge of the bundled model.")
    parser.add_argument("--data", type=Path, default=Path("out/data"), help="cache of packages, catalogue and pixels")
    parser.add_argument("--out", type=Path, default=Path("assets/benchmark"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--after", type=Path, help="folder of a judge to go on from")
    parser.add_argument("--counts", action="store_true", help="train the net that counts instead, beside the judge in --out")
    args = parser.parse_args()
    world = World.load(args.data)
    if args.counts:
        print(json.dumps(train_counts(world, args.out, steps=args.steps, lr=args.lr), indent=1))
        sheet_of_scenes(world, args.out)
        return
    print(json.dumps(train(world, args.out, steps=args.steps, lr=args.lr, after=args.after), indent=1))
    real(world, args.out)
    sheet(world, args.out)


if __name__ == "__main__":
    main()
