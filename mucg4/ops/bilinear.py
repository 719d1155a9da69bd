"""The product of two variables.

x y - s x - t y has its extremes over a box at corners, for ANY slopes s and t: the offset is the extreme over the four
corners, moved outward. The slopes are those of the tangent plane in the middle of the box. The two planes of McCormick
(doi 10.1007/BF01580665) on either side are equally far from x y in the middle, and so is every plane between them; the
tangent plane is the one whose largest distance over the box is smallest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

import numpy as np

from mucg4.ops.arrays import full, precision, xp
from mucg4.ops.base import Array, Nonlinear, Relaxation, coarse
from mucg4.records import dataclass

JOINT_INPUTS = 64  # networks with so few inputs get lines that know how the arguments move together; not measured


@dataclass(frozen=True)
class Product(Nonlinear):
    """`x * y`, elementwise."""

    kind: str = field(default="Product", init=False)

    def apply(self, xs: Sequence[Array]) -> Array:
        return xs[0] * xs[1]

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        zero = full(lo[0].shape, 0.0, lo[0])
        return self._extremes(lo, hi, (zero, zero))

    def relax(self, lo: Sequence[Array], hi: Sequence[Array]) -> Relaxation:
        where, finite = xp(lo[0]).where, xp(lo[0]).isfinite
        boxes = [coarse(lo[i], hi[i]) for i in (1, 0)]
        slopes = tuple(a + (b - a) / 2 for a, b in boxes)
        low, high = self._extremes(lo, hi, slopes)
        fine = finite(low) & finite(high) & finite(slopes[0]) & finite(slopes[1])
        flat = self.interval(lo, hi)
        slopes = tuple(where(fine, s, 0.0) for s in slopes)
        return Relaxation(slopes, where(fine, low, flat[0]), slopes, where(fine, high, flat[1]))

    def tangent(self, xs: Sequence[Array]) -> tuple[Array, ...]:
        return xs[1], xs[0]

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        x, y = (xp(a).maximum(abs(a), abs(b)) for a, b in zip(lo, hi, strict=True))
        with np.errstate(over="ignore"):
            return 2.0 * x * y  # the slope of each input is at most the size of the other

    def _extremes(self, lo: Sequence[Array], hi: Sequence[Array], slopes: tuple[Array, ...]) -> tuple[Array, Array]:
        """Smallest and largest `x y - s x - t y` over the corners, moved outward. 0 times infinity is 0."""
        p, m = precision(lo[0]), xp(lo[0])
        low, high = full(lo[0].shape, np.inf, lo[0]), full(lo[0].shape, -np.inf, lo[0])
        with np.errstate(all="ignore"):
            for x in (lo[0], hi[0]):
                for y in (lo[1], hi[1]):
                    xy = m.where((x == 0) | (y == 0), 0.0, x * y)
                    first, second = slopes[0] * x, slopes[1] * y
                    g = xy - first - second
                    slack = (abs(xy) + abs(first) + abs(second)) * (8 * p.unit) + p.least
                    wrong = m.isnan(g)  # inf - inf: nothing is known
                    low = m.minimum(low, m.where(wrong, -np.inf, g - slack))
                    high = m.maximum(high, m.where(wrong, np.inf, g + slack))
        return low, high


PRODUCT = Product()
