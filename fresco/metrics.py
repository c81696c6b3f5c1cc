"""How alike two pictures are, and paired statistics; thin names over scikit-image and SciPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from skimage.metrics import structural_similarity

from fresco.errors import FrescoError

Picture = NDArray[np.uint8]
SSIM_SIDE = 11  # pixels: the width of the Gaussian window, cut at 3.5 sigma


def _same_shape(a: Picture, b: Picture) -> None:
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"pictures must be uint8 of one shape; got {a.dtype} {a.shape} and {b.dtype} {b.shape}")


def psnr(a: Picture, b: Picture) -> float:
    """Return the peak signal-to-noise ratio in dB of two uint8 pictures of one shape; infinite where they are equal."""
    _same_shape(a, b)
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(a: Picture, b: Picture) -> float:
    """Return the structural similarity, -1 to 1, of two uint8 pictures (..., H, W, 3), averaged over frames.

    Source: Wang et al. 2004: Gaussian window, sigma 1.5, population statistics.
    """
    _same_shape(a, b)
    if min(a.shape[-3:-1]) < SSIM_SIDE:
        height, width = a.shape[-3:-1]
        raise FrescoError(f"pictures of size {height}x{width} are too small for SSIM; make them at least {SSIM_SIDE} a side")
    frames = zip(a.reshape(-1, *a.shape[-3:]), b.reshape(-1, *b.shape[-3:]), strict=True)
    options = {"channel_axis": -1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(np.mean([structural_similarity(x, y, data_range=255, **options) for x, y in frames]))


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return (mean, low, high) of independent values with the t confidence interval of their mean.

    Raises:
        ValueError: below two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values; got {len(values)}")
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def paired(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return (mean, low, high) of a - b with its t confidence interval over pairs.

    Raises:
        ValueError: below two pairs, or where the lengths differ.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"paired statistics need two lists of one length, at least 2; got {len(a)} and {len(b)}")
    return interval([float(d) for d in np.subtract(a, b)], confidence)
