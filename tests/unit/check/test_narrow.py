"""Tightenings: bounds of neurons on the unsafe part of a region, in search, checker, file, store and replay."""

from __future__ import annotations

import json
from dataclasses import fields as fields_of
from dataclasses import replace

import numpy as np
import pytest
from handmade import chain, one, random_layers
from samples import replayed

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder
from mucg4.bound.tighten import apply_tightening, evaluate_tightening
from mucg4.check import walk as check_module
from mucg4.check.walk import check
from mucg4.cli.report import stored_text
from mucg4.errors import ProofError
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.model.network import Network, Node
from mucg4.model.proof import Alpha, Proof, Refutation, Tightening, single_leaf
from mucg4.model.proof_file import read_proof, write_proof
from mucg4.model.proof_packed import from_packed, to_packed
from mucg4.model.proof_text import VERSION, from_text, to_text
from mucg4.model.verdict import Statistics
from mucg4.ops.affine import Dense
from mucg4.ops.piecewise import RELU, TwoPiece
from mucg4.relate.align import Alignment
from mucg4.reuse.compact import touched_up
from mucg4.reuse.translate import translate
from mucg4.search.portfolio import solve
from mucg4.search.record import Recorder
from mucg4.search.region import apply_literals
from mucg4.search.run import Run, open_case
from mucg4.settings import Settings
from mucg4.store.store import Store, lighter_forms
from unit.check.test_walk import (
    PIECES,
    SHORT,
    F,
    above_line,
    absolute,
    build_tree,
    proof_of,
    query_of,
    random_network,
    random_query,
    random_tree,
    smooth_ops,
)

TRIES = 6  # rows per neuron and side: the best of some random duals


def random_tightening(rng, network, conjunction, node, at=0, number=0, literals=()):
    """Bounds of all neurons of a node on both sides, several random duals each."""
    size, m = network.nodes[node].size, len(conjunction)
    index = np.tile(np.arange(size, dtype=np.int32), 2 * TRIES)
    side = np.repeat(np.array([1, -1], dtype=np.int8), size * TRIES)
    count = len(index)
    weights = rng.random((count, m)) * 4.0 ** rng.integers(-2, 3, (count, 1))
    beta = rng.random((count, len(literals))) * (rng.random((count, len(literals))) < 0.5)
    alphas = []
    for k in network.pre_activations:
        some = np.flatnonzero(rng.random(network.nodes[k].size) < 0.7).astype(np.int32)
        if len(some) and any(isinstance(network.nodes[u].op, TwoPiece) for u in network.users[k]):
            alphas.append(Alpha(k, some, rng.choice(np.array([0, 100, 255], dtype=np.uint8), (count, len(some)))))
    return Tightening(at, number, node, index, side, weights, tuple(alphas), np.array(literals, dtype=np.int32), beta)


def hidden(network):
    """Pre-activations that a tightening may bound."""
    return [k for k in network.pre_activations if k]


def unsafe_values(query, points, number):
    """Values of all nodes at the points that fulfil conjunction `number`, with some room for rounding."""
    conjunction = query.cases[0].conjunctions[number]
    values = query.network.values(points)
    g = points @ conjunction.x_coeffs.T + values[-1] @ conjunction.y_coeffs.T + conjunction.constants
    return [v[np.all(g <= -1e-9, axis=1)] for v in values]


def test_values_stay_below_on_the_unsafe_points_of_a_region():
    improved = held = 0
    for seed in range(100):
        rng = np.random.default_rng([1, seed])
        network = random_network(rng, PIECES + smooth_ops())
        query, _ = random_query(rng, network, 500, edges=(-0.6, -0.4, -0.2))
        case = query.cases[0]
        bounder, objective = Bounder(network, case.box.lo, case.box.hi), Objective(case)
        region = bounder.root()
        bounder.refresh(region)
        points = case.box.lo + (case.box.hi - case.box.lo) * rng.random((3000, network.input_size))
        position, phases = [], np.zeros((1, bounder.width), dtype=np.int8)
        for _ in range(2):  # two phase literals on the path
            k = int(rng.choice(hidden(network)))
            j, upper = int(rng.integers(network.nodes[k].size)), bool(rng.random() < 0.5)
            apply_literals(bounder, region, *(np.array([v]) for v in (k, j, 0.0, upper)), phases)
            position.append(bounder.slices[k].start + j)
            z = network.values(points)[k][:, j]
            points = points[z >= 0 if upper else z <= 0]
        position = np.array(position)
        bounder.refresh(region)
        node, number = int(rng.choice(hidden(network))), int(rng.integers(objective.count))
        found = random_tightening(rng, network, case.conjunctions[number], node, number=number, literals=(1, 2))
        value = evaluate_tightening(bounder, objective, region, found, position, phases[0, position])
        inside = unsafe_values(query, points, number)[node]
        if len(inside):
            held += 1
            assert np.all(value <= (found.side * inside[:, found.index]).min(axis=0) + 1e-12)
        before = bounder.pre_bounds(region, node)[0].copy(), bounder.pre_bounds(region, node)[1].copy()
        better = apply_tightening(bounder, objective, region, found, position, phases[0, position])
        low, up = bounder.pre_bounds(region, node)
        assert np.all(low >= before[0]) and np.all(up <= before[1])
        changed = np.any((low > before[0]) | (up < before[1]))
        assert changed == better.any()
        assert len(inside) == 0 or (np.all(inside >= low - 1e-12) and np.all(inside <= up + 1e-12))
        improved += bool(changed)
    assert improved >= 50 and held >= 20


