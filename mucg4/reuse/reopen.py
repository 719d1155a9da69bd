"""Leaves that the checker rejected: searched again, with more room for rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mucg4.model.proof import Tree
from mucg4.model.query import Witness
from mucg4.model.verdict import Statistics
from mucg4.reuse.replay import ReplayedArm, walks_of
from mucg4.search.portfolio import solve_case
from mucg4.search.run import Run, open_case

CAUTION = 64.0  # how many times rounding is charged where the checker disagreed; not measured


def reopen(run: Run, trees: Sequence[Tree], rejected: Sequence[tuple[int, int, int]]) -> Witness | list[Tree]:
    """The trees with the leaves that the checker rejected, `(tree, tree node, conjunction)`, searched again.

    Such leaves were closed by a hair, where the search's charge for rounding and the checker's differ: now rounding is
    charged CAUTION times. What the other leaves state is evaluated, not searched. Raises `BudgetError`.
    """
    careful = replace(run, caution=CAUTION, statistics=Statistics())
    out: list[Tree] = []
    for number, tree in enumerate(trees):
        leaves = frozenset(leaf for k, leaf, _ in rejected if k == number)
        state = open_case(careful, tree.case) if leaves else None
        if state is None:
            out.append(tree)
            continue
        for found in solve_case(careful, state, ReplayedArm(careful, walks_of(careful, state, [tree], leaves))):
            if isinstance(found, Witness):
                return found
            out.append(found)
    run.statistics.regions += careful.statistics.regions
    return out
