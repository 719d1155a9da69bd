"""The command `verify`: decide one property of one network, or one query over several.

Whatever happens, the result file ends with a legal word; a bug leaves `unknown`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mucg4 import __version__
from mucg4.cli.answer import Answer
from mucg4.cli.options import settings_of
from mucg4.cli.report import run_record
from mucg4.cli.store import open_store
from mucg4.cli.streams import internal_error, one_line, printable, say
from mucg4.errors import InputError, Mucg4Error, StoreError, UnsoundError
from mucg4.files import check_writable, reserve_result, temporary_of, write_result
from mucg4.limits.budget import Budget
from mucg4.limits.loading import loading
from mucg4.limits.memory import is_exhaustion, limit_bytes
from mucg4.limits.watch import GRACE, Watch, limits, started_ago
from mucg4.settings import Settings

SAVING = 7.0  # more seconds that a run gets to end where it has to write a checkpoint; not measured

Lend = Callable[[Any, Budget], Any]  # (query, budget) -> the store that a run uses
Judge = Callable[[Any], int]  # (verdict, None where there is none) -> the exit status of a run that ended well


def run(args: argparse.Namespace, lend: Lend | None = None, judge: Judge = lambda verdict: 0) -> int:
    """Decide, answer in whatever case; the exit status. `lend` makes the store, None opens that of the options."""
    if args.started is not None:
        args.start = time.monotonic() - started_ago(args.started)
    answer = Answer(args)
    if args.result is not None:
        with suppress(OSError):  # the answer itself will tell
            reserve_result(args.result, "unknown\n")
    ending = 0.0 if args.checkpoint is None else SAVING
    budget, hard = limits(args.timeout, args.headroom, args.start, ending)
    memory = limit_bytes(args.memory)
    budget.memory = memory

    def leave(reason: str) -> int:
        if args.checkpoint is not None:
            with suppress(OSError):  # one that is being written
                temporary_of(args.checkpoint).unlink(missing_ok=True)
        return max(answer.last_word(reason), judge(None))

    with Watch(budget, hard, leave, memory, GRACE + ending, args.caller):
        try:
            verdict = _decide(args, answer, budget, lend)
        except Exception as error:  # the last line of defence: a bug must still leave a legal answer
            if is_exhaustion(error):
                error.__traceback__ = None  # its frames hold the arrays that fill the memory
                answer.last_word("out of memory")
                verdict = None
            elif isinstance(error, (Mucg4Error, OSError)) and not isinstance(error, UnsoundError):
                return _refused(answer, error)
            else:
                status = internal_error(error)
                answer.last_word(f"internal error: {one_line(error)}")
                return status
    for text in answer.failures:
        say(f"mucg4: error: {text}")
    return 2 if answer.failures else judge(verdict)


def _decide(args: argparse.Namespace, answer: Answer, budget: Budget, lend: Lend | None) -> Any:
    """Read, decide, answer, write the run record; the verdict. Raises what the stages raise."""
    options = settings_of(args)
    for path, what in ((args.json, "--json"), (args.proof, "--proof"), (args.checkpoint, "--checkpoint")):
        if path is not None:
            check_writable(path, what)
    with loading():
        from mucg4.read.instance import read_query
        from mucg4.read.onnx import read_network  # noqa: F401
        from mucg4.search.standing import Standing
        from mucg4.verify import verify

    onnx, vnnlib = _paths(args)
    query = read_query(onnx, vnnlib, dict(args.shape))
    if answer.standard:
        options = _as_declared(query, options)
    note = query.network.note
    store, warnings = None, [f"{onnx}: {note} (--shape states another)"] if note else []
    try:
        store = open_store(args.store) if lend is None else lend(query, budget)
    except StoreError as error:
        warnings.append(f"store not used: {one_line(error)}")

    def announce(verdict: Any) -> None:
        witness = getattr(verdict, "witness", None)
        answer.announce(verdict.word, "" if witness is None else _assignment(args, answer, query, witness))

    standing = answer.standing = Standing(_checkpoint(args))
    try:
        verdict = verify(query, options, store, budget, say if args.verbose else None, announce, standing=standing)
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
        from mucg4.model.proof_file import write_proof

        try:
            write_proof(proof, args.proof, _enclosed(query) if args.proof_network else None)
        except OSError as error:
            answer.failures.append(f"cannot write {args.proof}: {error.strerror or error}")
    answer.record(record)
    if store is not None:
        store.close()
    if not verdict.final:
        say(f"mucg4: {_left(standing, verdict)}")
    elif standing.checkpoint is not None and not answer.failures:
        try:
            standing.checkpoint.remove()
        except OSError as error:
            answer.failures.append(f"cannot remove {args.checkpoint}: {error.strerror or error}")
    return verdict


def _checkpoint(args: argparse.Namespace) -> Any:
    if args.checkpoint is None:
        return None
    from mucg4.search.checkpoint import Checkpoint

    return Checkpoint(args.checkpoint)


def _left(standing: Any, verdict: Any) -> str:
    """Why there is no verdict, or none that was checked, and what is left to do, in one line."""
    from mucg4.search.standing import spoken

    s = verdict.statistics
    parts = [printable(getattr(verdict, "reason", "unchecked"))]
    if s.open_share is not None:
        parts.append(spoken({"open_share": s.open_share, "open_cases": s.open_cases}))
    if s.checker == "unfinished":
        parts.append(f"checked: {s.checked_leaves} of {s.leaves} leaves")
    if standing.checkpoint is not None and standing.checkpoint.path.exists():
        parts.append(f"--checkpoint {standing.checkpoint.path} goes on from here")
    return "; ".join(parts)


def _enclosed(query: Any) -> dict[str, Any]:
    """The network and the property beside the proof, for `recertify`."""
    from mucg4.store.travel import enclosed

    return enclosed(query)


def _as_declared(query: Any, options: Settings) -> Settings:
    """Under the standard a declared type asks for its arithmetic; `real` is the consent to real functions."""
    declared = query.joint.declared.variables if query.joint is not None else ()
    return replace(options, arithmetic="float32") if any(v.element != "real" for v in declared) else options


def _assignment(args: argparse.Namespace, answer: Answer, query: Any, witness: Any) -> str:
    """The witness in the grammar of the property's version; empty where it goes into a folder."""
    if query.joint is None or query.joint.version1:
        from mucg4.cli.report import witness_text

        return witness_text(*(witness.values or (witness.x, witness.y)))
    from mucg4.gate.assignment import assignment_text, write_assignment

    if args.serialise_assignments is None:
        return assignment_text(query, witness)
    try:
        write_assignment(query, witness, args.serialise_assignments)
    except InputError as error:
        answer.failures.append(one_line(error))
    return ""


def _paths(args: argparse.Namespace) -> tuple[str, Path]:
    """Network(s) and property of the three forms: `NET PROP`, `[('f', 'NET'), ...] PROP`, `QUERY --network f=NET`."""
    if args.network:
        pairs = [text.partition("=") for text in args.network]
        if len(args.paths) != 1 or not all(name and path for name, _, path in pairs):
            raise InputError("use either NET PROP or QUERY --network NAME=NET")
        return repr([(name, path) for name, _, path in pairs]), Path(args.paths[0])
    if len(args.paths) != 2:
        raise InputError("a network and a property are needed: NET PROP or QUERY --network NAME=NET")
    return args.paths[0], Path(args.paths[1])


def _refused(answer: Answer, error: Exception) -> int:
    """Bad input: no verdict word on stdout, the legal word `unknown` in the result file."""
    say(f"mucg4: error: {one_line(error)}")
    answer.record({"mucg4": __version__, "verdict": "error", "reason": one_line(error)})
    if answer.result is not None:
        answer.write(write_result, answer.result, "unknown\n")
    return 2
