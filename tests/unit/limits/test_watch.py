"""The watch thread: a legal last word in time and within memory, also while the main thread is in one native call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mucg4.limits.watch import process_age, started_ago

ROOT = Path(__file__).resolve().parents[3]
DRIVER = """
import ctypes, sys, types
from mucg4.model.verdict import Statistics, Unknown
from mucg4.cli.main import main
def native(query, settings, store, budget, progress, announce, standing):
    open({ready!r}, "w").close()
    {body}
    return Unknown(budget.interrupted or "timeout", Statistics())
fake = types.ModuleType("mucg4.verify")
fake.verify = native
sys.modules["mucg4.verify"] = fake
import mucg4.read.instance
named = types.SimpleNamespace(network=types.SimpleNamespace(note=""), joint=None)
mucg4.read.instance.read_query = lambda *given: named
sys.exit(main({arguments!r}))
"""
POLITE = "while not budget.spent(): __import__('time').sleep(0.01)"
NATIVE = "import numpy; numpy.linalg.svd(numpy.random.default_rng(0).normal(size=(4000, 4000)))"


def start(folder: Path, body: str, *more: str) -> tuple[subprocess.Popen[str], Path, Path]:
    ready, result = folder / "ready", folder / "result.txt"
    arguments = ["verify", "a.onnx", "b.vnnlib", "--store", "off", "--result", str(result), *more]
    code = DRIVER.format(ready=str(ready), body=body, arguments=arguments)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes)
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


FILLS = "data = []\n    while True: data.append(__import__('numpy').ones(2**22))"  # 32 MiB each, never polls
FILLS_POLITELY = FILLS.replace("while True:", "while not budget.spent():")
FORKS = """import os, signal, numpy
    if os.fork() == 0:
        os.write(2, f"{os.getpid()}\\n".encode())
        data = [numpy.ones(2**22) for _ in range(100)]
        signal.pause()
    numpy.linalg.svd(numpy.random.default_rng(0).normal(size=(1000, 1000)))
    signal.pause()"""
FAILS = "numpy = __import__('numpy'); numpy.ones(2**58)"
FAILS_NATIVELY = "raise RuntimeError('std::bad_alloc')"


@pytest.mark.parametrize(
    "body",
    [FILLS, FILLS_POLITELY, FAILS, FAILS_NATIVELY],
    ids=["never-polls", "polite", "failed-allocation", "native-allocation"],
)
def test_used_up_memory_is_unknown(tmp_path: Path, body: str) -> None:
    json = tmp_path / "run.json"
    child, _, result = start(tmp_path, body, "--timeout", "600", "--memory", "0.5", "--json", str(json))
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out, result.read_text()) == (0, "unknown\n", "unknown\n")
    assert '"verdict": "unknown"' in json.read_text() and "memory" in json.read_text()


def test_memory_of_forked_processes_counts_and_they_end_too(tmp_path: Path) -> None:
    child, _, result = start(tmp_path, FORKS, "--timeout", "600", "--memory", "0.5")
    assert child.stderr is not None
    worker = int(child.stderr.readline())
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out, result.read_text()) == (0, "unknown\n", "unknown\n")
    for _ in range(1000):
        if not alive(worker):
            return
        time.sleep(0.01)
    raise AssertionError("the forked process goes on")


def alive(pid: int) -> bool:
    """True while the process runs; one that has ended but was not collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


STORES = """with store._database.change() as connection:
        connection.execute("DELETE FROM " + TABLE)
        open({ready!r} + "2", "w").close()
        {then}"""


