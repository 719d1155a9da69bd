"""Double arithmetic that says how far it is off.

Every function returns `(value, error)`: in real arithmetic on the real operands, each of which is within its own
error of the stored one, the result is within `error` of `value`. An error of None stands for zeros: the value is
exact. Errors are arrays of the value's shape, rounded up.

Sums and products know their own rounding exactly (Knuth's TwoSum and Dekker's TwoProduct; Muller et al., Handbook of
Floating-Point Arithmetic, 2nd ed., sections 4.3 and 4.4), so what happens to be exact costs nothing. Overflow gives
values that are not finite and are refused where they are used.
"""

from __future__ import annotations

from math import fsum

import numpy as np

from mucg4.ops.arrays import FloatArray

UNIT = 2.0**-53  # unit roundoff of double; given
TINY = 2.0**-1074  # the smallest positive number: what a product or quotient may lose by underflow; given
UP = 1.0 + 2.0**-20  # covers the rounding of computing an error, sums of up to 2**32 terms included; given
# products of numbers up to this and down to its inverse neither overflow nor underflow in TwoProduct; given
SAFE = 2.0**450
EXACT_PRODUCTS = 2**16  # at most so many products are summed without rounding; not measured
# NumPy's elementary functions are good to 4 units in the last place; this is four times that; given
FUNCTION_UNITS = 16.0

Error = FloatArray | None
Pair = tuple[FloatArray, Error]


def known(error: Error) -> Error:
    """None where all errors are zero; nan (from overflow) counts as infinite."""
    if error is None or not np.any(error):
        return None
    return np.where(np.isnan(error), np.inf, error) * UP


def magnitude(value: FloatArray, error: Error, fan_in: int) -> FloatArray | None:
    """What `Dense.offset_magnitude` has to be for an offset that is off by `error`; None for exact offsets."""
    return None if error is None else np.maximum(abs(value), error / (2.0 * UNIT * fan_in) * UP + TINY)


def size(error: Error) -> FloatArray | float:
    """The error as a number or array to compute with."""
    return 0.0 if error is None else error


def plus(x: FloatArray, y: FloatArray, ex: Error = None, ey: Error = None) -> Pair:
    """`x + y`, broadcast."""
    with np.errstate(all="ignore"):
        total = x + y
        part = total - x
        lost = abs((x - (total - part)) + (y - part))
        return total, known(lost + size(ex) + size(ey))


