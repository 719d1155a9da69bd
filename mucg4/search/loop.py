"""The one branch-and-bound loop.

Order. Batch regions wait in a `Frontier`; each turn pops the ones with the lowest bounds (most likely
to hold a witness), splits them by the literal chosen when they were bounded, and bounds all children
as one batch. Invariants: (1) the leaves of the recorded tree cover the root box, because a region only
leaves the tree by a split into both children; (2) a conjunction leaves a region's `open` mask only
with a refutation on that region, so it is closed on all descendants; (3) the input box is clipped only
where exactly one conjunction is open, and that clip is inherited by that region's children alone.
Termination: input splits shrink boxes (a search of inputs also splits neurons, each once on a path, where one
dominates the loss, see `split.py`) and phase splits are finite; regions whose network is affine are
decided by an LP (`search/exact.py`), so with phase splits the search is complete. Cost: one backward
row per open constraint, and with `refresh` two per unstable neuron; duals are improved by ascent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mucg4.bound.compute import Compute
from mucg4.bound.objective import Evaluation, Objective, clip_box
from mucg4.bound.planes import CutPlanes
from mucg4.bound.propagate import Bounder, Refreshed, Regions
from mucg4.bound.tighten import Ascent, Duals
from mucg4.errors import StuckError, UnsoundError
from mucg4.limits.budget import Budget
from mucg4.model.query import Witness
from mucg4.model.verdict import Statistics
from mucg4.ops.arrays import NUMPY, distinct
from mucg4.ops.base import Array
from mucg4.search.attack import Attack
from mucg4.search.frontier import Frontier
from mucg4.search.phases import FORGET, STRETCH, PhaseSearch
from mucg4.search.record import Outcome, Recorder
from mucg4.search.region import Batch, Plan, apply_literals
from mucg4.search.split import Choice, locate, split_input, split_widest
from mucg4.search.ties import Ties

FRONTIER_BYTES = 1 << 30
ROWS_CELLS = 1 << 26  # most numbers that rows of neurons may take on one side
ATTACK_EVERY, ATTACK_STEPS = 2, 12
LONG_STEPS, FIRST_LONG = 100, 16  # at turn 16, 32, 64, ... the attack takes many steps
LEAST_SHARE, EXPLORE = 0.03, 16  # ascent that closes a smaller share of its regions is tried every so many turns only


class Search:
    """Owner of one search's state. `run` returns a witness, or None when nothing is open any more."""

    def __init__(
        self,
        bounder: Bounder,
        objective: Objective,
        plan: Plan,
        root: Regions,
        recorder: Recorder,
        statistics: Statistics,
        budget: Budget,
        attack: Attack | None,
        progress: Callable[[str], None] | None = None,
        compute: Compute | None = None,
    ) -> None:
        """`compute` computes what costs; without one everything is computed by the bounder itself."""
        self.bounder, self.objective, self.plan, self.root = bounder, objective, plan, root
        self.recorder, self.statistics, self.budget, self.attack = recorder, statistics, budget, attack
        self.progress = progress
        self.compute = Compute.of(bounder, objective, NUMPY) if compute is None else compute
        per_region = 8 * (2 * bounder.width + 2 * len(bounder.lo)) + bounder.width
        self.frontier = Frontier(max(2 * plan.batch, FRONTIER_BYTES // per_region))
        self.witness: Witness | None = None
        self.planes = CutPlanes.none(self.compute.bounder.lo)  # cuts of all regions, on the compute's backend
        self.ties = Ties(self)
        self.pending: Batch | None = None  # a root whose dear steps have not begun
        self.given = False  # the frontier's regions are with workers
        self.phase: PhaseSearch | None = None  # made with the first batch when phases are split
        self.turns = self.meetings = 0  # of its own, and of the processes that share it
        self.drop, self.has_split = 0.0, False  # mean gain of one split, known after the first
        self.until = float("inf")  # work of the budget at which optional steps are left out
        self.ascent_share = 1.0  # running mean share of the regions that ascent closes

    def begin(self, work: Batch) -> None:
        """Bound the first region. One that splits phases is only refuted; the dear steps wait for `run`."""
        if self.plan.mode == "phase" or not self._keeps_rows(work):
            self.close_single_constraints(
                work
            )  # where that does, no reduced network is needed, and no second refreshing
        if not np.any(work.open):
            self.statistics.regions += 1
        elif self.plan.mode == "input":
            self.bound(work)
        elif not self._phase(work).refuted(work):
            self.pending = work

    def close_single_constraints(self, work: Batch) -> None:
        """Refute conjunctions by single constraints with default slopes; what is refuted leaves `work.open`."""
        refreshed = self.bounder.refresh(work.regions, backward=False)
        error = np.zeros((len(work.ids), len(self.objective.owner)))
        value = self.objective.values(self.bounder, work.regions, refreshed, work.open, error)
        closed = work.open & (self.objective.best(value) > 0)
        self.record_plain(work, value, closed)
        work.open = work.open & ~closed
        self.ties.close_single(work, value, error)

    def learn_drop(self, work: Batch, value: Array) -> None:
        """Update the mean gain of a split from children `value (B,)` whose parents' bounds are known."""
        known = np.isfinite(work.parent_value)
        if np.any(known):
            gain = np.minimum(value[known], 0) - work.parent_value[known]
            mean = float(np.fmax(gain, 0).mean())
            self.drop = mean if self.drop == 0.0 else FORGET * self.drop + (1 - FORGET) * mean
            self.has_split = True

    def outlook(self) -> float:
        """Binary logarithm of how many more regions to expect: the smaller of two estimates, infinite if both are.

        Before the first split nothing is known, and nothing but the open regions expected.

        One carries on with the mean gain of a split from the open regions' bounds; the other with the pace at which the
        last third of the regions closed shares of the tree, of which each level halves a region's. Measured on a
        network of 30 inputs (safenlp) that took 113 000 regions: the latter was off by less than a factor of two from
        2 400 regions on. Knuth's estimate (1975), which rates all closed regions alike, promised an end throughout.
        """
        count = len(self.frontier)
        if not count or not self.has_split:
            return float(np.log2(max(count, 1)))
        content = self.frontier.content(("ids", "value"))
        levels = np.inf if self.drop <= 0 else STRETCH * np.maximum(-content["value"], 0) / self.drop
        by_bounds = float(np.logaddexp2.reduce(levels * np.ones(count)))
        share, before, since = self.recorder.open_shares(content["ids"])
        by_pace = np.log2(max(since * share / (before - share), count)) if before > share else np.inf
        return min(by_bounds, float(by_pace))

    def closed(self) -> Array:
        """(K,) conjunctions that no open region has to refute any more."""
        if self.pending is not None:
            return ~self.pending.open[0]
        if not len(self.frontier):
            return np.ones(self.objective.count, dtype=bool)
        return ~self.frontier.content(("open",))["open"].any(axis=0)

    def forget(self, conjunctions: Array) -> None:
        """Leave the conjunctions marked in `(K,)` to somebody else."""
        if self.pending is not None:
            self.pending.open = self.pending.open & ~conjunctions
            if not np.any(self.pending.open):
                self.pending = None
        content = self.frontier.content()
        if content:
            content["open"] = content["open"] & ~conjunctions
            left = content["open"].any(axis=1)
            self.frontier.replace({f: a[left] for f, a in content.items()})

    @property
    def is_open(self) -> bool:
        """True while some region is neither refuted nor decided."""
        return self.pending is not None or len(self.frontier) > 0

    def divisible(self, parts: int) -> bool:
        """True when the open regions can be shared out among so many workers."""
        return self.pending is None and len(self.frontier) >= 2 * parts

    def run(self, turns: float = float("inf"), until: float = float("inf")) -> Witness | None:
        """Search for so many turns, until the budget's work is `until`, or until nothing is open.

        One turn is done in any case. Raises `BudgetError` when the budget is spent, `StuckError` when splits have come
        to working precision.
        """
        self.until = until
        if self.pending is not None and self.witness is None:
            work, self.pending = self.pending, None
            self.bound(work)
            turns -= 1
            self.turns += 1
        while len(self.frontier) and self.witness is None and turns > 0:
            self.budget.poll()
            self.turn()
            turns = turns - 1 if self.budget.work < until else 0
        return self.witness

    def absorb(self, outcome: Outcome, whole: bool) -> None:
        """Take over what a worker did with this search (`whole`) or with its part of the frontier."""
        number = self.recorder.absorb(outcome.growth)
        if whole:
            self.pending = None
            if outcome.root is not None and self.phase is not None:
                self.phase.adopt(*outcome.root)
        if whole or self.given:
            self.frontier.replace({})
            self.given = False
        content = outcome.frontier
        if len(content.get("ids", ())):
            self.frontier.push(**{**content, "ids": number[content["ids"]]})
        for name, value in outcome.counters.items():
            setattr(self.statistics, name, getattr(self.statistics, name) + value)
        self.budget.work += outcome.work
        self.drop, self.has_split, share = outcome.gains
        if self.phase is not None:
            self.phase.share = share
        self.turns += 1

    def turn(self) -> None:
        """Pop, split, bound, close, keep."""
        self.turns += 1
        batch = self.frontier.pop(self.plan.batch)
        children = self.split(batch)
        self.bound(children)
        if self.turns % 16 == 0:
            self.report([self])

    def report(self, searches: list[Search]) -> None:
        """Tell how far the searches are."""
        if self.progress is None:
            return
        open_ = sum(len(s.frontier) + (s.pending is not None) for s in searches)
        lowest = min((s.frontier.lowest() for s in searches if len(s.frontier)), default=float("nan"))
        self.progress(f"{self.statistics.regions} regions, {open_} open, lowest bound {lowest:.3g}")

    def split(self, batch: dict[str, Array]) -> Batch:
        """Both children of every popped region."""
        ids, node, index, threshold = batch["ids"], batch["node"], batch["index"], batch["threshold"]
        count = len(ids)
        left, right = self.recorder.split(ids, node, index, threshold, self.plan.refresh)
        both = np.concatenate([np.arange(count)] * 2)
        duals = None
        if self.phase is not None:
            regions, phases, duals = self.phase.unpack(batch)
            duals = duals.take(both)
        else:
            regions, phases = Regions(*(batch[f] for f in ("lo", "hi", "low", "up"))), batch["phases"]
        regions, phases = regions.take(both), phases[both]
        upper = np.arange(2 * count) >= count
        apply_literals(self.bounder, regions, node[both], index[both], threshold[both], upper, phases)
        ids = np.concatenate([left, right])
        return Batch(ids, regions, batch["open"][both], phases, batch["value"][both], duals)

    def bound(self, work: Batch) -> None:
        """Bound a batch; refuted regions are recorded, the others join the frontier."""
        self.statistics.regions += len(work.ids)
        work = work.take(np.flatnonzero(~work.regions.empty()))
        if not len(work.ids):
            return
        if self.plan.mode == "input":
            there, refreshed = self.compute.refresh(work.regions, self._keeps_rows(work), self.plan.refresh)
            self._bound_joint(work, there, refreshed)
            return
        self._phase(work).bound(work)

    def _keeps_rows(self, work: Batch) -> bool:
        """Whether neurons' rows are kept for the choice of an input: not where they would fill the memory."""
        bounder = self.compute.bounder
        return len(work.ids) * bounder.width * bounder.network.input_size <= ROWS_CELLS

    def _phase(self, work: Batch) -> PhaseSearch:
        """The phase search of the one conjunction that is open."""
        if self.phase is None:
            self.phase = PhaseSearch(self, self.root, int(work.open[0].argmax()))
        if not np.all(work.open == (np.arange(self.objective.count) == self.phase.conjunction)):
            raise UnsoundError("a search that splits phases was given more than one conjunction")
        return self.phase

    def _bound_joint(self, work: Batch, there: Regions, refreshed: Refreshed) -> None:
        """Input splits: all open conjunctions share the intermediate bounds.

        `there` are the regions on the compute's backend, where relaxations and traces stay.
        """
        alive, compute = ~work.regions.empty(), self.compute
        found = compute.objective.evaluate(
            compute.bounder, there, refreshed, compute.backend.place(work.open), trace=True
        )
        wide = compute.on_inputs(found.coeffs)
        value, offset, error = (NUMPY.place(a) for a in (found.value, found.offset, found.error))
        evaluation = Evaluation(value, wide, offset, found.trace, error)
        best = self.objective.best(evaluation.value)
        closed = work.open & (best > 0) & alive[:, None]
        self.record_plain(work, evaluation.value, closed)
        work.open = work.open & ~closed
        self.ties.close_single(work, evaluation.value, error)
        alive &= work.open.any(axis=1)
        guide = self._guide(work.open, best, evaluation.value)
        every = np.arange(len(work.ids))
        picked = compute.backend.place(every), compute.backend.place(guide)
        coeffs, trace = found.coeffs[picked], {k: a[picked] for k, a in found.trace.items()}
        value = evaluation.value[every, guide]
        if self.plan.steps:
            alive, value, coeffs, trace = self._ascend(work, there, refreshed, alive, value, coeffs, trace, guide)
        near = self.ties.worth_a_program(work, alive, value)
        if len(near):
            from mucg4.search.leaf_lp import close_ties

            alive[close_ties(self, work, near)] = False
        self.learn_drop(work, value)
        if self.witness is None and self.attack is not None:
            which = np.flatnonzero(alive)
            box = work.regions.take(which)
            self.probe(work, np.where(compute.on_inputs(coeffs)[which] > 0, box.lo, box.hi), which)
        self.clip(work, evaluation, alive)
        alive &= ~work.regions.empty()  # the clip left nothing: no unsafe point, evident from the clip itself
        choice = split_input(
            compute.bounder, compute.place(work.regions), refreshed, coeffs, trace, work.open.sum(axis=1) == 1
        )
        if compute.fold is not None:
            choice = self._translated(choice)
        self.push(work, alive, value, choice)

    def _translated(self, choice: Choice) -> Choice:
        """A choice among the compute's inputs and neurons as one among those of the search's bounder."""
        fold, slices = self.compute.fold, self.compute.bounder.slices
        assert fold is not None
        node, index = choice.node.copy(), choice.index.copy()
        for k in distinct(node).tolist():
            own = node == k
            if k == 0:
                index[own] = fold.columns[index[own]]
            else:
                node[own], index[own] = locate(self.bounder, fold.positions[slices[k].start + index[own]])
        return choice._replace(node=node, index=index)

    def _ascend(
        self,
        work: Batch,
        there: Regions,
        refreshed: Refreshed,
        alive: Array,
        value: Array,
        coeffs: Array,
        trace: dict[int, Array],
        guide: Array,
    ) -> tuple[Array, Array, Array, dict[int, Array]]:
        """Improve the duals of regions with one open conjunction; close what can be closed."""
        which = np.flatnonzero(alive & (work.open.sum(axis=1) == 1))
        if len(which) and self.ascent_share < LEAST_SHARE and self.turns % EXPLORE:
            which = which[work.phases[which].any(axis=1)]
        if not len(which):
            return alive, value, coeffs, trace
        part, compute, own = work.take(which), self.compute, self.compute.backend.place(which)
        phases = compute.place_neurons(part.phases) if part.phases.any() else None
        ascent = Ascent(compute.bounder, compute.objective, there.take(own), compute.lines(refreshed, which), phases)
        weights = compute.backend.array(np.eye(len(self.objective.owner))[guide[which]])
        conjunction = part.open.argmax(axis=1)
        allowed = self.objective.owner[None] == conjunction[:, None]
        several = bool(np.any(allowed.sum(axis=1) > 1))
        duals, bounded = ascent.run(
            ascent.default_duals(weights), self.plan.steps, compute.backend.place(allowed) if several else None
        )
        bound = NUMPY.place(bounded.value)
        closed = bound > 0
        default, plain = compute.on_neurons(ascent.default_alpha()), compute.plain(duals)
        error = NUMPY.place(bounded.rows.error)
        for c in distinct(conjunction[~closed]).tolist():
            closed |= (conjunction == c) & self.ties.closed_by(part, int(c), plain, bound, error)
        self.ascent_share = FORGET * self.ascent_share + (1 - FORGET) * float(closed.mean())
        for c in distinct(conjunction[closed]).tolist():
            self.close_duals(part, default, int(c), plain, bound, closed & (conjunction == c))
        work.open[which[closed]] = False
        alive = alive.copy()
        alive[which[closed]] = False
        value, coeffs = value.copy(), coeffs + 0.0
        value[which], coeffs[own] = bound, bounded.rows.coeffs
        trace = {k: a + 0.0 for k, a in trace.items()}  # copies
        for k, a in bounded.trace.items():
            trace[k][own] = a
        return alive, value, coeffs, trace

    def _guide(self, open_: Array, best: Array, value: Array) -> Array:
        """(B,) constraint that steers the split: the best one of the conjunction that is hardest to refute."""
        hardest = np.where(open_, best, np.inf).argmin(axis=1)
        return self.objective.best_row(value, hardest)

    def record_plain(self, work: Batch, value: Array, closed: Array) -> None:
        region, conjunction = np.nonzero(closed)
        if not len(region):
            return
        row = self.objective.best_row(value[region], conjunction)
        constraint = row - self.objective.starts[conjunction]
        self.recorder.close_plain(work.ids[region], conjunction, constraint, value[region, row])

    def clip(self, work: Batch, evaluation: Evaluation, alive: Array) -> None:
        """Cut the boxes of regions with one open conjunction by its constraints; the children inherit."""
        which = np.flatnonzero(alive & (work.open.sum(axis=1) == 1))
        if not len(which):
            return
        conjunction = work.open[which].argmax(axis=1)
        for c in distinct(conjunction):
            own = which[conjunction == c]
            self.recorder.clip[work.ids[own]] = True
            for row in range(int(self.objective.starts[c]), int(self.objective.starts[c + 1])):
                clip_box(work.regions, evaluation.coeffs[own, row], evaluation.offset[own, row], own)

    def close_duals(
        self, work: Batch, default: Array, conjunction: int, duals: Duals, bound: Array, closed: Array
    ) -> None:
        """Record the refutations `closed (B,)` by `duals`; `default (B, P)` are the slopes that need no record.

        All of it in NumPy, neurons as the search's bounder numbers them; `bound (B,)` becomes the margin.
        """
        which = np.flatnonzero(closed)
        if not len(which):
            return
        unstable = (work.regions.low[which] < 0) & (work.regions.up[which] > 0)
        own = self.objective.rows_of(conjunction)
        ids = work.ids[which]
        self.recorder.close_duals(
            ids,
            conjunction,
            duals.weights[which, own],
            duals.take(which),
            unstable,
            default[which],
            bound[which],
            self.recorder.literals(ids),
            self.planes.number,
        )

    def probe(self, work: Batch, corner: Array, which: Array) -> None:
        """Offer the minimising corners `(R, d)` of the open regions `which`, then descend from some.

        Descending costs a few percent of bounding: one point per region, few steps, now and then many.
        """
        if not len(which) or self.attack is None:
            return
        corner = np.clip(corner, work.regions.lo[which], work.regions.hi[which])
        self.witness = self.attack.offer(corner)
        if self.witness is None and self.turns % ATTACK_EVERY == 0:
            count = max(4, len(which) // 2)
            some = corner[self.attack.rng.permutation(len(corner))[:count]]
            long = self.turns >= FIRST_LONG and self.turns & (self.turns - 1) == 0
            self.witness = self.attack.run(count, LONG_STEPS if long else ATTACK_STEPS, self.budget, some)

    def push(self, work: Batch, alive: Array, value: Array, choice: Choice) -> None:
        """Keep the regions marked in `alive (B,)` with their next split; those without one are decided by LP."""
        which = np.flatnonzero(alive)
        if not len(which):
            return
        stuck = which[choice.node[which] < 0]
        if len(stuck):
            which = self._decide(work, stuck, which, choice)
        self._require_progress(work, which, choice)
        fields = {
            "ids": work.ids[which],
            "lo": work.regions.lo[which],
            "hi": work.regions.hi[which],
            "open": work.open[which],
            "value": value[which],
            "node": choice.node[which],
            "index": choice.index[which],
            "threshold": choice.threshold[which],
        }
        if self.phase is not None:
            fields.update(self.phase.pack(work, which))
        else:
            fields.update(low=work.regions.low[which], up=work.regions.up[which], phases=work.phases[which])
        self.frontier.push(**fields)

    def _require_progress(self, work: Batch, which: Array, choice: Choice) -> None:
        """Stop when the box of an open region is a point to working precision: its children would be copies of it.

        Such regions have bounds within rounding of zero, so best-first order leaves them for last.
        """
        own = which[choice.node[which] == 0]
        at, middle = choice.index[own], choice.threshold[own]
        inside = (work.regions.lo[own, at] < middle) & (middle < work.regions.hi[own, at])
        if self.witness is None and not np.all(inside):
            points = work.regions.lo[own[~inside]]
            raise StuckError("undecided: a region shrank to a point where rounding hides the sign", points)

    def _decide(self, work: Batch, stuck: Array, which: Array, choice: Choice) -> Array:
        """Regions without an unstable neuron: decided by LP, or split at their widest input."""
        from mucg4.search.leaf_lp import decide

        done = decide(self, work, stuck)
        rest = np.setdiff1d(which, done)
        left = np.intersect1d(stuck, rest)
        wide = split_widest(self.bounder, work.regions.take(left))
        choice.node[left], choice.index[left], choice.threshold[left] = wide.node, wide.index, wide.threshold
        return rest
