"""Many disjunctions at once: cases made on demand say what the text says, and the second reading follows them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mucg4.check import contained, vnnlib2
from mucg4.check.vnnlib2 import covers
from mucg4.limits.budget import Budget
from mucg4.model.query import Case, Query
from mucg4.read import choices, normal2
from mucg4.read.networks import query_of_models
from mucg4.read.normal2 import normalise
from mucg4.read.vnnlib2 import parse_query
from mucg4.search.choices import impossible, refined
from tests.queries import in_cases, query_of, random_formula, random_point, unsafe
from tests.unit.read.test_vnnlib2 import ONE, _planted, answer, small

NAMES = ["X[0]", "X[1]", "Y[0]", "Y[1]"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four choices are many."""
    monkeypatch.setattr(normal2, "WRITTEN", 4)
    monkeypatch.setattr(vnnlib2, "CHOICES", 4)
    monkeypatch.setattr(vnnlib2._Comparison2, "written", 4)


def text_of(random_: random.Random, rough: float = 0.0) -> str:
    """A network of two inputs and outputs, and several disjunctions."""
    lines = ["(vnnlib-version <2.0>)"]
    lines += ["(declare-network N (declare-input X real [2]) (declare-output Y real [2]))"]
    lines += [f"(assert (>= X[{i}] -1.0)) (assert (<= X[{i}] 1.0))" for i in range(2)]
    lines += ["(assert (== X[1] (- (* 0.5 X[0]) 0.25)))"] * (random_.random() < 0.3)
    for _ in range(random_.randint(4, 6)):
        parts = [
            random_formula(random_, NAMES, random_.choice((0, 0, 1)), rough, random_.random() < 0.2)
            for _ in range(random_.choice((2, 2, 3)))
        ]
        lines.append(f"(assert (or {' '.join(parts)}))")
    return "\n".join(lines) + "\n"


def nothing_known(cases: Sequence[Case]) -> list[np.ndarray]:
    return [np.zeros(len(c.conjunctions), dtype=bool) for c in cases]


def finer(query: Query, text: str, bounded: bool) -> Query | None:
    """The query with cases made on demand; `bounded` by what the network's zeros rule out."""
    made = normalise(parse_query(text), "float32").finer
    if made is None:
        return None
    cases = made((lambda cases: impossible(query.network, Budget(), cases)) if bounded else nothing_known)
    return None if cases is None else replace(query, cases=cases)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_cases_on_demand_say_what_the_text_says(seed: int, bounded: bool, few: None) -> None:
    random_ = random.Random(seed)
    text = text_of(random_, rough=0.3 * (seed % 3 == 0))
    coarse, parsed = query_of(text), parse_query(text)
    query = finer(coarse, text, bounded)
    assert covers(text, coarse) is None
    if query is None:
        return
    assert covers(text, query) is None
    for _ in range(60):
        x, y = random_point(random_, query)
        says = unsafe(parsed, x, y)
        if bounded and not any(y):  # the network's outputs are 0
            assert in_cases(query, x, y, stated=True) == says
        elif not bounded:
            assert in_cases(query, x, y, stated=True) == says
        assert not says or in_cases(query, x, y, stated=False)


@pytest.mark.parametrize("seed", range(40))
def test_mistakes_in_cases_on_demand_are_found(seed: int, few: None) -> None:
    """A conjunction left out, a row made stricter, a box made smaller: refused, or no unsafe point is lost."""
    random_ = random.Random(900 + seed)
    text = text_of(random_)
    query, parsed = finer(query_of(text), text, False), parse_query(text)
    changed = None if query is None else _planted(random_, query.cases)
    if query is None or changed is None:
        return
    wrong = replace(query, cases=changed)
    if covers(text, wrong) is None:
        for _ in range(200):
            x, y = random_point(random_, query)
            assert not unsafe(parsed, x, y) or in_cases(wrong, x, y, stated=False)


def gaps(name: str, low: float, high: float, count: int, wide: float) -> str:
    """`count` disjunctions of two that leave out intervals of a variable between low and high."""
    step = (high - low) / count
    ends = [(low + step * k, low + step * (k + wide)) for k in range(-1, count)]
    return " ".join(f"(or (<= {name} {a:.4f}) (>= {name} {b:.4f}))" for a, b in ends)


def test_a_million_choices_that_leave_nothing(tmp_path: Path) -> None:
    """No subset of a thousand choices is enough here: all intervals together leave out everything."""
    data = small(3, outputs=2)
    for name, more in (("X[0,0]", ""), ("Y[1]", "(>= Y[1] -3.0) (<= Y[1] 3.0)")):
        low, high = (-1.0, 1.0) if more == "" else (-3.0, 3.0)
        text = ONE + f"(assert (and {gaps(name, low, high, 20, 1.1)} {more}))"
        query, verdict = answer(tmp_path, text, N=data)
        assert query.finer is not None and verdict.word == "unsat"
    text = ONE + f"(assert (and {gaps('X[0,0]', -1.0, 1.0, 20, 0.9)} {gaps('X[0,1]', -1.0, 1.0, 20, 0.9)}))"
    assert answer(tmp_path, text, N=data)[1].word == "sat"


def test_what_is_left_out_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where too many states are open the wider cases stay, and cases for another text are refused."""
    text = ONE + f"(assert (and {gaps('X[0,0]', -1.0, 1.0, 20, 1.1)}))"
    query = query_of_models({"N": (small(3, outputs=2), None)}, text)
    assert query.finer is not None and covers(text, query) is None
    monkeypatch.setattr(choices, "MOST_OPEN", 0)
    assert refined(query, Budget()) is None
    monkeypatch.undo()
    cases = query.finer(nothing_known)
    assert cases is not None and covers(text, replace(query, cases=cases)) is None
    assert covers(text, replace(query, cases=())) is None, "no choice is left, so no case is needed"
    other = text.replace("(<= X[0,0] 0.1000)", "(<= X[0,0] 0.1800)")
    assert other != text
    assert covers(other, replace(query, cases=cases)) is not None
    monkeypatch.setattr(contained, "MOST_OPEN", 1)
    assert covers(other, replace(query, cases=cases)) is not None
