"""Witnesses that only an execution has: points where rounding carries the outputs into the unsafe set.

Where large terms cancel, a float32 execution may be unsafe at points that are safe in real arithmetic; screening in
float64 hides them. Here candidates are judged by what an execution may deviate at them (`mucg4.check.deviation` on a
region that is a single point): a point is suspect when `g_i <= d_i` for all constraints of some conjunction. Points
that are suspect, their neighbours, a few units in the last place away, and points between are evaluated by
onnxruntime itself; the best ones by its own outputs are followed. It costs little where nothing is suspect.

Terms may be absorbed in a small part of the box only. So besides corners and random points there are points where
single neurons are as large or as small as sign steps along their gradient make them: what switches a large term on is
a neuron, too.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from mucg4.check.deviation import Deviation
from mucg4.errors import InputError
from mucg4.gate.gradient import gradient
from mucg4.gate.runtime import Runtime
from mucg4.gate.witness import legal_bounds, replay_witness, snap
from mucg4.model.query import Case, Query, Witness
from mucg4.ops.arrays import distinct
from mucg4.ops.base import Array

RANDOM, CORNERS = 64, 32  # points of the box: random ones, and corners; not measured
# neurons of each layer that are driven, from so many points, in so many steps; not measured
NEURONS, STARTS, STEPS = 24, 2, 8
LAYERS = 8  # layers whose neurons are driven, spread over the network; not measured
LEAK = 0.01  # slope of pieces without slope; not measured here, as in `mucg4.search.attack`
KEPT = 24  # suspect points whose neighbours are looked at; not measured
ROUNDS = 4  # how often the best ones by their outputs are followed; not measured
CELLS = 4_000_000  # most numbers in one array; not measured


def float_witness(
    query: Query, runtime: Runtime, deviation: Deviation, seconds: float, seed: int = 0
) -> Witness | None:
    """A witness that onnxruntime confirms, where real arithmetic has none; None where none is found in time.

    The seconds are spent only where some point is suspect; looking for such points takes a part of them. Without
    bounds of the deviation every point is suspect.
    """
    until = time.monotonic() + seconds
    random = np.random.default_rng(seed)
    for case in query.cases:
        if case.box.empty or not case.conjunctions or time.monotonic() > until:
            continue
        with np.errstate(all="ignore"):
            hunt = _Hunt(query, case, runtime, deviation, random, until)
            try:
                witness = hunt.run()
            except InputError:  # onnxruntime cannot run the model: the gate says so where it matters
                return None
        if witness is not None:
            return witness
    return None


class _Hunt:
    """The search in one case."""

    def __init__(
        self,
        query: Query,
        case: Case,
        runtime: Runtime,
        deviation: Deviation,
        random: np.random.Generator,
        until: float,
    ) -> None:
        self.query, self.case, self.runtime, self.deviation = query, case, runtime, deviation
        self.random, self.until = random, until
        self.network, self.type = query.network, query.network.element_type
        self.lo, self.hi = (b.astype(np.float64) for b in legal_bounds(case.box, self.type))
        self.most = max(4, CELLS // max(self.network.size, 1))  # points that are evaluated together

    def run(self) -> Witness | None:
        points = self.random.permutation(self._snapped(np.concatenate([self._scattered(), self._driven()])))[
            : self.most
        ]
        chosen = self._suspects(points)
        if not len(chosen):
            return None
        pool = np.concatenate([chosen, self._neighbours(chosen)])
        best, worth = self._judged(pool)
        for _ in range(ROUNDS):
            if not len(best):
                return None
            if worth[0] <= 0:
                witness = replay_witness(self.query, best[worth <= 0][:KEPT], self.runtime, ranked=True)
                if witness is not None:
                    return witness
            if time.monotonic() > self.until:
                return None
            more, others = self._judged(self._neighbours(best[:KEPT]))
            best, worth = np.concatenate([best, more]), np.concatenate([worth, others])
            order = np.argsort(worth, kind="stable")[: 4 * KEPT]
            best, worth = best[order], worth[order]
        return None

    def _snapped(self, x: Array) -> Array:
        return snap(self.case.box, x, self.type)

    # ---- candidates ----------------------------------------------------------------------------

    def _scattered(self) -> Array:
        """Random points, corners and the centre."""
        n = len(self.lo)
        share = self.random.random((RANDOM + CORNERS + 1, n))
        share[:CORNERS] = self.random.integers(0, 2, size=(CORNERS, n))
        share[-1] = 0.5
        return self.lo * (1 - share) + self.hi * share

    def _driven(self) -> Array:
        """Points where single neurons are large or small, layer by layer."""
        layers = [k for k in self.network.pre_activations if k]
        layers = [layers[i] for i in distinct(np.linspace(0, len(layers) - 1, LAYERS).astype(int))] if layers else []
        out = [np.zeros((0, len(self.lo)))]
        half = (time.monotonic() + self.until) / 2
        for k in self.random.permutation(layers).tolist():
            if time.monotonic() > half:
                break
            part = replace(self.network, nodes=self.network.nodes[: k + 1], model_bytes=b"", tensors=())
            size = part.output_size
            neurons = self.random.permutation(size)[:NEURONS]
            count = min(2 * STARTS * len(neurons), max(2, self.most // 4))
            rows = np.zeros((count, size))
            rows[np.arange(count), np.resize(np.repeat(neurons, STARTS), count)] = np.resize([1.0, -1.0], count)
            x = self.lo + self.random.random((count, len(self.lo))) * (self.hi - self.lo)
            for step in range(STEPS):
                if step and time.monotonic() > half:
                    break
                slope = gradient(part, part.values(x), rows, LEAK)
                x = np.clip(x + 0.5**step / 2 * (self.hi - self.lo) * np.sign(slope), self.lo, self.hi)
            out.append(x)
        return np.concatenate(out)

    def _neighbours(self, points: Array) -> Array:
        """Points around each: some units in the last place away, steps of all sizes, and points between two."""
        n, out = len(self.lo), []
        for ulps in (1, 2, 7):
            away = np.where(self.random.random((len(points), n)) < 0.5, -np.inf, np.inf).astype(self.type)
            moved = points.copy()
            for _ in range(ulps):
                moved = np.where(self.random.random(moved.shape) < 0.7, np.nextafter(moved, away), moved)
            out.append(moved)
        for size in 10.0 ** self.random.uniform(-7, -0.5, size=5):
            out.append(points + size * (self.hi - self.lo) * self.random.normal(size=(len(points), n)))
        share = self.random.random((len(points), 1))
        out.append(points * share + points[self.random.permutation(len(points))] * (1 - share))
        return self._snapped(np.concatenate(out))

    # ---- judgement -----------------------------------------------------------------------------

    def _suspects(self, points: Array) -> Array:
        """The points where rounding may suffice for some conjunction, the most likely first, at most KEPT."""
        chosen, out, step = [points[:0]], [np.zeros(0)], max(1, self.most // 32)
        for i in range(0, len(points), step):
            if i and time.monotonic() > self.until:
                break
            x = points[i : i + step]
            values = self.network.values(x.astype(np.float64))
            g = constraint_values(self.case, x.astype(np.float64), values[-1])
            for backward in (False, True):  # most are far from suspect, which is seen at a third of the price
                d = self._deviations(values, backward)
                near = worst_values(self.case, np.where(np.isfinite(d), g - d, -np.inf)) <= 0
                x, g, d, values = x[near], g[near], d[near], [v[near] for v in values]
            chosen.append(x)
            out.append(worst_values(self.case, np.where(d > 0, g / d, np.inf)))  # d that is not known: 0
        return np.concatenate(chosen)[np.argsort(np.concatenate(out), kind="stable")][:KEPT]

    def _deviations(self, values: list[Array], backward: bool) -> Array:
        """(N, M) by how much executions may deviate at the points behind `values`."""
        if self.deviation.reason:
            return np.full((len(values[0]), sum(map(len, self.case.conjunctions))), np.inf)
        rough = np.zeros(len(values[0]), dtype=bool)
        return self.deviation.bound(values, values, self.case, rough, backward)

    def _judged(self, points: Array) -> tuple[Array, Array]:
        """The points in the order of what onnxruntime makes of them, and by how much they are safe."""
        points = np.unique(points, axis=0)
        worth = np.full(len(points), np.inf)
        for i in range(0, len(points), 32):
            if time.monotonic() > self.until:
                break
            x = points[i : i + 32]
            y = self.runtime.outputs(x).astype(np.float64)
            worth[i : i + 32] = worst_values(self.case, constraint_values(self.case, x.astype(np.float64), y))
        worth = np.where(np.isnan(worth), np.inf, worth)
        order = np.argsort(worth, kind="stable")[: 4 * KEPT]
        return points[order], worth[order]


def constraint_values(case: Case, x: Array, y: Array) -> Array:
    """(N, M) values of all constraints at points with outputs `y`, one conjunction after the other."""
    return np.concatenate([y @ c.y_coeffs.T + x @ c.x_coeffs.T + c.constants for c in case.conjunctions], axis=1)


def worst_values(case: Case, values: Array) -> Array:
    """(N,) over conjunctions the smallest, of each the largest value."""
    starts = np.cumsum([0, *(len(c) for c in case.conjunctions)])[:-1]
    return np.maximum.reduceat(values, starts, axis=1).min(axis=1)
