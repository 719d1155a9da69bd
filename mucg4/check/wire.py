"""ONNX bytes -> plain Python, by a decoder of protobuf's wire format that shares nothing with `mucg4.read`.

A message is a sequence of (field number, wire type, payload). Messages nest to a fixed depth here (model, graph,
node, attribute, tensor; subgraphs are never entered), so hostile nesting costs nothing. As the format prescribes, the
last occurrence of a scalar counts, occurrences of one submessage are merged (their bytes are joined), and repeated
numbers may come packed or one by one. Field numbers are those of onnx.proto (opset-independent, IR version 3 to 13).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from mucg4.errors import InputError
from mucg4.ops.base import Array

MOST_ENTRIES = 2**28  # numbers in one tensor
FLOAT, DOUBLE, FLOAT16, BFLOAT16, BOOL, INT64 = 1, 11, 10, 16, 9, 7
UINT4, INT4 = 21, 22
# element type -> (type of the stored bytes, field of numbers where there are no raw bytes)
STORED: dict[int, tuple[str, int]] = {
    FLOAT: ("<f4", 4),
    2: ("<u1", 5),
    3: ("<i1", 5),
    4: ("<u2", 5),
    5: ("<i2", 5),
    6: ("<i4", 5),
    INT64: ("<i8", 7),
    BOOL: ("|b1", 5),
    FLOAT16: ("<u2", 5),
    DOUBLE: ("<f8", 10),
    12: ("<u4", 11),
    13: ("<u8", 11),
    BFLOAT16: ("<u2", 5),
    UINT4: ("<u1", 5),
    INT4: ("<u1", 5),
}

Field = dict[int, list[Any]]  # number -> payloads in order: int for varint and fixed, memoryview for bytes


def _broken(what: str) -> InputError:
    return InputError(f"the network file is not ONNX, or it is truncated: {what}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _broken("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), at
    raise _broken("a number is longer than 64 bits")


def fields(data: memoryview) -> Field:
    """All fields of one message. Raises `InputError` when the bytes are no message."""
    out: Field = defaultdict(list)
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if not number:
            raise _broken("a field has the number 0")
        if kind == 0:
            value: Any
            value, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at : at + size], at + size
        else:
            raise _broken(f"a field has the wire type {kind}")
        if at > end:
            raise _broken("a field is cut off")
        out[number].append(value)
    return out


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _text(found: Field, number: int) -> str:
    """The last string; bytes that are no UTF-8 stay apart from each other."""
    values = found.get(number)
    return bytes(_bytes(values[-1])).decode("utf-8", "surrogateescape") if values else ""


def _bytes(value: Any) -> memoryview:
    if not isinstance(value, memoryview):
        raise _broken("a field has the wrong type")
    return value


def _integer(found: Field, number: int, default: int = 0) -> int:
    values = found.get(number)
    if not values:
        return default
    if not isinstance(values[-1], int):
        raise _broken("a field has the wrong type")
    return _signed(values[-1])


def _message(found: Field, number: int) -> Field:
    """A submessage: all its occurrences merged."""
    parts = [_bytes(v) for v in found.get(number, ())]
    return fields(parts[0] if len(parts) == 1 else memoryview(b"".join(parts)))


def _integers(values: list[Any]) -> Array:
    """A repeated integer field as int64, packed or not."""
    if len(values) == 1 and isinstance(values[0], memoryview):
        return _unpack(values[0])
    parts = [np.array([_signed(v)], dtype=np.int64) if isinstance(v, int) else _unpack(v) for v in values]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _unpack(data: memoryview) -> Array:
    """Packed varints: each number is its bytes' low seven bits, the least significant first."""
    raw = np.frombuffer(data, dtype=np.uint8)
    if not len(raw):
        return np.zeros(0, dtype=np.int64)
    last = np.flatnonzero(raw < 128)
    if not len(last) or last[-1] != len(raw) - 1:
        raise _broken("a number is cut off")
    starts = np.concatenate([[0], last[:-1] + 1])
    lengths = last - starts + 1
    if lengths.max() > 10:
        raise _broken("a number is longer than 64 bits")
    shift = np.arange(len(raw)) - np.repeat(starts, lengths)
    parts = (raw & 127).astype(np.uint64) << (7 * shift).astype(np.uint64)
    return np.add.reduceat(parts, starts).view(np.int64)


def _numbers(values: list[Any], dtype: str) -> Array:
    """A repeated field of fixed width."""
    data = b"".join(_bytes(v) for v in values)
    if len(data) % np.dtype(dtype).itemsize:
        raise _broken("a list of numbers is cut off")
    return np.frombuffer(data, dtype=dtype)


@dataclass(frozen=True, eq=False)
class Tensor:
    """Stored numbers: ONNX element type, and an array of its own type (16-bit floats as float32, nibbles as int8)."""

    kind: int
    value: Array


