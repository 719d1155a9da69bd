"""Proofs made to be reused: nothing is lost, less is looked at, more holds on noisy copies."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from effort import effort
from handmade import clauses, formula_query

from mucg4.check import enclose as enclose_module
from mucg4.check.margins import Gauge
from mucg4.check.walk import check, planned
from mucg4.errors import BudgetError, InputError, ProofError
from mucg4.gate.runtimes import runtime_of
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Query
from mucg4.model.refutations import Refutations
from mucg4.model.verdict import Safe, Statistics
from mucg4.read.instance import read_query
from mucg4.reuse.compact import _pieces, compact, gauges_of, kept_rows, pruned, touched_up
from mucg4.reuse.explain import explained
from mucg4.reuse.noise import NOISES, narrowed, noisy, on_grid, significant
from mucg4.reuse.noise import pruned as without_smallest
from mucg4.reuse.survey import survey
from mucg4.search.run import Run
from mucg4.settings import Settings
from mucg4.verify import verify

INSTANCES = Path(__file__).parents[3] / "instances"
FOREVER = 1e6  # seconds: what these tests demand must not depend on the machine


@cache
def solved(split: str) -> tuple[Query, Proof]:
    query = formula_query([clauses(3, 6, 40)], 6)
    verdict = verify(query, Settings(workers=1, split=split, compact=False), budget=effort())
    assert isinstance(verdict, Safe) and verdict.proof.leaves > 4
    return query, verdict.proof


@pytest.fixture(scope="module")
def digits() -> tuple[Query, Proof]:
    """A proof whose trees are roots with tightenings and cuts."""
    query = read_query(INSTANCES / "onnx/digits_2x24.onnx", INSTANCES / "vnnlib/digits_img20_0.13.vnnlib")
    verdict = verify(query, Settings(workers=1, compact=False), budget=effort(1e10))
    assert isinstance(verdict, Safe)
    return query, verdict.proof


def run_of(query: Query) -> Run:
    return Run(query, Settings(workers=1), Budget(), Statistics(), runtime_of(query))


def compacted(query: Query, proof: Proof, effort: float | None = FOREVER) -> Proof:
    with np.errstate(all="ignore"):
        if effort is None:
            return touched_up(run_of(query), proof, FOREVER)
        return compact(run_of(query), proof, effort, gauges_of(query, Budget()))


def lost(gauge: Gauge, proof: Proof) -> int:
    return sum(gauge.measure(planned(tree, gauge.query)).lost for tree in proof.trees)


@pytest.mark.parametrize("split", ["input", "phase"])
@pytest.mark.parametrize("copies", [True, False])
def test_a_compacted_proof_is_accepted_and_costs_no_more(split, copies, monkeypatch):
    query, proof = solved(split)
    monkeypatch.setattr("mucg4.reuse.compact.NOISES", [n for n in NOISES if n.name in ("bf16", "pruned")])
    small = compacted(query, proof, FOREVER if copies else None)
    assert check(small, query).accepted
    gauges = gauges_of(query, Budget())
    before, after = survey(proof, gauges), survey(small, gauges)
    if not copies:  # else it may be larger where more of it holds
        assert after.visited <= before.visited and after.literals <= before.literals
    assert len(after.lines(before)) == len(before.lines()) == 10 + len(gauges) - 1
    if copies:
        assert sum(lost(gauge, small) for gauge in gauges.values()) <= sum(lost(g, proof) for g in gauges.values())


def test_tightenings_and_cuts_that_are_not_needed_go(digits, monkeypatch):
    query, proof = digits
    monkeypatch.setattr("mucg4.reuse.compact.NOISES", [n for n in NOISES if n.name == "int8"])
    small = compacted(query, proof)
    assert check(small, query).accepted
    gauges = gauges_of(query, Budget())
    before, after = survey(proof, gauges), survey(small, gauges)
    assert after.rows < before.rows and after.cuts <= before.cuts and after.bytes < before.bytes
    assert all(after.holds[name] >= before.holds[name] for name in before.holds)


def test_threads_change_nothing(digits, monkeypatch):
    """They share out the rows of tightenings, of cuts and of all neurons."""
    query, proof = digits
    monkeypatch.setattr(enclose_module, "THREADED", 0.0)
    gauge, threaded = Gauge(query, Budget()), Gauge(query, Budget())
    threaded.enclosure.threads = 3
    for tree in proof.trees:
        one, three = (g.measure(planned(tree, query), keep=tree.leaves) for g in (gauge, threaded))
        assert np.array_equal(one.value, three.value) and np.array_equal(one.places.low, three.places.low)
    assert check(proof, query, workers=3).accepted


@pytest.mark.parametrize("change", [{"case": 1}, {"case": -1}, {"conjunctions": (99,)}])
def test_stored_trees_that_do_not_fit_the_query_are_refused_before_they_are_measured(change, digits):
    query, proof = digits
    wrong = replace(proof, trees=(replace(proof.trees[0], **change),))
    with pytest.raises(ProofError):
        explained(wrong, query, Budget())
    with pytest.raises(ProofError):
        survey(wrong, gauges_of(query, Budget()))


def test_without_time_the_proof_stays_as_it_is():
    query, proof = solved("phase")
    assert compacted(query, proof, 0.0).trees == proof.trees


def test_what_is_done_when_the_time_is_over_counts(monkeypatch):
    """A budget that ends in the middle leaves a proof that is accepted, with the parts that were done."""
    query, proof = solved("input")
    monkeypatch.setattr("mucg4.reuse.compact.PIECE", 2)
    assert len(_pieces(0, proof.trees[0])) > 2
    run, polls = run_of(query), 0

    class Ending(Budget):
        def share(self, seconds: float, grace: float = 0.0) -> Budget:
            return self

        def poll(self, work: int = 0) -> None:
            nonlocal polls
            polls += 1
            if polls > 100:
                raise BudgetError("timeout")

    with np.errstate(all="ignore"):
        small = compact(replace(run, budget=Ending()), proof, FOREVER, gauges_of(query, Budget()))
    assert polls > 100 and check(small, query).accepted


@pytest.mark.parametrize("split, leaves", [("input", 2), ("phase", 48)])
def test_processes_make_of_their_pieces_what_one_makes(split, leaves, monkeypatch):
    query, proof = solved(split)
    monkeypatch.setattr("mucg4.reuse.compact.PIECE", leaves)
    monkeypatch.setattr("mucg4.reuse.compact.searched_anew", lambda run, trees, gauges: trees)
    assert len(_pieces(0, proof.trees[0])) > 2
    found = []
    for workers in (1, 2):
        run = run_of(query)
        run.settings = replace(run.settings, workers=workers)
        with np.errstate(all="ignore"):
            found.append(compact(run, proof, FOREVER, gauges_of(query, Budget())))
    assert all(check(p, query).accepted and p.leaves == found[0].leaves for p in found)
    places = [{(r.at, r.conjunction, r.margin) for t in p.trees for r in t.refutations} for p in found]
    assert places[0] == places[1]


def test_pieces_are_disjoint_but_for_paths_and_hold_everything(monkeypatch):
    tree = solved("input")[1].trees[0]
    monkeypatch.setattr("mucg4.reuse.compact.PIECE", 2)
    found = _pieces(0, tree)
    pieces, leaves = [p.within for p in found], tree.left < 0
    assert np.array_equal(np.sum([p & leaves for p in pieces], axis=0), leaves)
    assert np.sum([p.own for p in found], axis=0).max() == 1
    parents = tree.parents()
    for p in pieces:
        assert p[0] and np.all(p[parents[np.flatnonzero(p)][1:]])


def test_pruned_trees_keep_paths_literals_and_tightenings():
    """Every subtree that goes leaves a tree in which the evidence that stays stands at the same region."""
    query, proof = solved("phase")
    tree = proof.trees[0]
    inner = np.flatnonzero(tree.left >= 0)
    gone = np.zeros(len(tree), dtype=bool)
    gone[inner[len(inner) // 2]] = True
    small = pruned(tree, gone)
    assert len(small) == len(tree) - 2 * (tree.leaf_counts()[gone][0] - 1)
    gauge = Gauge(query, Budget())
    found = gauge.measure(planned(small, query))
    assert found.lost <= 1  # only the region whose subtree went
    assert pruned(tree, gone & False) is tree


def test_margins_agree_with_the_checker():
    """On the own network and on copies the gauge loses the leaves that the checker rejects."""
    query, proof = solved("phase")
    for noise in NOISES:
        network = noisy(query.network, noise)
        for copy in (query, *([] if network is None else [Query((network,), query.cases)])):
            there = replace(proof, network=copy.network.fingerprint)
            report = check(there, copy)
            found = [Gauge(copy, Budget()).measure(planned(t, copy)) for t in proof.trees]
            rejected = {(k, leaf) for k, leaf, _ in report.rejected}
            open_ = {(k, leaf) for k, m in enumerate(found) for leaf in np.flatnonzero(m.open).tolist()}
            assert rejected <= open_  # the checker looks twice at what is near 0


def test_regions_are_entered_within_the_piece_only():
    query, proof = solved("input")
    tree = proof.trees[0]
    within = np.arange(len(tree)) == 0
    found = Gauge(query, Budget()).measure(planned(tree, query), within, within)
    assert found.entered == 1 and found.places is not None and found.places.at.tolist() == [0] and not found.lost


def test_rows_and_cuts_keep_their_order(digits):
    """`Cuts.after` counts the root's tightenings that are left."""
    _, proof = digits
    for tree in proof.trees:
        total = sum(len(t.index) for t in tree.tightenings)
        if not total:
            continue
        kept = np.zeros(total, dtype=bool)
        kept[len(tree.tightenings[0].index) :] = True
        small = kept_rows(tree, kept)
        assert len(small.tightenings) == len(tree.tightenings) - 1
        assert [c.after for c in small.cuts] == [max(c.after - 1, 0) for c in tree.cuts]


