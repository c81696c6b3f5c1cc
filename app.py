"""The page: wires controls to the sampler and the sampler to the viewer. Run with `python app.py`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a busy neighbour costs 10x otherwise
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import argparse
import contextlib
import functools
import json
import logging
import math
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from fresco.config import EXPANSIONS, NOISES, REFERENCES, SELECTIONS, SIGNALS, TRANSITIONS, ConfigError, FrescoConfig
from fresco.errors import FrescoError
from fresco.grid import FRAMES
from fresco.schedule import default_split
from viz import bundle, frame, link
from viz.page import ABOUT, CSS, HELP, JS, LABELS, VIEWER

TRACES = Path(__file__).parent / "assets" / "traces"
FLUX = tuple(n for n in ("flux-dev", "flux-schnell", "flux-lite") if os.environ.get("FRESCO_" + n.upper().replace("-", "_")))
MODELS = ("sinopia", "oracle", *FLUX)
EXAMPLES = json.loads((TRACES.parent / "examples.json").read_text(encoding="utf-8"))
LIMITS: dict[str, tuple[float, float]] = {"nfe": (4, 50), "window": (2, 12), "levels": (1, 2), "detail_gain": (0, 1)}
SPLITS = json.dumps({nfe: default_split(nfe) for nfe in range(4, 51)})
CHECKS = ("every", "1", "2", "3")
TAU = 0.004
PRESETS = {"recommended": FrescoConfig.recommended(tau=TAU), "paper": FrescoConfig.paper()}
# The visitor's own fonts: nothing to load, and bold text in the same face as the rest.
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
# The controls that are a setting of FrescoConfig by name; the order of all inputs is CONTROLS.
CHOICES = ("transition", "noise", "signal", "selection", "expansion", "frame", "levels", "detail_gain", "guidance")
CONTROLS = (
    "prompt", "seed", "model", "drive", "tau", "ratio", "nfe", "low", "mixed", "full", "window", "checks", *CHOICES,
    "reference", "preview_every",
)  # fmt: skip
OPTIONS: dict[str, Any] = {"device": "auto", "dtype": None}
RUNS: OrderedDict[str, dict[int, frame.Track]] = OrderedDict()  # frames of the newest runs, for holes in a stream
LOCK = threading.Lock()
LOG = logging.getLogger("fresco")


@functools.cache
def references() -> Any:
    from fresco.record import References

    return References()


@functools.cache
def recorded() -> dict[str, dict[str, Any]]:
    """Return what is known of each recorded run, in the order of the examples."""
    found = bundle.listing(TRACES)
    return {slug: found[slug] for slug in EXAMPLES["recorded"] if slug in found}


@functools.lru_cache(maxsize=1 if FLUX else 2)  # two of FLUX would not fit
def _load(name: str) -> Any:
    from fresco.backends import load_model

    return load_model(name, **OPTIONS)


def load(name: str) -> Any:
    """Return the model, loaded once: it is loaded in the background while the page already plays a recorded run."""
    with LOCK:
        return _load(name)


def configuration(values: dict[str, Any]) -> FrescoConfig:
    """Return the settings that the controls show."""
    drive = values["drive"]
    checks = values["checks"] if values["checks"] == "every" else int(values["checks"])
    return FrescoConfig(
        nfe=values["nfe"], stages=(values["low"], values["mixed"], values["full"]), window=values["window"],
        checks=checks, seed=values["seed"], **{drive: values[drive]}, **{name: values[name] for name in CHOICES},
    )  # fmt: skip


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Let our own errors reach the page as their sentence; anything else may tell of paths, so it only says it happened."""
    try:
        yield
    except FrescoError as error:
        raise gr.Error(f"{error}", print_exception=False) from error
    except (gr.Error, GeneratorExit):
        raise
    except Exception as error:
        LOG.exception("a request failed")
        said = "The run failed in a way we did not foresee; the server goes on, and its log says more. Try other settings."
        raise gr.Error(said, print_exception=False) from error


def click_run(*inputs: Any) -> Iterator[str]:
    """Run what the controls show."""
    values = dict(zip(CONTROLS, inputs, strict=True))
    with sentences():
        yield from stream(configuration(values), **{name: values[name] for name in link.OWN})


