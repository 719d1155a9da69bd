"""Products whose arguments move together: sharper lines, in the search and in the checker."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from effort import effort

from mucg4.bound.propagate import Bounder, Regions
from mucg4.check.enclose import Enclosure
from mucg4.check.walk import check
from mucg4.gate.runtime import Runtime
from mucg4.model.network import Network, Node
from mucg4.model.proof import Proof
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.model.verdict import Statistics
from mucg4.ops.affine import Concat, Dense
from mucg4.ops.arrays import Backend
from mucg4.ops.bilinear import JOINT_INPUTS, PRODUCT
from mucg4.ops.curves import SIN
from mucg4.ops.piecewise import RELU
from mucg4.search.portfolio import solve
from mucg4.search.run import Run
from mucg4.settings import Settings


def dense(rng, n, m):
    return Dense(rng.normal(size=(m, n)), rng.normal(size=m))


def factors(seed, inputs=2, n=4):
    """x is the input or an affine map of it, y comes through ReLU and sine; the output is their product."""
    rng = np.random.default_rng(seed)
    direct = seed % 3 == 0
    x = Dense(np.eye(n, inputs), np.zeros(n)) if direct else dense(rng, inputs, n)
    nodes = (
        Node(None, (), "v", (inputs,)),
        Node(x, (0,), "x", (n,)),
        Node(dense(rng, inputs, n), (0,), "a", (n,)),
        Node(RELU if seed % 2 else SIN, (2,), "f", (n,)),
        Node(dense(rng, n, n), (3,), "y", (n,)),
        Node(PRODUCT, (1, 4), "p", (n,)),
    )
    return Network(nodes)


def boxes(rng, count, inputs=2):
    lo, hi = np.sort(rng.uniform(-1, 1, size=(2, count, inputs)), axis=0)
    hi[: count // 3] = lo[: count // 3] + 1e-4
    lo[-1], hi[-1] = 0.25, 0.25  # a point
    return lo, hi


def regions_of(bounder, lo, hi):
    root = bounder.root()
    return Regions(lo, hi, *(np.repeat(v, len(lo), axis=0) for v in (root.low, root.up)))


def assert_around(x, y, slopes, lower, upper):
    room = 1e-12 * (1 + abs(x * y))
    line = slopes[0] * x + slopes[1] * y
    assert np.all(line + lower <= x * y + room)
    assert np.all(line + upper >= x * y - room)


@pytest.mark.parametrize("seed", range(12))
def test_lines_contain_samples_in_search_and_checker(seed):
    rng, net = np.random.default_rng(seed), factors(seed)
    lo, hi = boxes(rng, 40)
    bounder = Bounder(net, np.full(2, -1.0), np.full(2, 1.0))
    line = bounder.refresh(regions_of(bounder, lo, hi)).lines[5]
    enclosure = Enclosure(net)
    start, yes = regions_of(bounder, lo, hi), np.ones(len(lo), dtype=bool)
    own = enclosure.sweep((lo, hi), start.low, start.up, yes, ~yes)[0].lines[5]
    for _ in range(60):
        v = lo + rng.random(lo.shape) * (hi - lo)
        values = net.values(v)
        assert_around(values[1], values[4], line.lower_slopes, line.lower_offset, line.upper_offset)
        assert_around(values[1], values[4], (own.low, own.other[0]), own.low_offset, own.up_offset)
    assert np.allclose(own.low_offset, line.lower_offset, atol=1e-9)
    assert np.allclose(own.up_offset, line.upper_offset, atol=1e-9)


def squared(shift):
    """`z * (z + shift z')`: with shift 0 a square in disguise."""
    nodes = (
        Node(None, (), "v", (2,)),
        Node(Dense(np.array([[2.0, 0.0]]), np.zeros(1)), (0,), "x", (1,)),
        Node(Dense(np.array([[6.0, shift]]), np.zeros(1)), (0,), "y", (1,)),
        Node(PRODUCT, (1, 2), "p", (1,)),
    )
    return Network(nodes)


def test_a_square_in_disguise_has_its_tangent_as_lower_line():
    bounder = Bounder(squared(0.0), np.full(2, -1.0), np.full(2, 1.0))
    line = bounder.refresh(bounder.root()).lines[3]
    assert line.lower_offset[0, 0] == pytest.approx(0.0, abs=1e-12)  # the corners alone give -12
    assert line.upper_offset[0, 0] == pytest.approx(12.0)


def test_independent_arguments_lose_nothing():
    nodes = (
        Node(None, (), "v", (2,)),
        Node(Dense(np.array([[2.0, 0.0]]), np.zeros(1)), (0,), "x", (1,)),
        Node(Dense(np.array([[0.0, 3.0]]), np.zeros(1)), (0,), "y", (1,)),
        Node(PRODUCT, (1, 2), "p", (1,)),
    )
    bounder = Bounder(Network(nodes), np.full(2, -1.0), np.full(2, 1.0))
    line = bounder.refresh(bounder.root()).lines[3]
    assert line.lower_offset[0, 0] == pytest.approx(-6.0)
    assert line.upper_offset[0, 0] == pytest.approx(6.0)


def test_overflow_gives_no_nan():
    nodes = (
        Node(None, (), "v", (2,)),
        Node(Dense(np.array([[1e200, 0.0]]), np.full(1, 1e200)), (0,), "x", (1,)),
        Node(Dense(np.array([[1e200, 1.0]]), np.zeros(1)), (0,), "y", (1,)),
        Node(PRODUCT, (1, 2), "p", (1,)),
    )
    net = Network(nodes)
    bounder = Bounder(net, np.full(2, -1.0), np.full(2, 1.0))
    line = bounder.refresh(bounder.root()).lines[3]
    assert not np.isnan(line.lower_offset).any() and not np.isnan(line.upper_offset).any()
    assert np.all(line.lower_offset == -np.inf) and np.all(line.upper_offset == np.inf)


def test_many_inputs_keep_the_corners():
    net = factors(1, inputs=JOINT_INPUTS + 1)
    bounder = Bounder(net, np.full(JOINT_INPUTS + 1, -1.0), np.full(JOINT_INPUTS + 1, 1.0))
    root = bounder.root()
    line = bounder.refresh(root).lines[5]
    bounds = [bounder.pre_bounds(root, i) for i in (1, 4)]
    assert np.array_equal(line.lower_offset, PRODUCT.relax([b[0] for b in bounds], [b[1] for b in bounds]).lower_offset)


def feedback(seed):
    """A quadratic form of a small closed loop, as one output."""
    rng = np.random.default_rng(seed)
    nodes = (
        Node(None, (), "v", (2,)),
        Node(dense(rng, 2, 6), (0,), "a", (6,)),
        Node(RELU, (1,), "h", (6,)),
        Node(dense(rng, 6, 2), (2,), "u", (2,)),
        Node(Concat((2, 2)), (0, 3), "s", (4,)),
        Node(dense(rng, 4, 4), (4,), "y", (4,)),
        Node(PRODUCT, (4, 5), "p", (4,)),
        Node(Dense(np.ones((1, 4)), np.zeros(1)), (6,), "o", (1,)),
    )
    return Network(nodes)


@pytest.mark.parametrize("seed", range(4))
def test_proofs_are_accepted_and_serve_no_false_claim(seed):
    net = feedback(seed)
    x = np.random.default_rng(0).random((20000, 2)) * 2 - 1
    least = float(net(x).min())
    box = Box((Fraction(-1),) * 2, (Fraction(1),) * 2)
    queries = []
    for margin in (-0.1 * (1 + abs(least)), 0.01):
        rows = [({}, {0: Fraction(1)}, -Fraction(round(least + margin, 6)), False)]
        queries.append(Query((net,), (Case(box, (Conjunction.build(rows, 2, 1),)),)))
    true, false = queries
    trees = solve(Run(true, Settings(attack=False), effort(), Statistics(), Runtime(net), None))
    assert check(Proof(net.fingerprint, true.property_hash, tuple(trees)), true).accepted
    assert not check(Proof(net.fingerprint, false.property_hash, tuple(trees)), false).accepted


def test_torch_gives_the_same_lines():
    pytest.importorskip("torch")
    net = factors(5)
    lo, hi = boxes(np.random.default_rng(5), 20)
    lines = []
    for backend in (Backend("float64", None), Backend("float64", "cpu")):
        bounder = Bounder(net.cast(backend), np.full(2, -1.0), np.full(2, 1.0))
        regions = regions_of(Bounder(net, np.full(2, -1.0), np.full(2, 1.0)), lo, hi).on(backend)
        line = bounder.refresh(regions).lines[5]
        lines.append((np.asarray(line.lower_offset), np.asarray(line.upper_offset)))
    for a, b in zip(*lines, strict=True):
        assert np.allclose(a, b)
