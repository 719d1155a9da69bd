"""From a query to trees or a witness: the first attack, and a portfolio of arms, ways to search a case, for each case.

All searching is owned here. An arm begins at the root of its case (`Fresh`), or at the leaves of stored trees that the
checker rejected (`mucg4.reuse.replay`); both go on alike, in turns that their outlooks decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np

from mucg4.errors import StuckError
from mucg4.gate.witness import replay_witness
from mucg4.model.proof import Tree
from mucg4.model.query import Case, Witness
from mucg4.model.verdict import Statistics
from mucg4.ops.arrays import BoolArray
from mucg4.search.attack import Attack
from mucg4.search.boxes import decide_at_once
from mucg4.search.loop import LONG_STEPS, Search
from mucg4.search.parallel import drive
from mucg4.search.run import (
    CaseState,
    Run,
    attack_of,
    new_search,
    open_case,
    points,
    root_work,
)
from mucg4.search.standing import Extent, Standing
from mucg4.search.way import Way

AnyWay = type[Way[Any]]
FIRST = 48_000_000  # work of one mode before another is tried: about a second of one core; not measured as a choice
STALLED = 1.0  # a search stalls when it expects 2 ** STALLED times the work it has spent; not measured
# share of the least work of the first mode that the other one may take before their outlooks are compared;
# not measured
TRIAL = 0.25
LATE = 80  # the other mode is tried anyway after so many times the work that a stall needs; not measured
# how much better (binary logarithm) another arm's outlook must be than that of the arm that went last; not measured
HELD = 2.0
# steps of the attack before the store is looked into; measured: on ACAS Xu they take 1 ms each, a look-up 10 to 70
EARLY = 4
FAIR = 1 / 16  # the slower arm gets this share of the other's work; not measured
HOPELESS, JUDGED = 64.0, 64  # unless its outlook is so much worse after so many regions; not measured


def first_attack(run: Run, case: Case) -> Witness | None:
    """A short attack before anything is bounded."""
    return next(filter(None, first_steps(run, case)), None)


def early_attack(run: Run) -> Witness | None:
    """Its first steps, before the store is looked into: there most witnesses are met."""
    steps = chain.from_iterable(first_steps(run, case) for case in run.query.cases)
    return next(filter(None, islice(steps, EARLY)), None)


def first_steps(run: Run, case: Case) -> Iterator[Witness | None]:
    """Of `first_attack` what each step has found, up to the first witness. They go on where they were left."""
    if not run.settings.attack or case.box.empty or not case.conjunctions:
        return iter(())
    key = run.query, case
    if key not in run.begun_attacks:
        attack = attack_of(run, case)
        assert attack is not None
        run.begun_attacks[key] = attack.running(points(run, 8, 256), 12, run.budget)
    return run.begun_attacks[key]


class Arm:
    """One way to close a case: searches, and for each the conjunctions, a mask `(K,)`, that it answers for.

    How the searches come to their first open regions is left to `_begin`, which returns a witness if it meets one.
    """

    handicap = 0.0  # how much better (binary logarithm) its outlook must be than that of others

    def __init__(self, run: Run, number: int, searches: Sequence[Search], masks: Sequence[BoolArray]) -> None:
        self.run, self.number, self.searches, self.masks = run, number, list(searches), list(masks)
        self.spent = 0
        self.stuck: StuckError | None = None
        self._begun = False  # a search that has not begun has no open region, and has refuted nothing
        self._known: BoolArray = ~np.any(self.masks, axis=0)  # `closed` before the step that got stuck
        self._undone = [mask & False for mask in self.masks]  # what each search answered for in vain

    def _begin(self) -> Witness | None:
        raise NotImplementedError

    def begin(self) -> Witness | None:
        """The first steps; the dear ones at a root wait."""
        return self._step(self._first_steps)

    def _first_steps(self) -> Witness | None:
        witness = self._begin()
        self._begun = witness is None
        return witness

    def advance(self, work: float) -> Witness | None:
        """Search until nothing is open or so much more work is done."""
        until = self.run.budget.work + work
        return self._step(lambda: drive(self.searches, self.run.workers, until, self.run.meet))

    def turn(self, entry: float) -> float:
        """The work of the next turn: up to `entry`, at which this arm is judged, then as much as there was."""
        return max(entry - self.spent, self.spent)

    def _step(self, step: Callable[[], Witness | None]) -> Witness | None:
        """Do a step, count its work. One that gets stuck ends the arm: it answers for what it had closed before."""
        if self.stuck is not None:
            return None
        before, self._known = self.run.budget.work, self.closed
        try:
            return step()
        except StuckError as error:
            self._end(error)
            judged = len(error.points) and self.run.query.executable
            return replay_witness(self.run.query, error.points, self.run.runtime) if judged else None
        finally:
            self.spent += self.run.budget.work - before

    def _end(self, error: StuckError) -> None:
        self.stuck = error
        self._undone = [mask & ~self._known for mask in self.masks]
        self.masks = [mask & self._known for mask in self.masks]

    @property
    def way(self) -> AnyWay | None:
        """How its searches split; None where they differ."""
        ways = {type(search.way) for search in self.searches}
        return ways.pop() if len(ways) == 1 else None

    @property
    def is_open(self) -> bool:
        """True while some search has an open region, for ever once one is stuck."""
        return self.stuck is not None or any(search.is_open for search in self.searches)

    @property
    def closed(self) -> BoolArray:
        """(K,) conjunctions that this arm, or another, has refuted everywhere."""
        if self.stuck is not None or not self._begun:
            return self._known
        closed = [search.closed() | ~mask for search, mask in zip(self.searches, self.masks, strict=True)]
        return np.asarray(np.all(closed, axis=0))

    def forget(self, closed: BoolArray) -> None:
        """Leave conjunctions that another arm refuted, `(K,)`, to that one."""
        for k, search in enumerate(self.searches):
            if (closed & self.masks[k]).any():
                search.forget(closed)
                self.masks[k] = self.masks[k] & ~closed
            self._undone[k] = self._undone[k] & ~closed

    @property
    def regions(self) -> int:
        """Regions in the trees."""
        return sum(search.recorder.count for search in self.searches)

    def _growth(self) -> float:
        """Binary logarithm of the regions that are expected over those that there were."""
        return float(np.logaddexp2.reduce([search.outlook() for search in self.searches]) - np.log2(self.regions))

    def outlook(self) -> float:
        """Binary logarithm of the work that this arm needs more: what it expects, but at least what it has spent."""
        return float(np.log2(max(self.spent, 1))) + max(self._growth(), 0.0)

    @property
    def stalls(self) -> bool:
        """True when much more work is expected than was spent."""
        return self._growth() > STALLED

    def gives_way(self, entry: float) -> bool:
        """True when another arm is to be tried: after `entry` work no end is in sight, or none came long after that."""
        return self.stuck is not None or (self.spent >= entry and (self.stalls or self.spent >= LATE * entry))

    def trees(self, rest: bool = False) -> Iterator[Tree]:
        """Trees of the searches that have nothing open, or of all when this is the `rest`; each is given out once."""
        for k, (search, mask) in enumerate(zip(self.searches, self.masks, strict=True)):
            if mask.any() and (rest or (self._begun and self.stuck is None and not search.is_open)):
                self.masks[k] = np.zeros_like(mask)
                yield self._tree(search, mask)

    def _tree(self, search: Search, mask: BoolArray) -> Tree:
        return search.recorder.tree(self.number, None if mask.all() else tuple(np.flatnonzero(mask).tolist()))

    def _asked(self) -> Iterator[tuple[Search, BoolArray]]:
        """Searches that have begun, with the conjunctions that each is at, or was when it got stuck."""
        if self._begun:
            for search, mask, undone in zip(self.searches, self.masks, self._undone, strict=True):
                yield search, mask | undone

    def extent(self) -> Extent:
        """What is open of the case, as far as this arm has come."""
        own = [search.extent().among(mask) for search, mask in self._asked()]
        return Extent.whole(len(self._known)).joined(own)

    def unfinished(self, left: BoolArray) -> Iterator[tuple[Tree, BoolArray]]:
        """Trees as far as they go, and the conjunctions `(K,)` each answers for: among those `left (K,)` only."""
        for search, mask in self._asked():
            if (mask & left).any():
                yield self._tree(search, mask & left), mask & left


class Fresh(Arm):
    """The conjunctions marked in `open_ (K,)` from the root of the case, in the mode of `state`.

    One search for all conjunctions where inputs are split, which serves them all; one for each where phases are.
    """

    def __init__(self, run: Run, state: CaseState, attack: Attack | None, open_: BoolArray) -> None:
        self.state = state
        each = [mask for mask in np.eye(len(open_), dtype=bool) if (mask & open_).any()]
        masks = [open_] if state.way.joint else each
        super().__init__(run, state.number, [new_search(run, state, attack) for _ in masks], masks)

    def _begin(self) -> Witness | None:
        for search, mask in zip(self.searches, self.masks, strict=True):
            search.begin(root_work(self.state, mask))
            if search.witness is not None:
                return search.witness
        return None


class Replayed(Arm):
    """An arm that begins where the check of stored trees leaves off; see `mucg4.reuse.replay`.

    `patience`: the work after which it is judged whether an arm from the root promises more. `is_fresh`: nothing that
    was stored is left in it, so that it is an arm from the root itself. Both are known once it has begun.
    """

    patience = 0.0
    handicap = HELD  # measured: what stored trees leave open closed quickly at first, and promised an end throughout

    @property
    def is_fresh(self) -> bool:
        return False

    @property
    def fresh_way(self) -> AnyWay | None:
        """How it splits where it is an arm from the root itself and can go on; else None."""
        return self.way if self.is_fresh and self.stuck is None else None

    def prefers_root(self, entry: float) -> bool:
        """True where what is stored of a root is likely to help more than what is stored below it."""
        return False

    def return_to_root(self) -> Witness | None:
        """Go on from such roots."""
        return None


class Contest:
    """The arms of one case, and whose turn it is.

    What is split first is chosen by features (`preferred_way`). Once that search has taken FIRST work, and by its own
    outlook does not come to an end soon, the other mode is tried; also when it has missed its outlook LATE times. From
    then on the arm with the better outlook goes on, the other one a little. Measured: random 3-SAT as a network of 20
    to 95 inputs is closed by splits of inputs in seconds and not by those of phases in minutes; texts embedded in 30
    inputs (safenlp) are the other way round.

    A replayed arm goes before all that. When it gives way, the portfolio begins at the root as if nothing had been
    stored, with what is still open, and the replayed arm stays one among the others: no store can cost a verdict.
    """

    def __init__(self, run: Run, state: CaseState) -> None:
        self.run, self.state = run, state
        self.attack = attack_of(run, state.case)
        self.arms: list[Arm] = []
        self.following: AnyWay | None = state.way  # of the next arm from the root
        self.entry = float("inf")  # the work at which the newest arm is judged
        self._tried: set[AnyWay] = set()  # by arms from the root

    def begin(self, replayed: Replayed | None = None) -> Witness | None:
        """The first steps of the first arm."""
        if replayed is None:
            return self._enter()
        self.arms.append(replayed)
        self.latest: Arm = replayed
        witness = replayed.begin()
        way = replayed.fresh_way
        if witness is None and way is not None and not self.run.below:
            return self._settle(way)
        self.following = None if self.run.below else replayed.way or self.state.way
        self.entry = replayed.patience
        return witness

    def go_on(self) -> Witness | None:
        """One more step of one arm. Raises `StuckError` when none can go on."""
        newest = self.arms[-1]
        if isinstance(newest, Replayed) and newest.prefers_root(self.entry):
            return self._return(newest)
        if self.following is not None and newest.gives_way(self.entry):
            before = "stored trees" if newest.way is None else f"splits of {newest.way.name}"
            self.run.report(f"{before} do not come to an end: trying {self.following.name}")
            witness = self._enter() or self.latest.advance(TRIAL * self.entry)
        elif all(arm.stuck for arm in self.arms):
            stuck = self.arms[0].stuck
            assert stuck is not None
            raise stuck
        else:
            self.latest = _next(self.arms, self.latest)
            witness = self.latest.advance(self.latest.turn(self.entry))
        for one in self.arms if witness is None else ():
            for other in self.arms:
                if other is not one:
                    other.forget(one.closed & ~other.closed)
        return witness

    def _return(self, replayed: Replayed) -> Witness | None:
        """Let the replayed arm go on from the root."""
        self.run.report("stored leaves do not come to an end: going on from their root")
        self.run.statistics.from_root += 1
        witness, way = replayed.return_to_root(), replayed.fresh_way
        return self._settle(way) if witness is None and way is not None else witness

    def _enter(self) -> Witness | None:
        """An arm from the root, for what no arm has closed, and its first steps."""
        assert self.following is not None
        way, statistics = self.following, self.run.statistics
        if any(way is not arm.way for arm in self.arms):
            statistics.second_mode = way.name
        if self.arms and not self._tried:
            statistics.from_root += 1
        open_ = ~np.any([arm.closed for arm in self.arms], axis=0) if self.arms else np.ones(self.count, dtype=bool)
        self.latest = Fresh(self.run, self.state.by(way), self.attack, open_)
        self.arms.append(self.latest)
        return self.latest.begin() or self._settle(way)

    def _settle(self, way: AnyWay) -> Witness | None:
        """After the first steps of an arm from the root: the long attack, and what follows this arm and when."""
        self._tried.add(way)
        waits = any(search.pending is not None for search in self.latest.searches)
        if self.attack is not None and waits and len(self._tried) == 1:
            witness = self.attack.run(points(self.run, 16, 128), LONG_STEPS, self.run.budget)
            if witness is not None:
                return witness
        state = self.state.by(way)
        entry = float("inf") if state.other in self._tried else _entry(self.run, state)
        self.following = state.other if entry < np.inf else None
        if self.following or len(self.arms) == 1:
            self.entry = entry
        return None

    @property
    def count(self) -> int:
        """How many conjunctions the case has."""
        return self.state.objective.count

    @property
    def is_open(self) -> bool:
        """True until some arm has nothing left to do."""
        return all(arm.is_open for arm in self.arms)

    def finished(self) -> Iterator[Tree]:
        """The trees that were finished since this was asked last."""
        rest = not self.is_open
        for arm in self.arms:
            yield from arm.trees(rest)

    def extents(self) -> list[Extent]:
        """What each arm leaves open of the case."""
        return [arm.extent() for arm in self.arms]

    def unfinished(self, left: BoolArray) -> list[Tree]:
        """Trees as far as they go for the conjunctions `left (K,)`, of the arms that have least of them open."""
        out = []
        for arm in sorted(self.arms, key=lambda arm: float(arm.extent().share[left].sum())):
            for tree, answers in arm.unfinished(left):
                out.append(tree)
                left = left & ~answers
        return out


def solve_case(
    run: Run, state: CaseState, replayed: Replayed | None = None, accepted: Sequence[Tree] = ()
) -> Iterator[Witness | Tree]:
    """Close one case, from its root or from where a replay left off: its trees as they are finished, or a witness.

    Stored trees of it that have no open region are `accepted`. A witness comes last; without one the trees answer,
    once, for every conjunction of the case, or of `replayed`. Raises `BudgetError`, and `StuckError` when no arm can go
    on.
    """
    contest = Contest(run, state)
    witness = contest.begin(replayed)
    run.standing.enter(state.number, contest, accepted)
    while witness is None:
        finished = list(contest.finished())
        run.standing.finish(finished)
        yield from finished
        if not contest.is_open:
            run.standing.leave()
            return
        witness = contest.go_on()
    yield witness


def _next(arms: list[Arm], latest: Arm) -> Arm:
    """The arm with the best outlook, or one that is far behind in work: early outlooks are poor."""
    arms = [arm for arm in arms if arm.stuck is None]
    best = min(arms, key=lambda arm: arm.outlook() + arm.handicap - (HELD if arm is latest else 0.0))
    least = min(arms, key=lambda arm: arm.spent)
    hopeless = least.regions >= JUDGED and least.outlook() > best.outlook() + HOPELESS
    return least if least.spent < FAIR * best.spent and not hopeless else best


def _entry(run: Run, state: CaseState) -> float:
    """How much work the preferred way may take before the other one is tried; infinite where there is no other.

    At least what the other one's first steps are likely to take.
    """
    bounder, root = state.bounder, state.root
    if run.settings.split != "auto" or not state.other.possible(bounder, root):
        return float("inf")
    return max(FIRST, state.other.first_work(bounder, root))


ArmOf = Callable[[CaseState], Replayed | None]


def search(run: Run, replayed: ArmOf | None = None) -> Iterator[Witness | Tree]:
    """Decide all cases, first those that fall at once: trees as they are finished, or a witness, which comes last.

    Without a witness the trees answer for every case. `replayed` makes the arm that a case begins with where stored
    trees speak of it. Raises as `solve_case`.
    """
    done = decide_at_once(run)
    if isinstance(done, Witness):
        yield done
        return
    run.standing.finish(done.values())
    yield from done.values()
    left = [k for k in range(len(run.query.cases)) if k not in done]
    for number in left:
        witness = first_attack(run, run.query.cases[number])
        if witness is not None:
            yield witness
            return
    for number in left:
        state = open_case(run, number)
        if state is None:
            continue
        for found in solve_case(run, state, None if replayed is None else replayed(state)):
            yield found
            if isinstance(found, Witness):
                return


def easily(run: Run) -> list[Tree] | None:
    """Trees of all cases where bounds of their boxes refute them, None otherwise; only where inputs are split.

    What is spent in vain is counted in the budget alone.
    """
    trees: list[Tree] = []
    trial = replace(run, statistics=Statistics(), standing=Standing())
    for number in range(len(run.query.cases)):
        state = open_case(trial, number)
        if state is None:
            continue
        if not state.way.joint:
            return None
        arm = Fresh(trial, state, None, np.ones(state.objective.count, dtype=bool))
        if arm.begin() is not None or arm.advance(0) is not None or arm.is_open:
            return None
        trees += arm.trees()
    run.statistics.regions += trial.statistics.regions
    return trees


def solve(run: Run, replayed: ArmOf | None = None) -> Witness | list[Tree]:
    """All that `search` finds: the witness, or the trees of all cases."""
    trees: list[Tree] = []
    for found in search(run, replayed):
        if isinstance(found, Witness):
            return found
        trees.append(found)
    return trees