def run(
    prompt: str, seed: int = 0, tau: float = TAU, nfe: int = 18, model: str = "sinopia",
    reference: Literal["full at 50", "same NFE", "same FLOPs", "none"] = "full at 50", settings: str = "{}",
) -> Iterator[str]:  # fmt: skip
    """Make a picture with Fresco and, beside it, the full-resolution reference of the same seed; stream every step.

    Each message is a JSON string: {"type": "frame", ...} per model call, then {"type": "done", ...} with the summary of
    both runs: cost in FLOPs and seconds, speed-ups, PSNR and SSIM to the reference, and the pictures as WebP data URIs.

    Args:
        prompt: What the picture should show.
        seed: Seed of the noise field, 0 to 4294967295.
        tau: Variance at or below which a token counts as settled and is expanded to full resolution, above 0.
        nfe: Number of model calls, 4 to 50.
        model: Name of the model: sinopia or oracle, and what else the page offers.
        reference: Full-resolution run beside it.
        settings: JSON object with further settings of FrescoConfig by name; {"ratio": 0.4} replaces tau.
    """
    with sentences():
        try:
            more = json.loads(settings or "{}")
        except ValueError:
            raise ConfigError(f"settings is {settings[:60]!r}; it must be a JSON object such as {{}}") from None
        drive = {} if isinstance(more, dict) and more.get("ratio") is not None else {"tau": tau}
        base = PRESETS["recommended"].to_json() | {"tau": None, "nfe": nfe, "seed": seed} | drive
        config = FrescoConfig.from_json(base | more if isinstance(more, dict) else more)
        yield from stream(config, prompt=prompt, model=model, reference=reference, preview_every=1)


def stream(config: FrescoConfig, *, prompt: str, model: str, reference: str, preview_every: int) -> Iterator[str]:
    """Yield the viewer's messages of one comparison; closing it stops the run within a step."""
    from fresco.record import compare, full_step, provenance

    prompt = (prompt or "").strip()
    if not prompt:
        raise ConfigError("The prompt is empty; type what the picture should show, or take one of the examples")
    net = load(model)
    for hint in (getattr(net, "needs", None), getattr(net, "knows", lambda _: None)(prompt)):
        if hint:
            yield frame.note(hint)
    step, about = full_step(net, config), provenance(net)
    run_id = secrets.token_hex(4)
    tracks: dict[int, frame.Track] = {}
    with LOCK:
        RUNS[run_id] = tracks
        while len(RUNS) > 8:
            RUNS.popitem(last=False)
    for seen in compare(net, prompt, config, reference, references(), preview_every=preview_every):
        if seen.track not in tracks:
            label = "Fresco" if seen.track == 0 else f"Full resolution, {seen.config.nfe} steps"
            said = frame.meta(
                seen.config, prompt=prompt[:300], model=net.name, device=str(net.device), full_step=step,
                provenance=f"{about['weights']}; {about['dtype']} on {about['device']}",
            )  # fmt: skip
            tracks[seen.track] = frame.Track(run_id, seen.track, label, seen.config.nfe, said, full_step=step)
        yield tracks[seen.track].add(seen.event, psnr=seen.psnr, ssim=seen.ssim)
    names = {0: "fresco", 1: "reference"}
    yield frame.done(run_id, summary={names[k]: track.summary() for k, track in tracks.items()})


def backfill(wanted: list[Any]) -> list[str]:
    """Return the frames [run, track, [steps]] that a browser missed."""
    run_id, track, steps = wanted
    known = RUNS.get(str(run_id), {}).get(int(track))
    return [known.frames[int(i)] for i in steps if int(i) in known.frames] if known else []


def copy_link(*inputs: Any) -> str:
    """Return the query string of what the controls show."""
    values = dict(zip(CONTROLS, inputs, strict=True))
    try:
        return link.write(configuration(values), PRESETS["recommended"], **{name: values[name] for name in link.OWN})
    except FrescoError as error:
        raise gr.Error(f"This setting cannot be run, so it cannot be linked: {error}", print_exception=False) from error


def show(config: FrescoConfig, own: dict[str, Any]) -> list[Any]:
    """Return the value of every control for a configuration and the page's own settings."""
    low, mixed, full = config.split
    drive = "tau" if config.tau is not None else "ratio"
    values = {name: getattr(config, name) for name in (*CHOICES, "nfe", "seed", "window")} | {
        "drive": drive, "tau": config.tau or TAU, "ratio": 0.4 if config.ratio is None else config.ratio,
        "low": low, "mixed": mixed, "full": full, "checks": str(config.checks), **own,
    }  # fmt: skip
    return [values.get(name, gr.skip()) for name in CONTROLS]


def open_link(request: gr.Request) -> list[Any]:
    """Fill the controls from the address, and say what the viewer plays: the linked recorded run, or the first one."""
    query = dict(request.query_params) if request else {}
    allowed = {"model": MODELS, "reference": REFERENCES, "preview_every": tuple("0123456789")}
    config, own, notes = link.read(query, PRESETS["recommended"], allowed, LIMITS)
    same = [slug for slug, b in recorded().items() if b["prompt"] == own.get("prompt") and b["seed"] == config.seed]
    slug = same[0] if same else next(iter(recorded()), None)
    own.setdefault("prompt", recorded()[slug]["prompt"] if slug else "")
    if "prompt" in query and not same:
        notes.append("The link's settings are filled in. Press Run to make that run again; it opens at the linked step.")
    for sentence in notes:
        gr.Info(sentence)
    return [*show(config, own), round(math.log10(config.tau or TAU), 2), play(slug, bool(same) or "prompt" not in query), slug]


