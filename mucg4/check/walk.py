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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field, fields
from fractions import Fraction
from functools import cached_property, partial
from typing import ClassVar, TypeVar

import numpy as np

from mucg4.check.curves import Lines
from mucg4.check.enclose import CELLS, Enclosure, Frame, Rows
from mucg4.check.exact import ExactEnclosure
from mucg4.check.rowwise import gamma, norms
from mucg4.check.ties import Literal, refutes
from mucg4.errors import BudgetError, ProofError
from mucg4.limits.budget import TIMEOUT, Budget
from mucg4.limits.processes import can_fork, forked
from mucg4.limits.threads import side_by_side
from mucg4.model.network import Network
from mucg4.model.proof import Cuts, Proof, Tightening, Tree, upward
from mucg4.model.query import Case, Conjunction, Query
from mucg4.model.refutations import Alpha, Refutation, Refutations
from mucg4.model.verdict import CheckReport, Seal
from mucg4.ops.arrays import distinct, distinct_places
from mucg4.ops.base import Array
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

BATCH = 512  # most regions handled together; not measured
SHARED = 64  # regions of all walks together from which processes share them out; not measured
WHOLE = 2  # trees with less work than a share of each process over this are not divided: see `_walked`; not measured
LEAST_SHARED = 1e9  # where the work left is more than so many multiplications (about 70 ms: forking takes 20); measured
# smaller ones are not within a relative rounding of their nearest doubles; given: the least normal double
LEAST_NUMBER = Fraction(2) ** -1022
LOST = "a part of the check was lost"  # no reason to call what is left unexamined merely late
MOST_IMAGES = 1024  # sets of weights that are asked about images; not measured
GRACE = 0.1  # seconds that processes get to send what they came to after the deadline; not measured
LEAVES_EACH = 4  # at least, of a tree below the regions that are shared out; not measured
LEAST_SHARE = 0.4  # of the leaves must be established for a walk with patience to go on; not measured
MOST_KEPT = 2**29  # bytes of lower bounds of regions that are kept open; not measured
REGION_CELLS = 2**22  # most numbers in one array over a batch's regions and neurons; not measured


def check(
    proof: Proof, query: Query, budget: Budget | None = None, exact: bool = False, workers: int = 1
) -> CheckReport:
    """Re-establish the proof for the query, believing nothing in it; see the module text.

    `exact` evaluates without rounding (`mucg4.check.exact`; small piecewise linear networks only). `workers` processes
    share the regions. Never raises for a bad proof, a network it has no rules for, or a spent budget: the report says
    so.
    """
    budget = budget or Budget()

    def make(plans: list[_Plan]) -> list[_Walk]:
        enclosure = enclosure_of(query, exact)
        roots: dict[int, tuple[Array, Array]] = {}
        return [_Walk(plan, enclosure, roots, budget) for plan in plans]

    return _report(proof, *_walked(proof, query, budget, workers, make))


def enclosure_of(query: Query, exact: bool = False) -> Enclosure:
    """The arithmetic of a check. Raises `ProofError` for a network it has no rules for."""
    boxes = [case.box for case in query.cases if not case.box.empty]
    return ExactEnclosure(query.network, boxes) if exact else Enclosure(query.network)


W = TypeVar("W", bound="_Walk")


def _walked(
    proof: Proof,
    query: Query,
    budget: Budget,
    workers: int,
    make: Callable[[list[_Plan]], list[W]],
    meanwhile: Iterable[object] = (),
) -> tuple[list[W], str, str]:
    """The walks that `make` makes of the validated trees, done; what was wrong with the proof, and what ended them.

    `meanwhile` is work that is done step by step while processes share the regions, as far as it comes, before all else
    where they do not. Before the regions are shared a tree is visited until it has as many as that takes, while all
    others wait: only where it is large among them.
    """
    walks: list[W] = []
    try:
        _identify(proof, query)
        plans = [planned(tree, query) for tree in proof.trees]
        with np.errstate(all="ignore"):  # overflow and nan close nothing
            walks = make(plans)
            for walk in walks:
                walk.enclosure.threads = workers
            shared = workers > 1 and can_fork() and sum(walk.work_left() for walk in walks) > LEAST_SHARED
            for walk in walks if shared else ():
                walk.know_root()
            work = [walk.work_left() for walk in walks]
            total = sum(work)
            shared = shared and total > LEAST_SHARED
            for _ in () if shared else meanwhile:
                pass
            for walk, own in zip(walks, work, strict=True):
                large = own > total / (WHOLE * workers)
                walk.prepare(max(1, round(SHARED * own / total) if large else 1) if shared else 0)
            stopped = _share_out(walks, workers, budget, meanwhile if shared else ())
    except ProofError as error:
        return walks, str(error), ""
    except BudgetError as error:
        return walks, "", str(error)
    return walks, "", stopped


def _report(proof: Proof, walks: Sequence[_Walk], problem: str, stopped: str) -> CheckReport:
    rejected = tuple((number, *leaf) for number, walk in enumerate(walks) for leaf in walk.rejected)
    checked, failed = sum(walk.checked for walk in walks), len(rejected)
    skipped = proof.leaves - checked - failed
    reason = problem
    if not reason and rejected:
        reason = f"incomplete: {failed} open {'leaf' if failed == 1 else 'leaves'}"
        for number, walk in enumerate(walks):
            leaves = np.array(walk.rejected, dtype=np.int64).reshape(-1, 2)
            wrong = leaves[stated(walk.plan.tree, *leaves.T)]
            if len(wrong):
                reason = f"tree {number}: leaf {wrong[0, 0]} has no valid refutation of conjunction {wrong[0, 1]}"
                break
    reason = reason or stopped
    accepted = not reason and not failed and not skipped
    time_alone = stopped == TIMEOUT and not problem and not failed and len(walks) == len(proof.trees)
    late = time_alone and all(walk.states_evidence() for walk in walks)
    seal = Seal(proof, accepted, late)
    return CheckReport(proof, accepted, checked, failed, skipped, reason, proof.leaves, rejected, late, seal)


