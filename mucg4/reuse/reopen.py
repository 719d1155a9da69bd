"""Leaves that the checker rejected: searched again, with more room for rounding."""

from __future__ import annotations

from dataclasses import replace

from mucg4.evidence import Established, Examined
from mucg4.model.proof import Tree
from mucg4.model.query import Witness
from mucg4.model.verdict import Statistics
from mucg4.reuse.replay import go_on
from mucg4.search.run import Run

CAUTION = 64.0  # how many times rounding is charged where the checker disagreed; not measured


def reopen(run: Run, examined: Examined) -> Witness | list[Tree] | Established:
    """The trees that were examined last, with the leaves that the checker rejected searched again.

    Such leaves were closed by a hair, where the search's charge for rounding and the checker's differ: now rounding is
    charged CAUTION times. Raises `BudgetError`, `StuckError` where that is not possible.
    """
    careful = replace(run, caution=CAUTION, statistics=Statistics())
    found = go_on(careful, examined)
    run.statistics.regions += careful.statistics.regions
    return found
