"""Generators for operators that are made of others: normalisations, norms, Einsum, running sums, scattering."""

from __future__ import annotations

import numpy as np

from mucg4.read.protobuf import INT64

from .make import Case, Maker


def layer(m: Maker) -> Case:
    """LayerNormalization, RMSNormalization and its older name over one or more of the last axes."""
    assert m.row
    shape = m.shape(1, 4, 4)
    axis = m.whole(0, len(shape) - 1)
    tail = shape[axis:]
    form = m.pick(tail, tail, tail[-1:], [1])
    names = ["x", m.tensor("s", m.draw(form))]
    if m.row.op == "LayerNormalization" and m.likely(0.6):
        names.append(m.tensor("b", m.draw(tail)))
    m.scale = m.pick(1.0, 3.0)
    at = m.some(1.0 if axis != len(shape) - 1 else 0.5, axis=axis - m.pick(0, len(shape)))
    at |= m.some(epsilon=m.pick(1e-5, 1e-3, 0.1), stash_type=1)
    return m.case(m.node(m.row.op, names, "z", **at), shape)


def instance(m: Maker) -> Case:
    """InstanceNormalization, some with several images."""
    shape = [m.pick(1, 1, 2), m.whole(1, 3), *(m.whole(2, 4) for _ in range(m.whole(1, 3)))]
    names = ["x", *(m.tensor(k, m.draw([shape[1]])) for k in "sb")]
    return m.case(m.node("InstanceNormalization", names, "z", **m.some(epsilon=m.pick(1e-5, 0.01))), shape)


def group(m: Maker) -> Case:
    """GroupNormalization, old and new."""
    groups = m.whole(1, 3)
    shape = [m.pick(1, 1, 2), groups * m.whole(1, 2), *(m.whole(1, 3) for _ in range(m.whole(1, 2)))]
    count = groups if m.opset < 21 else shape[1]
    names = ["x", *(m.tensor(k, m.draw([count])) for k in "sb")]
    at = m.some(epsilon=m.pick(1e-5, 0.01), stash_type=1)
    return m.case(m.node("GroupNormalization", names, "z", num_groups=groups, **at), shape)


def norm(m: Maker) -> Case:
    """LpNormalization; onnxruntime's 0 / 0 is 0."""
    shape, m.positive = m.shape(1, 4), True
    axis = m.whole(-len(shape), len(shape) - 1)
    return m.case(m.node("LpNormalization", ["x"], "z", **m.some(0.8, axis=axis, p=m.pick(1, 2))), shape)


def norms(m: Maker) -> Case:
    """ReduceL1, L2, SumSquare, LogSum and LogSumExp."""
    assert m.row
    shape, m.positive = m.shape(1, 4, 3), m.row.op == "ReduceLogSum"
    low = 0 if m.opset < 11 else -len(shape)
    axes = sorted({a % len(shape): a for a in (m.whole(low, len(shape) - 1) for _ in range(2))}.values())
    at, names = m.some(keepdims=m.pick(0, 1), noop_with_empty_axes=m.pick(0, 1)), ["x"]
    if m.has("axes"):
        at |= {"axes": axes} if m.likely(0.8) else {}
    elif m.likely(0.8):
        names.append(m.ints("a", axes))
    return m.case(m.node(m.row.op, names, "z", **at), shape)


EQUATIONS = (
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    ("bij,bjk->bik", (2, 3, 2), (2, 2, 3)),
    ("bhid,bhjd->bhij", (1, 2, 3, 2), (1, 2, 2, 2)),
    ("...ij,...jk->...ik", (2, 2, 3), (2, 3, 2)),
    ("ij,kj->ikj", (2, 3), (4, 3)),
    ("ij,ij->", (2, 3), (2, 3)),
    ("ij,j->i", (2, 3), (3,)),
    ("i,j->ij", (3,), (2,)),
    ("ij,k->i", (2, 3), (2,)),
    ("bi,ij,bj->b", (2, 3), (3, 2), (2, 2)),
    ("ijk->kji", (2, 3, 2)),
    ("ii->i", (3, 3)),
    ("ii", (3, 3)),
    ("iij->j", (2, 2, 3)),
    ("ij->", (2, 3)),
    ("i...->...", (2, 3, 2)),
    (" i j , j k -> k i ", (2, 3), (3, 2)),
)


def einsum(m: Maker) -> Case:
    """Einsum of one to three operands; the others constant, or the same value in another form."""
    equation, *shapes = m.pick(*EQUATIONS)
    at = m.whole(0, len(shapes) - 1)
    names = []
    for i, shape in enumerate(shapes):
        same = i != at and shape == shapes[at] and m.likely(0.4)
        names.append("x" if i == at else m.node("Abs", ["x"], f"v{i}") if same else m.tensor(f"c{i}", m.draw(shape)))
    return m.case(m.node("Einsum", names, "z", equation=equation), list(shapes[at]))


def triangle(m: Maker) -> Case:
    shape = [*m.shape(0, 2, 2), m.whole(1, 4), m.whole(1, 4)]
    names = [m.operand(shape)] + ([m.ints("k", m.pick(0, 1, -1, 2, -5, 7))] if m.likely(0.7) else [])
    return m.case(m.node("Trilu", names, "z", **m.some(upper=m.pick(0, 1))), shape)


