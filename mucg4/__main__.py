"""Command line: verify | check | bench | store | case | compress. The only place that prints.

Exit status: 0 done (whatever the verdict), 1 a negative answer (proof rejected, case still failing, wrong answers
in a benchmark), 2 bad input or a spent limit with one line on stderr, 3 a bug in mucg4, 130 interrupted.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from mucg4 import __version__
from mucg4.errors import BudgetError, InputError, Mucg4Error, ProofError, StoreError, UnsoundError, UnsupportedError
from mucg4.limits.budget import Budget
from mucg4.limits.memory import is_exhaustion, limit_bytes
from mucg4.limits.watch import Watch, limits, process_age, started_ago
from mucg4.settings import Settings

LEAVING = 0.5  # seconds a command other than verify gets to end by itself after a signal
STORE_HELP = "SQLite file of stored proofs, or off (default: MUCG4_STORE, else a file in the user's cache folder)"


def _say(text: str) -> None:
    """One line (or more) on stderr; a closed stream is no reason to fail."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass


def _put(text: str) -> None:
    """Text on stdout; a closed pipe is no reason to fail."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _say(f"mucg4: error: {message}")
        sys.exit(2)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number (without a unit): {text}") from None
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"not a number from 0 up: {text}")
    return value


# --- verify ----------------------------------------------------------------------------------------------------


class Answer:
    """Writes the answer once: result file, then stdout, then the run record. Safe against the watch thread."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.result: Path | None = args.result
        self.json: Path | None = args.json
        self.start: float = args.start
        self.facts = {"onnx": args.paths[0], "vnnlib": args.paths[-1], "timeout": args.timeout}
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._word: str | None = None
        self._recorded = False

    def announce(self, word: str, witness: Any = None) -> None:
        """Result file and stdout; only the first call counts."""
        from mucg4.report import answer_text, write_result

        with self._lock:
            if self._word is not None:
                return
            self._word = word
            text = answer_text(word, witness)
            if self.result is not None:
                self.write(write_result, self.result, text)
            _put(text)

    def record(self, content: dict[str, Any]) -> None:
        """The run record; only the first call counts."""
        from mucg4.report import json_text, write_atomic

        with self._lock:
            if self._recorded or self.json is None:
                return
            self._recorded = True
            content = {**content, **self.facts, "wall": time.monotonic() - self.start}
            self.write(write_atomic, self.json, json_text(content, indent=1) + "\n")

    def last_word(self, reason: str) -> int:
        """The answer of a run that has to leave now; an answer already announced stands. Returns the exit status."""
        self.announce("timeout" if reason == "timeout" else "unknown")
        self.record({"mucg4": __version__, "verdict": self._word, "reason": reason})
        return 0

    def write(self, write: Callable[[Path, str], None], path: Path, text: str) -> None:
        try:
            write(path, text)
        except OSError as error:
            self.failures.append(f"cannot write {path}: {error.strerror or error}")


def _paths(args: argparse.Namespace) -> tuple[str, str]:
    """ONNX and property path of the three forms: `NET PROP`, `[('f', 'NET')] PROP`, `QUERY --network f=NET`."""
    if args.network:
        pairs = [text.partition("=") for text in args.network]
        if len(args.paths) != 1 or not all(name and path for name, _, path in pairs):
            raise InputError("use either NET PROP or QUERY --network NAME=NET")
        networks, query = [(name, path) for name, _, path in pairs], args.paths[0]
    elif len(args.paths) == 2:
        networks, query = _network_list(args.paths[0]), args.paths[1]
    else:
        raise InputError("a network and a property are needed: NET PROP or QUERY --network NAME=NET")
    if len(networks) != 1:
        raise UnsupportedError(f"queries over {len(networks)} networks are not supported yet")
    return networks[0][1], query


def _network_list(text: str) -> list[tuple[str, str]]:
    """The competition's network argument: a path, or a Python list of (name, path)."""
    if not text.startswith("[") or Path(text).exists():
        return [("", text)]
    try:
        pairs = ast.literal_eval(text)
        return [(str(name), str(path)) for name, path in pairs]
    except (ValueError, SyntaxError, TypeError) as error:
        raise InputError(f"malformed list of networks: {text}") from error


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(**{f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)})


def _store_path(text: str | None) -> Path | None:
    """The file named by `--store` or `MUCG4_STORE`, else the default one; None when off."""
    name = text or os.environ.get("MUCG4_STORE") or ""
    if name == "off":
        return None
    from mucg4.store.store import default_path

    return Path(name) if name else default_path()


