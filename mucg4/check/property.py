"""A second reading of the property: do the query's cases contain what the VNN-LIB text calls unsafe?

The checker proves that no point of the query's cases is unsafe. That is worth as much as the way from the text to the
cases, so the text is read again (`mucg4.check.vnnlib`) and compared in one direction only: every disjunct of the text
has to lie in one conjunction of one case (`mucg4.check.contained`). A query that contains more than the text asks is
harder to prove, not wrong.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from mucg4.check.contained import Comparison
from mucg4.check.vnnlib import NOTHING, Reader, Refusal, Row
from mucg4.limits.budget import Budget
from mucg4.limits.collector import resting
from mucg4.model.query import Query
from mucg4.ops.arrays import FloatArray


def denies(text: str, element_type: str, x: FloatArray, y: FloatArray) -> str | None:
    """None when the text calls the point unsafe, else one line that says why not.

    `x (inputs,)`, `y (outputs,)`: element-type values. Bounds are compared as a runtime does, or exactly if that lets
    more pass; constraints exactly. The witness gate asks more (`mucg4.gate.runtime`), but of what the first reader made
    of the text.
    """
    try:
        reader = Reader(text, element_type)
        with np.errstate(all="ignore"):
            reader.run(None)
        misses = reader.misses(len(x), len(y))
    except Refusal as refusal:
        return str(refusal)
    except OverflowError:
        return "a number is outside the range of doubles"
    if misses:
        return f"the text does not declare {len(x)} inputs and {len(y)} outputs"
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        return "the point is not finite"

    def holds(row: Row) -> bool:
        pairs = () if row.direction == NOTHING else reader.named[row.direction]
        total = sum((c * Fraction(float(x[v] if v >= 0 else y[-1 - v])) for v, c in pairs), row.constant)
        return total < 0 or (total == 0 and not row.strict)

    return reader.denied(x, holds)


def covers(text: str, query: Query, budget: Budget | None = None) -> str | None:
    """None when the query's cases contain the unsafe set of the text; else one line that says why not.

    The text is VNN-LIB 1.0, or 2.0 where the query has a `joint`. Never raises for any text; a spent budget raises
    `BudgetError`.
    """
    with resting():
        if query.joint is None:
            return _covers(text, query, budget)
        from mucg4.check.vnnlib2 import covers as covers_declared

        return covers_declared(text, query, budget)


def _covers(text: str, query: Query, budget: Budget | None) -> str | None:
    """As `covers`, for a text of version 1.0."""
    try:
        if len(query.networks) != 1:
            return f"properties of {len(query.networks)} networks are not read a second time"
        reader = Reader(text, query.networks[0].element_type)
        with np.errstate(all="ignore"):
            reader.run(budget)
            Comparison(reader, query, budget or Budget()).run()
            if query.networks[0].integers and any(
                np.any(abs(end) > 1 << 24) for case in query.cases for end in (case.box.lo, case.box.hi)
            ):
                return "whole numbers that float32 does not have"
    except Refusal as refusal:
        return str(refusal)
    except OverflowError:
        return "a number is outside the range of doubles"
    return None
