"""Combinations of rows in whole numbers, against a linear program and by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mucg4.program import least_violation
from mucg4.smt.farkas import Combinations, whole_shares


def test_by_hand():
    # x - 1/3 <= 0, -x + 1/2 <= 0 with x in [0, 1]
    rows = [({0: Fraction(1)}, Fraction(-1, 3)), ({0: Fraction(-1)}, Fraction(1, 2))]
    both = Combinations(rows, [(Fraction(0), Fraction(1))])
    one = Fraction(1)
    assert both.least({0: one, 1: one}, {}, Fraction(0)) == Fraction(1, 6)
    assert both.least({0: one}, {}, Fraction(0)) == Fraction(-1, 3)
    assert both.least({1: one}, {0: Fraction(2)}, Fraction(-1, 7)) == Fraction(1, 2) - Fraction(1, 7)


@pytest.mark.parametrize("seed", range(20))
def test_a_program_s_multipliers_contradict_exactly_when_there_is_no_point(seed):
    rng = np.random.default_rng(seed)
    matrix, offset = rng.normal(size=(6, 3)), rng.normal(size=6) - 0.5
    pairs = zip(matrix.tolist(), offset.tolist(), strict=True)
    rows = [({a: Fraction(v) for a, v in enumerate(r)}, Fraction(o)) for r, o in pairs]
    combinations = Combinations(rows, [(Fraction(-1), Fraction(1))] * 3)
    found = least_violation(matrix, offset, np.ones(6, dtype=bool), -np.ones(3), np.ones(3))
    assert found is not None
    shares = dict(enumerate(whole_shares(found.multipliers)))
    least = combinations.least(shares, {}, Fraction(0))
    total = sum(float(s) for s in shares.values())
    assert float(least) / total == pytest.approx(found.value, abs=1e-6)


def test_useless_multipliers_are_nothing():
    for values in (np.zeros(3), np.array([1.0, np.inf, 0.0])):
        assert whole_shares(values) == [0, 0, 0]
    assert whole_shares(np.array([2.0, 1.0])) == [1, Fraction(1, 2)]
