"""Kinds of models that were once read otherwise than onnxruntime runs them, each with its relatives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mucg4.errors import UnsupportedError
from mucg4.read.onnx import read_network
from unit.read.test_onnx import D, F, agrees, ints, kinds, model

LARGEST = float(np.finfo(np.float32).max)
ENDS = (None, -LARGEST, -1.0, 0.0, 0.5, LARGEST)


@pytest.mark.parametrize("high", ENDS)
@pytest.mark.parametrize("low", ENDS)
def test_clip_at_the_largest_floats_and_the_wrong_way_round(low, high):
    given = {"lo": low, "hi": high}
    tensors = {key: np.float32(v) for key, v in given.items() if v is not None}
    names = [key if given[key] is not None else "none" for key in given]
    nodes = [("Clip", "x " + " ".join(names), "c", {}), ("Min", "c m", "d", {}), ("Max", "d n", "y", {})]
    tensors |= {"m": np.float32(3), "n": np.float32(-3)}
    proto = onnx.load_model_from_string(model(nodes, [1, 4], tensors))
    inputs = proto.graph.node[0].input
    inputs[:] = ["" if name == "none" else name for name in inputs]
    agrees(proto.SerializeToString())
    if low is not None and high is not None and low > high:
        return  # onnxruntime takes such limits as inputs only
    attributes = {key: v for key, v in (("min", low), ("max", high)) if v is not None}
    agrees(model([("Clip", "x", "c", attributes), *nodes[1:]], [1, 4], {"m": tensors["m"], "n": tensors["n"]}, opset=8))


@pytest.mark.parametrize("limits", [(np.inf, None), (None, -np.inf), (np.inf, np.inf)])
def test_clip_with_limits_that_leave_nothing_is_refused(limits):
    attributes = {key: float(v) for key, v in zip(("min", "max"), limits, strict=True) if v is not None}
    with pytest.raises(UnsupportedError, match="Clip .*leave no number"):
        read_network(model([("Clip", "x", "y", attributes)], [1, 4], opset=8))


def test_casts_of_variables_are_read_where_they_change_nothing():
    same = [("Cast", "x", "t", {"to": 1}), ("Relu", "t", "y", {})]
    wide = [("Cast", "x", "t", {"to": 11}), ("Mul", "t c", "y", {})]
    back = [("Cast", "x", "t", {"to": 11}), ("Identity", "t", "s", {}), ("Cast", "s", "u", {"to": 1})]
    back.append(("Relu", "u", "y", {}))
    assert kinds(agrees(model(same, [1, 4]))) == ["Input", "TwoPiece"]
    proto = onnx.load_model_from_string(model(wide, [1, 4], {"c": np.float64(0.1)}))
    proto.graph.output[0].type.tensor_type.elem_type = D
    agrees(proto.SerializeToString())
    assert kinds(agrees(model(back, [1, 4]))) == ["Input", "TwoPiece"]
    agrees(model([("Cast", "x", "t", {"to": 11}), ("Relu", "t", "y", {})], [1, 4], kind=D))


ROUNDING_CASTS = {
    "chain": ([("Cast", "x", "t", {"to": 1}), ("Cast", "t", "u", {"to": 11}), ("Sub", "x u", "y", {})], D),
    "computed": ([("Cast", "x", "t", {"to": 11}), ("Mul", "t t", "u", {}), ("Cast", "u", "y", {"to": 1})], F),
    "half": ([("Cast", "x", "t", {"to": 10}), ("Cast", "t", "y", {"to": 1})], F),
    "brain": ([("Cast", "x", "t", {"to": 16}), ("Cast", "t", "y", {"to": 1})], F),
}


@pytest.mark.parametrize("case", ROUNDING_CASTS)
def test_casts_of_variables_that_round_are_refused(case):
    nodes, kind = ROUNDING_CASTS[case]
    with pytest.raises(UnsupportedError, match="(?i)cast.*rounds"):
        read_network(model(nodes, [1, 4], kind=kind))


INTEGERS = [
    ("Div", 2**62 + 3, 1),
    ("Div", 2**62 + 3, -5),
    ("Div", -(2**62) - 3, 7),
    ("Div", -7, 2),
    ("Mul", 2**40 + 1, 2**40 + 1),
    ("Add", 2**63 - 1, 5),
    ("Sub", -(2**63), 1),
    ("Max", 2**62 + 3, 2**62 + 2),
    ("Min", 2**62 + 3, 2**62 + 2),
]


@pytest.mark.parametrize("op, a, b", INTEGERS)
def test_integers_are_computed_as_in_onnxruntime(op, a, b):
    """The difference to a number close by is small, so that a wrong digit shows in a float."""
    size = abs(a) // abs(b)
    exact = {"Div": size if (a < 0) == (b < 0) else -size, "Mul": a * b, "Add": a + b, "Sub": a - b}
    near = exact.get(op, max(a, b) if op == "Max" else min(a, b))
    near = (near + 2**63) % 2**64 - 2**63  # as it wraps around
    nodes = [(op, "a b", "c", {}), ("Sub", "c n", "d", {}), ("Cast", "d", "e", {"to": 1}), ("Add", "x e", "y", {})]
    tensors = {"a": ints(a), "b": ints(b), "n": ints(near - 3)}
    network = agrees(model(nodes, [1, 1], tensors))
    assert network(np.zeros((1, 1)))[0, 0] == 3.0


STEPS = {
    "floor": [("Floor", "q", "k", {})],
    "ceil": [("Ceil", "q", "k", {})],
    "round": [("Round", "q", "k", {})],
    "sign": [("Sub", "q s", "d", {}), ("Sign", "d", "k", {})],
    "equal": [("Equal", "q s", "t", {}), ("Cast", "t", "k", {"to": 1})],
    "less": [("Less", "q s", "t", {}), ("Cast", "t", "k", {"to": 1})],
    "greater": [("Greater", "q s", "t", {}), ("Where", "t s o", "k", {})],
    "integer": [("Cast", "q", "t", {"to": 7}), ("Cast", "t", "k", {"to": 1})],
    "truth": [("Sub", "q s", "d", {}), ("Cast", "d", "t", {"to": 9}), ("Cast", "t", "k", {"to": 1})],
    "half": [("Cast", "q", "t", {"to": 10}), ("Cast", "t", "k", {"to": 1})],
}
COMPUTED = [
    ("Div", "a b"),
    ("Mul", "a b"),
    ("Add", "a b"),
    ("Sub", "a b"),
    ("Sqrt", "a"),
    ("Exp", "a"),
    ("MatMul", "a b"),
]


@pytest.mark.parametrize("case", STEPS)
def test_steps_are_read_of_certain_constants_only(case):
    tail = [*STEPS[case], ("Add", "x k", "y", {})]
    stored = {"s": np.float32([7]), "o": np.float32([1])}
    certain = {"a": np.float32([14]), "b": np.float32([2])}
    for q in ("a", "b"):
        agrees(model([("Identity", q, "q", {}), *tail], [1, 1], {**stored, **certain}))
    agrees(model([("Div", "a b", "q", {}), *tail], [1, 1], {**stored, **certain}))
    inexact = {"a": np.float32([0.7]), "b": np.float32([0.1])}
    for op, inputs in COMPUTED:
        with pytest.raises(UnsupportedError, match="computed in the network with rounding"):
            read_network(model([(op, inputs, "q", {}), *tail], [1, 1], {**stored, **inexact}))


def test_an_intermediate_result_that_float32_rounds_is_not_certain():
    """The sum is a float32 number, the product behind it is not: runtimes may differ in the last digit."""
    a = np.float32([1 + 2.0**-23])
    nodes = [("Mul", "a a", "p", {}), ("Sub", "p r", "q", {}), ("Sign", "q", "k", {}), ("Add", "x k", "y", {})]
    rest = np.float32([1 + 2.0**-22])  # a * a - rest is 2**-46 in real arithmetic, 0 in float32
    with pytest.raises(UnsupportedError, match="computed in the network with rounding"):
        read_network(model(nodes, [1, 1], {"a": a, "r": rest}))


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "ConvTranspose"])
def test_same_padding_with_dilations(op, mode):
    for n, kernel, stride, dilation in ((6, 2, 1, 2), (7, 3, 1, 2), (6, 2, 2, 2), (7, 3, 2, 2)):
        more = {"auto_pad": mode, "strides": [stride], "dilations": [dilation], "kernel_shape": [kernel]}
        tensors = {"w": np.float32(10.0 ** np.arange(kernel)).reshape(1, 1, kernel)} if op == "ConvTranspose" else {}
        agrees(model([(op, " ".join(["x", *tensors]), "y", more)], [1, 1, n], tensors, opset=19))


def test_same_padding_with_dilations_is_refused_for_conv():
    more = {"auto_pad": "SAME_UPPER", "dilations": [2]}
    with pytest.raises(UnsupportedError, match="auto_pad 'SAME_UPPER' with dilations"):
        read_network(model([("Conv", "x w", "y", more)], [1, 1, 6], {"w": np.ones((1, 1, 2), np.float32)}))


@pytest.mark.parametrize("scales", [(2, 1.3), (1, 1.3), (1.3, 1.3), (1.5, 1), (2.7, 1.1)])
def test_old_upsampling_also_where_a_length_stays(scales):
    s = np.float32([1, 1, *scales])
    agrees(model([("Upsample", "x s", "y", {})], [1, 2, 3, 3], {"s": s}, opset=9))
    agrees(model([("Upsample", "x", "y", {"scales": s.tolist()})], [1, 2, 3, 3], opset=8))


@pytest.mark.parametrize("scales", [(0.6, 1), (0.5, 2), (0.4, 0.75), (1, 0.9)])
def test_downsampling_in_operator_set_ten(scales):
    s = np.float32([1, 1, *scales])
    agrees(model([("Resize", "x s", "y", {"mode": "nearest"})], [1, 2, 5, 4], {"s": s}, opset=10))


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_resize_keeps_the_aspect(policy):
    more = {"keep_aspect_ratio_policy": policy, "mode": "nearest"}
    for sizes in ((1, 1, 4, 3), (1, 1, 2, 7), (1, 1, 6, 6)):
        proto = onnx.load_model_from_string(
            model([("Resize", "x s", "y", more)], [1, 1, 2, 3], {"s": ints(*sizes)}, opset=18)
        )
        proto.graph.node[0].input[:] = ["x", "", "", "s"]
        agrees(proto.SerializeToString())


def test_pixels_that_rounding_decides_are_refused():
    """float32 puts 9 / (10 / 3) at 2.7 a hair off; the place that matters is a whole number."""
    more = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    s = np.float32([1, 1, 1, 10 / 3])
    with pytest.raises(UnsupportedError, match="rounding decides"):
        read_network(model([("Resize", "x r s", "y", more)], [1, 1, 1, 6], {"r": np.zeros(0, np.float32), "s": s}))


OTHER = {"mode": "cubic"}, {"exclude_outside": 1}, {"coordinate_transformation_mode": "tf_crop_and_resize"}
OTHER += {"coordinate_transformation_mode": "half_pixel_symmetric"}, {"axes": [2, 3]}, {"antialias": 1}


@pytest.mark.parametrize("more", OTHER, ids=str)
def test_other_ways_to_resize_are_refused_by_name(more):
    tensors = {"r": np.zeros(0, np.float32), "s": np.float32([1, 1, 2, 2])}
    with pytest.raises(UnsupportedError, match=f"Resize .*{next(iter(more))}"):
        read_network(model([("Resize", "x r s", "y", more)], [1, 1, 2, 2], tensors, opset=19))
