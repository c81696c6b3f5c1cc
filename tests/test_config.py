"""FrescoConfig: what is accepted, what is refused in one clear sentence, presets and JSON. Source: DESIGN 2, METHOD 2.6."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco import config as module
from fresco.config import ConfigError, FrescoConfig
from fresco.grid import FRAMES


def falling(values):
    return tuple(sorted(values, reverse=True))


@st.composite
def configs(draw):
    """Draw any valid configuration."""
    stages = draw(
        st.one_of(
            st.none(),
            st.tuples(st.integers(2, 9), st.integers(0, 9), st.integers(1, 9)),
            st.tuples(st.just(0), st.just(0), st.integers(1, 30)),
        )
    )
    head = draw(st.integers(0, 5)) if stages is None or stages[0] else 0
    nfe = draw(st.integers(4, 60)) + head if stages is None else sum(stages) + head
    low, mixed, _ = stages or (1, 1, 1)
    need = 0 if low == 0 else 2 if mixed else 1
    transition = draw(st.sampled_from(module.TRANSITIONS))
    tau = draw(st.one_of(st.none(), st.floats(1e-9, 1e6)))
    rules = ("variance", "variance_high") if tau is not None else module.SELECTIONS
    return FrescoConfig(
        size=draw(st.one_of(st.none(), st.tuples(*[st.integers(1, 4096)] * 3))),
        nfe=nfe,
        stages=stages,
        head=head,
        switch=draw(
            st.one_of(st.none(), st.lists(st.floats(0.01, 0.99), min_size=need, max_size=need, unique=True).map(falling))
        ),
        levels=draw(st.integers(1, 3)),
        tau=tau,
        ratio=None if tau is not None else draw(st.one_of(st.none(), st.floats(0, 1))),
        selection=draw(st.sampled_from(rules)),
        signal=draw(st.sampled_from(module.SIGNALS)),
        window=draw(st.integers(2, 20)),
        checks=draw(st.sampled_from([1, 2, 3] + (["every"] if transition == "carry" else []))),
        expansion=draw(st.sampled_from(module.EXPANSIONS)),
        transition=transition,
        landing=draw(st.floats(2, 9)) if transition in ("renoise", "renoise_x0", "restart") else 2.0,
        noise=draw(st.sampled_from(module.NOISES)),
        frame=draw(st.sampled_from(FRAMES)),
        detail_gain=draw(st.floats(0, 1)),
        guidance=draw(st.one_of(st.none(), st.floats(0, 20))),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@given(configs())
def test_json_round_trip_gives_an_equal_configuration(config):
    """Law: from_json(to_json(c)) == c through real JSON text, also when written twice."""
    text = json.dumps(config.to_json(), allow_nan=False)
    again = FrescoConfig.from_json(json.loads(text))
    assert again == config
    assert json.dumps(again.to_json()) == text
    assert hash(again) == hash(config)


@given(configs())
def test_replacing_nothing_changes_nothing_and_a_reference_keeps_picture_and_seed(config):
    """Law: replace() is the identity; as_full is the full run of the same size, seed and guidance."""
    assert config.replace() == config
    full = config.as_full(9)
    assert (full.size, full.seed, full.guidance) == (config.size, config.seed, config.guidance)
    assert full.is_full
    assert full.split == (0, 0, 9)


NAN, INF = math.nan, math.inf
REFUSED = [
    *[("nfe", v) for v in (0, -3, 2, 1001, 18.0, "18", None, True, NAN, [18])],
    *[("levels", v) for v in (0, 4, 1.0, "1", None, False)],
    *[("window", v) for v in (1, 0, -4, 4.0, None, "4")],
    *[("seed", v) for v in (-1, 2**32, 0.5, None, "0", True)],
    *[("tau", v) for v in (0, 0.0, -1e-9, NAN, INF, -INF, "0.1", True, [0.1], 10**400)],
    *[("ratio", v) for v in (-0.1, 1.1, NAN, INF, "0.4", True, (0.4,), 10**400)],
    *[("detail_gain", v) for v in (-0.1, NAN, INF, None, "1", 10**400)],
    *[("guidance", v) for v in (-1, NAN, INF, "3.5", False, 10**400)],
    *[(name, v) for name in ("selection", "signal", "expansion", "transition", "noise", "frame")
      for v in ("nonsense", "", None, 3, ["x0"], {})],
    *[("checks", v) for v in (0, 4, -1, 1.0, None, "always", True, [1])],
    *[("stages", v) for v in ((6, 7, 6), (6, 7, 4), (6, 7),
                              (6, 7, 5, 0), (0, 13, 5), (-1, 14, 5), (6.0, 7, 5), "675", 18, {6: 7},
                              {6, 7, 5}, (True, 12, 5), ("6", "7", "5"))],
    *[("switch", v) for v in ((0.7,), (0.7, 0.5, 0.3), (), (0.0, 0.0), (1.5, 0.5), (NAN, 0.5), ("a", "b"), 0.7,
                              (True, 0.5), (0.7, None), "ab")],
    *[("size", v) for v in ((1, 2), (1, 0, 5), (1, -2, 5), (1.0, 2, 3), "abc", 512, (1, 2, 3, 4), (True, 8, 8),
                            (1, NAN, 3), {})],
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda v: repr(v)[:40])
def test_a_bad_setting_is_refused_in_one_sentence_that_names_it(name, value):
    """Law: a ConfigError, one line, that begins with or contains the setting's name and shows what was got."""
    with pytest.raises(ConfigError) as error:
        FrescoConfig(**{name: value})
    message = str(error.value)
    assert name in message
    assert "\n" not in message
    assert 20 < len(message) < 250 + len(repr(value))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tau": 0.1, "ratio": 0.4}, "both tau"),
        ({"tau": 0.1, "selection": "edge"}, "tau drives the variance rules"),
        ({"tau": 0.1, "selection": "all"}, "tau drives the variance rules"),
        ({"checks": "every", "transition": "rewind"}, "needs transition 'carry'"),
        ({"nfe": 5, "stages": (3, 2, 0), "transition": "renoise_x0"}, "without a full step"),
        ({"nfe": 5, "stages": (5, 0, 0), "transition": "rewind"}, "without a full step"),
        ({"nfe": 1}, "at least 3"),
        ({"nfe": 6, "head": 4}, "head of 4.*at least 3"),
        ({"nfe": 6, "head": 2, "stages": (0, 0, 4)}, "low stage to go down to"),
        ({"nfe": 6, "head": 2, "stages": (2, 2, 2)}, "after a head of 2"),
        ({"landing": 3.0}, "renoise.*carry"),
        ({"nfe": 2}, "at least 3"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
    """Law: METHOD 2.6's rules between settings, each with its own sentence."""
    with pytest.raises(ConfigError, match=words):
        FrescoConfig(**settings)


@pytest.mark.parametrize("transition", ["renoise_x0", "restart"])
def test_a_single_low_call_cannot_be_both_the_first_step_and_the_estimate(transition):
    """Law: the last low call takes no step, so a low stage of one call would treat pure noise as a state below 1."""
    for bad in ({"nfe": 3}, {"nfe": 6, "stages": (1, 2, 3)}, {"nfe": 4, "stages": (1, 0, 3), "switch": (0.6,)}):
        with pytest.raises(ConfigError):
            FrescoConfig(transition=transition, **bad)
    assert FrescoConfig(transition=transition, nfe=6, stages=(2, 1, 3)).split == (2, 1, 3)


@pytest.mark.parametrize(
    "data", [[], "x", None, 3, {"nfe": 18, "steps": 3}, {1: 2, "a": 3}, {"nfe": []}, {"stages": 3}, {"size": "1x2"}]
)
def test_foreign_json_is_refused(data):
    """Law: anything that to_json did not write is a ConfigError, never another exception."""
    with pytest.raises(ConfigError):
        FrescoConfig.from_json(data)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(FrescoConfig)]), JUNK, max_size=3))
