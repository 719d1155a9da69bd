"""Refutations between those who find them (ways of splitting, ties, programs) and the recorder.

What is found is returned, copied from the regions as they were; the loop records it. Both kinds have `record`.
"""

from __future__ import annotations

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.bound.tighten import Duals
from mucg4.ops.base import Array
from mucg4.records import dataclass
from mucg4.search.record import Recorder
from mucg4.search.region import Batch


@dataclass(frozen=True)
class ByConstraints:
    """Pairs of a region and a conjunction that one constraint refutes with default slopes, `(R,)` each.

    `constraint` counts inside its conjunction.
    """

    ids: Array
    conjunction: Array
    constraint: Array
    margin: Array

    def record(self, recorder: Recorder) -> None:
        """Put it into the proof."""
        recorder.close_by_constraints(self.ids, self.conjunction, self.constraint, self.margin)


@dataclass(frozen=True)
class ByDuals:
    """R regions on which one conjunction is refuted by optimised duals.

    `ids, margin (R,)`, `weights (R, m)` on the conjunction's own constraints, `unstable (R, P)` neurons whose slope
    matters, `default (R, P)` slopes that need no record; column c of `duals.cuts` belongs to the cut with number
    `cuts[c]`. All of it in NumPy, neurons as the search's bounder numbers them.
    """

    ids: Array
    conjunction: int
    weights: Array
    duals: Duals
    unstable: Array
    default: Array
    margin: Array
    cuts: Array

    @staticmethod
    def of(
        objective: Objective,
        work: Batch,
        conjunction: int,
        duals: Duals,
        default: Array,
        bound: Array,
        closed: Array,
        cuts: Array | None = None,
    ) -> ByDuals:
        """What the duals of regions say of those marked in `closed (B,)`; `bound (B,)` becomes the margin."""
        which = np.flatnonzero(closed)
        return ByDuals(
            work.ids[which],
            conjunction,
            duals.weights[which, objective.rows_of(conjunction)],
            duals.take(which),
            (work.regions.low[which] < 0) & (work.regions.up[which] > 0),
            default[which],
            bound[which],
            np.zeros(0, dtype=np.int64) if cuts is None else cuts,
        )

    def record(self, recorder: Recorder) -> None:
        """Put it into the proof."""
        if len(self.ids):
            literals = recorder.literals(self.ids)
            recorder.close_duals(
                self.ids,
                self.conjunction,
                self.weights,
                self.duals,
                self.unstable,
                self.default,
                self.margin,
                literals,
                self.cuts,
            )


Refuted = ByConstraints | ByDuals
