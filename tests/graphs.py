"""Small ONNX graphs written by hand, and what tests ask about them."""

from __future__ import annotations

import numpy as np
import onnx

from mucg4.check.confirm import confirm
from mucg4.gate.agreement import agreement
from mucg4.model.query import Query
from mucg4.read.instance import query_of
from mucg4.read.onnx import read_network, read_operators
from mucg4.settings import Settings
from mucg4.verify import verify

F, B = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """`-` stands for an absent input."""
    domain = {"domain": attributes.pop("domain")} if "domain" in attributes else {}
    names, ends = ([n if n != "-" else "" for n in side.split()] for side in (inputs, outputs))
    return onnx.helper.make_node(op, names, ends, name=f"n_{outputs.split()[-1]}", **domain, **attributes)


def built(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[object] | None],
    outputs: str,
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    **more: object,
) -> bytes:
    """An ONNX model; `more`: functions, sparse."""
    ends = [onnx.helper.make_tensor_value_info(n, F, s) for n, s in inputs.items()]
    made = [onnx.helper.make_tensor_value_info(n, F, None) for n in outputs.split()]
    stored = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    graph = onnx.helper.make_graph(nodes, "g", ends, made, stored, sparse_initializer=more.get("sparse", []))
    sets = [onnx.helper.make_opsetid(*s) for s in (("", opset), ("local", 1), ("com.microsoft", 1))]
    functions = more.get("functions", [])
    return onnx.helper.make_model(graph, opset_imports=sets, ir_version=10, functions=functions).SerializeToString()


def fused(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return node(op, inputs, outputs, domain="com.microsoft", **attributes)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def property_of(inputs: int, outputs: int, more: str = "") -> str:
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{i}" for i in range(outputs)]
    text = "".join(f"(declare-const {n} Real)" for n in names)
    text += "".join(f"(assert (>= X_{i} -1))(assert (<= X_{i} 1))" for i in range(inputs))
    return text + (more or "(assert (<= Y_0 -1e6))")


def read_twice(data: bytes, count: int | None = None, partly: bool = False, **more: object) -> Query:
    """The query, after both readers, onnxruntime and the analysis of executions agreed on the model."""
    network = read_network(data, count=count, **more)
    text = property_of(network.input_size, network.output_size)
    query = query_of(data, text, **more)
    found = confirm(data, query.network)
    assert found.problem is None and (partly or not found.fallback), found
    assert agreement(query).problem is None
    read_operators(data, dict(network.inputs), network.input_size)
    return query


def answer(query: Query, more: str, seconds: float = 20.0) -> str:
    """The verdict on the query's own box with another condition on the outputs."""
    text = property_of(query.network.input_size, query.network.output_size, more)
    network = query.network
    asked = query_of(network.model_bytes, text, original=network.original, shapes=dict(network.inputs))
    return verify(asked, Settings(timeout=seconds)).word
