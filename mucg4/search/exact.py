"""Regions on which the network is affine are decided by a linear program (HiGHS).

The solver's answer is never evidence: its multipliers become the leaf's weights and beta and pass the
same test as any other refutation; its point goes to the witness gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mucg4.bound.propagate import Refreshed, Regions
from mucg4.bound.tighten import Ascent
from mucg4.ops.base import Array

if TYPE_CHECKING:
    from mucg4.search.bab import Open, Search


def decide(search: Search, work: Open, which: Array) -> Array:
    """Try to close the regions `which` of `work` (no unstable neuron); returns those that were closed.

    A witness found on the way is left in `search.witness`.
    """
    done = []
    for i in which.tolist():
        search.budget.poll()
        one = work.take(np.array([i]))
        refreshed = search.bounder.refresh(one.regions, backward=False)
        closed = [_decide_conjunction(search, one, refreshed, int(c)) for c in np.flatnonzero(one.open[0])]
        if all(closed):
            done.append(i)
        if search.witness is not None:
            break
    return np.array(done, dtype=np.int64)


def _decide_conjunction(search: Search, one: Open, refreshed: Refreshed, conjunction: int) -> bool:
    rows = search.objective.rows_of(conjunction)
    m = len(search.objective.owner)
    eye = np.eye(m)[rows]
    region = np.zeros(len(eye), dtype=np.int64)
    constraints = search.objective.functional(search.bounder, refreshed, region, eye)
    literals, a, c = _literal_rows(search, one, refreshed)
    matrix = np.concatenate([constraints.coeffs, a])
    offset = np.concatenate([constraints.offset, c])
    search.statistics.lp_calls += 1
    point, multipliers = largest_violation(matrix, offset, len(eye), one.regions, search.budget.left())
    if multipliers is not None:
        weights = np.zeros((1, m))
        weights[0, rows] = multipliers[: len(eye)]
        ascent = Ascent(search.bounder, search.objective, one.regions, refreshed, one.phases)
        duals = ascent.default_duals(weights)
        duals.beta[0, literals] = multipliers[len(eye) :]
        bounded, _ = ascent.bound(duals)
        if bounded.value[0] > 0:
            search.close_duals(one, ascent, conjunction, duals, bounded, bounded.value > 0)
            return True
    if point is not None and search.attack is not None and search.witness is None:
        search.witness = search.attack.offer(point[None])
    return False


def _literal_rows(search: Search, one: Open, refreshed: Refreshed) -> tuple[Array, Array, Array]:
    """The region's phase literals as `a . x + c <= 0`: flat positions, coefficients, offsets."""
    positions = np.flatnonzero(one.phases[0])
    d = one.regions.lo.shape[1]
    a, c = np.zeros((len(positions), d)), np.zeros(len(positions))
    for k, where in search.bounder.slices.items():
        own = np.flatnonzero((positions >= where.start) & (positions < where.stop))
        if len(own) and k > 0:
            sign = -one.phases[0, positions[own]].astype(np.float64)
            rows = search.bounder.backward(
                k, positions[own] - where.start, sign, np.zeros(len(own), dtype=np.int64), refreshed.lines
            )
            a[own], c[own] = rows.coeffs, rows.offset
    return positions, a, c


def largest_violation(
    matrix: Array, offset: Array, soft: int, regions: Regions, seconds: float = np.inf
) -> tuple[Array | None, Array | None]:
    """Solve `min t` with `A_i x + o_i <= t` (i < soft), `A_i x + o_i <= 0` (others), x in the box.

    Returns the minimiser x (or None) and nonnegative multipliers of all rows (or None): with t* > 0 they
    refute the conjunction. Multipliers of an infeasible program come from its Farkas ray.
    """
    import highspy

    rows, d = matrix.shape
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = d + 1, rows
    lp.col_cost_ = np.r_[np.zeros(d), 1.0]
    lp.col_lower_, lp.col_upper_ = np.r_[regions.lo[0], -1e30], np.r_[regions.hi[0], 1e30]
    lp.row_lower_, lp.row_upper_ = np.full(rows, -highspy.kHighsInf), -offset
    full = np.concatenate([matrix, np.where(np.arange(rows) < soft, -1.0, 0.0)[:, None]], axis=1)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.arange(rows + 1) * (d + 1)
    lp.a_matrix_.index_ = np.tile(np.arange(d + 1), rows)
    lp.a_matrix_.value_ = full.ravel()
    solver = highspy._Highs()  # type: ignore[attr-defined]  # highspy.Highs prints a banner on standard output
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("time_limit", max(seconds, 0.01))
    solver.passModel(lp)
    solver.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kOptimal:
        solution = solver.getSolution()
        return np.array(solution.col_value)[:d], np.maximum(-np.array(solution.row_dual), 0)
    if status == highspy.HighsModelStatus.kInfeasible:
        solver.setOptionValue("presolve", "off")
        solver.run()
        _, has_ray, ray = solver.getDualRay()  # type: ignore[attr-defined]
        if has_ray:
            return None, np.maximum(-np.array(ray), 0)
    return None, None