def _share_out(walks: Sequence[_Walk], workers: int, budget: Budget, meanwhile: Iterable[object]) -> str:
    """Finish the walks in forked processes, regions dealt by the work below them; what ended them early, if anything.

    `meanwhile`: see `mucg4.limits.processes.forked`; it is done first where no process is needed.
    Raises `BudgetError` with LOST where a process did not tell what it saw: nobody knows then whether a leaf failed.
    """
    items = [(w.work(int(at)), k, i) for k, w in enumerate(walks) for i, at in enumerate(w.waiting())]
    if len(items) < 2:
        for _ in meanwhile:
            pass
        for walk in walks:
            walk.run()
        return ""
    parts: list[list[tuple[int, int]]] = [[] for _ in range(min(workers, len(items)))]
    loads, threads = [0.0] * len(parts), workers // len(parts)
    for work, k, i in sorted(items, reverse=True):
        least = loads.index(min(loads))
        parts[least].append((k, i))
        loads[least] += work

    def job(part: list[tuple[int, int]]) -> Callable[[], list[Progress]]:
        own = [np.array([i for n, i in part if n == k], dtype=np.int64) for k in range(len(walks))]
        return lambda: [walk.part(which, threads) for walk, which in zip(walks, own, strict=True)]

    def poll() -> None:
        if budget.interrupted or budget.left() < -GRACE:
            budget.poll()

    try:
        done = forked([job(part) for part in parts], poll, meanwhile=meanwhile)
    except BudgetError as error:
        raise BudgetError(f"{LOST}: {error}") from error
    found = [part for part in done if part is not None]
    for k, walk in enumerate(walks):
        mine = [progress[k] for progress in found]
        walk.checked += sum(p.checked for p in mine)
        walk.rejected += [leaf for p in mine for leaf in p.rejected]
        walk.unexamined = np.concatenate([p.left for p in mine])
        walk.take_over([p.kept for p in mine if p.kept is not None])
    return next((p.stopped for progress in found for p in progress if p.stopped), "")


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
        missing -= {(tree.case, q) for q in _answers(tree, case_of(tree, query))}
    if missing:
        raise ProofError(f"no tree answers for conjunction {min(missing)[1]} of case {min(missing)[0]}")


def case_of(tree: Tree, query: Query) -> Case:
    """The case that the tree is for. Raises `ProofError` where the query has none of that number."""
    if not 0 <= tree.case < len(query.cases):
        raise ProofError(f"a tree is for case {tree.case}, the query has {len(query.cases)}")
    return query.cases[tree.case]


def _answers(tree: Tree, case: Case) -> tuple[int, ...]:
    """The conjunctions a tree answers for."""
    count = len(case.conjunctions)
    answered = tree.answered(count)
    if not set(answered) <= set(range(count)):
        raise ProofError(f"a tree answers for conjunctions {answered} of {count}")
    return answered


@dataclass(frozen=True, eq=False)
class Places:
    """Numbers in groups: those of group g are `number[start[g] : start[g + 1]]`."""

    number: Array
    start: Array

    @staticmethod
    def of(group: Array, count: int) -> Places:
        """The places in `group (n,)` of each of the `count` groups, in ascending order."""
        return Places(np.argsort(group, kind="stable"), np.searchsorted(np.sort(group), np.arange(count + 1)))

    def among(self, groups: Array) -> tuple[Array, Array]:
        """For `groups (B,)`: all their numbers, and whose each one is (a place in `groups`)."""
        owner, entry = expanded(self.start[groups], self.start[groups + 1])
        return self.number[entry], owner


def expanded(start: Array, end: Array) -> tuple[Array, Array]:
    """All whole numbers of the ranges `start <= k < end` `(B,)`, one range after the other: `(owner, number)`."""
    count = end - start
    owner = np.repeat(np.arange(len(start)), count)
    return owner, np.arange(len(owner)) + np.repeat(start - (np.cumsum(count) - count), count)


@dataclass(frozen=True, eq=False)
class _Plan:
    """A validated tree: `first, last (N,)` preorder interval of each subtree, `leaves (N,)` in it.

    `place` finds the numbers of the refutations `table` at a tree node.
    """

    tree: Tree
    case: Case
    parent: Array
    first: Array
    last: Array
    leaves: Array
    table: Refutations
    place: Places
    tightenings: dict[int, list[Tightening]]
    cuts: int  # how many the tree has


def planned(tree: Tree, query: Query) -> _Plan:
    """The tree, validated as far as that needs no arithmetic: good for all networks with the query's nodes.

    Raises `ProofError` for a malformed one.
    """
    network, case = query.network, case_of(tree, query)
    n, answered = len(tree.node), _answers(tree, case)
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
    if cuts and len(answered) != 1:
        raise ProofError("a tree with cuts answers for several conjunctions")
    tightenings: dict[int, list[Tightening]] = defaultdict(list)
    table = tree.table
    place = Places.of(table.at, n)
    plan = _Plan(tree, case, np.array(parent), order, order + size, np.array(leaves), table, place, tightenings, cuts)
    _check_refutations(plan, network)
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


