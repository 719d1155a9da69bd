"""The second reading of the property: every mistake that is planted in the first one is reported, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mucg4.model.query as query_module
import mucg4.read.normal as normal
import mucg4.read.rounding as rounding
import mucg4.read.vnnlib as first
from mucg4.check.property import covers, denies
from mucg4.model.formula import Apply, Compare, Junction, ParsedProperty, Variable
from mucg4.model.network import Network, Node
from mucg4.model.query import Box, Case, Conjunction, Query, hull
from mucg4.ops.affine import Dense
from mucg4.read.instance import read_text
from mucg4.read.vnnlib import parse_vnnlib, to_cases
from unit.read.test_vnnlib import coordinates, holds, properties


def network(inputs: int, outputs: int, element_type: str = "float32") -> Network:
    zero = Dense(np.zeros((outputs, inputs)), np.zeros(outputs))
    return Network((Node(None, (), "x", (inputs,)), Node(zero, (0,), "y", (outputs,))), element_type=element_type)


def query_of(text: str, element_type: str = "float32") -> Query:
    prop = parse_vnnlib(text)
    return Query((network(prop.inputs, prop.outputs, element_type),), to_cases(prop, element_type))


def declared(inputs: int, outputs: int) -> str:
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{j}" for j in range(outputs)]
    return "\n".join(f"(declare-const {name} Real)" for name in names) + "\n"


BOXED = declared(3, 3) + "".join(f"(assert (>= X_{i} -1.5e0))(assert (<= X_{i} 1))" for i in range(3)) + "\n"
RICH = (
    BOXED
    + """; every construct that the first reader knows
