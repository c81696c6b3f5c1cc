"""The bundled model's own judge: that its recipe learns to tell pictures apart, and its Frechet distance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg, ndimage

from fresco.backends.sinopia import TextEncoder
from fresco.errors import FrescoError
from fresco.lab.own_judge import Grader, ObjectGrader, OwnJudge, frechet, moments, views
from fresco.training.benchmark import COUNTS, DEVELOPMENT
from fresco.training.data import Library
from fresco.training.judge import World, pixels, real, several, train, train_counts, two
from fresco.training.recipes import held_out
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
    icons, names = [], ("fox", "owl", "drum", "kite", "boat", "pear", "bell", "ape")
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


def test_scenes_hold_what_they_say(world: World) -> None:
    """As many shapes as told, counted by a flood fill; the left one has its subject's colour and so has the right one."""
    rng = np.random.default_rng(0)
    drawn, shown = several(world, rng, 200)
    islands = []
    for tile in pixels(drawn).astype(int):
        islands.append(ndimage.label(abs(tile - tile[0, 0]).max(-1) > 24)[1])
    told = [int(row["count"]) for row in shown]
    assert [told.count(k) for k in (1, 2, 3, 4)] == [50] * 4
    agree = np.mean([a == b for a, b in zip(islands, told, strict=True)])
    assert agree > 0.9, agree  # neighbours may touch
    assert all(a <= b for a, b in zip(islands, told, strict=True))
    drawn, shown = two(world, rng, 60)
    own = {name: [world.composer.pixels[i].float() / 255 for i in (2 * k, 2 * k + 1)] for k, name in enumerate(world.concepts)}
    for picture, row in zip((drawn + 1) / 2, shown, strict=True):
        style = world.styles.index(row["style"])
        for half, name in ((picture[:, :, :32], row["left"]), (picture[:, :, 32:], row["right"])):
            rgba = own[name][style]
            colour = rgba[:3, rgba[3] > 0.99].mean(1)
            assert ((half - colour[:, None, None]).abs().amax(0) < 0.03).sum() > 40, row


def test_scenes_kept_back_never_train(world: World) -> None:
    """Counts of a subject and ordered pairs that are held out are drawn for evaluation alone."""
    rng = np.random.default_rng(1)
    counts = [{(row["count"], row["concept"]) for row in several(world, rng, 240, split)[1]} for split in ("train", "eval")]
    assert {key for key in counts[1] if key[0] != "1"} == {
        (str(n), name) for n in (2, 3, 4) for name in world.concepts if held_out("count", str(n), name)
    }
    assert not any(held_out("count", *key) for key in counts[0] if key[0] != "1")
    assert all(held_out("left", row["left"], row["right"]) for row in two(world, rng, 40)[1])


def test_the_net_that_counts_learns(world: World, tmp_path: Path) -> None:
    """After a few seconds it tells one from four better than by chance, and its file says what it was measured at."""
    for name in ("judge.json", "judge.safetensors"):  # the bundled judge, which knows none of these shapes
        shutil.copy(BENCHMARK / name, tmp_path)
    found = train_counts(world, tmp_path, steps=120, batch=16, lr=4e-3, kept=24)
    assert json.loads((tmp_path / "judge.json").read_text())["accuracy on scenes kept back"] == found
    drawn, shown = several(world, np.random.default_rng(9), 160)
    seen = OwnJudge(folder=tmp_path).count(pixels(drawn))
    ends = [(a == "4", row["count"] == "4") for a, row in zip(seen, shown, strict=True) if row["count"] in "14"]
    assert np.mean([a == b for a, b in ends]) > 0.6
    assert found["several"] < 0.2


