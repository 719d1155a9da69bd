"""Turns a refuted splitting tree into a proof that `mucg4.check.walk` can re-establish.

z3 has shown that the leaves are infeasible; a proof needs multipliers. On each leaf the linear program
of the leaf's own relaxation, with the bounds a checker will derive there, yields the weights of the
unsafe constraints, the betas of the literals and the lower slopes. A float evaluation of the backward bound
with exactly these numbers decides whether they will do; if not, the leaf is split further until all phases
are chosen, where the relaxation is exact. Nothing here is evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace
from typing import NamedTuple

import numpy as np

from mucg4.check.enclose import Enclosure, Frame
from mucg4.check.ties import ExactNetwork, refutes
from mucg4.check.ties import Literal as Held
from mucg4.limits.budget import Budget
from mucg4.model.network import Network
from mucg4.model.proof import Alpha, Refutation, Tree
from mucg4.model.query import Case, Conjunction
from mucg4.ops.arrays import FloatArray, IntArray
from mucg4.ops.base import Affine
from mucg4.ops.piecewise import TwoPiece
from mucg4.program import Optimum, least_violation, simple_multipliers
from mucg4.records import dataclass

RAISED = 1e-4  # how much the offset of a strict constraint is raised, relative to the offsets; not measured
CLOSE = 1e-6  # share of the terms that a bound may be below zero for a tie to be sought; not measured
# a margin below this share of the terms it is made of might not survive a checker's rounding; not measured
SAFE_SHARE = 1e-9


@dataclass(frozen=True)
class Branch:
    """Inner node of a splitting tree: `low` is the side z <= 0 of the neuron `key`, `high` the other one."""

    key: tuple[int, int]
    low: Branch | Leaf
    high: Branch | Leaf


@dataclass(frozen=True)
class Leaf:
    """`core`: phase literals that z3 refuted together; None when the region is open. `reused`: given, not found."""

    core: frozenset[tuple[int, int, int]] | None
    reused: bool = False


class Literal(NamedTuple):
    """A phase on a path: the pre-activation, its sign, and the tree node that introduced it."""

    key: tuple[int, int]
    sign: int
    at: int


@dataclass(eq=False)
class _Region:
    """One tree node that is being certified."""

    lo: FloatArray
    hi: FloatArray
    low: FloatArray
    up: FloatArray
    path: tuple[Literal, ...] = ()


@dataclass(eq=False)
class Certifier:
    """Builds the tree of one conjunction; `uncertified` counts leaves for which no multipliers were found."""

    network: Network
    enclosure: Enclosure
    case: Case
    case_number: int
    conjunction: int
    budget: Budget
    uncertified: int = 0
    nodes: list[tuple[int, int, int, int]] = field(default_factory=list)  # node, index, left, right
    refutations: list[Refutation] = field(default_factory=list)

    def tree(self, root: Branch | Leaf, keys: list[tuple[int, int]]) -> Tree:
        """The proof tree; `keys` are the neurons whose phases make the network affine on the box."""
        box, width = self.case.box, self.enclosure.width
        far = np.full((1, width), np.inf)
        start = _Region(box.lo[None].copy(), box.hi[None].copy(), -far, far.copy())
        self.nodes = [(-1, -1, -1, -1)]
        stack: list[tuple[int, _Region, Branch | Leaf]] = [(0, start, root)]
        with np.errstate(all="ignore"):
            while stack:
                self.budget.poll()
                at, region, plan = stack.pop()
                key = self._visit(at, region, plan, keys)
                if key is not None:
                    left = len(self.nodes)
                    self.nodes += [(-1, -1, -1, -1)] * 2
                    self.nodes[at] = (*key, left, left + 1)
                    low, high = (plan.low, plan.high) if isinstance(plan, Branch) else (plan, plan)
                    stack.append((left, self._child(region, key, -1, left), low))
                    stack.append((left + 1, self._child(region, key, 1, left + 1), high))
        columns = [np.array(c, dtype=np.int32) for c in zip(*self.nodes, strict=True)]
        node, index, first, second = columns
        n = len(node)
        flags = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
        parts = (node, index, np.zeros(n), first, second, *flags, tuple(self.refutations))
        return Tree(*parts, case=self.case_number, conjunctions=(self.conjunction,))

    def _visit(
        self, at: int, region: _Region, plan: Branch | Leaf, keys: list[tuple[int, int]]
    ) -> tuple[int, int] | None:
        """Close the tree node, or name the neuron to split."""
        box, yes, root = (region.lo, region.hi), np.array([True]), np.array([at == 0])
        frame, empty = self.enclosure.sweep(box, region.low, region.up, yes, root)
        if empty[0]:
            return None
        if isinstance(plan, Branch):  # the search could not close it
            return plan.key
        refutation, blame = self._refute(at, region, frame)
        if refutation is not None:
            if plan.core is not None:
                held = (lit.at for lit in region.path if (*lit.key, lit.sign) in plan.core)
                refutation = replace(refutation, core=tuple(held))
            self.refutations.append(refutation)
            return None
        taken = {lit.key for lit in region.path}
        rest = [k for k in keys if k not in taken]
        if not rest or plan.core is None:
            self.uncertified += 1
            return None
        return max(rest, key=lambda k: blame.get(k, 0.0))

    def _child(self, region: _Region, key: tuple[int, int], sign: int, at: int) -> _Region:
        path = (*region.path, Literal(key, sign, at))
        child = _Region(region.lo.copy(), region.hi.copy(), region.low.copy(), region.up.copy(), path)
        node, index = key
        lower, upper = (child.lo, child.hi) if node == 0 else (child.low, child.up)
        column = index if node == 0 else self.enclosure.slot[node].start + index
        if sign > 0:
            lower[0, column] = max(lower[0, column], 0.0)
        else:
            upper[0, column] = min(upper[0, column], 0.0)
        return child

    # ---- one refutation ------------------------------------------------------------------------

    def _refute(self, at: int, region: _Region, frame: Frame) -> tuple[Refutation | None, dict[tuple[int, int], float]]:
        """Multipliers from the LP and what they prove; also how much each open neuron costs the bound."""
        conj = self.case.conjunctions[self.conjunction]
        system = _System(self.network, frame, conj, region.path)
        optimum = system.solve(system.offset)
        if optimum is None:
            return None, {}
        y = optimum.multipliers / max(optimum.multipliers.max(initial=0.0), 1e-300)
        blame: dict[tuple[int, int], float] = {}
        for p, atom in enumerate(system.atoms):
            key = (atom.source, atom.neuron)
            blame[key] = blame.get(key, 0.0) + float(y[system.upper[p]] * atom.offset)
        m, path = len(conj), region.path
        weights, beta = y[:m], y[m : m + len(path)]
        alpha = system.slopes(y)
        margin, size = _evaluate(self.network, frame, conj, weights, path, beta, alpha)
        if not margin > SAFE_SHARE * size:
            exact = self._by_equality(region, frame, system, y) if margin > -CLOSE * size else None
            if exact is None:
                return None, blame
            values, alpha = exact
            weights, beta, margin = values[:m], values[m:], 0.0
        literals = tuple((lit.at, float(b)) for lit, b in zip(path, beta, strict=True) if b > 0)
        refutation = Refutation(
            at=at,
            conjunction=self.conjunction,
            weights=tuple(weights.tolist()),
            alpha=tuple(_stored(k, v) for k, v in alpha.items() if np.any(v >= 0)),
            beta=literals,
            margin=float(margin),
        )
        return refutation, blame

    def _by_equality(
        self, region: _Region, frame: Frame, system: _System, y: FloatArray
    ) -> tuple[FloatArray, dict[int, IntArray]] | None:
        """Multipliers of constraints and literals that refute the region exactly, and lower slopes; None if not found.

        Judged by the checker's own rule for refutations by a hair, `mucg4.check.ties`.
        """
        network, conj = self.enclosure.rational, self.case.conjunctions[self.conjunction]
        if network is None:
            return None
        strict = np.flatnonzero(conj.strict)
        for offset in (None, system.offset.copy()) if len(strict) else (None,):
            if offset is not None:  # of several best multipliers those with a strict constraint are wanted
                offset[strict] += RAISED * (1.0 + float(abs(system.offset[: len(conj)]).max()))
                optimum = system.solve(offset)
                if optimum is None:
                    return None
                y = optimum.multipliers
            alpha = system.slopes(y)
            found = self._exact_multipliers(network, region, frame, y[: len(conj) + len(region.path)], alpha)
            if found is not None:
                return found, alpha
        return None

    def _exact_multipliers(
        self, network: ExactNetwork, region: _Region, frame: Frame, multipliers: FloatArray, alpha: dict[int, IntArray]
    ) -> FloatArray | None:
        """Multipliers near those given that refute the region with lower slopes `alpha`."""
        conj = self.case.conjunctions[self.conjunction]
        bounds = {k: (frame.lower[k][0], frame.upper[k][0]) for k in self.enclosure.slot}
        slopes = {}
        for k, lines in frame.lines.items():
            level = alpha.get(self.network.nodes[k].inputs[0], np.full(lines.low.shape[1], -1))
            op = self.network.nodes[k].op
            assert isinstance(op, TwoPiece)
            own = np.clip(op.left + level / 255 * (op.right - op.left), op.left, op.right)
            slopes[k] = np.where((level >= 0) & lines.free[0], own, lines.low[0])
        box = frame.lower[0][0], frame.upper[0][0]
        for values in simple_multipliers(multipliers):
            self.budget.poll(network.work)
            weights, beta = values[: len(conj)].tolist(), values[len(conj) :].tolist()
            literals = [Held(*lit.key, -lit.sign * b, 0.0) for lit, b in zip(region.path, beta, strict=True) if b > 0]
            if refutes(conj, weights, network.value(conj, weights, box, bounds, slopes, literals)):
                return values
        return None


class _Open(NamedTuple):
    """An elementwise output whose argument has an open sign: nonlinear node, its source, neuron, chord."""

    node: int
    source: int
    neuron: int
    left: float
    right: float
    slope: float
    offset: float


def _open_neurons(network: Network, frame: Frame) -> Iterator[_Open]:
    for k in network.nonlinear:
        op, source = network.nodes[k].op, network.nodes[k].inputs[0]
        assert isinstance(op, TwoPiece)
        lo, hi = frame.lower[source][0], frame.upper[source][0]
        for j in np.flatnonzero((lo < 0) & (hi > 0)).tolist():
            slope = op.left + (op.right - op.left) * hi[j] / (hi[j] - lo[j])
            yield _Open(k, source, j, op.left, op.right, slope, (op.left - slope) * lo[j])


class _System:
    """`matrix v + offset <= 0` over inputs and open neurons' outputs: constraints, literals, then three rows
    per open neuron (both lower lines, upper line). Floats; `upper` are the positions of the upper lines."""

    def __init__(self, network: Network, frame: Frame, conj: Conjunction, path: tuple[Literal, ...]) -> None:
        self.atoms = list(_open_neurons(network, frame))
        self.sizes = [node.size for node in network.nodes]
        n, count = network.input_size, network.input_size + len(self.atoms)
        values = self._values(network, frame, count)
        rows = [np.concatenate([v, c[None]]).T for v, c in values]  # (size, atoms + 1)
        table = [conj.x_coeffs @ rows[0] + conj.y_coeffs @ rows[-1]]
        table[0][:, -1] += conj.constants
        table += [-lit.sign * rows[lit.key[0]][lit.key[1]][None] for lit in path]
        for p, atom in enumerate(self.atoms):
            z, h = rows[atom.source][atom.neuron], np.zeros(count + 1)
            h[n + p] = 1.0
            upper = h - atom.slope * z
            upper[-1] -= atom.offset
            table.append(np.stack([atom.left * z - h, atom.right * z - h, upper]))
        whole = np.concatenate(table)
        self.matrix, self.offset = whole[:, :-1], whole[:, -1]
        self.first = len(conj) + len(path)
        self.upper = self.first + 2 + 3 * np.arange(len(self.atoms))
        free = np.full(len(self.atoms), np.inf)
        self.low, self.high = np.r_[frame.lower[0][0], -free], np.r_[frame.upper[0][0], free]

    def solve(self, offset: FloatArray) -> Optimum | None:
        """The least violation of all rows with the given offsets."""
        soft = np.ones(len(offset), dtype=bool)
        return least_violation(self.matrix, offset, soft, self.low, self.high, accurate=True)

    def _values(self, network: Network, frame: Frame, count: int) -> list[tuple[FloatArray, FloatArray]]:
        """Per node the coefficients (atoms, size) and constants (size,)."""
        n = network.input_size
        start = np.zeros((count, n))
        start[:n] = np.eye(n)
        values: list[tuple[FloatArray, FloatArray]] = [(start, np.zeros(n))]
        for k, node in enumerate(network.nodes[1:], 1):
            op = node.op
            if isinstance(op, Affine):
                constant = op.apply([values[i][1][None] for i in node.inputs])[0]
                values.append((op.linear([values[i][0] for i in node.inputs]), constant))
                continue
            assert isinstance(op, TwoPiece)
            source = node.inputs[0]
            lo, hi = frame.lower[source][0], frame.upper[source][0]
            slope = np.where((lo < 0) & (hi > 0), 0.0, np.where(lo >= 0, op.right, op.left))
            v, c = values[source]
            v, c = v * slope, c * slope
            for p, atom in enumerate(self.atoms):
                if atom.node == k:
                    v[n + p, atom.neuron] = 1.0
            values.append((v, c))
        return values

    def slopes(self, y: FloatArray) -> dict[int, IntArray]:
        """Per pre-activation node the lower slopes that the multipliers imply, in 1/255 steps; -1 where none."""
        sums: dict[int, FloatArray] = {}
        for p, atom in enumerate(self.atoms):
            both = sums.setdefault(atom.source, np.zeros((2, self.sizes[atom.source])))
            both[:, atom.neuron] += y[self.first + 3 * p : self.first + 3 * p + 2]  # left and right lower line
        out: dict[int, IntArray] = {}
        for k, (left, right) in sums.items():
            total = left + right
            share = np.round(255 * right / np.where(total > 0, total, 1.0))
            out[k] = np.where(total > 0, share, -1).astype(np.int64)
        return out


def _stored(node: int, level: IntArray) -> Alpha:
    index = np.flatnonzero(level >= 0)
    return Alpha(node, index.astype(np.int32), level[index].astype(np.uint8))


def _evaluate(
    network: Network,
    frame: Frame,
    conj: Conjunction,
    weights: FloatArray,
    path: tuple[Literal, ...],
    beta: FloatArray,
    alpha: dict[int, IntArray],
) -> tuple[float, float]:
    """The backward bound of the functional with these multipliers, in floats, and the size of its terms."""
    a: list[FloatArray] = [np.zeros(node.size) for node in network.nodes]
    a[-1] = a[-1] + weights @ conj.y_coeffs
    a[0] = a[0] + weights @ conj.x_coeffs
    for lit, b in zip(path, beta, strict=True):
        a[lit.key[0]][lit.key[1]] -= lit.sign * b
    total = float(weights @ conj.constants)
    size = float(weights @ abs(conj.constants))
    for k in range(len(a) - 1, 0, -1):
        node, row = network.nodes[k], a[k]
        size += float(abs(row) @ frame.magnitude[k][0])
        if isinstance(node.op, Affine):
            bias = node.op.bias()
            total += 0.0 if bias is None else float(row @ bias)
            for i, part in zip(node.inputs, node.op.adjoint(row[None]), strict=True):
                a[i] = a[i] + part[0]
            continue
        assert isinstance(node.op, TwoPiece)
        lo, hi = frame.lower[node.inputs[0]][0], frame.upper[node.inputs[0]][0]
        slope, offset = _lines(node.op, lo, hi, row, alpha.get(node.inputs[0]))
        total += float(row @ offset)
        a[node.inputs[0]] = a[node.inputs[0]] + row * slope
    ends = np.where(a[0] > 0, frame.lower[0][0], frame.upper[0][0])
    size += float(abs(a[0]) @ frame.magnitude[0][0])
    return total + float(a[0] @ ends), size


def _lines(
    op: TwoPiece, lo: FloatArray, hi: FloatArray, row: FloatArray, alpha: IntArray | None
) -> tuple[FloatArray, FloatArray]:
    """Slopes and offsets that bound `row . f(z)` from below on [lo, hi]."""
    level = op.default_alpha(lo, hi)
    if alpha is not None:
        level = np.where(alpha >= 0, alpha / 255, level)
    unstable = (lo < 0) & (hi > 0)
    width = np.where(unstable, hi - lo, 1.0)
    chord = op.left + (op.right - op.left) * hi / width
    slope = np.where(row >= 0, op.left + level * (op.right - op.left), chord)
    slope = np.where(unstable, slope, np.where(lo >= 0, op.right, op.left))
    return slope, np.where(unstable & (row < 0), (op.left - chord) * lo, 0.0)
