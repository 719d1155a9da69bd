"""Checkpoints: what an interrupted run left is gone on from; what was tampered with is never believed."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from effort import effort
from handmade import chain, clauses, formula_query, one, random_layers, satisfiable

from mucg4.check import walk as walk_module
from mucg4.check.walk import check
from mucg4.errors import InputError
from mucg4.model.proof import Proof, Tree
from mucg4.model.proof_file import read_proof
from mucg4.model.proof_packed import to_packed
from mucg4.model.query import Query
from mucg4.model.verdict import Safe, Unknown, Verdict
from mucg4.search.checkpoint import Checkpoint, Rhythm
from mucg4.search.standing import Standing
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify

VARIABLES = 4
WAYS = ["input", "phase"]


def formulas(*seeds: int) -> Query:
    """No assignment satisfies all clauses; one conjunction for each formula."""
    return formula_query([clauses(k, VARIABLES, 24) for k in seeds], VARIABLES)


def peak(above: float) -> Query:
    """The output of a random network lies above its sampled maximum, by so much."""
    network = chain(random_layers(1, (3, 12, 12, 1)))
    top = float(network(np.random.default_rng(0).uniform(-1, 1, (100_000, 3))).max())
    return one(network, [-1] * 3, [1] * 3, [({}, {0: -1.0}, top + above, False)])


def hard(split: str) -> Query:
    return formulas(0) if split == "phase" else peak(0.02)


def settings(split: str, workers: int = 1, attack: bool = True) -> Settings:
    return Settings(workers=workers, split=split, attack=attack, batch=4)


@cache
def scratch(split: str) -> tuple[Query, Safe, int]:
    """A query, its verdict from scratch, and the work of that."""
    query, budget = hard(split), effort()
    verdict = verify(query, settings(split), budget=budget)
    assert isinstance(verdict, Safe) and verdict.proof.leaves > 30
    return query, verdict, budget.work


def run(query: Query, path: Path, options: Settings, work: float = 1e9, store: Store | None = None) -> Verdict:
    return verify(query, options, store, effort(work), standing=Standing(Checkpoint(path)))


@cache
def part(split: str) -> float:
    """The work after which the search has closed something and is not done: by how numbers round, machines differ."""
    query, _, work = scratch(split)
    for share in np.arange(0.7, 1.0, 0.02):
        verdict = verify(query, settings(split), budget=effort(share * work))
        assert isinstance(verdict, Unknown) and verdict.statistics.open_share is not None
        if verdict.statistics.open_share < 1:
            return float(share * work)
    pytest.fail("the search closes nothing before its end")


def interrupted(path: Path, split: str, workers: int = 1) -> Query:
    """A query whose run ended when a part of it was closed."""
    query, _, _ = scratch(split)
    verdict = run(query, path, settings(split, workers), part(split))
    assert isinstance(verdict, Unknown) and path.exists()
    assert 0 < verdict.statistics.open_share < 1 and verdict.statistics.open_cases
    return query


def rewritten(path: Path, **changes) -> None:
    path.write_bytes(to_packed(replace(read_proof(path), **changes)))


@pytest.mark.parametrize("split", WAYS)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_goes_on(tmp_path, split, workers):
    """The same verdict with an accepted proof, and less to search than from scratch."""
    path = tmp_path / "run.ck"
    query = interrupted(path, split, workers)
    verdict = run(query, path, settings(split, workers))
    assert isinstance(verdict, Safe) and check(verdict.proof, query).accepted
    s = verdict.statistics
    assert 0 < s.rungs["checked"] <= s.stored_leaves and s.from_root == 0
    assert s.regions < scratch(split)[1].statistics.regions
    assert (s.open_share, s.open_cases, s.relation) == (0.0, [], "identical")


def test_interrupted_again_and_again(tmp_path):
    """Each run begins where the last one ended, across cases and conjunctions, until nothing is open."""
    both = formulas(0, 4)
    (case,) = both.cases
    query, options = Query(both.networks, (case, replace(case, conjunctions=case.conjunctions[:1]))), settings("phase")
    path, shares, budget = tmp_path / "run.ck", [], effort()
    assert isinstance(verify(query, options, budget=budget), Safe)
    for _ in range(12):
        verdict = run(query, path, options, 0.4 * budget.work)
        shares.append(verdict.statistics.open_share)
        if isinstance(verdict, Safe):
            break
    assert isinstance(verdict, Safe) and check(verdict.proof, query).accepted
    assert len(shares) > 2 and shares[-1] == 0 and all(0 <= b <= a <= 1 for a, b in pairwise(shares))


@pytest.mark.parametrize("split", WAYS)
def test_what_is_not_said_to_be_open_is_closed(tmp_path, split):
    """Wherever a run is interrupted, the checker accepts all leaves of its trees but the open ones."""
    query, verdict, work = scratch(split)
    shares = []
    for k, share in enumerate((0.8, 0.85, 0.9, 0.95)):
        path = tmp_path / f"{k}.ck"
        verdict = run(query, path, settings(split), share * work)
        shares.append(verdict.statistics.open_share)
        (tree,) = read_proof(path).trees
        report = check(read_proof(path), query)
        assert not report.accepted and report.skipped == 0
        assert re.fullmatch(r"incomplete: \d+ open lea(f|ves)", report.reason)
        left = np.exp2(-tree.depths()[[leaf for _, leaf, _ in report.rejected]].astype(float)).sum()
        assert split == "input" or 0 < left <= shares[-1] + 1e-9  # the checker may close a region that was under way
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1] > 0


def test_written_during_the_search(tmp_path):
    """A run that is killed leaves what it wrote last."""
    query, path, seen = hard("phase"), tmp_path / "run.ck", []

    class Watched(Checkpoint):
        def write(self, proof, note):
            super().write(proof, note)
            seen.append(len(read_proof(self.path).trees[0]))

    standing = Standing(Watched(path, Rhythm(0.0, float("inf"))))
    verdict = verify(query, settings("phase"), budget=effort(), standing=standing)
    assert isinstance(verdict, Safe) and len(seen) > 2 and seen == sorted(seen)
    again = run(query, path, settings("phase"))
    assert isinstance(again, Safe) and again.statistics.regions < verdict.statistics.regions


def test_rhythm():
    rhythm = Rhythm(10.0, 0.02)
    assert [rhythm.due(t) for t in (0.0, 9.9, 10.0)] == [False, False, True]
    rhythm.took(1.0, 11.0)
    assert [rhythm.due(t) for t in (21.0, 60.9, 61.0)] == [False, False, True]


# ---- nothing in the file is believed -----------------------------------------------------------


def damaged(tree: Tree) -> dict[str, Tree]:
    """A tree that was tampered with."""
    table, inner = tree.table, tree.left >= 0
    altered = replace(table, slope_value=255 - table.slope_value, beta=100 * table.beta)
    moved = np.where(inner & (np.arange(len(tree)) % 3 == 0), (tree.index + 1) % 3, tree.index)
    return {
        "refutations altered": replace(tree, refutations=altered),
        "refutations removed": replace(tree, refutations=table.take(np.arange(0, len(table), 2))),
        "refutations moved": replace(tree, refutations=replace(table, at=table.at[::-1].copy())),
        "other literals": replace(tree, index=moved.astype(np.int32)),
        "other thresholds": replace(tree, threshold=np.where(inner, tree.threshold + 0.25, 0.0)),
        "sides swapped": replace(tree, left=tree.right, right=tree.left),
        "leaves cut off": replace(tree, clip=np.ones(len(tree), dtype=bool)),
    }


@pytest.mark.parametrize("split", WAYS)
def test_a_doctored_checkpoint_costs_time_only(tmp_path, split):
    path = tmp_path / "run.ck"
    query = interrupted(path, split)
    proof = read_proof(path)
    for name, tree in damaged(proof.trees[0]).items():
        if (split, name) == ("phase", "other thresholds"):  # which are no phases: the search takes seconds
            continue
        rewritten(path, trees=(tree,))
        verdict = run(query, path, settings(split))
        assert isinstance(verdict, Safe) and check(verdict.proof, query).accepted, name


@pytest.mark.parametrize("split", WAYS)
def test_a_proof_of_something_else_under_this_name_is_no_unsat(tmp_path, split):
    """Finished trees, and interrupted ones, relabelled as the checkpoint of a query that has a witness."""
    path = tmp_path / "run.ck"
    interrupted(path, split)
    sat = peak(-0.02) if split == "input" else formulas(2)
    assert split == "input" or satisfiable(*clauses(2, VARIABLES, 24), VARIABLES)
    name = {"network": sat.network.fingerprint, "property": sat.property_hash}
    for trees in (read_proof(path).trees, scratch(split)[1].proof.trees):
        rewritten(path, trees=trees, **name)
        verdict = run(sat, path, settings(split, attack=False), 1e6)  # else a witness is found before trees are read
        assert not isinstance(verdict, Safe) and verdict.statistics.stored_leaves > 0


def test_other_files_are_refused_and_stay(tmp_path):
    """Another network's or property's checkpoint, a finished proof, and what is no proof at all."""
    path = tmp_path / "run.ck"
    query = interrupted(path, "input")
    before = path.read_bytes()
    for other, what in ((hard("phase"), "network"), (peak(0.03), "property")):
        with pytest.raises(InputError, match=f"is the checkpoint of another {what}"):
            run(other, path, settings("auto"))
    finished = to_packed(Proof(query.network.fingerprint, query.property_hash, ()))
    for content, words in ((b"{}", "is no ch"), (before[:-9], "is no ch"), (finished, "is a proof, but no ch")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            run(query, path, settings("auto"))
        assert path.read_bytes() == content
    with pytest.raises(InputError, match="the smt engine keeps no checkpoint"):
        run(query, path, Settings(engine="smt"))


def test_a_checkpoint_that_cannot_be_written_costs_no_verdict(tmp_path):
    standing = Standing(Checkpoint(tmp_path / "none" / "run.ck", Rhythm(0.0, float("inf"))))
    verdict = verify(hard("input"), settings("input"), budget=effort(), standing=standing)
    assert isinstance(verdict, Safe)
    (warning,) = verdict.statistics.warnings
    assert "run.ck could not be written: No such file" in warning


def test_what_cannot_be_used_is_not_overwritten(tmp_path, monkeypatch):
    """Too many open regions to be kept: the run begins anew, and the work of the last one stays."""
    path = tmp_path / "run.ck"
    query = interrupted(path, "input")
    before = path.read_bytes()
    monkeypatch.setattr(walk_module, "MOST_KEPT", 0)
    for work, kind in ((scratch("input")[2], Unknown), (1e9, Safe)):
        verdict = run(query, path, settings("input"), work)
        assert isinstance(verdict, kind) and path.read_bytes() == before
        assert f"the run begins anew and keeps no checkpoint: {path} is left as it is" in verdict.statistics.warnings


def test_the_time_from_scratch_counts_all_runs(tmp_path):
    """What goes into the store from a resumed run is a proof made from scratch."""
    path = tmp_path / "run.ck"
    query = interrupted(path, "input")
    with Store(":memory:") as store:
        verdict = run(query, path, settings("input"), store=store)
        (entry,) = store.entries()
    assert verdict.statistics.saved and entry.scratch_seconds >= verdict.statistics.resumed_seconds > 0
