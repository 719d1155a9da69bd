"""A network between its unstable neurons: what dual ascent runs on when phases are split.

On a region most neurons are stable, so the network between the others is affine. A *unit* is one component
of an elementwise nonlinear node that is not affine on the root region. Writing z for the units' arguments, h
for their values and t for the input scaled to [-1, 1],

    z = A t + L h + c,        g = A_g t + L_g h + c_g    (the constraints of one conjunction),

with L strictly lower triangular in blocks (one block per nonlinear node). Convolutions, skip connections and
stable neurons have disappeared into A and L, and element-wise work is done for units only. Everything here
is float32 and nothing here is evidence: it proposes slopes, multipliers and weights, which
`mucg4.bound.tighten` evaluates soundly in float64 on the network itself. Only the order of magnitude of
rounding matters, so float32 serves.

One *row* is a functional `s z_j + sum_m w_m g_m` (or without the first term): with w = 0 a bound of neuron
j, with s = 0 a refutation, with both a bound of z_j on the part of the region where the unsafe constraints
hold (output-constrained bounds, INVPROP, arXiv 2302.01404). Any alpha in [0, 1], beta >= 0, w >= 0 give a
valid bound (arXiv 2103.06624); the derivative comes from one forward pass (see `mucg4.bound.tighten`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder, Regions
from mucg4.ops.base import Array, Nonlinear, Relaxation
from mucg4.ops.piecewise import TwoPiece

F = np.float32
BUILD_ELEMENTS = 1 << 22
TINY = 1e-25
RATE_ALPHA, RATE_BETA, RATE_WEIGHT, DECAY = 0.2, 0.25, 0.3, 0.93


@dataclass(frozen=True)
class Block:
    """Units of one nonlinear node `user` that reads pre-activation `node`: `where` among all units."""

    where: slice
    user: int
    node: int
    op: Nonlinear


@dataclass
class Lines:
    """Lines of all units on r regions, each `(r, U)`; `unstable` marks units whose lower slope is alpha's."""

    lower: Array
    lower_offset: Array
    upper: Array
    upper_offset: Array
    unstable: Array
    low: Array
    up: Array

    def take(self, index: Array) -> Lines:
        """The chosen regions."""
        return Lines(*(getattr(self, f)[index] for f in self.__dataclass_fields__))


@dataclass
class Rows:
    """R rows and their duals: `weights (R, m)`, `alpha, beta (R, U)`, and optionally targets `unit, sign (R,)`.

    `signs (r, U)`: +1 / -1 where the region has the literal z >= 0 / z <= 0, r in (1, R).
    """

    weights: Array
    alpha: Array
    beta: Array
    signs: Array
    unit: Array | None = None
    sign: Array | None = None

    def take(self, index: Array) -> Rows:
        """The chosen rows."""

        def one(a: Array | None) -> Array | None:
            return a if a is None or (len(a) == 1 and len(self.alpha) != 1) else a[index]

        return Rows(*(one(getattr(self, f)) for f in ("weights", "alpha", "beta", "signs", "unit", "sign")))


@dataclass
class Pass:
    """One backward pass: lower bounds `value (R,)`, input rows `coeffs (R, d)` and unit coefficients `on (R, U)`."""

    value: Array
    coeffs: Array
    on: Array

    def take(self, index: Array) -> Pass:
        """The chosen rows."""
        return Pass(self.value[index], self.coeffs[index], self.on[index])


