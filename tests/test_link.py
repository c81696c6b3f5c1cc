"""The page's address: what was written is what is read, and what cannot be read is said and left out."""

import itertools
import re
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco.config import ConfigError, FrescoConfig
from tests.test_config import configs
from viz import link
from viz.page import controls

CHOICES = {"model": ("sinopia", "oracle"), "reference": ("full at 50", "none"), "preview_every": tuple("0123456789")}
PRESETS = [FrescoConfig(), FrescoConfig.recommended(tau=0.004), FrescoConfig.paper()]  # what a page may start from


def back(query, default):
    """Read a query string as the server does: the last of equal names wins."""
    return link.read(dict(parse_qsl(query, keep_blank_values=True)), default, CHOICES)


@given(configs(), st.sampled_from(PRESETS), st.text(max_size=80), st.integers(0, 9))
def test_a_link_is_read_as_it_was_written(config, default, prompt, every):
    config = config.replace(switch=config.switch or None)  # no value at all is the same as none
    query = link.write(config, default, prompt=prompt, model="oracle", reference="none", preview_every=every)
    got, own, notes = back(query, default)
    assert got == config
    assert notes == []
    assert own.get("prompt", "") == prompt
    assert {k: own[k] for k in CHOICES} == {"model": "oracle", "reference": "none", "preview_every": every}


@pytest.mark.parametrize("config", [*PRESETS, FrescoConfig.full(20)])
@pytest.mark.parametrize("default", PRESETS)
def test_every_preset_survives_every_default(config, default):
    assert back(link.write(config, default), default)[0] == config


def test_small_switches_survive():
    config = FrescoConfig(nfe=6, stages=(2, 2, 2), switch=(0.5, 1e-5))
    assert back(link.write(config), FrescoConfig())[0] == config


def test_defaults_are_left_out():
    default = FrescoConfig.recommended(tau=0.004)
    assert link.write(default, default) == "tau=0.004"
    assert dict(parse_qsl(link.write(default.replace(seed=7), default))) == {"tau": "0.004", "seed": "7"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tau", "much"), ("tau", "-1"), ("tau", "nan"), ("tau", "inf"), ("nfe", "18.5"), ("nfe", "0"), ("nfe", "9" * 400),
        ("seed", "-1"), ("ratio", "2"), ("checks", "often"), ("checks", "9"), ("stages", "1-2"), ("stages", "a-b-c"),
        ("stages", "9-9-9"), ("transition", "jump"), ("selection", ""), ("levels", "7"), ("window", "1"),
        ("detail_gain", "-2"), ("guidance", "1e9"), ("size", "0-0-0"), ("switch", "2"), ("model", "gpt"),
        ("reference", "best"), ("preview_every", "10"), ("preview_every", "-1"), ("frame", "../../etc/passwd"),
    ],
)  # fmt: skip
def test_a_bad_value_becomes_the_default_with_one_sentence(name, text):
    default = FrescoConfig.recommended(tau=0.004)
    config, own, notes = link.read({name: text, "seed" if name != "seed" else "window": "5"}, default, CHOICES)
    assert getattr(config, name, None) == getattr(default, name, None)
    assert name not in own
    assert (config.seed if name != "seed" else config.window) == 5  # what is good is kept
    assert len(notes) == 1
    assert name in notes[0]
    assert re.fullmatch(r"[^\n]+\.", notes[0])
    assert len(notes[0]) < 260


@given(st.dictionaries(st.sampled_from([*link.OWN, *link._FIELDS, "other", "__theme"]), st.text(max_size=40), max_size=8))
def test_no_address_breaks_the_page(query):
    config, own, notes = link.read(query, FrescoConfig.recommended(tau=0.004), CHOICES)
    assert FrescoConfig.from_json(config.to_json()) == config
    assert all(own[name] in {*CHOICES[name], *range(10)} for name in CHOICES if name in own)
    assert all(isinstance(n, str) and "\n" not in n for n in notes)


