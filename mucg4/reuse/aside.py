"""What `unsat` needs besides a proof that holds, done while stored results are looked up and checked.

The files are read a second time, the network is compared with onnxruntime, and witnesses that only an execution has are
hunted. None of that asks anything of the proof, and for a proof that holds it takes as long as the check: loading
onnxruntime alone takes some 50 ms. So a process of its own does it from the moment a related result is found, and
compares the network once more where a search has been, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from mucg4.evidence import read_again, second_reading
from mucg4.limits.processes import Aside, can_fork
from mucg4.precision import Hunted, hunted
from mucg4.search.run import AGAIN, COMPARISON, HUNT, READINGS, Run


def begin_aside(run: Run) -> None:
    """Begin what can be done aside, where there are processors for it."""
    if run.aside is None and run.workers > 1 and can_fork():
        questions: dict[str, Callable[[], object]] = {
            READINGS: lambda: second_reading(read_again(run.query), run.budget),
            COMPARISON: run.disagreement,
            HUNT: partial(_hunted, run),
        }
        run.aside = Aside(questions, run.budget.poll, {AGAIN: partial(run.compared, again=True)})


def _hunted(run: Run) -> Hunted:
    settings = run.settings
    if not settings.attack or settings.arithmetic != "real":  # where executions are demanded the proof comes first
        return Hunted()
    with np.errstate(all="ignore"):
        return hunted(run.query, run.runtime, run.budget, settings.seed)
