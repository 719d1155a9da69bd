"""Generators for arithmetic: functions of one and of several tensors, products, normalisation, softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from mucg4.read.protobuf import BOOL, DOUBLE, FLOAT, INT32, INT64

from .make import NUMPY, Case, Maker

POSITIVE = {"Log", "Sqrt", "Reciprocal"}


def one(m: Maker) -> Case:
    """A function of one tensor, with its attributes."""
    assert m.row
    op = m.row.op
    attributes: dict[str, Any] = {
        "LeakyRelu": m.some(alpha=m.pick(0.1, -0.5, 1.0, 1.5, 0.0, -2.0, 30.0)),
        "HardSigmoid": m.some(alpha=m.pick(-0.3, 0.5, 0.0, 0.2), beta=m.pick(0.1, -2.0, 2.0, 0.5)),
        "ThresholdedRelu": m.some(alpha=m.pick(1.0, 0.0, -1.0, 0.5)),
        "Gelu": m.some(0.7, approximate=m.pick("none", "tanh")),
        "Elu": m.some(alpha=m.pick(1.0, 0.3, 2.0, 3.7)),
        "Selu": m.some(alpha=m.pick(1.0, 0.5, 1.67), gamma=m.pick(1.0, 2.0, 0.5)),
        "Celu": m.some(alpha=m.pick(1.0, 0.3, 2.5)),
    }.get(op, {})
    shape, m.scale = m.shape(), m.pick(1.0, 3.0, 10.0)
    m.positive = op in POSITIVE
    low = 0.1 if m.positive else -3.0
    return m.case(m.node(op, [m.operand(shape, low=low)], "z", **attributes), shape)


def _other(m: Maker, shape: list[int]) -> list[int]:
    """A shape that broadcasts with `shape`, sometimes beyond it."""
    other = [m.pick(1, n) for n in shape][m.whole(0, len(shape)) :]
    return [*([m.whole(1, 2)] if len(other) == len(shape) and m.likely(0.2) else []), *other]


def several(m: Maker) -> Case:
    """Add, Sub, Mul, Div, Max, Min, Sum of two or more tensors, broadcast."""
    assert m.row
    op, shape = m.row.op, m.shape()
    m.positive = op == "Div"
    low = 0.5 if op == "Div" else -3.0
    names = [m.operand(shape, low=low)]
    for i in range(1 if m.row.inputs[1] == 2 else m.whole(0, 3)):
        values = m.draw(_other(m, shape), low=low)
        if op == "Div":
            if values.dtype.kind == "i" and m.likely(0.5):
                values = values % 16 + 1
            values = np.where(values == 0, 3, values).astype(values.dtype)
            values = np.where(values == -1, 5, values).astype(values.dtype)
        names.append(m.tensor(f"c{i}", values) if not m.variable or m.likely(0.7) else _variable(m, i, shape))
    if m.likely(0.4) and (op != "Div" or not m.variable or m.kind in (FLOAT, DOUBLE)):
        names.reverse()
    if op == "Div" and m.kind in (INT32, INT64):
        names = _no_zero(m, names)
    return m.case(m.node(op, names, "z"), shape)


def _no_zero(m: Maker, names: list[str]) -> list[str]:
    for tensor in list(m.tensors):
        if tensor.name == names[1]:
            from onnx import numpy_helper

            values = np.array(numpy_helper.to_array(tensor))
            values[(values == 0) | (values == -1)] = 7
            m.tensors.remove(tensor)
            m.tensor(names[1], values)
    return names


def _variable(m: Maker, i: int, shape: list[int]) -> str:
    """Another value that depends on the input; positive where the input is."""
    if m.kind in (INT32, INT64):
        return m.node(m.pick("Abs", "Neg", "Identity"), [m.given()], f"v{i}")
    if m.likely(0.3):
        return "x"
    if m.likely(0.5):
        return m.node("Sqrt" if m.positive else "Abs", ["x"], f"v{i}")
    return m.node("Transpose", [m.node("Transpose", ["x"], f"u{i}")], f"v{i}")


def slopes(m: Maker) -> Case:
    """PRelu."""
    shape = m.shape()
    other = [m.pick(1, n) for n in shape][m.whole(0, len(shape)) :]
    values = m.draw(other) if m.likely(0.8) else np.full(other, m.pick(0.1, 2.0, -1.0), NUMPY[m.kind])
    return m.case(m.node("PRelu", [m.operand(shape), m.tensor("s", values)], "z"), shape)


def power(m: Maker) -> Case:
    """Pow: one exponent, several, or one that depends on the input."""
    shape, m.positive = m.shape(), True
    kind = m.kind if m.opset < 12 else m.pick(FLOAT, DOUBLE, INT32, INT64)
    whole, parts = (0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 7.0, 8.0, 11.0), (0.5, 1.5, 2.5, -0.5, -1.5, 0.3, -1.2)
    if m.variable and m.likely(0.3):
        names = ["x", m.node("Neg", ["x"], "v") if m.likely(0.3) else "x"]
        if m.likely(0.7):
            names[0] = m.tensor("b", abs(m.draw(_other(m, shape))) + NUMPY_ONE[m.kind])
        return m.case(m.node("Pow", names, "z"), shape)
    if not m.variable:
        kind = m.kind if m.kind in (INT32, INT64) else kind
        exponent = m.pick(0.0, 1.0, 2.0, 3.0, 0.3, -2.0) if m.kind in (FLOAT, DOUBLE) else m.pick(0, 1, 2, 3)
        values = np.full(m.pick((), (1,), shape[-1:]), exponent).astype(NUMPY[kind])
    else:
        form = _other(m, shape)
        some = [m.pick(*whole, *(parts if kind in (FLOAT, DOUBLE) else ())) for _ in range(2)]
        values = np.where(m.draw(form, BOOL), some[0], some[m.whole(0, 1)]).astype(NUMPY[kind])
    return m.case(m.node("Pow", [m.operand(shape, low=0.1), m.tensor("e", values)], "z"), shape)


def limits(m: Maker) -> Case:
    """Clip, with the largest floats, infinite limits and limits the wrong way round."""
    largest = float(np.finfo(NUMPY[m.kind]).max)
    ends = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, largest, -largest, float(np.inf), -float(np.inf))
    low, high = m.pick(None, *ends), m.pick(None, *ends)
    shape, m.scale = m.shape(), 2.0
    if m.has("min"):
        given = {key: v for key, v in (("min", low), ("max", high)) if v is not None}
        return m.case(m.node("Clip", ["x"], "z", **given), shape)
    form = m.pick((), (), (1,))
    dtype = NUMPY[m.kind]
    names = [m.tensor(k, np.full(form, v, dtype)) if v is not None else "" for k, v in (("lo", low), ("hi", high))]
    return m.case(m.node("Clip", ["x", *names], "z"), shape)


def matrix(m: Maker) -> Case:
    """MatMul of ranks one to four, the constant on either side, or a variable with itself turned round."""
    shape = m.shape(1, 4, 3, batch=m.likely(0.7))
    if m.variable and len(shape) > 1 and m.likely(0.3):
        order = list(range(len(shape)))
        order[-1], order[-2] = order[-2], order[-1]
        names = ["x", m.node("Transpose", ["x"], "t", perm=order)]
        return m.case(m.node("MatMul", names if m.likely(0.5) else names[::-1], "z"), shape)
    left = m.likely(0.4)
    inner = shape[-2] if left and len(shape) > 1 else shape[-1]
    other = [m.whole(1, 3), inner] if left else [inner, m.whole(1, 3)]
    if m.likely(0.2):
        other = [inner]
    elif m.likely(0.3):
        other = [1] * m.whole(1, 2) + other
    elif m.likely(0.4):  # a stack of matrices
        outer = [m.pick(1, n) if n > 1 else m.whole(1, 3) for n in shape[:-2]]
        other = [*(outer or [m.whole(2, 3)]), *other]
    x, w = m.operand(shape), m.tensor("w", m.draw(other))
    return m.case(m.node("MatMul", [w, x] if left else [x, w], "z"), shape)


def gemm(m: Maker) -> Case:
    """Gemm, the input in any of its places."""
    assert m.row
    a, b = m.pick(0, 1), m.pick(0, 1)
    rows, inner, columns = m.whole(1, 3), m.whole(1, 3), m.whole(1, 3)
    first, second = ([inner, rows] if a else [rows, inner]), ([columns, inner] if b else [inner, columns])
    third = m.pick((columns,), (1, columns), (), (1,), (rows, columns), (rows, 1))
    at = m.pick(0, 0, 1, 2) if m.variable else -1
    if at == 2:
        third = (rows, columns)
    shapes, names = (first, second, third), []
    for i, shape in enumerate(shapes):
        drop = i == 2 and at != 2 and m.row.inputs[0] == 2 and m.likely(0.3)
        names.append("" if drop else "x" if i == at else m.tensor(f"c{i}", m.draw(shape)))
    numbers = m.some(alpha=m.pick(0.5, -2.0, 0.0, 3.3, 1.0), beta=m.pick(0.5, -2.0, 0.0, 3.3, 1.0))
    attributes = {**numbers, **m.some(1.0 if a else 0.3, transA=a), **m.some(1.0 if b else 0.3, transB=b)}
    return m.case(m.node("Gemm", names, "z", **attributes), shapes[max(at, 0)])


def normal(m: Maker) -> Case:
    """BatchNormalization with stored statistics."""
    channels = m.whole(1, 3)
    shape = [1, channels, *(m.whole(1, 3) for _ in range(m.whole(0, 2)))]
    names = [
        m.tensor(k, abs(m.draw([channels])) + NUMPY_ONE[m.kind] if k == "v" else m.draw([channels])) for k in "sbmv"
    ]
    values = m.some(epsilon=m.pick(1e-3, 0.1, 0.0), momentum=m.pick(0.9, 0.5), spatial=1, training_mode=0)
    return m.case(m.node("BatchNormalization", ["x", *names], "z", **values), shape)


NUMPY_ONE = {FLOAT: np.float32(0.01), DOUBLE: np.float64(0.01)}


def softmax(m: Maker) -> Case:
    """Softmax and LogSoftmax, the old ones where one axis is all they normalise over."""
    assert m.row
    shape, m.scale = m.shape(1, 4, 3), 2.0
    low = 0 if m.opset < 11 else -len(shape)
    attributes = m.some(0.8, axis=m.whole(low, len(shape) - 1))
    if m.opset < 9 or m.likely(0.6):
        return m.case(m.node(m.row.op, ["x"], "z", **attributes), shape)
    z = m.node(m.row.op, [_masked(m, shape)], "z", **attributes)
    return m.case(m.node("Exp", [z], "e") if m.row.op == "LogSoftmax" else z, shape)


def _masked(m: Maker, shape: list[int]) -> str:
    """The input with minus infinity, or a number far below it, in some places; moved, scaled or added to."""
    far, form = -np.inf, m.pick(shape, shape[-1:])
    mask = m.draw(form, BOOL)
    if m.likely(0.5):
        low = m.tensor("low", np.full(m.pick((), (1,), form), far).astype(NUMPY[m.kind]))
        x = m.node("Where", [m.tensor("mask", mask), *m.pick((low, "x"), ("x", low))], "masked")
    else:
        names = ["x", m.tensor("low", np.where(mask, far, 0.5).astype(NUMPY[m.kind]))]
        x = m.node("Add", m.pick(names, names[::-1]), "masked")
    if m.likely(0.3):
        x = m.node("Mul", [x, m.tensor("factor", np.array(0.5, NUMPY[m.kind]))], "scaled")
    if m.likely(0.3):
        x = m.node("Add", [x, m.node("Neg", ["x"], "minus")], "joined")
    return m.node("Transpose", [m.node("Transpose", [x], "there")], "back") if m.likely(0.3) else x


def reduction(m: Maker) -> Case:
    """ReduceSum, ReduceMean, ReduceMax, ReduceMin and ReduceProd, axes as attribute or input."""
    assert m.row
    shape = m.shape(1, 4, 3)
    low = 0 if m.opset < 11 else -len(shape)
    axes = m.chance.sample(range(low, len(shape)), m.whole(0, 2) if len(shape) > 1 else m.whole(0, 1))
    if len({a % len(shape) for a in axes}) != len(axes):
        axes = axes[:1]
    attributes, names = m.some(keepdims=m.pick(0, 1), noop_with_empty_axes=m.pick(0, 1)), [m.operand(shape)]
    if m.has("axes"):
        attributes.update({"axes": axes} if axes else {})
    elif m.likely(0.7):
        names.append(m.ints("a", axes))
    return m.case(m.node(m.row.op, names, "z", **attributes), shape)


GENERATORS = {
    one: "Neg Abs Relu LeakyRelu HardSigmoid Sigmoid Tanh Sin Cos Tan Exp Log Sqrt Reciprocal Floor Ceil Round Sign "
    "ThresholdedRelu Softplus Softsign Atan Erf Gelu HardSwish Mish Elu Selu Celu",
    several: "Add Sub Mul Div Max Min Sum",
    slopes: "PRelu",
    power: "Pow",
    limits: "Clip",
    matrix: "MatMul",
    gemm: "Gemm",
    normal: "BatchNormalization",
    softmax: "Softmax LogSoftmax",
    reduction: "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd",
}
