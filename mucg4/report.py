"""What a run writes: the witness text, the result file of the competition, and the JSON run record."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mucg4 import __version__
from mucg4.errors import InputError


def witness_text(x: Any, y: Any) -> str:
    """The witness in VNN-LIB 1.0 grammar: one s-expression, inputs then outputs, one pair per line.

    `x (inputs,)` and `y (outputs,)` are flat, row-major and finite. Every value is printed as the shortest
    decimal of its double, so that it reads back exactly in float32 and in float64.
    """
    pairs = [f"(X_{i} {float(v)!r})" for i, v in enumerate(x)] + [f"(Y_{i} {float(v)!r})" for i, v in enumerate(y)]
    return "(" + "\n".join(pairs) + ")"


def answer_text(word: str, witness: Any = None) -> str:
    """Verdict word and, for `sat`, the witness: the content of stdout and of the result file."""
    return f"{word}\n" if witness is None else f"{word}\n{witness_text(witness.x, witness.y)}\n"


def run_record(verdict: Any, **more: Any) -> dict[str, Any]:
    """The JSON run record of a verdict: its word, reason, witness and statistics in one flat dictionary."""
    record: dict[str, Any] = {"mucg4": __version__, "verdict": verdict.word, "reason": getattr(verdict, "reason", None)}
    witness = getattr(verdict, "witness", None)
    if witness is not None:
        record["witness"] = {"x": [float(v) for v in witness.x], "y": [float(v) for v in witness.y]}
    record.update(verdict.statistics.record())
    record.update(more)
    return record


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


def entry_line(entry: Any) -> str:
    """A stored result (`mucg4.store.store.Entry`) on one line."""
    scratch = "-" if entry.scratch_seconds is None else f"{entry.scratch_seconds:.2f} s"
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
    return (
        f"{entry.key[:16]}  {entry.word:5}  {entry.input_size:>5} -> {entry.output_size:<4}"
        f"  leaves {entry.leaves:>6}  from scratch {scratch:>9}  {entry.bytes / 2**10:>8.1f} KiB  {used}\n"
    )


def stored_text(entry: Any, content: Any) -> str:
    """All about a stored result as JSON: the entry, and its witness or the shape of its proof's trees."""
    record = asdict(entry)
    if entry.word == "sat":
        record["witness_x"] = content.witness_x
    else:
        trees = content.proof.trees if content.proof is not None else ()
        names = ("nodes", "leaves", "depth", "refutations", "tightenings", "cuts")
        shapes = [
            (
                len(t),
                len(t.leaves),
                int(t.depths().max()),
                len(t.refutations),
                len(t.tightenings),
                sum(len(c.index) for c in t.cuts),
            )
            for t in trees
        ]
        record["trees"] = [dict(zip(names, s, strict=True)) for s in shapes]
    return json_text(record, indent=1) + "\n"
