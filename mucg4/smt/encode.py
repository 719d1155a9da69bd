"""Exact rational encoding of a small piecewise linear network on one box.

Every value of the network is written as an exact affine row over *atoms*: the inputs, and one atom per
elementwise output whose argument can have either sign on the box. Signs that exact interval arithmetic
decides are substituted away, so atoms stand for the undecided ("unstable") neurons only. All numbers are
the rationals of the stored doubles; the box is the hull `Box.lo`, `Box.hi`.

The real relation `h = max(left z, right z)` of an atom h is the *relaxation* `h >= left z`, `h >= right z`,
`h <= chord(z)`, plus one of two phases: active (`z >= 0`, `h <= right z`) or inactive (`z <= 0`, `h <= left z`).
With all phases chosen the system is exact; with some it is a linear over-approximation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, isfinite
from typing import NamedTuple

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.limits.budget import Budget
from mucg4.model.network import Network
from mucg4.model.query import Box
from mucg4.ops.arrays import FloatArray
from mucg4.ops.base import Affine
from mucg4.ops.piecewise import TwoPiece

MAX_WEIGHTS = 4000  # nonzero coefficients of all affine nodes; see the measurement in `mucg4.smt.smt`; measured
MAX_UNSTABLE = 60  # neurons whose phase is open on the whole box; measured: see the module text of `mucg4.smt.smt`
SHORT = 8  # significant bits of the upper lines; not measured
MAX_CELLS = 2**20  # entries of one affine node's matrix while it is being expanded; not measured

Literal = tuple[int, int, int]  # (network node of the pre-activation, neuron, +1 active or -1 inactive)


class Row(NamedTuple):
    """`sum coeffs[a] * atom_a + constant`, exact."""

    coeffs: dict[int, Fraction]
    constant: Fraction


class Atom(NamedTuple):
    """A free value: an input (`argument` None), or the output of a two-piece function of the row `argument`."""

    low: Fraction
    high: Fraction
    literal: tuple[int, int] | None = None  # (pre-activation node, neuron) that owns the phase
    argument: Row | None = None
    left: Fraction = Fraction(0)
    right: Fraction = Fraction(0)
    z_low: Fraction = Fraction(0)
    z_high: Fraction = Fraction(0)


@dataclass
class Encoding:
    """Atoms, the rows of every network node, and for decided neurons their sign.

    `unstable` maps (pre-activation node, neuron) to the positions of the atoms that depend on it;
    `decided` maps the others to +1 (z >= 0 on the box) or -1 (z <= 0 on the box).
    """

    atoms: list[Atom] = field(default_factory=list)
    rows: list[list[Row]] = field(default_factory=list)
    unstable: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    decided: dict[tuple[int, int], int] = field(default_factory=dict)

    def bounds(self, row: Row) -> tuple[Fraction, Fraction]:
        """Exact interval of a row over the atoms' ranges."""
        low = high = row.constant
        for a, c in row.coeffs.items():
            p, q = c * self.atoms[a].low, c * self.atoms[a].high
            low, high = (low + p, high + q) if c > 0 else (low + q, high + p)
        return low, high

    def argument_of(self, key: tuple[int, int]) -> Row:
        """The pre-activation row of a neuron."""
        return self.rows[key[0]][key[1]]


def exact_matrices(network: Network) -> list[list[list[list[tuple[int, float]]]]]:
    """Per node, per input, per output neuron the nonzero `(column, weight)` pairs; [] for other nodes.

    Raises `UnsupportedError` for an operator that is neither affine nor two-piece, and beyond `MAX_WEIGHTS`.
    """
    out: list[list[list[list[tuple[int, float]]]]] = []
    total = 0
    for node in network.nodes:
        if node.op is None or isinstance(node.op, TwoPiece):
            out.append([])
            continue
        if not isinstance(node.op, Affine):
            raise UnsupportedError(f"the smt engine has no rule for operator {node.op.kind} (node {node.name!r})")
        sizes = [network.nodes[i].size for i in node.inputs]
        if node.size * max(sizes) > MAX_CELLS:
            raise UnsupportedError(f"the smt engine is limited to {MAX_WEIGHTS} weights; this network has more")
        parts = []
        for i in range(len(sizes)):
            image = node.op.linear([np.eye(n) if j == i else np.zeros((sizes[i], n)) for j, n in enumerate(sizes)])
            if not np.all(np.isfinite(image)):
                raise InputError(f"node {node.name!r} has a weight that is not finite")
            total += int(np.count_nonzero(image))
            parts.append([_nonzero(column) for column in image.T])
        if total > MAX_WEIGHTS:
            raise UnsupportedError(f"the smt engine is limited to {MAX_WEIGHTS} weights; this network has more")
        out.append(parts)
    return out


