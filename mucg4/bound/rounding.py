"""The one place where floating-point rounding enters bounds.

Backward bounds carry rows `A` of functionals from the output side to the input. All arithmetic is
IEEE, in the precision of the inputs, with unit roundoff `u = 2**-53` (float64) or `2**-24` (float32).
Write `M_k` for a vector that is at least the size of
every term summed in component j of node k anywhere in the root box: `|W| max(|l|, |u|) + |b|` for an
affine node (with folded terms, see `Affine.bias_magnitude`), `max(|l|, |u|)` for the input, and the
sizes of slope times argument plus offset for a nonlinear node. A product of a row with an affine map
of fan-in n, in any order of summation and with or without fused multiply-add, is off by at most
`gamma_n |A| M_k` when applied to any admissible value, `gamma_n = n u / (1 - n u)` (Higham, Accuracy
and Stability of Numerical Algorithms, 2nd ed., section 3.1). With the inequality of Cauchy and
Schwarz one number per row and node is enough:

    error(row) <= sum_k E_k ||A_k||_2,    E_k = gamma(max(fan_in_k, size_k) + SLACK) ||M_k||_2.

SLACK covers the few extra roundings per element: slopes and offsets of a relaxation, stored weights
that were rounded while merging a diagonal scale or (`Network.cast`) to float32, rows that meet where the
graph joins, property coefficients (nearest numbers of exact decimals), and the constants' own summation.
`M_k` of the root box serves every region inside it, so the whole contract costs one norm per row and
node. The factor 2 in `gamma` covers that norms, `M_k` and errors are themselves computed rounded, as long
as k u is well below 1 (beyond that gamma is useless or negative: `gamma` gives inf).

A map that stands for another one within a known distance per output (`Dense.slack`) adds the norm of the
distances to E_k.

Underflow. Numbers below the smallest normal one may lose all digits. An entry of a row that underflowed is
charged by the floor under every row norm (`Precision.floor` times gamma exceeds the underflow errors of 1e17
operations); products with offsets by `tiny` in a row's error; weights that `Backend.parameter` moved to the
smallest normal number by `tiny (1 + ||inputs||)` in E_k. A number that is zero because nothing was added up
stays exactly zero.

A bound that uses this error is sound in real arithmetic for the stored weights. nan never compares
as closed; overflow gives inf, which closes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mucg4.model.network import Network, affine_magnitude
from mucg4.ops.affine import Dense
from mucg4.ops.arrays import DOUBLE, Array, precision, xp
from mucg4.ops.base import Affine, Nonlinear

SLACK = 64


def gamma(n: int, unit: float = DOUBLE.unit) -> float:
    """Higham's gamma_n for n + SLACK operations, doubled against rounding of the bound itself."""
    k = (n + SLACK) * unit
    return 2.0 * k / (1.0 - k) if k < 0.125 else np.inf


@dataclass(frozen=True)
class Scales:
    """`error[k]` is E_k of the module text; `value[k] (size_k,)` bounds |value| of node k on the root box.

    `input_dot` is gamma of a product with an input, `tiny` what a row's error starts from.
    """

    error: tuple[float, ...]
    value: tuple[Array, ...]
    input_dot: float
    tiny: float

    def times(self, caution: float) -> Scales:
        """Every charge so many times."""
        error = tuple(caution * e for e in self.error)
        return Scales(error, self.value, caution * self.input_dot, caution * self.tiny)


def scales(network: Network, low: list[Array], up: list[Array]) -> Scales:
    """E_k for every node from sound interval bounds `low[k], up[k] (size_k,)` of all node values."""
    value = [xp(lo).maximum(abs(lo), abs(hi)) for lo, hi in zip(low, up, strict=True)]
    p = precision(low[0])
    with np.errstate(over="ignore"):
        norms = [float(xp(v).linalg.norm(v)) for v in value]
    error = []
    for k, node in enumerate(network.nodes):
        apart = 0.0
        if node.op is None:
            m = value[k]
            fan = 2
        elif isinstance(node.op, Affine):
            m = affine_magnitude(node.op, [value[i][None] for i in node.inputs])[0] + value[k]
            fan = node.op.fan_in + len(network.users[k])
            if isinstance(node.op, Dense) and node.op.slack is not None:
                apart = float(xp(m).linalg.norm(node.op.slack))
        else:
            assert isinstance(node.op, Nonlinear)
            m = value[k] + 4.0 * node.op.terms([low[i] for i in node.inputs], [up[i] for i in node.inputs])
            fan = 8
        with np.errstate(over="ignore"):
            # a row's product with a bias or with line offsets sums over its own size, constants over all nodes
            share = gamma(max(fan, node.size) + len(network.nodes), p.unit)
            moved = p.tiny * (1.0 + sum(norms[i] for i in node.inputs))
            error.append((share * float(xp(m).linalg.norm(m)) + apart) * (1 + 1e-6) + moved)
    return Scales(tuple(error), tuple(value), gamma(network.input_size, p.unit), p.tiny)
