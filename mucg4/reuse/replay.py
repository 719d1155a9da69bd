"""The replay: a stored proof goes to the checker as it is; what it rejects goes on as an arm of the portfolio.

A stored proof in the words of this network (`translate`) is a proof like any other: what the independent checker
accepts of it needs no search, and no second check. Each leaf it rejects is an open region of a search that splits as
the stored tree was split, from the bounds that the checker has established there: first the refutations of near leaves
(`mucg4.reuse.near`) or dual ascent from the stored duals, then splits, then, where those do not keep the pace, the
portfolio from the root. What is added below the open leaves is examined from there on (`mucg4.check.resume`):
re-certifying costs one evaluation of the proof.

Before the check the attack, whose first steps came before the store was looked into if it was, descends where the
proof refutes by least (`mucg4.reuse.witnesses`); while processes check it goes on. A long proof waits until the whole
boxes have been bounded once.

Nothing stored is believed. Cost is bounded: a tree of which too few leaves hold is given up after a sample, and what
was reached of it becomes open regions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice

import numpy as np

from mucg4.check.resume import Open
from mucg4.check.walk import stated
from mucg4.errors import BudgetError, StuckError
from mucg4.evidence import Established, Examined
from mucg4.model.proof import Tree, single_leaf
from mucg4.model.query import Query, Witness
from mucg4.model.refutations import Refutations
from mucg4.model.verdict import Statistics
from mucg4.ops.arrays import BoolArray
from mucg4.reuse.aside import begin_aside, readings
from mucg4.reuse.guard import guarded
from mucg4.reuse.near import with_near
from mucg4.reuse.structure import divide, outline, splits_inputs, splits_phases, suited
from mucg4.reuse.warm import cut_planes, phases_of, regions_of, root_of, stored_duals
from mucg4.reuse.witnesses import in_boxes, in_leaves
from mucg4.search.attack import Attack
from mucg4.search.loop import Search
from mucg4.search.parallel import drive
from mucg4.search.portfolio import FIRST, TRIAL, Replayed, easily, first_steps, solve, solve_case
from mucg4.search.region import Batch
from mucg4.search.run import CaseState, Run, attack_of, new_search, open_case, root_work
from mucg4.search.standing import Standing

# leaves to check from which the whole boxes are bounded first, as strong compression makes some queries easy; measured:
# the int4 copy of ACAS Xu 1_1 under property 6 takes 0.43 s instead of 0.65, others 0.01 s more; and from which a
# process aside is worth its start, which measured on ACAS Xu costs runs with 1 to 30 leaves 15 to 25 ms
EASY = 128
SAMPLE = 96  # leaves of a tree after which it may be given up; not measured
FINDING = 8.0  # work of finding a proof by phase splits over that of checking it; measured: see `ReplayedArm`
PERSISTENCE = 4.0  # work granted to what input splits leave open, over that of checking the proof; not measured
# rows that the checker evaluates in a region, per neuron where bounds are derived anew, else; not measured
ROWS_PER_NEURON, ROWS = 2 / 3, 3


def replay_all(run: Run, trees: Sequence[Tree], own: bool = False) -> Witness | list[Tree] | Established:
    """Let the checker examine translated trees, and search what it rejects; a witness, or trees for every case.

    `trees` speak of this network's neurons (`translate`); whatever they say, what comes of them is sound. `own`: they
    are what an interrupted run of this very query left, in which few leaves hold where few had been closed.
    """
    if not trees:
        return solve(run)
    shapes = completed(run.query, trees)
    if not own and _is_long(shapes) and not any(map(splits_phases, shapes)):
        found = easily(run)
        if found is not None:
            run.statistics.from_root += len(run.query.cases)
            return found
    bare = run.settings.reuse_upto == "structure" and not own
    known = [outline(tree) for tree in shapes] if bare else shapes
    patience = None if bare or own else SAMPLE
    with run.stage("check"):
        examined = guarded(run, lambda: _examined(run, known, patience))
    if isinstance(examined, Witness):
        return examined
    if examined is not None and run.budget.spent():
        run.standing.examined(examined.report.checked, examined.report.leaves)
    run.budget.poll()
    if examined is None or examined.open() is None:
        run.statistics.from_root += len(run.query.cases)
        if examined is not None:
            run.statistics.warnings.append(f"stored results were not used: {examined.report.reason}")
        if own:
            run.leave_checkpoint()
        return solve(run)
    return go_on(run, examined, shapes if bare else (), own)


def _is_long(trees: Sequence[Tree]) -> bool:
    return sum(len(tree.leaves) for tree in trees) > EASY


class _MetError(Exception):
    """The attack has met a witness: nothing else is needed."""

    def __init__(self, witness: Witness) -> None:
        super().__init__("a witness")
        self.witness = witness


def _examined(run: Run, trees: Sequence[Tree], patience: int | None) -> Witness | Examined:
    """What the checker says of the trees, or the witness that an attack meets: before, meanwhile, or then."""

    def met(found: Iterator[Witness | None]) -> Iterator[None]:
        for witness in found:
            if witness is not None:
                raise _MetError(witness)
            yield

    attack, look = (
        met(chain.from_iterable(first_steps(run, case) for case in run.query.cases)),
        met(in_leaves(run, trees)),
    )
    try:
        for _ in islice(look, len(run.query.cases)):
            pass
        if _is_long(trees):  # others are checked sooner than another process has begun
            begin_aside(run)
        rest = chain(look, attack) if run.aside else chain(run.comparison(), look, attack)
        examined = Examined(run.query, trees, run.budget, run.workers, patience, rest, readings(run))
        if not examined.report.accepted and not run.budget.spent():
            with suppress(BudgetError):  # what was checked counts
                for _ in rest:
                    pass
    except _MetError as error:
        return error.witness
    return examined


def completed(query: Query, trees: Sequence[Tree]) -> list[Tree]:
    """The trees that answer for conjunctions of the query, each once; for the others, roots without evidence."""
    out = []
    left = {k: set(range(len(c.conjunctions))) for k, c in enumerate(query.cases) if not c.box.empty}
    for tree in trees:
        open_ = left.get(tree.case, set())
        answers = set(tree.answered(len(query.cases[tree.case].conjunctions))) if open_ else set()
        if answers and answers <= open_:
            out.append(tree)
            open_ -= answers
    missing = {case: tuple(sorted(open_)) for case, open_ in left.items() if open_}
    return out + [replace(single_leaf(), case=case, conjunctions=open_) for case, open_ in missing.items()]


def go_on(
    run: Run, examined: Examined, shapes: Sequence[Tree] = (), own: bool = False
) -> Witness | list[Tree] | Established:
    """Search what the checker rejected of the trees it examined last. Raises as `solve_case`.

    The trees it accepted, and those that are found, answer for all cases. `shapes`: for each of the trees the one whose
    outline it is. `own`: see `replay_all`.
    """
    statistics, report = run.statistics, examined.report
    opens = examined.open()
    if opens is None:
        raise StuckError(f"the check cannot be taken up again: {report.reason}")
    run.standing.take_up(opens, examined.whole)
    statistics.stored_leaves += sum(len(tree.leaves) for tree in shapes) if shapes else report.leaves
    statistics.rungs["checked"] += report.checked
    try:
        found = _searched(run, opens, shapes or [o.tree for o in opens], own)
    finally:  # a run that ends in time says how far it came, too
        closed = sum(statistics.rungs[rung] for rung in ("checked", "near", "ascent"))
        statistics.reused_share = round(closed / max(statistics.stored_leaves, 1), 4)
    return found if isinstance(found, Witness) else Established(found, examined)


def mended(run: Run, trees: Sequence[Tree], standing: Standing | None = None) -> list[Tree] | None:
    """Trees that the checker accepts of the run's query, by a search of what it rejects of the given ones.

    None where it does not accept them after that. `standing`: is told how far the search has come. Raises what a search
    raises.
    """
    run = replace(run, standing=standing or Standing(), statistics=Statistics())
    examined = Examined(run.query, trees, run.budget, run.workers)
    if not examined.report.accepted and examined.report.rejected:
        found = go_on(run, examined)
        if not isinstance(found, Established):
            return None
        examined.go_on(found.trees, run.budget, run.workers)
    return list(examined.report.proof.trees) if examined.report.accepted else None


def _searched(run: Run, opens: Sequence[Open], shapes: Sequence[Tree], is_own: bool) -> Witness | list[Tree]:
    out: list[Tree] = []
    for number in range(len(run.query.cases)):
        here = [o for o in opens if o.tree.case == number]
        boxes = [(o.lo, o.hi) for o in here if splits_inputs(o.tree)]
        look = in_boxes(run, run.query.cases[number], boxes)
        witness: Witness | None = guarded(run, partial(next, filter(None, look), None))
        if witness is not None:
            return witness
        state = open_case(run, number) if any(len(o.at) for o in here) else None
        if state is None:
            out += [o.tree for o in here]
            continue
        arm = guarded(run, partial(ReplayedArm, run, state, here, [s for s in shapes if s.case == number], is_own))
        accepted = [] if arm is None else arm.accepted
        out += accepted
        for found in solve_case(run, state, arm, accepted):
            if isinstance(found, Witness):
                return found
            out.append(found)
    run.standing.settle()
    return out


class ReplayedArm(Replayed):
    """Searches of what the checker rejected of one case's stored trees; `accepted` are those without an open region.

    `shapes` are the stored trees themselves, where the checker had no more than their outlines.

    When it gives way. What is open may take the work that was saved, but no more before an arm from the root has had
    its chance; once `patience` is spent, an outlook of more than that is enough. Checking a proof is a measure of
    finding it: a proof by phase splits takes about an eighth of its search to walk (measured on the walk that the
    search itself once made), most of which is dear work at the root; the share of its leaves that were closed is saved.
    Beginning anew with input splits wins nothing but other splits, so that several times as much is granted there.

    Before that it returns to the roots. Where phases are split, one more round of tightening gains far more at a root
    that has the stored ones than at a bare one. So where leaves promise more regions than a round costs, the root of
    their tree is tried, with the bounds that the checker has established there; the search that promises less goes on.
    Measured on an int8 copy of mnist 256x4, 100 of 180 leaves open: 1 205 regions without, 115 with it.

    Trees that this query's own search left (`is_own`), and in which nothing failed that states evidence, are that
    search itself: what comes after it is what would have come, not the same again.
    """

    patience = TRIAL * FIRST

    def __init__(
        self, run: Run, state: CaseState, opens: Sequence[Open], shapes: Sequence[Tree] = (), is_own: bool = False
    ) -> None:
        self._is_own = is_own
        self.accepted: list[Tree] = []
        self.parts: list[Part] = []
        attack = self._attack = attack_of(run, state.case)
        for o, shape in zip(opens, shapes or [o.tree for o in opens], strict=True):
            self._take_up(run, state, o, shape, attack)
        super().__init__(run, state.number, [p.search for p in self.parts], [p.mask for p in self.parts])
        self.granted = sum(granted(run.query.network.size, o, p.search) for p in self.parts for o in [p.open])

    def _take_up(self, run: Run, state: CaseState, o: Open, shape: Tree, attack: Attack | None) -> None:
        count = state.objective.count
        answers = np.isin(range(count), o.tree.answered(count))
        state = suited(run.settings, state, shape)
        if answers.sum() > 1 and not state.way.joint:  # what worked for one conjunction alone would work for each now
            o = replace(o, tree=replace(o.tree, clip=np.zeros(len(o.tree), dtype=bool), tightenings=()))
        lent = None
        if state.way.joint and shape is o.tree:
            before = len(o.at)
            o, lent = with_near(run.query, o, run.budget)
            run.statistics.rungs["near"] += before - len(o.at)
        left = o.open.any(axis=0) & answers
        masks = (
            [answers] if state.way.joint and left.any() else [np.arange(len(left)) == c for c in np.flatnonzero(left)]
        )
        self.parts += [Part(run, state, o, shape, mask, attack, lent, self._is_own) for mask in masks]
        closed = answers & ~np.any([answers & False, *masks], axis=0)
        if closed.any():
            table = o.tree.table if lent is None else Refutations.join([o.tree.table, lent])
            answered = tuple(np.flatnonzero(closed).tolist())
            self.accepted.append(replace(o.tree, refutations=table, conjunctions=answered))

    def _begin(self) -> Witness | None:
        for part in self.parts:
            self.run.statistics.replay_regions += len(part.open.at)
            part.begin()
            if part.search.witness is not None:
                return part.search.witness
        return self._divide()

    def _divide(self) -> Witness | None:
        """Do the dear first turns of bare roots that are to be divided, then divide them."""
        run, shaped = self.run, [part for part in self.parts if part.shape is not None]
        witness = self._each([part.search for part in shaped if part.search.pending is not None], 1)
        if witness is not None:
            return witness
        for part in shaped:
            if part.shape is not None and len(part.search.frontier):
                run.statistics.replay_regions += divide(part.search, part.shape) - 1
        return None

    def _step(self, step: Callable[[], Witness | None]) -> Witness | None:
        """As for every arm; what fails for another reason than that the run has to end is the store's fault, too."""
        done = guarded(self.run, lambda: (super(ReplayedArm, self)._step(step),))
        if done is None:
            self._end(StuckError("stored results could not be used"))
            return None
        return done[0]

    @property
    def is_fresh(self) -> bool:
        """True when all begins at a root, with or without stored bounds, or is this query's own with nothing wrong."""
        return all(part.begins_at_root or (self._is_own and not part.has_failed) for part in self.parts)

    def prefers_root(self, entry: float) -> bool:
        """See `Replayed`: leaves promise more regions than a root's own work costs, or took what they were granted."""
        if self._is_own or self.run.below or self.stuck is not None or self.spent < self.patience:
            return False
        open_ = [self.parts[k].search for k in self._below_roots()]
        dear = any(search.outlook() > np.log2(search.way.root_cost()) for search in open_)
        return dear or (bool(open_) and self.gives_way(entry))

    def _below_roots(self) -> list[int]:
        """Parts that are open below a root on which more work may be done."""
        return [
            k
            for k, part in enumerate(self.parts)
            if not part.begins_at_root
            and not part.tried_at_root
            and part.search.is_open
            and np.isfinite(part.search.way.root_cost())
        ]

    def return_to_root(self) -> Witness | None:
        """See `Replayed`. Where the root promises less than the leaves did, these go on; either is asked but once."""
        return self._step(self._return_to_root)

    def _return_to_root(self) -> Witness | None:
        rooted = {k: self.parts[k].at_root(self.run, self._attack) for k in self._below_roots()}
        waits = [part.search for part in rooted.values()]
        while waits:  # until there is an outlook
            witness = self._each(waits, self.patience)
            if witness is not None:
                return witness
            waits = [search for search in waits if search.is_open and not search.pace.has_split]
        for k, part in rooted.items():
            old = self.parts[k]
            old.tried_at_root = True
            if part.promises_no_more_than(old):
                # what held below the root is not what closes the case now
                self.run.statistics.rungs["checked"] -= len(old.open.tree.leaves) - len(old.open.at)
                self.parts[k], self.searches[k] = part, part.search
        return None

    def _each(self, searches: list[Search], work: float) -> Witness | None:
        """Work on all of the searches, as many at a time as there are workers: `drive` takes the first ones first."""
        run = self.run
        for first in range(0, len(searches), run.workers):
            group = searches[first : first + run.workers]
            witness = drive(group, run.workers, run.budget.work + work, run.meet)
            if witness is not None:
                return witness
        return None

    def turn(self, entry: float) -> float:
        """As for every arm, but it is judged again when what it was granted is spent."""
        if self.is_fresh:
            return super().turn(entry)
        most = self.granted - self.spent
        return max(entry - self.spent, min(self.spent, most) if most > 0 else self.spent)

    def gives_way(self, entry: float) -> bool:
        """True when an arm from the root promises more, see the class."""
        if self.stuck is not None or self.is_fresh:
            return super().gives_way(entry)
        granted = max(self.granted, entry)
        return self.spent >= granted or (self.spent >= entry and self.outlook() > np.log2(granted))

    def trees(self, rest: bool = False) -> Iterator[Tree]:
        """As for every arm; leaves that needed no split are counted."""
        for part, mask in zip(self.parts, self.masks, strict=True):
            if mask.any() and not part.has_returned and (rest or not part.search.is_open):
                left = part.search.recorder.arrays["left"][part.open.at] < 0
                self.run.statistics.rungs["ascent"] += int(np.count_nonzero(left))
        yield from super().trees(rest)


