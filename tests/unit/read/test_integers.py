"""Integers that depend on the input: casts, arithmetic that stays in the type, outputs; and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from effort import effort
from examples import text

from mucg4.check.confirm import confirm
from mucg4.check.walk import check
from mucg4.errors import UnsupportedError
from mucg4.gate.runtime import Runtime
from mucg4.model.query import Query
from mucg4.read.networks import query_of_models
from mucg4.read.normal import to_cases
from mucg4.read.onnx import read_network
from mucg4.read.vnnlib import parse_vnnlib
from mucg4.settings import Settings
from mucg4.verify import verify
from unit.read.test_onnx import agrees, ints, model

I32, I64 = 6, 7
WHOLE = ("Cast", "x", "i", {"to": I64})
BACK = ("Cast", "j", "y", {"to": 1})
TENSORS = {"c": ints(3, -2, 0, 1), "k": np.array([True, False, True, False])}
USES = {
    "add": [("Add", "i c", "j", {})],
    "sub": [("Sub", "c i", "j", {})],
    "mul": [("Mul", "i c", "j", {})],
    "neg abs": [("Neg", "i", "n", {}), ("Abs", "n", "j", {})],
    "max min": [("Max", "i c", "n", {}), ("Min", "n i", "j", {})],
    "sign": [("Sign", "i", "j", {})],
    "where stored": [("Where", "k i c", "j", {})],
    "where computed": [("Greater", "i c", "g", {}), ("Where", "g i c", "j", {})],
    "equal": [("Equal", "i c", "g", {}), ("Cast", "g", "j", {"to": I64})],
    "moved": [("Transpose", "i", "t", {}), ("Reshape", "t s", "j", {})],
    "concat": [("Concat", "i i", "j", {"axis": 1})],
    "sum": [("ReduceSum", "i a", "j", {})],
    "narrower": [("Cast", "i", "n", {"to": I32}), ("Neg", "n", "j", {})],
}


@pytest.mark.parametrize("use", USES)
def test_integers_are_read_as_onnxruntime_runs_them_and_read_again(use):
    tensors = {**TENSORS, "s": ints(2, 2), "a": ints(1)}
    names = {name for _, inputs, *_ in USES[use] for name in inputs.split()}
    nodes = [("Mul", "x f", "z", {}), ("Cast", "z", "i", {"to": I64}), *USES[use], BACK]
    kept = {k: v for k, v in tensors.items() if k in names} | {"f": np.float32(1.7)}
    data = model(nodes, [1, 4], kept, opset=16)
    network = agrees(data, points=20)
    found = confirm(data, network)
    assert found.problem is None and not found.fallback


OUT = {
    "more than an int32": [("Cast", "x", "i", {"to": I32}), ("Mul", "i i", "j", {}), BACK],
    "more than a float32": [WHOLE, ("Mul", "i i", "j", {}), BACK],
    "a quotient": [WHOLE, ("Div", "i d", "j", {}), BACK],
    "signed to unsigned": [WHOLE, ("Cast", "i", "j", {"to": 2}), BACK],
    "to a smaller type": [WHOLE, ("Cast", "i", "j", {"to": 3}), BACK],
    "to half": [WHOLE, ("Cast", "i", "y", {"to": 10})],
}


@pytest.mark.parametrize("case", OUT)
def test_integers_that_may_leave_their_type_are_refused(case):
    with pytest.raises(UnsupportedError):
        read_network(model(OUT[case], [1, 4], {"d": ints(3, 2, 3, 2)} if case == "a quotient" else {}))


def of(data, box, *asserts):
    return Query((read_network(data),), to_cases(parse_vnnlib(text(box, 1, *asserts))))


def decide(query):
    return verify(query, Settings(workers=1), budget=effort(3e8))


@pytest.mark.parametrize(
    "kind, box, word", [(3, (-128.9, 127.9), "unsat"), (3, (-128.9, 128.1), ""), (2, (-1.0, 9), "")]
)
def test_a_cast_beyond_its_type_proves_nothing(kind, box, word):
    data = model([("Cast", "x", "i", {"to": kind}), ("Cast", "i", "y", {"to": 1})], [1, 1])
    query = of(data, [box], "(>= Y_0 1000)")
    verdict = verify(query, Settings(workers=1, attack=False), budget=effort(2e4))
    assert verdict.word == word or (not word and verdict.word not in ("sat", "unsat"))
    if word:
        assert check(verdict.proof, query).accepted


def whole_output(nodes, kind=I64, shape=(1, 2)):
    proto = onnx.load_model_from_string(model(nodes, list(shape)))
    proto.graph.output[0].type.tensor_type.elem_type = kind
    return proto.SerializeToString()


DECLARED = """(vnnlib-version <2.0>)
(declare-network N (declare-input X real [1,2]) (declare-output Y {} [{}]))
(assert (and (>= X[0,0] 3.1) (<= X[0,0] 3.4))) (assert (and (>= X[0,1] -3.4) (<= X[0,1] -3.1)))
(assert (>= Y[{}] {}))
"""
OUTPUTS = [
    ([("Cast", "x", "y", {"to": I64})], "1,2", "0,0", 4, "unsat"),
    ([("Cast", "x", "y", {"to": I64})], "1,2", "0,0", 3, "sat"),
    ([("Cast", "x", "y", {"to": I64})], "1,2", "0,1", -3, "sat"),
    ([("Cast", "x", "y", {"to": I64})], "1,2", "0,1", -2, "unsat"),
    ([("Shape", "x", "y", {})], "2", "1", 2, "sat"),
    ([("Shape", "x", "y", {})], "2", "1", 3, "unsat"),
]


@pytest.mark.parametrize("nodes, shape, at, least, word", OUTPUTS)
def test_integer_outputs_are_decided(nodes, shape, at, least, word):
    query = query_of_models({"": (whole_output(nodes), None)}, DECLARED.format("int64", shape, at, least))
    assert decide(query).word == word


def test_outputs_of_another_type_than_declared_are_refused():
    for declared, kind in (("int32", I64), ("float32", I64), ("int64", I32)):
        data = whole_output([("Cast", "x", "y", {"to": kind})], kind)
        with pytest.raises(Exception, match="another element type"):
            query_of_models({"": (data, None)}, DECLARED.format(declared, "1,2", "0,0", 4))


def test_integers_that_a_float_does_not_hold_are_no_witness():
    data = whole_output([("Cast", "x", "y", {"to": I64})])
    y = Runtime(read_network(data)).single(np.array([[3.5e9, -7.9]]))[0]
    assert np.isnan(y[0]) and y[1] == -7
