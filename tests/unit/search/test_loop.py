"""Search, bounds and ladder: cases in which a verdict could go wrong or a run could not end."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from handmade import chain, one
from samples import replayed

import mucg4.search.attack as attack_module
from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder
from mucg4.check.walk import check
from mucg4.errors import BudgetError
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.model.network import Network, Node
from mucg4.model.proof import Alpha, Proof, single_leaf
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.model.verdict import Statistics
from mucg4.ops.affine import Dense
from mucg4.ops.piecewise import RELU
from mucg4.search.attack import Attack
from mucg4.search.portfolio import solve
from mucg4.search.run import Run, open_case
from mucg4.settings import Settings

F = Fraction


def network(*layers, relu_first=False):
    """Dense layers `(weight, offset)` with ReLU between them."""
    nodes = [Node(None, (), "x", (np.shape(layers[0][0])[1],))]
    if relu_first:
        nodes.append(Node(RELU, (0,), "r", (nodes[0].size,)))
    for k, (w, b) in enumerate(layers):
        if k:
            nodes.append(Node(RELU, (len(nodes) - 1,), f"h{k}", (nodes[-1].size,)))
        nodes.append(Node(Dense(np.array(w, float), np.array(b, float)), (len(nodes) - 1,), f"z{k}", (len(b),)))
    return Network(tuple(nodes))


def query(net, lo, hi, *conjunctions):
    """A query of one case; constraints are `({output: coefficient}, constant)`, each `<= 0`."""
    built = tuple(
        Conjunction.build(
            [({}, {i: F(v) for i, v in y.items()}, F(c), False) for y, c in rows], net.input_size, net.output_size
        )
        for rows in conjunctions
    )
    return Query((net,), (Case(Box(tuple(map(F, lo)), tuple(map(F, hi))), built),))


def run_of(q, split, seconds=2.0):
    settings = Settings(split=split, attack=False)
    return Run(q, settings, Budget.seconds(seconds), Statistics(), Runtime(q.network), None)


def proved(q, trees):
    return check(Proof(q.network.fingerprint, q.property_hash, tuple(trees)), q).accepted


def random_network(seed, *sizes, relu_first=False):
    rng = np.random.default_rng(seed)
    pairs = zip(sizes[1:], sizes[:-1], strict=True)
    return network(*((rng.normal(size=(m, n)), rng.normal(size=m)) for m, n in pairs), relu_first=relu_first)


def largest(net, inputs):
    return net(np.random.default_rng(1).uniform(-1, 1, size=(20000, inputs))).max(axis=0)


@pytest.mark.parametrize("above", [1.0, 3.0, 5.0, 7.0, 9.0, 10.0])
def test_tree_of_several_conjunctions_in_a_phase_search_closes_only_what_it_refuted(above):
    net = random_network(0, 3, 8, 8, 2)
    top = largest(net, 3)
    q = query(net, [-1] * 3, [1] * 3, [({0: -1}, top[0] + above)], [({1: -1}, top[1] - 0.5)])
    with pytest.raises(BudgetError):
        replayed(run_of(q, "phase", 0.5), [single_leaf()])


def test_trees_of_an_input_search_serve_a_phase_search():
    net = random_network(0, 3, 8, 2)
    top = largest(net, 3)
    q = query(net, [-1] * 3, [1] * 3, [({0: -1}, top[0] + 1)], [({1: -1}, top[1] + 1)])
    trees = solve(run_of(q, "input", 20))
    again = replayed(run_of(q, "phase", 20), trees)
    assert [t.conjunctions for t in again] == [None] and proved(q, again)  # nothing was left to search
    bare = [dataclasses.replace(t, refutations=()) for t in trees]
    again = replayed(run_of(q, "phase", 20), bare)
    assert [t.conjunctions for t in again] == [(0,), (1,)] and proved(q, again)


@pytest.mark.parametrize("split", ["input", "phase"])
def test_overflowing_constraint_is_not_closed_by_another_conjunction(split):
    net = network((np.eye(2), [0, 0]), (np.eye(2), [0, 0]))
    q = query(net, [0, 0], [1, 1], [({0: 1}, 1)], [({1: 10**200}, -(10**199))])
    with np.errstate(all="ignore"), pytest.raises(BudgetError):
        solve(run_of(q, split, 0.5))


def test_affine_network_with_many_inputs_is_decided_by_a_linear_program():
    weight = np.random.default_rng(1).normal(size=(3, 20))
    rows = [({0: 1, 1: -1}, 0), ({1: 1, 2: -1}, 0), ({2: 1, 0: -1}, F(1, 10))]
    q = query(network((weight, [0, 0, 0])), [-1] * 20, [1] * 20, rows)
    assert proved(q, solve(run_of(q, "phase", 20)))


@pytest.mark.parametrize("split", ["input", "phase"])
def test_input_that_feeds_a_relu_is_split_to_an_end(split):
    net = random_network(3, 2, 4, 1, relu_first=True)
    q = query(net, [-1] * 2, [1] * 2, [({0: -1}, largest(net, 2)[0] + 0.05)])
    assert proved(q, solve(run_of(q, split, 30)))


@pytest.mark.parametrize("split", ["input", "phase"])
def test_a_stored_tree_goes_on_where_an_input_feeds_a_relu(split):
    net = random_network(3, 2, 4, 1, relu_first=True)
    q = query(net, [-1] * 2, [1] * 2, [({0: -1}, largest(net, 2)[0] + 0.05)])
    bare = [dataclasses.replace(t, refutations=()) for t in solve(run_of(q, split, 30))]
    run = run_of(q, split, 30)
    assert proved(q, replayed(run, bare)) and not run.statistics.warnings


@pytest.mark.parametrize("split", ["input", "phase"])
def test_point_within_rounding_ends_undecided(split):
    net = network(([[1.0, 0.1]], [0]), ([[1.0]], [0]))
    q = query(net, [F(1, 8)] * 2, [F(1, 8)] * 2, [({0: -1}, F(0.1) / 8 + F(1, 8))])
    with pytest.raises(BudgetError, match="undecided"):
        solve(run_of(q, split, 60))


def test_stored_duals_that_name_nothing_here_are_a_miss():
    net = random_network(0, 3, 8, 1)
    q = query(net, [-1] * 3, [1] * 3, [({0: -1}, largest(net, 3)[0] + 0.2)])
    (tree,) = solve(run_of(q, "phase", 20))
    slopes = Alpha(1, np.array([0, 1], dtype=np.int32), np.array([1, 2, 3], dtype=np.uint8))
    for change in ({"beta": ((10**6, 1.0),)}, {"beta": ((-1, 1.0),)}, {"alpha": (slopes,)}):
        hostile = dataclasses.replace(
            tree, refutations=tuple(dataclasses.replace(r, **change) for r in tree.refutations)
        )
        assert proved(q, replayed(run_of(q, "phase", 20), [hostile]))


def test_rounding_of_cancelling_constraints_is_charged():
    net = network(([[1e6]], [0]), ([[1.0]], [0]))
    q = query(net, [1], [2], [({0: F(3, 10)}, 0), ({0: F(-1, 10)}, 0)])
    bounder = Bounder(net, q.cases[0].box.lo, q.cases[0].box.hi)
    refreshed = bounder.refresh(bounder.root())
    rows = Objective(q.cases[0]).functional(bounder, refreshed, np.zeros(1, dtype=int), np.array([[1.0, 3.0]]))
    value = rows.minimum(bounder.lo[None], bounder.hi[None], bounder.scales.input_dot)
    assert rows.error[0] >= 2.0**-53 * 0.3 * 2e6  # the exact sum is 0
    assert value[0] <= 0


def test_starting_points_of_a_huge_box_are_finite():
    net = network(([[1.0]], [0]))
    q = query(net, [-(10**308) + 1], [10**308 - 1], [({0: 1}, 0)])
    attack = Attack(q, q.cases[0], Runtime(net), Statistics(), 0)
    assert np.all(np.isfinite(attack.starts(16)))


@pytest.mark.parametrize("leak", [0.0, attack_module.LEAK])
def test_attack_finds_a_point_behind_a_neuron_that_is_off_everywhere_else(monkeypatch, leak):
    monkeypatch.setattr(attack_module, "LEAK", leak)
    layers = [(np.ones((1, 30)), np.array([-28.5])), (np.array([[-4.0]]), np.array([1.0]))]
    q = one(chain(layers), [0] * 30, [1] * 30, [({}, {0: 1}, 0, False)])
    attack = Attack(q, q.cases[0], Runtime(q.network), Statistics(), 0)
    found = attack.run(16, 12, Budget.seconds(20))
    assert (found is not None) == (leak > 0)


def test_bounds_alone_equal_the_values_of_an_evaluation():
    net = random_network(2, 3, 6, 3)
    q = query(net, [-1] * 3, [1] * 3, [({0: 1}, 1), ({1: -1}, 2)], [({2: 1}, 0)])
    state = open_case(run_of(q, "input"), 0)
    root = state.root.take(np.zeros(3, dtype=int))
    refreshed = state.bounder.refresh(root)
    open_ = np.array([[True, True], [True, False], [False, True]])
    full = state.objective.evaluate(state.bounder, root, refreshed, open_).value
    np.testing.assert_allclose(state.objective.values(state.bounder, root, refreshed, open_), full, rtol=1e-12)
