"""The skeleton of an ONNX file: which node computes which tensor from which, and nothing of the values.

The bytes are walked as protobuf fields (protobuf.dev, "Encoding"; numbers from onnx.proto) without copying weights:
the gates need the wiring of the file itself, whatever the reader made of it. The reader, the checker
(`mucg4.check.wire`) and the gates decode the format each on their own: one fault must not deceive all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mucg4.errors import InputError
from mucg4.records import dataclass

OWN = {"BatchNormalization": 8}  # roundings beside those of its products and sums; of any other operator 2 at most
ADDING = {"Add", "Sub", "Sum", "BatchNormalization", "BiasGelu", "FastGelu", "SkipLayerNormalization"}
SCALING = {"Mul", "Div", "BatchNormalization"}
PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"}
PRODUCTS |= {"FusedGemm", "FusedConv", "FusedMatMul"}
ORDINARY_MODEL = {1, 2, 3, 4, 5, 6, 7, 8, 14}  # fields of ModelProto without functions and training
ORDINARY_GRAPH = {1, 2, 5, 10, 11, 12}  # fields of GraphProto that say nothing about tensors within
ORDINARY_NODE = {1, 2, 3, 4, 5, 6, 7, 9}
ORDINARY_ATTRIBUTE = {1, 2, 3, 4, 5, 7, 8, 13, 20}  # no graphs, no lists of strings or tensors
MOST_INNER = 100_000  # operators within one node; not measured
LARGEST = 2**31  # whole numbers in attributes; given
ORDINARY_TENSOR = {1, 2, 4, 5, 7, 8, 9, 10, 11, 12}  # all in the file, no strings


@dataclass(frozen=True)
class Step:
    """One node of the file; absent inputs and outputs have the name "".

    `within` are the operators of graphs in its attributes, and of the function it calls; what these read counts as its
    inputs.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    within: tuple[str, ...] = ()

    @property
    def ops(self) -> tuple[str, ...]:
        """All operators that run."""
        return (self.op, *self.within)


class Slice(NamedTuple):
    """A part of the file: how many nodes, their operators, and how many roundings they may add to those of one map.

    Some for each node, constant ones included, and for a product of constants as many as its longest dimension.
    `inner` is the size of what is added before the last node where a product follows, `outer` where only sums do: what
    a later node may take away again, while the digits do not return.
    """

    nodes: int
    roundings: int
    ops: frozenset[str]
    inner: float = 0.0
    outer: float = 0.0

    @staticmethod
    def over(parts: Sequence[Slice]) -> Slice:
        """What is at least each of the parts."""
        return Slice(
            max(p.nodes for p in parts),
            max(p.roundings for p in parts),
            frozenset().union(*(p.ops for p in parts)),
            max(p.inner for p in parts),
            max(p.outer for p in parts),
        )


