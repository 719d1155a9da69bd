"""Whole runs on benchmark rows with known answers: the verdict is never the opposite, and every proof is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from mucg4.bench.results import read_expected
from mucg4.check.walk import check
from mucg4.gate.witness import replay_witness
from mucg4.limits.budget import Budget
from mucg4.model.verdict import Safe, Unsafe
from mucg4.read.instance import Instance, read_instances, read_query
from mucg4.verify import verify

SANITY = {"test_nano": "unsat", "test_tiny": "unsat", "test_small": "unsat", "test_sat": "sat", "test_unsat": "unsat"}
FAMILIES = (
    "acasxu_2023",
    "mnist_fc",
    "rl_benchmarks",
    "safenlp_2024",
    "cora_2024",
    "collins_rul_cnn_2023",
    "oval21",
    "tllverifybench_2023",
    "linearizenn_2024",
    "dist_shift_2023",
    "sri_resnet_a",
    "metaroom_2023",
)


def decide(instance: Instance, seconds: float) -> str:
    """The verdict's word, after its evidence was confirmed independently."""
    query = read_query(instance.onnx, instance.vnnlib)
    verdict = verify(query, budget=Budget.seconds(seconds))
    if isinstance(verdict, Safe):
        report = check(verdict.proof, query, Budget.seconds(20 * seconds))
        assert report.accepted, report.reason
    if isinstance(verdict, Unsafe):
        assert replay_witness(query, verdict.witness.x) is not None
    return verdict.word


def test_sanity_rows(benchmarks: Path) -> None:
    for instance in read_instances(benchmarks / "test"):
        assert decide(instance, 60.0) == SANITY[instance.onnx.stem]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_wrong_verdict(benchmarks: Path, family: str) -> None:
    expected = read_expected(benchmarks / family)
    rows = read_instances(benchmarks / family)
    for instance in rows[:: max(1, len(rows) // 3)][:3]:
        word = decide(instance, 5.0)
        right = expected.get((instance.onnx_text, instance.vnnlib_text))
        assert right is None or word in (right, "unknown", "timeout")
