"""What every stage of one run shares, and a case with its root bounded and the way to search it chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from mucg4.bound.compute import Compute
from mucg4.bound.folded import free_inputs
from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder, Regions
from mucg4.errors import Mucg4Error, ProofError
from mucg4.gate.agreement import agreement
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.limits.processes import Aside, usable_cores
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Case, Query, Witness
from mucg4.model.verdict import Statistics
from mucg4.ops.arrays import Backend, FloatArray
from mucg4.records import dataclass
from mucg4.search import ahead
from mucg4.search.attack import Attack
from mucg4.search.inputs import InputWay
from mucg4.search.loop import Search
from mucg4.search.phases import PhaseWay
from mucg4.search.record import Recorder
from mucg4.search.region import Batch, Plan
from mucg4.search.standing import Standing, spoken
from mucg4.search.way import Context, Way
from mucg4.settings import Settings

T = TypeVar("T")

# up to so many free inputs input splits beat phase splits; not measured as a bound, see `Contest` for both sides of
# it
LOW_DIMENSION = 12
# points times neurons of an attack, and on huge networks at most; not measured
ATTACK_CELLS, MOST_ATTACK_CELLS = 400_000, 8_000_000
EVALUATION_CELLS = 20_000_000  # most numbers in one array over a batch's regions, constraints and neurons; not measured
# of comparing with onnxruntime before `unsat`: seconds, share of the run; not measured
LEAST_SECONDS, COMPARED_SHARE = 0.03, 0.03
ASCENT_STEPS = 16  # measured on ACAS Xu: fewer cost more regions, more cost more than they save
GRACE = 0.5  # seconds in which processes may still send what they came to when their share is over; not measured

READINGS, COMPARISON, HUNT, AGAIN = "readings", "comparison", "hunt", "again"  # what may be done aside

WAYS: dict[str, type[Way[Any]]] = {way.name: way for way in (InputWay, PhaseWay)}  # by their names in settings


@dataclass
class Run:
    """What every stage of one run shares."""

    query: Query
    settings: Settings
    budget: Budget
    statistics: Statistics
    runtime: Runtime
    progress: Callable[[str], None] | None = None
    caution: float = 1.0  # how many times rounding is charged
    careful: bool = False  # fewer regions are worth more time
    below: bool = False  # what stored trees leave open is searched below their leaves only, not from a root
    standing: Standing = field(default_factory=Standing)
    aside: Aside | None = None  # see `mucg4.reuse.aside`
    # first steps of attacks, by the budget and statistics of the run that asked first; shared by what `replace` makes
    begun_attacks: dict[tuple[Query, Case], Iterator[Witness | None]] = field(default_factory=dict)
    _compared: tuple[int, str | None] | None = None  # regions searched before the last comparison, and what it found

    def report(self, text: str) -> None:
        """Tell the user something in one line."""
        if self.progress is not None:
            self.progress(text)

    def within(self, share: float) -> Run:
        """The same run with a share of the time that is left, the last of it for processes to end in."""
        seconds = share * self.budget.left()
        grace = min(GRACE, seconds / 2)
        return replace(self, budget=self.budget.share(seconds - grace, grace))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of a block to `statistics.times[name]`."""
        started = time.monotonic()
        try:
            yield
        finally:
            times = self.statistics.times
            times[name] = round(times.get(name, 0.0) + time.monotonic() - started, 4)

    def disagreement(self) -> str | None:
        """Where onnxruntime computes something else than the network as read, None when it agrees; see `agreement`.

        It is asked once, and once more after a search, which has seen other points.
        """
        if self._compared is None:
            regions = self.statistics.regions if self.aside is None else 0  # aside nothing was searched before
            with self.stage("agreement"):
                self._compared = regions, self.told(COMPARISON, self.compared)
        regions, problem = self._compared
        if problem is None and regions != self.statistics.regions:
            visited = self.runtime.visited
            with self.stage("agreement"):
                problem = self.told(AGAIN, partial(self.compared, visited, True), visited)
            self._compared = self.statistics.regions, problem
        return problem

    def told(self, name: str, here: Callable[[], T], *argument: object) -> T:
        """The answer of the process aside, with an argument to a later question; `here` answers where there is none.

        Nor is there one that failed, unless the budget is spent: then `BudgetError` is raised.
        """
        if self.aside is None:
            return here()
        try:
            answer: T = self.aside.ask(name, *argument) if argument else self.aside.answer(name)
            return answer
        except (Mucg4Error, RuntimeError) as error:
            self.budget.poll()
            self.statistics.warnings.append(f"what was begun aside is done again: {error}")
            self.end_aside()
            return here()

    def end_aside(self) -> None:
        """End the process aside."""
        if self.aside is not None:
            self.aside.close()
            self.aside = None

    def compared(self, visited: FloatArray | None = None, again: bool = False) -> str | None:
        """What a comparison at the points `visited (N, n)` and others says; `again`: at few others."""
        seconds = 0.0 if again else max(LEAST_SECONDS, COMPARED_SHARE * self.budget.elapsed())
        return agreement(self.query, self.runtime, visited, seconds).problem

    def comparison(self) -> Iterator[object]:
        """The question for a `disagreement` as a step of work that is done while other processes run."""
        yield self.disagreement()

    def meet(self) -> None:
        """Between two steps of a search: sum up what is known, and keep it, both now and then."""
        standing, elapsed = self.standing, self.budget.elapsed()
        if standing.rhythm.due(elapsed):
            self.report(spoken(standing.sum_up(self.query)))
            standing.rhythm.took(standing.took, elapsed)
        if standing.checkpoint is not None and standing.checkpoint.rhythm.due(elapsed):
            self.keep()

    def keep(self) -> None:
        """Write the checkpoint, if there is anything to write. What goes wrong is a warning; an older file stands."""
        checkpoint, statistics, query = self.standing.checkpoint, self.statistics, self.query
        if checkpoint is None or not self.standing.is_begun:
            return
        began = time.monotonic()
        try:
            note = {
                "settings": asdict(self.settings),
                "seconds": (statistics.resumed_seconds or 0.0) + self.budget.elapsed(),
                "regions": statistics.regions,
                "borrowed": self.borrows,
                "open_share": self.standing.sum_up(query)["open_share"],
            }
            trees = tuple(self.standing.trees(query))
            proof = Proof(query.network.fingerprint, query.property_hash, trees, query.network.source_hash)
            checkpoint.write(proof, note)
        except (OSError, ProofError, MemoryError) as error:
            why = getattr(error, "strerror", None) or str(error) or "out of memory"
            text = f"the checkpoint {checkpoint.path} could not be written: {why}"
            if text not in statistics.warnings:
                statistics.warnings.append(text)
        checkpoint.rhythm.took(time.monotonic() - began, self.budget.elapsed())

    def leave_checkpoint(self) -> None:
        """Leave a checkpoint that could not be used as it is: more work may stand in it than this run will do."""
        if self.standing.checkpoint is not None:
            path, self.standing.checkpoint = self.standing.checkpoint.path, None
            self.statistics.warnings.append(f"the run begins anew and keeps no checkpoint: {path} is left as it is")

    def kept(self) -> tuple[Tree, ...]:
        """The trees in the checkpoint, none where there is none yet. Raises `InputError` for one of another query."""
        checkpoint, statistics = self.standing.checkpoint, self.statistics
        found = None if checkpoint is None else checkpoint.read(self.query, self.budget.poll)
        if checkpoint is None or found is None:
            return ()
        proof, note = found
        if proof.trees:
            seconds, share = note.get("seconds"), note.get("open_share")
            statistics.resumed_seconds = seconds if type(seconds) is float and 0 <= seconds < np.inf else 0.0
            statistics.relation, statistics.relation_detail = "identical", "checkpoint"
            self.standing.borrowed = note.get("borrowed") is not False
            left = f", {100 * share:.3g} % open" if type(share) is float else ""
            self.report(f"going on from {checkpoint.path}: {proof.leaves} leaves{left}")
        return proof.trees

    @property
    def borrows(self) -> bool:
        """Whether stored results of other queries went into what this run found, or a run that it goes on from."""
        s = self.statistics
        return self.standing.borrowed or (s.stored_leaves > 0 and s.resumed_seconds is None)

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
    """A case with its bounder and refreshed root region, and a way to split it."""

    number: int
    case: Case
    bounder: Bounder
    objective: Objective
    root: Regions
    plan: Plan
    compute: Compute
    way: type[Way[Any]]
    others: dict[str, CaseState] = field(default_factory=dict)  # by the way's name, made when first asked for

    def by(self, way: type[Way[Any]]) -> CaseState:
        """The same case split in this way."""
        self.others.setdefault(self.way.name, self)
        if way.name not in self.others:
            compute = way.prepared(self.compute.whole, self.bounder, self.root)
            self.others[way.name] = replace(self, way=way, compute=compute)
        return self.others[way.name]

    @property
    def other(self) -> type[Way[Any]]:
        """The way that is tried where this one does not come to an end; it need not be possible."""
        return next(way for way in WAYS.values() if way is not self.way)


