"""Whether a query's cases contain the disjuncts of a property that was read again: the comparison.

A case's box contains a disjunct's when its ends do (`Box.lo`, `Box.hi`, the arrays that are proved on); what it says of
an input that neither the network's output nor a row of the text depends on does not matter. A row of a
conjunction is implied by a row of the disjunct that is the same up to a positive factor and has at least its constant,
or by a bound. Rows are compared as exact numbers, and the arrays that the provers use have to be the nearest
doubles of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field
from fractions import Fraction
from functools import cached_property
from itertools import chain, product
from math import inf, isfinite, prod
from typing import ClassVar, NamedTuple

import numpy as np

from mucg4.check.vnnlib import MOST_DISJUNCTS, NOTHING, ZERO, Atom, Bound, Reader, Refusal, Row, directed
from mucg4.limits.budget import Budget
from mucg4.model.query import Case, Conjunction, Query
from mucg4.ops.arrays import BoolArray, FloatArray
from mucg4.records import dataclass

MOST_OPEN = 20_000  # choices that are followed at once; not measured, above the first reader's
FEW = 64  # conjunctions with the directions of a choice that are compared with it; not measured
MOST_STEPS = 50_000_000  # comparisons of rows and bounds with cases in vain; not measured

Side = tuple[int, bool]  # input, upper
End = tuple[float, bool]  # a double, whether the end itself is left out
Known = tuple[int, Fraction, bool]  # direction, constant, strict
Name = tuple[frozenset[tuple[Side, End]], frozenset[tuple[int, tuple[Fraction, bool]]], frozenset[int]]


@dataclass
class Part:
    """Bounds and rows that hold together: `sides` has the tightest end per side and whether it is open."""

    sides: dict[Side, End] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    never: bool = False

    def add(self, atom: Atom) -> None:
        if isinstance(atom, Bound):
            side = atom.input, atom.upper
            old = self.sides.get(side)
            self.sides[side] = (
                (atom.end, atom.open) if old is None else tighter_end(old, (atom.end, atom.open), atom.upper)
            )
        elif isinstance(atom, Row):
            self.rows.append(atom)
        else:
            self.never |= not atom


class Place(NamedTuple):
    """A disjunct's own sides, whether no input is left there, and the cases whose box has these very ends."""

    own: dict[Side, End]
    nothing: bool
    cases: list[int]


@dataclass
class Index:
    """A case's conjunctions by their rows and by the rows' directions."""

    rows: dict[frozenset[Known], Conjunction] = field(default_factory=dict)
    directions: dict[frozenset[int], list[Conjunction]] = field(default_factory=dict)


def tighter_end(a: End, b: End, upper: bool) -> End:
    if a[0] == b[0]:
        return a[0], a[1] or b[1]
    return a if (a[0] < b[0]) == upper else b


def part_of(atoms: Iterable[Atom]) -> Part:
    part = Part()
    for atom in atoms:
        part.add(atom)
    return part


