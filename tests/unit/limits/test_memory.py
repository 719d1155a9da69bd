"""What is held and what is free, read from made-up and real system files; the budget's memory limit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from mucg4.errors import BudgetError, InputError
from mucg4.limits import memory
from mucg4.limits.budget import Budget
from mucg4.limits.memory import PAGE, descendants, family_bytes, free_bytes, is_exhaustion, limit_bytes, pace
from mucg4.settings import Settings

KIB, GIB = 1024, 2**30


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def process(root: Path, pid: int, parent: int, pages: int, pss: int | None = None, children: str | None = None) -> None:
    put(root, f"proc/{pid}/statm", f"{10 * pages} {pages} 1 1 0 1 0\n")
    put(root, f"proc/{pid}/stat", f"{pid} (a (strange) name) S {parent} 1 1 0\n")
    if pss is not None:
        put(root, f"proc/{pid}/smaps_rollup", f"00-ff ---p [rollup]\nRss: 9 kB\nPss:    {pss} kB\n")
    if children is not None:
        put(root, f"proc/{pid}/task/{pid}/children", children)


@pytest.mark.parametrize("lists", [True, False])
def test_a_family_is_summed_over_all_generations(tmp_path: Path, lists: bool) -> None:
    for pid, parent, children in ((5, 1, "6 7 "), (6, 5, "8 "), (7, 5, ""), (8, 6, ""), (9, 1, "")):
        process(tmp_path, pid, parent, 10 * pid, pss=pid, children=children if lists else None)
    assert sorted(descendants(5, tmp_path)) == [6, 7, 8]
    assert family_bytes(5, root=tmp_path) == 260 * PAGE
    assert family_bytes(5, 260 * PAGE, tmp_path) == 260 * PAGE
    assert family_bytes(5, 260 * PAGE - 1, tmp_path) == (5 + 6 + 7 + 8) * KIB  # shared pages divided
    assert family_bytes(9, 0, tmp_path) == 90 * PAGE  # shared with nobody
    (tmp_path / "proc/8/smaps_rollup").unlink()
    assert family_bytes(5, 0, tmp_path) == (5 + 6 + 7) * KIB + 80 * PAGE


def test_a_process_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    assert family_bytes(5, root=tmp_path) == 0 and descendants(5, tmp_path) == []


def test_a_forked_child_counts() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        data = np.ones(8 * 2**20)  # 64 MiB
        os.write(write, b"x")
        signal.pause()
        os._exit(int(data[0]))
    try:
        os.read(read, 1)
        assert child in descendants(os.getpid())
        assert family_bytes(os.getpid()) >= family_bytes(child) + PAGE
        assert family_bytes(child) >= 64 * 2**20
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_free_is_what_machine_and_groups_leave(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) == float("inf")
    put(tmp_path, "proc/meminfo", "MemTotal: 900 kB\nMemFree: 1 kB\nMemAvailable:    800 kB\n")
    assert free_bytes(tmp_path) == 800 * KIB
    put(tmp_path, "proc/self/cgroup", "9:cpu:/a\n0::/a/b\n")
    assert free_bytes(tmp_path) == 800 * KIB
    put(tmp_path, "sys/fs/cgroup/a/b/memory.max", "max\n")
    put(tmp_path, "sys/fs/cgroup/a/b/memory.current", "1024\n")
    assert free_bytes(tmp_path) == 800 * KIB
    put(tmp_path, "sys/fs/cgroup/a/memory.max", f"{500 * KIB}\n")
    put(tmp_path, "sys/fs/cgroup/a/memory.current", f"{300 * KIB}\n")
    assert free_bytes(tmp_path) == 200 * KIB
    put(tmp_path, "sys/fs/cgroup/a/memory.stat", f"anon 7\ninactive_file {100 * KIB}\n")
    assert free_bytes(tmp_path) == 300 * KIB
    put(tmp_path, "sys/fs/cgroup/a/memory.current", f"{700 * KIB}\n")
    assert free_bytes(tmp_path) == 0


def test_groups_of_the_first_version_inside_a_container(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/cgroup", "4:cpuset,memory:/outside/path\n1:name=systemd:/\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{500 * KIB}\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{100 * KIB}\n")
    assert free_bytes(tmp_path) == 400 * KIB


def test_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit_bytes(2.0) == 2 * GIB and limit_bytes(0.0) == 0
    monkeypatch.setattr(memory, "free_bytes", lambda: 10.0 * GIB)
    assert 8 * GIB < limit_bytes(None) < 8 * GIB + 2 * family_bytes(os.getpid())
    with pytest.raises(InputError, match="memory"):
        Settings(memory=-1.0)


def test_looks_come_closer_near_the_limit() -> None:
    paces = [pace(room) for room in (100 * GIB, GIB, GIB / 2, 0, -GIB)]
    assert paces == sorted(paces, reverse=True) and paces[0] > paces[-1] > 0


def test_a_budget_ends_at_its_memory() -> None:
    budget = Budget.seconds(None, memory=1.0)
    with pytest.raises(BudgetError, match="memory"):
        budget.poll()
    assert budget.spent() and "memory" in budget.interrupted
    part = Budget.seconds(None, memory=1.0).share(100.0)
    assert part.spent()
    enough = Budget.seconds(None, memory=2.0**60)
    enough.poll()
    assert not enough.spent()


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("[ONNXRuntimeError] : 6 : bad allocation"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (ValueError("out of range"), False),
    ],
)
def test_failed_allocations(error: Exception, is_one: bool) -> None:
    assert is_exhaustion(error) is is_one


# --- inside the pipeline ---------------------------------------------------------------------------------------


def query() -> object:
    from mucg4.model.query import Query
    from mucg4.read.case import layers_to_onnx
    from mucg4.read.onnx import read_network
    from mucg4.read.vnnlib import parse_vnnlib, to_cases

    layers = [([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0]), ([[1.0, 1.0]], [0.0])]
    text = "\n".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0"))
    for name in ("X_0", "X_1"):
        text += f"(assert (>= {name} -1))(assert (<= {name} 1))"
    return Query((read_network(layers_to_onnx(layers)),), to_cases(parse_vnnlib(text + "(assert (>= Y_0 2.5))")))


def test_too_little_memory_is_unknown() -> None:
    from mucg4.verify import verify

    verdict = verify(query(), Settings(memory=0.0))
    assert verdict.word == "unknown" and "memory" in verdict.reason


def test_a_failed_allocation_is_unknown() -> None:
    from mucg4.verify import begin, decide

    def answer(run: object) -> None:
        raise MemoryError

    verdict = decide(begin(query()), answer)
    assert (verdict.word, verdict.reason) == ("unknown", "out of memory")


def test_a_failed_allocation_while_storing_costs_no_verdict() -> None:
    from mucg4.verify import verify

    class Full:
        warnings: list[str] = []

        def related(self, *more: object, **options: object) -> list[object]:
            return []

        def save(self, *more: object, **options: object) -> None:
            raise MemoryError

    heard = []
    verdict = verify(query(), Settings(reuse=False), Full(), announce=lambda v: heard.append(v.word))
    assert verdict.word == "unsat" and heard == ["unsat"]
    assert any("out of memory" in text for text in verdict.statistics.warnings)
