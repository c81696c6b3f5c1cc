"""Recorded runs as one HTML file that opens from disk without a network, or as a folder for a free static Space.

The page is the viewer itself (viewer.html, .css, .js) and the few lines that stand in for the server: they hand it the runs
that lie inline as JSON. `python -m viz.export --out page.html panda my-run.npz` writes one file,
`python -m viz.export --static out/` a folder; without names both take every recorded prompt. The query of the
address is the site's own (`?tau=0.004&step=9&token=0,3,5&layer=4`), and `run=<slug>` says which prompt opens first.
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
from viz import bundle
from viz.page import JS, VIEWER

TRACES = Path(__file__).parents[1] / "assets" / "traces"
LARGEST = 10_000_000  # bytes; a Space takes larger files only through LFS
_PICTURE = re.compile(r"data:image/(webp|png|jpeg);base64,[A-Za-z0-9+/=]+")
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
.fx-runs { margin: 14px 0 18px; }
.fv-root.fx-runs ul { list-style: none; display: flex; gap: 8px; overflow-x: auto; padding: 3px; margin: -3px;
  scrollbar-width: thin; }
.fx-runs li { flex: none; }
.fx-runs label { position: relative; display: flex; align-items: center; gap: 10px; width: 216px; height: 100%; padding: 6px;
  border: 1px solid var(--fv-line); border-radius: 10px; cursor: pointer; }
.fx-runs input { position: absolute; inset: 0; margin: 0; width: 100%; height: 100%; opacity: 0; cursor: pointer; }
.fx-runs img { display: block; width: 48px; height: 48px; border-radius: 6px; object-fit: cover; flex: none; }
.fx-runs span { font-size: 13px; line-height: 1.3; overflow-wrap: anywhere; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; overflow: hidden; }
.fx-runs label:hover { border-color: var(--fv-edge); }
.fx-runs label:has(:checked) { border-color: var(--fv-accent); background: var(--fv-accent-soft);
  box-shadow: 0 0 0 1px var(--fv-accent); }
.fx-runs label:has(:focus-visible) { outline: 2px solid var(--fv-focus); outline-offset: 2px; }
.fv-root .fx-foot { color: var(--fv-muted); font-size: 12.5px;
  margin-top: 20px; padding-top: 12px; border-top: 1px solid var(--fv-line); }
@media (max-width: 600px) {
  main { padding: 14px 12px 28px; }
  h1 { font-size: 22px; }
  .fx-runs label { width: 168px; }
}
@media print { .fx-runs, .fv-transport, .fv-keys { display: none !important; } }
"""

# The five names the viewer is a function of, and the chooser. `watch` keeps the viewer's own reaction to a new value.
_HOST = """
(() => {
  const night = matchMedia('(prefers-color-scheme: dark)');
  const paint = () => document.body.classList.toggle('dark', night.matches);
  night.addEventListener('change', paint);
  paint();
  const element = document.querySelector('#viewer > div'), choices = [...document.querySelectorAll('.fx-runs input')];
  const props = { value: '' }, server = {}, trigger = () => {}, upload = null;
  let changed = () => {};
  const watch = (name, act) => { changed = act; };
  const show = (k) => { props.value = messages(k); changed(); };
  const asked = new URLSearchParams(location.search).get('run');
  const first = Math.max(0, choices.findIndex((choice) => choice.value === asked));
  choices.forEach((choice, k) => { choice.checked = k === first; choice.onchange = () => show(k); });
  props.value = messages(first);
  viewer(element, trigger, props, server, upload, watch);
})();
"""
_INLINE = "function messages(k) { return document.querySelectorAll('script[type=\"application/json\"]')[k].textContent; }"
_FETCHED = """function messages(k) {
  const address = document.querySelectorAll('[data-address]')[k].dataset.address;
  return JSON.stringify(location.protocol === 'file:'
    ? { type: 'note', level: 'warn',
        text: 'This folder wants a web server (python -m http.server). The one-file page opens from disk.' }
    : { type: 'bundle-url', url: address });
}"""


class ExportError(FrescoError):
    """Runs that cannot be written as asked."""


