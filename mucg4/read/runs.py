"""Long runs of assertions of one plain bound each, which fill the largest texts, read all at once.

A short cut, not a second grammar: what a run's pattern does not match, and numbers that have no double near them, are
left to the reader of forms, which gives the same result. Bounds keep their exact decimals (`mucg4.model.decimals`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np

from mucg4.model.decimals import LARGEST, PLACES, Plain
from mucg4.ops.arrays import BoolArray, FloatArray, IntArray

TEXT = 1 << 16  # characters from which a text may be read in runs; measured: shorter ones take milliseconds either way
RUN = 1 << 18  # most characters of a run; not measured
LEAST = 32  # assertions from which a run pays; not measured
PAUSE = 1 << 12  # characters that are read form by form after a run that was too short; not measured
LONGEST = 40  # characters of a number in a run; not measured


class Run(NamedTuple):
    """The text's words: indices as they stand between `prefix` and the end of the name, relations, numbers."""

    end: int
    relations: list[str]
    names: list[str]
    numbers: list[str]


@cache
def _bounds(prefix: str, index: str, number: str) -> re.Pattern[str]:
    return re.compile(rf"(?:\s*\(assert\s+\([<>]=\s+{re.escape(prefix)}{index}\s+{number}\s*\)\s*\))+", re.ASCII)


def bounds_run(text: str, pos: int, prefix: str, index: str, number: str) -> Run | None:
    """The run of bounds at `pos` of variables `prefix` + `index` (a pattern); None where it is short."""
    found = _bounds(prefix, index, number).match(text, pos, pos + RUN)
    if found is None:
        return None
    words = found.group().replace("(", " ").replace(")", " ").replace(prefix, "").split()
    if len(words) < 4 * LEAST:
        return None
    return Run(found.end(), words[1::4], words[2::4], words[3::4])


class Numbers(NamedTuple):
    """Decimals `mantissa / 10^places (n,)` and their nearest doubles; `others` are those of another form."""

    near: FloatArray
    mantissa: IntArray
    places: IntArray
    others: dict[int, Fraction]


def numbers_of(words: Sequence[str], exact: Callable[[str], Fraction | None]) -> Numbers | None:
    """The numbers that words denote; `exact` reads those that are no short decimals. None where it cannot."""
    near = np.array(list(map(float, words)))
    dots, lengths = np.array([w.find(".") for w in words]), np.array(list(map(len, words)))
    places = np.where(dots < 0, 0, lengths - 1 - dots)
    small = np.abs(near) * 10.0 ** np.minimum(places, PLACES) < LARGEST
    hard = ~small | (places > PLACES) | (lengths > LONGEST)
    joined = "\n".join(words)
    if "e" in joined or "E" in joined:
        hard |= np.array(["e" in w or "E" in w for w in words])
    others: dict[int, Fraction] = {}
    if hard.any():
        short = list(words)
        for i in np.flatnonzero(hard).tolist():
            value = exact(words[i])
            if value is None:
                return None
            others[i], short[i] = value, "0"
        joined = "\n".join(short)
        places[hard] = 0
    mantissa = np.array(list(map(int, joined.replace(".", "").split("\n"))), dtype=np.int64)
    return Numbers(near, mantissa, places, others)


def put(sides: tuple[Plain, Plain], inputs: IntArray, relations: Sequence[str], numbers: Numbers) -> None:
    """The bounds `relations[k] numbers[k]` of `inputs[k]` into the lower and the upper side."""
    upper = np.array([r == "<=" for r in relations])
    easy = np.ones(len(inputs), dtype=bool)
    easy[list(numbers.others)] = False
    for side in sides:
        chosen: BoolArray = easy & (upper == side.upper)
        side.take(inputs[chosen], numbers.near[chosen], numbers.mantissa[chosen], numbers.places[chosen])
    for k, value in numbers.others.items():
        sides[bool(upper[k])].tighten(int(inputs[k]), value)
