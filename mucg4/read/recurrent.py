"""Recurrent layers, written out step by step: affine maps, sigmoids and tangents, products of gates and states.

Inputs and outputs as ONNX has them: X `(steps, batch, inputs)`, W `(directions, gates hidden, inputs)`, R `(directions,
gates hidden, hidden)`, B `(directions, 2 gates hidden)`, Y `(steps, directions, batch, hidden)`. onnxruntime computes
the functions by approximations of its own, so the rounding of an execution is not known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mucg4.ops.base import Op
from mucg4.ops.piecewise import RELU
from mucg4.ops.smooth import SIGMOID, TANH
from mucg4.read import constant
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.constant import Constant, number
from mucg4.read.masks import opposite
from mucg4.read.operators import Handler, Values, matmul, optional_constant, required_constant, variable
from mucg4.read.protobuf import OnnxNode

ACTIVATIONS: dict[str, Op] = {"Sigmoid": SIGMOID, "Tanh": TANH, "Relu": RELU}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# onnxruntime cuts its sigmoid off, which shows once a gate multiplies something unbounded: gates stay as they are
USUAL = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def _recurrent(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """All directions; the outputs Y, Y_h and, of an LSTM, Y_c."""
    x, full = variable(node, values), [*values, *[None] * 8][:8]
    weight, again = (required_constant(node, values, i) for i in (1, 2))
    if len(x.shape) != 3 or len(weight.shape) != 3 or len(again.shape) != 3:
        raise node.invalid(f"shapes {list(x.shape)}, {list(weight.shape)} and {list(again.shape)}")
    steps, batch, inputs = x.shape
    way, hidden = node.attributes.get("direction", "forward"), again.shape[2]
    ways = ("forward", "reverse") if way == "bidirectional" else (way,)
    rows = GATES[node.op] * hidden
    fits = weight.shape == (len(ways), rows, inputs) and again.shape == (len(ways), rows, hidden)
    if not fits or node.attributes.get("hidden_size", hidden) != hidden:
        raise node.invalid(f"weights of the shapes {list(weight.shape)} and {list(again.shape)}")
    bias = optional_constant(node, values, 3)
    if bias is not None and bias.shape != (len(ways), 2 * rows):
        raise node.invalid(f"a bias of shape {list(bias.shape)}")
    lengths = optional_constant(node, values, 4)
    if lengths is not None and np.any(lengths.stated(node, "a length") != steps):
        raise node.unsupported("sequences of different lengths")
    if full[7] is not None:
        raise node.unsupported("peepholes")
    for state in full[5:7]:
        if state is not None and state.shape != (len(ways), batch, hidden):
            raise node.invalid(f"an initial state of shape {list(state.shape)}")
    names = node.attributes.get("activations", USUAL[node.op] * len(ways))
    each = len(USUAL[node.op])
    free = node.op == "RNN" and all(name in ACTIVATIONS for name in names)
    if len(names) != each * len(ways) or not (free or tuple(names) == USUAL[node.op] * len(ways)):
        usual = "the usual ones" if node.op != "RNN" else ", ".join(ACTIVATIONS)
        raise node.unsupported(f"activations {list(names)[:8]} (read are: {usual})")
    node.sized((steps, len(ways), batch, rows))
    sides = []
    for k, name in enumerate(ways):
        stored = [None if c is None else c.map(lambda a, k=k: np.asarray(a[k])) for c in (weight, again, bias)]  # type: ignore[misc]
        layer = _Layer(b, node, stored, names[k * each : (k + 1) * each])
        order = range(steps) if name == "forward" else range(steps - 1, -1, -1)
        states = [_part(b, v, k) for v in full[5:7]]
        sides.append(_walked(b, layer, x, order, states, (batch, hidden)))
    every = [b.concat([b.move(s[0][t], lambda a: a[None, None]) for s in sides], 1) for t in range(steps)]
    last: list[list[Variable]] = [[s[1] for s in sides], [c for _, _, c in sides if c is not None]]
    ends = [b.concat([b.move(v, lambda a: a[None]) for v in state], 0) for state in last if state]
    return [b.concat(every, 0), *ends]


def _part(b: Builder, x: Value | None, k: int) -> Value | None:
    """One direction of a tensor."""
    if x is None:
        return None
    return b.move(x, lambda a: a[k]) if isinstance(x, Variable) else x.map(lambda a: np.asarray(a[k]))


def _walked(
    b: Builder, layer: _Layer, x: Variable, order: Sequence[int], states: list[Value | None], shape: tuple[int, int]
) -> tuple[dict[int, Variable], Variable, Variable | None]:
    """The hidden state after each step of the file's order, and the last states."""
    h: Value = Constant(np.zeros(shape)) if states[0] is None else states[0]
    c: Value = Constant(np.zeros(shape)) if states[1] is None else states[1]
    out: dict[int, Variable] = {}
    for t in order:
        now = b.move(x, lambda a, t=t: a[t])  # type: ignore[misc]
        h, c = getattr(layer, layer.node.op.lower())(now, h, c)
        assert isinstance(h, Variable)
        out[t] = h
    assert isinstance(h, Variable)
    return out, h, c if isinstance(c, Variable) else None


