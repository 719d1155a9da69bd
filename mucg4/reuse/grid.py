"""Which number format the weights of a network were rounded to, found from the values alone.

A tensor rounded to b bits holds integer multiples of one step (or one step per output channel) with at
most 2^b levels; one rounded to a short float type is exactly representable in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mucg4.ops.arrays import FloatArray, distinct, median

LEVELS = 255  # largest multiple of the step that is looked for (8 bits, also with a zero point at one end); given
TOLERANCE = 2e-3  # of a step: the products of step and integer were rounded to float32; not measured
MAJORITY = 0.6  # of the changed weights have to lie on a grid; not measured
CLOSE = 0.75  # relative distance up to which a tensor can be a rounded one; not measured
_ROWS, _COLUMNS, _SAMPLE = 16, 32, 4000  # what is looked at before the whole; not measured


def scheme_of(pairs: Sequence[tuple[FloatArray, FloatArray]]) -> str | None:
    """The format of the new tensors, for example `int8 per tensor`, `fp16`; None when most are on no grid.

    `pairs` are `(old, new)` weight arrays of equal shape, output channels first; unchanged ones do not count.
    """
    votes: Counter[str] = Counter()
    changed = 0
    for old, new in pairs:
        gap = square_sum(new - old)
        if gap == 0.0:
            continue
        changed += new.size
        if gap <= CLOSE * CLOSE * square_sum(old):
            name = _format(new)
            if name is not None:
                votes[name] += new.size
    if not changed or sum(votes.values()) < MAJORITY * changed:
        return None
    return votes.most_common(1)[0][0]


def square_sum(a: FloatArray) -> float:
    """The sum of the squares of all entries; without BLAS, whose threads cost more than they give here."""
    flat = a.reshape(-1)
    return float(np.einsum("i,i->", flat, flat))


def largest_of(a: FloatArray) -> float:
    """The largest size of an entry, 0 when there are none."""
    return float(max(a.max(), -a.min())) if a.size else 0.0


def _format(w: FloatArray) -> str | None:
    bits = _tensor_bits(w)
    if bits is not None:
        return f"int{bits} per tensor"
    single = w.astype(np.float32)
    if np.array_equal(single, w):
        if not np.any(single.view(np.uint32) & 0xFFFF):
            return "bf16"
        with np.errstate(over="ignore"):
            if np.array_equal(single.astype(np.float16), single):
                return "fp16"
    for axis in (0, 1):
        bits = _channel_bits(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)) if w.ndim > axis else None
        if bits is not None:
            return f"int{bits} per channel"
    return None


def _bits(levels: int) -> int:
    """Bits of a signed format whose largest multiple is `levels`, or an unsigned one of the same width."""
    return 2 if levels <= 3 else 4 if levels <= 15 else 8


def _off_grid(w: FloatArray, largest: FloatArray) -> FloatArray:
    """`(rows, LEVELS)`: how far the entries of each row are at most from multiples of `largest / k`, in steps."""
    k = np.arange(1, LEVELS + 1)
    scaled = (w / largest[:, None])[:, :, None] * k
    return np.asarray(np.abs(scaled - np.rint(scaled)).max(axis=1))


def _tensor_bits(w: FloatArray) -> int | None:
    flat = np.abs(w).reshape(-1)
    largest = flat.max(initial=0.0)
    sample = distinct(np.append(flat[:: 1 + flat.size // _SAMPLE], largest))
    # Rounding of the products may split one level into neighbours, but not into many.
    if not 2 <= len(sample) <= LEVELS + 1 + 16 or w.size < 2 * len(sample):
        return None
    fits = np.flatnonzero(_off_grid(sample[None, :], sample[-1:])[0] <= TOLERANCE)
    for levels in (fits[:4] + 1).tolist():  # the sample may miss levels, so a finer step may be the right one
        steps = flat * (levels / largest)
        if np.all(np.abs(steps - np.rint(steps)) <= TOLERANCE):
            return _bits(levels)
    return None


def _channel_bits(rows: FloatArray) -> int | None:
    """All rows (of a sample) on grids of their own; the widest row tells the bits."""
    rows = rows[:: 1 + len(rows) // _ROWS]
    largest = np.abs(rows).max(axis=1)
    rows, largest = rows[largest > 0], largest[largest > 0]
    if not len(rows) or rows.shape[1] < 4:
        return None
    if rows.shape[1] > _COLUMNS:
        rows = rows[:, :: 1 + rows.shape[1] // _COLUMNS]
    off = _off_grid(rows, largest)
    fits = off <= TOLERANCE
    if fits.any(axis=1).mean() < 0.98:
        return None
    return _bits(int(median(np.argmax(fits, axis=1)[fits.any(axis=1)])) + 1)