def play(slug: str | None, linked: bool = False) -> str:
    """Return the message that makes the viewer fetch a recorded prompt; `linked`: the address's step is of that one."""
    if slug is None:
        return frame.note("There is no recorded run here. Type a prompt and press Run.")
    path = (TRACES / f"{slug}.json").relative_to(TRACES.parents[1])
    return frame.bundle_url(f"/gradio_api/file={path}", linked)


def open_recorded(slug: str) -> tuple[str, str, int, str]:
    """Play a recorded run, and fill in what it was made from, so that Run makes it again."""
    known = recorded()[slug]
    return play(slug), known["prompt"], known["seed"], known["model"]


def take_tau(event: gr.EventData) -> tuple[str, float, float]:
    """Take over the tau that was dragged in the viewer's histogram."""
    tau = float(f"{float(event.tau):.3g}")
    return "tau", tau, math.log10(tau)


def page() -> gr.Blocks:
    """Build the page."""

    def told(name: str) -> dict[str, Any]:
        return {"label": LABELS.get(name, name.capitalize()), "info": HELP.get(name)}

    first = PRESETS["recommended"]
    with gr.Blocks(title="Fresco", analytics_enabled=False) as demo:
        gr.Markdown(ABOUT, elem_id="title")
        with gr.Row(elem_id="ask"):
            c = {"prompt": gr.Textbox(**told("prompt"), lines=1, scale=6, min_width=320, max_length=20_000, elem_id="prompt")}
            start = gr.Button("Run", variant="primary", scale=1, min_width=90, elem_id="run")
            stop = gr.Button("Stop", scale=1, min_width=90, elem_id="stop")
        with gr.Row():
            with gr.Column(min_width=300):
                gallery = gr.Radio(
                    [(b["prompt"].split(",")[0], slug) for slug, b in recorded().items()],
                    label="Recorded: no model needed", elem_id="gallery", visible=bool(recorded()),
                )  # fmt: skip
            with gr.Column(min_width=300):
                gr.Examples(
                    EXAMPLES["prompts"], c["prompt"], cache_examples=False, api_visibility="private",
                    label="Prompts to run live", elem_id="examples",
                )  # fmt: skip
        with gr.Row(elem_id="stage"):
            with gr.Column(scale=1, min_width=300, elem_id="controls"):
                with gr.Group():
                    c["drive"] = gr.Radio(["tau", "ratio"], value="tau", **told("drive"), elem_id="drive")
                    log_tau = gr.Slider(-6, 0, value=round(math.log10(TAU), 2), step=0.01, **told("log_tau"), elem_id="log-tau")
                    gr.HTML(html_template="", js_on_load=JS["fraction"], elem_id="fraction")
                    c["tau"] = gr.Number(value=TAU, **told("tau"), elem_id="tau")
                    c["ratio"] = gr.Slider(0, 1, value=0.4, step=0.01, **told("ratio"), visible=False, elem_id="ratio")
                    c["nfe"] = gr.Slider(*LIMITS["nfe"], value=first.nfe, step=1, **told("nfe"), elem_id="nfe")
                    with gr.Row():
                        for name, calls in zip(("low", "mixed", "full"), first.split, strict=True):
                            c[name] = gr.Number(
                                calls, label=name, precision=0, minimum=0, min_width=60, elem_id=name
                            )  # fmt: skip
                    c["reference"] = gr.Dropdown(REFERENCES, value=REFERENCES[0], **told("reference"), elem_id="reference")
                with gr.Group(), gr.Row():
                    c["seed"] = gr.Number(value=0, precision=0, minimum=0, scale=3, **told("seed"), elem_id="seed")
                    dice = gr.Button("New seed", scale=1, min_width=90, elem_id="dice")
                c["model"] = gr.Dropdown(MODELS, value=MODELS[0], **told("model"), elem_id="model")
                preset = gr.Radio(list(PRESETS), value="recommended", **told("preset"), elem_id="preset")
                with gr.Accordion("Advanced: how tokens are chosen, expanded and moved", open=False):
                    lists = {
                        "transition": TRANSITIONS, "noise": NOISES, "signal": SIGNALS, "selection": SELECTIONS,
                        "expansion": EXPANSIONS, "frame": FRAMES,
                    }  # fmt: skip
                    for name, names in lists.items():
                        c[name] = gr.Dropdown(names, value=getattr(first, name), **told(name), elem_id=name)
                    c["checks"] = gr.Radio(CHECKS, value=str(first.checks), **told("checks"), elem_id="checks")
                    c["window"] = gr.Slider(*LIMITS["window"], value=first.window, step=1, **told("window"), elem_id="window")
                    c["levels"] = gr.Radio([1, 2], value=first.levels, **told("levels"), elem_id="levels")
                    c["detail_gain"] = gr.Slider(
                        *LIMITS["detail_gain"], value=0, step=0.01, **told("detail_gain"), elem_id="detail-gain"
                    )
                    c["guidance"] = gr.Number(value=None, **told("guidance"), elem_id="guidance")
                    c["preview_every"] = gr.Slider(0, 9, value=1, step=1, **told("preview_every"), elem_id="preview-every")
            with gr.Column(scale=3):
                viewer = gr.HTML(value="", **VIEWER, server_functions=[backfill], elem_id="viewer")
                with gr.Row():
                    share = gr.Button("Copy link", scale=1, min_width=120, elem_id="share")
                    address = gr.Textbox(show_label=False, container=False, scale=4, interactive=False, elem_id="address",
                                         placeholder="The link holds every setting, the step and the token.")  # fmt: skip
                query, space = gr.Textbox(visible=False), gr.Textbox(os.environ.get("SPACE_ID", ""), visible=False)

        inputs = [c[name] for name in CONTROLS]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        gpu: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "gpu"}
        running = gr.on([start.click, c["prompt"].submit], click_run, inputs, viewer, **gpu, **private)
        # Nothing recorded is shown any more, so that each recorded run can be chosen again.
        gr.on([start.click, c["prompt"].submit], None, None, gallery, js="() => null")
        gr.api(run, api_name="run", **gpu)
        stop.click(lambda: frame.done("", stopped=True), None, viewer, cancels=[running], queue=False, **private)
        demo.load(open_link, None, [*inputs, log_tau, viewer, gallery], **private)
        gallery.input(open_recorded, gallery, [viewer, c["prompt"], c["seed"], c["model"]], **private)
        viewer.select(take_tau, None, [c["drive"], c["tau"], log_tau], **private)
        preset.input(lambda name: show(PRESETS[name], {})[3:], preset, inputs[3:], **private)
        # In the browser, so that Run pressed right after a change already has all of it.
        c["nfe"].input(None, c["nfe"], [c["low"], c["mixed"], c["full"]], js=JS["split"].replace("SPLITS", SPLITS))
        # What cannot go together is changed along: only variance rules know a tau, only carry promotes at every step.
        c["selection"].input(lambda s: "tau" if s.startswith("variance") else "ratio", c["selection"], c["drive"], **private)
        c["transition"].input(lambda t: "every" if t == "carry" else "1", c["transition"], c["checks"], **private)
        for name in ("low", "mixed", "full"):
            c[name].input(None, [c["low"], c["mixed"], c["full"]], c["nfe"], js=JS["sum"])
        c["drive"].change(
            lambda d: [gr.update(visible=d == "tau"), gr.update(visible=d == "tau"), gr.update(visible=d == "ratio")],
            c["drive"], [log_tau, c["tau"], c["ratio"]], **private,
        )  # fmt: skip
        log_tau.input(None, log_tau, c["tau"], js=JS["log_to_tau"])
        log_tau.release(None, log_tau, None, js=JS["tau_release"])
        c["tau"].input(None, c["tau"], log_tau, js=JS["tau_to_log"])
        dice.click(None, None, c["seed"], js=JS["dice"])
        share.click(copy_link, inputs, query, **private).then(None, [query, space], address, js=JS["copy_link"])
    return demo


def main() -> None:
    """Serve the page."""
    parser = argparse.ArgumentParser(description="The Fresco page.")
    parser.add_argument("--device", default="auto", help="cuda, cpu or auto: CUDA when there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="the model's own by default")
    parser.add_argument("--host", default=None, help="address to listen on; 0.0.0.0 for everybody")
    parser.add_argument("--port", type=int, default=None)
    args = parser.parse_args()
    OPTIONS.update(device=args.device, dtype=args.dtype)
    os.chdir(TRACES.parents[1])  # files are served by their path from here
    gr.set_static_paths([TRACES])
    threading.Thread(target=load, args=(MODELS[0],), daemon=True).start()
    page().queue(max_size=32).launch(
        server_name=args.host, server_port=args.port, theme=THEME, css_paths=[CSS], head=JS["head"], show_error=False,
        ssr_mode=False, run_history=False, mcp_server=True, footer_links=["api", "settings"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
