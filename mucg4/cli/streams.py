"""What the command line says: the only place that prints."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """One line (or more) on stderr; a closed stream is no reason to fail."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass


def put(text: str) -> None:
    """Text on stdout; a closed pipe is no reason to fail."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        pass


def one_line(error: BaseException) -> str:
    """An error as one line for the user."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return printable(str(error)) or type(error).__name__


def printable(text: str) -> str:
    """Text on one line, without characters that do something to a terminal: it may quote a file."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def internal_error(error: BaseException) -> int:
    """Say that mucg4 is wrong; the exit status. `MUCG4_DEBUG` shows where."""
    say(f"mucg4: internal error: {type(error).__name__}: {one_line(error)}")
    if os.environ.get("MUCG4_DEBUG"):
        import traceback

        traceback.print_exception(error)
    return 3
