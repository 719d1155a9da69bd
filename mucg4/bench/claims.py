"""What tools claimed, read from result files: the official layout, those of `mucg4 bench`, and lists with a header.

The official layout has no header: `category,onnx,vnnlib,prepare_time,verdict,run_time`. A file whose first line names
its columns is read by these names, in any order; a column that names the tool may give the results of several tools.
Beside a `results.csv` or `results_scratch.csv` of `mucg4 bench` lies the list of run records: limits and witnesses
come from there.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mucg4.bench.results import read_expected
from mucg4.bench.table import file_stem
from mucg4.errors import InputError
from mucg4.read.instance import read_instances, read_text
from mucg4.records import dataclass

DECIDED = ("sat", "unsat")
# The competition's reading of a verdict: the first prefix that fits, in lower case. An empty word is unknown.
PREFIXES = (
    ("unsat", "unsat"),
    ("sat", "sat"),
    ("holds", "unsat"),
    ("violated", "sat"),
    ("unknown", "unknown"),
    ("timeout", "timeout"),
    ("timed-out", "timeout"),
    ("timed out", "timeout"),
    ("run_instance_timeout", "timeout"),
    ("prepare_instance_timeout", "timeout"),
    ("no_result_in_file", "unknown"),
    ("prepare_instance_error", "unknown"),
    ("error_nonmaximal", "unknown"),
    ("error", "error"),
)
OFFICIAL = ("category", "onnx", "vnnlib", "prepare_time", "verdict", "run_time")
ALIASES = {
    "category": ("category", "family", "benchmark"),
    "onnx": ("onnx", "network"),
    "vnnlib": ("vnnlib", "property"),
    "verdict": ("verdict", "result"),
    "run_time": ("run_time", "wall_s", "wall", "time_s", "time", "seconds"),
    "limit": ("limit", "timeout_s", "timeout"),
    "tool": ("tool", "peer"),
}


@dataclass(frozen=True)
class Entry:
    """One line about one instance, as a file states it.

    `verdict`: sat, unsat, unknown, timeout or error; empty for a line of `instances.csv`. `seconds`: its run time, nan
    when not told. `limit`: its timeout, nan when not told. `answer`: the known one, else empty. `witness`: the file
    holds a witness that was replayed on onnxruntime.
    """

    category: str
    onnx: str
    vnnlib: str
    verdict: str = ""
    seconds: float = math.nan
    limit: float = math.nan
    answer: str = ""
    witness: bool = False


@dataclass(frozen=True)
class Results:
    """All claims of one tool, in the file's order; `notes` are lines about what could not be read."""

    tool: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


def verdict_of(word: str) -> str | None:
    """The verdict a word of a result file stands for, None when the word means nothing."""
    word = word.strip().lower()
    if not word:
        return "unknown"
    return next((verdict for prefix, verdict in PREFIXES if word.startswith(prefix)), None)


def read_results(text: str) -> list[Results]:
    """The results of the tools in the file named by `[NAME=]PATH`. Raises `InputError`.

    A tool is called NAME, else as the file's own column says, else like the file (its folder for `results.csv`).
    """
    name, _, rest = text.partition("=")
    given = bool(name and rest) and not Path(text).exists()
    path = Path(rest if given else text)
    if path.is_dir():
        found = path / "results.csv"
        if not found.exists():
            hint = "; the folder to run goes before --compare" if (path / "instances.csv").exists() else ""
            raise InputError(f"{path} is a folder without results.csv{hint}")
        path = found
    tools: dict[str, list[Entry]] = {}
    dropped: list[int] = []
    foreign: dict[str, int] = {}
    for number, cells in _rows(path):
        entry = _entry(cells)
        if entry is None:
            dropped.append(number)
            continue
        if verdict_of(cells["verdict"]) is None:
            foreign[cells["verdict"]] = foreign.get(cells["verdict"], 0) + 1
        tools.setdefault(cells.get("tool", ""), []).append(entry)
    if not tools:
        raise InputError(f"{path}: no results in the layout {','.join(OFFICIAL)}")
    notes = []
    if dropped:
        notes.append(f"{path}: {len(dropped)} lines are no results, left out; the first is line {dropped[0]}")
    for word, count in foreign.items():
        notes.append(f"{path}: the word {word[:40]!r} is no verdict; {count} rows count as error")
    if given and len(tools) > 1:
        raise InputError(f"{path} holds the results of {', '.join(sorted(tools))}: it cannot be called {name}")
    default = path.resolve().parent.name if _stem(path) == "results" else _stem(path)
    out = []
    for tool, entries in tools.items():
        full = _with_records(path, entries) if not tool else entries
        out.append(Results(name if given else tool or default or "results", tuple(full), tuple(notes)))
        notes = []
    return out


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".csv")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by name, for every line but blank ones and the header."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    names: dict[str, int] = {name: k for k, name in enumerate(OFFICIAL)}
    first = True
    try:
        for row in reader:
            cells = _joined([c.strip() for c in row])
            if not any(cells):
                continue
            header = _header(cells) if first else None
            first = False
            if header is not None:
                names = header
            else:
                yield reader.line_num, {name: cells[k] for name, k in names.items() if k < len(cells)}
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}") from error


