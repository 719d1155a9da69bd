"""How far a network can be compressed: variants of one network under several properties, from one command.

Order. Property by property, the network itself first, so that its proof is there for the variants, then each family of
methods from its mildest to its hardest. Every row is a run of `mucg4.verify.verify` of its own, with its own limit of
time; nothing is concluded from one row for another. Models and properties are read once, variants made once; a proof is
stored where a row had to add to the one it started from. With several jobs, forked processes take the network itself
under one property after the other, then families of its variants, each with the store, a file, opened for itself.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import field, replace

import numpy as np

from mucg4.errors import BudgetError, InputError
from mucg4.gate.runtimes import Runtimes, runtime_of
from mucg4.gate.witness import replay_witness
from mucg4.lab.compress import compress
from mucg4.lab.methods import Method
from mucg4.limits.budget import Budget
from mucg4.limits.processes import MOST_DEALT, Dealer, can_fork, streamed
from mucg4.model.query import Query
from mucg4.model.verdict import Statistics, Unsafe, Verdict
from mucg4.ops.arrays import FloatArray
from mucg4.read.instance import Model, Property
from mucg4.records import dataclass
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import begin, decide, verify

ORIGINAL = Method("original")
HELD = 2**28  # bytes of all variants' files together up to which they are held; not measured
NOT_RUN, FAILED = "not run", "error"  # words of rows without a verdict

_Made = dict[str, Model | InputError]  # variants by the names of their methods
_Progress = Callable[[str], None] | None


@dataclass(frozen=True, eq=False)
class Row:
    """One network under one property: `word` is its verdict, or NOT_RUN or FAILED; `seconds` its whole run."""

    prop: str
    method: Method
    word: str
    seconds: float = 0.0
    reason: str = ""
    statistics: Statistics = field(default_factory=Statistics)
    scratch: float | None = None  # seconds of the network itself from scratch, where that is known

    @property
    def proved(self) -> bool:
        """True for `unsat`."""
        return self.word == "unsat"

    @property
    def ran(self) -> bool:
        """True when a verdict was reached or missed, rather than left out."""
        return self.word not in (NOT_RUN, FAILED)

    @property
    def ratio(self) -> float | None:
        """Seconds over those of the network itself from scratch."""
        return self.seconds / self.scratch if self.ran and self.scratch else None


@dataclass(frozen=True, eq=False)
class Frontier:
    """How far one family went under one property.

    `last` is the hardest method up to which all are proved (None: not even the mildest), `first` the row after it
    (None: all are proved), `beyond` harder ones that are proved nevertheless.
    """

    prop: str
    family: str
    last: Row | None
    first: Row | None
    beyond: tuple[Row, ...] = ()


@dataclass(frozen=True, eq=False)
class Sweep:
    """What is swept. `patience` (0: none): so many methods of a family in a row not proved leave out the harder ones.

    `store` opens the store of a process (with several jobs a file), or gives None: every row from scratch. `budget`
    ends the whole; each row has `settings.timeout` seconds of its own. `jobs` are the processes, 1: this one.
    """

    model: Model
    methods: Sequence[Method]
    properties: Sequence[Property]
    settings: Settings = field(default_factory=Settings)
    store: Callable[[], Store | None] = lambda: None
    budget: Budget = field(default_factory=Budget)
    patience: int = 0
    seed: int = 0  # of variants made at random
    jobs: int = 1

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.properties) * (1 + len(self.methods))

    def rows(self, progress: Callable[[str], None] | None = None) -> Iterator[Row]:
        """The rows, each when it is done: in order, but for several jobs. Raises `BudgetError` when interrupted."""
        made = {m.name: self._variant(m) for m in self.methods} if self._small else {}
        several = self.jobs > 1 and len(self.properties) <= MOST_DEALT and can_fork()
        scratch: dict[str, float | None] = {}
        for row in self._shared_out(made, progress) if several else self._in_order(made, progress):
            if row.method == ORIGINAL:
                scratch[row.prop] = _from_scratch(row)
            yield replace(row, scratch=scratch.get(row.prop))

    @property
    def families(self) -> list[list[Method]]:
        """The methods by families, each from its mildest to its hardest; those of none alone."""
        out: dict[str, list[Method]] = {}
        for method in self.methods:
            out.setdefault(method.family or f"- {method.name}", []).append(method)
        return list(out.values())

    def _in_order(self, made: _Made, progress: _Progress) -> Iterator[Row]:
        """All rows, in this process."""
        with self._opened(progress) as shared:
            for prop in self.properties:
                for methods in ([ORIGINAL], *self.families):
                    yield from self._of(prop, methods, made, shared)

    def _shared_out(self, made: _Made, progress: _Progress) -> Iterator[Row]:
        """All rows, from as many processes as there are jobs.

        These take the network itself under one property after the other, then, where that is done, each family of its
        variants. Where properties are fewer than processes, the network has all of them first.
        """
        own = [([ORIGINAL], prop) for prop in self.properties]
        work = own + [(methods, prop) for prop in self.properties for methods in self.families]
        each = len(self.families)
        variants = {
            p.name: range(len(own) + k * each, len(own) + (k + 1) * each) for k, p in enumerate(self.properties)
        }
        dealer, left = Dealer(), {prop.name for prop in self.properties}
        if len(own) < self.jobs:
            alone = replace(self, settings=replace(self.settings, workers=self.jobs * (self.settings.workers or 1)))
            with alone._opened(progress) as shared:
                for methods, prop in own:
                    yield from alone._of(prop, methods, made, shared)
            dealer.put(range(len(own), len(work)))
            dealer.close()
            left.clear()
        else:
            dealer.put(range(len(own)))

        def job() -> Iterator[Row]:
            with self._opened(progress) as shared:
                for k in dealer.taken():
                    methods, prop = work[k]
                    yield from self._of(prop, methods, made, shared)

        try:
            for row in streamed([job] * self.jobs, self.budget.poll):
                if row.method == ORIGINAL and row.prop in left:
                    dealer.put(variants[row.prop])
                    left.remove(row.prop)
                    if not left:
                        dealer.close()
                yield row
        except BudgetError:
            self.budget.poll()  # a signal that ends the processes too is what ended the sweep
            raise
        finally:
            dealer.close()

    @contextmanager
    def _opened(self, progress: _Progress) -> Iterator[_Shared]:
        """What rows of one process have in common."""
        store = self.store()
        with store or nullcontext():
            yield _Shared(store, Runtimes(self.settings.dequantised), progress)

    def _of(self, prop: Property, methods: Iterable[Method], made: _Made, shared: _Shared) -> Iterator[Row]:
        """The rows of one family under one property, in order; `made` are variants by their methods."""
        missed = 0
        for method in methods:
            self.budget.poll()
            if self.patience and method.family and missed >= self.patience:
                yield Row(prop.name, method, NOT_RUN, reason=f"{missed} milder ones were not proved")
                continue
            model = self.model if method == ORIGINAL else made.get(method.name) or self._variant(method)
            row = self._row(prop, method, model, shared)
            if row.ran:
                missed = 0 if row.proved else missed + 1
            yield row

    @property
    def _small(self) -> bool:
        """True when all variants, and what is loaded of them, are held at the same time."""
        return len(self.model.data) * len(self.methods) <= HELD

    def _variant(self, method: Method) -> Model | InputError:
        """The variant, or the error where it cannot be made."""
        self.budget.poll()
        try:
            data = compress(self.model.data, method.name, self.seed)
        except InputError as error:
            return error
        return Model(data, f"{self.model.name} ({method.name})", shapes=self.model.shapes)

    def _row(self, prop: Property, method: Method, model: Model | InputError, shared: _Shared) -> Row:
        started = time.monotonic()
        budget = self.budget.share(float("inf") if self.settings.timeout is None else self.settings.timeout)
        if isinstance(model, InputError):
            return Row(prop.name, method, FAILED, reason=str(model))
        try:
            found = self._decided(model.under(prop), budget, shared, shared.witnesses[prop.name])
        except InputError as error:
            return Row(prop.name, method, FAILED, time.monotonic() - started, str(error))
        self.budget.poll()
        seconds = time.monotonic() - started
        return Row(prop.name, method, found.word, seconds, getattr(found, "reason", ""), found.statistics)

    def _decided(self, query: Query, budget: Budget, shared: _Shared, witnesses: list[FloatArray]) -> Verdict:
        """The verdict: a witness of another variant, all of them in one look, or a run. Raises `InputError`."""
        settings = self.settings
        runtime = shared.runtimes.of(query) if self._small else runtime_of(query, settings.dequantised)
        if witnesses and shared.store is not None and settings.attack:
            witness = replay_witness(query, np.stack(witnesses), runtime)
            if witness is not None:
                found = decide(begin(query, settings, budget, runtime=runtime), lambda run: witness)
                if isinstance(found, Unsafe):
                    found.statistics.rungs["witness"] += 1
                    return found
        found = verify(query, settings, shared.store, budget, shared.progress, runtime=runtime)
        if isinstance(found, Unsafe):
            witnesses.append(found.witness.x)
        return found


@dataclass(frozen=True, eq=False)
class _Shared:
    """What the rows of one process have in common; `witnesses` grow, by the names of properties."""

    store: Store | None
    runtimes: Runtimes
    progress: _Progress
    witnesses: dict[str, list[FloatArray]] = field(default_factory=lambda: defaultdict(list))


def _from_scratch(row: Row) -> float | None:
    """Seconds that the network itself takes from scratch: those of its row, or what the store knows about them."""
    if not row.ran:
        return None
    return row.statistics.scratch_seconds if row.statistics.stored_leaves else row.seconds


def in_order(rows: Sequence[Row], sweep: Sweep) -> list[Row]:
    """The rows by property and method, as one process gives them."""
    names = [p.name for p in sweep.properties]
    methods = [ORIGINAL, *sweep.methods]
    return sorted(rows, key=lambda row: (names.index(row.prop), methods.index(row.method)))


def frontiers(rows: Sequence[Row]) -> list[Frontier]:
    """The frontier of every property and family, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.method.family:
            groups.setdefault((row.prop, row.method.family), []).append(row)
    out = []
    for (prop, family), members in groups.items():
        done = next((k for k, row in enumerate(members) if not row.proved), len(members))
        last, first = (members[done - 1] if done else None), (members[done] if done < len(members) else None)
        out.append(Frontier(prop, family, last, first, tuple(row for row in members[done:] if row.proved)))
    return out
