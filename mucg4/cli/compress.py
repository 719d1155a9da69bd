"""The command `compress`: make a compressed variant of a network."""

from __future__ import annotations

import argparse

from mucg4.cli.limited import limited, spent
from mucg4.files import check_writable, temporary_of, write_atomic
from mucg4.limits.budget import Budget


def run(args: argparse.Namespace) -> int:
    """Write the variant whole or not at all; the exit status."""

    def write(budget: Budget) -> int:
        from mucg4.lab.compress import compress
        from mucg4.read.instance import read_model

        check_writable(args.output, "-o")
        data, _ = read_model(args.network)
        budget.poll()
        write_atomic(args.output, compress(data, args.method, args.seed))
        return 0

    def leave(reason: str) -> int:
        temporary_of(args.output).unlink(missing_ok=True)
        return spent(reason)

    return limited(args, write, leave)
