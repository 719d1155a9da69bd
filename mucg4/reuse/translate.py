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

from mucg4.model.network import Network
from mucg4.model.proof import Alpha, Cuts, Tightening, Tree, kept_rows
from mucg4.model.refutations import NO_CORE, Refutations
from mucg4.ops.arrays import AnyArray, BoolArray, FloatArray, IntArray, distinct
from mucg4.records import dataclass
from mucg4.relate.align import Alignment, by_position


def translate(tree: Tree, alignment: Alignment) -> Tree:
    """The tree with its literals, slopes and multipliers on the new network's neurons, renumbered.

    Slopes and multipliers of absent neurons are left out; a node that takes over from its parent inherits
    the parent's `refresh` and `clip`. Raises `ProofError` for refutations that fit in no arrays.
    """
    if alignment.trivial:
        return tree
    node, index, side = _literals(tree, alignment)
    return _contracted(tree, alignment, node, index, side)


def restricted(tree: Tree, network: Network, lo: FloatArray, hi: FloatArray) -> Tree:
    """The tree, which is about this network, on the part `lo, hi (inputs,)` of its box: splits beside it go."""
    split = (tree.left >= 0) & (tree.node == 0)
    index = np.where(split, tree.index, 0)
    left, right = split & (tree.threshold >= hi[index]), split & (tree.threshold <= lo[index])
    side = np.where(left, -1, np.where(right, 1, 0)).astype(np.int8)
    places = by_position(network, network)
    if places is None or not side.any():
        return tree
    return _contracted(tree, places, np.where(side != 0, -1, tree.node), tree.index, side)


def _contracted(tree: Tree, alignment: Alignment, node: IntArray, index: IntArray, side: IntArray) -> Tree:
    """The tree with the splits `node, index (N,)`, -1 where a child takes over (see `_chosen_children`)."""
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
    there = _known_cuts(tree, alignment)
    split = _split_factors(tree, alignment)
    words = _Words(
        alignment,
        factor=np.append(np.append(split, 1.0)[tree.parents()], 1.0),  # the root has no literal
        cut_factor=np.append(_cut_factors(tree, alignment), 1.0),
        number=number,
        literals=np.append(np.where(_literal_stays(tree, kept), number, -1), -1),
        cuts=np.append(np.where(there, np.cumsum(there) - 1, -1), -1),
    )
    tightenings = [(t.at, words.tightening(t)) for t in tree.tightenings if visited[t.at]]
    survive = np.cumsum([0, *(t is not None for at, t in tightenings if at == 0)])  # the root stays the root
    return replace(
        tree,
        node=np.where(inner, node, -1)[kept].astype(np.int32),
        index=np.where(inner, index, -1)[kept].astype(np.int32),
        threshold=(tree.threshold * split)[kept],
        left=children(tree.left),
        right=children(tree.right),
        refresh=flags[0],
        clip=flags[1],
        refutations=words.refutations(tree.table, visited),
        tightenings=tuple(t for _, t in tightenings if t is not None),
        cuts=tuple(words.cut(c, survive) for c in kept_rows(tree.cuts, there)),
    )


def _literals(tree: Tree, alignment: Alignment) -> tuple[IntArray, IntArray, IntArray]:
    """Per tree node the new network node (-1: the literal is dropped), the new neuron, and the fixed side."""
    node, index = np.full(len(tree), -1), np.full(len(tree), -1)
    side = np.zeros(len(tree), dtype=np.int8)
    for k in distinct(tree.node[tree.left >= 0]).tolist():
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


def _split_factors(tree: Tree, alignment: Alignment) -> FloatArray:
    """(N,) what the neuron that a tree node splits is multiplied by, 1 elsewhere."""
    out = np.ones(len(tree))
    for k in alignment.scale:
        at = np.flatnonzero(tree.node == k)
        out[at] = alignment.scale_of(k, tree.index[at])
    return out


