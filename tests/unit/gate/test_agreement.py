"""The comparison with onnxruntime before `unsat`: wrong readings are found, right ones pass."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from examples import text

from mucg4.errors import InputError
from mucg4.gate import agreement as place
from mucg4.gate.agreement import agreement
from mucg4.gate.runtime import Runtime
from mucg4.gate.runtimes import Runtimes
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.read.instance import query_of
from mucg4.read.onnx import read_network
from mucg4.settings import Settings
from mucg4.verify import verify
from unit.read.test_onnx import f32, ints, model

pytest.importorskip("onnxruntime")
X4, X3, X2 = [1, 2, 5, 5], [1, 4, 4], [1, 6]
W, S = f32(3, 2, 3, 3), f32(6, 6)
POS = abs(f32(6)) + 1

# name -> (operator, input shape, tensors, attributes) as the file has it, then what a wrong reader makes of it
MISREADINGS = {
    "pads shifted": ("Conv", X4, {"w": W}, {"pads": [1, 0, 0, 1]}, {}, {"pads": [0, 1, 1, 0]}),
    "kernel transposed": ("Conv", X4, {"w": W}, {}, {"w": W.swapaxes(2, 3).copy()}, {}),
    "kernel reversed": ("Conv", X4, {"w": W}, {}, {"w": W[:, :, ::-1, ::-1].copy()}, {}),
    "dilations exchanged": (
        "Conv",
        X4,
        {"w": W},
        {"dilations": [2, 1], "pads": [1, 0, 1, 0]},
        {},
        {"dilations": [1, 2], "pads": [0, 1, 0, 1]},
    ),
    "groups exchanged": ("Conv", X4, {"w": f32(2, 1, 3, 3)}, {"group": 2}, "swap", {}),
    "same upper or lower": (
        "Conv",
        [1, 2, 4, 4],
        {"w": f32(3, 2, 2, 2)},
        {"auto_pad": "SAME_UPPER"},
        {},
        {"auto_pad": "SAME_LOWER"},
    ),
    "limit ignored": ("Clip", X2, {"lo": np.float32(-1e4), "hi": np.float32(1e4)}, {}, {"hi": np.float32(np.inf)}, {}),
    "lower limit ignored": (
        "Clip",
        X2,
        {"lo": np.float32(-300), "hi": np.float32(np.inf)},
        {},
        {"lo": np.float32(-np.inf)},
        {},
    ),
    "mean for sum": ("ReduceSum", X3, {"a": ints(2)}, {}, "ReduceMean", {"axes": [2]}),
    "wrong axis": ("ReduceSum", X3, {"a": ints(1)}, {"keepdims": 0}, {"a": ints(2)}, {}),
    "softmax axis": ("Softmax", X3, {}, {"axis": 1}, {}, {"axis": 2}),
    "perm inverted": ("Transpose", [1, 3, 3, 3], {}, {"perm": [0, 2, 3, 1]}, {}, {"perm": [0, 3, 1, 2]}),
    "gather off by one": ("Gather", X2, {"i": ints(2, 0, 4)}, {"axis": 1}, {"i": ints(3, 1, 5)}, {}),
    "square not transposed": ("Gemm", X2, {"w": S}, {"transB": 1}, {}, {"transB": 0}),
    "beta ignored": ("Gemm", X2, {"w": S, "c": f32(6)}, {"beta": 0.5}, {}, {"beta": 1.0}),
    "alpha ignored": ("Gemm", X2, {"w": S}, {"alpha": 1.001}, {}, {"alpha": 1.0}),
    "padding counted": (
        "AveragePool",
        X4,
        {},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {},
        {"count_include_pad": 1},
    ),
    "extremum": ("MaxPool", X4, {}, {"kernel_shape": [2, 2]}, "AveragePool", {}),
    "epsilon": (
        "BatchNormalization",
        X4,
        {"s": f32(2), "b": f32(2), "m": f32(2), "v": abs(f32(2))},
        {"epsilon": 1e-3},
        {},
        {"epsilon": 1e-4},
    ),
    "slope": ("LeakyRelu", X2, {}, {"alpha": 0.01}, {}, {"alpha": 0.0100002}),
    "elu": ("Elu", X2, {}, {"alpha": 1.0}, {}, {"alpha": 1.0001}),
    "gelu": ("Gelu", X2, {}, {"approximate": "tanh"}, {}, {"approximate": "none"}),
    "ceil for floor": ("Floor", X2, {}, {}, "Ceil", {}),
    "abs for relu": ("Relu", X2, {}, {}, "Abs", {}),
    "padding mode": ("Pad", X4, {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}, {"mode": "reflect"}, {}, {"mode": "edge"}),
    "column major": ("DepthToSpace", [1, 8, 2, 3], {}, {"blocksize": 2, "mode": "CRD"}, {}, {"mode": "DCR"}),
    "reversed": (
        "Slice",
        X2,
        {"s": ints(-1), "e": ints(-100), "a": ints(1), "d": ints(-1)},
        {},
        {"s": ints(0), "e": ints(6), "d": ints(1)},
        {},
    ),
    "division the other way": ("Div", X2, {"c": POS}, {}, "Mul", {}),
    "power": ("Pow", X2, {"e": np.float32(3)}, {}, {"e": np.float32(2)}, {}),
    "digits": ("Mul", X2, {"c": POS.astype(np.float32)}, {}, {"c": (POS * (1 + 2.0**-17)).astype(np.float32)}, {}),
}
HIDING = ("alone", "tiny at the output", "dead at the output")


def built(op, shape, tensors, attributes, around):
    """The operator, and behind it nothing, a small share of the output, or a neuron that is off in the box."""
    opset = 20 if op == "Gelu" else 13
    nodes = [(op, " ".join(["x", *tensors]), "t", attributes)]
    more = {"small": np.float32(1e-7), "k": np.float32(5), "least": np.float32(-1e4)}
    if around == "alone":
        nodes.append(("Mul", "t two", "y", {}))
    elif around == "tiny at the output":
        nodes += [
            ("Mul", "t small", "part", {}),
            ("ReduceSum", "x", "r", {}),
            ("Add", "r k", "rest", {}),
            ("Add", "part rest", "y", {}),
        ]
    else:
        nodes += [
            ("Add", "t least", "part", {}),
            ("Relu", "part", "rest", {}),
            ("ReduceSum", "x", "r", {}),
            ("Add", "rest r", "y", {}),
        ]
    return model(nodes, shape, {**tensors, **more, "two": np.float32(2)}, opset)


def query_on(network, lower=0.25, upper=0.5):
    n, m = network.input_size, network.output_size
    conj = Conjunction.build([({}, {0: Fraction(1)}, Fraction(0), False)], n, m)
    return Query((network,), (Case(Box((Fraction(lower),) * n, (Fraction(upper),) * n), (conj,)),))


def misread(name, around):
    op, shape, tensors, attributes, other, changes = MISREADINGS[name]
    right = built(op, shape, tensors, attributes, around)
    other_op, wrong = op, dict(tensors)
    if other == "swap":
        wrong["w"] = wrong["w"][::-1].copy()
    elif isinstance(other, str):
        other_op, attributes = other, {} if other in ("ReduceMean",) else attributes
        wrong = {} if other == "ReduceMean" else wrong
    else:
        wrong.update(other)
    data = built(other_op, shape, wrong, {**attributes, **changes}, around)
    return read_network(right), replace(read_network(data), model_bytes=right)


@pytest.mark.parametrize("around", HIDING)
@pytest.mark.parametrize("name", MISREADINGS)
def test_a_wrong_reading_is_found(name, around):
    right, wrong = misread(name, around)
    assert agreement(query_on(right), seconds=0.0).problem is None
    found = agreement(query_on(wrong), seconds=0.03)
    assert found.problem is not None and "disagrees" in found.problem and "\n" not in found.problem


@pytest.mark.parametrize("name", MISREADINGS)
def test_outputs_alone_show_a_wrong_reading(name):
    _, wrong = misread(name, "alone")
    query = query_on(wrong)
    random = np.random.default_rng(1)
    runtime, problems = Runtime(wrong), []
    for turn in range(10):
        x, inside = place._points(query.cases[0], turn, None, random, "float32")
        problems.append(place._outputs(wrong, x, inside, runtime, place._Inner(wrong, runtime))[0])
    assert any(problems)


def test_default_options_that_change_a_constant_are_found():
    # taken for a Gelu by onnxruntime, whose divisor is the root of 2
    nodes = [
        ("Div", "x d", "a", {}),
        ("Erf", "a", "e", {}),
        ("Add", "e one", "f", {}),
        ("Mul", "x f", "g", {}),
        ("Mul", "g half", "y", {}),
    ]
    for divisor, agrees in ((np.sqrt(2), True), (1.4142, False)):
        tensors = {"d": np.float32(divisor), "one": np.float32(1), "half": np.float32(0.5)}
        found = agreement(query_on(read_network(model(nodes, X2, tensors))), seconds=0.1)
        assert (found.problem is None) is agrees
        assert agrees or "default options" in found.problem


@pytest.mark.parametrize("transposed", [False, True])
def test_dequantised_weights_are_another_function_by_default(transposed):
    stored = np.random.default_rng(0).integers(-127, 127, (32, 16)).astype(np.int8)
    nodes = [("DequantizeLinear", "q s", "w", {}), ("Gemm", "x w", "y", {"transB": int(transposed)})]
    network = read_network(model(nodes, [1, 16 if transposed else 32], {"q": stored, "s": np.float32(0.02)}))
    x = np.random.default_rng(1).normal(size=(8, network.input_size)).astype(np.float32)
    theirs, ours = Runtime(network).single(x), network(x.astype(np.float64))
    found = agreement(query_on(network), seconds=0.1)
    differs = bool(np.max(abs(theirs - ours)) > 1e-4 * np.max(abs(ours)))  # depends on the version of onnxruntime
    assert (found.problem is not None) is differs
    assert not differs or found.problem.endswith(place.DEQUANTISED)
    otherwise = Runtime(network, "float32")  # as deployed with the accuracy level that keeps float32
    assert agreement(query_on(network), otherwise, seconds=0.1).problem is None
    np.testing.assert_allclose(otherwise.single(x), ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit, word", [(1000, "unsat"), (-1000, "sat")])
def test_how_the_network_is_deployed_decides(limit, word):
    """What a default session computes is not what would be proved; a witness that it reproduces needs no proof."""
    stored = np.random.default_rng(0).integers(-127, 127, (32, 1)).astype(np.int8)
    nodes = [("DequantizeLinear", "q s", "w", {}), ("MatMul", "x w", "y", {})]
    data = model(nodes, [1, 32], {"q": stored, "s": np.float32(0.02)})
    query = query_of(data, text([(-1, 1)] * 32, 1, f"(>= Y_0 {limit})"))
    found = {name: verify(query, Settings(workers=1, dequantised=name)) for name in ("default", "float32")}
    assert found["float32"].word == word
    assert found["default"].word == word or found["default"].reason.endswith(place.DEQUANTISED)
    shared = Runtimes("float32").of(query)
    assert verify(query, Settings(workers=1, dequantised="float32"), runtime=shared).statistics.dequantised == "float32"
    with pytest.raises(InputError, match="dequantised"):
        verify(query, Settings(workers=1), runtime=shared)


def test_another_cause_is_not_taken_for_dequantised_weights():
    stored = np.random.default_rng(0).integers(-127, 127, (32, 16)).astype(np.int8)
    nodes = [("DequantizeLinear", "q s", "w", {}), ("MatMul", "x w", "t", {}), ("Div", "t d", "a", {})]
    nodes += [("Erf", "a", "e", {}), ("Add", "e one", "f", {}), ("Mul", "t f", "g", {}), ("Mul", "g half", "y", {})]
    tensors = {"q": stored, "s": np.float32(0.02), "d": np.float32(1.4142)}
    network = read_network(model(nodes, [1, 32], {**tensors, "one": np.float32(1), "half": np.float32(0.5)}))
    found = agreement(query_on(network), seconds=0.1)
    assert found.problem is not None and found.problem.endswith(place.OTHERWISE)


def test_tensors_taken_for_one_and_the_same_are_compared():
    # min(clip(x), x - 1): the wrong reading of the clip shows at no point of the output but at its own tensor
    nodes = [("Clip", "x lo", "c", {}), ("Sub", "x one", "z", {}), ("Min", "c z", "y", {})]
    tensors = {"lo": np.float32(-1e30), "one": np.float32(1)}
    right = read_network(model(nodes, X2, tensors))
    assert agreement(query_on(right)).problem is None
    high = model(nodes, X2, {**tensors, "lo": np.float32(3e38)})
    wrong = read_network(model([("Identity", "x", "c", {}), *nodes[1:]], X2, tensors))
    found = agreement(query_on(replace(wrong, model_bytes=high)))
    assert found.problem is not None and "'c'" in found.problem


def test_points_depend_on_the_query_and_take_what_the_search_saw():
    network = read_network(model([("Relu", "x", "y", {})], X2))
    query, runtime = query_on(network), Runtime(network)
    seen = np.full((3, 6), 0.375)
    asked = []
    runtime.single = lambda x: asked.append(x) or Runtime.single(runtime, x)
    first = agreement(query, runtime, seconds=0.0)
    again = agreement(query, runtime, seconds=0.0)
    half = len(asked) // 2
    assert first == again and all(np.array_equal(a, b) for a, b in zip(asked[:half], asked[half:], strict=True))
    runtime.remember(seen)
    agreement(query, runtime, seconds=0.0)
    assert any(np.array_equal(p, seen[0].astype(np.float32)) for p in asked[-1])
    inside = np.all((asked[0] >= 0.25) & (asked[0] <= 0.5), axis=1)
    assert 3 <= inside.sum() < len(asked[0]) >= 8 and abs(asked[0]).max() > 100


def test_what_overflows_on_the_way_far_outside_is_no_mismatch():
    up, down = np.float32(1e15), np.float32(1e-15)
    nodes = [("Mul", "x up", "a", {}), ("Mul", "a up", "b", {}), ("Mul", "b down", "c", {}), ("Mul", "c down", "y", {})]
    network = read_network(model(nodes, X2, {"up": up, "down": down}))
    assert agreement(query_on(network), seconds=0.1).problem is None


def test_neurons_that_were_split_and_put_together_agree():
    w, b = f32(6, 6), f32(6)
    both = {"w": np.concatenate([w, -w]), "b": np.concatenate([b, -b]), "m": np.concatenate([np.eye(6), -np.eye(6)], 1)}
    tensors = {k: v.astype(np.float32) for k, v in both.items()} | {"v": f32(3, 6)}
    nodes = [("Gemm", "x w b", "s", {"transB": 1}), ("Relu", "s", "t", {}), ("Gemm", "t m", "u", {"transB": 1})]
    nodes += [("Relu", "u", "r", {}), ("Gemm", "r v", "y", {"transB": 1})]
    network = read_network(model(nodes, X2, tensors))
    assert len(network.nodes) == 4
    assert agreement(query_on(network), seconds=0.1).problem is None


def test_large_networks_take_few_points_of_their_own(monkeypatch):
    monkeypatch.setattr(place, "LARGE", 0)
    for name in ("pads shifted", "square not transposed", "mean for sum"):
        right, wrong = misread(name, "alone")
        assert agreement(query_on(right), seconds=0.0).problem is None
        assert agreement(query_on(wrong), seconds=0.5).problem is not None
    stored = np.random.default_rng(0).integers(-127, 127, (32, 16)).astype(np.int8)
    nodes = [("DequantizeLinear", "q s", "w", {}), ("MatMul", "x w", "y", {})]
    network = read_network(model(nodes, [1, 32], {"q": stored, "s": np.float32(0.02)}))
    assert "output" in (agreement(query_on(network), seconds=0.1).problem or "output")


@pytest.mark.parametrize("operator", ["ReduceMean", "GlobalAveragePool"])
@pytest.mark.parametrize("side", [20, 50])
def test_sums_of_equal_terms_round_the_same_way(operator, side):
    network = read_network(
        model([(operator, "x", "y", {"axes": [2, 3]} if operator[0] == "R" else {})], [1, 2, side, side])
    )
    query = query_on(network, 0.3, 0.3)
    assert agreement(query, seconds=0.0).problem is None


def test_digits_that_a_constant_takes_are_allowed_where_it_leaves_no_trace():
    tensors = {"a": np.float32(100), "b": np.float32(99.5)}
    nodes = [("Add", "x a", "t", {}), ("Sub", "t b", "y", {})]
    gemm = [("Gemm", "x w c", "t", {}), ("Add", "t d", "y", {})]
    level = f32(6) * 100
    tensors |= {"w": f32(6, 6), "c": level, "d": f32(6) * np.float32(0.01) - level}
    assert agreement(query_on(read_network(model(gemm, X2, tensors))), seconds=0.1).problem is None
    for lower in (0.25, -3, 50):
        query = query_on(read_network(model(nodes, X2, tensors)), lower, lower + 0.25)
        assert agreement(query, seconds=0.1).problem is None


def test_random_networks_agree():
    random = np.random.default_rng(5)
    for _ in range(40):
        at, size, nodes, tensors = "x", 6, [], {}
        for k in range(int(random.integers(1, 7))):
            if random.random() < 0.5:
                wide = int(random.integers(1, 30))
                tensors |= {f"w{k}": f32(size, wide), f"b{k}": f32(wide) * np.float32(random.choice([0, 1, 50]))}
                nodes.append(("Gemm", f"{at} w{k} b{k}", f"t{k}", {}))
                size = wide
            else:
                operator = random.choice(
                    ["Relu", "Sigmoid", "Tanh", "Elu", "Abs", "Floor", "Sin", "Softmax", "HardSwish"]
                )
                nodes.append((str(operator), at, f"t{k}", {}))
            at = f"t{k}"
        network = read_network(model([*nodes, ("Identity", at, "y", {})], X2, tensors, opset=14))
        lower = float(random.choice([-1, 0, 0.5, -20]))
        assert agreement(query_on(network, lower, lower + 0.5), seconds=0.0).problem is None
