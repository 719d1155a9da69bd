"""Refutations by a hair or by equality in the search: what floating point leaves undecided within its error.

Where a constraint is strict a conjunction may be refuted by a bound of exactly 0, and a region whose bound is within
its error of 0 may be split for ever. Such bounds are evaluated once more in rational arithmetic by the checker's own
module (`mucg4.check.ties`), on the search's bounds. The checker's bounds are at least as tight
(`mucg4.bound.rounding`), so what is closed here it closes, too. Few regions come that near; what is asked in vain is
asked less and less.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder
from mucg4.bound.tighten import Duals
from mucg4.check.ties import ExactNetwork, Literal, refutes
from mucg4.limits.budget import Budget
from mucg4.model.query import Conjunction
from mucg4.ops.base import Array
from mucg4.ops.piecewise import TwoPiece
from mucg4.search.region import Batch

# share of a functional's terms within which ascent may be of a tie between several constraints; not measured
CLOSE = 1e-3
NEAR = 8.0  # charges for rounding that a bound may be away from 0; not measured
MOST_IMAGES = 64  # conjunctions, and constraints of each, that are asked about images; not measured
PATIENCE = 256  # failures beyond which only every so many-th question is asked; not measured


class Ties:
    """The exact second looks of one search. All arrays are in NumPy, neurons as the bounder numbers them."""

    def __init__(self, bounder: Bounder, objective: Objective, budget: Budget) -> None:
        self.bounder, self.objective, self.budget = bounder, objective, budget
        self.failures = self.asked = 0

    @cached_property
    def network(self) -> ExactNetwork | None:
        """The network's exact numbers; None where equality is beyond reach."""
        network = self.bounder.network
        return ExactNetwork.of(network.origin or network)

    def is_joint(self, conjunction: int) -> bool:
        """True when constraints of the conjunction may refute it together by equality."""
        strict = self.objective.conjunctions[conjunction].strict
        several = len(strict) > 1 and bool(np.any(strict))
        return several and self.network is not None and self.network.is_piecewise

    def worth_a_program(self, work: Batch, alive: Array, value: Array) -> Array:
        """Batch regions, `alive (B,)`, whose bound `value (B,)` by ascent may be a tie between several constraints."""
        joint = [k for k in range(self.objective.count) if self.is_joint(k)] if alive.any() else []
        if not joint or self.failures > PATIENCE:
            return np.zeros(0, dtype=np.int64)
        objective, norm = self.objective, self.bounder.scales.norm
        size = float(np.max(np.linalg.norm(objective.y, axis=1) * norm[-1] + abs(objective.constants)))
        near = alive & work.open[:, joint].any(axis=1) & ((value > -CLOSE * size) | (work.ids == 0))
        return np.flatnonzero(near)

    def by_single(self, work: Batch, open_: Array, value: Array, error: Array) -> tuple[Array, Array, Array]:
        """Pairs of `open_ (B, K)` that a constraint refutes whose `value (B, M)` is within `error (B, M)` of 0.

        Regions, conjunctions and constraints (counted inside their conjunction), `(R,)` each.
        """
        near = (value <= 0) & (value >= -NEAR * error) & np.isfinite(error)
        found = self._by_images(work, open_)
        for b, m in zip(*np.nonzero(near), strict=True):
            objective = self.objective
            k = int(objective.owner[m])
            if not open_[b, k] or (int(b), k) in found or self.network is None:
                continue
            conjunction, own = objective.conjunctions[k], int(m - objective.starts[k])
            weights = np.zeros(len(conjunction))
            weights[own] = 1.0
            if self._holds(work, int(b), conjunction, weights, None):
                found[int(b), k] = own
        region, conjunctions = np.array(list(found), dtype=np.int64).reshape(-1, 2).T
        return region, conjunctions, np.array(list(found.values()), dtype=np.int64)

    def _by_images(self, work: Batch, open_: Array) -> dict[tuple[int, int], int]:
        """Of the root: the conjunctions that the image of its last functions refutes, and by which constraint."""
        found: dict[tuple[int, int], int] = {}
        for b in np.flatnonzero(work.ids == 0).tolist():
            box = work.regions.lo[b], work.regions.hi[b]
            for k in np.flatnonzero(open_[b]).tolist()[:MOST_IMAGES]:
                conjunction = self.objective.conjunctions[k]
                for own in np.flatnonzero(conjunction.strict).tolist()[:MOST_IMAGES]:
                    weights = np.eye(len(conjunction))[own].tolist()
                    least = None if self.network is None else self.network.image(conjunction, weights, box)
                    if least is not None and refutes(conjunction, weights, least):
                        found[b, k] = own
                        break
        return found

    def closed_by(self, work: Batch, conjunction: int, duals: Duals, value: Array, error: Array) -> Array:
        """`(B,)` which regions the duals (as they would be stored) refute although `value (B,)` does not exceed 0.

        `error (B,)`: the charge for rounding in it.
        """
        near = (value <= 0) & (value >= -NEAR * error) & np.isfinite(error)
        out = np.zeros(len(value), dtype=bool)
        if duals.cuts is not None and duals.cuts.any():
            return out
        own = self.objective.rows_of(conjunction)
        for b in np.flatnonzero(near).tolist() if near.any() and self.network is not None else ():
            weights = duals.weights[b, own]
            out[b] = self._holds(work, b, self.objective.conjunctions[conjunction], weights, duals)
        return out

    def _holds(self, work: Batch, b: int, conjunction: Conjunction, weights: Array, duals: Duals | None) -> bool:
        """Whether the exact bound on region b refutes the conjunction; default slopes where `duals` is None."""
        self.asked += 1
        if (
            self.network is None
            or not self.network.is_piecewise
            or (self.failures > PATIENCE and self.asked % PATIENCE)
        ):
            return False
        bounder = self.bounder
        self.budget.poll(self.network.work)
        region = work.regions.one(b)
        bounds, slopes = {}, {}
        for k in bounder.pre:
            low, up = (v[0] for v in bounder.pre_bounds(region, k))
            bounds[k] = low, up
        for user in bounder.network.nonlinear:
            op, k = bounder.network.nodes[user].op, bounder.network.nodes[user].inputs[0]
            assert isinstance(op, TwoPiece)
            alpha = op.default_alpha(*bounds[k])
            if duals is not None:
                alpha = np.round(duals.alpha[b, bounder.slices[k]] * 255) / 255
            open_ = np.clip(op.left + alpha * (op.right - op.left), op.left, op.right)
            low, up = bounds[k]
            slopes[user] = np.where(low >= 0, op.right, np.where(up <= 0, op.left, open_))
        literals = [] if duals is None else self._literals(work, b, duals.beta[b])
        try:
            value = self.network.value(
                conjunction, weights.tolist(), (region.lo[0], region.hi[0]), bounds, slopes, literals
            )
        except (OverflowError, ValueError):  # a bound or multiplier that is not finite
            return False
        found = refutes(conjunction, weights.tolist(), value)
        self.failures += not found
        return found

    def _literals(self, work: Batch, b: int, beta: Array) -> list[Literal]:
        """What the multipliers of phase literals add: `beta z` where z <= 0, `-beta z` where z >= 0."""
        out = []
        for k, where in self.bounder.slices.items():
            for j in np.flatnonzero(beta[where]).tolist():
                phase = int(work.phases[b, where.start + j])
                if phase:
                    out.append(Literal(k, j, -phase * float(beta[where.start + j]), 0.0))
        return out
