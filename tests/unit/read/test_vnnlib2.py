"""VNN-LIB 2.0: both readers against direct evaluation, against each other, and against planted mistakes."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from handmade import model_bytes
from queries import in_cases, query_of, random_point, random_text, true, unsafe, value

from mucg4.check.vnnlib2 import covers, denies
from mucg4.errors import InputError, UnsupportedError
from mucg4.gate.assignment import assignment_text, write_assignment
from mucg4.model.query import Case, Query
from mucg4.model.verdict import Verdict
from mucg4.read.capabilities import supports
from mucg4.read.instance import read_query
from mucg4.read.onnx import read_network
from mucg4.read.vnnlib2 import is_version_2, parse_query
from mucg4.settings import Settings
from mucg4.verify import verify

ONE = """(vnnlib-version <2.0>)
(declare-network N (declare-input X real [1,2]) (declare-output Y real [2]))
(assert (>= X[0,0] -1.0)) (assert (<= X[0,0] 1.0)) (assert (and (>= X[0,1] -1.0) (<= X[0,1] 1.0)))
"""
PAIR = """(vnnlib-version <2.0>)
(declare-network f (declare-input X real [2]) (declare-output Y real [1]))
(declare-network g (equal-to f) (declare-input U real [2]) (declare-output V real [1]))
(assert (>= X[0] -1.0)) (assert (<= X[0] 1.0)) (assert (>= X[1] -1.0)) (assert (<= X[1] 1.0))
(assert (== X[0] U[0])) (assert (>= U[1] -1.0)) (assert (<= U[1] X[1]))
(assert (< Y[0] V[0]))
"""


def judge_text(seed: int, points: int, rough: float) -> None:
    """Cases against direct evaluation, and the second reading against both, at points on a grid."""
    random_ = random.Random(seed)
    text = random_text(random_, rough)
    query, parsed = query_of(text), parse_query(text)
    assert covers(text, query) is None
    asked = 0
    for _ in range(points):
        x, y = random_point(random_, query)
        says = unsafe(parsed, x, y)
        assert in_cases(query, x, y, stated=True) == says
        assert not says or in_cases(query, x, y, stated=False)
        if asked < 3 and (says or rough == 0):
            asked += 1
            word = denies(text, "float32", np.array(x, dtype=np.float32), np.array(y, dtype=np.float32))
            assert (word is None) if says else (word is not None or rough > 0 or _may_round(text))


def _may_round(text: str) -> bool:
    """Whether the second reading allows constraints of inputs some rounding: it does wherever they calculate."""
    return any(op in text for op in ("(+", "(* ", "(-"))


@pytest.mark.parametrize("seed", range(60))
def test_cases_are_what_the_text_says(seed: int) -> None:
    judge_text(seed, 20, 0.2 * (seed % 2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60, 1060))
def test_cases_are_what_the_text_says_at_length(seed: int) -> None:
    judge_text(seed, 60, 0.2 * (seed % 2))


@pytest.mark.parametrize("element_type", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(10))
def test_what_passes_when_evaluated_is_proved(seed: int, element_type: str) -> None:
    """Constraints of inputs alone, evaluated as written in the model's type, at points next to where they turn."""
    random_ = random.Random(2000 + seed)
    kind = np.dtype(element_type).type
    a, b, c = (random_.choice(("0.1", "0.3", "-0.7", "1.1")) for _ in range(3))
    term = random_.choice(
        (f"(* X[0,0] X[0,1] {a})", f"(+ (* X[0,0] X[0,0]) (* {a} X[0,1]))", f"(* (+ X[0,0] {a}) (- X[0,1] {b}))")
    )
    text = ONE + f"(assert (<= {term} (* {c} X[0,0])))\n"
    query = query_of(text, element_type)
    assert covers(text, query) is None
    parsed = parse_query(text)
    near = 0
    for _ in range(15):
        first = kind(random_.uniform(-1, 1))
        low, high = -1.0, 1.0
        for _ in range(80):  # bisect to a point where the comparison turns
            middle = (low + high) / 2
            x = [first, kind(middle)]
            inside = unsafe_in_type(parsed.assertions[-1:], x)
            low, high = (
                (middle, high)
                if inside == unsafe_in_type(parsed.assertions[-1:], [first, kind(-1.0)])
                else (low, middle)
            )
        for at in (low, high, np.nextafter(kind(low), kind(1)), np.nextafter(kind(low), kind(-1))):
            x = [first, kind(at)]
            if abs(float(x[1])) <= 1 and unsafe_in_type(parsed.assertions[-1:], x):
                near += 1
                exact = [Fraction(float(v)) for v in x]
                assert in_cases(query, exact, [Fraction(0), Fraction(0)], stated=False)
    assert near


