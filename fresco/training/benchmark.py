"""The 200 prompts that results are told on, and 24 others to choose settings with: `assets/benchmark/*.jsonl`.

Written by `python -m fresco.training.benchmark --data CACHE --out assets/benchmark`, the same on every machine. Categories
follow DrawBench's as far as the bundled model's world has them; it draws one object, so counting and positional prompts
show what it cannot do. `told` is the plain caption that the judge compares a picture with, whatever the prompt's spelling.
Deviation: the bundled model's first weights (v0) had seen all combinations of its world, so the prompts are new in their
words, not in what they show.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from fresco.backends.sinopia import assets_dir
from fresco.training import data
from fresco.training.recipes import is_plural, phrase

COUNTS = {
    "captions": 50, "colours": 35, "styles": 25, "nouns": 25, "rare words": 25, "misspellings": 20, "counting": 10,
    "positional": 10,
}  # fmt: skip
DEVELOPMENT = {"captions": 12, "colours": 6, "rare words": 3, "misspellings": 3}
FORMS = {
    "captions": "{name}, {style} style, on {colour}", "colours": "{one} on {colour}", "styles": "{one} in {style} style",
    "nouns": "{name}", "rare words": "{other}, {style} style, on {colour}",
    "misspellings": "{wrong}, {style} style, on {colour}",
    "counting": "{many} on {colour}", "positional": "{one} to the left of {second}, {style} style, on {colour}",
}  # fmt: skip


def misspelt(name: str, rng: random.Random) -> str:
    """Return a name with two neighbouring letters inside it exchanged; itself where that changes nothing."""
    i = rng.randrange(1, max(2, len(name) - 2))
    return name[:i] + name[i + 1] + name[i] + name[i + 2 :]


def prompts(library: data.Library, seed: int = 2601) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the prompts and the development set; no concept stands on the same colour twice, and no prompt comes twice."""
    info = json.loads((assets_dir() / "sinopia.json").read_text(encoding="utf-8"))
    place = {other: i for i, others in enumerate(library.synonyms) for other in others}
    place |= {name: i for i, name in enumerate(library.names)}
    known, rng = [name for name in info["concepts"] if name in place], random.Random(seed)
    used: set[Any] = set()

    def row(category: str) -> dict[str, Any]:
        while True:
            name, second = rng.sample(known, 2)
            style, colour, form = rng.choice(info["styles"]), rng.choice(info["colors"]), FORMS[category]
            number = rng.choice((2, 3, 4))
            others = [word for word in library.synonyms[place[name]] if word not in name and name not in word]
            words = {
                "name": name, "style": style, "colour": colour, "one": phrase(name), "second": phrase(second),
                "many": phrase(name, number), "other": rng.choice(others) if others else name,
                "wrong": misspelt(name, rng) if len(name) > 5 else name,
            }  # fmt: skip
            prompt = form.format(**words)
            dull = (category == "rare words" and not others) or (category == "misspellings" and words["wrong"] == name)
            if dull or (category == "counting" and is_plural(name)) or used & {(name, colour), prompt}:
                continue
            used.update({(name, colour), prompt})
            told = name + (f", {style} style" if "{style}" in form else "")
            if "{colour}" in form:
                told += f"{',' if '{style}' in form else ''} on {colour}"
            shown = {"concept": name} | {k: words[k] for k in ("style", "colour") if f"{{{k}}}" in form}
            if category == "counting":
                shown["count"] = str(number)
            elif category == "positional":
                shown |= {"left": name, "right": second}
            return {"prompt": prompt, "category": category, "told": told, **shown}

    sets = [[row(category) for category, n in counts.items() for _ in range(n)] for counts in (COUNTS, DEVELOPMENT)]
    return sets[0], sets[1]


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description="Write the benchmark's prompts.")
    parser.add_argument("--data", type=Path, default=Path("out/data"), help="cache of packages, catalogue and pixels")
    parser.add_argument("--out", type=Path, default=Path("assets/benchmark"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("prompts", "development"), prompts(data.load(args.data, 64)), strict=True):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (args.out / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
