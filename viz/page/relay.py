"""The newest runs' messages on their way to the browser that asked for them. No gradio here.

A live run's steps do not pass through a component: Gradio copies all of a component's properties at every new value, which
is most of what a streamed step costs the browser. Gradio's event starts the run, queues it and shows its errors; the steps go
by an answer of their own, a JSON message a line, for as long as the browser reads it. Closing it stops the run within a step,
be it by Stop, by another run or with the tab; there is nothing to cancel.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from viz import frame
from viz.frame import Track

WAIT = frame.note("Waiting for the model, which still loads or is busy with another run. This one starts by itself.")
_ID = re.compile(r"[0-9a-f]{16}")
_PATIENCE = 0.7  # seconds without a sign of the run before its visitor is told what it waits for
_ALIVE = 15.0  # seconds between empty lines, so that no proxy takes a slow model for a dead line


@dataclass
class _Run:
    tracks: dict[int, Track] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    over: bool = False


class Relay:
    """Messages and tracks of the newest runs by run id; safe across threads."""

    def __init__(self, size: int = 8) -> None:
        self._size, self._lock = size, threading.Lock()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._left: OrderedDict[str, None] = OrderedDict()  # runs that nobody waits for any more
        self._ears: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}

    def open(self, run: str = "") -> tuple[str, dict[int, Track]]:
        """Return a run's id and its tracks, to be filled while it runs; the oldest run is forgotten.

        Args:
            run: 16 hexadecimal digits that the browser chose and listens to; "" draws an id. Of anything else, or what is taken
                already, nobody can be waiting for the steps: that run is left before it begins.
        """
        usable = not run or (_ID.fullmatch(run) is not None and run not in self._runs)
        run = run if run and usable else secrets.token_hex(8)
        if not usable:
            self.leave(run)
        with self._lock:
            self._runs[run] = _Run()
            while len(self._runs) > self._size:
                self._runs.popitem(last=False)
            return run, self._runs[run].tracks

    def backfill(self, wanted: list[Any]) -> list[str]:
        """Return the frames [run, track, [steps]] that a browser missed."""
        run, track, steps = wanted
        with self._lock:
            known = self._runs[str(run)].tracks.get(int(track)) if str(run) in self._runs else None
        return [known.frames[int(i)] for i in steps if int(i) in known.frames] if known else []

    # ------------------------------------------------------------------------------------------------- the server's side

    def send(self, run: str, messages: Iterable[str]) -> None:
        """Pass messages on as they come, until there are no more or nobody waits for them; then the run is over.

        Args:
            run: as `open` returned it. messages: closed at once where the visitor has left.
        """
        try:
            if not self.left(run):
                for message in messages:
                    with self._lock:
                        if run in self._runs:
                            self._runs[run].said.append(message)
                    self._wake(run)
                    if self.left(run):
                        break
        finally:
            if callable(close := getattr(messages, "close", None)):
                close()
            with self._lock:
                if run in self._runs:
                    self._runs[run].over = True
            self._wake(run)

    def leave(self, run: str) -> None:
        """Let a run end at its next step, or not begin at all."""
        with self._lock:
            self._left[run] = None
            while len(self._left) > 1024:
                self._left.popitem(last=False)

    def left(self, run: str) -> bool:
        """Return whether nobody waits for a run any more."""
        with self._lock:
            return run in self._left

    def _wake(self, run: str) -> None:
        with self._lock:
            ears = list(self._ears.get(run, ()))
        for loop, heard in ears:
            with contextlib.suppress(RuntimeError):  # its loop has ended with its visitor
                loop.call_soon_threadsafe(heard.set)

    # ------------------------------------------------------------------------------------------------ the browser's side

    async def listen(self, run: str) -> AsyncGenerator[str, None]:
        """Yield a run's messages, from its first one to its end; "" now and then while there is nothing to say.

        The run may begin later; its visitor is then told so. Closing this before the end leaves the run.
        """
        heard, at, told = asyncio.Event(), 0, False
        ear = (asyncio.get_running_loop(), heard)
        with self._lock:
            self._ears.setdefault(run, []).append(ear)
        ended = False
        try:
            while True:
                heard.clear()
                with self._lock:
                    known = self._runs.get(run)
                    fresh, ended = (known.said[at:], known.over) if known else ([], False)
                for message in fresh:
                    at += 1
                    yield message
                if ended:
                    return
                try:
                    await asyncio.wait_for(heard.wait(), _ALIVE if at or told else _PATIENCE)
                except asyncio.TimeoutError:
                    yield "" if at or told else WAIT
                    told = True
        finally:
            with self._lock:
                self._ears[run].remove(ear)
                if not self._ears[run]:
                    del self._ears[run]
            if not ended:
                self.leave(run)

    def routes(self) -> list[Route]:
        """Return the addresses of the page's own runs: GET reads one, POST leaves it."""

        async def lines(run: str) -> AsyncIterator[str]:
            async with contextlib.aclosing(self.listen(run)) as messages:
                async for message in messages:
                    yield message + "\n"

        async def live(request: Request) -> Response:
            run = request.path_params["run"]
            if not _ID.fullmatch(run):
                return Response(json.dumps({"detail": "a run's id has 16 hexadecimal digits"}), 404)
            if request.method == "POST":
                self.leave(run)
                return Response(status_code=204)
            quiet = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(lines(run), media_type="application/x-ndjson", headers=quiet)

        return [Route("/fresco/run/{run}", live, methods=["GET", "POST"])]
