"""After the verdict: a proof made to be reused, so that variants re-check it cheaply and little stays open on them.

Given time, the query is searched anew first (`mucg4.reuse.anew`), and at the end the proof grows where noise opens it
(`mucg4.reuse.grown`). Between these a tree is improved in place, step by step (`STEPS`): its nodes keep their numbers,
refutations are exchanged or added, subtrees are marked as superfluous. Every change is measured in the checker's
arithmetic (`mucg4.check.margins`): on the proof's own network, where no leaf may be lost, and on copies of it with the
noise of compression (`mucg4.reuse.noise`): a refutation gives way to one that holds on more of them, and evidence is
left out only where no leaf is lost on any. Trees are taken in pieces of so many leaves that what is done when the time
is spent counts. Processes share them.

Refutations at inner nodes. The checker does not enter a subtree whose conjunctions are refuted at its root. So a
refutation that more ascent finds at an inner node (`lift`) makes the check shorter by the whole subtree, and where it
fails on a variant the subtree is still there. The subtree goes when the refutation holds on all the copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace

import numpy as np

from mucg4.bound.tighten import Ascent
from mucg4.check.margins import Gauge, Margins, Places
from mucg4.check.walk import planned
from mucg4.errors import BudgetError, ProofError
from mucg4.limits.budget import Budget
from mucg4.limits.processes import shared_out, single_thread
from mucg4.model.proof import Proof, Tree, keep_cuts
from mucg4.model.query import Query
from mucg4.model.refutations import Refutations
from mucg4.model.verdict import Statistics
from mucg4.ops.arrays import BoolArray, FloatArray, IntArray, distinct
from mucg4.records import dataclass
from mucg4.reuse.anew import searched_anew
from mucg4.reuse.grown import grown
from mucg4.reuse.improve import ascended, duals_at, literals_at, planes_of, regions_of
from mucg4.reuse.noise import NOISES, noisy
from mucg4.reuse.survey import OWN, below, subtrees, under, with_paths
from mucg4.search.run import CaseState, Run, open_case

SHARE, LEAST_SECONDS = 0.1, 0.1  # of the solving time, but at least so much; not measured
CHECK_SHARE = 2.0  # a check may take so many times the seconds there are: it has all of the proof; not measured
IMPROVING = 0.5  # share of the time that is left for the steps below, the rest for growing; not measured
PIECE = 1024  # leaves that are improved together; not measured
POLISH_STEPS = 24  # of ascent at a leaf; measured: 24 triple the median margin of a phase-split proof of mnist_fc
FIRST_STEPS, LIFT_STEPS = 8, 40  # of ascent at an inner node: on all, then on those that promise; not measured
REACH = 3.0  # the second part gains at most so many times what the first did; not measured
MARGIN_KEPT = 0.7  # share of the least margin of a piece that has to survive when evidence is left out; not measured
LEAST_SHARED = 0.5  # seconds that are worth other processes; not measured
LEAST_ROWS = 8  # fewer rows or cuts are not worth a trial; not measured
WITNESSES = 8  # leaves by which rows of tightenings are judged; not measured
THIN_ROUNDS = 4  # of giving back bounds that were missed; not measured


@dataclass
class Shop:
    """One tree at work: the gauges of its network and of the noisy copies, the case, the piece that is looked at."""

    state: CaseState
    gauges: Sequence[Gauge]  # the first measures the proof's own network
    tree: Tree
    within: BoolArray  # (N,) the piece and the path to it
    gone: BoolArray  # (N,) tree nodes whose subtrees are superfluous
    judged: list[Margins] = field(default_factory=list)  # of the tree as it is, per gauge; empty: not measured yet

    def leaves(self) -> BoolArray:
        """(N,) leaves of the piece."""
        return (self.tree.left < 0) & self.within

    def measure(self, tree: Tree) -> list[Margins]:
        """The margins on all networks."""
        plan = planned(tree, self.gauges[0].query)
        return [g.measure(plan, self.within) for g in self.gauges]

    def known(self) -> list[Margins]:
        """The margins of the tree as it is."""
        self.judged = self.judged or self.measure(self.tree)
        return self.judged

    def regions(self, tree: Tree, keep: BoolArray) -> Places:
        """The regions of the tree nodes marked in `keep (N,)`, on the own network."""
        found = self.gauges[0].measure(planned(tree, self.gauges[0].query), self.within, keep).places
        assert found is not None
        return found

    def take(self, tree: Tree, judged: list[Margins]) -> None:
        """The tree is the better one."""
        self.tree, self.judged = tree, judged

    def try_out(self, tree: Tree) -> bool:
        """Take the tree if no leaf is lost on any network, nor too much of the least margin on the own one."""
        plan, judged = planned(tree, self.gauges[0].query), []
        for gauge, before in zip(self.gauges, self.known(), strict=True):
            found = gauge.measure(plan, self.within)
            if np.any(found.open & ~before.open):
                return False
            judged.append(found)
            if len(judged) == 1 and _least(found) < MARGIN_KEPT * _least(before):
                return False
        self.take(tree, judged)
        return True


@dataclass(frozen=True)
class Step:
    """A row of the table. `apply` changes the shop's tree, or leaves it as it is."""

    name: str
    apply: Callable[[Shop], None]
    means: str
    needs_all: bool = False  # of the tree: what it changes matters everywhere


