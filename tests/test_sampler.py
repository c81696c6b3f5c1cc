"""The whole sampler against a slow one, and the laws of a run. Source: METHOD 2.2 to 2.6, DESIGN 2."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco import transition as transition_module
from fresco.config import EXPANSIONS, NOISES, SELECTIONS, SIGNALS, TRANSITIONS, FrescoConfig
from fresco.denoiser import Conditioning
from fresco.grid import TokenGrid
from fresco.noise import FreshNoise, NoiseField
from fresco.sampler import sample
from fresco.tokens import Layout
from tests import oracles
from tests.test_config import configs
from tests.test_grid import keys_of

COND = Conditioning("")
SHAPE = (1, 5, 6)


def run(config, shape=SHAPE, channels=1, patch=1, denoiser=None, noise=None):
    """Return all steps of a run of the pattern model."""
    denoiser = denoiser or oracles.PatternDenoiser(shape, channels, patch)
    return list(sample(denoiser, COND, config, noise=noise))


def state(x, grid, channels, patch):
    """Return a tensor of tokens as the oracle's dict."""
    return oracles.key_state(grid.level, grid.coord, x.double().numpy(), channels, patch)


def compare(config, shape, channels, patch, tolerance=2e-4):
    """Run both samplers and hold every step of one against the other; return the fast steps."""
    coherent = config.noise == "field" and config.transition != "restart"
    source = (NoiseField if coherent else FreshNoise)(config.seed, channels, patch)
    noise = oracles.Recorded(source, channels, patch)
    steps = run(config, shape, channels, patch, noise=noise)
    field = NoiseField(config.seed, channels, patch)
    model = oracles.PatternDenoiser(shape, channels, patch)
    low, mixed, _ = config.split
    slow = oracles.slow_sample(
        lambda keys, x, sigma: oracles.pattern_velocity(keys, x, sigma, config.levels), model.sigmas,
        oracles.Noise(lambda *at: field.pixels(*at), config.levels, patch, None if coherent else list(noise.draws)),
        shape, stages=config.split, transition=config.transition, expansion=config.expansion,
        selection=config.selection, signal=config.signal, window=config.window,
        count=mixed if config.checks == "every" else config.checks, ratio=config.ratio, tau=config.tau,
        coherent=coherent, gain=config.detail_gain, switch=config.switch or (),
        head=config.head, times=config.landing,
    )  # fmt: skip
    assert len(slow) == len(steps) == config.nfe
    for step, expected in zip(steps, slow, strict=True):
        where = f"step {step.step} of {config}"
        assert step.sigma == pytest.approx(expected["sigma"], abs=1e-6), where
        assert step.sigma_next == pytest.approx(expected["sigma_next"], abs=1e-6), where
        assert keys_of(step.grid) == expected["keys"], where
        assert keys_of(step.grid_next) == expected["keys_next"], where
        assert {k for k, m in zip(expected["keys"], step.selected, strict=True) if m} == expected["chosen"], where
        for tensor, grid, name in ((step.x, step.grid, "x"), (step.x0, step.grid, "x0"),
                                   (step.x_next, step.grid_next, "x_next")):  # fmt: skip
            got = state(tensor, grid, channels, patch)
            worst = max(float(np.abs(got[k] - expected[name][k]).max()) for k in got)
            assert worst < tolerance, f"{name} is off by {worst} at {where}"
        for value, key in zip(step.variance.tolist(), expected["keys"], strict=True):
            assert value == pytest.approx(expected["variance"][key], rel=5e-3, abs=1e-6, nan_ok=True), where
        at = step.step - config.head
        assert step.stage == ("full" if at < 0 else "low" if at < low else "mixed" if at < low + mixed else "full")
    return steps


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_every_transition_and_expansion_over_a_whole_run(transition, expansion):
    """Law: 4 low, 2 mixed, 3 full calls on a 5 x 6 grid with patch 2: every step is the slow sampler's."""
    config = FrescoConfig(nfe=9, stages=(4, 2, 3), transition=transition, expansion=expansion, seed=4)
    if transition == "rewind":
        config = config.replace(switch=(0.75, 0.5))
    steps = compare(config, SHAPE, 2, 2)
    assert 0 < steps[3].selected.sum() < 9


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("selection", ["variance", "variance_high", "all"])
def test_every_signal_and_variance_rule_over_a_whole_run(selection, signal):
    """Law: what is measured and who goes first, with two checks before the closing one."""
    compare(
        FrescoConfig(nfe=9, stages=(4, 3, 2), selection=selection, signal=signal, checks=2, window=3, ratio=0.3),
        (2, 4, 6), 2, 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings_", "shape", "channels", "patch"),
    [
        ({"levels": 2, "checks": "every", "stages": (3, 4, 2)}, (1, 7, 6), 1, 1),
        ({"levels": 2, "transition": "renoise", "checks": 3, "stages": (3, 4, 3)}, (1, 6, 5), 1, 2),
        ({"levels": 3, "transition": "renoise_x0", "stages": (3, 2, 3)}, (1, 9, 5), 1, 1),
        ({"levels": 2, "transition": "restart", "checks": 2, "stages": (3, 4, 3)}, (2, 5, 3), 2, 1),
        ({"levels": 2, "transition": "rewind", "stages": (4, 0, 4)}, (1, 5, 7), 1, 2),
        ({"levels": 3, "expansion": "bilinear", "stages": (3, 3, 2), "checks": 3}, (1, 5, 9), 1, 1),
        ({"transition": "rewind", "switch": (0.8, 0.4), "stages": (3, 4, 3)}, (1, 3, 5), 1, 3),
        ({"transition": "rewind", "stages": (1, 0, 3)}, (1, 4, 5), 1, 1),
        ({"transition": "rewind", "switch": (0.5, 0.3), "stages": (1, 2, 3), "signal": "channel"}, (1, 4, 5), 2, 1),
        ({"transition": "rewind", "switch": (0.7, 0.58), "stages": (3, 4, 3)}, (1, 4, 5), 1, 1),
        ({"transition": "rewind", "switch": (0.7, 0.4), "stages": (3, 4, 3), "checks": 2}, (1, 5, 6), 1, 1),
        ({"transition": "carry", "switch": (0.8, 0.4), "stages": (3, 4, 3), "noise": "fresh"}, (3, 1, 4), 2, 2),
        ({"transition": "renoise", "noise": "fresh", "stages": (3, 4, 3)}, (1, 4, 5), 2, 1),
        ({"transition": "rewind", "noise": "fresh", "switch": (0.7,), "stages": (4, 0, 4)}, (1, 4, 5), 2, 1),
        ({"transition": "renoise_x0", "noise": "fresh", "stages": (3, 3, 3), "checks": 2}, (1, 4, 5), 1, 1),
        ({"transition": "restart", "switch": (0.6,), "stages": (4, 0, 4)}, (1, 5, 5), 1, 1),
        ({"detail_gain": 0.2, "stages": (3, 2, 3)}, (1, 5, 5), 1, 2),
        ({"detail_gain": 0.2, "transition": "renoise", "stages": (3, 2, 3)}, (1, 5, 5), 1, 2),
        ({"tau": 1e-9, "transition": "renoise", "stages": (3, 3, 2)}, (1, 4, 5), 1, 1),
        ({"tau": 1e-9, "transition": "renoise_x0", "stages": (3, 3, 2)}, (1, 4, 5), 1, 1),
        ({"tau": 1e9, "transition": "rewind", "stages": (3, 3, 2)}, (1, 4, 5), 1, 1),
        ({"stages": (0, 0, 6)}, (2, 3, 4), 2, 1),
        ({"stages": (3, 3, 0), "ratio": 0.5}, (1, 4, 5), 1, 1),
        ({"stages": (4, 0, 0)}, (1, 4, 5), 1, 1),
        ({"stages": (1, 3, 2)}, (1, 4, 5), 1, 1),
        ({"head": 2, "stages": (3, 2, 2)}, (1, 5, 7), 1, 2),
        ({"head": 1, "stages": (3, 0, 2), "transition": "restart"}, (2, 4, 5), 2, 1),
        ({"head": 3, "stages": (3, 2, 3), "transition": "rewind"}, (1, 4, 5), 1, 1),
        ({"head": 2, "stages": (3, 2, 2), "transition": "renoise", "switch": (0.5, 0.4), "levels": 2}, (1, 5, 7), 1, 1),
        ({"head": 2, "stages": (3, 2, 2), "transition": "renoise_x0", "landing": 4.0}, (1, 5, 7), 1, 1),
        ({"stages": (3, 2, 2), "transition": "renoise", "landing": 6.3}, (1, 5, 7), 1, 2),
        ({"stages": (3, 2, 2), "transition": "renoise", "landing": 6.3, "noise": "fresh", "switch": (0.7, 0.55),
          "expansion": "hadamard_token"}, (2, 4, 5), 1, 2),
        ({"stages": (3, 2, 3), "transition": "renoise", "landing": 3.0, "detail_gain": 0.2, "levels": 2}, (1, 5, 7), 1, 1),
        ({"stages": (3, 2, 2), "transition": "restart", "landing": 3.0}, (1, 4, 5), 1, 1),
    ],
)  # fmt: skip
def test_runs_of_every_kind_are_the_slow_sampler_s(settings_, shape, channels, patch):
    """Law: levels 1 to 3, patch 1 to 3, odd and several frames, both noises, explicit switches, missing stages."""
    nfe = sum(settings_["stages"]) + settings_.get("head", 0)
    compare(FrescoConfig(nfe=nfe, seed=12, **settings_), shape, channels, patch)