def at_the_root(seed, **more):
    """A random tightening of the last hidden node on the root of a random query, and what it is evaluated with."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, PIECES)
    query, _ = random_query(rng, network, 200)
    case = query.cases[0]
    bounder, objective = Bounder(network, case.box.lo, case.box.hi), Objective(case)
    region = bounder.root()
    bounder.refresh(region)
    found = random_tightening(rng, network, case.conjunctions[0], hidden(network)[-1], **more)
    return network, case, bounder, objective, region, found


def test_chunks_do_not_matter(monkeypatch):
    _, _, bounder, objective, region, found = at_the_root(5)
    none = np.zeros(0, dtype=np.int64)
    whole = evaluate_tightening(bounder, objective, region, found, none, none)
    monkeypatch.setattr("mucg4.bound.tighten.CHUNK_ELEMENTS", 1)
    np.testing.assert_allclose(evaluate_tightening(bounder, objective, region, found, none, none), whole, rtol=1e-12)


def test_a_literal_that_is_absent_is_left_out():
    network, case, bounder, objective, region, found = at_the_root(6, literals=(1,))
    plain = random_tightening(np.random.default_rng(0), network, case.conjunctions[0], hidden(network)[-1])
    plain = Tightening(
        **{f: getattr(found, f) for f in ("at", "conjunction", "node", "index", "side", "weights", "alpha")},
        literals=plain.literals,
        beta=plain.beta,
    )
    none = np.zeros(0, dtype=np.int64)
    absent = evaluate_tightening(bounder, objective, region, found, np.array([-1]), np.array([0]))
    np.testing.assert_array_equal(absent, evaluate_tightening(bounder, objective, region, plain, none, none))


@pytest.mark.parametrize("value", [1e200, 1e308, float("nan")])
def test_overflow_tightens_nothing(value):
    _, _, bounder, objective, region, found = at_the_root(7)
    found.weights[:] = value
    none, before = np.zeros(0, dtype=np.int64), region.low.copy()
    with np.errstate(all="ignore"):
        assert not apply_tightening(bounder, objective, region, found, none, none).any()
    np.testing.assert_array_equal(region.low, before)


# --- file format -------------------------------------------------------------------------------------------------


def some_tightening(literals=(1, 2), **changes):
    fields = {
        "at": 0,
        "conjunction": 0,
        "node": 1,
        "index": np.array([0, 3], dtype=np.int32),
        "side": np.array([1, -1], dtype=np.int8),
        "weights": np.array([[0.1, 2.0, 1e-300], [0.0, 0.5, 3.0]]),
        "alpha": (Alpha(1, np.array([2], dtype=np.int32), np.array([[0], [255]], dtype=np.uint8)),),
        "literals": np.array(literals, dtype=np.int32),
        "beta": np.arange(2.0 * len(literals)).reshape(2, len(literals)) / 3,
    }
    return Tightening(**{**fields, **changes})


def file_of(*tightenings):
    return Proof("n", "p", (replace(single_leaf(), tightenings=tightenings),))


def same(a, b):
    """Equal in every number and type."""
    arrays = [(getattr(a, f), getattr(b, f)) for f in ("index", "side", "weights", "literals", "beta")]
    assert [x.node for x in a.alpha] == [x.node for x in b.alpha]
    arrays += [
        (getattr(x, f), getattr(y, f)) for x, y in zip(a.alpha, b.alpha, strict=True) for f in ("index", "value")
    ]
    assert (a.at, a.conjunction, a.node) == (b.at, b.conjunction, b.node)
    for x, y in arrays:
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("literals", [(), (1, 2)])
def test_round_trip(literals, tmp_path):
    first, second = some_tightening(literals), some_tightening(literals, alpha=())
    proof = file_of(first, second)
    for back in (from_text(to_text(proof)), from_packed(to_packed(proof)), from_packed(to_packed(proof, 1))):
        assert len(back.trees[0].tightenings) == 2
        same(back.trees[0].tightenings[0], first)
        same(back.trees[0].tightenings[1], second)
    path = tmp_path / "proof.json.gz"
    write_proof(file_of(first), path)
    same(read_proof(path).trees[0].tightenings[0], first)


def test_files_of_version_1_are_read():
    data = json.loads(to_text(file_of()))
    assert data["version"] == VERSION == 3 and "tightenings" not in data["trees"][0] and "cuts" not in data["trees"][0]
    assert from_text(json.dumps({**data, "version": 1})).trees[0].tightenings == ()
    for version in (0, 4, None, "3"):
        with pytest.raises(ProofError, match="version"):
            from_text(json.dumps({**data, "version": version}))


def test_many_slopes_take_little_room():
    count, neurons = 200, 1000
    alpha = Alpha(1, np.arange(neurons, dtype=np.int32), np.zeros((count, neurons), dtype=np.uint8))
    big = some_tightening(
        literals=(),
        index=np.arange(count, dtype=np.int32),
        side=np.ones(count, dtype=np.int8),
        weights=np.ones((count, 1)),
        alpha=(alpha,),
        beta=np.zeros((count, 0)),
    )
    assert len(to_text(file_of(big))) < 8000


def nothing(dtype, *shape):
    return np.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    "changes",
    [
        {"index": nothing(np.int32, 3)},
        {"index": nothing(np.int32, 2, 1)},
        {"index": nothing(np.float64, 2)},
        {"index": [0, 3]},
        {"index": np.array([0, -1], dtype=np.int32)},
        {"side": nothing(np.int8, 2)},
        {"side": np.array([1, -128], dtype=np.int8)},
        {"side": np.array([1.0, -1.0])},
        {"weights": np.ones(2)},
        {"weights": np.ones((3, 3))},
        {"weights": np.ones((2, 3), dtype=bool)},
        {"literals": np.array([-1, 2], dtype=np.int32)},
        {"beta": np.ones((2, 3))},
        {"beta": np.ones(4)},
        {"alpha": (Alpha(1, nothing(np.int32, 1), nothing(np.uint8, 2, 2)),)},
        {"alpha": (Alpha(1, nothing(np.int32, 1), nothing(np.uint8, 1, 1)),)},
        {"alpha": (Alpha(1, nothing(np.int32, 1), nothing(np.int64, 2, 1)),)},
        {"alpha": (Alpha(1, nothing(np.int32, 1), np.full((2, 1), 256, dtype=np.uint16)),)},
        {"alpha": (Alpha(1, np.array([-1], dtype=np.int32), nothing(np.uint8, 2, 1)),)},
        {
            "index": nothing(np.int32, 0),
            "side": nothing(np.int8, 0),
            "weights": nothing(float, 0, 1),
            "alpha": (),
            "beta": nothing(float, 0, 2),
        },
    ],
)
def test_wrong_shapes_types_and_ranges(changes):
    with pytest.raises(ProofError, match="tightening"):
        some_tightening(**changes)


@pytest.mark.parametrize("name", ["index", "side", "weights", "literals", "beta"])
@pytest.mark.parametrize("damage", [None, 7, "", "AAAA", "no base64", []])
def test_damaged_arrays_are_proof_errors(name, damage):
    data = json.loads(to_text(file_of(some_tightening())))
    data["trees"][0]["tightenings"][0][name] = damage
    with pytest.raises(ProofError):
        from_text(json.dumps(data))


def test_damaged_tightenings_are_proof_errors():
    data = json.loads(to_text(file_of(some_tightening())))
    whole = data["trees"][0]["tightenings"][0]
    packed = json.loads(to_text(file_of(some_tightening(literals=(1,)))))["trees"][0]["tightenings"][0]
    for damaged in (
        None,
        {},
        {**whole, "at": 1},
        {**whole, "at": "x"},
        {**whole, "alpha": None},
        {**whole, "alpha": [{}]},
        {**whole, "literals": packed["literals"]},
        {**whole, "weights": packed["beta"][:-4]},
    ):
        data["trees"][0]["tightenings"] = [damaged]
        with pytest.raises(ProofError):
            from_text(json.dumps(data))
    data["trees"][0]["tightenings"] = None
    with pytest.raises(ProofError):
        from_text(json.dumps(data))


def test_chosen_rows():
    chosen = some_tightening().take(np.array([False, True]))
    assert chosen.index.tolist() == [3] and chosen.side.tolist() == [-1] and chosen.alpha[0].value.tolist() == [[255]]
    same(some_tightening().take(np.array([0, 1])), some_tightening())
    with pytest.raises(ProofError):
        some_tightening().take(np.zeros(2, dtype=bool))


# --- checker -----------------------------------------------------------------------------------------------------
# y = relu(z0) + relu(z1), z = (x, -x), on [-1, 1]; unsafe: y - x + 1/5 <= 0 (nowhere).


def hand(index, side, weights, literals=(), beta=(), at=0, alpha=(), conjunction=0, node=1):
    """A tightening from lists."""
    return Tightening(
        at,
        conjunction,
        node,
        np.array(index, dtype=np.int32),
        np.array(side, dtype=np.int8),
        np.array(weights, dtype=np.float64),
        alpha,
        np.array(literals, dtype=np.int32),
        np.array(beta, dtype=np.float64).reshape(len(index), len(literals)),
    )


def tampered(t, **fields):
    """The tightening with other fields, whatever its constructor has against them."""
    out = object.__new__(Tightening)
    for name in (f.name for f in fields_of(Tightening)):
        object.__setattr__(out, name, fields.get(name, getattr(t, name)))
    return out


def with_tightenings(tree, *tightenings, **changes):
    return replace(tree, tightenings=tightenings, **changes)


ONE = (Refutation(0, 0, (1.0,)),)
# z0 + g >= 1/5 and -z1 + g >= 1/5 with slopes 0: both neurons become stable and g is 1/5
AT_ROOT = hand([0, 1], [1, -1], [[1.0], [1.0]])
BY_ROOT = with_tightenings(single_leaf(ONE), AT_ROOT)
# where z0 <= 0: z1 + g + 2 z0 >= 1/5, so z1 is active; then -z1 + g + z0 >= 1/5 contradicts it
FIRST, SECOND = (
    hand([1], [1], [[1.0]], [1], [[2.0]], at=1),
    hand([1], [-1], [[1.0]], [1], [[1.0]], at=1),
)
BY_LITERAL = with_tightenings(build_tree((1, 0, 0.0, None, None), [Refutation(2, 0, (1.0,))]), FIRST, SECOND)
# inherited: the children's refutations use the root's tightening
ABOVE = with_tightenings(
    build_tree((0, 0, 0.25, None, None), [Refutation(1, 0, (1.0,)), Refutation(2, 0, (1.0,))]), AT_ROOT
)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("tree", [BY_ROOT, BY_LITERAL, ABOVE])
def test_needed_tightenings_are_accepted(tree, exact):
    query = above_line(absolute())
    report = check(from_packed(to_packed(proof_of(query, tree))), query, exact=exact)
    assert report.accepted and report.checked == report.leaves
    for k in range(len(tree.tightenings)):
        rest = tree.tightenings[:k] + tree.tightenings[k + 1 :]
        report = check(proof_of(query, with_tightenings(tree, *rest)), query, exact=exact)
        assert not report.accepted and report.failed


def test_tightenings_are_applied_in_order():
    query = above_line(absolute())
    assert not check(proof_of(query, with_tightenings(BY_LITERAL, SECOND, FIRST)), query).accepted
    joint = hand([1, 1], [1, -1], [[1.0], [1.0]], [1], [[2.0], [1.0]], at=1)  # one tightening: the old bounds for both
    assert not check(proof_of(query, with_tightenings(BY_LITERAL, joint)), query).accepted
    assert check(proof_of(query, with_tightenings(BY_LITERAL, joint, joint)), query).accepted


def test_slopes_of_a_tightening():
    """With slope 1 for z0 the rows are x + relu(z1) + 1/5 and gain little, with slope 0 they are 1/5."""
    query = above_line(absolute())
    flat = single_leaf([Refutation(0, 0, (1.0,), alpha=slope([0, 1], [0, 0]))])
    for levels, accepted in (((0, 0), True), ((0, 255), True), ((255, 0), False), ((255, 255), False)):
        alpha = (Alpha(1, np.array([0], dtype=np.int32), np.array(levels, dtype=np.uint8)[:, None]),)
        tree = with_tightenings(flat, replace(AT_ROOT, alpha=alpha))
        for exact in (False, True):
            assert check(proof_of(query, tree), query, exact=exact).accepted == accepted


def slope(index, value, node=1):
    return (Alpha(node, np.array(index), np.array(value)),)


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": np.array([[-1.0], [1.0]])},
        {"weights": np.array([[np.nan], [1.0]])},
        {"weights": np.array([[np.inf], [1.0]])},
        {"weights": np.ones((2, 2))},
        {"weights": np.ones((2, 0))},
        {"weights": np.ones((1, 1))},
        {"index": np.array([0, 2])},
        {"index": np.array([0, -1])},
        {"index": np.array([0])},
        {"side": np.array([1, 0])},
        {"side": np.array([2, -1])},
        {"side": np.array([1])},
        {"node": 0},
        {"node": 2},
        {"node": 3},
        {"node": 4},
        {"node": -3},
        {"conjunction": 1},
        {"conjunction": -1},
        {"alpha": slope([2], [[0], [0]])},
        {"alpha": slope([-1], [[0], [0]])},
        {"alpha": slope([0], [[0], [256]])},
        {"alpha": slope([0], [[0], [-1]])},
        {"alpha": slope([0], [[0]])},
        {"alpha": slope([0, 1], [[0], [0]])},
        {"alpha": slope([0], [[0], [0]], node=2)},
        {"alpha": slope([0], [[0], [0]], node=9)},
        {"beta": np.zeros((2, 1))},
        {"literals": np.array([0]), "beta": np.zeros((2, 1))},
        {"literals": np.array([7]), "beta": np.zeros((2, 1))},
    ],
)
def test_wrong_tightenings(fields):
    query = above_line(absolute())
    report = check(proof_of(query, with_tightenings(BY_ROOT, tampered(AT_ROOT, **fields))), query)
    assert not report.accepted and "tightening at tree node 0" in report.reason and report.skipped


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": np.array([[0.0], [0.0]])},
        {"index": np.array([1, 0])},
        {"side": np.array([-1, 1])},
        {"side": np.array([-1, -1])},
    ],
)
def test_legal_but_useless_tightenings(fields):
    query = above_line(absolute())
    report = check(proof_of(query, with_tightenings(BY_ROOT, tampered(AT_ROOT, **fields))), query)
    assert not report.accepted and "no valid refutation" in report.reason


@pytest.mark.parametrize(
    "fields",
    [
        {"beta": np.array([[-2.0]])},
        {"beta": np.array([[np.nan]])},
        {"beta": np.array([[np.inf]])},
        {"literals": np.array([2])},  # the sibling's literal
        {"literals": np.array([0])},  # the root restricts nothing
        {"literals": np.array([-1])},
        {"literals": np.array([3])},
        {"at": 0},  # the literal is not on this path
        {"at": 2},
    ],
)
def test_wrong_literals(fields):
    query = above_line(absolute())
    for first, second in ((tampered(FIRST, **fields), SECOND), (FIRST, tampered(SECOND, **fields))):
        report = check(proof_of(query, with_tightenings(BY_LITERAL, first, second)), query)
        assert not report.accepted and "tightening at tree node" in report.reason
        without = (tampered(t, beta=0 * SECOND.beta) for t in (FIRST, SECOND))
        assert not check(proof_of(query, with_tightenings(BY_LITERAL, *without)), query).accepted


def test_a_tightening_speaks_of_the_only_open_conjunction():
    row, real = [({0: F(-1)}, {0: F(1)}, F(1, 5))], [({0: F(-1)}, {}, F(1, 2))]  # the second one: x >= 1/2
    query = query_of(absolute(), [-1], [1], row, row)
    both = with_tightenings(single_leaf([*ONE, Refutation(0, 1, (1.0,))]), AT_ROOT)
    assert not check(proof_of(query, both), query).accepted
    first = replace(BY_ROOT, conjunctions=(0,))
    other = replace(AT_ROOT, conjunction=1)
    second = with_tightenings(single_leaf([Refutation(0, 1, (1.0,))]), other, conjunctions=(1,))
    assert check(proof_of(query, first, second), query).accepted
    assert not check(proof_of(query, first, with_tightenings(second, AT_ROOT)), query).accepted
    # refuted above, so that the other one is the only one left: allowed; refuted at the same tree node: too late
    safe = [({}, {0: F(1)}, F(1, 5))]  # |x| <= -1/5
    query = query_of(absolute(), [-1], [1], row, safe)
    for at, accepted in ((0, True), (1, False)):
        others = [Refutation(at, 1, (1.0,)), Refutation(2, 1, (1.0,))]
        tree = build_tree((1, 0, 0.0, None, None), [Refutation(2, 0, (1.0,)), *others])
        assert check(proof_of(query, with_tightenings(tree, FIRST, SECOND)), query).accepted == accepted
    # a conjunction that has points is never hidden by what holds for the other one
    query = query_of(absolute(), [-1], [1], row, real)
    claims = [Refutation(k, q, (1.0,)) for k in range(3) for q in range(2)]
    for at in range(3):
        tree = build_tree((1, 0, 0.0, None, None), claims)
        for t in (replace(AT_ROOT, at=at), replace(AT_ROOT, at=at, conjunction=1)):
            assert not check(proof_of(query, with_tightenings(tree, t, t)), query).accepted


def test_tightenings_of_the_root_stay_in_their_tree():
    row, real = [({0: F(-1)}, {0: F(1)}, F(1, 5))], [({0: F(-1)}, {0: F(2)}, F(-1, 5))]  # 2 |x| - x <= 1/5
    query = query_of(absolute(), [-1], [1], row, real)
    contradiction = AT_ROOT, hand([0], [-1], [[10.0]])  # z0 >= 1/5 and z0 <= -1: nothing is unsafe
    first = with_tightenings(single_leaf(), *contradiction, conjunctions=(0,))
    second = replace(single_leaf([Refutation(0, 1, (1.0,))]), conjunctions=(1,))
    for trees in ((first, second), (second, first), (first, first, second)):
        report = check(proof_of(query, *trees), query)
        assert not report.accepted and "conjunction 1" in report.reason


def test_the_input_is_no_target():
    network = Network(
        (Node(None, (), "x", (1,)), Node(RELU, (0,), "h", (1,)), Node(Dense(np.eye(1), np.zeros(1)), (1,), "y", (1,)))
    )
    query = query_of(network, [-1], [1], [({}, {0: F(1)}, F(1, 5))])
    assert check(proof_of(query, single_leaf(ONE)), query).accepted
    report = check(proof_of(query, with_tightenings(single_leaf(ONE), hand([0], [1], [[1.0]], node=0))), query)
    assert not report.accepted and "no pre-activation" in report.reason


# ---- random ones


def tightened_tree(rng, network, case, depth, share=0.5):
    """A random tree with refutations and with tightenings at some of its nodes, literals included."""
    tree = random_tree(rng, network, case, depth)
    parents, found = tree.parents(), []
    for at in range(len(tree)):
        path, k = [], at
        while k > 0:
            path.append(k)
            k = int(parents[k])
        for number, conjunction in enumerate(case.conjunctions):
            for _ in range(int(rng.integers(1, 3)) if rng.random() < share else 0):
                node = int(rng.choice(hidden(network)))
                found.append(random_tightening(rng, network, conjunction, node, at, number, path))
    return with_tightenings(tree, *found)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_an_unsafe_query_has_no_accepted_proof(seed, smooth):
    rng = np.random.default_rng([2, seed, smooth])
    unsafe = False
    while not unsafe:
        network = random_network(rng, PIECES + (smooth_ops() if smooth else []))
        query, unsafe = random_query(rng, network, 2000, edges=(-0.3, -0.02, -0.005, 0.02))
    for depth in (1, 3, 5):
        tree = tightened_tree(rng, network, query.cases[0], depth)
        single = [replace(tree, conjunctions=(c,)) for c in range(len(query.cases[0].conjunctions))]
        for trees in ([tree], single):
            report = check(proof_of(query, *trees), query)
            assert not report.accepted and report.checked + report.failed == report.leaves


def test_more_queries_are_accepted_than_without():
    accepted = np.zeros(2, dtype=int)
    for seed in range(40):
        rng = np.random.default_rng([3, seed])
        network = random_network(rng, PIECES)
        query, unsafe = random_query(rng, network, 2000, edges=(0.02, 0.05))
        if not unsafe:
            tree = tightened_tree(rng, network, query.cases[0], 2, 1.0)
            trees = [replace(tree, conjunctions=(c,)) for c in range(len(query.cases[0].conjunctions))]
            bare = [with_tightenings(t) for t in trees]
            accepted += [check(proof_of(query, *t), query).accepted for t in (trees, bare)]
    assert accepted[0] >= accepted[1] + 5


@pytest.mark.parametrize("seed", range(12))
def test_exact_and_float_agree(seed):
    rng = np.random.default_rng([4, seed])
    network = random_network(rng, SHORT)
    query, _ = random_query(rng, network, 500)
    tree = tightened_tree(rng, network, query.cases[0], 2)
    slim = [t.take(rng.permutation(len(t.index))[:6]) for t in tree.tightenings]
    proof = proof_of(query, with_tightenings(tree, *slim))
    assert check(proof, query) == check(proof, query, exact=True)


@pytest.mark.parametrize("seed", range(10))
def test_batch_size_does_not_matter(seed, monkeypatch):
    rng = np.random.default_rng([5, seed])
    network = random_network(rng, PIECES)
    query, _ = random_query(rng, network, 500)
    proof = proof_of(query, tightened_tree(rng, network, query.cases[0], 5))
    whole = check(proof, query)
    monkeypatch.setattr(check_module, "BATCH", 1)
    monkeypatch.setattr(check_module, "CELLS", 8)
    few = check(proof, query)
    assert (whole.accepted, whole.checked, whole.failed) == (few.accepted, few.checked, few.failed)


def test_bounds_hold_on_the_unsafe_points(monkeypatch):
    """Every point of a region that is unsafe for its only open conjunction lies inside the checker's bounds."""
    seen = []
    refute = check_module._Walk._refute

    def spy(walk, batch, frame):
        for b in np.flatnonzero(batch.open.sum(axis=1) == 1):
            seen.append((int(batch.at[b]), int(batch.open[b].argmax()), batch.low[b].copy(), batch.up[b].copy()))
        for name, values in (("lower", batch.low), ("upper", batch.up)):  # the frame tells the same
            for k, slot in walk.enclosure.slot.items():
                live = batch.open.any(axis=1)
                np.testing.assert_array_equal(getattr(frame, name)[k][live], values[live][:, slot])
        refute(walk, batch, frame)

    monkeypatch.setattr(check_module._Walk, "_refute", spy)
    inside = 0
    for seed in range(30):
        rng = np.random.default_rng([6, seed])
        network = random_network(rng, PIECES + smooth_ops())
        query, _ = random_query(rng, network, 500, edges=(-0.5, -0.3, -0.1))
        case, seen[:] = query.cases[0], []
        tree = replace(tightened_tree(rng, network, case, 4), refutations=())
        count = len(case.conjunctions)
        check(proof_of(query, *(replace(tree, conjunctions=(c,)) for c in range(count))), query)
        assert seen
        points = case.box.lo + (case.box.hi - case.box.lo) * rng.random((2000, network.input_size))
        values = [unsafe_values(query, points, number) for number in range(count)]
        parents = tree.parents()
        for at, number, low, up in seen:
            there, k = np.ones(len(values[number][0]), dtype=bool), at
            while k > 0:
                p = int(parents[k])
                v, t = values[number][tree.node[p]][:, tree.index[p]], tree.threshold[p]
                there &= v <= t if tree.left[p] == k else v >= t
                k = p
            z = np.concatenate([values[number][k][there] for k in hidden(network)], axis=1)
            assert np.all(z >= low - 1e-12) and np.all(z <= up + 1e-12)
            inside += len(z) > 0
    assert inside >= 100


