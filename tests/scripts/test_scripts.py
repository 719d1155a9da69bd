"""The competition scripts under both harnesses' habits: xtrace, no stdin, foreign folder, odd paths, kills."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from mucg4.limits.memory import descendants
from mucg4.read.case import layers_to_onnx

ROOT = Path(__file__).resolve().parents[2]
LEGAL = ("sat", "unsat", "unknown", "timeout")
PROPERTY = """
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(assert (>= X_0 -1))
(assert (<= X_0 1))
(assert (>= X_1 -1))
(assert (<= X_1 1))
(assert (>= Y_0 {bound}))
"""
LAYERS = [([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0]), ([[1.0, 1.0]], [0.0])]  # |x0 + x1|+ + |x0 - x1|+ <= 2 on the box
# What the tool may do instead of its job; `$5` is the result file.
REAL = f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m mucg4 "$@"'
HANGS = 'echo $$ > "$PIDS"; exec sleep 600'
STUBBORN = 'echo $$ > "$PIDS"; trap "" TERM INT HUP; while :; do sleep 0.2; done'
CRASHES = "kill -SEGV $$"
FAILS = "echo boom >&2; exit 3"
GARBAGE = 'echo "holds maybe" > "$5"'


class Harness:
    """A copy of the scripts in a folder with a space, a tool on PATH, and the harness's way of calling."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scripts = folder / "the tool" / "vnncomp_scripts"
        shutil.copytree(ROOT / "vnncomp_scripts", self.scripts)
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.work = folder / "work dir"
        self.work.mkdir()
        (self.work / "net 1.onnx").write_bytes(layers_to_onnx(LAYERS))
        (self.work / "sat.vnnlib").write_text(PROPERTY.format(bound="1.5"))
        (self.work / "unsat.vnnlib").write_text(PROPERTY.format(bound="2.5"))
        runtime = folder / "runtime"
        runtime.mkdir()
        self.pids = folder / "pids"
        self.env = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "SHELLOPTS": "xtrace",
            "XDG_RUNTIME_DIR": str(runtime),
            "MUCG4_STORE": str(folder / "store.sqlite"),
            "PIDS": str(self.pids),
        }
        self.env.pop("MUCG4_PYTHON", None)

    def tool(self, body: str) -> Harness:
        path = self.bin / "mucg4"
        path.write_text(f"#!/bin/bash\nset +x\n{body}\n")
        path.chmod(0o755)
        return self

    def command(self, script: str, *arguments: str) -> list[str]:
        return ["bash", str(self.scripts / script), *arguments]

    def call(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(script, *arguments),
            cwd=self.work,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def run(self, onnx: str, vnnlib: str, result: str = "out.txt", timeout: str = "60") -> str:
        """The result file's text after a run, which must have exited with 0."""
        done = self.call("run_instance.sh", "v1", "some_category", onnx, vnnlib, result, timeout)
        assert done.returncode == 0, done.stderr
        return (self.work / result).read_text()

    def start(self, timeout: str = "600") -> subprocess.Popen[bytes]:
        """A run in the background whose tool has started."""
        arguments = ("v1", "c", "net 1.onnx", "sat.vnnlib", "out.txt", timeout)
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(self.command("run_instance.sh", *arguments), cwd=self.work, env=self.env, **quiet)
        wait_until(lambda: self.pids.exists() and self.pids.read_text().endswith("\n") and bool(self.records()))
        return child

    def records(self) -> list[Path]:
        return [p for p in (self.folder / "runtime").glob("mucg4-*/run.*") if p.suffix != ".new"]

    def tool_pid(self) -> int:
        return int(self.pids.read_text())


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


PAIR = """(vnnlib-version <2.0>)
(declare-network f (declare-input A float32 [1,2]) (declare-output B float32 [1,1]))
(declare-network g {relation} (declare-input C float32 [1,2]) (declare-output D float32 [1,1]))
(assert (and (>= A[0,0] -1.0) (<= A[0,0] 1.0) (>= A[0,1] -1.0) (<= A[0,1] 1.0)))
(assert (and (== A[0,0] C[0,0]) (== A[0,1] C[0,1])))
(assert (> (- D[0,0] B[0,0]) {bound}))
"""


def witness_of_pair(text: str) -> list[list[float]]:
    """The values of A, B, C, D of a result file in the grammar of version 2.0."""
    found = re.fullmatch(
        r"sat\n"
        + "".join(
            rf"{name} float32 \[{shape}\]\n((?:\S+\n)+)"
            for name, shape in (("A", "1,2"), ("B", "1,1"), ("C", "1,2"), ("D", "1,1"))
        ),
        text,
    )
    assert found, text
    return [[float(v) for v in values.split()] for values in found.groups()]


@pytest.mark.parametrize("absolute", [False, True])
def test_two_networks(harness: Harness, absolute: bool) -> None:
    """The first argument is one Python list; paths in it are the caller's, with blanks, quotes and packed files."""
    harness.tool(REAL)
    folder = f"{harness.work}/" if absolute else "./"
    stronger = [(LAYERS[0][0], [0.0, 0.0]), ([[1.5, 1.0]], [0.0])]  # by half of |x0 + x1|+, at most 1
    (harness.work / "it's.onnx.gz").write_bytes(gzip.compress(layers_to_onnx(stronger)))
    for bound, word in (("0.75", "sat"), ("1.25", "unsat")):
        (harness.work / "pair.vnnlib").write_text(PAIR.format(relation="(isomorphic-to f)", bound=bound))
        networks = repr([("f", f"{folder}net 1.onnx"), ("g", f"{folder}it's.onnx")])
        assert harness.call("prepare_instance.sh", "v1", "c", networks, f"{folder}pair.vnnlib").returncode == 0
        text = harness.run(networks, f"{folder}pair.vnnlib", f"{folder}out.txt")
        assert text.split("\n")[0] == word
        if word == "sat":
            a, b, c, d = witness_of_pair(text)
            assert a == c and d[0] - b[0] > 0.75
    assert not leftovers(harness.work)


@pytest.mark.parametrize("networks", ["[('f', './net 1.onnx'), ('g', './net 1.onnx')]", "[('f', './net 1.onnx')]"])
def test_equal_networks_are_listed_or_not(harness: Harness, networks: str) -> None:
    harness.tool(REAL)
    (harness.work / "pair.vnnlib").write_text(PAIR.format(relation="(equal-to f)", bound="0.5"))
    assert harness.run(networks, "pair.vnnlib") == "unsat\n"


@pytest.mark.parametrize("networks", ["[('f', './net 1.onnx')", "[('f', './net 1.onnx'), ('f', './net 1.onnx')]", "[]"])
def test_a_list_that_is_none(harness: Harness, networks: str) -> None:
    harness.tool(REAL)
    (harness.work / "pair.vnnlib").write_text(PAIR.format(relation="", bound="0.5"))
    assert harness.run(networks, "pair.vnnlib") == "unknown\n"


@pytest.mark.parametrize("absolute", [False, True])
def test_sat_with_witness_and_unsat(harness: Harness, absolute: bool) -> None:
    harness.tool(REAL)
    prefix = f"{harness.work}/" if absolute else "./"
    text = harness.run(prefix + "net 1.onnx", prefix + "sat.vnnlib", prefix + "out.txt")
    assert re.fullmatch(r"sat\n\(\(X_0 \S+\)\n\(X_1 \S+\)\n\(Y_0 \S+\)\)\n", text)
    assert harness.run(prefix + "net 1.onnx", prefix + "unsat.vnnlib", prefix + "out.txt") == "unsat\n"
    assert leftovers(harness.work) == [] and harness.records() == []


def test_packed_files_are_found(harness: Harness) -> None:
    import gzip

    harness.tool(REAL)
    for name in ("net 1.onnx", "unsat.vnnlib"):
        path = harness.work / name
        (harness.work / (name + ".gz")).write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert harness.run("net 1.onnx", "unsat.vnnlib.gz") == "unsat\n"


@pytest.mark.parametrize(
    ("onnx", "vnnlib"),
    [
        ("missing.onnx", "sat.vnnlib"),
        ("net 1.onnx", "missing.vnnlib"),
        ("sat.vnnlib", "sat.vnnlib"),
        ("[('f', 'net 1.onnx'), ('g', 'net 1.onnx')]", "sat.vnnlib"),
        ("[('f', 'net 1.onnx'", "sat.vnnlib"),
        ("", ""),
    ],
)
def test_bad_input_is_unknown(harness: Harness, onnx: str, vnnlib: str) -> None:
    assert harness.tool(REAL).run(onnx, vnnlib) == "unknown\n"


@pytest.mark.parametrize("timeout", ["", "soon", "-3", "nan", "inf"])
def test_bad_timeout_is_unknown(harness: Harness, timeout: str) -> None:
    assert harness.tool(REAL).run("net 1.onnx", "sat.vnnlib", timeout=timeout) == "unknown\n"


@pytest.mark.parametrize("timeout", ["0", "0.001"])
def test_no_time_at_all(harness: Harness, timeout: str) -> None:
    assert harness.tool(REAL).run("net 1.onnx", "sat.vnnlib", timeout=timeout) == "timeout\n"


@pytest.mark.parametrize(("body", "word"), [(CRASHES, "timeout"), (FAILS, "timeout"), (GARBAGE, "unknown")])
def test_a_broken_tool_leaves_a_legal_word(harness: Harness, body: str, word: str) -> None:
    assert harness.tool(body).run("net 1.onnx", "sat.vnnlib") == word + "\n"


def test_without_any_tool(harness: Harness) -> None:
    harness.env["PATH"] = os.defpath
    if shutil.which("mucg4", path=harness.env["PATH"]):
        pytest.skip("mucg4 is installed for everyone")
    assert harness.run("net 1.onnx", "sat.vnnlib") == "unknown\n"


def test_missing_arguments(harness: Harness) -> None:
    done = harness.call("run_instance.sh", "v1", "c", "net 1.onnx", "sat.vnnlib", "out.txt")
    assert done.returncode == 0
    assert (harness.work / "out.txt").read_text() == "unknown\n"


def test_unwritable_result(harness: Harness) -> None:
    (harness.work / "folder").mkdir()
    harness.tool(REAL)
    for result in ("folder", "no/such/folder/out.txt"):
        done = harness.call("run_instance.sh", "v1", "c", "net 1.onnx", "sat.vnnlib", result, "60")
        assert done.returncode == 0
        assert "cannot write" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_result_in_a_folder_that_takes_no_new_file(harness: Harness) -> None:
    folder = harness.work / "locked"
    folder.mkdir()
    (folder / "out.txt").write_text("no_result_in_file\n")
    folder.chmod(0o555)
    try:
        assert harness.tool(REAL).run("net 1.onnx", "unsat.vnnlib", "locked/out.txt") == "unsat\n"
    finally:
        folder.chmod(0o755)


def test_result_through_a_link(harness: Harness) -> None:
    (harness.work / "real.txt").write_text("no_result_in_file\n")
    (harness.work / "out.txt").symlink_to("real.txt")
    assert harness.tool(REAL).run("net 1.onnx", "unsat.vnnlib") == "unsat\n"
    assert (harness.work / "real.txt").read_text() == "unsat\n"
    assert (harness.work / "out.txt").is_symlink()


def test_early_word_then_signal(harness: Harness) -> None:
    child = harness.tool(HANGS).start()
    assert (harness.work / "out.txt").read_text() == "timeout\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 0
    assert (harness.work / "out.txt").read_text() == "timeout\n"
    assert not alive(harness.tool_pid()) and harness.records() == []


def test_killed_script_is_cleaned_up_by_the_next_prepare(harness: Harness) -> None:
    child = harness.tool(STUBBORN).start()
    (harness.work / f".out.txt.mucg4-{harness.tool_pid()}.tmp").write_text("sa")
    child.kill()
    child.wait()
    assert alive(harness.tool_pid()) and len(harness.records()) == 1
    done = harness.call("prepare_instance.sh", "v1", "c", "net 1.onnx", "sat.vnnlib")
    assert done.returncode == 0
    wait_until(lambda: not alive(harness.tool_pid()))
    assert harness.records() == []
    assert harness.call("cleanup_instance.sh").returncode == 0
    assert (harness.work / "out.txt").read_text() == "timeout\n"


def test_cleanup_removes_temporary_files_of_a_killed_run(harness: Harness) -> None:
    child = harness.tool(HANGS).start()
    part = harness.work / f".out.txt.mucg4-{harness.tool_pid()}.tmp"
    part.write_text("sa")
    foreign = harness.work / ".out.txt.other.tmp"
    foreign.write_text("not ours")
    os.kill(harness.tool_pid(), signal.SIGKILL)
    child.kill()
    child.wait()
    wait_until(lambda: not alive(harness.tool_pid()))
    assert harness.call("cleanup_instance.sh").returncode == 0
    assert not part.exists() and foreign.exists() and harness.records() == []


def test_a_run_within_its_time_is_left_alone(harness: Harness) -> None:
    child = harness.tool(HANGS).start()
    for script in ("prepare_instance.sh", "cleanup_instance.sh"):
        assert harness.call(script, "v1", "c", "net 1.onnx", "sat.vnnlib").returncode == 0
    assert child.poll() is None and alive(harness.tool_pid())
    child.terminate()
    assert child.wait(timeout=60) == 0


def hard(harness: Harness) -> None:
    """An instance that takes longer than any test: a threshold just above what a larger network reaches."""
    import numpy as np

    random, sizes = np.random.default_rng(0), (8, 60, 60, 60, 1)
    layers = [(random.normal(size=(b, a)) / np.sqrt(a), random.normal(size=b) / 9) for a, b in pairwise(sizes)]
    (harness.work / "net 1.onnx").write_bytes(layers_to_onnx(layers))
    value = random.uniform(-1, 1, (100_000, 8))
    for k, (weights, bias) in enumerate(layers):
        value = value @ weights.T + bias
        value = np.maximum(value, 0) if k < 3 else value
    inputs = "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} -1))(assert (<= X_{i} 1))\n" for i in range(8))
    bound = float(value.max() + 0.1 * np.ptp(value))
    (harness.work / "sat.vnnlib").write_text(f"{inputs}(declare-const Y_0 Real)\n(assert (>= Y_0 {bound}))\n")