(assert (<= X_0 0.1)) (assert (>= X_0 -0.7)) (assert (< X_1 0.3)) (assert (> X_1 -0.3)) (assert (<= X_2 +2.5E-1))
(assert (<= (* 3 X_0) 0.29)) (assert (<= (+ X_0 X_1) 0.3)) (assert (>= (- X_2 (* 0.5 X_1) 0.1) -0.9))
(assert (or (and (<= Y_0 -0.25) (>= Y_1 (+ Y_2 1.5e-3))) (and (> (- Y_2) Y_0) (= Y_1 (- 3 (* -2 Y_0)))) (!= Y_2 1)))
(assert (or (<= X_2 -0.5) (and (>= X_2 -.25) (<= X_2 0.05))))
(assert (or (<= (+ Y_0 X_0) 4.) (>= Y_2 7)))
"""
)


@pytest.mark.parametrize("element_type", ["float16", "float32", "float64"])
def test_a_rich_property_is_covered(element_type: str) -> None:
    assert covers(RICH, query_of(RICH, element_type)) is None


def test_a_query_for_another_text_is_reported() -> None:
    query = query_of(RICH)
    for old, new, word in (
        ("X_0 0.1", "X_0 0.11", None),
        ("X_0 -0.7", "X_0 -0.70001", "box"),
        ("(< X_1 0.3)", "(<= X_1 0.3)", "conjunction"),
        ("X_2 +2.5E-1", "X_2 +2.5E-0", None),
        ("(* 3 X_0) 0.29", "(* 3 X_0) 0.29001", "box"),
        ("(+ X_0 X_1) 0.3", "(+ X_0 X_1) 0.30001", "conjunction"),
        ("Y_0 -0.25", "Y_0 -0.2499999999999999999999", "conjunction"),
        ("1.5e-3", "1.5e-4", "conjunction"),
        ("(> (- Y_2)", "(>= (- Y_2)", "conjunction"),
        ("(* -2 Y_0)", "(* 2 Y_0)", "conjunction"),
        ("(<= X_2 -0.5)", "(<= X_2 -0.4)", "box"),
        ("(>= Y_2 7)", "(>= Y_1 7)", "conjunction"),
        ("(!= Y_2 1)", "(<= Y_2 1)", "conjunction"),
        ("; every", "(assert (<= Y_0 9)) ; every", None),
    ):
        assert old in RICH
        reason = covers(RICH.replace(old, new), query)
        assert reason is None if word is None else word in (reason or ""), (old, new, reason)


# -- planted mistakes in the first reader -------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def of_atoms(change: Callable[[Compare], Compare]) -> Plant:
    original = normal._atom
    return lambda m: m.setattr(normal, "_atom", lambda atom, kind: original(change(atom), kind))


def of_numbers(change: Callable[[str], str]) -> Plant:
    original = first._number
    return lambda m: m.setattr(first, "_number", lambda text: original(change(text)))


def of_cases(change: Callable[[tuple[Case, ...]], tuple[Case, ...]]) -> Plant:
    original = normal._Normal.cases
    return lambda m: m.setattr(normal._Normal, "cases", lambda self: change(original(self)))


def of_build(change: Callable[[Conjunction], Conjunction]) -> Plant:
    original = Conjunction.build
    return lambda m: m.setattr(Conjunction, "build", staticmethod(lambda *a: change(original(*a))))


def of_terms(op: str, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Plant:
    original = normal._linear

    def wrong(term: Any, atom: Compare) -> Any:
        if isinstance(term, Apply) and term.op == op and len(term.args) > 1:
            term = Apply(op, change(term.args))
        return original(term, atom)

    return lambda m: m.setattr(normal, "_linear", wrong)


def swapped(atom: Compare) -> Compare:
    return replace(atom, op={"<=": ">=", ">=": "<=", "<": ">", ">": "<"}.get(atom.op, atom.op))


def of_outputs(atom: Compare) -> bool:
    return any(isinstance(t, Variable) and not t.is_input for t in (atom.left, atom.right))


def shifted(step: int, inputs: bool) -> Plant:
    """Variables are taken for their neighbours."""
    original = first.Variable
    return lambda m: m.setattr(
        first,
        "Variable",
        lambda name, kind, index: original(name, kind, (index + step) % 3 if kind == inputs else index),
    )


def junction(turn: Callable[[str], str]) -> Plant:
    original = first.Junction
    return lambda m: m.setattr(first, "Junction", lambda op, args: original(turn(op), args))


def fewer(formula: Any, kind: str) -> list[Any]:
    found = DISJUNCTS(formula, kind)
    return found[:-1] if isinstance(formula, Junction) and formula.op == "or" else found


DISJUNCTS = normal._disjuncts
HALF = normal._half


def stricter(form: Any, strict: bool, atom: Compare, kind: str) -> Any:
    return HALF(form, True, atom, kind)


def kept(self: Any, bounds: Any, limits: Any) -> Any:
    """Bounds of one alternative stay for the next ones."""
    own = OWN_BOUNDS(self, bounds, limits)
    limits.own.update({(i, upper): side for i, upper, side in own})
    return own


OWN_BOUNDS = normal._Normal.own_bounds


def first_bound_wins(self: Any, bounds: Any) -> Any:
    return {(b.input, b.upper): (b.value / 2, b.end) for b in reversed(list(bounds))}


def double_hull(bounds: Any, sign: int, element_type: str) -> Any:
    return hull(bounds, sign, "float64")


def inward_hull(bounds: Any, sign: int, element_type: str) -> Any:
    return np.array([float(np.float32(float(b))) for b in bounds])


def merged(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    return tuple(replace(c, conjunctions=cases[0].conjunctions[:1]) for c in cases)


def zipped(*lists: Any) -> Any:
    return zip(*lists, strict=False) if len(lists) > 1 else PRODUCT(*lists)


PRODUCT = normal.product


def joined(parts: Any) -> Any:
    """The conjunction of two disjuncts keeps the bounds of all disjuncts."""
    return normal.Disjunct(
        tuple(b._replace(value=b.value * Fraction(9, 10)) for p in parts for b in p.bounds), JOIN(parts).rows
    )


JOIN, COMMANDS = normal._join, dict(first._Parser.commands)


FAULTS: dict[str, Plant] = {
    "outputs compared the other way in the short cut": lambda m: m.setattr(
        first,
        "Compare",
        lambda op, left, right, line=0: (
            swapped(Compare(op, left, right)) if of_outputs(Compare(op, left, right)) else Compare(op, left, right)
        ),
    ),
    "all output comparisons swapped": of_atoms(lambda a: swapped(a) if of_outputs(a) else a),
    "comparisons of sums swapped": of_atoms(lambda a: swapped(a) if isinstance(a.left, Apply) else a),
    "equality read as one side": of_atoms(lambda a: replace(a, op="<=") if a.op == "!=" else a),
    "unequal read as less": of_atoms(lambda a: replace(a, op="<") if a.op == "!=" else a),
    "sides exchanged": of_atoms(lambda a: replace(a, left=a.right, right=a.left) if of_outputs(a) else a),
    "or read as and": junction(lambda op: "and"),
    "and read as or, or as and": junction({"and": "or", "or": "and"}.__getitem__),
    "outputs off by one": shifted(1, False),
    "outputs off by minus one": shifted(-1, False),
    "inputs off by one": shifted(1, True),
    "signs of numbers lost": of_numbers(lambda text: text.lstrip("+-")),
    "exponents lost": of_numbers(lambda text: text.lower().split("e")[0]),
    "exponents negated": of_numbers(lambda text: text.lower().replace("e-", "e+") if "e" in text.lower() else text),
    "digits cut off": of_numbers(
        lambda text: text[: text.find(".") + 2] if len(text) > 3 and text[-3:] != "e-3" else text
    ),
    "point lost": of_numbers(lambda text: text.replace(".2", "2.")),
    "last disjunct lost": lambda m: m.setattr(normal, "_disjuncts", fewer),
    "everything strict": lambda m: m.setattr(normal, "_half", stricter),
    "bounds of alternatives intersected": lambda m: m.setattr(normal._Normal, "own_bounds", kept),
    "bounds halved": lambda m: m.setattr(normal._Normal, "tightest", first_bound_wins),
    "bounds of a conjunction too tight": lambda m: m.setattr(normal, "_join", joined),
    "a term of sums lost": of_terms("+", lambda args: args[:-1]),
    "difference the other way": of_terms("-", lambda args: args[::-1]),
    "factor lost": of_terms("*", lambda args: args[1:]),
    "alternatives paired instead of multiplied": lambda m: m.setattr(normal, "product", zipped),
    "first case lost": of_cases(lambda cases: cases[1:]),
    "last case lost": of_cases(lambda cases: cases[:-1]),
    "last conjunction lost": of_cases(lambda cases: tuple(replace(c, conjunctions=c.conjunctions[:-1]) for c in cases)),
    "cases share one conjunction": of_cases(merged),
    "a lower bound raised by an ulp": of_cases(
        lambda cases: tuple(replace(c, box=Box((Fraction(-69, 100), *c.box.lower[1:]), c.box.upper)) for c in cases)
    ),
    "boxes exchanged": of_cases(
        lambda cases: tuple(replace(c, box=o.box) for c, o in zip(cases, (cases[0],) * len(cases), strict=True))
    ),
    "hull of doubles only": lambda m: (
        m.setattr(query_module, "hull", double_hull),
        m.setattr(normal, "hull", double_hull),
    )[0],
    "hull of float32 only": lambda m: m.setattr(query_module, "hull", inward_hull),
    "ends of bounds with factors forgotten": of_cases(
        lambda cases: tuple(replace(c, box=replace(c.box, ends=())) for c in cases)
    ),
    "constraints of inputs not loosened": lambda m: m.setattr(rounding.Rounding, "off", lambda self, far: Fraction(0)),
    "constraints of inputs loosened too little": lambda m: m.setattr(
        rounding, "_growth", lambda count, unit: Fraction(-1, 2**26)
    ),
    "strict rows at the stated bound": lambda m: m.setattr(
        normal._Normal, "proved", lambda self, row, box: (dict(row[0]), dict(row[1]), row[2], row[3])
    ),
    "a constant's array wrong": of_build(lambda c: replace(c, constants=np.nextafter(c.constants, 9.0))),
    "a column of outputs wrong": of_build(lambda c: replace(c, y_coeffs=np.roll(c.y_coeffs, 1, axis=1))),
    "a column of inputs wrong": of_build(lambda c: replace(c, x_coeffs=c.x_coeffs * 0.5)),
    "an input row where there is none": of_build(lambda c: replace(c, x_coeffs=c.x_coeffs + 1.0)),
    "strictness array wrong": of_build(lambda c: replace(c, strict=~c.strict)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_mistake_is_reported(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    query = query_of(RICH)
    monkeypatch.undo()
    reason = covers(RICH, query)
    assert reason is not None and "\n" not in reason


def widened(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    return tuple(replace(c, box=Box((Fraction(-9),) * 3, (Fraction(9),) * 3)) for c in cases)


WIDER: dict[str, Plant] = {
    "an assertion dropped": lambda m: m.setattr(first._Parser, "commands", COMMANDS | {"assert": dropping(1)}),
    "strictness lost": of_atoms(lambda a: replace(a, op=a.op.rstrip("=") + "=") if a.op in "<>" else a),
    "boxes too wide": of_cases(widened),
    "and read as or": junction(lambda op: "or"),
    "a row lost": lambda m: m.setattr(normal, "_join", lambda parts: normal.Disjunct(JOIN(parts).bounds, ())),
}


def dropping(number: int) -> Callable[[Any, Any], None]:
    seen = []

    def wrong(parser: Any, form: Any) -> None:
        seen.append(form)
        if len(seen) != number:
            first._Parser._assert(parser, form)

    return wrong


TIE = (
    BOXED
    + "(assert (and (< Y_0 1) (<= (+ X_0 X_1) 2)))(assert (and (<= X_0 0.5) (> Y_1 3)))"
    + "(assert (or (<= Y_2 0) (>= Y_2 5)))"
)


@pytest.mark.parametrize("fault", WIDER)
def test_a_mistake_that_asks_for_too_little_is_seen_at_its_witness(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger set is no danger to `unsat`; a witness that is in it only is denied by the text."""
    WIDER[fault](monkeypatch)
    query = query_of(TIE)
    monkeypatch.undo()
    assert covers(TIE, query) is None
    values = [np.array(v, dtype=np.float32) for v in (-9, -1, 0, 0.5, 1, 3, 4, 9)]
    wrong = 0
    draw = random.Random(1)
    for _ in range(20000):
        x, y = (np.array([draw.choice(values) for _ in range(3)]) for _ in range(2))
        if stated_unsafe(query, x, y) and denies(TIE, "float32", x, y) is not None:
            wrong += 1
            break
    assert wrong


