"""Whether the numbers of a canonical network are those of its model file, none of them computed.

Bounds in floating point carry a charge for what the reader rounded when it merged constants. A refutation by equality
(`mucg4.check.ties`) has no room for one, so it needs a network without computed numbers. The rule is an inventory: the
sizes of all numbers in the file that are neither 0 nor 1, each as often as it is stored, are those of the canonical
network. Merging two constants would lose one or both, factors would change them, and copies would count twice. It says
no wherever anything else happens, also where that would be exact.

The file is read here by its wire format alone (protobuf: field 7 of a model is the graph, 5 its initializers, 1 its
nodes, 5 of a node its attributes), so that nothing is shared with the reader whose work is judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mucg4.model.network import Network
from mucg4.ops.base import Affine, Array
from mucg4.ops.piecewise import TwoPiece

FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 11: np.dtype("<f8")}
WIDEST = {10, 16}  # float16 and bfloat16: not read here
MOST_NUMBERS = 1 << 22


def verbatim(network: Network) -> bool:
    """True when every number of the network is a stored one, see the module text; False whenever in doubt."""
    try:
        stored = [v for part in _model(network.model_bytes) for v in part]
    except (ValueError, IndexError, OverflowError):
        return False
    made = [v for part in _numbers(network) for v in part]
    if not network.model_bytes or len(stored) != len(made) or len(made) > MOST_NUMBERS:
        return False
    return bool(np.array_equal(np.sort(np.array(stored)), np.sort(np.array(made))))


def _sizes(values: Array) -> Array:
    """The absolute values that are neither 0 nor 1."""
    values = np.abs(np.asarray(values, dtype=np.float64).ravel())
    return values[(values != 0) & (values != 1)]


def _numbers(network: Network) -> Iterator[Array]:
    for node in network.nodes[1:]:
        op = node.op
        if isinstance(op, TwoPiece):
            yield _sizes(np.array([op.left, op.right]))
        elif isinstance(op, Affine):
            for value in op.parameters().values():
                if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                    yield _sizes(value)
                elif isinstance(value, (float, tuple)):
                    numbers = np.array(value)
                    yield _sizes(numbers) if numbers.dtype.kind == "f" else np.zeros(0)
        else:
            yield np.array([np.nan])  # equal to nothing


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message's fields; raises `ValueError` or `IndexError` when it is none."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a varint is too long")

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError("not a message")
        size = varint() if kind == 2 else 8 if kind == 1 else 4
        if at + size > len(data):
            raise ValueError("a field is cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _messages(data: bytes, number: int) -> Iterator[bytes]:
    return (v for n, v in _fields(data) if n == number and isinstance(v, bytes))


def _model(data: bytes) -> Iterator[Array]:
    for graph in _messages(data, 7):
        for tensor in _messages(graph, 5):
            yield _tensor(tensor)
        if any(True for _ in _messages(graph, 15)):
            raise ValueError("sparse initializers are not read here")
        for node in _messages(graph, 1):
            for attribute in _messages(node, 5):
                yield from _attribute(attribute)


def _attribute(data: bytes) -> Iterator[Array]:
    """Numbers of one attribute: a float, floats, or a tensor; graphs are refused."""
    for number, value in _fields(data):
        if number in (2, 7) and isinstance(value, bytes):  # packed floats are several
            yield _sizes(np.frombuffer(value, dtype="<f4"))
        elif number == 5 and isinstance(value, bytes):
            yield _tensor(value)
        elif number in (6, 10, 11, 22, 23):
            raise ValueError("graphs, lists of tensors and sparse tensors are not read here")


def _tensor(data: bytes) -> Array:
    """Sizes of the numbers of a tensor; none where it holds integers."""
    kind, parts, raw = 0, [], None
    for number, value in _fields(data):
        if number == 2 and isinstance(value, int):
            kind = value
        elif number in (4, 10) and isinstance(value, bytes):
            parts.append(np.frombuffer(value, dtype="<f4" if number == 4 else "<f8").astype(np.float64))
        elif number == 9 and isinstance(value, bytes):
            raw = value
        elif number == 13 or (number == 14 and value):
            raise ValueError("numbers outside the file are not read here")
    if kind in WIDEST or kind > 16:
        raise ValueError("a type that is not read here")
    if kind not in FLOATS:
        return np.zeros(0)
    if raw is not None:
        parts = [np.frombuffer(raw, dtype=FLOATS[kind]).astype(np.float64)]
    return _sizes(np.concatenate(parts)) if parts else np.zeros(0)
