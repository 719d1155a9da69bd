"""The command `check`: re-check a proof independently."""

from __future__ import annotations

import argparse
from pathlib import Path

from mucg4.cli.limited import LastWord, limited
from mucg4.cli.streams import one_line
from mucg4.errors import ProofError
from mucg4.limits.budget import Budget


def run(args: argparse.Namespace) -> int:
    """Re-check a proof; the exit status."""
    word = LastWord()

    def reject(reason: str) -> int:
        return word(f"rejected: {reason}\n", 1)

    def recheck(budget: Budget) -> int:
        from mucg4.evidence import established
        from mucg4.limits.processes import usable_cores
        from mucg4.model.proof_file import read_proof
        from mucg4.precision import settle
        from mucg4.read.instance import read_query

        query = read_query(Path(args.onnx), Path(args.vnnlib), dict(args.shape))
        budget.poll()
        try:
            proof = read_proof(args.proof, budget.poll)
            if query.finer is not None and proof.property != query.property_hash:
                from mucg4.search.choices import refined

                query = refined(query, budget) or query
            report = established(proof, query, budget, usable_cores(), args.exact)
        except ProofError as error:
            return reject(one_line(error))
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

    return limited(args, recheck, reject)
