"""Instance files -> query: paths, `.gz`, and lists of instances."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from mucg4.errors import InputError, UnsupportedError
from mucg4.limits.collector import resting
from mucg4.limits.foreign import inflate, read_limited
from mucg4.model.formula import ParsedProperty
from mucg4.model.network import LARGEST_WHOLE, Network, Original
from mucg4.model.query import Case, Query
from mucg4.read.normal import ProductError, UnboundedError
from mucg4.read.vnnlib import parse_vnnlib, to_cases
from mucg4.records import dataclass

LARGEST = 2**31  # most bytes of a network: protobuf allows no more in one message; given
GZIP = b"\x1f\x8b"  # how every gzip archive starts, and no model and no text
EXTERNAL = b"location"  # the key by which a tensor names the file that holds it
LARGEST_TEXT = 2**29  # most bytes of a property or of a list; not measured


@dataclass(frozen=True)
class Instance:
    """One row of an instance list.

    `onnx` and `vnnlib` are relative to the list's folder, resolved; `onnx_text` and `vnnlib_text` are
    the cells as written. A row of several networks has a list of pairs in the first cell; `onnx` is such a list too,
    of resolved paths, as `read_query` takes it.
    """

    onnx: Path
    vnnlib: Path
    timeout: float
    onnx_text: str
    vnnlib_text: str


def read_bytes(path: str | os.PathLike[str], most: int = LARGEST) -> bytes:
    """The file's content, decompressed when it is a gzip archive; at most `most` bytes of it.

    The exact path comes first, then the same with `.gz` added, then without `.gz`. Raises
    `InputError` when nothing is there, or it is empty, too large, unreadable or a damaged archive.
    """
    name = os.fspath(path)
    return _content_of(name, (name, name + ".gz", name.removesuffix(".gz")), most)


def read_stored(path: str | os.PathLike[str]) -> bytes:
    """As `read_bytes`, for files of weights: what lies under the exact path is taken as it is.

    That is how onnxruntime takes it, and numbers may start as an archive does.
    """
    name = os.fspath(path)
    return _content_of(name, (name, name + ".gz"), LARGEST, as_it_is=name)


def _content_of(name: str, candidates: tuple[str, ...], most: int, as_it_is: str = "") -> bytes:
    found = next((c for c in candidates if os.path.exists(c)), None)
    if found is None:
        raise InputError(f"{name}: no such file")
    try:
        data = read_limited(found, most)
        packed = data.startswith(GZIP) or (data and found.endswith(".gz"))  # whatever it is called
        if packed and found != as_it_is:
            data = inflate(data, most, gzip=True)
    except ValueError as error:
        raise InputError(f"{found}: {error}") from error
    except OSError as error:
        raise InputError(f"{found}: {error.strerror or error}") from error
    if not data:
        raise InputError(f"{found}: the file is empty")
    return data


def read_text(path: str | os.PathLike[str]) -> str:
    """The file's content as text; `InputError` like `read_bytes`, or when it is not text.

    Bytes that are no UTF-8 become U+FFFD: they mean nothing in comments, and are no part of any word of a property.
    """
    data = read_bytes(path, LARGEST_TEXT)
    zero = data.find(b"\0")
    if zero >= 0:
        raise InputError(f"{os.fspath(path)}: not a text file (byte {zero})")
    return data.decode("utf-8-sig", "replace")


def read_query(
    onnx: str | os.PathLike[str], vnnlib: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Query:
    """Read a network and a property, and check that they belong together.

    `shapes` are what the user says about the network's inputs, "" for the only one. Raises `InputError` or
    `UnsupportedError` whose text starts with the file at fault.
    """
    several = {} if os.path.exists(onnx) else network_paths(os.fspath(onnx))
    try:
        text = read_text(vnnlib)  # first: a property is quickly seen to be wrong
    except InputError:
        if _is_text(onnx) and os.path.exists(vnnlib):
            raise InputError(
                f"{os.fspath(onnx)}: this is a property; the network comes first, then the property"
            ) from None
        raise
    if several and _is_version_2(text):
        from mucg4.read.networks import query_of_models

        models = {name: read_model(path) for name, path in several.items()}
        with _blaming(os.fspath(vnnlib)):
            return query_of_models(models, text)
    if len(several) > 1:
        raise InputError(f"{os.fspath(vnnlib)}: a property of version 1.0 speaks of one network, not {len(several)}")
    onnx = next(iter(several.values()), onnx)
    return model_of(onnx, shapes).under(Property(text, os.fspath(vnnlib)))


def model_of(path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]] | None = None) -> Model:
    """The model in a network file, for several properties. Raises `InputError` naming the file."""
    data, original = read_model(path)
    return Model(data, os.fspath(path), original, shapes)


def property_of(path: str | os.PathLike[str]) -> Property:
    """The property in a file, for several networks. Raises `InputError` naming the file."""
    return Property(read_text(path), os.fspath(path))


def read_model(path: str | os.PathLike[str]) -> tuple[bytes, Original | None]:
    """A network file's bytes with all its weights, and what it is made of where these lie in other files.

    Raises `InputError` naming the file.
    """
    data = read_bytes(path)
    if EXTERNAL not in data:
        return data, None
    from mucg4.read.external import assembled

    with _blaming(os.fspath(path)):
        return assembled(data, Path(path).parent, read_stored)


def query_of(
    data: bytes,
    text: str,
    onnx: str = "the network",
    vnnlib: str = "the property",
    original: Original | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Query:
    """The query of an ONNX model's bytes and a property's text; `onnx`, `vnnlib` are what errors call them."""
    return Model(data, onnx, original, shapes).under(Property(text, vnnlib))


class Property:
    """A property's text, parsed once for all networks that it is asked of; `name` is what errors call it."""

    def __init__(self, text: str, name: str = "the property") -> None:
        self.text, self.name = text, name
        self._cases: dict[str, tuple[Case, ...]] = {}  # by the networks' element type

    @cached_property
    def version_2(self) -> bool:
        """True for a text of VNN-LIB 2.0."""
        return _is_version_2(self.text)

    @cached_property
    def parsed(self) -> ParsedProperty:
        """The text of version 1.0. Raises `InputError`."""
        with _blaming(self.name), resting():
            return parse_vnnlib(self.text)

    def of(self, network: Network) -> Query:
        """The query of the parsed text and a network. Raises `InputError`."""
        prop = self.parsed
        for stated, has, word in (
            (prop.inputs, network.input_size, "inputs"),
            (prop.outputs, network.output_size, "outputs"),
        ):
            if stated > has or (stated < has and word == "inputs"):
                raise InputError(f"{self.name}: declares {stated} {word}, but the network has {has}")
        limited = ""
        with _blaming(self.name):
            try:
                cases = self._stated(network)
            except UnboundedError as error:
                from mucg4.read.unbounded import open_cases

                cases, limited = open_cases(self._declared(network), network, str(error))
            except ProductError:
                if network.integers:
                    raise
                from mucg4.read.products import query_of_products

                return query_of_products(network, self._declared(network), self.text)
        source = hashlib.sha256(self.text.encode()).hexdigest()
        return Query((network,), cases, source_hash=source, text=self.text, limited=limited)

    def _declared(self, network: Network) -> ParsedProperty:
        return replace(self.parsed, outputs=network.output_size)  # outputs not declared are not asked about

    def _stated(self, network: Network) -> tuple[Case, ...]:
        """The cases; variants of a network share them."""
        key = f"{network.element_type} {network.output_size}"
        if key not in self._cases:
            with resting():
                self._cases[key] = to_cases(self._declared(network), network.element_type)
        return self._cases[key]


