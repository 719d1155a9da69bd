"""One child process with a wall-clock limit and a memory limit; its whole process group ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mucg4.limits.memory import family_bytes
from mucg4.records import dataclass


@dataclass(frozen=True)
class Child:
    """How a child ended: `killed` is `timeout`, `memory`, `interrupt` or empty; memory figures are bytes."""

    status: int
    wall: float
    peak_rss: int
    killed: str
    errors: str


class Children:
    """The running children, so that an interruption can end them all."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(self, command: Sequence[str], log: Path, limit: float, memory: float) -> Child:
        """Run `command` to its end, at most `limit` seconds and `memory` bytes of resident memory.

        stdin is empty, stdout is dropped, stderr goes to `log` (its last lines are returned).
        """
        start = time.monotonic()
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        with self._lock:
            self._running.add(process.pid)
        ended: list[tuple[float, int, int]] = []

        def reap() -> None:
            _, status, usage = os.wait4(process.pid, 0)
            ended.append((time.monotonic() - start, os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024))

        waiter = threading.Thread(target=reap, daemon=True)
        waiter.start()
        killed = ""
        while waiter.is_alive():
            waiter.join(0.1)
            reason = self._reason(process.pid, time.monotonic() - start > limit, memory) if waiter.is_alive() else ""
            if reason:
                killed = killed or reason
                _kill_group(process.pid)
        with self._lock:
            self._running.discard(process.pid)
        _kill_group(process.pid)  # what the child may have left behind
        wall, status, peak = ended[0]
        process.returncode = status  # it was reaped here
        text = log.read_text(errors="replace")[-2000:]
        return Child(status, wall, peak, killed, text)

    def _reason(self, pid: int, late: bool, memory: float) -> str:
        """Why the child has to be ended now; empty when it may go on."""
        if self.stopped:
            return "interrupt"
        if late:
            return "timeout"
        return "memory" if family_bytes(pid, memory) > memory else ""

    def stop(self) -> None:
        """End all children; those of later calls end at once."""
        self.stopped = True
        with self._lock:
            for pid in self._running:
                _kill_group(pid)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
