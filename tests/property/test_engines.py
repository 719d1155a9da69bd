"""All engines, the replay, the witness gate and the checker on instances whose answers are known by hand."""

from __future__ import annotations

import pytest
from effort import effort
from examples import Example, examples, query_of

from mucg4.check.walk import check
from mucg4.gate.witness import replay_witness
from mucg4.limits.budget import Budget
from mucg4.model.verdict import Safe, Unknown, Unsafe, Verdict
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify

EXAMPLES = examples()
NO_MARGIN_SECONDS = 0.3  # of instances for which no verdict is demanded
TINY = 3  # up to so many hidden neurons proofs are checked in rational arithmetic too


def decide(example: Example, settings: Settings, store: Store | None = None) -> Verdict:
    """One run with its evidence confirmed: proof by the checker, witness by onnxruntime."""
    query = query_of(example.onnx, example.vnnlib)
    budget = Budget.seconds(NO_MARGIN_SECONDS) if example.answer == "not sat" else effort()
    verdict = verify(query, settings, store, budget)
    if isinstance(verdict, Safe):
        network = query.network
        # A phase literal that meets its bound (z <= 0 where z >= 0) leaves z = 0 in exact arithmetic, where the
        # active and the inactive line are both right and the checker cannot know which one the search took.
        exact = example.smt and settings.split == "input"
        exact = exact and sum(network.nodes[k].size for k in network.nonlinear) <= TINY
        for arithmetic in (False, True) if exact else (False,):
            report = check(verdict.proof, query, exact=arithmetic)
            assert report.accepted, f"exact={arithmetic}: {report.reason}"
            assert report.checked == report.leaves and not report.skipped
    elif isinstance(verdict, Unsafe):
        assert replay_witness(query, verdict.witness.x) is not None
    return verdict


def confirm(example: Example, verdict: Verdict) -> None:
    if example.answer == "not sat":
        assert verdict.word != "sat"
        return
    assert not isinstance(verdict, Unknown), verdict.reason
    assert verdict.word == example.answer


@pytest.mark.parametrize("split", ["auto", "input", "phase"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name.replace(" ", "-"))
def test_search(example: Example, split: str) -> None:
    confirm(example, decide(example, Settings(split=split)))


@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.answer == "unsat"], ids=lambda e: e.name.replace(" ", "-")
)
def test_search_without_attack(example: Example) -> None:
    confirm(example, decide(example, Settings(attack=False, batch=1)))


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.smt], ids=lambda e: e.name.replace(" ", "-"))
def test_smt(example: Example) -> None:
    pytest.importorskip("z3")
    confirm(example, decide(example, Settings(engine="smt")))


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.answer != "not sat"], ids=lambda e: e.name.replace(" ", "-")
)
def test_replay_of_the_own_result(example: Example, compact: bool) -> None:
    for split in ("input", "phase"):
        with Store(":memory:") as store:
            settings = Settings(split=split, compact=compact)
            confirm(example, decide(example, settings, store))
            again = decide(example, settings, store)
            confirm(example, again)
            assert not store.warnings
