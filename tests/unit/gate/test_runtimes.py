"""Queries that follow each other on one network share what onnxruntime has loaded, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from examples import dense, text

from mucg4.gate.agreement import agreement
from mucg4.gate.runtimes import Runtimes
from mucg4.lab.compress import compress
from mucg4.ops.affine import Dense
from mucg4.read.instance import Model, Property

RNG = np.random.default_rng(6)
DATA = dense([(RNG.normal(size=(b, a)), RNG.normal(size=b)) for a, b in ((3, 8), (8, 8), (8, 1))])


def prop(low: float, high: float) -> Property:
    return Property(text([(low, high)] * 3, 1, "(>= Y_0 1000)"))


def test_sessions_are_shared_and_points_are_not() -> None:
    runtimes, model = Runtimes(), Model(DATA)
    first = runtimes.of(model.under(prop(-1, 1)))
    first.remember(np.ones((4, 3)))
    first.outputs(np.zeros((1, 3)))
    second = runtimes.of(model.under(prop(2, 3)))
    assert second is not first and second._open() is first._open()
    assert first.visited is not None and second.visited is None
    other = runtimes.of(Model(compress(DATA, "int8")).under(prop(2, 3)))
    assert other._session is None and other.network is not first.network


def test_a_network_that_agreed_is_compared_in_every_new_box() -> None:
    runtimes, model = Runtimes(), Model(DATA)
    done = []
    for low in (-1.0, 2.0, 5.0):
        query = model.under(prop(low, low + 1))
        runtime = runtimes.of(query)
        done.append(agreement(query, runtime, seconds=0.05))
        assert done[-1].problem is None and runtime.compared
    assert done[0].points >= done[1].points == done[2].points == 20  # the least rounds, of ten points each


def test_what_was_compared_is_forgotten_with_another_network() -> None:
    runtimes, model = Runtimes(), Model(DATA)
    query = model.under(prop(-1, 1))
    runtime = runtimes.of(query)
    assert agreement(query, runtime).problem is None
    nodes = list(query.network.nodes)
    k = next(i for i, node in enumerate(nodes) if isinstance(node.op, Dense))
    op = nodes[k].op
    assert isinstance(op, Dense)
    nodes[k] = replace(nodes[k], op=replace(op, weight=op.weight * 1.01))
    wrong = replace(query, networks=(replace(query.network, nodes=tuple(nodes)),))
    assert agreement(wrong, runtime.again()).problem is not None
