"""How far an evaluation in the model's own precision may be off from the network in float64.

One node: with unit roundoff u of the element type an affine node of n products and sums is off by at most
`gamma_n (|W| |h| + |b|)` (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), in any order
of summation; an elementwise node by a few units in the last place. That is rigorous and small.

A whole network: carrying these bounds to the outputs by `|W| e` is rigorous too, but for deep networks so pessimistic
that no mistake would show. n roundings together are most likely not n but sqrt(n) units (Higham and Mary, A New
Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41, 2019). So errors of that size are injected
as random noise (Monte Carlo arithmetic, Parker 1997) and the largest deviation over some trials at the same
point is taken `FACTOR` times; measured on networks of twenty families, runs use at most a tenth of that. It counts
unless the rigorous bound is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from mucg4.errors import UnsupportedError
from mucg4.gate.wire import Slice
from mucg4.model.network import Network, Node
from mucg4.ops.affine import Dense, Reduce, RowDense
from mucg4.ops.arrays import BoolArray, FloatArray, median
from mucg4.ops.base import Affine, Nonlinear, Op
from mucg4.ops.conv import Conv
from mucg4.ops.curves import Gate, HardSwish
from mucg4.ops.piecewise import TwoPiece

TRIALS, STEP_TRIALS = 8, 16  # of noise; more where a step jumps or does not; not measured
FEW_OUTPUTS = 8  # so few do not tell how far the others may be off; not measured
FACTOR = 3.0  # of the largest change that noise makes; measured, see the module text
SPREAD = 1.5  # noise is uniform, as signs alone may cancel; its usual size is 0.87 then; given
PERIODIC, PHASE = ("Sin", "Cos"), 0.1  # where arguments may be off by so much, values say nothing
UNKNOWN = Slice(1, 4, frozenset())  # roundings allowed for operators that were merged, where they are not counted


class Approximate(Protocol):
    """Values `(batch, size)` and a bound on their error."""

    @property
    def value(self) -> FloatArray: ...

    @property
    def error(self) -> FloatArray | float: ...


def evaluate(
    network: Network, x: FloatArray, trials: int = TRIALS, seed: int = 0, merged: Mapping[int, Slice] | None = None
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Outputs at `x (batch, n)` in float64, how far a run may be off from them, both `(batch, m)`, and `(batch,)`
    whether the comparison means anything: all numbers on the way stay well inside the range of the model's element
    type, and no argument of a periodic function is off by a good part of the period. `merged` tells which part of
    the file stands behind a node, where that is known.
    """
    unit, largest = network.unit, network.largest / 16
    if any(isinstance(node.op, Nonlinear) and not node.op.continuous for node in network.nodes):
        trials = max(trials, STEP_TRIALS)
    own = np.zeros_like(x)
    random, batch = np.random.default_rng(seed), len(x)
    known: dict[int, tuple[_Plain, FloatArray]] = {0: (_Plain(x, np.zeros_like(x)), np.tile(x, (trials, 1)))}
    fine = np.ones(batch, dtype=bool)
    for k, node in enumerate(network.nodes[1:], 1):
        assert node.op is not None
        inputs = [known[i] for i in node.inputs]
        with np.errstate(all="ignore"):
            y = node.op.apply([i.value for i, _ in inputs])
            part = (merged or {}).get(k, UNKNOWN)
            own, passed, size = local_error(node, [i for i, _ in inputs], y, unit, part)
            noisy = node.op.apply([noise for _, noise in inputs]).reshape(trials, batch, -1)
            likely = own / _luck(node.op)
            noisy = noisy + random.uniform(-SPREAD, SPREAD, noisy.shape) * likely
            if node.op.kind in PERIODIC:
                noise = inputs[0][1].reshape(trials, batch, -1) - inputs[0][0].value
                fine &= abs(noise).max(axis=(0, 2)) < PHASE
            fine &= (np.maximum(abs(y), size) < largest).all(axis=1)
        known[k] = _Plain(y, own + passed), noisy.reshape(trials * batch, -1)
        for i in set(node.inputs):
            if max(network.users[i]) <= k:
                del known[i]
    last, noisy = known[len(network.nodes) - 1]
    with np.errstate(all="ignore"):
        deviation = abs(noisy.reshape(trials, batch, -1) - last.value).max(axis=0)
        if network.output_size >= FEW_OUTPUTS:  # by chance some deviations are very small
            usual = median(deviation / own)[:, None]
            deviation = np.fmax(deviation, 0.5 * usual * own)
        allowed = np.fmin(4 * last.error, FACTOR * deviation)  # the former may have overflowed
        return last.value, allowed + 16 * unit * abs(last.value) + unit * 1e-3, fine


class _Plain:
    """See `Approximate`."""

    __slots__ = ("error", "value")

    def __init__(self, value: FloatArray, error: FloatArray | float) -> None:
        self.value, self.error = value, error


def local_error(
    node: Node, inputs: Sequence[Approximate], y: FloatArray, unit: float, part: Slice = UNKNOWN
) -> tuple[FloatArray, FloatArray | float, FloatArray]:
    """At most how far a node's own rounding takes its value off `y`, that of the inputs' values; what the errors of
    the inputs become besides; and the size of the terms. All `(batch, size)`.

    `part` are the operators of the file that were merged into the node, with the constants that they add and that the
    node's own may not show.
    """
    op, hs = node.op, [i.value for i in inputs]
    exact = all(isinstance(i.error, float) and i.error == 0.0 for i in inputs)
    es = [] if exact else [np.broadcast_to(i.error, i.value.shape) for i in inputs]
    if isinstance(op, Affine):
        size, b = op.magnitude([abs(h) + part.inner for h in hs]), op.bias_magnitude()
        size = size + part.outer if b is None else size + b + part.outer
        n = (_terms(op) + 1 + part.roundings) * unit
        return n / max(1.0 - n, 0.5) * size + unit * 1e-30, 0.0 if exact else op.magnitude(es), size
    if isinstance(op, Nonlinear):
        own = (4 + part.roundings) * unit * abs(y)
        if op.continuous and not isinstance(op, TwoPiece):  # libraries approximate, up to an absolute error
            own = own + 8 * unit * (1.0 + abs(hs[0]) if isinstance(op, (Gate, HardSwish)) else 1.0)
        if exact:
            return own, 0.0, abs(y)
        pairs = list(zip(hs, es, strict=True))
        lo, hi = op.interval([h - e for h, e in pairs], [h + e for h, e in pairs])
        return own, np.maximum(hi - y, y - lo), abs(y)
    raise UnsupportedError(f"operator {getattr(op, 'kind', op)} (node {node.name!r}) has no rounding rule")


def _luck(op: Op) -> float:
    """How many times smaller than its bound a node's error most likely is.

    Plain sums and means are not lucky: adding equal terms, of a constant image, rounds the same way every time.
    """
    if not isinstance(op, Affine) or isinstance(op, Reduce):
        return 1.0
    if isinstance(op, (Dense, RowDense, Conv)):
        weight = op.weight.reshape(len(op.weight), -1)
        plain = ((weight == 0) | (weight == weight.max(axis=1, keepdims=True))).all(axis=1)
        if np.any(plain):
            return 1.0
    return float(np.sqrt(_terms(op) + 1 + UNKNOWN.roundings))


def _terms(op: Affine) -> int:
    """Products and sums behind one value; `fan_in` covers the adjoint too."""
    if isinstance(op, (Dense, RowDense)):
        return int(op.weight.shape[1]) + 1
    if isinstance(op, Conv):
        return int(op.weight[0].size) + 1
    return op.fan_in
