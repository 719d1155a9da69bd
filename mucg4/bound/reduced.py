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

Cuts (`mucg4.bound.planes`) are further rows of g with weights of their own, after those of the constraints.
"""

from __future__ import annotations

from dataclasses import field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mucg4.bound.objective import Objective
from mucg4.bound.planes import CutPlanes
from mucg4.bound.propagate import Bounder, Regions
from mucg4.ops.arrays import NUMPY, Backend, arange, as_type, at_least, at_most, empty, largest_size, nonzero, xp, zeros
from mucg4.ops.base import Array, Nonlinear, Relaxation
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

F = np.float32
BUILD_ELEMENTS = 1 << 22  # numbers of one block while the matrices are built; not measured
TINY = 1e-25  # smaller coefficients would make products subnormal, which is slow; not measured
DROP_EVERY, LEAST_DROP, CLEAR = 4, 0.2, 1e-4  # refuted rows leave the ascent: see `_ascend`; not measured
# first steps of the ascent, and how they shrink; not measured
RATE_ALPHA, RATE_BETA, RATE_WEIGHT, RATE_CUT, DECAY = 0.2, 0.25, 0.3, 0.25, 0.93


@dataclass(frozen=True)
class Block:
    """Units of one nonlinear node `user` that reads pre-activation `node`: `where` among all units."""

    where: slice
    user: int
    node: int
    op: Nonlinear


@dataclass
class ReducedLines:
    """Lines of all units on r regions, each `(r, U)`; `unstable` marks units whose lower slope is alpha's."""

    lower: Array
    lower_offset: Array
    upper: Array
    upper_offset: Array
    unstable: Array
    low: Array
    up: Array

    def take(self, index: Array) -> ReducedLines:
        """The chosen regions."""
        return ReducedLines(*(getattr(self, f)[index] for f in self.__dataclass_fields__))

    def on(self, backend: Backend) -> ReducedLines:
        """The same lines on another backend."""
        return ReducedLines(*(backend.place(getattr(self, f)) for f in self.__dataclass_fields__))