def test_the_default_run_of_eighteen_calls_is_the_slow_sampler_s():
    """Law: FrescoConfig() itself, and the paper's preset."""
    compare(FrescoConfig(), (1, 4, 4), 1, 1)
    compare(FrescoConfig.paper(11), (1, 4, 4), 1, 1)


def test_progressive_promotion_happens_at_the_step_where_a_token_passes_tau():
    """Law: METHOD 2.6, `every`: at each check exactly the open tokens with variance <= tau, recomputed from x0."""
    shape, stages = (1, 8, 10), (3, 6, 2)
    probe = run(FrescoConfig(nfe=11, stages=stages, ratio=0.0, checks="every"), shape)
    tau = float(np.median(np.concatenate([s.variance.numpy()[s.grid.expandable] for s in probe[2:8]])))
    steps = run(FrescoConfig(nfe=11, stages=stages, tau=tau, checks="every"), shape)
    past, promoted_at = {}, {}
    for s in steps:
        keys = keys_of(s.grid)
        for key, value in zip(keys, s.x0.numpy(), strict=True):
            own = past.get(key) or list(past.get(oracles.ancestor(key, 0), []))
            past[key] = [*own, value]
        for key, chosen in zip(keys, s.selected, strict=True):
            v = oracles.variance(past[key], 4)
            if s.closing:
                assert chosen == (key[0] == 0)
            elif s.check:
                assert chosen == (key[0] == 0 and v <= tau), (s.step, key, v, tau)
            else:
                assert not chosen
            if chosen:
                promoted_at[key] = s.step
    assert [s.step for s in steps if s.check] == [2, 3, 4, 5, 6, 7, 8]
    assert len(promoted_at) == 20
    assert len({v for v in promoted_at.values() if v < 8}) >= 3, "promotions must spread for this test to mean anything"


