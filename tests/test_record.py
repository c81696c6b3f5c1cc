"""Events against the sampler they come from, references kept in memory, and the race of two runs. Source: METHOD 2.6."""

import dataclasses
import math
import threading
from typing import Any

import numpy as np
import pytest
import torch

from fresco.backends.oracle import OracleModel
from fresco.config import ConfigError, FrescoConfig
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.metrics import psnr, ssim
from fresco.noise import NoiseField
from fresco.record import FieldNoise, References, compare, full_step, race, record, run
from fresco.sampler import sample
from fresco.tokens import Layout

CONFIG = FrescoConfig.recommended(nfe=7, tau=0.02, seed=3)
CONFIGS = [
    CONFIG,
    FrescoConfig.recommended(nfe=8, ratio=0.3, levels=2),
    FrescoConfig.paper(nfe=6),
    FrescoConfig(nfe=6, ratio=0.5, transition="rewind", selection="variance_high"),
    FrescoConfig(nfe=6, ratio=0.5, noise="fresh", selection="random"),
    FrescoConfig.full(5, seed=1),
]


class Counted:
    """The oracle, with every call of the denoiser counted and held back until it is let go."""

    def __init__(self, shape=(1, 12, 11), fail_at=None):
        self.model, self.calls, self.fail_at = OracleModel(shape=shape), [], fail_at
        self.name, self.provenance = self.model.name, self.model.provenance
        self.device, self.dtype = self.model.device, self.model.dtype
        self.encode, self.decode, self.preview = self.model.encode, self.model.decode, self.model.preview

    def bind(self, config):
        return Wrapper(self.model.bind(config), self, config)


class Wrapper:
    """A real denoiser that tells which run called it."""

    def __init__(self, denoiser, owner, config):
        self.inner, self.owner, self.config = denoiser, owner, config

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *args):
        self.owner.calls.append("full" if self.config.is_full else "own")
        if self.owner.fail_at == len(self.owner.calls):
            raise RuntimeError("the device went away")
        return self.inner(*args)


def equal(a, b):
    """Assert that two events are the same but for the clock."""
    for f in dataclasses.fields(a):
        one, two = getattr(a, f.name), getattr(b, f.name)
        if f.name in ("seconds", "preview_seconds"):
            continue
        if isinstance(one, np.ndarray):
            assert np.array_equal(one, two, equal_nan=one.dtype.kind == "f"), f.name
        elif f.name == "grid":
            assert np.array_equal(one.coord, two.coord)
        else:
            assert one == two or (one != one and two != two), f.name


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_recorded_run_is_the_sampler_s_run(config):
    model = OracleModel(shape=(1, 9, 10))
    denoiser = model.bind(config)
    layout = Layout(denoiser.channels, denoiser.patch)
    steps = list(sample(denoiser, model.encode("x"), config))
    events = list(record(model, "x", config))
    assert len(events) == len(steps) == config.nfe
    for event, step in zip(events, steps, strict=True):
        assert (event.step, event.stage, event.check, event.closing) == (step.step, step.stage, step.check, step.closing)
        assert (event.sigma, event.sigma_next) == (step.sigma, step.sigma_next)
        assert np.array_equal(event.variance, step.variance.numpy(), equal_nan=True)
        assert np.array_equal(event.selected, step.selected)
        assert np.array_equal(event.grid.coord, step.grid.coord)
        assert event.flops == 4.0 * len(step.grid) ** 2 * 3  # two dense products, three channels
        assert event.seconds > 0
    assert run(model, "x", config).flops == sum(4.0 * len(s.grid) ** 2 * 3 for s in steps)
    assert np.array_equal(events[-1].preview, model.decode(layout.unpack(steps[-1].x_next, steps[-1].grid_next)))


@pytest.mark.parametrize("config", CONFIGS[:5], ids=range(5))
def test_the_noise_gap_is_the_distance_of_the_noise_estimate_from_the_field(config):
    """Law: METHOD 2.6: eps_hat solves x = (1-s) x0 + s eps; the gap is its RMS distance from the token's field noise."""
    model = OracleModel(shape=(1, 6, 7))
    for event, step in zip(record(model, "x", config), sample(model.bind(config), model.encode("x"), config), strict=True):
        noise = NoiseField(config.seed, 3, 1).at(step.grid)
        for k in range(len(step.grid)):
            total = 0.0
            for c in range(3):
                eps = (float(step.x[k, c]) - (1 - step.sigma) * float(step.x0[k, c])) / step.sigma
                total += (eps - noise[k, c]) ** 2
            assert event.noise_gap[k] == pytest.approx(math.sqrt(total / 3), rel=2e-3, abs=2e-4)


def test_fresh_details_leave_the_field_and_the_field_s_own_do_not():
    model = OracleModel(shape=(1, 8, 8))
    field, fresh = (list(record(model, "x", FrescoConfig(nfe=6, ratio=0.4, noise=n))) for n in ("field", "fresh"))
    assert field[0].noise_gap.max() < 1e-5  # at sigma 1 the state is the field itself
    assert fresh[0].noise_gap.max() < 1e-5
    born = next(e.step for e in field if e.stage == "mixed")
    assert fresh[born].noise_gap.mean() > 2 * field[born].noise_gap.mean()


