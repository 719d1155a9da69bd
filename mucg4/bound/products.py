"""Sharper lines of products whose arguments move together.

The corners of a box know nothing about how x and y depend on each other. With `S = p (x - a) + (y - b) / p` and
`D = p (x - a) - (y - b) / p`, for any a, b and p > 0,

    x y - b x - a y = (S^2 - D^2) / 4 - a b,

so the tangent plane at (a, b) is off by at most `D^2 / 4` below and `S^2 / 4` above. The ranges of S and D follow from
linear bounds of x and y over the network's input, which bounding derives anyway. At the best p (the root of the ratio
of the widths) this is never worse than the corners when x and y are linear in the input, and much better where they
move together, as in quadratic forms `x^T P x` and under feedback. Measured on quadrotor rows (lsnc), one core: rows
that the corners left open at limits of 20 to 50 s close in 3 to 42 s.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mucg4.bound.rounding import gamma
from mucg4.ops.arrays import Array, at_least, at_most, precision, xp
from mucg4.ops.base import Relaxation


class MovingRanges(NamedTuple):
    """Linear bounds over the input v: `z >= below . v + base` and `-z >= above . v + top`, rounding subtracted.

    `below, above (B, n, d)`, `base, top (B, n)`; `width (B, n)` is that of the range of z.
    """

    below: Array
    base: Array
    above: Array
    top: Array
    width: Array

    def scaled(self, p: Array) -> MovingRanges:
        """Bounds of `p z` for `p (B, n) > 0`; the products round."""
        return MovingRanges(
            self.below * p[..., None], self.base * p, self.above * p[..., None], self.top * p, self.width * p
        )

    def negative(self) -> MovingRanges:
        """Bounds of -z."""
        return MovingRanges(self.above, self.top, self.below, self.base, self.width)


def sharpened(line: Relaxation, lo: Array, hi: Array, x: MovingRanges, y: MovingRanges) -> Relaxation:
    """The lines of a product `(B, n)` with better offsets, its slopes being those of a tangent plane.

    `lo, hi (B, d)`: the input boxes on which the bounds of x and y hold. Sound up to the rounding that every relaxation
    may have.
    """
    m, p = xp(lo), precision(lo)
    b, a = line.lower_slopes
    with np.errstate(all="ignore"):
        scale = m.sqrt(y.width / x.width)
        usable = m.isfinite(scale) & (scale > 0)
        scale = m.where(usable, scale, 1.0)
        x, y = x.scaled(scale), y.scaled(1.0 / scale)
        at, beside = scale * a, b / scale
        high = _square(lo, hi, x, y, at + beside) / 4  # of S
        low = _square(lo, hi, x, y.negative(), at - beside) / 4  # of D
        base = -a * b
        usable = usable & m.isfinite(base)
        room = 16 * p.unit * (abs(base) + high + low) + p.tiny
        lower, upper = m.fmax(line.lower_offset, base - low - room), m.fmin(line.upper_offset, base + high + room)
    lower, upper = m.where(usable, lower, line.lower_offset), m.where(usable, upper, line.upper_offset)
    return Relaxation(line.lower_slopes, lower, line.upper_slopes, upper)


def _square(lo: Array, hi: Array, x: MovingRanges, y: MovingRanges, centre: Array) -> Array:
    """(B, n) the largest `(x + y - centre)^2` there can be."""
    low = _least(lo, hi, x.below, y.below, x.base, y.base, -centre)
    high = _least(lo, hi, x.above, y.above, x.top, y.top, centre)
    far = xp(lo).maximum(abs(low), abs(high))
    return far * far


def _least(lo: Array, hi: Array, a: Array, b: Array, *constants: Array) -> Array:
    """(B, n) at most `(a + b) . v` plus the constants for all v in the box; every given number may be rounded once."""
    far = xp(lo).maximum(abs(lo), abs(hi))[:, :, None]
    coeffs, total = a + b, constants[0] + constants[1] + constants[2]
    value = (at_least(coeffs, 0) @ lo[:, :, None] + at_most(coeffs, 0) @ hi[:, :, None])[..., 0]
    size = ((abs(a) + abs(b)) @ far)[..., 0] + sum(abs(c) for c in constants)
    return value + total - gamma(lo.shape[1], precision(lo).unit) * size - precision(lo).tiny
