"""Smooth functions of one variable made of convex and concave pieces: Sin, Cos, Exp, Log, Pow, Softplus, Gelu, ...

One principle serves them all. For ANY slope s the sound offset of a lower line is the least value of
`f(x) - s x` on the box. On a concave piece it is attained at an end of the piece; on a convex piece f lies
above its tangent at ANY point p, so `f(p) - s p` less the tangent's largest drop below s is a bound, and a
tight one where f'(p) is near s. The upper line is the lower line of -f. Nothing here trusts the choice of
p or of s; both only decide how tight a line is.

Slopes. On a box without inflection point: tangent in the middle on one side, chord on the other (DeepPoly,
doi 10.1145/3290354). Otherwise the line that touches the convex envelope above the middle of the box; its slope is the
zero of a monotone function and found by bisection, so nearly equal boxes get nearly equal lines.

Boxes on which f is unbounded, overflows, or is undefined everywhere get infinite constants as lines;
these close nothing. Where f is undefined on a part of the box (roots of negative numbers), lines
speak of the rest: onnxruntime computes nan there, and nan violates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import erf as exact_erf
from math import log, pi, sqrt
from typing import Any

import numpy as np

from mucg4.ops.base import Array, Nonlinear, Relaxation

ULPS = 2.0**-48  # relative error of one library function, with room for the operations around it
TINY = 1e-300
HUGE = 1e150  # stands for infinite ends
SLOPE_STEPS, POINT_STEPS = 26, 18  # bisections; more would not change a bound visibly


class Curve(Nonlinear):
    """Common part. A subclass states value, derivative, inflection points and where it is convex.

    `least, most` bound all values; `limits` are the values at minus and plus infinity; `noise` scales an absolute
    error `noise ULPS (1 + |x|)` of the value where it is computed with cancellation.
    """

    least: float = -np.inf
    most: float = np.inf
    limits: tuple[float, float] = (-np.inf, np.inf)
    increasing: bool = False
    noise: float = 0.0

    def value(self, x: Array) -> Array:
        """f(x), relative error at most ULPS / 4."""
        raise NotImplementedError

    def derivative(self, x: Array) -> Array:
        """f'(x), finite wherever a tangent is used."""
        raise NotImplementedError

    def bends(self, lo: Array, hi: Array) -> tuple[Array, ...]:
        """Ascending inflection points; those outside of the box do not matter."""
        return ()

    def bowl(self, x: Array) -> Array:
        """True where f is convex around x."""
        raise NotImplementedError

    def point(self, s: Array, a: Array, b: Array) -> Array:
        """Roughly the p in the piece [a, b] with f'(p) = s; anything is sound. By bisection unless overridden."""
        rising = self.derivative(b) >= self.derivative(a)
        for _ in range(POINT_STEPS):
            p = (a + b) / 2
            right = (self.derivative(p) < s) == rising
            a, b = np.where(right, p, a), np.where(right, b, p)
        return (a + b) / 2

    def tame(self, lo: Array, hi: Array) -> Array:
        """True where f is finite and of few pieces on the box."""
        return np.isfinite(lo) & np.isfinite(hi)

    def domain(self, lo: Array) -> Array:
        """`lo` moved to the least argument f is defined for."""
        return lo

    # ---- the operator protocol -----------------------------------------------------------------

    def apply(self, xs: Sequence[Array]) -> Array:
        with np.errstate(all="ignore"):
            return self.value(xs[0])

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            return self._interval(lo[0], hi[0])

    def _interval(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        void = ~(self.domain(lo) <= hi)
        lo = self.domain(lo)
        a, b = np.maximum(lo, -HUGE), np.minimum(hi, HUGE)
        if self.increasing:
            low = self.value(a) - self._margin(a, self.value(a), 0.0)
            up = self.value(b) + self._margin(b, self.value(b), 0.0)
        else:
            zero = np.zeros_like(a)
            low, up = self.extreme(a, b, zero, 1.0)[0], -self.extreme(a, b, zero, -1.0)[0]
        for end, limit in ((lo == -np.inf, self.limits[0]), (hi == np.inf, self.limits[1])):
            low = np.where(end, np.minimum(low, limit), low)
            up = np.where(end, np.maximum(up, limit), up)
        low = np.where(void | np.isnan(low), -np.inf, np.maximum(low, self.least))
        up = np.where(void | np.isnan(up), np.inf, np.minimum(up, self.most))
        return low, up

    def relax(self, lo: Sequence[Array], hi: Sequence[Array]) -> Relaxation:
        with np.errstate(all="ignore"):
            low, up = self._interval(lo[0], hi[0])
            a, b = self.domain(lo[0]), hi[0]
            flat = ~(self.tame(a, b) & np.isfinite(low) & np.isfinite(up) & (a <= b))
            a, b = np.where(flat, 1.0, a), np.where(flat, 1.0, b)
            below, above = self._slopes(a, b)
            flat = flat | ~np.isfinite(below) | ~np.isfinite(above)
            below, above = np.where(flat, 0.0, below), np.where(flat, 0.0, above)
            under = np.where(flat, low, self.extreme(a, b, below, 1.0)[0])
            over = np.where(flat, up, -self.extreme(a, b, -above, -1.0)[0])
        return Relaxation((below,), under, (above,), over)

    def term_size(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        with np.errstate(all="ignore"):
            a, b = self.domain(lo[0]), hi[0]
            steep = np.maximum(*(fold(self._edge_slopes(a, b)) for fold in (_largest, lambda s: -_smallest(s))))
            size = steep * np.maximum(abs(a), abs(b))
            return np.where(self.tame(a, b) & ~np.isnan(size), size, np.maximum(abs(a), abs(b)))

    # ---- extremes ------------------------------------------------------------------------------

    def _edges(self, lo: Array, hi: Array) -> list[Array]:
        """The box's ends and the inflection points between them."""
        return [lo, *(np.minimum(np.maximum(c, lo), hi) for c in self.bends(lo, hi)), hi]

    def _edge_slopes(self, lo: Array, hi: Array) -> list[Array]:
        """f' at the edges: its extremes on the box are among them."""
        return [self.derivative(x) for x in self._edges(lo, hi)]

    def _margin(self, x: Array, f: Array, line: Any) -> Array:
        return (abs(f) + abs(line)) * ULPS + self.noise * ULPS * (1 + abs(x)) + TINY

    def extreme(self, lo: Array, hi: Array, slope: Array, sign: float) -> tuple[Array, Array]:
        """A bound from below of `sign f(x) - slope x` on [lo, hi], and a point where it is nearly attained."""
        edges = self._edges(lo, hi)
        best, at = np.full_like(lo, np.inf), lo
        for x in edges:
            f, line = sign * self.value(x), slope * x
            least = f - line - self._margin(x, f, line)
            at, best = np.where(least < best, x, at), np.where(least >= best, best, least)  # nan stays
        for a, b in zip(edges[:-1], edges[1:], strict=True):
            bowl = (self.bowl((a + b) / 2) == (sign > 0)) & (a < b)
            if not np.any(bowl):
                continue
            p = np.fmin(np.fmax(self.point(sign * slope, a, b), a), b)
            f, line, tangent = sign * self.value(p), slope * p, sign * self.derivative(p)
            rise = tangent - slope
            drop = np.maximum(np.maximum(rise * (p - a), -rise * (b - p)), 0.0)
            error = self._margin(p, f, line) + ULPS * (b - a) * (abs(tangent) + abs(slope) + self.noise)
            least = f - line - drop - error
            take = bowl & ~(least >= best)
            at, best = np.where(take, p, at), np.where(take, least, best)
        return best, at

    def _slopes(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        """Slopes of the lower and the upper line."""
        mid = lo + (hi - lo) / 2
        at_mid, bowl = self.derivative(mid), self.bowl(mid)
        wide = hi - lo > 1e-7 * (1e-9 + abs(lo))  # narrower: the quotient below would be mostly rounding
        chord = (self.value(hi) - self.value(lo)) / np.where(wide, hi - lo, 1.0)
        slopes = self._edge_slopes(lo, hi)
        chord = np.where(wide, np.minimum(np.maximum(chord, _smallest(slopes)), _largest(slopes)), at_mid)
        below, above = np.where(bowl, at_mid, chord), np.where(bowl, chord, at_mid)
        mixed = wide & False
        for c in self.bends(lo, hi):
            mixed = mixed | (wide & (c > lo) & (c < hi))
        if np.any(mixed):
            below = np.where(mixed, self._support(lo, hi, mid, 1.0, slopes), below)
            above = np.where(mixed, -self._support(lo, hi, mid, -1.0, slopes), above)
        return below, above

    def _support(self, lo: Array, hi: Array, mid: Array, sign: float, slopes: list[Array]) -> Array:
        """Slope of the line below `sign f` that is highest in the middle of the box.

        The height `min_x (sign f(x) - s x) + s mid` is concave in s, with derivative mid - x.
        """
        near, far = _smallest([sign * s for s in slopes]), _largest([sign * s for s in slopes])
        for _ in range(SLOPE_STEPS):
            s = (near + far) / 2
            left = self.extreme(lo, hi, s, sign)[1] < mid
            near, far = np.where(left, s, near), np.where(left, far, s)
        return (near + far) / 2


def _smallest(xs: list[Array]) -> Array:
    out = xs[0]
    for x in xs[1:]:
        out = np.minimum(out, x)
    return out


def _largest(xs: list[Array]) -> Array:
    return -_smallest([-x for x in xs])


class _Wave(Curve):
    """Sin and Cos: the half periods between two zeros are the pieces."""

    least, most, limits = -1.0, 1.0, (-1.0, 1.0)
    shift: float  # a zero of the function
    turn: float  # its derivative there

    def bends(self, lo: Array, hi: Array) -> tuple[Array, ...]:
        first = np.ceil((lo - self.shift) / pi)
        return tuple(self.shift + pi * (first + j) for j in range(3))

    def bowl(self, x: Array) -> Array:
        return self.value(x) < 0

    def point(self, s: Array, a: Array, b: Array) -> Array:
        k = np.floor(((a + b) / 2 - self.shift) / pi)
        up = self.turn * (1.0 - 2.0 * (k % 2))  # the derivative at the piece's left zero
        return self.shift + pi * k + np.arccos(np.minimum(np.maximum(s * up, -1.0), 1.0))

    def tame(self, lo: Array, hi: Array) -> Array:
        return (hi - lo <= 2 * pi) & (np.maximum(abs(lo), abs(hi)) < 1e6)

    def term_size(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        return np.maximum(abs(lo[0]), abs(hi[0]))

    def _interval(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        tame = self.tame(lo, hi)
        low, up = super()._interval(np.where(tame, lo, 0.0), np.where(tame, hi, 0.0))
        return np.where(tame, low, -1.0), np.where(tame, up, 1.0)


@dataclass(frozen=True)
class Sin(_Wave):
    """The sine."""

    kind: str = field(default="Sin", init=False)
    shift = 0.0
    turn = 1.0

    def value(self, x: Array) -> Array:
        return np.sin(x)

    def derivative(self, x: Array) -> Array:
        return np.cos(x)


@dataclass(frozen=True)
class Cos(_Wave):
    """The cosine."""

    kind: str = field(default="Cos", init=False)
    shift = pi / 2
    turn = -1.0

    def value(self, x: Array) -> Array:
        return np.cos(x)

    def derivative(self, x: Array) -> Array:
        return -np.sin(x)


@dataclass(frozen=True)
class Exp(Curve):
    """The exponential function."""

    kind: str = field(default="Exp", init=False)
    least, limits, increasing = 0.0, (0.0, np.inf), True

    def value(self, x: Array) -> Array:
        return np.exp(x)

    def derivative(self, x: Array) -> Array:
        return np.exp(x)

    def bowl(self, x: Array) -> Array:
        return x == x

    def point(self, s: Array, a: Array, b: Array) -> Array:
        return np.log(np.maximum(s, TINY))


@dataclass(frozen=True)
class Log(Curve):
    """The natural logarithm, of positive numbers."""

    kind: str = field(default="Log", init=False)
    increasing = True

    def value(self, x: Array) -> Array:
        return np.log(x)

    def derivative(self, x: Array) -> Array:
        return 1.0 / x

    def bowl(self, x: Array) -> Array:
        return x != x

    def point(self, s: Array, a: Array, b: Array) -> Array:
        return 1.0 / np.maximum(s, TINY)

    def domain(self, lo: Array) -> Array:
        return np.maximum(lo, 0.0)

    def tame(self, lo: Array, hi: Array) -> Array:
        return (lo > 0) & np.isfinite(hi)

    def term_size(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        # chord: at most log(h / l) + 1 for any sub-box [l, h]; tangent in the middle: at most 2
        with np.errstate(all="ignore"):
            size = abs(np.log(np.maximum(lo[0], 0.0))) + abs(np.log(np.maximum(hi[0], 0.0))) + 2.0
        return np.where(np.isnan(size), np.inf, size)


@dataclass(frozen=True)
class Power(Curve):
    """`x ** exponent`. Whole exponents take any x (negative ones not zero), others only x >= 0."""

    exponent: float
    kind: str = field(default="Power", init=False)

    @property
    def whole(self) -> bool:
        return float(self.exponent).is_integer()

    @property
    def odd(self) -> bool:
        return self.whole and int(self.exponent) % 2 == 1

    @property
    def least(self) -> float:  # type: ignore[override]
        return -np.inf if self.odd else 0.0

    @property
    def limits(self) -> tuple[float, float]:  # type: ignore[override]
        if self.exponent < 0:
            return 0.0, 0.0
        return (-np.inf if self.odd else np.inf), np.inf

    def _power(self, x: Array, p: float) -> Array:
        special = {0.0: lambda v: v * 0 + 1.0, 1.0: lambda v: v, 2.0: lambda v: v * v, -1.0: lambda v: 1.0 / v}
        if p in special:
            return special[p](x)
        return np.sqrt(x) if p == 0.5 else np.power(x, p)

    def value(self, x: Array) -> Array:
        return self._power(x, float(self.exponent))

    def derivative(self, x: Array) -> Array:
        if not self.whole:  # the slope at zero is never used, but it must not be infinite
            x = np.maximum(x, TINY)
        return self.exponent * self._power(x, self.exponent - 1.0)

    def bends(self, lo: Array, hi: Array) -> tuple[Array, ...]:
        return (np.zeros_like(lo),) if self.odd and self.exponent > 0 else ()

    def bowl(self, x: Array) -> Array:
        if self.odd:
            return x > 0
        return x == x if self.whole or not 0 < self.exponent < 1 else x != x

    def point(self, s: Array, a: Array, b: Array) -> Array:
        size = np.power(abs(s / self.exponent), 1.0 / (self.exponent - 1.0))
        if self.whole and not self.odd and self.exponent > 0:
            return np.where(s < 0, -size, size)
        return np.where(a + b < 0, -size, size)

    def domain(self, lo: Array) -> Array:
        return lo if self.whole else np.maximum(lo, 0.0)

    def tame(self, lo: Array, hi: Array) -> Array:
        finite = np.isfinite(lo) & np.isfinite(hi)
        return finite if self.exponent > 0 else finite & ((lo > 0) | (hi < 0))

    def term_size(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        # slope times argument is at most 2 max(1, |p|) |f| for chords and tangents in the middle of any sub-box
        low, up = self.interval(lo, hi)
        return 2.0 * max(1.0, abs(self.exponent)) * np.maximum(abs(low), abs(up))

    def _interval(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        if self.exponent > 0:
            return super()._interval(lo, hi)
        lo = self.domain(lo)
        inside = self.tame(np.maximum(lo, -HUGE), np.minimum(hi, HUGE)) & (lo <= hi)
        low, up = super()._interval(np.where(inside, lo, 1.0), np.where(inside, hi, 1.0))
        return np.where(inside, low, self.least), np.where(inside, up, np.inf)

    def parameters(self) -> dict[str, Any]:
        return {"exponent": float(self.exponent)}


@dataclass(frozen=True)
class Softplus(Curve):
    """`log(1 + exp(x))`."""

    kind: str = field(default="Softplus", init=False)
    least, limits, increasing = 0.0, (0.0, np.inf), True

    def value(self, x: Array) -> Array:
        return np.maximum(x, 0.0) + np.log1p(np.exp(-abs(x)))

    def derivative(self, x: Array) -> Array:
        e = np.exp(-abs(x))
        return np.where(x >= 0, 1.0, e) / (1.0 + e)

    def bowl(self, x: Array) -> Array:
        return x == x

    def point(self, s: Array, a: Array, b: Array) -> Array:
        s = np.minimum(np.maximum(s, TINY), 1.0)
        return np.log(s) - np.log1p(-s)


@dataclass(frozen=True)
class Elu(Curve):
    """`x` right of zero, `exp(x) - 1` left of it (other factors are sums of this and a ReLU)."""

    kind: str = field(default="Elu", init=False)
    least, limits, increasing = -1.0, (-1.0, np.inf), True

    def value(self, x: Array) -> Array:
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0.0)))

    def derivative(self, x: Array) -> Array:
        return np.exp(np.minimum(x, 0.0))

    def bowl(self, x: Array) -> Array:
        return x == x

    def point(self, s: Array, a: Array, b: Array) -> Array:
        return np.log(np.maximum(s, TINY))


@dataclass(frozen=True)
class Softsign(Curve):
    """`x / (1 + |x|)`."""

    kind: str = field(default="Softsign", init=False)
    least, most, limits, increasing = -1.0, 1.0, (-1.0, 1.0), True

    def value(self, x: Array) -> Array:
        return x / (1.0 + abs(x))

    def derivative(self, x: Array) -> Array:
        return 1.0 / ((1.0 + abs(x)) * (1.0 + abs(x)))

    def bends(self, lo: Array, hi: Array) -> tuple[Array, ...]:
        return (np.zeros_like(lo),)

    def bowl(self, x: Array) -> Array:
        return x < 0

    def point(self, s: Array, a: Array, b: Array) -> Array:
        size = 1.0 / np.sqrt(np.maximum(s, TINY)) - 1.0
        return np.where(a + b < 0, -size, size)


@dataclass(frozen=True)
class Atan(Curve):
    """The arc tangent."""

    kind: str = field(default="Atan", init=False)
    least, most, limits, increasing = (
        -1.5707963267948968,
        1.5707963267948968,
        (-1.5707963267948968, 1.5707963267948968),
        True,
    )

    def value(self, x: Array) -> Array:
        return np.arctan(x)

    def derivative(self, x: Array) -> Array:
        return 1.0 / (1.0 + x * x)

    def bends(self, lo: Array, hi: Array) -> tuple[Array, ...]:
        return (np.zeros_like(lo),)

    def bowl(self, x: Array) -> Array:
        return x < 0

    def point(self, s: Array, a: Array, b: Array) -> Array:
        size = np.sqrt(np.maximum(1.0 / np.maximum(s, TINY) - 1.0, 0.0))
        return np.where(a + b < 0, -size, size)


def erf(x: Array) -> Array:
    """The error function, elementwise; NumPy has none."""
    return np.vectorize(exact_erf, otypes=[np.float64])(x) if np.size(x) else np.zeros_like(x)


@dataclass(frozen=True)
class Erf(Curve):
    """The error function."""

    kind: str = field(default="Erf", init=False)
    least, most, limits, increasing = -1.0, 1.0, (-1.0, 1.0), True

    def value(self, x: Array) -> Array:
        return erf(x)

    def derivative(self, x: Array) -> Array:
        return 2.0 / sqrt(pi) * np.exp(-x * x)

    def bends(self, lo: Array, hi: Array) -> tuple[Array, ...]:
        return (np.zeros_like(lo),)

    def bowl(self, x: Array) -> Array:
        return x < 0

    def point(self, s: Array, a: Array, b: Array) -> Array:
        size = np.sqrt(np.maximum(log(2.0 / sqrt(pi)) - np.log(np.maximum(s, TINY)), 0.0))
        return np.where(a + b < 0, -size, size)


class _Gate(Curve):
    """`x` times an increasing gate between 0 and 1: convex between two inflection points, concave outside."""

    least, limits, noise = -0.2785, (0.0, np.inf), 1.0
    bend: float

    def bends(self, lo: Array, hi: Array) -> tuple[Array, ...]:
        return (np.full_like(lo, -self.bend), np.full_like(lo, self.bend))

    def bowl(self, x: Array) -> Array:
        return abs(x) < self.bend


@dataclass(frozen=True)
class Gelu(_Gate):
    """`x Phi(x)` with the normal distribution function Phi."""

    kind: str = field(default="Gelu", init=False)
    bend = sqrt(2.0)

    def value(self, x: Array) -> Array:
        return 0.5 * x * (1.0 + erf(x / sqrt(2.0)))

    def derivative(self, x: Array) -> Array:
        return 0.5 * (1.0 + erf(x / sqrt(2.0))) + x * np.exp(-0.5 * x * x) / sqrt(2 * pi)


@dataclass(frozen=True)
class Silu(_Gate):
    """`x / (1 + exp(-x))`."""

    kind: str = field(default="Silu", init=False)
    bend = 2.3993572805154676

    def value(self, x: Array) -> Array:
        return x * _logistic(x)

    def derivative(self, x: Array) -> Array:
        return _logistic(x) * (1.0 + x * _logistic(-x))


def _logistic(x: Array) -> Array:
    e = np.exp(-abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


SIN, COS, EXP, LOG, SOFTPLUS, ELU = Sin(), Cos(), Exp(), Log(), Softplus(), Elu()
SOFTSIGN, ATAN, ERF, GELU, SILU = Softsign(), Atan(), Erf(), Gelu(), Silu()
SQUARE, SQRT, RECIPROCAL = Power(2.0), Power(0.5), Power(-1.0)
