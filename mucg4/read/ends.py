"""The ends of a network: which of the file's inputs make up X, and in which shapes.

X_0, X_1, ... are the entries of the inputs one behind the other, in the order of their declaration, row-major. An input
that nothing reads belongs to them where the property counts it. A leading dynamic dimension is the batch and counts 1,
and so does its name wherever it recurs; other sizes that the file leaves open come from the user or from the number of
inputs that the property declares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

from mucg4.errors import InputError, UnsupportedError
from mucg4.read.protobuf import DOUBLE, FLOAT, INT32, INT64, LARGEST_TENSOR, Tensor, shortened

Shape = tuple[int, ...]
Open = tuple[int | str | None, ...]
GUESSED_DIMENSION = 2**20  # longest side that is looked for; not measured


class Inputs(NamedTuple):
    """The inputs that node 0 holds, with their shapes, and a note where a size was found by counting."""

    tensors: tuple[Tensor, ...]
    shapes: tuple[Shape, ...]
    note: str = ""

    @property
    def size(self) -> int:
        return sum(map(prod, self.shapes))


def chosen(
    declared: Sequence[Tensor], read: set[str], count: int | None = None, given: Mapping[str, Shape] | None = None
) -> Inputs:
    """The inputs behind X; `read` names what the nodes and outputs read, `count` is how many X_i are declared.

    `given` are shapes that the user states, "" for the only input. Raises `InputError` where sizes contradict each
    other or stay open, `UnsupportedError` for element types.
    """
    if not declared:
        raise InputError("the network has no input")
    used = [t for t in declared if t.name in read] or list(declared[:1])
    given = _named(declared, used, given or {})
    ways = [used] + ([list(declared)] if len(used) < len(declared) else [])
    failed: InputError | None = None
    for tensors in ways if count is not None else ways[:1]:
        try:
            found = _shaped(tensors, count, given)
        except InputError as error:
            failed = failed or error
            continue
        if count in (None, found.size):
            return _checked(found)
    if failed is not None:
        raise failed
    return _checked(_shaped(used, None, given))  # the property is told what the network has


def _checked(found: Inputs) -> Inputs:
    for t in found.tensors:
        if t.element_type not in (FLOAT, DOUBLE, INT32, INT64):
            raise UnsupportedError(
                f"input {shortened(t.name)} has element type {t.element_type}, not float32, float64, int32 or int64"
            )
        if t.element_type != found.tensors[0].element_type:
            raise UnsupportedError("the network's inputs have different element types")
    if found.size > LARGEST_TENSOR:
        raise InputError(f"input {shortened(found.tensors[0].name)} has more than {LARGEST_TENSOR} entries")
    return found


def _named(declared: Sequence[Tensor], used: Sequence[Tensor], given: Mapping[str, Shape]) -> dict[str, Shape]:
    """The user's shapes by the inputs' names, checked against what the file fixes."""
    out: dict[str, Shape] = {}
    for name, shape in given.items():
        if not name and len(used) != 1:
            raise InputError(f"the network has {len(used)} inputs: shapes need their names")
        name = name or used[0].name
        tensor = next((t for t in declared if t.name == name), None)
        if tensor is None:
            known = ", ".join(shortened(t.name) for t in declared[:8])
            raise InputError(f"the network has no input {shortened(name)}, but {known}")
        dims = tensor.dims
        fits = dims is None or (
            len(dims) == len(shape) and all(not isinstance(d, int) or d == n for d, n in zip(dims, shape, strict=True))
        )
        if not fits or min(shape, default=1) < 1:
            raise InputError(f"input {shortened(name)} is declared as {_text(dims)}, which {list(shape)} does not fit")
        out[name] = shape
    return out


def _text(dims: Open | None) -> str:
    return "any shape" if dims is None else "[" + ", ".join("?" if d is None else str(d)[:40] for d in dims) + "]"


def _shaped(tensors: Sequence[Tensor], count: int | None, given: Mapping[str, Shape]) -> Inputs:
    """Shapes for all: stated, dynamic batches 1, and what then is open by counting."""
    dims: list[Open] = []
    for t in tensors:
        shape = given.get(t.name, t.dims)
        if shape is None:
            shape = _flat(t, tensors, count)
        dims.append(shape)
    known: dict[str, int] = {}
    for t in tensors:
        if t.name in given and t.dims is not None:
            known.update({d: n for d, n in zip(t.dims, given[t.name], strict=True) if isinstance(d, str)})
    for shape in dims:
        if shape and isinstance(shape[0], str):
            known.setdefault(shape[0], 1)
    dims = [
        tuple(1 if i == 0 and d is None else known.get(d, d) if isinstance(d, str) else d for i, d in enumerate(shape))
        for shape in dims
    ]
    loose = [(t, i) for t, shape in zip(tensors, dims, strict=True) for i, d in enumerate(shape) if _is_open(d)]
    if not loose:
        return Inputs(tuple(tensors), tuple(tuple(int(d or 0) for d in shape) for shape in dims))
    tensor, at = loose[0]
    name = (tensor.dims or ())[at]
    if count is None:
        raise InputError(
            f"input {shortened(tensor.name)} has a dynamic dimension {str(name or at)[:100]!r} besides the batch"
        )
    n = _side(dims, count)
    if n is None:
        raise InputError(
            f"input {shortened(tensor.name)} is declared as {_text(tensor.dims)}, which the property's {count} inputs "
            "do not fill"
        )
    shapes = tuple(tuple(n if _is_open(d) else int(d or 0) for d in shape) for shape in dims)
    several = len({(t.dims or ())[i] or (t.name, i) for t, i in loose}) > 1
    what = ", ".join(f"{shortened(t.name)} as {list(s)}" for t, s in zip(tensors, shapes, strict=True))
    return Inputs(tuple(tensors), shapes, f"taken by the number of its entries: {what}" if several else "")


def _is_open(d: int | str | None) -> bool:
    return not isinstance(d, int)


def _flat(tensor: Tensor, tensors: Sequence[Tensor], count: int | None) -> Open:
    """An input without a shape: one row of what the property declares."""
    if count is None or len(tensors) > 1:
        raise InputError(f"input {shortened(tensor.name)} declares no shape")
    return 1, count


def _side(dims: Sequence[Open], count: int) -> int | None:
    """The size that all open dimensions have together, when the inputs have `count` entries."""

    def size(n: int) -> int:
        return sum(prod(n if _is_open(d) else int(d or 0) for d in shape) for shape in dims)

    low, high = 1, min(count, GUESSED_DIMENSION)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if size(middle) < count else (low, middle)
    return low if count > 0 and size(low) == count else None
