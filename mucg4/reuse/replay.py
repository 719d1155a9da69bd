"""The ladder: a stored proof's leaves are re-established on the network at hand; what stays open is searched.

Order. A stored witness, its neighbourhood and gradient steps from it come first. Then each stored
tree, translated to this network's neurons, is walked from the root in batches of one depth at a time (depth first over
batches, so memory stays bounded). Children inherit their parent's bounds on THIS network; nothing
stored is believed. Stored tightenings are evaluated anew at the node they stand at, where the conjunction
they speak of is the only open one; rows that improve a bound here go into the new proof. At a leaf the
rungs are tried on all leaves of the batch at once:

* `duals`: one backward row per stored refutation with its weights, slopes and multipliers;
* `literals`: all constraints of what is still open, default slopes, the leaf's full literals;
* `reoptimised`: dual ascent.

Invariant: every region of the walk is a node of the recorder's tree, so closed leaves and whatever the
search adds below open ones form one proof of this query. Termination: each stored tree node is visited
once. Cost is bounded: when too few leaves close after a sample, the rest of the stored tree is left
to the search at the nodes reached so far.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mucg4.bound.compute import Compute
from mucg4.bound.planes import CutPlanes, derive
from mucg4.bound.propagate import Refreshed, Regions
from mucg4.bound.tighten import Ascent, Bounded, Duals, apply_tightening
from mucg4.errors import BudgetError, ProofError, StuckError, UnsoundError
from mucg4.model.proof import Cuts, Refutation, Tightening, Tree
from mucg4.model.query import Witness
from mucg4.model.verdict import Statistics
from mucg4.ops.arrays import NUMPY
from mucg4.ops.base import Array
from mucg4.reuse.fits import parts, suited, usable_trees
from mucg4.reuse.relation import Match, relate, translate
from mucg4.search.inputs import clip
from mucg4.search.loop import Search
from mucg4.search.parallel import drive
from mucg4.search.portfolio import solve, solve_case
from mucg4.search.region import Batch, apply_literals
from mucg4.search.run import CaseState, Run, attack_of, new_search, open_case, root_work

if TYPE_CHECKING:
    from mucg4.store.related import Related
    from mucg4.store.store import Store

SAMPLE = 96  # leaves tried before the ladder may give up
LEAST_SHARE = 0.4  # of the sampled leaves must close for the walk to go on
BATCH = 512
COMFORT = 0.02  # margins below this share of the functional's range over its box are widened
NOT_THERE = "stored evidence was re-established in NumPy; the device searched what stayed open"
CAUTION = 64.0  # how many times rounding is charged where the checker disagreed
FEW = 8  # batches up to this size are near the root or cheap anyway


class Replay:
    """Walks one stored tree on one case; leaves what is open in `search`'s frontier."""

    def __init__(
        self,
        run: Run,
        state: CaseState,
        tree: Tree,
        rung: str = "duals",
        widen: int = 0,
        distrusted: frozenset[int] = frozenset(),
    ) -> None:
        """`rung` names what stored duals count as; `widen` ascent steps are spent on margins close to zero.

        Tree nodes that are `distrusted` are searched, whatever the evidence stored at them says.
        """
        self.run, self.state, self.tree, self.rung, self.widen = run, state, tree, rung, widen
        self.search: Search = new_search(run, state, attack_of(run, state.case))
        self.evidence: dict[int, list[Refutation]] = defaultdict(list)
        self.distrusted = np.isin(np.arange(len(tree)), list(distrusted))
        for r in tree.refutations:
            if not self.distrusted[r.at]:
                self.evidence[r.at].append(r)
        self.tightenings: dict[int, list[Tightening]] = defaultdict(list)
        for t in tree.tightenings:
            self.tightenings[t.at].append(t)
        self.compute = (
            state.compute if state.compute.backend == NUMPY else Compute.of(state.bounder, state.objective, NUMPY)
        )
        self.planes = CutPlanes.none(self.compute.bounder.lo)  # the stored cuts on this network
        self.parents = tree.parents()
        self.below = tree.leaf_counts()
        self.tried = self.closed = 0
        self.refreshed: Refreshed | None = None  # of the batch that is visited, where bounds are re-derived

    def walk(self) -> Search:
        """Visit the stored tree; returns the search with its recorder and frontier filled."""
        count = self.state.objective.count
        covers = self.tree.conjunctions
        mask = np.ones(count, dtype=bool) if covers is None else np.isin(np.arange(count), covers)
        stack = [(np.zeros(1, dtype=np.int64), root_work(self.state, mask))]
        while stack and self.search.witness is None:
            self.run.budget.poll()
            at, work = stack.pop()
            inner = self.visit(at, work)
            if inner is not None:
                stack.extend(inner)
        return self.search

    def visit(self, at: Array, work: Batch) -> list[tuple[Array, Batch]] | None:
        """Bound the regions of the stored nodes `at (B,)`; returns the children as further batches."""
        run, tree = self.run, self.tree
        alive = ~work.regions.empty()
        at, work = at[alive], work.take(np.flatnonzero(alive))
        if not len(at):
            return None
        run.statistics.replay_regions += len(at)
        giving_up = self.tried >= SAMPLE and self.closed < LEAST_SHARE * self.tried
        leaf = tree.left[at] < 0
        if giving_up:
            leaf = np.ones(len(at), dtype=bool)
        if self.state.way.refreshes:  # whatever the stored tree did: the new one says so, and the checker will
            self.refreshed = self.compute.refresh(work.regions)[1]
        self._tighten(at, work)
        self._close_by_duals(at, work)
        if len(at) <= FEW:
            self.search.close_single_constraints(work)  # few regions near the root stand for many leaves
        self.improve(at, work)
        still = work.open.any(axis=1) & ~work.regions.empty()
        done = int(self.below[at[~still]].sum())  # stored leaves of the regions and whole subtrees just closed
        self.closed += done
        self.tried += done + int(np.count_nonzero(leaf & still))
        run.statistics.rungs[self.rung] += done
        self._leaves(work, np.flatnonzero(leaf & still))
        return self._children(at, work, np.flatnonzero(~leaf & still))

    def lines(self, part: Batch, which: Array) -> Refreshed:
        """The relaxations of `part`, which are the regions `which` of the batch that is visited."""
        if self.refreshed is None:
            return self.compute.refresh(part.regions, backward=False)[1]
        return self.refreshed.take(which)

    def ascent(self, part: Batch, refreshed: Refreshed) -> Ascent:
        """Dual ascent on the regions of `part`, as the compute knows them."""
        compute, phases = self.compute, self.compute.place_neurons(part.phases)
        return Ascent(compute.bounder, compute.objective, compute.place(part.regions), refreshed, phases, self.planes)

    def record(self, part: Batch, ascent: Ascent, duals: Duals, bounded: Bounded, closed: Array, own: int) -> None:
        """Put refutations `closed (B,)` of conjunction `own` by the compute's duals into the new proof."""
        default, plain = self.compute.on_neurons(ascent.default_alpha()), self.compute.plain(duals)
        self.search.close_duals(part, default, own, plain, bounded.value, closed)

    def improve(self, at: Array, work: Batch) -> None:
        """Hook for walks that do more at the nodes they pass (compaction)."""

    def _tighten(self, at: Array, work: Batch) -> None:
        """Apply the tightenings stored at these tree nodes, in place; what helps is recorded.

        Not where bounds are refreshed (input splits): a bound that is refreshed after a tightening uses it, and
        the checker refreshes before. Nor would small boxes on which a neuron made stable by a tightening has the
        other sign, so that they hold nothing unsafe, ever show it.
        """
        bounder, objective = self.state.bounder, self.state.objective
        if self.state.way.refreshes or not (self.tightenings or self.tree.cuts):
            return
        for b, k in enumerate(at.tolist()):
            region = work.regions.one(b)
            cuts = [] if k else list(self.tree.cuts)
            for number, t in enumerate((*self.tightenings.get(k, ()), None)):
                while cuts and (t is None or cuts[0].after <= number):
                    self._derive(cuts.pop(0), region)
                if t is None or work.open[b].sum() != 1 or not work.open[b, t.conjunction]:
                    continue
                bounder.refresh(region, backward=False)
                found = [self._position(literal) for literal in t.literals.tolist()]
                position = np.array([-1 if p is None else p for p in found], dtype=np.int64)
                sign = np.where(position >= 0, work.phases[b, position], 0)
                known = np.flatnonzero(t.cuts < len(self.planes))
                t = replace(t, cuts=t.cuts[known], cut_weights=t.cut_weights[:, known])
                planes = self.planes.take(t.cuts)
                helped = apply_tightening(bounder, objective, region, t, position, sign, planes)
                self.search.recorder.tighten(int(work.ids[b]), t, helped, np.where(sign != 0, position, -1))
                if np.any(region.empty()):  # nothing is unsafe there
                    work.open[b] = False

    def _derive(self, cuts: Cuts, region: Regions) -> None:
        """Add stored cuts as they are on this network; all of them, so that they keep their numbers."""
        search, first = self.search, len(self.planes)
        self.state.bounder.refresh(region, backward=False)
        self.planes = self.planes.joined(derive(self.state.bounder, region, cuts, first))
        compute, way = self.state.compute.bounder, search.way
        same = compute is self.state.bounder
        way.planes = self.planes if same else way.planes.joined(derive(compute, region, cuts, first))
        search.recorder.cuts.append(replace(cuts, after=search.recorder.root_tightenings))

    def _close_by_duals(self, at: Array, work: Batch) -> None:
        """Rung `duals`: evaluate the refutations stored at these tree nodes."""
        pairs = [
            (b, r)
            for b, k in enumerate(at.tolist())
            for r in self.evidence.get(k, ())
            if r.conjunction < work.open.shape[1]
        ]
        pairs = [(b, r) for b, r in pairs if work.open[b, r.conjunction]]
        if not pairs:
            return
        rows = np.array([b for b, _ in pairs])
        part = work.take(rows)
        refreshed = self.lines(part, rows)
        ascent = self.ascent(part, refreshed)
        duals = self._stored_duals(ascent, [r for _, r in pairs], part)
        bounded, _ = ascent.bound(duals)
        if self.widen:
            duals, bounded = self._widened(ascent, duals, bounded, self.widen)
        closed = bounded.value > 0
        for c in {r.conjunction for _, r in pairs}:
            own = closed & np.array([r.conjunction == c for _, r in pairs])
            self.record(part, ascent, duals, bounded, own, c)
            work.open[rows[own], c] = False

    @staticmethod
    def _widened(ascent: Ascent, duals: Duals, bounded: Bounded, steps: int) -> tuple[Duals, Bounded]:
        """Duals improved when some margins are below the comfortable share of the functional's range."""
        size = np.abs(bounded.rows.coeffs * (ascent.regions.hi - ascent.regions.lo)).sum(axis=1)
        if not np.any(bounded.value < COMFORT * size):
            return duals, bounded
        return ascent.run(duals, steps)

    def _stored_duals(self, ascent: Ascent, refutations: list[Refutation], part: Batch) -> Duals:
        """Stored weights, slopes and multipliers laid out for these regions, as the compute's neurons."""
        objective, slices = self.state.objective, self.state.bounder.slices
        weights = np.zeros((len(refutations), len(objective.owner)))
        duals = self.compute.plain(ascent.default_duals(weights))
        duals.cuts = np.zeros((len(refutations), len(self.planes)))
        for b, r in enumerate(refutations):
            if r.cuts is not None:
                known = r.cuts[0] < len(self.planes)
                duals.cuts[b, r.cuts[0][known]] = r.cuts[1][known]
            own = objective.rows_of(r.conjunction)
            width = own.stop - own.start
            weights[b, own] = np.asarray(r.weights[:width] + (0.0,) * (width - len(r.weights)))
            for a in r.alpha:
                if a.node in slices:
                    duals.alpha[b, slices[a.node].start + a.index] = a.value / 255.0
            for literal, value in r.beta:
                position = self._position(literal)
                if position is not None and part.phases[b, position]:
                    duals.beta[b, position] = value
        return self.compute.narrowed(duals)

    def _position(self, literal: int) -> int | None:
        """Flat pre-activation position of the phase literal introduced by stored tree node `literal`."""
        parent = int(self.parents[literal])
        if parent < 0 or self.tree.node[parent] <= 0:
            return None
        return int(self.state.bounder.slices[int(self.tree.node[parent])].start) + int(self.tree.index[parent])

    def _leaves(self, work: Batch, which: Array) -> None:
        """Rungs `literals` and `reoptimised`; what stays open joins the search's frontier."""
        if not len(which):
            return
        search, statistics = self.search, self.run.statistics
        regions_before, open_before = statistics.regions, len(search.frontier)
        search.bound(work.take(which))
        statistics.replay_regions += statistics.regions - regions_before
        statistics.regions = regions_before
        closed = len(which) - (len(search.frontier) - open_before)
        statistics.rungs["literals" if self.state.way.joint else "reoptimised"] += closed
        self.closed += closed

    def _children(self, at: Array, work: Batch, which: Array) -> list[tuple[Array, Batch]]:
        """Split the inner nodes as the stored tree does; batches of at most BATCH regions."""
        out = []
        tree, state = self.tree, self.state
        self._clip(at, work, which)
        half = max(1, min(BATCH, 4 * state.plan.batch) // 2)
        for begin in range(0, len(which), half):
            part = which[begin : begin + half]
            k, sub = at[part], work.take(part)
            node, index, threshold = tree.node[k], tree.index[k], tree.threshold[k]
            left, right = self.search.recorder.split(sub.ids, node, index, threshold, state.way.refreshes)
            both = np.concatenate([np.arange(len(part))] * 2)
            children = sub.take(both)
            upper = np.arange(len(both)) >= len(part)
            apply_literals(
                state.bounder, children.regions, node[both], index[both], threshold[both], upper, children.phases
            )
            children.ids = np.concatenate([left, right])
            out.append((np.concatenate([tree.left[k], tree.right[k]]), children))
        return out

    def _clip(self, at: Array, work: Batch, which: Array) -> None:
        """Clip where the stored proof did and the rule still applies (one open conjunction)."""
        own = which[self.tree.clip[at[which]]] if len(which) else which
        if not len(own):
            return
        sub = work.take(own)
        refreshed = self.lines(sub, own)
        compute = self.compute
        evaluation = compute.objective.evaluate(compute.bounder, compute.place(sub.regions), refreshed, sub.open)
        evaluation.coeffs = compute.on_inputs(evaluation.coeffs)
        clipped = clip(self.state.objective, sub, evaluation, np.ones(len(own), dtype=bool))
        self.search.recorder.clip[sub.ids[clipped]] = True
        for f in ("lo", "hi"):
            getattr(work.regions, f)[own] = getattr(sub.regions, f)


def neighbourhood(point: Array, lo: Array, hi: Array, rng: np.random.Generator) -> Array:
    """A stored witness and points around it at several scales, inside the box; `(N, d)`."""
    scale = np.repeat([0.0, 1e-3, 1e-2, 5e-2, 0.2], 8)[:, None]
    return np.clip(point + scale * (hi - lo) * rng.uniform(-1, 1, size=(len(scale), len(point))), lo, hi)


def replay_witness_points(run: Run, points: Array) -> Witness | None:
    """Rung `witness`: stored counterexamples, their neighbourhood, then gradient steps from there."""
    for case in run.query.cases:
        attack = attack_of(run, case)
        if attack is None or case.box.empty or not case.conjunctions:
            continue
        lo, hi = case.box.lo, case.box.hi
        for point in points:
            found = attack.descend(neighbourhood(point, lo, hi, attack.rng), lo, hi, 10, run.budget)
            if found is not None:
                run.statistics.rungs["witness"] += 1
                return found
    return None


def replay_case(run: Run, case: CaseState, trees: list[Tree], rung: str) -> Witness | None:
    """Replay the trees on one case and search what stays open; trees go to `case.trees`."""
    states = [suited(run.settings, case, whole) for whole in trees]
    for state, tree in [(s, part) for s, whole in zip(states, trees, strict=True) for part in parts(s, whole)]:
        search = Replay(run, state, tree, rung).walk()
        witness = drive([search], run.workers)
        if witness is not None:
            return witness
        state.trees.append(search.recorder.tree(state.number, tree.conjunctions))
    return None


def replay_best(run: Run, store: Store) -> Witness | list[Tree] | None:
    """Use what the store knows about related queries; None when nothing there helps.

    This is the boundary behind which nothing stored can cost a verdict: whatever goes wrong with it, a replay that gets
    stuck included, is a warning and None. Raises `BudgetError` when the budget is spent, and `UnsoundError`.
    """
    try:
        return _replay_best(run, store)
    except UnsoundError:
        raise
    except Exception as error:  # a stored entry is a hint, and a wrong one may break anything
        if run.budget.spent() or (isinstance(error, BudgetError) and not isinstance(error, StuckError)):
            raise
        run.statistics.warnings.append(f"stored results were not used: {' '.join(str(error).split())}")
        return None


def _related_here(run: Run, store: Store) -> list[tuple[Related, Match]]:
    """The candidates with their relations, the most promising first; without those that cannot be compared."""
    out: list[tuple[Related, Match]] = []
    for related in store.related(run.query):
        try:
            found = relate(related, run.query)
        except Exception as error:  # noqa: BLE001 - a network that decodes may still be beyond comparing
            related.broken("weights", related.fingerprint, f"it cannot be compared: {error}")
            continue
        if found.relation != "unrelated":
            out.append((related, found))
    return out


def _most_helpful(candidates: list[tuple[Related, Match]]) -> tuple[Related, Match] | None:
    """The first candidate, or the first proof of the same unsafe set behind a witness; what does not decode is none."""
    left = list(candidates)
    while left:
        proofs = (c for c in left if c[0].word == "unsat" and c[0].same_unsafe)
        chosen = next(proofs, left[0]) if left[0][0].word == "sat" else left[0]
        related = chosen[0]
        if not related.same_unsafe or (related.proof if related.word == "unsat" else related.witness_x) is not None:
            return chosen
        left.remove(chosen)
    return None


def _replay_best(run: Run, store: Store) -> Witness | list[Tree] | None:
    """See `replay_best`. The relation to the most promising entry goes into the statistics."""
    candidates = _related_here(run, store)
    chosen = _most_helpful(candidates)
    if chosen is None:
        return None
    related, found = chosen
    points: list[Array] = []
    for other, _ in candidates:
        if other.word == "sat" and other.same_unsafe and other.witness_x is not None and len(points) < 2:
            points.append(np.asarray(other.witness_x, dtype=np.float64))
    statistics = run.statistics
    statistics.relation, statistics.relation_detail, statistics.related_proof = (
        found.relation,
        found.detail,
        related.key,
    )
    statistics.scratch_seconds = related.scratch_seconds
    store.touch(related.key)
    points = [p for p in points if p.shape == (run.query.network.input_size,)]
    if points:
        witness = replay_witness_points(run, np.array(points))
        if witness is not None:
            return witness
    trees = _translated(related, found)
    if not trees:
        return None
    return replay_all(run, trees, "stored-verdict" if related.key == run.query.key else "duals")


def replay_all(run: Run, trees: list[Tree], rung: str) -> Witness | list[Tree]:
    """Replay translated trees on every case they answer for; search the others from scratch."""
    statistics = run.statistics
    started = time.monotonic()

    def search_case(run: Run, state: CaseState) -> Witness | None:
        own = usable_trees(state, trees)
        if not own:
            return solve_case(run, state)
        statistics.stored_leaves += sum(len(t.leaves) for t in own)
        if run.settings.device and NOT_THERE not in statistics.warnings:
            statistics.warnings.append(NOT_THERE)
        return replay_case(run, state, own, rung)

    try:
        return solve(run, search_case)
    finally:
        statistics.times["replay"] = round(time.monotonic() - started, 4)
        closed = sum(v for k, v in statistics.rungs.items() if k != "witness")
        statistics.reused_share = round(closed / statistics.stored_leaves, 4) if statistics.stored_leaves else 0.0


def reopen(run: Run, trees: list[Tree], rejected: Sequence[tuple[int, int, int]]) -> Witness | list[Tree]:
    """The trees with the leaves that the checker rejected, `(tree, tree node, conjunction)`, searched again.

    Such leaves were closed by a hair, where the search's charge for rounding and the checker's differ: now rounding is
    charged CAUTION times. What the other leaves state is evaluated, not searched. Raises `BudgetError`.
    """
    careful = replace(run, caution=CAUTION, statistics=Statistics())
    out: list[Tree] = []
    for number, tree in enumerate(trees):
        leaves = frozenset(leaf for k, leaf, _ in rejected if k == number)
        opened = open_case(careful, tree.case) if leaves else None
        if opened is None:
            out.append(tree)
            continue
        state = suited(run.settings, opened, tree)
        for part in parts(state, tree):
            search = Replay(careful, state, part, distrusted=leaves).walk()
            witness = drive([search], run.workers)
            if witness is not None:
                return witness
            out.append(search.recorder.tree(state.number, part.conjunctions))
    run.statistics.regions += careful.statistics.regions
    return out


def _translated(related: Related, found: Match) -> list[Tree]:
    """The stored trees on this network's neurons; none when the entry holds no usable proof."""
    if (
        related.word != "unsat"
        or not related.same_unsafe
        or found.alignment is None
        or related.box_relation == "disjoint"
    ):
        return []
    proof = related.proof
    if proof is None:
        return []
    try:
        return [translate(tree, found.alignment) for tree in proof.trees]
    except (ProofError, IndexError):
        return []  # a stored entry is a hint: one that does not fit is a miss
