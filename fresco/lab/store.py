"""Results on disk: JSON lines that survive a kill at any moment, pictures beside them.

In a folder: `results.jsonl`, one line per finished run, the same bytes however often the work was interrupted;
`seconds.jsonl`, {"key", "seconds"} of each run, apart because no two runs take the same time; `pictures/KEY.png` (several
frames: `pictures/KEY/0000.png` and on); `traces/KEY.npz` where asked for. A line is written only once its picture is safe.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fresco.errors import FrescoError
from fresco.lab.sweep import Result
from fresco.trace import Trace


class StoreError(FrescoError):
    """A file of results that cannot be read; the message says where."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file of lines; a torn last line, as a kill leaves it, is not there.

    Raises:
        StoreError: where a whole line is no JSON object.
    """
    if not path.is_file():
        return []
    *whole, _torn = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(whole, 1):
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise StoreError(f"line {number} of {path.name} is damaged; delete that line, and its run is made again")
        found.append(data)
    return found


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Append one JSON object as a line, on disk when this returns; a torn last line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(data, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class Store:
    """An append-only file of results with their pictures.

    Args:
        path: the file of this writer, `results.jsonl` or `results-K.jsonl` for process K; the rest lies beside it.
        traces: also keep every run's trace.

    Raises:
        StoreError: on another file name.
    """

    def __init__(self, path: str | os.PathLike[str], *, traces: bool = False) -> None:
        self.path, self.traces = Path(path), traces
        if not self.path.name.startswith("results") or self.path.suffix != ".jsonl":
            raise StoreError(f"a file of results is called results.jsonl or results-K.jsonl; got {self.path.name}")

    def add(self, result: Result) -> None:
        """Write a result: trace, picture, seconds, and last its line."""
        root = self.path.parent
        if self.traces and result.trace is not None:
            (root / "traces").mkdir(parents=True, exist_ok=True)
            result.trace.save(root / "traces" / f"{result.key}.npz")
        _write_picture(root / "pictures", result.key, result.picture)
        line = result.to_json()
        append_line(_seconds_of(self.path), {"key": result.key, "seconds": line.pop("seconds")})
        append_line(self.path, line)

    def lines(self) -> dict[str, dict[str, Any]]:
        """Return the finished runs by key, without their pictures, in the order they were written.

        Files of other processes in the same folder are read, too; where two have run the same, the first counts.

        Raises:
            StoreError: on a damaged line.
        """
        found: dict[str, dict[str, Any]] = {}
        for path in sorted({self.path, *self.path.parent.glob("results*.jsonl")}, key=lambda p: (p != self.path, p)):
            seconds = {line.get("key"): line.get("seconds") for line in read_lines(_seconds_of(path))}
            for line in read_lines(path):
                if line.get("key") not in seconds:
                    raise StoreError(f"a line of {path.name} has no seconds beside it; delete it, and its run is made again")
                found.setdefault(line["key"], {**line, "seconds": seconds[line["key"]]})
        return found

    def done(self, keys: Iterable[str] | None = None) -> dict[str, Result]:
        """Return finished results by key, pictures included: all, or those of `keys` that there are.

        Raises:
            StoreError: on a damaged line or a missing picture.
        """
        wanted = None if keys is None else set(keys)
        return {key: self.read(line) for key, line in self.lines().items() if wanted is None or key in wanted}

    def read(self, line: Mapping[str, Any]) -> Result:
        """Return the result of a line, with its picture.

        Raises:
            StoreError: where the line is damaged or its picture missing.
        """
        root = self.path.parent
        try:
            saved = root / "traces" / f"{line['key']}.npz"
            trace = Trace.load(saved) if self.traces and saved.is_file() else None
            return Result.from_json(line, _read_picture(root / "pictures", line["key"]), trace)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise StoreError(
                f"the result {line.get('key')} cannot be read ({type(error).__name__}: {error}); delete its line in "
                "results*.jsonl, and the run is made again"
            ) from None


def _seconds_of(path: Path) -> Path:
    return path.with_name(path.name.replace("results", "seconds", 1))


def _write_picture(folder: Path, key: str, picture: NDArray[np.uint8]) -> None:
    """Write (T, H, W, 3) as one PNG, or one per frame in a folder of their own."""
    many = len(picture) > 1
    names = [folder / key / f"{frame:04d}.png" for frame in range(len(picture))] if many else [folder / f"{key}.png"]
    for name, pixels in zip(names, picture, strict=True):
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(name)


def _read_picture(folder: Path, key: str) -> NDArray[np.uint8]:
    names = sorted((folder / key).glob("*.png")) or [folder / f"{key}.png"]
    return np.stack([np.asarray(Image.open(name).convert("RGB")) for name in names])
