"""Convolutions and pools on variables."""

from __future__ import annotations

from math import prod

import numpy as np

from mucg4.ops.affine import Reduce
from mucg4.ops.arrays import FloatArray
from mucg4.ops.conv import Conv, ConvTranspose, Window, correlate
from mucg4.read import constant
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.constant import Constant, number
from mucg4.read.operators import Handler, Values, optional_constant, required_constant, variable
from mucg4.read.protobuf import OnnxNode

Image = tuple[int, int, int]
# kernel sizes, strides, pads and the like beyond this are no numbers to compute with; not measured
LARGEST_WINDOW = 2**24


def _image(node: OnnxNode, x: Variable) -> Image:
    """`(channels, height, width)` of a one- or two-dimensional image; height 1 when one-dimensional."""
    if len(x.shape) not in (3, 4) or x.shape[0] != 1:
        raise node.unsupported(f"an input of shape {list(x.shape)}")
    return x.shape[1], x.shape[2] if len(x.shape) == 4 else 1, x.shape[-1]


def _pair(node: OnnxNode, key: str, default: int, flat: bool) -> tuple[int, int]:
    """A per-axis attribute as (vertical, horizontal)."""
    values: tuple[int, ...] = node.attributes.get(key) or ((default,) if flat else (default, default))
    if max(values) > LARGEST_WINDOW:
        raise node.invalid(f"{key} {list(values)}")
    if len(values) != (1 if flat else 2):
        raise node.invalid(f"{key} has {len(values)} entries")
    return (0 if key == "output_padding" else 1, values[0]) if flat else (values[0], values[1])


