"""The main page: prompt, controls, tabs and the viewer. What needs a model is wired by app.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from fresco.config import EXPANSIONS, NOISES, POSITIONS, REFERENCES, SELECTIONS, SIGNALS, TRANSITIONS
from viz import mount
from viz.page import share
from viz.page.controls import CHECKS, CONTROLS, LANDS, LIMITS, PRESETS, SPLITS, TAU, sizes
from viz.page.words import ABOUT, HELP, JS, LABELS, TABS

# The visitor's own fonts: nothing to load, and bold text in the same face as the rest.
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]).set(
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",  # the stock greys are too pale to read
)
# Progress is shown nowhere; naming no place for it also keeps Gradio from updating every control at every streamed step.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "show_progress_on": []}


@dataclass(frozen=True)
class Studio:
    """The components that app.py connects.

    Attributes:
        controls: by name, in the order of CONTROLS. log_tau, preset: beside them.
        start, stop, gallery, viewer, tabs: as on the page. run: id of the run that the browser listens to.
        share, query, space, address: the link's button, its query string, the Space's name and the whole address.
        sharing: the exports. hardware: says what the page runs on.
    """

    controls: dict[str, Any]
    log_tau: Any
    preset: Any
    start: Any
    stop: Any
    run: Any
    gallery: Any
    viewer: Any
    tabs: Any
    share: Any
    query: Any
    space: Any
    address: Any
    sharing: share.Sharing
    hardware: Any

    @property
    def inputs(self) -> list[Any]:
        """Return all controls in their order."""
        return [self.controls[name] for name in CONTROLS]


def told(name: str) -> dict[str, Any]:
    """Return a control's label and its one sentence."""
    return {"label": LABELS.get(name, name.capitalize()), "info": HELP.get(name)}


def place(
    models: Sequence[str], prompt: str, shelf: str, taught: str, prompts: Sequence[str], space: str,
    backfill: Callable[[list[Any]], list[str]], lab: Callable[[], None],
) -> Studio:  # fmt: skip
    """Place the main page and connect what the browser does alone.

    Args:
        models: names to choose from. prompt: what stands in its field at first. prompts: examples to run live.
        shelf, taught: messages of the gallery and the lesson.
        space: name of the Hugging Face Space, or "".
        backfill: returns the viewer's missing steps.
        lab: places the tabs beside "Watch".
    """
    gr.Markdown(ABOUT, elem_id="title")
    c: dict[str, Any] = {}
    with gr.Row(elem_id="ask"):
        c["prompt"] = gr.Textbox(
            prompt, **told("prompt"), lines=1, scale=6, min_width=320, max_length=20_000, elem_id="prompt"
        )  # fmt: skip
        start = gr.Button("Run", variant="primary", scale=1, min_width=90, elem_id="run")
        stop = gr.Button("Stop", scale=1, min_width=90, elem_id="stop")
    with gr.Row(elem_id="stage"):
        with gr.Column(scale=1, min_width=300, elem_id="controls"):
            log_tau, preset = _controls(c, models)
            hardware = gr.Markdown("", elem_id="hardware")
        with gr.Column(scale=3):
            with gr.Tabs(selected="watch", elem_id="tabs") as tabs:
                with gr.Tab(TABS["watch"], id="watch", elem_id="tab-watch") as watch:
                    gallery = share.shelf(shelf)
                lab()
            with gr.Column(elem_id="watch"):
                share.lesson(taught)
                viewer = gr.HTML(value="", **mount.WIDGET, server_functions=[backfill], elem_id="viewer")
                with gr.Row():
                    copy = gr.Button("Copy link", scale=1, min_width=120, elem_id="share")
                    address = gr.Textbox(show_label=False, container=False, scale=4, interactive=False, elem_id="address",
                                         placeholder="The link holds every setting, the step and the token.")  # fmt: skip
                sharing = share.place()
                gr.Examples(
                    list(prompts), c["prompt"], cache_examples=False, api_visibility="private",
                    label="Prompts to run live", elem_id="examples",
                )  # fmt: skip
    watch.select(None, None, None, js=JS["tab"].replace("TAB", "watch"))
    run, query, where = gr.Textbox(visible=False), gr.Textbox(visible=False), gr.Textbox(space, visible=False)
    return Studio(c, log_tau, preset, start, stop, run, gallery, viewer, tabs, copy, query, where, address, sharing, hardware)


