"""Proofs that grow on noisy copies cost the own network nothing, and hold where they grew."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from effort import effort
from handmade import chain, one, random_layers

from mucg4.check.margins import Gauge, Margins
from mucg4.check.walk import check, planned
from mucg4.errors import BudgetError
from mucg4.evidence import Examined
from mucg4.gate.runtimes import runtime_of
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof
from mucg4.model.query import Query
from mucg4.model.verdict import Safe, Statistics
from mucg4.reuse import grown as module
from mucg4.reuse.anew import searched_anew
from mucg4.reuse.compact import gauges_of
from mucg4.reuse.grown import grown, joined
from mucg4.reuse.noise import Noise, _each, noisy, on_grid, pruned
from mucg4.reuse.survey import OWN, Worth
from mucg4.search.run import Run
from mucg4.settings import Settings
from mucg4.verify import verify


def run_of(query: Query, split: str = "auto", workers: int = 1) -> Run:
    settings = Settings(workers=workers, split=split, attack=False)
    return Run(query, settings, effort(1e11), Statistics(), runtime_of(query))


def proved(split: str, spare: float) -> tuple[Query, Proof]:
    """The output of a random network lies a little above its sampled maximum."""
    network = chain(random_layers(1, (3, 12, 12, 1)))
    top = float(network(np.random.default_rng(0).uniform(-1, 1, (100_000, 3))).max())
    query = one(network, [-1] * 3, [1] * 3, [({}, {0: -1.0}, top + spare, False)])
    verdict = verify(query, Settings(workers=1, split=split, compact=False), budget=effort(1e11))
    assert isinstance(verdict, Safe)
    return query, verdict.proof


@pytest.fixture(scope="module", params=["input", "phase"])
def given(request) -> tuple[str, Query, Proof]:
    return request.param, *proved(request.param, {"input": 0.2, "phase": 1.0}[request.param])


@pytest.mark.parametrize("workers", [1, 2])
def test_what_grew_costs_the_own_network_nothing_and_holds_on_the_copies(given, workers, monkeypatch):
    split, query, proof = given
    monkeypatch.setattr(module, "LARGEST", np.inf)
    gauges = gauges_of(query, Budget())
    gauges = {name: gauges[name] for name in ("own", "bf16", "tuned", "pruned")}
    trees = grown(run_of(query, split, workers), proof.trees, gauges)
    made = replace(proof, trees=tuple(trees))
    assert check(made, query).accepted
    for tree, old in zip(trees, proof.trees, strict=True):
        measured = {name: [g.measure(planned(t, g.query)) for t in (old, tree)] for name, g in gauges.items()}
        assert np.array_equal(*(np.flatnonzero(m.seen) for m in measured["own"]))
        assert {name: m[1].lost for name, m in measured.items()} == dict.fromkeys(gauges, 0)
        names = [set(module._names(t.table)) for t in (old, tree)]
        assert names[0] <= names[1] and len(names[1]) == len(tree.table)
    lost = [sum(g.measure(planned(t, g.query)).lost for t in proof.trees) for g in gauges.values()]
    assert max(lost) > 0 and made.leaves >= proof.leaves


def test_copies_that_open_most_leaves_or_grow_too_large_leave_the_proof_as_it_was(given, monkeypatch):
    split, query, proof = given
    gauges = gauges_of(query, Budget())
    for changes in ({"MOST": 0.0}, {"LARGEST": 0.5, "FEW": 0}):
        with monkeypatch.context() as patch:
            for name, value in changes.items():
                patch.setattr(module, name, value)
            found = grown(run_of(query, split), proof.trees, gauges)
        assert all(a is b for a, b in zip(found, proof.trees, strict=True))


def test_time_that_ends_on_one_copy_leaves_what_grew_on_others(given, monkeypatch):
    split, query, proof = given
    gauges, asked = gauges_of(query, Budget()), []
    monkeypatch.setattr(module, "LARGEST", np.inf)
    monkeypatch.setattr(module, "MOST", 1.0)
    mended = module.mended

    def ending(run, trees, standing):
        asked.append(run.query)
        if len(asked) == 1:
            raise BudgetError("timeout")
        return mended(run, trees, standing)

    monkeypatch.setattr(module, "mended", ending)
    trees = grown(run_of(query, split), proof.trees, gauges)
    assert len(asked) > 1 and check(replace(proof, trees=tuple(trees)), query).accepted


def with_coarse(query: Query) -> dict[str, Gauge]:
    """The gauges of a query and of a copy with more noise than any other."""
    coarse = Noise("coarse", _each(lambda w, _: on_grid(pruned(w, 0.1), 15)), "")
    network = noisy(query.network, coarse)
    assert network is not None
    return {OWN: Gauge(query, Budget()), "coarse": Gauge(Query((network,), query.cases), Budget())}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_closed_before_the_time_was_over_counts(given, workers, monkeypatch):
    """The copy opens some leaves, which have to be split there."""
    split, query, proof = given
    gauges = with_coarse(query)
    mended, left = module.mended, []

    def ending(allowance):
        return lambda run, trees, standing: mended(replace(run, budget=effort(allowance)), trees, standing)

    for allowance in (0, *np.geomspace(2e3, 2e5, 12), 1e11):
        monkeypatch.setattr(module, "mended", ending(allowance))
        made = replace(proof, trees=tuple(grown(run_of(query, split, workers), proof.trees, gauges)))
        assert check(made, query).accepted
        found = [gauges["coarse"].measure(planned(tree, query)) for tree in made.trees]
        left.append(module._left(made.trees, found, proof.trees))
    assert left[-1] == 0 < left[0] and any(0 < share < left[0] for share in left)


@pytest.mark.parametrize("refused", ["late", "rejected"])
def test_a_copy_that_was_closed_counts_though_its_second_check_failed(given, refused, monkeypatch):
    """`measured` has the last word of it anyway."""
    split, query, proof = given
    gauges, go_on, asked = with_coarse(query), Examined.go_on, []
    monkeypatch.setattr(module, "LARGEST", np.inf)

    def failing(self, *args):
        asked.append(len(args))
        if refused == "late":
            raise BudgetError("timeout")
        go_on(self, *args)
        object.__setattr__(self, "report", replace(self.report, accepted=False))

    monkeypatch.setattr(Examined, "go_on", failing)
    made = replace(proof, trees=tuple(grown(run_of(query, split), proof.trees, gauges)))
    monkeypatch.undo()
    assert asked and check(made, query).accepted
    assert all(gauges["coarse"].measure(planned(tree, query)).lost == 0 for tree in made.trees)


def test_a_useless_part_of_a_search_is_not_taken(given, monkeypatch):
    """Whatever the copies before it have closed, what closes nothing on this one is left out."""
    split, query, proof = given
    gauges = {**gauges_of(query, Budget()), **with_coarse(query)}
    continued, first = module._continued, []

    def useless(run, trees):
        longer = continued(run, trees)
        if not first:
            first.append(longer)
            return longer
        return [replace(tree, refutations=tree.table.take(np.flatnonzero(tree.table.at < 0))) for tree in longer]

    monkeypatch.setattr(module, "LARGEST", np.inf)
    monkeypatch.setattr(module, "_continued", useless)
    made = grown(run_of(query, split), proof.trees, {name: gauges[name] for name in (OWN, "int8", "coarse")})
    assert first and [len(tree) for tree in made] == [len(t) for t in joined(query, proof.trees, first[0])]


def test_a_copy_on_which_a_point_is_unsafe_is_left_alone(given, monkeypatch):
    split, query, proof = given
    monkeypatch.setattr(module, "is_met", lambda *_: True)
    monkeypatch.setattr(module, "mended", None)
    found = grown(run_of(query, split), proof.trees, gauges_of(query, Budget()))
    assert all(a is b for a, b in zip(found, proof.trees, strict=True))


def test_what_grew_below_leaves_that_were_open_before_is_no_cost(given):
    """The exact second look that closes them is not measured."""
    _, _, proof = given
    (tree,) = proof.trees
    leaf, last = int(np.flatnonzero(tree.left < 0)[0]), len(tree)
    longer, none = SimpleNamespace(parents=lambda: np.append(tree.parents(), [leaf, leaf])), np.zeros(last, dtype=bool)
    seen = np.append(none, [True, True])
    closed, hair = (Margins(open_, np.zeros(0), ~none) for open_ in (none, np.arange(last) == leaf))
    now = Margins(seen, np.zeros(0), np.append(~none, [True, True]))
    assert module._costs_no_more([longer], [now], [hair]) and not module._costs_no_more([longer], [now], [closed])


@pytest.mark.parametrize("field", ["open", "seen"])
def test_what_costs_the_own_network_more_is_not_taken(given, field, monkeypatch):
    """Whatever a search adds: what opens more of the own network, or makes a check longer, is seen there."""
    split, query, proof = given
    gauges, measured = gauges_of(query, Budget()), module.measured
    assert any(a is not b for a, b in zip(grown(run_of(query, split), proof.trees, gauges), proof.trees, strict=True))

    def worse(trees, gauges, workers, within):
        found = measured(trees, gauges, workers, within)
        if (len(gauges) == 2) == (field == "open"):  # afterwards everything is open, or before nothing was entered
            all_ = [np.full(len(tree), field == "open") for tree in trees]
            found["own"] = [replace(m, **{field: a}) for m, a in zip(found["own"], all_, strict=True)]
        return found

    monkeypatch.setattr(module, "measured", worse)
    found = grown(run_of(query, split), proof.trees, gauges)
    assert all(a is b for a, b in zip(found, proof.trees, strict=True))


def test_only_continuations_are_joined(given):
    _, query, proof = given
    (tree,) = proof.trees
    assert joined(query, [tree], [replace(tree, conjunctions=(0,))])[0].conjunctions == (0,)  # all there are
    more = replace(tree, refutations=tree.table.take(np.arange(0)))
    assert joined(query, [tree], [more])[0].table is not tree.table
    other = tree.threshold.copy()
    other[0] += 0.5
    fewer = replace(tree, conjunctions=(1,))
    for changed in (replace(tree, threshold=other), replace(tree, case=1), fewer, replace(tree, refresh=~tree.refresh)):
        assert joined(query, proof.trees, [changed])[0].left is tree.left


def test_a_careful_search_is_taken_where_it_costs_less(monkeypatch):
    query, proof = proved("input", 0.1)
    gauges = gauges_of(query, Budget())
    found = searched_anew(run_of(query, "input"), proof.trees, gauges)
    small = replace(proof, trees=tuple(found))
    assert check(small, query).accepted and small.leaves < proof.leaves
    monkeypatch.setattr(Worth, "cost", 1.0)
    found = searched_anew(run_of(query, "input"), proof.trees, gauges)
    assert all(a is b for a, b in zip(found, proof.trees, strict=True))
    assert searched_anew(run_of(query, "input"), proof.trees, {"own": gauges["own"]}) == list(proof.trees)
