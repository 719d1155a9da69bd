"""Forked processes that compute a part and send it back; used by the search and by the checker.

A child inherits everything by fork, so nothing has to be sent to it. Forking is safe here because the parent's other
threads only sleep (`mucg4.limits.watch`) and onnxruntime sessions are made without thread pools. A child computes with
one BLAS thread, and ends with its parent or when a parent that stops kills it; to signals, which a terminal or a batch
system sends to all, it is deaf.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mucg4.errors import BudgetError, Mucg4Error

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
K = TypeVar("K")
POLL_SECONDS = 0.2  # between two looks at what children sent; not measured
MOST_DEALT = 1000  # numbers of four bytes, which a pipe of a page holds; given
LOOK_SECONDS = 0.5  # between two looks whether the parent is still there; not measured
_DONE = object()


def usable_cores() -> int:
    """Processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_fork() -> bool:
    """True where processes can be forked."""
    return hasattr(os, "fork")


def forked(
    jobs: Sequence[Callable[[], T]],
    poll: Callable[[], None],
    enough: Callable[[T], bool] = lambda _: False,
    meanwhile: Iterable[object] = (),
) -> list[T | None]:
    """Run the jobs in one forked process each; their results in order.

    `meanwhile` is work that is done here while they run, step by step: what is left of it when they are done is not
    done. `poll` is called between steps and while waiting. Both may raise, and the children are ended then. None
    stands for a job that was ended because the result of another one was `enough`. Raises what a job raised when it
    derives from `Mucg4Error`, `BudgetError` for a child that was killed, `RuntimeError` for one that failed (its
    traceback is on standard error).
    """
    from multiprocessing.connection import Connection, Pipe, wait  # not loaded by runs that end before they fork

    children: dict[Connection, tuple[int, int]] = {}
    results: list[T | None] = [None] * len(jobs)
    try:
        for k, job in enumerate(jobs):
            receive, send = Pipe(duplex=False)
            parent, pid = os.getpid(), _fork()
            if pid == 0:
                _work(job, send, [receive, *children], parent)
            send.close()
            children[receive] = (k, pid)
        steps, busy = iter(meanwhile), True
        left = dict(children)
        while left:
            busy = busy and next(steps, _DONE) is not _DONE
            for ready in wait(list(left), timeout=0 if busy else POLL_SECONDS):
                assert isinstance(ready, Connection)
                k, pid = left.pop(ready)
                result: T = _received(ready, pid)
                results[k] = result
                if enough(result):
                    return results
            if left:  # what was sent in time counts, however late it is looked at
                poll()
    finally:
        for connection, (_, pid) in children.items():
            connection.close()
            _end(pid)
    return results


def shared_out(
    work: Callable[[Sequence[K]], dict[K, T]], items: Sequence[K], workers: int, poll: Callable[[], None]
) -> dict[K, T]:
    """What `work` makes of the items, dealt in turn among at most so many forked processes; here where one is enough.

    Raises as `forked` does.
    """
    workers = min(workers, len(items)) if can_fork() else 1
    if workers < 2:
        return work(items)
    parts = forked([partial(work, items[k::workers]) for k in range(workers)], poll)
    return {key: made for part in parts if part is not None for key, made in part.items()}


def streamed(jobs: Sequence[Callable[[], Iterable[T]]], poll: Callable[[], None]) -> Iterator[T]:
    """What the jobs yield, as it comes, from one forked process each.

    `poll` is called while waiting and may raise; the children are ended then, and when the iterator is closed. Raises
    as `forked` does.
    """
    from multiprocessing.connection import Connection, Pipe, wait

    children: dict[Connection, int] = {}
    try:
        for job in jobs:
            receive, send = Pipe(duplex=False)
            parent, pid = os.getpid(), _fork()
            if pid == 0:
                _work(partial(_tell, job, send), send, [receive, *children], parent)
            send.close()
            children[receive] = pid
        while children:
            poll()
            for ready in wait(list(children), timeout=POLL_SECONDS):
                assert isinstance(ready, Connection)
                told: tuple[T] | None = _received(ready, children[ready])
                if told is not None:
                    yield told[0]
                else:
                    os.waitpid(children.pop(ready), 0)
                    ready.close()
    finally:
        for connection, pid in children.items():
            connection.close()
            _end(pid)


def _tell(job: Callable[[], Iterable[object]], send: Connection) -> None:
    for item in job():
        send.send_bytes(pickle.dumps((item,), protocol=pickle.HIGHEST_PROTOCOL))


def dealt(count: int) -> Callable[[], Iterator[int]]:
    """The numbers below `count`, at most MOST_DEALT: processes forked afterwards take them, each number once."""
    read, write = os.pipe()
    os.write(write, b"".join(k.to_bytes(4, "little") for k in range(count)))
    os.close(write)

    def take() -> Iterator[int]:
        while data := os.read(read, 4):
            yield int.from_bytes(data, "little")

    return take


def _fork() -> int:
    with warnings.catch_warnings():  # Python warns when there are threads; see the module text
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _work(job: Callable[[], object], send: Connection, others: list[Connection], parent: int) -> None:
    """The child's life; never returns."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # its end is the parent's business, also when all are signalled
        signal.set_wakeup_fd(-1)  # the pipe is the parent's
        end_with_parent(parent)
        for connection in others:
            connection.close()
        with single_thread():
            try:
                answer: object = job()
            except Mucg4Error as error:
                answer = error
        send.send_bytes(pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def end_with_parent(parent: int) -> None:
    """End this process when its parent does: by the kernel on Linux, elsewhere by a thread that looks now and then."""
    import ctypes

    try:
        told = ctypes.CDLL(None).prctl(1, signal.SIGKILL) == 0  # PR_SET_PDEATHSIG
    except (OSError, AttributeError, TypeError):  # TypeError: no library that stands for the process
        told = False
    if os.getppid() != parent:  # it ended before it could be asked for
        os._exit(1)
    if not told:
        import threading

        threading.Thread(target=_look_for, args=(parent,), name="mucg4-parent", daemon=True).start()


def _look_for(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)


@contextmanager
def single_thread() -> Iterator[None]:
    """One BLAS thread: small matrices gain nothing from more, and regions are independent."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def _received(connection: Connection, pid: int) -> Any:
    """A child's answer; raises what it raised. Only bytes that our own child wrote are unpickled."""
    try:
        answer = pickle.loads(connection.recv_bytes())
    except EOFError as error:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status < 0:
            raise BudgetError(f"a worker process was killed by signal {-status} (out of memory?)") from error
        raise RuntimeError("a worker process failed; its traceback is on standard error") from error
    if isinstance(answer, BaseException):
        raise answer
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
