"""The checker's own reading of models: operators against onnxruntime, misreadings found, exactness, hostile bytes."""

from __future__ import annotations

import gzip
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from mucg4.check.confirm import Confirmation, confirm
from mucg4.check.exactly import exactly_equal
from mucg4.check.reading import Reading
from mucg4.check.values import Value
from mucg4.check.wire import decode, tensor
from mucg4.errors import InputError, UnsupportedError
from mucg4.model.network import Network
from mucg4.ops.affine import Dense
from mucg4.ops.conv import Conv
from mucg4.read.onnx import read_network

rng = np.random.default_rng(41)
F, D, I64 = 1, 11, 7
LARGEST = np.finfo(np.float32).max


def f32(*shape):
    return rng.normal(size=shape).astype(np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


def model(nodes, shape, tensors=None, opset=13, kind=F):
    """ONNX bytes: `nodes` are (operator, inputs, outputs, attributes), `-` an absent input; from x to y."""
    from onnx import helper, numpy_helper

    made = []
    for k, (op, i, o, a) in enumerate(nodes):
        names = ["" if n == "-" else n for n in i.split()]
        made.append(helper.make_node(op, names, o.split(), name=f"n{k}", **a))
    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in (tensors or {}).items()]
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(made, "g", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def second(data, points):
    """The second reading's values at `points (batch, n)`, and what they may be off by."""
    reading = Reading(data, 10**9)
    out = reading.run(points, lambda name, value: value)
    assert reading.fallback == [] and isinstance(out, Value)
    return out.v.reshape(len(points), -1), None if out.e is None else out.e.reshape(len(points), -1)


X4, X3, X2 = [1, 4, 6, 5], [1, 4, 9], [1, 6]
W2 = f32(6, 4, 3, 2)
OPERATORS = {
    "conv": ("Conv", X4, {"w": W2, "b": f32(6)}, {"strides": [2, 1], "pads": [1, 0, 1, 2]}, 11),
    "conv-dilated": ("Conv", X4, {"w": W2}, {"dilations": [2, 3], "pads": [0, 2, 0, 2]}, 11),
    "conv-same-upper": ("Conv", X4, {"w": W2}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 11),
    "conv-same-lower": ("Conv", X4, {"w": W2}, {"auto_pad": "SAME_LOWER", "strides": [1, 2]}, 11),
    "conv-groups": ("Conv", X3, {"w": f32(6, 2, 3), "b": f32(6)}, {"group": 2, "strides": [2], "pads": [1, 0]}, 11),
    "transposed": ("ConvTranspose", X4, {"w": f32(4, 2, 4, 4), "b": f32(2)}, {"strides": [2, 2], "pads": [1] * 4}, 11),
    "transposed-1d": (
        "ConvTranspose",
        X3,
        {"w": f32(4, 3, 3)},
        {"strides": [2], "output_padding": [1], "group": 2},
        11,
    ),
    "transposed-shape": (
        "ConvTranspose",
        X4,
        {"w": f32(4, 1, 3, 3)},
        {"strides": [2, 2], "output_shape": [12, 10]},
        11,
    ),
    "transposed-same": ("ConvTranspose", X4, {"w": f32(4, 1, 3, 3)}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, 11),
    "average": ("AveragePool", X4, {}, {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 0, 1]}, 11),
    "average-pad": ("AveragePool", X4, {}, {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}, 11),
    "max": ("MaxPool", X4, {}, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, 11),
    "max-dilated": ("MaxPool", X3, {}, {"kernel_shape": [2], "dilations": [2], "auto_pad": "SAME_UPPER"}, 11),
    "global-average": ("GlobalAveragePool", X4, {}, {}, 11),
    "global-max": ("GlobalMaxPool", X4, {}, {}, 11),
    "gemm": ("Gemm", X2, {"w": f32(5, 6), "c": f32(1, 5)}, {"transB": 1, "alpha": 0.5, "beta": 2.0}, 13),
    "matmul": ("MatMul", X2, {"w": f32(6, 4)}, {}, 13),
    "matmul-vector": ("MatMul", X2, {"w": f32(6)}, {}, 13),
    "matmul-rows": ("MatMul", [1, 5, 6], {"w": f32(6, 3)}, {}, 13),
    "matmul-deep": ("MatMul", [1, 2, 6], {"w": f32(1, 1, 6, 3)}, {}, 13),
    "add-growing": ("Add", [1, 3, 1], {"c": f32(2, 1, 4)}, {}, 13),
    "mul": ("Mul", X4, {"c": f32(1, 4, 1, 1)}, {}, 13),
    "div": ("Div", X2, {"c": np.abs(f32(6)) + 1}, {}, 13),
    "batchnorm": ("BatchNormalization", X4, {k: abs(f32(4)) for k in "sbmv"}, {"epsilon": 0.8}, 13),
    "leaky": ("LeakyRelu", X2, {}, {"alpha": 1.5}, 13),
    "prelu": ("PRelu", X4, {"s": f32(4, 1, 1)}, {}, 13),
    "thresholded": ("ThresholdedRelu", X2, {}, {"alpha": 0.5}, 13),
    "clip": ("Clip", X2, {"lo": np.float32(-0.5), "hi": np.float32(1.5)}, {}, 13),
    "clip-6": ("Clip", X2, {}, {"min": -0.5, "max": 0.25}, 6),
    "clip-crossed": ("Clip", X2, {"lo": np.float32(1), "hi": np.float32(-1)}, {}, 13),
    "hard-sigmoid": ("HardSigmoid", X2, {}, {"alpha": 0.3}, 13),
    "hard-swish": ("HardSwish", X2, {}, {}, 14),
    "elu": ("Elu", X2, {}, {"alpha": 0.3}, 13),
    "selu": ("Selu", X2, {}, {}, 13),
    "celu": ("Celu", X2, {}, {"alpha": 2.5}, 13),
    "gelu": ("Gelu", X2, {}, {}, 20),
    "gelu-tanh": ("Gelu", X2, {}, {"approximate": "tanh"}, 20),
    "mish": ("Mish", X2, {}, {}, 18),
    "softmax": ("Softmax", [1, 3, 4], {}, {"axis": 1}, 13),
    "softmax-11": ("Softmax", [1, 3, 4], {}, {"axis": 1}, 11),
    "log-softmax": ("LogSoftmax", [1, 3, 4], {}, {}, 13),
    "max-n": ("Max", X2, {"c": f32(6), "d": f32(1)}, {}, 13),
    "sum-n": ("Sum", X2, {"c": f32(6), "d": f32(1)}, {}, 13),
    "flatten": ("Flatten", X4, {}, {"axis": -2}, 13),
    "reshape": ("Reshape", X4, {"s": ints(0, -1, 2, 5)}, {}, 13),
    "unsqueeze": ("Unsqueeze", X2, {"a": ints(-1, 1)}, {}, 13),
    "transpose": ("Transpose", X4, {}, {"perm": [0, 2, 3, 1]}, 13),
    "slice": ("Slice", X4, {"s": ints(-2, 100), "e": ints(100, -100), "a": ints(2, 3), "d": ints(1, -2)}, {}, 13),
    "slice-9": ("Slice", X4, {}, {"starts": [1, -3], "ends": [3, 2**60], "axes": [1, 3]}, 9),
    "gather": ("Gather", X4, {"i": ints(2, 0, -1)}, {"axis": 3}, 13),
    "expand": ("Expand", [1, 3, 1], {"s": ints(2, 1, 4)}, {}, 13),
    "tile": ("Tile", [1, 3], {"r": ints(2, 2)}, {}, 13),
    "pad": ("Pad", X4, {"p": ints(0, 0, 1, 2, 0, 0, 0, 1), "v": np.float32(0.5)}, {}, 13),
    "pad-cut": ("Pad", X4, {"p": ints(0, 0, -1, 2, 0, 1, 0, 0)}, {}, 13),
    "pad-reflect": ("Pad", X4, {"p": ints(0, 0, 1, 2, 0, 0, 0, 1)}, {"mode": "reflect"}, 13),
    "reduce-sum": ("ReduceSum", X4, {"a": ints(1, -1)}, {"keepdims": 0}, 13),
    "reduce-mean": ("ReduceMean", X4, {}, {"axes": [2, 3]}, 13),
    "reduce-max": ("ReduceMax", X4, {}, {"axes": [1, 3], "keepdims": 0}, 13),
    "depth-to-space": ("DepthToSpace", [1, 8, 2, 3], {}, {"blocksize": 2}, 13),
    "depth-to-space-crd": ("DepthToSpace", [1, 8, 2, 3], {}, {"blocksize": 2, "mode": "CRD"}, 13),
    "space-to-depth": ("SpaceToDepth", [1, 2, 4, 6], {}, {"blocksize": 2}, 13),
    "upsample": ("Upsample", [1, 2, 3, 5], {"s": np.float32([1, 1, 1.5, 1.1])}, {}, 9),
    "upsample-same": ("Upsample", [1, 1, 5, 3], {"s": np.float32([1, 1, 1.1, 1.3])}, {}, 9),
    "resize-down": ("Resize", [1, 1, 5, 7], {"s": np.float32([1, 1, 0.6, 0.7])}, {}, 10),
    "pow": ("Pow", X2, {"e": np.float32(3)}, {}, 13),
    **{
        op.lower(): (op, X2, {}, {}, 13)
        for op in "Relu Neg Abs Sigmoid Tanh Erf Atan Softsign Softplus Sin Cos".split()
    },
    **{op.lower(): (op, X2, {}, {}, 13) for op in "Exp Sign Floor Ceil Round Identity Reciprocal".split()},
}