def test_views_are_where_they_say() -> None:
    """Of a picture whose pixels hold their own place: halves from half-way up, quarters, and thirds of the middle row."""
    y, x = np.mgrid[:60, :60]
    found = views(np.stack([y, x, 0 * x], -1)[None].astype(np.uint8))
    place = {name: (*tile[0, 0, 0, :2].tolist(), *tile[0, -1, -1, :2].tolist()) for name, tile in found.items()}
    assert place == {
        "left": (15, 0, 44, 29), "right": (15, 30, 44, 59), "quarter 0": (0, 0, 29, 29), "quarter 1": (0, 30, 29, 59),
        "quarter 2": (30, 0, 59, 29), "quarter 3": (30, 30, 59, 59), "third 0": (20, 0, 39, 19), "third 1": (20, 20, 39, 39),
        "third 2": (20, 40, 39, 59),
    }  # fmt: skip


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
        many = {"2": "two ", "3": "three ", "4": "four "}.get(row.get("count", ""), "")
        assert (row["category"] == "counting") == bool(many)
        assert row["prompt"].startswith(many)
        assert (row["category"] == "positional") == ("left" in row)
        if "left" in row:
            assert row["prompt"].index(row["left"]) < row["prompt"].index("to the left of") < row["prompt"].index(row["right"])


def kept_back(name: str) -> tuple[np.ndarray, list[dict[str, str]]]:
    with Image.open(BENCHMARK / f"{name}.webp") as image:
        tiles = np.asarray(image.convert("RGB")).reshape(8, 64, 10, 64, 3).swapaxes(1, 2).reshape(80, 64, 64, 3)
    return tiles, [json.loads(line) for line in (BENCHMARK / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def drawings() -> tuple[np.ndarray, list[dict[str, str]]]:
    """Eighty real drawings (80, 64, 64, 3) in combinations that the judge was never trained on, and what they show."""
    return kept_back("held_out")


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


def test_the_judge_counts_and_tells_left_from_right() -> None:
    """On real scenes of counts and ordered pairs that were kept back: at least 90 %, and it seldom sees what is not there."""
    judge, (tiles, shown) = OwnJudge(), kept_back("held_out_scenes")
    several_, two_ = (tiles[:40], shown[:40]), (tiles[40:], shown[40:])
    assert np.mean([a == row["count"] for a, row in zip(judge.count(several_[0]), several_[1], strict=True)]) >= 0.9
    for side, names in judge.sides(two_[0]).items():
        assert np.mean([a == row[side] for a, row in zip(names, two_[1], strict=True)]) >= 0.9, side
    seen = judge.sightings(several_[0])
    assert np.mean([row["concept"] in names for names, row in zip(seen, several_[1], strict=True)]) >= 0.9
    every = judge.names["concept"]
    others = [every[(every.index(row["concept"]) + 50) % len(every)] for row in several_[1]]
    assert np.mean([name in names for name, names in zip(others, seen, strict=True)]) <= 0.1


def test_counts_and_places_are_graded() -> None:
    """A scene that is seen rightly gets 1; of another count, or with the two things exchanged, it loses that share."""
    grader, of_object, (tiles, shown) = Grader(), ObjectGrader(), kept_back("held_out_scenes")

    def right(i: int) -> bool:
        grader.asked = {"": shown[i]}
        return grader("", tiles[i][None]) == 1

    several_, two_ = (next(i for i in part if right(i)) for part in (range(3, 40, 4), range(40, 80)))
    row, pair = shown[several_], shown[two_]
    grader.asked = of_object.asked = {
        "right": row, "fewer": row | {"count": "1"}, "another": row | {"concept": pair["right"]},
        "pair": pair, "exchanged": pair | {"left": pair["right"], "right": pair["left"], "concept": pair["right"]},
    }  # fmt: skip
    got = {
        name: grader(name, tiles[several_ if name in ("right", "fewer", "another") else two_][None]) for name in grader.asked
    }
    assert got == pytest.approx({"right": 1, "fewer": 2 / 3, "another": 2 / 3, "pair": 1, "exchanged": 1 / 2})
    assert of_object("another", tiles[several_][None]) == 0


def test_grades_are_the_share_of_what_was_asked(drawings: tuple[np.ndarray, list[dict[str, str]]]) -> None:
    """A right drawing gets 1, another object of the same style and colour two thirds, or 0 for the object alone."""
    grader, of_object, (tiles, shown) = Grader(), ObjectGrader(), drawings
    seen = grader.classify(tiles)
    k = next(i for i, row in enumerate(shown) if all(seen[kind][i] == row[kind] for kind in seen))
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
