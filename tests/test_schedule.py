"""Sigmas, legs, splits, checks and transition weights by closed form. Source: METHOD 2.1, 2.2, 2.6."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco import schedule
from fresco.config import TRANSITIONS, FrescoConfig
from tests import oracles

RAISING = [t for t in TRANSITIONS if t not in ("carry", "redraw")]
unit = st.floats(0, 1)


def sigmas(n, tokens, start=1.0, end=0.0):
    """Return a grid whose shift is sqrt(tokens / 16): 1 at 16 tokens, 2 at 64."""
    return oracles.model_sigmas(n, start, end, (tokens / 16) ** 0.5)


def flat(legs):
    """Return legs as one list of numbers."""
    return [s for leg in legs for s in leg]


@given(unit, st.floats(0.1, 10))
def test_shift_is_the_resolution_shift_and_unshift_its_inverse(u, alpha):
    """Law: sigma/(1-sigma) is alpha times u/(1-u)."""
    sigma = schedule.shift(u, alpha)
    assert sigma * (1 - u) == pytest.approx(alpha * u * (1 - sigma), abs=1e-12)
    assert schedule.unshift(sigma, alpha) == pytest.approx(u, abs=1e-9)


@given(unit)
def test_expansion_doubles_the_noise_to_signal_ratio(sigma):
    """Law: sigma' = 2 sigma / (1 + sigma) is the shift by sqrt(4) (METHOD 2.1); s / (2 - s) undoes it."""
    after = schedule.expanded(sigma)
    assert after * (1 - sigma) == pytest.approx(2 * sigma * (1 - after), abs=1e-12)
    assert schedule.unexpanded(after) == pytest.approx(sigma, abs=1e-12)
    assert schedule.unexpanded(sigma) == pytest.approx(sigma / (2 - sigma), abs=1e-12)


@given(st.floats(0, 0.99), unit)
def test_renoise_weights_keep_signal_and_noise_on_the_path(sigma, share):
    """Law: beta (1-s) = 1-s' and beta s + alpha = s': with the same eps, z' is a flow state at s'."""
    after = sigma + (1 - sigma) * share
    beta, alpha = schedule.transition_weights(sigma, after)
    assert beta * (1 - sigma) == pytest.approx(1 - after, abs=1e-12)
    assert beta * sigma + alpha == pytest.approx(after, abs=1e-12)


@given(st.floats(0, 0.99), unit)
def test_fresh_weights_keep_the_signal_and_the_noise_power(sigma, share):
    """Law: with independent eps the powers add: (beta s)^2 + alpha^2 = s'^2."""
    after = sigma + (1 - sigma) * share
    beta, alpha = schedule.fresh_weights(sigma, after)
    assert beta * (1 - sigma) == pytest.approx(1 - after, abs=1e-12)
    assert (beta * sigma) ** 2 + alpha**2 == pytest.approx(after**2, abs=1e-12)
    assert alpha >= 0


def test_weights_refuse_pure_noise_and_going_down():
    """Law: at sigma 1 there is no signal to scale, and fresh noise cannot be taken out."""
    for weights in (schedule.transition_weights, schedule.fresh_weights):
        with pytest.raises(ValueError, match="noise alone"):
            weights(1.0, 1.0)
    with pytest.raises(ValueError, match="must not be below"):
        schedule.fresh_weights(0.5, 0.4)


@pytest.mark.parametrize(
    ("nfe", "split"),
    [(30, (12, 9, 9)), (18, (6, 7, 5)), (11, (5, 2, 4)), (50, (20, 15, 15)), (10, (4, 3, 3)), (3, (1, 1, 1)),
     (4, (2, 1, 1)), (7, (3, 2, 2)), (1000, (400, 300, 300))],
)  # fmt: skip
def test_default_splits_by_hand(nfe, split):
    """Law: the paper's three where they apply, else round(.4 n), rest, round(.3 n)."""
    assert schedule.default_split(nfe) == split
    assert FrescoConfig(nfe=nfe).split == split


def test_every_default_split_spends_nfe_with_a_step_in_every_stage():
    """Law: METHOD 2.6 for every nfe from 3 to 1000."""
    for nfe in range(3, 1001):
        split = schedule.default_split(nfe)
        assert split == oracles.split_of(nfe)
        assert sum(split) == nfe
        assert min(split) >= 1
    for nfe in (0, 1, 2):
        with pytest.raises(ValueError, match="3"):
            schedule.default_split(nfe)


