"""Operators whose inputs are all constants: evaluated at load time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import cast as typed

import numpy as np

from mucg4.ops.base import Array
from mucg4.read import constant
from mucg4.read.constant import Constant
from mucg4.read.protobuf import OnnxNode

Constants = Sequence[Constant | None]
Folder = Callable[[OnnxNode, Constants], Constant]


def reduction_axes(node: OnnxNode, rank: int, given: Constant | None) -> tuple[int, ...]:
    """Nonnegative axes of a reduction; all of them when none are named."""
    axes = node.attributes.get("axes") or (given.integers() if given is not None else ())
    if not axes:
        return () if node.attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(a + rank if a < 0 else a for a in axes))


def _pair(f: Callable[[Constant, Constant], Constant]) -> Folder:
    return lambda node, xs: f(*_all(xs))


def _one(f: Callable[[Constant], Constant]) -> Folder:
    return lambda node, xs: f(_all(xs)[0])


def _values(f: Callable[..., Array]) -> Folder:
    """Comparison and selection of stored numbers."""

    def fold(node: OnnxNode, xs: Constants) -> Constant:
        stored = (x.value if x.magnitude is None else x.weight() for x in _all(xs))
        return Constant(np.asarray(f(*stored)), node.outputs[0])

    return fold


def _numbers(f: Callable[[Array], Array]) -> Folder:
    return lambda node, xs: constant.function(_all(xs)[0], f)


def _all(xs: Constants) -> Sequence[Constant]:
    return typed(Sequence[Constant], [x for x in xs if x is not None])


def _relu(x: Constant) -> Constant:
    return constant.extremum(x, Constant(np.zeros((), dtype=x.value.dtype)), True)


def _power(node: OnnxNode, xs: Constants) -> Constant:
    base, exponent = _all(xs)
    return constant.function(base, lambda v: np.power(v, exponent.value.astype(v.dtype)))


def _concat(node: OnnxNode, xs: Constants) -> Constant:
    parts, axis = _all(xs), node.attributes["axis"]
    value = np.concatenate([p.value for p in parts], axis=axis)
    if not any(p.rounded for p in parts):
        return Constant(value, node.outputs[0])
    return Constant(value, node.outputs[0], np.concatenate([p.size_of_terms() for p in parts], axis=axis), True)


def _gemm(node: OnnxNode, xs: Constants) -> Constant:
    a, b = (typed(Constant, x) for x in xs[:2])
    a = a.map(np.transpose) if node.attributes.get("transA", 0) else a
    b = b.map(np.transpose) if node.attributes.get("transB", 0) else b
    out = constant.multiply(constant.matmul(a, b), Constant(np.array(node.attributes.get("alpha", 1.0))))
    if len(xs) < 3 or xs[2] is None:
        return out
    return constant.add(out, constant.multiply(xs[2], Constant(np.array(node.attributes.get("beta", 1.0)))))


def _total(mean: bool) -> Folder:
    def fold(node: OnnxNode, xs: Constants) -> Constant:
        x = typed(Constant, xs[0])
        axes = reduction_axes(node, x.value.ndim, xs[1] if len(xs) > 1 else None)
        return constant.total(x, axes, bool(node.attributes.get("keepdims", 1)), mean)

    return fold


def _dequantize(node: OnnxNode, xs: Constants) -> Constant:
    x, scale = (typed(Constant, v) for v in xs[:2])
    return constant.dequantize(node, x, scale, xs[2] if len(xs) > 2 else None)


def _range(node: OnnxNode, xs: Constants) -> Constant:
    return Constant(np.arange(*(x.value.item() for x in _all(xs)), dtype=_all(xs)[0].value.dtype), node.outputs[0])


# operator -> (function, attributes it understands)
FOLDERS: dict[str, tuple[Folder, str]] = {
    "Add": (_pair(constant.add), ""),
    "Sub": (_pair(lambda a, b: constant.add(a, b, -1.0)), ""),
    "Mul": (_pair(constant.multiply), ""),
    "Div": (_pair(constant.divide), ""),
    "Sum": (lambda node, xs: reduce(constant.add, _all(xs)), ""),
    "Max": (lambda node, xs: reduce(lambda a, b: constant.extremum(a, b, True), _all(xs)), ""),
    "Min": (lambda node, xs: reduce(lambda a, b: constant.extremum(a, b, False), _all(xs)), ""),
    "Neg": (_one(constant.negate), ""),
    "Abs": (_one(constant.absolute), ""),
    "Relu": (_one(_relu), ""),
    "MatMul": (_pair(constant.matmul), ""),
    "Gemm": (_gemm, "alpha beta transA transB"),
    "Pow": (_power, ""),
    "Sqrt": (_numbers(np.sqrt), ""),
    "Exp": (_numbers(np.exp), ""),
    "Log": (_numbers(np.log), ""),
    "Reciprocal": (_numbers(np.reciprocal), ""),
    "Floor": (_numbers(np.floor), ""),
    "Sign": (_numbers(np.sign), ""),
    "Ceil": (_numbers(np.ceil), ""),
    "Tanh": (_numbers(np.tanh), ""),
    "Sin": (_numbers(np.sin), ""),
    "Cos": (_numbers(np.cos), ""),
    "ReduceSum": (_total(False), "axes keepdims noop_with_empty_axes"),
    "ReduceMean": (_total(True), "axes keepdims noop_with_empty_axes"),
    "ReduceProd": (_values(np.prod), "keepdims"),
    "Concat": (_concat, "axis"),
    "Cast": (lambda node, xs: constant.cast(node, _all(xs)[0]), "to saturate"),
    "Constant": (lambda node, xs: constant.literal(node), "value value_float value_floats value_int value_ints"),
    "ConstantOfShape": (lambda node, xs: constant.filled(node, _all(xs)[0]), "value"),
    "DequantizeLinear": (_dequantize, "axis block_size output_dtype"),
    "Equal": (_values(np.equal), ""),
    "Less": (_values(np.less), ""),
    "Greater": (_values(np.greater), ""),
    "Not": (_values(np.logical_not), ""),
    "And": (_values(np.logical_and), ""),
    "Or": (_values(np.logical_or), ""),
    "Where": (_values(np.where), ""),
    "Range": (_range, ""),
}