def test_nothing_is_promoted_while_variance_is_undefined():
    """Law: METHOD 2.3: with one low step the first check has one estimate, so nobody goes; x0 and z alike."""
    for signal in ("x0", "z"):
        for drive in ({"tau": 1e9}, {"ratio": 1.0}):
            steps = run(FrescoConfig(nfe=6, stages=(1, 3, 2), checks="every", signal=signal, **drive))
            assert torch.isnan(steps[0].variance).all()
            assert not steps[0].selected.any()
            assert steps[1].selected.all(), "with two estimates everybody passes"
    steps = run(FrescoConfig(nfe=6, stages=(1, 3, 2), ratio=1.0, signal="channel"), channels=2)
    assert steps[0].selected.all(), "one step is enough across channels"


@pytest.mark.parametrize(("tau", "first"), [(1e-12, 6), (1e12, 2)])
def test_a_tau_for_nobody_and_a_tau_for_everybody(tau, first):
    """Law: all wait for the closing check, or all go at the first; either way the last grid is the finest."""
    steps = run(FrescoConfig(nfe=9, stages=(3, 4, 2), tau=tau, checks="every"))
    assert [s.step for s in steps if s.selected.any()] == [first]
    assert steps[first].selected.all()
    assert sorted(keys_of(steps[-1].grid_next)) == oracles.uniform(SHAPE, 1, 1)
    assert steps[2].ratio == (1.0 if tau > 1 else 0.0)


