"""Proofs with room: searched anew, with every constraint loosened by several times what compression moves it.

A proof that no point has `g_i <= d_i` proves that none has `g_i <= 0`, and each of its leaves has that much to spare:
what noise takes away is there. How far compression moves the constraints is seen at points of the box, on noisy copies
(`mucg4.reuse.noise`); bounds move further than values, so that several times as much is asked for, more as long as the
search comes to an end. The proof that costs the copies least is taken: few leaves, of which few are lost.

Only where phases are split: a bound at a root with room costs about what one without does. Measured on mnist 256x4,
the run of an int8 copy that borrows the parent's proof (two cores, whole process): property 8 at 0.03 with room 0, 4
and 8: 4.4, 2.4 and 1.1 s; property 14 at 0.05 with room 0, 10 and 20: 5, 3.8 and 2.5 s. On oval21, image 6767, room 2
makes 1 320 leaves of 49, of which a copy of 255 levels per channel lacks none (1.1 s; with room 1, 160 leaves, it
searches anew below 63: 1.4 s); on image 8717, where room 1 is not decided in 30 s, room 0.5 takes 3 s. Where inputs
are split it gains nothing: ACAS Xu 3_3 under property 2 with room for bf16 is not decided in 40 times its time.
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
from mucg4.records import dataclass
from mucg4.reuse.replay import mended
from mucg4.reuse.structure import splits_inputs, splits_phases
from mucg4.reuse.survey import copies_of, measured
from mucg4.search.cancel import constraint_values, worst_values
from mucg4.search.portfolio import solve
from mucg4.search.run import Run
from mucg4.search.standing import Standing

# times what noise moves a constraint at points: of the first attempt, the least and the most; measured: see above
FIRST, LEAST, MOST = 1.0, 0.125, 16.0
NEAR = 0.9  # share of leaves that hold, from which room is doubled; below that it is taken four times; not measured
FAILURES = 2  # attempts in vain that end it; not measured
SHARE = 0.5  # of the time that is left, for each of these; not measured
POINTS = 256  # at which noise is measured; not measured
ENOUGH = 0.995  # share that is good enough; not measured
BELOW = 8.0  # leaves that grow below one that is lost (`mucg4.reuse.grown`), or are searched there; not measured


def roomy(run: Run, trees: Sequence[Tree], gauges: Mapping[str, Gauge]) -> list[Tree]:
    """Trees with as much room as costs noisy copies least, of what the time allows; the given ones if none is better.

    `gauges`: of the run's query, called OWN, and of noisy copies. The trees answer for the whole query, each leaf has
    evidence that the checker accepted. Each attempt takes at most SHARE of the time that is left. Raises `ProofError`.
    """
    best, copies = list(trees), copies_of(gauges)
    if not copies or not any(map(splits_phases, trees)) or any(map(splits_inputs, trees)):
        return best
    cases = {k: case for k, case in enumerate(run.query.cases) if not case.box.empty and case.conjunctions}
    moved = {k: _moved(run.query, case, copies) for k, case in cases.items()}
    known = Worth.of(run, best, copies)
    worth, low, high, room, failures = known, 0.0, np.inf, FIRST, 0
    while worth.share < ENOUGH and LEAST <= room <= MOST and failures < FAILURES:
        met = any(_is_met(run.query, case, room * moved[k]) for k, case in cases.items())
        found = None if met else attempt(run, {k: room * d for k, d in moved.items()}, copies)
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


@dataclass(frozen=True)
class Worth:
    """What a proof is worth to variants: its `leaves`, of which noisy copies open `lost` on average."""

    leaves: int
    lost: float

    @staticmethod
    def of(run: Run, trees: Sequence[Tree], copies: Mapping[str, Gauge]) -> Worth:
        """Measured on the copies. Raises `ProofError`, `BudgetError`."""
        lost = [sum(m.lost for m in own) for own in measured(trees, copies, run.workers).values()]
        return Worth(sum(len(tree.leaves) for tree in trees), float(np.mean(lost)))

    @property
    def share(self) -> float:
        """Of the leaves, how many hold."""
        return 1 - self.lost / max(self.leaves, 1)

    @property
    def cost(self) -> float:
        """What variants pay, in leaves checked."""
        return self.leaves + BELOW * self.lost


def attempt(run: Run, room: Mapping[int, FloatArray], copies: Mapping[str, Gauge]) -> tuple[list[Tree], Worth] | None:
    """Trees with room in a part of the time, see `_with_room`, and their worth; None where time ended first."""
    run = replace(run, budget=run.budget.share(SHARE * run.budget.left()))
    try:
        found = _with_room(run, room)
        return None if found is None else (found, Worth.of(run, found, copies))
    except (BudgetError, ProofError):  # what was found before stays
        return None


def _points(case: Case) -> FloatArray:
    """`(POINTS, inputs)` of the box, half of them corners."""
    share = np.random.default_rng(0).random((POINTS, len(case.box.lo)))
    share[::2] = np.rint(share[::2])
    return np.asarray(case.box.lo * (1 - share) + case.box.hi * share)


def _is_met(query: Query, case: Case, room: FloatArray) -> bool:
    """True where some point has all constraints of a conjunction with so much room `(M,)`: no search would end."""
    x = _points(case)
    values = constraint_values(case, x, query.network.values(x)[-1])
    return bool(np.any(worst_values(case, values - room) <= 0))


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
    trees = solve(replace(run, query=replace(query, cases=cases), standing=Standing(), statistics=Statistics()))
    if isinstance(trees, Witness):
        return None
    return mended(run, trees)  # bounds are tighter for the query itself, which tips default slopes here and there
