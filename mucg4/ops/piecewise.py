"""Convex functions of two linear pieces meeting at zero: Relu, LeakyRelu, Abs.

Other piecewise operators (Clip, Max, Min, MaxPool) are rewritten by the reader into sums of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

from mucg4.ops.arrays import as_type, at_least, at_most, choose, precision, xp, zeros
from mucg4.ops.base import Array, Nonlinear, Relaxation
from mucg4.records import dataclass


@dataclass(frozen=True)
class TwoPiece(Nonlinear):
    """`f(z) = max(left * z, right * z)` with `left < right`; ReLU is (0, 1), Abs (-1, 1).

    On l < 0 < u the upper line is the chord; a lower line is `s z` for any slope s in [left, right].
    The free slope is what alpha in [0, 1] chooses: `s = left + alpha * (right - left)`.
    """

    left: float = 0.0
    right: float = 1.0
    kind: str = field(default="TwoPiece", init=False)

    def apply(self, xs: Sequence[Array]) -> Array:
        z = xs[0]
        if self.left == 0.0 and self.right == 1.0:
            return at_least(z, 0)
        return xp(z).maximum(z * self.left, z * self.right)

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        flo, fhi = self.apply(lo), self.apply(hi)
        across = (lo[0] < 0) & (hi[0] > 0)
        least = xp(flo).minimum(flo, fhi)
        return xp(flo).where(across, at_most(least, 0), least), xp(flo).maximum(flo, fhi)

    def default_alpha(self, lo: Array, hi: Array) -> Array:
        """The slope that cuts less area: 1 when u > -l, else 0 (adaptive rule of CROWN, DeepPoly).

        A tie (a symmetric box) is decided alike by bounds that differ in their rounding only: search and
        checker must choose the same line.
        """
        return as_type(hi > -lo * (1 + precision(lo).tie), lo.dtype)

    def relax(self, lo: Sequence[Array], hi: Sequence[Array], alpha: Array | None = None) -> Relaxation:
        """Lines on [lo, hi]; `alpha (batch, n)` in [0, 1] picks the lower slope where l < 0 < u."""
        low, up = lo[0], hi[0]
        unstable = (low < 0) & (up > 0)
        if alpha is None:
            alpha = self.default_alpha(low, up)
        where, gap = xp(low).where, self.right - self.left
        stable = choose(low >= 0, self.right, self.left, low)
        width = where(unstable, up - low, 1.0)
        chord = where(unstable, self.left + gap * up / width, stable)
        offset = where(unstable, -gap * low * (up / width), 0.0)
        slope = where(unstable, self.left + gap * alpha, stable)
        return Relaxation((slope,), zeros(slope.shape, slope), (chord,), offset)

    def tangent(self, xs: Sequence[Array]) -> tuple[Array, ...]:
        return (choose(xs[0] >= 0, self.right, self.left, xs[0]),)

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        return super().terms(lo, hi) * max(1.0, abs(self.left), abs(self.right))  # any alpha

    def parameters(self) -> dict[str, Any]:
        return {"left": self.left, "right": self.right}


RELU = TwoPiece(0.0, 1.0)
