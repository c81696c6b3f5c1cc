"""Measurements as streams: every model call is seen before what it is for, and closing one stops within a call."""

import dataclasses
import itertools

import pytest

from fresco.backends.oracle import OracleModel
from fresco.config import FrescoConfig
from fresco.lab import convergence, parts, proposition
from fresco.lab.calls import Call
from fresco.sampler import sample

FULL, RUN = FrescoConfig.full(9, size=(1, 8, 8), seed=2), FrescoConfig.recommended(9, size=(1, 8, 8), seed=2)
MEASURED = {
    "proposition": (proposition, FULL, proposition.along),
    "convergence": (convergence, RUN, convergence.correlations),
    "parts": (parts, RUN, lambda *asked: [parts.first_expansion(*asked)]),
}


class Counted(OracleModel):
    """A model that counts its calls."""

    def bind(self, config):
        denoiser, made = super().bind(config), []

        class Counting(type(denoiser)):
            def __call__(self, *given):
                made.append(1)
                return super().__call__(*given)

        denoiser.__class__ = Counting
        object.__setattr__(self, "made", made)
        return denoiser


@pytest.mark.parametrize("name", MEASURED)
def test_every_call_is_seen_and_the_rest_is_what_is_measured(name):
    module, config, whole = MEASURED[name]
    model = OracleModel()
    found = list(module.follow(model, "x", config))
    calls = [f for f in found if isinstance(f, Call)]
    steps = list(sample(model.bind(config), model.encode("x"), config))[: len(calls)]
    assert calls == [Call(s.step, 9, s.stage, s.sigma, len(s.grid)) for s in steps]
    assert len(calls) == (9 if name != "parts" else next(s.step for s in steps if s.selected.any()) + 1)
    rest, want = [f for f in found if not isinstance(f, Call)], whole(model, "x", config)
    assert len(rest) == len(want) > 0
    for a, b in zip(rest, want, strict=True):
        assert repr(dataclasses.astuple(a)) == repr(dataclasses.astuple(b))


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("after", [1, 2, 3])
def test_closing_a_stream_stops_within_a_call(name, after):
    module, config, _ = MEASURED[name]
    model = Counted()
    stream = module.follow(model, "x", config)
    seen = 0
    for found in stream:
        seen += isinstance(found, Call)
        if seen == after:
            break
    stream.close()
    assert len(model.made) == after


def test_rows_of_the_proposition_come_while_it_runs():
    found = list(proposition.follow(OracleModel(), "x", FULL))
    first = next(k for k, f in enumerate(found) if isinstance(f, proposition.PropositionRow))
    assert sum(isinstance(f, Call) for f in found[first:]) > 4
    for before, row in itertools.pairwise(found):
        if isinstance(row, proposition.PropositionRow):
            assert isinstance(before, Call)
            assert (before.step, before.sigma) == (row.step, row.sigma_from)
