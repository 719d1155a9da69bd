"""Syntax tree -> normal form: boxes, and on each box a disjunction of conjunctions of linear rows.

The formula is brought into disjunctive form. Written out naively, k assertions of two disjuncts each
make 2^k; two habits keep the common files small. Assertions without `or` are merged first and never
multiplied. Disjunctions that speak only of single inputs (boxes) are kept apart from the others, so
that boxes x outputs shares one tuple of conjunctions between all boxes. What is still too large is refused.

What a runtime's rounding lets pass besides the exact set (`Box`, `Conjunction`) is part of the normal form, so that
nothing below needs the text: a bound with arithmetic has an end of its own and stays as a row, rows with arithmetic are
loosened over the box they stand with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from fractions import Fraction
from itertools import chain, product
from math import prod
from typing import Any, NamedTuple

from mucg4.errors import InputError, UnsupportedError
from mucg4.model.decimals import Plain
from mucg4.model.formula import Compare, Constant, Formula, Junction, ParsedProperty, Term, Variable
from mucg4.model.query import Box, Case, Conjunction, hull
from mucg4.read.rounding import Rounding, calculates, rounding_of
from mucg4.records import dataclass

MOST_DISJUNCTS = 1_000_000  # of one property; not measured
MOST_ENTRIES = 50_000_000  # doubles in all rows of all conjunctions: 400 MB; not measured
MOST_BITS = 200_000  # of the numerator and denominator of one number; not measured
_LARGEST = Fraction(1.7976931348623157e308)  # given: the largest double

Coefficients = tuple[tuple[int, Fraction], ...]
Row = tuple[Coefficients, Coefficients, Fraction, bool, Compare | None]  # inputs, outputs, constant, strict; `<= 0`
Linear = tuple[dict[int, Fraction], dict[int, Fraction], Fraction]
Side = tuple[Fraction, Fraction | None]  # stated bound; its end where constraints with arithmetic take part
Key = tuple[tuple[int, bool, Side], ...]

TRUE: Row = ((), (), Fraction(0), False, None)


class Bound(NamedTuple):
    """`X_input <= value` (upper) or `X_input >= value`; `end` is what passes when that is evaluated with arithmetic."""

    input: int
    upper: bool
    value: Fraction
    end: Fraction | None = None


class Disjunct(NamedTuple):
    """Bounds and rows that hold together."""

    bounds: tuple[Bound, ...]
    rows: tuple[Row, ...]


@dataclass
class Limits:
    """What holds in all disjuncts: `plain` bounds of each side (lower, upper) as they came, `own` sides instead."""

    plain: tuple[Plain, Plain]
    own: dict[tuple[int, bool], Side] = field(default_factory=dict)

    def get(self, index: int, upper: bool) -> Side | None:
        """The side of an input, None where it has no bound."""
        found = self.own.get((index, upper))
        if found is None and index in self.plain[upper]:
            return self.plain[upper][index], None
        return found

    def missing(self, inputs: int) -> list[tuple[int, bool]]:
        """The sides without a bound, lower ones first."""
        return [(i, u) for u in (False, True) for i in self.plain[u].missing(inputs) if (i, u) not in self.own]


class UnboundedError(InputError):
    """An input has no bound on some side."""


class ProductError(UnsupportedError):
    """A product of variables."""


def to_cases(
    prop: ParsedProperty,
    element_type: str = "float32",
    ignored: frozenset[int] = frozenset(),
    span: Fraction | None = None,
) -> tuple[Case, ...]:
    """The normal form: one case per distinct input box, in order of first appearance, for inputs of `element_type`.

    Bounds of single inputs make the box, intersected with those asserted for all disjuncts; a strict one, or one
    with arithmetic, is relaxed in the box and stays as a row too. An empty box is kept. Every case has at
    least one conjunction and every conjunction at least one row (`0 <= 0` when nothing else is
    asked). An input without a bound gets one near 0 where it is among the `ignored` (nothing reads them)
    and no row speaks of it, strict bounds apart; else one `span` from its other bound, or from 0. Raises
    `UnboundedError` without a `span`, `ProductError` for products of variables, `UnsupportedError` for more than a
    million disjuncts.
    """
    return _Normal(prop, element_type, ignored, span).cases()


def open_inputs(prop: ParsedProperty, element_type: str = "float32") -> list[int]:
    """The inputs that the common part of all disjuncts leaves without a bound on some side."""
    normal = _Normal(prop, element_type)
    limits = normal.limits(_factors(prop.assertions, normal.atom)[0].bounds)
    return sorted({i for i, _ in limits.missing(prop.inputs)})


@dataclass
class _Normal:
    """Owner of one property's way to its normal form."""

    prop: ParsedProperty
    element_type: str
    ignored: frozenset[int] = frozenset()
    span: Fraction | None = None
    built: dict[tuple[Any, ...], Conjunction] = field(default_factory=dict)
    roundings: dict[int, Rounding] = field(default_factory=dict)  # per atom object, which the property keeps

    def cases(self) -> tuple[Case, ...]:
        common, boxes, others = _factors(self.prop.assertions, self.atom)
        limits = self.limits(common.bounds)
        grouped: dict[Key, dict[tuple[Row, ...], None]] = {}
        for alternative in boxes:
            alone = self.own_bounds(alternative, limits)
            for other in others:
                key = self.own_bounds((*alternative, *other.bounds), limits) if other.bounds else alone
                grouped.setdefault(key, {})[tuple(dict.fromkeys((*common.rows, *other.rows)))] = None
        _refuse_large(grouped, self.prop.inputs, self.prop.outputs)
        if self.ignored:
            self.ignored -= {i for some in grouped.values() for rows in some for row in rows for i in _tied(row)}
        cases = []
        gaps = limits.missing(self.prop.inputs)
        for key, conjunctions in grouped.items():
            box = self.box(limits, key, gaps)
            cases.append(Case(box, tuple(self.conjunction(rows, box, key) for rows in conjunctions)))
        return tuple(cases)

    def atom(self, formula: Compare) -> list[Disjunct]:
        """One comparison in normal form."""
        return _atom(formula, self.element_type)

    def limits(self, bounds: Iterable[Bound]) -> Limits:
        """The bounds that hold in all disjuncts, with those that came in long runs."""
        limits = Limits(self.prop.bounds or (Plain(False), Plain(True)))
        for (index, upper), side in self.tightest(bounds).items():
            old = limits.get(index, upper)
            limits.own[index, upper] = side if old is None else self.tighter(old, side, upper)
        return limits

    def tightest(self, bounds: Iterable[Bound]) -> dict[tuple[int, bool], Side]:
        """The intersection of bounds: `(input, upper) -> side`."""
        out: dict[tuple[int, bool], Side] = {}
        for index, upper, value, end in bounds:
            old = out.get((index, upper))
            out[index, upper] = (value, end) if old is None else self.tighter(old, (value, end), upper)
        return out

    def tighter(self, a: Side, b: Side, upper: bool) -> Side:
        """Both sides together: the tighter stated bound and the tighter end, which may come from the other."""
        if a[1] is None and b[1] is None:
            return a if (a[0] <= b[0]) == upper else b
        choose = min if upper else max
        value, end = choose(a[0], b[0]), choose(self.end(v, upper) if e is None else e for v, e in (a, b))
        return value, None if end == self.end(value, upper) else end

    def end(self, value: Fraction, upper: bool) -> Fraction:
        """The end of one plain bound's hull."""
        return Fraction(hull((value,), 1 if upper else -1, self.element_type)[0].item())

    def own_bounds(self, bounds: Sequence[Bound], limits: Limits) -> Key:
        """What `bounds` add to the common limits; equal keys mean equal boxes."""
        if not bounds:
            return ()
        own = []
        for (index, upper), side in self.tightest(bounds).items():
            limit = limits.get(index, upper)
            both = side if limit is None else self.tighter(limit, side, upper)
            if both != limit:
                own.append((index, upper, both))
        return tuple(sorted(own, key=lambda entry: entry[:2]))

    def nothing_unsafe(self, limits: Limits) -> tuple[Case, ...]:
        """The cases of a property whose parts contradict each other."""
        box = self.box(limits, (), limits.missing(self.prop.inputs))
        return (Case(box, (self.conjunction((((), (), Fraction(1), False, None),), box, ()),)),)

    def box(self, limits: Limits, key: Key, gaps: Sequence[tuple[int, bool]]) -> Box:
        """The box of some disjuncts; `gaps` are the sides that the limits leave without a bound."""
        own = {**limits.own, **{(i, upper): side for i, upper, side in key}}
        for i, upper in gaps:
            if (i, upper) not in own:
                other = own.get((i, not upper)) or limits.get(i, not upper) or (Fraction(0), None)
                own[i, upper] = self.stand_in(i, upper, other[0], "upper" if upper else "lower"), None
        ends = tuple([(i, upper, end) for (i, upper), (_, end) in own.items() if end is not None])
        values: tuple[dict[int, Fraction], dict[int, Fraction]] = {}, {}
        for (i, upper), (value, _) in own.items():
            values[upper][i] = value
        sides = [self.side(plain, some) for plain, some in zip(limits.plain, values, strict=True)]
        return Box(sides[0], sides[1], self.element_type, ends)

    def side(self, plain: Plain, own: dict[int, Fraction]) -> Sequence[Fraction]:
        """One side of a box: plain bounds but for its own ones."""
        if plain.many:
            return plain.decimals(self.prop.inputs, own)
        return tuple([own[i] if i in own else plain[i] for i in range(self.prop.inputs)])

    def stand_in(self, i: int, upper: bool, other: Fraction, word: str) -> Fraction:
        """A bound for a side that has none, `other` is that of the other side or 0."""
        span = Fraction(0) if i in self.ignored else self.span
        if span is None:
            raise UnboundedError(f"input X_{i} has no {word} bound")
        room = int(i in self.ignored and other != 0)  # the bound on the other side may be strict
        return max(other + room, span) if upper else min(other - room, -span)

    def conjunction(self, rows: tuple[Row, ...], box: Box, key: Key) -> Conjunction:
        """The rows on a box; those that need no box share one conjunction between all of them."""
        name = (rows, key) if any(atom is not None for *_, atom in rows) else (rows,)
        if name not in self.built:
            stated = [(dict(x), dict(y), c, s) for x, y, c, s, _ in rows or (TRUE,)]
            proved = [self.proved(row, box) for row in rows or (TRUE,)]
            self.built[name] = Conjunction.build(stated, self.prop.inputs, self.prop.outputs, proved)
        return self.built[name]

    def proved(self, row: Row, box: Box) -> tuple[dict[int, Fraction], dict[int, Fraction], Fraction, bool]:
        """The row of the proved set, see `Conjunction`."""
        xs, ys, constant, strict, atom = row
        if atom is not None:
            if id(atom) not in self.roundings:
                self.roundings[id(atom)] = rounding_of(atom, self.element_type)
            rounding = self.roundings[id(atom)]
            off = rounding.off({i: Fraction(max(abs(box.lo[i]), abs(box.hi[i])).item()) for i in rounding.inputs})
            if off is None or abs(constant - off) > _LARGEST:
                return {}, {}, Fraction(0), False
            constant = Fraction(hull((constant - off,), -1, "float64")[0].item())
        elif len(xs) == 1 and not ys and xs[0][0] in self.ignored:  # some value fulfils it: no matter which
            return {}, {}, Fraction(0), False
        elif len(xs) == 1 and not ys:  # a strict bound: at the end of its hull
            slope = xs[0][1]
            constant = -slope * self.end(-constant / slope, slope > 0)
        return dict(xs), dict(ys), constant, strict


