"""From a query to trees or a witness: the first attack, and a portfolio of two ways to search each case."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mucg4.errors import StuckError
from mucg4.gate.witness import replay_witness
from mucg4.model.proof import Tree
from mucg4.model.query import Case, Witness
from mucg4.search.attack import Attack
from mucg4.search.boxes import decide_at_once
from mucg4.search.loop import LONG_STEPS
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

FIRST = 48_000_000  # work of one mode before another is tried: about a second of one core
STALLED = 1.0  # a search stalls when it expects 2 ** STALLED times the work it has spent
TRIAL = 0.25  # share of the least work of the first mode that the other one may take before their outlooks are compared
LATE = 80  # the other mode is tried anyway after so many times the work that a stall needs
HELD = 2.0  # how much better (binary logarithm) another arm's outlook must be than that of the arm that went last
FAIR = 1 / 16  # the slower arm gets this share of the other's work,
HOPELESS, JUDGED = 64.0, 64  # unless its outlook is so much worse after so many regions


def first_attack(run: Run, case: Case) -> Witness | None:
    """A short attack before anything is bounded."""
    attack = attack_of(run, case)
    if attack is None or case.box.empty or not case.conjunctions:
        return None
    return attack.run(points(run, 8, 256), 12, run.budget)


class Arm:
    """The search of one case in one mode, of the conjunctions marked in `open_ (K,)`.

    One search for all conjunctions where inputs are split, which serves them all; one for each where phases are.
    """

    def __init__(self, run: Run, state: CaseState, attack: Attack | None, open_: np.ndarray) -> None:
        self.run, self.state = run, state
        each = [mask for mask in np.eye(len(open_), dtype=bool) if (mask & open_).any()]
        self.masks = [open_] if state.way.joint else each
        self.searches = [new_search(run, state, attack) for _ in self.masks]
        self.spent = 0
        self.stuck: StuckError | None = None
        self._begun = False  # a search that has not begun has no open region, and has refuted nothing
        self._known = np.zeros(len(open_), dtype=bool)  # `closed` before the step that got stuck

    def begin(self) -> Witness | None:
        """Bound the roots; the dear steps wait."""
        return self._step(self._begin)

    def advance(self, work: float) -> Witness | None:
        """Search until nothing is open or so much more work is done."""
        until = self.run.budget.work + work
        return self._step(lambda: drive(self.searches, self.run.workers, until))

    def _begin(self) -> Witness | None:
        for search, mask in zip(self.searches, self.masks, strict=True):
            search.begin(root_work(self.state, mask))
            if search.witness is not None:
                return search.witness
        self._begun = True
        return None

    def _step(self, step: Callable[[], Witness | None]) -> Witness | None:
        """Do a step, count its work. One that gets stuck ends the arm: it answers for what it had closed before."""
        if self.stuck is not None:
            return None
        before, self._known = self.run.budget.work, self.closed
        try:
            return step()
        except StuckError as error:
            self.stuck = error
            self.masks = [mask & self._known for mask in self.masks]
            judged = len(error.points) and self.run.query.executable
            return replay_witness(self.run.query, error.points, self.run.runtime) if judged else None
        finally:
            self.spent += self.run.budget.work - before

    @property
    def is_open(self) -> bool:
        """True while some search has an open region, for ever once one is stuck."""
        return self.stuck is not None or any(search.is_open for search in self.searches)

    @property
    def closed(self) -> np.ndarray:
        """(K,) conjunctions that this arm, or another, has refuted everywhere."""
        if self.stuck is not None or not self._begun:
            return self._known
        closed = [search.closed() | ~mask for search, mask in zip(self.searches, self.masks, strict=True)]
        return np.asarray(np.all(closed, axis=0))

    def forget(self, closed: np.ndarray) -> None:
        """Leave conjunctions that another arm refuted, `(K,)`, to that one."""
        for k, search in enumerate(self.searches):
            if (closed & self.masks[k]).any():
                search.forget(closed)
                self.masks[k] = self.masks[k] & ~closed

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

    def leave_trees(self) -> None:
        """Give the finished trees to the case."""
        for search, mask in zip(self.searches, self.masks, strict=True):
            if mask.any():
                numbers = None if mask.all() else tuple(np.flatnonzero(mask).tolist())
                self.state.trees.append(search.recorder.tree(self.state.number, numbers))


def solve_case(run: Run, state: CaseState) -> Witness | None:
    """Search one case from its root. Trees go to `state.trees`; returns a witness or None when closed.

    A portfolio of two arms. What is split first is chosen by features (`preferred_way`). Once that search has taken
    FIRST work, and by its own outlook does not come to an end soon, the other mode is tried; also when it has missed
    its outlook LATE times. From then on the arm with the better outlook goes on, the other one a little. Measured:
    random 3-SAT as a network of 20 to 95 inputs is closed by splits of inputs in seconds and not by those of phases in
    minutes; texts embedded in 30 inputs (safenlp) are the other way round.
    """
    attack = attack_of(run, state.case)
    every = np.ones(state.objective.count, dtype=bool)
    first = Arm(run, state, attack, every)
    witness = first.begin()
    if witness is not None:
        return witness
    if attack is not None and any(search.pending is not None for search in first.searches):  # dear steps come next
        witness = attack.run(points(run, 16, 128), LONG_STEPS, run.budget)
        if witness is not None:
            return witness
    arms, latest = [first], first
    entry = _entry(run, state)
    while all(arm.is_open for arm in arms):
        alone = len(arms) == 1 and entry < np.inf
        if alone and (first.stuck or (first.spent >= entry and (first.stalls or first.spent >= LATE * entry))):
            run.statistics.second_mode = state.other.name
            run.report(f"splits of {state.way.name} do not come to an end: trying {state.other.name}")
            latest = Arm(run, state.by(state.other), attack, ~first.closed)
            arms.append(latest)
            witness = latest.begin() or latest.advance(TRIAL * entry)
        elif all(arm.stuck for arm in arms):
            assert first.stuck is not None
            raise first.stuck
        else:
            latest = _next(arms, latest)
            witness = latest.advance(max(entry - latest.spent, latest.spent))
        if witness is not None:
            return witness
        for one, other in (arms, arms[::-1]) if len(arms) > 1 else ():
            other.forget(one.closed & ~other.closed)
    for arm in arms:
        arm.leave_trees()
    return None


def _next(arms: list[Arm], latest: Arm) -> Arm:
    """The arm with the best outlook, or one that is far behind in work: early outlooks are poor."""
    arms = [arm for arm in arms if arm.stuck is None]
    best = min(arms, key=lambda arm: arm.outlook() - (HELD if arm is latest else 0.0))
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


def solve(run: Run, search_case: Callable[[Run, CaseState], Witness | None] = solve_case) -> Witness | list[Tree]:
    """All cases, first those that fall at once: a witness, or trees that answer for every case. Raises `BudgetError`.

    `search_case` closes one case (trees into its state) or finds a witness; the default starts from the root.
    """
    done = decide_at_once(run)
    if isinstance(done, Witness):
        return done
    left = [k for k in range(len(run.query.cases)) if k not in done]
    for number in left:
        witness = first_attack(run, run.query.cases[number])
        if witness is not None:
            return witness
    trees = list(done.values())
    for number in left:
        state = open_case(run, number)
        if state is None:
            continue
        witness = search_case(run, state)
        if witness is not None:
            return witness
        trees.extend(state.trees)
    return trees