@pytest.mark.parametrize("case", OPERATORS)
def test_operator_agrees_with_onnxruntime_and_with_the_first_reading(case):
    import onnxruntime

    op, shape, tensors, attributes, opset = OPERATORS[case]
    data = model([(op, " ".join(["x", *tensors]), "y", attributes)], shape, tensors, opset)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    x = (rng.normal(size=(4, int(np.prod(shape)))) * 2).astype(np.float32)
    x[0] = np.round(x[0] * 2) / 2
    expected = np.stack([session.run(None, {"x": p.reshape(shape)})[0].ravel() for p in x])
    values, _ = second(data, x.astype(np.float64))
    assert values.shape == expected.shape
    with np.errstate(invalid="ignore"):
        assert np.all((abs(values - expected) <= 2e-5 * np.maximum(1, abs(expected))) | (values == expected))
    try:
        network = read_network(data)
    except UnsupportedError:
        return
    first, found = network(x.astype(np.float64)), confirm(data, network)
    right = first.shape == expected.shape and np.allclose(first, expected, rtol=2e-5, atol=2e-5)
    assert (found.problem is None) == right and found.fallback == () and bool(found.compared) >= right


def mixed():
    """A convolutional network with everything that the first reader folds and rewrites."""
    tensors = {
        "w1": f32(3, 2, 3, 3), "b1": f32(3), "s": abs(f32(3)) + 0.5, "t": f32(3), "m": f32(3), "v": abs(f32(3)) + 0.5,
        "mean": f32(2, 1, 1), "w2": f32(27, 5), "b2": f32(5), "w3": f32(5, 5),
        "lo": np.float32(-1), "hi": np.float32(2),
    }  # fmt: skip
    nodes = [
        ("Sub", "x mean", "c", {}),
        ("Conv", "c w1 b1", "z", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", "z s t m v", "n", {}),
        ("Relu", "n", "h", {}),
        ("MaxPool", "h", "p", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 0, 0]}),
        ("Flatten", "p", "f", {}),
        ("MatMul", "f w2", "g", {}),
        ("Add", "g b2", "a", {}),
        ("Clip", "a lo hi", "k", {}),
        ("Gemm", "k w3", "q", {"alpha": 0.5}),
        ("Softmax", "q", "r", {}),
        ("Add", "r k", "y", {}),
    ]
    return model(nodes, [1, 2, 5, 5], tensors)


