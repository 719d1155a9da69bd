"""BLAS threads while a query is decided, and tasks side by side."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mucg4.limits import threads


@pytest.mark.parametrize(
    "workers, cores, largest, many",
    [(0, 8, 10**6, True), (8, 1, 10**6, True), (0, 2, 10**6, False), (1, 8, 10**6, False), (0, 8, 100, False)],
)
def test_threads_only_for_large_networks_and_many_workers(workers, cores, largest, many, monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    with threadpool_limits(3, user_api="blas"), threads.blas_threads(workers, largest):
        counts = {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}
    assert counts and counts == ({3} if many else {1})


@pytest.mark.parametrize("count", [1, 3])
def test_side_by_side_keeps_the_order_and_raises_what_a_task_raises(count):
    met = threading.Barrier(count, timeout=60)  # passed by so many tasks at a time

    def task(k: int) -> float:
        met.wait()
        return float(k / np.float64(0)) if k else 0.0

    before = threading.active_count()
    with np.errstate(all="ignore"):
        found = list(threads.side_by_side(((k, partial(task, k)) for k in range(9)), count))
        assert found == [(0, 0.0)] + [(k, np.inf) for k in range(1, 9)]
        with pytest.raises(KeyError):
            list(threads.side_by_side([("", dict().popitem)] * 4, count))
        first = threads.side_by_side(iter([("a", lambda: 1)] * 100), count)
        assert next(first) == ("a", 1)
        first.close()
    assert threading.active_count() == before


def test_a_task_alone_needs_no_thread():
    here = [("alone", threading.get_ident)]
    assert list(threads.side_by_side(here, 8)) == [("alone", threading.get_ident())]
    assert list(threads.side_by_side([], 8)) == []
