"""The independent checker: accepts a proof only when it has re-established every leaf itself.

What is checked. (1) The proof names this network and this property (content hashes), and its trees
answer for every conjunction of every case that is not empty. (2) Every tree is one: walking from the
root, the children of an inner node are the halves `<= threshold` and `>= threshold` of its region, which
cover it whatever the threshold, so the leaves cover the case's box (the hull `Box.lo`, `Box.hi`). (3) For
every leaf and every conjunction the tree answers for there is a refutation at the leaf or an ancestor that
this module has evaluated anew and found positive, or the region is empty.

Why a refutation holds. On the region of `at` every input of the unsafe set would satisfy `g_i <= 0`,
so `F = sum w_i g_i <= 0` with `w_i >= 0`. A literal on the path gives `z - t <= 0` (left child) or
`t - z <= 0` (right child), and `F >= F + beta * (that)` for `beta >= 0`. A backward pass bounds the right-hand
side from below over the region's box; a positive bound contradicts `F <= 0`. Slopes (alpha), weights and
betas may be anything legal: they decide how good the bound is, never whether it is one.

Why the regions shrink rightly. Pre-activation bounds come from the parent's region, the node's literal,
and own interval and backward bounds, each valid on the whole region. A clip uses `g_i <= 0` of the only
conjunction that is still open, hence the children's boxes speak of that conjunction alone; all others
are refuted for the whole subtree already. So does a tightening: on a point of the region that is unsafe
for that conjunction `side * v >= side * v + F`, F as above, and the right-hand side is bounded by one backward
pass with the bounds so far. Where another conjunction is open too the bounds are left alone.

Cuts. For a two-piece f of z = w . v + b over its carriers' values v, any slopes p give `f(z) <= p . v + q` when q is at
least `left z - p . v` and `right z - p . v` on the carriers' hulls; two rows bound these. At the root, where
the hulls are taken, they hold like the bounds there: on the points that are unsafe for the tree's only conjunction. So
`F >= F + multiplier * (f(z) - p . v - q)`, a further term of the functionals above.

Order: a stack of batches of independent regions, children inherit box, bounds and open conjunctions;
memory is bounded by the batch size times the depth. A region with no open conjunction is not entered:
its subtree is closed. Each tree node is visited at most once, so the walk ends.

Bounds come from `mucg4.check.enclose` (rounding: see there), operator lines from `mucg4.check.curves`;
these three modules are the whole checker and import nothing of the search's numerics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import isfinite

import numpy as np

from mucg4.budget import Budget
from mucg4.check.curves import Lines
from mucg4.check.deviation import Deviation
from mucg4.check.enclose import CELLS, Enclosure, Frame, Rows, fractions_of, gamma, norms
from mucg4.errors import BudgetError, ProofError
from mucg4.model.network import Network
from mucg4.model.query import Case, Conjunction, Query
from mucg4.ops.base import Array
from mucg4.ops.piecewise import TwoPiece
from mucg4.proof.proof import Alpha, Cuts, Proof, Refutation, Tightening, Tree

HALVINGS = 40  # of a leaf's region, where the deviation asks for it,
PIECES = 256  # and how many halves there may be, besides half as many as leaves, in one unit of effort
BATCH = 512  # most regions handled together
REGION_CELLS = 2**22  # most numbers in one array over a batch's regions and neurons


@dataclass(frozen=True)
class CheckReport:
    """Outcome of `check`; counts are leaves over all trees, `checked + failed + skipped == leaves`.

    `checked` leaves were re-established, `failed` ones were examined in vain, `skipped` ones not examined
    (malformed proof, spent budget). `accepted` only when the last two are 0 and nothing else is wrong;
    otherwise `reason` is one line.
    """

    accepted: bool
    checked: int
    failed: int
    skipped: int
    reason: str = ""
    leaves: int = 0


def check(
    proof: Proof,
    query: Query,
    budget: Budget | None = None,
    exact: bool = False,
    deviation: Deviation | None = None,
    effort: int = 1,
) -> CheckReport:
    """Re-establish the proof for the query, believing nothing in it; see the module text.

    With a `deviation` the proof has to hold for executions in the model's own precision as well: all constraints are
    loosened by it, region by region, and leaves that do not hold then are halved, more often with more `effort`.

    `exact` evaluates in rational arithmetic (small piecewise linear networks only). Never raises for a
    bad proof, a network it has no rules for, or a spent budget: the report says so.
    """
    leaves, checked, failed, reason = proof.leaves, 0, 0, ""
    try:
        _identify(proof, query)
        if deviation is not None and deviation.reason:
            raise ProofError(deviation.reason)
        network = query.network
        plans = [_plan(tree, query.cases[tree.case], network) for tree in proof.trees]
        with np.errstate(all="ignore"):  # overflow and nan close nothing
            enclosure = Enclosure(network, exact)
            roots: dict[int, tuple[Array, Array]] = {}
            for number, plan in enumerate(plans):
                walk = _Walk(plan, enclosure, roots, deviation, effort)
                try:
                    walk.run(budget or Budget())
                finally:
                    checked, failed = checked + walk.checked, failed + walk.failed
                if walk.reason and not reason:
                    reason = f"tree {number}: {walk.reason}"
    except (ProofError, BudgetError) as error:
        reason = str(error)
    skipped = leaves - checked - failed
    accepted = not reason and failed == 0 and skipped == 0
    return CheckReport(accepted, checked, failed, skipped, reason, leaves)


def _identify(proof: Proof, query: Query) -> None:
    if len(query.networks) != 1:
        raise ProofError(f"the query has {len(query.networks)} networks; proofs of one network can be checked so far")
    if proof.network != query.network.fingerprint:
        raise ProofError("the proof is for another network")
    if proof.property != query.property_hash:
        raise ProofError("the proof is for another property")
    missing = {
        (k, q) for k, case in enumerate(query.cases) if not case.box.empty for q in range(len(case.conjunctions))
    }
    for tree in proof.trees:
        if not 0 <= tree.case < len(query.cases):
            raise ProofError(f"a tree is for case {tree.case}, the query has {len(query.cases)}")
        missing -= {(tree.case, q) for q in _answers(tree, query.cases[tree.case])}
    if missing:
        raise ProofError(f"no tree answers for conjunction {min(missing)[1]} of case {min(missing)[0]}")


def _answers(tree: Tree, case: Case) -> tuple[int, ...]:
    """The conjunctions a tree answers for."""
    every = tuple(range(len(case.conjunctions)))
    if tree.conjunctions is None:
        return every
    if not set(tree.conjunctions) <= set(every):
        raise ProofError(f"a tree answers for conjunctions {tree.conjunctions} of {len(every)}")
    return tuple(tree.conjunctions)


@dataclass(frozen=True, eq=False)
class _Plan:
    """A validated tree: `first, last (N,)` preorder interval of each subtree, `leaves (N,)` in it."""

    tree: Tree
    case: Case
    parent: Array
    first: Array
    last: Array
    leaves: Array
    at: dict[int, list[Refutation]]
    tightenings: dict[int, list[Tightening]]
    cuts: int  # how many the tree has


def _plan(tree: Tree, case: Case, network: Network) -> _Plan:
    """Validate everything that needs no arithmetic; raises `ProofError`."""
    n = len(tree.node)
    left, right = tree.left.tolist(), tree.right.tolist()
    parent, leaves, size = [-1] * n, [1] * n, [1] * n
    for k in range(n):
        if (left[k] < 0) != (right[k] < 0):
            raise ProofError(f"tree node {k} has one child")
        for child in (left[k], right[k]) if left[k] >= 0 else ():
            if not k < child < n or parent[child] >= 0 or left[k] == right[k]:
                raise ProofError(f"tree node {k} has a child that is not its own")
            parent[child] = k
    for k in range(n - 1, -1, -1):
        if left[k] >= 0:
            leaves[k] = leaves[left[k]] + leaves[right[k]]
            size[k] = 1 + size[left[k]] + size[right[k]]
    if size[0] != n:
        raise ProofError("the tree has nodes outside it")
    first = [0] * n
    for k in range(n):
        if left[k] >= 0:
            first[left[k]], first[right[k]] = first[k] + 1, first[k] + 1 + size[left[k]]
    _check_literals(tree, network)
    order = np.array(first)
    cuts = _check_cuts(tree, network)
    if cuts and len(_answers(tree, case)) != 1:
        raise ProofError("a tree with cuts answers for several conjunctions")
    at: dict[int, list[Refutation]] = defaultdict(list)
    tightenings: dict[int, list[Tightening]] = defaultdict(list)
    plan = _Plan(tree, case, np.array(parent), order, order + size, np.array(leaves), at, tightenings, cuts)
    for r in tree.refutations:
        _check_refutation(r, plan, network)
        plan.at[r.at].append(r)
    for t in tree.tightenings:
        _check_tightening(t, plan, network)
        plan.tightenings[t.at].append(t)
    return plan


def _check_cuts(tree: Tree, network: Network) -> int:
    """Validate the tree's cuts and return how many there are."""
    before, count = 0, 0
    for c in tree.cuts:
        op = network.nodes[c.node].op if 0 <= c.node < len(network.nodes) else None
        if not isinstance(op, TwoPiece) or np.any(c.index < 0) or np.any(c.index >= network.nodes[c.node].size):
            raise ProofError("a cut bounds no neuron with two pieces")
        for s in c.shares:
            if s.node != 0 and s.node not in network.nonlinear:
                raise ProofError("a cut has shares of a node that is no carrier")
            if s.value.shape != (len(c.index), len(s.index)) or np.any(s.value < 0) or np.any(s.value > 255):
                raise ProofError("a cut has shares that are out of range, or not one per row and component")
            if np.any(s.index < 0) or np.any(s.index >= network.nodes[s.node].size):
                raise ProofError("a cut has a share of a component that does not exist")
        if c.after < before:
            raise ProofError("the cuts are not in order")
        before, count = c.after, count + len(c.index)
    return count


