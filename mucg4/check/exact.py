"""The exact mode of the checker: every bound over the rationals, nothing rounded without being counted.

For networks of affine and two-piece nodes the mode re-establishes a proof without floating-point arithmetic. What is
proved: for the canonical network, its weights and biases taken as exact rational numbers, every region of the proof's
trees is empty or refuted, over the box's hull, for the exact constraints. Whether the canonical network is exactly
the one in the file is another question (`mucg4.check.exactly`).

Numbers. Everything is an integer at a fixed scale: coefficients and errors in units of 2**-COEF, values (bounds of
neurons, offsets of lines) in units of 2**-scale, slopes in units of 2**-SLOPE, all of 64 bits; constants, Python
integers, in units of 2**-(COEF + scale), those of a coefficient times a value. The scale
of values is chosen by the sizes of interval bounds on the root boxes; any is sound. Bounds that are kept between
regions are floats: each is a dyadic rational, is compared with others only, and is made from an integer by rounding
outward. Slopes and multipliers may be any legal numbers, so they are rounded to their units beforehand and then
exact; the offset of an upper line is computed upward for the very slope that is used.

Products. A product of integers that is too long is taken apart into limbs of a few bits, so that each sum of products
of limbs is an integer below 2**53: such sums are exact in float64 in any order, which lets matrix products do the
work. Each is shifted to the unit of the result and rounded DOWN, which loses less than one unit; k of them lose less
than k. So a row's coefficients are too small by less than k units each, and on a region the functional is off by at
most `k units * sum of magnitudes`: that is added to `error`, an integer, too. Constants are rounded down, which is the
safe side. A row that might overflow goes on in coarser units, or is given up: then it bounds nothing.

Cost on ACAS Xu: some 50 ms a region, 600 with fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from fractions import Fraction
from math import ceil, floor, log2

import numpy as np

from mucg4.check.curves import HAIR, Lines
from mucg4.check.enclose import Enclosure, Frame, Rows
from mucg4.check.ties import dyadic
from mucg4.errors import ProofError
from mucg4.model.network import Network
from mucg4.model.query import Box, Conjunction
from mucg4.ops.base import Affine, Array
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

# bits after the point of coefficients and of slopes; not measured, their products have to fit 64 bits
COEF, SLOPE = 44, 31
LEAST_SCALE, MOST_SCALE = 13, 44  # of values; not measured
ROOM = 1 << 60  # integers that are larger are given up; given: two of them add up within 64 bits
COARSER, MOST_COARSER = 4, 8  # bits at a time, and how often; not measured
# limbs of a coefficient or value; given: together the 60 bits of ROOM, products of two summed below 2**53
BITS, COUNT = 20, 3
MOST_CELLS = 1 << 21  # of a layer whose weights are kept as limbs; not measured
MOST_LIMBS, MOST_SHIFT = 6, 900  # of a weight; not measured, the second only has to be below a double's exponents
GIVEN_UP = np.int64(1) << np.int64(62)


def limbs(a: Array) -> list[Array]:
    """Float arrays f_i of whole numbers with `a == sum_i f_i 2**(BITS i)`, all with the sign of a; |a| < ROOM.

    So no part is larger than the whole, and sums of products of parts are no larger than those of sizes.
    """
    size, sign, mask = abs(a), np.sign(a).astype(np.float64), np.int64((1 << BITS) - 1)
    return [((size >> np.int64(BITS * i)) & mask).astype(np.float64) * sign for i in range(COUNT)]


def shifted_down(p: Array, exponent: int) -> Array:
    """int64 `floor(p 2**exponent)` of whole floats below 2**53; the caller sees to it that the result has room."""
    return np.floor(np.ldexp(p, exponent)).astype(np.int64)


def scaled_slopes(a: Array, slope: Array) -> Array:
    """`floor(a slope 2**-SLOPE)` for |a| < ROOM and |slope| <= 2**SLOPE."""
    high, low = a >> np.int64(SLOPE), a & np.int64((1 << SLOPE) - 1)
    return high * slope + ((low * slope) >> np.int64(SLOPE))


def whole(values: Array, side: int, scale: int) -> Array:
    """Floats in units of 2**-scale, rounded down (side -1) or up; raises `ProofError` when there is no room."""
    shifted = np.ldexp(values, scale)
    if not np.all(abs(shifted) < ROOM // 2):  # nan too
        raise ProofError("a bound is too large for the exact mode")
    return (np.floor(shifted) if side < 0 else np.ceil(shifted)).astype(np.int64)


def below(units: Array, scale: int) -> Array:
    """The largest floats that are at most `units 2**-scale`, or the next ones below those; -inf for rows given up."""
    near = units.astype(np.float64)
    near = np.where(near.astype(np.int64) > units, np.nextafter(near, -np.inf), near)
    return np.where(units <= -ROOM, -np.inf, np.ldexp(near, -scale))


@dataclass(frozen=True, eq=False)
class Matrix:
    """An integer matrix `(inputs, outputs)` times 2**-shift, by limbs of floats; `bits` per limb."""

    parts: list[Array]
    bits: int
    shift: int
    reach: int  # at least the largest sum of sizes in a column, in units of 2**-shift,
    largest: int  # and the largest size

    @staticmethod
    def of(values: Array, shift: int) -> Matrix:
        """From an object array of Python integers."""
        rows = max(values.shape[0], 1)
        bits = 53 - BITS - ceil(log2(rows)) - 1
        if bits < 8:
            raise ProofError("a layer is too wide for the exact mode")
        if shift > MOST_SHIFT:  # shifts of floats must not underflow
            raise ProofError("a number is too small for the exact mode")
        longest = max((int(v).bit_length() for v in values.ravel().tolist()), default=0)
        count = max(1, -(-longest // bits))
        if count > MOST_LIMBS:
            raise ProofError("numbers of too different sizes for the exact mode")
        mask, parts = (1 << bits) - 1, []
        for i in range(count):
            own = [(1 if v >= 0 else -1) * ((abs(v) >> (bits * i)) & mask) for v in values.ravel().tolist()]
            parts.append(np.array(own, dtype=np.float64).reshape(values.shape))
        reach = max((int(v) for v in abs(values).sum(axis=0).tolist()), default=0) if values.size else 0
        largest = max((abs(int(v)) for v in values.ravel().tolist()), default=0)
        return Matrix(parts, bits, shift, reach, largest)

    def times(self, a: Array) -> tuple[Array, int]:
        """`(floor-like of a @ matrix, units lost)`: less than so many units below the true product, never above.

        `a (R, inputs)` int64, |a| < ROOM, and `fits` holds for its rows.
        """
        total, lost = np.zeros((len(a), self.parts[0].shape[1]), dtype=np.int64), 0
        for i, x in enumerate(limbs(a)):
            for j, w in enumerate(self.parts if x.any() else ()):
                exponent = BITS * i + self.bits * j - self.shift
                total += shifted_down(x @ w, exponent)
                lost += exponent < 0
        return total, lost

    def fits(self, a: Array) -> Array:
        """(R,) True where the product of the row has room whatever cancels."""
        size, room = abs(a), ROOM << self.shift
        most, together = room // max(self.reach, 1), (room >> 10) // max(self.largest, 1)
        sums = (size >> np.int64(10)).sum(axis=1) + np.int64(a.shape[1])  # at least the sums of sizes, in 2**10 units
        each = size.max(axis=1, initial=0)
        return (each < ROOM) & ((each < min(most, ROOM)) | (sums < min(together, ROOM)))

    def exactly(self, a: Array, shift: int) -> Array:
        """(R,) Python integers `floor(a @ matrix 2**shift)` for a matrix of one column; |a| < ROOM."""
        total = np.zeros(len(a), dtype=object)
        for i, x in enumerate(limbs(a)):
            for j, w in enumerate(self.parts):
                total += (x @ w)[:, 0].astype(np.int64).astype(object) << (BITS * i + self.bits * j)
        move = shift - self.shift
        return total << move if move >= 0 else total >> -move


@dataclass(eq=False)
class ExactRows(Rows):
    """Rows with coefficients in units of `2**(coarse - COEF)`, `coarse (R,)` int64, larger where they must have room.

    Constants are Python integers in units of 2**-(COEF + scale), errors int64 in units of 2**-COEF.
    """

    coarse: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        self.coarse = np.zeros(len(self.region), dtype=np.int64)


def coarseness(rows: Rows) -> Array:
    """(R,) how many bits coarser the rows' units are."""
    assert isinstance(rows, ExactRows)
    return rows.coarse


