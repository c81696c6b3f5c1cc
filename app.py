"""The page: wires controls to the sampler and the sampler to the viewer. Run with `python app.py`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a busy neighbour costs 10x otherwise
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import argparse
import contextlib
import functools
import importlib
import json
import logging
import math
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import gradio as gr
from starlette.middleware import Middleware

from fresco import hosting  # on ZeroGPU this must come before torch
from fresco.backends import BACKENDS, BUNDLED
from fresco.config import REFERENCES, ConfigError, FrescoConfig
from fresco.errors import FrescoError
from viz import bundle, frame, lesson, link, mount, share, story
from viz.page import lab, studio
from viz.page import recorded as tables
from viz.page import share as exports
from viz.page.controls import CONTROLS, LIMITS, PRESETS, TAU, configuration, fitting, named, show, size_of
from viz.page.relay import Relay
from viz.page.studio import PRIVATE, THEME
from viz.page.words import CSS, JS, LAB_TABS, TABS

TRACES = Path(__file__).parent / "assets" / "traces"
# Models of which this machine has a folder; on a hosted page, what its owner has named.
LARGE = tuple(n for n in BACKENDS if n not in BUNDLED and os.environ.get("FRESCO_" + re.sub(r"\W", "_", n.upper())))
MODELS = (*BUNDLED, *LARGE)
EXAMPLES = json.loads((TRACES.parent / "examples.json").read_text(encoding="utf-8"))
OPTIONS: dict[str, Any] = {"device": "auto", "dtype": None}
RELAY = Relay()  # frames of the newest runs, for holes in a stream
KEPT = share.Kept()  # their traces, for exports
LOCK = threading.Lock()
LOG = logging.getLogger("fresco")


@functools.cache
def references() -> Any:
    from fresco.record import References

    return References()


@functools.cache
def desk() -> Any:
    from fresco.lab.desk import Desk

    return Desk(references())


@functools.cache
def recorded() -> dict[str, dict[str, Any]]:
    """Return the recorded runs, in the order of the examples."""
    return story.recorded(TRACES, (*EXAMPLES["recorded"], *EXAMPLES["gallery"]))


def _load(name: str, **where: str) -> Any:
    from fresco.backends import load_model

    return load_model(name, **OPTIONS | where)


_small = functools.cache(_load)
_large = functools.lru_cache(maxsize=1)(_load)  # two would not fit; apart from the small ones, which must not push one out


def load(name: str) -> Any:
    """Return the model, loaded once: it is loaded in the background while the page already plays a recorded run."""
    with LOCK:
        return _small(name) if name in BUNDLED else _large(name)


def preload() -> None:
    """Load the first model; what is wrong with its files is told to whoever runs it."""
    with contextlib.suppress(FrescoError):
        load(MODELS[0])


def load_for_lab(name: str) -> Any:
    """Return the model that the lab runs: on ZeroGPU, which lends a GPU for one run at a time, a small one on the CPU."""
    if not hosting.on_zero():
        return load(name)
    if name not in BUNDLED:
        raise ConfigError(f"On this Space the lab runs on the CPU, where {name} is too slow; choose {' or '.join(BUNDLED)}")
    with LOCK:
        return _small(name, device="cpu")


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Let our own errors reach the page as their sentence; anything else may tell of paths, so it only says it happened."""
    try:
        yield
    except FrescoError as error:
        raise gr.Error(f"{error}", print_exception=False) from error
    except GeneratorExit:
        raise
    except gr.Error as error:  # ZeroGPU's own are such, too
        raise gr.Error(hosting.explain(error) or error.message, print_exception=False) from error
    except Exception as error:
        said = hosting.explain(error)
        if said is None:
            LOG.exception("a request failed")
            said = "The run failed in a way we did not foresee; the server goes on, and its log says more. Try other settings."
        raise gr.Error(said, print_exception=False) from error


