"""A live run's way to the browser: every message, in order, once; who stops listening stops the run."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from viz.page import relay
from viz.page.relay import WAIT, Relay

RUN = "0123456789abcdef"


def finish(coroutine):
    """Run a coroutine to its end, in a thread of its own: browser tests leave an event loop running in the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


class Steps:
    """A run of so many messages that says how many were asked of it, and whether it was closed."""

    def __init__(self, of, each=lambda k: None):
        self.of, self.each, self.made, self.closed = of, each, 0, False

    def __iter__(self):
        return self

    def __next__(self):
        if self.made == self.of:
            raise StopIteration
        self.made += 1
        self.each(self.made)
        return f"message {self.made}"

    def close(self):
        self.closed = True


def test_a_listener_gets_every_message_in_order_while_the_run_goes_on():
    """Each further message is made only once the one before has arrived, so nothing may wait for the end."""
    at, arrived = Relay(), threading.Semaphore(1)
    steps = Steps(20, lambda k: arrived.acquire(timeout=10))

    async def listen():
        got = []
        async for message in at.listen(RUN):
            if message not in ("", WAIT):
                got.append(message)
                arrived.release()
        return got

    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(asyncio.run, listen())
        run, _ = at.open(RUN)
        at.send(run, steps)
        assert heard.result(timeout=10) == [f"message {k}" for k in range(1, 21)]
    assert steps.closed
    assert not at.left(RUN)


def test_who_comes_late_hears_all_of_it():
    at = Relay()
    at.send(at.open(RUN)[0], Steps(3))

    async def listen():
        return [message async for message in at.listen(RUN)]

    assert finish(listen()) == ["message 1", "message 2", "message 3"]


def test_a_run_that_does_not_begin_says_what_it_waits_for_and_then_shows_itself_alive(monkeypatch):
    monkeypatch.setattr(relay, "_PATIENCE", 0.01)
    monkeypatch.setattr(relay, "_ALIVE", 0.01)

    async def listen():
        messages = Relay().listen(RUN)
        return [await anext(messages) for _ in range(3)]

    assert finish(listen()) == [WAIT, "", ""]


def test_leaving_ends_a_run_at_its_next_step():
    at = Relay()
    steps = Steps(50, lambda k: at.leave(RUN) if k == 4 else None)
    at.send(at.open(RUN)[0], steps)
    assert (steps.made, steps.closed) == (4, True)


def test_to_stop_listening_is_to_leave():
    at, gone = Relay(), threading.Event()

    async def listen():
        messages = at.listen(RUN)
        first = await anext(messages)
        await messages.aclose()
        gone.set()
        return first

    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(asyncio.run, listen())
        steps = Steps(50, lambda k: gone.wait(10) if k == 2 else None)
        at.send(at.open(RUN)[0], steps)
        assert heard.result(timeout=10) == "message 1"
    assert (steps.made, steps.closed) == (2, True)


def test_a_run_that_was_left_in_the_queue_calls_no_model():
    at = Relay()
    at.leave(RUN)
    steps = Steps(5)
    at.send(at.open(RUN)[0], steps)
    assert (steps.made, steps.closed) == (0, True)


@pytest.mark.parametrize("wrong", ["../etc/passwd", "0123", RUN.upper(), "é" * 16])
def test_an_id_that_no_browser_can_listen_to_gets_another_and_nothing_is_run(wrong):
    at = Relay()
    run, _ = at.open(wrong)
    assert run != wrong
    steps = Steps(5)
    at.send(run, steps)
    assert steps.made == 0


def test_an_id_can_be_taken_once():
    at = Relay()
    own, tracks = at.open(RUN)
    other, others = at.open(RUN)
    assert own == RUN != other
    assert tracks is not others
    assert at.left(other)
    assert not at.left(own)


def test_an_error_of_the_run_reaches_the_caller_and_ends_the_listening():
    at = Relay()

    def broken():
        yield "message 1"
        raise ValueError("the model is gone")

    with pytest.raises(ValueError, match="the model is gone"):
        at.send(at.open(RUN)[0], broken())

    async def listen():
        return [message async for message in at.listen(RUN)]

    assert finish(listen()) == ["message 1"]


def test_the_newest_runs_are_kept():
    at = Relay(size=2)
    runs = [at.open()[0] for _ in range(3)]
    assert len(set(runs)) == 3
    at.send(runs[0], Steps(2))  # forgotten already; it ends as any other
    assert at.backfill([runs[0], 0, [0]]) == []


def test_the_addresses_read_and_leave_a_run_and_know_no_other_ids():
    at = Relay()
    client = TestClient(Starlette(routes=at.routes()))
    at.send(at.open(RUN)[0], Steps(2))
    answer = client.get(f"/fresco/run/{RUN}")
    assert answer.text == "message 1\nmessage 2\n"
    assert answer.headers["cache-control"] == "no-store"
    assert client.post("/fresco/run/fedcba9876543210").status_code == 204
    assert at.left("fedcba9876543210")
    assert client.get("/fresco/run/nonsense").status_code == 404
    assert client.post("/fresco/run/nonsense").status_code == 404
    assert not at.left("nonsense")
