"""The packed form of proofs: what the checker of a run is handed, and what the store keeps.

The bytes are MAGIC, the length of the head (4 bytes, little-endian), the head (JSON, padded with spaces so that the
body starts at a multiple of 8), and the body: the columns of COLUMNS one after the other, as they are or packed as one
zstandard frame (a zlib stream in older files). The head states format, version, the hashes and notes of the proof, its
number of leaves, how the body is packed, the size it has unpacked, and of each column that is not empty the number type
and the number of entries. Everything that a proof has several of is one column over all trees: structures of arrays, in
which counts, never offsets, say what belongs to whom. So nothing can overlap, and whatever the counts do not use up is
an error. For the store, columns are written in the narrowest type that holds all their numbers exactly.

Nothing is believed: lengths, types and sizes are validated before anything is made of them, the numbers as those of
the text format (`mucg4.model.proof_text`) are, and what is malformed is a `ProofError`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from mucg4.errors import ProofError
from mucg4.limits.foreign import (
    fields_of,
    inflate,
    items,
    json_value,
    member,
    packed,
    shallow,
    size_text,
    text_of,
    unpack,
    whole,
)
from mucg4.model.proof import Cuts, Proof, Tightening, Tree
from mucg4.model.proof_text import LARGEST
from mucg4.model.refutations import TYPES, Alpha, Refutations
from mucg4.ops.arrays import AnyArray
from mucg4.records import dataclass

FORMAT = "mucg4-packed-proof"
MAGIC = b"mp1\n"
VERSION = 1  # of the format; given
LARGEST_HEAD = 2**24  # bytes; not measured
EVERY = -1  # among the numbers of conjunctions: the tree answers for all; not measured

_TREE = {"node": "i4", "index": "i4", "threshold": "f8", "left": "i4", "right": "i4", "refresh": "u1", "clip": "u1"}
_PER_TREE = ("case", "nodes", "refutations", "tightenings", "cuts", "conjunctions")
_TIGHTENING = {"index": "i4", "side": "i1", "weights": "f8", "literals": "i4", "beta": "f8", "cuts": "i4"}
_PER_TIGHTENING = ("at", "conjunction", "node", "rows", "constraints", "literals", "cuts", "slopes")
_SLOPES = {"node": "i4", "count": "i4", "index": "i4", "value": "u1"}
_PER_CUTS = ("node", "rows", "after", "shares")

COLUMNS: dict[str, str] = {  # with the widest type of each
    **{f"tree.{name}": "i4" for name in _PER_TREE},
    "tree.answers": "i4",
    **{f"node.{name}": code for name, code in _TREE.items()},
    **{f"refutation.{name}": np.dtype(kind).str[1:] for name, kind in TYPES.items()},
    **{f"tightening.{name}": "i4" for name in _PER_TIGHTENING},
    **{f"row.{name}": code for name, code in _TIGHTENING.items()},
    "row.cut_weights": "f8",
    **{f"slope.{name}": code for name, code in _SLOPES.items()},
    **{f"cut.{name}": "i4" for name in _PER_CUTS},
    "cut.index": "i4",
    **{f"share.{name}": code for name, code in _SLOPES.items()},
}
_NARROWER = {"f8": ("f4",), "i4": ("i1", "i2")}
_ORDER = sorted(COLUMNS, key=lambda name: -int(COLUMNS[name][1]))  # wide ones first: they stay aligned


# ---- writing -----------------------------------------------------------------------------------


def to_packed(proof: Proof, level: int | None = None) -> bytes:
    """The packed form; with a `level` of zstandard narrowed and compressed, for the store.

    Raises `ProofError` for refutations that fit in no arrays.
    """
    columns = _columns(proof)
    arrays = []
    for name in _ORDER:
        array = np.ascontiguousarray(columns[name], dtype="<" + COLUMNS[name])
        arrays.append(array if level is None else _narrowed(array, COLUMNS[name]))
    body: Any = b"".join(a.tobytes() for a in arrays)
    head = {
        "format": FORMAT,
        "version": VERSION,
        "network": proof.network,
        "property": proof.property,
        "source": proof.source,
        "notes": proof.notes,
        "leaves": proof.leaves,
        "packing": "none" if level is None else "zstd",
        "size": len(body),
        "columns": {name: [a.dtype.str[1:], len(a)] for name, a in zip(_ORDER, arrays, strict=True) if len(a)},
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-(len(MAGIC) + 4 + len(text)) % 8)
    content = body if level is None else packed(body, level)
    return b"".join([MAGIC, len(text).to_bytes(4, "little"), text, content])


def _narrowed(array: AnyArray, code: str) -> AnyArray:
    """The array in the narrowest type that holds every number exactly."""
    for narrow in _NARROWER.get(code, ()):
        with np.errstate(all="ignore"):
            small = array.astype("<" + narrow)
        if np.all(small == array) or (code[0] == "f" and np.array_equal(small, array, equal_nan=True)):
            return small
    return array


def _columns(proof: Proof) -> dict[str, AnyArray]:
    """Each column's array; empty ones are those of no entries."""
    trees = proof.trees
    answers = [None if t.conjunctions is None else list(t.conjunctions) for t in trees]
    out: dict[str, Any] = {name: np.zeros(0, dtype="<" + code) for name, code in COLUMNS.items()}
    held = [(t.case, len(t), len(t.refutations), len(t.tightenings), len(t.cuts)) for t in trees]
    rows = [(*h, EVERY if a is None else len(a)) for h, a in zip(held, answers, strict=True)]
    _put_counts(out, "tree", _PER_TREE, rows)
    _put(out, "tree.answers", [np.array(a, dtype=np.int64) for a in answers if a])
    for name in _TREE:
        _put(out, f"node.{name}", [getattr(t, name) for t in trees])
    table = Refutations.join([t.table for t in trees])
    for name in TYPES:
        out[f"refutation.{name}"] = getattr(table, name)
    _put_tightenings(out, [t for tree in trees for t in tree.tightenings])
    _put_cuts(out, [c for tree in trees for c in tree.cuts])
    return out