def test_a_full_run_is_the_grid_of_the_model():
    """Law: no stage, no change: legs are the model's own sigmas at the full token count."""
    legs = schedule.plan(FrescoConfig.full(7), sigmas, 16, 64)
    nodes = oracles.model_sigmas(7, 1.0, 0.0, 2.0)
    assert flat(legs) == pytest.approx([v for a, b in itertools.pairwise(nodes) for v in (a, b)])


@pytest.mark.parametrize("nfe", [10, 18])
def test_carry_runs_every_stage_on_the_full_grid(nfe):
    """Law: METHOD 2.6, with carry the low stage runs on s_i itself."""
    legs = schedule.plan(FrescoConfig(nfe=nfe), sigmas, 16, 64)
    s = oracles.model_sigmas(nfe, 1.0, 0.0, 2.0)
    assert flat(legs) == pytest.approx(flat(itertools.pairwise(s)))


@pytest.mark.parametrize("transition", ["rewind", "renoise"])
@pytest.mark.parametrize("nfe", [10, 18])
def test_raising_transitions_land_first_exactly_on_the_full_grid(transition, nfe):
    """Law: METHOD 2.6, low stage on s_i / (2 - s_i), i = 0..n1, then on along s from s_n1."""
    legs = schedule.plan(FrescoConfig(nfe=nfe, transition=transition), sigmas, 16, 64)
    s, low = oracles.model_sigmas(nfe, 1.0, 0.0, 2.0), oracles.split_of(nfe)[0]
    slow = [v / (2 - v) for v in s[: low + 1]]
    expected = [*itertools.pairwise(slow), *zip(s[low:], s[low + 1 :], strict=False)]
    assert flat(legs) == pytest.approx(flat(expected))
    assert len(legs) == nfe
    assert oracles.landing(legs[low - 1][1]) == pytest.approx(s[low], abs=1e-12)


@pytest.mark.parametrize("transition", ["renoise_x0", "restart"])
@pytest.mark.parametrize("switch", [None, (0.6, 0.3)])
def test_estimating_transitions_spend_the_last_low_call_standing_still(transition, switch):
    """Law: METHOD 2.2, 2.6: a fresh estimate at the switch is one of the nfe calls and takes no step."""
    config = FrescoConfig(nfe=10, transition=transition, switch=switch)
    legs = schedule.plan(config, sigmas, 16, 64)
    s = oracles.model_sigmas(10, 1.0, 0.0, 2.0)
    end = 0.6 if switch else s[4] / (2 - s[4])
    assert len(legs) == 10
    assert legs[3] == pytest.approx((end, end))
    assert legs[0][0] == 1.0
    assert all(b < a for a, b in legs[:3] + legs[4:6])
    assert legs[6][1] == pytest.approx(0.3 if switch else s[7])
    assert legs[2][1] == pytest.approx(end)
    assert legs[4][0] == pytest.approx(oracles.landing(end))


@pytest.mark.parametrize(("transition", "landings"), [("carry", (0.7, 0.45)), ("rewind", (14 / 17, 0.9 / 1.45))])
def test_switch_gives_the_stage_ends_explicitly(transition, landings):
    """Law: low uniform in the coarse shift (1 here) from 1 to switch[0], the others in the fine shift (2)."""
    config = FrescoConfig(nfe=18, stages=(8, 4, 6), switch=(0.7, 0.45), transition=transition)
    legs = schedule.plan(config, sigmas, 16, 64)
    assert [a for a, _ in legs[:8]] == pytest.approx([1 - 0.3 * i / 8 for i in range(8)])
    assert [b for _, b in legs[:8]] == pytest.approx([1 - 0.3 * i / 8 for i in range(1, 9)])
    mixed = oracles.model_sigmas(4, landings[0], 0.45, 2.0)
    full = oracles.model_sigmas(6, landings[1], 0.0, 2.0)
    assert flat(legs[8:12]) == pytest.approx(flat(itertools.pairwise(mixed)))
    assert flat(legs[12:]) == pytest.approx(flat(itertools.pairwise(full)))


def test_a_later_landing_respaces_what_is_left():
    """Law: METHOD 2.6, after each later landing the remaining steps are uniform from it to the end."""
    config = FrescoConfig(nfe=10, transition="rewind")
    legs = schedule.respaced(config, sigmas, 64, 6, 0.55)
    nodes = oracles.model_sigmas(4, 0.55, 0.0, 2.0)
    assert flat(legs) == pytest.approx(flat(itertools.pairwise(nodes)))