def test_a_spent_budget_ends_a_tightening():
    query = above_line(absolute())
    report = check(proof_of(query, BY_ROOT), query, Budget.seconds(0))
    assert not report.accepted and report.reason == "timeout"


# --- replay, translation, store ------------------------------------------------------------------------------------

SIZES = (3, 8, 6, 1)


def run_of(query, split="phase", seconds=20.0):
    settings = Settings(split=split, attack=False)
    return Run(query, settings, Budget.seconds(seconds), Statistics(), Runtime(query.network), None)


def needy(network, seed):
    """A query that its root's bounds alone miss by a little, and a leaf with tightenings for it."""
    plain = one(network, [0] * 3, [1] * 3, [({}, {0: 1}, 0, False)])
    state = open_case(run_of(plain), 0)
    refreshed = state.bounder.refresh(state.root)
    lowest = state.objective.values(state.bounder, state.root, refreshed, np.ones((1, 1), dtype=bool))[0, 0]
    reached = network(np.random.default_rng(0).random((5000, 3))).min()
    query = one(network, [0] * 3, [1] * 3, [({}, {0: 1}, float(-lowest - 0.1 * (reached - lowest)), False)])
    rng, found = np.random.default_rng(seed), []
    for _ in range(2):
        for node in hidden(network):
            t = random_tightening(rng, network, query.cases[0].conjunctions[0], node)
            found.append(replace(t, weights=4.0 ** rng.integers(-1, 5, t.weights.shape)))
    tree = with_tightenings(single_leaf(ONE), *found)
    return query, tree


