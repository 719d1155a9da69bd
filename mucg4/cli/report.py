"""The texts of an answer: the witness, the run record, and what is said of a stored result."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from mucg4 import __version__
from mucg4.files import json_text


def witness_text(x: Any, y: Any) -> str:
    """The witness in VNN-LIB 1.0 grammar: one s-expression, inputs then outputs, one pair per line.

    `x (inputs,)` and `y (outputs,)` are flat, row-major and finite. Every value is printed as the shortest
    decimal of its double, so that it reads back exactly in float32 and in float64.
    """
    pairs = [f"(X_{i} {float(v)!r})" for i, v in enumerate(x)] + [f"(Y_{i} {float(v)!r})" for i, v in enumerate(y)]
    return "(" + "\n".join(pairs) + ")"


def answer_text(word: str, assignment: str = "") -> str:
    """Verdict word and, for `sat`, the witness as text: the content of stdout and of the result file."""
    return f"{word}\n{assignment}\n" if assignment else f"{word}\n"


def run_record(verdict: Any, **more: Any) -> dict[str, Any]:
    """The JSON run record of a verdict: its word, reason, witness and statistics in one flat dictionary."""
    record: dict[str, Any] = {"mucg4": __version__, "verdict": verdict.word, "reason": getattr(verdict, "reason", None)}
    witness = getattr(verdict, "witness", None)
    if witness is not None:
        record["witness"] = {"x": [float(v) for v in witness.x], "y": [float(v) for v in witness.y]}
    record.update(verdict.statistics.record())
    record.update(more)
    return record


def entry_line(entry: Any) -> str:
    """A stored result (`mucg4.store.store.Entry`) on one line."""
    scratch = "-" if entry.scratch_seconds is None else f"{entry.scratch_seconds:.2f} s"
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
    sizes = f"as {entry.refers_to[:10]}" if entry.refers_to else f"{entry.input_size:>5} -> {entry.output_size:<4}"
    return (
        f"{entry.key[:16]}  {entry.word:5}  {sizes:13}"
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
