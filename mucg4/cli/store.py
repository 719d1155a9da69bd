"""The command `store`: look into the proof store. Which file holds it, for `verify` too."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mucg4.cli.limited import limited, spent
from mucg4.cli.report import entry_line, stored_text
from mucg4.cli.streams import printable, put, say
from mucg4.errors import BudgetError, InputError
from mucg4.limits.budget import Budget

if TYPE_CHECKING:
    from mucg4.model.proof import Proof
    from mucg4.search.run import Run
    from mucg4.store.related import Related
    from mucg4.store.store import Store

COMPACTING = 0.6  # share of the time that compaction may take of what a limit leaves: it is checked then; not measured


def run(args: argparse.Namespace) -> int:
    """List, show, compact, tidy, clear or time; the exit status."""
    actions = {"scale": lambda budget: _time_store(args), "compact": lambda budget: _compact(args, budget)}
    return limited(args, actions.get(args.action, lambda budget: _look(args)), spent)


def _look(args: argparse.Namespace) -> int:
    from mucg4.store.store import Store

    path = store_path(args.store)
    if path is None:
        raise InputError("the store is off")
    with Store(path if path.exists() else ":memory:") as store:
        if args.action == "show":
            put(stored_text(*store.show(args.key)))
            return 0
        if args.action == "list":
            put("".join(map(entry_line, store.entries())))
        elif args.action == "gc":
            put(f"{store.gc()} results removed\n")
        else:
            put(f"{store.clear()} results removed\n")
        put(f"{path}: {len(store.entries())} results, {store.used_bytes() / 2**10:.0f} KiB\n")
        for text in store.warnings:
            say(f"mucg4: warning: {printable(text)}")
    return 0


def _compact(args: argparse.Namespace, budget: Budget) -> int:
    """Make a stored proof better for reuse, check it, put it back, and say what came of it."""
    from mucg4.evidence import established
    from mucg4.reuse.compact import compact, gauges_of
    from mucg4.reuse.survey import survey
    from mucg4.store.store import Store

    path = store_path(args.store)
    if path is None:
        raise InputError("the store is off")
    run = run_of(args, budget, lambda text: say(f"mucg4: compact: {text}"))
    with Store(path) as store:
        stored, old = stored_for(store, run)
        gauges, told = gauges_of(run.query, budget), len(store.warnings)
        before = survey(old, gauges, run.workers)
        proof = compact(run, old, min(args.effort, COMPACTING * budget.left()), gauges)
        report = established(proof, run.query, budget, run.workers)
        if not report.accepted:
            budget.poll()  # it may have ended for that
            raise InputError(f"the proof stays as it is: the checker says of the new one: {report.reason}")
        if not store.save(run.query, "unsat", proof=proof, regions=stored.regions, improved=True):
            raise InputError("; ".join(store.warnings[told:]) or "the proof could not be stored")
        try:
            lines = survey(proof, gauges, run.workers).lines(before)
        except BudgetError as error:
            if budget.interrupted:
                raise
            lines = [f"stored; not surveyed: {error}"]
        put("".join(f"{line}\n" for line in lines))
    return 0


def run_of(args: argparse.Namespace, budget: Budget, progress: Callable[[str], None] | None = None) -> Run:
    """A run of the two files NET and PROP; its query is the one that `verify` would prove, and store."""
    import numpy as np

    from mucg4.read.instance import read_query
    from mucg4.search.choices import refine
    from mucg4.settings import Settings
    from mucg4.verify import begin

    query = read_query(Path(args.onnx), Path(args.vnnlib), dict(args.shape))
    run = begin(query, Settings(), budget, progress)
    if query.finer is not None:
        with np.errstate(all="ignore"):  # bounds that overflow prove nothing
            refine(run)
    return run


def stored_for(store: Store, run: Run) -> tuple[Related, Proof]:
    """The stored `unsat` of the run's very query, and its proof. Raises `InputError` when there is none."""
    from mucg4.reuse.lookup import own_proof

    found = own_proof(run, store)
    for text in (*store.warnings, *run.statistics.warnings):
        say(f"mucg4: warning: {printable(text)}")
    if found is None:
        raise InputError("the store has no proof of this property of this network (verify it first)")
    return found


def _time_store(args: argparse.Namespace) -> int:
    """What saving and matching cost in a store of many results, which is in a temporary folder."""
    from tempfile import TemporaryDirectory

    from mucg4.lab.scale import measure

    with TemporaryDirectory(prefix="mucg4-") as folder:
        found = measure(args.results, Path(folder) / "store.sqlite", args.limit << 20)
    put(f"{found.saved} results saved, {found.kept} kept, {found.bytes / 2**20:.1f} MiB of at most {args.limit}\n")
    for name, (median, most) in (("save", found.save), ("reference", found.reference), ("match", found.match)):
        put(f"{name:9}  median {median:6.2f} ms  most {most:6.2f} ms\n")
    return 0


def store_path(text: str | None) -> Path | None:
    """The file named by `--store` or `MUCG4_STORE`, else the default one; None when off."""
    name = text or os.environ.get("MUCG4_STORE") or ""
    if name == "off":
        return None
    from mucg4.store.store import default_path

    return Path(name) if name else default_path()


def open_store(text: str | None) -> Any:
    """The store to use, None when off. Raises `StoreError`."""
    path = store_path(text)
    if path is None:
        return None
    from mucg4.store.store import Store

    return Store(path)
