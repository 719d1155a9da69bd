"""`python -m mucg4`: the command line of `mucg4/cli`."""

from __future__ import annotations

from mucg4.cli.main import main, process  # noqa: F401

if __name__ == "__main__":
    process()
