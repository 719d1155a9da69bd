"""Operators on variables: each handler turns one ONNX node into canonical nodes.

Handlers get the builder, the node and its input values (None where an optional input is absent) and
return the output values. Whatever a handler does not cover it refuses by `OnnxNode.unsupported`.
Functions of one tensor are in `functions.py`, convolutions and pools in `windows.py`, data movement in `movement.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from mucg4.ops.affine import Dense, Reduce, RowDense
from mucg4.ops.arrays import BoolArray
from mucg4.ops.conv import Conv, Window
from mucg4.ops.curves import (
    EXP,
    LOG,
    RECIPROCAL,
    SOFTPLUS,
    SQRT,
)
from mucg4.ops.smooth import SIGMOID
from mucg4.read import constant, roundoff
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.constant import Constant, number
from mucg4.read.fold import reduction_axes
from mucg4.read.protobuf import DOUBLE, FLOAT, INT32, INT64, OnnxNode

Values = Sequence[Value | None]
Handler = Callable[[Builder, OnnxNode, Values], list[Value]]
HIGHEST_POWER = 64  # larger exponents are refused; not measured
MOST_POWERS = 64  # different exponents of one node; not measured


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
    if node.op == "Sub":
        return [b.combine(x, y, -1.0)]
    if isinstance(x, Constant):
        x, y = y, x
    if isinstance(y, Variable):
        return [b.combine(x, y)]
    y, void = y.hollowed()
    made = b.combine(x, y)
    return [b.hollow(made, np.broadcast_to(void, made.shape).ravel()) if void.any() else made]


def _mul(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, y = _two(node, values)
    if isinstance(x, Constant):
        x, y = y, x
    assert isinstance(x, Variable)
    return [b.product(x, y) if isinstance(y, Variable) else b.times(x, y)]


def _pow(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """Equal exponents of a constant have one power each; an exponent that depends on the input makes it exponential."""
    x, y = _two(node, values)
    if isinstance(y, Variable):
        return [b.node(EXP, [z := _exponent(b, node, x, y)], z.shape)]
    assert isinstance(x, Variable)
    if y.kind not in (FLOAT, DOUBLE, INT32, INT64):
        raise node.unsupported(f"an exponent of element type {y.kind}")
    shape = b.common(x.shape, y.shape)
    x, given = b.expand(x, shape), np.broadcast_to(y.stated(node, "the exponent"), shape).ravel()
    exponents = np.unique(given)
    if not np.all(abs(exponents) <= HIGHEST_POWER) or len(exponents) > MOST_POWERS:
        raise node.unsupported(f"exponents beyond {HIGHEST_POWER}, or more than {MOST_POWERS} different ones")
    if len(exponents) == 1:
        return [_raised(b, x, float(exponents[0]))]
    places = [np.flatnonzero(given == e) for e in exponents]
    parts = [_raised(b, b.pick(x, at), float(e)) for e, at in zip(exponents, places, strict=True)]
    where = np.argsort(np.concatenate(places))
    return [b.move(b.concat(parts, 0), lambda a: a[where].reshape(shape))]


def _exponent(b: Builder, node: OnnxNode, x: Value, y: Variable) -> Variable:
    """`y log x`; of bases that may not be positive nothing is known."""
    if isinstance(x, Variable):
        return b.product(y, b.node(LOG, [x], x.shape))
    base = x.offset()[0]
    if not np.all(base > 2 * np.ravel(roundoff.size(x.error))):
        raise node.unsupported("a base that is not positive")
    value, error = roundoff.function(x.double(), np.log, np.where(base > 0, 2.0 / base, 0.0).reshape(x.shape), x.error)
    if error is not None:
        error = np.where((value == 0) & (roundoff.size(x.error) == 0), 0.0, error)
    return b.times(y, Constant(value, x.name, x.kind, error, certain=False))


def _raised(b: Builder, x: Variable, exponent: float) -> Variable:
    """x to one exponent. Other than whole and half ones take a logarithm: of a base that may be 0 nothing is known."""
    size = abs(exponent)
    if not size:
        return b.shift(b.times(x, number(0.0)), number(1.0))
    if (2 * size) % 1:
        z = b.times(b.node(LOG, [x], x.shape), number(exponent))
        return b.node(EXP, [z], x.shape)
    if size % 1:
        x, size = b.node(SQRT, [x], x.shape), 2 * size
    x = _power(b, x, int(size))
    return x if exponent > 0 else b.node(RECIPROCAL, [x], x.shape)


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
    return [b.times(x, constant.divide(number(1.0), y))]


def _neg(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [b.negate(variable(node, values))]


def _sum(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [accumulate(values, constant.add, b.combine)]


def _extremum(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    largest = node.op == "Max"
    return [accumulate(values, lambda x, y: constant.extremum(x, y, largest), lambda x, y: b.maximum(x, y, largest))]


def accumulate(
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
        if prod(y.shape[:-2]) > 1:
            return _stack(b, node, x, y)
        weight, outer, roundings = _matrix(node, y, x.shape[-1], -2 if len(y.shape) > 1 else 0)
        kept = weight.shape[1:] if len(y.shape) > 1 else ()
        shape = (1,) * max(0, len(outer) - max(0, len(x.shape) - 2)) + x.shape[:-1] + kept
        return rows(b, x, np.ascontiguousarray(weight.T), roundings, shape)
    assert isinstance(x, Constant) and isinstance(y, Variable)
    inner = y.shape[-2] if len(y.shape) > 1 else y.shape[0]
    if prod(x.shape[:-2]) > 1:
        column = y if len(y.shape) > 1 else b.move(y, lambda a: a[:, None])
        turned = b.move(column, lambda a: np.swapaxes(a, -1, -2))
        made = _stack(b, node, turned, x.map(lambda a: np.swapaxes(a, -1, -2)))
        return b.move(made, lambda a: np.swapaxes(a, -1, -2) if len(y.shape) > 1 else a[..., 0, :])
    weight, outer, roundings = _matrix(node, x, inner, -1)
    weight = weight.T
    kept = weight.shape[:1] if len(x.shape) > 1 else ()
    if len(y.shape) == 1:
        return rows(b, y, weight, roundings, (1,) * len(outer) + kept)
    turned = b.move(y, lambda a: np.swapaxes(a, -1, -2))
    product = rows(b, turned, weight, roundings, (*turned.shape[:-1], len(weight)))
    back = b.move(product, lambda a: np.swapaxes(a, -1, -2))
    return Variable(back.draft, (1,) * max(0, len(outer) - len(y.shape[:-2])) + y.shape[:-2] + kept + y.shape[-1:])


def _stack(b: Builder, node: OnnxNode, x: Variable, y: Constant) -> Variable:
    """Rows of x by a stack of constant matrices `(..., n, m)`: a convolution over the rows with a group for each."""
    weight, roundings = y.weight()
    row = len(x.shape) == 1
    x = b.move(x, lambda a: a[None, :]) if row else x
    if x.shape[-1] != weight.shape[-2]:
        raise node.invalid(f"the shapes of its inputs do not match ({list(x.shape)} against {list(y.shape)})")
    outer = b.common(x.shape[:-2], weight.shape[:-2])
    count, (lines, n), m = prod(outer), x.shape[-2:], weight.shape[-1]
    node.sized((count, lines, n))
    node.sized((count, n, m))
    turned = b.move(x, lambda a: np.swapaxes(np.broadcast_to(a, (*outer, lines, n)), -1, -2))
    kernels = np.swapaxes(np.broadcast_to(weight, (*outer, n, m)), -1, -2).reshape(count * m, n, 1, 1)
    window = Window(count * n, 1, lines, (1, 1), group=count)
    made = b.affine(Conv(window, np.ascontiguousarray(kernels), roundings=roundings), turned, (*outer, m, lines))
    return b.move(made, lambda a: np.swapaxes(a, -1, -2)[..., 0, :] if row else np.swapaxes(a, -1, -2))


def _matmul_variables(b: Builder, node: OnnxNode, x: Variable, y: Variable) -> Variable:
    """`sum_k x[..., i, k] y[..., k, j]`: all products, then sums."""
    if min(len(x.shape), len(y.shape)) < 2:
        raise node.unsupported("matrix product of two variables of which one is a vector")
    if x.shape[-1] != y.shape[-2]:
        raise node.invalid(f"the shapes of its inputs do not match ({list(x.shape)} against {list(y.shape)})")
    node.sized((*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1], x.shape[-1]))
    left, right = b.move(x, lambda a: a[..., :, None, :]), b.move(y, lambda a: np.swapaxes(a, -1, -2)[..., None, :, :])
    products = b.product(left, right)
    return _add_up(b, products)


def _add_up(b: Builder, x: Variable) -> Variable:
    """Sum over the last axis."""
    return b.affine(Reduce(x.shape, (len(x.shape) - 1,)), x, x.shape[:-1])


def _softmax(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`1 / (1 + sum_j exp(x_j - x_i))` over the others; of two values it is the Sigmoid of their difference.

    No overflow where the result is not tiny, and every step has bounds. LogSoftmax is minus the logarithm of the sum,
    of two values `-log(1 + exp(x_j - x_i))`.
    """
    x = variable(node, values)
    rank = len(x.shape)
    axis = node.attributes.get("axis", -1 if node.opset >= 13 else 1)
    axis += rank if axis < 0 else 0
    if not 0 <= axis < rank:
        raise node.invalid(f"axis {axis} of a tensor of rank {rank}")
    several = node.opset < 13 and prod(x.shape[axis + 1 :]) != 1  # over all axes from this one on
    last = b.move(x, lambda a: a.reshape(*a.shape[:axis], -1) if several else np.moveaxis(a, axis, -1))
    void = b.voids(last)
    if void is not None:
        last = _filled(b, node, last, void)
    share = _shares(b, last, node.op == "LogSoftmax", void)
    if void is not None and node.op == "LogSoftmax":
        share = b.hollow(share, void.ravel())
    elif void is not None:
        share = b.times(share, Constant((~void).astype(np.float64)))
    return [b.move(share, lambda a: a.reshape(x.shape) if several else np.moveaxis(a, -1, axis))]


