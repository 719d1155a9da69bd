"""Queries of many boxes: what falls at once, what is left to search, and witnesses among them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from handmade import chain

from mucg4.check.walk import check
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.model.verdict import Safe, Statistics, Unsafe
from mucg4.search.boxes import decide_at_once
from mucg4.search.run import Run
from mucg4.settings import Settings
from mucg4.verify import verify

BOXES = 30


def query_of(seed: int, slack: float, width: Fraction = Fraction(1, 60)) -> Query:
    """Boxes along a line; unsafe where output 0 leaves its sampled range on the box by more than `slack`."""
    rng = np.random.default_rng(seed)
    net = chain([(rng.normal(size=(m, n)), rng.normal(size=m)) for n, m in ((2, 12), (12, 12), (12, 2))])
    cases = []
    for k in range(BOXES):
        lo = np.array([Fraction(k, BOXES), Fraction(-k, BOXES)])
        hi = lo + (width if k % 2 else Fraction(1, 60))
        y = net(rng.uniform(lo.astype(float), hi.astype(float), size=(20000, 2)))[:, 0]
        rows = [({}, {0: Fraction(-1)}, Fraction(float(y.max()) + slack), False)]
        other = [({}, {0: Fraction(1)}, Fraction(slack - float(y.min())), False), ({0: Fraction(1)}, {}, -5, False)]
        conjunctions = tuple(Conjunction.build(r, 2, 2) for r in (rows, other))
        cases.append(Case(Box(tuple(lo), tuple(hi)), conjunctions))
    empty = Case(Box((Fraction(1), Fraction(0)), (Fraction(0), Fraction(0))), cases[0].conjunctions)
    return Query((net,), (empty, *cases))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slack, width", [(0.5, Fraction(1, 60)), (0.05, Fraction(1, 2))])
def test_every_box_is_answered_for(seed, slack, width):
    query = query_of(seed, slack, width)
    run = Run(query, Settings(workers=1), Budget.seconds(60), Statistics(), Runtime(query.network))
    done = decide_at_once(run)
    assert isinstance(done, dict) and 0 < len(done) <= BOXES and 0 not in done
    if width > 0.1:
        assert len(done) < BOXES  # these are what the search is for
    verdict = verify(query, Settings(workers=1), budget=Budget.seconds(60))
    assert isinstance(verdict, Safe)
    assert sorted(t.case for t in verdict.proof.trees) == list(range(1, BOXES + 1))
    assert check(verdict.proof, query).accepted
    few = Query(query.networks, query.cases[:4])
    assert decide_at_once(Run(few, run.settings, run.budget, Statistics(), run.runtime)) == {}


def test_a_witness_in_one_of_many_boxes():
    query = query_of(1, 0.5)
    case = query.cases[17]
    everywhere = Conjunction.build([({}, {1: Fraction(1)}, Fraction(-1000), False)], 2, 2)
    cases = (*query.cases[:17], Case(case.box, (*case.conjunctions, everywhere)), *query.cases[18:])
    verdict = verify(Query(query.networks, cases), Settings(workers=1), budget=Budget.seconds(60))
    assert isinstance(verdict, Unsafe) and verdict.statistics.attack_points <= 4 * BOXES
    x = verdict.witness.x
    assert np.all(x >= case.box.lo) and np.all(x <= case.box.hi)