def unsafe_in_type(assertions, x) -> bool:  # type: ignore[no-untyped-def]
    with np.errstate(all="ignore"):
        return all(true(f, x, [], float) for f in assertions)


# --- planted mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_mistakes_are_found(seed: int) -> None:
    """A conjunction left out, a row made stricter, a box made smaller: each is refused unless nothing is lost."""
    random_ = random.Random(3000 + seed)
    text = random_text(random_)
    query = query_of(text)
    changed = _planted(random_, query.cases)
    if changed is None:
        return
    if covers(text, replace(query, cases=changed)) is None:  # then no unsafe point may be lost
        wrong, parsed = replace(query, cases=changed), parse_query(text)
        for _ in range(100):
            x, y = random_point(random_, query)
            if unsafe(parsed, x, y):
                assert in_cases(wrong, x, y, stated=False)


def _planted(random_: random.Random, cases: tuple[Case, ...]) -> tuple[Case, ...] | None:
    k = random_.randrange(len(cases))
    case = cases[k]
    which = random_.choice(("row", "box", "conjunction"))
    if which == "conjunction":
        if len(case.conjunctions) < 2:
            return None
        gone = random_.randrange(len(case.conjunctions))
        made = replace(case, conjunctions=tuple(c for i, c in enumerate(case.conjunctions) if i != gone))
    elif which == "box":
        i = random_.randrange(case.box.size)
        upper = list(case.box.upper)
        upper[i] -= Fraction(1, 2)
        made = replace(case, box=replace(case.box, upper=tuple(upper)))
    else:
        j = random_.randrange(len(case.conjunctions))
        conj = case.conjunctions[j]
        r = random_.randrange(len(conj))
        proved = list(conj.proved)
        proved[r] = (proved[r][0], proved[r][1], proved[r][2] + Fraction(1, 4))
        constants = conj.constants.copy()
        constants[r] = float(proved[r][2])
        conj = replace(conj, proved=tuple(proved), constants=constants)
        made = replace(case, conjunctions=(*case.conjunctions[:j], conj, *case.conjunctions[j + 1 :]))
    return (*cases[:k], made, *cases[k + 1 :])


def test_a_wrong_joint_network_is_refused() -> None:
    query = query_of(PAIR)
    joint = query.joint
    assert joint is not None and covers(PAIR, query) is None
    assert joint.links == (0, 1, 0, 2)
    network = query.network
    wired = {k: n for k, n in enumerate(network.nodes) if getattr(n.op, "kind", "") == "Index"}
    assert wired
    for k, node in wired.items():
        index = node.op.index.copy()  # type: ignore[union-attr]
        index[0] = (index[0] + 1) % node.op.size  # type: ignore[union-attr]
        nodes = list(network.nodes)
        nodes[k] = replace(node, op=replace(node.op, index=index))  # type: ignore[type-var]
        wrong = replace(query, networks=(replace(network, nodes=tuple(nodes)),))
        assert covers(PAIR, wrong) is not None
    linked = replace(joint, links=(0, 1, 0, 1), free=2)
    assert "equal" in (covers(PAIR, replace(query, joint=linked)) or "")
    for part in range(2):
        places = list(joint.places)
        places[part] = tuple(reversed(places[part]))
        assert covers(PAIR, replace(query, joint=replace(joint, places=tuple(places)))) is not None


def test_inputs_are_not_equal_by_half_an_equation() -> None:
    text = PAIR.replace("(== X[0] U[0])", "(<= X[0] U[0])").replace("(>= U[1]", "(>= U[0] -1.0)) (assert (>= U[1]")
    query = query_of(text)
    assert query.joint is not None and query.joint.links == (0, 1, 2, 3)
    assert covers(text, query) is None
    linked = replace(query.joint, links=(0, 1, 0, 2), free=3)
    assert covers(text, replace(query, joint=linked)) is not None


