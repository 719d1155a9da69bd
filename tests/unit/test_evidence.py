"""No `unsat` without evidence: the report a verdict is made of, rejected leaves, proofs that time left unexamined."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from effort import effort
from examples import dense, text

import mucg4.evidence as evidence
import mucg4.search.portfolio as solve
from mucg4.check import narrow
from mucg4.check import walk as walk_module
from mucg4.check.enclose import Enclosure
from mucg4.check.walk import check
from mucg4.errors import StuckError, UnsoundError
from mucg4.gate.agreement import Agreement
from mucg4.limits.budget import Budget
from mucg4.model.proof import single_leaf
from mucg4.model.verdict import CheckReport, Safe, Statistics, Unknown
from mucg4.read.instance import query_of
from mucg4.search.loop import Search
from mucg4.search.record import Recorder
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify

SETTINGS = Settings(workers=1, split="input")


def layers(seed, sizes=(3, 16, 16, 1)):
    rng = np.random.default_rng(seed)
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    return [(rng.normal(size=(m, n)) / np.sqrt(n), 0.1 * rng.normal(size=m)) for n, m in pairs]


def split_query(seed=0, room=0.02):
    """Unsafe above a level that the network stays below, but not by far."""
    data = dense([(w.astype(np.float32), b.astype(np.float32)) for w, b in layers(seed)])
    box = [(-1, 1)] * 3
    rough = query_of(data, text(box, 1, "(>= Y_0 1e6)"))
    x = np.random.default_rng(seed).uniform(-1, 1, size=(20000, 3))
    level = round(float(rough.network(x).max()) + room, 3)
    return query_of(data, text(box, 1, f"(>= Y_0 {level})"))


@pytest.fixture(scope="module")
def proved():
    query = split_query()
    verdict = verify(query, SETTINGS, budget=effort())
    assert isinstance(verdict, Safe) and verdict.checked and verdict.statistics.checker == "accepted"
    assert verdict.proof.leaves > 20
    return query, verdict


def test_a_verdict_is_made_of_the_report_on_the_proof_it_holds(proved):
    _, verdict = proved
    assert verdict.proof is verdict.report.proof
    for change in (
        {"accepted": False, "reason": "no"},
        {"accepted": False, "failed": 1, "checked": verdict.report.checked - 1, "rejected": ((0, 0, 0),)},
    ):
        with pytest.raises(UnsoundError, match="no unsat without evidence"):
            Safe(replace(verdict.report, **change), Statistics())
    other = replace(verdict.proof, trees=(replace(verdict.proof.trees[0], refutations=()),))
    with pytest.raises(UnsoundError, match="no unsat without evidence"):
        Safe(replace(verdict.report, proof=other), Statistics())
    for change in ({"checked": 0}, {"reason": "no"}, {"failed": 1}, {"late": True}, {"leaves": 0}):
        with pytest.raises(UnsoundError, match="contradicts itself"):
            replace(verdict.report, **change)
    with pytest.raises(UnsoundError):
        CheckReport(verdict.proof, True, 0, 0, 0)


@pytest.mark.parametrize("where", ["begin", "run"])
def test_an_arm_that_gets_stuck_has_closed_nothing_by_that(where, monkeypatch):
    def stuck(*arguments, **more):
        raise StuckError("stuck")

    monkeypatch.setattr(Search, where, stuck)
    monkeypatch.setattr(solve, "_entry", lambda run, state: 1.0)
    for settings in (SETTINGS, Settings(workers=1), Settings(workers=1, attack=False)):
        verdict = verify(split_query(), settings, budget=effort())
        assert isinstance(verdict, Unknown) and verdict.reason == "stuck"


def test_evidence_that_is_lost_is_searched_again(monkeypatch, proved):
    """Refutations that were never recorded: the leaves are rejected, then searched; the second proof is whole."""
    query, _ = proved
    whole, calls = Recorder.tree, []

    def tree(self, *arguments):
        made = whole(self, *arguments)
        calls.append(made)
        return replace(made, refutations=made.refutations[::2]) if len(calls) == 1 else made

    monkeypatch.setattr(Recorder, "tree", tree)
    verdict = verify(query, SETTINGS, budget=effort())
    assert isinstance(verdict, Safe) and verdict.checked
    assert verdict.statistics.reopened == len(calls[0].refutations) // 2
    assert check(verdict.proof, query).accepted


def test_what_stays_rejected_is_unknown_with_a_case(monkeypatch, proved, tmp_path):
    query, _ = proved
    whole = Recorder.tree
    monkeypatch.setattr("mucg4.store.store.cases_folder", lambda: tmp_path)
    monkeypatch.setattr(Recorder, "tree", lambda self, *a: replace(whole(self, *a), refutations=()))
    verdict = verify(query, SETTINGS, Store(":memory:"), effort())
    assert isinstance(verdict, Unknown) and "checker rejects" in verdict.reason
    assert not verdict.statistics.saved and verdict.statistics.checker.startswith("rejected")
    assert len(list(tmp_path.iterdir())) == 1 and str(tmp_path) in verdict.statistics.warnings[-1]


def test_what_the_search_does_to_its_own_network_does_not_reach_the_checker(monkeypatch):
    """Weights halved in memory after reading: the proof of that network is none of the file's."""
    low = split_query(room=-0.3)
    for node in low.network.nodes:
        if hasattr(node.op, "weight"):
            node.op.weight[:] *= 0.5
    monkeypatch.setattr(sys.modules["mucg4.search.run"], "agreement", lambda *a, **k: Agreement(None))
    verdict = verify(low, Settings(workers=1, split="input", attack=False), budget=effort())
    assert not isinstance(verdict, Safe)


