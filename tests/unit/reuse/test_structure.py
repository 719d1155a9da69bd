"""Stages of reuse, as measurements ask for them: each later one does what the one before it does, and more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from effort import effort
from handmade import chain, clauses, formula_layers, formula_query

from mucg4.evidence import Examined
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.model.query import Query
from mucg4.model.verdict import Safe, Statistics
from mucg4.reuse.replay import ReplayedArm
from mucg4.reuse.structure import outline, splits_phases
from mucg4.search.loop import Search
from mucg4.search.run import Run, open_case
from mucg4.settings import Settings
from mucg4.verify import replay, verify

VARIABLES = 6
WAYS = ["input", "phase"]
FORMULA = clauses(0, VARIABLES, 30)


@pytest.fixture(scope="module", params=WAYS)
def parent(request):
    """A query, its proof, and the way in which both networks are searched."""
    query = formula_query([FORMULA], VARIABLES)
    verdict = verify(query, Settings(workers=1, split=request.param), budget=effort())
    assert isinstance(verdict, Safe) and verdict.proof.leaves > 2
    return query, verdict.proof, request.param


def variant_of(query: Query, size: float = 0.01) -> Query:
    random = np.random.default_rng(0)
    layers = [(w * (1 + size * random.normal(size=w.shape)), b) for w, b in formula_layers([FORMULA], VARIABLES)]
    return Query((chain(layers),), query.cases)


def run_of(query: Query, split: str, workers: int = 1) -> Run:
    settings = Settings(workers=workers, attack=False, split=split, reuse_upto="structure")
    return Run(query, settings, effort(), Statistics(), Runtime(query.network))


def test_each_stage_closes_what_it_may(parent):
    """The structure alone closes no leaf by the checker; on the very network the duals close them all."""
    query, proof, split = parent
    seen = {}
    for stage in ("structure", "duals", "ascent"):
        verdict = replay(proof, query, Settings(workers=1, split=split, reuse_upto=stage), effort())
        assert isinstance(verdict, Safe) and verdict.checked
        seen[stage] = verdict.statistics
    rungs = {stage: s.rungs for stage, s in seen.items()}
    assert not rungs["structure"]["checked"] and seen["structure"].regions > 0
    assert seen["structure"].stored_leaves == proof.leaves
    for stage in ("duals", "ascent"):
        assert rungs[stage]["checked"] == proof.leaves and not seen[stage].regions


@pytest.mark.parametrize("parent", ["phase"], indirect=True)  # input splits begin ascent from single constraints
def test_stored_duals_reach_the_search_in_the_last_stage_only(parent, monkeypatch):
    query, proof, split = parent
    given = []
    take_up = Search.take_up

    def spy(self, work, planes, stored, dear):
        given.append(bool(np.isfinite(stored.weights).any()))
        take_up(self, work, planes, stored, dear)

    monkeypatch.setattr(Search, "take_up", spy)
    some = replace(proof, trees=tuple(replace(t, tightenings=(), cuts=()) for t in proof.trees))
    for stage, expected in (("structure", False), ("duals", False), ("ascent", True)):
        given.clear()
        settings = Settings(workers=1, split=split, reuse_upto=stage)
        assert isinstance(replay(some, variant_of(query), settings, effort()), Safe)
        assert any(given) is expected and bool(given) is (stage != "structure")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("parent", ["phase"], indirect=True)
def test_where_phases_are_split_the_root_is_worked_then_divided(parent, workers):
    query, proof, split = parent
    run = run_of(variant_of(query), split, workers)
    trees = [outline(tree) for tree in proof.trees]
    assert [len(tree) for tree in trees] == [1] * len(trees)
    arm = ReplayedArm(run, open_case(run, 0), Examined(run.query, trees, Budget()).open(), proof.trees)
    assert arm.begin() is None and arm.is_open and arm.is_fresh
    for search, tree in zip(arm.searches, proof.trees, strict=True):
        for name in ("node", "index", "threshold"):
            assert sorted(search.recorder.arrays[name][: len(tree)]) == sorted(getattr(tree, name))
        assert search.recorder.count == len(tree) and search.waiting == len(tree.leaves)
    assert run.statistics.replay_regions == proof.leaves


@pytest.mark.parametrize("parent", ["input"], indirect=True)
def test_where_inputs_are_split_the_checker_walks_the_tree_without_its_evidence(parent):
    query, proof, split = parent
    (tree,) = map(outline, proof.trees)
    assert len(tree) == len(proof.trees[0])
    assert not tree.refutations and not tree.tightenings and not tree.cuts and not splits_phases(tree)
    verdict = replay(proof, query, Settings(workers=1, split=split, reuse_upto="structure"), effort())
    assert verdict.statistics.replay_regions + verdict.statistics.rungs["checked"] == proof.leaves


def test_a_tree_of_another_network_costs_no_verdict(parent):
    query, proof, split = parent
    wrong = [replace(t, index=np.where(t.left >= 0, 10**6, -1).astype(np.int32)) for t in proof.trees]
    again = replay(replace(proof, trees=tuple(wrong)), query, Settings(workers=1, reuse_upto="structure"), effort())
    assert isinstance(again, Safe) and again.checked and again.statistics.warnings