def _pads(node: OnnxNode, image: Image, kernel: tuple[int, int], flat: bool) -> tuple[int, int, int, int]:
    """(top, left, bottom, right), computed for the automatic modes."""
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        given = node.attributes.get("pads") or (0,) * (2 if flat else 4)
        if len(given) != (2 if flat else 4):
            raise node.invalid(f"pads has {len(given)} entries")
        if max(given) > LARGEST_WINDOW:
            raise node.invalid(f"pads {list(given)}")
        return (0, given[0], 0, given[1]) if flat else (given[0], given[1], given[2], given[3])
    if mode == "VALID":
        return 0, 0, 0, 0
    if node.attributes.get("pads"):
        raise node.unsupported(f"auto_pad {mode!r} beside pads")
    strides, dilations = _pair(node, "strides", 1, flat), _pair(node, "dilations", 1, flat)
    if max(dilations) > 1 and node.op == "Conv":
        raise node.unsupported(f"auto_pad {mode!r} with dilations")  # onnxruntime has none either
    begin, end = [0, 0], [0, 0]
    for i, n in enumerate(image[1:]):
        # onnxruntime's pools leave dilations out of account here, and cannot do with less than nothing
        total = (-(-n // strides[i]) - 1) * strides[i] + kernel[i] - n
        if total < 0 and node.op != "Conv":
            raise node.unsupported(f"auto_pad {mode!r} with windows that skip some of the input")
        begin[i], end[i] = _halves(node, max(0, total), mode)
    return begin[0], begin[1], end[0], end[1]


def _halves(node: OnnxNode, total: int, mode: str) -> tuple[int, int]:
    """Total padding of one axis as (begin, end): the odd zero goes to the end for SAME_UPPER."""
    if mode not in ("SAME_UPPER", "SAME_LOWER", "NOTSET", ""):
        raise node.unsupported(f"auto_pad {mode!r}")
    small = total // 2
    return (small, total - small) if mode == "SAME_UPPER" else (total - small, small)


def _window(node: OnnxNode, x: Variable, kernel: tuple[int, int], group: int = 1) -> Window:
    image, flat = _image(node, x), len(x.shape) == 3
    strides, dilations = _pair(node, "strides", 1, flat), _pair(node, "dilations", 1, flat)
    window = Window(*image, kernel, strides, _pads(node, image, kernel, flat), dilations, group)
    node.sized((window.channels, *window.padded))
    if node.op != "Conv":  # pools write out which entries each window sees
        node.sized((window.channels, *window.kernel, *window.out))
    if node.attributes.get("ceil_mode", 0):
        spans = [n - (k - 1) * d - 1 for n, k, d in zip(window.padded, kernel, dilations, strict=True)]
        if any(span % s for span, s in zip(spans, strides, strict=True)):
            raise node.unsupported("ceil_mode where it makes a difference")
    return window


def _kernels(node: OnnxNode, x: Variable, c: Constant) -> tuple[FloatArray, int]:
    """The weight as `(., ., kh, kw)`, and its roundings."""
    weight, roundings = c.weight()
    if weight.ndim != len(x.shape):
        raise node.invalid(f"a weight of shape {list(c.shape)} for an input of shape {list(x.shape)}")
    weight = weight[:, :, None, :] if weight.ndim == 3 else weight
    given = node.attributes.get("kernel_shape")
    if given is not None and tuple(given) != c.shape[2:]:
        raise node.invalid("kernel_shape contradicts its weight")
    return np.ascontiguousarray(weight), roundings


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
    window = _window(node, x, (weight.shape[2], weight.shape[3]), node.attributes.get("group", 1))
    shape = (1, len(weight), *(window.out if len(x.shape) == 4 else window.out[1:]))
    return [_biased(b, node, values, b.affine(Conv(window, weight, roundings=roundings), x, shape))]


def _conv_transpose(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    weight, roundings = _kernels(node, x, required_constant(node, values, 1))
    (channels, *size), flat, group = _image(node, x), len(x.shape) == 3, node.attributes.get("group", 1)
    kernel = (weight.shape[2], weight.shape[3])
    strides, dilations = _pair(node, "strides", 1, flat), _pair(node, "dilations", 1, flat)
    more = _pair(node, "output_padding", 0, flat)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    full = [s * (n - 1) + e + span for n, s, e, span in zip(size, strides, more, spans, strict=True)]
    mode = node.attributes.get("auto_pad", "NOTSET")
    wanted = node.attributes.get("output_shape")
    if wanted is not None:
        wanted = (1, *wanted) if flat else tuple(wanted)
    elif mode.startswith("SAME"):
        wanted = tuple(n * s for n, s in zip(size, strides, strict=True))
    if wanted is None:
        pads = _pads(node, (channels, size[0], size[1]), kernel, flat)
    else:
        halves = [_halves(node, f - w, mode) for f, w in zip(full, wanted, strict=True)]
        pads = (halves[0][0], halves[1][0], halves[0][1], halves[1][1])
    height, width = (full[i] - pads[i] - pads[i + 2] for i in range(2))
    node.sized((weight.shape[1] * group, max(0, height), max(0, width)))
    window = Window(weight.shape[1] * group, height, width, kernel, strides, pads, dilations, group)
    if window.out != tuple(size) or len(weight) != channels:
        raise node.unsupported("this output shape or padding")
    shape = (1, window.channels, *((height, width) if not flat else (width,)))
    return [_biased(b, node, values, b.affine(ConvTranspose(window, weight, roundings=roundings), x, shape))]


def _pool_window(node: OnnxNode, x: Variable) -> tuple[Window, tuple[int, ...]]:
    if "kernel_shape" not in node.attributes:
        raise node.invalid("no kernel_shape")
    window = _window(node, x, _pair(node, "kernel_shape", 1, len(x.shape) == 3), x.shape[1])
    return window, (1, window.channels, *(window.out if len(x.shape) == 4 else window.out[1:]))


def _average_pool(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    window, shape = _pool_window(node, x)
    ones = np.ones((window.channels, 1, *window.kernel))
    count = np.array(float(prod(window.kernel)))
    if not node.attributes.get("count_include_pad", 0):
        count = correlate(np.ones((1, x.size)), ones, window).reshape(shape)
    if np.any(count == 0):
        raise node.unsupported("a window that lies in the padding")
    return [b.times(b.affine(Conv(window, ones), x, shape), constant.divide(number(1.0), Constant(count)))]


def _max_pool(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    if any(node.outputs[1:]):
        raise node.unsupported("indices of the maxima")
    x = variable(node, values)
    window, shape = _pool_window(node, x)
    columns = window.columns(np.arange(1, x.size + 1)[None])  # padding becomes 0
    windows = columns.reshape(window.channels, -1, window.positions).transpose(0, 2, 1).reshape(prod(shape), -1) - 1
    some = windows.max(axis=1, keepdims=True)
    if np.any(some < 0):
        raise node.unsupported("a window that lies in the padding")
    return [b.maximum_over(x, np.where(windows < 0, some, windows), shape)]


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
