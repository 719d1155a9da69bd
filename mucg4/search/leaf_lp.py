"""Linear programs over the box of one region (HiGHS): what decides regions on which the network is affine.

The solver's answer is never evidence: its multipliers become the leaf's weights and beta and pass the same test as any
other refutation; its point goes to the witness gate.

Tightened bounds hold on unsafe points only, so they may keep a neuron stable in a region that has points on
its other side, and the program, which knows the literals alone, may end at such a point. Then that neuron is split: the
child on the other side is empty, the one that stays has a literal for the program. Each step adds a literal,
so this ends; without tightenings no such neuron exists.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mucg4.bound.propagate import Bounder, Refreshed
from mucg4.bound.tighten import Ascent, Duals
from mucg4.ops.base import Array
from mucg4.program import least_violation, simple_multipliers
from mucg4.records import dataclass
from mucg4.search.refuted import ByDuals
from mucg4.search.region import Batch
from mucg4.search.way import Context

RAISED = 1e-4  # share of a functional's terms by which strict constraints are raised; not measured
# share of a functional's terms within which its bound by the program's multipliers may be a tie; not measured
CLOSE = 1e-6
CLEAR = 1e-9  # a bound or value at least so far from zero has a side; not measured


@dataclass(frozen=True)
class Decision:
    """What a program says of one conjunction on one region: a refutation, or its best point `(d,)`, or neither."""

    refuted: ByDuals | None
    point: Array | None


def decide(context: Context, one: Batch, refreshed: Refreshed, conjunction: int) -> Decision:
    """The program of a conjunction on the single region of `one`, over the lines `refreshed` of its neurons.

    It decides a region without unstable neurons. On others it is over relaxations, and worth its time for strict
    constraints that refute together: where the bound of their best combination is 0, ascent comes near its weights but
    does not meet them.
    """
    bounder, objective = context.bounder, context.objective
    rows = objective.rows_of(conjunction)
    m = len(objective.owner)
    eye = np.eye(m)[rows]
    region = np.zeros(len(eye), dtype=np.int64)
    constraints = objective.functional(bounder, refreshed, region, eye)
    literals, a, c = _literal_rows(bounder, one, refreshed)
    matrix = np.concatenate([constraints.coeffs, a])
    offset = np.concatenate([constraints.offset, c])
    soft, left = np.arange(len(matrix)) < len(eye), context.budget.left
    found = least_violation(matrix, offset, soft, one.regions.lo[0], one.regions.hi[0], left())
    if found is None:
        return Decision(None, None)
    point, multipliers = found.point, found.multipliers
    weights = np.zeros((1, m))
    weights[0, rows] = multipliers[: len(eye)]
    ascent = Ascent(bounder, objective, one.regions, refreshed, one.phases)
    duals = ascent.default_duals(weights)
    duals.beta[0, literals] = multipliers[len(eye) :]
    bounded, _ = ascent.bound(duals)
    closed = bounded.value > 0
    if not closed[0] and bounded.value[0] > -CLOSE * _size(context, duals):
        duals, closed = _tie(context, one, conjunction, literals, multipliers, duals)
        strict = np.flatnonzero(objective.conjunctions[conjunction].strict)
        # Of several best multipliers those with a strict constraint are wanted: raise these a little. And on a tiny
        # box rows of any slopes look alike to a solver: the same rows on the whole box.
        offset[strict] += RAISED * _size(context, duals)
        for box in (one.regions, context.root):
            if not closed[0] and len(strict):
                found = least_violation(matrix, offset, soft, box.lo[0], box.hi[0], left())
                if found is not None:
                    duals, closed = _tie(context, one, conjunction, literals, found.multipliers, duals)
    if not closed[0]:
        return Decision(None, point)
    default = ascent.default_alpha()
    return Decision(ByDuals.of(objective, one, conjunction, duals, default, bounded.value, closed), None)


def wrong_side(bounder: Bounder, one: Batch, point: Array) -> tuple[int, int, bool] | None:
    """The first neuron of the region `one` that has another side at the point than its bounds say, and no literal.

    Its node and component, and whether its upper side stays. The wrong side is clear of zero, so the bounds of the
    child there contradict each other whatever rounds.
    """
    values = bounder.network.values(point[None])
    for k in bounder.pre:
        where = bounder.slices[k]
        low, up = (b[0] for b in bounder.pre_bounds(one.regions, k))
        wrong = np.where(low > CLEAR, -values[k][0], np.where(up < -CLEAR, values[k][0], 0.0))
        wrong[one.phases[0, where] != 0] = 0.0
        j = int(np.argmax(wrong)) if len(wrong) and k > 0 else 0
        if k > 0 and wrong[j] > CLEAR * (1 + abs(values[k][0, j])):
            return k, j, bool(low[j] > 0)
    return None


def _size(context: Context, duals: Duals) -> float:
    """The size of the terms of the functional at the outputs."""
    objective, norm = context.objective, context.bounder.scales.norm
    output = float(np.linalg.norm(duals.weights[0] @ abs(objective.y))) * norm[-1]
    return output + float(duals.weights[0] @ abs(objective.constants))


def _tie(
    context: Context, one: Batch, conjunction: int, literals: Array, multipliers: Array, duals: Duals
) -> tuple[Duals, Array]:
    """Duals with simple multipliers near the program's, and `(1,)` whether they refute the region exactly.

    Soft rows come first among the multipliers, then the literals at flat positions `literals`.
    """
    rows, nothing = context.objective.rows_of(conjunction), np.zeros(1)
    soft = rows.stop - rows.start
    closed = np.zeros(1, dtype=bool)
    for values in simple_multipliers(multipliers):
        duals = replace(duals, weights=duals.weights.copy(), beta=duals.beta.copy())
        duals.weights[0, rows], duals.beta[0, literals] = values[:soft], values[soft:]
        closed = context.ties.closed_by(one, conjunction, duals, nothing, nothing)
        if closed[0]:
            break
    return duals, closed


def _literal_rows(bounder: Bounder, one: Batch, refreshed: Refreshed) -> tuple[Array, Array, Array]:
    """The region's phase literals as `a . x + c <= 0`: flat positions, coefficients, offsets."""
    positions = np.flatnonzero(one.phases[0])
    d = one.regions.lo.shape[1]
    a, c = np.zeros((len(positions), d)), np.zeros(len(positions))
    for k, where in bounder.slices.items():
        own = np.flatnonzero((positions >= where.start) & (positions < where.stop))
        if len(own) and k > 0:
            sign = -one.phases[0, positions[own]].astype(np.float64)
            rows = bounder.backward(
                k, positions[own] - where.start, sign, np.zeros(len(own), dtype=np.int64), refreshed.lines
            )
            a[own], c[own] = rows.coeffs, rows.offset
    return positions, a, c
