"""Second reading: convolutions and pools, by plain index arithmetic.

A window's tap k meets input position `o * stride + k * dilation - pad` of output position o, on each axis; outside
0 .. n - 1 lies padding. Sums run over taps, one small product for each; nothing is laid out or strided.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import product as cross
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from mucg4.check.moves import Meaning, Values, fits, given
from mucg4.check.sums import extreme_over
from mucg4.check.values import UNIT, Fallback, Value, scaled
from mucg4.check.wire import Node
from mucg4.ops.arrays import AnyArray
from mucg4.records import dataclass

if TYPE_CHECKING:
    from mucg4.check.reading import Reading

MOST_TAPS = 2**14  # of one window; not measured


@dataclass(frozen=True)
class Slide:
    """Windows over `size` positions per axis, at `out` places; all tuples have one entry per spatial axis."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    out: tuple[int, ...]
    end: tuple[int, ...] = ()

    def within(self) -> AnyArray:
        """How many taps of each window lie in the image or its stated padding."""
        count = np.ones(1)
        for i, n in enumerate(self.size):
            at = np.arange(self.out[i])[:, None] * self.stride[i] + np.arange(self.kernel[i]) * self.dilation[i]
            count = np.outer(count, np.sum(at < self.begin[i] + n + self.end[i], axis=1)).ravel()
        return count

    def taps(self) -> Iterator[tuple[tuple[int, ...], AnyArray, AnyArray]]:
        """For each tap `(tap, outputs, inputs)`: flat positions of the outputs that meet an input there, and which."""
        if prod(self.kernel) > MOST_TAPS:
            raise Fallback(f"a kernel of {prod(self.kernel)} taps")
        for tap in cross(*(range(k) for k in self.kernel)):
            target, source = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
            for i, k in enumerate(tap):
                o = np.arange(self.out[i])
                at = o * self.stride[i] + k * self.dilation[i] - self.begin[i]
                inside = (at >= 0) & (at < self.size[i])
                target = (target[:, None] * self.out[i] + o[inside]).ravel()
                source = (source[:, None] * self.size[i] + at[inside]).ravel()
            yield tap, target, source


def _listed(node: Node, key: str, rank: int, default: int) -> tuple[int, ...]:
    values = node.attributes.get(key) or (default,) * rank
    if len(values) != rank:
        raise Fallback(f"{key} of {len(values)} entries")
    return tuple(values)


