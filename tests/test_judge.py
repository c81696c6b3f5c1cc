"""The bundled model's own judge: that its recipe learns to tell pictures apart, and its Frechet distance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg

from fresco.backends.sinopia import TextEncoder
from fresco.errors import FrescoError
from fresco.lab.own_judge import Grader, ObjectGrader, OwnJudge, frechet, moments
from fresco.training.benchmark import COUNTS, DEVELOPMENT
from fresco.training.data import Library
from fresco.training.judge import World, real, train
from fresco.training.scenes import Composer

BENCHMARK = Path(__file__).parents[1] / "assets" / "benchmark"


@pytest.fixture(scope="module")
def world() -> World:
    """Eight subjects, each a shape of one colour, in two styles, on four backdrops."""
    y, x = (np.mgrid[:64, :64] + 0.5) / 32 - 1
    inside = [
        np.hypot(x, y) < 0.9,
        np.maximum(abs(x), abs(y)) < 0.8,
        (abs(x) < 0.3) | (abs(y) < 0.3),
        abs(np.hypot(x, y) - 0.6) < 0.25,
    ]
    icons, names = [], ("fox", "owl", "drum", "kite", "boat", "pear", "bell", "key")
    rng = np.random.default_rng(0)
    for k in range(len(names)):
        for style in range(2):
            colour = rng.uniform(0, 1, 3) * (0.6 if style else 1.0)
            alpha = inside[k % 4].astype(np.float32)
            icons.append((np.concatenate([alpha[..., None] * colour, alpha[..., None]], -1) * 255).round().astype(np.uint8))
    library = Library(
        names, ((),) * len(names), np.ones(len(names)), np.zeros(len(names), bool), ("noto", "twemoji"),
        np.arange(len(icons)).reshape(-1, 2), np.stack(icons), {},
    )  # fmt: skip
    places = {(c, s): [2 * c + s] for c in range(len(names)) for s in range(2)}
    cpu = torch.device("cpu")
    return World(
        list(names),
        ["noto", "twemoji"],
        ["white", "blue", "red", "green"],
        places,
        Composer(library, cpu),
        TextEncoder(12, cpu),
    )


def pixels_of(world: World, rng: np.random.Generator) -> np.ndarray:
    pictures = world.draw(rng, 64, "combination")[0]
    return ((pictures.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()


def test_the_recipe_learns(world: World, tmp_path: Path) -> None:
    """After a few seconds it tells backdrops and right captions apart, in new renders; subjects take longer."""
    train(world, tmp_path, steps=70, batch=16)
    train(world, tmp_path, steps=50, batch=16, after=tmp_path)  # it goes on from where it stands
    assert [run["seed"] for run in json.loads((tmp_path / "judge.json").read_text())["runs"]] == [0, 1]
    judge = OwnJudge(folder=tmp_path)
    pictures, captions, labels = world.draw(np.random.default_rng(5), 24, "combination")
    pixels = ((pictures.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    table = judge.scores(captions, pixels)
    assert np.diag(table).mean() > table.mean() + 10  # the right caption, not any
    assert judge(captions[0], pixels[:1]) == pytest.approx(float(table[0, 0]), abs=1e-3)
    named = [world.colours[k] for k in labels[:, 2].tolist()]
    assert np.mean([a == b for a, b in zip(judge.classify(pixels)["colour"], named, strict=True)]) > 0.8
    real(world, tmp_path, n=128)
    mean, covariance = judge.real
    drawn = judge.features(np.concatenate([pixels_of(world, rng) for rng in [np.random.default_rng(3)] for _ in range(2)]))
    np.testing.assert_allclose(mean, drawn.mean(0), atol=1e-4)
    np.testing.assert_allclose(covariance, (drawn - drawn.mean(0)).T @ (drawn - drawn.mean(0)) / 127, atol=1e-4)
    twice = judge.features(pixels[:4].repeat(2, 1).repeat(2, 2))  # larger pictures are averaged down
    np.testing.assert_allclose(twice, judge.features(pixels[:4]), atol=1e-4)


def test_held_out_combinations_never_train(world: World) -> None:
    rng = np.random.default_rng(3)
    drawn = {tuple(row) for _ in range(12) for row in world.draw(rng, 12)[2].tolist()}
    kept = {tuple(row) for row in world.draw(rng, 64, "combination")[2].tolist()}
    assert kept
    assert not drawn & kept


def test_frechet_is_the_closed_form() -> None:
    """Against scipy's matrix square root, and for a shift and a stretch of one cloud against pencil and paper."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)), rng.normal(1.0, 2.0, (300, 5))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    between = lambda x, y: frechet(moments(x), moments(y))  # noqa: E731
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real)
    assert between(a, b) == pytest.approx(float(want), rel=1e-9)
    white = rng.normal(size=(500, 3))
    spread = np.trace(np.cov(white, rowvar=False))
    assert between(white, white + np.array([1, 2, 0])) == pytest.approx(5.0, abs=1e-9)
    assert between(white, (white - white.mean(0)) * 3 + white.mean(0)) == pytest.approx(4 * spread, rel=1e-9)
    with pytest.raises(ValueError, match="at least 2"):
        moments(white[:1])


