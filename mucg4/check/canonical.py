"""Canonical operators at points, with a bound on the rounding of their values (see `mucg4.check.values`).

The operators' own `apply` and `magnitude` are what the canonical network means; the bounds here are of NumPy's float64
arithmetic in them, and of the roundings that folding left in their weights (`FOLDS`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mucg4.check.values import UNIT
from mucg4.model.network import Network
from mucg4.ops.arrays import FloatArray
from mucg4.ops.base import Affine, Nonlinear, Op
from mucg4.ops.conv import Conv, ConvTranspose
from mucg4.ops.piecewise import TwoPiece

# roundings a canonical weight or offset may have behind it, in units of its own size; not measured, far more than a
# reader's few
FOLDS = 32
SLOPES = {
    "Sigmoid": 0.25, "Tanh": 1.0, "Atan": 1.0, "Softsign": 1.0, "Softplus": 1.0, "Erf": 1.2, "Sin": 1.0, "Cos": 1.0,
    "HardSwish": 1.6, "Gelu": 1.2, "GeluTanh": 1.2, "Silu": 1.2, "Mish": 1.2,
}  # fmt: skip
GATES = ("Gelu", "GeluTanh", "Silu", "Mish", "HardSwish")
STEPS = ("Sign", "Floor", "Round", "Trunc")
Known = tuple[FloatArray, "FloatArray | None"]  # values and their errors, each (points, n)


def work(network: Network) -> int:
    """Products of weights and values in one evaluation, or values where those are more."""
    total = network.size
    for node in network.nodes:
        weight = getattr(node.op, "weight", None)
        if weight is not None:
            window, rows = getattr(node.op, "window", None), getattr(node.op, "rows", 1)
            total += weight.size * (window.positions if window else rows)
    return total


def evaluate(op: Op, xs: Sequence[Known]) -> Known:
    """A canonical operator at `(values, errors)`, each `(points, n)`, and a bound on its own and carried rounding."""
    values, errors = [x for x, _ in xs], [e for _, e in xs]
    if isinstance(op, Affine):
        return _affine(op, values, errors)
    assert isinstance(op, Nonlinear)
    v = op.apply(values)
    if isinstance(op, TwoPiece):
        steep = max(1.0, abs(op.left), abs(op.right))
        own = None if (op.left, op.right) == (0.0, 1.0) else 2 * UNIT * abs(v)
        return v, _sum(own, None if errors[0] is None else steep * errors[0])
    if len(values) == 2 and op.kind == "Product":
        (x, y), (e, f) = (abs(a) for a in values), errors
        both = None if e is None or f is None else e * f
        return v, _sum(UNIT * abs(v), None if e is None else e * y, None if f is None else f * x, both)
    if op.kind in STEPS:
        if errors[0] is None:
            return v, None
        near = [op.apply([values[0] + s * errors[0]]) for s in (-1.0, 1.0)]
        return v, np.where((near[0] == v) & (near[1] == v), 0.0, np.inf)
    own = (2048.0 if op.kind in GATES else 64.0) * UNIT * abs(v)
    if all(e is None for e in errors):
        return v, own
    if op.kind in SLOPES and errors[0] is not None:
        return v, own + SLOPES[op.kind] * errors[0]
    moved = [
        op.apply([x if e is None else x + s * e for x, e in zip(values, errors, strict=True)]) for s in (-1.0, 1.0)
    ]
    carried = np.maximum(abs(moved[0] - v), abs(moved[1] - v))
    return v, own + 2.0 * np.where(np.isnan(carried), np.inf, carried)


def _affine(op: Affine, values: Sequence[FloatArray], errors: Sequence[FloatArray | None]) -> Known:
    v, bias = op.apply(values), op.bias()
    if op.kind in ("Index", "Concat") or (op.kind == "Place" and not np.any(bias)):
        if all(e is None for e in errors):
            return v, None
        return v, op.magnitude([np.zeros_like(x) if e is None else e for x, e in zip(values, errors, strict=True)])
    unit = (op.fan_in + FOLDS) * UNIT
    sizes = [unit * abs(x) if e is None else unit * abs(x) + e for x, e in zip(values, errors, strict=True)]
    if isinstance(op, (Conv, ConvTranspose)):  # by the largest number of each point: half the work
        weight = abs(op.weight).reshape(len(op.weight), op.weight.shape[1], -1)
        if isinstance(op, ConvTranspose):
            weight = weight.reshape(op.window.group, -1, *weight.shape[1:]).sum(axis=1)
            weight = weight.reshape(-1, weight.shape[-1])
        per_channel = weight.reshape(op.window.channels if isinstance(op, ConvTranspose) else len(weight), -1).sum(
            axis=1
        )
        e = np.repeat(sizes[0].max(axis=1)[:, None] * per_channel, v.shape[1] // len(per_channel), axis=1)
    else:
        e = op.magnitude(sizes)
    return v, e if bias is None else e + unit * abs(bias)


def _sum(*parts: FloatArray | None) -> FloatArray | None:
    total = None
    for p in parts:
        if p is not None:
            total = p if total is None else total + p
    return total
