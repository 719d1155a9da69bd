"""The checker's own bounds in outward-rounded float64. Shares nothing with `mucg4.bound`.

A batch holds B regions. Every network node has a *hull* `[lower, upper]` `(B, n)` and from it a
magnitude `M = max(|lower|, |upper|)`, so that `|v| <= M` holds for the real value v on the region.

Rounding (u = 2**-53, gamma(n) > n u / (1 - n u)). A *row* is a functional of node values that bounds
a quantity g from below: in real arithmetic and on the row's region

    g >= sum_k coef_k . v_k + const - error.                                             (I)

Each step keeps (I) for the stored floats, charging its rounding to `error`:

* affine node k of size m, `v_k = sum_i W_i v_i + b`: the stored `fl(a W_i)` differs from `a W_i` by at
  most gamma(fan_in) |a| |W_i| in each entry (any summation order; `fan_in` counts both directions),
  folding b cost the reader gamma(fan_in) `bias_magnitude`, and `fl(a . b)` is off by gamma(m) |a| . |b|.
  The first two are at most gamma(fan_in) |a| . S with `S = sum_i |W_i| M_i + bias_magnitude`, and
  `|a| . S <= ||a||_2 ||S||_2`: one pass over the rows, S once per region.
* elementwise node k over z: positive entries of a take a lower line of f, negative ones an upper
  line. Slopes are floats taken as exact numbers and the offsets are computed outward for those very
  slopes (`mucg4.check.curves`), so only `a * low + min(a, 0) * (up - low)` and the
  dot with the offsets round. The coefficient of component j is off by at most gamma(8) |a_j| s_j, s_j the largest size
  of a slope there, so the functional by sum_j gamma(8) |a_j| s_j M_j: at most
  ||a|| (gamma(8) ||s M|| + gamma(m) ||offset||).
* adding two coefficient blocks or a constant: u times the result's size.
* what is not added up at all does not round: see `_live`.
* the end: `min over the box` is a dot of length n, gamma ||a_0|| ||M_0||.

`error` and S are sums of nonnegative floats, hence off by a relative 1e-2 at the very most: the end
takes 1.01 times the sum. Underflow is covered by `TINY` inside the norms. Overflow gives inf or nan, and
comparisons with nan are false: nothing is ever closed or tightened by it.

The exact mode (`mucg4.check.exact`) keeps (I) in integers instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from functools import cached_property, partial
from typing import Any

import numpy as np

from mucg4.check import narrow
from mucg4.check.curves import Ends, Lines, enclose, knows, together
from mucg4.check.rowwise import TINY, dots, gamma, norms
from mucg4.check.ties import ExactNetwork
from mucg4.errors import ProofError
from mucg4.limits.threads import side_by_side
from mucg4.model.network import Network, affine_magnitude
from mucg4.ops.affine import Dense
from mucg4.ops.arrays import distinct_places
from mucg4.ops.base import Affine, Array, Nonlinear
from mucg4.ops.bilinear import JOINT_INPUTS
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

# numbers in one block of stacked rows, of which several are at work; measured beside a megabyte of cache for each core:
# half a MiB is 4 to 24 % quicker on ACAS Xu than one, a quarter no quicker; wide networks make no difference
CELLS = 2**16
NODE_WORK, UNSTABLE_SHARE = 2e4, 0.3  # for estimates of work; measured: see `Enclosure.work`
THREADED = 3e8  # multiplications (about 20 ms) from which threads share out rows; measured: starting them takes 1 ms
UNIT_CELLS = 2**21  # largest adjoint kept as a matrix to start unit rows from; not measured


@dataclass(eq=False)
class Frame:
    """Everything derived for one batch of regions. Lists run over network nodes.

    `slack` `(B, M)`, when given, is by how much each constraint of the case may be larger on the region than stated.
    """

    lower: list[Array]
    upper: list[Array]
    magnitude: list[Array]
    size: list[Array]  # (B,) norm of the magnitude
    cost: list[Array]  # (B,) what one unit of ||a|| costs in rounding when a row passes the node
    lines: dict[int, Lines] = field(default_factory=dict)
    slack: Array | None = None

    def _lists(self) -> tuple[list[Array], ...]:
        return self.lower, self.upper, self.magnitude, self.size, self.cost

    def one(self, region: int) -> Frame:
        """The frame of one region, as a batch of one."""
        lower, upper, magnitude, size, cost = ([a[region : region + 1] for a in part] for part in self._lists())
        lines = {k: lines.one(region) for k, lines in self.lines.items()}
        slack = None if self.slack is None else self.slack[region : region + 1]
        return Frame(lower, upper, magnitude, size, cost, lines, slack)

    def until(self, node: int) -> Frame:
        """The part that stands before a node."""
        lower, upper, magnitude, size, cost = (part[:node] for part in self._lists())
        return Frame(lower, upper, magnitude, size, cost, {k: v for k, v in self.lines.items() if k < node})

    def put(self, region: int, frame: Frame) -> None:
        """Replace one region's part by the frame of a batch of one."""
        for mine, others in zip(self._lists(), frame._lists(), strict=True):
            for a, b in zip(mine, others, strict=True):
                a[region] = b[0]
        for k, lines in self.lines.items():
            lines.put(region, frame.lines[k])


