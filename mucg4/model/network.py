"""The canonical network: a frozen, topologically ordered graph of flat operators."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import field, replace
from functools import cached_property
from math import prod

import numpy as np

from mucg4.errors import InputError
from mucg4.ops.arrays import NUMPY, Backend
from mucg4.ops.base import Affine, Array, Nonlinear, Op
from mucg4.records import dataclass


@dataclass(frozen=True, eq=False)
class Node:
    """One value of the network: `op` applied to the values of `inputs` (positions of earlier nodes).

    The first node of a network has `op=None` and is the input. `name` is the original ONNX tensor
    name, `shape` its shape without the batch axis folded away (prod(shape) == size).
    """

    op: Op | None
    inputs: tuple[int, ...]
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Original:
    """A model as it stands on disk, whose weights lie in other files: its bytes, and each file's name and content."""

    data: bytes = field(repr=False)
    files: tuple[tuple[str, bytes], ...] = field(repr=False)


LARGEST_WHOLE = 2**24  # given: float32 has all whole numbers up to this one


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in topological order; node 0 is the input, the last node is the output.

    `source_hash` identifies the ONNX file's bytes (hex SHA-256), `element_type` the dtype the model
    itself computes in ("float32" or "float64"); `narrowest` is the coarser one that values pass through on the way,
    where there is one. `model_bytes` are the (decompressed) ONNX bytes, kept for
    onnxruntime, with the weights of other files put in; `original` is there in such a case, and is what onnxruntime
    gets. `tensors` tells which tensors of the file have the value of which node, `inputs` which inputs of the file
    with which shapes node 0 holds one behind the other (empty: the only one), `note` what about them was found by
    counting. `integers` is the type of the file's inputs where that is one of integers ("int64"): the network is what
    the file computes at whole numbers up to `LARGEST_WHOLE` in size, and something in between elsewhere. Several
    outputs are one behind the other too. Concrete evaluation here
    is in the precision of `backend`, where the operators' arrays live: float64 in NumPy on the stored weights, unless
    the network was made by `cast`.
    """

    nodes: tuple[Node, ...]
    source_hash: str = ""
    element_type: str = "float32"
    model_bytes: bytes = field(default=b"", repr=False)
    backend: Backend = NUMPY
    tensors: tuple[tuple[str, int], ...] = field(default=(), repr=False)
    original: Original | None = field(default=None, repr=False)
    inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    note: str = ""
    narrowest: str = ""
    integers: str = ""
    origin: Network | None = field(default=None, repr=False)  # what `cast` was called on

    def __post_init__(self) -> None:
        if not self.nodes or self.nodes[0].op is not None:
            raise InputError("a network needs an input node first")
        for k, node in enumerate(self.nodes[1:], 1):
            if node.op is None or not node.inputs or max(node.inputs) >= k:
                raise InputError(f"node {node.name!r} is not in topological order")

    @property
    def unit(self) -> float:
        """Unit roundoff of the coarsest type that the model computes in."""
        return float(np.finfo(self.narrowest or self.element_type).eps) / 2

    @property
    def largest(self) -> float:
        """The largest number that each type holds which the model computes in."""
        return float(np.finfo(self.narrowest or self.element_type).max)

    @property
    def input_size(self) -> int:
        return self.nodes[0].size

    @property
    def output_size(self) -> int:
        return self.nodes[-1].size

    @cached_property
    def size(self) -> int:
        """Components of all nodes."""
        return sum(n.size for n in self.nodes)

    @cached_property
    def nonlinear(self) -> tuple[int, ...]:
        """Positions of the nonlinear nodes."""
        return tuple(k for k, n in enumerate(self.nodes) if isinstance(n.op, Nonlinear))

    @cached_property
    def pre_activations(self) -> tuple[int, ...]:
        """Positions of the nodes that feed a nonlinear node (the ones whose bounds are needed)."""
        return tuple(sorted({i for k in self.nonlinear for i in self.nodes[k].inputs}))

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes that read it."""
        out: list[list[int]] = [[] for _ in self.nodes]
        for k, node in enumerate(self.nodes):
            for i in node.inputs:
                out[i].append(k)
        return tuple(tuple(u) for u in out)

    @cached_property
    def _casts(self) -> dict[Backend, Network]:
        return {}

    def cast(self, backend: Backend) -> Network:
        """The network whose operators hold their arrays on another backend; made once per backend.

        Weights are rounded to its precision: bounds of such a network account for that (`mucg4.bound.rounding`),
        values do not.
        """
        if self.origin is not None:
            return self.origin.cast(backend)
        if backend == self.backend:
            return self
        if backend not in self._casts:
            nodes = tuple(replace(n, op=n.op.cast(backend)) if n.op else n for n in self.nodes)
            self._casts[backend] = replace(self, nodes=nodes, backend=backend, origin=self)
        return self._casts[backend]

    def values(self, x: Array) -> list[Array]:
        """All node values at the points `x (batch, input_size)`, one array per node."""
        out: list[Array] = [self.backend.array(x)]
        for node in self.nodes[1:]:
            assert node.op is not None
            out.append(node.op.apply([out[i] for i in node.inputs]))
        return out

    def __call__(self, x: Array) -> Array:
        """The output `(batch, output_size)` at the points `x (batch, input_size)`."""
        return self.values(x)[-1]

    def reads(self, inputs: Sequence[int]) -> bool:
        """Whether the output may depend on some of these input entries: a chain of weights other than 0 leads there."""
        hit = np.zeros((1, self.input_size))
        hit[0, list(inputs)] = 1.0
        marks = [hit]
        for node in self.nodes[1:]:
            xs = [marks[i] for i in node.inputs]
            if isinstance(node.op, Affine):
                mark = np.asarray(node.op.magnitude(xs) != 0, dtype=np.float64)
            elif all(x.shape[1] == node.size for x in xs):
                mark = np.maximum.reduce(xs)
            else:
                mark = np.full((1, node.size), max(float(x.max(initial=0.0)) for x in xs))
            marks.append(mark)
        return bool(np.any(marks[-1]))

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the canonical graph and all its parameters; names do not count.

        Two files with the same fingerprint compute the same real function, however serialised.
        """
        if self.origin is not None:
            return self.origin.fingerprint
        h = hashlib.sha256()
        for node in self.nodes:
            h.update(repr((node.op.kind if node.op else "Input", node.inputs, node.size)).encode())
            for key, value in sorted(node.op.parameters().items()) if node.op else ():
                h.update(key.encode())
                if isinstance(value, np.ndarray):
                    value = value + 0.0 if value.dtype.kind == "f" else value  # -0.0 and 0.0 are equal
                    h.update(repr((value.shape, value.dtype.str)).encode())
                    h.update(np.ascontiguousarray(value).tobytes())
                else:
                    h.update(repr(value).encode())
        return h.hexdigest()

    @cached_property
    def signature(self) -> str:
        """Short hash of the graph's shape only (kinds, wiring, sizes), for finding related networks."""
        parts = [(n.op.kind if n.op else "Input", n.inputs, n.size) for n in self.nodes]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def affine_magnitude(op: Affine, xs: Sequence[Array]) -> Array:
    """`sum |W_i| xs_i + |b|` for nonnegative xs: the scale of one affine evaluation's rounding."""
    m = op.magnitude(xs)
    b = op.bias_magnitude()
    return m if b is None else m + b
