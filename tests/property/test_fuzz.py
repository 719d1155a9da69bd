"""Random small networks times variants: search, store, replay, SMT, checker, onnxruntime and sampling must agree.

A failure is shrunk and kept as a replayable case (`mucg4 case FILE`); its seed and path stand in the message.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from examples import query_of
from samples import (
    SECONDS,
    Judgement,
    Sample,
    judge,
    keep,
    points_of,
    random_sample,
    refuted,
    report,
    shrink,
    smaller,
    tally,
    variant_of,
    variants,
)

from mucg4.lab.case import run_case
from mucg4.limits.budget import Budget
from mucg4.model.proof import Refutation, single_leaf
from mucg4.model.verdict import Safe, Seal
from mucg4.settings import Settings
from mucg4.verify import verify

pytest.importorskip("z3")

BLOCKS, SEEDS, VARIANTS = 8, 8, 4  # blocks of seeds times variants: combinations of the quick run
SLOW_BLOCKS = 100


def agree(seeds: range, folder: Path) -> list[Judgement]:
    """Judge every combination of the seeds; fail with the first problem."""
    out = []
    for seed in seeds:
        for sample in variants(random_sample(seed), VARIANTS):
            out.append(judge(sample))
            if out[-1].problems:
                pytest.fail(report(sample, out[-1], folder))
    return out


@pytest.mark.parametrize("block", range(BLOCKS))
def test_all_agree(block: int, tmp_path: Path) -> None:
    words = tally(agree(range(block * SEEDS, (block + 1) * SEEDS), tmp_path))
    assert words["replay"]["sat"] and words["replay"]["unsat"], f"the samples miss one of the answers: {words}"


@pytest.mark.slow
@pytest.mark.parametrize("block", range(SLOW_BLOCKS))
def test_all_agree_on_many(block: int, tmp_path: Path) -> None:
    agree(range(10_000 + block * SEEDS, 10_000 + (block + 1) * SEEDS), tmp_path)


# -- the tools themselves: a guard that sees nothing would make every run green --------------------------------------


def first_unsat() -> tuple[Sample, Safe]:
    for seed in range(100):
        sample = random_sample(seed)
        verdict = verify(query_of(sample.onnx(), sample.vnnlib()), Settings(), None, Budget.seconds(SECONDS))
        if isinstance(verdict, Safe) and verdict.proof.leaves > 2:
            return sample, verdict
    raise AssertionError("no unsat sample with a split among the first seeds")


def test_the_guard_sees_a_refutation_that_contains_a_witness() -> None:
    sample, verdict = first_unsat()
    query = query_of(sample.onnx(), sample.vnnlib())
    x = points_of(sample, np.random.default_rng(0), 8)[0]
    own = next(t for t in verdict.proof.trees if t.conjunctions is None or 0 in t.conjunctions)
    assert refuted(own, query, x, 0)  # the whole box is refuted, hence this point is claimed to be no witness
    bare = replace(own, refutations=())
    assert not refuted(bare, query, x, 0)
    assert refuted(single_leaf([Refutation(0, 0, (1.0,))]), query, x, 0)


def test_a_wrong_verdict_is_found_shrunk_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import samples

    def hasty(query, settings, store, budget):  # claims unsat with another query's empty proof
        report = first[1].report
        proof = replace(report.proof, property=query.property_hash)
        return replace(first[1], report=replace(report, proof=proof, seal=Seal(proof, True, False)))  # forged

    first = first_unsat()
    monkeypatch.setattr(samples, "verify", hasty)
    plain = next(s for s in map(random_sample, range(50)) if not any(layer.skip for layer in s.layers))
    sample = next(variants(plain, 1))
    judgement = judge(sample)
    assert "proof rejected" in judgement.kinds
    small = shrink(sample, lambda s: "proof rejected" in judge(s).kinds, 5.0)
    count = [sum(len(v.bias) for v in s.layers) for s in (small, sample)]
    assert count[0] < count[1] and "proof rejected" in judge(small).kinds
    path = keep(small, judgement.problems, tmp_path)
    monkeypatch.undo()
    assert run_case(path).ok  # the real engines have no problem with it


def test_samples_are_repeatable_and_read_back() -> None:
    for seed in range(20):
        first, second = random_sample(seed), random_sample(seed)
        assert first.onnx() == second.onnx() and first.vnnlib() == second.vnnlib()
        query = query_of(first.onnx(), first.vnnlib())
        stated = tuple(zip(*(v.tolist() for v in query.cases[0].box.stated), strict=True))
        assert stated == first.box
        for sample in variants(first, 4):
            data, prop = variant_of(sample)
            assert query_of(data, prop).network.input_size == len(sample.box)
        assert all(s.onnx() for s in smaller(first))
