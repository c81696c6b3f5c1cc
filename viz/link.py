"""The page's state as a query string, and back. Source: DESIGN 3, UI-ANCHORS (shareable URL)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fresco.config import ConfigError, FrescoConfig

MAX_PROMPT = 2000
OWN = ("prompt", "model", "reference", "preview_every")
_FIELDS = {f.name: f for f in dataclasses.fields(FrescoConfig)}
_WHOLE = ("nfe", "levels", "window", "seed", "head")
_REAL = ("tau", "ratio", "detail_gain", "guidance", "landing")


def write(config: FrescoConfig, default: FrescoConfig | None = None, **own: Any) -> str:
    """Return the query string of a configuration and the page's own settings; what `default` says too is left out.

    Args:
        config: the settings. default: those that `read` will start from; tau and ratio are written whatever it says.
        own: the page's own settings.
    """
    default = default or FrescoConfig()
    state = {k: v for k, v in own.items() if v not in (None, "")}
    for name in _FIELDS:
        value = getattr(config, name)
        if value not in (None, ()) and (name in ("tau", "ratio") or value != getattr(default, name)):
            state[name] = "-".join(map(str, value)) if isinstance(value, tuple) else value
    return urlencode(state)


def parse(name: str, text: str) -> Any:
    """Return the value of a setting written as text.

    Raises:
        ValueError: where it cannot be read.
    """
    if name in _WHOLE:
        return int(text)
    if name in _REAL:
        return float(text)
    if name == "checks":
        return text if text == "every" else int(text)
    if name in ("size", "stages"):
        return tuple(int(part) for part in text.split("-"))
    if name == "switch":
        return tuple(float(part) for part in re.split("(?<!e)-", text))  # 1e-05 is one number
    return text


def axis(name: str, text: str) -> list[Any]:
    """Return the values of a sweep's axis, written with commas.

    Raises:
        ConfigError: where the setting is not known, or a value cannot be read.
    """
    if name not in _FIELDS:
        raise ConfigError(f"axis {name!r} is not a setting; choose one of {', '.join(_FIELDS)}")
    values = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        try:
            values.append(parse(name, word))
        except ValueError:
            raise ConfigError(f"{word[:40]!r} is no value of {name}; write values with commas between them") from None
    return values


def read(
    query: Mapping[str, str], defaults: FrescoConfig, choices: Mapping[str, tuple[str, ...]],
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[FrescoConfig, dict[str, Any], list[str]]:  # fmt: skip
    """Return (config, own settings, notes) of a query; a value that cannot be read falls back to its default.

    Args:
        query: names and texts from the address.
        defaults: the configuration to start from.
        choices: allowed values of the page's own settings ("model", "reference", ...).
        limits: (lowest, highest) that the page's controls can show, where the library takes more.

    Returns:
        The configuration, the page's own settings that were given, and one clear sentence for each value not taken.
    """
    config, notes = defaults, []
    own: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for name, text in query.items():
        if name in OWN:
            if name in choices and text not in choices[name]:
                notes.append(f"The link's {name} {text[:40]!r} is not known; the default is used.")
            elif name == "prompt" and len(text) > MAX_PROMPT:
                own[name] = text[:MAX_PROMPT]
                notes.append(f"The link's prompt was cut to {MAX_PROMPT} characters.")
            else:
                own[name] = int(text) if name == "preview_every" and text.isdecimal() else text
        elif name in _FIELDS:
            try:
                if len(text) > 80:
                    raise ValueError("no setting is that long")
                value = parse(name, text)
                low, high = (limits or {}).get(name, (None, None))
                if low is not None and high is not None and not low <= value <= high:
                    notes.append(f"The link's {name} {text} is not from {low:g} to {high:g}; the default is used.")
                else:
                    changes[name] = value
            except ValueError:
                notes.append(f"The link's {name} {text[:40]!r} cannot be read; the default is used.")
    if "tau" in changes and "ratio" in changes:
        del changes["ratio"]
        notes.append("The link gives both tau and ratio; tau is used.")
    try:
        return config.replace(**changes), own, notes
    except ConfigError:
        pass
    for name in changes:  # one by one, nfe and stages together, to keep whatever is good
        together = ("nfe", "stages", "switch") if name == "nfe" else (name,)
        group: dict[str, Any] = {n: changes[n] for n in together if n in changes}
        if name in ("stages", "switch") and "nfe" in changes:
            continue
        try:
            config = config.replace(**group)
        except ConfigError as error:
            notes.append(f"The link's setting is not used: {error}.")
    return config, own, notes