@pytest.mark.parametrize("every", [0, 1, 2, 3, 50])
def test_previews_come_every_k_steps_and_at_the_end(every):
    model = OracleModel(shape=(1, 8, 8))
    events = list(record(model, "x", CONFIG, preview_every=every))
    shown = [e.step for e in events if e.preview is not None]
    assert shown == sorted({s for s in range(7) if every and s % every == 0} | {6})
    for event in events[:-1]:
        if event.preview is not None and event.stage == "low":
            assert event.preview.shape == (1, 4, 4, 3)  # a sketch is shown at its own size
    for one, two in zip(events, record(model, "x", CONFIG), strict=True):
        assert np.array_equal(one.variance, two.variance, equal_nan=True)  # looking changes nothing


def test_tau_and_ratio_are_readings_of_the_same_variances():
    """Between checks too: a given tau says the fraction at or below it; a given ratio, the largest variance it takes."""
    model = OracleModel(shape=(1, 9, 10))
    for config in (CONFIG, CONFIG.replace(ratio=0.3, checks=1)):
        for e in record(model, "x", config):
            open_ = [float(v) for v, lv in zip(e.variance, e.grid.level, strict=True) if lv < e.grid.levels]
            if e.closing or not open_ or any(math.isnan(v) for v in open_):
                continue
            if config.tau:
                assert e.tau == config.tau
                assert e.ratio == pytest.approx(sum(v <= config.tau for v in open_) / len(open_))
            elif not e.check:
                taken = math.floor(0.3 * len(open_) + 1e-9)
                assert e.tau == pytest.approx(sorted(open_)[taken - 1])
            else:
                assert e.tau == pytest.approx(max(float(v) for v, s in zip(e.variance, e.selected, strict=True) if s))


# ------------------------------------------------------------------------------------------------------------ references


def seen(model, config, reference, kept, **more):
    return list(compare(model, "x", config, reference, kept, **more))


def test_a_second_tau_does_not_compute_the_reference_again():
    model, kept = Counted(), References()
    first = seen(model, CONFIG, "same NFE", kept)
    assert model.calls.count("own") == model.calls.count("full") == 7
    model.calls.clear()
    second = seen(model, CONFIG.replace(tau=0.5), "same NFE", kept)
    assert model.calls == ["own"] * 7
    one, two = ([s.event for s in found if s.track == 1] for found in (first, second))
    for a, b in zip(one, two, strict=True):
        assert a is b
    model.calls.clear()
    seen(model, CONFIG.replace(seed=4), "same NFE", kept)  # another seed is another reference
    seen(model, CONFIG.replace(nfe=8), "same NFE", kept)
    list(compare(model, "another prompt", CONFIG, "same NFE", kept))
    assert model.calls.count("full") == 7 + 8 + 7


def test_an_unfinished_or_failed_reference_is_not_kept():
    model, kept = Counted(), References()
    full = CONFIG.as_full(7)
    part = kept.record(model, "x", full)
    for _ in range(6):
        next(part)
    part.close()
    assert kept.find(model, "x", full) is None
    broken = Counted(fail_at=3)
    with pytest.raises(RuntimeError):
        list(kept.record(broken, "x", full))
    assert kept.find(broken, "x", full) is None
    whole = list(kept.record(model, "x", full))
    for a, b in zip(whole, kept.find(model, "x", full), strict=True):
        assert a is b


def test_the_oldest_reference_is_let_go():
    model, kept = Counted((1, 4, 4)), References(size=2)
    fulls = [FrescoConfig.full(3, seed=s) for s in range(3)]
    for config in fulls[:2]:
        list(kept.record(model, "x", config))
    list(kept.record(model, "x", fulls[0]))  # used again: now the newest
    list(kept.record(model, "x", fulls[2]))
    assert [kept.find(model, "x", f) is not None for f in fulls] == [True, False, True]


def test_a_kept_reference_shows_the_previews_that_were_asked_for():
    """A reference first made without previews must not stay without them when previews are wanted."""
    model, kept = Counted(), References()
    seen(model, CONFIG, "same NFE", kept, preview_every=0)
    again = seen(model, CONFIG, "same NFE", kept, preview_every=1)
    assert all(s.event.preview is not None for s in again if s.track == 1)


def test_references_are_safe_across_threads():
    model, kept, got = Counted((1, 6, 6)), References(size=3), {}

    def work(seed):
        for k in range(4):
            got[seed, k] = list(kept.record(model, "x", FrescoConfig.full(4, seed=(seed + k) % 5)))

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    for (seed, k), events in got.items():
        for a, b in zip(events, record(model, "x", FrescoConfig.full(4, seed=(seed + k) % 5)), strict=True):
            equal(a, b)
    assert len(got) == 16


# ------------------------------------------------------------------------------------------------------ race and compare


