"""What is proved contains what a runtime lets pass: hulls of bounds, and constraints evaluated in the model's type."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from effort import effort
from handmade import chain

from mucg4.check.walk import check
from mucg4.errors import InputError
from mucg4.gate.witness import holds
from mucg4.limits.budget import Budget
from mucg4.model.formula import Apply, Compare, Constant, Term, Variable
from mucg4.model.query import Box, Case, Conjunction, Query, hull
from mucg4.model.verdict import Safe
from mucg4.read.rounding import rounding_of
from mucg4.read.vnnlib import parse_vnnlib, to_cases
from mucg4.settings import Settings
from mucg4.verify import verify

TYPES = ["float16", "float32", "float64"]
DECLARED = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)\n"
BOXED = DECLARED + "".join(f"(assert (>= X_{i} -1))(assert (<= X_{i} 1))" for i in range(2)) + "\n"


def only(text: str, element_type: str = "float32") -> tuple[Box, Conjunction]:
    (case,) = to_cases(parse_vnnlib(BOXED + text), element_type)
    (conjunction,) = case.conjunctions
    return case.box, conjunction


# -- bounds of single inputs --------------------------------------------------------------------


def decimals(seed: int) -> list[Fraction]:
    """Texts of bounds, as exact numbers: plain, beyond and below all ranges, representable, between two numbers."""
    draw = random.Random(seed)
    texts = [f"{draw.uniform(-9, 9):.{draw.randint(0, 12)}f}e{draw.randint(-50, 45)}" for _ in range(300)]
    texts += ["0", "-0.0", "0.1", "-0.1", "1e-46", "-1e-46", "1e-45", "1e-320", "-1e-330", "1e39", "-1e39", "1e308"]
    texts += [
        "3.4028235e38",
        "3.4028236e38",
        "3.40282346638528859811704183484516925440e38",
        "65504",
        "65519.99",
        "65520",
    ]
    exact = [Fraction(t) for t in texts]
    for _ in range(100):  # numbers of a type, halfway between two, and next to halfway
        a = np.float32(draw.uniform(-2, 2))
        middle = (Fraction(float(a)) + Fraction(float(np.nextafter(a, np.float32(9))))) / 2
        exact += [Fraction(float(a)), middle, middle + Fraction(1, 10**40), middle - Fraction(1, 10**40)]
    return exact


@pytest.mark.parametrize("element_type", TYPES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_hull_holds_the_number_its_double_and_its_rounding_and_no_more(element_type: str, sign: int) -> None:
    numbers = decimals(0)
    for number, end in zip(numbers, hull(numbers, sign, element_type).tolist(), strict=True):
        near = float(number)
        with np.errstate(over="ignore"):
            rounded = float(np.float64(near).astype(element_type))
        parts = [number, Fraction(near), *([Fraction(rounded)] if np.isfinite(rounded) else [])]
        outermost = max(parts) if sign > 0 else min(parts)
        assert (Fraction(end) - outermost) * sign >= 0
        inner = np.nextafter(end, -sign * np.inf)
        assert not np.isfinite(inner) or (Fraction(float(inner)) - outermost) * sign < 0, "the nearest such double"


@pytest.mark.parametrize("element_type", TYPES)
def test_values_that_pass_rounded_bounds_are_inside(element_type: str) -> None:
    kind: Any = np.dtype(element_type).type
    with np.errstate(over="ignore"):
        for number in decimals(1):
            bound = kind(float(number))
            for x in (bound, np.nextafter(bound, kind(-np.inf)), np.nextafter(bound, kind(np.inf))):
                if np.isfinite(x):
                    assert not x <= bound or x <= hull((number,), 1, element_type)[0]
                    assert not x >= bound or x >= hull((number,), -1, element_type)[0]


def test_ends_of_exactly_representable_bounds_are_the_bounds() -> None:
    box = Box((Fraction(1, 4), Fraction(0)), (Fraction(1, 2), Fraction(0)))
    assert box.lo.tolist() == [0.25, 0.0] and box.hi.tolist() == [0.5, 0.0] and not np.signbit(box.lo).any()


def test_float64_models_have_tighter_ends() -> None:
    bound = (Fraction(1, 10),)
    assert Box(bound, bound, "float64").hi[0] == 0.1 < Box(bound, bound).hi[0] == float(np.float32(0.1))
    assert Box(bound, bound, "float64").lo[0] == np.nextafter(0.1, 0) == Box(bound, bound).lo[0]


def test_a_box_is_empty_only_when_its_rounding_is() -> None:
    lower, upper = (Fraction(1, 10) + Fraction(1, 10**12),), (Fraction(1, 10),)
    assert not Box(lower, upper).empty and Box(lower, upper, "float64").empty
    assert not Box((Fraction(2, 10**46),), (Fraction(1, 10**46),)).empty, "both are 0 as float32"


def test_a_query_wants_boxes_that_are_loose_enough_for_its_network() -> None:
    one = (Fraction(1),)
    nothing = (Conjunction.build([({}, {0: Fraction(1)}, Fraction(0), False)], 1, 1),)
    with pytest.raises(InputError, match="read for float64 inputs"):
        Query((chain([(np.ones((1, 1)), np.zeros(1))]),), (Case(Box(one, one, "float64"), nothing),))
    for element_type in ("float32", "float64"):
        Query(
            (chain([(np.ones((1, 1)), np.zeros(1))], dtype=np.float64),), (Case(Box(one, one, element_type), nothing),)
        )
    with pytest.raises(InputError, match="inputs of type int8"):
        Box(one, one, "int8")


# -- strict bounds ------------------------------------------------------------------------------


def test_a_strict_bound_excludes_the_end_of_its_hull() -> None:
    for text, end in (
        ("(< X_0 0.1)", float(np.float32(0.1))),
        ("(< X_0 0.3)", float(np.float32(0.3))),
        ("(< X_0 0.5)", 0.5),
    ):
        box, conj = only(f"(assert {text})")
        assert box.hi[0] == end and conj.proved == (({0: 1}, {}, -Fraction(end)),) and conj.strict.tolist() == [True]
        assert conj.exact == (({0: 1}, {}, -Fraction(text[7:-1])),) and conj.constants.tolist() == [-end]
    box, conj = only("(assert (> X_0 0.7))")  # its float32 is below it
    assert box.lo[0] == float(np.float32(0.7)) and conj.proved == (({0: -1}, {}, Fraction(float(box.lo[0]))),)


def test_an_end_that_a_looser_constraint_attains_after_rounding_is_not_excluded() -> None:
    """0.5 is allowed as stated, since it is below 0.5 + 1e-10, though both have the float32 0.5."""
    box, conj = only("(assert (<= X_0 0.5))(assert (< X_0 0.5000000001))")
    assert box.hi[0] == 0.5 and conj.proved[0][2] < -Fraction(1, 2)


def test_a_strict_bound_on_a_tighter_side_changes_nothing_there() -> None:
    box, conj = only("(assert (< X_0 0.75))(assert (<= X_0 0.5))")
    assert box.hi[0] == 0.5 and conj.proved == (({0: 1}, {}, -Fraction(3, 4)),)


def test_hashes_are_of_the_stated_numbers() -> None:
    text = BOXED + "(assert (< X_0 0.1))(assert (<= (* 3 X_1) 0.3))"
    network = chain([(np.ones((1, 2)), np.zeros(1))])
    single, double = (to_cases(parse_vnnlib(text), kind) for kind in ("float32", "float64"))
    assert single[0].conjunctions[0].proved != double[0].conjunctions[0].proved
    wide = chain([(np.ones((1, 2)), np.zeros(1))], dtype=np.float64)
    assert Query((network,), single).property_hash == Query((wide,), double).property_hash


# -- constraints with arithmetic ----------------------------------------------------------------


def evaluate(term: Term, x: list[Any], kind: Any, order: random.Random) -> Any:
    """As a scorer does it: NumPy scalars of the model's type meet Python floats; sums in any order."""
    if isinstance(term, Constant):
        return kind(float(term.value))
    if isinstance(term, Variable):
        return x[term.index]
    args = [evaluate(t, x, kind, order) for t in term.args]
    if term.op == "-":
        args = [-args[0]] if len(args) == 1 else [args[0], *(-a for a in args[1:])]
    order.shuffle(args)
    total = args[0]
    for a in args[1:]:
        total = total * a if term.op == "*" else total + a
    return total


