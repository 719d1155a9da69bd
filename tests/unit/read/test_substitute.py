"""Inputs that affine equations give: cases in free inputs say what the text says, and false claims are refused."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from mucg4.check.vnnlib2 import covers
from mucg4.gate.relations import Relations
from mucg4.model.formula import inputs_of
from mucg4.model.joint import Derived
from mucg4.model.query import Query
from mucg4.ops.affine import Dense
from mucg4.read.joint import joined
from mucg4.read.vnnlib2 import ParsedQuery, parse_query
from tests.queries import in_cases, query_of, random_formula, random_point, true, unsafe
from tests.unit.read.test_vnnlib2 import _planted

FINITE = "(and (>= U[0] -9.0) (<= U[0] 9.0) (>= U[1] -9.0) (<= U[1] 9.0))"
NAMES = ["X[0]", "X[1]", "U[0]", "U[1]", "Y[0]", "V[0]"]
ZERO = [Fraction(0), Fraction(0)]


def pair(*assertions: str) -> str:
    """Two networks of two inputs; those of the first lie in [-1, 1]."""
    lines = ["(vnnlib-version <2.0>)"]
    lines += ["(declare-network f (declare-input X real [2]) (declare-output Y real [1]))"]
    lines += ["(declare-network g (declare-input U real [2]) (declare-output V real [1]))"]
    lines += [f"(assert (and (>= X[{i}] -1.0) (<= X[{i}] 1.0)))" for i in range(2)]
    return "\n".join([*lines, *(f"(assert {a})" for a in assertions)]) + "\n"


def related(random_: random.Random, rough: bool) -> list[str]:
    """How the second network's inputs follow from the first one's, in any order."""
    a, b, c = (random_.choice(("0.1", "-0.3", "1.7") if rough else ("0.5", "-2.0", "0.25")) for _ in range(3))
    shift = f"(+ X[0] {a})"
    first = random_.choice((f"(== U[0] {shift})", f"(and (<= U[0] {shift}) (>= U[0] {shift}))", "(== (- X[0]) U[0])"))
    second = random_.choice(
        (
            f"(== U[1] (+ (* {a} X[1]) (* {b} X[0]) {c}))",
            f"(== (- (* {b} U[0]) {c}) U[1])",
            f"(== (+ U[1] (* {c} U[0])) (* {a} X[1]))",
        )
    )
    return random_.sample([first, second, f"(<= U[1] {random_.choice(('0.5', '0.75'))})"], 3)


def evaluated(parsed: ParsedQuery, query: Query, random_: random.Random) -> list[Fraction] | None:
    """Declared inputs that pass as a scorer evaluates the constraints of inputs in float32; None: none was found."""
    joint = query.joint
    assert joint is not None
    x = np.array([random_.uniform(-1, 1) for _ in range(joint.free)], dtype=np.float32)
    x[[d.target for d in joint.derived]] = 0
    relations = Relations.of(joint)
    x = x[None] if relations is None else relations.settled(x[None])
    point = list(joint.declared_inputs(x)[0])
    own = [f for f in parsed.assertions if "is_input=False" not in str(f)]
    with np.errstate(all="ignore"):
        passes = unsafe(replace(parsed, assertions=tuple(own)), point, [], np.float32)
    return [Fraction(float(v)) for v in point] if passes else None


@pytest.mark.parametrize("seed", range(20))
def test_cases_are_what_the_text_says(seed: int) -> None:
    random_ = random.Random(seed)
    text = pair(*related(random_, seed % 2 == 1), random_formula(random_, NAMES, 2, 0.2 * (seed % 2), seed % 3 == 0))
    query, parsed = query_of(text), parse_query(text)
    assert query.joint is not None and len(query.joint.derived) == 2 and covers(text, query) is None
    for _ in range(40):
        x, y = random_point(random_, query)
        says = unsafe(parsed, x, y)
        assert in_cases(query, x, y, stated=True) == says
        assert not says or in_cases(query, x, y, stated=False)


@pytest.mark.parametrize("seed", range(20))
def test_what_passes_when_evaluated_is_proved(seed: int) -> None:
    """Also where the coefficients are no doubles; what does not hold exactly at these points is found all the same."""
    random_ = random.Random(100 + seed)
    text = pair(*related(random_, True))
    query, parsed = query_of(text), parse_query(text)
    assert covers(text, query) is None
    points = [p for p in (evaluated(parsed, query, random_) for _ in range(80)) if p is not None]
    assert points
    assert all(in_cases(query, p, ZERO, stated=False) for p in points)


@pytest.mark.parametrize("seed", range(40))
def test_mistakes_are_found(seed: int) -> None:
    """A row made stricter, a box made smaller: refused, or no point is lost that a scorer lets pass."""
    random_ = random.Random(200 + seed)
    text = pair(*related(random_, seed % 2 == 0))
    query, parsed = query_of(text), parse_query(text)
    changed = _planted(random_, query.cases)
    if changed is not None and covers(text, replace(query, cases=changed)) is None:
        points = [evaluated(parsed, query, random_) for _ in range(40)]
        wrong = replace(query, cases=changed)
        assert all(in_cases(wrong, p, ZERO, stated=False) for p in points if p is not None)


def claimed(query: Query, *derived: Derived) -> Query:
    """The query with other inputs derived, and a network that computes these."""
    assert query.joint is not None
    network, joint = joined(replace(query.joint, derived=derived, places=()))
    return replace(query, networks=(network,), joint=joint)


def test_false_claims_are_refused() -> None:
    text = pair("(== U[0] (+ X[0] 0.1))", "(== U[1] X[1])")
    query = query_of(text)
    assert query.joint is not None
    (own,) = query.joint.derived
    assert own == Derived(2, ((0, 1.0),), 0.1) and covers(text, claimed(query, own)) is None
    for wrong in (
        replace(own, constant=0.1001),
        replace(own, constant=np.nan),
        replace(own, terms=((0, 1.001),)),
        replace(own, terms=((1, 1.0),)),
        replace(own, terms=((0, 1.0), (2, 1.0))),
        replace(own, target=1),
    ):
        assert covers(text, claimed(query, wrong)) is not None
    assert covers(text, claimed(query, own, own)) is not None
    assert covers(text, claimed(query)) is not None, "its cases speak of remainders"
    for other in ("(<= U[0] (+ X[0] 0.1))", "(or (== U[0] (+ X[0] 0.1)) (>= V[0] 0.0))", "(== U[0] (+ X[0] 0.2))"):
        assert covers(pair(other, FINITE, "(== U[1] X[1])"), query) is not None


def test_a_map_that_is_another_one_is_refused() -> None:
    text = pair("(== U[0] (+ X[0] 0.1))", "(== U[1] X[1])")
    query = query_of(text)
    network = query.network
    k, op = next(
        (k, n.op) for k, n in enumerate(network.nodes) if isinstance(n.op, Dense) and n.op.weight.shape[1] == 3
    )
    assert isinstance(op, Dense)
    for wrong in (
        replace(op, offset=op.offset + 1e-9),
        replace(op, weight=op.weight * 1.0000001),
        replace(op, offset_magnitude=abs(op.offset)),
        replace(op, roundings=1),
        replace(op, slack=np.ones(2)),
    ):
        nodes = list(network.nodes)
        nodes[k] = replace(nodes[k], op=wrong)
        assert covers(text, replace(query, networks=(replace(network, nodes=tuple(nodes)),))) is not None


@pytest.mark.parametrize(
    "assertions, count",
    [
        (("(== U[0] (+ X[0] 0.1))", "(== (- X[0] U[0]) -0.1)", "(== U[1] X[1])"), 1),  # twice the same
        (("(== U[0] (+ X[0] 0.1))", "(== U[0] (+ X[0] 0.2))", "(== U[1] X[1])"), 1),  # never both
        (("(== (+ U[0] U[1]) X[0])", "(== (- U[0] U[1]) X[1])", FINITE), 2),  # neither stands alone
        (("(== (+ U[0] U[1]) X[0])", "(== (- U[0] U[1]) X[1])"), 0),  # it may overflow
        (("(== U[1] (+ U[0] 0.1))", "(== U[0] (+ X[0] 0.1))"), 2),  # from behind
        (("(== U[0] (* X[0] X[0]))", "(== U[1] X[1])"), 0),
        (("(== U[0] (+ X[0] V[0]))", "(== U[1] X[1])"), 0),
        (("(or (== U[0] (+ X[0] 0.1)) (== U[0] (+ X[0] 0.2)))", "(== U[1] X[1])"), 0),  # not everywhere
        (("(== U[0] (* 1.0e300 X[0]))", "(== U[1] X[1])"), 0),  # evaluating it overflows
    ],
)
def test_which_equations_give_an_input(assertions: tuple[str, ...], count: int) -> None:
    text = pair(*assertions)
    query = query_of(text)
    assert query.joint is not None and len(query.joint.derived) == count
    assert covers(text, query) is None


def test_bounds_of_an_input_that_is_given_are_asked_of_a_witness() -> None:
    """Also those that come in long runs, which are no part of the assertions."""
    bounds = [f"(assert (<= U[0] {k}.0))" for k in range(2, 60)] + ["(assert (<= U[0] 0.5))"]
    query = query_of(pair("(== U[0] (+ X[0] 0.25))", "(== U[1] X[1])") + "\n".join(bounds) + "\n")
    assert query.joint is not None and query.joint.derived
    for x, holds in ((0.25, True), (0.5, False)):
        point = [x, 0.0, x + 0.25, 0.0]
        assert all(true(f, point, [0.0, 0.0], float) for f in query.joint.assertions) == holds
        assert in_cases(query, list(map(Fraction, point)), ZERO, stated=False) == holds
    assert any(inputs_of(f) == {2} for f in query.joint.assertions)


@pytest.mark.parametrize("end, rows", [("1.2", 0), ("1.1", 0), ("1.09", 1), ("-0.5", 1)])
def test_bounds_that_an_equation_says_already_are_no_rows(end: str, rows: int) -> None:
    """One that cuts off a corner as wide as the remainder held up a search for good."""
    text = pair("(== U[0] (+ X[0] 0.1))", f"(<= U[0] {end})", "(== U[1] X[1])", "(<= Y[0] V[0])")
    query = query_of(text)
    (conjunction,) = query.cases[0].conjunctions
    assert sum(bool(xs) for xs, _, _ in conjunction.proved) == rows
    assert covers(text, query) is None