def _put(out: dict[str, Any], name: str, parts: Sequence[AnyArray]) -> None:
    """Fill a column, parts row by row; raises `ProofError` for numbers that its type does not hold."""
    if not parts:
        return
    wide = np.concatenate([np.reshape(p, -1) for p in parts])
    with np.errstate(all="ignore"):
        found = wide.astype("<" + COLUMNS[name], copy=False)
    if wide.dtype != found.dtype and not np.array_equal(wide, found, equal_nan=found.dtype.kind == "f"):
        raise ProofError("a proof has a number that is out of range")
    out[name] = found


def _put_counts(out: dict[str, Any], group: str, names: Sequence[str], rows: Sequence[tuple[int, ...]]) -> None:
    """Fill the columns of whole numbers, one per row."""
    for name, values in zip(names, zip(*rows, strict=True), strict=False):
        try:
            _put(out, f"{group}.{name}", [np.array(values, dtype=np.int64)])
        except OverflowError:
            raise ProofError("a proof has a number that is out of range") from None


def _put_slopes(out: dict[str, Any], group: str, slopes: list[Alpha]) -> None:
    _put_counts(out, group, ("node", "count"), [(int(a.node), len(a.index)) for a in slopes])
    _put(out, f"{group}.index", [a.index for a in slopes])
    _put(out, f"{group}.value", [a.value for a in slopes])


def _put_tightenings(out: dict[str, Any], tightenings: list[Tightening]) -> None:
    rows = [
        (int(t.at), int(t.conjunction), int(t.node), len(t.index), t.weights.shape[1], len(t.literals), len(t.cuts))
        + (len(t.alpha),)
        for t in tightenings
    ]
    _put_counts(out, "tightening", _PER_TIGHTENING, rows)
    for name in (*_TIGHTENING, "cut_weights"):
        _put(out, f"row.{name}", [getattr(t, name) for t in tightenings])
    _put_slopes(out, "slope", [a for t in tightenings for a in t.alpha])


def _put_cuts(out: dict[str, Any], cuts: list[Cuts]) -> None:
    rows = [(int(c.node), len(c.index), int(c.after), len(c.shares)) for c in cuts]
    _put_counts(out, "cut", _PER_CUTS, rows)
    _put(out, "cut.index", [c.index for c in cuts])
    _put_slopes(out, "share", [s for c in cuts for s in c.shares])


# ---- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Head:
    """What a packed proof says about itself, without unpacking it. `start` is where the body begins."""

    network: str
    property: str
    source: str
    notes: dict[str, Any]
    leaves: int
    packing: str
    size: int
    columns: tuple[tuple[str, int], ...]
    start: int


def is_packed(blob: bytes) -> bool:
    """True for bytes that claim to be a packed proof."""
    return blob[: len(MAGIC)] == MAGIC


def unpacked_bytes(blob: bytes) -> int:
    """Bytes of a packed proof's columns in their own types: what `most` limits."""
    return sum(int(COLUMNS[name][1]) * n for name, (_, n) in zip(_ORDER, head_of(blob).columns, strict=True))