def test_whoever_has_spent_less_goes_next():
    """Law: DESIGN 1: at every moment the next event belongs to the run that has spent the fewest FLOPs so far."""
    model = OracleModel(shape=(1, 9, 10))
    tracks = {0: record(model, "x", CONFIG), 1: record(model, "x", CONFIG.as_full(5)), 2: record(model, "x", CONFIG.as_full(3))}
    spent, left, order = dict.fromkeys(tracks, 0.0), {0: 7, 1: 5, 2: 3}, []
    for track, event in race(tracks):
        running = [t for t in tracks if left[t]]
        assert spent[track] == min(spent[t] for t in running)
        spent[track] += event.flops
        left[track] -= 1
        order.append((track, event.step))
    assert not any(left.values())
    for t, n in {0: 7, 1: 5, 2: 3}.items():
        assert [s for track, s in order if track == t] == list(range(n))


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_closing_the_race_closes_every_run(taken):
    closed = []

    def watched(name):
        try:
            yield from record(OracleModel(shape=(1, 4, 4)), "x", FrescoConfig.full(9))
        finally:
            closed.append(name)

    runs = {0: watched("a"), 1: watched("b")}
    for events in runs.values():
        next(events)  # a generator that has not begun has nothing to finish
    racing = race(runs)
    for _ in range(taken + 1):
        next(racing)
    racing.close()
    assert sorted(closed) == ["a", "b"]
    assert all(next(events, None) is None for events in runs.values())


def test_closing_a_comparison_calls_the_model_no_more():
    model = Counted()
    found = compare(model, "x", CONFIG, "full at 50", References())
    for _ in range(5):
        next(found)
    found.close()
    assert len(model.calls) == 5


@pytest.mark.parametrize("name", ["full at 50", "same NFE", "same FLOPs", "none"])
def test_a_comparison_holds_both_runs_whole_and_their_likeness(name):
    model = Counted((1, 12, 12))
    found = seen(model, CONFIG, name, References())
    own = list(record(model.model, "x", CONFIG))
    for a, b in zip([s.event for s in found if s.track == 0][:7], own, strict=True):
        equal(a, b)
    spent = sum(e.flops for e in own)
    step = full_step(model, CONFIG)
    assert step == 4.0 * 144**2 * 3
    count = {"full at 50": 50, "same NFE": 7, "same FLOPs": math.ceil(spent / step - 1e-9), "none": 0}[name]
    other = [s.event for s in found if s.track == 1]
    assert [e.step for e in other] == list(range(count))
    if not count:
        assert [s.psnr for s in found] == [None] * 7
        return
    if name == "same FLOPs":
        assert (count - 1) * step < spent <= count * step
        assert [s.track for s in found] == [0] * 7 + [1] * count + [0]  # only then its cost is known
    for a, b in zip(other, record(model.model, "x", CONFIG.as_full(count)), strict=True):
        equal(a, b)
    last = found[-1]
    assert (last.track, last.event.step) == (0, 6)
    assert last.psnr == psnr(own[-1].preview, other[-1].preview)
    assert last.ssim == ssim(own[-1].preview, other[-1].preview)


def test_the_reference_shares_seed_size_and_guidance_and_nothing_else():
    model = Counted((1, 12, 12))
    config = CONFIG.replace(size=(1, 11, 13), seed=9, guidance=2.5)
    found = seen(model, config, "same NFE", References())
    full = next(s.config for s in found if s.track == 1)
    assert full == FrescoConfig.full(7, size=(1, 11, 13), seed=9, guidance=2.5)
    first = {s.track: s.event for s in reversed(found)}
    assert len(first[1].grid) == 143


def test_an_unknown_reference_is_one_sentence_before_any_model_call():
    model = Counted()
    with pytest.raises(ConfigError, match="best"):
        next(compare(model, "x", CONFIG, "best", References()))
    assert model.calls == []


def test_conditioning_can_be_given():
    model = OracleModel(shape=(1, 4, 4))
    a = list(record(model, "x", FrescoConfig.full(3), cond=Conditioning("other", {"t": torch.zeros(1)})))
    b = list(record(model, "other", FrescoConfig.full(3)))
    for one, two in zip(a, b, strict=True):
        equal(one, two)


def test_the_fields_noise_is_asked_for_once_per_token() -> None:
    """After promotions the same numbers as from scratch, while only new tokens are drawn; an odd grid with two levels."""

    class Counting(NoiseField):
        asked = 0

        def at(self, grid: TokenGrid) -> Any:
            self.asked += len(grid)
            return super().at(grid)

    field, grid = Counting(3, 2, 2), TokenGrid.uniform((2, 7, 5), 2, 0)
    noise, rng, total = FieldNoise(field), np.random.default_rng(1), len(TokenGrid.uniform((2, 7, 5), 2, 0))
    for _ in range(5):
        got = noise(grid, torch.device("cpu"))
        np.testing.assert_array_equal(got.numpy(), NoiseField(3, 2, 2).at(grid).astype(np.float32))
        assert noise(grid, torch.device("cpu")) is got
        assert field.asked == total
        mask = grid.expandable & (rng.random(len(grid)) < 0.6)
        following, _ = grid.expand(mask)
        total += len(following) - int((~mask).sum())
        grid = following
    assert grid.level.max() == 2
