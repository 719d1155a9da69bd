"""After the verdict: a smaller proof with wider margins, so that variants can re-check it cheaply.

One walk over the proof's own tree on its own network (the replay's walk, so every change is
re-established on the way). (1) Where both children are leaves, the parent is tried with more ascent than the search
spends: closed, it replaces its children (design section 7, compaction). (2) A leaf closed by a hair
gets its duals improved until the margin is comfortable, because a compressed copy moves every margin.
(3) Cores: half of each leaf's literals, the ones its functional leans on least, are dropped and all
leaves are re-checked in one batch; what still closes keeps the smaller core (BICCOS, arXiv 2501.00200).
Each step is optional work: when its share of time is spent, the proof stays as it is.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from mucg4.bound.propagate import Regions
from mucg4.bound.tighten import Ascent, Bounded, Duals
from mucg4.errors import BudgetError
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof, Refutation, Tree
from mucg4.model.verdict import Statistics
from mucg4.ops.arrays import BoolArray, IntArray
from mucg4.reuse.fits import parts, suited
from mucg4.reuse.stored_rungs import RUNGS, Rung, Visit
from mucg4.reuse.stored_walk import Replay
from mucg4.search.region import apply_literals
from mucg4.search.run import CaseState, Run, open_case

SHARE, LEAST_SECONDS = 0.1, 0.1  # of the solving time, but at least so much; not measured
CORE_LEAVES = 2000  # cores are sought for proofs up to this size; not measured
MERGE_STEPS, POLISH_STEPS = 48, 12  # steps of ascent at a parent, and for a wider margin; not measured
COMFORT = 0.02  # margins below this share of the functional's range over its box are widened; not measured


class Compaction(Replay):
    """The replay's walk with merging and widening at the nodes it passes."""

    def __init__(self, run: Run, state: CaseState, tree: Tree) -> None:
        super().__init__(run, state, tree, rungs=WITH_MERGING)

    def evaluated(self, ascent: Ascent, duals: Duals) -> tuple[Duals, Bounded]:
        """Duals improved when some margins are below the comfortable share of the functional's range."""
        duals, bounded = super().evaluated(ascent, duals)
        size = np.abs(bounded.rows.coeffs * (ascent.regions.hi - ascent.regions.lo)).sum(axis=1)
        if not np.any(bounded.value < COMFORT * size):
            return duals, bounded
        return ascent.run(duals, POLISH_STEPS)


def merged(walk: Replay, visit: Visit) -> tuple[Visit, Visit]:
    """Rung of the compaction: parents of two leaves that more ascent than the search spends closes."""
    tree, work = walk.tree, visit.work
    inner = tree.left[visit.at] >= 0
    pair = inner & (tree.left[tree.left[visit.at]] < 0) & (tree.left[tree.right[visit.at]] < 0)
    which = np.flatnonzero(pair & (work.open.sum(axis=1) == 1))
    if len(which):
        part = visit.take(which)
        ascent, objective = walk.ascent(part), walk.state.objective
        open_ = part.work.open
        conjunction = open_.argmax(axis=1)
        allowed = objective.owner[None] == conjunction[:, None]
        value = ascent.objective.values(ascent.bounder, ascent.regions, ascent.refreshed, open_)
        weights = np.eye(allowed.shape[1])[objective.best_row(value, conjunction)]
        duals, bounded = ascent.run(ascent.default_duals(weights), MERGE_STEPS, allowed)
        closed = bounded.value > 0
        for c in np.unique(conjunction[closed]).tolist():
            walk.record(part.work, ascent, duals, bounded, closed & (conjunction == c), int(c))
        work.open[which[closed]] = False
    return visit.parted(~work.open.any(axis=1))


MERGED = Rung("merged", merged, False, "more ascent at the parents of two leaves")
WITH_MERGING = (*(r for r in RUNGS if not r.leaves), MERGED, *(r for r in RUNGS if r.leaves))


def compact(run: Run, proof: Proof, solve_seconds: float, cores: bool = False) -> Proof:
    """A proof of the same query with at most as many leaves; the given one when time does not allow better.

    `cores`: also seek the refutations' cores. Nobody asks for them yet, so by default no time is spent on that.
    """
    budget = run.budget.share(max(LEAST_SECONDS, SHARE * solve_seconds))
    trees: list[Tree] = []
    states: dict[int, CaseState | None] = {}
    quiet = replace(run, budget=budget, statistics=Statistics(), settings=replace(run.settings, attack=False))
    for tree in proof.trees:
        trees.append(tree)
        if len(tree) == 1 or budget.spent():
            continue
        try:
            if tree.case not in states:
                states[tree.case] = open_case(quiet, tree.case)
            case = states[tree.case]
            state = None if case is None else suited(run.settings, case, tree)
            if state is not None and len(parts(state, tree)) == 1:
                trees[-1] = _compact_tree(quiet, state, tree, cores)
        except BudgetError:
            continue
    return replace(proof, trees=tuple(trees))