def family(pid: int) -> list[int]:
    return [p for p in descendants(pid) if alive(p)]


def test_a_killed_script_takes_the_tool_and_its_workers_with_it(harness: Harness) -> None:
    hard(harness)
    work = REAL.replace('"$@"', '"$@" --workers 2 --split input --no-attack')
    child = harness.tool(f'echo $$ > "$PIDS"; {work}').start()
    wait_until(lambda: len(family(harness.tool_pid())) >= 2)
    everyone = [harness.tool_pid(), *family(harness.tool_pid())]
    child.kill()
    child.wait()
    wait_until(lambda: not any(alive(pid) for pid in everyone))
    assert (harness.work / "out.txt").read_text() == "timeout\n"


def test_a_killed_tool_takes_its_workers_with_it(harness: Harness) -> None:
    hard(harness)
    work = REAL.replace('"$@"', '"$@" --workers 2 --split input --no-attack')
    child = harness.tool(f'echo $$ > "$PIDS"; {work}').start()
    wait_until(lambda: len(family(harness.tool_pid())) >= 2)
    workers = family(harness.tool_pid())
    os.kill(harness.tool_pid(), signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in workers))
    assert child.wait(timeout=60) == 0
    assert (harness.work / "out.txt").read_text() == "timeout\n"


def test_a_caller_that_is_gone_before_the_tool_runs(harness: Harness) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    command = [sys.executable, "-m", "mucg4", "verify", "net 1.onnx", "sat.vnnlib", "--caller", str(gone.pid)]
    env = {**harness.env, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=harness.work, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")


def test_prepare_takes_missing_files(harness: Harness) -> None:
    harness.tool(REAL)
    assert harness.call("prepare_instance.sh", "v1", "c", "missing", "missing").returncode == 0


def test_install_refuses_another_protocol(harness: Harness) -> None:
    done = harness.call("install_tool.sh", "v2")
    assert done.returncode == 1
    assert not (harness.folder / "the tool" / ".venv").exists()


def test_scripts_are_executable_and_start_quietly() -> None:
    for name in ("install_tool", "prepare_instance", "run_instance", "cleanup_instance"):
        path = ROOT / "vnncomp_scripts" / f"{name}.sh"
        assert os.access(path, os.X_OK)
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert lines[0] == "set +x"


def test_words_are_those_of_the_scorer() -> None:
    text = (ROOT / "vnncomp_scripts" / "run_instance.sh").read_text()
    assert set(re.findall(r"\bput ([a-z]+)$", text, re.MULTILINE)) <= set(LEGAL)
