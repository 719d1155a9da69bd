"""A case's bounder and objective once more, on the backend that computes.

The search keeps its regions, duals and choices in NumPy; what costs (backward rows, ascent) runs on the
*twin*, which is on a PyTorch device when one was asked for and else the search's own pair. Conversion happens here
and in `mucg4.bound.reduced`, so nothing else needs to know where numbers are. Both pairs bound the same network with
rounding accounted for (`mucg4.bound.rounding`), so bounds of either may be intersected with those of the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder, Refreshed, Regions
from mucg4.bound.reduced import Reduced
from mucg4.bound.tighten import Duals
from mucg4.ops.arrays import NUMPY, Array, Backend


@dataclass(frozen=True)
class Twin:
    """See the module text. `backend` is float64."""

    bounder: Bounder
    objective: Objective
    backend: Backend
    _roots: list[Reduced] = field(default_factory=list)

    def reduced(self, root: Regions) -> Reduced:
        """The reduced network on the case's root, made once: all conjunctions share its matrices."""
        if not self._roots:
            self._roots.append(Reduced.build(self.bounder, root))
        return self._roots[0]

    @staticmethod
    def of(bounder: Bounder, objective: Objective, backend: Backend) -> Twin:
        """The twin of a NumPy pair; the pair itself when that is where `backend` computes."""
        if backend == NUMPY:
            return Twin(bounder, objective, backend)
        there = Bounder(bounder.network.cast(backend), objective.case.box.lo, objective.case.box.hi, bounder.poll)
        return Twin(there, Objective(objective.case, backend), backend)

    def refresh(self, regions: Regions, keep_rows: bool = False, backward: bool = True) -> tuple[Regions, Refreshed]:
        """`Bounder.refresh` of NumPy regions, in place; also the regions and relaxations where they were computed."""
        there = regions.on(self.backend)
        refreshed = self.bounder.refresh(there, keep_rows, backward)
        if there.low is not regions.low:
            regions.low[:], regions.up[:] = NUMPY.place(there.low), NUMPY.place(there.up)
        return there, refreshed

    def duals(self, duals: Duals) -> Duals:
        """NumPy duals on the twin's backend."""
        weights, alpha, beta = (self.backend.array(a) for a in (duals.weights, duals.alpha, duals.beta))
        return Duals(weights, alpha, beta, None if duals.cuts is None else self.backend.array(duals.cuts))

    def lines(self, refreshed: Refreshed, which: Array) -> Refreshed:
        """The relaxations of the regions `which` (NumPy)."""
        return refreshed.take(self.backend.place(which))


def plain_duals(duals: Duals) -> Duals:
    """Duals as NumPy arrays."""
    weights, alpha, beta = (NUMPY.place(a) for a in (duals.weights, duals.alpha, duals.beta))
    return Duals(weights, alpha, beta, None if duals.cuts is None else NUMPY.place(duals.cuts))
