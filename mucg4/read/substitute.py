"""Affine equations of inputs that hold everywhere: each gives one input, which then varies no more.

The cases speak of linked inputs x. Elimination over the rationals solves the equations for some of these; the
coefficients of the solution are rounded to doubles, and a case is written in free inputs w instead: `w = x` but for the
inputs that are given, whose place takes the remainder `w_t = x_t - (sum c x_i + constant)`. That is a change of
variables, exact and invertible whatever the coefficients: nothing is lost by it. What is gained is a narrow box:
by the equation's own two rows, loosened as they are by what evaluating them in the element type may be off, and by how
far the rounded coefficients are from the exact ones, `w_t` lies in a range of a few units in the last place of x_t.
The two rows say no more than this range, and are left out; the bounds of x_t become rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from fractions import Fraction
from math import isfinite

from mucg4.model.decimals import Decimals
from mucg4.model.formula import Compare, Constant, Variable, inputs_of
from mucg4.model.joint import Derived, over_free
from mucg4.model.query import Box, Case, Conjunction, Impossible, hull
from mucg4.read.choices import Choices
from mucg4.read.normal import Coefficients, Row, _Normal
from mucg4.records import dataclass

MOST_EQUATIONS = 4096  # of a query; not measured
MOST_ENTRIES = 1 << 25  # doubles in the matrices that map free inputs to those of networks: 256 MB; not measured
MOST_STEPS = 300_000  # of elimination; measured: a chain of 784 equations takes twice as many, and 5 s with its check
MOST_BITS = 2048  # of a denominator; measured: 20 equations of 40 inputs each solve below it, 40 of 80 not
ZERO = Fraction(0)

Form = dict[int, Fraction]  # coefficients of linked inputs; in solutions -1 - k is what equation k leaves
Range = tuple[Fraction, Fraction]
ExactRow = tuple[Form, Form, Fraction, bool]
NOTHING: ExactRow = ({}, {}, ZERO, False)  # says a row that always holds


@dataclass(frozen=True)
class Equation:
    """Two rows that say `form . x + constant <= 0` and `>= 0`, in this order."""

    halves: tuple[Row, Row]

    @property
    def form(self) -> Form:
        return dict(self.halves[0][0])

    @property
    def constant(self) -> Fraction:
        return self.halves[0][2]

    def left(self, normal: _Normal, box: Box) -> Range | None:
        """Between which numbers `form . x + constant` lies on a box where both rows pass; None: anything may pass."""
        below, above = (normal.proved(half, box) for half in self.halves)
        return (above[2] + self.constant, self.constant - below[2]) if below[0] and above[0] else None


def equations_of(rows: Iterable[Row]) -> list[Equation]:
    """The equations of several inputs among rows that hold together, in the order in which they are complete."""
    seen: dict[tuple[Coefficients, Fraction], Row] = {}
    out: list[Equation] = []
    for row in rows:
        xs, ys, constant, strict, _ = row
        if len(xs) < 2 or ys or strict or (xs, constant) in seen:
            continue
        seen[xs, constant] = row
        opposite = seen.get((tuple((i, -c) for i, c in xs), -constant))
        if opposite is not None and len(out) < MOST_EQUATIONS:
            out.append(Equation((opposite, row)))
    return out


def solved(equations: Sequence[Equation]) -> dict[int, tuple[Form, Fraction]]:
    """Inputs that equations give: `target -> (coefficients, constant)`, no target among the inputs of a solution.

    An equation that follows from those before it, or contradicts them, gives nothing. None do where elimination is
    too long.
    """
    try:
        return _Elimination().solved(equations)
    except _TooLongError:
        return {}


class _TooLongError(Exception):
    """Solving the equations takes too many steps, or makes too long numbers."""


@dataclass
class _Elimination:
    """Solves equations; counts its steps."""

    steps: int = 0

    def solved(self, equations: Sequence[Equation]) -> dict[int, tuple[Form, Fraction]]:
        known: dict[int, tuple[Form, Fraction]] = {}  # each may speak of targets of later ones
        for k, equation in enumerate(equations):
            form, constant = self.inserted({**equation.form, -1 - k: Fraction(-1)}, equation.constant, known)
            open_ = {i: c for i, c in form.items() if i >= 0}
            if open_:
                target = _target(equation, open_)
                slope = form.pop(target)
                known[target] = {i: -c / slope for i, c in form.items()}, -constant / slope
        out: dict[int, tuple[Form, Fraction]] = {}
        for target, (form, constant) in reversed(known.items()):
            out[target] = self.inserted(form, constant, out)
        return out

    def inserted(
        self, form: Form, constant: Fraction, known: Mapping[int, tuple[Form, Fraction]]
    ) -> tuple[Form, Fraction]:
        """A form with solutions in the place of the inputs that they give, until none of these is left."""
        while not known.keys().isdisjoint(form):
            out: Form = {}
            for i, c in form.items():
                terms, rest = known.get(i, ({i: Fraction(1)}, ZERO))
                constant += c * rest
                for j, d in terms.items():
                    out[j] = out.get(j, ZERO) + c * d
                self.steps += len(terms)
                if self.steps > MOST_STEPS or c.denominator.bit_length() > MOST_BITS:
                    raise _TooLongError
            form = {i: c for i, c in out.items() if c}
        self.steps += len(form)
        return form, constant


def _target(equation: Equation, open_: Form) -> int:
    """Which input an equation gives: one that stands alone on a side, else the last of those with large coefficients.

    Evaluated in any arithmetic, what the other side gives is a value that an input on its own can take.
    """
    atom = equation.halves[0][4]
    for side, other in () if atom is None else ((atom.left, atom.right), (atom.right, atom.left)):
        if isinstance(side, Variable) and side.is_input and side.index in open_ and side.index not in inputs_of(other):
            return side.index
    largest = max(map(abs, open_.values()))
    return max(i for i, c in open_.items() if 2 * abs(c) >= largest)


@dataclass(frozen=True, eq=False)
class Substitution:
    """How cases over linked inputs become cases over free ones; `solutions` are the exact ones of `derived`."""

    normal: _Normal
    equations: tuple[Equation, ...]
    solutions: Mapping[int, tuple[Form, Fraction]]
    derived: tuple[Derived, ...]
    said: frozenset[tuple[Coefficients, Fraction]] = field(repr=False)  # by the remainders' ranges: rows of equations

    @staticmethod
    def of(normal: _Normal, rows: Iterable[Row], boxes: Iterable[Box]) -> Substitution | None:
        """None where no equation among the rows, which hold in all cases, narrows anything on all of the boxes."""
        filled = [box for box in boxes if not box.empty]
        telling = tuple(e for e in equations_of(rows) if all(e.left(normal, box) is not None for box in filled))
        solutions = solved(telling)
        derived = tuple(filter(None, (_rounded(t, *solution) for t, solution in solutions.items())))
        if len(derived) < len(solutions):  # a number beyond those of doubles: no text that anyone means
            return None
        if not derived or normal.prop.inputs**2 > MOST_ENTRIES:
            return None
        said = frozenset((half[0], half[2]) for e in telling for half in e.halves)
        return Substitution(normal, telling, solutions, derived, said)

    def cases(self, cases: Sequence[Case]) -> tuple[Case, ...]:
        return tuple(map(self.case, cases))

    def case(self, case: Case) -> Case:
        """The same points, in free inputs; an empty box stays as it is."""
        box = case.box
        free: Box = box
        rows: list[tuple[ExactRow, ExactRow]] = []
        if not box.empty:
            ranges = self.remainders(box)
            free, rows = _moved(box, ranges), self.sides(box, ranges)
        made = tuple(self.conjunction(conjunction, rows) for conjunction in case.conjunctions)
        return Case(free, made)

    def finer(self, choices: Choices, impossible: Impossible) -> tuple[Case, ...] | None:
        """As `choices`, in free inputs."""
        found = choices(lambda cases: impossible(self.cases(cases)))
        return None if found is None else self.cases(found)

    # -- boxes

    def remainders(self, box: Box) -> dict[int, Range]:
        """Between which doubles `w_t` lies, by target, where all equations pass."""
        known = {i: _ends(box, i) for d in self.derived for i, _ in (*d.terms, (d.target, 0))}
        for k, equation in enumerate(self.equations):
            left = equation.left(self.normal, box)
            if left is not None:
                known[-1 - k] = left
        out = {}
        for d in self.derived:
            form, constant = self.solutions[d.target]
            form = {i: form.get(i, ZERO) - c for i, c in {**dict.fromkeys(form, ZERO), **_exact(d)}.items()}
            constant -= Fraction(d.constant)
            if not all(i in known for i, c in form.items() if c):  # the equation says nothing here: by the box alone
                form, constant = {d.target: Fraction(1), **{i: -c for i, c in _exact(d).items()}}, -Fraction(d.constant)
            low, high = _range(form, constant, known)
            out[d.target] = (_double(low, -1), _double(high, 1))
        return out

    # -- rows

    def sides(self, box: Box, ranges: Mapping[int, Range]) -> list[tuple[ExactRow, ExactRow]]:
        """The bounds of the inputs that are given, as stated and as proved, but for those that hardly matter.

        Those cut off no more than the remainder's range, at a corner of the box: a search that follows them gets
        nowhere. The witness gate judges all of them, by the assertions.
        """
        known = {i: _ends(box, i) for d in self.derived for i, _ in d.terms} | dict(ranges)
        out: list[tuple[ExactRow, ExactRow]] = []
        for d in self.derived:
            form, constant = over_free({d.target: Fraction(1)}, ZERO, self.derived)
            reached, width = _range(form, constant, known), ranges[d.target][1] - ranges[d.target][0]
            for upper, stated in enumerate((box.lower[d.target], box.upper[d.target])):
                end = _ends(box, d.target)[upper]
                if reached[1] <= end + width if upper else reached[0] >= end - width:
                    continue
                sign = 1 if upper else -1
                side = {i: sign * c for i, c in form.items()}
                out.append(((side, {}, sign * (constant - stated), False), (side, {}, sign * (constant - end), False)))
        return out

    def conjunction(self, conjunction: Conjunction, more: Sequence[tuple[ExactRow, ExactRow]]) -> Conjunction:
        strict = zip(conjunction.stated_strict.tolist(), conjunction.strict.tolist(), strict=True)
        rows = list(more)
        for stated, proved, (a, b) in zip(conjunction.exact, conjunction.proved, strict, strict=True):
            if stated[1] or (tuple(sorted(stated[0].items())), stated[2]) not in self.said:
                rows.append(((*self.over_free(stated), a), (*self.over_free(proved), b)))
        rows = rows or [(NOTHING, NOTHING)]
        prop = self.normal.prop
        return Conjunction.build([s for s, _ in rows], prop.inputs, prop.outputs, [p for _, p in rows])

    def over_free(self, row: tuple[Form, Form, Fraction]) -> tuple[Form, Form, Fraction]:
        form, constant = over_free(row[0], row[2], self.derived)
        return form, row[1], constant

    def bounds(self, links: Sequence[int]) -> tuple[Compare, ...]:
        """What a text says of the declared inputs that are given in runs of bounds; the boxes say it no more."""
        targets = {d.target for d in self.derived}
        plain = self.normal.prop.bounds or ()
        return tuple(
            Compare("<=" if upper else ">=", Variable("", True, i), Constant(side[link]))
            for i, link in enumerate(links)
            if link in targets
            for upper, side in enumerate(plain)
            if link in side
        )


def _rounded(target: int, form: Form, constant: Fraction) -> Derived | None:
    """A solution with the nearest doubles; None where there is none."""
    try:
        terms = tuple((i, float(c)) for i, c in sorted(form.items()) if i >= 0)
        made = Derived(target, tuple((i, c) for i, c in terms if c), float(constant))
    except OverflowError:
        return None
    return made if all(map(isfinite, (made.constant, *(c for _, c in terms)))) else None


def _exact(d: Derived) -> Form:
    return {i: Fraction(c) for i, c in d.terms}


def _ends(box: Box, i: int) -> Range:
    return Fraction(box.lo[i].item()), Fraction(box.hi[i].item())


def _range(form: Mapping[int, Fraction], constant: Fraction, known: Mapping[int, Range]) -> Range:
    """The range of an affine form whose variables have ranges."""
    low = high = constant
    for i, c in form.items():
        if c:
            ends = c * known[i][0], c * known[i][1]
            low, high = low + min(ends), high + max(ends)
    return low, high


def _double(value: Fraction, sign: int) -> Fraction:
    """A double that is not below (sign 1), not above a number."""
    return Fraction(hull((value,), sign, "float64")[0].item())


def _moved(box: Box, ranges: Mapping[int, Range]) -> Box:
    """A box with other ranges of some inputs."""
    lower, upper = (
        _with(side, {t: ends[k] for t, ends in ranges.items()}) for k, side in enumerate((box.lower, box.upper))
    )
    return Box(lower, upper, box.element_type, tuple(end for end in box.ends if end[0] not in ranges))


def _with(side: Sequence[Fraction], instead: Mapping[int, Fraction]) -> Sequence[Fraction]:
    """One side of a box with some other bounds."""
    if not isinstance(side, Decimals):
        return tuple(instead.get(i, b) for i, b in enumerate(side))
    near = side.near.copy()
    near[list(instead)] = [float(b) for b in instead.values()]
    return replace(side, near=near, others={**side.others, **instead})
