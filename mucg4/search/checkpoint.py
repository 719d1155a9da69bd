"""A file from which an interrupted run goes on: the trees as far as they go, packed as a proof.

Leaves without refutations are open. `mucg4 check` calls such a proof incomplete; a run that is given the file takes it
as it takes every stored proof (`mucg4.reuse.replay`): the independent checker examines it, what it does not accept is
searched. So nothing in the file is believed. It is written atomically, from time to time and at the end.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mucg4 import __version__
from mucg4.errors import InputError, ProofError
from mucg4.files import write_atomic
from mucg4.model.proof import Proof, Tree
from mucg4.model.proof_file import read_proof
from mucg4.model.proof_packed import to_packed
from mucg4.search.standing import Rhythm

if TYPE_CHECKING:
    from mucg4.search.run import Run

FIRST_SAVE, SAVE_SHARE = 10.0, 0.02  # seconds until the first one, and the share of time for all; given
PACKING_LEVEL = 1  # of zstandard; not measured
NOTE = "checkpoint"  # the key of the proof's notes that says what it is


@dataclass
class Checkpoint:
    """The file of one run. `rhythm`: when it is written during the search."""

    path: Path
    rhythm: Rhythm = field(default_factory=lambda: Rhythm(FIRST_SAVE, SAVE_SHARE))

    def read(self, run: Run) -> tuple[Tree, ...]:
        """The trees that an earlier run of the same query left, none where there is no file.

        How long the earlier runs took goes into the statistics. Raises `InputError` for a file that is something else:
        it would be overwritten.
        """
        if not self.path.exists():
            return ()
        try:
            proof = read_proof(self.path, run.budget.poll)
        except ProofError as error:
            raise InputError(f"{self.path} is no checkpoint: {error}; give another file, or remove it") from error
        note = proof.notes.get(NOTE)
        if not isinstance(note, dict):
            raise InputError(f"{self.path} is a proof, but no checkpoint; give another file")
        query = run.query
        for kept, own, what in (
            (proof.network, query.network.fingerprint, "network"),
            (proof.property, query.property_hash, "property"),
        ):
            if kept != own:
                raise InputError(
                    f"{self.path} is the checkpoint of another {what}; give another file "
                    f"(recertify --from {self.path} uses it as a related proof)"
                )
        if not proof.trees:
            return ()
        run.statistics.relation, run.statistics.relation_detail = "identical", "checkpoint"
        run.statistics.resumed_seconds = _seconds(note.get("seconds"))
        run.standing.borrowed = note.get("borrowed") is not False
        share = note.get("open_share")
        left = f", {100 * share:.3g} % open" if isinstance(share, float) else ""
        run.report(f"going on from {self.path}: {proof.leaves} leaves{left}")
        return proof.trees

    def save(self, run: Run) -> None:
        """Write what the run has come to, if that is anything. What goes wrong is a warning; an older file stands."""
        if not run.standing.is_begun:
            return
        began, query, statistics = time.monotonic(), run.query, run.statistics
        try:
            trees = tuple(run.standing.trees(query))
            summary = run.standing.latest = run.standing.summary(query)
            note = {
                "mucg4": __version__,
                "settings": asdict(run.settings),
                "seconds": (statistics.resumed_seconds or 0.0) + run.budget.elapsed(),
                "regions": statistics.regions,
                "borrowed": run.borrows,
                "open_share": summary["open_share"],
            }
            parts = query.network.fingerprint, query.property_hash, trees, query.network.source_hash
            write_atomic(self.path, to_packed(Proof(*parts, {NOTE: note}), PACKING_LEVEL))
        except (OSError, ProofError, MemoryError) as error:
            why = getattr(error, "strerror", None) or str(error) or "out of memory"
            text = f"the checkpoint {self.path} could not be written: {why}"
            if text not in statistics.warnings:
                statistics.warnings.append(text)
        self.rhythm.took(time.monotonic() - began, run.budget.elapsed())

    def remove(self) -> None:
        """Remove the file of a run that has decided. Raises `OSError`."""
        self.path.unlink(missing_ok=True)


def _seconds(value: Any) -> float:
    """A stated number of seconds, 0 for anything else."""
    return float(value) if type(value) in (int, float) and 0 <= value < 1e9 else 0.0
