"""Second reading: operators that move data, and integers that describe shapes. From the ONNX operator pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from mucg4.check.values import Fallback, Value
from mucg4.check.wire import Node
from mucg4.ops.arrays import AnyArray

if TYPE_CHECKING:
    from mucg4.check.reading import Reading

LARGEST = 2**23  # numbers of a tensor that an operator makes, at one point; not measured
Values = Sequence[Value | None]
Meaning = Callable[["Reading", Node, Values], list[Value]]


def given(xs: Values, at: int) -> Value:
    """An input that must be there."""
    x = xs[at] if at < len(xs) else None
    if x is None:
        raise Fallback(f"input {at} is missing")
    return x


def fixed(xs: Values, at: int) -> AnyArray | None:
    """A constant input's exact numbers, or None when it is absent."""
    x = xs[at] if at < len(xs) else None
    if x is None:
        return None
    if x.rows or x.e is not None:
        raise Fallback(f"input {at} is not a stored constant")
    return x.v


def whole(node: Node, xs: Values, at: int, key: str) -> list[int] | None:
    """Integers: an attribute in old operator sets, a constant input in new ones."""
    if key in node.attributes:
        return [int(v) for v in node.attributes[key]]
    v = fixed(xs, at)
    return None if v is None else [int(n) for n in v.ravel()]


def axis_of(axis: int, rank: int) -> int:
    """A possibly negative axis as 0 .. rank - 1."""
    if not -rank <= axis < rank:
        raise Fallback(f"axis {axis} of a tensor of rank {rank}")
    return axis + rank if axis < 0 else axis


