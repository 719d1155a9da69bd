"""`python -m tests.exports --write DIR` writes models with two properties each, `--answer DIR` verifies them."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.exports", description=__doc__)
    parser.add_argument("--write", metavar="DIR")
    parser.add_argument("--answer", metavar="DIR")
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--timeout", type=float, default=20.0)
    options = parser.parse_args()
    if options.write:
        from .write import written

        for name, problem in written(Path(options.write), options.only):
            if problem:
                print(f"{name}: not exported: {problem}")
    if not options.answer:
        return 0
    from .answer import answers

    tally: Counter[str] = Counter()
    for name, right, word, note in answers(Path(options.answer), options.only, options.timeout):
        kind = "right" if word == right else "WRONG" if word in ("sat", "unsat") else word
        tally[kind] += 1
        if kind != "right":
            print(f"{name}: {word} for {right} {note}", flush=True)
    print(dict(tally), f"{time.process_time():.0f} s of processor")
    return 1 if tally["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
