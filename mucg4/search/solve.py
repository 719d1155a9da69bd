"""From a query to trees or a witness: the plan, the first attack, one search per tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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
    """A case with its bounder and refreshed root region."""

    number: int
    case: Case
    bounder: Bounder
    objective: Objective
    root: Regions
    plan: Plan
    twin: Twin
    trees: list[Tree] = field(default_factory=list)


def plan_for(bounder: Bounder, root: Regions, settings: Settings, constraints: int) -> Plan:
    """Choose the search's ways from measured features: free inputs, unstable neurons, sizes."""
    free = len(free_inputs(root.lo[0], root.hi[0]))
    mode = settings.split
    if mode == "auto":
        mode = "input" if free <= LOW_DIMENSION else "phase"
    if mode == "phase":
        units = sum(int(bounder.unstable(root, k).sum()) for k in bounder.pre)
        if not Reduced.supports(bounder) or units * (units + bounder.network.input_size) > REDUCED_CELLS:
            mode = "input"
    size = sum(n.size for n in bounder.network.nodes)
    batch = settings.batch or int(np.clip(200_000 // max(size, 1), 4, 256))
    cells = constraints * max(n.size for n in bounder.network.nodes)  # one region's rows of all constraints
    batch = max(1, min(batch, EVALUATION_CELLS // cells))
    if mode == "input":
        return Plan("input", True, ASCENT_STEPS, batch)
    return Plan("phase", False, ASCENT_STEPS, batch)


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
    plan = plan_for(bounder, root, run.settings, len(objective.owner))
    if plan.mode == "input":
        twin = twin.specialised(bounder, root)
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
    return int(np.clip(ATTACK_CELLS // max(sum(n.size for n in run.query.network.nodes), 1), least, most))


def root_work(state: CaseState, open_: np.ndarray) -> Open:
    """The root region with the conjunctions `open_ (K,)` to refute."""
    phases = np.zeros((1, state.bounder.width), dtype=np.int8)
    return Open.fresh(np.zeros(1, dtype=np.int64), state.root.take(np.array([0])), open_[None].copy(), phases)


def new_search(run: Run, state: CaseState, attack: Attack | None) -> Search:
    """A search with an empty frontier and a tree of the root alone."""
    recorder = Recorder(state.bounder, [len(c) for c in state.case.conjunctions])
    parts = state.bounder, state.objective, state.plan, state.root, recorder
    return Search(*parts, run.statistics, run.budget, attack, run.progress, state.twin)


def solve_case(run: Run, state: CaseState) -> Witness | None:
    """Search one case from its root. Trees go to `state.trees`; returns a witness or None when closed."""
    attack = attack_of(run, state.case)
    count = state.objective.count
    together = state.plan.mode == "input"  # splits of inputs serve all conjunctions, those of phases one
    masks = [np.ones(count, dtype=bool)] if together else list(np.eye(count, dtype=bool))
    searches = []
    for mask in masks:
        search = new_search(run, state, attack)
        search.begin(root_work(state, mask))
        searches.append(search)
        if search.witness is not None:
            return search.witness
    if attack is not None and any(search.pending is not None for search in searches):  # dear steps come next
        witness = attack.run(_points(run, 16, 128), LONG_STEPS, run.budget)
        if witness is not None:
            return witness
    witness = drive(searches, run.workers)
    if witness is None:
        for number, search in enumerate(searches):
            state.trees.append(search.recorder.tree(state.number, None if together else (number,)))
    return witness


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
