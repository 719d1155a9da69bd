"""A saved case run again: every engine decides it, and what they say is compared."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Any

from mucg4.errors import Mucg4Error, UnsupportedError
from mucg4.limits.budget import Budget
from mucg4.model.query import Query
from mucg4.model.verdict import Safe, Unsafe, Verdict
from mucg4.read.case import SavedCase, read_case
from mucg4.records import dataclass
from mucg4.settings import Settings


@dataclass
class CaseReport:
    """What each engine said (`findings`: engine -> word) and what is wrong with it (`problems`, one line each)."""

    findings: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def run_case(path: Path, budget: Budget | None = None, folder: Path | None = None) -> CaseReport:
    """Decide the case with every engine, check every proof, replay from a store, and compare.

    `budget` ends the whole of it; `folder` is a new one for temporary files, which the caller removes (None: one of its
    own). Raises `InputError` for a malformed file; any other error of an engine is a problem of the report.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            return run_case(path, budget, Path(name) / "case")
    report = CaseReport()
    folder.mkdir()
    case = read_case(path, folder)
    case = replace(case, budget=budget or Budget())
    _attempt(report, case, "scratch", case.query, None)
    _attempt(report, case, "smt", case.query, None, engine="smt")
    _with_store(report, case, folder / "store.sqlite")
    words = {w for w in report.findings.values() if w in ("sat", "unsat")}
    if len(words) == 2:
        report.problems.append("the engines contradict each other")
    if case.expected and case.expected.startswith("not "):
        if case.expected.removeprefix("not ") in words:
            report.problems.append(f"expected {case.expected}")
        return report
    if case.expected and words - {case.expected}:
        report.problems.append(f"expected {case.expected}")
    if case.expected and report.findings.get("scratch") != case.expected:
        report.problems.append(f"from scratch: {report.findings.get('scratch')}, expected {case.expected}")
    return report


def _with_store(report: CaseReport, case: SavedCase, path: Path) -> None:
    """Original first if there is one, then the network twice: reuse across networks, then of its own proof."""
    from mucg4.store.store import Store

    store = Store(path)
    try:
        if case.related is not None:
            # The original's verdict may differ from the variant's, so it is no finding.
            _decide(report, case, "original", case.related, store, case.settings)
        _attempt(report, case, "with store", case.query, store)
        _attempt(report, case, "again", case.query, store)
    finally:
        store.close()


def _attempt(report: CaseReport, case: SavedCase, name: str, query: Query, store: Any, **changed: Any) -> None:
    settings = Settings(**{**asdict(case.settings), **changed})
    verdict = _decide(report, case, name, query, store, settings)
    if verdict is not None:
        report.findings[name] = verdict.word
        if isinstance(verdict, Unsafe):
            _replay(report, name, query, verdict, settings)


def _decide(
    report: CaseReport, case: SavedCase, name: str, query: Query, store: Any, settings: Settings
) -> Verdict | None:
    """One run, its proof checked; None when the engine does not take such a query or fails."""
    from mucg4.check.walk import check
    from mucg4.verify import verify

    try:
        verdict = verify(query, settings, store, case.budget.share(case.seconds))
        if isinstance(verdict, Safe) and settings.engine == "bab":
            checked = check(verdict.proof, query, case.budget.share(10 * case.seconds))
            if not checked.accepted:
                report.problems.append(f"{name}: the checker rejects the proof: {checked.reason}")
        return verdict
    except UnsupportedError as error:
        report.findings[name] = f"not run: {error}"
    except Mucg4Error as error:
        report.problems.append(f"{name}: {type(error).__name__}: {error}")
    return None


def _replay(report: CaseReport, name: str, query: Query, verdict: Unsafe, settings: Settings) -> None:
    from mucg4.gate.runtimes import runtime_of
    from mucg4.gate.witness import replay_witness

    if replay_witness(query, verdict.witness.x, runtime_of(query, settings.dequantised)) is None:
        report.problems.append(f"{name}: onnxruntime does not confirm the witness")
