"""The SMT reference engine: the seed's method (MUC-G4, arXiv 2506.04268) over exact rationals, for small networks.

What was published names the ingredients only: both networks as formulas, changes classified, minimal unsat
cores of the original's refutation, cores re-checked on the variant as a warm start, and a residual phase that
solves what no surviving core covers. The rest is our reading of it.

Search. A region is a set of phase literals (neuron active or inactive). It is closed when z3 refutes its
linear relaxation in exact arithmetic (`mucg4.smt.relax`); z3's unsat core, made irreducible by deletion, is
learned and closes every later region that contains it. Otherwise an open neuron is split, the side of the
relaxation's own point first. A core that does not mention the last split also closes the parent, so the
other side is never visited. A region with all phases chosen is decided exactly, so the search is complete
for the real-number question on the hull of the box; it ends because each split fixes one more phase.

Reuse. Cores of a related query are moved to this network's neurons, each is re-checked by one refutation (a
literal that is constant here is dropped or makes the core vacuous), and survivors are learned from the start;
splits follow the cores that are still possible, so that the search walks into them.

Answers. `sat` needs onnxruntime's confirmation like everywhere. `unsat` comes with a proof for the independent
checker; see `mucg4.smt.certify`. Size: at most 60 open neurons and 4000 weights per box. Measured on
one core with random networks: 25-30 open neurons take 5-10 s, 50 of them in four layers may take minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mucg4.errors import BudgetError, UnsupportedError
from mucg4.gate.runtime import Runtime
from mucg4.gate.runtimes import runtime_of
from mucg4.gate.witness import replay_witness, snap
from mucg4.limits.budget import Budget
from mucg4.model.proof import Tree, single_leaf
from mucg4.model.query import Case, Query, Witness
from mucg4.ops.arrays import FloatArray
from mucg4.relate.align import alignment_of
from mucg4.smt.certify import Branch, Certifier, Leaf
from mucg4.smt.encode import Encoding, Literal, constraint_rows, encode
from mucg4.smt.relax import SmtRelaxation
from mucg4.smt.transfer import classify, move

Key = tuple[int, int]


@dataclass(frozen=True)
class Core:
    """Phase literals that together leave no unsafe point: `(network node, neuron, +1 active or -1 inactive)`."""

    case: int
    conjunction: int
    literals: tuple[Literal, ...]


@dataclass
class SmtResult:
    """Outcome of `refute`.

    `witness` is set for sat. Otherwise, unsat is established by z3 when `undecided == 0`; `trees` are its proof
    when also `uncertified == 0`. `cores` are the cores that closed the leaves. `checks` counts z3 calls.
    """

    witness: Witness | None = None
    trees: list[Tree] = field(default_factory=list)
    cores: list[Core] = field(default_factory=list)
    undecided: int = 0  # regions with a real-number witness that onnxruntime does not confirm
    uncertified: int = 0  # leaves that z3 closed too tightly for a proof in floats
    checks: int = 0
    regions: int = 0
    reused_leaves: int = 0
    residual_leaves: int = 0


@dataclass(frozen=True)
class Reuse:
    """Outcome of `reuse`: `total` cores were offered, `kept` still hold on the variant, `share` is their ratio.

    `changes` counts the original's neuron equations by class, see `mucg4.smt.transfer.classify`.
    """

    result: SmtResult
    total: int
    kept: int
    changes: dict[str, int]

    @property
    def share(self) -> float:
        return self.kept / self.total if self.total else 0.0


def solve_smt(
    query: Query,
    budget: Budget | None = None,
    related: Sequence[Core] | None = None,
    runtime: Runtime | None = None,
) -> Witness | list[Tree]:
    """A confirmed witness, or proof trees for every case.

    `related` are cores on this network's neurons; they are re-checked before use. Raises `UnsupportedError`
    beyond the engine's size or operators, and `BudgetError` when the budget ended or nothing could be concluded.
    """
    result = refute(query, budget, related or (), runtime)
    if result.witness is not None:
        return result.witness
    if result.undecided:
        raise BudgetError("z3 found a real-number witness that onnxruntime does not confirm")
    if result.uncertified:
        raise BudgetError(f"unsat for z3, but {result.uncertified} leaves are too tight for a proof")
    return result.trees


def reuse(
    original: Query,
    cores: Sequence[Core],
    variant: Query,
    budget: Budget | None = None,
    runtime: Runtime | None = None,
) -> Reuse:
    """Solve the variant with the cores of the original's refutation as a warm start.

    Raises as `solve_smt`, and `UnsupportedError` when the neurons of the networks cannot be paired.
    """
    alignment = alignment_of(original.network, variant.network)
    if alignment is None:
        raise UnsupportedError("cores can be moved between networks of the same graph only")
    changes = classify(original.network, variant.network, alignment)
    moved = [Core(c.case, c.conjunction, tuple(sorted(move(c.literals, alignment)))) for c in cores]
    result, kept = _run(variant, budget or Budget(), moved, runtime)
    return Reuse(result, len(cores), kept, changes)


def refute(
    query: Query,
    budget: Budget | None = None,
    related: Sequence[Core] = (),
    runtime: Runtime | None = None,
) -> SmtResult:
    """As `solve_smt`, with the cores and counts of the run; raises for the budget and for size only."""
    return _run(query, budget or Budget(), related, runtime)[0]


def _run(query: Query, budget: Budget, related: Sequence[Core], runtime: Runtime | None) -> tuple[SmtResult, int]:
    result, kept = SmtResult(), 0
    runtime = runtime_of(query) if runtime is None else runtime
    for number, case in enumerate(query.cases):
        if case.box.empty or not case.conjunctions:
            result.trees.append(single_leaf() if number == 0 else _empty_tree(number))
            continue
        encoding = encode(query.network, case.box, budget)
        for conjunction in range(len(case.conjunctions)):
            search = _Search(query, case, conjunction, encoding, budget, runtime, result)
            offered = [c.literals for c in related if (c.case, c.conjunction) == (number, conjunction)]
            kept += search.learn(offered)
            root = search.close({})
            result.checks += search.relaxation.checks
            if result.witness is not None:
                return result, kept
            result.cores += [Core(number, conjunction, tuple(sorted(c))) for c in _collect(root, result)]
            certifier = Certifier(query.network, case, number, conjunction, budget)
            result.trees.append(certifier.tree(root, list(encoding.unstable)))
            result.uncertified += certifier.uncertified
    return result, kept


def _empty_tree(case: int) -> Tree:
    one = single_leaf()
    columns = (one.node, one.index, one.threshold, one.left, one.right, one.refresh, one.clip)
    return Tree(*columns, case=case)


def _collect(plan: Branch | Leaf, result: SmtResult) -> set[frozenset[Literal]]:
    """The cores of the leaves; counts the leaves by origin."""
    if isinstance(plan, Branch):
        return _collect(plan.low, result) | _collect(plan.high, result)
    if plan.core is None:
        return set()
    if plan.reused:
        result.reused_leaves += 1
    else:
        result.residual_leaves += 1
    return {plan.core}


class _Search:
    """Depth-first search over phases for one conjunction of one case."""

    def __init__(
        self,
        query: Query,
        case: Case,
        conjunction: int,
        encoding: Encoding,
        budget: Budget,
        runtime: Runtime,
        result: SmtResult,
    ) -> None:
        self.query, self.case, self.encoding = query, case, encoding
        self.budget, self.runtime, self.result = budget, runtime, result
        conj = case.conjunctions[conjunction]
        rows = constraint_rows(encoding, conj.proved)
        self.relaxation = SmtRelaxation(encoding, rows, [bool(s) for s in conj.strict], budget)
        self.learned: dict[frozenset[Literal], bool] = {}  # core -> was it given

    def learn(self, offered: Sequence[tuple[Literal, ...]]) -> int:
        """Re-check given cores on this network; returns how many hold."""
        kept = 0
        decided, unstable = self.encoding.decided, self.encoding.unstable
        for literals in offered:
            if any(decided.get((k, j), sign) != sign for k, j, sign in literals):
                kept += 1  # vacuous: the phase does not occur on this box
                continue
            core = self.relaxation.refute([lit for lit in literals if (lit[0], lit[1]) in unstable])
            if core is not None:
                kept += 1
                self.learned.setdefault(core, True)
        return kept

    def close(self, path: dict[Key, int]) -> Branch | Leaf:
        """Close the region of the path, or find a witness (left in `result.witness`)."""
        self.result.regions += 1
        leaf = self._covered(path)
        if leaf is not None:
            return leaf
        core = self.relaxation.refute([(*key, sign) for key, sign in path.items()])
        if core is not None:
            self.learned.setdefault(core, False)
            return Leaf(core)
        point = None if self.relaxation.optimum is None else self.relaxation.optimum.point
        if self._attack(point):
            return Leaf(None)
        key = self._choose(path)
        if key is None:
            self.result.undecided += 1
            return Leaf(None)
        return self._split(path, key, point)

    def _split(self, path: dict[Key, int], key: Key, point: FloatArray | None) -> Branch | Leaf:
        first = 1 if point is None or self._value(key, point) >= 0 else -1
        sides: dict[int, Branch | Leaf] = {}
        for sign in (first, -first):
            plan = self.close({**path, key: sign})
            if self.result.witness is not None:
                return Leaf(None)
            if isinstance(plan, Leaf) and plan.core is not None and (*key, sign) not in plan.core:
                return plan  # the core lies on the parent's path: the other side is closed as well
            sides[sign] = plan
        return Branch(key, sides[-1], sides[1])

    def _covered(self, path: dict[Key, int]) -> Leaf | None:
        for core, given in self.learned.items():
            if all(path.get((k, j)) == sign for k, j, sign in core):
                return Leaf(core, given)
        return None

    def _choose(self, path: dict[Key, int]) -> Key | None:
        """The neuron to split: one that walks into given cores, else the one whose upper line costs most."""
        votes: dict[Key, float] = {}
        for core, given in self.learned.items():
            if given and all(path.get((k, j), sign) == sign for k, j, sign in core):
                rest = [(k, j) for k, j, _ in core if (k, j) not in path]
                for key in rest:
                    votes[key] = votes.get(key, 0.0) + 2.0 ** -len(rest)
        if votes:
            return max(sorted(votes), key=lambda k: votes[k])
        rest = [key for key in self.encoding.unstable if key not in path]
        return max(rest, key=self._cost, default=None)

    def _cost(self, key: Key) -> tuple[float, float]:
        """How much the relaxation of a neuron matters at the last LP: its multipliers, then its violation."""
        optimum, rows = self.relaxation.optimum, self.relaxation.chords[key]
        if optimum is None or optimum.point is None:
            return 0.0, 0.0
        weight = float(optimum.multipliers[rows].sum() * abs(self.relaxation.base[rows, -1]).max())
        z, gap = self._value(key, optimum.point), 0.0
        for a in self.encoding.unstable[key]:
            atom = self.encoding.atoms[a]
            gap += float(optimum.point[a]) - max(float(atom.left) * z, float(atom.right) * z)
        return weight, gap

    def _value(self, key: Key, point: FloatArray) -> float:
        """A neuron's argument at an LP point."""
        row = self.encoding.argument_of(key)
        return float(row.constant) + sum(float(c) * float(point[a]) for a, c in row.coeffs.items())

    def _attack(self, point: FloatArray | None) -> bool:
        """Offer the point, and the worst point with its phases, to the witness gate."""
        if point is None:
            return False
        n = self.query.network.input_size
        x = np.clip(point[:n], self.case.box.lo, self.case.box.hi)
        values = self.query.network.values(x[None])
        pattern = [(k, j, 1 if values[k][0, j] >= 0 else -1) for k, j in self.encoding.unstable]
        deepest = self.relaxation.deepest(pattern)
        points = x[None] if deepest is None else np.stack([deepest[:n], x])
        element = self.query.network.element_type
        self.result.witness = replay_witness(self.query, snap(self.case.box, points, element), self.runtime)
        return self.result.witness is not None
