"""Plain-text tables made from the records of `runs.jsonl` and `scratch.jsonl` only."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from mucg4.bench.results import UNFINISHED

Record = dict[str, Any]
DECIDED = ("sat", "unsat")
# a row with the store should take less than this much of from scratch; not measured
SLOW_FACTOR, SLOW_SECONDS = 1.2, 0.3


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], left: int, right: Collection[int] = ()) -> list[str]:
    """Lines of a table with aligned columns; the first `left` columns but those in `right` are left-aligned."""
    table = [list(head), *[list(r) for r in rows]]
    widths = [max(len(r[k]) for r in table) for k in range(len(head))]
    lines = []
    for row in table:
        sides = [str.ljust if k < left and k not in right else str.rjust for k in range(len(head))]
        cells = [side(c, w) for side, c, w in zip(sides, row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * w for w in widths))
    return lines


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of positive numbers; nan of none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def _number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def file_stem(text: str) -> str:
    """A file's name without folders and endings."""
    name = Path(text).name
    for suffix in (".gz", ".onnx", ".vnnlib"):
        name = name.removesuffix(suffix)
    return name


def _speed(record: Record, scratch: Record) -> float:
    """From-scratch time over the time with the store."""
    return float(scratch["wall"]) / max(float(record["wall"]), 1e-9)


def comparison(runs: dict[int, Record], scratch: dict[int, Record], methods: dict[str, str]) -> list[str]:
    """Row by row and summed up: the runs with the store against the runs from scratch.

    `runs`, `scratch`: row -> record; only rows present in both are compared. `methods`: onnx -> how it was made.
    """
    pairs = [(runs[k], scratch[k]) for k in sorted(runs) if k in scratch]
    lines = grid(
        ("network", "property", "relation", "verdict", "scratch", "time s", "scratch s", "reused", "speed-up"),
        [_compared(r, s) for r, s in pairs],
        left=5,
    )
    lines += ["", "per relation found:", *_groups(pairs, _relation)]
    if methods:
        lines += ["", "per method:", *_groups(pairs, lambda r: methods.get(r["onnx"], "original"))]
    return [*lines, "", *_differences(pairs), ""]


def _relation(r: Record) -> str:
    """To the stored proof that was used; "-" where none was, or none was needed."""
    return str(r.get("relation", "-")) if r.get("related_proof") else "-"


def _compared(r: Record, s: Record) -> list[str]:
    reused = "-" if not r.get("stored_leaves") else f"{100 * r.get('reused_share', 0.0):.0f} %"
    relation = _relation(r)
    return [
        file_stem(r["onnx"]),
        file_stem(r["vnnlib"]),
        relation,
        r["verdict"],
        s["verdict"] if s["verdict"] != r["verdict"] else "same",
        f"{r['wall']:.2f}",
        f"{s['wall']:.2f}",
        reused,
        f"{_speed(r, s):.2f}",
    ]


def _groups(pairs: list[tuple[Record, Record]], key: Callable[[Record], str]) -> list[str]:
    """One line per group: rows, decided, geometric means of the rows both decided, worst row, leaves per rung."""
    groups: dict[str, list[tuple[Record, Record]]] = {}
    for pair in pairs:
        groups.setdefault(key(pair[0]), []).append(pair)
    rungs = list(dict.fromkeys(name for r, _ in pairs for name in r.get("rungs", {})))
    head = ["group", "rows", "decided", "scratch", "time s", "scratch s", "speed-up", "worst", "reused", "stored"]
    return grid([*head, *rungs], [[name, *_group(members, rungs)] for name, members in sorted(groups.items())], left=1)


def _group(members: list[tuple[Record, Record]], rungs: list[str]) -> list[str]:
    both = [(r, s) for r, s in members if r["verdict"] in DECIDED and s["verdict"] in DECIDED]
    stored = sum(r.get("stored_leaves", 0) for r, _ in members)
    closed = [sum(r.get("rungs", {}).get(name, 0) for r, _ in members) for name in rungs]
    return [
        str(len(members)),
        str(sum(r["verdict"] in DECIDED for r, _ in members)),
        str(sum(s["verdict"] in DECIDED for _, s in members)),
        _number(geometric_mean([r["wall"] for r, _ in both])),
        _number(geometric_mean([s["wall"] for _, s in both])),
        _number(geometric_mean([_speed(r, s) for r, s in both])),
        _number(min((_speed(r, s) for r, s in both), default=math.nan)),
        "-" if not stored else f"{100 * sum(closed) / stored:.0f} %",
        str(stored),
        *map(str, closed),
    ]


def is_slower(r: Record, s: Record) -> bool:
    """True when the run with the store took more than 1.2 times the run from scratch plus 0.3 s."""
    return bool(r["wall"] > SLOW_FACTOR * s["wall"] + SLOW_SECONDS)


def _differences(pairs: list[tuple[Record, Record]]) -> list[str]:
    slower = [f"  {_line(r)}: {r['wall']:.2f} s against {s['wall']:.2f} s" for r, s in pairs if is_slower(r, s)]
    clash = [
        f"  {_line(r)}: {r['verdict']} against {s['verdict']}"
        for r, s in pairs
        if {r["verdict"], s["verdict"]} == set(DECIDED)
    ]
    alone = [
        f"  {_line(r)}: {r['verdict']} with the store, {s['verdict']} from scratch"
        for r, s in pairs
        if (r["verdict"] in DECIDED) != (s["verdict"] in DECIDED)
    ]
    return [
        f"sat against unsat between the two: {len(clash)}",
        *clash,
        f"decided by only one of the two: {len(alone)}",
        *alone,
        f"slower than {SLOW_FACTOR} x from scratch + {SLOW_SECONDS} s: {len(slower)}",
        *slower,
    ]


def _line(r: Record) -> str:
    return f"{file_stem(r['onnx'])} {file_stem(r['vnnlib'])}"


def summary(runs: dict[int, Record], planned: int) -> list[str]:
    """Counts of the verdicts, times, and the rows that ended with an error."""
    records = [runs[k] for k in sorted(runs)]
    counts: dict[str, int] = {}
    for r in records:
        counts[r["verdict"]] = counts.get(r["verdict"], 0) + 1
    walls = sorted(r["wall"] for r in records)
    solved = counts.get("sat", 0) + counts.get("unsat", 0)
    words = ", ".join(f"{word} {counts[word]}" for word in sorted(counts))
    lines = [f"decided {solved} of {planned}: {words}"]
    if walls:
        peak = max(r["peak_rss"] for r in records) / 2**20
        text = f"wall time: total {sum(walls):.1f} s, median {walls[len(walls) // 2]:.2f} s, longest {walls[-1]:.2f} s"
        lines.append(f"{text}; peak memory {peak:.0f} MiB")
    inside = [r["checker"] for r in records if r.get("checker")]
    if inside:
        late = f", {inside.count(UNFINISHED)} not examined in time" if UNFINISHED in inside else ""
        lines.append(f"proofs accepted by the checker in the runs: {inside.count('accepted')} of {len(inside)}{late}")
    checks = [r["check"] for r in records if "check" in r]
    if checks:
        lines.append(f"proofs accepted by the checker afterwards: {checks.count('accepted')} of {len(checks)}")
    for r in records:
        if r.get("errors"):
            last = r["errors"].strip().splitlines() or [f"exit status {r['status']}"]
            lines.append(f"error: {_line(r)}: {last[-1]}")
    return lines