def test_what_the_page_cannot_show_is_said_and_left_out():
    limits = {"nfe": (4, 50), "window": (2, 12)}
    config, _, notes = link.read({"nfe": "900", "window": "12", "seed": "3"}, FrescoConfig(), {}, limits)
    assert (config.nfe, config.window, config.seed) == (18, 12, 3)
    assert notes == ["The link's nfe 900 is not from 4 to 50; the default is used."]


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("tau", "0.002, 0.004,0.008", [0.002, 0.004, 0.008]), ("nfe", " 6,8 ", [6, 8]), ("checks", "every, 2", ["every", 2]),
        ("transition", "carry, rewind", ["carry", "rewind"]), ("stages", "3-1-2, 2-2-2", [(3, 1, 2), (2, 2, 2)]),
        ("landing", "2, 6.3", [2.0, 6.3]), ("head", "0, 6", [0, 6]), ("nfe", "", []),
    ],
)  # fmt: skip
def test_an_axis_is_read_as_its_setting(name, text, values):
    got = link.axis(name, text)
    assert got == values
    assert [type(v) for v in got] == [type(v) for v in values]


@pytest.mark.parametrize(("name", "text"), [("tau", "0.1, much"), ("nfe", "1.5"), ("jump", "1")])
def test_an_axis_that_cannot_be_read_is_one_sentence(name, text):
    with pytest.raises(ConfigError, match=r"jump|much|1\.5") as caught:
        link.axis(name, text)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------- what a compared run is made of


NOW = {
    "prompt": "owl", "seed": 7, "model": "sinopia", "size": "", "head": 0, "landing": 2, "drive": "tau",
    "tau": 0.01, "ratio": 0.4, "nfe": 9, "low": 4, "mixed": 3, "full": 2, "window": 4,
    "checks": "every", "transition": "carry", "noise": "field", "signal": "x0",
    "selection": "variance", "expansion": "hadamard", "frame": "auto", "levels": 1, "detail_gain": 0, "guidance": None,
    "reference": "none", "preview_every": 1,
}  # fmt: skip


def test_the_controls_say_a_configuration_and_are_filled_from_it():
    config = controls.configuration(NOW)
    assert (config.nfe, config.stages, config.tau, config.ratio, config.seed) == (9, (4, 3, 2), 0.01, None, 7)
    assert {name: NOW[name] for name in controls.show(config, {}) if name != "ratio"} == {
        name: value for name, value in controls.show(config, {}).items() if name != "ratio"
    }
    assert controls.configuration(NOW | controls.show(config, {})) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"size": (1, 128, 96)}, {"size": (5, 480, 832)}, {"head": 2, "stages": (3, 2, 2)},
        {"transition": "renoise", "checks": 1, "landing": 6.3}, {"transition": "redraw", "checks": 2},
        {"selection": "attention_variance", "ratio": 0.3}, {"expansion": "lanczos"},
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_that_the_controls_show_goes_through_link_and_controls(changes):
    """A configuration -> its address -> the controls -> the configuration that is run: the same, and within the limits."""
    config = controls.configuration(NOW).replace(**changes)
    query = dict(parse_qsl(link.write(config, PRESETS[1])))
    got, _, notes = link.read(query, PRESETS[1], CHOICES, controls.LIMITS)
    assert notes == []
    assert controls.configuration(NOW | controls.show(got, {})) == config


@pytest.mark.parametrize(
    ("text", "size"),
    [("", None), (None, None), ("1-128-96", (1, 128, 96)), ("128 x 96", (1, 128, 96)), ("96×128", (1, 96, 128)),
     ("5, 480, 832", (5, 480, 832))],
)  # fmt: skip
def test_a_size_is_read_as_it_is_typed(text, size):
    assert controls.size_of(text) == size
    assert controls.configuration(NOW | {"size": text}).size == size


