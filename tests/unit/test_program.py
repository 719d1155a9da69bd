"""The linear program: what it answers is a point, or multipliers that prove what they claim."""

from __future__ import annotations

import numpy as np
import pytest

from mucg4.program import least_violation, simple_multipliers


def lower_bound(multipliers, matrix, offset, low, high):
    """The least value of `multipliers . (A x + o)` over the box: what the multipliers prove."""
    a = multipliers @ matrix
    return multipliers @ offset + np.maximum(a, 0) @ low + np.minimum(a, 0) @ high


@pytest.mark.parametrize("accurate", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_point_and_multipliers_agree(seed, accurate):
    rng = np.random.default_rng(seed)
    rows, n = int(rng.integers(1, 12)), int(rng.integers(1, 6))
    matrix, offset = rng.normal(size=(rows, n)) * 10.0 ** rng.integers(-2, 3), rng.normal(size=rows)
    soft, low, high = rng.random(rows) < 0.6, -np.ones(n), np.ones(n)
    soft[0] = True
    found = least_violation(matrix, offset, soft, low, high, accurate=accurate)
    assert found is not None and np.all(found.multipliers >= 0)
    proved = lower_bound(found.multipliers, matrix, offset, low, high)
    if found.point is None:  # the hard rows alone have no solution
        assert found.value == np.inf and proved > 0 and not found.multipliers[soft].any()
        return
    violation = matrix @ found.point + offset
    scale = abs(matrix).max(axis=1) if accurate else np.ones(rows)
    assert np.all((violation / scale)[~soft] <= 1e-6)
    assert (violation / scale)[soft].max() == pytest.approx(found.value, abs=1e-6)
    assert proved == pytest.approx(found.value, abs=1e-6)
    assert (found.multipliers * scale)[soft].sum() == pytest.approx(1.0)


def test_simple_multipliers_find_the_ratio():
    found = list(simple_multipliers(np.array([0.1 + 1e-13, 0.3, 1e-12])))
    assert any(np.array_equal(values, [1.0, 3.0, 0.0]) for values in found)
    assert list(simple_multipliers(np.zeros(2))) == []
