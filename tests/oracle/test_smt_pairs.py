"""Random small pairs of networks, VNN-LIB 2.0: branch and bound against the exact SMT engine."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from examples import dense

from mucg4.limits.budget import Budget
from mucg4.model.verdict import Safe, Unsafe
from mucg4.read.networks import query_of_models
from mucg4.settings import Settings
from mucg4.smt.smt import refute
from mucg4.verify import verify

pytest.importorskip("z3")
SHARED = [  # how the inputs of g follow from those of f, as one formula per input
    ["(== X[0] U[0])", "(== X[1] U[1])"],
    ["(== X[0] U[0])", "(and (<= U[1] X[1]) (>= U[1] -1.0))"],
    ["(== U[0] (+ X[0] 0.25))", "(== (- X[1] U[1]) 0.0)"],
    ["(== U[0] (- (* 0.5 X[0]) X[1]))", "(and (>= U[1] -0.5) (<= U[1] 0.5))"],
    ["(and (>= U[0] -1.0) (<= U[0] 1.0))", "(and (>= U[1] -1.0) (<= U[1] 1.0))"],
]


def random_pair(seed: int) -> tuple[dict[str, tuple[bytes, None]], str]:
    """Models of f and g, which is f with moved weights, equal to it or another one, and a query over both."""
    rng, choose = np.random.default_rng(seed), random.Random(seed)
    sizes = [2, choose.choice((2, 3, 4)), choose.choice((1, 2))]
    layers = [(rng.integers(-8, 9, (b, a)) / 8, rng.integers(-8, 9, b) / 8) for a, b in pairwise(sizes)]
    kind = choose.choice(("equal-to", "isomorphic-to", ""))
    moved = [(w + (rng.integers(-2, 3, w.shape) / 16 if kind != "equal-to" else 0), b) for w, b in layers]
    relation = f"({kind} f)" if kind else ""
    level = choose.uniform(-1, 1) if kind == "" else choose.uniform(-0.2, 0.6)
    k, op = choose.randrange(sizes[-1]), choose.choice((">", ">=", "<"))
    compared = choose.choice(
        (
            f"({op} V[{k}] (+ Y[{k}] {level:.4f}))",
            f"(or (> V[{k}] (+ Y[{k}] {abs(level):.4f})) (< V[{k}] (- Y[{k}] {abs(level):.4f})))",
            f"({op} (- (* 2.0 V[{k}]) Y[0]) {level:.4f})",
        )
    )
    text = f"""(vnnlib-version <2.0>)
(declare-network f (declare-input X real [2]) (declare-output Y real [{sizes[-1]}]))
(declare-network g {relation} (declare-input U real [2]) (declare-output V real [{sizes[-1]}]))
(assert (and (>= X[0] -1.0) (<= X[0] 1.0) (>= X[1] -1.0) (<= X[1] 1.0)))
(assert (and {" ".join(choose.choice(SHARED))}))
(assert {compared})
"""
    models = {"f": (dense(layers), None), "g": (dense(moved), None)}
    if kind == "equal-to":
        del models["g"]
    return models, text


def compare(seed: int) -> str:
    """The word of branch and bound, which the SMT engine must not contradict."""
    models, text = random_pair(seed)
    query = query_of_models(models, text)
    verdict = verify(query, Settings(workers=1, timeout=20.0), budget=Budget.seconds(20.0))
    exact = refute(query, Budget.seconds(30.0))
    real_point = exact.witness is not None or exact.undecided > 0
    if isinstance(verdict, Safe):
        assert not real_point, text
    if isinstance(verdict, Unsafe):
        assert real_point, text
    return verdict.word


@pytest.mark.parametrize("seed", range(8))
def test_pairs(seed: int) -> None:
    compare(seed)


@pytest.mark.slow
def test_pairs_at_length() -> None:
    words = [compare(seed) for seed in range(8, 508)]
    assert words.count("sat") > 100 and words.count("unsat") > 100
    assert words.count("unknown") + words.count("timeout") < 25
