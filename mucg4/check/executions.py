"""Whether a proof holds for executions in the model's own precision as well: a walk with loosened constraints.

The walk is that of `mucg4.check.walk`, with three differences. (1) On each region every constraint is loosened by what
an execution may deviate there (`mucg4.check.deviation`). An execution that is unsafe at x has `g_i(x) <= slack_i` in
real arithmetic, with the slack of every region that holds x, so with the least one on the path. By induction no
refutation, clip, tightening or cut on the path excludes such an x; so where all leaves are closed there is none.
Emptiness speaks of the real values at such points. What an earlier walk concluded for the constraints as stated is not
used. Ties are not: a loosened constraint has no exact value.
(2) The deviation shrinks with the region, and a refutation holds below its place in the tree, too. So the last one
of each conjunction on the path is tried where there is no own one, and
(3) a leaf that stays open is halved, input by input, and its refutations are tried on the parts.
"""

from __future__ import annotations

from dataclasses import field
from functools import cached_property
from math import inf

import numpy as np

from mucg4.check.deviation import Deviation
from mucg4.check.enclose import Enclosure, Frame, Rows
from mucg4.check.walk import Places, _Plan, _Regions, _report, _Walk, _walked
from mucg4.errors import ProofError
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof
from mucg4.model.query import Query
from mucg4.model.verdict import CheckReport
from mucg4.ops.base import Array
from mucg4.records import dataclass

HALVINGS = 40  # of a leaf's region; not measured
# of tree nodes and conjunctions; where there are more, refutations are tried at their places only; not measured
MOST_PAIRS = 2**22
PIECES = 256  # halves of one tree's leaves, besides half as many as leaves, in one unit of effort; not measured


def check_executions(
    proof: Proof, query: Query, deviation: Deviation, budget: Budget | None = None, effort: int = 1, workers: int = 1
) -> CheckReport:
    """As `mucg4.check.walk.check`, but accepted means more: no execution in the model's precision is unsafe.

    Ends with the first leaf that stays open; more `effort` halves leaves more often. Never raises for a bad proof, a
    network without rules or a spent budget.
    """
    own = (budget or Budget()).share(inf)  # a leaf that stays open ends it

    def make(plans: list[_Plan]) -> list[Executions]:
        if deviation.reason:
            raise ProofError(deviation.reason)
        enclosure = Enclosure(query.network)
        roots: dict[int, tuple[Array, Array]] = {}
        return [Executions(p, enclosure, roots, own, deviation=deviation, effort=effort) for p in plans]

    walks, problem, stopped = _walked(proof, query, own, workers, make)
    for walk in walks:
        walk.rejected = list({leaf: (leaf, conjunction) for leaf, conjunction in walk.rejected}.values())
        leaves = int(walk.plan.leaves[0])
        walk.checked = max(0, min(walk.checked >> HALVINGS, leaves - len(walk.rejected)))
    return _report(proof, walks, problem, stopped)


@dataclass(eq=False)
class Executions(_Walk):
    """One pass over one tree with loosened constraints.

    `checked` counts parts of leaves, in units of a leaf that was halved HALVINGS times.
    """

    deviation: Deviation = field(kw_only=True)
    effort: int = 1
    pieces: int = 0  # halves of leaves so far
    influence: Array | None = None  # (B, inputs) sizes of the coefficients of refutations that were tried on the batch

    def _loosen(self, batch: _Regions, frame: Frame) -> None:
        sharp = (self.plan.tree.left[batch.at] < 0) & np.any(batch.open, axis=1)  # elsewhere it pays too little
        here = self.deviation.bound(frame.lower, frame.upper, self.plan.case, sharp)
        frame.slack = batch.slack = np.fmin(batch.slack, here)
        self.influence = np.zeros(batch.lo.shape)

    def _refutations(self, at: Array) -> tuple[Array, Array]:
        if len(self.plan.parent) * len(self.constraints) > MOST_PAIRS:
            return super()._refutations(at)
        pairs = self.latest[at]  # (B, C) the tree nodes whose refutations are tried
        where, conjunction = np.nonzero(pairs >= 0)
        every, owner = self.places.among(pairs[where, conjunction] * len(self.constraints) + conjunction)
        return every, where[owner]

    @cached_property
    def places(self) -> Places:
        """Refutations by tree node and conjunction: group `at * C + conjunction`."""
        table, count = self.plan.table, len(self.constraints)
        return Places.of(table.at.astype(np.int64) * count + table.conjunction, len(self.plan.parent) * count)

    @cached_property
    def latest(self) -> Array:
        """(N, C) the last tree node on the path that has refutations of the conjunction, -1 where there is none."""
        table, own = self.plan.table, np.full((len(self.plan.parent), len(self.constraints)), -1, dtype=np.int64)
        own[table.at, table.conjunction] = table.at
        jump = np.maximum(self.plan.parent, 0)
        while np.any(jump):  # each round looks twice as far up
            own = np.where(own < 0, own[jump], own)
            jump = jump[jump]
        return np.where(own < 0, own[0], own)

    def _tried(self, group: Array, region: Array, rows: Rows, value: Array) -> None:
        assert self.influence is not None
        self.influence[region] = np.maximum(self.influence[region], abs(rows.coef[0]))

    def _close(self, batch: _Regions) -> None:
        whole = batch.depth == 0
        self.checked += int(self.plan.leaves[batch.at[whole]].sum()) << HALVINGS
        self.checked += sum(1 << (HALVINGS - depth) for depth in batch.depth[~whole].tolist())

    def _halve(self, batch: _Regions, stuck: Array) -> _Regions | None:
        """Both halves of every region: of the input that moves the refutations most, else of the widest one."""
        known = np.all(np.isfinite(batch.slack[stuck]), axis=1) & (batch.depth[stuck] < HALVINGS)
        self.pieces += 2 * len(stuck)
        most = self.effort * (PIECES + int(self.plan.leaves[0]) // 2)
        if not np.all(known) or self.pieces > most:
            return None
        part, case = batch.take(np.tile(stuck, 2)), self.plan.case
        assert self.influence is not None
        width = part.hi - part.lo
        moved, seen = width * np.tile(self.influence[stuck], (2, 1)), width / np.fmax(case.box.hi - case.box.lo, 1e-300)
        axis = np.where(np.any(moved > 0, axis=1)[:, None], moved, seen).argmax(axis=1)
        every, left = np.arange(len(axis)), np.arange(len(axis)) < len(stuck)
        middle = part.lo[every, axis] + width[every, axis] / 2
        part.hi[every[left], axis[left]] = middle[left]
        part.lo[every[~left], axis[~left]] = middle[~left]
        part.depth = part.depth + 1
        return part

    def _reject(self, batch: _Regions) -> None:
        super()._reject(batch)
        self.budget.interrupted = f"leaf {self.rejected[0][0]} does not hold for executions in the model's precision"
