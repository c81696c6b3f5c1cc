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
from viz.page import cards
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
        sweep: (values, base, axes, full-resolution step counts) -> a stream.
        ablation: (values, base, further switches too) -> a stream. sentences: what each switch does, by its label.
        identity: (values, config) -> a stream of 50 full steps, and the run with the field, fresh noise, and restarted.
        noise: (seed, fresh) -> the noise at each level, coarsest first.
        proposition: (values, config) -> rows along a full-resolution run, and the oracle's exact ones.
        convergence: (values, config) -> rows. expansion: (values, config, cell or None) -> Parts.
        compare: (values, {label: settings, or the name of a baseline}) -> the viewer's messages.
        results: (keys) -> the finished runs that are still kept. open: (key) -> the viewer's message of one.
    """

    guard: Callable[[], AbstractContextManager[None]]
    sweep: Callable[[Values, FrescoConfig, Mapping[str, Sequence[Any]], Sequence[int]], Stream]
    ablation: Callable[[Values, FrescoConfig, bool], Stream]
    sentences: Callable[[], dict[str, str]]
    identity: Callable[[Values, FrescoConfig], Stream]
    noise: Callable[[int, bool], list[Any]]
    proposition: Callable[[Values, FrescoConfig], tuple[Sequence[Any], Sequence[Any]]]
    convergence: Callable[[Values, FrescoConfig], Sequence[Any]]
    expansion: Callable[[Values, FrescoConfig, tuple[int, int, int] | None], Any]
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
    names = [n for n in points[0] if n not in ("picture", "coords", "group")]
    swept = list(dict.fromkeys(name for p in points for name in p["coords"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*swept, *names])
    writer.writerows([*(p["coords"].get(n, "") for n in swept), *(p[n] for n in names)] for p in points)
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

    def buttons(self, *, stop: bool = True) -> None:
        with gr.Row(elem_classes="lab-do"):
            self.start = gr.Button(self.action, variant="primary", scale=2, min_width=120, elem_id=f"{self.name}-run")
            if stop:
                self.stop = gr.Button("Stop", scale=1, min_width=80, elem_id=f"{self.name}-stop")
        self.status = gr.HTML("", elem_id=f"{self.name}-status", elem_classes="lab-status")

    def runs(self, handler: Callable[..., Any], inputs: list[Any], outputs: list[Any], *, kept: str = "") -> Any:
        """Connect the buttons; `kept` is said when a stream is stopped."""
        self.start.click(None, None, self.status, js="() => 'Waiting for the model…'")
        running = self.start.click(handler, inputs, outputs, trigger_mode="always_last", **GPU, **PRIVATE)
        if hasattr(self, "stop"):
            self.stop.click(lambda: f"Stopped. {kept}", None, self.status, cancels=[running], queue=False, **PRIVATE)
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
                with gr.Column(min_width=170):
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
    """Any two settings: a grid of pictures and cost against quality."""

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
        self.chart = gr.Plot(show_label=False, elem_id="sweep-chart", visible=False)
        self.grid = gr.HTML("", js_on_load=JS["pick"], elem_id="sweep-grid")
        with gr.Row():
            self.csv = gr.Button("CSV", size="sm", elem_id="sweep-csv")
            self.png = gr.Button("PNG", size="sm", elem_id="sweep-png")
        self.state = gr.State({"keys": [], "curve": [], "axes": {}})
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
                seen: dict[str, list[Any]] = {"keys": [], "curve": []}
                yield "Starting…", cards.grid([], axes), gr.skip(), gr.skip()
                with contextlib.closing(do.sweep(values, configuration(values), axes, steps)) as found:
                    for item in found:
                        if not is_result(item):
                            yield progress(item), gr.skip(), gr.skip(), gr.skip()
                            continue
                        group = "" if item.config.is_full else f"{down} {cards.said(item.coords[down])}"
                        seen["curve" if item.config.is_full else "keys"].append(point(item, group))
                        best = charts.front(seen["keys"], quality)
                        figure = charts.pareto(seen["keys"], seen["curve"], quality=quality)
                        state = {k: [p["key"] for p in v] for k, v in seen.items()} | {"axes": axes}
                        yield (
                            f"{len(seen['keys'])} of {size} cells, {len(seen['curve'])} of {len(steps)} full-resolution runs.",
                            cards.grid(seen["keys"], axes, best), gr.update(value=figure, visible=True), state,
                        )  # fmt: skip
                yield f"Done. {verdict(seen['keys'], seen['curve'], quality)}", gr.skip(), gr.skip(), gr.skip()

        inputs = [*at.inputs, *self.axes, *self.values, self.curve, self.quality]
        self.runs(run, inputs, [self.status, self.grid, self.chart, self.state],
                  kept="Finished cells are kept: run again, and only the missing ones are computed.")  # fmt: skip

        def redraw(state: dict[str, Any], quality: str) -> Any:
            if not state["keys"]:
                return gr.skip(), gr.skip()
            points, curve = self.points(do, state)
            grid = cards.grid(points, state["axes"], charts.front(points, quality))
            return grid, charts.pareto(points, curve, quality=quality)

        self.quality.input(redraw, [self.state, self.quality], [self.grid, self.chart], **PRIVATE)
        self.opens(self.grid, at, do)
        self.csv.click(lambda s: self.as_csv(do, s), self.state, self.file, **PRIVATE).then(
            None, self.file, None, js=JS["save"]
        )
        self.png.click(lambda s: self.as_png(do, s), self.state, self.file, **PRIVATE).then(
            None, self.file, None, js=JS["save"]
        )

    def points(self, do: Services, state: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the points of the cells and of the curve that are still kept."""
        down = next(iter(state["axes"]), "")
        groups = {r.key: f"{down} {cards.said(r.coords.get(down))}" for r in do.results(state["keys"])}
        return [point(r, groups[r.key]) for r in do.results(state["keys"])], [point(r) for r in do.results(state["curve"])]

    def as_csv(self, do: Services, state: Mapping[str, Any]) -> str:
        points, curve = self.points(do, state)
        return download("fresco-sweep.csv", table_of([*points, *curve]).encode(), "text/csv") if points else ""

    def as_png(self, do: Services, state: Mapping[str, Any]) -> str:
        results = do.results(state["keys"])
        if not results:
            return ""
        columns = len(list(state["axes"].values())[1]) if len(state["axes"]) > 1 else min(6, len(results))
        title = f"“{results[0].prompt}”, seed {results[0].seed}"
        sheet = charts.sheet([point(r) for r in results], [r.picture for r in results], columns, title)
        return download("fresco-sweep.png", sheet, "image/png")