def exact(term: Term, x: list[Fraction]) -> Fraction:
    if isinstance(term, Constant):
        return term.value
    if isinstance(term, Variable):
        return x[term.index]
    args = [exact(t, x) for t in term.args]
    if term.op == "*":
        return Fraction(np.prod(args))
    return sum(args, Fraction(0)) if term.op == "+" else -args[0] if len(args) == 1 else args[0] - sum(args[1:])


def term_of(draw: random.Random, depth: int, variables: int) -> Term:
    kind = draw.random()
    if depth == 0 or kind < 0.2:
        if draw.random() < 0.4:
            return Constant(Fraction(f"{draw.uniform(-3, 3):.{draw.randint(0, 9)}f}"))
        i = draw.randrange(variables)
        return Variable(f"X_{i}", True, i)
    if kind < 0.55:
        fixed = Constant(
            Fraction(f"{draw.uniform(-3, 3):.{draw.randint(0, 9)}f}e{draw.choice([0, 0, 0, -30, -44, 20])}")
        )
        args: list[Term] = [fixed, term_of(draw, depth - 1, variables)]
        draw.shuffle(args)
        return Apply("*", tuple(args))
    return Apply(draw.choice("+-"), tuple(term_of(draw, depth - 1, variables) for _ in range(draw.randint(1, 4))))


