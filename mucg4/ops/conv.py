"""Convolutions as affine operators, never written out as matrices.

A convolution is one GEMM over windows of its input ("im2col"); its adjoint is one GEMM followed by
adding the windows back ("col2im"). A transposed convolution is the same pair the other way round.
One-dimensional convolutions are two-dimensional ones of height one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from functools import cached_property
from typing import Any

import numpy as np

from mucg4.errors import InputError
from mucg4.ops.arrays import batched_product, chunk, empty, windows, zeros
from mucg4.ops.base import Affine, Array
from mucg4.records import dataclass

# window elements handled together: 1 MiB, so that they are still cached in the GEMM; not measured
CHUNK_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class Window:
    """How a kernel slides over an image `(channels, height, width)`.

    `kernel`, `strides`, `dilations` are (vertical, horizontal); `pads` (top, left, bottom, right) zeros.
    Raises `InputError` when no window fits.
    """

    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    group: int = 1

    def __post_init__(self) -> None:
        if min(self.kernel + self.strides + self.dilations) < 1 or min(self.pads) < 0:
            raise InputError("a convolution has a kernel, stride, dilation or padding out of range")
        if self.group < 1 or self.channels % self.group:
            raise InputError(f"a convolution of {self.channels} channels cannot have {self.group} groups")
        if min(self.out) < 1:
            raise InputError("a convolution's kernel is larger than its padded input")

    @cached_property
    def padded(self) -> tuple[int, int]:
        """Height and width with padding."""
        return self.height + self.pads[0] + self.pads[2], self.width + self.pads[1] + self.pads[3]

    @cached_property
    def out(self) -> tuple[int, int]:
        """Number of window positions, vertically and horizontally."""
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        return (
            (self.padded[0] - spans[0]) // self.strides[0] + 1,
            (self.padded[1] - spans[1]) // self.strides[1] + 1,
        )

    @property
    def positions(self) -> int:
        """Number of window positions."""
        return self.out[0] * self.out[1]

    @property
    def elements(self) -> int:
        """Size of all windows of one image together."""
        return self.channels * self.kernel[0] * self.kernel[1] * self.positions

    def views(self, padded: Array) -> list[Array]:
        """For each kernel element the `(batch, channels, *out)` view of what it meets in all windows."""
        (sh, sw), (dh, dw), (oh, ow) = self.strides, self.dilations, self.out
        return [
            padded[:, :, i * dh : i * dh + sh * (oh - 1) + 1 : sh, j * dw : j * dw + sw * (ow - 1) + 1 : sw]
            for i in range(self.kernel[0])
            for j in range(self.kernel[1])
        ]

    def columns(self, x: Array) -> Array:
        """All windows: `(batch, n)` -> `(batch, group, channels / group * kernel, positions)`."""
        (top, left, bottom, right), batch = self.pads, len(x)
        image = x.reshape(batch, self.channels, self.height, self.width)
        if top or left or bottom or right:
            padded = zeros((batch, self.channels, *self.padded), x)
            padded[:, :, top : top + self.height, left : left + self.width] = image
        else:
            padded = image
        shape, steps = (batch, self.channels, *self.kernel, *self.out), (1, 1, *self.dilations, *self.strides)
        return windows(padded, shape, (0, 1, 2, 3, 2, 3), steps).reshape(batch, self.group, -1, self.positions)

    def rows(self, weight: Array) -> Array:
        """A convolution as a matrix: `weight (O, channels / group, kh, kw)` -> `(O * positions, n)`.

        Each weight is written where it counts, which is far quicker than products with unit vectors.
        """
        (top, left), (oh, ow), outs = self.pads[:2], self.out, len(weight)
        matrix = np.zeros(
            (self.group, outs // self.group, oh, ow, self.group, weight.shape[1], self.height, self.width)
        )
        kernels = weight.reshape(self.group, outs // self.group, *weight.shape[1:])
        for i, j in np.ndindex(*self.kernel):
            y = np.arange(oh) * self.strides[0] + i * self.dilations[0] - top
            x = np.arange(ow) * self.strides[1] + j * self.dilations[1] - left
            at_y, at_x = np.flatnonzero((y >= 0) & (y < self.height)), np.flatnonzero((x >= 0) & (x < self.width))
            for g, kernel in enumerate(kernels[..., i, j]):
                to = matrix[g, :, :, :, g]
                to[:, at_y[:, None], at_x, :, y[at_y][:, None], x[at_x]] = kernel
        return matrix.reshape(outs * self.positions, -1)


def correlate(x: Array, weight: Array, window: Window) -> Array:
    """Convolution without bias: `x (batch, n)`, `weight (O, channels / group, kh, kw)` -> `(batch, O * positions)`."""
    batch, outs = len(x), len(weight)
    kernels = weight.reshape(window.group, outs // window.group, -1)
    y = empty((batch, window.group, outs // window.group, window.positions), x)
    step = max(1, chunk(CHUNK_ELEMENTS, x) // window.elements)
    for at in range(0, batch, step):
        batched_product(kernels, window.columns(x[at : at + step]), y[at : at + step])
    return y.reshape(batch, -1)


def spread(a: Array, weight: Array, window: Window) -> Array:
    """The transpose of `correlate`: `(rows, O * positions)` -> `(rows, n)`."""
    rows, outs = len(a), len(weight)
    kernels = weight.reshape(window.group, outs // window.group, -1).swapaxes(1, 2)
    values = a.reshape(rows, window.group, outs // window.group, window.positions)
    x = empty((rows, window.channels, window.height, window.width), a)
    top, left = window.pads[:2]
    step = max(1, chunk(CHUNK_ELEMENTS, a) // window.elements)
    for at in range(0, rows, step):
        part = kernels @ values[at : at + step]
        part = part.reshape(len(part), window.channels, -1, *window.out)
        padded = zeros((len(part), window.channels, *window.padded), a)
        for k, view in enumerate(window.views(padded)):
            view += part[:, :, k]
        x[at : at + step] = padded[:, :, top : top + window.height, left : left + window.width]
    return x.reshape(rows, -1)


@dataclass(frozen=True, eq=False)
class _Sliding(Affine):
    """What a convolution and its transpose share: one weight, one sliding window, an offset per output value.

    An offset per value instead of per channel lets any constant merge into it (a subtracted mean image
    under zero padding, for example). `offset_magnitude` and `roundings` are as in `Dense`.
    """

    window: Window
    weight: Array
    offset: Array | None = None
    offset_magnitude: Array | None = None
    roundings: int = 0

    def __post_init__(self) -> None:
        w = self.window
        if self.weight.shape[1:] != (w.channels // w.group, *w.kernel) or len(self.weight) % w.group:
            raise InputError(f"a convolution's weight has shape {self.weight.shape}, which does not fit its image")

    @property
    def outputs(self) -> int:
        """Number of output values."""
        raise NotImplementedError

    @property
    def fan_in(self) -> int:  # type: ignore[override]
        taps = self.window.kernel[0] * self.window.kernel[1]
        rows, columns = int(len(self.weight)), int(self.weight.shape[1])
        return taps * max(columns, rows // self.window.group) + 1 + self.roundings

    @cached_property
    def abs_weight(self) -> Array:
        return abs(self.weight)

    def bias(self) -> Array | None:
        return self.offset

    def bias_magnitude(self) -> Array | None:
        return self.offset_magnitude if self.offset_magnitude is not None else super().bias_magnitude()

    def parameters(self) -> dict[str, Any]:
        offset = np.zeros(self.outputs) if self.offset is None else self.offset
        return {"window": self.window, "weight": self.weight, "offset": offset}


@dataclass(frozen=True, eq=False)
class Conv(_Sliding):
    """ONNX Conv: `weight (O, channels / group, kh, kw)`; `offset (O * positions,)`."""

    kind: str = field(default="Conv", init=False)

    @property
    def outputs(self) -> int:
        return len(self.weight) * self.window.positions

    def linear(self, xs: Sequence[Array]) -> Array:
        return correlate(xs[0], self.weight, self.window)

    def matrices(self, size: int) -> tuple[Array, ...]:
        return (self.window.rows(self.weight),)

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        return (spread(a, self.weight, self.window),)

    def magnitude(self, xs: Sequence[Array]) -> Array:
        return correlate(xs[0], self.abs_weight, self.window)


@dataclass(frozen=True, eq=False)
class ConvTranspose(_Sliding):
    """ONNX ConvTranspose: the transpose of the convolution described by `window` and `weight`.

    `window` slides over the OUTPUT image `(window.channels, window.height, window.width)`; the input has
    one value per window position and kernel: `weight (input channels, window.channels / group, kh, kw)`,
    as stored in ONNX.
    """

    kind: str = field(default="ConvTranspose", init=False)

    @property
    def outputs(self) -> int:
        return self.window.channels * self.window.height * self.window.width

    def linear(self, xs: Sequence[Array]) -> Array:
        return spread(xs[0], self.weight, self.window)

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        return (correlate(a, self.weight, self.window),)

    def magnitude(self, xs: Sequence[Array]) -> Array:
        return spread(xs[0], self.abs_weight, self.window)
