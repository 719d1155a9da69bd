"""Is the canonical network exactly the stored one, over the rationals?

The same walk as `mucg4.check.confirm`, on fractions: at every cut both sides are evaluated at free random dyadic
numbers and have to be equal. Two different affine maps agree at a random point of these with probability below 1e-8,
and there are several. What folding rounded shows as a difference; what has no rational value is refused by name.
Sums of products are sums of integers over one denominator (`mucg4.check.values.scaled`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np

from mucg4.check.canonical import Known, work
from mucg4.check.confirm import Differs, Walk
from mucg4.check.reading import Reading
from mucg4.check.values import OPAQUE, fractions, opaque, scaled
from mucg4.errors import InputError
from mucg4.model.network import Network
from mucg4.ops.affine import Concat, Dense, Index, Place, Reduce, RowDense, Scale, Sum
from mucg4.ops.base import Array, Op
from mucg4.ops.conv import Conv, ConvTranspose
from mucg4.ops.piecewise import TwoPiece

MOST_PRODUCTS = 40_000_000  # of integers, in one comparison: some ten seconds of one core; not measured as a choice
PER_PRODUCT = 100  # operations of the second reading, as `Reading` counts them; not measured
# largest numerator and the denominator; every other point mirrors the one before it; not measured
POINTS = ((2**20, 2**10), (2**20, 2**10), (2**60, 2**10), (2**60, 2**10), (2**20, 1), (2**20, 1))
FEWEST = 2  # points at least; not measured
WHOLE: dict[str, Callable[[Fraction], int]] = {"Floor": floor, "Round": round, "Trunc": int}


def exactly_equal(data: bytes, network: Network, products: int = MOST_PRODUCTS) -> str | None:
    """None when the canonical network equals the network in the ONNX bytes `data` over the rationals, else why not.

    Functions without rational values are compared as what they are called: see `mucg4.check.values.opaque`. Work is
    limited to so many `products` of integers, counted: the answer is the same everywhere and every time. Never raises
    for a bad model.
    """
    points = min(len(POINTS), products // (2 * work(network)))
    if points < FEWEST:
        return f"{work(network)} products a point are too many to compare exactly"
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(data).digest()[8:16], "little"))
    try:
        reading = Reading(data, PER_PRODUCT * products, exact=True, inputs=network.inputs)
        walk = _ExactWalk(network, reading, random, (0, points))
        start = np.full((points, network.input_size), Fraction(0), dtype=object)
        walk.finish(reading.run(start, walk.seen))
    except (Differs, InputError) as error:
        return str(error)
    lines = [*reading.fallback, *walk.unseen]
    return lines[0] if lines else None


class _ExactWalk(Walk):
    """The walk on fractions: all points are free, and equal means equal."""

    def _free(self, true: Array) -> Array:
        out = np.empty((self.free, *true.shape[1:]), dtype=object)
        for row, (most, below) in enumerate(POINTS[: self.free]):
            numbers = self.random.integers(-most, most, size=out[row].size, endpoint=True).tolist()
            out[row] = np.array([Fraction(n, below) for n in numbers], dtype=object).reshape(out[row].shape)
            if row % 2:
                out[row] = -out[row - 1]
        return out

    def _evaluate(self, op: Op, xs: Sequence[Known]) -> Known:
        return evaluate_exactly(op, [x for x, _ in xs]), None

    def _judge(self, name: str, k: int, mine: Array, other: Array, second: Array | None) -> None:
        wrong = np.asarray(mine != other, dtype=bool)
        if wrong.any() and self._rectified(name, k):
            some = wrong.any(axis=0)
            wrong = np.asarray(mine * (mine > 0) != other, dtype=bool) & some
            self._tried(name, np.asarray(mine > 0, dtype=bool)[:, some])
        if wrong.any():
            row, i = (int(v[0]) for v in np.nonzero(wrong))
            gap = float(mine[row, i] - other[row, i])
            raise Differs(f"tensor {name!r}[{i}] is not exactly what is stored: the difference is {gap:.3g}")
        self.compared += mine.size


def evaluate_exactly(op: Op, xs: Sequence[Array]) -> Array:
    """A canonical operator on object arrays `(points, n)` of fractions. Raises `Differs` when it has no exact value."""
    if isinstance(op, TwoPiece):
        return np.where(xs[0] > 0, xs[0] * Fraction(op.right), xs[0] * Fraction(op.left))
    if op.kind == "Product":
        return xs[0] * xs[1]
    if op.kind == "Square":
        return xs[0] * xs[0]
    if op.kind in OPAQUE and not op.parameters():
        return opaque(op.kind, xs[0])
    if op.kind == "Sign":
        one: Any = Fraction(1)
        return one * (xs[0] > 0) - one * (xs[0] < 0)
    if op.kind in WHOLE:
        out, step = np.empty(xs[0].shape, dtype=object), WHOLE[op.kind]
        out.ravel()[:] = [Fraction(step(x)) for x in xs[0].ravel()]
        return out
    v = _linear(op, xs)
    bias = op.bias()  # type: ignore[attr-defined]
    return v if bias is None or not np.any(bias) else v + fractions(bias)


def _linear(op: Op, xs: Sequence[Array]) -> Array:
    if isinstance(op, (Dense, RowDense, Conv, ConvTranspose)):
        (weight, p), (x, q) = scaled(op.weight), scaled(xs[0])
        return replace(op, weight=weight).linear([x]) * Fraction(1, p * q)
    if isinstance(op, Scale):
        return xs[0] * fractions(op.scale)
    if isinstance(op, Sum):
        total = xs[0] * Fraction(op.signs[0])
        for x, s in zip(xs[1:], op.signs[1:], strict=True):
            total = total + x * Fraction(s)
        return total
    if isinstance(op, Reduce):
        return replace(op, factor=1).linear(xs) * Fraction(op.factor)
    if isinstance(op, (Index, Concat, Place)):
        return op.linear(xs)
    raise Differs(f"operator {op.kind} has no exact value")
