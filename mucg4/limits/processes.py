"""Forked processes that compute a part and send it back; used by the search and by the checker.

A child inherits everything by fork, so nothing has to be sent to it. Forking is safe here because the parent's other
threads only sleep (`mucg4.limits.watch`) and onnxruntime sessions are made without thread pools. A child computes with
one BLAS thread, and ends with its parent or when a parent that stops kills it; to signals, which a terminal or a batch
system sends to all, it is deaf.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar
from weakref import finalize

from mucg4.errors import BudgetError, Mucg4Error

T = TypeVar("T")
K = TypeVar("K")
POLL_SECONDS = 0.2  # between two looks at what children sent; not measured
WAIT_SECONDS = 0.02  # the same, where the answer of one is waited for; not measured
MOST_DEALT = 1000  # numbers of four bytes, which a pipe of a page holds; given
SIZE = 8  # bytes that tell how long a message is; given
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
    children: dict[Child, int] = {}
    results: list[T | None] = [None] * len(jobs)
    try:
        for k, job in enumerate(jobs):
            children[Child(job, list(children))] = k
        steps, busy = iter(meanwhile), True
        left = dict(children)
        while left:
            busy = busy and next(steps, _DONE) is not _DONE
            for ready in heard(list(left), 0 if busy else POLL_SECONDS):
                k = left.pop(ready)
                result: T = ready.answer()
                results[k] = result
                if enough(result):
                    return results
            if left:  # what was sent in time counts, however late it is looked at
                poll()
    finally:
        for child in children:
            child.end()
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


class Aside:
    """Questions that a forked process of its own answers one after the other, while this one does something else.

    Then it waits for what else it is asked. `close` ends it, at the latest when nobody refers to this any more.
    """

    def __init__(
        self,
        questions: Mapping[str, Callable[[], object]],
        poll: Callable[[], None],
        later: Mapping[str, Callable[[Any], object]] | None = None,
    ) -> None:
        """`poll` is called while an answer is waited for, and may raise; `later` are questions with an argument."""
        read, write = os.pipe()

        def answers() -> Iterator[tuple[str, object]]:
            os.close(write)
            for name, ask in questions.items():
                yield name, ask()
            while (message := _message(read)) is not None:
                name, argument = pickle.loads(message)
                yield name, (later or {})[name](argument)

        self._poll, self._write, self._first = poll, write, list(questions)
        self._answers: dict[str, Any] = {}
        self._failed: Exception | None = None
        self._unasked = finalize(self, os.close, write)
        try:
            self._child = Child(answers, streams=True)
        finally:
            os.close(read)
        self._ended = finalize(self, _finish, os.getpid(), self._child)

    def ask(self, name: str, argument: object) -> Any:
        """The answer to a later question, as for `answer`."""
        for first in self._first:  # then it listens: what is written to a process that writes may wait for ever
            self.answer(first)
        self._answers.pop(name, None)
        with suppress(_UnheardError):  # it has ended: the answer says why
            _tell(self._write, (name, argument))
        return self.answer(name)

    def answer(self, name: str) -> Any:
        """The answer, which is waited for. Raises as `forked` does."""
        while name not in self._answers:
            if self._failed is not None:
                raise self._failed
            try:
                while not heard([self._child], WAIT_SECONDS):
                    self._poll()
                told = self._child.answer()
            except Exception as error:
                self._failed = error
                raise
            assert told is not None, name
            self._answers.update(told)
        return self._answers[name]

    def close(self) -> None:
        """End the process, whatever it has not answered."""
        self._unasked()
        self._ended()


def streamed(jobs: Sequence[Callable[[], Iterable[T]]], poll: Callable[[], None]) -> Iterator[T]:
    """What the jobs yield, as it comes, from one forked process each.

    `poll` is called while waiting and may raise; the children are ended then, and when the iterator is closed. Raises
    as `forked` does.
    """
    children: list[Child] = []
    try:
        for job in jobs:
            children.append(Child(job, children, streams=True))
        while children:
            poll()
            for ready in heard(children, POLL_SECONDS):
                told: tuple[T] | None = ready.answer()
                if told is not None:
                    yield told[0]
                else:
                    children.remove(ready)
                    ready.end()
    finally:
        for child in children:
            child.end()


class Dealer:
    """Numbers that processes forked afterwards take, each number once, as they are put up; `close` says: no more."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        finalize(self, os.close, self._read)

    def put(self, numbers: Iterable[int]) -> None:
        """Put up some more; up to MOST_DEALT that nobody has taken yet do not wait for somebody."""
        os.write(self._write, b"".join(k.to_bytes(4, "little") for k in numbers))

    def close(self) -> None:
        """Put up no more."""
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    def taken(self) -> Iterator[int]:
        """The numbers that this process gets; it waits for them. For forked processes."""
        self.close()
        while data := os.read(self._read, 4):
            yield int.from_bytes(data, "little")