def test_any_json_either_runs_or_is_a_config_error(data):
    """Law: there is no third way out of the constructor."""
    try:
        config = FrescoConfig.from_json(data)
    except ConfigError:
        return
    assert FrescoConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_paper_preset_is_the_one_in_the_method():
    """Law: METHOD 2.6, preset `paper`, name by name."""
    paper = FrescoConfig.paper()
    assert dataclasses.asdict(paper) == {
        "size": None, "nfe": 18, "stages": None, "head": 0, "switch": None, "levels": 1, "tau": None, "ratio": 0.4,
        "selection": "variance", "signal": "z", "window": 4, "checks": 1, "expansion": "hadamard",
        "transition": "renoise", "landing": 2.0, "noise": "field", "frame": "coarse",
        "detail_gain": 0.0, "guidance": None, "seed": 0,
    }  # fmt: skip
    assert FrescoConfig.paper(30).split == (12, 9, 9)
    assert FrescoConfig.paper(tau=0.02).ratio is None
    assert FrescoConfig.paper(seed=3, transition="restart").transition == "restart"


def test_the_recommended_preset_is_what_measured_best():
    """x0 variance, exact expansion, coherent field, three checks with Eq. 4's re-noising (METHOD 2.2, 2.3; README)."""
    c = FrescoConfig.recommended(12, tau=0.01)
    assert (c.transition, c.checks, c.signal, c.expansion, c.noise) == ("renoise", 3, "x0", "hadamard", "field")
    assert (c.tau, c.ratio, c.nfe) == (0.01, None, 12)


