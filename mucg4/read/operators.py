"""Operators on variables: each handler turns one ONNX node into canonical nodes.

Handlers get the builder, the node and its input values (None where an optional input is absent) and
return the output values. Whatever a handler does not cover it refuses by `OnnxNode.unsupported`.
Convolutions and pools are in `windows.py`, data movement in `movement.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from mucg4.ops.affine import Dense, Reduce, RowDense, Scale
from mucg4.ops.base import Nonlinear
from mucg4.ops.curves import (
    COS,
    EXP,
    GELU,
    GELU_TANH,
    HARD_SWISH,
    LOG,
    MISH,
    RECIPROCAL,
    SIN,
    SOFTPLUS,
    SQRT,
    Elu,
)
from mucg4.ops.piecewise import RELU, TwoPiece
from mucg4.ops.smooth import ATAN, ERF, SIGMOID, SOFTSIGN, TANH
from mucg4.ops.steps import FLOOR, ROUND, SIGN
from mucg4.read import constant
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.constant import Constant
from mucg4.read.fold import reduction_axes
from mucg4.read.protobuf import DOUBLE, FLOAT, OnnxNode

Values = Sequence[Value | None]
Handler = Callable[[Builder, OnnxNode, Values], list[Value]]
HIGHEST_POWER = 8  # larger exponents are refused
LARGEST_FLOAT = float(np.finfo(np.float32).max)


def variable(node: OnnxNode, values: Values, at: int = 0) -> Variable:
    """The input that must depend on the network's input."""
    x = values[at] if at < len(values) else None
    if not isinstance(x, Variable):
        raise node.unsupported(f"input {at} has to be a variable")
    return x


def optional_constant(node: OnnxNode, values: Values, at: int) -> Constant | None:
    """A constant input, or None when it is absent."""
    x = values[at] if at < len(values) else None
    if isinstance(x, Variable):
        raise node.unsupported(f"input {at} ({node.inputs[at]!r}) has to be constant")
    return x


def required_constant(node: OnnxNode, values: Values, at: int) -> Constant:
    """A constant input that must be there."""
    x = optional_constant(node, values, at)
    if x is None:
        raise node.invalid(f"input {at} is missing")
    return x


def _two(node: OnnxNode, values: Values) -> tuple[Value, Value]:
    if len(values) != 2 or values[0] is None or values[1] is None:
        raise node.invalid("it needs two inputs")
    return values[0], values[1]