def passes(conj: Conjunction, box: Box, x: list[Fraction]) -> bool:
    if not all(Fraction(a) <= v <= Fraction(b) for a, v, b in zip(box.lo.tolist(), x, box.hi.tolist(), strict=True)):
        return False
    sums = [c + sum(a * x[i] for i, a in xs.items()) for xs, _, c in conj.proved]
    return all(s < 0 if strict else s <= 0 for s, strict in zip(sums, conj.strict.tolist(), strict=True))


@pytest.mark.parametrize("element_type", TYPES)
@pytest.mark.parametrize("variables", [1, 2])
def test_what_passes_in_the_models_arithmetic_is_in_the_proved_set(element_type: str, variables: int) -> None:
    """Points next to the boundary of random constraints; at least some pass that do not pass exactly."""
    draw, kind, beyond = random.Random(variables), np.dtype(element_type).type, 0
    unit, boxed = Fraction(float(np.finfo(kind).eps)), parse_vnnlib(BOXED)
    for _ in range(30):
        left = term_of(draw, 3, variables)
        x = [kind(draw.uniform(-1, 1)) for _ in range(2)]
        at = [Fraction(float(v)) for v in x]
        size = rounding_of(Compare("<=", left, Constant(Fraction(0))), element_type).size
        step = unit * size.at({0: abs(at[0]), 1: abs(at[1])})
        for shift in (0, Fraction(1, 4), -Fraction(1, 4), draw.choice([1, -1])):
            right = Constant(Fraction(repr(float(exact(left, at) + shift * step))))
            op = draw.choice(["<=", ">=", "<", ">", "="])
            atom = Compare(op, left, right) if draw.random() < 0.7 else Compare(op, right, left)
            (case,) = to_cases(replace(boxed, assertions=(*boxed.assertions, atom)), element_type)
            with np.errstate(all="ignore"):
                evaluated = compare(op, *(evaluate(t, x, kind, draw) for t in (atom.left, atom.right)))
            really = compare(op, *(exact(t, at) for t in (atom.left, atom.right)))
            if evaluated or really:
                assert passes(case.conjunctions[0], case.box, at), (atom, at)
            beyond += evaluated and not really
    assert beyond > 5


