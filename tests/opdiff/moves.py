"""Generators for operators that only move data."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from mucg4.read.protobuf import BOOL, DOUBLE, FLOAT, INT32, INT64

from .make import UNSIGNED, WHOLE, Case, Maker


def _finish(m: Maker, op: str, shape: list[int], names: list[str], **attributes: Any) -> Case:
    return m.case(m.node(op, [m.operand(shape), *names], "z", **attributes), shape)


def same(m: Maker) -> Case:
    """Identity and Dropout in inference."""
    assert m.row
    names: list[str] = []
    if m.row.inputs[1] == 3 and m.likely(0.5):
        names = [m.tensor("r", np.float32(0.3))] + ([m.tensor("t", np.array(False))] if m.likely(0.5) else [])
    return _finish(m, m.row.op, m.shape(0 if not m.variable else 1), names, **m.some(ratio=0.4, seed=3))


def reshape(m: Maker) -> Case:
    """Reshape with copied, inferred and plain dimensions."""
    shape = [1, m.whole(1, 3), 4, 2 * m.whole(1, 2)]
    target = m.pick([0, -1], [-1], [1, 0, -1], [0, 0, 0, 0], [-1, 2], [2, 0, 2, -1], [0, -1, 1, 1, 1])
    if m.has("allowzero") and m.likely(0.3):
        return _finish(m, "Reshape", shape, [m.ints("s", m.pick([-1], [1, -1], [-1, 2]))], allowzero=1)
    return _finish(m, "Reshape", shape, [m.ints("s", target)], **m.some(allowzero=0))


def flatten(m: Maker) -> Case:
    shape = m.shape(1, 4)
    return _finish(m, "Flatten", shape, [], **m.some(0.8, axis=m.whole(0 if m.opset < 11 else -len(shape), len(shape))))


def squeeze(m: Maker) -> Case:
    shape = [m.pick(1, 1, 3) for _ in range(m.whole(1, 4))]
    ones = [i for i, n in enumerate(shape) if n == 1]
    axes = m.chance.sample(ones, m.whole(1, len(ones))) if ones and m.likely(0.8) else []
    axes = [a - len(shape) if m.opset >= 11 and m.likely(0.3) else a for a in axes]
    if m.has("axes"):
        return _finish(m, "Squeeze", shape, [], **({"axes": axes} if axes else {}))
    return _finish(m, "Squeeze", shape, [m.ints("a", axes)] if axes else [])


def unsqueeze(m: Maker) -> Case:
    shape = m.shape(1, 3)
    rank = len(shape) + m.whole(1, 2)
    axes = m.chance.sample(range(rank), rank - len(shape))
    axes = [a - rank if m.opset >= 11 and m.likely(0.3) else a for a in axes]
    return _finish(m, "Unsqueeze", shape, *([[]] if m.has("axes") else [[m.ints("a", axes)]]), **m.some(1.0, axes=axes))


def transpose(m: Maker) -> Case:
    shape = m.shape(1, 4, batch=False)
    return _finish(m, "Transpose", shape, [], **m.some(0.8, perm=m.chance.sample(range(len(shape)), len(shape))))


def cut(m: Maker) -> Case:
    """Slice, beyond the ends and backwards."""
    shape = m.shape(1, 3, 5, batch=False)
    axes = m.chance.sample(range(len(shape)), m.whole(1, len(shape)))
    starts = [m.pick(0, 0, 0, 1, 2, -1, -2, -7, 9, -(2**63), 2**63 - 1) for _ in axes]
    ends = [m.pick(1, 2, 3, -1, 9, 9, 9, 2**62, 2**62, -9, -(2**62), 2**63 - 1, -(2**63)) for _ in axes]
    if m.likely(0.5):
        starts, ends = [0] * len(axes), [m.whole(1, shape[a]) for a in axes]
    if m.has("starts"):
        whole = axes == list(range(len(axes)))
        more = {} if whole and m.likely(0.5) else m.some(1.0, axes=axes)
        return _finish(m, "Slice", shape, [], starts=starts, ends=ends, **more)
    signed = [a - len(shape) if m.likely(0.3) else a for a in axes]
    names = [m.ints("s", starts), m.ints("e", ends), m.ints("a", signed)]
    if m.likely(0.7):
        names.append(m.ints("t", [m.pick(1, 1, 2, -1, -2, 2**62) for _ in axes]))
    return _finish(m, "Slice", shape, names)


def gather(m: Maker) -> Case:
    shape = m.shape(1, 3)
    axis = m.whole(-len(shape), len(shape) - 1)
    n, low = shape[axis], 0 if m.opset < 11 else -shape[axis]
    dtype = m.pick(np.int64, np.int32)
    indices = np.array([m.whole(low, n - 1) for _ in range(4)], dtype)
    indices = m.pick(indices, indices.reshape(2, 2), indices[0], indices[:1])
    return _finish(m, "Gather", shape, [m.tensor("i", indices)], **m.some(1.0 if axis else 0.5, axis=axis))


def split(m: Maker) -> Case:
    """Split into equal, uneven and stated parts."""
    axis, length, count = m.whole(0, 1), m.whole(1, 7), m.whole(1, 3)
    shape, names, at = (
        [1, 2],
        [],
        m.some(1.0 if axis else 0.5, axis=axis - 2 if m.opset >= 11 and m.likely(0.3) else axis),
    )
    shape[axis] = length
    outs = [f"o{i}" for i in range(count)]
    if m.likely(0.7):
        length = shape[axis] = count * m.whole(1, 3)
    cuts = sorted(m.chance.sample(range(1, length), count - 1)) if length > count else [1] * (count - 1)
    sizes = [b - a for a, b in pairwise([0, *cuts, length])]
    if m.likely(0.5):
        if m.has("split"):
            at["split"] = sizes
        else:
            names = [m.ints("s", sizes)]
    elif m.has("num_outputs"):
        at["num_outputs"] = count
    m.node("Split", [m.operand(shape), *names], outs, **at)
    return m.case(m.pick(*outs), shape)


def expand(m: Maker) -> Case:
    shape = [m.pick(1, 1, 2) for _ in range(m.whole(1, 3))]
    target = [m.pick(1, n, m.whole(1, 3)) if n == 1 else m.pick(1, n) for n in shape]
    return _finish(m, "Expand", shape, [m.ints("s", m.pick(target, [2, *target], target[-1:]))])


def tile(m: Maker) -> Case:
    shape = m.shape(1, 4, 3)
    return _finish(m, "Tile", shape, [m.ints("r", [m.whole(1, 3) for _ in shape])])


def concat(m: Maker) -> Case:
    """Concat of the input, other variables and constants."""
    shape = m.shape(1, 3)
    axis = m.whole(0 if m.opset < 11 else -len(shape), len(shape) - 1)
    names = [m.operand(shape)]
    for i in range(m.whole(0, 2)):
        other = list(shape)
        other[axis] = m.whole(1, 3)
        if m.variable and m.likely(0.5):
            names.append(m.node("Relu" if m.kind in (FLOAT, DOUBLE) else "Identity", [m.given()], f"r{i}"))
        else:
            names.append(m.tensor(f"c{i}", m.draw(other), m.kind))
    m.chance.shuffle(names)
    return m.case(m.node("Concat", names, "z", axis=axis), shape)


def blocks(m: Maker) -> Case:
    """DepthToSpace and SpaceToDepth."""
    assert m.row
    b = m.whole(1, 3)
    if m.row.op == "DepthToSpace":
        shape = [1, b * b * m.whole(1, 2), m.whole(1, 3), m.whole(1, 3)]
        return _finish(m, "DepthToSpace", shape, [], blocksize=b, **m.some(0.7, mode=m.pick("DCR", "CRD")))
    return _finish(m, "SpaceToDepth", [1, m.whole(1, 2), b * m.whole(1, 2), b * m.whole(1, 2)], [], blocksize=b)


def shape_of(m: Maker) -> Case:
    """Shape of a variable or a constant."""
    shape = m.shape(1, 4)
    at = m.some(start=m.whole(-5, 5), end=m.whole(-5, 5))
    source = m.operand(shape)
    if m.variable and m.likely(0.3):
        source = m.node("Relu", [source], "r")
    return m.case(m.node("Shape", [source], "z", **at), shape, INT64)


def cast(m: Maker) -> Case:
    """Cast of the input where that changes nothing, and of constants between all types."""
    target = m.pick(*range(1, 8), BOOL, 10, 11, 12, 13, 16)
    if m.kind in (21, 22):
        shape = [2, 2 * m.whole(1, 3)]
    else:
        shape = m.shape(1, 3)
    how = m.some(saturate=m.pick(0, 1))
    low = 0.0 if m.likely(0.5) else -3.0
    if m.variable and m.kind in (INT32, INT64) and m.likely(0.3):
        return m.case(m.node("Cast", ["x"], "z", to=FLOAT, **how), shape, FLOAT, source=m.kind)
    if m.variable and (m.kind == BOOL or m.likely(0.3)):
        source = m.operand(shape) if m.kind == BOOL else m.node("Cast", ["x"], "t", to=BOOL)
        target = m.pick(FLOAT, 11, BOOL)
        return m.case(m.node("Cast", [source], "z", to=target, **how), shape, target)
    if m.variable and (m.kind in WHOLE or m.likely(0.5)):
        m.computed, target = True, m.pick(*WHOLE)
        names = ["x"] if m.kind in (FLOAT, DOUBLE) else [m.given()]
        if m.kind in (FLOAT, DOUBLE) and target in UNSIGNED:
            names = [m.node("Abs", names, "size")]
        if m.kind in WHOLE and m.likely(0.5):
            target = m.pick(FLOAT, DOUBLE, BOOL)
        return m.case(m.node("Cast", names, "z", to=target, **how), shape, target)
    if m.variable and m.likely(0.5):
        source = m.node("Cast", ["x"], "t", to=m.pick(FLOAT, 11))
        return m.case(m.node("Cast", [source], "z", to=m.pick(FLOAT, 11), **how), shape, m.kind)
    if m.variable and m.likely(0.5):
        target = m.kind
    elif target == 16 and m.opset < 13:
        target = FLOAT
    source = m.operand(shape, low=low, high=100.0)
    if m.variable and target in UNSIGNED:
        source = m.node("Abs", [source], "size")
    return m.case(m.node("Cast", [source], "z", to=target, **how), shape, target)


GENERATORS = {
    same: "Identity Dropout",
    reshape: "Reshape",
    flatten: "Flatten",
    squeeze: "Squeeze",
    unsqueeze: "Unsqueeze",
    transpose: "Transpose",
    cut: "Slice",
    gather: "Gather",
    split: "Split",
    expand: "Expand",
    tile: "Tile",
    concat: "Concat",
    blocks: "DepthToSpace SpaceToDepth",
    shape_of: "Shape",
    cast: "Cast",
}
