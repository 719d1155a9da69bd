"""Proofs searched anew, for networks that noise will move: with room, or where inputs are split with more care.

Room. Every constraint is loosened by several times what compression moves it. A proof that no point has `g_i <= d_i`
proves that none has `g_i <= 0`, and each of its leaves has that much to spare: what noise takes away is there. How far
compression moves the constraints is seen at points of the box, on noisy copies (`mucg4.reuse.noise`); bounds move
further than values, so that several times as much is asked for, more as long as the search comes to an end. A bound at
a root with room costs about what one without does. Measured on mnist 256x4, the run of an int8 copy that borrows the
parent's proof (two cores, whole process): property 8 at 0.03 with room 0, 4 and 8: 4.4, 2.4 and 1.1 s; property 14 at
0.05 with room 0, 10 and 20: 5, 3.8 and 2.5 s. On oval21, image 6767, room 2 makes 1 320 leaves of 49, of which a copy
of 255 levels per channel lacks none (1.1 s; with room 1, 160 leaves, it searches anew below 63: 1.4 s); on image 8717,
where room 1 is not decided in 30 s, room 0.5 takes 3 s. Where inputs are split it gains nothing: ACAS Xu 3_3 under
property 2 with room for bf16 is not decided in 40 times its time.

Care. What a variant pays for is the walk through the tree, leaf by leaf; what the search that found the proof would
have paid for choosing better is spent here, once (`mucg4.search.ahead`).

Of all proofs the one that costs the copies least is taken (`Worth`): few leaves, of which few are lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mucg4.check.deviation import enlarged
from mucg4.check.margins import Gauge
from mucg4.errors import BudgetError, ProofError
from mucg4.model.proof import Tree
from mucg4.model.query import Case, Query, Witness
from mucg4.model.verdict import Statistics
from mucg4.ops.arrays import FloatArray
from mucg4.reuse.replay import mended
from mucg4.reuse.structure import splits_inputs, splits_phases
from mucg4.reuse.survey import Worth, copies_of
from mucg4.search.cancel import constraint_values, worst_values
from mucg4.search.portfolio import solve
from mucg4.search.run import Run
from mucg4.search.standing import Standing

# times what noise moves a constraint at points: of the first attempt, the least and the most; measured: see above
FIRST, LEAST, MOST = 1.0, 0.125, 16.0
NEAR = 0.9  # share of leaves that hold, from which room is doubled; below that it is taken four times; not measured
FAILURES = 2  # attempts in vain that end it; not measured
SHARE = 0.5  # of the time that is left, for each of these; not measured
TRIAL = 0.1  # of the time that is left, after which a careful search tells how fast it is; not measured
FEWEST = 0.5  # of the regions that there were: what a careful search needs; measured: see `mucg4.search.ahead`
POINTS = 256  # at which noise is measured; not measured
ENOUGH = 0.995  # share that is good enough; not measured


def searched_anew(run: Run, trees: Sequence[Tree], gauges: Mapping[str, Gauge]) -> list[Tree]:
    """Trees of the same query that cost noisy copies least, of what the time allows; the given ones if none is better.

    `gauges`: of the run's query, called OWN, and of noisy copies. The trees answer for the whole query, each leaf has
    evidence that the checker accepted. Each attempt searches for at most SHARE of the time that is left. Raises
    `ProofError`, and `BudgetError` when the time is over before the given trees are measured.
    """
    best, copies = list(trees), copies_of(gauges)
    if not copies:
        return best
    if any(map(splits_inputs, trees)):
        return _careful(run, best, copies)
    return _roomy(run, best, copies) if any(map(splits_phases, trees)) else best


def _careful(run: Run, trees: list[Tree], copies: Mapping[str, Gauge]) -> list[Tree]:
    """The trees, or those of a search with more care for each split, unless a trial shows that it takes too long."""
    trial = replace(run.within(TRIAL), careful=True, statistics=Statistics())
    found = _attempt(trial, {}, copies)
    if found is None and trial.budget.left() <= 0:
        longer = replace(run.within(SHARE), careful=True)
        pace = trial.statistics.regions / trial.budget.elapsed()
        if pace * longer.budget.left() < FEWEST * sum(map(len, trees)):
            return trees
        found = _attempt(longer, {}, copies)
    return found[0] if found is not None and found[1].cost < Worth.of(trees, copies, run.workers).cost else trees


def _roomy(run: Run, best: list[Tree], copies: Mapping[str, Gauge]) -> list[Tree]:
    """The trees, or those of a search with as much room as costs the copies least."""
    cases = {k: case for k, case in enumerate(run.query.cases) if not case.box.empty and case.conjunctions}
    moved = {k: _moved(run.query, case, copies) for k, case in cases.items()}
    known = Worth.of(best, copies, run.workers)
    worth, low, high, room, failures = known, 0.0, np.inf, FIRST, 0
    while worth.share < ENOUGH and LEAST <= room <= MOST and failures < FAILURES:
        met = any(is_met(run.query, case, room * moved[k]) for k, case in cases.items())
        found = None if met else _attempt(run.within(SHARE), {k: room * d for k, d in moved.items()}, copies)
        if found is None:
            failures += not met  # what a point shows takes no time
            high = room
        else:
            low = room
            worth = found[1]
            best, known = found if worth.cost < known.cost else (best, known)
        if np.isinf(high):
            room *= 2 if worth.share >= NEAR else 4
        elif high <= 2 * low:
            break
        else:
            room = np.sqrt(low * high) if low else high / 2
    return best


def _attempt(run: Run, room: Mapping[int, FloatArray], copies: Mapping[str, Gauge]) -> tuple[list[Tree], Worth] | None:
    """Trees with room, see `_with_room`, and their worth; None: nothing came of it.

    The time was too short, the constraints met so far out, or the checker did not accept the trees.
    """
    try:
        found = _with_room(run, room)
        return None if found is None else (found, Worth.of(found, copies, run.workers))
    except (BudgetError, ProofError):  # what was found before stays
        return None


def _points(case: Case) -> FloatArray:
    """`(POINTS, inputs)` of the box, half of them corners."""
    share = np.random.default_rng(0).random((POINTS, len(case.box.lo)))
    share[::2] = np.rint(share[::2])
    return np.asarray(case.box.lo * (1 - share) + case.box.hi * share)


def is_met(query: Query, case: Case, room: FloatArray | float = 0.0) -> bool:
    """True where some point has all constraints of a conjunction, and more than so much room `(M,)`.

    No search would end.
    """
    if case.box.empty or not case.conjunctions:
        return False
    x = _points(case)
    values = constraint_values(case, x, query.network.values(x)[-1])
    return bool(np.any(worst_values(case, values - room) < 0))  # on the edge strict constraints do not hold


def _moved(query: Query, case: Case, copies: Mapping[str, Gauge]) -> FloatArray:
    """(M,) by how much noise moves each constraint of a case, at most, at points of its box."""
    x = _points(case)
    own, *others = (
        constraint_values(case, x, network.values(x)[-1])
        for network in (query.network, *(gauge.query.network for gauge in copies.values()))
    )
    out: FloatArray = np.max([np.max(abs(other - own), axis=0) for other in others], axis=0)
    return np.where(np.isfinite(out), out, 0.0)


def _with_room(run: Run, room: Mapping[int, FloatArray]) -> list[Tree] | None:
    """Trees of the query with the constraints of each case loosened, as the checker accepts them of the query itself.

    `room`: (M,) for the cases by their numbers. None where the checker does not. Raises what a search raises.
    """
    query = run.query
    cases = tuple(enlarged(case, room[k]) if k in room else case for k, case in enumerate(query.cases))
    trees = solve(replace(run, query=replace(query, cases=cases), standing=Standing()))
    if isinstance(trees, Witness):
        return None
    return mended(run, trees)  # bounds are tighter for the query itself, which tips default slopes here and there
