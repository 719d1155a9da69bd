"""Witnesses are sought where a stored proof is weak, before anything is bounded."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from effort import effort
from handmade import chain, one, random_layers

from mucg4.evidence import Established
from mucg4.gate.runtime import Runtime
from mucg4.model.query import Box, Case, Conjunction, Query, Witness
from mucg4.model.verdict import Safe, Statistics
from mucg4.reuse import replay as replay_module
from mucg4.reuse.replay import replay_all
from mucg4.reuse.witnesses import least_closed
from mucg4.search.attack import Attack
from mucg4.search.portfolio import EARLY
from mucg4.search.run import Run, attack_of
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify

PLACE, WIDTH = 0.7003, 0.002  # of the one dip of the output; flat elsewhere


def dip(height: float) -> Query:
    """`1 - height * max(0, 1 - |x0 - PLACE| / WIDTH) <= 0` is asked for on the unit square."""
    slopes = np.array([1.0, -2.0, 1.0]) * -height / WIDTH
    first = np.array([[1.0, 0.0]] * 3), np.array([WIDTH, 0.0, -WIDTH]) - PLACE
    network = chain([first, (slopes[None], np.ones(1))])
    box = Box((Fraction(0),) * 2, (Fraction(1),) * 2)
    unsafe = Conjunction.build([({}, {0: Fraction(1)}, Fraction(0), False)], 2, 1)
    return Query((network,), (Case(box, (unsafe,)),))


@pytest.fixture(scope="module")
def proved() -> Safe:
    verdict = verify(dip(0.9), Settings(workers=1, split="input"), budget=effort())
    assert isinstance(verdict, Safe) and verdict.proof.leaves > 4
    return verdict


def run_of(query: Query) -> Run:
    return Run(query, Settings(workers=1, split="input"), effort(), Statistics(), Runtime(query.network))


def test_a_witness_is_met_where_the_proof_is_weak(proved, monkeypatch):
    """The attack on the whole box is left out; the dip has a share of the box that no random point meets."""
    monkeypatch.setattr(replay_module, "first_steps", lambda run, case: iter(()))
    run = run_of(dip(1.3))
    found = replay_all(run, proved.proof.trees)
    assert isinstance(found, Witness) and abs(found.x[0] - PLACE) < WIDTH
    assert run.statistics.rungs["witness"] == 1 and run.statistics.regions == 0


def test_the_weakest_regions_come_with_their_boxes(proved):
    query = dip(0.9)
    (tree,) = proved.proof.trees
    lo, hi = least_closed(tree, query.cases[0].box, 10**6)
    assert len(lo) == len(tree.table) and np.all((lo >= 0) & (lo < hi) & (hi <= 1))
    assert np.isin(tree.table.at, tree.leaves).all()
    assert np.isclose(np.prod(hi - lo, axis=1).sum(), 1)  # they cover the box
    few = least_closed(tree, query.cases[0].box, 3)
    assert np.array_equal(few[0], lo[:3]) and np.array_equal(few[1], hi[:3])
    margins = np.sort(tree.table.margin)
    assert margins[0] <= 0.1 + 1e-9  # the least possible value of the output


def test_a_descent_inside_boxes_stays_there_and_covers_all_that_it_has_time_for():
    query = dip(1.3)
    attack = attack_of(run_of(query), query.cases[0])
    edges = np.linspace(0, 1, 51)
    lo = np.stack([edges[:-1], np.zeros(50)], axis=1)
    hi = np.stack([edges[1:], np.ones(50)], axis=1)
    found = attack.inside(lo, hi, effort())
    assert found is not None and abs(found.x[0] - PLACE) < WIDTH
    away = hi[:, 0] < PLACE - WIDTH
    assert attack.inside(lo[away], hi[away], effort()) is None


def test_a_query_that_has_become_easy_is_bounded_before_a_long_proof_is_checked(proved, monkeypatch):
    monkeypatch.setattr(replay_module, "EASY", 4)
    run = run_of(dip(1e-4))
    found = replay_all(run, proved.proof.trees)
    assert isinstance(found, list) and run.statistics.from_root == 1 and not run.statistics.stored_leaves
    run = run_of(dip(0.9))
    assert isinstance(replay_all(run, proved.proof.trees), Established)
    assert run.statistics.regions == 0  # what was tried in vain


def test_a_witness_is_met_in_leaves_that_the_checker_rejects(proved, monkeypatch):
    for name in ("first_steps", "in_leaves"):
        monkeypatch.setattr(replay_module, name, lambda *_: iter(()))
    run = run_of(dip(1.3))
    assert isinstance(replay_all(run, proved.proof.trees), Witness)
    assert run.statistics.rungs["witness"] == 1 and run.statistics.rungs["checked"] > 0 and not run.statistics.regions


def test_a_witness_that_the_attack_meets_at_once_needs_no_look_into_the_store(monkeypatch):
    """And what the attack did before the look is not done again after it."""
    from mucg4.reuse import lookup

    steps: list[str] = []
    real = Attack.running

    def counted(self, *rest):
        for found in real(self, *rest):
            steps.append("step")
            yield found

    monkeypatch.setattr(Attack, "running", counted)
    monkeypatch.setattr(lookup, "look_up", lambda run, store: steps.append("look"))
    network = chain(random_layers(2, (3, 8, 1)))
    top = float(network(np.random.default_rng(0).uniform(-1, 1, (1000, 3))).max())
    with Store(":memory:") as store:
        for threshold, word in ((top - 0.5, "sat"), (top + 5.0, "unsat")):
            query = one(network, [-1] * 3, [1] * 3, [({}, {0: -1.0}, threshold, False)])
            steps.clear()
            assert verify(query, Settings(workers=1), store).word == word
            assert ("look" in steps) == (word == "unsat")
            assert steps.count("step") <= 13 and (word == "sat" or steps.index("look") == EARLY)
