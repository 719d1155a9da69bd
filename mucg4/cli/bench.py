"""The command `bench`: run a benchmark folder, compare result files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from mucg4.cli.options import OWN_TO_BENCH
from mucg4.cli.streams import put
from mucg4.errors import InputError
from mucg4.settings import Settings


def run(args: argparse.Namespace) -> int:
    """Run the rows, compare, or both; the exit status."""
    from rich.console import Console

    from mucg4.bench.plan import make_plan
    from mucg4.bench.run import run_bench

    def say(text: str) -> None:
        put(text + "\n")

    if not args.sources and args.compare is None:
        raise InputError("a benchmark folder to run is needed, or result files to --compare")
    if args.reuse_report:
        return _reuse_report(args, Console(stderr=True), say)
    if len(args.sources) > 1:
        raise InputError("one folder at a time; several go with --reuse-report")
    theirs = _theirs(args)  # read before anything runs, so that a wrong file costs no time
    if not args.sources:
        from mucg4.bench.claims import read_reference
        from mucg4.bench.side_by_side import run_compare

        out = args.out or Path("bench-out") / "compare"
        return run_compare(theirs, read_reference(args.benchmarks or []), out, args.plots, say)
    if args.benchmarks:
        raise InputError("--benchmarks goes with --compare without a folder to run")
    if args.engines and (theirs or args.engine != "bab" or args.store is not None):
        raise InputError("--engines runs both engines with stores of their own: no --engine, --store or --compare")
    plan = make_plan(args.sources[0], args, extra_options(args))
    if args.engines:
        from mucg4.bench.engines import run_engines

        return run_engines(plan, Console(stderr=True), say)
    status = run_bench(plan, Console(stderr=True), say)
    if not theirs or status not in (0, 1):
        return status
    from mucg4.bench.side_by_side import own_results, planned, run_compare

    say("")
    return max(status, run_compare([*own_results(plan), *theirs], planned(plan), plan.out, args.plots, say, only=True))


def _theirs(args: argparse.Namespace) -> list[Any]:
    """The result files to compare with, empty without `--compare`. Raises `InputError`."""
    if not args.compare:
        return []
    from mucg4.bench.side_by_side import check_pictures, read_all

    if args.plots:
        check_pictures()
    own = ["mucg4", *(["mucg4 scratch"] if args.with_scratch else [])]
    return read_all(args.compare, own if args.sources else [])


def _reuse_report(args: argparse.Namespace, console: Any, say: Callable[[str], None]) -> int:
    """The report on reuse over one or more lists; the exit status."""
    others = args.compare or args.benchmarks or args.engines or args.with_scratch or args.engine != "bab" or args.check
    if others or args.store == "off" or not args.reuse or args.reuse_upto != "ascent":
        raise InputError(
            "--reuse-report runs rows with the store and with the store off: no --engines, --engine, --with-scratch, "
            "--compare, --check, --store off, --no-reuse or --reuse-upto"
        )
    given = args.store not in (None, "fresh")
    if given and (args.ablation or args.compact_effort is not None or args.parents_timeout is not None):
        raise InputError("with --store the parents are as they are: no --parents-timeout, --compact-effort, --ablation")
    from mucg4.bench.reuse_report import run_reuse_report

    return run_reuse_report(args.sources, args, extra_options(args), console, say)


def extra_options(args: argparse.Namespace) -> list[str]:
    """Settings given to `bench` as options of its child processes."""
    out = []
    if args.jobs > 1 and not args.workers:  # rows that run at the same time share the cores
        from mucg4.limits.processes import usable_cores

        args.workers = max(1, usable_cores() // args.jobs)
    for f in fields(Settings):
        value = getattr(args, f.name, f.default)
        if value != f.default and f.name not in OWN_TO_BENCH:
            flag = f.name.replace("_", "-")
            out += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return out
