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

from dataclasses import field
from fractions import Fraction
from math import ceil, isfinite
from typing import NamedTuple

import numpy as np

from mucg4.check.enclose import Enclosure
from mucg4.errors import InputError, UnsupportedError
from mucg4.limits.budget import Budget
from mucg4.model.network import Network
from mucg4.model.query import Box
from mucg4.ops.arrays import FloatArray
from mucg4.ops.base import Affine
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

MAX_WEIGHTS = 4000  # nonzero coefficients of all affine nodes; see the measurement in `mucg4.smt.smt`; measured
MAX_UNSTABLE = 60  # neurons whose phase is open on the whole box; measured: see the module text of `mucg4.smt.smt`
SHORT = 8  # significant bits of the upper lines; not measured
MAX_CELLS = 2**20  # entries of one affine node's matrix while it is being expanded; not measured

Bounds = dict[int, tuple[FloatArray, FloatArray]]  # pre-activation node -> sound lower and upper bounds (size,)
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
    known: Bounds = field(default_factory=dict)
    box: tuple[FloatArray, FloatArray] = (np.zeros(0), np.zeros(0))

    def bounds(self, row: Row) -> tuple[Fraction, Fraction]:
        """Exact interval of a row over the atoms' ranges."""
        low = high = row.constant
        for a, c in row.coeffs.items():
            p, q = c * self.atoms[a].low, c * self.atoms[a].high
            low, high = (low + p, high + q) if c > 0 else (low + q, high + p)
        return low, high

    def range_of(self, key: tuple[int, int]) -> tuple[Fraction, Fraction]:
        """Exact interval of a neuron's argument, within the bounds that are known."""
        low, high = self.bounds(self.argument_of(key))
        if key[0] in self.known:
            ends = [float(side[key[1]]) for side in self.known[key[0]]]
            low, high = (
                f(a, Fraction(b)) if isfinite(b) else a for f, a, b in zip((max, min), (low, high), ends, strict=True)
            )
        return low, high

    def argument_of(self, key: tuple[int, int]) -> Row:
        """The pre-activation row of a neuron."""
        return self.rows[key[0]][key[1]]


def exact_matrices(network: Network) -> list[list[list[list[tuple[int, float]]]]]:
    """Per node, per input, per output neuron the nonzero `(column, weight)` pairs; [] for other nodes.

    Raises `UnsupportedError` beyond `MAX_WEIGHTS`.
    """
    out: list[list[list[list[tuple[int, float]]]]] = []
    total = 0
    for node in network.nodes:
        if node.op is None or isinstance(node.op, TwoPiece):
            out.append([])
            continue
        assert isinstance(node.op, Affine)
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


def enclosure_of(network: Network) -> Enclosure:
    """The checker's bounds of a network. Raises `UnsupportedError` for operators that it does not know."""
    for node in network.nodes:
        if node.op is not None and not isinstance(node.op, (Affine, TwoPiece)):
            raise UnsupportedError(f"the smt engine has no rule for operator {node.op.kind} (node {node.name!r})")
    return Enclosure(network)


def root_bounds(enclosure: Enclosure, box: Box) -> Bounds:
    """The checker's own bounds of all pre-activations on a box, as it derives them at the root of a proof."""
    far = np.full((1, enclosure.width), np.inf)
    ends, yes = (box.lo[None].copy(), box.hi[None].copy()), np.array([True])
    low, up = -far, far.copy()
    with np.errstate(all="ignore"):
        enclosure.sweep(ends, low, up, yes, yes)
    return {k: (low[0, s], up[0, s]) for k, s in enclosure.slot.items()}


def open_neurons(network: Network, box: Box) -> int:
    """How many neurons can have either sign on a box, as far as the checker's bounds tell."""
    return _open(root_bounds(enclosure_of(network), box))


def _limited(count: int) -> None:
    if count > MAX_UNSTABLE:
        text = f"the smt engine is limited to {MAX_UNSTABLE} neurons of open phase; here are {count} after bounding"
        raise UnsupportedError(text)


def _open(bounds: Bounds) -> int:
    return sum(int(((low < 0) & (up > 0)).sum()) for low, up in bounds.values())


def encode(network: Network, box: Box, budget: Budget, enclosure: Enclosure) -> Encoding:
    """The encoding on a nonempty box. The checker's bounds are derived first: they decide phases and shorten lines.

    Raises `UnsupportedError` beyond the limits above, `BudgetError`.
    """
    lo, hi = box.lo.tolist(), box.hi.tolist()
    if not all(isfinite(v) for v in (*lo, *hi)):
        raise UnsupportedError("the smt engine needs a bounded input box")
    weights = exact_matrices(network)
    e = Encoding(known=root_bounds(enclosure, box), box=(box.lo, box.hi))
    _limited(_open(e.known))
    for k, matrices in enumerate(weights):
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
    _limited(len(e.unstable))  # inputs that are bent at once have phases, too
    return e


def _combine(
    e: Encoding, inputs: tuple[int, ...], matrices: list[list[list[tuple[int, float]]]], j: int, bias: float
) -> Row:
    parts = [
        (weight.as_integer_ratio(), e.rows[i][column])
        for i, matrix in zip(inputs, matrices, strict=True)
        for column, weight in matrix[j]
    ]
    # stored doubles and what is made of them have denominators 2^n: sums of whole numbers are exact and cheap
    own = bias.as_integer_ratio()
    depth = [max((c.denominator for c in (*row.coeffs.values(), row.constant)), default=1) for _, row in parts]
    whole = max([own[1], *(q * d for (_, q), d in zip((w for w, _ in parts), depth, strict=True))])
    constant = own[0] * (whole // own[1])
    sums: dict[int, int] = {}
    for (p, q), row in parts:
        scale = whole // q
        constant += p * row.constant.numerator * (scale // row.constant.denominator)
        for a, c in row.coeffs.items():
            sums[a] = sums.get(a, 0) + p * c.numerator * (scale // c.denominator)
    return Row({a: Fraction(n, whole) for a, n in sums.items() if n}, Fraction(constant, whole))


def _two_piece(e: Encoding, op: TwoPiece, source: int, j: int) -> Row:
    z, key = e.rows[source][j], (source, j)
    low, high = e.range_of(key)
    left, right = Fraction(op.left), Fraction(op.right)
    if low >= 0 or high <= 0:
        slope = right if low >= 0 else left
        e.decided[key] = 1 if low >= 0 else -1
        return Row({a: c * slope for a, c in z.coeffs.items() if slope}, z.constant * slope)
    ends = max(left * low, right * low), max(left * high, right * high)
    e.unstable.setdefault(key, []).append(len(e.atoms))
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
