"""Commands other than `verify` within their time and memory, and the last word of one that has to leave."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable

from mucg4.cli.streams import put, say
from mucg4.errors import BudgetError, Mucg4Error
from mucg4.limits.budget import Budget
from mucg4.limits.memory import is_exhaustion, limit_bytes
from mucg4.limits.watch import Watch, limits

LEAVING = 0.5  # seconds a command gets to end by itself after a signal; not measured


class LastWord:
    """What a command ends with: the first text counts, whichever thread says it, and its exit status."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._status: int | None = None

    def __call__(self, text: str, status: int, say: Callable[[str], None] = put) -> int:
        with self._lock:
            if self._status is None:
                self._status = status
                say(text)
            return self._status


def limited(args: argparse.Namespace, run: Callable[[Budget], int], ending: Callable[[str], int]) -> int:
    """Run a command within its time and memory. `ending(reason)` is said by one that has to leave; the exit status."""
    budget, hard = limits(args.timeout, 0.0, args.start)
    budget.memory = limit_bytes(args.memory)
    with Watch(budget, hard, ending, budget.memory, grace=LEAVING):
        try:
            return run(budget)
        except BudgetError as error:
            return ending(str(error))
        except Exception as error:
            if not is_exhaustion(error) or isinstance(error, Mucg4Error):
                raise
            error.__traceback__ = None  # its frames hold the arrays that fill the memory
            return ending("out of memory")


def spent(reason: str) -> int:
    """The last word of a command whose answer is no verdict."""
    say(f"mucg4: error: {reason}")
    return 130 if reason.startswith("interrupted") else 2