def test_two_levels_promote_twice():
    """Law: levels = 2: level 0 goes at the first check, its children at the next, and all are finest in the end."""
    steps = run(FrescoConfig(nfe=9, stages=(3, 4, 2), levels=2, tau=1e12, checks="every"), (1, 6, 7))
    grids = [sorted(keys_of(s.grid_next)) for s in steps]
    assert grids[1] == oracles.uniform((1, 6, 7), 2, 0)
    assert grids[2] == oracles.uniform((1, 6, 7), 2, 1)
    assert grids[3] == oracles.uniform((1, 6, 7), 2, 2)
    closing = run(FrescoConfig(nfe=9, stages=(3, 4, 2), levels=2, tau=1e-12, checks="every"), (1, 6, 7))
    assert sorted(keys_of(closing[5].grid_next)) == oracles.uniform((1, 6, 7), 2, 0)
    assert sorted(keys_of(closing[6].grid_next)) == oracles.uniform((1, 6, 7), 2, 2)


@pytest.mark.parametrize("checks", [1, 2, 3, "every"])
def test_ratio_quotas_rise_linearly_to_everybody(checks):
    """Law: METHOD 2.6: after check j of k, floor((r + (1 - r) j / k) cells) are promoted in all."""
    shape = (1, 8, 10)
    steps = run(FrescoConfig(nfe=12, stages=(3, 6, 3), ratio=0.3, checks=checks), shape)
    count = 6 if checks == "every" else checks
    looks = oracles.check_steps(3, 6, count)
    for s in steps:
        done = oracles.expanded_beyond(keys_of(s.grid_next), 0)
        passed = [j for step, j in looks.items() if step <= s.step]
        expected = 20 if s.step >= 8 else oracles.quota(0.3, max(passed), count, 20) if passed else 0
        assert done == expected, s.step
        if s.check and not s.closing and s.selected.any():
            assert s.tau == pytest.approx(float(s.variance[torch.tensor(s.selected)].max()))
            assert s.ratio == pytest.approx(s.selected.sum() / s.grid.expandable.sum())


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("stages", [None, (3, 0, 4), (3, 3, 3)])
def test_model_calls_are_nfe(transition, stages):
    """Law: METHOD 2.6: never more, the extra estimate of renoise_x0 included; the end is sigma 0 on the finest grid."""
    nfe = 10 if stages is None else sum(stages)
    denoiser = oracles.PatternDenoiser(SHAPE)
    steps = run(FrescoConfig(nfe=nfe, stages=stages, transition=transition, selection="all"), denoiser=denoiser)
    assert denoiser.calls == len(steps) == nfe
    assert [s.step for s in steps] == list(range(nfe))
    assert steps[0].sigma == 1.0
    assert steps[-1].sigma_next == pytest.approx(0.0, abs=1e-12)
    assert sorted(keys_of(steps[-1].grid_next)) == oracles.uniform(SHAPE, 1, 1)
    for a, b in itertools.pairwise(steps):
        assert (b.sigma, b.grid, b.x) == (a.sigma_next, a.grid_next, a.x_next)


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_the_first_landing_is_on_the_grid_of_the_whole_run(transition):
    """Law: METHOD 2.6: it is s_n1 exactly, for carry without any jump."""
    config = FrescoConfig(nfe=10, transition=transition, selection="all")
    steps = run(config)
    s = oracles.PatternDenoiser(SHAPE).sigmas(10, 30)
    assert steps[3].sigma_next == pytest.approx(s[4], abs=1e-12)
    assert [t.sigma for t in steps[4:]] == pytest.approx(s[4:-1], abs=1e-9)
    if transition in ("carry", "redraw"):
        assert [t.sigma for t in steps] == pytest.approx(s[:-1])
    elif transition in ("rewind", "renoise"):
        assert [t.sigma for t in steps[:4]] == pytest.approx([v / (2 - v) for v in s[:4]])
    else:
        assert steps[3].sigma == pytest.approx(s[4] / (2 - s[4]), abs=1e-12)


