"""A case's bounder and objective once more, on the backend that computes.

The search keeps its regions, duals and choices in NumPy; what costs (backward rows, ascent) runs on the
*twin*, which is on a PyTorch device when one was asked for and else the search's own pair. Where inputs are split the
twin bounds the network folded on the root box (`mucg4.bound.special`), which has fewer inputs and neurons; regions,
choices and proofs number those of the network itself. Conversion happens here and in `mucg4.bound.reduced`, so
nothing else needs to know where numbers are. Both pairs bound the same network with
rounding accounted for (`mucg4.bound.rounding`), so bounds of either may be intersected with those of the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder, Refreshed, Regions
from mucg4.bound.reduced import Reduced
from mucg4.bound.special import Special, specialise
from mucg4.bound.tighten import Duals
from mucg4.ops.arrays import NUMPY, Array, Backend


@dataclass(frozen=True)
class Twin:
    """See the module text. `backend` is float64."""

    bounder: Bounder
    objective: Objective
    backend: Backend
    special: Special | None = None
    folded: Twin | None = None  # what `specialised` was made from
    _roots: list[Reduced] = field(default_factory=list)

    @property
    def whole(self) -> Twin:
        """The twin of all inputs and neurons."""
        return self.folded or self

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
        there = Bounder(
            bounder.network.cast(backend), objective.case.box.lo, objective.case.box.hi, bounder.poll, bounder.caution
        )
        return Twin(there, Objective(objective.case, backend), backend)

    def specialised(self, bounder: Bounder, root: Regions) -> Twin:
        """The twin of the same NumPy pair on what the root box leaves of the network; itself where that is all.

        `root`: the refreshed root of `bounder`. For searches that split inputs: cuts and the reduced network of those
        that split phases number all neurons.
        """
        special = specialise(bounder, root, fold_inputs=not self.objective.mixed)
        if special is None:
            return self
        lo, hi = bounder.lo[special.columns], bounder.hi[special.columns]
        there = Bounder(special.network.cast(self.backend), lo, hi, bounder.poll, bounder.caution)
        there.folded = True
        twin = replace(self, bounder=there, special=special, folded=self, _roots=[])
        there.tighten_scales(twin.place(root))
        return twin

    def place(self, regions: Regions) -> Regions:
        """NumPy regions as the twin knows them; without folding, on a CPU, the arrays share their memory."""
        if self.special is not None:
            columns, positions = self.special.columns, self.special.positions
            boxes, bounds = (a[:, columns] for a in (regions.lo, regions.hi)), (regions.low, regions.up)
            regions = Regions(*boxes, *(a[:, positions] for a in bounds))
        return regions.on(self.backend)

    def place_neurons(self, values: Array) -> Array:
        """NumPy values per pre-activation `(B, P)`, on the twin's backend, for those that it has."""
        return self.backend.place(values if self.special is None else values[:, self.special.positions])

    def on_inputs(self, coeffs: Array) -> Array:
        """Coefficients `(..., d')` on the twin's inputs as NumPy coefficients `(..., d)` on all inputs."""
        coeffs, special = NUMPY.place(coeffs), self.special
        return coeffs if special is None else _spread(coeffs, special.columns, special.inputs)

    def on_neurons(self, values: Array) -> Array:
        """`(B, P')` per pre-activation of the twin as NumPy `(B, P)` per pre-activation, zero where folded."""
        values, special = NUMPY.place(values), self.special
        return values if special is None else _spread(values, special.positions, special.width)

    def plain(self, duals: Duals) -> Duals:
        """The twin's duals in NumPy, with all pre-activations."""
        duals = plain_duals(duals)
        return replace(duals, alpha=self.on_neurons(duals.alpha), beta=self.on_neurons(duals.beta))

    def refresh(
        self, regions: Regions, keep_rows: bool = False, backward: bool = True, settle: bool = False
    ) -> tuple[Regions, Refreshed]:
        """`Bounder.refresh` of NumPy regions, in place; also the regions and relaxations where they were computed."""
        there = self.place(regions)
        refreshed = self.bounder.refresh(there, keep_rows, backward, settle)
        if self.special is not None:
            at = self.special.positions
            regions.low[:, at], regions.up[:, at] = NUMPY.place(there.low), NUMPY.place(there.up)
        elif there.low is not regions.low:
            regions.low[:], regions.up[:] = NUMPY.place(there.low), NUMPY.place(there.up)
        return there, refreshed

    def narrowed(self, duals: Duals) -> Duals:
        """NumPy duals with all pre-activations -> those of the twin, on its backend."""
        alpha, beta = (a if self.special is None else a[:, self.special.positions] for a in (duals.alpha, duals.beta))
        return self.duals(replace(duals, alpha=alpha, beta=beta))

    def duals(self, duals: Duals) -> Duals:
        """NumPy duals on the twin's backend."""
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
