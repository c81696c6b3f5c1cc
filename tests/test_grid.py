"""The ragged quadtree against sets of cells. Source: METHOD 2.1, 2.5."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco.grid import FRAMES, TokenGrid, coarse_shape
from tests import oracles

SHAPES = [(1, 4, 4), (2, 5, 6), (1, 3, 8), (3, 1, 7), (1, 2, 1)]


def keys_of(grid):
    """Return the tokens of a grid as oracle keys."""
    return [(int(lv), *map(int, at)) for lv, at in zip(grid.level, grid.coord, strict=True)]


def grown(shape, levels, seed, rounds=None, share=0.5):
    """Return a mixed grid and the same one grown by the oracle."""
    rng = np.random.default_rng(seed)
    grid, keys = TokenGrid.uniform(shape, levels, 0), oracles.uniform(shape, levels, 0)
    for _ in range(levels if rounds is None else rounds):
        mask = (rng.random(len(grid)) < share) & grid.expandable
        grid, _ = grid.expand(mask)
        keys, _ = oracles.expand(shape, levels, keys, {k for k, m in zip(keys, mask, strict=True) if m})
    return grid, keys


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_uniform_grids_are_the_rows_of_cells_that_exist(shape, levels):
    """Law: the dense grid of a level holds exactly the blocks with a cell on the canvas, row-major."""
    for level in range(levels + 1):
        grid = TokenGrid.uniform(shape, levels, level)
        assert keys_of(grid) == oracles.uniform(shape, levels, level)
        assert coarse_shape(shape, levels - level) == tuple(grid.coord.max(axis=0) + 1)


def test_the_coarse_grid_of_45_by_80_is_23_by_40():
    """Law: METHOD 2.1 names HunyuanVideo's grid; promoting all of it gives back 3600 fine tokens."""
    grid = TokenGrid.uniform((1, 45, 80), 1, 0)
    assert len(grid) == 23 * 40
    fine, parent = grid.expand(grid.expandable)
    assert len(fine) == 45 * 80
    assert np.bincount(parent)[[0, 22 * 40, 22 * 40 + 39]].tolist() == [4, 2, 2]
    assert oracles.tiles_once((1, 45, 80), 1, keys_of(fine))


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7)), st.integers(1, 3), st.integers(0, 10**6),
    st.floats(0, 1),
)  # fmt: skip
def test_expansion_tiles_the_canvas_exactly_once(shape, levels, seed, share):
    """Law: after any promotions every finest cell lies under exactly one token, children in place, row-major."""
    grid, keys = grown(shape, levels, seed, share=share)
    assert keys_of(grid) == keys
    assert oracles.tiles_once(shape, levels, keys)


@pytest.mark.parametrize(("shape", "levels"), [((2, 5, 6), 2), ((1, 7, 9), 3), ((1, 4, 6), 1)])
def test_maps_of_a_mixed_grid_agree_with_the_cells_of_each_token(shape, levels):
    """Law: cells(), level_map(), promoted() and scan_order() are what the sets of cells say."""
    grid, keys = grown(shape, levels, 4)
    cells, level_map = np.full(shape, -1), np.full(shape, -1)
    for i, key in enumerate(keys):
        for at in oracles.cover(shape, levels, key):
            cells[at], level_map[at] = i, key[0]
    assert np.array_equal(grid.cells(), cells)
    assert np.array_equal(grid.level_map(), level_map)
    order = list(dict.fromkeys(cells.ravel().tolist()))
    assert grid.scan_order().tolist() == order
    for level in range(levels):
        assert grid.promoted(level) == oracles.expanded_beyond(keys, level)
    assert not grid.is_uniform
    assert TokenGrid.uniform(shape, levels, levels).is_uniform


def test_parent_points_back_and_child_counts_row_major():
    """Law: each newborn lies inside its parent and `child` is its place in the block; kept tokens point to themselves."""
    grid, _ = grown((2, 5, 6), 2, 1, rounds=1)
    mask = np.random.default_rng(2).random(len(grid)) < 0.4
    mask &= grid.expandable
    after, parent = grid.expand(mask)
    before, now = keys_of(grid), keys_of(after)
    assert mask[parent].any()
    assert not mask[parent].all()
    for key, p, child in zip(now, parent, after.child, strict=True):
        if mask[p]:
            assert oracles.ancestor(key, key[0] - 1) == before[p]
            assert child == 2 * (key[2] % 2) + key[3] % 2
        else:
            assert key == before[p]
    assert (np.diff(parent) >= 0).all(), "children stand where their parent stood"


