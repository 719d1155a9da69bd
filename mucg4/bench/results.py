"""The folder of results of a benchmark run, and whether they are right.

`runs.jsonl` holds one line per instance: its run record with the wall time and peak memory measured outside;
`scratch.jsonl` the same for the runs with the store off, and so on for every mode. `results.csv` and
`results_scratch.csv` have the official layout `category,onnx,vnnlib,prepare_time,verdict,run_time`. `plan.json` tells
what was asked for. A line is appended when its row is done, so that an interrupted run continues behind it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mucg4 import __version__
from mucg4.bench.plan import Plan, Row
from mucg4.errors import InputError
from mucg4.files import json_text, write_atomic

Record = dict[str, Any]
STORE_FILES = ("", "-wal", "-shm")  # endings of the files of one store
UNFINISHED = "unfinished"  # in the run record: time ended before the checker did
STAGES = ("structure", "duals", "ascent")  # modes in which less than everything is reused: `Settings.reuse_upto`
FILES = {"store": "runs.jsonl", "scratch": "scratch.jsonl", **{stage: f"{stage}.jsonl" for stage in STAGES}}


def prepare_folder(plan: Plan) -> dict[str, dict[int, Record]]:
    """Make the output folder; returns the records already there. Raises `InputError` for those of another plan."""
    content = {**asdict(plan), "mucg4": __version__}
    for key in ("resume", "jobs", "rows", "folder", "out", "scratch", "lent", "others", "turn"):
        content.pop(key)
    identity = json.loads(json_text(content))
    plan.out.mkdir(parents=True, exist_ok=True)
    plan_file = plan.out / "plan.json"
    done: dict[str, dict[int, Record]] = {mode: {} for mode in FILES}
    if plan.resume and plan_file.exists():
        try:
            same = json.loads(plan_file.read_text()) == identity
        except ValueError:
            same = False
        done = {mode: _read_lines(plan.out / name) for mode, name in FILES.items()}
        if not same or not all(_fits(plan, records) for records in done.values()):
            raise InputError(f"{plan.out} holds results of another plan; give another --out, or --no-resume")
    else:
        for name in FILES.values():
            (plan.out / name).unlink(missing_ok=True)
        if plan.fresh:
            for suffix in STORE_FILES:
                Path(plan.store + suffix).unlink(missing_ok=True)
        write_atomic(plan_file, json_text(identity, indent=1) + "\n")
    asked = {mode.name for mode in plan.modes}
    for mode, name in FILES.items():  # also cuts a half-written last line
        if mode in asked or done[mode]:
            write_atomic(plan.out / name, "".join(json_text(r) + "\n" for r in done[mode].values()))
    return done


def _fits(plan: Plan, records: dict[int, Record]) -> bool:
    """True when the records of the planned rows were made for these rows; other rows do not matter."""
    pairs = [(r, records[r.index]) for r in plan.rows if r.index in records]
    return all((r.onnx_text, r.vnnlib_text, r.timeout) == (d["onnx"], d["vnnlib"], d["timeout"]) for r, d in pairs)


def _read_lines(path: Path) -> dict[int, Record]:
    """The complete lines of a JSON-lines file, by row; a half-written last line is dropped."""
    out: dict[int, Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            break
        out[record["row"]] = record
    return out


def write_csv(plan: Plan, name: str, records: dict[int, Record]) -> None:
    rows = [
        [plan.category, r["onnx"], r["vnnlib"], "0.0", r["verdict"], f"{r['wall']:.3f}"]
        for _, r in sorted(records.items())
    ]
    write_atomic(plan.out / name, "".join(",".join(map(_quoted, row)) + "\n" for row in rows))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def _csv_rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [[cell.strip() for cell in row] for row in csv.reader(file) if len(row) >= 3]


def read_expected(folder: Path) -> dict[tuple[str, str], str]:
    """`expected.csv`: (onnx, vnnlib) -> sat | unsat; empty when there is none."""
    return {(r[0], r[1]): r[2] for r in _csv_rows(folder / "expected.csv") if r[2] in ("sat", "unsat")}


def read_manifest(folder: Path) -> dict[str, tuple[str, str]]:
    """`manifest.csv` (onnx,parent,method): onnx -> parent, method; empty when there is none."""
    return {r[0]: (r[1], r[2]) for r in _csv_rows(folder / "manifest.csv") if r[0] != "onnx"}


def read_methods(folder: Path) -> dict[str, str]:
    """onnx -> method, as `read_manifest`."""
    return {onnx: method for onnx, (_, method) in read_manifest(folder).items()}


def is_wrong(record: Record, expected: dict[tuple[str, str], str]) -> bool:
    """True when the claim contradicts the known answer; a claim that came too late counts too."""
    right = expected.get((record["onnx"], record["vnnlib"]))
    claim = record.get("claimed", record["verdict"])
    return right is not None and claim in ("sat", "unsat") and claim != right


def find_alarms(plan: Plan, chosen: dict[str, dict[int, Record]]) -> list[str]:
    """One line per wrong answer, contradiction between rows of equal content, and proof that was not accepted."""
    expected = read_expected(plan.folder)
    rows = {r.index: r for r in plan.rows}
    claims: dict[str, dict[str, str]] = {}
    out = []
    for mode, records in chosen.items():
        for index, record in sorted(records.items()):
            name = f"{record['onnx']} {record['vnnlib']} ({mode})"
            claim = record.get("claimed", record["verdict"])
            if is_wrong(record, expected):
                out.append(f"WRONG ANSWER: {name}: {claim}")
            if record.get("check", "accepted") != "accepted":
                out.append(f"PROOF NOT ACCEPTED: {name}: {record['check']}")
            if (record.get("checker") or "").startswith("rejected"):
                out.append(f"PROOF REJECTED IN THE RUN: {name}: {record['checker']}")
            if claim in ("sat", "unsat"):
                claims.setdefault(_content(rows[index]), {}).setdefault(claim, name)
    for both in claims.values():
        if len(both) == 2:
            out.append(f"CONTRADICTION: {both['sat']} is sat, {both['unsat']} is unsat")
    return out


def _content(row: Row) -> str:
    """Hash of the two files' bytes; of the names when they cannot be read."""
    h = hashlib.sha256()
    for path in (row.onnx, row.vnnlib):
        data = Path(path).read_bytes() if os.path.isfile(path) else path.encode()
        h.update(hashlib.sha256(data).digest())
    return h.hexdigest()