def _covered(plan: _Plan, at: Array) -> bool:
    """True when each leaf below the tree nodes `at (B,)` has a refutation of every conjunction on its path."""
    n, leaf = len(plan.parent), plan.tree.left < 0
    wanted = np.zeros(n, dtype=bool)  # in preorder
    for k in at.tolist():
        wanted[plan.first[k] : plan.last[k]] = True
    wanted &= leaf[np.argsort(plan.first)]
    for conjunction in _answers(plan.tree, plan.case):
        ends = np.zeros(n + 1, dtype=np.int64)
        here = plan.table.at[plan.table.conjunction == conjunction]
        np.add.at(ends, plan.first[here], 1)
        np.add.at(ends, plan.last[here], -1)
        if np.any(wanted & (np.cumsum(ends[:-1]) <= 0)):
            return False
    return True


def stated(tree: Tree, at: Array, conjunction: Array) -> Array:
    """(B,) bool, which of the tree nodes `at (B,)`, or one above it, has a refutation of `conjunction (B,)`.

    Whatever that is worth: of the others nothing is claimed, they were left open.
    """
    out = np.zeros(len(at), dtype=bool)
    for one in distinct(conjunction).tolist():
        has = np.zeros(len(tree), dtype=bool)
        has[tree.table.at[tree.table.conjunction == one]] = True
        own = np.flatnonzero(conjunction == one)
        for which, node in upward(tree.parents(), at[own]):
            out[own[which[has[node]]]] = True
    return out


def _demand(right: Array, at: Array, fault: str) -> None:
    """Raise `ProofError` naming the first tree node of `at (n,)` where `right (n,)` does not hold."""
    if len(right) and not np.all(right):
        raise ProofError(f"refutation at tree node {int(at[np.argmin(right)])} {fault}")


def _check_refutations(plan: _Plan, network: Network) -> None:
    """Validate all refutations together: there are thousands."""
    table, n = plan.table, len(plan.parent)
    if not len(table):
        return
    counts = np.array([len(c) for c in plan.case.conjunctions], dtype=np.int64)
    at, conjunction = table.at, table.conjunction
    _demand((at >= 0) & (at < n) & (conjunction < len(counts)), at, "names no tree node or no conjunction")
    _demand(table.weight_count == counts[conjunction], at, "has the wrong number of weights")
    right = np.isfinite(table.weights) & (table.weights >= 0)
    _demand(right, np.repeat(at, table.weight_count), "has a weight that is negative or not finite")
    owner, literal = np.repeat(at, table.beta_count), table.literal
    right = np.isfinite(table.beta) & (table.beta >= 0)
    _demand(right, owner, "has a multiplier that is negative or not finite")
    named = (literal > 0) & (literal < n)
    inside = np.where(named, literal, 0)
    on_path = named & (plan.first[inside] <= plan.first[owner]) & (plan.first[owner] < plan.last[inside])
    _demand(on_path, owner, "uses a literal that is not on its path")
    owner = np.repeat(at, table.cut_count)
    _demand(table.cut < plan.cuts, owner, "uses a cut that does not exist there")
    right = np.isfinite(table.multiplier) & (table.multiplier >= 0)
    _demand(right, owner, "has multipliers of cuts that are negative, not finite, or not one per cut")
    sizes = np.full(len(network.nodes), -1)
    sizes[list(network.pre_activations)] = [network.nodes[k].size for k in network.pre_activations]
    owner, node = np.repeat(at, table.group_count), table.slope_node
    named = node < len(sizes)
    _demand(named & (sizes[np.where(named, node, 0)] >= 0), owner, "has slopes for a node that has none")
    right = table.slope_index < np.repeat(sizes[node], table.slope_count)
    _demand(right, np.repeat(owner, table.slope_count), "has a slope that is out of range")


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

    `slack (B, M)` and `depth (B,)` are for `mucg4.check.executions`: by how much each constraint of the case is
    loosened, and how often a leaf's region was halved to get this one.
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
    """One conjunction's numbers in floats, which of the case's constraints they are, and where the exact ones are."""

    x: Array
    y: Array
    c: Array
    rows: slice
    stated: Conjunction

    @staticmethod
    def of(conjunction: Conjunction, start: int) -> _Constraints:
        rows = slice(start, start + len(conjunction))
        numbers = conjunction.x_coeffs, conjunction.y_coeffs, conjunction.constants
        if any(0 < abs(v) < LEAST_NUMBER for cx, cy, c in conjunction.proved for v in (*cx.values(), *cy.values(), c)):
            raise ProofError("the property has a number that is too small for doubles")
        return _Constraints(*numbers, rows, conjunction)


@dataclass(frozen=True, eq=False)
class Progress:
    """What a part of a walk came to: leaves established, leaves `(node, conjunction)` that failed, tree nodes whose
    subtrees were not examined, and what ended it early; what is `kept` of the regions that stay open."""

    checked: int
    rejected: list[tuple[int, int]]
    left: Array
    stopped: str = ""
    kept: Kept | None = None