def _tied(row: Row) -> list[int]:
    """The inputs of a row, but for that of a plain strict bound, which the box has too."""
    xs, ys, _, _, atom = row
    return [] if len(xs) == 1 and not ys and atom is None else [i for i, _ in xs]


def _factors(
    assertions: Sequence[Formula], atom: Callable[[Compare], list[Disjunct]]
) -> tuple[Disjunct, list[tuple[Bound, ...]], list[Disjunct]]:
    """The common part, the box alternatives and the other alternatives of a conjunction of formulas."""
    bounds: list[Bound] = []
    rows: list[Row] = []
    boxes: list[list[Disjunct]] = []
    others: list[list[Disjunct]] = []
    for formula in _flatten(assertions, "and"):
        if _count(formula) > MOST_DISJUNCTS:
            raise _too_many()
        disjuncts = _disjuncts(formula, atom)
        if len(disjuncts) == 1:
            bounds.extend(disjuncts[0].bounds)
            rows.extend(disjuncts[0].rows)
        else:
            (others if any(d.rows for d in disjuncts) else boxes).append(disjuncts)
    if prod(map(len, [*boxes, *others])) > MOST_DISJUNCTS:
        raise _too_many()
    box_product = [_join(parts).bounds for parts in product(*boxes)]
    return Disjunct(tuple(bounds), tuple(rows)), box_product, [_join(parts) for parts in product(*others)]