def needed(seed):
    """Layers, query and leaf; the leaf's tightenings are enough and needed."""
    for attempt in range(seed, seed + 100, 10):
        layers = random_layers(attempt, SIZES)
        query, tree = needy(chain(layers), attempt)
        if (
            check(proof_of(query, tree), query).accepted
            and not check(proof_of(query, single_leaf(ONE)), query).accepted
        ):
            return layers, query, tree
    raise AssertionError("no such query")


@pytest.mark.parametrize("seed", range(4))
def test_replay_on_a_perturbed_network(seed):
    layers, query, tree = needed(seed)
    rng = np.random.default_rng(seed)
    near = [(w + 1e-4 * rng.normal(size=w.shape), b + 1e-4 * rng.normal(size=b.shape)) for w, b in layers]
    for network in (query.network, chain(near)):
        box, (conjunction,) = query.cases[0].box, query.cases[0].conjunctions
        again = one(network, box.lo.tolist(), box.hi.tolist(), [(*row, False) for row in conjunction.exact])
        run = run_of(again)
        (found,) = replayed(run, [tree])
        assert len(found) == 1 and run.statistics.rungs["checked"] == 1 and run.statistics.regions == 0
        report = check(from_packed(to_packed(proof_of(again, found))), again)
        assert report.accepted
        assert not check(proof_of(again, with_tightenings(found)), again).accepted
        trees = replayed(run_of(again, "input"), [with_tightenings(tree)])
        assert check(proof_of(again, *trees), again).accepted