@dataclass(eq=False)
class Rows:
    """Functionals being pulled back to the input, see (I): `coef[k] (R, n_k)`, `const`, `error (R,)`."""

    region: Array
    coef: dict[int, Array]
    const: Array
    error: Array
    slopes: dict[int, Array] = field(default_factory=dict)  # lower slopes (R, n) that replace the default


class Enclosure:
    """Bounds for one network. Pre-activation bounds of a region are kept as flat
    arrays `(B, width)`; `slot[k]` is the part of node k. The input's bounds are the box itself.

    `threads` share out the rows; where there are many regions, processes share these."""

    threads = 1

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes = network.nodes
        self.ops = [self._prepare(k) for k in range(len(self.nodes))]
        self.slot: dict[int, slice] = {}
        self.width = 0
        for k in network.pre_activations:
            if k:
                self.slot[k] = slice(self.width, self.width + self.nodes[k].size)
                self.width += self.nodes[k].size
        few = self.nodes[0].size <= JOINT_INPUTS
        self.products = {k for k in network.nonlinear if few and self.ops[k].kind == "Product"}
        self.factors = {i for k in self.products for i in self.nodes[k].inputs}
        self.bent = {k: self._bent_users(k) for k in network.pre_activations}
        # an affine image of the box alone: centre and radius are its exact range already
        self.exact_image = [n.inputs == (0,) and isinstance(n.op, Affine) for n in self.nodes]
        self.quick = narrow.suits(self)
        self.few = {k: narrow.Few.of(self.ops[k].weight) for k in self._dense()} if self.quick else {}
        self.copies = {k: _copies(self.ops[k]) for k in self._dense() if k in self.slot and k not in self.factors}
        self.units = {} if self.quick else {k: self._unit_rows(k) for k in self.slot}

    def _prepare(self, k: int) -> Any:
        node = self.nodes[k]
        op = node.op
        if isinstance(op, Affine):
            return op
        if op is None or (isinstance(op, Nonlinear) and knows(op, len(node.inputs))):
            return op
        raise ProofError(f"the checker has no rule for operator {op.kind} (node {node.name!r})")

    @cached_property
    def work(self) -> tuple[float, float, float]:
        """About how many multiplications one row over the last node takes, a visit of a region, and all bounds of one.

        Measured on networks of 10 to 41 nodes: a third of the neurons is unstable, and a node costs NODE_WORK on top.
        """
        region = sum(UNSTABLE_SHARE * 2 * self.nodes[k].size * self.row_work[k] for k in self.slot)
        return self.row_work[-1], float(NODE_WORK * len(self.nodes)), region

    @cached_property
    def row_work(self) -> list[float]:
        """About how many multiplications one row over each node takes on its way to the input."""
        out = [0.0]
        for node in self.nodes[1:]:
            taken = sum(self.nodes[i].size for i in node.inputs)
            own = min(node.op.fan_in, taken) if isinstance(node.op, Affine) else 0
            out.append(out[-1] + node.size * own)
        return out

    @cached_property
    def row_block(self) -> int:
        """So many rows are handled together."""
        return max(1, 4 * CELLS // max(node.size for node in self.nodes))

    @cached_property
    def rational(self) -> ExactNetwork | None:
        """The network's exact numbers for refutations by a hair; None where there are none."""
        return ExactNetwork.of(self.network)

    def _dense(self) -> list[int]:
        return [k for k, op in enumerate(self.ops) if isinstance(op, Dense)]

    def _is_smooth(self, k: int) -> bool:
        return isinstance(self.ops[k], Nonlinear) and not isinstance(self.ops[k], TwoPiece)

    def _bent_users(self, k: int) -> bool:
        """True when some reader of node k is not piecewise linear: then no sign makes it exact."""
        return any(self._is_smooth(j) for j in self.network.users[k])

    def _unit_rows(self, k: int) -> tuple[Array, ...] | None:
        """The rows of an affine node's matrices (one product each), when they fit."""
        node, op = self.nodes[k], self.ops[k]
        if not isinstance(op, Affine) or node.size * sum(self.nodes[i].size for i in node.inputs) > UNIT_CELLS:
            return None
        if node.size**2 > UNIT_CELLS:
            return None
        return op.matrices(node.size)

    def numbers(self, values: Array) -> Array:
        """The values as floats."""
        return np.asarray(values, dtype=np.float64)

    def zeros(self, *shape: int) -> Array:
        """Zeros."""
        return np.zeros(shape)

    # ---- forward -------------------------------------------------------------------------------

    def sweep(
        self,
        box: tuple[Array, Array],
        low: Array,
        up: Array,
        refresh: Array,
        root: Array,
        before: tuple[Frame, int] | None = None,
    ) -> tuple[Frame, Array]:
        """Hulls and lines of all nodes on B regions, and `(B,)` which regions are empty.

        `box` `(B, inputs)` pair, `low`, `up` `(B, width)` sound inherited bounds, improved in place;
        where `refresh (B,)` unstable neurons get backward bounds, where `root (B,)` interval bounds come
        first. `before`: the frame of these regions, none of them empty, before the inherited bounds of the given node
        changed, and of no earlier one: what stands before that node is taken from there. Sound on the real values.
        """
        if np.any(root & refresh):  # the root's interval bounds come from interval bounds alone, all nodes first
            nowhere = np.zeros_like(root)
            self.sweep(box, low, up, nowhere, root)
            root = nowhere
        empty = np.any(box[0] > box[1], axis=1)
        frame = Frame([], [], [], [], [])
        ends: dict[int, Ends] = {}
        products, factors = (self.products, self.factors) if np.any(refresh) else (set(), set())
        if before is not None and not self.products:  # their lines depend on more than hulls
            frame = before[0].until(before[1])
        else:
            self._append(frame, box[0], box[1], np.zeros(len(empty)))
        if 0 in factors:
            ends[0] = self._ends(*box, 0)
        for k in range(len(frame.lower), len(self.nodes)):
            scale = None
            # As tight as stated and not tighter: a better bound may tip a default slope to the wrong side.
            # The image of a smooth function is intersected by the search, too.
            always = k not in self.slot or self.exact_image[k] or self._is_smooth(k)
            if isinstance(self.ops[k], Affine):
                scale = self._scale(k, frame)
                lo, hi = self._affine_hull(k, frame, scale) if always or np.any(root) else (low[:, :0], up[:, :0])
                cost = self._affine_cost(k, scale)
            else:
                lo, hi, cost = self._curve_hull(k, frame)
                if k in products:
                    x, y = (ends[i] for i in self.nodes[k].inputs)
                    together(frame.lines[k], refresh, box, x, y)
            if k in self.slot:
                s = self.slot[k]
                if always:
                    lo, hi = np.fmax(lo, low[:, s]), np.fmin(hi, up[:, s])
                elif np.any(root):
                    lo = np.where(root[:, None], np.fmax(lo, low[:, s]), low[:, s])
                    hi = np.where(root[:, None], np.fmin(hi, up[:, s]), up[:, s])
                else:
                    lo, hi = low[:, s].copy(), up[:, s].copy()
                empty |= np.any(lo > hi, axis=1)
                if k in factors:
                    ends[k] = self._ends(lo, hi, k)
                if k in factors or not self.exact_image[k]:
                    hull = (lo.copy(), hi.copy()) if self.exact_image[k] else (lo, hi)
                    self._refine(k, frame, hull, scale, refresh & ~empty, cost, ends.get(k))
                    empty |= np.any(lo > hi, axis=1)
                low[:, s], up[:, s] = lo, hi
            self._append(frame, lo, hi, cost)
        return frame, empty

    def _append(self, frame: Frame, lo: Array, hi: Array, cost: Array) -> None:
        hi = np.maximum(lo, hi)  # empty regions are flagged already; keeps their arithmetic tame
        m = np.maximum(abs(lo), abs(hi))
        frame.lower.append(lo)
        frame.upper.append(hi)
        frame.magnitude.append(m)
        frame.size.append(norms(m))
        frame.cost.append(cost)

    def _scale(self, k: int, frame: Frame) -> Array:
        """S of an affine node, `(B, n)`: 0 only where nothing is added up (`_live`), as a norm is never 0."""
        node, op = self.nodes[k], self.ops[k]
        scale = affine_magnitude(op, [frame.magnitude[i] for i in node.inputs])
        guard = 1e-50 * sum(frame.size[i] for i in node.inputs)[:, None]
        if not np.all(scale):
            guard = np.where(self._live(k, frame, scale), guard, 0.0)
        return np.asarray(scale + guard)

    def _affine_hull(self, k: int, frame: Frame, scale: Array) -> tuple[Array, Array]:
        """Interval image by centre and radius."""
        node, op = self.nodes[k], self.ops[k]
        low = [frame.lower[i] for i in node.inputs]
        up = [frame.upper[i] for i in node.inputs]
        mid = [(a + b) * 0.5 for a, b in zip(low, up, strict=True)]
        rad = [np.maximum(b - m, m - a) for a, b, m in zip(low, up, mid, strict=True)]
        y, r = op.apply(mid), op.magnitude(rad)
        r = r + (gamma(2 * op.fan_in + 8) * scale + np.where(scale > 0, TINY, 0.0))
        return y - r, y + r

    def _live(self, k: int, frame: Frame, scale: Array) -> Array:
        """(B, n) False where nothing is added up in a component of affine node k: its value is 0, with no error.

        Where `|W|` applied to the indicator of `M > 0`, and the bias, are 0, each product is that of a weight and 0, of
        which none rounds or underflows, and sums of zeros are zero. Weights times 1 do not underflow, so neither does
        this test, unlike `scale`, which is 0 there, too.
        """
        ones = [(frame.magnitude[i] > 0).astype(np.float64) for i in self.nodes[k].inputs]
        return (scale != 0) | (affine_magnitude(self.ops[k], ones) != 0)

    def _affine_cost(self, k: int, scale: Array) -> Array:
        op, b = self.ops[k], self.ops[k].bias()
        dot = 0.0 if b is None else gamma(self.nodes[k].size + 8) * norms(b[None, :])[0]
        return gamma(op.fan_in + 8) * norms(scale) + dot

    def _curve_hull(self, k: int, frame: Frame) -> tuple[Array, Array, Array]:
        """Interval image of an elementwise node; the third result is its rounding cost `(B,)`."""
        inputs = self.nodes[k].inputs
        lines, flo, fhi = enclose(self.ops[k], [frame.lower[i] for i in inputs], [frame.upper[i] for i in inputs])
        frame.lines[k] = lines
        dot = norms(lines.up_offset) + (0.0 if lines.low_offset is None else norms(lines.low_offset))
        size = 1e-50 * sum(frame.size[i] for i in inputs)
        if isinstance(lines.steep, np.ndarray):
            size = size + norms(lines.steep * frame.magnitude[inputs[0]])
        else:
            size = size + lines.steep * frame.size[inputs[0]]
        if lines.other is not None:
            size = size + norms(np.maximum(abs(lines.other[0]), abs(lines.other[1])) * frame.magnitude[inputs[1]])
        return flo, fhi, gamma(8) * size + gamma(self.nodes[k].size + 8) * dot

    def _ends(self, lo: Array, hi: Array, k: int) -> Ends:
        """Lines of node k over the input: constant ones, exact ones of the input itself."""
        d = self.nodes[0].size
        flat, zero = np.zeros((*lo.shape, d)), np.zeros(lo.shape)
        if k == 0:
            unit = np.broadcast_to(np.eye(d), flat.shape)
            return Ends(lo, hi, unit, zero, unit, zero)
        return Ends(lo, hi, flat, lo.copy(), flat.copy(), hi.copy())

    def _refine(
        self,
        k: int,
        frame: Frame,
        hull: tuple[Array, Array],
        scale: Array | None,
        refresh: Array,
        cost: Array,
        ends: Ends | None,
    ) -> None:
        """Backward bounds (default slopes) of the neurons of node k that are still unstable, in place.

        The rows behind them are left in `ends` when it is given.
        """
        lo, hi = hull
        need = lo < hi if self.bent[k] else (lo <= 0) & (hi >= 0) & (lo < hi)  # a literal sets one of them to zero
        regions, neurons = np.nonzero(need & refresh[:, None])
        if not len(regions):
            return
        copies = self.copies.get(k)
        if copies is not None and ends is None:
            wanted, mine = regions, neurons
            keys, _, place = distinct_places(regions * len(copies.first) + copies.first[neurons])
            regions, neurons = np.divmod(keys, len(copies.first))
        found = np.empty((2, len(regions)))
        frame.cost.append(cost)  # rows that start as unit vectors pass node k itself

        def bound(part: slice) -> Array:
            r, j = regions[part], neurons[part]
            rows = self._neuron_rows(k, np.concatenate([r, r]), np.concatenate([j, j]), scale, frame)
            if ends is not None:
                half, sure = len(r), rows.const - (1.01 * rows.error + gamma(4) * abs(rows.const))
                ends.below[r, j], ends.base[r, j] = rows.coef[0][:half], sure[:half]
                ends.above[r, j], ends.top[r, j] = -rows.coef[0][half:], -sure[half:]
            return self.minimum(frame, rows)

        tasks = ((part, partial(bound, part)) for part in self._chunks(len(regions), k))
        for part, least in side_by_side(tasks, self.threads_for(2 * len(regions), k)):
            found[:, part] = least.reshape(2, -1)
        frame.cost.pop()
        if copies is not None and ends is None:
            found, regions, neurons = found[:, place], wanted, mine
            found = np.where(copies.negative[neurons], found[::-1], found)
        lo[regions, neurons] = np.fmax(lo[regions, neurons], found[0])
        hi[regions, neurons] = np.fmin(hi[regions, neurons], -found[1])

    def _neuron_rows(self, k: int, region: Array, neuron: Array, scale: Array | None, frame: Frame) -> Rows:
        """Rows over the input of `+v` (first half) and `-v` (second half) of single neurons of node k."""
        if not self.quick or scale is None:
            return self.pull(frame, self._start(k, region, neuron, scale), k)
        half = len(region) // 2  # in ascending order
        block = narrow.Block.of(self, frame, k, int(region[0]), int(region[half - 1]) + 1)
        rows = Rows(region, {}, self.zeros(len(region)), self.zeros(len(region)))
        block.start_rows(rows, k, neuron, scale)
        return block.pull(rows, k - 1)

    def start_charge(self, k: int) -> float:
        """What a row that starts as a row of the affine node k costs, per unit of the scale there: folding of the
        bias, and coefficient blocks that are added up."""
        return gamma(self.ops[k].fan_in + 8)

    def threads_for(self, rows: int, k: int) -> int:
        """How many threads share out so many rows over node k."""
        return self.threads if rows * self.row_work[k] > THREADED else 1

    def _chunks(self, total: int, k: int) -> Iterator[slice]:
        widest = max(node.size for node in self.nodes[: k + 1])
        step = max(1, CELLS // (2 * widest))
        return (slice(i, i + step) for i in range(0, total, step))

    def _start(self, k: int, region: Array, neuron: Array, scale: Array | None) -> Rows:
        """Rows `+v` (first half) and `-v` (second half) of single neurons of node k."""
        count = len(region)
        sign = np.where(np.arange(count) < count // 2, 1, -1)
        rows = Rows(region, {}, self.zeros(count), self.zeros(count))
        unit = self.units[k]
        if unit is None or scale is None:
            rows.coef[k] = self.zeros(count, self.nodes[k].size)
            rows.coef[k][np.arange(count), neuron] = sign
            return rows
        for i, matrix in zip(self.nodes[k].inputs, unit, strict=True):
            part = matrix[neuron] * sign[:, None]
            rows.coef[i] = rows.coef[i] + part if i in rows.coef else part
        b = self.ops[k].bias()
        if b is not None:
            rows.const = b[neuron] * sign
        rows.error = rows.error + self.start_charge(k) * scale[region, neuron]
        return rows

    # ---- backward ------------------------------------------------------------------------------

    def pull(self, frame: Frame, rows: Rows, start: int) -> Rows:
        """Rewrite rows over nodes `<= start` as rows over the input alone, keeping (I)."""
        for k in range(start, 0, -1):
            a = rows.coef.pop(k, None)
            if a is None:
                continue
            if isinstance(self.ops[k], Affine):
                self._pull_affine(k, a, frame, rows)
            else:
                self._pull_curve(k, a, frame, rows)
        if 0 not in rows.coef:
            rows.coef[0] = self.no_coefficients(len(rows.region))
        return rows

    def no_coefficients(self, count: int) -> Array:
        """Rows that do not depend on the input."""
        return self.zeros(count, self.nodes[0].size)

    def _pull_affine(self, k: int, a: Array, frame: Frame, rows: Rows) -> None:
        op, node = self.ops[k], self.nodes[k]
        self.charge(rows, a, frame.cost[k])
        b = op.bias()
        if b is not None:
            self.add(rows, a @ b)
        parts = (narrow.through(op, a, frame.lines.get(node.inputs[0])),) if isinstance(op, Dense) else op.adjoint(a)
        for i, part in zip(node.inputs, parts, strict=True):
            self.push(rows, i, part, frame)

    def _pull_curve(self, k: int, a: Array, frame: Frame, rows: Rows) -> None:
        lines, region = frame.lines[k], rows.region
        self.charge(rows, a, frame.cost[k])
        negative = np.minimum(a, 0)
        inputs = self.nodes[k].inputs
        if lines.other is not None:
            below, above = (s.take(region, axis=0) for s in lines.other)
            self.push(rows, inputs[1], (a - negative) * below + negative * above, frame)
        self.add(rows, dots(negative, lines.up_offset.take(region, axis=0)))
        if lines.low_offset is not None:
            self.add(rows, dots(a - negative, lines.low_offset.take(region, axis=0)))
        if k in rows.slopes:
            part = rows.slopes[k]
            negative *= lines.up.take(region, axis=0) - part
        else:
            part = lines.low.take(region, axis=0)
            negative *= lines.span.take(region, axis=0)
        part = part * a
        part += negative  # a * low where a > 0, a * low + a * (up - low) elsewhere
        self.push(rows, inputs[0], part, frame)

    def push(self, rows: Rows, i: int, part: Array, frame: Frame) -> None:
        """Add a coefficient block to node i."""
        if i not in rows.coef:
            rows.coef[i] = part
            return
        rows.coef[i] = rows.coef[i] + part
        self.charge(rows, rows.coef[i], gamma(1) * frame.size[i])

    def add(self, rows: Rows, value: Array) -> None:
        """Add to the constants."""
        rows.const = rows.const + value
        rows.error = rows.error + gamma(1) * abs(rows.const)

    def charge(self, rows: Rows, a: Array, cost: Array) -> None:
        """Charge what rounding costs when coefficients `a (R, n)` pass a node, per unit of their norm `cost (B,)`."""
        rows.error = rows.error + norms(a) * cost[rows.region]

    def minimum(self, frame: Frame, rows: Rows) -> Array:
        """(R,) sound lower bounds of the rows (over the input alone) on their regions' boxes."""
        a, region = rows.coef[0], rows.region
        negative, lower, upper = np.minimum(a, 0), frame.lower[0], frame.upper[0]
        if len(lower) == 1:
            value = (a - negative) @ lower[0] + negative @ upper[0]
        else:
            value = dots(a - negative, lower[region]) + dots(negative, upper[region])
        self.charge(rows, a, gamma(self.nodes[0].size + 8) * frame.size[0])
        self.add(rows, value)
        return rows.const - (1.01 * rows.error + gamma(4) * abs(rows.const))

    def near(self, rows: Rows, value: Array) -> list[int]:
        """Rows whose bounds `value (R,)`, as `minimum` gives them, would be positive only without their error."""
        reach = 2.0 * (1.01 * rows.error + gamma(4) * abs(rows.const))
        return [int(r) for r in np.flatnonzero((value <= 0) & (value + reach >= 0))]

    def shortened(self, values: Array) -> Array:
        """Numbers that may be any, in a form that this arithmetic takes as exact."""
        return values

    def carriers(self, node: int, index: Array) -> dict[int, Array]:
        """Components `index (R,)` of a node as `{k: (R, size_k)}` over the input and the nonlinear nodes behind it.

        Without biases, and rounded: nothing may rest on these numbers being the right ones.
        """
        rows = self.zeros(len(index), self.nodes[node].size)
        rows[np.arange(len(index)), index] = self.numbers(np.ones(len(index)))
        pending, out = {node: rows}, {}
        for k in range(node, -1, -1):
            a = pending.pop(k, None)
            if a is not None and k and isinstance(self.ops[k], Affine):
                for i, part in zip(self.nodes[k].inputs, self.ops[k].adjoint(a), strict=True):
                    pending[i] = pending[i] + part if i in pending else part
            elif a is not None:
                out[k] = a
        return out

    def least_on_hulls(self, frame: Frame, rows: Rows, start: int) -> Array:
        """(R,) sound lower bounds of rows over nodes `<= start` on the hulls of the input and the nonlinear nodes."""
        for k in range(start, -1, -1):
            a = rows.coef.pop(k, None)
            if a is None:
                continue
            if k and isinstance(self.ops[k], Affine):
                self._pull_affine(k, a, frame, rows)
                continue
            negative = np.minimum(a, 0)
            self.charge(rows, a, gamma(self.nodes[k].size + 8) * frame.size[k])
            value = dots(a - negative, frame.lower[k][rows.region]) + dots(negative, frame.upper[k][rows.region])
            self.add(rows, value)
        return rows.const - (1.01 * rows.error + gamma(4) * abs(rows.const))

    def cut(self, rows: Rows, part: Array, lo: Array, hi: Array) -> tuple[Array, Array]:
        """Shrink the boxes `lo, hi (B, n)` to where the rows `part (B,)` (over the input) can be <= 0.

        `a . x + const - error <= 0` bounds each `a_i x_i` by the least value of all the others on the box.
        """
        a, const, error = rows.coef[0][part], rows.const[part], rows.error[part]
        negative = np.minimum(a, 0)
        least = (a - negative) * lo + negative * hi
        others = least.sum(axis=1)[:, None] - least
        limit = -const[:, None] - others
        divisor = np.where(a == 0, 1, a)
        size = abs(least).sum(axis=1) + abs(const) + error
        limit = limit + (1.01 * error + gamma(a.shape[1] + 8) * size + TINY)[:, None]
        middle = limit / divisor
        slack = gamma(4) * abs(middle) + TINY
        top, bottom, usable = middle + slack, middle - slack, np.isfinite(middle)
        hi = np.where(usable & (a > 0), np.minimum(hi, top), hi)
        lo = np.where(usable & (a < 0), np.maximum(lo, bottom), lo)
        return lo, hi


@dataclass(frozen=True, eq=False)
class Copies:
    """Which components of an affine node are copies of earlier ones or of their negatives.

    `first (n,)` names the one that is copied, itself where there is none; `negative (n,)` says where it is negated.
    """

    first: Array
    negative: Array


def _copies(op: Dense) -> Copies | None:
    """Components with the same numbers, or all negated, and as uncertain a bias; None where there are none.

    A bound of one is a bound of the other, with the same charges: these depend on the sizes of the numbers only.
    """
    numbers = np.concatenate([op.weight, op.offset[:, None]], axis=1) + 0.0
    size = op.bias_magnitude()
    if op.slack is not None or len(numbers) < 2:
        return None
    mixer = np.random.default_rng(0).uniform(1, 2, size=numbers.shape[1])
    with np.errstate(all="ignore"):
        key = abs(np.einsum("ij,j->i", numbers, mixer))  # equal for equal rows; what it says is verified below
    _, representative, which = distinct_places(key)
    first = representative[which]
    same = np.all(numbers == numbers[first], axis=1)
    negative = ~same & np.all(numbers == -numbers[first], axis=1)
    copied = (same | negative) & (size == size[first])
    if np.all(first[copied] == np.flatnonzero(copied)):
        return None
    return Copies(np.where(copied, first, np.arange(len(first))), negative & copied)