def stated_unsafe(query: Query, x: np.ndarray, y: np.ndarray) -> bool:
    xs, ys = [Fraction(float(v)) for v in x], [Fraction(float(v)) for v in y]
    for case in query.cases:
        if all(a <= v <= b for a, v, b in zip(case.box.lower, xs, case.box.upper, strict=True)):
            for conj in case.conjunctions:
                sums = [
                    c + sum(k * xs[i] for i, k in p.items()) + sum(k * ys[i] for i, k in q.items())
                    for p, q, c in conj.exact
                ]
                if all(
                    s < 0 if strict else s <= 0 for s, strict in zip(sums, conj.stated_strict.tolist(), strict=True)
                ):
                    return True
    return False


def proved_unsafe(query: Query, xs: list[Fraction], ys: list[Fraction]) -> bool:
    for case in query.cases:
        if all(
            Fraction(a) <= v <= Fraction(b)
            for a, v, b in zip(case.box.lo.tolist(), xs, case.box.hi.tolist(), strict=True)
        ):
            for conj in case.conjunctions:
                sums = [
                    c + sum(k * xs[i] for i, k in p.items()) + sum(k * ys[i] for i, k in q.items())
                    for p, q, c in conj.proved
                ]
                if all(s < 0 if strict else s <= 0 for s, strict in zip(sums, conj.strict.tolist(), strict=True)):
                    return True
    return False


