"""Proofs that grow on noisy copies: a leaf that a copy opens is searched further there, and what closes it stays below.

The leaf becomes an inner tree node that keeps its refutation. Where this holds, the checker does not enter what grew:
the proof costs its own network, and variants that noise moves little, what it did before. Where it fails, the checker
finds regions and refutations that closed the same leaf of a network moved alike, and fewer regions are left to search,
each of which costs a variant some fifty times what a leaf costs that holds (measured on ACAS Xu: 5 ms of CPU, 0.1 ms).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from mucg4.check.margins import Gauge, Margins
from mucg4.errors import BudgetError, ProofError
from mucg4.model.proof import Tightening, Tree
from mucg4.model.query import Query
from mucg4.model.refutations import Refutations
from mucg4.ops.arrays import BoolArray, IntArray
from mucg4.reuse.anew import is_met
from mucg4.reuse.replay import mended
from mucg4.reuse.survey import OWN, SAMPLE, copies_of, lost_on, measured, with_paths
from mucg4.search.run import Run
from mucg4.search.standing import Standing

MOST = 0.9  # share of the leaves that a copy may open: others have nothing from the proof; not measured
SHARE, LAST_SHARE = 0.5, 0.8  # of the time that is left: for each copy, for the last; not measured
LARGEST, FEW = 2.0, 1024  # times the leaves that there were, or so many in any case: tables of more cost; not measured


def grown(run: Run, trees: Sequence[Tree], gauges: Mapping[str, Gauge]) -> list[Tree]:
    """The trees with more below their leaves, for each noisy copy as far as the time allows, those nearest first.

    `gauges`: of the run's query, called OWN, and of noisy copies. Leaves have evidence that the checker accepts of the
    run's query; it stays. Raises `ProofError`, and `BudgetError` when the time is over before the trees are measured.
    """
    out, copies = list(trees), copies_of(gauges)
    if not copies:
        return out
    lost, most = lost_on(out, copies, run.workers), max(LARGEST * _leaves(out), FEW)
    holds = {name for name in lost if not lost[name] and _leaves(out) <= SAMPLE}  # else some may have been missed
    names = [name for name in lost if name not in holds and lost[name] <= MOST * _leaves(out)]
    names = [name for name in names if _may_hold(run, gauges[name].query)]
    names.sort(key=lambda name: lost[name])
    for name in names:
        part = run.within(LAST_SHARE if name == names[-1] else SHARE)
        try:
            part = replace(part, query=gauges[name].query, careful=True, below=True)
            found = joined(run.query, out, _continued(part, out))
            if _leaves(found) <= most and _pays(out, found, {OWN: gauges[OWN], name: gauges[name]}, run.workers):
                out = found
        except (BudgetError, ProofError):  # what grew before counts
            continue
    return out


def _pays(trees: Sequence[Tree], longer: Sequence[Tree], gauges: Mapping[str, Gauge], workers: int) -> bool:
    """Whether trees made longer close more on the one copy among the gauges, and cost the own network nothing.

    Raises `ProofError`, `BudgetError`.
    """
    pairs = list(zip(trees, longer, strict=True))
    changed = [_changed(*pair) for pair in pairs]
    lost = sum(int(leaves.sum()) for leaves in changed)
    if not lost:
        return False
    parts = [with_paths(tree, leaves) for tree, leaves in zip(trees, changed, strict=True)]
    before = measured(trees, {OWN: gauges[OWN]}, 1, parts)[OWN]
    parts = [np.append(part, np.ones(len(b) - len(a), dtype=bool)) for part, (a, b) in zip(parts, pairs, strict=True)]
    now, (copy,) = measured(longer, gauges, workers, parts), copies_of(gauges)
    found = [replace(m, open=m.open & part) for m, part in zip(now[copy], parts, strict=True)]  # roots are entered
    return _left(longer, found, trees) < lost and _costs_no_more(longer, now[OWN], before)


def _changed(tree: Tree, longer: Tree) -> BoolArray:
    """(N,) the leaves of the tree below or at which the longer one has more: the copy opened them."""
    known = set(_names(tree.table))
    at = [name[0] for name in _names(longer.table) if name not in known] + list(range(len(tree), len(longer)))
    return np.isin(np.arange(len(tree)), _above(longer, np.array(at, dtype=np.int64), len(tree))[0])


def _may_hold(run: Run, query: Query) -> bool:
    """False where a point shows that no search would close all. Raises `BudgetError`."""
    for case in query.cases:
        run.budget.poll()
        if is_met(query, case):
            return False
    return True


def _continued(run: Run, trees: Sequence[Tree]) -> list[Tree]:
    """Trees that close more on the run's query, wholly or as far as the time, or the search, went."""
    standing = Standing()
    with suppress(BudgetError):
        found = mended(run, trees, standing)
        if found is not None:
            return found
    return standing.trees(run.query)


