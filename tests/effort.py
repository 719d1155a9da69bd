"""Budgets that count work instead of seconds, for tests that demand a verdict: every machine ends at the same point."""

from __future__ import annotations

from dataclasses import dataclass

from mucg4.errors import BudgetError
from mucg4.limits.budget import Budget


@dataclass
class Effort(Budget):
    """Ends after `allowance` numbers computed; a core takes about a second for 5e7 of them."""

    allowance: int = 0

    def spent(self) -> bool:
        return self.work > self.allowance or super().spent()

    def poll(self, work: int = 0) -> None:
        super().poll(work)
        if self.work > self.allowance:
            raise BudgetError(f"more than {self.allowance:.0e} numbers were computed")


def effort(work: float = 3e9) -> Effort:
    """Far more than any test needs that asks for it: what runs into it is wrong, not slow."""
    return Effort(allowance=int(work))
