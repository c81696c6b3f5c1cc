"""What can be taken away: traces as JSON and NPZ, the citation, films, figures and pages, of live and of recorded runs."""

import base64
import contextlib
import dataclasses
import io
import json
import shlex

import numpy as np
import pytest
from PIL import Image

from fresco import __main__ as cli
from fresco.backends.oracle import OracleModel
from fresco.cli import settings
from fresco.config import FrescoConfig
from fresco.record import run
from fresco.trace import Trace
from viz import bundle, export, film, share
from viz.share import ShareError

MODEL = OracleModel(shape=(1, 5, 6))
CONFIG = FrescoConfig.recommended(nfe=6, tau=0.02, seed=4)


@pytest.fixture(scope="module")
def traces():
    return [run(MODEL, "fox", CONFIG), run(MODEL, "fox", CONFIG.as_full(5), label="Full resolution, 5 steps")]


def test_the_json_trace_holds_every_number_of_the_run(traces):
    said = json.loads(share.pack(traces[0], "json"))
    assert (said["format"], said["version"], said["prompt"], said["model"]) == ("fresco-trace-json", 1, "fox", "oracle")
    assert FrescoConfig.from_json(said["config"]) == CONFIG
    assert said["flops"] == traces[0].flops
    for got, e in zip(said["events"], traces[0].events, strict=True):
        for name in ("step", "sigma", "sigma_next", "stage", "check", "closing", "flops", "seconds"):
            assert got[name] == getattr(e, name)
        assert (got["tau"] is None) == bool(np.isnan(e.tau))
        assert tuple(got["shape"]) == e.grid.shape
        assert got["level"] == e.grid.level.tolist()
        assert got["coord"] == e.grid.coord.tolist()
        assert np.array_equal(np.array(got["variance"], float), e.variance.astype(float), equal_nan=True)
        assert got["selected"] == e.selected.tolist()
        pixels = Image.open(io.BytesIO(base64.b64decode(got["preview"][0].partition(",")[2])))
        assert np.array_equal(np.asarray(pixels), e.preview[0])


def test_the_packed_archive_is_the_trace(traces, tmp_path):
    said = json.loads(share.pack(traces[0], "npz"))
    (tmp_path / said["name"]).write_bytes(base64.b64decode(said["npz"]))
    back = Trace.load(tmp_path / said["name"])
    assert back.config == CONFIG
    for a, b in zip(back.events, traces[0].events, strict=True):
        assert np.array_equal(a.variance, b.variance, equal_nan=True)
        assert np.array_equal(a.preview, b.preview)
    with pytest.raises(ShareError, match="json or npz"):
        share.pack(traces[0], "xml")


def test_a_recorded_run_becomes_the_trace_it_was_made_from(traces):
    """Up to what a recorded file rounds: variances to 0.02 %, pictures by WebP, one noise gap a step."""
    message = json.loads(json.dumps(bundle.from_traces(traces)[0]))
    for got, want in zip(share.from_bundle(message), traces, strict=True):
        assert got.prompt == want.prompt
        assert got.config.split == want.config.split
        assert got.flops == pytest.approx(want.flops, rel=1e-5)
        for a, b in zip(got.events, want.events, strict=True):
            order = b.grid.scan_order()
            assert a.grid.tiles()
            assert np.array_equal(a.grid.level, b.grid.level[order])
            assert np.array_equal(a.grid.coord, b.grid.coord[order])
            assert np.array_equal(a.selected, b.selected[order])
            known = np.isfinite(b.variance[order])
            assert np.array_equal(np.isfinite(a.variance), known)
            inside = known & (b.variance[order] > 1e-6) & (b.variance[order] < 1)
            np.testing.assert_allclose(a.variance[inside], b.variance[order][inside], rtol=3e-4)
            assert a.preview.shape == b.preview.shape
            assert (a.step, a.stage, a.check, a.closing) == (b.step, b.stage, b.check, b.closing)


def test_a_recorded_pictures_pixels_are_the_trace(traces):
    """The oracle's noise is the worst case for WebP; a smooth picture must come back nearly as it was."""
    y, x = np.mgrid[:48, :64]
    smooth = np.stack([4 * x, 5 * y, 255 - 2 * (x + y)], axis=-1).astype(np.uint8)
    events = [dataclasses.replace(e, preview=np.stack([smooth])) for e in traces[0].events]
    message = bundle.from_traces([dataclasses.replace(traces[0], events=events), traces[1]])[0]
    for e in share.from_bundle(message)[0].events:
        assert np.abs(e.preview[0].astype(float) - smooth).mean() < 3


def test_every_recorded_run_can_be_filmed_and_drawn_without_a_model():
    for path in sorted(export.TRACES.glob("*.json")):
        got = share.from_bundle(bundle.load(path))
        assert got[1].config.is_full
        assert got[1].config.nfe == 50
        picture = film.still(got[0], got[0].config.nfe - 1, got[1], size=96)
        assert picture.std() > 10