def _check_multipliers(where: str, cuts: Array, values: Array, known: int) -> None:
    """Validate multipliers `(..., C)` of the cuts numbered `cuts (C,)`, of which the first `known` exist."""
    if cuts.ndim != 1 or np.any(cuts < 0) or np.any(cuts >= known):
        raise ProofError(f"{where} uses a cut that does not exist there")
    if values.shape[-1:] != cuts.shape or not np.all(np.isfinite(values) & (values >= 0)):
        raise ProofError(f"{where} has multipliers of cuts that are negative, not finite, or not one per cut")


def _check_literals(tree: Tree, network: Network) -> None:
    inner = np.flatnonzero(tree.left >= 0)
    sizes = np.full(len(network.nodes), -1)
    for k in (0, *network.pre_activations):
        sizes[k] = network.nodes[k].size
    node, index = tree.node[inner], tree.index[inner]
    if np.any(node < 0) or np.any(node >= len(sizes)) or np.any(index < 0) or np.any(index >= sizes[node]):
        raise ProofError("a literal names no input and no pre-activation of the network")
    if not np.all(np.isfinite(tree.threshold[inner])):
        raise ProofError("a literal's threshold is not finite")


def _check_refutation(r: Refutation, plan: _Plan, network: Network) -> None:
    where = f"refutation at tree node {r.at}"
    n, conjunctions = len(plan.parent), plan.case.conjunctions
    if not 0 <= r.at < n or not 0 <= r.conjunction < len(conjunctions):
        raise ProofError(f"{where} names no tree node or no conjunction")
    if len(r.weights) != len(conjunctions[r.conjunction]):
        raise ProofError(f"{where} has {len(r.weights)} weights")
    if not all(isfinite(w) and w >= 0 for w in r.weights):
        raise ProofError(f"{where} has a weight that is negative or not finite")
    for literal, beta in r.beta:
        if not (isfinite(beta) and beta >= 0):
            raise ProofError(f"{where} has a multiplier that is negative or not finite")
        if not 0 < literal < n or not plan.first[literal] <= plan.first[r.at] < plan.last[literal]:
            raise ProofError(f"{where} uses a literal that is not on its path")
    if r.cuts is not None:
        _check_multipliers(where, *r.cuts, plan.cuts)
    for a in r.alpha:
        if a.node not in network.pre_activations or len(a.index) != len(a.value):
            raise ProofError(f"{where} has slopes for a node that has none")
        index, value = np.asarray(a.index), np.asarray(a.value)
        if np.any(index < 0) or np.any(index >= network.nodes[a.node].size) or np.any(value < 0) or np.any(value > 255):
            raise ProofError(f"{where} has a slope that is out of range")