@pytest.mark.parametrize("seed", [15, 20, 41, 249, 712])
def test_a_neuron_that_tightening_made_stable_is_split_when_the_program_needs_it(seed):
    """Its bounds hold on unsafe points only: the affine network of the region is another one elsewhere in its box."""
    rng = np.random.default_rng([9, seed])
    network = random_network(rng, PIECES)
    query, _ = random_query(rng, network, 2000, edges=(0.02, 0.05))
    tree = replace(tightened_tree(rng, network, query.cases[0], 3), refutations=())
    assert check(proof_of(query, *solve(run_of(query))), query).accepted
    assert check(proof_of(query, *replayed(run_of(query), [tree])), query).accepted


def test_literals_of_other_thresholds_are_no_phases():
    """Neuron 0 has two literals, z0 <= 0 and z0 >= -1/4; a multiplier belongs to the first one."""
    query = above_line(absolute())
    recorder = Recorder(open_case(run_of(query), 0).bounder, [1])
    (at,), _ = recorder.split(*(np.array([v]) for v in (0, 1, 0, 0.0)), False)
    _, (below,) = recorder.split(*(np.array([v]) for v in (at, 1, 0, -0.25)), False)
    assert recorder.literals(np.array([below])) == [{0: at}]


def test_replayed_random_proofs_are_accepted():
    """Whatever the stored trees say, what the replay makes of them is right."""
    used = 0
    for seed in range(40):
        rng = np.random.default_rng([8, seed])
        network = random_network(rng, PIECES)
        query, unsafe = random_query(rng, network, 2000, edges=(0.1, 0.3))
        if unsafe:
            continue
        tree = tightened_tree(rng, network, query.cases[0], 3)
        for trees in ([tree], [with_tightenings(tree)], [replace(tree, refutations=())]):
            found = replayed(run_of(query), trees)
            assert check(from_packed(to_packed(proof_of(query, *found))), query).accepted
        used += any(t.tightenings for t in found)
    assert used >= 10


