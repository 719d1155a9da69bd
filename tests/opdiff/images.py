"""Generators for operators on images: convolutions, pools, padding, resizing."""

from __future__ import annotations

from typing import Any

import numpy as np

from .make import NUMPY, Case, Maker


def _sliding(m: Maker) -> tuple[list[int], list[int], dict[str, Any]]:
    """Spatial sizes, kernel and the attributes of a window that slides."""
    axes = m.pick(1, 2, 2, 2, 3)
    sizes, kernel = [m.whole(2, 8 if axes < 3 else 4) for _ in range(axes)], [m.whole(1, 3) for _ in range(axes)]
    at = m.some(strides=[m.whole(1, 3) for _ in range(axes)])
    at |= m.some(0.4, dilations=[m.whole(1, 2) for _ in range(axes)])
    if m.likely(0.4):
        at["pads"] = [m.whole(0, 2) for _ in range(2 * axes)]
    elif m.likely(0.6):
        at["auto_pad"] = m.pick("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET")
    return sizes, kernel, at


def conv(m: Maker) -> Case:
    """Conv with groups."""
    sizes, kernel, at = _sliding(m)
    channels = m.pick(1, 2, 4)
    group = m.pick(1, 1, channels)
    outs = group * m.pick(1, 2)
    at |= m.some(kernel_shape=kernel) | m.some(1.0 if group > 1 else 0.3, group=group)
    names = ["x", m.tensor("w", m.draw([outs, channels // group, *kernel]))]
    if m.likely(0.5):
        names.append(m.tensor("b", m.draw([outs])))
    return m.case(m.node("Conv", names, "z", **at), [m.pick(1, 1, 1, 2), channels, *sizes])


def transposed(m: Maker) -> Case:
    """ConvTranspose with output_padding or output_shape."""
    sizes, kernel, at = _sliding(m)
    channels = m.pick(1, 2, 4)
    group, outs = m.pick(1, 1, channels), m.pick(1, 2)
    at |= m.some(kernel_shape=kernel) | m.some(1.0 if group > 1 else 0.3, group=group)
    at |= m.some(0.4, output_padding=[m.whole(0, 1) for _ in sizes])
    strides = at.get("strides", [1] * len(sizes))
    at |= m.some(0.2, output_shape=[n * s + m.whole(-1, 2) for n, s in zip(sizes, strides, strict=True)])
    names = ["x", m.tensor("w", m.draw([channels, outs, *kernel]))]
    if m.likely(0.5):
        names.append(m.tensor("b", m.draw([outs * group])))
    return m.case(m.node("ConvTranspose", names, "z", **at), [m.pick(1, 1, 1, 2), channels, *sizes])


def pool(m: Maker) -> Case:
    """MaxPool and AveragePool."""
    assert m.row
    sizes, kernel, at = _sliding(m)
    at["kernel_shape"] = kernel
    at |= m.some(ceil_mode=m.pick(0, 1), count_include_pad=m.pick(0, 1), storage_order=0)
    return m.case(m.node(m.row.op, ["x"], "z", **at), [m.pick(1, 1, 1, 2), m.pick(1, 2, 4), *sizes])


def whole_image(m: Maker) -> Case:
    """GlobalAveragePool and GlobalMaxPool of one to three axes."""
    assert m.row
    shape = [m.pick(1, 1, 2), m.whole(1, 3), *(m.whole(1, 4) for _ in range(m.whole(1, 3)))]
    return m.case(m.node(m.row.op, ["x"], "z"), shape)


def pad(m: Maker) -> Case:
    """Pad in all modes, with axes and negative pads."""
    shape = m.shape(2, 4, 4)
    mode = m.pick("constant", "constant", "reflect", "edge", *(["wrap"] if m.opset >= 19 else []))
    low = -1 if mode == "constant" else 0
    axes = list(range(len(shape)))
    names, more = ["x", "p", "", ""], m.some(0.8, mode=mode) if mode == "constant" else {"mode": mode}
    if m.opset >= 18 and m.likely(0.5):
        axes = m.chance.sample(axes, m.whole(1, len(axes)))
        names[3] = m.ints("a", [a - len(shape) if m.likely(0.5) else a for a in axes])
    pads = [m.whole(low, min(2, shape[a] - (mode == "reflect"))) for a in axes + axes]
    if m.has("pads"):
        more |= {"pads": pads} | m.some(value=m.pick(0.0, 2.5))
        return m.case(m.node("Pad", ["x"], "z", **more), shape)
    m.ints("p", pads)
    if m.likely(0.5):
        names[2] = m.tensor("v", np.full(m.pick((), (1,)) if m.opset >= 13 else (), 1.25, NUMPY[m.kind]))
    return m.case(m.node("Pad", names, "z", **more), shape)


def resize(m: Maker) -> Case:
    """Resize and Upsample to the nearest pixel, by scales or sizes, up and down and to equal lengths."""
    assert m.row
    op = m.row.op
    shape = [1, m.whole(1, 3), m.whole(1, 6), m.whole(1, 6)] if m.likely(0.8) else [1, m.whole(1, 6), m.whole(1, 9)]
    up = (1.0, 1.0, 2.0, 3.0, 1.5, 1.1, 2.7, 1.3, m.chance.uniform(1, 3))
    down = (0.5, 0.6, 0.4, 0.75, 0.25, m.chance.uniform(0.3, 1.0))
    factors = [m.pick(*up) if op == "Upsample" else m.pick(*up, *down) for _ in shape[2:]]
    scales = np.float32([1.0, 1.0, *factors])
    at = m.some(0.7, mode=m.pick("nearest", "nearest", "linear"))
    if at.get("mode") == "linear":
        exact = (1.0, 2.0, 4.0) if op == "Upsample" or m.likely(0.5) else (2.0, 0.5, 1.5, 3.0)
        scales = np.float32([1.0, 1.0, *(m.pick(*exact) for _ in shape[2:])])
    if op == "Upsample" or m.opset == 10:
        if m.has("scales"):
            return m.case(m.node(op, ["x"], "z", **at, scales=scales.tolist()), shape)
        return m.case(m.node(op, ["x", m.tensor("s", scales)], "z", **at), shape)
    frames = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    at |= m.some(0.8, coordinate_transformation_mode=m.pick(*frames))
    at |= m.some(0.8, nearest_mode=m.pick("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"))
    at |= m.some(0.2, cubic_coeff_a=-0.5, exclude_outside=0, extrapolation_value=1.5, antialias=0)
    region = m.tensor("roi", np.zeros(0, np.float32)) if m.opset < 13 else ""
    if m.likely(0.5):
        return m.case(m.node(op, ["x", region, m.tensor("s", scales)], "z", **at), shape)
    at |= m.some(0.4, keep_aspect_ratio_policy=m.pick("stretch", "not_larger", "not_smaller"))
    sizes = m.ints("n", [*shape[:2], *(m.whole(1, 9) for _ in shape[2:])])
    empty = m.tensor("e", np.zeros(0, np.float32)) if m.opset < 13 else ""
    return m.case(m.node(op, ["x", region, empty, sizes], "z", **at), shape)


GENERATORS = {
    conv: "Conv",
    transposed: "ConvTranspose",
    pool: "MaxPool AveragePool",
    whole_image: "GlobalAveragePool GlobalMaxPool",
    pad: "Pad",
    resize: "Resize Upsample",
}
