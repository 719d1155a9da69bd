"""From what a run found to its verdict: no `unsat` without the checker, no `sat` that a second reader denies."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mucg4.errors import BudgetError, StuckError
from mucg4.model.proof import Tree
from mucg4.model.query import Query, Witness
from mucg4.model.verdict import CheckReport, Safe, Unknown, Unsafe, Verdict
from mucg4.search.portfolio import solve
from mucg4.search.run import HUNT, Run
from mucg4.search.standing import Standing

if TYPE_CHECKING:
    from mucg4.evidence import Established, Examined


def conclude(run: Run, found: Witness | list[Tree] | Established) -> Verdict:
    """What the evidence allows to claim: nothing is `unsat` that the checker has seen and not accepted."""
    if isinstance(found, Witness):
        return _witnessed(run, found)
    if run.query.limited:
        return Unknown(run.query.limited, run.statistics)
    examined = _examined(run, found)
    problem = run.disagreement()
    if problem is not None:
        return Unknown(problem, run.statistics)
    if examined.report.rejected:
        from mucg4.reuse.reopen import reopen

        rejected = len(examined.report.rejected)
        run.report(f"the checker rejects {rejected} leaves: they are searched again")
        run.statistics.reopened = rejected
        try:
            with run.stage("reopen"):
                again = reopen(run, examined)
        except StuckError:
            return _verdict_of(run, examined.report)
        if isinstance(again, Witness):
            return _witnessed(run, again)
        examined = _examined(run, again)
    return _verdict_of(run, examined.report)


def _witnessed(run: Run, witness: Witness) -> Verdict:
    """`sat`, unless a second reading of the property says that the witness is none: then a reader is wrong."""
    if run.query.text:
        problem = _denied(run.query, witness)
        if problem is not None:
            return Unknown(f"a second reading of the property denies the witness: {problem}", run.statistics)
    return Unsafe(witness, run.statistics)


def _denied(query: Query, witness: Witness) -> str | None:
    """What a second reading of the property says against a witness."""
    if query.joint is None:
        from mucg4.check.property import denies

        return denies(query.text, query.network.element_type, witness.x, witness.y)
    from mucg4.check.vnnlib2 import denies as denies_declared

    assert witness.values is not None
    return denies_declared(query.text, query.network.element_type, *witness.values)


def _examined(run: Run, found: list[Tree] | Established) -> Examined:
    """What the checker says; how it went is in the statistics. A check that was begun is taken up again.

    Meanwhile the network as read is compared with onnxruntime.
    """
    from mucg4.evidence import Examined  # a witness needs no checker
    from mucg4.reuse.aside import readings

    with run.stage("check"):
        if isinstance(found, list):
            steps, aside = run.comparison(), readings(run)
            examined = Examined(run.query, found, run.budget, run.workers, meanwhile=steps, readings=aside)
        else:
            examined = found.examined
            if not examined.report.accepted:
                examined.go_on(found.trees, run.budget, run.workers, run.comparison())
    statistics, report = run.statistics, examined.report
    statistics.leaves, statistics.checked_leaves = report.proof.leaves, report.checked
    statistics.max_depth = max((int(t.depths().max()) for t in report.proof.trees), default=0)
    statistics.fallback = report.fallback
    out_of_time = report.late or (not report.failed and run.budget.spent())
    statistics.checker = "unfinished" if out_of_time else f"rejected: {report.reason}"
    if report.accepted:
        statistics.checker = "accepted"
    return examined


def _verdict_of(run: Run, report: CheckReport) -> Verdict:
    statistics = run.statistics
    if report.accepted:
        return _precise(run, report)
    if report.late and run.settings.unchecked and run.settings.arithmetic == "real":
        statistics.warnings.append("the time was too short for the independent checker: this unsat is unchecked")
        return Safe(report, statistics)
    if run.budget.spent() and not report.failed:
        return Unknown(run.budget.interrupted or "timeout", statistics)
    reason = f"the independent checker rejects the proof: {report.reason}"
    path = _kept_case(run, reason)
    statistics.warnings.append(reason + (f" (case file: {path})" if path else ""))
    return Unknown(reason, statistics)


def _precise(run: Run, report: CheckReport, last: bool = False) -> Verdict:
    """An accepted proof, and whether it holds for executions in the model's precision; see `mucg4.precision`.

    Where that is demanded and this proof does not, another one is searched that leaves room for the deviation.
    """
    from mucg4.check.deviation import Deviation
    from mucg4.precision import NOT_ESTABLISHED, TOO_LITTLE, Hunted, deviation_of, enlarged_query, settle

    settings, statistics = run.settings, run.statistics
    problem = run.disagreement()  # after a further search the network was compared once more
    if problem is not None:
        return Unknown(problem, statistics)
    demanded = settings.arithmetic == "float32"
    try:
        with run.stage("float32"), np.errstate(all="ignore"):
            runtime = run.runtime if settings.attack else None
            proof, checked_in = report.proof, statistics.times["check"]
            before = partial(run.told, HUNT, Hunted)
            found = settle(
                run.query, proof, runtime, run.budget, demanded, run.workers, settings.seed, checked_in, before
            )
    except BudgetError:
        if demanded:
            raise
        statistics.float32 = f"{NOT_ESTABLISHED}: {TOO_LITTLE}"
        return Safe(report, statistics)
    statistics.float32 = found.word
    if found.witness is not None:
        return _witnessed(run, found.witness)
    if found.holds or not demanded:
        return Safe(report, statistics)
    deviation = deviation_of(run.query)
    if last or not isinstance(deviation, Deviation):
        return Unknown(f"float32: {found.word}", statistics)
    try:
        with run.stage("float32"):
            enlarged = enlarged_query(run.query, deviation, settings.seed)
            trees = solve(replace(run, query=enlarged, standing=Standing()))  # of another query
    except StuckError:
        return Unknown(f"float32: {found.word}", statistics)
    if isinstance(trees, Witness):
        return _witnessed(run, trees)
    again = _examined(run, trees).report
    return _precise(run, again, last=True) if again.accepted else _verdict_of(run, again)


def _kept_case(run: Run, reason: str) -> str:
    """Write a replayable case of a proof that was rejected; its path, empty where that is not possible."""
    from mucg4.read.case import save_case
    from mucg4.store.store import cases_folder

    if not (run.query.text and run.query.network.model_bytes):  # several models have no case file
        return ""
    path = cases_folder() / f"{run.query.key[:16]}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_case(path, run.query.network.model_bytes, run.query.text, kind=reason, settings=run.settings)
    except OSError:
        return ""
    return str(path)
