"""What the page costs a visitor: bytes and script time of a streamed step, seconds to the first picture. Run by hand.

    OMP_WAIT_POLICY=PASSIVE python -m tests.benchmarks.page

Starts `python app.py` itself, opens the page in a fresh Chromium and counts by the DevTools protocol: the time until the server
answers; three visits over a network of 10 Mbit/s and 100 ms, from the click on the link to the first drawn step of the recorded
run; then, of live runs, the bytes that arrive and the milliseconds of script, layout and style per streamed step (processor
time of the page's main thread), and the script without that of an idle page (on every page of Gradio's a clock runs at each
frame of the screen); then the same while the finished run is scrubbed; and all bytes of page and first run together.
"""

from __future__ import annotations

import argparse
import shutil
import time
from urllib.parse import urlencode

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from tests.browser.conftest import FLAGS, PATIENCE, ROOT
from tests.smoke import free_port, start

# Marks, in the browser's own clock, the second frame after the viewer first had a step to show: it is on the screen by then.
DRAWN = """new MutationObserver((_, watcher) => {
  const root = document.querySelector('.fv-root');
  if (!root) return;
  watcher.disconnect();
  let seen = false;
  new MutationObserver(() => {
    if (seen || !(root.dataset.frames > 0)) return;
    seen = true;
    requestAnimationFrame(() => requestAnimationFrame(() => performance.mark('drawn')));
  }).observe(root, { attributes: true });
}).observe(document, { childList: true, subtree: true })"""
SHAPED = {"offline": False, "latency": 100, "downloadThroughput": 10e6 / 8, "uploadThroughput": 10e6 / 8}
TIMES = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration", "TaskDuration")


class Meter:
    """Bytes received and main-thread seconds since the last reading."""

    def __init__(self, session: CDPSession) -> None:
        self.session, self.bytes = session, 0
        session.send("Performance.enable", {"timeDomain": "threadTicks"})  # processor time: neighbours do not count
        session.send("Network.enable")
        session.on("Network.dataReceived", self._count)
        self.last = self._seconds()

    def _count(self, event: dict) -> None:
        self.bytes += event["encodedDataLength"] or event["dataLength"]

    def _seconds(self) -> dict[str, float]:
        found = {m["name"]: m["value"] for m in self.session.send("Performance.getMetrics")["metrics"]}
        return {name: found[name] for name in TIMES}

    def read(self) -> tuple[int, dict[str, float]]:
        """Return (bytes, milliseconds by kind) since the last call."""
        now = self._seconds()
        spent = {name: 1000 * (now[name] - self.last[name]) for name in TIMES}
        received, self.bytes, self.last = self.bytes, 0, now
        return received, spent


def until(page: Page, condition: str, polling: int = 2000) -> None:
    """Wait for the viewer's state; asked rarely, because asking is script too and would be counted."""
    page.wait_for_function(
        f"(() => {{ const d = {ROOT}?.dataset; return d && ({condition}); }})()", timeout=PATIENCE, polling=polling
    )


def first_step(browser: Browser, address: str) -> float:
    """Return the seconds from the start of a fresh visit over a slow network to the first drawn step."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", SHAPED)
    page.add_init_script(DRAWN)
    page.goto(address, wait_until="commit", timeout=PATIENCE)
    page.wait_for_function("performance.getEntriesByName('drawn').length > 0", timeout=PATIENCE, polling=100)
    seconds = page.evaluate("performance.getEntriesByName('drawn')[0].startTime") / 1000
    page.context.close()
    return float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nfe", type=int, default=18)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    path = shutil.which("chromium")
    if path is None:
        parser.error("there is no Chromium on the PATH; get one with: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        port = free_port()
        begin = time.perf_counter()
        app = start(port)
        try:
            answered = time.perf_counter() - begin
            drawn = [first_step(browser, f"http://127.0.0.1:{port}/") for _ in range(3)]
            query = {"nfe": args.nfe, "reference": "same NFE", "prompt": "red apple, noto style, on blue"}
            meter, rows, own = Meter(page.context.new_cdp_session(page)), [], []
            page.goto(f"http://127.0.0.1:{port}/?{urlencode(query)}", timeout=PATIENCE)
            until(page, "d.mode === 'recorded' && +d.framesRef > 0")
            page.locator("#viewer .fv-play").click()
            page.wait_for_timeout(5000)  # the rest of the recorded runs
            loaded = meter.bytes
            meter.read()
            page.wait_for_timeout(4000)
            idle = meter.read()[1]["ScriptDuration"] / 4  # ms of script a second
            for run in range(args.runs + 1):
                before = page.evaluate(f"{ROOT}.dataset.run")
                meter.read()
                began = time.perf_counter()
                page.click("button#run")
                until(page, f"d.run !== '{before}' && +d.frames === {args.nfe} && +d['framesRef'] === {args.nfe}")
                got = meter.read()
                if run:  # the first also loads and warms the model
                    rows.append(got)
                    own.append(got[1]["ScriptDuration"] - idle * (time.perf_counter() - began))
            steps = 2 * args.nfe
            page.locator(".fv-line").focus()
            page.keyboard.press("Home")
            meter.read()
            for _ in range(1, args.nfe):
                page.keyboard.press("ArrowRight")
                page.wait_for_timeout(60)
            scrub = meter.read()
        finally:
            app.terminate()
            app.wait(timeout=30)
        browser.close()
    print(f"python app.py until it answers  {answered:7.1f} s")
    print("a recorded step is drawn after  " + ", ".join(f"{1000 * t:.0f}" for t in sorted(drawn)) + " ms (10 Mbit/s, 100 ms)")
    print(f"page and one comparison         {(loaded + rows[0][0]) / 1e6:7.2f} MB")
    print(f"script of an idle page          {idle:7.1f} ms a second")
    print("script of a streamed step       " + ", ".join(f"{ms / steps:.1f}" for ms in own) + " ms without that")
    print(f"{'':32}{'kB':>8}{'script':>9}{'layout':>9}{'style':>9}{'main thread':>13}   (ms)")
    for name, (received, spent), count in [*((f"live run {k + 1}, per step", r, steps) for k, r in enumerate(rows)),
                                           ("scrubbing, per step", scrub, args.nfe - 1)]:  # fmt: skip
        cells = "".join(f"{spent[t] / count:{width}.1f}" for t, width in zip(TIMES, (9, 9, 9, 13), strict=True))
        print(f"{name:32}{received / count / 1000:8.1f}{cells}")


if __name__ == "__main__":
    main()
