"""Compressed variants: they load in onnxruntime, do what their name says, and repeat exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mucg4.errors import InputError, UnsupportedError
from mucg4.lab.compress import compress

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

METHODS = [
    "fp16", "bf16", "int8", "int6", "int4", "qdq8", "prune10", "prune37.5", "neurons10", "neurons60", "zeroed25",
    "tune3", "permute", "reserialise",
]  # fmt: skip


def build(nodes: list[Any], weights: dict[str, np.ndarray], shape: list[int], opset: int = 13, ir: int = 8) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    if ir < 4:  # old files list initialisers as inputs too
        graph.input.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, w.shape) for n, w in weights.items())
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir).SerializeToString()
    )


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def gemm_net() -> bytes:
    nodes = [
        helper.make_node("Gemm", ["x", "A", "a"], ["h1"], transB=1),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "B", "b"], ["h2"]),
        helper.make_node("Sigmoid", ["h2"], ["r2"]),
        helper.make_node("Gemm", ["r2", "C"], ["y"]),
    ]
    weights = {"A": floats(20, 5), "a": floats(20), "B": floats(20, 12), "b": floats(1, 12), "C": floats(12, 3)}
    return build(nodes, weights, [1, 5])


def matmul_net() -> bytes:
    """Right-hand MatMul with Sub, Flatten in front, Add, BatchNormalization; old opset, initialisers as inputs."""
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"], axis=1),
        helper.make_node("MatMul", ["f", "A"], ["m1"]),
        helper.make_node("Add", ["a", "m1"], ["h1"]),
        helper.make_node("BatchNormalization", ["h1", "s", "o", "mu", "va"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "B"], ["m2"]),
        helper.make_node("Add", ["m2", "b"], ["y"]),
    ]
    weights = {"mean": floats(1, 1, 1, 4), "A": floats(4, 10), "a": floats(10), "B": floats(10, 2), "b": floats(2)}
    weights |= {"s": floats(10, seed=1), "o": floats(10, seed=2), "mu": floats(10, seed=3), "va": abs(floats(10)) + 1}
    return build(nodes, weights, [1, 1, 1, 4], opset=9, ir=3)


def left_net() -> bytes:
    """The constant on the left, data a flat vector, as in public pruned networks; one bias shared by two layers."""
    nodes = [
        helper.make_node("MatMul", ["A", "x"], ["m1"]),
        helper.make_node("Add", ["m1", "a"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("MatMul", ["B", "r1"], ["m2"]),
        helper.make_node("Add", ["m2", "a"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("MatMul", ["C", "r2"], ["y"]),
    ]
    return build(nodes, {"A": floats(8, 5), "a": floats(8), "B": floats(8, 8), "C": floats(3, 8)}, [5])


def conv_net() -> bytes:
    nodes = [
        helper.make_node("Conv", ["x", "K", "k"], ["h0"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["h0"], ["r0"]),
        helper.make_node("Flatten", ["r0"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "A", "a"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "B", "b"], ["y"]),
    ]
    weights = {"K": floats(4, 1, 3, 3), "k": floats(4), "A": floats(36, 10), "a": floats(10), "B": floats(10, 3)}
    return build(nodes, weights | {"b": floats(3)}, [1, 1, 7, 7])


NETS = {"gemm": gemm_net, "matmul": matmul_net, "left": left_net, "conv": conv_net}


def outputs(data: bytes, count: int = 6) -> np.ndarray:
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    points = [floats(*value.shape, seed=s + 1) for s in range(count)]
    return np.stack([session.run(None, {value.name: p})[0].reshape(-1) for p in points])


def tensors(data: bytes) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(data).graph.initializer}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_variant_runs_and_repeats(net: str, method: str) -> None:
    data = NETS[net]()
    variant = compress(data, method, seed=3)
    assert variant == compress(data, method, seed=3)
    before, after = outputs(data), outputs(variant)
    assert before.shape == after.shape and np.isfinite(after).all()
    tolerance = {"fp16": 1e-2, "bf16": 0.1, "int8": 0.3, "qdq8": 0.3, "tune3": 0.1, "permute": 1e-5, "reserialise": 0}
    if method in tolerance:
        assert np.abs(after - before).max() <= tolerance[method] * np.abs(before).max()
    assert variant != data


@pytest.mark.parametrize("net", ["gemm", "matmul", "conv"])
@pytest.mark.parametrize("method", ["split20", "split100", "permute+split50", "split30+neurons20+reserialise"])
def test_split_neurons_compute_the_same(net: str, method: str) -> None:
    data = NETS[net]()
    before, after = outputs(data), outputs(compress(data, method, seed=2))
    if "neurons" not in method:
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    whole = sum(n.op_type == "Relu" for n in onnx.load_model_from_string(data).graph.node)
    parts = onnx.load_model_from_string(compress(data, method)).graph.node
    assert sum(n.op_type == "Relu" for n in parts) == whole + 1


@pytest.mark.parametrize("net", ["gemm", "conv"])
def test_gemm_is_written_as_matmul(net: str) -> None:
    data = NETS[net]()
    variant = compress(data, "matmul")
    assert "Gemm" not in {n.op_type for n in onnx.load_model_from_string(variant).graph.node}
    np.testing.assert_allclose(outputs(variant), outputs(data), rtol=1e-4, atol=1e-5)


def test_methods_are_applied_one_after_the_other() -> None:
    data = gemm_net()
    assert compress(data, "prune30+int8", 3) == compress(compress(data, "prune30", 3), "int8", 3)
    for method in ("prune30+", "+int8", "prune30+int17"):
        with pytest.raises(InputError, match="unknown method"):
            compress(data, method)


@pytest.mark.parametrize("net", NETS)
def test_zeroed_and_removed_neurons_compute_the_same(net: str) -> None:
    data = NETS[net]()
    np.testing.assert_allclose(
        outputs(compress(data, "zeroed40")), outputs(compress(data, "neurons40")), rtol=1e-4, atol=1e-5
    )


def test_the_weakest_neurons_go() -> None:
    data = gemm_net()
    old, new = tensors(data), tensors(compress(data, "neurons25"))
    assert new["A"].shape == (15, 5) and new["a"].shape == (15,) and new["B"].shape == (15, 9)
    assert new["b"].shape == (1, 9) and new["C"].shape == (9, 3)
    strength = np.linalg.norm(old["A"], axis=1) * np.linalg.norm(old["B"], axis=1)
    kept = np.sort(np.argsort(strength)[5:])
    np.testing.assert_array_equal(new["A"], old["A"][kept])


def test_at_least_one_neuron_stays() -> None:
    assert tensors(compress(gemm_net(), "neurons99"))["A"].shape == (1, 5)


def test_rounding_grids() -> None:
    old = tensors(gemm_net())["A"]
    for method, levels in (("int8", 127), ("int6", 31), ("int4", 7), ("int2", 1)):
        new = tensors(compress(gemm_net(), method))["A"]
        scale = np.float32(np.abs(old).max() / levels)
        steps = new / scale
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
        assert np.abs(new - old).max() <= scale * 0.501 and np.abs(np.rint(steps)).max() == levels
    half = tensors(compress(gemm_net(), "fp16"))["A"]
    np.testing.assert_array_equal(half, old.astype(np.float16).astype(np.float32))
    brain = tensors(compress(gemm_net(), "bf16"))["A"]
    assert not (brain.view(np.uint32) & 0xFFFF).any() and np.abs(brain / old - 1).max() <= 2.0**-8


def test_pruning_takes_the_share_of_the_smallest() -> None:
    old, new = tensors(gemm_net())["B"], tensors(compress(gemm_net(), "prune30"))["B"]
    assert (new == 0).sum() == 72
    assert np.abs(old[new == 0]).max() <= np.abs(old[new != 0]).min()
    np.testing.assert_array_equal(new[new != 0], old[new != 0])


def test_methods_joined_by_plus_follow_each_other() -> None:
    both = compress(gemm_net(), "prune30+int8")
    assert both == compress(compress(gemm_net(), "prune30"), "int8")
    assert (tensors(both)["B"] == 0).sum() >= 72


def test_biases_are_left_alone() -> None:
    for method in ("fp16", "int4", "qdq8", "prune30", "tune3"):
        np.testing.assert_array_equal(tensors(compress(gemm_net(), method))["a"], tensors(gemm_net())["a"])


def test_qdq8_has_int8_weights_and_dequantize_nodes() -> None:
    for make, count in ((matmul_net, 2), (conv_net, 3)):
        model = onnx.load_model_from_string(compress(make(), "qdq8"))
        assert model.opset_import[0].version == 13
        assert sum(n.op_type == "DequantizeLinear" for n in model.graph.node) == count
        assert sum(t.data_type == TensorProto.INT8 for t in model.graph.initializer) == 2 * count


def test_reserialise_renames_everything() -> None:
    old, new = onnx.load_model_from_string(gemm_net()), onnx.load_model_from_string(compress(gemm_net(), "reserialise"))
    assert [n.op_type for n in old.graph.node] == [n.op_type for n in new.graph.node]
    assert not {t.name for t in old.graph.initializer} & {t.name for t in new.graph.initializer}
    np.testing.assert_array_equal(outputs(gemm_net()), outputs(compress(gemm_net(), "reserialise")))


def test_seed_matters() -> None:
    for method in ("permute", "tune2"):
        assert compress(gemm_net(), method, seed=0) != compress(gemm_net(), method, seed=1)


def test_constant_nodes_are_weights_too() -> None:
    nodes = [
        helper.make_node("Constant", [], ["A"], value=numpy_helper.from_array(floats(4, 6))),
        helper.make_node("Constant", [], ["B"], value=numpy_helper.from_array(floats(6, 2))),
        helper.make_node("MatMul", ["x", "A"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "B"], ["y"]),
    ]
    data = build(nodes, {}, [1, 4])
    for method in METHODS:
        assert outputs(compress(data, method)).shape == (6, 2)


@pytest.mark.parametrize(
    "method", ["", "int1", "int17", "int", "prune", "prune100", "neurons250", "prune-3", "fp16x", "tune1e3"]
)
def test_unknown_method_lists_the_known_ones(method: str) -> None:
    with pytest.raises(InputError) as caught:
        compress(gemm_net(), method)
    assert "methods are fp16" in str(caught.value) or "below 100" in str(caught.value)


def test_models_that_cannot_be_compressed() -> None:
    with pytest.raises(InputError, match="not an ONNX model"):
        compress(b"hello", "fp16")
    with pytest.raises(InputError, match="not an ONNX model"):
        compress(b"", "fp16")
    alone = build([helper.make_node("Relu", ["x"], ["y"])], {}, [1, 3])
    with pytest.raises(InputError, match="no constant weights"):
        compress(alone, "int8")
    with pytest.raises(InputError, match="no hidden dense layer"):
        compress(alone, "permute")
    with pytest.raises(InputError, match="no dense layer with a Relu"):
        compress(alone, "split50")
    with pytest.raises(InputError, match="no Gemm"):
        compress(matmul_net(), "matmul")
    body = helper.make_graph([], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body)
    with pytest.raises(UnsupportedError, match="If has a subgraph"):
        compress(build([branch], {}, [1]), "fp16")


def test_published_variants_are_what_we_make(benchmarks: Path) -> None:
    """The published variants of an ACAS Xu network agree with ours where no random choice is involved."""
    folder, name = benchmarks / "acasxu_compressed" / "onnx", "ACASXU_run2a_1_1_batch_2000"
    data = (folder / f"{name}.onnx").read_bytes()
    for method in ("fp16", "bf16", "int8", "int4", "qdq8", "prune10", "prune30", "neurons5", "neurons10"):
        published, ours = tensors((folder / f"{name}~{method}.onnx").read_bytes()), tensors(compress(data, method))
        for key in published:
            assert published[key].shape == ours[key].shape
            np.testing.assert_allclose(ours[key], published[key], rtol=1e-6, atol=1e-7, err_msg=f"{method} {key}")


def test_methods_on_benchmark_networks(benchmarks: Path) -> None:
    paths = ["oval21/onnx/cifar_base_kw.onnx", "rl_benchmarks/onnx/cartpole.onnx", "mnist_fc/onnx/mnist-net_256x2.onnx"]
    for path in paths:
        data = (benchmarks / path).read_bytes()
        for method in ("int8", "qdq8", "neurons10", "permute"):
            compress(data, method)


def test_mutants_are_compressed_or_bad_input() -> None:
    from mutants import mutate_bytes

    from mucg4.read.case import layers_to_onnx

    random = np.random.default_rng(5)
    layers = [(random.normal(size=(b, a)), np.zeros(b)) for a, b in ((3, 4), (4, 4), (4, 1))]
    whole = layers_to_onnx(layers)
    methods = (
        "int8",
        "qdq8",
        "permute",
        "neurons50",
        "reserialise",
        "prune30",
        "fp16",
        "tune2",
        "zeroed20",
        "split40",
        "matmul",
    )
    for k in range(600):
        try:
            assert compress(mutate_bytes(random, whole), methods[k % len(methods)])
        except InputError as error:
            assert "\n" not in str(error)