def _joined(cells: list[str]) -> list[str]:
    """The cells with a list of networks that stands there without quotes made one cell again."""
    for k, cell in enumerate(cells):
        if cell.startswith("["):
            for last in range(k, len(cells)):
                if cells[last].endswith("]"):
                    return [*cells[:k], ", ".join(cells[k : last + 1]), *cells[last + 1 :]]
    return cells


def _header(cells: list[str]) -> dict[str, int] | None:
    """Name -> column when the cells are the names of columns."""
    low = [c.lower() for c in cells]
    found = {name: low.index(a) for name, words in ALIASES.items() for a in reversed(words) if a in low}
    return found if {"onnx", "vnnlib", "verdict"} <= set(found) else None


def _entry(cells: dict[str, str]) -> Entry | None:
    """The claim of a line; None when it is no result."""
    if not all(cells.get(key) for key in ("onnx", "vnnlib")) or "verdict" not in cells:
        return None
    return Entry(
        cells.get("category", ""),
        cells["onnx"],
        cells["vnnlib"],
        verdict_of(cells["verdict"]) or "error",
        _number(cells.get("run_time", "")),
        _number(cells.get("limit", "")),
    )


def _number(text: str) -> float:
    """A time in seconds; nan for anything else."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) and value >= 0 else math.nan


def _with_records(path: Path, entries: list[Entry]) -> list[Entry]:
    """The entries of a file written by `mucg4 bench` with limits and witnesses of the run records beside it."""
    records = path.with_name("scratch.jsonl" if _stem(path) == "results_scratch" else "runs.jsonl")
    if _stem(path) not in ("results", "results_scratch") or not records.is_file():
        return entries
    known: dict[tuple[str, str], Entry] = {}
    for line in records.read_text(errors="replace").splitlines():
        try:
            r = json.loads(line)
            limit, key = float(r["timeout"]), (str(r["onnx"]), str(r["vnnlib"]))
            known[key] = Entry("", *key, str(r["verdict"]), limit=limit, witness=bool(r.get("witness")))
        except (ValueError, TypeError, KeyError):
            continue  # a half-written line, or another program's file
    out = []
    for entry in entries:
        record = known.get((entry.onnx, entry.vnnlib))
        if record is not None and record.verdict == entry.verdict:
            entry = replace(entry, limit=record.limit, witness=record.witness and entry.verdict == "sat")
        out.append(entry)
    return out


# --- what is known about the instances -------------------------------------------------------------------------


def read_reference(folders: list[Path]) -> list[Entry]:
    """Limits and known answers of benchmark folders, or of folders that hold such folders. Raises `InputError`."""
    out = []
    for folder in folders:
        inner = [folder] if (folder / "instances.csv").exists() else sorted(folder.glob("*/"))
        found = [f.resolve() for f in inner if (f / "instances.csv").exists()]
        if not found:
            raise InputError(f"{folder}: no instances.csv there, nor in a folder in it")
        for one in found:
            expected = read_expected(one)
            for i in read_instances(one):
                answer = expected.get((i.onnx_text, i.vnnlib_text), "")
                out.append(Entry(one.name, i.onnx_text, i.vnnlib_text, limit=i.timeout, answer=answer))
    return out


# --- the name of an instance -----------------------------------------------------------------------------------

Parts = tuple[tuple[str, ...], ...]


def category_key(name: str) -> tuple[str, str]:
    """A benchmark's name in lower case without an edition's year before it, and the year behind it (or empty)."""
    words = name.lower().replace("-", "_").split("_")
    if len(words) > 1 and _is_year(words[0]):
        words = words[1:]
    year = words.pop() if len(words) > 1 and _is_year(words[-1]) else ""
    return "_".join(words), year


def _is_year(word: str) -> bool:
    return len(word) == 4 and word.isdigit() and word.startswith("20")


def parts_of(text: str, category: str) -> Parts:
    """For each network named (or the one property): the folders inside the benchmark, then the file's stem.

    Tools write paths from different places: what stands before a folder `onnx`, `vnnlib` or one called like the
    benchmark is cut off, and so are all folders of an absolute path without any of these.
    """
    return tuple(_parts(path, category) for path in paths_of(text))


def paths_of(text: str) -> list[str]:
    """The files named: of a list of networks each, else the one."""
    if text.startswith("["):
        try:
            return [str(path) for _, path in ast.literal_eval(text)]
        except (ValueError, SyntaxError, TypeError):
            pass
    return [text]


def _parts(path: str, category: str) -> tuple[str, ...]:
    *folders, name = [p for p in path.replace("\\", "/").split("/") if p not in ("", ".")] or [path]
    name = file_stem(name)
    low = [f.lower() for f in folders]
    for k in range(len(low) - 1, -1, -1):
        if low[k] in ("onnx", "vnnlib"):
            return (*folders[k + 1 :], name)
        if category and category_key(low[k])[0] == category_key(category)[0]:
            version = folders[k + 1 : k + 2] and folders[k + 1].replace(".", "").isdigit()
            return (*folders[k + (2 if version else 1) :], name)
    return (name,) if path.startswith(("/", "..")) or ":" in path else (*folders, name)


def same_name(a: Parts, b: Parts) -> bool:
    """True when the two may name the same files: one gives at most more of the leading folders."""
    return len(a) == len(b) and all(x[-len(y) :] == y or y[-len(x) :] == x for x, y in zip(a, b, strict=True))
