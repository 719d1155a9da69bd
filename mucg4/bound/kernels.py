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
    rows = tuple(
        where(positive, lower[region], upper[region]) * a
        for lower, upper in zip(lines.lower_slopes, lines.upper_slopes, strict=True)
    )
    offset = row_dots(at_most(a, 0), lines.upper_offset[region])
    if lines.lower_offset.any():
        offset = offset + row_dots(at_least(a, 0), lines.lower_offset[region])
    return rows, offset


def row_norms(a: Array) -> Array:
    """Euclidean norm of each row, `(rows, n)` -> `(rows,)`; never less than it by underflow of the squares."""
    return xp(a).sqrt(row_dots(a, a)) + precision(a).floor
