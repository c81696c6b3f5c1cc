"""What a scene holds and how it is told: a small grammar over the concepts, one recipe per (seed, index).

A recipe is plain numbers and a caption; `scenes` draws it. Some combinations (concept x style, concept x colour, count x
concept, ordered pairs of a relation) are held out by a hash of their names: no training scene holds one, whether its
caption mentions it or not, and every evaluation scene holds at least one.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np

from fresco.training.data import Library

T = TypeVar("T")
Split = Literal["train", "eval"]

PALETTE: dict[str, tuple[float, float, float]] = {
    "white": (0.97, 0.97, 0.97), "black": (0.07, 0.07, 0.08), "gray": (0.55, 0.56, 0.58), "red": (0.86, 0.14, 0.15),
    "orange": (0.96, 0.53, 0.10), "yellow": (0.98, 0.86, 0.20), "green": (0.22, 0.66, 0.27), "blue": (0.18, 0.40, 0.88),
    "purple": (0.52, 0.22, 0.72), "pink": (0.98, 0.56, 0.74), "brown": (0.48, 0.29, 0.14),
}  # fmt: skip
CAPTION = "{name}, {style} style, on {color}"  # the plainest of the phrasings
SLOTS = 4
PARAMETERS = 80  # random numbers that a backdrop draws from
PLAIN: dict[str, tuple[float, float, float]] = {  # the backdrops of `PlainRecipes`: those that Sinopia v0 grew up with
    "white": (1.0, 1.0, 1.0), "blue": (0.345, 0.588, 0.961), "red": (0.882, 0.333, 0.314), "green": (0.373, 0.784, 0.431),
    "yellow": (1.0, 0.882, 0.353), "purple": (0.667, 0.451, 0.863), "orange": (1.0, 0.627, 0.294),
    "pink": (0.98, 0.667, 0.804), "gray": (0.588, 0.588, 0.588), "black": (0.098, 0.098, 0.098),
}  # fmt: skip
BACKDROPS = ("plain", "gradient", "ground", "hills", "sea", "stars", "paper")
TIMES = ("day", "sunset", "night")
HELD_OUT = {"style": 0.03, "colour": 0.1, "count": 0.1, "left": 0.1, "above": 0.1, "behind": 0.1}
SIDE = 0.16  # a centre this far aside (of the canvas) is left of, or above, another

_BACKDROP_WEIGHT = (0.32, 0.10, 0.18, 0.14, 0.09, 0.07, 0.10)
_TIME_WEIGHT = (0.6, 0.15, 0.25)
_KINDS = (("single", 0.44), ("count", 0.2), ("pair", 0.3), ("three", 0.06))
_STYLE_WORDS = {
    "fluent": ("fluent", "3d", "glossy 3d"), "flat": ("flat", "flat vector"), "noto": ("noto",), "blob": ("blob", "old noto"),
    "twemoji": ("twemoji",), "emojione": ("emojione",), "fxemoji": ("fxemoji", "firefox"), "icon": ("icon",),
    "streamline": ("streamline",),
}  # fmt: skip
_GROUND = {
    "green": ("on green grass", "in a green meadow", "on the grass"), "yellow": ("on yellow sand", "in the desert"),
    "white": ("in the snow", "on white snow"), "brown": ("on brown ground", "on brown earth"),
    "gray": ("on gray stone", "on a gray road"), "pink": ("on a pink field",), "purple": ("on a purple field",),
}  # fmt: skip
_PLACES = {
    "sea": ("on the sea", "at sea", "on the ocean", "on blue water"),
    "stars": ("in the night sky", "among the stars", "in space"),
    "paper": ("on paper", "on paper", "on a sheet of paper"),
}
_HILLS = ("green", "yellow", "white", "brown", "purple", "orange", "blue")
_AT = {"day": ("", "", "under a blue sky", "on a sunny day"), "sunset": ("at sunset", "in the evening"),
       "night": ("at night", "under the stars", "at night under the stars")}  # fmt: skip
_LEFT = ("{a} left of {b}", "{a} to the left of {b}", "{b} right of {a}", "{b} to the right of {a}")
_BESIDE = ("{a} and {b}", "{b} and {a}", "{a} next to {b}", "{b} beside {a}", "{a} with {b}")
_ABOVE = ("{a} above {b}", "{b} below {a}", "{b} under {a}", "{a} over {b}")
_ON = ("{a} on {b}", "{a} on top of {b}")
_BEHIND = ("{a} behind {b}", "{b} in front of {a}")
_NUMBERS = ("", "", "two", "three", "four")
_IRREGULAR = {
    "mouse": "mice", "goose": "geese", "fish": "fish", "sheep": "sheep", "deer": "deer", "squid": "squid", "man": "men",
    "woman": "women", "person": "people", "child": "children", "leaf": "leaves", "knife": "knives", "wolf": "wolves",
    "tooth": "teeth", "foot": "feet", "ox": "oxen", "loaf": "loaves", "shrimp": "shrimp", "bison": "bison", "elf": "elves",
}  # fmt: skip


def plural(name: str) -> str:
    """Return the plural of a noun phrase; what stands before "of", "with", "in", "on" or "and" is its head."""
    head, *rest = re.split(r"(?= (?:of|with|in|on|and|without|behind) )", name, maxsplit=1)
    *front, last = head.split(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "es" if re.search(r"(s|sh|ch|x|z|[^aeiou]o)$", last) else "s"
    return " ".join([*front, last]) + "".join(rest)


def is_plural(name: str) -> bool:
    """Return whether a name is a plural already ("cherries"): it takes no article and no number."""
    head = re.split(r" (?:of|with|in|on|and|without|behind) ", name, maxsplit=1)[0]
    return bool(re.search(r"(?<![sui])s$", head)) or head.endswith(("ies", "people", "men"))


def phrase(name: str, number: int = 1, colour: str | None = None) -> str:
    """Return "a red fox", "two mushrooms", "red cherries"."""
    words = f"{colour} {name}" if colour else name
    if number > 1:
        return f"{_NUMBERS[number]} {plural(words)}"
    if is_plural(name):
        return words
    vowel = words[0] in "aeiou" and not words.startswith(("uni", "eu", "one"))
    return f"{'an' if vowel or words.startswith(('x-', 'hour')) else 'a'} {words}"


@lru_cache(maxsize=1 << 20)
def held_out(kind: str, *names: str) -> bool:
    """Return whether a combination is kept for evaluation; the same on every machine."""
    digest = hashlib.blake2b("|".join((kind, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < HELD_OUT[kind]


@dataclass
class Thing:
    """One object of a scene; lengths in canvases, (x, y) is its centre."""

    concept: int
    icon: int
    x: float = 0.5
    y: float = 0.5
    size: float = 0.5
    flip: bool = False
    colour: str | None = None


@dataclass
class Scene:
    """One recipe.

    Attributes:
        caption: what is told.
        things: up to four objects, the farthest first.
        backdrop: one of `BACKDROPS`.
        time: one of `TIMES`; matters to ground, hills and sea.
        colours: two names from `palette`: of the plain, the gradient, the ground or the hills.
        parameters: (`PARAMETERS`,) uniform numbers that the backdrop draws from.
        keys: the combinations that the picture holds: ("count", "2", "fox"), ("left", "fox", "owl"), ...
        facts: what the caption claims: ("count", name, n), ("colour", name, colour), ("style", style),
            ("left" | "above" | "behind", name, other), ("backdrop", kind, colour).
        palette: what the names of the backdrop's colours stand for.
    """

    caption: str
    things: list[Thing]
    backdrop: str
    time: str
    colours: tuple[str, str]
    parameters: np.ndarray
    keys: set[tuple[str, ...]] = field(default_factory=set)
    facts: list[tuple[str, ...]] = field(default_factory=list)
    palette: Mapping[str, tuple[float, float, float]] = field(default_factory=lambda: PALETTE)


def stream(seed: int, purpose: Literal["train", "eval", "side", "drop"]) -> int:
    """Return the key of a stream of random numbers; no two purposes share one."""
    return (seed * 4 + ("train", "eval", "side", "drop").index(purpose)) % 2**64


class _Draws:
    """Random choices in a fixed order."""

    def __init__(self, key: int, index: int) -> None:
        self._rng = np.random.Generator(np.random.Philox(key=[key, index]))
        self._pool: list[float] = []

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        if not self._pool:
            self._pool = self._rng.random(64).tolist()
        return low + (high - low) * self._pool.pop()

    def block(self, n: int) -> np.ndarray:
        return self._rng.random(n, np.float32)

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        at = self() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            at -= weight
            if at < 0:
                return item
        return items[-1]


class Recipes:
    """The recipes of a library; any index at any time, in any order."""

    def __init__(self, library: Library, seed: int = 0, split: Split = "train") -> None:
        """Prepare the draws.

        Args:
            library: the concepts; pixels are not looked at.
            seed: with an index, decides a scene.
            split: "train" scenes hold no held-out combination, "eval" scenes at least one.
        """
        self.library, self.seed, self.split = library, seed, split
        self._by_style = []
        for style in range(len(library.styles)):
            concepts = np.flatnonzero(library.icon[:, style] >= 0)
            total = np.cumsum(library.weights[concepts])
            self._by_style.append((concepts, total / total[-1] if len(total) else total))
        self._style_weight = [math.sqrt(len(concepts)) for concepts, _ in self._by_style]
        self._no_tint = [bool(set(name.split()) & (set(PALETTE) | {"heart", "rainbow"})) for name in library.names]
        self._single = [is_plural(name) for name in library.names]

    def __call__(self, index: int) -> Scene:
        """Return the scene of an index; drawn again, from the same stream, until it suits the split."""
        draw = _Draws(stream(self.seed, self.split), index)
        while True:
            scene = self._compose(draw)
            if any(held_out(*key) for key in scene.keys) == (self.split == "eval"):
                scene.parameters = draw.block(PARAMETERS)
                return scene

    def _concept(self, draw: _Draws, style: int) -> int:
        concepts, total = self._by_style[style]
        return int(concepts[min(int(np.searchsorted(total, draw(), "right")), len(concepts) - 1)])

    def _name(self, draw: _Draws, concept: int) -> str:
        others = self.library.synonyms[concept]
        return draw.pick(others) if others and draw() < 0.08 else self.library.names[concept]

    def _compose(self, draw: _Draws) -> Scene:
        library = self.library
        style = draw.weighted(range(len(library.styles)), self._style_weight)
        backdrop = draw.weighted(BACKDROPS, _BACKDROP_WEIGHT)
        time = draw.weighted(TIMES, _TIME_WEIGHT) if backdrop in ("ground", "hills", "sea") else "day"
        colours = self._colours(draw, backdrop)
        kind = draw.weighted([k for k, _ in _KINDS], [w for _, w in _KINDS])

        groups: list[list[Thing]] = []
        for wanted in self._numbers(draw, kind):
            concept = self._concept(draw, style)
            for _ in range(8):  # every group is of another concept; a name in the plural is not counted
                if not any(concept == group[0].concept for group in groups) and not (wanted > 1 and self._single[concept]):
                    break
                concept = self._concept(draw, style)
            else:
                wanted = 1
            colour = None
            if not self._no_tint[concept] and draw() < 0.18:
                colour = draw.pick([c for c in PALETTE if c not in colours or backdrop not in ("plain", "gradient")])
            icon = int(library.icon[concept, style])
            flip = bool(library.flippable[concept]) and draw() < 0.5
            groups.append([Thing(concept, icon, flip=flip, colour=colour) for _ in range(wanted)])
        names = [library.names[group[0].concept] for group in groups]
        scene = Scene("", [], backdrop, time, colours, np.empty(0))
        if len(set(names)) < len(names):  # the library is tiny: try again with another draw
            return self._compose(draw)

        for name, group in zip(names, groups, strict=True):
            scene.keys.add(("style", name, library.styles[style]))
            scene.facts.append(("count", name, str(len(group))))
            if len(group) > 1:
                scene.keys.add(("count", str(len(group)), name))
            if group[0].colour:
                scene.keys.add(("colour", name, group[0].colour))
                scene.facts.append(("colour", name, group[0].colour))

        # A name that is no other's: only such a phrase may stand in the caption.
        told = [
            phrase(self._name(draw, group[0].concept), len(group), group[0].colour)
            if len(group) == 1
            else phrase(name, len(group), group[0].colour)
            for name, group in zip(names, groups, strict=True)
        ]
        subject = self._arrange(draw, scene, groups, names, told)
        scene.caption = self._tell(draw, scene, subject, names, style, bare=len(groups) == 1 and len(groups[0]) == 1)
        return scene

    @staticmethod
    def _numbers(draw: _Draws, kind: str) -> tuple[int, ...]:
        if kind == "single":
            return (1,)
        if kind == "count":
            return (draw.weighted((2, 3, 4), (0.45, 0.33, 0.22)),)
        if kind == "three":
            return (1, 1, 1)
        return draw.weighted(((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2)), (0.62, 0.1, 0.1, 0.06, 0.06, 0.06))

    @staticmethod
    def _colours(draw: _Draws, backdrop: str) -> tuple[str, str]:
        if backdrop == "ground":
            return draw.weighted(tuple(_GROUND), (5, 2, 2, 1.5, 1.5, 0.5, 0.5)), "white"
        if backdrop == "hills":
            return draw.weighted(_HILLS, (5, 1, 1, 1, 1, 0.7, 0.7)), "white"
        first = draw.pick(tuple(PALETTE))
        return first, draw.pick([c for c in PALETTE if c != first])

    def _arrange(self, draw: _Draws, scene: Scene, groups: list[list[Thing]], names: list[str], told: list[str]) -> str:
        """Give every thing its place, note relations and return the subject of the caption."""
        landscape = scene.backdrop in ("ground", "hills", "sea")
        middle = draw(0.56, 0.64) if landscape else draw(0.46, 0.54)
        flat = [thing for group in groups for thing in group]
        if len(flat) == 1:
            return self._single_thing(draw, scene, flat[0], told[0], middle, landscape)
        form = draw.weighted(("left", "above", "on", "behind"), (0.55, 0.2, 0.12, 0.13)) if len(groups) == 2 else "left"
        if form in ("on", "behind") and len(flat) > 2:
            form = "left"
        if form == "above":
            for group, y in zip(groups, (0.27, 0.73), strict=True):
                size = draw(0.36, 0.46) if len(group) == 1 else draw(0.28, 0.9 / max(len(group), 2) - 0.02)
                self._row(draw, group, y + draw(-0.02, 0.02), size, SIDE * 0.3 if len(group) == 1 else 0)
        elif form == "on":
            upper, lower = flat
            lower.size, upper.size = draw(0.44, 0.54), draw(0.3, 0.4)
            lower.x, lower.y = draw(0.42, 0.58), draw(0.68, 0.72)
            upper.x = lower.x + draw(-0.05, 0.05)
            upper.y = lower.y - (lower.size + upper.size) * 0.44
        elif form == "behind":
            back, front = flat
            back.size, front.size = draw(0.5, 0.62), draw(0.34, 0.42)
            side, down = draw.pick((-1, 1)) * draw(0.08, 0.14), draw(0.1, 0.14)
            back.x, front.x = 0.5 - side / 2, 0.5 + side / 2
            back.y, front.y = middle - down / 2, middle + down / 2
        elif len(groups) == 1 and len(flat) >= 3 and draw() < 0.5:
            size = draw(0.34, 0.45)
            for thing, (x, y) in zip(flat, ((0.27, 0.28), (0.73, 0.28), (0.27, 0.73), (0.73, 0.73)), strict=False):
                thing.size, thing.x, thing.y = size * draw(0.92, 1), x + draw(-0.03, 0.03), y + draw(-0.03, 0.03)
            if len(flat) == 3 and draw() < 0.7:
                flat[2].x = 0.5 + draw(-0.05, 0.05)
        else:
            size = min(0.5, draw(0.82, 1.0) * 0.94 / len(flat)) if len(flat) > 2 else draw(0.34, 0.47)
            self._row(draw, flat, middle, size, 0.0)

        scene.things = flat
        if len(groups) == 1:
            return told[0]
        if len(groups) == 3:
            for i, j in ((0, 1), (0, 2), (1, 2)):
                scene.keys.add(("left", names[i], names[j]))
            order = [0, 1, 2] if draw() < 0.5 else [2, 1, 0]
            return "{}, {} and {}".format(*(told[i] for i in order))
        a, b = told
        relation = "above" if form == "on" else form
        scene.keys.add((relation, *names))
        if form == "left" and draw() < 0.45:
            return draw.pick(_BESIDE).format(a=a, b=b)
        scene.facts.append((relation, *names))
        return draw.pick({"left": _LEFT, "above": _ABOVE, "on": _ON, "behind": _BEHIND}[form]).format(a=a, b=b)

    @staticmethod
    def _row(draw: _Draws, things: list[Thing], y: float, size: float, shift: float) -> None:
        """Set things side by side about the middle of the canvas; their centres are farther apart than `SIDE`."""
        cell = max(0.94 / len(things), SIDE * 1.3) if len(things) > 1 else 0
        if len(things) == 2:
            cell = draw(0.42, 0.48)
        start = 0.5 - cell * (len(things) - 1) / 2
        slack = max(0.0, min(0.02, (cell - size) / 2))
        for i, thing in enumerate(things):
            thing.size = size * draw(0.94, 1)
            thing.x = start + i * cell + draw(-1, 1) * slack + draw(-1, 1) * shift
            thing.y = y + draw(-0.03, 0.03)

    @staticmethod
    def _single_thing(draw: _Draws, scene: Scene, thing: Thing, told: str, middle: float, landscape: bool) -> str:
        scene.things = [thing]
        if draw() < 0.82:
            thing.size = draw(0.42, 0.72) if landscape else draw(0.5, 0.9)
            room = max(0.0, 0.48 - thing.size / 2)
            thing.x, thing.y = 0.5 + draw(-1, 1) * room * 0.6, middle + draw(-1, 1) * min(room, 0.05)
            return told
        thing.size = draw(0.28, 0.4)
        word, x, y = draw.pick((
            ("on the left", 0.25, middle), ("on the right", 0.75, middle), ("at the top", 0.5, 0.24),
            ("at the bottom", 0.5, 0.76), ("in the top left corner", 0.23, 0.23), ("in the top right corner", 0.77, 0.23),
            ("in the bottom left corner", 0.23, 0.77), ("in the bottom right corner", 0.77, 0.77),
        ))  # fmt: skip
        thing.x, thing.y = x + draw(-0.02, 0.02), y + draw(-0.02, 0.02)
        return f"{told} {word}"

    def _tell(self, draw: _Draws, scene: Scene, subject: str, names: list[str], style: int, *, bare: bool) -> str:
        """Return the caption; facts about the backdrop and the style are noted where it tells them."""
        key = self.library.styles[style]
        word = draw.pick(_STYLE_WORDS.get(key, (key,)))
        first, second = scene.colours
        thing = scene.things[0]
        if bare and thing.colour is None and draw() < 0.16:
            if draw() < 0.5:
                return names[0]  # only the noun
            if scene.backdrop == "plain":
                scene.facts += [("style", key), ("backdrop", "plain", first)]
                return CAPTION.format(name=names[0], style=key, color=first)
        place = ""
        if draw() < 0.85:
            place = self._place(draw, scene.backdrop, first, second)
            scene.facts.append(("backdrop", scene.backdrop, first))
            if scene.backdrop in ("ground", "hills", "sea"):
                place = f"{place} {draw.pick(_AT[scene.time])}".rstrip()
        if draw() < 0.5:
            return f"{subject} {place}".rstrip()
        scene.facts.append(("style", key))
        rest = f" {place}" if place else ""
        form = draw.pick(("{s}{p}, {w} style", "{s}{p}, {w} style", "{s}{p} in {w} style", "{a} {w} picture of {s}{p}"))
        return form.format(s=subject, p=rest, w=word, a="an" if word[0] in "aei" else "a")

    @staticmethod
    def _place(draw: _Draws, backdrop: str, first: str, second: str) -> str:
        """Return words for a backdrop of these colours."""
        if backdrop == "plain":
            return draw.pick((f"on {first}", f"on {first}", f"on a {first} background", f"against {first}"))
        if backdrop == "gradient":
            return draw.pick((f"on a gradient from {first} to {second}", f"on {first} and {second}"))
        if backdrop == "ground":
            return draw.pick(_GROUND[first])
        if backdrop == "hills":
            return draw.pick((f"on a {first} hill", f"on a {first} hill", f"on {first} hills"))
        return draw.pick(_PLACES[backdrop])


class PlainRecipes(Recipes):
    """The smallest world: one drawing that fills the canvas, on one of ten flat colours; always the same for the same words.

    Held out are combinations of concept, style and backdrop.
    """

    def __call__(self, index: int) -> Scene:
        """Return the scene of an index; its backdrop is the colour itself."""
        scene = super().__call__(index)
        scene.parameters[:] = 0.5  # the middle of what a backdrop draws from: nothing is added to the colour
        return scene

    def _compose(self, draw: _Draws) -> Scene:
        library, colours = self.library, tuple(PLAIN)
        style = draw.weighted(range(len(library.styles)), self._style_weight)
        concept, colour = self._concept(draw, style), draw.pick(colours)
        thing = Thing(concept, int(library.icon[concept, style]), size=1.0)
        name, kind = library.names[concept], library.styles[style]
        form = draw.weighted((CAPTION, "{one} on {color}", "{one} in {style} style", "{one}"), (0.7, 0.15, 0.08, 0.07))
        caption = form.format(name=name, one=phrase(self._name(draw, concept)), style=kind, color=colour)
        facts: list[tuple[str, ...]] = [("count", name, "1")]
        facts += [("style", kind)] if "{style}" in form else []
        facts += [("backdrop", "plain", colour)] if "{color}" in form else []
        keys: set[tuple[str, ...]] = {("colour", name, kind, colour)}
        return Scene(caption, [thing], "plain", "day", (colour, colour), np.empty(0), keys, facts, PLAIN)
