"""Translation by arrays does to every refutation, tightening and cut what one does to each by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mucg4.model.proof import Alpha, Cuts, Refutation, Tightening, Tree
from mucg4.relate.align import Alignment
from mucg4.reuse.translate import translate
from unit.reuse.test_relation import random_tree

NODES = {0: 0, 1: 1, 2: 2, 3: 7, 4: 8}  # two layers, the second with other numbers in the new network
SIZE = 6


def rich_tree(random: np.random.Generator, count: int) -> Tree:
    """A random tree whose refutations have slopes, multipliers of literals and cuts, and cores."""
    tree = random_tree(random, count)
    inner = tree.left >= 0
    node = np.where(inner, random.choice([1, 3], len(tree)), -1).astype(np.int32)
    cuts = tuple(Cuts(k, some(random), (), k // 4) for k in (2, 4))
    total = sum(len(c.index) for c in cuts)
    cuts = tuple(replace(c, shares=(slopes(random, len(c.index)),)) for c in cuts)
    refutations = tuple(
        replace(
            r,
            weights=tuple(random.random(int(random.integers(1, 3)))),
            alpha=tuple(slopes(random, None, k) for k in (1, 3, 5) if random.random() < 0.7),
            cuts=(np.arange(total, dtype=np.int32), random.random(total)) if random.random() < 0.5 else None,
            core=r.core if random.random() < 0.7 else None,
            margin=random.random(),
        )
        for r in tree.refutations
    )
    tightenings = tuple(tightening(random, len(tree), total) for _ in range(4))
    tree = replace(tree, node=node, refutations=refutations, tightenings=tightenings, cuts=cuts, conjunctions=(0,))
    return tree


def some(random: np.random.Generator) -> np.ndarray:
    return np.sort(random.permutation(SIZE)[: int(random.integers(1, SIZE))]).astype(np.int32)


def slopes(random: np.random.Generator, rows: int | None, node: int = 1) -> Alpha:
    index = some(random)
    shape = (len(index),) if rows is None else (rows, len(index))
    return Alpha(node, index, random.integers(256, size=shape).astype(np.uint8))


def tightening(random: np.random.Generator, nodes: int, cuts: int) -> Tightening:
    index, literals = some(random), random.permutation(nodes)[:3].astype(np.int32)
    rows = len(index)
    side = np.ones(rows, dtype=np.int8)
    alpha = (slopes(random, rows, 1), slopes(random, rows, 3))
    held = random.random((rows, 2)), alpha, literals, random.random((rows, len(literals)))
    planes = np.arange(cuts, dtype=np.int32)
    return Tightening(int(random.integers(nodes)), 0, 3, index, side, *held, planes, random.random((rows, cuts)))


def alignment(random: np.random.Generator) -> Alignment:
    neurons: dict[int, np.ndarray] = {0: np.arange(2)}
    phase: dict[int, np.ndarray] = {0: np.zeros(2, dtype=np.int8)}
    for k in (1, 3):
        new = np.where(random.random(SIZE) < 0.25, -1, random.permutation(SIZE))
        sign = np.where(random.random(SIZE) < 0.15, 1, 0).astype(np.int8)
        neurons |= {k: new, k + 1: new}
        phase |= {k: sign, k + 1: sign}
    return Alignment(NODES, neurons, phase)


def by_hand(
    alpha: tuple[Alpha, ...], found: Alignment, rows: np.ndarray | slice = slice(None)
) -> list[tuple[int, dict]]:
    """Per group the new node, and the value of each new neuron."""
    out = []
    for a in alpha:
        if a.node in found.neurons:
            value = a.value if a.value.ndim == 1 else a.value[rows].T
            pairs = {int(found.neurons[a.node][i]): np.asarray(v).tolist() for i, v in zip(a.index, value, strict=True)}
            pairs.pop(-1, None)
            if pairs:
                out.append((NODES[a.node], pairs))
    return out


def told(alpha: tuple[Alpha, ...]) -> list[tuple[int, dict]]:
    assert all(np.all(np.diff(a.index) > 0) for a in alpha)
    return [(a.node, dict(zip(a.index.tolist(), np.asarray(a.value).T.tolist(), strict=True))) for a in alpha]


@pytest.mark.parametrize("seed", range(40))
def test_every_part_is_translated_as_one_by_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    tree, found = rich_tree(random, seed % 9), alignment(random)
    new = translate(tree, found)
    planes = [(c.node, int(i)) for c in tree.cuts for i in c.index]
    kept = [k for k, (node, i) in enumerate(planes) if found.neurons[node][i] >= 0]
    assert [(c.node, int(i)) for c in new.cuts for i in c.index] == [
        (NODES[planes[k][0]], int(found.neurons[planes[k][0]][planes[k][1]])) for k in kept
    ]
    left = {r.margin: r for r in tree.refutations}
    for r in new.refutations:
        old = left[r.margin]
        assert (r.conjunction, r.weights) == (old.conjunction, old.weights)
        assert told(r.alpha) == by_hand(old.alpha, found)
        assert set(v for _, v in r.beta) <= set(v for _, v in old.beta)
        assert (r.core is None) == (old.core is None) and list(r.core or ()) == sorted(set(r.core or ()))
        if old.cuts is None or not kept:
            assert r.cuts is None
        else:
            assert r.cuts[0].tolist() == list(range(len(kept)))
            assert r.cuts[1].tolist() == old.cuts[1][kept].tolist()
    old_ones = {float(t.weights[0, 0]): t for t in tree.tightenings} | {
        float(w): t for t in tree.tightenings for w in t.weights[:, 0]
    }
    for t in new.tightenings:
        old = old_ones[float(t.weights[0, 0])]
        rows = np.flatnonzero(found.neurons[3][old.index] >= 0)
        assert t.node == NODES[3] and t.index.tolist() == found.neurons[3][old.index[rows]].tolist()
        assert np.array_equal(t.weights, old.weights[rows]) and told(t.alpha) == by_hand(old.alpha, found, rows)
        assert np.array_equal(t.cut_weights, old.cut_weights[np.ix_(rows, kept)])
        assert set(t.beta[0].tolist()) <= set(old.beta[rows[0]].tolist()) and len(t.literals) == t.beta.shape[1]


def test_slopes_of_neurons_that_no_network_has_are_left_out() -> None:
    """What a stored proof says about neurons that the stored network does not have is no reason to fail."""
    random = np.random.default_rng(1)
    tree, found = rich_tree(random, 3), alignment(random)
    odd = Alpha(1, np.array([2, 99], dtype=np.int32), np.array([7, 9], dtype=np.uint8))
    found.neurons[1][2] = 3
    (kept,) = (replace(tree, refutations=(Refutation(0, 0, (1.0,), (odd,), ((99, 1.0),), (99,)),)),)
    visited = translate(replace(kept, node=np.where(kept.left >= 0, 1, -1).astype(np.int32)), found).refutations
    for r in visited:
        assert told(r.alpha) == [(1, {3: 7})] and r.beta == () and r.core == ()