@dataclass
class Reduced:
    """See the module text. Built for one conjunction and valid on every sub-region of `root`."""

    bounder: Bounder
    blocks: list[Block]
    positions: Array  # (U,) flat pre-activation position of each unit
    gap: Array  # (U,) right minus left slope, 0 for units without alpha
    left: Array  # (U,)
    a: Array  # (U, d)
    mix: Array  # (U, U), L of the module text
    c: Array  # (U,)
    ga: Array  # (m, d)
    gl: Array  # (m, U)
    gc: Array  # (m,)
    middle: Array  # (d,) of the input box
    radius: Array  # (d,)

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.positions)

    # ---- construction --------------------------------------------------------------------------

    @staticmethod
    def supports(bounder: Bounder) -> bool:
        """True when every nonlinear node has one input that no other nonlinear node reads."""
        nodes = bounder.network.nodes
        read = [i for k in bounder.network.nonlinear for i in nodes[k].inputs]
        return len(read) == len(bounder.network.nonlinear) == len(set(read))

    @staticmethod
    def build(bounder: Bounder, objective: Objective, conjunction: int, root: Regions) -> Reduced:
        """The reduced network on the first region of `root` for one conjunction's constraints."""
        network = bounder.network
        blocks, positions, lines, comps = [], [], {}, []
        at = 0
        for user in network.nonlinear:
            node, op = network.nodes[user].inputs[0], network.nodes[user].op
            assert isinstance(op, Nonlinear)
            low, up = (b[0] for b in bounder.pre_bounds(root, node))
            if isinstance(op, TwoPiece):
                unit = (low < 0) & (up > 0)
                slope = np.where(unit, 0.0, np.where(low >= 0, op.right, op.left))
            else:
                unit, slope = np.ones(len(low), dtype=bool), np.zeros(len(low))
            zero = np.zeros((1, len(low)))
            lines[user] = Relaxation((slope[None],), zero, (slope[None],), zero)
            index = np.flatnonzero(unit)
            comps.append(index)
            blocks.append(Block(slice(at, at + len(index)), user, node, op))
            positions.append(bounder.slices[node].start + index)
            at += len(index)
        gap, left = np.zeros(at, dtype=F), np.zeros(at, dtype=F)
        for b in blocks:
            if isinstance(b.op, TwoPiece):
                gap[b.where], left[b.where] = b.op.right - b.op.left, b.op.left
        lo, hi = root.lo[0], root.hi[0]
        middle, radius = (lo + hi) / 2, (hi - lo) / 2
        d = len(lo)
        a, mix, c = np.zeros((at, d), dtype=F), np.zeros((at, at), dtype=F), np.zeros(at, dtype=F)
        widest = max(n.size for n in network.nodes)

        def fill(pending: dict[int, Array], a: Array, on: Array, c: Array, extra: Array | None = None) -> None:
            trace: dict[int, Array] = {}
            rows = bounder.carry(pending, np.zeros(len(a), dtype=np.int64), lines, trace)
            coeffs = rows.coeffs if extra is None else rows.coeffs + extra
            a[:], c[:] = coeffs * radius, rows.offset + coeffs @ middle
            for b, index in zip(blocks, comps, strict=True):
                if b.user in trace:
                    on[:, b.where] = trace[b.user][:, index]

        for b, index in zip(blocks, comps, strict=True):
            step = max(1, BUILD_ELEMENTS // widest)
            for begin in range(0, len(index), step):
                bounder.poll()
                part = index[begin : begin + step]
                own = slice(b.where.start + begin, b.where.start + begin + len(part))
                unit_rows = np.zeros((len(part), network.nodes[b.node].size))
                unit_rows[np.arange(len(part)), part] = 1.0
                fill({b.node: unit_rows}, a[own], mix[own], c[own])
        rows = objective.rows_of(conjunction)
        m = rows.stop - rows.start
        ga, gl, gc = np.zeros((m, d), dtype=F), np.zeros((m, at), dtype=F), np.zeros(m, dtype=F)
        fill({len(network.nodes) - 1: objective.y[rows].copy()}, ga, gl, gc, objective.x[rows])
        gc += objective.constants[rows].astype(F)
        for matrix in (a, mix, ga, gl):  # float32 subnormals would make products a hundred times slower
            matrix[np.abs(matrix) < TINY] = 0.0
        flat = np.concatenate(positions) if positions else np.zeros(0, dtype=np.int64)
        return Reduced(bounder, blocks, flat, gap, left, a, mix, c, ga, gl, gc, middle, radius)

    # ---- lines ---------------------------------------------------------------------------------

    def lines(self, low: Array, up: Array) -> Lines:
        """Lines of all units for bounds `low, up (r, U)` of their arguments."""
        low, up = low.astype(F), up.astype(F)
        across = (low < 0) & (up > 0)
        width = np.where(across, up - low, F(1))
        stable = np.where(low >= 0, self.left + self.gap, self.left)
        upper = np.where(across, self.left + self.gap * up / width, stable)
        upper_offset = np.where(across, -self.gap * low * up / width, F(0))
        lines = Lines(stable, np.zeros_like(low), upper, upper_offset, across, low, up)
        for b in self.blocks:
            if not isinstance(b.op, TwoPiece) and b.where.stop > b.where.start:
                r = b.op.relax([low[:, b.where].astype(np.float64)], [up[:, b.where].astype(np.float64)])
                lines.lower[:, b.where], lines.lower_offset[:, b.where] = r.lower_slopes[0], r.lower_offset
                lines.upper[:, b.where], lines.upper_offset[:, b.where] = r.upper_slopes[0], r.upper_offset
                lines.unstable[:, b.where] = False
        return lines

    def default_alpha(self, lines: Lines) -> Array:
        """The default slopes as `(r, U)` values in [0, 1]."""
        return (lines.up > -lines.low).astype(F)

    # ---- one step ------------------------------------------------------------------------------

    def backward(self, rows: Rows, lines: Lines) -> Pass:
        """Lower bounds of the rows at their duals."""
        on = rows.weights @ self.gl
        coeffs = rows.weights @ self.ga
        offset = rows.weights @ self.gc
        if rows.unit is not None:
            assert rows.sign is not None
            on += rows.sign[:, None] * self.mix[rows.unit]
            coeffs += rows.sign[:, None] * self.a[rows.unit]
            offset = offset + rows.sign * self.c[rows.unit]
        moved = np.empty_like(on)
        shift = rows.signs * rows.beta
        for b in reversed(self.blocks):
            w = b.where
            if w.start == w.stop:
                continue
            g = on[:, w]
            lower = np.where(lines.unstable[:, w], self.left[w] + self.gap[w] * rows.alpha[:, w], lines.lower[:, w])
            out = g * np.where(g > 0, lower, lines.upper[:, w])
            offset = offset + (np.minimum(g, 0) * lines.upper_offset[:, w]).sum(axis=1)
            if not isinstance(b.op, TwoPiece):
                offset = offset + (np.maximum(g, 0) * lines.lower_offset[:, w]).sum(axis=1)
            out -= shift[:, w]
            moved[:, w] = out
            if w.start:
                on[:, : w.start] += out @ self.mix[w, : w.start]
        coeffs += moved @ self.a
        offset = offset + moved @ self.c
        return Pass(offset - np.abs(coeffs).sum(axis=1), coeffs, on)

    def gradient(self, rows: Rows, lines: Lines, done: Pass) -> tuple[Array, Array, Array]:
        """Derivatives of the bounds in alpha, beta and the weights."""
        t = -np.sign(done.coeffs)
        z = t @ self.a.T + self.c
        h = np.empty_like(z)
        alpha = np.zeros_like(z)
        for b in self.blocks:
            w = b.where
            if w.start == w.stop:
                continue
            if w.start:
                z[:, w] += h[:, : w.start] @ self.mix[w, : w.start].T
            g, own = done.on[:, w], z[:, w]
            positive = g > 0
            lower = np.where(lines.unstable[:, w], self.left[w] + self.gap[w] * rows.alpha[:, w], lines.lower[:, w])
            h[:, w] = np.where(
                positive,
                lower * own + lines.lower_offset[:, w],
                lines.upper[:, w] * own + lines.upper_offset[:, w],
            )
            alpha[:, w] = np.where(lines.unstable[:, w] & positive, g * self.gap[w] * own, F(0))
        constraints = t @ self.ga.T + h @ self.gl.T + self.gc
        return alpha, -rows.signs * z, constraints

    # ---- ascent --------------------------------------------------------------------------------

    def ascend(
        self, rows: Rows, lines: Lines, steps: int, simplex: bool, reach: Array | None = None
    ) -> tuple[Rows, Pass]:
        """`steps` ascent steps; returns the best duals per row (slopes in multiples of 1/255) and their bounds.

        `simplex`: weights stay on the simplex they start on; otherwise each weight is free, moved in steps of
        `reach (R, m)`. Rows whose regions have no literal keep beta at zero.
        """
        best = self._rounded(rows)
        top = self.backward(best, lines)
        current, done = best, top
        if simplex and rows.weights.shape[1] > 1:
            spread = F(0.7) * rows.weights + F(0.3 / rows.weights.shape[1])
            current = replace(best, weights=spread)
            done = self.backward(current, lines)
        moments = {f: np.zeros_like(getattr(rows, f)) for f in ("alpha", "beta", "weights")}
        squares = {f: np.zeros_like(m) for f, m in moments.items()}
        literal = bool(np.any(rows.signs))
        size = np.abs(done.on)
        beta_rate = F(RATE_BETA) * (size * self.gap + F(1e-3) * size.max(axis=1, keepdims=True, initial=0.0))
        rate = F(1)
        for step in range(1, steps + 1):
            self.bounder.poll()
            alpha, beta, constraints = self.gradient(current, lines, done)

            def adam(name: str, g: Array, step: int = step) -> Array:
                m, v = moments[name], squares[name]
                m *= F(0.9)
                m += F(0.1) * g
                v *= F(0.99)
                v += F(0.01) * g * g
                return (m / F(1 - 0.9**step)) / (np.sqrt(v / F(1 - 0.99**step)) + F(1e-30))

            new_alpha = np.clip(current.alpha + F(RATE_ALPHA) * rate * adam("alpha", alpha), 0, 1)
            new_beta, weights = current.beta, current.weights
            if literal:
                new_beta = np.maximum(current.beta + rate * beta_rate * adam("beta", beta), 0) * (rows.signs != 0)
            if simplex:
                if weights.shape[1] > 1:
                    g = constraints / (np.abs(constraints).max(axis=1, keepdims=True) + F(1e-30))
                    weights = weights * np.exp(F(0.7) * rate * g)
                    weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), F(1e-30))
            elif reach is not None:
                weights = np.maximum(weights + F(RATE_WEIGHT) * rate * reach * adam("weights", constraints), 0)
            current = self._rounded(replace(rows, weights=weights, alpha=new_alpha, beta=new_beta))
            rate *= F(DECAY)
            done = self.backward(current, lines)
            better = done.value > top.value
            if np.all(better):
                best, top = current, done
            elif np.any(better):
                pick = better[:, None]
                best = replace(
                    best,
                    weights=np.where(pick, current.weights, best.weights),
                    alpha=np.where(pick, current.alpha, best.alpha),
                    beta=np.where(pick, current.beta, best.beta),
                )
                top = Pass(
                    np.where(better, done.value, top.value),
                    np.where(pick, done.coeffs, top.coeffs),
                    np.where(pick, done.on, top.on),
                )
        return best, top

    @staticmethod
    def _rounded(rows: Rows) -> Rows:
        return replace(rows, alpha=np.round(rows.alpha * F(255)) / F(255))
