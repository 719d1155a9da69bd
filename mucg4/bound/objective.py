"""The unsafe set of one case as rows of functionals, and the refutation test on batches of regions.

A conjunction is refuted on a region when some nonnegative combination of its constraints
`g_i(x, y) <= 0` has a positive lower bound there.
"""

from __future__ import annotations

import numpy as np

from mucg4.bound.inner_loops import row_norms
from mucg4.bound.planes import CutPlanes
from mucg4.bound.propagate import CHUNK_ELEMENTS, Bounder, Refreshed, Regions, Rows
from mucg4.bound.rounding import LEAST, gamma
from mucg4.model.query import Case
from mucg4.ops.arrays import (
    NUMPY,
    Array,
    Backend,
    chunk,
    full,
    largest_of_runs,
    nonzero,
    precision,
    row_dots,
    unit_rows,
    xp,
    zeros,
)
from mucg4.records import dataclass


@dataclass
class Evaluation:
    """Lower bounds of the constraints on B regions.

    `value (B, M)`: lower bound of constraint m, -inf where not computed. `coeffs (B, M, d)` and
    `offset (B, M)`: the sound linear lower bound behind it. `trace[k] (B, M, size_k)`: coefficients on
    each nonlinear node (empty unless asked for). `error (B, M)`: the charge for rounding inside, 0 where not computed.
    """

    value: Array
    coeffs: Array
    offset: Array
    trace: dict[int, Array]
    error: Array


