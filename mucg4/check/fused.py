"""Second reading: operators of the sets `com.microsoft` and `ai.onnx.ml`, by the formulas on their pages."""

from __future__ import annotations

from dataclasses import replace
from math import pi
from typing import TYPE_CHECKING, Any

import numpy as np

from mucg4.check.composed import COMPOSED
from mucg4.check.meaning import MEANINGS
from mucg4.check.moves import Meaning, Values, given
from mucg4.check.slide import SLIDES
from mucg4.check.sums import SUMS, product
from mucg4.check.values import Fallback, Value
from mucg4.check.wire import Node, single

if TYPE_CHECKING:
    from mucg4.check.reading import Reading

SUFFIXES = ("alpha", "beta", "gamma")  # of a FusedGemm's parameters that functions have; given
ORDER = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max")}
MORE = {"Elu": ("alpha",), "Selu": ("alpha", "gamma"), "ThresholdedRelu": ("alpha",), "Softplus": (), "Softsign": ()}


def _function(r: Reading, node: Node, x: Value, given: dict[str, Any]) -> list[Value]:
    """What `activation` names, of x."""
    name = node.attributes.get("activation", "")
    if not name:
        return [x]
    if name not in ("Relu", "Sigmoid", "Tanh", *ORDER, *MORE):
        raise Fallback(f"activation {name!r}")
    own = {k: v for k, v in given.items() if k in {**ORDER, **MORE}.get(name, ())}
    return MEANINGS[name][0](r, replace(node, op=name, attributes=own), [x])


def _gemm(r: Reading, node: Node, xs: Values) -> list[Value]:
    (out,) = SUMS["Gemm"][0](r, replace(node, op="Gemm"), xs)
    given = {k: node.attributes[f"activation_{k}"] for k in SUFFIXES if f"activation_{k}" in node.attributes}
    return _function(r, node, out, given)


def _conv(r: Reading, node: Node, xs: Values) -> list[Value]:
    (out,) = SLIDES["Conv"][0](r, replace(node, op="Conv"), xs[:3])
    if len(xs) > 3 and xs[3] is not None:
        if xs[3].shape != out.shape:
            raise Fallback("an addend of another shape")
        out = r.n.add(out, xs[3])
    order, numbers = ORDER.get(node.attributes.get("activation", ""), ()), node.attributes.get("activation_params", ())
    if len(order) != len(numbers):
        raise Fallback("another number of parameters")
    return _function(r, node, out, dict(zip(order, numbers, strict=True)))


def _matmul(r: Reading, node: Node, xs: Values) -> list[Value]:
    a, b = given(xs, 0), given(xs, 1)
    sides = []
    for x, key in ((a, "transA"), (b, "transB")):
        turn = bool(node.attributes.get(key, 0))
        if node.attributes.get(key.replace("trans", "transBatch"), 0):  # axes 1 ... r - 2, 0, r - 1
            rank = len(x.shape)
            if rank < 3:
                raise Fallback("a batch of no axes")
            order = (*range(1, rank - 1), 0, rank - 1)
            x = x.map(lambda v, order=order: v.transpose(order))  # type: ignore[misc]
        if turn and len(x.shape) < 2:
            raise Fallback("a vector that is transposed")
        sides.append(x.map(lambda v: v.swapaxes(-1, -2)) if turn else x)
    out = product(r, *sides)
    return [r.n.multiply(out, r.n.number(node.attributes.get("alpha", 1.0), out))]


def _gelu(r: Reading, node: Node, xs: Values) -> list[Value]:
    """`x Phi(x)`, or with the tangent's approximation, of the input and its bias."""
    x = given(xs, 0)
    if len(xs) > 1 and xs[1] is not None:
        if len(xs[1].shape) != 1:
            raise Fallback("a bias of several axes")
        x = r.n.add(x, xs[1])
    if node.op.endswith("FastGelu"):
        square = r.n.multiply(x, x)
        slope = r.n.add(r.n.multiply(square, r.n.number(0.044715, x)), r.n.number(1.0, x))
        inner = r.n.multiply(r.n.multiply(x, slope), r.n.number((2 / pi) ** 0.5, x))
        return [
            r.n.multiply(
                r.n.multiply(x, r.n.number(0.5, x)), r.n.add(r.n.call(np.tanh, inner, 1.0), r.n.number(1.0, x))
            )
        ]
    return MEANINGS["Gelu"][0](r, replace(node, op="Gelu", attributes={}), [x])


