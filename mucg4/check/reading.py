"""The checker's own reading of a model: ONNX bytes evaluated node by node, without `mucg4.read`.

`mucg4.check.wire` decodes the file; `moves`, `literals`, `meaning`, `sums`, `slide`, `composed`, `fused` and
`recurrent` say what operators mean; `values` computes. Here nodes are walked in file order. What is not known is not
guessed: a node without a meaning makes its outputs unknown, and all that reads them, and is named in `fallback`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from mucg4.check.composed import COMPOSED
from mucg4.check.fused import FUSED
from mucg4.check.literals import LITERALS, in_range, stored
from mucg4.check.meaning import MEANINGS
from mucg4.check.moves import LARGEST, MOVES, Meaning
from mucg4.check.recurrent import RECURRENT
from mucg4.check.slide import SLIDES
from mucg4.check.sums import SUMS
from mucg4.check.values import Arithmetic, Fallback, Value
from mucg4.check.wire import BOOL, DOUBLE, FLOAT, FLOAT16, INT32, INT64, Declared, Graph, Inner, Node, decode, tensor
from mucg4.errors import InputError
from mucg4.ops.arrays import AnyArray

TABLE: dict[str, tuple[Meaning, str]] = {
    **MOVES,
    **LITERALS,
    **MEANINGS,
    **SUMS,
    **SLIDES,
    **COMPOSED,
    **FUSED,
    **RECURRENT,
}
# operators whose meaning on integers that depend on the input is that of real numbers, or movement
WHOLE = frozenset(
    "Add Sub Mul Neg Abs Sign Max Min ReduceSum ReduceMax ReduceMin Equal Less Greater LessOrEqual GreaterOrEqual "
    "Where Cast Identity Reshape Flatten Squeeze Unsqueeze Transpose Slice Gather Split Expand Tile Concat "
    "Shape".split()
)
ELEMENT_TYPES = {FLOAT: "float32", DOUBLE: "float64", FLOAT16: "float16", INT32: "float32", INT64: "float32"}
WHOLE_TYPES = {INT32: "int32", INT64: "int64"}  # of inputs; the first thing that is done is to make them float32
MOST_MADE = 2**27  # numbers of all values together; not measured
MOST_LINES = 20  # of `fallback`, the last one says that there are more; not measured
ALL = ""  # the name of several inputs together, which no tensor has
Seen = Callable[[str, Value], Value]


class Reading:
    """One model, ready to be evaluated. Raises `InputError` when the bytes are no model that is read here.

    `inputs` are names and shapes of the inputs that a point holds, one behind the other (empty: the only one that is
    read, a dynamic first dimension counting 1); they have to be all that is read, in the file's order, and fit what the
    file declares. Several outputs are put one behind the other.

    `n` is the arithmetic and `opset` the version of the operator set, for the operators' meanings. Work is counted in
    operations of one number; evaluation stops, and says so in `fallback`, before it exceeds `work`.
    """

    def __init__(
        self, data: bytes, work: int, exact: bool = False, inputs: Sequence[tuple[str, tuple[int, ...]]] = ()
    ) -> None:
        self.graph = decode(data)
        self.opset, self.left, self.made, self.spent_out = self.graph.opset, work, 0, False
        self.n = Arithmetic(exact, self._spend)
        self.nodes = self._needed(self.graph)
        self.inputs = self._stated(inputs) if inputs else [self._only_input(self.graph)]
        self.input = self.inputs[0]
        self.shapes = [shape for _, shape in inputs] or [self._input_shape(self.input)]
        self.outputs = [d.name for d in self.graph.outputs]
        self.fallback: list[str] = []
        self._stored: dict[str, Value] = {}
        self.computes_double = self._double()

    @property
    def names(self) -> set[str]:
        """All tensors that are computed, and the inputs; `ALL` stands for several of these."""
        several = {ALL} if len(self.inputs) > 1 else set()
        return {
            *several,
            *(d.name for d in self.inputs),
            *(name for node in self.nodes for name in node.outputs if name),
        }

    def _spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            self.spent_out = True
            raise Fallback("more work than is allowed")

    @staticmethod
    def _needed(graph: Graph) -> list[Node]:
        wanted, out = {d.name for d in graph.outputs}, []
        for node in reversed(graph.nodes):
            if any(name in wanted for name in node.outputs if name):
                wanted |= node.reads
                out.append(node)
        return out[::-1]

    def _double(self) -> bool:
        """Whether an operator other than casts and movement takes numbers in double that depend on the input.

        Where none does, casts from double to float32 stand around a model in float32, and are its rounding.
        """
        double = {d.name for d in self.inputs if d.kind == DOUBLE}
        known = {d.name for d in self.inputs}
        for node in self.nodes:
            reads = node.reads & known
            known.update(node.outputs if reads else ())
            if node.op == "Cast" and reads and node.attributes.get("to") == DOUBLE:
                double.update(node.outputs)
            elif node.op not in ("Cast", "Shape") and reads & double:
                if node.op not in MOVES:
                    return True
                double.update(node.outputs)
        return False

    def _read_names(self) -> set[str]:
        return {d.name for d in self.graph.outputs}.union(*(node.reads for node in self.nodes))

    def _stated(self, inputs: Sequence[tuple[str, tuple[int, ...]]]) -> list[Declared]:
        """The declared inputs of these names, which have to fit what is stated about them."""
        known, names, read = {d.name: d for d in self.graph.inputs}, [n for n, _ in inputs], self._read_names()
        if [d.name for d in self.graph.inputs if d.name in names] != names:
            raise InputError("the inputs are not those of the file, or in another order")
        if any(d.name in read and d.name not in names for d in self.graph.inputs):
            raise InputError("an input that is read is left out")
        for name, shape in inputs:
            dims = known[name].dims
            fits = dims is None or (
                len(dims) == len(shape)
                and all(not isinstance(d, int) or d == n for d, n in zip(dims, shape, strict=True))
            )
            if not fits or min(shape, default=1) < 1 or prod(shape) > LARGEST:
                raise InputError(f"input {name!r} has the shape {list(dims or ())}, not {list(shape)}")
            if known[name].kind not in ELEMENT_TYPES or known[name].kind != known[names[0]].kind:
                raise InputError("inputs of other or of different element types are not read a second time")
        return [known[name] for name in names]

    def _only_input(self, graph: Graph) -> Declared:
        read = self._read_names()
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

    def run(self, x: AnyArray, seen: Seen) -> Value | None:
        """The output at points `x (points, input size)`, None when it is unknown.

        `seen(name, value)` is called with the input and with each computed tensor that depends on it, and returns the
        value that readers of the tensor get.
        """
        sizes = [prod(shape) for shape in self.shapes]
        if x.shape[1:] != (sum(sizes),):
            raise InputError(f"the inputs have the shapes {self.shapes}, which {x.shape[1]} numbers do not fill")
        values: dict[str, Value | None] = {}
        if len(sizes) > 1:
            x = seen(ALL, Value(x, self.input.kind, True)).v
        at = 0
        for declared, shape, size in zip(self.inputs, self.shapes, sizes, strict=True):
            part = Value(x[:, at : at + size].reshape(len(x), *shape), declared.kind, True)
            values[declared.name], at = seen(declared.name, part), at + size
        self._walk(self.nodes, values, seen)
        return self._result(values, len(x))

    def _walk(self, nodes: Sequence[Node], values: dict[str, Value | None], seen: Seen) -> None:
        """Evaluate nodes in order, into `values`."""
        for node in nodes:
            if node.op == "If":
                made = self._branch(node, values, seen)
            else:
                made = self._outputs(node, values)
            for i, name in enumerate(node.outputs):
                if name:
                    value = made[i] if made is not None and i < len(made) else None
                    values[name] = seen(name, value) if value is not None and value.rows else value

    def _branch(self, node: Node, values: dict[str, Value | None], seen: Seen) -> list[Value] | None:
        """The outputs of the branch that a condition without input decides; its names are gone afterwards."""
        test = self._value(node.inputs[0], values) if len(node.inputs) == 1 else None
        if test is None or test.rows or test.e is not None or test.kind != BOOL or test.v.size != 1:
            self._note(f"{node.label}: a condition that is no stored truth value")
            return None
        inner = node.attributes.get("then_branch" if bool(test.v.ravel()[0]) else "else_branch")
        if not isinstance(inner, Inner) or len(inner.outputs) != len(node.outputs):
            self._note(f"{node.label}: its branches")
            return None
        around = {**values, **{name: stored(tensor(data)) for name, data in inner.stored.items()}}
        self._walk(inner.nodes, around, lambda name, value: value)
        found = [self._value(name, around) for name in inner.outputs]
        known = [value for value in found if value is not None]
        return known if len(known) == len(found) else None

    def _result(self, values: dict[str, Value | None], points: int) -> Value | None:
        """The outputs, one behind the other."""
        found = [self._value(name, values) for name in self.outputs]
        if len(found) == 1 or any(v is None for v in found):
            return found[0] if len(found) == 1 else None
        parts = [self.n.real(v) for v in found if v is not None]
        flat: list[AnyArray] = []
        errors: list[AnyArray] = []
        for v in parts:
            for a, out in ((v.v, flat), (v.e, errors)):
                if a is None:
                    a = np.zeros(v.v.shape)
                out.append(a.reshape(points, -1) if v.rows else np.tile(a.ravel(), (points, 1)))
        known = None if all(v.e is None for v in parts) else np.concatenate(errors, axis=1)
        return Value(np.concatenate(flat, axis=1), parts[0].kind, True, known)

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
        self.opset = node.opset
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
        some = [x for x in xs if x is not None and x.is_whole]
        if some and node.op not in WHOLE:
            raise Fallback("integers that depend on the input")
        with np.errstate(all="ignore"):
            made = meaning(self, node, xs)
        return [in_range(v) for v in made] if some else made
