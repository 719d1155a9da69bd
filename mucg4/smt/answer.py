"""A run with the SMT engine: what the store knows of a related network, its cores re-checked, then the residual.

The method of MUC-G4 (arXiv 2506.04268) step by step; each says one line where progress is asked for, and the run record
keeps the figures under `smt`. (1) The stored proof of the original is looked up and put on this network's neurons.
(2) Both networks are encoded on the box. (3) The original's equations are classified: unchanged, other numbers, or a
structural change. (4) The minimal unsat cores of the original's proof are re-checked on this network, one question
each. (5) What no core covers is the residual, and solved. Nothing stored is believed, and the checker decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mucg4.errors import UnsupportedError
from mucg4.model.proof import Tree
from mucg4.model.query import Witness
from mucg4.model.verdict import Statistics
from mucg4.reuse.guard import guarded
from mucg4.reuse.lookup import Hints, look_up
from mucg4.reuse.rungs import witness
from mucg4.search.run import Run
from mucg4.smt.encode import open_neurons
from mucg4.smt.smt import Core, SmtResult, concluded, refute
from mucg4.smt.transfer import classify, cores_of

if TYPE_CHECKING:
    from mucg4.store.store import Store

CLOSING = "literals"  # the rung that a held core counts for: the stored tree's literals without its duals


def answer(run: Run, store: Store | None) -> Witness | list[Tree]:
    """A confirmed witness or proof trees for every case. Raises as `mucg4.smt.smt.solve_smt`."""
    hints = None if store is None or not run.settings.reuse else look_up(run, store)
    cores: list[Core] = []
    if hints is not None:
        found = witness(run, hints.points)
        if found is not None:
            return found
        trees = hints.trees
        cores = guarded(run, lambda: cores_of(trees)) or []
        run.statistics.stored_leaves = sum(len(tree.leaves) for tree in trees)
        run.statistics.smt.update(guarded(run, lambda: compared(run, hints)) or {})
    result = refute(run.query, run.budget, cores, run.runtime)
    _count(run, result)
    return concluded(result)


def compared(run: Run, hints: Hints) -> dict[str, Any]:
    """Both networks side by side: open neurons of the original on this query's boxes, and its equations by class."""
    original, alignment = hints.network, hints.alignment
    if original is None or alignment is None:
        return {}
    boxes = [case.box for case in run.query.cases if case.conjunctions and not case.box.empty]
    try:
        open_ = max((open_neurons(original, box) for box in boxes), default=0)
    except UnsupportedError:  # then this network's refusal says more
        return {}
    changes = classify(original, run.query.network, alignment)
    run.report(f"original: {open_} open neurons")
    run.report("equations: " + ", ".join(f"{count} {kind}" for kind, count in changes.items()))
    return {"original_open_neurons": open_, "changes": changes}


def _count(run: Run, result: SmtResult) -> None:
    statistics: Statistics = run.statistics
    statistics.regions, statistics.replay_regions = result.regions, result.offered
    if statistics.stored_leaves:
        statistics.rungs[CLOSING] = min(result.held_leaves, statistics.stored_leaves)
        statistics.reused_share = round(statistics.rungs[CLOSING] / statistics.stored_leaves, 4)
    figures = {
        "open_neurons": result.open_neurons,
        "cores": result.offered,
        "cores_held": result.held,
        "residual": result.regions,
        "z3": result.exact,
    }
    statistics.smt.update(figures)
    run.report(f"{result.open_neurons} open neurons")
    run.report(f"cores: {result.held} of {result.offered} hold; residual: {result.regions} regions")
