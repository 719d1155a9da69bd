"""The proof of an `unsat` verdict: per case a tree of regions with refutations.

Tree. Node 0 is the whole box of the case. An inner node splits its region by one literal pair: the
value of component `index` of network node `node` (network node 0 is the input) is `<= threshold`
in the left child and `>= threshold` in the right one. The two children cover the parent by
construction. A leaf has `left == right == -1`.

Tightening. Evidence for better bounds of some components of one pre-activation node in the region of tree
node `at`, on the points that are unsafe for one conjunction: the functional `side * value[index] +
sum_i weights[i] * g_i` is bounded from below by one backward pass with slopes `alpha` and multipliers
`beta` (and multipliers of the cuts derived so far) as in a refutation; as `g_i <= 0` on those points, the bound
holds for `side * value[index]` too (side 1: lower bounds, side -1: minus upper bounds). The tightenings of a tree
node are applied one after the other in their order, after the node's other bounds (below) and before its refutations;
every row of one tightening uses the bounds from before it. They need a region on which the conjunction is the only
one the tree answers for or still open; the children inherit the bounds. Bounds that contradict each other make the
region empty.

Cuts. Upper planes of two-piece neurons over the box of what feeds them. The *carriers* of a neuron are the
input and the nonlinear nodes from which affine nodes lead to its argument z, so z = w . v + b over their values v. With
shares s in [0, 1] the plane's slopes are p = (left + (right - left) s) w, its offset q is the least for which p . v + q
is at least left z and right z on the carriers' hulls (one backward pass with constant lines), and the inequality
`f(z) - p . v - q <= 0` may be added to any functional of the tree with a nonnegative multiplier. Cuts are derived in
the root's region, after the first `after` of the root's tightenings, and hold in the whole tree; they are numbered
over all `cuts` of the tree in order. A tree with cuts answers for one conjunction.

Refutation. Evidence that one conjunction of the case has no point in the region of tree node `at`
(hence in none of its descendants). For its constraints `g_i(x, y) <= 0` the refuted functional is
`sum_i weights[i] * g_i`, bounded from below by one backward pass with lower slopes `alpha` (the
default slopes where none are stored), multipliers `beta >= 0` on the phase literals of the path and multipliers of
cuts. A tree is established when every leaf has, for every conjunction the tree answers for, a refutation at
the leaf or an ancestor. A region whose box or bounds (see below) are empty needs none. A case is proved
when its trees answer for all its conjunctions.

Bounds. Pre-activation bounds of the root are interval bounds. Those of a child are its parent's
intersected with the child's own literal. In every tree node, nodes in topological order, affine images
of the input alone are then intersected with their interval bounds, and where `refresh` is true (always
at the root) the other pre-activations that are still unstable with backward bounds (default slopes of the
bounds found so far). Tighter is not better here: it can tip a default slope, so no other bounds enter.

Where `clip` of the tree node is true and exactly one conjunction is still unrefuted there, the input
box (which the children inherit) is cut by the linear lower bound (default slopes) of each constraint of
that conjunction: `g_i <= 0` must hold. The constraints cut one after the other; each bounds every input
once, from the box before it.

None of this is believed: `mucg4.check.walk` re-derives every bound. The file format is in `mucg4.model.proof_text`.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from functools import cached_property
from typing import Any

import numpy as np

from mucg4.errors import ProofError
from mucg4.model.refutations import Alpha as Alpha
from mucg4.model.refutations import Refutation as Refutation
from mucg4.model.refutations import Refutations as Refutations
from mucg4.model.refutations import check_arrays
from mucg4.ops.arrays import AnyArray, BoolArray, FloatArray, IntArray, distinct
from mucg4.records import dataclass


@dataclass(frozen=True, eq=False)
class Cuts:
    """See the module text. R planes of the components `index` of the two-piece node `node`.

    Each entry of `shares` holds values `(R, k)` of 1/255 for the components `index (k,)` of one carrier (a network
    node); other shares are 0. Shapes and types are validated here, meaning where they are used.
    """

    node: int
    index: IntArray  # (R,) int32
    shares: tuple[Alpha, ...]
    after: int

    def __post_init__(self) -> None:
        count = np.size(self.index)
        arrays: list[tuple[AnyArray, str, tuple[int, ...] | int]] = [(self.index, "i", (count,))]
        for s in self.shares:
            arrays += [(s.index, "i", 1), (s.value, "u", (count, np.size(s.index)))]
        check_arrays("cuts", arrays)
        if not count or self.after < 0 or any(np.any(i < 0) for i in (self.index, *(s.index for s in self.shares))):
            raise ProofError("cuts without rows, or with a negative number")
        if any(_beyond_bytes(s.value) for s in self.shares):
            raise ProofError("a cut has a share that is out of range")

    def take(self, rows: IntArray) -> Cuts:
        """The chosen rows (at least one)."""
        shares = tuple(Alpha(s.node, s.index, s.value[rows]) for s in self.shares)
        return replace(self, index=self.index[rows], shares=shares)


@dataclass(frozen=True, eq=False)
class Tightening:
    """See the module text. R rows bound components `index` of the pre-activation node `node`.

    `literals` are tree nodes that introduced a phase literal (as in `Refutation.beta`), `beta[r, l]` their multipliers;
    `cut_weights[r, c]` are the multipliers of the cuts numbered `cuts`.
    Each entry of `alpha` holds slopes `value (R, k)` for the neurons `index (k,)` of one pre-activation node.
    Shapes and types are validated here; whether the numbers mean something for a network is seen where they are used.
    """

    at: int
    conjunction: int
    node: int
    index: IntArray  # (R,) int32
    side: IntArray  # (R,) int8, +1 or -1
    weights: FloatArray  # (R, m) float64 >= 0
    alpha: tuple[Alpha, ...]
    literals: IntArray  # (L,) int32
    beta: FloatArray  # (R, L) float64 >= 0
    cuts: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))  # (C,)
    cut_weights: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))  # (R, C) float64 >= 0

    def __post_init__(self) -> None:
        count = np.size(self.index)
        if not np.size(self.cuts) and not np.size(self.cut_weights):
            object.__setattr__(self, "cut_weights", np.zeros((count, 0)))
        arrays: list[tuple[AnyArray, str, tuple[int, ...] | int]] = [
            (self.index, "i", (count,)),
            (self.side, "i", (count,)),
            (self.weights, "f", 2),
            (self.literals, "i", 1),
            (self.beta, "f", (count, np.size(self.literals))),
            (self.cuts, "i", 1),
            (self.cut_weights, "f", (count, np.size(self.cuts))),
        ]
        for a in self.alpha:
            arrays += [(a.index, "i", 1), (a.value, "u", (count, np.size(a.index)))]
        check_arrays("a tightening", arrays)
        if not count or len(self.weights) != count:
            raise ProofError("a tightening has no rows, or not one list of weights per row")
        if not np.all(abs(self.side) == 1):
            raise ProofError("a tightening has a side that is neither 1 nor -1")
        if any(np.any(i < 0) for i in (self.index, self.literals, self.cuts, *(a.index for a in self.alpha))):
            raise ProofError("a tightening has a negative index")
        if any(_beyond_bytes(a.value) for a in self.alpha):
            raise ProofError("a tightening has a slope that is out of range")

    def take(self, rows: IntArray) -> Tightening:
        """The chosen rows (at least one)."""
        alpha = tuple(Alpha(a.node, a.index, a.value[rows]) for a in self.alpha)
        chosen = {f: getattr(self, f)[rows] for f in ("index", "side", "weights", "beta", "cut_weights")}
        return replace(self, alpha=alpha, **chosen)


@dataclass(frozen=True, eq=False)
class Tree:
    """Regions of one case as parallel arrays over tree nodes, and the refutations on them.

    The tree answers for the conjunctions `conjunctions` of case number `case` (None: for all of them).
    """

    node: IntArray  # (N,) int32, network node whose value is split, -1 at leaves
    index: IntArray  # (N,) int32
    threshold: FloatArray  # (N,) float64
    left: IntArray  # (N,) int32, -1 at leaves
    right: IntArray  # (N,) int32
    refresh: BoolArray  # (N,) bool
    clip: BoolArray  # (N,) bool
    refutations: Sequence[Refutation] = ()
    case: int = 0
    conjunctions: tuple[int, ...] | None = None
    tightenings: tuple[Tightening, ...] = ()
    cuts: tuple[Cuts, ...] = ()

    def __post_init__(self) -> None:
        n = np.size(self.node)
        kinds = {"node": "i", "index": "i", "threshold": "f", "left": "i", "right": "i", "refresh": "b", "clip": "b"}
        check_arrays("a tree", [(getattr(self, f), kind, 1) for f, kind in kinds.items()])
        if n == 0 or any(len(getattr(self, f)) != n for f in kinds):
            raise ProofError("tree arrays differ in length")
        inner = self.left >= 0
        if not np.array_equal(inner, self.right >= 0) or not np.array_equal(inner, self.node >= 0):
            raise ProofError("a tree node has only one child")
        children = np.concatenate([self.left[inner], self.right[inner]])
        if len(children) != n - 1 or len(distinct(children)) != n - 1 or (len(children) and children.max() >= n):
            raise ProofError("the tree's children do not form one tree")
        parents = np.concatenate([np.flatnonzero(inner)] * 2)
        if np.any(children <= parents):
            raise ProofError("a child stands before its parent")
        if not np.all(np.isfinite(self.threshold[inner])):
            raise ProofError("a split threshold is not finite")
        known = self.refutations
        at = known.at if isinstance(known, Refutations) else np.array([r.at for r in known], dtype=object)
        if np.any((at < 0) | (at >= n)) or any(not 0 <= t.at < n for t in self.tightenings):
            raise ProofError("a refutation or tightening names no tree node")
        if self.cuts and self.conjunctions is not None and len(self.conjunctions) != 1:
            raise ProofError("a tree with cuts answers for several conjunctions")

    def __len__(self) -> int:
        return len(self.node)

    @cached_property
    def table(self) -> Refutations:
        """The refutations in arrays; raises `ProofError` for some that fit in none."""
        return Refutations.of(self.refutations)

    def answered(self, count: int) -> tuple[int, ...]:
        """The conjunctions that it answers for, of a case that has so many."""
        return tuple(range(count)) if self.conjunctions is None else tuple(self.conjunctions)

    @property
    def leaves(self) -> IntArray:
        """Positions of the leaves."""
        return np.flatnonzero(self.left < 0)

    def parents(self) -> IntArray:
        """(N,) parent of each tree node, -1 at the root."""
        out = np.full(len(self), -1, dtype=np.int64)
        inner = np.flatnonzero(self.left >= 0)
        out[self.left[inner]] = inner
        out[self.right[inner]] = inner
        return out

    def leaf_counts(self) -> IntArray:
        """(N,) number of leaves in the subtree of each tree node."""
        left, right = self.left.tolist(), self.right.tolist()
        out = [1] * len(left)
        for k in np.flatnonzero(self.left >= 0)[::-1].tolist():  # children stand after their parents
            out[k] = out[left[k]] + out[right[k]]
        return np.array(out, dtype=np.int64)

    def depths(self) -> IntArray:
        """(N,) number of literals on the path to each tree node."""
        left, right = self.left.tolist(), self.right.tolist()
        out = [0] * len(left)
        for k in np.flatnonzero(self.left >= 0).tolist():  # parents stand before children
            out[left[k]] = out[right[k]] = out[k] + 1
        return np.array(out, dtype=np.int64)


def upward(parents: IntArray, at: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """From the tree nodes `at (B,)` up to the root, all at a time: entries of `at`, and where each has come to."""
    which: IntArray = np.arange(len(at))
    node: IntArray = at.astype(np.int64)
    while len(which):
        yield which, node
        above = parents[node]
        which, node = which[above >= 0], above[above >= 0]


def keep_cuts(tree: Tree, keep: BoolArray) -> Tree:
    """The tree with only the cuts marked in `keep (C,)`, renumbered; multipliers of the others are left out."""
    if np.all(keep):
        return tree
    places = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)  # the last: numbers that the tree does not have

    def new(numbers: IntArray) -> IntArray:
        return places[np.minimum(numbers, len(keep))]

    table = tree.table
    there = new(table.cut) >= 0
    owner = np.repeat(np.arange(len(table)), table.cut_count)
    refutations = replace(
        table,
        cut_count=np.bincount(owner[there], minlength=len(table)).astype(np.int32),
        cut=new(table.cut)[there].astype(np.int32),
        multiplier=table.multiplier[there],
    )
    tightenings = []
    for t in tree.tightenings:
        there = new(t.cuts) >= 0
        numbers = new(t.cuts)[there].astype(np.int32)
        tightenings.append(replace(t, cuts=numbers, cut_weights=t.cut_weights[:, there]))
    cuts = kept_rows(tree.cuts, keep)
    return replace(tree, cuts=tuple(cuts), refutations=refutations, tightenings=tuple(tightenings))


def kept_rows(cuts: Sequence[Cuts], keep: BoolArray) -> list[Cuts]:
    """The rows marked in `keep`, which counts over all `cuts` in order."""
    out, first = [], 0
    for c in cuts:
        own = np.flatnonzero(keep[first : first + len(c.index)])
        first += len(c.index)
        if len(own):
            out.append(c if len(own) == len(c.index) else c.take(own))
    return out


def _beyond_bytes(values: AnyArray) -> bool:
    """True for slopes above 255, which only a wider type can hold."""
    return values.dtype.itemsize > 1 and bool(np.any(values > 255))


def single_leaf(refutations: Sequence[Refutation] = (), refresh: bool = True) -> Tree:
    """A tree of the root alone."""
    one = np.array([-1], dtype=np.int32)
    flags = np.array([refresh]), np.array([False])
    return Tree(one, one, np.zeros(1), one, one, *flags, tuple(refutations))


@dataclass(frozen=True, eq=False)
class Proof:
    """Trees that together answer for every conjunction of every case of the query.

    Each tree covers the whole box of its case; a case may have several trees with disjoint conjunctions
    (searches that split phases treat each conjunction on its own).

    `network` and `property` are the content hashes (`Network.fingerprint`, `Query.property_hash`) the
    proof was made for; `source` is the SHA-256 of the ONNX bytes. An empty case (empty box or no
    conjunction) needs no tree.
    """

    network: str
    property: str
    trees: tuple[Tree, ...]
    source: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    @builtins.property  # the field `property` hides the decorator from type checkers
    def leaves(self) -> int:
        """Number of leaves over all trees."""
        return sum(len(t.leaves) for t in self.trees)
