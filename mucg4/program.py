"""Linear programs in floats (HiGHS). Their answers only propose: what follows from them is confirmed elsewhere.

One program serves all: the least violation of linear rows over a box. The search and the SMT engine ask it for
multipliers (a Farkas certificate where no point satisfies the rows), which then pass the same test as any other
refutation, and for points, which go to the witness gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import lcm
from typing import NamedTuple

import numpy as np

from mucg4.ops.arrays import BoolArray, FloatArray

TOLERANCE = 1e-9  # of rows and multipliers where accuracy is asked for; HiGHS takes 1e-7 else; not measured
BLAME = 1e-10  # smaller shares of a certificate are taken for rounding; not measured
LEAST_SECONDS = 0.01  # HiGHS takes no limit of 0; not measured
DENOMINATORS = (8, 1 << 10, 1 << 25)  # of multipliers that stand for those of a solver; not measured
LARGEST = 1 << 53  # whole numbers up to it are doubles; given


class Optimum(NamedTuple):
    """`value` is the least violation t, `point (n,)` attains it, `multipliers (rows,)` >= 0 prove it.

    Where no point satisfies the hard rows, `value` is infinite, `point` None, and the multipliers are a Farkas ray.
    """

    value: float
    point: FloatArray | None
    multipliers: FloatArray


def least_violation(
    matrix: FloatArray,
    offset: FloatArray,
    soft: BoolArray,
    low: FloatArray,
    high: FloatArray,
    seconds: float = np.inf,
    accurate: bool = False,
) -> Optimum | None:
    """`min t` with `A x + o <= t` in the rows `soft (rows,)`, `A x + o <= 0` elsewhere, `low <= x <= high`.

    With all rows soft, t > 0 says that `A x + o <= 0` has no solution in the box; with hard ones too, the multipliers
    of the hard rows add to the certificate. `accurate` scales rows to largest coefficient 1, asks for `TOLERANCE` and
    drops multipliers that look like rounding. None when HiGHS finds no optimum in `seconds`.
    """
    import highspy

    rows, n = matrix.shape
    scale = np.ones(rows)
    if accurate:
        scale = abs(matrix).max(axis=1, initial=0.0)
        scale = np.where(scale > 0, scale, 1.0)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = n + 1, rows
    lp.col_cost_ = np.r_[np.zeros(n), 1.0]
    lp.col_lower_, lp.col_upper_ = np.r_[low, -highspy.kHighsInf], np.r_[high, highspy.kHighsInf]
    lp.row_lower_, lp.row_upper_ = np.full(rows, -highspy.kHighsInf), -offset / scale
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.arange(rows + 1) * (n + 1)
    lp.a_matrix_.index_ = np.tile(np.arange(n + 1), rows)
    lp.a_matrix_.value_ = np.concatenate([matrix / scale[:, None], np.where(soft, -1.0, 0.0)[:, None]], axis=1).ravel()
    solver = highspy._Highs()  # type: ignore[attr-defined]  # highspy.Highs prints a banner on standard output
    solver.setOptionValue("output_flag", False)
    if seconds < np.inf:
        solver.setOptionValue("time_limit", max(seconds, LEAST_SECONDS))
    if accurate:
        solver.setOptionValue("primal_feasibility_tolerance", TOLERANCE)
        solver.setOptionValue("dual_feasibility_tolerance", TOLERANCE)
        solver.setOptionValue("presolve", "off")  # measured on 100 rows of 90 columns: it takes as long as the rest
    solver.passModel(lp)
    solver.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kOptimal:
        solution = solver.getSolution()
        shares = np.maximum(-np.array(solution.row_dual), 0.0)
        if accurate:
            shares = np.where(shares > BLAME, shares, 0.0)
        values = np.array(solution.col_value)
        return Optimum(float(values[n]), values[:n], shares / scale)
    if status == highspy.HighsModelStatus.kInfeasible:
        solver.setOptionValue("presolve", "off")
        solver.run()
        _, has_ray, ray = solver.getDualRay()
        if has_ray:
            return Optimum(np.inf, None, np.maximum(-np.array(ray), 0.0) / scale)
    return None


def simple_multipliers(values: FloatArray) -> Iterator[FloatArray]:
    """The multipliers `(n,)` of a solver in other words: scaled to 1, and as whole numbers in nearby simple ratios.

    A solver's are rounded. For a tie their ratios have to be the right ones, which are often simple or quotients of two
    stored numbers; multiplied by the common denominator they are exact in floating point.
    """
    most = float(values.max(initial=0.0))
    if not 0 < most < np.inf:
        return
    shares = np.where(values > 1e-9 * most, values / most, 0.0)
    yield values
    yield shares
    for denominator in DENOMINATORS:
        ratios = [Fraction(v).limit_denominator(denominator) for v in shares.tolist()]
        common = lcm(*(r.denominator for r in ratios))
        if common <= LARGEST:
            yield np.array([float(r.numerator * (common // r.denominator)) for r in ratios])