def _open_store(text: str | None) -> Any:
    """The store to use, None when off. Raises `StoreError`."""
    path = _store_path(text)
    if path is None:
        return None
    from mucg4.store.store import Store

    return Store(path)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`[NAME=]N,N,...`: the shape of an input of the network."""
    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(n) for n in sizes.strip("[]() ").replace("x", ",").split(",") if n.strip())
    except ValueError:
        shape = (0,)
    if min(shape, default=1) < 1:
        raise argparse.ArgumentTypeError(f"not a shape like 1,3,32,32 or NAME=1,3,32,32: {text}")
    return name, shape


def _add_shape(p: argparse.ArgumentParser) -> None:
    text = "shape of an input whose sizes the network leaves open; once for each such input"
    p.add_argument("--shape", type=_shape, action="append", default=[], metavar="[NAME=]N,N,...", help=text)


def _read(onnx: str, vnnlib: str, shapes: Sequence[tuple[str, tuple[int, ...]]] = ()) -> Any:
    from mucg4.read.instance import read_query

    return read_query(Path(onnx), Path(vnnlib), dict(shapes))


def _run_verify(args: argparse.Namespace, answer: Answer, budget: Budget) -> None:
    from mucg4.report import check_writable, run_record

    settings = _settings(args)
    for path, what in ((args.json, "--json"), (args.proof, "--proof")):
        if path is not None:
            check_writable(path, what)
    onnx, vnnlib = _paths(args)
    query = _read(onnx, vnnlib, args.shape)
    note = query.network.note
    store, warnings = None, [f"{onnx}: {note} (--shape states another)"] if note else []
    try:
        store = _open_store(args.store)
    except StoreError as error:
        warnings.append(f"store not used: {_one_line(error)}")
    from mucg4.verify import verify

    def announce(verdict: Any) -> None:
        answer.announce(verdict.word, getattr(verdict, "witness", None))

    try:
        verdict = verify(query, settings, store, budget, _say if args.verbose else None, announce)
    except InputError as error:  # of onnxruntime, which does not know what the file is called
        raise error if str(onnx) in str(error) else type(error)(f"{onnx}: {error}") from error
    announce(verdict)
    record = run_record(verdict)
    stored = store.warnings if store is not None else []
    record["warnings"] = list(dict.fromkeys([*warnings, *stored, *record["warnings"]]))
    for text in record["warnings"]:
        _say(f"mucg4: warning: {_plain(text)}")
    proof = getattr(verdict, "proof", None)
    if args.proof is not None and proof is not None:
        from mucg4.model.proof import write_proof

        try:
            write_proof(proof, args.proof)
        except OSError as error:
            answer.failures.append(f"cannot write {args.proof}: {error.strerror or error}")
    answer.record(record)
    if store is not None:
        store.close()


def _verify(args: argparse.Namespace) -> int:
    if args.started is not None:
        args.start = time.monotonic() - started_ago(args.started)
    answer = Answer(args)
    if args.result is not None:
        from mucg4.report import reserve_result

        with suppress(OSError):  # the answer itself will tell
            reserve_result(args.result, "unknown\n")
    budget, hard = limits(args.timeout, args.headroom, args.start)
    memory = limit_bytes(args.memory)
    budget.memory = memory
    with Watch(budget, hard, answer.last_word, memory, caller=args.caller):
        try:
            _run_verify(args, answer, budget)
        except Exception as error:  # the last line of defence: a bug must still leave a legal answer
            if is_exhaustion(error):
                error.__traceback__ = None  # its frames hold the arrays that fill the memory
                answer.last_word("out of memory")
            elif isinstance(error, (Mucg4Error, OSError)) and not isinstance(error, UnsoundError):
                return _refused(answer, error)
            else:
                return _bug(answer, error)
    for text in answer.failures:
        _say(f"mucg4: error: {text}")
    return 2 if answer.failures else 0


def _refused(answer: Answer, error: Exception) -> int:
    """Bad input: no verdict word on stdout, the legal word `unknown` in the result file."""
    from mucg4.report import write_result

    _say(f"mucg4: error: {_one_line(error)}")
    answer.record({"mucg4": __version__, "verdict": "error", "reason": _one_line(error)})
    if answer.result is not None:
        answer.write(write_result, answer.result, "unknown\n")
    return 2


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return _plain(str(error)) or type(error).__name__


def _plain(text: str) -> str:
    """Text on one line, without characters that do something to a terminal: it may quote a file."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _bug(answer: Answer | None, error: BaseException) -> int:
    _say(f"mucg4: internal error: {type(error).__name__}: {_one_line(error)}")
    if os.environ.get("MUCG4_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if answer is not None:
        answer.last_word(f"internal error: {_one_line(error)}")
    return 3


# --- the other commands ----------------------------------------------------------------------------------------


class _LastWord:
    """What a command ends with: the first text counts, whichever thread says it, and its exit status."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._status: int | None = None

    def __call__(self, text: str, status: int, say: Callable[[str], None] = _put) -> int:
        with self._lock:
            if self._status is None:
                self._status = status
                say(text)
            return self._status


def _limited(args: argparse.Namespace, run: Callable[[Budget], int], ending: Callable[[str], int]) -> int:
    """Run a command within its time and memory. `ending(reason)` is said by one that has to leave; the exit status."""
    budget, hard = limits(args.timeout, 0.0, args.start)
    budget.memory = limit_bytes(args.memory)
    with Watch(budget, hard, ending, budget.memory, grace=LEAVING):
        try:
            return run(budget)
        except BudgetError as error:
            return ending(str(error))
        except Exception as error:
            if not is_exhaustion(error) or isinstance(error, Mucg4Error):
                raise
            error.__traceback__ = None  # its frames hold the arrays that fill the memory
            return ending("out of memory")


def _spent(reason: str) -> int:
    """The last word of a command whose answer is no verdict."""
    _say(f"mucg4: error: {reason}")
    return 130 if reason.startswith("interrupted") else 2


def _check(args: argparse.Namespace) -> int:
    word = _LastWord()

    def reject(reason: str) -> int:
        return word(f"rejected: {reason}\n", 1)

    def run(budget: Budget) -> int:
        from mucg4.evidence import established
        from mucg4.limits.processes import usable_cores
        from mucg4.model.proof import read_proof
        from mucg4.precision import settle

        query = _read(args.onnx, args.vnnlib, args.shape)
        budget.poll()
        try:
            report = established(read_proof(args.proof, budget.poll), query, budget, usable_cores(), args.exact)
        except ProofError as error:
            return reject(_one_line(error))
        counts = f"leaves checked {report.checked}, failed {report.failed}, skipped {report.skipped}"
        if not report.accepted:
            return reject(f"{report.reason}\n{counts}")
        read = f"read by one reader only: {'; '.join(report.fallback)}" if report.fallback else "both files read twice"
        if args.exact:
            from mucg4.check.exactly import exactly_equal

            gap = exactly_equal(query.network.model_bytes, query.network)
            read += "\nnetwork: exactly the stored one" if gap is None else f"\nnetwork: taken as read ({gap})"
        precise = settle(query, report.proof, None, budget, demanded=True).word
        return word(f"accepted\n{counts}\nfloat32: {precise}\n{read}\n", 0)

    return _limited(args, run, reject)


def _store(args: argparse.Namespace) -> int:
    return _limited(args, lambda budget: _look_into_store(args), _spent)


def _look_into_store(args: argparse.Namespace) -> int:
    from mucg4.report import entry_line, stored_text
    from mucg4.store.store import Store

    path = _store_path(args.store)
    if path is None:
        raise InputError("the store is off")
    with Store(path if path.exists() else ":memory:") as store:
        if args.action == "show":
            _put(stored_text(*store.show(args.key)))
            return 0
        if args.action == "list":
            _put("".join(map(entry_line, store.entries())))
        elif args.action == "gc":
            _put(f"{store.gc()} results removed\n")
        else:
            _put(f"{store.clear()} results removed\n")
        _put(f"{path}: {len(store.entries())} results, {store.used_bytes() / 2**10:.0f} KiB\n")
        for text in store.warnings:
            _say(f"mucg4: warning: {_plain(text)}")
    return 0


def _case(args: argparse.Namespace) -> int:
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as folder:

        def run(budget: Budget) -> int:
            from mucg4.lab.case import run_case

            failing = 0
            for number, path in enumerate(args.files):
                report = run_case(path, budget, Path(folder) / str(number))
                budget.poll()  # what an ended budget kept from being decided is no finding
                _put(f"{path}: {'fixed' if report.ok else 'still failing'}\n")
                _put("".join(f"  {engine}: {word}\n" for engine, word in report.findings.items()))
                _put("".join(f"  problem: {text}\n" for text in report.problems))
                failing += not report.ok
            return 1 if failing else 0

        def leave(reason: str) -> int:
            shutil.rmtree(folder, ignore_errors=True)
            return _spent(reason)

        return _limited(args, run, leave)


def _compress(args: argparse.Namespace) -> int:
    def run(budget: Budget) -> int:
        from mucg4.lab.compress import compress
        from mucg4.read.instance import read_model
        from mucg4.report import check_writable, write_atomic

        check_writable(args.output, "-o")
        data, _ = read_model(args.network)
        budget.poll()
        write_atomic(args.output, compress(data, args.method, args.seed))
        return 0

    def leave(reason: str) -> int:
        from mucg4.report import temporary_of

        temporary_of(args.output).unlink(missing_ok=True)
        return _spent(reason)

    return _limited(args, run, leave)


def _bench(args: argparse.Namespace) -> int:
    from rich.console import Console

    from mucg4.bench.plan import make_plan
    from mucg4.bench.run import run_bench

    def say(text: str) -> None:
        _put(text + "\n")

    if args.source is None and args.compare is None:
        raise InputError("a benchmark folder to run is needed, or result files to --compare")
    theirs = _theirs(args)  # read before anything runs, so that a wrong file costs no time
    if args.source is None:
        from mucg4.bench.claims import read_reference
        from mucg4.bench.side_by_side import run_compare

        out = args.out or Path("bench-out") / "compare"
        return run_compare(theirs, read_reference(args.benchmarks or []), out, args.plots, say)
    if args.benchmarks:
        raise InputError("--benchmarks goes with --compare without a folder to run")
    plan = make_plan(args, _extra_options(args))
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
    return read_all(args.compare, [] if args.source is None else own)


OWN_TO_BENCH = ("timeout", "memory")  # settings that `bench` gives its children row by row


def _extra_options(args: argparse.Namespace) -> list[str]:
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


# --- parser ----------------------------------------------------------------------------------------------------


def _add_settings(parser: argparse.ArgumentParser, skip: tuple[str, ...] = ()) -> None:
    """One option per field of `Settings`."""
    group = parser.add_argument_group("settings")
    for f in fields(Settings):
        if f.name in skip:
            continue
        name, text = "--" + f.name.replace("_", "-"), f.metadata["help"].replace("%", "%%")
        if isinstance(f.default, bool):
            text += f" (default: {'on' if f.default else 'off'})"
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=f.default, help=text)
        elif f.metadata["choices"]:
            text += f" (default: {f.default or 'none'})"
            choices = [c for c in f.metadata["choices"] if c]
            group.add_argument(name, choices=choices, default=f.default, help=text)
        else:
            text += "" if f.default is None else f" (default: {f.default})"
            kind = type(f.default) if f.default is not None else _amount
            group.add_argument(name, type=kind, default=f.default, help=text, metavar=f.metadata["unit"])


def _add_limits(p: argparse.ArgumentParser) -> None:
    """Time and memory of a command other than `verify`, whose settings hold them."""
    p.add_argument("--timeout", type=_amount, metavar="S", help="give up after S seconds")
    text = "memory of the command in GiB (default: 80 % of what is free)".replace("%", "%%")
    p.add_argument("--memory", type=_amount, metavar="GiB", help=text)


def _add_verify(commands: Any) -> None:
    p = commands.add_parser("verify", help="decide one property of one network")
    p.set_defaults(run=_verify)
    p.add_argument("paths", nargs="+", metavar="NET PROP", help="ONNX file and VNN-LIB file; .gz is accepted")
    p.add_argument("--network", action="append", metavar="NAME=NET", help="with QUERY as the only path")
    _add_shape(p)
    p.add_argument("--store", metavar="PATH|off", help=STORE_HELP)
    p.add_argument("--json", type=Path, metavar="FILE", help="write the run record")
    p.add_argument("--proof", type=Path, metavar="FILE", help="write the proof of an unsat verdict; .gz compresses it")
    p.add_argument("--verbose", "-v", action="store_true", help="progress on stderr")
    p.add_argument("--result", type=Path, metavar="FILE", help="write the competition's result file")
    p.add_argument("--started", type=float, metavar="EPOCH", help="moment the timeout counts from (seconds)")
    p.add_argument("--headroom", type=_amount, default=0.0, metavar="S", help="leave S seconds before the timeout")
    p.add_argument("--caller", type=int, metavar="PID", help="end without a word when this process ends")
    _add_settings(p)


def _add_bench(commands: Any) -> None:
    p = commands.add_parser("bench", help="run a benchmark folder, one child process per instance; compare tools")
    p.set_defaults(run=_bench)
    text = "folder with instances.csv, or the list itself; may be missing with --compare"
    p.add_argument("source", type=Path, nargs="?", metavar="DIR|CSV", help=text)
    text = "where results go (default: bench-out/<name of the folder>, without one bench-out/compare)"
    p.add_argument("--out", type=Path, metavar="DIR", help=text)
    p.add_argument("--store", default=None, metavar="PATH|off|fresh", help=STORE_HELP + "; fresh: a new one in --out")
    p.add_argument("--with-scratch", action="store_true", help="run each row also with the store off, and compare")
    p.add_argument("--rows", metavar="A:B", help="only these rows of the list (Python slice)")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    p.add_argument("--first-per-network", type=int, metavar="N", help="only the first N rows of each network")
    p.add_argument("--timeout-cap", type=_amount, metavar="S", help="cut longer timeouts to S seconds")
    text = "memory limit of a row (default: as for verify, divided by --jobs)"
    p.add_argument("--memory", type=_amount, metavar="GiB", help=text)
    text = "rows run at the same time, sharing the cores (default: 1)"
    p.add_argument("--jobs", type=int, default=1, metavar="N", help=text)
    text = "re-check proofs with the independent checker; S: only of rows that took under S seconds"
    p.add_argument("--check", type=_amount, nargs="?", const=float("inf"), metavar="S", help=text)
    _add_compare(p)
    text = "continue an interrupted run in --out (default: on)"
    p.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=text)
    _add_settings(p, skip=OWN_TO_BENCH)


def _add_compare(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("comparison with other tools, from result files only")
    text = """result files: the official layout, results of mucg4 bench, or a list with a header. With DIR: compared
    with this run after it, on its rows and timeouts. Without: with each other, nothing is run; the first is the one
    the others are held against. NAME names the tool (default: the file's name, for results.csv its folder's)"""
    group.add_argument("--compare", nargs="+", metavar="[NAME=]FILE", help=text)
    text = """without DIR: benchmark folders, or folders of such, whose instances.csv and expected.csv give the timeouts
    and known answers"""
    group.add_argument("--benchmarks", nargs="+", type=Path, metavar="DIR", help=text)
    text = "draw pictures of the comparison; needs matplotlib (default: on)"
    group.add_argument("--plots", action=argparse.BooleanOptionalAction, default=True, help=text)


def _add_store(commands: Any) -> None:
    p = commands.add_parser("store", help="look into the proof store")
    p.set_defaults(run=_store)
    p.add_argument("--store", metavar="PATH", help=STORE_HELP)
    _add_limits(p)
    actions = p.add_subparsers(dest="action", required=True, metavar="list|show|gc|clear")
    actions.add_parser("list", help="one line per stored result")
    show = actions.add_parser("show", help="all about one stored result")
    show.add_argument("key", help="its key or the start of it")
    actions.add_parser("gc", help="evict down to the size limit and compact the file")
    actions.add_parser("clear", help="forget everything")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mucg4", description="Neural-network verifier that reuses proofs across compressed networks.")
    parser.add_argument("--version", action="version", version=f"mucg4 {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_verify(commands)
    p = commands.add_parser("check", help="re-check a proof independently: exit 0 accepted, 1 rejected")
    p.set_defaults(run=_check)
    p.add_argument("onnx", metavar="NET")
    p.add_argument("vnnlib", metavar="PROP")
    p.add_argument("proof", type=Path, metavar="PROOF")
    _add_shape(p)
    _add_limits(p)
    p.add_argument("--exact", action="store_true", help="integer arithmetic throughout: small ReLU networks, slower")
    _add_bench(commands)
    _add_store(commands)
    p = commands.add_parser("case", help="replay saved failing cases: exit 0 fixed, 1 still failing")
    p.set_defaults(run=_case)
    p.add_argument("files", type=Path, nargs="+", metavar="FILE")
    _add_limits(p)
    p = commands.add_parser("compress", help="make a compressed variant of a network")
    p.set_defaults(run=_compress)
    p.add_argument("network", type=Path, metavar="NET")
    p.add_argument("--method", required=True, help="fp16, bf16, int8, qdq8, prune30, neurons10, tune3, permute, ...")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    _add_limits(p)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Times count from the start of the process for the real command line, from this call for a given `argv`.
    """
    start = time.monotonic() - (process_age() if argv is None else 0.0)
    args = _parser().parse_args(argv)
    args.start = start
    try:
        return int(args.run(args))
    except UnsoundError as error:
        return _bug(None, error)
    except MemoryError:
        _say("mucg4: error: out of memory")
        return 2
    except (Mucg4Error, OSError) as error:
        _say(f"mucg4: error: {_one_line(error)}")
        return 2
    except KeyboardInterrupt:
        _say("mucg4: interrupted")
        return 130
    except Exception as error:
        return _bug(None, error)


if __name__ == "__main__":
    sys.exit(main())
