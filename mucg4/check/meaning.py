"""Second reading: operators that compute, each as the ONNX pages define it and onnxruntime executes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import erf, pi
from typing import TYPE_CHECKING

import numpy as np

from mucg4.check.moves import Meaning, Values, axis_of, fixed, given, whole
from mucg4.check.values import Fallback, Value
from mucg4.check.wire import BOOL, FLOAT, FLOAT16, INT64, Node, single
from mucg4.ops.base import Array

if TYPE_CHECKING:
    from mucg4.check.reading import Reading


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


def _larger(r: Reading, a: Value, b: Value) -> Value:
    return replace(a, v=np.maximum(a.v, b.v)) if _integers(a, b) else r.n.extremum(a, b, True)


def _smaller(r: Reading, a: Value, b: Value) -> Value:
    return replace(a, v=np.minimum(a.v, b.v)) if _integers(a, b) else r.n.extremum(a, b, False)


def _joined(f: Callable[[Reading, Value, Value], Value], count: int | None = None) -> Meaning:
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
    total = _joined(_add)(r, node, xs)[0]
    return [r.n.divide(total, r.n.number(float(len(xs)), total))]


def _negate(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    return [replace(x, v=-x.v)]


def _truth(f: Callable[..., Array]) -> Meaning:
    """Comparisons and logic of exact constants."""

    def meaning(r: Reading, node: Node, xs: Values) -> list[Value]:
        return [Value(f(*(fixed(xs, i) for i in range(len(xs)))), BOOL)]

    return meaning


def _pick(mask: Array, a: Array, b: Array) -> Array:
    return np.where(mask, a, b)


def _where(r: Reading, node: Node, xs: Values) -> list[Value]:
    mask, a, b = fixed(xs, 0), given(xs, 1), given(xs, 2)
    if mask is None:
        raise Fallback("no condition")
    if not a.is_float:
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


def _function(f: Callable[[Array], Array], slope: float | None = None, units: float = 16.0) -> Meaning:
    def meaning(r: Reading, node: Node, xs: Values) -> list[Value]:
        return [r.n.call(f, given(xs, 0), slope, units)]

    return meaning


def _step(f: Callable[[Array], Array]) -> Meaning:
    def meaning(r: Reading, node: Node, xs: Values) -> list[Value]:
        return [r.n.step(f, given(xs, 0))]

    return meaning


def _sign(a: Array) -> Array:
    return (a > 0).astype(np.float64) - (a < 0).astype(np.float64)


def _round(a: Array) -> Array:
    """To the nearest integer, the even one of two."""
    if a.dtype != object:
        return np.rint(a)
    out = np.empty(a.shape, dtype=object)
    out.ravel()[:] = [round(x) for x in a.ravel()]
    return out


def _logistic(a: Array) -> Array:
    small = np.exp(-abs(a))
    return np.where(a < 0, small, 1.0) / (1.0 + small)


def _error_function(a: Array) -> Array:
    return np.array([erf(x) for x in a.ravel().tolist()]).reshape(a.shape)


def _softplus(a: Array) -> Array:
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
    x, exponent = given(xs, 0), fixed(xs, 1)
    if exponent is None or exponent.size == 0 or not x.is_float:
        raise Fallback("no exponent")
    p = float(exponent.ravel()[0])
    if np.any(exponent != p) or exponent.ndim > len(x.shape):
        raise Fallback("exponents that differ")
    if p == round(p) and 0 < p <= 8:
        out = x
        for _ in range(int(p) - 1):
            out = r.n.multiply(out, x)
        return [out]
    return [r.n.call(lambda v: np.power(v, p), x, None, 64.0)]


def _softmax(r: Reading, node: Node, xs: Values) -> list[Value]:
    """Before operator set 13 over all axes from `axis` on."""
    x = given(xs, 0)
    rank = len(x.shape)
    axis = axis_of(node.attributes.get("axis", -1 if r.opset >= 13 else 1), rank) if rank else 0
    axes = (axis,) if r.opset >= 13 else tuple(range(axis, rank))
    x = r.n.real(x)
    if x.v.dtype == object:
        raise Fallback("no exact evaluation")
    top = Value(x.v.max(axis=tuple(a + x.rows for a in axes), keepdims=True), x.kind, x.rows)  # any shift will do
    moved = r.n.add(x, top, -1)
    powers = r.n.call(np.exp, moved)
    total = r.n.total(powers, axes, True)
    if node.op == "LogSoftmax":
        return [r.n.add(moved, r.n.call(np.log, total), -1)]
    return [r.n.divide(powers, total)]


# -- sums ----------------------------------------------------------------------------------------------------------


def product(r: Reading, a: Value, b: Value) -> Value:
    """NumPy's matmul by ONNX shapes; a constant matrix meets all rows in one product."""
    if not a.is_float:
        return replace(a, v=a.v @ b.v)
    x, y = r.n.real(a), r.n.real(b)
    first, second = len(x.shape) == 1, len(y.shape) == 1
    x = x.map(lambda v: v[None, :]) if first else x
    y = y.map(lambda v: v[:, None]) if second else y
    if x.shape[-1] != y.shape[-2]:
        raise Fallback(f"the shapes {list(a.shape)} and {list(b.shape)} do not match")
    if x.rows and not y.rows and len(y.shape) == 2:
        out = _by_matrix(r, x, y)
    elif y.rows and not x.rows and len(x.shape) == 2:
        turned = _by_matrix(r, y.map(lambda v: v.swapaxes(-1, -2)), x.map(lambda v: v.T))
        out = turned.map(lambda v: v.swapaxes(-1, -2))
    else:
        out = r.n.matrix(*r.n.same_rank(x, y))
    out = out.map(lambda v: v[..., 0, :]) if first else out
    return out.map(lambda v: v[..., 0]) if second else out


