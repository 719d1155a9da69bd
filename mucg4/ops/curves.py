"""Smooth functions of one variable besides the S-shaped ones: Sin, Cos, powers, Exp, Log, Softplus, Elu, gates.

As in `mucg4.ops.smooth` no line is believed because of how its slope was chosen: for ANY slope s the offset is the
extreme of f(x) - s x over the box, attained at an end point or where f'(x) = s. Those points have a closed form;
a point that is off by d costs d^2 max|f''| / 2 only, and every evaluation is moved outward by a few ulps.

Where f is not defined or overflows on some part of a box, the image is unbounded on that side and the line is
horizontal: nothing is concluded from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from math import pi
from typing import Any

import numpy as np

from mucg4.ops.arrays import at_least, at_most, erfc, full, precision, xp
from mucg4.ops.base import Array, Nonlinear, Relaxation, coarse
from mucg4.ops.smooth import SIGMOID, ULPS
from mucg4.records import dataclass

SPAN = 48.0  # gates are 0 and 1 beyond it, to all digits; given
HALVINGS = 20  # of a box, to find where a function has a given slope; what is missed is charged; not measured
FAR = 1e4  # beyond it sine and cosine are only known to lie in [-1, 1]; not measured


class Curve(Nonlinear):
    """Common part: value, derivative, and the points of a box where the derivative takes a given value."""

    floor: float = 0.0  # absolute error of one evaluation in unit roundoffs, besides ULPS of relative error

    def value(self, x: Array) -> Array:
        """f(x), within a few units in the last place and `floor`."""
        raise NotImplementedError

    def derivative(self, x: Array) -> Array:
        """f'(x), approximately: it only chooses slopes."""
        raise NotImplementedError

    def turns(self, s: Array, lo: Array, hi: Array) -> list[Array]:
        """All points where f'(x) = s inside the boxes; points outside do no harm."""
        raise NotImplementedError

    def plain(self, lo: Array, hi: Array) -> Array:
        """True where f is finite and smooth on the box, so that lines need not be horizontal; the default: not huge."""
        return (lo > -precision(lo).huge) & (hi < precision(lo).huge)

    def image(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        """The image where the box is not plain."""
        return full(lo.shape, -np.inf, lo), full(lo.shape, np.inf, lo)

    def slopes(self, lo: Array, hi: Array, chord: Array, middle: Array) -> tuple[list[Array], list[Array]]:
        """Candidates for the slopes of the lower and of the upper line; the first wins ties."""
        every = [chord, middle, self.derivative(lo), self.derivative(hi), full(lo.shape, 0.0, lo)]
        return every, every

    def apply(self, xs: Sequence[Array]) -> Array:
        with np.errstate(all="ignore"):
            return self.value(xs[0])

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        a, b, ok = self._inner(lo[0], hi[0])
        where, flat = xp(a).where, full(a.shape, 0.0, a)
        with np.errstate(all="ignore"):
            low, high = self.image(lo[0], hi[0])
            return where(ok, self._extreme(a, b, flat, -1.0), low), where(ok, self._extreme(a, b, flat, 1.0), high)

    def relax(self, lo: Sequence[Array], hi: Sequence[Array]) -> Relaxation:
        a, b, ok = self._inner(lo[0], hi[0])
        where, (low, high) = xp(a).where, self.interval(lo, hi)
        with np.errstate(all="ignore"):
            c, d = coarse(a, b)
            plain = self.plain(c, d)
            c, d = where(plain, c, a), where(plain, d, b)
            mid = c + (d - c) / 2
            middle = self.derivative(mid)
            wide = d - c > precision(a).narrow * (1.0 + abs(c))
            chord = where(wide, (self.value(d) - self.value(c)) / where(wide, d - c, 1.0), middle)
            below, above = self.slopes(c, d, chord, middle)
            lower, upper = self._best(c, d, mid, below, -1.0), self._best(c, d, mid, above, 1.0)
            low_offset, up_offset = self._extreme(a, b, lower, -1.0), self._extreme(a, b, upper, 1.0)
        finite = xp(a).isfinite
        fine = ok & finite(lower) & finite(low_offset)
        lower, low_offset = where(fine, lower, 0.0), where(fine, low_offset, low)
        fine = ok & finite(upper) & finite(up_offset)
        upper, up_offset = where(fine, upper, 0.0), where(fine, up_offset, high)
        return Relaxation((lower,), low_offset, (upper,), up_offset)

    def tangent(self, xs: Sequence[Array]) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            return (xp(xs[0]).nan_to_num(self.derivative(xs[0]), nan=0.0, posinf=0.0, neginf=0.0),)

    def _inner(self, lo: Array, hi: Array) -> tuple[Array, Array, Array]:
        """The boxes, 1 where they are not plain, and where they are."""
        ok = xp(lo).isfinite(lo) & xp(lo).isfinite(hi)
        ok = ok & self.plain(lo, hi)
        return xp(lo).where(ok, lo, 1.0), xp(lo).where(ok, hi, 1.0), ok

    def _best(self, lo: Array, hi: Array, mid: Array, slopes: list[Array], sign: float) -> Array:
        """Of these slopes that of the line closest to f in the middle of the box."""
        best = slopes[0]
        offset = self._extreme(lo, hi, best, sign)
        wide = hi - lo > precision(lo).narrow * (1.0 + abs(lo))  # else rounding would choose
        for s in slopes[1:]:
            other = self._extreme(lo, hi, s, sign)
            now, new = sign * (best * mid + offset), sign * (s * mid + other)
            better = wide & (new < now - 1e-3 * abs(now - sign * self.value(mid)))
            best, offset = xp(lo).where(better, s, best), xp(lo).where(better, other, offset)
        return best

    def _extreme(self, lo: Array, hi: Array, slope: Array, sign: float) -> Array:
        """The extreme of f(x) - slope x on [lo, hi] (sign 1: largest, -1: smallest), moved outward."""
        p, m = precision(lo), xp(lo)
        best = full(lo.shape, -np.inf, lo)
        for x in (lo, hi, *self.turns(slope, lo, hi)):
            x = m.clip(m.where(m.isnan(x), lo, x), lo, hi)
            f, line = self.value(x), slope * x
            slack = (abs(f) + abs(line)) * (4 * ULPS * p.unit) + (p.least + self.floor * p.unit)
            best = m.maximum(best, sign * (f - line) + slack)
        return sign * best


class Wave(Curve):
    """Sin and Cos."""

    floor = 2.0 * ULPS

    def plain(self, lo: Array, hi: Array) -> Array:
        return (hi - lo < 2 * pi) & (lo > -FAR) & (hi < FAR)

    def image(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        return full(lo.shape, -1.0, lo), full(lo.shape, 1.0, lo)

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        low, high = super().interval(lo, hi)
        return at_least(low, -1.0), at_most(high, 1.0)

    def angles(self, s: Array) -> list[Array]:
        """The x in [-2 pi, 2 pi] with f'(x) = s, for s in [-1, 1]."""
        raise NotImplementedError

    def turns(self, s: Array, lo: Array, hi: Array) -> list[Array]:
        full_turns = xp(lo).round((lo + hi) / (4 * pi)) * (2 * pi)  # the box is within 2 pi of it
        return [full_turns + t for t in self.angles(at_most(at_least(s, -1.0), 1.0))]

    def _extreme(self, lo: Array, hi: Array, slope: Array, sign: float) -> Array:
        # turning points are off by some units in the last place of lo, hi and 2 pi
        moved = 32 * precision(lo).unit * (xp(lo).maximum(abs(lo), abs(hi)) + 8.0)
        return super()._extreme(lo, hi, slope, sign) + sign * moved * moved


@dataclass(frozen=True)
class Sin(Wave):
    """The sine."""

    kind: str = field(default="Sin", init=False)

    def value(self, x: Array) -> Array:
        return xp(x).sin(x)

    def derivative(self, x: Array) -> Array:
        return xp(x).cos(x)

    def angles(self, s: Array) -> list[Array]:
        t = xp(s).arccos(s)
        return [t, -t, t - 2 * pi, 2 * pi - t]


@dataclass(frozen=True)
class Cos(Wave):
    """The cosine."""

    kind: str = field(default="Cos", init=False)

    def value(self, x: Array) -> Array:
        return xp(x).cos(x)

    def derivative(self, x: Array) -> Array:
        return -xp(x).sin(x)

    def angles(self, s: Array) -> list[Array]:
        t = xp(s).arcsin(s)
        return [-t, -t - 2 * pi, 2 * pi - t, t - pi, t + pi]


class Bowl(Curve):
    """Convex (`bend` 1) or concave (-1) functions: on one side the tangent in the middle, on the other the chord."""

    def bend(self, lo: Array) -> Array:
        """1.0 where f is convex on a plain box that starts at lo, -1.0 where it is concave."""
        return full(lo.shape, 1.0, lo)

    def slopes(self, lo: Array, hi: Array, chord: Array, middle: Array) -> tuple[list[Array], list[Array]]:
        convex = self.bend(lo) > 0
        return [xp(lo).where(convex, middle, chord)], [xp(lo).where(convex, chord, middle)]


@dataclass(frozen=True)
class Square(Bowl):
    """`x * x`."""

    kind: str = field(default="Square", init=False)

    def value(self, x: Array) -> Array:
        return x * x

    def derivative(self, x: Array) -> Array:
        return 2.0 * x

    def turns(self, s: Array, lo: Array, hi: Array) -> list[Array]:
        return [s / 2]

    def plain(self, lo: Array, hi: Array) -> Array:
        far = precision(lo).huge ** 0.5
        return (lo > -far) & (hi < far)

    def image(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        return full(lo.shape, 0.0, lo), full(lo.shape, np.inf, lo)

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        low, high = super().interval(lo, hi)
        return at_least(low, 0.0), high

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        far = xp(lo[0]).maximum(abs(lo[0]), abs(hi[0]))
        with np.errstate(over="ignore"):
            return 2.0 * far * far  # every slope is at most 2 far


@dataclass(frozen=True)
class Reciprocal(Bowl):
    """`1 / x`; where a box contains 0 nothing is known."""

    kind: str = field(default="Reciprocal", init=False)

    def value(self, x: Array) -> Array:
        return 1.0 / x

    def derivative(self, x: Array) -> Array:
        return -1.0 / (x * x)

    def turns(self, s: Array, lo: Array, hi: Array) -> list[Array]:
        root = xp(s).sqrt(at_least(-1.0 / s, 0.0))
        return [xp(s).where(lo > 0, root, -root)]

    def bend(self, lo: Array) -> Array:
        return xp(lo).sign(lo)

    def plain(self, lo: Array, hi: Array) -> Array:
        near = 1.0 / precision(lo).huge ** 0.25  # so that no slope overflows
        return (lo > near) | (hi < -near)

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        # slopes are 1 / (a b) of points a, b of the box or 1 / m^2 in its middle, where |m| >= |x| / 2: see Bowl
        near = xp(lo[0]).where((lo[0] <= 0) & (hi[0] >= 0), 0.0, xp(lo[0]).minimum(abs(lo[0]), abs(hi[0])))
        with np.errstate(divide="ignore"):
            return 4.0 / near


@dataclass(frozen=True)
class Exp(Bowl):
    """The exponential."""

    kind: str = field(default="Exp", init=False)

    def value(self, x: Array) -> Array:
        return xp(x).exp(x)

    def derivative(self, x: Array) -> Array:
        return xp(x).exp(x)

    def turns(self, s: Array, lo: Array, hi: Array) -> list[Array]:
        return [xp(s).log(at_least(s, 0.0))]

    def plain(self, lo: Array, hi: Array) -> Array:
        far = np.log(precision(lo).huge)
        return (lo > -far) & (hi < far)

    def image(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        return full(lo.shape, 0.0, lo), self._top(hi)

    def _top(self, hi: Array) -> Array:
        p = precision(hi)
        return xp(hi).exp(hi) * (1 + 4 * ULPS * p.unit) + p.least

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        low, high = super().interval(lo, hi)
        return at_least(low, 0.0), high

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        with np.errstate(all="ignore"):
            return 2.0 * self._top(hi[0]) * (1.0 + xp(lo[0]).maximum(abs(lo[0]), abs(hi[0])))


@dataclass(frozen=True)
class Log(Bowl):
    """The natural logarithm; where a box holds a number that is not positive nothing is known."""

    kind: str = field(default="Log", init=False)

    def value(self, x: Array) -> Array:
        return xp(x).log(x)

    def derivative(self, x: Array) -> Array:
        return 1.0 / x

    def turns(self, s: Array, lo: Array, hi: Array) -> list[Array]:
        return [1.0 / s]

    def bend(self, lo: Array) -> Array:
        return full(lo.shape, -1.0, lo)

    def plain(self, lo: Array, hi: Array) -> Array:
        return lo > 1.0 / precision(lo).huge ** 0.25  # so that no slope overflows

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        # on [a, b] a chord's slope times b is at most log(b / a) + 1, a tangent's in the middle at most 2
        with np.errstate(all="ignore"):
            size = xp(lo[0]).log(at_least(hi[0], 0.0)) - xp(lo[0]).log(at_least(lo[0], 0.0)) + 2.0
        return xp(lo[0]).where(lo[0] > 0, size, full(size.shape, np.inf, size))


@dataclass(frozen=True)
class Sqrt(Bowl):
    """The square root; where a box holds a negative number nothing is known."""

    kind: str = field(default="Sqrt", init=False)

    def value(self, x: Array) -> Array:
        return xp(x).sqrt(x)

    def derivative(self, x: Array) -> Array:
        return 0.5 / xp(x).sqrt(x)

    def turns(self, s: Array, lo: Array, hi: Array) -> list[Array]:
        root = 0.5 / s
        return [root * root]

    def bend(self, lo: Array) -> Array:
        return full(lo.shape, -1.0, lo)

    def plain(self, lo: Array, hi: Array) -> Array:
        return lo >= 0

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        low, high = super().interval(lo, hi)
        return xp(low).where(lo[0] >= 0, at_least(low, 0.0), low), high

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        with np.errstate(all="ignore"):
            size = 1.01 * xp(lo[0]).sqrt(at_least(hi[0], 0.0))  # a slope times the far end is at most its root
        return xp(lo[0]).where(lo[0] >= 0, size, full(size.shape, np.inf, size))


@dataclass(frozen=True)
class Softplus(Bowl):
    """`log(1 + exp(x))`."""

    kind: str = field(default="Softplus", init=False)

    def value(self, x: Array) -> Array:
        return at_least(x, 0.0) + xp(x).log1p(xp(x).exp(-abs(x)))

    def derivative(self, x: Array) -> Array:
        return SIGMOID.value(x)

    def turns(self, s: Array, lo: Array, hi: Array) -> list[Array]:
        s = at_most(at_least(s, 0.0), 1.0)
        return [xp(s).log(s) - xp(s).log1p(-s)]

    def image(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        return full(lo.shape, 0.0, lo), 1.0 + at_least(hi, 0.0) * (1 + 4 * precision(hi).unit)

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        low, high = super().interval(lo, hi)
        return at_least(low, 0.0), high


@dataclass(frozen=True)
class Elu(Curve):
    """`x` right of zero, `alpha (exp(x) - 1)` left of it, for alpha > 0; not convex when alpha > 1."""

    alpha: float = 1.0
    kind: str = field(default="Elu", init=False)

    def value(self, x: Array) -> Array:
        return xp(x).where(x > 0, x, self.alpha * xp(x).expm1(at_most(x, 0.0)))

    def derivative(self, x: Array) -> Array:
        return xp(x).where(x > 0, 1.0, self.alpha * xp(x).exp(at_most(x, 0.0)))

    def turns(self, s: Array, lo: Array, hi: Array) -> list[Array]:
        return [at_most(xp(s).log(at_least(s, 0.0) / self.alpha), 0.0), full(s.shape, 0.0, s)]

    def image(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        return full(lo.shape, -self.alpha * (1 + 1e-6), lo), at_least(hi, 0.0)

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        return super().terms(lo, hi) * (1.01 * max(1.0, self.alpha))

    def parameters(self) -> dict[str, Any]:
        return {"alpha": self.alpha}


@dataclass(frozen=True)
class HardSwish(Curve):
    """`x min(max(x + 3, 0), 6) / 6`: 0, a parabola, x."""

    kind: str = field(default="HardSwish", init=False)
    floor = 2.0 * ULPS

    def value(self, x: Array) -> Array:
        inner = at_most(at_least(x, -3.0), 3.0)
        return xp(x).where(x > 3.0, x, inner * (inner + 3.0) / 6.0)

    def derivative(self, x: Array) -> Array:
        inner = (2.0 * at_most(at_least(x, -3.0), 3.0) + 3.0) / 6.0
        return xp(x).where(x > 3.0, 1.0, xp(x).where(x < -3.0, 0.0, inner))

    def turns(self, s: Array, lo: Array, hi: Array) -> list[Array]:
        return [full(s.shape, -3.0, s), full(s.shape, 3.0, s), 3.0 * s - 1.5]

    def image(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        return full(lo.shape, -0.376, lo), at_least(hi, 0.0)

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        return super().terms(lo, hi) * 1.6  # slopes are at most 1.5


class Gate(Curve):
    """x times an increasing function from 0 to 1: concave, convex between the two points `bends`, concave.

    Each piece has at most one point of a given slope. It is found by bisection to `2**-HALVINGS` of the box, which
    costs the square of that at most (|f''| <= 0.8). Beyond SPAN f is within 1e-15 of 0 or x, so what is missed is that.
    """

    floor = 4.0 * ULPS
    bends: tuple[float, float]

    def gate(self, x: Array) -> tuple[Array, Array]:
        """The function and its derivative."""
        raise NotImplementedError

    def value(self, x: Array) -> Array:
        return x * self.gate(x)[0]

    def derivative(self, x: Array) -> Array:
        x = at_most(at_least(x, -SPAN), SPAN)
        value, slope = self.gate(x)
        return value + x * slope

    def turns(self, s: Array, lo: Array, hi: Array) -> list[Array]:
        left, right = self.bends
        out = []
        for a, b, bend in ((-SPAN, left, -1.0), (left, right, 1.0), (right, SPAN, -1.0)):
            near, far = at_most(at_least(lo, a), b), at_most(at_least(hi, a), b)
            for _ in range(HALVINGS):
                p = near + (far - near) / 2
                before = bend * self.derivative(p) < bend * s
                near, far = xp(s).where(before, p, near), xp(s).where(before, far, p)
            out.append(near)
        return out

    def plain(self, lo: Array, hi: Array) -> Array:
        return (lo > -1e8) & (hi < 1e8)

    def image(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        return full(lo.shape, -0.31, lo), at_least(hi, 0.0)

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        return super().terms(lo, hi) * 1.2  # slopes are at most 1.13

    def _extreme(self, lo: Array, hi: Array, slope: Array, sign: float) -> Array:
        wide = at_most(hi - lo, 2 * SPAN)
        missed = wide * 2.0**-HALVINGS
        slack = missed * missed + wide * (64 * precision(lo).unit)  # of the bisection, and of rounding in it
        return super()._extreme(lo, hi, slope, sign) + sign * slack


@dataclass(frozen=True)
class Gelu(Gate):
    """`x` times the normal distribution function; f'' is the density times `2 - x^2`."""

    kind: str = field(default="Gelu", init=False)
    bends = (-(2.0**0.5), 2.0**0.5)

    def gate(self, x: Array) -> tuple[Array, Array]:
        return 0.5 * erfc(x * -(0.5**0.5)), xp(x).exp(-0.5 * x * x) / (2 * pi) ** 0.5


@dataclass(frozen=True)
class GeluTanh(Gate):
    """`x (1 + tanh v) / 2` with `v = sqrt(2 / pi) (x + 0.044715 x^3)`."""

    kind: str = field(default="GeluTanh", init=False)
    bends = (-1.4185040087908285, 1.4185040087908285)

    def gate(self, x: Array) -> tuple[Array, Array]:
        x = at_most(at_least(x, -2 * SPAN), 2 * SPAN)
        v = (8 / pi) ** 0.5 * (x + 0.044715 * x * x * x)
        slope = (8 / pi) ** 0.5 * (1.0 + (3 * 0.044715) * x * x)
        return SIGMOID.value(v), SIGMOID.derivative(v) * slope


@dataclass(frozen=True)
class Silu(Gate):
    """`x / (1 + exp(-x))`; the bends solve `x tanh(x / 2) = 2`."""

    kind: str = field(default="Silu", init=False)
    bends = (-2.399357280515468, 2.399357280515468)

    def gate(self, x: Array) -> tuple[Array, Array]:
        return SIGMOID.value(x), SIGMOID.derivative(x)


@dataclass(frozen=True)
class Mish(Gate):
    """`x tanh(log(1 + exp(x)))`."""

    kind: str = field(default="Mish", init=False)
    bends = (-2.2563763963607935, 1.4905711794854284)

    def gate(self, x: Array) -> tuple[Array, Array]:
        e, right, where = xp(x).exp(-abs(x)), x >= 0, xp(x).where
        top = where(right, 1.0 + 2.0 * e, e * (e + 2.0))
        bottom = where(right, 1.0 + 2.0 * e * (1.0 + e), e * (e + 2.0) + 2.0)
        return top / bottom, where(right, e, 1.0) * 4.0 * e * (1.0 + e) / (bottom * bottom)


LOG = Log()
SQRT = Sqrt()
SOFTPLUS = Softplus()
HARD_SWISH = HardSwish()
GELU = Gelu()
GELU_TANH = GeluTanh()
SILU = Silu()
MISH = Mish()
SIN = Sin()
RECIPROCAL = Reciprocal()
EXP = Exp()
COS = Cos()
SQUARE = Square()
