"""Step functions: Sign, Floor, Round, Trunc. They do not decrease: the image of a box is that of its ends.

They jump, and bounds speak of closed boxes: on [l, 0] the sign is -1 or, at the point 0, 0, and its image is [-1, 0].
No closed cover separates 0 from its neighbours, so a split at 0 does not make the sign constant as it makes a ReLU
linear; splits help as far as the boxes stay clear of the jumps. Networks with steps are therefore split by inputs
(`Nonlinear.continuous`), and claims that need the value at a jump told apart from the values around it stay open.

The lines pass through the corners of the graph. For Floor and Round the one of two sound lines is taken that is closer
in the middle of the box, which is the one that cuts less area. The sloping lines of the sign leave its image by an
amount that does not shrink with the box (by 2 |l| / u below -1): taken by area, they keep regions around z = 0 open at
every scale. They are taken on lopsided boxes only, where they are much closer; the others get the image. On a box that
is a single point any line through the point will do: its slope is the usual straight-through estimate (arXiv
1308.3432), which is what the attack follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

import numpy as np

from mucg4.ops.arrays import choose, full, precision, xp
from mucg4.ops.base import Array, Nonlinear, Relaxation, coarse
from mucg4.records import dataclass

LOPSIDED = 8.0  # how many times longer the longer side of zero is where the sign gets a sloping line; not measured


class Step(Nonlinear):
    """Common part of functions that do not decrease and whose values are computed without rounding."""

    continuous = False

    def value(self, x: Array) -> Array:
        """f(x), exactly."""
        raise NotImplementedError

    def estimate(self, x: Array) -> Array:
        """The slope at a single point, of size at most 1 and at most `1 / |x|` times a constant that `terms` covers."""
        raise NotImplementedError

    def lines(self, lo: Array, hi: Array, low: Array, high: Array) -> tuple[Array, Array, Array, Array]:
        """Slope and offset of the lower, then of the upper line on finite boxes with the end values `low < high`."""
        raise NotImplementedError

    def apply(self, xs: Sequence[Array]) -> Array:
        return self.value(xs[0])

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        return self.value(lo[0]), self.value(hi[0])

    def relax(self, lo: Sequence[Array], hi: Sequence[Array]) -> Relaxation:
        a, b, m, p = lo[0], hi[0], xp(lo[0]), precision(lo[0])
        low, high = self.interval(lo, hi)
        flat, finite = full(a.shape, 0.0, a), m.isfinite(a) & m.isfinite(b) & m.isfinite(low) & m.isfinite(high)
        with np.errstate(all="ignore"):
            below, under, above, over = self.lines(a, b, low, high)
            uses = finite & (low < high)
            below, above = m.where(uses, below, flat), m.where(uses, above, flat)
            at = finite & (a == b)
            guess = m.where(at, self.estimate(m.where(at, a, 0.0)), 0.0)
            below, above = below + guess, above + guess
            under = m.where(below == 0, low, m.where(at, low - guess * a, under))
            over = m.where(above == 0, high, m.where(at, high - guess * a, over))
            far = m.where(finite, m.maximum(abs(a), abs(b)), 0.0)
            slack = 4 * p.unit
            under = under - m.where(below == 0, 0.0, slack * (abs(under) + abs(below) * far) + p.least)
            over = over + m.where(above == 0, 0.0, slack * (abs(over) + abs(above) * far) + p.least)
        return Relaxation((below,), under, (above,), over)


@dataclass(frozen=True)
class Sign(Step):
    """-1 left of zero, 0 at zero, 1 right of it.

    On l < 0 < u the lower line is -1 or the one through (0, -1) and (u, 1), the upper line 1 or the one through (l, -1)
    and (0, 1); where an end is 0 the corner at that end is (0, 0).
    """

    kind: str = field(default="Sign", init=False)

    def value(self, x: Array) -> Array:
        return xp(x).sign(x)

    def estimate(self, x: Array) -> Array:
        return 1.0 / (1.0 + abs(x))

    def lines(self, lo: Array, hi: Array, low: Array, high: Array) -> tuple[Array, Array, Array, Array]:
        where, p = xp(lo).where, precision(lo)
        a, b = coarse(lo, hi)
        rising, falling = (b > -LOPSIDED * a) & (hi > p.narrow), (-a > LOPSIDED * b) & (-lo > p.narrow)
        below, above = where(rising, (high - low) / hi, 0.0), where(falling, (low - high) / lo, 0.0)
        return below, low, above, high

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        return full(lo[0].shape, 2.0, lo[0])  # a sloping line rises by at most 2 over the longer side of zero


@dataclass(frozen=True)
class Floor(Step):
    """The largest integer at most x: `x - 1 <= f(x) <= x`."""

    kind: str = field(default="Floor", init=False)
    behind, ahead = -1.0, 0.0

    def value(self, x: Array) -> Array:
        return xp(x).floor(x)

    def estimate(self, x: Array) -> Array:
        return full(x.shape, 1.0, x)

    def lines(self, lo: Array, hi: Array, low: Array, high: Array) -> tuple[Array, Array, Array, Array]:
        a, b = coarse(lo, hi)
        middle = a + (b - a) / 2
        below = choose(middle + self.behind > low, 1.0, 0.0, lo)
        above = choose(middle + self.ahead < high, 1.0, 0.0, lo)
        return below, full(lo.shape, self.behind, lo), above, full(lo.shape, self.ahead, lo)


@dataclass(frozen=True)
class Round(Floor):
    """The nearest integer, the even one of two: `x - 1/2 <= f(x) <= x + 1/2`."""

    kind: str = field(default="Round", init=False)
    behind, ahead = -0.5, 0.5

    def value(self, x: Array) -> Array:
        return xp(x).round(x)


@dataclass(frozen=True)
class Trunc(Step):
    """The integer part, towards zero, of numbers between `least - 1` and `most + 1`: `|f(x) - x| <= 1` and not farther
    from zero than x. This is what a cast to an integer type does; what it makes of other numbers differs between
    machines, so on boxes that hold any nothing is known, and values there are nan.
    """

    least: float = -(2.0**53)
    most: float = 2.0**53
    kind: str = field(default="Trunc", init=False)

    def parameters(self) -> dict[str, Any]:
        return {"least": self.least, "most": self.most}

    def value(self, x: Array) -> Array:
        m = xp(x)
        return m.where((x > self.least - 1) & (x < self.most + 1), m.trunc(x), full(x.shape, np.nan, x))

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        a, b, m = lo[0], hi[0], xp(lo[0])
        known, far = (a > self.least - 1) & (b < self.most + 1), full(a.shape, np.inf, a)
        return m.where(known, m.trunc(a), -far), m.where(known, m.trunc(b), far)

    def estimate(self, x: Array) -> Array:
        return full(x.shape, 1.0, x)

    def lines(self, lo: Array, hi: Array, low: Array, high: Array) -> tuple[Array, Array, Array, Array]:
        a, b = coarse(lo, hi)
        middle = a + (b - a) / 2
        behind = choose(hi > 0, -1.0, 0.0, lo)
        ahead = choose(lo < 0, 1.0, 0.0, lo)
        below = choose(middle + behind > low, 1.0, 0.0, lo)
        above = choose(middle + ahead < high, 1.0, 0.0, lo)
        return below, behind, above, ahead


SIGN = Sign()
FLOOR = Floor()
ROUND = Round()
