"""Small networks and queries made by hand, as canonical objects with matching ONNX bytes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from mucg4.model.network import Network, Node
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.ops.affine import Dense
from mucg4.ops.piecewise import RELU


def model_bytes(layers, dtype=np.float32, dims=None, activation="Relu", linear=()) -> bytes:
    """ONNX chain of Gemm and an activation between the layers, but not behind those that `linear` numbers.

    `dims` is the declared input shape.
    """
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.DOUBLE
    n, m = layers[0][0].shape[1], layers[-1][0].shape[0]
    nodes, tensors, at = [], [], "x"
    for i, (w, b) in enumerate(layers):
        tensors += [numpy_helper.from_array(v.astype(dtype), f"{n}{i}") for n, v in (("w", w), ("b", b))]
        nodes.append(helper.make_node("Gemm", [at, f"w{i}", f"b{i}"], [f"z{i}"], transB=1))
        at = f"z{i}"
        if i + 1 < len(layers) and i not in linear:
            nodes.append(helper.make_node(activation, [at], [f"h{i}"]))
            at = f"h{i}"
    shapes = ("x", dims or [1, n]), (at, [None, m])
    ends = [[helper.make_tensor_value_info(name, kind, shape)] for name, shape in shapes]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def chain(layers, dtype=np.float32, dims=None, activation=("Relu", RELU)) -> Network:
    """The same chain as a canonical network, weights rounded to the element type."""
    nodes = [Node(None, (), "x", (layers[0][0].shape[1],))]
    for i, (w, b) in enumerate(layers):
        op = Dense(w.astype(dtype).astype(np.float64), b.astype(dtype).astype(np.float64))
        nodes.append(Node(op, (len(nodes) - 1,), f"z{i}", (len(b),)))
        if i + 1 < len(layers):
            nodes.append(Node(activation[1], (len(nodes) - 1,), f"h{i}", (len(b),)))
    return Network(
        tuple(nodes), element_type=np.dtype(dtype).name, model_bytes=model_bytes(layers, dtype, dims, activation[0])
    )


def one(network, lower, upper, rows) -> Query:
    """Single-case query; rows are `(x coefficients, y coefficients, constant, strict)`."""
    exact = [
        ({i: Fraction(v) for i, v in cx.items()}, {i: Fraction(v) for i, v in cy.items()}, Fraction(c), s)
        for cx, cy, c, s in rows
    ]
    conj = Conjunction.build(exact, network.input_size, network.output_size)
    box = Box(tuple(map(Fraction, lower)), tuple(map(Fraction, upper)))
    return Query((network,), (Case(box, (conj,)),))


def random_layers(seed, sizes=(3, 8, 6, 2)):
    random = np.random.default_rng(seed)
    return [(random.normal(size=(m, n)), random.normal(size=m)) for n, m in zip(sizes[:-1], sizes[1:], strict=True)]


def clauses(seed, variables, count):
    """Random clauses of three literals, `(variables (count, 3), signs (count, 3))`."""
    random = np.random.default_rng(seed)
    which = np.array([random.choice(variables, 3, replace=False) for _ in range(count)])
    return which, random.choice([-1, 1], size=(count, 3))


def satisfiable(which, signs, variables) -> bool:
    """Whether some assignment satisfies all clauses, by trying all of them."""
    bits = (np.arange(2**variables)[:, None] >> np.arange(variables)) & 1
    holds = [((2 * bits[:, v] - 1) == s).any(axis=1) for v, s in zip(which, signs, strict=True)]
    return bool(np.all(holds, axis=0).any())


def formula_layers(formulas, variables):
    """Layers of a network with one output per formula: 0 at assignments that satisfy it, at least 1 at other corners.

    Each is the sum of `relu(1 - true literals)` over its clauses and of `min(x, 1 - x)` over its variables.
    """
    rows, offsets, parts = [], [], []
    for which, signs in formulas:
        w = np.zeros((len(which), variables))
        for k, (v, s) in enumerate(zip(which, signs, strict=True)):
            w[k, v] = -s
        rows.append(w)
        offsets.append(1.0 - (signs < 0).sum(axis=1))
        parts.append(len(which))
    eye = np.eye(variables)
    hidden = np.concatenate([*rows, eye, 2 * eye]), np.concatenate([*offsets, np.zeros(variables), -np.ones(variables)])
    out = np.zeros((len(parts), len(hidden[1])))
    for k, (end, size) in enumerate(zip(np.cumsum(parts), parts, strict=True)):
        out[k, end - size : end] = 1.0
    out[:, sum(parts) :] = np.repeat([1.0, -1.0], variables)
    return [hidden, (out, np.zeros(len(parts)))]


def formula_query(formulas, variables, level="0.1"):
    """Unsafe where some output of the formulas' network is at most `level`."""
    network = chain(formula_layers(formulas, variables))
    conjunctions = tuple(
        Conjunction.build([({}, {k: Fraction(1)}, -Fraction(level), False)], variables, len(formulas))
        for k in range(len(formulas))
    )
    box = Box((Fraction(0),) * variables, (Fraction(1),) * variables)
    return Query((network,), (Case(box, conjunctions),))