def _nonzero(column: FloatArray) -> list[tuple[int, float]]:
    where = np.flatnonzero(column)
    return list(zip(where.tolist(), column[where].tolist(), strict=True))


def encode(network: Network, box: Box, budget: Budget) -> Encoding:
    """The encoding on a nonempty box. Raises `UnsupportedError` beyond the limits above, `BudgetError`."""
    lo, hi = box.lo.tolist(), box.hi.tolist()
    if not all(isfinite(v) for v in (*lo, *hi)):
        raise UnsupportedError("the smt engine needs a bounded input box")
    e = Encoding()
    for k, matrices in enumerate(exact_matrices(network)):
        budget.poll()
        node = network.nodes[k]
        if node.op is None:
            e.atoms = [Atom(Fraction(a), Fraction(b)) for a, b in zip(lo, hi, strict=True)]
            e.rows.append([Row({i: Fraction(1)}, Fraction(0)) for i in range(node.size)])
        elif isinstance(node.op, TwoPiece):
            e.rows.append([_two_piece(e, node.op, node.inputs[0], j) for j in range(node.size)])
        else:
            assert isinstance(node.op, Affine)
            bias = node.op.bias()
            offsets = np.zeros(node.size) if bias is None else np.asarray(bias)
            if not np.all(np.isfinite(offsets)):
                raise InputError(f"node {node.name!r} has a bias that is not finite")
            e.rows.append([_combine(e, node.inputs, matrices, j, float(offsets[j])) for j in range(node.size)])
    return e


def _combine(
    e: Encoding, inputs: tuple[int, ...], matrices: list[list[list[tuple[int, float]]]], j: int, bias: float
) -> Row:
    coeffs: dict[int, Fraction] = {}
    constant = Fraction(bias)
    for i, matrix in zip(inputs, matrices, strict=True):
        for column, weight in matrix[j]:
            w, row = Fraction(weight), e.rows[i][column]
            constant += w * row.constant
            for a, c in row.coeffs.items():
                coeffs[a] = coeffs.get(a, Fraction(0)) + w * c
    return Row({a: c for a, c in coeffs.items() if c}, constant)


def _two_piece(e: Encoding, op: TwoPiece, source: int, j: int) -> Row:
    z, key = e.rows[source][j], (source, j)
    low, high = e.bounds(z)
    left, right = Fraction(op.left), Fraction(op.right)
    if low >= 0 or high <= 0:
        slope = right if low >= 0 else left
        e.decided[key] = 1 if low >= 0 else -1
        return Row({a: c * slope for a, c in z.coeffs.items() if slope}, z.constant * slope)
    ends = max(left * low, right * low), max(left * high, right * high)
    e.unstable.setdefault(key, []).append(len(e.atoms))
    if len(e.unstable) > MAX_UNSTABLE:
        raise UnsupportedError(f"the smt engine is limited to {MAX_UNSTABLE} neurons of open phase; here are more")
    bottom = min(*ends, Fraction(0))
    e.atoms.append(Atom(bottom, max(ends), key, z, left, right, low, high))
    return Row({len(e.atoms) - 1: Fraction(1)}, Fraction(0))


def constraint_rows(
    e: Encoding, exact: tuple[tuple[dict[int, Fraction], dict[int, Fraction], Fraction], ...]
) -> list[Row]:
    """A conjunction's constraints (see `Conjunction.proved`) as rows over the atoms."""
    out = []
    for cx, cy, constant in exact:
        coeffs: dict[int, Fraction] = {}
        for rows, cs in ((e.rows[0], cx), (e.rows[-1], cy)):
            for i, w in cs.items():
                constant = constant + w * rows[i].constant
                for a, c in rows[i].coeffs.items():
                    coeffs[a] = coeffs.get(a, Fraction(0)) + w * c
        out.append(Row({a: c for a, c in coeffs.items() if c}, constant))
    return out


def chord(atom: Atom) -> tuple[Fraction, Fraction]:
    """Slope and offset of an upper line of an unstable atom on its argument's range.

    Rounded to short numbers, outward: chords with long denominators make exact pivoting explode, and
    the phases alone make the system exact.
    """
    slope = atom.left + (atom.right - atom.left) * short(atom.z_high / (atom.z_high - atom.z_low))
    return slope, short(max((atom.left - slope) * atom.z_low, (atom.right - slope) * atom.z_high))


def short(value: Fraction) -> Fraction:
    """A binary fraction of at most `SHORT` significant bits, at least `value` and close to it."""
    if not value:
        return value
    scale = Fraction(2) ** (SHORT - (abs(value.numerator).bit_length() - value.denominator.bit_length()))
    return Fraction(ceil(value * scale)) / scale
