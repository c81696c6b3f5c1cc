"""How the bundled model is trained: scenes and captions, the loss, stopping and going on, and what is exported."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import tarfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fresco.backends import load_model
from fresco.backends.sinopia import SinopiaModel, TextEncoder, assets_dir
from fresco.config import FrescoConfig
from fresco.sampler import sample
from fresco.tokens import Layout
from fresco.training import data, recipes, scenes
from fresco.training import train as training
from fresco.training.data import Library
from fresco.training.recipes import PALETTE, PLAIN, SIDE, PlainRecipes, Recipes, Scene, held_out, phrase, plural
from fresco.training.scenes import Composer, pack, resize_matrix
from fresco.training.train import PRESETS, Feed, Run, patchify, unpatchify, velocity_loss

CPU = torch.device("cpu")
NAMES = ("fox", "owl", "berry", "dish", "knife", "kite", "drum", "boat", "mushroom", "cherries", "glass of milk", "red apple")
STYLES = ("noto", "twemoji", "flat")


def shape(kind: int, colour: np.ndarray, size: int = 32) -> np.ndarray:
    """Return premultiplied RGBA: a disc, square, triangle or ring, of one colour."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    inside = [
        np.hypot(x, y) < 0.84,
        np.maximum(abs(x), abs(y)) < 0.7,
        (y > 2 * abs(x) - 0.9) & (y < 0.7),
        abs(np.hypot(x, y) - 0.6) < 0.22,
    ]
    alpha = inside[kind % 4].astype(np.float32)
    return (np.concatenate([alpha[..., None] * colour, alpha[..., None]], -1) * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def library() -> Library:
    """Twelve concepts in three styles, each a shape of one colour."""
    colours = np.random.default_rng(0).uniform(0.15, 0.85, (len(NAMES) * len(STYLES), 3))
    return Library(
        NAMES, (("vixen",), *((),) * (len(NAMES) - 1)), np.ones(len(NAMES)), np.array([True, False] * (len(NAMES) // 2)),
        STYLES, np.arange(len(colours)).reshape(len(NAMES), -1), np.stack([shape(i, c) for i, c in enumerate(colours)]),
        {s: {"set": s, "author": "A", "url": "", "licence": "MIT", "package": "p 1"} for s in STYLES},
    )  # fmt: skip


def spoken(name: str) -> str:
    """Return a pattern that finds a concept in a caption, however many there are."""
    forms = [name, plural(name)] + (["vixen", "vixens"] if name == "fox" else [])
    return "(?:" + "|".join(map(re.escape, sorted(forms, key=len, reverse=True))) + ")"


def centroid(alphas: list[np.ndarray]) -> np.ndarray:
    """Return (x, y) in canvases of several alpha layers."""
    total, side = sum(alphas), alphas[0].shape[0]
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    return np.array([(x * total).sum(), (y * total).sum()]) / total.sum()


def nearest(colour: np.ndarray) -> str:
    return min(PALETTE, key=lambda name: float(np.linalg.norm(np.array(PALETTE[name]) - colour)))


def test_words() -> None:
    assert [plural(n) for n in ("fox", "dish", "berry", "mouse", "kite", "glass of milk", "sheep", "man")] == [
        "foxes", "dishes", "berries", "mice", "kites", "glasses of milk", "sheep", "men"
    ]  # fmt: skip
    assert phrase("owl") == "an owl"
    assert phrase("owl", 1, "red") == "a red owl"
    assert phrase("unicorn") == "a unicorn"
    assert phrase("hourglass") == "an hourglass"
    assert phrase("fox", 2, "blue") == "two blue foxes"
    assert phrase("cherries") == "cherries"
    assert phrase("octopus") == "an octopus"


def test_captions_tell_what_is_there(library: Library) -> None:
    """Counts, order and colours of 600 captions, read by other patterns than wrote them, in the composed pixels."""
    recipe, composer, side = Recipes(library, seed=3), Composer(library, CPU), 48
    told = [recipe(i) for i in range(600)]
    batch = pack(told)
    pictures, layers = composer.layers(batch, side, keep=True)
    at = [{int(row): k for k, row in enumerate(rows)} for rows in batch.present]
    seen = dict.fromkeys(("count", "left", "above", "behind", "colour", "plain"), 0)
    for i, scene in enumerate(told):
        rgba = [layers[slot][at[slot][i]].numpy() for slot in range(len(scene.things))]
        groups: dict[str, list[int]] = {}
        for slot, thing in enumerate(scene.things):
            groups.setdefault(NAMES[thing.concept], []).append(slot)
        mentioned = {name: re.search(rf"\b{spoken(name)}\b", scene.caption) for name in NAMES}
        assert {name for name, hit in mentioned.items() if hit} == set(groups), scene.caption
        for name, slots in groups.items():  # as many as told, each in sight
            number = re.search(rf"\b(two|three|four) (?:\w+ )?{spoken(name)}\b", scene.caption)
            assert (("two", "three", "four").index(number[1]) + 2 if number else 1) == len(slots), scene.caption
            seen["count"] += len(slots) > 1
            for slot in slots:
                cover = np.prod([1 - rgba[k][3] for k in range(slot + 1, len(rgba))], axis=0) if slot + 1 < len(rgba) else 1
                assert (rgba[slot][3] * cover).sum() > (0.3 if "behind" in scene.caption or "in front" in scene.caption
                                                        else 0.85) * rgba[slot][3].sum(), scene.caption  # fmt: skip
                assert (
                    rgba[slot][3].sum()
                    > 0.85
                    * composer.pixels[scene.things[slot].icon, 3].float().mean()
                    / 255
                    * (scene.things[slot].size * side) ** 2
                ), f"cut off: {scene.caption}"
            dyed = re.search(rf"\b({'|'.join(PALETTE)}) {spoken(name)}\b", scene.caption)
            if name != "red apple":
                assert (dyed[1] if dyed else None) == scene.things[slots[0]].colour
            if dyed and name != "red apple":
                assert nearest(rgba[slots[0]][:3].sum((1, 2)) / rgba[slots[0]][3].sum()) == dyed[1]
                seen["colour"] += 1
        for a in groups:
            for b in groups:
                pair = rf"{spoken(a)}\b.* (%s) (?:an? |two |three |four )?(?:\w+ )?{spoken(b)}\b"
                place = {name: centroid([rgba[slot][3] for slot in groups[name]]) for name in (a, b)}
                if re.search(pair % "(?:to the )?left of", scene.caption) and len(groups) == 2:
                    assert place[a][0] < place[b][0] - SIDE
                    seen["left"] += 1
                if re.search(pair % "(?:to the )?right of", scene.caption) and len(groups) == 2:
                    assert place[a][0] > place[b][0] + SIDE
                    seen["left"] += 1
                if a != b and re.search(pair % "above|over|on top of|on", scene.caption):
                    assert place[a][1] < place[b][1] - SIDE
                    seen["above"] += 1
                if a != b and re.search(pair % "below|under", scene.caption):
                    assert place[a][1] > place[b][1] + SIDE
                    seen["above"] += 1
                for words, order in (("behind", 1), ("in front of", -1)):
                    if a != b and re.search(pair % words, scene.caption):
                        assert (groups[b][0] - groups[a][0]) * order > 0
                        assert (rgba[groups[a][0]][3] * rgba[groups[b][0]][3]).sum() > 0
                        seen["behind"] += 1
        plain = re.search(rf"(?:on|against|on a) ({'|'.join(PALETTE)})(?: background)?(?:$|,| in )", scene.caption)
        if plain and scene.backdrop == "plain":
            assert nearest((pictures[i, :, 0, 0].numpy() + 1) / 2) == plain[1], scene.caption
            seen["plain"] += 1
    assert min(seen.values()) >= 10, seen


def content(scene: Scene) -> set[tuple[str, ...]]:
    """Return the combinations of a scene as its objects and their places show them, without its own notes."""
    groups: dict[str, list[Any]] = {}
    for thing in scene.things:
        groups.setdefault(NAMES[thing.concept], []).append(thing)
    found: set[tuple[str, ...]] = set()
    for name, things in groups.items():
        found.add(("style", name, STYLES[things[0].icon % len(STYLES)]))
        if len(things) > 1:
            found.add(("count", str(len(things)), name))
        if things[0].colour:
            found.add(("colour", name, things[0].colour))
    middle = {name: np.mean([(t.x, t.y) for t in things], 0) for name, things in groups.items()}
    for a, b in combinations(groups, 2):
        for k, relation in ((0, "left"), (1, "above")):
            if abs(middle[a][k] - middle[b][k]) >= SIDE:
                found.add((relation, a, b) if middle[a][k] < middle[b][k] else (relation, b, a))
        if len(scene.things) == 2 and np.abs(middle[a] - middle[b]).max() < SIDE:
            found.add(("behind", a, b))  # the nearer is drawn later
    return found


def test_held_out_combinations(library: Library) -> None:
    """No training scene of 20,000 holds one, told or not; every evaluation scene does, of every kind."""
    train, kept = Recipes(library, seed=1), Recipes(library, seed=1, split="eval")
    shown: set[tuple[str, ...]] = set()
    for i in range(20_000):
        shown |= content(train(i))
    assert not [key for key in shown if held_out(*key)]
    assert len(shown) > 500
    kinds: dict[str, int] = {}
    for i in range(400):
        here = {key for key in content(kept(i)) if held_out(*key)}
        assert here
        for key in here:
            kinds[key[0]] = kinds.get(key[0], 0) + 1
    assert set(kinds) == set(recipes.HELD_OUT), kinds


def test_plain_scenes_show_what_they_tell(library: Library) -> None:
    """The whole drawing, of the style told, over the very colour told; no combination that is kept back is ever drawn."""
    train, kept = PlainRecipes(library, seed=1), PlainRecipes(library, seed=1, split="eval")
    told = [train(i) for i in range(300)]
    pictures = (Composer(library, CPU)(pack(told), library.pixels.shape[1]).permute(0, 2, 3, 1).numpy() + 1) / 2
    named = dict.fromkeys(PLAIN, 0)
    for scene, picture in zip(told, pictures, strict=True):
        (thing,) = scene.things
        names = (NAMES[thing.concept], *library.synonyms[thing.concept])
        assert sum(name in scene.caption for name in names) == 1, scene.caption
        style = STYLES[thing.icon % len(STYLES)]
        assert (f"{style} style" in scene.caption) == ("style" in scene.caption), scene.caption
        colour = re.search(rf" on ({'|'.join(PALETTE)})$", scene.caption)
        shown = colour[1] if colour else scene.colours[0]
        rgba = library.pixels[thing.icon].astype(float) / 255
        expected = rgba[..., :3] + (1 - rgba[..., 3:]) * PLAIN[shown]
        np.testing.assert_allclose(picture, expected, atol=1e-5, err_msg=scene.caption)
        named[shown] += colour is not None
    assert min(named.values()) >= 10, named
    here = [("colour", NAMES[t.concept], STYLES[t.icon % len(STYLES)], s.colours[0]) for s in told for t in s.things]
    assert not [key for key in here if held_out(*key)]
    late = [kept(i) for i in range(50)]
    kinds = [("colour", NAMES[t.concept], STYLES[t.icon % len(STYLES)], s.colours[0]) for s in late for t in s.things]
    assert all(held_out(*key) for key in kinds)


def test_concepts_go_by_the_names_asked_for(library: Library) -> None:
    """A nickname becomes the name, a hyphen may be a blank, unknown names are left out, and icons stay with their style."""
    odd = replace(library, names=("t-rex", *library.names[1:]))
    found = odd.called(["vixen", "wolf", "owl", "t rex"], ["flat", "noto"])
    assert found.names == ("vixen", "owl", "t rex")
    assert found.synonyms == (("t-rex",), (), ("t-rex", "vixen"))
    np.testing.assert_array_equal(found.icon, [[2, 0], [5, 3], [2, 0]])
    assert found.styles == ("flat", "noto")


def test_the_plain_preset_goes_on_from_the_bundled_model(library: Library, tmp_path: Path) -> None:
    """Its world is what the bundled model knows, its start are that model's weights, and its card says so."""
    names = json.loads((assets_dir() / "sinopia.json").read_text())["concepts"]
    small = replace(library, names=(*names[:11], "wolf"), synonyms=((),) * 12, styles=("fluent", "noto", "twemoji"),
                    licences=dict.fromkeys(("fluent", "noto", "twemoji"), library.licences["noto"]))  # fmt: skip
    preset = replace(PRESETS["plain"].scaled(1, None, 1 / 16), res=(16, 32))
    run = Run(preset, small, tmp_path, device=CPU, init=assets_dir())
    assert run.library.names == tuple(sorted(names[:11], key=names.index))
    start = load_model("sinopia", device="cpu").transformer
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), run.model.parameters(), strict=True))
    told = run.go(samples=0)
    info = json.loads((tmp_path / "export" / "sinopia.json").read_text())
    assert (info["concepts"], info["colors"], info["backdrops"]) == (list(run.library.names), list(PLAIN), ["plain"])
    card = (tmp_path / "export" / "README.md").read_text()
    row = [f"{told[f'held_out_error_{side}_at_0.95']:.4f}" for side in preset.res]
    assert f"| 0.95 | {' | '.join(row)} |" in card
    assert "trained further on pictures of one thing on a plain backdrop" in card
    number = int(str(run.after).removeprefix("v"))
    assert info["version"] == f"v{number + 1}"
    assert f"# Sinopia v{number + 1}\n" in card
    assert f"The weights of Sinopia v{number}, trained" in card
    assert Run(preset, small, tmp_path, device=CPU).after == run.after  # the checkpoint keeps where it came from


