"""The proof recorder: grows the tree of regions while the search runs."""

from __future__ import annotations

import numpy as np

from mucg4.bound.propagate import Bounder
from mucg4.bound.tighten import Duals
from mucg4.ops.base import Array
from mucg4.proof.proof import Alpha, Refutation, Tightening, Tree


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

    def tighten(self, tightening: Tightening) -> None:
        """Keep evidence of better bounds; the order of calls for one tree node is the order of application."""
        self.tightenings.append(tightening)

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
    ) -> None:
        """Refutations with optimised duals. `weights (B, m)` on the conjunction's own constraints.

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
            found = Refutation(int(ids[b]), conjunction, chosen, alphas, multipliers, margin=float(margin[b]))
            self.refutations.append(found)

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

    def tree(self, case: int = 0, conjunctions: tuple[int, ...] | None = None) -> Tree:
        """The finished tree, answering for `conjunctions` of case number `case`."""
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
        return Tree(
            **arrays,
            refresh=self.refresh[:n].copy(),
            clip=self.clip[:n].copy(),
            refutations=tuple(self.refutations),
            case=case,
            conjunctions=conjunctions,
            tightenings=tuple(self.tightenings),
        )
