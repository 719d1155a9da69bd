"""What a stored tree must not say: the checker sees each damage to one that is whole, and then nothing is reused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from handmade import chain, one, random_layers

from mucg4.evidence import Examined
from mucg4.limits.budget import Budget
from mucg4.model.proof import Tree
from mucg4.model.query import Query
from mucg4.model.refutations import Refutations
from unit.reuse.test_translate import rich_tree

SIZES = (2, 6, 6, 2)
NONE = np.zeros(0, dtype=np.int32)


def query() -> Query:
    network = chain(random_layers(0, SIZES))
    return one(network, [0, 0], [1, 1], [({}, {0: 1}, 0, False), ({}, {1: 1}, 0, False)])


def is_whole(tree: Tree) -> bool:
    """Whether the checker knows, of each leaf, if it holds."""
    return Examined(query(), [tree], Budget()).open() is not None


def fitting() -> Tree:
    """A tree on two layers of six neurons, with one conjunction of two constraints."""
    tree = rich_tree(np.random.default_rng(3), 6)
    refutations = []
    for r in tree.refutations:
        alpha = tuple(a for a in r.alpha if a.node != 5)
        refutations.append(replace(r, weights=(0.5, 0.25), alpha=alpha))
    cuts = tuple(replace(c, shares=tuple(replace(s, node=2) for s in c.shares)) for c in tree.cuts)
    tightenings = [replace(t, literals=NONE, beta=np.zeros((len(t.index), 0))) for t in tree.tightenings]
    return replace(tree, refutations=tuple(refutations), cuts=cuts, tightenings=tuple(tightenings))


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
    "literal of a tightening": lambda tree: replace(
        tree,
        tightenings=tuple(
            replace(t, literals=np.array([99], dtype=np.int32), beta=np.ones((len(t.index), 1)))
            for t in tree.tightenings
        ),
    ),
    "answers for a conjunction that does not exist": lambda tree: replace(tree, conjunctions=(1,)),
    "cut of an affine node": lambda tree: replace(tree, cuts=(replace(tree.cuts[0], node=1), *tree.cuts[1:])),
}


def test_what_is_whole_is_examined() -> None:
    assert is_whole(fitting())
    bare = replace(fitting(), refutations=(), tightenings=(), cuts=())
    assert is_whole(bare) and is_whole(replace(bare, conjunctions=None))


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_seen(name: str) -> None:
    assert not is_whole(DAMAGES[name](fitting()))
