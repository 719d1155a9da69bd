"""Constants of a network and the arithmetic among them.

Stored numbers are exact. The contract is real arithmetic on them, so floating-point constants are computed in double
and carry a bound of what that lost (`mucg4.read.roundoff`): a constant merged into a bias brings it into
`offset_magnitude`, a weight brings it as a number of roundings, and a weight that lost its digits is refused.

A step (Floor, Sign, Equal, a Cast that rounds ...) of a number that onnxruntime computes in float32 may fall to the
other side there, and real arithmetic alone does not decide what the file means. Steps are read of *certain* numbers
only: stored ones, and results every intermediate step of which has no rounding in the tensor's own type, so that
every runtime and real arithmetic agree to the bit. Integers wrap around as in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.ops.arrays import AnyArray, BoolArray, FloatArray
from mucg4.read import roundoff
from mucg4.read.protobuf import (
    BOOL,
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    OnnxNode,
    shortened,
)
from mucg4.read.roundoff import UNIT, Error, Pair
from mucg4.records import dataclass

LARGEST_ROUNDINGS = 2**16  # a weight whose digits are worse than so many roundings is refused; not measured
COMPUTED = (FLOAT, DOUBLE)  # element types whose arithmetic is folded


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor known at load time: `value` is within `error` (None: exactly) of the real number it stands for.

    `kind` is the ONNX element type; computed float32 tensors hold double values. `certain` tells that
    every runtime has exactly this value.
    """

    value: AnyArray
    name: str = ""
    kind: int = FLOAT
    error: Error = None
    certain: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def is_float(self) -> bool:
        return bool(self.value.dtype.kind == "f")

    def map(self, f: Callable[[AnyArray], AnyArray]) -> Constant:
        """The same numbers, moved."""
        return replace(self, value=f(self.value), error=None if self.error is None else f(self.error))

    def hollowed(self) -> tuple[Constant, BoolArray]:
        """The tensor with zeros where it holds minus infinity, and where that is."""
        void = np.asarray(self.value == -np.inf) if self.is_float else np.zeros(self.shape, dtype=bool)
        if not void.any():
            return self, void
        return replace(self, value=np.where(void, np.zeros((), self.value.dtype), self.value)), void

    def double(self) -> FloatArray:
        """The value in double."""
        with np.errstate(all="ignore"):  # a file may hold nan of a kind that NumPy warns about
            return self.value.astype(np.float64)

    def offset(self, shape: tuple[int, ...] | None = None) -> tuple[FloatArray, AnyArray | None]:
        """`(value, error)` flat and finite, for use as a bias; broadcast to `shape` when given."""
        value, error = self._finite(), self.error
        if shape is not None:
            value = np.broadcast_to(value, shape)
            error = None if error is None else np.broadcast_to(error, shape)
        return value.ravel(), None if error is None else error.ravel()

    def weight(self) -> tuple[FloatArray, int]:
        """The value in double, finite, and of how many roundings each entry may suffer."""
        value = self._finite()
        if self.error is None:
            return value, 0
        with np.errstate(all="ignore"):
            units = np.max(np.where(self.error > 0, self.error / (UNIT * abs(value)), 0.0), initial=0.0)
        if not units < LARGEST_ROUNDINGS:
            raise UnsupportedError(
                f"the weights {shortened(self.name)} are computed in the network with a loss of digits"
            )
        return value, int(np.ceil(units * roundoff.UP))

    def stated(self, node: OnnxNode, what: str) -> AnyArray:
        """The value of a constant that has to be certain: it decides a step, a shape or an exponent."""
        if not self.certain:
            raise node.unsupported(f"{what} ({shortened(self.name)}) is computed in the network with rounding")
        return self.value

    def _finite(self) -> FloatArray:
        value = self.double()
        if not np.all(np.isfinite(value)) or not np.all(np.isfinite(roundoff.size(self.error))):
            raise InputError(f"the network's constant {shortened(self.name)} holds nan or infinite numbers")
        return value

    def integers(self) -> tuple[int, ...]:
        """A list of dimensions, axes or positions."""
        if self.value.dtype.kind not in "iu":
            raise InputError(f"the constant {shortened(self.name)} must hold integers")
        return tuple(int(v) for v in self.value.ravel())


def number(value: float, kind: int = DOUBLE) -> Constant:
    """A constant that an attribute or a rule of ONNX gives."""
    return Constant(np.array(value, dtype=np.float64), kind=kind)


def made(pair: Pair, *sources: Constant) -> Constant:
    """The result of floating-point arithmetic on `sources`, with what is certain about it."""
    value, error = pair
    first = sources[0]
    kind = next((c.kind for c in sources if c.name), first.kind)
    certain = error is None and all(c.certain for c in sources)
    if certain and kind == FLOAT:
        with np.errstate(all="ignore"):
            certain = bool(np.all(value.astype(np.float32) == value))
    return Constant(value, next((c.name for c in sources if c.name), ""), kind, error, certain)


