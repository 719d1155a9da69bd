"""From a query to trees or a witness: the plan, the first attack, one search per tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder, Regions
from mucg4.bound.reduced import Reduced
from mucg4.bound.special import free_inputs
from mucg4.bound.twin import Twin
from mucg4.budget import Budget
from mucg4.model.query import Case, Query, Witness
from mucg4.model.verdict import Statistics
from mucg4.ops.arrays import Backend
from mucg4.oracle.runtime import Runtime
from mucg4.proof.proof import Tree
from mucg4.search.attack import Attack
from mucg4.search.bab import LONG_STEPS, Open, Plan, Search
from mucg4.search.parallel import drive, usable_cores
from mucg4.search.record import Recorder
from mucg4.settings import Settings

LOW_DIMENSION = 12  # up to so many free inputs input splits beat phase splits
REDUCED_CELLS = 1 << 28  # largest matrices of a network between unstable neurons (1 GiB); larger ones split inputs
ATTACK_CELLS = 400_000
EVALUATION_CELLS = 20_000_000  # most numbers in one array over a batch's regions, constraints and neurons
FIRST = 16_000_000  # work of one mode before another is tried: about a third of a second on one core
STALLED = 3.0  # a search stalls when it expects 2 ** STALLED times the work it has spent
TRIAL = 0.1  # of the work of the first mode is spent on the other one before their outlooks are compared
LATE = 64  # the other mode is tried anyway after so many times the work that a stall needs
HELD = 2.0  # how much better (binary logarithm) another arm's outlook must be than that of the arm that went last
ASCENT_STEPS = 16  # measured on ACAS Xu: fewer cost more regions, more cost more than they save


@dataclass
class Run:
    """What every stage of one run shares."""

    query: Query
    settings: Settings
    budget: Budget
    statistics: Statistics
    runtime: Runtime
    progress: Callable[[str], None] | None = None

    def report(self, text: str) -> None:
        """Tell the user something in one line."""
        if self.progress is not None:
            self.progress(text)

    @property
    def workers(self) -> int:
        """Processes that search; one with a device, whose driver and threads do not survive a fork."""
        if self.settings.device:
            return 1
        return self.settings.workers or usable_cores()

    @property
    def backend(self) -> Backend:
        """Where bounds are computed. Raises `InputError` when the device of the settings cannot be used."""
        return Backend("float64", self.settings.device or None)


@dataclass
class CaseState:
    """A case with its bounder and refreshed root region, in one of the ways to search it (`plan`)."""

    number: int
    case: Case
    bounder: Bounder
    objective: Objective
    root: Regions
    plan: Plan
    twin: Twin
    trees: list[Tree] = field(default_factory=list)
    others: dict[str, CaseState] = field(default_factory=dict)  # per mode, made when first asked for

    def in_mode(self, mode: str, settings: Settings) -> CaseState:
        """The same case, searched in another mode; the trees are shared."""
        self.others.setdefault(self.plan.mode, self)
        if mode not in self.others:
            twin = self.twin.whole
            if mode == "input":
                twin = twin.specialised(self.bounder, self.root)
            plan = plan_for(self.bounder, settings, len(self.objective.owner), mode)
            self.others[mode] = replace(self, plan=plan, twin=twin)
        return self.others[mode]


def preferred_mode(bounder: Bounder, root: Regions, settings: Settings) -> str:
    """What to split first: as the settings say, else by the number of free inputs."""
    mode = settings.split
    if mode == "auto":
        mode = "input" if len(free_inputs(root.lo[0], root.hi[0])) <= LOW_DIMENSION else "phase"
    return mode if mode == "input" or splits_phases(bounder, root) else "input"


def splits_phases(bounder: Bounder, root: Regions) -> bool:
    """True where phase splits are possible: two-piece neurons, and few enough that are unstable."""
    units = sum(int(bounder.unstable(root, k).sum()) for k in bounder.pre)
    return Reduced.supports(bounder) and units * (units + bounder.network.input_size) <= REDUCED_CELLS


def plan_for(bounder: Bounder, settings: Settings, constraints: int, mode: str) -> Plan:
    """How to search in this mode; the size of batches by that of the network."""
    batch = settings.batch or int(np.clip(200_000 // max(bounder.network.size, 1), 4, 256))
    cells = constraints * max(n.size for n in bounder.network.nodes)  # one region's rows of all constraints
    batch = max(1, min(batch, EVALUATION_CELLS // cells))
    return Plan(mode, mode == "input", ASCENT_STEPS, batch)


def open_case(run: Run, number: int) -> CaseState | None:
    """Bound the root of a case; None when the case has no point or no conjunction."""
    case = run.query.cases[number]
    if case.box.empty or not case.conjunctions:
        return None
    bounder = Bounder(run.query.network, case.box.lo, case.box.hi, run.budget.poll)
    root, objective = bounder.root(), Objective(case)
    twin = Twin.of(bounder, objective, run.backend)
    there, _ = twin.refresh(root)
    bounder.tighten_scales(root)
    if twin.bounder is not bounder:
        twin.bounder.tighten_scales(there)
    mode = preferred_mode(bounder, root, run.settings)
    if mode == "input":
        twin = twin.specialised(bounder, root)
    plan = plan_for(bounder, run.settings, len(objective.owner), mode)
    return CaseState(number, case, bounder, objective, root, plan, twin)


def attack_of(run: Run, case: Case) -> Attack | None:
    """The attack on one case, None when the settings switch it off."""
    return Attack(run.query, case, run.runtime, run.statistics, run.settings.seed) if run.settings.attack else None


def first_attack(run: Run, case: Case) -> Witness | None:
    """A short attack before anything is bounded."""
    attack = attack_of(run, case)
    if attack is None or case.box.empty or not case.conjunctions:
        return None
    return attack.run(_points(run, 8, 256), 12, run.budget)


def _points(run: Run, least: int, most: int) -> int:
    """How many points an attack takes: points times neurons are about ATTACK_CELLS."""
    return int(np.clip(ATTACK_CELLS // max(run.query.network.size, 1), least, most))


def root_work(state: CaseState, open_: np.ndarray) -> Open:
    """The root region with the conjunctions `open_ (K,)` to refute."""
    phases = np.zeros((1, state.bounder.width), dtype=np.int8)
    return Open.fresh(np.zeros(1, dtype=np.int64), state.root.take(np.array([0])), open_[None].copy(), phases)


def new_search(run: Run, state: CaseState, attack: Attack | None) -> Search:
    """A search with an empty frontier and a tree of the root alone."""
    recorder = Recorder(state.bounder, [len(c) for c in state.case.conjunctions])
    parts = state.bounder, state.objective, state.plan, state.root, recorder
    return Search(*parts, run.statistics, run.budget, attack, run.progress, state.twin)


class Arm:
    """The search of one case in one mode, of the conjunctions marked in `open_ (K,)`.

    One search for all conjunctions where inputs are split, which serves them all; one for each where phases are.
    """

    def __init__(self, run: Run, state: CaseState, attack: Attack | None, open_: np.ndarray) -> None:
        self.run, self.state = run, state
        together = state.plan.mode == "input"
        self.masks = [open_] if together else [mask for mask in np.eye(len(open_), dtype=bool) if (mask & open_).any()]
        self.searches = [new_search(run, state, attack) for _ in self.masks]
        self.spent = 0

    def begin(self) -> Witness | None:
        """Bound the roots; the dear steps wait."""
        before = self.run.budget.work
        for search, mask in zip(self.searches, self.masks, strict=True):
            search.begin(root_work(self.state, mask))
            if search.witness is not None:
                return search.witness
        self.spent += self.run.budget.work - before
        return None

    def advance(self, work: float) -> Witness | None:
        """Search until nothing is open or so much more work is done."""
        budget = self.run.budget
        before = budget.work
        witness = drive(self.searches, self.run.workers, before + work)
        self.spent += budget.work - before
        return witness

    @property
    def is_open(self) -> bool:
        """True while some search has an open region."""
        return any(search.is_open for search in self.searches)

    @property
    def closed(self) -> np.ndarray:
        """(K,) conjunctions that this arm, or another, has refuted everywhere."""
        return np.all([search.closed() | ~mask for search, mask in zip(self.searches, self.masks, strict=True)], axis=0)

    def forget(self, closed: np.ndarray) -> None:
        """Leave conjunctions that another arm refuted, `(K,)`, to that one."""
        for k, search in enumerate(self.searches):
            if (closed & self.masks[k]).any():
                search.forget(closed)
                self.masks[k] = self.masks[k] & ~closed

    def _growth(self) -> float:
        """Binary logarithm of the regions that are expected over those that there were."""
        regions = sum(search.recorder.count for search in self.searches)
        return float(np.logaddexp2.reduce([search.outlook() for search in self.searches]) - np.log2(regions))

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

    A portfolio of two arms. What is split first is chosen by features (`preferred_mode`). Once that search has taken
    FIRST work, and by its own outlook does not come to an end soon, the other mode is tried; also when it has missed
    its outlook LATE times. From then on the arm with the better outlook goes on. Measured: random 3-SAT as a network
    of 20 to 95 inputs is closed by splits of inputs in seconds and not by those of phases in minutes; texts embedded
    in 30 inputs (safenlp) are the other way round.
    """
    attack = attack_of(run, state.case)
    every = np.ones(state.objective.count, dtype=bool)
    first = Arm(run, state, attack, every)
    witness = first.begin()
    if witness is not None:
        return witness
    if attack is not None and any(search.pending is not None for search in first.searches):  # dear steps come next
        witness = attack.run(_points(run, 16, 128), LONG_STEPS, run.budget)
        if witness is not None:
            return witness
    arms, latest = [first], first
    entry = _entry(run, state)
    while all(arm.is_open for arm in arms):
        if len(arms) == 1 and first.spent >= entry and (first.stalls or first.spent >= LATE * entry):
            mode = "phase" if state.plan.mode == "input" else "input"
            run.statistics.second_mode = mode
            run.report(f"splits of {state.plan.mode} do not come to an end: trying {mode}")
            latest = Arm(run, state.in_mode(mode, run.settings), attack, ~first.closed)
            arms.append(latest)
            witness = latest.begin() or latest.advance(max(FIRST, first.spent * TRIAL))
        else:
            latest = min(arms, key=lambda arm: arm.outlook() - (HELD if arm is latest else 0.0))
            witness = latest.advance(max(entry - latest.spent, latest.spent / 2))
        if witness is not None:
            return witness
        for one, other in (arms, arms[::-1]) if len(arms) > 1 else ():
            other.forget(one.closed & ~other.closed)
    for arm in arms:
        arm.leave_trees()
    return None


def _entry(run: Run, state: CaseState) -> float:
    """How much work the preferred mode may take before the other one is tried; infinite where there is no other.

    At least what the other one's first steps are likely to take.
    """
    bounder, root = state.bounder, state.root
    if run.settings.split != "auto":
        return float("inf")
    units = sum(int(bounder.unstable(root, k).sum()) for k in bounder.pre)
    if state.plan.mode == "phase":
        return max(FIRST, 32.0 * units * bounder.network.size)
    if not splits_phases(bounder, root):
        return float("inf")
    return max(FIRST, 100.0 * units * (units + bounder.network.input_size))


def solve(run: Run, search_case: Callable[[Run, CaseState], Witness | None] = solve_case) -> Witness | list[Tree]:
    """All cases: a witness, or trees that answer for every case. Raises `BudgetError`.

    `search_case` closes one case (trees into its state) or finds a witness; the default starts from the root.
    """
    for case in run.query.cases:
        witness = first_attack(run, case)
        if witness is not None:
            return witness
    trees: list[Tree] = []
    for number in range(len(run.query.cases)):
        state = open_case(run, number)
        if state is None:
            continue
        witness = search_case(run, state)
        if witness is not None:
            return witness
        trees.extend(state.trees)
    return trees
