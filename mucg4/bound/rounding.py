"""The one place where floating-point rounding enters bounds.

Backward bounds carry rows `A` of functionals from the output side to the input. All arithmetic is
IEEE double with unit roundoff `u = 2**-53`. Write `M_k` for a vector that is at least the size of
every term summed in component j of node k anywhere in the root box: `|W| max(|l|, |u|) + |b|` for an
affine node (with folded terms, see `Affine.bias_magnitude`), `max(|l|, |u|)` for the input, and the
sizes of slope times argument plus offset for a nonlinear node. A product of a row with an affine map
of fan-in n, in any order of summation and with or without fused multiply-add, is off by at most
`gamma_n |A| M_k` when applied to any admissible value, `gamma_n = n u / (1 - n u)` (Higham, Accuracy
and Stability of Numerical Algorithms, 2nd ed., section 3.1). With the inequality of Cauchy and
Schwarz one number per row and node is enough:

    error(row) <= sum_k E_k ||A_k||_2,    E_k = gamma(max(fan_in_k, size_k) + SLACK) ||M_k||_2.

SLACK covers the few extra roundings per element: slopes and offsets of a relaxation, stored weights
that were rounded while merging a diagonal scale, rows that meet where the graph joins, property
coefficients (nearest doubles of exact decimals), and the constants' own summation. `M_k` of the root
box serves every region inside it, so the whole contract costs one norm per row and node.

A bound that uses this error is sound in real arithmetic for the stored weights. nan never compares
as closed; overflow gives inf, which closes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mucg4.model.network import Network, affine_magnitude
from mucg4.ops.base import Affine, Array
from mucg4.ops.piecewise import TwoPiece

UNIT = 2.0**-53
SLACK = 64
TINY = 1e-290  # larger than the sum of all underflow errors of any network that fits in memory


def gamma(n: int) -> float:
    """Higham's gamma_n for n + SLACK operations, doubled against rounding of the bound itself."""
    k = (n + SLACK) * UNIT
    return 2.0 * k / (1.0 - k)


@dataclass(frozen=True)
class Scales:
    """`error[k]` is E_k of the module text; `value[k] (size_k,)` bounds |value| of node k on the root box."""

    error: tuple[float, ...]
    value: tuple[Array, ...]
    input_dot: float


def scales(network: Network, low: list[Array], up: list[Array]) -> Scales:
    """E_k for every node from sound interval bounds `low[k], up[k] (size_k,)` of all node values."""
    value = [np.maximum(abs(lo), abs(hi)) for lo, hi in zip(low, up, strict=True)]
    error = []
    for k, node in enumerate(network.nodes):
        if node.op is None:
            m = value[k]
            fan = 2
        elif isinstance(node.op, Affine):
            m = affine_magnitude(node.op, [value[i][None] for i in node.inputs])[0] + value[k]
            fan = node.op.fan_in + len(network.users[k])
        else:
            # slopes of an S-shaped function are at most 1, those of two pieces (any alpha) at most the steeper one
            steep = max(1.0, abs(node.op.left), abs(node.op.right)) if isinstance(node.op, TwoPiece) else 1.0
            m = value[k] + 4.0 * steep * np.sum([value[i] for i in node.inputs], axis=0)
            fan = 8
        with np.errstate(over="ignore"):
            # a row's product with a bias or with line offsets sums over its own size, constants over all nodes
            error.append(gamma(max(fan, node.size) + len(network.nodes)) * float(np.linalg.norm(m)) * (1 + 1e-6) + TINY)
    return Scales(tuple(error), tuple(value), gamma(network.input_size))
