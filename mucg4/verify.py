"""The pipeline on one screen: related, relate, replay, search, conclude, save."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mucg4.bound.inner_loops import steady_allocator
from mucg4.conclude import conclude
from mucg4.errors import BudgetError, InputError
from mucg4.gate.runtimes import runtime_of
from mucg4.limits.budget import Budget
from mucg4.limits.memory import limit_bytes
from mucg4.limits.threads import blas_threads, torch_threads
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Query, Witness
from mucg4.model.verdict import Safe, Statistics, Unknown, Unsafe, Verdict
from mucg4.search.portfolio import early_attack, solve
from mucg4.search.run import Run
from mucg4.search.standing import Standing
from mucg4.settings import Settings

if TYPE_CHECKING:
    from mucg4.evidence import Established
    from mucg4.gate.runtime import Runtime
    from mucg4.store.store import Store


def verify(
    query: Query,
    settings: Settings | None = None,
    store: Store | None = None,
    budget: Budget | None = None,
    progress: Callable[[str], None] | None = None,
    announce: Callable[[Verdict], None] | None = None,
    runtime: Runtime | None = None,
    standing: Standing | None = None,
) -> Verdict:
    """Decide a query.

    `store` lends proofs of related queries and receives this one's result; None uses none. `budget`
    replaces the one made from `settings.timeout`. `progress` is called with one-line texts; `announce` with
    the verdict as soon as it stands, before the store is written. `runtime` is onnxruntime with this very network,
    None loads it (`mucg4.gate.runtimes.Runtimes` shares it among queries). `standing` can be asked meanwhile how far
    the run has come, and holds the checkpoint where there is to be one: the run goes on from that file where it exists,
    writes it now and then and when it ends undecided, and leaves its removal to the caller.

    Every `Unsafe` holds a witness that onnxruntime reproduced, every `Safe` a proof that the independent checker
    accepted (or had no time for, see `Safe.checked`); an exhausted budget (time or memory), a proof that the checker
    rejects or a disagreement between the network as read and onnxruntime gives `Unknown`. Raises `InputError`
    for queries that cannot be solved (unsupported features, limits of an engine), and for a checkpoint of another one.
    """

    run = begin(query, settings, budget, progress, runtime, standing)
    verdict = decide(run, lambda run: _answer(run, store))
    if announce is not None:
        announce(verdict)
    if not verdict.final:
        run.keep()
    if store is not None and isinstance(verdict, (Safe, Unsafe)) and verdict.final:
        try:
            _save(run, store, verdict)
        except MemoryError:
            run.statistics.warnings.append("the result was not stored: out of memory")
    return verdict


def _answer(run: Run, store: Store | None) -> Witness | list[Tree] | Established:
    """Related, relate, replay, search; before that, choices of many disjunctions are written out as far as needed.

    An interrupted run of the same query comes before related ones: it had looked them up.
    """
    if run.settings.engine == "smt":
        from mucg4.smt.answer import answer

        return answer(run, store)
    if run.query.finer is not None:
        from mucg4.search.choices import refine

        refine(run)
    kept = run.kept()
    if kept:
        from mucg4.reuse.replay import replay_all

        return replay_all(run, kept, own=True)
    if store is None or not run.settings.reuse:
        return solve(run)
    met = early_attack(run)
    if met is not None:  # nothing below is loaded
        return met
    from mucg4.reuse.lookup import look_up
    from mucg4.reuse.replay import replay_all
    from mucg4.reuse.witnesses import witness

    hints = look_up(run, store)
    if hints is None:
        return solve(run)
    return witness(run, hints.points) or replay_all(run, hints.trees)


def replay(proof: Proof, query: Query, settings: Settings | None = None, budget: Budget | None = None) -> Verdict:
    """Re-establish a given proof of a related query on this one and search what stays open.

    Reuse without a store; the proof must speak of this network's nodes (a variant with the same
    canonical graph). Guarantees and errors as for `verify`.
    """
    from mucg4.reuse.replay import replay_all

    return decide(begin(query, settings, budget), lambda run: replay_all(run, proof.trees))


def begin(
    query: Query,
    settings: Settings | None = None,
    budget: Budget | None = None,
    progress: Callable[[str], None] | None = None,
    runtime: Runtime | None = None,
    standing: Standing | None = None,
) -> Run:
    """The run of a query.

    Raises `InputError` for a device that cannot be used, even where nothing needs bounding, for a checkpoint with an
    engine that keeps none, and for a runtime that was made for another `dequantised`.
    """
    steady_allocator()
    settings = settings or Settings()
    budget = budget or Budget.seconds(settings.timeout, limit_bytes(settings.memory))
    standing = standing or Standing()
    if standing.checkpoint is not None and settings.engine == "smt":
        raise InputError("the smt engine keeps no checkpoint")
    runtime = runtime or runtime_of(query, settings.dequantised)
    if runtime.dequantised != settings.dequantised:
        raise InputError(f"the runtime is for dequantised={runtime.dequantised}, not {settings.dequantised}")
    statistics = Statistics(dequantised=settings.dequantised)
    run = Run(query, settings, budget, statistics, runtime, progress, standing=standing)
    if settings.device and settings.engine == "smt":
        run.statistics.warnings.append("the smt engine does not use the device")
    elif settings.device:
        _ = run.backend
    return run


def decide(run: Run, answer: Callable[[Run], Witness | list[Tree] | Established]) -> Verdict:
    """Turn what `answer` finds into a verdict with its evidence, and say what is left where there is none."""
    verdict = _decided(run, answer)
    statistics = run.statistics
    if not isinstance(verdict, Unknown):
        statistics.open_share = 0.0
    elif run.settings.engine != "smt":
        left = run.standing.at_the_end(run.query)
        statistics.open_share, statistics.open_cases = left["open_share"], left["open_cases"]
    return verdict


def _decided(run: Run, answer: Callable[[Run], Witness | list[Tree] | Established]) -> Verdict:
    settings = run.settings
    largest = max(node.size for net in run.query.networks for node in net.nodes)
    device = "" if settings.engine == "smt" else settings.device
    try:
        with blas_threads(settings.workers, largest):
            # bounds that overflow prove nothing, by their meaning: no case for warnings
            with torch_threads(device), run.stage("solve"), np.errstate(all="ignore"):
                found = answer(run)
            return conclude(run, found)
    except BudgetError as error:
        return Unknown(str(error), run.statistics)
    except MemoryError:
        return Unknown("out of memory", run.statistics)
    finally:
        run.end_aside()


def _save(run: Run, store: Store, verdict: Safe | Unsafe) -> None:
    """Hand the result to the store: a proof that is a stored one re-established as a reference to that.

    The from-scratch time is known when nothing was reused but what this query's own search had left.
    """
    statistics, settings = run.statistics, run.settings
    scratch = None if run.borrows else statistics.times["solve"] + (statistics.resumed_seconds or 0.0)
    if isinstance(verdict, Unsafe):
        x = verdict.witness.x
        statistics.saved = store.save(
            run.query, "sat", witness_x=x, scratch_seconds=scratch, regions=statistics.regions
        )
    elif not _referred(run, store):
        proof = verdict.proof
        if settings.compact and scratch is not None and settings.engine != "smt":  # whose cores are irreducible already
            from mucg4.reuse.compact import touched_up

            with run.stage("compact"):
                proof = touched_up(run, proof, scratch)
        with run.stage("store"):
            statistics.saved = store.save(
                run.query,
                "unsat",
                proof=proof,
                scratch_seconds=scratch,
                regions=statistics.regions,
                max_proof_bytes=settings.proof_bytes,
            )
    statistics.warnings.extend(store.warnings)


def _referred(run: Run, store: Store) -> bool:
    """Whether nothing but a stored proof went into this one, and the store took a reference."""
    s = run.statistics
    if not s.stored_leaves or s.regions or s.from_root or s.related_proof is None or s.related_proofs > 1:
        return False
    with run.stage("store"):
        s.saved = store.save_reference(run.query, s.related_proof, leaves=s.leaves)
    return s.saved