def dense(*sizes, kind=np.float32):
    nodes, tensors, at = [], {}, "x"
    for i, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        tensors[f"w{i}"], tensors[f"b{i}"] = rng.normal(size=(n, m)).astype(kind), rng.normal(size=m).astype(kind)
        last = i + 2 == len(sizes)
        nodes += [("MatMul", f"{at} w{i}", f"m{i}", {}), ("Add", f"m{i} b{i}", "y" if last else f"z{i}", {})]
        at = f"h{i}"
        nodes += [] if last else [("Relu", f"z{i}", at, {})]
    return model(nodes, [1, sizes[0]], tensors, kind=F if kind == np.float32 else D)


def test_whole_networks_confirm():
    for data in (mixed(), dense(5, 20, 20, 3), dense(4, 8, 2, kind=np.float64)):
        found = confirm(data, read_network(data))
        assert (found.problem, found.fallback) == (None, ())


def test_factors_made_alike_and_gates_with_further_readers_confirm():
    same = [("Sub", "x c", "s", {}), ("Sub", "x c", "t", {}), ("Mul", "s t", "p", {}), ("Add", "p t", "y", {})]
    gate = [("Sigmoid", "x", "s", {}), ("Mul", "x s", "p", {}), ("Add", "p s", "y", {})]
    for nodes in (same, gate):
        data = model(nodes, [1, 3], {"c": f32(3)})
        found = confirm(data, read_network(data))
        assert (found.problem, found.fallback) == (None, ())