def _shares(b: Builder, x: Variable, log: bool, void: BoolArray | None) -> Variable:
    """Softmax, or its logarithm, over the last axis; without the entries that are `void`, where its values are none."""
    count = x.shape[-1]
    if count == 1:
        return b.times(x, number(0.0)) if log else b.shift(b.times(x, number(0.0)), number(1.0))
    if count == 2 and void is None:
        other = b.move(x, lambda a: a[..., ::-1])
        if log:
            return b.negate(b.node(SOFTPLUS, [b.combine(other, x, -1.0)], x.shape))
        return b.node(SIGMOID, [b.combine(x, other, -1.0)], x.shape)
    pairs = (*x.shape, count - 1)
    which = np.array([[j for j in range(count) if j != i] for i in range(count)])
    others = b.move(x, lambda a: a[..., which])
    own = b.expand(b.move(x, lambda a: a[..., None]), pairs)
    powers = b.node(EXP, [b.combine(others, own, -1.0)], pairs)
    if void is not None:
        powers = b.times(powers, Constant((~void[..., which]).astype(np.float64)))
    total = b.shift(_add_up(b, powers), number(1.0))
    return b.negate(b.node(LOG, [total], x.shape)) if log else b.node(RECIPROCAL, [total], x.shape)


def _filled(b: Builder, node: OnnxNode, x: Variable, void: BoolArray) -> Variable:
    """x with the first number of each row in the place of those that are minus infinity."""
    if void.all(axis=-1).any():
        raise node.unsupported("a row of nothing but minus infinity")
    own = np.broadcast_to(np.arange(x.shape[-1]), x.shape)
    at = np.where(void, (~void).argmax(axis=-1)[..., None], own)
    return b.move(x, lambda a: np.take_along_axis(a, at, axis=-1))


