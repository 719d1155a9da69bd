"""Which literal splits each region, where inputs are split. For phases see `mucg4.search.branch`.

The estimate behind all rules. The lower bound of the guiding functional loses, at every unstable
neuron, the distance between the value and its line: for a coefficient g < 0 at most `|g|` times the
chord's height `-l u / (u - l)`, for g > 0 about `g min(u, -l)` (the lower line through the origin).
Cutting input i in the middle moves each neuron's bounds by `|row_i| width_i / 2` in one of the two
children, where `row` is the neuron's own backward row, which bounding has computed anyway. A smooth or bilinear
function loses half the distance of its lines in the middle of its box, times |g|; that shrinks like the product of the
widths of its arguments (the square of the width of a single one). Adding up
the losses that disappear, plus what the functional's own row gains, estimates both children for all
inputs without bounding any. Measured on ACAS Xu this needs 4 times fewer regions than bounding both
children of every input (strong branching) and does not stall where that rule does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mucg4.bound.propagate import Bounder, NeuronRows, Refreshed, Regions
from mucg4.ops.arrays import NUMPY, at_least, at_most, chunk, nonzero, precision, xp, zeros
from mucg4.ops.base import Array
from mucg4.ops.piecewise import TwoPiece

GAIN_ELEMENTS = 1 << 15  # numbers per chunk of neurons' rows: those of one pass stay in the cache; not measured
# a neuron is split where its loss is at least this share of that of all neurons; measured: 0.2 and 0.4 are worse
DOMINANT = 0.3


class Literals(NamedTuple):
    """Per region what to split at, one array `(B,)` each: network node, component, threshold; and the estimated gain.

    Both children are meant: value <= threshold and value >= threshold. Node 0 is the input. A query of several networks
    would have the network's number in front of the node.
    """

    node: Array
    index: Array
    threshold: Array
    gain: Array

    @staticmethod
    def none() -> Literals:
        """For no region."""
        return Literals(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32), np.zeros(0), np.zeros(0))


def loss(coeff: Array, low: Array, up: Array) -> Array:
    """Estimated looseness at neurons with output coefficients `coeff` and bounds `low, up` (same shapes)."""
    return abs(coeff) * xp(low).where(coeff < 0, _chord(low, up), _corner(low, up))


def _chord(low: Array, up: Array) -> Array:
    """Height of the chord over the kink, 0 where the neuron is stable."""
    low, up = at_most(low, 0), at_least(up, 0)
    return -low * up / at_least(up - low, 1e-30)  # float32 holds it too


def _corner(low: Array, up: Array) -> Array:
    """What the better of the two lower lines through the kink loses at most."""
    return xp(low).minimum(at_least(up, 0), -at_most(low, 0))


def _add_by_region(out: Array, values: Array, region: Array) -> None:
    """Add `values (rows, d)` to `out (B, d)` at their regions `(rows,)`, which are sorted."""
    if not isinstance(values, np.ndarray):
        out.index_add_(0, region, values)
    elif len(region):
        starts = np.flatnonzero(np.r_[True, region[1:] != region[:-1]])
        out[region[starts]] += np.add.reduceat(values, starts, axis=0)


def _add_neuron_gains(
    out: tuple[Array, Array], rows: NeuronRows, coeff: Array, low: Array, up: Array, half: Array
) -> None:
    """Add the losses at the neurons of one node that vanish in the lower and the upper child, to `(B, d)` each.

    All rows at once would not fit a cache: they are taken in chunks, and those without a share in the functional not
    at all.
    """
    low, up, coeff = (a[rows.region, rows.neuron] for a in (low, up, coeff))
    step = max(16, chunk(GAIN_ELEMENTS, low) // max(half.shape[1], 1))
    for sign, gap in ((-1.0, _chord), (1.0, _corner)):
        kept = nonzero(sign * coeff > 0)[0]
        for k in (kept[at : at + step] for at in range(0, len(kept), step)):
            region, size, bottom, top = rows.region[k], abs(coeff[k])[:, None], low[k][:, None], up[k][:, None]
            below, above, now = rows.below[k] * half[region], rows.above[k] * half[region], gap(bottom, top)
            for side, total in zip((-1.0, 1.0), out, strict=True):  # the lower child loses the upper half
                new_low = xp(top).minimum(bottom + at_least(side * below, 0), top)
                new_up = xp(top).maximum(top - at_least(side * above, 0), bottom)
                _add_by_region(total, size * (now - gap(new_low, new_up)), region)


def _smooth_gains(
    bounder: Bounder, regions: Regions, refreshed: Refreshed, user: int, coeff: Array, half: Array
) -> Array:
    """Losses that vanish in either child, `(B, d)`, at the smooth or bilinear node `user`."""
    out, inputs, lines = zeros(half.shape, half), bounder.network.nodes[user].inputs, refreshed.lines[user]
    bounds = [bounder.pre_bounds(regions, i) for i in inputs]
    gap = lines.upper_offset - lines.lower_offset
    for (low, up), below, above in zip(bounds, lines.lower_slopes, lines.upper_slopes, strict=True):
        gap = gap + (above - below) * ((low + up) / 2)
    gap = xp(half).nan_to_num(abs(coeff) * gap / 2, nan=0.0, posinf=0.0, neginf=0.0)
    for i, (low, up) in zip(inputs, bounds, strict=True):
        if i == 0:  # the argument is the network's input: halving it halves the width of that argument alone
            out = out + gap * (0.75 if len(inputs) == 1 else 0.5)
        elif i in refreshed.rows:
            rows = refreshed.rows[i]
            at = rows.region, rows.neuron
            width = at_least(up - low, precision(half).least)[at][:, None]
            left = 1 - (abs(rows.below) + abs(rows.above)) / 2 * half[rows.region] / width
            left = at_most(at_least(left, 0.0), 1.0)
            left = left * left if len(inputs) == 1 else left
            _add_by_region(out, gap[at][:, None] * (1 - left), rows.region)
    return out


def input_gains(
    bounder: Bounder, regions: Regions, refreshed: Refreshed, coeffs: Array, trace: dict[int, Array]
) -> tuple[Array, Array]:
    """Estimated gains `(B, d)` of the lower and upper child when each input is halved, on the bounder's backend.

    `coeffs (B, d)`: input row of the guiding functional; `trace[k] (B, n)`: its coefficients on node k.
    """
    half = (regions.hi - regions.lo) / 2
    lower, upper = at_least(-coeffs, 0) * half, at_least(coeffs, 0) * half
    for user, a in trace.items():
        node = bounder.network.nodes[user]
        if not isinstance(node.op, TwoPiece):
            if user in refreshed.lines:
                more = _smooth_gains(bounder, regions, refreshed, user, a, half)
                lower, upper = lower + more, upper + more
            continue
        if node.inputs[0] not in refreshed.rows:
            continue
        low, up = bounder.pre_bounds(regions, node.inputs[0])
        coeff = a * (node.op.right - node.op.left)
        _add_neuron_gains((lower, upper), refreshed.rows[node.inputs[0]], coeff, low, up, half)
    return lower, upper


def split_input(bounder: Bounder, regions: Regions, gains: Array, trace: dict[int, Array], alone: Array) -> Literals:
    """Halve the input with the largest estimated sum of both children's gains, or split a neuron that dominates.

    Neurons only where `alone (B,)`, that is with one conjunction open: there ascent gives the new literal a multiplier,
    without which a child's bound may be worse than its parent's. `gains (B, d)`: both children's together, see
    `input_gains`, in NumPy as `alone` is. The rest is on the bounder's backend; the choice is made in NumPy.
    """
    lo, hi = NUMPY.place(regions.lo), NUMPY.place(regions.hi)
    middle = (lo + hi) / 2
    divisible = (lo < middle) & (middle < hi)
    score = np.where(divisible, gains + 1e-12 * (hi - lo), -1.0)
    pick = score.argmax(axis=1)
    every = np.arange(len(regions))
    node = np.zeros(len(pick), dtype=np.int32)
    literals = Literals(node, pick.astype(np.int32), middle[every, pick], score[every, pick])
    _prefer_neurons(literals, bounder, regions, trace, alone)
    return literals


def _prefer_neurons(
    literals: Literals, bounder: Bounder, regions: Regions, trace: dict[int, Array], where: Array
) -> None:
    """Put phase literals into `literals` where one neuron causes much of the whole loss and more than an input gains.

    Where many neurons share the loss, halves of inputs improve all of them at once: on ACAS Xu neurons split without
    regard to shares need up to a hundred times more regions. Where two or three are left behind a wide smooth layer
    (dist_shift), halves of 8 inputs move them slowly: 28 000 regions did not close what 2 000 mixed ones do.
    """
    losses = {}
    for user, a in trace.items():
        op, k = bounder.network.nodes[user].op, bounder.network.nodes[user].inputs[0]
        if isinstance(op, TwoPiece) and k > 0 and a.shape[1]:
            losses[k] = NUMPY.place(loss(a * (op.right - op.left), *bounder.pre_bounds(regions, k)))
    total = sum(x.sum(axis=1) for x in losses.values())
    every = np.arange(len(regions))
    for k, x in losses.items():
        pick = x.argmax(axis=1)
        largest = x[every, pick]
        better = where & (largest > np.maximum(literals.gain, 0.0)) & (largest >= DOMINANT * total)
        literals.node[better], literals.index[better] = k, pick[better]
        literals.threshold[better], literals.gain[better] = 0.0, largest[better]


def split_widest(bounder: Bounder, regions: Regions) -> Literals:
    """Halve the widest input relative to the root box; the fallback when the estimate stalls."""
    root = np.maximum(bounder.hi - bounder.lo, 1e-300)
    middle = (regions.lo + regions.hi) / 2
    divisible = (regions.lo < middle) & (middle < regions.hi)
    relative = np.where(divisible, (regions.hi - regions.lo) / root, -1.0)
    pick = relative.argmax(axis=1)
    every = np.arange(len(regions))
    chosen = middle[every, pick], relative[every, pick]
    return Literals(np.zeros(len(pick), dtype=np.int32), pick.astype(np.int32), *chosen)


def locate(bounder: Bounder, position: Array) -> tuple[Array, Array]:
    """Flat pre-activation positions -> network nodes and components."""
    starts = np.array([bounder.slices[k].start for k in bounder.pre])
    which = np.searchsorted(starts, position, side="right") - 1
    return np.array(bounder.pre)[which], position - starts[which]
