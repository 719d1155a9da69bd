"""The proof recorder: grows the tree of regions while the search runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mucg4.bound.propagate import Bounder
from mucg4.bound.tighten import Duals
from mucg4.ops.base import Array
from mucg4.proof.proof import Alpha, Cuts, Refutation, Tightening, Tree, without_idle_cuts


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
    refutations: list[Refutation]
    tightenings: list[Tightening]
    cuts: list[Cuts]
    plain: list[tuple[Array, Array, Array, Array]]


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
        self.refutations: list[Refutation] = []
        self.tightenings: list[Tightening] = []
        self.cuts: list[Cuts] = []
        self._plain: list[tuple[Array, Array, Array, Array]] = []

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
        return left, right

    def close_plain(self, ids: Array, conjunction: Array, constraint: Array, margin: Array) -> None:
        """Refutations by a single constraint with default slopes; `constraint` counts inside its conjunction."""
        if len(ids):
            self._plain.append((ids, conjunction, constraint, margin))

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
        for b in range(len(ids)):
            own = literals[b]
            multipliers = tuple(
                (own[p], float(duals.beta[b, p])) for p in np.flatnonzero(duals.beta[b]).tolist() if p in own
            )
            alphas = self._alphas(duals.alpha[b], unstable[b], default[b])
            chosen = tuple(float(w) for w in weights[b])
            cuts = None
            if duals.cuts is not None and len(used := np.flatnonzero(duals.cuts[b])):
                cuts = numbers[used].astype(np.int32), duals.cuts[b, used]
            found = Refutation(
                int(ids[b]), conjunction, chosen, alphas, multipliers, margin=float(margin[b]), cuts=cuts
            )
            self.refutations.append(found)

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

    def _alphas(self, alpha: Array, unstable: Array, default: Array) -> tuple[Alpha, ...]:
        level = np.round(alpha * 255).astype(np.uint8)
        differs = unstable & (level != np.round(default * 255).astype(np.uint8))
        out = []
        for k, where in self.bounder.slices.items():
            index = np.flatnonzero(differs[where])
            if len(index):
                out.append(Alpha(k, index.astype(np.int32), level[where][index]))
        return tuple(out)

    def literals(self, ids: Array) -> list[dict[int, int]]:
        """Per tree node: flat pre-activation position -> tree node that introduced the phase literal."""
        parent = self.parent
        out = []
        for k in ids.tolist():
            found: dict[int, int] = {}
            while parent[k] >= 0:
                p = parent[k]
                node = int(self.arrays["node"][p])
                if node > 0 and self.arrays["threshold"][p] == 0.0:  # others are no phase, see `cut_regions`
                    found.setdefault(self.bounder.slices[node].start + int(self.arrays["index"][p]), int(k))
                k = int(p)
            out.append(found)
        return out

    # ---- growth in another process -------------------------------------------------------------

    ALL = (*FIELDS, "refresh", "clip", "parent")

    def _field(self, name: str) -> Array:
        return self.arrays[name] if name in self.arrays else getattr(self, name)

    def mark(self) -> tuple[int, int, int, int, int, Array, Array]:
        """Where the recorder stands; to be given to `since`."""
        lists = len(self.refutations), len(self.tightenings), len(self.cuts), len(self._plain)
        return self.count, *lists, self.arrays["left"][: self.count].copy(), self.clip[: self.count].copy()

    def since(self, mark: tuple[int, int, int, int, int, Array, Array]) -> Growth:
        """Everything recorded after the mark."""
        base, refutations, tightenings, cuts, plain, left, clip = mark
        changed = np.flatnonzero((self.arrays["left"][:base] != left) | (self.clip[:base] != clip))
        return Growth(
            base,
            self.count,
            changed,
            {f: self._field(f)[changed] for f in self.ALL},
            {f: self._field(f)[base : self.count].copy() for f in self.ALL},
            self.refutations[refutations:],
            self.tightenings[tightenings:],
            self.cuts[cuts:],
            self._plain[plain:],
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
        for r in growth.refutations:
            beta = tuple((int(number[k]), v) for k, v in r.beta)
            self.refutations.append(replace(r, at=int(number[r.at]), beta=beta))
        for t in growth.tightenings:
            literals = number[t.literals].astype(np.int32)
            self.tightenings.append(replace(t, at=int(number[t.at]), literals=literals))
        self.cuts.extend(growth.cuts)
        self._plain.extend((number[ids], *rest) for ids, *rest in growth.plain)
        return number

    def tree(self, case: int = 0, conjunctions: tuple[int, ...] | None = None) -> Tree:
        """The finished tree, answering for `conjunctions` of case number `case`; without cuts that nothing uses."""
        for ids, conjunction, constraint, margin in self._plain:
            for i, c, m, v in zip(
                ids.tolist(), conjunction.tolist(), constraint.tolist(), margin.tolist(), strict=True
            ):
                weights = [0.0] * self.sizes[c]
                weights[m] = 1.0
                self.refutations.append(Refutation(i, c, tuple(weights), margin=v))
        self._plain = []
        n = self.count
        arrays = {f: a[:n].copy() for f, a in self.arrays.items()}
        tree = Tree(
            **arrays,
            refresh=self.refresh[:n].copy(),
            clip=self.clip[:n].copy(),
            refutations=tuple(self.refutations),
            case=case,
            conjunctions=conjunctions,
            tightenings=tuple(self.tightenings),
            cuts=tuple(self.cuts),
        )
        return without_idle_cuts(tree)
