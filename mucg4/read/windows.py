"""Convolutions and pools on variables, over one to three axes and for any number of images.

The canonical convolutions know two axes and one image: images, and of volumes the depth, are folded into the channels.
"""

from __future__ import annotations

from functools import reduce
from math import prod

import numpy as np

from mucg4.ops.affine import Reduce
from mucg4.ops.arrays import FloatArray, IntArray
from mucg4.ops.conv import Conv, ConvTranspose, Window
from mucg4.read import constant
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.constant import Constant, number
from mucg4.read.operators import Handler, Values, optional_constant, required_constant, variable
from mucg4.read.protobuf import OnnxNode
from mucg4.records import dataclass

# kernel sizes, strides, pads and the like beyond this are no numbers to compute with; not measured
LARGEST_WINDOW = 2**24
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Slide:
    """How windows slide over an image; tuples have one entry per spatial axis. `out` is how many places there are."""

    size: Sizes
    kernel: Sizes
    strides: Sizes
    dilations: Sizes
    begin: Sizes
    end: Sizes
    out: Sizes

    def places(self, axis: int) -> IntArray:
        """`(out, kernel)` positions that each window meets on an axis; outside 0 .. size - 1 lies padding."""
        out, taps = np.arange(self.out[axis]), np.arange(self.kernel[axis])
        starts = out * self.strides[axis] - self.begin[axis]
        return np.asarray(starts[:, None] + taps * self.dilations[axis])

    def met(self, include_pads: bool) -> FloatArray:
        """`out` how many entries each window has, of the image or of its stated padding too."""
        counts = []
        for i, n in enumerate(self.size):
            at = self.places(i)
            low, high = (-self.begin[i], n + self.end[i]) if include_pads else (0, n)
            counts.append(((at >= low) & (at < high)).sum(axis=1))
        return np.asarray(reduce(np.multiply.outer, counts), dtype=np.float64)

    def windows(self) -> IntArray:
        """`(places, taps)` flat positions in one image, -1 in the padding."""
        flat = np.zeros((1, 1), dtype=np.int64)
        for i, n in enumerate(self.size):
            at = self.places(i)
            inside = (at >= 0) & (at < n)
            known = (flat[:, None, :, None] >= 0) & inside[None, :, None, :]
            step = flat[:, None, :, None] * n + at[None, :, None, :]
            step = np.where(known, step, -1)
            flat = step.reshape(flat.shape[0] * at.shape[0], flat.shape[1] * at.shape[1])
        return flat


def _image(node: OnnxNode, x: Variable) -> tuple[int, int, Sizes]:
    """How many images, how many channels, and the spatial sizes."""
    if not 3 <= len(x.shape) <= 5:
        raise node.unsupported(f"an input of shape {list(x.shape)}")
    return x.shape[0], x.shape[1], x.shape[2:]


def _listed(node: OnnxNode, key: str, default: int, rank: int) -> Sizes:
    """A per-axis attribute."""
    values: Sizes = node.attributes.get(key) or (default,) * rank
    if max(values) > LARGEST_WINDOW:
        raise node.invalid(f"{key} {list(values)}")
    if len(values) != rank:
        raise node.invalid(f"{key} has {len(values)} entries")
    return values


