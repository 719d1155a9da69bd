"""What users bring beside the competition's own files: other texts, other ways to store a model."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mucg4.check.property import covers, denies
from mucg4.errors import InputError
from mucg4.gate.witness import holds
from mucg4.model.query import Query
from mucg4.read.instance import query_of, read_text
from tests.handmade import model_bytes

PLAIN = model_bytes([(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.zeros(3))])  # y = (x0, x1, x0 + x1)
NAMES = "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
BOX = NAMES + "".join(f"(assert (>= X_{i} -4))(assert (<= X_{i} 4))" for i in range(2)) + "\n"


# --- texts of properties ---------------------------------------------------------------------------------------


class Words:
    """Random formulas as nested tuples; `value` says whether one holds, by plain recursion on what was written."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def formula(self, depth: int) -> object:
        pick = self.chance.choice
        if depth == 0 or self.chance.random() < 0.25:
            if self.chance.random() < 0.1:
                return pick(("true", "false"))
            op = pick(("<=", ">=", "<", ">", "=", "!=", "distinct", "<=", "<"))
            count = 2 if op == "!=" else pick((2, 2, 3))
            return (op, *(self.term() for _ in range(count)))
        op = pick(("and", "or", "not", "=>", "xor", "ite"))
        count = {"not": 1, "xor": 2, "ite": 3}.get(op, pick((1, 2, 3)) if op != "=>" else pick((2, 3)))
        return (op, *(self.formula(depth - 1) for _ in range(count)))

    def term(self) -> object:
        pick = self.chance.choice
        name = pick(("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
        number = pick(("1", "-2", "0.5", "(/ 1 2)", "(/ -3 4)", "(- 1)", "(/ 6.0 4 3)", "0"))
        return pick((name, name, number, ("*", number, name), ("/", name, "4"), ("+", name, number)))


def written(part: object) -> str:
    return part if isinstance(part, str) else "(" + " ".join(map(written, part)) + ")"  # type: ignore[arg-type]


def number_of(term: object, point: dict[str, Fraction]) -> Fraction:
    if isinstance(term, str):
        if term in point:
            return point[term]
        if not term.startswith("("):
            return Fraction(term)
        term = tuple(term[1:-1].split())
    op, *rest = term  # type: ignore[misc]
    values = [number_of(t, point) for t in rest]
    total = values[0] if len(values) > 1 else -values[0]
    for v in values[1:]:
        total = {"+": total + v, "*": total * v, "/": total / v if v else total}[op]
    return total


def value(part: object, point: dict[str, Fraction]) -> bool:
    if isinstance(part, str):
        return part == "true"
    op, *rest = part  # type: ignore[misc]
    if op in ("and", "or", "not", "=>", "xor", "ite"):
        v = [value(p, point) for p in rest]
        return {
            "and": all(v),
            "or": any(v),
            "not": not v[0],
            "=>": not all(v[:-1]) or v[-1],
            "xor": v[0] != v[-1],
            "ite": v[1 % len(v)] if v[0] else v[-1],
        }[op]
    t = [number_of(p, point) for p in rest]
    if op in ("distinct", "!="):
        return len(set(t)) == len(t)
    test = {"<=": Fraction.__le__, ">=": Fraction.__ge__, "<": Fraction.__lt__, ">": Fraction.__gt__}
    return all(a == b if op == "=" else test[op](a, b) for a, b in zip(t, t[1:], strict=False))


def unsafe(query: Query, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether some conjunction of the cases, as stated, holds at a point."""
    return any(
        bool(np.all((case.box.lo <= x) & (x <= case.box.hi))) and any(holds(c, x, y) for c in case.conjunctions)
        for case in query.cases
    )


@pytest.mark.parametrize("seed", range(60))
def test_logic_means_what_it_says_to_both_readers(seed: int) -> None:
    words, points = Words(seed), np.random.default_rng(seed)
    tree = words.formula(3)
    text = BOX + f"(assert {written(tree)})"
    query = query_of(PLAIN, text)
    assert covers(text, query) is None
    for _ in range(40):
        x = points.integers(-8, 9, 2).astype(np.float32) / 2
        x = np.clip(x, -4, 4)
        y = np.array([x[0], x[1], x[0] + x[1]], dtype=np.float32)
        point = {f"X_{i}": Fraction(float(v)) for i, v in enumerate(x)}
        point |= {f"Y_{i}": Fraction(float(v)) for i, v in enumerate(y)}
        right = value(tree, point)
        assert unsafe(query, x, y) == right, text
        assert not right or denies(text, "float32", x, y) is None, text


def test_a_case_is_missed_when_a_negation_is_read_as_nothing() -> None:
    right = BOX + "(assert (not (=> (>= X_0 1) (>= Y_0 2))))"
    wrong = BOX + "(assert (and (>= X_0 1) (<= Y_0 1)))"
    assert covers(right, query_of(PLAIN, right)) is None
    assert covers(right, query_of(PLAIN, wrong)) is not None


@pytest.mark.parametrize(
    "trailer",
    [
        "(check-sat)(get-model)(exit)",
        "(check-sat)\n(get-value (X_0 X_1 (+ X_0 1)))\n(exit)\n; the end\n",
        '(set-option :produce-models true)(check-sat)(get-info :reason-unknown)(echo "(assert false)")',
        "(check-sat)(get-unsat-core)(get-proof)(exit)(check-sat)",
        "(exit)",
    ],
)
def test_what_is_said_to_a_solver_changes_nothing(trailer: str) -> None:
    text = BOX + "(assert (>= Y_0 0.5))"
    query, other = query_of(PLAIN, text), query_of(PLAIN, text + trailer)
    assert other.property_hash == query.property_hash and covers(text + trailer, query) is None


def test_nothing_is_asserted_after_the_exit() -> None:
    text = BOX + "(assert (>= Y_0 0.5))(exit)"
    for more in ("(assert (>= Y_1 9))", "(assert (>= X_0 1))", "(declare-const Y_3 Real)"):
        with pytest.raises(InputError, match=r"line 2: .* after \(exit\)"):
            query_of(PLAIN, text + more)
        assert covers(text + more, query_of(PLAIN, text)) == "something follows the command exit"


def test_outputs_that_are_not_declared_are_not_asked_about() -> None:
    for names in ("", "(declare-const Y_1 Real)", "(declare-const Y_2 Real)"):
        box = BOX.replace("(declare-const Y_0 Real)(declare-const Y_1 Real)(declare-const Y_2 Real)", names)
        text = box + (f"(assert (>= {names[15:18]} 7))" if names else "(assert (<= X_0 X_1))")
        query = query_of(PLAIN, text)
        assert query.cases[0].conjunctions[0].y_coeffs.shape[1] in (1, 3) and covers(text, query) is None
    with pytest.raises(InputError, match="Y_0 is not declared"):
        query_of(PLAIN, text + "(assert (<= Y_0 1))")
    with pytest.raises(InputError, match="declares 5 outputs, but the network has 3"):
        query_of(PLAIN, BOX + "(declare-const Y_4 Real)")


@pytest.mark.parametrize("comment", ["Grad \xdd f\xfcr", "\xe9t\xe9 \x80\x81\xff", "\xc3"])
def test_comments_may_be_in_any_encoding(tmp_path: Path, comment: str) -> None:
    (tmp_path / "p.vnnlib").write_bytes(f"; {comment}\n{BOX}(assert (>= Y_0 0)) ;{comment}".encode("latin-1"))
    query = query_of(PLAIN, read_text(tmp_path / "p.vnnlib"))
    assert query.property_hash == query_of(PLAIN, BOX + "(assert (>= Y_0 0))").property_hash
    (tmp_path / "q.vnnlib").write_bytes(f"{BOX}(assert (>= Y_0 {comment}))".encode("latin-1"))
    with pytest.raises(InputError):
        query_of(PLAIN, read_text(tmp_path / "q.vnnlib"))
