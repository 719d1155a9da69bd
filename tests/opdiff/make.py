"""What the generators share: a source of chance and a model that grows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from mucg4.read.protobuf import BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16, INT32, INT64
from mucg4.read.table import Row

NUMPY = {1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8", 12: "u4", 13: "u8"}
FLOATING = (FLOAT, DOUBLE, FLOAT16, BFLOAT16)
UNSIGNED = (2, 4, 12, 13)
WHOLE = (3, 5, INT32, INT64, *UNSIGNED)


@dataclass(frozen=True)
class Case:
    """One model: ONNX bytes, the input's shape and element type, and how its points are drawn."""

    data: bytes
    shape: tuple[int, ...]
    kind: int
    scale: float
    positive: bool
    text: str


@dataclass
class Maker:
    """Grows one model for one row of the reader's table. `variable`: the operator reads the network's input."""

    chance: random.Random
    row: Row | None
    variable: bool
    kind: int
    opset: int
    nodes: list[Any] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)
    scale: float = 1.0
    positive: bool = False
    computed: bool = False  # the output is of integers that depend on the input, though the operand is not

    def pick(self, *values: Any) -> Any:
        return self.chance.choice(values)

    def whole(self, low: int, high: int) -> int:
        return self.chance.randint(low, high)

    def likely(self, share: float) -> bool:
        return self.chance.random() < share

    def shape(self, least: int = 1, most: int = 4, longest: int = 4, batch: bool = True) -> list[int]:
        rank = self.whole(least, most)
        return [1 if batch and i == 0 and rank > 1 else self.whole(1, longest) for i in range(rank)]

    def draw(self, shape: Sequence[int], kind: int | None = None, low: float = -3.0, high: float = 3.0) -> np.ndarray:
        """An array of an element type; bfloat16 and 4 bits come as the wider type that holds them."""
        kind = self.kind if kind is None else kind
        rng = np.random.default_rng(self.chance.getrandbits(32))
        if kind == BOOL:
            return rng.random(shape) < 0.5
        if kind in FLOATING:
            values = np.asarray(rng.uniform(low, high, shape))
            values = np.where(rng.random(shape) < 0.2, np.round(values), values)
            if kind == BFLOAT16:
                return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).astype(np.uint32).view(np.float32)
            return values.astype(NUMPY[kind])
        if kind in (21, 22):
            return rng.integers(0, 16, shape) - (8 if kind == 22 else 0)
        bounds = np.iinfo(NUMPY[kind])
        if self.likely(0.9 if self.variable else 0.6):
            return rng.integers(max(-9, bounds.min), 10, shape).astype(NUMPY[kind])
        return rng.integers(bounds.min, bounds.max, shape, dtype=NUMPY[kind], endpoint=True)

    def tensor(self, name: str, values: Any, kind: int | None = None) -> str:
        """Store an initialiser, in raw or in typed form."""
        self.tensors.append(self.proto(name, values, kind))
        return name

    def proto(self, name: str, values: Any, kind: int | None = None) -> Any:
        values = np.asarray(values)
        if kind in (BFLOAT16, 21, 22):
            return helper.make_tensor(name, kind, values.shape, values.ravel())
        if self.likely(0.2) and values.dtype.kind != "b":
            kind = helper.np_dtype_to_tensor_dtype(values.dtype)
            return helper.make_tensor(name, kind, values.shape, values.ravel())
        return numpy_helper.from_array(values, name)

    def ints(self, name: str, values: Any) -> str:
        return self.tensor(name, np.array(values, dtype=np.int64))

    def node(self, op: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: Any) -> str:
        """Append a node; trailing absent inputs are dropped. Returns its first output."""
        names = list(inputs)
        while names and not names[-1]:
            names.pop()
        outputs = [output] if isinstance(output, str) else list(output)
        domain, _, op = op.rpartition("::")
        self.nodes.append(helper.make_node(op, names, outputs, name=f"n{len(self.nodes)}", domain=domain, **attributes))
        return outputs[0]

    def has(self, attribute: str) -> bool:
        """True when the row knows the attribute."""
        return self.row is not None and attribute in self.row.attributes

    def some(self, share: float = 0.5, **values: Any) -> dict[str, Any]:
        """Those attributes that the row knows, each with this probability."""
        return {key: value for key, value in values.items() if self.has(key) and self.likely(share)}

    def operand(self, shape: Sequence[int], name: str = "x", **how: Any) -> str:
        """The operator's first input: the network's input, or a constant where constants are asked for."""
        return self.given(name) if self.variable else self.tensor(name + "c", self.draw(shape, **how), self.kind)

    def given(self, name: str = "x") -> str:
        """The network's input in the element type that is asked for."""
        if self.kind == BOOL:
            return self.truth(name)
        if self.kind in WHOLE:
            source = self.node("Abs", [name], f"size{len(self.nodes)}") if self.kind in UNSIGNED else name
            return self.node("Cast", [source], f"whole{len(self.nodes)}", to=self.kind)
        return name

    def truth(self, name: str = "x", over: float = 0.5) -> str:
        """Where the network's input exceeds a number."""
        limit = self.tensor(f"limit{len(self.tensors)}", np.float32(over))
        return self.node("Greater", [name, limit], f"truth{len(self.nodes)}")

    def last_digits(self, whole: str, kind: int) -> str:
        """The remainder of integers by a round number: a float would not show a difference in the last digit."""
        by = self.tensor("round", np.array(10**6, dtype=NUMPY[kind]))
        rest = self.node("Mul", [self.node("Div", [whole, by], "quotient"), by], "rounded")
        return self.node("Sub", [whole, rest], "digits")

    def case(self, output: str, shape: Sequence[int], kind: int | None = None, source: int | None = None) -> Case:
        """The finished model; `kind` and `source`: the element types of output and input where not the operand's."""
        kind = self.kind if kind is None else kind
        whole = self.variable and self.kind in WHOLE
        if kind in (INT32, INT64) and self.opset >= 7 and not whole and not self.computed and self.likely(0.7):
            output = self.last_digits(output, kind)
        if kind not in (FLOAT, DOUBLE):
            output = self.node("Cast", [output], "cast", to=FLOAT if kind in (FLOAT16, BFLOAT16, BOOL) else DOUBLE)
            kind = FLOAT if kind in (FLOAT16, BFLOAT16, BOOL) else DOUBLE
        source = source or (self.kind if self.variable and self.kind in (FLOAT, DOUBLE) else FLOAT)
        shape = list(shape) if self.variable else [1, 2]
        if not self.variable and self.likely(0.3) and kind == FLOAT:
            self.node("ReduceSum", ["x"], "sum")
            output = self.node("Add", ["sum", output], "with")
        if self.likely(0.3):
            output = self.node("Identity", [output], "y")
        dims: list[Any] = list(shape)
        if self.variable and dims and dims[0] == 1 and self.likely(0.2):
            dims[0] = "batch"
        x = helper.make_tensor_value_info("x", source, dims)
        y = helper.make_tensor_value_info(output, kind, None)
        graph = helper.make_graph(self.nodes, "g", [x], [y], self.tensors)
        sets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        sets.append(helper.make_opsetid("ai.onnx.ml", 1))
        data = helper.make_model(graph, opset_imports=sets, ir_version=10).SerializeToString()
        where = f"{self.row} opset {self.opset} kind {self.kind} {'variable' if self.variable else 'constant'}"
        text = f"{where} input {shape}: " + "; ".join(_text(n) for n in self.nodes)
        return Case(data, tuple(shape), source, self.scale, self.positive, text)


def _text(node: Any) -> str:
    attributes = (f"{a.name}={helper.get_attribute_value(a)}"[:60] for a in node.attribute)
    return f"{node.op_type}({', '.join(node.input)}) {' '.join(attributes)}".strip()
