"""Proofs with room: searched anew, with every constraint loosened by several times what compression moves it.

A proof that no point has `g_i <= d_i` proves that none has `g_i <= 0`, and each of its leaves has that much to spare:
what noise takes away is there. How far compression moves the constraints is seen at points of the box, on noisy copies
(`mucg4.reuse.noise`); bounds move further than values, so that several times as much is asked for, more as long as the
search comes to an end and more of the proof holds on the copies.

Only where phases are split: a bound at a root with room costs about what one without does. Measured on mnist 256x4,
the run of an int8 copy that borrows the parent's proof (two cores, whole process): property 8 at 0.03 with room 0, 4
and 8: 4.4, 2.4 and 1.1 s; property 14 at 0.05 with room 0, 10 and 20: 5, 3.8 and 2.5 s. Where inputs are split it
gains nothing: ACAS Xu 3_3 under property 2 with room for bf16 is not decided in 40 times its time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mucg4.check.deviation import enlarged
from mucg4.check.margins import Gauge
from mucg4.errors import BudgetError, Mucg4Error
from mucg4.evidence import Established, Examined
from mucg4.model.proof import Tree
from mucg4.model.query import Case, Query, Witness
from mucg4.model.verdict import Statistics
from mucg4.ops.arrays import FloatArray
from mucg4.reuse.replay import go_on
from mucg4.reuse.structure import splits_phases
from mucg4.reuse.survey import OWN, measured
from mucg4.search.portfolio import solve
from mucg4.search.run import Run
from mucg4.search.standing import Standing

ROOMS = (4.0, 8.0, 16.0)  # times what noise moves a constraint at points; measured: see above
SHARE = 0.5  # of the time that is left, for each of these; not measured
POINTS = 256  # at which noise is measured; not measured
ENOUGH = 0.995  # share that is good enough; not measured
BETTER = 0.01  # share of the leaves on noisy copies that a proof must close more to be taken; not measured


def roomy(run: Run, trees: Sequence[Tree], gauges: Mapping[str, Gauge]) -> list[Tree]:
    """Trees with the most room that the time allows, where that lets more of them hold on the copies; else the given.

    `gauges`: of the run's query, called OWN, and of noisy copies. The trees answer for the whole query, each leaf has
    evidence that the checker accepted. Takes at most SHARE of the time for the last attempt. Raises `ProofError`.
    """
    best = list(trees)
    if (
        len(gauges) == 1
        or not all(len(tree) == 1 or splits_phases(tree) for tree in trees)
        or not any(splits_phases(tree) for tree in trees)
    ):
        return best
    moved = [_moved(run.query, case, gauges) for case in run.query.cases]
    worth = _worth(run, best, gauges)
    for room in ROOMS if worth < ENOUGH else ():
        budget = run.budget.share(SHARE * run.budget.left())
        if any(_is_met(run.query, case, room * d) for case, d in zip(run.query.cases, moved, strict=True)):
            break
        try:
            found = _with_room(replace(run, budget=budget), [room * d for d in moved])
        except (BudgetError, Mucg4Error):
            break
        if found is None:
            break
        new = _worth(run, found, gauges)
        if new > worth + BETTER:
            best, worth = found, new
        if worth >= ENOUGH:
            break
    return best


def _points(case: Case) -> FloatArray:
    """`(POINTS, inputs)` of the box, half of them corners."""
    share = np.random.default_rng(0).random((POINTS, len(case.box.lo)))
    share[::2] = np.rint(share[::2])
    return np.asarray(case.box.lo * (1 - share) + case.box.hi * share)


def _is_met(query: Query, case: Case, room: FloatArray) -> bool:
    """True where some point has all constraints of a conjunction with so much room `(M,)`: no search would end."""
    if case.box.empty or not case.conjunctions:
        return False
    x = _points(case)
    y = query.network.values(x)[-1]
    values = [c.y_coeffs @ y.T + c.x_coeffs @ x.T + c.constants[:, None] for c in case.conjunctions]
    ends = np.cumsum([len(c) for c in case.conjunctions])
    parts = np.split(room, ends[:-1])
    return any(bool(np.any(np.all(v <= d[:, None], axis=0))) for v, d in zip(values, parts, strict=True))


def _moved(query: Query, case: Case, gauges: Mapping[str, Gauge]) -> FloatArray:
    """(M,) by how much noise moves each constraint of a case, at most, at points of its box."""
    if case.box.empty or not case.conjunctions:
        return np.zeros(0)
    x, rows = _points(case), np.concatenate([c.y_coeffs for c in case.conjunctions])
    own = query.network.values(x)[-1] @ rows.T
    copies = (gauge.query.network.values(x)[-1] @ rows.T for name, gauge in gauges.items() if name != OWN)
    out: FloatArray = np.max([np.max(abs(other - own), axis=0, initial=0.0) for other in copies], axis=0)
    return np.where(np.isfinite(out), out, 0.0)


def _with_room(run: Run, moved: Sequence[FloatArray]) -> list[Tree] | None:
    """Trees of the query with the constraints of each case loosened, as the checker accepts them of the query itself.

    None where it does not. Raises what a search raises.
    """
    query = run.query
    cases = tuple(
        case if case.box.empty or not case.conjunctions else enlarged(case, d)
        for case, d in zip(query.cases, moved, strict=True)
    )
    trees = solve(replace(run, query=replace(query, cases=cases), standing=Standing(), statistics=Statistics()))
    if isinstance(trees, Witness):
        return None
    examined = Examined(query, trees, run.budget, run.workers)
    if not examined.report.accepted and examined.report.rejected:
        # bounds are tighter for the query itself, which tips default slopes here and there
        found = go_on(replace(run, standing=Standing(), statistics=Statistics()), examined)
        if not isinstance(found, Established):
            return None
        examined.go_on(found.trees, run.budget, run.workers)
    return list(examined.report.proof.trees) if examined.report.accepted else None


def _worth(run: Run, trees: Sequence[Tree], gauges: Mapping[str, Gauge]) -> float:
    """The mean share of the trees' leaves that hold on the noisy copies."""
    leaves = sum(len(tree.leaves) for tree in trees)
    lost = [sum(m.lost for m in own) for name, own in measured(trees, gauges, run.workers).items() if name != OWN]
    return 1 - float(np.mean(lost)) / max(leaves, 1)
