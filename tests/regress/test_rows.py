"""Whole runs on benchmark rows with known answers: the verdict is never the opposite, and every proof is checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from queries import as_version_2

from mucg4.bench.results import read_expected
from mucg4.check.vnnlib2 import covers
from mucg4.check.walk import check
from mucg4.gate.witness import replay_witness
from mucg4.limits.budget import Budget
from mucg4.model.query import Query
from mucg4.model.verdict import Safe, Unsafe
from mucg4.read.instance import Instance, read_instances, read_model, read_query, read_text
from mucg4.read.networks import query_of_models
from mucg4.read.vnnlib import parse_vnnlib
from mucg4.settings import Settings
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


def in_version_2(instance: Instance) -> tuple[Query, Query]:
    """A row as it is, and with its property rewritten in version 2.0."""
    first, (model, original) = read_query(instance.onnx, instance.vnnlib), read_model(instance.onnx)
    network, prop = first.network, parse_vnnlib(read_text(instance.vnnlib))
    prop = replace(prop, outputs=network.output_size)
    text = as_version_2(prop, (1, network.input_size), (network.output_size,))
    return first, query_of_models({"": (model, original)}, text)


@pytest.mark.parametrize("family", ["test", "acasxu_2023", "linearizenn_2024", "tllverifybench_2023"])
def test_version_2_asks_the_same(benchmarks: Path, family: str) -> None:
    """The very same cases, in whatever version they are written."""
    rows = {row.vnnlib: row for row in read_instances(benchmarks / family)}  # one for each property
    for instance in list(rows.values())[:12]:
        first, second = in_version_2(instance)
        assert second.joint is not None and second.joint.plain
        assert covers(second.text, second) is None
        alike = [
            {(repr(c.box), frozenset(tuple(map(repr, conj.exact)) for conj in c.conjunctions)) for c in query.cases}
            for query in (first, second)
        ]
        assert alike[0] == alike[1], instance.vnnlib


@pytest.mark.slow
def test_version_2_gets_the_same_verdicts(benchmarks: Path) -> None:
    rows = read_instances(benchmarks / "acasxu_2023")
    for instance in rows[::8]:
        words = []
        for query in in_version_2(instance):
            words.append(verify(query, Settings(workers=1), budget=Budget.seconds(30.0)).word)
        assert words[0] == words[1] or "timeout" in words, instance


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_wrong_verdict(benchmarks: Path, family: str) -> None:
    expected = read_expected(benchmarks / family)
    rows = read_instances(benchmarks / family)
    for instance in rows[:: max(1, len(rows) // 3)][:3]:
        word = decide(instance, 5.0)
        right = expected.get((instance.onnx_text, instance.vnnlib_text))
        assert right is None or word in (right, "unknown", "timeout")
