"""Smooth curves and products: lines and images contain samples, in the operators and in the checker."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from effort import effort

from mucg4.check.curves import enclose
from mucg4.check.walk import check
from mucg4.gate.gradient import gradient
from mucg4.gate.runtime import Runtime
from mucg4.model.network import Network, Node
from mucg4.model.proof import Proof
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.model.verdict import Statistics
from mucg4.ops.affine import Concat, Dense
from mucg4.ops.arrays import Backend
from mucg4.ops.bilinear import PRODUCT
from mucg4.ops.curves import (
    COS,
    EXP,
    GELU,
    GELU_TANH,
    HARD_SWISH,
    LOG,
    MISH,
    RECIPROCAL,
    SILU,
    SIN,
    SOFTPLUS,
    SQRT,
    SQUARE,
    Elu,
)
from mucg4.ops.smooth import ATAN, ERF, SOFTSIGN
from mucg4.search.portfolio import solve
from mucg4.search.run import Run
from mucg4.settings import Settings

rng = np.random.default_rng(3)
CURVES = [SIN, COS, SQUARE, EXP, RECIPROCAL, LOG, SQRT, SOFTPLUS, ERF, SOFTSIGN, ATAN]
CURVES += [Elu(), Elu(0.3), Elu(1.7), HARD_SWISH, GELU, GELU_TANH, SILU, MISH]
FAR = [(-800.0, 900.0), (-1e-9, 2e-9), (5.0, 5.0), (0.0, 0.0), (-40.0, -30.0), (0.0, 3.0), (-3.0, 0.0), (1e5, 1e5 + 1)]
FAR += [(-1e200, 1e200), (1e-200, 2e-200), (600.0, 705.0), (-1e200, -1e199), (np.pi / 2, np.pi), (0.0, 2 * np.pi)]


def boxes(scale):
    lo, hi = np.sort(rng.normal(size=(2, 200)) * scale, axis=0)
    near = rng.normal(size=100) * scale
    return np.array([*zip(lo, hi, strict=True), *zip(near, near + 1e-5, strict=True), *FAR]).T


def points(lo, hi, count=401):
    return np.clip(lo + np.linspace(0, 1, count)[:, None] * (hi - lo), lo, hi)


def contains(x, f, low, up, below, above, image, room):
    with np.errstate(all="ignore"):
        size = room * (abs(f) + abs(low * x) + abs(up * x)) + 1e-290
        assert np.all((image[0] - size <= f) & (f <= image[1] + size) | ~np.isfinite(f) | np.isnan(size))
        bad = (low * x + below > f + size) | (up * x + above < f - size)
        bad &= np.isfinite(f)
    assert not np.any(bad)
    assert not any(np.isnan(v).any() for v in (low, up, below, above, *image))


@pytest.mark.parametrize("op", CURVES, ids=lambda o: o.kind)
@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
def test_lines_and_images_contain_samples(op, scale):
    lo, hi = boxes(scale)
    x = points(lo, hi)
    f, lines = op.apply([x]), op.relax([lo], [hi])
    parts = lines.lower_slopes[0], lines.upper_slopes[0], lines.lower_offset, lines.upper_offset
    contains(x, f, *parts, op.interval([lo], [hi]), 2.0**-50)
    own, low, up = enclose(op, [lo[None]], [hi[None]])
    contains(x, f, own.low, own.up, own.low_offset, own.up_offset, (low, up), 2.0**-50)


@pytest.mark.parametrize("op", CURVES, ids=lambda o: o.kind)
def test_terms_bound_slopes_times_arguments(op):
    lo, hi = boxes(2.0)
    bound = op.terms([lo], [hi])
    for _ in range(20):
        ends = lo + np.sort(rng.random((2, len(lo))), axis=0) * (hi - lo)
        lines = op.relax([ends[0]], [ends[1]])
        far = np.maximum(abs(ends[0]), abs(ends[1]))
        for s in (lines.lower_slopes[0], lines.upper_slopes[0]):
            assert np.all(abs(s) * far <= bound * (1 + 1e-9))


@pytest.mark.parametrize("op", CURVES, ids=lambda o: o.kind)
def test_lines_are_tight_and_the_checker_agrees(op):
    lo = rng.random((1, 300)) * 3 + 0.1
    hi = lo + rng.random((1, 300)) * 2
    x, lines = points(lo[0], hi[0], 2001), op.relax([lo], [hi])
    x = np.concatenate([x, np.clip(np.full_like(lo, 3.0), lo, hi)])  # where HardSwish has a corner
    f = op.apply([x])
    above = (lines.upper_slopes[0] * x + lines.upper_offset - f).min(axis=0)
    below = (f - lines.lower_slopes[0] * x - lines.lower_offset).min(axis=0)
    room = 1e-5 * (1 + abs(f).max(axis=0))
    assert np.all(above < room) and np.all(below < room)
    own, _, _ = enclose(op, [lo], [hi])
    assert np.allclose(own.low_offset, lines.lower_offset, atol=1e-9, rtol=1e-9)
    assert np.allclose(own.up_offset, lines.upper_offset, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("op", CURVES, ids=lambda o: o.kind)
def test_single_precision(op):
    lo, hi = (Backend("float32").array(v) for v in boxes(2.0)[:, :300])
    a, b = lo.astype(np.float64), hi.astype(np.float64)
    lines, image = op.relax([lo], [hi]), op.interval([lo], [hi])
    parts = lines.lower_slopes[0], lines.upper_slopes[0], lines.lower_offset, lines.upper_offset
    assert all(p.dtype == np.float32 for p in (*parts, *image))
    x = points(a, b)
    wide = [p.astype(np.float64) for p in (*parts, *image)]
    contains(x, op.apply([x]), *wide[:4], wide[4:], 2.0**-50)


@pytest.mark.parametrize("op", CURVES, ids=lambda o: o.kind)
def test_unbounded_boxes_give_horizontal_lines(op):
    lo, hi = np.array([[-np.inf, -np.inf, 1.0]]), np.array([[np.inf, -0.5, np.inf]])
    lines = op.relax([lo], [hi])
    assert not np.any(lines.lower_slopes[0]) and not np.any(lines.upper_slopes[0])
    assert not np.isnan(lines.lower_offset).any() and not np.isnan(lines.upper_offset).any()
    own, low, up = enclose(op, [lo], [hi])
    assert not any(np.isnan(v).any() for v in (own.low, own.up, own.low_offset, own.up_offset, low, up))


def test_products_contain_samples():
    ends = [boxes(s) for s in (2.0, 30.0)]
    (a, b), (c, d) = ends
    order = rng.permutation(len(c))
    lo, hi = [a, c[order]], [b, d[order]]
    lines, (low, up) = PRODUCT.relax(lo, hi), PRODUCT.interval(lo, hi)
    own, flo, fhi = enclose(PRODUCT, [v[None] for v in lo], [v[None] for v in hi])
    assert own.other is not None
    for _ in range(60):
        t = rng.random((2, len(a)))
        t = np.where(rng.random(t.shape) < 0.4, np.round(t), t)
        x, y = (np.clip(p + s * (q - p), p, q) for p, q, s in zip(lo, hi, t, strict=True))
        with np.errstate(all="ignore"):
            for s, r, below, above, first, last in (
                (lines.lower_slopes, lines.upper_slopes, lines.lower_offset, lines.upper_offset, low, up),
                ((own.low, own.other[0]), (own.up, own.other[1]), own.low_offset, own.up_offset, flo, fhi),
            ):
                size = 2.0**-50 * (abs(x * y) + abs(s[0] * x) + abs(s[1] * y))
                assert not np.any(s[0] * x + s[1] * y + below > x * y + size)
                assert not np.any(r[0] * x + r[1] * y + above < x * y - size)
                assert np.all((first - size <= x * y) & (x * y <= last + size) | ~np.isfinite(x * y))
    assert not any(np.isnan(v).any() for v in (low, up, lines.lower_offset, lines.upper_offset, flo, fhi))


def curved(op):
    """A network of two inputs and one output: f of an affine map, and its product with the input."""
    nodes = (
        Node(None, (), "x", (2,)),
        Node(Dense(np.array([[0.5, 0.25], [0.25, -0.5]]), np.array([1.5, 1.5])), (0,), "z", (2,)),
        Node(op, (1,), "f", (2,)),
        Node(PRODUCT, (2, 0), "p", (2,)),
        Node(Concat((2, 2)), (3, 2), "c", (4,)),
        Node(Dense(np.array([[1.0, -1.0, 0.5, 0.25]]), np.array([0.0])), (4,), "y", (1,)),
    )
    return Network(nodes)


@pytest.mark.parametrize("op", CURVES, ids=lambda o: o.kind)
def test_a_claim_that_holds_is_proved_and_its_proof_serves_no_false_claim(op):
    net = curved(op)
    x = np.random.default_rng(0).random((20000, 2)) * 2 - 1
    least = float(net(x).min())
    box = Box((Fraction(-1),) * 2, (Fraction(1),) * 2)
    queries = []
    for margin in (-0.05, 0.01):
        rows = [({}, {0: Fraction(1)}, -Fraction(round(least + margin, 6)), False)]
        queries.append(Query((net,), (Case(box, (Conjunction.build(rows, 2, 1),)),)))
    true, false = queries
    settings = Settings(split="input", attack=False)
    trees = solve(Run(true, settings, effort(), Statistics(), Runtime(net), None))
    assert check(Proof(net.fingerprint, true.property_hash, tuple(trees)), true).accepted
    assert not check(Proof(net.fingerprint, false.property_hash, tuple(trees)), false).accepted


@pytest.mark.parametrize("op", CURVES, ids=lambda o: o.kind)
def test_the_gradient_is_that_of_differences(op):
    net, x, step = curved(op), np.random.default_rng(1).random((20, 2)), 1e-6
    got = gradient(net, net.values(x), np.ones((20, 1)))
    for i in range(2):
        move = np.eye(2)[i] * step
        want = (net(x + move) - net(x - move))[:, 0] / (2 * step)
        assert np.allclose(got[:, i], want, atol=1e-6)
