"""Operators that only move data, each as a function on arrays.

The same function serves constants (applied to the numbers) and variables (applied to positions, which
gives the index map). Each takes the tensor, the node and the constant further inputs (None if absent).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor, prod

import numpy as np

from mucg4.ops.arrays import AnyArray
from mucg4.read.protobuf import OnnxNode

Further = Sequence[AnyArray | None]
LARGEST_LENGTH = 2**20  # pixels along an axis after Resize; float32 tells so many apart; given
Mover = Callable[[AnyArray, OnnxNode, Further], list[AnyArray]]


def _ints(node: OnnxNode, further: Further, at: int, key: str) -> list[int] | None:
    """Axes, sizes and the like: an attribute in old operator sets, an input in new ones."""
    if key in node.attributes:
        return [int(v) for v in node.attributes[key]]
    given = further[at] if len(further) > at else None
    if given is None:
        return None
    if given.dtype not in (np.int64, np.int32) or given.ndim > 1:
        raise node.invalid(f"its input {at + 1} is no list of integers")
    return [int(v) for v in given.ravel()]


def _axis(node: OnnxNode, x: AnyArray, axis: int) -> int:
    return node.axes((axis,), x.ndim)[0]


def _reshape(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    target = _ints(node, further, 0, "")
    if target is None:
        raise node.invalid("no shape")
    if not node.attributes.get("allowzero", 0):
        if any(n == 0 and i >= x.ndim for i, n in enumerate(target)):
            raise node.invalid(f"shape {target} copies a dimension that does not exist")
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    if min(target, default=0) < -1:
        raise node.invalid(f"shape {target}")
    return [x.reshape(target)]


def _flatten(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    axis = node.attributes.get("axis", 1)
    if not -x.ndim <= axis <= x.ndim:
        raise node.invalid(f"axis {axis} of a tensor of rank {x.ndim}")
    axis = axis + x.ndim if axis < 0 else axis
    return [x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))]


def _squeeze(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    axes = _ints(node, further, 0, "axes")
    return [np.squeeze(x, axis=None if axes is None else node.axes(axes, x.ndim))]


def _unsqueeze(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    axes = _ints(node, further, 0, "axes")
    if axes is None:
        raise node.invalid("no axes")
    return [np.expand_dims(x, node.axes(axes, x.ndim + len(axes)))]


def _transpose(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    order = node.attributes.get("perm", tuple(range(x.ndim))[::-1])
    if sorted(order) != list(range(x.ndim)):
        raise node.invalid(f"perm {list(order)} of a tensor of rank {x.ndim}")
    return [np.transpose(x, order)]


def _slice(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    starts, ends = _ints(node, further, 0, "starts"), _ints(node, further, 1, "ends")
    if starts is None or ends is None:
        raise node.invalid("no starts or no ends")
    axes = _ints(node, further, 2, "axes") or list(range(len(starts)))
    steps = _ints(node, further, 3, "") or [1] * len(starts)
    node.axes(axes, x.ndim)
    cut = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step == 0:
            raise node.invalid("a step of zero")
        cut[axis] = _run(start, end, step, x.shape[axis])
    return [x[tuple(cut)]]


def _run(start: int, end: int, step: int, n: int) -> slice:
    """ONNX's rule for one axis of length n: ends outside count as the nearest that is inside."""
    start, end = (v + n if v < 0 else v for v in (start, end))
    if step > 0:
        return slice(min(max(start, 0), n), min(max(end, 0), n), step)
    start, end = min(max(start, 0), n - 1), min(max(end, -1), n - 1)
    return slice(start, None if end < 0 else end, step)


