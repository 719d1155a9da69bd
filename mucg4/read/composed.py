"""Operators that are made of others: normalisations, norms, Einsum, running sums, interpolation, scattering.

None of them brings a canonical operator of its own. Where onnxruntime computes one by another formula than it is
written here, its rounding is not known: `OTHERWISE` names these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from mucg4.ops.affine import Reduce
from mucg4.ops.arrays import AnyArray
from mucg4.ops.curves import COS, EXP, LOG, RECIPROCAL, SIN, SQRT
from mucg4.ops.steps import SIGN
from mucg4.read import constant
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.constant import Constant, number
from mucg4.read.fold import reduction_axes
from mucg4.read.interpolate import interpolation
from mucg4.read.layouts import running, scattered, triangle
from mucg4.read.operators import (
    Handler,
    Values,
    accumulate,
    matmul,
    optional_constant,
    required_constant,
    rows,
    variable,
)
from mucg4.read.protobuf import OnnxNode

MOST_FACTORS = 256  # of one product over axes; not measured
SINGLE_EPSILON = float(np.float32(1e-5))  # ONNX's default; given
OTHERWISE = frozenset(
    "LayerNormalization SimplifiedLayerNormalization InstanceNormalization GroupNormalization RMSNormalization "
    "LpNormalization ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd Tan Shrink".split()
)


def _total(b: Builder, x: Variable, axes: tuple[int, ...], mean: bool = False, keep: bool = True) -> Variable:
    """Sum or mean over axes."""
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes)
    count = prod(x.shape[i] for i in axes)
    return b.affine(Reduce(x.shape, axes, 1.0 / count if mean else 1.0), x, shape)


def _inverse_root(b: Builder, x: Variable, epsilon: float) -> Variable:
    """`1 / sqrt(x + epsilon)`."""
    x = b.shift(x, number(epsilon)) if epsilon else x
    root = b.node(SQRT, [x], x.shape)
    return b.node(RECIPROCAL, [root], x.shape)


def _normalised(b: Builder, x: Variable, axes: tuple[int, ...], epsilon: float) -> Variable:
    """`(x - mean) / sqrt(variance + epsilon)` over axes."""
    moved = b.combine(x, _total(b, x, axes, mean=True), -1.0)
    variance = _total(b, b.product(moved, moved), axes, mean=True)
    return b.product(moved, _inverse_root(b, variance, epsilon))


def _scaled(b: Builder, node: OnnxNode, x: Variable, scale: Constant, shift: Constant | None) -> Variable:
    """`x scale + shift`, broadcast to x."""
    for c in (scale, shift):
        if c is not None and b.common(x.shape, c.shape) != x.shape:
            raise node.invalid(f"a scale or bias of shape {list(c.shape)} for an input of shape {list(x.shape)}")
    x = b.times(x, scale)
    return x if shift is None else b.shift(x, shift)


def _layer(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """LayerNormalization, RMSNormalization and its older name: over all axes from `axis` on."""
    if any(node.outputs[1:]):
        raise node.unsupported("mean and deviation as outputs")
    x = variable(node, values)
    first = node.axes((node.attributes.get("axis", -1),), len(x.shape))[0]
    axes, epsilon = tuple(range(first, len(x.shape))), node.attributes.get("epsilon", SINGLE_EPSILON)
    if node.op == "LayerNormalization":
        out = _normalised(b, x, axes, epsilon)
    else:
        out = b.product(x, _inverse_root(b, _total(b, b.product(x, x), axes, mean=True), epsilon))
    scale, shift = required_constant(node, values, 1), optional_constant(node, values, 2)
    if max(len(c.shape) for c in (scale, shift) if c is not None) > len(axes):
        trailing = [c for c in (scale, shift) if c is not None and prod(c.shape[: -len(axes)]) != 1]
        if trailing:
            raise node.unsupported("a scale that differs between the rows")
    return [_scaled(b, node, out, scale, shift)]


def _instance(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """Over the positions of each channel of each image."""
    x, (scale, shift) = variable(node, values), (required_constant(node, values, i) for i in (1, 2))
    if len(x.shape) < 3 or any(c.shape != (x.shape[1],) for c in (scale, shift)):
        raise node.invalid(f"its scale and bias do not fit an input of shape {list(x.shape)}")
    out = _normalised(b, x, tuple(range(2, len(x.shape))), node.attributes.get("epsilon", SINGLE_EPSILON))
    form = (-1,) + (1,) * (len(x.shape) - 2)
    return [_scaled(b, node, out, *(c.map(lambda v: v.reshape(form)) for c in (scale, shift)))]


def _group(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """Over the positions and channels of each group; scale and bias per group before operator set 21, then per
    channel."""
    x, (scale, shift) = variable(node, values), (required_constant(node, values, i) for i in (1, 2))
    groups = node.attributes.get("num_groups", 0)
    if len(x.shape) < 2 or groups < 1 or x.shape[1] % groups:
        raise node.invalid(f"{groups} groups of an input of shape {list(x.shape)}")
    count = groups if node.opset < 21 else x.shape[1]
    if any(c.shape != (count,) for c in (scale, shift)):
        raise node.invalid(f"its scale and bias do not have {count} entries")
    split = b.move(x, lambda a: a.reshape(a.shape[0], groups, -1))
    out = _normalised(b, split, (2,), node.attributes.get("epsilon", SINGLE_EPSILON))
    out = b.move(out, lambda a: a.reshape(x.shape))
    form = (-1,) + (1,) * (len(x.shape) - 2)
    each = x.shape[1] // count
    ends = (c.map(lambda v: np.repeat(v, each).reshape(form)) for c in (scale, shift))
    return [_scaled(b, node, out, *ends)]


def _lp(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """x over its norm along an axis."""
    x, p = variable(node, values), node.attributes.get("p", 2)
    axes = node.axes((node.attributes.get("axis", -1),), len(x.shape))
    return [b.product(x, b.node(RECIPROCAL, [norm := _norm(b, x, axes, p, True)], norm.shape))]


def _norm(b: Builder, x: Variable, axes: tuple[int, ...], p: int, keep: bool) -> Variable:
    if p == 1:
        return _total(b, b.absolute(x), axes, keep=keep)
    total = b.relu(_total(b, b.product(x, x), axes, keep=keep))  # not below 0, which bounds do not know by themselves
    return b.node(SQRT, [total], total.shape)


def _reduce(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """ReduceL1, L2, SumSquare, LogSum, LogSumExp and Prod."""
    x = variable(node, values)
    axes = reduction_axes(node, len(x.shape), optional_constant(node, values, 1))
    keep = bool(node.attributes.get("keepdims", 1))
    if not axes and len(x.shape):
        raise node.unsupported("no axes")
    if node.op in ("ReduceL1", "ReduceL2"):
        return [_norm(b, x, axes, int(node.op[-1]), keep)]
    if node.op == "ReduceSumSquare":
        return [_total(b, b.product(x, x), axes, keep=keep)]
    if node.op == "ReduceLogSum":
        total = _total(b, x, axes, keep=keep)
        return [b.node(LOG, [total], total.shape)]
    positions = np.moveaxis(np.arange(x.size).reshape(x.shape), axes, tuple(range(-len(axes), 0)))
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes)
    lists = positions.reshape(prod(shape), -1)
    if node.op == "ReduceLogSumExp":
        return [_log_sum_exp(b, x, lists, shape)]
    if lists.shape[1] > MOST_FACTORS:
        raise node.unsupported(f"a product of more than {MOST_FACTORS} factors")
    parts = [b.pick(x, np.ascontiguousarray(lists[:, k])) for k in range(lists.shape[1])]
    while len(parts) > 1:
        pairs = [b.product(p, q) for p, q in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    return [Variable(parts[0].draft, shape)]


def _log_sum_exp(b: Builder, x: Variable, lists: AnyArray, shape: tuple[int, ...]) -> Variable:
    """`x_0 + log sum exp(x_j - x_0)`: the logarithm's argument is at least 1."""
    own = b.pick(x, np.ascontiguousarray(lists[:, 0]))
    every = b.pick(x, np.ascontiguousarray(lists.ravel()))
    every = Variable(every.draft, lists.shape)
    shifted = b.combine(every, Variable(own.draft, (len(lists), 1)), -1.0)
    total = _total(b, b.node(EXP, [shifted], shifted.shape), (1,), keep=False)
    out = b.combine(own, b.node(LOG, [total], total.shape))
    return Variable(out.draft, shape)


