"""The proof of an `unsat` verdict: per case a tree of regions with refutations; and its file format.

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

None of this is believed: `mucg4.check.walk` re-derives every bound.

File format: JSON (gzip when the name ends in .gz) with the fields of the dataclasses below; flags are strings of
0 and 1. The arrays of tightenings are base64 of zlib-compressed little-endian bytes, row by row: `index` and `literals`
int32, `side` int8, `weights`, `beta` and `cut_weights` float64, slopes and shares uint8. Version 1 had no tightenings,
version 2 no cuts. A file is validated when it is parsed: types, ranks, lengths and ranges of all values, and at most
LARGEST bytes of text and of unpacked arrays.
"""

from __future__ import annotations

import base64
import builtins
import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mucg4.errors import ProofError
from mucg4.limits.foreign import (
    Packed,
    fields_of,
    flags,
    inflate,
    items,
    json_value,
    member,
    number,
    numbers,
    read_limited,
    shallow,
    text_of,
    whole,
    wholes,
)
from mucg4.ops.arrays import distinct
from mucg4.ops.base import Array
from mucg4.records import dataclass

FORMAT = "mucg4-proof"
VERSION = 3
READABLE = (1, 2, 3)  # a version is the next one without what that added
LARGEST = 2**29  # most bytes of a proof's text, and of its packed arrays together


@dataclass(frozen=True, eq=False)
class Alpha:
    """Lower slopes of one refutation: where the neurons `index` of the pre-activation node `node` are
    unstable, every two-piece operator that reads them takes `value` in [0, 1].

    Values are multiples of 1/255 so that a proof stays small and reads back exactly.
    """

    node: int
    index: Array  # (k,) int32
    value: Array  # (k,) uint8, alpha = value / 255


@dataclass(frozen=True, eq=False)
class Refutation:
    """See the module text. `beta` are `(literal, multiplier)` pairs; a literal is named by the tree node
    whose region it first restricts (the child created by the split). `cuts` are numbers `(K,)` int32 of cuts and their
    multipliers `(K,)`; None when there are none. `core` lists the tree nodes of the
    literals that are needed; None when it was not computed. `margin` is the lower bound found (informal).
    """

    at: int
    conjunction: int
    weights: tuple[float, ...]
    alpha: tuple[Alpha, ...] = ()
    beta: tuple[tuple[int, float], ...] = ()
    core: tuple[int, ...] | None = None
    margin: float = 0.0
    cuts: tuple[Array, Array] | None = None

    def __post_init__(self) -> None:
        if self.cuts is not None:
            own, values = self.cuts
            _check_arrays("a refutation", [(own, "i", 1), (values, "f", np.shape(own))])
            if np.any(own < 0):
                raise ProofError("a refutation has a negative index")


@dataclass(frozen=True, eq=False)
class Cuts:
    """See the module text. R planes of the components `index` of the two-piece node `node`.

    Each entry of `shares` holds values `(R, k)` of 1/255 for the components `index (k,)` of one carrier (a network
    node); other shares are 0. Shapes and types are validated here, meaning where they are used.
    """

    node: int
    index: Array  # (R,) int32
    shares: tuple[Alpha, ...]
    after: int

    def __post_init__(self) -> None:
        count = np.size(self.index)
        arrays: list[tuple[Array, str, tuple[int, ...] | int]] = [(self.index, "i", (count,))]
        for s in self.shares:
            arrays += [(s.index, "i", 1), (s.value, "u", (count, np.size(s.index)))]
        _check_arrays("cuts", arrays)
        if not count or self.after < 0 or any(np.any(i < 0) for i in (self.index, *(s.index for s in self.shares))):
            raise ProofError("cuts without rows, or with a negative number")
        if any(np.any(s.value > 255) for s in self.shares):
            raise ProofError("a cut has a share that is out of range")

    def take(self, rows: Array) -> Cuts:
        """The chosen rows (at least one)."""
        shares = tuple(Alpha(s.node, s.index, s.value[rows]) for s in self.shares)
        return replace(self, index=self.index[rows], shares=shares)