class ExactEnclosure(Enclosure):
    """`mucg4.check.enclose.Enclosure` in integers. Rows hold int64. Frames hold floats for bounds and lower slopes, and
    int64 for the rest: magnitudes in units of values, `size (B,)` their sums, upper slopes and offsets in theirs."""

    def __init__(self, network: Network, boxes: Sequence[Box]) -> None:
        """`boxes`: the root boxes, for a good scale of values. Raises `ProofError` for networks that do not fit."""
        self.network, self.nodes = network, network.nodes
        self.scale = _scale(network, boxes)
        self.slot, self.width = {}, 0
        self.products = set()  # piecewise linear networks have none
        for k in network.pre_activations:
            if k:
                self.slot[k] = slice(self.width, self.width + self.nodes[k].size)
                self.width += self.nodes[k].size
        self.ops = [node.op for node in self.nodes]
        self.images: dict[int, list[Matrix]] = {}  # of values: (inputs, outputs)
        self.halves: dict[int, list[tuple[Matrix, Matrix]]] = {}  # positive and negative parts of the same
        self.adjoints: dict[int, list[Matrix]] = {}  # of rows: (outputs, inputs)
        self.starts: dict[int, list[Array]] = {}  # rows of the adjoint in coefficient units, rounded down
        self.bias: dict[
            int, tuple[Matrix, list[Array]]
        ] = {}  # as a column; b, -b in value, then coefficient units, down
        for k, node in enumerate(self.nodes[1:], 1):
            if isinstance(node.op, Affine):
                self._expand(k, node.op)
            elif not isinstance(node.op, TwoPiece) or max(abs(node.op.left), abs(node.op.right)) > 1:
                raise ProofError(f"the exact mode has no rule for operator {node.op.kind if node.op else ''}")
            elif any(v * 2**SLOPE != int(v * 2**SLOPE) for v in (node.op.left, node.op.right)):
                raise ProofError("a slope is no short binary fraction: too long for the exact mode")
        self.exact_image = [n.inputs == (0,) and isinstance(n.op, Affine) for n in self.nodes]

    def _expand(self, k: int, op: Affine) -> None:
        """Matrices of an affine node; images of unit vectors are exact in float64."""
        sizes = [self.nodes[i].size for i in self.nodes[k].inputs]
        if self.nodes[k].size * sum(sizes) > MOST_CELLS:
            raise ProofError("the exact mode is for small networks only")
        self.halves[k], self.adjoints[k], self.starts[k] = [], [], []
        try:
            for i, n in enumerate(sizes):
                units = [np.eye(n) if j == i else np.zeros((n, s)) for j, s in enumerate(sizes)]
                w, q = dyadic(op.linear(units))
                self.halves[k].append((Matrix.of(np.maximum(w, 0), q), Matrix.of(np.minimum(w, 0), q)))
                self.adjoints[k].append(Matrix.of(w.T, q))
                self.starts[k].append(_units(w.T, q, COEF))
            b, q = dyadic(np.zeros(self.nodes[k].size) if op.bias() is None else op.bias())
            move = COEF + self.scale - q
            rounded = [_units(side, q, self.scale) for side in (b, -b)]
            rounded += [side << move if move >= 0 else side >> -move for side in (b, -b)]
            self.bias[k] = Matrix.of(b[:, None], q), rounded
        except (ValueError, OverflowError) as error:
            raise ProofError(f"a number of the network does not fit the exact mode: {error}") from error

    def threads_for(self, rows: int, k: int) -> int:
        """One: Python's integers hold others up."""
        return 1

    def numbers(self, values: Array) -> Array:
        """Floats stand for themselves."""
        return np.asarray(values, dtype=np.float64)

    def zeros(self, *shape: int) -> Array:
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
        """As in `Enclosure`; all nodes anew."""
        if np.any(root & refresh):
            nowhere = np.zeros_like(root)
            self.sweep(box, low, up, nowhere, root)
            root = nowhere
        empty = np.any(box[0] > box[1], axis=1)
        frame = Frame([], [], [], [], [])
        self._put(frame, *box)
        for k, node in enumerate(self.nodes[1:], 1):
            s = self.slot.get(k)
            fresh = s is None or self.exact_image[k] or bool(np.any(root))
            if isinstance(node.op, Affine):
                lo, hi = self._image(k, frame) if fresh else (low[:, s], up[:, s])
            else:
                lo, hi = self._bend(k, frame)
            if s is not None:
                own = (root | self.exact_image[k])[:, None]
                lo = np.where(own, np.fmax(lo, low[:, s]), low[:, s])
                hi = np.where(own, np.fmin(hi, up[:, s]), up[:, s])
                empty |= np.any(lo > hi, axis=1)
                if not self.exact_image[k]:
                    self._tighten_open(k, frame, lo, hi, refresh & ~empty)
                    empty |= np.any(lo > hi, axis=1)
                low[:, s], up[:, s] = lo, hi
            self._put(frame, lo, hi)
        return frame, empty

    def _put(self, frame: Frame, lo: Array, hi: Array) -> None:
        hi = np.maximum(lo, hi)
        frame.lower.append(lo)
        frame.upper.append(hi)
        m = np.maximum(abs(whole(lo, -1, self.scale)), abs(whole(hi, 1, self.scale)))
        frame.magnitude.append(m)
        sums = m.astype(object).sum(axis=1)
        if any(int(v) >= ROOM // 64 for v in sums):
            raise ProofError("a bound is too large for the exact mode")
        frame.size.append(sums.astype(np.int64))
        frame.cost.append(np.zeros(len(lo)))

    def _image(self, k: int, frame: Frame) -> tuple[Array, Array]:
        """Interval image of an affine node."""
        least, most = (np.broadcast_to(b, (len(frame.lower[0]), len(b))) for b in self.bias[k][1][:2])
        for i, (plus, minus) in zip(self.nodes[k].inputs, self.halves[k], strict=True):
            lo, hi = whole(frame.lower[i], -1, self.scale), whole(frame.upper[i], 1, self.scale)
            if not all(np.all(m.fits(a)) for m in (plus, minus) for a in (lo, hi)):
                raise ProofError("a bound is too large for the exact mode")
            for side, (a, b) in enumerate(((lo, hi), (-hi, -lo))):
                image = plus.times(a)[0], minus.times(b)[0]
                total = (most if side else least).astype(np.float64) + image[0] + image[1].astype(np.float64)
                if not np.all(abs(total) < ROOM):
                    raise ProofError("a bound is too large for the exact mode")
                least, most = (least, most + image[0] + image[1]) if side else (least + image[0] + image[1], most)
        return below(least, self.scale), -below(most, self.scale)

    def _bend(self, k: int, frame: Frame) -> tuple[Array, Array]:
        """Lines and image of a two-piece node: `low` floats, `up` and `up_offset` integers."""
        op, i = self.nodes[k].op, self.nodes[k].inputs[0]
        assert isinstance(op, TwoPiece)
        lo, hi = frame.lower[i], frame.upper[i]
        left, right = (np.int64(int(v * 2**SLOPE)) for v in (op.left, op.right))
        unstable = (lo < 0) & (hi > 0)
        stable = np.where(lo >= 0, op.right, op.left)
        low = np.where(unstable, np.where(op.default_alpha(lo, hi).astype(bool), op.right, op.left), stable)
        width = np.where(unstable, hi - lo, 1.0)
        near = np.where(unstable, op.left + (op.right - op.left) * (hi / width), stable)
        chord = np.clip(np.round(np.ldexp(near, SLOPE)).astype(np.int64), left, right)
        first, last = whole(lo, -1, self.scale), whole(hi, 1, self.scale)
        # f minus the line is convex: largest at an end; both products rounded up
        ends = [-scaled_slopes(-z, slope - chord) for z, slope in ((first, left), (last, right))]
        offset = np.where(unstable, np.maximum(*ends), 0)
        free = unstable | ((lo > 0) & (lo < HAIR * hi)) | ((hi < 0) & (hi > HAIR * lo))
        frame.lines[k] = Lines(low, chord, offset, None, free, (op.left, op.right), 1.0)
        start, end = self._value(lo, left, right), self._value(hi, left, right)
        least = np.minimum(start[0], end[0])
        least = np.where(unstable, np.minimum(least, 0), least)
        return below(least, self.scale), -below(-np.maximum(start[1], end[1]), self.scale)

    def _value(self, z: Array, left: Array, right: Array) -> tuple[Array, Array]:
        """Value units below and above `max(left z, right z)`."""
        down, up = whole(z, -1, self.scale), whole(z, 1, self.scale)
        least = [scaled_slopes(down if s >= 0 else up, s) for s in (left, right)]
        most = [-scaled_slopes(-(up if s >= 0 else down), s) for s in (left, right)]
        return np.maximum(*least), np.maximum(*most)

    def _tighten_open(self, k: int, frame: Frame, lo: Array, hi: Array, refresh: Array) -> None:
        """Backward bounds of the neurons of node k whose sign is open, in place.

        A function of a function keeps its interval bounds.
        """
        if k not in self.starts:
            return
        regions, neurons = np.nonzero((lo <= 0) & (hi >= 0) & (lo < hi) & refresh[:, None])
        step = max(1, (1 << 17) // max(node.size for node in self.nodes[: k + 1]))
        for part in (slice(i, i + step) for i in range(0, len(regions), step)):
            r, j = regions[part], neurons[part]
            rows = self.pull(frame, self._neurons(k, r, j, frame), k - 1)
            value = self.minimum(frame, rows)
            lo[r, j] = np.fmax(lo[r, j], value[: len(r)])
            hi[r, j] = np.fmin(hi[r, j], -value[len(r) :])

    def _neurons(self, k: int, region: Array, neuron: Array, frame: Frame) -> ExactRows:
        """Rows `+v`, then `-v`, of neurons of node k over its inputs."""
        const = np.concatenate([b[neuron] for b in self.bias[k][1][2:]])
        both = np.concatenate([region, region])
        rows = ExactRows(both, {}, const, np.zeros(len(both), dtype=np.int64))
        for i, start in zip(self.nodes[k].inputs, self.starts[k], strict=True):
            a = start[neuron]
            self.push(rows, i, np.concatenate([a, -a]), frame)
            self._charge(rows, i, 1, frame)  # rounding down to units, either way
        return rows

    # ---- backward ------------------------------------------------------------------------------

    def no_coefficients(self, count: int) -> Array:
        return np.zeros((count, self.nodes[0].size), dtype=np.int64)

    def _kept(self, rows: Rows, a: Array, fits: Array) -> Array:
        """The rows with those zeroed that might overflow; they are given up."""
        if np.all(fits):
            return a
        rows.error = np.where(fits, rows.error, GIVEN_UP)
        return np.where(fits[:, None], a, 0)

    def _with_room(self, rows: Rows, k: int, a: Array, fits: Callable[[Array], Array], frame: Frame) -> Array:
        """Coefficients on node k in coarser units where they do not fit, with the row's others; given up at last."""
        assert isinstance(rows, ExactRows)
        for _ in range(MOST_COARSER):
            short = ~fits(a) & (rows.error < ROOM)
            if not np.any(short):
                break
            step = np.where(short, COARSER, 0).astype(np.int64)
            rows.coarse = rows.coarse + step
            a = a >> step[:, None]
            for i in rows.coef:
                rows.coef[i] = rows.coef[i] >> step[:, None]
            for i in (k, *rows.coef):  # rounded down to the new units
                before = rows.error
                self._charge(rows, i, 1, frame)
                rows.error = np.where(short, rows.error, before)
        return self._kept(rows, a, fits(a))

    def _pull_affine(self, k: int, a: Array, frame: Frame, rows: Rows) -> None:
        column, matrices = self.bias[k][0], self.adjoints[k]
        a = self._with_room(rows, k, a, lambda a: np.logical_and.reduce([m.fits(a) for m in matrices]), frame)
        self.add(rows, column.exactly(a, self.scale) << coarseness(rows).astype(object))
        for i, matrix in zip(self.nodes[k].inputs, matrices, strict=True):
            part, lost = matrix.times(a)
            self.push(rows, i, part, frame)
            self._charge(rows, i, lost, frame)

    def _pull_curve(self, k: int, a: Array, frame: Frame, rows: Rows) -> None:
        lines, region, source = frame.lines[k], rows.region, self.nodes[k].inputs[0]
        a = self._kept(rows, a, abs(a).max(axis=1, initial=0) < ROOM)
        negative = np.minimum(a, 0)
        low = rows.slopes[k] if k in rows.slopes else lines.low.take(region, axis=0)
        op = self.ops[k]
        least, most = (int(v * 2**SLOPE) for v in (op.left, op.right))
        slope = np.clip(np.floor(np.ldexp(low, SLOPE)).astype(np.int64), least, most)
        slope = np.where(a < 0, lines.up.take(region, axis=0), slope)
        self.add(rows, self._dot(rows, negative, lines.up_offset))
        self.push(rows, source, scaled_slopes(a, slope), frame)
        self._charge(rows, source, 1, frame)

    def _dot(self, rows: Rows, a: Array, values: Array) -> Array:
        """(R,) exact inner products of rows and their regions' `values (B, n)`, in units of constants."""
        if a.shape[1] > 1 << (53 - 2 * BITS - 1):
            raise ProofError("a layer is too wide for the exact mode")
        sums = [np.zeros(len(a), dtype=np.int64) for _ in range(2 * COUNT - 1)]
        second = [y.take(rows.region, axis=0) for y in limbs(values)]
        for i, x in enumerate(limbs(a)):
            for j, y in enumerate(second if x.any() else ()):
                sums[i + j] += np.einsum("ij,ij->i", x, y).astype(np.int64)
        total = sum((s.astype(object) << (BITS * k) for k, s in enumerate(sums)), np.zeros(len(a), dtype=object))
        return total << coarseness(rows).astype(object)

    def push(self, rows: Rows, i: int, part: Array, frame: Frame) -> None:
        """Add a coefficient block to node i; floats are short binary fractions (targets of tightenings)."""
        if part.dtype.kind == "f":
            part = np.ldexp(part, COEF).astype(np.int64)
        if i in rows.coef and rows.coef[i].dtype.kind == "f":
            rows.coef[i] = np.ldexp(rows.coef[i], COEF).astype(np.int64)
        part = self._kept(rows, part, abs(part).max(axis=1, initial=0) < ROOM)
        if i in rows.coef:
            part = rows.coef[i] + part
            part = self._kept(rows, part, abs(part).max(axis=1, initial=0) < ROOM)
        rows.coef[i] = part

    def _charge(self, rows: Rows, i: int, units: int, frame: Frame) -> None:
        """Coefficients on node i are off by less than so many of their units each."""
        size, coarse = frame.size[i][rows.region], coarseness(rows)
        known = size < ROOM // max(units, 1)
        lost = ((np.where(known, size, 0) * np.int64(units)) >> np.int64(self.scale)) + 1
        known &= lost < ROOM >> coarse
        # neither summand may be so large that the sum wraps: from ROOM on an error is none, whatever its size
        total = np.minimum(rows.error, ROOM) + np.where(known, lost << np.where(known, coarse, 0), ROOM)
        rows.error = np.where(total < ROOM, total, GIVEN_UP)

    def add(self, rows: Rows, value: Array) -> None:
        """Add to the constants."""
        rows.const = rows.const + value

    def minimum(self, frame: Frame, rows: Rows) -> Array:
        """(R,) floats at most the least values of the rows (over the input alone) on their regions' boxes."""
        a = rows.coef[0]
        a = self._kept(rows, a, abs(a).max(axis=1, initial=0) < ROOM)
        for part, values in (
            (np.maximum(a, 0), whole(frame.lower[0], -1, self.scale)),
            (np.minimum(a, 0), whole(frame.upper[0], 1, self.scale)),
        ):
            self.add(rows, self._dot(rows, part, values))
        return self._least(rows)

    def _sure(self, rows: Rows) -> Array:
        """(R,) Python integers: the constants without the errors; meaningless where a row was given up."""
        return rows.const.astype(object) - (rows.error.astype(object) << self.scale)

    def _least(self, rows: Rows) -> Array:
        """The constants without the errors, as floats."""
        shift, sure, known = COEF + self.scale, self._sure(rows), (rows.error < ROOM).tolist()
        return np.array([_float_below(v, 1, shift) if k else -np.inf for v, k in zip(sure, known, strict=True)])

    def near(self, rows: Rows, value: Array) -> list[int]:
        """As in `Enclosure`."""
        most = rows.const.astype(object) + (rows.error.astype(object) << self.scale)
        return [r for r in np.flatnonzero((value <= 0) & (rows.error < ROOM)).tolist() if most[r] >= 0]

    # ---- what the walk adds --------------------------------------------------------------------

    def functional(self, conjunction: Conjunction, weights: Array, region: Array, frame: Frame) -> Rows:
        """Rows `sum_i weights[r, i] g_i` of the exact constraints; weights as the floats they are."""
        count, last = len(weights), len(self.nodes) - 1
        y = np.zeros((count, self.nodes[last].size), dtype=np.int64)
        x = np.zeros((count, self.nodes[0].size), dtype=np.int64)
        const, error = np.zeros(count, dtype=object), np.zeros(count, dtype=np.int64)
        known: dict[bytes, tuple[dict[int, int], dict[int, int], int]] = {}
        for r in range(count):
            key = weights[r].tobytes()
            if key not in known:
                known[key] = _combined(conjunction, weights[r].tolist(), self.scale)
            cx, cy, c = known[key]
            if any(abs(v) >= ROOM for v in (*cx.values(), *cy.values())):
                error[r] = GIVEN_UP
                continue
            for row, side in ((x[r], cx), (y[r], cy)):
                for i, v in side.items():
                    row[i] = v
            const[r] = c
        rows = ExactRows(region, {last: y}, const, error)
        self._charge(rows, last, 1, frame)
        if any(cx for cx, _, _ in known.values()):  # what was rounded to nothing is charged, too
            self.push(rows, 0, x, frame)
            self._charge(rows, 0, 1, frame)
        return rows

    def add_literals(
        self, rows: Rows, row: Array, node: Array, index: Array, multiplier: Array, threshold: Array, frame: Frame
    ) -> None:
        """Add `multiplier (value - threshold)`, one entry per row and literal; multipliers are shortened to units."""
        scaled = np.trunc(np.ldexp(multiplier, COEF))
        total = np.zeros(len(rows.region))
        np.add.at(total, row, abs(scaled))
        units = np.where(total[row] < ROOM, scaled, 0.0).astype(np.int64)  # their sums have room; none is legal, too
        for k in np.unique(node).tolist():
            here = node == k
            block = np.zeros((len(rows.region), self.nodes[k].size), dtype=np.int64)
            np.add.at(block, (row[here], index[here]), units[here])
            self.push(rows, k, block, frame)
        shift = np.zeros(len(rows.region), dtype=object)
        for r, m, t in zip(row.tolist(), units.tolist(), threshold.tolist(), strict=True):
            if t:
                shift[r] += floor(-m * Fraction(t) * (1 << self.scale))
        self.add(rows, shift)

    def shortened(self, values: Array) -> Array:
        """Whole coefficient units, as floats; what has no room becomes 0. For numbers that may be any."""
        units = np.trunc(np.ldexp(values, COEF))
        return np.ldexp(np.where(abs(units) < ROOM, units, 0.0), -COEF)

    def least_on_hulls(self, frame: Frame, rows: Rows, start: int) -> Array:
        """As in `Enclosure`; the rows may still hold floats in whole units."""
        given_up = np.where(rows.error > 0, GIVEN_UP, 0).astype(np.int64)
        own = ExactRows(rows.region, {}, np.zeros(len(rows.region), dtype=object), given_up)
        for k, a in rows.coef.items():
            self.push(own, k, a, frame)
        for k in range(start, -1, -1):
            a = own.coef.pop(k, None)
            if a is None:
                continue
            if k and isinstance(self.ops[k], Affine):
                self._pull_affine(k, a, frame, own)
                continue
            a = self._kept(own, a, abs(a).max(axis=1, initial=0) < ROOM)
            self.add(own, self._dot(own, np.maximum(a, 0), whole(frame.lower[k], -1, self.scale)))
            self.add(own, self._dot(own, np.minimum(a, 0), whole(frame.upper[k], 1, self.scale)))
        return self._least(own)

    def add_cuts(self, rows: Rows, multipliers: Array, planes: dict[int, Array], shift: Array, frame: Frame) -> None:
        """Add inequalities `planes[k] (C, n) . v_k + shift (C,) <= 0` times `multipliers (R, C)`, shortened."""
        m = np.ldexp(self.shortened(multipliers), COEF).astype(np.int64)
        try:
            matrices = {k: Matrix.of(*dyadic(p)) for k, p in planes.items()}
            column = Matrix.of(*dyadic(shift[:, None]))
        except (ValueError, OverflowError) as error:
            raise ProofError(f"a cut does not fit the exact mode: {error}") from error
        m = self._kept(rows, m, np.logical_and.reduce([a.fits(m) for a in (column, *matrices.values())]))
        self.add(rows, column.exactly(m, self.scale))
        for k, matrix in matrices.items():
            part, lost = matrix.times(m)
            self.push(rows, k, part, frame)
            self._charge(rows, k, lost, frame)

    def cut(self, rows: Rows, part: Array, lo: Array, hi: Array) -> tuple[Array, Array]:
        """Shrink the boxes `lo, hi (B, n)` to where the rows `part (B,)` can be <= 0, outward."""
        a, sure = rows.coef[0][part], rows.error[part] < ROOM
        room = self._sure(rows)[part]
        first, last = whole(lo, -1, self.scale).astype(object), whole(hi, 1, self.scale).astype(object)
        wide = a.astype(object) << coarseness(rows)[part].astype(object)[:, None]
        least = np.where(a > 0, wide * first, wide * last)  # in units of 2**-(COEF + scale)
        others = (-room - least.sum(axis=1))[:, None] + least
        lo, hi = lo.copy(), hi.copy()
        for b, i in zip(*np.nonzero((a != 0) & sure[:, None]), strict=True):
            top, bottom = others[b, i], wide[b, i]  # a x <= top in units of 2**-scale
            if bottom > 0:
                hi[b, i] = min(hi[b, i], -_float_below(-top, bottom, self.scale))
            else:
                lo[b, i] = max(lo[b, i], _float_below(-top, -bottom, self.scale))
        return lo, hi


def _float_below(top: int, bottom: int, scale: int) -> float:
    """A float at most `top / bottom 2**-scale`, close to it."""
    units = (top << 24) // bottom
    if abs(units) >= 1 << 1000:
        return -np.inf
    near = float(units)
    if int(near) > units:
        near = float(np.nextafter(near, -np.inf))
    return float(np.ldexp(near, -(scale + 24)))


def _scale(network: Network, boxes: Sequence[Box]) -> int:
    """Bits after the point that leave room for the values on the boxes; an estimate in floats, nothing rests on it."""
    enclosure = Enclosure(network)
    far, flags = np.full((1, enclosure.width), np.inf), np.ones(1, dtype=bool)
    most = 1.0
    for box in boxes:
        frame, _ = enclosure.sweep((box.lo[None].copy(), box.hi[None].copy()), -far, far.copy(), ~flags, flags)
        most = max(most, *(float(m.sum(axis=1).max(initial=0)) for m in frame.magnitude))
    return int(np.clip(52 - ceil(log2(most)), LEAST_SCALE, MOST_SCALE)) if np.isfinite(most) else LEAST_SCALE


def _units(values: Array, shift: int, scale: int) -> Array:
    """int64 `floor(values 2**(scale - shift))` of an object array of integers; `OverflowError` without room."""
    move = scale - shift
    out = [v << move if move >= 0 else v >> -move for v in values.ravel().tolist()]
    if any(abs(v) >= ROOM for v in out):
        raise OverflowError("a number of the network is too large")
    return np.array(out, dtype=np.int64).reshape(values.shape)


def _combined(
    conjunction: Conjunction, weights: Sequence[float], scale: int
) -> tuple[dict[int, int], dict[int, int], int]:
    """Coefficients and constant of the weighted constraints in their units, rounded down."""
    sums: tuple[dict[int, Fraction], dict[int, Fraction]] = {}, {}
    const = Fraction(0)
    for w, (cx, cy, c) in zip(weights, conjunction.proved, strict=True):
        if w:
            own = Fraction(w) * (1 << COEF)
            const += own * c
            for total, side in zip(sums, (cx, cy), strict=True):
                for i, v in side.items():
                    total[i] = total.get(i, Fraction(0)) + own * v
    x, y = ({i: floor(v) for i, v in total.items()} for total in sums)
    return x, y, floor(const * (1 << scale))