EQUAL = [  # other ways to say that X[0] and U[0] are equal
    "(== (- X[0] U[0]) 0.0)",
    "(== 0.0 (- U[0] X[0]))",
    "(== (+ X[0] (- U[0])) 0.0)",
    "(and (<= X[0] U[0]) (>= X[0] U[0]))",
    "(and (>= 0.0 (- X[0] U[0])) (<= U[0] X[0]))",
]
NOT_EQUAL = ["(== (- X[0] U[0]) 0.1)", "(== (* 2.0 X[0]) U[0])", "(== (+ X[0] U[0]) 0.0)", "(<= (- X[0] U[0]) 0.0)"]


@pytest.mark.parametrize("formula", EQUAL + NOT_EQUAL)
def test_equal_inputs_however_it_is_written(formula: str) -> None:
    text = PAIR.replace("(== X[0] U[0])", f"(and {formula} (>= U[0] -2.0) (<= U[0] 2.0))")
    query = query_of(text)
    assert query.joint is not None and (query.joint.links == (0, 1, 0, 2)) == (formula in EQUAL)
    assert covers(text, query) is None
    if formula in NOT_EQUAL:
        linked = replace(query.joint, links=(0, 1, 0, 2), free=3)
        assert covers(text, replace(query, joint=linked)) is not None


@pytest.mark.parametrize("element_type", ["float32", "float64"])
@pytest.mark.parametrize("term", ["(+ X[0] 0.1)", "(* 0.3 X[0])", "(- (* 1.7 X[0]) 0.7)", "(* -3.0 (+ X[0] X[1]))"])
def test_equations_bound_the_inputs_that_they_give(term: str, element_type: str) -> None:
    """The remainder is as far as evaluating them may reach: what passes in the element type is proved, and no more."""
    text = PAIR.replace("(== X[0] U[0])", f"(== U[0] {term})")
    query = query_of(text, element_type)
    assert covers(text, query) is None
    box = query.cases[0].box
    assert query.joint is not None and [d.target for d in query.joint.derived] == [2]
    assert max(abs(box.lo[2]), abs(box.hi[2])) < 150 * np.finfo(element_type).eps
    random_, kind = random.Random(len(term)), np.dtype(element_type).type
    equation = next(f for f in parse_query(text).assertions if "U" in str(f) and "==" in str(f))
    for k in range(60):
        x = [kind(random_.choice((-1.0, 1.0)) if k % 2 else random_.uniform(-1, 1)) for _ in range(2)]
        u = kind(value(equation.right, x, [], kind))  # type: ignore[union-attr]
        point = [Fraction(float(v)) for v in (*x, u, x[1])]
        assert in_cases(query, point, [Fraction(0), Fraction(1)], stated=False)
    tight = replace(box, upper=(*box.upper[:2], box.upper[2] / 64, *box.upper[3:]))
    smaller = replace(query, cases=(replace(query.cases[0], box=tight),))
    assert covers(text, smaller) is not None


@pytest.mark.parametrize(
    "formula, far",
    [
        ("(<= (* 3.0 U[0]) (* 2.0 U[0]))", True),
        ("(== (* 3.0 U[0]) (* 2.0 U[0]))", True),
        ("(and (<= (* 3.0 U[0]) X[0]) (>= U[0] -1.0))", True),
        ("(== (* 3.0 U[0]) X[0])", False),
        ("(and (<= U[0] (* 3.0 X[0])) (>= U[0] -1.0))", False),
    ],
)
def test_an_input_that_may_overflow_has_no_bound(formula: str, far: bool) -> None:
    """`inf <= inf` holds: twice a large number is infinite on both sides."""
    query = query_of(PAIR.replace("(== X[0] U[0])", formula))
    assert bool(query.cases[0].box.hi[2] > 1e38) == far
    assert covers(query.text, query) is None


# --- texts ------------------------------------------------------------------------------------------------------


def test_versions_are_told_apart_by_content() -> None:
    assert is_version_2(ONE) and is_version_2("; (declare-const X_0 Real)\n" + ONE)
    assert not is_version_2("(declare-const X_0 Real) ; (declare-network f)\n")
    assert not is_version_2("(vnnlib-version <2.0>)\n(declare-const X_0 Real)")