def _fork() -> int:
    with warnings.catch_warnings():  # Python warns when there are threads; see the module text
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _work(job: Callable[[], Any], write: int, others: Sequence[int], parent: int, streams: bool) -> None:
    """The child's life; never returns."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # its end is the parent's business, also when all are signalled
        signal.set_wakeup_fd(-1)  # the pipe is the parent's
        end_with_parent(parent)
        for other in others:
            os.close(other)
        with single_thread():
            try:
                answer = job()
                for item in answer if streams else ():
                    _tell(write, (item,))
                _tell(write, None if streams else answer)
            except Mucg4Error as error:
                _tell(write, error)
        status = 0
    except _UnheardError:
        pass  # the parent has ended the work, and has not come to end this process yet
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


class Child:
    """A forked process that tells what a job returns, or each item of that, through a pipe.

    `multiprocessing.connection` would do, but takes 7 ms to load.
    """

    def __init__(self, job: Callable[[], Any], others: Sequence[Child] = (), streams: bool = False) -> None:
        """`streams`: each item. The ends of pipes of `others`, which were forked before, are closed in this one."""
        self.number, write = os.pipe()  # of the pipe's end that is read here, -1 when it is closed
        self._reaped = False
        try:
            parent, self._pid = os.getpid(), _fork()
            if self._pid == 0:
                _work(job, write, [self.number, *(child.number for child in others)], parent, streams)
        except OSError:
            os.close(self.number)
            raise
        finally:
            os.close(write)

    def answer(self) -> Any:
        """What it tells next, which is waited for; raises what it raised. Only bytes that it wrote are unpickled."""
        message = _message(self.number)
        if message is None:
            status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._reaped = True
            if status < 0:
                raise BudgetError(f"a worker process was killed by signal {-status} (out of memory?)")
            raise RuntimeError("a worker process failed; its traceback is on standard error")
        answer = pickle.loads(message)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self) -> None:
        """End it, if it has not ended yet."""
        if self.number < 0:
            return
        os.close(self.number)
        self.number = -1
        if self._reaped:
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _finish(owner: int, child: Child) -> None:
    if os.getpid() == owner:  # a fork of it has no say
        child.end()


def heard(children: Sequence[Child], seconds: float) -> list[Child]:
    """Those that have told something, or have ended; at most so long is waited for it."""
    poll = select.poll()
    for child in children:
        poll.register(child.number, select.POLLIN)
    ready = {number for number, _ in poll.poll(1000 * seconds)}
    return [child for child in children if child.number in ready]


def _message(number: int) -> bytearray | None:
    """What comes next through a pipe, which is waited for; None: its other end was closed."""
    size = _exactly(number, SIZE)
    return None if size is None else _exactly(number, int.from_bytes(size, "little"))


def _exactly(number: int, count: int) -> bytearray | None:
    out = bytearray(count)
    left = memoryview(out)
    while left:
        got = os.readv(number, [left])
        if not got:
            return None
        left = left[got:]
    return out


class _UnheardError(Exception):
    """The other end of a pipe was closed."""


def _tell(write: int, answer: object) -> None:
    """Raises `_UnheardError`."""
    data = pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
    left = memoryview(len(data).to_bytes(SIZE, "little") + data)
    try:
        while left:
            left = left[os.write(write, left) :]
    except BrokenPipeError as error:
        raise _UnheardError from error