def compare(op: str, a: Any, b: Any) -> bool:
    return bool({"<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b, "=": a == b}[op])


def test_a_factor_makes_a_side_that_holds_all_float32_solutions() -> None:
    box, conj = only("(assert (<= (* 3 X_0) 0.3))")
    assert box.upper[0] == Fraction(1, 10) and conj.exact == (({0: 3}, {}, -Fraction(3, 10)),)
    x = np.float32(0.1)
    for _ in range(3):
        x = np.nextafter(x, np.float32(1))
        assert bool(np.float32(3) * x <= np.float32(0.3)) <= bool(float(x) <= box.hi[0])
    assert 0.1 < box.hi[0] < 0.1 + 1e-6 and box.hi[1] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "(<= (* 3 X_0) 0.3)",
        "(<= (+ X_0 X_0 X_0) 0.3)",
        "(<= X_0 (+ 0.1 0.2))",
        "(>= (- 0.3 (* 3 X_0)) 0)",
        "(< (* 3 X_0) -0.3)",
        "(= (* 3 X_0) 0.3)",
    ],
)
def test_single_inputs_with_arithmetic_stay_as_rows_for_the_witness_gate(text: str) -> None:
    _, conj = only(f"(assert {text})")
    assert conj.mixed and all(p[2] < e[2] for p, e in zip(conj.proved, conj.exact, strict=True))
    assert [p[0] for p in conj.proved] == [e[0] for e in conj.exact]


def test_comparisons_without_arithmetic_round_nothing() -> None:
    for text in ("(<= X_0 X_1)", "(< (- X_0) X_1)", "(<= X_0 Y_0)", "(<= (+ Y_0 (* 3 Y_0)) 0.1)"):
        _, conj = only(f"(assert {text})")
        assert conj.proved == conj.exact and conj.strict.tolist() == conj.stated_strict.tolist() == [
            "<" in text.split()[0][1:2] and "<=" not in text
        ]
    for text, plain in (("(<= (- X_0) 0.1)", "(>= X_0 -0.1)"), ("(<= 0.1 X_0)", "(>= X_0 0.1)")):
        (a, first), (b, second) = only(f"(assert {text})"), only(f"(assert {plain})")
        assert not a.ends and (a.lo == b.lo).all() and first.exact == second.exact


def test_mixed_constraints_are_loosened_by_their_input_terms_alone() -> None:
    _, conj = only("(assert (<= (+ X_0 0.1) (* 1000 Y_0)))")
    (exact_row,), (proved,) = conj.exact, conj.proved
    assert proved[:2] == exact_row[:2] and 0 < exact_row[2] - proved[2] < Fraction(1, 10**5)


def test_two_constants_may_be_equal_once_they_are_rounded() -> None:
    _, conj = only("(assert (<= 0.30000000001 0.3))")
    assert conj.exact[0][2] > 0 > conj.proved[0][2]
    _, conj = only("(assert (<= 0.5 0.25))")
    assert conj.exact == conj.proved


def test_what_may_overflow_is_no_constraint() -> None:
    """`X_0 - 1e39 <= -1e39` is true for every float32: both sides are minus infinity."""
    box, conj = only("(assert (<= (- X_0 1e39) (- 1e39)))")
    assert conj.proved == (({}, {}, 0),) and conj.strict.tolist() == [False] and box.hi[0] == 1
    box, conj = only("(assert (<= (+ (* 3e38 X_0) (* -3e38 X_1)) 0.3))")
    assert conj.proved == (({}, {}, 0),)


def test_rows_are_loosened_over_the_box_that_they_stand_with() -> None:
    text = "(assert (or (<= X_0 0.001) (<= X_1 0.5)))(assert (or (<= (+ X_0 X_1) 0.1) (<= Y_0 0)))"
    cases = to_cases(parse_vnnlib(BOXED.replace("X_0 -1", "X_0 0").replace("X_1 -1", "X_1 0") + text))
    first, second = (case.conjunctions[0].proved[0][2] for case in cases)
    assert first != second and cases[0].conjunctions[1] is cases[1].conjunctions[1]


