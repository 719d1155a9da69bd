"""The pipeline on one screen: look up, replay, search, check, conclude, save."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from mucg4.bound.inner_loops import steady_allocator
from mucg4.errors import BudgetError, StuckError
from mucg4.gate.agreement import agreement
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.limits.memory import limit_bytes
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Query, Witness
from mucg4.model.verdict import CheckReport, Safe, Statistics, Unknown, Unsafe, Verdict
from mucg4.search.portfolio import solve
from mucg4.search.run import Run
from mucg4.settings import Settings

if TYPE_CHECKING:
    from mucg4.store.store import Store

LEAST_SECONDS, COMPARED_SHARE = 0.03, 0.03  # of comparing with onnxruntime before `unsat`: seconds, share of the run
WIDE = 2048  # nodes larger than this give BLAS threads enough to do


def verify(
    query: Query,
    settings: Settings | None = None,
    store: Store | None = None,
    budget: Budget | None = None,
    progress: Callable[[str], None] | None = None,
    announce: Callable[[Verdict], None] | None = None,
) -> Verdict:
    """Decide a query.

    `store` lends proofs of related queries and receives this one's result; None uses none. `budget`
    replaces the one made from `settings.timeout`. `progress` is called with one-line texts; `announce` with
    the verdict as soon as it stands, before the store is written.

    Every `Unsafe` holds a witness that onnxruntime reproduced, every `Safe` a proof that the independent checker
    accepted (or had no time for, see `Safe.checked`); an exhausted budget (time or memory), a proof that the checker
    rejects or a disagreement between the network as read and onnxruntime gives `Unknown`. Raises `InputError`
    for queries that cannot be solved (unsupported features, limits of an engine).
    """

    def answer(run: Run) -> Witness | list[Tree]:
        if run.settings.engine == "smt":
            from mucg4.smt.smt import solve_smt

            return solve_smt(run.query, run.budget, runtime=run.runtime)
        found = None
        if store is not None and run.settings.reuse:
            from mucg4.reuse.replay import replay_best

            found = replay_best(run, store)
        return solve(run) if found is None else found

    return decide(query, answer, settings, budget, progress, announce, store)


def replay(proof: Proof, query: Query, settings: Settings | None = None, budget: Budget | None = None) -> Verdict:
    """Re-establish a given proof of a related query on this one and search what stays open.

    The ladder without a store; the proof must speak of this network's nodes (a variant with the same
    canonical graph). Guarantees and errors as for `verify`.
    """
    from mucg4.reuse.replay import replay_all

    return decide(query, lambda run: replay_all(run, list(proof.trees), "duals"), settings, budget)


def decide(
    query: Query,
    answer: Callable[[Run], Witness | list[Tree]],
    settings: Settings | None = None,
    budget: Budget | None = None,
    progress: Callable[[str], None] | None = None,
    announce: Callable[[Verdict], None] | None = None,
    store: Store | None = None,
) -> Verdict:
    """Turn what `answer` finds into a verdict with its evidence, announce it, keep it."""
    steady_allocator()
    settings = settings or Settings()
    budget = budget or Budget.seconds(settings.timeout, limit_bytes(settings.memory))
    run = Run(query, settings, budget, Statistics(), Runtime(query.network), progress)
    if settings.device and settings.engine == "smt":
        run.statistics.warnings.append("the smt engine does not use the device")
    elif settings.device:
        _ = run.backend  # a device that cannot be used is an error even where nothing needs bounding
    try:
        # bounds that overflow prove nothing, by their meaning: no case for warnings
        with blas_threads(query, settings), torch_threads(settings), stage(run, "solve"), np.errstate(all="ignore"):
            found = answer(run)
        with blas_threads(query, settings):
            verdict = _conclude(run, found)
    except BudgetError as error:
        return Unknown(str(error), run.statistics)
    except MemoryError:
        return Unknown("out of memory", run.statistics)
    if announce is not None:
        announce(verdict)
    if store is not None and (isinstance(verdict, Unsafe) or (isinstance(verdict, Safe) and verdict.checked)):
        try:
            _save(run, store, verdict)
        except MemoryError:
            run.statistics.warnings.append("the result was not stored: out of memory")
    return verdict


@contextmanager
def blas_threads(query: Query, settings: Settings) -> Iterator[None]:
    """One BLAS thread with one worker, and on networks of small layers, where threads cost more than they give.

    Measured: on two busy cores two threads made ACAS Xu rows up to three times slower, on idle ones none
    was more than a fifth faster. Two oval21 rows at the same time, one worker each, were five times slower with two.
    """
    if settings.workers != 1 and max(node.size for net in query.networks for node in net.nodes) > WIDE:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


@contextmanager
def torch_threads(settings: Settings) -> Iterator[None]:
    """One PyTorch thread while solving on its CPU device, unless `OMP_NUM_THREADS` says otherwise.

    Measured: PyTorch's threads wait for each other by spinning, so on two busy cores two of them made rows more than
    twenty times slower.
    """
    if settings.device != "cpu" or settings.engine == "smt" or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    torch = import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def stage(run: Run, name: str) -> Iterator[None]:
    """Add the wall time of a block to `statistics.times[name]`."""
    started = time.monotonic()
    try:
        yield
    finally:
        times = run.statistics.times
        times[name] = round(times.get(name, 0.0) + time.monotonic() - started, 4)


def _conclude(run: Run, found: Witness | list[Tree]) -> Verdict:
    """What the evidence allows to claim: nothing is `unsat` that the checker has seen and not accepted."""
    if isinstance(found, Witness):
        return _witnessed(run, found)
    if run.query.limited:
        return Unknown(run.query.limited, run.statistics)
    with stage(run, "agreement"):
        seconds = max(LEAST_SECONDS, COMPARED_SHARE * run.budget.elapsed())
        problem = agreement(run.query, run.runtime, seconds=seconds).problem
    if problem is not None:
        return Unknown(problem, run.statistics)
    report = _examined(run, found)
    if report.rejected:
        from mucg4.reuse.replay import reopen

        run.report(f"the checker rejects {len(report.rejected)} leaves: they are searched again")
        run.statistics.reopened = len(report.rejected)
        try:
            with stage(run, "reopen"):
                again = reopen(run, found, report.rejected)
        except StuckError:
            return _verdict_of(run, report)
        if isinstance(again, Witness):
            return _witnessed(run, again)
        report = _examined(run, again)
    return _verdict_of(run, report)


def _witnessed(run: Run, witness: Witness) -> Verdict:
    """`sat`, unless a second reading of the property says that the witness is none: then a reader is wrong."""
    if run.query.text:
        from mucg4.check.property import denies

        problem = denies(run.query.text, run.query.network.element_type, witness.x, witness.y)
        if problem is not None:
            return Unknown(f"a second reading of the property denies the witness: {problem}", run.statistics)
    return Unsafe(witness, run.statistics)


def _examined(run: Run, trees: list[Tree]) -> CheckReport:
    """The checker's report; how it went is in the statistics."""
    from mucg4.evidence import examine  # a witness needs no checker

    with stage(run, "check"):
        report = examine(run.query, trees, run.budget, run.workers)
    statistics = run.statistics
    statistics.leaves = report.proof.leaves
    statistics.max_depth = max((int(t.depths().max()) for t in report.proof.trees), default=0)
    statistics.fallback = report.fallback
    out_of_time = report.late or (not report.failed and run.budget.spent())
    statistics.checker = "unfinished" if out_of_time else f"rejected: {report.reason}"
    if report.accepted:
        statistics.checker = "accepted"
    return report


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
    from mucg4.precision import NOT_ESTABLISHED, TOO_LITTLE, Deviation, deviation_of, enlarged_query, settle

    settings, statistics = run.settings, run.statistics
    demanded = settings.arithmetic == "float32"
    try:
        with stage(run, "float32"), np.errstate(all="ignore"):
            runtime = run.runtime if settings.attack else None
            proof, checked_in = report.proof, statistics.times["check"]
            found = settle(run.query, proof, runtime, run.budget, demanded, run.workers, settings.seed, checked_in)
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
        with stage(run, "float32"):
            trees = solve(replace(run, query=enlarged_query(run.query, deviation, settings.seed)))
    except StuckError:
        return Unknown(f"float32: {found.word}", statistics)
    if isinstance(trees, Witness):
        return _witnessed(run, trees)
    again = _examined(run, trees)
    return _precise(run, again, last=True) if again.accepted else _verdict_of(run, again)


