"""The shelf of recorded runs and the lesson as two components beside the viewer: on the page, in one file, on a static site.

Like the viewer, each is a function of one JSON message: `shelf` writes the gallery's, `viz.lesson.message` the lesson's.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fresco.config import FrescoConfig
from viz import bundle, lesson, link
from viz.page.controls import PRESETS

_HERE = Path(__file__).parent / "viewer"
_PICTURE = re.compile(r"data:image/(?:webp|png|jpeg);base64,([A-Za-z0-9+/=]+)")
_THUMB = 92  # pixels


def _read(name: str) -> dict[str, str]:
    """Return one component's parts; its styles begin with the viewer's own colours, so that it stands alone."""
    parts = {kind: (_HERE / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")}
    css = (_HERE / "viewer.css").read_text(encoding="utf-8")
    return {"html_template": parts["html"], "css_template": _shared(css) + parts["css"], "js_on_load": parts["js"]}


def _shared(css: str) -> str:
    """Return of the viewer's styles what its neighbours wear too: the names, and the rules of plain elements and buttons."""
    names = re.findall(r"^\.fv-root(?::is\(\.dark \*\))? \{.*?^\}\n", css, re.M | re.S)
    plain = re.findall(r"^\.fv-(?:root (?:\*|\[hidden\]|p\b|b\b|:focus|\.fv-btn)|sr)[^\n]*\n", css, re.M)
    return "".join([*names, *plain])


GALLERY = _read("gallery")
LESSON = _read("lesson")


def middle(b: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run of a bundle that plays first."""
    taus, nfes = b["taus"], b["nfes"]
    first = (taus[len(taus) // 2] if taus else None, nfes[len(nfes) // 2])
    return dict(next((r for r in b["runs"] if (r["tau"], r["nfe"]) == first), b["runs"][0]))


def thumbnail(b: Mapping[str, Any], side: int = _THUMB) -> str:
    """Return the finished picture of the run that plays first as a small WebP data URI; "" where there is none."""
    frames = [b["frames"][k] for k in middle(b)["frames"]]
    found = next((m for f in reversed(frames) if (m := _PICTURE.fullmatch(f.get("preview") or ""))), None)
    if found is None:
        return ""
    try:
        image = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")
    except (OSError, ValueError):
        return ""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=62, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def config_of(b: Mapping[str, Any]) -> FrescoConfig:
    """Return the settings of the run that plays first: those recorded, or as many as its summary says."""
    run = middle(b)
    if "config" in run:
        return FrescoConfig.from_json(run["config"])
    m = run["meta"]
    names = ("nfe", "stages", "seed", "tau", "ratio", "selection", "signal", "transition", "noise", "expansion", "frame")
    return FrescoConfig.from_json({name: m[name] for name in names if m.get(name) is not None})


def facts(b: Mapping[str, Any]) -> dict[str, str]:
    """Return everything that is needed to make a recorded run again, by name."""
    run, config = middle(b), config_of(b)
    taus, nfes = b["taus"], b["nfes"]
    many = f"{len(taus)} from {taus[0]:g} to {taus[-1]:g}" if len(taus) > 1 else ""
    said: dict[str, Any] = {
        "prompt": b["prompt"], "model": b["model"], "seed": b["seed"], "NFE": " / ".join(map(str, nfes)),
        "stages": " + ".join(map(str, run["meta"]["stages"])),
        "tau": many or (f"{config.tau:g}" if config.tau is not None else None),
        "ratio": None if config.ratio is None else f"{config.ratio:g}",
        "size": None if config.size is None else " × ".join(map(str, config.size[1:])) + " pixels",
    }  # fmt: skip
    for name in ("transition", "noise", "signal", "selection", "expansion", "frame", "checks", "window", "levels"):
        said[name] = getattr(config, name)
    said |= {"guidance": config.guidance} | dict(b["provenance"])
    return {name: str(value) for name, value in said.items() if value is not None}


def query(b: Mapping[str, Any]) -> str:
    """Return the address's query that fills in a recorded run's settings."""
    prompt = b["prompt"].encode("utf-8", "replace").decode()  # half a surrogate pair has no place in an address
    return link.write(config_of(b), PRESETS["recommended"], prompt=prompt, model=b["model"])


def shelf(
    bundles: Sequence[Mapping[str, Any]], *, urls: Mapping[str, str] | None = None, page: bool = False, first: str | None = None
) -> str:
    """Return the gallery's message.

    Args:
        bundles: recorded runs in their order.
        urls: where to fetch each, by slug; None where they lie inline.
        page: whether a server can run again, and a visitor's runs are kept.
        first: the run that opens by itself where nothing else opens one.
    """
    runs = [
        {"slug": b["slug"], "title": b.get("title") or b["prompt"].split(",")[0], "line": b.get("line") or b["prompt"],
         "thumb": thumbnail(b), "url": None if urls is None else urls[b["slug"]], "query": query(b), "facts": facts(b)}
        for b in bundles
    ]  # fmt: skip
    return json.dumps({"runs": runs, "page": page, "first": first}, separators=(",", ":"))


@functools.cache
def recorded(folder: Path, order: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return whole bundles of a folder by slug, in that order; what is missing or damaged is left out."""
    found = {}
    for slug in order:
        try:
            found[slug] = bundle.load(folder / f"{slug}.json")
        except bundle.BundleError:
            continue
    return found


def taught(path: Path, bundles: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the lesson's message as JSON, "" where its folder is empty.

    Raises:
        LessonError: where the lesson is not as its format wants it.
    """
    if path.is_dir() and not any(path.glob("*.md")):
        return ""
    return json.dumps(lesson.message(lesson.load(path), bundles), separators=(",", ":"))
