"""The lab's memory: a sweep goes on where it was, the oldest results go first, and fresh noise forgets the field."""

import itertools

import numpy as np
import pytest

from fresco.backends.oracle import OracleModel
from fresco.config import FrescoConfig
from fresco.errors import FrescoError
from fresco.lab import desk as desks
from fresco.lab.sweep import Result, Step
from fresco.record import References

MODEL = OracleModel(shape=(1, 6, 6))
BASE = FrescoConfig.recommended(4, tau=0.1)


@pytest.fixture
def desk():
    return desks.Desk(References(), keep=3)


def split(stream):
    """Return the results, and how many steps of each cell itself were made."""
    found = list(stream)
    steps = [s.cell.label for s in found if isinstance(s, Step) and not s.reference]
    return [r for r in found if isinstance(r, Result)], {label: steps.count(label) for label in steps}


def test_a_stopped_sweep_goes_on_where_it_was(desk):
    axes = {"tau": [0.01, 0.1], "nfe": [4]}
    stream = desk.sweep(MODEL, "x", BASE, axes, [])
    first = next(found for found in stream if isinstance(found, Result))
    stream.close()
    results, steps = split(desk.sweep(MODEL, "x", BASE, axes, []))
    assert [r.coords for r in results] == [{"tau": 0.01, "nfe": 4}, {"tau": 0.1, "nfe": 4}]
    assert results[0].key == first.key
    assert results[0].seconds == first.seconds  # the very same run, not one like it
    assert steps == {"tau 0.1, nfe 4": 4}


def test_what_is_known_is_left_out(desk):
    axes = {"tau": [0.01, 0.1], "nfe": [4, 5]}
    results, _ = split(desk.sweep(MODEL, "x", BASE, axes, [], [{"nfe": 4, "tau": 0.01}, {"tau": 0.1, "nfe": 9}]))
    assert [r.coords for r in results] == [{"tau": 0.01, "nfe": 5}, {"tau": 0.1, "nfe": 4}, {"tau": 0.1, "nfe": 5}]


def test_the_oldest_results_are_let_go(desk):
    results, _ = split(desk.sweep(MODEL, "x", BASE, {"nfe": [4, 5]}, [3, 4]))
    assert [r.config.is_full for r in results] == [False, False, True, True]
    kept = desk.results([r.key for r in results])
    assert [r.key for r in kept] == [r.key for r in results[1:]]
    with pytest.raises(FrescoError, match="no longer kept"):
        desk.traces(MODEL, results[0].key)
    assert desk.model_of(results[0].key) == ""


def test_a_kept_run_has_its_trace_and_its_reference(desk):
    (result,), _ = split(desk.sweep(MODEL, "x", BASE, {"nfe": [4]}, []))
    found, trace, reference = desk.traces(MODEL, result.key)
    assert found.key == result.key
    assert len(trace.events) == 4
    assert reference is not None
    assert (reference.config.is_full, len(reference.events)) == (True, 50)
    assert desk.model_of(result.key) == MODEL.name


def test_the_identity_differs_in_noise_alone(desk):
    results, _ = split(desk.identity(MODEL, "x", BASE.replace(seed=3)))
    full, *runs = results
    assert full.config == FrescoConfig.full(50, seed=3)
    assert [r.coords for r in runs] == [{}, {"noise": "fresh"}, {"transition": "restart"}]
    base = FrescoConfig.paper(4, seed=3)
    assert [r.config for r in runs] == [base, base.replace(noise="fresh"), base.replace(transition="restart")]


def test_every_switch_has_its_sentence(desk):
    results, _ = split(desks.Desk(References()).ablation(MODEL, "x", FrescoConfig.paper(4), True))
    assert {r.label for r in results} <= set(desks.sentences())


def test_the_field_is_one_over_the_levels_and_fresh_noise_is_not():
    """Law: METHOD 2.1: a coarse cell is half the sum of its four; fresh levels share nothing but the coarsest."""
    field, fresh = desks.noise(5, False, 16, 2), desks.noise(5, True, 16, 2)
    for coarse, fine in itertools.pairwise(field):
        sums = (fine[::2, ::2] + fine[::2, 1::2] + fine[1::2, ::2] + fine[1::2, 1::2]) / 2
        np.testing.assert_allclose(sums, coarse, atol=1e-12)
    assert [f.shape for f in fresh] == [(4, 4), (8, 8), (16, 16)]
    np.testing.assert_allclose(fresh[0], field[0])
    for a, b in zip(fresh[1:], field[1:], strict=True):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.35