@pytest.mark.parametrize("transition", ["renoise_x0", "restart"])
def test_estimating_transitions_spend_their_call_without_a_step(transition):
    """Law: METHOD 2.2: the estimate that is noised anew was made at sigma itself, so x_next holds x0 of that call."""
    config = FrescoConfig(nfe=10, transition=transition, selection="all", seed=2)
    step = run(config)[3]
    sigma, after = step.sigma, step.sigma_next
    assert after == pytest.approx(2 * sigma / (1 + sigma), abs=1e-9)
    x0 = state(step.x0, step.grid, 1, 1)
    residual = []
    for key, value in state(step.x_next, step.grid_next, 1, 1).items():
        residual.append(float((value - (1 - after) * x0[oracles.ancestor(key, 0)]).item()) / after)
    field = NoiseField(2, 1, 1).at(step.grid_next)[:, 0]
    agrees = np.allclose(residual, field, atol=1e-4)
    assert agrees == (transition == "renoise_x0")


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_explicit_switches_are_the_ends_of_the_stages(transition):
    """Law: METHOD 2.6: the transition at the end of the mixed stage starts from switch[1], whatever its name."""
    config = FrescoConfig(nfe=11, stages=(4, 4, 3), switch=(0.7, 0.4), transition=transition, ratio=0.4)
    steps = run(config)
    landings = (0.7, 0.4) if transition in ("carry", "redraw") else (1.4 / 1.7, 0.8 / 1.4)
    assert (steps[3].sigma_next, steps[7].sigma_next) == pytest.approx(landings, abs=1e-9)


def test_carry_leaves_kept_tokens_on_their_euler_path():
    """Law: METHOD 2.2: promoting others changes nothing for a kept token in that step."""
    step = run(FrescoConfig(nfe=9, stages=(4, 2, 3)), channels=2, patch=2)[3]
    velocity = (step.x - step.x0) / step.sigma
    euler = state(step.x + (step.sigma_next - step.sigma) * velocity, step.grid, 2, 2)
    after = state(step.x_next, step.grid_next, 2, 2)
    kept = [k for k in euler if k in after]
    assert 0 < len(kept) < len(euler)
    assert all(np.allclose(euler[k], after[k], atol=1e-5) for k in kept)


def test_rewind_moves_kept_tokens_to_where_they_were():
    """Law: METHOD 2.2: a kept token at the landing lies on the line between its own stored states."""
    steps = run(FrescoConfig(nfe=9, stages=(4, 2, 3), switch=(0.7, 0.4), transition="rewind"))
    step = steps[3]
    landing = step.sigma_next
    nodes = [(s.sigma, state(s.x, s.grid, 1, 1)) for s in steps[:4]]
    after = state(step.x_next, step.grid_next, 1, 1)
    kept = [k for k in after if k[0] == 0]
    assert kept
    assert nodes[-1][0] < landing < nodes[0][0]
    for k in kept:
        assert np.allclose(after[k], oracles.at_sigma([(s, x[k]) for s, x in nodes], landing), atol=1e-5)


def test_rewind_refuses_a_second_switch_above_the_first_landing():
    """Law: METHOD 2.2: a token promoted at 0.5 has no history at 0.57; the error says what to do."""
    config = FrescoConfig(nfe=9, stages=(4, 3, 2), switch=(1 / 3, 0.4), transition="rewind", ratio=0.4)
    with pytest.raises(ValueError, match=r"rewind.*promoted.*(renoise|carry)"):
        run(config)