def _too_many() -> UnsupportedError:
    return UnsupportedError(f"the property has more than {MOST_DISJUNCTS} disjuncts")


def _refuse_large(grouped: dict[Key, dict[tuple[Row, ...], None]], inputs: int, outputs: int) -> None:
    distinct = dict.fromkeys(chain.from_iterable(grouped.values()))
    # conjunctions that speak of outputs alone store no zeros for inputs
    if sum(len(c) * (outputs + inputs * any(x for x, *_ in c)) for c in distinct) > MOST_ENTRIES:
        raise UnsupportedError("the property is too large once its disjunctions are written out")


def _flatten(formulas: Iterable[Formula], op: str) -> list[Formula]:
    out: list[Formula] = []
    for f in formulas:
        out.extend(_flatten(f.args, op) if isinstance(f, Junction) and f.op == op else (f,))
    return out


def _count(formula: Formula) -> int:
    """How many disjuncts `_disjuncts` makes, without making them; cut off above the limit."""
    if isinstance(formula, Compare):
        return 2 if formula.op == "!=" else 1
    counts = map(_count, formula.args)
    return min(sum(counts) if formula.op == "or" else prod(counts), MOST_DISJUNCTS + 1)


def _disjuncts(formula: Formula, atom: Callable[[Compare], list[Disjunct]]) -> list[Disjunct]:
    if isinstance(formula, Compare):
        return atom(formula)
    parts = [_disjuncts(f, atom) for f in formula.args]
    if formula.op == "or":
        return list(chain.from_iterable(parts))
    return [_join(choice) for choice in product(*parts)]