@pytest.mark.parametrize("text", ["big", "128", "1-2-3-4", "-5-5", "1e3 x 5", "9999999-5", "12 ³ x 5"])
def test_a_size_that_is_none_is_one_sentence(text):
    with pytest.raises(ConfigError, match="choose one of the list") as caught:
        controls.size_of(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", controls.SIZES)
def test_a_bundled_model_can_make_every_size_it_is_offered_in(name):
    from fresco.backends import load_model

    model = load_model(name, device="cpu")
    native, *others = [controls.size_of(value) for _, value in controls.sizes(name)]
    assert native is None
    assert len(set(others)) == len(others) > 2
    for size in others:
        shape = model.bind(FrescoConfig(size=size)).token_shape(size)
        assert shape[1] / shape[2] == size[1] / size[2]


def test_no_control_lacks_its_words():
    from fresco import config
    from viz.page.words import HELP

    for name in controls.CHOICES:
        assert HELP[name].endswith(".")
    names = {"transition": config.TRANSITIONS, "expansion": config.EXPANSIONS, "selection": config.SELECTIONS}
    for setting, known in names.items():
        assert [n for n in known if not re.search(rf"\b{n}\b", HELP[setting])] == []


def test_presets_take_the_controls_nfe_and_seed_and_links_only_the_seed():
    for source, nfe in (("the controls", 9), ("paper", 9), ("recommended", 9), (controls.FULL_SAME, 9), (controls.FULL_50, 50)):
        config, notes = controls.chosen(source, "", NOW)
        assert (config.nfe, config.seed, notes) == (nfe, 7, [])
        assert config.is_full == source.startswith("full")
    assert controls.chosen("paper", "", NOW)[0].transition == "renoise"
    for source in ("the controls", "paper", controls.FULL_SAME, controls.FULL_50):  # pictures of one size can be compared
        assert controls.chosen(source, "", NOW | {"size": "1-128-96"})[0].size == (1, 128, 96)
    for address in ("https://example.org/?nfe=5&ratio=0.25&seed=3", "nfe=5&ratio=0.25&seed=3"):
        config, _ = controls.chosen(controls.LINK, address, NOW)
        assert (config.nfe, config.ratio, config.tau, config.seed) == (5, 0.25, None, 7)
    for nothing in ("", "hello", "https://example.org/?q=1"):
        with pytest.raises(ConfigError, match="holds no settings"):
            controls.chosen(controls.LINK, nothing, NOW)


def test_what_an_axis_cannot_go_with_is_changed_along():
    base = FrescoConfig.recommended(9, tau=0.01)
    for axes in (
        {"transition": ["carry", "rewind"]},
        {"selection": ["variance", "even"]},
        {"selection": ["random"], "nfe": [5]},
    ):
        for values in itertools.product(*axes.values()):
            controls.fitting(base, axes).replace(**dict(zip(axes, values, strict=True)))  # raises where it cannot be run
    assert controls.fitting(base, {"tau": [0.1], "transition": ["carry"]}) == base


@pytest.mark.parametrize("name", controls.AXES)
def test_what_an_axis_starts_with_can_be_run(name):
    values = link.axis(name, controls.AXES[name])
    base = controls.fitting(FrescoConfig.recommended(9, tau=0.01), {name: values})
    assert len({base.replace(**{name: value}) for value in values}) == len(values) > 1


def test_the_baselines_are_the_catalogues():
    from fresco.baselines import CATALOGUE

    assert {CATALOGUE[name].title: name for name in controls.BASELINES.values()} == controls.BASELINES


def test_both_drives_and_a_long_prompt_are_settled_with_a_sentence():
    config, own, notes = link.read({"tau": "0.1", "ratio": "0.5", "prompt": "x" * 5000}, FrescoConfig(), CHOICES)
    assert (config.tau, config.ratio) == (0.1, None)
    assert own["prompt"] == "x" * link.MAX_PROMPT
    assert len(notes) == 2
