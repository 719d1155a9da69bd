"""Element-wise inner loops of the backward pass."""

from __future__ import annotations

import numpy as np

from mucg4.ops.arrays import Array, at_least, at_most, precision, row_dots, xp
from mucg4.ops.base import Relaxation


def steady_allocator() -> None:
    """Let the C allocator keep freed blocks of up to 32 MB instead of returning each to the system.

    glibc raises its threshold once when a large block is freed; without it every array of a few hundred
    kilobytes costs page faults. Harmless elsewhere.
    """
    np.empty(4_000_000)


def relax_rows(a: Array, region: Array, lines: Relaxation) -> tuple[tuple[Array, ...], Array]:
    """Replace a nonlinear value by its lines: rows on the output -> rows on each input, and a constant.

    `a (rows, n)`; `region (rows,)` picks the line of each row from `lines` (regions, n). Where a
    coefficient is positive the lower line is used, else the upper one, so the result is a lower bound.
    """
    positive, where = a > 0, xp(a).where
    one = len(lines.upper_offset) == 1  # lines of a single region serve all rows as they are
    rows = tuple(
        where(positive, lower if one else lower[region], upper if one else upper[region]) * a
        for lower, upper in zip(lines.lower_slopes, lines.upper_slopes, strict=True)
    )
    offset = _dots(at_most(a, 0), lines.upper_offset, region)
    if lines.lower_offset.any():
        offset = offset + _dots(at_least(a, 0), lines.lower_offset, region)
    return rows, offset


def _dots(a: Array, values: Array, region: Array) -> Array:
    """Products of rows `(rows, n)` with their regions' vectors among `values (regions, n)`."""
    return a @ values[0] if len(values) == 1 else row_dots(a, values[region])


def row_norms(a: Array) -> Array:
    """Euclidean norm of each row, `(rows, n)` -> `(rows,)`; never less than it by underflow of the squares."""
    return xp(a).sqrt(row_dots(a, a)) + precision(a).floor
