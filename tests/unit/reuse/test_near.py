"""Leaves whose own refutation fails are closed by that of a near leaf, where it holds there for the checker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from effort import effort
from handmade import clauses, formula_query
from samples import replayed

from mucg4.check.walk import check, planned
from mucg4.errors import ProofError
from mucg4.evidence import Examined
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Query
from mucg4.model.verdict import Safe, Statistics
from mucg4.ops.arrays import IntArray
from mucg4.reuse import near as near_module
from mucg4.reuse.near import _moved, with_near
from mucg4.search.run import Run
from mucg4.settings import Settings
from mucg4.verify import verify
from unit.reuse.test_parts import LAYERS, WHOLE
from unit.reuse.test_parts import query as asked


def run_of(query: Query, workers: int = 1, upto: str = "ascent") -> Run:
    settings = Settings(workers=workers, attack=False, split="input", reuse_upto=upto)
    return Run(query, settings, effort(), Statistics(), Runtime(query.network))


def solved(count: int = 1) -> tuple[Query, Tree]:
    query = asked(LAYERS, [WHOLE], tuple(range(count)), room=0.1)
    verdict = verify(query, Settings(workers=1, split="input", compact=False), budget=effort())
    assert isinstance(verdict, Safe)
    return query, verdict.proof.trees[0]


def proof_of(query: Query, *trees: Tree) -> Proof:
    return Proof(query.network.fingerprint, query.property_hash, trees)


def spoiled(tree: Tree, leaves: IntArray) -> Tree:
    """Weights of the refutations at these leaves are 0: they refute nothing."""
    table = tree.table
    gone = np.repeat(np.isin(table.at, leaves), table.weight_count)
    return replace(tree, refutations=replace(table, weights=np.where(gone, 0.0, table.weights)))


@pytest.mark.parametrize("count", [1, 2])
def test_what_near_leaves_refute_is_not_searched(count, monkeypatch):
    query, tree = solved(count=count)
    bad = spoiled(tree, tree.leaves[::3])
    run = run_of(query)
    assert check(proof_of(query, *replayed(run, [bad])), query).accepted
    rungs = run.statistics.rungs
    assert rungs["near"] > 0 and rungs["checked"] + rungs["near"] + rungs["ascent"] <= run.statistics.stored_leaves
    monkeypatch.setattr(near_module, "REACH", 0)
    bare = run_of(query)
    replayed(bare, [bad])
    assert bare.statistics.rungs["near"] == 0
    assert run.statistics.regions < bare.statistics.regions
    assert run.statistics.reused_share > 0


def test_nothing_left_to_search():
    """One leaf fails, and its neighbour's refutation holds: the answer has no region that was searched."""
    query, tree = solved()
    closed = 0
    for leaf in tree.leaves.tolist():
        run = run_of(query)
        bad = spoiled(tree, np.array([leaf]))
        examined = Examined(query, [bad], Budget())
        opens = examined.open()
        if examined.report.accepted or opens is None:
            continue
        (o,) = opens
        left, found = with_near(query, o, Budget())
        assert len(left.at) + len(np.unique(found.at)) == len(o.at) == 1
        if len(left.at):
            continue
        closed += 1
        trees = replayed(run, [bad])
        assert check(proof_of(query, *trees), query).accepted
        assert run.statistics.regions == 0 and run.statistics.rungs["near"] == 1
        if closed == 3:
            return
    raise AssertionError("no leaf was closed by a neighbour's refutation")


def test_literals_that_are_not_on_the_path_stay_behind():
    query = formula_query([clauses(3, 8, 60)], 8)
    verdict = verify(query, Settings(workers=1, split="phase", compact=False), budget=effort())
    assert isinstance(verdict, Safe)
    (tree,) = verdict.proof.trees
    plan, table = planned(tree, query), tree.table
    assert table.beta_count.any()
    at = np.roll(table.at, 1).astype(np.int64)
    with pytest.raises(ProofError, match="not on its path"):
        planned(replace(tree, refutations=replace(table, at=at.astype(np.int32))), query)
    moved = _moved(plan, table.without("core_count", "cut_count"), at)
    planned(replace(tree, refutations=moved), query)
    assert 0 < moved.beta_count.sum() < table.beta_count.sum()


def test_a_refutation_that_does_not_hold_there_closes_nothing():
    """The checker's bound decides, not the margin that is stated."""
    query, tree = solved()
    table = tree.table
    bare = replace(tree, refutations=replace(table, weights=0 * table.weights, margin=0 * table.margin + 1e9))
    (o,) = Examined(query, [bare], Budget()).open() or ()
    left, found = with_near(query, o, Budget())
    assert len(left.at) == len(o.at) > 0 and len(found) == 0
