"""`python -m tests.opdiff --models N --seed S`: compare N random models with onnxruntime; `--mutants N` reads N broken
ones as well. Exit status 1 on any difference, or when reading ends in anything but a network or an error of mucg4's."""

from __future__ import annotations

import argparse
import sys
import time

from mucg4.read.table import TABLE

from .compare import COVERS, sweep, targets
from .mutants import trial


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.opdiff", description=__doc__)
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutants", type=int, default=0)
    parser.add_argument("--refusals", action="store_true", help="list why models were refused")
    parser.add_argument("--only", nargs="+", default=[], metavar="OP", help="models of these operators only")
    parser.add_argument("--twice", action="store_true", help="compare with the checker's own reading as well")
    parser.add_argument("--table", action="store_true", help="print the table of what is read and stop")
    options = parser.parse_args()
    if options.table:
        for row in TABLE:
            rules = ", ".join(f"{k}: {r.kind} {r.text}" for k, r in row.attributes.items())
            print(f"{row}; variable {row.variable}; constant {row.constant}; {rules}; by {COVERS[row.op].__name__}")
        return 0
    start = time.monotonic()
    tally = sweep(options.seed, options.models, frozenset(options.only), options.twice)
    for text in tally.faults:
        print("DIFFERS", text)
    for text in tally.sessions:
        print("SESSIONS DIFFER", text)
    for reason, count in tally.unread.most_common():
        print(f"{count:6d} not read again: {reason}")
    for reason, count in tally.refused.most_common() if options.refusals else ():
        print(f"{count:6d} refused: {reason}")
    bare = [
        f"{row} {'variable' if v else 'constant'} {kind}"
        for row, v, kind in targets()
        if not tally.compared[row, v, kind] and (not options.only or row.op in options.only)
    ]
    print(f"entries never compared: {len(bare)}", *bare, sep="\n    " if options.refusals else "; ")
    print(f"seed {options.seed}: {dict(tally.counts)} in {time.monotonic() - start:.0f} s")
    counts, faults = trial(options.seed, options.mutants)
    for text in faults:
        print("MUTANT", text)
    if options.mutants:
        print(f"seed {options.seed}: {options.mutants} mutants, {dict(counts)}, {len(faults)} faults")
    return 1 if tally.faults or faults else 0


if __name__ == "__main__":
    sys.exit(main())