def _add(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, y = _two(node, values)
    return [b.combine(x, y, -1.0 if node.op == "Sub" else 1.0)]


def _mul(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, y = _two(node, values)
    if isinstance(x, Constant):
        x, y = y, x
    assert isinstance(x, Variable)
    return [b.product(x, y) if isinstance(y, Variable) else b.times(x, y)]


def _pow(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, exponents = variable(node, values), np.unique(required_constant(node, values, 1).weight())
    size = abs(float(exponents[0]))
    if len(exponents) != 1 or not 0 < size <= HIGHEST_POWER or (2 * size) % 1:
        raise node.unsupported(f"exponents other than whole and half numbers from 1/2 to {HIGHEST_POWER} in size")
    x = b.expand(x, b.common(x.shape, required_constant(node, values, 1).shape))
    if size % 1:
        x, size = b.node(SQRT, [x], x.shape), 2 * size
    x = _power(b, x, int(size))
    return [x if exponents[0] > 0 else b.node(RECIPROCAL, [x], x.shape)]


def _power(b: Builder, x: Variable, exponent: int) -> Variable:
    """x to a positive integer: squares of powers, times x where the exponent is odd."""
    if exponent == 1:
        return x
    half = _power(b, x, exponent // 2)
    even = b.product(half, half)
    return b.product(even, x) if exponent % 2 else even


def _div(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, y = _two(node, values)
    if isinstance(y, Variable):
        inverse = b.node(RECIPROCAL, [y], y.shape)
        return [b.product(x, inverse) if isinstance(x, Variable) else b.times(inverse, x)]
    assert isinstance(x, Variable)
    return [b.times(x, constant.divide(Constant(np.ones(())), Constant(y.double(), y.name, y.magnitude, y.rounded)))]


def _neg(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [b.negate(variable(node, values))]


def _cast(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    if node.attributes.get("to") not in (FLOAT, DOUBLE):
        raise node.unsupported(f"cast of a variable to element type {node.attributes.get('to')}")
    return [variable(node, values)]


def _sum(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [_accumulate(values, constant.add, b.combine)]


def _extremum(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    largest = node.op == "Max"
    return [_accumulate(values, lambda x, y: constant.extremum(x, y, largest), lambda x, y: b.maximum(x, y, largest))]


def _accumulate(
    values: Values, fold: Callable[[Constant, Constant], Constant], join: Callable[[Value, Value], Variable]
) -> Value:
    """Join n operands pairwise, constants with constants first."""
    total: Value | None = None
    for x in sorted((v for v in values if v is not None), key=lambda v: isinstance(v, Variable)):
        if total is None:
            total = x
        elif isinstance(total, Constant) and isinstance(x, Constant):
            total = fold(total, x)
        else:
            total = join(total, x)
    assert total is not None
    return total


def matmul(b: Builder, node: OnnxNode, x: Value, y: Value) -> Value:
    """NumPy's matmul of a variable and a constant matrix, on either side."""
    if isinstance(x, Constant) and isinstance(y, Constant):
        return constant.matmul(x, y)
    if isinstance(x, Variable) and isinstance(y, Variable):
        return _matmul_variables(b, node, x, y)
    if isinstance(x, Variable):
        assert isinstance(y, Constant)
        weight, outer = _matrix(node, y, x.shape[-1], -2 if len(y.shape) > 1 else 0)
        kept = weight.shape[1:] if len(y.shape) > 1 else ()
        shape = (1,) * max(0, len(outer) - max(0, len(x.shape) - 2)) + x.shape[:-1] + kept
        return _rows(b, x, np.ascontiguousarray(weight.T), shape)
    assert isinstance(x, Constant) and isinstance(y, Variable)
    inner = y.shape[-2] if len(y.shape) > 1 else y.shape[0]
    weight, outer = _matrix(node, x, inner, -1)
    weight = weight.T
    kept = weight.shape[:1] if len(x.shape) > 1 else ()
    if len(y.shape) == 1:
        return _rows(b, y, weight, (1,) * len(outer) + kept)
    turned = b.move(y, lambda a: np.swapaxes(a, -1, -2))
    product = _rows(b, turned, weight, (*turned.shape[:-1], len(weight)))
    back = b.move(product, lambda a: np.swapaxes(a, -1, -2))
    return Variable(back.draft, (1,) * max(0, len(outer) - len(y.shape[:-2])) + y.shape[:-2] + kept + y.shape[-1:])


def _matmul_variables(b: Builder, node: OnnxNode, x: Variable, y: Variable) -> Variable:
    """`sum_k x[..., i, k] y[..., k, j]`: all products, then sums."""
    if min(len(x.shape), len(y.shape)) < 2:
        raise node.unsupported("matrix product of two variables of which one is a vector")
    if x.shape[-1] != y.shape[-2]:
        raise node.invalid(f"the shapes of its inputs do not match ({list(x.shape)} against {list(y.shape)})")
    left, right = b.move(x, lambda a: a[..., :, None, :]), b.move(y, lambda a: np.swapaxes(a, -1, -2)[..., None, :, :])
    products = b.product(left, right)
    return _add_up(b, products)


def _add_up(b: Builder, x: Variable) -> Variable:
    """Sum over the last axis."""
    return b.affine(Reduce(x.shape, (len(x.shape) - 1,)), x, x.shape[:-1])


def _softmax(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`1 / sum_j exp(x_j - x_i)`: no overflow where the result is not tiny, and every step has bounds.

    LogSoftmax is minus the logarithm of the sum.
    """
    x = variable(node, values)
    rank = len(x.shape)
    axis = node.attributes.get("axis", -1 if node.opset >= 13 else 1)
    axis += rank if axis < 0 else 0
    if not 0 <= axis < rank or (node.opset < 13 and prod(x.shape[axis + 1 :]) != 1):
        raise node.unsupported(f"axis {axis} of a tensor of rank {rank} in operator set {node.opset}")
    last = b.move(x, lambda a: np.moveaxis(a, axis, -1))
    square = (*last.shape, last.shape[-1])
    others = b.expand(b.move(last, lambda a: a[..., None, :]), square)
    own = b.expand(b.move(last, lambda a: a[..., :, None]), square)
    total = _add_up(b, b.node(EXP, [b.combine(others, own, -1.0)], square))
    if node.op == "LogSoftmax":
        share = b.negate(b.node(LOG, [total], total.shape))
    else:
        share = b.node(RECIPROCAL, [total], total.shape)
    return [b.move(share, lambda a: np.moveaxis(a, -1, axis))]


def _matrix(node: OnnxNode, c: Constant, inner: int, axis: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """The constant as a matrix `(inner, others)`, and its leading dimensions, which must all be 1."""
    weight, outer = c.weight(), c.shape[:-2]
    if prod(outer) != 1:
        raise node.unsupported("a stack of several constant matrices")
    if weight.ndim == 0 or weight.shape[axis] != inner:
        raise node.invalid(f"the shapes of its inputs do not match ({list(c.shape)} against {inner})")
    if weight.ndim == 1:
        return weight[:, None], outer
    weight = weight.reshape(weight.shape[-2:])
    return (weight if axis == -2 else weight.T), outer


def _rows(b: Builder, x: Variable, weight: np.ndarray, shape: tuple[int, ...]) -> Variable:
    """`weight (m, n)` applied to each row of n values."""
    rows = x.size // weight.shape[1]
    if rows == 1:
        return b.node(Dense(np.ascontiguousarray(weight), np.zeros(len(weight))), [x], shape)
    return b.affine(RowDense(np.ascontiguousarray(weight), rows), x, shape)


def _matmul(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [matmul(b, node, *_two(node, values))]


def _transposed(b: Builder, x: Value) -> Value:
    return b.move(x, np.transpose) if isinstance(x, Variable) else x.map(np.transpose)


def _gemm(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, y = _two(node, values[:2])
    x = _transposed(b, x) if node.attributes.get("transA", 0) else x
    y = _transposed(b, y) if node.attributes.get("transB", 0) else y
    out, extra = matmul(b, node, x, y), values[2] if len(values) > 2 else None
    out = _weighted(b, out, node.attributes.get("alpha", 1.0))
    if extra is None:
        return [out]
    extra = _weighted(b, extra, node.attributes.get("beta", 1.0))
    return [b.combine(out, extra)]


def _weighted(b: Builder, x: Value, factor: float) -> Value:
    if factor == 1.0:
        return x
    c = Constant(np.array(factor, dtype=np.float64))
    return b.times(x, c) if isinstance(x, Variable) else constant.multiply(x, c)


def _batch_normalization(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    if node.attributes.get("training_mode", 0) or not node.attributes.get("spatial", 1):
        raise node.unsupported("training mode or statistics per position")
    x = variable(node, values)
    scale, shift, mean, variance = (required_constant(node, values, i) for i in range(1, 5))
    epsilon = node.attributes.get("epsilon", float(np.float32(1e-5)))
    spread = variance.weight() + epsilon
    if np.any(spread <= 0):
        raise node.invalid("a variance is not positive")
    factor = scale.weight() / np.sqrt(spread)
    part = mean.weight() * factor
    form = (-1,) + (1,) * (len(x.shape) - 2)
    parts = (factor, shift.weight() - part, abs(shift.weight()) + abs(part))
    return [b.node(Scale(*(np.broadcast_to(v.reshape(form), x.shape).ravel() for v in parts)), [x], x.shape)]


def _relu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [b.relu(variable(node, values))]


def _abs(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [b.relu(variable(node, values), TwoPiece(-1.0, 1.0))]


def _leaky(b: Builder, x: Variable, slope: float) -> Variable:
    """`slope * x` left of zero, x right of it."""
    if slope == 1.0:
        return x
    if slope < 1.0:
        return b.relu(x, TwoPiece(slope, 1.0) if slope else RELU)
    return b.negate(b.relu(b.negate(x), TwoPiece(1.0, slope)))


def _leaky_relu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [_leaky(b, variable(node, values), node.attributes.get("alpha", float(np.float32(0.01))))]


def _prelu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, slope = variable(node, values), required_constant(node, values, 1)
    slopes = np.unique(slope.weight())
    if len(slopes) == 1:
        return [_leaky(b, x, float(slopes[0]))]
    left = b.times(b.relu(b.negate(x)), slope)
    return [b.combine(b.relu(x), left, -1.0)]


def _clip(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x: Variable = variable(node, values)
    for at, key, largest in ((1, "min", True), (2, "max", False)):
        c = optional_constant(node, values, at)
        if key in node.attributes:
            c = Constant(np.array(node.attributes[key]), f"{node.name} {key}")
        if c is None:
            continue
        if np.isnan(c.double()).any():
            raise node.invalid(f"{key} is nan")
        if abs(float(c.double().ravel()[0])) < LARGEST_FLOAT:  # larger: as good as no limit
            x = b.maximum(x, c, largest)
    return [x]


def _hard_sigmoid(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    alpha = node.attributes.get("alpha", float(np.float32(0.2)))
    beta = node.attributes.get("beta", 0.5)
    x = b.shift(b.times(variable(node, values), Constant(np.array(alpha))), Constant(np.array(beta)))
    x = b.maximum(x, Constant(np.zeros(())))
    return [b.maximum(x, Constant(np.ones(())), largest=False)]


def _gelu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, kind = variable(node, values), node.attributes.get("approximate", "none")
    if kind not in ("none", "tanh"):
        raise node.unsupported(f"approximate {kind!r}")
    return [b.node(GELU if kind == "none" else GELU_TANH, [x], x.shape)]


def _positive(node: OnnxNode, key: str, default: float) -> float:
    number = float(node.attributes.get(key, default))
    if not 0 < number < LARGEST_FLOAT:
        raise node.unsupported(f"{key} {number}, which is not positive")
    return number


def _elu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    return [b.node(Elu(_positive(node, "alpha", 1.0)), [x], x.shape)]


def _selu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    alpha, gamma = (
        _positive(node, "alpha", 1.67326319217681884765625),
        _positive(node, "gamma", 1.05070102214813232421875),
    )
    return [_weighted(b, b.node(Elu(alpha), [x], x.shape), gamma)]


def _celu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`alpha Elu(x / alpha)`."""
    alpha = _positive(node, "alpha", 1.0)
    x = b.times(variable(node, values), constant.divide(Constant(np.ones(())), Constant(np.array(alpha))))
    return [_weighted(b, b.node(Elu(1.0), [x], x.shape), alpha)]


def _ceil(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = b.negate(variable(node, values))
    return [b.negate(b.node(FLOOR, [x], x.shape))]


def _thresholded_relu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`x` where `x > alpha`, else 0: a ReLU of x - alpha, and alpha times the positive part of its sign."""
    alpha = Constant(np.array(node.attributes.get("alpha", 1.0)))
    x = b.combine(variable(node, values), alpha, -1.0)
    if not alpha.value:
        return [b.relu(x)]
    return [b.combine(b.relu(x), b.times(b.relu(b.node(SIGN, [x], x.shape)), alpha))]


def _elementwise(op: Nonlinear) -> Handler:
    """A function of one tensor; with two inputs it would read both from `values`."""

    def handler(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
        x = variable(node, values)
        return [b.node(op, [x], x.shape)]

    return handler


def _concat(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    if "axis" not in node.attributes:
        raise node.invalid("no axis")
    return [b.concat([v for v in values if v is not None], node.attributes["axis"])]


def _pad(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    given = optional_constant(node, values, 1)
    pads = node.attributes.get("pads") or (given.integers() if given is not None else ())
    axes = optional_constant(node, values, 3)
    chosen = axes.integers() if axes is not None else tuple(range(len(x.shape)))
    if len(pads) != 2 * len(chosen):
        raise node.invalid("pads do not match its axes")
    widths = [(0, 0)] * len(x.shape)
    for i, axis in enumerate(chosen):
        widths[axis] = (pads[i], pads[i + len(chosen)])
    crop = tuple(slice(max(0, -lo), n + min(0, hi)) for n, (lo, hi) in zip(x.shape, widths, strict=True))
    x = b.move(x, lambda a: a[crop])
    grow = [(max(0, lo), max(0, hi)) for lo, hi in widths]
    mode = node.attributes.get("mode", "constant")
    if mode in ("edge", "reflect"):
        return [b.move(x, lambda a: np.pad(a, grow, mode=mode))]
    if mode != "constant":
        raise node.unsupported(f"mode {mode!r}")
    fill = optional_constant(node, values, 2)
    number = node.attributes.get("value", 0.0) if fill is None else float(fill.offset()[0][0])
    layout = np.pad(np.arange(x.size).reshape(x.shape), grow, constant_values=-1)
    if layout.size == x.size:
        return [x]
    return [b.place(x, layout, np.full(layout.shape, number))]


def _reduce(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    axes = reduction_axes(node, len(x.shape), optional_constant(node, values, 1))
    if not axes:
        return [x]
    keep = bool(node.attributes.get("keepdims", 1))
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes)
    if node.op in ("ReduceSum", "ReduceMean"):
        count = prod(x.shape[i] for i in axes)
        return [b.affine(Reduce(x.shape, axes, 1.0 / count if node.op == "ReduceMean" else 1.0), x, shape)]
    positions = np.arange(x.size).reshape(x.shape)
    windows = np.moveaxis(positions, axes, tuple(range(-len(axes), 0))).reshape(prod(shape), -1)
    return [b.maximum_over(x, windows, shape, largest=node.op == "ReduceMax")]


_REDUCTION = "axes keepdims noop_with_empty_axes"
# operator -> (handler, attributes it understands)
HANDLERS: dict[str, tuple[Handler, str]] = {
    "Add": (_add, ""),
    "Sub": (_add, ""),
    "Mul": (_mul, ""),
    "Div": (_div, ""),
    "Neg": (_neg, ""),
    "Sum": (_sum, ""),
    "Max": (_extremum, ""),
    "Min": (_extremum, ""),
    "Cast": (_cast, "to saturate"),
    "MatMul": (_matmul, ""),
    "Gemm": (_gemm, "alpha beta transA transB"),
    "BatchNormalization": (_batch_normalization, "epsilon momentum spatial training_mode is_test"),
    "Relu": (_relu, ""),
    "Abs": (_abs, ""),
    "LeakyRelu": (_leaky_relu, "alpha"),
    "PRelu": (_prelu, ""),
    "Clip": (_clip, "min max"),
    "HardSigmoid": (_hard_sigmoid, "alpha beta"),
    "Sigmoid": (_elementwise(SIGMOID), ""),
    "Sin": (_elementwise(SIN), ""),
    "Cos": (_elementwise(COS), ""),
    "Exp": (_elementwise(EXP), ""),
    "Reciprocal": (_elementwise(RECIPROCAL), ""),
    "Sign": (_elementwise(SIGN), ""),
    "Floor": (_elementwise(FLOOR), ""),
    "Ceil": (_ceil, ""),
    "Round": (_elementwise(ROUND), ""),
    "ThresholdedRelu": (_thresholded_relu, "alpha"),
    "Softmax": (_softmax, "axis"),
    "LogSoftmax": (_softmax, "axis"),
    "Log": (_elementwise(LOG), ""),
    "Sqrt": (_elementwise(SQRT), ""),
    "Softplus": (_elementwise(SOFTPLUS), ""),
    "Softsign": (_elementwise(SOFTSIGN), ""),
    "Atan": (_elementwise(ATAN), ""),
    "Erf": (_elementwise(ERF), ""),
    "Gelu": (_gelu, "approximate"),
    "HardSwish": (_elementwise(HARD_SWISH), ""),
    "Mish": (_elementwise(MISH), ""),
    "Elu": (_elu, "alpha"),
    "Selu": (_selu, "alpha gamma"),
    "Celu": (_celu, "alpha"),
    "Pow": (_pow, ""),
    "Tanh": (_elementwise(TANH), ""),
    "Concat": (_concat, "axis"),
    "Pad": (_pad, "mode pads value"),
    "ReduceSum": (_reduce, _REDUCTION),
    "ReduceMean": (_reduce, _REDUCTION),
    "ReduceMax": (_reduce, _REDUCTION),
    "ReduceMin": (_reduce, _REDUCTION),
}
