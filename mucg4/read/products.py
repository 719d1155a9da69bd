"""A 1.0 property with products of variables -> one query: as a 2.0 text of one network without a name."""

from __future__ import annotations

import hashlib

from mucg4.model.decimals import Plain
from mucg4.model.formula import ParsedProperty
from mucg4.model.joint import Declaration, Declared, DeclaredNetwork
from mucg4.model.network import Network
from mucg4.model.query import Query
from mucg4.read.joint import joined
from mucg4.read.normal2 import normalise
from mucg4.read.vnnlib2 import ParsedQuery


def query_of_products(network: Network, prop: ParsedProperty, text: str) -> Query:
    """The query of a property that speaks of all outputs of its network; raises as `mucg4.read.normal2.normalise`."""
    ends = (("X", "input", prop.inputs), ("Y", "output", network.output_size))
    variables = tuple(Declaration(name, kind, "real", (size,), 0, 0) for name, kind, size in ends)
    declared = Declared((DeclaredNetwork(""),), variables)
    bounds = prop.bounds or (Plain(False), Plain(True))
    normal = normalise(ParsedQuery(declared, *bounds, prop.assertions), network.element_type)
    made, joint = joined(normal.joint(declared, (network,)))
    return Query((made,), normal.cases, source_hash=hashlib.sha256(text.encode()).hexdigest(), text=text, joint=joint)
