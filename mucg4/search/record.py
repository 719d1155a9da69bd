"""The proof recorder: grows the tree of regions while the search runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mucg4.bound.propagate import Bounder
from mucg4.bound.tighten import Duals
from mucg4.errors import BudgetError
from mucg4.model.proof import Cuts, Tightening, Tree, kept_rows
from mucg4.model.query import Witness
from mucg4.model.refutations import NO_CORE, Refutations
from mucg4.ops.base import Array
from mucg4.records import dataclass
from mucg4.search.region import Batch


@dataclass
class Closed:
    """Refutations with optimised duals that were found together, in arrays: cheap to send and to renumber.

    `ids (B,)`, `weights (B, m)`, `margin (B,)`; the others are triples of equally long arrays, ordered by row: rows of
    this batch, what the entries belong to (flat pre-activation positions for `alpha`, literals' tree nodes for `beta`,
    numbers of cuts for `cuts`), and values (multiples of 1/255 for `alpha`).
    """

    ids: Array
    conjunction: int
    weights: Array
    margin: Array
    alpha: tuple[Array, Array, Array]
    beta: tuple[Array, Array, Array]
    cuts: tuple[Array, Array, Array]

    def renumbered(self, number: Array) -> Closed:
        """With tree nodes replaced by `number[...]`."""
        row, literal, value = self.beta
        return replace(self, ids=number[self.ids], beta=(row, number[literal], value))

    def refutations(self, slices: dict[int, slice], places: Array) -> Refutations:
        """In the arrays of a proof; `places[c]` is the new number of cut c."""
        count, m = self.weights.shape
        node = np.array(list(slices), dtype=np.int32)
        starts = np.array([s.start for s in slices.values()], dtype=np.int32)
        row, at, level = self.alpha
        group = np.searchsorted(starts, at, side="right") - 1
        fresh = np.ones(len(row), dtype=bool)  # first entry of a row and node
        fresh[1:] = (row[1:] != row[:-1]) | (group[1:] != group[:-1])
        first = np.flatnonzero(fresh)

        def counted(rows: Array) -> Array:
            return np.bincount(rows, minlength=count).astype(np.int32)

        return Refutations(
            at=self.ids.astype(np.int32),
            conjunction=np.full(count, self.conjunction, dtype=np.int32),
            margin=self.margin.astype(np.float64),
            weight_count=np.full(count, m, dtype=np.int32),
            weights=self.weights.reshape(-1).astype(np.float64),
            group_count=counted(row[first]),
            slope_node=node[group[first]],
            slope_count=np.diff(np.append(first, len(row))).astype(np.int32),
            slope_index=(at - starts[group]).astype(np.int32),
            slope_value=level,
            beta_count=counted(self.beta[0]),
            literal=self.beta[1].astype(np.int32),
            beta=self.beta[2],
            cut_count=counted(self.cuts[0]),
            cut=places[self.cuts[1]].astype(np.int32),
            multiplier=self.cuts[2].astype(np.float64),
            core_count=np.full(count, NO_CORE, dtype=np.int32),
            core=np.zeros(0, dtype=np.int32),
        )


@dataclass
class Growth:
    """What a worker added to a recorder after a mark: see `Recorder.since` and `Recorder.absorb`.

    Tree nodes from `base` on are new; `changed` are older ones that were split or clipped.
    """

    base: int
    count: int
    changed: Array
    old: dict[str, Array]  # fields of `changed`
    new: dict[str, Array]  # fields of the new tree nodes
    closed: list[Closed]
    tightenings: list[Tightening]
    cuts: list[Cuts]
    single: list[tuple[Array, Array, Array, Array]]  # of `close_by_constraints`


Share = tuple[dict[str, Array], Batch | None]  # of a search's open regions: fields of its frontier, and not bounded yet


@dataclass
class Outcome:
    """What a worker on a search, or on a part of its frontier, sends back; `stopped` is what ended it early."""

    growth: Growth
    left: Share
    counters: dict[str, int]
    gain: float  # mean gain of one split, if there was any
    has_split: bool
    work: int
    learned: Any  # about the way of splitting: see `Way.learned`
    witness: Witness | None = None
    stopped: BudgetError | None = None


class Recorder:
    """Tree arrays with spare capacity, and refutations and tightenings in the order they were found."""

    FIELDS = {
        "node": (np.int32, -1),
        "index": (np.int32, -1),
        "threshold": (np.float64, 0.0),
        "left": (np.int32, -1),
        "right": (np.int32, -1),
    }

    def __init__(self, bounder: Bounder, sizes: list[int]) -> None:
        """`sizes`: number of constraints of each conjunction."""
        self.bounder = bounder
        self.sizes = sizes
        self.count = 1
        self.arrays = {f: np.full(64, fill, dtype=t) for f, (t, fill) in self.FIELDS.items()}
        self.refresh = np.ones(64, dtype=bool)
        self.clip = np.zeros(64, dtype=bool)
        self.parent = np.full(64, -1, dtype=np.int64)
        self.depth = np.zeros(64, dtype=np.int32)
        self.closed: list[Closed] = []
        self.tightenings: list[Tightening] = []
        self.cuts: list[Cuts] = []
        self.lent: Refutations | None = None  # of tree nodes of the tree that it continues; without cuts
        self._single: list[tuple[Array, Array, Array, Array]] = []
        self._kept_cuts = 0  # so many cuts stay, used or not

    @staticmethod
    def continuing(bounder: Bounder, sizes: list[int], tree: Tree) -> Recorder:
        """A recorder that goes on below a tree: its tree nodes, tightenings and cuts, which keep their numbers.

        Without its refutations: see `mucg4.check.resume`, which puts them back. Below a root alone nothing refers to
        cuts that are not used any more.
        """
        own = Recorder(bounder, sizes)
        own._reserve(len(tree) - 1)
        own.count = len(tree)
        for f in own.FIELDS:
            own.arrays[f][: len(tree)] = getattr(tree, f)
        for f, a in (
            ("refresh", tree.refresh),
            ("clip", tree.clip),
            ("parent", tree.parents()),
            ("depth", tree.depths()),
        ):
            getattr(own, f)[: len(tree)] = a
        own.tightenings, own.cuts = list(tree.tightenings), list(tree.cuts)
        own._kept_cuts = own.cut_count if len(tree) > 1 else 0
        return own

    def _reserve(self, more: int) -> None:
        need = self.count + more
        size = len(self.refresh)
        if need <= size:
            return
        grown = max(need, 2 * size)
        for f, (_, fill) in self.FIELDS.items():
            self.arrays[f] = np.concatenate([self.arrays[f], np.full(grown - size, fill, dtype=self.arrays[f].dtype)])
        self.refresh = np.concatenate([self.refresh, np.ones(grown - size, dtype=bool)])
        self.parent = np.concatenate([self.parent, np.full(grown - size, -1, dtype=np.int64)])
        self.depth = np.concatenate([self.depth, np.zeros(grown - size, dtype=np.int32)])
        self.clip = np.concatenate([self.clip, np.zeros(grown - size, dtype=bool)])

    def split(self, ids: Array, node: Array, index: Array, threshold: Array, refresh: bool) -> tuple[Array, Array]:
        """Split tree nodes `ids (B,)`; returns the tree nodes of the lower and the upper children."""
        b = len(ids)
        self._reserve(2 * b)
        left = np.arange(self.count, self.count + b)
        right = left + b
        self.count += 2 * b
        for f, v in (("node", node), ("index", index), ("threshold", threshold), ("left", left), ("right", right)):
            self.arrays[f][ids] = v
        self.refresh[left[0] : self.count] = refresh
        self.parent[left] = self.parent[right] = ids
        self.depth[left] = self.depth[right] = self.depth[ids] + 1
        return left, right

    def close_by_constraints(self, ids: Array, conjunction: Array, constraint: Array, margin: Array) -> None:
        """Refutations by a single constraint with default slopes; `constraint` counts inside its conjunction."""
        if len(ids):
            self._single.append((ids, conjunction, constraint, margin))

    def close_duals(
        self,
        ids: Array,
        conjunction: int,
        weights: Array,
        duals: Duals,
        unstable: Array,
        default: Array,
        margin: Array,
        literals: list[dict[int, int]],
        numbers: Array,
    ) -> None:
        """Refutations with optimised duals. `weights (B, m)` on the conjunction's own constraints.

        Column c of `duals.cuts` belongs to the cut with number `numbers[c]`.

        `unstable (B, P)` marks neurons whose slope matters, `default (B, P)` the default slopes (not stored);
        `literals[b]` maps a flat pre-activation position to the tree node that carries its phase literal.
        """
        level = np.round(duals.alpha * 255).astype(np.uint8)
        row, at = np.nonzero(unstable & (level != np.round(default * 255).astype(np.uint8)))
        held, position = np.nonzero(duals.beta)
        literal = np.array(
            [literals[b].get(p, -1) for b, p in zip(held.tolist(), position.tolist(), strict=True)], dtype=np.int64
        )
        own = np.flatnonzero(literal >= 0)
        beta = held[own], literal[own], duals.beta[held[own], position[own]].astype(np.float64)
        cuts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32), np.zeros(0)
        if duals.cuts is not None:
            used, column = np.nonzero(duals.cuts)
            cuts = used, numbers[column].astype(np.int32), duals.cuts[used, column]
        slopes = row, at.astype(np.int32), level[row, at]
        self.closed.append(Closed(ids, conjunction, weights.astype(np.float64), margin, slopes, beta, cuts))

    @property
    def cut_count(self) -> int:
        """The number that the next cut gets."""
        return sum(len(c.index) for c in self.cuts)

    @property
    def root_tightenings(self) -> int:
        """How many tightenings the root has: what `Cuts.after` counts."""
        return sum(t.at == 0 for t in self.tightenings)

    def tighten(self, at: int, found: Tightening, helped: Array, position: Array) -> None:
        """The rows `helped (R,)` of a tightening that was applied to the region of tree node `at`.

        Column l of its multipliers belongs to the phase literal at flat pre-activation position `position[l]`; columns
        without such a literal on the path are left out. What `found` says about tree nodes is replaced. The order of
        calls for one tree node is the order of application.
        """
        if not np.any(helped):
            return
        own = self.literals(np.array([at]))[0]
        held = [column for column, p in enumerate(position.tolist()) if p in own]
        literals = np.array([own[int(position[column])] for column in held], dtype=np.int32)
        rows = found.take(np.flatnonzero(helped))
        self.tightenings.append(replace(rows, at=int(at), literals=literals, beta=rows.beta[:, held]))

    def open_shares(self, ids: Array) -> tuple[float, float, int]:
        """Share of the root that the open tree nodes `ids` have, the same at two thirds of the regions, regions since.

        A node's share is 2 ** -depth. Nodes count as made in the order of their numbers.
        """
        then = 2 * self.count // 3
        left = self.arrays["left"][:then]
        open_ = left >= then
        open_[ids[ids < then]] = True
        before = np.flatnonzero(open_)
        now, earlier = (float(np.exp2(-self.depth[which].astype(np.float64)).sum()) for which in (ids, before))
        return now, earlier, self.count - then

    def literals(self, ids: Array) -> list[dict[int, int]]:
        """Per tree node: flat pre-activation position -> tree node that introduced the phase literal."""
        parent = self.parent
        out = []
        for k in ids.tolist():
            found: dict[int, int] = {}
            while parent[k] >= 0:
                p = parent[k]
                node = int(self.arrays["node"][p])
                if node > 0 and self.arrays["threshold"][p] == 0.0:  # others are no phase, see `apply_literals`
                    found.setdefault(self.bounder.slices[node].start + int(self.arrays["index"][p]), int(k))
                k = int(p)
            out.append(found)
        return out

    # ---- growth in another process -------------------------------------------------------------

    ALL = (*FIELDS, "refresh", "clip", "parent", "depth")

    def _field(self, name: str) -> Array:
        return self.arrays[name] if name in self.arrays else getattr(self, name)

    def mark(self) -> tuple[int, int, int, int, int, Array, Array]:
        """Where the recorder stands; to be given to `since`."""
        lists = len(self.closed), len(self.tightenings), len(self.cuts), len(self._single)
        return self.count, *lists, self.arrays["left"][: self.count].copy(), self.clip[: self.count].copy()

    def since(self, mark: tuple[int, int, int, int, int, Array, Array]) -> Growth:
        """Everything recorded after the mark."""
        base, closed, tightenings, cuts, single, left, clip = mark
        changed = np.flatnonzero((self.arrays["left"][:base] != left) | (self.clip[:base] != clip))
        return Growth(
            base,
            self.count,
            changed,
            {f: self._field(f)[changed] for f in self.ALL},
            {f: self._field(f)[base : self.count].copy() for f in self.ALL},
            self.closed[closed:],
            self.tightenings[tightenings:],
            self.cuts[cuts:],
            self._single[single:],
        )

    def absorb(self, growth: Growth) -> Array:
        """Add what another process recorded after a mark of this recorder; `(count,)` new numbers of its tree nodes.

        Cuts keep their numbers: only one process, the one that has the root, adds any.
        """
        number = np.arange(growth.count)
        number[growth.base :] += self.count - growth.base
        added = growth.count - growth.base
        self._reserve(added)
        self.count += added
        links = ("left", "right", "parent")
        for f in self.ALL:
            for where, values in ((growth.changed, growth.old[f]), (number[growth.base :], growth.new[f])):
                moved = np.where(values >= 0, number[np.maximum(values, 0)], -1) if f in links else values
                self._field(f)[where] = moved
        self.closed.extend(c.renumbered(number) for c in growth.closed)
        for t in growth.tightenings:
            literals = number[t.literals].astype(np.int32)
            self.tightenings.append(replace(t, at=int(number[t.at]), literals=literals))
        self.cuts.extend(growth.cuts)
        self._single.extend((number[ids], *rest) for ids, *rest in growth.single)
        return number

    def _single_refutations(self, ids: Array, conjunction: Array, constraint: Array, margin: Array) -> Refutations:
        """Those of `close_by_constraints` in the arrays of a proof."""
        sizes = np.array(self.sizes, dtype=np.int32)[conjunction]
        weights = np.zeros(int(sizes.sum()))
        weights[np.cumsum(sizes) - sizes + constraint] = 1.0
        return Refutations.plain(
            ids.astype(np.int32), conjunction.astype(np.int32), margin.astype(np.float64), sizes, weights
        )

    def tree(self, case: int = 0, conjunctions: tuple[int, ...] | None = None) -> Tree:
        """The finished tree, answering for `conjunctions` of case number `case`; without cuts that nothing uses."""
        keep = np.arange(self.cut_count) < self._kept_cuts
        for numbers in (*(c.cuts[1] for c in self.closed), *(t.cuts for t in self.tightenings)):
            keep[numbers] = True
        places = np.cumsum(keep) - 1
        parts = [c.refutations(self.bounder.slices, places) for c in self.closed]
        parts += [self._single_refutations(*found) for found in self._single]
        parts += [] if self.lent is None else [self.lent]
        n = self.count
        arrays = {f: a[:n].copy() for f, a in self.arrays.items()}
        return Tree(
            **arrays,
            refresh=self.refresh[:n].copy(),
            clip=self.clip[:n].copy(),
            refutations=Refutations.join(parts),
            case=case,
            conjunctions=conjunctions,
            tightenings=tuple(replace(t, cuts=places[t.cuts].astype(np.int32)) for t in self.tightenings),
            cuts=tuple(kept_rows(self.cuts, keep)),
        )
