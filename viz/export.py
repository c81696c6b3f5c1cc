"""Runs and a lesson as one HTML file that opens from disk without a network, or as a folder for a free static Space.

The page is the viewer, the gallery and the lesson themselves (viz/viewer/) and the few lines that stand in for the server.
`python -m viz.export --out page.html panda my-run.npz` writes one file, `python -m viz.export --static out/` a folder; without
names both take every recorded run. `--lesson` adds the lesson and the runs it shows (`--lesson mine.md` another), a static
site of every recorded run has it anyway. The query of the address is the site's own
(`?tau=0.004&step=9&token=0,3,5&layer=4&stop=3&hide=gallery`), and `run=<slug>` says which prompt opens first.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fresco.errors import FrescoError
from fresco.trace import Trace
from viz import bundle, lesson, story
from viz.page import JS, VIEWER

TRACES = Path(__file__).parents[1] / "assets" / "traces"
LARGEST = 10_000_000  # bytes; a Space takes larger files only through LFS
# The browser itself keeps the file offline: a page that may load nothing cannot ask for anything.
_ALONE = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)

# Grounds and text are the system's colours, everything else the viewer's own names: no colour is said here.
_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; background: Canvas; color: CanvasText; font: 15px/1.5 system-ui, sans-serif; -webkit-text-size-adjust: 100%;
  --background-fill-primary: Canvas; --body-text-color: CanvasText; }
main { max-width: 1320px; margin: 0 auto; padding: 20px 24px 40px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; text-wrap: balance; overflow-wrap: anywhere; }
.fx-text { max-width: 74ch; overflow-wrap: anywhere; }
.fx-text p { margin: 0 0 10px; white-space: pre-line; }
.fv-root .fx-foot { color: var(--fv-muted); font-size: 12.5px;
  margin-top: 20px; padding-top: 12px; border-top: 1px solid var(--fv-line); }
@media (max-width: 600px) {
  main { padding: 14px 12px 28px; }
  h1 { font-size: 22px; }
}
@media print { .fv-transport, .fv-keys { display: none !important; } }
"""

# Each component is a function of the five names that Gradio gives it; here its value is set once and never changes.
_HOST = """
(() => {
  const night = matchMedia('(prefers-color-scheme: dark)');
  const paint = () => document.body.classList.toggle('dark', night.matches);
  night.addEventListener('change', paint);
  paint();
  const place = (name, component, value) => {
    const element = document.querySelector(`#${name} > div`);
    if (element) component(element, () => {}, { value }, {}, null, () => {});
  };
  const text = (name) => document.querySelector(`script[data-message="${name}"]`)?.textContent ?? '';
  place('viewer', viewer, '');
  place('gallery', gallery, text('gallery'));
  place('lesson', lesson, text('lesson'));
})();
"""


class ExportError(FrescoError):
    """Runs that cannot be written as asked."""


def inline_json(value: object) -> str:
    """Return JSON in ASCII that no HTML parser can end early: `<`, `>` and `&` are written as escapes too."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def page(
    bundles: Sequence[Mapping[str, Any]], *, title: str, text: str = "", taught: lesson.Lesson | None = None
) -> str:  # fmt: skip
    """Return one HTML document that holds the viewer, all of the runs and the lesson, and asks nothing of any network.

    Args:
        bundles: messages of `viz.bundle`; with several, the gallery stands above the viewer.
        title: heading and name of the document.
        text: words above the viewer; empty lines part paragraphs.
        taught: a lesson of these runs.

    Raises:
        ExportError: without a bundle. LessonError: where the lesson names what the runs do not have.
    """
    named = _named(bundles)
    data = [f'<script type="application/json" data-slug="{b["slug"]}">{inline_json(b)}</script>' for b in named]
    guard = f'<meta http-equiv="Content-Security-Policy" content="{_ALONE}">'
    kept = "This file holds everything it shows: keep it, mail it, open it without a network."
    return _document(named, None, title, text, taught, head=guard, data=data, foot=kept)


def static_site(
    out: str | Path, bundles: Sequence[Mapping[str, Any]], *, title: str = "Fresco: recorded runs", text: str = "",
    taught: lesson.Lesson | None = None,
) -> list[Path]:  # fmt: skip
    """Write a folder that a static Space, or any web server, serves as it is; return the files.

    The page comes first and is small; each run is a file beside it, fetched when it is chosen.

    Raises:
        ExportError: without a bundle, or where a file would be larger than a Space takes.
    """
    folder = Path(out)
    named = _named(bundles)
    urls = {b["slug"]: f"runs/{b['slug']}.json" for b in named}
    files = {urls[b["slug"]]: json.dumps(b, separators=(",", ":")) for b in named}
    served = "Static pages: nothing runs on a server, and nothing is asked of any other."
    files["index.html"] = _document(named, urls, title, text, taught, head="", data=[], foot=served)
    files["README.md"] = _front_matter(title, len(bundles))
    for name, body in files.items():
        size = len(body.encode("utf-8", "replace"))
        if size >= LARGEST:
            raise ExportError(f"{name} would have {size / 1e6:.1f} MB, a Space takes 10 MB a file; record fewer runs of it")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    return [_write(folder / name, body) for name, body in files.items()]


def _named(bundles: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the bundles with slugs that are harmless in addresses and markup, and different from each other."""
    return [{**b, "slug": name} for b, name in zip(bundles, _names(bundles), strict=True)]