def test_a_scene_depends_on_seed_and_index_alone(library: Library) -> None:
    forward = [Recipes(library, 5)(i) for i in range(40)]
    again = Recipes(library, 5)
    backward = [again(i) for i in reversed(range(40))][::-1]
    assert [s.caption for s in forward] == [s.caption for s in backward]
    composer = Composer(library, CPU)
    whole = composer(pack(forward), 32)
    assert torch.equal(whole, composer(pack(backward), 32))
    for i in range(0, 40, 7):  # and not on its neighbours in the batch
        torch.testing.assert_close(composer(pack([forward[i]]), 32)[0], whole[i], atol=2e-6, rtol=0)
    others = [Recipes(library, 6)(i).caption for i in range(40)]
    assert sum(a == b for a, b in zip((s.caption for s in forward), others, strict=True)) < 5
    assert len({s.parameters.tobytes() for s in forward}) == 40


def slow_axis(line: np.ndarray, centre: float, size: float, canvas: int, flip: bool) -> np.ndarray:
    """Return a resized line of premultiplied texels: numeric integration of a step function over each pixel's window."""
    n, fine = len(line), 2000
    line = line[::-1] if flip else line
    width = max(n / (canvas * size), 1.0)
    out = np.zeros((canvas, *line.shape[1:]))
    for i in range(canvas):
        middle = ((i + 0.5) / canvas - (centre - size / 2)) / size * n
        for k in range(fine):
            texel = int(np.floor(middle + ((k + 0.5) / fine - 0.5) * width))
            if 0 <= texel < n:
                out[i] += line[texel] / fine
    return out


