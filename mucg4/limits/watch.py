"""Ends a run in time and within its memory, whatever the main thread is doing.

The budget that loops poll is the normal way to stop. But a loop does not poll while it is inside one long
native call (a matrix product, an LP, z3). A second thread therefore sleeps until the deadline or a signal;
native calls release the interpreter lock, so it wakes in time, lets the run end by itself for a moment, and
then calls `last_word` and leaves the process with the exit status that this returns. Python's own signal handlers
would not do: they run in the main thread only between two bytecodes. Their wake-up pipe does not have that limit.

The same thread looks now and then how much memory the process and its descendants hold. The budget ends loops a
little below the limit; at the limit the thread leaves at once, since the kernel would not ask either.

A run that was started by a script on somebody's behalf (`caller`) is nobody's when that is gone: the thread notices,
and leaves without a word, since whoever waited may already have started the next run with the same files.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from mucg4.limits.budget import Budget
from mucg4.limits.memory import descendants, family_bytes, pace, reached

_LOADED = time.monotonic()
GRACE = 1.0  # seconds a run gets to end by itself after a signal; not measured
CALLER_SECONDS = 0.25  # between two looks whether the caller is still there; not measured


def process_age() -> float:
    """Seconds since this process was started, interpreter start included.

    Falls back to the time since this module was loaded where the system does not tell.
    """
    loaded = time.monotonic() - _LOADED
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return loaded
    return age if loaded <= age < loaded + 60 else loaded


def started_ago(epoch: float) -> float:
    """Seconds since the caller's stated start (seconds since the epoch), at least the age of this process.

    A stated start that is further back than a minute before this process is taken for a moved clock.
    """
    age = process_age()
    stated = time.time() - epoch
    return stated if age <= stated < age + 60 else age


def limits(timeout: float | None, headroom: float, start: float, ending: float = 0.0) -> tuple[Budget, float]:
    """The run's budget and the moment the process leaves; `start` and that moment on the `time.monotonic` clock.

    The process is to be gone `headroom` seconds before the timeout (half the timeout where that is shorter), and
    the loops get a little less than that, so that they end by themselves; less by up to `ending` seconds more where
    they have something to write then.
    """
    if timeout is None:
        return Budget(grace=ending / 2), float("inf")
    limit = timeout - min(headroom, timeout / 2)
    ending = min(ending, 0.05 * limit)
    soft = Budget(start + limit - min(0.25, 0.05 * limit) - ending, grace=ending / 2)
    return soft, start + limit - min(0.1, 0.02 * limit)


def birth(pid: int) -> str:
    """When a process started, as the system writes it: with its id it names a process for good. Empty when it is gone.

    Where the system does not tell, `?` stands for any living process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return "" if fields[0] == b"Z" else fields[19].decode()
    except FileNotFoundError:
        pass
    except (OSError, IndexError):
        return ""
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "?"


class Watch:
    """Context manager around one run: see the module text.

    `hard` is the `time.monotonic` moment at which the process leaves, `memory` the bytes at which it does;
    `last_word(reason)` must write the answer if none was written, must be safe to call from another thread, and returns
    the exit status. A run gets `grace` seconds to end by itself after a signal. `caller` is the process id whose end
    ends this one (None: none).
    """

    def __init__(
        self,
        budget: Budget,
        hard: float,
        last_word: Callable[[str], int],
        memory: float = float("inf"),
        grace: float = GRACE,
        caller: int | None = None,
    ) -> None:
        self.budget = budget
        self.hard = hard
        self.memory = memory
        self.last_word = last_word
        self.grace = grace
        self.caller = caller
        self._birth = "" if caller is None else birth(caller)
        self._done = threading.Event()
        self._old: dict[int, Any] = {}
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._wait, name="mucg4-watch", daemon=True)

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._old[number] = signal.signal(number, self._handler)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        if self._old:
            signal.set_wakeup_fd(self._old_fd)
            for number, handler in self._old.items():
                signal.signal(number, handler)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _handler(self, number: int, frame: object) -> None:
        self.budget.interrupted = f"interrupted by {signal.Signals(number).name}"

    def _wait(self) -> None:
        """The second thread: sleeps until a signal byte arrives, the deadline passes or the memory is looked at."""
        while not self._done.is_set():
            left = self.hard - time.monotonic()
            if left <= 0:
                self._leave("timeout")
            pause = max(min(left, self._room(), self._caller_left(), 3600.0), 0.0)
            ready, _, _ = select.select([self._read], [], [], pause)
            numbers = [n for n in os.read(self._read, 64) if n in self._old] if ready else []
            if numbers and not self._done.is_set():
                # Set here too: the handler itself may have to wait for a long native call.
                self.budget.interrupted = f"interrupted by {signal.Signals(numbers[0]).name}"
                if not self._done.wait(max(min(self.grace, self.hard - time.monotonic()), 0.0)):
                    self._leave(self.budget.interrupted)

    def _room(self) -> float:
        """Leaves when the memory is used up; else seconds until the next look."""
        if self.memory == float("inf"):
            return float("inf")
        used = family_bytes(os.getpid(), self.memory)
        if used > self.memory:
            self._leave(reached(self.memory))
        return pace(self.memory - used)

    def _caller_left(self) -> float:
        """Leaves when the caller is gone; else seconds until the next look."""
        if self.caller is None:
            return float("inf")
        if not self._birth or birth(self.caller) != self._birth:
            self._leave("", silent=True)
        return CALLER_SECONDS

    def _leave(self, reason: str, silent: bool = False) -> None:
        """Say the last word and end the process, with the processes it has forked."""
        if not self._done.is_set():
            status = 0 if silent else self.last_word(reason)
            for pid in descendants(os.getpid()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass
            os._exit(status)
