"""Regions on which the network is affine are decided by a linear program (HiGHS).

The solver's answer is never evidence: its multipliers become the leaf's weights and beta and pass the
same test as any other refutation; its point goes to the witness gate.

Tightened bounds hold on unsafe points only, so they may keep a neuron stable in a region that has points on
its other side, and the program, which knows the literals alone, may end at such a point. Then that neuron is split: the
child on the other side is empty, the one that stays has a literal for the program. Each step adds a literal,
so this ends; without tightenings no such neuron exists.
"""

from __future__ import annotations

import numpy as np

from mucg4.bound.propagate import Refreshed, Regions
from mucg4.bound.tighten import Ascent, Duals
from mucg4.ops.base import Array
from mucg4.search.loop import Search
from mucg4.search.region import Batch, apply_literals
from mucg4.smt.program import simple_multipliers

RAISED = 1e-4  # share of a functional's terms
CLOSE = 1e-6  # share of a functional's terms within which its bound by the program's multipliers may be a tie
CLEAR = 1e-9  # a bound or value at least so far from zero has a side


def decide(search: Search, work: Batch, which: Array) -> Array:
    """Try to close the regions `which` of `work` (no unstable neuron); returns those that were closed.

    A witness found on the way is left in `search.witness`. A region that stays open may have become one of its
    parts, in place; its other parts are empty.
    """
    done = []
    for i in which.tolist():
        one = work.take(np.array([i]))
        closed = False
        while not closed and search.witness is None:
            search.budget.poll()
            refreshed = search.bounder.refresh(one.regions, backward=False)
            found = [_decide_conjunction(search, one, refreshed, int(c)) for c in np.flatnonzero(one.open[0])]
            closed = all(ok for ok, _ in found)
            points = [point for ok, point in found if not ok and point is not None]
            if closed or not any(_add_literal(search, one, point) for point in points):
                break
        if closed:
            done.append(i)
        work.ids[i], work.phases[i] = one.ids[0], one.phases[0]
        for f in ("low", "up"):
            getattr(work.regions, f)[i] = getattr(one.regions, f)[0]
        if search.witness is not None:
            break
    return np.array(done, dtype=np.int64)


def close_ties(search: Search, work: Batch, which: Array) -> Array:
    """Of the regions `which`, those that a program over default lines closes; conjunctions go from `work.open`, too.

    For conjunctions with a strict constraint and further ones: where the bound of their best combination is 0, ascent
    comes near its weights but does not meet them.
    """
    done = []
    for i in which.tolist():
        one = work.take(np.array([i]))
        strict = [c for c in np.flatnonzero(one.open[0]).tolist() if search.ties.is_joint(c)]
        refreshed = search.bounder.refresh(one.regions, backward=False) if strict else None
        for c in strict:
            search.budget.poll()
            assert refreshed is not None
            if search.witness is None and _decide_conjunction(search, one, refreshed, c)[0]:
                work.open[i, c] = False
        if not work.open[i].any():
            done.append(i)
    return np.array(done, dtype=np.int64)


def _add_literal(search: Search, one: Batch, point: Array) -> bool:
    """Split the first neuron that has the wrong side at the point and no literal; `one` becomes the child that stays.

    The wrong side is clear of zero, so the other child's bounds contradict each other whatever rounds.
    """
    values = search.bounder.network.values(point[None])
    for k in search.bounder.pre:
        where = search.bounder.slices[k]
        low, up = (b[0] for b in search.bounder.pre_bounds(one.regions, k))
        wrong = np.where(low > CLEAR, -values[k][0], np.where(up < -CLEAR, values[k][0], 0.0))
        wrong[one.phases[0, where] != 0] = 0.0
        j = int(np.argmax(wrong)) if len(wrong) and k > 0 else 0
        if k > 0 and wrong[j] > CLEAR * (1 + abs(values[k][0, j])):
            literal = np.array([k]), np.array([j]), np.zeros(1)
            children = search.recorder.split(one.ids, *literal, False)
            upper = bool(low[j] > 0)
            apply_literals(search.bounder, one.regions, *literal, np.array([upper]), one.phases)
            one.ids = children[upper]
            return True
    return False


def _decide_conjunction(
    search: Search, one: Batch, refreshed: Refreshed, conjunction: int
) -> tuple[bool, Array | None]:
    """Whether it was refuted, and the program's best point."""
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
        closed = bounded.value > 0
        if not closed[0] and bounded.value[0] > -CLOSE * _size(search, duals):
            closed = _tie(search, one, conjunction, literals, multipliers, duals)
            strict = np.flatnonzero(search.objective.conjunctions[conjunction].strict)
            # Of several best multipliers those with a strict constraint are wanted: raise these a little. And on a tiny
            # box rows of any slopes look alike to a solver: the same rows on the whole box.
            offset[strict] += RAISED * _size(search, duals)
            for box in (one.regions, search.root):
                if not closed[0] and len(strict):
                    _, multipliers = largest_violation(matrix, offset, len(eye), box, search.budget.left())
                    if multipliers is not None:
                        closed = _tie(search, one, conjunction, literals, multipliers, duals)
        if closed[0]:
            search.close_duals(one, ascent.default_alpha(), conjunction, duals, bounded.value, closed)
            return True, point
    if point is not None and search.attack is not None and search.witness is None:
        search.witness = search.attack.offer(point[None])
    return False, point


def _size(search: Search, duals: Duals) -> float:
    """The size of the terms of the functional at the outputs."""
    objective, norm = search.objective, search.bounder.scales.norm
    output = float(np.linalg.norm(duals.weights[0] @ abs(objective.y))) * norm[-1]
    return output + float(duals.weights[0] @ abs(objective.constants))


def _tie(search: Search, one: Batch, conjunction: int, literals: Array, multipliers: Array, duals: Duals) -> Array:
    """(1,) whether simple multipliers near the program's refute the region exactly; they are left in `duals`.

    Soft rows come first among the multipliers, then the literals at flat positions `literals`.
    """
    rows, nothing = search.objective.rows_of(conjunction), np.zeros(1)
    soft = rows.stop - rows.start
    for values in simple_multipliers(multipliers):
        duals.weights[0, rows], duals.beta[0, literals] = values[:soft], values[soft:]
        closed = search.ties.closed_by(one, conjunction, duals, nothing, nothing)
        if closed[0]:
            return closed
    return np.zeros(1, dtype=bool)


def _literal_rows(search: Search, one: Batch, refreshed: Refreshed) -> tuple[Array, Array, Array]:
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
    solver = highspy._Highs()  # highspy.Highs prints a banner on standard output
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