CONFIGS = [
    CONFIG,
    FrescoConfig.recommended(18, ratio=0.3, transition="rewind", checks=2, window=6, levels=2, seed=9),
    FrescoConfig.paper(11, guidance=3.5, size=(1, 96, 128), stages=(4, 3, 4)),
    FrescoConfig.recommended(9, tau=1e-5, noise="fresh", expansion="nearest", signal="channel", frame="coarse"),
    FrescoConfig(nfe=8, ratio=0.5, selection="random", checks=1),
    FrescoConfig.full(7, seed=3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_the_command_makes_the_run_again(config):
    """The shell's own parser reads it back to the same settings."""
    words = shlex.split(share.command(Trace("it's a fox; rm -rf", config, "sinopia")))
    assert words[:3] == ["python", "-m", "fresco"]
    args = cli._parser().parse_args(words[3:])
    again = settings.from_arguments(args)
    assert args.prompt == "it's a fox; rm -rf"
    assert again.replace(stages=again.split) == config.replace(stages=config.split)


def test_what_no_option_knows_is_said():
    config = FrescoConfig.recommended(8, tau=0.01, detail_gain=0.2)
    assert share.command(Trace("fox", config, "sinopia")).endswith("# and in Python: detail_gain=0.2")


def test_the_citation_holds_settings_weights_cost_and_link(traces):
    said = share.cite(traces[0], traces[1], "https://example.org/")
    step = traces[1].events[0].flops
    for words in ("arXiv:2601.07462", "fox", "seed 4", "NFE 6", "tau 0.02", "renoise", "noise field", "signal x0",
                  f"{50 * step / traces[0].flops:.2f} times fewer", "python -m fresco generate", "https://example.org/?",
                  traces[0].provenance["weights"], traces[0].provenance["torch"]):  # fmt: skip
        assert words in said


def run_all(kind, folder, traces, **more):
    seen = list(share.write(kind, folder, traces, **more))
    assert [part for part, _ in seen] == sorted(part for part, _ in seen)
    assert seen[-1][0] == 1
    return seen


@pytest.mark.parametrize("kind", [k for k in share.KINDS if "MP4" not in k])
def test_every_kind_is_written_and_is_what_it_says(kind, traces, tmp_path):
    seen = run_all(kind, tmp_path, traces, layers=["variance", "promoted"], step=2)
    path = tmp_path / share.name_of(traces[0], kind)
    assert seen[-1][1] == str(path)
    start = path.read_bytes()[:400]
    magic = {".webp": b"WEBP", ".gif": b"GIF8", ".png": b"PNG", ".pdf": b"%PDF", ".svg": b"<svg", ".npz": b"PK",
             ".json": b"fresco-trace-json", ".html": b"<!doctype html>"}  # fmt: skip
    assert magic[path.suffix] in start or magic[path.suffix] in path.read_bytes()[:2000]
    if kind in share.FILMS:
        assert Image.open(path).n_frames == len(film.plan(*traces))
        assert len(seen) == len(film.plan(*traces)) + 2
    if kind == share.STILL:
        want = film.still(traces[0], 2, traces[1], overlay=["variance", "promoted"])
        assert np.array_equal(np.asarray(Image.open(path)), want)


def test_closing_an_export_stops_it_and_leaves_no_file(traces, tmp_path):
    going = share.write("Film, WebP", tmp_path, traces)
    with contextlib.closing(going):
        next(going)
        next(going)
    assert list(tmp_path.iterdir()) == []


def test_a_still_of_several_layers_is_wider_by_a_pane_each(traces):
    one, three = (film.still(traces[0], 3, overlay=layers, size=300) for layers in ("none", ["variance", "levels", "promoted"]))
    assert three.shape[1] > one.shape[1]
    with pytest.raises(film.FilmError, match="heat"):
        film.still(traces[0], 3, overlay=["variance", "heat"])
    with pytest.raises(film.FilmError, match="none of the run's 6"):
        film.still(traces[0], 6)


@pytest.mark.parametrize(("kind", "these", "advice"), [("Poster", True, "choose of"), ("Trace, NPZ", False, "run something")])
def test_what_cannot_be_exported_is_a_sentence(kind, these, advice, traces, tmp_path):
    with pytest.raises(ShareError, match=advice):
        list(share.write(kind, tmp_path, traces if these else []))


def test_kept_traces_grow_and_are_forgotten(traces):
    kept = share.Kept(size=2)
    for run_id in ("a", "b", "c"):
        for event in traces[0].events:
            kept.add(run_id, 0, event, lambda: Trace("fox", CONFIG, "oracle"))
    kept.add(
        "c", 0, traces[0].events[-1], lambda: Trace("fox", CONFIG, "oracle")
    )  # the last step comes again with its likeness
    assert [len(t.events) for t in kept.find("c")] == [6]
    with pytest.raises(ShareError, match="press Run"):
        kept.find("a")
