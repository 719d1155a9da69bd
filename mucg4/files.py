"""Writing files: whole or not at all, in place where that cannot be; records as standard JSON."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from mucg4.errors import InputError


def _plain(value: Any) -> Any:
    """numpy scalars and arrays and paths as JSON values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def _finite(value: Any) -> Any:
    """JSON has no nan or infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def json_text(record: dict[str, Any], indent: int | None = None) -> str:
    """Standard JSON text of a record."""
    return json.dumps(_finite(json.loads(json.dumps(record, default=_plain))), indent=indent)


def temporary_of(path: Path) -> Path:
    """Where `write_atomic` builds the new content of `path`."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.mucg4-{os.getpid()}.tmp")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by a file holding `content`: whoever reads it sees the old or the new content, never a part.

    Raises `OSError`; the old content then still stands.
    """
    temporary = temporary_of(path)
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, os.path.realpath(path))
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _overwrite(path: Path, text: str) -> None:
    """Write over the old bytes before cutting the file, so that a full disk still takes a short answer.

    Raises `OSError` when not all of it could be written; then the file is as it was.
    """
    data = text.encode()
    if path.exists() and not path.is_file():  # a device or pipe has no bytes of its own
        with path.open("wb", buffering=0) as file:
            file.write(data)
        return
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        size, old, done = os.fstat(handle).st_size, os.pread(handle, len(data), 0), 0
        try:
            while done < len(data):
                done += os.pwrite(handle, data[done:], done)
            os.ftruncate(handle, len(data))
        except OSError:
            os.pwrite(handle, old[:done], 0)  # these bytes have their place on the disk
            os.ftruncate(handle, size)
            if new:  # rather no file than an empty one
                path.unlink(missing_ok=True)
            raise
    finally:
        os.close(handle)


def reserve_result(path: Path, word: str) -> None:
    """Put a word into a result file that is missing or empty, while there is room; raises `OSError`.

    What is in the file already stays: a caller may have put its own word there.
    """
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        write_result(path, word)


def write_result(path: Path, text: str) -> None:
    """Write the competition's result file, atomically where the folder allows it.

    A device or pipe, a folder without write permission or a full disk are written in place; should that fail
    half way, the file is left with the word `unknown`. Raises `OSError` when nothing could be written.
    """
    if path.exists() and not path.is_file():
        _overwrite(path, text)
        return
    try:
        write_atomic(path, text)
    except OSError:
        try:
            _overwrite(path, text)
        except OSError:
            _overwrite(path, "unknown\n")


def check_writable(path: Path, what: str) -> None:
    """Raise `InputError` when `path` cannot be written, before any work is done for it."""
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{what} {path} is a folder")
    if not folder.is_dir():
        raise InputError(f"{what} {path}: there is no folder {folder}")
    if not (os.access(path, os.W_OK) if path.exists() else os.access(folder, os.W_OK)):
        raise InputError(f"{what} {path}: no write permission")
