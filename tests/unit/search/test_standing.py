"""What a run has come to: shares of regions, and their sums over conjunctions and cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from effort import effort
from handmade import clauses, formula_query

from mucg4.gate.runtime import Runtime
from mucg4.model.proof import single_leaf
from mucg4.model.query import Query
from mucg4.model.verdict import Statistics
from mucg4.search.portfolio import Contest
from mucg4.search.run import Run, open_case
from mucg4.search.standing import Extent, Standing, shares, spoken
from mucg4.settings import Settings


def test_shares_are_volumes_halved_by_neurons():
    """Input 1 is fixed; the root splits input 0 at a third, its lower half a neuron."""
    box = np.array([0.0, 5.0]), np.array([3.0, 5.0])
    node, parents = np.array([0, 2, -1, -1, -1]), np.array([-1, 0, 0, 1, 1])
    lo = np.array([[0.0, 5.0], [0.0, 5.0], [1.0, 5.0]])
    hi = np.array([[1.0, 5.0], [0.5, 5.0], [3.0, 5.0]])
    found = shares(box, lo, hi, np.array([3, 4, 2]), node, parents)
    assert np.allclose(found, [1 / 6, 1 / 12, 2 / 3])  # the second was clipped
    assert np.allclose(shares(box, hi[:1], lo[:1], np.array([0]), node, parents), 0)  # an empty box has none


def test_extents_know_the_best_of_each_conjunction():
    open_ = np.array([[True, False], [True, True]])
    extent = Extent.of(np.array([0.25, 0.5]), open_, np.array([-1.0, np.nan]))
    assert np.allclose(extent.share, [0.75, 0.5]) and np.all(extent.bound == -np.inf)
    other = Extent.of(np.array([0.75]), np.array([[True, False]]), np.array([-2.0])).among(np.array([True, False]))
    both = Extent.whole(2).joined([extent, other])
    assert np.allclose(both.share, [0.75, 0.5]) and both.bound.tolist() == [-2.0, -np.inf]
    assert Extent.whole(2).joined([Extent.nothing(2)]).share.tolist() == [0.0, 0.0]


def two_cases() -> Query:
    query = formula_query([clauses(k, 4, 24) for k in (0, 4)], 4)
    return Query(query.networks, query.cases * 2)


def test_what_was_not_begun_is_open():
    query, standing = two_cases(), Standing()
    assert standing.sum_up(query) == {"open_share": 1.0, "open_cases": []} and not standing.is_begun
    standing.finish([replace(single_leaf(), case=1, conjunctions=(0,))])
    assert standing.sum_up(query)["open_share"] == 0.75
    assert standing.latest["open_cases"] == [{"case": 1, "open_share": 0.5, "bound": None}]
    standing.finish([replace(single_leaf(), case=1, conjunctions=(1,)), single_leaf()])
    assert standing.sum_up(query) == {"open_share": 0.0, "open_cases": []}


@pytest.mark.parametrize("split", ["input", "phase"])
def test_the_open_share_falls_to_nothing(split):
    """Step by step of one case, and what is said of it."""
    query = two_cases()
    run = Run(
        query, Settings(workers=1, attack=False, split=split, batch=2), effort(), Statistics(), Runtime(query.network)
    )
    contest = Contest(run, open_case(run, 0))
    contest.begin()
    run.standing.enter(0, contest, ())
    seen = []
    while contest.is_open:
        run.standing.finish(list(contest.finished()))
        seen.append(run.standing.sum_up(query)["open_share"])
        assert len(run.standing.trees(query)) == (1 if split == "input" else 2)
        (arm,) = contest.arms
        arm.advance(1.0)
    run.standing.finish(list(contest.finished()))
    run.standing.leave()
    seen.append(run.standing.sum_up(query)["open_share"])
    assert len(seen) > 3 and seen[0] <= 1.0 and seen[-1] == 0.5  # the other case was not begun
    assert all(a + 1e-12 >= b for a, b in zip(seen, seen[1:], strict=False))


def test_spoken():
    case = {"case": 0, "open_share": 0.5, "bound": -0.25}
    assert spoken({"open_share": 0.25, "open_cases": [case]}) == "open: 25 % of the tree, lowest bound -0.25"
    assert spoken({"open_share": 0.25, "open_cases": [case, {**case, "bound": None}]}) == "open: 25 % of the tree"
