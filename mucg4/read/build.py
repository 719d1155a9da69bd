"""The network while it is read: a growing list of canonical nodes, and the small steps handlers use.

Data movement needs no case per operator: the positions `0 .. size-1` of a value are moved the way NumPy
moves a constant, and what comes out is the index map (see `Builder.move`).

A tensor may have *voids*, entries of minus infinity that a mask put there. Its draft holds some number in their place,
and has no name, so nothing is compared with it. Movement and positive factors keep voids; maxima, Softmax and functions
that vanish at minus infinity know them. Nothing else takes a tensor with voids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import frexp, prod

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.ops.affine import Concat, Dense, Index, Place, Reduce, Scale, Sum
from mucg4.ops.arrays import AnyArray, BoolArray, FloatArray, IntArray
from mucg4.ops.base import Affine, Op
from mucg4.ops.bilinear import PRODUCT
from mucg4.ops.curves import SILU, SQUARE, Exp
from mucg4.ops.piecewise import RELU, TwoPiece
from mucg4.ops.smooth import Sigmoid
from mucg4.read.constant import Constant
from mucg4.read.protobuf import LARGEST_TENSOR, shortened
from mucg4.read.roundoff import magnitude
from mucg4.records import dataclass

NODE_ENTRIES = 1024  # what a node costs beside its values, in entries; not measured
DENSE_ENTRIES = 200_000  # an affine map of at most this many entries is one GEMM of a plain matrix; not measured


@dataclass(frozen=True)
class Variable:
    """A tensor that depends on the network's input: `draft` holds its values, `shape` is the ONNX shape."""

    draft: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


Value = Constant | Variable


@dataclass(frozen=True, eq=False)
class Draft:
    """A node before simplification; `inputs` are positions in `Builder.drafts`."""

    op: Op | None
    inputs: tuple[int, ...]
    name: str
    shape: tuple[int, ...]


