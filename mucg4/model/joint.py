"""What a VNN-LIB 2.0 text declares, and how one canonical network stands for all that it speaks of.

Flat positions: *declared inputs* are the components of all declared inputs of all networks in the order of their
declarations, row-major; *declared outputs* those of all hidden nodes and outputs. *Linked* inputs: declared inputs that
the text says are equal are one. The *free* inputs are what a search varies: the linked ones, but in the place of one
that an affine equation gives (`Derived`) its *remainder*, what the equation leaves of it. The joint network maps free
inputs to the declared outputs followed by *monomials*, products of linked inputs and declared outputs that constraints
speak of, so that every constraint is linear in its inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from fractions import Fraction
from math import prod

import numpy as np

from mucg4.model.formula import Formula
from mucg4.model.network import Network
from mucg4.ops.arrays import FloatArray
from mucg4.records import dataclass

Monomial = tuple[int, ...]  # sorted codes: a linked input i is i, a declared output j is -1 - j; at least two

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


@dataclass(frozen=True)
class Derived:
    """A linked input that an affine equation gives: `x[target] = sum c x[i] + constant + w[target]`, exactly.

    x are linked inputs, w free ones; `terms` are the pairs `(i, c)`, none of them a target. `w[target]` takes up what
    rounding the coefficients and evaluating the equation leave, so it ranges over a few units in the last place.
    """

    target: int
    terms: tuple[tuple[int, float], ...]
    constant: float

    def value(self, x: FloatArray) -> FloatArray:
        """What the equation gives at `x (N, d)`: `(N,)` in double, the same whatever N is."""
        out = np.full(len(x), self.constant)
        for i, c in self.terms:
            out += c * x[:, i].astype(np.float64)
        return out


def over_free(
    form: Mapping[int, Fraction], constant: Fraction, derived: Iterable[Derived]
) -> tuple[dict[int, Fraction], Fraction]:
    """An affine form of linked inputs as one of free inputs, exactly."""
    out = dict(form)
    for d in derived:
        factor = form.get(d.target)
        if factor:
            constant += factor * Fraction(d.constant)
            for i, c in d.terms:
                out[i] = out.get(i, Fraction(0)) + factor * Fraction(c)
    return {i: c for i, c in out.items() if c}, constant


@dataclass(frozen=True, eq=False)
class Joint:
    """How the query's network is made of the declared ones.

    `parts` has one network per declared one (the same object for equal ones), `links` for each declared input its
    linked input, of which there are `free`, `derived` those that equations give, `places` for each part the position in
    the joint network of each of its nodes (a part whose outputs are its inputs has a copy of them for outputs); empty
    when the joint network is the only part itself. `monomials` are the outputs after the declared ones. `assertions`
    are those of the text that the boxes do not say already, over declared inputs and outputs; where inputs are derived
    the cases do not state their equations, which are judged by the assertions alone.
    """

    declared: Declared
    parts: tuple[Network, ...]
    links: tuple[int, ...]
    free: int
    monomials: tuple[Monomial, ...] = ()
    places: tuple[tuple[int, ...], ...] = ()
    assertions: tuple[Formula, ...] = field(default=(), repr=False)
    derived: tuple[Derived, ...] = ()

    def linked(self, free: FloatArray) -> FloatArray:
        """Free inputs `(N, d)` -> linked ones, each computed in double and rounded to the type of `free` once."""
        if not self.derived:
            return free
        out: FloatArray = free.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for d in self.derived:
                out[:, d.target] = d.value(free) + free[:, d.target].astype(np.float64)
        return out

    def declared_inputs(self, free: FloatArray) -> FloatArray:
        """Free inputs `(N, d)` -> declared ones `(N, n)`, of the type of `free`."""
        return np.asarray(self.linked(free)[:, list(self.links)])

    def linked_ends(self, lo: FloatArray, hi: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The range of linked inputs over a box of free ones, both `(d,)`, up to rounding in double."""
        low, high = lo.copy(), hi.copy()
        with np.errstate(over="ignore"):
            for d in self.derived:
                ends = [(c * lo[i], c * hi[i]) for i, c in d.terms]
                low[d.target] += d.constant + sum(map(min, ends))
                high[d.target] += d.constant + sum(map(max, ends))
        return low, high

    @property
    def version1(self) -> bool:
        """True for a text of version 1.0 (with products of variables), which names no network."""
        return not self.declared.networks[0].name

    @property
    def plain(self) -> bool:
        """True when the query's network is the only part itself."""
        return not self.places
