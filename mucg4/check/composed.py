"""Second reading: normalisations, norms, Einsum, running sums, scattering, by their definitions on the ONNX pages."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from mucg4.check.moves import Meaning, Values, axis_of, fits, fixed, given
from mucg4.check.sums import REDUCTION, along_axes, product
from mucg4.check.values import Fallback, Value
from mucg4.check.wire import BOOL, Node, single
from mucg4.ops.arrays import IntArray
from mucg4.ops.base import Array

if TYPE_CHECKING:
    from mucg4.check.reading import Reading


def _mean_over(r: Reading, x: Value, axes: tuple[int, ...]) -> Value:
    return r.n.divide(r.n.total(x, axes, True), r.n.number(float(prod(x.shape[i] for i in axes)), x))


def _root(r: Reading, x: Value, epsilon: float) -> Value:
    return r.n.call(np.sqrt, r.n.add(x, r.n.number(epsilon, x)))


def _standard(r: Reading, x: Value, axes: tuple[int, ...], epsilon: float) -> Value:
    """Less the mean, over the root of the mean square of that."""
    away = r.n.add(x, _mean_over(r, x, axes), -1)
    return r.n.divide(away, _root(r, _mean_over(r, r.n.multiply(away, away), axes), epsilon))


def _stretched(r: Reading, x: Value, xs: Values, form: tuple[int, ...] | None = None) -> list[Value]:
    """Times the second input, plus the third."""
    for at in (1, 2):
        c = xs[at] if at < len(xs) else None
        if c is None:
            continue
        if c.rows:
            raise Fallback("a scale or bias that depends on the input")
        c = c if form is None else c.map(lambda v: v.reshape(form))
        if np.broadcast_shapes(x.shape, c.shape) != x.shape:
            raise Fallback("a scale or bias that does not fit")
        x = r.n.multiply(x, c) if at == 1 else r.n.add(x, c)
    return [x]


def _layer(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, a = given(xs, 0), node.attributes
    if len(node.outputs) > 1 or a.get("stash_type", 1) != 1 or given(xs, 1) is None:
        raise Fallback("more than one output, or another intermediate type")
    axes = tuple(range(axis_of(a.get("axis", -1), len(x.shape)), len(x.shape)))
    epsilon = a.get("epsilon", single(1e-5))
    if node.op == "LayerNormalization":
        return _stretched(r, _standard(r, x, axes, epsilon), xs)
    return _stretched(r, r.n.divide(x, _root(r, _mean_over(r, r.n.multiply(x, x), axes), epsilon)), xs)


def _instance(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    if len(x.shape) < 3 or any(given(xs, i).shape != (x.shape[1],) for i in (1, 2)):
        raise Fallback(f"an image of shape {list(x.shape)}")
    out = _standard(r, x, tuple(range(2, len(x.shape))), node.attributes.get("epsilon", single(1e-5)))
    return _stretched(r, out, xs, (x.shape[1],) + (1,) * (len(x.shape) - 2))


def _group(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, a = given(xs, 0), node.attributes
    groups, shape = a.get("num_groups", 0), x.shape
    if a.get("stash_type", 1) != 1 or groups < 1 or len(shape) < 2 or shape[1] % groups:
        raise Fallback("these groups")
    apart = x.map(lambda v: v.reshape(shape[0], groups, prod(shape[1:]) // groups))
    out = _standard(r, apart, (2,), a.get("epsilon", single(1e-5))).map(lambda v: v.reshape(shape))
    ends = [given(xs, i) for i in (1, 2)]
    if r.opset < 21:  # one number for each group
        if any(c.shape != (groups,) for c in ends):
            raise Fallback("a scale that is not one number for each group")
        ends = [c.map(lambda v: v[np.arange(shape[1]) // (shape[1] // groups)]) for c in ends]
    elif any(c.shape != (shape[1],) for c in ends):
        raise Fallback("a scale that is not one number for each channel")
    return _stretched(r, out, [None, *ends], (shape[1],) + (1,) * (len(shape) - 2))


def _lp(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    axes = (axis_of(node.attributes.get("axis", -1), len(x.shape)),)
    return [r.n.divide(x, _norm(r, x, axes, node.attributes.get("p", 2), True))]


def _norm(r: Reading, x: Value, axes: tuple[int, ...], p: int, keep: bool) -> Value:
    if p == 1:
        x = r.n.real(x)
        return r.n.total(replace(x, v=abs(x.v)), axes, keep)
    if p != 2:
        raise Fallback(f"p {p}")
    return r.n.call(np.sqrt, r.n.total(r.n.multiply(x, x), axes, keep))


def _reduce(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, axes, keep = given(xs, 0), along_axes(r, node, xs), bool(node.attributes.get("keepdims", 1))
    if not x.is_float or not axes:
        raise Fallback("integers, or no axes")
    if node.op in ("ReduceL1", "ReduceL2"):
        return [_norm(r, x, axes, 1 if node.op == "ReduceL1" else 2, keep)]
    if node.op == "ReduceSumSquare":
        return [r.n.total(r.n.multiply(x, x), axes, keep)]
    if node.op == "ReduceLogSum":
        return [r.n.call(np.log, r.n.total(x, axes, keep))]
    x = r.n.real(x)
    if x.v.dtype == object:
        raise Fallback("no exact evaluation")
    top = Value(x.v.max(axis=tuple(a + x.rows for a in axes), keepdims=True), x.kind, x.rows)  # any shift will do
    logs = r.n.call(np.log, r.n.total(r.n.call(np.exp, r.n.add(x, top, -1)), axes, True))
    shape = [n for i, n in enumerate(x.shape) if i not in axes]
    out = r.n.add(logs, top)
    return [out if keep else out.map(lambda v: v.reshape(shape))]


def _trilu(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, k = given(xs, 0), fixed(xs, 1)
    if len(x.shape) < 2:
        raise Fallback(f"a shape {list(x.shape)}")
    far = np.subtract.outer(-np.arange(x.shape[-2]), -np.arange(x.shape[-1]))  # column less row
    edge = 0 if k is None else int(k.reshape(-1)[0])
    mask = far >= edge if node.attributes.get("upper", 1) else far <= edge
    if not x.is_float:
        return [replace(x, v=np.where(mask, x.v, np.zeros((), dtype=x.v.dtype)))]
    x, zero = r.n.line_up(x, r.n.number(0.0, x))
    return [r.n.choose(mask, x, zero)]


def _cumulative(r: Reading, node: Node, xs: Values) -> list[Value]:
    """Each entry the sum of those before it, itself included unless `exclusive`; from the end when `reverse`."""
    x, axis = given(xs, 0), fixed(xs, 1)
    if axis is None or axis.size != 1 or x.kind == BOOL:
        raise Fallback("no axis")
    at = axis_of(int(axis.reshape(-1)[0]), len(x.shape))
    n, strict = x.shape[at], bool(node.attributes.get("exclusive", 0))
    fits((n, n))
    before = np.subtract.outer(np.arange(n), np.arange(n))  # [into, from] row less column
    before = before if node.attributes.get("reverse", 0) else -before
    into = (before > 0) if strict else (before >= 0)
    weight = Value(into.astype(np.float64 if x.is_float else x.v.dtype), x.kind)
    return [product(r, x.map(lambda v: np.moveaxis(v, at, -1)), weight).map(lambda v: np.moveaxis(v, -1, at))]


def _gather_nd(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, at, batch = given(xs, 0), fixed(xs, 1), node.attributes.get("batch_dims", 0)
    if at is None or at.dtype.kind != "i" or at.ndim < 1 or at.shape[:batch] != x.shape[:batch] or batch >= at.ndim:
        raise Fallback("indices that do not fit")
    depth, out = at.shape[-1], at.shape[:-1]
    rest = x.shape[batch + depth :]
    fits((*out, *rest))
    flat = np.zeros(out, dtype=np.int64)
    for i in range(batch):
        form = [-1 if k == i else 1 for k in range(len(out))]
        flat = flat * x.shape[i] + np.arange(x.shape[i]).reshape(form)
    for i in range(depth):
        flat = flat * x.shape[batch + i] + _counted(at[..., i], x.shape[batch + i])
    flat = flat.reshape(-1, 1) * prod(rest) + np.arange(prod(rest))
    return [x.map(lambda v: v.reshape(-1)[flat].reshape((*out, *rest)))]


def _counted(at: Array, n: int) -> Array:
    if np.any(at >= n) or np.any(at < -n):
        raise Fallback("an index outside its axis")
    return at + n * (at < 0)


def _gather_elements(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, at = given(xs, 0), fixed(xs, 1)
    axis = axis_of(node.attributes.get("axis", 0), len(x.shape))
    if at is None or at.dtype.kind != "i" or at.ndim != len(x.shape):
        raise Fallback("indices that do not fit")
    flat = np.zeros(at.shape, dtype=np.int64)
    for i, n in enumerate(x.shape):
        if i != axis and at.shape[i] > n:
            raise Fallback("more indices than entries")
        form = [-1 if k == i else 1 for k in range(at.ndim)]
        flat = flat * n + (_counted(at, n) if i == axis else np.arange(at.shape[i]).reshape(form))
    return [x.map(lambda v: v.reshape(-1)[flat])]


def _scatter(r: Reading, node: Node, xs: Values) -> list[Value]:
    """Updates take the places that their indices name; no place twice."""
    x, at, new = given(xs, 0), fixed(xs, 1), given(xs, 2)
    if node.attributes.get("reduction", "none") != "none" or at is None or at.dtype.kind != "i":
        raise Fallback("a reduction, or no indices")
    if x.kind != new.kind:
        raise Fallback("updates of another element type")
    if node.op == "ScatterND":
        depth = at.shape[-1]
        rest = x.shape[depth:]
        flat: IntArray = np.zeros(at.shape[:-1], dtype=np.int64)
        for i in range(depth):
            flat = flat * x.shape[i] + _counted(at[..., i], x.shape[i])
        flat = (flat.reshape(-1, 1) * prod(rest) + np.arange(prod(rest))).ravel()
        if new.shape != (*at.shape[:-1], *rest):
            raise Fallback("updates that do not fit")
    else:
        axis = axis_of(node.attributes.get("axis", 0), len(x.shape))
        if at.ndim != len(x.shape) or new.shape != at.shape:
            raise Fallback("updates that do not fit")
        flat = np.zeros(at.shape, dtype=np.int64)
        for i, n in enumerate(x.shape):
            form = [-1 if k == i else 1 for k in range(at.ndim)]
            flat = flat * n + (_counted(at, n) if i == axis else np.arange(at.shape[i]).reshape(form))
            if i != axis and at.shape[i] > n:
                raise Fallback("more indices than entries")
        flat = flat.ravel()
    if len(set(flat.tolist())) < flat.size:
        raise Fallback("two updates of one place")
    if not x.is_float:
        v = x.v.copy()
        v.reshape(-1)[flat] = new.v.ravel()
        return [replace(x, v=v)]
    x, new = r.n.real(x), r.n.real(new)
    rows = x.rows or new.rows
    points = max(len(p.v) if p.rows else 1 for p in (x, new)) if rows else 1
    r.n.room(points, prod(x.shape))
    out: list[Array | None] = []
    for old, fresh in ((x.v, new.v), (x.e, new.e)):
        if old is None and fresh is None:
            out.append(None)
            continue
        full = [
            np.zeros((points, prod(p.shape)))
            if a is None
            else np.broadcast_to(a.reshape(len(a) if p.rows else 1, -1), (points, prod(p.shape)))
            for a, p in ((old, x), (fresh, new))
        ]
        made = full[0].copy()
        made[:, flat] = full[1]
        out.append(made.reshape(points, *x.shape) if rows else made.reshape(x.shape))
    v, e = out
    assert v is not None
    return [Value(v, x.kind, rows, e)]


def _shrink(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, limit, bias = r.n.real(given(xs, 0)), node.attributes.get("lambd", 0.5), node.attributes.get("bias", 0.0)
    if not x.is_float:
        raise Fallback("integers")
    shift = r.n.number(bias, x)
    up, down, zero = r.n.add(x, shift), r.n.add(x, shift, -1), r.n.real(r.n.number(0.0, x))
    out = r.n.choose(x.v < -limit, up, r.n.choose(x.v > limit, down, zero))
    if x.e is None or out.e is None:
        return [out]
    near = np.minimum(abs(x.v - limit), abs(x.v + limit)) <= x.e
    return [replace(out, e=np.where(near, np.inf, out.e))]


def _einsum(r: Reading, node: Node, xs: Values) -> list[Value]:
    """The sum of products of all operands over the labels that the result does not name, by their definition."""
    if any(x is None for x in xs):
        raise Fallback("an operand is missing")
    operands = [r.n.real(given(xs, i)) for i in range(len(xs))]
    terms, target = _labels(node.attributes.get("equation", ""), [x.shape for x in operands])
    sizes: dict[str, int] = {}
    for x, term in zip(operands, terms, strict=True):
        for label, n in zip(term, x.shape, strict=True):
            if sizes.setdefault(label, n) != n:
                raise Fallback("labels that are broadcast")
    gone = [label for label in sizes if label not in target]
    order = [*target, *gone]
    total: Value | None = None
    for x, term in zip(operands, terms, strict=True):
        x = _spread_out(x, term, order, sizes)
        total = x if total is None else r.n.multiply(total, x)
    if total is None:
        raise Fallback("no operand")
    if len(operands) == 1:
        full = tuple(sizes[label] for label in order)
        total = total.map(lambda v: np.broadcast_to(v, full))
    if not gone:
        return [total]
    return [r.n.total(total, tuple(range(len(target), len(order))), False)]


def _spread_out(x: Value, term: list[str], order: list[str], sizes: dict[str, int]) -> Value:
    """One axis for each label in `order`, of length 1 for one that the operand lacks; of a label twice the diagonal."""
    own = [label for label in order if label in term]

    def move(v: Array) -> Array:
        grid = np.indices([sizes[label] for label in own])
        picked = v[tuple(grid[own.index(label)] for label in term)]
        return picked.reshape([sizes[label] if label in term else 1 for label in order])

    return x.map(move)


def _labels(equation: str, shapes: list[tuple[int, ...]]) -> tuple[list[list[str]], list[str]]:
    """The labels of the operands' axes and the result's; `...` stands for `.0`, `.1`, ... counted from the right."""
    text = "".join(equation.split())
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(shapes):
        raise Fallback("an equation of other operands")
    terms = []
    for part, shape in zip(parts, shapes, strict=True):
        front, dots, back = part.partition("...")
        hidden = len(shape) - len(front) - len(back) if dots else 0
        labels = [*front, *(f".{i}" for i in range(hidden - 1, -1, -1)), *back]
        if hidden < 0 or len(labels) != len(shape) or not all(label.isalpha() for label in (*front, *back)):
            raise Fallback("an equation that does not fit its operands")
        terms.append(labels)
    every = [label for term in terms for label in term]
    hidden_ones = sorted({label for label in every if label[0] == "."}, key=lambda s: -int(s[1:]))
    if arrow:
        front, dots, back = right.partition("...")
        target = [*front, *(hidden_ones if dots else ()), *back]
    else:
        target = [*hidden_ones, *sorted(label for label in set(every) if label[0] != "." and every.count(label) == 1)]
    if len(set(target)) < len(target) or not set(target) <= set(every):
        raise Fallback("an equation whose result is none of its operands'")
    return terms, target


COMPOSED: dict[str, tuple[Meaning, str]] = {
    "LayerNormalization": (_layer, "axis epsilon stash_type"),
    "RMSNormalization": (_layer, "axis epsilon stash_type"),
    "SimplifiedLayerNormalization": (_layer, "axis epsilon stash_type"),
    "InstanceNormalization": (_instance, "epsilon"),
    "GroupNormalization": (_group, "epsilon num_groups stash_type"),
    "LpNormalization": (_lp, "axis p"),
    "ReduceL1": (_reduce, REDUCTION),
    "ReduceL2": (_reduce, REDUCTION),
    "ReduceSumSquare": (_reduce, REDUCTION),
    "ReduceLogSum": (_reduce, REDUCTION),
    "ReduceLogSumExp": (_reduce, REDUCTION),
    "Trilu": (_trilu, "upper"),
    "CumSum": (_cumulative, "exclusive reverse"),
    "GatherND": (_gather_nd, "batch_dims"),
    "GatherElements": (_gather_elements, "axis"),
    "ScatterND": (_scatter, "reduction"),
    "ScatterElements": (_scatter, "axis reduction"),
    "Shrink": (_shrink, "lambd bias"),
    "Einsum": (_einsum, "equation"),
}
