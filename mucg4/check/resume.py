"""A check that is taken up again where it stopped.

A proof whose leaves were not all accepted is no proof, but most of it may hold. The regions that stay open are kept
with the bounds that the walk has established for them; a search goes on there, and what it adds below is examined from
there, not from the root.

Why nothing is lost. A leaf that was accepted holds no unsafe point of the conjunctions its tree answers for; that is a
statement about the literals on its path alone. A longer tree is taken for a continuation only when it has the same
literals at all tree nodes but the open ones, and its evidence outside the subtrees of open nodes is replaced by the
evidence that was examined (`grafted`). So the longer tree's leaves are the accepted ones and those below open nodes,
whose regions are walked from bounds that this checker derived.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mucg4.check.enclose import Enclosure
from mucg4.check.walk import Kept, _answers, _Plan, _Regions, _report, _Walk, _walked, enclosure_of
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Query
from mucg4.model.refutations import Refutations
from mucg4.model.verdict import CheckReport
from mucg4.ops.base import Array
from mucg4.records import dataclass


@dataclass(frozen=True, eq=False)
class Open:
    """The regions `(B,)` of one tree that are open: at the tree nodes `at`, with boxes `lo, hi (B, inputs)`.

    `low, up (B, width)` bound the pre-activations, those of network node k in the columns `slots[k]`, and `root
    (1, width)` low, up do so in all regions of the tree; `open (B, C)` marks the conjunctions that are not refuted.
    The bounds `before (B, width)` low, up are those that came from the parent, before the tree node's own.
    The tree's cuts are `sum_k planes[k] . v_k + shift <= 0`, `(cuts, size_k)` and `(cuts,)`.
    """

    tree: Tree
    at: Array
    lo: Array
    hi: Array
    low: Array
    up: Array
    open: Array
    before: tuple[Array, Array]
    root: tuple[Array, Array]
    planes: dict[int, Array]
    shift: Array
    slots: dict[int, slice]


@dataclass(frozen=True, eq=False)
class _Known:
    """A tree as far as it was examined: its open `regions` stand at leaves of it, and came from there to be `after`."""

    tree: Tree
    answers: frozenset[int]
    regions: _Regions | None  # None: not known
    after: _Regions | None
    kept: Kept

    @staticmethod
    def of(walk: _Walk, complete: bool) -> _Known:
        """What a walk leaves behind; `complete`: it was not interrupted."""
        tree, kept = walk.plan.tree, walk.kept or Kept(lost=True)
        answers = frozenset(_answers(tree, walk.plan.case))
        if kept.lost or not complete:
            return _Known(tree, answers, None, None, kept)
        regions, after = (_Regions.join(r) if r else walk.none() for r in (kept.before, kept.after))
        given_up = regions.at[tree.left[regions.at] >= 0]
        if len(given_up):
            tree, number = cut_back(walk.plan, given_up)
            regions, after = (replace(r, at=number[r.at]) for r in (regions, after))
        return _Known(tree, answers, regions, after, kept)

    def continued_by(self, tree: Tree) -> bool:
        """True for a tree with the same literals at all tree nodes but the open ones; not from an open root on.

        There the walk has everything to do again.
        """
        old, n = self.tree, len(self.tree)
        if self.regions is None or tree.case != old.case or len(tree) < n or np.any(self.regions.at == 0):
            return False
        answers = frozenset(tree.answered(self.regions.open.shape[1]))
        if answers != self.answers and (not answers < self.answers or old.clip.any() or old.tightenings):
            return False  # clips and tightenings work where one conjunction is open: they would have come to more
        if sum(len(c.index) for c in tree.cuts) != sum(len(c.index) for c in old.cuts):
            return False
        closed = np.ones(n, dtype=bool)
        closed[self.regions.at] = False
        fields = ("node", "index", "threshold", "left", "right", "refresh", "clip")
        return all(np.array_equal(getattr(tree, f)[:n][closed], getattr(old, f)[closed]) for f in fields)

    def grafted(self, tree: Tree) -> Tree:
        """A tree that continues this one, with the evidence that was examined wherever it is not open."""
        assert self.regions is not None and self.after is not None
        old, fresh = self.tree, np.ones(len(tree), dtype=bool)
        fresh[: len(old)] = False
        fresh[self.regions.at] = True
        still = np.zeros((len(old), self.after.open.shape[1]), dtype=bool)
        still[self.after.at] = self.after.open
        failed = still[old.table.at, old.table.conjunction]
        parts = [
            old.table.take(np.flatnonzero(~failed)),
            tree.table.take(np.flatnonzero(fresh[tree.table.at])),
        ]
        tightenings = (*(t for t in old.tightenings if not fresh[t.at]), *(t for t in tree.tightenings if fresh[t.at]))
        return replace(tree, refutations=Refutations.join(parts), tightenings=tightenings, cuts=old.cuts)

    def walk(self, plan: _Plan, walk: _Walk) -> None:
        """Let the walk of a continuation begin where this one stopped."""
        assert self.regions is not None and self.answers.issuperset(_answers(plan.tree, plan.case))
        regions, own = self.regions.take(slice(None)), np.zeros(self.regions.open.shape[1], dtype=bool)
        own[list(_answers(plan.tree, plan.case))] = True
        regions.open = regions.open & own
        alive = regions.open.any(axis=1)
        walk.begun, walk.resumed, walk.planes, walk.shift = True, True, self.kept.planes, self.kept.shift
        walk.stack = [regions.take(np.flatnonzero(alive))] if alive.any() else []
        walk.checked = int(plan.leaves[0] - plan.leaves[regions.at[alive]].sum())
        walk.kept = Kept(root=self.kept.root, planes=self.kept.planes, shift=self.kept.shift)


class Examination:
    """The check of a proof, as `mucg4.check.walk.check`, which `go_on` takes up again with longer trees.

    `patience`: a tree is given up after so many leaves, unless a fair share of them was established. `meanwhile` is
    done step by step while other processes check, as far as it comes (`mucg4.check.walk`); what it raises is let
    through.
    """

    def __init__(
        self,
        proof: Proof,
        query: Query,
        budget: Budget,
        workers: int = 1,
        patience: int | None = None,
        meanwhile: Iterable[object] = (),
    ) -> None:
        self.query, self._patience = query, patience
        self._known: list[_Known] = []
        self._roots: dict[int, tuple[Array, Array]] = {}
        self._enclosure: Enclosure | None = None
        self.report = self._examined(proof, [None] * len(proof.trees), budget, workers, meanwhile)

    def go_on(self, proof: Proof, budget: Budget, workers: int = 1, meanwhile: Iterable[object] = ()) -> CheckReport:
        """The report on another proof of the same query, whose trees may continue those examined last."""
        before = self._before(proof.trees)
        self._patience = None
        trees = tuple(_grafted(proof.trees, before))
        self.report = self._examined(replace(proof, trees=trees), before, budget, workers, meanwhile)
        return self.report

    def whole(self, trees: Sequence[Tree]) -> list[Tree]:
        """The trees, with the evidence that was examined where they continue trees that were examined last."""
        return _grafted(trees, self._before(trees))

    def _before(self, trees: Sequence[Tree]) -> list[_Known | None]:
        return [next((k for k in self._known if k.continued_by(tree)), None) for tree in trees]

    def _examined(
        self,
        proof: Proof,
        before: list[_Known | None],
        budget: Budget,
        workers: int,
        meanwhile: Iterable[object],
    ) -> CheckReport:
        def make(plans: list[_Plan]) -> list[_Walk]:
            self._enclosure = self._enclosure or enclosure_of(self.query)
            walks = []
            for plan, known in zip(plans, before, strict=True):
                patience = self._patience if len(plan.parent) > 1 else None
                walks.append(_Walk(plan, self._enclosure, self._roots, budget, kept=Kept(), patience=patience))
                if known is not None:
                    known.walk(plan, walks[-1])
            return walks

        walks, problem, stopped = _walked(proof, self.query, budget, workers, make, meanwhile)
        complete = not problem and not stopped
        self._known = [_Known.of(walk, complete) for walk in walks]
        return _report(proof, walks, problem, stopped)

    def open(self) -> list[Open] | None:
        """What each of the trees examined last leaves open; None when that is not known of all."""
        if len(self._known) != len(self.report.proof.trees) or any(k.regions is None for k in self._known):
            return None
        return [self._open(known) for known in self._known]

    def _open(self, known: _Known) -> Open:
        r, before, kept = known.after, known.regions, known.kept
        assert r is not None and before is not None and self._enclosure is not None
        root = kept.root
        if root is None:  # contradicted before it was kept: nothing is open
            far = np.full((1, self._enclosure.width), np.inf)
            root = -far, far
        shift = np.zeros(0) if kept.shift is None else kept.shift
        box, bounds = (before.lo, before.hi), (before.low, before.up)  # refutations come before a tree node's clip
        return Open(known.tree, r.at, *box, r.low, r.up, r.open, bounds, root, kept.planes, shift, self._enclosure.slot)


def _grafted(trees: Sequence[Tree], before: Sequence[_Known | None]) -> list[Tree]:
    pairs = zip(trees, before, strict=True)
    return [tree if known is None else known.grafted(tree) for tree, known in pairs]


def cut_back(plan: _Plan, at: Array) -> tuple[Tree, Array]:
    """The tree with leaves at its tree nodes `at (n,)`, and the new number `(N,)` of each tree node (-1: it is gone).

    Evidence below is left out.
    """
    tree, ends = plan.tree, np.zeros(len(plan.parent) + 1, dtype=np.int64)
    np.add.at(ends, plan.first[at] + 1, 1)
    np.add.at(ends, plan.last[at], -1)
    kept = np.cumsum(ends)[plan.first] == 0
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    leaf = tree.left < 0
    leaf[at] = True

    def cut(values: Array, end: float) -> Array:
        return np.where(leaf, end, values)[kept].astype(values.dtype)

    def moved(child: Array) -> Array:
        return np.where(leaf, -1, number[np.maximum(child, 0)])[kept].astype(child.dtype)

    table = tree.table.take(np.flatnonzero(kept[tree.table.at]))
    cores = np.where(table.core < len(number), number[np.minimum(table.core, len(number) - 1)], -1)
    table = replace(
        table,
        at=number[table.at].astype(np.int32),
        literal=number[table.literal].astype(np.int32),
        core=np.maximum(cores, 0).astype(np.int32),
    )
    tightenings = tuple(
        replace(t, at=int(number[t.at]), literals=number[t.literals].astype(np.int32))
        for t in tree.tightenings
        if kept[t.at]
    )
    out = replace(
        tree,
        node=cut(tree.node, -1),
        index=cut(tree.index, -1),
        threshold=cut(tree.threshold, 0.0),
        left=moved(tree.left),
        right=moved(tree.right),
        refresh=tree.refresh[kept],
        clip=tree.clip[kept] & ~leaf[kept],
        refutations=table,
        tightenings=tightenings,
    )
    return out, number