def fits(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that is not too large."""
    size = 1
    for n in shape:
        size *= n
        if n < 0 or size > LARGEST:
            raise Fallback("a tensor of too many numbers")
    return tuple(shape)


def _identity(r: Reading, node: Node, xs: Values) -> list[Value]:
    if node.op == "Dropout" and (node.attributes.get("is_test", 1) == 0 or np.any(fixed(xs, 2) or 0)):
        raise Fallback("training mode")
    return [given(xs, 0)]


def _reshape(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, target = given(xs, 0), whole(node, xs, 1, "shape")
    if target is None:
        raise Fallback("no shape")
    if not node.attributes.get("allowzero", 0):
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    known = int(np.prod([n for n in target if n != -1], dtype=object))
    if -1 in target:
        target[target.index(-1)] = int(np.prod(x.shape, dtype=object)) // known
    return [x.map(lambda a: a.reshape(target))]


def _flatten(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    axis = node.attributes.get("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    rows = int(np.prod(x.shape[:axis], dtype=object))
    return [x.map(lambda a: a.reshape(rows, a.size // rows))]


def _squeeze(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, axes = given(xs, 0), whole(node, xs, 1, "axes")
    rank = len(x.shape)
    gone = [i for i, n in enumerate(x.shape) if n == 1] if axes is None else [axis_of(a, rank) for a in axes]
    if any(x.shape[i] != 1 for i in gone):
        raise Fallback("a squeezed axis is longer than 1")
    shape = [n for i, n in enumerate(x.shape) if i not in gone]
    return [x.map(lambda a: a.reshape(shape))]


def _unsqueeze(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, axes = given(xs, 0), whole(node, xs, 1, "axes")
    if axes is None:
        raise Fallback("no axes")
    rank = len(x.shape) + len(axes)
    new, rest = {axis_of(a, rank) for a in axes}, iter(x.shape)
    if len(new) != len(axes):
        raise Fallback("an axis occurs twice")
    shape = [1 if i in new else next(rest) for i in range(rank)]
    return [x.map(lambda a: a.reshape(shape))]


def _transpose(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    order = node.attributes.get("perm", tuple(range(len(x.shape)))[::-1])
    return [x.map(lambda a: a.transpose(order))]


def _slice(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, starts, ends = given(xs, 0), whole(node, xs, 1, "starts"), whole(node, xs, 2, "ends")
    if starts is None or ends is None or len(starts) != len(ends):
        raise Fallback("no starts or no ends")
    axes, steps = whole(node, xs, 3, "axes"), fixed(xs, 4)
    axes = list(range(len(starts))) if axes is None else axes
    step = [1] * len(starts) if steps is None else [int(s) for s in steps.ravel()]
    if not len(axes) == len(step) == len(starts) or len({axis_of(a, len(x.shape)) for a in axes}) != len(axes):
        raise Fallback("axes or steps do not match")
    picks = [np.arange(n) for n in x.shape]
    for start, end, axis, by in zip(starts, ends, axes, step, strict=True):
        at = axis_of(axis, len(x.shape))
        n = x.shape[at]
        start, end = (v + n if v < 0 else v for v in (start, end))
        if by > 0:
            picks[at] = np.arange(min(max(start, 0), n), min(max(end, 0), n), by)
        elif by < 0:
            picks[at] = np.arange(min(max(start, 0), n - 1), min(max(end, -1), n - 1), by)
        else:
            raise Fallback("a step of 0")
    return [x.map(lambda a: a[np.ix_(*picks)])]


def _gather(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, index = given(xs, 0), fixed(xs, 1)
    if index is None or index.dtype.kind != "i":
        raise Fallback("no indices")
    axis = axis_of(node.attributes.get("axis", 0), len(x.shape))
    n = x.shape[axis]
    if np.any(index < -n) or np.any(index >= n):
        raise Fallback("an index outside its axis")
    fits((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))
    at = np.where(index < 0, index + n, index)
    return [x.map(lambda a: a[(slice(None),) * axis + (at,)])]


def _split(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, sizes = given(xs, 0), whole(node, xs, 1, "split")
    axis = axis_of(node.attributes.get("axis", 0), len(x.shape))
    n, count = x.shape[axis], len(node.outputs)
    if sizes is None:
        each = -(-n // count)
        sizes = [each] * (count - 1) + [n - each * (count - 1)]
        if sizes[-1] != each and "num_outputs" not in node.attributes:
            raise Fallback("an axis that does not divide evenly")
    if sum(sizes) != n or len(sizes) != count or min(sizes) < 0:
        raise Fallback(f"sizes {sizes} of an axis of {n}")
    out, start = [], 0
    for size in sizes:
        cut = (slice(None),) * axis + (slice(start, start + size),)
        out.append(x.map(lambda a, cut=cut: a[cut]))  # type: ignore[misc]
        start += size
    return out


def _expand(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, target = given(xs, 0), whole(node, xs, 1, "")
    if target is None:
        raise Fallback("no shape")
    shape = fits(np.broadcast_shapes(x.shape, fits(target)))
    return [x.map(lambda a: np.broadcast_to(a, shape))]


def _tile(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, repeats = given(xs, 0), whole(node, xs, 1, "")
    if repeats is None or len(repeats) != len(x.shape) or min(repeats, default=1) < 1:
        raise Fallback("repeats that do not match")
    picks = [
        np.arange(m) % n
        for n, m in zip(x.shape, fits([n * k for n, k in zip(x.shape, repeats, strict=True)]), strict=True)
    ]
    return [x.map(lambda a: a[np.ix_(*picks)])]


def _concat(r: Reading, node: Node, xs: Values) -> list[Value]:
    parts = [x for x in xs if x is not None]
    axis = axis_of(node.attributes["axis"], len(parts[0].shape))
    fits([*parts[0].shape[:axis], sum(x.shape[axis] for x in parts), *parts[0].shape[axis + 1 :]])
    rows = next((len(x.v) for x in parts if x.rows), None)
    if rows is None:
        v = np.concatenate([x.v for x in parts], axis=axis)
        return [replace(parts[0], v=v, e=_errors(parts, [x.v.shape for x in parts], axis))]
    parts = [x if x.rows else r.n.real(x) for x in parts]
    shapes = [(rows, *x.shape) for x in parts]
    v = np.concatenate([np.broadcast_to(x.v, s) for x, s in zip(parts, shapes, strict=True)], axis=axis + 1)
    kind = next(x.kind for x in parts if x.rows)
    return [Value(v, kind, True, _errors(parts, shapes, axis + 1))]


def _errors(parts: Sequence[Value], shapes: Sequence[tuple[int, ...]], axis: int) -> AnyArray | None:
    if all(x.e is None for x in parts):
        return None
    own = [np.broadcast_to(0.0 if x.e is None else x.e, s) for x, s in zip(parts, shapes, strict=True)]
    return np.concatenate(own, axis=axis)


def _pad(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    pads, axes = whole(node, xs, 1, "pads"), fixed(xs, 3)
    rank = len(x.shape)
    chosen = list(range(rank)) if axes is None else [axis_of(int(a), rank) for a in axes.ravel()]
    if pads is None or len(pads) != 2 * len(chosen) or len(set(chosen)) != len(chosen):
        raise Fallback("pads that do not match")
    mode = node.attributes.get("mode", "constant")
    positions = [np.arange(n) for n in x.shape]
    for i, axis in enumerate(chosen):
        n = x.shape[axis]
        fits([n + pads[i] + pads[i + len(chosen)]])
        at = np.arange(-pads[i], n + pads[i + len(chosen)])
        if mode == "constant":
            at = np.where((at >= 0) & (at < n), at, -1)
        elif mode == "edge":
            at = np.clip(at, 0, n - 1)
        elif mode == "wrap" and np.all(at >= -n) and np.all(at < 2 * n):
            at = at % n
        elif mode == "reflect" and np.all(at > -n) and np.all(at < 2 * n - 1):
            at = np.where(abs(at) < n, abs(at), 2 * (n - 1) - at)
        else:
            raise Fallback(f"mode {mode!r}")
        positions[axis] = at
    fits([len(p) for p in positions])
    kept = x.map(lambda a: a[np.ix_(*(np.maximum(p, 0) for p in positions))])
    if mode != "constant":
        return [kept]
    fill = fixed(xs, 2)
    number = node.attributes.get("value", 0.0) if fill is None else fill.reshape(-1)[0]
    inside = np.ones([len(p) for p in positions], dtype=bool)
    for axis, p in enumerate(positions):
        inside &= (p >= 0).reshape([-1 if i == axis else 1 for i in range(rank)])
    return [r.n.choose(inside, kept, r.n.real(r.n.number(float(number), x)))]


def _depth_to_space(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, b = given(xs, 0), node.attributes["blocksize"]
    n, c, h, w = x.shape
    k = c // (b * b)
    if node.attributes.get("mode", "DCR") == "DCR":
        return [x.map(lambda a: a.reshape(n, b, b, k, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, k, h * b, w * b))]
    return [x.map(lambda a: a.reshape(n, k, b, b, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, k, h * b, w * b))]


def _space_to_depth(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, b = given(xs, 0), node.attributes["blocksize"]
    n, c, h, w = x.shape
    shape = (n, b * b * c, h // b, w // b)
    return [x.map(lambda a: a.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4).reshape(shape))]


# -- resizing to the nearest pixel ---------------------------------------------------------------------------------


def _resize(r: Reading, node: Node, xs: Values) -> list[Value]:
    """Coordinates are computed in float32, as onnxruntime does."""
    x, a = given(xs, 0), node.attributes
    mode = a.get("mode", "nearest")
    if mode not in ("nearest", "linear") or (mode == "linear" and a.get("exclude_outside", 0)):
        raise Fallback(f"mode {mode!r}")
    if a.get("antialias", 0):
        raise Fallback("antialias")
    old = node.op == "Upsample" or r.opset < 11
    scales = np.array(a["scales"]) if "scales" in a else fixed(xs, 1 if old else 2)
    sizes = None if old else whole(node, xs, 3, "")
    if sizes:
        ratios = np.array([np.float32(m) / np.float32(n) for m, n in zip(sizes, x.shape, strict=True)])
        policy = a.get("keep_aspect_ratio_policy", "stretch")
        if policy in ("not_larger", "not_smaller"):
            one = ratios.min() if policy == "not_larger" else ratios.max()
            ratios = np.full(len(sizes), one)
            sizes = [int(np.floor(np.float32(one * np.float32(n)) + np.float32(0.5))) for n in x.shape]
        elif policy != "stretch":
            raise Fallback(f"keep_aspect_ratio_policy {policy!r}")
    elif scales is not None and scales.size:
        ratios = scales.astype(np.float32).ravel()
        sizes = [int(np.floor(np.float32(n) * s)) for n, s in zip(x.shape, ratios, strict=True)]
    else:
        raise Fallback("neither scales nor sizes")
    if tuple(fits(sizes)) == x.shape:  # onnxruntime copies, whatever the scales are
        return [x]
    if mode == "linear":
        stretch = bool(whole(node, xs, 3, "")) and not old and a.get("keep_aspect_ratio_policy", "stretch") == "stretch"
        for axis, (m, n, s) in enumerate(zip(sizes, x.shape, ratios, strict=True)):
            by = Fraction(m, n) if stretch else Fraction(float(s))
            x = _between(r, node, x, axis, m, by, old)
        return [x]
    picks = [_nearest(node, m, n, np.float32(s), old) for m, n, s in zip(sizes, x.shape, ratios, strict=True)]
    return [x.map(lambda v: v[np.ix_(*picks)])]


def _between(r: Reading, node: Node, x: Value, axis: int, length: int, scale: Fraction, old: bool) -> Value:
    """Along one axis, each new pixel from the two around its place: the nearer, the more."""
    size = x.shape[axis]
    if scale == 1 and length == size:
        return x
    frame = "asymmetric" if old else node.attributes.get("coordinate_transformation_mode", "half_pixel")
    places = []
    for i in range(length):
        if frame == "asymmetric":
            at = i / scale
        elif frame == "align_corners":
            at = Fraction(i * (size - 1), max(1, length - 1))
        elif frame in ("half_pixel", "pytorch_half_pixel"):
            at = (2 * i + 1) / (2 * scale) - Fraction(1, 2)
            at = Fraction(0) if frame != "half_pixel" and length == 1 else at
        else:
            raise Fallback(f"coordinate_transformation_mode {frame!r}")
        places.append(max(Fraction(0), min(at, Fraction(size - 1))))
    first = np.array([int(p) for p in places])  # they are not negative
    second = np.minimum(first + 1, size - 1)
    form = [-1 if i == axis else 1 for i in range(len(x.shape))]
    share = r.n.real(Value(np.array([float(p - int(p)) for p in places]).reshape(form), x.kind))
    left, right = (x.map(lambda v, at=at: np.take(v, at, axis=axis)) for at in (first, second))  # type: ignore[misc]
    return r.n.add(left, r.n.multiply(share, r.n.add(right, left, -1)))


def _nearest(node: Node, length: int, size: int, scale: np.float32, old: bool) -> AnyArray:
    """Which of `size` pixels each of `length` shows."""
    if scale == 1:
        return np.minimum(np.arange(length), size - 1)
    i, half = np.arange(length, dtype=np.float32), np.float32(0.5)
    frame = "asymmetric" if old else node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if frame == "half_pixel" or (frame == "pytorch_half_pixel" and length > 1):
        at = (i + half) / scale - half
    elif frame == "pytorch_half_pixel" or (frame == "align_corners" and length == 1):
        at = i * np.float32(0)
    elif frame == "align_corners":
        at = i * np.float32(size - 1) / np.float32(length - 1)
    elif frame == "asymmetric":
        at = i / scale
    else:
        raise Fallback(f"coordinate_transformation_mode {frame!r}")
    mode = ("ceil" if scale < 1 else "floor") if old else node.attributes.get("nearest_mode", "round_prefer_floor")
    down, up = np.floor(at), np.ceil(at)
    if mode.startswith("round_prefer_"):
        tie = at - down == half
        near = np.where(at - down < half, down, up)
        pixel = np.where(tie, down if mode == "round_prefer_floor" else up, near)
    elif mode in ("floor", "ceil"):
        pixel = down if mode == "floor" else up
    else:
        raise Fallback(f"nearest_mode {mode!r}")
    return np.asarray(np.clip(pixel, 0, size - 1), dtype=np.int64)


MOVES: dict[str, tuple[Meaning, str]] = {
    "Identity": (_identity, ""),
    "Dropout": (_identity, "ratio seed is_test"),
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
    "Concat": (_concat, "axis"),
    "Pad": (_pad, "mode pads value"),
    "DepthToSpace": (_depth_to_space, "blocksize mode"),
    "SpaceToDepth": (_space_to_depth, "blocksize"),
    "Upsample": (_resize, "mode scales"),
    "Resize": (
        _resize,
        "mode coordinate_transformation_mode nearest_mode cubic_coeff_a extrapolation_value keep_aspect_ratio_policy "
        "exclude_outside antialias",
    ),
}