def test_short_cuts_change_nothing() -> None:
    for text in (ONE, PAIR, *(random_text(random.Random(seed)) for seed in range(30))):
        assert parse_query(text) == parse_query(text, short_cuts=False)


def test_blanks_and_comments_do_not_matter() -> None:
    spaced = ONE.replace("[0,1]", " [ 0 , 1 ]").replace("[1,2]", " [1,\n2]").replace("(assert", "; [a b\n( assert ")
    assert parse_query(spaced) == parse_query(ONE)
    assert covers(spaced, query_of(spaced)) is None


def test_the_official_parser_reads_the_same() -> None:
    """Its assertions, written out again (with blanks in front of indices), are ours."""
    vnnlib = pytest.importorskip("vnnlib")
    for text in (ONE, PAIR, *(random_text(random.Random(seed)) for seed in range(40))):
        official = vnnlib.parse_query_string(text)
        declared = text[: text.index("(assert")]
        again = declared + "\n".join(str(a) for a in official.assertions)
        assert parse_query(again) == parse_query(text)
        assert covers(again, query_of(text)) is None


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ("(assert (<= X[0] 1.0))", "does not index"),
        ("(assert (<= X[0,2] 1.0))", "does not index"),
        ("(assert (<= Z[0,0] 1.0))", "not declared"),
        ("(assert (<= X 1.0))", "does not index"),
        ("(declare-const X_0 Real)", "VNN-LIB 1.0"),
        ("(declare-network N (declare-input A real [1]) (declare-output B real [1]))", "declared twice"),
        ("(declare-network M (declare-input X real [1]) (declare-output B real [1]))", "declared twice"),
        ("(declare-network M (declare-input A real [0]) (declare-output B real [1]))", "0 values"),
        ("(declare-network M (declare-input A real [1]))", "no output"),
        ("(declare-network M (equal-to K) (declare-input A real [1]) (declare-output B real [1]))", "no network"),
        ("(declare-network M (equal-to N) (declare-input A real [1]) (declare-output B real [1]))", "not those of"),
        ("(assert (<= X[0,0]))", "two arguments"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(wrong: str, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        parse_query(ONE + wrong)
    assert "line " in str(caught.value)


def test_other_versions_are_named() -> None:
    with pytest.raises(UnsupportedError, match=r"3\.0"):
        parse_query(ONE.replace("<2.0>", "<3.0>"))


def test_a_thousand_disjuncts() -> None:
    parts = " ".join(f"(and (<= Y[0] {k}.5) (>= (* Y[0] X[0,1]) (* {k}.0 Y[1])))" for k in range(1000))
    text = ONE + f"(assert (or {parts}))\n"
    query = query_of(text)
    assert sum(len(c.conjunctions) for c in query.cases) == 1000
    assert covers(text, query) is None


def test_inputs_without_bounds_reach_as_far_as_their_type() -> None:
    text = PAIR.replace("(assert (<= U[1] X[1]))", "")
    query = query_of(text)
    assert query.cases[0].box.hi[2] == np.finfo(np.float32).max
    assert covers(text, query) is None
    assert query_of(PAIR).cases[0].box.hi[2] == 1.0


# --- whole runs -------------------------------------------------------------------------------------------------


def files(tmp_path: Path, text: str, **models: bytes) -> tuple[str, str]:
    (tmp_path / "p.vnnlib").write_text(text)
    pairs = []
    for name, data in models.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
        pairs.append((name, str(tmp_path / f"{name}.onnx")))
    return (repr(pairs) if len(pairs) > 1 else pairs[0][1]), str(tmp_path / "p.vnnlib")


def small(seed: int, inputs: int = 2, outputs: int = 1) -> bytes:
    rng = np.random.default_rng(seed)
    sizes = (inputs, 5, 4, outputs)
    return model_bytes([(rng.normal(size=(b, a)), 0.3 * rng.normal(size=b)) for a, b in pairwise(sizes)])


def answer(tmp_path: Path, text: str, **models: bytes) -> tuple[Query, Verdict]:
    query = read_query(*files(tmp_path, text, **models))
    return query, verify(query, Settings(timeout=30, workers=1))


def test_one_network_monotone_in_itself(tmp_path: Path) -> None:
    """Strictly larger for a smaller input: needs a witness off the diagonal, where the margin is 0."""
    query, verdict = answer(tmp_path, PAIR, f=small(1))
    assert verdict.word == "sat"
    x, y = verdict.witness.values  # type: ignore[attr-defined]
    assert x[0] == x[2] and x[3] <= x[1] and y[0] < y[1]
    text = assignment_text(query, verdict.witness).split("\n")  # type: ignore[attr-defined]
    assert [line for line in text if " " in line] == ["X real [2]", "Y real [1]", "U real [2]", "V real [1]"]
    assert read_assignment(PAIR, "\n".join(["sat", *text])) == [float(v) for v in (*x[:2], y[0], *x[2:], y[1])]


def test_a_network_equals_itself(tmp_path: Path) -> None:
    text = PAIR.replace("(<= U[1] X[1])", "(== U[1] X[1])").replace("(< Y[0] V[0])", "(<= Y[0] (- V[0] 0.01))")
    assert answer(tmp_path, text, f=small(2))[1].word == "unsat"


@pytest.mark.parametrize("level", ["0.02", "0.5"])
def test_two_networks_side_by_side(tmp_path: Path, level: str) -> None:
    text = f"""(vnnlib-version <2.0>)
    (declare-network f (declare-input X real [2]) (declare-output Y real [1]))
    (declare-network g (isomorphic-to f) (declare-input U real [2]) (declare-output V real [1]))
    (assert (and (>= X[0] 0.0) (<= X[0] 0.25) (>= X[1] 0.0) (<= X[1] 0.25) (== X[0] U[0]) (== X[1] U[1])))
    (assert (or (> Y[0] (+ V[0] {level})) (< Y[0] (- V[0] {level}))))
    """
    rng = np.random.default_rng(5)
    layers = [(rng.normal(size=(b, a)), 0.3 * rng.normal(size=b)) for a, b in pairwise((2, 5, 4, 1))]
    moved = [(w + 0.05 * rng.normal(size=w.shape), b) for w, b in layers]
    query, verdict = answer(tmp_path, text, f=model_bytes(layers), g=model_bytes(moved))
    f, g = query.joint.parts  # type: ignore[union-attr]
    grid = np.stack(np.meshgrid(*2 * [np.linspace(0, 0.25, 41)]), -1).reshape(-1, 2)
    most = float(np.abs(f(grid) - g(grid)).max())
    assert verdict.word == ("sat" if most > float(level) else "unsat")


@pytest.mark.parametrize(
    "relations, shift, scale",
    [
        ("(== U[0] (+ X[0] 0.1)) (== U[1] X[1])", 0.1, 1.0),
        ("(== (* 2.0 X[0]) (- U[0] 0.5)) (== 0.0 (- X[1] U[1]))", 0.5, 2.0),
        ("(== U[0] (- (* 0.3 X[0]) 0.7)) (== U[1] (+ X[1] (* 0.0 U[0])))", -0.7, 0.3),
    ],
)
def test_networks_whose_inputs_are_linearly_related(tmp_path: Path, relations: str, shift: float, scale: float) -> None:
    """Both answers; a witness meets the equations as a scorer evaluates them."""
    layers = [(rng.normal(size=(b, a)), 0.3 * rng.normal(size=b)) for rng in [np.random.default_rng(5)]
              for a, b in pairwise((2, 5, 4, 1))]  # fmt: skip
    moved = [(w + 0.05 * np.sign(w), b) for w, b in layers]
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 41)]), -1).reshape(-1, 2)
    models = {"f": model_bytes(layers), "g": model_bytes(moved)}
    f, g = (read_network(data) for data in models.values())
    most = float((g(grid * [scale, 1.0] + [shift, 0.0]) - f(grid)).max())
    for level, word in ((most - 0.05, "sat"), (most + 0.3, "unsat")):
        text = f"""(vnnlib-version <2.0>)
        (declare-network f (declare-input X real [2]) (declare-output Y real [1]))
        (declare-network g (declare-input U real [2]) (declare-output V real [1]))
        (assert (and (>= X[0] -1.0) (<= X[0] 1.0) (>= X[1] -1.0) (<= X[1] 1.0) {relations}))
        (assert (> (- V[0] Y[0]) {level:.6f}))
        """
        query, verdict = answer(tmp_path, text, **models)
        assert verdict.word == word
        if word == "sat":
            x, y = verdict.witness.values  # type: ignore[attr-defined]
            assert query.joint is not None and y[1] - y[0] > level
            assert all(true(a, list(x), list(y), np.float32) for a in parse_query(text).assertions)


