"""The watch thread: a legal last word in time, also while the main thread is inside one native call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mucg4.watch import process_age, started_ago

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import ctypes, sys, types
from mucg4.model.verdict import Statistics, Unknown
import mucg4.__main__ as command
def native(query, settings, store, budget, progress, announce):
    open({ready!r}, "w").close()
    {body}
    return Unknown(budget.interrupted or "timeout", Statistics())
fake = types.ModuleType("mucg4.verify")
fake.verify = native
sys.modules["mucg4.verify"] = fake
command._read = lambda onnx, vnnlib: None
sys.exit(command.main({arguments!r}))
"""
POLITE = "while not budget.spent(): __import__('time').sleep(0.01)"
NATIVE = "import numpy; numpy.linalg.svd(numpy.random.default_rng(0).normal(size=(4000, 4000)))"


def start(folder: Path, body: str, *more: str) -> tuple[subprocess.Popen[str], Path, Path]:
    ready, result = folder / "ready", folder / "result.txt"
    arguments = ["verify", "a.onnx", "b.vnnlib", "--store", "off", "--result", str(result), *more]
    code = DRIVER.format(ready=str(ready), body=body, arguments=arguments)
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return child, ready, result


def wait_for(path: Path, child: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert child.poll() is None, "the process ended before it was ready"
        time.sleep(0.01)


@pytest.mark.parametrize("body", [POLITE, NATIVE], ids=["polite", "native"])
def test_deadline_gives_timeout_and_exit_0(tmp_path: Path, body: str) -> None:
    json = tmp_path / "run.json"
    child, _, result = start(tmp_path, body, "--timeout", "1.5", "--json", str(json))
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out, result.read_text()) == (0, "timeout\n", "timeout\n")
    assert '"verdict": "timeout"' in json.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("body", [POLITE, NATIVE], ids=["polite", "native"])
def test_signal_leaves_a_legal_answer(tmp_path: Path, body: str, number: int) -> None:
    child, ready, result = start(tmp_path, body, "--timeout", "600")
    wait_for(ready, child)
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out, result.read_text()) == (0, "unknown\n", "unknown\n")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_headroom_counts_from_the_stated_start(tmp_path: Path) -> None:
    child, _, result = start(
        tmp_path, POLITE, "--timeout", "20", "--headroom", "1", "--started", str(time.time() - 18)
    )
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out, result.read_text()) == (0, "timeout\n", "timeout\n")


def test_process_age_includes_interpreter_start() -> None:
    age = process_age()
    assert 0 <= age
    now = time.time()
    assert started_ago(now - age - 5) >= age + 5
    # a start after this process, or absurdly long before it, is a moved clock
    assert abs(started_ago(now + 1000) - process_age()) < 1
    assert abs(started_ago(now - 1e6) - process_age()) < 1


def test_handlers_are_restored() -> None:
    from mucg4.budget import Budget
    from mucg4.watch import Watch

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    handles = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    budget = Budget()
    with Watch(budget, float("inf"), lambda reason: None):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            if budget.interrupted:
                break
            time.sleep(0.001)
        assert budget.interrupted == "interrupted by SIGTERM"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
    assert handles == 0 or len(os.listdir("/proc/self/fd")) == handles