def _check_arrays(what: str, arrays: list[tuple[Array, str, tuple[int, ...] | int]]) -> None:
    """Arrays with their kind of number, and their shape or number of axes."""
    for array, kind, shape in arrays:
        if not isinstance(array, np.ndarray) or array.dtype.kind != kind:
            raise ProofError(f"an array of {what} has the wrong type")
        if (array.ndim if isinstance(shape, int) else array.shape) != shape:
            raise ProofError(f"an array of {what} has the wrong shape")


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
    index: Array  # (R,) int32
    side: Array  # (R,) int8, +1 or -1
    weights: Array  # (R, m) float64 >= 0
    alpha: tuple[Alpha, ...]
    literals: Array  # (L,) int32
    beta: Array  # (R, L) float64 >= 0
    cuts: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int32))  # (C,)
    cut_weights: Array = field(default_factory=lambda: np.zeros((0, 0)))  # (R, C) float64 >= 0

    def __post_init__(self) -> None:
        count = np.size(self.index)
        if not np.size(self.cuts) and not np.size(self.cut_weights):
            object.__setattr__(self, "cut_weights", np.zeros((count, 0)))
        arrays: list[tuple[Array, str, tuple[int, ...] | int]] = [
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
        _check_arrays("a tightening", arrays)
        if not count or len(self.weights) != count:
            raise ProofError("a tightening has no rows, or not one list of weights per row")
        if not np.all(abs(self.side) == 1):
            raise ProofError("a tightening has a side that is neither 1 nor -1")
        if any(np.any(i < 0) for i in (self.index, self.literals, self.cuts, *(a.index for a in self.alpha))):
            raise ProofError("a tightening has a negative index")
        if any(np.any(a.value > 255) for a in self.alpha):
            raise ProofError("a tightening has a slope that is out of range")

    def take(self, rows: Array) -> Tightening:
        """The chosen rows (at least one)."""
        alpha = tuple(Alpha(a.node, a.index, a.value[rows]) for a in self.alpha)
        chosen = {f: getattr(self, f)[rows] for f in ("index", "side", "weights", "beta", "cut_weights")}
        return replace(self, alpha=alpha, **chosen)


@dataclass(frozen=True, eq=False)
class Tree:
    """Regions of one case as parallel arrays over tree nodes, and the refutations on them.

    The tree answers for the conjunctions `conjunctions` of case number `case` (None: for all of them).
    """

    node: Array  # (N,) int32, network node whose value is split, -1 at leaves
    index: Array  # (N,) int32
    threshold: Array  # (N,) float64
    left: Array  # (N,) int32, -1 at leaves
    right: Array  # (N,) int32
    refresh: Array  # (N,) bool
    clip: Array  # (N,) bool
    refutations: tuple[Refutation, ...] = ()
    case: int = 0
    conjunctions: tuple[int, ...] | None = None
    tightenings: tuple[Tightening, ...] = ()
    cuts: tuple[Cuts, ...] = ()

    def __post_init__(self) -> None:
        n = np.size(self.node)
        kinds = {"node": "i", "index": "i", "threshold": "f", "left": "i", "right": "i", "refresh": "b", "clip": "b"}
        _check_arrays("a tree", [(getattr(self, f), kind, 1) for f, kind in kinds.items()])
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
        places = [r.at for r in self.refutations] + [t.at for t in self.tightenings]
        if any(not 0 <= at < n for at in places):
            raise ProofError("a refutation or tightening names no tree node")
        if self.cuts and self.conjunctions is not None and len(self.conjunctions) != 1:
            raise ProofError("a tree with cuts answers for several conjunctions")

    def __len__(self) -> int:
        return len(self.node)

    @property
    def leaves(self) -> Array:
        """Positions of the leaves."""
        return np.flatnonzero(self.left < 0)

    def parents(self) -> Array:
        """(N,) parent of each tree node, -1 at the root."""
        out = np.full(len(self), -1, dtype=np.int64)
        inner = np.flatnonzero(self.left >= 0)
        out[self.left[inner]] = inner
        out[self.right[inner]] = inner
        return out

    def leaf_counts(self) -> Array:
        """(N,) number of leaves in the subtree of each tree node."""
        out = (self.left < 0).astype(np.int64)
        for k in np.flatnonzero(self.left >= 0)[::-1].tolist():  # children stand after their parents
            out[k] = out[self.left[k]] + out[self.right[k]]
        return out

    def depths(self) -> Array:
        """(N,) number of literals on the path to each tree node."""
        out = np.zeros(len(self), dtype=np.int64)
        for k in range(len(self)):  # parents stand before children
            if self.left[k] >= 0:
                out[self.left[k]] = out[self.right[k]] = out[k] + 1
        return out


def keep_cuts(tree: Tree, keep: Array) -> Tree:
    """The tree with only the cuts marked in `keep (C,)`, renumbered; multipliers of the others are left out."""
    if np.all(keep):
        return tree
    places = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)  # the last: numbers that the tree does not have

    def new(numbers: Array) -> Array:
        return places[np.minimum(numbers, len(keep))]

    refutations = []
    for r in tree.refutations:
        if r.cuts is not None:
            there = new(r.cuts[0]) >= 0
            left = (new(r.cuts[0])[there].astype(np.int32), r.cuts[1][there]) if there.any() else None
            r = replace(r, cuts=left)
        refutations.append(r)
    tightenings = []
    for t in tree.tightenings:
        there = new(t.cuts) >= 0
        numbers = new(t.cuts)[there].astype(np.int32)
        tightenings.append(replace(t, cuts=numbers, cut_weights=t.cut_weights[:, there]))
    cuts = kept_rows(tree.cuts, keep)
    return replace(tree, cuts=tuple(cuts), refutations=tuple(refutations), tightenings=tuple(tightenings))


