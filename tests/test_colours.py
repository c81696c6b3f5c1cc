"""The viewer's colours for people who see fewer of them: the map keeps its order, the stages stay apart.

Source: Machado, Oliveira, Fernandes 2009, table of severity 1.0 (matrices for linear RGB); CIE 1976 L*a*b*, D65.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from viz import style

VIEWER = Path(__file__).parents[1] / "viz" / "viewer"
SCRIPT, CSS = ((VIEWER / name).read_text(encoding="utf-8") for name in ("viewer.js", "viewer.css"))
SIGHT = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen(rgb, sight):
    """Return the CIELAB of sRGB colours (..., 3) in 0..1 as a person with this sight has them."""
    rgb = np.asarray(rgb, float)
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.asarray(SIGHT[sight]).T
    xyz = np.clip(light, 0, 1) @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    f = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(f > 216 / 24389, np.cbrt(f), (24389 / 27 * f + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def themes():
    """Return {theme: {name: rgb}} of the viewer's own colours."""
    light, dark = CSS.split(".fv-root:is(.dark *)", 1)
    names = ("low", "mixed", "full", "accent", "sunk", "casing", "shine", "mark")

    def read(block):
        found = {n: re.search(rf"--fv-{n}: #([0-9a-f]{{6}})", block) for n in names}
        return {n: np.array([int(m[1][k : k + 2], 16) for k in (0, 2, 4)]) / 255 for n, m in found.items() if m}

    return {"light": read(light), "dark": read(light) | read(dark)}


def test_the_map_is_matplotlibs():
    """Law: viewer, figures and films must mean the same by a colour."""
    listed = re.search(r"const VIRIDIS = \[([\d,\s]+)\]", SCRIPT)
    anchors = np.array([int(n) for n in listed[1].split(",")]).reshape(16, 3)
    assert np.abs(anchors - 255 * style.MAP(np.linspace(0, 1, 16))[:, :3]).max() <= 1


@pytest.mark.parametrize("sight", SIGHT)
def test_brighter_always_means_more_variance(sight):
    """Law: UI-ANCHORS, colour-blind safe: lightness alone orders the map, so it can be read in grey as well."""
    lightness = seen(style.MAP(np.linspace(0, 1, 256))[:, :3], sight)[:, 0]
    assert np.diff(lightness).min() > 0
    assert np.diff(lightness[::17]).min() > 2  # 16 steps, each plainly brighter than the last


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_stages_and_marks_can_be_told_apart(sight, theme):
    colours = {name: seen(rgb, sight) for name, rgb in themes()[theme].items()}
    for one, other in (("low", "mixed"), ("mixed", "full"), ("low", "full"), ("accent", "sunk"), ("casing", "mark")):
        assert np.linalg.norm(colours[one] - colours[other]) > 30, (one, other)
    assert abs(colours["casing"][0] - colours["shine"][0]) > 60  # a white line in a dark casing is seen on any ground


def test_the_figures_use_the_viewers_stages():
    drawn = {name: tuple(round(255 * c) for c in rgb) for name, rgb in themes()["light"].items()}
    assert {n: tuple(int(h[k : k + 2], 16) for k in (1, 3, 5)) for n, h in style.STAGES.items()} == {
        n: drawn[n] for n in ("low", "mixed", "full")
    }
