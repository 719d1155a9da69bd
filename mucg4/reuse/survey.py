"""How large a proof is, by how much its leaves are closed, and on which noisy copies of its network they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mucg4.check.margins import Gauge, Margins, planned
from mucg4.limits.processes import shared_out, single_thread
from mucg4.model.proof import Proof, Tree
from mucg4.model.proof_packed import to_packed
from mucg4.ops.arrays import BoolArray, FloatArray
from mucg4.records import dataclass

QUANTILES = (0.05, 0.5, 0.95)  # of the margins that are told; given: what a reader can take in
OWN = "own"  # the name of the gauge that measures the proof's own network
# leaves that grow below one that is lost (`mucg4.reuse.grown`): what has to be searched there costs more; not measured
BELOW = 8.0


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


def measured(trees: Sequence[Tree], gauges: Mapping[str, Gauge], workers: int = 1) -> dict[str, list[Margins]]:
    """The margins of each tree by every gauge, in processes. Raises `ProofError`, `BudgetError`."""
    names, first = list(gauges), next(iter(gauges.values()))
    plans = [planned(tree, first.query) for tree in trees]  # good for all copies of a network

    def work(some: Sequence[str]) -> dict[str, list[Margins]]:
        return {name: [gauges[name].measure(plan) for plan in plans] for name in some}

    with single_thread():
        return shared_out(work, names, workers, first.budget.poll)


@dataclass(frozen=True)
class Worth:
    """What a proof is worth to variants: its `leaves`, of which noisy copies open `lost` on average."""

    leaves: int
    lost: float

    @staticmethod
    def of(trees: Sequence[Tree], copies: Mapping[str, Gauge], workers: int = 1) -> Worth:
        """Measured on the copies. Raises `ProofError`, `BudgetError`."""
        lost = [sum(m.lost for m in own) for own in measured(trees, copies, workers).values()]
        return Worth(sum(len(tree.leaves) for tree in trees), float(np.mean(lost)))

    @property
    def share(self) -> float:
        """Of the leaves, how many hold."""
        return 1 - self.lost / max(self.leaves, 1)

    @property
    def cost(self) -> float:
        """What variants pay, in leaves checked, when the proof has grown below the leaves that are lost."""
        return self.leaves + BELOW * self.lost


def copies_of(gauges: Mapping[str, Gauge]) -> dict[str, Gauge]:
    """The gauges of the noisy copies alone."""
    return {name: gauge for name, gauge in gauges.items() if name != OWN}


def ends(tree: Tree, found: Margins) -> BoolArray:
    """(N,) tree nodes at which a check ends: those that it bounds and below which it bounds none."""
    inner = np.flatnonzero(tree.left >= 0)
    out: BoolArray = found.seen.copy()
    out[inner] &= ~(found.seen[tree.left[inner]] | found.seen[tree.right[inner]])
    return out