class Part:
    """The open regions of one stored tree for the conjunctions `mask (K,)`, and their search.

    `shape`: the stored tree where the checker had its root alone, which is to be divided like it; else None. `lent`:
    refutations of regions that the checker left open and that are no longer so. `dear`: a root with stored bounds is
    given its dear steps once more before it is split.
    """

    def __init__(
        self,
        run: Run,
        state: CaseState,
        o: Open,
        shape: Tree,
        mask: BoolArray,
        attack: Attack | None,
        lent: Refutations | None = None,
        dear: bool = False,
    ) -> None:
        self.dear = dear
        self.state, self.mask, self.ascends = state, mask, run.settings.reuse_upto == "ascent"
        which = np.flatnonzero(o.open[:, mask].any(axis=1))
        chosen = {f: getattr(o, f)[which] for f in ("at", "lo", "hi", "low", "up", "open")}
        self.open = replace(o, **chosen, before=(o.before[0][which], o.before[1][which]))
        region, conjunction = np.nonzero(self.open.open & mask)
        self.has_failed = bool(stated(o.tree, self.open.at[region], conjunction).any())
        self.is_bare = len(o.tree) == 1 and not o.tree.tightenings and not o.tree.cuts
        self.begins_at_root = self.is_bare or (dear and len(o.tree) == 1)
        self.tried_at_root = self.has_returned = False
        self.shape = shape if self.is_bare and len(shape) > 1 else None
        self.search: Search = new_search(run, state, attack, None if self.is_bare else o.tree, root_of(state, o))
        if lent is not None:
            self.search.recorder.lent = lent

    def begin(self) -> None:
        """Hand the open regions to the search; a bare root is begun as from scratch."""
        state, o = self.state, self.open
        if self.is_bare:
            self.search.begin(root_work(state, self.mask))
            return
        regions, phases = regions_of(state.bounder, o, state.way.refreshes), phases_of(state.bounder, o)
        work = Batch.fresh(o.at.astype(np.int64), regions, o.open & self.mask, phases)
        known = self.mask if self.ascends else self.mask & False
        self.search.take_up(work, cut_planes(state.compute, o), stored_duals(state, o, known), self.dear)

    def at_root(self, run: Run, attack: Attack | None) -> Part:
        """The same from the root of the tree, begun with the bounds and cuts that the checker has established there."""
        o, state = self.open, self.state
        tree = replace(single_leaf(refresh=bool(o.tree.refresh[0])), case=o.tree.case, conjunctions=o.tree.conjunctions)
        tightenings = tuple(t for t in o.tree.tightenings if t.at == 0)
        tree = replace(tree, tightenings=tightenings, cuts=o.tree.cuts)
        box = {"lo": state.root.lo, "hi": state.root.hi, "low": o.root[0], "up": o.root[1]}
        root = replace(o, tree=tree, at=np.zeros(1, dtype=o.at.dtype), open=self.mask[None], before=o.root, **box)
        part = Part(run, state, root, tree, self.mask, attack, dear=True)
        part.has_returned = True
        part.begin()
        return part

    def promises_no_more_than(self, other: Part) -> bool:
        """True where this search is expected to come to an end as soon, or sooner."""
        return self.search.outlook() <= other.search.outlook()


def granted(size: int, o: Open, search: Search) -> float:
    """The work that what is open of one tree may take, see `ReplayedArm`; a network of `size` numbers."""
    tree, width = o.tree, o.low.shape[1]
    rows = np.where(tree.refresh, ROWS_PER_NEURON * width, ROWS).sum() + sum(len(t.index) for t in tree.tightenings)
    if search.way.joint:
        return float(PERSISTENCE * rows * size)
    return float(FINDING * rows * size * (1 - len(o.at) / len(tree.leaves)))
