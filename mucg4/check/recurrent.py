"""Second reading: RNN, GRU and LSTM, step by step as the equations on their ONNX pages."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mucg4.check.meaning import MEANINGS
from mucg4.check.moves import LARGEST, Meaning, Values, fixed, given
from mucg4.check.sums import product
from mucg4.check.values import Fallback, Value
from mucg4.check.wire import Node
from mucg4.ops.arrays import AnyArray

if TYPE_CHECKING:
    from mucg4.check.reading import Reading

DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


class _Cell:
    """The equations of one direction. `w`, `r_`, and the two biases are lists, one entry for each gate."""

    def __init__(self, r: Reading, node: Node, k: int, xs: Values, names: list[str]) -> None:
        self.r, self.node, self.names = r, node, names
        w, again = given(xs, 1), given(xs, 2)
        self.hidden = again.shape[2]
        count = again.shape[1] // self.hidden

        def pieces(x: Value, start: int) -> list[Value]:
            size = self.hidden
            return [x.map(lambda v, i=i: v[k, (start + i) * size : (start + i + 1) * size]) for i in range(count)]  # type: ignore[misc]

        self.w, self.again = pieces(w, 0), pieces(again, 0)
        bias = xs[3] if len(xs) > 3 else None
        zero = Value(np.zeros((1, 2 * count * self.hidden)), w.kind)
        if bias is None:
            bias, k = zero, 0
        self.b, self.again_b = pieces(bias, 0), pieces(bias, count)

    def act(self, i: int, x: Value) -> Value:
        name = self.names[i]
        if name not in ("Sigmoid", "Tanh", "Relu"):
            raise Fallback(f"activation {name!r}")
        return MEANINGS[name][0](self.r, replace(self.node, op=name, attributes={}), [x])[0]

    def line(self, x: Value, w: Value, b: Value) -> Value:
        return self.r.n.add(product(self.r, x, w.map(lambda v: v.T)), b)

    def inner(self, i: int, x: Value, h: Value) -> Value:
        return self.r.n.add(self.line(x, self.w[i], self.b[i]), self.line(h, self.again[i], self.again_b[i]))

    def step(self, x: Value, h: Value, c: Value) -> tuple[Value, Value]:
        n = self.r.n
        if self.node.op == "RNN":
            return self.act(0, self.inner(0, x, h)), c
        if self.node.op == "LSTM":  # i, o, f, c
            i, o, f = (self.act(0, self.inner(g, x, h)) for g in range(3))
            c = n.add(n.multiply(f, c), n.multiply(i, self.act(1, self.inner(3, x, h))))
            return n.multiply(o, self.act(2, c)), c
        z, reset = (self.act(0, self.inner(g, x, h)) for g in range(2))
        if self.node.attributes.get("linear_before_reset", 0):
            past = n.multiply(reset, self.line(h, self.again[2], self.again_b[2]))
        else:
            past = self.line(n.multiply(reset, h), self.again[2], self.again_b[2])
        new = self.act(1, n.add(self.line(x, self.w[2], self.b[2]), past))
        return n.add(n.multiply(n.add(n.number(1.0, z), z, -1), new), n.multiply(z, h)), c


def _layer(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, again = given(xs, 0), given(xs, 2)
    if r.n.exact or not x.rows or any(given(xs, i).rows for i in (1, 2)):
        raise Fallback("no exact evaluation, or weights that depend on the input")
    if len(x.shape) != 3 or (len(xs) > 7 and xs[7] is not None):
        raise Fallback("a shape that is not one of sequences, or peepholes")
    steps, batch, _ = x.shape
    lengths = fixed(xs, 4)
    if lengths is not None and np.any(lengths != steps):
        raise Fallback("sequences of different lengths")
    a = node.attributes
    if a.get("layout", 0) or a.get("input_forget", 0) or a.get("hidden_size", again.shape[2]) != again.shape[2]:
        raise Fallback("another layout, coupled gates or another hidden size")
    direction = a.get("direction", "forward")
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}.get(direction)
    if ways is None:
        raise Fallback(f"direction {direction!r}")
    names = list(a.get("activations", DEFAULTS[node.op] * len(ways)))
    each = len(DEFAULTS[node.op])
    if len(names) != each * len(ways) or len(again.shape) != 3 or again.shape[0] != len(ways):
        raise Fallback("another number of activations or directions")
    if steps * len(ways) * batch * again.shape[1] > LARGEST:
        raise Fallback("a tensor of too many numbers")
    every, hs, cs = [], [], []
    for k, back in enumerate(ways):
        cell = _Cell(r, node, k, xs, names[k * each : (k + 1) * each])
        h, c = (_state(r, xs, at, k, (batch, cell.hidden), x) for at in (5, 6))
        made: dict[int, Value] = {}
        for t in reversed(range(steps)) if back else range(steps):
            h, c = cell.step(x.map(lambda v, t=t: v[t]), h, c)  # type: ignore[misc]
            made[t] = h
        every.append([made[t] for t in range(steps)])
        hs.append(h)
        cs.append(c)
    flat = [every[k][t] for t in range(steps) for k in range(len(ways))]
    y = _stacked(flat, (steps, len(ways)))
    out = [y, _stacked(hs, (len(ways),))]
    return [*out, _stacked(cs, (len(ways),))] if node.op == "LSTM" else out


def _state(r: Reading, xs: Values, at: int, k: int, shape: tuple[int, int], like: Value) -> Value:
    x = xs[at] if at < len(xs) and (at == 5 or len(xs) > 6) else None
    if x is None:
        return Value(np.zeros(shape), like.kind)
    out = r.n.real(x.map(lambda v: v[k]))
    if out.shape != shape:
        raise Fallback("a state of another shape")
    return out


def _stacked(parts: list[Value], outer: tuple[int, ...]) -> Value:
    """Tensors that depend on the input along new first axes."""

    def joined(arrays: list[AnyArray]) -> AnyArray:
        return np.stack(arrays, axis=1).reshape(len(arrays[0]), *outer, *arrays[0].shape[1:])

    known = None
    if any(p.e is not None for p in parts):
        known = joined([np.zeros(p.v.shape) if p.e is None else p.e for p in parts])
    return replace(parts[0], v=joined([p.v for p in parts]), e=known)


_SHARED = "activations direction hidden_size layout"
RECURRENT: dict[str, tuple[Meaning, str]] = {
    "RNN": (_layer, _SHARED),
    "GRU": (_layer, f"{_SHARED} linear_before_reset"),
    "LSTM": (_layer, f"{_SHARED} input_forget"),
}
