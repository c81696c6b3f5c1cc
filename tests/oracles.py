"""Slow, obvious versions of everything in METHOD 2, by loops over cells and pixels; nothing here imports fresco.

A token is a key (level, frame, row, col), a state is a dict from key to a (C, p, p) array, a mixed picture is a dense
map of the finest cells. Whatever the package does with index tricks is done here one number at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch

Key = tuple[int, int, int, int]
State = dict[Key, np.ndarray]

H4 = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=float)
"""Paper Eq. 8; its rows are the low-pass and the horizontal, vertical and diagonal details of METHOD 2.1."""


# ---------------------------------------------------------------------------------------------------- the quadtree


def cover(shape: tuple[int, int, int], levels: int, key: Key) -> set[tuple[int, int, int]]:
    """Return the finest cells under a token that lie on the canvas."""
    level, frame, row, col = key
    edge = 2 ** (levels - level)
    return {
        (frame, y, x)
        for y in range(row * edge, (row + 1) * edge)
        for x in range(col * edge, (col + 1) * edge)
        if y < shape[1] and x < shape[2]
    }


def uniform(shape: tuple[int, int, int], levels: int, level: int) -> list[Key]:
    """Return the tokens of one level, row-major: those that cover at least one cell."""
    return [
        (level, f, r, c)
        for f in range(shape[0])
        for r in range(shape[1])
        for c in range(shape[2])
        if cover(shape, levels, (level, f, r, c))
    ]


def children(shape: tuple[int, int, int], levels: int, key: Key) -> list[Key]:
    """Return the children of a token that lie on the canvas, row-major."""
    level, f, r, c = key
    four = [(level + 1, f, 2 * r + a, 2 * c + b) for a in (0, 1) for b in (0, 1)]
    return [k for k in four if cover(shape, levels, k)]


def expand(shape: tuple[int, int, int], levels: int, keys: list[Key], chosen: set[Key]) -> tuple[list[Key], list[int]]:
    """Return the tokens with the chosen ones replaced in place by their children, and where each came from."""
    out, parent = [], []
    for i, key in enumerate(keys):
        for new in children(shape, levels, key) if key in chosen else [key]:
            out.append(new)
            parent.append(i)
    return out, parent


def tiles_once(shape: tuple[int, int, int], levels: int, keys: list[Key]) -> bool:
    """Return whether the tokens cover every finest cell exactly once."""
    seen: list[tuple[int, int, int]] = []
    for key in keys:
        seen += sorted(cover(shape, levels, key))
    return len(seen) == len(set(seen)) == shape[0] * shape[1] * shape[2]


def ancestor(key: Key, level: int) -> Key:
    """Return the token of `level` above (or equal to) a token."""
    while key[0] > level:
        key = (key[0] - 1, key[1], key[2] // 2, key[3] // 2)
    return key


def expanded_beyond(keys: list[Key], level: int) -> int:
    """Return how many tokens of `level` have become something finer."""
    return len({ancestor(k, level) for k in keys if k[0] > level})


def position(key: Key, levels: int, frame: str, unit_level: int | None = None) -> tuple[float, float, float]:
    """Return the position of a token of a mixed grid from the extent of its cells. Source: METHOD 2.5."""
    level, f, r, c = key
    edge = 2.0 ** (levels - level)  # in finest cells
    unit = {"coarse": 2.0**levels, "coarse_corner": 2.0**levels, "fine": 1.0}.get(frame)
    if unit is None:
        assert unit_level is not None
        unit = 2.0 ** (levels - unit_level)
    if frame == "coarse_corner":  # the corner, in units
        return (float(f), r * edge / unit, c * edge / unit)
    # the centre of the token, where the centre of the first unit cell is 0
    return (float(f), (r * edge + edge / 2 - unit / 2) / unit, (c * edge + edge / 2 - unit / 2) / unit)


# ------------------------------------------------------------------------------------------- pixels, Haar and noise

FinePixel = Callable[[int, int, int], np.ndarray]
"""(frame, row, col) of a finest latent pixel -> (C,)."""


def low_pixel(fine: FinePixel, halvings: int, f: int, y: int, x: int) -> np.ndarray:
    """Return the noise of a latent pixel `halvings` levels up: H4 / 2 on its four children, first row."""
    if halvings == 0:
        return fine(f, y, x)
    return haar_pixel(fine, halvings, f, y, x)[0]


def haar_pixel(fine: FinePixel, halvings: int, f: int, y: int, x: int) -> np.ndarray:
    """Return (4, C): low-pass and three details of the four pixels under a pixel, by the 4 x 4 matrix."""
    four = np.array([low_pixel(fine, halvings - 1, f, 2 * y + a, 2 * x + b) for a in (0, 1) for b in (0, 1)])
    return H4 / 2 @ four


def token_noise(fine: FinePixel, levels: int, patch: int, key: Key) -> np.ndarray:
    """Return (C, p, p): the unit noise of a token at its own level."""
    level, f, r, c = key
    rows = [[low_pixel(fine, levels - level, f, r * patch + dy, c * patch + dx) for dx in range(patch)] for dy in range(patch)]
    return np.moveaxis(np.array(rows), -1, 0)


def token_details(fine: FinePixel, levels: int, patch: int, key: Key) -> np.ndarray:
    """Return (3, C, p, p): the details under each latent pixel of a token."""
    level, f, r, c = key
    out = [
        [haar_pixel(fine, levels - level, f, r * patch + dy, c * patch + dx)[1:] for dx in range(patch)] for dy in range(patch)
    ]
    return np.moveaxis(np.array(out), (2, 3), (0, 1))


def canvas(state: State, shape: tuple[int, int, int], levels: int, patch: int) -> np.ndarray:
    """Return (C, frames, H, W): every finest latent pixel takes the value of the latent pixel above it."""
    channels = next(iter(state.values())).shape[0]
    out = np.full((channels, shape[0], shape[1] * patch, shape[2] * patch), np.nan)
    for (level, f, r, c), value in state.items():
        edge = 2 ** (levels - level)
        for dy in range(patch * edge):
            for dx in range(patch * edge):
                y, x = r * edge * patch + dy, c * edge * patch + dx
                if y < out.shape[2] and x < out.shape[3]:
                    assert np.isnan(out[0, f, y, x]), "two tokens cover one pixel"
                    out[:, f, y, x] = value[:, dy // edge, dx // edge]
    return out


def mean_pixel(latent: np.ndarray, edge: int, f: int, y: int, x: int) -> np.ndarray:
    """Return (C,): the mean over the finest pixels that exist under a coarse pixel; past the end, of the last one."""
    while y * edge >= latent.shape[2]:
        y -= 1
    while x * edge >= latent.shape[3]:
        x -= 1
    below = [
        latent[:, f, v, u]
        for v in range(y * edge, min((y + 1) * edge, latent.shape[2]))
        for u in range(x * edge, min((x + 1) * edge, latent.shape[3]))
    ]
    return np.mean(below, axis=0)


def token_mean(latent: np.ndarray, levels: int, patch: int, key: Key) -> np.ndarray:
    """Return (C, p, p): a token of a finest latent, coarse pixels averaged over what exists. Source: METHOD 2.1."""
    level, f, r, c = key
    edge = 2 ** (levels - level)
    rows = [[mean_pixel(latent, edge, f, r * patch + dy, c * patch + dx) for dx in range(patch)] for dy in range(patch)]
    return np.moveaxis(np.array(rows), -1, 0)


# ------------------------------------------------------------------------------------------------------- expansions


def replicated(parent: np.ndarray, a: int, b: int) -> np.ndarray:
    """Return child (a, b) when each latent pixel becomes a 2 x 2 block of itself."""
    _, p, _ = parent.shape
    out = np.empty_like(parent)
    for dy in range(p):
        for dx in range(p):
            out[:, dy, dx] = parent[:, (a * p + dy) // 2, (b * p + dx) // 2]
    return out


def bilinear_child(state: State, shape, levels: int, patch: int, key: Key, a: int, b: int) -> np.ndarray:
    """Return child (a, b) by 3/4, 1/4 weights on the parent's pixel and its neighbours at the parent's level."""
    level, f, r, c = key
    latent = canvas(state, shape, levels, patch)
    edge = 2 ** (levels - level)
    height, width = (-(-side // edge) * patch for side in shape[1:])  # of the parents' own dense grid, in pixels
    out = np.empty_like(state[key])
    for dy in range(patch):
        for dx in range(patch):
            fine_y, fine_x = (2 * r + a) * patch + dy, (2 * c + b) * patch + dx
            y, x = fine_y // 2, fine_x // 2
            beside_y = min(max(y + (1 if fine_y % 2 else -1), 0), height - 1)
            beside_x = min(max(x + (1 if fine_x % 2 else -1), 0), width - 1)
            out[:, dy, dx] = sum(
                wy * wx * mean_pixel(latent, edge, f, yy, xx)
                for wy, yy in ((0.75, y), (0.25, beside_y))
                for wx, xx in ((0.75, x), (0.25, beside_x))
            )
    return out


def lanczos_axis(position: float, size: int) -> dict[int, float]:
    """Return {old pixel: weight} of Lanczos-3 at a position in old pixels (their centres at i + 0.5), summing to 1."""
    weights = {}
    for i in range(size):
        away = abs(i + 0.5 - position)
        if away < 3:
            wave = 1.0 if away == 0 else 3 * math.sin(math.pi * away) * math.sin(math.pi * away / 3) / (math.pi * away) ** 2
            weights[i] = wave
    total = sum(weights.values())
    return {i: w / total for i, w in weights.items()}


def lanczos_child(state: State, shape, levels: int, patch: int, key: Key, a: int, b: int) -> np.ndarray:
    """Return child (a, b): each new pixel from the dense latent at the parent's level, six old ones a side."""
    level, f, r, c = key
    latent = canvas(state, shape, levels, patch)
    edge = 2 ** (levels - level)
    height, width = (-(-side // edge) * patch for side in shape[1:])
    out = np.empty_like(state[key])
    for dy in range(patch):
        for dx in range(patch):
            rows = lanczos_axis(((2 * r + a) * patch + dy + 0.5) / 2, height)
            cols = lanczos_axis(((2 * c + b) * patch + dx + 0.5) / 2, width)
            out[:, dy, dx] = sum(
                wy * wx * mean_pixel(latent, edge, f, y, x) for y, wy in rows.items() for x, wx in cols.items()
            )
    return out


def up(name: str, state: State, shape, levels: int, patch: int, key: Key, child: Key) -> np.ndarray:
    """Return what a parent's value is at one child: a constant stays that constant."""
    a, b = child[2] % 2, child[3] % 2
    if name == "hadamard_token":
        return state[key]
    if name == "bilinear":
        return bilinear_child(state, shape, levels, patch, key, a, b)
    if name == "lanczos":
        return lanczos_child(state, shape, levels, patch, key, a, b)
    return replicated(state[key], a, b)


def high(name: str, details: np.ndarray, child: Key) -> np.ndarray:
    """Return the high-pass part of unit noise at one child: columns 2 to 4 of H4 / 2."""
    a, b = child[2] % 2, child[3] % 2
    _, channels, p, _ = details.shape
    out = np.zeros((channels, p, p))
    if name in ("nearest", "bilinear", "lanczos"):
        return out
    for dy in range(p):
        for dx in range(p):
            if name == "hadamard_token":
                quarter, py, px = 2 * a + b, dy, dx
            else:
                y, x = a * p + dy, b * p + dx
                quarter, py, px = 2 * (y % 2) + x % 2, y // 2, x // 2
            for k in range(3):
                out[:, dy, dx] += H4[quarter, k + 1] / 2 * details[k, :, py, px]
    return out


# -------------------------------------------------------------------------------------------- sigmas, checks, legs


def shifted(u: float, alpha: float) -> float:
    """Return sigma = alpha u / (1 + (alpha - 1) u)."""
    return alpha * u / (1 + (alpha - 1) * u)


def model_sigmas(n: int, start: float, end: float, alpha: float) -> list[float]:
    """Return n + 1 sigmas, uniform in unshifted time. Source: METHOD 2.6."""
    first, last = (s / (alpha - (alpha - 1) * s) for s in (start, end))
    return [start, *(shifted(first + (last - first) * i / n, alpha) for i in range(1, n)), end]


def split_of(nfe: int) -> tuple[int, int, int]:
    """Return the default split. Source: METHOD 2.6."""
    paper = {30: (12, 9, 9), 18: (6, 7, 5), 11: (5, 2, 4)}
    if nfe in paper:
        return paper[nfe]
    low, full = max(1, round(0.4 * nfe)), max(1, round(0.3 * nfe))
    return low, nfe - low - full, full


def check_steps(low: int, mixed: int, count: int) -> dict[int, int]:
    """Return {step: how manieth check}; the closing check is not among them."""
    return {low - 1 + j * mixed // count: j for j in range(count)}


def quota(ratio: float, j: int, count: int, cells: int) -> int:
    """Return floor(target * cells), the target rising linearly from ratio to 1, in exact arithmetic."""
    target = Fraction(str(ratio)) + (1 - Fraction(str(ratio))) * Fraction(j, count)
    return math.floor(target * cells)


# ---------------------------------------------------------------------------------------------------- the variance


def variance(history: list[np.ndarray], window: int) -> float:
    """Return the unbiased variance over the last `window` values of a token, mean over its entries; NaN below two."""
    last = history[-window:]
    if len(last) < 2:
        return math.nan
    total, count = 0.0, 0
    for index in np.ndindex(last[0].shape):
        values = [float(v[index]) for v in last]
        mean = sum(values) / len(values)
        total += sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        count += 1
    return total / count


def channel_variance(value: np.ndarray) -> float:
    """Return the unbiased variance across the entries of one token; NaN for one entry."""
    entries = [float(v) for v in value.ravel()]
    if len(entries) < 2:
        return math.nan
    mean = sum(entries) / len(entries)
    return sum((v - mean) ** 2 for v in entries) / (len(entries) - 1)


# --------------------------------------------------------------------------------------------- the slow sampler

RAISED = ("rewind", "renoise", "renoise_x0", "restart")
ESTIMATING = ("renoise_x0", "restart")


def landing(sigma: float, ratio: float = 2.0) -> float:
    """Return the sigma whose noise-to-signal ratio is `ratio` times that of sigma; 2 sigma / (1 + sigma) for 2."""
    noise, signal = ratio * sigma, 1 - sigma
    return noise / (noise + signal)


class Noise:
    """Where the slow sampler reads noise: a field, or arrays that a run with fresh noise was seen to draw."""

    def __init__(self, fine: FinePixel, levels: int, patch: int, draws: list | None = None) -> None:
        self.fine, self.levels, self.patch, self.draws = fine, levels, patch, draws

    def _next(self, kind: str) -> np.ndarray:
        mine = next(i for i, (name, _) in enumerate(self.draws) if name == kind)
        return self.draws.pop(mine)[1]

    def at(self, keys: list[Key]) -> State:
        """Return unit noise of tokens at their own levels."""
        if self.draws is not None:
            return dict(zip(keys, self._next("at"), strict=True))
        return {k: token_noise(self.fine, self.levels, self.patch, k) for k in keys}

    def details(self, keys: list[Key]) -> State:
        """Return the details under tokens."""
        if self.draws is not None:
            return dict(zip(keys, self._next("details"), strict=True))
        return {k: token_details(self.fine, self.levels, self.patch, k) for k in keys}


def move(
    name: str, expansion: str, *, keys: list[Key], chosen: list[Key], sigma: float, x: State, x0: State, noise: Noise,
    shape, path: dict[Key, list[tuple[float, np.ndarray]]], coherent: bool = True, gain: float = 0.0,
    ratio: float = 2.0,
) -> tuple[list[Key], float, State]:  # fmt: skip
    """Return tokens, sigma and state after a transition. Source: METHOD 2.1, 2.2, row by row."""
    levels, patch = noise.levels, noise.patch
    keys_next, _ = expand(shape, levels, keys, set(chosen))
    after = sigma if name in ("carry", "redraw") else landing(sigma, ratio)
    boost = math.sqrt(1 + ((1 - after) / after) ** 2 * gain) if after > 0 else 1.0
    detailed = expansion in ("hadamard", "hadamard_token")
    eps = {k: (x[k] - (1 - sigma) * x0[k]) / sigma for k in keys} if sigma > 0 else {k: 0 * x[k] for k in keys}
    out: State = {}

    def spread(values: State, key: Key, child: Key) -> np.ndarray:
        return up(expansion, values, shape, levels, patch, key, child)

    unit = noise.at(keys_next) if name in ("renoise", "renoise_x0", "restart", "redraw") else {}
    lows = noise.at(keys) if name == "renoise" and ratio != 2 else {}
    if name in ("carry", "rewind", "renoise"):
        details = noise.details(chosen) if detailed else {}
        for key in chosen:
            for child in children(shape, levels, key):
                fine = boost * high(expansion, details[key], child) if detailed else 0.0
                if name == "carry":
                    unit = spread(eps, key, child) * (0.5 if detailed else 1.0) + fine
                    out[child] = (1 - sigma) * spread(x0, key, child) + sigma * unit
                else:  # what the parent's spread noise lacks towards the children's own low-pass, after / 2 per unit
                    share = (1 - after) / (1 - sigma) if sigma < 1 else 0.5
                    out[child] = share * spread(x, key, child) + after * fine
                    if ratio != 2:
                        held, wanted = share * sigma, after / 2
                        rest = wanted - held if coherent else math.sqrt(wanted**2 - held**2)
                        out[child] = out[child] + rest * spread(lows, key, child)
    if name in ("renoise_x0", "restart", "redraw"):
        for key in chosen:
            for child in children(shape, levels, key):
                out[child] = (1 - after) * spread(x0, key, child) + after * unit[child]
    for key in keys:
        if key in chosen:
            continue
        beta = (1 - after) / (1 - sigma) if sigma < 1 else math.nan
        if name in ("carry", "redraw"):
            out[key] = x[key]
        elif name == "rewind":
            out[key] = at_sigma(path[key], after)
        elif name == "renoise_x0":
            out[key] = (1 - after) * x0[key] + after * unit[key]
        elif name == "renoise" and coherent:
            out[key] = beta * x[key] + (after - beta * sigma) * unit[key]
        else:
            out[key] = beta * x[key] + math.sqrt(after**2 - (beta * sigma) ** 2) * unit[key]
    return keys_next, after, {k: out[k] for k in keys_next}


def at_sigma(nodes: list[tuple[float, np.ndarray]], sigma: float) -> np.ndarray:
    """Return a token's state at sigma by linear interpolation between its own stored nodes."""
    sigmas = [s for s, _ in nodes]
    assert min(sigmas) - 1e-9 <= sigma <= max(sigmas) + 1e-9, "no history at this sigma"
    flat = np.array([v.ravel() for _, v in nodes])
    order = np.argsort(sigmas, kind="stable")
    columns = [np.interp(sigma, np.array(sigmas)[order], flat[order, i]) for i in range(flat.shape[1])]
    return np.array(columns).reshape(nodes[0][1].shape)


def slow_sample(
    model: Callable[[list[Key], State, float], State],
    sigmas: Callable[[int, int, float, float], list[float]],
    noise: Noise, shape: tuple[int, int, int], *, stages: tuple[int, int, int], transition: str = "carry",
    expansion: str = "hadamard", selection: str = "variance", signal: str = "x0", window: int = 4, count: int = 1,
    ratio: float | None = 0.4, tau: float | None = None, coherent: bool = True, gain: float = 0.0,
    switch: tuple[float, ...] = (), head: int = 0, times: float = 2.0,
) -> list[dict]:  # fmt: skip
    """Return every step of a whole run, token by token. Source: METHOD 2.2, 2.3, 2.6."""
    levels = noise.levels
    low, mixed, full = stages
    nfe = head + low + mixed + full
    coarse = uniform(shape, levels, 0)
    keys = uniform(shape, levels, levels) if head or not low else coarse
    fine = shape[0] * shape[1] * shape[2]
    raises = transition in RAISED
    s = sigmas(nfe, fine, 1.0, 0.0)

    def below(sigma: float) -> float:  # the sigma whose promotion lands here
        return landing(sigma, 1 / times) if raises else sigma

    def sketch_sigmas() -> list[float]:
        start, end = below(s[head]) if head else 1.0, switch[0] if switch else below(s[head + low])
        if transition in ESTIMATING:  # the last low call stands still
            return sigmas(low - 1, len(coarse), start, end)
        return sigmas(low, len(coarse), start, end) if switch else [below(v) for v in s[head : head + low + 1]]

    if low == 0 or (not raises and not switch):
        todo = s  # the sigmas still to be visited, the present one first
        sketch = s[head:]
    else:
        todo = sketch = sketch_sigmas()
    if head:
        todo = s[: head + 1]

    low += head  # from here on: where the low stage ends
    looks = check_steps(low, mixed, min(count, mixed)) if low and mixed else {}
    closing = low + mixed - 1 if low else -1
    x = noise.at(keys)
    past: dict[Key, list[np.ndarray]] = {k: [] for k in keys}
    path: dict[Key, list[tuple[float, np.ndarray]]] = {k: [] for k in keys}
    records = []

    def respace(step: int, sigma: float) -> list[float]:
        if len(switch) == 2 and step < low + mixed:
            return sigmas(low + mixed - step, fine, sigma, switch[1])
        return sigmas(nfe - step, fine, sigma, 0.0) if step < nfe else [sigma]

    for step in range(nfe):
        sigma = todo[0]
        v = model(keys, x, sigma)
        x0 = {k: x[k] - sigma * v[k] for k in keys}
        for k in keys:
            past[k].append(x[k] if signal == "z" else x0[k])
            path[k].append((sigma, x[k]))
        seen = {k: channel_variance(x0[k]) if signal == "channel" else variance(past[k], window) for k in keys}

        chosen: list[Key] = []
        open_ = [k for k in keys if k[0] < levels]
        if step == closing:
            chosen = open_
        elif step in looks:
            order = -1 if selection == "variance_high" else 1
            if selection == "all":
                chosen = open_
            elif tau is not None:
                chosen = [k for k in open_ if order * seen[k] <= order * tau]
            else:
                for level in range(levels):
                    j = looks[step] - level
                    want = quota(ratio, j, min(count, mixed), len(uniform(shape, levels, level))) if j >= 0 else 0
                    want -= expanded_beyond(keys, level)
                    pool = [k for k in keys if k[0] == level and not math.isnan(seen[k])]
                    chosen += sorted(pool, key=lambda k: order * seen[k])[: max(want, 0)]
        chosen = [k for k in keys if k in set(chosen)]

        stays = transition in ESTIMATING and (bool(chosen) or (step == low - 1 and low > 0))
        landed = sigma if stays else todo[1]
        x_next = {k: x[k] + (landed - sigma) * v[k] for k in keys}
        for k in keys:
            path[k].append((landed, x_next[k]))
        keys_next, x0_next, moving, first = keys, x0, chosen, True
        while moving:
            before = keys_next
            keys_next, new_sigma, moved = move(
                transition, expansion, keys=before, chosen=moving, sigma=landed, x=x_next, x0=x0_next, noise=noise,
                shape=shape, path=path, coherent=coherent, gain=gain, ratio=times,
            )  # fmt: skip
            born = {c: k for k in moving for c in children(shape, levels, k)}
            x0_next = {
                k: up(expansion, x0_next, shape, levels, noise.patch, born[k], k) if k in born else x0_next[k]
                for k in keys_next
            }
            past = {k: [replicated(h, k[2] % 2, k[3] % 2) for h in past[born[k]]] if k in born else past[k] for k in keys_next}
            path = {
                k: [*([] if k in born else [n for n in path[k] if n[0] > new_sigma]), (new_sigma, moved[k])] for k in keys_next
            }
            landed, x_next, first = new_sigma, moved, False
            moving = [k for k in keys_next if k[0] < levels] if step == closing else []
        if not stays:
            todo = todo[1:]
        if raises and not first and step == low - 1 and not switch and abs(landed - s[low]) < 1e-9:
            todo = s[low:]  # the first landing is on the grid of the whole run
        elif step >= low - 1 and (abs(landed - todo[0]) > 1e-9 or len(todo) == 1):
            todo = respace(step + 1, landed)
        if step + 1 == head:  # down: the estimate averaged, under the coarse grid's own noise
            todo = sketch
            latent, unit = canvas(x0, shape, levels, noise.patch), noise.at(coarse)
            landed, keys_next = todo[0], coarse
            x_next = {k: (1 - landed) * token_mean(latent, levels, noise.patch, k) + landed * unit[k] for k in coarse}
            past, path = {k: [] for k in coarse}, {k: [] for k in coarse}
        records.append(
            {
                "sigma": sigma,
                "sigma_next": landed,
                "keys": keys,
                "x": x,
                "x0": x0,
                "variance": seen,
                "chosen": set(chosen),
                "keys_next": keys_next,
                "x_next": x_next,
            }
        )
        x, keys = x_next, keys_next
    return records


# ------------------------------------------------------------------------------------------- a small smooth model


def pattern_velocity(keys: list[Key], x: State, sigma: float, levels: int) -> State:
    """Return a smooth velocity that depends on value, place, level, sigma and the mean over the canvas."""
    area = {k: 4.0 ** (levels - k[0]) for k in keys}
    total = sum(area.values())
    first = x[keys[0]]
    mean = sum(area[k] * x[k].mean(axis=(1, 2)) for k in keys) / total
    out = {}
    for k in keys:
        level, f, r, c = k
        scale = 2.0 ** (levels - level)
        value = np.empty_like(first)
        for ch in range(first.shape[0]):
            for dy in range(first.shape[1]):
                for dx in range(first.shape[2]):
                    y, z = (r * first.shape[1] + dy + 0.5) * scale, (c * first.shape[1] + dx + 0.5) * scale
                    target = math.sin(0.41 * y * (ch + 1) + 0.5 * f) + math.cos(0.23 * z - ch + 0.1 * level)
                    wave = 1 + 0.4 * sigma * math.sin(0.7 * y + 0.9 * z + ch)
                    here = float(x[k][ch, dy, dx])
                    value[ch, dy, dx] = (
                        here * (0.5 + 0.4 * sigma) - target * wave + 0.2 * math.tanh(here) + 0.3 * float(mean[ch])
                    )
        out[k] = value
    return out


class Recorded:
    """Any noise source, remembered: what it gave, in order, so that the slow versions can be given the same."""

    def __init__(self, source, channels: int, patch: int) -> None:
        self.source, self.block, self.draws = source, (channels, patch, patch), []

    def at(self, grid):
        """Pass on unit noise."""
        values = self.source.at(grid)
        self.draws.append(("at", values.reshape(len(values), *self.block)))
        return values

    def details(self, grid, mask):
        """Pass on details."""
        values = self.source.details(grid, mask)
        self.draws.append(("details", values.reshape(len(values), 3, *self.block)))
        return values


class PatternDenoiser:
    """`pattern_velocity` behind the denoiser protocol; `calls` counts, and it also reports some attention."""

    device = torch.device("cpu")

    def __init__(self, shape: tuple[int, int, int], channels: int = 1, patch: int = 1, alpha: float = 1.7) -> None:
        self.shape, self.channels, self.patch, self.alpha, self.calls = shape, channels, patch, alpha, 0

    def token_shape(self, size):
        """Return the size in tokens: one token per pixel, or the native shape."""
        return size or self.shape

    def sigmas(self, n, tokens, start=1.0, end=0.0):
        """Return sigmas uniform in unshifted time; the shift grows with the square root of the token count."""
        return model_sigmas(n, start, end, self.alpha * math.sqrt(tokens / math.prod(self.shape)))

    def __call__(self, x, grid, sigma, cond):
        """Return the velocity, computed token by token."""
        self.calls += 1
        state = key_state(grid.level, grid.coord, x.double().numpy(), self.channels, self.patch)
        velocity = pattern_velocity(list(state), state, sigma, grid.levels)
        return torch.tensor(np.array([velocity[k].ravel() for k in state]), dtype=torch.float32)

    def attention(self, grid):
        """Return an attention that peaks at one corner and depends on the place only."""
        edge = 2.0 ** (grid.levels - grid.level)[:, None]
        y, x = ((grid.coord[:, 1:] + 0.5) * edge).T
        return torch.tensor(np.exp(-0.1 * (y + 0.3 * x)), dtype=torch.float32)

    def flops(self, tokens):
        """Return one unit of cost per token."""
        return float(tokens)


def key_state(level: np.ndarray, coord: np.ndarray, x: np.ndarray, channels: int, patch: int) -> State:
    """Return arrays of tokens as a dict from key to (C, p, p)."""
    return {
        (int(lv), int(f), int(r), int(c)): np.asarray(v, dtype=float).reshape(channels, patch, patch)
        for lv, (f, r, c), v in zip(level, coord, x, strict=True)
    }


# ------------------------------------------------------------------------------------------------------- a random field


def field_velocity(truth: np.ndarray, means: np.ndarray, z: np.ndarray, sigma: float) -> np.ndarray:
    """Return E[eps - y | z] of y = means x, x ~ N(0, truth), by the eigenmodes of the tokens' covariance.

    Args:
        truth: (n, n) covariance of all finest cells, frames included.
        means: (N, n) each token as a mean of cells.
        z: (N, D) the state (1 - sigma) y + sigma eps.
    """
    power, modes = np.linalg.eigh(means @ truth @ means.T)
    power = np.maximum(power, 0)
    gain = (sigma - (1 - sigma) * power) / ((1 - sigma) ** 2 * power + sigma**2)
    return modes @ (gain[:, None] * (modes.T @ z))
