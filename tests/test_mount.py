"""The viewer in the page before Gradio: the document is the same but for one script, whole and correctly framed."""

import asyncio
import gzip
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from viz import mount

PAGE = b'<!doctype html><html><head><meta charset="utf-8"></head><body>\xc3\xa9 <head></body></html>'


def finish(coroutine):
    """Run a coroutine to its end, in a thread of its own: browser tests leave an event loop running in the main one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, coroutine).result()


def served(path="/", method="GET", body=PAGE, kind=b"text/html; charset=utf-8", encodings=b"gzip, br", more=()):
    """Return (headers, body) of a request through the middleware around an app that answers in three parts."""

    async def app(scope, receive, send):
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *more]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for at in range(0, len(body), 40):
            await send({"type": "http.response.body", "body": body[at : at + 40], "more_body": at + 40 < len(body)})

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"accept-encoding", encodings)] if encodings else []}
    finish(mount.FirstPaint(app, script="<script>1</script>")(scope, None, send))
    assert sent[0]["type"] == "http.response.start"
    whole = b"".join(m["body"] for m in sent[1:])
    headers = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    assert len(sent[0]["headers"]) == len(headers)  # no header twice
    assert int(headers["content-length"]) == len(whole)
    assert not sent[-1].get("more_body")
    return headers, whole


@pytest.mark.parametrize("encodings", [b"gzip, br", b"br", b""])
def test_the_script_comes_first_in_the_head_and_nothing_else_changes(encodings):
    headers, body = served(encodings=encodings)
    assert (headers.get("content-encoding") == "gzip") == (b"gzip" in encodings)
    plain = gzip.decompress(body) if "content-encoding" in headers else body
    assert plain == PAGE.replace(b"<head>", b"<head><script>1</script>", 1)


@pytest.mark.parametrize(
    "other",
    [
        {"path": "/config"},
        {"method": "POST"},
        {"kind": b"application/json"},
        {"more": ((b"content-encoding", b"br"),)},
    ],
)
def test_all_other_answers_pass_through(other):
    headers, body = served(**other)
    assert body == PAGE
    assert headers.get("content-encoding", "br") == "br"


def test_websockets_and_the_applications_start_are_left_alone():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    for kind in ("lifespan", "websocket"):
        finish(mount.FirstPaint(app, script="x")({"type": kind}, None, None))
    assert seen == ["lifespan", "websocket"]


def test_no_prompt_can_end_the_script():
    evil = "</script><img src=x onerror=alert(1)><!--"
    text = mount.script([{"url": "/a.json", "prompt": evil, "seed": 0}])
    assert text.count("</script") == 1
    assert "<!--" not in text
    given = re.search(r", (\[\{.*\}\])\);\n</script>$", text)
    assert json.loads(given[1]) == [{"url": "/a.json", "prompt": evil, "seed": 0}]
