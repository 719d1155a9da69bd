"""Tightenings: bounds of neurons on the unsafe part of a region, in search, checker, file, store and replay."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from test_check import PIECES, random_network, random_query, smooth_ops

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder
from mucg4.bound.tighten import apply_tightening, evaluate_tightening
from mucg4.errors import ProofError
from mucg4.ops.piecewise import TwoPiece
from mucg4.proof.proof import (
    VERSION,
    Alpha,
    Proof,
    Tightening,
    from_bytes,
    from_text,
    read_proof,
    single_leaf,
    to_bytes,
    to_text,
    write_proof,
)
from mucg4.search.bab import cut_regions

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
            cut_regions(bounder, region, *(np.array([v]) for v in (k, j, 0.0, upper)), phases)
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


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(5)
    network = random_network(rng, PIECES)
    query, _ = random_query(rng, network, 200)
    case = query.cases[0]
    bounder, objective = Bounder(network, case.box.lo, case.box.hi), Objective(case)
    region = bounder.root()
    bounder.refresh(region)
    found = random_tightening(rng, network, case.conjunctions[0], hidden(network)[-1])
    none = np.zeros(0, dtype=np.int64)
    whole = evaluate_tightening(bounder, objective, region, found, none, none)
    monkeypatch.setattr("mucg4.bound.tighten.CHUNK_ELEMENTS", 1)
    np.testing.assert_allclose(evaluate_tightening(bounder, objective, region, found, none, none), whole, rtol=1e-12)


def test_a_literal_that_is_absent_is_left_out():
    rng = np.random.default_rng(6)
    network = random_network(rng, PIECES)
    query, _ = random_query(rng, network, 200)
    case = query.cases[0]
    bounder, objective = Bounder(network, case.box.lo, case.box.hi), Objective(case)
    region = bounder.root()
    bounder.refresh(region)
    found = random_tightening(rng, network, case.conjunctions[0], hidden(network)[-1], literals=(1,))
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
    rng = np.random.default_rng(7)
    network = random_network(rng, PIECES)
    query, _ = random_query(rng, network, 200)
    case = query.cases[0]
    bounder, objective = Bounder(network, case.box.lo, case.box.hi), Objective(case)
    region = bounder.root()
    bounder.refresh(region)
    found = random_tightening(rng, network, case.conjunctions[0], hidden(network)[-1])
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
    for back in (from_text(to_text(file_of(first, second))), from_bytes(to_bytes(file_of(first, second)))):
        assert len(back.trees[0].tightenings) == 2
        same(back.trees[0].tightenings[0], first)
        same(back.trees[0].tightenings[1], second)
    path = tmp_path / "proof.json.gz"
    write_proof(file_of(first), path)
    same(read_proof(path).trees[0].tightenings[0], first)


def test_files_of_version_1_are_read():
    data = json.loads(to_text(file_of()))
    assert data["version"] == VERSION == 2 and "tightenings" not in data["trees"][0]
    assert from_text(json.dumps({**data, "version": 1})).trees[0].tightenings == ()
    for version in (0, 3, None, "2"):
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
