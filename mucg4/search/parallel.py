"""Several processes on one query: open searches, or parts of one search's frontier, go to forked workers.

A worker inherits everything by fork, bounds a fixed number of regions of its part and sends back what it added to
the proof, what it left open, and a witness if it found one. The parent merges in the order in which the parts were
handed out, so a run repeats exactly whatever the processes' speed. See `mucg4.limits.processes` for how they live.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np

from mucg4.errors import BudgetError
from mucg4.limits.processes import can_fork, forked
from mucg4.model.query import Witness
from mucg4.search.loop import Search
from mucg4.search.record import Outcome, Share

SERIAL_TURNS = 3  # turns of a search before its frontier is shared out: easy queries never fork; not measured
TURNS, MOST_TURNS = 8, 64  # turns between two meetings: more where many regions would have to be sent; not measured
OVERTIME = 1.0  # share of the work asked for that workers may do more, so that meetings are not forced; not measured


def drive(
    searches: list[Search], workers: int, until: float = float("inf"), met: Callable[[], None] = lambda: None
) -> Witness | None:
    """Run searches until nothing is open or the budget's work has reached `until`; a witness of any of them ends all.

    Workers meet when they have done their turns: where turns are long, before they would do OVERTIME more than was
    asked for. `met` is called then. Raises `BudgetError`.
    """
    for search in searches:
        if search.witness is not None:
            return search.witness
    open_ = [s for s in searches if s.is_open]
    alone = workers < 2 or not can_fork()
    long = bool(open_) and open_[0].way.long_turns
    hard = until + OVERTIME * (until - open_[0].budget.work) if long else float("inf")
    while open_ and open_[0].budget.work < until:
        first = open_[0]
        if alone or (len(open_) == 1 and not first.divisible(workers)):
            witness = first.run(1 if first.pace.turns < SERIAL_TURNS else TURNS, until)
        elif len(open_) == 1 and first.pace.turns < SERIAL_TURNS and first.waiting <= first.context.plan.batch:
            witness = first.run(1, until)
        else:
            witness = _round(open_, workers, open_[0].meetings, hard)
        if witness is not None:
            return witness
        open_[0].meetings += 1  # kept there: the attack's random points must not depend on where `until` lies
        open_ = [s for s in open_ if s.is_open]
        met()
    return None


def _round(searches: list[Search], workers: int, turn: int, until: float) -> Witness | None:
    """One part of work per worker: whole searches while there are enough, else parts of frontiers.

    The work left before the budget's is `until` is shared out too.
    """
    chosen = searches[:workers]
    shares = [workers // len(chosen) + (k < workers % len(chosen)) for k in range(len(chosen))]
    tasks: list[tuple[Search, Share | None]] = []
    for search, share in zip(chosen, shares, strict=True):
        if share > 1 and search.divisible(share):
            tasks.extend((search, part) for part in search.deal(share))
            search.given = True
        else:
            tasks.append((search, None))
    budget = searches[0].budget
    budget.poll()
    until = budget.work + (until - budget.work) / len(tasks)
    jobs = [_job(s, part, (turn, k), until) for k, (s, part) in enumerate(tasks)]
    outcomes = forked(jobs, budget.poll_late, lambda outcome: outcome.witness is not None)
    stopped = None
    for (search, part), outcome in zip(tasks, outcomes, strict=True):
        if outcome is None:
            continue
        search.absorb(outcome, whole=part is None)
        stopped = stopped or outcome.stopped
        if outcome.witness is not None:
            return outcome.witness
    if stopped is not None:
        budget.poll()  # the run knows better than a worker why it ends
        raise stopped
    searches[0].report(searches)
    return None


def _job(search: Search, part: Share | None, seed: tuple[int, int], until: float) -> Callable[[], Outcome]:
    """What a worker does with its part (None: the whole search), up to this work of its copy of the budget."""

    def job() -> Outcome:
        before, worked = _counters(search), search.budget.work
        mark = search.recorder.mark()
        search.progress = None
        if part is not None:
            search.take(part)
        if search.attack is not None:
            search.attack.rng = np.random.default_rng([search.pace.turns, *seed])
        stopped, witness = None, None
        try:
            turns = (len(search.frontier) + search.waiting) // search.context.plan.batch
            witness = search.run(min(max(TURNS, turns), MOST_TURNS), until)
        except BudgetError as error:
            stopped = error
        counters = {k: v - before[k] for k, v in _counters(search).items()}
        return Outcome(
            search.recorder.since(mark),
            (search.frontier.content(), search.pending),
            counters,
            search.pace.gain,
            search.pace.has_split,
            search.budget.work - worked,
            search.way.learned(whole=part is None),
            witness,
            stopped,
        )

    return job


def _counters(search: Search) -> dict[str, int]:
    """The whole-number statistics of the run."""
    s = search.statistics
    return {f.name: getattr(s, f.name) for f in fields(s) if type(getattr(s, f.name)) is int}
