"""The newest runs' messages, kept on the server for a browser that missed some. No gradio here."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Any

from viz.frame import Track


class Relay:
    """Tracks of the newest runs by run id; safe across threads."""

    def __init__(self, size: int = 8) -> None:
        self._size, self._lock = size, threading.Lock()
        self._runs: OrderedDict[str, dict[int, Track]] = OrderedDict()

    def open(self) -> tuple[str, dict[int, Track]]:
        """Return a new run's id and its tracks, to be filled while it runs; the oldest run is forgotten."""
        run, tracks = secrets.token_hex(4), dict[int, Track]()
        with self._lock:
            self._runs[run] = tracks
            while len(self._runs) > self._size:
                self._runs.popitem(last=False)
        return run, tracks

    def backfill(self, wanted: list[Any]) -> list[str]:
        """Return the frames [run, track, [steps]] that a browser missed."""
        run, track, steps = wanted
        with self._lock:
            known = self._runs.get(str(run), {}).get(int(track))
        return [known.frames[int(i)] for i in steps if int(i) in known.frames] if known else []
