"""The proof store: results by content, found again for related networks and properties.

Entries are untrusted hints. Nothing here can cost a verdict: `save` and `related` turn every failure into a warning;
only opening the file and the maintenance calls raise `StoreError`. An entry that does not decode is a miss, with one
warning per kind and run, and the next result of the same query or network takes its place.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from mucg4.errors import StoreError
from mucg4.limits.foreign import plausible
from mucg4.model.network import Network
from mucg4.model.proof import Proof
from mucg4.model.proof_packed import to_packed, unpacked_bytes
from mucg4.model.query import Query
from mucg4.ops.arrays import FloatArray
from mucg4.records import dataclass
from mucg4.store import reference
from mucg4.store.codec import Asked, asked_to_bytes, boxes_hash, network_to_bytes
from mucg4.store.database import Database
from mucg4.store.kept import Kept
from mucg4.store.related import LARGEST_PROOF, Related, hull, witness_to_bytes
from mucg4.store.select import select_related
from mucg4.store.sketch import SIZE, box_sketch, network_sketch

MAX_BYTES = 512 * 2**20  # of one store file; not measured
# share of the store that eviction leaves: what goes at a time is what this leaves free, so that no save pays for many;
# not measured
KEPT = 0.99
ROUND = 64  # most results that leave between two looks at the size; not measured
LARGEST_BLOB = 2**28  # bytes of a stored blob that are read at all; not measured
QUIET_SECONDS = 5.0  # most time of one statement of a run (a hostile file can hold anything); not measured
# of zstandard; measured on 13 MB of tightenings and 0.6 MB of a 7 500-leaf proof: 52 ms and 1.5 ms for 39 and 52 % of
# the bytes, read in 20 and 0.8 ms; zlib 1: 226 and 11 ms for 41 and 52 %, read in 67 and 3.3 ms; lz4: half the time of
# zstandard, 48 and 61 %
PACKING_LEVEL = 1
MOST_NAMES = 4096  # conjunctions of a stored query that are named; not measured
_SOURCES = 16  # file hashes remembered per network; not measured
_COLUMNS = {"evidence": ("results", "key"), "boxes": ("results", "key"), "weights": ("networks", "fingerprint")}
T = TypeVar("T")


def default_path() -> Path:
    """`mucg4/store.sqlite` in the user's cache folder."""
    from platformdirs import user_cache_path

    return Path(user_cache_path("mucg4", appauthor=False)) / "store.sqlite"


def cases_folder() -> Path:
    """Where runs leave the cases of their own failures: beside the store, in the user's cache folder."""
    return default_path().with_name("cases")


@dataclass(frozen=True)
class Entry:
    """One stored result as `mucg4 store list` shows it; times are seconds since the epoch."""

    key: str
    word: str
    network: str
    property_hash: str
    input_size: int
    output_size: int
    leaves: int
    regions: int
    scratch_seconds: float | None
    created: float
    last_used: float
    bytes: int
    refers_to: str = ""  # the key of the result that holds the proof, when it is kept as a reference; no sizes then


