"""Constants of a network and the arithmetic among them.

Stored numbers are exact. Arithmetic on them is done in double; what it may lose is kept beside the
value, so that a constant merged into a bias carries its rounding into `offset_magnitude` and a weight
that lost digits by cancellation is refused instead of trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.ops.base import Array
from mucg4.read.protobuf import BFLOAT16, DOUBLE, FLOAT, FLOAT16, TYPES, OnnxNode, decode_tensor

CANCELLATION = 8.0  # a weight may be this much smaller than the terms it was computed from
EXACT_PRODUCTS = 2**16  # at most so many products are summed without rounding


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor known at load time. `value` is off by at most a few units in the last place of `magnitude`.

    `magnitude` None stands for |value|; `rounded` tells whether any arithmetic was done at all.
    """

    value: Array
    name: str = ""
    magnitude: Array | None = None
    rounded: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def is_float(self) -> bool:
        return bool(self.value.dtype.kind == "f")

    def map(self, f: Callable[[Array], Array]) -> Constant:
        """The same numbers, moved."""
        magnitude = None if self.magnitude is None else f(self.magnitude)
        return Constant(f(self.value), self.name, magnitude, self.rounded)

    def double(self) -> Array:
        """The value in double."""
        return self.value.astype(np.float64)

    def size_of_terms(self) -> Array:
        """At least |value|: the scale of its rounding."""
        return abs(self.double()) if self.magnitude is None else self.magnitude

    def offset(self, shape: tuple[int, ...] | None = None) -> tuple[Array, Array]:
        """`(value, magnitude)` flat and finite, for use as a bias; broadcast to `shape` when given."""
        value, magnitude = self._finite(), self.size_of_terms()
        if shape is not None:
            value, magnitude = np.broadcast_to(value, shape), np.broadcast_to(magnitude, shape)
        return value.ravel(), magnitude.ravel()

    def weight(self) -> Array:
        """The value in double, finite, with every entry good to a few units in the last place."""
        value = self._finite()
        if self.magnitude is not None and np.any(self.magnitude > CANCELLATION * abs(value)):
            raise UnsupportedError(f"the weights {self.name!r} are computed in the network with a loss of digits")
        return value

    def _finite(self) -> Array:
        value = self.double()
        if not np.all(np.isfinite(value)):
            raise InputError(f"the network's constant {self.name!r} holds nan or infinite numbers")
        return value

    def integers(self) -> tuple[int, ...]:
        """A list of dimensions, axes or positions."""
        return tuple(int(v) for v in self.value.ravel())


def add(a: Constant, b: Constant, sign: float = 1.0) -> Constant:
    """`a + sign * b`; digits lost earlier stay on record."""
    if not a.is_float and not b.is_float:
        return Constant(a.value + b.value if sign > 0 else a.value - b.value, a.name)
    magnitude = a.size_of_terms() + b.size_of_terms() if a.rounded or b.rounded else None
    return Constant(a.double() + sign * b.double(), a.name or b.name, magnitude, True)


def multiply(a: Constant, b: Constant) -> Constant:
    """Elementwise product."""
    if not a.is_float and not b.is_float:
        return Constant(a.value * b.value, a.name)
    kept = a.magnitude is not None or b.magnitude is not None
    return Constant(a.double() * b.double(), a.name, a.size_of_terms() * b.size_of_terms() if kept else None, True)


def divide(a: Constant, b: Constant) -> Constant:
    """Elementwise quotient; integers truncate towards zero as in ONNX. Raises `InputError` for zero divisors."""
    if np.any(b.value == 0):
        raise InputError(f"the network divides by the constant {b.name!r}, which holds a zero")
    if not a.is_float and not b.is_float:
        return Constant(np.trunc(a.value / b.value).astype(a.value.dtype), a.name)
    divisor = b.weight()
    magnitude = None if a.magnitude is None else a.magnitude / abs(divisor)
    return Constant(a.double() / divisor, a.name, magnitude, True)


def _exact_product(a: Constant, b: Constant) -> bool:
    """True for small matrices of stored float32 numbers: products are exact in double, sums can be rounded once."""
    plain = all(c.value.dtype == np.float32 and c.value.ndim == 2 and not c.rounded for c in (a, b))
    return plain and a.shape[1] == b.shape[0] and a.value.size * b.shape[1] <= EXACT_PRODUCTS


def matmul(a: Constant, b: Constant) -> Constant:
    """Matrix product; long sums count as so many more units of rounding."""
    if not a.is_float and not b.is_float:
        return Constant(a.value @ b.value, a.name)
    if _exact_product(a, b):
        left, right = a.double(), b.double()
        rows = [[fsum(products) for products in (row[:, None] * right).T.tolist()] for row in left]
        return Constant(np.array(rows, dtype=np.float64), a.name, None, True)
    terms = max(1.0, a.shape[-1] / 16)
    return Constant(a.double() @ b.double(), a.name, terms * (a.size_of_terms() @ b.size_of_terms()), True)


