"""What is done aside counts as if it were done here."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from effort import effort
from handmade import clauses, formula_query

from mucg4 import evidence, precision
from mucg4.gate.agreement import Agreement
from mucg4.gate.runtime import Runtime
from mucg4.model.query import Query, Witness
from mucg4.model.verdict import Safe, Statistics, Unknown
from mucg4.precision import Hunted
from mucg4.read.instance import model_of, property_of
from mucg4.reuse import aside as aside_module
from mucg4.reuse import replay as replay_module
from mucg4.reuse.aside import begin_aside
from mucg4.reuse.replay import replay_all
from mucg4.search import run as run_module
from mucg4.search.run import Run
from mucg4.settings import Settings
from mucg4.verify import begin, decide, verify

VARIABLES = 6
INSTANCES = Path(__file__).parents[3] / "instances"
PROVED = "vnnlib/digits_img20_0.13.vnnlib"


def query() -> Query:
    return formula_query([clauses(2, VARIABLES, 45)], VARIABLES)


def run_of(query: Query, workers: int = 2) -> Run:
    settings = Settings(workers=workers, split="phase", seed=1)
    return Run(query, settings, effort(), Statistics(), Runtime(query.network))


@pytest.fixture(scope="module")
def proof():
    verdict = verify(query(), Settings(workers=1, split="phase"), budget=effort())
    assert isinstance(verdict, Safe)
    return verdict.proof


def replayed(proof, workers: int = 2):
    own = query()
    run = run_of(own, workers)
    return run, decide(run, lambda run: replay_all(run, proof.trees))


def test_the_answers_come_from_another_process_which_ends_with_the_run(proof, monkeypatch):
    monkeypatch.setattr(aside_module, "second_reading", lambda query, budget: (None, (str(os.getpid()),)))
    run, verdict = replayed(proof)
    assert isinstance(verdict, Safe) and verdict.statistics.checker == "accepted"
    (pid,) = verdict.statistics.fallback
    assert int(pid) != os.getpid() and run.aside is None
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    run, verdict = replayed(proof, workers=1)
    assert isinstance(verdict, Safe) and run.aside is None


def test_a_reading_that_differs_and_a_disagreement_keep_unsat_back(proof, monkeypatch):
    with monkeypatch.context() as patch:
        for module in (aside_module, evidence):
            patch.setattr(module, "second_reading", lambda query, budget: ("they differ", ()))
        verdict = replayed(proof)[1]
        assert isinstance(verdict, Unknown) and "they differ" in verdict.reason
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "agreement", lambda *given, **more: Agreement("something else"))
        verdict = replayed(proof)[1]
        assert isinstance(verdict, Unknown) and verdict.reason == "something else"


@pytest.mark.parametrize("where", ["second_reading", "hunted", "agreement"])
def test_what_a_lost_process_was_to_do_is_done_here(proof, monkeypatch, where):
    owner, module = os.getpid(), run_module if where == "agreement" else aside_module
    real = getattr(module, where)

    def dies(*given, **more):
        return real(*given, **more) if os.getpid() == owner else os.kill(os.getpid(), 9)

    monkeypatch.setattr(module, where, dies)
    run, verdict = replayed(proof)
    assert isinstance(verdict, Safe) and verdict.statistics.regions == 0
    lost = [text for text in verdict.statistics.warnings if "signal 9" in text]
    assert len(lost) == 1 or where == "hunted"  # which may not be asked for
    assert run.aside is None


def test_a_disagreement_stays_one_whatever_a_search_sees(monkeypatch):
    def compared(query, runtime, visited, seconds):
        return Agreement("something else" if seconds else None)

    monkeypatch.setattr(run_module, "agreement", compared)
    for workers in (1, 2):
        run = run_of(query(), workers)
        begin_aside(run)
        assert run.disagreement() == "something else"
        run.statistics.regions += 1
        assert run.disagreement() == "something else"
        run.end_aside()


def test_a_disagreement_that_a_later_search_shows_keeps_unsat_back(proof, monkeypatch):
    """Leaves are rejected and searched: the comparison after that counts."""
    own, lost = query(), proof.trees[0]
    fewer = replace(lost, refutations=lost.table.take(np.arange(0, len(lost.table), 2)))
    monkeypatch.setattr(
        run_module, "agreement", lambda query, runtime, visited, seconds: Agreement(None if seconds else "late")
    )
    run = run_of(own)
    verdict = decide(run, lambda run: replay_all(run, [fewer]))
    assert run.statistics.regions > 0 and isinstance(verdict, Unknown) and verdict.reason == "late"


def test_after_a_search_the_network_is_compared_once_more_where_the_search_has_been(monkeypatch):
    def compared(query, runtime, visited, seconds):
        return Agreement(None if seconds else f"{len(visited)} points, process {os.getpid()}")

    monkeypatch.setattr(run_module, "agreement", compared)
    run = run_of(query())
    begin_aside(run)
    assert run.disagreement() is None
    run.runtime.remember(np.zeros((4, VARIABLES)))
    run.statistics.regions += 1
    text = run.disagreement()
    assert text is not None and text.startswith("4 points") and not text.endswith(f" {os.getpid()}")
    assert run.disagreement() == text
    run.end_aside()


def test_what_a_hunt_aside_finds_is_looked_at_like_every_witness(monkeypatch):
    """No second hunt, and no claim without a second reading."""
    own = model_of(INSTANCES / "onnx/digits_2x24.onnx").under(property_of(INSTANCES / PROVED))
    settings = Settings(workers=2)
    verdict = verify(own, settings, budget=effort())
    assert isinstance(verdict, Safe)
    x = np.full(own.network.input_size, 7.0)  # far outside
    met = Hunted(Witness(x, own.network(x[None])[0]), 0.04)
    monkeypatch.setattr(aside_module, "hunted", lambda *given: met)
    for name in ("SHARE", "LEAST_SECONDS"):  # no walk for executions
        monkeypatch.setattr(precision, name, 0.0)
    monkeypatch.setattr(replay_module, "EASY", 0)
    monkeypatch.setattr(precision, "float_witness", lambda *given: pytest.fail("hunted twice"))
    run = begin(own, settings, effort())
    verdict = decide(run, lambda run: replay_all(run, verdict.proof.trees))
    assert isinstance(verdict, Unknown) and "denies the witness" in verdict.reason
