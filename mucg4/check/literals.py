"""Second reading: stored numbers, shapes as numbers, and conversions between element types."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from mucg4.check.moves import Meaning, Values, axis_of, fits, fixed, given, whole
from mucg4.check.values import Fallback, Value, fractions
from mucg4.check.wire import BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16, INT64, STORED, Node, Tensor
from mucg4.ops.arrays import AnyArray

if TYPE_CHECKING:
    from mucg4.check.reading import Reading


# of the integer types of values that depend on the input, as far as doubles hold all integers
RANGES: dict[int, tuple[float, float]] = {
    kind: (max(float(np.iinfo(STORED[kind][0]).min), -(2.0**53)), min(float(np.iinfo(STORED[kind][0]).max), 2.0**53))
    for kind in (2, 3, 4, 5, 6, INT64, 12, 13)
}
EXACT = {FLOAT: 2.0**24, DOUBLE: 2.0**53}  # up to which a type holds all integers; given


def _constant(v: AnyArray, kind: int = INT64) -> list[Value]:
    return [Value(v, kind)]


def _shape(r: Reading, node: Node, xs: Values) -> list[Value]:
    part = slice(node.attributes.get("start", 0), node.attributes.get("end"))
    return _constant(np.array(given(xs, 0).shape[part], dtype=np.int64))


def _size(r: Reading, node: Node, xs: Values) -> list[Value]:
    return _constant(np.array(np.prod(given(xs, 0).shape, dtype=object), dtype=np.int64))


def stored(t: Tensor) -> Value:
    """A stored tensor: floats in double, integers as they are."""
    with np.errstate(all="ignore"):  # of a nan
        v = t.value.astype(np.float64) if t.value.dtype.kind == "f" else t.value
    return Value(v, t.kind)


def _literal(r: Reading, node: Node, xs: Values) -> list[Value]:
    (key, value), *more = node.attributes.items()
    if more or value is None or key not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise Fallback(f"a constant given by {key!r}")
    if isinstance(value, Tensor):
        return [stored(value)]
    kind = FLOAT if key.startswith("value_float") else INT64
    return _constant(np.array(value, dtype=np.float64 if kind == FLOAT else np.int64), kind)


def _filled(r: Reading, node: Node, xs: Values) -> list[Value]:
    shape = whole(node, xs, 0, "")
    value = node.attributes.get("value")
    one = Value(np.zeros(1), FLOAT) if value is None else stored(value)
    return [replace(one, v=np.full(fits(shape or ()), one.v.ravel()[0], dtype=one.v.dtype))]


def _range(r: Reading, node: Node, xs: Values) -> list[Value]:
    start, limit, step = (fixed(xs, i) for i in range(3))
    if start is None or limit is None or step is None or start.dtype.kind != "i" or not step:
        raise Fallback("a range of other than integers")
    fits([max(0, -(-(int(limit) - int(start)) // int(step)))])
    return _constant(np.arange(int(start), int(limit), int(step), dtype=start.dtype), given(xs, 0).kind)


def _cast(r: Reading, node: Node, xs: Values) -> list[Value]:
    x, kind = given(xs, 0), node.attributes.get("to", 0)
    narrower = {FLOAT: (DOUBLE,), FLOAT16: (FLOAT, DOUBLE, BFLOAT16), BFLOAT16: (FLOAT, DOUBLE, FLOAT16)}
    if x.is_float and not x.is_whole and kind in (FLOAT, DOUBLE, FLOAT16, BFLOAT16):
        if kind == DOUBLE or x.kind not in narrower.get(kind, ()):
            return [replace(x, kind=kind, held=x.held or x.kind)]
        return [replace(x, kind=kind, held=0) if kind == x.held else _rounded(r, x, kind)]
    # the comparison of a text with its query sees to it that inputs of integers are small enough
    if x.is_whole and kind == FLOAT and node.inputs[0] in {d.name for d in r.inputs}:
        return [replace(x, kind=kind)]
    if x.rows and x.kind == BOOL and kind in (FLOAT, DOUBLE, BOOL):
        return [replace(x, kind=kind)]
    if x.rows and kind in RANGES:
        return [_whole(r, x, kind)]
    if x.is_whole and kind in (FLOAT, DOUBLE):
        held = x.v if r.n.exact else np.where(abs(x.v) <= EXACT[kind], x.v, np.nan)
        return [Value(held, kind, True, x.e)]
    if x.rows and x.is_float and kind == BOOL:
        near = None if x.e is None else np.where(abs(x.v) <= x.e, np.inf, 0.0)
        v = (x.v != 0).astype(np.float64)
        return [replace(x, v=fractions(v) if r.n.exact else v, e=near, kind=BOOL)]
    if x.rows or kind not in STORED:
        raise Fallback(f"a cast to element type {kind}")
    if kind in (FLOAT, DOUBLE, FLOAT16, BFLOAT16):
        v = x.v.astype(np.float64 if kind == DOUBLE else np.float32).astype(np.float64)
        return [Value(v, kind) if kind in (FLOAT, DOUBLE) else _rounded(r, Value(v, FLOAT), kind)]
    if x.is_float and x.e is not None and kind != BOOL:
        raise Fallback("an integer from a computed number")
    return [Value((x.v != 0) if kind == BOOL else x.v.astype(STORED[kind][0]), kind)]


def _whole(r: Reading, x: Value, kind: int) -> Value:
    """To an integer type: the integer part, where the type has it; what becomes of other numbers is not known."""
    if x.kind == BOOL or x.is_whole:
        return in_range(replace(x, kind=kind))
    x = r.n.real(x)
    if r.n.exact:
        out = np.empty(x.v.shape, dtype=object)
        out.ravel()[:] = [Fraction(int(y)) for y in x.v.ravel()]
        return replace(x, v=out, kind=kind)
    return in_range(replace(r.n.step(np.trunc, x), kind=kind))


def in_range(x: Value) -> Value:
    """Integers at points; nan without an error stands for those that the type does not hold."""
    if x.kind not in RANGES or not x.rows or x.v.dtype == object:
        return x
    least, most = RANGES[x.kind]
    off = 0.0 if x.e is None else x.e
    inside, sure = (x.v - off >= least) & (x.v + off <= most), np.asarray(off == 0)
    v = np.where(inside | ~sure, x.v, np.nan)
    return replace(x, v=v, e=None if x.e is None else np.where(inside | sure, off, np.inf))


def _rounded(r: Reading, x: Value, kind: int) -> Value:
    """To a narrower type, to nearest; what is computed keeps its real value, and that it may be rounded."""
    if x.v.dtype == object:
        raise Fallback("no exact evaluation")
    with np.errstate(over="ignore", under="ignore"):
        v = x.v.astype(np.float32)
        if kind == FLOAT16:
            v = v.astype(np.float16)
        elif kind == BFLOAT16:
            bits = v.view(np.uint32).astype(np.uint64)
            v = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    v = v.astype(np.float64)
    off = abs(v - x.v) if x.e is None else x.e + abs(v - x.v)
    if x.rows and (kind != FLOAT or r.computes_double):
        return Value(v, kind, True, None if x.e is None else off)
    return Value(v, kind) if x.e is None and not x.rows else Value(x.v, kind, x.rows, off)


def _dequantize(r: Reading, node: Node, xs: Values) -> list[Value]:
    """`(x - zero) * scale` of constants, in float32 as onnxruntime computes it."""
    x, scale, zero = fixed(xs, 0), fixed(xs, 1), fixed(xs, 2)
    kind = given(xs, 1).kind
    if x is None or scale is None or x.dtype.kind not in "iu" or kind not in (FLOAT, FLOAT16):
        raise Fallback("other than stored integers and a scale in float32 or float16")
    if node.attributes.get("output_dtype", 0) not in (0, kind) or (zero is not None and zero.dtype.kind not in "iu"):
        raise Fallback("these element types")
    factor, shift = scale, np.zeros(scale.shape, dtype=np.int64) if zero is None else zero.astype(np.int64)
    if shift.shape != factor.shape:
        raise Fallback("a zero point that does not match its scale")
    block = node.attributes.get("block_size", 0)
    if block:
        axis = axis_of(node.attributes.get("axis", 1), x.ndim)
        at = np.arange(x.shape[axis]) // block
        factor, shift = (np.take(v, at, axis=axis) for v in (factor, shift))
    elif factor.ndim == 1 and factor.size > 1:
        axis = axis_of(node.attributes.get("axis", 1), x.ndim)
        form = [-1 if i == axis else 1 for i in range(x.ndim)]
        factor, shift = factor.reshape(form), shift.reshape(form)
    elif factor.size != 1:
        raise Fallback(f"a scale of shape {list(scale.shape)}")
    else:
        factor, shift = factor.reshape(()), shift.reshape(())
    v = (x.astype(np.int64) - shift).astype(np.float32) * factor.astype(np.float32)
    if v.shape != x.shape:
        raise Fallback("a scale that does not match")
    v = v.astype(np.float16) if kind == FLOAT16 else v
    return [Value(v.astype(np.float64), kind)]


LITERALS: dict[str, tuple[Meaning, str]] = {
    "Shape": (_shape, "start end"),
    "Size": (_size, ""),
    "Constant": (_literal, "value value_float value_floats value_int value_ints"),
    "ConstantOfShape": (_filled, "value"),
    "Range": (_range, ""),
    "Cast": (_cast, "to saturate"),
    "DequantizeLinear": (_dequantize, "axis block_size output_dtype"),
}
