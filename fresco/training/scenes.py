"""Scenes as pixels: a batch of recipes composed on any device, at any resolution, without a loop over pictures.

Every object is resized by two matrix products with exact box filters (premultiplied alpha, so that no dark fringe appears),
which at minification makes a picture at half the size the 2x2 mean of the picture at full size, up to blending.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fresco.training.data import Library
from fresco.training.recipes import BACKDROPS, PALETTE, PARAMETERS, SLOTS, Scene

_JITTER = 0.05
_SKY = {  # top and bottom
    "day": ((0.42, 0.70, 0.95), (0.80, 0.92, 1.00)),
    "sunset": ((0.38, 0.30, 0.58), (1.00, 0.62, 0.36)),
    "night": ((0.03, 0.05, 0.16), (0.12, 0.17, 0.36)),
}
_LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (0.92, 0.78, 0.72), "night": (0.42, 0.48, 0.62)}  # on ground, hills and sea
_SEA = (0.13, 0.42, 0.72)
_STARS = 20


def resize_matrix(centre: torch.Tensor, size: torch.Tensor, flip: torch.Tensor, canvas: int, icon: int) -> torch.Tensor:
    """Return (B, canvas, icon): how much each texel counts for each pixel along one axis.

    A pixel takes the mean over its own width, or over one texel where the icon is enlarged (then this is linear
    interpolation); what lies beyond the icon is transparent, so border rows sum to less than 1 and inner rows to 1.

    Args:
        centre, size: (B,) of the icon, in canvases.
        flip: (B,) bool; mirrors the icon.
        canvas, icon: sides in pixels.
    """
    pixel = (torch.arange(canvas, device=centre.device) + 0.5) / canvas
    at = (pixel - (centre - size / 2)[:, None]) / size[:, None] * icon  # where the pixel's centre lies, in texels
    at = torch.where(flip[:, None], icon - at, at)
    half = (icon / (canvas * size)).clamp(min=1)[:, None, None] / 2
    texel = torch.arange(icon, device=centre.device)
    overlap = torch.minimum(at[..., None] + half, texel + 1.0) - torch.maximum(at[..., None] - half, texel + 0.0)
    return overlap.clamp(min=0) / (2 * half)


def tint(rgba: torch.Tensor, colour: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
    """Return premultiplied RGBA (B, 4, H, W) with its luminance on a ramp black - colour - white; alpha stays.

    Args:
        rgba: premultiplied, in [0, 1].
        colour: (B, 3); what luminance `middle` becomes.
        middle: (B,) in (0, 1).
    """
    alpha, m = rgba[:, 3:], middle[:, None, None, None]
    luma = (rgba[:, :3] * rgba.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    c = colour[:, :, None, None]
    bright = c * alpha + (1 - c) * (luma - m * alpha) / (1 - m)
    return torch.cat([torch.where(luma <= m * alpha, c * luma / m, bright), alpha], 1)


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """Recipes as NumPy arrays: cheap to send between processes, and a GPU is never asked what to draw next.

    Attributes:
        captions: (B,).
        present: per slot, the scenes that have an object there.
        backdrops: per backdrop, its scenes.
        icon: (B, SLOTS) int64.
        place: (B, SLOTS, 4) x, y, size, flip (0 or 1).
        tint: (B, SLOTS, 4) RGB and whether it applies.
        colours: (B, 2, 3) of the backdrop.
        sky: (B, 3, 3) top, bottom, light on the ground.
        starry: (B, 1) whether the sky holds stars.
        parameters: (B, PARAMETERS).
    """

    captions: list[str]
    present: list[NDArray[np.int64]]
    backdrops: dict[str, NDArray[np.int64]]
    icon: NDArray[np.int64]
    place: NDArray[np.float32]
    tint: NDArray[np.float32]
    colours: NDArray[np.float32]
    sky: NDArray[np.float32]
    starry: NDArray[np.float32]
    parameters: NDArray[np.float32]


def pack(scenes: Sequence[Scene]) -> SceneBatch:
    """Return recipes as one batch."""
    n = len(scenes)
    icon, place = np.zeros((n, SLOTS), np.int64), np.zeros((n, SLOTS, 4), np.float32)
    dye = np.zeros((n, SLOTS, 4), np.float32)
    for i, scene in enumerate(scenes):
        for j, thing in enumerate(scene.things):
            icon[i, j] = thing.icon
            place[i, j] = thing.x, thing.y, thing.size, thing.flip
            if thing.colour:
                dye[i, j] = *PALETTE[thing.colour], 1
    counts = np.array([len(scene.things) for scene in scenes])
    kinds = np.array([BACKDROPS.index(scene.backdrop) for scene in scenes])
    return SceneBatch(
        [scene.caption for scene in scenes],
        [np.flatnonzero(counts > slot) for slot in range(SLOTS)],
        {name: np.flatnonzero(kinds == k) for k, name in enumerate(BACKDROPS)},
        icon,
        place,
        dye,
        np.array([[scene.palette[c] for c in scene.colours] for scene in scenes], np.float32),
        np.array([[*_SKY[scene.time], _LIGHT[scene.time]] for scene in scenes], np.float32),
        np.array([[scene.time == "night"] for scene in scenes], np.float32),
        np.stack([scene.parameters for scene in scenes]),
    )


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor there, copied behind what a GPU is doing."""
    x = torch.from_numpy(np.ascontiguousarray(array))
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def _mix(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return a + (b - a) * weight


class Composer:
    """Draws scenes from a library whose pixels lie on the device."""

    def __init__(self, library: Library, device: torch.device) -> None:
        """Put the icons, (icons, 4, size, size) uint8, on the device."""
        self.device = device
        pixels = torch.empty(len(library.pixels), 4, *library.pixels.shape[1:3], dtype=torch.uint8, device=device)
        for at in range(0, len(pixels), 512):
            block = torch.from_numpy(np.array(library.pixels[at : at + 512]))  # a copy: the file is read-only
            pixels[at : at + 512] = block.to(device).permute(0, 3, 1, 2)
        self.pixels = pixels
        self.luminance = torch.from_numpy(library.luminance).to(device)

    def _to(self, array: NDArray[Any]) -> torch.Tensor:
        return to_device(array, self.device)

    @torch.no_grad()
    def __call__(self, batch: SceneBatch, canvas: int) -> torch.Tensor:
        """Return (B, 3, canvas, canvas) float32 RGB in [-1, 1]."""
        return self.layers(batch, canvas)[0]

    @torch.no_grad()
    def layers(self, batch: SceneBatch, canvas: int, keep: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the pictures and, where asked for, per slot the objects there: (scenes present, 4, canvas, canvas)."""
        picture = self.backdrop(batch, canvas)
        icon, place, dye = self._to(batch.icon), self._to(batch.place), self._to(batch.tint)
        kept = []
        for slot, here in enumerate(batch.present):
            if len(here) == 0:
                break
            rows = self._to(here)
            which, (x, y, size, flip) = icon[rows, slot], place[rows, slot].unbind(1)
            source = self.pixels[which].float() / 255
            side = source.shape[-1]
            down = resize_matrix(y, size, torch.zeros_like(flip, dtype=torch.bool), canvas, side)
            across = resize_matrix(x, size, flip > 0, canvas, side)
            rgba = (down[:, None] @ source) @ across[:, None].transpose(2, 3)
            colour, dyed = dye[rows, slot, :3], dye[rows, slot, 3:, None, None]
            rgba = torch.where(dyed > 0, tint(rgba, colour, self.luminance[which]), rgba)
            picture[rows] = picture[rows] * (1 - rgba[:, 3:]) + rgba[:, :3]
            if keep:
                kept.append(rgba)
        return picture.clamp(0, 1) * 2 - 1, kept

    @torch.no_grad()
    def backdrop(self, batch: SceneBatch, canvas: int) -> torch.Tensor:
        """Return (B, 3, canvas, canvas) float32 RGB in [0, 1] without the objects."""
        out = torch.empty(len(batch.captions), 3, canvas, canvas, device=self.device)
        u, colours, sky = self._to(batch.parameters), self._to(batch.colours), self._to(batch.sky)
        starry = self._to(batch.starry)
        axis = (torch.arange(canvas, device=self.device) + 0.5) / canvas
        for name, here in batch.backdrops.items():
            if len(here):
                rows = self._to(here)
                draw = getattr(self, f"_{name}")
                out[rows] = draw(_Canvas(axis, u[rows], colours[rows], sky[rows], starry[rows])).clamp(0, 1)
        return out

    @staticmethod
    def _plain(c: _Canvas) -> torch.Tensor:
        return c.colour(0).expand(-1, -1, c.side, c.side)

    @staticmethod
    def _gradient(c: _Canvas) -> torch.Tensor:
        angle = c.p(6) * 2 * math.pi
        along = (c.x - 0.5) * angle.cos() + (c.y - 0.5) * angle.sin()
        return _mix(c.colour(0), c.colour(1), (along * 1.1 + 0.5).clamp(0, 1))

    @staticmethod
    def _ground(c: _Canvas) -> torch.Tensor:
        horizon = 0.46 + 0.2 * c.p(6)
        shade = 1.06 - 0.22 * ((c.y - horizon) / (1 - horizon)).clamp(0, 1)
        return _mix(c.heaven(), c.colour(0) * shade * c.light(), c.edge(c.y - horizon))

    @staticmethod
    def _hills(c: _Canvas) -> torch.Tensor:
        picture = c.heaven()
        for k, (height, swing, shade) in enumerate(((0.50, 0.07, 1.14), (0.64, 0.08, 0.94))):
            at = 7 + 4 * k
            wave = torch.sin(2 * math.pi * (c.x * (0.6 + 1.0 * c.p(at)) + c.p(at + 1)))
            ridge = height + 0.1 * (c.p(at + 2) - 0.5) + swing * wave
            body = c.colour(0) * shade * (1.05 - 0.35 * (c.y - ridge).clamp(0, 0.5))
            picture = _mix(picture, body * c.light(), c.edge(c.y - ridge))
        return picture

    @staticmethod
    def _sea(c: _Canvas) -> torch.Tensor:
        horizon = 0.42 + 0.16 * c.p(6)
        depth = ((c.y - horizon) / (1 - horizon)).clamp(0, 1)
        water = c.u.new_tensor(_SEA)[:, None, None] * (1.15 - 0.4 * depth) + 0.06 * (c.p(7) - 0.5)
        rows = depth.sqrt() * (5 + 4 * c.p(8))  # crests crowd towards the horizon
        crest = torch.sin(2 * math.pi * (rows + 0.18 * torch.sin(2 * math.pi * (c.x * (2 + 2 * c.p(9)) + c.p(10)))))
        water = water + 0.10 * (crest - 0.6).clamp(min=0) / 0.4
        return _mix(c.heaven(), water * c.light(), c.edge(c.y - horizon))

    @staticmethod
    def _stars(c: _Canvas) -> torch.Tensor:
        top, bottom = (c.u.new_tensor(x)[:, None, None] for x in _SKY["night"])
        return _mix(top, bottom, c.y * c.p(6)) + c.jitter(0) * 0.6 + c.stars()

    @staticmethod
    def _paper(c: _Canvas) -> torch.Tensor:
        old = (c.p(6) > 0.6).float() * c.p(7)
        base = c.u.new_tensor((0.97, 0.95, 0.89))[:, None, None] - old * c.u.new_tensor((0.12, 0.20, 0.32))[:, None, None]
        mottle = torch.zeros_like(c.x * c.y)
        for k in range(6):
            at = 10 + 3 * k
            turn, reach = 2 * math.pi * c.p(at), 2 + 9 * c.p(at + 1)
            mottle = mottle + torch.cos(2 * math.pi * (reach * (c.x * turn.cos() + c.y * turn.sin()) + c.p(at + 2)))
        lines = 9 + (c.p(30) * 5).floor()
        near = ((c.y * lines) % 1 - 0.5).abs() / lines * c.side  # distance to a rule, in pixels
        rule = (c.side / 160 + 0.5 - near).clamp(0, 1) * (c.p(31) > 0.7).float()
        return base + (0.006 + 0.008 * old) * mottle - rule * c.u.new_tensor((0.35, 0.22, 0.05))[:, None, None]


@dataclass(frozen=True, eq=False)
class _Canvas:
    """What a backdrop draws with: (b, 1 or 3, canvas, canvas) tensors made from the batch's rows."""

    axis: torch.Tensor
    u: torch.Tensor
    colours: torch.Tensor
    sky: torch.Tensor
    starry: torch.Tensor

    @property
    def side(self) -> int:
        return len(self.axis)

    @property
    def x(self) -> torch.Tensor:
        return self.axis[None, None, None, :]

    @property
    def y(self) -> torch.Tensor:
        return self.axis[None, None, :, None]

    def p(self, k: int) -> torch.Tensor:
        """Return the k-th random number, (b, 1, 1, 1)."""
        return self.u[:, k, None, None, None]

    def jitter(self, k: int) -> torch.Tensor:
        return (self.u[:, 3 * k : 3 * k + 3, None, None] * 2 - 1) * _JITTER

    def colour(self, k: int) -> torch.Tensor:
        """Return the k-th colour, a little off its name, (b, 3, 1, 1)."""
        return (self.colours[:, k, :, None, None] + self.jitter(k)).clamp(0, 1)

    def light(self) -> torch.Tensor:
        return self.sky[:, 2, :, None, None]

    def edge(self, distance: torch.Tensor) -> torch.Tensor:
        """Return the share of each pixel that lies beyond an edge, from the signed distance in canvases."""
        return (distance * self.side + 0.5).clamp(0, 1)

    def heaven(self) -> torch.Tensor:
        top, bottom = self.sky[:, 0, :, None, None], self.sky[:, 1, :, None, None]
        return (
            _mix(top, bottom, (self.y / 0.6).clamp(0, 1)) + self.jitter(1) * 0.6 + self.stars() * self.starry[..., None, None]
        )

    def stars(self) -> torch.Tensor:
        """Return the light of stars, (b, 1, canvas, canvas): a product of two Gaussians each, summed by one matmul."""
        seeds = self.u[:, PARAMETERS - 2 * _STARS :].reshape(-1, _STARS, 2)
        radius = 0.006 + 0.006 * ((seeds[..., 0] * 97) % 1)[..., None]
        bell = [torch.exp(-(((self.axis - seeds[..., k, None]) / radius) ** 2)) for k in (0, 1)]
        strength = 0.4 + 0.6 * ((seeds[..., 1] * 89) % 1)[..., None]
        light = bell[1].transpose(1, 2) @ (bell[0] * strength)
        return light[:, None]
