"""Lessons: Markdown files whose stops drive the viewer, and ask questions that are answered by touching it.

A lesson is one Markdown file with one stop or several, or a folder of such files, taken in the order of their names. Each stop
opens with front matter (YAML between two lines of `---`) and goes on as Markdown, whose first line is its title:

    ---
    run: strawberry            # which recorded run; the only line that must be there
    step: 6                    # as the screen counts: "step 6 of 18"
    layer: variance            # sketch, variance, levels, promoted or difference
    token: 3,5                 # row,col of the finest grid (or frame,row,col); leave out for none
    tau: 0.004                 # of a run recorded at several; so is nfe
    align: cost                # cost or step
    beside: Full resolution, 12 steps      # which reference the right picture shows, by its label
    figure: field              # a drawing under the text: field or children (both of the run's own noise)
    ask: Which tokens settle first? Click one of them.
    answer: {token: settled}   # what the reader does; see below
    right: Yes: the background.            # said once it is done
    hint: Look for dark tokens.            # shown when asked for
    sources: [arXiv:2601.07462]            # arXiv numbers or {title: address}
    ---
    # What settles first

    At step 6 the sketch has [[tokens 6]] tokens, at noise level $\\sigma = [[sigma 6]]$.

`answer` holds one condition or several; all must be so at once, and not yet when the stop opens: `step: 7..9` (or `9..`, `..3`,
`5`), `tau: 0.01..`, `nfe: 11`, `layer: levels`, `align: step`, `beside: <label>`, or `token:` with any, settled, moving, fine,
coarse, early (promoted because it had settled) or forced (promoted because the mixed stage ended).

Numbers are not typed but looked up in the run itself, so they cannot be wrong. At step 6: `[[tokens 6]]`, `[[coarse 6]]`,
`[[promoted 6]]`, `[[sigma 6]]`, `[[share 6]]` (% of the cost of 50 full steps spent by then), `[[under 0.01 6]]` (coarse
tokens at or below that tau), `[[variance 6 3,5]]` and `[[quieter 6 3,5]]` (% of the tokens that move less than that one); a
reference's label after these two asks it of that run: `[[quieter 6 3,5 Variance of z]]`. Of the whole run: `[[cells]]`,
`[[steps]]`, `[[seed]]`, `[[prompt]]`, `[[cost]]` (% of 50 full steps), `[[times 50]]`, `[[times same]]` (how many times
fewer FLOPs than 50 and than equally many full steps), `[[buys]]` (full steps for the same FLOPs), `[[first]]` and
`[[last]]` (step of the first and the last promotion), `[[forced]]` (tokens promoted at the end although unsettled),
`[[psnr]]` and `[[ssim]]`, of a reference too: `[[psnr Full resolution, 12 steps]]`.

Equations stand in `$…$` or `$$…$$` as LaTeX (a dollar itself is `\\$`); they become MathML here, so that a page needs no script
and no network for them. HTML and pictures in the Markdown are not taken; `***` draws a rule, since `---` opens a stop.

`?stop=3` opens a lesson at its third stop; `?hide=controls,gallery` takes parts of the page away (PARTS).
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

import numpy as np
import yaml  # type: ignore[import-untyped]
from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from numpy.typing import NDArray

from fresco.errors import FrescoError
from fresco.noise import NoiseField

LESSONS = Path(__file__).parents[1] / "assets" / "lessons"
LAYERS = ("sketch", "variance", "levels", "promoted", "difference")
FIGURES = ("field", "children")
TOKENS = ("any", "settled", "moving", "fine", "coarse", "early", "forced")
ALIGNS = ("cost", "step")
# Names for `?hide=`: parts of the page around the viewer, and of the viewer itself.
PARTS: dict[str, str] = {
    "title": "#title, main > h1, .fx-text", "ask": "#ask", "examples": "#examples", "controls": "#controls",
    "advanced": "#advanced", "share": "#share, #address", "gallery": ".fg-gallery", "lesson": ".fl-lesson",
    "tools": ".fv-tools", "reference": ".fv-pane + .fv-pane", "timeline": ".fv-line, .fv-line-key", "tau": ".fv-tau-card",
    "cost": ".fv-tau-card + .fv-card", "token": ".fv-token", "keys": ".fv-keys", "foot": ".fx-foot, footer",
}  # fmt: skip
_KEYS = (
    "run", "step", "layer", "token", "tau", "nfe", "align", "beside", "figure", "ask", "answer", "right", "hint", "sources",
)  # fmt: skip
_FACT = re.compile(r"\[\[([^\[\]]*)\]\]")
_MATH = re.compile(r"(?<!\\)\$\$(.+?)(?<!\\)\$\$|(?<!\\)\$(?=\S)([^$\n]+?)(?<=\S)(?<!\\)\$", re.S)
_MARK = "\ue000{}\ue001"  # private use: no lesson's own text has it
_ATTRIBUTES = (
    "xmlns", "display", "stretchy", "fence", "form", "mathvariant", "columnalign", "columnspacing", "rowspacing",
    "linethickness", "accent", "displaystyle", "minsize", "maxsize", "lspace", "rspace", "width", "height", "depth",
    "movablelimits", "notation",
)  # fmt: skip
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]*")
_ARXIV = re.compile(r"arxiv:(\d{4}\.\d{4,5})(v\d+)?", re.IGNORECASE)


class LessonError(FrescoError):
    """A lesson that cannot be shown; the message names the file, the stop and what to write instead."""


@dataclass(frozen=True)
class View:
    """What a stop shows: a recorded run and where in it to look.

    Attributes:
        run: slug of the recorded run.
        step: index of the step, from 0. layer: 1 to 5. token: (frame, row, col) on the finest grid, or None.
        tau, nfe: of a run recorded at several; None is the run's middle one.
        align: "cost" or "step". beside: label of the reference on the right; None is the first.
    """

    run: str
    step: int = 0
    layer: int = 2
    token: tuple[int, int, int] | None = None
    tau: float | None = None
    nfe: int | None = None
    align: str = "cost"
    beside: str | None = None


@dataclass(frozen=True)
class Stop:
    """One stop of a lesson.

    Attributes:
        title: one line. view: what it shows. body: Markdown, facts and equations not yet resolved.
        ask: the question; empty where the stop asks nothing. answer: conditions by name, ranges as (low, high) with None
            for an open end, names as they are. right: said once answered. hint: shown on demand.
        figure: a name in FIGURES, or None. sources: (title, address).
    """

    title: str
    view: View
    body: str
    ask: str = ""
    answer: Mapping[str, Any] = field(default_factory=dict)
    right: str = ""
    hint: str = ""
    figure: str | None = None
    sources: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Lesson:
    """Stops in their order, under a title."""

    title: str
    stops: tuple[Stop, ...]


# --------------------------------------------------------------------------------------------------------------- parsing


def load(path: str | Path) -> Lesson:
    """Read a lesson: one Markdown file, or a folder of them.

    Raises:
        LessonError: where there is none, or a stop is not as the format wants it.
    """
    where = Path(path)
    files = sorted(where.glob("*.md")) if where.is_dir() else [where]
    if not files or not files[0].is_file():
        raise LessonError(f"there is no lesson {where.name}; name a Markdown file, or a folder that holds some")
    stops: list[Stop] = []
    for file in files:
        try:
            stops += parse(file.read_text(encoding="utf-8"), file.name).stops
        except UnicodeDecodeError:
            raise LessonError(f"{file.name} is not UTF-8 text; save it as UTF-8") from None
    return Lesson(_title(where), tuple(stops))


def _title(where: Path) -> str:
    words = re.sub(r"[-_]+", " ", where.stem if where.is_file() else "lesson").strip()
    return words[:1].upper() + words[1:]


def parse(text: str, name: str = "lesson.md") -> Lesson:
    """Return the lesson of one Markdown text.

    Args:
        text: the file's. name: how errors call it.

    Raises:
        LessonError: with the stop and the line's key, what was got and what may stand there.
    """
    parts = re.split(r"^---[ \t]*$\n?", text.replace("\r\n", "\n").lstrip("\ufeff"), flags=re.M)
    if parts[0].strip() or len(parts) < 3 or len(parts) % 2 == 0:
        raise LessonError(
            f"{name}: a lesson begins with a line '---', and each stop has two of them around its front matter "
            "(a rule is written '***')"
        )
    stops = [
        _stop(head, body, f"{name}, stop {k + 1}") for k, (head, body) in enumerate(zip(parts[1::2], parts[2::2], strict=True))
    ]
    return Lesson(_title(Path(name)), tuple(stops))


def _stop(head: str, body: str, at: str) -> Stop:
    try:
        said = yaml.safe_load(head)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f" in its line {line + 1}" if line is not None else ""
        raise LessonError(f"{at}: the front matter cannot be read{where}; put text with a colon in quotes") from None
    if not isinstance(said, dict):
        raise LessonError(f"{at}: the front matter is empty; write at least 'run: <slug of a recorded run>'")
    for key in said:
        if key not in _KEYS:
            raise LessonError(f"{at}: {str(key)[:40]!r} is no key of a stop; choose of {', '.join(_KEYS)}")
    title = re.match(r"\s*#\s+(.+?)\s*(?:\n|$)", body)
    if not title:
        raise LessonError(f"{at}: the text must begin with its title, a line '# …'")
    run = said.get("run")
    if not isinstance(run, str) or not _SLUG.fullmatch(run):
        raise LessonError(f"{at}: run is {_got(run)}; write the slug of a recorded run, such as 'run: strawberry'")
    view = View(
        run, step=_whole(said.get("step", 1), "step", at, 1) - 1,
        layer=LAYERS.index(_name(said, "layer", LAYERS, at, "variance")) + 1,
        token=_token(said.get("token"), at), tau=None if said.get("tau") is None else _real(said["tau"], "tau", at),
        nfe=None if said.get("nfe") is None else _whole(said["nfe"], "nfe", at, 1),
        align=_name(said, "align", ALIGNS, at, "cost"), beside=_text(said, "beside", at) or None,
    )  # fmt: skip
    ask, answer = _text(said, "ask", at), said.get("answer")
    if bool(ask) != bool(answer):
        raise LessonError(f"{at}: ask and answer go together; {'answer' if ask else 'ask'} is missing")
    figure = said.get("figure")
    stop = Stop(
        title[1], view, body[title.end() :].strip(), ask, _answer(answer, at), _text(said, "right", at),
        _text(said, "hint", at),
        _name(said, "figure", FIGURES, at, "") if figure is not None else None, _sources(said.get("sources") or [], at),
    )  # fmt: skip
    if stop.answer and _already(stop):
        raise LessonError(f"{at}: what answer asks for is already so when the stop opens; the reader would have nothing to do")
    return stop


def _got(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]


def _text(said: Mapping[str, Any], key: str, at: str) -> str:
    value = said.get(key, "")
    if not isinstance(value, str):
        raise LessonError(f"{at}: {key} is {_got(value)}; write text, in quotes where it has a colon")
    return value.strip()


def _name(said: Mapping[str, Any], key: str, names: Sequence[str], at: str, default: str) -> str:
    value = said.get(key, default)
    if value not in names:
        raise LessonError(f"{at}: {key} is {_got(value)}; choose of {', '.join(names)}")
    return str(value)


def _whole(value: Any, key: str, at: str, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise LessonError(f"{at}: {key} is {_got(value)}; it must be a whole number from {low}")
    return value


def _real(value: Any, key: str, at: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not (number > 0 and math.isfinite(number)):
        raise LessonError(f"{at}: {key} is {_got(value)}; it must be a number above 0")
    return number


def _token(value: Any, at: str) -> tuple[int, int, int] | None:
    if value is None:
        return None
    parts = value if isinstance(value, list) else str(value).split(",")
    if len(parts) in (2, 3) and all(re.fullmatch(r"\s*\d+\s*", str(p)) for p in parts):
        numbers = [int(p) for p in parts]
        return (0, *numbers) if len(numbers) == 2 else tuple(numbers)  # type: ignore[return-value]
    raise LessonError(f"{at}: token is {_got(value)}; write 'row,col' on the finest grid, such as 'token: 3,5'")


def _range(value: Any, key: str, at: str) -> tuple[float | None, float | None]:
    """Return (low, high) of "a..b", "a..", "..b" or one number; None is an open end."""
    ends = str(value).split("..") if not isinstance(value, bool) else []
    if len(ends) == 1:
        ends = [ends[0], ends[0]]
    try:
        low, high = (float(e) if e.strip() else None for e in ends)
    except ValueError:
        low = high = None
    if (low, high) == (None, None) or (low is not None and high is not None and low > high):
        raise LessonError(f"{at}: answer's {key} is {_got(value)}; write a number or a range such as 7..9, 9.. or ..3")
    return low, high


def _answer(value: Any, at: str) -> dict[str, Any]:
    if not value:
        return {}
    if not isinstance(value, dict):
        raise LessonError(f"{at}: answer is {_got(value)}; write conditions, such as {{step: 7..9}}")
    lists = {"layer": LAYERS, "align": ALIGNS, "token": TOKENS}
    out: dict[str, Any] = {}
    for key, want in value.items():
        if key in ("step", "tau", "nfe"):
            low, high = _range(want, key, at)
            shift = 1 if key == "step" else 0
            out[key] = [None if low is None else low - shift, None if high is None else high - shift]
        elif key in lists:
            named = _name(value, key, lists[key], f"{at}: answer", "")
            out[key] = LAYERS.index(named) + 1 if key == "layer" else named
        elif key == "beside":
            out[key] = _text(value, key, at)
        else:
            raise LessonError(
                f"{at}: answer's {str(key)[:40]!r} is not known; choose of step, tau, nfe, {', '.join(lists)}, beside"
            )
    return out


def _already(stop: Stop) -> bool:
    """Whether the opening view fulfils every condition; what depends on the run alone counts as not."""
    view = stop.view
    known: dict[str, Any] = {"step": view.step, "tau": view.tau, "nfe": view.nfe, "layer": view.layer, "align": view.align,
                             "beside": view.beside, "token": "any" if view.token else None}  # fmt: skip
    for key, want in stop.answer.items():
        have = known[key]
        if isinstance(want, list):
            if have is None or not (want[0] is None or want[0] <= have) or not (want[1] is None or have <= want[1]):
                return False
        elif have != want:
            return False
    return True


def _sources(value: Any, at: str) -> tuple[tuple[str, str], ...]:
    out = []
    for item in value if isinstance(value, list) else [value]:
        pairs = item.items() if isinstance(item, dict) else [(str(item), "")]
        for title, address in pairs:
            number = _ARXIV.match(str(title))
            link = str(address) or (f"https://arxiv.org/abs/{number[1]}" if number else "")
            if not re.fullmatch(r"https?://[^\s\"'<>]+", link):
                raise LessonError(f"{at}: source {_got(item)} has no address; write 'arXiv:2601.07462' or {{title: https://…}}")
            out.append((str(title), link))
    return tuple(out)


# ----------------------------------------------------------------------------------------------------- facts about a run


class Facts:
    """Numbers of one recorded run as a lesson says them, looked up in its bundle; see the module's docstring.

    Args:
        bundle: message of `viz.bundle`.
        view: which of its runs.

    Raises:
        LessonError: where the bundle has no run of that tau and NFE, or the view names a step, token or reference it lacks.
    """

    def __init__(self, bundle: Mapping[str, Any], view: View) -> None:
        self.bundle = bundle
        taus, nfes = bundle["taus"], bundle["nfes"]
        tau = view.tau if view.tau is not None else (taus[len(taus) // 2] if taus else None)
        nfe = view.nfe if view.nfe is not None else nfes[len(nfes) // 2]
        fits = [r for r in bundle["runs"] if r["nfe"] == nfe and (r["tau"] == tau or not taus)]
        if not fits:
            offer = f"tau {', '.join(f'{t:g}' for t in taus)}; nfe {', '.join(map(str, nfes))}"
            raise LessonError(f"run {view.run!r} was not recorded with tau {tau} at nfe {nfe}; there are {offer}")
        self.run = fits[0]
        self.frames = self._frames(self.run)
        if view.step >= len(self.frames):
            raise LessonError(f"run {view.run!r} has {len(self.frames)} steps; step {view.step + 1} is none of them")
        if view.token is not None:
            self._cell(",".join(map(str, view.token)))
        if view.beside is not None:
            self._reference(view.beside)

    def _frames(self, run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [self.bundle["frames"][k] for k in run["frames"]]

    def _reference(self, label: str) -> Mapping[str, Any]:
        found = [r for r in self.bundle["references"] if r["label"] == label]
        if not found:
            names = "; ".join(r["label"] for r in self.bundle["references"])
            raise LessonError(f"there is no reference {label!r} beside the run; there are: {names}")
        return dict(found[0])

    def _step(self, text: str, frames: Sequence[Mapping[str, Any]] | None = None) -> Mapping[str, Any]:
        frames = self.frames if frames is None else frames
        if not text.isdecimal() or not 1 <= int(text) <= len(frames):
            raise LessonError(f"{text!r} is no step; write one from 1 to {len(frames)}")
        return frames[int(text) - 1]

    def _cell(self, text: str) -> int:
        token = _token(text, "a number")
        assert token is not None
        shape = self.frames[0]["shape"]
        if not all(a < b for a, b in zip(token, shape, strict=True)):
            raise LessonError(f"token {text} lies outside the grid of {shape[1]} x {shape[2]} cells")
        return int((token[0] * shape[1] + token[1]) * shape[2] + token[2])

    @property
    def _spent(self) -> float:
        return float(sum(f["flops"] for f in self.frames))

    def _baseline(self, name: str) -> float:
        found = self.run["meta"]["baselines"].get(name)
        if not found:
            raise LessonError("the run does not say what a full-resolution step costs; record it with a full step")
        return float(found)

    def say(self, words: str) -> str:
        """Return a fact as text; `words` is what stands between the brackets.

        Raises:
            LessonError: on a name or argument that is not known.
        """
        name, *rest = words.split(maxsplit=1)
        arguments = rest[0] if rest else ""
        try:
            fact: Callable[[str], str] = getattr(self, f"_say_{name}")
        except AttributeError:
            known = ", ".join(sorted(n.removeprefix("_say_") for n in dir(self) if n.startswith("_say_")))
            raise LessonError(f"[[{words[:40]}]] is no fact of a run; choose of {known}") from None
        try:
            return fact(arguments)
        except LessonError as error:
            raise LessonError(f"[[{words[:60]}]]: {error}") from None

    # One method for each fact; the name after `_say_` is the one a lesson writes.
    def _say_tokens(self, step: str) -> str:
        return _grouped(self._step(step)["tokens"])

    def _say_coarse(self, step: str) -> str:
        return _grouped(int(is_coarse(self._step(step)).sum()))

    def _say_promoted(self, step: str) -> str:
        return _grouped(int(promoted(self._step(step)).sum()))

    def _say_sigma(self, step: str) -> str:
        return f"{self._step(step)['sigma']:.2f}"

    def _say_share(self, step: str) -> str:
        self._step(step)
        return f"{100 * sum(f['flops'] for f in self.frames[: int(step)]) / self._baseline('full50'):.1f}"

    def _say_under(self, words: str) -> str:
        tau, _, step = words.partition(" ")
        frame = self._step(step.strip())
        v = variance(frame)
        return _grouped(int((is_coarse(frame) & (v <= _real(tau, "tau", "a number"))).sum()))

    def _at(self, words: str) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
        step, _, rest = words.partition(" ")
        where, _, label = rest.strip().partition(" ")
        frames = self._frames(self._reference(label.strip())) if label.strip() else self.frames
        frame = self._step(step, frames)
        return variance(frame), is_coarse(frame), int(numbers(frame)[self._cell(where)])

    def _say_variance(self, words: str) -> str:
        v, _, token = self._at(words)
        return scientific(float(v[token]))

    def _say_quieter(self, words: str) -> str:
        v, _, token = self._at(words)
        known = v[np.isfinite(v)]
        if not np.isfinite(v[token]):
            raise LessonError("no variance is defined at that step yet; take a later one")
        return f"{100 * float((known < v[token]).mean()):.0f}"

    def _say_cells(self, _: str) -> str:
        return _grouped(math.prod(self.frames[0]["shape"]))

    def _say_steps(self, _: str) -> str:
        return str(len(self.frames))

    def _say_seed(self, _: str) -> str:
        return str(self.bundle["seed"])

    def _say_prompt(self, _: str) -> str:
        return str(self.bundle["prompt"])

    def _say_cost(self, _: str) -> str:
        return f"{100 * self._spent / self._baseline('full50'):.0f}"

    def _say_times(self, which: str) -> str:
        names = {"50": "full50", "same": "same_nfe"}
        if which not in names:
            raise LessonError("write [[times 50]] or [[times same]]")
        return f"{self._baseline(names[which]) / self._spent:.1f}"

    def _say_buys(self, _: str) -> str:
        self._baseline("full50")
        return str(self.run["meta"]["baselines"]["same_flops"]["steps"])

    def _say_first(self, _: str) -> str:
        return str(self._promotions()[0] + 1)

    def _say_last(self, _: str) -> str:
        return str(self._promotions()[-1] + 1)

    def _promotions(self) -> list[int]:
        steps = [k for k, f in enumerate(self.frames) if promoted(f).any()]
        if not steps:
            raise LessonError("the run promotes no token")
        return steps

    def _say_forced(self, _: str) -> str:
        total = 0
        for f in self.frames:
            if f["final"]:
                tau = self.run["tau"] if self.run["tau"] is not None else f.get("tau")
                v = variance(f)
                total += int((promoted(f) & ~(v <= (tau or 0.0))).sum())
        return _grouped(total)

    def _say_psnr(self, label: str) -> str:
        return f"{self._likeness('psnr', label):.1f}"

    def _say_ssim(self, label: str) -> str:
        return f"{self._likeness('ssim', label):.2f}"

    def _likeness(self, name: str, label: str) -> float:
        value = (self._reference(label) if label else self.run).get(name)
        if value is None:
            raise LessonError(f"no {name.upper()} was recorded for it")
        return float(value)


def _grouped(n: int) -> str:
    return f"{n:,}"


def scientific(v: float) -> str:
    """Return a variance as the viewer writes it: 0.012, or 3.4·10⁻⁴."""
    if v >= 0.01:
        return f"{v:.2g}"
    power = math.floor(math.log10(v) + 1e-9)
    return f"{v / 10**power:.1f}·10" + str(power).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


def levels(frame: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return the level of the token over each finest cell of a recorded step, shape (frames, rows, cols)."""
    return np.frombuffer(base64.b64decode(frame["level"]), np.uint8).reshape(frame["shape"])


