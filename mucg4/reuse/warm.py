"""What a search needs to go on in the open regions of a stored tree: their bounds, phases, cuts and duals.

Bounds and cuts are the checker's own (`mucg4.check.resume.Open`), so that what is found with them it finds again.
Stored duals are where ascent begins; any are sound.
"""

from __future__ import annotations

import numpy as np

from mucg4.bound.compute import Compute
from mucg4.bound.inner_loops import row_norms
from mucg4.bound.planes import CutPlanes
from mucg4.bound.propagate import Bounder, Regions
from mucg4.check.resume import Open
from mucg4.model.proof import upward
from mucg4.ops.arrays import AnyArray, BoolArray, FloatArray, IntArray
from mucg4.search.run import CaseState
from mucg4.search.way import Stored

Entries = tuple[AnyArray, AnyArray, AnyArray]


def regions_of(bounder: Bounder, o: Open, refreshed: bool) -> Regions:
    """The open regions `(B,)`, neurons as the search's bounder numbers them.

    Where neurons' bounds are `refreshed` in the region: without what the checker's refreshing found there, for the
    proof knows of no second time.
    """
    low, up = o.before if refreshed else (o.low, o.up)
    return Regions(o.lo.copy(), o.hi.copy(), placed(bounder, o.slots, o.lo, low), placed(bounder, o.slots, o.hi, up))


def root_of(state: CaseState, o: Open) -> Regions:
    """The case's box with bounds that hold in all regions of the tree."""
    ends = zip((state.root.lo, state.root.hi), o.root, strict=True)
    low, up = (placed(state.bounder, o.slots, end, side) for end, side in ends)
    return Regions(state.root.lo, state.root.hi, np.maximum(low, state.root.low), np.minimum(up, state.root.up))


def placed(bounder: Bounder, slots: dict[int, slice], ends: FloatArray, bounds: FloatArray) -> FloatArray:
    """One side of bounds `(B, width)` at the checker's `slots` as the search's bounder numbers neurons.

    `ends (B, inputs)` is the same side of the boxes: an input may be a pre-activation, too.
    """
    out = np.empty((len(bounds), bounder.width))
    for k, own in bounder.slices.items():
        out[:, own] = bounds[:, slots[k]] if k else ends
    return out


def phases_of(bounder: Bounder, o: Open) -> IntArray:
    """(B, P) int8: +1 / -1 where a literal on the path fixes a phase."""
    tree, parents = o.tree, o.tree.parents()
    out = np.zeros((len(o.at), bounder.width), dtype=np.int8)
    start = np.zeros(len(bounder.network.nodes), dtype=np.int64)
    for k, own in bounder.slices.items():
        start[k] = own.start
    for every, at in upward(parents, o.at):
        up = parents[at]
        phase = (up >= 0) & (tree.node[up] > 0) & (tree.threshold[up] == 0.0)
        position = start[tree.node[up]] + tree.index[up]
        out[every[phase], position[phase]] = np.where(tree.right[up] == at, 1, -1)[phase]
    return out


def cut_planes(compute: Compute, o: Open) -> CutPlanes:
    """The tree's cuts as the checker derived them; none where the network is folded: splits of inputs use none."""
    bounder, there, derived = compute.bounder, compute.backend, len(o.shift)
    if not derived or compute.fold is not None:
        return CutPlanes.none(bounder.lo)
    nodes, neuron = bounder.network.nodes, []
    for c in o.tree.cuts:
        neuron.append(bounder.slices[nodes[c.node].inputs[0]].start + c.index.astype(np.int64))
    coeffs, offset = {k: there.array(a) for k, a in o.planes.items()}, there.array(o.shift)
    size = abs(offset)
    for k, a in coeffs.items():
        size = size + row_norms(a) * bounder.scales.norm[k]
    return CutPlanes(coeffs, offset, size, np.concatenate(neuron)[:derived], np.arange(derived))


def stored_duals(state: CaseState, o: Open, mask: BoolArray) -> Stored:
    """The last refutation of the conjunctions `mask (K,)` that is stored at each open tree node, in arrays."""
    tree, objective, bounder = o.tree, state.objective, state.bounder
    table, parents = tree.table, tree.parents()
    own = np.flatnonzero(mask[table.conjunction])
    last = np.full(len(tree), -1, dtype=np.int64)
    last[table.at[own]] = own
    which = last[o.at]
    rows = np.flatnonzero(which >= 0)
    weights = np.full((len(o.at), len(objective.owner)), np.nan)
    alpha: list[Entries] = []
    beta: list[tuple[int, int, float]] = []
    cuts: list[Entries] = []
    for b in rows.tolist():
        r = table[int(which[b])]
        weights[b] = 0.0
        weights[b, objective.rows_of(r.conjunction)] = r.weights
        for a in r.alpha:
            position = bounder.slices[a.node].start + a.index.astype(np.int64)
            alpha.append((np.full(len(position), b), position, a.value / 255.0))
        for literal, value in r.beta:
            split = int(parents[literal])
            if tree.node[split] > 0 and tree.threshold[split] == 0.0:
                beta.append((b, bounder.slices[int(tree.node[split])].start + int(tree.index[split]), value))
        if r.cuts is not None:
            cuts.append((np.full(len(r.cuts[0]), b), r.cuts[0].astype(np.int64), r.cuts[1]))
    none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)

    def joined(parts: list[Entries]) -> Entries:
        row, column, value = (np.concatenate(list(x)) for x in zip(none, *parts, strict=True))
        return row, column, value

    each = tuple(np.array(x) for x in zip(*beta, strict=True)) if beta else none
    return Stored(weights, joined(alpha), (each[0], each[1], each[2]), joined(cuts))
