"""Where the checker rejected a leaf's own refutation: those of near leaves, which may hold there.

A search leaves a region as soon as something refutes it, by however little. Leaves side by side are refuted by much the
same duals, some by far more; so where a leaf's own refutation fails on a variant, a neighbour's often holds. Measured
on the 7 466 leaves of ACAS Xu 3_3, property 2:

=========  ========  =============  =======================  ====================
variant    rejected  near ones hold  regions without, with   CPU seconds, the same
=========  ========  =============  =======================  ====================
tune3      1 105     911             3 289, 558              2.05, 1.58
bf16       788       523             3 006, 1 477            2.14, 1.77
prune10    1 696     1 200           8 184, 3 832            3.84, 2.92
=========  ========  =============  =======================  ====================

Bounds are the checker's own, so that it accepts what is found here. Only where inputs are split: what refutes a region
of phases are its own literals. Measured on an int8 copy of mnist 256x4, property 14 at 0.05: 1 of 150.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mucg4.check.margins import Gauge, Places, Plan
from mucg4.check.resume import Open
from mucg4.check.walk import planned
from mucg4.limits.budget import Budget
from mucg4.model.query import Query
from mucg4.model.refutations import Refutations
from mucg4.ops.arrays import IntArray, distinct_places

# refutations before and behind a leaf that are tried, the nearest first; measured as above on prune10: 1, 2, 4, 8, 16
# leave 6 133, 5 163, 4 327, 3 832, 3 584 regions in 3.45, 3.08, 2.95, 2.92, 2.88 s
REACH = 8
TOGETHER = 512  # refutations that are tried at a time, where few leaves are open of more neighbours each; not measured


def with_near(query: Query, o: Open, budget: Budget) -> tuple[Open, Refutations]:
    """The open regions that are left, and refutations of the others, which are those of near leaves.

    Raises `BudgetError`, and `ProofError` for a network that the checker has no rules for.
    """
    table = o.tree.table.without("core_count", "cut_count")
    plan, gauge = planned(o.tree, query), Gauge(query, budget)
    places = Places(o.at, o.lo, o.hi, o.low, o.up, o.open, o.slots, o.planes, o.shift)
    open_, found = o.open.copy(), [table.take(np.zeros(0, dtype=np.int64))]
    order = np.argsort(plan.first[table.at], kind="stable")
    for conjunction in np.flatnonzero(open_.any(axis=0)).tolist():
        rows = order[table.conjunction[order] == conjunction]
        here = np.searchsorted(plan.first[table.at[rows]], plan.first[o.at])
        steps = sorted(range(-REACH, REACH + 1), key=abs)
        while steps and open_[:, conjunction].any():
            still = np.flatnonzero(open_[:, conjunction])
            some = np.array(steps[: max(1, TOGETHER // len(still))])
            steps = steps[len(some) :]
            which, place = np.tile(still, len(some)), (some[:, None] + here[still]).ravel()
            inside = (place >= 0) & (place < len(rows))
            which, near = which[inside], rows[place[inside]]
            other = table.at[near] != o.at[which]  # a leaf's own was rejected
            which, near = which[other], near[other]
            moved = _moved(plan, table.take(near), o.at[which])
            value = gauge.elsewhere(plan, places, moved, which)
            holds = np.flatnonzero(value > 0)
            holds = holds[distinct_places(which[holds])[1]]  # one for each, of the nearest
            found.append(replace(moved.take(holds), margin=value[holds]))
            open_[which[holds], conjunction] = False
    left = np.flatnonzero(open_.any(axis=1))
    chosen = {f: getattr(o, f)[left] for f in ("at", "lo", "hi", "low", "up")}
    before = o.before[0][left], o.before[1][left]
    return replace(o, **chosen, open=open_[left], before=before), Refutations.join(found)


def _moved(plan: Plan, table: Refutations, at: IntArray) -> Refutations:
    """Refutations at other tree nodes `at (R,)`, without the literals that are not on the path to these."""
    node = np.repeat(at, table.beta_count)
    stays = (plan.first[table.literal] <= plan.first[node]) & (plan.first[node] < plan.last[table.literal])
    owner = np.repeat(np.arange(len(table)), table.beta_count)
    return replace(
        table,
        at=at.astype(np.int32),
        beta_count=np.bincount(owner[stays], minlength=len(table)).astype(np.int32),
        literal=table.literal[stays],
        beta=table.beta[stays],
    )