# -- random properties --------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, derandomize=True)
@given(properties, st.sampled_from(["float32", "float64"]))
def test_what_the_first_reader_makes_of_random_text_is_covered(prop: ParsedProperty, element_type: str) -> None:
    assert covers(prop.text(), query_of(prop.text(), element_type)) is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(properties, properties, st.lists(st.tuples(*[coordinates] * 4), min_size=4, max_size=12))
def test_what_is_covered_holds_every_unsafe_point(
    prop: ParsedProperty, other: ParsedProperty, points: list[tuple[Fraction, ...]]
) -> None:
    """Random texts against the query of another text: agreement means inclusion; `denies` agrees with the formula."""
    text, query = prop.text(), query_of(other.text())
    included = covers(text, query) is None
    for p in points:
        named = dict(zip(("X_0", "X_1", "Y_0", "Y_1"), p, strict=True))
        unsafe = all(holds(f, named) for f in prop.assertions)
        at = [np.array([float(v) for v in q], dtype=np.float32) for q in (p[:2], p[2:])]
        assert (denies(text, "float32", *at) is None) == unsafe or not unsafe
        assert not (included and unsafe) or proved_unsafe(query, list(p[:2]), list(p[2:]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(properties, st.randoms(use_true_random=False))
def test_damaged_queries_are_reported_or_still_hold_every_unsafe_point(
    prop: ParsedProperty, draw: random.Random
) -> None:
    text = prop.text()
    query = query_of(text)
    cases = list(query.cases)
    k = draw.randrange(len(cases))
    case, box = cases[k], cases[k].box
    i, conj = draw.randrange(2), draw.choice(case.conjunctions)
    what = draw.randrange(4)
    if what == 0:
        sides = [list(box.lower), list(box.upper)]
        sides[draw.randrange(2)][i] *= Fraction(3, 4)
        cases[k] = replace(case, box=Box(tuple(sides[0]), tuple(sides[1])))
    elif what == 1:
        cases[k] = replace(case, conjunctions=tuple(c for c in case.conjunctions if c is not conj))
    else:
        rows = [(x, y, c, s) for (x, y, c), s in zip(conj.proved, conj.strict.tolist(), strict=True)]
        r = draw.randrange(len(rows))
        x, y, c, s = rows[r]
        rows[r] = (x, y, c + Fraction(1, 4), s) if what == 2 else (x, {j: v * 2 for j, v in y.items()}, c, True)
        worse = Conjunction.build(rows, 2, 2)
        cases[k] = replace(case, conjunctions=tuple(worse if c is conj else c for c in case.conjunctions))
    damaged = replace(query, cases=tuple(cases))
    if covers(text, damaged) is not None:
        return
    for _ in range(60):
        p = [Fraction(draw.randint(-10, 10), draw.choice([1, 2, 4])) for _ in range(4)]
        named = dict(zip(("X_0", "X_1", "Y_0", "Y_1"), p, strict=True))
        if all(holds(f, named) for f in prop.assertions):
            assert proved_unsafe(damaged, p[:2], p[2:])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(properties, st.data())
def test_damaged_text_gives_one_line(prop: ParsedProperty, data: st.DataObject) -> None:
    text, query = prop.text(), query_of(prop.text())
    junk = ["", "(", ")", " ", "0", "X_0", "Y", ";", '"', "|", "-", "e9", "or", "\0", "(<= X_0 1)", "(assert", "1e999"]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        end = min(len(text), at + data.draw(st.integers(0, 6)))
        text = text[:at] + data.draw(st.sampled_from(junk)) + text[end:]
    reason = covers(text, query)
    assert reason is None or (reason and "\n" not in reason)


# -- spellings, limits and size -----------------------------------------------------------------


def test_spellings() -> None:
    text = (
        "; first\n(set-logic QF_LRA) (set-info :source |a ( b|) (set-info :x ((<= X_0 1) (assert (<= Y_0 1))))\n" + RICH
    )
    text += "(check-sat) (get-model)  \n\t "
    assert covers(text, query_of(text)) is None
    spread = (
        RICH.replace("; every construct that the first reader knows", "")
        .replace("(", " ( ")
        .replace(")", ' ) ; x ( ) "\n')
    )
    assert covers(spread, query_of(RICH)) is None
    assert covers(RICH.replace("(declare-const X_0 Real)", "(declare-fun X_0 () Real)"), query_of(RICH)) is None
    assert covers("(vnnlib-version <1.0>)" + RICH, query_of(RICH)) is None
    # what else holds, in however many choices, only takes away
    assert covers(RICH + "(assert (or (<= Y_0 0) (<= Y_1 0)))" * 25, query_of(RICH)) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(vnnlib-version <2.0>)" + RICH, "'vnnlib-version' is not known"),
        (RICH + "(assert (forall (<= Y_0 1)))", "operator 'forall' is not known"),
        (RICH + "(assert (not (let (<= Y_0 1))))", "'let' stands for a formula"),
        (RICH + "(assert (not (<= (let Y_0) 1)))", "a formula stands for a term"),
        (RICH + "(exit)(assert (<= Y_0 1))", "something follows the command exit"),
        (RICH + "(assert (<= (/ Y_0 Y_1) 1))", "a division by a variable"),
        (RICH + "(assert (<= (/ 1 0) Y_0))", "a division by zero"),
        (RICH + "(assert " + "(xor (<= Y_0 0) " * 150 + "(<= Y_0 0)" + ")" * 151, "disjunctions are written out"),
        (RICH + "(push 1)", "command 'push' is not known"),
        (RICH + "(assert (<= (* X_0 X_1) 1))", "product of variables"),
        (RICH + "(assert (<= Y_7 1))", "'Y_7' is not declared"),
        (RICH + "(assert (<= Y_0 1.2.3))", "neither a number nor a variable"),
        (RICH + "(assert (<= Y_0 1e999))", "range of doubles"),
        (RICH + "(assert (<= Y_0 0)", "never closed"),
        (RICH + "))", "stands outside a command"),
        (RICH + "((<= X_0 1))", "stands outside a command"),
        (RICH + "(assert X_0)", "stands for a formula"),
        (RICH + "(assert (<= (and (<= X_0 1)) 1))", "a formula stands for a term"),
        (RICH + "(assert (assert (<= X_0 1)))", "stands in an assertion"),
        (RICH + "(assert (!= 1 2 3))", "'!=' with 3 arguments"),
        (RICH + "(declare-const X_0 Real)", "declaration of 'X_0'"),
        (RICH + "(declare-const X_9 Real)", "some inputs are not declared"),
        (RICH + "(declare-const X_3 Real)", "the text declares 4 inputs"),
        (RICH + "(assert " + "(and " * 9999, "nested deeper"),
        (RICH + "(assert (or (and " + "(!= Y_0 0)" * 30 + ") (<= Y_1 0)))", "more than 1000000 disjuncts"),
    ],
)
def test_what_is_not_known_is_named(text: str, words: str) -> None:
    reason = covers(text, query_of(RICH)) or ""
    assert words in reason and "\n" not in reason


