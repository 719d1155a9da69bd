"""A result kept as a reference: its proof is that of another result, which was re-established unchanged.

A row of the results with the grade GRADE, whose evidence names the result that holds the proof. It has no weights and
no boxes: it is found by its own query's key alone, and then the other result is offered in its place. One whose other
result has gone is no result.
"""

from __future__ import annotations

from mucg4.errors import StoreError

GRADE = -1  # of a reference; proofs have grades from 0; given
_MAGIC = b"mr1\n"
_LONGEST = 64  # characters of a key: hex SHA-256; given
HOLDER = f"SELECT key, verdict, grade, CASE WHEN grade = {GRADE} THEN evidence END FROM results WHERE key = ?"
"""What a reference may refer to, or a reference itself with its evidence."""
LOST = (
    f"DELETE FROM results WHERE grade = {GRADE}"
    f" AND CAST(substr(evidence, {len(_MAGIC) + 1}) AS TEXT) NOT IN (SELECT key FROM results)"
)


def reference_to(key: str) -> bytes:
    """The evidence of a reference to this key."""
    return _MAGIC + key.encode()


def referred(evidence: bytes) -> str:
    """Inverse of `reference_to`; raises `StoreError`."""
    key = evidence[len(_MAGIC) :]
    if not evidence.startswith(_MAGIC) or not key.isalnum() or len(key) > _LONGEST:
        raise StoreError("malformed stored reference")
    return key.decode()
