"""The reduced network, the phase search on it, and searches shared out to worker processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from handmade import chain, one

import mucg4.search.parallel as parallel
from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder
from mucg4.bound.reduced import Reduced, ReducedDuals
from mucg4.check.walk import check
from mucg4.errors import BudgetError
from mucg4.limits.budget import Budget
from mucg4.model.verdict import Safe, Unsafe
from mucg4.settings import Settings
from mucg4.verify import verify

F = np.float32


def layers(seed, sizes):
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(m, n)) / np.sqrt(n), 0.1 * rng.normal(size=m))
        for n, m in zip(sizes[:-1], sizes[1:], strict=True)
    ]


def hard_query(seed, sizes=(3, 24, 24, 2), share=0.85):
    """Output 0 above a level between its largest sampled and its largest bounded value: unsat, but not at once."""
    net = chain(layers(seed, sizes))
    n = net.input_size
    x = np.random.default_rng(seed).uniform(-1, 1, size=(20000, n))
    top = float(net(x)[:, 0].max())
    bounder = Bounder(net, -np.ones(n), np.ones(n))
    root = bounder.root()
    bounder.refresh(root)
    rough = one(net, [-1] * n, [1] * n, [({}, {0: -1}, 0, False)])
    objective = Objective(rough.cases[0])
    refreshed = bounder.refresh(root)
    bound = -float(objective.values(bounder, root, refreshed, np.ones((1, 1), dtype=bool))[0, 0])
    level = round(top + (1 - share) * (bound - top), 3)
    return one(net, [-1] * n, [1] * n, [({}, {0: -1}, level, False)])


def reduced_of(query):
    case = query.cases[0]
    bounder, objective = Bounder(query.network, case.box.lo, case.box.hi), Objective(case)
    root = bounder.root()
    bounder.refresh(root)
    return bounder, objective, root, Reduced.build(bounder, root).constrained(objective, 0)


@pytest.mark.parametrize("seed", range(4))
def test_the_reduced_network_is_the_network(seed):
    query = hard_query(seed)
    bounder, objective, _, red = reduced_of(query)
    x = np.random.default_rng(seed).uniform(-1, 1, size=(50, 3))
    values = query.network.values(x)
    z = np.concatenate([values[k] for k in bounder.pre], axis=1)[:, red.positions]
    h = np.maximum(z, 0)
    t = (x - red.middle) / red.radius
    assert np.allclose(t @ red.a.T + h @ red.mix.T + red.c, z, atol=1e-5)
    g = values[-1] @ objective.y.T + objective.constants
    assert np.allclose(t @ red.ga.T + h @ red.gl.T + red.gc, g, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_rows_bound_what_they_say_at_any_duals(seed):
    query = hard_query(seed)
    bounder, objective, root, red = reduced_of(query)
    rng = np.random.default_rng(seed)
    count = 2 * red.units
    unit = np.tile(np.arange(red.units), 2)
    sign = np.where(np.arange(count) < red.units, F(1), F(-1))
    weights = rng.uniform(0, 2, size=(count, 1)).astype(F)
    duals = rng.uniform(size=(count, red.units)).astype(F)
    rows = ReducedDuals(weights, duals, np.zeros_like(duals), np.zeros((1, red.units), dtype=F), unit, sign)
    lines = red.lines(root.low[:, red.positions], root.up[:, red.positions])
    start = red.backward(rows, lines).value
    best, done = red.ascend(rows, lines, 10, simplex=False, reach=np.ones_like(weights))
    assert np.all(done.value >= start - 1e-4 * (1 + abs(start)))
    x = rng.uniform(-1, 1, size=(500, 3))
    values = query.network.values(x)
    z = np.concatenate([values[k] for k in bounder.pre], axis=1)[:, red.positions]
    g = values[-1] @ objective.y.T + objective.constants
    functional = sign * z[:, unit] + (g @ best.weights.T)
    assert np.all(functional.min(axis=0) >= done.value - 1e-4 * (1 + abs(done.value)))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_phase_search_proves_with_any_number_of_workers(seed, workers, monkeypatch):
    monkeypatch.setattr(parallel, "SERIAL_TURNS", 1)
    monkeypatch.setattr(parallel, "TURNS", 2)
    query = hard_query(seed, share=0.8)
    verdict = verify(query, Settings(split="phase", attack=False, workers=workers, batch=4), None, Budget.seconds(20))
    assert isinstance(verdict, Safe), verdict
    assert check(verdict.proof, query).accepted
    again = verify(query, Settings(split="phase", attack=False, workers=workers, batch=4), None, Budget.seconds(20))
    assert again.statistics.regions == verdict.statistics.regions


def test_input_search_in_workers_proves(monkeypatch):
    monkeypatch.setattr(parallel, "SERIAL_TURNS", 1)
    monkeypatch.setattr(parallel, "TURNS", 1)
    query = hard_query(1, share=0.8)
    settings = Settings(split="input", attack=False, workers=2, batch=1)
    rounds, real = [], parallel.forked
    monkeypatch.setattr(parallel, "forked", lambda jobs, *rest: rounds.append(len(jobs)) or real(jobs, *rest))
    verdict = verify(query, settings, None, Budget.seconds(20))
    assert isinstance(verdict, Safe) and check(verdict.proof, query).accepted
    assert rounds  # the workers had something to do


def test_a_witness_of_a_worker_ends_the_search(monkeypatch):
    monkeypatch.setattr(parallel, "SERIAL_TURNS", 0)
    pytest.importorskip("onnxruntime")
    from examples import dense, query_of, text

    w = [(np.array([[1.0, -1.0], [1.0, 1.0]], np.float32), np.zeros(2, np.float32))]
    w.append((np.array([[1.0, 1.0]], np.float32), np.zeros(1, np.float32)))
    query = query_of(dense(w), text([(-1, 1), (-1, 1)], 1, "(>= Y_0 1.5)"))
    verdict = verify(query, Settings(workers=2, batch=1), None, Budget.seconds(30))
    assert isinstance(verdict, Unsafe)


def test_a_worker_that_fails_is_no_verdict(monkeypatch):
    monkeypatch.setattr(parallel, "SERIAL_TURNS", 1)
    query = hard_query(0, share=0.95)

    def broken(search, part, seed, until):
        def job():
            raise BudgetError("spent in a worker")

        return job

    monkeypatch.setattr(parallel, "_job", broken)
    verdict = verify(query, Settings(split="phase", attack=False, workers=2, batch=2), None, Budget.seconds(20))
    assert verdict.word == "unknown" and "worker" in verdict.reason


def test_merging_keeps_the_tree(monkeypatch):
    """The proof of a run in workers has every leaf of its tree answered: the checker skips none."""
    monkeypatch.setattr(parallel, "SERIAL_TURNS", 1)
    monkeypatch.setattr(parallel, "TURNS", 1)
    query = hard_query(2, share=0.8)
    settings = Settings(split="phase", attack=False, workers=2, batch=4)
    verdict = verify(query, settings, None, Budget.seconds(20))
    assert isinstance(verdict, Safe)
    broken = replace(verdict.proof.trees[0], refutations=verdict.proof.trees[0].refutations[1:])
    report = check(replace(verdict.proof, trees=(broken,)), query)
    assert check(verdict.proof, query).skipped == 0
    assert report.accepted == (not verdict.proof.trees[0].refutations)
