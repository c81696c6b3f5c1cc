"""The viewer's message against a slow decoder: what the browser will read is what the step was. Source: DESIGN 3."""

import base64
import io
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fresco.config import FrescoConfig
from fresco.trace import StepEvent
from tests import oracles
from tests.test_grid import grown
from viz import frame

GRIDS = [((1, 4, 4), 1), ((1, 5, 6), 1), ((2, 3, 5), 1), ((3, 5, 7), 2), ((1, 45, 80), 1), ((1, 1, 1), 2), ((2, 9, 6), 2)]


def event_of(grid, seed=0, step=3, **changes):
    """Return an event on a grid whose tokens are shuffled, with random variance (some undefined) and choices."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(grid))
    grid = type(grid)(grid.shape, grid.levels, grid.level[order], grid.coord[order])
    variance = np.exp(rng.uniform(math.log(1e-7), math.log(3), len(grid))).astype(np.float32)
    variance[rng.random(len(grid)) < 0.2] = np.nan
    values = {
        "step": step, "sigma": 0.7501234, "sigma_next": 0.7, "stage": "mixed", "check": True, "closing": False, "tau": 0.004,
        "ratio": 0.25, "grid": grid, "variance": variance, "selected": rng.random(len(grid)) < 0.3,
        "preview": rng.integers(0, 256, (grid.shape[0], 16, 24, 3), dtype=np.uint8), "flops": 123456789.0, "seconds": 0.0415,
        "preview_seconds": 0.0012, "noise_gap": rng.random(len(grid)).astype(np.float32),
    }  # fmt: skip
    return StepEvent(**(values | changes))


def decoded(message):
    """Decode a frame as the contract says, with nothing but loops: {(level, frame, row, col): (variance code, chosen)}."""
    frames, rows, cols = message["shape"]
    level = base64.b64decode(message["level"])
    codes = [q for (q,) in struct.iter_unpack("<H", base64.b64decode(message["variance"]))]
    bits = "".join(f"{byte:08b}" for byte in base64.b64decode(message["selected"]))
    numbers, at = {}, 0
    for f in range(frames):
        for r in range(rows):
            for c in range(cols):
                edge = 2 ** (message["levels"] - level[at])
                numbers.setdefault((level[at], f, r // edge, c // edge), len(numbers))
                at += 1
    assert at == len(level)
    assert len(codes) == len(numbers) == message["tokens"]
    assert set(bits[len(numbers) :]) <= {"0"}
    assert len(bits) - len(numbers) < 8
    return {key: (codes[k], bits[k] == "1") for key, k in numbers.items()}


@pytest.mark.parametrize(("shape", "levels"), GRIDS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_frame_decoded_by_hand_is_the_event(shape, levels, share):
    grid, keys = grown(shape, levels, 1, share=share)
    event = event_of(grid, 2)
    message = json.loads(json.dumps(frame.step_json(event)))
    got = decoded(message)
    assert set(got) == set(keys)
    span = math.log(message["vmax"] / message["vmin"])
    for k, (lv, (f, r, c)) in enumerate(zip(event.grid.level, event.grid.coord, strict=True)):
        code, chosen = got[int(lv), int(f), int(r), int(c)]
        assert chosen == event.selected[k]
        true = float(event.variance[k])
        if math.isnan(true):
            assert code == 0
        else:
            value = message["vmin"] * (message["vmax"] / message["vmin"]) ** ((code - 1) / 65534)
            clipped = min(max(true, message["vmin"]), message["vmax"])
            assert abs(math.log(value / clipped)) <= span / 65534 / 2 * (1 + 1e-6)  # half a step of the log scale


@pytest.mark.parametrize(("shape", "levels"), GRIDS)
def test_scan_order_is_a_walk_over_the_finest_cells(shape, levels):
    grid, _ = grown(shape, levels, 5)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(grid))
    grid = type(grid)(grid.shape, grid.levels, grid.level[order], grid.coord[order])
    under = [oracles.cover(shape, levels, (int(v), *map(int, c))) for v, c in zip(grid.level, grid.coord, strict=True)]
    met = []
    for f in range(shape[0]):
        for r in range(shape[1]):
            for c in range(shape[2]):
                (token,) = [k for k, cells in enumerate(under) if (f, r, c) in cells] if len(under) < 400 else [None]
                if token is not None and token not in met:
                    met.append(token)
    if met:
        assert grid.scan_order().tolist() == met


@given(st.lists(st.one_of(st.floats(0, 1e9), st.just(math.nan), st.just(math.inf)), min_size=2, max_size=30))
def test_codes_keep_the_order_of_variances_and_zero_means_undefined(values):
    array = np.array(values)
    codes = frame.quantise(array)
    assert codes.dtype == np.uint16
    for v, q in zip(values, codes, strict=True):
        assert (q == 0) == (not math.isfinite(v))
        if math.isfinite(v) and v <= frame.VMIN:
            assert q == 1
        if math.isfinite(v) and v >= frame.VMAX:
            assert q == 65535
    known = sorted((v, int(q)) for v, q in zip(values, codes, strict=True) if math.isfinite(v))
    assert [q for _, q in known] == sorted(q for _, q in known)


def test_a_tau_splits_codes_as_it_splits_variances():
    """The browser compares codes, so a tau between two variances must have its code between theirs."""
    for low, high in ((1e-5, 1.01e-5), (0.0039, 0.0041), (0.5, 0.51)):
        tau = math.sqrt(low * high)
        a, t, b = (int(q) for q in frame.quantise(np.array([low, tau, high])))
        assert a <= t < b


def test_the_preview_is_the_first_frame_as_webp():
    ramp = np.zeros((2, 32, 48, 3), np.uint8)
    ramp[0, ..., 0] = np.linspace(0, 255, 48).astype(np.uint8)
    ramp[1] = 255
    uri = frame.webp(ramp)
    kind, data = uri.split(",")
    assert kind == "data:image/webp;base64"
    got = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), dtype=float)
    assert got.shape == (32, 48, 3)
    assert np.abs(got - ramp[0]).mean() < 8  # lossy, and nowhere near the white second frame
    assert frame.step_json(event_of(grown((1, 4, 4), 1, 0)[0], preview=None))["preview"] is None


@pytest.mark.parametrize(("count", "height", "width"), [(2, 32, 48), (9, 40, 24), (33, 720, 40), (129, 64, 32)])
def test_a_video_is_one_sheet_of_all_its_frames(count, height, width):
    """Every frame is found again where `columns` puts it, at one scale, within what WebP and a streamed step allow."""
    grey = np.linspace(0, 255, count).round()
    video = np.broadcast_to(grey[:, None, None, None], (count, height, width, 3)).astype(np.uint8)
    got = frame.sheet(video)
    assert got["frames"] == count
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(got["preview"].split(",")[1]))).convert("RGB"), dtype=float)
    rows = -(-count // got["columns"])
    high, wide = picture.shape[0] // rows, picture.shape[1] // got["columns"]
    assert (rows * high, got["columns"] * wide) == picture.shape[:2]
    assert max(picture.shape) <= 16383
    assert high * wide * count <= frame.SHEET_PIXELS
    assert abs(high / wide - height / width) < 0.05 * height / width
    for k in range(count):
        row, column = divmod(k, got["columns"])
        middle = picture[
            row * high + high // 4 : row * high + 3 * high // 4, column * wide + wide // 4 : column * wide + 3 * wide // 4
        ]
        assert abs(middle.mean() - grey[k]) < 6


def test_one_frame_is_sent_as_ever():
    picture = np.zeros((1, 32, 48, 3), np.uint8)
    assert frame.sheet(picture) == {"preview": frame.webp(picture)}
    got = frame.step_json(event_of(grown((1, 4, 4), 1, 0)[0]))
    assert "frames" not in got
    assert "columns" not in got
    assert frame.step_json(event_of(grown((2, 3, 5), 1, 0)[0]))["frames"] == 2


def test_meta_tells_runs_apart_by_every_setting_but_the_size():
    """Law: what a comparison lists as different comes from here, so a setting that is missing would be called the same."""
    told = frame.meta(FrescoConfig.recommended(nfe=9, tau=0.01), prompt="fox", model="m", device="cpu", full_step=1.0)
    assert set(FrescoConfig().to_json()) - {"size", "switch", "stages"} <= set(told)


def test_a_comparison_says_at_once_how_many_tracks_come():
    grid, _ = grown((1, 4, 4), 1, 0)
    run = track()
    run.tracks = 4
    got = [json.loads(run.add(event_of(grid, step=k))) for k in range(3)]
    assert [m.get("tracks") for m in got] == [4, None, None]
    assert "tracks" not in json.loads(track().add(event_of(grid, step=0)))


def test_what_json_cannot_say_is_null():
    grid, _ = grown((1, 4, 4), 1, 0)
    gap = np.full(len(grid), np.nan, np.float32)
    got = frame.step_json(event_of(grid, tau=math.nan, ratio=math.nan, noise_gap=gap))
    assert (got["tau"], got["ratio"], got["gap"]) == (None, None, None)
    assert "NaN" not in json.dumps(got)
    gap[:2] = 0.25, 0.75
    assert frame.step_json(event_of(grid, noise_gap=gap))["gap"] == 0.5


def track(nfe=3, full_step=100.0):
    config = FrescoConfig.recommended(nfe=nfe, tau=0.01)
    said = frame.meta(config, prompt="fox", model="m", device="cpu", full_step=full_step)
    return frame.Track("abc", 0, "Fresco", nfe, said, full_step)


def test_a_track_adds_up_what_it_spent_and_meta_comes_first_and_last():
    grid, _ = grown((1, 4, 4), 1, 0)
    run = track()
    got = [json.loads(run.add(event_of(grid, k, step=k, flops=10.0 + k, seconds=0.5 * (k + 1)))) for k in range(3)]
    assert [m["flops_total"] for m in got] == [10, 21, 33]
    assert [m["ms_total"] for m in got] == [500, 1500, 3000]
    assert [m["i"] for m in got] == [0, 1, 2]
    assert ["meta" in m for m in got] == [True, False, True]
    again = json.loads(run.add(event_of(grid, 2, step=2, flops=12.0, seconds=1.5), psnr=20.5, ssim=0.75))
    assert (again["flops_total"], again["ms_total"]) == (33, 3000)  # a step said again costs nothing
    assert (again["psnr"], again["ssim"]) == (20.5, 0.75)
    assert json.loads(run.frames[2]) == again
    total = run.summary()
    assert total["flops"] == 33
    assert total["speedup_flops"] == {
        "full50": pytest.approx(5000 / 33, rel=1e-3),
        "same_nfe": pytest.approx(300 / 33, rel=1e-3),
    }
    assert total["same_flops_steps"] == 1
    assert (total["psnr"], total["ssim"]) == (20.5, 0.75)


def test_equal_pictures_have_a_finite_psnr_in_json():
    grid, _ = grown((1, 4, 4), 1, 0)
    assert json.loads(track().add(event_of(grid, step=0), psnr=math.inf, ssim=1.0))["psnr"] == 99


@given(st.integers(1, 400), st.floats(1e-3, 1e15))
def test_same_flops_is_the_smallest_count_not_below(count, full_step):
    """Law: METHOD 2.6. A cost of exactly k full steps buys k; a little more buys k + 1."""
    assert frame.same_flops(count * full_step, full_step)["steps"] == count
    assert frame.same_flops((count + 0.01) * full_step, full_step)["steps"] == count + 1
    assert frame.same_flops(count * full_step, full_step)["flops"] == count * full_step


def test_the_small_messages():
    assert json.loads(frame.note("Hello.", "warn")) == {"type": "note", "text": "Hello.", "level": "warn"}
    assert json.loads(frame.done("a", stopped=True)) == {"type": "done", "run": "a", "stopped": True}
    assert json.loads(frame.done("a", summary={"x": 1})) == {"type": "done", "run": "a", "stopped": False, "x": 1}
    assert json.loads(frame.bundle_url("/a.json", False)) == {"type": "bundle-url", "url": "/a.json", "linked": False}