def _kept_case(run: Run, reason: str) -> str:
    """Write a replayable case of a proof that was rejected; its path, empty where that is not possible."""
    from mucg4.lab.case import cases_folder, save_case

    if not (run.query.text and run.query.network.model_bytes):
        return ""
    path = cases_folder() / f"{run.query.key[:16]}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_case(path, run.query.network.model_bytes, run.query.text, kind=reason, settings=run.settings)
    except OSError:
        return ""
    return str(path)


def _save(run: Run, store: Store, verdict: Safe | Unsafe) -> None:
    """Hand the result to the store; the from-scratch time is known when nothing was reused."""
    statistics, settings = run.statistics, run.settings
    scratch = statistics.times["solve"] if not statistics.stored_leaves else None
    if isinstance(verdict, Unsafe):
        x = verdict.witness.x
        statistics.saved = store.save(
            run.query, "sat", witness_x=x, scratch_seconds=scratch, regions=statistics.regions
        )
    else:
        proof = verdict.proof
        if settings.compact and scratch is not None:
            from mucg4.reuse.compact import compact

            with stage(run, "compact"):
                proof = compact(run, proof, scratch)
        with stage(run, "store"):
            statistics.saved = store.save(
                run.query,
                "unsat",
                proof=proof,
                scratch_seconds=scratch,
                regions=statistics.regions,
                max_proof_bytes=settings.proof_bytes,
            )
    statistics.warnings.extend(store.warnings)
