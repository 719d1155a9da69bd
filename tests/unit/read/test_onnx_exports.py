"""Graphs as exporters write them: both readers, onnxruntime, and verdicts on both sides of what a grid reaches."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from mucg4.gate.runtime import Runtime
from tests.graphs import F, answer, built, node, read_twice, weights

Graph = tuple[list[onnx.NodeProto], dict[str, list[object] | None], dict[str, np.ndarray], int]
LONG = np.int64


def channels_last() -> Graph:
    """Keras by tf2onnx: pairs of Transpose around each operator on images, Reshape by a list with -1."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w b", "c", kernel_shape=[3, 3], strides=[1, 1], auto_pad="SAME_UPPER"),
        node("Transpose", "c", "d", perm=[0, 2, 3, 1]),
        node("Relu", "d", "r"),
        node("Transpose", "r", "u", perm=[0, 3, 1, 2]),
        node("MaxPool", "u", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", "p", "q", perm=[0, 2, 3, 1]),
        node("Reshape", "q s", "f"),
        node("MatMul", "f v", "m"),
        node("Add", "m k", "y"),
    ]
    constants = {"w": weights(2, 1, 3, 3), "b": weights(2), "s": LONG([-1, 8]), "v": weights(8, 2), "k": weights(2)}
    return nodes, {"x": ["unk__6", 4, 4, 1]}, constants, 13


