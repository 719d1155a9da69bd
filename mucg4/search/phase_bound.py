"""Bounding regions when phases are split: one conjunction, on the network between unstable neurons.

Dual ascent runs on the reduced network in float32 (`mucg4.bound.reduced`); what looks refuted is confirmed in float64
on the network itself.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mucg4.bound.compute import plain_duals
from mucg4.bound.planes import CutPlanes
from mucg4.bound.propagate import Regions
from mucg4.bound.reduced import Pass, Reduced, ReducedDuals, ReducedLines
from mucg4.bound.tighten import Ascent
from mucg4.errors import UnsoundError
from mucg4.ops.arrays import NUMPY
from mucg4.ops.base import Array
from mucg4.records import dataclass
from mucg4.search.refuted import ByDuals, Refuted
from mucg4.search.region import Batch
from mucg4.search.way import Context, Findings, Stored

F = np.float32
NONE = np.zeros(0, dtype=np.int64)


@dataclass
class PhaseFindings(Findings):
    """Regions with their best duals (in `work`) and what these make of the functional."""

    done: Pass
    reduced: Reduced

    def corners(self, which: Array) -> Array:
        """See `Findings`."""
        return self.reduced.middle - self.reduced.radius * np.sign(self.done.coeffs[which])

    def take(self, index: Array) -> PhaseFindings:
        """The chosen regions, without refutations."""
        done = self.done.take(index)
        return PhaseFindings(self.work.take(index), done.value, self.alive[index], [], NONE, done, self.reduced)

    def put(self, i: int, one: PhaseFindings) -> None:
        """Replace region i by the single one of `one`, which has the same units."""
        mine, other = self.work.duals, one.work.duals
        assert mine is not None and other is not None
        for f in ("lo", "hi", "low", "up"):
            getattr(self.work.regions, f)[i] = getattr(one.work.regions, f)[0]
        for f in ("weights", "alpha", "beta"):
            getattr(mine, f)[i] = getattr(other, f)[0]
        for f in ("value", "coeffs", "on"):
            getattr(self.done, f)[i] = getattr(one.done, f)[0]

    @property
    def soft(self) -> int:
        """Number of the conjunction's constraints: the first rows of the reduced network's functional."""
        return len(self.reduced.gc) - self.reduced.cuts

    @property
    def lines(self) -> ReducedLines:
        """Lines of the units on the regions as they are now."""
        return self.reduced.lines(*unit_bounds(self.reduced, self.work))


def unit_bounds(reduced: Reduced, work: Batch) -> tuple[Array, Array]:
    """Bounds of the units on regions, `(B, U)` each."""
    units = reduced.positions
    return work.regions.low[:, units], work.regions.up[:, units]


class PhaseBounder:
    """The reduced network of one conjunction on the root of a search, and refutations on it.

    It is built for the conjunction of the first batch; cuts known by then go into it.
    """

    def __init__(self, context: Context) -> None:
        self.context, self.compute, self.objective = context, context.compute, context.objective
        self.planes = CutPlanes.none(self.compute.bounder.lo)
        self.conjunction = -1  # not known yet
        self.reduced: Reduced  # with the rows of the conjunction and of the cuts
        self.direct: Array  # (U,) units that are affine in the input alone: their splits' gains have a closed form
        self.low: Array  # (P,) bounds that hold on every region
        self.up: Array

    @property
    def soft(self) -> int:
        """Number of the conjunction's constraints."""
        rows = self.objective.rows_of(self.conjunction)
        return int(rows.stop - rows.start)

    @property
    def built(self) -> bool:
        """True from the first batch on."""
        return self.conjunction >= 0

    def accept(self, work: Batch) -> None:
        """Build what is missing. Raises `UnsoundError` unless exactly the search's one conjunction is open."""
        if not self.built:
            self.conjunction = int(work.open[0].argmax())
            self.rebase(self.context.root)
        if not np.all(work.open == (np.arange(self.objective.count) == self.conjunction)):
            raise UnsoundError("a search that splits phases was given more than one conjunction")

    def rebase(self, root: Regions) -> None:
        """Take bounds that hold on every region of this search as the new root bounds."""
        self.low, self.up = root.low[0].copy(), root.up[0].copy()
        compute, first = self.compute, root is self.context.root
        whole = compute.reduced(root) if first else Reduced.build(compute.bounder, root)
        self.reduced = whole.constrained(compute.objective, self.conjunction).with_cuts(self.planes)
        self.direct = ~np.any(self.reduced.mix, axis=1) & (self.reduced.gap > 0)

    def use_cuts(self, planes: CutPlanes) -> None:
        """Let these cuts replace those in use."""
        self.planes, self.reduced = planes, self.reduced.with_cuts(planes)

    def refute(self, work: Batch) -> PhaseFindings:
        """Ascent on all regions from their duals, where they have any; what closes is confirmed in float64."""
        red, duals = self.reduced, work.duals
        lines = red.lines(*unit_bounds(red, work))
        signs = work.phases[:, red.positions].astype(F)
        if duals is None:
            alpha = red.default_alpha(lines)
            duals = ReducedDuals(self._start_weights(alpha, signs, lines), alpha, np.zeros_like(alpha), signs)
        duals, done = red.ascend(replace(duals, signs=signs), lines, self.context.plan.steps, simplex=True)
        work = replace(work, duals=duals)
        alive = np.ones(len(work.ids), dtype=bool)
        refuted: list[Refuted] = []
        which = np.flatnonzero(done.value > 0)
        if len(which):
            closed, found = self._confirm(work.take(which))
            alive[which] = ~closed
            refuted.append(found)
        return PhaseFindings(work, done.value, alive, refuted, NONE, done, red)

    def warm(self, work: Batch, stored: Stored) -> ReducedDuals:
        """Duals to start from: the stored ones where there are any, else the default ones."""
        red, m = self.reduced, self.soft
        lines, signs = red.lines(*unit_bounds(red, work)), work.phases[:, red.positions].astype(F)
        alpha = red.default_alpha(lines)
        beta, weights = np.zeros_like(alpha), self._start_weights(alpha, signs, lines)
        known = np.flatnonzero(~np.isnan(stored.weights).any(axis=1))
        weights[known] = 0.0
        weights[known, :m] = stored.weights[known][:, self.objective.rows_of(self.conjunction)]
        unit = np.full(self.context.bounder.width, -1)
        unit[red.positions] = np.arange(red.units)
        for out, (row, position, value) in ((alpha, stored.alpha), (beta, stored.beta)):
            own = unit[position] >= 0
            out[row[own], unit[position[own]]] = value[own]
        row, column, value = stored.cuts
        own = column < red.cuts
        weights[row[own], m + column[own]] = value[own]
        return ReducedDuals(weights, alpha, beta, signs)

    def _start_weights(self, alpha: Array, signs: Array, lines: ReducedLines) -> Array:
        """The single best constraint of the conjunction on each region, no cuts, `(B, m + C)`."""
        count, m = len(alpha), self.soft
        single = np.eye(m, m + self.reduced.cuts, dtype=F)
        if m == 1:
            return np.repeat(single, count, axis=0)
        value = np.empty((count, m))
        for k in range(m):
            weights = np.repeat(single[k : k + 1], count, axis=0)
            value[:, k] = self.reduced.backward(ReducedDuals(weights, alpha, np.zeros_like(alpha), signs), lines).value
        return single[np.nan_to_num(value, nan=-np.inf).argmax(axis=1)]

    def _confirm(self, part: Batch) -> tuple[Array, ByDuals]:
        """`(B,)` which regions their duals refute in float64 on the network itself, and the refutations."""
        assert part.duals is not None
        units, compute, soft = self.reduced.positions, self.compute, self.soft
        there, refreshed = compute.refresh(part.regions, backward=False)
        phases = compute.backend.place(part.phases)
        ascent = Ascent(compute.bounder, compute.objective, there, refreshed, phases, self.planes)
        weights = np.zeros((len(part.ids), len(self.objective.owner)))
        weights[:, self.objective.rows_of(self.conjunction)] = part.duals.weights[:, :soft]
        duals = plain_duals(ascent.default_duals(weights))
        duals.cuts = part.duals.weights[:, soft:].astype(np.float64)
        duals.alpha[:, units] = np.round(part.duals.alpha.astype(np.float64) * 255) / 255
        duals.beta[:, units] = part.duals.beta
        bounded, _ = ascent.bound(compute.duals(duals))
        bound = NUMPY.place(bounded.value)
        default, numbers = NUMPY.place(ascent.default_alpha()), self.planes.number
        closed = bound > 0
        return closed, ByDuals.of(self.objective, part, self.conjunction, duals, default, bound, closed, numbers)
