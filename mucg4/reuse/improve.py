"""Stronger refutations at chosen nodes of a proof's tree: dual ascent on the regions as the checker derives them.

What comes out are candidates. `mucg4.check.margins` tells what they are worth on the proof's network and on others.
"""

from __future__ import annotations

import numpy as np

from mucg4.bound.inner_loops import row_norms
from mucg4.bound.planes import CutPlanes
from mucg4.bound.propagate import Bounder, Regions
from mucg4.bound.tighten import Ascent, Duals
from mucg4.check.margins import Places
from mucg4.model.proof import Refutation, Tree
from mucg4.model.refutations import Refutations
from mucg4.ops.arrays import BoolArray, FloatArray, IntArray, distinct
from mucg4.reuse.warm import placed
from mucg4.search.record import Recorder
from mucg4.search.run import CaseState

PART = 512  # regions whose duals are improved together; not measured


def ascended(state: CaseState, tree: Tree, places: Places, steps: int, fresh: BoolArray) -> Refutations:
    """Refutations of every open conjunction on the regions by at most `steps` steps of ascent each; margins may be < 0.

    It starts from the stored duals of the tree node where there are some, from the best constraint alone with default
    slopes otherwise and on tree nodes marked in `fresh (N,)`.
    """
    bounder, parents = state.bounder, tree.parents()
    planes = planes_of(bounder, places)
    stored = {(r.at, r.conjunction): r for r in tree.refutations if not fresh[r.at]} if not fresh.all() else {}
    recorder = Recorder(bounder, [len(c) for c in state.case.conjunctions])
    for begin in range(0, len(places.at), PART):
        part = np.arange(begin, min(begin + PART, len(places.at)))
        regions = regions_of(bounder, places, part)
        paths = [literals_at(bounder, tree, parents, k) for k in places.at[part].tolist()]
        for conjunction in distinct(np.nonzero(places.open[part])[1]).tolist():
            own = np.flatnonzero(places.open[part, conjunction])
            at, literals = places.at[part][own], [paths[b] for b in own.tolist()]
            start = [stored.get((k, conjunction)) for k in at.tolist()]
            _ascend(state, recorder, at, conjunction, regions.take(own), start, literals, planes, steps)
    numbers = np.arange(len(planes))
    found = [c.refutations(bounder.slices, numbers) for c in recorder.closed]
    return Refutations.join(found) if found else Refutations.of(())


def _ascend(
    state: CaseState,
    recorder: Recorder,
    at: IntArray,
    conjunction: int,
    regions: Regions,
    start: list[Refutation | None],
    literals: list[dict[int, int]],
    planes: CutPlanes,
    steps: int,
) -> None:
    """Record what ascent makes of one conjunction on the regions of tree nodes `at (B,)`, whether it closes or not."""
    bounder, objective = state.bounder, state.objective
    phases = np.zeros((len(at), bounder.width), dtype=np.int8)
    for b, path in enumerate(literals):
        for position, k in path.items():
            phases[b, position] = np.sign(k)
    refreshed = bounder.refresh(regions, backward=False)
    ascent = Ascent(bounder, objective, regions, refreshed, phases, planes)
    duals = duals_at(ascent, state, start, literals, len(planes))
    bare = np.flatnonzero([r is None for r in start])
    if len(bare):
        open_ = np.zeros((len(bare), objective.count), dtype=bool)
        open_[:, conjunction] = True
        value = objective.values(bounder, regions.take(bare), refreshed.take(bare), open_)
        best = objective.best_row(value, np.full(len(bare), conjunction))
        duals.weights[bare] = np.eye(len(objective.owner))[best]
    allowed = np.broadcast_to(objective.owner == conjunction, duals.weights.shape)
    duals, bounded = ascent.run(duals, steps, allowed)
    recorder.close_duals(
        at,
        conjunction,
        duals.weights[:, objective.rows_of(conjunction)],
        duals,
        (regions.low < 0) & (regions.up > 0),
        ascent.default_alpha(),
        bounded.value,
        [{position: abs(k) for position, k in path.items()} for path in literals],
        planes.number,
    )


def duals_at(
    ascent: Ascent, state: CaseState, stored: list[Refutation | None], literals: list[dict[int, int]], cuts: int
) -> Duals:
    """Stored refutations laid out, one row each; default slopes and no weights where there is none."""
    objective, slices = state.objective, state.bounder.slices
    duals = ascent.default_duals(np.zeros((len(stored), len(objective.owner))))
    duals.cuts = np.zeros((len(stored), cuts))
    for b, r in enumerate(stored):
        if r is None:
            continue
        duals.weights[b, objective.rows_of(r.conjunction)] = r.weights
        for a in r.alpha:
            duals.alpha[b, slices[a.node].start + a.index] = a.value / 255.0
        position = {abs(k): p for p, k in literals[b].items()}
        for literal, value in r.beta:
            if literal in position:
                duals.beta[b, position[literal]] += value
        if r.cuts is not None:
            duals.cuts[b, r.cuts[0]] = r.cuts[1]
    return duals


def literals_at(bounder: Bounder, tree: Tree, parents: IntArray, k: int) -> dict[int, int]:
    """The phase literals on the path to tree node k: flat position -> the tree node with it, negative for z <= 0."""
    out: dict[int, int] = {}
    while (p := int(parents[k])) >= 0:
        node = int(tree.node[p])
        if node > 0 and tree.threshold[p] == 0.0:
            sign = -1 if tree.left[p] == k else 1
            out.setdefault(bounder.slices[node].start + int(tree.index[p]), sign * k)
        k = p
    return out


def regions_of(bounder: Bounder, places: Places, which: IntArray) -> Regions:
    """The regions as the search's bounds number them."""
    own = places.take(which)
    low, up = (placed(bounder, own.slot, *side) for side in ((own.lo, own.low), (own.hi, own.up)))
    return Regions(own.lo, own.hi, low, up)


def planes_of(bounder: Bounder, places: Places) -> CutPlanes:
    """The tree's cuts, all of them and so with their own numbers."""
    count = len(places.shift)
    size: FloatArray = abs(places.shift)
    for k, a in places.planes.items():
        size = size + row_norms(a) * bounder.scales.norm[k]
    return CutPlanes(dict(places.planes), places.shift, size, np.zeros(count, dtype=np.int64), np.arange(count))
