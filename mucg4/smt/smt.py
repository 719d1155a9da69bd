"""The SMT engine: the seed's method (MUC-G4, arXiv 2506.04268) in exact arithmetic, for small networks.

What was published names the ingredients only: both networks as formulas, changes classified, minimal unsat
cores of the original's refutation, cores re-checked on the variant as a warm start, and a residual phase that
solves what no surviving core covers. The rest is our reading of it; the whole run stands in `mucg4.smt.answer`.

Search. A region is a set of phase literals (neuron active or inactive). It is closed when its linear relaxation, on
ranges bounded under these literals, is refuted in exact arithmetic (`mucg4.smt.relax`); the core of that, made
irreducible by deletion, is learned and closes every later region that contains it. Otherwise an open neuron is split,
the side of the relaxation's own point first. A core that does not mention the last split also closes the parent, so the
other side is never visited. A region with all phases chosen is decided exactly by z3, so the search is complete
for the real-number question on the hull of the box; it ends because each split fixes one more phase.

Reuse. Cores of a related query's proof, on this network's neurons, are re-checked by one refutation each (a
literal that is constant here is dropped or makes the core vacuous), and survivors are learned from the start. Regions
above given cores, surviving or not, are split towards them without asking; what no core covers is the residual.

Answers. `sat` needs onnxruntime's confirmation like everywhere. `unsat` comes with a proof for the independent
checker, whose leaves state their cores; see `mucg4.smt.certify`. Size: at most 60 neurons of open phase per box after
bounding (the checker's own bounds), however many there are, and `MAX_WEIGHTS` weights. Measured on one core: a
64-24-24-10 network with 26 open neurons and nine conjunctions takes 7 s, its variants 2 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

import numpy as np

from mucg4.check.enclose import Enclosure
from mucg4.errors import BudgetError
from mucg4.gate.runtime import Runtime
from mucg4.gate.runtimes import runtime_of
from mucg4.gate.witness import replay_witness, snap
from mucg4.limits.budget import Budget
from mucg4.model.proof import Tree, single_leaf
from mucg4.model.query import Case, Query, Witness
from mucg4.ops.arrays import FloatArray
from mucg4.records import dataclass
from mucg4.smt.certify import Branch, Certifier, Leaf
from mucg4.smt.encode import Encoding, Literal, constraint_rows, enclosure_of, encode
from mucg4.smt.relax import SmtRelaxation

Key = tuple[int, int]

SAMPLE = 32  # given cores that are tried before the others may be left out; not measured
LEAST_SHARE = 0.2  # of those tried must hold; not measured


@dataclass(frozen=True)
class Core:
    """Phase literals that together leave no unsafe point: `(network node, neuron, +1 active or -1 inactive)`."""

    case: int
    conjunction: int
    literals: tuple[Literal, ...]
    leaves: int = 1  # of a stored proof that rest on it


@dataclass
class SmtResult:
    """Outcome of `refute`.

    `witness` is set for sat. Otherwise, unsat is established in exact arithmetic when `undecided == 0`; `trees` are its
    proof when also `uncertified == 0`. `cores` are the cores that closed the leaves. Of the cores that were `offered`,
    `held` still hold here, and with them `held_leaves` of the leaves that they closed. The `regions` are those that no
    core covered, so that `offered + regions` sets of literals were put to the relaxation; z3 was asked `exact` times.
    """

    witness: Witness | None = None
    trees: list[Tree] = field(default_factory=list)
    cores: list[Core] = field(default_factory=list)
    undecided: int = 0  # regions with a real-number witness that onnxruntime does not confirm
    uncertified: int = 0  # leaves that were closed too tightly for a proof in floats
    exact: int = 0
    offered: int = 0
    held: int = 0
    held_leaves: int = 0
    regions: int = 0
    reused_leaves: int = 0
    residual_leaves: int = 0


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
    return concluded(refute(query, budget, related or (), runtime))


def concluded(result: SmtResult) -> Witness | list[Tree]:
    """The witness or the proof; raises `BudgetError` where there is neither."""
    if result.witness is not None:
        return result.witness
    if result.undecided:
        raise BudgetError("z3 found a real-number witness that onnxruntime does not confirm")
    if result.uncertified:
        raise BudgetError(f"unsat in exact arithmetic, but {result.uncertified} leaves are too tight for a proof")
    return result.trees


def refute(
    query: Query,
    budget: Budget | None = None,
    related: Sequence[Core] = (),
    runtime: Runtime | None = None,
    result: SmtResult | None = None,
) -> SmtResult:
    """As `solve_smt`, with the cores and counts of the run; raises for the budget and for size only.

    `result` is filled when given, so that its counts are there also when this raises.
    """
    result, budget = SmtResult() if result is None else result, budget or Budget()
    runtime = runtime_of(query) if runtime is None else runtime
    enclosure = enclosure_of(query.network)
    for number, case in enumerate(query.cases):
        if case.box.empty or not case.conjunctions:
            result.trees.append(single_leaf() if number == 0 else _empty_tree(number))
            continue
        encoding = encode(query.network, case.box, budget, enclosure)
        for conjunction in range(len(case.conjunctions)):
            search = _Search(query, case, conjunction, encoding, enclosure, budget, runtime, result)
            search.learn([c for c in related if (c.case, c.conjunction) == (number, conjunction)])
            root = search.close({})
            result.exact += search.relaxation.exact
            if result.witness is not None:
                return result
            result.cores += [Core(number, conjunction, tuple(sorted(c))) for c in _collect(root, result)]
            certifier = Certifier(query.network, enclosure, case, number, conjunction, budget)
            result.trees.append(certifier.tree(root, list(encoding.unstable)))
            result.uncertified += certifier.uncertified
    return result


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
        enclosure: Enclosure,
        budget: Budget,
        runtime: Runtime,
        result: SmtResult,
    ) -> None:
        self.query, self.case, self.encoding = query, case, encoding
        self.budget, self.runtime, self.result = budget, runtime, result
        conj = case.conjunctions[conjunction]
        rows = constraint_rows(encoding, conj.proved)
        self.relaxation = SmtRelaxation(encoding, enclosure, rows, [bool(s) for s in conj.strict], budget)
        self.learned: dict[frozenset[Literal], bool] = {}  # core -> was it given
        self.hints: list[frozenset[Literal]] = []  # cores that were given, whether they hold or not

    def learn(self, offered: Sequence[Core]) -> None:
        """Re-check given cores on this network, each by one question, and learn those that hold.

        Where hardly any holds, the others are not asked: then they cost more than they save.
        """
        decided, unstable, result = self.encoding.decided, self.encoding.unstable, self.result
        for tried, given in enumerate(offered):
            if tried >= SAMPLE and len(self.learned) < LEAST_SHARE * tried:
                self.hints = [core for core in self.hints if core in self.learned]
                return
            result.offered += 1
            if any(decided.get((k, j), sign) != sign for k, j, sign in given.literals):
                core = frozenset(given.literals)  # vacuous: the phase does not occur on this box
            else:
                literals = [lit for lit in given.literals if lit[:2] in unstable]
                self.hints.append(frozenset(literals))
                found = self.relaxation.refute(literals, minimise=False)
                if found is None:
                    continue
                core = found
            result.held += 1
            result.held_leaves += given.leaves
            self.learned.setdefault(core, True)

    def close(self, path: dict[Key, int]) -> Branch | Leaf:
        """Close the region of the path, or find a witness (left in `result.witness`).

        Where given cores lie below, the region is split towards them without a question.
        """
        self.budget.poll()
        leaf = self._covered(path)
        if leaf is not None:
            return leaf
        key = self._voted(path)
        if key is not None:
            return self._split(path, key, None)
        self.result.regions += 1
        core = self.relaxation.refute([(*key, sign) for key, sign in path.items()])
        if core is not None:
            self.learned.setdefault(core, False)
            return Leaf(core)
        point = None if self.relaxation.optimum is None else self.relaxation.optimum.point
        if self._attack(point):
            return Leaf(None)
        rest = [key for key in self.encoding.unstable if key not in path]
        if not rest:
            self.result.undecided += 1
            return Leaf(None)
        return self._split(path, max(rest, key=self._cost), point)

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

    def _voted(self, path: dict[Key, int]) -> Key | None:
        """The neuron that most given cores below this region ask for, short ones louder; None without such cores."""
        votes: dict[Key, float] = {}
        for core in self.hints:
            if all(path.get((k, j), sign) == sign for k, j, sign in core):
                rest = [(k, j) for k, j, _ in core if (k, j) not in path]
                for key in rest:
                    votes[key] = votes.get(key, 0.0) + 2.0 ** -len(rest)
        return max(sorted(votes), key=lambda k: votes[k]) if votes else None

    def _cost(self, key: Key) -> tuple[float, float]:
        """How much the relaxation of a neuron matters at the last LP: its multipliers, then its violation."""
        relaxation, places = self.relaxation, [a - self.relaxation.inputs for a in self.encoding.unstable[key]]
        optimum, lines = relaxation.optimum, relaxation.lines
        if optimum is None or optimum.point is None or lines is None:
            return 0.0, 0.0
        own = optimum.multipliers[[relaxation.upper_row(p) for p in places]] * lines.offset[places]
        z = relaxation.arguments(optimum.point)[places]
        gap = optimum.point[self.encoding.unstable[key]] - np.maximum(
            relaxation.left[places] * z, relaxation.right[places] * z
        )
        return float(own.sum()), float(gap.sum())

    def _value(self, key: Key, point: FloatArray) -> float:
        """A neuron's argument at an LP point."""
        return float(self.relaxation.arguments(point)[self.encoding.unstable[key][0] - self.relaxation.inputs])

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
