"""How far a constraint may be off when a runtime evaluates it: what its inputs' part is loosened by.

A scorer evaluates `(<= (+ X_0 X_1) 0.3)` with inputs of the model's element type, so constants, products and sums
are rounded to that type, and points a little outside the exact set pass. For one comparison this module gives
numbers such that, wherever nothing overflows,

    |evaluated - exact| <= error(|x|)  for left minus right,  error affine in the absolute values of the inputs.

The standard model of floating-point arithmetic, with gradual underflow (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., sections 2.2 and 3.1): one rounding is a factor 1 + d, |d| <= u, and products and stored
numbers may be off by half the smallest subnormal number besides; sums have no such part. Every term is followed with
a pair: `size`, the sum of the absolute values of its monomials, and `error`. Constants are rounded to a double and
then to the element type, an input is rounded once (a text's number to the element type); of a product of two terms
both errors count, then one rounding. The N terms of a comparison are added in any order, left and right
together: each meets at most N additions, (1 + u)^N. All is doubled, for readers that merge constants or
multiply factors out first; the factor also keeps a second, tighter analysis (`mucg4.check.property`) inside.

Outputs have size 0: their rounding belongs to the network's, which is outside this contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field
from fractions import Fraction
from functools import cache
from math import isfinite
from typing import NamedTuple

import numpy as np

from mucg4.model.formula import Apply, Compare, Constant, Term
from mucg4.records import dataclass

ZERO, ONE = Fraction(0), Fraction(1)


class Kind(NamedTuple):
    """An element type: unit roundoff, smallest subnormal and largest number, exactly."""

    unit: Fraction
    least: Fraction
    most: Fraction


@cache
def kind_of(element_type: str) -> Kind:
    """The exact numbers of a floating-point type by its name."""
    info = np.finfo(element_type)
    return Kind(Fraction(float(info.eps)) / 2, Fraction(float(info.smallest_subnormal)), Fraction(float(info.max)))


@dataclass(frozen=True)
class Scale:
    """`constant + sum inputs[i] |x_i|`, all coefficients nonnegative."""

    constant: Fraction = ZERO
    inputs: dict[int, Fraction] = field(default_factory=dict)

    def __add__(self, other: Scale) -> Scale:
        return Scale.total((self, other))

    @staticmethod
    def total(scales: Iterable[Scale]) -> Scale:
        """The sum of some."""
        constant = ZERO
        inputs: dict[int, Fraction] = {}
        for scale in scales:
            constant += scale.constant
            for i, c in scale.inputs.items():
                inputs[i] = inputs[i] + c if i in inputs else c
        return Scale(constant, inputs)

    def times(self, factor: Fraction) -> Scale:
        return Scale(self.constant * factor, {i: c * factor for i, c in self.inputs.items()} if factor else {})

    def at(self, far: dict[int, Fraction]) -> Fraction:
        """The value where `|x_i| <= far[i]`."""
        return self.constant + sum((c * far[i] for i, c in self.inputs.items()), ZERO)


@dataclass(frozen=True)
class Rounding:
    """What evaluating a comparison may do: `error` as in the module text, `size` of both its terms.

    Nothing overflows where `peak` is at most `most`. `exact` is true when evaluation rounds nothing: no sum, no
    product, and no constant that is not a number of the element type.
    """

    size: Scale
    error: Scale
    peak: Scale
    most: Fraction

    @property
    def inputs(self) -> set[int]:
        """The inputs whose range `off` asks for."""
        return {*self.peak.inputs, *self.error.inputs}

    @property
    def exact(self) -> bool:
        return not self.error.constant and not any(self.error.inputs.values())

    def off(self, far: dict[int, Fraction]) -> Fraction | None:
        """The largest error where `|x_i| <= far[i]`; None when something may overflow there: then anything passes."""
        if self.exact:
            return ZERO
        return self.error.at(far) if self.peak.at(far) <= self.most else None

    def end(self, slope: Fraction, constant: Fraction, index: int) -> Fraction | None:
        """The end of the values of one input that pass `slope x + constant <= 0`, an upper one for a positive slope.

        None when there is none: rounding may outweigh the slope, or terms of inputs cancel, which may overflow first.
        Otherwise a partial sum that overflows beyond the end has the sign that makes the comparison false, or
        lies between the end and 0, where `peak` is asked.
        """
        a, off = abs(slope), self.error.inputs.get(index, ZERO)
        if self.size.inputs != {index: a} or off >= a or self.peak.constant > self.most:
            return None
        room = self.error.constant - constant
        if room >= 0:  # a |x| - off |x| <= room
            end = room / (a - off)
        else:  # a |x| + off |x| >= -room, on the other side of 0
            end = room / (a + off)
            if not self.peak.inputs.keys() <= {index} or self.peak.at({index: -end}) > self.most:
                return None
        return end if slope > 0 else -end


class _Term(NamedTuple):
    size: Scale
    error: Scale
    peak: Scale  # sizes of all intermediate results, added up
    leaves: int
    varies: bool


def rounding_of(atom: Compare, element_type: str) -> Rounding:
    """What evaluating one linear comparison in the element type may do."""
    kind = kind_of(element_type)
    arithmetic = calculates(atom)
    left, right = (_term(t, kind, element_type, arithmetic) for t in (atom.left, atom.right))
    error = left.error + right.error
    size = left.size + right.size
    if arithmetic:
        growth = _growth(left.leaves + right.leaves, kind.unit)
        error = (error + (size + error).times(growth)).times(Fraction(2))
    peak = left.peak + right.peak + size + error
    return Rounding(size, error, peak, kind.most / 4)


def calculates(atom: Compare) -> bool:
    """Whether evaluating the comparison takes more than changing signs and comparing."""
    return _calculates(atom.left) or _calculates(atom.right)


def _calculates(term: Term) -> bool:
    return isinstance(term, Apply) and (len(term.args) > 1 or _calculates(term.args[0]))


def _growth(count: int, unit: Fraction) -> Fraction:
    """At least `(1 + unit)^count - 1`."""
    power = count * unit
    if power <= 1:
        return 2 * power  # e^t - 1 <= 2 t for t <= 1
    return Fraction(3) ** (power.numerator // power.denominator + 1)


def _term(term: Term, kind: Kind, element_type: str, arithmetic: bool) -> _Term:
    if isinstance(term, Constant):
        size = Scale(abs(term.value))
        error = Scale() if _fits(term.value, element_type) else size.times(kind.unit * 3) + Scale(kind.least)
        return _Term(size, error, size + error, 1, False)
    if not isinstance(term, Apply):
        size = Scale(ZERO, {term.index: ONE}) if term.is_input else Scale()
        error = size.times(kind.unit) + Scale(kind.least) if arithmetic and term.is_input else Scale()
        return _Term(size, error, size + error, 1, True)
    parts = [_term(t, kind, element_type, arithmetic) for t in term.args]
    if term.op == "*":
        return _product(parts, kind)
    size, error = (Scale.total(s) for s in ([p.size for p in parts], [p.error for p in parts]))
    peak = Scale.total([*(p.peak for p in parts), size, error])
    return _Term(size, error, peak, sum(p.leaves for p in parts), any(p.varies for p in parts))


def _product(parts: Sequence[_Term], kind: Kind) -> _Term:
    """The product of terms of which one at most varies, in any order."""
    total, most = parts[0], ONE
    for part in parts[1:]:
        total = _times(total, part, kind)
    for part in parts:  # partial products of constants may be larger than the whole
        most *= ONE if part.varies else max(ONE, part.size.constant + part.error.constant)
    partial = [Scale(2 * most), *((p.size + p.error).times(2 * most) for p in parts if p.varies)]
    return total._replace(peak=Scale.total([total.peak, *partial]))


def _times(a: _Term, b: _Term, kind: Kind) -> _Term:
    """The product; one of the two does not vary."""
    fixed, other = (b, a) if a.varies else (a, b)
    c, e = fixed.size.constant, fixed.error.constant
    size = other.size.times(c)
    error = other.error.times(c + e) + other.size.times(e)
    if fixed.size.constant != 1 or e:
        error = error + (size + error).times(kind.unit) + Scale(kind.least)
    return _Term(size, error, a.peak + b.peak + size + error, a.leaves + b.leaves, a.varies or b.varies)


def _fits(value: Fraction, element_type: str) -> bool:
    """Whether a number of the element type has this value."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = float(np.float64(float(value)).astype(element_type))
    return isfinite(rounded) and Fraction(rounded) == value
