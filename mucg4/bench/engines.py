"""Both engines on one list: how much of a stored proof each re-establishes, and how many checks that saves.

Each engine runs the list in order with a fresh store of its own, and every row once more from scratch. A *check* is one
region bounded, or one core put to the SMT engine's relaxation: what the engines do over and over. Only rows that both
engines decide both ways, and that found a related proof, are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mucg4.bench.plan import Plan
from mucg4.bench.results import Record, prepare_folder, read_methods
from mucg4.bench.run import run_bench
from mucg4.bench.table import DECIDED, file_stem, geometric_mean, grid

ENGINES = ("smt", "bab")
Rows = dict[int, tuple[Record, Record]]  # row -> its run with the store, and the one from scratch


def run_engines(plan: Plan, console: Any, say: Callable[[str], None]) -> int:
    """Run the plan once per engine, each in a folder of its own, then print the table; the worst exit status."""
    found: dict[str, Rows] = {}
    status = 0
    for engine in ENGINES:
        out = plan.out / engine
        options = (*plan.options, "--engine", engine)
        own = replace(plan, out=out, store=str(out / "store.sqlite"), fresh=True, scratch=True, options=options)
        say(f"engine {engine}:")
        status = max(status, run_bench(own, console, say))
        say("")
        if status not in (0, 1):
            return status
        done = prepare_folder(replace(own, resume=True))
        found[engine] = {r.index: (done["store"][r.index], done["scratch"][r.index]) for r in plan.rows}
    for line in table(found, read_methods(plan.folder)):
        say(line)
    return status


def checks(record: Record) -> int:
    """Regions bounded and cores re-checked in one run."""
    return int(record.get("regions", 0)) + int(record.get("replay_regions", 0))


def table(found: dict[str, Rows], methods: dict[str, str]) -> list[str]:
    """One line per method and engine, and per engine one for all rows. `methods`: onnx -> how it was made."""
    both = [k for k in next(iter(found.values())) if all(_counts(rows[k]) for rows in found.values())]
    groups: dict[str, list[int]] = {}
    for k in both:
        onnx = next(iter(found.values()))[k][0]["onnx"]
        groups.setdefault(methods.get(onnx, "original"), []).append(k)
    head = ("method", "engine", "rows", "leaves", "reused", "checks", "scratch", "saved", "time s", "scratch s")
    lines = [
        [name, engine, *_sums([rows[k] for k in own])]
        for name, own in [*sorted(groups.items()), ("all", both)]
        for engine, rows in found.items()
    ]
    left = len(next(iter(found.values()))) - len(both)
    refused = {
        file_stem(pair[0]["onnx"]): str(pair[0]["reason"])
        for rows in found.values()
        for pair in rows.values()
        if pair[0]["verdict"] not in DECIDED and pair[0].get("reason")
    }
    return [
        "reuse by minimal unsat cores (smt) and by stored duals (bab):",
        *grid(head, lines, left=2),
        f"rows without a related unsat proof, or not decided by both both ways: {left}",
        *(f"  {name}: {why}" for name, why in refused.items()),
    ]


def _counts(pair: tuple[Record, Record]) -> bool:
    return all(r["verdict"] in DECIDED for r in pair) and bool(pair[0].get("stored_leaves"))


def _sums(pairs: list[tuple[Record, Record]]) -> list[str]:
    """Rows, stored leaves, the share re-established, checks with the store and from scratch, times."""
    stored = sum(r["stored_leaves"] for r, _ in pairs)
    reused = sum(count for r, _ in pairs for rung, count in r["rungs"].items() if rung != "witness")
    ours, scratch = (sum(checks(pair[side]) for pair in pairs) for side in (0, 1))
    times = [geometric_mean([pair[side]["wall"] for pair in pairs]) for side in (0, 1)]
    share = f"{100 * reused / stored:.0f} %" if stored else "-"
    saved = f"{100 * (1 - ours / scratch):.0f} %" if scratch else "-"
    return [str(len(pairs)), str(stored), share, str(ours), str(scratch), saved, *(f"{t:.2f}" for t in times)]
