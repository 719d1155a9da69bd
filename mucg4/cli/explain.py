"""The command `explain`: what carries a proof, in words and as a picture."""

from __future__ import annotations

import argparse

from mucg4.cli.limited import limited, spent
from mucg4.cli.store import run_of, store_path, stored_for
from mucg4.cli.streams import put
from mucg4.errors import InputError
from mucg4.files import check_writable
from mucg4.limits.budget import Budget


def run(args: argparse.Namespace) -> int:
    """Explain a proof; the exit status."""

    def explain(budget: Budget) -> int:
        from mucg4.reuse.explain import explained

        if args.plot is not None:
            check_writable(args.plot, "--plot")
        run = run_of(args, budget)
        if args.proof is not None:
            from mucg4.model.proof_file import read_proof

            proof = read_proof(args.proof, budget.poll)
        else:
            from mucg4.store.store import Store

            path = store_path(args.store)
            if path is None:
                raise InputError("the store is off")
            with Store(path if path.exists() else ":memory:") as store:
                _, proof = stored_for(store, run)
        query = run.query
        if (proof.network, proof.property) != (query.network.fingerprint, query.property_hash):
            raise InputError("the proof is for another network or property")
        text, measured = explained(proof, query, budget)
        put("".join(f"{line}\n" for line in text))
        if args.plot is not None:
            from mucg4.reuse.cover import draw

            draw(proof, query, measured, args.plot)
        return 0

    return limited(args, explain, spent)
