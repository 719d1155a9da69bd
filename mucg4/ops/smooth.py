"""S-shaped functions: Sigmoid and Tanh (convex left of zero, concave right of it, increasing).

The slopes of the two lines are chosen as usual for S-shaped functions (DeepPoly, doi 10.1145/3290354;
tangent through the far end point as in CROWN, arXiv 1811.00866), but soundness does not rest on the
choice: for ANY slope s the offset is the extreme of f(x) - s x, which is attained at an end point of
the box or where f'(x) = s, and those points have a closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mucg4.ops.base import Array, Nonlinear, Relaxation

BISECTIONS = 16  # of the tangent point; more would not change a bound visibly, and none is needed for soundness
ULPS = 2.0**-50  # relative error of exp, log and tanh in the C library, with room
TINY = 1e-300


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
        low, high = self.value(lo[0]), self.value(hi[0])
        low, high = low - (abs(low) * ULPS + TINY), high + (abs(high) * ULPS + TINY)
        return np.maximum(low, self.low), np.minimum(high, self.high)

    def relax(self, lo: Sequence[Array], hi: Sequence[Array]) -> Relaxation:
        lower, upper = lo[0], hi[0]
        flat = ~(np.isfinite(lower) & np.isfinite(upper))
        a, b = np.where(flat, 0.0, lower), np.where(flat, 0.0, upper)
        below, above = self._slopes(a, b)
        below, above = np.where(flat, 0.0, below), np.where(flat, 0.0, above)
        box = self.interval(lo, hi)
        return Relaxation(
            (below,),
            np.where(flat, box[0], self._offset(a, b, below, -1.0)),
            (above,),
            np.where(flat, box[1], self._offset(a, b, above, 1.0)),
        )

    def _offset(self, lo: Array, hi: Array, slope: Array, sign: float) -> Array:
        """The extreme of f(x) - slope x on [lo, hi] (sign 1: largest, -1: smallest), moved outward."""
        at = np.minimum(self.steep(slope), 1e300)
        best = np.full_like(lo, -np.inf)
        for x in (lo, hi, np.clip(at, lo, hi), np.clip(-at, lo, hi)):
            f, line = self.value(x), slope * x
            best = np.maximum(best, sign * (f - line) + (abs(f) + abs(line)) * (4 * ULPS) + TINY)
        return sign * best

    def _slopes(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        """Slopes of the lower and the upper line: chord, tangent in the middle, or tangent from an end point."""
        mid = lo + (hi - lo) / 2
        at_mid = self.derivative(mid)
        wide = hi - lo > 1e-9 * (1.0 + abs(lo))  # narrower: the quotient below would be mostly rounding
        chord = np.where(wide, (self.value(hi) - self.value(lo)) / np.where(wide, hi - lo, 1.0), at_mid)
        below = np.where(lo >= 0, chord, at_mid)
        above = np.where(hi <= 0, chord, at_mid)
        mixed = wide & (lo < 0) & (hi > 0)
        if np.any(mixed):
            a, b, k = lo[mixed], hi[mixed], chord[mixed]
            above[mixed] = np.where(self.derivative(b) >= k, k, self._tangent(a, b))
            # f(-x) = low + high - f(x): the lower line is the upper line of the mirrored box
            below[mixed] = np.where(self.derivative(a) >= k, k, self._tangent(-b, -a))
        return below, above

    def _tangent(self, lo: Array, hi: Array) -> Array:
        """Slope of the best tangent at a point p of [0, hi] that lies above f at `lo < 0`.

        Such a tangent lies above f on the whole box; its value in the middle of the box, which decides
        the area, grows with the distance of p from the middle.
        """
        f, near, far = self.value(lo), np.zeros_like(hi), hi.copy()
        for _ in range(BISECTIONS):
            p = (near + far) / 2
            good = self.value(p) + self.derivative(p) * (lo - p) >= f
            near, far = np.where(good, near, p), np.where(good, p, far)
        return self.derivative(np.maximum(far, (lo + hi) / 2))


@dataclass(frozen=True)
class Sigmoid(SShaped):
    """`1 / (1 + exp(-x))`."""

    kind: str = field(default="Sigmoid", init=False)
    low = 0.0
    high = 1.0

    def value(self, x: Array) -> Array:
        e = np.exp(-abs(x))
        return np.where(x >= 0, 1.0, e) / (1.0 + e)

    def derivative(self, x: Array) -> Array:
        e = np.exp(-abs(x))
        return e / ((1.0 + e) * (1.0 + e))

    def steep(self, s: Array) -> Array:
        s = np.maximum(s, 0.0)
        q = 2.0 * s / (1.0 + np.sqrt(np.maximum(1.0 - 4.0 * s, 0.0)))  # f(-x), from f (1 - f) = s
        q = np.minimum(q, 0.5)
        with np.errstate(divide="ignore"):
            return np.log1p(-q) - np.log(q)


@dataclass(frozen=True)
class Tanh(SShaped):
    """The hyperbolic tangent."""

    kind: str = field(default="Tanh", init=False)
    low = -1.0
    high = 1.0

    def value(self, x: Array) -> Array:
        return np.tanh(x)

    def derivative(self, x: Array) -> Array:
        e = np.exp(-2.0 * abs(x))
        return 4.0 * e / ((1.0 + e) * (1.0 + e))

    def steep(self, s: Array) -> Array:
        s = np.clip(s, 0.0, 1.0)
        with np.errstate(divide="ignore"):
            return np.log1p(np.sqrt(1.0 - s)) - 0.5 * np.log(s)  # from 1 - f^2 = s


SIGMOID = Sigmoid()
TANH = Tanh()
