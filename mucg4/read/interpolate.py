"""Resize and Upsample by interpolation: the weights of the two nearest pixels, along one axis after the other.

A place between two pixels is a fraction, and so are the weights. onnxruntime computes places in float32: where all of
them have that exactly, so do the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor

import numpy as np

from mucg4.ops.arrays import AnyArray
from mucg4.read.movement import LARGEST_LENGTH, resize_lengths
from mucg4.read.protobuf import OnnxNode


def interpolation(
    node: OnnxNode, shape: Sequence[int], further: Sequence[AnyArray | None]
) -> list[tuple[int, AnyArray, bool]]:
    """`(axis, weights (length, size), exact)` for each axis that changes, in order."""
    if node.attributes.get("mode", "nearest") != "linear" or node.attributes.get("exclude_outside", 0):
        raise node.unsupported("this mode")
    lengths, scales = resize_lengths(node, tuple(shape), further)
    if tuple(lengths) == tuple(shape):
        return []
    out = []
    for axis, (length, size, scale) in enumerate(zip(lengths, shape, scales, strict=True)):
        if scale == 1 and length == size:
            continue
        node.sized((length, size))
        places = [_place(node, i, length, size, scale) for i in range(min(length, LARGEST_LENGTH))]
        weight = np.zeros((length, size))
        exact = True
        for i, place in enumerate(places):
            inside = min(max(place, Fraction(0)), Fraction(size - 1))
            low = floor(inside)
            share = inside - low
            weight[i, low] += float(1 - share)
            if share:
                weight[i, low + 1] += float(share)
            exact &= Fraction(float(np.float32(float(inside)))) == inside and scale.denominator.bit_count() == 1
        out.append((axis, weight, exact))
    return out


def _place(node: OnnxNode, i: int, length: int, size: int, scale: Fraction) -> Fraction:
    """Where output pixel i lies in the input."""
    frame = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if node.opset < 11:
        frame = "asymmetric"
    half = Fraction(1, 2)
    if frame == "asymmetric":
        return i / scale
    if frame == "align_corners":
        return Fraction(i * (size - 1), length - 1) if length > 1 else Fraction(0)
    if frame == "pytorch_half_pixel" and length == 1:
        return Fraction(0)
    return (i + half) / scale - half
