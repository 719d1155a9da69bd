"""Stored tensors as constants, and the operators that turn element types into each other: Cast, DequantizeLinear."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mucg4.errors import UnsupportedError
from mucg4.ops.arrays import AnyArray, FloatArray, IntArray
from mucg4.read.constant import Constant
from mucg4.read.protobuf import (
    BFLOAT16,
    BOOL,
    DOUBLE,
    FLOAT,
    FLOAT16,
    INT64,
    TYPES,
    OnnxNode,
    decode_sparse,
    decode_tensor,
)


def cast(node: OnnxNode, a: Constant) -> Constant:
    """ONNX Cast of a constant. Narrowing to 16 bits rounds as onnxruntime does: from float32."""
    kind = node.attributes["to"]
    if kind not in TYPES or kind in (21, 22):
        raise node.unsupported(f"cast to element type {kind}")
    if kind == a.kind or (a.kind == FLOAT and kind == DOUBLE):
        return replace(a, kind=kind)  # a value folded in double stays so
    value = a.stated(node, "its input")
    if a.is_float and a.value.dtype.itemsize == 8 and a.kind == FLOAT:
        value = value.astype(np.float32)  # exact, as it is certain
    if kind == BFLOAT16:
        if a.kind == DOUBLE:
            raise node.unsupported("cast of double to bfloat16")
        return Constant(_brain(value.astype(np.float32)), a.name, kind)
    if kind == BOOL:
        return Constant(value != 0, a.name, kind)
    target = np.dtype(TYPES[kind][0])
    if target.kind in "iu":
        _fits(node, value, target)
    if kind == FLOAT16:
        if a.kind == DOUBLE or (value.dtype.kind in "iu" and np.any(abs(value.astype(np.float64)) >= 2.0**24)):
            raise node.unsupported(f"cast of element type {a.kind} to float16")  # rounded twice, or once
        value = value.astype(np.float32)
    with np.errstate(all="ignore"):
        return Constant(np.asarray(value.astype(target)), a.name, kind)


def _fits(node: OnnxNode, value: AnyArray, target: np.dtype[Any]) -> None:
    """Refuse numbers that an integer type does not hold: what a cast makes of them differs between machines."""
    if not value.size or value.dtype.kind == "b":
        return
    bounds = np.iinfo(target)
    if value.dtype.kind == "f":
        value = value.astype(np.float64)
        good = np.isfinite(value) & (value > float(bounds.min) - 1) & (value < float(bounds.max) + 1)
        if target.itemsize == 8:
            good &= abs(value) < 2.0**63
    else:
        good = np.array([bounds.min <= int(v) <= bounds.max for v in (value.min(), value.max())])
    if not np.all(good):
        raise node.unsupported(f"cast of a number outside {target.name}")


def _brain(value: FloatArray) -> FloatArray:
    """float32 rounded to bfloat16, to nearest with ties to even, as float32."""
    if not np.all(np.isfinite(value)):
        raise UnsupportedError("cast of nan or infinite numbers to bfloat16")
    bits: IntArray = value.view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return np.asarray(bits.astype(np.uint32).view(np.float32))


def dequantize(node: OnnxNode, x: Constant, scale: Constant, zero: Constant | None) -> Constant:
    """ONNX DequantizeLinear exactly as onnxruntime computes it: `float32(x - zero) * scale` in float32."""
    if scale.kind not in (FLOAT, FLOAT16):
        raise node.unsupported(f"scale of element type {scale.kind}")
    if x.value.dtype.kind not in "iu":
        raise node.unsupported(f"quantised values of element type {x.kind}")
    if zero is not None and (zero.kind != x.kind or zero.shape != scale.shape):
        raise node.invalid("its zero point has another type than its values or another shape than its scale")
    if node.attributes.get("output_dtype", 0) not in (0, scale.kind):
        raise node.unsupported(f"output_dtype {node.attributes['output_dtype']}")
    factor = scale.stated(node, "its scale").astype(np.float32)
    shift = np.zeros_like(factor, dtype=np.int64) if zero is None else zero.value.astype(np.int64)
    axis = node.attributes.get("axis", 1)
    block = node.attributes.get("block_size", 0)
    if block < 0:
        raise node.invalid(f"block_size {block}")
    if block:
        axis = _axis(node, axis, x.value.ndim)
        wanted = tuple(-(-n // block) if i == axis else n for i, n in enumerate(x.shape))
        if factor.shape != wanted:
            raise node.invalid(f"its scale has the shape {list(factor.shape)} instead of {list(wanted)}")
        factor, shift = np.repeat(factor, block, axis=axis), np.repeat(shift, block, axis=axis)
        inside = tuple(slice(n) for n in x.shape)
        factor, shift = np.asarray(factor[inside]), np.asarray(shift[inside])
    elif factor.size == 1 and factor.ndim < 2:
        factor, shift = factor.reshape(()), shift.reshape(())
    else:
        axis = _axis(node, axis, x.value.ndim)
        if factor.shape != (x.shape[axis],):
            raise node.invalid(f"scales of shape {list(factor.shape)} for an axis of {x.shape[axis]}")
        form = [1] * x.value.ndim
        form[axis] = factor.size
        factor, shift = factor.reshape(form), shift.reshape(form)
    with np.errstate(all="ignore"):
        result = (x.value.astype(np.int64) - shift).astype(np.float32) * factor
        return Constant(np.asarray(result.astype(scale.value.dtype)), x.name, scale.kind)


def _axis(node: OnnxNode, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise node.invalid(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank


def literal(node: OnnxNode) -> Constant:
    """The value of a Constant node."""
    if len(node.attributes) != 1:
        raise node.invalid("it needs exactly one value")
    ((key, value),) = node.attributes.items()
    if key != "value":
        single = key.startswith("value_float")
        kind, dtype = (FLOAT, np.float32) if single else (INT64, np.int64)
        return Constant(np.array(value, dtype=dtype), node.outputs[0], kind)
    return stored(value, node.outputs[0])


def stored(tensor: Any, name: str) -> Constant:
    """A TensorProto or SparseTensorProto as a constant."""
    if hasattr(tensor, "indices"):
        return Constant(decode_sparse(tensor), name, tensor.values.data_type)
    return Constant(decode_tensor(tensor, name), name, tensor.data_type)


def filled(node: OnnxNode, shape: Constant) -> Constant:
    """ONNX ConstantOfShape."""
    value, kind = np.zeros(1, dtype=np.float32), FLOAT
    if "value" in node.attributes:
        tensor = node.attributes["value"]
        value, kind = decode_tensor(tensor, node.outputs[0]), tensor.data_type
    if value.size != 1:
        raise node.invalid(f"its value has {value.size} entries")
    dims = node.sized(shape.integers())
    return Constant(np.full(dims, value.ravel()[0], dtype=value.dtype), node.outputs[0], kind)
