"""Cuts: upper planes of neurons over the box of what feeds them, in bounds, search, checker, file, replay and reuse."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from handmade import chain, one, random_layers
from samples import replayed

from mucg4.bound.planes import CutPlanes, carrier_rows, derive, propose
from mucg4.bound.propagate import Bounder
from mucg4.bound.reduced import Reduced
from mucg4.check.walk import check
from mucg4.errors import ProofError
from mucg4.model.network import Network, Node
from mucg4.model.proof import Alpha, Cuts, Proof, Refutation, keep_cuts, single_leaf
from mucg4.model.proof_packed import from_packed, to_packed
from mucg4.model.proof_text import from_text, to_text
from mucg4.model.query import Query
from mucg4.ops.affine import Dense
from mucg4.ops.piecewise import RELU, TwoPiece
from mucg4.relate.align import Alignment
from mucg4.reuse.compact import touched_up
from mucg4.reuse.translate import translate
from mucg4.search.portfolio import solve
from mucg4.store.store import lighter_forms
from unit.check.test_walk import PIECES, proof_of, random_network, random_query, smooth_ops
from unit.search.test_loop import run_of


def two_piece(network):
    return [k for k in network.nonlinear if isinstance(network.nodes[k].op, TwoPiece)]


def random_cuts(rng, network, node, after=0):
    """Any shares, some of them absent, for all neurons of a two-piece node."""
    count = network.nodes[node].size
    rows = carrier_rows(network, network.nodes[node].inputs[0], np.arange(count))
    shares = []
    for k, w in rows.items():
        some = np.flatnonzero(rng.random(w.shape[1]) < 0.8).astype(np.int32)
        shares.append(Alpha(k, some, rng.choice(np.array([0, 80, 255], dtype=np.uint8), (count, len(some)))))
    return Cuts(node, np.arange(count, dtype=np.int32), tuple(shares), after)


def excess(planes, values):
    """(points, cuts) left-hand sides of the inequalities at node values."""
    return sum(values[k] @ a.T for k, a in planes.coeffs.items()) + planes.offset


def test_planes_hold_at_every_point_whatever_the_shares():
    tight = 0
    for seed in range(60):
        rng = np.random.default_rng([3, seed])
        network = random_network(rng, PIECES + smooth_ops())
        lo, hi = -rng.random(network.input_size), rng.random(network.input_size)
        bounder = Bounder(network, lo, hi)
        root = bounder.root()
        bounder.refresh(root)
        points = lo + (hi - lo) * rng.choice([0.0, 0.3, 1.0], size=(500, len(lo)))
        values = network.values(points)
        for node in two_piece(network):
            planes = derive(bounder, root, random_cuts(rng, network, node), 0)
            left = excess(planes, values)
            assert np.all(left <= 1e-9 * (1 + planes.size)), (seed, node)
            tight += int(np.count_nonzero(left.max(axis=0) > -1e-6))
    assert tight > 20  # planes over the input alone touch the function at a corner of the box


def test_proposed_shares_are_the_best_ones_at_the_point():
    rng = np.random.default_rng(5)
    network = chain(random_layers(4, (4, 10, 2)), dtype=np.float64)
    bounder = Bounder(network, -np.ones(4), np.ones(4))
    root = bounder.root()
    values = network.values(rng.uniform(-1, 1, (1, 4)))
    values[2] = values[2] + 100.0  # above every plane
    found = propose(bounder, root, values, {2: np.ones(10)}, 100, 0)
    across = np.flatnonzero((root.low[0] < 0) & (root.up[0] > 0))
    assert [c.index.tolist() for c in found] == [across.tolist()]
    best = excess(derive(bounder, root, found[0], 0), values)[0]
    for _ in range(200):
        other = excess(derive(bounder, root, random_cuts(rng, network, 2), 0), values)[0][across]
        assert np.all(other <= best + 1e-9)
    assert len(propose(bounder, root, values, {2: np.ones(10)}, 3, 0)[0].index) == 3
    assert propose(bounder, root, network.values(np.zeros((1, 4))), {2: np.zeros(10)}, 100, 0) == []


def test_overflowing_planes_say_nothing():
    network = chain([(np.full((2, 2), 1e200), np.array([0.0, 1.0])), (np.ones((1, 2)), np.zeros(1))], dtype=np.float64)
    bounder = Bounder(network, np.full(2, -1e200), np.full(2, 1e200))
    with np.errstate(all="ignore"):
        planes = derive(bounder, bounder.root(), random_cuts(np.random.default_rng(0), network, 2), 0)
    assert not planes.offset.any() and not any(a.any() for a in planes.coeffs.values())


def wide(neurons=40, margin=0.2):
    """Unstable neurons of one layer; the output stays below a line by a share of its spread that no chord shows."""
    network = chain(random_layers(11, (6, neurons, 1)), dtype=np.float64)
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=6)))
    value = network(np.concatenate([np.random.default_rng(0).uniform(-1, 1, (20000, 6)), corners]))
    return one(network, [-1] * 6, [1] * 6, [({}, {0: -1}, float(value.max() + margin * value.std()), False)])


@pytest.fixture(scope="module")
def solved() -> tuple[Query, Proof]:
    query = wide()
    trees = solve(run_of(query, "phase", 60.0))
    assert isinstance(trees, list)
    return query, proof_of(query, *trees)


def test_search_uses_cuts_and_the_checker_accepts_them(solved):
    query, proof = solved
    tree = proof.trees[0]
    assert tree.cuts and any(r.cuts is not None for r in tree.refutations)
    assert check(proof, query).accepted
    without = replace(tree, cuts=(), refutations=tuple(replace(r, cuts=None) for r in tree.refutations), tightenings=())
    assert not check(proof_of(query, without), query).accepted  # the cuts carry the proof


def test_exact_arithmetic_accepts_cuts():
    query = wide(8, 0.5)
    trees = solve(run_of(query, "phase", 60.0))
    proof = proof_of(query, *trees)
    assert proof.trees[0].cuts
    assert check(proof, query, exact=True).accepted


def test_file_keeps_cuts(solved):
    _, proof = solved
    for back in (from_text(to_text(proof)), from_packed(to_packed(proof)), from_packed(to_packed(proof, 1))):
        for a, b in zip(proof.trees[0].cuts, back.trees[0].cuts, strict=True):
            assert (a.node, a.after) == (b.node, b.after) and np.array_equal(a.index, b.index)
            for s, t in zip(a.shares, b.shares, strict=True):
                assert s.node == t.node and np.array_equal(s.index, t.index) and np.array_equal(s.value, t.value)
        for r, s in zip(proof.trees[0].refutations, back.trees[0].refutations, strict=True):
            assert (r.cuts is None) == (s.cuts is None)
            assert r.cuts is None or all(np.array_equal(u, v) for u, v in zip(r.cuts, s.cuts, strict=True))
    data = json.loads(to_text(proof))
    data["trees"][0]["cuts"][0]["index"] = "AAAA"
    with pytest.raises(ProofError):
        from_text(json.dumps(data))


def with_first(tree, **fields):
    """The tree with other fields in its first batch of cuts, whatever the constructor has against them."""
    changed = object.__new__(Cuts)
    for name in ("node", "index", "shares", "after"):
        object.__setattr__(changed, name, fields.get(name, getattr(tree.cuts[0], name)))
    return replace(tree, cuts=(changed, *tree.cuts[1:]))


@pytest.mark.parametrize(
    "fields",
    [
        {"node": 1},
        {"node": 0},
        {"node": 99},
        {"node": -1},
        {"index": np.array([40], dtype=np.int32)},
        {"index": np.array([-1], dtype=np.int32)},
        {"shares": (Alpha(1, np.array([0], dtype=np.int32), np.array([[0]], dtype=np.uint8)),)},
        {"shares": (Alpha(0, np.array([6], dtype=np.int32), np.array([[0]], dtype=np.uint8)),)},
        {"shares": (Alpha(0, np.array([0], dtype=np.int32), np.array([[256]], dtype=np.uint16)),)},
        {"shares": (Alpha(0, np.array([0], dtype=np.int32), np.array([[0], [1]], dtype=np.uint8)),)},
        {"after": 99},
    ],
)
def test_wrong_cuts_are_rejected(solved, fields):
    query, proof = solved
    tree = replace(proof.trees[0], cuts=(proof.trees[0].cuts[0].take(np.array([0])), *proof.trees[0].cuts))
    assert not check(proof_of(query, with_first(tree, **fields)), query).accepted


@pytest.mark.parametrize("numbers, values", [([-1], [1.0]), ([0], []), ([0, 1], [[1.0, 1.0]] * 2), ([[0]], [[1.0]])])
def test_malformed_multipliers_are_no_refutation(solved, numbers, values):
    with pytest.raises(ProofError, match="a refutation"):
        Refutation(0, 0, (1.0,), cuts=(np.array(numbers, dtype=np.int32), np.array(values)))
    data = json.loads(to_text(solved[1]))
    data["trees"][0]["refutations"][0]["cuts"] = [numbers, values]
    with pytest.raises(ProofError):
        from_text(json.dumps(data))


@pytest.mark.parametrize("numbers, values", [([0], [-1.0]), ([0], [np.inf]), ([9999], [1.0])])
def test_wrong_multipliers_are_rejected(solved, numbers, values):
    query, proof = solved
    tree = proof.trees[0]
    bad = replace(tree.refutations[0], cuts=(np.array(numbers, dtype=np.int32), np.array(values)))
    wrong = replace(tree, refutations=(bad, *tree.refutations[1:]))
    report = check(proof_of(query, wrong), query)
    assert not report.accepted and "cut" in report.reason


def test_no_multipliers_refute_a_query_with_an_unsafe_point():
    for seed in range(40):
        rng = np.random.default_rng([8, seed])
        network = random_network(rng, PIECES)
        query, _ = random_query(rng, network, 500, edges=(-0.2,))
        case = query.cases[0]
        x = case.box.lo + (case.box.hi - case.box.lo) * rng.random((4000, network.input_size))
        y = network(x)
        for number, c in enumerate(case.conjunctions):
            g = x @ c.x_coeffs.T + y @ c.y_coeffs.T + c.constants
            if not np.any(np.all(g <= 0, axis=1)):
                continue
            cuts = tuple(random_cuts(rng, network, k) for k in two_piece(network))
            count = sum(len(k.index) for k in cuts)
            claims = [
                Refutation(0, number, tuple(rng.random(len(c))), cuts=(np.arange(count, dtype=np.int32), values))
                for values in rng.random((30, count)) * 10.0 ** rng.integers(-2, 3, (30, 1))
            ]
            tree = replace(single_leaf(claims), cuts=cuts, conjunctions=(number,))
            assert not check(proof_of(query, tree), query).accepted


def test_cuts_need_a_single_conjunction(solved):
    _, proof = solved
    with pytest.raises(ProofError, match="several conjunctions"):
        replace(proof.trees[0], conjunctions=(0, 1))


def test_replay_re_establishes_cuts_on_a_variant(solved):
    query, proof = solved
    tree = proof.trees[0]
    rng = np.random.default_rng(1)
    nodes = list(query.network.nodes)
    for k, node in enumerate(nodes):
        if hasattr(node.op, "weight"):
            op = replace(node.op, weight=node.op.weight * (1 + 1e-5 * rng.normal(size=node.op.weight.shape)))
            nodes[k] = replace(node, op=op)
    variant = Query((replace(query.network, nodes=tuple(nodes)),), query.cases)
    for q in (query, variant):
        run = run_of(q, "phase")
        (found,) = replayed(run, [tree])
        assert run.statistics.rungs["checked"] >= 0.9 * len(tree.leaves)
        assert check(proof_of(q, found), q).accepted


@pytest.mark.parametrize("split", ["input", "phase"])
def test_a_tree_with_cuts_that_fails_goes_on_in_either_way(solved, split):
    """Splits of inputs use no cuts, and number neurons in their own way where the network is folded."""
    query, proof = solved
    bare = replace(proof.trees[0], refutations=(), conjunctions=(0,))
    run = run_of(query, split, 60.0)
    assert check(proof_of(query, *replayed(run, [bare])), query).accepted
    assert not run.statistics.warnings and run.statistics.from_root == 0


def test_compaction_keeps_cuts_valid(solved):
    query, proof = solved
    smaller = touched_up(run_of(query, "phase", 60.0), proof, 100.0)
    assert smaller.leaves <= proof.leaves and check(smaller, query).accepted


def test_translated_cuts_follow_their_neurons(solved):
    query, proof = solved
    tree = proof.trees[0]
    order = np.random.default_rng(2).permutation(40)  # old neuron -> new neuron
    first, last = query.network.nodes[1].op, query.network.nodes[3].op
    weight, offset, out = np.empty_like(first.weight), np.empty_like(first.offset), np.empty_like(last.weight)
    weight[order], offset[order], out[:, order] = first.weight, first.offset, last.weight
    moved = chain([(weight, offset), (out, last.offset)], dtype=np.float64)
    neurons = {0: np.arange(6), 1: order, 2: order}
    phases = {k: np.zeros(len(a), dtype=np.int8) for k, a in neurons.items()}
    there = translate(tree, Alignment({0: 0, 1: 1, 2: 2}, neurons, phases))
    same = Query((moved,), query.cases)
    run = run_of(same, "phase")
    (found,) = replayed(run, [there])
    assert run.statistics.rungs["checked"] >= 0.9 * len(tree.leaves)
    assert check(proof_of(same, found), same).accepted
    gone = order.copy()
    gone[tree.cuts[0].index[0]] = -1
    fewer = translate(tree, Alignment({0: 0, 1: 1, 2: 2}, {**neurons, 1: gone, 2: gone}, phases))
    total = [sum(len(c.index) for c in t.cuts) for t in (tree, fewer)]
    dropped = sum(int(np.count_nonzero(c.index == tree.cuts[0].index[0])) for c in tree.cuts)
    assert total[1] == total[0] - dropped
    assert all(r.cuts is None or r.cuts[0].max() < total[1] for r in fewer.refutations)


def test_idle_cuts_are_left_out(solved):
    query, proof = solved
    tree = proof.trees[0]
    used = {int(k) for r in tree.refutations if r.cuts is not None for k in r.cuts[0]}
    used |= {int(k) for t in tree.tightenings for k in t.cuts}
    count = sum(len(c.index) for c in tree.cuts)
    assert used == set(range(count))
    extra = replace(tree, cuts=(tree.cuts[0], *tree.cuts))  # in front: all numbers move
    shift = len(tree.cuts[0].index)
    moved = replace(
        extra,
        refutations=tuple(
            r if r.cuts is None else replace(r, cuts=(r.cuts[0] + shift, r.cuts[1])) for r in tree.refutations
        ),
        tightenings=tuple(replace(t, cuts=t.cuts + np.int32(shift)) for t in tree.tightenings),
    )
    back = keep_cuts(moved, np.arange(count + shift) >= shift)
    assert sum(len(c.index) for c in back.cuts) == count
    assert check(proof_of(query, back), query).accepted
    none = keep_cuts(tree, np.zeros(count, dtype=bool))
    assert not none.cuts and all(r.cuts is None for r in none.refutations)


def test_branches_that_are_read_in_another_order_have_live_cuts():
    rng = np.random.default_rng(3)
    nodes = [Node(None, (), "x", (3,))]
    for name in ("a", "b"):
        nodes.append(Node(Dense(rng.normal(size=(4, 3)), rng.normal(size=4)), (0,), name, (4,)))
    nodes += [Node(RELU, (2,), "relu b", (4,)), Node(RELU, (1,), "relu a", (4,))]
    network = Network(tuple(nodes))
    bounder = Bounder(network, -np.ones(3), np.ones(3))
    root = bounder.root()
    reduced = Reduced.build(bounder, root)
    planes = CutPlanes.none(bounder.lo)
    for node in (3, 4):
        planes = planes.joined(derive(bounder, root, random_cuts(rng, network, node), 0))
    found = reduced.with_cuts(planes).cut
    across = ((root.low < 0) & (root.up > 0))[0, planes.neuron]
    assert np.array_equal(found >= 0, across) and across.any()
    assert np.array_equal(reduced.positions[found[across]], planes.neuron[across])


def test_lighter_forms_have_no_cuts(solved):
    for grade, form in lighter_forms(solved[1]):
        kept = any(t.cuts or any(r.cuts is not None for r in t.refutations) for t in form.trees)
        assert kept == (grade == 3)


def test_joined_planes_keep_their_order():
    network = chain(random_layers(4, (3, 5, 4, 2)), dtype=np.float64)
    bounder = Bounder(network, -np.ones(3), np.ones(3))
    root, rng = bounder.root(), np.random.default_rng(0)
    parts = [derive(bounder, root, random_cuts(rng, network, k), 0) for k in two_piece(network)]
    joined = CutPlanes.none(bounder.lo).joined(parts[0]).joined(parts[1])
    values = network.values(rng.uniform(-1, 1, (7, 3)))
    np.testing.assert_allclose(excess(joined, values), np.hstack([excess(p, values) for p in parts]))
    np.testing.assert_allclose(excess(joined.take(np.array([6, 1])), values), excess(joined, values)[:, [6, 1]])
