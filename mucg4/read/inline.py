"""A model's graph without calls: bodies of functions in place of the nodes that call them, branches of a decided `If`.

Names within get a prefix, `caller::name`, so that they stay apart. Works on protobuf messages, one node at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace
from typing import Any

from mucg4.errors import InputError, UnsupportedError
from mucg4.read.protobuf import (
    OnnxGraph,
    OnnxNode,
    declares_numbers,
    decode_attribute,
    decode_value,
    parse_model,
    shortened,
    text_of,
)
from mucg4.records import dataclass

MOST_NODES = 50_000  # in functions that are called; not measured
STATES = frozenset(("RNN", "GRU", "LSTM"))  # whose last states alone may be of interest
DEEPEST = 32  # calls within calls; not measured

Functions = Mapping[tuple[str, str, str], Any]


@dataclass(frozen=True, eq=False)
class Scope:
    """Where nodes stand: what their names are called outside, what a function's attributes are, and the operator sets.

    `taken` holds every name given so far.
    """

    functions: Functions
    opsets: Mapping[str, int]
    taken: set[str]
    names: dict[str, str]
    prefix: str = ""
    bound: Mapping[str, Any] | None = None  # attributes of the function's call; None outside functions
    depth: int = 0
    made: list[int] = field(default_factory=lambda: [0])  # how many nodes, of all calls

    def name(self, name: str) -> str:
        return self.names.get(name, name)

    def define(self, name: str) -> str:
        """A name for a tensor that a node makes here."""
        if not name or not self.prefix:
            return name
        if name not in self.names:
            full = self.prefix + name
            while full in self.taken:
                full += "'"
            self.taken.add(full)
            self.names[name] = full
        return self.names[name]


@dataclass(frozen=True, eq=False)
class Subgraph:
    """A graph in an attribute, decoded when it is known to be needed."""

    graph: Any
    scope: Scope

    @property
    def captured(self) -> tuple[str, ...]:
        """Names of tensors outside that the graph may read."""
        return tuple(dict.fromkeys(self.scope.name(name) for name in _free(self.graph)))

    def placed(self, node: OnnxNode) -> tuple[list[OnnxNode], dict[str, Any]]:
        """The nodes, the last ones giving the results the names of the outputs of `node`; and the initialisers."""
        scope = replace(self.scope, prefix=f"{node.outputs[0]}::", names=dict(self.scope.names))
        if len(self.graph.output) != len(node.outputs) or len(self.graph.input):
            raise node.invalid("its branches have inputs, or other outputs than it")
        constants = {scope.define(text_of(t.name)): t for t in self.graph.initializer}
        constants.update({scope.define(text_of(t.values.name)): t for t in self.graph.sparse_initializer})
        nodes = list(expanded(self.graph.node, scope))
        for value, name in zip(self.graph.output, node.outputs, strict=True):
            if name:
                source = (scope.name(text_of(value.name)),)
                nodes.append(OnnxNode("Identity", f"{node.name}::{name}", source, (name,), {}, node.opset))
        return nodes, constants


def _free(graph: Any) -> list[str]:
    """Names that a graph and those within read and do not make, in order."""
    own = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    own |= {t.name for t in graph.input}
    out: list[str] = []
    for node in graph.node:
        read = list(node.input)
        for attribute in node.attribute:
            read += _free(attribute.g) if attribute.HasField("g") else []
        out += [name for name in read if name and name not in own]
        own.update(node.output)
    return out + [t.name for t in graph.output if t.name not in own]


def expanded(nodes: Iterable[Any], scope: Scope) -> Iterator[OnnxNode]:
    """The nodes in order, calls replaced. Raises `InputError` and `UnsupportedError`."""
    for node in nodes:
        key = (_domain(text_of(node.domain)), text_of(node.op_type), text_of(getattr(node, "overload", "")))
        function = scope.functions.get(key)
        if function is not None:
            yield from _body(node, function, scope)
            continue
        if scope.depth:
            scope.made[0] += 1
            if scope.made[0] > MOST_NODES:
                raise UnsupportedError(f"the network has more than {MOST_NODES} nodes in functions that are called")
        yield _plain(node, scope)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _plain(node: Any, scope: Scope) -> OnnxNode:
    domain, op = _domain(text_of(node.domain)), text_of(node.op_type)
    inputs = tuple(scope.name(text_of(name)) for name in node.input)
    outputs = tuple(scope.define(text_of(name)) for name in node.output)
    out = OnnxNode(
        f"{domain}::{op}" if domain else op,
        scope.prefix + text_of(node.name) if node.name else "",
        inputs,
        outputs,
        {},
        scope.opsets.get(domain, 0),
    )
    if not outputs:
        raise InputError(f"operator {out.op} (node {node.name!r}) has no output")
    captured: list[str] = []
    for attribute in node.attribute:
        name = text_of(attribute.name)
        if name in out.attributes:
            raise out.invalid(f"attribute {shortened(name)} is given twice")
        if attribute.ref_attr_name:
            if scope.bound is None:
                raise out.unsupported(f"attribute {shortened(name)} that refers to a function's")
            attribute = scope.bound.get(text_of(attribute.ref_attr_name))
            if attribute is None:
                continue  # not given to the function either
        if attribute.type == 5:
            inner = Subgraph(attribute.g, scope)
            captured += inner.captured
            out.attributes[name] = inner
        else:
            out.attributes[name] = decode_attribute(attribute)
        out.attribute_kinds[name] = attribute.type
    return replace(out, captured=tuple(dict.fromkeys(captured))) if captured else out


def _body(call: Any, function: Any, scope: Scope) -> Iterator[OnnxNode]:
    """A function's nodes with the names of its call."""
    called = OnnxNode(text_of(call.op_type), text_of(call.name), tuple(call.input), tuple(call.output) or ("",), {}, 0)
    if scope.depth == DEEPEST:
        raise called.unsupported(f"functions that call each other more than {DEEPEST} deep")
    if not called.outputs[0]:
        raise called.invalid("its first output has no name")
    if len(call.input) > len(function.input) or len(call.output) > len(function.output):
        raise called.invalid("it has more inputs or outputs than its function")
    bound = {text_of(a.name): a for a in function.attribute_proto}
    for attribute in call.attribute:
        given = attribute
        if attribute.ref_attr_name:
            given = (scope.bound or {}).get(text_of(attribute.ref_attr_name))
        if given is not None:
            bound[text_of(attribute.name)] = given
    names = {text_of(f): scope.name(text_of(a)) for f, a in zip(function.input, call.input, strict=False)}
    names.update({text_of(f): "" for f in function.input[len(call.input) :]})
    passed = set(function.input) & set(function.output)
    made = {name for node in function.node for name in node.output}
    outer = scope.define(text_of(call.output[0]))
    for formal, actual in zip(function.output, call.output, strict=False):
        if formal in made and formal not in passed and actual and formal not in names:
            names[text_of(formal)] = scope.define(text_of(actual))
    opsets = {_domain(text_of(o.domain)): o.version for o in function.opset_import}
    inner = Scope(scope.functions, opsets, scope.taken, names, f"{outer}::", bound, scope.depth + 1, scope.made)
    yield from expanded(function.node, inner)
    for formal, actual in zip(function.output, call.output, strict=False):
        target = scope.define(text_of(actual))
        source = inner.name(text_of(formal))
        if target and source != target:
            yield OnnxNode("Identity", "", (source,), (target,), {}, opsets.get("", 0) or scope.opsets.get("", 0))


