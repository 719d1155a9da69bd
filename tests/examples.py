"""Tiny instances whose answers are known by hand, as ONNX bytes and property text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mucg4.model.query import Query
from mucg4.read.onnx import read_network
from mucg4.read.vnnlib import parse_vnnlib, to_cases


class Example(NamedTuple):
    """`answer`: sat, unsat, or "not sat" for a set missed by equality alone (true, but without any margin).

    `smt`: within the SMT engine's reach.
    """

    name: str
    onnx: bytes
    vnnlib: str
    answer: str
    smt: bool = True


def model(nodes, tensors, inputs, outputs, shape=None, dtype=np.float32) -> bytes:
    """ONNX model from `(op, inputs, output, attributes)` rows; the input is `x`, the output the last row's."""
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.DOUBLE
    made = [helper.make_node(op, ins.split(), [out], **(more or {})) for op, ins, out, more in nodes]
    constants = [
        numpy_helper.from_array(np.asarray(v) if k.endswith("_i") else np.asarray(v, dtype=dtype), k)
        for k, v in tensors.items()
    ]
    ends = [
        [helper.make_tensor_value_info(name, kind, dims)]
        for name, dims in (("x", shape or [1, inputs]), (nodes[-1][2], [1, outputs]))
    ]
    graph = helper.make_graph(made, "g", *ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def dense(layers, activation="Relu", dtype=np.float32, **attributes) -> bytes:
    """Gemm chain with one activation in between."""
    nodes, tensors, at = [], {}, "x"
    for k, (w, b) in enumerate(layers):
        tensors |= {f"w{k}": w, f"b{k}": b}
        nodes.append(("Gemm", f"{at} w{k} b{k}", f"z{k}", {"transB": 1}))
        if k + 1 < len(layers):
            nodes.append((activation, f"z{k}", f"h{k}", attributes))
        at = f"h{k}"
    return model(nodes, tensors, len(layers[0][0][0]), len(layers[-1][1]), dtype=dtype)


def text(box, outputs, *asserts) -> str:
    """Property: `box` pairs of bounds as written, then the assertions."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(box))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    for i, pair in enumerate(box):
        if pair is not None:
            lines += [f"(assert (>= X_{i} {pair[0]}))", f"(assert (<= X_{i} {pair[1]}))"]
    return "\n".join([*lines, *(f"(assert {a})" for a in asserts)]) + "\n"


def query_of(onnx: bytes, vnnlib: str) -> Query:
    return Query((read_network(onnx),), to_cases(parse_vnnlib(vnnlib)))


ONE = [(-1, 1)]
SQUARE = [(-1, 1), (-1, 1)]
UNIT = [(0, 1)]


def _absolute():
    net = dense([([[1], [-1]], [0, 0]), ([[1, 1]], [0])])  # y = |x|
    two = [(-1, 2)]
    return [
        Example("abs above", net, text(two, 1, "(<= Y_0 0.5)"), "sat"),
        Example("abs below zero", net, text(two, 1, "(<= Y_0 -0.001)"), "unsat"),
        Example("abs at the kink", net, text(ONE, 1, "(<= Y_0 0)"), "sat"),
        Example("abs at the corner", net, text(two, 1, "(>= Y_0 2)"), "sat"),
        Example("abs beyond the corner, strictly", net, text(two, 1, "(> Y_0 2)"), "not sat"),
        Example("abs just beyond the corner", net, text(two, 1, "(>= Y_0 2.0001)"), "unsat"),
        Example("abs strictly inside the corner", net, text(two, 1, "(> Y_0 1.9999)"), "sat"),
        Example("mixed, missed", net, text(two, 1, "(<= Y_0 (- X_0 0.1))"), "unsat"),
        Example("mixed, met by equality", net, text(two, 1, "(<= Y_0 X_0)"), "sat"),
        Example("mixed, only on the left", net, text(two, 1, "(>= Y_0 (+ X_0 1.9))"), "sat"),
        Example("mixed, beyond the left", net, text(two, 1, "(>= Y_0 (+ X_0 2.1))"), "unsat"),
        Example("inputs alone", net, text(two, 1, "(>= X_0 1.5)"), "sat"),
        Example("inputs cut the box", net, text(two, 1, "(>= X_0 0.5)", "(<= Y_0 0.4)"), "unsat"),
        Example("empty box", net, text([(1, 0)], 1, "(>= Y_0 0)"), "unsat"),
        Example("contradictory bounds", net, text(ONE, 1, "(>= X_0 2)", "(>= Y_0 0)"), "unsat"),
        Example("point, met", net, text([("0.5", "0.5")], 1, "(>= Y_0 0.5)"), "sat"),
        Example("point, missed", net, text([("0.5", "0.5")], 1, "(>= Y_0 0.501)"), "unsat"),
        Example(
            "two boxes, second met",
            net,
            text(
                [None],
                1,
                "(or (and (>= X_0 -1) (<= X_0 -0.5) (<= Y_0 0.4)) (and (>= X_0 0.2) (<= X_0 1) (<= Y_0 0.4)))",
            ),
            "sat",
        ),
        Example(
            "two boxes, none met",
            net,
            text(
                [None],
                1,
                "(or (and (>= X_0 -1) (<= X_0 -0.5) (<= Y_0 0.4)) (and (>= X_0 0.5) (<= X_0 1) (<= Y_0 0.45)))",
            ),
            "unsat",
        ),
        Example("two ranges of outputs", net, text(ONE, 1, "(or (>= Y_0 1.1) (<= Y_0 -0.1))"), "unsat"),
        Example("two ranges, one met", net, text(ONE, 1, "(or (>= Y_0 1.1) (<= Y_0 0.1))"), "sat"),
        Example("band of outputs, empty", net, text([("0.5", 1)], 1, "(<= Y_0 0.49)", "(>= Y_0 0.4)"), "unsat"),
        Example("equation", net, text(two, 1, "(= Y_0 1.5)"), "sat"),
        Example("equation, missed", net, text(two, 1, "(= Y_0 2.5)"), "unsat"),
    ]


def _pairs():
    ramps = dense([([[1], [-1]], [0, 1]), ([[1, 0], [0, 1]], [0, 0])])  # (relu(x), relu(1 - x)), sum >= 1 on [0, 1]
    top = dense([([[1, 0], [-1, 0], [-1, 1]], [0, 0, 0]), ([[1, -1, 1]], [0])])  # max(x0, x1)
    xor = dense([([[1, 1], [1, 1]], [0, -1]), ([[1, -2]], [0])])  # x0 + x1 - 2 relu(x0 + x1 - 1)
    half = [("0.5", 1), (0, 1)]
    return [
        Example("combination needed", ramps, text(UNIT, 2, "(<= Y_0 0.49)", "(<= Y_1 0.49)"), "unsat"),
        Example("combination, met", ramps, text(UNIT, 2, "(<= Y_0 0.5)", "(<= Y_1 0.5)"), "sat"),
        Example("outputs compared", ramps, text([("0.6", 1)], 2, "(<= Y_0 Y_1)"), "unsat"),
        Example("outputs compared, met", ramps, text([("0.4", 1)], 2, "(<= Y_0 Y_1)"), "sat"),
        Example("maximum", top, text(SQUARE, 1, "(<= Y_0 X_0)", "(<= Y_0 X_1)"), "sat"),
        Example("maximum, missed", top, text(SQUARE, 1, "(or (<= Y_0 (- X_0 0.01)) (<= Y_0 (- X_1 0.01)))"), "unsat"),
        Example("xor corner", xor, text([(0, 1), (0, 1)], 1, "(>= Y_0 1)"), "sat"),
        Example("xor ceiling", xor, text([(0, 1), (0, 1)], 1, "(>= Y_0 1.01)"), "unsat"),
        Example("xor floor", xor, text([(0, 1), (0, 1)], 1, "(<= Y_0 -0.01)"), "unsat"),
        Example("xor diagonal", xor, text(half, 1, "(<= Y_0 0.1)", "(<= X_1 0.4)"), "unsat"),
    ]


def _deep():
    tent = [([[1], [1]], [0, -0.5]), ([[2, -4], [2, -4]], [0, -0.5])]  # two copies of the tent map of [0, 1]
    layers = [tent[0], tent[1], tent[1], ([[2, -4]], [0])]  # three times: odd eighths are mapped to 1
    net, double = dense(layers), dense(layers, dtype=np.float64)
    flat = dense([(np.zeros((2, 2)), [1, -1]), ([[1, 1]], [0])])
    return [
        Example("teeth", net, text(UNIT, 1, "(>= Y_0 0.999)"), "sat"),
        Example("above the teeth", net, text(UNIT, 1, "(>= Y_0 1.001)"), "unsat"),
        Example("below the teeth", net, text(UNIT, 1, "(<= Y_0 -0.001)"), "unsat"),
        Example("one tooth's foot", net, text([("0.24", "0.26")], 1, "(>= Y_0 0.09)"), "unsat"),
        Example("one tooth's foot, met", net, text([("0.24", "0.26")], 1, "(>= Y_0 0.07)"), "sat"),
        Example("double precision", double, text(UNIT, 1, "(>= Y_0 1.000001)"), "unsat"),
        Example("double precision, met", double, text(UNIT, 1, "(>= Y_0 0.999999)"), "sat"),
        Example("constant network", flat, text(SQUARE, 1, "(>= Y_0 1.0001)"), "unsat"),
        Example("constant network, met", flat, text(SQUARE, 1, "(>= Y_0 1)"), "sat"),
        Example("affine network", dense([([[2, -1]], [0.5])]), text(SQUARE, 1, "(>= Y_0 3.6)"), "unsat"),
        Example("affine network, met", dense([([[2, -1]], [0.5])]), text(SQUARE, 1, "(>= Y_0 3.5)"), "sat"),
    ]


def _operators():
    leaky = dense([([[1]], [0]), ([[1]], [0])], "LeakyRelu", alpha=0.25)
    absolute = dense([([[1, 0], [0, 1]], [0, 0]), ([[1, 1]], [0])], "Abs")  # |x0| + |x1|
    sigmoid = dense([([[1], [-1]], [0, 0]), ([[1, 1]], [0])], "Sigmoid")  # s(x) + s(-x) = 1
    residual = model(
        [
            ("Gemm", "x w b", "z", {"transB": 1}),
            ("Relu", "z", "h", None),
            ("Add", "h x", "s", None),
            ("Gemm", "s v c", "y", {"transB": 1}),
        ],
        {"w": -np.eye(2), "b": [0, 0], "v": [[1, 1]], "c": [0]},  # relu(x0) + relu(x1)
        2,
        1,
    )
    concat = model(
        [
            ("Gemm", "x w b", "z", {"transB": 1}),
            ("Relu", "z", "h", None),
            ("Concat", "x h", "s", {"axis": 1}),
            ("Gemm", "s v c", "y", {"transB": 1}),
        ],
        {"w": [[1]], "b": [0], "v": [[-1, 2]], "c": [0]},  # 2 relu(x) - x = |x|
        1,
        1,
    )
    conv = model(
        [
            ("Conv", "x k", "z", {"kernel_shape": [2, 2]}),
            ("Relu", "z", "h", None),
            ("Flatten", "h", "f", None),
            ("Gemm", "f v c", "y", {"transB": 1}),
        ],
        {"k": [[[[1, -1], [-1, 1]]]], "v": [[1]], "c": [0]},  # relu(x0 - x1 - x2 + x3)
        4,
        1,
        [1, 1, 2, 2],
    )
    four = [(-1, 1)] * 4
    return [
        Example("leaky floor", leaky, text([(-2, 1)], 1, "(<= Y_0 -0.51)"), "unsat"),
        Example("leaky floor, met", leaky, text([(-2, 1)], 1, "(<= Y_0 -0.5)"), "sat"),
        Example("leaky mixed", leaky, text([(-2, 1)], 1, "(<= Y_0 (- X_0 0.01))"), "unsat"),
        Example("Abs floor", absolute, text(SQUARE, 1, "(<= Y_0 -0.01)"), "unsat"),
        Example("Abs ceiling", absolute, text(SQUARE, 1, "(>= Y_0 2.01)"), "unsat"),
        Example("Abs diamond", absolute, text(SQUARE, 1, "(<= Y_0 0.5)", "(>= X_0 0.3)", "(>= X_1 0.3)"), "unsat"),
        Example("Abs diamond, met", absolute, text(SQUARE, 1, "(<= Y_0 0.5)", "(>= X_0 0.2)", "(>= X_1 0.2)"), "sat"),
        Example("residual floor", residual, text(SQUARE, 1, "(<= Y_0 -0.01)"), "unsat"),
        Example("residual ceiling", residual, text(SQUARE, 1, "(>= Y_0 2.01)"), "unsat"),
        Example("residual, met", residual, text(SQUARE, 1, "(>= Y_0 2)"), "sat"),
        Example("concat floor", concat, text(ONE, 1, "(<= Y_0 -0.01)"), "unsat"),
        Example("concat, met", concat, text(ONE, 1, "(<= Y_0 0.01)"), "sat"),
        Example("convolution ceiling", conv, text(four, 1, "(>= Y_0 4.01)"), "unsat"),
        Example("convolution, met", conv, text(four, 1, "(>= Y_0 4)"), "sat"),
        Example("convolution floor", conv, text(four, 1, "(<= Y_0 -0.01)"), "unsat"),
        Example("sigmoid identity", sigmoid, text(ONE, 1, "(or (>= Y_0 1.05) (<= Y_0 0.95))"), "unsat", smt=False),
        Example("sigmoid, met", sigmoid, text(ONE, 1, "(>= Y_0 0.99)", "(<= Y_0 1.01)"), "sat", smt=False),
    ]


def examples() -> list[Example]:
    return [*_absolute(), *_pairs(), *_deep(), *_operators()]
