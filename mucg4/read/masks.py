"""Comparisons, logic and choices of tensors that depend on the network's input: truth values are the numbers 0 and 1.

`x > y` is the positive part of the sign of x - y. At a tie real arithmetic decides, as for every other step.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mucg4.ops.arrays import BoolArray
from mucg4.ops.steps import SIGN
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.constant import Constant, number
from mucg4.read.operators import Handler, Values, variable
from mucg4.read.protobuf import BOOL, DOUBLE, FLOAT, INT32, INT64, OnnxNode


def _numbers(x: Value) -> Value:
    """Truth values among the constants as 0 and 1."""
    return replace(x, value=x.value.astype(np.float64)) if isinstance(x, Constant) and x.kind == BOOL else x


def _pair(node: OnnxNode, values: Values) -> tuple[Value, Value]:
    if len(values) != 2 or values[0] is None or values[1] is None:
        raise node.invalid("it needs two inputs")
    return _numbers(values[0]), _numbers(values[1])


def _sign(b: Builder, x: Variable) -> Variable:
    return b.node(SIGN, [x], x.shape)


def _over(b: Builder, x: Value, y: Value) -> Variable:
    """1 where `x > y`, else 0."""
    return b.relu(_sign(b, b.combine(x, y, -1.0)))


def opposite(b: Builder, x: Variable) -> Variable:
    """`1 - x`."""
    return b.shift(x, number(1.0), -1.0)


def truth(b: Builder, x: Variable) -> Variable:
    """1 where x is not 0, else 0."""
    return b.absolute(_sign(b, x))


def _compare(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, y = _pair(node, values)
    if node.op == "Equal":
        return [opposite(b, truth(b, b.combine(x, y, -1.0)))]
    if node.op in ("Greater", "Less"):
        return [_over(b, x, y) if node.op == "Greater" else _over(b, y, x)]
    return [opposite(b, _over(b, y, x) if node.op == "GreaterOrEqual" else _over(b, x, y))]


def _logic(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    if node.op == "Not":
        return [opposite(b, variable(node, values))]
    x, y = _pair(node, values)
    if node.op == "Xor":
        return [b.absolute(b.combine(x, y, -1.0))]
    total = b.combine(x, y)
    if node.op == "And":
        return [b.relu(b.shift(total, number(-1.0)))]
    return [opposite(b, b.relu(opposite(b, total)))]


def _where(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """Stored truth values pick entries; others weigh: `y + c (x - y)`."""
    if len(values) != 3 or any(v is None for v in values):
        raise node.invalid("it needs three inputs")
    choice, x, y = (v for v in values if v is not None)
    kinds = {v.kind for v in (x, y) if isinstance(v, Constant)}
    if not kinds <= {FLOAT, DOUBLE, INT32, INT64}:
        raise node.unsupported(f"a choice of constants of the element types {sorted(kinds)}")
    shape = b.common(b.common(choice.shape, x.shape), y.shape)
    if isinstance(choice, Variable):
        if isinstance(x, Constant) and isinstance(y, Constant):
            gap = b.times(b.expand(choice, shape), _difference(x, y))
            return [b.shift(gap, y)]
        weighed = _weigh(b, choice, b.combine(x, y, -1.0))
        return [b.combine(b.expand(weighed, shape), y)]
    chosen = np.broadcast_to(choice.stated(node, "its condition"), shape).ravel()
    (x, hollow), (y, empty) = (v.hollowed() if isinstance(v, Constant) else (v, np.False_) for v in (x, y))
    void = np.where(chosen, *(np.broadcast_to(v, shape).ravel() for v in (hollow, empty)))
    parts = [_kept(b, x, shape, chosen), _kept(b, y, shape, ~chosen)]
    where = np.empty(len(chosen), dtype=np.int64)
    where[np.concatenate([np.flatnonzero(chosen), np.flatnonzero(~chosen)])] = np.arange(len(chosen))
    used = [p for p, kept in zip(parts, (chosen, ~chosen), strict=True) if kept.any()]
    if len(used) == 1 and isinstance(used[0], Constant):  # what depends on the input is never chosen
        if void.any():
            raise node.unsupported("minus infinity, and nothing that depends on the network's input")
        return [used[0].map(lambda a: a[where].reshape(shape))]
    joined = used[0] if len(used) == 1 else b.concat(used, 0)
    assert isinstance(joined, Variable)
    return [b.hollow(b.move(joined, lambda a: a[where].reshape(shape)), void)]


def _kept(b: Builder, x: Value, shape: tuple[int, ...], kept: BoolArray) -> Value:
    """The entries of x, broadcast and flat, that a mask keeps; x itself where it keeps none."""
    if not isinstance(x, Variable):
        return x.map(lambda a: np.asarray(np.broadcast_to(a, shape).ravel()[kept]))
    return b.move(b.expand(x, shape), lambda a: a.ravel()[kept]) if kept.any() else x


def _difference(x: Constant, y: Constant) -> Constant:
    from mucg4.read import constant

    return constant.add(x, y, -1.0)


def _weigh(b: Builder, choice: Variable, x: Value) -> Variable:
    return b.product(choice, x) if isinstance(x, Variable) else b.times(choice, x)


# operator -> handler; what of it is read stands in `mucg4.read.table`
MASK_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"), _compare),
    **dict.fromkeys(("Not", "And", "Or", "Xor"), _logic),
    "Where": _where,
}
