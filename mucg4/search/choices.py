"""Cases of many disjunctions, made on demand: bounds on their boxes tell which choices need no further ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder
from mucg4.limits.budget import Budget
from mucg4.model.network import Network
from mucg4.model.query import Case, Query
from mucg4.ops.arrays import BoolArray
from mucg4.search.boxes import joined
from mucg4.search.run import Run

BATCH = 64  # boxes that are bounded together; not measured


def refine(run: Run) -> None:
    """Replace the query's cases by ones that leave no disjunction out, where that takes not too many."""
    query = refined(run.query, run.budget)
    if query is None:
        run.statistics.warnings.append("too many choices of disjunctions: some are left out of what is proved")
        return
    run.query = query
    run.report(f"{sum(len(c.conjunctions) for c in query.cases)} choices of disjunctions cover all")


def refined(query: Query, budget: Budget) -> Query | None:
    """The query with cases that leave no disjunction out; None where these are too many."""
    if query.finer is None:
        return query
    cases = query.finer(lambda cases: impossible(query.network, budget, cases))
    return None if cases is None else replace(query, cases=cases, finer=None)


def impossible(network: Network, budget: Budget, cases: Sequence[Case]) -> list[BoolArray]:
    """Of each case which conjunctions, `(K,)`, a single constraint with default slopes refutes on the whole box."""
    out: list[BoolArray] = []
    if not cases:
        return out
    lo, hi = (np.array([getattr(c.box, side) for c in cases]) for side in ("lo", "hi"))
    bounder = Bounder(network, lo.min(axis=0), hi.max(axis=0), budget.poll)
    root = bounder.root()
    for at in range(0, len(cases), BATCH):
        budget.poll()
        some = list(cases[at : at + BATCH])
        regions = root.take(np.zeros(len(some), dtype=np.int64))
        regions.lo, regions.hi = lo[at : at + BATCH].copy(), hi[at : at + BATCH].copy()
        together, owner = joined(some)
        objective, own = Objective(together), owner[None] == np.arange(len(some))[:, None]
        best = objective.best(objective.values(bounder, regions, bounder.refresh(regions), own))
        out += [best[k, own[k]] > 0 for k in range(len(some))]
    return out
