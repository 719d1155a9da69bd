"""The benchmark runner with a stand-in for the tool: limits, verdicts, resuming, comparing, alarms."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mucg4.bench import run as bench_run
from mucg4.bench import table
from mucg4.bench.child import Children
from mucg4.bench.results import find_alarms, is_wrong
from mucg4.errors import InputError

ROOT = Path(__file__).resolve().parents[3]

# Behaves like `mucg4 verify` as far as the runner sees it: the property says what to do, each call leaves a line in
# the file `calls` beside it.
STAND_IN = """
import json, os, pathlib, sys, time
arguments = sys.argv[1:]
option = lambda name: arguments[arguments.index(name) + 1] if name in arguments else None
prop = pathlib.Path(arguments[2])
if arguments[0] == "check":
    sys.exit(int(prop.read_text().split("check=")[1].split()[0]))
with (prop.parent.parent / "calls").open("a") as file:
    file.write(f"{arguments[1].rsplit('/')[-1]} {prop.name} {option('--store')}\\n")
todo = prop.read_text().split()
if "hang" in todo:
    time.sleep(600)
if "eat" in todo:
    data = bytearray(b"x") * (600 * 2**20)
    time.sleep(600)
if "crash" in todo:
    os.abort()
if "refuse" in todo:
    pathlib.Path(option("--result")).write_text("unknown\\n")
    sys.exit("mucg4: error: no such operator")
word = "sat" if "fickle" in todo and option("--store") == "off" else todo[0]
pathlib.Path(option("--result")).write_text(word + "\\n")
record = {"verdict": word, "relation": "quantised", "rungs": {"witness": 0, "duals": 3}, "stored_leaves": 4}
record.update(reused_share=0.75, wall=0.01, timeout=float(option("--timeout")), memory=float(option("--memory")))
pathlib.Path(option("--json")).write_text(json.dumps(record))
if option("--proof"):
    pathlib.Path(option("--proof")).write_text("proof")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(bench_run, "TOOL", (sys.executable, str(stand_in)))
    monkeypatch.delenv("MUCG4_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some_family" / "onnx").mkdir(parents=True)
    (tmp_path / "some_family" / "vnnlib").mkdir()
    return tmp_path / "some_family"


def fill(folder: Path, rows: list[tuple[str, str, float]], expected: dict[int, str] | None = None) -> None:
    """Rows of (network name, what the stand-in does, timeout)."""
    lines, known = [], ["onnx,vnnlib,verdict"]
    for k, (net, todo, timeout) in enumerate(rows):
        (folder / "onnx" / net).write_text(net)
        (folder / "vnnlib" / f"p{k}.vnnlib").write_text(todo)
        lines.append(f"onnx/{net},vnnlib/p{k}.vnnlib,{timeout}")
        if expected and k in expected:
            known.append(f"onnx/{net},vnnlib/p{k}.vnnlib,{expected[k]}")
    (folder / "instances.csv").write_text("\n".join(lines) + "\n")
    if expected:
        (folder / "expected.csv").write_text("\n".join(known) + "\n")


def bench(*arguments: str) -> tuple[int, str]:
    """Exit status and what the tables and alarms said."""
    import io

    from rich.console import Console

    from mucg4.bench.plan import make_plan
    from mucg4.cli.bench import extra_options
    from mucg4.cli.options import make_parser

    args = make_parser().parse_args(["bench", *arguments])
    alarms, lines = io.StringIO(), []
    status = bench_run.run_bench(
        make_plan(args.sources[0], args, extra_options(args)), Console(file=alarms), lines.append
    )
    return status, "\n".join(lines) + "\n" + alarms.getvalue()


