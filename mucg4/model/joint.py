"""What a VNN-LIB 2.0 text declares, and how one canonical network stands for all that it speaks of.

Flat positions: *declared inputs* are the components of all declared inputs of all networks in the order of their
declarations, row-major; *declared outputs* those of all hidden nodes and outputs. The *free* inputs are what a search
varies: declared inputs that the text says are equal are one free input. The joint network maps free inputs to the
declared outputs followed by *monomials*, products of free inputs and declared outputs that constraints speak of, so
that every constraint is linear in its inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from mucg4.model.formula import Formula
from mucg4.model.network import Network

Monomial = tuple[int, ...]  # sorted codes: a free input i is i, a declared output j is -1 - j; at least two

# TensorProto.DataType of declared integers, which outputs may be
INTEGERS = {"uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "uint32": 12, "uint64": 13}
FLOATS = {"real": "", "float16": "float16", "float32": "float32", "float64": "float64"}  # and what they ask of a model


@dataclass(frozen=True)
class Declaration:
    """One declared variable: `kind` is input, hidden or output; `start` its flat position among inputs or outputs.

    `network` is the position of its network, `element` the declared type in lower case, `tensor` the name in the
    model of a hidden node. A network's outputs come before its hidden nodes there.
    """

    name: str
    kind: str
    element: str
    shape: tuple[int, ...]
    network: int
    start: int
    tensor: str = ""

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def is_input(self) -> bool:
        return self.kind == "input"


@dataclass(frozen=True)
class DeclaredNetwork:
    """One declared network; `relation` is empty, `equal-to` or `isomorphic-to`, to the network `target`."""

    name: str
    relation: str = ""
    target: str = ""


@dataclass(frozen=True)
class Declared:
    """Everything that a text declares, in its order."""

    networks: tuple[DeclaredNetwork, ...]
    variables: tuple[Declaration, ...]

    def of(self, network: int, inputs: bool) -> tuple[Declaration, ...]:
        """A network's inputs, or its outputs and then its hidden nodes, in their flat order."""
        own = (v for v in self.variables if v.network == network and v.is_input == inputs)
        return tuple(sorted(own, key=lambda v: v.start))

    def hidden(self, network: int) -> tuple[str, ...]:
        """The tensors of a network's hidden nodes."""
        return tuple(v.tensor for v in self.of(network, False) if v.kind == "hidden")

    def count(self, inputs: bool) -> int:
        return sum(v.size for v in self.variables if v.is_input == inputs)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the networks for which a model has to be given."""
        return tuple(n.name for n in self.networks if n.relation != "equal-to")


@dataclass(frozen=True, eq=False)
class Joint:
    """How the query's network is made of the declared ones.

    `parts` has one network per declared one (the same object for equal ones), `links` for each declared input its free
    input, `places` for each part the position in the joint network of each of its nodes (a part whose outputs are its
    inputs has a copy of them for outputs); empty when the joint network is the only part itself. `monomials` are the
    outputs after the declared ones. `assertions` are those of the text that the boxes do not say already, over declared
    inputs and outputs.
    """

    declared: Declared
    parts: tuple[Network, ...]
    links: tuple[int, ...]
    free: int
    monomials: tuple[Monomial, ...] = ()
    places: tuple[tuple[int, ...], ...] = ()
    assertions: tuple[Formula, ...] = field(default=(), repr=False)

    @property
    def version1(self) -> bool:
        """True for a text of version 1.0 (with products of variables), which names no network."""
        return not self.declared.networks[0].name

    @property
    def plain(self) -> bool:
        """True when the query's network is the only part itself."""
        return not self.places
