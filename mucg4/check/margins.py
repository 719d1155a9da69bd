"""By how much a tree's refutations hold on a query, in the checker's arithmetic: for those who make proofs smaller.

Nothing here accepts a proof: what is made with it goes to `mucg4.check.walk` like any other.
"""

from __future__ import annotations

from copy import copy
from dataclasses import field, replace
from typing import ClassVar

import numpy as np

from mucg4.check.enclose import Enclosure, Frame, Rows
from mucg4.check.walk import BATCH, REGION_CELLS, _Plan, _Regions, _Walk
from mucg4.limits.budget import Budget
from mucg4.model.query import Query
from mucg4.model.refutations import Refutations
from mucg4.ops.arrays import distinct, distinct_places
from mucg4.ops.base import Array
from mucg4.records import dataclass

Plan = _Plan


@dataclass(frozen=True, eq=False)
class Margins:
    """What one walk over a tree found on one network.

    `open (N,)` marks the leaves that stay open. `value (R,)` are the bounds of the refutations, nan for those that were
    not tried because nothing was open there; `seen (N,)` marks the tree nodes that were bounded.
    """

    open: Array
    value: Array
    seen: Array
    places: Places | None = None

    @property
    def entered(self) -> int:
        """How many tree nodes were bounded."""
        return int(self.seen.sum())

    @property
    def lost(self) -> int:
        """How many leaves stay open."""
        return int(self.open.sum())


@dataclass(frozen=True, eq=False)
class Places:
    """Regions of tree nodes `at (B,)` as the checker derives them, before their refutations.

    Boxes `lo, hi (B, inputs)`, bounds `low, up (B, width)` of the pre-activation nodes at the slices `slot`, which
    conjunctions are `open (B, K)`. The tree's cuts are `sum_k planes[k] . v_k + shift <= 0` on node values.
    """

    at: Array
    lo: Array
    hi: Array
    low: Array
    up: Array
    open: Array
    slot: dict[int, slice]
    planes: dict[int, Array]
    shift: Array

    def take(self, which: Array) -> Places:
        """The chosen regions."""
        own = {f: getattr(self, f)[which] for f in ("at", "lo", "hi", "low", "up", "open")}
        return replace(self, **own)


class Gauge:
    """Measures trees on one query. What it derives for the network and the whole boxes serves all of them."""

    def __init__(self, query: Query, budget: Budget) -> None:
        """Raises `ProofError` for a network that the checker has no rules for."""
        self.query, self.budget = query, budget
        self.enclosure = Enclosure(query.network)
        self.roots: dict[int, tuple[Array, Array]] = {}

    def under(self, budget: Budget) -> Gauge:
        """The same, for as long as another budget allows."""
        out = copy(self)
        out.budget = budget
        return out

    def measure(self, plan: _Plan, within: Array | None = None, keep: Array | None = None) -> Margins:
        """The margins of one tree (see `planned`), and where something is open the regions marked in `keep (N,)`.

        `within (N,)`: other tree nodes are not entered, as if nothing were open there; it holds parents of what it
        holds. Raises `BudgetError`.
        """
        walk = _Measuring(plan, self.enclosure, self.roots, self.budget, keep=keep, within=within)
        walk.value, walk.seen = np.full(len(plan.table), np.nan), np.zeros(len(plan.tree), dtype=bool)
        with np.errstate(all="ignore"):  # overflow and nan close nothing
            walk.prepare(0)
        open_ = np.zeros(len(plan.tree), dtype=bool)
        open_[[leaf for leaf, _ in walk.rejected]] = True
        return Margins(open_, walk.value, walk.seen, None if keep is None else walk.places())

    def elsewhere(self, plan: _Plan, places: Places, table: Refutations, region: Array) -> Array:
        """(R,) bounds of refutations, R of them, on the regions `places[region]` of the tree, whose bounds stand.

        `table.at` are the tree nodes of these regions.
        """
        walk = _Walk(replace(plan, table=table), self.enclosure, self.roots, self.budget)
        walk.planes, walk.shift = places.planes, places.shift
        out, last = np.full(len(table), np.nan), len(self.enclosure.nodes) - 1
        step = max(1, min(BATCH, REGION_CELLS // sum(node.size for node in self.enclosure.nodes)))
        with np.errstate(all="ignore"):  # overflow and nan close nothing
            for own in (np.arange(i, min(i + step, len(table))) for i in range(0, len(table), step)):
                self.budget.poll()
                used, _, row = distinct_places(region[own])
                here, still = places.take(used), np.zeros(len(used), dtype=bool)
                box, bounds = (here.lo, here.hi), (here.low.copy(), here.up.copy())
                frame, _ = self.enclosure.sweep(box, *bounds, still, still)
                for conjunction in distinct(table.conjunction[own]).tolist():
                    which = np.flatnonzero(table.conjunction[own] == conjunction)
                    rows = walk._rows_of(own[which], row[which], conjunction, frame)
                    out[own[which]] = self.enclosure.minimum(frame, self.enclosure.pull(frame, rows, last))
        return out


@dataclass(eq=False)
class _Measuring(_Walk):
    """One pass over one tree that keeps the bounds it finds, without an exact second look at those near 0."""

    looks_twice: ClassVar[bool] = False

    value: Array = field(default_factory=lambda: np.zeros(0))
    keep: Array | None = None  # (N,) tree nodes whose regions are kept
    within: Array | None = None  # (N,) tree nodes that are entered
    seen: Array = field(default_factory=lambda: np.zeros(0, dtype=bool))
    regions: list[_Regions] = field(default_factory=list)

    def places(self) -> Places:
        """The regions that were kept."""
        e = self.enclosure
        if not self.regions:
            self.begin()
            self.regions = [self.stack.pop().take(np.zeros(0, dtype=np.int64))]
        all_ = _Regions.join(self.regions)
        shift = np.zeros(0) if self.shift is None else self.shift
        return Places(all_.at, all_.lo, all_.hi, all_.low, all_.up, all_.open, e.slot, self.planes, shift)

    def _refute(self, batch: _Regions, frame: Frame) -> None:
        """Note what is bounded, too."""
        self.seen[batch.at] = True
        if self.keep is not None:
            chosen = np.flatnonzero(self.keep[batch.at] & np.any(batch.open, axis=1))
            if len(chosen):
                self.regions.append(batch.take(chosen))
        super()._refute(batch, frame)

    def _tried(self, group: Array, region: Array, rows: Rows, value: Array) -> None:
        self.value[group] = value

    def _children(self, batch: _Regions) -> _Regions:
        """Those of the tree nodes that are looked at."""
        both = super()._children(batch)
        return both if self.within is None else both.take(np.flatnonzero(self.within[both.at]))