class _Layer:
    """One direction: its weights, and a step of each kind `(input, hidden state, cell) -> (hidden state, cell)`."""

    def __init__(
        self,
        b: Builder,
        node: OnnxNode,
        stored: Sequence[Constant | None],
        activations: Sequence[str],
    ) -> None:
        weight, again, bias = stored
        assert weight is not None and again is not None
        self.b, self.node, self.ops = b, node, [ACTIVATIONS[name] for name in activations]
        self.size = again.shape[1]
        self.weight, self.again = weight.map(np.transpose), again.map(np.transpose)
        rows = again.shape[0]
        self.bias: tuple[Constant | None, Constant | None] = (None, None)
        if bias is not None:
            self.bias = bias.map(lambda a: a[:rows]), bias.map(lambda a: a[rows:])

    def call(self, which: int, x: Value) -> Variable:
        assert isinstance(x, Variable)
        return self.b.node(self.ops[which], [x], x.shape)

    def affine(self, x: Value, weight: Constant, shift: Constant | None, gates: slice = slice(None)) -> Value:
        """`x W + b` for some gates."""
        size = self.size
        lines = slice(None if gates.start is None else gates.start * size, gates.stop and gates.stop * size)
        out = matmul(self.b, self.node, x, weight.map(lambda a: np.ascontiguousarray(a[:, lines])))
        return out if shift is None else self.plus(out, shift.map(lambda a: a[lines]))

    def plus(self, x: Value, y: Value) -> Value:
        both = isinstance(x, Constant) and isinstance(y, Constant)
        return constant.add(x, y) if both else self.b.combine(x, y)  # type: ignore[arg-type]

    def times(self, x: Variable, y: Value) -> Variable:
        return self.b.product(x, y) if isinstance(y, Variable) else self.b.times(x, y)

    def gates(self, x: Variable, h: Value, which: slice = slice(None)) -> Value:
        """What goes into the functions of some gates."""
        first = self.affine(x, self.weight, self.bias[0], which)
        return self.plus(first, self.affine(h, self.again, self.bias[1], which))

    def cut(self, x: Value, k: int) -> Variable:
        """One gate of several."""
        assert isinstance(x, Variable)
        return self.b.move(x, lambda a: a[:, k * self.size : (k + 1) * self.size])

    def rnn(self, x: Variable, h: Value, c: Value) -> tuple[Value, Value]:
        return self.call(0, self.gates(x, h)), number(0.0)

    def lstm(self, x: Variable, h: Value, c: Value) -> tuple[Value, Value]:
        """Gates in the order input, output, forget, cell."""
        every = self.gates(x, h)
        enter, leave, keep = (self.call(0, self.cut(every, k)) for k in range(3))
        new = self.times(enter, self.call(1, self.cut(every, 3)))
        c = self.b.combine(self.times(keep, c), new)
        return self.times(leave, self.call(2, c)), c

    def gru(self, x: Variable, h: Value, c: Value) -> tuple[Value, Value]:
        """Gates in the order update, reset, hidden; with `linear_before_reset` what is reset is the affine map of h."""
        both, last = self.gates(x, h, slice(0, 2)), slice(2, 3)
        update, reset = (self.call(0, self.cut(both, k)) for k in range(2))
        if self.node.attributes.get("linear_before_reset", 0):
            past: Value = self.times(reset, self.affine(h, self.again, self.bias[1], last))
        else:
            past = self.affine(self.times(reset, h), self.again, self.bias[1], last)
        new = self.call(1, self.plus(self.affine(x, self.weight, self.bias[0], last), past))
        return self.b.combine(self.times(update, h), self.b.product(opposite(self.b, update), new)), number(0.0)


# operator -> handler; what of it is read stands in `mucg4.read.table`
RECURRENT_HANDLERS: dict[str, Handler] = dict.fromkeys(GATES, _recurrent)
