"""The two operator protocols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from mucg4.ops.arrays import Array, Backend, xp

__all__ = ["Affine", "Array", "Nonlinear", "Op", "Relaxation", "coarse"]

# boxes whose lines are chosen on a grid, and the grid as a share of their width; not measured
WIDE, GRID = 0.125, 2.0**-16
OFF = 0.7320508075688772  # no number that bounds are likely to lie on; not measured


class Relaxation(NamedTuple):
    """Linear lines around an elementwise function on a box, one slope per input.

    `sum_i lower_slopes[i] * x_i + lower_offset <= f(x) <= sum_i upper_slopes[i] * x_i + upper_offset`
    for every x in the box, in real arithmetic up to a relative rounding of a few units in the last
    place of the terms (the rounding place, `mucg4.bound.rounding`, accounts for it). All arrays have
    the shape of the box bounds.
    """

    lower_slopes: tuple[Array, ...]
    lower_offset: Array
    upper_slopes: tuple[Array, ...]
    upper_offset: Array


class Op:
    """Common part of all operators. Instances are immutable; arrays in them are never written.

    An operator works on arrays of the library, device and precision that its own arrays have.
    """

    kind: str = ""  # canonical operator name, used in fingerprints and messages

    def apply(self, xs: Sequence[Array]) -> Array:
        """The value: inputs `(batch, n_i)` -> output `(batch, m)`."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Any]:
        """Everything that defines the operator besides its kind: arrays and plain values."""
        return {}

    def cast(self, backend: Backend) -> Op:
        """The same operator with its arrays on another backend; see `Backend.parameter` for what rounding does."""
        if not is_dataclass(self):
            return self
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {name: backend.parameter(a) for name, a in arrays.items() if isinstance(a, np.ndarray)}
        return replace(self, **changed) if changed else self


class Affine(Op):
    """`y = sum_i W_i x_i + b`, never needing W_i as a dense matrix."""

    fan_in: int = 1
    """Upper bound on the number of products and sums behind one value of `apply`, and of `adjoint` (its bias aside),
    plus the number of roundings that each stored weight may carry already."""

    @property
    def exact(self) -> bool:
        """True when the stored weights and the bias are the very real numbers that the network's file stands for."""
        return not getattr(self, "roundings", 0) and getattr(self, "offset_magnitude", None) is None

    def linear(self, xs: Sequence[Array]) -> Array:
        """`sum_i W_i x_i` without the bias; `(batch, n_i)` -> `(batch, m)`."""
        raise NotImplementedError

    def bias(self) -> Array | None:
        """The bias `(m,)`, or None when it is zero."""
        return None

    def apply(self, xs: Sequence[Array]) -> Array:
        y = self.linear(xs)
        b = self.bias()
        return y if b is None else y + b

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        """Rows of functionals on the output -> the same functionals on each input.

        `(rows, m)` -> `W_i^T a`, one `(rows, n_i)` per input, without the bias.
        """
        raise NotImplementedError

    def matrices(self, size: int) -> tuple[Array, ...]:
        """The matrices themselves: `adjoint` of the unit vectors of an output of so many neurons."""
        return self.adjoint(np.eye(size))

    def magnitude(self, xs: Sequence[Array]) -> Array:
        """`sum_i |W_i| x_i` for nonnegative `(batch, n_i)` -> `(batch, m)`: spread and rounding scale."""
        raise NotImplementedError

    def bias_magnitude(self) -> Array | None:
        """`(m,)` at least |b|; b is off by at most `2**-52 fan_in` times this from what folding stands for."""
        b = self.bias()
        return None if b is None else abs(b)


def coarse(lo: Array, hi: Array) -> tuple[Array, Array]:
    """Boxes `(batch, n)` around the given ones, wide ones with ends on a grid of some 2**-16 of the width.

    Lines of smooth functions depend on both ends, and not monotonically: bounds that differ by their rounding charges
    give lines of which either is better somewhere, and on wide boxes by more than any charge. Slopes that are chosen on
    these boxes are the same for the search and the checker. The signs of the ends are kept.
    """
    m, width = xp(lo), hi - lo
    wide = (width > WIDE) & m.isfinite(width)
    if not wide.any():
        return lo, hi
    grid = 2.0 ** m.floor(m.log2(OFF * m.where(wide, width, 1.0))) * GRID
    a, b = (m.floor(lo / grid + OFF) - OFF) * grid, (m.ceil(hi / grid - OFF) + OFF) * grid
    a, b = m.where(lo >= 0, m.maximum(a, 0.0 * a), a), m.where(hi <= 0, m.minimum(b, 0.0 * b), b)
    return m.where(wide, a, lo), m.where(wide, b, hi)


class Nonlinear(Op):
    """Elementwise function of one or more inputs of the same size."""

    continuous: bool = True
    """False when the value jumps: then no split into closed pieces makes it linear."""

    def interval(self, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
        """Tight image of the box, each `(batch, n)`; sound up to a few units in the last place."""
        raise NotImplementedError

    def relax(self, lo: Sequence[Array], hi: Sequence[Array]) -> Relaxation:
        """The default relaxation on the box."""
        raise NotImplementedError

    def tangent(self, xs: Sequence[Array]) -> tuple[Array, ...]:
        """Slopes at the point `xs`, one array per input; a one-sided one where there is no derivative. Never nan."""
        return self.relax(xs, xs).lower_slopes

    def terms(self, lo: Sequence[Array], hi: Sequence[Array]) -> Array:
        """At least `sum_i |slope_i x_i|` for every line made on any box inside [lo, hi] and every x in that box.

        This is for functions whose slopes are at most 1 in size.
        """
        total = None
        for a, b in zip(lo, hi, strict=True):
            far = xp(a).maximum(abs(a), abs(b))
            total = far if total is None else total + far
        return total