def _pads(node: OnnxNode, size: Sizes, kernel: Sizes) -> tuple[Sizes, Sizes]:
    """Padding in front and behind, computed for the automatic modes."""
    mode, rank = node.attributes.get("auto_pad", "NOTSET"), len(size)
    if mode in ("NOTSET", ""):
        given = node.attributes.get("pads") or (0,) * (2 * rank)
        if len(given) != 2 * rank:
            raise node.invalid(f"pads has {len(given)} entries")
        if max(given) > LARGEST_WINDOW:
            raise node.invalid(f"pads {list(given)}")
        return given[:rank], given[rank:]
    if mode == "VALID":
        return (0,) * rank, (0,) * rank
    if node.attributes.get("pads"):
        raise node.unsupported(f"auto_pad {mode!r} beside pads")
    strides, dilations = _listed(node, "strides", 1, rank), _listed(node, "dilations", 1, rank)
    if max(dilations) > 1 and node.op == "Conv":
        raise node.unsupported(f"auto_pad {mode!r} with dilations")  # onnxruntime has none either
    halves = []
    for n, s, k in zip(size, strides, kernel, strict=True):
        # onnxruntime's pools leave dilations out of account here, and cannot do with less than nothing
        total = (-(-n // s) - 1) * s + k - n
        if total < 0 and node.op != "Conv":
            raise node.unsupported(f"auto_pad {mode!r} with windows that skip some of the input")
        halves.append(_halves(node, max(0, total), mode))
    return tuple(a for a, _ in halves), tuple(b for _, b in halves)


def _halves(node: OnnxNode, total: int, mode: str) -> tuple[int, int]:
    """Total padding of one axis as (begin, end): the odd zero goes to the end for SAME_UPPER."""
    if mode not in ("SAME_UPPER", "SAME_LOWER", "NOTSET", ""):
        raise node.unsupported(f"auto_pad {mode!r}")
    small = total // 2
    return (small, total - small) if mode == "SAME_UPPER" else (total - small, small)


def _slide(node: OnnxNode, x: Variable, kernel: Sizes) -> Slide:
    """Where the windows of a convolution or pool lie; `ceil_mode` adds places that begin inside and end outside."""
    images, channels, size = _image(node, x)
    rank = len(size)
    strides, dilations = _listed(node, "strides", 1, rank), _listed(node, "dilations", 1, rank)
    begin, end = _pads(node, size, kernel)
    if min(kernel + strides + dilations) < 1 or min(begin + end) < 0:
        raise node.invalid("its kernel, strides, dilations or pads are out of range")
    out = []
    for n, k, s, d, b, e in zip(size, kernel, strides, dilations, begin, end, strict=True):
        room = n + b + e - (k - 1) * d - 1
        if room < 0:
            raise node.invalid("its kernel is larger than its padded input")
        places = room // s + 1
        if node.attributes.get("ceil_mode", 0) and room % s and places * s < n + b:
            places += 1
        out.append(places)
    node.sized((images, channels, *(n + b + e for n, b, e in zip(size, begin, end, strict=True))))
    if node.op != "Conv":  # pools write out which entries each window sees
        node.sized((images, channels, *kernel, *out))
    return Slide(size, kernel, strides, dilations, begin, end, tuple(out))


def _window(slide: Slide, channels: int, group: int) -> Window:
    """The last two axes as a canonical window; an image of one axis has height 1."""

    def pair(values: Sizes, default: int) -> tuple[int, int]:
        return (values[-2] if len(values) > 1 else default, values[-1])

    ends = []  # as many zeros behind as the last window reaches, and no fewer than are stated
    for n, k, s, d, b, e, o in zip(
        slide.size, slide.kernel, slide.strides, slide.dilations, slide.begin, slide.end, slide.out, strict=True
    ):
        ends.append(max(e, (o - 1) * s + (k - 1) * d + 1 - n - b))
    (top, left), (bottom, right) = pair(slide.begin, 0), pair(tuple(ends), 0)
    kernel, strides, dilations = (pair(v, 1) for v in (slide.kernel, slide.strides, slide.dilations))
    return Window(channels, *pair(slide.size, 1), kernel, strides, (top, left, bottom, right), dilations, group)


def _folded(node: OnnxNode, weight: FloatArray, slide: Slide, images: int) -> FloatArray:
    """Kernels `(a, b, ..., kh, kw)` over channels that hold the images, and of volumes the depth: tap k of depth
    joins the output's slice o with the input's slice `o * stride + k * dilation - begin`.

    Of ConvTranspose `slide` describes how its input slides over its output, and a counts channels of the input.
    """
    if weight.ndim == 3:
        weight = weight[:, :, None]
    if weight.ndim == 5:
        a, b, taps, height, width = weight.shape
        deep = (slide.out[0], slide.size[0])
        node.sized((a * deep[0], b * deep[1], height, width))
        full = np.zeros((a, deep[0], b, deep[1], height, width))
        at = slide.places(0)
        for o in range(deep[0]):
            for k in range(taps):
                if 0 <= at[o, k] < deep[1]:
                    full[:, o, :, at[o, k]] = weight[:, :, k]
        weight = full.reshape(a * deep[0], b * deep[1], height, width)
    if images > 1:
        node.sized((images, *weight.shape))
        weight = np.tile(weight, (images, 1, 1, 1))
    return np.ascontiguousarray(weight)


def _kernels(node: OnnxNode, x: Variable, c: Constant) -> tuple[FloatArray, int]:
    """The weight, and its roundings."""
    weight, roundings = c.weight()
    if weight.ndim != len(x.shape):
        raise node.invalid(f"a weight of shape {list(c.shape)} for an input of shape {list(x.shape)}")
    given = node.attributes.get("kernel_shape")
    if given is not None and tuple(given) != c.shape[2:]:
        raise node.invalid("kernel_shape contradicts its weight")
    return weight, roundings


def _biased(b: Builder, node: OnnxNode, values: Values, out: Variable) -> Value:
    """Add the bias, one number per channel."""
    bias = optional_constant(node, values, 2)
    if bias is None:
        return out
    if bias.shape != (out.shape[1],):
        raise node.invalid(f"a bias of shape {list(bias.shape)} for {out.shape[1]} channels")
    form = (1, -1) + (1,) * (len(out.shape) - 2)
    return b.shift(out, bias.map(lambda v: v.reshape(form)))


def _conv(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    weight, roundings = _kernels(node, x, required_constant(node, values, 1))
    (images, channels, size), group = _image(node, x), node.attributes.get("group", 1)
    slide = _slide(node, x, weight.shape[2:])
    if channels % group or len(weight) % group or weight.shape[1] * group != channels:
        raise node.invalid(f"a weight of shape {list(weight.shape)} for {channels} channels in {group} groups")
    depth = size[0] if len(size) == 3 else 1
    window = _window(slide, images * channels * depth, images * group)
    shape = (images, len(weight), *slide.out)
    op = Conv(window, _folded(node, weight, slide, images), roundings=roundings)
    return [_biased(b, node, values, b.affine(op, x, shape))]


def _conv_transpose(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    weight, roundings = _kernels(node, x, required_constant(node, values, 1))
    (images, channels, size), group = _image(node, x), node.attributes.get("group", 1)
    rank, kernel = len(size), weight.shape[2:]
    strides, dilations = _listed(node, "strides", 1, rank), _listed(node, "dilations", 1, rank)
    more = _listed(node, "output_padding", 0, rank)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    full = [s * (n - 1) + e + span for n, s, e, span in zip(size, strides, more, spans, strict=True)]
    mode = node.attributes.get("auto_pad", "NOTSET")
    wanted = node.attributes.get("output_shape")
    if wanted is None and mode.startswith("SAME"):
        wanted = tuple(n * s for n, s in zip(size, strides, strict=True))
    if wanted is None:
        begin, end = _pads(node, size, kernel)
    else:
        if len(wanted) != rank:
            raise node.invalid(f"output_shape has {len(wanted)} entries")
        halves = [_halves(node, f - w, mode) for f, w in zip(full, wanted, strict=True)]
        begin, end = tuple(h[0] for h in halves), tuple(h[1] for h in halves)
    out = tuple(f - p - q for f, p, q in zip(full, begin, end, strict=True))
    outs = weight.shape[1] * group
    node.sized((images, outs, *(max(0, n) for n in out)))
    if min(out) < 1 or min(begin + end) < 0 or len(weight) != channels or channels % group:
        raise node.unsupported("this output shape or padding")
    slide = Slide(out, kernel, strides, dilations, begin, end, size)  # the input's places slide over the output
    depth = out[0] if rank == 3 else 1
    window = _window(slide, images * outs * depth, images * group)
    if window.out != ((size[-2] if rank > 1 else 1), size[-1]) or _reaches(slide):
        raise node.unsupported("this output shape or padding")
    op = ConvTranspose(window, _folded(node, weight, slide, images), roundings=roundings)
    return [_biased(b, node, values, b.affine(op, x, (images, outs, *out)))]


def _reaches(slide: Slide) -> bool:
    """Whether the last window ends beyond the stated padding (that is what a short output would need)."""
    return any(
        (o - 1) * s + (k - 1) * d + 1 > n + b + e
        for n, k, s, d, b, e, o in zip(
            slide.size, slide.kernel, slide.strides, slide.dilations, slide.begin, slide.end, slide.out, strict=True
        )
    )


def _pool_slide(node: OnnxNode, x: Variable) -> Slide:
    if "kernel_shape" not in node.attributes:
        raise node.invalid("no kernel_shape")
    return _slide(node, x, _listed(node, "kernel_shape", 1, len(_image(node, x)[2])))


def _average_pool(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    slide, (images, channels, size) = _pool_slide(node, x), _image(node, x)
    count = slide.met(bool(node.attributes.get("count_include_pad", 0)))
    if np.any(count == 0):
        raise node.unsupported("a window that lies in the padding")
    depth = size[0] if len(size) == 3 else 1
    ones = _folded(node, np.ones((channels, 1, *slide.kernel)), slide, images)
    window = _window(slide, images * channels * depth, images * channels)
    total = b.affine(Conv(window, ones), x, (images, channels, *slide.out))
    if np.all(count == count.flat[0]):
        count = np.array(count.flat[0])
    return [b.times(total, constant.divide(number(1.0), Constant(count)))]


def _max_pool(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    if any(node.outputs[1:]):
        raise node.unsupported("indices of the maxima")
    x = variable(node, values)
    slide, (images, channels, size) = _pool_slide(node, x), _image(node, x)
    windows = slide.windows()
    some = windows.max(axis=1, keepdims=True)
    if np.any(some < 0):
        raise node.unsupported("a window that lies in the padding")
    windows = np.where(windows < 0, some, windows)
    planes = np.arange(images * channels)[:, None, None] * prod(size)
    shape = (images, channels, *slide.out)
    return [b.maximum_over(x, (planes + windows).reshape(prod(shape), -1), shape)]


def _global_pool(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    if len(x.shape) < 3:
        raise node.invalid(f"an input of shape {list(x.shape)}, which is no image")
    axes = tuple(range(2, len(x.shape)))
    shape = (*x.shape[:2], *(1 for _ in axes))
    if node.op == "GlobalMaxPool":
        return [b.maximum_over(x, np.arange(x.size).reshape(prod(shape), -1), shape)]
    return [b.affine(Reduce(x.shape, axes, 1.0 / prod(x.shape[2:])), x, shape)]


# operator -> handler; what of it is read stands in `mucg4.read.table`
WINDOW_HANDLERS: dict[str, Handler] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
}