def _least(margins: Margins) -> float:
    held = margins.value[margins.value > 0]
    return float(held.min()) if len(held) else 0.0


# ---- refutations -------------------------------------------------------------------------------


def polish(shop: Shop) -> None:
    """Leaves' duals improved by ascent; per leaf and conjunction the refutation that holds on most networks stays."""
    tree, leaves = shop.tree, shop.leaves()
    new = ascended(shop.state, tree, shop.regions(tree, leaves), POLISH_STEPS, leaves & False)
    if not len(new):
        return
    both = replace(tree, refutations=Refutations.join([tree.table, new]))
    judged, table = shop.measure(both), both.table
    holds = np.sum([m.value > 0 for m in judged], axis=0)
    own = np.nan_to_num(judged[0].value, nan=0.0)
    pair = table.at.astype(np.int64) * (int(table.conjunction.max(initial=0)) + 1) + table.conjunction
    order = np.lexsort((own, holds, own > 0, pair))
    best = order[np.append(pair[order[1:]] != pair[order[:-1]], True)]
    stays = ~leaves[table.at] | np.isnan(judged[0].value)
    stays[best] = True
    hair = best[own[best] <= 0]  # closed by a hair: the checker's exact second look is not measured here
    stays |= np.isin(pair, pair[hair])
    kept = np.flatnonzero(stays)
    after = []
    for m in judged:  # what another one closes is open where the one that stays does not
        other = np.zeros(len(tree), dtype=bool)
        other[table.at[kept][leaves[table.at[kept]] & (m.value[kept] <= 0)]] = True
        closed = np.zeros(len(tree), dtype=bool)
        closed[table.at[~stays & (m.value > 0)]] = True
        after.append(replace(m, open=m.open | (other & closed), value=m.value[kept]))
    shop.take(replace(both, refutations=table.take(kept)), after)