def preferred_way(bounder: Bounder, root: Regions, settings: Settings) -> type[Way[Any]]:
    """What to split first: as the settings say, else by the number of free inputs."""
    low = len(free_inputs(root.lo[0], root.hi[0])) <= LOW_DIMENSION
    way = WAYS.get(settings.split, InputWay if low else PhaseWay)
    return way if way.possible(bounder, root) else InputWay


def plan_for(bounder: Bounder, run: Run, constraints: int) -> Plan:
    """How much a turn does: the size of batches by that of the network."""
    batch = run.settings.batch or int(np.clip(200_000 // max(bounder.network.size, 1), 4, 256))
    cells = constraints * max(n.size for n in bounder.network.nodes)  # one region's rows of all constraints
    batch = max(1, min(batch, EVALUATION_CELLS // cells))
    return Plan(ahead.STEPS if run.careful else ASCENT_STEPS, batch, run.careful)


def open_case(run: Run, number: int) -> CaseState | None:
    """Bound the root of a case; None when the case has no point or no conjunction."""
    case = run.query.cases[number]
    if case.box.empty or not case.conjunctions:
        return None
    bounder = Bounder(run.query.network, case.box.lo, case.box.hi, run.budget.poll, run.caution)
    root, objective = bounder.root(), Objective(case)
    compute = Compute.of(bounder, objective, run.backend)
    compute.bounder.threads = run.workers
    there, _ = compute.refresh(root, settle=True)
    compute.bounder.threads = 1
    bounder.tighten_scales(root)
    if compute.bounder is not bounder:
        compute.bounder.tighten_scales(there)
    way = preferred_way(bounder, root, run.settings)
    plan = plan_for(bounder, run, len(objective.owner))
    return CaseState(number, case, bounder, objective, root, plan, way.prepared(compute, bounder, root), way)


def attack_of(run: Run, case: Case) -> Attack | None:
    """The attack on one case, None when the settings switch it off."""
    return Attack(run.query, case, run.runtime, run.statistics, run.settings.seed) if run.settings.attack else None


def points(run: Run, least: int, most: int) -> int:
    """How many points an attack takes: points times neurons are about ATTACK_CELLS, on huge networks more."""
    size = max(run.query.network.size, 1)
    return int(np.clip(ATTACK_CELLS // size, np.clip(MOST_ATTACK_CELLS // size, 1, least), most))


def root_work(state: CaseState, open_: np.ndarray) -> Batch:
    """The root region with the conjunctions `open_ (K,)` to refute."""
    phases = np.zeros((1, state.bounder.width), dtype=np.int8)
    return Batch.fresh(np.zeros(1, dtype=np.int64), state.root.take(np.array([0])), open_[None].copy(), phases)


def new_search(
    run: Run, state: CaseState, attack: Attack | None, tree: Tree | None = None, root: Regions | None = None
) -> Search:
    """A search with an empty frontier and a tree of the root alone; or one that goes on below `tree`.

    `root`: the box with bounds that hold in all regions of that tree.
    """
    sizes = [len(c) for c in state.case.conjunctions]
    recorder = Recorder(state.bounder, sizes) if tree is None else Recorder.continuing(state.bounder, sizes, tree)
    root = state.root if root is None or tree is None else root
    parts = state.bounder, state.objective, state.compute, root, state.plan
    context = Context(*parts, recorder, run.budget)
    return Search(context, state.way(context), run.statistics, attack, run.progress)
