"""A VNN-LIB 2.0 text and the models of its networks -> one query."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from mucg4.errors import InputError, UnsupportedError
from mucg4.model.joint import FLOATS, Declared, Joint
from mucg4.model.network import Network
from mucg4.model.query import Query
from mucg4.read.joint import joined
from mucg4.read.normal2 import normalise
from mucg4.read.vnnlib2 import parse_query


def query_of_models(models: Mapping[str, bytes], text: str) -> Query:
    """The query of a 2.0 text and the models (ONNX bytes) of its networks by their declared names.

    A query with one model to be given takes it under any name. Raises `InputError` or `UnsupportedError`; errors of a
    model start with the name of its network.
    """
    parsed = parse_query(text)
    declared = parsed.declared
    parts = _parts(declared, _named(declared, models))
    kinds = {part.element_type for part in parts}
    if len(kinds) != 1:
        raise UnsupportedError(f"networks of different types ({', '.join(sorted(kinds))}) in one query")
    normal = normalise(parsed, parts[0].element_type)
    joint = Joint(declared, parts, normal.links, normal.free, normal.monomials, (), normal.assertions)
    network, joint = joined(joint)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Query((network,), normal.cases, source_hash=digest, text=text, joint=joint)


def models_of(query: Query) -> dict[str, bytes]:
    """The models' bytes of a 2.0 query as `query_of_models` takes them."""
    assert query.joint is not None
    names = query.joint.declared.networks
    return {n.name: p.model_bytes for n, p in zip(names, query.joint.parts, strict=True) if n.relation != "equal-to"}


def _named(declared: Declared, models: Mapping[str, bytes]) -> dict[str, bytes]:
    """The models by network; those that are missing or too many are named."""
    wanted, known = declared.files, {n.name: n for n in declared.networks}
    if len(models) == 1 and len(wanted) == 1 and not set(models) & set(known):
        return {wanted[0]: next(iter(models.values()))}
    unknown = [name for name in models if name not in known]
    if unknown:
        raise InputError(f"the query declares no network {unknown[0]!r}, only {', '.join(known)}")
    missing = [name for name in wanted if name not in models]
    if missing:
        raise InputError(f"no model is given for network {missing[0]!r}")
    for name, network in known.items():
        if network.relation == "equal-to" and name in models and models[name] != models[_root(declared, name)]:
            raise InputError(f"the model of network {name!r} is not that of {network.target!r}, which it is equal to")
    return {name: models[name] for name in wanted}


def _root(declared: Declared, name: str) -> str:
    """The network whose model a network has."""
    network = next(n for n in declared.networks if n.name == name)
    return name if network.relation != "equal-to" else _root(declared, network.target)


def _parts(declared: Declared, models: Mapping[str, bytes]) -> tuple[Network, ...]:
    from mucg4.read.onnx import read_network

    read: dict[str, Network] = {}
    parts = []
    for k, network in enumerate(declared.networks):
        name = _root(declared, network.name)
        if name not in read:
            try:
                read[name] = read_network(models[name])
            except InputError as error:
                raise type(error)(f"network {name}: {error}") from error
        parts.append(read[name])
        _fit(declared, k, read[name])
    return tuple(parts)


def _fit(declared: Declared, k: int, network: Network) -> None:
    """Declarations against the model: sizes, and types other than `real`."""
    name = declared.networks[k].name
    for inputs, has, word in ((True, network.input_size, "inputs"), (False, network.output_size, "outputs")):
        variables = declared.of(k, inputs)
        hidden = [v for v in variables if v.kind == "hidden"]
        if hidden:
            raise UnsupportedError(f"hidden node {hidden[0].name} of network {name} is not supported")
        if len(variables) > 1:
            raise UnsupportedError(f"network {name} declares {len(variables)} {word}; only one is supported")
        stated = sum(v.size for v in variables)
        if stated != has:
            raise InputError(f"network {name} declares {stated} {word}, but its model has {has}")
        for v in variables:
            kind = FLOATS.get(v.element)
            if kind is None:
                raise UnsupportedError(f"variable {v.name} is of type {v.element}, which is not supported")
            if kind and kind != network.element_type:
                raise InputError(
                    f"variable {v.name} is declared {kind}, but the model computes in {network.element_type}"
                )