def test_a_default_run_has_signal_x0_window_four_and_ratio_two_fifths():
    """Law: METHOD 2.3's defaults; the paper's FLOPs fit 40 %."""
    c = FrescoConfig()
    assert (c.signal, c.window, c.ratio, c.tau, c.split) == ("x0", 4, 0.4, None, (6, 7, 5))


def test_tau_and_ratio_replace_each_other():
    """Law: either drives; giving one unsets the other."""
    c = FrescoConfig(ratio=0.3).replace(tau=0.5)
    assert (c.tau, c.ratio) == (0.5, None)
    c = c.replace(ratio=0.2)
    assert (c.tau, c.ratio) == (None, 0.2)
    with pytest.raises(ConfigError, match="both"):
        c.replace(tau=0.1, ratio=0.1)


def test_replacing_nfe_moves_the_split_along():
    """Law: a staged run goes back to the default split, a full run stays full."""
    assert FrescoConfig(nfe=5, stages=(2, 1, 2)).replace(nfe=30).split == (12, 9, 9)
    assert FrescoConfig.full(5).replace(nfe=9).split == (0, 0, 9)
    assert FrescoConfig(nfe=5, stages=(2, 1, 2)).replace(nfe=6, stages=(2, 2, 2)).split == (2, 2, 2)


def test_full_runs_are_full_and_cannot_be_changed_in_place():
    """Law: a baseline is the same dataclass, frozen."""
    full = FrescoConfig.full(2, seed=9)
    assert full.is_full
    assert not FrescoConfig().is_full
    with pytest.raises(dataclasses.FrozenInstanceError):
        full.nfe = 3
    with pytest.raises(ConfigError):
        dataclasses.replace(full, nfe=0)


def test_the_names_in_the_registries_are_the_names_of_the_settings():
    """Law: every name a configuration accepts has code behind it, and the other way round."""
    from fresco.expansion import EXPANSIONS
    from fresco.selection import SELECTION_RULES
    from fresco.transition import TRANSITIONS

    assert set(EXPANSIONS) == set(module.EXPANSIONS)
    assert set(SELECTION_RULES) == set(module.SELECTIONS)
    assert set(TRANSITIONS) == set(module.TRANSITIONS)