def test_a_border_parent_has_only_the_children_on_the_canvas():
    """Law: 5 x 3 cells, one doubling: the corner parent has one child, edge parents two, inner ones four."""
    grid = TokenGrid.uniform((1, 5, 3), 1, 0)
    _, parent = grid.expand(grid.expandable)
    assert np.bincount(parent).tolist() == [4, 2, 4, 2, 2, 1]


@pytest.mark.parametrize("frame", ["coarse", "coarse_corner", "fine"])
@pytest.mark.parametrize(("shape", "levels"), [((2, 5, 6), 1), ((1, 7, 9), 3), ((1, 6, 4), 2)])
def test_positions_of_mixed_tokens_follow_from_their_extent(frame, shape, levels):
    """Law: METHOD 2.5, every frame, from the corner or centre of the cells a token covers."""
    grid, keys = grown(shape, levels, 8)
    expected = [oracles.position(k, levels, frame) for k in keys]
    got = grid.centers(frame)
    assert got.dtype == np.float32
    assert np.array_equal(got, np.array(expected, dtype=np.float32))


def test_position_frames_have_the_published_offsets():
    """Law: one parent (0, 1) beside four children: the numbers METHOD 2.5 prints, by hand."""
    grid = TokenGrid.uniform((1, 2, 4), 1, 0)
    grid, _ = grid.expand(np.array([True, False]))
    centred = [[0, -0.25, -0.25], [0, -0.25, 0.25], [0, 0.25, -0.25], [0, 0.25, 0.25], [0, 0, 1]]
    corner = [[0, 0, 0], [0, 0, 0.5], [0, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]]
    fine = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0.5, 2.5]]
    assert grid.centers("coarse").tolist() == centred
    assert grid.centers("coarse_corner").tolist() == corner
    assert grid.centers("fine").tolist() == fine
    assert grid.centers("phase_aligned", 0).tolist() == centred
    assert grid.centers("phase_aligned", 1).tolist() == fine


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_phase_aligned_positions_are_in_the_unit_of_the_query(levels):
    """Law: whatever the unit level, two tokens' distance in it is their distance in cells over the unit's edge."""
    grid, keys = grown((1, 7, 9), levels, 3)
    for unit in range(levels + 1):
        expected = [oracles.position(k, levels, "phase_aligned", unit) for k in keys]
        assert np.array_equal(grid.centers("phase_aligned", unit), np.array(expected, dtype=np.float32))


@pytest.mark.parametrize("frame", FRAMES)
def test_uniform_grids_keep_the_native_integer_ids(frame):
    """Law: METHOD 2.5, a frame acts on mixed grids only, coarse-only and fine-only grids are the model's own."""
    for level in range(3):
        grid = TokenGrid.uniform((2, 5, 6), 2, level)
        unit = level if frame == "phase_aligned" else None
        assert np.array_equal(grid.centers(frame, unit), grid.coord.astype(np.float32))


def test_half_positions_survive_above_128():
    """Law: ids are float32, which keeps .5 and .25 where bfloat16 would not (METHOD 2.5)."""
    grid = TokenGrid.uniform((1, 1, 600), 1, 0)
    mask = np.zeros(300, bool)
    mask[0] = True
    grid, _ = grid.expand(mask)
    assert grid.centers("fine")[-1].tolist() == [0.0, 0.5, 598.5]


def test_every_two_frames_differ_on_one_mixed_grid():
    """Law: no two names of FRAMES mean the same (phase_aligned seen by queries of both levels together)."""
    grid, _ = grown((1, 4, 6), 1, 5)
    results = {f: np.stack([grid.centers(f, u if f == "phase_aligned" else None) for u in (0, 1)]).tobytes() for f in FRAMES}
    assert len(set(results.values())) == len(FRAMES)


def test_wrong_requests_are_refused():
    """Law: a wrong mask, level, frame or shape is an error that says what was expected."""
    grid = TokenGrid.uniform((1, 4, 4), 1, 0)
    with pytest.raises(ValueError, match="one entry for each of the 4 tokens"):
        grid.expand(np.ones(5, bool))
    fine, _ = grid.expand(np.ones(4, bool))
    with pytest.raises(ValueError, match="finest level"):
        fine.expand(np.ones(16, bool))
    for level in (-1, 3):
        with pytest.raises(ValueError, match="does not exist"):
            TokenGrid.uniform((1, 4, 4), 2, level)
    for shape in ((1, 0, 4), (4, 4), (1, 4, -1)):
        with pytest.raises(ValueError, match="each at least 1"):
            TokenGrid.uniform(shape, 1, 0)
    with pytest.raises(ValueError, match="unknown position frame 'polar'"):
        grid.centers("polar")
    mixed, _ = grid.expand(np.array([True, False, False, False]))
    with pytest.raises(ValueError, match="unit_level"):
        mixed.centers("phase_aligned")