@pytest.fixture
def no_time(monkeypatch):
    """The checker's time is over before it has seen a region."""
    real = evidence.Examination
    late = Budget(deadline=-1.0)
    monkeypatch.setattr(evidence, "Examination", lambda proof, query, budget, *rest: real(proof, query, late, *rest))


def test_unexamined_proofs_are_marked_and_never_stored(no_time, proved):
    query, _ = proved
    store = Store(":memory:")
    verdict = verify(query, SETTINGS, store, effort())
    if isinstance(verdict, Safe):  # each leaf states its evidence
        assert not verdict.checked and verdict.statistics.checker == "unfinished"
        assert "unchecked" in verdict.statistics.warnings[0]
    else:  # some region is said to be empty: nobody looked
        assert verdict.reason == "timeout" or "timeout" in verdict.reason
    assert not store.entries() and not verdict.statistics.saved
    strict = verify(query, replace(SETTINGS, unchecked=False), None, effort())
    assert isinstance(strict, Unknown)


def test_a_leaf_without_stated_evidence_is_never_merely_late(proved):
    query, verdict = proved
    (tree,) = verdict.proof.trees
    over = Budget(deadline=-1.0)
    stated = replace(tree, refutations=(*tree.refutations, replace(tree.refutations[0], at=0)))
    assert check(replace(verdict.proof, trees=(stated,)), query, over).late
    bare = replace(verdict.proof, trees=(replace(tree, refutations=tree.refutations[:-1]),))
    report = check(bare, query, over)
    assert not report.late and not report.accepted and report.skipped == bare.leaves


@pytest.mark.parametrize("seed", range(3))
def test_processes_share_the_regions_and_say_the_same(seed, monkeypatch):
    monkeypatch.setattr(walk_module, "SHARED", 4)
    monkeypatch.setattr(walk_module, "LEAST_SHARED", 0)
    monkeypatch.setattr(walk_module, "LEAVES_EACH", 1)
    query = split_query(seed)
    verdict = verify(query, SETTINGS, budget=effort())
    assert isinstance(verdict, Safe)
    (tree,) = verdict.proof.trees
    fewer = replace(verdict.proof, trees=(replace(tree, refutations=tree.refutations[1::2]),))
    for proof in (verdict.proof, fewer):
        alone, shared = check(proof, query), check(proof, query, workers=3)
        assert (alone.accepted, alone.checked, alone.failed) == (shared.accepted, shared.checked, shared.failed)
        assert sorted(alone.rejected) == sorted(shared.rejected)


