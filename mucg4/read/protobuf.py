"""ONNX bytes -> plain Python: nodes with attribute dictionaries, tensors as NumPy arrays.

Only the message classes of the `onnx` package are used; the rest of that package takes several times
longer to import than an ACAS Xu network to read.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.ops.arrays import AnyArray, FloatArray, IntArray
from mucg4.records import dataclass

FLOAT, INT32, INT64, BOOL, FLOAT16, DOUBLE, BFLOAT16 = 1, 6, 7, 9, 10, 11, 16  # given: ONNX's numbers of its types
# entries of a tensor that is computed; larger ones are refused before they are allocated; not measured
LARGEST_TENSOR = 2**26
LARGEST_RANK = 32  # axes of a tensor; not measured
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
    attribute_kinds: dict[str, int] = field(default_factory=dict)  # ONNX AttributeType
    captured: tuple[str, ...] = ()  # what graphs in its attributes read

    @property
    def result(self) -> str:
        """The first of its outputs that has a name."""
        return next((name for name in self.outputs if name), "")

    @property
    def title(self) -> str:
        """How messages name this node."""
        op = self.op if self.op.isprintable() and len(self.op) < 100 else shortened(self.op)
        return f"operator {op} (node {shortened(self.name or self.result)})"

    def unsupported(self, detail: str = "") -> UnsupportedError:
        """The error that names this node."""
        return UnsupportedError(f"{self.title} is not supported" + (f": {detail}" if detail else ""))

    def invalid(self, detail: str) -> InputError:
        """The error for a node that contradicts itself or its inputs."""
        return InputError(f"{self.title}: {detail}")

    def sized(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape, when a tensor of that shape may be made; to be asked before anything is allocated."""
        if len(shape) > LARGEST_RANK or min(shape, default=0) < 0:
            raise self.invalid(f"a tensor of shape {_short(shape)}")
        if prod(shape) > LARGEST_TENSOR:
            raise self.invalid(f"a tensor of shape {_short(shape)} has more than {LARGEST_TENSOR} entries")
        return tuple(shape)

    def axes(self, given: Sequence[int], rank: int) -> tuple[int, ...]:
        """Axes counted from the front, in order; each at most once."""
        if any(not -rank <= a < rank for a in given):
            raise self.invalid(f"axes {_short(given)} of a tensor of rank {rank}")
        axes = tuple(sorted(a % rank for a in given))
        if len(set(axes)) != len(axes):
            raise self.invalid(f"axes {_short(given)} of a tensor of rank {rank} name one twice")
        return axes


def shortened(name: str) -> str:
    """A name as messages show it: on one line, and not too long."""
    return repr(name if len(name) <= 100 else name[:100] + "...")


def _short(numbers: Sequence[int]) -> str:
    return str(list(numbers)) if len(numbers) <= 8 else f"{list(numbers[:8])} ... ({len(numbers)} numbers)"


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
    constants: dict[str, Any]  # name -> TensorProto or SparseTensorProto, decoded when used
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


def parse_model(data: bytes) -> Any:
    """ONNX bytes as a protobuf message. Raises `InputError` when they are no complete ONNX model."""
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
    return model


def text_of(name: Any) -> str:
    """A name; the protobuf library hands over bytes where it is no UTF-8."""
    if not isinstance(name, str):
        raise InputError(f"the network file holds a name that is not UTF-8 text: {name[:40]!r}")
    return name


def decode_value(value: Any) -> Tensor:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise UnsupportedError(f"{shortened(value.name)} is not a tensor ({kind})")
    tensor = value.type.tensor_type
    dims: tuple[int | str | None, ...] | None = None
    if tensor.HasField("shape"):
        named = [(d.WhichOneof("value"), d) for d in tensor.shape.dim]
        dims = tuple(
            d.dim_value if k == "dim_value" and d.dim_value > 0 else (text_of(d.dim_param) or None) for k, d in named
        )
    return Tensor(text_of(value.name), tensor.elem_type, dims)


def declares_numbers(value: Any) -> bool:
    """Whether an output is a tensor of floating-point numbers, as far as the file says what it is."""
    kind = value.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and value.type.tensor_type.elem_type in (0, FLOAT, DOUBLE, FLOAT16))