def click_run(run: str, *inputs: Any) -> None:
    """Run what the controls show; the steps go to the browser through the relay, for as long as it listens."""
    opened = RELAY.open(run)

    def steps() -> Iterator[str]:
        values = named(inputs)
        yield from stream(configuration(values), opened, **{name: values[name] for name in link.OWN})

    with sentences():
        RELAY.send(opened[0], steps())


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
        config = from_names({"tau": tau, "nfe": nfe, "seed": seed}, settings)
        yield from stream(config, prompt=prompt, model=model, reference=reference, preview_every=1)


def asked(values: Mapping[str, Any], find: Callable[[str], Any] = load_for_lab) -> tuple[Any, str]:
    """Return the model and the prompt that somebody asked for."""
    prompt = (values["prompt"] or "").strip()
    if not prompt:
        raise ConfigError("The prompt is empty; type what the picture should show, or take one of the examples")
    return find(values["model"]), prompt


def hints(net: Any, prompt: str) -> Iterator[str]:
    """Yield what a person should know of this model and this prompt, as notes for the viewer."""
    for hint in (getattr(net, "needs", None), getattr(net, "knows", lambda _: None)(prompt)):
        if hint:
            yield frame.note(hint)


def track_of(run_id: str, track: int, label: str, net: Any, prompt: str, config: FrescoConfig) -> frame.Track:
    """Return a track that turns one run's events into the viewer's messages."""
    from fresco.record import full_step, provenance

    step, about = full_step(net, config), provenance(net)
    said = frame.meta(
        config, prompt=prompt[:300], model=net.name, device=str(net.device), full_step=step,
        provenance=f"{about['weights']}; {about['dtype']} on {about['device']}",
    )  # fmt: skip
    return frame.Track(run_id, track, label, config.nfe, said, full_step=step)


def keep(run_id: str, track: int, event: Any, net: Any, prompt: str, config: FrescoConfig) -> None:
    """Keep an event for exports and `/trace`."""
    from fresco.record import provenance
    from fresco.trace import Trace

    KEPT.add(run_id, track, event, lambda: Trace(prompt, config, net.name, "", provenance(net)))


@hosting.gpu(lambda model, prompt, config, reference, preview_every: hosting.seconds(
    hosting.run_flops(load(model), config, reference)
))  # fmt: skip
def compared(model: str, prompt: str, config: FrescoConfig, reference: str, preview_every: int) -> Iterator[Any]:
    """Yield what `fresco.record.compare` sees: NumPy arrays, so that they can come from the process that has the GPU."""
    from fresco.record import compare

    yield from compare(load(model), prompt, config, reference, references(), preview_every=preview_every)


def stream(
    config: FrescoConfig, opened: tuple[str, dict[int, frame.Track]] | None = None, *, prompt: str, model: str, reference: str,
    preview_every: int,
) -> Iterator[str]:  # fmt: skip
    """Yield the viewer's messages of one comparison; closing it stops the run within a step.

    Args:
        config: the run's settings. opened: its id and tracks, where the browser knows them already.
        prompt, model, reference, preview_every: as `run` takes them.
    """
    net, prompt = asked({"prompt": prompt, "model": model}, load)
    yield from hints(net, prompt)
    run_id, tracks = opened or RELAY.open()
    for seen in compared(model, prompt, config, reference, preview_every):
        if seen.track not in tracks:
            label = "Fresco" if seen.track == 0 else f"Full resolution, {seen.config.nfe} steps"
            tracks[seen.track] = track_of(run_id, seen.track, label, net, prompt, seen.config)
        keep(run_id, seen.track, seen.event, net, prompt, seen.config)
        yield tracks[seen.track].add(seen.event, psnr=seen.psnr, ssim=seen.ssim)
    names = {0: "fresco", 1: "reference"}
    yield frame.done(run_id, summary={names[k]: track.summary() for k, track in tracks.items()})


