"""Command line of the campaign."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .run import campaign, one


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def main() -> int:
    """0 when nothing disagreed (with --plant: when the fault was found)."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, metavar="M")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which stretch of seeds")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--family", help="only this family of networks")
    parser.add_argument("--out", type=Path, default=Path("bench-out") / "campaign", help="where failing cases go")
    parser.add_argument("--one", type=int, metavar="SEED", help="judge one instance and print everything about it")
    parser.add_argument("--plant", action="append", metavar="NAME", help="put an old fault back; all: each in turn")
    parser.add_argument("--wide", action="store_true", help="with --plant: all families, not the one it shows in")
    parser.add_argument("--list-plants", action="store_true")
    args = parser.parse_args()
    if args.list_plants or args.plant:
        from .plants import PLANTS, hunt

        if args.list_plants:
            print("".join(f"{name}: {plant.text}\n" for name, plant in PLANTS.items()), end="")
            return 0
        names = list(PLANTS) if args.plant == ["all"] else args.plant
        return hunt(names, args.seed, 60 * args.minutes, args.jobs, say, not args.wide)
    if args.one is not None:
        out = one(args.one, args.family)
        print(out.family, dict(out.counts))
        print("".join(f"{k}: {d}\n" for k, d in (*out.problems, *out.loud)), end="")
        return 1 if out.problems else 0
    tally = campaign(args.seed, 60 * args.minutes, args.jobs, say, args.out, args.family)
    print("\n".join(tally.lines()))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
