"""Colours and sizes of the drawn pictures: the only place in Python with a colour. The viewer has its own in viewer.css."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

MAP = mpl.colormaps["viridis"]  # perceptually even, colour-blind safe; dark = settled
SIGNED = mpl.colormaps["PuOr"]  # for numbers around zero; colour-blind safe
PROMOTED = "#b3341a"
OUTLINE = "#ffffff"
MUTED = "#6b7280"
INK = "#1f2937"
PAPER = "#ffffff"
RAIL = "#e7e4de"
CASING = "#14161a"  # dark edge that keeps a light line visible on any picture
GRID = "rgba(128,128,128,0.28)"  # seen on light and dark paper
CLEAR = "rgba(0,0,0,0)"
FRONT = "rgba(217,121,47,0.35)"  # a wide band under the points that nothing beats
STAGES = {"low": "#6a9cc9", "mixed": "#d9792f", "full": "#173f66"}  # the viewer's --fv-low, -mixed, -full


def heat(variance: NDArray[np.floating], vmin: float, vmax: float) -> NDArray[np.uint8]:
    """Return (..., 3) uint8 colours of variances on a log scale from vmin to vmax; grey where undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = np.log(np.clip(variance, vmin, vmax) / vmin) / np.log(vmax / vmin)
    colours = MAP(np.nan_to_num(unit))[..., :3]
    return np.asarray(np.where(np.isfinite(variance)[..., None], colours * 255, 160)).astype(np.uint8)


def signed(values: NDArray[np.floating], reach: float) -> NDArray[np.uint8]:
    """Return (..., 3) uint8 colours of numbers from -reach to reach, zero in the middle, clipped."""
    return np.asarray(SIGNED(np.clip(values / (2 * reach) + 0.5, 0, 1))[..., :3] * 255).round().astype(np.uint8)
