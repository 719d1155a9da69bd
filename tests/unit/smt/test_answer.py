"""Whole runs with the SMT engine and a store: same verdicts as from scratch and as branch and bound, fewer checks."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from effort import effort
from handmade import chain, one, random_layers

from mucg4.check.walk import check
from mucg4.errors import UnsupportedError
from mucg4.model.query import Query
from mucg4.model.verdict import Safe, Verdict
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify

pytest.importorskip("z3")
pytest.importorskip("onnx")

SMT = Settings(engine="smt", workers=1)
PHASES = Settings(split="phase", workers=1)
SIZES = (4, 7, 6, 2)


def limits(network, factors) -> list[Query]:
    """Unsafe: y0 - y1 exceeds its sampled least value by a share of the sampled range, from below."""
    n = network.input_size
    y = network(np.random.default_rng(9).uniform(-1, 1, (4000, n)))
    d = y[:, 0] - y[:, 1]
    span = d.max() - d.min()
    return [
        one(network, [-1] * n, [1] * n, [({}, {0: -1, 1: 1}, Fraction(float(d.max() + f * span)), False)])
        for f in factors
    ]


def on(query: Query, network) -> Query:
    return Query((network,), query.cases)


def variants(layers, seed) -> dict:
    rng = np.random.default_rng(seed)
    (w0, b0), (w1, b1), last = layers
    order = rng.permutation(len(b0))
    step = abs(w1).max() / 127
    keep = np.sort(np.argsort(abs(w1).sum(axis=0))[1:])
    mask = abs(w1) > np.quantile(abs(w1), 0.1)
    return {
        "fp16": [(w.astype(np.float16).astype(float), b) for w, b in layers],
        "int8": [(w0, b0), (np.round(w1 / step) * step, b1), last],
        "pruned": [(w0, b0), (w1 * mask, b1), last],
        "fewer": [(w0[keep], b0[keep]), (w1[:, keep], b1), last],
        "permuted": [(w0[order], b0[order]), (w1[:, order], b1), last],
        "tuned": [(w * (1 + 1e-3 * rng.normal(size=w.shape)), b) for w, b in layers],
    }


def decided(query: Query, settings: Settings, store: Store | None = None) -> Verdict:
    verdict = verify(query, settings, store, effort())
    if isinstance(verdict, Safe):
        assert verdict.checked and check(verdict.proof, query).accepted
    return verdict


@pytest.mark.parametrize("factor", [0.3, 0.02, -0.02])
@pytest.mark.parametrize("seed", range(3))
def test_random_pairs(seed, factor):
    layers = random_layers(seed, SIZES)
    parent = limits(chain(layers), [factor])[0]
    with Store(":memory:") as store:
        first = decided(parent, SMT, store)
        for name, changed in variants(layers, seed).items():
            query = on(parent, chain(changed))
            warm, cold = decided(query, SMT, store), decided(query, SMT)
            assert warm.word == cold.word == decided(query, PHASES).word, name
            found = warm.statistics
            assert 0 <= found.reused_share <= 1 and found.replay_regions == found.smt.get("cores", 0)
            if isinstance(first, Safe) and isinstance(warm, Safe):
                assert found.relation != "unrelated" and found.stored_leaves >= found.rungs["cores"]
            assert not store.warnings


def test_a_copy_needs_no_more_than_its_cores():
    layers = random_layers(1, SIZES)
    parent = limits(chain(layers), [0.05])[0]
    variant = on(parent, chain(variants(layers, 1)["permuted"]))
    with Store(":memory:") as store:
        first, again = decided(parent, SMT, store), decided(variant, SMT, store)
    assert isinstance(first, Safe) and isinstance(again, Safe) and first.statistics.regions > 2
    found = again.statistics
    assert (found.reused_share, found.regions, found.smt["residual"]) == (1.0, 0, 0)
    assert found.relation == "permuted" and found.smt["cores"] == found.smt["cores_held"] > 0
    assert found.smt["changes"] == {"unchanged": 15, "numerical": 0, "structural": 0}
    assert found.smt["open_neurons"] == found.smt["original_open_neurons"]
    assert found.related_proof and found.scratch_seconds is not None


@pytest.mark.parametrize("theirs", ["smt", "phases"])
def test_each_engine_uses_the_other_s_proofs(theirs):
    layers = random_layers(1, SIZES)
    parent = limits(chain(layers), [0.05])[0]
    variant = on(parent, chain(variants(layers, 1)["tuned"]))
    ours, other = (PHASES, SMT) if theirs == "smt" else (SMT, PHASES)
    with Store(":memory:") as store:
        assert isinstance(decided(parent, other, store), Safe)
        again = decided(variant, ours, store)
    assert isinstance(again, Safe)
    if theirs == "smt":
        assert again.statistics.reused_share > 0.5
    else:  # its leaves rest on tightenings, too, so that their literals alone may not do
        assert again.statistics.smt["cores"] == again.statistics.replay_regions > 0


def test_stored_witnesses_come_first():
    layers = random_layers(0, SIZES)
    parent = limits(chain(layers), [-0.1])[0]
    with Store(":memory:") as store:
        assert decided(parent, SMT, store).word == "sat"
        again = decided(on(parent, chain(variants(layers, 0)["tuned"])), SMT, store)
    assert again.word == "sat" and again.statistics.rungs["witness"] == 1 and not again.statistics.regions


def test_reuse_can_be_switched_off_and_progress_is_told():
    layers = random_layers(1, SIZES)
    parent = limits(chain(layers), [0.05])[0]
    told: list[str] = []
    with Store(":memory:") as store:
        decided(parent, SMT, store)
        off = decided(parent, replace(SMT, reuse=False), store)
        verify(parent, SMT, store, effort(), told.append)
    assert off.statistics.smt["cores"] == 0 and off.statistics.regions > 0
    assert [line.split(":")[0] for line in told] == ["encoded", "equations of the original", "cores", "residual"]


def test_many_neurons_are_welcome_when_few_are_open():
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(200, 3)), rng.choice([-20.0, 20.0], size=200)  # all but a few keep one sign
    b[:4] = 0.0
    layers = [(w, b), (rng.normal(size=(2, 200)), np.zeros(2))]
    query = limits(chain(layers), [0.5])[0]
    verdict = decided(query, SMT)
    assert verdict.word == "unsat" and verdict.statistics.smt["open_neurons"] == 4
    b[:] = 0.0
    with pytest.raises(UnsupportedError, match="here are 200 after bounding"):
        verify(on(query, chain([(w, b), layers[1]])), SMT)