def head_of(blob: bytes, most: int = LARGEST) -> Head:
    """The head of a packed proof; raises `ProofError`, also for more than `most` bytes in the columns' own types."""
    try:
        if not is_packed(blob):
            raise ProofError("not a packed mucg4 proof")
        start = len(MAGIC) + 4 + int.from_bytes(blob[4:8], "little")
        if start > min(len(blob), LARGEST_HEAD):
            raise ProofError("malformed proof: its head is longer than it may be")
        data = fields_of(json_value(bytes(blob[8:start])), "the head")
        if data.get("format") != FORMAT:
            raise ProofError("not a packed mucg4 proof")
        version = whole(member(data, "version"), "version", high=10**9)
        if version != VERSION:
            raise ProofError(f"packed proof version {version} is not supported (this is {VERSION})")
        columns = _stated_columns(fields_of(member(data, "columns"), "columns"))
        size = whole(member(data, "size"), "size")
        if sum(int(COLUMNS[name][1]) * count for name, (_, count) in zip(_ORDER, columns, strict=True)) > most:
            raise ProofError(f"malformed proof: more than {size_text(most)} when unpacked")
        if size != sum(int(code[1]) * count for code, count in columns):
            raise ProofError("malformed proof: the columns do not fit its size")
        network, prop, source, packing = (
            text_of(member(data, k), k) for k in ("network", "property", "source", "packing")
        )
        if packing not in ("none", "zlib", "zstd"):
            raise ProofError("malformed proof: its body is packed in an unknown way")
        notes = shallow(fields_of(member(data, "notes"), "notes"), "notes")
        leaves = whole(member(data, "leaves"), "leaves")
        return Head(network, prop, source, notes, leaves, packing, size, columns, start)
    except (ValueError, OverflowError) as error:
        raise ProofError(f"malformed proof: {error}") from error
    except MemoryError:
        raise ProofError("malformed proof: too large for the memory") from None