def lift(shop: Shop) -> None:
    """Refutations at inner nodes by more ascent than the search spends on regions that it may split instead."""
    tree = shop.tree
    inner = (tree.left >= 0) & shop.within & ~shop.gone & _whole(tree, shop.within)
    if not inner.any():
        return
    places = shop.regions(tree, inner)
    none = ascended(shop.state, tree, places, 0, inner)
    first = ascended(shop.state, tree, places, FIRST_STEPS, inner)
    promising = first.margin + REACH * np.maximum(first.margin - none.margin, 0.0) > 0
    pairs = np.bincount(first.at, minlength=len(tree)) == np.bincount(first.at[promising], minlength=len(tree))
    own = np.flatnonzero(pairs[places.at])  # where every open conjunction promises
    if not len(own):
        return
    new = ascended(shop.state, tree, places.take(own), LIFT_STEPS, inner)
    closed = np.bincount(new.at, minlength=len(tree)) == np.bincount(new.at[new.margin > 0], minlength=len(tree))
    new = new.take(np.flatnonzero(closed[new.at]))
    if not len(new):
        return
    both = replace(tree, refutations=Refutations.join([tree.table, new]))
    judged = shop.measure(both)
    shop.take(both, judged)
    if len(shop.gauges) == 1:  # without copies nobody knows: the subtrees stay for where the refutations fail
        return
    # what holds on all networks makes its subtree superfluous; nan: nothing was open there, or further up
    table = both.table
    fails = np.zeros(len(tree), dtype=bool)
    for m in judged:
        fails[table.at[m.value <= 0]] = True
    stated = np.zeros(len(tree), dtype=bool)
    stated[new.at] = True
    shop.gone |= stated & ~fails


def _whole(tree: Tree, within: BoolArray) -> BoolArray:
    """(N,) inner nodes whose subtrees lie in the piece: not the path to it."""
    out: BoolArray = within.copy()
    for k in np.flatnonzero(tree.left >= 0)[::-1].tolist():
        out[k] = out[k] and out[tree.left[k]] and out[tree.right[k]]
    return out


# ---- less evidence -----------------------------------------------------------------------------


def fewer_cuts(shop: Shop) -> None:
    """Cuts with the least multipliers are left out, half of them at a time."""
    tree = shop.tree
    count = sum(len(c.index) for c in tree.cuts)
    if not count:
        return
    weight = np.zeros(count)
    np.add.at(weight, tree.table.cut, tree.table.multiplier)
    for t in tree.tightenings:
        np.add.at(weight, t.cuts, 1e-3 * t.cut_weights.mean(axis=0))
    _halved(shop, weight, lambda kept: keep_cuts(shop.tree, kept))


def fewer_rows(shop: Shop) -> None:
    """Rows of the root's tightenings with the least effect on the leaves that are closed by the least."""
    tree = shop.tree
    if not tree.tightenings:
        return
    worth = _worth(shop)
    slices, count = shop.state.bounder.slices, len(tree.tightenings)
    rank = [worth[slices[t.node].start + t.index] + (t.at > 0) * 1e9 for t in tree.tightenings]
    depth = [np.full(len(t.index), -float(t.node) - (count - k) / count) for k, t in enumerate(tree.tightenings)]
    order = np.lexsort((np.concatenate(depth), np.concatenate(rank)))  # of no effect: those of late layers first
    score = np.empty(len(order))
    score[order] = np.arange(len(order))
    _halved(shop, score, lambda kept: kept_rows(shop.tree, kept))


