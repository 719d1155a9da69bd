"""The boundary behind which nothing stored can cost a verdict: whatever goes wrong there is a warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mucg4.errors import BudgetError, StuckError, UnsoundError
from mucg4.search.run import Run

T = TypeVar("T")


def guarded(run: Run, action: Callable[[], T], failed: Callable[[str], None] | None = None) -> T | None:
    """What `action` returns; None when it fails, for a stored entry is a hint, and may break anything.

    `failed` is told why; without it that is a warning. Raises `UnsoundError`, and `BudgetError` for a spent budget.
    """
    try:
        return action()
    except UnsoundError:
        raise
    except Exception as error:
        if run.budget.spent() or (isinstance(error, BudgetError) and not isinstance(error, StuckError)):
            raise
        why = " ".join(str(error).split())
        if failed is None:
            run.statistics.warnings.append(f"stored results were not used: {why}")
        else:
            failed(why)
        return None
