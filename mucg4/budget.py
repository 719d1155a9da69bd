"""One budget object is handed down a run; every loop polls it once per turn."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mucg4.errors import BudgetError


@dataclass
class Budget:
    """Wall-clock deadline and interrupt flag of one run.

    `deadline` is on the `time.monotonic` clock; `inf` means no limit. `interrupted` is set by signal
    handlers and read at the same single place.
    """

    deadline: float = float("inf")
    interrupted: str = ""
    started: float = field(default_factory=time.monotonic)

    @staticmethod
    def seconds(limit: float | None) -> Budget:
        """A budget of `limit` seconds from now (None: unlimited)."""
        return Budget() if limit is None else Budget(time.monotonic() + limit)

    def left(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.deadline - time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the budget was made."""
        return time.monotonic() - self.started

    def spent(self) -> bool:
        """True when the run has to stop."""
        return bool(self.interrupted) or self.left() <= 0

    def poll(self) -> None:
        """Raise `BudgetError` when the run has to stop."""
        if self.interrupted:
            raise BudgetError(self.interrupted)
        if self.left() <= 0:
            raise BudgetError("timeout")

    def share(self, seconds: float) -> Budget:
        """A budget that ends after `seconds`, or with this one if that is earlier."""
        return Budget(min(self.deadline, time.monotonic() + seconds), self.interrupted)
