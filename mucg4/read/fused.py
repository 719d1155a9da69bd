"""Operators that onnxruntime's own optimiser writes into a saved model: several ordinary ones in one node.

Each is read as those that it stands for. Its rounding is not known (`mucg4.read.onnx` treats them as those of
`mucg4.read.composed.OTHERWISE`). Source: the contrib operators' page of onnxruntime.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mucg4.ops.curves import GELU, GELU_TANH
from mucg4.ops.smooth import SIGMOID
from mucg4.read import constant
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.composed import COMPOSED_HANDLERS
from mucg4.read.constant import number
from mucg4.read.functions import FUNCTION_HANDLERS
from mucg4.read.operators import HANDLERS, Handler, Values, matmul, optional_constant, variable, weighted
from mucg4.read.protobuf import OnnxNode
from mucg4.read.windows import WINDOW_HANDLERS

DOMAIN = "com.microsoft::"
PARAMETERS = {
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
    "Elu": ("alpha",),
    "Selu": ("alpha", "gamma"),
    "ThresholdedRelu": ("alpha",),
}
QUICK = 1.702  # alpha of QuickGelu where none is given; given
SKIP_EPSILON = float(np.float32(1e-12))  # given


def _as(node: OnnxNode, op: str, attributes: dict[str, Any]) -> OnnxNode:
    return replace(node, op=op, attributes=attributes)


def _activated(b: Builder, node: OnnxNode, x: Value, parameters: dict[str, float]) -> list[Value]:
    """The function that `activation` names, if any."""
    name = node.attributes.get("activation", "")
    if not name:
        return [x]
    return FUNCTION_HANDLERS[name](b, _as(node, name, parameters), [x])


def _gemm(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    plain = {k: v for k, v in node.attributes.items() if not k.startswith("activation")}
    (out,) = HANDLERS["Gemm"](b, _as(node, "Gemm", plain), values)
    given = {k.removeprefix("activation_"): v for k, v in node.attributes.items() if k.startswith("activation_")}
    known = PARAMETERS.get(node.attributes.get("activation", ""), ())
    return _activated(b, node, out, {k: v for k, v in given.items() if k in known})


def _conv(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`activation(convolution + Z)`."""
    plain = {k: v for k, v in node.attributes.items() if not k.startswith("activation")}
    (out,) = WINDOW_HANDLERS["Conv"](b, _as(node, "Conv", plain), values[:3])
    more = values[3] if len(values) > 3 else None
    if more is not None:
        if more.shape != out.shape:
            raise node.invalid(f"its fourth input has the shape {list(more.shape)}, not {list(out.shape)}")
        out = b.combine(out, more)
    given = node.attributes.get("activation_params", ())
    known = PARAMETERS.get(node.attributes.get("activation", ""), ())
    if len(given) != len(known):
        raise node.invalid(f"{len(given)} parameters of its activation")
    return _activated(b, node, out, dict(zip(known, given, strict=True)))


def _matmul(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """Factors whose first axis goes behind those of the batch, then their last two axes change places."""
    sides: list[Value] = []
    for side, x in zip("AB", values, strict=True):
        key = f"trans{side}"
        if x is None:
            raise node.invalid("it needs two inputs")
        if node.attributes.get(f"transBatch{side}", 0):
            if len(x.shape) < 3:
                raise node.unsupported(f"transBatch{side} of a matrix")
            x = b.move(x, _first_inwards) if isinstance(x, Variable) else x.map(_first_inwards)
        if node.attributes.get(key, 0):
            if len(x.shape) < 2:
                raise node.unsupported(f"{key} of a vector")
            x = b.move(x, _turned) if isinstance(x, Variable) else x.map(_turned)
        sides.append(x)
    return [weighted(b, matmul(b, node, sides[0], sides[1]), node.attributes.get("alpha", 1.0))]


def _turned(a: np.ndarray) -> np.ndarray:
    return np.swapaxes(a, -1, -2)


def _first_inwards(a: np.ndarray) -> np.ndarray:
    return np.moveaxis(a, 0, -2)


def _gelu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """Gelu, BiasGelu and FastGelu, the last one by the hyperbolic tangent."""
    x, shift = variable(node, values), optional_constant(node, values, 1)
    if shift is not None:
        if len(shift.shape) != 1 or shift.shape[0] not in (1, x.shape[-1]):
            raise node.invalid(f"a bias of shape {list(shift.shape)}")
        x = b.shift(x, shift)
    return [b.node(GELU_TANH if node.op.endswith("FastGelu") else GELU, [x], x.shape)]


def _quick_gelu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`x Sigmoid(a x)`: a function of `a x`, over a."""
    x, a = variable(node, values), number(node.attributes.get("alpha", float(np.float32(QUICK))))
    if not a.value:
        raise node.unsupported("alpha 0")
    inner = b.times(x, a)
    gate = b.product(inner, b.node(SIGMOID, [inner], inner.shape))
    return [b.times(gate, constant.divide(number(1.0), a))]


def _skip(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """A layer's normalisation of a sum of two inputs and a bias; the sum is the fourth output."""
    if any(node.outputs[1:3]):
        raise node.unsupported("mean and deviation as outputs")
    simple = "Simplified" in node.op
    full = [*values, None, None, None][:5] if not simple else [*values[:3], None, *values[3:4], None][:5]
    x, other, scale, shift, bias = full
    if x is None or other is None:
        raise node.invalid("it needs two inputs")
    if b.common(x.shape, other.shape) != x.shape:
        raise node.invalid(f"its second input has the shape {list(other.shape)}")
    total = b.combine(x, other)
    if bias is not None:
        total = b.combine(total, bias)
    op = "RMSNormalization" if simple else "LayerNormalization"
    (out,) = COMPOSED_HANDLERS[op](
        b,
        replace(_as(node, op, {"epsilon": node.attributes.get("epsilon", SKIP_EPSILON)}), outputs=node.outputs[:1]),
        [total, scale, shift],
    )
    return [out, total, total, total]


# operator -> handler; what of it is read stands in `mucg4.read.table`
FUSED_HANDLERS: dict[str, Handler] = {
    f"{DOMAIN}FusedGemm": _gemm,
    f"{DOMAIN}FusedConv": _conv,
    f"{DOMAIN}FusedMatMul": _matmul,
    f"{DOMAIN}Gelu": _gelu,
    f"{DOMAIN}BiasGelu": _gelu,
    f"{DOMAIN}FastGelu": _gelu,
    f"{DOMAIN}QuickGelu": _quick_gelu,
    f"{DOMAIN}SkipLayerNormalization": _skip,
    f"{DOMAIN}SkipSimplifiedLayerNormalization": _skip,
}
