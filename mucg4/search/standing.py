"""What a run has come to: which part of each case is still open, and the trees as far as they go.

The measure. A region's share of its case is the share of the box that its own box takes, halved once for every neuron
that was split on the way to it: the halves of a split never have more together than the whole. Where inputs are split
that is a volume (what clips cut off is closed), where phases are, `2 ** -depth`. The open share of a conjunction is the
sum over its open regions, that of a case the mean over its conjunctions, that of a query the mean over its cases; what
was not begun is open. It tells what is left of the tree, not of the work: regions that are left are the hard ones.

Bounds are the search's own. The lowest among the open regions of a case bounds the margin of the whole case from below,
for what is closed has a positive one. The checker has examined neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mucg4.model.proof import Tree, upward
from mucg4.model.query import Query
from mucg4.ops.arrays import BoolArray, FloatArray, IntArray
from mucg4.records import dataclass
from mucg4.search.checkpoint import Checkpoint, Rhythm

if TYPE_CHECKING:
    from mucg4.check.resume import Open

FIRST_LOOK, LOOK_SHARE = 1.0, 0.01  # seconds until it is summed up, and the share of time for that; not measured

MOST_AT_THE_END = 0.05  # seconds that the sum may take when a run ends; not measured


@dataclass(frozen=True, eq=False)
class Extent:
    """What is open of a case: of each conjunction the share `(K,)` and the lowest bound `(K,)`, -inf: not known."""

    share: FloatArray
    bound: FloatArray

    @staticmethod
    def whole(count: int) -> Extent:
        """Nothing is known of so many conjunctions."""
        return Extent(np.ones(count), np.full(count, -np.inf))

    @staticmethod
    def nothing(count: int) -> Extent:
        """All of so many conjunctions is closed."""
        return Extent(np.zeros(count), np.full(count, np.inf))

    @staticmethod
    def of(share: FloatArray, open_: BoolArray, bound: FloatArray) -> Extent:
        """Regions with `share (B,)` and `bound (B,)` (nan: not known) where `open_ (B, K)` is left to refute."""
        known = np.where(np.isnan(bound), -np.inf, bound)
        lowest = np.where(open_, known[:, None], np.inf).min(axis=0, initial=np.inf)
        return Extent(np.minimum(share @ open_, 1.0), lowest)

    def among(self, answers: BoolArray) -> Extent:
        """With nothing known of the conjunctions that are not marked in `answers (K,)`."""
        return Extent(np.where(answers, self.share, 1.0), np.where(answers, self.bound, -np.inf))

    def joined(self, others: Iterable[Extent]) -> Extent:
        """Of each conjunction the best that is known."""
        share, bound = self.share, self.bound
        for other in others:
            share, bound = np.minimum(share, other.share), np.maximum(bound, other.bound)
        return Extent(share, bound)


def shares(
    box: tuple[FloatArray, FloatArray], lo: FloatArray, hi: FloatArray, at: IntArray, node: IntArray, parents: IntArray
) -> FloatArray:
    """(B,) shares that the regions `lo, hi (B, d)` at the tree nodes `at (B,)` have of the `box (d,)`.

    `node (N,)` is what each tree node splits, `parents (N,)` are the tree's.
    """
    width = box[1] - box[0]
    wide = np.flatnonzero((width > 0) & np.isfinite(width))
    out: FloatArray = np.clip((hi[:, wide] - lo[:, wide]) / width[wide], 0.0, 1.0).prod(axis=1)
    for which, below in upward(parents, at):
        above = parents[below]
        out[which[(above >= 0) & (node[above] > 0)]] /= 2
    return out


def _answers(tree: Tree, count: int) -> BoolArray:
    """(K,) the conjunctions that a tree answers for."""
    return np.isin(np.arange(count), tree.answered(count))


class Searched(Protocol):
    """A case that is being searched."""

    def extents(self) -> list[Extent]:
        """What is left open of it, in one or several ways to search it."""

    def unfinished(self, left: BoolArray) -> list[Tree]:
        """Trees as far as they go, for each of the conjunctions `left (K,)` one."""


class Standing:
    """Kept by whatever searches, case by case; read for the run record, for progress, and for a checkpoint.

    `latest` is what `sum_up` said last, `rhythm` when it is asked during the search.
    """

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self.checkpoint = checkpoint
        self.latest: dict[str, Any] = {}
        self.borrowed = False  # whether results of other queries went into the trees of the checkpoint
        self.took = 0.0  # seconds, the last time
        self.rhythm = Rhythm(FIRST_LOOK, LOOK_SHARE)
        self._examined = 0.0  # share of stored leaves that the checker had accepted when it was interrupted
        self._whole: Callable[[list[Tree]], list[Tree]] = list
        self._done: list[Tree] = []
        self._opens: list[Open] = []
        self._search: tuple[int, Searched] | None = None  # and which case that is

    # ---- told by who searches ------------------------------------------------------------------

    def examined(self, checked: int, leaves: int) -> None:
        """The checker accepted so many leaves of stored trees, and nothing was searched yet."""
        self._examined = checked / max(leaves, 1)

    def take_up(self, opens: Sequence[Open], whole: Callable[[list[Tree]], list[Tree]]) -> None:
        """Everything begins where stored trees are `opens`. `whole` gives longer trees the evidence of those back."""
        self._opens, self._whole, self._done, self._search = list(opens), whole, [], None

    def enter(self, number: int, search: Searched, accepted: Iterable[Tree]) -> None:
        """The search of a case has begun, where stored trees left off; those that are `accepted` have nothing open."""
        self._opens = [o for o in self._opens if o.tree.case != number]
        self._search = number, search
        self.finish(accepted)

    def finish(self, trees: Iterable[Tree]) -> None:
        """Trees without an open region."""
        self._done.extend(trees)

    def leave(self) -> None:
        """The case that was entered last is decided."""
        self._search = None

    def settle(self) -> None:
        """All cases are: what the checker knows of the stored trees may be given up."""
        if self.checkpoint is not None:
            self._done, self._opens, self._whole = self._whole([*self._done, *(o.tree for o in self._opens)]), [], list

    # ---- what is known -------------------------------------------------------------------------

    @property
    def is_begun(self) -> bool:
        """True when there are trees."""
        return bool(self._done or self._opens or self._search)

    def trees(self, query: Query) -> list[Tree]:
        """All trees as far as they go, for each conjunction at most one: a leaf without refutations is open."""
        trees = [*self._done, *(o.tree for o in self._opens)]
        if self._search is not None:
            number, search = self._search
            count = len(query.cases[number].conjunctions)
            done = [_answers(t, count) for t in trees if t.case == number]
            trees += search.unfinished(~np.any([np.zeros(count, dtype=bool), *done], axis=0))
        return self._whole(trees)

    def sum_up(self, query: Query) -> dict[str, Any]:
        """`open_share` of the query, and `open_cases`: share and lowest bound of those that were begun."""
        began = time.monotonic()
        by_case: dict[int, list[Extent]] = {}
        for tree in self._done:
            answers = _answers(tree, len(query.cases[tree.case].conjunctions))
            by_case.setdefault(tree.case, []).append(Extent.nothing(len(answers)).among(answers))
        for o in self._opens:
            by_case.setdefault(o.tree.case, []).append(_of_stored(o, query))
        if self._search is not None:
            number, search = self._search
            by_case.setdefault(number, []).extend(search.extents())
        total, cases, open_cases = 0.0, 0, []
        for number, case in enumerate(query.cases):
            if case.box.empty or not case.conjunctions:
                continue
            cases += 1
            begun = by_case.get(number)
            if begun is None:
                total += 1.0 - self._examined
                continue
            extent = Extent.whole(len(case.conjunctions)).joined(begun)
            share, bound = float(extent.share.mean()), float(extent.bound.min())
            total += share
            if extent.share.any() or bound < np.inf:
                known = bound if np.isfinite(bound) else None
                open_cases.append({"case": number, "open_share": share, "bound": known})
        self.latest = {"open_share": total / cases if cases else 0.0, "open_cases": open_cases}
        self.took = time.monotonic() - began
        return self.latest

    def at_the_end(self, query: Query) -> dict[str, Any]:
        """As `sum_up`, or what that said last where it takes long: a run that is out of time has to answer."""
        return self.latest if self.took > MOST_AT_THE_END else self.sum_up(query)


def _of_stored(o: Open, query: Query) -> Extent:
    case = query.cases[o.tree.case]
    share = shares((case.box.lo, case.box.hi), o.lo, o.hi, o.at, o.tree.node, o.tree.parents())
    extent = Extent.of(share, o.open, np.full(len(o.at), np.nan))
    return extent.among(_answers(o.tree, len(case.conjunctions)))


def spoken(summary: dict[str, Any]) -> str:
    """A summary in one line."""
    bounds = [case["bound"] for case in summary["open_cases"]]
    known = [bound for bound in bounds if bound is not None]
    text = f"open: {100 * summary['open_share']:.3g} % of the tree"
    return f"{text}, lowest bound {min(known):.3g}" if known and len(known) == len(bounds) else text
