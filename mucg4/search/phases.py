"""Splitting ReLU phases: one conjunction at a time, on the network between unstable neurons.

Order for a batch. (1) Dual ascent on the reduced network, confirmed on the network itself (`mucg4.search.phase_bound`).
(2) Regions that promise large subtrees are tightened, at the root with cuts, and refuted again
(`mucg4.search.phase_tighten`). (3) The rest is split by strong branching at the parents' duals (`mucg4.search.branch`).

The frontier keeps bounds, phases and duals of units only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mucg4.bound.compute import Compute
from mucg4.bound.planes import CutPlanes
from mucg4.bound.propagate import Bounder, Regions
from mucg4.bound.reduced import Reduced, ReducedDuals
from mucg4.ops.base import Array
from mucg4.records import dataclass
from mucg4.search.branch import strong_branching
from mucg4.search.phase_bound import F, PhaseBounder, PhaseFindings
from mucg4.search.phase_tighten import Tightener, round_regions
from mucg4.search.refuted import Refuted
from mucg4.search.region import Batch, unstable_units
from mucg4.search.split import Literals, split_widest
from mucg4.search.way import Context, Kept, Stored, Way, at_first_sight

# largest matrices of a network between unstable neurons (1 GiB); larger ones split inputs; not measured
REDUCED_CELLS = 1 << 28


@dataclass(frozen=True)
class Learned:
    """What a worker found out about a search that splits phases; the bounds `(P,)` and cuts hold on all its regions."""

    share: float
    root: tuple[Array, Array, CutPlanes] | None


class PhaseWay(Way[PhaseFindings]):
    """See the module text."""

    name, joint, refreshes, long_turns = "phase", False, False, True

    def __init__(self, context: Context) -> None:
        self.bounding = PhaseBounder(context)
        self.tightener = Tightener(context, self.bounding)
        super().__init__(context)

    @property
    def planes(self) -> CutPlanes:
        """The cuts in use."""
        return self.bounding.planes

    @planes.setter
    def planes(self, planes: CutPlanes) -> None:
        self.bounding.planes = planes

    @staticmethod
    def possible(bounder: Bounder, root: Regions) -> bool:
        """True where phases can be split: two-piece neurons, and few enough that are unstable."""
        units = unstable_units(bounder, root)
        return Reduced.supports(bounder) and units * (units + bounder.network.input_size) <= REDUCED_CELLS

    @staticmethod
    def first_work(bounder: Bounder, root: Regions) -> float:
        """Some passes of the reduced network's matrices."""
        units = unstable_units(bounder, root)
        return 100.0 * units * (units + bounder.network.input_size)

    @staticmethod
    def prepared(compute: Compute, bounder: Bounder, root: Regions) -> Compute:
        """The compute of all inputs and neurons, which cuts and the reduced network number."""
        return compute

    def root_cost(self) -> float:
        """A round of tightening."""
        reduced = self.bounding.reduced
        return round_regions(reduced.units) if self.bounding.built else float("inf")

    # ---- one batch -----------------------------------------------------------------------------

    def begin(self, work: Batch) -> tuple[Batch, list[Refuted]]:
        """Single constraints, then ascent; the dear steps wait."""
        open_, refuted = at_first_sight(self.context, work)
        work = replace(work, open=open_)
        if not open_.any():
            return work, refuted
        self.bounding.accept(work)
        self.context.bounder.refresh(work.regions, backward=False)
        if work.regions.empty()[0]:
            return replace(work, open=open_ & False), refuted
        found = self.bounding.refute(work)
        return replace(found.work, open=open_ & found.alive[:, None]), [*refuted, *found.refuted]

    def take_up(self, work: Batch, planes: CutPlanes, stored: Stored, dear: bool) -> Batch:
        """See `Way`."""
        self.planes, self.tightener.spares_root = planes, not dear
        self.bounding.accept(work)
        return replace(work, duals=self.bounding.warm(work, stored))

    def bound(self, work: Batch) -> PhaseFindings | None:
        """See `Way`."""
        self.bounding.accept(work)
        self.context.bounder.refresh(work.regions, backward=False)
        work = work.take(np.flatnonzero(~work.regions.empty()))
        return self.bounding.refute(work) if len(work.ids) else None

    def split(self, found: PhaseFindings) -> Kept:
        """See `Way`."""
        found = self.tightener.tighten(found.take(np.flatnonzero(found.alive)))
        work, every = found.work, np.arange(len(found.value))
        literals = strong_branching(found, self.bounding.direct) if len(every) else Literals.none()
        affine = np.flatnonzero(literals.node < 0)
        if len(affine):
            widest = split_widest(self.context.bounder, work.regions.take(affine))
            for chosen, other in zip(literals[:3], widest[:3], strict=True):
                chosen[affine] = other
        return Kept(work, every, found.value.astype(np.float64), literals, found.refuted, affine)

    # ---- the frontier and other processes ------------------------------------------------------

    def pack(self, work: Batch, which: Array) -> dict[str, Array]:
        """See `Way`."""
        units = self.bounding.reduced.positions
        assert work.duals is not None
        return {
            "low": work.regions.low[np.ix_(which, units)],
            "up": work.regions.up[np.ix_(which, units)],
            "phases": work.phases[np.ix_(which, units)],
            "weights": work.duals.weights[which],
            "alpha": np.round(work.duals.alpha[which] * 255).astype(np.uint8),
            "beta": work.duals.beta[which],
        }

    def unpack(self, popped: dict[str, Array]) -> Batch:
        """See `Way`."""
        bounding, count = self.bounding, len(popped["ids"])
        units = bounding.reduced.positions
        low, up = np.repeat(bounding.low[None], count, axis=0), np.repeat(bounding.up[None], count, axis=0)
        low[:, units], up[:, units] = popped["low"], popped["up"]
        phases = np.zeros(low.shape, dtype=np.int8)
        phases[:, units] = popped["phases"]
        signs = popped["phases"].astype(F)
        duals = ReducedDuals(popped["weights"], popped["alpha"].astype(F) / F(255), popped["beta"], signs)
        regions = Regions(popped["lo"], popped["hi"], low, up)
        return Batch(popped["ids"], regions, popped["open"], phases, popped["value"], duals)

    def learned(self, whole: bool) -> Learned | None:
        """See `Way`."""
        bounding = self.bounding
        if not bounding.built:
            return None
        return Learned(self.tightener.share, (bounding.low, bounding.up, bounding.planes) if whole else None)

    def adopt(self, learned: Learned | None) -> None:
        """See `Way`."""
        bounding = self.bounding
        if learned is None or not bounding.built:
            return
        self.tightener.share = learned.share
        if learned.root is None:
            return
        low, up, planes = learned.root
        same = np.array_equal(planes.number, bounding.planes.number)
        bounding.planes = planes
        if not (same and np.array_equal(low, bounding.low) and np.array_equal(up, bounding.up)):
            box = self.context.bounder.lo[None], self.context.bounder.hi[None]
            bounding.rebase(Regions(*box, low[None], up[None]))