@pytest.mark.parametrize(("size", "flip"), [(0.37, False), (0.8, True), (1.7, False)])
def test_resize_against_slow_integration(size: float, flip: bool) -> None:
    rng = np.random.default_rng(1)
    icon = rng.random((8, 8, 4))
    icon[..., :3] *= icon[..., 3:]
    down = resize_matrix(torch.tensor([0.45]), torch.tensor([size]), torch.tensor([False]), 11, 8)[0]
    across = resize_matrix(torch.tensor([0.6]), torch.tensor([size]), torch.tensor([flip]), 11, 8)[0]
    got = torch.einsum("yi,ijc,xj->yxc", down, torch.from_numpy(icon).float(), across).numpy()
    rows = slow_axis(icon, 0.45, size, 11, False)
    want = slow_axis(rows.transpose(1, 0, 2), 0.6, size, 11, flip).transpose(1, 0, 2)
    np.testing.assert_allclose(got, want, atol=2e-3)
    assert (got[..., :3] <= got[..., 3:] + 1e-6).all()  # premultiplied: no colour beyond its alpha


def test_half_the_resolution_is_the_mean_of_four(library: Library) -> None:
    """What Fresco assumes of a coarse picture: it is the pooled fine one, up to blended edges."""
    told = [Recipes(library, 2)(i) for i in range(60)]
    composer = Composer(library, CPU)
    fine, coarse = composer(pack(told), 64), composer(pack(told), 32)
    assert (torch.nn.functional.avg_pool2d(fine, 2) - coarse).abs().mean() < 0.01


