"""The SQLite file under the store: opening, schema, transactions, and what happens to a damaged file.

Concurrent processes share the file in WAL mode; every change is one transaction, so a killed process
leaves it valid. A newer schema and other programs' databases are refused before SQLite opens the file
for writing, so they stay untouched to the byte. A file SQLite calls damaged is renamed, never deleted.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mucg4.errors import StoreError

SCHEMA = 1  # version of the tables; given
APPLICATION = 0x6D756734  # "mug4": tells a store from another program's database; given
BUSY_SECONDS = 3.0  # a writer waits for another process; not measured
_MAGIC = b"SQLite format 3\x00"
_DAMAGE = ("malformed", "not a database", "file is encrypted", "unsupported file format")

_TABLES = (
    """CREATE TABLE networks (
        fingerprint TEXT PRIMARY KEY, input_size INTEGER NOT NULL, output_size INTEGER NOT NULL,
        signature TEXT NOT NULL, sources TEXT NOT NULL, sketch BLOB NOT NULL, weights BLOB NOT NULL)""",
    """CREATE TABLE results (
        key TEXT PRIMARY KEY, network TEXT NOT NULL, unsafe_hash TEXT NOT NULL, property_hash TEXT NOT NULL,
        verdict TEXT NOT NULL, leaves INTEGER NOT NULL, regions INTEGER NOT NULL, scratch_seconds REAL,
        grade INTEGER NOT NULL, created REAL NOT NULL, last_used REAL NOT NULL, bytes INTEGER NOT NULL,
        boxes_hash TEXT NOT NULL, box_sketch BLOB NOT NULL, boxes BLOB NOT NULL, evidence BLOB NOT NULL)""",
    # Holds the sketches too, so that ranking reads no page with weights.
    "CREATE INDEX networks_sizes ON networks (input_size, output_size, sketch)",
    "CREATE INDEX results_network ON results (network, unsafe_hash, last_used)",
    "CREATE INDEX results_used ON results (last_used, bytes)",
)


class Database:
    """One connection to the store file, or to a database in memory (`path` None).

    `warnings` receives one line for everything that went wrong without ending the run. Raises
    `StoreError` when the file cannot be opened.
    """

    def __init__(self, path: Path | None, warnings: list[str]) -> None:
        self.path, self.warnings, self.read_only = path, warnings, False
        self.until = float("inf")  # on the `time.monotonic` clock: when a running statement is ended
        self._identity: tuple[int, int] | None = None
        self.connection = self._open()

    # --- use -------------------------------------------------------------------------------------------------

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query; raises `sqlite3.Error`."""
        with _readable():
            return self.connection.execute(sql, values).fetchall()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One write transaction; raises `sqlite3.Error`, and then nothing was changed."""
        with _readable():
            self.connection.execute("BEGIN IMMEDIATE")
        try:
            with _readable():
                yield self.connection
                self.connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            raise

    def used_bytes(self) -> int:
        """Bytes of pages in use, by what is written so far in this transaction."""
        pages, free, size = (self.rows(f"PRAGMA {p}")[0][0] for p in ("page_count", "freelist_count", "page_size"))
        return int((pages - free) * size)

    def shrink(self) -> None:
        """Give pages no longer in use back to the file system."""
        while (free := self.rows("PRAGMA freelist_count")[0][0]) > 0:
            # In short steps, so that other processes can write in between; execute() would stop after one page.
            self.connection.executescript("PRAGMA incremental_vacuum(1000)")
            if self.rows("PRAGMA freelist_count")[0][0] >= free:
                break
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def recover(self, error: sqlite3.Error) -> bool:
        """After a failed operation: True when the file was damaged and a usable one is open now."""
        if self.path is None or not _is_damage(error):
            return False
        self.close()
        with suppress(StoreError):
            self._set_aside(self.path, error)
            self.connection = self._open()
            return True
        return False

    def close(self) -> None:
        """Closing twice is harmless."""
        with suppress(sqlite3.Error):
            self.connection.close()

    # --- opening ---------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        if self.path is None:
            connection = sqlite3.connect(":memory:", isolation_level=None)
            _create(connection)
            return connection
        _prepare(self.path)
        for _ in range(3):
            refuse_foreign(self.path)
            try:
                with _readable():
                    return self._connect(self.path)
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise StoreError(f"cannot open the store {self.path}: {error}") from error
                self._set_aside(self.path, error)
        raise StoreError(f"the store {self.path} keeps failing")

    def _connect(self, path: Path) -> sqlite3.Connection:
        self.read_only = path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))
        if self.read_only:
            return self._connect_reading(path)
        connection = self._guarded(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None))
        try:
            self._identity = _identity(path)
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                _create(connection)
            _check(connection, path)
            _use_wal(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA journal_size_limit=16777216")
        except BaseException:
            connection.close()
            raise
        return connection

    def _guarded(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Texts that are no UTF-8 become others, which match nothing; statements end when `until` has passed."""
        connection.text_factory = lambda data: data.decode(errors="replace")
        connection.set_progress_handler(lambda: time.monotonic() > self.until, 100_000)
        return connection

    def _connect_reading(self, path: Path) -> sqlite3.Connection:
        self.warnings.append(f"no write permission for the store {path}: it is read only")
        failure: sqlite3.Error | None = None
        for mode in ("mode=ro", "mode=ro&immutable=1"):  # WAL needs a shared-memory file unless nobody writes
            uri = f"{path.absolute().as_uri()}?{mode}"
            connection = self._guarded(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS))
            try:
                with _readable():
                    _check(connection, path)
                return connection
            except sqlite3.Error as error:
                connection.close()
                failure = error
            except StoreError:
                connection.close()
                raise
        raise StoreError(f"cannot read the store {path}: {failure}") from failure

    def _set_aside(self, path: Path, error: sqlite3.Error) -> None:
        """Rename the damaged file unless another process did, or a second look finds it healthy."""
        with _folder_lock(path.parent):
            if not path.exists() or (self._identity is not None and _identity(path) != self._identity):
                return
            if _healthy(path):
                return
            number = 1
            while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
                number += 1
            try:
                # The main file last: whoever opens meanwhile must not meet a new file beside the old log.
                for suffix in ("-wal", "-shm", ""):
                    if (part := path.with_name(path.name + suffix)).exists():
                        part.rename(target.with_name(target.name + suffix))
            except OSError as failure:
                raise StoreError(f"the store {path} is damaged and cannot be renamed: {failure}") from failure
        self._identity = None
        self.warnings.append(f"the store {path} was damaged ({error}); it was set aside as {target.name}")


