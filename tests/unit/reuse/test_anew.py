"""Proofs with room: what is proved of loosened constraints holds for those as stated, with that much to spare."""

from __future__ import annotations

import numpy as np
import pytest
from effort import effort
from handmade import chain, clauses, formula_query, one, random_layers

from mucg4.check.margins import Gauge
from mucg4.check.walk import check
from mucg4.errors import BudgetError
from mucg4.gate.runtimes import runtime_of
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof
from mucg4.model.query import Query
from mucg4.model.verdict import Safe, Statistics
from mucg4.reuse import anew as module
from mucg4.reuse.anew import _moved, _with_room, searched_anew
from mucg4.reuse.compact import gauges_of
from mucg4.reuse.survey import OWN, Worth, copies_of, survey
from mucg4.search.run import Run
from mucg4.settings import Settings
from mucg4.verify import verify


def run_of(query: Query, workers: int = 1) -> Run:
    return Run(query, Settings(workers=workers, split="phase", attack=False), effort(), Statistics(), runtime_of(query))


@pytest.fixture(scope="module")
def peak() -> tuple[Query, Proof]:
    """The output of a random network lies a little above its sampled maximum; by phases."""
    network = chain(random_layers(1, (3, 12, 12, 1)))
    top = float(network(np.random.default_rng(0).uniform(-1, 1, (100_000, 3))).max())
    query = one(network, [-1] * 3, [1] * 3, [({}, {0: -1.0}, top + 1.0, False)])
    verdict = verify(query, Settings(workers=1, split="phase", compact=False), budget=effort())
    assert isinstance(verdict, Safe)
    return query, verdict.proof


@pytest.mark.parametrize("workers", [1, 2])
def test_leaves_have_the_room_that_was_asked_for(peak, workers):
    query, proof = peak
    trees = _with_room(run_of(query, workers), {0: np.array([0.5])})
    found = Proof(query.network.fingerprint, query.property_hash, tuple(trees))
    assert check(found, query).accepted
    alone = {OWN: Gauge(query, Budget())}
    # the only constraint has weight one: margins are bounds of it, but for default slopes that tighter bounds tip
    before, after = (np.sort(survey(p, alone).margins) for p in (proof, found))
    assert after[len(after) // 10] > 0.45 > before[len(before) // 2]


@pytest.mark.parametrize(
    "shares, rooms, taken",
    [
        ((0.5, 0.9, *(0.3,) * 2), [1, 2, 8], 1),
        ((0.5, 0.6, 0.7, 0.8), [1, 4, 16], 3),
        ((0.5, 0.7, 0.95, 0.996), [1, 4, 8], 3),
        ((0.5, *(0.5,) * 3), [1, 4, 16], 0),
        ((0.5, None, 0.6, 0.7), [1, 0.5], 2),
        ((0.5, 0.6, None, 0.7, 0.8), [1, 4, 2], 3),
        ((0.5, 0.6, None, None), [1, 4, 2], 1),
        ((0.5, 0.999), [1], 1),
    ],
)
def test_the_proof_that_holds_on_most_copies_is_taken(peak, shares, rooms, taken, monkeypatch):
    """`shares`: what the given proof and each attempt are worth, None where it fails."""
    query, proof = peak
    made, left, asked = [list(proof.trees)], [share for share in shares if share is not None], []

    def with_room(_, room):
        asked.append(float(room[0].max() / least))
        made.append(list(proof.trees))
        return None if shares[len(asked)] is None else made[-1]

    gauges = gauges_of(query, Budget())
    least = _moved(query, query.cases[0], copies_of(gauges)).max()
    monkeypatch.setattr(module, "_with_room", with_room)
    monkeypatch.setattr(module.Worth, "of", lambda *_: Worth(100, 100 * (1 - left.pop(0))))
    monkeypatch.setattr(module, "is_met", lambda *_: False)
    found = searched_anew(run_of(query), proof.trees, gauges)
    assert asked == pytest.approx(rooms) and (found is made[taken] or taken == 0)


def test_time_that_ends_while_the_next_proof_is_measured_costs_that_one_alone(peak, monkeypatch):
    query, proof = peak
    made, left = [], [0.5, 0.7]

    def worth(*_):
        if not left:
            raise BudgetError("timeout")
        return Worth(100, 100 * (1 - left.pop(0)))

    monkeypatch.setattr(module, "_with_room", lambda *_: made.append(list(proof.trees)) or made[-1])
    monkeypatch.setattr(module.Worth, "of", worth)
    monkeypatch.setattr(module, "is_met", lambda *_: False)
    assert searched_anew(run_of(query), proof.trees, gauges_of(query, Budget())) is made[0] and len(made) == 3


def test_few_leaves_are_worth_more_than_all_that_hold(peak, monkeypatch):
    """What is lost grows again below (`mucg4.reuse.grown`): room that makes many leaves of few is no gain."""
    query, proof = peak
    worths = [Worth(49, 12.0), Worth(1324, 0.0)]
    monkeypatch.setattr(module, "_with_room", lambda *_: list(proof.trees))
    monkeypatch.setattr(module, "is_met", lambda *_: False)
    monkeypatch.setattr(module.Worth, "of", lambda *_: worths.pop(0))
    found = searched_anew(run_of(query), proof.trees, gauges_of(query, Budget()))
    assert all(a is b for a, b in zip(found, proof.trees, strict=True)) and not worths


def test_room_is_what_noise_moves_the_constraints(peak):
    query, _ = peak
    gauges = gauges_of(query, Budget())
    (case,) = query.cases
    moved = _moved(query, case, copies_of(gauges))
    assert moved.shape == (sum(map(len, case.conjunctions)),) and np.all(moved >= 0) and np.any(moved > 0)
    assert not np.any(_moved(query, case, {"same": gauges[OWN]}))


@pytest.mark.parametrize("why", ["inputs", "no copies", "no time"])
def test_the_proof_stays_as_it_is(peak, why):
    query, proof = peak
    run = run_of(query)
    if why == "inputs":
        query = formula_query([clauses(3, 6, 40)], 6)
        verdict = verify(query, Settings(workers=1, split="input", compact=False), budget=effort())
        assert isinstance(verdict, Safe)
        run, proof = run_of(query), verdict.proof
    gauges = {OWN: Gauge(query, Budget())} if why == "no copies" else gauges_of(query, Budget())
    if why == "no time":
        run.budget = Budget.seconds(0.0)
    assert [a is b for a, b in zip(searched_anew(run, proof.trees, gauges), proof.trees, strict=True)] == [True] * len(
        proof.trees
    )