def _slide(node: Node, size: tuple[int, ...], kernel: tuple[int, ...], pool: bool) -> Slide:
    rank = len(size)
    stride, dilation = _listed(node, "strides", rank, 1), _listed(node, "dilations", rank, 1)
    if min(kernel + stride + dilation) < 1:
        raise Fallback("a kernel, stride or dilation below 1")
    mode, spans = (
        node.attributes.get("auto_pad", "NOTSET"),
        tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)),
    )
    begin, end = _listed(node, "pads", 2 * rank, 0)[:rank], _listed(node, "pads", 2 * rank, 0)[rank:]
    if mode == "VALID":
        begin = end = (0,) * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        if max(dilation) > 1 and not pool:
            raise Fallback("auto_pad SAME with a dilation")
        # onnxruntime's pools pad for the kernel without its dilation
        wide = kernel if pool else spans
        need = [(-(-n // s) - 1) * s + w - n for n, s, w in zip(size, stride, wide, strict=True)]
        if pool and min(need) < 0:
            raise Fallback("auto_pad SAME with a stride longer than the kernel")
        need = [max(0, n) for n in need]
        small, large = tuple(n // 2 for n in need), tuple(n - n // 2 for n in need)
        begin, end = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode not in ("NOTSET", ""):
        raise Fallback(f"auto_pad {mode!r}")
    if min(begin + end, default=0) < 0:
        raise Fallback("negative padding")
    room = [n + b + e - span for n, b, e, span in zip(size, begin, end, spans, strict=True)]
    if min(room, default=0) < 0:
        raise Fallback("a kernel larger than its padded input")
    places = [n // s + 1 for n, s in zip(room, stride, strict=True)]
    if node.attributes.get(
        "ceil_mode", 0
    ):  # one more where something is left, if it starts in front of the far padding
        rounded = [-(-n // s) + 1 for n, s in zip(room, stride, strict=True)]
        far = [n + b for n, b in zip(size, begin, strict=True)]
        places = [m - ((m - 1) * s >= f) for m, s, f in zip(rounded, stride, far, strict=True)]
    return Slide(size, kernel, stride, dilation, begin, fits(places), end)


def _flat(x: Value) -> tuple[Value, tuple[int, ...]]:
    """`(points and images, channels, positions)`, and the spatial shape."""
    if not x.rows or len(x.shape) < 3:
        raise Fallback(f"an image of shape {list(x.shape)}")
    shape = (len(x.v) * x.shape[0], x.shape[1], prod(x.shape[2:]))
    return replace(x, v=x.v.reshape(shape), e=None if x.e is None else x.e.reshape(shape)), x.shape[2:]


def _image(source: Value, v: AnyArray, e: AnyArray | None, spatial: tuple[int, ...]) -> Value:
    """The result with the points and images of `source`."""
    shape = (len(source.v), source.shape[0], v.shape[1], *spatial)
    return Value(v.reshape(shape), source.kind, True, None if e is None else e.reshape(shape))


def _kernels(node: Node, xs: Values, rank: int, turned: bool) -> tuple[Value, Value, int]:
    """Weight as `(taps, groups, outputs, inputs)`, each per group, the stored weight, and the number of groups."""
    w, group = given(xs, 1), node.attributes.get("group", 1)
    if w.rows or len(w.shape) != rank + 2 or group < 1 or w.shape[0] % group:
        raise Fallback(f"a weight of shape {list(w.shape)}")
    if tuple(node.attributes.get("kernel_shape") or w.shape[2:]) != w.shape[2:]:
        raise Fallback("kernel_shape contradicts its weight")
    first, second, taps = w.shape[0] // group, w.shape[1], prod(w.shape[2:])
    order = (3, 0, 2, 1) if turned else (3, 0, 1, 2)
    return w.map(lambda v: v.reshape(group, first, second, taps).transpose(order)), w, group


def _sum_of_taps(r: Reading, x: Value, w: Value, slide: Slide, group: int, places: int, turned: bool) -> Value:
    """`(points, inputs, positions)` -> `(points, outputs, places)`; `turned` sends inputs to outputs' places."""
    points, taps, outs = len(x.v), len(w.v), w.v.shape[2] * group
    r.n.spend(points * w.v.size * prod(slide.out))
    r.n.room(points, outs, places)
    r.n.spend(points * outs * places)
    left = x.v.reshape(points, group, -1, x.v.shape[-1])
    weight, scale = (w.v, Fraction(1)) if not r.n.exact else _whole(w.v)
    if r.n.exact:
        left, d = scaled(left)
        scale /= d
    v = np.zeros((points, group, w.v.shape[2], places), dtype=left.dtype)
    for k, (_, target, source) in enumerate(slide.taps()):
        to, at = (source, target) if turned else (target, source)
        v[..., to] += np.matmul(weight[k], left[..., at])
    shape = (points, outs, places)
    if r.n.exact:
        return replace(x, v=(v * scale).reshape(shape))
    # a sum of n products: gamma_n sum |w| |x|, and |x| is at most the largest of its image
    own = (taps * w.v.shape[3] + 2) * UNIT * abs(left).reshape(points, -1).max(axis=1)
    far = own if x.e is None else own + x.e.reshape(points, -1).max(axis=1)
    size = abs(w.v).sum(axis=(0, 3)).ravel()
    e = far[:, None] * size
    if w.e is not None:
        e += abs(left).reshape(points, -1).max(axis=1)[:, None] * w.e.sum(axis=(0, 3)).ravel()
    return replace(x, v=v.reshape(shape), e=np.broadcast_to(e[:, :, None], shape))


def _whole(a: AnyArray) -> tuple[AnyArray, Fraction]:
    integers, d = scaled(a)
    return integers, Fraction(1, d)


def _biased(r: Reading, xs: Values, x: Value) -> list[Value]:
    bias = xs[2] if len(xs) > 2 else None
    if bias is None:
        return [x]
    form = (1, -1) + (1,) * (len(x.shape) - 2)
    return [r.n.add(x, bias.map(lambda v: v.reshape(form)))]


def _conv(r: Reading, node: Node, xs: Values) -> list[Value]:
    source = given(xs, 0)
    x, spatial = _flat(source)
    w, raw, group = _kernels(node, xs, len(spatial), False)
    if x.shape[0] != raw.shape[1] * group:
        raise Fallback(f"{x.shape[0]} channels for a weight of shape {list(raw.shape)}")
    slide = _slide(node, spatial, raw.shape[2:], False)
    out = _sum_of_taps(r, x, w, slide, group, prod(slide.out), False)
    return _biased(r, xs, _image(source, out.v, out.e, slide.out))


def _conv_transpose(r: Reading, node: Node, xs: Values) -> list[Value]:
    """Each input is spread over a window of the output: `o = i * stride + k * dilation - pad`."""
    source = given(xs, 0)
    x, spatial = _flat(source)
    w, raw, group = _kernels(node, xs, len(spatial), True)
    rank, kernel = len(spatial), raw.shape[2:]
    if x.shape[0] != raw.shape[0]:
        raise Fallback(f"{x.shape[0]} channels for a weight of shape {list(raw.shape)}")
    stride, dilation = _listed(node, "strides", rank, 1), _listed(node, "dilations", rank, 1)
    more, pads = _listed(node, "output_padding", rank, 0), _listed(node, "pads", 2 * rank, 0)
    full = [
        s * (n - 1) + m + (k - 1) * d + 1 for n, s, m, k, d in zip(spatial, stride, more, kernel, dilation, strict=True)
    ]
    mode, wanted = node.attributes.get("auto_pad", "NOTSET"), node.attributes.get("output_shape")
    if wanted is None and mode.startswith("SAME"):
        wanted = [n * s for n, s in zip(spatial, stride, strict=True)]
    if wanted is not None:
        if len(wanted) != rank or any(a > f for a, f in zip(wanted, full, strict=True)):
            raise Fallback("this output shape")
        total = [f - a for f, a in zip(full, wanted, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = (*small, *large) if mode == "SAME_UPPER" else (*large, *small)
    elif mode == "VALID":
        pads = (0,) * (2 * rank)
    elif mode not in ("NOTSET", ""):
        raise Fallback(f"auto_pad {mode!r}")
    out = tuple(f - pads[i] - pads[i + rank] for i, f in enumerate(full))
    if min(out + stride + dilation) < 1 or min(pads) < 0:
        raise Fallback("this output shape or padding")
    slide = Slide(fits(out), kernel, stride, dilation, pads[:rank], spatial)
    made = _sum_of_taps(r, x, w, slide, group, prod(out), True)
    return _biased(r, xs, _image(source, made.v, made.e, out))


def _average_pool(r: Reading, node: Node, xs: Values) -> list[Value]:
    source = given(xs, 0)
    x, spatial = _flat(source)
    slide = _slide(node, spatial, _listed(node, "kernel_shape", len(spatial), 0), True)
    places = prod(slide.out)
    ones = Value(np.ones((prod(slide.kernel), x.shape[0], 1, 1)), x.kind)
    total = _sum_of_taps(r, x, ones, slide, x.shape[0], places, False)
    count = np.zeros(places)
    for _, target, _ in slide.taps():
        count[target] += 1.0
    if node.attributes.get("count_include_pad", 0):
        count[:] = slide.within()
    if not count.all():
        raise Fallback("a window that lies in the padding")
    mean = r.n.divide(replace(total, rows=True), Value(count, x.kind))
    return [_image(source, mean.v, mean.e, slide.out)]


def _max_pool(r: Reading, node: Node, xs: Values) -> list[Value]:
    if node.attributes.get("storage_order", 0) or len(node.outputs) > 1:
        raise Fallback("indices of the maxima")
    source = given(xs, 0)
    x, spatial = _flat(source)
    slide = _slide(node, spatial, _listed(node, "kernel_shape", len(spatial), 0), True)
    shape = (*x.v.shape[:2], prod(slide.out))
    r.n.room(*shape)
    r.n.spend(prod(shape) * prod(slide.kernel))
    v, e, seen = (
        np.empty(shape, dtype=x.v.dtype),
        None if x.e is None else np.zeros(shape),
        np.zeros(shape[2], dtype=bool),
    )
    for _, target, met in slide.taps():
        new = x.v[..., met]
        old = np.where(seen[target], v[..., target], new)
        v[..., target] = np.where(new > old, new, old)
        if e is not None:
            e[..., target] = np.maximum(e[..., target], x.e[..., met])  # type: ignore[index]
        seen[target] = True
    if not seen.all():
        raise Fallback("a window that lies in the padding")
    return [_image(source, v, e, slide.out)]


def _global_pool(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    if len(x.shape) < 3:
        raise Fallback(f"an image of shape {list(x.shape)}")
    axes = tuple(range(2, len(x.shape)))
    if node.op == "GlobalMaxPool":
        return [extreme_over(r, x, axes, True, True)]
    return [r.n.divide(r.n.total(x, axes, True), r.n.number(float(prod(x.shape[2:])), x))]


_SLIDING = "auto_pad dilations kernel_shape pads strides"
SLIDES: dict[str, tuple[Meaning, str]] = {
    "Conv": (_conv, f"{_SLIDING} group"),
    "ConvTranspose": (_conv_transpose, f"{_SLIDING} group output_padding output_shape"),
    "AveragePool": (_average_pool, f"{_SLIDING} ceil_mode count_include_pad"),
    "MaxPool": (_max_pool, f"{_SLIDING} ceil_mode storage_order"),
    "GlobalAveragePool": (_global_pool, ""),
    "GlobalMaxPool": (_global_pool, ""),
}