class Store:
    """Results in one SQLite file, shared by concurrent processes; a context manager.

    `path`: the file (made with its parents when absent), None for `default_path()`, ":memory:" for none.
    `max_bytes` bounds the pages in use; the least recently used results leave first. `warnings` collects
    one line per failure. Raises `StoreError` when the file cannot be used: no permission, a newer schema
    (left untouched), another program's database (the same). A damaged file is set aside under another name.
    """

    def __init__(self, path: Path | str | None = None, max_bytes: int = MAX_BYTES) -> None:
        self.warnings: list[str] = []
        self.max_bytes = max_bytes
        self.path = None if str(path) == ":memory:" else Path(path) if path is not None else default_path()
        self._used: set[str] = set()
        self._broken: set[tuple[str, str]] = set()  # (what, key) that did not decode: the next result replaces it
        self._warned: set[str] = set()  # kinds of warnings that were given
        self._kept = Kept()
        self._database = Database(self.path, self.warnings)

    @staticmethod
    def open(path: Path | str | None = None, max_bytes: int = MAX_BYTES) -> Store:
        """The same as the constructor."""
        return Store(path, max_bytes)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Note which entries were used, and close. Closing twice is harmless."""
        if self._used and not self._database.read_only:
            try:
                with self._database.change() as connection:
                    self._flush_used(connection)
            except sqlite3.Error:
                self._used.clear()  # only the order of eviction depends on it
        self._database.close()

    # --- results ---------------------------------------------------------------------------------------------

    def save(
        self,
        query: Query,
        word: str,
        *,
        proof: Proof | None = None,
        witness_x: FloatArray | None = None,
        scratch_seconds: float | None = None,
        regions: int = 0,
        max_proof_bytes: int = 32 * 2**20,
        improved: bool = False,
    ) -> bool:
        """Store `unsat` with its proof, or `sat` with its witness's input; True when it went in.

        A stored result with fewer leaves (or as many and no less evidence) stays, and so does one stored by
        a faster writer. A proof larger than `max_proof_bytes` loses its tightenings and slopes, then its cores,
        then its multipliers, and is left out when the tree alone is too large. `scratch_seconds` is the from-scratch
        time when it is known; None keeps the stored one. `improved`: this proof was made from the stored one
        and takes its place, whatever their leaves, but for one that would lose more of its evidence. Failures give
        False and a warning.
        """
        if (word, proof is not None, witness_x is not None) not in (("unsat", True, False), ("sat", False, True)):
            raise ValueError(f"verdict {word!r} with the wrong evidence")
        if len(query.networks) != 1 or self._read_only("save a result"):
            return False
        evidence, grade = self._evidence(proof, witness_x, min(max_proof_bytes, self.max_bytes // 2))
        if evidence is None:
            self.warnings.append(f"the proof is larger than {max_proof_bytes} bytes and was not stored")
            return False
        facts = (word, proof.leaves if proof else 0, regions, scratch_seconds, grade)
        return self._quiet("saving a result", False, lambda: self._save(query, facts, evidence, improved))

    def save_reference(
        self,
        query: Query,
        parent_key: str,
        *,
        scratch_seconds: float | None = None,
        regions: int = 0,
        leaves: int = 0,
    ) -> bool:
        """Store `unsat` for the query as a reference to the stored result whose proof was re-established unchanged.

        Neither weights nor evidence are copied: `related` offers the other result for this very query, whose proof has
        to be translated again. A reference is no candidate for other queries, and none when the other result has left.
        True when it went in; False when there is nothing to refer to, when a proof of this query is stored already,
        and, with a warning, after a failure.
        """
        if len(query.networks) != 1 or self._read_only("save a result"):
            return False
        facts = (leaves, regions, scratch_seconds)
        return self._quiet("saving a result", False, lambda: self._save_reference(query, parent_key, facts))

    def related(self, query: Query, limit: int = 4, parts: bool = False) -> list[Related]:
        """At most `limit` stored results that may help, the most promising first; [] after a failure.

        Results on the same network under any property, and results with the same unsafe set on networks of
        the same input and output size, ranked by weight sketches, then by how the boxes lie. `parts`: proofs alone,
        and those that answer for a part of the query: the same box or one that meets it, and some conjunction of it.
        """
        if len(query.networks) != 1:
            return []

        def action() -> list[Related]:
            unsafe = unsafe_hash(query)
            found = self._database.rows, self._load, query, unsafe, limit, self._miss, self._kept
            return select_related(*found, query.conjunction_names if parts else None)

        return self._quiet("looking up related results", [], action)

    def holder(self, key: str) -> str | None:
        """The key of the result that holds the proof of this one: itself, or the one it refers to; None: there is none.

        None after a failure, too.
        """
        none: list[tuple[Any, ...]] = []
        rows = self._quiet("looking up a result", none, lambda: self._database.rows(reference.HOLDER, (key,)))
        if not rows or rows[0][2] != reference.GRADE:
            return key if rows else None
        try:
            return reference.referred(rows[0][3])
        except StoreError as error:
            self._miss("evidence", key, str(error))
            return None

    def touch(self, key: str) -> None:
        """Note that an entry was of use; written at the next save or when the store is closed."""
        self._used.add(key)

    # --- maintenance -----------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All results, last used first; raises `StoreError`."""
        sql = (
            "SELECT key, verdict, network, property_hash, coalesce(input_size, 0), coalesce(output_size, 0), leaves,"
            " regions, scratch_seconds, created, last_used, bytes, CASE WHEN grade = ? THEN evidence END"
            " FROM results LEFT JOIN networks ON network = fingerprint WHERE fingerprint IS NOT NULL OR grade = ?"
            " ORDER BY last_used DESC"
        )
        grades = (reference.GRADE, reference.GRADE)
        found = self._loud("listing the store", lambda: self._database.rows(sql, grades))
        sound = [entry for row in found if (entry := _entry(row)) is not None]
        if len(sound) < len(found):
            self._warn("list", f"{len(found) - len(sound)} entries of the store are damaged and not listed")
        return sound

    def show(self, prefix: str) -> tuple[Entry, Related]:
        """The entry whose key starts with `prefix`, and its content; raises `StoreError` when not exactly one does."""
        entries = self.entries()
        found = [e for e in entries if e.key.startswith(prefix)]
        if len(found) != 1:
            raise StoreError(f"{len(found) or 'no'} stored results have a key that starts with {prefix!r}")
        entry = found[0]
        holder = next((e for e in entries if e.key == entry.refers_to), entry)
        content = Related(
            holder.key, holder.word, holder.network, holder.property_hash, (), True, "equal", 0.0,
            holder.leaves, holder.regions, holder.scratch_seconds, self._peek, self._miss, self._kept,
        )  # fmt: skip
        return entry, content

    def gc(self, max_bytes: int | None = None) -> int:
        """Evict the least recently used results until `max_bytes` (default: the store's own limit) suffice.

        Unused networks and references to what has left go too. Returns the number of results evicted; raises
        `StoreError`.
        """
        limit = self.max_bytes if max_bytes is None else max_bytes

        def tidy(connection: sqlite3.Connection) -> int:
            connection.execute(reference.LOST)
            connection.execute("DELETE FROM networks WHERE fingerprint NOT IN (SELECT network FROM results)")
            return self._evict(connection, limit, limit)

        return self._maintain("cleaning the store", tidy)

    def clear(self) -> int:
        """Remove everything; returns the number of results removed; raises `StoreError`."""

        def empty(connection: sqlite3.Connection) -> int:
            removed = connection.execute("DELETE FROM results").rowcount
            connection.execute("DELETE FROM networks")
            return removed

        return self._maintain("clearing the store", empty)

    def used_bytes(self) -> int:
        """Bytes in use in the file; raises `StoreError`."""
        return self._loud("measuring the store", self._database.used_bytes)

    # --- inside ----------------------------------------------------------------------------------------------

    def _save(self, query: Query, facts: tuple[Any, ...], evidence: bytes, improved: bool) -> bool:
        network, now = query.network, time.time()
        word, leaves, regions, scratch, grade = facts
        boxes = [(case.box.lo, case.box.hi) for case in query.cases]
        few = sum(len(case.conjunctions) for case in query.cases) <= MOST_NAMES
        packed = asked_to_bytes(Asked(boxes, query.conjunction_names if few else ()))
        around = box_sketch(*hull(boxes)) if boxes else np.zeros(32, dtype=np.float32)
        with self._database.change() as connection:
            self._flush_used(connection)
            old = connection.execute(
                "SELECT verdict, leaves, grade, scratch_seconds FROM results WHERE key = ?", (query.key,)
            ).fetchone()
            if old is not None and not self._stands(query.key, old):
                old = None
            self._save_network(connection, network)
            better = old is not None and old[2] != reference.GRADE and (old[1], -old[2]) <= (leaves, -grade)
            if old is not None and not improved and old[0] == word and better:
                connection.execute("UPDATE results SET last_used = ? WHERE key = ?", (now, query.key))
                return False
            if improved and old is not None and old[2] > grade:
                self.warnings.append("the proof is too large to be stored with all its evidence: the old one stays")
                return False
            scratch = old[3] if scratch is None and old is not None else scratch
            facts = (word, leaves, regions, scratch, grade)
            kept = self._insert(connection, query, facts, (boxes_hash(boxes), around, packed, evidence))
        if not kept:
            self.warnings.append("the result is too large for the store")
        return kept

    def _save_reference(self, query: Query, parent: str, facts: tuple[Any, ...]) -> bool:
        leaves, regions, scratch = facts
        boxes = [(case.box.lo, case.box.hi) for case in query.cases]
        with self._database.change() as connection:
            self._flush_used(connection)
            found = self._database.rows(reference.HOLDER, (parent,))
            if found and found[0][2] == reference.GRADE:  # references lead to a proof at once
                parent = reference.referred(found[0][3])
                found = self._database.rows(reference.HOLDER, (parent,))
            if not found or found[0][1] != "unsat" or found[0][2] == reference.GRADE:
                return False
            used = "UPDATE results SET last_used = ? WHERE key = ?"
            connection.execute(used, (time.time(), parent))
            old = connection.execute(
                "SELECT verdict, leaves, grade, scratch_seconds FROM results WHERE key = ?", (query.key,)
            ).fetchone()
            if old is not None and not self._stands(query.key, old):
                old = None
            if old is not None and old[0] == "unsat" and old[2] != reference.GRADE:
                connection.execute(used, (time.time(), query.key))
                return False
            scratch = old[3] if scratch is None and old is not None else scratch
            known = ("unsat", leaves, regions, scratch, reference.GRADE)
            around = np.zeros(SIZE, dtype=np.float32)
            held = (boxes_hash(boxes), around, b"", reference.reference_to(parent))
            return self._insert(connection, query, known, held)

    def _insert(
        self, connection: sqlite3.Connection, query: Query, facts: tuple[Any, ...], held: tuple[Any, ...]
    ) -> bool:
        """Put a row of the results in and let others leave for it; False when it was too large itself."""
        now, (where, around, boxes, evidence) = time.time(), held
        size = len(evidence) + len(boxes) + 600
        values = (
            query.key, query.network.fingerprint, unsafe_hash(query), query.property_hash, *facts, now, now, size,
            where, around.tobytes(), boxes, evidence,
        )  # fmt: skip
        connection.execute(f"INSERT OR REPLACE INTO results VALUES ({','.join('?' * len(values))})", values)
        self._evict(connection, self.max_bytes, int(KEPT * self.max_bytes))
        return connection.execute("SELECT 1 FROM results WHERE key = ?", (query.key,)).fetchone() is not None

    def _stands(self, key: str, row: tuple[Any, ...]) -> bool:
        """Whether what is stored for a key can be what it should be."""
        return _is_result(row) and all(k != key for _, k in self._broken)

    def _save_network(self, connection: sqlite3.Connection, network: Network) -> None:
        found = connection.execute(
            "SELECT sources, typeof(weights), typeof(sketch) FROM networks WHERE fingerprint = ?",
            (network.fingerprint,),
        ).fetchone()
        broken = ("weights", network.fingerprint) in self._broken
        if found is None or broken or not isinstance(found[0], str) or found[1:] != ("blob", "blob"):
            row = (
                network.fingerprint, network.input_size, network.output_size, network.signature,
                network.source_hash, network_sketch(network).tobytes(), network_to_bytes(network),
            )  # fmt: skip
            connection.execute("INSERT OR REPLACE INTO networks VALUES (?,?,?,?,?,?,?)", row)
        elif network.source_hash not in (sources := found[0].split(",")):
            text = ",".join([*sources, network.source_hash][-_SOURCES:])
            connection.execute("UPDATE networks SET sources = ? WHERE fingerprint = ?", (text, network.fingerprint))

    def _evict(self, connection: sqlite3.Connection, limit: int, target: int) -> int:
        """Remove results, longest unused first, and networks without results, when more than `limit` is in use.

        What that costs depends on how much has to go, not on how much is stored.
        """
        removed = 0
        if self._database.used_bytes() <= limit:
            return 0
        while (excess := self._database.used_bytes() - target) > 0:
            # In rounds, because an entry's share of the pages (and of its network) is only known afterwards.
            most = min(ROUND, 1 + connection.execute("SELECT count(*) FROM results").fetchone()[0] // 8)
            oldest = connection.execute("SELECT rowid, bytes FROM results ORDER BY last_used, rowid LIMIT ?", (most,))
            rows, total = [], 0
            for row, size in oldest.fetchall():
                rows.append((row,))
                total += max(size, 0) if type(size) is int else 0
                if total >= excess:
                    break
            if not rows:
                connection.execute("DELETE FROM networks WHERE fingerprint NOT IN (SELECT network FROM results)")
                break
            find = "SELECT network FROM results WHERE rowid = ?"
            names = {name for row in rows for (name,) in connection.execute(find, row)}
            connection.executemany("DELETE FROM results WHERE rowid = ?", rows)
            connection.executemany(
                "DELETE FROM networks WHERE fingerprint = ? AND NOT EXISTS (SELECT 1 FROM results WHERE network = ?)",
                [(name, name) for name in names],
            )
            removed += len(rows)
        return removed

    @staticmethod
    def _evidence(proof: Proof | None, witness_x: FloatArray | None, limit: int) -> tuple[bytes | None, int]:
        """The bytes to store and how much of the evidence they hold (3: all of it)."""
        if proof is None:
            assert witness_x is not None
            return witness_to_bytes(witness_x), 3
        for grade, form in lighter_forms(proof):
            if _least_bytes(form) > limit:
                continue
            blob = to_packed(form, PACKING_LEVEL)
            if len(blob) <= limit and unpacked_bytes(blob) <= plausible(blob, LARGEST_PROOF):
                return blob, grade
        return None, 0

    def _load(self, what: str, key: str) -> bytes | None:
        """A blob that is about to be used."""
        if what == "evidence":
            self._used.add(key)
        return self._peek(what, key)

    def _peek(self, what: str, key: str) -> bytes | None:
        table, column = _COLUMNS[what]
        sql = f"SELECT {what} FROM {table} WHERE {column} = ? AND length({what}) <= {LARGEST_BLOB}"
        rows: list[Any] = self._quiet("reading the store", [], lambda: self._database.rows(sql, (key,)))
        if rows and type(rows[0][0]) is not bytes:
            self._miss(what, key, "it holds no bytes")
            return None
        return rows[0][0] if rows else None

    def _miss(self, what: str, key: str, why: str) -> None:
        """Note something stored that is of no use."""
        self._broken.add((what, key))
        self._warn(what, f"a stored entry was not used: {what} of {key[:16]}: {why}")

    def _warn(self, kind: str, text: str) -> None:
        """One warning per kind and run."""
        if kind not in self._warned:
            self._warned.add(kind)
            self.warnings.append(text)

    def _flush_used(self, connection: sqlite3.Connection) -> None:
        now = time.time()
        connection.executemany("UPDATE results SET last_used = ? WHERE key = ?", [(now, k) for k in self._used])
        self._used.clear()

    def _read_only(self, what: str) -> bool:
        if self._database.read_only:
            self.warnings.append(f"cannot {what}: the store is read only")
        return self._database.read_only

    def _quiet(self, what: str, default: T, action: Callable[[], T]) -> T:
        """Run an action; a failure becomes a warning, after a damaged file the action is tried once more."""
        for _ in range(2):
            try:
                self._database.until = time.monotonic() + QUIET_SECONDS
                return action()
            except Exception as error:  # noqa: BLE001 - whatever a file makes of it, no verdict is lost for it
                if isinstance(error, sqlite3.Error) and self._database.recover(error):
                    continue
                self._warn(what, f"{what} failed: {error}")
                return default
            finally:
                self._database.until = float("inf")
        self._warn(what, f"{what} failed: the store keeps failing")
        return default

    def _loud(self, what: str, action: Callable[[], T]) -> T:
        try:
            return action()
        except sqlite3.Error as error:
            raise StoreError(f"{what} failed: {error}") from error

    def _maintain(self, what: str, action: Callable[[sqlite3.Connection], int]) -> int:
        if self._database.read_only:
            raise StoreError(f"{what} failed: no write permission for {self.path}")

        def run() -> int:
            with self._database.change() as connection:
                removed = action(connection)
            self._database.shrink()
            return removed

        return self._loud(what, run)


def unsafe_hash(query: Query) -> str:
    """Equal for queries with the same unsafe sets, case by case, whatever their boxes."""
    return hashlib.sha256("|".join(Query.unsafe_hash_of(case) for case in query.cases).encode()).hexdigest()


def lighter_forms(proof: Proof) -> Iterator[tuple[int, Proof]]:
    """The proof with less and less evidence: all; no tightenings, cuts and slopes; no cores; no multipliers either.

    Tightenings and cuts go first because they are the bulk and nothing without the slopes.
    """
    yield 3, proof
    less: list[str] = ["cut_count"]
    for grade, name in ((2, "group_count"), (1, "core_count"), (0, "beta_count")):
        less.append(name)
        trees = [replace(t, refutations=t.table.without(*less), tightenings=(), cuts=()) for t in proof.trees]
        yield grade, replace(proof, trees=tuple(trees))


def _entry(row: tuple[Any, ...]) -> Entry | None:
    """A row of the listing; None when it is damaged."""
    if not _is_entry(row):
        return None
    try:
        return replace(Entry(*row[:12]), refers_to="" if row[12] is None else reference.referred(row[12]))
    except (StoreError, AttributeError, TypeError):
        return None


def _is_entry(row: tuple[Any, ...]) -> bool:
    """Whether a row of the listing has the types and ranges of `Entry`; SQLite keeps whatever it gets."""
    texts, counts, times = row[:4], (*row[4:8], row[11]), row[9:11]
    scratch = 0.0 if row[8] is None else row[8]
    return (
        all(type(t) is str for t in texts)
        and all(type(n) is int and n >= 0 for n in counts)
        and all(type(t) in (int, float) and 0 <= t < 2**40 for t in (*times, scratch))
    )


def _is_result(row: tuple[Any, ...]) -> bool:
    """Whether verdict, leaves, grade and time of a result are what they should be."""
    word, leaves, grade, scratch = row
    counts = type(leaves) is int and leaves >= 0 and type(grade) is int
    return word in ("sat", "unsat") and counts and (scratch is None or type(scratch) is float and scratch >= 0)


def _least_bytes(proof: Proof) -> int:
    """Fewer bytes than the packed proof can take: spares packing what is far too large."""
    slopes = sum(len(t.table.slope_index) for t in proof.trees)
    return (sum(len(t) for t in proof.trees) + slopes) // 4
