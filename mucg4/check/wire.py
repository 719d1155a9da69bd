"""ONNX bytes -> plain Python, by a decoder of protobuf's wire format that shares nothing with `mucg4.read`.

A message is a sequence of (field number, wire type, payload). As the format prescribes, the last occurrence of a scalar
counts, occurrences of one submessage are merged (their bytes are joined), and repeated numbers may come packed or one
by one. Field numbers are those of onnx.proto (opset-independent, IR version 3 to 13). Bodies of functions are put where
they are called; depth and number of nodes are limited, so hostile nesting costs nothing.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from mucg4.errors import InputError
from mucg4.ops.arrays import AnyArray
from mucg4.records import dataclass

MOST_ENTRIES = 2**28  # numbers in one tensor; not measured
MOST_NODES = 50_000  # in functions that are called; not measured
DEEPEST = 32  # functions within functions, graphs within graphs; not measured
FLOAT, DOUBLE, FLOAT16, BFLOAT16, BOOL, INT64 = 1, 11, 10, 16, 9, 7  # TensorProto.DataType of onnx.proto; given
INT32, UINT4, INT4 = 6, 21, 22  # the same; given
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


def _integers(values: list[Any]) -> AnyArray:
    """A repeated integer field as int64, packed or not."""
    if len(values) == 1 and isinstance(values[0], memoryview):
        return _unpack(values[0])
    parts = [np.array([_signed(v)], dtype=np.int64) if isinstance(v, int) else _unpack(v) for v in values]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _unpack(data: memoryview) -> AnyArray:
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


def _numbers(values: list[Any], dtype: str) -> AnyArray:
    """A repeated field of fixed width."""
    data = b"".join(_bytes(v) for v in values)
    if len(data) % np.dtype(dtype).itemsize:
        raise _broken("a list of numbers is cut off")
    return np.frombuffer(data, dtype=dtype)


@dataclass(frozen=True, eq=False)
class Tensor:
    """Stored numbers: ONNX element type, and an array of its own type (16-bit floats as float32, nibbles as int8)."""

    kind: int
    value: AnyArray


@dataclass(frozen=True, eq=False)
class Node:
    """One node. Attribute values: float, int, str, tuples of these, `Tensor`, or None for a kind not decoded."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int = 0

    @property
    def reads(self) -> set[str]:
        """What it needs, graphs in its attributes included."""
        found = {name for name in self.inputs if name}
        for value in self.attributes.values():
            if isinstance(value, Inner):
                found |= value.reads
        return found

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{repr(self.op)[1:-1]} ({(self.name or self.outputs[0])!r})"


@dataclass(frozen=True, eq=False)
class Inner:
    """A graph in an attribute; what it does not make itself it takes from around it."""

    nodes: tuple[Node, ...]
    stored: dict[str, memoryview]
    outputs: tuple[str, ...]

    @property
    def reads(self) -> set[str]:
        """Names from outside."""
        made, out = set(self.stored), set()
        for node in self.nodes:
            out |= node.reads - made
            made.update(node.outputs)
        return out | (set(self.outputs) - made)


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
    opsets = _opsets(model, 8)
    bodies = [fields(_bytes(part)) for part in model.get(25, ())]
    decoder = _Decoder({(_text(f, 10), _text(f, 1), _text(f, 13)): f for f in bodies})
    if len(decoder.functions) < len(bodies) or any(key[0] in ("", "ai.onnx") for key in decoder.functions):
        raise InputError("functions that stand for operators, or of one name, are not read a second time")
    stored = _initialisers(graph)
    nodes = decoder.nodes(graph.get(1, ()), opsets, None)
    declared = [_declared(fields(_bytes(part))) for part in graph.get(11, ())]
    return Graph(
        tuple(nodes),
        stored,
        tuple(d for d in declared if d.name not in stored),
        tuple(_declared(part) for part in _asked(graph[12])),
        opsets.get("", 0),
    )


