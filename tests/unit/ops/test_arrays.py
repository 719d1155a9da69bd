"""The same numeric code in float32 and on PyTorch: results agree with float64 in NumPy, bounds stay sound."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from effort import effort
from examples import model, query_of, text
from handmade import chain, model_bytes, one, random_layers
from samples import random_sample

from mucg4.bound.compute import Compute
from mucg4.bound.objective import Objective, clip_box
from mucg4.bound.propagate import Bounder
from mucg4.bound.reduced import Reduced, ReducedDuals
from mucg4.check.walk import check
from mucg4.errors import InputError
from mucg4.model.network import Network, Node
from mucg4.model.query import Query
from mucg4.model.verdict import Safe
from mucg4.ops.affine import Concat, Dense, Index, Place, Reduce, RowDense, Scale, Sum
from mucg4.ops.arrays import NUMPY, Backend, backend_of, largest_of_runs
from mucg4.ops.conv import Conv, ConvTranspose, Window
from mucg4.ops.curves import GELU, GELU_TANH, HARD_SWISH, MISH, SILU, SOFTPLUS, Elu
from mucg4.ops.piecewise import RELU, TwoPiece
from mucg4.ops.smooth import ATAN, ERF, SIGMOID, SOFTSIGN, TANH
from mucg4.ops.steps import FLOOR, ROUND, SIGN, Trunc
from mucg4.settings import Settings
from mucg4.verify import replay, verify
from unit.ops.test_base import AFFINE, boxes

ROOM = {"float64": 1e-10, "float32": 1e-3}


@pytest.fixture(params=["numpy float64", "numpy float32", "cpu float64", "cpu float32"])
def backend(request) -> Backend:
    device, dtype = request.param.split()
    if device == "cpu":
        pytest.importorskip("torch")
    return Backend(dtype, None if device == "numpy" else device)


def plain(a) -> np.ndarray:
    return NUMPY.place(a)


def same_place(a, backend) -> bool:
    return backend_of(a) == backend


def mixed_network(seed) -> Network:
    """A graph with every kind of operator, weights as stored in float32."""
    rng = np.random.default_rng(seed)

    def w(*shape):
        return rng.normal(size=shape).astype(np.float32).astype(np.float64)

    wide, back = Window(2, 4, 4, (3, 3), pads=(1, 1, 1, 1)), Window(2, 5, 5, (2, 2), (1, 1), (0, 0, 0, 0))
    grouped = Window(4, 4, 4, (2, 2), (2, 2), group=2)
    nodes = [
        Node(None, (), "x", (2, 4, 4)),
        Node(Scale(w(32), w(32)), (0,), "scaled", (32,)),
        Node(Conv(wide, w(4, 2, 3, 3), w(64)), (1,), "conv", (64,)),
        Node(RELU, (2,), "relu", (64,)),
        Node(Conv(grouped, w(2, 2, 2, 2)), (3,), "grouped", (8,)),
        Node(TwoPiece(0.1, 1.0), (4,), "leaky", (8,)),
        Node(Index(rng.integers(0, 64, size=32), 64), (3,), "gathered", (32,)),
        Node(ConvTranspose(back, w(2, 2, 2, 2)), (6,), "transposed", (50,)),
        Node(TwoPiece(-1.0, 1.0), (7,), "abs", (50,)),
        Node(Concat((8, 50)), (5, 8), "joined", (58,)),
        Node(Place(np.arange(1, 59), np.r_[0.5, np.zeros(58), -1.0]), (9,), "padded", (60,)),
        Node(RowDense(w(4, 20), 3), (10,), "rows", (12,)),
        Node(TANH, (11,), "tanh", (12,)),
        Node(Index(np.array([11, 0, 5, 7, 2, 1, 10, 9, 8, 3, 4, 6]), 12), (12,), "shuffled", (12,)),
        Node(Sum((1.0, -0.5)), (12, 13), "sum", (12,)),
        Node(SIGMOID, (14,), "sigmoid", (12,)),
        Node(Reduce((3, 4), (1,), 0.25), (15,), "mean", (3,)),
        Node(Dense(w(2, 3), w(2)), (16,), "y", (2,)),
    ]
    return Network(tuple(nodes))


def samples(lo, hi, count, rng):
    """Random points of the box, corners among them; exactly inside."""
    share = rng.random((count, len(lo)))
    share[::3] = np.round(share[::3])
    return np.clip(lo + share * (hi - lo), lo, hi)


@pytest.mark.parametrize("op, sizes, outs", AFFINE, ids=lambda v: getattr(v, "kind", None))
def test_affine_maps(op, sizes, outs, backend):
    rng = np.random.default_rng(1)
    there = op.cast(backend)
    xs, a = [rng.normal(size=(7, n)) for n in sizes], rng.normal(size=(9, outs))
    ys = [backend.array(x) for x in xs]
    pairs = [(there.linear(ys), op.linear(xs)), (there.apply(ys), op.apply(xs))]
    pairs += list(zip(there.adjoint(backend.array(a)), op.adjoint(a), strict=True))
    pairs += [(there.magnitude([abs(y) for y in ys]), op.magnitude([abs(x) for x in xs]))]
    for got, want in pairs:
        assert same_place(got, backend)
        np.testing.assert_allclose(plain(got), want, rtol=0, atol=ROOM[backend.dtype] / 100)
    assert there.fan_in == op.fan_in


SMOOTH = [SOFTPLUS, ERF, SOFTSIGN, ATAN, Elu(0.3), Elu(1.7), HARD_SWISH, GELU, GELU_TANH, SILU, MISH]


@pytest.mark.parametrize(
    "op",
    [SIGMOID, TANH, RELU, TwoPiece(0.1, 1.0), TwoPiece(-1.0, 1.0), SIGN, FLOOR, ROUND, Trunc(), *SMOOTH],
    ids=str,
)
@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
def test_relaxations_contain_samples(op, scale, backend):
    lo, hi = boxes(scale)
    low, high = backend.below(lo), backend.above(hi)
    lines, (least, most) = op.relax([low[None]], [high[None]]), op.interval([low[None]], [high[None]])
    parts = (lines.lower_slopes[0], lines.lower_offset, lines.upper_slopes[0], lines.upper_offset, least, most)
    assert all(same_place(p, backend) for p in parts)
    below, under, above, over, least, most = (plain(p).astype(np.float64) for p in parts)
    a, b = (plain(v).astype(np.float64) for v in (low, high))
    x = np.clip(a + np.linspace(0, 1, 301)[:, None] * (b - a), a, b)
    f = op.apply([x])
    room = 16 * backend.precision.unit * (abs(x) * np.maximum(abs(above), abs(below)) + abs(f) + abs(over) + abs(under))
    room += 1e-37
    assert np.all(least - room <= f) and np.all(f <= most + room)
    assert np.all(below * x + under <= f + room) and np.all(above * x + over >= f - room)


@pytest.mark.parametrize("seed", range(3))
def test_bounds_of_a_network_with_every_operator(seed, backend):
    rng = np.random.default_rng(seed)
    net = mixed_network(seed)
    lo = rng.normal(size=32)
    hi = lo + rng.uniform(0, 0.3, size=32)
    rows = [({0: 1}, {0: Fraction(1, 10), 1: -1}, Fraction(3, 7), False), ({}, {1: 1}, -2, False)]
    case = one(net, lo.tolist(), hi.tolist(), rows).cases[0]
    x = samples(case.box.lo, case.box.hi, 500, rng)
    values = net.values(x)
    bounder, objective = Bounder(net.cast(backend), case.box.lo, case.box.hi), Objective(case, backend)
    root = bounder.root()
    refreshed = bounder.refresh(root, keep_rows=True)
    bounder.tighten_scales(root)
    for k in bounder.pre:
        low, up = (plain(b)[0] for b in bounder.pre_bounds(root, k))
        assert same_place(root.low, backend)
        assert np.all(low <= values[k]) and np.all(values[k] <= up)
    evaluation = objective.evaluate(bounder, root, refreshed, backend.place(np.ones((1, 1), dtype=bool)), trace=True)
    g = x @ case.conjunctions[0].x_coeffs.T + values[-1] @ case.conjunctions[0].y_coeffs.T
    g = g + case.conjunctions[0].constants
    value = plain(evaluation.value)[0].astype(np.float64)
    assert np.all(value <= g.min(axis=0))
    for m in range(2):  # the linear bound behind it
        line = x @ plain(evaluation.coeffs)[0, m].astype(np.float64) + float(evaluation.offset[0, m])
        assert np.all(line <= g[:, m] + 16 * backend.precision.unit * (1 + abs(line)))
    exact = Bounder(net, case.box.lo, case.box.hi)
    there = exact.root()
    reference = Objective(case).evaluate(exact, there, exact.refresh(there), np.ones((1, 1), dtype=bool)).value[0]
    np.testing.assert_allclose(value, reference, rtol=0, atol=10 * ROOM[backend.dtype] * (1 + abs(reference).max()))
    assert float(objective.best(evaluation.value)[0, 0]) == value.max().astype(backend.dtype)


def exact_chain(layers, x):
    """Outputs of a ReLU chain in rational arithmetic."""
    h = [Fraction(v) for v in x]
    for i, (weight, bias) in enumerate(layers):
        h = [
            sum((Fraction(w) * v for w, v in zip(row, h, strict=True)), Fraction(b))
            for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        h = [max(v, Fraction(0)) for v in h] if i + 1 < len(layers) else h
    return h


@pytest.mark.parametrize("seed", range(4))
def test_points_in_rational_arithmetic(seed, backend):
    """On a point everything but rounding is exact; weights are float64 numbers that float32 cannot hold."""
    rng = np.random.default_rng(seed)
    layers = [(w * 10.0 ** rng.integers(-3, 4), b) for w, b in random_layers(seed, (5, 9, 7, 3))]
    net = chain(layers, np.float64)
    x = rng.normal(size=5)
    y = exact_chain(layers, x.tolist())
    rows = [({}, {0: 1, 1: -1}, 0, False), ({}, {2: Fraction(1, 3)}, Fraction(-1, 7), False)]
    want = [y[0] - y[1], y[2] / 3 - Fraction(1, 7)]
    case = one(net, x.tolist(), x.tolist(), rows).cases[0]
    bounder, objective = Bounder(net.cast(backend), x, x), Objective(case, backend)
    root = bounder.root()
    refreshed = bounder.refresh(root)
    bounder.tighten_scales(root)
    value = objective.evaluate(bounder, root, refreshed, backend.place(np.ones((1, 1), dtype=bool))).value[0]
    for got, exact in zip(plain(value).tolist(), want, strict=True):
        assert Fraction(got) <= exact
        assert exact - Fraction(got) < ROOM[backend.dtype] * (100 + 100 * max(map(abs, y)))


def test_weights_out_of_the_range_of_float32(backend):
    """Tiny weights stay sound, huge ones close nothing, rows of zeros stay exactly zero."""
    tiny = [(np.array([[1e-40, 0.0], [1e-300, -1e-42], [0.0, 0.0]]), np.array([1e-41, 0.0, 0.0]))]
    net = chain([*tiny, (np.array([[1e38, 1e30, 1.0]]), np.zeros(1))], np.float64)
    bounder = Bounder(net.cast(backend), np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
    root = bounder.root()
    bounder.refresh(root)
    low, up = plain(root.low)[0], plain(root.up)[0]
    assert low[0] <= -9e-41 and up[0] >= 1.1e-40 and low[1] <= -1e-42 and up[1] >= 1e-42
    assert low[2] == up[2] == 0.0
    huge = chain([(np.array([[1e300, 1.0]]), np.zeros(1)), (np.ones((1, 1)), np.zeros(1))], np.float64)
    case = one(huge, [-1, -1], [1, 1], [({}, {0: -1}, 1, False)]).cases[0]
    with np.errstate(all="ignore"):
        bounder, objective = Bounder(huge.cast(backend), case.box.lo, case.box.hi), Objective(case, backend)
        root = bounder.root()
        refreshed = bounder.refresh(root)
        value = objective.evaluate(bounder, root, refreshed, backend.place(np.ones((1, 1), dtype=bool))).value
        assert not bool((value > 0).any())
        assert not bool(root.empty().any())
    assert plain(root.low)[0, 0] < 0 < plain(root.up)[0, 0]


def test_boxes_are_rounded_outward(backend):
    values = np.r_[np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-20, 20).repeat(25), 0.1, 0.0, -1e-46]
    low, high = (plain(f(values)).astype(np.float64) for f in (backend.below, backend.above))
    assert np.all(low <= values) and np.all(values <= high)
    assert np.all(high - low <= 4 * backend.precision.unit * abs(values) + 1e-44)
    if backend.dtype == "float32":
        edge = np.array([1e300, -1e300])
        assert plain(backend.below(edge)).tolist() == [np.finfo(np.float32).max, -np.inf]
        assert plain(backend.above(edge)).tolist() == [np.inf, np.finfo(np.float32).min]


def test_clip_keeps_every_unsafe_point(backend):
    rng = np.random.default_rng(3)
    net = chain(random_layers(3, (4, 6, 1)))
    bounder = Bounder(net.cast(backend), -np.ones(4), np.ones(4))
    regions = bounder.root().take(backend.place(np.zeros(50, dtype=int)))
    coeffs, offset = rng.normal(size=(50, 4)) * 10.0 ** rng.integers(-6, 4, size=(50, 1)), rng.normal(size=50)
    coeffs[::5, 1] = 0.0
    coeffs, offset = (plain(backend.array(v)) for v in (coeffs, offset))
    clip_box(regions, backend.array(coeffs), backend.array(offset), backend.place(np.arange(50)))
    x = rng.uniform(-1, 1, size=(2000, 4))
    unsafe = x @ coeffs.T.astype(np.float64) + offset <= 0
    lo, hi = plain(regions.lo), plain(regions.hi)
    inside = np.all((x[:, None] >= lo) & (x[:, None] <= hi), axis=2)
    assert np.all(inside | ~unsafe)
    assert np.any(~inside)


def test_a_cast_network_is_made_once_and_remembers_its_origin(backend):
    net = mixed_network(0)
    there = net.cast(backend)
    assert net.cast(backend) is there and there.cast(NUMPY) is net
    assert there.fingerprint == net.fingerprint and there.signature == net.signature
    x = np.random.default_rng(0).normal(size=(5, 32))
    assert same_place(there(x), backend)
    np.testing.assert_allclose(plain(there(x)), net(x), rtol=0, atol=ROOM[backend.dtype])


def test_largest_of_runs_of_any_length(backend):
    a = backend.array(np.array([[1.0, 5.0, -2.0, -3.0, -np.inf, 7.0]]))
    assert plain(largest_of_runs(a, np.array([0, 2, 5, 6]))).tolist() == [[5.0, -2.0, 7.0]]


def test_what_a_backend_refuses():
    with pytest.raises(InputError, match="float64 or float32"):
        Backend("float16")
    try:
        import torch
    except ImportError:
        with pytest.raises(InputError, match="needs PyTorch"):
            Backend("float64", "cpu")
    else:
        Backend("float32", "cpu")
        assert not torch.backends.cuda.matmul.allow_tf32
        if not torch.cuda.is_available():
            with pytest.raises(InputError, match="no usable GPU"):
                Backend("float64", "cuda")


# -- whole runs on a device ---------------------------------------------------------------------------------------


def conv_query(seed, share) -> Query:
    """A convolution, a skip connection and a dense end; the threshold is a share of the sampled range."""
    rng = np.random.default_rng(seed)

    def w(*shape):
        return rng.normal(size=shape).astype(np.float32)

    nodes = [
        ("Conv", "x k0 b0", "c0", {"pads": [1, 1, 1, 1]}),
        ("Relu", "c0", "h0", None),
        ("Conv", "h0 k1 b1", "c1", {"pads": [1, 1, 1, 1]}),
        ("Add", "c1 h0", "s", None),
        ("Relu", "s", "h1", None),
        ("Flatten", "h1", "f", None),
        ("Gemm", "f w b", "y", {"transB": 1}),
    ]
    tensors = {"k0": w(2, 1, 3, 3), "b0": w(2), "k1": w(2, 2, 3, 3), "b1": w(2), "w": w(1, 32), "b": w(1)}
    data = model(nodes, tensors, 16, 1, shape=[1, 1, 4, 4])
    box = [(float(c - 0.15), float(c + 0.15)) for c in rng.uniform(-1, 1, 16).round(3)]
    free = query_of(data, text(box, 1, "(<= Y_0 0.0)"))
    y = free.network(samples(free.cases[0].box.lo, free.cases[0].box.hi, 2000, rng)).ravel()
    bound = y.min() - share * (y.max() - y.min())
    return query_of(data, text(box, 1, f"(<= Y_0 {bound:.6f})"))


def same_answers(query, **options) -> set[str]:
    """The verdict of NumPy and of PyTorch on the CPU; proofs of the latter are accepted by the checker."""
    words = set()
    for device in ("", "cpu"):
        verdict = verify(query, Settings(device=device, workers=1, **options), budget=effort())
        words.add(verdict.word)
        if isinstance(verdict, Safe):
            assert check(verdict.proof, query).accepted, device
    return words


@pytest.fixture
def apart(monkeypatch):
    """As if the device had memory of its own: arrays cross only by `Backend.place`, which copies them."""
    torch = pytest.importorskip("torch")
    place, convert, inside = Backend.place, torch.Tensor.__array__, []

    def copying(self, values):
        inside.append(True)
        try:
            out = place(self, values)
            return out if type(out) is type(values) else (out.copy() if isinstance(out, np.ndarray) else out.clone())
        finally:
            inside.pop()

    def guarded(self, *args, **more):
        assert inside, "a tensor met NumPy outside Backend.place"
        return convert(self, *args, **more)

    monkeypatch.setattr(Backend, "place", copying)
    monkeypatch.setattr(torch.Tensor, "__array__", guarded)


@pytest.mark.parametrize("split, share", [("phase", 0.5), ("phase", -0.02), ("input", 0.9)])
def test_memory_of_its_own(split, share, apart):
    words = same_answers(conv_query(1, share), split=split, attack=share < 0)
    assert words == ({"sat"} if share < 0 else {"unsat"})
    for seed in (1, 5, 8, 10):
        sample = replace(random_sample(seed), split=split)
        assert len(same_answers(query_of(sample.onnx(), sample.vnnlib()), split=split)) == 1


@pytest.mark.parametrize("split", ["input", "phase"])
@pytest.mark.parametrize("seed", range(12))
def test_random_networks_on_a_device(seed, split):
    pytest.importorskip("torch")
    sample = replace(random_sample(seed), split=split)
    assert len(same_answers(query_of(sample.onnx(), sample.vnnlib()), split=split)) == 1


@pytest.mark.parametrize("attack", [True, False])
@pytest.mark.parametrize("split, share", [("phase", 0.5), ("phase", -0.02), ("input", 0.9)])
def test_convolutions_on_a_device(split, share, attack):
    pytest.importorskip("torch")
    words = same_answers(conv_query(1, share), split=split, attack=attack or share < 0)
    assert words == ({"sat"} if share < 0 else {"unsat"})


@pytest.mark.parametrize("activation", ["Sigmoid", "Tanh"])
def test_smooth_functions_on_a_device(activation):
    pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    layers = random_layers(5, (3, 6, 6, 1))
    data = model_bytes(layers, activation=activation)
    box = [(-0.4, 0.4)] * 3
    y = query_of(data, text(box, 1, "(<= Y_0 0.0)")).network(rng.uniform(-0.4, 0.4, (2000, 3)))
    query = query_of(data, text(box, 1, f"(<= Y_0 {y.min() - 0.3 * (y.max() - y.min()):.6f})"))
    for split in ("input", "phase"):
        assert same_answers(query, split=split) == {"unsat"}


def test_a_device_keeps_to_one_process(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    verdict = verify(conv_query(1, 0.5), Settings(device="cpu", workers=4, split="phase"))
    assert verdict.word == "unsat"


def test_arrays_and_rows_of_a_device_come_back_as_numpy():
    """The two boundaries: the compute of a bounder, and the reduced network."""
    pytest.importorskip("torch")
    query = conv_query(2, 0.02)
    case, backend = query.cases[0], Backend("float64", "cpu")
    bounder, objective = Bounder(query.network, case.box.lo, case.box.hi), Objective(case)
    found = []
    for there in (NUMPY, backend):
        compute, root = Compute.of(bounder, objective, there), bounder.root()
        regions, _ = compute.refresh(root)
        assert isinstance(root.low, np.ndarray) and same_place(regions.low, there)
        red = Reduced.build(compute.bounder, root).constrained(compute.objective, 0)
        lines = red.lines(root.low[:, red.positions], root.up[:, red.positions])
        assert same_place(lines.upper, Backend("float32", there.device))
        alpha = red.default_alpha(lines)
        rows = ReducedDuals(np.ones((1, 1), dtype=np.float32), alpha, 0 * alpha, 0 * alpha)
        best, top = red.ascend(rows, lines, 8, simplex=True)
        assert all(isinstance(a, np.ndarray) for a in (best.alpha, best.beta, best.weights, top.value, top.on))
        found.append((root.low, root.up, red.a, red.mix, top.value))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_a_device_that_is_not_there(monkeypatch):
    query = conv_query(0, 0.02)
    try:
        import torch
    except ImportError:
        with pytest.raises(InputError, match=r"needs PyTorch: pip install mucg4\[torch\]"):
            verify(query, Settings(device="cpu"))
    else:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(InputError, match="no usable GPU"):
            verify(query, Settings(device="cuda"))
    with pytest.raises(InputError, match="device must be one of"):
        Settings(device="tpu")


def test_replay_with_a_device_says_what_stays_in_numpy():
    pytest.importorskip("torch")
    query = conv_query(1, 0.5)
    proof = verify(query, Settings(device="cpu", split="phase")).proof
    again = replay(proof, query, Settings(device="cpu", split="phase"))
    assert again.word == "unsat" and any("in NumPy" in w for w in again.statistics.warnings)
    assert not replay(proof, query, Settings(split="phase", workers=1)).statistics.warnings
