"""Linear programs in floats (HiGHS). Their answers only propose: what follows from them is confirmed elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import lcm
from typing import NamedTuple

import numpy as np

from mucg4.ops.base import Array

TOLERANCE = 1e-9
BLAME = 1e-10  # smaller shares of a certificate are taken for rounding
DENOMINATORS = (8, 1 << 10, 1 << 25)  # of multipliers that stand for those of a solver
LARGEST = 1 << 53


class Optimum(NamedTuple):
    """`value` is the least violation t, `point (n,)` attains it, `multipliers (rows,)` >= 0 prove it."""

    value: float
    point: Array
    multipliers: Array


def least_violation(matrix: Array, offset: Array, soft: Array, low: Array, high: Array) -> Optimum | None:
    """`min t` with `A v + o <= t` where `soft (rows,)`, `A v + o <= 0` elsewhere, `low <= v <= high`.

    Rows are scaled to largest coefficient 1 first. With all rows soft, t > 0 says that `A v + o <= 0` has no
    solution in the box: the multipliers are a Farkas certificate. None when HiGHS finds no optimum.
    """
    from scipy.optimize import linprog

    n = matrix.shape[1]
    scale = abs(matrix).max(axis=1, initial=0.0)
    scale = np.where(scale > 0, scale, 1.0)
    found = linprog(
        np.r_[np.zeros(n), 1.0],
        A_ub=np.concatenate([matrix / scale[:, None], -soft.astype(float)[:, None]], axis=1),
        b_ub=-offset / scale,
        bounds=np.stack([np.r_[low, -np.inf], np.r_[high, np.inf]], axis=1),
        method="highs",
        options={"primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE},
    )
    if found.status != 0:
        return None
    shares = -found.ineqlin.marginals
    return Optimum(float(found.fun), found.x[:n], np.where(shares > BLAME, shares, 0.0) / scale)


def simple_multipliers(values: Array) -> Iterator[Array]:
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