@pytest.mark.parametrize("how", ["signal", "memory", "timeout"])
def test_the_store_survives_a_run_that_leaves_while_writing(tmp_path: Path, how: str) -> None:
    from mucg4.read.case import layers_to_onnx
    from mucg4.store.store import Store

    path = tmp_path / "store.sqlite"
    names = tmp_path / "n.onnx", tmp_path / "p.vnnlib"
    names[0].write_bytes(layers_to_onnx([([[1.0]], [0.0])]))
    names[1].write_text(
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= Y_0 2))"
    )
    command = [sys.executable, "-m", "mucg4", "verify", *map(str, names), "--store", str(path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "unsat\n"
    with Store(path) as store:
        before = store.entries()
        tables = [name for (name,) in store._database.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert len(before) == 1
    ready = tmp_path / "ready"
    then = FILLS.replace("\n    ", "\n        ") if how == "memory" else NATIVE + "; __import__('time').sleep(600)"
    body = STORES.format(ready=str(ready), then=then)
    body = body.replace("TABLE", repr(tables[0]))
    more = ["--timeout", "6" if how == "timeout" else "600", "--memory", "0.5" if how == "memory" else "8"]
    child, _, result = start(tmp_path, body, *more, "--store", str(path))
    wait_for(tmp_path / "ready2", child)
    if how == "signal":
        child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    word = "timeout\n" if how == "timeout" else "unknown\n"
    assert (child.returncode, out, result.read_text()) == (0, word, word)
    with Store(path) as store:
        assert store.entries() == before and store.warnings == []
        assert store._database.rows("PRAGMA integrity_check") == [("ok",)]


def test_headroom_counts_from_the_stated_start(tmp_path: Path) -> None:
    child, _, result = start(tmp_path, POLITE, "--timeout", "20", "--headroom", "1", "--started", str(time.time() - 18))
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
    from mucg4.limits.budget import Budget
    from mucg4.limits.watch import Watch

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    handles = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    budget = Budget()
    with Watch(budget, float("inf"), lambda reason: 0):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            if budget.interrupted:
                break
            time.sleep(0.001)
        assert budget.interrupted == "interrupted by SIGTERM"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
    assert handles == 0 or len(os.listdir("/proc/self/fd")) == handles


OTHERS = """
import signal, sys, time
from mucg4.cli.main import main
def native(*arguments, **named):
    open({ready!r}, "w").close()
    {body}
{patch}
sys.exit(main({arguments!r}))
"""
COMMANDS = {
    "check": ("import mucg4.read.instance as r; r.read_query = native", ["check", "n", "p", "f"]),
    "store": ("import mucg4.cli.store as s; s._look = native", ["store", "--store", "x.sqlite", "list"]),
    "case": ("import mucg4.lab.case; mucg4.lab.case.run_case = native", ["case", "c.json"]),
    "compress": (
        "import mucg4.lab.compress as c, mucg4.read.instance as r; "
        "r.read_bytes = lambda path: b''; c.compress = native",
        ["compress", "n", "--method", "int8", "-o", "o.onnx"],
    ),
}


@pytest.mark.parametrize("end", ["timeout", "signal", "memory"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_a_line(tmp_path: Path, name: str, end: str) -> None:
    patch, arguments = COMMANDS[name]
    limits = {"timeout": ["--timeout", "1"], "signal": [], "memory": ["--memory", "0.4"]}[end]
    body = NATIVE if end != "memory" else FILLS
    ready, at = tmp_path / "ready", 3 if name == "store" else len(arguments)  # before the action of `store`
    code = OTHERS.format(
        ready=str(ready), body=body, patch=patch, arguments=[*arguments[:at], *limits, *arguments[at:]]
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True, **pipes)
    if end == "signal":
        wait_for(ready, child)
        child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    reason = {"timeout": "timeout", "signal": "interrupted by SIGTERM", "memory": "memory limit of 0.40 GiB reached"}[
        end
    ]
    if name == "check":
        assert (child.returncode, out, err) == (1, f"rejected: {reason}\n", "")
    else:
        assert (child.returncode, out, err) == (130 if end == "signal" else 2, "", f"mucg4: error: {reason}\n")
    assert [p for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_a_process_is_known_by_its_birth() -> None:
    from mucg4.limits.watch import birth

    assert birth(os.getpid()) and birth(os.getpid()) == birth(os.getpid()) != birth(1)
    child = subprocess.Popen(["true"])
    child.wait()
    assert birth(child.pid) == ""


def test_a_worker_ends_with_its_parent_where_the_kernel_does_not_help(tmp_path: Path) -> None:
    code = f"""
import ctypes, os, time
from mucg4.limits import processes
ctypes.CDLL = None  # no system call
if os.fork() == 0:
    parent = os.getpid()
    if os.fork() == 0:
        processes.end_with_parent(parent)
        open({str(tmp_path / "ready")!r}, "w").write(str(os.getpid()))
        time.sleep(600)
    while not os.path.exists({str(tmp_path / "ready")!r}): time.sleep(0.01)
    os._exit(0)
os.wait()
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)
    pid = int((tmp_path / "ready").read_text())
    for _ in range(1000):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
            return
        time.sleep(0.02)
    raise AssertionError("the worker outlived its parent")