def kept_rows(cuts: Sequence[Cuts], keep: Array) -> list[Cuts]:
    """The rows marked in `keep`, which counts over all `cuts` in order."""
    out, first = [], 0
    for c in cuts:
        own = np.flatnonzero(keep[first : first + len(c.index)])
        first += len(c.index)
        if len(own):
            out.append(c.take(own))
    return out


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


def _tree_to_json(tree: Tree) -> dict[str, Any]:
    plain = {k: getattr(tree, k).tolist() for k in ("node", "index", "threshold", "left", "right")}
    flags = {k: "".join("1" if v else "0" for v in getattr(tree, k)) for k in ("refresh", "clip")}
    rows = []
    for r in tree.refutations:
        row: dict[str, Any] = {"at": r.at, "conjunction": r.conjunction, "weights": list(r.weights), "margin": r.margin}
        if r.alpha:
            row["alpha"] = [{"node": a.node, "index": a.index.tolist(), "value": a.value.tolist()} for a in r.alpha]
        if r.beta:
            row["beta"] = [list(b) for b in r.beta]
        if r.cuts is not None:
            row["cuts"] = [r.cuts[0].tolist(), r.cuts[1].tolist()]
        if r.core is not None:
            row["core"] = list(r.core)
        rows.append(row)
    covers = None if tree.conjunctions is None else list(tree.conjunctions)
    tightenings = [_tightening_to_json(t) for t in tree.tightenings]
    out = {"case": tree.case, "conjunctions": covers, **plain, **flags, "refutations": rows}
    if tightenings:
        out["tightenings"] = tightenings
    if tree.cuts:
        out["cuts"] = [_cuts_to_json(c) for c in tree.cuts]
    return out


def _packed(values: Array, dtype: str) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values, dtype=dtype).tobytes(), 6)).decode()


def _cuts_to_json(c: Cuts) -> dict[str, Any]:
    return {
        "node": int(c.node),
        "index": _packed(c.index, "<i4"),
        "shares": _slopes_to_json(c.shares),
        "after": c.after,
    }


def _cuts_from_json(value: Any, packed: Packed) -> Cuts:
    """Raises as `_tightening_from_json`."""
    data = fields_of(value, "an entry of cuts")
    index = packed.array(member(data, "index"), "<i4", "index of cuts")
    shares = _slopes_from_json(member(data, "shares"), len(index), packed)
    return Cuts(whole(member(data, "node"), "node"), index, shares, whole(member(data, "after"), "after"))


