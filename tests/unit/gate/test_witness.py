"""The witness gate: threads, margins, and a neighbour with more of it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from handmade import chain, one, random_layers

from mucg4.gate import witness as gate
from mucg4.gate.gradient import gradient
from mucg4.gate.runtime import Runtime
from mucg4.gate.witness import COMPARED, holds, margin, replay_witness

pytest.importorskip("onnxruntime")
IDENTITY = [(np.eye(1), np.zeros(1))]


class Uneven(Runtime):
    """Says something else with many threads at inputs above one half."""

    shift = 1e-6
    asked = 0

    def threaded(self, x):
        Uneven.asked += 1
        return self.single(x) + np.where(x > 0.5, self.shift, 0.0).astype(np.float32)


def test_a_witness_holds_with_one_thread_and_with_many():
    query = one(chain(IDENTITY), ["0.75"], [1], [({}, {0: 1}, Fraction("-0.75"), False)])  # only y = 0.75 violates
    assert replay_witness(query, np.array([0.75])) is not None
    assert replay_witness(query, np.array([0.75]), Uneven(query.network)) is None


def test_many_threads_are_asked_only_about_what_holds_with_one():
    query = one(chain(IDENTITY), [0], [1], [({}, {0: 1}, Fraction(-1, 4), False)])
    runtime, Uneven.asked = Uneven(query.network), 0
    assert replay_witness(query, np.array([0.75]), runtime) is None and Uneven.asked == 0
    assert replay_witness(query, np.array([0.125]), runtime) is not None and Uneven.asked == 1
    assert runtime._threaded is None


def test_many_threads_compute_the_same_up_to_rounding():
    network = chain(random_layers(0, (200, 300, 300, 3)))
    x = np.random.default_rng(0).normal(size=(3, 200))
    runtime = Runtime(network)
    np.testing.assert_allclose(runtime.threaded(x), runtime.single(x), rtol=1e-3, atol=1e-3)
    runtime.rest()
    assert runtime._threaded is None


def test_the_largest_margin_wins_where_the_first_is_a_hair():
    query = one(chain(IDENTITY), [0], [1], [({}, {0: 1}, Fraction(-1, 2), False)])
    hair = 0.5 - np.arange(1, COMPARED)[:, None] * 2.0**-25
    found = replay_witness(query, hair, ranked=True)
    assert found is not None and found.x[0] < 0.4  # the neighbour inward
    clear = replay_witness(query, np.array([[0.3], [0.1]]), ranked=True)
    assert clear is not None and clear.x[0] == np.float32(
        0.3
    )  # the first that is clear of rounding, in the order given


def test_a_boundary_that_cannot_be_left_stays():
    # y <= 1/2 and y >= 1/2
    query = one(chain(IDENTITY), [0], [1], [({}, {0: 1}, Fraction(-1, 2), False), ({}, {0: -1}, Fraction(1, 2), False)])
    found = replay_witness(query, np.array([0.5]))
    assert found is not None and found.x[0] == 0.5


@pytest.mark.parametrize("seed", range(6))
def test_a_hair_is_moved_inward_and_stays_legal(seed):
    layers = random_layers(seed, (4, 20, 20, 2))
    network, random = chain(layers), np.random.default_rng(seed)
    x = random.uniform(-1, 1, 4).astype(np.float32)
    y = Runtime(network).single(x[None])[0]
    level = -Fraction(float(y[0]))
    query = one(network, [-1] * 4, [1] * 4, [({}, {0: 1}, level, False)])
    conj = query.cases[0].conjunctions[0]
    found = replay_witness(query, x)
    assert found is not None and holds(conj, found.x, found.y) and np.all(abs(found.x) <= 1)
    slope = gradient(network, network.values(x[None].astype(np.float64)), np.array([[1.0, 0.0]]))
    if np.any(slope):
        assert margin(conj, found.x, found.y) > 1e-4


def test_large_networks_are_not_evaluated_more_often(monkeypatch):
    query = one(chain(IDENTITY), [0], [1], [({}, {0: 1}, Fraction(-1, 2), False)])
    monkeypatch.setattr(gate, "EASY", 0)
    found = replay_witness(query, np.array([0.5]))
    assert found is not None and found.x[0] == 0.5


def test_margin_is_exact():
    query = one(chain(IDENTITY), [0], [1], [({}, {0: 3}, Fraction(-1, 3), False), ({0: 1}, {0: 1}, -1, False)])
    conj = query.cases[0].conjunctions[0]
    x = np.array([0.0625], dtype=np.float32)
    assert margin(conj, x, x) == Fraction(1, 3) - Fraction(3, 16)