def test_rewind_may_land_again_exactly_where_it_landed_before():
    """Law: METHOD 2.2: `2 sigma / (1 + sigma)` <= the previous landing is allowed, equality included."""
    config = FrescoConfig(nfe=9, stages=(4, 3, 2), switch=(0.5, 0.5), transition="rewind", ratio=0.4)
    steps = run(config)
    assert (steps[3].sigma_next, steps[6].sigma_next) == pytest.approx((2 / 3, 2 / 3))
    first, second = state(steps[3].x_next, steps[3].grid_next, 1, 1), state(steps[6].x_next, steps[6].grid_next, 1, 1)
    born = [k for k in first if k[0] == 1]
    assert born
    assert all(np.allclose(first[k], second[k], atol=1e-5) for k in born)


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_the_same_configuration_gives_the_same_bits(transition):
    """Law: sample() draws nothing at random itself; two runs, fresh noise included, are identical."""
    config = FrescoConfig(nfe=8, stages=(3, 2, 3), transition=transition, selection="random", noise="fresh", seed=5)
    config = config.replace(switch=(0.7, 0.4)) if transition == "rewind" else config
    a, b = run(config, channels=2), run(config, channels=2)
    for s, t in zip(a, b, strict=True):
        assert torch.equal(s.x_next, t.x_next)
        assert np.array_equal(s.selected, t.selected)
    other = run(config.replace(seed=6), channels=2)
    assert float((other[-1].x_next - a[-1].x_next).abs().max()) > 1e-3


class Shuffling(TokenGrid):
    """TokenGrid whose dense grids come in a shuffled order."""

    @classmethod
    def uniform(cls, shape, levels, level):
        grid = TokenGrid.uniform(shape, levels, level)
        order = np.random.default_rng(7).permutation(len(grid))
        return TokenGrid(grid.shape, grid.levels, grid.level[order], grid.coord[order])


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("transition", ["carry", "rewind", "renoise", "renoise_x0"])
def test_the_order_of_tokens_does_not_matter(transition, expansion, monkeypatch):
    """Law: a run that starts from a shuffled grid draws the same picture."""
    config = FrescoConfig(nfe=8, stages=(3, 2, 3), transition=transition, expansion=expansion, levels=2, seed=3)
    config = config.replace(stages=(4, 0, 4)) if transition == "rewind" else config
    straight = run(config, channels=1, patch=2)[-1]
    monkeypatch.setattr("fresco.sampler.TokenGrid", Shuffling)
    shuffled = run(config, channels=1, patch=2)[-1]
    assert keys_of(shuffled.grid_next) != keys_of(straight.grid_next)
    layout = Layout(1, 2)
    difference = layout.canvas(shuffled.x_next, shuffled.grid_next) - layout.canvas(straight.x_next, straight.grid_next)
    assert float(difference.abs().max()) < 1e-4


def last(**changes):
    """Return the last state of a small run, on a canvas, whatever the settings."""
    settings_ = {"nfe": 10, "stages": (5, 3, 2), "checks": 2, "ratio": 0.4, "seed": 7} | changes
    if settings_.get("transition") == "rewind":
        settings_ |= {"switch": (0.7, 0.3), "checks": 1}
    final = run(FrescoConfig(**settings_), (1, 8, 8), 2, 2)[-1]
    return Layout(2, 2).canvas(final.x_next, final.grid_next)


@pytest.mark.parametrize(
    ("name", "values"),
    [("selection", SELECTIONS), ("signal", SIGNALS), ("expansion", EXPANSIONS), ("transition", TRANSITIONS),
     ("noise", NOISES), ("checks", (1, 2, 3)), ("ratio", (0.0, 0.4, 1.0)), ("levels", (1, 2)),
     ("detail_gain", (0.0, 0.3)), ("seed", (0, 1))],
)  # fmt: skip
def test_every_two_values_of_a_setting_give_different_pictures(name, values):
    """Law: no setting is ignored and no two names of a registry do the same to a run."""
    pictures = {v: last(**{name: v}) for v in values}
    for a, b in itertools.combinations(pictures, 2):
        assert float((pictures[a] - pictures[b]).abs().max()) > 1e-4, (name, a, b)


