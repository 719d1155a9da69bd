"""Regions on their way through one turn of a search, and how literals cut them."""

from __future__ import annotations

import numpy as np

from mucg4.bound.propagate import Bounder, Regions
from mucg4.bound.reduced import ReducedDuals
from mucg4.ops.arrays import distinct
from mucg4.ops.base import Array
from mucg4.records import dataclass


@dataclass(frozen=True)
class Plan:
    """How much one turn of a search does, chosen by the size of the network."""

    steps: int  # ascent steps per region
    batch: int  # regions popped
    careful: bool = False  # children are bounded before an input is chosen: see `mucg4.search.ahead`


@dataclass
class Batch:
    """A batch of regions on its way through one turn."""

    ids: Array
    regions: Regions
    open: Array  # (B, K) conjunctions not refuted yet
    phases: Array  # (B, P) int8, +1 / -1 / 0
    parent_value: Array  # (B,) bound of the parent, nan where there is none
    duals: ReducedDuals | None = None  # phase splits: duals to start from, on units

    @staticmethod
    def fresh(ids: Array, regions: Regions, open_: Array, phases: Array) -> Batch:
        """Regions without a history."""
        return Batch(ids, regions, open_, phases, np.full(len(ids), np.nan))

    def take(self, index: Array) -> Batch:
        """The chosen regions."""
        duals = None if self.duals is None else self.duals.take(index)
        parts = (self.ids[index], self.regions.take(index), self.open[index], self.phases[index])
        return Batch(*parts, self.parent_value[index], duals)

    def joined(self, other: Batch) -> Batch:
        """The regions of both, this one's first."""
        duals = None
        if self.duals is not None and other.duals is not None:
            duals = self.duals.joined(other.duals)
        ids, open_, phases, value = (
            np.concatenate([getattr(self, f), getattr(other, f)]) for f in ("ids", "open", "phases", "parent_value")
        )
        return Batch(ids, Regions.concat([self.regions, other.regions]), open_, phases, value, duals)


def apply_literals(
    bounder: Bounder, regions: Regions, node: Array, index: Array, threshold: Array, upper: Array, phases: Array | None
) -> None:
    """Apply one literal to each region in place: value <= threshold, or >= threshold where `upper (B,)`."""
    every = np.arange(len(node))
    for k in distinct(node).tolist():
        own = every[node == k]
        low, up = (regions.lo, regions.hi) if k == 0 else bounder.pre_bounds(regions, k)
        j, t, high = index[own], threshold[own], upper[own]
        low[own[high], j[high]] = np.maximum(low[own[high], j[high]], t[high])
        up[own[~high], j[~high]] = np.minimum(up[own[~high], j[~high]], t[~high])
        if k > 0 and phases is not None:
            zero = t == 0.0
            phases[own[zero], bounder.slices[k].start + j[zero]] = np.where(high[zero], 1, -1)


def unstable_units(bounder: Bounder, root: Regions) -> int:
    """How many neurons are unstable on the root."""
    return sum(int(bounder.unstable(root, k).sum()) for k in bounder.pre)
