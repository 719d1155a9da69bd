"""The assignment of a `sat` answer to a VNN-LIB 2.0 query: the standard's text, and its serialised form.

Variables stand in the order of their declarations, network by network: a line with name, type and shape, then one value
per line, row-major. Serialised, each variable is an ONNX TensorProto in a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mucg4.errors import InputError
from mucg4.model.joint import INTEGERS, Declaration, Declared
from mucg4.model.query import Query, Witness
from mucg4.ops.base import Array

TENSOR_TYPES = {"float32": 1, "float16": 10, "float64": 11, **INTEGERS}  # TensorProto.DataType


def assignment_text(query: Query, witness: Witness) -> str:
    """The lines that follow `sat`. Values are the shortest decimals of their doubles, which read back exactly."""
    joint = query.joint
    assert joint is not None and witness.values is not None
    lines = []
    for variable, values in _assigned(joint.declared, *witness.values):
        lines.append(f"{variable.name} {variable.element} [{','.join(map(str, variable.shape))}]")
        whole = variable.element in INTEGERS
        lines.extend(str(int(v)) if whole else repr(v) for v in values.astype(np.float64).tolist())
    return "\n".join(lines)


def serialised(query: Query, witness: Witness) -> dict[str, bytes]:
    """File name -> TensorProto of every variable, in the model's element type where `real` is declared."""
    joint = query.joint
    assert joint is not None and witness.values is not None
    out = {}
    for variable, values in _assigned(joint.declared, *witness.values):
        element = query.network.element_type if variable.element == "real" else variable.element
        out[f"{variable.name}.pb"] = _tensor(variable, values.astype(element), TENSOR_TYPES[element])
    return out


def write_assignment(query: Query, witness: Witness, folder: Path) -> None:
    """Write the serialised form into a folder, which is made where it is missing. Raises `InputError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in serialised(query, witness).items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from error


def _assigned(declared: Declared, x: Array, y: Array) -> Iterator[tuple[Declaration, Array]]:
    for variable in declared.variables:
        values = x if variable.is_input else y
        yield variable, values[variable.start : variable.start + variable.size]


def _tensor(variable: Declaration, values: Array, kind: int) -> bytes:
    """TensorProto: dims (1), data_type (2), name (8), raw_data (9, little-endian)."""
    raw: bytes = values.astype(values.dtype.newbyteorder("<")).tobytes()
    name = variable.name.encode()
    dims = b"".join(b"\x08" + _varint(d) for d in variable.shape)
    return dims + b"\x10" + _varint(kind) + b"\x42" + _varint(len(name)) + name + b"\x4a" + _varint(len(raw)) + raw


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