def test_long_white_space_and_deep_products_take_no_time() -> None:
    text = RICH + " " * 300_000 + "(" + " " * 300_000
    assert covers(text, query_of(RICH)) == "a parenthesis is never closed"
    assert covers(RICH + " \n" * 300_000, query_of(RICH)) is None
    deep = RICH + "(assert (<= " + f"(* {'9' * 1900} 1e-300 " * 200 + "Y_0" + ")" * 200 + " 1))"
    assert covers(deep, query_of(RICH)) in ("a number is too long", "a number is outside the range of doubles")


def test_a_thousand_disjuncts_of_many_bounds() -> None:
    n, m = 6, 3
    draw = random.Random(0)
    text = declared(n, m) + "".join(f"(assert (<= X_{i} 1))(assert (>= X_{i} 0))" for i in range(n))
    boxes = [
        "(and "
        + " ".join(f"(<= X_{i} {draw.random():.6f}) (>= X_{i} 0.0{1001 - k:04d})" for i in range(n))
        + f" (<= Y_0 Y_{k % m}))"
        for k in range(1, 1001)
    ]
    text += f"(assert (or {' '.join(boxes)}))\n(assert (or {' '.join(f'(>= Y_{j} 0.5)' for j in range(m))}))"
    query = query_of(text)
    assert len(query.cases) == 1000 and covers(text, query) is None
    assert "box" in (covers(text, replace(query, cases=query.cases[:-1])) or "")