def test_chosen_refutations_are_those(digits):
    query, proof = solved("phase")
    for tree in (*proof.trees, *digits[1].trees):
        which = np.random.default_rng(0).permutation(len(tree.table))[: len(tree.table) // 2 + 1]
        got, want = tree.table.take(which), Refutations.of([tree.table[int(k)] for k in which])
        for name in (
            "at",
            "weights",
            "slope_node",
            "slope_index",
            "slope_value",
            "literal",
            "beta",
            "cut",
            "multiplier",
        ):
            assert np.array_equal(getattr(got, name), getattr(want, name)), name


# ---- noise -------------------------------------------------------------------------------------


def test_rounding_to_significant_bits_is_that_of_the_types():
    w = np.random.default_rng(0).normal(size=1000)
    assert np.array_equal(significant(w, 11), w.astype(np.float16).astype(np.float64))
    assert np.all(abs(significant(w, 8) - w) <= 2.0**-8 * abs(w))
    assert np.array_equal(significant(np.zeros(3), 8), np.zeros(3))


@pytest.mark.parametrize("axis", [None, 0])
def test_grids_have_so_many_levels(axis):
    w = np.random.default_rng(1).normal(size=(5, 400))
    g = on_grid(w, 127, axis)
    rows = [g.ravel()] if axis is None else list(g)
    assert all(len(np.unique(r.round(12))) <= 255 for r in rows)
    assert abs(g - w).max() <= abs(w).max() / 254 + 1e-12
    assert np.array_equal(on_grid(np.zeros((2, 2)), 127, axis), np.zeros((2, 2)))


def test_smallest_weights_and_weakest_neurons_go():
    w = np.random.default_rng(2).normal(size=(10, 10))
    out = without_smallest(w, 0.1)
    assert (out == 0).sum() == 10 and abs(w[out == 0]).max() <= abs(out[out != 0]).min()
    query, _ = solved("phase")
    nodes = narrowed(query.network, 0.2)
    changed = [k for k, (a, b) in enumerate(zip(nodes, query.network.nodes, strict=True)) if a.op is not b.op]
    assert changed and all((nodes[k].op.weight == 0).all(axis=0).any() for k in changed)


def test_copies_have_the_same_nodes_and_other_weights():
    query, _ = solved("phase")
    for noise in NOISES:
        copy = noisy(query.network, noise)
        if copy is not None:
            assert [n.size for n in copy.nodes] == [n.size for n in query.network.nodes]
            assert copy.fingerprint != query.network.fingerprint
            assert noisy(query.network, noise).fingerprint == copy.fingerprint


# ---- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["input", "phase"])
def test_proofs_are_explained(split, tmp_path):
    query, proof = solved(split)
    lines, found = explained(proof, query, Budget())
    text = "\n".join(lines)
    assert f"{proof.leaves} leaves" in lines[0] and "Split most: " in text and "Tree 1: unsafe set" in text
    assert ("neuron" in text) == (split == "phase" or any((t.node > 0).any() for t in proof.trees))
    pytest.importorskip("matplotlib")
    from mucg4.reuse.cover import draw

    for ending in ("png", "svg"):
        draw(proof, query, found, tmp_path / f"cover.{ending}")
        assert (tmp_path / f"cover.{ending}").stat().st_size > 1000
    with pytest.raises(InputError, match="png"):
        draw(proof, query, found, tmp_path / "cover.txt")


def test_open_leaves_are_told():
    query, proof = solved("phase")
    tree: Tree = proof.trees[0]
    bare = replace(proof, trees=(replace(tree, refutations=()), *proof.trees[1:]))
    assert any("not closed" in line for line in explained(bare, query, Budget())[0])


def test_a_proof_grows_though_the_steps_before_ran_out_of_time(monkeypatch):
    query, proof = solved("input")
    asked = []

    def late(*_):
        raise BudgetError("timeout")

    monkeypatch.setattr("mucg4.reuse.compact._improved", late)
    monkeypatch.setattr("mucg4.reuse.compact.grown", lambda run, trees, gauges: asked.append(trees) or trees)
    assert check(compacted(query, proof), query).accepted and len(asked) == 1
