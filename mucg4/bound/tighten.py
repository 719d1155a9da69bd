"""Ascent on the dual of one functional per region: slopes alpha, multipliers beta, constraint weights.

For any alpha in [0, 1], beta >= 0 and weights >= 0 the backward pass gives a valid lower bound
(alpha-CROWN, arXiv 2011.13824; beta-CROWN, arXiv 2103.06624). With the other bounds fixed, its
derivative is read off one forward pass of the selected linear pieces from the minimising corner x*
(Danskin): for a positive coefficient `a` on an unstable neuron `d/dalpha = a (right - left) z`, for a
literal `s (z - t) >= 0` `d/dbeta = -s (z - t)`, for a constraint weight the constraint's value there.
No autodiff is needed. Only the best iterate counts; the result is evaluated once more with the slopes
rounded to multiples of 1/255, the form in which a proof stores them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder, Refreshed, Regions, Rows
from mucg4.ops.base import Affine, Array, Relaxation
from mucg4.ops.piecewise import TwoPiece

RATE_ALPHA, RATE_BETA, DECAY = 0.2, 0.1, 0.93


@dataclass
class Duals:
    """One row per region: `weights (B, M)`, `alpha (B, P)`, `beta (B, P)` over the flat pre-activation axis."""

    weights: Array
    alpha: Array
    beta: Array

    def take(self, index: Array) -> Duals:
        """The chosen rows (a copy)."""
        return Duals(self.weights[index], self.alpha[index], self.beta[index])


@dataclass
class Bounded:
    """Rows at given duals: `value (B,)`, the rows themselves, and coefficients per nonlinear node."""

    value: Array
    rows: Rows
    trace: dict[int, Array]


class Ascent:
    """Dual ascent on a batch of regions with fixed intermediate bounds."""

    def __init__(
        self, bounder: Bounder, objective: Objective, regions: Regions, refreshed: Refreshed, phases: Array | None
    ) -> None:
        """`phases (B, P)`: +1 where the region has the literal z >= 0, -1 for z <= 0, 0 for none."""
        self.bounder, self.objective, self.regions = bounder, objective, regions
        self.refreshed = refreshed
        self.phases = phases
        self.region = np.arange(len(regions))
        self.free = {
            user: bounder.network.nodes[user].inputs[0]
            for user in bounder.network.nonlinear
            if isinstance(bounder.network.nodes[user].op, TwoPiece)
        }

    def default_duals(self, weights: Array) -> Duals:
        """Default slopes and zero multipliers for the functionals `weights (B, M)`."""
        return Duals(weights, self.default_alpha(), np.zeros_like(self.regions.low))

    def default_alpha(self) -> Array:
        """The slopes of the default relaxation, `(B, P)`; zero where a node has no free slope."""
        alpha = np.zeros_like(self.regions.low)
        for user, k in self.free.items():
            op = self.bounder.network.nodes[user].op
            assert isinstance(op, TwoPiece)
            alpha[:, self.bounder.slices[k]] = op.default_alpha(*self.bounder.pre_bounds(self.regions, k))
        return alpha

    def lines(self, duals: Duals) -> Refreshed:
        """The relaxations with the slopes of the given duals."""
        lines = dict(self.refreshed.lines)
        for user, k in self.free.items():
            op = self.bounder.network.nodes[user].op
            assert isinstance(op, TwoPiece)
            old = lines[user]
            unstable = old.upper_offset > 0
            slope = np.where(
                unstable, op.left + (op.right - op.left) * duals.alpha[:, self.bounder.slices[k]], old.lower_slopes[0]
            )
            lines[user] = Relaxation((slope,), old.lower_offset, old.upper_slopes, old.upper_offset)
        return Refreshed(lines, {})

    def bound(self, duals: Duals) -> tuple[Bounded, Refreshed]:
        """Sound lower bounds at the given duals, rounding included."""
        lines = self.lines(duals)
        trace: dict[int, Array] = {}
        extra: dict[int, Array] = {}
        if self.phases is not None and np.any(duals.beta):
            signed = -self.phases * duals.beta
            extra = {k: signed[:, self.bounder.slices[k]] for k in self.free.values()}
        rows = self.objective.functional(self.bounder, lines, self.region, duals.weights, trace, extra)
        value = rows.minimum(self.regions.lo, self.regions.hi, self.bounder.scales.input_dot)
        return Bounded(value, rows, trace), lines

    def _forward(self, bounded: Bounded, lines: Refreshed) -> list[Array]:
        """Node values along the selected lines from the minimising corner of each row."""
        x = np.where(bounded.rows.coeffs > 0, self.regions.lo, self.regions.hi)
        values = [x]
        for k, node in enumerate(self.bounder.network.nodes[1:], 1):
            inputs = [values[i] for i in node.inputs]
            if isinstance(node.op, Affine):
                values.append(node.op.apply(inputs))
                continue
            line, positive = lines.lines[k], bounded.trace[k] > 0
            h = np.where(positive, line.lower_offset, line.upper_offset)
            for z, low, up in zip(inputs, line.lower_slopes, line.upper_slopes, strict=True):
                h = h + np.where(positive, low, up) * z
            values.append(h)
        return values

    def _gradient(self, bounded: Bounded, lines: Refreshed) -> Duals:
        values = self._forward(bounded, lines)
        alpha, beta = np.zeros_like(self.regions.low), np.zeros_like(self.regions.low)
        for user, k in self.free.items():
            where, z, op = self.bounder.slices[k], values[k], self.bounder.network.nodes[user].op
            assert isinstance(op, TwoPiece)
            unstable = lines.lines[user].upper_offset > 0
            alpha[:, where] = np.where(unstable, np.maximum(bounded.trace[user], 0) * (op.right - op.left) * z, 0.0)
            if self.phases is not None:
                beta[:, where] = -self.phases[:, where] * z
        constraints = values[-1] @ self.objective.y.T + self.objective.constants
        if self.objective.mixed:
            constraints = constraints + values[0] @ self.objective.x.T
        return Duals(constraints, alpha, beta)

    def run(self, duals: Duals, steps: int, allowed: Array | None = None) -> tuple[Duals, Bounded]:
        """`steps` Adam steps from `duals`; `allowed (B, M)` marks weights that may become positive.

        Returns the best duals per region (slopes in multiples of 1/255) and their bounds.
        """
        best = self._rounded(duals)
        best_bounded, lines = self.bound(best)
        current, bounded = duals, best_bounded
        if allowed is not None and np.any(allowed.sum(axis=1) > 1):
            spread = allowed / np.maximum(allowed.sum(axis=1, keepdims=True), 1)
            current = Duals(0.7 * duals.weights + 0.3 * spread, duals.alpha, duals.beta)
            bounded, lines = self.bound(current)
        first = {f: np.zeros_like(getattr(duals, f)) for f in ("alpha", "beta")}
        second = {f: np.zeros_like(getattr(duals, f)) for f in ("alpha", "beta")}
        rate = 1.0
        for step in range(1, steps + 1):
            self.bounder.poll()
            gradient = self._gradient(bounded, lines)
            moved = {}
            for f, base in (("alpha", RATE_ALPHA), ("beta", RATE_BETA)):
                g = getattr(gradient, f)
                first[f] = 0.9 * first[f] + 0.1 * g
                second[f] = 0.99 * second[f] + 0.01 * g * g
                m, v = first[f] / (1 - 0.9**step), second[f] / (1 - 0.99**step)
                moved[f] = getattr(current, f) + base * rate * m / (np.sqrt(v) + 1e-12)
            weights = self._move_weights(current.weights, gradient.weights, allowed, rate)
            current = self._rounded(Duals(weights, np.clip(moved["alpha"], 0, 1), np.maximum(moved["beta"], 0)))
            rate *= DECAY
            bounded, lines = self.bound(current)
            better = bounded.value > best_bounded.value
            if np.any(better):
                best, best_bounded = _merge(best, best_bounded, current, bounded, better)
        return best, best_bounded

    @staticmethod
    def _move_weights(weights: Array, gradient: Array, allowed: Array | None, rate: float) -> Array:
        """One step of mirror ascent on the simplex of the allowed constraints."""
        if allowed is None:
            return weights
        g = np.where(allowed, gradient, 0.0)
        g = g / (np.abs(g).max(axis=1, keepdims=True) + 1e-300)
        moved = weights * np.exp(0.7 * rate * g)
        return moved / np.maximum(moved.sum(axis=1, keepdims=True), 1e-300)

    @staticmethod
    def _rounded(duals: Duals) -> Duals:
        return Duals(duals.weights, np.round(duals.alpha * 255) / 255, duals.beta)


def _merge(old: Duals, old_bounded: Bounded, new: Duals, new_bounded: Bounded, better: Array) -> tuple[Duals, Bounded]:
    """Rows of `new` where `better (B,)`, else of `old`."""

    def pick(a: Array, b: Array) -> Array:
        return np.where(better.reshape(-1, *[1] * (a.ndim - 1)), b, a)

    duals = Duals(*(pick(getattr(old, f), getattr(new, f)) for f in ("weights", "alpha", "beta")))
    rows = Rows(
        *(pick(getattr(old_bounded.rows, f), getattr(new_bounded.rows, f)) for f in ("coeffs", "offset", "error"))
    )
    trace = {k: pick(a, new_bounded.trace[k]) for k, a in old_bounded.trace.items()}
    return duals, Bounded(pick(old_bounded.value, new_bounded.value), rows, trace)
