"""ONNX bytes -> canonical network (design section 4).

Nodes are read in file order, as far as `mucg4.read.table` holds them. A node whose inputs are all constant is
evaluated; one that only moves data becomes an index map or nothing; the others are handed to their operator's
handler. `simplify` then composes what can be composed. Values are flat. Functions of the model and branches are put in
place of their callers first (`mucg4.read.inline`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, prod
from typing import Any, NamedTuple, cast

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.model.network import Network, Original
from mucg4.ops.affine import Dense, Scale
from mucg4.ops.arrays import AnyArray, FloatArray
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.composed import COMPOSED_HANDLERS, OTHERWISE, resize_linear
from mucg4.read.constant import Constant
from mucg4.read.ends import Inputs, Shape, chosen
from mucg4.read.fold import FOLDERS, folded_shape
from mucg4.read.functions import FUNCTION_HANDLERS
from mucg4.read.fused import FUSED_HANDLERS
from mucg4.read.inline import Subgraph, decode_model
from mucg4.read.integers import HELD, RANGES, WHOLE, largest, truncation
from mucg4.read.learned import LEARNED_HANDLERS
from mucg4.read.masks import MASK_HANDLERS, truth
from mucg4.read.movement import MOVERS, Mover
from mucg4.read.operators import HANDLERS
from mucg4.read.protobuf import (
    BOOL,
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    OnnxGraph,
    OnnxNode,
    shortened,
)
from mucg4.read.recurrent import RECURRENT_HANDLERS
from mucg4.read.roundoff import magnitude
from mucg4.read.simplify import separate, simplify
from mucg4.read.table import check_types, lookup
from mucg4.read.tensors import stored
from mucg4.read.windows import WINDOW_HANDLERS

LARGEST_FOLDED = 4096.0  # roundings behind a constant; not measured
RESIZING = ("Resize", "Upsample")
COMPARISONS = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
OUTPUTS = "outputs"  # the node that holds several is called `outputs#1`
ELEMENT_TYPES = {FLOAT: "float32", DOUBLE: "float64"}
INTEGER_TYPES = {INT32: "int32", INT64: "int64"}  # of inputs that the model makes float32 numbers of
ALL_HANDLERS = {
    **HANDLERS,
    **FUNCTION_HANDLERS,
    **WINDOW_HANDLERS,
    **COMPOSED_HANDLERS,
    **MASK_HANDLERS,
    **FUSED_HANDLERS,
    **RECURRENT_HANDLERS,
    **LEARNED_HANDLERS,
}
ROUNDING_UNKNOWN = OTHERWISE | FUSED_HANDLERS.keys() | RECURRENT_HANDLERS.keys() | LEARNED_HANDLERS.keys()
# what reading a contradictory file may raise inside handlers and NumPy: the file's fault, told as such
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def read_network(
    data: bytes,
    original: Original | None = None,
    count: int | None = None,
    shapes: Mapping[str, Shape] | None = None,
) -> Network:
    """The network of ONNX bytes (not compressed, all weights inside); `original` is what they were made of.

    `count` is how many inputs a property declares and `shapes` what the user says about the file's inputs; see
    `mucg4.read.ends`. Several outputs are one behind the other, in the order of their declaration.
    Raises `InputError` when the bytes are no complete model, a shape cannot be resolved or a weight is
    nan or infinite; `UnsupportedError` naming operator and node for everything mucg4 does not implement.
    """
    reading, output = _read(data, count, shapes)
    simple, place = simplify(reading.builder.drafts, output.draft)
    variables = {name: v for name, v in reading.values.items() if isinstance(v, Variable)}
    read = ((name, v.draft) for name, v in variables.items() if reading.builder.voids(v) is None)
    return Network(
        simple,
        source_hash=hashlib.sha256(data).hexdigest(),
        element_type=ELEMENT_TYPES[reading.element_type],
        model_bytes=data,
        tensors=tuple((name, place[k]) for name, k in read if k in place),
        original=original,
        inputs=tuple((t.name, shape) for t, shape in zip(*reading.inputs[:2], strict=True)),
        note=reading.inputs.note,
        narrowest=reading.narrowest,
        integers=reading.integers,
    )


class Operators(NamedTuple):
    """A network with a node for every operator of the file, for the analysis of an execution's rounding.

    `twins[k]` is the node of `read_network` with the value of node k, or -1. Each constant of the file's own arithmetic
    is, when that is done in the element type, within `roundings` times the unit roundoff of itself; None where that is
    not known.
    """

    network: Network
    twins: tuple[int, ...]
    roundings: int | None


def read_operators(data: bytes, shapes: Mapping[str, Shape] | None = None, count: int | None = None) -> Operators:
    """As `read_network`, but nothing is composed: what an execution computes and rounds has a node of its own."""
    reading, output = _read(data, count, shapes)
    drafts = list(reading.builder.drafts)
    for k, terms in reading.terms.items():  # what is added up in an offset
        op = drafts[k].op
        if isinstance(op, Scale):
            drafts[k] = replace(drafts[k], op=replace(op, offset_magnitude=np.fmax(op.bias_magnitude(), terms)))
    nodes, twins = separate(drafts, output.draft, reading.builder.drafts)
    network = Network(nodes, hashlib.sha256(data).hexdigest(), ELEMENT_TYPES[reading.element_type], data)
    worst = max(reading.folded.values(), default=0.0)
    return Operators(network, twins, int(np.ceil(worst)) if worst < LARGEST_FOLDED else None)


def _read(data: bytes, count: int | None, shapes: Mapping[str, Shape] | None) -> tuple[_Reading, Variable]:
    """All operators read, and the output."""
    graph = decode_model(data)
    ends = {t.name for t in graph.outputs}
    nodes = _needed(graph.nodes, ends)
    while (branch := next((k for k, node in enumerate(nodes) if node.op == "If"), None)) is not None:
        # the branch that its condition leaves takes its place; what only the other one reads is not needed
        node = nodes[branch]
        before = _Reading(graph, _inputs(graph, nodes, count, shapes))
        for earlier in _needed(nodes[:branch], set(node.inputs[:1])):
            before.read(earlier)
        placed, constants = _branch(node, before)
        graph = replace(graph, constants={**graph.constants, **constants})
        nodes = _needed([*nodes[:branch], *placed, *nodes[branch + 1 :]], ends)
    reading = _Reading(graph, _inputs(graph, nodes, count, shapes))
    for node in nodes:
        reading.read(node)
    return reading, reading.output()


def _inputs(
    graph: OnnxGraph, nodes: Sequence[OnnxNode], count: int | None, shapes: Mapping[str, Shape] | None
) -> Inputs:
    read = {name for node in nodes for name in (*node.inputs, *node.captured)}
    return chosen(graph.inputs, read | {t.name for t in graph.outputs}, count, shapes)


def _needed(nodes: Sequence[OnnxNode], wanted: set[str]) -> list[OnnxNode]:
    """The nodes that the tensors `wanted` depend on, in file order (which ONNX demands to be topological)."""
    wanted, out = set(wanted), []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(name for name in (*node.inputs, *node.captured) if name)
            out.append(node)
    return out[::-1]


def _branch(node: OnnxNode, reading: _Reading) -> tuple[list[OnnxNode], dict[str, Any]]:
    """The nodes of the branch of an `If` that is taken, and its initialisers; `reading` knows its condition."""
    if len(node.inputs) != 1 or not node.inputs[0]:
        raise node.invalid("it takes one input")
    condition = reading.value(node.inputs[0], node)
    if not isinstance(condition, Constant):
        raise node.unsupported("a condition that depends on the network's input")
    if condition.kind != BOOL or condition.value.size != 1:
        raise node.invalid("its condition is not one truth value")
    taken = bool(condition.stated(node, "its condition").ravel()[0])
    graph = node.attributes.get("then_branch" if taken else "else_branch")
    if not isinstance(graph, Subgraph) or len(node.attributes) != 2:
        raise node.invalid("it needs two branches")
    return graph.placed(node)


class _Reading:
    """Values and element types of the tensors read so far.

    `narrow` are the drafts whose values are float32 numbers for certain though the tensor may be declared double.
    """

    def __init__(self, graph: OnnxGraph, inputs: Inputs) -> None:
        self.graph, self.inputs = graph, inputs
        given = inputs.tensors[0].element_type
        self.element_type, self.integers = (FLOAT, INTEGER_TYPES[given]) if given in INTEGER_TYPES else (given, "")
        alone = len(inputs.tensors) == 1
        self.builder = Builder(inputs.tensors[0].name if alone else "", inputs.shapes[0] if alone else (inputs.size,))
        first = Variable(0, self.builder.drafts[0].shape)
        self.values: dict[str, Value] = {}
        start = 0
        for tensor, shape in zip(inputs.tensors, inputs.shapes, strict=True):
            self.builder.current, at, end = tensor.name, len(self.builder.drafts), start + prod(shape)
            value = first if alone else self.builder.move(first, lambda a, cut=(start, end, shape): _cut(a, *cut))  # type: ignore[misc]
            self.builder.name_parts(at, {} if alone else {value.draft: tensor.name})
            self.values[tensor.name], start = value, end
        self.kinds = dict.fromkeys(self.values, given)
        self.folded: dict[str, float] = {}  # constants that are computed -> roundings behind them, see `Operators`
        self.terms: dict[int, FloatArray] = {}  # drafts -> sizes of the terms that executions add up in offsets
        drafts = range(len(self.builder.drafts))
        self.narrow = set(drafts) if self.element_type == FLOAT else set()
        self.narrowest = ""  # the coarser type that values are rounded to on the way
        self.wide: OnnxNode | None = None  # an operator that computes in double with what depends on the input
        # of integers that depend on the input: none of the tensor's is larger; of inputs that is not known here
        self.sizes: dict[str, int] = dict.fromkeys(self.values if self.integers else (), WHOLE)

    def value(self, name: str, node: OnnxNode) -> Value | None:
        """A tensor by name; initialisers are decoded when first read."""
        if not name:
            return None
        if name not in self.values:
            if name not in self.graph.constants:
                raise node.invalid(f"its input {shortened(name)} is not defined before it")
            constant = stored(self.graph.constants[name], name)
            self.values[name], self.kinds[name] = constant, constant.kind
        return self.values[name]

    def read(self, node: OnnxNode) -> None:
        """Compute the outputs of one node."""
        row = lookup(node)
        inputs = [self.value(name, node) for name in node.inputs]
        variable = any(isinstance(x, Variable) for x in inputs)
        kinds = [self.kinds[name] for name in node.inputs if name]
        check_types(node, row, kinds, variable)
        builder, start = self.builder, len(self.builder.drafts)
        builder.current = node.result
        try:
            outputs = self._evaluate(node, inputs, variable)
        except FAULTS as error:
            raise node.invalid(f"its inputs or attributes do not fit together ({_line(error)})") from error
        names: dict[int, str] = {}
        for name, value in zip(node.outputs, outputs, strict=False):
            if not name:
                continue
            self.values[name] = value
            if isinstance(value, Variable):
                if builder.voids(value) is None:
                    names.setdefault(value.draft, name)
                self.kinds[name] = self._kind(node, kinds)
                if self.kinds[name] in RANGES:
                    both = kinds[0], self.kinds[name]
                    self.sizes[name] = largest(node, both, self._sizes(node, inputs), inputs[0], value)
            else:
                self.kinds[name] = value.kind
        builder.name_parts(start, names)
        if not variable:
            self._count(node, inputs)
        elif node.op == "BatchNormalization" and isinstance(outputs[0], Variable):
            self.terms[outputs[0].draft] = _shift_terms(outputs[0], inputs)

    def _sizes(self, node: OnnxNode, inputs: list[Value | None]) -> list[int]:
        """For each input how large its integers may be; 1 for truth values."""
        found = []
        for name, x in zip(node.inputs, inputs, strict=True):
            whole = isinstance(x, Constant) and x.value.size and x.value.dtype.kind in "iu"
            ends = (x.value.min(), x.value.max()) if isinstance(x, Constant) and whole else ()
            found.append(max((abs(int(v)) for v in ends), default=self.sizes.get(name, 1)))
        return found

    def _kind(self, node: OnnxNode, kinds: list[int]) -> int:
        """The element type of an output that depends on the input."""
        if node.op in COMPARISONS:
            return BOOL
        return int(node.attributes["to"]) if node.op == "Cast" else kinds[1] if node.op == "Where" else kinds[0]

    def _count(self, node: OnnxNode, inputs: list[Value | None]) -> None:
        """How many roundings of the element type are behind a computed constant, in units of each of its entries.

        Inputs within r roundings of themselves: products and quotients add theirs up, sums take the largest times how
        much larger their terms are than they. A result that every runtime has exactly has none.
        """
        out = self.values.get(node.outputs[0])
        given = [x for x in inputs if isinstance(x, Constant)]
        behind = [self.folded.get(name, 0.0) for name in node.inputs if name]
        if not isinstance(out, Constant) or not out.is_float or out.certain or node.op in MOVERS:
            moved = max(behind, default=0.0) if isinstance(out, Constant) and out.is_float else 0.0
            self.folded.update(dict.fromkeys(node.outputs, 0.0 if isinstance(out, Constant) and out.certain else moved))
            return
        count = inf
        with np.errstate(all="ignore"):
            value = abs(out.double())
            if node.op in ("Mul", "Div", "Neg", "Abs", "Sqrt", "Reciprocal", "Concat", "Relu", "Cast"):
                count = sum(behind) + 2
            elif node.op in ("Add", "Sub"):
                size: FloatArray = abs(given[0].double()) + abs(given[1].double())
                count = 2 + max(behind) * float(np.max(np.where(size > 0, size / value, 1.0), initial=1.0))
            elif node.op == "MatMul" and all(c.value.ndim >= 1 for c in given):
                size, inner = abs(given[0].double()) @ abs(given[1].double()), given[0].shape[-1]
                count = (inner + sum(behind)) * float(np.max(np.where(size > 0, size / value, 1.0), initial=1.0))
            elif node.op in ("ReduceSum", "ReduceMean"):
                sizes = replace(given[0], value=abs(given[0].double()), error=None)
                size = FOLDERS[node.op](node, [sizes, *given[1:]]).double()
                count = (given[0].value.size + 2 + sum(behind)) * float(
                    np.max(np.where(size > 0, size / value, 1.0), initial=1.0)
                )
            if np.any((value > 0) & ((value < 1e-30) | (value > 1e30))):
                count = inf  # it may vanish or overflow on the way
        self.folded[node.outputs[0]] = count if count == count else inf

    def _evaluate(self, node: OnnxNode, inputs: list[Value | None], variable: bool) -> list[Value]:
        if self.integers and any(t.name in node.inputs for t in self.inputs.tensors):
            return [self._real(node, inputs[0])]
        if node.op == "Shape":
            return [self._shape(node, inputs)]
        if node.op in RESIZING and node.attributes.get("mode") == "linear":
            made, exact = resize_linear(self.builder, node, inputs)
            self.folded[node.outputs[0]] = 0.0 if exact else inf
            return [made]
        if node.op in MOVERS:
            return self._move(node, inputs, MOVERS[node.op])
        if not variable:
            if node.op not in FOLDERS:
                raise node.unsupported("on constants")
            constants = cast("list[Constant | None]", inputs)
            self.builder.count(prod(node.sized(folded_shape(node, constants))))
            folded = FOLDERS[node.op](node, constants)
            return [replace(folded, name=node.outputs[0]) if folded.error is not None else folded]
        if node.op == "Cast":
            return [self._cast(node, inputs[0])]
        if any(self.kinds[name] == DOUBLE for name in node.inputs if name):
            self.wide = node
        if node.op not in ALL_HANDLERS:
            raise node.unsupported()
        if node.op in ROUNDING_UNKNOWN:
            self.folded[node.outputs[0]] = inf
        return ALL_HANDLERS[node.op](self.builder, node, inputs)

    def _cast(self, node: OnnxNode, x: Value | None) -> Variable:
        """A Cast of values that depend on the input.

        From double to float32 it rounds, as every operator does in a model that computes in float32 alone, with casts
        at its ends. Where a model computes in double as well, what is rounded off may be all that it computes with.
        """
        assert isinstance(x, Variable)
        source, target = self.kinds[node.inputs[0]], node.attributes["to"]
        if target == BOOL:
            return x if source == BOOL else truth(self.builder, x)
        if target in RANGES and source in ELEMENT_TYPES:
            return truncation(self.builder, x, target)
        if target in RANGES:
            return x  # of what it holds, `largest` has seen to it
        if source == BOOL or source in RANGES:
            if target not in ELEMENT_TYPES:
                raise node.unsupported(f"a cast of values of element type {source} to {target}")
            if self.sizes.get(node.inputs[0], 1) > HELD[target]:
                raise node.unsupported(
                    f"a cast of integers beyond {HELD[target]} to element type {target}, which rounds"
                )
            if self.sizes.get(node.inputs[0], 1) <= HELD[FLOAT]:
                self.narrow.add(x.draft)
            return x
        if source == FLOAT and target in (FLOAT, DOUBLE):
            self.narrow.add(x.draft)
        elif source == DOUBLE and target == FLOAT and x.draft not in self.narrow:
            self.narrowest, self.folded[node.outputs[0]] = ELEMENT_TYPES[FLOAT], inf
        elif not (target == source or (target == FLOAT and x.draft in self.narrow)):
            raise node.unsupported(f"a cast of values of element type {source} to {target}, which rounds")
        return x

    def _real(self, node: OnnxNode, x: Value | None) -> Variable:
        """What reads an input of integers: a cast to float32, which has all that a property may ask about."""
        if node.op != "Cast":
            raise node.unsupported("on inputs of integers before they are cast to float32")
        if node.attributes["to"] != FLOAT:
            raise node.unsupported(f"a cast of inputs of integers to element type {node.attributes['to']}")
        assert isinstance(x, Variable)
        return x

    def _shape(self, node: OnnxNode, inputs: list[Value | None]) -> Constant:
        assert inputs[0] is not None
        part = slice(node.attributes.get("start", 0), node.attributes.get("end"))
        return Constant(np.array(inputs[0].shape[part], dtype=np.int64), node.outputs[0], INT64)

    def _move(self, node: OnnxNode, inputs: list[Value | None], mover: Mover) -> list[Value]:
        x, rest = inputs[0], inputs[1:]
        if any(isinstance(v, Variable) for v in rest):
            raise node.unsupported("a shape or index that depends on the network's input")
        further = [v.stated(node, "a shape or index") if isinstance(v, Constant) else None for v in rest]
        if isinstance(x, Constant):
            parts = mover(x.value, node, further)
            self.builder.count(sum(p.size for p in parts))
            errors: list[FloatArray | None] = [None] * len(parts)
            if x.error is not None:
                errors = list(mover(x.error, node, further))
            return [replace(x, value=p, error=e) for p, e in zip(parts, errors, strict=True)]
        assert isinstance(x, Variable)
        source = x
        count = len(mover(np.arange(source.size).reshape(source.shape), node, further)) if len(node.outputs) > 1 else 1
        used = [i for i in range(count) if i < len(node.outputs)]
        return [self.builder.move(source, lambda a, i=i: mover(a, node, further)[i]) for i in used]  # type: ignore[misc]

    def output(self) -> Variable:
        """The outputs' values, one behind the other; one that depends on no input becomes a map with zero weights."""
        names = [t.name for t in self.graph.outputs]
        values = [self._end(name) for name in names]
        if self.narrowest and self.wide is not None:
            raise self.wide.unsupported("in double, in a model that casts to float32 as well, which rounds")
        builder = self.builder
        if len(names) > 1 and any(isinstance(v, Variable) for v in values):
            builder.current, start = OUTPUTS, len(builder.drafts)
            flat = [
                builder.move(v, np.ravel) if isinstance(v, Variable) else v.map(lambda a: a.ravel()) for v in values
            ]
            out = builder.concat(flat, 0)
            builder.name_parts(start, {})
            return out
        if isinstance(values[0], Variable):
            return values[0]
        last = OnnxNode("output", names[0], (names[0],), (names[0],), {}, 0)
        parts = [v for v in values if isinstance(v, Constant)]
        start, shape = len(builder.drafts), parts[0].shape if len(parts) == 1 else (sum(v.value.size for v in parts),)
        source, size = Variable(0, builder.drafts[0].shape), prod(shape)
        last.sized((size, source.size))
        offset = np.concatenate([v.offset()[0] for v in parts])
        errors = [v.offset()[1] for v in parts]
        error = None
        if any(e is not None for e in errors):
            error = np.concatenate(
                [np.zeros(v.value.size) if e is None else e for v, e in zip(parts, errors, strict=True)]
            )
        op = Dense(np.zeros((size, source.size)), offset)
        op = replace(op, offset_magnitude=magnitude(offset, error, op.fan_in))
        builder.current = names[0] if len(names) == 1 else OUTPUTS
        out = builder.node(op, [source], shape)
        builder.name_parts(start, {out.draft: names[0]} if len(names) == 1 else {})
        return out

    def _end(self, name: str) -> Value:
        """One output's value."""
        last = OnnxNode("output", name, (name,), (name,), {}, 0)
        value = self.value(name, last)
        assert value is not None
        kind = value.kind if isinstance(value, Constant) else self.kinds[name]
        if kind in RANGES:
            size = self._sizes(last, [value])[0]
            if size > HELD[self.element_type]:
                raise UnsupportedError(
                    f"the network's output {shortened(name)} may be an integer beyond {HELD[self.element_type]}"
                )
        elif kind not in ELEMENT_TYPES:
            raise UnsupportedError(
                f"the network's output {shortened(name)} has element type {kind}; labels may stand behind numbers only"
            )
        if not prod(value.shape):
            raise InputError(f"the network's output {shortened(name)} is empty")
        if isinstance(value, Variable) and self.builder.voids(value) is not None:
            raise UnsupportedError(f"the network's output {shortened(name)} holds minus infinity")
        return value


def _cut(a: AnyArray, start: int, end: int, shape: Shape) -> AnyArray:
    return a[start:end].reshape(shape)


def _shift_terms(out: Variable, inputs: list[Value | None]) -> FloatArray:
    """(n,) sizes of the terms `shift - mean scale / sqrt(variance + epsilon)` in the offset of a BatchNormalization."""
    scale, shift, mean, variance = (abs(x.double()) for x in inputs[1:5] if isinstance(x, Constant))
    with np.errstate(all="ignore"):
        terms = shift + mean * scale / np.sqrt(variance)  # without epsilon: more
    terms = np.where(np.isfinite(terms), terms, np.inf)
    return np.broadcast_to(terms.reshape((-1,) + (1,) * (len(out.shape) - 2)), out.shape).ravel()


def _line(error: BaseException) -> str:
    """The error's text on one line, not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
