"""A VNN-LIB 2.0 text and the models of its networks -> one query.

Inputs and outputs belong to those of the model in their order, by size. A hidden node is read as one more output: a
model is a protobuf message, in which a graph of nothing but outputs may follow (lists of repeated messages are joined).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod

from mucg4.errors import InputError, UnsupportedError
from mucg4.limits.collector import resting
from mucg4.model.joint import FLOATS, INTEGERS, Declared
from mucg4.model.network import Network, Original
from mucg4.model.query import Query
from mucg4.read.joint import joined
from mucg4.read.normal2 import normalise
from mucg4.read.protobuf import DOUBLE, FLOAT, Tensor
from mucg4.read.vnnlib2 import parse_query

Model = tuple[bytes, Original | None]  # with all weights inside; what it was made of where they lie in other files


def query_of_models(models: Mapping[str, Model], text: str) -> Query:
    """The query of a 2.0 text and the models of its networks by their declared names.

    A query with one model to be given takes it without a name ("") too. Raises `InputError` or `UnsupportedError`;
    errors of a model start with the name of its network.
    """
    with resting():
        parsed = parse_query(text)
    declared = parsed.declared
    parts = _parts(declared, _named(declared, models))
    kinds = {part.element_type for part in parts}
    if len(kinds) != 1:
        raise UnsupportedError(f"networks of different types ({', '.join(sorted(kinds))}) in one query")
    with resting():
        normal = normalise(parsed, parts[0].element_type)
    joint = normal.joint(declared, parts)
    network, joint = joined(joint)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Query((network,), normal.cases, source_hash=digest, text=text, joint=joint, finer=normal.finer)


def models_of(query: Query) -> dict[str, Model]:
    """The models of a 2.0 query as `query_of_models` takes them."""
    joint = query.joint
    assert joint is not None
    out: dict[str, Model] = {}
    for k, (network, part) in enumerate(zip(joint.declared.networks, joint.parts, strict=True)):
        if network.relation != "equal-to":
            more = len(_exposed(joint.declared.hidden(k), part.element_type))
            data, original = part.model_bytes, part.original
            if more:
                data = data[:-more]
                original = original and Original(original.data[:-more], original.files)
            out[network.name] = data, original
    return out


def _exposed(names: tuple[str, ...], element_type: str) -> bytes:
    """What is appended to a model that has to return some more tensors of its element type."""
    kind = _message(2, _message(1, b"\x08" + bytes([DOUBLE if element_type == "float64" else FLOAT])))
    ends = b"".join(_message(12, _message(1, name.encode()) + kind) for name in names)
    return _message(7, ends) if names else b""


def _message(field: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + content


def _named(declared: Declared, models: Mapping[str, Model]) -> dict[str, Model]:
    """The models by network; those that are missing or too many are named."""
    wanted, known = declared.files, {n.name: n for n in declared.networks}
    if len(wanted) == 1 and set(models) == {""}:
        return {wanted[0]: next(iter(models.values()))}
    unknown = [name for name in models if name not in known]
    if "" in models:
        raise InputError(f"one model is given, but the query declares the networks {', '.join(known)}")
    if unknown:
        raise InputError(f"the query declares no network {unknown[0]!r}, only {', '.join(known)}")
    missing = [name for name in wanted if name not in models]
    if missing:
        raise InputError(f"no model is given for network {missing[0]!r}")
    for name, network in known.items():
        if network.relation == "equal-to" and name in models and models[name][0] != models[_root(declared, name)][0]:
            raise InputError(f"the model of network {name!r} is not that of {network.target!r}, which it is equal to")
    return {name: models[name] for name in wanted}


def _root(declared: Declared, name: str) -> str:
    """The network whose model a network has."""
    network = next(n for n in declared.networks if n.name == name)
    return name if network.relation != "equal-to" else _root(declared, network.target)


def _parts(declared: Declared, models: Mapping[str, Model]) -> tuple[Network, ...]:
    read: dict[tuple[str, tuple[str, ...], tuple[str, ...]], Network] = {}
    parts = []
    for k, network in enumerate(declared.networks):
        name, hidden = _root(declared, network.name), declared.hidden(k)
        same = name, hidden, tuple(v.element for v in declared.of(k, False))
        if same not in read:
            try:
                read[same] = _part(declared, k, models[name], hidden)
            except InputError as error:
                raise type(error)(f"network {name}: {error}") from error
        parts.append(read[same])
        _fit(declared, k, parts[-1])
    return tuple(parts)


def _part(declared: Declared, k: int, model: Model, hidden: tuple[str, ...]) -> Network:
    """The model of a network, with its hidden nodes as further outputs."""
    from mucg4.read.inline import decode_model
    from mucg4.read.onnx import read_network

    data, original = model
    graph = decode_model(data)
    double = any(t.element_type == DOUBLE for t in graph.inputs)
    more = _exposed(hidden, "float64" if double else "float32")
    ends = [t.name for t in graph.outputs]
    if len({*hidden, *ends}) < len(hidden) + len(ends):
        raise UnsupportedError("a hidden node that is an output, or declared twice")
    data += more
    original = original and Original(original.data + more, original.files)
    inputs = declared.of(k, True)
    shapes = {}
    if len(graph.inputs) == len(inputs):
        shapes = {t.name: v.shape for t, v in zip(graph.inputs, inputs, strict=True) if _leaves_open(t, v.shape)}
    network = read_network(data, original, sum(v.size for v in inputs), shapes)
    if network.integers:
        raise UnsupportedError(f"inputs of type {network.integers} in a 2.0 query")
    outputs = declared.of(k, False)
    if len(outputs) != len(ends) + len(hidden):
        raise InputError(f"it has {len(ends)} outputs, but {len(outputs) - len(hidden)} are declared")
    for tensor, v in zip(graph.outputs, outputs, strict=False):
        if (v.element in INTEGERS or tensor.element_type in INTEGERS.values()) and v.element != "real":
            if INTEGERS.get(v.element) != tensor.element_type:
                raise InputError(f"output {tensor.name!r} has another element type than {v.name}, which is {v.element}")
        dims = tensor.dims or (None,)
        known = [1 if i == 0 and not isinstance(d, int) else d for i, d in enumerate(dims)]
        size = prod(d for d in known if isinstance(d, int))
        if tensor.dims is not None and all(isinstance(d, int) for d in known) and size != v.size:
            raise InputError(f"output {tensor.name!r} has {size} values, but {v.name} is declared with {v.size}")
    return network


def _leaves_open(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the declared shape says what the model's own leaves open."""
    dims = tensor.dims
    if dims is None:
        return True
    fits = len(dims) == len(shape) and all(d == n for d, n in zip(dims, shape, strict=True) if isinstance(d, int))
    return fits and any(not isinstance(d, int) for d in dims)


def _fit(declared: Declared, k: int, network: Network) -> None:
    """Declarations against the model: numbers, sizes, and types other than `real`."""
    name = declared.networks[k].name
    for inputs, has, word in ((True, network.input_size, "inputs"), (False, network.output_size, "outputs")):
        variables = declared.of(k, inputs)
        sizes = [prod(shape) for _, shape in network.inputs] if inputs else []
        stated = [v.size for v in variables]
        if sum(stated) != has:
            raise InputError(f"network {name} declares {sum(stated)} {word}, but its model has {has}")
        if sizes and stated != sizes:
            raise InputError(f"network {name} declares inputs of {stated} values, but those of its model have {sizes}")
        for v in variables:
            kind = FLOATS.get(v.element)
            if v.element in INTEGERS and v.kind == "output":
                continue
            if kind is None:
                raise UnsupportedError(f"variable {v.name} is of type {v.element}, which is not supported")
            if kind and kind != network.element_type:
                raise InputError(f"variable {v.name} is {kind}, but its model computes in {network.element_type}")
