"""Recorded prompts: sharing steps loses nothing, and a damaged file is one sentence. Source: DESIGN 3."""

import dataclasses
import json
from pathlib import Path

import pytest

from fresco.backends.oracle import OracleModel
from fresco.config import FrescoConfig
from fresco.record import full_step, run
from viz import bundle, frame

MODEL = OracleModel(shape=(1, 9, 10))
TAUS, NFES = (0.01, 0.05), (6, 9)
TRACES = Path(__file__).parents[1] / "assets" / "traces"
SHARED = ("run", "track", "label", "meta", "i", "of", "flops_total", "ms_total", "psnr", "ssim", "type", "v")


@pytest.fixture(scope="module")
def runs():
    return [run(MODEL, "fox", FrescoConfig.recommended(nfe=n, tau=t)) for n in NFES for t in TAUS]


@pytest.fixture(scope="module")
def references():
    return [run(MODEL, "fox", FrescoConfig.full(n), label=f"Full resolution, {n} steps") for n in (12, 6)]


@pytest.fixture(scope="module")
def whole(runs, references):
    recorded = [bundle.Recorded(t, 20.0 + k, 0.5) for k, t in enumerate(runs)]
    return bundle.build("fox", recorded, [bundle.Recorded(t) for t in references], full_step(MODEL, FrescoConfig()))


def direct(trace):
    """Return the frames of a trace as the live page would send them."""
    said = frame.meta(trace.config, prompt="fox", model="oracle", device="cpu", full_step=1.0)
    track = frame.Track("r", 0, "x", trace.config.nfe, said, 1.0)
    return [json.loads(track.add(event)) for event in trace.events]


def test_every_run_unrolls_to_the_frames_built_directly(whole, runs, references):
    """Steps that runs share are stored once; wall-clock times are the first one's, all else is equal to the last bit."""
    kept = json.loads(json.dumps(whole))
    times = ("ms", "preview_ms")
    for entry, trace in zip([*kept["runs"], *kept["references"]], [*runs, *references], strict=True):
        steps = [kept["frames"][k] for k in entry["frames"]]
        for got, want in zip(steps, direct(trace), strict=True):
            # A run driven by tau leaves it to the player: its tau is the run's, the fraction follows from the variances.
            drive = () if "tau" in got else ("tau", "ratio")
            assert {k: v for k, v in got.items() if k not in times} == {
                k: v for k, v in want.items() if k not in (*SHARED, *times, *drive)
            }
            assert drive == () or want["tau"] in (None, trace.config.tau)
        assert sum(f["flops"] for f in steps) == pytest.approx(trace.flops)


def test_the_low_stage_is_shared_and_nothing_else_is_lost(whole, runs, references):
    total = sum(len(t.events) for t in [*runs, *references])
    distinct = {json.dumps({k: v for k, v in f.items() if k not in ("ms", "preview_ms")}) for f in whole["frames"]}
    assert len(distinct) == len(whole["frames"]) < total
    for nfe in NFES:
        same = [r["frames"] for r in whole["runs"] if r["nfe"] == nfe]
        low = FrescoConfig.recommended(nfe=nfe, tau=TAUS[0]).split[0]
        # Runs of one NFE differ in tau only, so until the first promotion they are one run.
        assert same[0][: low - 1] == same[1][: low - 1]
        assert same[0] != same[1]


def test_a_bundle_says_what_it_holds(whole):
    assert (whole["taus"], whole["nfes"]) == (list(TAUS), list(NFES))
    assert {(r["tau"], r["nfe"]) for r in whole["runs"]} == {(t, n) for t in TAUS for n in NFES}
    assert [r["psnr"] for r in whole["runs"]] == [20, 21, 22, 23]
    step = full_step(MODEL, FrescoConfig())
    for r in whole["runs"]:
        spent = sum(whole["frames"][k]["flops"] for k in r["frames"])
        told = r["meta"]["baselines"]
        assert told["full50"] == 50 * step
        assert told["same_nfe"] == r["nfe"] * step
        steps = told["same_flops"]["steps"]
        assert (steps - 1) * step < spent * (1 + 1e-9)
        assert steps * step >= spent * (1 - 1e-9)


def test_saved_and_loaded_and_listed(whole, tmp_path):
    path = bundle.save(whole, tmp_path)
    assert bundle.load(path) == json.loads(json.dumps(whole))
    (tmp_path / "broken.json").write_text('{"type": "bundle"', encoding="utf-8")
    (tmp_path / "other.json").write_text(
        '{"type": "poem", "v": 1, "frames": [], "runs": [], "references": []}', encoding="utf-8"
    )
    listed = bundle.listing(tmp_path)
    assert list(listed) == ["fox"]
    assert listed["fox"]["prompt"] == "fox"
    assert "frames" not in listed["fox"]


