"""A run with the SMT engine: what the store knows of a related network, its cores re-checked, then the residual.

The method of MUC-G4 (arXiv 2506.04268) step by step; each says one line where progress is asked for, and the run record
keeps the figures under `smt`. (1) The stored proof of the original is looked up and put on this network's neurons.
(2) Both networks are encoded on the box. (3) The original's equations are classified: unchanged, other numbers, or a
structural change. (4) The minimal unsat cores of the original's proof are re-checked on this network, one question
each. (5) What no core covers is the residual, and solved. Nothing stored is believed, and the checker decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mucg4.model.network import Network
from mucg4.model.proof import Tree
from mucg4.model.query import Witness
from mucg4.reuse.guard import guarded
from mucg4.reuse.lookup import Hints, look_up
from mucg4.reuse.witnesses import witness
from mucg4.search.run import Run
from mucg4.smt.encode import open_neurons
from mucg4.smt.smt import Core, SmtResult, concluded, refute
from mucg4.smt.transfer import classify, cores_of

if TYPE_CHECKING:
    from mucg4.store.store import Store

CLOSING = "cores"  # the rung that a held core counts for


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
    _encoded(run, hints)
    result = SmtResult()
    try:
        refute(run.query, run.budget, cores, run.runtime, result)
    finally:
        _count(run, result)
    return concluded(result)


def _encoded(run: Run, hints: Hints | None) -> None:
    """How many neurons are left open in the encoding of this network and of the original, and what has changed."""
    figures = run.statistics.smt
    figures["open_neurons"] = _open(run, run.query.network)
    text = f"encoded: {figures['open_neurons']} open neurons"
    original, alignment = (None, None) if hints is None else (hints.related.network, hints.alignment)
    if original is not None and alignment is not None:
        known = guarded(run, lambda: (_open(run, original), classify(original, run.query.network, alignment)))
        if known is not None:
            figures["original_open_neurons"], figures["changes"] = known
            run.report(f"{text}, {known[0]} in the original")
            run.report("equations of the original: " + ", ".join(f"{n} {kind}" for kind, n in known[1].items()))
            return
    run.report(text)


def _open(run: Run, network: Network) -> int:
    """Neurons of open phase in the case that has most."""
    boxes = [case.box for case in run.query.cases if case.conjunctions and not case.box.empty]
    return max((open_neurons(network, box) for box in boxes), default=0)


def _count(run: Run, result: SmtResult) -> None:
    statistics = run.statistics
    statistics.regions, statistics.replay_regions = result.regions, result.offered
    if statistics.stored_leaves:
        statistics.rungs[CLOSING] = min(result.held_leaves, statistics.stored_leaves)
        statistics.reused_share = round(statistics.rungs[CLOSING] / statistics.stored_leaves, 4)
    figures = {"cores": result.offered, "cores_held": result.held, "residual": result.regions, "z3": result.exact}
    statistics.smt.update(figures)
    if result.offered:
        run.report(f"cores: {result.held} of {result.offered} hold")
    run.report(f"{'residual' if result.offered else 'solved'}: {result.regions} regions")
