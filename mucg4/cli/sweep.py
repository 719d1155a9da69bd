"""The command `sweep`: variants of one network under several properties, and how far each of them is proved."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mucg4.cli.limited import limited
from mucg4.cli.options import settings_of
from mucg4.cli.store import open_store
from mucg4.cli.streams import printable, put, say
from mucg4.errors import InputError
from mucg4.files import check_writable
from mucg4.limits.budget import Budget


def run(args: argparse.Namespace) -> int:
    """Make the variants, verify them row by row, report; the exit status."""
    args.each, args.timeout = args.timeout, None  # the limit of a row, not of the command
    rows: list[Any] = []

    def leave(reason: str) -> int:
        """What is done is reported, whoever ends the command."""
        _report(args, list(rows))
        say(f"mucg4: error: {reason} after {len(rows)} rows")
        return 130 if reason.startswith("interrupted") else 2

    return limited(args, lambda budget: _sweep(args, budget, rows), leave)


def _sweep(args: argparse.Namespace, budget: Budget, rows: list[Any]) -> int:
    from dataclasses import replace
    from functools import partial

    from rich.console import Console

    from mucg4.bench.run import Board
    from mucg4.lab.methods import methods_of
    from mucg4.lab.sweep import Sweep, in_order
    from mucg4.limits.processes import usable_cores
    from mucg4.read.instance import model_of, property_of

    for path, what in ((args.csv, "--csv"), (args.plot, "--plot")):
        if path is not None:
            check_writable(path, what)
    if args.plot is not None:
        _check_picture(args.plot)
    methods = methods_of([args.methods])
    model = model_of(args.network, dict(args.shape))
    properties = [property_of(path) for path in dict.fromkeys(args.properties)]
    count = len(properties) * (1 + len(methods))
    jobs = min(1 if args.device else args.jobs or usable_cores(), count)  # no device survives a fork
    args.workers = args.workers or max(1, usable_cores() // jobs)
    settings = replace(settings_of(args), timeout=args.each)
    board = Board(Console(stderr=True), count)
    with _store_for(args, jobs) as name, _Lines(args.csv) as lines, board.progress:
        store = partial(open_store, name)
        sweep = Sweep(model, methods, properties, settings, store, budget, args.stop_after, args.seed, jobs)
        for row in sweep.rows(say if args.verbose else None):
            rows.append(row)
            lines.add(row)
            board.add(row.word, False)
        rows[:] = in_order(rows, sweep)
        lines.again(rows)
    for text in dict.fromkeys(text for row in rows for text in row.statistics.warnings):
        say(f"mucg4: warning: {printable(text)}")
    _report(args, rows)
    return 0


@contextmanager
def _store_for(args: argparse.Namespace, jobs: int) -> Iterator[str]:
    """The store's name; a fresh one that processes share is a file for the time being."""
    if not args.reuse:
        yield "off"
    elif args.store != "fresh":
        yield args.store
    elif jobs < 2:
        yield ":memory:"
    else:
        from tempfile import TemporaryDirectory

        with TemporaryDirectory(prefix="mucg4-") as folder:
            yield f"{folder}/sweep.sqlite"


class _Lines:
    """The CSV file, which holds every row as soon as it is done; nothing without a path."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.file = path, None if path is None else path.open("w", newline="")

    def __enter__(self) -> _Lines:
        from mucg4.lab.sweep_report import COLUMNS

        self._write(list(COLUMNS))
        return self

    def __exit__(self, *failure: object) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, row: Any) -> None:
        from mucg4.lab.sweep_report import cells

        self._write(cells(row))

    def again(self, rows: list[Any]) -> None:
        """All rows once more, in order."""
        if self.file is not None:
            self.file.seek(0)
            self.file.truncate()
            self.__enter__()
            for row in rows:
                self.add(row)

    def _write(self, values: list[Any]) -> None:
        if self.file is not None:
            import csv

            csv.writer(self.file, lineterminator="\n").writerow(values)
            self.file.flush()


def _report(args: argparse.Namespace, rows: list[Any]) -> None:
    """The tables on stdout, and the picture."""
    if not rows:
        return
    from mucg4.lab.sweep_report import draw, frontier_table, rows_table, summary

    parts = [rows_table(rows), frontier_table(rows), summary(rows)]
    put("\n\n".join("\n".join(lines) for lines in parts if len(lines) > 2 or lines is parts[-1]) + "\n")
    if args.plot is not None:
        draw(rows, args.plot)


def _check_picture(path: Path) -> None:
    """Raise `InputError` before anything runs when no picture can be drawn into this file."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib: pip install 'mucg4[bench]'")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {path}: the name has to end in .png, .svg or .pdf")
