"""The lab's tabs: for people who explore rather than watch. Layout and what is shown; every computation is a service.

A tab is placed in its constructor and connected by `wire`, since the viewer comes after the tabs.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from fresco.config import FrescoConfig
from viz import charts, frame, link
from viz.page import cards, recorded
from viz.page.controls import AXES, BASELINES, CONTROLS, FULL_SAME, LINK, SOURCES, chosen, configuration, named
from viz.page.studio import PRIVATE, Studio, told
from viz.page.words import JS, LOOK, TABS

GPU: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "gpu"}
NOBODY = "(none)"
Values = Mapping[str, Any]
Stream = Generator[Any, None, None]
MOST_CELLS = 64


@dataclass(frozen=True)
class Services:
    """What app.py does for the lab. `values` are the controls by name, a run's settings come apart; a stream yields steps and
    results of fresco.lab.sweep.

    Attributes:
        guard: lets our own errors reach the page as their sentence.
        sweep: (values, base, axes, full-resolution step counts, a recorded table whose cells need no run) -> a stream.
        ablation: (values, base, further switches too) -> a stream. sentences: what each switch does, by its label.
        identity: (values, config) -> a stream of 50 full steps, and the run with the field, fresh noise, and restarted.
        noise: (seed, fresh) -> the noise at each level, coarsest first.
        proposition: (values, config) -> a stream of calls and rows along a full-resolution run. exact: the oracle's rows.
        convergence: (values, config) -> a stream of calls and rows. expansion: (values, config, cell or None) -> the same, of
            calls and Parts.
        compare: (values, {label: settings, or the name of a baseline}) -> the viewer's messages.
        results: (keys) -> the finished runs that are still kept. open: (key) -> the viewer's message of one.
    """

    guard: Callable[[], AbstractContextManager[None]]
    sweep: Callable[[Values, FrescoConfig, Mapping[str, Sequence[Any]], Sequence[int], recorded.Table | None], Stream]
    ablation: Callable[[Values, FrescoConfig, bool], Stream]
    sentences: Callable[[], dict[str, str]]
    identity: Callable[[Values, FrescoConfig], Stream]
    noise: Callable[[int, bool], list[Any]]
    proposition: Callable[[Values, FrescoConfig], Stream]
    exact: Callable[[], Sequence[Any]]
    convergence: Callable[[Values, FrescoConfig], Stream]
    expansion: Callable[[Values, FrescoConfig, tuple[int, int, int] | None], Stream]
    compare: Callable[[Values, Mapping[str, FrescoConfig | str]], Generator[str, None, None]]
    results: Callable[[Sequence[str]], list[Any]]
    open: Callable[[str], str]


def is_result(found: Any) -> bool:
    """Whether this is a finished run, not a step on the way."""
    return hasattr(found, "picture")


def progress(step: Any) -> str:
    """Return a sentence that says how far a stream is."""
    what, of = ("the 50-step reference of this seed", 50) if step.reference else (step.cell.label, step.cell.config.nfe)
    return f"Running {what}: step {step.event.step + 1} of {of}."


def is_call(found: Any) -> bool:
    """Whether this is a model call on the way to a measurement."""
    return hasattr(found, "of")


def called(call: Any) -> str:
    """Return a sentence that says how far a measurement is."""
    return f"Step {call.step + 1} of {call.of}: {call.tokens} tokens, {call.stage} stage, sigma {call.sigma:.2f}."


def point(result: Any, group: str = "") -> dict[str, Any]:
    """Return what charts and cards show of a result."""
    names = ("key", "label", "coords", "flops", "seconds", "full_steps", "speedup", "psnr", "ssim")
    return {name: getattr(result, name) for name in names} | {"group": group, "picture": cards.thumb(result.picture)}


def verdict(points: Sequence[Mapping[str, Any]], curve: Sequence[Mapping[str, Any]], quality: str) -> str:
    """Return how many runs lie above full resolution at their cost, in a sentence."""
    at = [(p[quality], charts.at_cost(curve, p["full_steps"], quality)) for p in points]
    known = [(own, full) for own, full in at if own is not None and full is not None]
    if not known:
        return "No run costs what a point of the full-resolution curve does, so none can be set against it."
    above = sum(own > full for own, full in known)
    return f"{above} of the {len(known)} runs within the full-resolution curve lie above it. Choose a picture or a point."


def table_of(points: Sequence[Mapping[str, Any]]) -> str:
    """Return points as CSV text, the swept settings in columns of their own."""
    names = [n for n in points[0] if n not in ("picture", "coords", "group", "key", "recorded")]
    swept = list(dict.fromkeys(name for p in points for name in p["coords"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*swept, *names, "key", "run"])
    writer.writerows(
        [
            *(p["coords"].get(n, "") for n in swept),
            *(p[n] for n in names),
            p["key"],
            "recorded" if p.get("recorded") else "here",
        ]
        for p in points
    )
    return out.getvalue()


def download(name: str, data: bytes, kind: str) -> str:
    """Return what the browser saves as a file: its name and its content."""
    return json.dumps([name, f"data:{kind};base64,{base64.b64encode(data).decode()}"])


class Panel:
    """A tab: what to look for, a button that starts, one that stops, and a line that says how far it is."""

    def __init__(self, name: str, action: str) -> None:
        self.name, self.action = name, action
        with gr.Tab(TABS[name], id=name, elem_id=f"tab-{name}") as self.tab:
            gr.Markdown(LOOK[name], elem_classes="lab-look")
            self.place()

    def place(self) -> None:
        raise NotImplementedError

    def buttons(self) -> None:
        with gr.Row(elem_classes="lab-do"):
            self.start = gr.Button(self.action, variant="primary", scale=2, min_width=120, elem_id=f"{self.name}-run")
            self.stop = gr.Button("Stop", scale=1, min_width=80, elem_id=f"{self.name}-stop")
        self.status = gr.HTML("", elem_id=f"{self.name}-status", elem_classes="lab-status")

    def runs(self, handler: Callable[..., Any], inputs: list[Any], outputs: list[Any], *, kept: str = "") -> Any:
        """Connect the buttons; `kept` is said when a stream is stopped.

        While a run is under way its button is inert: so every click counts, also one right after Stop, which Gradio's other
        trigger modes lose until the server has heard of the stop, and Stop has one run to stop.
        """
        switched = "{{__type__: 'update', interactive: {}}}"
        inert, ready = switched.format("false"), switched.format("true")
        self.start.click(None, None, [self.status, self.start], js=f"() => ['Waiting for the model…', {inert}]")
        running = self.start.click(handler, inputs, outputs, trigger_mode="multiple", **GPU, **PRIVATE)
        running.then(None, None, self.start, js=f"() => ({ready})")
        said: Any = (lambda: f"Stopped. {kept}", None, self.status)
        stopped = self.stop.click(*said, cancels=[running], queue=False, **PRIVATE)
        self.stop.click(None, None, self.start, js=f"() => ({ready})")
        stopped.then(*said, queue=False, **PRIVATE)  # again: a last message of the run may come in between
        return running

    def opens(self, shown: Any, at: Studio, do: Services) -> None:
        """Let a choice in `shown` open that run in the viewer."""

        def open_run(event: gr.EventData) -> str:
            with do.guard():
                return do.open(str(event.key))

        shown.select(open_run, None, at.viewer, **PRIVATE).success(None, None, None, js=JS["opened"])


class Compare(Panel):
    """Up to four configurations side by side."""

    def place(self) -> None:
        self.sources, self.links = [], []
        first = (SOURCES[0], FULL_SAME, "paper", NOBODY)
        with gr.Row():
            for k, source in enumerate(first):
                with gr.Column(min_width=300):
                    names = [*SOURCES] if k < 2 else [NOBODY, *SOURCES]
                    self.sources.append(gr.Dropdown(names, value=source, label=f"Run {k + 1}", elem_id=f"compare-{k + 1}"))
                    self.links.append(gr.Textbox(label="Its link", visible=False, elem_id=f"compare-link-{k + 1}"))
        self.buttons()

    def wire(self, at: Studio, do: Services) -> None:
        for source, address in zip(self.sources, self.links, strict=True):
            source.input(lambda name: gr.update(visible=name == LINK), source, address, **PRIVATE)

        def run(*inputs: Any) -> Iterator[Any]:
            values, rest = named(inputs[: len(CONTROLS)]), inputs[len(CONTROLS) :]
            with do.guard():
                configs: dict[str, FrescoConfig | str] = {}
                for source, address in zip(rest[:4], rest[4:], strict=True):
                    if source == NOBODY:
                        continue
                    config, notes = (BASELINES[source], []) if source in BASELINES else chosen(source, address or "", values)
                    for note in notes:
                        gr.Info(note)
                    configs[source if source not in configs else f"{source} ({len(configs) + 1})"] = config
                yield f"{len(configs)} runs of seed {values['seed']}; whichever has spent less goes next.", gr.skip()
                with contextlib.closing(do.compare(values, configs)) as messages:
                    for message in messages:
                        yield gr.skip(), message
                yield "Done. Below: every step of all of them, and only the settings that differ.", gr.skip()

        inputs = [*at.inputs, *self.sources, *self.links]
        running = self.runs(run, inputs, [self.status, at.viewer], kept="What ran so far can be replayed.")
        self.stop.click(lambda: frame.done("", stopped=True), None, at.viewer, cancels=[running], queue=False, **PRIVATE)


class Sweep(Panel):
    """Any two settings: a grid of pictures and cost against quality; recorded ones are there before anything is run."""

    def __init__(self, name: str, action: str, tables: Mapping[str, recorded.Table]) -> None:
        self.tables = tables
        super().__init__(name, action)

    def place(self) -> None:
        with gr.Row():
            self.axes, self.values = [], []
            for k, name in enumerate(("tau", "nfe")):
                with gr.Column(min_width=220):
                    names = list(AXES) if k == 0 else [NOBODY, *AXES]
                    self.axes.append(gr.Dropdown(names, value=name, label=("Down", "Across")[k], elem_id=f"sweep-axis-{k + 1}"))
                    self.values.append(gr.Textbox(AXES[name], **told("values"), elem_id=f"sweep-values-{k + 1}"))
            with gr.Column(min_width=180):
                self.curve = gr.Textbox("3, 4, 6, 8", **told("curve"), elem_id="sweep-curve")
                self.quality = gr.Radio([("PSNR", "psnr"), ("SSIM", "ssim")], value="psnr", **told("quality"))
        self.buttons()
        self.shelf = gr.Radio(
            [(table.title, slug) for slug, table in self.tables.items()], value=None, **told("shelf"),
            visible=bool(self.tables), elem_id="sweep-shelf",
        )  # fmt: skip
        self.chart = gr.Plot(show_label=False, elem_id="sweep-chart", visible=False)
        self.grid = gr.HTML("", js_on_load=JS["pick"], elem_id="sweep-grid")
        with gr.Row():
            self.csv = gr.Button("CSV", size="sm", elem_id="sweep-csv")
            self.png = gr.Button("PNG", size="sm", elem_id="sweep-png")
        self.state = gr.State({"keys": [], "curve": [], "axes": {}, "slug": None})
        self.file = gr.Textbox(visible=False)

    def wire(self, at: Studio, do: Services) -> None:
        for axis, values in zip(self.axes, self.values, strict=True):
            axis.input(lambda name: AXES.get(name, ""), axis, values, **PRIVATE)

        def run(*inputs: Any) -> Iterator[Any]:
            values = named(inputs[: len(CONTROLS)])
            down, across, of_down, of_across, curve, quality = inputs[len(CONTROLS) :]
            with do.guard():
                axes = {down: link.axis(down, of_down)}
                if across not in (NOBODY, down):
                    axes[across] = link.axis(across, of_across)
                steps = link.axis("nfe", curve)
                size = len(axes[down]) * len(axes.get(across, [0]))
                if size > MOST_CELLS:
                    raise gr.Error(
                        f"{size} cells are more than the page's {MOST_CELLS}; take fewer values.", print_exception=False
                    )
                base = configuration(values)
                table = next((t for t in self.tables.values() if t.holds(values, base, list(axes))), None)
                state: dict[str, Any] = {"keys": [], "curve": [], "axes": axes, "slug": table.slug if table else None}
                yield "Starting…", self.drawn(do, state, axes)[0], gr.skip(), state, state["slug"]
                with contextlib.closing(do.sweep(values, base, axes, steps, table)) as found:
                    for item in found:
                        if not is_result(item):
                            yield progress(item), gr.skip(), gr.skip(), gr.skip(), gr.skip()
                            continue
                        if table and item.weights != table.weights:  # other weights make other pictures
                            state["slug"] = table = None
                        if item.config.is_full:
                            state = state | {"curve": [*state["curve"], item.key]}
                        else:
                            state = state | {"keys": [*state["keys"], item.key]}
                        grid, figure = self.drawn(do, state, axes, quality)
                        said = f"{len(state['keys'])} cells and {len(state['curve'])} full-resolution runs are finished."
                        yield said, grid, gr.update(value=figure, visible=True), state, state["slug"]
                grid, figure = self.drawn(do, state, {}, quality)
                chart = gr.update(value=figure, visible=True)
                yield f"Done. {self.verdict(do, state, quality)}", grid, chart, gr.skip(), gr.skip()

        shown = [self.status, self.grid, self.chart, self.state, self.shelf]
        inputs = [*at.inputs, *self.axes, *self.values, self.curve, self.quality]
        self.runs(run, inputs, shown, kept="Finished cells are kept: run again, and only the missing ones are computed.")

        def take(slug: str | None, quality: str) -> tuple[Any, ...]:
            """Show a recorded table alone."""
            if slug is None or slug not in self.tables:
                return (gr.skip(),) * 5
            state: dict[str, Any] = {"keys": [], "curve": [], "axes": self.tables[slug].axes, "slug": slug}
            grid, figure = self.drawn(do, state, {}, quality)
            return self.verdict(do, state, quality), grid, gr.update(value=figure, visible=True), state, slug

        def prefill(state: dict[str, Any], quality: str, prompt: str, seed: int) -> tuple[Any, ...]:
            """Show a recorded table where nothing is shown yet: of this prompt and seed, or else the first."""
            if state["keys"] or state["slug"]:
                return (gr.skip(),) * 5
            same = [slug for slug, t in self.tables.items() if (t.prompt, t.seed) == ((prompt or "").strip(), seed)]
            return take(next(iter([*same, *self.tables]), None), quality)

        def follow(slug: str) -> tuple[Any, ...]:
            """Let the controls have the prompt that is looked at, so that a sweep goes on with it."""
            table = self.tables[slug]
            return table.prompt, table.seed, table.model

        self.tab.select(prefill, [self.state, self.quality, at.controls["prompt"], at.controls["seed"]], shown, **PRIVATE)
        self.shelf.input(take, [self.shelf, self.quality], shown, **PRIVATE)
        self.shelf.input(follow, self.shelf, [at.controls[name] for name in ("prompt", "seed", "model")], **PRIVATE)

        def redraw(state: dict[str, Any], quality: str) -> Any:
            if not state["keys"] and not state["slug"]:
                return gr.skip(), gr.skip()
            return self.drawn(do, state, {}, quality)

        self.quality.input(redraw, [self.state, self.quality], [self.grid, self.chart], **PRIVATE)
        self.opens(self.grid, at, do)
        self.csv.click(lambda s: self.as_csv(do, s), self.state, self.file, **PRIVATE).then(
            None, self.file, None, js=JS["save"]
        )
        self.png.click(lambda s: self.as_png(do, s), self.state, self.file, **PRIVATE).then(
            None, self.file, None, js=JS["save"]
        )

    def points(self, do: Services, state: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the points of the cells, in the grid's order, and of the curve: recorded, and run here and still kept."""
        table = self.tables.get(state["slug"])
        axes = recorded.joined(table, state["axes"])
        cells = recorded.fresh(table.points if table else [], [point(r) for r in do.results(state["keys"])])
        curve = recorded.fresh(table.curve if table else [], [point(r) for r in do.results(state["curve"])])
        down = next(iter(axes), "")
        cells.sort(key=lambda p: [list(values).index(p["coords"][name]) for name, values in axes.items()])
        return [{**p, "group": f"{down} {cards.said(p['coords'][down])}"} for p in cells], curve

    def drawn(
        self, do: Services, state: Mapping[str, Any], coming: Mapping[str, Sequence[Any]], quality: str = "psnr"
    ) -> tuple[str, Any]:
        """Return the grid and the chart of what is there; cells of `coming` that are not are still to come."""
        points, curve = self.points(do, state)
        table = self.tables.get(state["slug"])
        axes = recorded.joined(table, state["axes"])
        grid = cards.grid(points, axes, charts.front(points, quality), coming, table.url if table else "")
        return grid, charts.pareto(points, curve, quality=quality)

    def verdict(self, do: Services, state: Mapping[str, Any], quality: str) -> str:
        """Return what is shown, and how it compares with full resolution."""
        points, curve = self.points(do, state)
        table, old = self.tables.get(state["slug"]), sum(bool(p.get("recorded")) for p in points)
        said = ""
        if table:
            said = f"“{table.prompt}”, seed {table.seed}: {old} runs recorded with the page"
            said += f" (circles), {len(points) - old} run here (diamonds). " if len(points) > old else ". "
        return said + verdict(points, curve, quality)

    def as_csv(self, do: Services, state: Mapping[str, Any]) -> str:
        points, curve = self.points(do, state)
        return download("fresco-sweep.csv", table_of([*points, *curve]).encode(), "text/csv") if points else ""

    def as_png(self, do: Services, state: Mapping[str, Any]) -> str:
        points, _ = self.points(do, state)
        if not points:
            return ""
        table, results = self.tables.get(state["slug"]), do.results(state["keys"])
        prompt, seed = (table.prompt, table.seed) if table else (results[0].prompt, results[0].seed)
        own = {r.key: r.picture for r in results}
        pictures = {p["key"]: own[p["key"]] if p["key"] in own else cards.pixels(p["picture"]) for p in points}
        places = cards.places(points, recorded.joined(table, state["axes"]))
        columns = len(places[0]) if len(state["axes"]) > 1 else min(6, len(points))
        flat = [p for row in places for p in row]
        sheet = charts.sheet(flat, [pictures[p["key"]] if p else None for p in flat], columns, f"“{prompt}”, seed {seed}")
        return download("fresco-sweep.png", sheet, "image/png")