def _asked(outputs: Sequence[Any]) -> list[Field]:
    """The outputs that a property can speak of: none of other than floating-point numbers at the end."""
    found = [fields(_bytes(part)) for part in outputs]
    kinds = [_message(part, 2) for part in found]
    real = [not (set(k) - {1}) and _integer(_message(k, 1), 1) in (0, FLOAT, FLOAT16, DOUBLE) for k in kinds]
    last = max((i for i, fine in enumerate(real) if fine), default=len(found) - 1)
    return found[: last + 1]


def _opsets(found: Field, number: int) -> dict[str, int]:
    out: dict[str, int] = {}
    for part in found.get(number, ()):
        imported = fields(_bytes(part))
        domain = _text(imported, 1)
        out["" if domain == "ai.onnx" else domain] = _integer(imported, 2)
    return out


def _initialisers(graph: Field) -> dict[str, memoryview]:
    """Stored tensors by name; a sparse one, which `tensor` tells apart by its fields, by the name of its values."""
    stored = {_text(fields(_bytes(part)), 8): _bytes(part) for part in graph.get(5, ())}
    for part in graph.get(15, ()):
        stored[_text(_message(fields(_bytes(part)), 1), 8)] = _Sparse(_bytes(part))  # type: ignore[assignment]
    return stored


class _Sparse:
    """Marks the bytes of a sparse tensor."""

    def __init__(self, data: memoryview) -> None:
        self.data = data


@dataclass(eq=False)
class _Decoder:
    """Nodes of a graph, a function's in place of the node that calls it, under names `call number / name`."""

    functions: dict[tuple[str, str, str], Field]
    calls: int = 0
    made: int = 0

    def nodes(self, parts: Sequence[Any], opsets: dict[str, int], call: _Call | None, depth: int = 0) -> list[Node]:
        out: list[Node] = []
        for part in parts:
            found = fields(_bytes(part))
            self.made += depth > 0
            if self.made > MOST_NODES:
                raise InputError(f"more than {MOST_NODES} nodes in functions are not read a second time")
            domain, op = _text(found, 7), _text(found, 4)
            domain = "" if domain == "ai.onnx" else domain
            body = self.functions.get((domain, op, _text(found, 8)))
            names = [tuple(_decoded(v) for v in found.get(number, ())) for number in (1, 2)]
            ends = [tuple(n if call is None else call.name(n) for n in side) for side in names]
            attributes: dict[str, Any] = {}
            for a in found.get(5, ()):
                attribute = fields(_bytes(a))
                key, reference = _text(attribute, 1), _text(attribute, 21)
                if reference:
                    if call is None or reference not in call.attributes:
                        if call is None:
                            raise InputError(f"operator {op!r} refers to an attribute outside a function")
                        continue
                    attributes[key] = call.attributes[reference]
                else:
                    attributes[key] = self.attribute(attribute, opsets, call, depth)
            if body is not None:
                out += self.body(body, ends[0], ends[1], attributes, depth + 1)
                continue
            if not any(ends[1]):
                raise InputError(f"operator {op!r} has no output")
            label = f"{domain}::{op}" if domain else op
            out.append(Node(label, _text(found, 3), ends[0], ends[1], attributes, opsets.get(domain, 0)))
        return out

    def body(
        self, body: Field, inputs: tuple[str, ...], outputs: tuple[str, ...], attributes: dict[str, Any], depth: int
    ) -> list[Node]:
        """The nodes of one call."""
        if depth > DEEPEST:
            raise InputError("functions nested that deeply are not read a second time")
        self.calls += 1
        formal = [[_decoded(v) for v in body.get(number, ())] for number in (4, 5)]
        if len(inputs) > len(formal[0]) or len(outputs) > len(formal[1]):
            raise InputError("a call has more inputs or outputs than its function")
        given = dict(zip(formal[0], [*inputs, *[""] * (len(formal[0]) - len(inputs))], strict=True))
        made = {_decoded(v) for part in body.get(7, ()) for v in fields(_bytes(part)).get(2, ())}
        ends = [(inner, outer) for inner, outer in zip(formal[1], outputs, strict=False) if outer]
        for inner, outer in ends:  # a result has the caller's name from the start, for those that read it here too
            if inner in made and inner not in given:
                given[inner] = outer
        opsets = _opsets(body, 9)
        defaults = [fields(_bytes(a)) for a in body.get(11, ())]
        known = {_text(a, 1): self.attribute(a, opsets, None, depth) for a in defaults}
        call = _Call(f"{self.calls} / ", given, {**known, **attributes})
        nodes = self.nodes(body.get(7, ()), opsets, call, depth)
        for inner, outer in ends:
            if call.name(inner) != outer:
                nodes.append(Node("Identity", "", (call.name(inner),), (outer,), {}, opsets.get("", 0)))
        return nodes

    def attribute(self, found: Field, opsets: dict[str, int], call: _Call | None, depth: int) -> Any:
        if _integer(found, 20) != 5:
            return _attribute(found)
        if depth > DEEPEST:
            raise InputError("graphs nested that deeply are not read a second time")
        graph = _message(found, 6)
        if graph.get(11):
            return None  # of a loop
        stored = _initialisers(graph)
        own = set(stored)
        for part in graph.get(1, ()):
            own.update(_decoded(v) for v in fields(_bytes(part)).get(2, ()))
        # names made here are no names of the function around
        within = (
            None
            if call is None
            else _Call(call.prefix, {**call.given, **{n: f"{call.prefix}{n}" for n in own}}, call.attributes)
        )
        nodes = self.nodes(graph.get(1, ()), opsets, within, depth + 1)
        outputs = tuple(_declared(fields(_bytes(part))).name for part in graph.get(12, ()))
        if within is not None:
            stored = {within.name(n): v for n, v in stored.items()}
            outputs = tuple(within.name(n) for n in outputs)
        return Inner(tuple(nodes), stored, outputs)


