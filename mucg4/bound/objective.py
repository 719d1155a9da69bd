"""The unsafe set of one case as rows of functionals, and the refutation test on batches of regions.

A conjunction is refuted on a region when some nonnegative combination of its constraints
`g_i(x, y) <= 0` has a positive lower bound there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mucg4.bound.kernels import row_norms
from mucg4.bound.propagate import CHUNK_ELEMENTS, Bounder, Refreshed, Regions, Rows
from mucg4.bound.rounding import gamma
from mucg4.model.query import Case
from mucg4.ops.base import Array


@dataclass
class Evaluation:
    """Lower bounds of the constraints on B regions.

    `value (B, M)`: lower bound of constraint m, -inf where not computed. `coeffs (B, M, d)` and
    `offset (B, M)`: the sound linear lower bound behind it. `trace[k] (B, M, size_k)`: coefficients on
    each nonlinear node (empty unless asked for).
    """

    value: Array
    coeffs: Array
    offset: Array
    trace: dict[int, Array]


class Objective:
    """All constraints of a case, stacked: constraint m belongs to conjunction `owner[m]`."""

    def __init__(self, case: Case) -> None:
        self.conjunctions = case.conjunctions
        self.count = len(case.conjunctions)
        self.y = np.concatenate([c.y_coeffs for c in case.conjunctions])
        self.x = np.concatenate([c.x_coeffs for c in case.conjunctions])
        self.constants = np.concatenate([c.constants for c in case.conjunctions])
        sizes = [len(c) for c in case.conjunctions]
        self.owner = np.repeat(np.arange(self.count), sizes)
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.mixed = bool(np.any(self.x))

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
    ) -> Rows:
        """Backward rows of `sum_m weights[r, m] g_m` on region `region[r]`; weights `(rows, M)` nonnegative.

        `extra[k] (rows, size_k)` is added to the functional's coefficients on pre-activation node k.
        """
        last = len(bounder.network.nodes) - 1
        pending = dict(extra or {})
        pending[last] = weights @ self.y + pending[last] if last in pending else weights @ self.y
        rows = bounder.carry(pending, region, refreshed.lines, trace)
        rows.offset = rows.offset + weights @ self.constants
        # Stated numbers are exact decimals, the rows use their nearest doubles; and the weighted sums round. Both
        # are relative to the terms, which may cancel, so the norm of the sum (see `carry`) does not cover them.
        output = bounder.scales.value[last]
        rounding = weights @ abs(self.constants) + (weights @ abs(self.y)) @ output
        if self.mixed:
            rows.coeffs = rows.coeffs + weights @ self.x
            rounding = rounding + (weights @ abs(self.x)) @ bounder.scales.value[0]
            rows.error = rows.error + bounder.scales.error[0] * row_norms(rows.coeffs)
        rows.error = rows.error + gamma(weights.shape[1]) * rounding
        return rows

    def evaluate(
        self, bounder: Bounder, regions: Regions, refreshed: Refreshed, open_: Array, trace: bool = False
    ) -> Evaluation:
        """Bound every constraint of the conjunctions that are open, `open_ (B, K)`, on each region."""
        batch, m = len(regions), len(self.owner)
        region, row = np.nonzero(open_[:, self.owner])
        taken: dict[int, Array] | None = {} if trace else None
        rows = self.functional(bounder, refreshed, region, np.eye(m)[row], taken)
        value = np.full((batch, m), -np.inf)
        value[region, row] = rows.minimum(regions.lo[region], regions.hi[region], bounder.scales.input_dot)
        coeffs = np.zeros((batch, m, regions.lo.shape[1]))
        coeffs[region, row] = rows.coeffs
        offset = np.full((batch, m), -np.inf)
        offset[region, row] = rows.offset - rows.error
        full: dict[int, Array] = {}
        for k, a in (taken or {}).items():
            full[k] = np.zeros((batch, m, a.shape[1]))
            full[k][region, row] = a
        return Evaluation(value, coeffs, offset, full)

    def values(self, bounder: Bounder, regions: Regions, refreshed: Refreshed, open_: Array) -> Array:
        """Only the lower bounds `(B, M)` of `evaluate`, in chunks: many constraints times inputs need no memory."""
        region, row = np.nonzero(open_[:, self.owner])
        value = np.full((len(regions), len(self.owner)), -np.inf)
        step = max(16, 4 * CHUNK_ELEMENTS // max(node.size for node in bounder.network.nodes))
        for at in range(0, len(region), step):
            r, m = region[at : at + step], row[at : at + step]
            weights = np.zeros((len(r), len(self.owner)))
            weights[np.arange(len(r)), m] = 1.0
            rows = self.functional(bounder, refreshed, r, weights)
            value[r, m] = rows.minimum(regions.lo[r], regions.hi[r], bounder.scales.input_dot)
        return value

    def best_row(self, value: Array, conjunction: Array) -> Array:
        """(B,) the constraint of `conjunction (B,)` with the largest of `value (B, M)`, whatever overflowed."""
        inside = self.owner[None] == conjunction[:, None]
        finite = np.nan_to_num(value, nan=-1e300, posinf=1e300, neginf=-1e300)
        return np.where(inside, finite, -np.inf).argmax(axis=1)

    def best(self, value: Array) -> Array:
        """(B, M) constraint values -> (B, K) best lower bound per conjunction."""
        return np.maximum.reduceat(value, self.starts[:-1], axis=1)


def clip_box(regions: Regions, coeffs: Array, offset: Array, which: Array) -> None:
    """Cut input boxes in place by `coeffs[r] . x + offset[r] <= 0` for the regions `which (R,)`.

    Every point of the region that is unsafe fulfils the inequality, so the cut loses none of them
    (Clip-and-Verify, arXiv 2512.11087, one-dimensional form). Outward: the room is widened by the
    rounding of the dot product before it is divided, and the quotient by a relative 1e-12.
    """
    lo, hi = regions.lo[which], regions.hi[which]
    least = np.where(coeffs > 0, coeffs * lo, coeffs * hi)
    size = np.einsum("ij,ij->i", abs(coeffs), np.maximum(abs(lo), abs(hi))) + abs(offset)
    room = -(least.sum(axis=1) + offset) + 1e-12 * size
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        reach = room[:, None] / abs(coeffs)
        reach = np.where(
            (abs(coeffs) > 0) & np.isfinite(reach), reach + 1e-12 * (abs(reach) + np.maximum(abs(lo), abs(hi))), np.inf
        )
    regions.hi[which] = np.where(coeffs > 0, np.minimum(hi, lo + reach), hi)
    regions.lo[which] = np.where(coeffs < 0, np.maximum(lo, hi - reach), lo)
