"""Deviation bounds hold for executions in any order of summation, against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from effort import effort
from handmade import chain, one, random_layers

from mucg4.check.deviation import LIBRARY, Arithmetic, Deviation
from mucg4.check.enclose import Enclosure
from mucg4.check.executions import check_executions
from mucg4.check.walk import check
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.model.network import Network, Node
from mucg4.model.proof import Proof, Refutation, single_leaf
from mucg4.model.query import Box, Case, Conjunction
from mucg4.model.verdict import Safe
from mucg4.ops.affine import Concat, Dense, Index, Scale, Sum
from mucg4.ops.base import Affine
from mucg4.ops.bilinear import PRODUCT
from mucg4.ops.conv import Conv, Window
from mucg4.ops.piecewise import RELU, TwoPiece
from mucg4.precision import enlarged_query, settle
from mucg4.read.onnx import read_network, read_operators
from mucg4.search.cancel import float_witness
from mucg4.settings import Settings
from mucg4.verify import verify

F = Fraction


def rounded(value: Fraction) -> Fraction:
    """The nearest float32 of an exact number, ties to even, denormals kept."""
    if not value:
        return F(0)
    shift = abs(value).numerator.bit_length() - abs(value).denominator.bit_length()
    for e in (shift - 1, shift, shift + 1):
        if F(2) ** e <= abs(value) < F(2) ** (e + 1):
            step = F(2) ** (max(e, -126) - 23)
            return round(value / step) * step
    raise AssertionError


def total(terms, random):
    """A sum of products `(a, b)` in float32: any tree of additions, some of them fused with a product."""
    numbers = [t if random.random() < 0.3 else rounded(t[0] * t[1]) for t in terms if t[0] and t[1]]
    order = random.integers(4)
    if order == 0:
        numbers.sort(key=lambda t: -abs(t[0] * t[1] if isinstance(t, tuple) else t))
    while len(numbers) > 1:
        if order > 1:
            random.shuffle(numbers)
        a, b = numbers[:2] if order != 1 else numbers[-2:]
        rest = numbers[2:] if order != 1 else numbers[:-2]
        if isinstance(a, tuple) and isinstance(b, tuple):
            a = rounded(a[0] * a[1])
        exact = [t[0] * t[1] if isinstance(t, tuple) else t for t in (a, b)]
        numbers = [rounded(exact[0] + exact[1]), *rest] if random.random() < 0.5 else [*rest, rounded(sum(exact))]
    last = numbers[0] if numbers else F(0)
    return rounded(last[0] * last[1]) if isinstance(last, tuple) else last


def matrices(network):
    """Per affine node the rows `[(input, component, weight)], offset`, exact."""
    out = {}
    for k, node in enumerate(network.nodes):
        if not isinstance(node.op, Affine):
            continue
        rows = [[] for _ in range(node.size)]
        sizes = [network.nodes[i].size for i in node.inputs]
        for j, i in enumerate(node.inputs):
            units = [np.eye(sizes[j]) if q == j else np.zeros((sizes[j], s)) for q, s in enumerate(sizes)]
            image = node.op.linear(units)
            for component, row in zip(*np.nonzero(image), strict=True):
                rows[row].append((i, int(component), F(float(image[component, row]))))
        b = node.op.bias()
        out[k] = rows, [F(0)] * node.size if b is None else [F(float(v)) for v in b]
    return out


def execute(network, x, tables, random=None):
    """All outputs at x: exactly, or in float32 with random orders of summation."""
    values = [[F(float(v)) for v in x]]
    for k, node in enumerate(network.nodes[1:], 1):
        args = [values[i] for i in node.inputs]
        if k in tables:
            rows, offsets = tables[k]
            out = []
            for row, offset in zip(rows, offsets, strict=True):
                terms = [(w, values[i][c]) for i, c, w in row] + [(F(1), offset)]
                out.append(sum(a * b for a, b in terms) if random is None else total(terms, random))
        elif node.op.kind == "Product":
            out = [a * b for a, b in zip(*args, strict=True)]
        else:
            left, right = F(node.op.left), F(node.op.right)
            out = [max(left * z, right * z) for z in args[0]]
        values.append(out if random is None else [rounded(v) for v in out])
    return values[-1]


def singles(values):
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def dense(random, m, n, scale=1.0):
    weight = random.normal(size=(m, n)) * scale * (random.random((m, n)) < 0.8)
    return Dense(singles(weight), singles(random.normal(size=m)))


def random_network(seed):
    """Dense, convolutional, residual and product networks, some with large terms that cancel."""
    random = np.random.default_rng(seed)
    n = 4
    nodes = [Node(None, (), "x", (n,))]

    def add(op, inputs, size):
        nodes.append(Node(op, inputs, f"v{len(nodes)}", (size,)))
        return len(nodes) - 1

    at, size = 0, n
    if seed % 3 == 1:
        window = Window(1, 2, 2, (2, 2), (1, 1), (1, 0, 1, 0))
        weight = singles(random.normal(size=(2, 1, 2, 2)))
        size = 2 * window.positions
        at = add(Conv(window, weight, singles(random.normal(size=size))), (0,), size)
        at = add(TwoPiece(float(np.float32(0.1)), 1.0) if seed % 2 else RELU, (at,), size)
    for _ in range(2):
        before, width = at, int(random.integers(3, 7))
        at = add(dense(random, width, size), (at,), width)
        if seed % 4 == 3:
            big = singles([2.0 ** random.integers(10, 30)])[0]
            at = add(Scale(np.ones(width), np.full(width, big)), (at,), width)
            at = add(Scale(np.ones(width), np.full(width, -big)), (at,), width)
        at = add(RELU if seed % 2 else TwoPiece(-1.0, 1.0), (at,), width)
        if seed % 5 == 2:
            other = add(dense(random, width, size), (before,), width)
            at = add(PRODUCT if seed % 2 else Sum((1.0, -1.0)), (at, other), width)
        if seed % 5 == 4:
            at = add(Index(np.arange(width)[::-1].copy(), width), (at,), width)
            at = add(Concat((width, size)), (at, before), width + size)
            width += size
        size = width
    add(dense(random, 2, size), (at,), 2)
    radius = 10.0 ** random.uniform(-4, 0.5)
    centre = random.normal(size=n)
    return Network(tuple(nodes)), singles(centre - radius), singles(centre + radius)


def case_of(network, lo, hi):
    rows = [({}, {0: F(1)}, F(0), False), ({}, {0: F(1), 1: F(-1)}, F(0), False), ({0: F(3)}, {1: F(2)}, F(1), False)]
    conj = [Conjunction.build(part, network.input_size, network.output_size) for part in (rows[:2], rows[2:])]
    return Case(Box(tuple(map(F, lo.tolist())), tuple(map(F, hi.tolist()))), tuple(conj))


def hulls(network, lo, hi, refresh=True):
    enclosure = Enclosure(network)
    far, on = np.full((1, enclosure.width), np.inf), np.ones(1, dtype=bool)
    with np.errstate(all="ignore"):
        frame, _ = enclosure.sweep((lo[None].copy(), hi[None].copy()), -far, far.copy(), on & refresh, on)
    return frame.lower, frame.upper


def test_rounding_of_the_test_itself():
    random = np.random.default_rng(0)
    for v in (random.normal(size=50) * 10.0 ** random.uniform(-44, 30, size=50)).tolist():
        assert float(rounded(F(v))) == float(np.float32(v))


@pytest.mark.parametrize("seed", range(20))
def test_every_order_of_summation_stays_within_the_bound(seed):
    network, lo, hi = random_network(seed)
    random, tables = np.random.default_rng(seed), matrices(network)
    case = case_of(network, lo, hi)
    d = Deviation(network).bound(*hulls(network, lo, hi), case)[0]
    assert d.shape == (3,) and np.all(np.isfinite(d)) and np.all(d > 0)
    for number in range(4):
        share = random.random(4) if number else random.integers(0, 2, size=4)
        x = np.clip((lo + share * (hi - lo)).astype(np.float32), lo, hi)
        exact = execute(network, x, tables)
        for _ in range(4):
            y = execute(network, x, tables, random)
            off = [abs(a - b) for a, b in zip(y, exact, strict=True)]
            off = [off[0], abs((y[0] - y[1]) - (exact[0] - exact[1])), 2 * off[1]]
            assert all(a <= F(float(b)) for a, b in zip(off, d, strict=True)), (off, d)


def test_it_is_sharp_where_rounding_shows():
    """Cancellation of 2 ** 24: the error is about 1, and the bound is not far above it."""
    big = 2.0**24
    steps = [Scale(np.ones(1), np.array([big])), Scale(np.ones(1), np.array([-big]))]
    network = Network((Node(None, (), "x", (1,)), *(Node(op, (k,), f"v{k}", (1,)) for k, op in enumerate(steps))))
    lo, hi = np.zeros(1), np.array([1.5])
    case = Case(Box((F(0),), (F(3, 2),)), (Conjunction.build([({}, {0: F(1)}, F(0), False)], 1, 1),))
    assert 0.5 <= Deviation(network).bound(*hulls(network, lo, hi), case)[0, 0] <= 16.0


def test_dead_and_stable_neurons_cost_what_they_weigh():
    """Rows of signs cancel: a network that is linear on the box is bounded by its product of matrices."""
    first = Dense(np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([8.0, 8.0]))
    last = Dense(np.array([[1.0, -1.0]]), np.zeros(1))
    nodes = (
        Node(None, (), "x", (2,)),
        Node(first, (0,), "z", (2,)),
        Node(RELU, (1,), "h", (2,)),
        Node(last, (2,), "y", (1,)),
    )
    network, (lo, hi) = Network(nodes), (-np.ones(2), np.ones(2))
    case = Case(Box((F(-1),) * 2, (F(1),) * 2), (Conjunction.build([({}, {0: F(1)}, F(0), False)], 2, 1),))
    bound = Deviation(network).bound(*hulls(network, lo, hi), case)[0, 0]
    assert bound <= 2.0**-24 * 256


def test_overflow_and_unknown_operators_have_no_bound():
    network = Network(
        (
            Node(None, (), "x", (1,)),
            Node(Scale(np.full(1, 1e8), np.zeros(1)), (0,), "a", (1,)),
            Node(Scale(np.full(1, 1e-8), np.zeros(1)), (1,), "b", (1,)),
        )
    )
    case = Case(Box((F(0),), (F(10) ** 31,)), (Conjunction.build([({}, {0: F(1)}, F(0), False)], 1, 1),))
    assert np.isinf(Deviation(network).bound(*hulls(network, np.zeros(1), np.full(1, 1e31)), case)).all()
    assert np.isfinite(Deviation(network).bound(*hulls(network, np.zeros(1), np.full(1, 1e20)), case)).all()


def model(nodes, constants, inputs=(1, 4)):
    from onnx import TensorProto, helper, numpy_helper

    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s)] for n, s in (("x", inputs), ("y", None))]
    made = [helper.make_node(op, list(i), [o], **a) for op, i, o, a in nodes]
    graph = helper.make_graph(made, "g", *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


def onnxruntime_stays_within(data, lo, hi, points=200):
    """The largest share of the bound that onnxruntime's deviation takes, over random points."""
    network, operators = read_network(data), read_operators(data)
    case = Case(
        Box(tuple(map(F, lo.tolist())), tuple(map(F, hi.tolist()))),
        (
            Conjunction.build(
                [({}, {i: F(1)}, F(0), False) for i in range(network.output_size)], len(lo), network.output_size
            ),
        ),
    )
    deviation = Deviation(operators.network, operators.twins, operators.roundings or 0)
    assert not deviation.reason
    d = deviation.bound(*hulls(network, lo, hi), case)[0]
    x = np.random.default_rng(1).uniform(lo, hi, size=(points, len(lo))).astype(np.float32)
    x = np.clip(x, lo, hi)
    off = abs(Runtime(network).single(x).astype(np.float64) - network(x.astype(np.float64)))
    return float((off / d).max())


