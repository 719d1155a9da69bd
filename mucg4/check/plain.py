"""The checker's own way through texts of many assertions of one plain bound each: a piece of text at a time.

A piece is taken when its words, parentheses put apart, are nothing but such assertions of inputs that are declared;
else it is left to the reader of parentheses (`mucg4.check.vnnlib`), which means the same by it. Every end is the double
that `Reader.end` gives. Nothing is shared with `mucg4.read`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from mucg4.ops.arrays import BoolArray, FloatArray, IntArray

LARGE = 1 << 16  # characters from which a text may be taken in pieces; not measured
PIECE = 1 << 18  # most characters of a piece; not measured
LONGEST = 60  # characters of a number, longer ones are read one by one; not measured
BEYOND = 1e300  # numbers from here on too; not measured
_DIGITS = re.compile(r"[-+.0-9eE ]+", re.ASCII)
_ODD = ';"|\x1c\x1d\x1e\x1f'  # comments, quoted words, and what is white space to one way of splitting only


class Sides:
    """The tightest end of each input's two sides among the bounds taken in pieces.

    `ends (2, n)`, `open (2, n)`: lower and upper ends, infinite where there is none, and whether the end itself is left
    out.
    """

    def __init__(self) -> None:
        self.ends = np.array([[-np.inf], [np.inf]])[:, :0]
        self.open = np.zeros((2, 0), dtype=bool)

    @property
    def count(self) -> int:
        """Inputs up to the last one with an end."""
        return int(self.ends.shape[1])

    def add(self, inputs: IntArray, upper: bool, ends: FloatArray, open_: BoolArray) -> None:
        """Ends `(k,)` of some `inputs (k,)` on one side, which may come twice."""
        more = int(inputs.max(initial=-1)) + 1 - self.count
        if more > 0:
            more = max(more, self.count)
            fresh = np.repeat(np.array([[-np.inf], [np.inf]]), more, axis=1)
            self.ends = np.concatenate([self.ends, fresh], axis=1)
            self.open = np.concatenate([self.open, np.zeros((2, more), dtype=bool)], axis=1)
        sign, row = (1.0 if upper else -1.0), int(upper)
        order = np.lexsort((~open_, sign * ends, inputs))  # per input the tightest first
        first = np.ones(len(order), dtype=bool)
        first[1:] = inputs[order][1:] != inputs[order][:-1]
        best = order[first]
        at, end, out = inputs[best], ends[best], open_[best]
        old = self.ends[row, at]
        tighter, equal = sign * end < sign * old, end == old
        self.open[row, at] = np.where(tighter, out, self.open[row, at] | (equal & out))
        self.ends[row, at] = np.where(tighter, end, old)

    def holds(self, x: FloatArray) -> bool:
        """Whether a point `(n,)` is inside of all of them."""
        n = min(self.count, len(x))
        (low, high), (left, right) = self.ends[:, :n], self.open[:, :n]
        bad = (x[:n] < low) | (x[:n] > high) | ((x[:n] == low) & left) | ((x[:n] == high) & right)
        return not bad.any()


def declared(text: str, pos: int) -> tuple[int, list[str]]:
    """The end of a piece of nothing but declarations of version 1.0, and the declared names; none: it is none."""
    end, words = _words(text, pos)
    if not _made_of(words, "(", "declare-const", None, "Real", ")"):
        return pos, []
    return end, words[2::5]


def _words(text: str, pos: int) -> tuple[int, list[str]]:
    """The words of some whole lines, parentheses apart, and where they end; none where they are not plain."""
    end: int = text.rfind("\n", pos, pos + PIECE) + 1
    part = text[pos : max(end, pos)]
    if not part.isascii() or any(c in part for c in _ODD):
        return pos, []
    return end, part.replace("(", " ( ").replace(")", " ) ").split()


def _made_of(words: list[str], *form: str | None) -> bool:
    """Whether words are a form over and over again; None stands for any word but a parenthesis."""
    size = len(form)
    count, more = divmod(len(words), size)
    if more or not count or words.count("(") != form.count("(") * count or words.count(")") != form.count(")") * count:
        return False
    return all(word is None or words[at::size].count(word) == count for at, word in enumerate(form))


def piece(
    text: str,
    pos: int,
    codes: Callable[[Sequence[str]], IntArray | None],
    kind: np.dtype[Any],
    end_of: Callable[[str, bool], tuple[float, bool]],
    sides: Sides,
) -> int:
    """Take the piece of a text that starts at `pos` into `sides`; where it ends, `pos` where it was not taken.

    `codes` gives the variables' codes by their names, None where it does not know one; `kind` is the inputs' type, and
    `end_of` gives the end of a number of any form, for upper bounds or lower ones, and whether it is left out.
    """
    end, words = _words(text, pos)
    if not _made_of(words, "(", "assert", "(", None, None, None, ")", ")"):
        return pos
    count = len(words) // 8
    relations, numbers = words[3::8], words[5::8]
    upper = np.array([r == "<=" for r in relations])
    if relations.count("<=") + relations.count(">=") != count:
        return pos
    joined = " ".join(numbers)
    if _DIGITS.fullmatch(joined) is None:
        return pos
    try:
        near = np.array(list(map(float, numbers)))
    except ValueError:  # no number
        return pos
    inputs = codes(words[4::8])
    if inputs is None or inputs.min() < 0:
        return pos
    stored = near.astype(kind).astype(np.float64)
    stored = np.where(np.isfinite(stored), stored, near)
    ends = np.where(upper, np.maximum(near, stored), np.minimum(near, stored))
    open_ = np.zeros(count, dtype=bool)
    rare = ~(np.abs(near) < BEYOND) | (np.array(list(map(len, numbers))) > LONGEST)
    if "e" in joined or "E" in joined:
        rare |= np.array(["e" in w or "E" in w for w in numbers])
    for i in np.flatnonzero(rare).tolist():
        ends[i], open_[i] = end_of(numbers[i], bool(upper[i]))
    for i in np.flatnonzero((ends == near) & ~rare).tolist():
        number, double = Decimal(numbers[i]), Decimal(near[i].item())  # both exact, and so is their comparison
        if double < number if upper[i] else double > number:
            ends[i], open_[i] = np.nextafter(ends[i], np.inf if upper[i] else -np.inf), True
    for side in (False, True):
        chosen = upper == side
        sides.add(inputs[chosen], side, ends[chosen], open_[chosen])
    return end