def test_without_weights_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FrescoError, match="train them: python -m fresco"):
        OwnJudge(folder=tmp_path)


def test_the_benchmark_is_what_it_says() -> None:
    """200 prompts in their categories and 24 others; none twice, none in both, and no misspelling is the right spelling."""
    sets = [
        [json.loads(line) for line in (BENCHMARK / f"{n}.jsonl").read_text().splitlines()] for n in ("prompts", "development")
    ]
    for rows, counts in zip(sets, (COUNTS, DEVELOPMENT), strict=True):
        assert {c: sum(row["category"] == c for row in rows) for c in counts} == counts
    everything = [row["prompt"] for rows in sets for row in rows]
    assert len(set(everything)) == len(everything) == 224
    for row in sets[0]:
        assert (row["concept"] in row["prompt"]) == (row["category"] not in ("misspellings", "rare words", "counting")) or (
            row["category"] == "counting" and row["concept"][:3] in row["prompt"]
        )
        assert row["told"].startswith(row["concept"])


@pytest.fixture(scope="module")
def drawings() -> tuple[np.ndarray, list[dict[str, str]]]:
    """Eighty real drawings (80, 64, 64, 3) in combinations that the judge was never trained on, and what they show."""
    with Image.open(BENCHMARK / "held_out.webp") as image:
        tiles = np.asarray(image.convert("RGB")).reshape(8, 64, 10, 64, 3).swapaxes(1, 2).reshape(80, 64, 64, 3)
    return tiles, [json.loads(line) for line in (BENCHMARK / "held_out.jsonl").read_text().splitlines()]


def test_the_judge_knows_real_drawings(drawings: tuple[np.ndarray, list[dict[str, str]]]) -> None:
    """At least 90 % of objects and of colours, by its classifiers and by choosing among all captions (issue: the judge)."""
    judge, (tiles, shown) = OwnJudge(), drawings
    seen = judge.classify(tiles)
    for kind in ("concept", "colour"):
        assert np.mean([a == row[kind] for a, row in zip(seen[kind], shown, strict=True)]) >= 0.9, kind
    told = "{concept}, {style} style, on {colour}".format_map
    captions = [told(row) for row in shown]
    assert np.mean(judge.scores(captions, tiles).argmax(1) == np.arange(80)) >= 0.9
    right = np.diag(judge.scores(captions, tiles))
    wrong = np.diag(
        judge.scores([told(row | {"colour": "blue" if row["colour"] != "blue" else "red"}) for row in shown], tiles)
    )
    assert np.mean(right > wrong) >= 0.9


def test_grades_are_the_share_of_what_was_asked(drawings: tuple[np.ndarray, list[dict[str, str]]]) -> None:
    """A right drawing gets 1, another object of the same style and colour two thirds, or 0 for the object alone."""
    grader, of_object, (tiles, shown) = Grader(), ObjectGrader(), drawings
    seen = grader.classify(tiles)
    k = next(i for i, row in enumerate(shown) if all(seen[kind][i] == row[kind] for kind in grader.kinds))
    other = next(name for name in grader.names["concept"] if name != shown[k]["concept"])
    asked = {
        "this": shown[k] | {"told": ""},
        "another": shown[k] | {"concept": other, "told": ""},
        "any colour": {n: v for n, v in shown[k].items() if n != "colour"} | {"concept": other, "told": ""},
    }
    grader.asked = of_object.asked = asked
    picture = tiles[k][None]
    assert [grader(prompt, picture) for prompt in asked] == pytest.approx([1, 2 / 3, 1 / 2])
    assert [of_object(prompt, picture) for prompt in asked] == [1, 0, 0]
    assert grader("this", np.concatenate([picture, 255 - picture])) < 1  # the mean over the frames of a video
    with pytest.raises(FrescoError, match="does not know what 'a poem' asks for"):
        grader("a poem", picture)


def test_the_worse_a_drawing_the_further_from_real_ones(drawings: tuple[np.ndarray, list[dict[str, str]]]) -> None:
    judge, (tiles, _) = OwnJudge(), drawings
    softer = [
        np.stack([np.asarray(Image.fromarray(t).resize((side, side)).resize((64, 64))) for t in tiles]) for side in (16, 8, 4)
    ]
    found = [judge.distance(each) for each in (tiles, *softer)]
    assert found == sorted(found), found