@dataclass
class ReducedDuals:
    """R rows and their duals: `weights (R, m + C)`, `alpha, beta (R, U)`, and optionally targets `unit, sign (R,)`.

    `signs (r, U)`: +1 / -1 where the region has the literal z >= 0 / z <= 0, r in (1, R).
    """

    weights: Array
    alpha: Array
    beta: Array
    signs: Array
    unit: Array | None = None
    sign: Array | None = None

    def take(self, index: Array) -> ReducedDuals:
        """The chosen rows."""

        def one(a: Array | None) -> Array | None:
            return a if a is None or (len(a) == 1 and len(self.alpha) != 1) else a[index]

        return ReducedDuals(*(one(getattr(self, f)) for f in ("weights", "alpha", "beta", "signs", "unit", "sign")))

    def joined(self, other: ReducedDuals) -> ReducedDuals:
        """The rows of both, which have no targets, this one's first."""
        fields = ("weights", "alpha", "beta", "signs")
        return ReducedDuals(*(np.concatenate([getattr(self, f), getattr(other, f)]) for f in fields))

    def on(self, backend: Backend) -> ReducedDuals:
        """The same rows on another backend."""
        found = [getattr(self, f) for f in ("weights", "alpha", "beta", "signs", "unit", "sign")]
        return ReducedDuals(*(a if a is None else backend.place(a) for a in found))


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
class _Climb:
    """Rows on their way up: where they are, the best so far, and the moments of Adam (Kingma and Ba, 2015)."""

    current: ReducedDuals
    done: Pass
    best: ReducedDuals
    top: Pass
    lines: ReducedLines
    rates: dict[str, Array]
    moments: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def adam(self, name: str, g: Array, step: int) -> Array:
        """The direction of step number `step` for the derivative `g`."""
        if name not in self.moments:
            self.moments[name] = zeros(g.shape, g), zeros(g.shape, g)
        m, v = self.moments[name]
        m *= 0.9
        m += 0.1 * g
        v *= 0.99
        v += 0.01 * g * g
        return (m / (1 - 0.9**step)) / (xp(v).sqrt(v / (1 - 0.99**step)) + 1e-30)

    def keep_best(self) -> None:
        """Let the rows that have improved be the best ones."""
        better = self.done.value > self.top.value
        if better.all():
            self.best, self.top = self.current, self.done
        elif better.any():
            where, pick = xp(better).where, better[:, None]
            names = ("weights", "alpha", "beta")
            rows = {f: where(pick, getattr(self.current, f), getattr(self.best, f)) for f in names}
            self.best = replace(self.best, **rows)
            self.top = Pass(
                where(better, self.done.value, self.top.value),
                where(pick, self.done.coeffs, self.top.coeffs),
                where(pick, self.done.on, self.top.on),
            )

    def take(self, index: Array) -> _Climb:
        """The chosen rows."""
        single = len(self.lines.low) == 1 and len(self.done.value) != 1
        return _Climb(
            self.current.take(index),
            self.done.take(index),
            self.best.take(index),
            self.top.take(index),
            self.lines if single else self.lines.take(index),
            {f: a[index] for f, a in self.rates.items()},
            {f: (m[index], v[index]) for f, (m, v) in self.moments.items()},
        )


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
    ga: Array  # (m + C, d)
    gl: Array  # (m + C, U)
    gc: Array  # (m + C,)
    middle: Array  # (d,) of the input box
    radius: Array  # (d,)
    stable: dict[int, Relaxation]  # slopes of stable neurons, nothing at units
    cut: Array | None = None  # (C,) unit that each cut bounds, -1 where it is stable

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
                part = index[begin : begin + step]
                own = slice(b.where.start + begin, b.where.start + begin + len(part))
                unit_rows = np.zeros((len(part), network.nodes[b.node].size))
                unit_rows[np.arange(len(part)), part] = 1.0
                a[own], mix[own], c[own] = out._carried({b.node: unit_rows})
        return out

    @property
    def cuts(self) -> int:
        """Number of cuts."""
        return 0 if self.cut is None else len(self.cut)

    def with_cuts(self, planes: CutPlanes) -> Reduced:
        """The same network with these cuts after the constraints; the matrices are shared."""
        m = len(self.gc) - self.cuts
        constraints = self.ga[:m], self.gl[:m], self.gc[:m]
        if not len(planes):
            ga, gl, gc = constraints
            return replace(self, ga=ga, gl=gl, gc=gc, cut=None)
        pending = {k: a for k, a in planes.coeffs.items() if k > 0}
        ga, gl, gc = self._carried(pending, NUMPY.place(planes.coeffs[0]) if 0 in planes.coeffs else 0.0)
        gc = gc + NUMPY.place(planes.offset).astype(F)
        unit = np.full(self.bounder.width, -1)
        unit[self.positions] = np.arange(self.units)
        ga, gl, gc = (np.concatenate(parts) for parts in zip(constraints, (ga, gl, gc), strict=True))
        return replace(self, ga=ga, gl=gl, gc=gc, cut=unit[planes.neuron])

    def constrained(self, objective: Objective, conjunction: int) -> Reduced:
        """The same network with the constraints of one conjunction and no cuts; the matrices are shared."""
        rows = objective.rows_of(conjunction)
        y, x, constants = (NUMPY.place(v[rows]) for v in (objective.y, objective.x, objective.constants))
        ga, gl, gc = self._carried({len(self.bounder.network.nodes) - 1: y.copy()}, x)
        return replace(self, ga=ga, gl=gl, gc=gc + constants.astype(F), cut=None)

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

    def lines(self, low: Array, up: Array) -> ReducedLines:
        """Lines of all units for bounds `low, up (r, U)` of their arguments, computed on the backend."""
        low, up, p = self.backend.array(low), self.backend.array(up), self.placed
        where = xp(low).where
        across = (low < 0) & (up > 0)
        width = where(across, up - low, 1.0)
        stable = where(low >= 0, p.left + p.gap, p.left)
        upper = where(across, p.left + p.gap * up / width, stable)
        upper_offset = where(across, -p.gap * low * up / width, 0.0)
        lines = ReducedLines(stable, zeros(low.shape, low), upper, upper_offset, across, low, up)
        for b in self.blocks:
            if not isinstance(b.op, TwoPiece) and b.where.stop > b.where.start:
                exact = self.bounder.network.backend
                r = b.op.relax([exact.array(low[:, b.where])], [exact.array(up[:, b.where])])
                lines.lower[:, b.where], lines.lower_offset[:, b.where] = r.lower_slopes[0], r.lower_offset
                lines.upper[:, b.where], lines.upper_offset[:, b.where] = r.upper_slopes[0], r.upper_offset
                lines.unstable[:, b.where] = False
        return lines

    def default_alpha(self, lines: ReducedLines) -> Array:
        """The default slopes as `(r, U)` values in [0, 1], a NumPy array."""
        return NUMPY.place(lines.up > -lines.low).astype(F)

    # ---- one step ------------------------------------------------------------------------------

    def backward(self, rows: ReducedDuals, lines: ReducedLines) -> Pass:
        """Lower bounds of the rows at their duals; cuts of neurons that are stable count nothing."""
        there = lines.on(self.backend)
        return self._backward(self._live(rows.on(self.backend), there), there).plain()

    def _live(self, rows: ReducedDuals, lines: ReducedLines) -> ReducedDuals:
        """The rows without cuts of stable neurons: those are exact by themselves, and a cut's offset costs."""
        if self.cut is None:
            return rows
        soft = rows.weights.shape[1] - self.cuts
        join = xp(rows.weights).concatenate
        held = rows.weights[:, soft:] * self._at_cuts(lines.unstable)
        return replace(rows, weights=join([rows.weights[:, :soft], held], axis=1))

    def _at_cuts(self, values: Array) -> Array:
        """Values of units `(r, U)` as values of the units that cuts bound `(r, C)`, zero where those are none."""
        assert self.cut is not None
        known = np.flatnonzero(self.cut >= 0)
        out = zeros((len(values), self.cuts), self.placed.c)
        out[:, self.backend.place(known)] = as_type(values, out.dtype)[:, self.backend.place(self.cut[known])]
        return out

    def _backward(self, rows: ReducedDuals, lines: ReducedLines) -> Pass:
        p = self.placed
        self.bounder.poll(len(rows.weights) * sum(self.a.shape))
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

    def _gradient(
        self, rows: ReducedDuals, lines: ReducedLines, done: Pass
    ) -> tuple[Array, Array, Array, tuple[Array, Array]]:
        """Derivatives of the bounds in alpha, beta and the weights, and the points `t, h` where they were taken."""
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
        return alpha, -rows.signs * z, constraints, (t, h)

    # ---- ascent --------------------------------------------------------------------------------

    def ascend(
        self,
        rows: ReducedDuals,
        lines: ReducedLines,
        steps: int,
        simplex: bool,
        reach: Array | None = None,
        points: list[tuple[Array, Array]] | None = None,
    ) -> tuple[ReducedDuals, Pass]:
        """`steps` ascent steps; returns the best duals per row (slopes in multiples of 1/255) and their bounds.

        `simplex`: weights of constraints stay on the simplex they start on; otherwise each is free, moved in steps
        of `reach (R, m)`. Weights of cuts are always free. Rows whose regions have no literal keep beta at zero.
        Rows on the simplex that are positive beyond rounding may stop early.
        `points` collects the minimising points `t (R, d), h (R, U)` of the relaxation at each step: their mean
        comes close to the solution of the linear program whose dual this is.
        """
        reach = None if reach is None else self.backend.place(reach)
        best, top = self._ascend(rows.on(self.backend), lines.on(self.backend), steps, simplex, reach, points)
        return best.on(NUMPY), top.plain()

    def _ascend(
        self,
        rows: ReducedDuals,
        lines: ReducedLines,
        steps: int,
        simplex: bool,
        reach: Array | None,
        points: list[tuple[Array, Array]] | None = None,
    ) -> tuple[ReducedDuals, Pass]:
        best = self._rounded(self._live(rows, lines))
        top = self._backward(best, lines)
        current, done = best, top
        soft, join = rows.weights.shape[1] - self.cuts, xp(rows.alpha).concatenate
        if simplex and soft > 1:
            spread = 0.7 * best.weights[:, :soft] + 0.3 / soft
            current = replace(best, weights=join([spread, best.weights[:, soft:]], axis=1))
            done = self._backward(current, lines)
        literal = bool(rows.signs.any())
        size = abs(done.on)
        rates = {"beta": RATE_BETA * (size * self.placed.gap + 1e-3 * largest_size(size))}
        if self.cut is not None:
            live = self._at_cuts(lines.unstable)
            rates["cut"] = RATE_CUT * (self._at_cuts(size) + 1e-3 * largest_size(size)) * live
        if reach is not None:
            rates["weights"] = RATE_WEIGHT * reach
        climb = _Climb(current, done, best, top, lines, rates)
        finished: list[tuple[Array, ReducedDuals, Pass]] = []
        at = arange(len(top.value), top.value)
        rate = F(1)  # kept in float32, so that NumPy's steps do not depend on where numbers meet arrays
        for step in range(1, steps + 1):
            self._step(climb, step, float(rate), soft, simplex, literal, points)
            rate *= F(DECAY)
            if simplex and step % DROP_EVERY == 0 and step < steps:
                clear = climb.top.value > CLEAR * abs(climb.top.coeffs).sum(axis=1)
                gone, left = nonzero(clear)[0], nonzero(~clear)[0]
                if len(gone) >= LEAST_DROP * len(clear) and len(left):
                    finished.append((at[gone], climb.best.take(gone), climb.top.take(gone)))
                    climb, at = climb.take(left), at[left]
        if not finished:
            return climb.best, climb.top
        finished.append((at, climb.best, climb.top))
        order = join([a for a, _, _ in finished], axis=0).argsort()
        parts = [[getattr(r, f) for _, r, _ in finished] for f in ("weights", "alpha", "beta")]
        weights, alpha, beta = (join(p, axis=0)[order] for p in parts)
        value, coeffs, on = (join([getattr(p, f) for *_, p in finished], axis=0)[order] for f in Pass.__annotations__)
        return replace(rows, weights=weights, alpha=alpha, beta=beta), Pass(value, coeffs, on)

    def _step(
        self,
        climb: _Climb,
        step: int,
        rate: float,
        soft: int,
        simplex: bool,
        literal: bool,
        points: list[tuple[Array, Array]] | None,
    ) -> None:
        """One step of all rows that are still climbing, in place."""
        current, m = climb.current, xp(climb.done.value)
        alpha, beta, constraints, point = self._gradient(current, climb.lines, climb.done)
        if points is not None:
            points.append((NUMPY.place(point[0]), NUMPY.place(point[1])))
        new_alpha = at_most(at_least(current.alpha + RATE_ALPHA * rate * climb.adam("alpha", alpha, step), 0), 1)
        new_beta, own, cuts = current.beta, current.weights[:, :soft], current.weights[:, soft:]
        if literal:
            move = rate * climb.rates["beta"] * climb.adam("beta", beta, step)
            new_beta = at_least(new_beta + move, 0) * (current.signs != 0)
        if simplex and soft > 1:
            g = constraints[:, :soft] / (largest_size(constraints[:, :soft]) + 1e-30)
            own = own * m.exp(0.7 * rate * g)
            own = own / at_least(own.sum(axis=1)[:, None], 1e-30)
        elif "weights" in climb.rates:
            own = at_least(own + rate * climb.rates["weights"] * climb.adam("weights", constraints[:, :soft], step), 0)
        if "cut" in climb.rates:
            cuts = at_least(cuts + rate * climb.rates["cut"] * climb.adam("cut", constraints[:, soft:], step), 0)
            own = m.concatenate([own, cuts], axis=1)
        climb.current = self._rounded(replace(current, weights=own, alpha=new_alpha, beta=new_beta))
        climb.done = self._backward(climb.current, climb.lines)
        climb.keep_best()

    @staticmethod
    def _rounded(rows: ReducedDuals) -> ReducedDuals:
        return replace(rows, alpha=xp(rows.alpha).round(rows.alpha * 255.0) / 255.0)