def test_the_window_decides_what_tau_sees():
    """Law: METHOD 2.3: two latest estimates vary less than four do on the way, so one tau promotes other tokens."""
    windows = [run(FrescoConfig(nfe=9, stages=(5, 2, 2), window=w, ratio=0.0), (1, 8, 8)) for w in (2, 4)]
    short, long = (steps[4].variance.numpy() for steps in windows)
    estimates = np.stack([s.x0.numpy()[:, 0] for s in windows[0][:5]])
    assert np.allclose(short, estimates[-2:].var(axis=0, ddof=1), rtol=1e-4)
    assert np.allclose(long, estimates[-4:].var(axis=0, ddof=1), rtol=1e-4)
    tau = float(np.median(np.concatenate([short, long])))
    sets = [run(FrescoConfig(nfe=9, stages=(5, 2, 2), window=w, tau=tau), (1, 8, 8))[4].selected for w in (2, 4)]
    assert np.array_equal(sets[0], short <= tau)
    assert np.array_equal(sets[1], long <= tau)
    assert (sets[0] != sets[1]).any()


def test_a_full_run_is_plain_euler():
    """Law: DESIGN 2: the baseline is the same function: x + (sigma_next - sigma) v, nothing else."""
    denoiser = oracles.PatternDenoiser((2, 3, 4), 2, 1)
    steps = run(FrescoConfig.full(6, seed=3), (2, 3, 4), 2)
    grid = TokenGrid.uniform((2, 3, 4), 1, 1)
    x = torch.tensor(NoiseField(3, 2, 1).at(grid)).float()
    sigmas = denoiser.sigmas(6, 24)
    for s, sigma, after in zip(steps, sigmas, sigmas[1:], strict=False):
        assert torch.allclose(s.x, x, atol=1e-6)
        velocity = denoiser(x, grid, sigma, COND)
        assert torch.allclose(s.x0, x - sigma * velocity, atol=1e-6)
        x = x + (after - sigma) * velocity
        assert not s.selected.any()
        assert not s.check
    assert torch.allclose(steps[-1].x_next, x, atol=1e-6)


def test_size_reaches_the_model_and_decides_the_canvas():
    """Law: DESIGN 2: only token_shape reads pixels; a run of another size is a run of that model at that size."""
    config = FrescoConfig(nfe=5, size=(2, 3, 5))
    native, other = run(config.replace(size=None), (2, 3, 5))[-1], run(config, (2, 3, 5))[-1]
    assert torch.equal(native.x_next, other.x_next)
    changed = list(sample(Quick((1, 8, 8)), COND, config))[-1]
    assert changed.grid_next.shape == (2, 3, 5)
    assert torch.isfinite(changed.x_next).all()


def test_runs_of_one_seed_start_from_one_field():
    """Law: METHOD 2.1: coarse starts are the Haar low-pass of the full run's start, fresh or not, at any level."""
    field = NoiseField(9, 1, 2)
    for config in (FrescoConfig(nfe=3, seed=9, levels=2), FrescoConfig.full(3, seed=9, noise="fresh"),
                   FrescoConfig(nfe=3, seed=9, levels=3, noise="fresh")):  # fmt: skip
        step = run(config, patch=2)[0]
        for key, value in state(step.x, step.grid, 1, 2).items():
            expected = oracles.token_noise(lambda *at: field.pixels(*at), config.levels, 2, key)
            assert np.allclose(value, expected, atol=1e-6)


