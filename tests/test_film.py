"""Films of a run: pixels against a slow drawing, durations read back, captions, and which step stands beside which."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from PIL import Image, ImageColor
from PIL import features as pillow

from fresco.backends.oracle import OracleModel
from fresco.config import FrescoConfig
from fresco.errors import FrescoError
from fresco.record import run
from viz import film, style

MODEL = OracleModel(shape=(1, 9, 10))  # odd rows: the lowest tokens are cut in half
NFE = 8


@pytest.fixture(scope="module")
def trace():
    return run(MODEL, "a fox on the moon", FrescoConfig.recommended(nfe=NFE, tau=0.003), label="Fresco")


@pytest.fixture(scope="module")
def reference(trace):
    return run(MODEL, trace.prompt, trace.config.as_full(12), label="Full resolution, 12 steps")


def mixed_step(trace):
    """Return the first step with tokens of both sizes and a measured variance."""
    return next(k for k, e in enumerate(trace.events) if len({*e.grid.level.tolist()}) == 2 and np.isfinite(e.variance).all())


def tokens_by_cell(event):
    """Return {(row, col): token} by asking every token for every cell it covers."""
    _, rows, cols = event.grid.shape
    covered = {}
    for token, (level, (_, row, col)) in enumerate(zip(event.grid.level.tolist(), event.grid.coord.tolist(), strict=True)):
        edge = 2 ** (event.grid.levels - level)
        for r in range(row * edge, min(rows, row * edge + edge)):
            for c in range(col * edge, min(cols, col * edge + edge)):
                assert (r, c) not in covered
                covered[r, c] = token
    assert len(covered) == rows * cols
    return covered


# ---------------------------------------------------------------------------------------------------------------- pixels


def test_variance_pixels_are_grey_sketch_under_the_tokens_colour(trace):
    step, cell, low, high = mixed_step(trace), 20, 1e-4, 1e-1
    event, picture = trace.events[step], trace.events[step].preview[0]
    drawn = np.asarray(film.pane(event, picture, "variance", cell, (low, high)))
    sketch = np.asarray(film.pane(event, picture, "none", cell, (low, high))).astype(float)
    assert drawn.shape == (9 * cell, 10 * cell, 3)
    seen = set()
    for (row, col), token in tokens_by_cell(event).items():
        if event.selected[token]:
            continue  # its outline is drawn over it
        share = (math.log10(event.variance[token]) - math.log10(low)) / (math.log10(high) - math.log10(low))
        colour = [int(255 * v) for v in style.MAP(min(1.0, max(0.0, share)))[:3]]
        for y, x in ((row * cell, col * cell), (row * cell + 7, col * cell + 13), (row * cell + 19, col * cell + 19)):
            red, green, blue = sketch[y, x]
            grey = 0.299 * red + 0.587 * green + 0.114 * blue
            want = [0.3 * grey + 0.7 * c for c in colour]
            assert np.abs(drawn[y, x] - want).max() <= 1.5, (row, col, y, x)
        seen.add(token)
    assert len(seen) == int((~event.selected).sum())


def test_promoted_tokens_are_marked_to_the_pixel_and_nothing_else(trace):
    step = next(k for k, e in enumerate(trace.events) if 0 < e.selected.sum() < len(e.grid))
    event, cell = trace.events[step], 20
    picture = np.full((18, 20, 3), 200, np.uint8)
    drawn = np.asarray(film.pane(event, picture, "promoted", cell, (1e-4, 1e-1))).astype(int)
    dim = [round(0.65 * 200 + 0.35 * c) for c in ImageColor.getrgb(style.CASING)]
    unmarked = np.abs(drawn - dim).max(axis=2) <= 1
    for (row, col), token in tokens_by_cell(event).items():
        block = unmarked[row * cell : (row + 1) * cell, col * cell : (col + 1) * cell]
        assert (not block.any()) if event.selected[token] else block.all(), (row, col)
    row, col = next(rc for rc, token in tokens_by_cell(event).items() if event.selected[token])
    line = drawn[row * cell + 10, col * cell + 1]  # inside the dark edge
    edge = 2 ** int(event.grid.levels - event.grid.level[tokens_by_cell(event)[row, col]])
    assert (col % edge, row % edge) == (0, 0)
    assert line.tolist() == list(ImageColor.getrgb(style.PROMOTED))


def test_levels_tint_coarse_tokens_only(trace):
    event, cell = trace.events[mixed_step(trace)], 20
    picture = np.full((18, 20, 3), 200, np.uint8)
    drawn = np.asarray(film.pane(event, picture, "levels", cell, (1e-4, 1e-1))).astype(int)
    tint = ImageColor.getrgb(style.STAGES["low"])
    for (row, col), token in tokens_by_cell(event).items():
        got = drawn[row * cell + 10, col * cell + 10]  # away from all outlines
        coarse = event.grid.level[token] < event.grid.levels
        want = [200 + (c - 200) * 110 / 255 for c in tint] if coarse else [200] * 3
        assert np.abs(got - want).max() <= 1.5, (row, col)


def test_a_step_without_two_estimates_shows_its_plain_sketch(trace):
    event, picture = trace.events[0], np.random.default_rng(1).integers(0, 256, (9, 10, 3), np.uint8)
    assert not np.isfinite(event.variance).any()
    plain = np.asarray(film.pane(event, picture, "none", 1, (1e-4, 1e-1)))
    assert np.array_equal(plain, picture)  # at its own size the picture itself, in colour
    assert np.array_equal(np.asarray(film.pane(event, picture, "variance", 1, (1e-4, 1e-1))), picture)


def test_the_film_holds_each_pane_where_it_says(trace, reference):
    shots = film.plan(trace, reference)
    pictures = list(film.frames(trace, reference, overlay="variance", size=120))
    cell, limits = 12, film.variance_range(trace)
    first = 20 + (760 - 40 - (3 * 120 + 2 * 12)) // 2
    for shot, picture in zip(shots, pictures, strict=True):
        assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
        event = trace.events[shot.step]
        for k, name in enumerate(("none", "variance")):
            x = first + k * 132
            want = np.asarray(film.pane(event, event.preview[0], name, cell, limits))
            assert np.array_equal(picture[98 : 98 + 108, x : x + 120], want)
        x = first + 2 * 132
        got = picture[98 : 98 + 108, x : x + 120]
        if shot.beside < 0:
            assert got[0, 0].tolist() == list(ImageColor.getrgb(style.RAIL))
        else:
            theirs = reference.events[shot.beside]
            assert np.array_equal(got, np.asarray(film.pane(theirs, theirs.preview[0], "none", cell, limits)))


def test_skipped_previews_show_the_one_before(trace):
    thin = run(MODEL, trace.prompt, trace.config, preview_every=3)
    pictures = list(film.frames(thin, overlay="none", size=120))
    assert [e.preview is None for e in thin.events[:4]] == [False, True, True, False]
    x = 20 + (760 - 40 - 120) // 2
    panes = [p[98 : 98 + 108, x : x + 120] for p in pictures]
    assert np.array_equal(panes[0], panes[2])
    assert not np.array_equal(panes[2], panes[3])


# ---------------------------------------------------------------------------------------------------------------- laws


def test_beside_each_step_is_the_last_one_the_reference_could_pay_for(trace, reference):
    shots = film.plan(trace, reference)
    body = [s for s in shots if not s.tail]
    assert [s.step for s in body] == list(range(NFE))
    for shot in body:
        budget = math.fsum(e.flops for e in trace.events[: shot.step + 1])
        paid, done = 0.0, 0
        while done < len(reference.events) and paid + reference.events[done].flops <= budget * (1 + 1e-9):
            paid, done = paid + reference.events[done].flops, done + 1
        assert shot.beside == done - 1
    assert body[0].beside == -1  # a coarse step is cheaper than any full one
    tail = [s for s in shots if s.tail]
    assert [s.beside for s in tail] == list(range(body[-1].beside + 1, 12))
    assert {s.step for s in tail} == {NFE - 1}
    assert [s.ms for s in shots] == [film.STEP] * NFE + [film.TAIL] * (len(tail) - 1) + [film.HOLD]


def test_a_reference_of_equal_steps_goes_in_step(reference):
    shots = film.plan(reference, reference)
    assert [(s.step, s.beside) for s in shots] == [(k, k) for k in range(12)]


def test_the_caption_says_the_runs_numbers(trace, reference):
    full = reference.events[0].flops
    for k, event in enumerate(trace.events):
        spent = sum(trace.events[j].flops for j in range(k + 1))
        words = film.caption(trace, k).split("  ·  ")
        assert words == [
            f"step {k + 1} of {NFE}", f"{event.stage} stage", f"sigma {event.sigma:.2f} → {event.sigma_next:.2f}",
            f"{len(set(tokens_by_cell(event).values()))} of 90 tokens",
            f"{spent / full / 50 * 100:.1f} % of the FLOPs of 50 full steps",
        ]  # fmt: skip
    assert film.caption(trace, 0).startswith("step 1 of 8  ·  low stage  ·  sigma 1.00 → ")


def test_a_stopped_run_says_shares_of_what_it_knows(trace, reference):
    stopped = run(MODEL, trace.prompt, trace.config)
    stopped.events = stopped.events[:2]  # never at full resolution
    assert film.caption(stopped, 1).endswith("100.0 % of the FLOPs of this run")
    share = 100 * sum(e.flops for e in stopped.events) / (50 * reference.events[0].flops)
    assert film.caption(stopped, 1, reference).endswith(f"{share:.1f} % of the FLOPs of 50 full steps")
    assert len(list(film.frames(stopped, size=64))) == 2


def test_the_colours_keep_one_range_that_holds_tau(trace):
    low, high = film.variance_range(trace)
    assert low < trace.config.tau < high
    coarse = np.concatenate([e.variance[e.grid.level < e.grid.levels] for e in trace.events])
    coarse = coarse[np.isfinite(coarse)]
    assert ((coarse >= low) & (coarse <= high)).mean() >= 0.95


# ---------------------------------------------------------------------------------------------------------------- files


def test_webp_holds_every_picture_for_its_time(trace, reference, tmp_path):
    told = []
    path = film.save(tmp_path / "a.webp", trace, reference, size=100, progress=lambda k, n: told.append((k, n)))
    shots = film.plan(trace, reference)
    want = list(film.frames(trace, reference, size=100))
    with Image.open(path) as image:
        assert (image.n_frames, image.info["loop"]) == (len(shots), 0)
        for k, shot in enumerate(shots):
            image.seek(k)
            image.load()
            assert image.info["duration"] == shot.ms
            error = np.asarray(image.convert("RGB")).astype(float) - want[k]
            assert np.abs(error).mean() < 3
    assert told == [(k + 1, len(shots)) for k in range(len(shots))]
    assert [p.name for p in tmp_path.iterdir()] == ["a.webp"]


def test_gif_holds_every_picture_for_its_time_with_our_colours_exact(trace, reference, tmp_path):
    path = film.save(tmp_path / "a.GIF", trace, reference, overlay="promoted", size=100)
    shots, want = film.plan(trace, reference), list(film.frames(trace, reference, overlay="promoted", size=100))
    with Image.open(path) as image:
        assert image.n_frames == len(shots)
        for k, shot in enumerate(shots):
            image.seek(k)
            got = np.asarray(image.convert("RGB"))
            assert image.info["duration"] == shot.ms
            assert got[0, 0].tolist() == list(ImageColor.getrgb(style.PAPER))
            flat = (want[k] == ImageColor.getrgb(style.STAGES["low"])).all(axis=2)
            assert flat.any()
            assert (got[flat] == ImageColor.getrgb(style.STAGES["low"])).all()
            assert np.abs(got.astype(float) - want[k]).mean() < 4


def test_closing_stops_the_film_and_leaves_no_file(trace, tmp_path):
    old = tmp_path / "a.webp"
    old.write_bytes(b"older")
    going = film.write(old, trace, size=100)
    assert [next(going), next(going)] == [(1, NFE), (2, NFE)]
    going.close()
    assert old.read_bytes() == b"older"

    def cancel(done, of):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        film.save(tmp_path / "b.gif", trace, size=100, progress=cancel)
    assert [p.name for p in tmp_path.iterdir()] == ["a.webp"]


@pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="needs pip install imageio[ffmpeg]")
def test_mp4_lasts_as_long_as_its_shots(trace, reference, tmp_path):
    import imageio_ffmpeg

    path = film.save(tmp_path / "a.mp4", trace, reference, size=100)
    want = list(film.frames(trace, reference, size=100))
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    got = [np.frombuffer(data, np.uint8).reshape(about["size"][1], about["size"][0], 3) for data in reader]
    shots = film.plan(trace, reference)
    assert len(got) == sum(shot.ms for shot in shots) // 100
    assert about["size"] == (want[0].shape[1], want[0].shape[0])
    assert np.abs(got[0].astype(float) - want[0]).mean() < 6
    assert np.abs(got[-1].astype(float) - want[-1]).mean() < 6

    going = film.write(tmp_path / "b.mp4", trace, size=100)
    assert [next(going), next(going)] == [(1, NFE), (2, NFE)]
    going.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is not None, reason="ffmpeg is installed here")
def test_mp4_without_ffmpeg_is_one_sentence_that_helps(trace, tmp_path):
    with pytest.raises(FrescoError, match=r"pip install imageio\[ffmpeg\]"):
        film.save(tmp_path / "a.mp4", trace)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [({"overlay": "heat"}, "heat"), ({"size": 20}, "from 64 to 1024"), ({"path": "a.avi"}, "does not end in")],
)
def test_what_cannot_be_filmed_is_a_sentence(trace, tmp_path, wrong, sentence):
    options = {"path": "a.webp"} | wrong
    with pytest.raises(film.FilmError, match=sentence):
        film.save(tmp_path / options.pop("path"), trace, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_reference_of_another_picture_is_refused(trace):
    other = run(MODEL, trace.prompt, trace.config.as_full(2).replace(seed=5))
    with pytest.raises(film.FilmError, match="another prompt or seed"):
        film.frames(trace, other)


def test_a_long_foreign_prompt_stays_on_the_canvas(trace):
    long = run(MODEL, "a fox\n\u2028 \U0001f98a лиса 狐 " * 40, trace.config)
    (picture, *_) = film.frames(long, size=100)
    assert (picture[:, -18:] == ImageColor.getrgb(style.PAPER)).all()  # the right margin is free
    assert (picture[14:44, 20:-20] != ImageColor.getrgb(style.PAPER)).any()


def test_the_command_films_traces_from_disk(trace, reference, tmp_path, capsys):
    trace.save(tmp_path / "run.npz")
    reference.save(tmp_path / "full.npz")
    out = tmp_path / "out.webp"
    assert film.main([str(tmp_path / "run.npz"), "--reference", str(tmp_path / "full.npz"), str(out), "--size", "64"]) == 0
    with Image.open(out) as image:
        assert image.n_frames == len(film.plan(trace, reference))
    capsys.readouterr()
    assert film.main([str(tmp_path / "none.npz"), str(out)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_pillow_here_writes_webp():
    assert pillow.check("webp")