@dataclass(frozen=True, eq=False)
class Node:
    """One node. Attribute values: float, int, str, tuples of these, `Tensor`, or None for a kind not decoded."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{repr(self.op)[1:-1]} ({(self.name or self.outputs[0])!r})"


@dataclass(frozen=True, eq=False)
class Declared:
    """A graph input or output; a dimension is an int, a name or None."""

    name: str
    kind: int
    dims: tuple[int | str | None, ...] | None


@dataclass(frozen=True, eq=False)
class Graph:
    """One decoded graph; `stored` are undecoded initialisers by name (see `tensor`)."""

    nodes: tuple[Node, ...]
    stored: dict[str, memoryview]
    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]
    opset: int


def decode(data: bytes) -> Graph:
    """The graph of ONNX bytes (not compressed). Raises `InputError` when the bytes are no complete model."""
    model = fields(memoryview(data))
    graph = _message(model, 7)
    if not graph.get(12) or not model.get(8):
        raise _broken("it holds no graph")
    if model.get(25) or graph.get(15):
        raise InputError("model functions and sparse initialisers are not read a second time")
    opset = 0
    for part in model[8]:
        imported = fields(_bytes(part))
        if _text(imported, 1) in ("", "ai.onnx"):
            opset = _integer(imported, 2)
    stored = {_text(fields(_bytes(part)), 8): _bytes(part) for part in graph.get(5, ())}
    return Graph(
        tuple(_node(fields(_bytes(part))) for part in graph.get(1, ())),
        stored,
        tuple(d for part in graph.get(11, ()) if (d := _declared(fields(_bytes(part)))).name not in stored),
        tuple(_declared(fields(_bytes(part))) for part in graph[12]),
        opset,
    )


def _node(found: Field) -> Node:
    domain, op = _text(found, 7), _text(found, 4)
    names = [
        tuple(bytes(_bytes(v)).decode("utf-8", "surrogateescape") for v in found.get(number, ())) for number in (1, 2)
    ]
    if not any(names[1]):
        raise InputError(f"operator {op!r} has no output")
    attributes = {}
    for part in found.get(5, ()):
        attribute = fields(_bytes(part))
        attributes[_text(attribute, 1)] = _attribute(attribute)
    label = op if domain in ("", "ai.onnx") else f"{domain}::{op}"
    return Node(label, _text(found, 3), names[0], names[1], attributes)


def _attribute(found: Field) -> Any:
    kind = _integer(found, 20)
    if kind == 1:
        numbers = _numbers(found.get(2, []), "<f4")
        return float(numbers[-1]) if len(numbers) else 0.0
    if kind == 2:
        return _integer(found, 3)
    if kind == 3:
        return _text(found, 4)
    if kind == 4:
        return tensor(memoryview(b"".join(_bytes(v) for v in found.get(5, ()))))
    if kind == 6:
        return tuple(float(v) for v in _numbers(found.get(7, []), "<f4"))
    if kind == 7:
        return tuple(int(v) for v in _integers(found.get(8, [])))
    return None


def _declared(found: Field) -> Declared:
    kind = _message(found, 2)
    tensor_type = _message(kind, 1)
    dims: list[int | str | None] = []
    for part in _message(tensor_type, 2).get(1, ()):
        dim = fields(_bytes(part))
        size = _integer(dim, 1)
        dims.append(size if size > 0 else _text(dim, 2) or None)
    known = kind.get(1) and tensor_type.get(2)
    return Declared(_text(found, 1), _integer(tensor_type, 1), tuple(dims) if known else None)


def tensor(data: memoryview) -> Tensor:
    """A stored tensor. Raises `InputError` when its numbers do not fill its shape or are not in this file."""
    found = fields(data)
    name, kind = _text(found, 8), _integer(found, 2)
    if kind not in STORED:
        raise InputError(f"tensor {name!r} has element type {kind}, which is not read a second time")
    if _integer(found, 14) or found.get(13):
        raise InputError(f"tensor {name!r} is kept in another file (external data)")
    dims = tuple(int(v) for v in _integers(found.get(1, [])))
    size = prod(dims)
    if any(d < 0 for d in dims) or size > MOST_ENTRIES:
        raise InputError(f"tensor {name!r} has the shape {dims}")
    dtype, field = STORED[kind]
    nibbles = kind in (UINT4, INT4)
    wanted = (size + 1) // 2 if nibbles else size
    if found.get(9):
        raw = _bytes(found[9][-1])
        if len(raw) != wanted * np.dtype(dtype).itemsize:
            raise InputError(f"tensor {name!r} has {len(raw)} bytes, which do not fill its shape {dims}")
        value = np.frombuffer(raw, dtype=dtype)
    else:
        given = found.get(field, [])
        value = _numbers(given, dtype) if dtype[1] == "f" else _integers(given).astype(dtype)
        if len(value) != wanted:
            raise InputError(f"tensor {name!r} has {len(value)} numbers, which do not fill its shape {dims}")
    if nibbles:
        value = np.stack([value & 15, value >> 4], axis=1).ravel()[:size].astype(np.int8)
        value = np.where(value > 7, value - 16, value) if kind == INT4 else value
    elif kind == FLOAT16:
        value = value.view(np.float16).astype(np.float32)
    elif kind == BFLOAT16:
        value = np.frombuffer((value.astype(np.uint32) << 16).tobytes(), dtype=np.float32)
    return Tensor(kind, value.reshape(dims))


def single(value: float) -> float:
    """The nearest float32, as attributes are stored."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