def test_loss_is_that_of_the_velocity() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps, guess = torch.randn(3, 5, 4, 6, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.06, 0.2, 0.5, 0.7, 0.999], dtype=torch.float64)
    s = sigma[:, None, None]
    z = (1 - s) * x0 + s * eps
    want = (((z - guess) / s - (eps - x0)) ** 2).mean()
    torch.testing.assert_close(velocity_loss(guess, x0, sigma), want, rtol=1e-5, atol=0)
    picture = torch.randn(2, 3, 24, 24, generator=generator)
    assert torch.equal(unpatchify(patchify(picture)), picture)
    assert torch.equal(patchify(picture)[1, 4], picture[1, :, 8:16, 8:16].reshape(-1))  # row-major, (c, dy, dx)


@pytest.mark.parametrize("high", [0.0, 0.6, 1.0])
def test_noise_levels_follow_their_law(high: float) -> None:
    """A mixture of two shifts, each nine tenths logit-normal and one tenth uniform: by the distribution function."""
    alpha, n = 1.5, 40_000
    found = training.draw_sigmas(n, alpha, torch.Generator().manual_seed(3), high).double().sort().values

    def below(sigma: torch.Tensor, shift: float) -> torch.Tensor:
        t = sigma / (sigma + shift * (1 - sigma))  # undo the shift
        return 0.9 * torch.special.ndtr(torch.logit(t)) + 0.1 * t

    want = (1 - high) * below(found, alpha) + high * below(found, 5 * alpha)
    inside = (found > 0.002) & (found < 0.998)  # the ends are clamped
    got = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert (want - got)[inside].abs().max() < 1.7 / n**0.5  # Kolmogorov-Smirnov, one false alarm in 160
    if high == 0.6:
        assert (found > 0.9).double().mean() > 0.25  # of the unshifted ones one in twenty