def records(out: Path, name: str = "runs.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_results_and_official_layout(folder: Path) -> None:
    fill(folder, [("a.onnx", "unsat", 30), ("b.onnx", "sat", 30)], {0: "unsat", 1: "sat"})
    status, text = bench("some_family", "--store", "s.sqlite")
    out = Path("bench-out") / "some_family"
    assert status == 0 and "decided 2 of 2" in text
    rows = [line.split(",") for line in (out / "results.csv").read_text().splitlines()]
    assert [r[:3] + [r[4]] for r in rows] == [
        ["some_family", "onnx/a.onnx", "vnnlib/p0.vnnlib", "unsat"],
        ["some_family", "onnx/b.onnx", "vnnlib/p1.vnnlib", "sat"],
    ]
    assert all(len(r) == 6 and float(r[3]) == 0 and float(r[5]) > 0 for r in rows)
    first = records(out)[0]
    assert first["relation"] == "quantised" and first["wall"] > 0 and first["peak_rss"] > 2**20
    assert calls(folder)[0].endswith("s.sqlite")


def test_limits_and_broken_rows(folder: Path) -> None:
    rows = [("a.onnx", "hang", 0.2), ("a.onnx", "crash", 30), ("a.onnx", "refuse", 30), ("a.onnx", "eat", 30)]
    fill(folder, rows)
    status, text = bench("some_family", "--memory", "0.4")
    found = records(Path("bench-out/some_family"))
    assert [(r["verdict"], r["killed"]) for r in found] == [
        ("timeout", "timeout"),
        ("error", ""),
        ("unknown", ""),
        ("unknown", "memory"),
    ]
    assert status == 0 and "no such operator" in text


def test_rows_get_a_limit_below_the_one_they_are_killed_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "free_bytes", lambda: 10.0 * 2**30)
    fill(folder, [("a.onnx", "unsat", 30)])
    for number, (options, given) in enumerate(((["--memory", "2"], 1.9), ([], 8.0), (["--jobs", "4"], 2.0))):
        bench("some_family", "--out", f"o{number}", *options)
        assert records(Path(f"o{number}"))[0]["memory"] == pytest.approx(given)


def test_an_answer_after_the_timeout_does_not_count(folder: Path) -> None:
    fill(folder, [("a.onnx", "unsat", 0.001)], {0: "sat"})
    status, text = bench("some_family")
    record = records(Path("bench-out/some_family"))[0]
    assert (record["verdict"], record["claimed"]) == ("timeout", "unsat")
    assert status == 1 and "WRONG ANSWER" in text  # late, but wrong all the same


def test_wrong_answers_are_shouted(folder: Path) -> None:
    fill(folder, [("a.onnx", "unsat", 30)], {0: "sat"})
    status, text = bench("some_family")
    assert status == 1 and "WRONG ANSWER: onnx/a.onnx vnnlib/p0.vnnlib" in text


def test_contradictions_need_no_expected_answer(folder: Path) -> None:
    fill(folder, [("a.onnx", "unsat fickle", 30)])
    status, text = bench("some_family", "--with-scratch")
    assert status == 1 and "CONTRADICTION" in text


def test_resume_runs_only_what_is_missing(folder: Path) -> None:
    fill(folder, [("a.onnx", "unsat", 30)] * 3)
    out = Path("bench-out/some_family")
    assert bench("some_family", "--limit", "2")[0] == 0
    with (out / "runs.jsonl").open("a") as file:
        file.write('{"row": 2, "verd')  # killed while writing
    assert bench("some_family")[0] == 0
    assert len(calls(folder)) == 3 and [r["row"] for r in records(out)] == [0, 1, 2]
    assert len((out / "results.csv").read_text().splitlines()) == 3
    assert bench("some_family", "--no-resume", "--limit", "1")[0] == 0
    assert len(calls(folder)) == 4 and len(records(out)) == 1


def test_results_of_another_plan_are_not_mixed(folder: Path) -> None:
    fill(folder, [("a.onnx", "unsat", 30)])
    bench("some_family")
    for other in (["--store", "off"], ["--engine", "smt"], ["--timeout-cap", "5"]):
        with pytest.raises(InputError, match="another plan"):
            bench("some_family", *other)
    assert len(records(Path("bench-out/some_family"))) == 1


