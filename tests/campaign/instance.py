"""One instance of the campaign: a small ONNX graph as data, and a property whose numbers are decimals as written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Node:
    """`outputs = op(inputs)`; an empty input name is an absent optional input."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, eq=False)
class Graph:
    """A network of one input `x` of the given shape and one output, the last node's. `dtype`: float32 or float64."""

    nodes: tuple[Node, ...]
    tensors: dict[str, np.ndarray]
    shape: tuple[int, ...]
    dtype: str = "float32"
    opset: int = 13

    @property
    def inputs(self) -> int:
        return int(np.prod(self.shape))

    @property
    def output(self) -> str:
        return self.nodes[-1].outputs[0]

    def onnx(self) -> bytes:
        """Serialised model, its output's shape left open."""
        from onnx import TensorProto, helper, numpy_helper

        kind = TensorProto.FLOAT if self.dtype == "float32" else TensorProto.DOUBLE
        made = [helper.make_node(n.op, list(n.inputs), list(n.outputs), **dict(n.attributes)) for n in self.nodes]
        used = {name for n in self.nodes for name in n.inputs}
        constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in self.tensors.items() if k in used]
        first = helper.make_tensor_value_info("x", kind, list(self.shape))
        last = helper.make_tensor_value_info(self.output, kind, None)
        graph = helper.make_graph(made, "g", [first], [last], constants)
        opset = [helper.make_opsetid("", self.opset)]
        return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


@dataclass(frozen=True)
class Row:
    """`sum xs X + sum ys Y <= bound` (`<` when strict), coefficients and bound as the decimals that are written.

    `flip` writes it the other way round: all signs changed, `>=`.
    """

    xs: tuple[tuple[int, str], ...]
    ys: tuple[tuple[int, str], ...]
    bound: str
    strict: bool = False
    flip: bool = False

    def exact(self) -> tuple[dict[int, Fraction], dict[int, Fraction], Fraction]:
        """Coefficients and bound as exact numbers."""
        xs, ys = ({i: Fraction(c) for i, c in terms} for terms in (self.xs, self.ys))
        return xs, ys, Fraction(self.bound)

    def text(self) -> str:
        sign = negative if self.flip else str
        terms = [term(f"{n}_{i}", sign(c)) for n, cs in (("X", self.xs), ("Y", self.ys)) for i, c in cs]
        left = terms[0] if len(terms) == 1 else "(+ " + " ".join(terms) + ")"
        return f"({'>' if self.flip else '<'}{'' if self.strict else '='} {left} {sign(self.bound)})"

    def scaled(self, factor: str) -> Row:
        """The same constraint times a positive number."""
        xs, ys = (tuple((i, decimal(Fraction(c) * Fraction(factor))) for i, c in t) for t in (self.xs, self.ys))
        return replace(self, xs=xs, ys=ys, bound=decimal(Fraction(self.bound) * Fraction(factor)))


def term(name: str, factor: str) -> str:
    return name if Fraction(factor) == 1 else f"(* {factor} {name})"


def negative(text: str) -> str:
    return text[1:] if text.startswith("-") else "-" + text


def decimal(value: Fraction, digits: int | None = None) -> str:
    """A decimal without exponent: exact where there is a finite one, else (or with `digits`) rounded to digits."""
    two, five, rest = 0, 0, value.denominator
    while rest % 2 == 0:
        rest, two = rest // 2, two + 1
    while rest % 5 == 0:
        rest, five = rest // 5, five + 1
    places = max(two, five)
    if digits is not None or rest != 1 or places > 300:
        size = abs(value)
        power = len(str(int(size))) if size >= 1 else -len(str(int(1 / size))) + 1 if size else 0
        places = max(0, (digits or 25) - power)
    scaled = value * 10**places
    number = int(scaled) if scaled.denominator == 1 else round(scaled)
    text = str(abs(number)).rjust(places + 1, "0")
    whole, part = (text[:-places], text[-places:].rstrip("0")) if places else (text, "")
    return ("-" if number < 0 else "") + whole + ("." + part if part else ".0")


@dataclass(frozen=True, eq=False)
class Instance:
    """A graph with a box and the unsafe conjunctions; `always` are constraints that stand before the disjunction.

    `truth` is the exact answer over the box that includes the rounding of its ends to the input type, or None where
    it is not known; `distance` how far the threshold is from the extremum, relative, as stated by the generator.
    """

    family: str
    seed: int
    graph: Graph
    box: tuple[tuple[str, str], ...]
    unsafe: tuple[tuple[Row, ...], ...]
    always: tuple[Row, ...] = ()
    truth: str | None = None
    distance: float = 0.0
    outputs: int = 1
    notes: dict[str, Any] = field(default_factory=dict)

    def onnx(self) -> bytes:
        return self.graph.onnx()

    def vnnlib(self) -> str:
        lines = [f"(declare-const X_{i} Real)" for i in range(len(self.box))]
        lines += [f"(declare-const Y_{i} Real)" for i in range(self.outputs)]
        for i, (a, b) in enumerate(self.box):
            lines += [f"(assert (>= X_{i} {a}))", f"(assert (<= X_{i} {b}))"]
        lines += [f"(assert {r.text()})" for r in self.always]
        if len(self.unsafe) == 1:
            lines += [f"(assert {r.text()})" for r in self.unsafe[0]]
        elif self.unsafe:
            parts = [("(and " + " ".join(r.text() for r in c) + ")") for c in self.unsafe]
            lines.append("(assert (or " + " ".join(parts) + "))")
        return "\n".join(lines) + "\n"

    def conjunctions(self) -> Iterator[tuple[Row, ...]]:
        """All rows of each disjunct, those before the disjunction included."""
        for c in self.unsafe:
            yield (*self.always, *c)


def rounded(text: str, dtype: str) -> Fraction:
    """A stated number as the scorer compares with it: the nearest double, then the input's type."""
    return Fraction(float(np.dtype(dtype).type(float(Fraction(text)))))


def hull(instance: Instance) -> list[tuple[Fraction, Fraction]]:
    """Each input's interval from the stated end or its rounding to the input's type, whichever is further out."""
    out = []
    for a, b in instance.box:
        low, high = Fraction(a), Fraction(b)
        out.append((min(low, rounded(a, instance.graph.dtype)), max(high, rounded(b, instance.graph.dtype))))
    return out
