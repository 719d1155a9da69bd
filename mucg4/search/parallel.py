"""Several processes on one query: open searches, or parts of one search's frontier, go to forked workers.

A worker inherits everything by fork, bounds a fixed number of regions of its part and sends back what it added to
the proof, what it left open, and a witness if it found one. The parent merges in the order in which the parts were
handed out, so a run repeats exactly whatever the processes' speed. Every process computes with one BLAS
thread: small matrices gain nothing from more, and regions are independent.

Forking is safe here because the parent's other threads only sleep (`mucg4.watch`) and onnxruntime sessions
are made without thread pools. A worker ends with its parent, at the deadline, or when a parent that stops kills it.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import numpy as np

from mucg4.bound.planes import Planes
from mucg4.errors import BudgetError, Mucg4Error
from mucg4.model.query import Witness
from mucg4.ops.base import Array
from mucg4.search.bab import Search
from mucg4.search.record import Growth

SERIAL_TURNS = 3  # turns of a search before its frontier is shared out: easy queries never fork
TURNS, MOST_TURNS = 8, 64  # turns between two meetings: more where many regions would have to be sent
OVERTIME = 1.0  # share of the work asked for that workers may do more, so that meetings are not forced
POLL_SECONDS = 0.2


def usable_cores() -> int:
    """Processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Outcome:
    """What a worker sends back; `stopped` is what ended it early."""

    growth: Growth
    frontier: dict[str, Array]
    counters: dict[str, int]
    gains: tuple[float, bool, float]
    work: int
    root: tuple[Array, Array, Planes] | None
    witness: Witness | None = None
    stopped: BudgetError | None = None


def drive(searches: list[Search], workers: int, until: float = float("inf")) -> Witness | None:
    """Run searches until nothing is open or the budget's work has reached `until`; a witness of any of them ends all.

    Workers meet when they have done their turns: those of phase splits are cut short where they would do OVERTIME more
    than was asked for.
    Raises `BudgetError`.
    """
    for search in searches:
        if search.witness is not None:
            return search.witness
    open_ = [s for s in searches if s.is_open]
    alone = workers < 2 or not hasattr(os, "fork")
    long = bool(open_) and open_[0].plan.mode == "phase"  # turns that tighten may take seconds
    hard = until + OVERTIME * (until - open_[0].budget.work) if long else float("inf")
    while open_ and open_[0].budget.work < until:
        if alone or (len(open_) == 1 and not open_[0].divisible(workers)):
            witness = open_[0].run(1 if open_[0].turns < SERIAL_TURNS else TURNS, until)
        elif len(open_) == 1 and open_[0].turns < SERIAL_TURNS:
            witness = open_[0].run(1, until)
        else:
            witness = _round(open_, workers, open_[0].meetings, hard)
        if witness is not None:
            return witness
        open_[0].meetings += 1  # kept there: the attack's random points must not depend on where `until` lies
        open_ = [s for s in open_ if s.is_open]
    return None


