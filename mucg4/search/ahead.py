"""The careful choice of an input and of where it is cut: the children of several choices are bounded first.

For proofs that will be checked more often than they are found (`store compact`). The estimate of `mucg4.search.split`
names the inputs, and what the hardest open conjunctions of both children lack says which cut is best; what a child has
to spare counts for nothing. Inputs of much smaller estimates are not tried: the children's bounds alone see no further
than one split, and a search that goes by them stalls where halving an input pays later (measured: a random network of
4 inputs, 253 regions by the estimate, more than 40 000 by the children of any three inputs; ACAS Xu 3_3, with those of
all five, is not decided). Measured on ACAS Xu, leaves by the estimate, with rivals halved, with rivals cut at three
places, in about three times the time: network 1_1 under property 6: 2 452, 2 027, 1 762; 2_9 under property 1: 349,
292, 266; 3_3 under property 2: 7 466, 3 849, 3 788, where it is the steps of ascent that halve the tree.
"""

from __future__ import annotations

import numpy as np

from mucg4.bound.compute import Compute
from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Regions
from mucg4.ops.arrays import NUMPY
from mucg4.ops.base import Array

INPUTS = 3  # with the best estimates; measured: 2 leave 3 % more regions
RIVAL = 0.25  # least share of the best estimate; measured: see above, and 0.5 leaves 3 % more regions
PLACES = (0.5, 0.4, 0.6)  # of the cut, as shares of the range; measured: 0.3 and 0.7 save 3 % more
STEPS = 40  # of ascent in every region; measured: 16 leave 6 400 leaves of 3_3, 100 save 2 % more


def looked_ahead(
    compute: Compute, objective: Objective, regions: Regions, open_: Array, score: Array, first: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Inputs `(B,)` and where each is cut: `first`, or what leaves less to do in the children.

    `regions` (B of them, on the compute's backend) with the conjunctions `open_ (B, K)`; `score (B, d)`: estimated
    gains of halving each input; `objective`: the compute's, in NumPy.
    """
    index, threshold = (a.copy() for a in first)
    if not len(index):
        return index, threshold
    lo, hi, every = NUMPY.place(regions.lo), NUMPY.place(regions.hi), np.arange(len(index))
    best = np.full(len(index), -np.inf)
    for column in np.argsort(-score, axis=1, kind="stable")[:, :INPUTS].T:
        low, high = lo[every, column], hi[every, column]
        rival = score[every, column] >= RIVAL * score.max(axis=1)
        for share in PLACES:
            at = (1 - share) * low + share * high
            lack = sum(_lack(compute, objective, _child(compute, regions, column, at, up), open_) for up in (0, 1))
            better = rival & (low < at) & (at < high) & (lack > best)
            index[better], threshold[better], best[better] = column[better], at[better], lack[better]
    return index, threshold


def _child(compute: Compute, regions: Regions, column: Array, at: Array, upper: int) -> Regions:
    """The lower or the upper child of each region, when input `column (B,)` is cut at `at (B,)`."""
    every, column, at = (compute.backend.place(a) for a in (np.arange(len(column)), column, at))
    child = regions.take(every)
    (child.lo if upper else child.hi)[every, column] = at
    return child


def _lack(compute: Compute, objective: Objective, child: Regions, open_: Array) -> Array:
    """(B,) bounds of the hardest open conjunctions, at most 0; 0 where the child is empty. `child` shrinks in place."""
    refreshed = compute.bounder.refresh(child)
    value = compute.objective.values(compute.bounder, child, refreshed, compute.backend.place(open_))
    hardest = np.where(open_, objective.best(NUMPY.place(value)), np.inf).min(axis=1)
    return np.where(NUMPY.place(child.empty()), 0.0, np.minimum(hardest, 0.0))
