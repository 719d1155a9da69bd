"""The careful choice of a split: what it says of the children is true, and no child is worse than the estimate's."""

from __future__ import annotations

import numpy as np
import pytest
from effort import effort
from handmade import chain, one, random_layers

from mucg4.bound.compute import Compute
from mucg4.bound.objective import Objective
from mucg4.bound.propagate import Bounder
from mucg4.check.walk import check
from mucg4.gate.runtimes import runtime_of
from mucg4.model.proof import Proof
from mucg4.model.query import Query
from mucg4.model.verdict import Statistics
from mucg4.ops.arrays import NUMPY, Backend
from mucg4.search import inputs
from mucg4.search.ahead import _child, _lack, looked_ahead
from mucg4.search.portfolio import solve
from mucg4.search.run import Run
from mucg4.search.split import input_gains, split_input
from mucg4.settings import Settings


def query_of(seed: int, inputs: int = 4, spare: float = 0.2) -> Query:
    network = chain(random_layers(seed, (inputs, 12, 12, 2)))
    top = float(network(np.random.default_rng(0).uniform(-1, 1, (100_000, inputs))).max(axis=0)[0])
    rows = [({}, {0: -1.0}, top + spare, False)]
    return one(network, [-1] * inputs, [1] * inputs, rows)


def given(seed: int, backend: Backend = NUMPY):
    """Regions of a query with their bounds, the estimate's choice, and what it was made from."""
    query = query_of(seed)
    (case,), count = query.cases, 6
    bounder, objective = Bounder(query.network, case.box.lo, case.box.hi), Objective(case)
    rng, regions = np.random.default_rng(seed), bounder.root().take(np.zeros(count, dtype=np.int64))
    regions.lo[:] = rng.uniform(-1, 0, regions.lo.shape)
    regions.hi[:] = rng.uniform(0, 1, regions.hi.shape)
    compute, open_ = Compute.of(bounder, objective, backend), np.ones((count, 1), dtype=bool)
    there, refreshed = compute.refresh(regions, keep_rows=True)
    found = compute.objective.evaluate(compute.bounder, there, refreshed, backend.place(open_), trace=True)
    coeffs, trace = found.coeffs[:, 0], {k: a[:, 0] for k, a in found.trace.items()}
    gains = sum(NUMPY.place(g) for g in input_gains(compute.bounder, there, refreshed, coeffs, trace))
    literals = split_input(compute.bounder, there, gains, trace, np.zeros(count, dtype=bool))
    return compute, objective, there, open_, (literals.index, literals.threshold)


def lack_of(compute, objective, regions, open_, cut):
    parts = (_child(compute, regions, *cut, upper) for upper in (0, 1))
    return sum(_lack(compute, objective, part, open_) for part in parts)


@pytest.mark.parametrize("seed", range(3))
def test_children_lack_no_more_than_those_of_the_estimate(seed):
    compute, objective, regions, open_, first = given(seed)
    score = np.random.default_rng(seed).random((len(regions), 4))
    score[np.arange(len(regions)), first[0]] = 2.0
    found = looked_ahead(compute, objective, regions, open_, score, first)
    before, after = (lack_of(compute, objective, regions, open_, cut) for cut in (first, found))
    assert np.all(after >= before) and np.any(after > before)
    every, (index, threshold) = np.arange(len(regions)), found
    assert np.all(regions.lo[every, index] < threshold) and np.all(threshold < regions.hi[every, index])


def test_no_region_is_no_work():
    compute, objective, regions, open_, first = given(0)
    none = np.zeros(0, dtype=np.int64)
    parts = regions.take(none), open_[none], np.ones((0, 4)), tuple(a[none] for a in first)
    assert [len(a) for a in looked_ahead(compute, objective, *parts)] == [0, 0]


def test_an_input_of_no_width_is_not_cut():
    compute, objective, regions, open_, (index, _) = given(1)
    regions.hi[:, 0] = regions.lo[:, 0]
    first = np.ones_like(index), (regions.lo[:, 1] + regions.hi[:, 1]) / 2
    score = np.tile([5.0, 1.0, 0.0, 0.0], (len(regions), 1))
    assert np.all(looked_ahead(compute, objective, regions, open_, score, first)[0] != 0)


def test_the_choice_is_the_same_on_torch():
    pytest.importorskip("torch")
    plain, there = given(2), given(2, Backend("float64", "cpu"))
    score = np.random.default_rng(2).random((6, 4))
    found = [looked_ahead(*parts[:4], score, parts[4]) for parts in (plain, there)]
    assert np.array_equal(found[0][0], found[1][0]) and np.allclose(found[0][1], found[1][1])


def searched(query: Query, careful: bool, workers: int = 1) -> int:
    """Regions of a search whose proof the checker accepts."""
    settings = Settings(workers=workers, split="input", attack=False)
    run = Run(query, settings, effort(1e11), Statistics(), runtime_of(query), careful=careful)
    trees = solve(run)
    assert isinstance(trees, list)
    assert check(Proof(query.network.fingerprint, query.property_hash, tuple(trees)), query).accepted
    return run.statistics.regions


def test_careful_searches_need_fewer_regions():
    """Together. By the children's bounds alone the first one needed more than 40 000."""
    queries = [query_of(6, 4, 0.5), query_of(1, 5, 1.0), query_of(3, 4, 0.5), query_of(4, 5, 1.0)]
    plain, careful = ([searched(query, how) for query in queries] for how in (False, True))
    assert sum(careful) < sum(plain) and max(np.array(careful) / plain) < 1.5


def test_processes_search_with_care_too():
    assert searched(query_of(4, 5, 1.0), True, 2) < searched(query_of(4, 5, 1.0), False, 2)


def test_only_inputs_are_chosen_with_care(monkeypatch):
    """Regions that are split at a neuron stay so."""
    real, asked = (inputs.split_input, inputs.looked_ahead), []

    def at_a_neuron(bounder, regions, *rest):
        """The first region once; it may be all there is."""
        literals = real[0](bounder, regions, *rest)
        if not asked:
            literals.node[0], literals.index[0], literals.threshold[0] = bounder.pre[0], 0, 0.0
        asked.append(int(np.sum(literals.node == 0)))
        return literals

    def counted(*given):
        assert len(given[-1][0]) <= asked[-1]
        return real[1](*given)

    monkeypatch.setattr(inputs, "split_input", at_a_neuron)
    monkeypatch.setattr(inputs, "looked_ahead", counted)
    assert searched(query_of(3, 4, 0.5), careful=True) > 0 and asked[0] == 0 and sum(asked) > 0
