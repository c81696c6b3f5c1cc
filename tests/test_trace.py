"""Traces: what is saved is what is loaded, and whatever else a file may hold is one sentence. Source: DESIGN 2."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco.backends.oracle import OracleModel
from fresco.config import FrescoConfig
from fresco.record import run
from fresco.trace import Trace, TraceError
from tests.test_config import configs
from tests.test_frame import event_of
from tests.test_grid import grown
from viz.frame import step_json

ARRAYS = ("variance", "selected", "noise_gap")


def same(a, b):
    """Assert that two traces are equal to the last bit."""
    for name in ("prompt", "config", "model", "label", "provenance"):
        assert getattr(a, name) == getattr(b, name)
    assert len(a.events) == len(b.events)
    for x, y in zip(a.events, b.events, strict=True):
        for f in dataclasses.fields(x):
            one, two = getattr(x, f.name), getattr(y, f.name)
            if f.name == "grid":
                assert (one.shape, one.levels) == (two.shape, two.levels)
                assert one.level.dtype == two.level.dtype
                assert np.array_equal(one.level, two.level)
                assert np.array_equal(one.coord, two.coord)
            elif isinstance(one, np.ndarray):
                assert one.dtype == two.dtype
                assert np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
            else:
                assert type(one) is type(two)
                assert one == two or (one != one and two != two)


def made(seed=0, shape=(2, 5, 7), levels=2, count=3):
    grid, _ = grown(shape, levels, seed)
    bare = {"tau": float("nan"), "ratio": float("nan"), "preview": None}
    events = [event_of(grid, seed + k, step=k, **(bare if k == 1 else {})) for k in range(count)]
    config = FrescoConfig.recommended(nfe=6, tau=0.01, seed=seed)
    return Trace("a fox, “naïve” \u4e2d \U0001f98a", config, "m", "label", {"weights": "w", "n": [1, None]}, events)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "good.npz"
    made().save(path)
    return path


@given(configs(), st.text(max_size=60), st.integers(0, 99), st.sampled_from([((1, 4, 4), 1), ((2, 5, 7), 2), ((1, 1, 3), 1)]))
@settings(max_examples=15)
def test_saved_and_loaded_is_the_same_to_the_last_bit(tmp_path_factory, config, prompt, seed, grid):
    path = tmp_path_factory.getbasetemp() / "trip.npz"
    trace = made(seed, *grid)
    trace.config, trace.prompt = config, prompt
    trace.save(path)
    same(Trace.load(path), trace)


def test_a_real_run_survives_and_so_does_one_without_steps(tmp_path):
    trace = run(OracleModel(shape=(1, 9, 10)), "fox", FrescoConfig.paper(nfe=6), label="Fresco", preview_every=2)
    for kept in (trace, dataclasses.replace(trace, events=trace.events[:2]), dataclasses.replace(trace, events=[])):
        kept.save(tmp_path / "run.npz")
        same(Trace.load(tmp_path / "run.npz"), kept)
    assert trace.flops == sum(e.flops for e in trace.events)
    assert trace.picture is trace.events[-1].preview
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]  # nothing half-written is left


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.npz"
    made().save(path)
    before = path.read_bytes()
    broken = made()
    broken.provenance = {"x": object()}
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_bytes() == before


def refused(path):
    """Assert that loading fails with one sentence that names the file, and return it."""
    with pytest.raises(TraceError) as caught:
        Trace.load(path)
    said = str(caught.value)
    assert path.name in said
    assert "\n" not in said
    assert str(path.parent) not in said
    assert len(said) < 250
    return said


def rewritten(source, target, header=None, arrays=None, drop=()):
    """Copy a trace file with its header changed by a function, arrays replaced and others left out."""
    with np.load(source) as archive:
        content = {k: archive[k] for k in archive.files if k not in drop}
    if header is not None:
        head = header(json.loads(bytes(content["header"]).decode()))
        content["header"] = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
    np.savez_compressed(target, **(content | (arrays or {})))
    return target


def attempt(path):
    """Load a file that may be damaged: a trace or a TraceError, never anything else."""
    try:
        trace = Trace.load(path)
    except TraceError:
        return
    for event in trace.events:  # whatever is let through can be drawn
        assert sorted(event.grid.scan_order().tolist()) == list(range(len(event.grid)))
        assert event.variance.shape == event.selected.shape == (len(event.grid),)
        step_json(event)


@given(st.data())
def test_flipped_bits_are_a_trace_error_or_change_nothing_that_matters(good, data):
    raw = bytearray(good.read_bytes())
    for at in data.draw(st.lists(st.integers(0, 8 * len(raw) - 1), min_size=1, max_size=8)):
        raw[at // 8] ^= 1 << at % 8
    path = good.with_name("flipped.npz")
    path.write_bytes(raw)
    attempt(path)


@given(st.integers(0, 10_000))
def test_a_cut_file_is_a_trace_error(good, keep):
    raw = good.read_bytes()
    path = good.with_name("cut.npz")
    path.write_bytes(raw[: min(keep, len(raw) - 1)])
    refused(path)


@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x93NUMPY", b"\x80\x04"]))
def test_random_bytes_are_a_trace_error(tmp_path_factory, noise, magic):
    path = tmp_path_factory.getbasetemp() / "noise.npz"
    path.write_bytes(magic + noise)
    refused(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**30) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
PLACES = ("format", "version", "prompt", "config", "model", "label", "provenance", "events", "shape", "levels", "step", "flops")


@given(st.sampled_from(PLACES), JSON)
def test_a_header_with_anything_anywhere_is_a_trace_or_a_trace_error(good, place, value):
    def change(head):
        if place in head:
            return head | {place: value}
        head["events"][0][place] = value
        return head

    attempt(rewritten(good, good.with_name("head.npz"), change))


@given(st.sampled_from(["0.level", "0.coord", "1.variance", "1.selected", "2.noise_gap", "0.preview", "header"]), st.data())
def test_arrays_of_any_kind_are_a_trace_or_a_trace_error(good, name, data):
    shape = data.draw(st.lists(st.integers(0, 40), max_size=4))
    kind = data.draw(st.sampled_from(["f4", "i8", "u1", "?", "U3", "c8", "M8[s]", "V4"]))
    array = np.zeros(shape, kind)
    if kind in ("f4", "i8"):
        array += np.array(data.draw(st.integers(-200, 200)), kind)
    attempt(rewritten(good, good.with_name("array.npz"), arrays={name: array}))


def test_a_pickle_is_never_opened(good, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "pickled.npz"
    rewritten(good, path, arrays={"0.level": np.array([Trap()] * 3, dtype=object)})
    refused(path)
    np.save(path.with_suffix(".npy"), np.array([Trap()], dtype=object), allow_pickle=True)
    refused(path.with_suffix(".npy"))
    assert not (tmp_path / "sprung").exists()


def test_other_files_are_named_for_what_they_are(good, tmp_path):
    assert "no trace file" in refused(tmp_path / "missing.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    refused(tmp_path / "other.npz")
    assert "no Fresco trace" in refused(rewritten(good, tmp_path / "poem.npz", lambda h: h | {"format": "poem"}))
    newer = refused(rewritten(good, tmp_path / "newer.npz", lambda h: h | {"version": 2}))
    assert "version 2" in newer
    assert "update" in newer
    refused(rewritten(good, tmp_path / "less.npz", drop=("1.variance",)))
    refused(rewritten(good, tmp_path / "list.npz", lambda h: [h]))
    (tmp_path / "folder.npz").mkdir()
    refused(tmp_path / "folder.npz")
    np.save(tmp_path / "plain.npy", np.arange(4))
    refused(tmp_path / "plain.npy")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "zip.npz")
    nested = io.BytesIO()
    np.savez(nested, header=np.frombuffer(b"\xff\xfe{", dtype=np.uint8))
    (tmp_path / "text.npz").write_bytes(nested.getvalue())
    refused(tmp_path / "text.npz")


def test_tokens_that_do_not_tile_the_canvas_are_refused(good, tmp_path):
    with np.load(good) as archive:
        coord, level = archive["0.coord"], archive["0.level"]
        old = {name: archive[f"0.{name}"] for name in ARRAYS}
    moved = coord.copy()
    moved[0] = moved[1]  # one token twice, one place empty
    refused(rewritten(good, tmp_path / "moved.npz", arrays={"0.coord": moved}))
    refused(rewritten(good, tmp_path / "far.npz", arrays={"0.coord": coord + 100}))
    refused(rewritten(good, tmp_path / "back.npz", arrays={"0.coord": coord - 1}))
    refused(rewritten(good, tmp_path / "deep.npz", arrays={"0.level": level + 5}))
    parent = {"0.level": np.append(level, 0), "0.coord": np.append(coord, [[0, 0, 0]], axis=0)}
    parent |= {f"0.{name}": np.append(old[name], old[name][:1]) for name in ARRAYS}
    refused(rewritten(good, tmp_path / "over.npz", arrays=parent))  # its children are there too
    refused(rewritten(good, tmp_path / "short.npz", arrays={"0.level": level[:-1]}))