@dataclass
class Comparison:
    """Looks for a case and a conjunction for every disjunct."""

    reader: Reader
    query: Query
    budget: Budget
    steps: int = 0
    placed: dict[int | None, Place] = field(default_factory=dict)  # per part object
    rows: dict[int, list[Known]] = field(default_factory=dict)  # per conjunction object
    known_cases: dict[int, Index] = field(default_factory=dict)  # per case object
    shared: dict[tuple[Conjunction, ...], Index] = field(default_factory=dict)  # between cases of the same conjunctions
    known_idle: dict[int, bool] = field(default_factory=dict)
    held: bool = False  # whether some box held the last disjunct that was looked for
    written: ClassVar[int] = MOST_DISJUNCTS  # choices of disjunctions up to which each is looked for on its own

    def run(self) -> None:
        self.sizes()
        self.common = part_of(self.reader.atoms)
        self.ends, self.open = self.common_sides()
        self.complete()
        self.low, self.high = self.ends
        if self.common.never or np.any((self.low > self.high) | ((self.low == self.high) & self.open.any(axis=0))):
            return
        self.places: dict[frozenset[tuple[int, bool, float]], list[int]] = {}
        self.needs: list[dict[Side, float]] = []
        for k, case in enumerate(self.query.cases):
            self.needs.append(self.needed(case))
            self.places.setdefault(frozenset((i, u, e) for (i, u), e in self.needs[k].items()), []).append(k)
        factors = [[part_of(d) for d in factor] for factor in self.reader.factors]
        if prod(map(len, factors)) > self.written:
            self.choices(sorted(factors, key=len))
            return
        for count, choice in enumerate(product(*factors)):
            if not count & 0xFF:
                self.budget.poll()
            self.disjunct(count, choice)

    def choices(self, factors: Sequence[Sequence[Part]]) -> None:
        """As for every choice of one part of each factor, without making all of them.

        What holds for some parts of the first factors holds for all choices that begin with these: when they lie in a
        conjunction of a case, so do those. A factor is met by parts to which one of its own adds nothing.
        """
        open_: list[tuple[Part, ...]] = [()]
        for depth in range(len(factors) + 1):
            left: dict[Name, tuple[Part, ...]] = {}
            for count, choice in enumerate(open_):
                if not count & 0xFF:
                    self.budget.poll()
                name = self.name(choice)
                if name is not None and name not in left and not self.lies(choice, quick=True):
                    left[name] = choice
            if depth == len(factors):
                for count, choice in enumerate(left.values()):
                    self.disjunct(count, choice)
                return
            open_ = []
            for name, choice in left.items():
                longer = [(*choice, part) for part in factors[depth]]
                open_.extend([choice] if any(self.name(more) == name for more in longer) else longer)
            self.step(len(open_))
            if len(open_) > MOST_OPEN:
                raise Refusal(f"more than {MOST_OPEN} choices of disjunctions are open at once")

    def name(self, choice: Sequence[Part]) -> Name | None:
        """What parts say together, exactly, in one form; None when there is no such point.

        Rows that are loosened over a box go by themselves: how much they are may change with further parts.
        """
        if any(p.never for p in choice):
            return None
        own, nothing, _ = self.place(choice)
        if nothing or self.rows_of(choice, own) is None:
            return None
        exact: dict[int, tuple[Fraction, bool]] = {}
        loose: set[int] = set()
        for row in chain(self.common.rows, (r for p in choice for r in p.rows)):
            if row.error.constant or row.error.inputs:
                loose.add(id(row))
            else:
                known = row.constant, row.strict
                exact[row.direction] = max(exact.get(row.direction, known), known)
        tighter = [(s, end) for s, end in own.items() if tighter_end(self.side({}, *s), end, s[1]) != self.side({}, *s)]
        return frozenset(tighter), frozenset(exact.items()), frozenset(loose)

    def rows_of(self, choice: Sequence[Part], own: dict[Side, End]) -> dict[int, tuple[Fraction, bool]] | None:
        """The tightest rows of parts that hold together; None when they never do."""
        rows = self.tightest([*self.common.rows, *(r for p in choice for r in p.rows)], own)
        never, strict = rows.pop(NOTHING, (Fraction(-1), False))
        return None if never > 0 or (never == 0 and strict) else rows

    def complete(self) -> None:
        """Bounds that all disjuncts have in common without stating them; version 1.0 states all.

        `unlimited (2, n)` are the sides that still have none.
        """
        self.unlimited = np.isinf(self.ends)

    def sizes(self) -> None:
        network = self.query.networks[0]
        stated, has = self.reader.sizes(), (network.input_size, network.output_size)
        if self.reader.misses(*has):
            raise Refusal("the text declares {} inputs and {} outputs, the network has {} and {}".format(*stated, *has))
        if any(case.box.size != has[0] for case in self.query.cases):
            raise Refusal("a box of the query has another number of inputs")

    def common_sides(self) -> tuple[FloatArray, BoolArray]:
        """What all disjuncts have in common: ends `(2, n)`, lower ones first, and whether they are left out."""
        n = self.query.networks[0].input_size
        ends, open_ = np.repeat(np.array([[-inf], [inf]]), n, axis=1), np.zeros((2, n), dtype=bool)
        many = self.reader.sides
        count = min(n, many.count)
        ends[:, :count], open_[:, :count] = many.ends[:, :count], many.open[:, :count]
        for (i, upper), known in self.common.sides.items():
            row = int(upper)
            ends[row, i], open_[row, i] = tighter_end((ends[row, i].item(), bool(open_[row, i])), known, upper)
        return ends, open_

    def needed(self, case: Case) -> dict[Side, float]:
        """The sides of the case's box that are tighter than what all disjuncts have in common.

        An input that has some value there, and that nothing depends on, has no side that matters: a point of the
        disjunct is unsafe with any value of it, if with one.
        """
        out: dict[Side, float] = {}
        for upper, ends in ((False, case.box.lo), (True, case.box.hi)):
            bad = ~(ends >= self.high) if upper else ~(ends <= self.low)
            for i in np.flatnonzero(bad).tolist():
                out[i, upper] = float(ends[i])
        loose = [(i, upper) for i, upper in out if self.unlimited[int(upper), i]]
        for side in loose:
            i = side[0]
            if case.box.lo[i] <= case.box.hi[i] and self.idle(i):
                del out[side]
        return out

    @cached_property
    def spoken(self) -> set[int]:
        """The variables of all rows of the text."""
        atoms = chain(self.reader.atoms, (a for factor in self.reader.factors for d in factor for a in d))
        directions = {a.direction for a in atoms if isinstance(a, Row) and a.direction != NOTHING}
        return {v for d in directions for v, _ in self.reader.named[d]}

    def idle(self, i: int) -> bool:
        """Whether nothing depends on an input."""
        if i not in self.known_idle:
            self.known_idle[i] = i not in self.spoken and not self.query.networks[0].reads([i])
        return self.known_idle[i]

    def nothing(self, sides: dict[Side, End]) -> bool:
        """Whether no input value is left on some of these sides."""
        for i, _ in sides:
            (low, a), (high, b) = (self.side(sides, i, upper) for upper in (False, True))
            if low > high or (low == high and (a or b)):
                return True
        return False

    def side(self, own: dict[Side, End], i: int, upper: bool) -> End:
        row = int(upper)
        known = self.ends[row, i].item(), bool(self.open[row, i])
        return tighter_end(known, own[i, upper], upper) if (i, upper) in own else known

    def place(self, choice: Sequence[Part]) -> Place:
        """Where parts that hold together are; kept where one part alone has bounds."""
        bounded = [p for p in choice if p.sides]
        name = id(bounded[0]) if len(bounded) == 1 else None
        if name in self.placed:
            return self.placed[name]
        own: dict[Side, End] = {}
        for part in bounded:
            for side, known in part.sides.items():
                own[side] = tighter_end(own[side], known, side[1]) if side in own else known
        tighter: list[tuple[int, bool, float]] = []
        for (i, upper), (end, _) in own.items():
            if end < self.high[i] if upper else end > self.low[i]:
                tighter.append((i, upper, end))
        place = Place(own, self.nothing(own), self.places.get(frozenset(tighter), []))
        if name is not None:
            self.placed[name] = place
        return place

    def disjunct(self, number: int, choice: Sequence[Part]) -> None:
        """Find the disjunct's place; raises `Refusal` when there is none."""
        if not self.lies(choice):
            what = "no conjunction of the query asks for less than" if self.held else "no box of the query contains"
            raise Refusal(f"{what} disjunct {number} of the text")

    def lies(self, choice: Sequence[Part], quick: bool = False) -> bool:
        """Whether parts that hold together lie in some conjunction of some case, or hold nowhere.

        `quick` looks only at cases with just this box and at conjunctions with just these rows, or of such directions.
        """
        if any(p.never for p in choice):
            return True
        own, nothing, first = self.place(choice)
        rows = {} if nothing else self.rows_of(choice, own)
        if nothing or rows is None or any(self.inside(self.query.cases[k], rows, own, quick) for k in first):
            return True
        self.held = bool(first)
        if quick:
            return False
        for k, needs in enumerate(self.needs):
            self.step(1)
            if all(
                side in own and (own[side][0] <= end if side[1] else own[side][0] >= end) for side, end in needs.items()
            ):
                self.held = True
                if k not in first and self.inside(self.query.cases[k], rows, own):
                    return True
        return False

    def step(self, count: int) -> None:
        self.steps += count
        if self.steps > MOST_STEPS:
            raise Refusal("too many disjuncts to compare with too many cases")

    def tightest(self, rows: Sequence[Row], own: dict[Side, End]) -> dict[int, tuple[Fraction, bool]]:
        """Per direction the largest constant and whether it is strict, loosened by its error on the box."""
        out: dict[int, tuple[Fraction, bool]] = {}

        def far(i: int) -> Fraction:
            low, high = self.side(own, i, False)[0], self.side(own, i, True)[0]
            if not isfinite(low) or not isfinite(high):
                raise Refusal(f"input X_{i} has no bound")
            return Fraction(max(abs(low), abs(high)))

        for row in rows:
            off = self.reader.off(row.error, row.peak, far)
            if off is None:
                continue
            constant = row.constant - off if off else row.constant
            old = out.get(row.direction)
            if old is None or constant > old[0]:
                out[row.direction] = constant, row.strict
            elif constant == old[0]:
                out[row.direction] = constant, row.strict or old[1]
        return out

    def inside(
        self, case: Case, rows: dict[int, tuple[Fraction, bool]], own: dict[Side, End], quick: bool = False
    ) -> bool:
        """Whether some conjunction of a case whose box fits is implied by the rows and bounds."""
        if id(case) not in self.known_cases:
            self.known_cases[id(case)] = self.shared.setdefault(case.conjunctions, Index())
        index = self.known_cases[id(case)]
        if not index.rows:
            index.rows.update((self.key(self.known(c)), c) for c in case.conjunctions)
        exact = index.rows.get(self.key((d, c, s) for d, (c, s) in rows.items()))
        if exact is not None and self.implied(exact, rows, own):
            return True
        some = self.alike(case, index, frozenset(rows)) if quick else case.conjunctions
        return any(self.implied(c, rows, own) for c in some)

    def alike(self, case: Case, index: Index, directions: frozenset[int]) -> Sequence[Conjunction]:
        """The first few conjunctions of a case whose rows have such directions."""
        if not index.directions:
            for conj in case.conjunctions:
                index.directions.setdefault(frozenset(d for d, *_ in self.known(conj) if d >= 0), []).append(conj)
        return index.directions.get(directions, [])[:FEW]

    def implied(self, conj: Conjunction, rows: dict[int, tuple[Fraction, bool]], own: dict[Side, End]) -> bool:
        known = self.known(conj)
        self.step(1 + len(known))
        for direction, constant, strict in known:
            mine = rows.get(direction)
            if mine is not None and (mine[0] > constant or (mine[0] == constant and (mine[1] or not strict))):
                continue
            if direction == NOTHING:
                if constant < 0 or (constant == 0 and not strict):
                    continue
                return False
            if not self.bounded(direction, constant, strict, own):
                return False
        return True

    def bounded(self, direction: int, constant: Fraction, strict: bool, own: dict[Side, End]) -> bool:
        """Whether bounds alone imply a row of one input."""
        pairs = self.reader.named[direction]
        if len(pairs) != 1 or pairs[0][0] < 0:
            return False
        (i, slope), *_ = pairs
        end, open_ = self.side(own, i, slope > 0)
        if not isfinite(end):
            return False
        value = slope * Fraction(end) + constant  # the row at the end; it is smaller everywhere else
        return value < 0 or (value == 0 and (open_ or not strict))

    def key(self, rows: Iterable[Known]) -> frozenset[Known]:
        """What conjunctions are looked up by: their rows but for those that bounds imply."""
        names = self.reader.named
        return frozenset(r for r in rows if r[0] >= 0 and (len(names[r[0]]) > 1 or names[r[0]][0][0] < 0))

    def code(self, j: int) -> int:
        """The reader's variable for the network's output j."""
        return -1 - j

    def stated(self, xs: dict[int, Fraction], constant: Fraction) -> tuple[dict[int, Fraction], Fraction]:
        """The inputs' part of a row of the query, over the inputs that the text speaks of."""
        return dict(xs), constant

    def known(self, conj: Conjunction) -> list[Known]:
        """The rows of the proved set with numbered directions."""
        if id(conj) in self.rows:
            return self.rows[id(conj)]
        if not faithful(conj):
            raise Refusal("the query's arrays are not those of its exact constraints")
        out: list[Known] = []
        for (xs, ys, constant), strict in zip(conj.proved, conj.strict.tolist(), strict=True):
            form, constant = self.stated(xs, constant)
            for j, c in ys.items():  # two outputs may stand for the same variable
                form[self.code(j)] = form.get(self.code(j), ZERO) + c
            if any(form.values()):
                direction, scale = directed(form.items())
                out.append((self.reader.numbered(direction), constant / scale, strict))
            else:
                out.append((NOTHING, constant, strict))
        self.rows[id(conj)] = out
        return out


def faithful(conj: Conjunction) -> bool:
    """Whether the arrays of the proved set are the nearest doubles of its exact rows."""
    m = len(conj.proved)
    if not len(conj.constants) == len(conj.strict) == len(conj.x_coeffs) == len(conj.y_coeffs) == m:
        return False
    for r, (xs, ys, constant) in enumerate(conj.proved):
        if conj.constants[r] != float(constant):
            return False
        for row, coeffs in ((conj.x_coeffs[r], xs), (conj.y_coeffs[r], ys)):
            kept = {i: float(c) for i, c in coeffs.items() if c}
            if row.strides == (0,):
                row = row[:1]
            if np.count_nonzero(row) != sum(v != 0 for v in kept.values()):
                return False
            if any(not 0 <= i < len(row) or row[i] != v for i, v in kept.items()):
                return False
    return True
