"""Proofs in files: as text (`mucg4.model.proof_text`), which `--proof` writes, or packed, which a checkpoint is."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mucg4.errors import ProofError
from mucg4.limits.foreign import inflate, read_limited
from mucg4.model.proof import Proof
from mucg4.model.proof_packed import from_packed, is_packed
from mucg4.model.proof_text import LARGEST, parsed, to_text


def write_proof(proof: Proof, path: Path, more: dict[str, Any] | None = None) -> None:
    """Write the text form, with `more` keys; gzip when the name ends in .gz."""
    data = to_text(proof, more).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def read_proof(path: Path, poll: Callable[[], None] | None = None) -> Proof:
    """Read either form; raises `ProofError` for malformed content, `OSError` when unreadable.

    `poll` is called now and then while a gzip file is unpacked, and may raise.
    """
    return read_with_more(path, poll)[0]


def read_with_more(path: Path, poll: Callable[[], None] | None = None) -> tuple[Proof, dict[str, Any]]:
    """As `read_proof`, with the whole object in the file: other keys of it are whatever somebody wrote."""
    try:
        data = read_limited(path, LARGEST)
        if data[:2] == b"\x1f\x8b":
            data = inflate(data, LARGEST, gzip=True, poll=poll)
    except ValueError as error:
        raise ProofError(f"malformed proof: {error}") from error
    return (from_packed(data, LARGEST), {}) if is_packed(data) else parsed(data, LARGEST)
