"""Weights that an ONNX file keeps in other files (the format's "external data"): read, bounded, put into the model.

A tensor names a file, relative to the model's folder, and a part of it. Nothing outside that folder is opened, also
not through a link. What comes out is the model with all weights inside, which is what is read, hashed and stored; the
model as it stands and the files' content go along for onnxruntime, which puts them together by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mucg4.errors import InputError, UnsupportedError
from mucg4.model.network import Original
from mucg4.read.protobuf import TYPES, parse_model, shortened

LARGEST = 2**31 - 2**20  # bytes of the model with its weights inside: protobuf has no larger messages; not measured
MOST_FILES = 10_000  # that the tensors of one model lie in; not measured
PACKED = (21, 22)  # element types of four bits; not measured
Read = Callable[[Path], bytes]


def assembled(data: bytes, folder: str | os.PathLike[str], read: Read) -> tuple[bytes, Original | None]:
    """The model with all weights inside, and the parts it was made of; `data` and None where it has no others.

    `read` reads a file. Raises `InputError` naming the tensor and its file when that is missing, too short or
    outside `folder`.
    """
    model = parse_model(data)
    files: dict[str, bytes] = {}
    size = 0
    for tensor in _tensors(model.graph, model.functions):
        if tensor.data_location != 1:
            continue
        name, start, length = _stated(tensor)
        if name not in files:
            if len(files) == MOST_FILES:
                raise UnsupportedError(f"the network keeps its weights in more than {MOST_FILES} files")
            files[name] = _content(tensor.name, name, Path(folder), read)
        part = _part(tensor, files[name], name, start, length)
        size += len(part)
        if size > LARGEST:
            raise UnsupportedError("the network's weights in other files are larger than 2 GiB")
        tensor.raw_data = part
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    if not files:
        return data, None
    try:
        whole = bytes(model.SerializeToString(deterministic=True))
    except Exception as error:  # the library's own type where the message is too large
        raise UnsupportedError("the network with its weights in other files is larger than 2 GiB") from error
    return whole, Original(data, tuple(sorted(files.items())))


def _tensors(graph: Any, functions: Any = ()) -> Iterator[Any]:
    """All stored tensors: initialisers, values of sparse ones, attributes, and those of graphs within."""
    pending, nodes = [graph], [node for f in functions for node in f.node]
    while pending or nodes:
        if pending:
            at = pending.pop()
            yield from at.initializer
            for sparse in at.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(at.node)
            continue
        for attribute in nodes.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            pending += [attribute.g] if attribute.HasField("g") else []
            pending += attribute.graphs


def _stated(tensor: Any) -> tuple[str, int, int | None]:
    """File, first byte and number of bytes of a tensor."""
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise InputError(f"tensor {shortened(tensor.name)} names its {entry.key} twice")
        entries[entry.key] = entry.value
    numbers: list[int | None] = []
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and not (text.isascii() and text.isdigit() and len(text) < 20):
            raise InputError(f"tensor {shortened(tensor.name)}: its {key} {shortened(text)} is no number of bytes")
        numbers.append(None if text is None else int(text))
    if not entries.get("location"):
        raise InputError(f"tensor {shortened(tensor.name)} is kept in another file, but does not say in which")
    return entries["location"], numbers[0] or 0, numbers[1]


def _content(tensor: str, location: str, folder: Path, read: Read) -> bytes:
    what = f"tensor {shortened(tensor)} is kept in the file {shortened(location)}"
    inside = PurePosixPath(location.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts or "\0" in location or ":" in "".join(inside.parts[:1]):
        raise InputError(f"{what}, which is outside the model's folder")
    if "\\" in location:  # a name, or a folder and a name: that depends on the system
        raise UnsupportedError(f"{what}: a backslash in its name")
    if location.endswith(("/", "/.")):  # not what onnxruntime opens
        raise InputError(f"{what}, which is the name of a directory")
    path = folder / inside
    try:
        read_from = path if path.exists() else Path(f"{path}.gz")  # see `mucg4.read.instance.read_stored`
        root, real = folder.resolve(), [path.resolve(), read_from.resolve()]
    except (OSError, RuntimeError) as error:
        raise InputError(f"{what}, which cannot be found") from error
    if not all(r.is_relative_to(root) for r in real):
        raise InputError(f"{what}, which is a link to outside the model's folder")
    try:
        return read(path)
    except InputError as error:
        text = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{what}: {path}: {text}") from error


def _part(tensor: Any, content: bytes, name: str, start: int, length: int | None) -> bytes:
    """The bytes of a tensor; their number is left to the reader of tensors, but for what is cut off here."""
    end = len(content) if length is None else start + length
    if start > len(content) or end > len(content):
        raise InputError(
            f"tensor {shortened(tensor.name)}: the file {shortened(name)} has {len(content)} bytes, but byte {end} is "
            "asked for"
        )
    if length is None and tensor.data_type in TYPES and tensor.data_type not in PACKED:
        end = min(end, start + _bytes(tensor))
    return content[start:end]


def _bytes(tensor: Any) -> int:
    """How many bytes a tensor's shape takes, where its length is not stated."""
    import numpy as np

    size = int(np.dtype(TYPES[tensor.data_type][0]).itemsize)
    for n in tensor.dims:
        size *= max(0, int(n))
    return size
