"""A stored result that may help a query: what is known at once, and what is loaded when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from functools import cached_property
from typing import TypeVar

import numpy as np

from mucg4.errors import ProofError, StoreError
from mucg4.limits.foreign import plausible
from mucg4.model.network import Network
from mucg4.model.proof import Proof
from mucg4.model.proof_packed import from_packed, is_packed
from mucg4.model.proof_text import from_bytes
from mucg4.ops.arrays import FloatArray
from mucg4.records import dataclass
from mucg4.store.codec import Asked, Names, asked_from_bytes, network_from_bytes
from mucg4.store.kept import Kept

BOX_RELATIONS = ("equal", "inside", "contains", "overlaps", "disjoint")
"""How the query's boxes lie to the stored ones, most helpful first (`inside`: the query's box is smaller)."""

LARGEST_PROOF = 2**27  # most bytes of a stored proof when unpacked; not measured
T = TypeVar("T")
Boxes = Sequence[tuple[FloatArray, FloatArray]]


@dataclass(frozen=True, eq=False)
class Related:
    """One candidate of `Store.related`. An untrusted hint: whatever is taken from it has to be re-established.

    `word` is `unsat` (then `proof` holds a proof for the stored network and property) or `sat` (then
    `witness_x` holds the witness's input). `boxes` are float64 `(lo, hi)` per case. The lazily loaded
    parts are None (`boxes`, `names`: empty) when the stored bytes are damaged, foreign or gone; `broken(what, key,
    why)` is called for those that are there and of no use.
    """

    key: str
    word: str
    fingerprint: str
    property_hash: str
    sources: tuple[str, ...]  # SHA-256 of the ONNX files this network was read from
    same_unsafe: bool
    box_relation: str  # of BOX_RELATIONS
    distance: float  # between weight sketches; 0 for the same network
    leaves: int
    regions: int
    scratch_seconds: float | None
    load: Callable[[str, str], bytes | None] = field(repr=False)  # (what, key) -> blob
    broken: Callable[[str, str, str], None] = field(default=lambda what, key, why: None, repr=False)
    kept: Kept = field(default_factory=Kept, repr=False)  # what the store's results before this one needed too

    @cached_property
    def proof(self) -> Proof | None:
        """The stored proof of an `unsat` entry."""
        found = self._decoded("evidence", self.key, stored_proof) if self.word == "unsat" else None
        if found is None:
            return None
        if (found.network, found.property, found.leaves) != (self.fingerprint, self.property_hash, self.leaves):
            self.broken("evidence", self.key, "it is for something else")
            return None
        return found

    @cached_property
    def witness_x(self) -> FloatArray | None:
        """The stored witness's input, flat, as it was handed to onnxruntime."""
        return self._decoded("evidence", self.key, witness_from_bytes) if self.word == "sat" else None

    @cached_property
    def network(self) -> Network | None:
        """The stored canonical network (without the ONNX bytes)."""
        found = self._decoded("weights", self.fingerprint, network_from_bytes)
        if found is not None and found.fingerprint != self.fingerprint:
            self.broken("weights", self.fingerprint, "it is another network")
            return None
        return found

    @property
    def boxes(self) -> list[tuple[FloatArray, FloatArray]]:
        """The stored query's boxes, one per case."""
        return self._asked.boxes

    @property
    def names(self) -> Names:
        """The names of the stored query's conjunctions, case by case (`Conjunction.name`); empty: not known."""
        return self._asked.names

    @cached_property
    def _asked(self) -> Asked:
        return self._decoded("boxes", self.key, asked_from_bytes) or Asked([])

    def _decoded(self, what: str, key: str, decode: Callable[[bytes], T]) -> T | None:
        """What a blob holds; None when it is not there or does not decode, which is told to `broken`."""
        blob = self.load(what, key)
        if blob is None:
            return None
        try:
            return self.kept.decoded(what, blob, decode)
        except (StoreError, ProofError) as error:
            self.broken(what, key, str(error))
            return None


def stored_proof(blob: bytes) -> Proof:
    """The proof in a blob; raises `ProofError`. Old stores hold the text format, compressed."""
    most = plausible(blob, LARGEST_PROOF)
    return from_packed(blob, most) if is_packed(blob) else from_bytes(blob, most)


def box_relation(query: Boxes, stored: Boxes) -> str:
    """How the query's boxes lie to the stored ones, case by case; by their hulls when the numbers differ."""
    if not len(query) or not len(stored):
        return "disjoint"
    if len(query) != len(stored):
        query, stored = [hull(query)], [hull(stored)]
    if query[0][0].shape != stored[0][0].shape:
        return "disjoint"
    lo, hi = np.array([b[0] for b in query]), np.array([b[1] for b in query])
    low, high = np.array([b[0] for b in stored]), np.array([b[1] for b in stored])
    if np.array_equal(lo, low) and np.array_equal(hi, high):
        return "equal"
    if np.all(lo >= low) and np.all(hi <= high):
        return "inside"
    if np.all(lo <= low) and np.all(hi >= high):
        return "contains"
    meets = np.all((lo <= high) & (hi >= low), axis=1)
    return "overlaps" if meets.any() else "disjoint"


def hull(boxes: Boxes) -> tuple[FloatArray, FloatArray]:
    """The smallest box around all."""
    return np.min([b[0] for b in boxes], axis=0), np.max([b[1] for b in boxes], axis=0)


def witness_to_bytes(x: FloatArray) -> bytes:
    """Type and values of a flat witness."""
    flat = np.ascontiguousarray(x).reshape(-1)
    if flat.dtype not in (np.float32, np.float64):
        flat = flat.astype(np.float64)
    return bytes(flat.dtype.char, "ascii") + flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()


def witness_from_bytes(blob: bytes) -> FloatArray:
    """Inverse of `witness_to_bytes`; raises `StoreError`."""
    dtype = {b"f": np.float32, b"d": np.float64}.get(blob[:1])
    if dtype is None or (len(blob) - 1) % np.dtype(dtype).itemsize:
        raise StoreError("malformed stored witness")
    x = np.frombuffer(blob, np.dtype(dtype).newbyteorder("<"), offset=1).astype(dtype)
    if not np.all(np.isfinite(x)):
        raise StoreError("malformed stored witness")
    return x
