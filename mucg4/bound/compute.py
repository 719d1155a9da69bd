"""A case's bounder and objective once more, on the backend that computes.

The search keeps its regions, duals and choices in NumPy; what costs (backward rows, ascent) runs on this pair, which
is on a PyTorch device when one was asked for and else the search's own. Where inputs are split it
bounds the network folded on the root box (`mucg4.bound.folded`), which has fewer inputs and neurons; regions,
choices and proofs number those of the network itself. What crosses between the two does so through this class and
`mucg4.bound.reduced`; the ways of splitting, which estimate there and choose here, place their results. Both pairs
bound the same network with rounding accounted for (`mucg4.bound.rounding`), so bounds of either may be intersected
with those of the other.
"""

from __future__ import annotations

from dataclasses import field, replace

import numpy as np

from mucg4.bound.folded import Folding, fold_network
from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder, Refreshed, Regions
from mucg4.bound.reduced import Reduced
from mucg4.bound.tighten import Duals
from mucg4.ops.arrays import NUMPY, Array, Backend
from mucg4.records import dataclass


@dataclass(frozen=True)
class Compute:
    """See the module text. `backend` is float64."""

    bounder: Bounder
    objective: Objective
    backend: Backend
    fold: Folding | None = None
    unfolded: Compute | None = None  # what `folded_on` was made from
    _roots: list[tuple[Regions, Reduced]] = field(default_factory=list)

    @property
    def whole(self) -> Compute:
        """The compute of all inputs and neurons."""
        return self.unfolded or self

    def reduced(self, root: Regions) -> Reduced:
        """The reduced network on a root, made once for the one asked for last: all conjunctions share its matrices."""
        if not self._roots or self._roots[0][0] is not root:
            self._roots[:] = [(root, Reduced.build(self.bounder, root))]
        return self._roots[0][1]

    @staticmethod
    def of(bounder: Bounder, objective: Objective, backend: Backend) -> Compute:
        """The compute of a NumPy pair; the pair itself when that is where `backend` computes."""
        if backend == NUMPY:
            return Compute(bounder, objective, backend)
        there = Bounder(
            bounder.network.cast(backend), objective.case.box.lo, objective.case.box.hi, bounder.poll, bounder.caution
        )
        return Compute(there, Objective(objective.case, backend), backend)

    def folded_on(self, bounder: Bounder, root: Regions) -> Compute:
        """The compute of the same NumPy pair on what the root box leaves of the network; itself where that is all.

        `root`: the refreshed root of `bounder`. For searches that split inputs: cuts and the reduced network of those
        that split phases number all neurons.
        """
        fold = fold_network(bounder, root, fold_inputs=not self.objective.mixed)
        if fold is None:
            return self
        lo, hi = bounder.lo[fold.columns], bounder.hi[fold.columns]
        there = Bounder(fold.network.cast(self.backend), lo, hi, bounder.poll, bounder.caution)
        there.folded = True
        compute = replace(self, bounder=there, fold=fold, unfolded=self, _roots=[])
        there.tighten_scales(compute.place(root))
        return compute

    def place(self, regions: Regions) -> Regions:
        """NumPy regions as the compute knows them; without folding, on a CPU, the arrays share their memory."""
        if self.fold is not None:
            columns, positions = self.fold.columns, self.fold.positions
            boxes, bounds = (a[:, columns] for a in (regions.lo, regions.hi)), (regions.low, regions.up)
            regions = Regions(*boxes, *(a[:, positions] for a in bounds))
        return regions.on(self.backend)

    def place_neurons(self, values: Array) -> Array:
        """NumPy values per pre-activation `(B, P)`, on the compute's backend, for those that it has."""
        return self.backend.place(values if self.fold is None else values[:, self.fold.positions])

    def on_inputs(self, coeffs: Array) -> Array:
        """Coefficients `(..., d')` on the compute's inputs as NumPy coefficients `(..., d)` on all inputs."""
        coeffs, fold = NUMPY.place(coeffs), self.fold
        return coeffs if fold is None else _spread(coeffs, fold.columns, fold.inputs)

    def on_neurons(self, values: Array) -> Array:
        """`(B, P')` per pre-activation of the compute as NumPy `(B, P)` per pre-activation, zero where folded."""
        values, fold = NUMPY.place(values), self.fold
        return values if fold is None else _spread(values, fold.positions, fold.width)

    def plain(self, duals: Duals) -> Duals:
        """The compute's duals in NumPy, with all pre-activations."""
        duals = plain_duals(duals)
        return replace(duals, alpha=self.on_neurons(duals.alpha), beta=self.on_neurons(duals.beta))

    def refresh(
        self, regions: Regions, keep_rows: bool = False, backward: bool = True, settle: bool = False
    ) -> tuple[Regions, Refreshed]:
        """`Bounder.refresh` of NumPy regions, in place; also the regions and relaxations where they were computed."""
        there = self.place(regions)
        refreshed = self.bounder.refresh(there, keep_rows, backward, settle)
        if self.fold is not None:
            at = self.fold.positions
            regions.low[:, at], regions.up[:, at] = NUMPY.place(there.low), NUMPY.place(there.up)
        elif there.low is not regions.low:
            regions.low[:], regions.up[:] = NUMPY.place(there.low), NUMPY.place(there.up)
        return there, refreshed

    def narrowed(self, duals: Duals) -> Duals:
        """NumPy duals with all pre-activations -> those of the compute, on its backend."""
        alpha, beta = (a if self.fold is None else a[:, self.fold.positions] for a in (duals.alpha, duals.beta))
        return self.duals(replace(duals, alpha=alpha, beta=beta))

    def duals(self, duals: Duals) -> Duals:
        """NumPy duals on the compute's backend."""
        weights, alpha, beta = (self.backend.array(a) for a in (duals.weights, duals.alpha, duals.beta))
        return Duals(weights, alpha, beta, None if duals.cuts is None else self.backend.array(duals.cuts))

    def lines(self, refreshed: Refreshed, which: Array) -> Refreshed:
        """The relaxations of the regions `which` (NumPy)."""
        return refreshed.take(self.backend.place(which))


def _spread(values: Array, at: Array, size: int) -> Array:
    """`values (..., n)` at the places `at (n,)` of a last axis of the given size, zero elsewhere."""
    out = np.zeros((*values.shape[:-1], size))
    out[..., at] = values
    return out


def plain_duals(duals: Duals) -> Duals:
    """Duals as NumPy arrays."""
    weights, alpha, beta = (NUMPY.place(a) for a in (duals.weights, duals.alpha, duals.beta))
    return Duals(weights, alpha, beta, None if duals.cuts is None else NUMPY.place(duals.cuts))
