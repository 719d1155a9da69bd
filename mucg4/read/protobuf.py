"""ONNX bytes -> plain Python: nodes with attribute dictionaries, tensors as NumPy arrays.

Only the message classes of the `onnx` package are used; the rest of that package takes several times
longer to import than an ACAS Xu network to read.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.ops.base import Array

FLOAT, DOUBLE, FLOAT16, BFLOAT16 = 1, 11, 10, 16
# data type -> (NumPy type, field that holds the values when raw_data does not)
TYPES: dict[int, tuple[str, str]] = {
    1: ("<f4", "float_data"),
    2: ("<u1", "int32_data"),
    3: ("<i1", "int32_data"),
    4: ("<u2", "int32_data"),
    5: ("<i2", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("|b1", "int32_data"),
    10: ("<f2", "int32_data"),
    11: ("<f8", "double_data"),
    12: ("<u4", "uint64_data"),
    13: ("<u8", "uint64_data"),
    16: ("<u2", "int32_data"),  # bfloat16: the upper half of a float32
    21: ("<u1", "int32_data"),  # uint4, two in a byte
    22: ("<u1", "int32_data"),  # int4, two in a byte
}


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """One node: operator, attribute values (bytes decoded), tensor names ("" marks an absent optional input)."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def unsupported(self, detail: str = "") -> UnsupportedError:
        """The error that names this node."""
        where = f"operator {self.op} (node {self.name or self.outputs[0]!r})"
        return UnsupportedError(f"{where} is not supported" + (f": {detail}" if detail else ""))

    def invalid(self, detail: str) -> InputError:
        """The error for a node that contradicts itself or its inputs."""
        return InputError(f"operator {self.op} (node {self.name or self.outputs[0]!r}): {detail}")


@dataclass(frozen=True, eq=False)
class Tensor:
    """A declared input or output: element type as in ONNX, dimensions with None or a name where unknown."""

    name: str
    element_type: int
    dims: tuple[int | str | None, ...] | None


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """A decoded model with one graph. `inputs` do not contain initialisers."""

    nodes: tuple[OnnxNode, ...]
    constants: dict[str, Any]  # name -> TensorProto, decoded when used
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def _messages() -> Any:
    """The module with ONNX's protobuf classes, without running `onnx/__init__.py` where possible."""
    name = "onnx.onnx_ml_pb2"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("onnx")
    file = Path(package.origin).with_name("onnx_ml_pb2.py") if package and package.origin else None
    spec = importlib.util.spec_from_file_location(name, file) if file and file.is_file() else None
    if spec is None or spec.loader is None:
        return importlib.import_module("onnx")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a later `import onnx` finds the same classes
    try:
        spec.loader.exec_module(module)
    except ImportError:
        del sys.modules[name]
        return importlib.import_module("onnx")
    return module


def decode_model(data: bytes) -> OnnxGraph:
    """Parse ONNX bytes. Raises `InputError` when they are no complete ONNX model, `UnsupportedError` for
    functions, sparse tensors and attribute kinds that no supported operator has."""
    if not data:
        raise InputError("the network file is empty")
    messages = _messages()
    from google.protobuf.message import DecodeError

    try:
        model = messages.ModelProto.FromString(data)
    except DecodeError as error:
        raise InputError("the network file is not ONNX, or it is truncated") from error
    if not model.HasField("graph") or not model.opset_import or not model.graph.output:
        raise InputError("the network file is not ONNX, or it is truncated: it holds no graph")
    if len(model.functions):
        raise UnsupportedError(f"model functions are not supported ({model.functions[0].name})")
    graph = model.graph
    if len(graph.sparse_initializer):
        raise UnsupportedError("sparse initialisers are not supported")
    opsets = {o.domain if o.domain != "ai.onnx" else "": o.version for o in model.opset_import}
    constants = {t.name: t for t in graph.initializer}
    return OnnxGraph(
        tuple(_decode_node(n, opsets.get("", 0)) for n in graph.node),
        constants,
        tuple(_decode_value(v) for v in graph.input if v.name not in constants),
        tuple(_decode_value(v) for v in graph.output),
    )


def _decode_value(value: Any) -> Tensor:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise UnsupportedError(f"{value.name!r} is not a tensor ({kind})")
    tensor = value.type.tensor_type
    dims: tuple[int | str | None, ...] | None = None
    if tensor.HasField("shape"):
        named = [(d.WhichOneof("value"), d) for d in tensor.shape.dim]
        dims = tuple(d.dim_value if k == "dim_value" and d.dim_value > 0 else (d.dim_param or None) for k, d in named)
    return Tensor(value.name, tensor.elem_type, dims)


def _decode_node(node: Any, opset: int) -> OnnxNode:
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    out = OnnxNode(op, node.name, tuple(node.input), tuple(node.output), {}, opset)
    if not out.outputs:
        raise InputError(f"operator {op} (node {node.name!r}) has no output")
    for attribute in node.attribute:
        out.attributes[attribute.name] = _decode_attribute(attribute, out)
    return out


def _decode_attribute(attribute: Any, node: OnnxNode) -> Any:
    kind = attribute.type
    if kind == 3:
        return attribute.s.decode("utf-8", "replace")
    if kind == 4:
        return attribute.t  # decoded when used
    plain = {1: "f", 2: "i"}.get(kind)
    if plain:
        return getattr(attribute, plain)
    repeated = {6: "floats", 7: "ints"}.get(kind)
    if repeated:
        return tuple(getattr(attribute, repeated))
    raise node.unsupported(f"attribute {attribute.name!r} of kind {kind}")


def decode_tensor(tensor: Any, name: str = "") -> Array:
    """TensorProto -> array of its own type (bfloat16 becomes float32, 4-bit integers 8-bit ones).

    Raises `InputError` when the data does not fill the shape, `UnsupportedError` for other element
    types and for data kept in another file.
    """
    name = tensor.name or name
    kind = tensor.data_type
    if kind not in TYPES:
        raise UnsupportedError(f"tensor {name!r} has element type {kind}, which is not supported")
    if tensor.data_location == 1:
        raise UnsupportedError(f"tensor {name!r} is kept in another file (external data)")
    dims = tuple(tensor.dims)
    size = prod(dims)
    dtype, holder = TYPES[kind]
    stored = (size + 1) // 2 if kind in (21, 22) else size
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != stored * np.dtype(dtype).itemsize:
            raise InputError(f"tensor {name!r} has {len(tensor.raw_data)} bytes, which do not fill its shape {dims}")
        values = np.frombuffer(tensor.raw_data, dtype=dtype)
    else:
        field = getattr(tensor, holder)
        if len(field) != stored:
            raise InputError(f"tensor {name!r} has {len(field)} values, which do not fill its shape {dims}")
        values = _from_field(field, kind, dtype)
    if kind in (21, 22):
        values = _unpack_nibbles(values, signed=kind == 22)[:size]
    if kind == BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(dims)


def _from_field(field: Sequence[Any], kind: int, dtype: str) -> Array:
    if kind == FLOAT16:  # the bits, one value per integer
        return np.array(field, dtype=np.uint16).view(np.float16)
    return np.array(field, dtype=np.int64 if dtype[1] in "iub" and dtype != "<u8" else dtype).astype(dtype)


def _unpack_nibbles(packed: Array, signed: bool) -> Array:
    out = np.stack([packed & 15, packed >> 4], axis=1).ravel()
    return ((out.astype(np.int8) ^ 8) - 8).astype(np.int8) if signed else out