def _by_matrix(r: Reading, x: Value, w: Value) -> Value:
    """`(points, ..., n)` by a constant `(n, m)`."""
    n = x.shape[-1]
    flat = replace(x, v=x.v.reshape(-1, n), e=None if x.e is None else x.e.reshape(-1, n))
    out = r.n.matrix(flat, w)
    shape = (len(x.v), *x.shape[:-1], w.shape[1])
    return replace(out, v=out.v.reshape(shape), e=None if out.e is None else out.e.reshape(shape))


def _gemm(r: Reading, node: Node, xs: Values) -> list[Value]:
    a, b, c = given(xs, 0), given(xs, 1), xs[2] if len(xs) > 2 else None
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise Fallback("factors that are no matrices")
    a = a.map(np.transpose) if node.attributes.get("transA", 0) else a
    b = b.map(np.transpose) if node.attributes.get("transB", 0) else b
    out = product(r, a, b)
    for key, at in (("alpha", out), ("beta", c)):
        factor = node.attributes.get(key, 1.0)
        if factor != 1.0 and at is not None:
            at = r.n.multiply(at, r.n.number(factor, at))
        out, c = (at, c) if key == "alpha" else (out, at)  # type: ignore[assignment]
    return [out if c is None else r.n.add(out, c)]


def _batch_normalization(r: Reading, node: Node, xs: Values) -> list[Value]:
    a, x, n = node.attributes, given(xs, 0), r.n
    if a.get("training_mode", 0) or not a.get("spatial", 1) or not a.get("is_test", 1) or len(node.outputs) > 1:
        raise Fallback("training mode or statistics per position")
    form = (-1,) + (1,) * (len(x.shape) - 2)
    scale, shift, mean, variance = (given(xs, i).map(lambda v: v.reshape(form)) for i in range(1, 5))
    spread = n.call(np.sqrt, n.add(variance, n.number(a.get("epsilon", single(1e-5)), x)))
    return [n.add(n.multiply(n.add(x, mean, -1), n.divide(scale, spread)), shift)]