FUNCTIONS = (
    "Sigmoid",
    "Tanh",
    "Erf",
    "Sin",
    "Cos",
    "Softplus",
    "Softsign",
    "Atan",
    "HardSwish",
    "Mish",
    "Elu",
    "Gelu",
    "Exp",
    "Log",
    "Reciprocal",
    "Sqrt",
    "Softmax",
    "LogSoftmax",
)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_functions_of_onnxruntime_stay_within_the_bound(op):
    random = np.random.default_rng(len(op))
    w = random.normal(size=(4, 4)).astype(np.float32)
    lo, hi = (
        (np.full(4, 0.5), np.full(4, 3.0))
        if op in ("Log", "Reciprocal", "Sqrt")
        else (np.full(4, -3.0), np.full(4, 5.0))
    )
    nodes = [(op, ["x"], "a", {}), ("MatMul", ["a", "w"], "y", {})]
    assert onnxruntime_stays_within(model(nodes, {"w": w}), lo, hi, 2000) <= 0.7


def test_folded_factors_stay_within_the_bound():
    """Convolution, BatchNormalization, pooling and constants that onnxruntime computes itself."""
    random = np.random.default_rng(3)
    part = {n: random.normal(size=3).astype(np.float32) * s for n, s in (("s", 1), ("b", 50), ("m", 50))}
    constants = {
        "w": random.normal(size=(3, 1, 2, 2)).astype(np.float32),
        "v": abs(part["s"]) + np.float32(0.01),
        **part,
        "c": np.float32(1 / 3),
        "e": np.full((1, 3, 1, 1), 0.7, dtype=np.float32),
        "u": random.normal(size=(12, 2)).astype(np.float32),
    }
    nodes = [
        ("Conv", ["x", "w"], "z", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ["z", "s", "b", "m", "v"], "n", {}),
        ("Mul", ["c", "e"], "f", {}),
        ("Add", ["n", "f"], "a", {}),
        ("Relu", ["a"], "r", {}),
        ("AveragePool", ["r"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Flatten", ["p"], "l", {}),
        ("MatMul", ["l", "u"], "y", {}),
    ]
    data = model(nodes, constants, (1, 1, 3, 3))
    operators = read_operators(data)
    assert operators.roundings is not None and 0 < operators.roundings <= 100
    assert -1 in operators.twins  # what is folded has no node in the network that is searched
    assert onnxruntime_stays_within(data, np.full(9, -1.0), np.full(9, 2.0)) <= 0.7


def test_operators_and_their_twins_have_the_same_values():
    random = np.random.default_rng(5)
    w, v = random.normal(size=(4, 4)).astype(np.float32), random.normal(size=(4, 3)).astype(np.float32)
    nodes = [
        ("Sub", ["x", "m"], "a", {}),
        ("MatMul", ["a", "w"], "b", {}),
        ("Add", ["b", "m"], "c", {}),
        ("Clip", ["c", "lo", "hi"], "d", {}),
        ("MatMul", ["d", "v"], "y", {}),
    ]
    data = model(
        nodes,
        {"w": w, "v": v, "m": random.normal(size=4).astype(np.float32), "lo": np.float32(-1), "hi": np.float32(1)},
    )
    network, operators = read_network(data), read_operators(data)
    x = random.normal(size=(5, 4))
    mine, others = operators.network.values(x), network.values(x)
    assert len(operators.network.nodes) > len(network.nodes)
    for k, twin in enumerate(operators.twins):
        assert twin < 0 or np.allclose(mine[k], others[twin], rtol=1e-12, atol=1e-12)
    assert operators.twins[0] == 0 and operators.twins[-1] == len(network.nodes) - 1


def test_arithmetic_of_double_and_the_library_constant():
    assert Arithmetic.of("float64").unit < Arithmetic.of("float32").unit
    assert np.isinf(Arithmetic.of("float32").gamma(2.0**24)) and LIBRARY >= 8


# --- proofs that hold for executions -------------------------------------------------------------------------------


def solved(query):
    """The proof that a plain search finds; None when it finds none."""
    verdict = verify(query, Settings(workers=1, reuse=False, compact=False, attack=False), budget=effort())
    return verdict.proof if isinstance(verdict, Safe) else None


def deviation_of(network):
    operators = read_operators(network.model_bytes)
    assert operators.roundings is not None
    return Deviation(operators.network, operators.twins, operators.roundings)


def stated_query(data, lo, hi, rows):
    return one(read_network(data), lo, hi, rows)


def strip(threshold):
    """`(x + 2 ** 24 b(x)) - 2 ** 24 b(x)` with b = 1 near 1.5 only: real arithmetic gives x, float32 an even number."""
    constants = {
        "c": np.float32(1.5), "k": np.float32(100), "i": np.float32(1), "g": np.float32(2.0**24),
    }  # fmt: skip
    steps = "Sub x c a,Abs a p,Mul p k q,Sub i q s,Relu s b,Mul b g m,Add x m t,Sub t m y"
    nodes = [(op, args[:-1], args[-1], {}) for op, *args in map(str.split, steps.split(","))]
    return stated_query(model(nodes, constants, (1,)), [0], ["1.6"], [({}, {0: -1}, threshold, False)])


@pytest.mark.parametrize(("threshold", "holds"), [("1.9", False), ("1.0e2", True)])
def test_cancellation_is_a_proof_in_real_arithmetic_only(threshold, holds):
    query = strip(threshold)
    proof = solved(query)
    assert proof is not None and check(proof, query).accepted
    report = check_executions(proof, query, deviation_of(query.network))
    assert report.accepted == holds, report.reason
    assert report.checked + report.failed + report.skipped == report.leaves


def test_what_is_said_of_executions():
    query = strip("1.9")
    proof, runtime = solved(query), Runtime(query.network)
    assert proof is not None
    silent = settle(query, proof, None, Budget(), demanded=True)
    assert not silent.holds and silent.word.startswith("not established: ") and silent.witness is None
    found = settle(query, proof, runtime, effort(), demanded=True)
    assert found.witness is not None and found.witness.y[0] >= 1.9
    assert settle(strip("100"), solved(strip("100")), runtime, Budget(), demanded=True).holds


def test_unsat_that_executions_are_to_share_is_unknown_where_they_do_not():
    verdict = verify(strip("1.9"), Settings(timeout=3, workers=1, attack=False, arithmetic="float32"))
    assert verdict.word in ("unknown", "timeout") and verdict.statistics.float32.startswith("not established")


def test_a_run_demands_that_executions_are_safe():
    query = strip("100")
    verdict = verify(query, Settings(workers=1, arithmetic="float32"), budget=effort())
    assert verdict.word == "unsat" and verdict.statistics.float32 == "holds"
    loose = enlarged_query(query, deviation_of(query.network))
    assert loose.property_hash == query.property_hash
    before, after = (q.cases[0].conjunctions[0] for q in (query, loose))
    assert after.exact == before.exact and after.proved[0][2] < before.proved[0][2]
    assert after.constants[0] < before.constants[0]


@pytest.mark.parametrize("inputs", [1, 3])
def test_witnesses_that_only_an_execution_has_are_found(inputs):
    """Terms are absorbed in a small part of the box: 2 % of an interval, and a millionth of a cube."""
    if inputs == 1:
        query = strip("1.9")
    else:
        constants = {"c": np.float32([0.9, 0.9, 0.8]), "k": np.float32([[60]] * 3), "g": np.float32(2.0**26),
                     "i": np.float32(1), "w": np.float32([[1], [1], [1]])}  # fmt: skip
        steps = "Sub x c a,Abs a p,MatMul p k q,Sub i q s,Relu s b,Mul b g m,MatMul x w u,Add u m t,Sub t m y"
        nodes = [(op, args[:-1], args[-1], {}) for op, *args in map(str.split, steps.split(","))]
        query = stated_query(model(nodes, constants, (1, 3)), [-1] * 3, [1] * 3, [({}, {0: -1}, "3.2", False)])
    witness = float_witness(query, Runtime(query.network), deviation_of(query.network), 20.0)
    assert witness is not None
    exact = query.network(witness.x[None].astype(np.float64))[0]
    conj = query.cases[0].conjunctions[0]
    assert (conj.y_coeffs @ exact + conj.constants > 0).all()  # safe in real arithmetic
    assert (conj.y_coeffs @ witness.y + conj.constants <= 0).all()


def test_nothing_is_hunted_where_nothing_is_suspect():
    query = strip("100")
    assert float_witness(query, Runtime(query.network), deviation_of(query.network), 20.0) is None


@pytest.mark.parametrize("seed", range(12))
def test_no_proof_holds_for_executions_of_which_one_is_unsafe(seed):
    """Thresholds above the real maximum that some order of summation reaches."""
    layers = [(singles(w * 4), singles(b)) for w, b in random_layers(seed, (2, 6, 5, 1))]
    network, random = chain(layers), np.random.default_rng(seed)
    tables, lo, hi = matrices(network), singles([0.25, -0.5]), singles([0.2500002, -0.4999998])
    points = [np.float32([a, b]) for a in (lo[0], hi[0]) for b in (lo[1], hi[1])]
    best = max(execute(network, x, tables, random)[0] for x in points for _ in range(12))
    real = max(execute(network, x, tables)[0] for x in points)
    for threshold, possible in ((best, True), (real + abs(real) / 1000, False)):
        query = one(network, lo.tolist(), hi.tolist(), [({}, {0: -1}, threshold, False)])
        proof = Proof(network.fingerprint, query.property_hash, (single_leaf([Refutation(0, 0, (1.0,))]),))
        real_only, both = check(proof, query), check_executions(proof, query, deviation_of(network))
        assert both.accepted != possible, both.reason
        assert real_only.accepted or possible


def test_leaves_are_halved_where_the_deviation_of_the_whole_region_is_in_the_way():
    layers = [(singles(w) / 2, singles(b)) for w, b in random_layers(3, (2, 12, 12, 12, 1))]
    network, grid = chain(layers), np.linspace(-1, 1, 301)
    least = float(network(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)).min())
    query = one(network, [-1, -1], [1, 1], [({}, {0: 1}, F(-least) + F(1, 10000), False)])
    proof = solved(query)
    assert proof is not None
    report = check_executions(proof, query, deviation_of(network), effort=4)
    assert report.accepted and report.checked == report.leaves
    assert not check_executions(proof, query, deviation_of(network), effort=0).accepted
    nothing = check_executions(proof, query, deviation_of(network), Budget.seconds(0.0))
    assert not nothing.accepted and nothing.skipped


def test_roundings_behind_folded_constants_are_counted():
    """(a b - c) as a weight: the float32 result is within as many roundings of itself, or nothing is said."""
    random = np.random.default_rng(2)
    for close in (0.5, 1e-3, 1e-9):
        a, b = (random.uniform(1, 2, size=(4, 2)).astype(np.float32) for _ in range(2))
        c = (a * b * np.float32(1 - close)).astype(np.float32)
        nodes = [("Mul", ["a", "b"], "p", {}), ("Sub", ["p", "c"], "w", {}), ("MatMul", ["x", "w"], "y", {})]
        roundings = read_operators(model(nodes, {"a": a, "b": b, "c": c})).roundings
        exact, executed = a.astype(np.float64) * b - c, (a * b - c).astype(np.float64)
        if roundings is None:
            assert close < 1e-6
        else:
            assert np.all(abs(executed - exact) <= roundings * 2.0**-24 * abs(exact)) and (roundings > 100) == (
                close < 0.1
            )