class Objective:
    """All constraints of a case, stacked: constraint m belongs to conjunction `owner[m]`.

    Coefficients live on `backend`, which must be that of the bounder it is used with; `owner` and `starts`
    are NumPy arrays always.
    """

    def __init__(self, case: Case, backend: Backend = NUMPY) -> None:
        self.case, self.backend = case, backend
        self.conjunctions = case.conjunctions
        self.count = len(case.conjunctions)
        self.y = backend.parameter(np.concatenate([c.y_coeffs for c in case.conjunctions]))
        self.mixed = any(c.mixed for c in case.conjunctions)
        self.x = backend.parameter(
            np.concatenate([c.x_coeffs for c in case.conjunctions if self.mixed] or [np.zeros((1, 1))])
        )
        self.constants = backend.parameter(np.concatenate([c.constants for c in case.conjunctions]))
        sizes = [len(c) for c in case.conjunctions]
        self.owner = np.repeat(np.arange(self.count), sizes)
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        if not self.mixed:  # zeros that take no memory
            self.x = xp(self.x).broadcast_to(self.x, (len(self.owner), case.box.size))

    def rows_of(self, conjunction: int) -> slice:
        """The constraints of one conjunction."""
        return slice(int(self.starts[conjunction]), int(self.starts[conjunction + 1]))

    def functional(
        self,
        bounder: Bounder,
        refreshed: Refreshed,
        region: Array,
        weights: Array,
        trace: dict[int, Array] | None = None,
        extra: dict[int, Array] | None = None,
        cuts: tuple[CutPlanes, Array] | None = None,
        sizes: dict[int, Array] | None = None,
    ) -> Rows:
        """Backward rows of `sum_m weights[r, m] g_m` on region `region[r]`; weights `(rows, M)` nonnegative.

        `extra[k] (rows, size_k)` is added to the functional's coefficients on pre-activation node k, and of `cuts` each
        inequality times its multiplier `(rows, C)` >= 0. `sizes` are those of what was added up in `extra`: of its own
        numbers, when not given.
        """
        last = len(bounder.network.nodes) - 1
        pending = dict(extra or {})
        added = None
        if cuts is not None and len(cuts[0]):
            planes, *added = cuts[0].weighted(bounder, cuts[1])
            for k, a in planes.items():
                pending[k] = pending[k] + a if k in pending else a
        pending[last] = weights @ self.y + pending[last] if last in pending else weights @ self.y
        rows = bounder.carry(pending, region, refreshed.lines, trace)
        rows.offset = rows.offset + weights @ self.constants
        # Stated numbers are exact decimals, the rows use their nearest numbers; and the weighted sums round. Both
        # are relative to the terms, which may cancel, so the norm of the sum (see `carry`) does not cover them.
        norm, terms = bounder.scales.norm, weights.shape[1] + 2 * len(bounder.network.nodes)
        rounding = weights @ abs(self.constants) + row_norms(weights @ abs(self.y)) * norm[last]
        if self.mixed:
            rows.coeffs = rows.coeffs + weights @ self.x
            rounding = rounding + row_norms(weights @ abs(self.x)) * norm[0]
            rows.error = rows.error + bounder.scales.error[0] * row_norms(rows.coeffs)
        for k, a in (sizes or extra or {}).items():
            rounding, terms = rounding + abs(a) @ bounder.scales.value[k], terms + a.shape[1]
        rows.error = rows.error + gamma(terms, bounder.precision.unit) * rounding
        if added is not None:
            rows.offset, rows.error = rows.offset + added[0], rows.error + added[1]
        return rows

    def evaluate(
        self, bounder: Bounder, regions: Regions, refreshed: Refreshed, open_: Array, trace: bool = False
    ) -> Evaluation:
        """Bound every constraint of the conjunctions that are open, `open_ (B, K)`, on each region."""
        batch, m, like = len(regions), len(self.owner), regions.lo
        region, row = nonzero(open_[:, self.owner])
        taken: dict[int, Array] | None = {} if trace else None
        rows = self.functional(bounder, refreshed, region, unit_rows(row, m, like), taken)
        value = full((batch, m), -np.inf, like)
        value[region, row] = rows.minimum(regions.lo[region], regions.hi[region], bounder.scales.input_dot)
        coeffs = zeros((batch, m, like.shape[1]), like)
        coeffs[region, row] = rows.coeffs
        offset = full((batch, m), -np.inf, like)
        offset[region, row] = rows.offset - rows.error
        error = zeros((batch, m), like)
        error[region, row] = rows.error
        traced: dict[int, Array] = {}
        for k, a in (taken or {}).items():
            traced[k] = zeros((batch, m, a.shape[1]), like)
            traced[k][region, row] = a
        return Evaluation(value, coeffs, offset, traced, error)

    def values(
        self, bounder: Bounder, regions: Regions, refreshed: Refreshed, open_: Array, error: Array | None = None
    ) -> Array:
        """Only the lower bounds `(B, M)` of `evaluate`, in chunks: many constraints times inputs need no memory.

        Their rounding charges are written to `error (B, M)`.
        """
        region, row = nonzero(open_[:, self.owner])
        value = full((len(regions), len(self.owner)), -np.inf, regions.lo)
        step = max(16, 4 * chunk(CHUNK_ELEMENTS, value) // max(node.size for node in bounder.network.nodes))
        for at in range(0, len(region), step):
            r, m = region[at : at + step], row[at : at + step]
            rows = self.functional(bounder, refreshed, r, unit_rows(m, len(self.owner), value))
            value[r, m] = rows.minimum(regions.lo[r], regions.hi[r], bounder.scales.input_dot)
            if error is not None:
                error[r, m] = rows.error
        return value

    def best_row(self, value: Array, conjunction: Array) -> Array:
        """(B,) the constraint of `conjunction (B,)` with the largest of `value (B, M)`, whatever overflowed."""
        inside = self.backend.place(self.owner)[None] == conjunction[:, None]
        huge = precision(value).huge
        finite = xp(value).nan_to_num(value, nan=-huge, posinf=huge, neginf=-huge)
        return xp(value).where(inside, finite, -np.inf).argmax(axis=1)

    def best(self, value: Array) -> Array:
        """(B, M) constraint values -> (B, K) best lower bound per conjunction."""
        return largest_of_runs(value, self.starts)


def clip_box(regions: Regions, coeffs: Array, offset: Array, which: Array) -> None:
    """Cut input boxes in place by `coeffs[r] . x + offset[r] <= 0` for the regions `which (R,)`.

    Every point of the region that is unsafe fulfils the inequality, so the cut loses none of them
    (Clip-and-Verify, arXiv 2512.11087, one-dimensional form). Outward: the room is widened by the
    rounding of the dot product before it is divided, and the quotient by the same relative amount. The box
    contains the checker's, which widens by gamma(d + 8) of the same sizes (`mucg4.bound.rounding`).
    """
    m, lo, hi = xp(coeffs), regions.lo[which], regions.hi[which]
    p = precision(coeffs)
    share, tiny = max(1e-12, gamma(coeffs.shape[1], p.unit)), max(p.tiny, LEAST)
    far = m.maximum(abs(lo), abs(hi))
    least = m.where(coeffs > 0, coeffs * lo, coeffs * hi)
    size = row_dots(abs(coeffs), far) + abs(offset)
    room = -(least.sum(axis=1) + offset) + (share * size + tiny)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        reach = room[:, None] / abs(coeffs)
        reach = m.where((abs(coeffs) > 0) & m.isfinite(reach), reach + (share * (abs(reach) + far) + tiny), np.inf)
    regions.hi[which] = m.where(coeffs > 0, m.minimum(hi, lo + reach), hi)
    regions.lo[which] = m.where(coeffs < 0, m.maximum(lo, hi - reach), lo)