def _matrix(node: OnnxNode, c: Constant, inner: int, axis: int) -> tuple[np.ndarray, tuple[int, ...], int]:
    """The constant as a matrix `(inner, others)`, its leading dimensions, which are all 1, and its roundings."""
    (weight, roundings), outer = c.weight(), c.shape[:-2]
    if weight.ndim == 0 or weight.shape[axis] != inner:
        raise node.invalid(f"the shapes of its inputs do not match ({list(c.shape)} against {inner})")
    if weight.ndim == 1:
        return weight[:, None], outer, roundings
    weight = weight.reshape(weight.shape[-2:])
    return (weight if axis == -2 else weight.T), outer, roundings


def rows(b: Builder, x: Variable, weight: np.ndarray, roundings: int, shape: tuple[int, ...]) -> Variable:
    """`weight (m, n)` applied to each row of n values."""
    rows = x.size // weight.shape[1]
    if rows == 1:
        return b.node(Dense(np.ascontiguousarray(weight), np.zeros(len(weight)), roundings=roundings), [x], shape)
    return b.affine(RowDense(np.ascontiguousarray(weight), rows, roundings), x, shape)


def _matmul(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [matmul(b, node, *_two(node, values))]


def _transposed(b: Builder, x: Value) -> Value:
    return b.move(x, np.transpose) if isinstance(x, Variable) else x.map(np.transpose)


def _gemm(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, y = _two(node, values[:2])
    if len(x.shape) != 2 or len(y.shape) != 2:
        raise node.invalid("its first two inputs have to be matrices")
    x = _transposed(b, x) if node.attributes.get("transA", 0) else x
    y = _transposed(b, y) if node.attributes.get("transB", 0) else y
    out, extra = matmul(b, node, x, y), values[2] if len(values) > 2 else None
    out = weighted(b, out, node.attributes.get("alpha", 1.0))
    if extra is None:
        return [out]
    extra = weighted(b, extra, node.attributes.get("beta", 1.0))
    total: Value
    if isinstance(out, Constant) and isinstance(extra, Constant):
        total = constant.add(out, extra)
    else:
        total = b.combine(out, extra)
    if total.shape != out.shape:
        raise node.invalid(f"its third input has the shape {list(extra.shape)}")
    return [total]


def weighted(b: Builder, x: Value, factor: float) -> Value:
    if factor == 1.0:
        return x
    c = number(factor)
    return b.times(x, c) if isinstance(x, Variable) else constant.multiply(x, c)


def _batch_normalization(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`(x - mean) scale / sqrt(variance + epsilon) + shift`, per channel."""
    if any(node.outputs[1:]):
        raise node.unsupported("training mode")
    x = variable(node, values)
    scale, shift, mean, variance = (required_constant(node, values, i) for i in range(1, 5))
    if len(x.shape) < 2 or any(c.shape != (x.shape[1],) for c in (scale, shift, mean, variance)):
        raise node.invalid(f"its statistics do not fit an input of shape {list(x.shape)}")
    spread = constant.add(variance, number(node.attributes.get("epsilon", float(np.float32(1e-5)))))
    if not np.all(spread.value > 0):
        raise node.invalid("a variance is not positive")
    deviation = constant.made(roundoff.root(spread.double(), spread.error), spread)
    factor = constant.divide(scale, deviation)
    rest = constant.add(shift, constant.multiply(mean, factor), -1.0)
    form = (-1,) + (1,) * (len(x.shape) - 2)
    scaled = b.times(x, factor.map(lambda v: v.reshape(form)))
    return [b.shift(scaled, rest.map(lambda v: v.reshape(form)))]


def _concat(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    if "axis" not in node.attributes:
        raise node.invalid("no axis")
    return [b.concat([v for v in values if v is not None], node.attributes["axis"])]


def _pad(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    given = optional_constant(node, values, 1)
    pads = given.integers() if given is not None else node.attributes.get("pads", ())
    axes = optional_constant(node, values, 3)
    rank = len(x.shape)
    chosen = tuple(range(rank)) if axes is None else tuple(a % rank for a in axes.integers())
    if axes is not None:
        node.axes(axes.integers(), rank)
    if len(pads) != 2 * len(chosen):
        raise node.invalid("pads do not match its axes")
    widths = [(0, 0)] * rank
    for i, axis in enumerate(chosen):
        widths[axis] = (pads[i], pads[i + len(chosen)])
    node.sized([max(0, lo) + n + max(0, hi) for n, (lo, hi) in zip(x.shape, widths, strict=True)])
    mode = node.attributes.get("mode", "constant")
    if mode != "constant":
        return [_pad_with_entries(b, node, x, widths, mode)]
    if any(n + lo + hi < 1 or -lo > n or -hi > n for n, (lo, hi) in zip(x.shape, widths, strict=True)):
        raise node.unsupported("pads that leave nothing")
    crop = tuple(slice(max(0, -lo), n + min(0, hi)) for n, (lo, hi) in zip(x.shape, widths, strict=True))
    x = b.move(x, lambda a: a[crop])
    grow = [(max(0, lo), max(0, hi)) for lo, hi in widths]
    fill = _fill(node, values)
    layout = np.pad(np.arange(x.size).reshape(x.shape), grow, constant_values=-1)
    if layout.size == x.size:
        return [x]
    return [b.place(x, layout, np.full(layout.shape, fill))]


def _pad_with_entries(b: Builder, node: OnnxNode, x: Variable, widths: list[tuple[int, int]], mode: str) -> Variable:
    """Padding by the last entry, or by those next to it the other way round."""
    for n, (lo, hi) in zip(x.shape, widths, strict=True):
        if min(lo, hi) < 0 or (mode in ("reflect", "wrap") and max(lo, hi) >= n + (mode == "wrap")):
            raise node.unsupported(f"pads ({lo}, {hi}) in mode {mode!r} on an axis of {n}")
    return b.move(x, lambda a: np.pad(a, widths, mode=mode))  # type: ignore[call-overload]


def _fill(node: OnnxNode, values: Values) -> float:
    """The number to pad with."""
    c = optional_constant(node, values, 2)
    if c is None:
        return float(node.attributes.get("value", 0.0))
    if c.value.size != 1 or len(c.shape) > 1:
        raise node.invalid(f"its padding value has the shape {list(c.shape)}")
    c.stated(node, "its padding value")
    return float(c.offset()[0][0])


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


# operator -> handler; what of it is read stands in `mucg4.read.table`
HANDLERS: dict[str, Handler] = {
    "Add": _add,
    "Sub": _add,
    "Mul": _mul,
    "Div": _div,
    "Neg": _neg,
    "Sum": _sum,
    "Max": _extremum,
    "Min": _extremum,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "BatchNormalization": _batch_normalization,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Pow": _pow,
    "Concat": _concat,
    "Pad": _pad,
    "ReduceSum": _reduce,
    "ReduceMean": _reduce,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
}
