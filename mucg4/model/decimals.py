"""Many exact decimals as arrays: the bounds of a text of hundreds of thousands of inputs.

A number is `mantissa / 10^places`. All that boxes ask of such numbers (the nearest double, on which side of it the
number lies) is found for all at once and exactly, in integers that wrap around: where v is m / 10^k with k <= 19 and
its nearest double is c 2^-s, the difference m 2^s - c 10^k is at most 10^k / 2 in size, so its 64 lowest bits are it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from fractions import Fraction
from typing import overload

import numpy as np

from mucg4.ops.arrays import BoolArray, FloatArray, IntArray
from mucg4.records import dataclass

PLACES = 19  # most digits behind the point: 10^19 / 2 is below 2^63; given
LARGEST = 9.0e18  # mantissas are below 2^63; given
_TENS = [10**k for k in range(PLACES + 1)]
_WRAPPED = np.array(_TENS, dtype=np.uint64)


@dataclass(frozen=True, eq=False)
class Decimals(Sequence[Fraction]):
    """Exact numbers: `near (n,)` their nearest doubles; `mantissa`, `places (n,)`; `others` those of another form."""

    near: FloatArray
    mantissa: IntArray
    places: IntArray
    others: Mapping[int, Fraction] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.near)

    @overload
    def __getitem__(self, i: int) -> Fraction: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[Fraction, ...]: ...
    def __getitem__(self, i: int | slice) -> Fraction | tuple[Fraction, ...]:
        if isinstance(i, slice):
            return tuple(self)[i]
        i = range(len(self))[i]
        if i in self.others:
            return self.others[i]
        return Fraction(int(self.mantissa[i]), _TENS[int(self.places[i])])

    def __iter__(self) -> Iterator[Fraction]:
        for i, (m, k) in enumerate(zip(self.mantissa.tolist(), self.places.tolist(), strict=True)):
            yield self.others[i] if i in self.others else Fraction(m, _TENS[k])

    def outside(self, ends: FloatArray, sign: int) -> BoolArray:
        """Where an end that is the nearest double leaves out the number: an upper one for sign +1."""
        out: BoolArray = (ends == self.near) & (sides(self.near, self.mantissa, self.places) * sign < 0)
        for i, value in self.others.items():
            out[i] = (Fraction(ends[i].item()) - value) * sign < 0
        return out

    def texts(self) -> list[str]:
        """`str` of every number."""
        top, bottom = np.abs(self.mantissa).astype(np.uint64), _WRAPPED[self.places]
        divisor = np.gcd(top, bottom)
        signs = np.where(self.mantissa < 0, "-", "").tolist()
        parts = zip(signs, (top // divisor).tolist(), (bottom // divisor).tolist(), strict=True)
        made = [f"{sign}{p}/{q}" if q > 1 else f"{sign}{p}" for sign, p, q in parts]
        for i, value in self.others.items():
            made[i] = str(value)
        return made


def sides(near: FloatArray, mantissa: IntArray, places: IntArray) -> IntArray:
    """The sign of `near - mantissa / 10^places`, where `near` is its nearest double."""
    part, exponent = np.frexp(np.abs(near))
    shift = 53 - exponent.astype(np.int64)  # near is c 2^-shift
    c, m = (part * 2.0**53).astype(np.uint64), np.abs(mantissa).astype(np.uint64)
    left = np.where(shift < 64, m << np.clip(shift, 0, 63).astype(np.uint64), np.uint64(0))
    right = (c << np.maximum(-shift, 0).astype(np.uint64)) * _WRAPPED[places]
    return np.sign((right - left).view(np.int64)) * np.where(near < 0, -1, 1)


class Plain(Mapping[int, Fraction]):
    """The tightest plain bound of each input on one side, as a text states them: `input -> bound`.

    Bounds that come in thousands (`take`) are kept in arrays, `others` one by one.
    """

    def __init__(self, upper: bool) -> None:
        self.upper = upper
        self.others: dict[int, Fraction] = {}
        self.known = np.zeros(0, dtype=bool)  # of those in the arrays
        self._near, self._mantissa, self._places = np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)

    @property
    def many(self) -> bool:
        """Whether there are bounds in arrays."""
        return len(self.known) > 0

    def __getitem__(self, i: int) -> Fraction:
        if i in self.others:
            return self.others[i]
        if i < len(self.known) and self.known[i]:
            return Fraction(int(self._mantissa[i]), _TENS[int(self._places[i])])
        raise KeyError(i)

    def __iter__(self) -> Iterator[int]:
        yield from self.others
        yield from (i for i in np.flatnonzero(self.known).tolist() if i not in self.others)

    def __len__(self) -> int:
        return len(self.others) + sum(1 for i in np.flatnonzero(self.known).tolist() if i not in self.others)

    def missing(self, count: int) -> list[int]:
        """Which of the first inputs have no bound."""
        there = np.zeros(count, dtype=bool)
        there[: len(self.known)] = self.known[:count]
        there[[i for i in self.others if i < count]] = True
        return [int(i) for i in np.flatnonzero(~there)]

    def tighten(self, i: int, value: Fraction) -> None:
        """One more bound of an input."""
        old = self.others.get(i)
        if old is None and i < len(self.known) and self.known[i]:
            old = self[i]
        if old is None or (value < old if self.upper else value > old):
            self.others[i] = value

    def take(self, inputs: IntArray, near: FloatArray, mantissa: IntArray, places: IntArray) -> None:
        """Many more: bounds `mantissa / 10^places (n,)` of `inputs (n,)` with their nearest doubles."""
        self._reach(int(inputs.max(initial=-1)) + 1)
        old, sign = self._near[inputs], 1.0 if self.upper else -1.0
        fresh = ~self.known[inputs]
        order = np.argsort(inputs, kind="stable")
        twice = order[1:][inputs[order][1:] == inputs[order][:-1]]
        alone = np.ones(len(inputs), dtype=bool)
        alone[np.isin(inputs, inputs[twice])] = False
        if self.others:
            alone[[i in self.others for i in inputs.tolist()]] = False
        tighter = alone & (fresh | (sign * near < sign * old))
        at = inputs[tighter]
        self.known[at] = True
        self._near[at], self._mantissa[at], self._places[at] = near[tighter], mantissa[tighter], places[tighter]
        for k in np.flatnonzero(~alone | (alone & ~fresh & (near == old))).tolist():
            self.tighten(int(inputs[k]), Fraction(int(mantissa[k]), _TENS[int(places[k])]))

    def _reach(self, count: int) -> None:
        size = len(self.known)
        if count > size:
            grown = max(count, 2 * size) - size
            self.known = np.append(self.known, np.zeros(grown, dtype=bool))
            self._near = np.append(self._near, np.zeros(grown))
            self._mantissa = np.append(self._mantissa, np.zeros(grown, dtype=np.int64))
            self._places = np.append(self._places, np.zeros(grown, dtype=np.int64))

    def decimals(self, count: int, instead: Mapping[int, Fraction]) -> Decimals:
        """The bounds of the first inputs, some of them replaced; every one without a bound has to be."""
        self._reach(count)
        others = {**{i: v for i, v in self.others.items() if i < count}, **instead}
        near = self._near[:count].copy()
        for i, value in others.items():
            near[i] = float(value)
        return Decimals(near + 0.0, self._mantissa[:count], self._places[:count], others)
