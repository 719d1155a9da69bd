"""The rungs: what is tried on the regions of a stored tree, in order, before they are left to the search.

A rung takes the regions of one batch of the walk (`mucg4.reuse.stored_walk`) that are still open and hands back
`(closed, open)`: every region in exactly one of the two. Its contract, on which the soundness of reuse rests:

* nothing stored is believed: what a rung closes, it closes by bounds of this network on the region at hand;
* what closes a conjunction on a region is in the search's recorder when the rung returns, for the checker to follow;
  the conjunction leaves the region's `open` mask, and a region is closed when its mask is empty or it has no point;
* what it hands back as open it has not split, and cut only where nothing unsafe was lost.

`RUNGS` is the table, in order. Statistics count the stored leaves that a rung closed under its own name. A new rung is
a function here and a row there, and its name in `mucg4.model.verdict.RUNGS`. The rung `witness` comes before any tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mucg4.bound.tighten import Ascent, Duals
from mucg4.model.proof import Refutation
from mucg4.ops.arrays import BoolArray, IntArray
from mucg4.search.region import Batch

if TYPE_CHECKING:
    from mucg4.reuse.stored_walk import Replay

FEW = 8  # batches up to this size are near the root or cheap anyway; not measured


@dataclass
class Visit:
    """Regions of one batch of a walk: the stored tree nodes `at (B,)` they stand at, their `row (B,)` in the batch."""

    at: IntArray
    work: Batch
    row: IntArray

    def __len__(self) -> int:
        return len(self.at)

    def take(self, which: IntArray) -> Visit:
        """The chosen regions."""
        return Visit(self.at[which], self.work.take(which), self.row[which])

    def parted(self, chosen: BoolArray) -> tuple[Visit, Visit]:
        """The regions marked in `chosen (B,)`, and the others; what stays whole is not copied."""
        if not chosen.any() or chosen.all():
            none = self.take(np.zeros(0, dtype=np.int64))
            return (self, none) if chosen.any() else (none, self)
        return self.take(np.flatnonzero(chosen)), self.take(np.flatnonzero(~chosen))


Closing = Callable[["Replay", Visit], tuple[Visit, Visit]]


@dataclass(frozen=True)
class Rung:
    """A row of the table. `leaves`: tried at the stored tree's leaves only, else at its inner nodes, too."""

    name: str
    close: Closing
    leaves: bool
    means: str


def stored_duals(walk: Replay, visit: Visit) -> tuple[Visit, Visit]:
    """Evaluate the refutations stored at these tree nodes with their weights, slopes and multipliers, one row each."""
    work = visit.work
    pairs = [(b, r) for b, k in enumerate(visit.at.tolist()) for r in walk.evidence.get(k, ())]
    pairs = [(b, r) for b, r in pairs if r.conjunction < work.open.shape[1] and work.open[b, r.conjunction]]
    if pairs:
        rows = np.array([b for b, _ in pairs])
        part = visit.take(rows)
        ascent = walk.ascent(part)
        duals, bounded = walk.evaluated(ascent, _laid_out(walk, ascent, [r for _, r in pairs], part.work))
        closed = bounded.value > 0
        for c in {r.conjunction for _, r in pairs}:
            own = closed & np.array([r.conjunction == c for _, r in pairs])
            walk.record(part.work, ascent, duals, bounded, own, c)
            work.open[rows[own], c] = False
    return visit.parted(~work.open.any(axis=1))


def _laid_out(walk: Replay, ascent: Ascent, refutations: Iterable[Refutation], part: Batch) -> Duals:
    """Stored weights, slopes and multipliers laid out for these regions, as the compute's neurons."""
    refutations = list(refutations)
    objective, slices, planes = walk.state.objective, walk.state.bounder.slices, len(walk.planes)
    weights = np.zeros((len(refutations), len(objective.owner)))
    duals = walk.compute.plain(ascent.default_duals(weights))
    duals.cuts = np.zeros((len(refutations), planes))
    for b, r in enumerate(refutations):
        if r.cuts is not None:
            known = r.cuts[0] < planes
            duals.cuts[b, r.cuts[0][known]] = r.cuts[1][known]
        own = objective.rows_of(r.conjunction)
        width = own.stop - own.start
        weights[b, own] = np.asarray(r.weights[:width] + (0.0,) * (width - len(r.weights)))
        for a in r.alpha:
            if a.node in slices:
                duals.alpha[b, slices[a.node].start + a.index] = a.value / 255.0
        for literal, value in r.beta:
            position = walk.position(literal)
            if position is not None and part.phases[b, position]:
                duals.beta[b, position] = value
    return walk.compute.narrowed(duals)


def literals(walk: Replay, visit: Visit) -> tuple[Visit, Visit]:
    """What the regions' literals alone close: no point is left, or single constraints with default slopes are refuted.

    The latter in batches of a FEW regions only: those near the root stand for many leaves.
    """
    if len(visit) <= FEW:
        walk.search.close_single_constraints(visit.work)
    return visit.parted(~visit.work.open.any(axis=1) | visit.work.regions.empty())


def reoptimised(walk: Replay, visit: Visit) -> tuple[Visit, Visit]:
    """The search's own bounds, dual ascent from default slopes among them; what is left open joins its frontier.

    A bare root is begun as from scratch: its dear steps wait until the arm goes on.
    """
    search, statistics = walk.search, walk.run.statistics
    regions, before, nodes = statistics.regions, len(search.frontier), search.recorder.count
    (search.begin if walk.is_bare else search.bound)(visit.work)
    statistics.replay_regions += statistics.regions - regions
    statistics.regions = regions
    if search.witness is not None or search.pending is not None:
        return visit.parted(np.zeros(len(visit), dtype=bool))
    left = search.frontier.content(("ids",)).get("ids", np.zeros(0, dtype=np.int64))[before:]
    while (left >= nodes).any():  # a part of its region
        left = np.where(left >= nodes, search.recorder.parent[left], left)
    return visit.parted(~np.isin(visit.work.ids, left))


RUNGS = (
    Rung("duals", stored_duals, False, "stored duals, one evaluation each"),
    Rung("literals", literals, False, "the literals of the stored tree without its duals"),
    Rung("reoptimised", reoptimised, True, "the search's own bounds, with duals of its own"),
)
