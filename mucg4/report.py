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


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by a file holding `text`: whoever reads it sees the old or the new content, never a part.

    Raises `OSError`; the old content then still stands.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.mucg4-{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _overwrite(path: Path, text: str) -> None:
    """Write over the old bytes before cutting the file, so that a full disk still takes a short answer."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        data = text.encode()
        while data:
            data = data[os.write(handle, data) :]
        if path.is_file():
            os.ftruncate(handle, len(text.encode()))
    finally:
        os.close(handle)


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
