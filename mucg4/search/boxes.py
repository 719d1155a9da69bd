"""Queries of many boxes: those that fall at once are decided in batches.

A property that is a disjunction over thousands of small boxes (nn4sys: one per key range) has a case for each. Opening
a case, attacking and bounding it takes some fifteen milliseconds even where one backward row decides it. Here the cases
are regions of one bounder on their common hull: a few points of each are tried, then all are bounded together, each
with its own constraints. What stays open is searched case by case.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder, Regions
from mucg4.gate.witness import replay_witness
from mucg4.model.proof import Tree
from mucg4.model.query import Case, Witness
from mucg4.search.attack import Attack
from mucg4.search.record import Recorder
from mucg4.search.run import Run

MANY = 8  # cases from which this pays; not measured
POINTS = 4  # tried in each box, one of them its centre; not measured
BATCH, CELLS = 256, 1 << 22  # most cases, and most numbers per array, handled together; not measured


def decide_at_once(run: Run) -> Witness | dict[int, Tree]:
    """A witness, or trees of cases that need no search, by the cases' numbers. Raises `BudgetError`."""
    cases = {k: c for k, c in enumerate(run.query.cases) if not c.box.empty and c.conjunctions}
    if len(cases) < MANY:
        return {}
    network = run.query.network
    numbers = np.array(list(cases))
    lo, hi = (np.array([getattr(c.box, side) for c in cases.values()]) for side in ("lo", "hi"))
    step = int(np.clip(CELLS // max(network.size, network.input_size), 1, BATCH))
    batches = [slice(at, at + step) for at in range(0, len(numbers), step)]
    if run.settings.attack:
        rng = np.random.default_rng(run.settings.seed)
        for part in batches:
            witness = _try_points(run, [cases[k] for k in numbers[part]], lo[part], hi[part], rng)
            if witness is not None:
                return witness
    bounder = Bounder(network, lo.min(axis=0), hi.max(axis=0), run.budget.poll)
    trees: dict[int, Tree] = {}
    for part in batches:
        run.budget.poll()
        regions = bounder.root().take(np.zeros(len(lo[part]), dtype=np.int64))
        regions.lo, regions.hi = np.maximum(regions.lo, lo[part]), np.minimum(regions.hi, hi[part])
        run.statistics.regions += len(regions)
        for which, recorder in _refuted(bounder, regions, [cases[k] for k in numbers[part]]):
            number = int(numbers[part][which])
            trees[number] = recorder.tree(number)
        run.report(f"{len(trees)} of {len(cases)} boxes refuted at once")
    return trees


def joined(cases: list[Case]) -> tuple[Case, np.ndarray]:
    """A case of all constraints together (its box means nothing), and the owner of each conjunction, `(K,)`."""
    every = tuple(c for case in cases for c in case.conjunctions)
    return Case(cases[0].box, every), np.repeat(np.arange(len(cases)), [len(c.conjunctions) for c in cases])


def _try_points(
    run: Run, cases: list[Case], lo: np.ndarray, hi: np.ndarray, rng: np.random.Generator
) -> Witness | None:
    """The centre and random points of the boxes `lo, hi (B, d)`; a confirmed witness or None."""
    case, owner = joined(cases)
    attack = Attack(run.query, case, run.runtime, run.statistics, run.settings.seed)
    share = rng.random((POINTS, *lo.shape))
    share[0] = 0.5
    x = np.clip(lo * (1 - share) + hi * share, lo, hi).reshape(-1, lo.shape[1])
    run.budget.poll(len(x) * run.query.network.size)
    run.statistics.attack_points += len(x)
    worst = attack.violations(x, run.query.network(x))
    worst[owner[None] != np.tile(np.arange(len(lo)), POINTS)[:, None]] = np.inf
    promising = np.flatnonzero(worst.min(axis=1) <= 0)
    return replay_witness(run.query, x[promising], run.runtime) if len(promising) else None


def _refuted(bounder: Bounder, regions: Regions, cases: list[Case]) -> Iterator[tuple[int, Recorder]]:
    """The cases that single constraints with default slopes refute on their regions, and records of that."""
    together, owner = joined(cases)
    objective, own = Objective(together), owner[None] == np.arange(len(cases))[:, None]
    refreshed = bounder.refresh(regions)
    value = objective.values(bounder, regions, refreshed, own)
    best = objective.best(value)
    for which in np.flatnonzero(np.all((best > 0) | ~own, axis=1)).tolist():
        conjunctions = np.flatnonzero(own[which])
        row = objective.best_row(np.repeat(value[which : which + 1], len(conjunctions), axis=0), conjunctions)
        recorder = Recorder(bounder, [len(c) for c in cases[which].conjunctions])
        ids, every = np.zeros(len(conjunctions), dtype=np.int64), np.arange(len(conjunctions))
        recorder.close_by_constraints(ids, every, row - objective.starts[conjunctions], value[which, row])
        yield which, recorder
