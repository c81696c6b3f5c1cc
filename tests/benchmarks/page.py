"""What the page costs a visitor: bytes and script time of a streamed step, seconds to the first picture. Run by hand.

    OMP_WAIT_POLICY=PASSIVE python -m tests.benchmarks.page

Starts `python app.py` itself, opens the page in a fresh Chromium and counts by the DevTools protocol: the time from the start
of the process to the first drawn frame of the recorded run; then, of live runs, the bytes that arrive and the milliseconds of
script, layout and style per streamed step; then the same while the finished run is scrubbed.
"""

from __future__ import annotations

import argparse
import shutil
import time
from urllib.parse import urlencode

from playwright.sync_api import CDPSession, Page, sync_playwright

from tests.browser.conftest import FLAGS, PATIENCE, ROOT
from tests.smoke import free_port, start

# Something other than one colour on the first canvas: a frame has been painted, not only received.
PAINTED = """(() => {
  const canvas = document.querySelector('#viewer .fv-canvas');
  if (!canvas || canvas.width < 20) return false;
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return data.some((value, k) => value !== data[k % 4]);
})()"""
TIMES = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration", "TaskDuration")


class Meter:
    """Bytes received and main-thread seconds since the last reading."""

    def __init__(self, session: CDPSession) -> None:
        self.session, self.bytes = session, 0
        session.send("Performance.enable")
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


def until(page: Page, condition: str) -> None:
    page.wait_for_function(f"(() => {{ const d = {ROOT}?.dataset; return d && ({condition}); }})()", timeout=PATIENCE)


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
            query = {"nfe": args.nfe, "reference": "same NFE", "prompt": "red apple, noto style, on blue"}
            page.goto(f"http://127.0.0.1:{port}/?{urlencode(query)}", timeout=PATIENCE)
            page.wait_for_function(PAINTED, timeout=PATIENCE, polling=20)
            painted = time.perf_counter() - begin
            page.locator(".fv-play").click()
            meter, rows = Meter(page.context.new_cdp_session(page)), []
            for run in range(args.runs + 1):
                before = page.evaluate(f"{ROOT}.dataset.run")
                meter.read()
                page.click("button#run")
                until(page, f"d.run !== '{before}' && +d.frames === {args.nfe} && +d['framesRef'] === {args.nfe}")
                page.get_by_text("Done. Drag the timeline").wait_for(timeout=PATIENCE)
                if run:  # the first also loads and warms the model
                    rows.append(meter.read())
            steps = 2 * args.nfe
            page.locator(".fv-line").focus()
            page.keyboard.press("Home")
            meter.read()
            for step in range(1, args.nfe):
                page.keyboard.press("ArrowRight")
                until(page, f"+d.step >= {min(step, args.nfe - 1)}")
            scrub = meter.read()
        finally:
            app.terminate()
            app.wait(timeout=30)
        browser.close()
    print(f"python app.py until it answers  {answered:7.1f} s")
    print(f"until a recorded frame is drawn {painted:7.1f} s")
    print(f"{'':32}{'kB':>8}{'script':>9}{'layout':>9}{'style':>9}{'main thread':>13}   (ms)")
    for name, (received, spent), count in [*((f"live run {k + 1}, per step", r, steps) for k, r in enumerate(rows)),
                                           ("scrubbing, per step", scrub, args.nfe - 1)]:  # fmt: skip
        cells = "".join(f"{spent[t] / count:{width}.1f}" for t, width in zip(TIMES, (9, 9, 9, 13), strict=True))
        print(f"{name:32}{received / count / 1000:8.1f}{cells}")


if __name__ == "__main__":
    main()