class Spoiled(oracles.PatternDenoiser):
    """A model that returns one value everywhere."""

    value = 0.0

    def __call__(self, x, grid, sigma, cond):
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("value", [0.0, 1e30, -1e30])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_huge_velocities_do_not_make_infinities(transition, value):
    """Law: the sampler's own arithmetic stays finite where float32 does, sigma 1 and sigma 0 included."""
    denoiser = Spoiled(SHAPE)
    denoiser.value = value
    steps = run(FrescoConfig(nfe=8, stages=(3, 0, 5), transition=transition), denoiser=denoiser)
    assert all(torch.isfinite(s.x_next).all() for s in steps)


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_a_model_that_returns_nan_promotes_nobody_before_the_closing_check(transition):
    """Law: an undefined variance selects nothing; the run still ends on the finest grid."""
    denoiser = Spoiled(SHAPE)
    denoiser.value = math.nan
    config = FrescoConfig(nfe=8, stages=(3, 2, 3), transition=transition, tau=1e9)
    if transition == "rewind":
        config = config.replace(switch=(0.8, 0.5))
    steps = run(config, denoiser=denoiser)
    assert [s.step for s in steps if s.selected.any()] == [4]
    assert sorted(keys_of(steps[-1].grid_next)) == oracles.uniform(SHAPE, 1, 1)


class Quick(oracles.PatternDenoiser):
    """A model without loops, for many runs."""

    def __call__(self, x, grid, sigma, cond):
        self.calls += 1
        place = torch.tensor(grid.coord.sum(axis=1) + grid.level)[:, None]
        return 0.6 * x - torch.sin(place + sigma * x).float()


@settings(max_examples=60)
@given(configs(), st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5)), st.integers(1, 2))
def test_any_configuration_runs_to_a_finite_picture_or_says_why_not(config, shape, patch):
    """Law: every accepted configuration gives nfe finite steps on the finest grid, or one clear sentence."""
    config = config.replace(size=None)
    low = config.split[0]
    if config.nfe > 24 or (low == 1 and config.transition in ("renoise_x0", "restart")):
        config = config.replace(nfe=10, stages=None, switch=None)
    denoiser = Quick(shape, 1, patch)
    try:
        steps = run(config, denoiser=denoiser)
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "switch" in refused or "rewind" in refused
        assert "\n" not in refused
        return
    assert denoiser.calls == len(steps) == config.nfe
    assert all(torch.isfinite(s.x_next).all() for s in steps)
    assert sorted(keys_of(steps[-1].grid_next)) == oracles.uniform(shape, config.levels, config.levels)
    assert steps[-1].sigma_next == pytest.approx(0.0, abs=1e-9)
    for s in steps:
        assert oracles.tiles_once(shape, config.levels, keys_of(s.grid))
        assert 0 <= s.sigma_next <= 1


def test_a_canvas_of_45_by_80_goes_through_a_whole_run():
    """Law: HunyuanVideo's odd grid: a straight-path model returns its own target, whatever the transition."""

    class Straight(oracles.PatternDenoiser):
        """Knows the clean picture and the field: v = eps - x0 exactly, so every coherent transition is exact."""

        def __call__(self, x, grid, sigma, cond):
            return torch.tensor(NoiseField(1, 1, 1).at(grid)).float() - 0.5

    for transition in ("carry", "rewind", "renoise", "renoise_x0"):
        denoiser = Straight((1, 45, 80))
        config = FrescoConfig(nfe=8, stages=(3, 2, 3), transition=transition, selection="even", seed=1)
        config = config.replace(switch=(0.8, 0.5)) if transition == "rewind" else config
        steps = run(config, denoiser=denoiser)
        assert steps[2].selected.sum() == math.floor(0.4 * 920)
        assert len(steps[-1].grid_next) == 3600
        assert float((steps[-1].x_next - 0.5).abs().max()) < 1e-5, transition
        noise = torch.tensor(NoiseField(1, 1, 1).at(steps[2].grid_next)).float()
        after = steps[2].sigma_next
        assert torch.allclose(steps[2].x_next, (1 - after) * 0.5 + after * noise, atol=1e-5)


def test_the_registries_are_what_runs():
    """Law: a name resolves in the registry at run time, so an ablation is another entry and no second loop."""
    assert set(transition_module.TRANSITIONS) == set(TRANSITIONS)
    assert set(transition_module.EXPANSIONS) == set(EXPANSIONS)
