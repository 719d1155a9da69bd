"""Which stored trees can be walked on a case, and in which form. Nothing stored is believed: only its shape is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mucg4.errors import ProofError
from mucg4.model.proof import Cuts, Tightening, Tree
from mucg4.model.refutations import Refutations
from mucg4.ops.arrays import FloatArray, IntArray
from mucg4.ops.piecewise import TwoPiece
from mucg4.search.inputs import InputWay
from mucg4.search.phases import PhaseWay
from mucg4.search.run import CaseState
from mucg4.settings import Settings


def usable_trees(state: CaseState, trees: Sequence[Tree]) -> list[Tree]:
    """The stored trees of this case when together they answer for each conjunction once, else none."""
    own = [t for t in trees if t.case == state.number]
    every = tuple(range(state.objective.count))
    covered = sorted(c for t in own for c in (every if t.conjunctions is None else t.conjunctions))
    return own if covered == list(every) and all(fits(t, state) for t in own) else []


def fits(tree: Tree, state: CaseState) -> bool:
    """True when a stored tree speaks of neurons and conjunctions that exist here (nothing stored is believed)."""
    size = {k: s.stop - s.start for k, s in state.bounder.slices.items()} | {0: len(state.bounder.lo)}
    inner = tree.left >= 0
    count = state.objective.count
    try:
        table = tree.table
    except ProofError:
        return False
    return (
        _exist(tree.node[inner], tree.index[inner], size)
        and all(0 <= c < count for c in tree.conjunctions or ())
        and _refutations_fit(table, state, size, len(tree))
        and all(_tightening_fits(t, state, size, len(tree)) for t in tree.tightenings)
        and all(_cuts_fit(c, state) for c in tree.cuts)
        and (not tree.cuts or len(tree.conjunctions or range(count)) == 1)
    )


def _exist(node: IntArray, index: IntArray, size: dict[int, int]) -> bool:
    """Whether every component is one of its network node, `size` components of each."""
    known = np.zeros(max(size) + 2, dtype=np.int64)  # the last: nodes that do not exist
    known[list(size)] = list(size.values())
    limit = known[np.where((node >= 0) & (node < len(known)), node, -1)]
    return bool(np.all((index >= 0) & (index < limit)))


def _sizes(values: FloatArray) -> bool:
    """Whether all are finite and not negative."""
    return not values.size or bool(values.min() >= 0 and values.max() < np.inf)  # false for nan


def _refutations_fit(table: Refutations, state: CaseState, size: dict[int, int], nodes: int) -> bool:
    count = state.objective.count
    if not np.all(table.conjunction < count):
        return False
    rows = [state.objective.rows_of(c) for c in range(count)]
    widths = np.array([own.stop - own.start for own in rows], dtype=np.int64)
    numbers = all(map(_sizes, (table.weights, table.beta, table.multiplier)))
    return (
        numbers
        and bool(np.all(table.weight_count == widths[table.conjunction]))
        and _exist(np.repeat(table.slope_node, table.slope_count), table.slope_index, size)
        and bool(np.all(table.literal < nodes))
    )


def _cuts_fit(c: Cuts, state: CaseState) -> bool:
    """Whether cuts bound two-piece neurons by carriers that exist here."""
    network = state.bounder.network
    nodes = network.nodes
    if c.node not in network.nonlinear or not isinstance(nodes[c.node].op, TwoPiece):
        return False
    carriers = all(s.node == 0 or s.node in network.nonlinear for s in c.shares)
    pairs = [(c.index, c.node), *((s.index, s.node) for s in c.shares)]
    return carriers and all(bool(np.all(i < nodes[k].size)) for i, k in pairs)


def _tightening_fits(t: Tightening, state: CaseState, size: dict[int, int], nodes: int) -> bool:
    if t.node not in state.bounder.slices or t.node == 0 or not 0 <= t.conjunction < state.objective.count:
        return False
    own = state.objective.rows_of(t.conjunction)
    numbers = all(map(_sizes, (t.weights, t.beta, t.cut_weights)))
    neurons = [(t.index, t.node), *((a.index, a.node) for a in t.alpha)]
    return (
        numbers
        and t.weights.shape[1] == own.stop - own.start
        and all(bool(np.all(i < size.get(k, 0))) for i, k in neurons)
        and bool(np.all(t.literals < nodes))
    )


def parts(state: CaseState, tree: Tree) -> list[Tree]:
    """The tree in the form this case's search works in: one conjunction at a time when it splits phases."""
    covers = range(state.objective.count) if tree.conjunctions is None else tree.conjunctions
    if state.way.joint or len(covers) == 1:
        return [tree]
    return [replace(tree, conjunctions=(c,)) for c in covers]


def suited(settings: Settings, state: CaseState, tree: Tree) -> CaseState:
    """The case in the way in which the stored tree was searched, where settings and network allow that."""
    phases = bool(tree.tightenings or tree.cuts) if len(tree) == 1 else not tree.refresh[1:].any()
    way = PhaseWay if phases else state.way if len(tree) == 1 else InputWay
    possible = way.possible(state.bounder, state.root)
    return state.by(way) if possible and settings.split in ("auto", way.name) else state