def _halves(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    big = x * (2.0**27 + 1.0)
    high = big - (big - x)
    return high, x - high


def times(x: FloatArray, y: FloatArray, ex: Error = None, ey: Error = None) -> Pair:
    """`x * y`, broadcast."""
    with np.errstate(all="ignore"):
        product = x * y
        lost = _lost_in_product(x, y, product)
        if ex is not None or ey is not None:
            lost = lost + abs(x) * size(ey) + abs(y) * size(ex) + size(ex) * size(ey)
        return product, known(lost)


def _lost_in_product(x: FloatArray, y: FloatArray, product: FloatArray) -> FloatArray:
    """`|x y - product|`, exactly where neither overflow nor underflow is near."""
    (a, b), (c, d) = _halves(x), _halves(y)
    exact = abs(((a * c - product) + a * d + b * c) + b * d)
    inside = (abs(x) < SAFE) & (abs(y) < SAFE) & (abs(product) > 1.0 / SAFE)
    none = (x == 0) | (y == 0) | (abs(x) == 1) | (abs(y) == 1)
    return np.where(none, 0.0, np.where(inside, exact, UNIT * abs(product) + TINY))


def over(x: FloatArray, y: FloatArray, ex: Error = None, ey: Error = None) -> Pair:
    """`x / y`, broadcast; the error is infinite where the divisor may be zero."""
    with np.errstate(all="ignore"):
        quotient = x / y
        back, rest = times(quotient, y)
        exact = back == x
        lost = np.where(exact & (np.broadcast_to(size(rest), exact.shape) == 0), 0.0, UNIT * abs(quotient) + TINY)
        if ex is not None or ey is not None:
            room = abs(y) - size(ey)
            off = (size(ex) + (abs(quotient) + lost) * size(ey)) / room
            lost = lost + np.where(room > 0, off, np.inf)
        return quotient, known(lost)


def product(a: FloatArray, b: FloatArray, ea: Error = None, eb: Error = None) -> Pair:
    """Matrix product; small ones of exact matrices are rounded once per entry. Raises `ValueError` like NumPy's."""
    inner = a.shape[-1]
    if inner != b.shape[max(b.ndim - 2, 0)]:  # what follows would stretch a length of 1
        raise ValueError(f"a matrix product over {inner} and {b.shape[max(b.ndim - 2, 0)]} terms")
    if ea is None and eb is None and a.ndim == b.ndim == 2 and a.size * b.shape[1] <= EXACT_PRODUCTS:
        if _single(a) and _single(b):  # then products are exact in double
            rows = [_sums((row[:, None] * b).T.tolist()) for row in a]
            made = np.array(rows, dtype=np.float64).reshape(a.shape[0], b.shape[1], 2)
            return made[..., 0], known(made[..., 1])
    with np.errstate(all="ignore"):
        value = a @ b
        some = (a != 0).astype(np.float64) @ (b != 0).astype(np.float64)
        lost = np.where(some > 0, (inner + 1) * UNIT * (abs(a) @ abs(b)) + inner * TINY, 0.0)
        if ea is not None or eb is not None:
            ea, eb = np.zeros(a.shape) + size(ea), np.zeros(b.shape) + size(eb)
            lost = lost + (abs(a) @ eb + ea @ abs(b) + ea @ eb) * (1 + (inner + 4) * UNIT)
        return value, known(lost)


def _single(a: FloatArray) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.all(a.astype(np.float32) == a)) and not np.any((a != 0) & (abs(a) < 1e-37))


def _sums(lists: list[list[float]]) -> list[tuple[float, float]]:
    out = []
    for numbers in lists:
        total = fsum(numbers)
        out.append((total, abs(fsum([*numbers, -total]))))
    return out


def total(a: FloatArray, axes: tuple[int, ...], keep: bool, ea: Error = None) -> Pair:
    """Sum over axes."""
    if ea is None and a.size <= EXACT_PRODUCTS and np.all(np.isfinite(a)):
        kept = tuple(i for i in range(a.ndim) if i not in axes)
        rows = np.transpose(a, (*kept, *axes)).reshape([a.shape[i] for i in kept] + [-1])
        pairs = np.array(_sums(rows.reshape(-1, rows.shape[-1]).tolist())).reshape(-1, 2)
        shape = tuple(1 if i in axes else n for i, n in enumerate(a.shape) if keep or i not in axes)
        return pairs[:, 0].reshape(shape), known(pairs[:, 1].reshape(shape))
    count = int(np.prod([a.shape[i] for i in axes]))
    with np.errstate(all="ignore"):
        lost = count * UNIT * abs(a).sum(axis=axes, keepdims=keep)
        if ea is not None:
            lost = lost + ea.sum(axis=axes, keepdims=keep) * (1 + (count + 4) * UNIT)
        return a.sum(axis=axes, keepdims=keep), known(lost)


def root(x: FloatArray, ex: Error = None) -> Pair:
    """Square root; correctly rounded."""
    with np.errstate(all="ignore"):
        value = np.sqrt(x)
        back, rest = times(value, value)
        exact = (back == x) & (np.broadcast_to(size(rest), value.shape) == 0)
        lost = np.where(exact, 0.0, UNIT * value)
        if ex is not None:
            lost = lost + np.where(x > ex, ex / np.sqrt(x - ex), np.where(ex > 0, np.inf, 0.0))
        return value, known(lost)


def function(x: FloatArray, f: np.ufunc, slope: FloatArray, ex: Error = None) -> Pair:
    """An elementary function f of NumPy; `slope` bounds |f'| on `[x - ex, x + ex]`."""
    with np.errstate(all="ignore"):
        value = f(x)
        return value, known(FUNCTION_UNITS * UNIT * abs(value) + TINY + slope * size(ex))
