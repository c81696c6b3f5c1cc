"""The README's own examples for programs, run as they stand there against a running page; only the port is another.

Python and curl are here anyway. JavaScript needs node and, from the npm registry or npm's cache, the package @gradio/client.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:7860"  # python app.py
CLIENT = "@gradio/client@2.7.0"


def blocks(language: str, word: str) -> list[str]:
    """Return the README's code blocks of a language that hold a word."""
    return [code for code in re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S) if word in code]


def is_trace(text: str) -> bool:
    """Whether a text is a whole trace of the gallery's run: its format, its prompt, each step."""
    said = json.loads(text)
    return (said["format"], said["prompt"], len(said["events"])) == ("fresco-trace-json", "anchor, noto style, on white", 18)


def run_messages(texts: list[str]) -> None:
    """Check the messages of /run as they came: every step of the run, then its summary."""
    said = [json.loads(text) for text in dict.fromkeys(texts)]  # JavaScript's client gives the last one twice
    assert {m["type"] for m in said[:-1]} <= {"frame", "note"}
    # In order; the last step comes once more, with its likeness to the reference that was not there before.
    assert list(dict.fromkeys(m["i"] for m in said if m["type"] == "frame" and m["track"] == 0)) == list(range(18))
    assert said[-1]["type"] == "done"
    assert said[-1]["fresco"]["settings"]["prompt"] == "tiger face"


def sweep_messages(texts: list[str]) -> None:
    """Check the messages of /sweep: two cells, full resolution, and which of the cells none beats."""
    said = [json.loads(text) for text in dict.fromkeys(texts)]
    assert [m["type"] for m in said] == ["cell", "cell", "curve", "done"]
    assert [m["config"]["nfe"] for m in said[:3]] == [6, 8, 4]
    assert set(said[-1]["front"]) <= {m["key"] for m in said[:2]}


def test_the_python_example_runs(server):
    (code,) = blocks("python", "gradio_client")
    code = code.replace(ADDRESS, server.rstrip("/"))
    assert server.rstrip("/") in code
    assert code.count("\n    ...\n") == 1  # what the reader puts there: here, to keep each message
    kept: list[str] = []
    made: dict[str, object] = {"kept": kept}
    exec(code.replace("\n    ...\n", "\n    kept.append(message)\n"), made)
    run_messages(kept)
    assert is_trace(str(made["trace"]))
    sweep_messages(list(made["cells"]))


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """Return a folder in which node finds @gradio/client."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("there is no node with npm on the PATH, so the README's JavaScript is not run")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text("{}", encoding="utf-8")
    wanted = ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0", CLIENT]
    got = subprocess.run(wanted, cwd=folder, capture_output=True, text=True, timeout=180)
    if got.returncode:
        pytest.skip(f"npm could not get {CLIENT}, so the README's JavaScript is not run: {got.stderr.strip()[-200:]}")
    return folder


def test_the_javascript_example_runs(server, node):
    (code,) = blocks("js", "@gradio/client")
    assert code.count("console.log(message)") == 1
    code = code.replace(ADDRESS, server.rstrip("/")).replace("console.log(message)", "got.push(...message.data)")
    assert code.count("process.exit();") == 1
    keep = "writeFileSync('got.json', JSON.stringify([got, trace.data[0], cells.map((m) => m.data[0])]));\nprocess.exit();"
    file = node / "example.mjs"
    file.write_text(
        "import { writeFileSync } from 'node:fs';\nconst got = [];\n" + code.replace("process.exit();", keep), "utf-8"
    )
    ran = subprocess.run(["node", file.name], cwd=node, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stderr
    messages, trace, cells = json.loads((node / "got.json").read_text("utf-8"))
    run_messages(messages)
    assert is_trace(trace)
    sweep_messages(cells)


def test_the_curl_example_runs(server):
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on the PATH")
    (code,) = blocks("sh", "curl")
    lines = [line for line in code.replace(ADDRESS, server.rstrip("/")).splitlines() if line]
    assert len(lines) % 2 == 0  # one that asks, one that reads the answer
    for ask, read in zip(lines[::2], lines[1::2], strict=True):
        event = json.loads(shell(ask))["event_id"]
        said = shell(read.replace("EVENT_ID", event)).strip().split("\n\n")
        kind, data = said[-1].split("\n")
        assert kind == "event: complete"
        name = re.search(r"/call/(\w+)", ask)[1]
        if name == "trace":
            assert is_trace(json.loads(data.removeprefix("data: "))[0])
        else:  # of a stream, every message comes before, as its own event
            assert {s.split("\n")[0] for s in said[:-1]} <= {"event: generating", "event: heartbeat"}
            texts = [s.split("\n")[1].removeprefix("data: ") for s in said[:-1] if s.startswith("event: generating")]
            sweep_messages([json.loads(text)[0] for text in texts])


def shell(line: str) -> str:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout
