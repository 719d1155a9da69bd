"""Operators whose inputs are all constants: evaluated at load time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from math import prod
from typing import cast as typed

import numpy as np

from mucg4.ops.arrays import AnyArray
from mucg4.read import constant, tensors
from mucg4.read.constant import Constant
from mucg4.read.layouts import running, scattered, triangle
from mucg4.read.protobuf import OnnxNode

Constants = Sequence[Constant | None]
Folder = Callable[[OnnxNode, Constants], Constant]


def reduction_axes(node: OnnxNode, rank: int, given: Constant | None) -> tuple[int, ...]:
    """Nonnegative axes of a reduction; all of them when none are named."""
    axes = node.attributes.get("axes") or (given.integers() if given is not None else ())
    if not axes:
        return () if node.attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return node.axes(axes, rank)


def folded_shape(node: OnnxNode, xs: Constants) -> tuple[int, ...]:
    """At least the shape that an operator's result has; asked for before it is computed, as constants may grow.

    Raises `ValueError` when shapes do not fit.
    """
    shapes = [x.shape for x in xs if x is not None]
    if node.op in ("MatMul", "Gemm") and min(len(s) for s in shapes[:2]) > 1:
        return (*np.broadcast_shapes(*(s[:-2] for s in shapes[:2])), max(shapes[0][-2:]), max(shapes[1][-2:]))
    if node.op == "Concat":
        return (sum(prod(s) for s in shapes),)
    if node.op in BROADCAST:
        return tuple(np.broadcast_shapes(*shapes))
    return shapes[0] if shapes else ()


def _pair(f: Callable[[Constant, Constant], Constant]) -> Folder:
    return lambda node, xs: f(*_all(xs))


def _one(f: Callable[[Constant], Constant]) -> Folder:
    return lambda node, xs: f(_all(xs)[0])


def _each(f: Callable[..., Constant]) -> Folder:
    """A function that takes the node and every input."""
    return lambda node, xs: f(node, *_all(xs))


def _compare(f: Callable[..., AnyArray]) -> Folder:
    return lambda node, xs: constant.compare(node, f, *_all(xs))


def _all(xs: Constants) -> Sequence[Constant]:
    return typed(Sequence[Constant], [x for x in xs if x is not None])


def _relu(x: Constant) -> Constant:
    return constant.extremum(x, Constant(np.zeros((), dtype=x.value.dtype), kind=x.kind), True)


def _concat(node: OnnxNode, xs: Constants) -> Constant:
    parts, axis = _all(xs), node.attributes["axis"]
    if len({p.kind for p in parts}) > 1:
        raise node.invalid(f"its inputs have the element types {[p.kind for p in parts]}")
    value, error = np.concatenate([p.value for p in parts], axis=axis), None
    if any(p.error is not None for p in parts):
        error = np.concatenate([np.zeros(p.shape) if p.error is None else p.error for p in parts], axis=axis)
    return Constant(value, node.outputs[0], parts[0].kind, error, all(p.certain for p in parts))


def _gemm(node: OnnxNode, xs: Constants) -> Constant:
    a, b = (typed(Constant, x) for x in xs[:2])
    if a.value.ndim != 2 or b.value.ndim != 2:
        raise node.invalid("its first two inputs have to be matrices")
    a = a.map(np.transpose) if node.attributes.get("transA", 0) else a
    b = b.map(np.transpose) if node.attributes.get("transB", 0) else b
    out = constant.multiply(constant.matmul(a, b), constant.number(node.attributes.get("alpha", 1.0)))
    if len(xs) < 3 or xs[2] is None:
        return out
    shape = out.shape
    out = constant.add(out, constant.multiply(xs[2], constant.number(node.attributes.get("beta", 1.0))))
    if out.shape != shape:
        raise node.invalid(f"its third input has the shape {list(xs[2].shape)}")
    return out


def _total(mean: bool) -> Folder:
    def fold(node: OnnxNode, xs: Constants) -> Constant:
        x = typed(Constant, xs[0])
        axes = reduction_axes(node, x.value.ndim, xs[1] if len(xs) > 1 else None)
        return constant.total(x, axes, bool(node.attributes.get("keepdims", 1)), mean) if axes else x

    return fold


def _reduce_product(node: OnnxNode, xs: Constants) -> Constant:
    x = typed(Constant, xs[0])
    if x.kind not in (6, 7):
        raise node.unsupported(f"element type {x.kind}")
    axes = reduction_axes(node, x.value.ndim, xs[1] if len(xs) > 1 else None)
    if not axes:
        return x
    keep = bool(node.attributes.get("keepdims", 1))
    with np.errstate(all="ignore"):
        constant.small_enough(np.prod(abs(x.double()), axis=axes), x)
    value = np.prod(x.value, axis=axes, keepdims=keep, dtype=x.value.dtype)
    return Constant(np.asarray(value), node.outputs[0], x.kind)


def _dequantize(node: OnnxNode, xs: Constants) -> Constant:
    x, scale = (typed(Constant, v) for v in xs[:2])
    return tensors.dequantize(node, x, scale, xs[2] if len(xs) > 2 else None)


def _range(node: OnnxNode, xs: Constants) -> Constant:
    parts = _all(xs)
    if any(p.kind != parts[0].kind or p.kind not in (6, 7) or p.value.size != 1 for p in parts):
        raise node.unsupported("bounds that are not single integers of one type")
    start, stop, step = (int(p.value.item()) for p in parts)
    if not step:
        raise node.invalid("its step is zero")
    node.sized((max(0, -((start - stop) // step)),))
    return Constant(np.arange(start, stop, step, dtype=parts[0].value.dtype), node.outputs[0], parts[0].kind)


def _remainder(node: OnnxNode, xs: Constants) -> Constant:
    """Mod of integers: with the sign of the divisor, or of the dividend where `fmod` is set."""
    a, b = _all(xs)
    if np.any(b.value == 0):
        raise node.invalid("a remainder of a division by zero")
    rest = np.fmod if node.attributes.get("fmod", 0) else np.mod
    return Constant(np.asarray(rest(a.value, b.value)), node.outputs[0], a.kind)


def _trilu(node: OnnxNode, xs: Constants) -> Constant:
    x = typed(Constant, xs[0])
    kept = triangle(node, x.shape, xs[1] if len(xs) > 1 else None)
    return x.map(lambda v: np.where(kept, v, np.zeros((), dtype=v.dtype)))


def _cumulative(node: OnnxNode, xs: Constants) -> Constant:
    x, axis = _all(xs)
    at, weight = running(node, x.shape, axis)
    moved = x.map(lambda v: np.moveaxis(v, at, -1))
    total = constant.matmul(moved, Constant(weight.T.astype(x.value.dtype), kind=x.kind))
    constant.small_enough(abs(total.double()), x) if not x.is_float else None
    return total.map(lambda v: np.moveaxis(v, -1, at))


def _scatter(node: OnnxNode, xs: Constants) -> Constant:
    data, indices, updates = _all(xs)
    if data.kind != updates.kind:
        raise node.invalid(f"its inputs have the element types {[data.kind, updates.kind]}")
    layout = scattered(node, data.shape, indices, updates.shape)
    parts = [c.map(lambda v: v.ravel()) for c in (data, updates)]
    value, error = np.concatenate([c.value for c in parts])[layout], None
    if any(c.error is not None for c in parts):
        error = np.concatenate([np.zeros(c.shape) if c.error is None else c.error for c in parts])[layout]
    return Constant(value, node.outputs[0], data.kind, error, data.certain and updates.certain)


def _mean_of(node: OnnxNode, xs: Constants) -> Constant:
    total = reduce(constant.add, _all(xs))
    return replace(constant.divide(total, constant.number(float(len(xs)))), certain=False)


BROADCAST = frozenset(
    "Add Sub Mul Div Mod Sum Mean Max Min Pow Equal Less Greater GreaterOrEqual LessOrEqual And Or Xor Where".split()
)
# operator -> function; what of it is read stands in `mucg4.read.table`
FOLDERS: dict[str, Folder] = {
    "Add": _pair(constant.add),
    "Sub": _pair(lambda a, b: constant.add(a, b, -1.0)),
    "Mul": _pair(constant.multiply),
    "Div": _pair(constant.divide),
    "Sum": lambda node, xs: reduce(constant.add, _all(xs)),
    "Max": lambda node, xs: reduce(lambda a, b: constant.extremum(a, b, True), _all(xs)),
    "Min": lambda node, xs: reduce(lambda a, b: constant.extremum(a, b, False), _all(xs)),
    "Neg": _one(constant.negate),
    "Abs": _one(constant.absolute),
    "Relu": _one(_relu),
    "MatMul": _pair(constant.matmul),
    "Gemm": _gemm,
    "Pow": _each(constant.power),
    "Sqrt": _each(constant.function),
    "Exp": _each(constant.function),
    "Log": _each(constant.function),
    "Reciprocal": _each(constant.function),
    "Tanh": _each(constant.function),
    "Sin": _each(constant.function),
    "Cos": _each(constant.function),
    "Floor": _each(constant.step),
    "Ceil": _each(constant.step),
    "Round": _each(constant.step),
    "Sign": _each(constant.step),
    "ReduceSum": _total(False),
    "ReduceMean": _total(True),
    "ReduceProd": _reduce_product,
    "Concat": _concat,
    "Cast": _each(tensors.cast),
    "Constant": lambda node, xs: tensors.literal(node),
    "ConstantOfShape": _each(tensors.filled),
    "DequantizeLinear": _dequantize,
    "Equal": _compare(np.equal),
    "Less": _compare(np.less),
    "Greater": _compare(np.greater),
    "Not": _compare(np.logical_not),
    "And": _compare(np.logical_and),
    "Or": _compare(np.logical_or),
    "Where": _each(constant.where),
    "Range": _range,
    "Mod": _remainder,
    "Trilu": _trilu,
    "CumSum": _cumulative,
    "ScatterND": _scatter,
    "ScatterElements": _scatter,
    "Mean": _mean_of,
    "GreaterOrEqual": _compare(np.greater_equal),
    "LessOrEqual": _compare(np.less_equal),
    "Xor": _compare(np.logical_xor),
}
