"""The slope of functionals of the outputs at concrete points, by one backward pass."""

from __future__ import annotations

import numpy as np

from mucg4.model.network import Network
from mucg4.ops.arrays import FloatArray
from mucg4.ops.base import Affine, Nonlinear


def gradient(
    network: Network, values: list[FloatArray], rows: FloatArray, leak: FloatArray | float = 0.0
) -> FloatArray:
    """`rows (N, outputs)` pulled back to the input at the points behind `values`: `(N, inputs)`.

    `leak (N, 1)` stands for derivatives that are zero.
    """
    pending: dict[int, FloatArray] = {len(network.nodes) - 1: rows}
    for k in range(len(network.nodes) - 1, 0, -1):
        a = pending.pop(k, None)
        if a is None:
            continue
        op = network.nodes[k].op
        inputs = network.nodes[k].inputs
        if isinstance(op, Affine):
            parts = op.adjoint(a)
        else:
            assert isinstance(op, Nonlinear)
            parts = tuple(a * (s + leak * (s == 0)) for s in op.tangent([values[i] for i in inputs]))
        for i, part in zip(inputs, parts, strict=True):
            pending[i] = pending[i] + part if i in pending else part
    return pending.get(0, np.zeros((len(rows), network.input_size)))