def test_there_and_back_between_element_types_is_nothing_and_integers_stay_integers():
    back = [("Cast", "x", "t", {"to": D}), ("Cast", "t", "y", {"to": F})]
    whole = [("Sign", "c", "s", {}), ("Add", "s c", "a", {}), ("Pow", "a e", "p", {}), ("Cast", "p", "f", {"to": F})]
    for nodes in (back, [*whole, ("Mul", "x f", "y", {})]):
        data = model(nodes, [1, 3], {"c": ints(-3, 0, 5), "e": ints(2)})
        found = confirm(data, read_network(data))
        assert (found.problem, found.fallback) == (None, ())


def test_the_families_confirm(benchmarks):
    """One model of each family, the smallest; none falls back."""
    for family in sorted(p for p in benchmarks.iterdir() if (p / "onnx").is_dir()):
        file = min((p for p in family.rglob("*.onnx*") if p.is_file()), key=lambda p: (p.stat().st_size, p.name))
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        found = confirm(data, read_network(data))
        assert (found.problem, found.fallback) == (None, ()), file.name


# -- misreadings ---------------------------------------------------------------------------------------------------


def misread(right: bytes, wrong: bytes) -> Confirmation:
    """What is found when a reader takes the model `right` for the model `wrong`."""
    return confirm(right, replace(read_network(wrong), model_bytes=right))


def operator(op, inputs="x", tensors=None, opset=13, shape=(1, 6), kind=F, **attributes):
    return model([(op, inputs, "y", attributes)], list(shape), tensors, opset, kind)