class Ablation(Panel):
    """The paper's switches, one at a time."""

    def place(self) -> None:
        with gr.Row():
            with gr.Column(min_width=260):
                self.base = gr.Radio(
                    ["paper", "recommended", SOURCES[0]], value="paper", **told("base"), elem_id="ablation-base"
                )
                self.more = gr.Checkbox(False, **told("more"), elem_id="ablation-more")
            with gr.Column(min_width=220):
                self.nfe = gr.Slider(4, 30, value=11, step=1, **told("nfe"), elem_id="ablation-nfe")
        self.buttons()
        self.table = gr.HTML("", js_on_load=JS["pick"], elem_id="ablation-table")

    def wire(self, at: Studio, do: Services) -> None:
        def run(*inputs: Any) -> Iterator[Any]:
            values = named(inputs[: len(CONTROLS)])
            base, nfe, more = inputs[len(CONTROLS) :]
            with do.guard():
                config = chosen(base, "", values)[0].replace(nfe=nfe)
                caption = f"“{values['prompt']}”, NFE {nfe}: one switch at a time"
                yield from rows(do.ablation(values, config, more), do.sentences(), caption)

        self.runs(run, [*at.inputs, self.base, self.nfe, self.more], [self.status, self.table],
                  kept="Finished rows are kept: run again, and only the missing ones are computed.")  # fmt: skip
        self.opens(self.table, at, do)


