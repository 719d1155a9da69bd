"""Worker processes that take seeds one after the other, and the parent that watches, keeps what fails and counts."""

from __future__ import annotations

import multiprocessing as mp
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .instance import Instance
from .judge import Outcome, judge
from .properties import NoInstance, make

HANG = 120.0  # seconds on one seed (shrinking apart) after which its process is ended
STRIDE = 1_000_000_007  # between the seeds of two campaigns


@dataclass
class Tally:
    """What a campaign counted."""

    counts: Counter[str] = field(default_factory=Counter)
    families: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    loud: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)  # event -> the first seed that showed it
    cases: list[str] = field(default_factory=list)

    def add(self, out: Outcome) -> None:
        self.counts.update(out.counts)
        self.families[out.family] += 1
        for counter, found in ((self.problems, out.problems), (self.loud, out.loud)):
            for kind in {k for k, _ in found}:
                counter[kind] += 1
                self.first.setdefault(kind, out.seed)

    @property
    def total(self) -> int:
        return self.counts["instances"]

    def headline(self) -> str:
        problems, loud = (sum(c.values()) for c in (self.problems, self.loud))
        return f"{self.total} instances, {problems} disagreements, {loud} loud rejections"

    def lines(self) -> list[str]:
        """The final table."""
        out = [f"{self.total} instances: " + ", ".join(f"{k} {v}" for k, v in self.families.most_common())]
        out += [f"  {k}: {v}" for k, v in sorted(self.counts.items()) if k != "instances"]
        out.append(f"loud rejections: {sum(self.loud.values())}")
        out += [f"  {k}: {v} (first seed {self.first[k]})" for k, v in self.loud.most_common()]
        out.append(f"disagreements: {sum(self.problems.values())}")
        out += [f"  {k}: {v} (first seed {self.first[k]})" for k, v in self.problems.most_common()]
        return out + [f"  case: {path}" for path in self.cases]


def seeds(start: int, family: str | None = None) -> Iterator[int]:
    """The seeds of a campaign, in order."""
    k = start * STRIDE
    while True:
        yield k
        k += 1


Worth = Callable[[Instance], bool]


def one(seed: int, family: str | None = None, full: bool = True, worth: Worth | None = None) -> Outcome:
    """Judge the instance of a seed; a seed without one counts as such. One that is not `worth` it is only counted."""
    try:
        instance = make(seed, family)
        if worth is not None and not worth(instance):
            return Outcome(seed, instance.family, counts=Counter(instances=1))
        return judge(instance, full)
    except NoInstance:
        return Outcome(seed, "none")


def _work(
    pipe: Connection, family: str | None, prepare: Callable[[], None] | None, full: bool, worth: Worth | None
) -> None:
    """Answer every seed with its outcome; None ends."""
    if prepare is not None:
        prepare()
    while (seed := pipe.recv()) is not None:
        try:
            out = one(seed, family, full, worth)
        except Exception as error:  # noqa: BLE001 - a fault of the campaign itself must not end it
            out = Outcome(seed, "none", [("campaign", f"{type(error).__name__}: {error}")])
        pipe.send(out)


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    seed: int
    since: float


def campaign(
    start: int,
    seconds: float,
    jobs: int,
    say: Callable[[str], None],
    folder: Path | None = None,
    family: str | None = None,
    prepare: Callable[[], None] | None = None,
    until: Callable[[Outcome], bool] | None = None,
    most: int | None = None,
    full: bool = True,
    worth: Worth | None = None,
) -> Tally:
    """Run until the time is up, `most` instances are judged, or `until` says so of an outcome.

    `prepare` is called once in every worker; `full` as for `judge`, `worth` as for `one`. A worker that dies or hangs
    is a disagreement of its seed and is replaced.
    """
    context, tally, line = mp.get_context("fork"), Tally(), seeds(start)
    deadline, told = time.monotonic() + seconds, time.monotonic()

    def hire() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, family, prepare, full, worth))
        process.start()
        theirs.close()
        worker = _Worker(process, ours, 0, 0.0)
        assign(worker)
        return worker

    def assign(worker: _Worker) -> None:
        worker.seed, worker.since = next(line), time.monotonic()
        worker.pipe.send(worker.seed)

    def take(out: Outcome) -> bool:
        tally.add(out)
        for kind, detail in out.problems:
            say(f"seed {out.seed} ({out.family}): {kind}: {detail}")
        if out.problems and folder is not None and out.family != "none":
            tally.cases.append(_kept(out, folder, family))
        return until is not None and until(out)

    workers = [hire() for _ in range(jobs)]
    done = False
    while not done and time.monotonic() < deadline and (most is None or tally.total < most):
        for pipe in wait([w.pipe for w in workers], timeout=1.0):
            worker = next(w for w in workers if w.pipe is pipe)
            try:
                out = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join(5)
                out = Outcome(worker.seed, "?", [("process died", f"exit status {worker.process.exitcode}")])
                workers[workers.index(worker)] = hire()
            else:
                assign(worker)
            done = take(out) or done
        for worker in [w for w in workers if time.monotonic() - w.since > HANG]:
            worker.process.kill()
            done = take(Outcome(worker.seed, "?", [("hang", f"more than {HANG:g} s")])) or done
            workers[workers.index(worker)] = hire()
        if time.monotonic() - told > 30:
            told = time.monotonic()
            say(tally.headline())
    for worker in workers:
        worker.process.kill()
        worker.process.join()
    return tally


def _kept(out: Outcome, folder: Path, family: str | None) -> str:
    """Shrink and keep a failing instance in a process of its own; the path, or why there is none."""
    ours, theirs = mp.Pipe()
    process = mp.get_context("fork").Process(target=_shrink, args=(theirs, out, folder, family))
    process.start()
    path = ours.recv() if ours.poll(HANG) else "not kept: shrinking takes too long"
    process.kill()
    process.join()
    return str(path)


def _shrink(pipe: Connection, out: Outcome, folder: Path, family: str | None) -> None:
    from .shrink import keep, shrink

    instance = make(out.seed, family)
    instance = shrink(instance, lambda i: bool(judge(i).kinds & out.kinds))
    pipe.send(keep(instance, judge(instance), folder))