def _dequantize(r: Reading, node: Node, xs: Values) -> list[Value]:
    """`(x - zero) * scale` of constants, in float32 as onnxruntime computes it."""
    x, scale, zero = fixed(xs, 0), fixed(xs, 1), fixed(xs, 2)
    kind = given(xs, 1).kind
    if x is None or scale is None or x.dtype.kind not in "iu" or kind not in (FLOAT, FLOAT16):
        raise Fallback("other than stored integers and a scale in float32 or float16")
    if node.attributes.get("output_dtype", 0) not in (0, kind) or (zero is not None and zero.dtype.kind not in "iu"):
        raise Fallback("these element types")
    factor, shift = scale, np.zeros(scale.shape, dtype=np.int64) if zero is None else zero.astype(np.int64)
    if shift.shape != factor.shape:
        raise Fallback("a zero point that does not match its scale")
    block = node.attributes.get("block_size", 0)
    if block:
        axis = axis_of(node.attributes.get("axis", 1), x.ndim)
        at = np.arange(x.shape[axis]) // block
        factor, shift = (np.take(v, at, axis=axis) for v in (factor, shift))
    elif factor.ndim == 1 and factor.size > 1:
        axis = axis_of(node.attributes.get("axis", 1), x.ndim)
        form = [-1 if i == axis else 1 for i in range(x.ndim)]
        factor, shift = factor.reshape(form), shift.reshape(form)
    elif factor.size != 1:
        raise Fallback(f"a scale of shape {list(scale.shape)}")
    else:
        factor, shift = factor.reshape(()), shift.reshape(())
    v = (x.astype(np.int64) - shift).astype(np.float32) * factor.astype(np.float32)
    if v.shape != x.shape:
        raise Fallback("a scale that does not match")
    v = v.astype(np.float16) if kind == FLOAT16 else v
    return [Value(v.astype(np.float64), kind)]


def _axes(r: Reading, node: Node, xs: Values) -> tuple[int, ...]:
    rank = len(given(xs, 0).shape)
    axes = whole(node, xs, 1, "axes")
    if not axes:
        return () if node.attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({axis_of(a, rank) for a in axes}))


def _reduce(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, axes, keep = given(xs, 0), _axes(r, node, xs), bool(node.attributes.get("keepdims", 1))
    if not x.is_float:
        folds: dict[str, Callable[..., Array]] = {
            "ReduceSum": np.sum,
            "ReduceProd": np.prod,
            "ReduceMax": np.max,
            "ReduceMin": np.min,
        }
        if node.op not in folds or x.kind == BOOL:
            raise Fallback("a reduction of integers")
        return [replace(x, v=np.asarray(folds[node.op](x.v, axis=axes, keepdims=keep)).astype(x.v.dtype))]
    if node.op in ("ReduceSum", "ReduceMean"):
        out = r.n.total(x, axes, keep)
        if node.op == "ReduceMean":
            out = r.n.divide(out, r.n.number(float(np.prod([x.shape[i] for i in axes])), x))
        return [out]
    if node.op == "ReduceProd":
        raise Fallback("a product of numbers that are no integers")
    return [extreme_over(r, x, axes, keep, node.op == "ReduceMax")]


def extreme_over(r: Reading, x: Value, axes: tuple[int, ...], keep: bool, largest: bool) -> Value:
    """The largest or smallest over axes; off by at most the largest error among them."""
    x = r.n.real(x)
    at = tuple(a + x.rows for a in axes)
    v = x.v.max(axis=at, keepdims=keep) if largest else x.v.min(axis=at, keepdims=keep)
    return replace(x, v=v, e=None if x.e is None else x.e.max(axis=at, keepdims=keep))


REDUCTION = "axes keepdims noop_with_empty_axes"
MEANINGS: dict[str, tuple[Meaning, str]] = {
    "Add": (_joined(_add, 2), ""),
    "Sub": (_joined(_subtract, 2), ""),
    "Mul": (_joined(_multiply, 2), ""),
    "Div": (_joined(_divide, 2), ""),
    "Sum": (_joined(_add), ""),
    "Max": (_joined(_larger), ""),
    "Min": (_joined(_smaller), ""),
    "Mean": (_mean, ""),
    "Neg": (_negate, ""),
    "Abs": (_abs, ""),
    "Equal": (_truth(np.equal), ""),
    "Less": (_truth(np.less), ""),
    "Greater": (_truth(np.greater), ""),
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
    "MatMul": (_joined(product, 2), ""),
    "Gemm": (_gemm, "alpha beta transA transB"),
    "BatchNormalization": (_batch_normalization, "epsilon momentum spatial training_mode is_test"),
    "DequantizeLinear": (_dequantize, "axis block_size output_dtype"),
    "ReduceSum": (_reduce, REDUCTION),
    "ReduceMean": (_reduce, REDUCTION),
    "ReduceMax": (_reduce, REDUCTION),
    "ReduceMin": (_reduce, REDUCTION),
    "ReduceProd": (_reduce, REDUCTION),
}
