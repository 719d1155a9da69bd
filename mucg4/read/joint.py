"""Several networks and the products of their variables as one canonical network.

The joint network's input holds the free inputs. Each part gets its inputs by an index map (or the free inputs
themselves), or by a dense map where equations give some of them, and stands beside the others with all its nodes as
they are; the declared outputs follow each other, and the monomials after them, level by level: a square of the half
where a monomial is one, else the product of the monomial without its last factor, and that factor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import field, replace

import numpy as np

from mucg4.model.joint import Declared, Joint, Monomial
from mucg4.model.network import Network, Node
from mucg4.ops.affine import Concat, Dense, Index
from mucg4.ops.base import Op
from mucg4.ops.bilinear import PRODUCT
from mucg4.ops.curves import SQUARE
from mucg4.records import dataclass


def joined(joint: Joint) -> tuple[Network, Joint]:
    """The joint network, and the record with its `places`; a single part with nothing around it is its own."""
    alone = len(joint.parts) == 1 and joint.links == tuple(range(joint.free))
    if alone and not joint.monomials and not joint.derived:
        return joint.parts[0], joint
    build = _Build(joint)
    places = build.parts()
    build.outputs(places)
    digest = hashlib.sha256("|".join(p.source_hash for p in joint.parts).encode()).hexdigest()
    narrowest = next((part.narrowest for part in joint.parts if part.narrowest), "")
    network = Network(tuple(build.nodes), digest, joint.parts[0].element_type, narrowest=narrowest)
    return network, replace(joint, places=places)


@dataclass
class _Build:
    joint: Joint
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.nodes.append(Node(None, (), "free inputs", (self.joint.free,)))

    def node(self, op: Op, inputs: Sequence[int], name: str, size: int) -> int:
        self.nodes.append(Node(op, tuple(inputs), name, (size,)))
        return len(self.nodes) - 1

    def picked(self, source: int, index: Sequence[int], name: str) -> int:
        """Some values of a node; the node itself where these are all in order."""
        size = self.nodes[source].size
        if list(index) == list(range(size)):
            return source
        return self.node(Index(np.array(index, dtype=np.int64), size), [source], name, len(index))

    def linked(self, index: Sequence[int], name: str) -> int:
        """Some linked inputs, from the free ones."""
        given = {d.target: d for d in self.joint.derived}
        if given.keys().isdisjoint(index):
            return self.picked(0, index, name)
        weight, offset = np.zeros((len(index), self.joint.free)), np.zeros(len(index))
        for row, i in enumerate(index):
            weight[row, i] = 1.0
            if i in given:
                offset[row] = given[i].constant
                for k, c in given[i].terms:
                    weight[row, k] = c
        return self.node(Dense(weight, offset), [0], name, len(index))

    def parts(self) -> tuple[tuple[int, ...], ...]:
        """All parts' nodes; where they are."""
        declared = self.joint.declared
        places = []
        for k, (network, part) in enumerate(zip(declared.networks, self.joint.parts, strict=True)):
            links = [self.joint.links[i] for i in input_positions(declared, k)]
            at = [self.linked(links, f"{network.name}:{part.nodes[0].name}")]
            for node in part.nodes[1:]:
                name = f"{network.name}:{node.name}"
                self.nodes.append(Node(node.op, tuple(at[i] for i in node.inputs), name, node.shape))
                at.append(len(self.nodes) - 1)
            if len(at) == 1:  # outputs that are the inputs have a node of their own
                size = part.input_size
                at.append(self.node(Index(np.arange(size), size), at, f"{network.name}:outputs", size))
            places.append(tuple(at))
        return tuple(places)

    def outputs(self, places: Sequence[Sequence[int]]) -> None:
        """Declared outputs and monomials as the last node."""
        ends = [at[-1] for at in places]
        sizes = [self.nodes[k].size for k in ends]
        total = sum(sizes)
        last = ends[0] if len(ends) == 1 else self.node(Concat(tuple(sizes)), ends, "outputs", total)
        monomials = _closed(self.joint.monomials)
        if not monomials:
            if last != len(self.nodes) - 1:
                self.node(Index(np.arange(total), total), [last], "outputs", total)
            return
        free = self.joint.free
        inputs = self.linked(range(free), "linked inputs")
        known = self.node(Concat((free, total)), [inputs, last], "variables", free + total)
        place: dict[Monomial, int] = {(i,): i for i in range(free)}
        place.update({(-1 - j,): free + j for j in range(total)})
        for degree in range(2, max(map(len, monomials)) + 1):
            level = [m for m in monomials if len(m) == degree]
            for square in (True, False):
                some = [m for m in level if (_half(m) is not None) == square]
                if some:
                    known = self.level(known, place, some, square)
        wanted = [*((-1 - j,) for j in range(total)), *self.joint.monomials]
        self.node(Index(np.array([place[m] for m in wanted]), self.nodes[known].size), [known], "outputs", len(wanted))

    def level(self, known: int, place: dict[Monomial, int], some: Sequence[Monomial], square: bool) -> int:
        """The node `known` with some monomials more behind it."""
        size = self.nodes[known].size
        if square:
            halves = self.picked(known, [place[_half(m) or ()] for m in some], "factors")
            made = self.node(SQUARE, [halves], "squares", len(some))
        else:
            a = self.picked(known, [place[m[:-1]] for m in some], "factors")
            b = self.picked(known, [place[m[-1:]] for m in some], "factors")
            made = self.node(PRODUCT, [a, b], "products", len(some))
        for k, m in enumerate(some):
            place[m] = size + k
        return self.node(Concat((size, len(some))), [known, made], "variables", size + len(some))


def input_positions(declared: Declared, network: int) -> list[int]:
    """The declared inputs of a network, in the order of its flat input."""
    return [v.start + i for v in declared.of(network, True) for i in range(v.size)]


def _half(monomial: Monomial) -> Monomial | None:
    """What the monomial is the square of."""
    return monomial[::2] if len(monomial) % 2 == 0 and monomial[::2] == monomial[1::2] else None


def _closed(monomials: Sequence[Monomial]) -> list[Monomial]:
    """The monomials and those that they are computed from."""
    out: dict[Monomial, None] = {}
    todo = list(monomials)
    while todo:
        m = todo.pop()
        if len(m) > 1 and m not in out:
            out[m] = None
            half = _half(m)
            todo.append(m[:-1] if half is None else half)
    return sorted(out)
