"""The replay: the checker first, then searches of what it rejected; trees are handed out as they are finished."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from effort import effort
from handmade import chain, clauses, formula_layers, formula_query
from samples import replayed

from mucg4.check import walk as walk_module
from mucg4.check.resume import Examination
from mucg4.check.walk import check
from mucg4.conclude import conclude
from mucg4.evidence import Established, Examined
from mucg4.gate.agreement import Agreement
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof, Tree, single_leaf
from mucg4.model.query import Query, Witness
from mucg4.model.verdict import RUNGS, Safe, Statistics, Unknown
from mucg4.reuse import replay as replay_module
from mucg4.reuse.replay import Part, ReplayedArm, completed, replay_all
from mucg4.search import portfolio
from mucg4.search import run as run_module
from mucg4.search.loop import Search
from mucg4.search.phase_tighten import Tightener
from mucg4.search.phases import PhaseWay
from mucg4.search.run import Run, open_case
from mucg4.settings import Settings
from mucg4.verify import replay, verify

VARIABLES = 8
WAYS = ["input", "phase"]


def run_of(query: Query, split: str, workers: int = 1) -> Run:
    settings = Settings(workers=workers, attack=False, split=split)
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


def proof_of(query: Query, *trees: Tree) -> Proof:
    return Proof(query.network.fingerprint, query.property_hash, trees)


@pytest.mark.parametrize("split", WAYS)
def test_what_the_checker_accepts_is_the_answer(split):
    """No region is searched, and nothing is examined twice."""
    query, _, verdict = solved(split)
    run = run_of(query, split)
    found = replay_all(run, verdict.proof.trees)
    assert isinstance(found, Established) and found.examined.report.accepted
    assert run.statistics.rungs["checked"] == run.statistics.stored_leaves == verdict.proof.leaves
    assert run.statistics.regions == 0 and run.statistics.reused_share == 1.0
    assert list(run.statistics.rungs) == list(RUNGS)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_witness_met_meanwhile_ends_the_check(workers, monkeypatch):
    monkeypatch.setattr(walk_module, "LEAST_SHARED", 0)
    query, _, verdict = solved("phase")
    met = object.__new__(Witness)
    monkeypatch.setattr(replay_module, "first_steps", lambda run, case: iter([None, met]))
    assert replay_all(run_of(query, "phase", workers), verdict.proof.trees) is met


def test_onnxruntime_is_compared_once_and_again_after_a_search(monkeypatch):
    query, formula, verdict = solved("phase")
    asked = []
    words = iter(["differs", None, "differs"])
    monkeypatch.setattr(run_module, "agreement", lambda *_, **more: asked.append(1) or Agreement(next(words)))
    for other in (query, moved(query, formula, 0.01)):
        run = run_of(other, "phase")
        answer = conclude(run, replay_all(run, verdict.proof.trees))
        assert isinstance(answer, Unknown) and answer.reason == "differs"
    assert run.statistics.regions > 0 and len(asked) == 1 + 2


@pytest.mark.parametrize("split", WAYS)
@pytest.mark.parametrize("size", [0.003, 0.01])
@pytest.mark.parametrize("workers", [1, 2])
def test_rejected_leaves_go_on_where_the_checker_left_them(split, size, workers, monkeypatch):
    """The longer tree is accepted by the check that goes on and by one from the start; counts add up."""
    monkeypatch.setattr(walk_module, "LEAST_SHARED", 0)
    query, formula, verdict = solved(split)
    for seed in range(1):
        other = moved(query, formula, size, seed)
        run = run_of(other, split, workers)
        trees = replayed(run, list(verdict.proof.trees))
        assert check(proof_of(other, *trees), other).accepted
        s = run.statistics
        assert s.rungs["checked"] + s.rungs["ascent"] <= s.stored_leaves == verdict.proof.leaves
        assert (s.regions == 0) == (s.rungs["checked"] == s.stored_leaves)


@pytest.mark.parametrize("split", WAYS)
def test_a_tree_without_evidence_is_a_partition(split):
    query, _, verdict = solved(split)
    bare = [replace(t, refutations=()) for t in verdict.proof.trees]
    run = run_of(query, split)
    assert check(proof_of(query, *replayed(run, bare)), query).accepted
    assert run.statistics.rungs["checked"] == 0 < run.statistics.rungs["ascent"]


def test_conjunctions_without_a_stored_tree_begin_at_the_root():
    query = formula_query([clauses(k, VARIABLES, 60) for k in range(2)], VARIABLES)
    verdict = verify(query, Settings(workers=1, split="phase"), budget=effort())
    assert isinstance(verdict, Safe)
    one = [t for t in verdict.proof.trees if t.conjunctions == (0,)]
    assert [t.conjunctions for t in completed(query, one)] == [(0,), (1,)]
    assert [t.conjunctions for t in completed(query, [*one, *one])] == [(0,), (1,)]
    assert check(proof_of(query, *replayed(run_of(query, "phase"), one)), query).accepted


def test_a_tree_of_which_little_holds_is_given_up_early():
    """What was reached becomes open regions, and the subtrees below are not visited."""
    query, _, verdict = solved("phase")
    assert verdict.proof.leaves > 100
    bare = Proof(
        query.network.fingerprint, query.property_hash, tuple(replace(t, refutations=()) for t in verdict.proof.trees)
    )
    whole, part = (Examination(bare, query, Budget(), 1, patience) for patience in (None, 8))
    (all_open,), (some,) = whole.open(), part.open()
    assert len(some.at) < len(all_open.at) and len(some.tree) < len(all_open.tree)
    assert np.all(some.tree.left[some.at] < 0) and part.report.skipped > 0
    run = run_of(query, "phase")
    arm = ReplayedArm(run, open_case(run, 0), [some])
    arm.begin()
    arm.advance(float("inf"))
    (tree,) = arm.trees()
    assert part.go_on(proof_of(query, tree), Budget()).accepted
    assert check(proof_of(query, *part.report.proof.trees), query).accepted


@pytest.mark.parametrize("split", WAYS)
def test_only_the_same_literals_count_as_a_continuation(split):
    """Another tree is examined from its root; evidence outside the open subtrees is what was examined."""
    query, formula, verdict = solved(split)
    (tree,) = verdict.proof.trees
    leaf = int(tree.table.at[-1])
    gone = replace(tree, refutations=tree.table.take(np.flatnonzero(tree.table.at != leaf)))
    examined = Examined(query, [gone], Budget())
    assert not examined.report.accepted and [leaf] == np.unique([o.at for o in examined.open()]).tolist()
    other = replace(gone, threshold=np.where(tree.left >= 0, tree.threshold + 0.25, 0.0))
    report = examined.go_on([other], Budget())
    assert not report.accepted and report.failed + report.checked == report.leaves
    examined = Examined(query, [gone], Budget())
    lying = replace(tree, refutations=tree.table.take(np.flatnonzero(tree.table.at == leaf)))
    report = examined.go_on([lying], Budget())
    assert report.accepted and check(report.proof, query).accepted  # the examined evidence was put back


@pytest.mark.parametrize("prefer, workers", [("root", 2), ("leaves", 1)])
def test_leaves_that_promise_too_much_go_on_from_their_root(prefer, workers, monkeypatch):
    """The root is tried with the stored bounds; whichever promises less goes on, and the proof is whole."""
    monkeypatch.setattr(PhaseWay, "root_cost", lambda self: 0.5)
    monkeypatch.setattr(Part, "promises_no_more_than", lambda self, other: prefer == "root")
    monkeypatch.setattr(ReplayedArm, "patience", 1.0)
    query, formula, verdict = solved("phase")
    run = run_of(moved(query, formula, 0.01), "phase", workers)
    trees = replayed(run, list(verdict.proof.trees))
    assert check(proof_of(run.query, *trees), run.query).accepted
    s = run.statistics
    assert s.from_root >= 1 and 0 < s.stored_leaves == verdict.proof.leaves
    assert (s.rungs["checked"] == 0) == (prefer == "root")


def test_trees_that_fit_no_network_are_a_miss():
    query, _, verdict = solved("phase")
    (tree,) = verdict.proof.trees
    wrong = replace(tree, index=np.where(tree.left >= 0, 10**6, -1).astype(np.int32))
    run = run_of(query, "phase")
    found = replay_all(run, [wrong])
    assert isinstance(found, list) and "not used" in run.statistics.warnings[0] and run.statistics.from_root == 1


def test_a_replayed_verdict_is_sealed_by_the_checker():
    query, formula, verdict = solved("phase")
    again = replay(verdict.proof, moved(query, formula, 0.02), Settings(workers=1), effort())
    assert isinstance(again, Safe) and again.checked and again.statistics.checker == "accepted"


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


def test_a_root_with_stored_bounds_is_split_before_it_is_tightened_again(monkeypatch):
    """A round at the root costs as much as many regions: it comes where these do not come to an end."""
    query, _, verdict = solved("phase")
    (tree,) = verdict.proof.trees
    root = replace(single_leaf(), tightenings=tuple(t for t in tree.tightenings if t.at == 0))
    assert root.tightenings
    steps = []

    def note(owner, name, what):
        step = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: steps.append(what) or step(*args))

    note(Tightener, "_at_root", "root")
    note(Search, "children", "split")
    run = run_of(query, "phase")
    trees = replayed(run, [root])
    assert check(proof_of(query, *trees), query).accepted
    assert steps[0] == "split" and ("root" in steps) == bool(run.statistics.from_root)