@contextmanager
def _readable() -> Iterator[None]:
    """An error of SQLite whose text cannot be read, because it quotes damaged bytes, is an error of SQLite too."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError("malformed text") from error


def refuse_foreign(path: Path) -> None:
    """Raise `StoreError` for a newer schema or another program's database, from the file's header alone."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"cannot read the store {path}: {error.strerror}") from error
    # Three bytes that every SQLite header has: without them it is garbage, whose numbers mean nothing.
    if len(header) == 100 and header.startswith(_MAGIC) and header[21:24] == bytes((64, 32, 32)):
        _judge(path, int.from_bytes(header[68:72], "big"), int.from_bytes(header[60:64], "big"))


def _judge(path: Path, application: int, version: int) -> None:
    if application not in (0, APPLICATION) or (application == 0 and version):
        raise StoreError(f"{path} is a database of another program, not a mucg4 store")
    if version > SCHEMA:
        raise StoreError(f"the store {path} has schema {version}; this mucg4 knows up to {SCHEMA} and leaves it alone")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """What the header told may have changed in the write-ahead log."""
    application, version = (connection.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version"))
    _judge(path, application, version)
    if version == 0:
        raise StoreError(f"{path} is a database of another program, not a mucg4 store")
    # Views, triggers and computed columns of a file that somebody else made could do anything, or go on for ever.
    found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    if sorted(_plain(str(sql)) for (sql,) in found) != sorted(map(_plain, _TABLES)):
        raise StoreError(f"the tables of {path} are not those of a mucg4 store; it is left alone")
    connection.execute("SELECT key FROM results LIMIT 1").fetchall()


def _plain(sql: str) -> str:
    return "".join(sql.split())


def _create(connection: sqlite3.Connection) -> None:
    """Make the tables, unless another process just did; a database with other tables stays as it is."""
    connection.execute("PRAGMA synchronous=OFF")  # losing an empty store to a power cut loses nothing
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        for sql in (*_TABLES, f"PRAGMA application_id={APPLICATION}", f"PRAGMA user_version={SCHEMA}"):
            connection.execute(sql)
    connection.execute("COMMIT")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switching needs a moment without other readers; the busy timeout does not apply to it."""
    for _ in range(20):
        try:
            if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":
                return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) and "busy" not in str(error):
                raise
        time.sleep(0.01)


def _prepare(path: Path) -> None:
    """Make the parent folders; raise `StoreError` when the path cannot hold a store."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise StoreError(f"the store {path} is not a regular file")
        if not path.exists() and not os.access(path.parent, os.W_OK):
            raise StoreError(f"no write permission for the store's folder {path.parent}")
    except OSError as error:
        raise StoreError(f"cannot use the store {path}: {error.strerror}") from error


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _is_damage(error: sqlite3.Error) -> bool:
    return isinstance(error, sqlite3.DatabaseError) and any(text in str(error) for text in _DAMAGE)


def _healthy(path: Path) -> bool:
    """A second look with a fresh connection, so that a passing failure never costs a healthy file."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        with _readable():
            return bool(connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)])
    except sqlite3.OperationalError as error:
        return not _is_damage(error)  # locked, for example
    except sqlite3.DatabaseError:
        return False
    finally:
        connection.close()


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Only one process at a time renames; without file locks (Windows) the second look has to do."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock: Callable[[int, int], None] = fcntl.flock
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