class Builder:
    """Appends nodes. `current` names the tensor that the running handler computes."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.drafts = [Draft(None, (), name, shape)]
        self.current = ""
        self.entries = 0  # of all arrays made so far
        self._names = {name}
        self._voids: dict[int, BoolArray] = {}  # drafts -> which of their entries are minus infinity

    def node(self, op: Op, inputs: Sequence[Variable], shape: tuple[int, ...]) -> Variable:
        """Append one node. The last node a handler appends computes the ONNX tensor `current`."""
        void = self._kept_voids(op, inputs)
        self.count(prod(shape), NODE_ENTRIES)
        self.drafts.append(Draft(op, tuple(x.draft for x in inputs), self.current, shape))
        made = Variable(len(self.drafts) - 1, shape)
        if void is None:
            return made
        if isinstance(op, Affine):
            return self.hollow(made, void)
        return self.times(made, Constant((~void).astype(np.float64).reshape(shape)))

    def voids(self, x: Variable) -> BoolArray | None:
        """Which entries of x are minus infinity, in its shape; None where none is."""
        void = self._voids.get(x.draft)
        return None if void is None else void.reshape(x.shape)

    def hollow(self, x: Variable, void: BoolArray) -> Variable:
        """x, whose draft no other value shares, with minus infinity for its entries where `void (x.size,)` is true."""
        if void.any():
            self._voids[x.draft] = void | self._voids.get(x.draft, np.False_)
        return x

    def _kept_voids(self, op: Op, inputs: Sequence[Variable]) -> BoolArray | None:
        """The voids that a node's value has, or of its argument where they become zeros; None without any."""
        voids = [self._voids.get(x.draft) for x in inputs]
        known = [void for void in voids if void is not None]
        if not known:
            return None
        if isinstance(op, Index):
            void = known[0][op.index]
            return void if void.any() else None
        positive = isinstance(op, Scale) and bool(np.all(op.scale[known[0]] > 0))
        added = isinstance(op, Sum) and all(s > 0 for s, void in zip(op.signs, voids, strict=True) if void is not None)
        vanishes = isinstance(op, (Exp, Sigmoid)) or (isinstance(op, TwoPiece) and op.left == 0.0)
        if not (positive or added or vanishes):
            raise UnsupportedError(
                f"tensor {shortened(self.current)}: minus infinity, which a mask has put there, is an argument of an "
                f"operator that does not take it"
            )
        return np.asarray(np.logical_or.reduce(known))

    def name_parts(self, start: int, outputs: dict[int, str]) -> None:
        """Name the nodes appended since `start`: outputs by their tensor, helpers by tensor and number."""
        for k in range(start, len(self.drafts)):
            d = self.drafts[k]
            base = outputs.get(k, f"{self.current}#{k - start + 1}")
            self.drafts[k] = Draft(d.op, d.inputs, self._unused(base), d.shape)

    def _unused(self, name: str) -> str:
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name

    def move(self, x: Variable, f: Callable[[AnyArray], AnyArray]) -> Variable:
        """Any data movement: `f` rearranges, repeats or drops entries of a tensor of x's shape."""
        positions = np.arange(x.size).reshape(x.shape)
        moved = f(positions)
        self.count(moved.size)
        shape = tuple(moved.shape)
        if moved.size == 0:
            raise InputError(f"tensor {shortened(self.current)} is empty")
        if moved.size == x.size and np.array_equal(moved.ravel(), positions.ravel()):
            return Variable(x.draft, shape)
        return self.node(Index(np.ascontiguousarray(moved.ravel()), x.size), [x], shape)

    def expand(self, x: Variable, shape: tuple[int, ...]) -> Variable:
        """Broadcast to `shape`."""
        if x.shape == shape:
            return x
        return self.move(x, lambda a: np.broadcast_to(a, shape))

    def affine(self, op: Affine, x: Variable, shape: tuple[int, ...]) -> Variable:
        """Append an affine node of one input, as a plain matrix when that is small."""
        outs = prod(shape)
        entries = outs * x.size
        stored = getattr(op, "weight", np.zeros(0)).size
        if isinstance(op, Dense) or (entries > DENSE_ENTRIES and entries > 2 * stored):
            return self.node(op, [x], shape)
        # each entry of the matrix is one stored weight times 1; for means it is a factor that was rounded once
        weight = op.matrices(outs)[0] if outs < x.size else np.ascontiguousarray(op.linear([np.eye(x.size)]).T)
        rounded = isinstance(op, Reduce) and frexp(op.factor)[0] != 0.5
        return self.node(Dense(weight, np.zeros(outs), roundings=getattr(op, "roundings", int(rounded))), [x], shape)

    def shift(self, x: Variable, c: Constant, sign: float = 1.0) -> Variable:
        """`sign * x + c`, broadcast."""
        shape = self.common(x.shape, c.shape)
        x = self.expand(x, shape)
        offset, error = c.offset(shape)
        return self.node(Scale(np.full(x.size, sign), offset, magnitude(offset, error, 2)), [x], shape)

    def times(self, x: Variable, c: Constant) -> Variable:
        """`x * c`, broadcast."""
        shape = self.common(x.shape, c.shape)
        x = self.expand(x, shape)
        weight, roundings = c.weight()
        scale = np.broadcast_to(weight, shape).ravel()
        return self.node(Scale(scale, np.zeros(x.size), roundings=roundings), [x], shape)

    def product(self, x: Variable, y: Variable) -> Variable:
        """`x * y`, broadcast; one function where y is x itself or its Sigmoid."""
        if x.shape == y.shape:
            if self._same(x.draft, y.draft):
                return self.node(SQUARE, [x], x.shape)
            for a, b in ((x, y), (y, x)):
                op = self.drafts[b.draft].op
                if isinstance(op, Sigmoid) and self._same(self.drafts[b.draft].inputs[0], a.draft):
                    return self.node(SILU, [a], a.shape)
        shape = self.common(x.shape, y.shape)
        return self.node(PRODUCT, [self.expand(x, shape), self.expand(y, shape)], shape)

    def _same(self, i: int, j: int, depth: int = 4) -> bool:
        """True when two drafts compute the same value by the same few operators from one value."""
        a, b = self.drafts[i], self.drafts[j]
        if i == j:
            return True
        if a.op is None or b.op is None or a.op.kind != b.op.kind or len(a.inputs) != len(b.inputs) or not depth:
            return False
        mine, others = a.op.parameters(), b.op.parameters()
        return (
            mine.keys() == others.keys()
            and all(np.array_equal(mine[key], others[key]) for key in mine)
            and all(self._same(x, y, depth - 1) for x, y in zip(a.inputs, b.inputs, strict=True))
        )

    def combine(self, a: Value, b: Value, sign: float = 1.0) -> Variable:
        """`a + sign * b` of tensors of which at least one is variable, broadcast."""
        if isinstance(b, Constant):
            assert isinstance(a, Variable)
            return self.shift(a, b if sign > 0 else replace(b, value=-b.double()))
        if isinstance(a, Constant):
            return self.shift(b, a, sign)
        shape = self.common(a.shape, b.shape)
        return self.node(Sum((1.0, sign)), [self.expand(a, shape), self.expand(b, shape)], shape)

    def negate(self, x: Variable) -> Variable:
        """-x."""
        return self.node(Scale(np.full(x.size, -1.0), np.zeros(x.size)), [x], x.shape)

    def absolute(self, x: Variable) -> Variable:
        """|x|."""
        return self.relu(x, TwoPiece(-1.0, 1.0))

    def relu(self, x: Variable, op: TwoPiece = RELU) -> Variable:
        """A two-piece function of x."""
        return self.node(op, [x], x.shape)

    def maximum(self, a: Value, b: Value, largest: bool = True) -> Variable:
        """`max(a, b) = b + relu(a - b)`; `min(a, b) = b - relu(b - a)`. A constant operand goes last."""
        if isinstance(a, Constant):
            a, b = b, a
        sign = 1.0 if largest else -1.0
        part = self.relu(self.combine(a, b, -1.0) if largest else self.combine(b, a, -1.0))
        return self.combine(b, part, sign)

    def maximum_over(self, x: Variable, windows: IntArray, shape: tuple[int, ...], largest: bool = True) -> Variable:
        """Extremum over positions: `windows (outputs, k)` index x's flat values; a tree of pairwise extrema."""
        void = self.voids(x)
        if void is not None and largest:  # of a window's entries those that are numbers, any of them twice
            whole = ~void.ravel()[windows]
            if not whole.any(axis=1).all():
                raise UnsupportedError(f"tensor {shortened(self.current)}: a maximum of nothing but minus infinity")
            first = np.take_along_axis(windows, whole.argmax(axis=1)[:, None], axis=1)
            windows = np.where(whole, windows, first)
        count = windows.shape[1]
        parts = [self.pick(x, np.ascontiguousarray(windows[:, k])) for k in range(count)]
        while len(parts) > 1:
            pairs = [self.maximum(a, b, largest) for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = pairs + parts[len(pairs) * 2 :]
        return Variable(parts[0].draft, shape)

    def pick(self, x: Variable, index: IntArray) -> Variable:
        """The entries of x at flat positions."""
        if len(index) == x.size and np.array_equal(index, np.arange(x.size)):
            return Variable(x.draft, (x.size,))
        return self.node(Index(index, x.size), [x], (len(index),))

    def concat(self, xs: Sequence[Value], axis: int) -> Variable:
        """Concatenation along `axis` of tensors of which at least one is variable."""
        self.count(sum(prod(x.shape) for x in xs))
        variables = [x for x in xs if isinstance(x, Variable)]
        starts = np.cumsum([0, *(x.size for x in variables)])
        tensors, at = [], 0
        for x in xs:  # positions in the joined variables; -1 where a constant stands
            if isinstance(x, Variable):
                tensors.append(np.arange(starts[at], starts[at + 1]).reshape(x.shape))
                at += 1
            else:
                tensors.append(np.full(x.shape, -1))
        layout = np.concatenate(tensors, axis=axis)
        joined = variables[0]
        if len(variables) > 1:
            joined = self.node(Concat(tuple(v.size for v in variables)), variables, (int(starts[-1]),))
        if len(variables) == len(xs):
            flat = Variable(joined.draft, (joined.size,))
            return self.move(flat, lambda _: layout)
        fixed = [Constant(np.zeros(x.shape)) if isinstance(x, Variable) else x for x in xs]
        value = np.concatenate([c.offset()[0].reshape(c.shape) for c in fixed], axis=axis)
        if all(c.error is None for c in fixed):
            return self.place(joined, layout, value)
        error = np.concatenate([np.zeros(c.shape) if c.error is None else c.error for c in fixed], axis=axis)
        return self.shift(self.place(joined, layout, 0.0 * value), Constant(value, error=error))

    def place(self, x: Variable, layout: IntArray, fixed: FloatArray) -> Variable:
        """A tensor that holds x's flat value `layout[p]` at p where that is >= 0, else the constant `fixed[p]`."""
        flat = layout.ravel()
        index = np.empty(x.size, dtype=np.int64)
        index[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
        return self.node(Place(index, np.where(flat >= 0, 0.0, fixed.ravel())), [x], tuple(layout.shape))

    def count(self, entries: int, more: int = 0) -> None:
        """Note that an array of so many entries is made. Raises `InputError` when all of them are too many."""
        self.entries += entries + more
        if entries > LARGEST_TENSOR or self.entries > 8 * LARGEST_TENSOR:
            raise InputError(f"tensor {shortened(self.current)}: the network's tensors are too large")

    def common(self, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        """The broadcast shape. Raises `InputError` when there is none."""
        try:
            shape = tuple(np.broadcast_shapes(a, b))
        except ValueError as error:
            raise InputError(
                f"tensor {shortened(self.current)}: shapes {list(a)} and {list(b)} do not match"
            ) from error
        self.count(prod(shape))
        return shape
