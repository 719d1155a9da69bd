"""Proofs of fewer regions: searched anew where inputs are split, with more care for each split (`mucg4.search.ahead`).

What a variant pays for is the walk through the tree, leaf by leaf; what the search that found the proof would have paid
for choosing better is spent here, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mucg4.check.margins import Gauge
from mucg4.model.proof import Tree
from mucg4.reuse.roomy import Worth, attempt
from mucg4.reuse.structure import splits_inputs
from mucg4.reuse.survey import copies_of
from mucg4.search.run import Run


def careful(run: Run, trees: Sequence[Tree], gauges: Mapping[str, Gauge]) -> list[Tree]:
    """Trees of the same query that cost variants less, found in a part of the time that is left; else the given ones.

    Only where inputs are split. `gauges`: of the run's query, called OWN, and of noisy copies, by which the costs are
    judged. Raises `ProofError`, and `BudgetError` when the time is over.
    """
    copies = copies_of(gauges)
    if not copies or not any(map(splits_inputs, trees)):
        return list(trees)
    found = attempt(replace(run, careful=True), {}, copies)
    return found[0] if found is not None and found[1].cost < Worth.of(run, trees, copies).cost else list(trees)
