"""Bounds of the root where interval arithmetic alone fails, and of neurons that are copies of others."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from effort import effort
from handmade import one

from mucg4.bound.propagate import Bounder
from mucg4.check.walk import check
from mucg4.gate.agreement import Agreement
from mucg4.model.network import Network, Node
from mucg4.model.verdict import Safe
from mucg4.ops.affine import Dense, Index, Sum
from mucg4.ops.bilinear import PRODUCT
from mucg4.ops.curves import Exp
from mucg4.ops.piecewise import RELU
from mucg4.settings import Settings
from mucg4.verify import verify


def cancelling() -> Network:
    """exp(1000 (relu(x0 + 5) - relu(x0 + 5)) + x1): 2.7 at most, but intervals overflow on the way."""
    w = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    nodes = (
        Node(None, (), "x", (2,)),
        Node(Dense(w, np.array([5.0, 5.0, 5.0])), (0,), "", (3,)),
        Node(RELU, (1,), "", (3,)),
        Node(Dense(np.array([[1000.0, -1000.0, 1.0]]), np.array([-5.0])), (2,), "", (1,)),
        Node(Exp(), (3,), "", (1,)),
        Node(Dense(np.array([[1.0]]), np.zeros(1)), (4,), "", (1,)),
        Node(Exp(), (5,), "", (1,)),
    )
    return Network(nodes)


def test_what_overflows_in_intervals_is_bounded_by_rows():
    net = cancelling()
    with np.errstate(all="ignore"):
        bounder = Bounder(net, -np.ones(2), np.ones(2))
        root = bounder.root()
        assert np.isinf(root.up).any()
        bounder.refresh(root, settle=True)
    low, up = bounder.pre_bounds(root, 5)
    assert -1e-6 < low[0, 0] <= np.exp(-1) and np.exp(1) <= up[0, 0] < 3.2
    assert np.all(np.isfinite(bounder.scales.error[:6]))


def test_such_a_query_is_closed_and_its_proof_accepted(monkeypatch):
    # made by hand: there is no model that onnxruntime could run
    monkeypatch.setattr(sys.modules["mucg4.search.run"], "agreement", lambda *_, **more: Agreement(None))
    query = one(cancelling(), [-1, -1], [1, 1], [({}, {0: -1}, 30, False)])
    verdict = verify(query, Settings(workers=1, attack=False), budget=effort())
    assert isinstance(verdict, Safe) and verdict.proof.leaves == 1
    assert check(verdict.proof, query).accepted


@pytest.mark.parametrize("seed", range(3))
def test_copies_are_bounded_once(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    left = rng.integers(0, 5, size=12)
    right = np.roll(left, 6)  # every pair in both orders
    nodes = (
        Node(None, (), "x", (70,)),  # so many that products get no joint lines
        Node(Dense(rng.normal(size=(6, 70)) / 9, rng.normal(size=6) / 9), (0,), "", (6,)),
        Node(RELU, (1,), "", (6,)),
        Node(Dense(rng.normal(size=(5, 6)), np.zeros(5)), (2,), "", (5,)),
        Node(Index(left, 5), (3,), "", (12,)),
        Node(Index(right, 5), (3,), "", (12,)),
        Node(PRODUCT, (4, 5), "", (12,)),
        Node(Sum((-1.0, 1.0)), (4, 5), "", (12,)),  # all differences that a softmax might take
        Node(Exp(), (7,), "", (12,)),
    )
    net = Network(nodes)
    found = []
    for copies in (True, False):
        bounder = Bounder(net, -np.ones(70), np.ones(70))
        if not copies:
            monkeypatch.setattr(bounder, "_distinct", lambda k, region, neuron: (np.arange(len(region)),) * 2 + (None,))
        counted = []

        def rows_of(k, region, neuron, lines, real=bounder.neuron_rows, counted=counted):
            counted.append(len(neuron))
            return real(k, region, neuron, lines)

        monkeypatch.setattr(bounder, "neuron_rows", rows_of)
        regions = bounder.root().take(np.zeros(3, dtype=np.int64))
        regions.hi[1] *= 0.5
        found.append((regions, bounder.refresh(regions, keep_rows=True), sum(counted)))
    (one_, rows, less), (other, wanted, more) = found
    assert less < more
    assert np.allclose(one_.low, other.low, atol=1e-12) and np.allclose(one_.up, other.up, atol=1e-12)
    for k, kept in rows.rows.items():
        assert all(np.allclose(a, b, atol=1e-12) for a, b in zip(kept, wanted.rows[k], strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_neurons_without_copies_keep_their_own_bounds(seed):
    """Differences of all distinct pairs, in an order that is not the one in which copies are looked for."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(np.stack(np.triu_indices(5, 1), axis=1))
    nodes = (
        Node(None, (), "x", (5,)),
        Node(Dense(np.diag(rng.uniform(1, 2, 5)), np.zeros(5)), (0,), "", (5,)),
        Node(Index(pairs[:, 0], 5), (1,), "", (10,)),
        Node(Index(pairs[:, 1], 5), (1,), "", (10,)),
        Node(Sum((1.0, -1.0)), (2, 3), "", (10,)),
        Node(RELU, (4,), "", (10,)),
    )
    net = Network(nodes)
    hi = 10.0 ** rng.uniform(-3, 1, 5)
    bounder = Bounder(net, -hi, hi)
    root = bounder.root()
    bounder.refresh(root)
    low, up = bounder.pre_bounds(root, 4)
    value = net.values(rng.uniform(-hi, hi, size=(500, 5)))[4]
    assert np.all(low[0] <= value.min(axis=0)) and np.all(value.max(axis=0) <= up[0])
    reach = nodes[1].op.weight.diagonal() * hi
    assert np.allclose(up[0], reach[pairs].sum(axis=1))
