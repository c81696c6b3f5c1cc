"""What the controls are called, may show and mean: control values -> FrescoConfig, and back. No gradio here."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fresco.config import NOISES, SIGNALS, ConfigError, FrescoConfig
from fresco.schedule import default_split
from viz import link

TAU = 0.004
PRESETS = {"recommended": FrescoConfig.recommended(tau=TAU), "paper": FrescoConfig.paper()}
# What the controls can show.
LIMITS: dict[str, tuple[float, float]] = {
    "nfe": (4, 50), "window": (2, 12), "levels": (1, 2), "detail_gain": (0, 1), "head": (0, 47), "landing": (2, 100),
}  # fmt: skip
SPLITS = json.dumps({calls: default_split(calls) for calls in range(3, 51)})
LANDS = ("renoise", "renoise_x0", "restart")  # the transitions that know a landing
CHECKS = ("every", "1", "2", "3")
# The controls that are a setting of FrescoConfig by name; the order of all inputs is CONTROLS.
CHOICES = (
    "transition", "landing", "noise", "signal", "selection", "expansion", "frame", "levels", "detail_gain", "guidance", "head",
)  # fmt: skip
REAL = ("landing", "detail_gain")  # a browser says 2 where it means 2.0
CONTROLS = (
    "prompt", "seed", "model", "size", "drive", "tau", "ratio", "nfe", "low", "mixed", "full", "window", "checks", *CHOICES,
    "reference", "preview_every",
)  # fmt: skip


# Sizes to choose from, height x width in pixels; any other can be typed. The first is the model's own.
_IMAGE = {"portrait": (1216, 832), "landscape": (832, 1216), "twice the pixels": (1440, 1440)}
SIZES: dict[str, dict[str, tuple[int, int]]] = {
    "sinopia": {"portrait": (128, 96), "landscape": (96, 128), "half a side": (64, 64), "twice a side": (256, 256)},
    "oracle": {"portrait": (32, 24), "landscape": (24, 32), "half a side": (16, 16), "1.5 times a side": (48, 48)},
}


def sizes(model: str) -> list[tuple[str, str]]:
    """Return what the size control offers for a model: what it says, and its value, as an address has it."""
    video = "video" in model or model.startswith("wan")  # their sizes have a length, too; that is typed
    known = {} if video else SIZES.get(model, _IMAGE)
    offered = [(f"{name}, {high} × {wide}", f"1-{high}-{wide}") for name, (high, wide) in known.items()]
    return [("the model's own", ""), *offered]


def size_of(text: str | None) -> tuple[int, int, int] | None:
    """Return the size in a control: frames-height-width, or height-width of one frame; None where it is empty.

    Raises:
        ConfigError: where it is no size.
    """
    parts = re.split(r"\s*[-x×,]\s*", (text or "").strip())
    if parts == [""]:
        return None
    if len(parts) not in (2, 3) or not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise ConfigError(
            f"size is {str(text)[:40]!r}; choose one of the list, or write height and width in pixels, such as 128 x 96"
        )
    frames, height, width = [1, *map(int, parts)][-3:]
    return frames, height, width


def named(inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the controls' values by name."""
    return dict(zip(CONTROLS, inputs, strict=True))


def configuration(values: Mapping[str, Any]) -> FrescoConfig:
    """Return the settings that the controls show.

    Raises:
        ConfigError: where they cannot be run.
    """
    drive = values["drive"]
    checks = values["checks"] if values["checks"] == "every" else int(values["checks"])
    known = {name: values[name] for name in CHOICES} | {n: float(values[n]) for n in REAL if isinstance(values[n], int)}
    return FrescoConfig(
        size=size_of(values["size"]),
        nfe=values["nfe"], stages=(values["low"], values["mixed"], values["full"]), window=values["window"],
        checks=checks, seed=values["seed"], **{drive: values[drive]}, **known,
    )  # fmt: skip


