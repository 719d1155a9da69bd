"""From the trees of a search to a report of the independent checker: the way every `unsat` has to take.

The checker is given nothing that the search made but the proof's bytes (`mucg4.model.proof_packed`). The network and
the property are read again from the original bytes of both files, so what a search did to its own copies cannot matter;
the proof is decoded from its bytes, so what is written and stored is what was checked. Then two readings of the files
have to agree with each other: the network with the checker's own reading of the model (`mucg4.check.confirm`), the
cases with its own reading of the property (`mucg4.check.property`). Queries that were built in a program have no files:
they are checked as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from mucg4.check.confirm import confirm
from mucg4.check.property import covers
from mucg4.check.resume import Examination, Open
from mucg4.check.walk import check
from mucg4.errors import BudgetError, InputError, ProofError
from mucg4.limits.budget import Budget
from mucg4.limits.processes import single_thread
from mucg4.model.network import Network
from mucg4.model.proof import Proof, Tree
from mucg4.model.proof_packed import from_packed, to_packed
from mucg4.model.query import Query
from mucg4.model.verdict import CheckReport
from mucg4.records import dataclass

# seconds that are left where the files are read again first, so that what the time ends is the check; not measured
SOON = 10.0

Readings = tuple[str | None, tuple[str, ...]]  # what second readings say against a query, and what they do not cover


class Examined:
    """What the checker has seen of one query's trees: its report, and what it needs to go on with longer ones.

    Never raises for a bad proof or a spent budget. `patience`, `meanwhile`: see `mucg4.check.resume.Examination`; any
    part of the latter, before which the second readings of the files come, may be left undone. `readings`: waits for
    what those say where they are made elsewhere.
    """

    def __init__(
        self,
        query: Query,
        trees: Sequence[Tree],
        budget: Budget,
        workers: int = 1,
        patience: int | None = None,
        meanwhile: Iterable[object] = (),
        readings: Callable[[], Readings] | None = None,
    ) -> None:
        self.query = query
        self._examination: Examination | None = None
        self._again: Query | None = None
        self._readings: Readings | None = None
        self._elsewhere = readings
        self.report = self._report(trees, budget, workers, patience, meanwhile)

    def go_on(
        self, trees: Sequence[Tree], budget: Budget, workers: int = 1, meanwhile: Iterable[object] = ()
    ) -> CheckReport:
        """The report on other trees: what was accepted before is not examined again where these continue it."""
        self.report = self._report(trees, budget, workers, None, meanwhile)
        return self.report

    def open(self) -> list[Open] | None:
        """What each tree examined last leaves open, None when that is not known; see `mucg4.check.resume.Open`."""
        return None if self._examination is None else self._examination.open()

    def whole(self, trees: Sequence[Tree]) -> list[Tree]:
        """The trees, with the evidence that was examined where they continue what was examined last."""
        return list(trees) if self._examination is None else self._examination.whole(trees)

    def _report(
        self,
        trees: Sequence[Tree],
        budget: Budget,
        workers: int,
        patience: int | None,
        meanwhile: Iterable[object],
    ) -> CheckReport:
        query = self.query
        made = Proof(query.network.fingerprint, query.property_hash, tuple(trees), query.network.source_hash)
        try:
            proof = from_packed(to_packed(made))
            again = self._again = self._again or read_again(query)
            if self._examination is not None:
                report = self._examination.go_on(proof, budget, workers, meanwhile)
                return replace(report, fallback=self._read(again, budget)[1])
            if budget.left() < SOON:
                self._read(again, budget)
            steps = meanwhile if self._elsewhere else chain(self._reading(again, budget), meanwhile)
            examination = Examination(proof, again, budget, workers, patience, steps)
            problem, fallback = self._read(again, budget)
            if problem is not None:
                return CheckReport(made, False, 0, 0, made.leaves, problem, made.leaves, fallback=fallback)
            self._examination = examination
            return replace(examination.report, fallback=fallback)
        except (ProofError, InputError, BudgetError) as error:
            return CheckReport(made, False, 0, 0, made.leaves, str(error), made.leaves)

    def _reading(self, again: Query, budget: Budget) -> Iterator[None]:
        """The second readings as a step of what is done meanwhile; a problem ends the check."""
        problem, _ = self._read(again, budget)
        if problem is not None:
            raise ProofError(problem)
        yield

    def _read(self, again: Query, budget: Budget) -> Readings:
        """The second readings: asked before all is accepted."""
        if self._readings is None:
            self._readings = self._elsewhere() if self._elsewhere else second_reading(again, budget)
        return self._readings


@dataclass(frozen=True, eq=False)
class Established:
    """Trees that answer for a whole query, and a check that was begun on what they continue."""

    trees: list[Tree]
    examined: Examined


def examine(query: Query, trees: Sequence[Tree], budget: Budget, workers: int = 1) -> CheckReport:
    """The checker's report on the trees as a proof of the query; never raises for a bad proof or a spent budget."""
    return Examined(query, trees, budget, workers).report


