"""Cores of a stored proof, in trees of every kind."""

from __future__ import annotations

import numpy as np
from handmade import chain, random_layers

from mucg4.model.proof import Refutation, Tree
from mucg4.relate.align import alignment_of
from mucg4.smt.transfer import classify, cores_of


def tree(refutations, threshold=(0.0, 0.0), conjunctions=(0,)) -> Tree:
    """Root split at neuron (1, 4), its low side at (3, 2): leaves 2, 3, 4."""
    i32 = np.int32
    node, index = np.array([1, 3, -1, -1, -1], i32), np.array([4, 2, -1, -1, -1], i32)
    left, right = np.array([1, 3, -1, -1, -1], i32), np.array([2, 4, -1, -1, -1], i32)
    flags = np.ones(5, bool), np.zeros(5, bool)
    return Tree(
        node, index, np.r_[threshold, np.zeros(3)], left, right, *flags, tuple(refutations), conjunctions=conjunctions
    )


def found(*given, **kwargs) -> dict:
    return {(c.conjunction, c.literals): c.leaves for c in cores_of([tree(given, **kwargs)])}


def test_a_core_is_what_is_named_or_the_path():
    leaves = [Refutation(2, 0, (1.0,)), Refutation(3, 0, (1.0,), core=(3,)), Refutation(4, 0, (1.0,), core=(1, 4))]
    assert found(*leaves) == {
        (0, ((1, 4, 1),)): 1,
        (0, ((3, 2, -1),)): 1,
        (0, ((1, 4, -1), (3, 2, 1))): 1,
    }


def test_an_inner_node_stands_for_its_leaves():
    assert found(Refutation(2, 0, (1.0,)), Refutation(1, 0, (1.0,))) == {(0, ((1, 4, 1),)): 1, (0, ((1, 4, -1),)): 2}
    assert found(Refutation(0, 0, (1.0,))) == {(0, ()): 3}


def test_what_bounds_close_counts_for_every_conjunction():
    cores = found(Refutation(1, 0, (1.0,)), conjunctions=(0, 1))
    assert cores[0, ((1, 4, 1),)] == cores[1, ((1, 4, 1),)] == 1


def test_halves_of_inputs_are_no_phases():
    assert found(Refutation(2, 0, (1.0,)), Refutation(1, 0, (1.0,)), threshold=(0.5, 0.0)) == {}


def test_classes_of_equations():
    layers = random_layers(0, (3, 5, 2))
    (w, b), last = layers
    moved, pruned = w.copy(), w.copy()
    moved[0] *= 1.001
    pruned[1, 2] = 0.0

    def changes(first) -> dict[str, int]:
        original, variant = chain(layers), chain([(first, b), last])
        alignment = alignment_of(original, variant)
        assert alignment is not None
        return classify(original, variant, alignment)

    assert changes(w) == {"unchanged": 7, "numerical": 0, "structural": 0}
    assert changes(moved) == {"unchanged": 6, "numerical": 1, "structural": 0}
    assert changes(pruned) == {"unchanged": 6, "numerical": 0, "structural": 1}
