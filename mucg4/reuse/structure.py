"""A stored tree as nothing but a partition: its leaves are where a new search of another network starts.

This is how proofs are reused where only splits are kept (IVAN, arXiv 2304.01874), on this engine. No stored refutation,
tightening or cut is looked at. It is what the rest of reuse is measured against (`Settings.reuse_upto`), never the
better way, so what the engine gains from the root and from parents' bounds has to be there as well:

- Where inputs are split the checker walks the tree without its evidence, so that bounds are inherited. Measured on a
  network of five inputs with 7 466 leaves: without, bounding the leaves alone took longer than the search from scratch.
- Where phases are split the root's own work is done for the network at hand; then its region is divided as the stored
  tree divides it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mucg4.model.proof import Tree, single_leaf
from mucg4.search.inputs import InputWay
from mucg4.search.loop import Search
from mucg4.search.phases import PhaseWay
from mucg4.search.region import Batch, apply_literals
from mucg4.search.run import CaseState
from mucg4.settings import Settings


def outline(tree: Tree) -> Tree:
    """What of a tree the checker walks before the search: without evidence; where phases are split its root alone."""
    if splits_phases(tree):
        return replace(single_leaf(), case=tree.case, conjunctions=tree.conjunctions)
    return replace(tree, refutations=(), tightenings=(), cuts=())


def splits_phases(tree: Tree) -> bool:
    """True for a tree with evidence or splits that only a search by phases makes."""
    return bool(tree.tightenings or tree.cuts) if len(tree) == 1 else not bool(tree.refresh[1:].any())


def splits_inputs(tree: Tree) -> bool:
    """True for a tree of a search by inputs that has split."""
    return len(tree) > 1 and not splits_phases(tree)


def suited(settings: Settings, state: CaseState, tree: Tree) -> CaseState:
    """The case in the way in which the stored tree was searched, where settings and network allow that."""
    way = PhaseWay if splits_phases(tree) else state.way if len(tree) == 1 else InputWay
    possible = way.possible(state.bounder, state.root)
    return state.by(way) if possible and settings.split in ("auto", way.name) else state


def divide(search: Search, tree: Tree) -> int:
    """Split the open root of a search as the tree is split; how many regions wait to be bounded then."""
    level, work = np.zeros(1, dtype=np.int64), search.way.unpack(search.frontier.pop(1))
    parts: list[Batch] = []
    while True:
        inner = tree.left[level] >= 0
        if not inner.all():
            parts.append(work.take(np.flatnonzero(~inner)))
        if not inner.any():
            break
        level, work = level[inner], work.take(np.flatnonzero(inner))
        literals = tree.node[level], tree.index[level], tree.threshold[level]
        ids = search.recorder.split(work.ids, *literals, search.way.refreshes)
        work = work.take(np.tile(np.arange(len(level)), 2))
        upper = np.arange(len(work.ids)) >= len(level)
        node, index, threshold = (np.tile(a, 2) for a in literals)
        apply_literals(search.bounder, work.regions, node, index, threshold, upper, work.phases)
        work.ids = np.concatenate(ids)
        level = np.concatenate([tree.left[level], tree.right[level]])
    waiting = parts[0]
    for part in parts[1:]:
        waiting = waiting.joined(part)
    waiting.parent_value[:] = np.nan  # the root's bound is many splits away: it would pass for what one split gains
    search.take(({}, waiting))
    return len(waiting.ids)
