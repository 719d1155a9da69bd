"""Arithmetic of the second reading: numbers with a bound on their own rounding, or exact fractions.

A `Value` is a tensor at several points at once. In float64 it carries `e`, a bound on its distance from the real
number it stands for, by running error analysis (Wilkinson; Higham, Accuracy and Stability of Numerical Algorithms,
section 3.3): every operation adds its own rounding to what its arguments bring along, sums of n products
`gamma_n sum |a| |b|`. In exact mode values are object arrays of `Fraction` and there is no `e`. Integers are int64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import lcm, prod

import numpy as np

from mucg4.check.wire import BOOL, DOUBLE, FLOAT
from mucg4.ops.arrays import AnyArray, BoolArray, FloatArray
from mucg4.records import dataclass

UNIT = 2.0**-53  # unit roundoff of a double; given
ULPS = 16.0  # units of rounding of one library function, with room; not measured
LEAST = 1e-290  # above what underflow can do; given: the least normal double is 2e-308
MOST_CELLS = 2**25  # numbers of one value at all points, of floats; not measured
FLOATS = (FLOAT, DOUBLE, 10, 16)


class Fallback(Exception):
    """The second reading does not know this; its text says what. Never leaves `mucg4.check`."""


@dataclass(frozen=True, eq=False)
class Value:
    """`v` holds the numbers, with a leading axis of points when `rows`; `kind` is ONNX's element type.

    `e` has the shape of `v` and bounds the error of each number; None stands for 0. `held` is the narrower element
    type whose numbers a widened tensor holds: going back to that type changes nothing.
    """

    v: AnyArray
    kind: int
    rows: bool = False
    e: FloatArray | None = None
    held: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The ONNX shape."""
        return tuple(self.v.shape[1:] if self.rows else self.v.shape)

    @property
    def is_float(self) -> bool:
        """True for numbers that are computed with as real ones, which integers at points are, too."""
        return self.kind in FLOATS or self.is_whole

    @property
    def is_whole(self) -> bool:
        """True for integers that depend on the input."""
        return self.rows and self.kind not in (*FLOATS, BOOL)

    def map(self, f: Callable[[AnyArray], AnyArray]) -> Value:
        """The same numbers, moved; `f` sees the ONNX shape only."""
        if not self.rows:
            return replace(self, v=f(self.v), e=None if self.e is None else f(self.e))
        size = self.v[0].size
        index = f(np.arange(size).reshape(self.shape))
        flat, shape = index.ravel(), (len(self.v), *index.shape)
        if len(self.v) * len(flat) > (MOST_CELLS >> 4 if self.v.dtype == object else MOST_CELLS):
            raise Fallback("a tensor of too many numbers")
        if len(flat) == size and np.array_equal(flat, np.arange(size)):
            return replace(self, v=self.v.reshape(shape), e=None if self.e is None else self.e.reshape(shape))
        v, e = (None if a is None else a.reshape(len(a), -1)[:, flat].reshape(shape) for a in (self.v, self.e))
        return replace(self, v=np.asarray(v), e=e)


def fractions(a: AnyArray) -> AnyArray:
    """The same numbers as an object array of fractions."""
    if a.dtype == object:
        return a
    out = np.empty(a.shape, dtype=object)
    out.ravel()[:] = [Fraction(x) for x in a.ravel().tolist()]
    return out