def _slopes_to_json(slopes: tuple[Alpha, ...]) -> list[dict[str, Any]]:
    return [{"node": int(a.node), "index": _packed(a.index, "<i4"), "value": _packed(a.value, "<u1")} for a in slopes]


def _slopes_from_json(value: Any, count: int, packed: Packed) -> tuple[Alpha, ...]:
    out = []
    for a in items(value, "slopes"):
        data = fields_of(a, "an entry of slopes")
        neurons = packed.array(member(data, "index"), "<i4", "index of slopes")
        values = packed.array(member(data, "value"), "<u1", "value of slopes", count * len(neurons))
        out.append(Alpha(whole(member(data, "node"), "node"), neurons, values.reshape(count, len(neurons))))
    return tuple(out)


def _tightening_to_json(t: Tightening) -> dict[str, Any]:
    out = {
        "at": int(t.at),
        "conjunction": int(t.conjunction),
        "node": int(t.node),
        "index": _packed(t.index, "<i4"),
        "side": _packed(t.side, "<i1"),
        "weights": _packed(t.weights, "<f8"),
        "alpha": _slopes_to_json(t.alpha),
        "literals": _packed(t.literals, "<i4"),
        "beta": _packed(t.beta, "<f8"),
    }
    if len(t.cuts):
        out["cuts"], out["cut_weights"] = _packed(t.cuts, "<i4"), _packed(t.cut_weights, "<f8")
    return out


def _tightening_from_json(value: Any, packed: Packed) -> Tightening:
    """Raises `ValueError` where the values do not make rows, `ProofError` where rows make no sense."""
    data = fields_of(value, "a tightening")
    index = packed.array(member(data, "index"), "<i4", "index of a tightening")
    literals = packed.array(member(data, "literals"), "<i4", "literals of a tightening")
    cuts = packed.array(data["cuts"], "<i4", "cuts of a tightening") if "cuts" in data else np.zeros(0, dtype=np.int32)
    weights = packed.array(member(data, "weights"), "<f8", "weights of a tightening")
    count = len(index)
    if not count or len(weights) % count:
        raise ProofError("a tightening has no rows, or not one list of weights per row")

    def rows(name: str, width: int) -> Array:
        return packed.array(member(data, name), "<f8", name, count * width).reshape(count, width)

    return Tightening(
        at=whole(member(data, "at"), "at"),
        conjunction=whole(member(data, "conjunction"), "conjunction"),
        node=whole(member(data, "node"), "node"),
        index=index,
        side=packed.array(member(data, "side"), "<i1", "side", count),
        weights=weights.reshape(count, -1),
        alpha=_slopes_from_json(member(data, "alpha"), count, packed),
        literals=literals,
        beta=rows("beta", len(literals)),
        cuts=cuts,
        cut_weights=rows("cut_weights", len(cuts)) if len(cuts) else np.zeros((0, 0)),
    )


def _alpha_from_json(value: Any) -> Alpha:
    data = fields_of(value, "an entry of alpha")
    index = wholes(member(data, "index"), "index of alpha")
    value = wholes(member(data, "value"), "value of alpha", np.uint8, high=255)
    if len(index) != len(value):
        raise ValueError("index and value of alpha differ in length")
    return Alpha(whole(member(data, "node"), "node"), index, value)


def _beta_from_json(value: Any) -> tuple[int, float]:
    pair = items(value, "an entry of beta")
    if len(pair) != 2:
        raise ValueError("an entry of beta is no pair")
    return whole(pair[0], "a literal of beta"), number(pair[1], "a multiplier")


def _refutation_from_json(value: Any) -> Refutation:
    data = fields_of(value, "a refutation")
    cuts = None
    if "cuts" in data:
        pair = items(data["cuts"], "cuts of a refutation")
        if len(pair) != 2:
            raise ValueError("cuts of a refutation are no pair of lists")
        cuts = wholes(pair[0], "cuts of a refutation"), numbers(pair[1], "multipliers of cuts")
    return Refutation(
        at=whole(member(data, "at"), "at"),
        conjunction=whole(member(data, "conjunction"), "conjunction"),
        weights=tuple(numbers(member(data, "weights"), "weights").tolist()),
        alpha=tuple(_alpha_from_json(a) for a in items(data.get("alpha", []), "alpha")),
        beta=tuple(_beta_from_json(b) for b in items(data.get("beta", []), "beta")),
        core=tuple(wholes(data["core"], "core").tolist()) if "core" in data else None,
        margin=number(member(data, "margin"), "margin", finite=False),
        cuts=cuts,
    )