def total(a: Constant, axes: tuple[int, ...], keep: bool, mean: bool = False) -> Constant:
    """Sum or mean over axes."""
    if not a.is_float and not mean:
        return Constant(a.value.sum(axis=axes, keepdims=keep, dtype=a.value.dtype), a.name)
    count = int(np.prod([a.shape[i] for i in axes]))
    factor = 1.0 / count if mean else 1.0
    magnitude = a.size_of_terms().sum(axis=axes, keepdims=keep) * max(1.0, count / 16) * factor
    return Constant(a.double().sum(axis=axes, keepdims=keep) * factor, a.name, magnitude, True)


def extremum(a: Constant, b: Constant, largest: bool) -> Constant:
    """Elementwise maximum or minimum."""
    pick = np.maximum if largest else np.minimum
    magnitude = None
    if a.magnitude is not None or b.magnitude is not None:
        magnitude = np.maximum(a.size_of_terms(), b.size_of_terms())
    return Constant(pick(a.value, b.value), a.name, magnitude, a.rounded or b.rounded)


def negate(a: Constant) -> Constant:
    """-a."""
    return Constant(-a.value, a.name, a.magnitude, a.rounded)


def absolute(a: Constant) -> Constant:
    """|a|."""
    return Constant(abs(a.value), a.name, a.magnitude, a.rounded)


def function(a: Constant, f: Callable[[Array], Array]) -> Constant:
    """A function of a constant whose digits are all good."""
    if not a.is_float:
        return Constant(f(a.value), a.name)
    with np.errstate(all="ignore"):  # nan and inf are refused where the result is used
        return Constant(f(a.weight()), a.name, None, True)


def cast(node: OnnxNode, a: Constant) -> Constant:
    """ONNX Cast of a constant. Narrowing to 16 bits rounds as onnxruntime does: from float32."""
    kind = node.attributes.get("to", 0)
    if kind not in TYPES or kind in (21, 22):
        raise node.unsupported(f"cast to element type {kind}")
    if kind in (FLOAT, DOUBLE) and a.is_float:
        if kind == FLOAT and a.value.dtype == np.float64 and not a.rounded:
            return Constant(a.value.astype(np.float32), a.name)
        return a  # values folded in double stay so
    if kind == BFLOAT16:
        bits = a.value.astype(np.float32).view(np.uint32).astype(np.uint64)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16  # to nearest, ties to even
        return Constant(bits.astype(np.uint32).view(np.float32), a.name)
    source = a.value.astype(np.float32) if kind == FLOAT16 and a.is_float else a.value
    return Constant(source.astype(TYPES[kind][0]), a.name)


def dequantize(node: OnnxNode, x: Constant, scale: Constant, zero: Constant | None) -> Constant:
    """ONNX DequantizeLinear exactly as onnxruntime computes it: `float32(x - zero) * scale` in float32."""
    if scale.value.dtype not in (np.float32, np.float16):
        raise node.unsupported(f"scale of type {scale.value.dtype}")
    if x.value.dtype.kind not in "iu":
        raise node.unsupported(f"quantised values of type {x.value.dtype}")
    shift = np.zeros_like(scale.value, dtype=np.int64) if zero is None else zero.value.astype(np.int64)
    factor = scale.value.astype(np.float32)
    axis = node.attributes.get("axis", 1)
    block = node.attributes.get("block_size", 0)
    if block:
        factor, shift = (np.repeat(v, block, axis=axis) for v in (factor, shift))
        factor, shift = (v[tuple(slice(n) for n in x.shape)] for v in (factor, shift))
    elif factor.size > 1:
        form = [1] * x.value.ndim
        form[axis] = factor.size
        factor, shift = factor.reshape(form), shift.reshape(form)
    else:
        factor, shift = factor.reshape(()), shift.reshape(())
    result = (x.value.astype(np.int64) - shift).astype(np.float32) * factor
    return Constant(result.astype(scale.value.dtype), x.name)


def literal(node: OnnxNode) -> Constant:
    """The value of a Constant node."""
    for key, value in node.attributes.items():
        if key != "value":
            dtype = np.float32 if key.startswith("value_float") else np.int64
            return Constant(np.array(value, dtype=dtype), node.outputs[0])
    if "value" not in node.attributes:
        raise node.unsupported("a constant that is not a tensor")
    return Constant(decode_tensor(node.attributes["value"], node.outputs[0]), node.outputs[0])


def filled(node: OnnxNode, shape: Constant) -> Constant:
    """ONNX ConstantOfShape."""
    value: Any = np.zeros(1, dtype=np.float32)
    if "value" in node.attributes:
        value = decode_tensor(node.attributes["value"], node.outputs[0])
    return Constant(np.full(shape.integers(), value.ravel()[0], dtype=value.dtype), node.outputs[0])