def race(values: Mapping[str, Any], chosen: Mapping[str, FrescoConfig | str]) -> Generator[str, None, None]:
    """Yield the viewer's messages of several runs of one seed, whichever has spent the fewest FLOPs going next.

    Where one of them is plain full resolution, each run's last step comes once more with its likeness to the longest such.

    Args:
        values: the controls. chosen: settings by label, or the name of a baseline at its published ones.
    """
    from fresco import record
    from fresco.baselines import find

    net, prompt = asked(values)
    yield from hints(net, prompt)
    run_id, tracks = RELAY.open()
    runs: list[tuple[Any, FrescoConfig]] = []
    same = {"seed": values["seed"], "guidance": values["guidance"], "size": size_of(values["size"])}
    for what in chosen.values():
        if isinstance(what, str):
            other = find(what)
            runs.append((other.model(net), other.on(net).replace(**same)))
        else:
            runs.append((net, what))
    for k, (label, (own, config)) in enumerate(zip(chosen, runs, strict=True)):
        tracks[k] = track_of(run_id, k, label, own, prompt, config)
    last: dict[int, Any] = {}
    streams = {k: references().record(own, prompt, config) if config.is_full else record.record(own, prompt, config)
               for k, (own, config) in enumerate(runs)}  # fmt: skip
    for k, event in record.race(streams):
        last[k] = event
        keep(run_id, k, event, runs[k][0], prompt, runs[k][1])
        yield tracks[k].add(event)
    whole = [k for k, (own, config) in enumerate(runs) if own is net and config.is_full]
    for k, event in last.items() if whole else ():
        full = max(whole, key=lambda k: runs[k][1].nfe)
        if k != full:
            psnr, ssim = record.likeness(event.preview, last[full].preview)
            yield tracks[k].add(event, psnr=psnr, ssim=ssim)
    yield frame.done(run_id)


def made_here(key: str) -> Any:
    """Return a finished run of the lab, its trace, and that of its reference where it is still known."""
    return desk().traces(load_for_lab(desk().model_of(key) or MODELS[0]), key)


def open_kept(key: str) -> str:
    """Return the viewer's message of a finished run of the lab, beside its reference where that is still known."""
    found, trace, reference = made_here(key)
    likeness = min(found.psnr, 99.0) if found.psnr is not None else None
    runs = [bundle.Recorded(trace, likeness, found.ssim)]
    others = [bundle.Recorded(reference)] if reference else []
    return json.dumps(bundle.build(key, runs, others, bundle.full_step([r.trace for r in [*others, *runs]])))


def sweep(
    prompt: str, axes: str = '{"tau": [0.002, 0.004, 0.008], "nfe": [6, 8, 11]}', seed: int = 0, model: str = "sinopia",
    curve: str = "[3, 4, 6, 8]", settings: str = "{}",
) -> Iterator[str]:  # fmt: skip
    """Run every combination of some settings on one prompt and seed, and full resolution at several step counts.

    Each message is a JSON string: {"type": "cell", ...} per finished run with its settings, cost in FLOPs, in full-resolution
    steps and seconds, PSNR and SSIM to the 50-step full-resolution picture of the same seed, and its picture as a WebP data
    URI; {"type": "curve", ...}, the same of full resolution; at the end {"type": "done", "front": [...]}, the keys of the
    cells that no other cell beats in both cost and PSNR. What has been run before is not run again.

    Args:
        prompt: What the pictures should show.
        axes: JSON object: names of FrescoConfig settings, each with a list of values; every combination is run, 64 at most.
        seed: Seed of the noise field, 0 to 4294967295.
        model: Name of the model: sinopia or oracle, and what else the page offers.
        curve: JSON list of step counts of full-resolution runs to compare with; [] for none.
        settings: JSON object with further settings of FrescoConfig by name, for all runs.
    """
    from viz import charts

    with sentences():
        config = from_names({"seed": seed}, settings)
        chosen, steps = read_json("axes", axes, dict), read_json("curve", curve, list)
        if not chosen or not all(isinstance(values, list) for values in chosen.values()):
            raise ConfigError(f"axes is {axes[:60]!r}; give each setting a list of at least one value")
        if math.prod(map(len, chosen.values())) > lab.MOST_CELLS:
            raise ConfigError(f"axes {axes[:60]!r} make more than {lab.MOST_CELLS} runs; take fewer values")
        points = []
        asking = {"prompt": prompt, "model": model}
        for found in desk().sweep(*asked(asking), fitting(config, chosen), chosen, steps):
            if lab.is_result(found):
                point = lab.point(found)
                kind = "curve" if found.config.is_full else "cell"
                points += [point] if kind == "cell" else []
                yield json.dumps({"type": kind, **found.to_json(), "picture": point["picture"]})
        yield json.dumps({"type": "done", "front": charts.front(points)})


