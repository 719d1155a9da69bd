"""The network folded on its root box: same values, sound bounds, and proofs that the original's checker accepts."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from effort import effort
from handmade import chain
from samples import replayed

from mucg4.bound.compute import Compute
from mucg4.bound.folded import fold_network
from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder
from mucg4.check.walk import check
from mucg4.gate.runtime import Runtime
from mucg4.model.network import Network, Node
from mucg4.model.proof import Proof
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.model.verdict import Statistics
from mucg4.ops.affine import Dense
from mucg4.ops.arrays import NUMPY, Backend
from mucg4.ops.conv import Conv, Window
from mucg4.ops.piecewise import RELU, TwoPiece
from mucg4.ops.smooth import Sigmoid
from mucg4.search.portfolio import solve
from mucg4.search.run import Run
from mucg4.search.split import input_gains, split_input
from mucg4.settings import Settings

F = Fraction
FREE = (1, 4, 7)


def dense(rng, m, n, spread=1.0):
    return Dense(rng.normal(size=(m, n)) / np.sqrt(n), spread * rng.normal(size=m))


def generator(seed, first=None, curve=None):
    """12 inputs, a first layer with large offsets (many stable neurons), a wide smooth one, two small ones."""
    rng = np.random.default_rng(seed)
    first = first or dense(rng, 24, 12, 2.0)
    size = len(first.apply([np.zeros((1, 12))])[0])
    ops = [first, curve or RELU, dense(rng, 20, size), Sigmoid(), dense(rng, 6, 20), RELU, dense(rng, 5, 6), RELU]
    nodes = [Node(None, (), "x", (12,))]
    for k, op in enumerate([*ops, dense(rng, 2, 5)]):
        shape = op.offset.shape if isinstance(op, Dense) else nodes[-1].shape if k else (size,)
        nodes.append(Node(op, (k,), f"n{k}", shape))
    return Network(tuple(nodes))


def convolution(rng):
    window = Window(3, 2, 2, (2, 1))
    return Conv(window, rng.normal(size=(8, 3, 2, 1)), 3 * rng.normal(size=16))


def box(width=0.0):
    lo = np.linspace(-1, 1, 12)
    hi = lo + width
    hi[list(FREE)] = lo[list(FREE)] + 1.0
    return lo, hi


def refreshed_root(bounder):
    root = bounder.root()
    bounder.refresh(root)
    bounder.tighten_scales(root)
    return root


NETWORKS = {
    "relu": lambda: generator(0),
    "leaky": lambda: generator(1, curve=TwoPiece(0.1, 1.0)),
    "abs": lambda: generator(2, curve=TwoPiece(-1.0, 1.0)),
    "all stable": lambda: generator(3, first=Dense(np.eye(24, 12), np.full(24, 9.0))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_bounds_are_those_of_the_original(name):
    net, (lo, hi) = NETWORKS[name](), box()
    bounder = Bounder(net, lo, hi)
    root = refreshed_root(bounder)
    fold = fold_network(bounder, root)
    assert list(fold.columns) == list(FREE)
    assert len(fold.positions) < bounder.width
    x = np.random.default_rng(5).uniform(lo, hi, size=(500, 12))
    assert np.allclose(fold.network(x[:, FREE]), net(x), rtol=0, atol=1e-12)
    objective = Objective(safe(net, lo, hi, 9.0).cases[0])
    compute = Compute.of(bounder, objective, NUMPY).folded_on(bounder, root)
    regions = root.take(np.zeros(6, dtype=np.int64))
    for b, i in enumerate(FREE):
        middle = (lo[i] + hi[i]) / 2
        regions.hi[b, i], regions.lo[3 + b, i] = middle, middle
    own = regions.take(np.arange(6))
    there, lines = compute.refresh(regions)
    full = bounder.refresh(own)
    at = fold.positions
    assert np.allclose(regions.low[:, at], own.low[:, at], atol=1e-6)
    assert np.allclose(regions.up[:, at], own.up[:, at], atol=1e-6)
    every = np.ones((6, 1), dtype=bool)
    a = compute.objective.evaluate(compute.bounder, there, lines, every)
    b = objective.evaluate(bounder, own, full, every)
    assert np.allclose(a.value, b.value, atol=1e-6)
    assert np.allclose(compute.on_inputs(a.coeffs)[..., FREE], b.coeffs[..., FREE], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e12])
def test_width_of_fixed_inputs_counts(scale):
    """Fixed inputs are fixed up to a hull; large weights make its width visible in every bound."""
    net, (lo, hi) = generator(4), box(5e-10)
    first = net.nodes[1].op
    weight = first.weight.copy()
    weight[:, 0] *= scale
    offset = first.offset - weight[:, 0] * lo[0]
    net = replace(net, nodes=(net.nodes[0], replace(net.nodes[1], op=Dense(weight, offset)), *net.nodes[2:]))
    bounder = Bounder(net, lo, hi)
    root = refreshed_root(bounder)
    compute = Compute.of(bounder, Objective(safe(net, lo, hi, 9.0).cases[0]), NUMPY).folded_on(bounder, root)
    assert list(compute.fold.columns) == list(FREE)
    there = compute.place(root)
    _ = compute.bounder.refresh(there)
    rng = np.random.default_rng(0)
    x = np.where(rng.integers(0, 2, size=(400, 12)) == 1, hi, lo)
    values = net.values(x)
    for k in bounder.pre:
        at = compute.fold.positions
        own = (at >= bounder.slices[k].start) & (at < bounder.slices[k].stop)
        z = values[k][:, at[own] - bounder.slices[k].start]
        room = 1e-13 * (1 + abs(z).max(initial=0.0))  # the values themselves round
        assert np.all(there.low[0, own] <= z.min(axis=0) + room)
        assert np.all(there.up[0, own] >= z.max(axis=0) - room)


def test_first_convolution_becomes_columns_of_the_free_inputs():
    rng = np.random.default_rng(8)
    net, (lo, hi) = generator(6, first=convolution(rng)), box()
    bounder = Bounder(net, lo, hi)
    fold = fold_network(bounder, refreshed_root(bounder))
    x = rng.uniform(lo, hi, size=(200, 12))
    assert isinstance(fold.network.nodes[1].op, Dense)
    assert np.allclose(fold.network(x[:, FREE]), net(x), rtol=0, atol=1e-12)


def test_bounds_on_torch_are_those_of_numpy():
    pytest.importorskip("torch")
    net, (lo, hi) = generator(0), box()
    bounder = Bounder(net, lo, hi)
    root = refreshed_root(bounder)
    objective = Objective(safe(net, lo, hi, 9.0).cases[0])
    values = []
    for backend in (NUMPY, Backend("float64", "cpu")):
        compute = Compute.of(bounder, objective, backend).folded_on(bounder, root)
        there, lines = compute.refresh(root.take(np.zeros(2, dtype=np.int64)))
        found = compute.objective.evaluate(compute.bounder, there, lines, backend.place(np.ones((2, 1), dtype=bool)))
        values.append(NUMPY.place(found.value))
    assert np.allclose(*values, atol=1e-9)


def test_nothing_to_fold():
    rng = np.random.default_rng(0)
    net = chain([(rng.normal(size=(m, n)), np.zeros(m)) for n, m in ((3, 6), (6, 6), (6, 1))])
    bounder = Bounder(net, -np.ones(3), np.ones(3))
    assert fold_network(bounder, refreshed_root(bounder)) is None
    lo, hi = box()
    identity = Bounder(Network((Node(None, (), "x", (12,)),)), lo, hi)  # its output is its input
    assert fold_network(identity, refreshed_root(identity)) is None
    point = Bounder(net, np.ones(3), np.ones(3))
    fold = fold_network(point, refreshed_root(point))
    assert fold is None or len(fold.columns) == 3  # a point leaves no input to fold to


def safe(net, lo, hi, room):
    """The query whether output 0 stays below its largest sampled value plus `room`."""
    top = float(net(np.random.default_rng(1).uniform(lo, hi, size=(4000, len(lo))))[:, 0].max())
    row = [({}, {0: F(-1)}, F(top + room), False)]
    case = Case(Box(tuple(map(F, lo)), tuple(map(F, hi))), (Conjunction.build(row, len(lo), net.output_size),))
    return Query((net,), (case,))


def run_of(q):
    settings = Settings(split="input", attack=False, workers=1)
    return Run(q, settings, effort(), Statistics(), Runtime(q.network))


def accepted(q, trees):
    return check(Proof(q.network.fingerprint, q.property_hash, tuple(trees)), q).accepted


def test_proofs_of_mixed_splits_are_accepted_replayed_and_carried_over():
    mixed = 0
    for seed in (1, 3, 4, 8):
        net, (lo, hi) = generator(seed), box()
        hi[list(FREE)] += 6.0
        q = safe(net, lo, hi, 0.02)
        trees = solve(run_of(q))
        assert accepted(q, trees)
        (tree,) = trees
        inner = tree.left >= 0
        mixed += bool(np.any(tree.node[inner] == 0)) and bool(np.any(tree.node[inner] > 0))
        run = run_of(q)
        again = replayed(run, [tree])
        assert accepted(q, again)
        assert run.statistics.regions == 0  # every stored leaf closed as it is
        rounded = tuple(
            replace(n, op=Dense(np.round(n.op.weight, 3), np.round(n.op.offset, 3))) if isinstance(n.op, Dense) else n
            for n in net.nodes
        )
        other = replace(q, networks=(Network(rounded),))
        assert accepted(other, replayed(run_of(other), [tree]))
    assert mixed >= 2


def test_literal_that_contradicts_its_neuron_empties_the_region():
    """A bound that a literal set to zero is derived again: the other one may have passed it."""
    ops = [Dense(np.array([[1.0]]), np.zeros(1)), RELU, Dense(np.array([[1.0]]), np.full(1, -1.0)), RELU]
    nodes = [Node(None, (), "x", (1,))]
    nodes += [Node(op, (k,), f"n{k}", (1,)) for k, op in enumerate([*ops, Dense(np.eye(1), np.zeros(1))])]
    bounder = Bounder(Network(tuple(nodes)), np.zeros(1), np.full(1, 4.0))
    regions = refreshed_root(bounder)
    where = bounder.slices[3]
    regions.low[:, where] = 0.0  # the literal
    regions.hi[:] = 0.5
    bounder.refresh(regions)
    assert regions.empty().all()


def test_neurons_are_split_only_where_one_conjunction_is_open():
    """With several open nothing multiplies the literal: lsnc's quadrotor2d_state_15 then halves one input for ever."""
    ops = [Dense(np.ones((1, 8)), np.zeros(1)), RELU, Dense(np.eye(1), np.zeros(1))]
    nodes = [Node(None, (), "x", (8,))] + [Node(op, (k,), f"n{k}", (1,)) for k, op in enumerate(ops)]
    bounder = Bounder(Network(tuple(nodes)), -np.ones(8), np.ones(8))
    regions = refreshed_root(bounder).take(np.zeros(2, dtype=np.int64))
    refreshed = bounder.refresh(regions, keep_rows=True)
    coeffs, trace = np.zeros((2, 8)), {2: np.full((2, 1), -1.0)}
    gains = sum(input_gains(bounder, regions, refreshed, coeffs, trace))
    choice = split_input(bounder, regions, gains, trace, np.array([True, False]))
    assert choice.node.tolist() == [1, 0]