def _names(bundles: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a file name and address for each bundle: its slug, made harmless and different from the others."""
    names: list[str] = []
    for k, b in enumerate(bundles):
        name = re.sub("[^a-z0-9]+", "-", str(b.get("slug", "")).lower()).strip("-")[:48] or "run"
        names.append(f"{name}-{k + 1}" if name in names else name)
    return names


def _write(path: Path, body: str) -> Path:
    path.write_text(body, encoding="utf-8", errors="replace", newline="\n")
    return path


def _front_matter(title: str, count: int) -> str:
    """Return the README that tells the hub what the folder is."""
    plain = " ".join(title.split())
    return (
        f"---\ntitle: {json.dumps(plain, ensure_ascii=False)}\nemoji: 🖌️\ncolorFrom: red\ncolorTo: yellow\nsdk: static\n"
        "app_file: index.html\npinned: false\nlicense: apache-2.0\n"
        "short_description: See where a diffusion transformer spends its compute\n---\n\n"
        f"# {plain}\n\n{count} recorded {'run' if count == 1 else 'runs'} of Fresco, step by step beside full resolution. "
        "Written by `python -m viz.export --static`; nothing\nruns here but the visitor's browser.\n"
    )


def _document(
    bundles: Sequence[Mapping[str, Any]], urls: Mapping[str, str] | None, title: str, text: str,
    taught: lesson.Lesson | None, *, head: str, data: Sequence[str], foot: str,
) -> str:  # fmt: skip
    if not bundles:
        raise ExportError("there is no run to export; name a recorded prompt or a trace file")
    parts = {"viewer": VIEWER, "gallery": story.GALLERY, "lesson": story.LESSON}
    functions = (
        f"function {name}(element, trigger, props, server, upload, watch) {{\n{part['js_on_load']}\n}}"
        for name, part in parts.items()
    )
    script = "\n".join([*functions, _HOST])
    if re.search(r"</script|<!--", script, re.IGNORECASE):
        raise ExportError("a component's script would end its own <script> element; write that text differently there")
    messages = {"gallery": json.loads(story.shelf(_titled(bundles), urls=urls, first=bundles[0]["slug"]))}
    if taught:
        messages["lesson"] = lesson.message(taught, {b["slug"]: b for b in bundles})
    data = [
        *(f'<script type="text/plain" data-message="{name}">{inline_json(m)}</script>' for name, m in messages.items()), *data,
    ]  # fmt: skip
    paragraphs = "".join(f"<p>{html.escape(p.strip())}</p>" for p in re.split(r"\n\s*\n", text) if p.strip())
    made = sorted({str(b["provenance"].get("weights") or b["model"]) for b in bundles})
    styles = "".join([_STYLE, VIEWER["css_template"], story.GALLERY["css_template"], story.LESSON["css_template"]])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{head}
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{styles}</style>
{JS["head"]}
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
<div class="fx-text">{paragraphs}</div>
<noscript><p>The runs are drawn by a script in this page; switch JavaScript on to see them.</p></noscript>
<div id="gallery"><div>{story.GALLERY["html_template"]}</div></div>
<div id="lesson"><div>{story.LESSON["html_template"]}</div></div>
<div id="viewer"><div>{VIEWER["html_template"]}</div></div>
<footer class="fv-root"><p class="fx-foot">Recorded with Fresco: {html.escape("; ".join(made))}. {foot}</p></footer>
</main>
{chr(10).join(data)}
<script>
{script}
</script>
</body>
</html>
"""


def _titled(bundles: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the bundles, each with a title that tells it from the others: its own, its prompt, or that and its settings."""
    prompts = [b["prompt"] for b in bundles]
    return [
        {**b, "title": b.get("title") or (b["prompt"] if prompts.count(b["prompt"]) == 1 else _settings(b))} for b in bundles
    ]


def _settings(b: Mapping[str, Any]) -> str:
    """Return what tells bundles of one prompt apart: the seed, and tau or ratio of a run that stands alone."""
    run = b["runs"][0]
    drive = run["meta"].get("ratio")
    alone = f", NFE {run['nfe']}, " + (f"tau {run['tau']:g}" if run["tau"] is not None else f"ratio {drive:g}")
    return f"{b['prompt']} (seed {b.get('seed', 0)}{alone if len(b['runs']) == 1 else ''})"


def read(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the bundles of recorded prompts (by slug), bundle files (.json) and trace files (.npz), in that order given.

    Raises:
        FrescoError: where something named is not there or is something else.
    """
    known = shelf_order()
    traces = [Trace.load(name) for name in names if name.endswith(".npz")]
    out = []
    for name in (n for n in names or known if not n.endswith(".npz")):
        if not name.endswith(".json") and name not in known:
            raise ExportError(
                f"{name!r} is no recorded prompt; choose of {', '.join(known)}, or name a .npz trace or .json file"
            )
        out.append(bundle.load(Path(name) if name.endswith(".json") else TRACES / f"{name}.json"))
    return out + bundle.from_traces(traces)


def shelf_order() -> list[str]:
    """Return the slugs of all recorded runs as the gallery shows them; files it does not name come last."""
    try:
        examples = json.loads((TRACES.parent / "examples.json").read_text(encoding="utf-8"))
        order = [*examples["recorded"], *examples["gallery"]]
    except (OSError, ValueError, KeyError):
        order = []
    there = {path.stem for path in TRACES.glob("*.json")}
    return [slug for slug in order if slug in there] + sorted(there - set(order))


def with_lesson(bundles: Sequence[Mapping[str, Any]], taught: lesson.Lesson) -> list[Mapping[str, Any]]:
    """Return the bundles and, after them, the recorded runs that the lesson shows and they lack."""
    have = {b["slug"] for b in bundles}
    more = dict.fromkeys(stop.view.run for stop in taught.stops if stop.view.run not in have)
    return [*bundles, *(bundle.load(TRACES / f"{slug}.json") for slug in more)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to export, and where to."""
    parser.add_argument(
        "runs", nargs="*", metavar="slug | trace.npz", help="recorded prompts and traces; all prompts by default"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="page.html", help="one self-contained file")
    target.add_argument("--static", type=Path, metavar="folder", help="a folder for a static Space")
    parser.add_argument("--title", default="Fresco: where does a diffusion transformer spend its compute?")
    parser.add_argument("--text", default="", help="words above the viewer")
    parser.add_argument(
        "--lesson", nargs="?", const=lesson.LESSONS, type=Path, metavar="mine.md", help="add our lesson, or one of your own"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the page or the folder that was asked for, and return {file: MB}.

    Raises:
        FrescoError: where a run or lesson cannot be read, or the place cannot be written to.
    """
    bundles: Sequence[Mapping[str, Any]] = read(args.runs)
    where = args.lesson or (lesson.LESSONS if args.static and not args.runs else None)
    taught = lesson.load(where) if where else None
    if taught:
        bundles = with_lesson(bundles, taught)
    try:
        if args.static:
            files = static_site(args.static, bundles, title=args.title, text=args.text, taught=taught)
        else:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            files = [_write(args.out, page(bundles, title=args.title, text=args.text, taught=taught))]
    except OSError as error:
        raise FrescoError(f"{args.static or args.out} cannot be written ({error.strerror}); choose another place") from error
    return {str(path): round(path.stat().st_size / 1e6, 3) for path in files}


def main(argv: Sequence[str] | None = None) -> int:
    """Write what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m viz.export", description="Recorded runs as pages of their own.")
    add_arguments(parser)
    try:
        files = run(parser.parse_args(argv))
    except FrescoError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    for path, size in files.items():
        print(f"{path}: {size:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
