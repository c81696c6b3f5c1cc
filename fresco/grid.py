"""The ragged quadtree of tokens: which token covers which part of the canvas.

Geometry only, in NumPy; features live in Torch (`fresco.tokens`). Source: METHOD 2.1, 2.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FRAMES = ("coarse", "coarse_corner", "fine", "phase_aligned")


def coarse_shape(shape: tuple[int, int, int], halvings: int) -> tuple[int, int, int]:
    """Return the token shape after `halvings` halvings of rows and cols, rounded up; frames stay."""
    frames, rows, cols = shape
    return frames, -(-rows >> halvings), -(-cols >> halvings)


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """N tokens of mixed size that tile a finest grid of cells exactly once.

    A token of level `l` covers `2**(levels-l)` x `2**(levels-l)` finest cells, cut off at the canvas border, so
    grids may be odd. Space is (frame, row, col); a frame is never doubled.

    Attributes:
        shape: (frames, rows, cols) of the finest token grid.
        levels: number of doublings; level 0 is the coarsest, level `levels` the finest.
        level: (N,) int64, the level of each token.
        coord: (N, 3) int64, (frame, row, col) of each token in cells of its own level.
    """

    shape: tuple[int, int, int]
    levels: int
    level: Ints
    coord: Ints

    @classmethod
    def uniform(cls, shape: tuple[int, int, int], levels: int, level: int) -> TokenGrid:
        """Return the dense grid of one level, row-major.

        Raises:
            ValueError: where the shape has no cell or the level does not exist.
        """
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a token grid needs (frames, rows, cols), each at least 1; got {shape}")
        if not 0 <= level <= levels:
            raise ValueError(f"level {level} does not exist: levels run from 0 to {levels}")
        dense = coarse_shape(shape, levels - level)
        coord = np.stack([axis.ravel() for axis in np.indices(dense)], axis=1).astype(np.int64)
        return cls((shape[0], shape[1], shape[2]), levels, np.full(len(coord), level, np.int64), coord)

    def __len__(self) -> int:
        return len(self.level)

    @property
    def is_uniform(self) -> bool:
        """Whether all tokens have one level."""
        return bool((self.level == self.level[0]).all())

    @property
    def expandable(self) -> Bools:
        """(N,) bool, the tokens that are not yet of the finest level."""
        return self.level < self.levels

    @property
    def child(self) -> Ints:
        """(N,) int64 in 0..3, which child of its parent a token is (row-major in the 2 x 2 block)."""
        return (self.coord[:, 1] & 1) * 2 + (self.coord[:, 2] & 1)

    def expand(self, mask: Bools) -> tuple[TokenGrid, Ints]:
        """Replace each masked token by its children that lie on the canvas, in place, in row-major order.

        Args:
            mask: (N,) bool, tokens to expand by one level.

        Returns:
            The new grid of N' tokens and `parent`, (N',) int64: the index of the token each one was or came from.

        Raises:
            ValueError: where the mask has the wrong length or names a token of the finest level.
        """
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != (len(self),):
            raise ValueError(f"the mask must have one entry for each of the {len(self)} tokens; got {mask.shape}")
        if (mask & ~self.expandable).any():
            raise ValueError("a token of the finest level cannot be expanded; mask only tokens with level < levels")
        repeat = np.where(mask, 4, 1)
        parent = np.repeat(np.arange(len(self)), repeat)
        nth = np.arange(len(parent)) - np.repeat(np.cumsum(repeat) - repeat, repeat)
        born = mask[parent]
        level = self.level[parent] + born
        coord = self.coord[parent].copy()
        coord[born, 1] = 2 * coord[born, 1] + nth[born] // 2
        coord[born, 2] = 2 * coord[born, 2] + nth[born] % 2
        on_canvas = ((coord[:, 1:] << (self.levels - level)[:, None]) < np.array(self.shape[1:])).all(axis=1)
        return TokenGrid(self.shape, self.levels, level[on_canvas], coord[on_canvas]), parent[on_canvas]

    def tiles(self) -> bool:
        """Return whether the tokens tile the finest grid exactly once: what every grid made here does."""
        if ((self.level < 0) | (self.level > self.levels)).any():
            return False
        covered = np.zeros(self.shape, np.int64)
        for level in np.unique(self.level):
            shift = int(self.levels - level)
            dense = np.zeros(coarse_shape(self.shape, shift), np.int64)
            coord = self.coord[self.level == level]
            if (coord < 0).any() or (coord >= dense.shape).any():
                return False
            np.add.at(dense, tuple(coord.T), 1)
            _, rows, cols = self.shape
            covered += dense.repeat(1 << shift, axis=1).repeat(1 << shift, axis=2)[:, :rows, :cols]
        return bool((covered == 1).all())

    def cells(self) -> Ints:
        """Return (frames, rows, cols) int64: the index of the token that covers each finest cell."""
        index = np.full(self.shape, -1, np.int64)
        for level in np.unique(self.level):
            shift = int(self.levels - level)
            dense = np.full(coarse_shape(self.shape, shift), -1, np.int64)
            (at,) = np.nonzero(self.level == level)
            dense[tuple(self.coord[at].T)] = at
            _, rows, cols = self.shape
            spread = dense.repeat(1 << shift, axis=1).repeat(1 << shift, axis=2)[:, :rows, :cols]
            index = np.where(spread >= 0, spread, index)
        return index

    def level_map(self) -> Ints:
        """Return (frames, rows, cols) int64: the level of the token that covers each finest cell."""
        return self.level[self.cells()]

    def scan_order(self) -> Ints:
        """Return (N,) int64: token indices in the order a row-major walk over the finest cells meets them."""
        cells = self.cells().ravel()
        _, first = np.unique(cells, return_index=True)
        return cells[np.sort(first)]

    def promoted(self, level: int) -> float:
        """Return how many cells of `level`'s own dense grid have been expanded beyond it."""
        frames, rows, cols = coarse_shape(self.shape, self.levels - level)
        step = 1 << (self.levels - level)
        return int((self.level_map()[:, ::step, ::step] > level).sum()) if frames * rows * cols else 0

    def centers(self, frame: str, unit_level: int | None = None) -> NDArray[np.float32]:
        """Return (N, 3) float32 position ids (frame, row, col) for rotary embeddings.

        A uniform grid always has the model's native integer ids; a frame acts on mixed grids only. `coarse`: unit = a
        cell of level 0, centred, so children lie at i -/+ 0.25. `coarse_corner`: the same unit from the corner, so
        children lie at i and i + 0.5. `fine`: unit = a finest cell, so a parent lies at 2 i + 0.5. `phase_aligned`:
        unit = a cell of `unit_level`, the level of the attending query.

        Source: METHOD 2.5; arXiv 2507.08422 (`coarse`), arXiv 2511.19778 (`phase_aligned`).

        Raises:
            ValueError: on an unknown frame, or `phase_aligned` without a unit level.
        """
        if frame not in FRAMES:
            raise ValueError(f"unknown position frame {frame!r}; choose one of {', '.join(FRAMES)}")
        if self.is_uniform and unit_level is None:
            return self.coord.astype(np.float32)
        if frame == "phase_aligned" and unit_level is None:
            raise ValueError("phase_aligned positions are per query level; pass unit_level")
        unit = {"coarse": 0, "coarse_corner": 0, "fine": self.levels}.get(frame, unit_level)
        size = np.exp2(unit - self.level)[:, None]  # type: ignore[operator]  # edge of a token in units
        ids = self.coord.astype(np.float64)
        if frame == "coarse_corner":
            ids[:, 1:] *= size
        else:
            ids[:, 1:] = (ids[:, 1:] + 0.5) * size - 0.5
        return ids.astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return shape and levels; the arrays are stored by `fresco.trace`."""
        return {"shape": list(self.shape), "levels": self.levels}
