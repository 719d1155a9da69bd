"""Which neuron splits each region when phases are split: strong branching at the parents' duals.

Neurons that are affine in the input alone are tried in closed form, others by a backward pass of both children.
"""

from __future__ import annotations

import numpy as np

from mucg4.bound.reduced import ReducedLines
from mucg4.ops.arrays import NUMPY, xp
from mucg4.ops.base import Array
from mucg4.search.phase_bound import F, PhaseFindings, unit_bounds
from mucg4.search.split import Literals, locate, loss

# neurons tried by a backward pass per region: the estimate that picks them is a poor judge of them; not measured
CANDIDATES = 32
# first-layer neurons tried in closed form: inputs times neurons per region; not measured
DIRECT_CELLS, MOST_DIRECT = 1 << 16, 64


def strong_branching(found: PhaseFindings, direct: Array) -> Literals:
    """Per region the literal with the best product of both children's gains; node -1 where no neuron is left.

    `direct (U,)` marks units that are affine in the input alone. What a split gains is that product.
    """
    red, done, count = found.reduced, found.done, len(found.work.ids)
    none = np.full(count, -1, dtype=np.int32)
    if not red.units:
        return Literals(none, none.copy(), np.zeros(count), np.zeros(count))
    lines = found.lines.on(NUMPY)
    low, up = lines.low, lines.up
    piecewise = red.gap > 0
    bare = _without_cuts(found)
    score = np.where(
        piecewise,
        np.where(lines.unstable, loss(bare * red.gap, low, up) + 1e-9 * np.minimum(-low, up), -1.0),
        np.where(up - low > 1e-6, np.abs(done.on) * (up - low), -1.0),
    )
    cut = np.where(piecewise, 0.0, (low.astype(np.float64) + up) / 2)
    every = np.arange(count)[:, None]
    picked, gains = [], []
    own = np.flatnonzero(direct)
    if len(own):
        most = max(CANDIDATES, min(MOST_DIRECT, DIRECT_CELLS // max(red.a.shape[1], 1)))
        top = own[np.argsort(-score[:, own], axis=1, kind="stable")[:, :most]]
        gain = _direct_gains(found, bare, lines, top)
        picked.append(top)
        gains.append(np.where(score[every, top] > 0, gain, -1.0))
    later = np.flatnonzero(~direct)
    if len(later):
        top = later[np.argsort(-score[:, later], axis=1, kind="stable")[:, :CANDIDATES]]
        valid = score[every, top] > 0
        if np.any(valid):
            picked.append(top)
            gains.append(np.where(valid, _children_gains(found, top, cut[every, top]), -1.0))
    if not picked:
        return Literals(none, none.copy(), np.zeros(count), np.zeros(count))
    candidates, gain = np.concatenate(picked, axis=1), np.concatenate(gains, axis=1)
    pick, one = gain.argmax(axis=1), np.arange(count)
    unit = candidates[one, pick]
    node, index = locate(red.bounder, red.positions[unit])
    valid = gain[one, pick] >= 0
    return Literals(np.where(valid, node, -1).astype(np.int32), index.astype(np.int32), cut[one, unit], gain[one, pick])


def _children_gains(found: PhaseFindings, units: Array, cut: Array) -> Array:
    """(B, C) product of both children's gains for candidate literals on `units (B, C)` at `cut`."""
    red, work = found.reduced, found.work
    assert work.duals is not None
    count, width = units.shape
    region = np.repeat(np.arange(count), width)
    place = red.backend.place  # the children's rows are many: made where they are used
    low, up = (place(b) for b in unit_bounds(red, work))
    duals, own, at = work.duals.on(red.backend).take(place(region)), place(region), place(cut.ravel())
    each, unit, m = place(np.arange(len(region))), place(units.ravel()), xp(low)
    out = np.ones((count, width))
    for upper in (False, True):
        child_low, child_up = low[own], up[own]
        if upper:
            child_low[each, unit] = m.maximum(child_low[each, unit], at)
        else:
            child_up[each, unit] = m.minimum(child_up[each, unit], at)
        value = red.backward(duals, red.lines(child_low, child_up)).value
        gain = np.minimum(value, 0) - found.done.value[region]
        out *= np.clip(np.nan_to_num(gain), 1e-9, None).reshape(count, width)
    return out


def _direct_gains(found: PhaseFindings, bare: Array, lines: ReducedLines, units: Array) -> Array:
    """(B, C) product of both children's gains when units that are affine in the input are split, in closed form.

    Replacing a unit's line changes the input row by a multiple of the unit's own, so each child's bound is
    one dot product; the multiplier of the new literal is tried at three values.
    """
    red, done, duals = found.reduced, found.done, found.work.duals
    assert duals is not None
    every = np.arange(len(units))[:, None]
    g, bare = done.on[every, units], bare[every, units]
    positive = g > 0
    lower = np.where(
        lines.unstable[every, units],
        red.left[units] + red.gap[units] * duals.alpha[every, units],
        lines.lower[every, units],
    )
    slope = g * np.where(positive, lower, lines.upper[every, units])
    freed = np.where(positive, F(0), g * lines.upper_offset[every, units])
    base = done.value + np.abs(done.coeffs).sum(axis=1)
    out, held = np.ones(units.shape), duals.weights[:, found.soft :]
    step = max(1, (1 << 22) // max(units.shape[1] * (red.a.shape[1] + red.cuts), 1))
    for begin in range(0, len(units), step):
        part = slice(begin, begin + step)
        coeffs, value = done.coeffs[part, None], base[part, None] - freed[part]
        if red.cut is not None:  # a neuron that is split needs its cuts no more
            own = held[part, None] * (red.cut == units[part, :, None])
            coeffs, value = coeffs - own @ red.ga[found.soft :], value - own @ red.gc[found.soft :]
        for side in (0, 1):
            own = bare[part] * (red.left[units[part]] + side * red.gap[units[part]]) - slope[part]
            sign = F(1) if side == 0 else F(-1)  # z <= 0 adds beta z, z >= 0 subtracts it
            best = np.full(own.shape, -np.inf)
            for share in (0.0, 0.5, 1.0):
                change = own + sign * F(share) * np.abs(bare[part]) * red.gap[units[part]]
                moved = coeffs + change[:, :, None] * red.a[units[part]]
                bound = value + change * red.c[units[part]] - np.abs(moved).sum(axis=2)
                best = np.maximum(best, bound)
            gain = np.minimum(best, 0) - done.value[part, None]
            out[part] *= np.clip(np.nan_to_num(gain), 1e-9, None)
    return out


def _without_cuts(found: PhaseFindings) -> Array:
    """(B, U) coefficients on the units' values without what each unit's own cuts add."""
    red, duals = found.reduced, found.work.duals
    if red.cut is None:
        return found.done.on
    assert duals is not None
    own = np.zeros((red.cuts, red.units), dtype=F)
    known = np.flatnonzero(red.cut >= 0)
    own[known, red.cut[known]] = 1.0
    return found.done.on - duals.weights[:, found.soft :] @ own
