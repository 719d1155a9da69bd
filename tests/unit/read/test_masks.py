"""Choices and masks: minus infinity where a mask puts it, powers with several exponents, whole queries of each kind."""

from __future__ import annotations

import numpy as np
import pytest
from effort import effort
from examples import text

from mucg4.check.confirm import confirm
from mucg4.check.walk import check
from mucg4.errors import UnsupportedError
from mucg4.model.query import Query
from mucg4.read.normal import to_cases
from mucg4.read.onnx import read_network
from mucg4.read.vnnlib import parse_vnnlib
from mucg4.settings import Settings
from mucg4.verify import verify
from unit.read.test_onnx import D, agrees, f32, ints, model

LOW, TRUE = np.float32(-np.inf), np.array([[False, True, False], [True, False, False]])
ADDED = np.where(TRUE, LOW, np.float32(0.5))
MASKED = {
    "where": [("Where", "k low x", "m", {})],
    "where, the other way": [("Not", "k", "n", {}), ("Where", "n x low", "m", {})],
    "added": [("Add", "x a", "m", {})],
    "added in front": [("Add", "a x", "m", {})],
    "scaled after": [("Add", "x a", "s", {}), ("Mul", "s two", "m", {})],
    "moved": [("Where", "k low x", "s", {}), ("Transpose", "s", "t", {"perm": [1, 0]}), ("Transpose", "t", "m", {})],
    "twice": [("Where", "k low x", "s", {}), ("Add", "s a", "m", {})],
}
READERS = {
    "softmax": [("Softmax", "m", "y", {"axis": -1})],
    "old softmax": [("Softmax", "m", "y", {"axis": 1})],
    "log": [("LogSoftmax", "m", "l", {"axis": -1}), ("Exp", "l", "y", {})],
    "maximum": [("ReduceMax", "m", "y", {"axes": [1]})],
    "by hand": [
        ("ReduceMax", "m", "top", {"axes": [1]}), ("Sub", "m top", "d", {}), ("Exp", "d", "e", {}),
        ("ReduceSum", "e", "t1", {}), ("Div", "e t1", "y", {}),
    ],
    "rectified": [("Relu", "m", "r", {}), ("Mul", "r two", "y", {})],
    "logistic": [("Sigmoid", "m", "y", {})],
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("mask", MASKED)
def test_minus_infinity_is_read_as_onnxruntime_runs_it_and_read_again(mask, reader):
    nodes = [*MASKED[mask], *READERS[reader]]
    names = {name for _, inputs, *_ in nodes for name in inputs.split()}
    every = {"k": TRUE, "low": LOW, "a": ADDED, "two": np.float32(2)}
    data = model(nodes, [2, 3], {k: v for k, v in every.items() if k in names}, opset=12 if "old" in reader else 13)
    network = agrees(data)
    assert confirm(data, network).problem is None
    # the tensors that hold infinity are no tensors of the network
    assert not {"m", "s"} & {name for name, _ in network.tensors}


REFUSED = {
    "at the output": [("Where", "k low x", "y", {})],
    "negated": [("Where", "k low x", "m", {}), ("Neg", "m", "n", {}), ("Relu", "n", "y", {})],
    "a whole row": [("Where", "all low x", "m", {}), ("Softmax", "m", "y", {})],
    "multiplied": [("Where", "k low x", "m", {}), ("Mul", "m x", "y", {})],
    "summed": [("Where", "k low x", "m", {}), ("ReduceSum", "m", "y", {})],
    "chosen by the input": [("Greater", "x c", "g", {}), ("Where", "g low x", "m", {}), ("Softmax", "m", "y", {})],
    "a minimum": [("Where", "k low x", "m", {}), ("ReduceMin", "m", "y", {})],
    "never the input": [("Where", "all low x", "m", {}), ("Relu", "m", "y", {})],
}


@pytest.mark.parametrize("case", REFUSED)
def test_minus_infinity_elsewhere_is_refused(case):
    nodes = REFUSED[case]
    names = {name for _, inputs, *_ in nodes for name in inputs.split()}
    every = {"k": TRUE, "low": LOW, "c": np.float32(0), "all": np.array([[True] * 3, [case[0] == "n"] * 3])}
    with pytest.raises(Exception, match="infinity|infinite"):
        read_network(model(nodes, [2, 3], {k: v for k, v in every.items() if k in names}))


@pytest.mark.parametrize("exponents", [[2.0, 0.0, -1.0], [0.3, 0.3, 0.3], [1.5, 3.0, 11.0], [0.0, 0.0, 0.0]])
def test_exponents_of_all_kinds(exponents):
    positive = [("Abs", "x", "a", {}), ("Add", "a h", "p", {})]
    tensors = {"h": np.float32(0.5), "e": np.array(exponents, np.float32)}
    data = model([*positive, ("Pow", "p e", "y", {})], [2, 3], tensors)
    assert confirm(data, agrees(data, spread=0.7)).problem is None


@pytest.mark.parametrize("base", [[2.0, 0.5, 1.0], [3.0, 3.0, 3.0]])
def test_exponents_that_depend_on_the_input(base):
    data = model([("Pow", "b x", "y", {})], [2, 3], {"b": np.array(base, np.float32)})
    assert confirm(data, agrees(data)).problem is None
    with pytest.raises(UnsupportedError, match="base"):
        read_network(model([("Pow", "b x", "y", {})], [2, 3], {"b": -np.array(base, np.float32)}))
    data = model(
        [("Abs", "x", "a", {}), ("Add", "a h", "p", {}), ("Pow", "p x", "y", {})], [2, 3], {"h": np.float32(1)}
    )
    assert confirm(data, agrees(data, spread=0.7)).problem is None


W, B, V = f32(2, 6), f32(6), f32(6, 1)
DENSE = ("Gemm", "x w b", "z", {})
END = ("MatMul", "h v", "y", {})
ATTENTION = [
    ("Gemm", "x w b", "z", {}), ("Reshape", "z r", "q", {}), ("Transpose", "q", "t", {"perm": [1, 0]}),
    ("MatMul", "q t", "s", {}),
]  # fmt: skip
ATTENDED = [("Softmax", "m", "p", {"axis": -1}), ("MatMul", "p q", "o", {}), ("Reshape", "o f", "h", {})]
CAUSAL = np.triu(np.ones((3, 3), bool), 1)
KINDS = {
    "where of constants": [DENSE, ("Where", "k z c", "h", {}), END],
    "where of constants, broadcast": [DENSE, ("Where", "k1 z z2", "h", {}), END],
    "where, nested": [DENSE, ("Where", "k z c", "g", {}), ("Not", "k", "n", {}), ("Where", "n g z", "h", {}), END],
    "where of variables": [DENSE, ("Greater", "z c", "g", {}), ("Where", "g z c", "h", {}), END],
    "where of variables, less": [DENSE, ("LessOrEqual", "c z", "g", {}), ("Where", "g c z", "h", {}), END],
    "where of two tests": [
        DENSE, ("Greater", "z c", "g", {}), ("Less", "z two", "l", {}), ("And", "g l", "n", {}),
        ("Where", "n z c", "h", {}), END,
    ],
    "product with a mask": [
        DENSE, ("Greater", "z c", "g", {}), ("Cast", "g", "i", {"to": 1}), ("Mul", "z i", "h", {}), END,
    ],
    "product with a negated mask": [
        DENSE, ("Less", "z c", "g", {}), ("Not", "g", "n", {}), ("Cast", "n", "i", {"to": 1}), ("Mul", "i z", "h", {}),
        END,
    ],
    "product with two masks": [
        DENSE, ("Less", "z c", "g", {}), ("Greater", "z two", "n", {}), ("Or", "g n", "o", {}),
        ("Cast", "o", "i", {"to": 1}), ("Mul", "i z", "h", {}), END,
    ],
    "masked attention": [*ATTENTION, ("Where", "causal low s", "m", {}), *ATTENDED, END],
    "masked attention, added": [*ATTENTION, ("Add", "s added", "m", {}), *ATTENDED, END],
    "masked attention, scaled": [
        *ATTENTION, ("Mul", "s half", "u", {}), ("Where", "causal low u", "m", {}), *ATTENDED, END,
    ],
    "integers": [DENSE, ("Cast", "z", "i", {"to": 7}), ("Cast", "i", "h", {"to": 1}), END],
}  # fmt: skip
EVERY = {
    "w": W, "b": B, "v": V, "k": np.arange(6) % 2 == 0, "c": f32(6), "k1": np.array([True]), "z2": f32(1, 6),
    "two": np.float32(0.75), "r": ints(3, 2), "f": ints(1, 6), "causal": CAUSAL, "low": LOW, "half": np.float32(0.5),
    "added": np.where(CAUSAL, LOW, np.float32(0)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_queries_above_and_below_the_largest_sample(kind):
    nodes = KINDS[kind]
    names = {name for _, inputs, *_ in nodes for name in inputs.split()}
    data = model(nodes, [1, 2], {k: v for k, v in EVERY.items() if k in names})
    network, box = agrees(data), [(-0.5, 0.5)] * 2
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (20000, 2))
    y = network(x.astype(np.float32).astype(np.float64))
    most, span = float(y.max()), float(np.ptp(y)) + 0.05
    for limit, word in ((most - 0.02 * span, "sat"), (most + 0.5 * span, "unsat")):
        query = Query((network,), to_cases(parse_vnnlib(text(box, 1, f"(>= Y_0 {limit:.6f})"))))
        verdict = verify(query, Settings(workers=1), budget=effort())
        assert verdict.word == word
        assert word == "sat" or check(verdict.proof, query).accepted


WRAPPED = [
    [("Cast", "x", "t", {"to": 1}), ("Gemm", "t w b", "z", {}), ("Relu", "z", "r", {}), ("Cast", "r", "y", {"to": D})],
    [
        ("Reshape", "x s", "u", {}),
        ("Cast", "u", "t", {"to": 1}),
        ("MatMul", "t w", "z", {}),
        ("Cast", "z", "y", {"to": D}),
    ],
    [
        ("Cast", "x", "t", {"to": 1}),
        ("Sigmoid", "t", "z", {}),
        ("Cast", "z", "c", {"to": D}),
        ("Reshape", "c s", "y", {}),
    ],
]


@pytest.mark.parametrize("nodes", WRAPPED, ids=["gemm", "moved", "curve"])
def test_models_in_float32_between_casts_from_and_to_double(nodes):
    names = {name for _, inputs, *_ in nodes for name in inputs.split()}
    every = {"w": W, "b": B, "s": ints(1, 2)}
    data = model(nodes, [1, 2], {k: v for k, v in every.items() if k in names}, kind=D)
    network = agrees(data)
    assert (network.element_type, network.narrowest) == ("float64", "float32")
    assert confirm(data, network).problem is None
    most = float(network(np.random.default_rng(0).uniform(-1, 1, (5000, 2)))[:, 0].max())
    for limit, word in ((most - 0.05, "sat"), (most + 0.5, "unsat")):
        cases = to_cases(parse_vnnlib(text([(-1, 1)] * 2, network.output_size, f"(>= Y_0 {limit:.6f})")), "float64")
        assert verify(Query((network,), cases), Settings(workers=1), budget=effort()).word == word