@dataclass(eq=False)
class Kept:
    """What a walk keeps of the regions it leaves open, so that it can go on below them (`mucg4.check.resume`).

    `before` stand at leaves that were rejected, or where the walk gave up, as they came there, so that a later visit is
    the same; `after` are they as the visit left them. `root (1, width)` low, up are bounds that hold on all regions of
    the tree, its cuts are `planes, shift`. `lost`: the regions took too much memory.
    """

    before: list[_Regions] = field(default_factory=list)
    after: list[_Regions] = field(default_factory=list)
    root: tuple[Array, Array] | None = None
    planes: dict[int, Array] = field(default_factory=dict)
    shift: Array | None = None
    lost: bool = False

    def add(self, before: _Regions, after: _Regions) -> None:
        """Keep these regions too."""
        self.lost = self.lost or sum(r.low.nbytes for r in (*self.before, before)) > MOST_KEPT
        self.before, self.after = (
            [] if self.lost else [*a, b] for a, b in ((self.before, before), (self.after, after))
        )


@dataclass(eq=False)
class _Walk:
    """One pass over one tree; `checked` counts leaves, `rejected` names those that failed.

    `roots` keeps the bounds of each case's whole box: trees of the same case share them.
    """

    plan: _Plan
    enclosure: Enclosure
    roots: dict[int, tuple[Array, Array]]
    budget: Budget
    checked: int = 0
    rejected: list[tuple[int, int]] = field(default_factory=list)  # (leaf, conjunction)
    stack: list[_Regions] = field(default_factory=list)  # batches of regions to visit
    constraints: list[_Constraints] = field(default_factory=list)
    planes: dict[int, Array] = field(default_factory=dict)  # per node the cuts' coefficients (C, size)
    speaks: dict[int, Array] = field(default_factory=dict)  # per node (C,) whether a cut has coefficients there
    shift: Array | None = None  # (C,) constants: a cut is `sum_k planes[k] . v_k + shift <= 0`
    # which conjunctions, by which weights, the images of functions refute on the whole box
    by_image: dict[tuple[int, tuple[float, ...]], bool] = field(default_factory=dict)
    unexamined: Array | None = None  # tree nodes whose subtrees other processes did not examine
    looks_twice: ClassVar[bool] = True  # exactly, where a bound is near 0
    begun: bool = False
    resumed: bool = False  # from where an earlier one stopped
    kept: Kept | None = None  # given: regions that stay open are kept there
    patience: int | None = None  # leaves after which the walk gives up, unless LEAST_SHARE of them were established

    def __post_init__(self) -> None:
        """Raises `ProofError` for constraints that this arithmetic cannot hold."""
        conjunctions = self.plan.case.conjunctions
        starts = np.cumsum([0, *map(len, conjunctions)]).tolist()
        self.constraints = [_Constraints.of(c, k) for c, k in zip(conjunctions, starts[:-1], strict=True)]

    def begin(self) -> None:
        """Put the root on the stack."""
        self.begun = True
        self.stack = [self._root()]

    def none(self) -> _Regions:
        """No region."""
        return self._root().take(slice(0, 0))

    def _root(self) -> _Regions:
        e, case = self.enclosure, self.plan.case
        lo, hi = e.numbers(case.box.lo)[None, :].copy(), e.numbers(case.box.hi)[None, :].copy()
        far = np.full((1, e.width), np.inf)
        low, up = self.roots[self.plan.tree.case] if self._root_is_known else (-far, far)
        open_ = np.zeros((1, len(self.constraints)), dtype=bool)
        open_[0, list(_answers(self.plan.tree, case))] = True
        slack, at = np.full((1, sum(map(len, case.conjunctions))), np.inf), np.zeros(1, dtype=np.int64)
        return _Regions(at, lo, hi, low.copy(), up.copy(), open_, slack, at.copy())

    def work(self, at: int) -> float:
        """About how many multiplications the subtree of a tree node takes."""
        row, visit, region = self.enclosure.work
        first, last = self.plan.first[at], self.plan.last[at]
        rows = self.tightened[first:last].sum() if self.plan.tightenings else 0.0
        refreshed = self.refreshed[last] - self.refreshed[first]
        if at == 0 and self._root_is_known:
            refreshed -= int(self.plan.tree.refresh[0])
        return region * float(refreshed) + visit * float(last - first) + row * float(rows + self.plan.leaves[at])

    @cached_property
    def refreshed(self) -> Array:
        """(N + 1,) how many tree nodes before each place of the preorder have their bounds derived anew."""
        flags = np.zeros(len(self.plan.parent) + 1, dtype=np.int64)
        flags[self.plan.first + 1] = np.asarray(self.plan.tree.refresh, dtype=bool)
        return np.cumsum(flags)

    def work_left(self) -> float:
        """About how many multiplications are left to do."""
        return sum(self.work(int(at)) for at in self.waiting()) if self.begun else self.work(0)

    @cached_property
    def tightened(self) -> Array:
        """(N,) rows of tightenings at each tree node, in preorder."""
        out = np.zeros(len(self.plan.parent))
        for at, own in self.plan.tightenings.items():
            out[self.plan.first[at]] = sum(len(t.index) for t in own)
        return out

    def prepare(self, enough: int) -> None:
        """Begin and visit everything, or with `enough` only until so many regions wait to be shared out."""
        if self.begun:
            return None if enough else self.run()
        self.begin()
        if not enough:
            return self.run()
        leaves = int(self.plan.leaves[0])
        enough = min(enough, max(1, leaves // LEAVES_EACH))
        return None if enough == 1 else self.run(enough)

    def know_root(self) -> None:
        """Derive the bounds of the case's whole box, where a tree is to be walked from there: others need the same."""
        if not (self.begun or self.enclosure.products or self._root_is_known):
            root, every = self._root(), np.ones(1, dtype=bool)
            self.enclosure.sweep((root.lo, root.hi), root.low, root.up, every, every)
            self.roots[self.plan.tree.case] = root.low, root.up

    @property
    def _root_is_known(self) -> bool:
        """Lines of products at the root come with its bounds: each tree derives both."""
        return self.plan.tree.case in self.roots and not self.enclosure.products

    def run(self, enough: int = 0) -> None:
        """Visit until nothing is on the stack, or at least `enough` regions are (0: no limit)."""
        cells = sum(node.size for node in self.enclosure.nodes)
        most = max(1, min(BATCH, REGION_CELLS // cells))
        while self.stack and not (enough and sum(len(p.at) for p in self.stack) >= enough):
            self.budget.poll()
            parts, count = [], 0
            while self.stack and count < most:
                parts.append(self.stack.pop())
                count += len(parts[-1].at)
            batch = _Regions.join(parts)
            if count > most:
                self.stack.append(batch.take(slice(most, None)))
                batch = batch.take(slice(most))
            self.stack.append(batch)  # what is interrupted has not been examined: then only its tree nodes count
            children = self._turn(batch)
            self.stack.pop()
            if len(children.at):
                self.stack.append(children)
            if self.patience is not None and self._gives_up(self.patience):
                for batch in self.stack:
                    if self.kept is not None:
                        self.kept.add(batch, batch)
                self.stack = []

    def _gives_up(self, patience: int) -> bool:
        tried = self.checked + len(self.rejected)
        return tried >= patience and self.checked < LEAST_SHARE * tried

    def take_over(self, parts: list[Kept]) -> None:
        """Take what other processes kept."""
        if self.kept is None:
            return
        for part in parts:
            for pair in zip(part.before, part.after, strict=True):
                self.kept.add(*pair)
            self.kept.lost = self.kept.lost or part.lost
            if part.root is not None:  # the process that had the root
                self.kept.root, self.kept.planes, self.kept.shift = part.root, part.planes, part.shift

    def waiting(self) -> Array:
        """(B,) tree nodes on the stack, all in one batch."""
        if len(self.stack) > 1:
            self.stack = [_Regions.join(self.stack)]
        return self.stack[0].at if self.stack else np.zeros(0, dtype=np.int64)

    def part(self, which: Array, threads: int) -> Progress:
        """Visit only the chosen waiting regions with so many threads, and say what came of it."""
        self.enclosure.threads = threads
        self.waiting()
        before, self.rejected = self.checked, []
        self.stack = [self.stack[0].take(which)] if len(which) else []
        self.kept = None if self.kept is None else Kept()
        stopped = ""
        try:
            self.run()
        except BudgetError as error:
            stopped = str(error)
        return Progress(self.checked - before, self.rejected, self.waiting(), stopped, self.kept)

    def states_evidence(self) -> bool:
        """True when each leaf that was not examined has stated refutations of all that the tree answers for.

        What a resumed walk has before it may have been examined in vain.
        """
        if self.resumed:
            return not len(self.waiting() if self.unexamined is None else self.unexamined)
        if not self.begun:
            return _covered(self.plan, np.zeros(1, dtype=np.int64))
        return _covered(self.plan, self.waiting() if self.unexamined is None else self.unexamined)

    def _turn(self, batch: _Regions) -> _Regions:
        """Bound the regions, check their refutations, and return the regions that are entered next."""
        tree = self.plan.tree
        piece = batch.depth > 0
        root = (batch.at == 0) & ~piece
        fresh = root & (not self._root_is_known)
        refresh = (np.asarray(tree.refresh, dtype=bool)[batch.at] & ~root) | fresh | piece
        leaves = np.flatnonzero(tree.left[batch.at] < 0)
        before = None if self.kept is None else batch.take(leaves)
        frame, empty = self.enclosure.sweep((batch.lo, batch.hi), batch.low, batch.up, refresh, fresh)
        if fresh.any():  # the root is always alone in its batch; tightenings below hold for this tree only
            self.roots[tree.case] = batch.low.copy(), batch.up.copy()
        batch.open = batch.open & ~empty[:, None]
        self._loosen(batch, frame)
        self._tighten(batch, frame)
        if self.kept is not None and root.any():
            self.kept.root = batch.low.copy(), batch.up.copy()
            self.kept.planes, self.kept.shift = self.planes, self.shift
        self._refute(batch, frame)
        live = np.any(batch.open, axis=1)
        self._clip(batch, frame, np.flatnonzero(live))
        live &= ~np.any(batch.lo > batch.hi, axis=1)
        self._close(batch.take(np.flatnonzero(~live)))
        stuck = np.flatnonzero(live & (tree.left[batch.at] < 0))
        halves = self._halve(batch, stuck) if len(stuck) else None
        if halves is None and len(stuck):
            self._reject(batch.take(stuck))
            if self.kept is not None and before is not None:
                self.kept.add(before.take(np.searchsorted(leaves, stuck)), batch.take(stuck))
        children = self._children(batch.take(np.flatnonzero(live & (tree.left[batch.at] >= 0))))
        return children if halves is None else _Regions.join([children, halves])

    def _loosen(self, batch: _Regions, frame: Frame) -> None:
        """What the constraints are loosened by on these regions: nothing."""

    def _close(self, batch: _Regions) -> None:
        """Count the leaves in regions where nothing is open."""
        self.checked += int(self.plan.leaves[batch.at].sum())

    def _halve(self, batch: _Regions, stuck: Array) -> _Regions | None:
        """Parts of leaves that stay open, to be looked at instead; None: there are none."""
        return None

    def _reject(self, batch: _Regions) -> None:
        """Note leaves that stay open."""
        self.rejected += list(zip(batch.at.tolist(), np.argmax(batch.open, axis=1).tolist(), strict=True))

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
                ready = [c for c in cuts if t is None or c.after <= number]
                if ready:
                    cuts = cuts[len(ready) :]
                    self._derive(ready, frame.one(b) if own is None else own)
                if t is None or region.open.sum() != 1 or not region.open[0, t.conjunction]:
                    continue
                own = frame.one(b) if own is None else own
                self._intersect(region, t, self._bounds(t, own))
                box = region.lo, region.hi
                own, empty = self.enclosure.sweep(box, region.low, region.up, nowhere, nowhere, (own, t.node))
                own.slack = None if frame.slack is None else frame.slack[b : b + 1]
                if empty[0]:
                    region.open[0] = False
            if own is not None:
                frame.put(b, own)

    def _derive(self, cuts: Sequence[Cuts], frame: Frame) -> None:
        """Add the planes that the cuts propose on the root region; those without a finite constant say `0 <= 0`."""
        e, first = self.enclosure, 0 if self.shift is None else len(self.shift)
        ends = first + np.cumsum([0, *(len(c.index) for c in cuts)])
        total = int(ends[-1])
        self.shift = e.zeros(total) if self.shift is None else np.concatenate([self.shift, e.zeros(total - first)])
        for k, p in self.planes.items():
            self.planes[k] = np.concatenate([p, e.zeros(total - first, e.nodes[k].size)])
        tasks = self._planes_of(cuts, ends[:-1].tolist(), frame)
        last = max(c.node for c in cuts)
        for number, (planes, shift) in side_by_side(tasks, e.threads_for(2 * (total - first), last)):
            for k, p in planes.items():
                if k not in self.planes:
                    self.planes[k] = e.zeros(total, e.nodes[k].size)
                self.planes[k][number] = p
            self.shift[number] = shift

    def _planes_of(
        self, cuts: Sequence[Cuts], start: Sequence[int], frame: Frame
    ) -> Iterator[tuple[Array, Callable[[], tuple[dict[int, Array], Array]]]]:
        """For some of the cuts at a time, their numbers, and what computes their planes and the constants of these."""
        step = self.enclosure.row_block
        for node in distinct(np.array([c.node for c in cuts])).tolist():
            own = [(c, first) for c, first in zip(cuts, start, strict=True) if c.node == node]
            pieces = [(c.take(np.arange(i, min(i + step, len(c.index)))), first + i) for c, first in own
                      for i in range(0, len(c.index), step)]  # fmt: skip
            while pieces:
                self.budget.poll()
                count = 1 + int(np.searchsorted(np.cumsum([len(c.index) for c, _ in pieces])[1:], step, side="right"))
                number = np.concatenate([first + np.arange(len(c.index)) for c, first in pieces[:count]])
                yield number, partial(self._some_planes, node, [c for c, _ in pieces[:count]], frame)
                pieces = pieces[count:]

    def _some_planes(self, node: int, pieces: Sequence[Cuts], frame: Frame) -> tuple[dict[int, Array], Array]:
        """`planes` and `shift` of cuts of one node."""
        e = self.enclosure
        op, source = e.nodes[node].op, e.nodes[node].inputs[0]
        assert isinstance(op, TwoPiece)
        left, right = (e.numbers(np.array(v)) for v in (op.left, op.right))
        index = np.concatenate([c.index for c in pieces])
        every, region = np.arange(len(index)), np.zeros(len(index), dtype=np.int64)
        planes = e.carriers(source, index)
        for k, w in planes.items():
            share, row = e.zeros(*w.shape), 0
            for c in pieces:
                for s in c.shares:
                    if s.node == k:
                        share[row : row + len(c.index), s.index] = e.numbers(s.value) / 255
                row += len(c.index)
            planes[k] = e.shortened(w * (left + (right - left) * share))
        least = None
        for slope in (left, right):
            rows = Rows(region, dict(planes), e.zeros(len(index)), e.zeros(len(index)))
            if slope:
                target = e.zeros(len(index), e.nodes[source].size)
                target[every, index] = -slope
                e.push(rows, source, target, frame)
            value = e.least_on_hulls(frame, rows, source)
            least = value if least is None else np.minimum(least, value)
        assert least is not None
        planes = {k: -p for k, p in planes.items()}
        planes[node] = e.zeros(len(index), e.nodes[node].size)
        planes[node][every, index] = e.numbers(np.ones(len(index)))
        lost = ~np.isfinite(least)
        least[lost] = 0.0
        for p in planes.values():
            p[lost] = 0.0
        return planes, least

    def _add_cuts(self, rows: Rows, cuts: Array, multipliers: Array, frame: Frame) -> None:
        """Add the cuts numbered `cuts (C,)` times `multipliers (R, C)`; those that were not derived add nothing."""
        derived = 0 if self.shift is None else len(self.shift)
        multipliers, cuts = multipliers[:, cuts < derived], cuts[cuts < derived]
        if not len(cuts):
            return
        assert self.shift is not None
        e = self.enclosure
        m = e.numbers(multipliers)
        if isinstance(e, ExactEnclosure):
            e.add_cuts(rows, m, {k: p[cuts] for k, p in self.planes.items()}, self.shift[cuts], frame)
            return
        for k, p in self.planes.items():
            if len(self.speaks.get(k, ())) != len(p):
                self.speaks[k] = p.any(axis=1)
            own = np.flatnonzero(self.speaks[k][cuts])  # a cut speaks of few nodes
            if not len(own):
                continue
            part, multiplier = p[cuts[own]], m[:, own]
            size = (multiplier @ norms(part)) * frame.size[k][rows.region]  # at least the norm of |multiplier| |part|
            rows.error = rows.error + gamma(len(cuts) + 8) * size
            e.push(rows, k, multiplier @ part, frame)
        rows.error = rows.error + gamma(len(cuts) + 8) * (m @ abs(self.shift[cuts]))
        e.add(rows, m @ self.shift[cuts])

    def _bounds(self, t: Tightening, frame: Frame) -> Array:
        """(R,) lower bounds of `side * value[index]` on the unsafe points of one region."""
        e, last = self.enclosure, len(self.enclosure.nodes) - 1
        out = e.zeros(len(t.index))

        def bound(part: slice) -> Array:
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
            return e.minimum(frame, e.pull(frame, rows, last))

        def tasks() -> Iterator[tuple[slice, Callable[[], Array]]]:
            for i in range(0, len(out), e.row_block):
                self.budget.poll()
                part = slice(i, i + e.row_block)
                yield part, partial(bound, part)

        for part, least in side_by_side(tasks(), e.threads_for(len(out), last)):
            out[part] = least
        return out

    def _set_row_slopes(self, rows: Rows, alphas: tuple[Alpha, ...], part: slice, frame: Frame) -> None:
        """Replace default lower slopes of one region by those of each row where that is legal."""
        for a in alphas:
            for k in self.enclosure.network.users[a.node]:
                if k in frame.lines:
                    lines = frame.lines[k]
                    free = lines.free[0, a.index]
                    slopes = rows.slopes.get(k, lines.low[rows.region])
                    slopes[:, a.index[free]] = self._slopes_at(lines, a.value[part][:, free])
                    rows.slopes[k] = slopes

    def _intersect(self, region: _Regions, t: Tightening, value: Array) -> None:
        """Intersect the bounds of one region with those of a tightening, in place; nan tightens nothing."""
        slot, below = self.enclosure.slot[t.node], t.side > 0
        np.fmax.at(region.low[0, slot], t.index[below], value[below])
        np.fmin.at(region.up[0, slot], t.index[~below], -value[~below])

    # ---- refutations ---------------------------------------------------------------------------

    def _refutations(self, at: Array) -> tuple[Array, Array]:
        """Numbers of those that are tried at tree nodes `at (B,)`, and for which of them: places in `at`."""
        return self.plan.place.among(at)

    def _refute(self, batch: _Regions, frame: Frame) -> None:
        """Close the conjunctions whose refutation holds on the region."""
        table, last = self.plan.table, len(self.enclosure.nodes) - 1
        every, where = self._refutations(batch.at)
        open_ = batch.open[where, table.conjunction[every]]
        every, where = every[open_], where[open_]
        for conjunction in distinct(table.conjunction[every]).tolist():
            chosen = table.conjunction[every] == conjunction
            group, region = every[chosen], where[chosen]
            rows = self._rows_of(group, region, conjunction, frame)
            value = self.enclosure.minimum(frame, self.enclosure.pull(frame, rows, last))
            closed = value > 0
            self._tried(group, region, rows, value)
            if frame.slack is None and self.looks_twice:
                for row in self.enclosure.near(rows, value):
                    closed[row] = self._holds_exactly(batch, frame, rows, row, int(region[row]), table[int(group[row])])
                for row in np.flatnonzero(~closed).tolist():
                    closed[row] = self._holds_by_image(table[int(group[row])])
            batch.open[region[closed], conjunction] = False

    def _rows_of(self, group: Array, region: Array, conjunction: int, frame: Frame) -> Rows:
        """The functionals of the refutations numbered `group (R,)`, all of one conjunction, on regions of the batch."""
        table, g = self.plan.table, self.constraints[conjunction]
        weights = table.weights[table.ends["weight_count"][group][:, None] + np.arange(len(g.c))]
        rows = self._functional(g, self.enclosure.numbers(weights), region, frame)
        row, entry = self._held("beta_count", group)
        positive = table.beta[entry] > 0
        row, entry = row[positive], entry[positive]
        self._add_literals(rows, row, table.literal[entry], table.beta[entry], frame)
        row, entry = self._held("cut_count", group)
        used, _, column = distinct_places(table.cut[entry])
        multipliers = np.zeros((len(group), len(used)))
        np.add.at(multipliers, (row, column), table.multiplier[entry])
        self._add_cuts(rows, used, multipliers, frame)
        self._set_slopes(rows, group, frame)
        return rows

    def _held(self, counts: str, group: Array) -> tuple[Array, Array]:
        """The entries that a field of counts gives to the refutations `group`, and to which of them."""
        ends = self.plan.table.ends[counts]
        return expanded(ends[group], ends[group + 1])

    def _tried(self, group: Array, region: Array, rows: Rows, value: Array) -> None:
        """Refutations `group (R,)` were pulled back to rows over the input on regions of the batch, with bounds."""

    def _holds_exactly(self, batch: _Regions, frame: Frame, rows: Rows, row: int, b: int, r: Refutation) -> bool:
        """Whether a refutation on region b whose bound is near 0 holds exactly, see `mucg4.check.ties`."""
        network, tree, parent = self.enclosure.rational, self.plan.tree, self.plan.parent
        if network is None or not network.is_piecewise or r.cuts is not None:
            return False
        self.budget.poll(network.work)
        literals = []
        for literal, beta in r.beta:
            split = parent[literal]
            sign = 1.0 if tree.left[split] == literal else -1.0
            literals.append(
                Literal(int(tree.node[split]), int(tree.index[split]), sign * beta, float(tree.threshold[split]))
            )
        bounds = {k: (frame.lower[k][b], frame.upper[k][b]) for k in self.enclosure.slot}
        slopes = {k: rows.slopes[k][row] if k in rows.slopes else lines.low[b] for k, lines in frame.lines.items()}
        case = self.plan.case.conjunctions[r.conjunction]
        try:
            value = network.value(case, r.weights, (batch.lo[b], batch.hi[b]), bounds, slopes, literals)
        except (OverflowError, ValueError):  # a bound that is not finite
            return False
        return refutes(case, r.weights, value)

    def _holds_by_image(self, r: Refutation) -> bool:
        """Whether the image of the last functions refutes on the whole box, see `mucg4.check.ties`."""
        case = self.plan.case.conjunctions[r.conjunction]
        if not case.strict.any():  # asked first: exact numbers of a network take a while
            return False
        network = self.enclosure.rational
        if network is None:
            return False
        key = r.conjunction, tuple(r.weights)
        if key not in self.by_image:
            if len(self.by_image) >= MOST_IMAGES:
                return False
            self.budget.poll(network.work)
            box = self.plan.case.box
            least = network.image(case, r.weights, (box.lo, box.hi))
            self.by_image[key] = least is not None and refutes(case, r.weights, least)
        return self.by_image[key]

    def _functional(self, g: _Constraints, weights: Array, region: Array, frame: Frame) -> Rows:
        """Rows `sum_i weights[:, i] g_i`. The coefficients are nearest doubles: one more rounding each."""
        e, last = self.enclosure, len(self.enclosure.nodes) - 1
        if isinstance(e, ExactEnclosure):
            return e.functional(g.stated, weights, region, frame)
        rows = Rows(region, {last: weights @ g.y}, weights @ g.c, e.zeros(len(region)))
        spread = norms(weights @ abs(g.y)) * frame.size[last][region] + weights @ abs(g.c)
        if np.any(g.x != 0):
            spread = spread + norms(weights @ abs(g.x)) * frame.size[0][region]
            e.push(rows, 0, weights @ g.x, frame)
        rows.error = rows.error + gamma(weights.shape[1] + 8) * spread
        if frame.slack is not None:
            lost = _total(weights, frame.slack[region, g.rows])
            rows.error = rows.error + gamma(weights.shape[1] + 8) * lost
            e.add(rows, -lost)
        return rows

    def _add_literals(self, rows: Rows, row: Array, literal: Array, beta: Array, frame: Frame) -> None:
        """Add `beta (z - t)` for left and `beta (t - z)` for right children; one entry per row and literal.

        Charge: a row with c entries adds up at most c of them in each coefficient (c - 1 roundings of the sum of their
        sizes) and c products in its constant (2 c - 1), so gamma(c + 8) of `beta (|z| + |t|)` covers both, and the
        largest c serves all rows.
        """
        e, tree, parent = self.enclosure, self.plan.tree, self.plan.parent
        if not len(row):
            return
        split = parent[literal]
        sign = np.where(tree.left[split] == literal, 1, -1)
        multiplier = e.numbers(beta) * sign
        threshold, node, index = e.numbers(tree.threshold[split]), tree.node[split], tree.index[split]
        if isinstance(e, ExactEnclosure):
            e.add_literals(rows, row, node, index, multiplier, threshold, frame)
            return
        reach = e.zeros(len(row))
        for k in distinct(node).tolist():
            here = node == k
            block = e.zeros(len(rows.region), e.nodes[k].size)
            np.add.at(block, (row[here], index[here]), multiplier[here])
            e.push(rows, k, block, frame)
            reach[here] = frame.magnitude[k][rows.region[row[here]], index[here]]
        shift = e.zeros(len(rows.region))
        np.add.at(shift, row, -multiplier * threshold)
        spread = np.zeros(len(rows.region))
        np.add.at(spread, row, abs(multiplier) * (reach + abs(threshold)))
        rows.error = rows.error + gamma(int(np.bincount(row).max()) + 8) * spread
        e.add(rows, shift)

    def _set_slopes(self, rows: Rows, group: Array, frame: Frame) -> None:
        """Replace default lower slopes by those of the refutations `group (R,)` where that is legal."""
        table, network = self.plan.table, self.enclosure.network
        row, slopes = self._held("group_count", group)
        ends, nodes = table.ends["slope_count"], table.slope_node[slopes]
        for node in distinct(nodes).tolist():
            own = slopes[nodes == node]
            which, entry = expanded(ends[own], ends[own + 1])
            row_of, index, value = row[nodes == node][which], table.slope_index[entry], table.slope_value[entry]
            for k in network.users[node]:
                if k in frame.lines:
                    rows.slopes[k] = self._stored_slopes(frame.lines[k], rows.region, row_of, index, value)

    def _stored_slopes(self, lines: Lines, region: Array, row: Array, index: Array, value: Array) -> Array:
        """(R, n) lower slopes: the default ones with entries `(row, index, value)` filled in, later ones last."""
        free = lines.free[region[row], index]
        slopes = lines.low[region]
        slopes[row[free], index[free]] = self._slopes_at(lines, value[free])
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
        for conjunction in distinct(which).tolist():
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
        both = batch.take(np.repeat(np.arange(count), 2))  # siblings side by side: what is near is stable alike
        parent = both.at
        left = np.arange(2 * count) % 2 == 0
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
    return np.where(weights == 0, 0.0, weights * np.where(weights == 0, 0.0, slack)).sum(axis=1)
