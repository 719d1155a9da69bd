"""A stored tree in the words of another network.

At a split whose neuron is absent from the new network, or whose phase its weights fix, the node is
replaced by one of its children: the child of the fixed side, else the one with fewer leaves. The regions
below grow, so nothing is lost: the tree still covers the box, and every refutation is re-established by
the replay anyway. Rows of tightenings and cuts go with their neuron.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mucg4.model.proof import Alpha, Cuts, Refutation, Tightening, Tree, keep_cuts
from mucg4.ops.arrays import BoolArray, IntArray
from mucg4.relate.align import Alignment


def translate(tree: Tree, alignment: Alignment) -> Tree:
    """The tree with its literals, slopes and multipliers on the new network's neurons, renumbered.

    Slopes and multipliers of absent neurons are left out; a node that takes over from its parent inherits
    the parent's `refresh` and `clip`.
    """
    if alignment.trivial:
        return tree
    tree = _known_cuts(tree, alignment)
    node, index, side = _literals(tree, alignment)
    chosen = _chosen_children(tree, node, side)  # (N,) the child that replaces a dropped node, else the node itself
    visited = _visited(tree, chosen)
    survivor = _follow(chosen)
    kept = visited & (chosen == np.arange(len(tree)))
    number = np.cumsum(kept) - 1
    number = np.where(visited, number[survivor], -1)
    inner = kept & (tree.left >= 0)

    def children(child: IntArray) -> IntArray:
        return np.asarray(np.where(inner, number[np.where(inner, child, 0)], -1)[kept], dtype=np.int32)

    flags = np.zeros((2, int(kept.sum())), dtype=bool)
    np.logical_or.at(flags[0], number[visited], tree.refresh[visited])
    np.logical_or.at(flags[1], number[visited], tree.clip[visited])
    stays = _literal_stays(tree, kept)
    refutations = tuple(_refutation(r, number, stays, alignment) for r in tree.refutations if visited[r.at])
    tightenings = [(t.at, _tightening(t, number, stays, alignment)) for t in tree.tightenings if visited[t.at]]
    survive = np.cumsum([0, *(t is not None for at, t in tightenings if at == 0)])  # the root stays the root
    return replace(
        tree,
        node=np.where(inner, node, -1)[kept].astype(np.int32),
        index=np.where(inner, index, -1)[kept].astype(np.int32),
        threshold=tree.threshold[kept],
        left=children(tree.left),
        right=children(tree.right),
        refresh=flags[0],
        clip=flags[1],
        refutations=refutations,
        tightenings=tuple(t for _, t in tightenings if t is not None),
        cuts=_cuts(tree, survive, alignment),
    )


def _literals(tree: Tree, alignment: Alignment) -> tuple[IntArray, IntArray, IntArray]:
    """Per tree node the new network node (-1: the literal is dropped), the new neuron, and the fixed side."""
    node, index = np.full(len(tree), -1), np.full(len(tree), -1)
    side = np.zeros(len(tree), dtype=np.int8)
    for k in np.unique(tree.node[tree.left >= 0]).tolist():
        at = np.flatnonzero(tree.node == k)
        neurons = alignment.neurons.get(k)
        if neurons is None:
            continue
        at = at[tree.index[at] < len(neurons)]
        new, sign = neurons[tree.index[at]], alignment.phase[k][tree.index[at]]
        fixed = np.where(tree.threshold[at] == 0.0, sign, 0)
        live = (new >= 0) & (fixed == 0)
        node[at[live]], index[at[live]], side[at] = alignment.nodes[k], new[live], fixed
    return node, index, side


def _chosen_children(tree: Tree, node: IntArray, side: IntArray) -> IntArray:
    itself = np.arange(len(tree))
    dropped = (tree.left >= 0) & (node < 0)
    if not dropped.any():
        return itself
    leaves = tree.leaf_counts()
    smaller = np.where(leaves[tree.left] <= leaves[tree.right], tree.left, tree.right)
    taken = np.select([side < 0, side > 0], [tree.left, tree.right], smaller)
    return np.where(dropped, taken, itself)


def _levels(tree: Tree, chosen: IntArray) -> Iterator[IntArray]:
    """The tree nodes below the root, one depth after the other, going only into chosen children."""
    level = np.zeros(1, dtype=np.int64)
    while len(level):
        yield level
        dropped = chosen[level] != level
        inner = level[~dropped & (tree.left[level] >= 0)]
        level = np.concatenate([chosen[level[dropped]], tree.left[inner], tree.right[inner]])


def _visited(tree: Tree, chosen: IntArray) -> BoolArray:
    out = np.zeros(len(tree), dtype=bool)
    for level in _levels(tree, chosen):
        out[level] = True
    return out


def _follow(chosen: IntArray) -> IntArray:
    """The node that finally stands in for each node."""
    while not np.array_equal(further := chosen[chosen], chosen):
        chosen = further
    return chosen


def _literal_stays(tree: Tree, kept: BoolArray) -> BoolArray:
    """Per tree node whether the literal that introduced it is still one (the root has none)."""
    parents = tree.parents()
    return (parents >= 0) & kept[np.maximum(parents, 0)]


def _refutation(r: Refutation, number: IntArray, stays: BoolArray, alignment: Alignment) -> Refutation:
    def still(k: int) -> bool:
        return 0 <= k < len(stays) and bool(stays[k]) and number[k] >= 0

    core = None if r.core is None else tuple(sorted({int(number[k]) for k in r.core if still(k)}))
    beta = tuple((int(number[k]), value) for k, value in r.beta if still(k))
    return replace(r, at=int(number[r.at]), beta=beta, core=core, alpha=_slopes(r.alpha, alignment))


def _tightening(t: Tightening, number: IntArray, stays: BoolArray, alignment: Alignment) -> Tightening | None:
    """The rows whose neuron exists; None when there are none."""
    neurons = alignment.neurons.get(t.node)
    if neurons is None or t.index.max() >= len(neurons):
        return None
    rows = np.flatnonzero(neurons[t.index] >= 0)
    if not len(rows):
        return None
    t = t.take(rows)
    held = np.array([k < len(stays) and bool(stays[k]) and number[k] >= 0 for k in t.literals.tolist()], dtype=bool)
    return replace(
        t,
        at=int(number[t.at]),
        node=alignment.nodes[t.node],
        index=neurons[t.index].astype(np.int32),
        alpha=_slopes(t.alpha, alignment),
        literals=number[t.literals[held]].astype(np.int32),
        beta=t.beta[:, held],
    )


def _known_cuts(tree: Tree, alignment: Alignment) -> Tree:
    """The tree without cuts of absent neurons."""
    keep = [np.zeros(0, dtype=bool)]
    for c in tree.cuts:
        neurons = alignment.neurons.get(c.node, np.zeros(0, dtype=np.int64))
        keep.append(np.append(neurons, -1)[np.minimum(c.index, len(neurons))] >= 0)
    return keep_cuts(tree, np.concatenate(keep))


def _cuts(tree: Tree, survive: IntArray, alignment: Alignment) -> tuple[Cuts, ...]:
    """The cuts, all of neurons that exist; `survive[k]` of the first k of the root's tightenings are still there."""
    return tuple(
        replace(
            c,
            node=alignment.nodes[c.node],
            index=alignment.neurons[c.node][c.index].astype(np.int32),
            shares=_slopes(c.shares, alignment),
            after=int(survive[min(c.after, len(survive) - 1)]),
        )
        for c in tree.cuts
    )


def _slopes(alphas: tuple[Alpha, ...], alignment: Alignment) -> tuple[Alpha, ...]:
    out = []
    for a in alphas:
        neurons = alignment.neurons.get(a.node)
        if neurons is None or not len(a.index) or a.index.max() >= len(neurons):
            continue
        new = neurons[a.index]
        there = new >= 0
        if there.any():
            order = np.argsort(new[there], kind="stable")
            index, value = new[there][order].astype(np.int32), a.value[..., there][..., order]  # (k,) or (R, k)
            out.append(Alpha(alignment.nodes[a.node], index, value))
    return tuple(out)
