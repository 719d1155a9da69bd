"""Splitting inputs: all open conjunctions share the bounds of a region, and neurons' bounds are derived anew on each.

Order for a batch. (1) Neurons' bounds, then one backward row per constraint with default slopes. (2) Dual ascent on
regions with one open conjunction. (3) Boxes of those that stay open are clipped by their constraints. (4) The input, or
the neuron, whose split promises most by the loss estimate of `mucg4.search.split`.

It works on the network folded on the root box (`mucg4.bound.folded`); boxes, choices and records number all inputs and
neurons.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mucg4.bound.compute import Compute
from mucg4.bound.objective import Evaluation, Objective, clip_box
from mucg4.bound.propagate import Bounder, Refreshed, Regions
from mucg4.bound.tighten import Ascent
from mucg4.ops.arrays import NUMPY, distinct
from mucg4.ops.base import Array
from mucg4.records import dataclass
from mucg4.search.ahead import looked_ahead
from mucg4.search.refuted import ByDuals, Refuted
from mucg4.search.region import Batch, unstable_units
from mucg4.search.split import Literals, input_gains, locate, split_input
from mucg4.search.way import FORGET, Context, Findings, Kept, Way, at_first_sight, by_constraints

ROWS_CELLS = 1 << 26  # most numbers that rows of neurons may take on one side; not measured
# ascent that closes a smaller share of its regions is tried every so many turns only; not measured
LEAST_SHARE, EXPLORE = 0.03, 16


@dataclass(frozen=True)
class Guide:
    """Per region the functional that steers its split: its bound, and what it is made of.

    `value (B,)` is in NumPy; the row's coefficients on inputs, `coeffs (B, d')`, and on nodes, `trace[k] (B, n)`, stay
    on the compute's backend.
    """

    value: Array
    coeffs: Array
    trace: dict[int, Array]

    def with_rows(self, which: Array, own: Array, other: Guide) -> Guide:
        """The entries `which (R,)` replaced by those of `other`; `own` is `which` on the compute's backend."""
        value, coeffs = self.value.copy(), self.coeffs + 0.0
        value[which], coeffs[own] = other.value, other.coeffs
        trace = {k: a + 0.0 for k, a in self.trace.items()}  # copies
        for k, a in other.trace.items():
            trace[k][own] = a
        return Guide(value, coeffs, trace)


@dataclass
class InputFindings(Findings):
    """Regions with the functionals that steer their splits, and the rows of all constraints that clip their boxes."""

    compute: Compute
    guide: Guide
    refreshed: Refreshed  # on the compute's backend
    evaluation: Evaluation

    def corners(self, which: Array) -> Array:
        """See `Findings`."""
        box = self.work.regions.take(which)
        return np.where(self.compute.on_inputs(self.guide.coeffs)[which] > 0, box.lo, box.hi)


class InputWay(Way[InputFindings]):
    """See the module text."""

    name, joint, refreshes, long_turns = "input", True, True, False

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.compute, self.objective = context.compute, context.objective
        self.ascent_share = 1.0  # running mean share of the regions that ascent closes

    @staticmethod
    def possible(bounder: Bounder, root: Regions) -> bool:
        """Always."""
        return True

    @staticmethod
    def first_work(bounder: Bounder, root: Regions) -> float:
        """A few rows per unstable neuron."""
        return 32.0 * unstable_units(bounder, root) * bounder.network.size

    @staticmethod
    def prepared(compute: Compute, bounder: Bounder, root: Regions) -> Compute:
        """The compute of the network folded on the root box."""
        return compute.folded_on(bounder, root)

    # ---- bounding ------------------------------------------------------------------------------

    def begin(self, work: Batch) -> tuple[Batch, list[Refuted]]:
        """Only where neurons' rows are not kept: what falls at first sight needs no second refreshing."""
        if self._keeps_rows(work):
            return work, []
        open_, refuted = at_first_sight(self.context, work)
        return replace(work, open=open_), refuted

    def _keeps_rows(self, work: Batch) -> bool:
        """Whether neurons' rows are kept for the choice of an input: not where they would fill the memory."""
        bounder = self.compute.bounder
        return len(work.ids) * bounder.width * bounder.network.input_size <= ROWS_CELLS

    def bound(self, work: Batch) -> InputFindings:
        """See `Way`; the regions that `there` are those of `work` on the compute's backend."""
        compute = self.compute
        there, refreshed = compute.refresh(work.regions, self._keeps_rows(work))
        alive = ~work.regions.empty()
        found = compute.objective.evaluate(
            compute.bounder, there, refreshed, compute.backend.place(work.open), trace=True
        )
        value, offset, error = (NUMPY.place(a) for a in (found.value, found.offset, found.error))
        evaluation = Evaluation(value, compute.on_inputs(found.coeffs), offset, found.trace, error)
        open_, refuted = by_constraints(self.context, work, value, error, alive)
        work = replace(work, open=open_)
        alive &= open_.any(axis=1)
        row = self._steering_row(open_, value)
        every = np.arange(len(work.ids))
        at = compute.backend.place(every), compute.backend.place(row)
        guide = Guide(value[every, row], found.coeffs[at], {k: a[at] for k, a in found.trace.items()})
        if self.context.plan.steps:
            which = self._to_ascend(work, alive)
            if len(which):
                part = work.take(which)
                closed, better, more = self._ascend(part, there, refreshed, which, row[which])
                guide = guide.with_rows(which, compute.backend.place(which), better)
                work.open[which[closed]] = False
                alive[which[closed]] = False
                refuted += more
        near = self.context.ties.worth_a_program(work, alive, guide.value)
        return InputFindings(work, guide.value, alive, refuted, near, compute, guide, refreshed, evaluation)

    def _steering_row(self, open_: Array, value: Array) -> Array:
        """(B,) constraint that steers the split: the best one of the conjunction that is hardest to refute."""
        hardest = np.where(open_, self.objective.best(value), np.inf).argmin(axis=1)
        return self.objective.best_row(value, hardest)

    def _to_ascend(self, work: Batch, alive: Array) -> Array:
        """Regions with one open conjunction; only those with phase literals while ascent closes few of the others."""
        which = np.flatnonzero(alive & (work.open.sum(axis=1) == 1))
        if len(which) and self.ascent_share < LEAST_SHARE and self.context.pace.turns % EXPLORE:
            which = which[work.phases[which].any(axis=1)]
        return which

    def _ascend(
        self, part: Batch, there: Regions, refreshed: Refreshed, which: Array, row: Array
    ) -> tuple[Array, Guide, list[Refuted]]:
        """Improve the duals of the regions `part`, number `which` in the batch, from constraint `row (R,)` on.

        `(R,)` which are closed, the better functionals, and the refutations.
        """
        compute, objective, ties = self.compute, self.objective, self.context.ties
        phases = compute.place_neurons(part.phases) if part.phases.any() else None
        regions = there.take(compute.backend.place(which))
        ascent = Ascent(compute.bounder, compute.objective, regions, compute.lines(refreshed, which), phases)
        weights = compute.backend.array(np.eye(len(objective.owner))[row])
        conjunction = part.open.argmax(axis=1)
        allowed = objective.owner[None] == conjunction[:, None]
        several = bool(np.any(allowed.sum(axis=1) > 1))
        duals, bounded = ascent.run(
            ascent.default_duals(weights), self.context.plan.steps, compute.backend.place(allowed) if several else None
        )
        bound, error = NUMPY.place(bounded.value), NUMPY.place(bounded.rows.error)
        default, on_all = compute.on_neurons(ascent.default_alpha()), compute.plain(duals)
        closed = bound > 0
        for c in distinct(conjunction[~closed]).tolist():
            closed |= (conjunction == c) & ties.closed_by(part, int(c), on_all, bound, error)
        self.ascent_share = FORGET * self.ascent_share + (1 - FORGET) * float(closed.mean())
        refuted: list[Refuted] = [
            ByDuals.of(objective, part, int(c), on_all, default, bound, closed & (conjunction == c))
            for c in distinct(conjunction[closed]).tolist()
        ]
        return closed, Guide(bound, bounded.rows.coeffs, bounded.trace), refuted

    # ---- splitting -----------------------------------------------------------------------------

    def split(self, found: InputFindings) -> Kept:
        """See `Way`. Neurons are split only where one conjunction is open: see `split_input`."""
        work, compute, guide = found.work, self.compute, found.guide
        clipped = clip(self.objective, work, found.evaluation, found.alive)
        alive = found.alive & ~work.regions.empty()  # an empty box has no unsafe point: evident from the clip itself
        alone = work.open.sum(axis=1) == 1
        there = compute.place(work.regions)
        lower, upper = input_gains(compute.bounder, there, found.refreshed, guide.coeffs, guide.trace)
        gains = NUMPY.place(lower) + NUMPY.place(upper)
        literals = split_input(compute.bounder, there, gains, guide.trace, alone)
        if self.context.plan.careful:
            which = np.flatnonzero(alive & (literals.node == 0))
            some = there.take(compute.backend.place(which))
            first = literals.index[which], literals.threshold[which]
            chosen = looked_ahead(compute, self.objective, some, work.open[which], gains[which], first)
            literals.index[which], literals.threshold[which] = chosen
        if compute.fold is not None:
            literals = self._unfolded(literals)
        return Kept(work, np.flatnonzero(alive), guide.value, literals, clipped=work.ids[clipped])

    def _unfolded(self, literals: Literals) -> Literals:
        """Literals on the compute's inputs and neurons as literals on those of the search's bounder."""
        fold, slices = self.compute.fold, self.compute.bounder.slices
        assert fold is not None
        node, index = literals.node.copy(), literals.index.copy()
        for k in distinct(node).tolist():
            own = node == k
            if k == 0:
                index[own] = fold.columns[index[own]]
            else:
                node[own], index[own] = locate(self.context.bounder, fold.positions[slices[k].start + index[own]])
        return literals._replace(node=node, index=index)

    # ---- the frontier --------------------------------------------------------------------------

    def pack(self, work: Batch, which: Array) -> dict[str, Array]:
        """See `Way`."""
        return {"low": work.regions.low[which], "up": work.regions.up[which], "phases": work.phases[which]}

    def unpack(self, popped: dict[str, Array]) -> Batch:
        """See `Way`."""
        regions = Regions(*(popped[f] for f in ("lo", "hi", "low", "up")))
        return Batch(popped["ids"], regions, popped["open"], popped["phases"], popped["value"])


def clip(objective: Objective, work: Batch, evaluation: Evaluation, alive: Array) -> Array:
    """Cut the boxes of regions with one open conjunction by its constraints, in place; returns these regions.

    Children inherit the smaller box. `evaluation` is in NumPy, on all inputs.
    """
    which = np.flatnonzero(alive & (work.open.sum(axis=1) == 1))
    conjunction = work.open[which].argmax(axis=1)
    for c in distinct(conjunction):
        own = which[conjunction == c]
        for row in range(int(objective.starts[c]), int(objective.starts[c + 1])):
            clip_box(work.regions, evaluation.coeffs[own, row], evaluation.offset[own, row], own)
    return which
