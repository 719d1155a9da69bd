"""The replay: a stored tree is walked on the network at hand; what stays open goes on as an arm of the portfolio.

Order. Each stored tree, translated to this network's neurons, is walked from the root in batches of one depth at a
time (depth first over batches, so memory stays bounded). Children inherit their parent's bounds on THIS network;
nothing stored is believed. Stored tightenings are evaluated anew at the node they stand at, where the conjunction they
speak of is the only open one; rows that improve a bound here go into the new proof. Then the rungs of
`mucg4.reuse.stored_rungs` are tried on all regions of the batch at once, some at leaves only.

Invariant: every region of the walk is a node of the recorder's tree, so closed leaves and whatever the
search adds below open ones form one proof of this query. Termination: each stored tree node is visited
once. Cost is bounded: when too few leaves close after a sample, the rest of the stored tree is left
to the search at the nodes reached so far.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mucg4.bound.compute import Compute
from mucg4.bound.planes import CutPlanes, derive
from mucg4.bound.propagate import Refreshed, Regions
from mucg4.bound.tighten import Ascent, Bounded, Duals, apply_tightening
from mucg4.model.proof import Cuts, Refutation, Tightening, Tree
from mucg4.ops.arrays import NUMPY, BoolArray, IntArray
from mucg4.reuse.stored_rungs import RUNGS, Rung, Visit
from mucg4.search.attack import Attack
from mucg4.search.inputs import clip
from mucg4.search.loop import Search
from mucg4.search.region import Batch, apply_literals
from mucg4.search.run import CaseState, Run, new_search, root_work

SAMPLE = 96  # leaves tried before the walk may give up; not measured
LEAST_SHARE = 0.4  # of the sampled leaves must close for the walk to go on; not measured
BATCH = 512  # regions walked together; not measured


class Replay:
    """Walks one stored tree on one case; leaves what is open in `search`'s frontier."""

    def __init__(
        self,
        run: Run,
        state: CaseState,
        tree: Tree,
        attack: Attack | None = None,
        distrusted: frozenset[int] = frozenset(),
        rungs: Sequence[Rung] = RUNGS,
    ) -> None:
        """Tree nodes that are `distrusted` are searched, whatever the evidence stored at them says."""
        self.run, self.state, self.tree, self.rungs = run, state, tree, rungs
        self.search: Search = new_search(run, state, attack)
        self.evidence: dict[int, list[Refutation]] = defaultdict(list)
        self.distrusted = np.isin(np.arange(len(tree)), list(distrusted))
        for r in tree.refutations:
            if not self.distrusted[r.at]:
                self.evidence[r.at].append(r)
        self.tightenings: dict[int, list[Tightening]] = defaultdict(list)
        for t in tree.tightenings:
            self.tightenings[t.at].append(t)
        self.compute = (
            state.compute if state.compute.backend == NUMPY else Compute.of(state.bounder, state.objective, NUMPY)
        )
        self.planes = CutPlanes.none(self.compute.bounder.lo)  # the stored cuts on this network
        self.parents = tree.parents()
        self.below = tree.leaf_counts()
        count = state.objective.count
        self.mask: BoolArray = np.isin(
            np.arange(count), range(count) if tree.conjunctions is None else tree.conjunctions
        )
        self.tried = self.closed = 0
        self.refreshed: Refreshed | None = None  # of the batch that is visited, where bounds are re-derived

    @property
    def is_bare(self) -> bool:
        """True for a tree that is a root without anything to apply: what it leaves open is the whole case."""
        return len(self.tree) == 1 and not self.tree.tightenings and not self.tree.cuts

    def walk(self) -> Search:
        """Visit the stored tree; returns the search with its recorder and frontier filled."""
        stack: list[tuple[IntArray, Batch]] = [(np.zeros(1, dtype=np.int64), root_work(self.state, self.mask))]
        while stack and self.search.witness is None:
            self.run.budget.poll()
            at, work = stack.pop()
            stack.extend(self.visit(at, work))
        return self.search

    def visit(self, at: IntArray, work: Batch) -> list[tuple[IntArray, Batch]]:
        """Bound the regions of the stored nodes `at (B,)`; returns the children as further batches."""
        alive = np.flatnonzero(~work.regions.empty())
        if len(alive) < len(at):
            at, work = at[alive], work.take(alive)
        if not len(at):
            return []
        self.run.statistics.replay_regions += len(at)
        if self.state.way.refreshes:  # whatever the stored tree did: the new one says so, and the checker will
            self.refreshed = self.compute.refresh(work.regions)[1]
        self._tighten(at, work)
        giving_up = self.tried >= SAMPLE and self.closed < LEAST_SHARE * self.tried
        visit = Visit(at, work, np.arange(len(at)))
        visit = self._climb(visit, leaves=False)
        leaves, inner = visit.parted((self.tree.left[visit.at] < 0) | giving_up)
        self.tried += len(leaves)
        self._climb(leaves, leaves=True)
        return self._children(inner)

    def _climb(self, visit: Visit, leaves: bool) -> Visit:
        """Try the rungs, those of `leaves` or the others; what they leave open."""
        for rung in self.rungs:
            if rung.leaves == leaves and len(visit):
                closed, visit = rung.close(self, visit)
                count = int(self.below[closed.at].sum())  # stored leaves: of whole subtrees at inner nodes
                self.closed += count
                self.tried += 0 if leaves else count
                rungs = self.run.statistics.rungs
                rungs[rung.name] = rungs.get(rung.name, 0) + count
        return visit

    # ---- what rungs need -----------------------------------------------------------------------

    def lines(self, visit: Visit) -> Refreshed:
        """The relaxations of the regions."""
        if self.refreshed is None:
            return self.compute.refresh(visit.work.regions, backward=False)[1]
        return self.refreshed.take(visit.row)

    def ascent(self, visit: Visit) -> Ascent:
        """Dual ascent on the regions, as the compute knows them."""
        compute, work = self.compute, visit.work
        phases, regions = compute.place_neurons(work.phases), compute.place(work.regions)
        return Ascent(compute.bounder, compute.objective, regions, self.lines(visit), phases, self.planes)

    def evaluated(self, ascent: Ascent, duals: Duals) -> tuple[Duals, Bounded]:
        """The bounds by stored duals, and the duals they came from: a walk may improve them."""
        return duals, ascent.bound(duals)[0]

    def record(self, part: Batch, ascent: Ascent, duals: Duals, bounded: Bounded, closed: BoolArray, own: int) -> None:
        """Put refutations `closed (B,)` of conjunction `own` by the compute's duals into the new proof."""
        default, plain = self.compute.on_neurons(ascent.default_alpha()), self.compute.plain(duals)
        self.search.close_duals(part, default, own, plain, bounded.value, closed)

    def position(self, literal: int) -> int | None:
        """Flat pre-activation position of the phase literal introduced by stored tree node `literal`."""
        parent = int(self.parents[literal])
        if parent < 0 or self.tree.node[parent] <= 0:
            return None
        return int(self.state.bounder.slices[int(self.tree.node[parent])].start) + int(self.tree.index[parent])

    # ---- steps of the walk ---------------------------------------------------------------------

    def _tighten(self, at: IntArray, work: Batch) -> None:
        """Apply the tightenings stored at these tree nodes, in place; what helps is recorded.

        Not where bounds are refreshed (input splits): a bound that is refreshed after a tightening uses it, and
        the checker refreshes before. Nor would small boxes on which a neuron made stable by a tightening has the
        other sign, so that they hold nothing unsafe, ever show it.
        """
        bounder, objective = self.state.bounder, self.state.objective
        if self.state.way.refreshes or not (self.tightenings or self.tree.cuts):
            return
        for b, k in enumerate(at.tolist()):
            region = work.regions.one(b)
            cuts = [] if k else list(self.tree.cuts)
            for number, t in enumerate((*self.tightenings.get(k, ()), None)):
                while cuts and (t is None or cuts[0].after <= number):
                    self._derive(cuts.pop(0), region)
                if t is None or work.open[b].sum() != 1 or not work.open[b, t.conjunction]:
                    continue
                bounder.refresh(region, backward=False)
                found = [self.position(literal) for literal in t.literals.tolist()]
                position = np.array([-1 if p is None else p for p in found], dtype=np.int64)
                sign = np.where(position >= 0, work.phases[b, position], 0)
                known = np.flatnonzero(t.cuts < len(self.planes))
                t = replace(t, cuts=t.cuts[known], cut_weights=t.cut_weights[:, known])
                planes = self.planes.take(t.cuts)
                helped = apply_tightening(bounder, objective, region, t, position, sign, planes)
                self.search.recorder.tighten(int(work.ids[b]), t, helped, np.where(sign != 0, position, -1))
                if np.any(region.empty()):  # nothing is unsafe there
                    work.open[b] = False

    def _derive(self, cuts: Cuts, region: Regions) -> None:
        """Add stored cuts as they are on this network; all of them, so that they keep their numbers."""
        search, first = self.search, len(self.planes)
        self.state.bounder.refresh(region, backward=False)
        self.planes = self.planes.joined(derive(self.state.bounder, region, cuts, first))
        compute, way = self.state.compute.bounder, search.way
        same = compute is self.state.bounder
        way.planes = self.planes if same else way.planes.joined(derive(compute, region, cuts, first))
        search.recorder.cuts.append(replace(cuts, after=search.recorder.root_tightenings))

    def _children(self, visit: Visit) -> list[tuple[IntArray, Batch]]:
        """Split the inner nodes as the stored tree does; batches of at most BATCH regions."""
        out = []
        tree, state = self.tree, self.state
        self._clip(visit)
        half = max(1, min(BATCH, 4 * state.plan.batch) // 2)
        for begin in range(0, len(visit), half):
            part = visit.take(np.arange(begin, min(begin + half, len(visit))))
            k, sub = part.at, part.work
            node, index, threshold = tree.node[k], tree.index[k], tree.threshold[k]
            left, right = self.search.recorder.split(sub.ids, node, index, threshold, state.way.refreshes)
            both = np.concatenate([np.arange(len(part))] * 2)
            children = sub.take(both)
            upper = np.arange(len(both)) >= len(part)
            apply_literals(
                state.bounder, children.regions, node[both], index[both], threshold[both], upper, children.phases
            )
            children.ids = np.concatenate([left, right])
            out.append((np.concatenate([tree.left[k], tree.right[k]]), children))
        return out

    def _clip(self, visit: Visit) -> None:
        """Clip where the stored proof did and the rule still applies (one open conjunction)."""
        own = np.flatnonzero(self.tree.clip[visit.at])
        if not len(own):
            return
        part, compute = visit.take(own), self.compute
        sub = part.work
        evaluation = compute.objective.evaluate(compute.bounder, compute.place(sub.regions), self.lines(part), sub.open)
        evaluation.coeffs = compute.on_inputs(evaluation.coeffs)
        clipped = clip(self.state.objective, sub, evaluation, np.ones(len(own), dtype=bool))
        self.search.recorder.clip[sub.ids[clipped]] = True
        for f in ("lo", "hi"):
            getattr(visit.work.regions, f)[own] = getattr(sub.regions, f)
