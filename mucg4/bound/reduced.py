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

Where it is computed: the matrices live on the backend of the bounder the network was built with, in float32, and
`lines`, `backward` and `ascend` compute there. The boundary is these methods: what they are given may be NumPy
arrays or on the backend; passes and rows come back as NumPy arrays, lines stay where they were computed.

One *row* is a functional `s z_j + sum_m w_m g_m` (or without the first term): with w = 0 a bound of neuron
j, with s = 0 a refutation, with both a bound of z_j on the part of the region where the unsafe constraints
hold (output-constrained bounds, INVPROP, arXiv 2302.01404). Any alpha in [0, 1], beta >= 0, w >= 0 give a
valid bound (arXiv 2103.06624); the derivative comes from one forward pass (see `mucg4.bound.tighten`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder, Regions
from mucg4.ops.arrays import NUMPY, Backend, at_least, at_most, empty, largest_size, xp, zeros
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

    def on(self, backend: Backend) -> Lines:
        """The same lines on another backend."""
        return Lines(*(backend.place(getattr(self, f)) for f in self.__dataclass_fields__))


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

    def on(self, backend: Backend) -> Rows:
        """The same rows on another backend."""
        found = [getattr(self, f) for f in ("weights", "alpha", "beta", "signs", "unit", "sign")]
        return Rows(*(a if a is None else backend.place(a) for a in found))


@dataclass
class Pass:
    """One backward pass: lower bounds `value (R,)`, input rows `coeffs (R, d)` and unit coefficients `on (R, U)`."""

    value: Array
    coeffs: Array
    on: Array

    def take(self, index: Array) -> Pass:
        """The chosen rows."""
        return Pass(self.value[index], self.coeffs[index], self.on[index])

    def plain(self) -> Pass:
        """As NumPy arrays."""
        return Pass(*(NUMPY.place(a) for a in (self.value, self.coeffs, self.on)))


class Placed(NamedTuple):
    """What the passes read of a reduced network, on the backend that computes."""

    gap: Array
    left: Array
    a: Array
    mix: Array
    c: Array
    ga: Array
    gl: Array
    gc: Array


@dataclass
class Reduced:
    """See the module text. Valid on every sub-region of the root it was built on.

    The fields are NumPy arrays; `placed` are the same arrays (on a CPU the same memory) where the passes compute.
    """

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
    stable: dict[int, Relaxation]  # slopes of stable neurons, nothing at units

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.positions)

    @cached_property
    def backend(self) -> Backend:
        """Where the passes compute."""
        return Backend("float32", self.bounder.network.backend.device)

    @cached_property
    def placed(self) -> Placed:
        """The matrices on `backend`."""
        return Placed(*(self.backend.place(getattr(self, f)) for f in Placed._fields))

    # ---- construction --------------------------------------------------------------------------

    @staticmethod
    def supports(bounder: Bounder) -> bool:
        """True when every nonlinear node is continuous and has one input that no other nonlinear node reads."""
        nodes = bounder.network.nodes
        if not all(nodes[k].op.continuous for k in bounder.network.nonlinear):  # type: ignore[union-attr]
            return False
        read = [i for k in bounder.network.nonlinear for i in nodes[k].inputs]
        return len(read) == len(bounder.network.nonlinear) == len(set(read))

    @staticmethod
    def build(bounder: Bounder, root: Regions) -> Reduced:
        """The reduced network on the first region of `root` (NumPy), without constraints.

        It computes where `bounder` does.
        """
        network, there = bounder.network, bounder.network.backend
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
            zero, slope = there.array(np.zeros((1, len(low)))), there.array(slope[None])
            lines[user] = Relaxation((slope,), zero, (slope,), zero)
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

        flat = np.concatenate(positions) if positions else np.zeros(0, dtype=np.int64)
        none = np.zeros((0, d), dtype=F), np.zeros((0, at), dtype=F), np.zeros(0, dtype=F)
        out = Reduced(bounder, blocks, flat, gap, left, a, mix, c, *none, middle, radius, lines)
        for b, index in zip(blocks, comps, strict=True):
            step = max(1, BUILD_ELEMENTS // widest)
            for begin in range(0, len(index), step):
                bounder.poll()
                part = index[begin : begin + step]
                own = slice(b.where.start + begin, b.where.start + begin + len(part))
                unit_rows = np.zeros((len(part), network.nodes[b.node].size))
                unit_rows[np.arange(len(part)), part] = 1.0
                a[own], mix[own], c[own] = out._carried({b.node: unit_rows})
        return out

    def constrained(self, objective: Objective, conjunction: int) -> Reduced:
        """The same network with the constraints of one conjunction; the matrices are shared."""
        rows = objective.rows_of(conjunction)
        y, x, constants = (NUMPY.place(v[rows]) for v in (objective.y, objective.x, objective.constants))
        ga, gl, gc = self._carried({len(self.bounder.network.nodes) - 1: y.copy()}, x)
        return replace(self, ga=ga, gl=gl, gc=gc + constants.astype(F))

    def _carried(self, pending: dict[int, Array], on_input: Array | float = 0.0) -> tuple[Array, Array, Array]:
        """Rows on network nodes as rows on the scaled input `(R, d)`, on units `(R, U)`, and constants `(R,)`."""
        there = self.bounder.network.backend
        count = len(next(iter(pending.values())))
        trace: dict[int, Array] = {}
        placed = {k: there.array(v) for k, v in pending.items()}
        rows = self.bounder.carry(placed, there.place(np.zeros(count, dtype=np.int64)), self.stable, trace)
        coeffs = NUMPY.place(rows.coeffs) + on_input
        on = np.zeros((count, self.units), dtype=F)
        for b in self.blocks:
            if b.user in trace:
                index = self.positions[b.where] - self.bounder.slices[b.node].start
                on[:, b.where] = NUMPY.place(trace[b.user][:, there.place(index)])
        a, c = (coeffs * self.radius).astype(F), (NUMPY.place(rows.offset) + coeffs @ self.middle).astype(F)
        for matrix in (a, on):  # float32 subnormals would make products a hundred times slower
            matrix[np.abs(matrix) < TINY] = 0.0
        return a, on, c

    # ---- lines ---------------------------------------------------------------------------------

    def lines(self, low: Array, up: Array) -> Lines:
        """Lines of all units for bounds `low, up (r, U)` of their arguments, computed on the backend."""
        low, up, p = self.backend.array(low), self.backend.array(up), self.placed
        where = xp(low).where
        across = (low < 0) & (up > 0)
        width = where(across, up - low, 1.0)
        stable = where(low >= 0, p.left + p.gap, p.left)
        upper = where(across, p.left + p.gap * up / width, stable)
        upper_offset = where(across, -p.gap * low * up / width, 0.0)
        lines = Lines(stable, zeros(low.shape, low), upper, upper_offset, across, low, up)
        for b in self.blocks:
            if not isinstance(b.op, TwoPiece) and b.where.stop > b.where.start:
                exact = self.bounder.network.backend
                r = b.op.relax([exact.array(low[:, b.where])], [exact.array(up[:, b.where])])
                lines.lower[:, b.where], lines.lower_offset[:, b.where] = r.lower_slopes[0], r.lower_offset
                lines.upper[:, b.where], lines.upper_offset[:, b.where] = r.upper_slopes[0], r.upper_offset
                lines.unstable[:, b.where] = False
        return lines

    def default_alpha(self, lines: Lines) -> Array:
        """The default slopes as `(r, U)` values in [0, 1], a NumPy array."""
        return NUMPY.place(lines.up > -lines.low).astype(F)

    # ---- one step ------------------------------------------------------------------------------

    def backward(self, rows: Rows, lines: Lines) -> Pass:
        """Lower bounds of the rows at their duals."""
        return self._backward(rows.on(self.backend), lines.on(self.backend)).plain()

    def _backward(self, rows: Rows, lines: Lines) -> Pass:
        p = self.placed
        on = rows.weights @ p.gl
        coeffs = rows.weights @ p.ga
        offset = rows.weights @ p.gc
        if rows.unit is not None:
            assert rows.sign is not None
            on += rows.sign[:, None] * p.mix[rows.unit]
            coeffs += rows.sign[:, None] * p.a[rows.unit]
            offset = offset + rows.sign * p.c[rows.unit]
        moved, where = empty(on.shape, on), xp(on).where
        shift = rows.signs * rows.beta
        for b in reversed(self.blocks):
            w = b.where
            if w.start == w.stop:
                continue
            g = on[:, w]
            lower = where(lines.unstable[:, w], p.left[w] + p.gap[w] * rows.alpha[:, w], lines.lower[:, w])
            out = g * where(g > 0, lower, lines.upper[:, w])
            offset = offset + (at_most(g, 0) * lines.upper_offset[:, w]).sum(axis=1)
            if not isinstance(b.op, TwoPiece):
                offset = offset + (at_least(g, 0) * lines.lower_offset[:, w]).sum(axis=1)
            out -= shift[:, w]
            moved[:, w] = out
            if w.start:
                on[:, : w.start] += out @ p.mix[w, : w.start]
        coeffs += moved @ p.a
        offset = offset + moved @ p.c
        return Pass(offset - abs(coeffs).sum(axis=1), coeffs, on)

    def _gradient(self, rows: Rows, lines: Lines, done: Pass) -> tuple[Array, Array, Array]:
        """Derivatives of the bounds in alpha, beta and the weights."""
        p, where = self.placed, xp(done.coeffs).where
        t = -xp(done.coeffs).sign(done.coeffs)
        z = t @ p.a.T + p.c
        h = empty(z.shape, z)
        alpha = zeros(z.shape, z)
        for b in self.blocks:
            w = b.where
            if w.start == w.stop:
                continue
            if w.start:
                z[:, w] += h[:, : w.start] @ p.mix[w, : w.start].T
            g, own = done.on[:, w], z[:, w]
            positive = g > 0
            lower = where(lines.unstable[:, w], p.left[w] + p.gap[w] * rows.alpha[:, w], lines.lower[:, w])
            h[:, w] = where(
                positive,
                lower * own + lines.lower_offset[:, w],
                lines.upper[:, w] * own + lines.upper_offset[:, w],
            )
            alpha[:, w] = where(lines.unstable[:, w] & positive, g * p.gap[w] * own, 0.0)
        constraints = t @ p.ga.T + h @ p.gl.T + p.gc
        return alpha, -rows.signs * z, constraints

    # ---- ascent --------------------------------------------------------------------------------

    def ascend(
        self, rows: Rows, lines: Lines, steps: int, simplex: bool, reach: Array | None = None
    ) -> tuple[Rows, Pass]:
        """`steps` ascent steps; returns the best duals per row (slopes in multiples of 1/255) and their bounds.

        `simplex`: weights stay on the simplex they start on; otherwise each weight is free, moved in steps of
        `reach (R, m)`. Rows whose regions have no literal keep beta at zero.
        """
        reach = None if reach is None else self.backend.place(reach)
        best, top = self._ascend(rows.on(self.backend), lines.on(self.backend), steps, simplex, reach)
        return best.on(NUMPY), top.plain()

    def _ascend(self, rows: Rows, lines: Lines, steps: int, simplex: bool, reach: Array | None) -> tuple[Rows, Pass]:
        best = self._rounded(rows)
        top = self._backward(best, lines)
        current, done = best, top
        if simplex and rows.weights.shape[1] > 1:
            spread = 0.7 * rows.weights + 0.3 / rows.weights.shape[1]
            current = replace(best, weights=spread)
            done = self._backward(current, lines)
        moments = {f: zeros(getattr(rows, f).shape, rows.alpha) for f in ("alpha", "beta", "weights")}
        squares = {f: zeros(m.shape, m) for f, m in moments.items()}
        literal = bool(rows.signs.any())
        size, m = abs(done.on), xp(done.on)
        beta_rate = RATE_BETA * (size * self.placed.gap + 1e-3 * largest_size(size))
        rate = F(1)  # kept in float32, so that NumPy's steps do not depend on where numbers meet arrays
        for step in range(1, steps + 1):
            self.bounder.poll()
            alpha, beta, constraints = self._gradient(current, lines, done)

            def adam(name: str, g: Array, step: int = step) -> Array:
                m, v = moments[name], squares[name]
                m *= 0.9
                m += 0.1 * g
                v *= 0.99
                v += 0.01 * g * g
                return (m / (1 - 0.9**step)) / (xp(v).sqrt(v / (1 - 0.99**step)) + 1e-30)

            move = float(F(RATE_ALPHA) * rate) * adam("alpha", alpha)
            new_alpha = at_most(at_least(current.alpha + move, 0), 1)
            new_beta, weights = current.beta, current.weights
            if literal:
                move = float(rate) * beta_rate * adam("beta", beta)
                new_beta = at_least(current.beta + move, 0) * (rows.signs != 0)
            if simplex:
                if weights.shape[1] > 1:
                    g = constraints / (largest_size(constraints) + 1e-30)
                    weights = weights * m.exp(float(F(0.7) * rate) * g)
                    weights = weights / at_least(weights.sum(axis=1)[:, None], 1e-30)
            elif reach is not None:
                move = float(F(RATE_WEIGHT) * rate) * reach * adam("weights", constraints)
                weights = at_least(weights + move, 0)
            current = self._rounded(replace(rows, weights=weights, alpha=new_alpha, beta=new_beta))
            rate *= F(DECAY)
            done = self._backward(current, lines)
            better = done.value > top.value
            if better.all():
                best, top = current, done
            elif better.any():
                pick = better[:, None]
                best = replace(
                    best,
                    weights=m.where(pick, current.weights, best.weights),
                    alpha=m.where(pick, current.alpha, best.alpha),
                    beta=m.where(pick, current.beta, best.beta),
                )
                top = Pass(
                    m.where(better, done.value, top.value),
                    m.where(pick, done.coeffs, top.coeffs),
                    m.where(pick, done.on, top.on),
                )
        return best, top

    @staticmethod
    def _rounded(rows: Rows) -> Rows:
        return replace(rows, alpha=xp(rows.alpha).round(rows.alpha * 255.0) / 255.0)