def _stated_columns(stated: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    """Number type and length of each column, in the order of the body."""
    if not stated.keys() <= COLUMNS.keys():
        raise ValueError("it has an unknown column")
    return tuple(_stated_column(stated[n], n) if n in stated else (COLUMNS[n], 0) for n in _ORDER)


def _stated_column(value: Any, name: str) -> tuple[str, int]:
    pair = items(value, f"column {name}")
    if len(pair) != 2:
        raise ValueError(f"column {name} is no pair of type and length")
    code = text_of(pair[0], f"the type of column {name}")
    if code != COLUMNS[name] and code not in _NARROWER.get(COLUMNS[name], ()):
        raise ValueError(f"column {name} has numbers of another type")
    return code, whole(pair[1], f"the length of column {name}")


def from_packed(blob: bytes, most: int = LARGEST) -> Proof:
    """Inverse of `to_packed`; raises `ProofError` for anything malformed or with more than `most` bytes unpacked.

    What comes back is as `from_text` promises. Its arrays are read-only: most are views of the bytes.
    """
    head = head_of(blob, most)
    try:
        body: Any = memoryview(blob)[head.start :]
        if head.packing == "zlib":
            body = inflate(bytes(body), head.size)
        elif head.packing == "zstd":
            body = unpack(body, head.size)
        if len(body) != head.size:
            raise ProofError("malformed proof: its body has another size than stated")
        columns = _Columns.of(body, head)
        trees = tuple(_trees(columns))
        columns.finish()
    except ValueError as error:
        raise ProofError(f"malformed proof: {error}") from error
    except MemoryError:
        raise ProofError("malformed proof: too large for the memory") from None
    proof = Proof(head.network, head.property, trees, head.source, head.notes)
    if proof.leaves != head.leaves:
        raise ProofError("malformed proof: its number of leaves is not the stated one")
    return proof


@dataclass(eq=False)
class _Columns:
    """The columns of a body, taken in order; `at` is how much of each was taken."""

    arrays: dict[str, AnyArray]
    at: dict[str, int]

    @staticmethod
    def of(body: Any, head: Head) -> _Columns:
        arrays, start = {}, 0
        for name, (code, count) in zip(_ORDER, head.columns, strict=True):
            array = np.frombuffer(body, "<" + code, count, start)
            start += array.nbytes
            native = array.astype(np.dtype(COLUMNS[name]).newbyteorder("="), copy=sys.byteorder != "little")
            native.flags.writeable = False
            arrays[name] = native
        return _Columns(arrays, dict.fromkeys(arrays, 0))

    def take(self, name: str, count: int) -> AnyArray:
        """The next entries of a column."""
        array, start = self.arrays[name], self.at[name]
        if not 0 <= count <= len(array) - start:
            raise ProofError(f"malformed proof: column {name} has too few entries")
        self.at[name] = start + count
        return array[start : start + count]

    def rows(self, name: str, rows: int, width: int) -> AnyArray:
        """The next `(rows, width)` entries of a column."""
        return self.take(name, rows * width).reshape(rows, width)

    def rest(self, name: str) -> AnyArray:
        """All entries of a column that are left."""
        return self.take(name, len(self.arrays[name]) - self.at[name])

    def all(self, group: str, names: Sequence[str]) -> list[tuple[int, ...]]:
        """All rows of columns that have one entry each."""
        lists = [self.rest(f"{group}.{name}").tolist() for name in names]
        if len(set(map(len, lists))) > 1:
            raise ProofError(f"malformed proof: columns of {group} differ in length")
        return list(zip(*lists, strict=True))

    def finish(self) -> None:
        """Raises `ProofError` where something was left over."""
        for name, array in self.arrays.items():
            if self.at[name] != len(array):
                raise ProofError(f"malformed proof: column {name} has too many entries")


def _trees(columns: _Columns) -> list[Tree]:
    arrays = columns.arrays
    if len({len(arrays[f"node.{name}"]) for name in _TREE}) != 1:
        raise ProofError("malformed proof: columns of node differ in length")
    if any(np.any(arrays[f"node.{name}"] > 1) for name in ("refresh", "clip")):
        raise ProofError("malformed proof: a flag is neither 0 nor 1")
    if any(np.any(arrays[f"node.{name}"] < -1) for name in ("node", "index", "left", "right")):
        raise ProofError("malformed proof: a tree node has a number that is out of range")
    if np.any(arrays["node.index"][arrays["node.left"] >= 0] < 0):
        raise ProofError("malformed proof: a literal has a negative index")
    rows = columns.all("tree", _PER_TREE)
    if any(min(row[:-1]) < 0 for row in rows) or np.any(arrays["tree.answers"] < 0):
        raise ProofError("malformed proof: a tree has a negative number")
    table = Refutations(**{name: columns.rest(f"refutation.{name}") for name in TYPES})
    parts = table.split([row[2] for row in rows])
    tightenings, cuts = iter(_tightenings(columns)), iter(_cuts(columns))
    out = []
    for (case, nodes, _, tightened, cut, answers), own in zip(rows, parts, strict=True):
        fields: dict[str, Any] = {name: columns.take(f"node.{name}", nodes) for name in _TREE}
        fields.update({name: fields[name].view(np.bool_) for name in ("refresh", "clip")})
        conjunctions = None if answers == EVERY else tuple(columns.take("tree.answers", answers).tolist())
        steps, planes = _next(tightenings, tightened, "tightenings"), _next(cuts, cut, "cuts")
        fields.update(tightenings=tuple(steps), cuts=tuple(planes))
        out.append(Tree(**fields, refutations=own, case=case, conjunctions=conjunctions))
    if any(True for _ in (*tightenings, *cuts)):
        raise ProofError("malformed proof: it has tightenings or cuts of no tree")
    return out


def _next(source: Any, count: int, what: str) -> list[Any]:
    found = list(islice(source, max(count, 0)))
    if len(found) != count:
        raise ProofError(f"malformed proof: it has too few {what}")
    return found


def _slopes(columns: _Columns, group: str, counts: Sequence[int], rows: Sequence[int]) -> list[tuple[Alpha, ...]]:
    """Groups of slopes for owners that have so many of them, of so many rows each."""
    stated = iter(columns.all(group, ("node", "count")))
    out = []
    for count, height in zip(counts, rows, strict=True):
        own = []
        for node, width in _next(stated, count, "slopes"):
            if node < 0:
                raise ProofError("malformed proof: slopes of a negative node")
            index = columns.take(f"{group}.index", width)
            own.append(Alpha(node, index, columns.rows(f"{group}.value", height, width)))
        out.append(tuple(own))
    if any(True for _ in stated):
        raise ProofError("malformed proof: it has slopes of nothing")
    return out


def _tightenings(columns: _Columns) -> list[Tightening]:
    stated = columns.all("tightening", _PER_TIGHTENING)
    alphas = _slopes(columns, "slope", [row[-1] for row in stated], [row[3] for row in stated])
    out = []
    for (at, conjunction, node, rows, width, literals, cuts, _), alpha in zip(stated, alphas, strict=True):
        if min(at, conjunction, node) < 0:
            raise ProofError("malformed proof: a tightening has a negative number")
        found = Tightening(
            at,
            conjunction,
            node,
            columns.take("row.index", rows),
            columns.take("row.side", rows),
            columns.rows("row.weights", rows, width),
            alpha,
            columns.take("row.literals", literals),
            columns.rows("row.beta", rows, literals),
            columns.take("row.cuts", cuts),
            columns.rows("row.cut_weights", rows, cuts),
        )
        out.append(found)
    return out


def _cuts(columns: _Columns) -> list[Cuts]:
    stated = columns.all("cut", _PER_CUTS)
    shares = _slopes(columns, "share", [row[3] for row in stated], [row[1] for row in stated])
    out = []
    for (node, rows, after, _), own in zip(stated, shares, strict=True):
        if node < 0:
            raise ProofError("malformed proof: cuts of a negative node")
        out.append(Cuts(node, columns.take("cut.index", rows), own, after))
    return out