def inline_json(value: object) -> str:
    """Return JSON in ASCII that no HTML parser can end early: `<`, `>` and `&` are written as escapes too."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def page(bundles: Sequence[Mapping[str, Any]], *, title: str, text: str = "") -> str:
    """Return one HTML document that holds the viewer and all of the runs, and asks nothing of any network.

    Args:
        bundles: messages of `viz.bundle`; with several, a chooser stands above the viewer.
        title: heading and name of the document.
        text: words above the viewer; empty lines part paragraphs.

    Raises:
        ExportError: without a bundle.
    """
    data = [f'<script type="application/json">{inline_json(b)}</script>' for b in bundles]
    guard = f'<meta http-equiv="Content-Security-Policy" content="{_ALONE}">'
    kept = "This file holds everything it shows: keep it, mail it, open it without a network."
    return _document(bundles, title, text, head=guard, data=data, messages=_INLINE, foot=kept)


def static_site(
    out: str | Path, bundles: Sequence[Mapping[str, Any]], *, title: str = "Fresco: recorded runs", text: str = ""
) -> list[Path]:
    """Write a folder that a static Space, or any web server, serves as it is; return the files.

    The page comes first and is small; each run is a file beside it, fetched when it is chosen.

    Raises:
        ExportError: without a bundle, or where a file would be larger than a Space takes.
    """
    folder = Path(out)
    names = _names(bundles)
    files = {f"runs/{name}.json": json.dumps(b, separators=(",", ":")) for name, b in zip(names, bundles, strict=True)}
    data = [f'<script type="text/plain" data-address="{address}"></script>' for address in files]
    served = "Static pages: nothing runs on a server, and nothing is asked of any other."
    files["index.html"] = _document(bundles, title, text, head="", data=data, messages=_FETCHED, foot=served)
    files["README.md"] = _front_matter(title, len(bundles))
    for name, body in files.items():
        size = len(body.encode("utf-8", "replace"))
        if size >= LARGEST:
            raise ExportError(f"{name} would have {size / 1e6:.1f} MB, a Space takes 10 MB a file; record fewer runs of it")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    return [_write(folder / name, body) for name, body in files.items()]


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


def _thumbnail(b: Mapping[str, Any]) -> str:
    """Return the finished picture of the run that opens first as an <img>; nothing where it has none."""
    taus, nfes, runs = b["taus"], b["nfes"], b["runs"]
    first = (taus[len(taus) // 2] if taus else None, nfes[len(nfes) // 2])
    run = next((r for r in runs if (r["tau"], r["nfe"]) == first), runs[0])
    picture = b["frames"][run["frames"][-1]].get("preview") or ""
    return f'<img src="{picture}" alt="" width="48" height="48">' if _PICTURE.fullmatch(picture) else ""


def _settings(b: Mapping[str, Any]) -> str:
    """Return what tells bundles of one prompt apart: the seed, and tau or ratio of a run that stands alone."""
    run = b["runs"][0]
    drive = run["meta"].get("ratio")
    alone = f", NFE {run['nfe']}, " + (f"tau {run['tau']:g}" if run["tau"] is not None else f"ratio {drive:g}")
    return f"{b['prompt']} (seed {b.get('seed', 0)}{alone if len(b['runs']) == 1 else ''})"


def _chooser(bundles: Sequence[Mapping[str, Any]]) -> str:
    """Return a row of pictures to choose a run by; empty for a single one."""
    if len(bundles) < 2:
        return ""
    prompts = [b["prompt"] for b in bundles]
    items = [
        f'<li><label><input type="radio" name="fx-run" value="{name}">{_thumbnail(b)}'
        f"<span>{html.escape(b['prompt'] if prompts.count(b['prompt']) == 1 else _settings(b))}</span></label></li>"
        for name, b in zip(_names(bundles), bundles, strict=True)
    ]
    return f'<nav class="fv-root fx-runs" aria-label="Recorded runs"><ul>{"".join(items)}</ul></nav>'


def _document(
    bundles: Sequence[Mapping[str, Any]], title: str, text: str, *, head: str, data: Sequence[str], messages: str, foot: str
) -> str:
    if not bundles:
        raise ExportError("there is no run to export; name a recorded prompt or a trace file")
    script = (
        f"{messages}\nfunction viewer(element, trigger, props, server, upload, watch) {{\n{VIEWER['js_on_load']}\n}}\n{_HOST}"
    )
    if re.search(r"</script|<!--", script, re.IGNORECASE):
        raise ExportError("the viewer's script would end its own <script> element; write that text differently in viewer.js")
    paragraphs = "".join(f"<p>{html.escape(p.strip())}</p>" for p in re.split(r"\n\s*\n", text) if p.strip())
    made = sorted({str(b["provenance"].get("weights") or b["model"]) for b in bundles})
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{head}
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}{VIEWER["css_template"]}</style>
{JS["head"]}
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
<div class="fx-text">{paragraphs}</div>
{_chooser(bundles)}
<noscript><p>The runs are drawn by a script in this page; switch JavaScript on to see them.</p></noscript>
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


def read(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the bundles of recorded prompts (by slug), bundle files (.json) and trace files (.npz), in that order given.

    Raises:
        FrescoError: where something named is not there or is something else.
    """
    known = sorted(path.stem for path in TRACES.glob("*.json"))
    traces = [Trace.load(name) for name in names if name.endswith(".npz")]
    out = []
    for name in (n for n in names or known if not n.endswith(".npz")):
        if not name.endswith(".json") and name not in known:
            raise ExportError(
                f"{name!r} is no recorded prompt; choose of {', '.join(known)}, or name a .npz trace or .json file"
            )
        out.append(bundle.load(Path(name) if name.endswith(".json") else TRACES / f"{name}.json"))
    return out + bundle.from_traces(traces)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page or the folder that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m viz.export", description="Recorded runs as pages of their own.")
    parser.add_argument(
        "runs", nargs="*", metavar="slug | trace.npz", help="recorded prompts and traces; all prompts by default"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="page.html", help="one self-contained file")
    target.add_argument("--static", type=Path, metavar="folder", help="a folder for a static Space")
    parser.add_argument("--title", default="Fresco: where does a diffusion transformer spend its compute?")
    parser.add_argument("--text", default="", help="words above the viewer")
    args = parser.parse_args(argv)
    try:
        bundles = read(args.runs)
        if args.static:
            files = static_site(args.static, bundles, title=args.title, text=args.text)
        else:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            files = [_write(args.out, page(bundles, title=args.title, text=args.text))]
    except (FrescoError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    for path in files:
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