def test_sums_of_many_inputs_are_read_quickly() -> None:
    n = 3000
    text = "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} 0))(assert (<= X_{i} 1))" for i in range(n))
    text += f"(declare-const Y_0 Real)(assert (<= (+ {' '.join(f'X_{i}' for i in range(n))}) 0.3))"
    (case,) = to_cases(parse_vnnlib(text))
    assert case.conjunctions[0].proved[0][2] < -Fraction(3, 10)


def test_the_gate_asks_for_the_stated_set() -> None:
    one = np.zeros(1, dtype=np.float32)
    _, conj = only("(assert (<= (+ X_0 X_1) 0.3))")
    for x in permutations([np.float32(0.1), np.float32(0.2)]):
        at = np.array(x, dtype=np.float32)
        assert not holds(conj, at, one), "the exact sum is 0.3 + 4.5e-9"
        assert passes(conj, only("")[0], [Fraction(float(v)) for v in at])
    _, conj = only("(assert (< X_0 0.5))")
    assert not holds(conj, np.array([0.5, 0], dtype=np.float32), one)


# -- verdicts -----------------------------------------------------------------------------------

UNIT_BOX = "(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= X_1 0))(assert (<= X_1 1))"


def adding(text: str, element_type: str = "float32") -> Query:
    """The property for a network that adds its two inputs."""
    network = chain([(np.ones((1, 2)), np.zeros(1))], dtype=np.dtype(element_type).type)
    return Query((network,), to_cases(parse_vnnlib(DECLARED + UNIT_BOX + text), element_type))


@pytest.mark.parametrize(
    "text",
    [
        "(assert (<= (* 3 X_0) 0.3))(assert (<= X_1 0))(assert (>= Y_0 0.1000000014))",  # 3 x is 0.3 in float32
        "(assert (<= (+ X_0 X_1) 0.3))(assert (>= Y_0 0.3000000044))",
        "(assert (< (+ X_0 X_1) 0.3))(assert (>= Y_0 0.3))",
        "(assert (<= 0.30000000001 0.3))(assert (>= Y_0 1))",  # one and the same float32
        "(assert (<= (* 1e39 X_0) 1e39))(assert (>= Y_0 2))",  # infinity is not above infinity
    ],
)
def test_no_unsat_where_float32_inputs_pass(text: str) -> None:
    assert not isinstance(verify(adding(text), Settings(workers=1), budget=Budget.seconds(0.5)), Safe)


@pytest.mark.parametrize(
    ("text", "element_type"),
    [
        ("(assert (<= (* 3 X_0) 0.3))(assert (<= X_1 0))(assert (>= Y_0 0.10001))", "float32"),
        ("(assert (<= (* 3 X_0) 0.3))(assert (<= X_1 0))(assert (>= Y_0 0.1000000014))", "float64"),
        ("(assert (<= (+ X_0 X_1) 0.3))(assert (>= Y_0 0.301))", "float64"),
        ("(assert (<= X_0 0.1))(assert (<= X_1 0))(assert (>= Y_0 0.1000000001))", "float64"),
        ("(assert (< X_0 0.5))(assert (<= X_1 0))(assert (>= Y_0 0.5))", "float32"),
        # the float32 of 0.1 is left out, too
        ("(assert (< X_0 0.1))(assert (<= X_1 0))(assert (>= Y_0 0.100000001490116119384765625))", "float32"),
        ("(assert (<= (+ X_0 X_1) 0.1))(assert (>= (+ X_0 X_1) 0.2))(assert (>= Y_0 -1))", "float32"),
    ],
)
def test_unsat_where_none_passes(text: str, element_type: str) -> None:
    query = adding(text, element_type)
    verdict = verify(query, Settings(workers=1), budget=effort())
    assert isinstance(verdict, Safe) and check(verdict.proof, query).accepted


def test_inputs_times_zero_are_no_part_of_a_bound() -> None:
    box, conj = only("(assert (>= (+ -1 X_1) (* 0 X_0)))(assert (<= (+ 1 X_1) (* 0 X_0)))")
    assert not box.ends and len(conj) == 2 and all(p[2] < e[2] for p, e in zip(conj.proved, conj.exact, strict=True))