def mobile() -> Graph:
    """A depthwise convolution, statistics, ReLU6 as Clip, the mean of an image by ReduceMean, Squeeze."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w", "c", group=2, strides=[2, 2], auto_pad="SAME_UPPER"),
        node("BatchNormalization", "c g o e a", "n", epsilon=0.001),
        node("Clip", "n zero six", "r"),
        node("Transpose", "r", "u", perm=[0, 2, 3, 1]),
        node("ReduceMean", "u", "p", axes=[1, 2], keepdims=1),
        node("Squeeze", "p ax", "q"),
        node("Gemm", "q v k", "y", transB=1),
    ]
    constants = {
        "w": weights(2, 1, 3, 3), "g": weights(2), "o": weights(2), "e": weights(2), "a": abs(weights(2)) + 0.5,
        "zero": np.float32(0), "six": np.float32(6), "ax": LONG([1, 2]), "v": weights(2, 2), "k": weights(2),
    }  # fmt: skip
    return nodes, {"x": ["N", 4, 4, 2]}, constants, 13


def keras_flatten() -> Graph:
    """Flatten by the shape at run time: Shape, Cast, Slice, Concat, Cast."""
    nodes = [
        node("Shape", "x", "sh"),
        node("Cast", "sh", "sf", to=6),
        node("Slice", "sf zero one ax", "n"),
        node("Concat", "n rest", "all", axis=0),
        node("Cast", "all", "to", to=7),
        node("Reshape", "x to", "f"),
        node("MatMul", "f w", "m"),
        node("Mul", "m slope", "l"),
        node("Max", "m l", "y"),  # LeakyRelu
    ]
    constants = {
        "zero": LONG([0]), "one": LONG([1]), "ax": LONG([0]), "rest": np.int32([6]), "w": weights(6, 2),
        "slope": np.float32(0.2),
    }  # fmt: skip
    return nodes, {"x": ["N", 3, 2]}, constants, 12


def regressor() -> Graph:
    """MLPRegressor by skl2onnx."""
    nodes = [
        node("Cast", "x", "xf", to=F),
        node("MatMul", "xf w", "m"),
        node("Add", "m b", "a"),
        node("Tanh", "a", "h"),
        node("MatMul", "h v", "n"),
        node("Add", "n c", "o"),
        node("Reshape", "o s", "y"),
    ]
    constants = {"w": weights(4, 5), "b": weights(1, 5), "v": weights(5, 1), "c": weights(1, 1), "s": LONG([-1, 1])}
    return nodes, {"x": [None, 4]}, constants, 21


def classifier() -> Graph:
    """A binary MLPClassifier by skl2onnx, its probabilities: `1 - p` and p."""
    nodes = [
        node("MatMul", "x w", "m"),
        node("Add", "m b", "a"),
        node("Relu", "a", "h"),
        node("MatMul", "h v", "n"),
        node("Add", "n c", "o"),
        node("Sigmoid", "o", "p"),
        node("Sub", "one p", "q"),
        node("Concat", "q p", "y", axis=1),
    ]
    constants = {"w": weights(4, 5), "b": weights(1, 5), "v": weights(5, 1), "c": weights(1, 1), "one": np.float32(1)}
    return nodes, {"x": [None, 4]}, constants, 15


def views() -> Graph:
    """`x.view(x.size(0), -1)` by the old exporter of PyTorch."""
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("Shape", "r", "sh"),
        node("Gather", "sh at", "n", axis=0),
        node("Unsqueeze", "n ax", "one"),
        node("Concat", "one rest", "to", axis=0),
        node("Reshape", "r to", "f"),
        node("Gemm", "f v k", "y", alpha=1.0, beta=1.0, transB=1),
    ]
    constants = {
        "w": weights(2, 1, 3, 3), "at": LONG(0), "ax": LONG([0]), "rest": LONG([-1]), "v": weights(2, 18),
        "k": weights(2),
    }  # fmt: skip
    return nodes, {"x": ["batch", 1, 3, 3]}, constants, 17


def enlarged() -> Graph:
    """Upsampling to sizes that are computed, with empty inputs between."""
    nodes = [
        node("Shape", "x", "sh"),
        node("Slice", "sh zero two", "n"),
        node("Concat", "n size", "to", axis=0),
        node("Resize", "x - - to", "u", mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Relu", "u", "r"),
        node("GlobalAveragePool", "r", "y"),
    ]
    constants = {"zero": LONG([0]), "two": LONG([2]), "size": LONG([4, 6])}
    return nodes, {"x": [1, 2, 2, 3]}, constants, 18


def gated() -> Graph:
    """A gated linear unit: Split, Sigmoid, Mul; a residual sum; LayerNormalization written out."""
    nodes = [
        node("MatMul", "x w", "m"),
        node("Split", "m half", "a b", axis=-1),
        node("Sigmoid", "b", "s"),
        node("Mul", "a s", "g"),
        node("Add", "g x", "z"),
        node("ReduceMean", "z", "mean", axes=[-1]),
        node("Sub", "z mean", "d"),
        node("Pow", "d two", "sq"),
        node("ReduceMean", "sq", "var", axes=[-1]),
        node("Add", "var eps", "ve"),
        node("Sqrt", "ve", "sd"),
        node("Div", "d sd", "y"),
    ]
    constants = {"w": weights(3, 6), "half": LONG([3, 3]), "two": np.float32(2), "eps": np.float32(1e-1)}
    return nodes, {"x": [1, 3]}, constants, 13


def twice() -> Graph:
    """Dropout with its mask, Identity, Unsqueeze and Squeeze around a convolution of one axis."""
    nodes = [
        node("Identity", "x", "i"),
        node("Unsqueeze", "i ax", "u"),
        node("Conv", "u w b", "c", pads=[1, 1]),
        node("Relu", "c", "r"),
        node("Dropout", "r", "d mask"),
        node("ReduceMax", "d", "p", axes=[2], keepdims=0),
        node("Gemm", "p v k", "y"),
    ]
    constants = {"ax": LONG([1]), "w": weights(2, 1, 3), "b": weights(2), "v": weights(2, 2), "k": weights(2)}
    return nodes, {"x": [1, 5]}, constants, 13


EXPORTS = (channels_last, mobile, keras_flatten, regressor, classifier, views, enlarged, gated, twice)


@pytest.mark.parametrize("make", EXPORTS)
def test_what_exporters_write_is_read_twice_and_decided(make: object) -> None:
    """Two inputs vary; a threshold that a grid reaches, and one above all of it."""
    nodes, inputs, constants, opset = make()  # type: ignore[operator]
    query = read_twice(built(nodes, inputs, "y", constants, opset))
    n = query.network.input_size
    rng = np.random.default_rng(3)
    middle = np.round(rng.uniform(-0.5, 0.5, n), 2)
    pair = (0, n - 1)
    grid = np.tile(middle, (625, 1))
    grid[:, pair] = list(itertools.product(np.linspace(-1, 1, 25), repeat=2))
    y = Runtime(query.network).single(grid)[:, -1].astype(float)
    assert np.allclose(y, query.network(grid.astype(np.float32).astype(float))[:, -1], atol=1e-4)
    low, high = float(y.min()), float(y.max())
    sides = "".join(f"(assert (>= X_{i} {v}))(assert (<= X_{i} {v}))" for i, v in enumerate(middle) if i not in pair)
    name = f"Y_{query.network.output_size - 1}"
    for limit, word in ((high - 0.05 * (high - low), "sat"), (high + 0.1 * (high - low), "unsat")):
        assert answer(query, f"{sides}(assert (>= {name} {limit:.6f}))") == word