def _integers(a: Constant, b: Constant, f: Callable[[AnyArray, AnyArray], AnyArray]) -> Constant:
    if a.value.dtype != b.value.dtype or a.kind not in (INT32, INT64):
        raise UnsupportedError(
            f"arithmetic on constants {shortened(a.name)} and {shortened(b.name)} of element types {a.kind}, {b.kind}"
        )
    with np.errstate(all="ignore"):  # integers wrap around
        return Constant(np.asarray(f(np.atleast_1d(a.value), np.atleast_1d(b.value))), a.name or b.name, a.kind)


def _of_integers(a: Constant, b: Constant, f: Callable[[AnyArray, AnyArray], AnyArray]) -> Constant:
    made_ = _integers(a, b, f)
    return replace(made_, value=made_.value.reshape(np.broadcast_shapes(a.shape, b.shape)))


def _floats(*constants: Constant) -> None:
    for c in constants:
        if c.kind not in COMPUTED:
            raise UnsupportedError(
                f"arithmetic on the constant {shortened(c.name)} of element type {c.kind} is not supported"
            )


def add(a: Constant, b: Constant, sign: float = 1.0) -> Constant:
    """`a + sign * b`."""
    if not a.is_float and not b.is_float:
        return _of_integers(a, b, np.add if sign > 0 else np.subtract)
    _floats(a, b)
    return made(roundoff.plus(a.double(), sign * b.double(), a.error, b.error), a, b)


def multiply(a: Constant, b: Constant) -> Constant:
    """Elementwise product."""
    if not a.is_float and not b.is_float:
        return _of_integers(a, b, np.multiply)
    _floats(a, b)
    return made(roundoff.times(a.double(), b.double(), a.error, b.error), a, b)


def divide(a: Constant, b: Constant) -> Constant:
    """Elementwise quotient; integers truncate towards zero. Raises `InputError` for zero divisors."""
    if np.any(b.value == 0):
        raise InputError(f"the network divides by the constant {shortened(b.name)}, which holds a zero")
    if not a.is_float and not b.is_float:
        return _of_integers(a, b, _truncating)
    _floats(a, b)
    out = made(roundoff.over(a.double(), b.double(), a.error, b.error), a, b)
    if not np.all(np.isfinite(roundoff.size(out.error))):
        raise InputError(f"the network divides by the constant {shortened(b.name)}, which is zero up to rounding")
    return out


def _truncating(a: AnyArray, b: AnyArray) -> AnyArray:
    """Division of integers as in C, exactly; the smallest integer by -1 has no quotient."""
    if np.any((b == -1) & (a == np.iinfo(a.dtype).min)):
        raise UnsupportedError("the smallest integer divided by -1 is not supported")
    quotient = a // b
    inexact = quotient * b != a
    return np.asarray(quotient + (inexact & ((a < 0) != (b < 0))).astype(a.dtype))


def matmul(a: Constant, b: Constant) -> Constant:
    """Matrix product."""
    if not a.is_float and not b.is_float:
        if a.value.dtype != b.value.dtype or a.kind not in (INT32, INT64):
            raise UnsupportedError(f"a matrix product of element type {a.kind} is not supported")
        return Constant(np.asarray(np.matmul(a.value, b.value)), a.name, a.kind)
    _floats(a, b)
    out = made(roundoff.product(a.double(), b.double(), a.error, b.error), a, b)
    return replace(out, certain=False)  # partial sums are in the hands of the runtime


def total(a: Constant, axes: tuple[int, ...], keep: bool, mean: bool = False) -> Constant:
    """Sum or mean over axes."""
    if not a.is_float:
        if mean or a.kind not in (INT32, INT64):
            raise UnsupportedError(f"a sum or mean of the constant {shortened(a.name)} of element type {a.kind}")
        small_enough(abs(a.double()).sum(axis=axes), a)
        return Constant(np.asarray(a.value.sum(axis=axes, keepdims=keep, dtype=a.value.dtype)), a.name, a.kind)
    _floats(a)
    value, error = roundoff.total(a.double(), axes, keep, a.error)
    if mean:
        value, error = roundoff.over(value, np.array(float(np.prod([a.shape[i] for i in axes]))), error)
    return replace(made((value, error), a), certain=False)


def small_enough(sizes: AnyArray, a: Constant) -> None:
    """Refuse to reduce integers to numbers that onnxruntime, which may compute them as floats, does not hold."""
    if np.any(sizes >= 2.0 ** (31 if a.kind == INT32 else 53)):
        raise UnsupportedError(
            f"a sum or product of the integers {shortened(a.name)} as large as theirs is not supported"
        )


