"""Whether the numbers of a canonical network are those of its model file, none of them computed.

Bounds in floating point carry a charge for what the reader rounded when it merged constants. A refutation by equality
(`mucg4.check.ties`) has no room for one, so it needs a network without computed numbers. The rule is an inventory: the
sizes of all numbers in the file that are neither 0 nor 1, each as often as it is stored, are those of the canonical
network. Merging two constants would lose one or both, factors would change them, and copies would count twice. It says
no wherever anything else happens, also where that would be exact.

The file is decoded by the checker (`mucg4.check.wire`), so that nothing is shared with the reader whose work is judged.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mucg4.check.wire import BFLOAT16, FLOAT16, Tensor, decode, tensor
from mucg4.errors import InputError
from mucg4.model.network import Network
from mucg4.ops.base import Affine, Array
from mucg4.ops.piecewise import TwoPiece

NARROW = (FLOAT16, BFLOAT16)
MOST_NUMBERS = 1 << 22


def verbatim(network: Network) -> bool:
    """True when every number of the network is a stored one, see the module text; False whenever in doubt."""
    try:
        stored = [v for part in _stored(network.model_bytes) for v in part]
    except InputError:
        return False
    made = [v for part in _numbers(network) for v in part]
    if not network.model_bytes or len(stored) != len(made) or len(made) > MOST_NUMBERS:
        return False
    return bool(np.array_equal(np.sort(np.array(stored)), np.sort(np.array(made))))


def _sizes(values: Array) -> Array:
    """The absolute values that are neither 0 nor 1."""
    values = np.abs(np.asarray(values, dtype=np.float64).ravel())
    return values[(values != 0) & (values != 1)]


def _numbers(network: Network) -> Iterator[Array]:
    for node in network.nodes[1:]:
        op = node.op
        if isinstance(op, TwoPiece):
            yield _sizes(np.array([op.left, op.right]))
        elif isinstance(op, Affine):
            for value in op.parameters().values():
                if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                    yield _sizes(value)
                elif isinstance(value, (float, tuple)):
                    numbers = np.array(value)
                    yield _sizes(numbers) if numbers.dtype.kind == "f" else np.zeros(0)
        else:
            yield np.array([np.nan])  # equal to nothing


def _stored(data: bytes) -> Iterator[Array]:
    """Sizes of the numbers of a file: of initialisers and of attributes. Raises `InputError` for what is not read."""
    graph = decode(data)
    for view in graph.stored.values():
        yield _of(tensor(view))
    for node in graph.nodes:
        for name, value in node.attributes.items():
            if value is None:
                raise InputError(f"attribute {name!r} is not read here")
            if isinstance(value, Tensor):
                yield _of(value)
            elif isinstance(value, (float, tuple)):
                numbers = np.array(value)
                yield _sizes(numbers) if numbers.dtype.kind == "f" else np.zeros(0)


def _of(stored: Tensor) -> Array:
    """Sizes of the numbers of a tensor; none where it holds integers."""
    if stored.kind in NARROW:
        raise InputError("a type that is not read here")
    return _sizes(stored.value) if stored.value.dtype.kind == "f" else np.zeros(0)
