"""The report on reuse: what stored proofs of networks gain on their compressed variants, over one or more lists.

Order. (1) The rows of each list's original networks are solved into an empty store, and compacted if asked for; their
time is told apart. (2) Every row of a variant runs with the store and with the store off, one right after the other, in
turns, so many times; for an ablation also with less and less reuse, from the proofs as they were before compaction.
With the store means with a copy of the parents' store of its own, so that variants lend each other nothing. (3)
Figures, tables and a picture of all that was run.

Everything stands in the output folder, a folder per list in it; the same command continues there.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mucg4.bench import parents
from mucg4.bench.parents import Variant
from mucg4.bench.plan import Mode, Plan, folder_of, make_plan, read_rows
from mucg4.bench.results import STAGES, Record, find_alarms
from mucg4.bench.reuse_figures import Line, read_bands
from mucg4.bench.reuse_table import Parents, csv_of, tables
from mucg4.bench.run import run_rows
from mucg4.errors import InputError
from mucg4.files import write_atomic
from mucg4.records import dataclass

EFFORT = 60.0  # seconds of compacting a proof where an ablation needs it and nothing is said; not measured


class _InterruptedError(Exception):
    """The children were ended by a signal."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for besides the plans.

    `effort`: seconds of compacting each proof, None: none. `ablation`: in so many pairs, the first ones.
    """

    pairs: int
    effort: float | None
    ablation: int
    accumulate: bool


@dataclass(frozen=True)
class Source:
    """One list. `own` is the plan of the parents' rows, None where a store with their proofs is given."""

    variants: dict[str, Variant]
    plan: Plan
    own: Plan | None


@dataclass(frozen=True)
class Lent:
    """The stores that variants borrow from, and what is to be told of the parents."""

    store: Path
    plain: Path  # before compaction
    parents: Parents
    records: dict[int, Record]


def run_reuse_report(
    sources: Sequence[Path], args: Namespace, options: list[str], console: Any, say: Callable[[str], None]
) -> int:
    """Run everything, say the tables and write the files; 0, 1 when an answer is wrong, 130 when interrupted.

    Raises `InputError`.
    """
    if args.plots:
        from mucg4.bench.side_by_side import check_pictures

        check_pictures()
    bands = read_bands(args.bands)
    effort = EFFORT if args.compact_effort is None and args.ablation else args.compact_effort
    wanted = Wanted(args.pairs, effort, args.ablation, args.accumulate)
    out = args.out or Path("bench-out") / "reuse"
    if len({folder_of(source).name for source in sources}) < len(sources):
        raise InputError("two of the lists have the same name")
    plans = [_source(source, args, options, wanted, out / folder_of(source).name) for source in sources]
    lines: list[Line] = []
    told: list[Parents] = []
    alarms: list[str] = []
    try:
        for source in plans:
            lent = _lent(source, wanted, console)
            found = [_pair(source, lent, wanted, k, console) for k in range(wanted.pairs)]
            told.append(lent.parents)
            alarms += _alarms(source, lent, found)
            lines += _lines(source, lent, found)
    except _InterruptedError:
        console.print(f"interrupted; the same command continues in {out}", markup=False, soft_wrap=True)
        return 130
    together = [text.split(",") for text in args.group or []]
    _write(out, lines, tables(lines, told, bands, together), args.plots, say)
    for text in alarms:
        console.print(text, style="bold red", markup=False, soft_wrap=True)
    return 1 if alarms else 0


# ---- what is to be run -------------------------------------------------------------------------


def _source(source: Path, args: Namespace, options: list[str], wanted: Wanted, out: Path) -> Source:
    """The plans of one list."""
    rows = read_rows(source, args.timeout_cap)
    variants = parents.variants_of(folder_of(source), rows)
    plan = make_plan(source, args, options, lambda row: row.onnx_text in variants)
    plan = replace(plan, out=out, fresh=False, scratch=True, check=None)
    if args.store not in (None, "fresh"):
        return Source(variants, replace(plan, store=args.store), None)
    originals = parents.parents_of(rows, variants, plan.rows)
    if args.parents_timeout is not None:
        originals = tuple(replace(row, timeout=args.parents_timeout) for row in originals)
    plain = ("--no-compact",) if wanted.effort is not None else ()  # `store compact` does what that leaves out
    own = replace(plan, out=out / "parents", rows=originals, store=str(out / "parents.sqlite"), fresh=True)
    own = replace(own, scratch=False, options=tuple(dict.fromkeys((*plan.options, *plain))))
    return Source(variants, plan, own)


