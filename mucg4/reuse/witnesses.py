"""Where stored results say that a witness may be, before anything is bounded: at witnesses, where proofs are weak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from mucg4.model.proof import Tree, upward
from mucg4.model.query import Box, Case, Witness
from mucg4.ops.arrays import FloatArray
from mucg4.reuse.guard import guarded
from mucg4.reuse.structure import splits_inputs
from mucg4.search.run import Run, attack_of, points

MOST = 1024  # regions among which the nearest ones are sought; not measured
ROUNDS = 3  # of attacks inside of regions, 7 ms each on ACAS Xu; not measured as a choice
DESCENT = 10  # steps of the attack from stored witnesses; not measured


def witness(run: Run, stored: FloatArray) -> Witness | None:
    """Rung `witness`: stored counterexamples `(N, d)`, their neighbourhood, then gradient steps from there."""
    return guarded(run, lambda: _witness(run, stored))


def _witness(run: Run, stored: FloatArray) -> Witness | None:
    for case in run.query.cases:
        attack = attack_of(run, case)
        if attack is None or case.box.empty or not case.conjunctions:
            continue
        lo, hi = case.box.lo, case.box.hi
        for point in stored:
            found = attack.descend(neighbourhood(point, lo, hi, attack.rng), lo, hi, DESCENT, run.budget)
            if found is not None:
                run.statistics.rungs["witness"] += 1
                return found
    return None


def in_leaves(run: Run, trees: Sequence[Tree]) -> Iterator[Witness | None]:
    """Look for a witness where trees that split inputs refute by least, first where one point comes nearest to it.

    Step by step, a round of each case after the other. Measured on copies of ACAS Xu 3_3 that are sat under property 2,
    where the stored proof holds on 7 092 of 7 464 leaves (without a tenth of the neurons) and on 4 956 (8 bits): 0.3 s
    instead of 1.3 and 2.5 s.
    """
    looks = [_in_leaves(run, case, [t for t in trees if t.case == k]) for k, case in enumerate(run.query.cases)]
    for look in ROUNDS * looks:
        yield guarded(run, partial(next, look, None))


def _in_leaves(run: Run, case: Case, trees: Sequence[Tree]) -> Iterator[Witness | None]:
    own = [tree for tree in trees if splits_inputs(tree)]
    if own and not case.box.empty:
        each = max(1, points(run, 8, MOST) // len(own))
        yield from in_boxes(run, case, [least_closed(tree, case.box, each) for tree in own])


def in_boxes(run: Run, case: Case, boxes: Sequence[tuple[FloatArray, FloatArray]]) -> Iterator[Witness | None]:
    """Look for a witness inside boxes `lo, hi (B, d)`, first where one point comes nearest to it: round by round."""
    attack = attack_of(run, case)
    if attack is None or not case.conjunctions or not sum(len(lo) for lo, _ in boxes):
        return
    lo, hi = (np.concatenate(sides) for sides in zip(*boxes, strict=True))
    some = attack.rng.permutation(len(lo))[: points(run, 8, MOST)]  # fewer on large networks
    lo, hi = lo[some], hi[some]
    for _ in range(ROUNDS):
        x = lo + attack.rng.random(lo.shape) * (hi - lo)
        order = np.argsort(attack.violations(x, run.query.network(x)).min(axis=1))
        found = attack.inside(lo[order], hi[order], run.budget)
        if found is not None:
            run.statistics.rungs["witness"] += 1
        yield found


def least_closed(tree: Tree, box: Box, count: int) -> tuple[FloatArray, FloatArray]:
    """The boxes `lo, hi (B, d)` of the regions that stored refutations close by least, at most `count`."""
    at = tree.table.at[np.argsort(tree.table.margin, kind="stable")[:count]]
    lo, hi = (np.tile(side, (len(at), 1)) for side in (box.lo, box.hi))
    parents = tree.parents()
    for row, child in upward(parents, at):
        split = parents[child]
        inner = (split >= 0) & (tree.node[split] == 0)
        row, child, split = row[inner], child[inner], split[inner]
        below, index, threshold = tree.left[split] == child, tree.index[split], tree.threshold[split]
        up, down = (row[below], index[below]), (row[~below], index[~below])
        hi[up] = np.minimum(hi[up], threshold[below])
        lo[down] = np.maximum(lo[down], threshold[~below])
    inside = np.all(lo <= hi, axis=1)  # a proof on a larger box has regions outside
    return lo[inside], hi[inside]


def neighbourhood(point: FloatArray, lo: FloatArray, hi: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A stored witness and points around it at several scales, inside the box; `(N, d)`."""
    scale = np.repeat([0.0, 1e-3, 1e-2, 5e-2, 0.2], 8)[:, None]
    return np.clip(point + scale * (hi - lo) * rng.uniform(-1, 1, size=(len(scale), len(point))), lo, hi)
