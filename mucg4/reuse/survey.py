"""How large a proof is, by how much its leaves are closed, and on which noisy copies of its network they hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mucg4.check.margins import Gauge, Margins
from mucg4.check.walk import planned
from mucg4.limits.budget import Budget
from mucg4.limits.processes import shared_out, single_thread
from mucg4.model.proof import Proof, Tree
from mucg4.model.proof_packed import to_packed
from mucg4.ops.arrays import BoolArray, FloatArray, IntArray
from mucg4.records import dataclass

QUANTILES = (0.05, 0.5, 0.95)  # of the margins that are told; given: what a reader can take in
OWN = "own"  # the name of the gauge that measures the proof's own network
# leaves that grow below one that is lost (`mucg4.reuse.grown`): what has to be searched there costs more; not measured
BELOW = 8.0
SAMPLE, CLUMP = 512, 16  # leaves of a proof by which it is judged, and of the subtrees these are in; not measured


@dataclass(frozen=True, eq=False)
class Survey:
    """Sizes of a proof. `visited`: tree nodes that a check bounds; `literals`: those on the paths to where it ends.

    `margins (M,)` are those of the refutations that close something; `holds[name]` is the share of the leaves that
    are closed on a noisy copy.
    """

    leaves: int
    visited: int
    literals: int
    rows: int
    cuts: int
    slopes: int
    bytes: int
    margins: FloatArray
    holds: Mapping[str, float]

    def lines(self, before: Survey | None = None) -> list[str]:
        """The survey as lines of text; with `before` as lines of three columns."""
        old = {} if before is None else before._texts()
        return [f"{name:20}{old[name] + ' ' if old else '':>12}{text:>12}" for name, text in self._texts().items()]

    def _texts(self) -> dict[str, str]:
        names = ("leaves", "visited", "literals", "rows", "cuts", "slopes", "bytes")
        texts = {name: str(getattr(self, name)) for name in names}
        texts.update({f"margin {q:.0%}": f"{v:.3g}" for q, v in zip(QUANTILES, self.quantiles(), strict=True)})
        texts.update({f"holds on {name}": f"{share:.1%}" for name, share in self.holds.items()})
        return texts

    def quantiles(self) -> list[float]:
        """Of the margins."""
        return [float(v) for v in np.quantile(self.margins, QUANTILES)] if len(self.margins) else [0.0] * 3


def survey(proof: Proof, gauges: Mapping[str, Gauge], workers: int = 1) -> Survey:
    """Measures the proof with every gauge; the one named OWN has its query. Raises `ProofError`, `BudgetError`."""
    found = measured(proof.trees, gauges, workers)
    pairs = list(zip(proof.trees, found[OWN], strict=True))
    total = max(proof.leaves, 1)
    return Survey(
        leaves=proof.leaves,
        visited=sum(m.entered for m in found[OWN]),
        literals=sum(int(tree.depths()[ends(tree, m)].sum()) for tree, m in pairs),
        rows=sum(len(t.index) for tree in proof.trees for t in tree.tightenings),
        cuts=sum(len(c.index) for tree in proof.trees for c in tree.cuts),
        slopes=sum(len(tree.table.slope_index) for tree in proof.trees),
        bytes=len(to_packed(proof, 1)),
        margins=np.concatenate([np.zeros(0), *(m.value[m.value > 0] for m in found[OWN])]),
        holds={name: 1 - sum(m.lost for m in found[name]) / total for name in gauges if name != OWN},
    )


def measured(
    trees: Sequence[Tree], gauges: Mapping[str, Gauge], workers: int = 1, within: Sequence[BoolArray | None] = ()
) -> dict[str, list[Margins]]:
    """The margins of each tree by every gauge, in processes. Raises `ProofError`, `BudgetError`.

    `within`: for each tree where it is looked at (see `Gauge.measure`), if not everywhere.
    """
    names, first = list(gauges), next(iter(gauges.values()))
    plans = [planned(tree, first.query) for tree in trees]  # good for all copies of a network
    where = within or [None] * len(plans)

    def work(some: Sequence[str]) -> dict[str, list[Margins]]:
        return {
            name: [gauges[name].measure(plan, part) for plan, part in zip(plans, where, strict=True)] for name in some
        }

    with single_thread():
        return shared_out(work, names, workers, first.budget.poll)


def lost_on(trees: Sequence[Tree], copies: Mapping[str, Gauge], workers: int = 1) -> dict[str, float]:
    """How many leaves each copy opens, by a sample where there are many. Raises `ProofError`, `BudgetError`."""
    counts = [len(tree.leaves) for tree in trees]
    parts = [sampled(tree, math.ceil(SAMPLE * n / sum(counts))) for tree, n in zip(trees, counts, strict=True)]
    weight = [n / part[tree.leaves].sum() for tree, part, n in zip(trees, parts, counts, strict=True)]
    found = measured(trees, copies, workers, parts)
    return {name: float(sum(w * m.lost for w, m in zip(weight, own, strict=True))) for name, own in found.items()}


def sampled(tree: Tree, most: int) -> BoolArray:
    """(N,) all tree nodes where there are at most so many leaves, else random small subtrees and the paths to them.

    These have about so many leaves, at least one subtree's.
    """
    counts = tree.leaf_counts()
    if counts[0] <= most:
        return np.ones(len(tree), dtype=bool)
    tops: IntArray = np.random.default_rng(0).permutation(subtrees(tree, CLUMP))
    tops = tops[: 1 + np.count_nonzero(np.cumsum(counts[tops]) < most)]
    chosen: BoolArray = np.isin(np.arange(len(tree)), tops)
    return with_paths(tree, chosen | below(tree, chosen))


def subtrees(tree: Tree, most: int) -> IntArray:
    """The roots of the largest subtrees of at most so many leaves."""
    counts, parents = tree.leaf_counts(), tree.parents()
    return np.flatnonzero((counts <= most) & ((parents < 0) | (counts[parents] > most)))


def below(tree: Tree, marked: BoolArray) -> BoolArray:
    """(N,) what is below the marked tree nodes."""
    parents, out = tree.parents(), np.zeros(len(tree), dtype=bool)
    for k in range(1, len(tree)) if marked.any() else ():  # children stand after their parents
        out[k] = out[parents[k]] or marked[parents[k]]
    return out


def with_paths(tree: Tree, marked: BoolArray) -> BoolArray:
    """(N,) the marked tree nodes and those on the paths to them."""
    out: BoolArray = marked.copy()
    parents, at = tree.parents(), np.flatnonzero(marked)
    while len(at):
        at = np.unique(parents[at])
        at = at[at >= 0]
        at = at[~out[at]]
        out[at] = True
    return out


@dataclass(frozen=True)
class Worth:
    """What a proof is worth to variants: its `leaves`, of which noisy copies open `lost` on average."""

    leaves: int
    lost: float

    @staticmethod
    def of(trees: Sequence[Tree], copies: Mapping[str, Gauge], workers: int = 1) -> Worth:
        """Measured on the copies, by a sample where there are many leaves. Raises `ProofError`, `BudgetError`."""
        lost = list(lost_on(trees, copies, workers).values())
        return Worth(sum(len(tree.leaves) for tree in trees), float(np.mean(lost)))

    @property
    def share(self) -> float:
        """Of the leaves, how many hold."""
        return 1 - self.lost / max(self.leaves, 1)

    @property
    def cost(self) -> float:
        """What variants pay, in leaves checked, when the proof has grown below the leaves that are lost."""
        return self.leaves + BELOW * self.lost


def under(gauges: Mapping[str, Gauge], budget: Budget) -> dict[str, Gauge]:
    """The gauges, for as long as another budget allows."""
    return {name: gauge.under(budget) for name, gauge in gauges.items()}


def copies_of(gauges: Mapping[str, Gauge]) -> dict[str, Gauge]:
    """The gauges of the noisy copies alone."""
    return {name: gauge for name, gauge in gauges.items() if name != OWN}


def ends(tree: Tree, found: Margins) -> BoolArray:
    """(N,) tree nodes at which a check ends: those that it bounds and below which it bounds none."""
    inner = np.flatnonzero(tree.left >= 0)
    out: BoolArray = found.seen.copy()
    out[inner] &= ~(found.seen[tree.left[inner]] | found.seen[tree.right[inner]])
    return out