def _mean(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    total = accumulate(values, constant.add, b.combine)
    share = constant.divide(number(1.0), number(float(len(node.inputs))))
    return [b.times(total, share) if isinstance(total, Variable) else constant.multiply(total, share)]


def _trilu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    return [b.times(x, Constant(triangle(node, x.shape, optional_constant(node, values, 1)).astype(np.float64)))]


def _cumulative(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    at, weight = running(node, x.shape, required_constant(node, values, 1))
    return [along(b, x, at, weight)]


def along(b: Builder, x: Variable, axis: int, weight: AnyArray, roundings: int = 0) -> Variable:
    """A matrix `(m, n)` applied to an axis of n."""
    last = b.move(x, lambda a: np.moveaxis(a, axis, -1))
    out = rows(b, last, weight, roundings, (*last.shape[:-1], len(weight)))
    return b.move(out, lambda a: np.moveaxis(a, -1, axis))


def _shrink(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`x - bias` right of lambda, `x + bias` left of -lambda, else 0: on each side a ReLU, and perhaps a jump."""
    x, limit, bias = variable(node, values), node.attributes.get("lambd", 0.5), node.attributes.get("bias", 0.0)
    if limit < 0:
        raise node.unsupported("a negative lambd")
    parts: list[Variable] = []
    for side in (x, b.negate(x)):
        over = b.combine(side, number(limit), -1.0)
        part = b.relu(over)
        if limit != bias:
            jump = b.times(b.relu(b.node(SIGN, [over], over.shape)), constant.add(number(limit), number(bias), -1.0))
            part = b.combine(part, jump)
        parts.append(part)
    return [b.combine(parts[0], parts[1], -1.0)]


def _tan(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    cosine = b.node(COS, [x], x.shape)
    return [b.product(b.node(SIN, [x], x.shape), b.node(RECIPROCAL, [cosine], x.shape))]


# --- scattering ------------------------------------------------------------------------------------------------


def _scatter(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """Data with updates in some places: entries of both one behind the other, in another order."""
    if len(values) != 3 or values[0] is None or values[2] is None:
        raise node.invalid("it needs data, indices and updates")
    data, updates = values[0], values[2]
    layout = scattered(node, data.shape, required_constant(node, values, 1), updates.shape)
    parts: list[Value] = [
        b.move(v, np.ravel) if isinstance(v, Variable) else v.map(lambda a: np.asarray(a.ravel()))
        for v in (data, updates)
    ]
    joined = b.concat(parts, 0)
    return [b.move(joined, lambda a: a[layout])]


# --- Einsum ----------------------------------------------------------------------------------------------------


def _einsum(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """Two operands at a time: what only one of them has and nobody wants later is summed, the rest is a stack of matrix
    products."""
    given = [v for v in values if v is not None]
    terms, target = subscripts(node, [v.shape for v in given])
    parts = [_diagonal(b, node, v, term) for v, term in zip(given, terms, strict=True)]
    while len(parts) > 1:
        later = set(target).union(*(term for _, term in parts[2:]))
        parts[:2] = [_contracted(b, node, *parts[0], *parts[1], later)]
    value, term = parts[0]
    out = _summed(b, value, term, set(target))
    order = [out[1].index(label) for label in target]
    return [_moved(b, out[0], lambda a: np.transpose(a, order))]


def subscripts(node: OnnxNode, shapes: Sequence[tuple[int, ...]]) -> tuple[list[str], str]:
    """Labels of the operands' axes and of the result's, one letter each; an ellipsis takes capital Greek ones."""
    equation = node.attributes.get("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        raise node.invalid(f"{len(terms)} terms for {len(shapes)} operands")
    spare = [len(s) - len(t.replace("...", "")) for s, t in zip(shapes, terms, strict=True) if "..." in t]
    longest = max(spare, default=0)
    dots = "".join(chr(0x391 + i) for i in range(max(0, longest)))
    named: list[str] = []
    for term, shape in zip(terms, shapes, strict=True):
        count = len(shape) - len(term.replace("...", ""))
        term = term.replace("...", dots[len(dots) - count :] if count else "")
        if len(term) != len(shape) or (term and not term.isalpha()):
            raise node.invalid(f"the term {term[:40]!r} does not fit a shape of rank {len(shape)}")
        named.append(term)
    if arrow:
        target = right.replace("...", dots)
    else:
        once = sorted(c for c in set(left.replace("...", "").replace(",", "")) if left.count(c) == 1)
        target = dots + "".join(once)
    if len(set(target)) != len(target) or not set(target) <= set("".join(named)):
        raise node.invalid(f"the result {right[:40]!r} names a label twice, or one that no operand has")
    sizes: dict[str, set[int]] = {}
    for term, shape in zip(named, shapes, strict=True):
        for label, n in zip(term, shape, strict=True):
            sizes.setdefault(label, set()).add(n)
    if any(len(s) > 1 for s in sizes.values()):
        raise node.unsupported("labels that are broadcast")
    return named, target


def _moved(b: Builder, x: Value, f: Callable[[AnyArray], AnyArray]) -> Value:
    return b.move(x, f) if isinstance(x, Variable) else x.map(lambda a: np.asarray(f(a)))


def _diagonal(b: Builder, node: OnnxNode, x: Value, term: str) -> tuple[Value, str]:
    """An operand with each label once."""
    labels = "".join(dict.fromkeys(term))
    if labels == term:
        return x, term
    at = [labels.index(label) for label in term]
    sizes = [x.shape[term.index(label)] for label in labels]
    grid = np.indices(sizes)
    return _moved(b, x, lambda a: a[tuple(grid[i] for i in at)]), labels


def _summed(b: Builder, x: Value, term: str, kept: set[str]) -> tuple[Value, str]:
    """Sum over the labels that are not kept."""
    axes = tuple(i for i, label in enumerate(term) if label not in kept)
    if not axes:
        return x, term
    rest = "".join(label for label in term if label in kept)
    if isinstance(x, Variable):
        return _total(b, x, axes, keep=False), rest
    return constant.total(x, axes, False), rest


def _contracted(b: Builder, node: OnnxNode, x: Value, p: str, y: Value, q: str, later: set[str]) -> tuple[Value, str]:
    """The product of two operands, summed over what both have and nobody wants later."""
    x, p = _summed(b, x, p, set(q) | later)
    y, q = _summed(b, y, q, set(p) | later)
    both = [label for label in p if label in q]
    stack, inner = [c for c in both if c in later], [c for c in both if c not in later]
    left, right = [c for c in p if c not in both], [c for c in q if c not in both]
    size = {label: n for value, term in ((x, p), (y, q)) for label, n in zip(term, value.shape, strict=True)}

    def matrix(value: Value, term: str, first: list[str], second: list[str]) -> Value:
        order = [term.index(label) for label in (*stack, *first, *second)]
        shape = (prod(size[c] for c in stack), prod(size[c] for c in first), prod(size[c] for c in second))
        return _moved(b, value, lambda a: np.transpose(a, order).reshape(shape))

    out = matmul(b, node, matrix(x, p, left, inner), matrix(y, q, inner, right))
    labels = [*stack, *left, *right]
    return _moved(b, out, lambda a: a.reshape([size[c] for c in labels])), "".join(labels)


# --- interpolation ---------------------------------------------------------------------------------------------


def resize_linear(b: Builder, node: OnnxNode, values: Values) -> tuple[Value, bool]:
    """Resize and Upsample by interpolation along one axis after the other, and whether its weights are exact."""
    x = variable(node, values)
    further = [
        None if v is None else v.stated(node, "a scale or size") for v in values[1:] if not isinstance(v, Variable)
    ]
    if len(further) < len(values) - 1:
        raise node.unsupported("scales or sizes that depend on the network's input")
    exact = True
    for axis, weight, sure in interpolation(node, x.shape, further):
        x = along(b, x, axis, weight)
        exact &= sure
    return x, exact


# operator -> handler; what of it is read stands in `mucg4.read.table`
COMPOSED_HANDLERS: dict[str, Handler] = {
    "LayerNormalization": _layer,
    "RMSNormalization": _layer,
    "SimplifiedLayerNormalization": _layer,
    "InstanceNormalization": _instance,
    "GroupNormalization": _group,
    "LpNormalization": _lp,
    "ReduceL1": _reduce,
    "ReduceL2": _reduce,
    "ReduceSumSquare": _reduce,
    "ReduceLogSum": _reduce,
    "ReduceLogSumExp": _reduce,
    "ReduceProd": _reduce,
    "Mean": _mean,
    "Einsum": _einsum,
    "Trilu": _trilu,
    "CumSum": _cumulative,
    "ScatterND": _scatter,
    "ScatterElements": _scatter,
    "Shrink": _shrink,
    "Tan": _tan,
}
