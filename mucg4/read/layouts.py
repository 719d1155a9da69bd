"""Which entries go where, for operators on constants and on variables alike: Trilu, CumSum, scattering."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from mucg4.ops.arrays import AnyArray
from mucg4.read.constant import Constant
from mucg4.read.movement import wrapped
from mucg4.read.protobuf import INT32, INT64, OnnxNode


def triangle(node: OnnxNode, shape: Sequence[int], offset: Constant | None) -> AnyArray:
    """Which entries Trilu keeps."""
    if len(shape) < 2:
        raise node.invalid(f"an input of shape {list(shape)}")
    k = 0
    if offset is not None:
        if offset.value.size != 1:
            raise node.invalid("its diagonal is not one number")
        k = max(-(2**30), min(2**30, offset.integers()[0]))
    upper = bool(node.attributes.get("upper", 1))
    kept = np.triu(np.ones(shape[-2:]), k) if upper else np.tril(np.ones(shape[-2:]), k)
    return np.broadcast_to(kept > 0, tuple(shape))


def running(node: OnnxNode, shape: Sequence[int], axis: Constant) -> tuple[int, AnyArray]:
    """The axis of a CumSum, and its matrix `(outputs, inputs)` of zeros and ones."""
    if axis.kind not in (INT32, INT64) or axis.value.size != 1:
        raise node.invalid("its axis is not one integer")
    at = node.axes(axis.integers(), len(shape))[0]
    node.sized((shape[at], shape[at]))
    weight = np.tril(np.ones((shape[at], shape[at])), -int(node.attributes.get("exclusive", 0)))
    return at, np.ascontiguousarray(weight[::-1, ::-1] if node.attributes.get("reverse", 0) else weight)


def scattered(node: OnnxNode, shape: tuple[int, ...], indices: Constant, updated: tuple[int, ...]) -> AnyArray:
    """For each entry of the result its place in data and updates one behind the other."""
    if node.attributes.get("reduction", "none") != "none":
        raise node.unsupported(f"reduction {node.attributes['reduction']!r}")
    at = indices.stated(node, "its indices")
    if at.dtype.kind != "i" or not len(shape):
        raise node.invalid("its indices are no integers, or its data is one number")
    layout = np.arange(prod(shape)).reshape(shape)
    source = prod(shape) + np.arange(prod(updated)).reshape(updated)
    if node.op == "ScatterND":
        depth = at.shape[-1] if at.ndim else 0
        if not 1 <= depth <= len(shape) or updated != (*at.shape[:-1], *shape[depth:]):
            raise node.invalid(f"updates of shape {list(updated)} for indices of shape {list(at.shape)}")
        where: tuple[AnyArray, ...] = tuple(wrapped(node, at[..., i], n) for i, n in enumerate(shape[:depth]))
        count = prod(at.shape[:-1])
        flat = np.ravel_multi_index(where, shape[:depth]) if count else np.zeros(0, dtype=np.int64)
    else:
        axis = node.axes((node.attributes.get("axis", 0),), len(shape))[0]
        if (
            at.ndim != len(shape)
            or updated != at.shape
            or any(m > n for i, (m, n) in enumerate(zip(at.shape, shape, strict=True)) if i != axis)
        ):
            raise node.invalid(f"updates of shape {list(updated)} for indices of shape {list(at.shape)}")
        grid = np.indices(at.shape)
        where = tuple(wrapped(node, at, shape[axis]) if i == axis else grid[i] for i in range(len(shape)))
        flat, count = np.ravel_multi_index(where, shape), at.size
    if len(np.unique(flat)) != count:
        raise node.unsupported("two updates of one place")
    layout[where] = source
    return layout
