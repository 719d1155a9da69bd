"""Several stored proofs that answer for parts of one query, as the trees of one proof of it.

A part is some conjunctions on a box. Proofs of other properties lend the trees of the conjunctions that the query has,
too; proofs on boxes that meet a case's lend what they say inside. Where inputs were split, the case's box is divided
along the faces of the stored boxes, and each piece gets the tree of the nearest proof whose box holds it, restricted to
the piece; so proofs on boxes that cover the case's together leave nothing open. What no proof answers for is a leaf
without evidence, for the search. Where phases were split, bounds of the whole box carry the proof: the nearest tree
stands for the box as it is.

Nothing is believed: the trees cover their boxes by construction, and the checker re-establishes each leaf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mucg4.errors import ProofError
from mucg4.model.network import Network
from mucg4.model.proof import Tightening, Tree, keep_cuts, single_leaf
from mucg4.model.query import Case, Query
from mucg4.model.refutations import Refutations
from mucg4.ops.arrays import AnyArray, FloatArray, IntArray
from mucg4.records import dataclass
from mucg4.relate.align import Alignment
from mucg4.reuse.structure import splits_phases
from mucg4.reuse.translate import restricted, translate
from mucg4.search.run import LOW_DIMENSION
from mucg4.store.related import Related

PIECES = 256  # most pieces that a case's box is divided into; not measured


@dataclass(frozen=True, eq=False)
class StoredPart:
    """A stored tree in the words of this query, and the box `lo, hi (inputs,)` for which it was made."""

    lo: FloatArray
    hi: FloatArray
    tree: Tree
    answers: frozenset[int]

    def holds(self, lo: FloatArray, hi: FloatArray) -> bool:
        """True where the box has all of another one."""
        return bool(np.all(self.lo <= lo) and np.all(self.hi >= hi))

    def meets(self, lo: FloatArray, hi: FloatArray) -> bool:
        """True where the boxes have more than a face in common."""
        a, b = np.maximum(self.lo, lo), np.minimum(self.hi, hi)
        return bool(np.all((a < b) | ((a == b) & (lo == hi))))

    def on(self, some: frozenset[int]) -> Tree:
        """The tree for some of the conjunctions that it answers for."""
        return self.tree if some == self.answers else answering(self.tree, {c: c for c in some}, self.tree.case)


def parts_of(query: Query, related: Related, alignment: Alignment) -> list[StoredPart]:
    """The trees of a stored proof that answer for something in the query; none where the proof does not decode."""
    proof, boxes, own = related.proof, related.boxes, query.conjunction_names
    names = own if related.same_unsafe else related.names
    out: list[StoredPart] = []
    if proof is None or len(boxes) != len(names):
        return out
    for tree in proof.trees:
        if tree.case >= len(boxes):
            continue
        lo, hi = boxes[tree.case]
        if lo.shape != (query.network.input_size,):
            continue
        here = enumerate(names[tree.case])
        known = {name: c for c, name in here if tree.conjunctions is None or c in tree.conjunctions}
        moved = None
        for number, case in enumerate(query.cases):
            to = {known[name]: c for c, name in enumerate(own[number]) if name in known}
            part = StoredPart(lo, hi, tree, frozenset(to.values()))
            if case.box.empty or not to or not part.meets(case.box.lo, case.box.hi):
                continue
            try:
                moved = translate(tree, alignment) if moved is None else moved
            except (ProofError, IndexError):
                break  # a stored entry is a hint: one that does not fit is a miss
            out.append(replace(part, tree=answering(moved, to, number)))
    return out


def joined(query: Query, parts: Sequence[StoredPart]) -> list[Tree]:
    """Trees for the query made of the parts, the nearest of which come first; each conjunction has at most one."""
    out = []
    for number, case in enumerate(query.cases):
        own = [part for part in parts if part.tree.case == number]
        out += _of_case(query.network, case, own)
    return out


def _of_case(network: Network, case: Case, parts: Sequence[StoredPart]) -> list[Tree]:
    out = []
    left = frozenset(range(len(case.conjunctions)))
    for part in parts:
        some = left & part.answers
        if some and part.holds(case.box.lo, case.box.hi):
            out.append(part.on(some))
            left -= some
    while parts:
        some = left & max(parts, key=lambda part: len(left & part.answers)).answers
        if not some:
            break
        able = [part for part in parts if some <= part.answers]
        out.append(_over(network, case, [replace(part, tree=part.on(some), answers=some) for part in able]))
        left -= some
    return out


def _over(network: Network, case: Case, parts: Sequence[StoredPart]) -> Tree:
    """One tree over the case's box from parts that answer for the same conjunctions."""
    box = case.box
    few = np.count_nonzero(box.hi > box.lo) <= LOW_DIMENSION or any(len(part.tree) > 1 for part in parts)
    if len(parts) == 1 or splits_phases(parts[0].tree) or not few:
        return parts[0].tree
    parts = [part for part in parts if not splits_phases(part.tree)]
    first, left = parts[0].tree, PIECES
    bare = replace(single_leaf(), case=first.case, conjunctions=first.conjunctions)

    def over(lo: FloatArray, hi: FloatArray, parts: Sequence[StoredPart]) -> Tree:
        nonlocal left
        parts = [part for part in parts if part.meets(lo, hi)]
        held = next((part for part in parts if part.holds(lo, hi)), None)
        if held is None and parts and left > 1:
            left -= 1
            index, threshold = _face(lo, hi, parts)
            below, above = hi.copy(), lo.copy()
            below[index] = above[index] = threshold
            return _halves(index, threshold, over(lo, below, parts), over(above, hi, parts))
        held = held or next(iter(parts), None)
        if held is None:
            return bare
        tree = keep_cuts(held.tree, np.zeros(sum(len(c.index) for c in held.tree.cuts), dtype=bool))
        return restricted(tree, network, lo, hi)  # cuts hold at a tree's root

    return over(box.lo, box.hi, parts)