def show(config: FrescoConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return {control: value} for a configuration and the page's own settings; other controls stay as they are."""
    low, mixed, full = config.split
    return {name: getattr(config, name) for name in (*CHOICES, "nfe", "seed", "window")} | {
        "drive": "tau" if config.tau is not None else "ratio", "tau": config.tau or TAU,
        "ratio": 0.4 if config.ratio is None else config.ratio,
        "size": "-".join(map(str, config.size or ())), "checks": str(config.checks),
        "low": low, "mixed": mixed, "full": full, **own,
    }  # fmt: skip


# What a sweep's axis starts with; few and small, so that a visitor without a GPU waits seconds.
AXES = {
    "tau": "0.002, 0.004, 0.008", "nfe": "6, 8, 11", "ratio": "0.2, 0.4, 0.7", "transition": "carry, rewind, renoise, restart",
    "noise": ", ".join(NOISES), "signal": ", ".join(SIGNALS), "selection": "variance, variance_high, even, random",
    "expansion": "hadamard, nearest, bilinear", "frame": "coarse, fine, phase_aligned", "window": "2, 4, 8",
    "checks": "1, 2, 3", "detail_gain": "0, 0.1, 0.27", "levels": "1, 2", "landing": "2, 4, 8", "head": "0, 1, 2",
    "size": "1-128-96, 1-96-128", "seed": "0, 1, 2",
}  # fmt: skip
CONTROLS_NOW, LINK, FULL_50, FULL_SAME = (
    "the controls",
    "a pasted link",
    "full resolution, 50 steps",
    "full resolution, same NFE",
)
# Other methods at their published settings: titles and names in fresco.baselines.CATALOGUE, which is not loaded for this.
BASELINES = {
    "RALU, NFE 18": "ralu-18", "RALU, NFE 10": "ralu-10", "Bottleneck Sampling, NFE 30": "bottleneck-30",
    "SPEED, delta 0.05": "speed-0.05", "Jenga-ProRes": "jenga-prores", "JiT, NFE 18": "jit-18", "AViTS, NFE 18": "avits-18",
    "TeaCache, threshold 0.8": "teacache-0.8", "TaylorSeer, N = 4": "taylorseer-4",
    "FirstBlockCache, threshold 0.08": "first-block-0.08", "Fresco + TaylorSeer": "fresco-taylorseer",
}  # fmt: skip
SOURCES = (CONTROLS_NOW, *PRESETS, FULL_SAME, FULL_50, *BASELINES, LINK)  # where a compared run's settings may come from


def fitting(base: FrescoConfig, axes: Mapping[str, Sequence[Any]]) -> FrescoConfig:
    """Return the base with what an axis cannot go together with changed along, as the controls do it.

    Only `carry` promotes at every step and `rewind` but once, so an axis of transitions looks once; only variance rules know a
    tau; only some transitions a landing; a head takes its calls from the stages.
    """
    if any(t != "carry" for t in axes.get("transition", ())):
        base = base.replace(checks=1)
    if base.tau is not None and any(not str(s).startswith("variance") for s in axes.get("selection", ())):
        base = base.replace(ratio=0.4)
    if any(landing != 2 for landing in axes.get("landing", ())) and base.transition not in LANDS:
        base = base.replace(transition="renoise", checks=1)
    if any(t not in LANDS for t in axes.get("transition", ())):
        base = base.replace(landing=2.0)
    if "head" in axes:
        base = base.replace(stages=None)
    return base


def chosen(source: str, address: str, values: Mapping[str, Any]) -> tuple[FrescoConfig, list[str]]:
    """Return the settings a source stands for, with the controls' seed, and a sentence for what a link could not give.

    Args:
        source: a name in SOURCES. address: the pasted link, where the source is one.
        values: the controls; presets take their NFE, guidance and size, too.

    Raises:
        ConfigError: where the settings cannot be run, or the link holds none.
    """
    now, notes = configuration(values), list[str]()
    if source == CONTROLS_NOW:
        return now, notes
    if source in (FULL_50, FULL_SAME):
        return now.as_full(50 if source == FULL_50 else now.nfe), notes
    if source == LINK:
        query = dict(parse_qsl(urlsplit(address.strip()).query or address.strip(), keep_blank_values=True))
        if not set(query) & {f.name for f in dataclasses.fields(FrescoConfig)}:
            raise ConfigError(f"the pasted link {address[:60]!r} holds no settings; press Copy link and paste what it gives")
        config, _, notes = link.read(query, PRESETS["recommended"], {})
        return config.replace(seed=now.seed), notes
    return PRESETS[source].replace(nfe=now.nfe, seed=now.seed, guidance=now.guidance, size=now.size), notes