@dataclass(frozen=True, eq=False)
class _Call:
    """What names and attributes mean inside a function that is called."""

    prefix: str
    given: dict[str, str]
    attributes: dict[str, Any]

    def name(self, name: str) -> str:
        return self.given.get(name, self.prefix + name) if name else ""


def _decoded(value: Any) -> str:
    return bytes(_bytes(value)).decode("utf-8", "surrogateescape")


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
    if kind == 8:
        return tuple(_decoded(v) for v in found.get(9, ()))
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
    if isinstance(data, _Sparse):
        return _scattered(fields(data.data))
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


def _scattered(found: Field) -> Tensor:
    """A sparse tensor: values, and for each its place, as one number or as one number per axis."""
    values, places = (tensor(memoryview(b"".join(_bytes(v) for v in found.get(n, ())))) for n in (1, 2))
    dims = tuple(int(v) for v in _integers(found.get(3, [])))
    out = np.zeros(
        dims if min(dims, default=1) > 0 and prod(dims) <= MOST_ENTRIES >> 2 else 0, dtype=values.value.dtype
    )
    at = places.value
    if places.kind != INT64 or values.value.ndim != 1 or len(at) != len(values.value) or values.kind in (UINT4, INT4):
        raise InputError("a sparse tensor is not a list of values at places")
    rows = (
        at.tolist()
        if at.ndim == 2
        else [np.unravel_index(p, dims) if 0 <= p < out.size else (-1,) for p in at.tolist()]
    )
    keys = {tuple(int(p) for p in row) for row in rows}
    if len(keys) < len(rows) or any(
        len(k) != len(dims) or not all(0 <= p < n for p, n in zip(k, dims, strict=True)) for k in keys
    ):
        raise InputError("the places of a sparse tensor are outside its shape or occur twice")
    for row, v in zip(rows, values.value, strict=True):
        out[tuple(int(p) for p in row)] = v
    return Tensor(values.kind, out)


def single(value: float) -> float:
    """The nearest float32, as attributes are stored."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
