"""What a benchmark run is to do: its rows and limits, from the command line's arguments."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from mucg4.errors import InputError
from mucg4.records import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the list; `index` counts from 0 in the whole list."""

    index: int
    onnx: str
    vnnlib: str
    onnx_text: str
    vnnlib_text: str
    timeout: float


@dataclass(frozen=True)
class Mode:
    """A way in which every row is run, beside others: with a `store` (as for a plan) and further `options`.

    `lent`: every run has a copy of the store, of which nothing comes back.
    """

    name: str
    store: str
    options: tuple[str, ...] = ()
    lent: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    `store` is a path, `off`, or empty for the default; `fresh`: start with an empty one; `lent`: see `Mode`. `scratch`
    and `others` are modes besides; which of them goes first changes from row to row and with `turn`. `memory`: bytes
    for a row, None: what a run allows itself, divided among the jobs.
    Proofs of rows that took less than `check` seconds are checked; None: of no row.
    """

    category: str
    folder: Path
    out: Path
    rows: tuple[Row, ...]
    store: str
    fresh: bool
    scratch: bool
    memory: float | None
    jobs: int
    check: float | None
    resume: bool
    options: tuple[str, ...]
    lent: bool = False
    others: tuple[Mode, ...] = ()
    turn: int = 0

    @property
    def modes(self) -> tuple[Mode, ...]:
        """All modes, that with the store first."""
        scratch = (Mode("scratch", "off"),) if self.scratch else ()
        return (Mode("store", self.store, lent=self.lent), *scratch, *self.others)


def read_rows(source: Path, cap: float | None = None) -> list[Row]:
    """All rows of a list, longer timeouts cut to `cap` seconds. Raises `InputError`."""
    from mucg4.read.instance import read_instances

    return [
        Row(k, str(i.onnx), str(i.vnnlib), i.onnx_text, i.vnnlib_text, _capped(i.timeout, cap))
        for k, i in enumerate(read_instances(source))
    ]


def folder_of(source: Path) -> Path:
    """The folder of a list that is named itself or by its folder."""
    return (source if source.is_dir() else source.parent).resolve()


def make_plan(
    source: Path, args: Namespace, options: list[str], wanted: Callable[[Row], bool] = lambda row: True
) -> Plan:
    """The plan of the command line's arguments for the rows that are `wanted`. Raises `InputError`."""
    folder = folder_of(source)
    rows = [row for row in read_rows(source, args.timeout_cap) if wanted(row)]
    out = args.out or Path("bench-out") / folder.name
    store = str(out / "store.sqlite") if args.store == "fresh" else args.store or ""
    return Plan(
        category=folder.name,
        folder=folder,
        out=out,
        rows=tuple(_chosen(rows, args)),
        store=store,
        fresh=args.store == "fresh",
        scratch=args.with_scratch,
        memory=None if args.memory is None else args.memory * 2**30,
        jobs=max(1, args.jobs),
        check=args.check,
        resume=args.resume,
        options=tuple(options),
    )


def _capped(timeout: float, cap: float | None) -> float:
    return timeout if cap is None else min(timeout, cap)


def _chosen(rows: list[Row], args: Namespace) -> list[Row]:
    if args.rows:
        try:
            first, _, last = args.rows.partition(":")
            rows = rows[int(first) if first else None : int(last) if last else None]
        except ValueError as error:
            raise InputError(f"--rows wants A:B, not {args.rows!r}") from error
    if args.first_per_network is not None:
        seen: dict[str, int] = {}
        kept = []
        for row in rows:
            seen[row.onnx_text] = seen.get(row.onnx_text, 0) + 1
            if seen[row.onnx_text] <= args.first_per_network:
                kept.append(row)
        rows = kept
    rows = rows if args.limit is None else rows[: args.limit]
    if not rows:
        raise InputError("no rows are left to run")
    return rows
