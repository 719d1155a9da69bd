"""The one branch-and-bound loop.

Order. Open regions wait in a `Frontier`; each turn pops the ones with the lowest bounds (most likely to hold a
witness), splits them by the literal chosen when they were bounded, and bounds all children as one batch. How regions
are bounded and what they are split at is up to a `Way` (`mucg4.search.way`): it returns refutations, candidates for the
attack, and open regions with their next literal; the loop records them.

Invariants: (1) the leaves of the recorded tree cover the root box, because a region only leaves the tree by a split
into both children; (2) a conjunction leaves a region's `open` mask only with a refutation on that region, so it is
closed on all descendants; (3) the input box is clipped only where exactly one conjunction is open, and that clip is
inherited by that region's children alone. Termination: input splits shrink boxes (a search of inputs also splits
neurons, each once on a path, where one dominates the loss, see `split.py`) and phase splits are finite; regions whose
network is affine are decided by an LP (`leaf_lp.py`), so with phase splits the search is complete. Cost: one backward
row per open constraint, and two per unstable neuron where neurons' bounds are derived anew; duals are improved by
ascent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mucg4.bound.planes import CutPlanes
from mucg4.bound.propagate import Refreshed
from mucg4.bound.tighten import Duals
from mucg4.errors import StuckError
from mucg4.model.query import Witness
from mucg4.model.verdict import Statistics
from mucg4.ops.base import Array
from mucg4.search.attack import Attack
from mucg4.search.frontier import Frontier
from mucg4.search.leaf_lp import decide, wrong_side
from mucg4.search.record import Outcome, Share
from mucg4.search.refuted import ByDuals, Refuted
from mucg4.search.region import Batch, apply_literals
from mucg4.search.standing import Extent, shares
from mucg4.search.way import STRETCH, Context, Findings, Kept, Stored, Way, at_first_sight

FRONTIER_BYTES = 1 << 30  # of the open regions of one search; not measured
ATTACK_EVERY, ATTACK_STEPS = 2, 12  # turns between two attacks, and steps of each; not measured
LONG_STEPS, FIRST_LONG = 100, 16  # at turn 16, 32, 64, ... the attack takes many steps; not measured


class Search:
    """Owner of one search's state. `run` returns a witness, or None when nothing is open any more."""

    def __init__(
        self,
        context: Context,
        way: Way[Any],
        statistics: Statistics,
        attack: Attack | None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.context, self.way = context, way
        self.bounder, self.objective = context.bounder, context.objective
        self.recorder, self.budget, self.pace = context.recorder, context.budget, context.pace
        self.statistics, self.attack, self.progress = statistics, attack, progress
        width = self.bounder.width
        per_region = 8 * (2 * width + 2 * len(self.bounder.lo)) + width
        self.frontier = Frontier(max(2 * context.plan.batch, FRONTIER_BYTES // per_region))
        self.witness: Witness | None = None
        self.pending: Batch | None = None  # regions that are not bounded yet: a root whose dear steps wait, or a stock
        self.given = False  # the frontier's regions are with workers
        self.meetings = 0  # of the processes that share it

    # ---- the root ------------------------------------------------------------------------------

    def begin(self, work: Batch) -> None:
        """Bound the first region. Where turns are long it is only looked at; the dear steps wait for `run`."""
        work, refuted = self.way.begin(work)
        self.record(refuted)
        if work.open.any() and not self.way.long_turns:
            self.bound(work)
            return
        self.statistics.regions += 1
        if work.open.any():
            self.pending = work

    def take_up(self, work: Batch, planes: CutPlanes, stored: Stored, dear: bool) -> None:
        """Go on in regions of a tree that the recorder continues: see `Way.take_up`."""
        self._stock(self.way.take_up(work, planes, stored, dear))

    def close_single_constraints(self, work: Batch) -> None:
        """Refute conjunctions by single constraints with default slopes; what is refuted leaves `work.open`."""
        work.open, refuted = at_first_sight(self.context, work)
        self.record(refuted)

    # ---- what is left to do --------------------------------------------------------------------

    def outlook(self) -> float:
        """Binary logarithm of how many more regions to expect: the smaller of two estimates, infinite if both are.

        Before the first split nothing is known, and nothing but the open regions expected.

        One carries on with the mean gain of a split from the open regions' bounds; the other with the pace at which the
        last third of the regions closed shares of the tree, of which each level halves a region's. Measured on a
        network of 30 inputs (safenlp) that took 113 000 regions: the latter was off by less than a factor of two from
        2 400 regions on. Knuth's estimate (1975), which rates all closed regions alike, promised an end throughout.
        """
        count = len(self.frontier)
        if not count or not self.pace.has_split or self.pending is not None:
            return float(np.log2(max(count + self.waiting, 1)))
        content = self.frontier.content(("ids", "value"))
        levels = np.inf if self.pace.gain <= 0 else STRETCH * np.maximum(-content["value"], 0) / self.pace.gain
        by_bounds = float(np.logaddexp2.reduce(levels * np.ones(count)))
        share, before, since = self.recorder.open_shares(content["ids"])
        by_pace = np.log2(max(since * share / (before - share), count)) if before > share else np.inf
        return min(by_bounds, float(by_pace))

    def closed(self) -> Array:
        """(K,) conjunctions that no open region has to refute any more."""
        closed = np.ones(self.objective.count, dtype=bool)
        if self.pending is not None:
            closed &= ~self.pending.open.any(axis=0)
        if len(self.frontier):
            closed &= ~self.frontier.content(("open",))["open"].any(axis=0)
        return closed

    def forget(self, conjunctions: Array) -> None:
        """Leave the conjunctions marked in `(K,)` to somebody else."""
        if self.pending is not None:
            self.pending.open = self.pending.open & ~conjunctions
            self._stock(self.pending.take(np.flatnonzero(self.pending.open.any(axis=1))))
        content = self.frontier.content()
        if content:
            content["open"] = content["open"] & ~conjunctions
            left = content["open"].any(axis=1)
            self.frontier.replace({f: a[left] for f, a in content.items()})

    @property
    def is_open(self) -> bool:
        """True while some region is neither refuted nor decided."""
        return self.pending is not None or len(self.frontier) > 0

    @property
    def waiting(self) -> int:
        """Regions that are not bounded yet."""
        return 0 if self.pending is None else len(self.pending.ids)

    def extent(self) -> Extent:
        """What is open of the case."""
        content, tree, parts = self.frontier.content(("ids", "lo", "hi", "open", "value")), self.recorder, []
        if content:
            parts.append(tuple(content[f] for f in ("ids", "lo", "hi", "open", "value")))
        if self.pending is not None:
            waiting = self.pending
            parts.append((waiting.ids, waiting.regions.lo, waiting.regions.hi, waiting.open, waiting.parent_value))
        if not parts:
            return Extent.nothing(self.objective.count)
        ids, lo, hi, open_, value = (np.concatenate(column) for column in zip(*parts, strict=True))
        box = self.bounder.lo, self.bounder.hi
        return Extent.of(shares(box, lo, hi, ids, tree.arrays["node"], tree.parent), open_, value)

    def divisible(self, parts: int) -> bool:
        """True when the open regions can be shared out among so many workers."""
        return self.waiting != 1 and self.waiting + len(self.frontier) >= 2 * parts

    def deal(self, parts: int) -> list[Share]:
        """The open regions in parts, which together hold all of them."""
        dealt, pending = self.frontier.deal(parts) if len(self.frontier) else [{} for _ in range(parts)], self.pending
        if pending is None:
            return [(part, None) for part in dealt]
        return [(part, pending.take(np.arange(k, len(pending.ids), parts))) for k, part in enumerate(dealt)]

    def take(self, share: Share) -> None:
        """Work on this part of the open regions alone."""
        self.frontier.replace(share[0])
        self.pending = None
        if share[1] is not None:
            self._stock(share[1])

    def _stock(self, regions: Batch) -> None:
        self.pending = regions if len(regions.ids) else None

    # ---- turns ---------------------------------------------------------------------------------

    def run(self, turns: float = float("inf"), until: float = float("inf")) -> Witness | None:
        """Search for so many turns, until the budget's work is `until`, or until nothing is open.

        One turn is done in any case. Raises `BudgetError` when the budget is spent, `StuckError` when splits have come
        to working precision.
        """
        self.pace.until = until
        while self.pending is not None and self.witness is None and turns > 0:
            self.budget.poll()
            most = np.arange(len(self.pending.ids))
            work = self.pending.take(most[: 2 * self.context.plan.batch])
            self._stock(self.pending.take(most[2 * self.context.plan.batch :]))
            self.bound(work)
            self.pace.turns += 1
            turns = turns - 1 if self.budget.work < until else 0
        while len(self.frontier) and self.witness is None and turns > 0:
            self.budget.poll()
            self.turn()
            turns = turns - 1 if self.budget.work < until else 0
        return self.witness

    def absorb(self, outcome: Outcome, whole: bool) -> None:
        """Take over what a worker did with this search (`whole`) or with its part of the frontier."""
        number = self.recorder.absorb(outcome.growth)
        self.way.adopt(outcome.learned)
        if whole or self.given:
            self.frontier.replace({})
            self.pending = None
            self.given = False
        content, pending = outcome.left
        if len(content.get("ids", ())):
            self.frontier.push(**{**content, "ids": number[content["ids"]]})
        if pending is not None:
            pending.ids = number[pending.ids]
            self._stock(pending if self.pending is None else self.pending.joined(pending))
        for name, value in outcome.counters.items():
            setattr(self.statistics, name, getattr(self.statistics, name) + value)
        self.budget.work += outcome.work
        self.pace.gain, self.pace.has_split = outcome.gain, outcome.has_split
        self.pace.turns += 1

    def turn(self) -> None:
        """Pop, split, bound, close, keep."""
        self.pace.turns += 1
        self.bound(self.children(self.frontier.pop(self.context.plan.batch)))
        if self.pace.turns % 16 == 0:
            self.report([self])

    def report(self, searches: list[Search]) -> None:
        """Tell how far the searches are."""
        if self.progress is None:
            return
        open_ = sum(len(s.frontier) + s.waiting for s in searches)
        lowest = min((s.frontier.lowest() for s in searches if len(s.frontier)), default=float("nan"))
        self.progress(f"{self.statistics.regions} regions, {open_} open, lowest bound {lowest:.3g}")

    def children(self, popped: dict[str, Array]) -> Batch:
        """Both children of every popped region, all lower ones first."""
        node, index, threshold = popped["node"], popped["index"], popped["threshold"]
        count = len(node)
        ids = self.recorder.split(popped["ids"], node, index, threshold, self.way.refreshes)
        both = np.concatenate([np.arange(count)] * 2)
        work = self.way.unpack(popped).take(both)
        upper = np.arange(2 * count) >= count
        apply_literals(self.bounder, work.regions, node[both], index[both], threshold[both], upper, work.phases)
        work.ids = np.concatenate(ids)
        return work

    def bound(self, work: Batch) -> None:
        """Bound a batch; refuted regions are recorded, the others join the frontier. What is interrupted waits."""
        try:
            self._bound(work)
        except BaseException:
            self._stock(work if self.pending is None else work.joined(self.pending))
            raise

    def _bound(self, work: Batch) -> None:
        self.statistics.regions += len(work.ids)
        work = work.take(np.flatnonzero(~work.regions.empty()))
        found = self.way.bound(work) if len(work.ids) else None
        if found is None:
            return
        self.record(found.refuted)
        self._close_near(found)
        self.pace.learn(found.work.parent_value, found.value)
        self.probe(found)
        if self.witness is None and found.alive.any():
            kept = self.way.split(found)
            self.record(kept.refuted)
            self.recorder.clip[kept.clipped] = True
            self.keep(kept)

    def record(self, refuted: list[Refuted]) -> None:
        """Put refutations into the proof."""
        for one in refuted:
            one.record(self.recorder)

    def close_duals(
        self, work: Batch, default: Array, conjunction: int, duals: Duals, bound: Array, closed: Array
    ) -> None:
        """Record the refutations `closed (B,)` by `duals`: see `ByDuals.of`."""
        cuts = self.way.planes.number
        self.record([ByDuals.of(self.objective, work, conjunction, duals, default, bound, closed, cuts)])

    def probe(self, found: Findings) -> None:
        """Offer the points where the bounds of open regions are attained, then descend from some.

        Descending costs a few percent of bounding: one point per region, few steps, now and then many. Where inputs are
        split it is done once more inside of regions, half of which are those with the lowest bounds.
        """
        which, turns = np.flatnonzero(found.alive), self.pace.turns
        if not len(which) or self.attack is None or self.witness is not None:
            return
        regions = found.work.regions
        points = np.clip(found.corners(which), regions.lo[which], regions.hi[which])
        self.witness = self.attack.offer(points)
        if self.witness is None and turns % ATTACK_EVERY == 0:
            count = max(4, len(which) // 2)
            some = points[self.attack.rng.permutation(len(points))[:count]]
            long = turns >= FIRST_LONG and turns & (turns - 1) == 0
            self.witness = self.attack.run(count, LONG_STEPS if long else ATTACK_STEPS, self.budget, some)
            if self.witness is None and self.way.joint:
                lowest = which[np.argsort(found.value[which])]
                self.witness = self.attack.inside(regions.lo[lowest], regions.hi[lowest], self.budget)

    def keep(self, kept: Kept) -> None:
        """Put open regions into the frontier, after those without a neuron left to split were decided by programs."""
        which = np.setdiff1d(kept.which, self._decided(kept.work, kept.affine)) if len(kept.affine) else kept.which
        if not len(which):
            return
        self._require_progress(kept, which)
        work, literals = kept.work, kept.literals
        self.frontier.push(
            ids=work.ids[which],
            lo=work.regions.lo[which],
            hi=work.regions.hi[which],
            open=work.open[which],
            value=kept.value[which],
            node=literals.node[which],
            index=literals.index[which],
            threshold=literals.threshold[which],
            **self.way.pack(work, which),
        )

    def _require_progress(self, kept: Kept, which: Array) -> None:
        """Stop when the box of an open region is a point to working precision: its children would be copies of it.

        Such regions have bounds within rounding of zero, so best-first order leaves them for last.
        """
        regions, literals = kept.work.regions, kept.literals
        own = which[literals.node[which] == 0]
        at, middle = literals.index[own], literals.threshold[own]
        inside = (regions.lo[own, at] < middle) & (middle < regions.hi[own, at])
        if self.witness is None and not np.all(inside):
            points = regions.lo[own[~inside]]
            raise StuckError("undecided: a region shrank to a point where rounding hides the sign", points)

    # ---- linear programs -----------------------------------------------------------------------

    def _close_near(self, found: Findings) -> None:
        """Close what programs over relaxations close of the regions `found.near`; it leaves `open` and `alive`."""
        work, ties = found.work, self.context.ties
        for i in found.near.tolist():
            one = work.take(np.array([i]))
            strict = [c for c in np.flatnonzero(one.open[0]).tolist() if ties.is_joint(c)]
            refreshed = self.bounder.refresh(one.regions, backward=False) if strict else None
            for c in strict:
                self.budget.poll()
                assert refreshed is not None
                if self.witness is None and self._program(one, refreshed, c)[0]:
                    work.open[i, c] = False
            found.alive[i] = work.open[i].any()

    def _decided(self, work: Batch, affine: Array) -> Array:
        """The regions among `affine` (no unstable neuron) that programs close.

        A region that stays open may have become one of its parts, in place; its other parts are empty.
        """
        done = []
        for i in affine.tolist():
            one = work.take(np.array([i]))
            if self._decided_one(one):
                done.append(i)
            work.ids[i], work.phases[i] = one.ids[0], one.phases[0]
            work.regions.low[i], work.regions.up[i] = one.regions.low[0], one.regions.up[0]
            if self.witness is not None:
                break
        return np.array(done, dtype=np.int64)

    def _decided_one(self, one: Batch) -> bool:
        """Whether programs close the region of `one`, which may become one of its parts on the way."""
        while self.witness is None:
            self.budget.poll()
            refreshed = self.bounder.refresh(one.regions, backward=False)
            said = [self._program(one, refreshed, int(c)) for c in np.flatnonzero(one.open[0])]
            if all(closed for closed, _ in said):
                return True
            points = [point for closed, point in said if not closed and point is not None]
            if not any(self._take_side(one, point) for point in points):
                break
        return False

    def _program(self, one: Batch, refreshed: Refreshed, conjunction: int) -> tuple[bool, Array | None]:
        """Whether a program refutes the conjunction on the region of `one`, and its best point, which is offered."""
        self.statistics.lp_calls += 1
        decision = decide(self.context, one, refreshed, conjunction)
        if decision.refuted is not None:
            self.record([decision.refuted])
            return True, None
        if decision.point is not None and self.attack is not None and self.witness is None:
            self.witness = self.attack.offer(decision.point[None])
        return False, decision.point

    def _take_side(self, one: Batch, point: Array) -> bool:
        """Split a neuron that has the wrong side at the point; `one` becomes the child that stays. See `leaf_lp`."""
        found = wrong_side(self.bounder, one, point)
        if found is None:
            return False
        node, index, upper = found
        literal = np.array([node]), np.array([index]), np.zeros(1)
        children = self.recorder.split(one.ids, *literal, False)
        apply_literals(self.bounder, one.regions, *literal, np.array([upper]), one.phases)
        one.ids = children[upper]
        return True
