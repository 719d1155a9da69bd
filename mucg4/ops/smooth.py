"""S-shaped functions: Sigmoid, Tanh, Erf, Softsign and Atan (convex left of zero, concave right of it, increasing).

The slopes of the two lines are chosen as usual for S-shaped functions (DeepPoly, doi 10.1145/3290354;
tangent through the far end point as in CROWN, arXiv 1811.00866), but soundness does not rest on the
choice: for ANY slope s the offset is the extreme of f(x) - s x, which is attained at an end point of
the box or where f'(x) = s, and those points have a closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from math import log, pi

import numpy as np

from mucg4.ops.arrays import at_least, at_most, erf, full, precision, xp
from mucg4.ops.base import Array, Nonlinear, Relaxation, coarse
from mucg4.records import dataclass

# of the tangent point; more would not change a bound visibly, and none is needed for soundness; not measured
BISECTIONS = 16
ULPS = 8  # unit roundoffs of relative error of exp, log and tanh in the libraries, with room; not measured


class SShaped(Nonlinear):
    """Common part: value `f`, derivative `slope_of(f(x))`, and the points where the derivative is given."""

    low: float
    high: float

    def value(self, x: Array) -> Array:
        """f(x), within a few units in the last place."""
        raise NotImplementedError

    def derivative(self, x: Array) -> Array:
        """f'(x)."""
        raise NotImplementedError

    def steep(self, s: Array) -> Array:
        """The x >= 0 with f'(x) = s; 0 when s exceeds the largest slope, inf when s = 0."""
        raise NotImplementedError

    def apply(self, xs: Sequence[Array]) -> Array:
        return self.value(xs[0])

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        low, high, p = self.value(lo[0]), self.value(hi[0]), precision(lo[0])
        low, high = low - (abs(low) * (ULPS * p.unit) + p.least), high + (abs(high) * (ULPS * p.unit) + p.least)
        return at_least(low, self.low), at_most(high, self.high)

    def relax(self, lo: Sequence[Array], hi: Sequence[Array]) -> Relaxation:
        lower, upper, where = lo[0], hi[0], xp(lo[0]).where
        flat = ~(xp(lower).isfinite(lower) & xp(upper).isfinite(upper))
        a, b = where(flat, 0.0, lower), where(flat, 0.0, upper)
        below, above = self._slopes(*coarse(a, b))
        below, above = where(flat, 0.0, below), where(flat, 0.0, above)
        box = self.interval(lo, hi)
        return Relaxation(
            (below,),
            where(flat, box[0], self._offset(a, b, below, -1.0)),
            (above,),
            where(flat, box[1], self._offset(a, b, above, 1.0)),
        )

    def tangent(self, xs: Sequence[Array]) -> tuple[Array, ...]:
        return (self.derivative(xs[0]),)

    def _offset(self, lo: Array, hi: Array, slope: Array, sign: float) -> Array:
        """The extreme of f(x) - slope x on [lo, hi] (sign 1: largest, -1: smallest), moved outward."""
        p, m = precision(lo), xp(lo)
        at = at_most(self.steep(slope), p.huge)
        best = full(lo.shape, -np.inf, lo)
        for x in (lo, hi, m.clip(at, lo, hi), m.clip(-at, lo, hi)):
            f, line = self.value(x), slope * x
            best = m.maximum(best, sign * (f - line) + (abs(f) + abs(line)) * (4 * ULPS * p.unit) + p.least)
        return sign * best

    def _slopes(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        """Slopes of the lower and the upper line: chord, tangent in the middle, or tangent from an end point."""
        where = xp(lo).where
        mid = lo + (hi - lo) / 2
        at_mid = self.derivative(mid)
        wide = hi - lo > precision(lo).narrow * (1.0 + abs(lo))  # else the quotient below would be mostly rounding
        chord = where(wide, (self.value(hi) - self.value(lo)) / where(wide, hi - lo, 1.0), at_mid)
        below = where(lo >= 0, chord, at_mid)
        above = where(hi <= 0, chord, at_mid)
        mixed = wide & (lo < 0) & (hi > 0)
        if mixed.any():
            a, b, k = lo[mixed], hi[mixed], chord[mixed]
            above[mixed] = where(self.derivative(b) >= k, k, self._tangent(a, b))
            # f(-x) = low + high - f(x): the lower line is the upper line of the mirrored box
            below[mixed] = where(self.derivative(a) >= k, k, self._tangent(-b, -a))
        return below, above

    def _tangent(self, lo: Array, hi: Array) -> Array:
        """Slope of the best tangent at a point p of [0, hi] that lies above f at `lo < 0`.

        Such a tangent lies above f on the whole box; its value in the middle of the box, which decides
        the area, grows with the distance of p from the middle.
        """
        f, near, far, where = self.value(lo), full(hi.shape, 0.0, hi), hi, xp(hi).where
        for _ in range(BISECTIONS):
            p = (near + far) / 2
            good = self.value(p) + self.derivative(p) * (lo - p) >= f
            near, far = where(good, near, p), where(good, p, far)
        return self.derivative(xp(far).maximum(far, (lo + hi) / 2))


@dataclass(frozen=True)
class Sigmoid(SShaped):
    """`1 / (1 + exp(-x))`."""

    kind: str = field(default="Sigmoid", init=False)
    low = 0.0
    high = 1.0

    def value(self, x: Array) -> Array:
        e = xp(x).exp(-abs(x))
        return xp(x).where(x >= 0, 1.0, e) / (1.0 + e)

    def derivative(self, x: Array) -> Array:
        e = xp(x).exp(-abs(x))
        return e / ((1.0 + e) * (1.0 + e))

    def steep(self, s: Array) -> Array:
        s = at_least(s, 0.0)
        q = 2.0 * s / (1.0 + xp(s).sqrt(at_least(1.0 - 4.0 * s, 0.0)))  # f(-x), from f (1 - f) = s
        q = at_most(q, 0.5)
        with np.errstate(divide="ignore"):
            return xp(q).log1p(-q) - xp(q).log(q)


@dataclass(frozen=True)
class Tanh(SShaped):
    """The hyperbolic tangent."""

    kind: str = field(default="Tanh", init=False)
    low = -1.0
    high = 1.0

    def value(self, x: Array) -> Array:
        return xp(x).tanh(x)

    def derivative(self, x: Array) -> Array:
        e = xp(x).exp(-2.0 * abs(x))
        return 4.0 * e / ((1.0 + e) * (1.0 + e))

    def steep(self, s: Array) -> Array:
        s = at_most(at_least(s, 0.0), 1.0)
        with np.errstate(divide="ignore"):
            return xp(s).log1p(xp(s).sqrt(1.0 - s)) - 0.5 * xp(s).log(s)  # from 1 - f^2 = s


@dataclass(frozen=True)
class Erf(SShaped):
    """The error function."""

    kind: str = field(default="Erf", init=False)
    low = -1.0
    high = 1.0

    def value(self, x: Array) -> Array:
        return erf(x)

    def derivative(self, x: Array) -> Array:
        x = at_most(abs(x), precision(x).huge ** 0.4)
        return (2.0 / pi**0.5) * xp(x).exp(-x * x)

    def steep(self, s: Array) -> Array:
        with np.errstate(divide="ignore"):
            return xp(s).sqrt(at_least(log(2.0 / pi**0.5) - xp(s).log(at_least(s, 0.0)), 0.0))

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        return 1.2 * super().terms(lo, hi)  # the steepest slope is 2 / sqrt(pi)


@dataclass(frozen=True)
class Softsign(SShaped):
    """`x / (1 + |x|)`."""

    kind: str = field(default="Softsign", init=False)
    low = -1.0
    high = 1.0

    def value(self, x: Array) -> Array:
        x = at_most(at_least(x, -precision(x).huge), precision(x).huge)
        return x / (1.0 + abs(x))

    def derivative(self, x: Array) -> Array:
        r = 1.0 / (1.0 + abs(x))
        return r * r

    def steep(self, s: Array) -> Array:
        with np.errstate(divide="ignore"):
            return 1.0 / xp(s).sqrt(at_most(at_least(s, 0.0), 1.0)) - 1.0


@dataclass(frozen=True)
class Atan(SShaped):
    """The arc tangent."""

    kind: str = field(default="Atan", init=False)
    low = -1.5707963267948968  # pi / 2, rounded outward
    high = 1.5707963267948968

    def value(self, x: Array) -> Array:
        return xp(x).arctan(x)

    def derivative(self, x: Array) -> Array:
        x = at_most(abs(x), precision(x).huge ** 0.4)
        return 1.0 / (1.0 + x * x)

    def steep(self, s: Array) -> Array:
        s = at_most(at_least(s, 0.0), 1.0)
        with np.errstate(divide="ignore"):
            return xp(s).sqrt((1.0 - s) / s)


SIGMOID = Sigmoid()
TANH = Tanh()
ERF = Erf()
SOFTSIGN = Softsign()
ATAN = Atan()
