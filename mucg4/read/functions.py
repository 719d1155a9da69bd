"""Functions of one tensor that depends on the network's input: rectifiers, limits, curves and steps."""

from __future__ import annotations

import numpy as np

from mucg4.ops.base import Nonlinear
from mucg4.ops.curves import (
    COS,
    EXP,
    GELU,
    GELU_TANH,
    HARD_SWISH,
    LOG,
    MISH,
    RECIPROCAL,
    SIN,
    SOFTPLUS,
    SQRT,
    Elu,
)
from mucg4.ops.piecewise import RELU, TwoPiece
from mucg4.ops.smooth import ATAN, ERF, SIGMOID, SOFTSIGN, TANH
from mucg4.ops.steps import FLOOR, ROUND, SIGN
from mucg4.read import constant
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.constant import Constant, number
from mucg4.read.operators import Handler, Values, optional_constant, required_constant, variable, weighted
from mucg4.read.protobuf import DOUBLE, FLOAT, OnnxNode


def _relu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [b.relu(variable(node, values))]


def _abs(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [b.absolute(variable(node, values))]


def _leaky(b: Builder, x: Variable, slope: float) -> Variable:
    """`slope * x` left of zero, x right of it."""
    if slope == 1.0:
        return x
    if slope < 1.0:
        return b.relu(x, TwoPiece(slope, 1.0) if slope else RELU)
    return b.negate(b.relu(b.negate(x), TwoPiece(1.0, slope)))


def _leaky_relu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    return [_leaky(b, variable(node, values), node.attributes.get("alpha", float(np.float32(0.01))))]


def _prelu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, slope = variable(node, values), required_constant(node, values, 1)
    if b.common(x.shape, slope.shape) != x.shape:
        raise node.invalid(f"a slope of shape {list(slope.shape)} for an input of shape {list(x.shape)}")
    slopes = np.unique(slope.double())
    if len(slopes) == 1 and slope.certain:
        return [_leaky(b, x, float(slope.weight()[0].ravel()[0]))]
    left = b.times(b.relu(b.negate(x)), slope)
    return [b.combine(b.relu(x), left, -1.0)]


def _clip(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`min(max(x, low), high)` in this order, so that `high` holds where the limits are the wrong way round.

    A limit at the end of the numbers limits nothing; one at the wrong end leaves no number between the limits.
    """
    x: Variable = variable(node, values)
    low, high = _limit(node, values, 1, "min"), _limit(node, values, 2, "max")
    kind = low.kind if low else high.kind if high else FLOAT
    last = float(np.finfo(np.float64 if kind == DOUBLE else np.float32).max)
    ends = tuple(default if c is None else float(c.double()) for c, default in ((low, -np.inf), (high, np.inf)))
    if np.isnan(ends).any():
        raise node.invalid("a limit is nan")
    if ends[0] == np.inf or ends[1] == -np.inf:
        raise node.unsupported(f"the limits {ends[0]} and {ends[1]} leave no number between them")
    if high is not None and (ends[1] <= -last or (ends[0] >= last and ends[1] < last)):
        return [b.shift(b.times(x, number(0.0)), high)]
    if low is not None and ends[0] >= last:
        return [b.shift(b.times(x, number(0.0)), low)]
    if low is not None and ends[0] > -last:
        x = b.maximum(x, low)
    if high is not None and ends[1] < last:
        x = b.maximum(x, high, largest=False)
    return [x]


def _limit(node: OnnxNode, values: Values, at: int, key: str) -> Constant | None:
    """One limit of a Clip, as a single number."""
    if key in node.attributes:
        return Constant(np.array(node.attributes[key]), f"{node.name} {key}", FLOAT)
    c = optional_constant(node, values, at)
    if c is not None and (c.value.size != 1 or len(c.shape) > 1):
        raise node.invalid(f"its {key} has the shape {list(c.shape)}")
    return None if c is None else c.map(lambda v: v.reshape(()))


def _hard_sigmoid(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    alpha = node.attributes.get("alpha", float(np.float32(0.2)))
    beta = node.attributes.get("beta", 0.5)
    x = b.shift(b.times(variable(node, values), number(alpha)), number(beta))
    x = b.maximum(x, number(0.0))
    return [b.maximum(x, number(1.0), largest=False)]


def _gelu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x, kind = variable(node, values), node.attributes.get("approximate", "none")
    return [b.node(GELU if kind == "none" else GELU_TANH, [x], x.shape)]


def _elu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    return [b.node(Elu(node.attributes.get("alpha", 1.0)), [x], x.shape)]


def _selu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = variable(node, values)
    alpha, gamma = (
        node.attributes.get("alpha", 1.67326319217681884765625),
        node.attributes.get("gamma", 1.05070102214813232421875),
    )
    return [weighted(b, b.node(Elu(alpha), [x], x.shape), gamma)]


def _celu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`alpha Elu(x / alpha)`."""
    alpha = node.attributes.get("alpha", 1.0)
    x = b.times(variable(node, values), constant.divide(number(1.0), number(alpha)))
    return [weighted(b, b.node(Elu(1.0), [x], x.shape), alpha)]


def _ceil(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    x = b.negate(variable(node, values))
    return [b.negate(b.node(FLOOR, [x], x.shape))]


def _thresholded_relu(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
    """`x` where `x > alpha`, else 0: a ReLU of x - alpha, and alpha times the positive part of its sign."""
    alpha = number(node.attributes.get("alpha", 1.0))
    x = b.combine(variable(node, values), alpha, -1.0)
    if not alpha.value:
        return [b.relu(x)]
    return [b.combine(b.relu(x), b.times(b.relu(b.node(SIGN, [x], x.shape)), alpha))]


def _elementwise(op: Nonlinear) -> Handler:
    """A function of one tensor; with two inputs it would read both from `values`."""

    def handler(b: Builder, node: OnnxNode, values: Values) -> list[Value]:
        x = variable(node, values)
        return [b.node(op, [x], x.shape)]

    return handler


# operator -> handler; what of it is read stands in `mucg4.read.table`
FUNCTION_HANDLERS: dict[str, Handler] = {
    "Relu": _relu,
    "Abs": _abs,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "Sigmoid": _elementwise(SIGMOID),
    "Sin": _elementwise(SIN),
    "Cos": _elementwise(COS),
    "Exp": _elementwise(EXP),
    "Reciprocal": _elementwise(RECIPROCAL),
    "Sign": _elementwise(SIGN),
    "Floor": _elementwise(FLOOR),
    "Ceil": _ceil,
    "Round": _elementwise(ROUND),
    "ThresholdedRelu": _thresholded_relu,
    "Log": _elementwise(LOG),
    "Sqrt": _elementwise(SQRT),
    "Softplus": _elementwise(SOFTPLUS),
    "Softsign": _elementwise(SOFTSIGN),
    "Atan": _elementwise(ATAN),
    "Erf": _elementwise(ERF),
    "Gelu": _gelu,
    "HardSwish": _elementwise(HARD_SWISH),
    "Mish": _elementwise(MISH),
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Tanh": _elementwise(TANH),
}