class Model:
    """An ONNX model's bytes, read once for all properties that are asked of it; `name` is what errors call it.

    `original` and `shapes` as for `query_of`.
    """

    def __init__(
        self,
        data: bytes,
        name: str = "the network",
        original: Original | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.data, self.name, self.original, self.shapes = data, name, original, shapes
        self._networks: dict[int, Network] = {}  # by the number of inputs that a property declares

    def under(self, prop: Property) -> Query:
        """The query of this model and a property. Raises `InputError`."""
        if prop.version_2:
            from mucg4.read.networks import query_of_models

            with _blaming(prop.name):
                return query_of_models({"": (self.data, self.original)}, prop.text)
        inputs = prop.parsed.inputs
        if inputs not in self._networks:
            from mucg4.read.onnx import read_network

            with _blaming(self.name):
                self._networks[inputs] = read_network(self.data, self.original, inputs, self.shapes)
        query = prop.of(self._networks[inputs])
        with _blaming(self.name):
            _look_at_integers(self._networks[inputs], query.cases)
        return query


def _look_at_integers(network: Network, cases: Sequence[Case]) -> None:
    """Raises where inputs that are whole numbers may be so large that the model rounds them."""
    if network.integers and any(
        bool((case.box.lo < -LARGEST_WHOLE).any() or (case.box.hi > LARGEST_WHOLE).any()) for case in cases
    ):
        raise UnsupportedError(f"inputs of type {network.integers} beyond {LARGEST_WHOLE}, which float32 rounds")


def _is_version_2(text: str) -> bool:
    if "declare-network" not in text:
        return False
    from mucg4.read.vnnlib2 import is_version_2

    return is_version_2(text)


def _is_text(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts as a property does."""
    try:
        start = read_bytes(path)[:4096]
    except InputError:
        return False
    return start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"(", b";") and b"\0" not in start


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Put the name of the file at fault in front of an error's text."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{name}: {error}") from error


def read_instances(path: str | os.PathLike[str]) -> list[Instance]:
    """The rows `onnx,vnnlib,timeout` of a list, or of `instances.csv` in a folder.

    Blank lines and a header line are skipped; paths are relative to the list's folder. Raises
    `InputError` with the line number for any other row, and when there is no row at all.
    """
    source = Path(path)
    if source.is_dir():
        source = source / "instances.csv"
    import csv
    import io

    text = read_text(source)
    rows = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    out: list[Instance] = []
    try:
        for row in rows:
            cells = [c.strip() for c in row]
            header = not out and [c.lower() for c in cells[:2]] == ["onnx", "vnnlib"]
            if any(cells) and not header:
                out.append(_instance(cells, source.parent, f"{source}: line {rows.line_num}"))
    except csv.Error as error:
        raise InputError(f"{source}: line {rows.line_num}: {error}") from error
    if not out:
        raise InputError(f"{source}: no instances")
    return out


def _instance(cells: list[str], folder: Path, place: str) -> Instance:
    if len(cells) != 3 or not all(cells):
        raise InputError(f"{place}: expected the three columns onnx,vnnlib,timeout")
    onnx, vnnlib, limit = cells
    try:
        timeout = float(limit)
    except ValueError:
        raise InputError(f"{place}: the timeout {limit!r} is not a number") from None
    if not (math.isfinite(timeout) and timeout > 0):
        raise InputError(f"{place}: the timeout {limit!r} is not a positive number")
    several = network_paths(onnx)
    network = Path(repr([(n, str(folder / p)) for n, p in several.items()])) if several else folder / onnx
    return Instance(network, folder / vnnlib, timeout, onnx, vnnlib)


def network_paths(text: str) -> dict[str, str]:
    """The paths by name in a list literal `[('f', 'a.onnx'), ...]`; empty for a plain path."""
    if not text.startswith("["):
        return {}
    import ast

    try:
        pairs = [(str(name), str(path)) for name, path in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError) as error:
        raise InputError(f"{text}: not a list of (name, path) pairs") from error
    if len(dict(pairs)) != len(pairs) or not pairs:
        raise InputError(f"{text}: each network needs a name of its own")
    return dict(pairs)
