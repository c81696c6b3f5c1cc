"""The viewer in a Gradio page: a component whose script is in the page already, and a first picture before Gradio is there.

Gradio compiles a component's templates again, and copies all of its properties twice, at every new value: with the viewer's
template, style and script among them that is most of what a streamed step costs. So the component holds one line, and
the viewer stands in the page itself, where `FirstPaint` puts it: Gradio's own `head` is added only once its scripts are there.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent / "viewer"
WIDGET = {
    "html_template": "<div></div>",
    "css_template": "",
    "js_on_load": "window.frescoMount(element, trigger, props, server, upload, watch);",
}
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


def script(runs: Sequence[dict[str, Any]]) -> str:
    """Return the <script> that defines the viewer and the live run, and plays a recorded one until the page's own takes over.

    Args:
        runs: {"url", "prompt", "seed"} of the recorded prompts; the first plays where the address asks for none of them.
    """
    names = ("viewer.html", "viewer.css", "viewer.js", "live.js", "early.js")
    html, css, js, live, early = ((_HERE / name).read_text(encoding="utf-8") for name in names)
    return f"""<script>
window.frescoMount = function (element, trigger, props, server, upload, watch) {{
element.innerHTML = {_inline(html)};
document.head.append(Object.assign(document.createElement('style'),
  {{ textContent: '#' + element.id + ' {{' + {_inline(css)} + '}}' }}));
{js}
}};
{live}
((start, runs) => start(runs))({early}, {_inline(list(runs))});
</script>"""


def _inline(value: object) -> str:
    """Return JSON that cannot end the <script> it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


class FirstPaint:
    """ASGI middleware that puts a script into the page's head, before all others, and sends the page compressed.

    Only `GET /` is touched, and only where it answers with a whole HTML document.
    """

    def __init__(self, app: Callable[[_Message, _Receive, _Send], Awaitable[None]], script: str) -> None:
        self._app, self._script = app, script.encode()

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            await self._app(scope, receive, send)
            return
        packed = any(k == b"accept-encoding" and b"gzip" in v for k, v in scope["headers"])
        start: _Message = {}
        body = bytearray()

        async def collect(message: _Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    await self._answer(start, bytes(body), packed, send)
            else:
                await send(message)

        await self._app(scope, receive, collect)

    async def _answer(self, start: _Message, body: bytes, packed: bool, send: _Send) -> None:
        headers = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
        said = {k.lower(): v for k, v in headers}
        if said.get(b"content-type", b"").startswith(b"text/html") and b"content-encoding" not in said:
            body = body.replace(b"<head>", b"<head>" + self._script, 1)
            if packed:
                body = gzip.compress(body, 5)
                headers += [(b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
        await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})
