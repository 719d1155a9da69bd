"""Generators of several operators in a row: constants folded over many steps, shapes computed, layers merged."""

from __future__ import annotations

import numpy as np

from mucg4.read.protobuf import DOUBLE, FLOAT, INT32, INT64

from .make import NUMPY, Case, Maker


def folding(m: Maker) -> Case:
    """Floating-point constants through some operators, then a bias, a factor or a matrix of the variable."""
    m.kind = m.pick(FLOAT, FLOAT, DOUBLE)
    n = m.whole(1, 4)
    c = m.tensor("c", m.draw([n, n], low=0.5))
    for i in range(m.whole(1, 8)):
        op = m.pick(
            "Add", "Sub", "Mul", "Div", "Max", "Min", "MatMul", "Sqrt", "Abs", "Neg", "Transpose", "Cast", "Floor"
        )
        if op in ("Sqrt", "Abs", "Neg", "Transpose", "Floor"):
            c = m.node(op, [c], f"t{i}")
        elif op == "Cast":
            c = m.node(op, [m.node(op, [c], f"d{i}", to=DOUBLE)], f"t{i}", to=m.kind)
        else:
            c = m.node(
                op, [c, m.tensor(f"c{i}", m.draw(m.pick([n, n], [n, n] if op == "MatMul" else [n]), low=0.5))], f"t{i}"
            )
    return m.case(m.node(m.pick("Add", "Mul", "MatMul"), ["x", c], "z"), [1, n])


def whole_numbers(m: Maker) -> Case:
    """Integers, small and near the ends of their type, through some operators; then a bias."""
    kind, n = m.pick(INT32, INT64), m.whole(1, 4)
    c = m.tensor("c", m.draw([n], kind))
    for i in range(m.whole(1, 6)):
        op = m.pick("Add", "Sub", "Mul", "Div", "Neg", "Max", "Min", "Sign", "Equal")
        if op in ("Neg", "Sign"):
            c = m.node(op, [c], f"t{i}")
            continue
        values = m.draw(m.pick([n], [1]), kind)
        if op == "Div":
            values = np.where((values == 0) | (values == -1), 7, values).astype(NUMPY[kind])
        c = m.node(op, [c, m.tensor(f"c{i}", values)], f"t{i}")
        if op == "Equal":
            c = m.node(
                "Where", [c, m.tensor(f"a{i}", m.draw([n], kind)), m.tensor(f"b{i}", m.draw([n], kind))], f"w{i}"
            )
    m.kind, c = m.pick(FLOAT, DOUBLE), m.last_digits(c, kind) if m.likely(0.7) else c
    return m.case(m.node("Add", ["x", m.node("Cast", [c], "f", to=m.kind)], "z"), [1, n])


def shapes(m: Maker) -> Case:
    """Shape arithmetic as exporters write it."""
    m.opset = m.whole(13, 18)
    shape = [1, m.whole(1, 3), m.whole(1, 4), 2]
    s = m.node("Shape", ["x"], "s")
    first = m.node("Gather", [s, m.tensor("i", np.array(m.whole(0, 3), np.int64))], "g")
    listed = m.node("Unsqueeze", [first, m.ints("a", [0])], "u")
    if m.likely(0.5):
        listed = m.node("Mul", [m.node("Div", [listed, m.ints("two", [2])], "h"), m.ints("two2", [2])], "d")
    if m.likely(0.5):
        target = m.node("Concat", [m.ints("one", [1]), m.ints("rest", [-1])], "k", axis=0)
    else:
        target = m.node("Concat", [listed, m.ints("rest", [-1])], "k", axis=0)
    z = m.node("Reshape", ["x", target], "z")
    if m.likely(0.5):
        filled = m.node("ConstantOfShape", [m.node("Shape", [z], "s2")], "f")
        z = m.node("Add", [z, m.node("Add", [filled, m.tensor("half", np.float32(0.5))], "f2")], "z2")
    return m.case(z, shape)


def layers(m: Maker) -> Case:
    """Affine and piecewise linear layers that the reader merges."""
    m.kind = FLOAT
    channels, size = m.whole(1, 3), m.whole(2, 5)
    shape, last = [1, channels, size, size], "x"
    for i in range(m.whole(1, 6)):
        op = m.pick(
            "Conv", "ConvTranspose", "BatchNormalization", "Mul", "Add", "Sub", "Div", "Relu", "LeakyRelu", "Pad"
        )
        per = m.pick([channels, 1, 1], [1], [])
        if op in ("Conv", "ConvTranspose"):
            names = [last, m.tensor(f"w{i}", m.draw([channels, channels, 2, 2], low=-1, high=1))]
            last = m.node(op, names, f"t{i}", pads=[0, 1, 1, 0] if op == "Conv" else [1, 0, 0, 1])
        elif op == "BatchNormalization":
            names = [m.tensor(f"{k}{i}", m.draw([channels], low=0.1)) for k in "sbmv"]
            last = m.node(op, [last, *names], f"t{i}")
        elif op in ("Relu", "LeakyRelu"):
            last = m.node(op, [last], f"t{i}")
        elif op == "Pad":
            last = m.node(op, [last, m.ints(f"p{i}", [0, 0, 1, 0, 0, 0, -1, 0])], f"t{i}")
        else:
            last = m.node(op, [last, m.tensor(f"c{i}", m.draw(per, low=0.5))], f"t{i}")
    if m.likely(0.5):
        last = m.node("Flatten", [last], "flat")
    return m.case(last, shape)


def dense(m: Maker) -> Case:
    """Layers of matrices, with quantised weights now and then."""
    m.kind = FLOAT
    n, last = m.whole(1, 5), "x"
    first = n
    for i in range(m.whole(1, 4)):
        k = m.whole(1, 5)
        w = m.tensor(f"w{i}", m.draw([n, k]))
        if m.likely(0.3):
            q = m.tensor(f"q{i}", m.draw([n, k], 3))
            w = m.node("DequantizeLinear", [q, m.tensor(f"s{i}", np.float32(0.05))], f"d{i}")
        last = m.node("MatMul", [last, w], f"m{i}")
        last = m.node(m.pick("Add", "Sub", "Mul"), [last, m.tensor(f"b{i}", m.draw([k]))], f"a{i}")
        last = m.node(m.pick("Relu", "Tanh", "Identity", "Sigmoid"), [last], f"r{i}")
        n = k
    return m.case(last, [1, first])


GENERATORS = (folding, whole_numbers, shapes, layers, dense)
