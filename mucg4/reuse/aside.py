"""What `unsat` needs besides a proof that holds, done while stored results are looked up and checked.

The files are read a second time, the network is compared with onnxruntime, and witnesses that only an execution has are
hunted. None of that asks anything of the proof, and for a proof that holds it takes as long as the check: loading
onnxruntime alone takes some 50 ms. So a process of its own does it, begun before stored trees that split phases, which
take long to translate, are made fit, or before others with many leaves are checked. It compares the network once more
where a search has been. What it does not come to, since it ended, is done here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np

from mucg4.evidence import Readings, read_again, second_reading
from mucg4.limits.processes import Aside, can_fork
from mucg4.precision import Hunted, hunted
from mucg4.search.run import AGAIN, COMPARISON, HUNT, READINGS, Run


def begin_aside(run: Run) -> None:
    """Begin what can be done aside, where there are processors for it."""
    if run.aside is None and run.workers > 1 and can_fork():
        questions: dict[str, Callable[[], object]] = {
            READINGS: partial(_readings, run),
            COMPARISON: run.compared,
            HUNT: partial(_hunted, run),
        }
        with suppress(OSError):  # no process more may be had
            run.aside = Aside(questions, run.budget.poll, {AGAIN: partial(run.compared, again=True)})


def readings(run: Run) -> Callable[[], Readings] | None:
    """Waits for the second readings, where they are made aside."""
    here = partial(_readings, run)
    return None if run.aside is None else partial(run.told, READINGS, here)


def _readings(run: Run) -> Readings:
    return second_reading(read_again(run.query), run.budget)


def _hunted(run: Run) -> Hunted:
    settings = run.settings
    if not settings.attack or settings.arithmetic != "real":  # where executions are demanded the proof comes first
        return Hunted()
    with np.errstate(all="ignore"), suppress(Exception):  # it is needed at the end alone, and may be made there
        return hunted(run.query, run.runtime, run.budget, settings.seed)
    return Hunted()