def trace(run: str, track: int = 0, form: Literal["json", "npz"] = "json") -> str:
    """Return the trace of a finished run: every step's grid, variances, promotions, costs and pictures.

    The answer is a JSON string. As "json" it is the trace itself, {"format": "fresco-trace-json", "version": 1, "prompt",
    "config", "provenance", "events": [...]}; as "npz" it is {"name", "npz"}, the NumPy archive in base64.

    Args:
        run: Id of the run, as `run` in each message of /run, or recorded:KEY with the `key` of a message of /sweep, of both of
            which the newest are kept; or recorded:NAME for one of the gallery.
        track: 0 is the run itself, 1 and up are what it was compared with.
        form: json or npz.
    """
    with sentences():
        traces, _ = shown(json.dumps({"run": run}))
        if not 0 <= track < len(traces):
            raise ConfigError(f"track is {track}; this run has the tracks 0 to {len(traces) - 1}")
        return share.pack(traces[track], form)


def shown(viewer: str) -> tuple[list[Any], int]:
    """Return the traces of what the viewer shows, and the step: of a live run, or of a recorded one without any model."""
    s = json.loads(viewer)
    kind, _, slug = str(s["run"]).partition("recorded:")
    if kind == "" and slug in recorded():
        return share.from_bundle(recorded()[slug], s.get("tau"), s.get("nfe")), int(s.get("step", 0))
    if kind == "" and desk().model_of(slug):
        return [found for found in made_here(slug)[1:] if found], int(s.get("step", 0))
    return KEPT.find(str(s["run"])), int(s.get("step", 0))


def read_json(name: str, text: str, kind: type) -> Any:
    """Return a JSON argument of the API; an empty text is an empty one."""
    try:
        value = json.loads(text or kind().__repr__())
    except ValueError:
        value = None
    if not isinstance(value, kind):
        want = "object such as {}" if kind is dict else "list such as []"
        raise ConfigError(f"{name} is {text[:60]!r}; it must be a JSON {want}")
    return value


def from_names(given: dict[str, Any], settings: str) -> FrescoConfig:
    """Return the recommended configuration with settings by name; {"ratio": 0.4} replaces tau."""
    more = read_json("settings", settings, dict)
    drive = {"tau": None} if more.get("ratio") is not None else {}
    return FrescoConfig.from_json(PRESETS["recommended"].to_json() | given | drive | more)


def backfill(wanted: list[Any]) -> list[str]:
    """Return the frames [run, track, [steps]] that a browser missed."""
    return RELAY.backfill(wanted)


def copy_link(*inputs: Any) -> str:
    """Return the query string of what the controls show."""
    values = named(inputs)
    try:
        return link.write(configuration(values), PRESETS["recommended"], **{name: values[name] for name in link.OWN})
    except FrescoError as error:
        raise gr.Error(f"This setting cannot be run, so it cannot be linked: {error}", print_exception=False) from error


def first_prompt() -> str:
    """Return the prompt of the recorded run that opens first, or ""."""
    return str(next(iter(recorded().values()), {"prompt": ""})["prompt"])