def test_interruption_then_resume(folder: Path) -> None:
    fill(folder, [("a.onnx", "unsat", 30), ("a.onnx", "hang", 600)])
    code = f"""
import sys
from mucg4.bench import run
run.TOOL = {bench_run.TOOL!r}
from mucg4.cli.main import main
sys.exit(main(["bench", "some_family"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", code], cwd=folder.parent, env=environment, stderr=subprocess.PIPE)
    while not (folder / "calls").exists() or len(calls(folder)) < 2:
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and b"continues" in errors
    assert [r["row"] for r in records(Path("bench-out/some_family"))] == [0]
    (folder / "vnnlib" / "p1.vnnlib").write_text("sat")
    assert bench("some_family")[0] == 0
    assert len(calls(folder)) == 3


def test_scratch_runs_take_turns(folder: Path) -> None:
    fill(folder, [("a.onnx", "unsat", 30), ("a~int8.onnx", "sat", 30)])
    (folder / "manifest.csv").write_text("onnx,parent,method\nonnx/a~int8.onnx,onnx/a.onnx,int8\n")
    status, text = bench("some_family", "--with-scratch", "--store", "fresh")
    assert status == 0
    modes = [line.split()[-1].endswith("store.sqlite") for line in calls(folder)]
    assert modes == [True, False, False, True]
    assert "per method:" in text and "int8" in text and "original" in text and "75 %" in text
    assert "sat against unsat between the two: 0" in text


def test_choosing_rows(folder: Path) -> None:
    fill(folder, [("a.onnx", "unsat", 30), ("a.onnx", "unsat", 30), ("b.onnx", "unsat", 30), ("b.onnx", "sat", 30)])
    bench("some_family", "--first-per-network", "1", "--out", "o1")
    assert [r["row"] for r in records(Path("o1"))] == [0, 2]
    bench("some_family", "--rows", "1:3", "--timeout-cap", "5", "--out", "o2")
    assert [(r["row"], r["timeout"]) for r in records(Path("o2"))] == [(1, 5.0), (2, 5.0)]
    bench("some_family/instances.csv", "--jobs", "2", "--out", "o3")
    assert sorted(r["row"] for r in records(Path("o3"))) == [0, 1, 2, 3]
    for wrong in ("x:y", "9:"):
        with pytest.raises(InputError):
            bench("some_family", "--rows", wrong, "--out", "o4")


def test_checking_proofs(folder: Path) -> None:
    fill(folder, [("a.onnx", "unsat check=0", 30), ("a.onnx", "unsat check=1", 30), ("a.onnx", "sat", 30)])
    status, text = bench("some_family", "--check")
    found = [r.get("check") for r in records(Path("bench-out/some_family"))]
    assert found == ["accepted", "rejected", None]
    assert status == 1 and "PROOF NOT ACCEPTED" in text and "accepted by the checker afterwards: 1 of 2" in text


def test_settings_are_passed_on(folder: Path) -> None:
    from mucg4.cli.bench import extra_options
    from mucg4.cli.options import make_parser

    args = make_parser().parse_args(["bench", "x", "--engine", "smt", "--no-reuse", "--seed", "7", "--no-unchecked"])
    assert extra_options(args) == ["--engine", "smt", "--seed", "7", "--no-reuse", "--no-unchecked"]


def test_children_are_ended_with_all_their_descendants(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = ["bash", "-c", f"sleep 600 & echo $! > '{pid}'; wait"]
    child = Children().run(command, tmp_path / "log", 0.5, 1e12)
    assert child.killed == "timeout" and child.status == -signal.SIGKILL
    for _ in range(500):
        if not Path(f"/proc/{pid.read_text().strip()}").exists():
            return
        time.sleep(0.01)
    raise AssertionError("the grandchild lives on")


def test_table_of_nothing() -> None:
    assert table.comparison({}, {}, {})
    assert table.summary({}, 0) == ["decided 0 of 0: "]


def test_slow_rows_and_rows_decided_by_one_are_listed() -> None:
    def row(verdict: str, wall: float) -> dict[str, Any]:
        return {"onnx": "n.onnx", "vnnlib": "p.vnnlib", "verdict": verdict, "wall": wall}

    runs = {0: row("unsat", 2.0), 1: row("timeout", 9.0), 2: row("unsat", 1.0)}
    scratch = {0: row("unsat", 1.0), 1: row("sat", 8.0), 2: row("unsat", 4.0)}
    text = "\n".join(table.comparison(runs, scratch, {}))
    assert "decided by only one of the two: 1" in text
    assert "slower than 1.2 x from scratch + 0.3 s: 1" in text
    assert table.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_wrong_means_decided_and_different() -> None:
    expected = {("n", "p"): "sat"}
    for verdict, wrong in (("sat", False), ("unsat", True), ("unknown", False), ("timeout", False), ("error", False)):
        assert is_wrong({"onnx": "n", "vnnlib": "p", "verdict": verdict}, expected) is wrong
    assert not is_wrong({"onnx": "n", "vnnlib": "q", "verdict": "unsat"}, expected)


def test_alarms_compare_rows_of_equal_content(folder: Path) -> None:
    fill(folder, [("a.onnx", "unsat", 30), ("b.onnx", "unsat", 30)])
    (folder / "onnx" / "b.onnx").write_text("a.onnx")  # same bytes as the first network
    (folder / "vnnlib" / "p1.vnnlib").write_text("unsat")
    from mucg4.bench.plan import make_plan
    from mucg4.cli.options import make_parser

    args = make_parser().parse_args(["bench", "some_family"])
    plan = make_plan(args.sources[0], args, [])
    found = {
        k: {"onnx": f"onnx/{n}.onnx", "vnnlib": f"vnnlib/p{k}.vnnlib", "verdict": v}
        for k, (n, v) in enumerate([("a", "unsat"), ("b", "sat")])
    }
    assert any("CONTRADICTION" in text for text in find_alarms(plan, {"store": found}))