def decode_attribute(attribute: Any) -> Any:
    """The value; None for the kinds that no supported operator has (`mucg4.read.table` refuses those by name)."""
    kind = attribute.type
    if kind == 3:
        return attribute.s.decode("utf-8", "replace")
    if kind == 4:
        return attribute.t  # decoded when used
    plain = {1: "f", 2: "i"}.get(kind)
    if plain:
        return getattr(attribute, plain)
    if kind == 8:
        return tuple(s.decode("utf-8", "replace") for s in attribute.strings)
    repeated = {6: "floats", 7: "ints"}.get(kind)
    return tuple(getattr(attribute, repeated)) if repeated else None


def decode_tensor(tensor: Any, name: str = "") -> FloatArray:
    """TensorProto -> array of its own type (bfloat16 becomes float32, 4-bit integers 8-bit ones).

    Raises `InputError` when the data does not fill the shape, `UnsupportedError` for other element
    types and for data kept in another file.
    """
    name = text_of(tensor.name) or name
    kind = tensor.data_type
    if kind not in TYPES:
        raise UnsupportedError(f"tensor {shortened(name)} has element type {kind}, which is not supported")
    if tensor.data_location == 1:
        raise UnsupportedError(f"tensor {shortened(name)} is kept in another file (external data)")
    dims = tuple(tensor.dims)
    if min(dims, default=0) < 0 or max(dims, default=0) > 2**40 or len(dims) > LARGEST_RANK:
        raise InputError(f"tensor {shortened(name)} has the shape {_short(dims)}")
    size, shape = prod(dims), _short(dims)
    dtype, holder = TYPES[kind]
    stored = (size + 1) // 2 if kind in (21, 22) else size
    if tensor.HasField("segment"):
        raise UnsupportedError(f"tensor {shortened(name)} is a segment of another one")
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != stored * np.dtype(dtype).itemsize:
            raise InputError(
                f"tensor {shortened(name)} has {len(tensor.raw_data)} bytes, which do not fill its shape {shape}"
            )
        values = np.frombuffer(tensor.raw_data, dtype=dtype)
        if kind == BOOL and np.any(values.view(np.uint8) > 1):
            raise InputError(f"tensor {shortened(name)} holds truth values other than 0 and 1")
    else:
        field = getattr(tensor, holder)
        if len(field) != stored:
            raise InputError(f"tensor {shortened(name)} has {len(field)} values, which do not fill its shape {shape}")
        values = _from_field(field, kind, dtype)
    if kind in (21, 22):
        values = _unpack_nibbles(values, signed=kind == 22)[:size]
    if kind == BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(dims)


def decode_sparse(sparse: Any) -> AnyArray:
    """SparseTensorProto -> array with all its zeros. Raises as `decode_tensor`, and when its places are no places."""
    name, dims = sparse.values.name, tuple(sparse.dims)
    if min(dims, default=0) < 0 or len(dims) > LARGEST_RANK or prod(dims) > LARGEST_TENSOR:
        raise InputError(f"tensor {shortened(name)} has the shape {_short(dims)}")
    values, places = decode_tensor(sparse.values), decode_tensor(sparse.indices, name)
    if values.ndim != 1 or places.dtype != np.int64 or sparse.values.data_type in (21, 22):
        raise InputError(f"tensor {shortened(name)} is sparse, but not a list of values at places")
    if places.ndim == 2 and places.shape == (len(values), len(dims)):
        inside = bool(np.all((places >= 0) & (places < np.array(dims, dtype=np.int64))))
        flat = places @ np.array([prod(dims[i + 1 :]) for i in range(len(dims))], dtype=np.int64) if inside else places
    else:
        inside = places.shape == values.shape and bool(np.all((places >= 0) & (places < prod(dims))))
        flat = places
    if not inside or len(np.unique(flat)) != len(values):
        raise InputError(f"tensor {shortened(name)} is sparse, and its places are outside its shape or occur twice")
    out = np.zeros(prod(dims), dtype=values.dtype)
    out[flat.ravel()] = values
    return out.reshape(dims)


def _from_field(field: Sequence[Any], kind: int, dtype: str) -> AnyArray:
    if kind == FLOAT16:  # the bits, one value per integer
        return _from_field(field, 4, "<u2").view(np.float16)
    values = np.array(field, dtype=np.int64 if dtype[1] in "iub" and dtype != "<u8" else dtype)
    out = values.astype(dtype)
    if dtype[1] in "iub" and not np.array_equal(out, values):
        raise InputError(f"a tensor of element type {kind} holds a number that its type does not have")
    return out


def _unpack_nibbles(packed: IntArray, signed: bool) -> IntArray:
    out = np.stack([packed & 15, packed >> 4], axis=1).ravel()
    return ((out.astype(np.int8) ^ 8) - 8).astype(np.int8) if signed else out