def test_products_of_inputs_and_outputs(tmp_path: Path) -> None:
    data = small(3, outputs=2)
    query = read_query(*files(tmp_path, ONE, N=data))
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 101)]), -1).reshape(-1, 2)
    y = query.joint.parts[0](grid)  # type: ignore[union-attr]
    most = float((y[:, 0] * y[:, 1] - grid[:, 0] * y[:, 0]).max())
    for level, word in ((most + 0.2, "unsat"), (most - 0.01, "sat")):
        text = ONE + f"(assert (>= (- (* Y[0] Y[1]) (* Y[0] X[0,0])) {level:.6f}))\n"
        assert answer(tmp_path, text, N=data)[1].word == word


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    two = small(1, outputs=2)
    for text, models, word in (
        (PAIR, {"f": two}, "has 2 values, but Y is declared with 1"),
        (PAIR, {"f": small(1), "h": small(2)}, "declares no network 'h'"),
        (PAIR.replace("(equal-to f)", ""), {"f": small(1)}, "one model is given, but the query declares"),
        (PAIR.replace("(equal-to f)", ""), {"f": small(1), "h": small(1)}, "declares no network 'h'"),
        (PAIR, {"f": small(1), "g": small(2)}, "which it is equal to"),
        (PAIR.replace("real", "float64"), {"f": small(1)}, "its model computes in float32"),
        (PAIR.replace("real", "int64"), {"f": small(1)}, "int64"),
    ):
        with pytest.raises(InputError, match=word):
            read_query(*files(tmp_path, text, **models))


