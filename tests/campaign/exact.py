"""Exact answers for tiny piecewise linear networks: rational arithmetic on the ONNX graph, nothing of mucg4.

The box of the inputs that are not points is cut into cells on which every node is affine. A cell is a polytope given
by its vertices, each with the set of facets it lies on (double description: two vertices of a polytope are joined by an
edge when no third vertex lies on all the facets that both lie on; Fukuda and Prodon, 1996). A nonlinear operator whose
argument changes sign inside a cell cuts it there. On a cell an affine function takes its extrema at vertices, and a
conjunction of affine constraints is decided by cutting the cell further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import numpy as np

from .instance import Graph, Instance, Node, Row, hull

ZERO, ONE = Fraction(0), Fraction(1)
CELLS = 400  # more are refused: the answer is not known then
INFINITE = Fraction(10**400)
FREE = 4  # most inputs that are no points
Array = Any


class UnknownTruth(Exception):
    """The graph is not piecewise linear as far as this module goes, or too large."""


class _Split(Exception):
    """The affine function `(n + 1,)` changes sign inside the cell."""

    def __init__(self, form: Array) -> None:
        self.form = form


@dataclass(frozen=True, eq=False)
class Cell:
    """Vertices `(V, n + 1)` (the last entry 1) and for each the facets it lies on; `facets` numbers used so far."""

    vertices: Array
    on: tuple[frozenset[int], ...]
    facets: int

    @staticmethod
    def box(ends: list[tuple[Fraction, Fraction]]) -> Cell:
        points = list(product(*ends)) if ends else [()]
        on = [frozenset(2 * i + (v == ends[i][1]) for i, v in enumerate(p)) for p in points]
        vertices = np.empty((len(points), len(ends) + 1), dtype=object)
        for row, p in enumerate(points):
            vertices[row] = [*p, ONE]
        return Cell(vertices, tuple(on), 2 * len(ends))

    def values(self, form: Array) -> Array:
        """An affine function `(n + 1,)`, or several `(k, n + 1)`, at the vertices: `(V,)` or `(V, k)`."""
        return self.vertices @ form.T

    def cut(self, form: Array) -> Cell | None:
        """The part where the function is at most zero; None when there is no point."""
        value = self.values(form)
        inside = [k for k, v in enumerate(value) if v <= 0]
        if len(inside) == len(value):
            return self
        if not inside:
            return None
        number = self.facets
        vertices = [self.vertices[k] for k in inside]
        on = [self.on[k] | {number} if value[k] == 0 else self.on[k] for k in inside]
        for i in (k for k in inside if value[k] < 0):
            for j in (k for k, v in enumerate(value) if v > 0):
                common = self.on[i] & self.on[j]
                if any(k not in (i, j) and common <= facets for k, facets in enumerate(self.on)):
                    continue  # no edge
                share = value[i] / (value[i] - value[j])
                vertices.append(self.vertices[i] + share * (self.vertices[j] - self.vertices[i]))
                on.append(common | {number})
        return Cell(np.array(vertices, dtype=object), tuple(on), number + 1)

    def meets(self, forms: list[tuple[Array, bool]]) -> Array | None:
        """A point where all functions are at most zero, those marked strict below; None when there is none."""
        part: Cell | None = self
        for form, _ in forms:
            part = part.cut(form) if part is not None else None
        if part is None:
            return None
        if any(strict and not any(v < 0 for v in part.values(form)) for form, strict in forms):
            return None
        return sum(part.vertices[1:], part.vertices[0]) / Fraction(len(part.vertices))  # inside: strict ones hold


# -- graphs over affine functions --------------------------------------------------------------------------------------


def _exact_number(v: float) -> Fraction:
    if v != v:
        raise UnknownTruth("nan")
    return Fraction(int(np.sign(v))) * INFINITE if abs(v) == float("inf") else Fraction(v)


def exact_array(a: Array) -> Array:
    """Floats or integers as exact numbers; infinite ones, which only limits are, as huge ones."""
    a = np.asarray(a)
    flat = [_exact_number(v) for v in a.reshape(-1).tolist()]
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(a.shape)


def constant(a: Array, n: int) -> Array:
    """A tensor of numbers as affine functions `(*shape, n + 1)`."""
    a = exact_array(a)
    out = np.full((*a.shape, n + 1), ZERO, dtype=object)
    out[..., n] = a
    return out


def _numbers(v: Array, node: Node) -> Array:
    """The constant part of functions that are constant."""
    if np.any(v[..., :-1] != 0):
        raise UnknownTruth(f"{node.op} of two variables")
    return v[..., -1]


def _sides(cell: Cell, v: Array) -> Array:
    """(*shape,) -1, 0 or 1 for each function; raises `_Split` at the first that takes both signs."""
    flat = v.reshape(-1, v.shape[-1])
    value = cell.values(flat)
    low, high = value.min(axis=0), value.max(axis=0)
    both = np.flatnonzero((low < 0) & (high > 0))
    if len(both):
        raise _Split(flat[both[0]])
    return np.where(high > 0, 1, np.where(low < 0, -1, 0)).reshape(v.shape[:-1])


def _pieces(cell: Cell, v: Array, left: Array, right: Array) -> Array:
    """`left * v` where v is negative, `right * v` where it is positive."""
    slope = np.where(_sides(cell, v) < 0, left, right)
    return v * slope[..., None]


def _larger(cell: Cell, a: Array, b: Array) -> Array:
    a, b = np.broadcast_arrays(a, b)
    return np.where((_sides(cell, a - b) < 0)[..., None], b, a)


def _smaller(cell: Cell, a: Array, b: Array) -> Array:
    return -_larger(cell, -a, -b)


def _largest(cell: Cell, stack: Array) -> Array:
    """Maximum over the first axis."""
    out = stack[0]
    for part in stack[1:]:
        out = _larger(cell, out, part)
    return out


def _gemm(a: Array, b: Array, c: Array | None, at: dict[str, Any], node: Node) -> Array:
    if at.get("transA"):
        a = np.swapaxes(a, 0, 1)
    if at.get("transB"):
        b = np.swapaxes(b, 0, 1)
    out = _matmul(a, b, node) * exact_array(np.float32(at.get("alpha", 1.0))).item()
    return out if c is None else out + c * exact_array(np.float32(at.get("beta", 1.0))).item()


def _matmul(a: Array, b: Array, node: Node) -> Array:
    if np.any(a[..., :-1] != 0):
        w = _numbers(b, node)
        return np.moveaxis(np.stack([a[..., k] @ w for k in range(a.shape[-1])]), 0, -1)
    w = _numbers(a, node)
    return np.moveaxis(np.stack([w @ b[..., k] for k in range(b.shape[-1])]), 0, -1)


def _windows(shape: tuple[int, ...], at: dict[str, Any], kernel: tuple[int, ...]) -> Iterator[tuple[Any, list[Any]]]:
    """`(output position, [(kernel position, input position)])` of a sliding window without automatic padding."""
    d = len(kernel)
    strides, dilations = at.get("strides", [1] * d), at.get("dilations", [1] * d)
    pads = at.get("pads", [0] * (2 * d))
    if at.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or at.get("ceil_mode"):
        raise UnknownTruth("automatic padding")
    sizes = [
        (n + pads[i] + pads[i + d] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i, n in enumerate(shape)
    ]
    for out in product(*map(range, sizes)):
        hits = []
        for k in product(*map(range, kernel)):
            at_ = tuple(
                o * s + j * e - pads[i] for i, (o, s, j, e) in enumerate(zip(out, strides, k, dilations, strict=True))
            )
            if all(0 <= p < n for p, n in zip(at_, shape, strict=True)):
                hits.append((k, at_))
        yield out, hits


def _sliding(x: Array, at: dict[str, Any], kernel: tuple[int, ...], channels: int, f: Callable[..., Array]) -> Array:
    """`f(channel, hits)` for every output channel and window."""
    spatial = x.shape[2:-1]
    places = list(_windows(spatial, at, kernel))
    shape = tuple(max(o[i] for o, _ in places) + 1 for i in range(len(kernel)))
    out = np.full((1, channels, *shape, x.shape[-1]), ZERO, dtype=object)
    for c in range(channels):
        for o, hits in places:
            out[(0, c, *o)] = f(c, hits)
    return out


def _conv(x: Array, w: Array, b: Array | None, at: dict[str, Any]) -> Array:
    group = at.get("group", 1)
    each, per = len(w) // group, w.shape[1]

    def one(c: int, hits: list[Any]) -> Array:
        base = (c // each) * per
        total = np.full(x.shape[-1], ZERO, dtype=object)
        for i in range(per):
            for k, p in hits:
                total = total + w[(c, i, *k)] * x[(0, base + i, *p)]
        return total if b is None else total + b[c]

    return _sliding(x, at, tuple(w.shape[2:]), len(w), one)


def _average(x: Array, at: dict[str, Any]) -> Array:
    kernel = tuple(at["kernel_shape"])

    def one(c: int, hits: list[Any]) -> Array:
        count = prod(kernel) if at.get("count_include_pad") else len(hits)
        return sum((x[(0, c, *p)] for _, p in hits), np.full(x.shape[-1], ZERO, dtype=object)) / Fraction(count)

    return _sliding(x, at, kernel, x.shape[1], one)


def _attributes(node: Node) -> dict[str, Any]:
    return dict(node.attributes)


def _f32(at: dict[str, Any], key: str, default: float) -> Fraction:
    """A float attribute: stored as float32."""
    return Fraction(float(np.float32(at.get(key, default))))


def apply(node: Node, args: list[Array | None], cell: Cell) -> Array:
    """The affine functions of a node's output on the cell. Raises `_Split`, and `UnknownTruth` for other operators."""
    at, n = _attributes(node), cell.vertices.shape[1] - 1
    x: Any = args[0]
    y: Any = args[1] if len(args) > 1 else None
    op = node.op
    if op in ("Add", "Sub"):
        return x + y if op == "Add" else x - y
    if op == "Mul":
        return y * _numbers(x, node)[..., None] if not np.any(x[..., :-1] != 0) else x * _numbers(y, node)[..., None]
    if op == "Div":
        return x / _numbers(y, node)[..., None]
    if op == "Neg":
        return -x
    if op == "Gemm":
        return _gemm(x, y, args[2] if len(args) > 2 else None, at, node)
    if op == "MatMul":
        return _matmul(x, y, node)
    if op == "Relu":
        return _pieces(cell, x, ZERO, ONE)
    if op == "Abs":
        return _pieces(cell, x, -ONE, ONE)
    if op == "LeakyRelu":
        return _pieces(cell, x, _f32(at, "alpha", 0.01), ONE)
    if op == "PRelu":
        return _pieces(cell, x, np.broadcast_to(_numbers(y, node), x.shape[:-1]), ONE)
    if op in ("Max", "Min"):
        return _larger(cell, x, y) if op == "Max" else _smaller(cell, x, y)
    if op == "Clip":
        low, high = (args[i] if len(args) > i and args[i] is not None else None for i in (1, 2))
        x = x if low is None else _larger(cell, x, low)
        return x if high is None else _smaller(cell, x, high)
    if op == "HardSigmoid":
        line = x * _f32(at, "alpha", 0.2) + constant(np.float64(_f32(at, "beta", 0.5)), n)
        return _smaller(cell, _larger(cell, line, constant(np.float64(0), n)), constant(np.float64(1), n))
    if op == "Conv":
        return _conv(x, _numbers(y, node), args[2] if len(args) > 2 else None, at)
    if op == "AveragePool":
        return _average(x, at)
    if op == "MaxPool":
        return _sliding(
            x,
            at,
            tuple(at["kernel_shape"]),
            x.shape[1],
            lambda c, hits: _largest(cell, np.stack([x[(0, c, *p)] for _, p in hits])),
        )
    if op in ("ReduceSum", "ReduceMean", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool"):
        return _reduce(cell, op, x, at)
    return _move(op, [a for a in args if a is not None], at)


def _reduce(cell: Cell, op: str, x: Array, at: dict[str, Any]) -> Array:
    rank = x.ndim - 1
    axes = tuple(range(2, rank)) if op.startswith("Global") else at.get("axes", tuple(range(rank)))
    axes = tuple(sorted(a % rank for a in axes))
    keep = op.startswith("Global") or at.get("keepdims", 1)
    stack = np.moveaxis(x, axes, tuple(range(len(axes))))
    stack = stack.reshape(-1, *stack.shape[len(axes) :])
    out = _largest(cell, stack) if op.endswith(("Max", "MaxPool")) else stack.sum(axis=0)
    out = out / Fraction(len(stack)) if op in ("ReduceMean", "GlobalAveragePool") else out
    return np.expand_dims(out, axes) if keep else out


def _move(op: str, args: list[Array], at: dict[str, Any]) -> Array:
    """Operators that only move data; the last axis holds the coefficients and stays."""
    x = args[0]
    rank = x.ndim - 1
    if op == "Identity":
        return x
    if op == "Flatten":
        axis = at.get("axis", 1) % (rank + 1) if at.get("axis", 1) < 0 else at.get("axis", 1)
        return x.reshape(prod(x.shape[:axis]), -1, x.shape[-1])
    if op == "Reshape":
        target = [int(v) for v in args[1][..., -1].reshape(-1)]
        target = [x.shape[i] if v == 0 else v for i, v in enumerate(target)]
        known = prod(v for v in target if v > 0)
        target = [prod(x.shape[:-1]) // known if v < 0 else v for v in target]
        return x.reshape(*target, x.shape[-1])
    if op == "Transpose":
        return np.transpose(x, [*at.get("perm", range(rank)[::-1]), rank])
    if op == "Concat":
        return np.concatenate(args, axis=at["axis"] % rank)
    if op == "Gather":
        index = args[1][..., -1].astype(np.int64)
        return np.take(x, index, axis=at.get("axis", 0) % rank)
    raise UnknownTruth(op)


# -- cells and answers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Regions:
    """Cells with the outputs' affine functions `(m, n + 1)` on each, over the inputs numbered `free`."""

    cells: list[tuple[Cell, Array]]
    free: list[int]
    fixed: dict[int, Fraction]

    def form(self, row: Row, outputs: Array) -> Array:
        """A constraint as a function of the free inputs: at most zero where it holds."""
        xs, ys, bound = row.exact()
        out = sum((c * outputs[j] for j, c in ys.items()), np.full(len(self.free) + 1, ZERO, dtype=object))
        out[-1] -= bound
        for i, c in xs.items():
            if i in self.fixed:
                out[-1] += c * self.fixed[i]
            else:
                out[self.free.index(i)] += c
        return out

    def point(self, vertex: Array) -> list[Fraction]:
        """All inputs, given the free ones."""
        return [self.fixed[i] if i in self.fixed else vertex[self.free.index(i)] for i in range(self.size)]

    @property
    def size(self) -> int:
        return len(self.free) + len(self.fixed)

    def extremum(self, row: Row) -> tuple[Fraction, Fraction, Array]:
        """Largest and least value of `sum xs X + sum ys Y - bound`, and the vertex of the least."""
        best, worst, where = None, None, None
        for cell, outputs in self.cells:
            value = cell.values(self.form(row, outputs))
            k = min(range(len(value)), key=value.__getitem__)
            if best is None or value[k] < best:
                best, where = value[k], cell.vertices[k]
            worst = max(value) if worst is None else max(worst, *value)
        assert best is not None and worst is not None
        return worst, best, where

    def outputs_at(self, vertex: Array) -> Array:
        """Outputs at a point `(n + 1,)` of some cell."""
        for cell, outputs in self.cells:
            if any(np.array_equal(v, vertex) for v in cell.vertices):
                return outputs @ vertex
        raise AssertionError("no vertex")


def regions(graph: Graph, ends: list[tuple[Fraction, Fraction]], most: int = CELLS) -> Regions:
    """The cells of the box `ends`. Raises `UnknownTruth`."""
    free = [i for i, (a, b) in enumerate(ends) if a < b]
    if len(free) > FREE or any(a > b for a, b in ends):
        raise UnknownTruth("too many inputs, or none")
    n = len(free)
    x = np.full((len(ends), n + 1), ZERO, dtype=object)
    for i, (a, _) in enumerate(ends):
        if i in free:
            x[i, free.index(i)] = ONE
        else:
            x[i, n] = a
    values = {"x": x.reshape(*graph.shape, n + 1)}
    values |= {k: constant(v, n) for k, v in graph.tensors.items()}
    out: list[tuple[Cell, Array]] = []
    stack = [(0, values, Cell.box([ends[i] for i in free]))]
    while stack:
        k, values, cell = stack.pop()
        try:
            while k < len(graph.nodes):
                node = graph.nodes[k]
                args = [values[name] if name else None for name in node.inputs]
                values = {**values, node.outputs[0]: apply(node, args, cell)}
                k += 1
        except _Split as split:
            halves = [cell.cut(split.form), cell.cut(-split.form)]
            stack += [(k, values, half) for half in halves if half is not None]
            if len(stack) + len(out) > most:
                raise UnknownTruth("too many cells") from None
            continue
        out.append((cell, values[graph.output].reshape(-1, n + 1)))
    return Regions(out, free, {i: a for i, (a, b) in enumerate(ends) if a == b})


def answer(instance: Instance, cells: Regions | None = None) -> tuple[str, list[Fraction] | None]:
    """`sat` with a point, or `unsat`, over the hull of the box. Raises `UnknownTruth`."""
    ends = hull(instance)
    if any(a > b for a, b in ends):
        return "unsat", None
    cells = regions(instance.graph, ends) if cells is None else cells
    for rows in instance.conjunctions():
        for cell, outputs in cells.cells:
            found = cell.meets([(cells.form(r, outputs), r.strict) for r in rows])
            if found is not None:
                return "sat", cells.point(found)
    return "unsat", None


def value_at(graph: Graph, x: list[Fraction]) -> list[Fraction]:
    """Outputs at one point, exactly. Raises `UnknownTruth`."""
    cells = regions(graph, [(v, v) for v in x])
    return cells.cells[0][1][:, -1].tolist()
