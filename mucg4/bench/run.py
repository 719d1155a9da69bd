"""Runs a list of instances the way the competition does: one child process per row, limits, one result each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mucg4.bench import table
from mucg4.bench.child import Child, Children
from mucg4.bench.plan import Mode, Plan, Row
from mucg4.bench.results import (
    FILES,
    UNFINISHED,
    Record,
    find_alarms,
    is_wrong,
    prepare_folder,
    read_expected,
    read_methods,
    write_csv,
)
from mucg4.files import json_text
from mucg4.limits.memory import SHARE, free_bytes

TOOL = (sys.executable, "-m", "mucg4")
# of the memory at which a row is killed: its own limit, so that it ends by itself with a record; not measured
EARLIER = 0.95
# seconds past its timeout at which a child is killed; its answer no longer counts by then; not measured
KILL_AFTER = 2.0


def _row_memory(plan: Plan) -> float:
    """Bytes at which a row is killed."""
    return plan.memory if plan.memory is not None else SHARE * free_bytes() / plan.jobs / EARLIER


def _run_row(plan: Plan, row: Row, mode: Mode, memory: float, children: Children) -> Record | None:
    """Run one row in a child; its record, or None when the benchmark was interrupted."""
    with tempfile.TemporaryDirectory(prefix="row-", dir=plan.out) as name:
        folder = Path(name)
        proof = folder / "proof.json.gz" if plan.check is not None and mode.name == "store" else None
        command = [*TOOL, "verify", row.onnx, row.vnnlib, "--caller", str(os.getpid())]  # they end with this process
        command += ["--timeout", str(row.timeout), "--json", str(folder / "record.json")]
        command += ["--result", str(folder / "result.txt"), *plan.options, *mode.options]
        command += ["--memory", f"{EARLIER * memory / 2**30:.4f}"] if memory < float("inf") else []
        store = mode.store
        if mode.lent:
            store = str(folder / "lent.sqlite")
            shutil.copyfile(mode.store, store)
        command += (["--store", store] if store else []) + (["--proof", str(proof)] if proof else [])
        child = children.run(command, folder / "stderr.txt", row.timeout + KILL_AFTER, memory)
        if child.killed == "interrupt" or children.stopped:
            return None
        record = _merge(row, folder, child)
        if proof and proof.exists() and record["verdict"] == "unsat" and child.wall < (plan.check or 0):
            record["check"] = _check(row, proof, memory, children)
            return None if children.stopped else record
        return record


def _merge(row: Row, folder: Path, child: Child) -> Record:
    """The run record with what was seen from outside; the verdict is the result file's first line, as scored."""
    try:
        record: Record = json.loads((folder / "record.json").read_text())
    except (OSError, ValueError):
        record = {}
    try:
        word = (folder / "result.txt").read_text().split("\n", 1)[0].strip()
    except OSError:
        word = ""
    verdict = word or {"timeout": "timeout", "memory": "unknown"}.get(child.killed, "error")
    outside: Record = {"row": row.index, "onnx": row.onnx_text, "vnnlib": row.vnnlib_text, "timeout": row.timeout}
    outside.update(wall=child.wall, peak_rss=child.peak_rss, status=child.status, killed=child.killed)
    if child.wall > row.timeout or record.get("checker") == UNFINISHED:  # an unchecked unsat counts in no figure
        outside["claimed"], verdict = verdict, "timeout"
    if child.status not in (0, -signal.SIGKILL) or not word:
        outside["errors"] = child.errors
    record["process_wall"] = record.pop("wall", None)
    return {**record, **outside, "verdict": verdict}


def _check(row: Row, proof: Path, memory: float, children: Children) -> str:
    """`accepted`, `rejected`, or what else came of the independent check (limit: ten times the row's timeout)."""
    command = [*TOOL, "check", row.onnx, row.vnnlib, str(proof)]
    child = children.run(command, proof.with_name("check.txt"), 10 * row.timeout + KILL_AFTER, memory)
    return {0: "accepted", 1: "rejected"}.get(child.status, child.killed or f"error {child.status}")