def _lent(source: Source, wanted: Wanted, console: Any) -> Lent:
    """Solve the parents, compact their proofs. Raises `_InterruptedError`."""
    plan, own = source.plan, source.own
    told, records, store = Parents(plan.category, {}, 0.0), {}, Path(plan.store)
    if own is not None:
        console.print(f"{plan.category}: {len(own.rows)} rows of parents", markup=False, soft_wrap=True)
        store = Path(own.store)
        if own.rows:
            chosen, whole = run_rows(own, console)
            if not whole:
                raise _InterruptedError
            records = chosen["store"]
        words = [r["verdict"] for r in records.values()]
        verdicts = {word: words.count(word) for word in words}
        told = Parents(plan.category, verdicts, sum(r["wall"] for r in records.values()))
    plan.out.mkdir(parents=True, exist_ok=True)
    plain = parents.snapshot(store, plan.out / "lent.sqlite")
    if wanted.effort is None or own is None:
        return Lent(plain, plain, told, records)
    console.print(f"{plan.category}: compacting, {wanted.effort:g} s each", markup=False, soft_wrap=True)
    compacted = plan.out / f"compacted-{wanted.effort:g}.sqlite"
    done = parents.compact(own, records, wanted.effort, compacted, console)
    if not done.whole:
        raise _InterruptedError
    told = replace(told, compacting=done.seconds, refused=done.refused)
    return Lent(parents.snapshot(compacted, plan.out / f"lent-{wanted.effort:g}.sqlite"), plain, told, records)


Found = dict[str, dict[int, Record]]  # mode -> row -> record


def _pair(source: Source, lent: Lent, wanted: Wanted, number: int, console: Any) -> Found:
    """Every row once in every mode. Raises `_InterruptedError`."""
    plan = source.plan
    console.print(f"{plan.category}: {len(plan.rows)} rows of variants, {number + 1} of {wanted.pairs}", markup=False)
    out, store = plan.out / f"pair-{number + 1}", lent.store
    if wanted.accumulate:
        store = out / "store.sqlite"
        if not plan.resume or not store.exists():
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(lent.store, store)
    stages = [Mode(s, str(lent.plain), ("--reuse-upto", s), lent=True) for s in STAGES if number < wanted.ablation]
    found, whole = run_rows(
        replace(plan, out=out, store=str(store), lent=not wanted.accumulate, others=tuple(stages), turn=number), console
    )
    if not whole:
        raise _InterruptedError
    return found


# ---- what came of it ---------------------------------------------------------------------------


def _lines(source: Source, lent: Lent, found: Sequence[Found]) -> list[Line]:
    known = {(r["onnx"], r["vnnlib"]): r["verdict"] for r in lent.records.values()}
    out = []
    for row in source.plan.rows:
        variant = source.variants[row.onnx_text]
        runs = {mode: tuple(pair[mode][row.index] for pair in found if mode in pair) for mode in found[0]}
        parent = known.get((variant.parent, row.vnnlib_text), "")
        out.append(Line(source.plan.category, row.onnx_text, row.vnnlib_text, variant.method, parent, runs))
    return out


def _alarms(source: Source, lent: Lent, found: Sequence[Found]) -> list[str]:
    """Wrong answers and contradictions among all runs, the parents' too."""
    named = {f"{mode}, pair {k + 1}": records for k, pair in enumerate(found) for mode, records in pair.items()}
    rows = (source.own.rows if source.own else ()) + source.plan.rows
    return find_alarms(replace(source.plan, rows=rows), {"parent": lent.records, **named})


def _write(out: Path, lines: list[Line], report: list[Any], plots: bool, say: Callable[[str], None]) -> None:
    """Say the tables; write `reuse.csv`, `reuse.md` and the picture."""
    for table in report:
        for text in [*table.text(), ""]:
            say(text)
    names = ["reuse.csv", "reuse.md"]
    write_atomic(out / "reuse.csv", csv_of(lines))
    title = "# Reuse on compressed variants"
    write_atomic(out / "reuse.md", "\n".join([title, *(x for t in report for x in ("", *t.markdown()))]) + "\n")
    if plots:
        from mucg4.bench.reuse_plot import draw

        names += draw(lines, out)
    say(f"written to {out}: {', '.join(names)}")