def _cut_factors(tree: Tree, alignment: Alignment) -> FloatArray:
    """(C,) what the neuron of each cut is multiplied by."""
    return np.concatenate([np.zeros(0), *(alignment.scale_of(c.node, c.index) for c in tree.cuts)])


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


@dataclass(frozen=True, eq=False)
class _Words:
    """What each number of the old tree is in the new one: -1 where it is left out.

    `number (N,)` of tree nodes as regions, `literals (N + 1,)` as literals, `cuts (C + 1,)` of cuts; the last entry of
    the latter two stands for numbers that the tree does not have. `factor (N + 1,)` and `cut_factor (C + 1,)` are what
    the neurons of literals and cuts are multiplied by: multipliers are divided by it.
    """

    alignment: Alignment
    number: IntArray
    literals: IntArray
    cuts: IntArray
    factor: FloatArray
    cut_factor: FloatArray

    def refutations(self, table: Refutations, visited: BoolArray) -> Refutations:
        """Those at visited nodes, in their order."""
        rows = visited[table.at]
        owner = np.repeat(np.arange(len(table.slope_node)), table.slope_count)
        node, index = self._neurons(table.slope_node, owner, table.slope_index)
        there = (index >= 0) & np.repeat(rows, table.group_count)[owner]
        owner, index = owner[there], index[there]
        order = _by_group(owner, index)
        slopes = np.bincount(owner, minlength=len(node))
        filled = slopes > 0
        groups = np.bincount(np.repeat(np.arange(len(table)), table.group_count)[filled], minlength=len(table))
        beta, beta_count, literal = _taken(self.literals, rows, table.beta_count, table.literal)
        cut, cut_count, numbers = _taken(self.cuts, rows, table.cut_count, table.cut)
        _, core_count, core = _taken(self.literals, rows, np.maximum(table.core_count, 0), table.core)
        core = core[_by_group(np.repeat(np.arange(len(core_count)), core_count), core)]
        return replace(
            table,
            at=_short(self.number[table.at[rows]]),
            conjunction=table.conjunction[rows],
            margin=table.margin[rows],
            weight_count=table.weight_count[rows],
            weights=table.weights[np.repeat(rows, table.weight_count)],
            group_count=_short(groups[rows]),
            slope_node=_short(node[filled]),
            slope_count=_short(slopes[filled]),
            slope_index=_short(index[order]),
            slope_value=table.slope_value[there][order],
            beta_count=beta_count,
            literal=literal,
            beta=(table.beta / _places(self.factor, table.literal))[beta],
            cut_count=cut_count,
            cut=numbers,
            multiplier=(table.multiplier / _places(self.cut_factor, table.cut))[cut],
            core_count=np.where(table.core_count[rows] < 0, NO_CORE, core_count).astype(np.int32),
            core=core,
        )

    def tightening(self, t: Tightening) -> Tightening | None:
        """The rows whose neuron exists; None when there are none."""
        neurons = self.alignment.neurons.get(t.node)
        if neurons is None or t.index.max() >= len(neurons):
            return None
        index = neurons[t.index]
        rows = index >= 0
        if not rows.any():
            return None
        literals, cuts = _places(self.literals, t.literals), _places(self.cuts, t.cuts)
        own = self.alignment.scale_of(t.node, t.index)  # a row times a number is a row
        beta = t.beta * own[:, None] / _places(self.factor, t.literals)
        cut_weights = t.cut_weights * own[:, None] / _places(self.cut_factor, t.cuts)
        return Tightening(
            int(self.number[t.at]),
            t.conjunction,
            self.alignment.nodes[t.node],
            _short(index[rows]),
            t.side[rows],
            _part(t.weights * own[:, None], rows),
            self.slopes(t.alpha, rows),
            _short(literals[literals >= 0]),
            _part(beta, rows, literals >= 0),
            _short(cuts[cuts >= 0]),
            _part(cut_weights, rows, cuts >= 0),
        )

    def cut(self, c: Cuts, survive: IntArray) -> Cuts:
        """Planes of neurons that all exist; `survive[k]` of the first k of the root's tightenings are still there."""
        return replace(
            c,
            node=self.alignment.nodes[c.node],
            index=_short(self.alignment.neurons[c.node][c.index]),
            shares=self.slopes(c.shares, np.ones(len(c.index), dtype=bool)),
            after=int(survive[min(c.after, len(survive) - 1)]),
        )

    def slopes(self, alphas: tuple[Alpha, ...], rows: BoolArray) -> tuple[Alpha, ...]:
        """Slopes of neurons that exist, in the order of the new neurons; the chosen rows of their values `(R, k)`."""
        out = []
        for a in alphas:
            neurons = self.alignment.neurons.get(a.node)
            if neurons is None or not len(a.index) or a.index.max() >= len(neurons):
                continue
            new = neurons[a.index]
            there = new >= 0
            if there.all() and np.all(new[1:] > new[:-1]):
                out.append(Alpha(self.alignment.nodes[a.node], _short(new), _part(a.value, rows)))
            elif there.any():
                order = np.flatnonzero(there)[np.argsort(new[there], kind="stable")]
                value = np.take(_part(a.value, rows), order, axis=1)
                out.append(Alpha(self.alignment.nodes[a.node], _short(new[order]), value))
        return tuple(out)

    def _neurons(self, nodes: IntArray, owner: IntArray, index: IntArray) -> tuple[IntArray, IntArray]:
        """The new node of each group of slopes, and the new neuron of each entry `index` of a group `owner`."""
        old = distinct(nodes)
        known = [self.alignment.neurons.get(k, np.zeros(0, dtype=np.int64)) for k in old.tolist()]
        length = np.array([len(a) for a in known], dtype=np.int64)
        flat = np.concatenate([*known, np.full(1, -1)])
        which = np.searchsorted(old, nodes)
        limit, start = length[which][owner], (np.cumsum(length) - length)[which][owner]
        new = flat[np.where(index < limit, start + index, len(flat) - 1)]
        to = np.array([self.alignment.nodes.get(k, -1) for k in old.tolist()], dtype=np.int64)
        return to[which], new