_W, _S = f32(4, 4, 3, 3), f32(6, 6)
_SQUARE = {"w": _S}
_HALF = {"w": np.float32([0.5])}
_BN = {k: abs(f32(4)) + 0.1 for k in "sbmv"}
_BIG = {"a": ints(2**62 + 12345), "b": ints(3)}
_Q = {"q": rng.integers(-99, 99, (6, 3)).astype(np.int8), "s": np.float32(0.0123), "z": np.int8(7)}
_DIVIDED = [("Sub", "d c", "e", {}), ("Cast", "e", "f", {"to": D}), ("Mul", "x f", "y", {})]
_FAR = {"c": ints((2**62 + 12345) // 3 - 7)}


def _image(op, tensors=None, opset=11, shape=(1, 4, 6, 6), inputs=None, **attributes):
    return operator(op, inputs or " ".join(["x", *(tensors or {})]), tensors, opset, shape, **attributes)


MISREADINGS = {
    # what readers got wrong before (the eighth, a session's own rounding of activations, is not the file's)
    "clip limit at the largest float": (
        operator("Clip", "x lo", {"lo": LARGEST}),
        operator("Identity"),
    ),
    "resized to the same length on one axis": (
        _image("Upsample", {"s": np.float32([1, 1, 1.5, 1.3])}, 9, (1, 1, 2, 3)),
        _image("Upsample", {"s": np.float32([1, 1, 1.5, 1])}, 9, (1, 1, 2, 3)),
    ),
    "downsampling of operator set 10": (
        _image("Resize", {"s": np.float32([1, 1, 1, 0.6])}, 10, (1, 1, 1, 5)),
        _image("Gather", {"i": ints(0, 1, 3)}, 10, (1, 1, 1, 5), axis=3),
    ),
    "aspect ratio ignored": (
        _image("Resize", {"z": ints(1, 1, 2, 4)}, 18, (1, 1, 2, 2), "x - - z", keep_aspect_ratio_policy="not_larger"),
        _image("Resize", {"z": ints(1, 1, 2, 4)}, 18, (1, 1, 2, 2), "x - - z"),
    ),
    "SAME padding with a dilation": (
        _image("MaxPool", None, 11, (1, 1, 6), kernel_shape=[2], dilations=[3], auto_pad="SAME_UPPER"),
        _image("MaxPool", None, 11, (1, 1, 6), kernel_shape=[2], dilations=[3], pads=[1, 2]),
    ),
    "division of large integers in double": (
        model([("Div", "a b", "d", {}), *_DIVIDED], [1], _BIG | _FAR, kind=D),
        model(_DIVIDED, [1], {"d": ints(int(float(2**62 + 12345) / 3.0))} | _FAR, kind=D),
    ),
    "a cast to float32 taken for nothing": (
        model([("Cast", "x", "c", {"to": F}), ("Cast", "c", "d", {"to": D}), ("Sub", "x d", "y", {})], [1, 3], kind=D),
        model([("Sub", "x x", "y", {})], [1, 3], kind=D),
    ),
    # others
    "an infinite limit on the wrong side": (operator("Clip", "x lo", {"lo": np.float32(np.inf)}), operator("Identity")),
    "dropped node": (operator("Relu"), operator("Identity")),
    "clip limit ignored": (operator("Clip", "x - hi", {"hi": np.float32(1e6)}), operator("Identity")),
    "clip limits in the wrong order": (
        operator("Clip", "x lo hi", {"lo": np.float32(1), "hi": np.float32(-1)}),
        operator("Clip", "x lo hi", {"lo": np.float32(-1), "hi": np.float32(1)}),
    ),
    "swapped channels": (_image("Conv", {"w": _W}), _image("Conv", {"w": _W[:, [1, 0, 2, 3]]})),
    "swapped outputs": (_image("Conv", {"w": _W}), _image("Conv", {"w": _W[[1, 0, 2, 3]]})),
    "flipped kernel": (_image("Conv", {"w": _W}), _image("Conv", {"w": _W[:, :, ::-1]})),
    "shifted padding": (_image("Conv", {"w": _W}, pads=[1, 0, 0, 0]), _image("Conv", {"w": _W}, pads=[0, 0, 1, 0])),
    "SAME_LOWER for SAME_UPPER": (
        _image("Conv", {"w": _W}, strides=[2, 2], auto_pad="SAME_UPPER"),
        _image("Conv", {"w": _W}, strides=[2, 2], auto_pad="SAME_LOWER"),
    ),
    "padding counted in a mean": (
        _image("AveragePool", kernel_shape=[3, 3], pads=[1] * 4),
        _image("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    ),
    "mean for maximum": (_image("GlobalMaxPool"), _image("GlobalAveragePool")),
    "padding shifted in a pool": (
        _image("MaxPool", kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1]),
        _image("MaxPool", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 2, 2][:2] + [1, 1]),
    ),
    "wrong axis of softmax": (
        operator("Softmax", shape=(1, 3, 3), axis=1),
        operator("Softmax", shape=(1, 3, 3), axis=2),
    ),
    "softmax of an old operator set": (
        operator("Softmax", opset=11, shape=(1, 3, 3), axis=1),
        operator("Softmax", opset=13, shape=(1, 3, 3), axis=2),
    ),
    "wrong axis of a sum": (
        operator("ReduceSum", "x a", {"a": ints(1)}, shape=(1, 3, 3), keepdims=0),
        operator("ReduceSum", "x a", {"a": ints(2)}, shape=(1, 3, 3), keepdims=0),
    ),
    "wrong axis of a gather": (
        operator("Gather", "x i", {"i": ints(1, 0, 2)}, shape=(1, 3, 3), axis=1),
        operator("Gather", "x i", {"i": ints(1, 0, 2)}, shape=(1, 3, 3), axis=2),
    ),
    "order of a transpose": (
        operator("Transpose", shape=(1, 2, 3), perm=[0, 2, 1]),
        operator("Reshape", "x s", {"s": ints(1, 3, 2)}, shape=(1, 2, 3)),
    ),
    "weight not transposed": (operator("Gemm", "x w", _SQUARE, transB=1), operator("Gemm", "x w", _SQUARE)),
    "alpha of Gemm ignored": (operator("Gemm", "x w", _SQUARE, alpha=0.999), operator("Gemm", "x w", _SQUARE)),
    "operands of a difference swapped": (operator("Sub", "x w", _HALF), operator("Sub", "w x", _HALF)),
    "slope ignored": (operator("LeakyRelu", alpha=0.02), operator("LeakyRelu")),
    "slopes per channel": (
        _image("PRelu", {"s": np.float32([1, 2, 3, 4]).reshape(4, 1, 1)}, shape=(1, 4, 4, 4)),
        _image("PRelu", {"s": np.float32([1, 2, 3, 4])}, shape=(1, 4, 4, 4)),
    ),
    "epsilon ignored": (_image("BatchNormalization", _BN, 9), _image("BatchNormalization", _BN, 9, epsilon=0.0)),
    "up for to nearest": (operator("Round"), operator("Ceil")),
    "pad value ignored": (
        operator("Pad", "x p v", {"p": ints(0, 1, 0, 1), "v": np.float32(0.25)}),
        operator("Pad", "x p", {"p": ints(0, 1, 0, 1)}),
    ),
    "the other Gelu": (operator("Gelu", opset=20, approximate="tanh"), operator("Gelu", opset=20)),
    "order of blocks": (
        _image("DepthToSpace", shape=(1, 8, 2, 3), blocksize=2),
        _image("DepthToSpace", shape=(1, 8, 2, 3), blocksize=2, mode="CRD"),
    ),
    "zero point ignored": (
        model([("DequantizeLinear", "q s z", "w", {}), ("MatMul", "x w", "y", {})], [1, 6], _Q),
        model([("DequantizeLinear", "q s", "w", {}), ("MatMul", "x w", "y", {})], [1, 6], {k: _Q[k] for k in "qs"}),
    ),
    "dequantised in double": (
        model([("DequantizeLinear", "q s z", "w", {}), ("MatMul", "x w", "y", {})], [1, 6], _Q),
        model(
            [
                ("Cast", "q", "f", {"to": F}),
                ("Sub", "f seven", "g", {}),
                ("Mul", "g s", "w", {}),
                ("MatMul", "x w", "y", {}),
            ],
            [1, 6],
            {"q": _Q["q"], "s": _Q["s"], "seven": np.float32(7)},
        ),
    ),
    "stride of a transposed convolution": (
        _image("ConvTranspose", {"w": _W}, strides=[2, 1], output_padding=[1, 0], pads=[1, 0, 0, 2]),
        _image("ConvTranspose", {"w": _W}, strides=[2, 1], pads=[0, 0, 0, 2]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISREADINGS)
def test_misreadings_are_reported(case):
    right, wrong = MISREADINGS[case]
    assert misread(right, wrong).problem
    if "infinite" not in case:
        assert not misread(wrong, wrong).problem


def test_nothing_hides_behind_a_saturated_relu():
    """The head of this network is 0 near its box and far outside: only free carriers can show what it reads."""
    tensors = {"w": f32(3, 4), "low": np.float32(-1e30), "v": f32(4, 2), "u": f32(4, 2)}

    def deep(name):
        nodes = [("MatMul", "x w", "z", {}), ("Add", "z low", "a", {}), ("Relu", "a", "h", {})]
        return model([*nodes, ("MatMul", f"h {name}", "y", {})], [1, 3], tensors)

    assert "'y'" in str(misread(deep("v"), deep("u")).problem)
    assert misread(deep("v"), deep("v")) == confirm(deep("v"), read_network(deep("v")))


def _changed(network: Network, factor: float):
    """Networks with one weight or offset of one affine node changed, a few for each node."""
    rng = np.random.default_rng(3)  # which ones must not depend on the tests before
    for k, node in enumerate(network.nodes):
        for key in ("weight", "offset", "scale"):
            a = getattr(node.op, key, None)
            if not isinstance(a, np.ndarray) or not isinstance(node.op, (Dense, Conv)):
                continue
            large = np.flatnonzero(abs(a.ravel()) > 1e-2)
            for i in rng.choice(large, 4) if len(large) else ():
                changed = a.copy()
                changed.ravel()[i] *= factor
                nodes = list(network.nodes)
                nodes[k] = replace(node, op=replace(node.op, **{key: changed}))
                yield replace(network, nodes=tuple(nodes))


@pytest.mark.parametrize("make", [mixed, lambda: dense(5, 30, 30, 4)])
def test_one_weight_changed_by_a_millionth_is_reported(make):
    data = make()
    network, count = read_network(data), 0
    for changed in _changed(network, 1 + 1e-6):
        found = confirm(data, changed)
        assert found.problem or found.fallback == ("tensor 'k' is compared where it is flat only",)
        count += 1
    assert count >= 8


def test_what_the_second_reading_does_not_know_is_named():
    import onnx

    data = model([("Relu", "x", "h", {}), ("Neg", "h", "y", {})], [1, 3])
    strange = onnx.load_from_string(data)
    strange.graph.node[0].op_type = "Strange"
    found = confirm(strange.SerializeToString(), read_network(data))
    assert found.problem is None and found.fallback[0] == "Strange ('n0')" and "the output" in found.fallback
    strange.graph.node[0].op_type = "Relu"
    strange.graph.node[0].attribute.append(onnx.helper.make_attribute("new", 1))
    assert confirm(strange.SerializeToString(), read_network(data)).fallback[0] == "Relu ('n0'): attribute 'new'"


def test_two_nodes_of_one_name_are_reported():
    data = mixed()
    network = read_network(data)
    nodes = list(network.nodes)
    nodes[1] = replace(nodes[1], name=nodes[-1].name)
    assert "two nodes" in str(confirm(data, replace(network, nodes=tuple(nodes))).problem)


def test_work_is_limited():
    data = mixed()
    found = confirm(data, read_network(data), operations=2000)
    assert found.problem is None and "too many" in found.fallback[0] and found.compared == 0


# -- arithmetic ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_errors_are_bounded_by_what_values_carry(seed):
    """The float64 reading against the exact one at the same points."""
    random = np.random.default_rng(seed)
    tensors = {"w": f32(12, 3, 2, 2), "b": f32(12), "s": f32(1, 12, 1, 1), "m": f32(12 * 9, 7), "d": f32(7) + 3}
    nodes = [
        ("Conv", "x w b", "z", {}),
        ("Mul", "z s", "a", {}),
        ("Relu", "a", "h", {}),
        ("Flatten", "h", "f", {}),
        ("MatMul", "f m", "g", {}),
        ("Div", "g d", "k", {}),
        ("ReduceMean", "k", "mean", {"axes": [1]}),
        ("Sub", "k mean", "c", {}),
        ("Mul", "c c", "y", {}),
    ]
    data = model(nodes, [1, 3, 4, 4], tensors)
    x = random.normal(size=(3, 48)) * 10.0 ** random.integers(-3, 4, size=(3, 1))
    values, errors = second(data, x)
    exact = Reading(data, 10**9, exact=True)
    out = exact.run(np.array([[Fraction(v) for v in row] for row in x], dtype=object), lambda name, value: value)
    assert out is not None and errors is not None
    gap = np.array([abs(Fraction(v) - e) for v, e in zip(values.ravel().tolist(), out.v.ravel(), strict=True)])
    assert np.all(gap <= errors.ravel()) and np.all(errors < 1e-9 * abs(values).max())


def test_exactly_equal_networks_and_rounded_ones():
    data = dense(5, 20, 20, 3)
    network = read_network(data)
    assert exactly_equal(data, network) is None
    for changed in _changed(network, 1 + 2.0**-52):
        assert "not exactly" in str(exactly_equal(data, changed))
    image = model(
        [("Conv", "x w b", "z", {"pads": [1] * 4}), ("Relu", "z", "y", {})], [1, 4, 5, 5], {"w": _W, "b": f32(4)}
    )
    assert exactly_equal(image, read_network(image)) is None
    halves = model([("Conv", "x w", "z", {}), ("Mul", "z h", "y", {})], [1, 4, 5, 5], {"w": _W, "h": np.float32(0.5)})
    assert exactly_equal(halves, read_network(halves)) is None
    thirds = model([("Conv", "x w", "z", {}), ("Div", "z h", "y", {})], [1, 4, 5, 5], {"w": _W, "h": np.float32(3)})
    assert "not exactly" in str(exactly_equal(thirds, read_network(thirds)))
    smooth = mixed()
    assert exactly_equal(smooth, read_network(smooth)) is not None


def test_clips_and_pools_are_exact():
    nodes = [
        ("Conv", "x w", "z", {}),
        ("MaxPool", "z", "p", {"kernel_shape": [2, 2]}),
        ("Clip", "p lo hi", "c", {}),
        ("LeakyRelu", "c", "l", {"alpha": 0.25}),
        ("Abs", "l", "y", {}),
    ]
    data = model(nodes, [1, 4, 5, 5], {"w": _W, "lo": np.float32(-1), "hi": np.float32(3)})
    assert exactly_equal(data, read_network(data)) is None
    wrong = model(nodes, [1, 4, 5, 5], {"w": _W, "lo": np.float32(-1), "hi": np.float32(3.0000002)})
    assert exactly_equal(data, read_network(wrong)) is not None


# -- bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "fields"])
def test_stored_numbers_of_all_types(kind):
    from onnx import TensorProto, helper, numpy_helper

    for dtype in (
        np.float32,
        np.float64,
        np.int8,
        np.uint8,
        np.int16,
        np.uint16,
        np.int32,
        np.int64,
        np.uint32,
        np.uint64,
    ):
        a = (rng.normal(size=(3, 4)) * 50).astype(dtype)
        made = numpy_helper.from_array(a)
        if kind == "fields":
            made = helper.make_tensor("t", made.data_type, a.shape, a.ravel().tolist())
        assert np.array_equal(tensor(memoryview(made.SerializeToString())).value, a)
    for code, values in ((TensorProto.FLOAT16, [1.5, -2.25, 6e-8]), (TensorProto.BFLOAT16, [1.5, -2.25, 1e30])):
        made = helper.make_tensor("t", code, [3], values)
        assert np.allclose(tensor(memoryview(made.SerializeToString())).value, values, rtol=0.01, atol=1e-8)
    nibbles = TensorProto(name="t", data_type=TensorProto.INT4, dims=[3], raw_data=bytes([0x8F, 0x07]))
    assert tensor(memoryview(nibbles.SerializeToString())).value.tolist() == [-1, -8, 7]


def test_submessages_are_merged_and_unknown_fields_skipped():
    data = dense(3, 4, 2)
    graph = decode(data)
    assert decode(data + b"\xf8\x3f\x05").nodes[0].op == graph.nodes[0].op  # a field of number 1023
    assert len(decode(data + b"\x3a\x00").nodes) == len(graph.nodes)  # a second, empty graph


def test_hostile_bytes_give_typed_errors_only():
    """Mutants of small models: decoding raises `InputError` or nothing, `confirm` never raises."""
    random = np.random.default_rng(5)
    models = [mixed(), dense(3, 4, 2), *(MISREADINGS[k][0] for k in list(MISREADINGS)[1:7])]
    network = read_network(models[1])
    for number in range(2000):
        data = bytearray(models[number % len(models)])
        for _ in range(random.integers(1, 6)):
            at = int(random.integers(len(data)))
            how = random.integers(4)
            if how == 0:
                data[at] = random.integers(256)
            elif how == 1:
                del data[at : at + int(random.integers(1, 9))]
            elif how == 2:
                data[at:at] = random.bytes(int(random.integers(1, 9)))
            else:
                data[at : at + 1] = b"\xff\xff\xff\xff\x7f"
        try:
            reading = Reading(bytes(data), 10**6)
            reading.run(np.zeros((2, int(np.prod(reading.shapes[0])))), lambda name, value: value)
        except InputError:
            pass
        if number % 2:
            assert isinstance(confirm(bytes(data), network, operations=20_000_000), Confirmation)


def test_shapes_that_would_fill_the_memory_are_refused():
    doubled = [("Concat", f"t{i} t{i}", f"t{i + 1}", {"axis": 0}) for i in range(60)]
    bombs = [
        operator("Expand", "x s", {"s": ints(2**30, 2**30, 6)}),
        operator("Tile", "x r", {"r": ints(2**31, 2**20)}),
        operator("Pad", "x p", {"p": ints(0, 2**40, 0, 2**40)}),
        operator("Pad", "x p", {"p": ints(0, 2**33, 0, 0)}),
        _image("MaxPool", kernel_shape=[2, 2], pads=[1, 1, 2**40, 2**40]),
        _image("Upsample", {"s": np.float32([1, 1, 1e9, 1e9])}, 9),
        model([("ConstantOfShape", "s", "c", {}), ("Add", "x c", "y", {})], [1, 6], {"s": ints(2**33, 2**20)}),
        model([("Reshape", "x s", "t", {}), ("Add", "x t", "y", {})], [1, 2**20], {"s": ints(2**20, 1)}),
        model([("Identity", "x", "t0", {}), *doubled, ("Identity", "t60", "y", {})], [1, 6]),
    ]  # fmt: skip
    for data in bombs:
        try:
            reading = Reading(data, 10**9)
            assert reading.run(np.zeros((2, int(np.prod(reading.shapes[0])))), lambda name, value: value) is None
            assert reading.fallback
        except InputError:
            pass


def test_the_second_reading_stands_alone():
    code = (
        "import sys, mucg4.check.confirm, mucg4.check.exactly\n"
        "assert not [m for m in sys.modules if m.startswith(('mucg4.read', 'mucg4.bound', 'onnx', 'google', 'scipy'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