def _compact_tree(run: Run, state: CaseState, tree: Tree, cores: bool) -> Tree:
    """Merge and widen, then seek cores if asked to; keeps the old tree unless the new one is closed and no larger."""
    walk = Compaction(run, state, tree)
    search = walk.walk()
    if not len(search.frontier) and len(search.recorder.tree().leaves) <= len(tree.leaves):
        tree = search.recorder.tree(state.number, tree.conjunctions)
    if cores and len(tree.leaves) <= CORE_LEAVES:
        tree = with_cores(run.budget, state, tree)
    return tree


def with_cores(budget: Budget, state: CaseState, tree: Tree) -> Tree:
    """Refutations with `core` where half of the literals suffice (bounds re-derived from the root alone)."""
    parents = tree.parents()
    paths = {k: _path(parents, k) for k in {r.at for r in tree.refutations}}
    groups: dict[int, list[int]] = defaultdict(list)
    for number, r in enumerate(tree.refutations):
        if len(paths[r.at]) >= 2 and not r.beta and r.cuts is None:
            groups[r.conjunction].append(number)
    refutations = list(tree.refutations)
    for conjunction, numbers in groups.items():
        for begin in range(0, len(numbers), 256):
            budget.poll()
            part = numbers[begin : begin + 256]
            kept = [_leaning(state, tree, parents, paths[refutations[n].at]) for n in part]
            closed = _closes(state, tree, parents, kept, [refutations[n] for n in part], conjunction)
            for n, core, ok in zip(part, kept, closed.tolist(), strict=True):
                if ok:
                    refutations[n] = replace(refutations[n], core=tuple(core))
    return replace(tree, refutations=tuple(refutations))


def _path(parents: IntArray, k: int) -> list[int]:
    """Tree nodes of the literals from the root to node k."""
    out = []
    while parents[k] >= 0:
        out.append(k)
        k = int(parents[k])
    return out[::-1]


def _leaning(state: CaseState, tree: Tree, parents: IntArray, path: list[int]) -> list[int]:
    """The half of a path's literals kept as core: per component the last cut counts, wide cuts first."""
    last: dict[tuple[int, int, bool], int] = {}
    for k in path:
        p = int(parents[k])
        last[int(tree.node[p]), int(tree.index[p]), bool(tree.right[p] == k)] = k
    strongest = sorted(last.values())
    return strongest[-max(1, (len(path) + 1) // 2) :]


def _closes(
    state: CaseState,
    tree: Tree,
    parents: IntArray,
    kept: list[list[int]],
    refutations: list[Refutation],
    conjunction: int,
) -> BoolArray:
    """(B,) whether the stored duals refute the regions given by the kept literals alone."""
    count = len(kept)
    regions = state.root.take(np.zeros(count, dtype=np.int64))
    phases = np.zeros((count, state.bounder.width), dtype=np.int8)
    for depth in range(max(len(k) for k in kept)):
        own = [b for b in range(count) if len(kept[b]) > depth]
        child = np.array([kept[b][depth] for b in own])
        p = parents[child]
        sub = Regions(regions.lo[own], regions.hi[own], regions.low[own], regions.up[own])
        signs = phases[own]
        apply_literals(
            state.bounder, sub, tree.node[p], tree.index[p], tree.threshold[p], tree.right[p] == child, signs
        )
        for f in ("lo", "hi", "low", "up"):
            getattr(regions, f)[own] = getattr(sub, f)
        phases[own] = signs
    refreshed = state.bounder.refresh(regions, backward=state.way.refreshes)
    ascent = Ascent(state.bounder, state.objective, regions, refreshed, phases)
    weights = np.zeros((count, len(state.objective.owner)))
    weights[:, state.objective.rows_of(conjunction)] = [r.weights for r in refutations]
    duals = ascent.default_duals(weights)
    for b, r in enumerate(refutations):
        for a in r.alpha:
            duals.alpha[b, state.bounder.slices[a.node].start + a.index] = a.value / 255.0
    return np.asarray(ascent.bound(duals)[0].value > 0)