class Ablation(Panel):
    """The paper's switches, one at a time."""

    def place(self) -> None:
        with gr.Row():
            self.base = gr.Radio(["paper", "recommended", SOURCES[0]], value="paper", **told("base"), elem_id="ablation-base")
            self.nfe = gr.Slider(4, 30, value=11, step=1, **told("nfe"), elem_id="ablation-nfe")
            self.more = gr.Checkbox(False, **told("more"), elem_id="ablation-more")
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


def rows(stream: Stream, sentences: Mapping[str, str], caption: str) -> Iterator[tuple[Any, Any]]:
    """Yield (status, table) while results come in."""
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
    yield f"Done: {len(points)} runs. Choose a picture to open its run.", gr.skip()


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
                for status, table in rows(
                    do.identity(values, configuration(values)), {}, f"“{values['prompt']}”, seed {values['seed']}"
                ):
                    yield status, table, gr.skip()
                yield "Measuring along a full-resolution run…", gr.skip(), gr.skip()
                along, exact = (
                    [dataclasses.asdict(row) for row in some] for some in do.proposition(values, configuration(values))
                )
                figure = charts.proposition(along, exact)
                yield "Done.", gr.skip(), gr.update(value=figure, visible=True)

        self.runs(run, at.inputs, [self.status, self.table, self.chart], kept="Finished rows are kept.")
        self.opens(self.table, at, do)


class Convergence(Panel):
    """Whether token variance says which tokens are finished."""

    def place(self) -> None:
        self.buttons(stop=False)
        self.chart = gr.Plot(show_label=False, elem_id="convergence-chart", visible=False)

    def wire(self, at: Studio, do: Services) -> None:
        def run(*inputs: Any) -> Any:
            values = named(inputs)
            with do.guard():
                found = [dataclasses.asdict(row) for row in do.convergence(values, configuration(values))]
            means = []
            for signal in charts.SIGNALS:
                known = [r["rho"] for r in found if r["signal"] == signal and r["rho"] == r["rho"]]
                means.append(f"{signal} {sum(known) / len(known):.2f}" if known else f"{signal} undefined")
            said = f"Mean over the steps: {', '.join(means)}."
            return said, gr.update(value=charts.convergence(found), visible=True)

        self.runs(run, at.inputs, [self.status, self.chart])


class Expansion(Panel):
    """One parent token taken apart."""

    def place(self) -> None:
        with gr.Row():
            self.which = gr.Radio(["the first promoted", "the one at"], value="the first promoted", **told("which"))
            self.row = gr.Number(0, precision=0, minimum=0, **told("cell_row"), elem_id="expansion-row")
            self.col = gr.Number(0, precision=0, minimum=0, **told("cell_col"), elem_id="expansion-col")
            self.channel = gr.Number(0, precision=0, minimum=0, **told("channel"), elem_id="expansion-channel")
        self.buttons(stop=False)
        self.parts = gr.HTML("", elem_id="expansion-parts")
        self.state = gr.State(None)

    def wire(self, at: Studio, do: Services) -> None:
        def run(*inputs: Any) -> Any:
            values = named(inputs[: len(CONTROLS)])
            which, row, col, channel = inputs[len(CONTROLS) :]
            with do.guard():
                cell = None if which == "the first promoted" else (0, int(row), int(col))
                found = do.expansion(values, configuration(values), cell)
                return "Done.", draw((found, values["noise"]), channel), (found, values["noise"])

        def draw(state: Any, channel: int) -> Any:
            return cards.parts(state[0], int(channel) % len(state[0].block), state[1]) if state else gr.skip()

        inputs = [*at.inputs, self.which, self.row, self.col, self.channel]
        self.runs(run, inputs, [self.status, self.parts, self.state])
        self.channel.input(draw, [self.state, self.channel], self.parts, **PRIVATE)


class Lab:
    """All tabs beside the first."""

    def place(self) -> None:
        self.panels = [
            Compare("compare", "Compare"), Sweep("sweep", "Run the sweep"), Ablation("ablation", "Run the ablation"),
            Proposition("proposition", "Run and measure"), Convergence("convergence", "Run and measure"),
            Expansion("expansion", "Run up to the first promotion"),
        ]  # fmt: skip

    def wire(self, at: Studio, do: Services) -> None:
        for panel in self.panels:
            panel.wire(at, do)  # type: ignore[attr-defined]
            panel.tab.select(None, None, None, js=JS["tab"].replace("TAB", panel.name))
