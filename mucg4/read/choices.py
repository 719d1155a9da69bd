"""Many disjunctions that hold together, written out as far as it takes: choices on demand.

Twenty disjunctions of two have a million choices, and most of these fall with the first few of their parts. A *state*
is what some disjunctions leave: bounds and rows that hold together. One disjunction after the other, shortest first, is
added to those states that are still open: each of its disjuncts makes a state, unless one of them adds nothing, for
then it is met. A state that contradicts itself is no state; one that can be seen to be impossible stays as it is, and
becomes a case that covers all further choices. The checker follows the same order (`mucg4.check.contained`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from fractions import Fraction
from typing import NamedTuple

from mucg4.model.query import Box, Case, Conjunction, Impossible
from mucg4.read.normal import Disjunct, Key, Limits, Row, _join, _Normal
from mucg4.records import dataclass

MOST_OPEN = 2048  # states that are open at once; not measured


class State(NamedTuple):
    """A box's own sides and the rows in canonical form name a state."""

    key: Key
    rows: frozenset[Row]


@dataclass
class Choices:
    """What cases are made of when disjunctions are not all written out."""

    normal: _Normal
    common: Disjunct
    limits: Limits
    factors: list[list[Disjunct]]
    known: dict[tuple[Key, Row], bool] = field(default_factory=dict)  # whether a row never holds on a box
    boxes: dict[Key, Box] = field(default_factory=dict)

    def __call__(self, impossible: Impossible) -> tuple[Case, ...] | None:
        """Cases that cover all choices, which leave no disjunction out; None when too many are open at once."""
        open_: dict[State, Disjunct] = {}
        self.enter(Disjunct((), ()), open_)
        closed: dict[State, Disjunct] = {}
        for factor in sorted(self.factors, key=len):
            longer: dict[State, Disjunct] = {}
            for state, parts in open_.items():
                made: dict[State, Disjunct] = {}
                for disjunct in factor:
                    self.enter(_join((parts, disjunct)), made)
                longer.update({state: parts} if state in made else made)
                if len(longer) > 4 * MOST_OPEN:
                    return None
            self.look(longer, impossible)
            open_ = {s: parts for s, parts in longer.items() if not self.never(s)}
            closed.update({s: parts for s, parts in longer.items() if self.never(s)})
            if len(open_) > MOST_OPEN:
                return None
        return self.cases((*closed, *open_))

    def enter(self, parts: Disjunct, into: dict[State, Disjunct]) -> None:
        """Add the state of parts that hold together, when there can be such a point."""
        rows = distinct((*self.common.rows, *parts.rows))
        key = self.normal.own_bounds(parts.bounds, self.limits)
        if rows is not None and not self.box(key).empty:
            into.setdefault(State(key, frozenset(rows)), parts)

    def box(self, key: Key) -> Box:
        if key not in self.boxes:
            self.boxes[key] = self.normal.box(self.limits, key, self.limits.missing(self.normal.prop.inputs))
        return self.boxes[key]

    def never(self, state: State) -> bool:
        """Whether some row of a state is known to hold nowhere on its box."""
        return any(self.known.get((state.key, row), False) for row in state.rows)

    def look(self, states: Iterable[State], impossible: Impossible) -> None:
        """Find out which rows of states hold nowhere, those that are new on a box."""
        asked: dict[Key, dict[Row, None]] = {}
        for state in states:
            for row in state.rows:
                if (state.key, row) not in self.known:
                    asked.setdefault(state.key, {})[row] = None
        cases = [Case(self.box(k), tuple([self.conjunction((r,), k) for r in rows])) for k, rows in asked.items()]
        for (key, rows), answers in zip(asked.items(), impossible(cases), strict=True):
            self.known.update({(key, row): bool(a) for row, a in zip(rows, answers, strict=True)})

    def conjunction(self, rows: tuple[Row, ...], key: Key) -> Conjunction:
        return self.normal.conjunction(rows, self.box(key), key)

    def cases(self, states: Iterable[State]) -> tuple[Case, ...]:
        grouped: dict[Key, dict[tuple[Row, ...], None]] = {}
        for state in states:
            grouped.setdefault(state.key, {})[tuple(sorted(state.rows, key=lambda row: row[:4]))] = None
        if not grouped:
            return self.normal.nothing_unsafe(self.limits)
        return tuple(
            Case(self.box(key), tuple([self.conjunction(rows, key) for rows in some])) for key, some in grouped.items()
        )


def distinct(rows: Iterable[Row]) -> tuple[Row, ...] | None:
    """The rows without those that another one implies; None when two of them contradict each other."""
    best: dict[tuple[tuple[int, Fraction], ...], tuple[Fraction, bool, Row]] = {}
    out: dict[Row, None] = {}
    for row in rows:
        xs, ys, constant, strict, atom = row
        if atom is not None:  # loosened over a box
            out[row] = None
            continue
        form = (*xs, *((-1 - j, c) for j, c in ys))
        if not form:
            if constant > 0 or (constant == 0 and strict):
                return None
            continue
        scale = abs(form[0][1])
        direction = tuple((v, c / scale) for v, c in form)
        old = best.get(direction)
        if old is None or (constant / scale, strict) > old[:2]:
            best[direction] = constant / scale, strict, row
    for direction, (constant, strict, row) in best.items():
        other = best.get(tuple((v, -c) for v, c in direction))
        if other is not None and (constant + other[0] > 0 or (constant + other[0] == 0 and (strict or other[1]))):
            return None
        out[row] = None
    return tuple(out)