def test_serialised_assignment(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    query, verdict = answer(tmp_path, PAIR, f=small(1))
    write_assignment(query, verdict.witness, tmp_path / "out")  # type: ignore[attr-defined]
    x, y = verdict.witness.values  # type: ignore[attr-defined]
    for name, values in (("X", x[:2]), ("Y", y[:1]), ("U", x[2:]), ("V", y[1:])):
        tensor = onnx.TensorProto.FromString((tmp_path / "out" / f"{name}.pb").read_bytes())
        assert tensor.name == name
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), values.reshape(-1))


def test_capabilities() -> None:
    assert supports("--vnnlib-versions") == "1.0\n2.0\n"
    assert supports("--serialise-assignments") == "true\n"
    assert "Relu\n" in supports("--onnx-operators")
    with pytest.raises(InputError, match="unknown capability"):
        supports("--magic")


def read_assignment(text: str, answer: str) -> list[float]:
    """The values of an answer, by the rules of the official checker (order, header, shape, one value per line)."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    lines = lines[1:] if lines[0] == "sat" else lines
    out: list[float] = []
    at = 0
    for variable in parse_query(text).declared.variables:
        m = re.fullmatch(r"(\w+) (\w+) \[([\d,]*)\]", lines[at])
        assert m is not None and m[1] == variable.name
        assert m[2].lower() in (variable.element, "real")
        assert tuple(int(d) for d in m[3].split(",") if d) == variable.shape
        values = lines[at + 1 : at + 1 + variable.size]
        out.extend(float(v) for v in values)
        at += 1 + variable.size
    assert at == len(lines), "something follows the last value"
    return out


HIDDEN = """(vnnlib-version <2.0>)
(declare-network N
  (declare-input A real [1]) (declare-input B real [1,1])
  (declare-hidden H real [2] "h0")
  (declare-output Y real [1]) (declare-output Z real [2]))