def rows(
    stream: Stream, sentences: Mapping[str, str], caption: str, end: str = "Done: {} runs. Choose a picture to open its run."
) -> Iterator[tuple[Any, Any]]:
    """Yield (status, table) while results come in; `end` is said after the last."""
    points, pictures = [], []
    yield "Starting…", gr.skip()
    with contextlib.closing(stream):
        for item in stream:
            if not is_result(item):
                yield progress(item), gr.skip()
                continue
            points.append(point(item))
            pictures.append(item.picture)
            yield gr.skip(), cards.table(points, pictures, sentences, caption)
    yield end.format(len(points)), gr.skip()


class Proposition(Panel):
    """One noise field at every level, and what fresh noise loses."""

    def place(self) -> None:
        with gr.Row():
            self.kind = gr.Radio(
                ["field", "fresh"], value="field", label="Noise of the finer levels", elem_id="proposition-noise"
            )
            self.row = gr.Slider(0, 31, value=9, step=1, **told("mark_row"), elem_id="proposition-row")
            self.col = gr.Slider(0, 31, value=22, step=1, **told("mark_col"), elem_id="proposition-col")
        self.maps = gr.HTML("", elem_id="proposition-maps")
        gr.Markdown(
            "Now on real runs: the same picture with the field, with fresh noise, and restarted as others do; then how far a"
            " state that is noised again lands from where the run itself had been. **Look for** the fresh line: it stays above"
            " b², the field's does not.", elem_classes="lab-look",
        )  # fmt: skip
        self.buttons()
        self.table = gr.HTML("", js_on_load=JS["pick"], elem_id="proposition-table")
        self.chart = gr.Plot(show_label=False, elem_id="proposition-chart", visible=False)

    def wire(self, at: Studio, do: Services) -> None:
        def draw(seed: int, kind: str, row: int, col: int) -> str:
            with do.guard():
                return cards.pyramid(do.noise(seed, kind == "fresh"), int(row), int(col), kind == "fresh")

        marked = [at.controls["seed"], self.kind, self.row, self.col]
        gr.on([self.tab.select, self.kind.input, self.row.input, self.col.input], draw, marked, self.maps, **PRIVATE)

        def run(*inputs: Any) -> Iterator[Any]:
            values = named(inputs)
            with do.guard():
                caption = f"“{values['prompt']}”, seed {values['seed']}"
                stream = do.identity(values, configuration(values))
                for status, table in rows(stream, {}, caption, "Now measuring along a full-resolution run."):
                    yield status, table, gr.skip()
                exact, along = [dataclasses.asdict(row) for row in do.exact()], list[dict[str, Any]]()
                with contextlib.closing(do.proposition(values, configuration(values))) as found:
                    for item in found:
                        if is_call(item):
                            yield f"Measuring along a full-resolution run. {called(item)}", gr.skip(), gr.skip()
                            continue
                        along.append(dataclasses.asdict(item))
                        yield gr.skip(), gr.skip(), gr.update(value=charts.proposition(along, exact), visible=True)
                yield f"Done. {charts.beyond(along)}", gr.skip(), gr.skip()

        self.runs(run, at.inputs, [self.status, self.table, self.chart],
                  kept="Finished rows are kept: run again, and only the missing ones are computed.")  # fmt: skip
        self.opens(self.table, at, do)


