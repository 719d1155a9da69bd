"""Operators: the adjoint is the transpose, the magnitude is |W| x, relaxations contain dense samples."""

from __future__ import annotations

import numpy as np
import pytest

from mucg4.errors import InputError
from mucg4.ops.affine import Concat, Dense, Index, Place, Reduce, RowDense, Scale, Sum
from mucg4.ops.arrays import distinct, distinct_places, median
from mucg4.ops.conv import Conv, ConvTranspose, Window
from mucg4.ops.curves import EXP, GELU
from mucg4.ops.piecewise import RELU, TwoPiece
from mucg4.ops.smooth import ATAN, SIGMOID, TANH

rng = np.random.default_rng(5)
WINDOWS = [
    Window(2, 5, 6, (3, 2)),
    Window(3, 7, 7, (3, 3), (2, 2), (1, 0, 2, 1)),
    Window(4, 6, 5, (2, 3), (1, 2), (1, 1, 1, 1), (2, 1), 2),
    Window(3, 4, 4, (1, 1)),
    Window(3, 4, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 3),
    Window(2, 1, 9, (1, 4), (1, 3), (0, 1, 0, 0)),
]


def _convolutions():
    for w in WINDOWS:
        outs = 2 * w.group
        weight = rng.normal(size=(outs, w.channels // w.group, *w.kernel))
        n, m = w.channels * w.height * w.width, outs * w.positions
        yield Conv(w, weight, rng.normal(size=m)), [n], m
        yield ConvTranspose(w, weight, rng.normal(size=n)), [m], n


AFFINE = [
    (Dense(rng.normal(size=(4, 7)), rng.normal(size=4)), [7], 4),
    (Sum((1.0, -1.0, 2.0)), [5, 5, 5], 5),
    (Scale(rng.normal(size=6), rng.normal(size=6)), [6], 6),
    (Index(np.array([3, 0, 2]), 4), [4], 3),
    (Index(np.array([3, 0, 0, 2, 3, 0]), 5), [5], 6),
    (Concat((2, 3, 1)), [2, 3, 1], 6),
    (Place(np.array([4, 1]), np.array([1.0, 0, 2, 3, 0])), [2], 5),
    (RowDense(rng.normal(size=(2, 3)), 4), [12], 8),
    (Reduce((2, 3, 4), (1,), 0.5), [24], 8),
    (Reduce((2, 3, 4), (0, 2)), [24], 3),
    *_convolutions(),
]


def matrices(op, sizes):
    """The dense matrix of each input, from unit vectors."""
    out = []
    for k in range(len(sizes)):
        xs = [np.eye(n) if i == k else np.zeros((sizes[k], n)) for i, n in enumerate(sizes)]
        out.append(op.linear(xs).T)
    return out


@pytest.mark.parametrize("op, sizes, outs", AFFINE, ids=lambda v: getattr(v, "kind", None))
def test_affine_maps_agree_with_their_matrices(op, sizes, outs):
    dense = matrices(op, sizes)
    xs = [rng.normal(size=(9, n)) for n in sizes]
    a = rng.normal(size=(11, outs))
    bias = np.zeros(outs) if op.bias() is None else op.bias()
    assert np.allclose(op.linear(xs), sum(x @ w.T for x, w in zip(xs, dense, strict=True)))
    assert np.allclose(op.apply(xs), op.linear(xs) + bias)
    for part, w in zip(op.adjoint(a), dense, strict=True):
        assert np.allclose(part, a @ w)
    for mine, units in zip(op.matrices(outs), op.adjoint(np.eye(outs)), strict=True):
        assert np.array_equal(mine, units)
    sizes_of_terms = sum(abs(x) @ abs(w).T for x, w in zip(xs, dense, strict=True))
    assert np.allclose(op.magnitude([abs(x) for x in xs]), sizes_of_terms)
    assert np.all((np.zeros(outs) if op.bias_magnitude() is None else op.bias_magnitude()) >= abs(bias))
    longest = max(np.count_nonzero(w, axis=axis).max() for w in dense for axis in (0, 1))
    assert op.fan_in >= longest


def test_convolution_in_chunks_equals_one_piece(monkeypatch):
    op, sizes, outs = AFFINE[-9]
    x, a = rng.normal(size=(23, sizes[0])), rng.normal(size=(23, outs))
    whole = op.linear([x]), op.adjoint(a)[0]
    monkeypatch.setattr("mucg4.ops.conv.CHUNK_ELEMENTS", 1)
    assert np.allclose(op.linear([x]), whole[0]) and np.allclose(op.adjoint(a)[0], whole[1])


def test_impossible_windows_are_refused():
    with pytest.raises(InputError, match="kernel is larger"):
        Window(1, 2, 2, (3, 3))
    with pytest.raises(InputError, match="groups"):
        Window(3, 4, 4, (1, 1), group=2)
    with pytest.raises(InputError, match="does not fit"):
        Conv(Window(3, 4, 4, (1, 1)), np.ones((2, 2, 1, 1)))


def boxes(scale):
    centre = rng.normal(size=400) * scale
    radius = 10.0 ** rng.uniform(-14, 1.5, size=400)
    lo, hi = centre - radius, centre + radius
    special = [
        (-1.0, 1.0),
        (0.0, 0.0),
        (-3.0, 0.0),
        (0.0, 3.0),
        (-800.0, 900.0),
        (-1e-9, 2e-9),
        (5.0, 5.0),
        (-40.0, -30.0),
    ]
    far = [(600.0, 900.0), (-900.0, -600.0), (-0.1, 30.0), (-30.0, 0.1), (-1e-200, 1e-200)]
    return np.array([*zip(lo, hi, strict=True), *special, *far]).T


@pytest.mark.parametrize(
    "op", [SIGMOID, TANH, RELU, TwoPiece(0.25, 1.0), TwoPiece(-1.0, 1.0)], ids=lambda o: f"{o.kind}"
)
@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
def test_relaxation_and_interval_contain_dense_samples(op, scale):
    lo, hi = boxes(scale)
    t = np.linspace(0, 1, 501)[:, None]
    x = np.clip(lo + t * (hi - lo), lo, hi)
    f = op.apply([x])
    lines = op.relax([lo[None]], [hi[None]])
    low, up = op.interval([lo[None]], [hi[None]])
    room = 2.0**-48 * (abs(x) + 1)
    assert np.all(low - room <= f) and np.all(f <= up + room)
    assert np.all(lines.lower_slopes[0] * x + lines.lower_offset <= f + room)
    assert np.all(lines.upper_slopes[0] * x + lines.upper_offset >= f - room)
    if op in (SIGMOID, TANH):  # these move offsets outward themselves: no room needed beyond the product's rounding
        tiny = 2.0**-50 * (abs(lines.upper_slopes[0] * x) + abs(f))
        assert np.all(lines.upper_slopes[0] * x + lines.upper_offset >= f - tiny)


@pytest.mark.parametrize("op", [SIGMOID, TANH])
def test_smooth_lines_are_tight(op):
    """The lines touch the curve, and on small boxes they are its tangent up to second order."""
    lo, hi = np.sort(rng.normal(size=(2, 300)) * 3, axis=0)
    x = lo + np.linspace(0, 1, 2001)[:, None] * (hi - lo)
    f, lines = op.apply([x]), op.relax([lo], [hi])
    above = (lines.upper_slopes[0] * x + lines.upper_offset - f).min(axis=0)
    below = (f - lines.lower_slopes[0] * x - lines.lower_offset).min(axis=0)
    assert np.all(above < 1e-5 * (1 + hi - lo)) and np.all(below < 1e-5 * (1 + hi - lo))
    mid = rng.normal(size=50)
    near = op.relax([mid - 1e-4], [mid + 1e-4])
    gap = (near.upper_slopes[0] - near.lower_slopes[0]) * mid + near.upper_offset - near.lower_offset
    assert np.all(gap < 1e-8)


@pytest.mark.parametrize("op", [SIGMOID, TANH])
def test_smooth_lines_on_unbounded_boxes_are_constants(op):
    lo, hi = np.array([-np.inf, -np.inf, 1.0]), np.array([np.inf, 0.0, np.inf])
    lines = op.relax([lo], [hi])
    assert not np.any(lines.lower_slopes[0]) and not np.any(lines.upper_slopes[0])
    low, up = op.interval([lo], [hi])
    assert np.array_equal(lines.lower_offset, low) and np.array_equal(lines.upper_offset, up)
    assert np.all(np.isfinite(lines.lower_offset)) and np.all(np.isfinite(lines.upper_offset))


def test_what_stands_for_functions_of_numpy_does_the_same():
    for n in range(1, 12):
        values = rng.normal(size=(4, n))
        values[1, n // 2], values[2, -1] = np.nan, np.inf
        np.testing.assert_array_equal(median(values), np.median(values, axis=1))
        whole = rng.integers(-3, 4, n * n - 1)
        np.testing.assert_array_equal(distinct(whole), np.unique(whole))
        row = whole.reshape(-1)
        for mine, other in zip(
            distinct_places(row), np.unique(row, return_index=True, return_inverse=True), strict=True
        ):
            np.testing.assert_array_equal(mine, other)


def test_slopes_on_wide_boxes_do_not_depend_on_rounding():
    rng = np.random.default_rng(5)
    lo = rng.normal(size=(1, 400)) * 10.0 ** rng.integers(-1, 3, size=(1, 400))
    hi = lo + rng.uniform(0.2, 30, size=(1, 400))
    near = lo - 1e-13 * abs(lo), hi + 1e-13 * abs(hi)
    for op in (SIGMOID, ATAN, GELU, EXP):
        one, other = op.relax([lo], [hi]), op.relax([near[0]], [near[1]])
        assert np.array_equal(one.lower_slopes[0], other.lower_slopes[0])
        assert np.array_equal(one.upper_slopes[0], other.upper_slopes[0])
        noise = 1e-14 * (1 + abs(one.lower_offset) + abs(one.upper_offset))
        assert np.all(other.lower_offset <= one.lower_offset + noise)
        assert np.all(other.upper_offset >= one.upper_offset - noise)
