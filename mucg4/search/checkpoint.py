"""A file from which an interrupted run goes on: the trees as far as they go, packed as a proof.

Leaves without refutations are open. `mucg4 check` calls such a proof incomplete; a run that is given the file takes it
as it takes every stored proof (`mucg4.reuse.replay`): the independent checker examines it, what it does not accept is
searched. So nothing in the file is believed. It is written atomically, from time to time and at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

from mucg4.errors import InputError, ProofError
from mucg4.files import write_atomic
from mucg4.model.proof import Proof
from mucg4.model.query import Query
from mucg4.records import dataclass

FIRST_SAVE, SAVE_SHARE = 10.0, 0.02  # seconds until the first one, and the share of time for all; given
PACKING_LEVEL = 1  # of zstandard; not measured
NOTE = "checkpoint"  # the key of the proof's notes that says what it is


@dataclass
class Rhythm:
    """When something is done again that costs time: first after `first` seconds, then within a `share` of the time."""

    first: float
    share: float
    _next: float = -1.0

    def due(self, elapsed: float) -> bool:
        """Whether it is time, `elapsed` seconds after the run began."""
        return elapsed >= max(self.first, self._next)

    def took(self, seconds: float, elapsed: float) -> None:
        """It was done, and took so long."""
        self._next = elapsed + max(self.first, seconds / self.share)


@dataclass
class Checkpoint:
    """The file of one run. `rhythm`: when it is written during the search."""

    path: Path
    rhythm: Rhythm = field(default_factory=lambda: Rhythm(FIRST_SAVE, SAVE_SHARE))

    def read(self, query: Query, poll: Callable[[], None]) -> tuple[Proof, dict[str, Any]] | None:
        """What an earlier run of the same query left, and its note; None where there is no file.

        Raises `InputError` for a file that is something else: it would be overwritten.
        """
        if not self.path.exists():
            return None
        from mucg4.model.proof_file import read_proof  # most runs have no checkpoint

        try:
            proof = read_proof(self.path, poll)
        except ProofError as error:
            raise InputError(f"{self.path} is no checkpoint: {error}; give another file, or remove it") from error
        note = proof.notes.get(NOTE)
        if not isinstance(note, dict):
            raise InputError(f"{self.path} is a proof, but no checkpoint; give another file")
        for kept, own, what in (
            (proof.network, query.network.fingerprint, "network"),
            (proof.property, query.property_hash, "property"),
        ):
            if kept != own:
                raise InputError(
                    f"{self.path} is the checkpoint of another {what}; give another file "
                    f"(recertify --from {self.path} uses it as a related proof)"
                )
        return proof, note

    def write(self, proof: Proof, note: dict[str, Any]) -> None:
        """Replace the file. Raises `OSError` and `ProofError`; the old one then stands."""
        from mucg4.model.proof_packed import to_packed

        content = Proof(proof.network, proof.property, proof.trees, proof.source, {NOTE: note})
        write_atomic(self.path, to_packed(content, PACKING_LEVEL))

    def remove(self) -> None:
        """Remove the file of a run that has decided. Raises `OSError`."""
        self.path.unlink(missing_ok=True)
