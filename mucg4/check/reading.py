"""The checker's own reading of a model: ONNX bytes evaluated node by node, without `mucg4.read`.

`mucg4.check.wire` decodes the file; `moves`, `literals`, `meaning`, `sums` and `slide` say what operators mean;
`values` computes. Here nodes are walked in file order. What is not known is not guessed: a node without a meaning
makes its outputs unknown, and all that reads them, and is named in `fallback`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from mucg4.check.literals import LITERALS, stored
from mucg4.check.meaning import MEANINGS
from mucg4.check.moves import LARGEST, MOVES, Meaning
from mucg4.check.slide import SLIDES
from mucg4.check.sums import SUMS
from mucg4.check.values import Arithmetic, Fallback, Value
from mucg4.check.wire import DOUBLE, FLOAT, FLOAT16, Declared, Graph, Node, decode, tensor
from mucg4.errors import InputError
from mucg4.ops.base import Array

TABLE: dict[str, tuple[Meaning, str]] = {**MOVES, **LITERALS, **MEANINGS, **SUMS, **SLIDES}
ELEMENT_TYPES = {FLOAT: "float32", DOUBLE: "float64", FLOAT16: "float16"}
MOST_MADE = 2**27  # numbers of all values together
MOST_LINES = 20
Seen = Callable[[str, Value], Value]


class Reading:
    """One model, ready to be evaluated. Raises `InputError` when the bytes are no model of one input and one output.

    `n` is the arithmetic and `opset` the version of the operator set, for the operators' meanings. Work is counted in
    operations of one number; evaluation stops, and says so in `fallback`, before it exceeds `work`.
    """

    def __init__(self, data: bytes, work: int, exact: bool = False) -> None:
        self.graph = decode(data)
        self.opset, self.left, self.made, self.spent_out = self.graph.opset, work, 0, False
        self.n = Arithmetic(exact, self._spend)
        self.nodes = self._needed(self.graph)
        self.input = self._only_input(self.graph)
        self.shape = self._input_shape(self.input)
        self.output = self.graph.outputs[0].name
        self.fallback: list[str] = []
        self._stored: dict[str, Value] = {}

    @property
    def names(self) -> set[str]:
        """All tensors that are computed, and the input."""
        return {self.input.name, *(name for node in self.nodes for name in node.outputs if name)}

    def _spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            self.spent_out = True
            raise Fallback("more work than is allowed")

    @staticmethod
    def _needed(graph: Graph) -> list[Node]:
        if len(graph.outputs) != 1:
            raise InputError(f"{len(graph.outputs)} outputs are not read a second time")
        wanted, out = {graph.outputs[0].name}, []
        for node in reversed(graph.nodes):
            if any(name in wanted for name in node.outputs if name):
                wanted.update(node.inputs)
                out.append(node)
        return out[::-1]

    def _only_input(self, graph: Graph) -> Declared:
        read = {name for node in self.nodes for name in node.inputs} | {graph.outputs[0].name}
        used = [d for d in graph.inputs if d.name in read]
        used = used or list(graph.inputs[:1])
        if len(used) != 1 or used[0].kind not in ELEMENT_TYPES:
            raise InputError("other than one input of floating-point numbers is not read a second time")
        return used[0]

    @staticmethod
    def _input_shape(declared: Declared) -> tuple[int, ...]:
        """The first dimension counts 1 where it is not fixed (the batch), and so does its name anywhere."""
        if declared.dims is None:
            raise InputError(f"input {declared.name!r} declares no shape")
        batch = declared.dims[0] if declared.dims else None
        shape = [
            d if isinstance(d, int) else 1 if i == 0 or (d is not None and d == batch) else 0
            for i, d in enumerate(declared.dims)
        ]
        if not all(shape) or prod(shape) > LARGEST:
            raise InputError(f"input {declared.name!r} has the shape {list(declared.dims)}")
        return tuple(shape)

    def run(self, x: Array, seen: Seen) -> Value | None:
        """The output at points `x (points, input size)`, None when it is unknown.

        `seen(name, value)` is called with the input and with each computed tensor that depends on it, and returns the
        value that readers of the tensor get.
        """
        if x.shape[1:] != (prod(self.shape),):
            raise InputError(f"the input has the shape {list(self.shape)}, which {x.shape[1]} numbers do not fill")
        start = Value(x.reshape(len(x), *self.shape), self.input.kind, True)
        values: dict[str, Value | None] = {self.input.name: seen(self.input.name, start)}
        for node in self.nodes:
            made = self._outputs(node, values)
            for i, name in enumerate(node.outputs):
                if name:
                    value = made[i] if made is not None and i < len(made) else None
                    values[name] = seen(name, value) if value is not None and value.rows else value
        return self._value(self.output, values)

    def _value(self, name: str, values: dict[str, Value | None]) -> Value | None:
        if name in values:
            return values[name]
        if name not in self._stored:
            if name not in self.graph.stored:
                raise InputError(f"tensor {name!r} is read before it is made")
            self._stored[name] = stored(tensor(self.graph.stored[name]))
        return self._stored[name]

    def _outputs(self, node: Node, values: dict[str, Value | None]) -> list[Value] | None:
        """What a node computes; None, and a line in `fallback`, where that is not known."""
        if self.spent_out:
            return None
        xs = [self._value(name, values) if name else None for name in node.inputs]
        if any(x is None and name for x, name in zip(xs, node.inputs, strict=True)):
            return None  # an input is unknown, for which there is a line
        try:
            made = self._evaluate(node, xs)
            for value in made:
                self.n.room(value.v.size)
                self.made += value.v.size
                self._spend(value.v.size)
            if self.made > MOST_MADE:
                self.spent_out = True
                raise Fallback("more numbers than are allowed")
            return made
        except Fallback as why:
            self._note(f"{node.label}: {why}" if str(why) else node.label)
        except (
            ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError, AttributeError, MemoryError
        ) as error:  # fmt: skip
            self._note(f"{node.label}: its inputs or attributes do not fit together ({' '.join(str(error).split())})")
        return None

    def _note(self, line: str) -> None:
        if len(self.fallback) == MOST_LINES:
            line = "and more"
        if len(self.fallback) <= MOST_LINES:
            self.fallback.append(line)

    def _evaluate(self, node: Node, xs: list[Value | None]) -> list[Value]:
        if node.op not in TABLE:
            raise Fallback("")
        meaning, known = TABLE[node.op]
        for key in node.attributes:
            if key not in known.split():
                raise Fallback(f"attribute {key!r}")
        with np.errstate(all="ignore"):
            return meaning(self, node, xs)
