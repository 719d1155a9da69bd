"""The pool of open regions keeps what was pushed, whatever way it grows."""

from __future__ import annotations

import numpy as np
import pytest

from mucg4.search import frontier
from mucg4.search.frontier import Frontier


@pytest.mark.parametrize("large", [0, 1 << 28])
def test_regions_come_out_as_they_went_in(monkeypatch, large):
    monkeypatch.setattr(frontier, "LARGE_BYTES", large)
    rng, pool, held = np.random.default_rng(0), Frontier(10**6), {}
    for turn in range(60):
        count = int(rng.integers(1, 50))
        ids = np.arange(count) + 1000 * turn
        value = rng.normal(size=count)
        pool.push(ids=ids, value=value, box=np.stack([value, ids], axis=1))
        held.update(zip(ids.tolist(), value.tolist(), strict=True))
        out = pool.pop(20)
        lowest = sorted(held.values())[: len(out["ids"])]
        assert sorted(out["value"].tolist()) == lowest  # best first
        for i, v, box in zip(out["ids"].tolist(), out["value"].tolist(), out["box"], strict=True):
            assert held.pop(i) == v and box.tolist() == [v, i]
        assert len(pool) == len(held)


def test_beyond_the_limit_the_newest_come_first():
    pool = Frontier(3)
    pool.push(ids=np.arange(6), value=np.arange(6.0))
    assert sorted(pool.pop(2)["ids"].tolist()) == [4, 5]


def test_large_pools_grow_by_a_quarter(monkeypatch):
    monkeypatch.setattr(frontier, "LARGE_BYTES", 0)
    pool = Frontier(10**6)
    pool.push(value=np.zeros(1000))
    pool.push(value=np.zeros(1))
    assert len(pool.arrays["value"]) == 1250