def read_again(query: Query) -> Query:
    """The query read anew from the bytes of its files; itself when it has none. Raises `InputError`."""
    if not (query.text and query.executable):
        return query
    if query.joint is not None and not query.joint.version1:
        from mucg4.read.networks import models_of, query_of_models

        made = query_of_models(models_of(query), query.text)
        # whatever choices of disjunctions the cases are made of: that they cover the text is asked of the text
        return replace(made, cases=query.cases, finer=None) if made.finer and not query.finer else made
    from mucg4.read.instance import query_of

    network = query.network if query.joint is None else query.joint.parts[0]
    return query_of(network.model_bytes, query.text, original=network.original, shapes=dict(network.inputs))


def established(proof: Proof, query: Query, budget: Budget, workers: int = 1, exact: bool = False) -> CheckReport:
    """The checker's report on a proof of a query whose two readings have to agree. Arguments as for `check`."""
    try:
        problem, fallback = second_reading(query, budget)
    except BudgetError as error:
        return CheckReport(proof, False, 0, 0, proof.leaves, str(error), proof.leaves)
    if problem is not None:
        report = CheckReport(proof, False, 0, 0, proof.leaves, problem, proof.leaves)
    else:
        with single_thread():  # what gains from several cores the checker shares out itself
            report = check(proof, query, budget, exact, workers)
    return replace(report, fallback=fallback)


def second_reading(query: Query, budget: Budget) -> Readings:
    """What the second readings of the query's files say against it, and what they do not cover."""
    if not (query.text and query.executable):
        return None, ("the query was not read from files",)
    problem = covers(query.text, query, budget)
    if problem is not None:
        return f"a second reading of the property differs: {problem}", ()
    boxes = [case.box for case in query.cases if not case.box.empty]
    lo, hi = (getattr(boxes[0], side) if boxes else np.zeros(query.network.input_size) for side in ("lo", "hi"))
    fallback: tuple[str, ...] = ()
    if query.joint is not None:
        lo, hi = query.joint.linked_ends(lo, hi)
    for network, at in _models(query):
        model = confirm(network.model_bytes, network, lo[at], hi[at])
        fallback = tuple(dict.fromkeys((*fallback, *model.fallback)))
        if model.problem is not None:
            return f"a second reading of the model differs: {model.problem}", fallback
    return None, fallback


def _models(query: Query) -> list[tuple[Network, list[int]]]:
    """The networks that were read from files, and the linked inputs of the query that each of them reads."""
    joint = query.joint
    if joint is None or joint.plain:
        return [(query.network, list(range(query.network.input_size)))]
    out: dict[int, tuple[Network, list[int]]] = {}
    for k, part in enumerate(joint.parts):
        at = [joint.links[v.start + i] for v in joint.declared.of(k, True) for i in range(v.size)]
        out.setdefault(id(part), (part, at))
    return list(out.values())