class Convergence(Panel):
    """Whether token variance says which tokens are finished."""

    def place(self) -> None:
        self.buttons()
        self.chart = gr.Plot(show_label=False, elem_id="convergence-chart", visible=False)

    def wire(self, at: Studio, do: Services) -> None:
        def run(*inputs: Any) -> Iterator[Any]:
            values, found, stages = named(inputs), list[dict[str, Any]](), list[str]()
            with do.guard(), contextlib.closing(do.convergence(values, configuration(values))) as stream:
                for item in stream:
                    if is_call(item):
                        stages.append(item.stage)
                        yield called(item), gr.skip()
                    else:
                        found.append(dataclasses.asdict(item))
            means = []
            for signal in charts.SIGNALS:
                known = [r["rho"] for r in found if r["signal"] == signal and r["rho"] == r["rho"]]
                means.append(f"{charts.SIGNALS[signal]} {f'{sum(known) / len(known):.2f}' if known else 'undefined'}")
            said = f"Mean over the steps, by what the variance is of: {', '.join(means)}."
            yield said, gr.update(value=charts.convergence(found, stages), visible=True)

        self.runs(run, at.inputs, [self.status, self.chart], kept="What variance says is known once the picture is finished.")


class Expansion(Panel):
    """One parent token taken apart."""

    def place(self) -> None:
        with gr.Row():
            self.which = gr.Radio(["the first promoted", "the one at"], value="the first promoted", **told("which"))
            self.row = gr.Number(0, precision=0, minimum=0, **told("cell_row"), elem_id="expansion-row")
            self.col = gr.Number(0, precision=0, minimum=0, **told("cell_col"), elem_id="expansion-col")
            self.channel = gr.Number(0, precision=0, minimum=0, **told("channel"), elem_id="expansion-channel")
        self.buttons()
        self.parts = gr.HTML("", elem_id="expansion-parts")
        self.state = gr.State(None)

    def wire(self, at: Studio, do: Services) -> None:
        def run(*inputs: Any) -> Iterator[Any]:
            values = named(inputs[: len(CONTROLS)])
            which, row, col, channel = inputs[len(CONTROLS) :]
            with do.guard():
                cell = None if which == "the first promoted" else (0, int(row), int(col))
                with contextlib.closing(do.expansion(values, configuration(values), cell)) as stream:
                    for item in stream:
                        if is_call(item):
                            yield called(item), gr.skip(), gr.skip()
                        else:
                            state = (item, values["noise"])
                            said = f"Done after {item.step + 1} of {values['nfe']} calls; the rest is not needed for this."
                            yield said, draw(state, channel), state

        def draw(state: Any, channel: int) -> Any:
            return cards.parts(state[0], int(channel) % len(state[0].block), state[1]) if state else gr.skip()

        inputs = [*at.inputs, self.which, self.row, self.col, self.channel]
        self.runs(run, inputs, [self.status, self.parts, self.state])
        self.channel.input(draw, [self.state, self.channel], self.parts, **PRIVATE)


class Lab:
    """All tabs beside the first.

    Args:
        tables: recorded sweeps by slug.
    """

    def __init__(self, tables: Mapping[str, recorded.Table]) -> None:
        self.tables = tables

    def place(self) -> None:
        self.panels = [
            Compare("compare", "Compare"), Sweep("sweep", "Run the sweep", self.tables),
            Ablation("ablation", "Run the ablation"), Proposition("proposition", "Run and measure"),
            Convergence("convergence", "Run and measure"), Expansion("expansion", "Run and expand"),
        ]  # fmt: skip

    def wire(self, at: Studio, do: Services) -> None:
        for panel in self.panels:
            panel.wire(at, do)  # type: ignore[attr-defined]
            panel.tab.select(None, None, None, js=JS["tab"].replace("TAB", panel.name))