@pytest.mark.parametrize("spare", [1, 4, 40])
def test_processes_share_several_trees(spare, monkeypatch):
    """Trees of one case that wait as a whole take the root's bounds from before; one of them has a leaf that fails."""
    monkeypatch.setattr(walk_module, "SHARED", spare)
    monkeypatch.setattr(walk_module, "LEAST_SHARED", 0)
    query = split_query(1)
    verdict = verify(query, SETTINGS, budget=Budget.seconds(60))
    assert isinstance(verdict, Safe)
    (tree,) = verdict.proof.trees
    fewer = replace(tree, refutations=tree.refutations[1:])
    for trees in ([tree, tree, single_leaf()], [tree, fewer, tree], [single_leaf()] * 3):
        proof = replace(verdict.proof, trees=tuple(trees))
        alone, shared = check(proof, query), check(proof, query, workers=2)
        assert (alone.accepted, alone.checked, alone.failed) == (shared.accepted, shared.checked, shared.failed)
        assert sorted(alone.rejected) == sorted(shared.rejected)


def with_copies(rng, shapes):
    """Layers with neurons that are copies and negatives of others; the second one's numbers are mostly zero."""
    out = []
    for number, (w, b) in enumerate(shapes):
        half = len(w) // 3
        if number == 1:
            w = w * (rng.random(w.shape) < 0.04)
        if half:
            w[half : 2 * half], b[half : 2 * half] = w[:half], b[:half]
            w[2 * half : 3 * half], b[2 * half : 3 * half] = -w[:half], -b[:half]
        out.append((w.astype(np.float32), b.astype(np.float32)))
    return out


@pytest.mark.parametrize("seed", range(8))
def test_neurons_that_are_off_or_copies_change_no_bound(seed, monkeypatch):
    monkeypatch.setattr(narrow, "ENTRY_COST", 3)
    shapes = layers(seed, (3, 20, 20, 12, 2)) if seed < 4 else layers(seed, (3, 60, 66, 12, 2))
    if seed >= 4:
        shapes = with_copies(np.random.default_rng(seed), shapes)
    query = query_of(
        dense([(w.astype(np.float32), b.astype(np.float32)) for w, b in shapes]),
        text([(-1, 1)] * 3, 2, "(>= Y_0 1e6)"),
    )
    quick, plain = Enclosure(query.network), Enclosure(query.network)
    assert quick.quick and (seed < 4 or (any(quick.copies.values()) and any(quick.few.values())))
    plain.quick, plain.units, plain.copies = False, {k: plain._unit_rows(k) for k in plain.slot}, {}
    rng = np.random.default_rng(seed)
    centre, width = rng.uniform(-1, 1, size=(40, 3)), rng.choice([0.02, 0.2, 1.0], size=(40, 1))
    box = np.maximum(centre - width, -1), np.minimum(centre + width, 1)
    every, nowhere = np.ones(40, dtype=bool), np.zeros(40, dtype=bool)
    found = []
    for enclosure in (quick, plain):
        far = np.full((40, enclosure.width), np.inf)
        low, up = -far, far.copy()
        enclosure.sweep((box[0].copy(), box[1].copy()), low, up, nowhere, every)
        enclosure.sweep((box[0].copy(), box[1].copy()), low, up, every, nowhere)
        found.append((low, up))
    for one, other in zip(*found, strict=True):
        assert np.allclose(one, other, rtol=1e-12, atol=1e-12)