def _gather(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    if not further or further[0] is None:
        raise node.invalid("no indices")
    if further[0].dtype not in (np.int64, np.int32):
        raise node.invalid("its indices are no integers")
    axis = _axis(node, x, node.attributes.get("axis", 0))
    node.sized((*x.shape[:axis], *further[0].shape, *x.shape[axis + 1 :]))
    return [np.take(x, further[0], axis=axis)]


def _gather_nd(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    """Slices of x at index tuples."""
    at, batch = _indices(node, further), node.attributes.get("batch_dims", 0)
    depth = at.shape[-1] if at.ndim else 0
    if not (0 <= batch < min(max(at.ndim, 1), max(x.ndim, 1)) and 1 <= depth <= x.ndim - batch):
        raise node.invalid(f"indices of shape {list(at.shape)} for a tensor of rank {x.ndim}")
    if at.shape[:batch] != x.shape[:batch]:
        raise node.invalid("its batch dimensions differ")
    node.sized((*at.shape[:-1], *x.shape[batch + depth :]))
    grid = np.indices(at.shape[:-1])[:batch]
    parts = tuple(wrapped(node, at[..., i], x.shape[batch + i]) for i in range(depth))
    return [x[tuple(grid) + parts]]


def _gather_elements(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    at, axis = _indices(node, further), _axis(node, x, node.attributes.get("axis", 0))
    if at.ndim != x.ndim or any(m > n for i, (m, n) in enumerate(zip(at.shape, x.shape, strict=True)) if i != axis):
        raise node.invalid(f"indices of shape {list(at.shape)} for a tensor of shape {list(x.shape)}")
    node.sized(at.shape)
    grid: list[AnyArray] = list(np.indices(at.shape))
    grid[axis] = wrapped(node, at, x.shape[axis])
    return [x[tuple(grid)]]


def _indices(node: OnnxNode, further: Further) -> AnyArray:
    if not further or further[0] is None or further[0].dtype not in (np.int64, np.int32):
        raise node.invalid("its indices are missing, or no integers")
    return further[0]


def wrapped(node: OnnxNode, at: AnyArray, n: int) -> AnyArray:
    """Indices counted from the front."""
    if np.any((at < -n) | (at >= n)):
        raise node.invalid(f"an index outside an axis of {n}")
    return np.where(at < 0, at + n, at)


def _split(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    axis, count = _axis(node, x, node.attributes.get("axis", 0)), len(node.outputs)
    sizes, parts = _ints(node, further, 0, "split"), node.attributes.get("num_outputs")
    if parts is not None and (parts != count or sizes is not None):
        raise node.invalid(f"num_outputs {parts} with {count} outputs{' beside sizes' if sizes else ''}")
    if sizes is None:
        each = -(-x.shape[axis] // count)
        if each * count != x.shape[axis] and parts is None:
            raise node.invalid(f"{count} equal parts of an axis of {x.shape[axis]}")
        sizes = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    if sum(sizes) != x.shape[axis] or len(sizes) != count or min(sizes) < 0:
        raise node.invalid(f"sizes {sizes} do not divide an axis of {x.shape[axis]}")
    return list(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def _expand(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    shape = _ints(node, further, 0, "")
    return [np.broadcast_to(x, node.sized(np.broadcast_shapes(x.shape, tuple(shape or ()))))]


def _tile(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    counts = _ints(node, further, 0, "")
    if counts is None or len(counts) != x.ndim or min(counts, default=0) < 0:
        raise node.invalid(f"repeats {counts} of a tensor of rank {x.ndim}")
    node.sized([n * k for n, k in zip(x.shape, counts, strict=True)])
    return [np.tile(x, counts)]


def _same(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    if len(further) > 1 and further[1] is not None and bool(np.any(further[1])):
        raise node.unsupported("training mode")
    return [x]


def _blocks(x: AnyArray, node: OnnxNode) -> tuple[int, tuple[int, int, int, int]]:
    if x.ndim != 4 or "blocksize" not in node.attributes:
        raise node.invalid(f"it needs a blocksize and an image, here is a tensor of shape {list(x.shape)}")
    n, c, h, w = x.shape
    return node.attributes["blocksize"], (n, c, h, w)


def _depth_to_space(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    b, (n, c, h, w) = _blocks(x, node)
    if node.attributes.get("mode", "DCR") == "DCR":
        parts = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [parts.reshape(n, c // (b * b), h * b, w * b)]


def _space_to_depth(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    b, (n, c, h, w) = _blocks(x, node)
    parts = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return [parts.reshape(n, c * b * b, h // b, w // b)]


def resize_lengths(node: OnnxNode, shape: tuple[int, ...], further: Further) -> tuple[list[int], list[Fraction]]:
    """What Upsample and Resize make of each axis: its length, and its scale as a fraction."""
    scales, sizes = _resize_targets(node, further, len(shape))
    if scales is None:
        assert sizes is not None
        ratios = [Fraction(m, n) for m, n in zip(sizes, shape, strict=True)]
        singles, lengths = _with_aspect(node, shape, np.array(sizes, np.float32) / np.array(shape, np.float32), sizes)
        if lengths is not sizes:
            ratios = [Fraction(float(s)) for s in singles]
    else:
        ratios = [Fraction(float(s)) for s in scales]
        lengths = [_length(node, n, s) for n, s in zip(shape, scales, strict=True)]
    if min(lengths, default=1) < 1 or max(node.sized(lengths), default=1) > LARGEST_LENGTH:
        raise node.invalid(f"sizes {lengths}")
    return lengths, ratios


def _resize(x: AnyArray, node: OnnxNode, further: Further) -> list[AnyArray]:
    """Upsample and Resize to the nearest pixel, by scales or by sizes."""
    lengths, ratios = resize_lengths(node, x.shape, further)
    scales = [np.float32(float(r)) for r in ratios]
    if tuple(lengths) == x.shape:
        return [x]  # whatever the scales: onnxruntime copies
    for axis, (length, scale) in enumerate(zip(lengths, scales, strict=True)):
        if scale != 1.0:
            x = np.take(x, _nearest(node, length, x.shape[axis], scale), axis=axis)
    return [x]


def _with_aspect(
    node: OnnxNode, shape: tuple[int, ...], scales: AnyArray, sizes: list[int]
) -> tuple[AnyArray, list[int]]:
    """Scales and sizes under the attribute keep_aspect_ratio_policy, which takes one scale for all axes."""
    policy = node.attributes.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return scales, sizes
    one = scales.min() if policy == "not_larger" else scales.max()
    lengths = [floor(float(one) * n + 0.5) for n in shape]
    if any(abs(float(one) * n + 0.5 - round(float(one) * n + 0.5)) < 1e-5 * (1 + n) for n in shape):
        raise node.unsupported(f"keep_aspect_ratio_policy {policy!r}: rounding decides the size")
    return np.full(len(shape), one, np.float32), lengths


def _resize_targets(node: OnnxNode, further: Further, rank: int) -> tuple[AnyArray | None, list[int] | None]:
    """Either float32 scales or sizes, one per axis."""
    scales: AnyArray | None
    if "scales" in node.attributes:
        scales, sizes = np.array(node.attributes["scales"], np.float32), None
    else:
        at = 0 if node.opset < 11 else 1
        scales, sizes = further[at] if len(further) > at else None, _ints(node, further, 2, "")
    scales = None if scales is None or not scales.size else scales
    sizes = sizes or None
    if (scales is None) == (sizes is None):
        raise node.invalid("it needs either scales or sizes")
    if scales is not None and (scales.dtype != np.float32 or scales.shape != (rank,) or not np.all(scales > 0)):
        raise node.invalid(f"its scales do not fit a tensor of rank {rank}")
    if scales is not None and (not np.all(np.isfinite(scales)) or node.op == "Upsample" and np.any(scales < 1)):
        raise node.invalid("its scales are out of range")
    if sizes is not None and len(sizes) != rank:
        raise node.invalid(f"{len(sizes)} sizes for a tensor of rank {rank}")
    return scales, sizes


def _length(node: OnnxNode, size: int, scale: np.float32) -> int:
    """`floor(size * scale)`, where float32 and real arithmetic agree."""
    real, single = floor(float(scale) * size), np.float32(size) * scale  # the first product is exact
    if floor(float(single)) != real:
        raise node.unsupported(f"a scale of {float(scale)!r} on {size} pixels: rounding decides the length")
    return real


def _nearest(node: OnnxNode, length: int, size: int, scale: np.float32) -> AnyArray:
    """Which input pixel each of `length` output pixels shows.

    onnxruntime computes the place in float32. Where the place is not exact there and rounding decides which
    pixel it is, the operator is refused: a release with another order of operations may show another pixel.
    """
    old = node.opset < 11
    frame = "asymmetric" if old else node.attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = ("ceil" if scale < 1 else "floor") if old else node.attributes.get("nearest_mode", "round_prefer_floor")
    i, half = np.arange(length, dtype=np.float32), np.float32(0.5)
    exact = np.arange(length, dtype=np.float64)
    if frame == "align_corners":
        place = i * np.float32(size - 1) / np.float32(max(1, length - 1))
        real = exact * (size - 1) / max(1, length - 1)
    elif frame == "asymmetric":
        place, real = i / scale, exact / float(scale)
    elif frame == "pytorch_half_pixel" and length == 1:
        place, real = 0.0 * i, 0.0 * exact
    else:
        place, real = (i + half) / scale - half, (exact + 0.5) / float(scale) - 0.5
    room = 1e-5 * (1.0 + abs(real))
    pixel = _rounded(real, rounding)
    agreed = (_rounded(real - room, rounding) == pixel) & (_rounded(real + room, rounding) == pixel)
    agreed |= place == real
    inside = [np.clip(_rounded(real + d, rounding), 0, size - 1) for d in (-room, 0.0, room)]
    agreed |= (inside[0] == inside[1]) & (inside[2] == inside[1])
    if not np.all(agreed):
        detail = f"a scale of {float(scale)!r} from {size} to {length} pixels: rounding decides the pixel"
        raise node.unsupported(detail)
    return np.asarray(inside[1].astype(np.int64))


def _rounded(place: AnyArray, mode: str) -> AnyArray:
    """The four ways to round a place to a pixel."""
    if mode == "floor":
        return np.asarray(np.floor(place))
    if mode == "ceil":
        return np.asarray(np.ceil(place))
    return np.asarray(np.ceil(place - 0.5) if mode == "round_prefer_floor" else np.floor(place + 0.5))


# operator -> function; what of it is read stands in `mucg4.read.table`
MOVERS: dict[str, Mover] = {
    "Identity": _same,
    "Dropout": _same,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GatherElements": _gather_elements,
    "Split": _split,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Upsample": _resize,
    "Resize": _resize,
}
