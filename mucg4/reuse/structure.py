"""A stored tree as nothing but a partition: its leaves are where a new search of another network starts.

This is how proofs are reused where only splits are kept (IVAN, arXiv 2304.01874), on this engine: the root's own work
is done for the network at hand, its region is divided as the stored tree divides it, and the search goes on in the
parts. No stored bound, dual or cut is looked at, and no root of a fresh search waits behind it. It is what the rest of
reuse is measured against (`Settings.reuse_upto`), never the better way.

What comes out is a tree like that of any search, for the checker to examine as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mucg4.model.proof import Tree
from mucg4.model.query import Witness
from mucg4.reuse.guard import GuardedArm, guarded
from mucg4.search.inputs import InputWay
from mucg4.search.loop import Search
from mucg4.search.parallel import drive
from mucg4.search.phases import PhaseWay
from mucg4.search.portfolio import solve
from mucg4.search.region import Batch, apply_literals
from mucg4.search.run import CaseState, Run, attack_of, new_search, root_work
from mucg4.settings import Settings


def from_structure(run: Run, trees: Sequence[Tree]) -> Witness | list[Tree]:
    """Search from the leaves of translated trees that answer for all cases. Raises as `solve_case`."""
    run.statistics.stored_leaves += sum(len(tree.leaves) for tree in trees)

    def arm(state: CaseState) -> StructuredArm | None:
        own = [tree for tree in trees if tree.case == state.number]
        return guarded(run, lambda: StructuredArm(run, state, own)) if own else None

    return solve(run, arm)


class StructuredArm(GuardedArm):
    """Searches of one case from its root, each divided as a stored tree is before it goes on."""

    handicap = 0.0

    def __init__(self, run: Run, state: CaseState, trees: Sequence[Tree]) -> None:
        self._states: list[CaseState] = []
        self._trees: list[Tree] = []
        searches, masks, attack = [], [], attack_of(run, state.case)
        every = np.arange(state.objective.count)
        for tree in trees:
            own = suited(run.settings, state, tree)
            answers = np.isin(every, every if tree.conjunctions is None else tree.conjunctions)
            for mask in [answers] if own.way.joint else [every == c for c in np.flatnonzero(answers)]:
                self._states.append(own)
                self._trees.append(tree)
                searches.append(new_search(run, own, attack))
                masks.append(mask)
        super().__init__(run, state.number, searches, masks)

    @property
    def is_fresh(self) -> bool:
        """True: the root's work was done for this network, so that no other arm of the same way is to follow."""
        return True

    def _begin(self) -> Witness | None:
        for state, search, mask in zip(self._states, self.searches, self.masks, strict=True):
            search.begin(root_work(state, mask))
            if search.witness is not None:
                return search.witness
        waiting, together = [s for s in self.searches if s.pending is not None], self.run.workers
        for first in range(0, len(waiting), together):  # one turn each: the dear steps at the root
            witness = drive(waiting[first : first + together], together, self.run.budget.work + 1)
            if witness is not None:
                return witness
        for search, tree in zip(self.searches, self._trees, strict=True):
            if len(search.frontier):
                self.run.statistics.replay_regions += divide(search, tree)
        return None


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
    search.take(({}, waiting))
    return len(waiting.ids)


def suited(settings: Settings, state: CaseState, tree: Tree) -> CaseState:
    """The case in the way in which the stored tree was searched, where settings and network allow that."""
    phases = bool(tree.tightenings or tree.cuts) if len(tree) == 1 else not tree.refresh[1:].any()
    way = PhaseWay if phases else state.way if len(tree) == 1 else InputWay
    possible = way.possible(state.bounder, state.root)
    return state.by(way) if possible and settings.split in ("auto", way.name) else state