def _face(lo: FloatArray, hi: FloatArray, parts: Sequence[StoredPart]) -> tuple[int, float]:
    """Where a face of the nearest part's box divides a box, and cuts off least of the others: input and threshold."""
    width = np.where(hi > lo, hi - lo, 1.0)
    first, best = parts[0], (np.inf, 0, 0.0)
    for end in (first.lo, first.hi):
        for index in np.flatnonzero((lo < end) & (end < hi)).tolist():
            t = end[index]
            lost = sum(max(0.0, min(t - max(p.lo[index], lo[index]), min(p.hi[index], hi[index]) - t)) for p in parts)
            best = min(best, (lost / width[index], index, float(t)))
    return best[1], best[2]


def _halves(index: int, threshold: float, left: Tree, right: Tree) -> Tree:
    """The tree that splits an input and has these trees below: their roots' bounds are derived anew, as at a root."""
    first, second = 1, 1 + len(left)

    def shifted(values: IntArray, by: int) -> IntArray:
        return np.where(values >= 0, values + by, -1).astype(np.int32)

    def table(tree: Tree, by: int) -> Refutations:
        own = tree.table
        at, literal, core = (shifted(values, by) for values in (own.at, own.literal, own.core))
        return replace(own, at=at, literal=literal, core=core)

    def tightenings(tree: Tree, by: int) -> list[Tightening]:
        return [replace(t, at=t.at + by, literals=shifted(t.literals, by)) for t in tree.tightenings]

    def both(field: str, own: float) -> AnyArray:
        values: AnyArray = np.concatenate([[own], getattr(left, field), getattr(right, field)])
        return values.astype(getattr(left, field).dtype)

    return replace(
        left,
        node=both("node", 0),
        index=both("index", index),
        threshold=both("threshold", threshold),
        left=np.concatenate([[first], shifted(left.left, first), shifted(right.left, second)]).astype(np.int32),
        right=np.concatenate([[second], shifted(left.right, first), shifted(right.right, second)]).astype(np.int32),
        refresh=np.concatenate([[True, True], left.refresh[1:], [True], right.refresh[1:]]),
        clip=both("clip", False),
        refutations=Refutations.join([table(left, first), table(right, second)]),
        tightenings=(*tightenings(left, first), *tightenings(right, second)),
        cuts=(),
    )


def answering(tree: Tree, to: Mapping[int, int], case: int) -> Tree:
    """The tree with conjunction c as `to[c]` of a case; evidence about others is left out."""
    some = tuple(sorted(to.values()))
    if tree.case == case and tree.conjunctions == some and all(a == b for a, b in to.items()):
        return tree
    table = tree.table.take(np.flatnonzero(np.isin(tree.table.conjunction, list(to))))
    new = np.array([to[c] for c in table.conjunction.tolist()], dtype=np.int32)
    tightenings = tuple(replace(t, conjunction=to[t.conjunction]) for t in tree.tightenings if t.conjunction in to)
    return replace(
        tree, case=case, conjunctions=some, refutations=replace(table, conjunction=new), tightenings=tightenings
    )
