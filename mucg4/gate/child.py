"""A first try of something native in a forked child, so that a crash or a hang there is text here.

A native library that reads a file may end the process (a segmentation fault cannot be caught) or never return. A child
that does the same first costs a few milliseconds: it shares all memory with its parent until it writes.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import warnings
from collections.abc import Callable

from mucg4.limits.memory import PAGE, free_bytes

GRACE = 1  # whole seconds that a child outlives its limit at most, should its parent be gone; not measured


def ordeal(task: Callable[[], None], seconds: float) -> str:
    """What becomes of a child process that does `task`: "" when it ends well.

    `task` returns or raises, which both is ending well: an error is raised again where it can be handled. Otherwise
    a short text says what happened: ended by a signal, no end within `seconds`, not enough memory.
    """
    if not hasattr(os, "fork"):
        return ""
    receive, send = os.pipe()
    try:
        with warnings.catch_warnings():  # other threads only sleep while this one forks
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    except OSError:  # no process to spare: no reason to refuse what will most likely do
        os.close(receive)
        os.close(send)
        return ""
    if pid == 0:
        _live(task, send, seconds)
    os.close(send)
    try:
        ended = _wait(receive, seconds)
    finally:
        os.close(receive)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        status = _status(pid)
    if ended == b"+":
        return ""
    if ended is None:
        return f"does not end within {seconds:.0f} s"
    return f"is ended by signal {-status}" if status < 0 else f"leaves with status {status}"


def _live(task: Callable[[], None], send: int, seconds: float) -> None:
    """The child's life; never returns."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)  # the pipe is the parent's
        faulthandler.disable()  # what happens here is told by the exit status
        signal.alarm(int(seconds) + GRACE)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _cap_memory()
        try:
            task()
        except Exception:
            os.write(send, b"+")  # an error is an answer
            raise
        os.write(send, b"+")
    finally:
        os._exit(0)


def _cap_memory() -> None:
    """Address space: what is taken now and what the machine can still give."""
    free = free_bytes()
    if free == float("inf"):
        return
    with open("/proc/self/statm", "rb") as file:
        taken = int(file.read().split()[0]) * PAGE
    limit = taken + int(free)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _wait(receive: int, seconds: float) -> bytes | None:
    """What the child writes: b"" when it ends without a word, None when time runs out."""
    poll = select.poll()
    poll.register(receive, select.POLLIN)
    return os.read(receive, 1) if poll.poll(1000 * seconds) else None


def _status(pid: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return 0