def decode_model(data: bytes) -> OnnxGraph:
    """The main graph of ONNX bytes. Raises `InputError` when they are no complete model or their names contradict each
    other, `UnsupportedError` for what is not read at all.

    Outputs behind the last one of floating-point numbers (labels, tables) are left out: no property speaks of them, and
    Y_0, Y_1, ... are the same without them.
    """
    model = parse_model(data)
    graph = model.graph
    opsets = {_domain(o.domain): o.version for o in model.opset_import}
    if len({o.version for o in model.opset_import if _domain(o.domain) == ""}) > 1:
        raise InputError("the operator set is imported in two versions")
    functions: dict[tuple[str, str, str], Any] = {}
    for f in model.functions:
        key = (_domain(text_of(f.domain)), text_of(f.name), text_of(getattr(f, "overload", "")))
        if key in functions:
            raise InputError(f"two functions are called {shortened(key[1])}")
        if not key[0]:
            raise UnsupportedError(f"a function of the model that redefines the operator {shortened(key[1])}")
        functions[key] = f
    constants = {text_of(t.name): t for t in graph.initializer}
    constants.update({text_of(t.values.name): t for t in graph.sparse_initializer})
    if len(constants) < len(graph.initializer) + len(graph.sparse_initializer):
        raise InputError("two initialisers have one name")
    taken = {*constants, *(t.name for t in graph.input), *(name for n in graph.node for name in n.output)}
    scope = Scope(functions, opsets, taken, {})
    out = OnnxGraph(
        tuple(expanded(graph.node, scope)),
        constants,
        tuple(decode_value(v) for v in graph.input if v.name not in constants),
        tuple(decode_value(v) for v in graph.output[: _last_of_numbers(graph.output)]),
    )
    _check_names(out)
    return out


def _last_of_numbers(outputs: Any) -> int:
    """How many outputs there are up to the last one of floating-point numbers; all where there is none."""
    count = len(outputs)
    while count and not declares_numbers(outputs[count - 1]):
        count -= 1
    return count or len(outputs)


def _check_names(graph: OnnxGraph) -> None:
    """Every tensor is made once, and before it is read. Raises `InputError`.

    onnxruntime checks most of this, but has been seen to crash on what it does not check.
    """
    known = set(graph.constants)
    for tensor in graph.inputs:
        if not tensor.name or tensor.name in known:
            raise InputError(f"the network's input {shortened(tensor.name)} has no name of its own")
        known.add(tensor.name)
    for node in graph.nodes:
        if not node.outputs[0] and not (node.op in STATES and node.result):
            raise node.invalid("its first output has no name")
        missing = next((i for i in (*node.inputs, *node.captured) if i and i not in known), None)
        if missing is not None:
            raise node.invalid(f"its input {shortened(missing)} is not defined before it")
        for name in node.outputs:
            if name and name in known:
                raise node.invalid(f"its output {shortened(name)} exists already")
            known.add(name)
        known.discard("")
    for tensor in graph.outputs:
        if tensor.name not in known:
            raise InputError(f"the network's output {shortened(tensor.name)} is not defined: no node computes it")
    if len({tensor.name for tensor in graph.outputs}) < len(graph.outputs):
        raise InputError("two outputs of the network have one name")