(assert (and (>= A[0] -1.0) (<= A[0] 1.0) (>= B[0,0] -1.0) (<= B[0,0] 1.0)))
"""


def several_ends() -> bytes:
    """Two inputs, outputs y = relu(a - 2 b) + relu(b) and z = (b, a), hidden h0 = (relu(a - 2 b), relu(b))."""
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.array([[1.0, 0.0], [-2.0, 1.0]], dtype=np.float32), "w")
    ones = numpy_helper.from_array(np.ones((2, 1), dtype=np.float32), "ones")
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["ab"], axis=1),
        helper.make_node("MatMul", ["ab", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["h0"]),
        helper.make_node("MatMul", ["h0", "ones"], ["y"]),
        helper.make_node("Concat", ["b", "a"], ["z"], axis=1),
    ]
    ends = {
        n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, k])
        for n, k in zip("abyz", (1, 1, 1, 2), strict=True)
    }
    graph = helper.make_graph(nodes, "g", [ends["a"], ends["b"]], [ends["y"], ends["z"]], [weights, ones])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("formula", "word"),
    [
        ("(and (>= H[0] 2.9) (<= H[1] 0.0) (<= Z[0] -0.9))", "sat"),  # b = -1, a = 1
        ("(and (>= H[0] 0.1) (>= H[1] 0.6))", "unsat"),  # a >= 2 b
        ("(and (>= (* H[0] H[1]) 0.13))", "unsat"),  # (1 - 2 b) b <= 1/8
        ("(and (>= (* H[0] H[1]) 0.12))", "sat"),
        ("(!= Y[0] (+ H[0] H[1]))", "unsat"),
        ("(> Z[1] (+ A[0] 0.001))", "unsat"),
        ("(and (> Z[1] 0.5) (< Z[0] -0.5) (> Y[0] 2.5))", "sat"),
    ],
)
def test_several_inputs_outputs_and_hidden_nodes(tmp_path: Path, formula: str, word: str) -> None:
    text = HIDDEN + f"(assert {formula})\n"
    query, verdict = answer(tmp_path, text, N=several_ends())
    if formula.startswith("(!="):  # real arithmetic knows; whether a sum is exact in float32 depends on its terms
        assert verdict.word in ("unsat", "sat", "unknown")
        return
    assert verdict.word == word
    if word == "sat":
        x, y = verdict.witness.values  # type: ignore[attr-defined]
        a, b = map(float, x)
        assert np.allclose(y, [max(a - 2 * b, 0) + max(b, 0), b, a, max(a - 2 * b, 0), max(b, 0)], atol=1e-6)
        text = assignment_text(query, verdict.witness).split("\n")  # type: ignore[attr-defined]
        assert [line.split()[0] for line in text if " " in line] == ["A", "B", "H", "Y", "Z"]


def test_a_hidden_node_of_another_tensor_is_refused(tmp_path: Path) -> None:
    text = HIDDEN + "(assert (>= H[0] 2.9))\n"
    query = read_query(*files(tmp_path, text, N=several_ends()))
    assert covers(text, query) is None
    assert "hidden" in (covers(text.replace('"h0"', '"m"'), query) or "")
    with pytest.raises(InputError):
        read_query(*files(tmp_path, text.replace('"h0"', '"nowhere"'), N=several_ends()))


def test_outputs_that_are_inputs(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    for level, word in (("1.01", "unsat"), ("1.0", "sat")):
        text = ONE + f"(assert (>= (* Y[0] Y[1]) {level}))\n"
        assert answer(tmp_path, text, N=data)[1].word == word


def test_choices_of_many_disjunctions_are_not_written_out(tmp_path: Path) -> None:
    """Twenty disjunctions of two have a million choices. Some are enough for `unsat` here; a witness meets all."""
    parts = [f"(or (<= Y[0] {k}.0) (>= (* Y[0] X[0,0]) {k}.5))" for k in range(20)]
    data = small(3, outputs=2)
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 41)]), -1).reshape(-1, 2)
    top = float(read_query(*files(tmp_path, ONE, N=data)).joint.parts[0](grid)[:, 0].max())  # type: ignore[union-attr]
    high = f"(or (>= Y[0] {top + 0.5:.3f}) (>= Y[0] {top + 0.6:.3f}))"
    query, verdict = answer(tmp_path, ONE + f"(assert (and {high} {' '.join(parts)}))", N=data)
    assert sum(len(c.conjunctions) for c in query.cases) <= 1024
    assert verdict.word == "unsat"
    assert answer(tmp_path, ONE + f"(assert (and {' '.join(parts)}))", N=data)[1].word == "sat"
    nested = f"(assert (or (>= Y[0] {top + 0.7:.3f}) (and {' '.join(parts)} (>= Y[0] {top + 0.5:.3f}))))"
    assert answer(tmp_path, ONE + nested, N=data)[1].word == "unsat"
