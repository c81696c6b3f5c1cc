"""Likeness of pictures and paired statistics, against closed forms. Source: Wang et al. 2004; METHOD 2.6."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco.metrics import paired, psnr, ssim


def noise(seed, shape=(1, 24, 32, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_equal_pictures():
    a = noise(0, (2, 24, 32, 3))
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1)


@given(st.integers(1, 255), st.integers(0, 255))
def test_a_constant_offset_has_a_closed_form(offset, base):
    """PSNR is 20 log10(255 / offset); SSIM of flat pictures is the luminance term alone, (2ab + c1) / (a^2 + b^2 + c1)."""
    other = base + offset if base + offset < 256 else base - offset
    if other < 0:
        return
    a, b = (np.full((1, 16, 16, 3), v, np.uint8) for v in (base, other))
    assert psnr(a, b) == pytest.approx(20 * math.log10(255 / offset))
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * base * other + c1) / (base**2 + other**2 + c1), abs=1e-6)


def test_one_wrong_pixel_in_many():
    a = np.zeros((1, 20, 20, 3), np.uint8)
    b = a.copy()
    b[0, 3, 4, 1] = 100
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / (100**2 / 1200)))


def slow_ssim(a, b):
    """Return SSIM of one grey picture with an 11 x 11 Gaussian window by loops, over windows that lie inside."""
    k = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    w = np.outer(k, k) / k.sum() ** 2
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for r in range(5, a.shape[0] - 5):
        for c in range(5, a.shape[1] - 5):
            x, y = (p[r - 5 : r + 6, c - 5 : c + 6].astype(float) for p in (a, b))
            mx, my = (w * x).sum(), (w * y).sum()
            vx, vy, xy = (w * x * x).sum() - mx**2, (w * y * y).sum() - my**2, (w * x * y).sum() - mx * my
            values.append((2 * mx * my + c1) * (2 * xy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_ssim_is_wang_s_formula_by_channel_and_frame():
    a, b = noise(1, (2, 15, 17, 3)), noise(2, (2, 15, 17, 3))
    b = (0.6 * a + 0.4 * b).astype(np.uint8)
    want = np.mean([slow_ssim(a[t, ..., c], b[t, ..., c]) for t in range(2) for c in range(3)])
    assert ssim(a, b) == pytest.approx(want, abs=1e-5)


@given(st.integers(0, 50))
def test_likeness_is_symmetric_and_falls_with_noise(seed):
    a, n = noise(seed).astype(float), np.random.default_rng(seed + 1).normal(size=(1, 24, 32, 3))
    near, far = (np.clip(a + s * n, 0, 255).astype(np.uint8) for s in (5, 40))
    picture = a.astype(np.uint8)
    assert psnr(picture, near) == psnr(near, picture)
    assert psnr(picture, near) > psnr(picture, far)
    assert ssim(picture, near) > ssim(picture, far)


def test_pictures_of_other_shapes_and_types_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        psnr(noise(0), noise(0)[:, :12])
    with pytest.raises(ValueError, match="uint8"):
        ssim(noise(0), noise(0).astype(float))


def test_the_paired_interval_is_student_s():
    """Pairs 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.302653."""
    mean, low, high = paired([2, 4, 6], [1, 2, 3])
    half = 4.30265273 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((2, 2 - half, 2 + half))
    half90 = 2.91998558 / math.sqrt(3)
    assert paired([2, 4, 6], [1, 2, 3], 0.9)[1:] == pytest.approx((2 - half90, 2 + half90))
    assert paired([5, 6], [4, 5]) == (1, 1, 1)


@pytest.mark.parametrize(("a", "b"), [([1], [1]), ([], []), ([1, 2], [1])])
def test_too_few_pairs_are_refused(a, b):
    with pytest.raises(ValueError, match="pair"):
        paired(a, b)
