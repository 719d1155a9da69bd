"""Sound linear bounds for batches of regions, in rows.

A *row* is one linear functional of one region that is bounded from below. Rows of all regions are
stacked in one array `(rows, n)` with an index `region (rows,)`, so a backward step is one large GEMM
plus element-wise work whatever the mix of regions (design section 5; the bounds themselves are those
of CROWN, arXiv 1811.00866, and DeepPoly, doi 10.1145/3290354).

A batch of regions is a `Regions` value. Pre-activation bounds of all nonlinear nodes lie side by side
in one flat axis; `Bounder.slices` says where. Children inherit: bounds only ever shrink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from mucg4.bound.cone import Cone, Images
from mucg4.bound.inner_loops import relax_rows, row_norms
from mucg4.bound.products import MovingRanges, sharpened
from mucg4.bound.rounding import LEAST, Scales, gamma, image, scales
from mucg4.limits.threads import side_by_side
from mucg4.model.network import Network, Node
from mucg4.ops.affine import Dense, Index, Sum
from mucg4.ops.arrays import (
    NUMPY,
    Array,
    Backend,
    arange,
    at_least,
    at_most,
    choose,
    chunk,
    distinct_places,
    full,
    nonzero,
    precision,
    row_dots,
    xp,
    zeros,
)
from mucg4.ops.base import Affine, Nonlinear, Relaxation
from mucg4.ops.bilinear import JOINT_INPUTS, Product
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

LARGE = 512  # affine nodes of so many components are bounded by intervals before some get backward rows; not measured
# rounding errors of interval bounds alone from which those of the root are derived anew on the way; not measured
ROUGH = 1e-9
THREADED = 1e8  # rows times neurons from which threads share out rows; not measured
CHUNK_ELEMENTS = 200_000  # rows times width handled together: about two passes fit into a core's cache; not measured


@dataclass
class Regions:
    """A batch of B regions of one case: input box `lo, hi (B, d)`, pre-activation bounds `low, up (B, P)`."""

    lo: Array
    hi: Array
    low: Array
    up: Array

    def __len__(self) -> int:
        return len(self.lo)

    def take(self, index: Array) -> Regions:
        """The chosen regions (a copy)."""
        return Regions(self.lo[index], self.hi[index], self.low[index], self.up[index])

    def one(self, index: int) -> Regions:
        """Region `index` alone, as views: what tightens it tightens this batch."""
        own = slice(index, index + 1)
        return Regions(self.lo[own], self.hi[own], self.low[own], self.up[own])

    def on(self, backend: Backend) -> Regions:
        """The same regions on another backend; on a CPU the arrays share their memory where they can."""
        return Regions(*(backend.place(a) for a in (self.lo, self.hi, self.low, self.up)))

    @staticmethod
    def concat(parts: list[Regions]) -> Regions:
        """All regions of the parts in order."""
        join = xp(parts[0].lo).concatenate
        return Regions(*(join([getattr(p, f) for p in parts]) for f in ("lo", "hi", "low", "up")))

    def empty(self) -> Array:
        """(B,) True where sound bounds contradict each other: the region has no point."""
        return (self.lo > self.hi).any(axis=1) | (self.low > self.up).any(axis=1)


@dataclass
class Rows:
    """Result of a backward pass: `coeffs (rows, d) @ x + offset - error` is a lower bound on the region."""

    coeffs: Array
    offset: Array
    error: Array

    def take(self, index: Array) -> Rows:
        """The chosen rows (a copy)."""
        return Rows(self.coeffs[index], self.offset[index], self.error[index])

    def minimum(self, lo: Array, hi: Array, dot: float) -> Array:
        """Lower bounds `(rows,)` over the boxes `lo, hi (rows, d)`, rounding included."""
        positive, negative = at_least(self.coeffs, 0), at_most(self.coeffs, 0)
        value = row_dots(positive, lo) + row_dots(negative, hi)
        size = row_dots(positive - negative, xp(lo).maximum(abs(lo), abs(hi)))
        return value + self.offset - self.error - dot * (size + abs(self.offset) + self.error)


class NeuronRows(NamedTuple):
    """Linear bounds of neurons over the input: `(rows, d)` coefficients of the lower bound of +z and of -z.

    `base`, `top (rows,)` are their constants, rounding subtracted.
    """

    region: Array
    neuron: Array
    below: Array
    above: Array
    base: Array
    top: Array


class Refreshed(NamedTuple):
    """What `Bounder.refresh` derived: a relaxation per nonlinear node, and rows per pre-activation if asked for."""

    lines: dict[int, Relaxation]
    rows: dict[int, NeuronRows]

    def take(self, which: Array) -> Refreshed:
        """The relaxations of some regions; without rows."""
        lines = {}
        for k, r in self.lines.items():
            lower, upper = (tuple(a[which] for a in slopes) for slopes in (r.lower_slopes, r.upper_slopes))
            lines[k] = Relaxation(lower, r.lower_offset[which], upper, r.upper_offset[which])
        return Refreshed(lines, {})


class Bounder:
    """Bounds of one network over sub-regions of one root box. Owns no state but constants of the root.

    Everything is computed on the network's backend and in its precision; bounds are sound for the network
    as stored also when its weights were rounded to that precision (see `mucg4.bound.rounding`).
    """

    def __init__(
        self,
        network: Network,
        lo: Array,
        hi: Array,
        poll: Callable[[int], None] = lambda work: None,
        caution: float = 1.0,
    ) -> None:
        """`lo, hi (d,)`: the root box, rounded outward here. Every region given later must lie inside it.

        `poll` is called with each backward pass's work, rows times neurons, and may raise to end the run. Rounding is
        charged `caution` times (at least 1).
        """
        self.poll, self.caution = poll, caution
        self.threads = 1  # that share out the rows of many neurons
        self.folded = False  # the network stands for a larger one, which the checker bounds
        self.network = network
        self.pre = network.pre_activations
        self.slices: dict[int, slice] = {}
        at = 0
        for k in self.pre:
            self.slices[k] = slice(at, at + network.nodes[k].size)
            at += network.nodes[k].size
        self.width = at
        self.lo, self.hi = lo, hi = network.backend.below(lo), network.backend.above(hi)
        self.precision = precision(lo)
        self._floors: dict[int, Array] = {}
        low, up = self._intervals()
        self.scales: Scales = scales(network, low, up).times(caution)
        self._root = Regions(
            lo[None], hi[None], *(xp(lo).concatenate([v[k] for k in self.pre] or [lo[:0]])[None] for v in (low, up))
        )
        self._is_nonlinear = set(network.nonlinear)
        few = network.input_size <= JOINT_INPUTS
        self._products = {k for k in network.nonlinear if few and isinstance(network.nodes[k].op, Product)}
        self._factors = {i for k in self._products for i in network.nodes[k].inputs}
        self._direct = {k for k in self.pre if self._is_direct(k)}
        self.images = Images(network)

    def _is_direct(self, k: int) -> bool:
        """True for a dense map of the input: its interval is already its exact range."""
        node = self.network.nodes[k]
        return k == 0 or (isinstance(node.op, Dense) and node.inputs == (0,))

    def _intervals(self, known: Regions | None = None) -> tuple[list[Array], list[Array]]:
        """Interval bounds of every node on the root box, widened for rounding: `(size_k,)` each.

        `known` are better bounds of the root's pre-activations. What overflowed is unbounded, never nan.
        """
        low, up = [self.lo[None]], [self.hi[None]]
        for k, node in enumerate(self.network.nodes[1:], 1):
            lo, hi = [low[i] for i in node.inputs], [up[i] for i in node.inputs]
            if isinstance(node.op, Affine):
                if k not in self._floors or not xp(self._floors[k]).isfinite(self._floors[k]).all():
                    self._floors[k] = self._floor(node.op, lo, hi)
                a, b = self._affine_interval(k, lo, hi)
                if known is not None and k in self.slices:
                    inner, outer = self.pre_bounds(known, k)
                    a, b = xp(a).maximum(a, inner), xp(b).minimum(b, outer)
            else:
                assert isinstance(node.op, Nonlinear)
                a, b = image(node.op, lo, hi)
            low.append(xp(a).nan_to_num(a, nan=-np.inf, posinf=np.inf, neginf=-np.inf))
            up.append(xp(b).nan_to_num(b, nan=np.inf, posinf=np.inf, neginf=-np.inf))
        return [a[0] for a in low], [b[0] for b in up]

    def _floor(self, op: Affine, lo: list[Array], hi: list[Array]) -> Array:
        """`(m,)` above the underflow errors of the map on a root box `(1, n_i)`; 0 where nothing is added up at all."""
        size = [xp(x).maximum(abs(x), abs(y)) for x, y in zip(lo, hi, strict=True)]
        terms = op.magnitude([choose(s > 0, 1.0, 0.0, s) for s in size])[0]
        b = op.bias_magnitude()
        live = terms > 0 if b is None else (terms > 0) | (b > 0)
        largest = max((float(s.max()) for s in size if s.shape[1]), default=0.0)
        # the checker guards against underflow by more (`LEAST` of the sizes, see `mucg4.bound.rounding`)
        guard = LEAST * gamma(2 * op.fan_in) * sum(float(xp(s).linalg.norm(s)) for s in size)
        floor = max(self.precision.tiny, LEAST**3) * (1.0 + largest) + guard
        return choose(live, floor, 0.0, terms)

    def _affine_interval(self, k: int, lo: list[Array], hi: list[Array]) -> tuple[Array, Array]:
        """Centre-radius image of boxes `(B, n_i)` under affine node k, widened for rounding."""
        op = self.network.nodes[k].op
        assert isinstance(op, Affine)
        mid = [(x + y) / 2 for x, y in zip(lo, hi, strict=True)]
        rad = [xp(m).maximum(y - m, m - x) for x, y, m in zip(lo, hi, mid, strict=True)]
        centre, radius = op.apply(mid), op.magnitude(rad)
        size = op.magnitude([abs(m) + r for m, r in zip(mid, rad, strict=True)])
        b = op.bias_magnitude()
        slack = gamma(2 * op.fan_in, self.precision.unit) * (size if b is None else size + b) + self._floors[k]
        if isinstance(op, Dense) and op.slack is not None:
            slack = slack + op.slack
        return centre - radius - slack, centre + radius + slack

    def root(self) -> Regions:
        """The root box as a batch of one, with interval bounds only; `refresh` it for backward bounds."""
        return self._root.take(arange(1, self.lo))

    def tighten_scales(self, root: Regions) -> None:
        """Recompute the rounding scales from refreshed root bounds (smaller, still valid for all regions)."""
        low, up = self._intervals(root)
        self.scales = scales(self.network, low, up).times(self.caution)

    def pre_bounds(self, regions: Regions, k: int) -> tuple[Array, Array]:
        """Views `(B, size_k)` of the bounds of pre-activation node k."""
        return regions.low[:, self.slices[k]], regions.up[:, self.slices[k]]

    def lines(self, regions: Regions, k: int) -> Relaxation:
        """Default relaxation of nonlinear node k on each region."""
        node = self.network.nodes[k]
        assert isinstance(node.op, Nonlinear)
        bounds = [self.pre_bounds(regions, i) for i in node.inputs]
        return node.op.relax([b[0] for b in bounds], [b[1] for b in bounds])

    def unstable(self, regions: Regions, k: int, literals: bool = False) -> Array:
        """(B, size_k) True where some reader of pre-activation k is not affine on the region's bounds.

        With `literals` also where a bound is zero, as phase literals leave it: the other one may contradict it.
        """
        low, up = self.pre_bounds(regions, k)
        out = low < low  # false everywhere
        for user in self.network.users[k]:
            op = self.network.nodes[user].op
            if isinstance(op, TwoPiece):
                out |= (low <= 0) & (up >= 0) & (low < up) if literals else (low < 0) & (up > 0)
            elif isinstance(op, Nonlinear):
                width = up - low
                out |= (width > self.precision.narrow * (1 + abs(low))) | (width == np.inf)
        return out

    def refresh(
        self, regions: Regions, keep_rows: bool = False, backward: bool = True, settle: bool = False
    ) -> Refreshed:
        """Tighten all pre-activation bounds in place, inputs first; returns the relaxations made.

        Direct layers get their exact range; other layers get two backward rows per unstable neuron unless
        `backward` is False. Sound: every new bound is intersected with the inherited one.
        With `settle` rough rounding scales are derived anew on the way: only for the root box alone, with bounds that
        hold everywhere in it and not just on points that are unsafe.
        """
        out = Refreshed({}, {})
        hulls: dict[int, tuple[Array, Array]] = {}
        for k in self.pre:
            low, up = self.pre_bounds(regions, k)
            keep = keep_rows or (backward and k in self._factors)
            if k == 0:  # the input itself feeds a nonlinear node: its bounds are the box
                xp(low).maximum(low, regions.lo, out=low)
                xp(up).minimum(up, regions.hi, out=up)
            elif k in self._direct:
                a, b = self._affine_interval(k, [regions.lo], [regions.hi])
                xp(low).fmax(low, a, out=low)  # nan tightens nothing
                xp(up).fmin(up, b, out=up)
                op = self.network.nodes[k].op
                if keep and isinstance(op, Dense):
                    region, neuron = nonzero(self.unstable(regions, k))
                    weight, offset = op.weight[neuron], op.offset[neuron]
                    error = self.scales.error[k] + self.scales.error[0] * row_norms(weight) + self.scales.tiny
                    out.rows[k] = NeuronRows(region, neuron, weight, -weight, offset - error, -offset - error)
            elif backward:
                if settle and not max(self.scales.error[: k + 1]) < ROUGH:  # nan is rough too
                    self.tighten_scales(regions)
                self._image(regions, k, hulls)
                region, neuron = nonzero(self.unstable(regions, k, literals=True))
                if len(region):
                    rows = self._tighten_neurons(regions, k, region, neuron, out.lines, keep)
                    if keep:
                        out.rows[k] = rows
            for user in self.network.users[k]:
                if user in self._is_nonlinear and max(self.network.nodes[user].inputs) == k:
                    line = self.lines(regions, user)
                    if backward and user in self._products:
                        ends = [self._ends(regions, i, out.rows) for i in self.network.nodes[user].inputs]
                        line = sharpened(line, regions.lo, regions.hi, *ends)
                    out.lines[user] = line
        return out

    def _ends(self, regions: Regions, k: int, rows: dict[int, NeuronRows]) -> MovingRanges:
        """Linear bounds over the input of all components of node k: its rows, and constants where it has none."""
        low, up = self.pre_bounds(regions, k)
        shape = (*low.shape, regions.lo.shape[1])
        ends = MovingRanges(zeros(shape, low), low + 0.0, zeros(shape, low), -up, up - low)
        if k == 0:
            every = arange(shape[2], low)
            ends.below[:, every, every], ends.above[:, every, every] = 1.0, -1.0
            ends.base[:], ends.top[:] = 0.0, 0.0
        elif k in rows:
            own = rows[k]
            at = own.region, own.neuron
            ends.below[at], ends.base[at], ends.above[at], ends.top[at] = own.below, own.base, own.above, own.top
        return ends

    def _image(self, regions: Regions, k: int, hulls: dict[int, tuple[Array, Array]]) -> None:
        """Intersect the bounds of node k with its image under interval arithmetic, where that is worth its cost.

        It is for smooth functions of other pre-activations, and for neurons of large affine nodes that it finds
        stable: they need no backward rows. Two pieces in a row and neurons that stay unstable are left alone: their
        bounds decide which default slope the checker takes. Nor are affine nodes of a folded network intersected: where
        stable neurons are composed away interval arithmetic is tighter than on the network that the checker bounds, and
        a refutation that rests on it would not be one there. `hulls` are the bounds of nodes derived so far in this
        refresh, complemented here.
        """
        node = self.network.nodes[k]
        affine = isinstance(node.op, Affine)
        if isinstance(node.op, TwoPiece) or (affine and (node.size < LARGE or self.folded)):
            return
        low, up = self.pre_bounds(regions, k)
        a, b = self._hull(regions, k, hulls, own=False)
        if affine:
            stable = (a >= 0) | (b <= 0)
            a, b = xp(a).where(stable, a, -np.inf), xp(b).where(stable, b, np.inf)
        xp(low).fmax(low, a, out=low)  # nan tightens nothing
        xp(up).fmin(up, b, out=up)

    def _hull(
        self, regions: Regions, k: int, hulls: dict[int, tuple[Array, Array]], own: bool = True
    ) -> tuple[Array, Array]:
        """Interval bounds `(B, size_k)` of node k; with `own` the known ones of a pre-activation."""
        if own and k in self.slices:
            return self.pre_bounds(regions, k)
        if k == 0:
            return regions.lo, regions.hi
        if k not in hulls:
            node = self.network.nodes[k]
            low, up = zip(*(self._hull(regions, i, hulls) for i in node.inputs), strict=True)
            if isinstance(node.op, Affine):
                hulls[k] = self._affine_interval(k, list(low), list(up))
            else:
                assert isinstance(node.op, Nonlinear)
                hulls[k] = image(node.op, list(low), list(up))
        return hulls[k]

    def _tighten_neurons(
        self, regions: Regions, k: int, region: Array, neuron: Array, lines: dict[int, Relaxation], keep: bool
    ) -> NeuronRows:
        """Intersect the bounds of neurons `neuron` of node k in regions `region` with two backward rows each."""
        low, up = self.pre_bounds(regions, k)
        m = xp(low)
        first, copies, negative = self._distinct(k, region, neuron)
        own = region[first], neuron[first]
        below, above = zeros(len(first), low), zeros(len(first), low)
        d = regions.lo.shape[1] if keep else 0
        shapes = ((len(first), d), (len(first), d), (len(first),), (len(first),))
        kept = NeuronRows(*own, *(zeros(shape, low) for shape in shapes))
        for part, seen, rows in self.neuron_rows(k, *own, lines):
            r = own[0][part]
            both = m.concatenate([r, r])
            lo, hi = (a[both] if seen is None else a[:, seen][both] for a in (regions.lo, regions.hi))
            least = rows.minimum(lo, hi, self.scales.input_dot)
            below[part], above[part] = least[: len(r)], -least[len(r) :]
            if keep:
                constant = rows.offset - rows.error
                where = part if seen is None else (part[:, None], seen[None])
                kept.below[where], kept.above[where] = rows.coeffs[: len(r)], rows.coeffs[len(r) :]
                kept.base[part], kept.top[part] = constant[: len(r)], constant[len(r) :]
        if len(first) < len(copies):
            plus, minus = [-below, kept.below, kept.base], [above, kept.above, kept.top]  # of +z and of -z
            plus, minus = [a[copies] for a in plus], [a[copies] for a in minus]
            if negative is not None:
                for a, b in zip(plus, minus, strict=True):
                    a[negative], b[negative] = b[negative], a[negative]
            below, above = -plus[0], minus[0]
            kept = NeuronRows(region, neuron, plus[1], minus[1], plus[2], minus[2])
        low[region, neuron] = m.fmax(low[region, neuron], below)  # nan tightens nothing
        up[region, neuron] = m.fmin(up[region, neuron], above)
        return kept

    def _distinct(self, k: int, region: Array, neuron: Array) -> tuple[Array, Array, Array | None]:
        """Places of neurons that are no copies of others, for each neuron the one among them that it copies, and where
        it is that one's negative, `(n,)`; None where none is.

        Products of matrices read every value many times, so their arguments are copies of few; a softmax takes
        differences of all pairs, in both directions.
        """
        place = self.network.backend.place
        op, inputs = self.network.nodes[k].op, [self.network.nodes[i] for i in self.network.nodes[k].inputs]
        every = arange(len(region), self.lo)
        if isinstance(op, Index) and not op.injective:
            key, negative = NUMPY.place(op.index[neuron]), None
        elif isinstance(op, Sum) and op.signs in ((1.0, -1.0), (-1.0, 1.0)) and _read_one_node(inputs):
            first, second = (NUMPY.place(n.op.index[neuron]) for n in inputs)  # type: ignore[union-attr]
            key = np.minimum(first, second) * inputs[0].op.size + np.maximum(first, second)  # type: ignore[union-attr]
            negative = first > second
        else:
            return every, every, None
        key = key + NUMPY.place(region) * (key.max(initial=0) + 1)
        _, chosen, copies = distinct_places(key)
        if len(chosen) == len(key):
            return every, every, None
        if negative is not None:
            negative = place(negative != negative[chosen][copies])
        return place(chosen), place(copies), negative

    def neuron_rows(
        self, k: int, region: Array, neuron: Array, lines: dict[int, Relaxation]
    ) -> Iterator[tuple[Array, Array | None, Rows]]:
        """Rows of neurons `neuron` of node k in regions `region`, in parts.

        Yields the places of a part, the inputs `(s,)` that its rows have coefficients on (None: all) and the rows:
        those of +z, then those of -z.
        """
        few = len(region) * sum(n.size for n in self.network.nodes[: k + 1]) < THREADED
        for (part, seen), rows in side_by_side(self._tasks(k, region, neuron, lines), 1 if few else self.threads):
            yield part, seen, rows

    def _tasks(
        self, k: int, region: Array, neuron: Array, lines: dict[int, Relaxation]
    ) -> Iterator[tuple[tuple[Array, Array | None], Callable[[], Rows]]]:
        """What `neuron_rows` yields, with the rows still to be computed."""
        place = self.network.backend.place
        cones = self.images.tiling(k, NUMPY.place(neuron), 2)
        if cones is not None:
            for own, cone in cones:
                seen, index, relaxations = place(cone.at[0]), place(own), cone.relaxations(lines, place)
                at = place(np.searchsorted(cone.at[-1], NUMPY.place(neuron)[own]))
                for part in self._parts(len(own), max(n.size for n in cone.nodes)):
                    r, j = region[index[part]], at[part]
                    self.poll(2 * len(j) * sum(n.size for n in cone.nodes))
                    yield (index[part], seen), partial(self._cone_rows, cone, j, r, relaxations)
            return
        m, plus, every = xp(self.lo), full(len(region), 1.0, self.lo), arange(len(region), self.lo)
        nodes = self.network.nodes[: k + 1]
        for part in self._parts(len(region), max(n.size for n in nodes)):
            r, j, one = region[part], neuron[part], plus[part]
            twice = m.concatenate([j, j]), m.concatenate([one, -one]), m.concatenate([r, r])
            self.poll(2 * len(j) * sum(n.size for n in nodes))
            yield (every[part], None), partial(self._backward, k, *twice, lines)

    def _parts(self, count: int, widest: int) -> Iterator[slice]:
        """Slices of so many neurons, two rows each, whose rows fit a core's cache."""
        step = max(16, chunk(CHUNK_ELEMENTS, self.lo) // (2 * widest))
        return (slice(at, at + step) for at in range(0, count, step))

    def _cone_rows(self, cone: Cone, at: Array, region: Array, relaxations: dict[int, Relaxation]) -> Rows:
        """Rows +z and -z of the components `at (n,)` of a cone's last node in regions `region (n,)`."""
        count, last = len(at), len(cone.nodes) - 1
        a, every = zeros((2 * count, cone.nodes[last].size), self.lo), arange(2 * count, self.lo)
        m = xp(a)
        a[every, m.concatenate([at, at])] = m.concatenate([full(count, 1.0, a), full(count, -1.0, a)])
        errors = [self.scales.error[k] if k >= 0 else 0.0 for k in cone.old]
        rows = full(2 * count, 0.0, a), full(2 * count, self.scales.tiny, a)
        return self._carry({last: a}, *rows, m.concatenate([region, region]), relaxations, None, cone.nodes, errors)

    def backward(self, k: int, neuron: Array, sign: Array, region: Array, relaxations: dict[int, Relaxation]) -> Rows:
        """Rows `sign * value(k)[neuron]` carried to the input; see `carry`."""
        self.poll(len(region) * sum(n.size for n in self.network.nodes[: k + 1]))
        return self._backward(k, neuron, sign, region, relaxations)

    def _backward(self, k: int, neuron: Array, sign: Array, region: Array, relaxations: dict[int, Relaxation]) -> Rows:
        op = self.network.nodes[k].op
        if isinstance(op, Dense):
            a = op.weight[neuron] * sign[:, None]
            error = full(len(neuron), self.scales.error[k] + self.scales.tiny, sign)  # row norm 1 at node k
            return self._carry(
                {self.network.nodes[k].inputs[0]: a}, op.offset[neuron] * sign, error, region, relaxations
            )
        a = zeros((len(neuron), self.network.nodes[k].size), sign)
        a[arange(len(neuron), sign), neuron] = sign
        rows = full(len(neuron), 0.0, sign), full(len(neuron), self.scales.tiny, sign)
        return self._carry({k: a}, *rows, region, relaxations)

    def carry(
        self,
        pending: dict[int, Array],
        region: Array,
        relaxations: dict[int, Relaxation],
        trace: dict[int, Array] | None = None,
    ) -> Rows:
        """Carry rows from the nodes in `pending` back to the input.

        `pending[k] (rows, size_k)` are coefficients on node k; `region (rows,)` indexes the relaxations.
        `trace`, when given, receives the coefficients on each nonlinear node's output. The result is a
        lower bound of the functional on each region, rounding error stated separately.
        """
        rows = len(region)
        self.poll(rows * sum(n.size for n in self.network.nodes[: max(pending) + 1]))
        offset, error = full(rows, 0.0, self.lo), full(rows, self.scales.tiny, self.lo)
        return self._carry(dict(pending), offset, error, region, relaxations, trace)

    def _carry(
        self,
        pending: dict[int, Array],
        offset: Array,
        error: Array,
        region: Array,
        relaxations: dict[int, Relaxation],
        trace: dict[int, Array] | None = None,
        nodes: Sequence[Node] = (),
        errors: Sequence[float] = (),
    ) -> Rows:
        """`nodes`, `errors`: those of a cone, else all of the network's."""
        nodes, errors, last = nodes or self.network.nodes, errors or self.scales.error, max(pending)
        for k in range(last, 0, -1):
            a = pending.pop(k, None)
            if a is None:
                continue
            error = error + errors[k] * row_norms(a)
            op = nodes[k].op
            if isinstance(op, Affine):
                bias = op.bias()
                if bias is not None:
                    offset = offset + a @ bias
                parts = op.adjoint(a)
            else:
                if trace is not None:
                    trace[k] = a
                parts, more = relax_rows(a, region, relaxations[k])
                offset = offset + more
            for i, part in zip(nodes[k].inputs, parts, strict=True):
                pending[i] = pending[i] + part if i in pending else part
        a = pending.pop(0, None)
        if a is None:
            a = zeros((len(region), nodes[0].size), self.lo)
        return Rows(a, offset, error + errors[0] * row_norms(a))


def _read_one_node(nodes: list[Node]) -> bool:
    """True when all nodes gather components of the same node."""
    return all(isinstance(n.op, Index) and n.inputs == nodes[0].inputs for n in nodes)
