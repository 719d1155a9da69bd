"""The exact mode of the checker: integers that stand for rationals, against Python's own."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mucg4.check.exact import (
    BITS,
    COEF,
    ROOM,
    SLOPE,
    ExactEnclosure,
    ExactRows,
    Matrix,
    below,
    limbs,
    scaled_slopes,
    whole,
)
from mucg4.check.ties import dyadic
from mucg4.check.walk import check
from mucg4.errors import ProofError
from mucg4.model.network import Network, Node
from mucg4.model.proof import Refutation
from mucg4.ops.affine import Dense
from mucg4.ops.piecewise import TwoPiece
from unit.check.test_walk import SHORT, box_of, build_tree, dense_net, proof_of, query_of, random_network, single_leaf

F = Fraction


def numbers(rng, count, bits=60):
    """Integers of all lengths and both signs, ends included."""
    sizes = [int(rng.integers(0, 1 << int(rng.integers(1, bits + 1)), dtype=np.int64)) for _ in range(count - 4)]
    signs = rng.choice([-1, 1], count - 4)
    ends = [0, (1 << bits) - 1, -(1 << bits) + 1, -1]
    return np.array([*(s * int(g) for s, g in zip(sizes, signs, strict=True)), *ends], dtype=np.int64)


def test_limbs():
    a = numbers(np.random.default_rng(0), 400)
    parts = limbs(a)
    total = sum(p.astype(np.int64).astype(object) << (BITS * i) for i, p in enumerate(parts))
    assert np.all(total == a) and all(np.all(abs(p) < 2**BITS) for p in parts)


def test_slopes():
    rng = np.random.default_rng(1)
    a = numbers(rng, 400)
    slopes = np.concatenate([rng.integers(-(1 << SLOPE), 1 << SLOPE, 396), [0, 1 << SLOPE, -(1 << SLOPE), 1]])
    got = scaled_slopes(a, slopes)
    assert got.tolist() == [(x * s) >> SLOPE for x, s in zip(a.tolist(), slopes.tolist(), strict=True)]


def test_floats_to_units_and_back():
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(size=300) * 10.0 ** rng.integers(-12, 5, 300), [0.0, 5e-324, -5e-324, 1.0]])
    for side in (-1, 1):
        units = whole(values, side, 40)
        for u, v in zip(units.tolist(), values.tolist(), strict=True):
            gap = F(u) - F(v) * 2**40
            assert 0 <= gap * side < 1
    units = numbers(rng, 400)
    for u, v in zip(units.tolist(), below(units, 44).tolist(), strict=True):
        if u > -ROOM:
            assert F(v) <= F(u, 2**44) and F(u, 2**44) - F(v) <= abs(F(v)) / 2**51
    with pytest.raises(ProofError):
        whole(np.array([np.nan]), 1, 40)
    with pytest.raises(ProofError):
        whole(np.array([1e9]), 1, 40)


@pytest.mark.parametrize("seed", range(6))
def test_matrix_products(seed):
    rng = np.random.default_rng([3, seed])
    w = rng.normal(size=(int(rng.integers(1, 60)), 4)) * 10.0 ** rng.integers(-6, 2)
    w[rng.random(w.shape) < 0.2] = 0
    w, q = dyadic(w.astype(np.float32))
    a = numbers(rng, 40 * len(w)).reshape(-1, len(w))
    matrix = Matrix.of(w, q)
    fits = matrix.fits(a)
    a = np.where(fits[:, None], a, a >> np.int64(24))
    assert np.all(matrix.fits(a))
    got, lost = matrix.times(a)
    for mine, exact in zip(got.ravel().tolist(), (a.astype(object) @ w).ravel().tolist(), strict=True):
        assert 0 <= exact - (mine << q) and exact - (mine << q) <= lost << q


@pytest.mark.parametrize("seed", range(20))
def test_rows_stay_below_exactly(seed):
    """Bounds of random rows against exact values of the network at random points, and close to the float bounds."""
    rng = np.random.default_rng([4, seed])
    network = random_network(rng, SHORT)
    lo = rng.normal(size=(1, network.input_size))
    hi = lo + rng.random(lo.shape)
    enclosure = ExactEnclosure(network, [box_of(lo[0], hi[0])])
    far, flags = np.full((1, enclosure.width), np.inf), np.ones(1, dtype=bool)
    frame, empty = enclosure.sweep((lo, hi), -far, far, flags, flags)
    assert not empty.any()
    last = len(network.nodes) - 1
    target = rng.normal(size=(8, network.output_size))
    units = np.floor(np.ldexp(target, COEF)).astype(np.int64)
    rows = ExactRows(np.zeros(8, dtype=int), {last: units}, np.zeros(8, dtype=np.int64), np.zeros(8, dtype=np.int64))
    for k, lines in frame.lines.items():
        any_slope = rng.uniform(*lines.reach, size=(8, network.nodes[k].size))
        rows.slopes[k] = np.where(lines.free, any_slope, lines.low)
    value = enclosure.minimum(frame, enclosure.pull(frame, rows, last))
    points = lo + (hi - lo) * rng.random((2000, lo.shape[1]))
    most = (network(points) @ np.ldexp(units.astype(float), -COEF).T).min(axis=0)
    assert np.all(value <= most + 1e-11)


@pytest.mark.parametrize("size", [1, 1 << 44, 1 << 52, 1 << 56, (1 << 59) + 12345])
def test_rows_that_need_room_go_on_in_coarser_units(size):
    """y = 4 * 3e4 * relu(3e4 x) on [1, 2] is 3.6e9 x: large coefficients lose digits or the row, never soundness."""
    net = dense_net([([[30000.0]] * 4, [0.5] * 4), ([[30000.0] * 4], [-1.0])])
    enclosure = ExactEnclosure(net, [box_of([1], [2])])
    far, flags = np.full((1, enclosure.width), np.inf), np.ones(1, dtype=bool)
    frame, _ = enclosure.sweep((np.ones((1, 1)), 2 * np.ones((1, 1))), -far, far, flags, flags)
    for sign in (1, -1):
        one = np.full((1, 1), sign * size, dtype=np.int64)
        rows = ExactRows(np.zeros(1, dtype=int), {3: one}, np.zeros(1, dtype=object), np.zeros(1, dtype=np.int64))
        value = float(enclosure.minimum(frame, enclosure.pull(frame, rows, 3))[0])
        exact = F(sign * size, 2**COEF) * (4 * 30000 * (30000 * (1 if sign > 0 else 2) + F(1, 2)) - 1)
        assert F(value) <= exact if value > -np.inf else size > 1 << 52
        if size == 1 << 44:
            assert exact - F(value) <= abs(exact) / 10**6


def test_equality_needs_a_strict_constraint():
    """Bounds of exactly 0 close nothing here."""
    net = dense_net([([[1.0]], [0.0])])
    query = query_of(net, [0], [1], [({}, {0: F(-1)}, F(1))])  # y >= 1
    assert not check(proof_of(query, single_leaf([Refutation(0, 0, (1.0,))])), query, exact=True).accepted
    query = query_of(net, [0], [1], [({}, {0: F(-1)}, F(1) + F(1, 10**9))])
    assert check(proof_of(query, single_leaf([Refutation(0, 0, (1.0,))])), query, exact=True).accepted


def test_what_does_not_fit_is_refused():
    def reason(net):
        query = query_of(net, [0], [1], [({}, {0: F(-1)}, F(2))])
        return check(proof_of(query, single_leaf([Refutation(0, 0, (1.0,))])), query, exact=True).reason

    assert "exact mode" in reason(dense_net([([[1.0]], [0.0]), ([[1.0]], [0.0])], TwoPiece(0.1, 1.0)))
    assert "exact mode" in reason(dense_net([([[1e300]], [0.0])]))
    unbounded = Dense(np.ones((1, 1)), np.array([np.inf]))
    assert "exact mode" in reason(Network((Node(None, (), "x", (1,)), Node(unbounded, (0,), "y", (1,)))))


def test_literals_and_clips_in_integers():
    """|x| >= x + 1/5 fails left and right of 0 by a multiplier; a clip leaves nothing of a box that is cut away."""
    net = dense_net([([[1.0], [-1.0]], [0.0, 0.0]), ([[0.75, 1.0]], [0.0])])
    query = query_of(net, [-1], [1], [({0: F(-3, 4)}, {0: F(1)}, F(1, 5))])
    tree = build_tree((1, 0, 0.0, None, None), [Refutation(1, 0, (1.0,), beta=((1, 0.75),)), Refutation(2, 0, (1.0,))])
    assert check(proof_of(query, tree), query, exact=True) == check(proof_of(query, tree), query)


@pytest.mark.parametrize("bits", range(40, 58))
def test_an_interval_image_without_room_is_refused(bits):
    """On boxes larger than those the scale was chosen for the image's sums would wrap around."""
    wide = [[1.0, 1.0]], [0.0]
    net = dense_net([wide, ([[2.0**14]], [0.0]), ([[1.0]], [0.0])], TwoPiece(0.0, 1.0))
    small = query_of(net, [0, 0], [2.0**-20, 2.0**-20], [({}, {0: F(1)}, F(0))]).cases[0].box
    enclosure = ExactEnclosure(net, [small])
    size = 2.0 ** (bits - enclosure.scale)
    far, every = np.full((1, enclosure.width), np.inf), np.ones(1, dtype=bool)
    box = np.zeros((1, 2)), np.full((1, 2), size)
    try:
        frame, _ = enclosure.sweep(box, -far, far.copy(), ~every, every)
    except ProofError as error:
        assert "too large" in str(error)
    else:
        assert frame.upper[-1][0, 0] >= size * 2.0**15  # the value at the far corner
