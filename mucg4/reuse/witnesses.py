"""Stored witnesses, tried on another network before anything is bounded."""

from __future__ import annotations

import numpy as np

from mucg4.model.query import Witness
from mucg4.ops.arrays import FloatArray
from mucg4.reuse.guard import guarded
from mucg4.search.run import Run, attack_of

DESCENT = 10  # steps of the attack from stored witnesses; not measured


def witness(run: Run, points: FloatArray) -> Witness | None:
    """Rung `witness`: stored counterexamples `(N, d)`, their neighbourhood, then gradient steps from there."""
    return guarded(run, lambda: _witness(run, points))


def _witness(run: Run, points: FloatArray) -> Witness | None:
    for case in run.query.cases:
        attack = attack_of(run, case)
        if attack is None or case.box.empty or not case.conjunctions:
            continue
        lo, hi = case.box.lo, case.box.hi
        for point in points:
            found = attack.descend(neighbourhood(point, lo, hi, attack.rng), lo, hi, DESCENT, run.budget)
            if found is not None:
                run.statistics.rungs["witness"] += 1
                return found
    return None


def neighbourhood(point: FloatArray, lo: FloatArray, hi: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A stored witness and points around it at several scales, inside the box; `(N, d)`."""
    scale = np.repeat([0.0, 1e-3, 1e-2, 5e-2, 0.2], 8)[:, None]
    return np.clip(point + scale * (hi - lo) * rng.uniform(-1, 1, size=(len(scale), len(point))), lo, hi)
