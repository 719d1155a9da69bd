"""Command line: verify | recertify | check | explain | bench | store | case | compress | sweep, each its own file.

Exit status: 0 done (whatever the verdict), 1 a negative answer (proof rejected, case still failing, wrong answers
in a benchmark, another verdict than the one required), 2 bad input or a spent limit with one line on stderr, 3 a bug in
mucg4, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from mucg4.cli.options import make_parser
from mucg4.cli.streams import internal_error, one_line, say
from mucg4.errors import Mucg4Error, UnsoundError
from mucg4.limits.watch import process_age


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Times count from the start of the process for the real command line, from this call for a given `argv`.
    """
    start = time.monotonic() - (process_age() if argv is None else 0.0)
    args = make_parser().parse_args(argv)
    args.start = start
    try:
        return int(importlib.import_module(f"mucg4.cli.{args.command}").run(args))
    except UnsoundError as error:
        return internal_error(error)
    except MemoryError:
        say("mucg4: error: out of memory")
        return 2
    except (Mucg4Error, OSError) as error:
        say(f"mucg4: error: {one_line(error)}")
        return 2
    except KeyboardInterrupt:
        say("mucg4: interrupted")
        return 130
    except Exception as error:
        return internal_error(error)


def process() -> NoReturn:
    """`main` as a process of its own, which leaves without taking its objects apart: 20 ms of a run of 300.

    With `MUCG4_DEBUG` it takes its time: profilers write their files then.
    """
    status = main()
    if os.environ.get("MUCG4_DEBUG"):
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
