"""The command `recertify`: verify a variant with proofs that were made elsewhere, without a store."""

from __future__ import annotations

import argparse
import time
from typing import Any

from mucg4.cli import verify
from mucg4.cli.streams import one_line, put
from mucg4.errors import InputError, ProofError
from mucg4.limits.budget import Budget


def run(args: argparse.Namespace) -> int:
    """Verify, and say what was reused; the exit status."""
    lent: list[Any] = []

    def lend(query: Any, budget: Budget) -> Any:
        from mucg4.read.instance import model_of
        from mucg4.store.travel import lend

        parents = [model_of(path) for path in args.parent]
        try:
            found = lend(query, args.sources, parents, budget.poll)
        except ProofError as error:
            raise InputError(f"{' '.join(map(str, args.sources))}: {one_line(error)}") from error
        lent.append(found)
        return found.store

    def judge(verdict: Any) -> int:
        if verdict is not None and lent:
            put(_reused(verdict, lent[0], time.monotonic() - args.start) + "\n")
        word = None if verdict is None else verdict.word
        return 1 if args.require is not None and word != args.require else 0

    return verify.run(args, lend, judge)


def _reused(verdict: Any, lent: Any, seconds: float) -> str:
    """One line on where the verdict comes from."""
    s = verdict.statistics
    if s.resumed_seconds is not None:
        closed = f"{s.rungs['checked']} of {s.stored_leaves} leaves of the checkpoint hold"
        return f"{closed}; {s.regions} regions searched; {seconds:.2f} s"
    path = lent.files.get(s.related_proof or "")
    if path is None:
        none = "no proof was of use" if s.regions or verdict.word != "sat" else "no proof was needed"
        return f"{none}; {s.regions} regions searched; {seconds:.2f} s"
    relation = f"{s.relation}, {s.relation_detail}" if s.relation_detail else s.relation
    if s.related_proof in lent.placed:
        relation = "neurons by their places"
    closed = sum(count for rung, count in s.rungs.items() if rung != "witness")
    share = f"{closed} of {s.stored_leaves} leaves" if s.stored_leaves else "nothing"
    checked = f"; checker {s.checker}" if s.checker else ""
    return f"reused {share} of {path} ({relation}); {s.regions} regions searched{checked}; {seconds:.2f} s"