def _halved(shop: Shop, score: FloatArray, without: Callable[[BoolArray], Tree]) -> None:
    """Leave out what has the least score: a half, else a quarter, ... ; again while something goes."""
    size = len(score) // 2
    while size >= LEAST_ROWS:
        kept = np.ones(len(score), dtype=bool)
        kept[np.argsort(score, kind="stable")[:size]] = False
        if not shop.try_out(without(kept)):
            size //= 2
            continue
        score = score[kept]
        size = min(size, len(score) // 2)


def _worth(shop: Shop) -> FloatArray:
    """(P,) share of its margin that a leaf loses when a neuron has the bounds from before the tightenings again."""
    state, tree, bounder = shop.state, shop.tree, shop.state.bounder
    leaves = shop.leaves()
    bare = keep_cuts(
        replace(tree, tightenings=(), refutations=()), np.zeros(sum(len(c.index) for c in tree.cuts), bool)
    )
    root = np.arange(len(tree)) == 0
    before = shop.gauges[0].measure(planned(bare, shop.gauges[0].query), root, root).places
    found = shop.gauges[0].measure(planned(tree, shop.gauges[0].query), shop.within, leaves)
    assert before is not None and found.places is not None
    wide = regions_of(bounder, before, np.zeros(1, dtype=np.int64))
    neurons = distinct(np.concatenate([bounder.slices[t.node].start + t.index for t in tree.tightenings]))
    out, places, planes = np.zeros(bounder.width), found.places, planes_of(bounder, found.places)
    by_leaf = {int(r.at): (v, r) for v, r in zip(found.value.tolist(), tree.refutations, strict=True) if v > 0}
    at = [b for b, k in enumerate(places.at.tolist()) if k in by_leaf]
    at.sort(key=lambda b: by_leaf[int(places.at[b])][0])
    parents, count = tree.parents(), len(neurons)
    for b in at[:WITNESSES]:
        value, refutation = by_leaf[int(places.at[b])]
        region = regions_of(bounder, places, np.array([b]))
        literals = literals_at(bounder, tree, parents, int(places.at[b]))
        regions = region.take(np.zeros(count + 1, dtype=np.int64))
        every, free = np.arange(count), ~np.isin(neurons, list(literals))
        regions.low[every[free], neurons[free]] = wide.low[0, neurons[free]]
        regions.up[every[free], neurons[free]] = wide.up[0, neurons[free]]
        phases = np.zeros((count + 1, bounder.width), dtype=np.int8)
        for position, k in literals.items():
            phases[:, position] = np.sign(k)
        ascent = Ascent(bounder, state.objective, regions, bounder.refresh(regions, backward=False), phases, planes)
        duals = duals_at(ascent, state, [refutation] * (count + 1), [literals] * (count + 1), len(planes))
        bound = ascent.bound(duals)[0].value
        loss = (bound[-1] - bound[:-1]) / max(value, 1e-300)
        out[neurons] = np.maximum(out[neurons], np.nan_to_num(loss, nan=np.inf))
    return out


def kept_rows(tree: Tree, kept: BoolArray) -> Tree:
    """The tree with only the rows of tightenings marked in `kept`, which counts over all of them in order."""
    out, first, left = [], 0, [0]  # left: how many of the root's first tightenings stay
    for t in tree.tightenings:
        own = np.flatnonzero(kept[first : first + len(t.index)])
        first += len(t.index)
        if len(own):
            out.append(t.take(own))
        if t.at == 0:
            left.append(left[-1] + bool(len(own)))
    cuts = tuple(replace(c, after=left[min(c.after, len(left) - 1)]) for c in tree.cuts)
    return replace(tree, tightenings=tuple(out), cuts=cuts)


def thin(shop: Shop) -> None:
    """Bounds are derived anew at every other level only, and where leaves would be lost otherwise."""
    tree = shop.tree
    height = np.zeros(len(tree), dtype=np.int64)
    for k in np.flatnonzero(tree.left >= 0)[::-1].tolist():
        height[k] = 1 + max(height[tree.left[k]], height[tree.right[k]])
    off = shop.within & _whole(tree, shop.within) & (height % 2 == 1) & tree.refresh
    off[0] = False
    parents = tree.parents()
    for _ in range(THIN_ROUNDS):
        if not off.any():
            return
        thinner = replace(tree, refresh=tree.refresh & ~off)
        judged = shop.measure(thinner)
        lost = np.zeros(len(tree), dtype=bool)
        for m, b in zip(judged, shop.known(), strict=True):
            lost |= m.open & ~b.open
        if not lost.any():
            shop.take(thinner, judged)
            return
        while lost.any():  # every thinned node above gets its bounds back
            off &= ~lost
            above = parents[np.flatnonzero(lost)]
            lost = np.zeros(len(tree), dtype=bool)
            lost[above[above >= 0]] = True


def again(shop: Shop) -> None:
    """Leaves' duals once more, where tightenings or cuts went."""
    if shop.tree.tightenings or shop.tree.cuts:
        polish(shop)


# all trees go through one row after the other, so that a short time serves them all
STEPS = (
    (
        Step("polish", polish, "wider margins at the leaves"),
        Step("lift", lift, "refutations of whole subtrees"),
    ),
    (
        Step("cuts", fewer_cuts, "cuts that are not needed", True),
        Step("rows", fewer_rows, "tightenings that are not needed", True),
        Step("again", again, "duals that fit what is left", True),
        Step("thin", thin, "bounds derived anew less often"),
    ),
)


# ---- proofs ------------------------------------------------------------------------------------


def touched_up(run: Run, proof: Proof, solve_seconds: float) -> Proof:
    """The proof with the first row of the steps done on its own network, in a share of the solving time.

    Evidence is exchanged and added, not left out; the rest is as for `compact`.
    """
    seconds = max(LEAST_SECONDS, SHARE * solve_seconds)
    if run.statistics.times.get("check", 0.0) > CHECK_SHARE * seconds:
        return proof  # measuring takes about as long as checking did
    quiet, trees = _quiet(run, seconds), proof.trees
    with suppress(BudgetError, ProofError), single_thread(), np.errstate(all="ignore"):
        trees = tuple(_improved(quiet, run.budget.poll, trees, {OWN: Gauge(run.query, quiet.budget)}))
    return replace(proof, trees=trees)


def compact(run: Run, proof: Proof, effort: float, gauges: Mapping[str, Gauge]) -> Proof:
    """A proof of the same query that is made to be reused, see the module text, in `effort` seconds.

    `gauges`: see `gauges_of`. What the time does not allow stays as it is. Not checked as a whole: that is for the
    caller.
    """
    quiet, trees = _quiet(run, effort), list(proof.trees)
    gauges = under(gauges, quiet.budget)
    # what is done when the time is over counts; bounds that overflow prove nothing
    with suppress(BudgetError, ProofError), single_thread(), np.errstate(all="ignore"):
        run.report("searching anew: more room for noise, or fewer regions")
        trees = searched_anew(quiet, trees, gauges)
        with suppress(BudgetError):  # its share of the time
            trees = _improved(quiet.within(IMPROVING), run.budget.poll, trees, gauges)
        run.report("growing below the leaves that noise opens")
        trees = grown(quiet, trees, gauges)
    return replace(proof, trees=tuple(trees))


def _quiet(run: Run, seconds: float) -> Run:
    """A run of so many seconds that attacks nothing and counts for itself."""
    settings = replace(run.settings, attack=False)
    return replace(run, budget=run.budget.share(seconds), statistics=Statistics(), settings=settings)


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of tree number `tree` that is improved on its own: the tree nodes of a subtree `own (N,)`, and `within
    (N,)` with the path to it."""

    tree: int
    own: BoolArray
    within: BoolArray

    @property
    def whole(self) -> bool:
        """True when it is all of its tree."""
        return bool(self.own.all())


Done = dict[int, tuple[Tree, BoolArray]]  # by the number of a piece: its tree afterwards, and what of it is superfluous


def _improved(quiet: Run, poll: Callable[[], None], trees: Sequence[Tree], gauges: Mapping[str, Gauge]) -> list[Tree]:
    """The trees after all steps, or without noisy copies after the first row of them, each piece in one process.

    `poll` is called while processes work, which end by themselves when the run's time is over. Raises what it raises,
    `BudgetError`, `ProofError`.
    """
    timed = list(under(gauges, quiet.budget).values())
    states = {case: open_case(quiet, case) for case in {tree.case for tree in trees}}
    pieces = [piece for k, tree in enumerate(trees) for piece in _pieces(k, tree) if states[tree.case] is not None]
    size = [int(np.count_nonzero(trees[p.tree].left[p.own] < 0)) for p in pieces]
    order = np.argsort(size, kind="stable")[::-1].tolist()

    def work(numbers: Sequence[int]) -> Done:
        done: Done = {}
        try:
            for steps in STEPS if len(timed) > 1 else STEPS[:1]:
                for number in numbers:
                    piece = pieces[number]
                    tree, gone = done.get(number, (trees[piece.tree], piece.own & False))
                    state = states[tree.case]
                    assert state is not None
                    shop = Shop(state, timed, tree, piece.within & ~below(tree, gone), gone)
                    try:
                        for step in steps:
                            if piece.whole or not step.needs_all:
                                quiet.report(f"part {number + 1} of {len(pieces)}: {step.means}")
                                step.apply(shop)
                    finally:
                        done[number] = shop.tree, shop.gone
        except (BudgetError, ProofError):
            pass  # what is done counts
        return done

    workers = quiet.workers if quiet.budget.left() > LEAST_SHARED else 1
    return _merged(trees, pieces, shared_out(work, order, workers, poll))


def _merged(trees: Sequence[Tree], pieces: Sequence[Piece], done: Done) -> list[Tree]:
    """The trees with what was made of their pieces."""
    out, gone = list(trees), [np.zeros(len(tree), dtype=bool) for tree in trees]
    for number, (tree, superfluous) in done.items():
        piece = pieces[number]
        old, gone[piece.tree] = out[piece.tree], gone[piece.tree] | superfluous
        if not piece.whole:
            new, kept = tree.table, old.table
            parts = kept.take(np.flatnonzero(~piece.own[kept.at])), new.take(np.flatnonzero(piece.own[new.at]))
            refresh = np.where(piece.own, tree.refresh, old.refresh)
            tree = replace(old, refutations=Refutations.join(parts), refresh=refresh)
        out[piece.tree] = tree
    return [pruned(tree, own) for tree, own in zip(out, gone, strict=True)]


def gauges_of(query: Query, budget: Budget) -> dict[str, Gauge]:
    """The gauge of a query, OWN, and those of its noisy copies. Raises `ProofError` for operators without rules."""
    out = {OWN: Gauge(query, budget)}
    for noise in NOISES:
        network = noisy(query.network, noise)
        if network is not None:
            out[noise.name] = Gauge(Query((network,), query.cases), budget)
    return out


def _pieces(number: int, tree: Tree) -> list[Piece]:
    """The largest subtrees of at most PIECE leaves of tree `number`."""
    tops, parents = subtrees(tree, PIECE), tree.parents()
    owner = np.full(len(tree), -1)
    owner[tops] = np.arange(len(tops))
    for k in range(1, len(tree)):
        if owner[k] < 0:
            owner[k] = owner[parents[k]]
    out = []
    for which in range(len(tops)):
        own = owner == which
        out.append(Piece(number, own, with_paths(tree, own)))
    return out


def pruned(tree: Tree, gone: BoolArray) -> Tree:
    """The tree without what is below the tree nodes marked in `gone (N,)`, renumbered."""
    if not gone.any():
        return tree
    kept = ~below(tree, gone)
    number: IntArray = np.cumsum(kept) - 1
    leaf = (gone | (tree.left < 0))[kept]

    def links(child: IntArray) -> IntArray:
        return np.where(leaf, -1, number[np.maximum(child[kept], 0)]).astype(np.int32)

    table = tree.table.take(np.flatnonzero(kept[tree.table.at]))
    table = replace(
        table, at=number[table.at].astype(np.int32), literal=number[table.literal].astype(np.int32),
        core=number[table.core].astype(np.int32),
    )  # fmt: skip
    tightenings = tuple(
        replace(t, at=int(number[t.at]), literals=number[t.literals].astype(np.int32))
        for t in tree.tightenings
        if kept[t.at]
    )
    return replace(
        tree,
        node=np.where(leaf, -1, tree.node[kept]).astype(np.int32),
        index=np.where(leaf, -1, tree.index[kept]).astype(np.int32),
        threshold=tree.threshold[kept],
        left=links(tree.left),
        right=links(tree.right),
        refresh=tree.refresh[kept],
        clip=tree.clip[kept],
        refutations=table,
        tightenings=tightenings,
    )
