"""Farkas' lemma in whole numbers: a nonnegative combination of rows that no point can satisfy.

Rows `coeffs . v + constant <= 0` (strict or not) over atoms with ranges. Multipliers y >= 0, from wherever they come,
prove that the rows contradict each other when the least value of `sum y_i row_i` over the ranges is above 0 (or
0, and a strict row takes part). Everything is a whole number here: nothing rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np

from mucg4.ops.arrays import FloatArray

BITS = 60  # multipliers are taken as whole multiples of their largest's 2^-BITS; not measured


class Combinations:
    """Rows over atoms in whole numbers; see the module text."""

    def __init__(
        self,
        rows: Sequence[tuple[dict[int, Fraction], Fraction]],
        ranges: Sequence[tuple[Fraction, Fraction]],
    ) -> None:
        """`rows (m,)` pairs of coefficients by atom and a constant, `ranges (n,)` of the atoms."""
        self.scale = lcm(*{v.denominator for coeffs, constant in rows for v in (*coeffs.values(), constant)})
        self.table: Any = np.zeros((len(rows), len(ranges) + 1), dtype=object)  # Python's whole numbers
        for i, (coeffs, constant) in enumerate(rows):
            for a, v in coeffs.items():
                self.table[i, a] = v.numerator * (self.scale // v.denominator)
            self.table[i, -1] = constant.numerator * (self.scale // constant.denominator)
        self.unit = lcm(*{v.denominator for pair in ranges for v in pair})
        ends = [[v.numerator * (self.unit // v.denominator) for v in pair] for pair in ranges]
        self.low, self.high = [low for low, _ in ends], [high for _, high in ends]

    def least(self, rows: Mapping[int, Fraction], atoms: Mapping[int, Fraction], constant: Fraction) -> Fraction:
        """The least value over the ranges of the rows with these multipliers, plus these atoms and a constant."""
        common = lcm(*{v.denominator for v in (*rows.values(), *atoms.values(), constant)})
        sums = np.zeros(self.table.shape[1], dtype=object)
        for k, v in rows.items():
            sums = sums + v.numerator * (common // v.denominator) * self.table[k]
        for a, v in atoms.items():
            sums[a] += v.numerator * (common // v.denominator) * self.scale
        sums[-1] += constant.numerator * (common // constant.denominator) * self.scale
        value = int(sums[-1]) * self.unit
        value += sum(c * (low if c > 0 else high) for c, low, high in zip(sums[:-1], self.low, self.high, strict=True))
        return Fraction(value, self.unit * common * self.scale)


def whole_shares(multipliers: FloatArray) -> list[Fraction]:
    """Multipliers `(m,)` >= 0 as short exact shares of the largest; all 0 where they are of no use."""
    most = float(multipliers.max(initial=0.0))
    if not 0 < most < np.inf:
        return [Fraction(0)] * len(multipliers)
    return [Fraction(round(v * 2.0**BITS), 2**BITS) for v in (multipliers / most).tolist()]