def test_a_switch_above_its_landing_is_refused():
    """Law: a stage goes down in sigma; the message names the switch."""
    with pytest.raises(ValueError, match=r"switch.*0\.4 and must end below"):
        FrescoConfig(nfe=9, stages=(3, 3, 3), switch=(0.4, 0.5))
    with pytest.raises(ValueError, match="switch"):
        schedule.plan(FrescoConfig(nfe=9, stages=(3, 3, 3), switch=(1.0, 0.5)), sigmas, 16, 64)


@pytest.mark.parametrize("transition", TRANSITIONS)
@given(st.integers(4, 40), st.sampled_from([1, 2]))
def test_plans_fall_from_one_to_zero_within_each_stage(transition, nfe, levels):
    """Law: whatever the settings, nfe legs, contiguous but for the landing, from sigma 1 to 0."""
    config = FrescoConfig(nfe=nfe, transition=transition, levels=levels)
    legs = schedule.plan(config, sigmas, 16, 64)
    low = config.split[0]
    assert len(legs) == nfe
    assert (legs[0][0], legs[-1][1]) == pytest.approx((1.0, 0.0), abs=1e-12)
    jumps = [i for i, (a, b) in enumerate(itertools.pairwise(legs)) if abs(a[1] - b[0]) > 1e-12]
    assert jumps == ([] if transition in ("carry", "redraw") else [low - 1])
    assert all(b <= a for a, b in legs)


def test_stages_follow_the_split():
    """Law: low, then mixed, then full, as many calls as the split says."""
    config = FrescoConfig(nfe=18)
    assert [schedule.stage(config, i) for i in range(18)] == ["low"] * 6 + ["mixed"] * 7 + ["full"] * 5
    assert {schedule.stage(FrescoConfig.full(4), i) for i in range(4)} == {"full"}
    skip = FrescoConfig(nfe=5, stages=(2, 0, 3))
    assert [schedule.stage(skip, i) for i in range(5)] == ["low"] * 2 + ["full"] * 3


@pytest.mark.parametrize(
    ("stages", "count", "steps"),
    [((6, 7, 5), 1, [5]), ((6, 7, 5), 2, [5, 8]), ((6, 7, 5), 3, [5, 7, 9]), ((8, 4, 6), 2, [7, 9]),
     ((2, 3, 1), 3, [1, 2, 3]), ((2, 2, 1), 3, [1, 2]), ((2, 4, 2), "every", [1, 2, 3, 4]), ((3, 0, 2), 2, [])],
)  # fmt: skip
def test_checks_come_after_the_last_low_step_and_evenly_over_the_mixed_stage(stages, count, steps):
    """Law: METHOD 2.6, positions by hand; the closing check follows the last mixed (else low) step."""
    found = schedule.checks(FrescoConfig(nfe=sum(stages), stages=stages, checks=count))
    closing = stages[0] + stages[1] - 1
    assert sorted(found) == [*steps, closing]
    assert [s for s, c in found.items() if c.closing] == [closing]
    assert all(c.step == s for s, c in found.items())


def test_full_runs_have_no_check():
    """Law: nothing to promote, nothing to look at."""
    assert schedule.checks(FrescoConfig.full(9)) == {}


@pytest.mark.parametrize(
    ("ratio", "count", "targets"),
    [(0.4, 1, [0.4]), (0.4, 2, [0.4, 0.7]), (0.4, 3, [0.4, 0.6, 0.8]), (0.0, 2, [0.0, 0.5]), (1.0, 2, [1.0, 1.0])],
)
def test_targets_rise_linearly_from_ratio_to_one(ratio, count, targets):
    """Law: METHOD 2.6: the cumulative target is ratio at the first check and 1 at the closing one."""
    found = schedule.checks(FrescoConfig(nfe=18, ratio=ratio, checks=count))
    values = [c.targets[0] for _, c in sorted(found.items())]
    assert values == pytest.approx([*targets, 1.0])
    assert values[:-1] == pytest.approx(
        [float(Fraction(str(ratio)) + (1 - Fraction(str(ratio))) * Fraction(j, count)) for j in range(count)]
    )


def test_each_further_level_lags_by_one_check():
    """Law: a token promoted at one check may be promoted again at the next."""
    found = schedule.checks(FrescoConfig(nfe=18, ratio=0.4, checks=3, levels=3))
    table = [c.targets for _, c in sorted(found.items())]
    expected = [(0.4, 0.0, 0.0), (0.6, 0.4, 0.0), (0.8, 0.6, 0.4), (1.0, 1.0, 1.0)]
    assert [v for row in table for v in row] == pytest.approx([v for row in expected for v in row])
