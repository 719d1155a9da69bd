"""Second reading: matrix products, normalisation and reductions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mucg4.check.meaning import joined
from mucg4.check.moves import Meaning, Values, axis_of, given, whole
from mucg4.check.values import Fallback, Value
from mucg4.check.wire import BOOL, Node, single
from mucg4.ops.arrays import AnyArray

if TYPE_CHECKING:
    from mucg4.check.reading import Reading


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


def along_axes(r: Reading, node: Node, xs: Values) -> tuple[int, ...]:
    rank = len(given(xs, 0).shape)
    axes = whole(node, xs, 1, "axes")
    if not axes:
        return () if node.attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({axis_of(a, rank) for a in axes}))


def _reduce(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, axes, keep = given(xs, 0), along_axes(r, node, xs), bool(node.attributes.get("keepdims", 1))
    if not x.is_float:
        folds: dict[str, Callable[..., AnyArray]] = {
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
        return [_product_over(r, x, axes, keep)]
    return [extreme_over(r, x, axes, keep, node.op == "ReduceMax")]


def _product_over(r: Reading, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    """One factor after the other."""
    shape = [1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes]
    front = x.map(lambda v: np.moveaxis(v, axes, range(len(axes))).reshape(-1, *shape))
    total = front.map(lambda v: v[0])
    for i in range(1, front.shape[0]):
        total = r.n.multiply(total, front.map(lambda v, i=i: v[i]))  # type: ignore[misc]
    return total


def extreme_over(r: Reading, x: Value, axes: tuple[int, ...], keep: bool, largest: bool) -> Value:
    """The largest or smallest over axes; off by at most the largest error among them."""
    x = r.n.real(x)
    at = tuple(a + x.rows for a in axes)
    v = x.v.max(axis=at, keepdims=keep) if largest else x.v.min(axis=at, keepdims=keep)
    return replace(x, v=v, e=None if x.e is None else x.e.max(axis=at, keepdims=keep))


REDUCTION = "axes keepdims noop_with_empty_axes"
SUMS: dict[str, tuple[Meaning, str]] = {
    "MatMul": (joined(product, 2), ""),
    "Gemm": (_gemm, "alpha beta transA transB"),
    "BatchNormalization": (_batch_normalization, "epsilon momentum spatial training_mode is_test"),
    "ReduceSum": (_reduce, REDUCTION),
    "ReduceMean": (_reduce, REDUCTION),
    "ReduceMax": (_reduce, REDUCTION),
    "ReduceMin": (_reduce, REDUCTION),
    "ReduceProd": (_reduce, REDUCTION),
}