def numbers(frame: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the number of the token over each finest cell, in scan order, (cells,)."""
    level, depth = levels(frame), int(frame["levels"])
    f, r, c = np.indices(level.shape)
    shift = depth - level.astype(int)
    home = ((f * level.shape[1] + (r >> shift << shift)) * level.shape[2] + (c >> shift << shift)).ravel()
    return np.unique(home, return_inverse=True)[1].ravel().astype(np.int64)


def is_coarse(frame: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return which tokens of a recorded step can still be promoted, (N,)."""
    token = numbers(frame)
    out = np.zeros(token.max() + 1, bool)
    out[token] = levels(frame).ravel() < frame["levels"]
    return out


def variance(frame: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return the variance of each token of a recorded step, (N,), NaN where undefined."""
    q = np.frombuffer(base64.b64decode(frame["variance"]), "<u2").astype(float)
    low, high = float(frame["vmin"]), float(frame["vmax"])
    return np.where(q > 0, low * (high / low) ** ((q - 1) / 65534), np.nan)


def promoted(frame: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return which tokens of a recorded step were promoted after it, (N,)."""
    bits = np.frombuffer(base64.b64decode(frame["selected"]), np.uint8)
    return np.unpackbits(bits)[: frame["tokens"]].astype(bool)


# ------------------------------------------------------------------------------------------------------------- rendering


def markdown(text: str, facts: Facts) -> str:
    """Return Markdown as HTML: facts looked up, equations as MathML, nothing of it able to run or to load anything.

    Raises:
        LessonError: on a fact that is not known, or an equation that cannot be read.
    """
    kept: list[str] = []

    def keep(markup: str) -> str:
        kept.append(markup)
        return _MARK.format(len(kept) - 1)

    def equation(found: re.Match[str]) -> str:
        tex, display = found[1] or found[2], "block" if found[1] else "inline"
        try:
            return keep(_mathml(convert_to_element(tex.strip(), display=display)))
        except Exception as error:  # the converter raises kinds of its own, and IndexError
            raise LessonError(f"the equation {tex.strip()[:60]!r} cannot be read; write it as plain LaTeX") from error

    text = re.sub("[\ue000\ue001]", "", text)
    text = _FACT.sub(lambda found: facts.say(found[1].strip() or "?"), text)
    text = _MATH.sub(equation, text).replace("\\$", "$")
    writer = MarkdownIt("commonmark", {"html": False, "typographer": False}).disable("image")
    writer.add_render_rule("link_open", _link)
    return re.sub("\ue000(\\d+)\ue001", lambda found: kept[int(found[1])], str(writer.render(text)))


def _mathml(tree: Element) -> str:
    """Return an equation as markup. Text is escaped and links are dropped: the converter itself does neither."""
    for part in tree.iter():
        part.text = html.unescape(part.text) if part.text else part.text
        for name in [n for n in part.attrib if n not in _ATTRIBUTES]:
            del part.attrib[name]
    return tostring(tree, encoding="unicode")


def _link(self: Any, tokens: Any, k: int, options: Any, env: Any) -> str:
    """Open links in a tab of their own, so that the lesson stays where it is."""
    tokens[k].attrSet("target", "_blank")
    tokens[k].attrSet("rel", "noopener")
    return str(self.renderToken(tokens, k, options, env))


def _inline(text: str, facts: Facts) -> str:
    """Return one line of Markdown without its paragraph."""
    return re.sub(r"^<p>|</p>\s*$", "", markdown(text, facts).strip())


def noise(bundle: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return the first channel of a run's noise field on the finest latent pixels, in steps of 1/20 as base64 of int8.

    Raises:
        LessonError: for a model that works on the latents of an autoencoder: its field has no pixels to look at.
    """
    frame = bundle["frames"][0]
    if bundle["model"] not in _PIXELS:
        raise LessonError(f"{at}: a figure of the noise needs a run of {' or '.join(_PIXELS)}, not of {bundle['model']}")
    patch = _PIXELS[bundle["model"]]
    _, rows, cols = frame["shape"]
    row, col = np.mgrid[: rows * patch, : cols * patch]
    values = NoiseField(bundle["seed"], 1, patch).pixels(0, row, col)[..., 0]
    steps = np.clip(np.round(20 * values), -127, 127).astype(np.int8)
    return {
        "rows": rows * patch,
        "cols": cols * patch,
        "patch": patch,
        "unit": 20,
        "values": base64.b64encode(steps.tobytes()).decode(),
    }


_PIXELS = {"sinopia": 8, "oracle": 1}  # models that work on pixels, and the pixels on a token's side


def message(lesson: Lesson, bundles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the lesson as viewer/lesson.js takes it: every text resolved and rendered.

    Args:
        lesson: the stops. bundles: recorded runs by slug, those that the stops name among them.

    Raises:
        LessonError: where a stop names a run, step, token, reference or fact that is not there.
    """
    stops, fields = [], {}
    for k, stop in enumerate(lesson.stops):
        at = f"stop {k + 1} ({stop.title})"
        if stop.view.run not in bundles:
            raise LessonError(f"{at}: run {stop.view.run!r} is not recorded; there are {', '.join(sorted(bundles))}")
        bundle = bundles[stop.view.run]
        try:
            facts = Facts(bundle, stop.view)
            html_of = {name: _inline(getattr(stop, name), facts) for name in ("title", "ask", "right", "hint")}
            body = markdown(stop.body, facts)
            if "beside" in stop.answer:
                facts._reference(stop.answer["beside"])
        except LessonError as error:
            raise LessonError(f"{at}: {error}") from None
        if stop.figure:
            fields[stop.view.run] = noise(bundle, at)
        view = stop.view
        stops.append(
            {**html_of, "body": body, "figure": stop.figure, "answer": dict(stop.answer),
             "sources": [{"title": title, "url": url} for title, url in stop.sources],
             "view": {"run": view.run, "step": view.step, "layer": view.layer, "align": view.align, "beside": view.beside,
                      "token": list(view.token) if view.token else None, "tau": facts.run["tau"], "nfe": facts.run["nfe"]}}
        )  # fmt: skip
    return {"title": html.escape(lesson.title), "stops": stops, "fields": fields, "parts": PARTS}