def test_the_share_of_high_noise_is_the_presets(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a share of 1 the model is asked at the levels of a shift five times as large, of the batch's own resolution."""
    run = tiny(library, tmp_path, 1)
    run.preset = replace(run.preset, high=1.0)
    asked: list[torch.Tensor] = []
    real = training.predict
    monkeypatch.setattr(training, "predict", lambda *given: asked.append(given[2]) or real(*given))
    for fine, shift in ((False, 1.0), (True, 1.5)):
        run.loss(run.model, run.feed.batch(0, fine), torch.Generator().manual_seed(7))
        n = run.preset.batch[fine]
        torch.testing.assert_close(asked[-1], training.draw_sigmas(n, 5 * shift, torch.Generator().manual_seed(7)))


def test_held_out_errors_are_those_of_fixed_levels(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer that is the state itself the error is sigma^2 (1 + E x0^2); no preset's law of levels moves it."""
    run = tiny(library, tmp_path, 1)
    monkeypatch.setattr(training, "predict", lambda model, z, *rest: z)
    found = run.validate(run.model, batches=8)
    eval_feed = training.Feed(run.preset, library, run.text.tokenizer, 0, "eval")
    assert set(found) == {(side, sigma) for side in run.preset.res for sigma in training.LEVELS}
    for fine, side in enumerate(run.preset.res):
        shown = [
            run.composer(eval_feed.batch(k, bool(fine), size=min(32, run.preset.batch[fine])).scenes, side) for k in range(8)
        ]
        power = float(torch.stack([x.square().mean() for x in shown]).mean())
        for sigma in training.LEVELS:
            assert found[side, sigma] == pytest.approx(sigma**2 * (1 + power), rel=0.1)
    run.preset = replace(run.preset, high=1.0, shifts=(4.0, 4.0))
    assert run.validate(run.model, batches=8) == found


def test_the_pooled_text_learns_faster(library: Library, tmp_path: Path) -> None:
    """Its input is a unit vector: its layer's steps are longer, and every weight is in one group."""
    run = tiny(library, tmp_path, 20)
    held = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, run.model.parameters()))
    embedder = run.model.time_text_embed
    for step in range(2):  # the modulations start at zero, so at first nothing reaches it
        run.train_step(run.feed[step])
    pooled, beside = embedder.text_embedder.linear_1.weight, embedder.timestep_embedder.linear_1.weight
    before = pooled.detach().clone(), beside.detach().clone()
    run.train_step(run.feed[2])
    moved = [(p - b).abs().median().item() for p, b in zip((pooled, beside), before, strict=True)]
    assert 4 < moved[0] / moved[1] < 16
    assert moved[1] < 1.1 * run.rate(2)


