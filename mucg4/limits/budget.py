"""One budget object is handed down a run; every loop polls it once per turn."""

from __future__ import annotations

import os
import time
from dataclasses import field
from mmap import mmap

from mucg4.errors import BudgetError
from mucg4.limits.memory import SOFT, family_bytes, pace, reached
from mucg4.records import dataclass

TIMEOUT = "timeout"  # why a run ends whose time is over
INTERRUPTED = "interrupted"  # why a forked process ends whose run is interrupted; its parent knows better


@dataclass
class Budget:
    """Wall-clock deadline, memory limit and interrupt flag of one run.

    `deadline` is on the `time.monotonic` clock, `memory` are bytes of this process and its descendants; `inf` means
    no limit. `interrupted` is set by signal handlers and when the memory is used up, and read at the same single place.
    `work` counts what long loops say they did since they polled last, in numbers computed (rows times neurons): a clock
    that shows the same on every machine, for decisions that must repeat exactly. `grace` are seconds after the deadline
    or an interruption in which forked processes that share the work may still send what they came to: they see that the
    run is interrupted.
    """

    deadline: float = float("inf")
    interrupted: str = ""
    started: float = field(default_factory=time.monotonic)
    memory: float = float("inf")
    work: int = 0
    grace: float = 0.0
    parent: Budget | None = field(default=None, repr=False)  # whose interruption ends this one too
    _look: float = field(default=0.0, repr=False)  # the moment at which the memory is looked at next
    _flag: mmap | None = field(default=None, repr=False)  # one byte that forked processes share: the run is interrupted
    _told: float = field(default=0.0, repr=False)  # the moment at which they were told

    def __post_init__(self) -> None:
        if self.grace:
            self._flag = mmap(-1, 1)

    @staticmethod
    def seconds(limit: float | None, memory: float = float("inf")) -> Budget:
        """A budget of `limit` seconds from now (None: unlimited) and `memory` bytes."""
        return Budget(float("inf") if limit is None else time.monotonic() + limit, memory=memory)

    def left(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.deadline - time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the budget was made."""
        return time.monotonic() - self.started

    def _look_at_memory(self) -> None:
        """Interrupt the run when it holds too much; looks now and then only, the more often the less is left."""
        if self.memory < float("inf") and time.monotonic() >= self._look:
            limit = SOFT * self.memory  # so that there is room to end
            used = family_bytes(os.getpid(), limit)
            self._look = time.monotonic() + pace(limit - used)
            if used > limit:
                self.interrupted = self.interrupted or reached(self.memory)

    def _look_at_parent(self) -> None:
        if self._flag is not None and self._flag[0]:
            self.interrupted = self.interrupted or INTERRUPTED
        if self.parent is not None and not self.interrupted:
            self.parent._look_at_parent()
            self.interrupted = self.parent.interrupted

    def spent(self) -> bool:
        """True when the run has to stop."""
        self._look_at_parent()
        self._look_at_memory()
        return bool(self.interrupted) or self.left() <= 0

    def poll_late(self) -> None:
        """As `poll` for who waits for forked processes: these are told, and have the grace to end by themselves."""
        if not self.spent():
            return
        if self.interrupted and self._flag is not None and not self._told:
            self._flag[0], self._told = 1, time.monotonic()
        over = time.monotonic() - self._told if self.interrupted else -self.left()
        if over >= self.grace:
            self.poll()

    def poll(self, work: int = 0) -> None:
        """Count work; raise `BudgetError` when the run has to stop."""
        self.work += work
        self._look_at_parent()
        self._look_at_memory()
        if self.interrupted:
            raise BudgetError(self.interrupted)
        if self.left() <= 0:
            raise BudgetError(TIMEOUT)

    def share(self, seconds: float, grace: float = 0.0) -> Budget:
        """A budget that ends after `seconds`, or with this one if that is earlier."""
        deadline = min(self.deadline, time.monotonic() + seconds)
        return Budget(deadline, self.interrupted, memory=self.memory, grace=grace, parent=self)
