"""The command `case`: replay saved failing cases."""

from __future__ import annotations

import argparse
from pathlib import Path

from mucg4.cli.limited import limited, spent
from mucg4.cli.streams import put
from mucg4.limits.budget import Budget


def run(args: argparse.Namespace) -> int:
    """Replay each file; the exit status."""
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as folder:

        def replay(budget: Budget) -> int:
            from mucg4.lab.case import run_case

            failing = 0
            for number, path in enumerate(args.files):
                report = run_case(path, budget, Path(folder) / str(number))
                budget.poll()  # what an ended budget kept from being decided is no finding
                put(f"{path}: {'fixed' if report.ok else 'still failing'}\n")
                put("".join(f"  {engine}: {word}\n" for engine, word in report.findings.items()))
                put("".join(f"  problem: {text}\n" for text in report.problems))
                failing += not report.ok
            return 1 if failing else 0

        def leave(reason: str) -> int:
            shutil.rmtree(folder, ignore_errors=True)
            return spent(reason)

        return limited(args, replay, leave)