def _join(parts: Sequence[Disjunct]) -> Disjunct:
    """The conjunction of some disjuncts."""
    return Disjunct(
        tuple(chain.from_iterable(d.bounds for d in parts)), tuple(chain.from_iterable(d.rows for d in parts))
    )


def _atom(atom: Compare, element_type: str) -> list[Disjunct]:
    """One comparison in normal form: bounds or rows; `!=` is two disjuncts."""
    op, left, right = atom.op, atom.left, atom.right
    if type(left) is Variable and left.is_input and type(right) is Constant and op in ("<=", ">="):
        return [Disjunct((Bound(left.index, op == "<=", right.value),), ())]
    plain = _of_outputs(atom)
    if plain is not None:
        return [Disjunct((), (plain,))]
    difference = _sum([_linear(left, atom), _scale(_linear(right, atom), Fraction(-1))])
    opposite = _scale(difference, Fraction(-1))
    if op in ("=", "=="):
        return [_join([_half(form, False, atom, element_type) for form in (difference, opposite)])]
    if op == "!=":
        return [_half(form, True, atom, element_type) for form in (difference, opposite)]
    return [_half(difference if op in ("<", "<=") else opposite, op in ("<", ">"), atom, element_type)]


def _of_outputs(atom: Compare) -> Row | None:
    """The row of two outputs, or of an output and a number, that are compared; None for another comparison."""
    if atom.op not in ("<=", ">=", "<", ">"):
        return None
    sign = 1 if atom.op[0] == "<" else -1
    ys: list[tuple[int, Fraction]] = []
    constant = Fraction(0)
    for side, c in ((atom.left, sign), (atom.right, -sign)):
        if isinstance(side, Variable) and not side.is_input:
            ys.append((side.index, Fraction(c)))
        elif isinstance(side, Constant) and abs(side.value) <= _LARGEST:
            constant = side.value if c > 0 else -side.value
        else:
            return None
    if not ys or (len(ys) == 2 and ys[0][0] == ys[1][0]):
        return None
    return (), tuple(sorted(ys)), constant, len(atom.op) == 1, None


