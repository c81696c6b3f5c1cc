"""Below the viewer: what a visitor can take away. The work is viz.share's; the handlers come from app.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from fresco.trace import Trace
from viz import film, share, story

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
LAYERS = [name for name in film.OVERLAYS if name != "none"]
# What the viewer shows: the run, its tau and NFE where several were recorded, and the step.
_SHOWN = """(...given) => {
  const s = document.querySelector('#viewer .fv-root')?.frescoViewer?.state() ?? {};
  const shown = { run: s.run ?? '', tau: s.tau ?? null, nfe: s.nfe ?? null, step: s.step ?? 0 };
  return [...given.slice(0, -1), JSON.stringify(shown)];
}"""

Find = Callable[[str], tuple[list[Trace], int]]


@dataclass(frozen=True)
class Sharing:
    """The components: what to export, the buttons, what comes of it."""

    kind: Any
    layers: Any
    taught: Any
    start: Any
    cancel: Any
    status: Any
    file: Any
    cite: Any
    line: Any
    shown: Any


def shelf(message: str) -> Any:
    """Place the gallery. A choice sends `select` with {slug}, "Take these settings" with {query}."""
    return gr.HTML(value=message, **story.GALLERY, elem_id="gallery")


def lesson(message: str) -> Any:
    """Place the lesson."""
    return gr.HTML(value=message, **story.LESSON, elem_id="lesson", visible=bool(message))


def place() -> Sharing:
    """Place the exports."""
    with gr.Accordion("Export: film, figure, trace, page, citation", open=False, elem_id="exports"):
        with gr.Row(equal_height=True):
            kind = gr.Dropdown(list(share.KINDS), value=share.KINDS[0], label="What", elem_id="export-kind", scale=2)
            layers = gr.CheckboxGroup(
                LAYERS, value=["variance"], label="Layers beside the sketch (films, stills)", elem_id="export-layers", scale=3
            )
        taught = gr.Checkbox(False, label="Put the lesson into the page", elem_id="export-lesson")
        with gr.Row():
            start = gr.Button("Export", elem_id="export", min_width=120)
            cancel = gr.Button("Cancel", elem_id="export-cancel", min_width=120)
            cite = gr.Button("Cite this run", elem_id="cite", min_width=120)
        status = gr.Markdown("", elem_id="export-status")
        file = gr.File(label="The file", visible=False, interactive=False, elem_id="export-file")
        line = gr.Textbox(label="Citation", visible=False, lines=3, buttons=["copy"], interactive=False, elem_id="citation")
    shown = gr.Textbox(visible=False)
    return Sharing(kind, layers, taught, start, cancel, status, file, cite, line, shown)


def wire(
    at: Sharing, find: Find, guard: Callable[[], AbstractContextManager[None]], address: Callable[[gr.Request], str]
) -> None:
    """Connect the exports.

    Args:
        at: what `place` returned.
        find: from what the viewer shows, as JSON, to (the run's traces with its reference second, step).
        guard: turns errors into sentences. address: the page's own, for the citation.
    """

    def export(kind: str, layers: Sequence[str], taught: bool, shown: str) -> Iterator[tuple[Any, Any]]:
        with guard():
            traces, step = find(shown)
            folder = Path(tempfile.mkdtemp(prefix="fresco-"))
            made = ""
            for part, made in share.write(kind, folder, traces, step=step, layers=layers or "none", with_lesson=taught):
                words = made if part < 1 else f"{Path(made).name}, {Path(made).stat().st_size / 1e6:.2f} MB"
                yield f"{'Done' if part == 1 else f'{100 * part:.0f} %'}: {words}", gr.skip()
            yield gr.skip(), gr.update(value=made, visible=True)

    def cite(shown: str, request: gr.Request) -> Any:
        with guard():
            traces, _ = find(shown)
            return gr.update(
                value=share.cite(traces[0], traces[1] if len(traces) > 1 else None, address(request)), visible=True
            )

    inputs = [at.kind, at.layers, at.taught, at.shown]
    going = at.start.click(export, inputs, [at.status, at.file], js=_SHOWN, concurrency_limit=2, **PRIVATE)
    at.cancel.click(lambda: "Cancelled; nothing was written.", None, at.status, cancels=[going], queue=False, **PRIVATE)
    at.cite.click(cite, at.shown, at.line, js=_SHOWN, **PRIVATE)