def running(m: Maker) -> Case:
    shape = m.shape(1, 3)
    dtype = m.pick(np.int64, np.int32)
    axis = m.tensor("a", np.array(m.whole(-len(shape), len(shape) - 1), dtype))
    operand = "x" if m.variable else m.tensor("xc", (m.draw(shape) % 50).astype(m.draw([1]).dtype))
    at = m.some(exclusive=m.pick(0, 1), reverse=m.pick(0, 1))
    return m.case(m.node("CumSum", [operand, axis], "z", **at), shape)


def points(m: Maker) -> Case:
    """GatherND."""
    shape = m.shape(1, 4, 3, batch=False)
    batch = m.whole(0, len(shape) - 1) if m.has("batch_dims") and m.likely(0.4) else 0
    depth = m.whole(1, len(shape) - batch)
    form = [*shape[:batch], *(m.whole(1, 3) for _ in range(m.whole(0, 2))), depth]
    at = np.zeros(form, np.int64)
    for index in np.ndindex(*form):
        n = shape[batch + index[-1]]
        at[index] = m.whole(-n, n - 1)
    more = {"batch_dims": batch} if batch else m.some(0.3, batch_dims=0)
    return m.case(m.node("GatherND", [m.operand(shape), m.tensor("i", at)], "z", **more), shape)


def elements(m: Maker) -> Case:
    """GatherElements."""
    shape = m.shape(1, 3, 4, batch=False)
    axis = m.whole(-len(shape), len(shape) - 1)
    form = [m.whole(1, n) for n in shape]
    form[axis] = m.whole(1, 5)
    at = m.draw(form, INT64) % (2 * shape[axis]) - shape[axis]
    at = at.astype(m.pick(np.int64, np.int32))
    more = m.some(1.0 if axis else 0.5, axis=axis)
    return m.case(m.node("GatherElements", [m.operand(shape), m.tensor("i", at)], "z", **more), shape)


def scatter(m: Maker) -> Case:
    """ScatterND and ScatterElements, data or updates from the input, each place once."""
    assert m.row
    shape = m.shape(1, 3, 4, batch=False)
    more = m.some(0.3, reduction="none")
    if m.row.op == "ScatterND":
        depth = m.whole(1, len(shape))
        every = list(np.ndindex(*shape[:depth]))
        chosen = np.array(m.chance.sample(every, m.whole(1, len(every))), np.int64)
        chosen = chosen - np.array(shape[:depth]) * (m.likely(0.5))
        form = [len(chosen), *shape[depth:]]
    else:
        axis = m.whole(0, len(shape) - 1)
        form = [m.whole(1, n) for n in shape]
        chosen = np.stack(
            [m.chance.sample(range(shape[axis]), form[axis]) for _ in range(int(np.prod(form)) // form[axis])]
        )
        chosen = np.moveaxis(chosen.reshape([*(n for i, n in enumerate(form) if i != axis), form[axis]]), -1, axis)
        more |= m.some(1.0 if axis else 0.5, axis=axis)
    indices = m.tensor("i", np.ascontiguousarray(chosen).astype(np.int64))
    data, updates = m.draw(shape), m.draw(form)
    if not m.variable:
        return m.case(m.node(m.row.op, [m.tensor("d", data), indices, m.tensor("u", updates)], "z", **more), [1, 2])
    if m.likely(0.5):
        return m.case(m.node(m.row.op, ["x", indices, m.tensor("u", updates)], "z", **more), shape)
    return m.case(m.node(m.row.op, [m.tensor("d", data), indices, "x"], "z", **more), form)


def shrink(m: Maker) -> Case:
    shape, m.scale = m.shape(), 2.0
    at = m.some(0.8, lambd=m.pick(0.5, 1.0, 0.0, 2.5), bias=m.pick(0.0, 0.5, 1.0, -0.7))
    return m.case(m.node("Shrink", ["x"], "z", **at), shape)


def mean(m: Maker) -> Case:
    """Mean of one or more tensors, broadcast."""
    shape = m.shape()
    names = [m.operand(shape)]
    for i in range(m.whole(0, 3)):
        other = [m.pick(1, n) for n in shape][m.whole(0, len(shape)) :]
        names.append(
            m.tensor(f"c{i}", m.draw(other)) if m.likely(0.6) or not m.variable else m.node("Abs", ["x"], f"v{i}")
        )
    m.chance.shuffle(names)
    return m.case(m.node("Mean", names, "z"), shape)


GENERATORS = {
    layer: "LayerNormalization RMSNormalization SimplifiedLayerNormalization",
    instance: "InstanceNormalization",
    group: "GroupNormalization",
    norm: "LpNormalization",
    norms: "ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp",
    einsum: "Einsum",
    triangle: "Trilu",
    running: "CumSum",
    points: "GatherND",
    elements: "GatherElements",
    scatter: "ScatterND ScatterElements",
    shrink: "Shrink",
    mean: "Mean",
}
