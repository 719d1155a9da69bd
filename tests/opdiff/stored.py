"""Generators for constants and what is done to them alone."""

from __future__ import annotations

import numpy as np

from mucg4.read.protobuf import BOOL, DOUBLE, FLOAT, FLOAT16, INT32, INT64

from .make import NUMPY, Case, Maker


def literal(m: Maker) -> Case:
    """Constant nodes with a tensor or a plain value."""
    if m.has("value_int") and m.likely(0.5):
        values = {
            "value_int": m.pick(3, -(2**40)),
            "value_ints": [1, 2, 3],
            "value_float": 0.1,
            "value_floats": [0.5, -2.0],
        }
        key = m.pick(*values)
        return m.case(m.node("Constant", [], "z", **{key: values[key]}), [1, 2], INT64 if "int" in key else FLOAT)
    shape = [2, 2] if m.kind in (21, 22) else m.shape(0, 3)
    z = m.node("Constant", [], "z", value=m.proto("", m.draw(shape), m.kind))
    return m.case(z, [1, 2])


def filled(m: Maker) -> Case:
    """ConstantOfShape of every type."""
    kind = m.pick(FLOAT, DOUBLE, INT32, INT64, BOOL, FLOAT16, 2, 3)
    shape = m.ints("s", m.shape(0, 3))
    if m.likely(0.2):
        return m.case(m.node("ConstantOfShape", [shape], "z"), [1, 2], FLOAT)
    value = m.proto("", m.draw([1], kind), kind)
    return m.case(m.node("ConstantOfShape", [shape], "z", value=value), [1, 2], kind)


def dequantize(m: Maker) -> Case:
    """DequantizeLinear by one scale, by one per slice or in blocks, and a MatMul with the result."""
    four, shape = m.kind in (21, 22), [4, 6]
    scale_kind = m.pick(FLOAT, FLOAT16) if m.opset >= 19 else FLOAT
    axis = m.pick(0, 1, -1, -2) if m.has("axis") else 1
    form: list[int] = m.pick([], [1], [shape[axis]]) if m.has("axis") else m.pick([], [])
    at = m.some(1.0 if axis != 1 else 0.5, axis=axis)
    if m.has("block_size") and m.likely(0.4):
        size = m.pick(2, 3, 1) if axis in (1, -1) else m.pick(2, 1)
        form = list(shape)
        form[axis] = shape[axis] // size
        at["block_size"] = size
    at |= m.some(0.2, output_dtype=scale_kind)
    values = m.draw(shape)
    if not four:
        values = values.astype(NUMPY[m.kind])
    names = [m.tensor("q", values, m.kind), m.tensor("s", abs(m.draw(form, scale_kind)) + NUMPY_SMALL[scale_kind])]
    if m.likely(0.6):
        zero = m.draw(form) if m.kind != INT32 else np.zeros(form, np.int32)
        names.append(m.tensor("z0", zero, m.kind))
    z = m.node("DequantizeLinear", names, "z", **at)
    return m.case(z, [1, 2], scale_kind)


NUMPY_SMALL = {FLOAT: np.float32(0.01), FLOAT16: np.float16(0.01)}


def compare(m: Maker) -> Case:
    """Equal, Less and Greater of stored numbers, some of them equal."""
    assert m.row
    if m.variable:
        shape = m.shape()
        other = m.tensor("c", np.round(m.draw(m.pick(shape, shape[-1:], []))))
        names = [x := m.given(), m.pick(other, m.node("Neg", [x], "v"))]
        return m.case(m.node(m.row.op, m.pick(names, names[::-1]), "z"), shape, BOOL)
    shape = m.shape(0, 3)
    a = m.draw(shape)
    b = np.where(m.draw(shape, BOOL), a, m.draw(shape))
    b = b.reshape(-1)[:1] if m.likely(0.2) and b.size else b
    z = m.node(m.row.op, [m.tensor("a", a), m.tensor("b", b.astype(a.dtype))], "z")
    return m.case(z, [1, 2], BOOL)


def logic(m: Maker) -> Case:
    """Not, And and Or."""
    assert m.row
    if m.variable:
        shape, other = m.shape(), m.pick(0.0, -0.5)
        second = m.tensor("c", m.draw(shape, BOOL)) if m.likely(0.5) else m.truth("x", other)
        names = [m.truth(), second][: m.row.inputs[1]]
        return m.case(m.node(m.row.op, m.pick(names, names[::-1]), "z"), shape, BOOL)
    shape = m.shape(0, 3)
    names = [m.tensor(f"b{i}", m.draw(shape, BOOL)) for i in range(m.row.inputs[1])]
    return m.case(m.node(m.row.op, names, "z"), [1, 2], BOOL)


def where(m: Maker) -> Case:
    """Where of stored numbers, broadcast."""
    if m.variable:
        shape = m.shape()
        mask = m.truth() if m.likely(0.6) else m.tensor("k", m.draw(shape, BOOL))
        kind, x = m.pick(FLOAT, FLOAT, INT32, INT64), "x"
        if kind != FLOAT:
            m.computed, x = True, m.node("Cast", ["x"], "w", to=kind)
        ways = [x, m.tensor("a", m.draw(m.pick(shape, shape[-1:], []), kind)), m.node("Neg", [x], "v")]
        a, b = m.pick(*((p, q) for p in ways for q in ways if mask != "k" or x in (p, q)))
        return m.case(m.node("Where", [mask, a, b], "z"), shape, kind)
    shape, kind = m.shape(0, 3), m.pick(FLOAT, DOUBLE, INT32, INT64)
    names = [m.tensor("k", m.draw(shape, BOOL)), m.tensor("a", m.draw(shape, kind))]
    names.append(m.tensor("b", m.draw(m.pick(shape, []), kind)))
    return m.case(m.node("Where", names, "z"), [1, 2], kind)


def remainder(m: Maker) -> Case:
    """Mod of integers of all signs."""
    shape = m.shape(0, 3)
    a, b = (m.draw(shape) % 100 - 50 for _ in range(2))
    names = [m.tensor("a", a), m.tensor("b", np.where(b == 0, 7, b).astype(NUMPY[m.kind]))]
    return m.case(m.node("Mod", names, "z", **m.some(fmod=m.pick(0, 1))), [1, 2])


def run(m: Maker) -> Case:
    """Range of integers."""
    start, step = m.whole(-9, 9), m.pick(1, 2, 3, -1, -2)
    stop = start + step * m.whole(1, 6) + m.whole(0, 1)
    dtype = NUMPY[m.kind]
    names = [m.tensor(f"n{i}", np.array(v, dtype)) for i, v in enumerate((start, stop, step))]
    return m.case(m.node("Range", names, "z"), [1, 2])


GENERATORS = {
    literal: "Constant",
    filled: "ConstantOfShape",
    dequantize: "DequantizeLinear",
    compare: "Equal Less Greater LessOrEqual GreaterOrEqual",
    logic: "Not And Or Xor",
    where: "Where",
    remainder: "Mod",
    run: "Range",
}
