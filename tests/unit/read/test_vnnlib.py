"""The VNN-LIB reader: exact numbers, the normal form against a direct evaluation, and clear errors."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucg4.errors import InputError, UnsupportedError
from mucg4.model.formula import Apply, Compare, Constant, Formula, Junction, ParsedProperty, Term, Variable, decimal
from mucg4.model.query import Case
from mucg4.read.vnnlib import parse_vnnlib, to_cases

DECLARED = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)\n"
BOXED = DECLARED + "".join(f"(assert (>= X_{i} -1))(assert (<= X_{i} 1))" for i in range(2)) + "\n"


def cases_of(text: str) -> tuple[Case, ...]:
    return to_cases(parse_vnnlib(text))


def rows_of(text: str) -> list[list[tuple[dict[int, Fraction], dict[int, Fraction], Fraction]]]:
    (case,) = cases_of(BOXED + text)
    return [list(c.exact) for c in case.conjunctions]


def told(prop: ParsedProperty) -> tuple[int, int, dict[tuple[int, str], Fraction], list[Formula]]:
    """What a property says, its plain bounds apart, however these were read."""
    bounds: dict[tuple[int, str], Fraction] = {}
    rest = []
    for op, side in zip((">=", "<="), prop.bounds or (), strict=False):
        bounds.update({(i, op): value for i, value in side.items()})
    for f in prop.assertions:
        plain = isinstance(f, Compare) and isinstance(f.left, Variable) and f.left.is_input and f.op in ("<=", ">=")
        if plain and isinstance(f.right, Constant):
            tighter = min if f.op == "<=" else max
            bounds[f.left.index, f.op] = tighter(f.right.value, bounds.get((f.left.index, f.op), f.right.value))
        else:
            rest.append(f)
    return prop.inputs, prop.outputs, bounds, rest


# -- meaning ------------------------------------------------------------------------------------


def value_of(term: Term, point: dict[str, Fraction]) -> Fraction:
    if isinstance(term, Constant):
        return term.value
    if isinstance(term, Variable):
        return point[term.name]
    args = [value_of(t, point) for t in term.args]
    if term.op == "+":
        return sum(args, Fraction(0))
    if term.op == "*":
        return math.prod(args, start=Fraction(1))
    return -args[0] if len(args) == 1 else args[0] - sum(args[1:], Fraction(0))


def holds(formula: Formula, point: dict[str, Fraction]) -> bool:
    if isinstance(formula, Junction):
        return (all if formula.op == "and" else any)(holds(f, point) for f in formula.args)
    a, b = value_of(formula.left, point), value_of(formula.right, point)
    table = {"<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b, "=": a == b, "==": a == b, "!=": a != b}
    return table[formula.op]


def inside(cases: tuple[Case, ...], xs: list[Fraction], ys: list[Fraction]) -> bool:
    """Whether the point is in the unsafe set, by the exact bounds and rows only."""
    for case in cases:
        if all(lo <= x <= hi for lo, x, hi in zip(case.box.lower, xs, case.box.upper, strict=True)):
            for conj in case.conjunctions:
                sums = [
                    k + sum(a * xs[i] for i, a in x.items()) + sum(a * ys[i] for i, a in y.items())
                    for x, y, k in conj.exact
                ]
                if all(v < 0 if s else v <= 0 for v, s in zip(sums, conj.strict.tolist(), strict=True)):
                    return True
    return False


numbers = st.builds(Fraction, st.integers(-4, 4), st.sampled_from([1, 2, 4])).map(Constant)
variables = st.sampled_from([Variable(f"{k}_{i}", k == "X", i) for k in "XY" for i in range(2)])
linear = st.recursive(
    numbers | variables,
    lambda inner: (
        st.builds(Apply, st.sampled_from("+-"), st.lists(inner, min_size=1, max_size=3).map(tuple))
        | st.builds(lambda c, t: Apply("*", (c, t)), numbers, inner)
    ),
    max_leaves=4,
)
atoms = st.builds(Compare, st.sampled_from(["<=", ">=", "<", ">", "=", "==", "!="]), linear, linear)
inputs = st.sampled_from([Variable(f"X_{i}", True, i) for i in (0, 1)])
bounds = st.builds(Compare, st.sampled_from(["<=", ">="]), inputs, numbers)
formulas = st.recursive(
    atoms | bounds,
    lambda inner: st.builds(
        Junction, st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3).map(tuple)
    ),
    max_leaves=6,
)
box = [
    Compare(op, Variable(f"X_{i}", True, i), Constant(Fraction(v))) for i in (0, 1) for op, v in ((">=", -2), ("<=", 2))
]
properties = st.lists(formulas, max_size=3).map(lambda fs: ParsedProperty(2, 2, (*box, *fs)))
coordinates = st.builds(Fraction, st.integers(-10, 10), st.sampled_from([1, 2, 4]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(properties, st.lists(st.tuples(*[coordinates] * 4), min_size=1, max_size=8))
def test_normal_form_means_the_same_as_the_formula(prop: ParsedProperty, points: list[tuple[Fraction, ...]]) -> None:
    cases = to_cases(prop)
    for p in points:
        named = dict(zip(("X_0", "X_1", "Y_0", "Y_1"), p, strict=True))
        assert inside(cases, list(p[:2]), list(p[2:])) == all(holds(f, named) for f in prop.assertions)
    assert all(len(c.conjunctions) and all(len(conj) for conj in c.conjunctions) for c in cases)
    boxes = [(c.box.lower, c.box.upper, c.box.ends) for c in cases]
    assert len(boxes) == len(set(boxes)), "disjuncts with the same box are one case"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(properties)
def test_round_trip_through_text(prop: ParsedProperty) -> None:
    text = prop.text()
    assert parse_vnnlib(text) == prop
    spread = text.replace("(", " ( ").replace(")", ' ) ; noise ( ) "\n')
    assert parse_vnnlib(spread) == prop
    assert parse_vnnlib(text, short_cuts=False) == prop


@settings(max_examples=400, deadline=None, derandomize=True)
@given(properties, st.data())
def test_damaged_text_gives_a_typed_error_or_a_property(prop: ParsedProperty, data: st.DataObject) -> None:
    text = prop.text()
    junk = ["", "(", ")", " ", "0", "X_0", "Y", ";", '"', "|", "-", "e9", "or", "\0"]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        end = min(len(text), at + data.draw(st.integers(0, 6)))
        text = text[:at] + data.draw(st.sampled_from(junk)) + text[end:]
    results = []
    for short_cuts in (True, False):
        try:
            results.append(parse_vnnlib(text, short_cuts))
        except InputError as error:
            assert "\n" not in str(error)
            results.append(str(error))
    assert results[0] == results[1], "the short cut changes nothing"
    if isinstance(results[0], ParsedProperty):
        try:
            to_cases(results[0])
        except InputError as error:
            assert "\n" not in str(error)


# -- examples -----------------------------------------------------------------------------------


def test_numbers_are_exact() -> None:
    text = BOXED + "(assert (<= X_0 0.1)) (assert (>= X_0 -1e-06)) (assert (<= Y_0 3.991125645861615))"
    (case,) = cases_of(text)
    assert case.box.upper[0] == Fraction(1, 10) and case.box.lower[0] == Fraction(-1, 10**6)
    assert case.conjunctions[0].exact[0][2] == -Fraction("3.991125645861615")


@pytest.mark.parametrize("text", ["-1.5", "+2", "0.", ".25", "1e3", "-1.25E-2", "12e+1", "00.5"])
def test_number_forms(text: str) -> None:
    assert rows_of(f"(assert (<= Y_0 {text}))")[0][0][2] == -Fraction(text)


def test_rows_have_the_sign_of_the_query() -> None:
    ((row,),) = rows_of("(assert (>= Y_0 (+ Y_1 (* 2 X_0) -0.5)))")
    assert row == ({0: 2}, {0: -1, 1: 1}, Fraction(-1, 2))
    ((row,),) = rows_of("(assert (< (- Y_0) (- 3 Y_1 X_1)))")
    assert row == ({1: 1}, {0: -1, 1: 1}, -3)


def test_conjunctions_of_one_disjunction_share_the_box() -> None:
    (case,) = cases_of(BOXED + "(assert (or (and (<= Y_0 1) (>= Y_1 2)) (and (>= Y_0 4)) (<= Y_1 -9)))")
    assert [len(c) for c in case.conjunctions] == [2, 1, 1]


def test_boxes_in_a_disjunction_become_cases_that_share_conjunctions() -> None:
    text = BOXED + "(assert (or (and (<= X_0 0) (>= X_0 -0.5)) (and (>= X_0 0.5) (<= X_0 5)) (<= X_1 2)))"
    cases = cases_of(text + "(assert (or (<= Y_0 0) (<= Y_1 0)))")
    assert [(c.box.lower[0], c.box.upper[0]) for c in cases] == [(-Fraction(1, 2), 0), (Fraction(1, 2), 1), (-1, 1)]
    assert all(c.conjunctions[0] is cases[0].conjunctions[0] and len(c.conjunctions) == 2 for c in cases)


def test_disjuncts_with_box_and_output() -> None:
    text = "(assert (or (and (<= X_0 0) (<= Y_0 0)) (and (>= X_0 0) (<= Y_1 0)) (and (<= X_0 0) (<= Y_0 -3))))"
    first, second = cases_of(BOXED + text)
    assert len(first.conjunctions) == 2 and len(second.conjunctions) == 1
    assert first.box.upper == (0, 1) and second.box.lower == (0, -1)


def test_empty_box_is_legal() -> None:
    (case,) = cases_of(BOXED + "(assert (>= X_0 3))(assert (<= Y_0 0))")
    assert case.box.empty


def test_no_output_constraint_makes_the_whole_box_unsafe() -> None:
    (case,) = cases_of(BOXED)
    assert case.conjunctions[0].exact == (({}, {}, 0),)


def test_strict_input_bound_stays_strict() -> None:
    (case,) = cases_of(BOXED + "(assert (< X_0 0.5))")
    assert case.box.upper[0] == Fraction(1, 2) and case.conjunctions[0].strict.tolist() == [True]


def test_equality_of_an_input_is_a_bound_and_of_an_output_two_rows() -> None:
    (case,) = cases_of(BOXED + "(assert (= X_0 0.25))(assert (== Y_0 Y_1))")
    assert case.box.lower[0] == case.box.upper[0] == Fraction(1, 4) and len(case.conjunctions[0]) == 2


def test_ignored_commands_comments_and_layout() -> None:
    text = "; first\n(set-logic QF_LRA) (set-info :source |a ( b|)\n" + BOXED
    text += "(assert\n (<= ; here\n Y_0 \t0))(check-sat)"
    assert len(cases_of(text)) == 1
    assert parse_vnnlib(BOXED.replace("(declare-const X_0 Real)", "(declare-fun X_0 () Real)")) == parse_vnnlib(BOXED)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOXED + "\n(assert (<= Y_0 0)", "line 4: this parenthesis is never closed"),
        (BOXED + ")", "line 3: expected '('"),
        (BOXED + "hello", "line 3: expected '(' but found 'hello'"),
        (BOXED + "(assert (<= Y_2 0))", "line 3: variable Y_2 is not declared"),
        (BOXED + "(assert (<= X_7 0))", "line 3: variable X_7 is not declared"),
        (BOXED + "(assert (<= Y_0))", "line 3: '<=' takes two arguments"),
        (BOXED + "(assert (!= Y_0 0 1))", "line 3: '!=' takes two arguments"),
        (BOXED + "(assert (not))", "line 3: 'not' takes 1 formulas, here are 0"),
        (BOXED + "(assert (=> (<= Y_0 0)))", "line 3: '=>' takes 2 formulas, here are 1"),
        (BOXED + "(assert (<= (/ 1 0) Y_0))", "line 3: a division by zero"),
        (BOXED + "(exit)(assert (<= Y_0 0))", "line 3: assert after (exit)"),
        (BOXED + "(assert (<= Y_0 zero))", "found 'zero'"),
        (BOXED + "(assert (<= Y_0 1e999))", "range of doubles"),
        (BOXED + "(assert (<= Y_0 1e99999999999))", "range of doubles"),
        (BOXED + "(assert (<= Y_0 (* 1e300 1e300)))", "line 3: a number is outside the range of doubles"),
        (BOXED + "(assert Y_0)", "expected a formula but found 'Y_0'"),
        (BOXED + "(assert (and))", "'and' without a formula"),
        (BOXED + "(assert (<= (+) Y_0))", "'+' without an argument"),
        (BOXED + "(assert)", "assert takes one formula"),
        (BOXED + "()", "expected a command after the parenthesis"),
        (BOXED + '(assert (<= Y_0 "', "unexpected character"),
        (BOXED + "(declare-const X_0 Real)", "X_0 is declared twice"),
        (BOXED + "(declare-const X_3 Real)", "X_2 is not declared, but one with a higher number is"),
        (DECLARED + "(assert (>= X_0 0))(assert (<= X_0 1))(assert (<= X_1 1))", "input X_1 has no lower bound"),
        ("", "declares no input variable"),
        (";\n", "declares no input variable"),
    ],
)
def test_bad_text_is_an_input_error(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        cases_of(text)
    assert words in str(caught.value) and not isinstance(caught.value, UnsupportedError)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(vnnlib-version <3.0>)\n(declare-network f)", "VNN-LIB 3.0 is not supported"),
        (BOXED + "(assert (<= (* X_0 X_1) Y_0))", "line 3: a product of variables"),
        (BOXED + "(assert (forall (<= X_0 Y_0)))", "operator 'forall' is not supported"),
        (BOXED + "(assert (<= (<= X_0 Y_0) true))", "'<=' between formulas is not supported"),
        (BOXED + "(assert (<= (/ X_0 X_1) Y_0))", "a division by a variable"),
        (BOXED + "(assert (<= (/ X_0 0.1) Y_0))", "divided by other than one whole number"),
        (BOXED + "(assert " + "(xor (<= Y_0 0) " * 150 + "(<= Y_0 0)" + ")" * 151, "too large once it is written out"),
        (BOXED + "(push 1)", "unknown command 'push'"),
        (BOXED + "(declare-const Z_0 Real)", "neither X_i nor Y_j"),
        (BOXED + "(declare-const X_01 Real)", "neither X_i nor Y_j"),
        (BOXED + "(declare-const X_2 Int)", "not Real but 'Int'"),
        (BOXED + "(assert " + "(and " * 500 + "(<= Y_0 0)" + ")" * 501, "nested deeper"),
        (BOXED + "(assert (or (<= Y_0 0) (<= Y_1 0)))" * 25, "more than 1000000 disjuncts"),
        (BOXED + "(assert (and (or " + "(and " + "(!= Y_0 0)" * 30 + ") (<= Y_1 0))))", "more than 1000000 disjuncts"),
    ],
)
def test_what_is_not_supported_is_named(text: str, words: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        cases_of(text)
    assert words in str(caught.value)


def test_box_alternatives_times_output_alternatives_do_not_multiply_conjunctions() -> None:
    boxes = " ".join(f"(and (>= X_0 {i}) (<= X_0 {i + 1}))" for i in range(200))
    outputs = " ".join(f"(<= Y_0 {i})" for i in range(200))
    cases = cases_of(DECLARED + f"(assert (and (>= X_1 0) (<= X_1 1)))(assert (or {boxes}))(assert (or {outputs}))")
    assert len(cases) == 200
    assert len({id(c) for case in cases for c in case.conjunctions}) == 200


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(-(10**30), 10**30), st.integers(0, 40))
def test_decimal_text_is_exact(digits: int, places: int) -> None:
    value = Fraction(digits, 10**places)
    assert Fraction(decimal(value)) == value


def test_decimal_refuses_other_fractions() -> None:
    with pytest.raises(ValueError, match="1/3"):
        decimal(Fraction(1, 3))


def test_all_version_1_benchmark_files(benchmarks: Path) -> None:
    """Every published file is read, and the short cut agrees with the general reader on each."""
    for folder in "acasxu_2023 mnist_fc lsnc collins_rul_cnn_2023 rl_benchmarks linearizenn_2024 cgan_2023".split():
        for path in sorted((benchmarks / folder / "vnnlib").glob("*.vnnlib"))[:8]:
            text = path.read_text()
            prop = parse_vnnlib(text)
            assert told(prop) == told(parse_vnnlib(text, short_cuts=False))
            assert told(prop) == told(parse_vnnlib(prop.text()))
            cases = to_cases(prop)
            assert cases and all(c.box.size == prop.inputs for c in cases)


def test_two_boxes_of_acasxu_property_6(benchmarks: Path) -> None:
    cases = to_cases(parse_vnnlib((benchmarks / "acasxu_2023" / "vnnlib" / "prop_6.vnnlib").read_text()))
    assert len(cases) == 2 and len(cases[0].conjunctions) == 4