def open_link(request: gr.Request) -> list[Any]:
    """Fill the controls from the address, and say what the viewer plays: the linked recorded run, or the first one.

    An address without settings changes no control: a person may have typed already.
    """
    query = dict(request.query_params) if request else {}
    if all(name.startswith("__") for name in query):  # Gradio's own: __theme, __sign
        return [*fill({}), gr.skip(), play(next(iter(recorded()), None), linked=True), gr.skip()]
    allowed = {"model": MODELS, "reference": REFERENCES, "preview_every": tuple("0123456789")}
    config, own, notes = link.read(query, PRESETS["recommended"], allowed, LIMITS)
    same = [slug for slug, b in recorded().items() if b["prompt"] == own.get("prompt") and b["seed"] == config.seed]
    same = [query["run"]] if query.get("run") in recorded() else same
    slug = same[0] if same else next(iter(recorded()), None)
    own.setdefault("prompt", recorded()[slug]["prompt"] if slug else "")
    if "prompt" in query and not same:
        notes.append("The link's settings are filled in. Press Run to make that run again; it opens at the linked step.")
    for sentence in notes:
        gr.Info(sentence)
    linked = bool(same) or "prompt" not in query
    wanted = LAB_TABS.get(query.get("tab", ""), query.get("tab"))
    tab = gr.Tabs(selected=wanted) if wanted in TABS else gr.skip()
    return [*fill(show(config, own)), round(math.log10(config.tau or TAU), 2), play(slug, linked), tab]


def fill(values: dict[str, Any]) -> list[Any]:
    """Return an update for every control; those not named stay as they are."""
    return [values.get(name, gr.skip()) for name in CONTROLS]


def address(slug: str) -> str:
    """Return where the browser finds a recorded prompt."""
    return f"/gradio_api/file={(TRACES / slug).relative_to(TRACES.parents[1])}.json"


def play(slug: str | None, linked: bool = False) -> str:
    """Return the message that makes the viewer fetch a recorded prompt; `linked`: the address's step is of that one."""
    if slug is None:
        return frame.note("There is no recorded run here. Type a prompt and press Run.")
    return frame.bundle_url(address(slug), linked)


def take_choice(event: gr.EventData) -> list[Any]:
    """Fill in what a run of the gallery was made from: prompt, seed and model, or, once asked to, all of its settings."""
    told = event._data or {}
    if told.get("query"):
        allowed = {"model": MODELS, "reference": REFERENCES}
        config, own, notes = link.read(dict(parse_qsl(told["query"])), PRESETS["recommended"], allowed, LIMITS)
        for sentence in notes:
            gr.Info(sentence)
        gr.Info("The settings are filled in. Change what you like and press Run.")
        return [*fill(show(config, own)), round(math.log10(config.tau or TAU), 2)]
    known = recorded().get(str(told.get("slug")), {})
    return [*fill({name: known[name] for name in ("prompt", "seed", "model") if name in known}), gr.skip()]


def take_tau(event: gr.EventData) -> tuple[str, float, float]:
    """Take over the tau that was dragged in the viewer's histogram."""
    tau = float(f"{float(event.tau):.3g}")
    return "tau", tau, math.log10(tau)


def beside(
    values: lab.Values, base: FrescoConfig, axes: Mapping[str, Sequence[Any]], steps: Sequence[int], table: tables.Table | None
) -> lab.Stream:
    """Return a sweep's stream, without the cells that a table has recorded of the same weights."""
    net, prompt = asked(values)
    known = [p["coords"] for p in table.points] if table and table.weights == net.provenance else []
    stream: lab.Stream = desk().sweep(net, prompt, fitting(base, axes), axes, steps, known)
    return stream


