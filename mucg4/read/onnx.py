"""ONNX bytes -> canonical network (design section 4).

Nodes are read in file order. A node whose inputs are all constant is evaluated; one that only moves
data becomes an index map or nothing; the others are handed to the table of operators. `simplify` then
composes what can be composed. Values are flat; a leading dynamic dimension is the batch and counts 1.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple, cast

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.model.network import Network, Node
from mucg4.ops.affine import Dense
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.constant import CANCELLATION, Constant
from mucg4.read.fold import FOLDERS
from mucg4.read.movement import MOVERS
from mucg4.read.operators import HANDLERS
from mucg4.read.protobuf import DOUBLE, FLOAT, OnnxGraph, OnnxNode, Tensor, decode_model, decode_tensor
from mucg4.read.simplify import separate, simplify
from mucg4.read.windows import WINDOW_HANDLERS

LONG_FOLDS = ("MatMul", "Gemm", "ReduceSum", "ReduceMean")
ARITHMETIC_FOLDS = (*LONG_FOLDS, "Add", "Sub", "Mul", "Div", "Sum", "Sqrt", "Reciprocal")
FUNCTION_FOLDS = ("Pow", "Exp", "Log", "Tanh", "Sin", "Cos", "ReduceProd")  # they may magnify relative errors
MOVING_FOLDS = ("Neg", "Abs", "Relu", "Max", "Min", "Concat", "Constant", "ConstantOfShape")
ELEMENT_TYPES = {FLOAT: "float32", DOUBLE: "float64"}
TABLE = {**HANDLERS, **WINDOW_HANDLERS}


def read_network(data: bytes) -> Network:
    """The network of ONNX bytes (not compressed).

    Raises `InputError` when the bytes are no complete model, a shape cannot be resolved or a weight is
    nan or infinite; `UnsupportedError` naming operator and node for everything mucg4 does not implement.
    """
    reading, output, element_type = _read(data)
    return _network(simplify(reading.builder.drafts, output), data, element_type)


class Operators(NamedTuple):
    """A network that has a node for every operator of the file.

    `twins[k]` is the node of `read_network` with the value of node k, or -1; `roundings` bounds how many roundings are
    behind one of its constants, in units of its size; None where that is not known.
    """

    network: Network
    twins: tuple[int, ...]
    roundings: int | None


def read_operators(data: bytes) -> Operators:
    """As `read_network`, but nothing is composed: what an execution computes and rounds has a node of its own."""
    reading, output, element_type = _read(data)
    nodes, twins = separate(reading.builder.drafts, output)
    return Operators(_network(nodes, data, element_type), twins, reading.roundings)


def _network(nodes: tuple[Node, ...], data: bytes, element_type: str) -> Network:
    return Network(nodes, hashlib.sha256(data).hexdigest(), element_type, data)


def _read(data: bytes) -> tuple[_Reading, int, str]:
    """All operators read, the draft that is the output, and the element type."""
    graph = decode_model(data)
    nodes = _needed(graph)
    declared = _only_input(graph, nodes)
    if declared.element_type not in ELEMENT_TYPES:
        raise UnsupportedError(
            f"input {declared.name!r} has element type {declared.element_type}, not float32 or float64"
        )
    reading = _Reading(graph, Builder(declared.name, _input_shape(declared)))
    for node in nodes:
        reading.read(node)
    return reading, reading.output().draft, ELEMENT_TYPES[declared.element_type]


def _needed(graph: OnnxGraph) -> list[OnnxNode]:
    """The nodes the output depends on, in file order (which ONNX demands to be topological)."""
    if len(graph.outputs) != 1:
        raise UnsupportedError(f"the network has {len(graph.outputs)} outputs; only one is supported")
    wanted, out = {graph.outputs[0].name}, []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            out.append(node)
    return out[::-1]


def _only_input(graph: OnnxGraph, nodes: list[OnnxNode]) -> Tensor:
    if not graph.inputs:
        raise InputError("the network has no input")
    if len(graph.inputs) == 1:
        return graph.inputs[0]
    read = {name for node in nodes for name in node.inputs} | {graph.outputs[0].name}
    used = [t for t in graph.inputs if t.name in read]
    if len(used) != 1:
        raise UnsupportedError(f"the network has {len(graph.inputs)} inputs; only one is supported")
    return used[0]


def _input_shape(declared: Tensor) -> tuple[int, ...]:
    """Declared dimensions; a dynamic first one is the batch and 1, and so is its name wherever it recurs."""
    if declared.dims is None:
        raise InputError(f"input {declared.name!r} declares no shape")
    batch = declared.dims[0] if declared.dims else None
    shape = []
    for i, d in enumerate(declared.dims):
        if isinstance(d, int):
            shape.append(d)
        elif i == 0 or (d is not None and d == batch):
            shape.append(1)
        else:
            raise InputError(f"input {declared.name!r} has a dynamic dimension {d or i!r} besides the batch")
    return tuple(shape)


class _Reading:
    """Values of the tensors read so far."""

    def __init__(self, graph: OnnxGraph, builder: Builder) -> None:
        self.graph, self.builder = graph, builder
        first = builder.drafts[0]
        self.values: dict[str, Value] = {first.name: Variable(0, first.shape)}
        self.roundings: int | None = 0

    def value(self, name: str, node: OnnxNode) -> Value | None:
        """A tensor by name; initialisers are decoded when first read."""
        if not name:
            return None
        if name not in self.values:
            if name not in self.graph.constants:
                raise node.invalid(f"its input {name!r} is not defined before it")
            self.values[name] = Constant(decode_tensor(self.graph.constants[name]), name)
        return self.values[name]

    def read(self, node: OnnxNode) -> None:
        """Compute the outputs of one node."""
        inputs = [self.value(name, node) for name in node.inputs]
        builder, start = self.builder, len(self.builder.drafts)
        builder.current = node.outputs[0]
        try:
            outputs = self._evaluate(node, inputs)
        except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError) as error:
            raise node.invalid(f"its inputs or attributes do not fit together ({error})") from error
        names: dict[int, str] = {}
        for name, value in zip(node.outputs, outputs, strict=False):
            self.values[name] = value
            if isinstance(value, Variable):
                names.setdefault(value.draft, name)
        builder.name_parts(start, names)

    def _evaluate(self, node: OnnxNode, inputs: list[Value | None]) -> list[Value]:
        if node.op == "Shape":
            return [self._shape(node, inputs)]
        if node.op in MOVERS:
            mover, known = MOVERS[node.op]
            _check_attributes(node, known)
            return self._move(node, inputs, mover)
        if not any(isinstance(x, Variable) for x in inputs):
            if node.op not in FOLDERS:
                raise node.unsupported("on constants")
            folder, known = FOLDERS[node.op]
            _check_attributes(node, known)
            folded = folder(node, cast("list[Constant | None]", inputs))
            self._count(node, folded, cast("list[Constant | None]", inputs))
            return [folded]
        if node.op not in TABLE:
            raise node.unsupported()
        handler, known = TABLE[node.op]
        _check_attributes(node, known)
        return handler(self.builder, node, inputs)

    def _count(self, node: OnnxNode, folded: Constant, inputs: list[Constant | None]) -> None:
        """Add the roundings of one folded operator: no constant has more behind it than all operators together.

        Digits that cancel are in a constant's magnitude, or it is no weight (`Constant.weight`).
        """
        if self.roundings is None or node.op in MOVING_FOLDS:
            return
        given = [c for c in inputs if c is not None]
        if node.op in ARITHMETIC_FOLDS and folded.is_float:
            longest = max(max(c.shape, default=1) for c in given) if node.op in LONG_FOLDS else 2
            self.roundings += int(CANCELLATION) * longest
        elif node.op in FUNCTION_FOLDS and not any(c.rounded for c in given):
            self.roundings += int(CANCELLATION) * 8
        elif any(c.rounded for c in given) or node.op in FUNCTION_FOLDS:  # a step or a choice may turn out otherwise
            self.roundings = None
        size = folded.size_of_terms() if folded.is_float else np.zeros(0)
        value = abs(folded.double()) if folded.is_float else size
        if self.roundings and (np.any(size > 1e38) or np.any((value > 0) & (value < 1e-37))):
            self.roundings = None  # it may overflow or vanish in the element type

    def _shape(self, node: OnnxNode, inputs: list[Value | None]) -> Constant:
        assert inputs[0] is not None
        part = slice(node.attributes.get("start", 0), node.attributes.get("end"))
        return Constant(np.array(inputs[0].shape[part], dtype=np.int64), node.outputs[0])

    def _move(self, node: OnnxNode, inputs: list[Value | None], mover) -> list[Value]:  # type: ignore[no-untyped-def]
        x, rest = inputs[0], inputs[1:]
        if any(isinstance(v, Variable) for v in rest):
            raise node.unsupported("a shape or index that depends on the network's input")
        further = [v.value if isinstance(v, Constant) else None for v in rest]
        if isinstance(x, Constant):
            parts = mover(x.value, node, further)
            sizes = parts if x.magnitude is None else mover(x.magnitude, node, further)
            marks = [None if x.magnitude is None else m for m in sizes]
            return [Constant(p, x.name, m, x.rounded) for p, m in zip(parts, marks, strict=True)]
        if x is None:
            raise node.invalid("its first input is missing")
        source = x
        count = len(mover(np.arange(source.size).reshape(source.shape), node, further)) if len(node.outputs) > 1 else 1
        return [self.builder.move(source, lambda a, i=i: mover(a, node, further)[i]) for i in range(count)]  # type: ignore[misc]

    def output(self) -> Variable:
        """The output's value; an output that does not depend on the input becomes a map with zero weights."""
        name = self.graph.outputs[0].name
        last = OnnxNode("output", name, (name,), (name,), {}, 0)
        value = self.value(name, last)
        if isinstance(value, Variable):
            return value
        assert isinstance(value, Constant)
        builder, start = self.builder, len(self.builder.drafts)
        offset, magnitude = value.offset()
        source = Variable(0, builder.drafts[0].shape)
        out = builder.node(Dense(np.zeros((len(offset), source.size)), offset, magnitude), [source], value.shape)
        builder.name_parts(start, {out.draft: name})
        return out


def _check_attributes(node: OnnxNode, known: str) -> None:
    for key in node.attributes:
        if key not in known.split():
            raise node.unsupported(f"attribute {key!r}")
