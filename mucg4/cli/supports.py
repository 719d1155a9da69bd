"""The command `supports` of the VNN-LIB standard: one capability, one line per value."""

from __future__ import annotations

import argparse

from mucg4.cli.streams import put
from mucg4.read.capabilities import supports


def run(args: argparse.Namespace) -> int:
    """Print what is known of a capability; the exit status."""
    put(supports(args.capability))
    return 0
