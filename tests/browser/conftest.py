"""One server and one Chromium for all browser tests; every page is watched for what must never happen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.smoke import free_port, start

# No sandbox: containers run as root. The rest keeps Chromium itself from calling home.
FLAGS = (
    "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
    "--disable-gpu",
)  # fmt: skip
PATIENCE = 90_000  # ms; a busy machine is slow, a hung page is still found
ROOT = "document.querySelector('#viewer .fv-root')"
PLAYER = "[...document.querySelectorAll('#viewer *')].find(e => e.frescoViewer).frescoViewer"


class Visit:
    """A visitor's page: what is on it, and what it has asked of the network."""

    def __init__(self, page: Page, server: str) -> None:
        self.page, self.server = page, server
        self.requests: list[str] = []
        self.problems: list[str] = []
        page.on("request", self._asked)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self.requests.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        # Gradio answers 500 to a cancel that meets the very end of its run (a KeyError in its own cancel_event).
        race = message.location.get("url", "").endswith("/cancel") and "500" in message.text
        if message.type == "error" and not race:
            self.problems.append(f"console: {message.text}")

    @property
    def foreign(self) -> list[str]:
        """Requests that left the server."""
        return [url for url in self.requests if not url.startswith(self.server)]

    @property
    def data(self) -> dict[str, str]:
        """What the viewer says of itself."""
        return dict(self.page.evaluate(f"({{...{ROOT}.dataset}})"))

    def until(self, condition: str) -> None:
        """Wait until a condition on `d`, the viewer's state, holds."""
        self.page.wait_for_function(f"(() => {{ const d = {ROOT}?.dataset; return d && ({condition}); }})()", timeout=PATIENCE)

    def player(self, expression: str) -> Any:
        """Return the value of an expression on `v`, the viewer's own interface."""
        return self.page.evaluate(f"(() => {{ const v = {PLAYER}; return {expression}; }})()")

    @property
    def status(self) -> str:
        return self.page.locator("#viewer .fv-status").inner_text()

    def says(self, text: str) -> None:
        """Wait for a sentence in the status line."""
        expect(self.page.locator("#viewer .fv-status")).to_contain_text(text, timeout=PATIENCE)

    def control(self, name: str) -> Any:
        """Return the input of a control."""
        return self.page.locator(f"#{name} textarea, #{name} input").first

    def put(self, name: str, value: object) -> None:
        """Type into a control and leave it, as a person does."""
        self.control(name).fill(str(value))
        self.control(name).blur()

    def open_advanced(self) -> None:
        self.page.get_by_role("button", name="Advanced").click()
        expect(self.control("window")).to_be_visible()

    def run(self) -> str:
        """Press Run, wait for the first step and return the run's id."""
        before = self.data["run"]
        self.page.click("button#run")
        self.until(f"d.mode === 'live' && d.run !== {json.dumps(before)} && +d.frames > 0")
        return self.data["run"]

    def finished(self) -> None:
        """Wait for the end of a run, likeness included."""
        self.says("Done.")

    def previews(self) -> list[str]:
        """Return the pictures of Fresco's steps as they came."""
        return list(self.player("v.store.tracks.get(0).frames.map(f => f.preview)"))

    def toast(self, text: str) -> str:
        """Wait for a toast with this text and return all of it."""
        toast = self.page.get_by_test_id("toast-body").filter(has_text=text).first
        expect(toast).to_be_visible(timeout=PATIENCE)
        return toast.inner_text()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give what happens in a browser a second try: a page, a server and a model share the cores, and timing is nobody's law."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Return the address of a running page."""
    port = free_port()
    app = start(port)
    yield f"http://127.0.0.1:{port}/"
    app.terminate()
    app.wait(timeout=30)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no Chromium on the PATH; get one with: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser, server: str) -> Iterator[Callable[..., Visit]]:
    """Return a function that opens the page as a new visitor with a query, and waits until the viewer plays.

    After the test no page may have asked anything of another server, or have logged an error.
    """
    visits = []

    def open_page(width: int = 1280, height: int = 900, dark: bool = False, **query: object) -> Visit:
        context = chromium.new_context(viewport={"width": width, "height": height})
        seen = Visit(context.new_page(), server)
        visits.append(seen)
        theme = {"__theme": "dark"} if dark else {"__theme": "light"}
        seen.page.goto(f"{server}?{urlencode(theme | query)}", timeout=PATIENCE)
        seen.until("d.mode === 'recorded' && +d.frames > 0")
        # The viewer plays before Gradio is there; only then are the controls filled in and their events bound.
        expect(seen.page.locator("#hardware")).to_contain_text("Runs on", timeout=PATIENCE)
        expect(seen.control("prompt")).not_to_have_value("", timeout=PATIENCE)
        return seen

    yield open_page
    foreign, problems = [u for v in visits for u in v.foreign], [p for v in visits for p in v.problems]
    for seen in visits:
        seen.page.context.close()
    assert foreign == []
    assert problems == []
