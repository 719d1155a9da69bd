"""The checker's own enclosures of elementwise operators: image of an interval, one line on either side.

A slope is a number that may be chosen freely; here it is a float taken as exact. What has to be right
is the offset: for a slope s the lower line is `s z + min (f(z) - s z)`, the minimum over [l, u] taken
outward, and likewise above. So nothing an operator proposes is believed: `Sigmoid` and `Tanh` are
asked for slopes only.

* Two pieces (`max(left z, right z)`): f minus a line is convex, its largest value is at an end, and any
  slope in [left, right] is a lower line through zero. Also exact on Fractions.
* S-shaped (`Sigmoid`, `Tanh`: convex left of 0, concave right of it): on the concave part f - s z is
  smallest at an end; on the convex part it lies above its tangent at ANY point p, whose smallest value
  is at an end. With p near the zero of f' - s that costs next to nothing, and p itself may be inexact.
  The upper line is the lower one of the mirrored function, `f(-z) = f(0) + f(0) - f(z)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from mucg4.ops.base import Array, Nonlinear
from mucg4.ops.piecewise import TwoPiece

S_SHAPED = ("Sigmoid", "Tanh")
LIBM = 2.0**-47  # absolute error of one evaluation of f or f' (|f| <= 1; libm is off by a few 2**-53)
STEP = 2.0**-52  # generous relative error of one operation
TINY = 1e-150  # dominates underflow


@dataclass(eq=False)
class Lines:
    """Lines per region and neuron, all `(B, n)`; an offset of None is zero.

    `unstable` marks where the lower slope may be replaced by any slope in `reach`. `steep` is the largest
    size of any slope that may occur.
    """

    low: Array
    up: Array
    up_offset: Array
    low_offset: Array | None
    unstable: Array
    reach: tuple[float, float]
    steep: float
    span: Array = field(init=False)  # up - low, rounded

    def __post_init__(self) -> None:
        self.span = self.up - self.low

    def one(self, region: int) -> Lines:
        """The lines of one region."""
        own = slice(region, region + 1)
        low_offset = None if self.low_offset is None else self.low_offset[own]
        return Lines(
            self.low[own], self.up[own], self.up_offset[own], low_offset, self.unstable[own], self.reach, self.steep
        )

    def put(self, region: int, lines: Lines) -> None:
        """Replace the lines of one region by those of a batch of one."""
        for name in ("low", "up", "up_offset", "low_offset", "unstable", "span"):
            values = getattr(self, name)
            if values is not None:
                values[region] = getattr(lines, name)[0]


def knows(op: Nonlinear, exact: bool) -> bool:
    """True when `enclose` has a rule for the operator (in that arithmetic)."""
    return isinstance(op, TwoPiece) or (not exact and op.kind in S_SHAPED)


def enclose(op: Any, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    """Lines on `[lo, hi]` and the image's lower and upper ends, all `(B, n)` and outward."""
    return _two_piece(op, lo, hi) if isinstance(op, TwoPiece) else _s_shaped(op, lo, hi)


def _two_piece(op: TwoPiece, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    exact = lo.dtype == object
    number: Any = Fraction if exact else float
    left, right, zero, one = number(op.left), number(op.right), number(0), number(1)
    unstable = (lo < 0) & (hi > 0)
    stable = np.where(lo >= 0, right, left)
    width = np.where(unstable, hi - lo, one)
    chord = np.where(unstable, left + (right - left) * (hi / width), stable)
    chord = np.minimum(np.maximum(chord, left), right)
    offset = np.maximum((left - chord) * lo, (right - chord) * hi)  # f - chord at the ends, two roundings
    if not exact:
        offset = offset * (1 + 4 * STEP) + TINY
    offset = np.where(unstable, offset, zero)
    low = np.where(unstable, np.where(op.default_alpha(lo, hi).astype(bool), right, left), stable)
    first, last = np.maximum(left * lo, right * lo), np.maximum(left * hi, right * hi)
    flo = np.minimum(np.where(unstable, np.minimum(first, zero), first), last)
    fhi = np.maximum(first, last)
    if not exact and (left, right) != (0.0, 1.0):
        flo, fhi = flo - (abs(flo) * 2 * STEP + TINY), fhi + (abs(fhi) * 2 * STEP + TINY)
    steep = max(abs(op.left), abs(op.right))
    return Lines(low, chord, offset, None, unstable, (op.left, op.right), steep), flo, fhi


def _s_shaped(op: Nonlinear, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    relaxation = op.relax([lo], [hi])
    low, up = (np.clip(s[0], 0.0, 1.0) for s in (relaxation.lower_slopes, relaxation.upper_slopes))
    f, slope_at, inverse = _functions(op.kind)
    low_offset = _lowest(f, slope_at, inverse, low, lo, hi)
    centre = 2 * f(np.zeros(1))[0]  # 0 or 1, exact
    up_offset = centre - _lowest(f, slope_at, inverse, up, -hi, -lo)
    up_offset = up_offset + 4 * STEP * abs(up_offset)
    lines = Lines(low, up, up_offset, low_offset, np.zeros(lo.shape, dtype=bool), (0.0, 0.0), 1.0)
    return lines, f(lo) - LIBM, f(hi) + LIBM


def _functions(kind: str) -> tuple[Any, Any, Any]:
    """f, f' and a nonnegative solution c of f'(c) = s for `0 < s <= f'(0)` (any c is sound)."""

    def sigmoid(x: Array) -> Array:
        e = np.exp(-abs(x))
        return np.where(x >= 0, 1.0, e) / (1.0 + e)

    if kind == "Sigmoid":
        return (
            sigmoid,
            lambda x: sigmoid(x) * sigmoid(-x),
            lambda s: 2 * np.arctanh(np.sqrt(np.clip(1 - 4 * s, 0.0, 1 - STEP))),
        )
    return (
        np.tanh,
        lambda x: (1 - np.tanh(x)) * (1 + np.tanh(x)),
        lambda s: np.arctanh(np.sqrt(np.clip(1 - s, 0.0, 1 - STEP))),
    )


def _lowest(f: Any, slope_at: Any, inverse: Any, s: Array, lo: Array, hi: Array) -> Array:
    """A float below `min over [lo, hi] of f(z) - s z` for slopes s in [0, 1]; see the module text."""
    with np.errstate(invalid="ignore", over="ignore"):
        bend = np.minimum(hi, 0)
        p = np.clip(-inverse(s), lo, np.maximum(lo, bend))
        rise = slope_at(p) - s
        at_p = f(p) - s * p
        reach = np.maximum(p - lo, bend - p)  # the tangent's drop inside [lo, bend]
        drop = np.maximum(np.maximum(rise * (p - lo), -rise * (bend - p)), 0) + LIBM * reach
        ends = np.minimum(f(np.maximum(lo, 0)) - s * np.maximum(lo, 0), f(hi) - s * hi)
        value = np.where(lo < 0, at_p - drop, ends)
        value = np.where(hi > 0, np.minimum(value, ends), value)
        size = 2 + abs(s) * np.maximum(abs(lo), abs(hi)) + drop
    return value - (2 * LIBM + 8 * STEP * size)