def _check_tightening(t: Tightening, plan: _Plan, network: Network) -> None:
    where = f"tightening at tree node {t.at}"
    n, conjunctions = len(plan.parent), plan.case.conjunctions
    if not 0 <= t.at < n or not 0 <= t.conjunction < len(conjunctions):
        raise ProofError(f"{where} names no tree node or no conjunction")
    if t.node == 0 or t.node not in network.pre_activations:
        raise ProofError(f"{where} bounds a node that is no pre-activation")
    rows = len(t.index)
    if (
        t.index.shape != (rows,)
        or t.side.shape != (rows,)
        or t.weights.shape != (rows, len(conjunctions[t.conjunction]))
    ):
        raise ProofError(f"{where} has arrays that differ in length, or the wrong number of weights")
    if np.any(t.index < 0) or np.any(t.index >= network.nodes[t.node].size) or not np.all(np.isin(t.side, (1, -1))):
        raise ProofError(f"{where} has a neuron or side that does not exist")
    if not np.all(np.isfinite(t.weights) & (t.weights >= 0)):
        raise ProofError(f"{where} has a weight that is negative or not finite")
    if t.beta.shape != (rows, len(t.literals)) or not np.all(np.isfinite(t.beta) & (t.beta >= 0)):
        raise ProofError(f"{where} has multipliers that are negative, not finite, or not one per literal")
    number = len(plan.tightenings[0])  # those of the root before this one, if it is one of the root
    known = plan.cuts if t.at else sum(len(c.index) for c in plan.tree.cuts if c.after <= number)
    _check_multipliers(where, t.cuts, t.cut_weights, known)
    if len(t.cut_weights) != rows:
        raise ProofError(f"{where} has multipliers of cuts for another number of rows")
    for literal in t.literals.tolist():
        if not 0 < literal < n or not plan.first[literal] <= plan.first[t.at] < plan.last[literal]:
            raise ProofError(f"{where} uses a literal that is not on its path")
    for a in t.alpha:
        if a.node not in network.pre_activations or a.value.shape != (rows, len(a.index)):
            raise ProofError(f"{where} has slopes for a node that has none, or not one per row and neuron")
        if np.any(a.index < 0) or np.any(a.index >= network.nodes[a.node].size):
            raise ProofError(f"{where} has a slope of a neuron that does not exist")
        if np.any(a.value < 0) or np.any(a.value > 255):
            raise ProofError(f"{where} has a slope that is out of range")


