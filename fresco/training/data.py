"""The pictures: openly licensed vector emoji from npm packages, as concepts in several styles.

Three stages, each with its file in the cache folder: the packages (`*.tgz`), the catalogue (the SVGs that are kept, their
names and licences; it alone is enough for the next stage, on a machine without a network) and the pixels.
"""

from __future__ import annotations

import importlib
import io
import json
import lzma
import multiprocessing
import os
import re
import shutil
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fresco.errors import FrescoError

# style: (package, version); sets under a share-alike licence are left out.
SETS = {
    "fluent": ("@iconify-json/fluent-emoji", "1.2.7"),
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "noto": ("@iconify-json/noto", "1.2.9"),
    "blob": ("@iconify-json/noto-v1", "1.2.5"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
    "emojione": ("@iconify-json/emojione", "1.2.3"),
    "fxemoji": ("@iconify-json/fxemoji", "1.2.2"),
    "icon": ("@iconify-json/flat-color-icons", "1.2.3"),
    "streamline": ("@iconify-json/streamline-emojis", "1.2.4"),
}
NAMES = ("emojibase-data", "17.0.0")
MIN_STYLES = 3
CATALOGUE = "catalogue.json.xz"

# By emojibase's group: how often a concept is drawn, and whether its mirror image is as good. Groups that are not here
# (components, symbols, flags) hold skin tones, letters, arrows and signs, which no scene needs.
_WEIGHT = {0: 0.4, 1: 0.3, 3: 1.0, 4: 1.0, 5: 0.8, 6: 0.8, 7: 0.8}
_GENDERED = 0.08
_FLIP = (3, 4)
_DROP = re.compile(r"o’clock|thirty|\d|:|button|keycap|letter|regional|symbol|flag|facing right|\bsuit\b")
_SHORT = ("emojibase", "github", "iamcal", "cldr", "joypixels")


class DataError(FrescoError):
    """A picture set is missing or cannot be read; the message says what to do."""


@dataclass(frozen=True, eq=False)
class Library:
    """Concepts in several styles, rendered.

    Attributes:
        names: one name per concept, lower case.
        synonyms: other names of each concept; none is another concept's name.
        weights: (concepts,) how often each is drawn.
        flippable: (concepts,) whether its mirror image is as good.
        styles: names of the styles.
        icon: (concepts, styles) index into `pixels`, -1 where a style lacks the concept.
        pixels: (icons, size, size, 4) uint8 RGBA, colours premultiplied by alpha.
        licences: per style, what `LICENSES.md` needs: title, author, package, url.
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    weights: NDArray[np.float64]
    flippable: NDArray[np.bool_]
    styles: tuple[str, ...]
    icon: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    licences: dict[str, dict[str, str]]

    @cached_property
    def luminance(self) -> NDArray[np.float32]:
        """(icons,) mean luminance of each icon where it is opaque, in [0.2, 0.8]: the middle of the ramp of a tint."""
        luma, alpha = np.array([0.299, 0.587, 0.114], np.float32), np.empty(len(self.pixels), np.float32)
        found = np.empty_like(alpha)
        for at in range(0, len(self.pixels), 256):
            block = np.asarray(self.pixels[at : at + 256, ::2, ::2], np.float32)
            found[at : at + 256] = (block[..., :3] @ luma).sum((1, 2)) / block[..., 3].sum((1, 2)).clip(1)
        return found.clip(0.2, 0.8)

    def called(self, names: Sequence[str], styles: Sequence[str]) -> Library:
        """Return the concepts that go by these names, under these names, in these styles; a name that none has is left out."""
        place = {other: i for i, others in enumerate(self.synonyms) for other in others}
        place |= {spelt: i for i, name in enumerate(self.names) for spelt in (name, name.replace("-", " "))}
        told = [name for name in names if name in place]
        at = [place[name] for name in told]
        return replace(
            self, names=tuple(told), synonyms=tuple(tuple(sorted({self.names[i], *self.synonyms[i]} - {n}))
            for i, n in zip(at, told, strict=True)), weights=np.ones(len(at)), flippable=self.flippable[at],
            styles=tuple(styles), icon=self.icon[np.ix_(at, [self.styles.index(style) for style in styles])],
        )  # fmt: skip

    def subset(self, count: int) -> Library:
        """Return the `count` concepts that are drawn most often and exist in the most styles; the same icons."""
        rank = np.lexsort((np.arange(len(self.names)), -(self.icon >= 0).sum(1), -self.weights))
        keep = np.sort(rank[:count])
        return Library(
            tuple(self.names[i] for i in keep),
            tuple(self.synonyms[i] for i in keep),
            self.weights[keep],
            self.flippable[keep],
            self.styles,
            self.icon[keep],
            self.pixels,
            self.licences,
        )


def _packages(folder: Path) -> dict[str, Path]:
    """Return {package: archive}; those that are not in the folder come through npm."""
    wanted = {name: f"{name.lstrip('@').replace('/', '-')}-{version}.tgz" for name, version in [*SETS.values(), NAMES]}
    versions = dict([*SETS.values(), NAMES])
    missing = [name for name, file in wanted.items() if not (folder / file).is_file()]
    if missing:
        npm = shutil.which("npm")
        if npm is None:
            raise DataError(f"npm is not installed, and {folder} lacks {', '.join(missing)}; install Node.js")
        command = [npm, "pack", "--silent", *(f"{name}@{versions[name]}" for name in missing)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DataError(f"npm pack failed: {done.stderr.strip().splitlines()[-1] if done.stderr else 'no message'}")
    return {name: folder / file for name, file in wanted.items()}


def _read(archive: Path, *names: str) -> list[Any]:
    with tarfile.open(archive) as tar:
        found = []
        for name in names:
            file = tar.extractfile(f"package/{name}")
            assert file is not None
            found.append(json.load(file))
        return found


def _hex(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part not in ("fe0f", "200d"))


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def svg(body: str, box: Sequence[float], size: int) -> str:
    """Return an SVG document of `size` pixels around an iconify body, whose own box is (left, top, width, height)."""
    view = " ".join(f"{x:g}" for x in box)
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {head} width="{size}" height="{size}" viewBox="{view}">{body}</svg>'


def catalogue(folder: Path) -> dict[str, Any]:
    """Return the concepts with their SVGs and licences; made from the packages once, then read from the folder."""
    path = folder / CATALOGUE
    if path.is_file():
        with lzma.open(path, "rt", encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        return found
    folder.mkdir(parents=True, exist_ok=True)
    packages = _packages(folder)
    emoji, *shorts = _read(packages[NAMES[0]], "en/data.json", *(f"en/shortcodes/{name}.json" for name in _SHORT))
    short: dict[str, list[str]] = defaultdict(list)
    for table in shorts:
        for code, names in table.items():
            short[code] += [names] if isinstance(names, str) else names
    entries = {}
    known: dict[str, str] = {}  # spelling without blanks -> hexcode
    for entry in emoji:
        code, label = entry["hexcode"], entry["label"]
        if entry.get("group") in _WEIGHT and not _DROP.search(label.lower()):
            entries[code] = entry
    for spell in (lambda e: [e["label"]], lambda e: short[e["hexcode"]]):  # labels come before nicknames
        for entry in emoji:
            for name in spell(entry):
                known.setdefault(_key(name), entry["hexcode"])
    codes = {_hex(entry["hexcode"]): entry["hexcode"] for entry in emoji}
    tables = {style: _read(packages[package], "icons.json", "info.json", "chars.json") for style, (package, _) in SETS.items()}
    for _, _, chars in tables.values():
        for code, slug in chars.items():
            if _hex(code) in codes:
                known.setdefault(_key(slug), codes[_hex(code)])

    icons: dict[str, dict[str, Any]] = defaultdict(dict)
    licences = {}
    for style, (table, info, _) in tables.items():
        licence, author = info["license"], info["author"]
        licences[style] = {
            "set": info["name"], "author": author["name"], "url": author.get("url", ""), "licence": licence["spdx"],
            "package": "{} {}".format(*SETS[style]),
        }  # fmt: skip
        for slug, icon in table["icons"].items():
            plain = re.sub(r"-\d$", "", slug)
            code = next((known[k] for k in (_key(slug), _key(plain), _key(plain).removesuffix("face")) if k in known), None)
            if code is not None and code in entries and style not in icons[code] and not icon.get("hidden"):
                side = {name: icon.get(name, table.get(name, 16)) for name in ("width", "height")}
                box = (icon.get("left", table.get("left", 0)), icon.get("top", table.get("top", 0)), *side.values())
                icons[code][style] = {"body": icon["body"], "box": box}
    kept = {code: found for code, found in icons.items() if len(found) >= MIN_STYLES}
    label = {code: entries[code]["label"].lower().replace("’", "'").replace("ñ", "n") for code in kept}
    taken = set(label.values())
    concepts = []
    for code in sorted(kept, key=lambda c: label[c]):
        entry, name = entries[code], label[code]
        others = {s.replace("_", " ").replace("-", " ").lower() for s in short[code]}
        others = {s for s in others if re.fullmatch(r"[a-z]{3,}( [a-z]+){0,2}", s)} - taken
        person = bool(re.search(r"\b(wo)?(man|men)\b", name)) and entry["group"] == 1
        concepts.append({
            "name": name, "synonyms": sorted(others), "flip": entry["group"] in _FLIP,
            "weight": _GENDERED if person else _WEIGHT[entry["group"]], "icons": kept[code],
        })  # fmt: skip
    found = {"concepts": concepts, "licences": licences}
    part = path.with_suffix(".part")
    with lzma.open(part, "wt", encoding="utf-8", preset=6) as file:
        json.dump(found, file)
    os.replace(part, path)
    return found


def render(text: str, size: int) -> NDArray[np.uint8]:
    """Return (size, size, 4) uint8 RGBA of an SVG document, premultiplied.

    Raises:
        DataError: where resvg-py is missing.
    """
    from PIL import Image

    try:
        resvg = importlib.import_module("resvg_py")
    except ImportError:
        raise DataError("resvg-py is not installed; run: pip install -r fresco/training/requirements.txt") from None
    png = bytes(resvg.svg_to_bytes(svg_string=text, skip_system_fonts=True))
    straight = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32)
    if straight.shape != (size, size, 4):
        raise DataError(f"resvg rendered {straight.shape[:2]} pixels instead of {size} x {size}")
    straight[..., :3] *= straight[..., 3:] / 255
    return straight.round().astype(np.uint8)


def _render_icon(icon: dict[str, Any], size: int) -> NDArray[np.uint8] | None:
    """Return the pixels, or None where the picture is all but empty or cannot be read."""
    try:
        found = render(svg(icon["body"], icon["box"], size), size)
    except ValueError:
        return None
    return found if found[..., 3].mean() > 5 else None


def load(folder: Path, size: int, workers: int | None = None) -> Library:
    """Return the library at a size in pixels; downloads and renders what the cache folder lacks.

    Args:
        folder: the cache.
        size: side of the icons in pixels.
        workers: processes that render; None takes all cores.
    """
    table = catalogue(folder)
    styles = tuple(SETS)
    path, index = folder / f"icons-{size}.npy", folder / f"icons-{size}.json"
    if not (path.is_file() and index.is_file()):
        flat = [(c, s, icon) for c, concept in enumerate(table["concepts"]) for s, icon in concept["icons"].items()]
        part, count = path.with_suffix(".part"), 0
        where = np.full((len(table["concepts"]), len(styles)), -1)
        with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count()) as pool, part.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": (len(flat), size, size, 4)}
            )
            draw = partial(_render_icon, size=size)
            for (c, s, _), pixels in zip(flat, pool.imap(draw, [icon for *_, icon in flat], chunksize=16), strict=True):
                if pixels is not None:
                    where[c, styles.index(s)] = count
                    count += 1
                    file.write(pixels.tobytes())
            file.write(bytes((len(flat) - count) * size * size * 4))  # the header promised as many as there are icons
        index.write_text(json.dumps({"icon": where.tolist(), "count": count}))
        os.replace(part, path)
    found = json.loads(index.read_text())
    where = np.array(found["icon"])
    keep = [i for i in range(len(where)) if (where[i] >= 0).any()]
    concepts = [table["concepts"][i] for i in keep]
    return Library(
        tuple(c["name"] for c in concepts),
        tuple(tuple(c["synonyms"]) for c in concepts),
        np.array([c["weight"] for c in concepts], float),
        np.array([c["flip"] for c in concepts], bool),
        styles,
        where[keep],
        np.load(path, mmap_mode="r")[: found["count"]],
        table["licences"],
    )