def _tree_from_json(value: Any, packed: Packed) -> Tree:
    data = fields_of(value, "a tree")
    covers = member(data, "conjunctions")
    node, index, left, right = (wholes(member(data, k), k, low=-1) for k in ("node", "index", "left", "right"))
    if len(index) == len(left) and np.any(index[left >= 0] < 0):
        raise ValueError("a literal has a negative index")
    return Tree(
        node,
        index,
        numbers(member(data, "threshold"), "threshold"),
        left,
        right,
        flags(member(data, "refresh"), "refresh"),
        flags(member(data, "clip"), "clip"),
        tuple(_refutation_from_json(r) for r in items(member(data, "refutations"), "refutations")),
        whole(member(data, "case"), "case"),
        None if covers is None else tuple(wholes(covers, "conjunctions").tolist()),
        tuple(_tightening_from_json(t, packed) for t in items(data.get("tightenings", []), "tightenings")),
        tuple(_cuts_from_json(c, packed) for c in items(data.get("cuts", []), "cuts")),
    )


def to_text(proof: Proof) -> str:
    """The file format as text."""
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "network": proof.network,
            "property": proof.property,
            "source": proof.source,
            "notes": proof.notes,
            "trees": [_tree_to_json(t) for t in proof.trees],
        },
        separators=(",", ":"),
    )


def from_text(text: str | bytes, arrays: int = LARGEST) -> Proof:
    """Inverse of `to_text`; raises `ProofError` for anything malformed or of another version.

    What comes back has arrays of the right rank, type and length, and whole numbers that fit int32; whether they mean
    something for a network is seen where they are used. All packed arrays together hold at most `arrays` bytes.
    """
    try:
        data = json_value(text)
        if type(data) is not dict or data.get("format") != FORMAT:
            raise ProofError("not a mucg4 proof")
        version = whole(member(data, "version"), "version", high=10**9)
        if version not in READABLE:
            raise ProofError(f"proof format version {version} is not supported (this is {VERSION})")
        packed = Packed(arrays)
        trees = tuple(_tree_from_json(t, packed) for t in items(member(data, "trees"), "trees"))
        network, prop, source = (text_of(member(data, k), k) for k in ("network", "property", "source"))
        notes = shallow(fields_of(member(data, "notes"), "notes"), "notes")
        return Proof(network, prop, trees, source, notes)
    except (ValueError, OverflowError) as error:
        raise ProofError(f"malformed proof: {error}") from error
    except MemoryError:
        raise ProofError("malformed proof: too large for the memory") from None


def to_bytes(proof: Proof) -> bytes:
    """Compressed form for the store."""
    return zlib.compress(to_text(proof).encode(), 6)


def from_bytes(blob: bytes, most: int = LARGEST) -> Proof:
    """Inverse of `to_bytes`; raises `ProofError`, also for more than `most` bytes of text or of arrays."""
    try:
        text = inflate(blob, most)
    except ValueError as error:
        raise ProofError(f"malformed proof: {error}") from error
    return from_text(text, most)


def write_proof(proof: Proof, path: Path) -> None:
    """Write the file format; gzip when the name ends in .gz."""
    data = to_text(proof).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def read_proof(path: Path, poll: Callable[[], None] | None = None) -> Proof:
    """Read the file format; raises `ProofError` for malformed content, `OSError` when unreadable.

    `poll` is called now and then while a gzip file is unpacked, and may raise.
    """
    try:
        data = read_limited(path, LARGEST)
        if data[:2] == b"\x1f\x8b":
            data = inflate(data, LARGEST, gzip=True, poll=poll)
    except ValueError as error:
        raise ProofError(f"malformed proof: {error}") from error
    return from_text(data)
