"""The command `verify`: decide one property of one network.

Whatever happens, the result file ends with a legal word; a bug leaves `unknown`.
"""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mucg4 import __version__
from mucg4.cli.answer import Answer
from mucg4.cli.options import settings_of
from mucg4.cli.report import run_record
from mucg4.cli.store import open_store
from mucg4.cli.streams import internal_error, one_line, printable, say
from mucg4.errors import InputError, Mucg4Error, StoreError, UnsoundError, UnsupportedError
from mucg4.files import check_writable, reserve_result, write_result
from mucg4.limits.budget import Budget
from mucg4.limits.loading import loading
from mucg4.limits.memory import is_exhaustion, limit_bytes
from mucg4.limits.watch import Watch, limits, started_ago


def run(args: argparse.Namespace) -> int:
    """Decide, answer in whatever case; the exit status."""
    if args.started is not None:
        args.start = time.monotonic() - started_ago(args.started)
    answer = Answer(args)
    if args.result is not None:
        with suppress(OSError):  # the answer itself will tell
            reserve_result(args.result, "unknown\n")
    budget, hard = limits(args.timeout, args.headroom, args.start)
    memory = limit_bytes(args.memory)
    budget.memory = memory
    with Watch(budget, hard, answer.last_word, memory, caller=args.caller):
        try:
            _decide(args, answer, budget)
        except Exception as error:  # the last line of defence: a bug must still leave a legal answer
            if is_exhaustion(error):
                error.__traceback__ = None  # its frames hold the arrays that fill the memory
                answer.last_word("out of memory")
            elif isinstance(error, (Mucg4Error, OSError)) and not isinstance(error, UnsoundError):
                return _refused(answer, error)
            else:
                status = internal_error(error)
                answer.last_word(f"internal error: {one_line(error)}")
                return status
    for text in answer.failures:
        say(f"mucg4: error: {text}")
    return 2 if answer.failures else 0


def _decide(args: argparse.Namespace, answer: Answer, budget: Budget) -> None:
    """Read, decide, answer, write the run record. Raises what the stages raise."""
    options = settings_of(args)
    for path, what in ((args.json, "--json"), (args.proof, "--proof")):
        if path is not None:
            check_writable(path, what)
    with loading():
        from mucg4.read.instance import read_query
        from mucg4.read.onnx import read_network  # noqa: F401
        from mucg4.verify import verify

    onnx, vnnlib = _paths(args)
    query = read_query(onnx, vnnlib)
    store, warnings = None, []
    try:
        store = open_store(args.store)
    except StoreError as error:
        warnings.append(f"store not used: {one_line(error)}")

    def announce(verdict: Any) -> None:
        answer.announce(verdict.word, getattr(verdict, "witness", None))

    try:
        verdict = verify(query, options, store, budget, say if args.verbose else None, announce)
    except InputError as error:  # of onnxruntime, which does not know what the file is called
        raise error if str(onnx) in str(error) else type(error)(f"{onnx}: {error}") from error
    announce(verdict)
    record = run_record(verdict)
    stored = store.warnings if store is not None else []
    record["warnings"] = list(dict.fromkeys([*warnings, *stored, *record["warnings"]]))
    for text in record["warnings"]:
        say(f"mucg4: warning: {printable(text)}")
    proof = getattr(verdict, "proof", None)
    if args.proof is not None and proof is not None:
        from mucg4.model.proof_text import write_proof

        try:
            write_proof(proof, args.proof)
        except OSError as error:
            answer.failures.append(f"cannot write {args.proof}: {error.strerror or error}")
    answer.record(record)
    if store is not None:
        store.close()


def _paths(args: argparse.Namespace) -> tuple[Path, Path]:
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
    return Path(networks[0][1]), Path(query)


def _network_list(text: str) -> list[tuple[str, str]]:
    """The competition's network argument: a path, or a Python list of (name, path)."""
    if not text.startswith("[") or Path(text).exists():
        return [("", text)]
    import ast

    try:
        pairs = ast.literal_eval(text)
        return [(str(name), str(path)) for name, path in pairs]
    except (ValueError, SyntaxError, TypeError) as error:
        raise InputError(f"malformed list of networks: {text}") from error


def _refused(answer: Answer, error: Exception) -> int:
    """Bad input: no verdict word on stdout, the legal word `unknown` in the result file."""
    say(f"mucg4: error: {one_line(error)}")
    answer.record({"mucg4": __version__, "verdict": "error", "reason": one_line(error)})
    if answer.result is not None:
        answer.write(write_result, answer.result, "unknown\n")
    return 2
