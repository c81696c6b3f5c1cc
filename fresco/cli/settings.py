"""Settings of a run from a shell: options, and short texts such as "recommended:18,tau=0.004"."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco.config import EXPANSIONS, NOISES, POSITIONS, SELECTIONS, SIGNALS, TRANSITIONS, ConfigError, FrescoConfig
from fresco.errors import FrescoError

if TYPE_CHECKING:
    from fresco.baselines import Baseline

PRESETS = {"recommended": FrescoConfig.recommended, "paper": FrescoConfig.paper, "full": FrescoConfig.full}
_NAMES = (
    "seed", "transition", "noise", "signal", "selection", "expansion", "frame", "window", "levels", "tau", "ratio",
)  # fmt: skip


def _whole(text: str, parts: int, separator: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(separator))
    except ValueError:
        found = ()
    if len(found) != parts:
        raise argparse.ArgumentTypeError(f"{text!r} must be {parts} whole numbers joined by {separator!r}")
    return found


def steps(text: str) -> tuple[int, ...]:
    """Return (low, mixed, full) from "6,7,5"."""
    return _whole(text, 3, ",")


def size(text: str) -> tuple[int, ...]:
    """Return (height, width) from "512x512"."""
    return _whole(text, 2, "x")


def canvas(text: str) -> tuple[int, ...]:
    """Return (frames, height, width) from "512x512", which is one frame, or "125x720x1280"."""
    return _whole(text, 3, "x") if text.count("x") == 2 else (1, *size(text))


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add which model, and where it runs."""
    parser.add_argument("--model", default="sinopia")
    parser.add_argument("--device", default="auto", help="cuda, cpu or auto: CUDA when there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    more = parser.add_argument_group("models that are downloaded or read from a folder")
    more.add_argument("--quantize", help="nf4, int8, ...: weights of the transformer and the large text encoders")
    more.add_argument("--lora", help="a LoRA: file, folder or repository")
    more.add_argument("--offload", help="none, model, group or auto: the first that fits")
    more.add_argument("--compile", action="store_true", default=None, help="compile the transformer's repeated blocks")
    more.add_argument("--attention", help="an attention backend of diffusers: flash, sage, _native_cudnn, ...")


def load(args: argparse.Namespace, device: str | None = None) -> Any:
    """Return the model that `add_model` was given.

    Raises:
        ModelError: where it cannot be had.
    """
    from fresco.backends import OPTIONS, load_model

    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    return load_model(args.model, device=device or args.device, dtype=args.dtype, **options)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a run."""
    parser.add_argument("--preset", choices=list(PRESETS), default="recommended")
    parser.add_argument("--nfe", type=int, default=18)
    parser.add_argument("--steps", type=steps, help="low,mixed,full")
    parser.add_argument("--size", type=canvas, help="HEIGHTxWIDTH in pixels, FRAMESxHEIGHTxWIDTH for a video")
    parser.add_argument("--tau", type=float)
    parser.add_argument("--ratio", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--window", type=int)
    parser.add_argument("--levels", type=int)
    parser.add_argument("--checks", choices=["1", "2", "3", "every"])
    parser.add_argument("--guidance", type=float)
    for name, names in {
        "transition": TRANSITIONS, "noise": NOISES, "signal": SIGNALS, "selection": SELECTIONS,
        "expansion": EXPANSIONS, "frame": POSITIONS,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", choices=names)


def from_arguments(args: argparse.Namespace) -> FrescoConfig:
    """Return the settings that `add_settings` was given."""
    changes = {name: getattr(args, name) for name in _NAMES if getattr(args, name) is not None}
    changes |= {"checks": args.checks if args.checks == "every" else int(args.checks)} if args.checks else {}
    changes |= {"guidance": args.guidance} if args.guidance is not None else {}
    changes |= {"size": args.size} if args.size else {}
    changes |= {"stages": args.steps} if args.steps else {}
    return PRESETS[args.preset](sum(args.steps) if args.steps else args.nfe, **changes)


def value(text: str) -> Any:
    """Return what a text means as a setting: a number, true or false, "6/7/5" for several numbers, else itself."""
    if "/" in text:
        return tuple(value(part) for part in text.split("/"))
    try:
        return json.loads(text)
    except ValueError:
        return text


def axis(text: str) -> tuple[str, list[Any]]:
    """Return (name, values) from "tau=0.001,0.004"."""
    name, equals, values = text.partition("=")
    if not name or not equals or not values:
        raise argparse.ArgumentTypeError(f"{text!r} is no axis; write for example tau=0.001,0.004,0.016")
    return name, [value(part) for part in values.split(",")]


def named(text: str) -> dict[str, FrescoConfig | Baseline]:
    """Return {label: settings} from one text, or from a JSON file of such an object.

    The text is "[LABEL=]PRESET[:NFE][,setting=value]...", for example "fast=recommended:11,tau=0.01,stages=5/2/4", where a
    name of `fresco.baselines.CATALOGUE` may stand for the preset; without a label it is its own.

    Raises:
        ConfigError: where it cannot be read.
    """
    from fresco.baselines import CATALOGUE

    if text.endswith(".json"):
        try:
            data = json.loads(Path(text).read_text(encoding="utf-8"))
            return {str(label): FrescoConfig.from_json(config) for label, config in data.items()}
        except (OSError, ValueError, AttributeError) as error:
            if isinstance(error, FrescoError):
                raise
            raise ConfigError(f"{text} cannot be read as settings; it must hold {{label: settings}} in JSON") from None
    head, *parts = text.split(",")
    label, equals, preset = head.rpartition("=")
    name, _, nfe = preset.partition(":")
    baseline = CATALOGUE.get(preset)
    if baseline is None and (name not in PRESETS or not (nfe.isdigit() or not nfe)):
        raise ConfigError(
            f"{preset!r} names no preset; write {', '.join(PRESETS)}, with a step count as in recommended:18, or a baseline: "
            f"{', '.join(CATALOGUE)}"
        )
    changes = {}
    for part in parts:
        key, has, written = part.partition("=")
        if not has:
            raise ConfigError(f"{part!r} is no setting; write name=value, as in tau=0.004")
        changes[key] = value(written)
    found: FrescoConfig | Baseline
    try:
        if baseline is not None:
            found = dataclasses.replace(baseline, config=baseline.config.replace(**changes))
        else:
            found = PRESETS[name](*([int(nfe)] if nfe else []), **changes)
    except TypeError:
        raise ConfigError(f"{text!r} has a setting that does not exist; see FrescoConfig for the names") from None
    return {label if equals else text: found}
