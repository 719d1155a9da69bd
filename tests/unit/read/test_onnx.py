"""The ONNX reader: every operator against onnxruntime, canonical form, names, and refusals."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mucg4.errors import InputError, UnsupportedError
from mucg4.read.onnx import read_network

rng = np.random.default_rng(11)
F, D = 1, 11  # ONNX element types: float, double


def f32(*shape):
    return rng.normal(size=shape).astype(np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


def model(nodes, shape, tensors=None, opset=13, kind=F, out="y", inputs_too=False):
    """ONNX bytes: `nodes` are (operator, inputs, outputs, attributes); the input is x, the output y."""
    from onnx import helper, numpy_helper

    made = [helper.make_node(op, i.split(), o.split(), name=f"n{k}", **a) for k, (op, i, o, a) in enumerate(nodes)]
    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in (tensors or {}).items()]
    more = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stored if inputs_too]
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info(out, kind, None)
    graph = helper.make_graph(made, "g", [x, *more], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def agrees(data, points=4, spread=2.0):
    """Compare the canonical network with onnxruntime on random points; returns the network."""
    import onnxruntime

    network = read_network(data)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # above the basic level constants that are dequantised get multiplied with activations rounded to 8 bits
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0]
    shape = [d if isinstance(d, int) else 1 for d in feed.shape]
    dtype = np.float32 if feed.type == "tensor(float)" else np.float64
    for _ in range(points):
        x = (rng.normal(size=shape) * spread).astype(dtype)
        y = session.run(None, {feed.name: x})[0]
        z = network(x.reshape(1, -1))
        assert z.shape == (1, y.size)
        assert np.max(abs(z[0] - y.ravel())) <= 1e-5 * max(1.0, float(np.max(abs(y))))
    return network


def close_enough(op, exact):
    """The offset is as close to the exact one as the rounding places take for granted (see `Dense`)."""
    known = op.bias_magnitude() if op.offset_magnitude is not None else np.zeros(len(op.offset))
    for value, size, real in zip(op.offset, known, exact, strict=True):
        assert abs(Fraction(float(value)) - real) <= Fraction(op.fan_in, 2**52) * Fraction(float(size))
        assert op.offset_magnitude is None or size >= abs(value)


def kinds(network):
    return [n.op.kind if n.op else "Input" for n in network.nodes]


X4, X3, X2 = [1, 3, 6, 5], [1, 4, 9], [1, 6]
W2, B4 = f32(4, 3, 3, 2), f32(4)
SINGLE = {
    "conv": ("Conv", X4, {"w": W2, "b": B4}, {"strides": [2, 1], "pads": [1, 0, 1, 2]}),
    "conv-dilated": ("Conv", X4, {"w": W2}, {"dilations": [2, 3]}),
    "conv-same-upper": ("Conv", X4, {"w": W2}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv-same-lower": ("Conv", X4, {"w": W2}, {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
    "conv-valid": ("Conv", X4, {"w": W2}, {"auto_pad": "VALID"}),
    "conv-groups": ("Conv", X3, {"w": f32(6, 2, 3), "b": f32(6)}, {"group": 2, "strides": [2], "pads": [1, 0]}),
    "transposed": ("ConvTranspose", X4, {"w": f32(3, 2, 4, 4), "b": f32(2)}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "transposed-1d": ("ConvTranspose", X3, {"w": f32(4, 3, 3)}, {"strides": [2], "output_padding": [1], "group": 2}),
    "transposed-shape": ("ConvTranspose", X4, {"w": f32(3, 1, 3, 3)}, {"strides": [2, 2], "output_shape": [12, 10]}),
    "transposed-same": ("ConvTranspose", X4, {"w": f32(3, 1, 3, 3)}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "average": ("AveragePool", X4, {}, {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 0, 1]}),
    "average-pad": ("AveragePool", X4, {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    "max": ("MaxPool", X4, {}, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "max-1d": ("MaxPool", X3, {}, {"kernel_shape": [3], "strides": [3]}),
    "global-average": ("GlobalAveragePool", X4, {}, {}),
    "global-max": ("GlobalMaxPool", X4, {}, {}),
    "gemm": ("Gemm", X2, {"w": f32(5, 6), "c": f32(1, 5)}, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "matmul": ("MatMul", X2, {"w": f32(6, 4)}, {}),
    "matmul-vector": ("MatMul", X2, {"w": f32(6)}, {}),
    "matmul-rows": ("MatMul", [1, 5, 6], {"w": f32(6, 3)}, {}),
    "matmul-many-rows": ("MatMul", [1, 80, 30], {"w": f32(1, 30, 40)}, {}),
    "matmul-rank1": ("MatMul", [6], {"w": f32(6, 4)}, {}),
    "add": ("Add", X4, {"c": f32(3, 1, 5)}, {}),
    "add-growing": ("Add", [1, 3, 1], {"c": f32(2, 1, 4)}, {}),
    "mul": ("Mul", X4, {"c": f32(1, 3, 1, 1)}, {}),
    "div": ("Div", X2, {"c": np.abs(f32(6)) + 1}, {}),
    "batchnorm": (
        "BatchNormalization",
        X4,
        {"s": f32(3), "b": f32(3), "m": f32(3), "v": np.abs(f32(3))},
        {"epsilon": 0.8},
    ),
    "relu": ("Relu", X2, {}, {}),
    "neg": ("Neg", X2, {}, {}),
    "abs": ("Abs", X2, {}, {}),
    "sigmoid": ("Sigmoid", X2, {}, {}),
    "tanh": ("Tanh", X2, {}, {}),
    "hard-sigmoid": ("HardSigmoid", X2, {}, {"alpha": 0.3}),
    "leaky": ("LeakyRelu", X2, {}, {"alpha": 0.1}),
    "leaky-steep": ("LeakyRelu", X2, {}, {"alpha": 1.5}),
    "prelu": ("PRelu", X4, {"s": f32(3, 1, 1)}, {}),
    "clip": ("Clip", X2, {"lo": np.float32(-0.5), "hi": np.float32(1.5)}, {}),
    "clip-6": ("Clip", X2, {"lo": np.float32(0), "hi": np.float32(6)}, {}),
    "clip-open": ("Clip", X2, {"lo": np.finfo(np.float32).min, "hi": np.float32(np.inf)}, {}),
    "max-constant": ("Max", X2, {"c": f32(6), "d": f32(1)}, {}),
    "min-constant": ("Min", X2, {"c": f32(6)}, {}),
    "sum": ("Sum", X2, {"c": f32(6), "d": f32(1)}, {}),
    "flatten": ("Flatten", X4, {}, {"axis": 2}),
    "reshape": ("Reshape", X4, {"s": ints(0, -1, 2, 5)}, {}),
    "squeeze": ("Squeeze", [1, 3, 1, 2], {"a": ints(0, 2)}, {}),
    "unsqueeze": ("Unsqueeze", X2, {"a": ints(-1, 1)}, {}),
    "transpose": ("Transpose", X4, {}, {"perm": [0, 2, 3, 1]}),
    "slice": ("Slice", X4, {"s": ints(-2, 100), "e": ints(100, -100), "a": ints(2, 3), "d": ints(1, -2)}, {}),
    "gather": ("Gather", X4, {"i": ints(2, 0, -1)}, {"axis": 3}),
    "gather-one": ("Gather", X4, {"i": np.array(1)}, {"axis": 2}),
    "expand": ("Expand", [1, 3, 1], {"s": ints(2, 1, 4)}, {}),
    "tile": ("Tile", [1, 3], {"r": ints(2, 2)}, {}),
    "pad": ("Pad", X4, {"p": ints(0, 0, 1, 2, 0, 0, 0, 1), "v": np.float32(0.5)}, {}),
    "pad-cut": ("Pad", X4, {"p": ints(0, 0, -1, 2, 0, 1, 0, 0)}, {}),
    "pad-edge": ("Pad", X4, {"p": ints(0, 0, 1, 2, 0, 0, 0, 1)}, {"mode": "edge"}),
    "pad-reflect": ("Pad", X4, {"p": ints(0, 0, 1, 2, 0, 0, 0, 1)}, {"mode": "reflect"}),
    "reduce-sum": ("ReduceSum", X4, {"a": ints(1, -1)}, {"keepdims": 0}),
    "reduce-mean": ("ReduceMean", X4, {}, {"axes": [2, 3]}),
    "reduce-max": ("ReduceMax", X4, {}, {"axes": [1, 3], "keepdims": 0}),
    "reduce-min": ("ReduceMin", X3, {}, {"axes": [2]}),
    "depth-to-space": ("DepthToSpace", [1, 8, 2, 3], {}, {"blocksize": 2}),
    "depth-to-space-crd": ("DepthToSpace", [1, 8, 2, 3], {}, {"blocksize": 2, "mode": "CRD"}),
    "space-to-depth": ("SpaceToDepth", [1, 2, 4, 6], {}, {"blocksize": 2}),
}


@pytest.mark.parametrize("case", SINGLE)
@pytest.mark.parametrize("after", [None, "Relu"])
def test_operator_agrees_with_onnxruntime(case, after):
    op, shape, tensors, attributes = SINGLE[case]
    nodes = [(op, " ".join(["x", *tensors]), "made", attributes), (after or "Identity", "made", "y", {})]
    agrees(model(nodes, shape, tensors))


@pytest.mark.parametrize("frame", ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("mode", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_resize_to_nearest(frame, mode):
    attributes = {"mode": "nearest", "coordinate_transformation_mode": frame, "nearest_mode": mode}
    scales = {"s": np.array([1, 1, 2, 3], dtype=np.float32)}
    agrees(model([("Resize", "x r s", "y", attributes)], X4, {"r": np.zeros(0, np.float32), **scales}))


def test_upsample_and_old_attribute_forms():
    agrees(model([("Upsample", "x s", "y", {})], X4, {"s": np.array([1, 1, 2, 2], dtype=np.float32)}, opset=9))
    agrees(model([("Slice", "x", "y", {"starts": [1], "ends": [3], "axes": [2]})], X4, opset=9))
    agrees(model([("Clip", "x", "y", {"min": -0.5, "max": 0.5})], X2, opset=10))
    agrees(model([("Squeeze", "x", "t", {"axes": [0]}), ("Unsqueeze", "t", "y", {"axes": [1]})], X2, opset=11))
    agrees(model([("Pad", "x", "y", {"pads": [0, 1, 0, 2], "value": 1.5})], X2, opset=9))
    agrees(model([("ReduceSum", "x", "y", {"axes": [1]})], X2, opset=11))
    agrees(model([("Dropout", "x", "y", {"ratio": 0.3})], X2, opset=10))


def test_split_concat_and_sums_of_variables():
    nodes = [
        ("Split", "x", "a b c", {"axis": 1}),
        ("Sub", "a b", "d", {}),
        ("Max", "a b c", "e", {}),
        ("Concat", "d k e c", "f", {"axis": 1}),
        ("Relu", "f", "y", {}),
    ]
    agrees(model(nodes, [1, 6, 2], {"k": f32(1, 1, 2)}))


def test_broadcast_sum_of_variables():
    agrees(model([("Transpose", "x", "t", {}), ("Add", "x t", "y", {})], [1, 4]))


def test_constant_on_the_left_of_matmul():
    agrees(model([("MatMul", "w x", "y", {})], [5], {"w": f32(3, 5)}))
    agrees(model([("MatMul", "w x", "y", {})], [5, 4], {"w": f32(3, 5)}))
    agrees(model([("MatMul", "w x", "y", {})], [1, 5, 40], {"w": f32(30, 5)}))
    agrees(model([("MatMul", "w x", "y", {})], [5, 4], {"w": f32(5)}))
    left = read_network(model([("MatMul", "w x", "y", {})], [5], {"w": W2.reshape(12, 6)[:, :5]}))
    right = read_network(model([("MatMul", "x w", "y", {})], [5], {"w": W2.reshape(12, 6)[:, :5].T}))
    assert left.fingerprint == right.fingerprint


def test_preprocessing_and_bias_merge_into_the_first_layer():
    nodes = [
        ("Sub", "x mean", "s", {}),
        ("Div", "s range", "d", {}),
        ("Transpose", "d", "p", {"perm": [0, 2, 3, 1]}),
        ("Flatten", "p", "f", {}),
        ("MatMul", "f w", "m", {}),
        ("Add", "m b", "z", {}),
        ("Relu", "z", "y", {}),
    ]
    tensors = {"mean": f32(1, 3, 1, 1), "range": np.array(3, np.float32), "w": f32(90, 7), "b": f32(7)}
    network = agrees(model(nodes, X4, tensors))
    assert kinds(network) == ["Input", "Dense", "TwoPiece"]
    assert [n.name for n in network.nodes] == ["x", "z", "y"]
    assert network.nodes[0].shape == (3, 6, 5)
    exact = [Fraction(float(v)) for v in tensors["b"]]
    for j in range(7):
        for i, w in enumerate(tensors["w"].reshape(6, 5, 3, 7)[..., j].transpose(2, 0, 1).reshape(90)):
            exact[j] -= Fraction(float(w)) * Fraction(float(tensors["mean"].ravel()[i // 30])) / 3
    close_enough(network.nodes[1].op, exact)


def test_batchnorm_merges_on_either_side_of_a_convolution():
    norm = {f"{k}{i}": abs(f32(n)) for i, n in ((0, 3), (1, 4)) for k in "sbmv"}
    nodes = [
        ("BatchNormalization", "x s0 b0 m0 v0", "p", {}),
        ("Conv", "p w", "c", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", "c s1 b1 m1 v1", "z", {}),
        ("Relu", "z", "y", {}),
    ]
    network = agrees(model(nodes, [1, 3, 30, 30], {"w": W2, **norm}))
    assert kinds(network) == ["Input", "Conv", "TwoPiece"] and network.nodes[1].name == "z"


@pytest.mark.parametrize("group", [1, 3])
def test_diagonal_scales_merge_into_transposed_convolutions(group):
    norm = {f"{k}{i}": abs(f32(n)) for i, n in ((0, 6), (1, 3)) for k in "sbmv"}
    nodes = [
        ("BatchNormalization", "x s0 b0 m0 v0", "p", {}),
        ("ConvTranspose", "p w", "c", {"strides": [2, 2], "group": group}),
        ("BatchNormalization", "c s1 b1 m1 v1", "y", {}),
    ]
    network = agrees(model(nodes, [1, 6, 16, 16], {"w": f32(6, 3 // group, 3, 3), **norm}))
    assert kinds(network) == ["Input", "ConvTranspose"]


def test_grouped_convolution_takes_scales_per_channel():
    nodes = [("Mul", "x s", "p", {}), ("Conv", "p w", "c", {"group": 3}), ("Mul", "c t", "y", {})]
    tensors = {"s": f32(6, 1, 1), "w": f32(9, 2, 3, 3), "t": f32(9, 1, 1)}
    assert kinds(agrees(model(nodes, [1, 6, 20, 20], tensors))) == ["Input", "Conv"]


def test_scale_with_another_reader_is_not_merged():
    nodes = [("MatMul", "x w", "m", {}), ("Mul", "m s", "t", {}), ("Relu", "t", "r", {}), ("Add", "m r", "y", {})]
    network = agrees(model(nodes, X2, {"w": f32(6, 6), "s": f32(6)}))
    assert kinds(network) == ["Input", "Dense", "Scale", "TwoPiece", "Sum"]


def test_full_matrices_are_not_multiplied_and_slices_are_absorbed():
    nodes = [("MatMul", "x v", "a", {}), ("MatMul", "a w", "b", {}), ("Slice", "b s e i", "y", {})]
    tensors = {"v": f32(6, 8), "w": f32(8, 5), "s": ints(1), "e": ints(3), "i": ints(1)}
    network = agrees(model(nodes, X2, tensors))
    assert kinds(network) == ["Input", "Dense", "Dense"] and network.output_size == 2


def test_small_convolutions_become_matrices_and_large_ones_do_not():
    conv = [("Conv", "x w", "y", {})]
    assert kinds(read_network(model(conv, X4, {"w": W2}))) == ["Input", "Dense"]
    assert kinds(read_network(model(conv, [1, 3, 40, 40], {"w": W2}))) == ["Input", "Conv"]
    whole = {"w": f32(50, 4, 30, 20)}  # the kernel covers the image: the matrix is the weight itself
    assert kinds(read_network(model(conv, [1, 4, 30, 20], whole))) == ["Input", "Dense"]


def test_dead_branches_and_identities_leave_no_nodes():
    nodes = [
        ("Softmax", "x", "unused", {}),
        ("Identity", "x", "i", {}),
        ("Dropout", "i", "d", {}),
        ("Add", "d zero", "z", {}),
        ("Reshape", "z s", "r", {}),
        ("Relu", "r", "y", {}),
    ]
    network = agrees(model(nodes, X2, {"zero": np.zeros(6, np.float32), "s": ints(3, 2)}))
    assert kinds(network) == ["Input", "TwoPiece"] and network.nodes[1].shape == (3, 2)


def test_network_that_is_the_identity_or_a_constant():
    assert kinds(agrees(model([("Identity", "x", "y", {})], X2))) == ["Input"]
    network = agrees(model([("Relu", "c", "y", {})], X2, {"c": f32(1, 3)}))
    assert network.input_size == 6 and network.output_size == 3


def test_shape_arithmetic_is_evaluated():
    nodes = [
        ("Shape", "x", "s", {}),
        ("Gather", "s i", "n", {}),
        ("Unsqueeze", "n a", "u", {}),
        ("Concat", "u m", "t", {"axis": 0}),
        ("Reshape", "x t", "r", {}),
        ("ConstantOfShape", "t", "k", {}),
        ("Add", "r one", "q", {}),
        ("Relu", "q", "y", {}),
    ]
    tensors = {"i": np.array(0), "a": ints(0), "m": ints(90), "one": np.ones(1, np.float32)}
    network = agrees(model(nodes, ["batch", 3, 6, 5], tensors))
    assert network.nodes[-1].shape == (90,)


def test_constant_arithmetic_folds():
    nodes = [
        ("Mul", "w s", "w1", {}),
        ("Transpose", "w1", "w2", {}),
        ("Sub", "b c", "b1", {}),
        ("Add", "b1 c", "b2", {}),
        ("Sqrt", "b2", "b3", {}),
        ("Gemm", "x w2 b1", "z", {}),
        ("Relu", "z", "y", {}),
    ]
    tensors = {"w": f32(4, 6), "s": f32(4, 1), "b": abs(f32(4)) + 1, "c": f32(4)}
    network = agrees(model(nodes, X2, tensors))
    assert kinds(network) == ["Input", "Dense", "TwoPiece"]


def test_digits_lost_in_folding_are_on_record_or_refused():
    big = np.full(4, 1e30, np.float32)
    nodes = [("Add", "b big", "p", {}), ("Sub", "p big", "q", {}), ("Add", "x q", "y", {})]
    b = f32(4)
    network = read_network(model(nodes, [1, 4], {"b": b, "big": big}))
    close_enough(network.nodes[1].op, [Fraction(float(v)) for v in b])
    nodes[2] = ("Mul", "x q", "y", {})
    with pytest.raises(UnsupportedError, match="loss of digits"):
        read_network(model(nodes, [1, 4], {"b": f32(4), "big": big}))


@pytest.mark.parametrize("axis, scale", [(0, f32(6)), (1, f32(5)), (1, np.float32(0.013))])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_constant_dequantize_is_folded_exactly(axis, scale, kind):
    import onnxruntime

    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    tensors = {
        "q": rng.integers(low, high + 1, size=(6, 5)).astype(kind),
        "s": np.abs(scale) * np.float32(0.1),
        "z": rng.integers(low, high + 1, size=np.shape(scale)).astype(kind),
    }
    data = model([("DequantizeLinear", "q s z", "w", {"axis": axis}), ("MatMul", "x w", "y", {})], X2, tensors)
    network = agrees(data)
    alone = model([("DequantizeLinear", "q s z", "w", {"axis": axis}), ("Identity", "w", "y", {})], X2, tensors)
    exact = onnxruntime.InferenceSession(alone, providers=["CPUExecutionProvider"]).run(None, {"x": f32(1, 6)})[0]
    assert np.array_equal(network.nodes[1].op.weight.T, exact.astype(np.float64))


def test_half_precision_weights_are_cast():
    import onnx
    from onnx import helper

    half = f32(6, 4).astype(np.float16)
    network = agrees(model([("Cast", "h", "w", {"to": 1}), ("MatMul", "x w", "y", {})], X2, {"h": half}))
    assert np.array_equal(network.nodes[1].op.weight.T, half.astype(np.float64))
    proto = onnx.load_model_from_string(
        model([("Cast", "h", "w", {"to": 1}), ("MatMul", "x w", "y", {})], X2, {"h": half})
    )
    brain = helper.make_tensor("h", onnx.TensorProto.BFLOAT16, [6, 4], half.astype(np.float32).ravel())
    proto.graph.initializer[0].CopyFrom(brain)
    rounded = read_network(proto.SerializeToString()).nodes[1].op.weight.T
    assert np.max(abs(rounded - half)) < 2.0**-8 * np.max(abs(half)) and np.array_equal(
        rounded, rounded.astype(np.float32)
    )
    cut = agrees(
        model(
            [("Cast", "f", "h", {"to": 10}), ("Cast", "h", "w", {"to": 1}), ("MatMul", "x w", "y", {})],
            X2,
            {"f": f32(6, 4)},
        )
    )
    assert np.array_equal(cut.nodes[1].op.weight, cut.nodes[1].op.weight.astype(np.float16))


def test_typed_value_fields_and_initialisers_listed_as_inputs():
    import onnx

    data = model([("Gemm", "x w b", "y", {})], X2, {"w": f32(6, 3), "b": f32(3)}, inputs_too=True)
    plain = agrees(data)
    proto = onnx.load_model_from_string(data)
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).ravel().tolist()
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values)
    assert agrees(proto.SerializeToString()).fingerprint == plain.fingerprint


def test_double_models_and_dynamic_batch():
    data = model(
        [("Cast", "x", "c", {"to": 11}), ("MatMul", "c w", "y", {})],
        ["unk__6", 6],
        {"w": f32(6, 2).astype(np.float64)},
        kind=D,
    )
    network = agrees(data)
    assert network.element_type == "float64" and network.model_bytes == data and len(network.source_hash) == 64
    assert read_network(model([("Relu", "x", "y", {})], [None, 6])).input_size == 6
    assert read_network(model([("Relu", "x", "y", {})], ["N"])).input_size == 1


@pytest.mark.parametrize("data", [b"", b"hello, this is a text file", b"\x00" * 64, b"\x1f\x8b\x08\x00"])
def test_other_files_are_refused(data):
    with pytest.raises(InputError, match="network file"):
        read_network(data)


def test_truncated_files_are_refused():
    data = model([("Gemm", "x w", "z", {}), ("Relu", "z", "y", {})], X2, {"w": f32(6, 3)})
    for n in range(1, len(data)):
        with pytest.raises(InputError):
            read_network(data[:n])


BAD = {
    "unknown operator": ([("Asinh", "x", "y", {})], {}, "operator Asinh .node 'n0'. is not supported"),
    "matrix product": (
        [("Reshape", "x r", "t", {}), ("MatMul", "x t", "y", {})],
        {"r": np.array([-1], np.int64)},
        "variables of which one is a vector",
    ),
    "gelu": ([("Gelu", "x", "y", {"approximate": "erf"})], {}, "operator set 13"),
    "elu": ([("Elu", "x", "y", {"alpha": -0.5})], {}, "Elu .*alpha -0.5 .*positive"),
    "cast": ([("Cast", "x", "t", {"to": 10}), ("Cast", "t", "y", {"to": 1})], {}, "Cast .*type 1 to 10, which rounds"),
    "attribute": ([("Relu", "x", "y", {"surprise": 1})], {}, "attribute 'surprise'"),
    "reshape": (
        [("Shape", "x", "s", {}), ("Cast", "x", "i", {"to": 1}), ("Reshape", "x i", "y", {})],
        {},
        "depends on",
    ),
    "training": ([("Dropout", "x r t", "y", {})], {"r": np.float32(0.5), "t": np.array(True)}, "training mode"),
    "cubic resize": ([("Resize", "x r s", "y", {"mode": "cubic"})], {"r": f32(0), "s": f32(2)}, "mode 'cubic'"),
}


@pytest.mark.parametrize("case", BAD)
def test_unsupported_is_named(case):
    nodes, tensors, message = BAD[case]
    with pytest.raises(UnsupportedError, match=message):
        read_network(model(nodes, X2, tensors))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(bad):
    weight = f32(6, 3)
    weight[2, 1] = bad
    for nodes in ([("MatMul", "x w", "y", {})], [("MatMul", "x v", "m", {}), ("Add", "m w", "y", {})]):
        masks = bad == -np.inf and len(nodes) == 2
        with pytest.raises(InputError, match="minus infinity" if masks else "'w' holds nan or infinite"):
            read_network(model(nodes, X2, {"w": weight, "v": f32(6, 3)}))


def test_inconsistent_models_are_refused():
    cases = [
        (model([("MatMul", "x w", "y", {})], X2, {"w": f32(5, 3)}), "do not match"),
        (model([("Add", "x w", "y", {})], X2, {"w": f32(5)}), "do not match"),
        (model([("Reshape", "x s", "y", {})], X2, {"s": ints(4, 2)}), "do not fit"),
        (model([("Relu", "z", "y", {})], X2), "'z' is not defined"),
        (model([("Relu", "x", "y", {})], [1, "channels"]), "dynamic dimension 'channels'"),
        (model([("Div", "x z", "y", {})], X2, {"z": np.zeros(6, np.float32)}), "holds a zero"),
        (model([("Relu", "x", "q", {})], X2), "'y' is not defined"),
        (model([("Conv", "x w", "y", {})], X4, {"w": f32(4, 2, 3, 3)}), "channels in 1 groups"),
        (model([("Conv", "x w", "y", {})], [1, 3, 2, 2], {"w": f32(4, 3, 3, 3)}), "kernel is larger"),
    ]
    for data, message in cases:
        with pytest.raises(InputError, match=message):
            read_network(data)


def test_several_inputs_and_outputs_are_one_behind_the_other():
    import onnx
    from onnx import helper

    proto = onnx.load_model_from_string(model([("Relu", "x", "y", {})], X2))
    proto.graph.input.append(helper.make_tensor_value_info("other", F, [1, 1]))
    unread = proto.SerializeToString()
    assert read_network(unread).input_size == 6 and read_network(unread, count=7).input_size == 7
    proto.graph.node.append(helper.make_node("Add", ["y", "other"], ["z"]))
    proto.graph.output[0].name = "z"
    assert read_network(proto.SerializeToString()).input_size == 7
    proto.graph.output.append(helper.make_tensor_value_info("y", F, None))
    x = np.arange(7.0) - 2
    assert np.array_equal(
        read_network(proto.SerializeToString())(x[None])[0], [*(np.maximum(x[:6], 0) + 4), *np.maximum(x[:6], 0)]
    )
    half = onnx.load_model_from_string(model([("Relu", "x", "y", {})], X2, kind=10))
    with pytest.raises(UnsupportedError, match="element type 10"):
        read_network(half.SerializeToString())


def test_names_are_unique_and_cover_helpers():
    nodes = [("Clip", "x lo hi", "c", {}), ("Max", "c d", "y", {})]
    network = agrees(model(nodes, X2, {"lo": np.float32(-1), "hi": np.float32(1), "d": f32(6)}))
    names = [n.name for n in network.nodes]
    assert len(set(names)) == len(names) and names[0] == "x" and names[-1] == "y"


def test_public_families_are_read_and_agree_with_onnxruntime(benchmarks):
    families = [p for p in sorted(benchmarks.iterdir()) if p.is_dir()]
    assert families
    for family in families:
        files = sorted(family.rglob("*.onnx"))
        for path in files[:: max(1, len(files) // 6)]:
            agrees(path.read_bytes(), points=2, spread=0.3)


@pytest.mark.parametrize("kind, low", [(22, -8), (21, 0)])
@pytest.mark.parametrize("block", [0, 2])
def test_four_bit_weights_in_blocks(kind, low, block):
    import onnx
    from onnx import helper

    rows = 3 if block else 1
    nodes = [("DequantizeLinear", "q s", "w", {"axis": 0 if block else 1, **({"block_size": block} if block else {})})]
    nodes.append(("MatMul", "x w", "y", {}))
    scale = abs(f32(rows, 5)) if block else abs(f32(5))
    proto = onnx.load_model_from_string(model(nodes, X2, {"s": scale}, opset=21))
    values = rng.integers(low, low + 16, size=30)
    proto.graph.initializer.append(helper.make_tensor("q", kind, [6, 5], values))
    proto.ir_version = 10
    network = agrees(proto.SerializeToString())
    factor = np.repeat(scale, 2, axis=0) if block else scale
    assert np.array_equal(
        network.nodes[1].op.weight.T, (values.reshape(6, 5).astype(np.float32) * factor).astype(float)
    )


CURVED = [
    ([("Sin", "x", "y", {})], {}),
    ([("Cos", "x", "y", {})], {}),
    ([("Exp", "x", "y", {})], {}),
    ([("Mul", "x x", "y", {})], {}),
    ([("Pow", "x e", "y", {})], {"e": np.array(2.0, np.float32)}),
    ([("Pow", "x e", "y", {})], {"e": np.array(3.0, np.float32)}),
    ([("Pow", "x e", "y", {})], {"e": np.array(5.0, np.float32)}),
    ([("Sin", "x", "s", {}), ("Cos", "x", "c", {}), ("Mul", "s c", "y", {})], {}),
    ([("ReduceMax", "x", "m", {"axes": [2], "keepdims": 1}), ("Mul", "m x", "y", {})], {}),
    ([("Exp", "x", "e", {}), ("Reciprocal", "e", "y", {})], {}),
    ([("Softmax", "x", "y", {})], {}),
    ([("Softmax", "x", "y", {"axis": 1})], {}),
    ([("Transpose", "x", "t", {"perm": [0, 2, 1]}), ("MatMul", "x t", "m", {}), ("Softmax", "m", "y", {})], {}),
    ([("Exp", "x", "e", {}), ("Div", "c e", "y", {})], {"c": np.array([[[2.0], [3.0]]], np.float32)}),
    ([("Cos", "x", "c", {}), ("Exp", "x", "e", {}), ("Div", "c e", "y", {})], {}),
]


@pytest.mark.parametrize("nodes, tensors", CURVED, ids=lambda v: None)
def test_curves_and_products_agree(nodes, tensors):
    agrees(model(nodes, [1, 2, 3], tensors), spread=1.0)


SMOOTH = [
    ("Softplus", {}, 13),
    ("Softsign", {}, 13),
    ("Atan", {}, 13),
    ("Erf", {}, 13),
    ("Gelu", {}, 20),
    ("Gelu", {"approximate": "tanh"}, 20),
    ("HardSwish", {}, 14),
    ("Mish", {}, 18),
    ("Elu", {}, 13),
    ("Elu", {"alpha": 1.5}, 6),
    ("Selu", {}, 13),
    ("Selu", {"alpha": 0.5, "gamma": 2.0}, 13),
    ("Celu", {}, 13),
    ("Celu", {"alpha": 0.3}, 13),
    ("LogSoftmax", {}, 13),
    ("LogSoftmax", {"axis": 1}, 13),
]


@pytest.mark.parametrize("op, attributes, opset", SMOOTH, ids=lambda v: str(v))
def test_smooth_functions_agree(op, attributes, opset):
    for shape in ([1, 2, 3], [1, 4]):
        agrees(model([(op, "x", "y", attributes)], shape, opset=opset), spread=2.0)
        nodes = [("MatMul", "x w", "z", {}), (op, "z", "s", attributes), ("MatMul", "s v", "y", {})]
        agrees(model(nodes, shape, {"w": f32(shape[-1], 5), "v": f32(5, 2)}, opset=opset))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_of_few_values_agrees(op):
    """Of one value it is a constant, of two a function of their difference, whatever their sizes."""
    for shape, axis, opset in (([1, 1], 1, 13), ([1, 2], -1, 13), ([1, 2, 3], 1, 13), ([1, 2, 1], 1, 11)):
        network = agrees(model([(op, "x", "y", {"axis": axis})], shape, opset=opset), spread=300.0)
        assert not {"Exp", "Reciprocal"} & set(kinds(network))


@pytest.mark.parametrize("exponent", [0.5, -0.5, 1.5, -1.0, -2.0])
def test_functions_of_positive_numbers_agree(exponent):
    positive = [("Exp", "x", "e", {}), ("Add", "e c", "p", {})]
    tensors = {"c": np.float32(0.1), "e2": np.array(exponent, np.float32)}
    agrees(model([*positive, ("Pow", "p e2", "y", {})], [1, 2, 3], tensors), spread=1.0)
    for op in ("Log", "Sqrt"):
        agrees(model([*positive, (op, "p", "y", {})], [1, 2, 3], tensors), spread=1.0)


def test_gates_made_of_parts():
    nodes = [("Sigmoid", "x", "s", {}), ("Mul", "x s", "y", {})]
    assert kinds(agrees(model(nodes, [1, 4]))) == ["Input", "Silu"]
    nodes = [("Div", "x r", "t", {}), ("Erf", "t", "e", {}), ("Add", "e one", "p", {}), ("Mul", "x p", "m", {})]
    nodes.append(("Mul", "m half", "y", {}))
    tensors = {"r": np.float32(1.4142135), "one": np.float32(1), "half": np.float32(0.5)}
    assert "Erf" in kinds(agrees(model(nodes, [1, 4], tensors)))


def test_exponents_that_are_refused():
    for e in (100.0, -65.0, np.nan, np.inf):
        with pytest.raises(UnsupportedError, match="exponents"):
            read_network(model([("Pow", "x e", "y", {})], [1, 2], {"e": np.array(e, np.float32)}))


def test_small_products_of_stored_matrices_keep_entries_that_cancel():
    a = np.array([[1.0, 1.0], [1.0, -1.0]], np.float32)
    b = np.array([[1.0, 3.0], [-1.0 + 2.0**-20, 1.0]], np.float32)
    nodes = [("MatMul", "a b", "w", {}), ("MatMul", "x w", "y", {})]
    network = agrees(model(nodes, [1, 2], {"a": a, "b": b}))
    assert network.nodes[-1].op.weight[0, 0] == 2.0**-20


def test_a_product_of_equal_values_is_a_square():
    nodes = [("Sub", "x c", "s", {}), ("Sub", "x c", "t", {}), ("Mul", "s t", "y", {})]
    assert "Square" in kinds(agrees(model(nodes, [1, 3], {"c": f32(3)})))
    nodes = [("Sub", "x c", "s", {}), ("Mul", "x s", "y", {})]
    assert "Square" not in kinds(agrees(model(nodes, [1, 3], {"c": f32(3)})))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("length", [1, 40, 400])
def test_long_chains_of_constants_do_not_lose_their_rounding(op, length):
    """A weight or offset that many roundings went into is charged with all of them, before and after the variable."""
    for constants_first in (False, True):
        values = (1 + abs(f32(length))) if op in ("Mul", "Div") else f32(length) * np.float32(10) ** f32(length)
        values = np.array([v ** (0.01 if op in ("Mul", "Div") else 1) for v in values], np.float32)
        names = [f"c{i}" for i in range(length)]
        if constants_first:
            nodes = [(op, f"{'c0' if i == 1 else f't{i - 1}'} c{i}", f"t{i}", {}) for i in range(1, length)]
            last = f"t{length - 1}" if length > 1 else "c0"
            nodes.append((op, f"x {last}", "y", {}))
        else:
            nodes = [(op, f"{'x' if i == 0 else f't{i - 1}'} c{i}", f"t{i}", {}) for i in range(length)]
            nodes.append(("Identity", f"t{length - 1}", "y", {}))
        network = read_network(model(nodes, [1], dict(zip(names, values, strict=True))))
        weight, offset, low, high = Fraction(1), Fraction(0), Fraction(1), Fraction(1)
        parts = [Fraction(float(v)) for v in values]
        if constants_first and op in ("Mul", "Div"):
            joined = parts[0]
            for v in parts[1:]:
                joined = joined * v if op == "Mul" else joined / v
            weight = joined if op == "Mul" else 1 / joined
        elif constants_first:
            offset = sum(parts) if op == "Add" else -(parts[0] - sum(parts[1:]))
        for v in () if constants_first else parts:
            weight = weight * v if op == "Mul" else weight / v if op == "Div" else weight
            offset = offset + v if op == "Add" else offset - v if op == "Sub" else offset
        made = Fraction(1)
        for node in network.nodes[1:]:
            made *= Fraction(float(node.op.scale[0]))
            high *= 1 + Fraction(node.op.roundings, 2**53)
            low *= 1 - Fraction(node.op.roundings, 2**53)
        assert low * abs(made) <= abs(weight) <= high * abs(made) * (1 + Fraction(1, 2**70))
        if op in ("Add", "Sub"):
            assert len(network.nodes) == 2
            close_enough(network.nodes[1].op, [offset])


@pytest.mark.parametrize("seed", range(12))
def test_layers_merge_within_the_roundings_they_state(seed):
    """Elementwise constants around matrices, merged or not, against rational arithmetic on the stored numbers."""
    random = np.random.default_rng(seed)
    nodes, tensors, last, n = [], {}, "x", 3
    weight = [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]
    offset = [Fraction(0)] * n
    for k in range(int(random.integers(2, 30))):
        op = random.choice(
            ["Add", "Sub", "Mul", "Div", "MatMul", "Neg", "Gather"], p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.05, 0.05]
        )
        if op == "MatMul":
            m = int(random.integers(1, 4))
            c = random.normal(size=(n, m)).astype(np.float32)
            exact = [[Fraction(float(v)) for v in row] for row in c]
            weight = [[sum(exact[i][o] * weight[i][j] for i in range(n)) for j in range(3)] for o in range(m)]
            offset = [sum(exact[i][o] * offset[i] for i in range(n)) for o in range(m)]
            n = m
        elif op == "Gather":
            c = random.permutation(n).astype(np.int64)
            weight, offset = [weight[i] for i in c], [offset[i] for i in c]
        elif op != "Neg":
            c = (random.normal(size=n) * 10.0 ** random.integers(-3, 3)).astype(np.float32)
            exact = [Fraction(float(v)) for v in c]
            factor = [v if op == "Mul" else 1 / v if op == "Div" else Fraction(1) for v in exact]
            shift = [v if op == "Add" else -v if op == "Sub" else Fraction(0) for v in exact]
            weight = [[f * w for w in row] for f, row in zip(factor, weight, strict=True)]
            offset = [f * o + s for f, o, s in zip(factor, offset, shift, strict=True)]
        else:
            weight, offset = [[-w for w in row] for row in weight], [-o for o in offset]
        inputs = [last] if op == "Neg" else [last, f"c{k}"]
        if op != "Neg":
            tensors[f"c{k}"] = c
        nodes.append((op, " ".join(inputs), f"t{k}", {"axis": 1} if op == "Gather" else {}))
        last = f"t{k}"
    network = read_network(model([*nodes, ("Identity", last, "y", {})], [1, 3], tensors))
    low, high = _exact_image(network, [Fraction(0)] * 3)
    assert all(a <= o <= b for a, o, b in zip(low, offset, high, strict=True))
    for j in range(3):
        low, high = _exact_image(network, [Fraction(int(i == j)) for i in range(3)])
        assert all(a <= o + row[j] <= b for a, o, row, b in zip(low, offset, weight, high, strict=True))


def _exact_image(network, point):
    """Ends of what the network may be at a point, as its operators state their own inexactness."""
    low, high = list(point), list(point)
    for node in network.nodes[1:]:
        op = node.op
        matrix = [[Fraction(float(v)) for v in row] for row in op.linear([np.eye(len(low))]).T]
        bias = op.bias() if op.bias() is not None else np.zeros(node.size)
        known = getattr(op, "offset_magnitude", None)
        spread = Fraction(getattr(op, "roundings", 0), 2**53)
        ends = []
        for i, row in enumerate(matrix):
            slack = 0 if known is None else Fraction(float(known[i])) * Fraction(op.fan_in, 2**52)
            parts = [
                [w * f * v for f in (1 - spread, 1 + spread) for v in (a, b)]
                for w, a, b in zip(row, low, high, strict=True)
            ]
            middle = Fraction(float(bias[i]))
            ends.append((middle - slack + sum(map(min, parts)), middle + slack + sum(map(max, parts))))
        low, high = [e[0] for e in ends], [e[1] for e in ends]
    return low, high