def test_unfit_tightenings_are_a_miss():
    query = above_line(absolute())
    for fields in (
        {"node": 0},
        {"node": 2},
        {"index": np.array([0, 2])},
        {"conjunction": 1},
        {"conjunction": -1},
        {"weights": np.array([[-1.0], [1.0]])},
        {"weights": np.array([[np.nan], [1.0]])},
        {"weights": np.ones((2, 2))},
        {"literals": np.array([1]), "beta": np.zeros((2, 1))},
        {"beta": np.full((2, 1), -1.0), "literals": np.array([0])},
        {"alpha": slope([2], [[0], [0]])},
        {"alpha": slope([0], [[0], [0]], node=2)},
    ):
        tree = with_tightenings(BY_ROOT, tampered(AT_ROOT, **fields))
        run = run_of(query)
        assert check(proof_of(query, *replayed(run, [tree])), query).accepted
        assert run.statistics.from_root == 1 and "not used" in run.statistics.warnings[0]


def test_compaction_keeps_needed_tightenings():
    query = above_line(absolute())
    proof = proof_of(query, replace(BY_LITERAL, conjunctions=(0,)))
    small = touched_up(run_of(query), proof, 100.0)
    assert small.leaves <= proof.leaves and check(small, query).accepted


@pytest.mark.parametrize("seed", range(3))
def test_translation_to_a_permuted_network(seed):
    layers, query, tree = needed(seed)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(b)) for _, b in layers[:-1]] + [np.arange(1)]
    before, moved = np.arange(3), []
    for (w, b), order in zip(layers, orders, strict=True):
        moved.append((w[order][:, before], b[order]))
        before = order
    network = chain(moved)
    box, (conjunction,) = query.cases[0].box, query.cases[0].conjunctions
    again = one(network, box.lo.tolist(), box.hi.tolist(), [(*row, False) for row in conjunction.exact])
    neurons = {0: np.arange(3)} | {1 + 2 * k + r: np.argsort(o) for k, o in enumerate(orders[:-1]) for r in (0, 1)}
    signs = {k: np.zeros(len(a), dtype=np.int8) for k, a in neurons.items()}
    translated = translate(tree, Alignment({k: k for k in neurons}, neurons, signs))
    assert check(proof_of(again, translated), again).accepted
    none, values = np.zeros(0, dtype=np.int64), []
    for asked, own in ((query, tree), (again, translated)):
        state = open_case(run_of(asked), 0)
        parts = (state.bounder, state.objective, state.root)
        values.append([evaluate_tightening(*parts, t, none, none) for t in own.tightenings])
    for a, b in zip(*values, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_translation_drops_what_is_absent():
    t = hand(
        [0, 2, 1],
        [1, -1, 1],
        [[1.0], [2.0], [3.0]],
        [1, 4],
        [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]],
        at=4,
        alpha=slope([0, 1, 2], np.arange(9, dtype=np.uint8).reshape(3, 3)),
    )
    tree = build_tree((1, 0, 0.0, None, (1, 1, 0.0, None, None)))
    tree = with_tightenings(tree, t, hand([1], [1], [[1.0]], at=2))

    def alignment(*neurons):
        signs = {0: np.zeros(2, dtype=np.int8), 1: np.zeros(3, dtype=np.int8)}
        return Alignment({0: 0, 1: 1}, {0: np.arange(2), 1: np.array(neurons)}, signs)

    assert translate(tree, alignment(0, 1, 2)) is tree
    whole = translate(tree, alignment(2, 0, 1))
    same(replace(whole.tightenings[0], alpha=()), replace(t, index=np.array([2, 1, 0], dtype=np.int32), alpha=()))
    assert whole.tightenings[0].alpha[0].index.tolist() == [0, 1, 2]
    assert whole.tightenings[0].alpha[0].value.tolist() == [[1, 2, 0], [4, 5, 3], [7, 8, 6]]
    # neuron 1 is absent: tree node 2 (whose split it was) gives way to its left child, the literal of 4 is gone
    part = translate(tree, alignment(0, -1, 1))
    assert len(part) == 3 and len(part.tightenings) == 0  # the right child and its tightening are not visited
    left = with_tightenings(tree, replace(t, at=3, literals=np.array([2, 3], dtype=np.int32)), tree.tightenings[1])
    part = translate(left, alignment(0, -1, 1))
    (kept,) = part.tightenings
    assert (kept.at, kept.index.tolist(), kept.side.tolist()) == (2, [0, 1], [1, -1])
    assert kept.literals.tolist() == [2] and kept.beta.tolist() == [[0.1], [0.3]]
    assert kept.alpha[0].index.tolist() == [0, 1] and kept.alpha[0].value.tolist() == [[0, 2], [3, 5]]
    assert kept.weights.tolist() == [[1.0], [2.0]]


def test_a_stored_proof_keeps_its_tightenings_while_there_is_room():
    layers, query, tree = needed(0)
    proof = proof_of(query, tree)
    forms = list(lighter_forms(proof))
    assert [bool(p.trees[0].tightenings) for _, p in forms] == [True, False, False, False]
    for limit, kept in ((2**20, len(tree.tightenings)), (len(to_packed(forms[0][1], 1)) - 1, 0)):
        with Store(":memory:") as store:
            assert store.save(query, "unsat", proof=proof, max_proof_bytes=limit)
            (related,) = store.related(query)
            assert len(related.proof.trees[0].tightenings) == kept
            assert json.loads(stored_text(*store.show("")))["trees"][0]["tightenings"] == kept
