"""Operators of the set `ai.onnx.ml` that are affine maps: what scikit-learn's scalers and linear models become."""

from __future__ import annotations

import numpy as np

from mucg4.read.build import Builder, Value
from mucg4.read.constant import Constant
from mucg4.read.operators import Handler, Values, matmul, variable
from mucg4.read.protobuf import OnnxNode

LEARNED = "ai.onnx.ml::"


def _numbers(node: OnnxNode, key: str) -> np.ndarray:
    return np.array(node.attributes.get(key, ()), dtype=np.float32)


def _scaler(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`(x - offset) scale` along the last axis."""
    x, offset, scale = variable(node, values), _numbers(node, "offset"), _numbers(node, "scale")
    if len(offset) != len(scale) or not x.shape or len(scale) not in (1, x.shape[-1]):
        raise node.invalid(f"{len(offset)} offsets and {len(scale)} scales for a shape {list(x.shape)}")
    return [b.times(b.combine(x, Constant(offset), -1.0), Constant(scale))]


def _linear(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """LinearRegressor: rows of the coefficients are the targets."""
    x, weight, shift = variable(node, values), _numbers(node, "coefficients"), _numbers(node, "intercepts")
    targets = node.attributes.get("targets", 1)
    if len(x.shape) != 2 or len(weight) != targets * x.shape[1] or len(shift) not in (0, targets):
        raise node.invalid(f"{len(weight)} coefficients for a shape {list(x.shape)}")
    out = matmul(b, node, x, Constant(np.ascontiguousarray(weight.reshape(targets, -1).T)))
    return [b.combine(out, Constant(shift)) if len(shift) else out]


# operator -> handler; what of it is read stands in `mucg4.read.table`
LEARNED_HANDLERS: dict[str, Handler] = {f"{LEARNED}Scaler": _scaler, f"{LEARNED}LinearRegressor": _linear}
