"""Networks and boxes as bytes: a small JSON header followed by raw arrays, as a zstandard frame. Never pickle.

A network is written operator by operator from the fields of its dataclass, so that a new operator needs
nothing here. Reading back gives the same canonical network (same fingerprint) without the ONNX file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from math import prod
from pkgutil import iter_modules
from typing import Any

import numpy as np

import mucg4.ops
from mucg4.errors import StoreError
from mucg4.limits.foreign import inflate, is_frame, json_value, packed, plausible, text_of, unpack, whole, wholes
from mucg4.model.network import Network, Node
from mucg4.ops.arrays import FloatArray
from mucg4.ops.base import Op
from mucg4.records import dataclass

_MAGIC = b"mn1\n"
MOST = 2**30  # bytes of an unpacked network, or of unpacked boxes; not measured
_NARROW = {"f": (np.float32,), "i": (np.int8, np.int16, np.int32), "u": (), "b": ()}


class _Writer:
    """Collects arrays beside a JSON-able description of plain values, tuples and dataclasses."""

    def __init__(self) -> None:
        self.arrays: list[bytes] = []

    def plain(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, np.generic):
            return self.plain(value.item())
        if isinstance(value, (tuple, list)):
            return {"t": [self.plain(v) for v in value]}
        if is_dataclass(value) and not isinstance(value, type):
            held = {f.name: self.plain(getattr(value, f.name)) for f in fields(value) if f.init}
            return {"c": type(value).__name__, "v": held}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise StoreError(f"cannot store a value of type {type(value).__name__}")

    def _array(self, value: FloatArray) -> dict[str, Any]:
        small = narrowed(value)
        self.arrays.append(small.astype(small.dtype.newbyteorder("<"), copy=False).tobytes())
        return {"a": small.dtype.str.lstrip("<>=|"), "d": value.dtype.str.lstrip("<>=|"), "s": list(value.shape)}


class _Reader:
    """The inverse: consumes the arrays in the order they were written."""

    def __init__(self, data: bytes, at: int, classes: dict[str, type]) -> None:
        self.data, self.at, self.classes = data, at, classes

    def value(self, plain: Any) -> Any:
        if not isinstance(plain, dict):
            return plain
        if "a" in plain:
            return self._array(plain)
        if "t" in plain:
            return tuple(self.value(v) for v in plain["t"])
        return self.classes[plain["c"]](**{k: self.value(v) for k, v in plain["v"].items()})

    def _array(self, plain: dict[str, Any]) -> FloatArray:
        dtype, target = (np.dtype(text_of(plain[k], "a type")) for k in ("a", "d"))
        shape = wholes(plain["s"], "a shape", np.int64, high=MOST).tolist()
        count = prod(shape)
        if any(d.kind not in _NARROW or d.itemsize > 8 for d in (dtype, target)) or count > MOST:
            raise StoreError("a stored array is of no such type, or too large")
        out = np.frombuffer(self.data, dtype.newbyteorder("<"), count, self.at).reshape(shape)
        self.at += count * dtype.itemsize
        return np.asarray(out.astype(target))


def narrowed(value: FloatArray) -> FloatArray:
    """The array in the smallest type that holds every value exactly (float64 -> float32, int64 -> int8...)."""
    for kind in _NARROW.get(value.dtype.kind, ()):
        if np.dtype(kind).itemsize >= value.dtype.itemsize:
            break
        with np.errstate(over="ignore", invalid="ignore"):
            small = value.astype(kind)
        if np.array_equal(small.astype(value.dtype), value):
            return small
    return value


def _operators() -> dict[str, type]:
    """Every operator class by name, and the frozen records operators are made of (`Window`)."""
    out: dict[str, type] = {}
    for info in iter_modules(mucg4.ops.__path__):
        module = import_module(f"mucg4.ops.{info.name}")
        for name, item in vars(module).items():
            if isinstance(item, type) and is_dataclass(item):
                out[name] = item
    return out


def network_to_bytes(network: Network) -> bytes:
    """Everything that defines the canonical network, names and shapes included; not the ONNX bytes.

    Raises `StoreError` when an operator holds a value of an unknown type.
    """
    writer = _Writer()
    nodes = [
        {"op": writer.plain(n.op), "inputs": list(n.inputs), "name": n.name, "shape": [int(s) for s in n.shape]}
        for n in network.nodes
    ]
    head = {"source": network.source_hash, "type": network.element_type, "nodes": nodes}
    text = json.dumps(head, separators=(",", ":")).encode()
    data = b"".join([_MAGIC, len(text).to_bytes(8, "little"), text, *writer.arrays])
    return packed(data)


def network_from_bytes(blob: bytes) -> Network:
    """Inverse of `network_to_bytes` (`model_bytes` is empty); raises `StoreError` for anything malformed."""
    try:
        data = _unpacked(blob)
        if data[:4] != _MAGIC:
            raise StoreError("not a stored network")
        size = int.from_bytes(data[4:12], "little")
        head = json_value(data[12 : 12 + size])
        reader = _Reader(data, 12 + size, _operators())
        nodes = []
        for n in head["nodes"]:
            op = reader.value(n["op"])
            if op is not None and not isinstance(op, Op):
                raise StoreError("a stored network holds something that is no operator")
            inputs, shape = (wholes(n[k], k, np.int64, high=MOST).tolist() for k in ("inputs", "shape"))
            nodes.append(Node(op, tuple(inputs), text_of(n["name"], "a name"), tuple(shape)))
        return Network(tuple(nodes), text_of(head["source"], "source"), text_of(head["type"], "type"))
    except MemoryError:
        raise StoreError("malformed stored network: too large for the memory") from None
    except Exception as error:  # operators are built from whatever stands there; each has its own way to refuse it
        raise StoreError(f"malformed stored network: {error}") from error


def _unpacked(blob: bytes) -> bytes:
    """The content of a blob; older stores hold zlib streams. Raises `ValueError`."""
    most = plausible(blob, MOST)
    return unpack(blob, most) if is_frame(blob) else inflate(blob, most)


Names = tuple[tuple[str, ...], ...]  # of each case's conjunctions, see `Conjunction.name`


@dataclass(frozen=True, eq=False)
class Asked:
    """What a stored result is about: `(lo, hi)` per case, and the names of its conjunctions (none: not known)."""

    boxes: list[tuple[FloatArray, FloatArray]]
    names: Names = ()


def asked_to_bytes(asked: Asked) -> bytes:
    """Boxes as float64, exactly, then the names of conjunctions: a line for each case."""
    boxes = asked.boxes
    flat = np.array([[lo, hi] for lo, hi in boxes], dtype="<f8")
    head = np.array([len(boxes), flat.shape[-1] if len(boxes) else 0], dtype="<i8")
    text = "\n".join(" ".join(own) for own in asked.names)
    return packed(head.tobytes() + flat.tobytes() + text.encode())


def asked_from_bytes(blob: bytes) -> Asked:
    """Inverse of `asked_to_bytes`; raises `StoreError`. Older stores hold no names."""
    try:
        data = _unpacked(blob)
        cases, size = (whole(n, "a count", high=MOST) for n in np.frombuffer(data[:16], "<i8").tolist())
        end = 16 + 16 * cases * size
        if len(data) < end or (cases and not size):
            raise ValueError("the counts do not fit the length")
        flat = np.frombuffer(data, "<f8", cases * 2 * size, 16).reshape(cases, 2, size).astype(np.float64)
        text = data[end:].decode("ascii")
        names = tuple(tuple(line.split()) for line in text.split("\n")) if text else ()
        if len(names) not in (0, cases):
            raise ValueError("names that are not as many as the cases")
    except (ValueError, TypeError) as error:
        raise StoreError(f"malformed stored boxes: {error}") from error
    return Asked([(lo, hi) for lo, hi in flat], names)


def boxes_hash(boxes: Sequence[tuple[FloatArray, FloatArray]]) -> str:
    """Hex SHA-256, equal for equal float64 boxes."""
    h = hashlib.sha256()
    for lo, hi in boxes:
        h.update((lo + 0.0).tobytes() + (hi + 0.0).tobytes())  # -0.0 and 0.0 are equal
    return h.hexdigest()
