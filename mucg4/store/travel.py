"""Proofs in files, lent to a run like those of a store: what was proved elsewhere re-certifies a variant here.

A proof speaks of the neurons of its network. To find them in a variant, the network's weights are needed: they stand
in the proof file (`enclosed`), or in an ONNX file that is named beside it. Where they are not known, the proof's
neurons are taken by their places, which is right for variants of the same structure. Whatever is lent is a hint: the
run re-establishes it on its own network.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from mucg4.errors import InputError, Mucg4Error, ProofError
from mucg4.limits.foreign import fields_of, text_of
from mucg4.model.network import Network
from mucg4.model.proof import Proof
from mucg4.model.proof_file import read_with_more
from mucg4.model.query import Query
from mucg4.read.instance import Model, Property
from mucg4.records import dataclass
from mucg4.store.codec import network_from_bytes, network_to_bytes
from mucg4.store.store import Store

PARENT = "parent"  # the key of a proof file under which the network and the property stand
ENDINGS = (".json", ".json.gz")  # of proof files in a folder
LARGEST = 2**31  # bytes of a proof that is lent, and of all of them; not measured
UNKNOWN = "its network is not known: its neurons are taken by their places"


@dataclass
class Lent:
    """A store that holds the proofs, and which file each of them is from, by the store's keys.

    What was left out stands among the warnings of the store.
    """

    store: Store
    files: dict[str, Path] = field(default_factory=dict)
    placed: set[str] = field(default_factory=set)  # keys of proofs whose network is not known


def enclosed(query: Query) -> dict[str, Any]:
    """What a proof file holds besides, so that nothing else is needed to use its proof for a variant."""
    return {PARENT: {"network": base64.b64encode(network_to_bytes(query.network)).decode(), "property": query.text}}


def lend(
    query: Query, sources: Iterable[Path], parents: Sequence[Model] = (), poll: Callable[[], None] = lambda: None
) -> Lent:
    """The proofs in `sources`, files or folders of such, as a store for this query.

    `parents` are networks that they may be about. In a folder, files that are no proofs are passed over.
    Raises `ProofError` and `OSError` for a named file that is none, `InputError` for a folder without any.
    """
    out = Lent(Store(":memory:", max_bytes=2 * LARGEST))
    for source in sources:
        if not source.is_dir():
            _add(out, query, source, _read(source, poll), parents)
            continue
        files = [f for f in sorted(source.iterdir()) if f.name.endswith(ENDINGS) and f.is_file()]
        proofs = 0
        for file in files:
            poll()
            try:
                read = _read(file, poll)
            except (ProofError, OSError):
                continue
            proofs += 1
            _add(out, query, file, read, parents)
        if not proofs:
            raise InputError(f"{source}: no proofs in this folder")
    return out


@dataclass(frozen=True, eq=False)
class _Travelled:
    proof: Proof
    network: Network | None
    text: str


def _read(path: Path, poll: Callable[[], None]) -> _Travelled:
    """A proof file. Raises `ProofError` and `OSError`."""
    proof, data = read_with_more(path, poll)
    if PARENT not in data:
        return _Travelled(proof, None, "")
    try:
        held = fields_of(data[PARENT], PARENT)
        packed = base64.b64decode(text_of(held.get("network", ""), "network"), validate=True)
        return _Travelled(proof, network_from_bytes(packed), text_of(held.get("property", ""), "property"))
    except (ValueError, binascii.Error, Mucg4Error) as error:
        raise ProofError(f"malformed proof: {error}") from error


def _add(out: Lent, query: Query, path: Path, read: _Travelled, parents: Sequence[Model]) -> None:
    """Put one proof into the store under the query that it answers; a note where it is of no use."""
    proof = read.proof
    text = query.text if proof.property == query.property_hash else read.text
    if not text and proof.property != query.property_hash:
        out.store.warnings.append(f"{path}: not used: it is for another property, which the file does not hold")
        return
    try:
        asked = _asked(query, read, parents, text)
    except InputError as error:
        out.store.warnings.append(f"{path}: not used: {error}")
        return
    placed = asked is None
    if asked is None:
        if proof.property != query.property_hash:
            out.store.warnings.append(f"{path}: not used: it is for another property of a network that is not known")
            return
        asked, proof = query, replace(proof, network=query.network.fingerprint, source=query.network.source_hash)
        out.store.warnings.append(f"{path}: {UNKNOWN}")
    if (asked.network.fingerprint, asked.property_hash) != (proof.network, proof.property):
        out.store.warnings.append(f"{path}: not used: what stands in the file besides the proof is something else")
        return
    if out.store.save(asked, "unsat", proof=proof, max_proof_bytes=LARGEST):
        out.files[asked.key] = path
        out.placed |= {asked.key} if placed else set()


def _asked(query: Query, read: _Travelled, parents: Sequence[Model], text: str) -> Query | None:
    """The query that the proof answers; None when its network is not known. Raises `InputError`."""
    proof = read.proof
    same = proof.property == query.property_hash
    if proof.network == query.network.fingerprint:
        return query if same else Property(text).of(query.network)
    if read.network is not None:
        if same:
            return replace(query, networks=(read.network,), joint=None, text="")
        return Property(text).of(read.network)
    for parent in parents:
        found = parent.under(Property(text))
        if found.network.fingerprint == proof.network:
            return found
    return None
