"""Second reading: operators that compute, each as the ONNX pages define it and onnxruntime executes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import erf, pi, prod
from typing import TYPE_CHECKING

import numpy as np

from mucg4.check.moves import Meaning, Values, axis_of, fixed, given
from mucg4.check.values import Fallback, Value, fractions
from mucg4.check.wire import BOOL, INT64, Node, single
from mucg4.ops.arrays import AnyArray

if TYPE_CHECKING:
    from mucg4.check.reading import Reading

MOST_POWERS = 64  # different exponents of one node; not measured


def _integers(*xs: Value) -> bool:
    if any(x.is_float for x in xs):
        return False
    if any(x.kind == BOOL or x.rows or x.v.dtype != xs[0].v.dtype for x in xs):
        raise Fallback("arithmetic of other than integers of one type")
    return True


def _add(r: Reading, a: Value, b: Value) -> Value:
    return replace(a, v=a.v + b.v) if _integers(a, b) else r.n.add(a, b)


def _subtract(r: Reading, a: Value, b: Value) -> Value:
    return replace(a, v=a.v - b.v) if _integers(a, b) else r.n.add(a, b, -1)


def _multiply(r: Reading, a: Value, b: Value) -> Value:
    return replace(a, v=a.v * b.v) if _integers(a, b) else r.n.multiply(a, b)


def _divide(r: Reading, a: Value, b: Value) -> Value:
    if not _integers(a, b):
        return r.n.divide(a, b)
    if np.any(b.v == 0):
        raise Fallback("a division by zero")
    down, rest = np.divmod(a.v, b.v)  # towards zero: one more where the floor of a negative quotient lies below it
    return replace(a, v=down + ((rest != 0) & ((a.v < 0) != (b.v < 0))).astype(a.v.dtype))


def _remainder(r: Reading, node: Node, xs: Values) -> list[Value]:
    a, b = given(xs, 0), given(xs, 1)
    if not _integers(a, b) or np.any(b.v == 0):
        raise Fallback("a remainder of other than integers, or by zero")
    rest = a.v - b.v * (a.v // b.v)  # the sign of the divisor
    if node.attributes.get("fmod", 0):
        rest = rest - b.v * ((rest != 0) & ((a.v < 0) != (b.v < 0))).astype(a.v.dtype)
    return [replace(a, v=rest)]


def _larger(r: Reading, a: Value, b: Value) -> Value:
    return replace(a, v=np.maximum(a.v, b.v)) if _integers(a, b) else r.n.extremum(a, b, True)


def _smaller(r: Reading, a: Value, b: Value) -> Value:
    return replace(a, v=np.minimum(a.v, b.v)) if _integers(a, b) else r.n.extremum(a, b, False)


def joined(f: Callable[[Reading, Value, Value], Value], count: int | None = None) -> Meaning:
    """A function of two or, where `count` is None, of any number of operands."""

    def meaning(r: Reading, node: Node, xs: Values) -> list[Value]:
        if (count is not None and len(xs) != count) or not xs:
            raise Fallback(f"{len(xs)} inputs")
        total = given(xs, 0)
        for i in range(1, len(xs)):
            total = f(r, total, given(xs, i))
        return [total]

    return meaning


def _mean(r: Reading, node: Node, xs: Values) -> list[Value]:
    total = joined(_add)(r, node, xs)[0]
    return [r.n.divide(total, r.n.number(float(len(xs)), total))]


def _negate(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    return [replace(x, v=-x.v)]


def _truth(f: Callable[..., AnyArray]) -> Meaning:
    """Comparisons and logic. At points truth values are the numbers 0 and 1, and where an error may change one nothing
    is known."""

    def meaning(r: Reading, node: Node, xs: Values) -> list[Value]:
        if not any(x is not None and x.rows for x in xs):
            return [Value(f(*(fixed(xs, i) for i in range(len(xs)))), BOOL)]
        if len(xs) == 1:
            x = given(xs, 0)
            return [_as_numbers(r, x, f(x.v > 0))]
        if node.op in ("And", "Or", "Xor"):
            a, b = r.n.line_up(*(_weight(r, given(xs, i)) for i in range(2)))
            out = f(a.v > 0, b.v > 0)
        else:
            a, b = r.n.line_up(given(xs, 0), given(xs, 1))
            out = f(a.v, b.v)
        made = r.n.made((a, b), np.zeros(out.shape), a.e, b.e)
        near = None if made.e is None else np.where(abs(a.v - b.v) <= made.e, np.inf, 0.0)
        return [replace(_as_numbers(r, made, out), e=near)]

    return meaning


def _as_numbers(r: Reading, like: Value, truth: AnyArray) -> Value:
    v = np.asarray(truth).astype(np.float64)
    return replace(like, v=fractions(v) if r.n.exact else v, kind=BOOL)


def _weight(r: Reading, x: Value) -> Value:
    """Truth values as numbers."""
    return x if x.rows else replace(x, v=x.v.astype(np.float64))


def _pick(mask: AnyArray, a: AnyArray, b: AnyArray) -> AnyArray:
    return np.where(mask, a, b)


def _where(r: Reading, node: Node, xs: Values) -> list[Value]:
    a, b = given(xs, 1), given(xs, 2)
    if given(xs, 0).rows:
        if BOOL in (a.kind, b.kind):
            raise Fallback("a choice of truth values")
        m, a, b = r.n.line_up(given(xs, 0), a, b)
        out = r.n.made((m, a, b), np.where(m.v > 0, a.v, b.v), m.e, a.e, b.e)
        return [replace(out, kind=a.kind)]
    mask = fixed(xs, 0)
    if mask is None:
        raise Fallback("no condition")
    if not (a.is_float or b.is_float):
        if a.rows or b.rows:
            raise Fallback("a choice of truth values")
        return [replace(a, v=_pick(mask, a.v, b.v))]
    a, b, m = r.n.line_up(a, b, replace(a, v=mask, rows=False, e=None, kind=INT64))
    return [r.n.choose(m.v != 0, a, b)]


# -- functions of one number ---------------------------------------------------------------------------------------


def _relu(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    if not x.is_float:
        return [replace(x, v=np.maximum(x.v, 0))]
    return [r.n.extremum(x, r.n.number(0.0, x), True)]


def _abs(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    return [replace(x, v=abs(x.v))]


def _bent(r: Reading, x: Value, slope: Value) -> Value:
    """x right of zero, slope times x left of it."""
    left = r.n.multiply(x, slope)
    x, left = r.n.line_up(x, left)
    return r.n.choose(x.v >= 0, x, left)


def _leaky_relu(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    return [_bent(r, x, r.n.number(node.attributes.get("alpha", single(0.01)), x))]


def _prelu(r: Reading, node: Node, xs: Values) -> list[Value]:
    return [_bent(r, given(xs, 0), given(xs, 1))]


def _thresholded(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = r.n.real(given(xs, 0))
    alpha = node.attributes.get("alpha", 1.0)
    out = r.n.choose(x.v > alpha, x, r.n.real(r.n.number(0.0, x)))
    if x.e is None:
        return [out]
    return [replace(out, e=np.where(abs(x.v - alpha) <= x.e, np.inf, x.e))]


def _clip(r: Reading, node: Node, xs: Values) -> list[Value]:
    """`min(max(x, lo), hi)`: the upper limit wins."""
    x = given(xs, 0)
    for at, key, largest in ((1, "min", True), (2, "max", False)):
        limit = xs[at] if at < len(xs) else None
        if key in node.attributes:
            limit = r.n.number(node.attributes[key], x)
        if limit is None or limit.v.dtype.kind == "f" and np.all(limit.v == (-np.inf if largest else np.inf)):
            continue
        x = r.n.extremum(x, limit, largest) if x.is_float else (_larger if largest else _smaller)(r, x, limit)
    return [x]


def _hard_sigmoid(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, a = given(xs, 0), node.attributes
    x = r.n.multiply(x, r.n.number(a.get("alpha", single(0.2)), x))
    x = r.n.add(x, r.n.number(a.get("beta", 0.5), x))
    return [r.n.extremum(r.n.extremum(x, r.n.number(0.0, x), True), r.n.number(1.0, x), False)]


def _hard_swish(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    y = r.n.add(r.n.divide(x, r.n.number(6.0, x)), r.n.number(0.5, x))
    y = r.n.extremum(r.n.extremum(y, r.n.number(0.0, x), True), r.n.number(1.0, x), False)
    return [r.n.multiply(x, y)]


def _function(f: Callable[[AnyArray], AnyArray], slope: float | None = None, units: float = 16.0) -> Meaning:
    def meaning(r: Reading, node: Node, xs: Values) -> list[Value]:
        return [r.n.call(f, given(xs, 0), slope, units, node.op)]

    return meaning


def _step(f: Callable[[AnyArray], AnyArray]) -> Meaning:
    def meaning(r: Reading, node: Node, xs: Values) -> list[Value]:
        x = given(xs, 0)
        if x.is_float:
            return [r.n.step(f, x)]
        if node.op != "Sign" or x.kind == BOOL:
            raise Fallback("a step of integers")
        return [replace(x, v=np.sign(x.v))]

    return meaning


def _sign(a: AnyArray) -> AnyArray:
    return (a > 0).astype(np.float64) - (a < 0).astype(np.float64)


def _round(a: AnyArray) -> AnyArray:
    """To the nearest integer, the even one of two."""
    if a.dtype != object:
        return np.rint(a)
    out = np.empty(a.shape, dtype=object)
    out.ravel()[:] = [round(x) for x in a.ravel()]
    return out


def _logistic(a: AnyArray) -> AnyArray:
    small = np.exp(-abs(a))
    return np.asarray(np.where(a < 0, small, 1.0) / (1.0 + small))


def _error_function(a: AnyArray) -> AnyArray:
    return np.array([erf(x) for x in a.ravel().tolist()]).reshape(a.shape)


def _softplus(a: AnyArray) -> AnyArray:
    return np.logaddexp(a, 0.0)


def _reciprocal(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    return [r.n.divide(r.n.number(1.0, x), x)]


def _gelu(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, kind = given(xs, 0), node.attributes.get("approximate", "none")
    n, c = r.n, r.n.number
    if kind == "none":
        inner = n.call(_error_function, n.multiply(x, c(0.5**0.5, x)), 1.2)
    elif kind == "tanh":
        cube = n.multiply(n.multiply(x, x), n.multiply(x, c(0.044715, x)))
        inner = n.call(np.tanh, n.multiply(n.add(x, cube), c((2 / pi) ** 0.5, x)), 1.0)
    else:
        raise Fallback(f"approximate {kind!r}")
    return [n.multiply(n.multiply(x, c(0.5, x)), n.add(inner, c(1.0, x)))]


def _tan(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    return [r.n.divide(r.n.call(np.sin, x, 1.0), r.n.call(np.cos, x, 1.0))]


def _mish(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    return [r.n.multiply(x, r.n.call(np.tanh, r.n.call(_softplus, x, 1.0), 1.0))]


def _elu(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, a = given(xs, 0), node.attributes
    alpha, gamma, inner = a.get("alpha", 1.0), 1.0, 1.0
    if node.op == "Selu":
        alpha, gamma = a.get("alpha", 1.67326319217681884765625), a.get("gamma", 1.05070102214813232421875)
    if node.op == "Celu":
        inner = alpha
    low = r.n.call(lambda v: np.expm1(np.minimum(v, 0.0)), r.n.divide(x, r.n.number(inner, x)), 1.0)
    low = r.n.multiply(low, r.n.number(alpha, x))
    x, low = r.n.line_up(x, low)
    out = r.n.choose(x.v > 0, x, low)
    return [out if gamma == 1.0 else r.n.multiply(out, r.n.number(gamma, x))]


def _power(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    if given(xs, 1).rows:
        return [_exponential(r, x, given(xs, 1))]
    exponent = fixed(xs, 1)
    if exponent is None or exponent.size == 0:
        raise Fallback("no exponent")
    if not x.is_float:
        real = np.power(x.v.astype(np.float64), exponent)  # as onnxruntime computes it
        if x.rows or np.any(exponent < 0) or np.any(abs(real) > 2.0**53) or np.any(real != np.rint(real)):
            raise Fallback("powers of integers that are no small integers")
        return [replace(x, v=real.astype(x.v.dtype))]
    shape = np.broadcast_shapes(x.shape, exponent.shape)
    x = x.map(lambda a: np.broadcast_to(a, shape))
    x, e = r.n.line_up(x, replace(x, v=exponent, rows=False, e=None, kind=INT64))
    powers, out = np.unique(exponent).tolist(), None
    if len(powers) > MOST_POWERS:
        raise Fallback("too many exponents that differ")
    for p in powers:
        one = _raised(r, x, float(p))
        out = one if out is None else r.n.choose(e.v == p, *r.n.line_up(one, out))
    assert out is not None
    return [out]


def _raised(r: Reading, x: Value, p: float) -> Value:
    if p == round(p) and 0 < p <= 8:
        out = x
        for _ in range(int(p) - 1):
            out = r.n.multiply(out, x)
        return out
    if p == 0:
        return r.n.made((x,), fractions(np.ones(x.v.shape)) if r.n.exact else np.ones(x.v.shape))
    return r.n.call(lambda v: np.power(v, p), x, None, 64.0)


def _exponential(r: Reading, x: Value, y: Value) -> Value:
    """x to y of which the latter depends on the input."""
    if not (x.is_float and y.is_float):
        raise Fallback("powers of integers")
    if x.rows or x.e is not None:
        return replace(r.n.call(np.exp, r.n.multiply(r.n.call(np.log, x), y)), kind=x.kind)
    base, y = r.n.line_up(x, y)
    if not np.all(base.v > 0):
        raise Fallback("a base that is not positive")
    return replace(r.n.call(lambda v: np.power(base.v, v), y, None, 64.0), kind=x.kind)


def _softmax(r: Reading, node: Node, xs: Values) -> list[Value]:
    """Before operator set 13 over all axes from `axis` on."""
    x = given(xs, 0)
    rank = len(x.shape)
    axis = axis_of(node.attributes.get("axis", -1 if r.opset >= 13 else 1), rank) if rank else 0
    axes = (axis,) if r.opset >= 13 else tuple(range(axis, rank))
    x = r.n.real(x)
    if x.v.dtype == object:
        if prod(x.shape[a] for a in axes) != 2:
            raise Fallback("no exact evaluation")
        other = x.map(lambda v: np.flip(v, axes))
        if node.op == "Softmax":
            return [r.n.call(_logistic, r.n.add(x, other, -1), kind="Sigmoid")]
        total = r.n.call(_softplus, r.n.add(other, x, -1), kind="Softplus")
        return [r.n.multiply(total, r.n.number(-1.0, total))]
    top = Value(x.v.max(axis=tuple(a + x.rows for a in axes), keepdims=True), x.kind, x.rows)  # any shift will do
    moved = r.n.add(x, top, -1)
    powers = r.n.call(np.exp, moved)
    total = r.n.total(powers, axes, True)
    if node.op == "LogSoftmax":
        return [r.n.add(moved, r.n.call(np.log, total), -1)]
    return [r.n.divide(powers, total)]


MEANINGS: dict[str, tuple[Meaning, str]] = {
    "Add": (joined(_add, 2), ""),
    "Sub": (joined(_subtract, 2), ""),
    "Mul": (joined(_multiply, 2), ""),
    "Div": (joined(_divide, 2), ""),
    "Mod": (_remainder, "fmod"),
    "Sum": (joined(_add), ""),
    "Max": (joined(_larger), ""),
    "Min": (joined(_smaller), ""),
    "Mean": (_mean, ""),
    "Neg": (_negate, ""),
    "Abs": (_abs, ""),
    "Equal": (_truth(np.equal), ""),
    "Less": (_truth(np.less), ""),
    "Greater": (_truth(np.greater), ""),
    "LessOrEqual": (_truth(np.less_equal), ""),
    "GreaterOrEqual": (_truth(np.greater_equal), ""),
    "Xor": (_truth(np.logical_xor), ""),
    "Not": (_truth(np.logical_not), ""),
    "And": (_truth(np.logical_and), ""),
    "Or": (_truth(np.logical_or), ""),
    "Where": (_where, ""),
    "Relu": (_relu, ""),
    "LeakyRelu": (_leaky_relu, "alpha"),
    "PRelu": (_prelu, ""),
    "ThresholdedRelu": (_thresholded, "alpha"),
    "Clip": (_clip, "min max"),
    "HardSigmoid": (_hard_sigmoid, "alpha beta"),
    "HardSwish": (_hard_swish, ""),
    "Sigmoid": (_function(_logistic, 0.25), ""),
    "Tanh": (_function(np.tanh, 1.0), ""),
    "Erf": (_function(_error_function, 1.2), ""),
    "Atan": (_function(np.arctan, 1.0), ""),
    "Softsign": (_function(lambda v: v / (1.0 + abs(v)), 1.0), ""),
    "Softplus": (_function(_softplus, 1.0), ""),
    "Sin": (_function(np.sin, 1.0), ""),
    "Cos": (_function(np.cos, 1.0), ""),
    "Tan": (_tan, ""),
    "Exp": (_function(np.exp), ""),
    "Log": (_function(np.log), ""),
    "Sqrt": (_function(np.sqrt), ""),
    "Reciprocal": (_reciprocal, ""),
    "Gelu": (_gelu, "approximate"),
    "Mish": (_mish, ""),
    "Elu": (_elu, "alpha"),
    "Selu": (_elu, "alpha gamma"),
    "Celu": (_elu, "alpha"),
    "Sign": (_step(_sign), ""),
    "Floor": (_step(np.floor), ""),
    "Ceil": (_step(np.ceil), ""),
    "Round": (_step(_round), ""),
    "Pow": (_power, ""),
    "Softmax": (_softmax, "axis"),
    "LogSoftmax": (_softmax, "axis"),
}
