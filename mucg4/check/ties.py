"""Refutations that hold by a hair or by equality, decided in exact rational arithmetic, one row at a time.

In floating point a refutation needs a bound that exceeds its error. Where the bound is within its error of zero this
module evaluates it once more without any: the row is pulled back over Python integers with one common denominator per
row, lines are made anew from the region's bounds (which as floats are exact numbers), stated numbers are the exact
decimals. Then

    value > 0 refutes the conjunction, and value >= 0 does when some STRICT constraint has a positive weight:

on a point of the unsafe set `sum_i w_i g_i < 0` if one of the `g_i < 0` with w_i > 0 is strict, while literals add
nothing positive (`beta (z - t) <= 0`) and the bound says `sum_i w_i g_i + sum beta (z - t) >= value`.

What is exact. Weights and biases as the network holds them, which have been found to make the function of the file over
the rationals (`mucg4.check.exactly`): no rounding of the reader is left that would need a charge. Bounds of neurons are
the region's; those of maps of the input alone are derived anew, exactly. Chords are exact where few are needed, else
their slope is a float and the offset is exact for that slope; lower slopes are floats. All are legal choices, so none
of them is believed.

What is asked at the very end of a function's image (a probability below 0) no line around it decides: there the row
is pulled back to the last functions only, whose images are exact numbers (`IMAGES`).

Search and checker share this module: the search asks before it splits a region for ever, the checker on its own bounds.
Networks are small (`MOST_CELLS`), of two-piece neurons or, where images are asked, of functions that have one; for
others nothing is decided here. All limits are counts, so a proof is accepted or not, whatever the machine and its load.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from math import gcd, isfinite, lcm
from typing import NamedTuple

import numpy as np

from mucg4.model.network import Network
from mucg4.model.query import Conjunction
from mucg4.ops.base import Affine, Array, Op
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

MOST_CELLS = 1 << 17  # numbers in all matrices together; not measured
# of integers, in the comparison with the stored network: about a second; not measured as a choice
MOST_PRODUCTS = 4_000_000
# the least and the largest value that a function comes near, where that is a number; given
IMAGES: dict[str, tuple[int | None, int | None]] = {
    "Sigmoid": (0, 1),
    "Tanh": (-1, 1),
    "Erf": (-1, 1),
    "Softsign": (-1, 1),
    "Sin": (-1, 1),
    "Cos": (-1, 1),
    "Sign": (-1, 1),
    "Softplus": (0, None),
    "Exp": (0, None),
    "Sqrt": (0, None),
    "Square": (0, None),
}
EXACT_CHORDS = 16  # per row and node: their denominators multiply; not measured


class Literal(NamedTuple):
    """`multiplier * (value[component] - threshold)` is added; `multiplier` is positive for `<=`, negative for `>=`."""

    node: int
    component: int
    multiplier: float
    threshold: float


@dataclass(frozen=True, eq=False)
class Row:
    """Integers over one positive denominator."""

    top: Array  # (n,) object
    bottom: int

    def plus(self, other: Row) -> Row:
        """The sum."""
        bottom = lcm(self.bottom, other.bottom)
        return Row(self.top * (bottom // self.bottom) + other.top * (bottom // other.bottom), bottom).reduced()

    def reduced(self) -> Row:
        """Without common factors."""
        common = gcd(self.bottom, *self.top.tolist())
        return self if common == 1 else Row(self.top // common, self.bottom // common)

    def dot(self, values: Sequence[Fraction]) -> Fraction:
        """The inner product with as many numbers."""
        return sum((t * v for t, v in zip(self.top.tolist(), values, strict=True) if t), Fraction(0)) / self.bottom


def row_of(values: Sequence[Fraction]) -> Row:
    """The same numbers over their common denominator."""
    bottom = lcm(*(v.denominator for v in values))
    top = np.empty(len(values), dtype=object)
    top[:] = [v.numerator * (bottom // v.denominator) for v in values]
    return Row(top, bottom)


def dyadic(values: Array) -> tuple[Array, int]:
    """Integers (object array of the same shape) and q with `values == integers / 2**q`; `ValueError` if not finite."""
    values = np.asarray(values, dtype=np.float64)
    pairs = [v.as_integer_ratio() if isfinite(v) else None for v in values.ravel().tolist()]
    if any(p is None for p in pairs):
        raise ValueError("a number is not finite")
    q = max((p[1].bit_length() - 1 for p in pairs if p), default=0)
    out = np.empty(values.shape, dtype=object)
    out.ravel()[:] = [(p[0] << q) // p[1] for p in pairs if p]
    return out, q


class ExactNetwork:
    """A network's numbers as integers. `of` says whether it can be had."""

    def __init__(self, network: Network) -> None:
        """Raises `ValueError` when a number is not finite."""
        self.network = network
        self.maps: dict[int, tuple[list[Array], int]] = {}  # matrices (inputs, outputs) times 2**-q
        self.bias: dict[int, list[Fraction]] = {}
        for k, node in enumerate(network.nodes):
            if isinstance(node.op, Affine):
                sizes = [network.nodes[i].size for i in node.inputs]
                self.maps[k] = self._matrices(node.op, sizes)
                b = node.op.bias()
                self.bias[k] = [] if b is None else [Fraction(v) for v in np.asarray(b, dtype=np.float64).tolist()]

    @staticmethod
    def of(network: Network) -> ExactNetwork | None:
        """None for networks that are too large, of functions without image, or hold numbers that were computed."""
        cells = 0
        for node in network.nodes[1:]:
            if not isinstance(node.op, (Affine, TwoPiece)) and (node.op is None or node.op.kind not in IMAGES):
                return None
            cells += node.size * sum(network.nodes[i].size for i in node.inputs) * isinstance(node.op, Affine)
        if cells > MOST_CELLS or not _is_stored(network):
            return None
        try:
            return ExactNetwork(network)
        except (ValueError, OverflowError):
            return None

    @cached_property
    def is_piecewise(self) -> bool:
        """Whether `value` can be asked: there are two-piece neurons only."""
        return all(isinstance(node.op, (Affine, TwoPiece)) for node in self.network.nodes[1:])

    @cached_property
    def work(self) -> int:
        """Products of one evaluation."""
        return sum(m.size for matrices, _ in self.maps.values() for m in matrices)

    @staticmethod
    def _matrices(op: Affine, sizes: list[int]) -> tuple[list[Array], int]:
        """The images of unit vectors, which are exact in floating point: sums of one number and zeros."""
        images = []
        for i, n in enumerate(sizes):
            units = [np.eye(n) if j == i else np.zeros((n, s)) for j, s in enumerate(sizes)]
            images.append(op.linear(units))
        pairs = [dyadic(m) for m in images]
        q = max(p[1] for p in pairs)
        return [m * (1 << (q - own)) for m, own in pairs], q

    def value(
        self,
        conjunction: Conjunction,
        weights: Sequence[float],
        box: tuple[Array, Array],
        bounds: dict[int, tuple[Array, Array]],
        slopes: dict[int, Array],
        literals: Sequence[Literal] = (),
    ) -> Fraction:
        """The exact lower bound of `sum_i weights[i] g_i + literals` over the region.

        `box (d,)` pair; `bounds[k] (n,)` pairs for every pre-activation that is no input, `slopes[k] (n,)` the lower
        slopes of two-piece node k: any between its pieces' are legal whatever the argument's sign.
        """
        nodes, pending, const = self.network.nodes, *self._start(conjunction, weights, literals)
        corners: dict[bool, list[Fraction]] = {}
        for k in range(len(nodes) - 1, 0, -1):
            row = pending.pop(k, None)
            if row is None or not row.top.any():
                continue
            op, inputs = nodes[k].op, nodes[k].inputs
            if isinstance(op, TwoPiece):
                row, more = self._bend(k, op, row, box, bounds.get(inputs[0], box), slopes.get(k))
                const, parts = const + more, [row]
            else:
                more, parts = self._back(k, row)
                const += more
            for i, part in zip(inputs, parts, strict=True):
                pending[i] = pending[i].plus(part) if i in pending else part
        first = pending.get(0)
        if first is not None:
            for side in (False, True):
                corners[side] = [Fraction(v) for v in box[side].tolist()]
            ends = [corners[t < 0][j] for j, t in enumerate(first.top.tolist())]
            const += first.dot(ends)
        return const

    def image(self, conjunction: Conjunction, weights: Sequence[float], box: tuple[Array, Array]) -> Fraction | None:
        """A lower bound of `sum_i weights[i] g_i` by the images of the functions that come last; None: there is none.

        `box (d,)` pair: the inputs, as far as they are read by nothing but affine maps.
        """
        nodes, (pending, const) = self.network.nodes, self._start(conjunction, weights, ())
        for k in range(len(nodes) - 1, -1, -1):
            row = pending.pop(k, None)
            if row is None or not row.top.any():
                continue
            op = nodes[k].op
            if isinstance(op, Affine):
                more, parts = self._back(k, row)
                const += more
                for i, part in zip(nodes[k].inputs, parts, strict=True):
                    pending[i] = pending[i].plus(part) if i in pending else part
                continue
            top = row.top.tolist()
            ends = [_end(op, j, t < 0, box) if t else Fraction(0) for j, t in enumerate(top)]
            if None in ends:
                return None
            const += row.dot([e or Fraction(0) for e in ends])
        return const

    def _back(self, k: int, row: Row) -> tuple[Fraction, list[Row]]:
        """A row on an affine node: what its bias adds, and rows on its inputs."""
        matrices, q = self.maps[k]
        more = row.dot(self.bias[k]) if self.bias[k] else Fraction(0)
        return more, [Row(m @ row.top, row.bottom << q).reduced() for m in matrices]

    def _start(
        self, conjunction: Conjunction, weights: Sequence[float], literals: Sequence[Literal]
    ) -> tuple[dict[int, Row], Fraction]:
        """The functional's rows per node and its constant."""
        nodes, const = self.network.nodes, Fraction(0)
        sums: dict[int, dict[int, Fraction]] = {}
        for w, (cx, cy, c) in zip(weights, conjunction.proved, strict=True):
            own = Fraction(w)
            const += own * c
            for k, side in ((0, cx), (len(nodes) - 1, cy)) if own else ():
                for i, v in side.items():
                    sums.setdefault(k, {})[i] = sums.setdefault(k, {}).get(i, Fraction(0)) + own * v
        for literal in literals:
            own = Fraction(literal.multiplier)
            const -= own * Fraction(literal.threshold)
            at = sums.setdefault(literal.node, {})
            at[literal.component] = at.get(literal.component, Fraction(0)) + own
        rows = {k: row_of([at.get(i, Fraction(0)) for i in range(nodes[k].size)]) for k, at in sums.items()}
        return rows, const

    def _bend(
        self,
        k: int,
        op: TwoPiece,
        row: Row,
        box: tuple[Array, Array],
        bounds: tuple[Array, Array],
        slopes: Array | None,
    ) -> tuple[Row, Fraction]:
        """The row on a two-piece node as one on its argument, and what its upper lines add."""
        left, right, const = Fraction(op.left), Fraction(op.right), Fraction(0)
        top, factors = row.top.tolist(), [Fraction(0)] * len(row.top)
        negative = int(((row.top < 0) & (bounds[0] < 0) & (bounds[1] > 0)).sum())
        for j, t in enumerate(top):
            if not t:
                continue
            lo, hi = self._hull(self.network.nodes[k].inputs[0], j, box, bounds)
            if lo is None or hi is None:  # unbounded on one side: only a lower line is known
                if t < 0:
                    raise OverflowError("a neuron has no bounds")
                lo, hi = Fraction(-1), Fraction(1)
            if t > 0 and slopes is not None:
                factors[j] = min(max(Fraction(float(slopes[j])), left), right)
            elif lo >= 0 or hi <= 0:
                factors[j] = right if lo >= 0 else left
            elif t > 0:
                factors[j] = min(max(Fraction(0), left), right)
            else:
                chord = (right * hi - left * lo) / (hi - lo)
                if negative > EXACT_CHORDS:
                    chord = min(max(Fraction(float(chord)), left), right)
                const += t * max((left - chord) * lo, (right - chord) * hi)
                factors[j] = chord
        bottom = lcm(*(f.denominator for f in factors))
        new = np.empty(len(top), dtype=object)
        new[:] = [t * f.numerator * (bottom // f.denominator) for t, f in zip(top, factors, strict=True)]
        return Row(new, row.bottom * bottom).reduced(), const / row.bottom

    def _hull(
        self, node: int, j: int, box: tuple[Array, Array], bounds: tuple[Array, Array]
    ) -> tuple[Fraction | None, Fraction | None]:
        """Bounds of one argument; exact ones where it is a map of the input alone. None where there is none."""
        lo, hi = (Fraction(float(v[j])) if isfinite(v[j]) else None for v in bounds)
        if self.network.nodes[node].inputs == (0,) and node in self.maps:
            (matrix,), q = self.maps[node]
            low = up = self.bias[node][j] if self.bias[node] else Fraction(0)
            for i in np.flatnonzero(matrix[:, j] != 0).tolist():
                w = Fraction(matrix[i, j], 1 << q)
                ends = w * Fraction(float(box[0][i])), w * Fraction(float(box[1][i]))
                low, up = low + min(ends), up + max(ends)
            lo, hi = low if lo is None else max(lo, low), up if hi is None else min(hi, up)
        return lo, hi


def _end(op: Op | None, j: int, upper: bool, box: tuple[Array, Array]) -> Fraction | None:
    """The least or (`upper`) the largest value of component j of an input or a function; None where there is none."""
    if op is None:
        end = float(box[upper][j])
        return Fraction(end) if isfinite(end) else None
    if isinstance(op, TwoPiece):
        ends = (0 if op.left <= 0 <= op.right else None), (0 if op.right <= 0 <= op.left else None)
    else:
        ends = IMAGES[op.kind]
    return None if ends[upper] is None else Fraction(ends[upper])  # type: ignore[arg-type]


def _is_stored(network: Network) -> bool:
    """Whether the network is exactly the stored one, by an exact comparison."""
    from mucg4.check.exactly import exactly_equal

    return bool(network.model_bytes) and exactly_equal(network.model_bytes, network, MOST_PRODUCTS) is None


def refutes(conjunction: Conjunction, weights: Sequence[float], value: Fraction) -> bool:
    """Whether an exact bound of the weighted constraints refutes the conjunction; see the module text."""
    strict = any(s and w > 0 for s, w in zip(conjunction.strict.tolist(), weights, strict=True))
    return value > 0 or (strict and value >= 0)
