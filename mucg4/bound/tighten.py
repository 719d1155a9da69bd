"""Ascent on the dual of one functional per region: slopes alpha, multipliers beta, constraint weights.

For any alpha in [0, 1], beta >= 0 and weights >= 0 the backward pass gives a valid lower bound
(alpha-CROWN, arXiv 2011.13824; beta-CROWN, arXiv 2103.06624). With the other bounds fixed, its
derivative is read off one forward pass of the selected linear pieces from the minimising corner x*
(Danskin): for a positive coefficient `a` on an unstable neuron `d/dalpha = a (right - left) z`, for a
literal `s (z - t) >= 0` `d/dbeta = -s (z - t)`, for a constraint weight the constraint's value there.
No autodiff is needed. Only the best iterate counts; the result is evaluated once more with the slopes
rounded to multiples of 1/255, the form in which a proof stores them. `Ascent` computes where its bounder
lives: regions, phases and duals have to be on that backend, and so are the results.

The same functional with one neuron's value added bounds that neuron on the unsafe points of a region
(INVPROP, arXiv 2302.01404): `evaluate_tightening`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.bound.planes import CutPlanes
from mucg4.bound.propagate import CHUNK_ELEMENTS, Bounder, Refreshed, Regions, Rows
from mucg4.model.proof import Alpha, Tightening
from mucg4.ops.arrays import NUMPY, arange, at_least, at_most, chunk, largest_size, xp, zeros
from mucg4.ops.base import Affine, Array, Relaxation
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

RATE_ALPHA, RATE_BETA, DECAY = 0.2, 0.25, 0.93  # first steps of the ascent, and how they shrink; not measured
NOISE = 1e-9  # a bound that moves by a smaller share of its size has not improved; not measured


@dataclass
class Duals:
    """One row per region: `weights (B, M)`, `alpha (B, P)`, `beta (B, P)` over the flat pre-activation axis.

    `cuts (B, C)` are multipliers of the cuts in use, None when there are none.
    """

    weights: Array
    alpha: Array
    beta: Array
    cuts: Array | None = None

    def take(self, index: Array) -> Duals:
        """The chosen rows (a copy)."""
        cuts = None if self.cuts is None else self.cuts[index]
        return Duals(self.weights[index], self.alpha[index], self.beta[index], cuts)


@dataclass
class Bounded:
    """Rows at given duals: `value (B,)`, the rows themselves, and coefficients per nonlinear node."""

    value: Array
    rows: Rows
    trace: dict[int, Array]


class Ascent:
    """Dual ascent on a batch of regions with fixed intermediate bounds."""

    def __init__(
        self,
        bounder: Bounder,
        objective: Objective,
        regions: Regions,
        refreshed: Refreshed,
        phases: Array | None,
        planes: CutPlanes | None = None,
    ) -> None:
        """`phases (B, P)`: +1 where the region has the literal z >= 0, -1 for z <= 0, 0 for none.

        `planes`: the cuts that `Duals.cuts` multiplies; ascent leaves these multipliers as they are.
        """
        self.planes = planes
        self.bounder, self.objective, self.regions = bounder, objective, regions
        self.refreshed = refreshed
        self.phases = phases
        self.region = arange(len(regions), regions.lo)
        self.free = {
            user: bounder.network.nodes[user].inputs[0]
            for user in bounder.network.nonlinear
            if isinstance(bounder.network.nodes[user].op, TwoPiece)
        }

    def default_duals(self, weights: Array) -> Duals:
        """Default slopes and zero multipliers for the functionals `weights (B, M)`."""
        return Duals(weights, self.default_alpha(), zeros(self.regions.low.shape, self.regions.low))

    def default_alpha(self) -> Array:
        """The slopes of the default relaxation, `(B, P)`; zero where a node has no free slope."""
        alpha = zeros(self.regions.low.shape, self.regions.low)
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
            slope = xp(unstable).where(
                unstable, op.left + (op.right - op.left) * duals.alpha[:, self.bounder.slices[k]], old.lower_slopes[0]
            )
            lines[user] = Relaxation((slope,), old.lower_offset, old.upper_slopes, old.upper_offset)
        return Refreshed(lines, {})

    def bound(self, duals: Duals) -> tuple[Bounded, Refreshed]:
        """Sound lower bounds at the given duals, rounding included."""
        lines = self.lines(duals)
        trace: dict[int, Array] = {}
        extra: dict[int, Array] = {}
        if self.phases is not None and bool(duals.beta.any()):
            signed = -self.phases * duals.beta
            extra = {k: signed[:, self.bounder.slices[k]] for k in self.free.values()}
        cuts = None if self.planes is None or duals.cuts is None else (self.planes, duals.cuts)
        rows = self.objective.functional(self.bounder, lines, self.region, duals.weights, trace, extra, cuts)
        value = rows.minimum(self.regions.lo, self.regions.hi, self.bounder.scales.input_dot)
        return Bounded(value, rows, trace), lines

    def _forward(self, bounded: Bounded, lines: Refreshed) -> list[Array]:
        """Node values along the selected lines from the minimising corner of each row."""
        where = xp(bounded.rows.coeffs).where
        x = where(bounded.rows.coeffs > 0, self.regions.lo, self.regions.hi)
        values = [x]
        for k, node in enumerate(self.bounder.network.nodes[1:], 1):
            inputs = [values[i] for i in node.inputs]
            if isinstance(node.op, Affine):
                values.append(node.op.apply(inputs))
                continue
            line, positive = lines.lines[k], bounded.trace[k] > 0
            h = where(positive, line.lower_offset, line.upper_offset)
            for z, low, up in zip(inputs, line.lower_slopes, line.upper_slopes, strict=True):
                h = h + where(positive, low, up) * z
            values.append(h)
        return values

    def _gradient(self, bounded: Bounded, lines: Refreshed) -> Duals:
        values = self._forward(bounded, lines)
        like, choice = self.regions.low, xp(self.regions.low).where
        alpha, beta = zeros(like.shape, like), zeros(like.shape, like)
        for user, k in self.free.items():
            where, z, op = self.bounder.slices[k], values[k], self.bounder.network.nodes[user].op
            assert isinstance(op, TwoPiece)
            unstable = lines.lines[user].upper_offset > 0
            alpha[:, where] = choice(unstable, at_least(bounded.trace[user], 0) * (op.right - op.left) * z, 0.0)
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
        if allowed is not None and bool((allowed.sum(axis=1) > 1).any()):
            spread = allowed / at_least(allowed.sum(axis=1)[:, None], 1)
            current = replace(duals, weights=0.7 * duals.weights + 0.3 * spread)
            bounded, lines = self.bound(current)
        first = {f: zeros(getattr(duals, f).shape, duals.alpha) for f in ("alpha", "beta")}
        second = {f: zeros(m.shape, m) for f, m in first.items()}
        reach = self._reach(best_bounded)
        rate = 1.0
        for step in range(1, steps + 1):
            gradient = self._gradient(bounded, lines)
            moved = {}
            for f, base in (("alpha", RATE_ALPHA), ("beta", RATE_BETA)):
                g = getattr(gradient, f)
                first[f] = 0.9 * first[f] + 0.1 * g
                second[f] = 0.99 * second[f] + 0.01 * g * g
                m, v = first[f] / (1 - 0.9**step), second[f] / (1 - 0.99**step)
                size = reach if f == "beta" else 1.0
                moved[f] = getattr(current, f) + base * rate * size * m / (xp(v).sqrt(v) + 1e-12)
            weights = self._move_weights(current.weights, gradient.weights, allowed, rate)
            slopes = at_most(at_least(moved["alpha"], 0), 1)
            current = self._rounded(Duals(weights, slopes, at_least(moved["beta"], 0), duals.cuts))
            rate *= DECAY
            bounded, lines = self.bound(current)
            better = bounded.value > best_bounded.value
            if better.any():
                best, best_bounded = _merge(best, best_bounded, current, bounded, better)
        return best, best_bounded

    def _reach(self, bounded: Bounded) -> Array:
        """(B, P) how large a literal's multiplier may get: its neuron's coefficient, or a share of the largest."""
        out = zeros(self.regions.low.shape, self.regions.low)
        for user, k in self.free.items():
            out[:, self.bounder.slices[k]] = abs(bounded.trace[user])
        return out + 0.1 * largest_size(out)

    @staticmethod
    def _move_weights(weights: Array, gradient: Array, allowed: Array | None, rate: float) -> Array:
        """One step of mirror ascent on the simplex of the allowed constraints."""
        if allowed is None:
            return weights
        g = xp(gradient).where(allowed, gradient, 0.0)
        g = g / (largest_size(g) + 1e-300)
        moved = weights * xp(g).exp(0.7 * rate * g)
        return moved / at_least(moved.sum(axis=1)[:, None], 1e-300)

    @staticmethod
    def _rounded(duals: Duals) -> Duals:
        return replace(duals, alpha=xp(duals.alpha).round(duals.alpha * 255) / 255)


def _merge(old: Duals, old_bounded: Bounded, new: Duals, new_bounded: Bounded, better: Array) -> tuple[Duals, Bounded]:
    """Rows of `new` where `better (B,)`, else of `old`."""

    def pick(a: Array, b: Array) -> Array:
        return xp(a).where(better.reshape(-1, *[1] * (a.ndim - 1)), b, a)

    weights, alpha, beta = (pick(getattr(old, f), getattr(new, f)) for f in ("weights", "alpha", "beta"))
    duals = Duals(weights, alpha, beta, old.cuts)
    rows = Rows(
        *(pick(getattr(old_bounded.rows, f), getattr(new_bounded.rows, f)) for f in ("coeffs", "offset", "error"))
    )
    trace = {k: pick(a, new_bounded.trace[k]) for k, a in old_bounded.trace.items()}
    return duals, Bounded(pick(old_bounded.value, new_bounded.value), rows, trace)


def evaluate_tightening(
    bounder: Bounder,
    objective: Objective,
    region: Regions,
    tightening: Tightening,
    position: Array,
    sign: Array,
    planes: CutPlanes | None = None,
) -> Array:
    """(R,) lower bounds of `side * value[index]` on the points of one region that are unsafe for the conjunction.

    `region`: a batch of one, whose bounds as they stand give the relaxations. Column l of `tightening.beta`
    belongs to the literal at flat pre-activation position `position[l]`: `z >= 0` where `sign[l]` is 1, `z <= 0`
    where it is -1; with sign 0 there is no such literal here and the column is left out. `at` and `literals`
    are not looked at, so nothing of the tightening is believed: weights and multipliers have to be
    nonnegative, slopes may be any. Sound, rounding included: with `w, beta >= 0` an unsafe point has
    `side * v >= side * v + sum_i w_i g_i - beta * sign * z`, and the right-hand side is what is bounded.
    nan and -inf (overflow) tighten nothing. Everything given and returned is in NumPy; the bounder's backend computes.
    """
    there = bounder.network.backend
    region = region.on(there)
    lines = {k: bounder.lines(region, k) for k in bounder.network.nonlinear}
    held = np.flatnonzero(sign != 0)
    column, signed = position[held], -sign[held] * tightening.beta[:, held]
    out = np.empty(len(tightening.index))
    step = max(16, chunk(CHUNK_ELEMENTS, bounder.lo) // max(n.size for n in bounder.network.nodes))
    for at in range(0, len(out), step):
        part = slice(at, at + step)
        count = len(out[part])
        every = np.arange(count)
        weights = np.zeros((count, len(objective.owner)))
        weights[:, objective.rows_of(tightening.conjunction)] = tightening.weights[part]
        extra, sizes = (_literal_rows(bounder, column, v) for v in (signed[part], abs(signed[part])))
        for rows, side in ((extra, tightening.side[part]), (sizes, 1.0)):  # they may cancel: see `Objective.functional`
            target = rows.setdefault(tightening.node, np.zeros((count, bounder.network.nodes[tightening.node].size)))
            target[every, tightening.index[part]] += side
        sloped = Refreshed({k: _row_lines(bounder, k, lines[k], tightening.alpha, part, count) for k in lines}, {})
        extra, sizes = ({k: there.array(a) for k, a in blocks.items()} for blocks in (extra, sizes))
        cuts = None if planes is None else (planes, there.array(tightening.cut_weights[part]))
        where, weights = there.place(every), there.array(weights)
        bounds = objective.functional(bounder, sloped, where, weights, None, extra, cuts, sizes)
        lo, hi = (xp(v).broadcast_to(v, (count, v.shape[1])) for v in (region.lo, region.hi))
        out[part] = NUMPY.place(bounds.minimum(lo, hi, bounder.scales.input_dot))
    return out


def _literal_rows(bounder: Bounder, position: Array, signed: Array) -> dict[int, Array]:
    """Coefficients `signed (rows, L)` at flat positions `(L,)` as blocks per pre-activation node."""
    out = {}
    for k, where in bounder.slices.items():
        own = np.flatnonzero((position >= where.start) & (position < where.stop))
        if len(own):
            out[k] = np.zeros((len(signed), where.stop - where.start))
            for column in own.tolist():  # two literals of one neuron add up
                out[k][:, position[column] - where.start] += signed[:, column]
    return out


def _row_lines(
    bounder: Bounder, user: int, line: Relaxation, alphas: tuple[Alpha, ...], part: slice, count: int
) -> Relaxation:
    """The relaxation of one region repeated for `count` rows, lower slopes replaced where stored and unstable."""
    node = bounder.network.nodes[user]

    def repeated(values: Array) -> Array:
        return xp(values).broadcast_to(values, (count, values.shape[1]))

    there, lower = bounder.network.backend, [repeated(v) for v in line.lower_slopes]
    for a in alphas:
        if isinstance(node.op, TwoPiece) and a.node == node.inputs[0]:
            free = NUMPY.place(line.upper_offset)[0, a.index] > 0  # unstable, as in `Ascent.lines`
            slopes = node.op.left + (node.op.right - node.op.left) * (a.value[part][:, free] / 255.0)
            lower[0] = lower[0] + 0.0  # a copy
            lower[0][:, there.place(a.index[free].astype(np.int64))] = there.array(slopes)
    upper = tuple(repeated(v) for v in line.upper_slopes)
    return Relaxation(tuple(lower), repeated(line.lower_offset), upper, repeated(line.upper_offset))


def apply_tightening(
    bounder: Bounder,
    objective: Objective,
    region: Regions,
    tightening: Tightening,
    position: Array,
    sign: Array,
    planes: CutPlanes | None = None,
) -> Array:
    """Intersect the bounds of one region in place with `evaluate_tightening`; `(R,)` which rows improved them.

    Of several rows for one bound only the best counts, so that the others need not be kept.
    Afterwards the bounds hold on the unsafe points of the conjunction only. They may contradict each other
    (`Regions.empty`): then there are none. The region is in NumPy, wherever the bounder computes.
    """
    value = evaluate_tightening(bounder, objective, region, tightening, position, sign, planes)
    low, up = (v[0] for v in bounder.pre_bounds(region, tightening.node))
    below = tightening.side > 0
    old = np.where(below, low[tightening.index], -up[tightening.index])
    better = value - old > NOISE * (1 + abs(value))  # false for nan
    bound_of = 2 * tightening.index.astype(np.int64) + below
    order = np.lexsort((-value, bound_of))  # nan last
    better[order[1:][bound_of[order[1:]] == bound_of[order[:-1]]]] = False
    low[tightening.index[better & below]] = value[better & below]
    up[tightening.index[better & ~below]] = -value[better & ~below]
    return better
