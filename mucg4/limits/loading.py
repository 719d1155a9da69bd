"""Loading modules without looking for garbage among them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from mucg4.limits.collector import resting


@contextmanager
def loading() -> Iterator[None]:
    """Around imports that a whole process is about: they make no garbage, and what they make stays.

    Python's collector would look at all of it some ninety times, 5 % of a small run. So it rests meanwhile, and the
    first time this ends in a process, what there is then is never looked at again (`gc.freeze`). For the command line
    only: whoever uses mucg4 as a library decides about the objects of the process.
    """
    with resting():
        try:
            yield
        finally:
            if not gc.get_freeze_count():
                gc.freeze()