@dataclass(frozen=True, eq=False)
class Skeleton:
    """Nodes in file order; `initial` maps initialisers to their longest dimension, `stored` constants to their bytes.

    `oddity` names the first trait that ordinary models lack ("" for an ordinary one).
    """

    steps: tuple[Step, ...]
    initial: dict[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    oddity: str = ""
    stored: dict[str, memoryview] = field(default_factory=dict, repr=False)

    @cached_property
    def producer(self) -> dict[str, int]:
        """Tensor -> position of the node that computes it."""
        return {name: k for k, step in enumerate(self.steps) for name in step.outputs if name}

    @cached_property
    def constant(self) -> frozenset[str]:
        """Tensors that do not depend on the network's input."""
        known = set(self.initial) | {""}
        for step in self.steps:
            if known.issuperset(step.inputs):
                known.update(step.outputs)
        return frozenset(known)

    def between(self, name: str, sources: Collection[str]) -> Slice:
        """The nodes between the tensors `sources` and the tensor `name`."""
        seen: set[int] = set()
        pending, roundings, hidden = [(name, False)], 0, [0.0, 0.0]
        while pending:
            at, scaled = pending.pop()
            k = self.producer.get(at)
            if k is None or k in seen or at in sources:
                continue
            seen.add(k)
            step = self.steps[k]
            product = not PRODUCTS.isdisjoint(step.ops)
            pending += [(i, scaled or product or not SCALING.isdisjoint(step.ops)) for i in step.inputs]
            roundings += sum(OWN.get(op, 2) for op in step.ops)
            if (name not in step.outputs or step.within) and (product or not ADDING.isdisjoint(step.ops)):
                added = step.inputs[2:] if product and not step.within else step.inputs
                hidden[not scaled] += max((self.largest(i) for i in added), default=0.0)
            if (product or any(op.startswith("Reduce") for op in step.ops)) and self.constant.issuperset(step.inputs):
                roundings += max((self.initial.get(i, 0) for i in step.inputs), default=0) or self._longest
        ops = frozenset(op for k in seen for op in self.steps[k].ops)
        return Slice(sum(len(self.steps[k].ops) for k in seen), roundings, ops, hidden[0], hidden[1])

    def largest(self, name: str) -> float:
        """The largest number in a stored constant, in size; 0 where that is not known."""
        kind, packed = 0, memoryview(b"")
        for number, value in _fields(self.stored.get(name, memoryview(b""))):
            if number == 2 and isinstance(value, int):
                kind = value
            elif number in (4, 9, 10) and isinstance(value, memoryview):
                packed = value
        dtype = {1: "<f4", 10: "<f2", 11: "<f8"}.get(kind)
        if dtype is None or len(packed) % np.dtype(dtype).itemsize:
            return 0.0
        return float(np.nanmax(abs(np.frombuffer(packed, dtype)), initial=0.0))

    @cached_property
    def _longest(self) -> int:
        return max(self.initial.values(), default=0)


def skeleton(data: bytes) -> Skeleton:
    """The skeleton of an ONNX file. Raises `InputError` when the bytes are not protobuf."""
    view, oddities = memoryview(data), _Oddities()
    graphs = []
    bodies: dict[tuple[str, str], list[memoryview]] = {}
    for number, value in _fields(view):
        oddities.unless(number in ORDINARY_MODEL, f"model field {number}")
        if number == 7 and isinstance(value, memoryview):
            graphs.append(value)
        elif number == 25 and isinstance(value, memoryview):
            parts = list(_fields(value))
            domain, op = ("".join(_text(v) for n, v in parts if n == field) for field in (10, 1))
            bodies[domain, op] = _messages(parts, 7)
    inner = _Inner(bodies)
    oddities.unless(len(graphs) == 1, "not one graph")
    steps: list[Step] = []
    initial: dict[str, int] = {}
    stored: dict[str, memoryview] = {}
    ends: dict[int, list[str]] = {11: [], 12: []}
    for number, value in (f for graph in graphs for f in _fields(graph)):
        oddities.unless(number in ORDINARY_GRAPH, f"graph field {number}")
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            steps.append(_step(value, oddities, stored, inner))
        elif number == 5:
            name, longest = _tensor(value, oddities)
            initial[name], stored[name] = longest, value
        elif number in ends:
            ends[number].append("".join(_text(v) for n, v in _fields(value) if n == 1))
    out = Skeleton(tuple(steps), initial, tuple(ends[11]), tuple(ends[12]))
    _look_at_names(out, oddities)
    return Skeleton(out.steps, out.initial, out.inputs, out.outputs, oddities.first, stored)


def with_outputs(data: bytes, names: Collection[str]) -> bytes:
    """The model that also returns the tensors `names`.

    A message field that comes twice is merged, lists are joined (protobuf.dev, "Last One Wins"), so another graph of
    nothing but outputs is appended.
    """
    outputs = b"".join(_message(12, _message(1, name.encode())) for name in names)
    return data + _message(7, outputs)


class _Oddities:
    """Remembers the first one."""

    def __init__(self) -> None:
        self.first = ""

    def unless(self, fine: bool, text: str) -> None:
        if not fine and not self.first:
            self.first = text


class _Inner:
    """What runs inside a node: operators, and the names that graphs in attributes read; `bodies` are the functions'.

    Counted to `MOST_INNER` operators, which no honest file exceeds in one node.
    """

    def __init__(self, bodies: dict[tuple[str, str], list[memoryview]]) -> None:
        self.bodies = bodies

    def of(self, node: memoryview) -> tuple[list[str], list[str]]:
        """Operators within a node, its own not, and the names read there."""
        ops: list[str] = []
        names: list[str] = []
        pending = [(node, True)]
        while pending and len(ops) < MOST_INNER:
            at, first = pending.pop()
            parts = list(_fields(at))
            domain, op = ("".join(_text(v) for n, v in parts if n == field) for field in (7, 4))
            if not first:
                ops.append(op)
                names += [_text(v) for n, v in parts if n == 1]
            pending += [(body, False) for body in self.bodies.get((domain, op), ())]
            for graph in (g for a in _messages(parts, 5) for g in _messages(_fields(a), 6, 11)):
                pending += [(v, False) for v in _messages(_fields(graph), 1)]
                names += [_text(v) for end in _messages(_fields(graph), 12) for n, v in _fields(end) if n == 1]
        return ops, names


def _messages(parts: Iterable[tuple[int, int | memoryview]], *numbers: int) -> list[memoryview]:
    return [v for n, v in parts if n in numbers and isinstance(v, memoryview)]


def _step(data: memoryview, oddities: _Oddities, stored: dict[str, memoryview], inner: _Inner) -> Step:
    inputs, outputs, op, domain = [], [], "", ""
    graphs = False
    tensors: list[memoryview] = []
    for number, value in _fields(data):
        oddities.unless(number in ORDINARY_NODE, f"node field {number}")
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            op = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5 and isinstance(value, memoryview):
            _attribute(value, oddities)
            graphs |= any(n in (6, 11) for n, _ in _fields(value))
            tensors += [v for n, v in _fields(value) if n == 5 and isinstance(v, memoryview)]
    if op == "Constant" and tensors and outputs:
        stored[outputs[0]] = tensors[0]
    oddities.unless(domain in ("", "ai.onnx"), f"domain {domain}")
    if graphs or (domain, op) in inner.bodies:
        ops, names = inner.of(data)
        return Step(op, (*inputs, *(names if graphs else ())), tuple(outputs), tuple(ops))
    return Step(op, tuple(inputs), tuple(outputs))


def _attribute(data: memoryview, oddities: _Oddities) -> None:
    for number, value in _fields(data):
        oddities.unless(number in ORDINARY_ATTRIBUTE, f"attribute field {number}")
        if number == 5 and isinstance(value, memoryview):
            _tensor(value, oddities)
        elif number in (3, 8):
            whole = [value] if isinstance(value, int) else list(_varints(value))
            oddities.unless(all(min(v, 2**64 - v) <= LARGEST for v in whole), "a huge number in an attribute")


def _tensor(data: memoryview, oddities: _Oddities) -> tuple[str, int]:
    """Name and longest dimension of a TensorProto."""
    name, dims = "", []
    for number, value in _fields(data):
        oddities.unless(number in ORDINARY_TENSOR, f"tensor field {number}")
        if number == 8:
            name = _text(value)
        elif number == 1:
            dims += [value] if isinstance(value, int) else list(_varints(value))
    oddities.unless(all(0 < d < LARGEST for d in dims), "a dimension out of range")
    return name, max(dims, default=1)


def _look_at_names(found: Skeleton, oddities: _Oddities) -> None:
    """Names that are empty, not defined before, or defined twice, and nodes that nothing needs."""
    made = [name for step in found.steps for name in step.outputs]
    own = [name for name in found.inputs if name not in found.initial]
    every = [*made, *found.initial, *own]
    oddities.unless(all(every) and all(found.outputs), "an empty name")
    oddities.unless(len(set(every)) == len(every), "a name given twice")
    known, needed = {*found.initial, *own}, set(found.outputs)
    for step in found.steps:
        oddities.unless(bool(step.op and step.outputs), "a node without operator or output")
        oddities.unless(known.issuperset(filter(None, step.inputs)), "a name used before it is given")
        known.update(step.outputs)
    oddities.unless(known.issuperset(found.outputs), "an output that nothing computes")
    for step in reversed(found.steps):
        oddities.unless(not needed.isdisjoint(step.outputs), "a node that nothing needs")
        needed.update(step.inputs)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field: integers for varints, bytes for everything else."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise InputError("the network file is not ONNX: it holds a field of unknown kind")
        if at + size > end:
            raise InputError("the network file is not ONNX, or it is truncated")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise InputError("the network file is not ONNX, or it is truncated")


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _text(value: int | memoryview) -> str:
    return str(value, "utf-8", "replace") if isinstance(value, memoryview) else ""


def _message(number: int, body: bytes) -> bytes:
    """One field of bytes."""
    return _number(number << 3 | 2) + _number(len(body)) + body


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