def services() -> lab.Services:
    """Return what the lab's tabs can ask for; nothing of it is loaded before somebody does."""

    def tool(name: str) -> Any:
        return importlib.import_module(f"fresco.lab.{name}")

    return lab.Services(
        guard=sentences, compare=race, open=open_kept, sweep=beside,
        ablation=lambda values, base, more: desk().ablation(*asked(values), base, more),
        sentences=lambda: tool("desk").sentences(),
        identity=lambda values, config: desk().identity(*asked(values), config),
        noise=lambda seed, fresh: tool("desk").noise(seed, fresh),
        proposition=lambda values, config: tool("proposition").follow(*asked(values), config.as_full(config.nfe)),
        exact=lambda: tool("proposition").exact(),
        convergence=lambda values, config: tool("convergence").follow(*asked(values), config),
        expansion=lambda values, config, cell: tool("parts").follow(*asked(values), config, cell),
        results=lambda keys: desk().results(keys),
    )  # fmt: skip


def page() -> gr.Blocks:
    """Build the page."""
    with gr.Blocks(title="Fresco", analytics_enabled=False) as demo:
        # First, so that no event of the page takes their names.
        gr.api(run, api_name="run", **lab.GPU)
        gr.api(sweep, api_name="sweep", **lab.GPU)
        gr.api(trace, api_name="trace")
        urls = {slug: address(slug) for slug in recorded()}
        shelf = story.shelf(list(recorded().values()), urls=urls, page=True)
        space = os.environ.get("SPACE_ID", "")
        swept = {slug: found for slug, b in recorded().items() if (found := tables.table(b, address(slug)))}
        tabs = lab.Lab(swept)
        taught = story.taught(lesson.LESSONS, recorded())
        at = studio.place(MODELS, first_prompt(), shelf, taught, EXAMPLES["prompts"], space, backfill, tabs.place)
        tabs.wire(at, services())
        c, inputs = at.controls, at.inputs

        asked = [at.start.click, c["prompt"].submit]
        # Every click counts: it leaves the run before, which then ends at its next step, and queues its own.
        start = "(_, ...given) => [window.frescoLive.start(), ...given]"
        running = gr.on(asked, click_run, [at.run, *inputs], None, js=start, trigger_mode="multiple", **lab.GPU, **PRIVATE)
        running.failure(None, None, None, js="() => window.frescoLive.failed()")
        gr.on(asked, None, None, None, js=JS["watch"])
        at.stop.click(None, None, None, js="() => window.frescoLive.stop()")
        demo.load(open_link, None, [*inputs, at.log_tau, at.viewer, at.tabs], **PRIVATE)
        demo.load(lambda: f"Runs on: {hosting.hardware().sentence}", None, at.hardware, **PRIVATE)
        at.gallery.select(take_choice, None, [*inputs, at.log_tau], **PRIVATE)
        exports.wire(at.sharing, shown, sentences, lambda request: str(request.request.url).split("/gradio_api")[0] + "/")
        at.viewer.select(take_tau, None, [c["drive"], c["tau"], at.log_tau], **PRIVATE)
        at.preset.input(lambda name: fill(show(PRESETS[name], {}))[4:], at.preset, inputs[4:], **PRIVATE)
        told = at.share.click(copy_link, inputs, at.query, **PRIVATE)
        told.then(None, [at.query, at.space], at.address, js=JS["copy_link"])
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
    if hosting.on_zero():
        load(MODELS[0])  # weights are put on the GPU before the first run is forked off
    else:
        threading.Thread(target=preload, daemon=True).start()
    plays = [{"url": address(slug), "prompt": b["prompt"], "seed": b["seed"]} for slug, b in recorded().items()]
    first = Middleware(mount.FirstPaint, script=JS["head"] + mount.script(plays))  # Gradio adds its own head much later
    served = {"middleware": [first], "routes": RELAY.routes()}
    page().queue(max_size=32).launch(
        server_name=args.host, server_port=args.port, theme=THEME, css_paths=[CSS], app_kwargs=served, show_error=False,
        ssr_mode=False, run_history=False, mcp_server=True, footer_links=["api", "settings"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
