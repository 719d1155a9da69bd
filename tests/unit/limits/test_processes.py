"""Forked processes that send back what they find as they find it."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator

import pytest

from mucg4.errors import BudgetError, InputError
from mucg4.limits import processes
from mucg4.limits.budget import Budget
from mucg4.limits.processes import Aside, Dealer, forked, streamed


def nothing() -> None:
    """Nothing ends the processes."""


def test_items_come_from_all_processes_and_each_number_goes_to_one() -> None:
    dealer = Dealer()
    dealer.put(range(10))

    def work() -> Iterator[tuple[int, int]]:
        for k in dealer.taken():
            time.sleep(0.002)
            yield k, os.getpid()

    found = []
    for item in streamed([work] * 3, nothing):
        found.append(item)
        if len(found) in (10, 20, 30):
            dealer.put(range(len(found), len(found) + 10))
        if len(found) == 30:
            dealer.close()
    assert sorted(k for k, _ in found) == list(range(40))
    assert os.getpid() not in {pid for _, pid in found}


def test_what_a_process_raises_is_raised_and_the_others_end() -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise InputError("no such thing")

    def waits() -> Iterator[int]:
        yield os.getpid()
        time.sleep(600)

    with pytest.raises(InputError, match="no such thing"):
        list(streamed([fails, waits], nothing))
    pids = []
    stream = streamed([waits], nothing)
    pids.append(next(stream))
    stream.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_killed_process_and_a_spent_budget_end_it() -> None:
    def dies() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), 9)

    with pytest.raises(BudgetError, match="signal 9"):
        list(streamed([dies], nothing))

    def spent() -> None:
        raise BudgetError("over")

    with pytest.raises(BudgetError, match="over"):
        list(streamed([dies], spent))


def test_an_interrupted_process_sends_what_it_came_to() -> None:
    """With a grace; the signal that interrupts may go to all processes."""
    budget, plain = Budget(grace=60.0), Budget()
    ready, told = os.pipe()

    def works() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        os.write(told, b"x")
        while not budget.spent():
            time.sleep(0.001)
        return budget.interrupted

    def poll() -> None:
        if not budget.interrupted and os.read(ready, 1):
            budget.interrupted = "interrupted by SIGTERM"
        budget.poll_late()

    assert forked([works], poll) == ["interrupted"]
    plain.interrupted = "interrupted by SIGTERM"
    with pytest.raises(BudgetError, match="SIGTERM"):
        forked([lambda: time.sleep(600)], plain.poll_late)


def test_meanwhile_runs_beside_the_jobs_and_may_end_them() -> None:
    read, write = os.pipe()

    def steps() -> Iterator[int]:
        yield 0
        yield os.write(write, b"x")
        while True:  # more than there is time for
            yield time.sleep(0.001)

    assert forked([lambda: os.read(read, 1)], nothing, meanwhile=steps()) == [b"x"]

    def fail() -> Iterator[None]:
        yield
        raise KeyError("met")

    with pytest.raises(KeyError):
        forked([lambda: time.sleep(600)], nothing, meanwhile=fail())


def test_questions_are_answered_aside_in_order_and_the_process_ends_with_whoever_asked() -> None:
    def fails() -> object:
        raise InputError("no answer")

    aside = Aside({"who": os.getpid, "what": lambda: [1, 2]}, nothing, {"twice": lambda x: 2 * x})
    assert aside.answer("what") == [1, 2]
    pid = aside.answer("who")
    assert pid != os.getpid() and aside.answer("who") == pid
    assert [aside.ask("twice", k) for k in (2, "a")] == [4, "aa"]
    del aside
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(InputError, match="no answer"):
        Aside({"why": fails}, nothing).answer("why")
    gone = Aside({"who": os.getpid}, nothing, {"die": lambda _: os.kill(os.getpid(), 9)})
    for _ in range(2):
        with pytest.raises(BudgetError, match="signal 9"):
            gone.ask("die", None)


def test_a_budget_that_is_spent_ends_the_wait_for_an_answer() -> None:
    def spent() -> None:
        raise BudgetError("timeout")

    aside = Aside({"never": lambda: time.sleep(600)}, spent)
    with pytest.raises(BudgetError, match="timeout"):
        aside.answer("never")
    aside.close()
    aside.close()


def test_what_is_asked_waits_until_the_process_listens() -> None:
    """Both messages are larger than a pipe: two that write to each other would wait for ever."""
    large = b"x" * 1_000_000
    aside = Aside({"first": lambda: large, "second": lambda: large}, nothing, {"size": len})
    assert aside.ask("size", large) == len(large) and aside.answer("second") == large


def test_no_descriptor_is_left_where_no_process_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError("no process")

    monkeypatch.setattr(processes, "_fork", refused)
    gc.collect()
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for make in (lambda: Aside({"who": os.getpid}, nothing), lambda: forked([os.getpid], nothing)):
        with pytest.raises(BlockingIOError):
            make()
    gc.collect()
    assert not before or len(os.listdir("/proc/self/fd")) == len(before)


def test_who_speaks_when_nobody_listens_any_more_ends_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    """A run whose time is over closes its pipes first: what a process has to say then is no news."""

    def late() -> Iterator[int]:
        yield 1
        time.sleep(0.2)
        yield 2

    child = processes.Child(late, streams=True)
    os.close(child.number)
    child.number = -1
    assert os.waitpid(child._pid, 0)[0] == child._pid
    assert capfd.readouterr().err == ""


def test_a_share_may_wait_for_processes_that_end_by_themselves():
    with pytest.raises(BudgetError):
        Budget().share(0.0).poll_late()
    part = Budget().share(0.0, 60.0)
    part.poll_late()
    assert part.spent()
