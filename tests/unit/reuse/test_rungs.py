"""The table of rungs: names, order and contract; trees are handed out as they are finished."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from effort import effort
from handmade import chain, clauses, formula_layers, formula_query
from mucg4.reuse.rungs import RUNGS, Rung, Visit

from mucg4.check.walk import check
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Query
from mucg4.model.verdict import RUNGS as NAMES
from mucg4.model.verdict import Safe, Statistics
from mucg4.reuse.compact import Compaction, compact
from mucg4.reuse.replay import Replay, replay
from mucg4.search import portfolio
from mucg4.search.run import Run, open_case
from mucg4.settings import Settings
from mucg4.verify import verify

VARIABLES = 8


def run_of(query: Query, split: str) -> Run:
    settings = Settings(workers=1, attack=False, split=split)
    return Run(query, settings, effort(), Statistics(), Runtime(query.network))


def moved(query: Query, formula, size: float, seed: int = 0) -> Query:
    """The same query on a network whose weights moved a little."""
    random = np.random.default_rng(seed)
    layers = [(w * (1 + size * random.normal(size=w.shape)), b) for w, b in formula_layers([formula], VARIABLES)]
    return Query((chain(layers),), query.cases)


def solved(split: str) -> tuple[Query, tuple[np.ndarray, np.ndarray], Safe]:
    formula = clauses(3, VARIABLES, 60)
    query = formula_query([formula], VARIABLES)
    verdict = verify(query, Settings(workers=1, split=split), budget=effort())
    assert isinstance(verdict, Safe) and verdict.proof.leaves > 4
    return query, formula, verdict


def test_statistics_know_every_rung_by_its_own_name():
    assert NAMES == ("witness", *(rung.name for rung in RUNGS))
    assert list(Statistics().rungs) == list(NAMES)
    leaves = [rung.leaves for rung in RUNGS]
    assert leaves == sorted(leaves) and all(rung.means for rung in RUNGS)  # those of leaves come last


@pytest.mark.parametrize("split", ["input", "phase"])
@pytest.mark.parametrize("size", [0.0, 0.05])
def test_every_rung_keeps_its_contract(split, size):
    """Each region comes back once; what is closed has nothing open or no point, and its evidence is recorded."""
    query, formula, verdict = solved(split)
    query = moved(query, formula, size)
    run = run_of(query, split)
    state = open_case(run, 0)
    assert state is not None
    seen: dict[str, int] = {}

    def watched(rung: Rung) -> Rung:
        def close(walk: Replay, visit: Visit) -> tuple[Visit, Visit]:
            before = sorted(visit.work.ids.tolist())
            closed, open_ = rung.close(walk, visit)
            assert sorted([*closed.work.ids.tolist(), *open_.work.ids.tolist()]) == before
            assert len(closed.at) == len(closed.row) == len(closed.work.ids)
            if not rung.leaves:
                assert np.all(~closed.work.open.any(axis=1) | closed.work.regions.empty())
                assert open_.work.open.any(axis=1).all()
            seen[rung.name] = seen.get(rung.name, 0) + len(closed)
            return closed, open_

        return replace(rung, close=close)

    tree = verdict.proof.trees[0]
    walk = Replay(run, state, tree, rungs=[watched(rung) for rung in RUNGS])
    search = walk.walk()
    assert list(seen) == [rung.name for rung in RUNGS if rung.name in seen] and (seen["duals"] > 0 or size > 0)
    assert walk.closed <= len(tree.leaves) and run.statistics.regions == 0
    assert sum(run.statistics.rungs.values()) == walk.closed
    if not search.is_open:
        proof = Proof(query.network.fingerprint, query.property_hash, (search.recorder.tree(),))
        assert check(proof, query).accepted
    else:
        assert walk.closed < len(tree.leaves)


def test_a_new_rung_is_a_row_of_the_table():
    """It sees what the rungs before it left open, and is counted under its own name."""
    query, _, verdict = solved("phase")
    run = run_of(query, "phase")
    state = open_case(run, 0)
    assert state is not None
    tree = replace(verdict.proof.trees[0], refutations=())
    met: list[int] = []

    def nothing(walk: Replay, visit: Visit) -> tuple[Visit, Visit]:
        met.extend(visit.at.tolist())
        return visit.parted(np.zeros(len(visit), dtype=bool))

    walk = Replay(run, state, tree, rungs=[*RUNGS[:2], Rung("idle", nothing, True, "closes nothing"), *RUNGS[2:]])
    walk.walk()
    assert run.statistics.rungs["idle"] == 0 and run.statistics.rungs["duals"] == 0
    assert met and set(met) <= set(tree.leaves.tolist()) and run.statistics.rungs["reoptimised"] <= len(met)


def test_compaction_is_the_walk_with_a_rung_more():
    query, _, verdict = solved("phase")
    run = run_of(query, "phase")
    state = open_case(run, 0)
    assert state is not None
    names = [rung.name for rung in Compaction(run, state, verdict.proof.trees[0]).rungs]
    assert [name for name in names if name != "merged"] == [rung.name for rung in RUNGS] and "merged" in names
    for cores in (False, True):
        proof = compact(run, verdict.proof, 60.0, cores)
        assert proof.leaves <= verdict.proof.leaves and check(proof, query).accepted
        assert cores or not any(r.core for tree in proof.trees for r in tree.refutations)


def test_trees_are_handed_out_as_they_are_finished():
    """What is closed can be checked while the rest is searched: the first case's tree comes before the second case."""
    query, formula, verdict = solved("input")
    twice = Query(query.networks, query.cases * 2)
    opened: list[int] = []

    def replayed(state):
        opened.append(state.number)
        return replay(run, [replace(tree, case=state.number) for tree in verdict.proof.trees], state)

    run = run_of(twice, "input")
    found = portfolio.search(run, replayed)
    first = next(found)
    assert isinstance(first, Tree) and first.case == 0 and opened == [0]
    assert check(Proof(query.network.fingerprint, query.property_hash, (first,)), query).accepted
    assert [tree.case for tree in found] == [1] and opened == [0, 1]
    assert run.statistics.regions == 0


def test_conjunctions_are_handed_out_one_by_one_where_phases_are_split(monkeypatch):
    """The easy formula is finished before the hard one, which the second way of splitting closes."""
    monkeypatch.setattr(portfolio, "_entry", lambda run, state: 10_000.0)
    query = formula_query([clauses(0, 14, 110), clauses(1, 14, 400)], 14)
    run = Run(query, Settings(workers=1, attack=False), Budget.seconds(120), Statistics(), Runtime(query.network))
    trees = []
    for found in portfolio.search(run):
        assert isinstance(found, Tree)
        trees.append((found.conjunctions, run.budget.work))
    answered = sorted(c for conjunctions, _ in trees for c in ((0, 1) if conjunctions is None else conjunctions))
    assert answered == [0, 1]