def _short(numbers: IntArray) -> IntArray:
    return numbers.astype(np.int32)


def _places(places: AnyArray, numbers: IntArray) -> AnyArray:
    """What the numbers are now; the last entry of `places` stands for numbers that are too large."""
    return np.asarray(places[np.minimum(numbers, len(places) - 1)])


def _taken(
    places: IntArray, rows: BoolArray, counts: IntArray, numbers: IntArray
) -> tuple[BoolArray, IntArray, IntArray]:
    """Which of the numbers that `counts` counts stay, how many of each chosen row, and what they are now."""
    new = _places(places, numbers)
    owner = np.repeat(np.arange(len(counts)), counts)
    stay = rows[owner] & (new >= 0)
    return stay, _short(np.bincount(owner[stay], minlength=len(counts))[rows]), _short(new[stay])


def _by_group(owner: IntArray, value: IntArray) -> AnyArray:
    """The order in which values of one owner ascend; owners ascend."""
    key = owner * (int(value.max(initial=0)) + 1) + value
    return np.arange(len(key)) if np.all(key[1:] > key[:-1]) else np.argsort(key, kind="stable")


def _part(values: AnyArray, rows: BoolArray, columns: BoolArray | None = None) -> AnyArray:
    """Chosen rows and columns of a matrix; what stays whole is not copied."""
    if not rows.all():
        values = np.compress(rows, values, axis=0)
    return values if columns is None or columns.all() else np.compress(columns, values, axis=1)


def _known_cuts(tree: Tree, alignment: Alignment) -> BoolArray:
    """(C,) which cuts are of neurons that exist."""
    keep = [np.zeros(0, dtype=bool)]
    for c in tree.cuts:
        neurons = alignment.neurons.get(c.node, np.zeros(0, dtype=np.int64))
        keep.append(np.append(neurons, -1)[np.minimum(c.index, len(neurons))] >= 0)
    return np.concatenate(keep)