def scaled(a: AnyArray) -> tuple[AnyArray, int]:
    """`(integers, d)` with `a = integers / d`, for numbers of either kind."""
    out = np.empty(a.shape, dtype=object)
    if a.dtype == object:
        flat = [Fraction(x) for x in a.ravel()]
        d = lcm(*{x.denominator for x in flat}) if flat else 1
        out.ravel()[:] = [x.numerator * (d // x.denominator) for x in flat]
        return out, d
    mantissa, exponent = np.frexp(np.asarray(a, dtype=np.float64).ravel())
    whole = (mantissa * 2.0**53).astype(np.int64)
    least = int(exponent[whole != 0].min(initial=0))
    shift = np.where(whole != 0, exponent - least, 0)
    out.ravel()[:] = [m << s for m, s in zip(whole.tolist(), shift.tolist(), strict=True)]
    least -= 53
    return (out, 1 << -least) if least <= 0 else (out * (1 << least), 1)


def _plus(*parts: AnyArray | None) -> AnyArray | None:
    total = None
    for p in parts:
        if p is not None:
            total = p if total is None else total + p
    return total


def _times(a: AnyArray | None, b: AnyArray) -> AnyArray | None:
    return None if a is None else a * b


# functions without rational values that both readings know by one name; given
OPAQUE = frozenset("Sigmoid Tanh Erf Atan Softsign Softplus Sin Cos Exp Log Sqrt".split())


def opaque(kind: str, x: AnyArray) -> AnyArray:
    """Stands for a function that has no rational values where fractions `x` are compared exactly.

    Equal numbers get equal values and others do not, so what is equal with it is so with the function itself.
    """
    out = np.empty(x.shape, dtype=object)
    drawn = (hashlib.blake2b(f"{kind} {v}".encode(), digest_size=8).digest() for v in x.ravel().tolist())
    out.ravel()[:] = [Fraction(int.from_bytes(d, "little"), 2**64) for d in drawn]
    return out


class Arithmetic:
    """The operations; `spend(n)` is told the work of each before it is done and may raise."""

    def __init__(self, exact: bool, spend: Callable[[int], None]) -> None:
        self.exact, self.spend = exact, spend

    def room(self, *shape: int) -> None:
        """Raise `Fallback` before an array of this shape becomes larger than memory should hold."""
        size = 1
        for n in shape:
            size *= n
            if n < 0 or size > (MOST_CELLS >> 4 if self.exact else MOST_CELLS):
                raise Fallback("a tensor of too many numbers")

    def number(self, value: float, like: Value) -> Value:
        """A scalar constant of the element type of another value."""
        return Value(np.array(value, dtype=np.float64), like.kind)

    def real(self, x: Value) -> Value:
        """A value that arithmetic of real numbers can use."""
        if self.exact:
            return replace(x, v=fractions(x.v))
        return x if x.v.dtype == np.float64 else replace(x, v=x.v.astype(np.float64))

    def same_rank(self, *xs: Value) -> list[Value]:
        """Real values of one rank; axes are added in front, behind that of the points."""
        rank = max(len(x.shape) for x in xs)
        out = []
        for x in map(self.real, xs):
            if x.rows and len(x.shape) < rank:
                shape = (len(x.v), *(1,) * (rank - len(x.shape)), *x.shape)
                x = replace(x, v=x.v.reshape(shape), e=None if x.e is None else x.e.reshape(shape))
            out.append(x)
        return out

    def line_up(self, *xs: Value) -> list[Value]:
        """Real values whose arrays broadcast against each other as their ONNX shapes do."""
        out = self.same_rank(*xs)
        shape = (max(len(x.v) if x.rows else 1 for x in xs), *np.broadcast_shapes(*(x.shape for x in xs)))
        self.room(*shape)
        self.spend(prod(shape))
        return out

    def made(self, like: tuple[Value, ...], v: AnyArray, *errors: AnyArray | None) -> Value:
        """A result: rows where an argument has them, and its error unless exact."""
        kind = next((x.kind for x in like if x.rows), like[0].kind)
        e = None if self.exact else _plus(*errors)
        rows = any(x.rows for x in like)
        return Value(v, kind, rows, None if e is None else np.broadcast_to(e, np.shape(v)))

    def add(self, a: Value, b: Value, sign: int = 1) -> Value:
        """`a + sign b`."""
        a, b = self.line_up(a, b)
        v = a.v + b.v if sign > 0 else a.v - b.v
        if self.exact:
            return self.made((a, b), v)
        own = np.where(np.isinf(a.v) != np.isinf(b.v), 0.0, UNIT * abs(v))  # infinity plus a number is exact
        return self.made((a, b), v, a.e, b.e, own)

    def multiply(self, a: Value, b: Value) -> Value:
        """`a b`."""
        a, b = self.line_up(a, b)
        v = a.v * b.v
        if self.exact:
            return self.made((a, b), v)
        both = None if a.e is None or b.e is None else a.e * b.e
        out = self.made((a, b), v, _times(a.e, abs(b.v)), _times(b.e, abs(a.v)), both, UNIT * abs(v))
        return self._masked(self._masked(out, a, b), b, a)

    def divide(self, a: Value, b: Value) -> Value:
        """`a / b`; where b may be 0 nothing is known."""
        a, b = self.line_up(a, b)
        if self.exact:
            if not np.all(b.v != 0):
                raise Fallback("a division by zero")
            return self.made((a, b), a.v / b.v)
        with np.errstate(all="ignore"):
            v = a.v / b.v
            size = abs(b.v) if b.e is None else abs(b.v) - b.e
            carried = _plus(a.e, _times(b.e, abs(v)))
            spread = None if carried is None else carried / size
            unknown = np.where(size > 0, 0.0, np.inf)
        return self._masked(self.made((a, b), v, spread, UNIT * abs(v), unknown), a, b)

    @staticmethod
    def _masked(out: Value, a: Value, b: Value) -> Value:
        """A product or quotient of an infinite number, which a mask has put there, and one that is not 0: exact."""
        masked = np.isinf(a.v) & np.isfinite(b.v)
        if out.e is None or not masked.any():
            return out
        sure = masked & (abs(b.v) > (0.0 if b.e is None else b.e)) & np.isfinite(0.0 if a.e is None else a.e)
        return replace(out, e=np.where(sure, 0.0, out.e))

    def choose(self, mask: BoolArray, a: Value, b: Value) -> Value:
        """`a` where the mask holds, else `b`; the arrays must be lined up."""
        e = _plus(a.e, b.e)
        return self.made((a, b), np.where(mask, a.v, b.v), e)

    def extremum(self, a: Value, b: Value, largest: bool) -> Value:
        """The larger or the smaller of two."""
        a, b = self.line_up(a, b)
        if self.exact:
            return self.made((a, b), np.where(a.v > b.v if largest else a.v < b.v, a.v, b.v))
        v = np.maximum(a.v, b.v) if largest else np.minimum(a.v, b.v)
        known = [x.e for x in (a, b) if x.e is not None]
        return self.made((a, b), v, known[0] if len(known) == 1 else np.maximum(*known) if known else None)

    def call(
        self,
        f: Callable[[AnyArray], AnyArray],
        x: Value,
        slope: float | None = None,
        units: float = ULPS,
        kind: str = "",
    ) -> Value:
        """A function of each number, `f` good to `units` units in the last place of its value.

        `slope` bounds |f'|; without it f has to be monotone near each number. In exact mode it is the opaque function
        of its `kind`, which has to be one of `OPAQUE`.
        """
        x = self.real(x)
        if self.exact:
            if kind not in OPAQUE:
                raise Fallback("no exact evaluation")
            self.spend(16 * x.v.size)
            return self.made((x,), opaque(kind, x.v))
        self.spend(16 * x.v.size)
        with np.errstate(all="ignore"):
            v = f(x.v)
            carried = None
            if x.e is not None and slope is not None:
                carried = slope * x.e
            elif x.e is not None:
                carried = np.maximum(abs(f(x.v + x.e) - v), abs(f(x.v - x.e) - v))
                carried = np.where(x.e == 0, 0.0, np.where(np.isnan(carried), np.inf, carried))
            return self.made((x,), v, carried, (units * UNIT) * abs(v))

    def step(self, f: Callable[[AnyArray], AnyArray], x: Value) -> Value:
        """A step function, exact at exact numbers; where the error reaches a jump nothing is known."""
        x = self.real(x)
        if self.exact:
            out = np.empty(x.v.shape, dtype=object)
            out.ravel()[:] = [Fraction(y) for y in f(x.v).ravel()]
            return self.made((x,), out)
        v = f(x.v)
        if x.e is None:
            return self.made((x,), v)
        return self.made((x,), v, np.where((f(x.v - x.e) == v) & (f(x.v + x.e) == v), 0.0, np.inf))

    def total(self, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
        """The sum over ONNX axes."""
        x = self.real(x)
        at = tuple(a + x.rows for a in axes)
        count = int(np.prod([x.shape[a] for a in axes], dtype=object))
        v = x.v.sum(axis=at, keepdims=keep)
        if self.exact:
            return self.made((x,), v)
        own = (count * UNIT) * abs(x.v).sum(axis=at, keepdims=keep)
        return self.made((x,), v, own, None if x.e is None else x.e.sum(axis=at, keepdims=keep))

    def matrix(self, a: Value, b: Value) -> Value:
        """`a @ b` of arrays that NumPy's matmul takes as they are, at least two axes each."""
        a, b = (x if self.exact else self.real(x) for x in (a, b))
        n = a.v.shape[-1]
        outer = np.broadcast_shapes(a.v.shape[:-2], b.v.shape[:-2])
        self.room(*outer, a.v.shape[-2], b.v.shape[-1])
        self.spend(prod(outer) * a.v.shape[-2] * n * b.v.shape[-1])
        if self.exact:
            (left, p), (right, q) = scaled(a.v), scaled(b.v)
            return self.made((a, b), np.matmul(left, right) * Fraction(1, p * q))
        v = a.v @ b.v
        # (gamma |a| + e_a) |b| + (|a| + e_a) e_b
        size = abs(a.v)
        e = ((n + 2) * UNIT * size if a.e is None else (n + 2) * UNIT * size + a.e) @ abs(b.v)
        other = None if b.e is None else (size if a.e is None else size + a.e) @ b.e
        return self.made((a, b), v, e, other)