def _controls(c: dict[str, Any], models: Sequence[str]) -> tuple[Any, Any]:
    """Place the controls into `c`, and let those that belong together move together; return log tau and the preset."""
    first = PRESETS["recommended"]
    with gr.Group():
        c["drive"] = gr.Radio(["tau", "ratio"], value="tau", **told("drive"), elem_id="drive")
        log_tau = gr.Slider(-6, 0, value=round(math.log10(TAU), 2), step=0.01, **told("log_tau"), elem_id="log-tau")
        gr.HTML(html_template="", js_on_load=JS["fraction"], elem_id="fraction", min_height=64)  # of two lines
        c["tau"] = gr.Number(value=TAU, **told("tau"), elem_id="tau")
        c["ratio"] = gr.Slider(0, 1, value=0.4, step=0.01, **told("ratio"), visible=False, elem_id="ratio")
        c["nfe"] = gr.Slider(*LIMITS["nfe"], value=first.nfe, step=1, **told("nfe"), elem_id="nfe")
        with gr.Row():
            for name, calls in zip(("low", "mixed", "full"), first.split, strict=True):
                c[name] = gr.Number(calls, label=name, precision=0, minimum=0, min_width=60, elem_id=name)
        c["reference"] = gr.Dropdown(REFERENCES, value=REFERENCES[0], **told("reference"), elem_id="reference")
    with gr.Group(), gr.Row():
        c["seed"] = gr.Number(value=0, precision=0, minimum=0, scale=3, **told("seed"), elem_id="seed")
        dice = gr.Button("New seed", scale=1, min_width=90, elem_id="dice")
    c["model"] = gr.Dropdown(list(models), value=models[0], **told("model"), elem_id="model")
    preset = gr.Radio(list(PRESETS), value="recommended", **told("preset"), elem_id="preset")
    with gr.Accordion("Advanced: how tokens are chosen, expanded and moved", open=False, elem_id="advanced"):
        lists: Mapping[str, Sequence[str]] = {
            "transition": TRANSITIONS, "noise": NOISES, "signal": SIGNALS, "selection": SELECTIONS,
            "expansion": EXPANSIONS, "frame": POSITIONS,
        }  # fmt: skip
        for name, names in lists.items():
            c[name] = gr.Dropdown(names, value=getattr(first, name), **told(name), elem_id=name)
            if name == "transition":
                c["landing"] = gr.Number(first.landing, minimum=2, maximum=100, **told("landing"), elem_id="landing")
        c["size"] = gr.Dropdown(sizes(models[0]), value="", allow_custom_value=True, **told("size"), elem_id="size")
        c["checks"] = gr.Radio(CHECKS, value=str(first.checks), **told("checks"), elem_id="checks")
        c["window"] = gr.Slider(*LIMITS["window"], value=first.window, step=1, **told("window"), elem_id="window")
        c["levels"] = gr.Radio([1, 2], value=first.levels, **told("levels"), elem_id="levels")
        gain = told("detail_gain") | {"elem_id": "detail-gain"}
        c["detail_gain"] = gr.Slider(*LIMITS["detail_gain"], value=0, step=0.01, **gain)
        c["guidance"] = gr.Number(value=None, **told("guidance"), elem_id="guidance")
        c["head"] = gr.Number(0, precision=0, minimum=0, **told("head"), elem_id="head")
        c["preview_every"] = gr.Slider(0, 9, value=1, step=1, **told("preview_every"), elem_id="preview-every")

    # In the browser, so that Run pressed right after a change already has all of it.
    split = JS["split"].replace("SPLITS", SPLITS)
    gr.on([c["nfe"].input, c["head"].input], None, [c["nfe"], c["head"]], [c["low"], c["mixed"], c["full"]], js=split)
    for name in ("low", "mixed", "full"):
        c[name].input(None, [c["low"], c["mixed"], c["full"], c["head"]], c["nfe"], js=JS["sum"])
    # What cannot go together is changed along: only variance rules know a tau, only carry promotes at every step and
    # rewind but once, only some transitions land elsewhere; a size is one model's.
    c["selection"].input(lambda s: "tau" if s.startswith("variance") else "ratio", c["selection"], c["drive"], **PRIVATE)
    c["transition"].input(
        lambda t: [{"carry": "every", "renoise": "3"}.get(t, "1"), gr.skip() if t in LANDS else 2],
        c["transition"], [c["checks"], c["landing"]], **PRIVATE,
    )  # fmt: skip
    c["model"].input(lambda: "", None, c["size"], **PRIVATE)
    c["model"].change(lambda name: gr.update(choices=sizes(name)), c["model"], c["size"], **PRIVATE)
    c["drive"].change(
        lambda d: [gr.update(visible=d == "tau"), gr.update(visible=d == "tau"), gr.update(visible=d == "ratio")],
        c["drive"], [log_tau, c["tau"], c["ratio"]], **PRIVATE,
    )  # fmt: skip
    log_tau.input(None, log_tau, c["tau"], js=JS["log_to_tau"])
    log_tau.release(None, log_tau, None, js=JS["tau_release"])
    c["tau"].input(None, c["tau"], log_tau, js=JS["tau_to_log"])
    dice.click(None, None, c["seed"], js=JS["dice"])
    return log_tau, preset
