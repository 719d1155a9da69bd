"""`python -m mucg4`: the command line of `mucg4/cli`."""

from __future__ import annotations

import sys

from mucg4.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
