"""Files that contradict themselves or declare huge tensors: one line of text, no crash, no memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import helper
from opdiff.mutants import trial

from mucg4.errors import InputError
from mucg4.read.onnx import read_network
from unit.read.test_onnx import f32, ints, model

HUGE = 2**31 - 1


@pytest.mark.parametrize("seed", range(4))
def test_mutants_end_in_a_network_or_in_one_line(seed):
    counts, faults = trial(seed, 500)
    assert not faults, faults[:5]
    assert counts["read"] > 20 and counts["refused"] > 200


LARGE = {
    "tile": ([("Tile", "x r", "y", {})], {"r": ints(HUGE, HUGE)}),
    "expand": ([("Expand", "x r", "y", {})], {"r": ints(HUGE, 1, 6)}),
    "pad": ([("Pad", "x p", "y", {})], {"p": ints(0, 0, HUGE, HUGE)}),
    "pad both ways": ([("Pad", "x p", "y", {})], {"p": ints(0, -HUGE, 0, HUGE)}),
    "pad edge": ([("Pad", "x p", "y", {"mode": "edge"})], {"p": ints(0, 0, 0, HUGE)}),
    "range": ([("Range", "a b c", "k", {}), ("Cast", "k", "f", {"to": 1}), ("Add", "x f", "y", {})], "range"),
    "filled": ([("ConstantOfShape", "s", "k", {}), ("Add", "x k", "y", {})], {"s": ints(2**40, 2**20)}),
    "filled and moved": ([("ConstantOfShape", "s", "k", {}), ("Tile", "k s", "y", {})], {"s": ints(2**20)}),
    "outer sum": ([("Transpose", "c", "t", {}), ("Add", "c t", "k", {}), ("Add", "x k", "y", {})], "outer"),
    "outer product": ([("Transpose", "c", "t", {}), ("MatMul", "t c", "k", {}), ("Add", "x k", "y", {})], "outer"),
    "gather": ([("Gather", "x i", "t", {}), ("Gather", "t i", "y", {"axis": 1})], {"i": np.zeros(2**20, np.int64)}),
    "windows": ([("Unsqueeze", "x a", "t", {}), ("MaxPool", "t", "y", {"kernel_shape": [3], "pads": [HUGE] * 2})], "a"),
    "kernel": ([("Unsqueeze", "x a", "t", {}), ("MaxPool", "t", "y", {"kernel_shape": [HUGE]})], "a"),
    "dilation": (
        [("Unsqueeze", "x a", "t", {}), ("MaxPool", "t", "y", {"kernel_shape": [2], "dilations": [HUGE]})],
        "a",
    ),
    "doubling": (
        [("Concat", "c c c c c c c c", "k0", {"axis": 0})]
        + [("Concat", " ".join([f"k{i}"] * 8), f"k{i + 1}", {"axis": 0}) for i in range(12)]
        + [("MatMul", "x k12", "y", {})],
        "outer",
    ),
    "doubling variables": (
        [("Concat", " ".join([f"k{i}" if i else "x"] * 8), f"k{i + 1}", {"axis": 0}) for i in range(12)]
        + [("Relu", "k12", "y", {})],
        {},
    ),
}
TENSORS = {
    "range": {"a": np.int64(0), "b": np.int64(2**60), "c": np.int64(1)},
    "outer": {"c": np.ones((1, 2**16), np.float32)},
    "a": {"a": ints(0)},
}


@pytest.mark.parametrize("case", LARGE)
def test_huge_tensors_are_refused_before_they_are_made(case):
    nodes, tensors = LARGE[case]
    data = model(nodes, [1, 6], TENSORS[tensors] if isinstance(tensors, str) else tensors)
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_network(data)
        assert tracemalloc.get_traced_memory()[1] < 2**30
    finally:
        tracemalloc.stop()


def test_sizes_of_images_are_checked_before_anything_is_made():
    for sizes in (ints(1, 1, HUGE, 2), ints(1, 1, 2**24, 1)):
        nodes = [("Resize", "x  s", "y", {})]
        proto = onnx.load_model_from_string(model(nodes, [1, 1, 2, 2], {"s": sizes}))
        proto.graph.node[0].input[:] = ["x", "", "", "s"]
        with pytest.raises(InputError):
            read_network(proto.SerializeToString())


def _changed(change):
    nodes = [("Gemm", "x w b", "z", {}), ("Relu", "z", "y", {})]
    proto = onnx.load_model_from_string(model(nodes, [1, 6], {"w": f32(6, 3), "b": f32(3)}))
    change(proto.graph)
    return proto.SerializeToString()


def _set(field, at, value):
    field[at] = value


CONTRADICTIONS = {
    "empty output": (lambda g: _set(g.node[0].output, 0, ""), "first output has no name"),
    "two outputs of one name": (lambda g: _set(g.node[1].output, 0, "z"), "'z' exists already"),
    "output named like the input": (lambda g: _set(g.node[1].output, 0, "x"), "'x' exists already"),
    "output named like a weight": (lambda g: _set(g.node[0].output, 0, "w"), "'w' exists already"),
    "cycle": (lambda g: _set(g.node[0].input, 0, "y"), "'y' is not defined before it"),
    "absent input": (lambda g: _set(g.node[0].input, 1, ""), "takes 2 to 3 inputs"),
    "too many inputs": (lambda g: g.node[1].input.append("w"), "takes 1 inputs"),
    "output that nobody makes": (lambda g: setattr(g.output[0], "name", "q"), "no node computes it"),
    "input without a name": (lambda g: setattr(g.input[0], "name", ""), "no name of its own"),
    "two weights of one name": (lambda g: setattr(g.initializer[1], "name", "w"), "two initialisers"),
    "negative dimension": (lambda g: _set(g.initializer[0].dims, 0, -6), "has the shape"),
    "attribute of another kind": (
        lambda g: g.node[0].attribute.append(helper.make_attribute("alpha", [1.0])),
        "not of the kind float",
    ),
    "attribute given twice": (
        lambda g: g.node[0].attribute.extend([helper.make_attribute("alpha", 1.0)] * 2),
        "given twice",
    ),
    "infinite attribute": (
        lambda g: g.node[0].attribute.append(helper.make_attribute("alpha", float("inf"))),
        "alpha",
    ),
}


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("shapes", [((4, 1), (4, 1)), ((1, 4), (1, 4)), ((2, 3), (1, 2)), ((2, 1), (3, 2))])
def test_products_of_constants_that_do_not_fit_are_refused(op, shapes):
    nodes = [(op, "a b", "c", {}), ("Add", "x c", "y", {})]
    weights = {name: np.ones(shape, dtype=np.float32) for name, shape in zip("ab", shapes, strict=True)}
    with pytest.raises(InputError, match="fit"):
        read_network(model(nodes, [1, 2], weights))


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_named(case):
    change, message = CONTRADICTIONS[case]
    with pytest.raises(InputError, match=message):
        read_network(_changed(change))


def test_names_that_are_no_text_and_long_names_make_short_messages():
    data = model([("Relu", "x", "y", {}), ("Relu", "x", "unused_name", {})], [1, 2])
    with pytest.raises(InputError, match="not UTF-8"):
        read_network(data.replace(b"unused_name", b"unused\xff\xfe\xfdme"))
    name = "long\n" * 1000
    with pytest.raises(InputError) as caught:
        read_network(model([("Relu", "x", "t", {}), ("NoSuch", "t", "y", {})], [1, 2]).replace(b"NoSuch", b"No\nuch"))
    assert "\n" not in str(caught.value)
    proto = onnx.load_model_from_string(model([("Relu", "x", "y", {})], [1, 2]))
    proto.graph.node[0].input[0] = name
    with pytest.raises(InputError) as caught:
        read_network(proto.SerializeToString())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
