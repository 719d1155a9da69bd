"""Falsification: projected gradient steps and screening of candidate points, batched, in float64.

A candidate counts only after `mucg4.gate.witness.replay_witness` confirmed it.

Half of the points descend as if pieces without slope leaked: where most neurons are off, the true gradient knows
nothing of what would turn them on. Measured on mnist 256x6, where one neuron of the fifth layer is on: 1 500 descents
along the true gradient end at a margin of 0.81, the first ones with a leak of 0.01 at -0.9.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.gate.gradient import gradient
from mucg4.gate.runtime import Runtime
from mucg4.gate.witness import replay_witness
from mucg4.limits.budget import Budget
from mucg4.model.query import Case, Query, Witness
from mucg4.model.verdict import Statistics
from mucg4.ops.base import Array

LEAK = 0.01  # slope of pieces without slope, for half of the points; measured: see the module text
# first step as a share of the box, and how steps shrink in a short descent; not measured
FIRST_SHARE, SHORT_DECAY = 0.5, 0.88
# boxes in which the attack descends at a time, from how many points in each, in how many steps; measured: `inside`
BOXES, POINTS_EACH, STEPS_INSIDE = 64, 4, 10
OFFERED = 4  # candidates of one look that are handed to the gate; not measured
NEAR = 1e-4  # candidates this close to unsafe (relative to the outputs' size) are offered to the gate; not measured


class Attack:
    """Looks for an unsafe point of one case; remembers what it has offered to the gate."""

    def __init__(self, query: Query, case: Case, runtime: Runtime, statistics: Statistics, seed: int) -> None:
        self.query, self.case, self.runtime, self.statistics = query, case, runtime, statistics
        self.network = query.network
        self.objective = Objective(case)
        self.relations = None
        if query.joint is not None:
            from mucg4.gate.relations import Relations

            self.relations = Relations.of(query.joint)
        self.rng = np.random.default_rng(seed)
        self.best = np.inf
        self.refused = 0

    def violations(self, x: Array, y: Array) -> Array:
        """(N, K): largest constraint value of each conjunction; a point is unsafe where some entry is <= 0."""
        g = y @ self.objective.y.T + self.objective.constants
        if self.objective.mixed:
            g = g + x @ self.objective.x.T
        return np.maximum.reduceat(g, self.objective.starts[:-1], axis=1)

    def offer(self, x: Array) -> Witness | None:
        """Screen points `x (N, d)`; the most promising are replayed. Returns a confirmed witness or None."""
        x = x if self.relations is None else self.relations.onto(x)
        y = self.network(x)
        self.statistics.attack_points += len(x)
        return self._screen(x, y, self.violations(x, y))

    def _screen(self, x: Array, y: Array, violation: Array) -> Witness | None:
        worst = violation.min(axis=1)
        self.best = min(self.best, float(worst.min()))
        near = NEAR * (1 + np.abs(y).max(axis=1)) if self.refused < 200 else 0.0
        chosen = np.flatnonzero(worst <= near)
        if not len(chosen):
            return None
        first = chosen[np.argsort(worst[chosen])][:OFFERED]
        witness = replay_witness(self.query, x[first], self.runtime, ranked=True)
        self.refused += len(first) if witness is None else 0
        return witness

    def descend(self, starts: Array, lo: Array, hi: Array, steps: int, budget: Budget) -> Witness | None:
        """Sign-gradient descent on the violation from `starts (N, d)` inside `lo, hi (d,)` or `(N, d)`."""
        return next(filter(None, self.descending(starts, lo, hi, steps, budget)), None)

    def descending(self, starts: Array, lo: Array, hi: Array, steps: int, budget: Budget) -> Iterator[Witness | None]:
        """The descent step by step: what each has found, up to the first witness.

        Every point pursues the conjunction it is closest to; the step shrinks from half of the box, in many steps
        to a five-hundredth of that.
        """
        x, decay = starts, max(SHORT_DECAY, 1 - 6 / max(steps, 1))
        leak = LEAK * (np.arange(len(x)) // 2 % 2)[:, None]
        momentum = np.zeros_like(x)
        for step in range(steps + 1):
            budget.poll(2 * len(x) * self.network.size)
            x = x if self.relations is None else self.relations.onto(x)
            values = self.network.values(x)
            self.statistics.attack_points += len(x)
            y = values[-1]
            g = y @ self.objective.y.T + self.objective.constants
            if self.objective.mixed:
                g = g + x @ self.objective.x.T
            violation = np.maximum.reduceat(g, self.objective.starts[:-1], axis=1)
            witness = self._screen(x, y, violation)
            if witness is not None or step == steps:
                self.runtime.remember(x)
                yield witness
                return
            yield None
            target = violation.argmin(axis=1) if step else self._spread(violation)
            weights = self._weights(g, target)
            slope = gradient(self.network, values, weights @ self.objective.y, leak)
            if self.objective.mixed:
                slope = slope + weights @ self.objective.x
            if self.relations is not None:
                slope = self.relations.along(slope)
            momentum = 0.7 * momentum + slope / (np.abs(slope).sum(axis=1, keepdims=True) + 1e-300)
            x = np.clip(x - (FIRST_SHARE * decay**step) * (hi - lo) * np.sign(momentum), lo, hi)

    def _weights(self, g: Array, target: Array) -> Array:
        """(N, M) descent direction over constraints: the hardest one, or (odd points) all that are violated."""
        inside = self.objective.owner[None] == target[:, None]
        weights = np.zeros_like(g)
        weights[np.arange(len(g)), np.where(inside, g, -np.inf).argmax(axis=1)] = 1.0
        weights[1::2] += np.where(inside & (g > 0), 1.0, 0.0)[1::2]
        return weights

    def _spread(self, violation: Array) -> Array:
        """First step: half the points pursue conjunctions in turn, so that none is overlooked."""
        target = violation.argmin(axis=1)
        half = len(target) // 2
        target[:half] = np.arange(half) % violation.shape[1]
        return target

    def starts(self, count: int) -> Array:
        """The centre, and random points and corners of the box, `(count, d)`."""
        lo, hi = self.case.box.lo, self.case.box.hi
        share = self.rng.random((count, len(lo)))
        x = np.clip(lo * (1 - share) + hi * share, lo, hi)  # hi - lo may overflow
        corners = self.rng.integers(0, 2, size=(count // 3, len(lo)))
        x[: len(corners)] = np.where(corners == 1, hi, lo)
        x[-1] = (lo + hi) / 2
        return x

    def run(self, count: int, steps: int, budget: Budget, points: Array | None = None) -> Witness | None:
        """One round from fresh starting points, and from `points (N, d)` if given."""
        return next(filter(None, self.running(count, steps, budget, points)), None)

    def running(self, count: int, steps: int, budget: Budget, points: Array | None = None) -> Iterator[Witness | None]:
        """The round step by step; see `descending`."""
        starts = self.starts(count)
        if points is not None:
            starts = np.concatenate([starts, points])
        return self.descending(starts, self.case.box.lo, self.case.box.hi, steps, budget)

    def inside(self, lo: Array, hi: Array, budget: Budget) -> Witness | None:
        """Descend inside some of the boxes `lo, hi (B, d)`, from a few points in each: the first ones, and others.

        A descent in the whole box is drawn to where most points go, which need not be where a witness is. Measured on
        ACAS Xu, in regions that are open, every other turn: 2_9 under property 8 takes 0.4 s instead of 8, the 47 rows
        of acasxu_2023 that are sat 13 s together instead of 23, rows that are unsat as long as before.
        """
        first, rest = np.arange(min(len(lo), BOXES // 2)), np.arange(BOXES // 2, len(lo))
        chosen = np.repeat(np.concatenate([first, self.rng.permutation(rest)[: BOXES // 2]]), POINTS_EACH)
        lo, hi = lo[chosen], hi[chosen]
        share = self.rng.random(lo.shape)
        return self.descend(np.clip(lo * (1 - share) + hi * share, lo, hi), lo, hi, STEPS_INSIDE, budget)
