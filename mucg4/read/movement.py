"""Operators that only move data, each as a function on arrays.

The same function serves constants (applied to the numbers) and variables (applied to positions, which
gives the index map). Each takes the tensor, the node and the constant further inputs (None if absent).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mucg4.ops.base import Array
from mucg4.read.protobuf import OnnxNode

Further = Sequence[Array | None]
Mover = Callable[[Array, OnnxNode, Further], list[Array]]


def _ints(node: OnnxNode, further: Further, at: int, key: str) -> list[int] | None:
    """Axes, sizes and the like: an attribute in old operator sets, an input in new ones."""
    if key in node.attributes:
        return [int(v) for v in node.attributes[key]]
    given = further[at] if len(further) > at else None
    return None if given is None else [int(v) for v in given.ravel()]


def _reshape(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    target = _ints(node, further, 0, "shape")
    if target is None:
        raise node.invalid("no shape")
    if not node.attributes.get("allowzero", 0):
        if any(n == 0 and i >= x.ndim for i, n in enumerate(target)):
            raise node.invalid(f"shape {target} copies a dimension that does not exist")
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    return [x.reshape(target)]


def _flatten(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    axis = node.attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return [x.reshape(int(np.prod(x.shape[:axis])), -1)]


def _squeeze(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    axes = _ints(node, further, 0, "axes")
    return [np.squeeze(x, axis=None if axes is None else tuple(axes))]


def _unsqueeze(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    axes = _ints(node, further, 0, "axes")
    if axes is None:
        raise node.invalid("no axes")
    return [np.expand_dims(x, tuple(axes))]


def _transpose(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    return [np.transpose(x, node.attributes.get("perm"))]


def _slice(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    starts, ends = _ints(node, further, 0, "starts"), _ints(node, further, 1, "ends")
    if starts is None or ends is None:
        raise node.invalid("no starts or no ends")
    axes = _ints(node, further, 2, "axes") or list(range(len(starts)))
    steps = _ints(node, further, 3, "steps") or [1] * len(starts)
    cut = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n = x.shape[axis]
        # ONNX clamps like Python does, save that a downward end below -n means "to the very first"
        stop = None if step < 0 and end < -n else end
        cut[axis] = slice(start, stop, step)
    return [x[tuple(cut)]]


def _gather(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    if not further or further[0] is None:
        raise node.invalid("no indices")
    return [np.take(x, further[0], axis=node.attributes.get("axis", 0))]


def _split(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    axis, count = node.attributes.get("axis", 0), len(node.outputs)
    sizes = _ints(node, further, 0, "split")
    if sizes is None:
        each = -(-x.shape[axis] // count)
        sizes = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    if sum(sizes) != x.shape[axis] or len(sizes) != count:
        raise node.invalid(f"sizes {sizes} do not divide an axis of {x.shape[axis]}")
    return list(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def _expand(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    shape = _ints(node, further, 0, "")
    return [np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape or ())))]


def _tile(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    return [np.tile(x, _ints(node, further, 0, "") or [1])]


def _same(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    if len(further) > 1 and further[1] is not None and bool(np.any(further[1])):
        raise node.unsupported("training mode")
    return [x]


def _depth_to_space(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    b, (n, c, h, w) = node.attributes["blocksize"], x.shape
    if node.attributes.get("mode", "DCR") == "DCR":
        parts = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [parts.reshape(n, c // (b * b), h * b, w * b)]


def _space_to_depth(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    b, (n, c, h, w) = node.attributes["blocksize"], x.shape
    parts = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return [parts.reshape(n, c * b * b, h // b, w // b)]


def _resize(x: Array, node: OnnxNode, further: Further) -> list[Array]:
    """Upsample and Resize to the nearest pixel, by scales or by sizes."""
    if node.attributes.get("mode", "nearest") != "nearest":
        raise node.unsupported(f"mode {node.attributes['mode']!r}")
    old = node.op == "Upsample" or node.opset < 11
    given: list[float] | None = [float(s) for s in node.attributes["scales"]] if "scales" in node.attributes else None
    scales = further[0 if old else 1] if given is None and len(further) > (0 if old else 1) else given
    sizes = further[2] if len(further) > 2 else None
    if sizes is not None and np.size(sizes):
        lengths = [int(n) for n in np.ravel(sizes)]
        factors = [n / m for n, m in zip(lengths, x.shape, strict=True)]
    elif scales is not None and np.size(scales):
        factors = [float(s) for s in np.ravel(scales)]
        lengths = [int(np.floor(m * s)) for m, s in zip(x.shape, factors, strict=True)]
    else:
        raise node.invalid("neither scales nor sizes")
    for axis, (length, factor) in enumerate(zip(lengths, factors, strict=True)):
        if length != x.shape[axis]:
            x = np.take(x, _nearest(node, length, x.shape[axis], factor, old), axis=axis)
    return [x]


def _nearest(node: OnnxNode, length: int, size: int, factor: float, old: bool) -> Array:
    """Which input pixel each of `length` output pixels shows."""
    i = np.arange(length, dtype=np.float64)
    frame = "asymmetric" if old else node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if frame == "half_pixel" or (frame == "pytorch_half_pixel" and length > 1):
        at = (i + 0.5) / factor - 0.5
    elif frame == "align_corners" and length > 1:
        at = i * (size - 1) / (length - 1)
    elif frame == "asymmetric":
        at = i / factor
    else:
        raise node.unsupported(f"coordinate_transformation_mode {frame!r}")
    mode = "floor" if old else node.attributes.get("nearest_mode", "round_prefer_floor")
    rounders: dict[str, Callable[[Array], Array]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    return np.clip(rounders[mode](at), 0, size - 1).astype(np.int64)


# operator -> (function, attributes it understands)
MOVERS: dict[str, tuple[Mover, str]] = {
    "Identity": (_same, ""),
    "Dropout": (_same, "ratio seed is_test"),
    "Reshape": (_reshape, "shape allowzero"),
    "Flatten": (_flatten, "axis"),
    "Squeeze": (_squeeze, "axes"),
    "Unsqueeze": (_unsqueeze, "axes"),
    "Transpose": (_transpose, "perm"),
    "Slice": (_slice, "starts ends axes"),
    "Gather": (_gather, "axis"),
    "Split": (_split, "axis split num_outputs"),
    "Expand": (_expand, ""),
    "Tile": (_tile, ""),
    "DepthToSpace": (_depth_to_space, "blocksize mode"),
    "SpaceToDepth": (_space_to_depth, "blocksize"),
    "Upsample": (_resize, "mode scales"),
    "Resize": (
        _resize,
        "mode coordinate_transformation_mode nearest_mode cubic_coeff_a exclude_outside extrapolation_value "
        "antialias keep_aspect_ratio_policy",
    ),
}
