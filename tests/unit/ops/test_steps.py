"""Step functions: lines and images contain samples and the values at jumps, in the operators and in the checker."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from effort import effort
from examples import query_of, text

from mucg4.bound.propagate import Bounder
from mucg4.bound.reduced import Reduced
from mucg4.check.curves import enclose
from mucg4.check.walk import check
from mucg4.errors import UnsupportedError
from mucg4.gate.gradient import gradient
from mucg4.model.proof import Proof
from mucg4.ops.arrays import NUMPY, Backend
from mucg4.ops.steps import FLOOR, ROUND, SIGN, Trunc
from mucg4.read.onnx import read_network
from mucg4.settings import Settings
from mucg4.verify import verify
from unit.read.test_onnx import agrees, model

STEPS = [SIGN, FLOOR, ROUND, Trunc(-1e31, 1e31)]
EXACT = {
    "Sign": lambda x: (x > 0) - (x < 0),
    "Floor": lambda x: x.numerator // x.denominator,
    "Round": round,  # of a Fraction: half to even
    "Trunc": int,
}


def boxes():
    rng = np.random.default_rng(7)
    lo, hi = np.sort(rng.normal(size=(2, 300)) * 3, axis=0)
    grid = rng.integers(-6, 7, size=(2, 300)) / 2
    near = rng.integers(-3, 4, size=100) + rng.normal(size=100) * 1e-9
    special = [(-1e-300, 1e-300), (-1e-12, 1.0), (-1.0, 1e-12), (0.0, 1e-300), (-1e-300, 0.0), (0.0, 0.0), (5.0, 5.0)]
    special += [(-1e30, 1.0), (-1.0, 1e30), (1e15, 1e15 + 2), (-1.0, 1.0), (-3.0, 0.0), (0.0, 3.0), (0.5, 0.5)]
    parts = [*zip(lo, hi, strict=True), *zip(*np.sort(grid, axis=0), strict=True), *zip(near, near + 1e-8, strict=True)]
    return np.array([*parts, *special]).T


def points(a, b):
    """Numbers of a box, its jumps and their neighbours among them."""
    inside = np.linspace(a, b, 21)
    jumps = np.arange(max(a, -9) * 2 // 1, min(b, 9) * 2 + 1) / 2
    every = np.concatenate([inside, jumps, np.nextafter(jumps, -np.inf), np.nextafter(jumps, np.inf), [a, b]])
    return [Fraction(v) for v in every.tolist() if a <= v <= b]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("op", STEPS, ids=lambda o: o.kind)
def test_lines_and_images_hold_in_rational_arithmetic(op, dtype):
    lo, hi = (Backend(dtype).array(v) for v in boxes())
    lines, image = op.relax([lo], [hi]), op.interval([lo], [hi])
    claims = [(lines.lower_slopes[0], lines.lower_offset, lines.upper_slopes[0], lines.upper_offset, *image)]
    assert all(v.dtype == dtype for v in claims[0])
    assert np.all(abs(lines.lower_slopes[0]) * np.maximum(abs(lo), abs(hi)) <= op.terms([lo], [hi]) * (1 + 1e-6))
    if dtype == "float64":
        own, low, up = enclose(op, [lo[None]], [hi[None]])
        claims.append(tuple(v[0] for v in (own.low, own.low_offset, own.up, own.up_offset, low, up)))
    for k, (a, b) in enumerate(zip(lo.tolist(), hi.tolist(), strict=True)):
        for x in points(a, b):
            f = EXACT[op.kind](x)
            for claim in claims:
                below, under, above, over, least, most = (Fraction(float(v[k])) for v in claim)
                assert least <= f <= most, (a, b, x)
                assert below * x + under <= f <= above * x + over, (a, b, x)


def test_lines_of_the_sign():
    lo, hi = np.array([-1.0, -10.0, 0.0, -2.0, 1.0, -1.0]), np.array([10.0, 1.0, 2.0, 0.0, 2.0, 4.0])
    lines = SIGN.relax([lo], [hi])
    assert np.allclose(lines.lower_slopes[0], [0.2, 0, 0.5, 0, 0, 0])
    assert np.allclose(lines.upper_slopes[0], [0, 0.2, 0, 0.5, 0, 0])
    assert np.allclose(lines.lower_offset, [-1, -1, 0, -1, 1, -1])
    assert np.allclose(lines.upper_offset, [1, 1, 1, 0, 1, 1])
    own, _, _ = enclose(SIGN, [lo[None]], [hi[None]])
    assert np.allclose(own.low_offset, lines.lower_offset) and np.allclose(own.up_offset, lines.upper_offset)


@pytest.mark.parametrize("op", STEPS, ids=lambda o: o.kind)
def test_unbounded_boxes(op):
    lo, hi = np.array([[-np.inf, -np.inf, 1.5]]), np.array([[np.inf, -0.5, np.inf]])
    lines, (low, up) = op.relax([lo], [hi]), op.interval([lo], [hi])
    assert not np.any(lines.lower_slopes[0]) and not np.any(lines.upper_slopes[0])
    assert np.array_equal(lines.lower_offset, low) and np.array_equal(lines.upper_offset, up)
    own, first, last = enclose(op, [lo], [hi])
    assert np.array_equal(first, low) and np.array_equal(last, up)
    assert not any(np.isnan(v).any() for v in (own.low, own.up, own.low_offset, own.up_offset))


@pytest.mark.parametrize("least, most", [(-128, 127), (0, 255), (-(2**24), 2**24)])
def test_nothing_is_known_of_integer_parts_beyond_their_type(least, most):
    op, below, above = Trunc(least, most), np.nextafter(least - 1, 0), np.nextafter(most + 1.0, 0)
    lo = np.array([[least - 1, 0.0, below, 0.5, least - 50.0]])
    hi = np.array([[0.0, most + 1, above, above, most + 50.0]])
    lines, (low, up) = op.relax([lo], [hi]), op.interval([lo], [hi])
    own, first, last = enclose(op, [lo], [hi])
    known = [False, False, True, True, False]
    for least_, most_ in (
        (low, up),
        (first, last),
        (lines.lower_offset, lines.upper_offset),
        (own.low_offset, own.up_offset),
    ):
        assert (np.isfinite(least_) & np.isfinite(most_))[0].tolist() == known
        assert np.all(least_[0, ~np.array(known)] == -np.inf) and np.all(most_[0, ~np.array(known)] == np.inf)
    values = op.apply([np.array([[least - 1.0, below, -0.5, above, most + 1.0]])])[0]
    assert np.array_equal(values, [np.nan, least, 0, most, np.nan], equal_nan=True)


CASES = [
    ([("Cast", "x", "i", {"to": 7}), ("Cast", "i", "y", {"to": 1})], {}),
    ([("Cast", "x", "i", {"to": 3}), ("Cast", "i", "y", {"to": 1})], {}),
    ([("Sign", "x", "y", {})], {}),
    ([("Floor", "x", "y", {})], {}),
    ([("Ceil", "x", "y", {})], {}),
    ([("Round", "x", "y", {})], {}),
    ([("ThresholdedRelu", "x", "y", {})], {}),
    ([("ThresholdedRelu", "x", "y", {"alpha": 0.0})], {}),
    ([("ThresholdedRelu", "x", "y", {"alpha": -0.75})], {}),
    ([("MatMul", "x w", "z", {}), ("Sign", "z", "s", {}), ("MatMul", "s v", "y", {})], {"w": (3, 5), "v": (5, 2)}),
]


@pytest.mark.parametrize("nodes, shapes", CASES, ids=lambda v: v[0][0] if isinstance(v, list) else None)
@pytest.mark.parametrize("shape", [[1, 3], [1, 2, 3]])
def test_steps_agree_with_onnxruntime(nodes, shapes, shape):
    rng = np.random.default_rng(1)
    tensors = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    agrees(model(nodes, shape, tensors), points=20)
    agrees(model(nodes, shape, tensors, opset=22), points=2, spread=0.0)


def stepped(seed, kind="Sign"):
    """ONNX bytes: one layer of steps between random maps of 3 inputs and one output."""
    rng = np.random.default_rng(seed)
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in (("w", (3, 5)), ("b", (5,)), ("v", (5, 1)))}
    nodes = [("Gemm", "x w b", "z", {}), (kind, "z", "s", {}), ("MatMul", "s v", "y", {})]
    return model(nodes, [1, 3], tensors)


@pytest.mark.parametrize("kind", ["Sign", "Floor", "Ceil", "Round"])
@pytest.mark.parametrize("split", ["auto", "phase"])
def test_a_proof_is_found_and_accepted_and_serves_no_false_claim(kind, split):
    data, box = stepped(3, kind), [(-0.8, 0.4)] * 3
    free = query_of(data, text(box, 1, "(<= Y_0 0.0)"))
    least = float(free.network(np.random.default_rng(0).uniform(-0.8, 0.4, (20000, 3))).min())
    true, false = (query_of(data, text(box, 1, f"(<= Y_0 {least + d:.6f})")) for d in (-0.1, 0.01))
    verdict = verify(true, Settings(split=split, attack=False, workers=1), budget=effort())
    assert verdict.word == "unsat"
    assert check(verdict.proof, true).accepted
    other = Proof(true.network.fingerprint, false.property_hash, verdict.proof.trees)
    assert not check(other, false).accepted
    assert verify(false, Settings(split=split, workers=1), budget=effort()).word == "sat"


def test_networks_with_steps_are_split_by_inputs_and_their_bounds_hold():
    net = read_network(stepped(2))
    bounder = Bounder(net, -np.ones(3), np.ones(3))
    assert not Reduced.supports(bounder)
    root = bounder.root()
    bounder.refresh(root)
    values = net.values(np.random.default_rng(2).uniform(-1, 1, (2000, 3)))
    for k in bounder.pre:
        low, up = (NUMPY.place(v)[0] for v in bounder.pre_bounds(root, k))
        assert np.all(low <= values[k]) and np.all(values[k] <= up)


def test_the_attack_sees_a_straight_through_estimate():
    net = read_network(stepped(1))
    slope = gradient(net, net.values(np.random.default_rng(3).normal(size=(5, 3))), np.ones((5, 1)))
    assert np.all(np.any(slope != 0, axis=1))


def test_integer_rounding_modes_that_are_not_numbers_are_refused():
    with pytest.raises(UnsupportedError, match="operator IsNaN"):
        read_network(model([("IsNaN", "x", "y", {})], [1, 2]))