def _leaves(trees: Sequence[Tree]) -> int:
    return sum(len(tree.leaves) for tree in trees)


def _left(trees: Sequence[Tree], found: Sequence[Margins], older: Sequence[Tree]) -> float:
    """How many leaves of the older trees are open on a copy; of one that has grown the share that is open below it."""
    total = 0.0
    for tree, m, old in zip(trees, found, older, strict=True):
        _, steps = _above(tree, np.flatnonzero(m.open), len(old))
        total += float((0.5**steps).sum())
    return total


def _above(tree: Tree, at: IntArray, older: int) -> tuple[IntArray, IntArray]:
    """For tree nodes `at (B,)` the nearest of the `older` ones at or above each, and by how many steps it is above."""
    parents, steps = tree.parents(), np.zeros(len(at), dtype=np.int64)
    while len(deep := np.flatnonzero(at >= older)):
        at[deep] = parents[at[deep]]
        steps[deep] += 1
    return at, steps


def _costs_no_more(trees: Sequence[Tree], now: Sequence[Margins], before: Sequence[Margins]) -> bool:
    """Whether nothing more is open or entered than before, but below leaves that were open.

    Those the checker closes with an exact second look, which is not measured here.
    """
    for tree, after, first in zip(trees, now, before, strict=True):
        n, seen, open_ = len(first.open), after.seen.copy(), after.open.copy()
        seen[:n] &= ~first.seen
        open_[:n] &= ~first.open
        at, _ = _above(tree, np.flatnonzero(seen | open_), n)
        if not np.all(first.open[at]):
            return False
    return True


def joined(query: Query, trees: Sequence[Tree], longer: Sequence[Tree]) -> list[Tree]:
    """The trees, where a longer one continues one of them that, with all evidence that the shorter one had."""
    out = []
    for tree in trees:
        count = len(query.cases[tree.case].conjunctions)
        found = next((one for one in longer if _continues(tree, one, count)), tree)
        kept = set(_names(found.table))
        own = np.array([name not in kept for name in _names(tree.table)], dtype=bool)
        table = Refutations.join([tree.table.take(np.flatnonzero(own)), found.table])
        out.append(replace(found, refutations=table, tightenings=tuple(_moved_down(tree, found))))
    return out


def _names(table: Refutations) -> Iterable[tuple[int, int, float]]:
    """What tells refutations apart: where they are, of what, and by how much."""
    return zip(table.at.tolist(), table.conjunction.tolist(), table.margin.tolist(), strict=True)


def _moved_down(tree: Tree, longer: Tree) -> Iterator[Tightening]:
    """Tightenings of the longer tree; new ones at leaves of the shorter one stand at their children, if there are any.

    At the leaves they would cost every check, and change the bounds by which the leaves' own refutations hold.
    """
    old = Counter(t.at for t in tree.tightenings)
    for t in longer.tightenings:
        if t.at >= len(tree):
            yield t
        elif old[t.at]:
            old[t.at] -= 1
            yield t
        elif longer.left[t.at] >= 0:
            yield from (replace(t, at=int(child)) for child in (longer.left[t.at], longer.right[t.at]))


def _continues(tree: Tree, longer: Tree, count: int) -> bool:
    """Whether all of the tree but what is below its leaves is in the longer one, under the same numbers.

    `count` are the conjunctions of its case.
    """
    if tree.case != longer.case or set(tree.answered(count)) != set(longer.answered(count)):
        return False
    if len(longer) < len(tree):
        return False
    inner, n = tree.left >= 0, len(tree)
    fields = ("node", "index", "threshold", "left", "right", "refresh", "clip")
    if not all(np.array_equal(getattr(tree, f)[inner], getattr(longer, f)[:n][inner]) for f in fields):
        return False
    if sum(len(c.index) for c in tree.cuts) != sum(len(c.index) for c in longer.cuts):
        return False
    return not Counter(t.at for t in tree.tightenings) - Counter(t.at for t in longer.tightenings)