def _quick_gelu(r: Reading, node: Node, xs: Values) -> list[Value]:
    x = given(xs, 0)
    inner = r.n.multiply(x, r.n.number(node.attributes.get("alpha", single(1.702)), x))
    (gate,) = MEANINGS["Sigmoid"][0](r, replace(node, op="Sigmoid", attributes={}), [inner])
    return [r.n.multiply(x, gate)]


def _skip(r: Reading, node: Node, xs: Values) -> list[Value]:
    """The fourth output is the sum that is normalised."""
    simple = "Simplified" in node.op
    total = r.n.add(given(xs, 0), given(xs, 1))
    if total.shape != given(xs, 0).shape or any(node.outputs[1:3]):
        raise Fallback("another shape, or statistics as outputs")
    at = 3 if simple else 4
    if len(xs) > at and xs[at] is not None:
        total = r.n.add(total, given(xs, at))
    ends = [given(xs, 2)] + ([] if simple or len(xs) < 4 or xs[3] is None else [given(xs, 3)])
    op = "RMSNormalization" if simple else "LayerNormalization"
    inner = replace(
        node, op=op, outputs=node.outputs[:1], attributes={"epsilon": node.attributes.get("epsilon", single(1e-12))}
    )
    (out,) = COMPOSED[op][0](r, inner, [total, *ends])
    return [out, total, total, total]


def _scaler(r: Reading, node: Node, xs: Values) -> list[Value]:
    """`(x - offset) * scale`, one for all features or one for each."""
    x = given(xs, 0)
    offset, scale = (np.array(node.attributes.get(k, ()), dtype=np.float64) for k in ("offset", "scale"))
    if not x.shape or {len(offset), len(scale)} - {1, x.shape[-1]} or len(offset) != len(scale):
        raise Fallback("offsets and scales that do not fit")
    return [r.n.multiply(r.n.add(x, Value(offset, x.kind), -1), Value(scale, x.kind))]


def _linear(r: Reading, node: Node, xs: Values) -> list[Value]:
    """`x W + b`; a target's coefficients follow each other."""
    x, a = given(xs, 0), node.attributes
    targets = a.get("targets", 1)
    weight, shift = (np.array(a.get(k, ()), dtype=np.float64) for k in ("coefficients", "intercepts"))
    if a.get("post_transform", "NONE") != "NONE" or len(x.shape) != 2 or len(weight) != targets * x.shape[1]:
        raise Fallback("coefficients that do not fit, or a transformation")
    out = product(r, x, Value(weight.reshape(targets, x.shape[1]).T.copy(), x.kind))
    return [out if not len(shift) else r.n.add(out, Value(shift, x.kind))]


_SET = "com.microsoft::"
_GEMM, _CONV = SUMS["Gemm"][1], SLIDES["Conv"][1]
FUSED: dict[str, tuple[Meaning, str]] = {
    "ai.onnx.ml::Scaler": (_scaler, "offset scale"),
    "ai.onnx.ml::LinearRegressor": (_linear, "coefficients intercepts post_transform targets"),
    f"{_SET}FusedGemm": (_gemm, f"{_GEMM} activation activation_alpha activation_beta activation_gamma"),
    f"{_SET}FusedConv": (_conv, f"{_CONV} activation activation_params"),
    f"{_SET}FusedMatMul": (_matmul, "alpha transA transB transBatchA transBatchB"),
    f"{_SET}Gelu": (_gelu, ""),
    f"{_SET}BiasGelu": (_gelu, ""),
    f"{_SET}FastGelu": (_gelu, ""),
    f"{_SET}QuickGelu": (_quick_gelu, "alpha"),
    f"{_SET}SkipLayerNormalization": (_skip, "epsilon"),
    f"{_SET}SkipSimplifiedLayerNormalization": (_skip, "epsilon"),
}