def _round(searches: list[Search], workers: int, turn: int, until: float) -> Witness | None:
    """One part of work per worker: whole searches while there are enough, else parts of frontiers.

    The work left before the budget's is `until` is shared out too.
    """
    chosen = searches[:workers]
    shares = [workers // len(chosen) + (k < workers % len(chosen)) for k in range(len(chosen))]
    tasks: list[tuple[Search, dict[str, Array] | None]] = []
    for search, share in zip(chosen, shares, strict=True):
        if share > 1 and search.divisible(share):
            tasks.extend((search, part) for part in search.frontier.deal(share))
            search.given = True
        else:
            tasks.append((search, None))
    budget = searches[0].budget
    budget.poll()
    until = budget.work + (until - budget.work) / len(tasks)
    outcomes = _fork([_job(s, part, (turn, k), until) for k, (s, part) in enumerate(tasks)], searches[0])
    stopped = None
    for (search, part), outcome in zip(tasks, outcomes, strict=True):
        if outcome is None:
            continue
        search.absorb(outcome, whole=part is None)
        stopped = stopped or outcome.stopped
        if outcome.witness is not None:
            return outcome.witness
    if stopped is not None:
        raise stopped
    searches[0].report(searches)
    return None


def _job(search: Search, part: dict[str, Array] | None, seed: tuple[int, int], until: float) -> Callable[[], Outcome]:
    """What a worker does with its part (None: the whole search), up to this work of its copy of the budget."""

    def job() -> Outcome:
        before, worked = _counters(search), search.budget.work
        mark = search.recorder.mark()
        search.progress = None
        if part is not None:
            search.frontier.replace(part)
        if search.attack is not None:
            search.attack.rng = np.random.default_rng([search.turns, *seed])
        stopped, witness = None, None
        try:
            witness = search.run(min(max(TURNS, len(search.frontier) // search.plan.batch), MOST_TURNS), until)
        except BudgetError as error:
            stopped = error
        counters = {k: v - before[k] for k, v in _counters(search).items()}
        growth, phase = search.recorder.since(mark), search.phase
        return Outcome(
            growth,
            search.frontier.content(),
            counters,
            (search.drop, search.has_split, 0.0 if phase is None else phase.share),
            search.budget.work - worked,
            None if phase is None or part is not None else (phase.low, phase.up, search.planes),
            witness,
            stopped,
        )

    return job


def _counters(search: Search) -> dict[str, int]:
    """The whole-number statistics of the run."""
    s = search.statistics
    return {f.name: getattr(s, f.name) for f in fields(s) if type(getattr(s, f.name)) is int}


def _fork(jobs: list[Callable[[], Outcome]], search: Search) -> list[Outcome | None]:
    """Run the jobs in one forked process each; None for those that were ended because another found a witness."""
    children: dict[Connection, tuple[int, int]] = {}
    outcomes: list[Outcome | None] = [None] * len(jobs)
    try:
        for k, job in enumerate(jobs):
            receive, send = Pipe(duplex=False)
            pid = _fork_process()
            if pid == 0:
                _work(job, send, [receive, *children])
            send.close()
            children[receive] = (k, pid)
        left = dict(children)
        while left:
            search.budget.poll()
            for ready in wait(list(left), timeout=POLL_SECONDS):
                assert isinstance(ready, Connection)
                k, pid = left.pop(ready)
                outcomes[k] = outcome = _received(ready, pid)
                if outcome.witness is not None:
                    return outcomes
    finally:
        for connection, (_, pid) in children.items():
            connection.close()
            _end(pid)
    return outcomes


def _fork_process() -> int:
    with warnings.catch_warnings():  # Python warns when there are threads; see the module text
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _work(job: Callable[[], Outcome], send: Connection, others: list[Connection]) -> None:
    """The worker's life; never returns."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)  # the pipe is the parent's
        _end_with_parent()
        for connection in others:
            connection.close()
        with _single_thread():
            try:
                answer: Any = job()
            except Mucg4Error as error:
                answer = error
        send.send_bytes(pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def _end_with_parent() -> None:
    """Ask Linux to end this process when its parent ends; elsewhere the deadline does."""
    import ctypes

    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (OSError, AttributeError):
        return


@contextmanager
def _single_thread() -> Iterator[None]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def _received(connection: Connection, pid: int) -> Outcome:
    """A worker's answer; raises what it raised. Only bytes that our own child wrote are unpickled."""
    try:
        answer = pickle.loads(connection.recv_bytes())
    except EOFError as error:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status < 0:
            raise BudgetError(f"a worker process was killed by signal {-status} (out of memory?)") from error
        raise RuntimeError("a worker process failed; its traceback is on standard error") from error
    if isinstance(answer, BaseException):
        raise answer
    assert isinstance(answer, Outcome)
    return answer


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass
