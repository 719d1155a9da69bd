"""BLAS threads while a query is decided."""

from __future__ import annotations

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