def test_a_file_can_be_read_line_by_line(whole):
    """Law: the browser's reader. The first line, its list closed, and each of the next ones are JSON, and nothing is lost."""
    first, *lines, last = bundle.text(whole).split("\n")
    assert last == "]}"
    head = json.loads(first + "]}")
    frames = [json.loads(line.removesuffix(",")) for line in lines]
    assert head | {"frames": frames} == json.loads(json.dumps(whole)) == json.loads(bundle.text(whole))


def test_what_opens_lies_first(whole):
    """The middle of tau and NFE, step by step, then the first reference; a table with holes opens with its first run."""
    middle = next(r for r in whole["runs"] if (r["tau"], r["nfe"]) == (TAUS[1], NFES[1]))
    assert middle["frames"] == list(range(NFES[1]))
    new = [k for k in whole["references"][0]["frames"] if k >= NFES[1]]
    assert new == list(range(NFES[1], NFES[1] + len(new)))
    assert bundle.opening([0.1, 0.2, 0.3], [5, 9], [(0.1, 9), (0.2, 9), (0.3, 5)]) == 1
    assert bundle.opening([0.1, 0.2], [5, 9], [(0.1, 5), (0.1, 9)]) == 0
    assert bundle.opening([], [7], [(None, 7)]) == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: "{}",
        lambda text: text.replace('"v":1', '"v":99', 1),
        lambda text: text.replace('"type":"bundle"', '"type":"x"', 1),
        lambda text: json.dumps(json.loads(text) | {"frames": []}),
        lambda text: json.dumps(json.loads(text) | {"runs": 7}),
        lambda text: json.dumps(json.loads(text) | {"runs": [{"frames": [-1]}]}),
        lambda text: json.dumps(json.loads(text) | {"runs": [{"frames": ["0"]}]}),
        lambda text: "[" * 100_000,
        lambda text: "\udcff",
    ],
)
def test_a_damaged_bundle_is_one_sentence(whole, tmp_path, spoil):
    path = bundle.save(whole, tmp_path)
    path.write_bytes(spoil(path.read_text(encoding="utf-8")).encode("utf-8", "surrogateescape"))
    with pytest.raises(bundle.BundleError) as caught:
        bundle.load(path)
    assert "fox.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert bundle.listing(tmp_path) == {}


def test_a_missing_bundle_is_one_sentence(tmp_path):
    with pytest.raises(bundle.BundleError, match=r"no\.json"):
        bundle.load(tmp_path / "no.json")


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.json")), ids=lambda p: p.stem)
def test_shipped_bundles_hold_every_tau_at_every_nfe(path):
    found = bundle.load(path)
    assert path.stat().st_size < 10_000_000  # a Space refuses more
    assert {(r["tau"], r["nfe"]) for r in found["runs"]} == {(t, n) for t in found["taus"] or [None] for n in found["nfes"]}
    used = {k for r in [*found["runs"], *found["references"]] for k in r["frames"]}
    assert used == set(range(len(found["frames"])))
    for r in [*found["runs"], *found["references"]]:
        steps = [found["frames"][k] for k in r["frames"]]
        assert len(steps) == r["meta"]["nfe"]
        assert [s["sigma_next"] for s in steps[:-1]] == [s["sigma"] for s in steps[1:]]
        assert steps[-1]["preview"].startswith("data:image/webp")
        FrescoConfig(nfe=r["meta"]["nfe"], stages=r["meta"]["stages"], tau=r["meta"]["tau"], transition=r["meta"]["transition"])
    for nfe in found["nfes"]:  # a higher tau lets tokens go earlier, so it never costs less
        cost = [sum(found["frames"][k]["flops"] for k in r["frames"]) for r in found["runs"] if r["nfe"] == nfe]
        taus = [r["tau"] for r in found["runs"] if r["nfe"] == nfe]
        assert taus == sorted(taus)
        assert len(cost) == 1 or cost[-1] > cost[0]
    # The run that opens, then its first reference, lie first and one a line: a browser plays before it has the rest.
    lines = path.read_text(encoding="utf-8").split("\n")
    opened = found["runs"][bundle.opening(found["taus"], found["nfes"], [(r["tau"], r["nfe"]) for r in found["runs"]])]
    assert opened["frames"] == list(range(len(opened["frames"])))
    assert lines[0].endswith('"frames":[')
    assert [json.loads(line.rstrip(",")) for line in lines[1:4]] == found["frames"][:3]


def test_references_need_no_likeness(runs):
    bare = [dataclasses.replace(bundle.Recorded(t), psnr=None) for t in runs[:1]]
    assert bundle.build("x", bare, [], 1.0)["references"] == []
