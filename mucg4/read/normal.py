"""Syntax tree -> normal form: boxes, and on each box a disjunction of conjunctions of linear rows.

The formula is brought into disjunctive form. Written out naively, k assertions of two disjuncts each
make 2^k; two habits keep the common files small. Assertions without `or` are merged first and never
multiplied. Disjunctions that speak only of single inputs (boxes) are kept apart from the others, so
that boxes x outputs shares one tuple of conjunctions between all boxes. What is still too large is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain, product
from math import prod
from typing import NamedTuple

from mucg4.errors import InputError, UnsupportedError
from mucg4.model.query import Box, Case, Conjunction
from mucg4.read.formula import Compare, Constant, Formula, Junction, ParsedProperty, Term, Variable

MOST_DISJUNCTS = 1_000_000
MOST_ENTRIES = 50_000_000  # doubles in all rows of all conjunctions: 400 MB
_LARGEST = Fraction(1.7976931348623157e308)

Coefficients = tuple[tuple[int, Fraction], ...]
Row = tuple[Coefficients, Coefficients, Fraction, bool]  # inputs, outputs, constant, strict; `<= 0`
Linear = tuple[dict[int, Fraction], dict[int, Fraction], Fraction]
Key = tuple[tuple[int, bool, Fraction], ...]

TRUE: Row = ((), (), Fraction(0), False)


class Bound(NamedTuple):
    """`X_input <= value` (upper) or `X_input >= value`."""

    input: int
    upper: bool
    value: Fraction


class Disjunct(NamedTuple):
    """Bounds and rows that hold together."""

    bounds: tuple[Bound, ...]
    rows: tuple[Row, ...]


def to_cases(prop: ParsedProperty) -> tuple[Case, ...]:
    """The normal form: one case per distinct input box, in order of first appearance.

    Bounds of single inputs make the box, intersected with those asserted for all disjuncts; a strict
    one is relaxed in the box and stays as a strict row too. An empty box is kept. Every case has at
    least one conjunction and every conjunction at least one row (`0 <= 0` when nothing else is
    asked). Raises `InputError` for an input without a bound, `UnsupportedError` for products of
    variables and for more than a million disjuncts.
    """
    common, boxes, others = _factors(prop.assertions)
    limits = _tightest(common.bounds)
    grouped: dict[Key, dict[tuple[Row, ...], None]] = {}
    for box in boxes:
        for other in others:
            key = _own_bounds((*box, *other.bounds), limits)
            grouped.setdefault(key, {})[tuple(dict.fromkeys((*common.rows, *other.rows)))] = None
    _refuse_large(grouped, prop.inputs, prop.outputs)
    built: dict[tuple[Row, ...], Conjunction] = {}
    cases = []
    for key, conjunctions in grouped.items():
        for rows in conjunctions:
            if rows not in built:
                built[rows] = _build(rows, prop)
        cases.append(Case(_box(limits, key, prop.inputs), tuple(built[rows] for rows in conjunctions)))
    return tuple(cases)


def _factors(assertions: Sequence[Formula]) -> tuple[Disjunct, list[tuple[Bound, ...]], list[Disjunct]]:
    """The common part, the box alternatives and the other alternatives of a conjunction of formulas."""
    bounds: list[Bound] = []
    rows: list[Row] = []
    boxes: list[list[Disjunct]] = []
    others: list[list[Disjunct]] = []
    for formula in _flatten(assertions, "and"):
        if _count(formula) > MOST_DISJUNCTS:
            raise _too_many()
        disjuncts = _disjuncts(formula)
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


def _disjuncts(formula: Formula) -> list[Disjunct]:
    if isinstance(formula, Compare):
        return _atom(formula)
    parts = [_disjuncts(f) for f in formula.args]
    if formula.op == "or":
        return list(chain.from_iterable(parts))
    return [_join(choice) for choice in product(*parts)]


def _join(parts: Sequence[Disjunct]) -> Disjunct:
    """The conjunction of some disjuncts."""
    return Disjunct(
        tuple(chain.from_iterable(d.bounds for d in parts)), tuple(chain.from_iterable(d.rows for d in parts))
    )


def _atom(atom: Compare) -> list[Disjunct]:
    """One comparison in normal form: bounds or rows; `!=` is two disjuncts."""
    op, left, right = atom.op, atom.left, atom.right
    if type(left) is Variable and left.is_input and type(right) is Constant and op in ("<=", ">="):
        return [Disjunct((Bound(left.index, op == "<=", right.value),), ())]
    difference = _sum([_linear(left, atom), _scale(_linear(right, atom), Fraction(-1))])
    opposite = _scale(difference, Fraction(-1))
    if op in ("=", "=="):
        return [_join([_half(difference, False, atom), _half(opposite, False, atom)])]
    if op == "!=":
        return [_half(difference, True, atom), _half(opposite, True, atom)]
    return [_half(difference if op in ("<", "<=") else opposite, op in ("<", ">"), atom)]


def _half(form: Linear, strict: bool, atom: Compare) -> Disjunct:
    """`form <= 0` (`< 0`) as a bound when it speaks of one input only, else as a row."""
    xs = tuple(sorted((i, c) for i, c in form[0].items() if c))
    ys = tuple(sorted((i, c) for i, c in form[1].items() if c))
    if any(abs(v) > _LARGEST for v in (form[2], *(c for _, c in xs + ys))):
        raise InputError(_at(atom, "a number is outside the range of doubles"))
    row = (xs, ys, form[2], strict)
    if ys or len(xs) != 1:
        return Disjunct((), (row,))
    (index, slope), value = xs[0], -form[2] / xs[0][1]
    if abs(value) > _LARGEST:
        raise InputError(_at(atom, f"the bound of X_{index} is outside the range of doubles"))
    return Disjunct((Bound(index, slope > 0, value),), (row,) if strict else ())


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
        raise UnsupportedError(_at(atom, "a product of variables is not supported, only linear constraints are"))
    factor = prod((f[2] for f in forms if not (f[0] or f[1])), start=Fraction(1))
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


def _tightest(bounds: Iterable[Bound]) -> dict[tuple[int, bool], Fraction]:
    """The intersection of bounds: `(input, upper) -> value`."""
    out: dict[tuple[int, bool], Fraction] = {}
    for index, upper, value in bounds:
        old = out.get((index, upper))
        if old is None or (value < old if upper else value > old):
            out[index, upper] = value
    return out


def _own_bounds(bounds: Sequence[Bound], limits: dict[tuple[int, bool], Fraction]) -> Key:
    """What `bounds` add to the common limits; equal keys mean equal boxes."""
    if not bounds:
        return ()
    own = []
    for (index, upper), value in _tightest(bounds).items():
        limit = limits.get((index, upper))
        if limit is None or (value < limit if upper else value > limit):
            own.append((index, upper, value))
    return tuple(sorted(own))


def _box(limits: dict[tuple[int, bool], Fraction], key: Key, inputs: int) -> Box:
    all_limits = {**limits, **{(i, upper): value for i, upper, value in key}}
    sides = []
    for upper, word in ((False, "lower"), (True, "upper")):
        for i in range(inputs):
            if (i, upper) not in all_limits:
                raise InputError(f"input X_{i} has no {word} bound; every input needs both")
        sides.append(tuple([all_limits[i, upper] for i in range(inputs)]))
    return Box(sides[0], sides[1])


def _build(rows: tuple[Row, ...], prop: ParsedProperty) -> Conjunction:
    return Conjunction.build([(dict(x), dict(y), c, s) for x, y, c, s in rows or (TRUE,)], prop.inputs, prop.outputs)
