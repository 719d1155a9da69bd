"""One assertion of a long disjunction of conjunctions of comparisons of words, read without forms in between.

A short cut, not a second grammar: what does not match is left to the reader of forms, which gives the same result.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mucg4.model.formula import Compare, Formula, Junction, Term

_WORD = r"[^\s();\"|]+"
_COMPARED = rf"\(\s*[<>]=?\s+{_WORD}\s+{_WORD}\s*\)"
_START = re.compile(r"\(\s*assert\s*\(\s*or(?=[\s(])", re.ASCII)
_DISJUNCT = re.compile(rf"\s*(?:\(\s*(and)\s*({_COMPARED}(?:\s*{_COMPARED})*)\s*\)|({_COMPARED}))", re.ASCII)
_ATOM = re.compile(rf"\(\s*([<>]=?)\s+({_WORD})\s+({_WORD})\s*\)", re.ASCII)
_END = re.compile(r"\s*\)\s*\)", re.ASCII)


def disjunction(
    text: str, pos: int, term: Callable[[str], Term | None], line: Callable[[int], int]
) -> tuple[Junction, int, int] | None:
    """The formula of the assertion at `pos`, where it ends, and how many formulas it is made of; None: another form.

    `term` gives what a word means, None where it is no variable and no number; `line` the line of a position.
    """
    found = _START.match(text, pos)
    if found is None:
        return None
    disjuncts: list[Formula] = []
    made, pos = 1, found.end()
    while m := _DISJUNCT.match(text, pos):
        atoms: list[Formula] = []
        for a in _ATOM.finditer(text, m.start(), m.end()):
            left, right = term(a[2]), term(a[3])
            if left is None or right is None:
                return None
            atoms.append(Compare(a[1], left, right, line(a.start())))
        disjuncts.append(Junction("and", tuple(atoms)) if m[1] else atoms[0])
        made += len(atoms) + (m[1] is not None)
        pos = m.end()
    end = _END.match(text, pos)
    if end is None or not disjuncts:
        return None
    return Junction("or", tuple(disjuncts)), end.end(), made
