"""Neurons that were split into opposite pairs are put together again.

A function of two linear pieces satisfies `f(u) - f(-u) = (left + right) u`, so a dense layer that reads both `f(u)`
and `f(-u)`, with opposite coefficients, reads `u`: the pair is no nonlinearity at all. The tool ReluSplitter
writes networks of such pairs, with neurons that are left whole passing through the added layer unchanged: where the
next layer is a ReLU again, `relu(c relu(z)) = relu(c z)` for c > 0. A pair of dense layers that consists of these two
forms alone is one dense layer. Only exact opposites (up to a power of two) count, so both networks are the same real
function; rows have one term each, so the folded numbers are rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mucg4.ops.affine import Dense
from mucg4.ops.arrays import FloatArray, IntArray
from mucg4.ops.piecewise import TwoPiece
from mucg4.read.build import Draft
from mucg4.read.roundoff import UNIT, Pair, magnitude, plus, times


def unsplit(kept: Sequence[Draft | None], readers: Sequence[int], output: int) -> list[Draft | None]:
    """The drafts with every such pair of dense layers folded; `readers[k]` is how many read draft k."""
    out = list(kept)
    users: dict[int, list[int]] = {}
    for k, draft in enumerate(out):
        for i in draft.inputs if draft else ():
            users.setdefault(i, []).append(k)
    for k, second in enumerate(out):
        if second is None or not isinstance(second.op, Dense):
            continue
        middle = out[second.inputs[0]]
        if middle is None or not isinstance(middle.op, TwoPiece) or readers[second.inputs[0]] != 1:
            continue
        first = out[middle.inputs[0]]
        if first is None or not isinstance(first.op, Dense) or readers[middle.inputs[0]] != 1:
            continue
        rectified = k != output and all(_rectifies(out[i]) for i in users.get(k, ()))
        op = _folded(first.op, middle.op, second.op, rectified)
        if op is not None:
            out[middle.inputs[0]] = out[second.inputs[0]] = None
            out[k] = replace(second, op=op, inputs=first.inputs)
    return out


def _rectifies(draft: Draft | None) -> bool:
    return draft is not None and isinstance(draft.op, TwoPiece) and draft.op.left == 0.0


def _folded(first: Dense, middle: TwoPiece, second: Dense, rectified: bool) -> Dense | None:
    """The one layer that `second(middle(first))` is, None when some row has another form.

    `rectified`: all readers are zero on negative values.
    """
    terms = np.count_nonzero(second.weight, axis=1)
    if not len(terms) or terms.max(initial=0) > 2 or not np.any(terms == 2):
        return None
    order = np.argsort(second.weight == 0, axis=1, kind="stable")
    i, j = order[:, 0], order[:, min(1, order.shape[1] - 1)]
    every = np.arange(len(terms))
    c, d = second.weight[every, i], np.where(terms == 2, second.weight[every, j], 0.0)
    through = (terms == 1) & (c > 0) & (second.offset == 0) & rectified & (middle.left == 0.0)
    scale = _opposite(first, i, j)
    pair = (terms == 2) & (scale > 0) & (c + d * scale == 0)
    if not np.all(pair | through | (terms == 0)):
        return None
    slope, off = plus(*(np.array(v) for v in (middle.left, middle.right)))
    if off is not None:
        return None
    slope = np.where(pair, slope, np.where(through, middle.right, 1.0))
    factor = np.where(pair | through, c * slope, 0.0)
    # Every step rounds relative to the number itself: two products per weight, beside what its factors carry; products
    # with powers of two do not round.
    exact = np.all((abs(np.frexp(factor)[0]) == 0.5) | (factor == 0)) and np.all(abs(np.frexp(slope)[0]) == 0.5)
    roundings = first.roundings + second.roundings + (0 if exact else 2)
    own, other = _offset(first), _offset(second)
    error = None if own[1] is None else own[1][i]
    count = second.roundings + (0 if exact else 1)
    offset = times(own[0][i], factor, error, UNIT * count * abs(factor) if count else None)
    value, lost = plus(offset[0], other[0], offset[1], other[1])
    weight = first.weight[i] * factor[:, None]
    if np.any((first.weight[i] != 0) & (factor[:, None] != 0) & (abs(weight) < 2.0**-960)):
        return None
    out = Dense(weight, value, roundings=roundings)
    return replace(out, offset_magnitude=magnitude(value, lost, out.fan_in))


def _offset(op: Dense) -> Pair:
    """The offset and what it is off by."""
    known = op.offset_magnitude
    return op.offset, None if known is None else known * (2.0 * UNIT * op.fan_in)


def _opposite(first: Dense, i: IntArray, j: IntArray) -> FloatArray:
    """(R,) the power of two s with `row j = -s row i` exactly, offsets included, else 0."""
    rows = np.concatenate([first.weight, first.offset[:, None]], axis=1)
    largest = abs(rows).max(axis=1)
    known = (largest[i] > 0) & (largest[j] > 0)
    scale = np.where(known, largest[j] / np.where(known, largest[i], 1.0), 0.0)
    exact = (np.frexp(scale)[0] == 0.5) & np.all(rows[j] == -scale[:, None] * rows[i], axis=1)
    return np.where(exact, scale, 0.0)