def _half(form: Linear, strict: bool, atom: Compare, element_type: str) -> Disjunct:
    """`form <= 0` (`< 0`) as a bound when it speaks of one input only, else, or when that is not all, as a row."""
    xs = tuple(sorted((i, c) for i, c in form[0].items() if c))
    ys = tuple(sorted((i, c) for i, c in form[1].items() if c))
    if any(abs(v) > _LARGEST for v in (form[2], *(c for _, c in xs + ys))):
        raise InputError(_at(atom, "a number is outside the range of doubles"))
    if ys and not xs:
        return Disjunct((), ((xs, ys, form[2], strict, None),))
    rounding = rounding_of(atom, element_type)
    single = len(xs) == 1 and not ys
    plain = rounding.exact or (single and not calculates(atom))
    row = (xs, ys, form[2], strict, None if plain else atom)
    if not single:
        return Disjunct((), (row,))
    (index, slope), value = xs[0], -form[2] / xs[0][1]
    if abs(value) > _LARGEST:
        raise InputError(_at(atom, f"the bound of X_{index} is outside the range of doubles"))
    if plain:
        return Disjunct((Bound(index, slope > 0, value),), (row,) if strict else ())
    end = rounding.end(slope, form[2], index)
    if end is None or abs(end) > _LARGEST:
        return Disjunct((), (row,))
    return Disjunct((Bound(index, slope > 0, value, end),), (row,))


def _linear(term: Term, atom: Compare) -> Linear:
    if isinstance(term, Constant):
        return {}, {}, term.value
    if isinstance(term, Variable):
        one = {term.index: Fraction(1)}
        return (one, {}, Fraction(0)) if term.is_input else ({}, one, Fraction(0))
    forms = [_linear(t, atom) for t in term.args]
    if term.op == "+":
        return _sum(forms)
    if term.op == "-":
        minus = [_scale(f, Fraction(-1)) for f in forms]
        return minus[0] if len(forms) == 1 else _sum([forms[0], *minus[1:]])
    varying = [f for f in forms if f[0] or f[1]]
    if len(varying) > 1:
        raise ProductError(_at(atom, "a product of variables is not supported, only linear constraints are"))
    factor = Fraction(1)
    for form in forms:
        factor *= 1 if form[0] or form[1] else form[2]
        if max(factor.numerator.bit_length(), factor.denominator.bit_length()) > MOST_BITS:
            raise UnsupportedError(_at(atom, "a number is too long"))
    return _scale(varying[0], factor) if varying else ({}, {}, factor)


def _sum(forms: Sequence[Linear]) -> Linear:
    xs: dict[int, Fraction] = {}
    ys: dict[int, Fraction] = {}
    for form in forms:
        for total, part in ((xs, form[0]), (ys, form[1])):
            for i, c in part.items():
                total[i] = total.get(i, Fraction(0)) + c
    return xs, ys, sum((f[2] for f in forms), Fraction(0))


def _scale(form: Linear, factor: Fraction) -> Linear:
    return {i: c * factor for i, c in form[0].items()}, {i: c * factor for i, c in form[1].items()}, form[2] * factor


def _at(atom: Compare, message: str) -> str:
    return f"line {atom.line}: {message}" if atom.line else message