@dataclass(eq=False)
class _Regions:
    """B regions: tree node `(B,)`, box `lo, hi (B, inputs)`, bounds `low, up (B, width)`, `open (B, C)`.

    `slack (B, M)`: the least deviation known of every constraint, see `Frame`. `depth (B,)`: how often a leaf's
    region was halved to get this one.
    """

    at: Array
    lo: Array
    hi: Array
    low: Array
    up: Array
    open: Array
    slack: Array
    depth: Array

    def take(self, which: Array | slice) -> _Regions:
        return _Regions(*(getattr(self, f.name)[which] for f in fields(self)))

    @staticmethod
    def join(parts: Sequence[_Regions]) -> _Regions:
        if len(parts) == 1:
            return parts[0]
        return _Regions(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(parts[0])))


@dataclass(eq=False)
class _Constraints:
    """One conjunction's numbers in the arithmetic of the check, and which of the case's constraints they are."""

    x: Array
    y: Array
    c: Array
    rows: slice

    @staticmethod
    def of(conjunction: Conjunction, enclosure: Enclosure, start: int) -> _Constraints:
        rows = slice(start, start + len(conjunction))
        if not enclosure.exact:
            return _Constraints(conjunction.x_coeffs, conjunction.y_coeffs, conjunction.constants, rows)
        x, y = enclosure.numbers(conjunction.x_coeffs * 0), enclosure.numbers(conjunction.y_coeffs * 0)
        for k, (cx, cy, _) in enumerate(conjunction.exact):
            for i, v in cx.items():
                x[k, i] = v
            for i, v in cy.items():
                y[k, i] = v
        return _Constraints(x, y, np.array([c for _, _, c in conjunction.exact], dtype=object), rows)


