"""The parents of a list's variants: which rows they are, and a store with their proofs, from which variants borrow.

What is a variant of what is said by the list's own files: `manifest.csv` (onnx,parent,method), else names of the form
`parent~method.onnx`. It decides which rows come first and under which label the others are counted, nothing else.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mucg4.bench import run
from mucg4.bench.child import Children
from mucg4.bench.plan import Plan, Row
from mucg4.bench.results import STORE_FILES, Record, read_manifest
from mucg4.bench.table import file_stem
from mucg4.errors import InputError
from mucg4.files import json_text, write_atomic
from mucg4.records import dataclass

# seconds that compacting may take besides its effort, per second that the proof took: it measures and checks; not
# measured
OVERHEAD = 20.0


@dataclass(frozen=True)
class Variant:
    """How a network came to be: from the network `parent`, named as the list names it, by `method`."""

    parent: str
    method: str


def variants_of(folder: Path, rows: Sequence[Row]) -> dict[str, Variant]:
    """The variants among the networks of a list, by their names there. Raises `InputError` when there are none."""
    names = list(dict.fromkeys(row.onnx_text for row in rows))
    made = read_manifest(folder)
    found = {name: Variant(*made[name]) for name in names if name in made}
    if not made:
        known = {file_stem(name): name for name in reversed(names)}
        parts = {name: file_stem(name).partition("~") for name in names}
        found = {name: Variant(known[stem], how) for name, (stem, _, how) in parts.items() if how and stem in known}
    if not found:
        hint = "manifest.csv (onnx,parent,method), or networks called parent~method.onnx beside parent.onnx"
        raise InputError(f"{folder}: nothing says which networks are variants of which: {hint}")
    return found


def parents_of(rows: Sequence[Row], variants: dict[str, Variant], chosen: Sequence[Row]) -> tuple[Row, ...]:
    """The rows of the networks that the `chosen` rows' networks come from, under the same properties."""
    wanted = {(variants[row.onnx_text].parent, row.vnnlib_text) for row in chosen}
    return tuple(row for row in rows if (row.onnx_text, row.vnnlib_text) in wanted)


def snapshot(store: Path, target: Path) -> Path:
    """`target`, now one file with all that the store holds, whoever still writes to it. Raises `InputError`."""
    if not store.is_file():
        raise InputError(f"{store}: no store there")
    for suffix in STORE_FILES:  # a journal of what was there before would be taken for one of this file
        Path(f"{target}{suffix}").unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(store)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise InputError(f"{store}: {error}") from error
    return target


@dataclass(frozen=True)
class Compacted:
    """Whether `mucg4 store compact` was done on all parents' proofs, or interrupted; seconds, and rows it refused."""

    whole: bool
    seconds: float = 0.0
    refused: tuple[str, ...] = ()


def compact(plan: Plan, records: dict[int, Record], effort: float, store: Path, console: Any) -> Compacted:
    """Compact the proofs of the plan's rows, which `records` tell about, in `store`: at first a copy of the plan's.

    Continues where it was interrupted, but begins anew when more rows were solved since.
    """
    proofs = [row for row in plan.rows if records[row.index]["verdict"] == "unsat"]
    names = [[row.onnx_text, row.vnnlib_text] for row in proofs]
    state = store.with_suffix(".json")
    done = _done(state, names) if plan.resume and store.exists() else None
    if done is None:
        done = {}
        snapshot(Path(plan.store), store)
        write_atomic(state, json_text({"proofs": names, "done": done}) + "\n")
    children, board = Children(), run.Board(console, len(proofs))
    with run.stopping(children), board.progress, tempfile.TemporaryDirectory(prefix="compact-", dir=plan.out) as log:
        for row in proofs:
            key = str(row.index)
            if key not in done:
                limit = effort + OVERHEAD * records[row.index]["wall"] + run.KILL_AFTER
                command = [*run.TOOL, "store", "--store", str(store), "compact", row.onnx, row.vnnlib]
                command += ["--effort", f"{effort:g}"]
                child = children.run(command, Path(log) / "stderr.txt", limit, float("inf"))
                if children.stopped:
                    return Compacted(False)
                last = (child.errors.strip().splitlines() or [""])[-1]
                why = "" if child.status == 0 else child.killed or last or f"exit status {child.status}"
                done[key] = {"wall": child.wall, "refused": why}
                write_atomic(state, json_text({"proofs": names, "done": done}) + "\n")
            board.add("refused" if done[key]["refused"] else "compacted", wrong=False)
    stems = {str(row.index): f"{file_stem(row.onnx_text)} {file_stem(row.vnnlib_text)}" for row in proofs}
    refused = tuple(f"{stems[key]}: {one['refused']}" for key, one in done.items() if one["refused"])
    return Compacted(True, sum(one["wall"] for one in done.values()), refused)


def _done(state: Path, names: list[list[str]]) -> dict[str, Any] | None:
    """What was done of these proofs; None when that is not known."""
    try:
        known = json.loads(state.read_text())
        return dict(known["done"]) if known["proofs"] == names else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
