"""Start the app as a person would and fetch one run through its API. Run by `.ci/run`: `python tests/smoke.py`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from gradio_client import Client

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(port: int, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `python app.py` and return once it answers."""
    app = subprocess.Popen([sys.executable, "app.py", "--port", str(port), *arguments], cwd=ROOT)
    until = time.monotonic() + 180
    while time.monotonic() < until and app.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            return app
        except (URLError, OSError):
            time.sleep(0.25)
    app.kill()
    raise RuntimeError("app.py did not answer within three minutes")


def main() -> None:
    """Fetch a run and check what came."""
    port = free_port()
    app = start(port)
    try:
        client = Client(f"http://127.0.0.1:{port}/", verbose=False)
        job = client.submit("red apple, noto style, on blue", nfe=6, reference="same NFE", api_name="/run")
        messages = [json.loads(message) for message in job]
    finally:
        app.terminate()
        app.wait(timeout=30)
    frames = [m for m in messages if m["type"] == "frame"]
    steps = {track: sorted({f["i"] for f in frames if f["track"] == track}) for track in (0, 1)}
    done = messages[-1]
    assert steps == {0: list(range(6)), 1: list(range(6))}, steps
    assert done["type"] == "done", done
    assert done["fresco"]["flops"] < done["reference"]["flops"], done
    assert done["fresco"]["psnr"] > 5, done["fresco"]["psnr"]
    print(f"{len(frames)} frames; {done['fresco']['speedup_flops']['same_nfe']:.2f}x fewer FLOPs at the same NFE")


if __name__ == "__main__":
    main()
