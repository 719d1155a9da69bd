"""The error tree. Everything mucg4 raises on purpose derives from `Mucg4Error`."""

from __future__ import annotations

from typing import Any


class Mucg4Error(Exception):
    """Base class; its text is one clear line for the user."""


class InputError(Mucg4Error):
    """A file or argument given by the user cannot be used (command line: exit status 2)."""


class UnsupportedError(InputError):
    """The input is well formed but uses something mucg4 does not implement; the text names it."""


class StoreError(Mucg4Error):
    """The proof store cannot be used; never costs a verdict, callers go on without it."""


class ProofError(Mucg4Error):
    """A proof is malformed or does not belong to the given network and property."""


class BudgetError(Mucg4Error):
    """The run's time, memory or an interrupt ended it; becomes the verdict `Unknown`."""


class StuckError(BudgetError):
    """A search cannot go on though the budget is not spent; another way to search may. What it held is lost.

    `points` `(B, inputs)` are the regions that shrank to a point: concrete evaluation may still decide them.
    """

    def __init__(self, text: str, points: Any = ()) -> None:
        super().__init__(text)
        self.points = points

    def __reduce__(self) -> tuple[Any, ...]:  # sent between processes
        return type(self), (str(self), self.points)


class UnsoundError(Mucg4Error):
    """Two independent parts of mucg4 contradict each other: a bug, never a verdict."""