def tiny(library: Library, out: Path, steps: int) -> Run:
    return Run(replace(PRESETS["tiny"], steps=steps), library, out, device=CPU, seed=4)


def test_training_lowers_the_loss(library: Library, tmp_path: Path) -> None:
    run = tiny(library, tmp_path, 24)
    fixed = [run.feed.batch(10_000 + fine, bool(fine)) for fine in (0, 1)]

    def loss() -> float:
        with torch.no_grad():
            return sum(float(run.loss(run.model, batch, torch.Generator().manual_seed(9))) for batch in fixed)

    before = loss()
    for step in range(24):
        run.train_step(run.feed[step])
    assert loss() < 0.6 * before


class Killed(Exception):
    """Stands for a kill that leaves no time to save."""


def test_stopped_and_resumed_is_bit_identical(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM after 4 steps, a kill without warning after 9, then to the end: the same bits as without."""
    whole = tiny(library, tmp_path / "whole", 14)
    whole.go(samples=0)

    real = Run.train_step

    def interrupted(run: Run, batch: Any) -> Any:
        found = real(run, batch)
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        if run.step == 9:
            raise Killed
        return found

    monkeypatch.setattr(Run, "train_step", interrupted)
    out = tmp_path / "parts"
    assert tiny(library, out, 14).go(samples=0)["step"] == 4
    with pytest.raises(Killed):
        tiny(library, out, 14).go(samples=0, checkpoint_minutes=0.0)
    monkeypatch.setattr(Run, "train_step", real)
    with (out / "losses.csv").open("a") as file:
        file.write("9,16,1.0,1.0,0.1,9,9.0\n")  # flushed after the checkpoint: the step comes again
    last = tiny(library, out, 14)
    assert last.step == 8
    last.go(samples=0)
    assert last.step == whole.step == 14
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, last.model.state_dict()[name]), name
    assert all(torch.equal(a, b) for a, b in zip(whole.ema, last.ema, strict=True))
    states = [run.optimizer.state_dict()["state"] for run in (whole, last)]
    assert all(torch.equal(states[0][k][n], states[1][k][n]) for k in states[0] for n in states[0][k])
    tables = [list(csv.DictReader((tmp_path / name / "losses.csv").open())) for name in ("whole", "parts")]
    assert [int(row["step"]) for row in tables[1]] == list(range(1, 15))
    assert [row["loss"] for row in tables[0]] == [row["loss"] for row in tables[1]]
    with pytest.raises(data.DataError, match="another model or seed"):
        Run(replace(PRESETS["tiny"], heads=2), library, out, device=CPU, seed=4)


def test_export_loads_and_samples(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(library, tmp_path, 2)
    found = run.go(samples=4)
    assert found["step"] == 2
    assert (tmp_path / "samples.png").stat().st_size > 1000
    folder = tmp_path / "export"
    assert all(path.stat().st_size < 9.5e6 for path in folder.rglob("*"))
    assert "MIT License" in (folder / "LICENSES.md").read_text()
    monkeypatch.setenv("FRESCO_SINOPIA", str(folder))
    model = load_model("sinopia", device="cpu")
    assert isinstance(model, SinopiaModel)
    for (name, weight), mine in zip(model.transformer.named_parameters(), run.ema, strict=True):
        assert torch.equal(weight, mine.bfloat16().float()), name
    again = Run(run.preset, library, tmp_path / "again", device=CPU, init=folder)
    assert all(torch.equal(a, b) for a, b in zip(model.transformer.parameters(), again.model.parameters(), strict=True))
    assert model.native_size == (1, 32, 32)
    assert model.schedule.alpha(4) == 1.0
    assert model.schedule.alpha(16) == 1.5
    assert model.knows("two vixens and a fox") is None
    config = FrescoConfig.recommended(6)
    denoiser = model.bind(config)
    *_, last = sample(denoiser, model.encode(model.example_prompts()[0]), config)
    picture = model.decode(Layout(denoiser.channels, denoiser.patch).unpack(last.x_next, last.grid_next))
    assert picture.shape == (1, 32, 32, 3)
    assert torch.isfinite(last.x_next).all()

    # The trainer's own Euler loop draws what the sampler draws at full resolution.
    whole = FrescoConfig.full(5, seed=0)
    denoiser = model.bind(whole)
    first, *_, last = sample(denoiser, model.encode("a fox"), whole)
    text, blank = (run.text(*run.text.tokenizer([prompt])) for prompt in ("a fox", ""))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: first.x[None].clone())
    drawn = training.draw_pictures(model.transformer, text, blank, 32, 1.5, model.default_guidance, steps=5)
    monkeypatch.undo()
    picture = Layout(denoiser.channels, denoiser.patch).unpack(last.x_next, last.grid_next)
    torch.testing.assert_close(drawn, picture.transpose(0, 1).clamp(-1, 1), atol=2e-4, rtol=0)


def test_text_is_the_backend_s(library: Library) -> None:
    """The tokens of a training batch are those that a prompt gets later; a tenth is empty."""
    captions = ["a fox", "", "two owls left of a kite on a gradient from red to blue, twemoji style"]
    run_text = training.CaptionEncoder(12, CPU)
    want = TextEncoder(12, CPU)(captions)
    for mine, theirs in zip(run_text(*run_text.tokenizer(captions), chunk=2), want, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    feed = Feed(replace(PRESETS["tiny"], batch=(500, 4)), library, run_text.tokenizer, 0)
    empty = (feed.batch(0, False, drop=training.DROP).mask.sum(1) == 2).mean()
    assert 0.05 < empty < 0.15


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with one small archive per package, in the layout of the real ones."""

    def archive(name: str, version: str, files: dict[str, Any]) -> None:
        with tarfile.open(tmp_path / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz", "w:gz") as tar:
            for path, content in files.items():
                raw = json.dumps(content).encode()
                entry = tarfile.TarInfo(f"package/{path}")
                entry.size = len(raw)
                tar.addfile(entry, io.BytesIO(raw))

    labels = {"1F98A": ("fox", 3), "1F550": ("one o’clock", 5), "1F3F3": ("white flag", 9), "1F468": ("man artist", 1)}
    emoji = [{"hexcode": code, "label": label, "group": group} for code, (label, group) in labels.items()]
    shorts = {f"en/shortcodes/{name}.json": {"1F98A": ["fox_face", "vixen"]} for name in data._SHORT}
    archive(*data.NAMES, {"en/data.json": emoji, **shorts})
    square = '<path fill="#f00" fill-opacity=".5" d="M0 0h8v16H0z"/>'
    names = ("fox", "one-oclock", "white-flag", "man-artist", "man-artist-dark-skin-tone", "letter-a")
    for package, version in data.SETS.values():
        icons = {"icons": {name: {"body": square} for name in names}, "width": 16, "height": 16}
        info = {"name": "S", "author": {"name": "A"}, "license": {"spdx": "MIT"}}
        archive(package, version, {"icons.json": icons, "info.json": info, "chars.json": {}})
    return tmp_path


def test_catalogue_keeps_what_can_be_drawn(packages: Path) -> None:
    found = data.catalogue(packages)
    assert [c["name"] for c in found["concepts"]] == ["fox", "man artist"]  # no clock, flag, skin tone or letter
    fox, man = found["concepts"]
    assert fox["synonyms"] == ["fox face", "vixen"]
    assert set(fox["icons"]) == set(data.SETS)
    assert man["weight"] < fox["weight"]
    for path in packages.glob("*.tgz"):
        path.unlink()
    assert data.catalogue(packages) == json.loads(json.dumps(found))  # the catalogue alone is enough


def test_rendering_premultiplies(packages: Path) -> None:
    pytest.importorskip("resvg_py", reason="resvg-py is not installed: pip install -r fresco/training/requirements.txt")
    library = data.load(packages, 8, workers=1)
    assert library.pixels.shape == (18, 8, 8, 4)
    assert (library.icon >= 0).all()
    np.testing.assert_allclose(library.pixels[0, :, :4], np.broadcast_to([128, 0, 0, 128], (8, 4, 4)), atol=1)
    assert not library.pixels[0, :, 4:].any()
    assert scenes.Composer(library, CPU).luminance[0] == pytest.approx(0.299, abs=0.01)
    assert len(library.subset(1).names) == 1