@dataclass(eq=False)
class _Walk:
    """One pass over one tree; `checked`, `failed` count leaves.

    `roots` keeps the bounds of each case's whole box: trees of the same case share them.
    """

    plan: _Plan
    enclosure: Enclosure
    roots: dict[int, tuple[Array, Array]]
    deviation: Deviation | None = None
    effort: int = 1
    checked: int = 0
    failed: int = 0
    reason: str = ""
    constraints: list[_Constraints] = field(default_factory=list)
    budget: Budget = field(default_factory=Budget)
    planes: dict[int, Array] = field(default_factory=dict)  # per node the cuts' coefficients (C, size)
    pieces: int = 0  # halves of leaves so far,
    latest: dict[int, list[Refutation]] = field(default_factory=dict)
    influence: Array | None = (
        None  # (B, inputs) size of the coefficients of the last refutations, where they were tried
    )
    halved: dict[int, int] = field(default_factory=dict)  # and how many of each leaf are open
    shift: Array | None = None  # (C,) constants: a cut is `sum_k planes[k] . v_k + shift <= 0`

    def run(self, budget: Budget) -> None:
        e, case, self.budget = self.enclosure, self.plan.case, budget
        starts = np.cumsum([0, *(len(c) for c in case.conjunctions)]).tolist()
        self.constraints = [_Constraints.of(c, e, k) for c, k in zip(case.conjunctions, starts[:-1], strict=True)]
        lo, hi = e.numbers(case.box.lo)[None, :].copy(), e.numbers(case.box.hi)[None, :].copy()
        far = np.full((1, e.width), np.inf, dtype=object if e.exact else np.float64)
        low, up = self.roots.get(self.plan.tree.case, (-far, far))
        open_ = np.zeros((1, len(self.constraints)), dtype=bool)
        open_[0, list(_answers(self.plan.tree, case))] = True
        slack, depth = np.full((1, starts[-1]), np.inf), np.zeros(1, dtype=np.int64)
        root = _Regions(np.zeros(1, dtype=np.int64), lo, hi, low.copy(), up.copy(), open_, slack, depth)
        stack = [root]
        cells = sum(node.size for node in e.nodes)
        most = max(1, min(BATCH, REGION_CELLS // cells))
        while stack and not (self.failed and self.deviation is not None):  # with one leaf lost the claim is
            budget.poll()
            parts = [stack.pop()]
            while stack and sum(len(p.at) for p in parts) < most:
                parts.append(stack.pop())
            batch = _Regions.join(parts)
            if len(batch.at) > most:
                stack.append(batch.take(slice(most, None)))
                batch = batch.take(slice(most))
            children = self._turn(batch)
            if len(children.at):
                stack.append(children)

    def _turn(self, batch: _Regions) -> _Regions:
        """Bound the regions, check their refutations, and return the regions that are entered next."""
        tree = self.plan.tree
        root, piece = (batch.at == 0) & (batch.depth == 0), batch.depth > 0
        fresh = root & (tree.case not in self.roots)
        refresh = (np.asarray(tree.refresh, dtype=bool)[batch.at] & ~root) | fresh | piece
        frame, empty = self.enclosure.sweep((batch.lo, batch.hi), batch.low, batch.up, refresh, fresh)
        if fresh.any():  # the root is always alone in its batch; tightenings below hold for this tree only
            self.roots[tree.case] = batch.low.copy(), batch.up.copy()
        batch.open = batch.open & ~empty[:, None]
        self._enlarge(batch, frame)
        self._tighten(batch, frame)
        self._refute(batch, frame)
        live = np.any(batch.open, axis=1)
        self._clip(batch, frame, np.flatnonzero(live))
        live &= np.all(batch.lo <= batch.hi, axis=1)
        self.checked += int(self.plan.leaves[batch.at[~live & ~piece]].sum())
        for leaf in batch.at[~live & piece].tolist():
            self.halved[leaf] -= 1
            self.checked += not self.halved[leaf]
        stuck = np.flatnonzero(live & (tree.left[batch.at] < 0))
        halves, stuck = self._halve(batch, stuck)
        self.failed += len(np.unique(batch.at[stuck]))
        if len(stuck) and not self.reason:
            which = int(np.argmax(batch.open[stuck[0]]))
            self.reason = f"leaf {int(batch.at[stuck[0]])} has no valid refutation of conjunction {which}"
        children = self._children(batch.take(np.flatnonzero(live & (tree.left[batch.at] >= 0))))
        return children if halves is None else _Regions.join([children, halves])

    def _halve(self, batch: _Regions, stuck: Array) -> tuple[_Regions | None, Array]:
        """Where the deviation stands in a leaf's way: both halves of its region, and the leaves that are not halved.

        The deviation shrinks with the region, and a leaf's refutation may be tried on any part of it. Halved is the
        input that moves the refutation most, or else the one that, seen from the whole box, is widest.
        """
        if self.deviation is None or not len(stuck):
            return None, stuck
        goes = (batch.depth[stuck] < HALVINGS) & np.all(np.isfinite(batch.slack[stuck]), axis=1)
        self.pieces += 2 * int(goes.sum())
        if not goes.any() or self.pieces > self.effort * (PIECES + int(self.plan.leaves[0]) // 2):
            return None, stuck
        e, case = self.enclosure, self.plan.case
        part = batch.take(np.tile(stuck[goes], 2))
        width = (part.hi - part.lo).astype(np.float64)
        assert self.influence is not None
        moved = width * np.tile(self.influence[stuck[goes]], (2, 1))
        seen = width / np.maximum(case.box.hi - case.box.lo, 1e-300)
        axis = np.where(moved.any(axis=1, keepdims=True), moved, seen).argmax(axis=1)
        every = np.arange(len(part.at))
        middle = (part.lo[every, axis] + part.hi[every, axis]) * e.half
        first = every < len(every) // 2
        part.hi[every[first], axis[first]] = middle[first]
        part.lo[every[~first], axis[~first]] = middle[~first]
        part.depth = part.depth + 1
        for leaf in batch.at[stuck[goes]].tolist():
            self.halved[leaf] = self.halved.get(leaf, 1) + 1
        return part, stuck[~goes]

    def _enlarge(self, batch: _Regions, frame: Frame) -> None:
        """How far an execution's constraints may be from the real ones on these regions, where that is asked for.

        An execution that is unsafe at x has `g_i(x) <= slack_i` in real arithmetic. On each region that holds x the
        slack is a valid one, so the least on the path is: refutations, clips and tightenings exclude no such x.
        """
        if self.deviation is not None:
            lower, upper = ([np.asarray(a, dtype=np.float64) for a in part] for part in (frame.lower, frame.upper))
            if self.enclosure.exact:  # fractions were rounded to nearest
                lower, upper = [np.nextafter(a, -np.inf) for a in lower], [np.nextafter(a, np.inf) for a in upper]
            sharp = (self.plan.tree.left[batch.at] < 0) & np.any(batch.open, axis=1)
            slack = self.deviation.bound(lower, upper, self.plan.case, sharp)
            frame.slack = batch.slack = np.fmin(batch.slack, slack)

    # ---- tightenings ---------------------------------------------------------------------------

    def _tighten(self, batch: _Regions, frame: Frame) -> None:
        """Apply the tightenings of these tree nodes, in place; a region whose bounds contradict each other is closed.

        Few regions have any, so each is taken alone and the others are not derived anew.
        """
        if not self.plan.tightenings and not self.plan.cuts:
            return
        nowhere = np.zeros(1, dtype=bool)
        for b, at in enumerate(batch.at.tolist()):
            region, own = batch.take(slice(b, b + 1)), None  # views into the batch
            cuts = [] if at else list(self.plan.tree.cuts)
            for number, t in enumerate((*self.plan.tightenings.get(at, ()), None)):
                while cuts and (t is None or cuts[0].after <= number):
                    self._derive(cuts.pop(0), frame.one(b) if own is None else own)
                if t is None or region.open.sum() != 1 or not region.open[0, t.conjunction]:
                    continue
                own = frame.one(b) if own is None else own
                self._intersect(region, t, self._bounds(t, own))
                own, empty = self.enclosure.sweep((region.lo, region.hi), region.low, region.up, nowhere, nowhere)
                own.slack = region.slack if self.deviation is not None else None
                if empty[0]:
                    region.open[0] = False
            if own is not None:
                frame.put(b, own)

    def _derive(self, cuts: Cuts, frame: Frame) -> None:
        """Add the planes that the cuts propose on the root region; those without a finite constant say `0 <= 0`."""
        e = self.enclosure
        op, node = e.nodes[cuts.node].op, e.nodes[cuts.node].inputs[0]
        assert isinstance(op, TwoPiece)
        left, right = (e.numbers(np.array(v)) for v in (op.left, op.right))
        step = max(1, 4 * CELLS // max(n.size for n in e.nodes))
        for part in (slice(i, i + step) for i in range(0, len(cuts.index), step)):
            self.budget.poll()
            index = cuts.index[part]
            every, region = np.arange(len(index)), np.zeros(len(index), dtype=np.int64)
            planes = e.carriers(node, index)
            for k, w in planes.items():
                share = e.zeros(*w.shape)
                for s in cuts.shares:
                    if s.node == k:
                        share[:, s.index] = e.numbers(s.value[part]) / 255
                planes[k] = w * (left + (right - left) * share)
            least = None
            for slope in (left, right):
                rows = Rows(region, dict(planes), e.zeros(len(index)), e.zeros(len(index)))
                target = e.zeros(len(index), e.nodes[node].size)
                target[every, index] = -slope
                e.push(rows, node, target, frame)
                value = e.least_on_hulls(frame, rows, node)
                least = value if least is None else np.minimum(least, value)
            assert least is not None
            planes = {k: -p for k, p in planes.items()}
            planes[cuts.node] = e.zeros(len(index), e.nodes[cuts.node].size)
            planes[cuts.node][every, index] = e.numbers(np.ones(len(index)))
            if not e.exact:
                lost = ~np.isfinite(least)
                least[lost] = 0.0
                for p in planes.values():
                    p[lost] = 0.0
            self._append_planes(planes, least)

    def _append_planes(self, planes: dict[int, Array], shift: Array) -> None:
        e, old = self.enclosure, 0 if self.shift is None else len(self.shift)
        self.shift = shift if self.shift is None else np.concatenate([self.shift, shift])
        for k in self.planes.keys() | planes.keys():
            size = e.nodes[k].size
            before, after = self.planes.get(k), planes.get(k)
            before = e.zeros(old, size) if before is None else before
            self.planes[k] = np.concatenate([before, e.zeros(len(shift), size) if after is None else after])

    def _add_cuts(self, rows: Rows, cuts: Array, multipliers: Array, frame: Frame) -> None:
        """Add the cuts numbered `cuts (C,)` times `multipliers (R, C)`; those that were not derived add nothing."""
        derived = 0 if self.shift is None else len(self.shift)
        multipliers, cuts = multipliers[:, cuts < derived], cuts[cuts < derived]
        if not len(cuts):
            return
        assert self.shift is not None
        e = self.enclosure
        m = e.numbers(multipliers)
        for k, p in self.planes.items():
            if not e.exact:
                size = norms(m @ abs(p[cuts])) * frame.size[k][rows.region]
                rows.error = rows.error + gamma(len(cuts) + 8) * size
            e.push(rows, k, m @ p[cuts], frame)
        if not e.exact:
            rows.error = rows.error + gamma(len(cuts) + 8) * (m @ abs(self.shift[cuts]))
        e.add(rows, m @ self.shift[cuts])

    def _bounds(self, t: Tightening, frame: Frame) -> Array:
        """(R,) lower bounds of `side * value[index]` on the unsafe points of one region."""
        e, last = self.enclosure, len(self.enclosure.nodes) - 1
        out = e.zeros(len(t.index))
        step = max(1, 4 * CELLS // max(node.size for node in e.nodes))
        for part in (slice(i, i + step) for i in range(0, len(out), step)):
            self.budget.poll()
            count = len(out[part])
            rows = self._functional(
                self.constraints[t.conjunction], e.numbers(t.weights[part]), np.zeros(count, dtype=np.int64), frame
            )
            target = e.zeros(count, e.nodes[t.node].size)
            target[np.arange(count), t.index[part]] = e.numbers(t.side[part])
            e.push(rows, t.node, target, frame)
            self._add_cuts(rows, t.cuts, t.cut_weights[part], frame)
            row, column = np.nonzero(t.beta[part] > 0)
            self._add_literals(rows, row, t.literals[column], t.beta[part][row, column], frame)
            self._set_row_slopes(rows, t.alpha, part, frame)
            out[part] = e.minimum(frame, e.pull(frame, rows, last))
        return out

    def _set_row_slopes(self, rows: Rows, alphas: tuple[Alpha, ...], part: slice, frame: Frame) -> None:
        """Replace default lower slopes of one region by those of each row where the neuron is unstable."""
        for a in alphas:
            for k in self.enclosure.network.users[a.node]:
                if k in frame.lines:
                    lines = frame.lines[k]
                    free = lines.unstable[0, a.index]
                    slopes = rows.slopes.get(k, lines.low[rows.region])
                    slopes[:, a.index[free]] = self._slopes_at(lines, a.value[part][:, free])
                    rows.slopes[k] = slopes

    def _intersect(self, region: _Regions, t: Tightening, value: Array) -> None:
        """Intersect the bounds of one region with those of a tightening, in place; nan tightens nothing."""
        slot, below = self.enclosure.slot[t.node], t.side > 0
        np.fmax.at(region.low[0, slot], t.index[below], value[below])
        np.fmin.at(region.up[0, slot], t.index[~below], -value[~below])

    # ---- refutations ---------------------------------------------------------------------------

    def _refute(self, batch: _Regions, frame: Frame) -> None:
        """Close the conjunctions whose refutation holds on the region."""
        groups: dict[int, list[tuple[int, Refutation]]] = defaultdict(list)
        for b, at in enumerate(batch.at.tolist()):
            for r in self.plan.at.get(at, ()) if self.deviation is None else self._latest(at):
                if batch.open[b, r.conjunction]:
                    groups[r.conjunction].append((b, r))
        last = len(self.enclosure.nodes) - 1
        self.influence = np.zeros(batch.lo.shape)
        for conjunction, group in groups.items():
            region = np.array([b for b, _ in group])
            weights = self.enclosure.numbers(np.array([r.weights for _, r in group], dtype=np.float64))
            rows = self._functional(self.constraints[conjunction], weights, region, frame)
            triples = [(row, *pair) for row, (_, r) in enumerate(group) for pair in r.beta if pair[1] > 0]
            at, literal, beta = (np.array([t[i] for t in triples]) for i in range(3))
            self._add_literals(rows, at, literal, beta, frame)
            used = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(r.cuts[0] for _, r in group if r.cuts)]))
            multipliers = np.zeros((len(group), len(used)))
            for row, (_, r) in enumerate(group):
                if r.cuts is not None:
                    np.add.at(multipliers[row], np.searchsorted(used, r.cuts[0]), r.cuts[1])
            self._add_cuts(rows, used, multipliers, frame)
            self._set_slopes(rows, [r for _, r in group], frame)
            value = self.enclosure.minimum(frame, self.enclosure.pull(frame, rows, last))
            if self.deviation is not None:
                self.influence[region] = np.maximum(self.influence[region], abs(rows.coef[0]).astype(np.float64))
            batch.open[region[value > 0], conjunction] = False

    def _latest(self, at: int) -> list[Refutation]:
        """The last refutation of each conjunction on the path to a tree node: one holds below its place, too.

        With a deviation one that failed there may hold on a part of the region.
        """
        path = []
        while at >= 0 and at not in self.latest:
            path.append(at)
            at = int(self.plan.parent[at])
        found = self.latest[at] if at >= 0 else []
        for k in reversed(path):
            here = self.plan.at.get(k, [])
            own = {r.conjunction for r in here}
            found = self.latest[k] = here + [r for r in found if r.conjunction not in own]
        return found

    def _functional(self, g: _Constraints, weights: Array, region: Array, frame: Frame) -> Rows:
        """Rows `sum_i weights[:, i] g_i`. The coefficients are nearest doubles: one more rounding each."""
        e, last = self.enclosure, len(self.enclosure.nodes) - 1
        rows = Rows(region, {last: weights @ g.y}, weights @ g.c, e.zeros(len(region)))
        if not e.exact:
            spread = norms(weights @ abs(g.y)) * frame.size[last][region]
            spread = spread + norms(weights @ abs(g.x)) * frame.size[0][region] + weights @ abs(g.c)
            rows.error = gamma(weights.shape[1] + 8) * spread
        if np.any(g.x != 0):
            e.push(rows, 0, weights @ g.x, frame)
        if frame.slack is not None:
            slack = frame.slack[region, g.rows]
            lost = _total(weights, fractions_of(slack, infinite=True) if e.exact else slack)
            if not e.exact:
                rows.error = rows.error + gamma(weights.shape[1] + 8) * lost
            e.add(rows, -lost)
        return rows

    def _add_literals(self, rows: Rows, row: Array, literal: Array, beta: Array, frame: Frame) -> None:
        """Add `beta (z - t)` for left and `beta (t - z)` for right children; one entry per row and literal."""
        e, tree, parent = self.enclosure, self.plan.tree, self.plan.parent
        if not len(row):
            return
        split = parent[literal]
        sign = np.where(tree.left[split] == literal, 1, -1)
        multiplier = e.numbers(beta) * sign
        threshold, node, index = e.numbers(tree.threshold[split]), tree.node[split], tree.index[split]
        reach = e.zeros(len(row))
        for k in np.unique(node).tolist():
            here = node == k
            block = e.zeros(len(rows.region), e.nodes[k].size)
            np.add.at(block, (row[here], index[here]), multiplier[here])
            e.push(rows, k, block, frame)
            reach[here] = frame.magnitude[k][rows.region[row[here]], index[here]]
        shift = e.zeros(len(rows.region))
        np.add.at(shift, row, -multiplier * threshold)
        if not e.exact:
            spread = np.zeros(len(rows.region))
            np.add.at(spread, row, abs(multiplier) * (reach + abs(threshold)))
            rows.error = rows.error + gamma(len(row) + 8) * spread
        e.add(rows, shift)

    def _set_slopes(self, rows: Rows, group: list[Refutation], frame: Frame) -> None:
        """Replace default lower slopes by the stored ones where the neuron is unstable."""
        stored: dict[int, list[tuple[int, Alpha]]] = defaultdict(list)
        for row, r in enumerate(group):
            for a in r.alpha:
                stored[a.node].append((row, a))
        network = self.enclosure.network
        for node, items in stored.items():
            for k in network.users[node]:
                if k in frame.lines:
                    rows.slopes[k] = self._stored_slopes(frame.lines[k], rows.region, items)

    def _stored_slopes(self, lines: Lines, region: Array, items: list[tuple[int, Alpha]]) -> Array:
        """(R, n) lower slopes: the default ones with `(row, alpha)` items filled in."""
        row = np.repeat([row for row, _ in items], [len(a.index) for _, a in items])
        index = np.concatenate([np.asarray(a.index, dtype=np.int64) for _, a in items])
        slope = self._slopes_at(lines, np.concatenate([np.asarray(a.value) for _, a in items]))
        free = lines.unstable[region[row], index]
        slopes = lines.low[region]
        slopes[row[free], index[free]] = slope[free]
        return slopes

    def _slopes_at(self, lines: Lines, value: Array) -> Array:
        """The slopes that stored values stand for, inside the legal reach whatever rounds."""
        numbers = self.enclosure.numbers
        low, high = (numbers(np.array(v)) for v in lines.reach)
        return np.minimum(np.maximum(low + numbers(value) / 255 * (high - low), low), high)

    # ---- clipping and children -----------------------------------------------------------------

    def _clip(self, batch: _Regions, frame: Frame, live: Array) -> None:
        """Cut the boxes of clipping tree nodes by the constraints of their only open conjunction, in place.

        A box that is empty afterwards refutes that conjunction.
        """
        e = self.enclosure
        asked = np.asarray(self.plan.tree.clip, dtype=bool)[batch.at[live]] | (batch.depth[live] > 0)
        wanted = asked & (batch.open[live].sum(axis=1) == 1)
        clipped = live[wanted]
        which = np.argmax(batch.open[clipped], axis=1) if len(clipped) else clipped
        widest = max(node.size for node in e.nodes)
        for conjunction in np.unique(which).tolist():
            g = self.constraints[conjunction]
            members, m = clipped[which == conjunction], len(g.c)
            step = max(1, 4 * CELLS // (widest * max(m, 1)))
            for region in (members[i : i + step] for i in range(0, len(members), step)):
                weights = np.repeat(e.numbers(np.eye(m)), len(region), axis=0)
                rows = self._functional(g, weights, np.tile(region, m), frame)
                rows = e.pull(frame, rows, len(e.nodes) - 1)
                lo, hi = batch.lo[region], batch.hi[region]
                for k in range(m):
                    lo, hi = e.cut(rows, np.arange(k * len(region), (k + 1) * len(region)), lo, hi)
                batch.lo[region], batch.hi[region] = lo, hi

    def _children(self, batch: _Regions) -> _Regions:
        """Both children of every region, cut by their literal."""
        tree, e, count = self.plan.tree, self.enclosure, len(batch.at)
        both = batch.take(np.tile(np.arange(count), 2))
        parent = both.at
        left = np.arange(2 * count) < count
        both.at = np.where(left, tree.left[parent], tree.right[parent]).astype(np.int64)
        node, index, threshold = tree.node[parent], tree.index[parent], e.numbers(tree.threshold[parent])
        start = np.zeros(len(e.nodes), dtype=np.int64)
        for k, s in e.slot.items():
            start[k] = s.start
        column = start[node] + index
        for low, up, here in ((both.lo, both.hi, node == 0), (both.low, both.up, node != 0)):
            a, b = np.flatnonzero(here & left), np.flatnonzero(here & ~left)
            up[a, column[a]] = np.minimum(up[a, column[a]], threshold[a])
            low[b, column[b]] = np.maximum(low[b, column[b]], threshold[b])
        return both


def _total(weights: Array, slack: Array) -> Array:
    """(R,) sums of weights times slack; a slack that is not known, inf, counts where its weight does."""
    return np.where(weights == 0, 0, np.where(weights == 0, 0, slack) * weights).sum(axis=1)