def test_disjuncts_of_one_box_with_many_conjunctions() -> None:
    text = BOXED + f"(assert (or {' '.join(f'(and (<= Y_0 Y_1) (>= Y_2 {k}))' for k in range(1000))}))"
    query = query_of(text)
    (case,) = query.cases
    assert covers(text, query) is None
    fewer = replace(query, cases=(replace(case, conjunctions=case.conjunctions[1:]),))
    assert "conjunction" in (covers(text, fewer) or ""), "the one that asks for least is lost"
    assert covers(text, replace(query, cases=(replace(case, conjunctions=case.conjunctions[:1]),))) is None


def test_an_image_with_a_bound_per_assertion() -> None:
    n = 4000
    draw = random.Random(0)
    text = declared(n, 2)
    for i in range(n):
        low = draw.uniform(-1, 1)
        text += f"(assert (<= X_{i} {low + 0.01}))\n(assert (>= X_{i} {low}))\n"
    text += "(assert (<= Y_0 Y_1))"
    query = query_of(text)
    assert covers(text, query) is None
    (case,) = query.cases
    lower = list(case.box.lower)
    lower[n // 2] += Fraction(1, 10**7)
    tighter = replace(query, cases=(replace(case, box=Box(tuple(lower), case.box.upper)),))
    assert covers(text, tighter) is not None


def test_float64_boxes_do_not_cover_a_float32_model() -> None:
    cases = to_cases(parse_vnnlib(RICH), "float64")
    query = Query((network(3, 3, "float64"),), cases)
    assert covers(RICH, query) is None
    object.__setattr__(query, "networks", (network(3, 3),))
    assert "box" in (covers(RICH, query) or "")


def test_nothing_is_covered_by_nothing() -> None:
    empty = RICH + "(assert (<= X_0 -0.8))"
    assert covers(empty, replace(query_of(RICH), cases=())) is None
    assert covers(RICH + "(assert (<= 2 1))", replace(query_of(RICH), cases=())) is None
    assert covers(RICH, replace(query_of(RICH), cases=())) is not None
    assert covers(BOXED + "(assert (< X_0 0.5))(assert (>= X_0 0.5))", replace(query_of(RICH), cases=())) is None
    assert covers(RICH + "(assert (<= (- X_0 X_0) -0.1))", replace(query_of(RICH), cases=())) is None
    for text in (RICH + "(assert (<= (- X_0 X_0) -0.1))", RICH + "(assert (<= (- X_0 X_0) 0))"):
        assert covers(text, query_of(text)) is None


def test_properties_of_the_benchmarks_are_covered(benchmarks: Path) -> None:
    """A sample of each folder; all 1 228 of version 1.0 were compared once."""
    for folder in sorted(benchmarks.iterdir()):
        for path in sorted((folder / "vnnlib").rglob("*.vnnlib*"))[:3]:
            text = read_text(path)
            if len(text) < 300_000 and "<2.0>" not in text[:2000]:
                assert covers(text, query_of(text)) is None, path
