"""What a stored tree must not say: each damage to one that fits is seen, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from handmade import chain, one, random_layers

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder
from mucg4.model.proof import Tree
from mucg4.model.refutations import Refutations
from mucg4.reuse.fits import fits
from unit.reuse.test_translate import rich_tree

SIZES = (2, 6, 6, 2)


def state() -> Any:
    network = chain(random_layers(0, SIZES))
    query = one(network, [0, 0], [1, 1], [({}, {0: 1}, 0, False), ({}, {1: 1}, 0, False)])
    bounder = Bounder(network, np.zeros(2), np.ones(2))
    return SimpleNamespace(number=0, bounder=bounder, objective=Objective(query.cases[0]))


def fitting() -> Tree:
    """A tree on two layers of six neurons, with one conjunction of two constraints."""
    tree = rich_tree(np.random.default_rng(3), 6)
    refutations = []
    for r in tree.refutations:
        alpha = tuple(a for a in r.alpha if a.node != 5)
        refutations.append(replace(r, weights=(0.5, 0.25), alpha=alpha))
    cuts = tuple(replace(c, shares=tuple(replace(s, node=2) for s in c.shares)) for c in tree.cuts)
    return replace(tree, refutations=tuple(refutations), cuts=cuts)


def table(change: Callable[[Refutations], dict[str, Any]]) -> Callable[[Tree], Tree]:
    return lambda tree: replace(tree, refutations=replace(tree.table, **change(tree.table)))


def with_first(array: np.ndarray, value: float) -> np.ndarray:
    out = array.copy()
    out[0] = value
    return out


def literal(name: str, value: int) -> Callable[[Tree], Tree]:
    def change(tree: Tree) -> Tree:
        return replace(tree, **{name: with_first(getattr(tree, name), value)})

    return change


def tightening(**change: Any) -> Callable[[Tree], Tree]:
    return lambda tree: replace(tree, tightenings=(replace(tree.tightenings[0], **change), *tree.tightenings[1:]))


DAMAGES: dict[str, Callable[[Tree], Tree]] = {
    "literal of a node that does not exist": literal("node", 40),
    "literal of a node without splits": literal("node", 6),
    "literal of a neuron that does not exist": literal("index", 6),
    "conjunction": table(lambda t: {"conjunction": with_first(t.conjunction, 1)}),
    "negative weight": table(lambda t: {"weights": with_first(t.weights, -1.0)}),
    "weight that is no number": table(lambda t: {"weights": with_first(t.weights, np.nan)}),
    "infinite multiplier": table(lambda t: {"beta": with_first(t.beta, np.inf)}),
    "negative multiplier of a cut": table(lambda t: {"multiplier": with_first(t.multiplier, -1e-9)}),
    "literal of a refutation": table(lambda t: {"literal": with_first(t.literal, 99)}),
    "slope of a neuron": table(lambda t: {"slope_index": with_first(t.slope_index, 6)}),
    "slope of a node": table(lambda t: {"slope_node": with_first(t.slope_node, 2)}),
    "number of weights": table(
        lambda t: {"weight_count": with_first(t.weight_count, 1), "weights": t.weights[1:].copy()}
    ),
    "node of a tightening": tightening(node=2),
    "conjunction of a tightening": tightening(conjunction=1),
    "literal of a tightening": tightening(literals=np.array([0, 1, 99], dtype=np.int32)),
    "answers for a conjunction that does not exist": lambda tree: replace(tree, conjunctions=(1,)),
    "cut of an affine node": lambda tree: replace(tree, cuts=(replace(tree.cuts[0], node=1), *tree.cuts[1:])),
}


def test_what_fits_fits() -> None:
    assert fits(fitting(), state())
    bare = replace(fitting(), refutations=(), tightenings=(), cuts=())
    assert fits(bare, state()) and fits(replace(bare, conjunctions=None), state())


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_seen(name: str) -> None:
    assert not fits(DAMAGES[name](fitting()), state())