class Board:
    """The progress bar with counts; silent where the console is no terminal."""

    def __init__(self, console: Any, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        words = "{task.fields[counts]}"
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn(words))
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.task = self.progress.add_task("rows", total=total, counts="")
        self.counts: dict[str, int] = {}

    def add(self, word: str, wrong: bool) -> None:
        self.counts[word] = self.counts.get(word, 0) + 1
        if wrong:
            self.counts["[bold red]WRONG[/]"] = self.counts.get("[bold red]WRONG[/]", 0) + 1
        text = "  ".join(f"{k} {v}" for k, v in self.counts.items())
        self.progress.update(self.task, advance=1, counts=text)


@contextmanager
def stopping(children: Children) -> Iterator[None]:
    """SIGTERM and SIGINT end the children and then the loop."""

    def stop(number: int, frame: FrameType | None) -> None:
        children.stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _work(plan: Plan, done: dict[str, dict[int, Record]], console: Any, children: Children) -> None:
    """Run what is not done yet; the store's run and the run from scratch take turns in going first."""
    expected = read_expected(plan.folder)
    board = Board(console, len(plan.rows) * len(plan.modes))
    lock = threading.Lock()
    memory = _row_memory(plan)

    def one(row: Row) -> None:
        for mode in plan.modes if (row.index + plan.turn) % 2 == 0 else plan.modes[::-1]:
            known = done[mode.name]
            record = known.get(row.index)
            if record is None and not children.stopped:
                record = _run_row(plan, row, mode, memory, children)
                if record is not None:
                    with lock, (plan.out / FILES[mode.name]).open("a") as file:
                        file.write(json_text(record) + "\n")
                    known[row.index] = record
            if record is not None:
                with lock:
                    wrong = is_wrong(record, expected)
                    board.add(record["verdict"], wrong)
                    if wrong:
                        text = f"WRONG: {record['onnx']} {record['vnnlib']}: {record['verdict']}"
                        console.print(text, style="bold red", markup=False, soft_wrap=True)

    with board.progress:
        if plan.jobs == 1:
            for row in plan.rows:
                one(row)
        else:
            with ThreadPoolExecutor(plan.jobs) as pool:
                list(pool.map(one, plan.rows))


def run_rows(plan: Plan, console: Any) -> tuple[dict[str, dict[int, Record]], bool]:
    """Run what the plan's folder does not hold yet: mode -> row -> record, and whether it came to its end.

    It did not when it was interrupted: call again to continue. `console` is a rich console for progress and alarms.
    """
    done = prepare_folder(plan)
    children = Children()
    with stopping(children):
        _work(plan, done, console, children)
    names = [m.name for m in plan.modes]
    chosen = {m: {r.index: done[m][r.index] for r in plan.rows if r.index in done[m]} for m in names}
    for mode, records in chosen.items():
        write_csv(plan, "results.csv" if mode == "store" else f"results_{mode}.csv", records)
    return chosen, not children.stopped


def run_bench(plan: Plan, console: Any, say: Callable[[str], None]) -> int:
    """Run the plan; 0 when no answer is wrong, 1 otherwise, 130 when interrupted (call again to continue).

    `console` is a rich console for progress and alarms, `say` takes the lines of the tables.
    """
    chosen, whole = run_rows(plan, console)
    if plan.scratch:
        for line in table.comparison(chosen["store"], chosen["scratch"], read_methods(plan.folder)):
            say(line)
    for line in table.summary(chosen["store"], len(plan.rows)):
        say(line)
    alarms = find_alarms(plan, chosen)
    for text in alarms:
        console.print(text, style="bold red", markup=False, soft_wrap=True)
    if not whole:
        console.print(f"interrupted; the same command continues in {plan.out}", markup=False, soft_wrap=True)
        return 130
    return 1 if alarms else 0