def extremum(a: Constant, b: Constant, largest: bool) -> Constant:
    """Elementwise maximum or minimum."""
    pick = np.maximum if largest else np.minimum
    if a.kind != b.kind and a.name and b.name:
        raise UnsupportedError(f"an extremum of the element types {a.kind} and {b.kind}")
    value, error = np.asarray(pick(a.value, b.value)), None
    if a.error is not None or b.error is not None:
        error = np.maximum(roundoff.size(a.error), roundoff.size(b.error)) + np.zeros(value.shape)
    kind = a.kind if a.name else b.kind
    return Constant(value, a.name or b.name, kind, error, a.certain and b.certain)


def negate(a: Constant) -> Constant:
    """-a."""
    if a.value.dtype.kind in "bu":
        raise UnsupportedError(f"the negative of the constant {shortened(a.name)} of element type {a.kind}")
    with np.errstate(all="ignore"):
        return replace(a, value=np.asarray(-a.value))


def absolute(a: Constant) -> Constant:
    """|a|."""
    if a.value.dtype.kind == "i" and np.any(a.value == np.iinfo(a.value.dtype).min):
        raise UnsupportedError(f"the absolute value of the smallest integer ({shortened(a.name)})")
    return replace(a, value=np.asarray(abs(a.value)))


def power(node: OnnxNode, base: Constant, exponent: Constant) -> Constant:
    """Elementwise power of floats, or of integers to exponents that are not negative as long as doubles hold it."""
    e = exponent.stated(node, "the exponent")
    if not base.is_float:
        if e.dtype.kind not in "iu" or np.any(e < 0) or base.kind not in (INT32, INT64):
            raise node.unsupported("a power of integers with such exponents")
        with np.errstate(all="ignore"):
            value = np.power(base.double(), e.astype(np.float64))
        if np.any(abs(value) >= 2.0 ** (31 if base.kind == INT32 else 53)):
            raise node.unsupported("a power of integers that large")
        return Constant(np.asarray(np.rint(value)).astype(base.value.dtype), base.name, base.kind)
    _floats(base)
    x, y = base.double(), e.astype(np.float64)
    with np.errstate(all="ignore"):
        value = np.power(x, y)
        spread = abs(value * y / x)
        lost = roundoff.FUNCTION_UNITS * UNIT * abs(value) + roundoff.TINY
        if base.error is not None:  # the slope changes little on a relative distance of 2**-20
            lost = lost + np.where(base.error * 2.0**20 < abs(x), 2.0 * spread * base.error, np.inf)
    return replace(made((np.asarray(value), roundoff.known(np.asarray(lost))), base), certain=False)


def function(node: OnnxNode, a: Constant) -> Constant:
    """Sqrt, Reciprocal, Exp, Log, Tanh, Sin or Cos of a constant."""
    _floats(a)
    x, e = a.double(), a.error
    with np.errstate(all="ignore"):  # nan and inf are refused where the result is used
        if node.op == "Sqrt":
            return replace(made(roundoff.root(x, e), a), certain=False)
        if node.op == "Reciprocal":
            return divide(number(1.0), a)
        if node.op in ("Sin", "Cos", "Tanh"):
            pair = roundoff.function(x, getattr(np, node.op.lower()), np.ones(()), e)
        elif node.op == "Exp":
            pair = roundoff.function(x, np.exp, np.exp(x + roundoff.size(e)) * (1 + 2.0**-40), e)
        else:
            low = x - roundoff.size(e)
            pair = roundoff.function(x, np.log, np.where(low > 0, 1.0 / low, np.inf) if e is not None else 0.0 * x, e)
    return replace(made(pair, a), certain=False)


def step(node: OnnxNode, a: Constant) -> Constant:
    """Floor, Ceil, Round or Sign of a constant that is certain."""
    value = a.stated(node, "its input")
    steps: dict[str, Callable[..., AnyArray]] = {"Floor": np.floor, "Ceil": np.ceil, "Round": np.round, "Sign": np.sign}
    return replace(a, value=np.asarray(steps[node.op](value)))


def compare(node: OnnxNode, f: Callable[..., AnyArray], *sources: Constant) -> Constant:
    """A truth value of constants that are certain and of one element type."""
    if len({c.kind for c in sources}) > 1:
        raise node.invalid(f"its inputs have the element types {[c.kind for c in sources]}")
    return Constant(np.asarray(f(*(c.stated(node, "its input") for c in sources))), node.outputs[0], BOOL)


def where(node: OnnxNode, choice: Constant, a: Constant, b: Constant) -> Constant:
    """`a` where choice holds, else `b`."""
    if choice.kind != BOOL or a.kind != b.kind:
        raise node.invalid(f"its inputs have the element types {[c.kind for c in (choice, a, b)]}")
    chosen = choice.stated(node, "its condition")
    value, error = np.asarray(np.where(chosen, a.value, b.value)), None
    if a.error is not None or b.error is not None:
        lost = np.where(chosen, roundoff.size(a.error), roundoff.size(b.error))
        error = roundoff.known(np.broadcast_to(lost, value.shape))
    return Constant(value, node.outputs[0], a.kind, error, a.certain and b.certain)
