"""The command line: verdicts, files it writes, and one clear line for every kind of bad input."""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mucg4.cli.main import main
from mucg4.read.case import layers_to_onnx

LAYERS = [([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0]), ([[1.0, 1.0]], [0.0])]  # at most 2 on the box [-1, 1]^2
Call = Callable[..., tuple[int, str, str]]


def prop(*asserts: str, inputs: int = 2, outputs: int = 1) -> str:
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{i}" for i in range(outputs)]
    lines = [f"(declare-const {n} Real)" for n in names] + [f"(assert {a})" for a in asserts]
    return "\n".join(lines) + "\n"


BOX = ("(>= X_0 -1)", "(<= X_0 1)", "(>= X_1 -1)", "(<= X_1 1)")
SAT, UNSAT = prop(*BOX, "(>= Y_0 1.5)"), prop(*BOX, "(>= Y_0 2.5)")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in a folder that holds net.onnx, sat.vnnlib and unsat.vnnlib."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUCG4_STORE", "off")
    Path("net.onnx").write_bytes(layers_to_onnx(LAYERS))
    Path("sat.vnnlib").write_text(SAT)
    Path("unsat.vnnlib").write_text(UNSAT)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(list(arguments))
        except SystemExit as leave:
            status = int(leave.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def refused(outcome: tuple[int, str, str], *words: str) -> None:
    """Exit status 2, nothing on stdout, one line on stderr that has these words."""
    status, out, err = outcome
    assert (status, out) == (2, "")
    assert re.fullmatch(r"mucg4: error: .+\n", err), err
    for word in words:
        assert word in err


UNUSED = ("numpy.ma", "scipy", "onnx", "z3", "highspy", "sqlite3", "multiprocessing", "shutil", "tempfile", "csv")


@pytest.mark.parametrize("word", ["sat", "unsat"])
def test_a_small_run_loads_only_what_it_uses(call: Call, word: str) -> None:
    code = f"""
import sys
before = set(sys.modules)
from mucg4.cli.main import main
status = main(["verify", "net.onnx", "{word}.vnnlib", "--workers", "1"])
print(status, sorted(name for name in set(sys.modules) - before if name in {UNUSED}))
"""
    root = str(Path(__file__).resolve().parents[3])
    code = f"import sys; sys.path.insert(0, {root!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines()[0], done.stdout.splitlines()[-1]) == (word, "0 []")


def test_a_process_says_everything_before_it_leaves(call: Call) -> None:
    root = str(Path(__file__).resolve().parents[3])
    for arguments, status, words in ((["--name"], 0, "mucg4"), (["store", "list"], 2, "the store is off")):
        code = f"import sys; sys.path.insert(0, {root!r}); sys.argv[1:] = {arguments}; import mucg4.cli.main as m"
        done = subprocess.run([sys.executable, "-c", f"{code}; m.process()"], capture_output=True, text=True)
        assert done.returncode == status and words in done.stdout + done.stderr


# --- verdicts and what is written ------------------------------------------------------------------------------


def test_unsat(call: Call) -> None:
    assert call("verify", "net.onnx", "unsat.vnnlib") == (0, "unsat\n", "")


def test_sat_with_a_witness_that_reads_back_exactly(call: Call) -> None:
    status, out, err = call("verify", "net.onnx", "sat.vnnlib", "--json", "run.json")
    assert (status, err) == (0, "")
    found = re.fullmatch(r"sat\n\(\(X_0 (\S+)\)\n\(X_1 (\S+)\)\n\(Y_0 (\S+)\)\)\n", out)
    assert found
    values = [float(v) for v in found.groups()]
    assert values == np.array(values, dtype=np.float32).tolist()
    assert max(abs(v) for v in values[:2]) <= 1 and values[2] >= 1.5
    record = json.loads(Path("run.json").read_text())
    assert record["witness"] == {"x": values[:2], "y": values[2:]}


def test_run_record(call: Call) -> None:
    call("verify", "net.onnx", "unsat.vnnlib", "--timeout", "60", "--json", "run.json")
    record = json.loads(Path("run.json").read_text())
    assert (record["verdict"], record["relation"], record["timeout"]) == ("unsat", "unrelated", 60.0)
    keys = {"rungs", "reused_share", "stored_leaves", "related_proof", "regions", "leaves", "times", "wall", "warnings"}
    assert keys <= set(record)


def test_packed_input(call: Call) -> None:
    Path("net2.onnx.gz").write_bytes(gzip.compress(Path("net.onnx").read_bytes()))
    Path("p.vnnlib.gz").write_bytes(gzip.compress(UNSAT.encode()))
    assert call("verify", "net2.onnx.gz", "p.vnnlib")[:2] == (0, "unsat\n")


@pytest.mark.parametrize(
    "arguments",
    [["unsat.vnnlib", "--network", "f=net.onnx"], ["[('f', 'net.onnx')]", "unsat.vnnlib"]],
    ids=["standard", "list"],
)
def test_other_forms_of_the_arguments(call: Call, arguments: list[str]) -> None:
    assert call("verify", *arguments)[:2] == (0, "unsat\n")


def test_proof_and_check(call: Call) -> None:
    for name in ("p.json", "p.json.gz"):
        assert call("verify", "net.onnx", "unsat.vnnlib", "--proof", name)[0] == 0
        status, out, _ = call("check", "net.onnx", "unsat.vnnlib", name)
        assert status == 0 and out.startswith("accepted\n")
    refused(call("check", "net.onnx", "unsat.vnnlib", "missing.json"), "missing.json")
    status, out, _ = call("check", "net.onnx", "sat.vnnlib", "p.json")
    assert status == 1 and out.startswith("rejected")
    Path("p.json").write_text(Path("p.json").read_text()[:-20])
    assert call("check", "net.onnx", "unsat.vnnlib", "p.json")[0] == 1
    Path("p.json").write_bytes(b"")
    assert call("check", "net.onnx", "unsat.vnnlib", "p.json")[0] == 1


def test_no_time_at_all(call: Call) -> None:
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[3]
    names = [str(Path(n).resolve()) for n in ("net.onnx", "unsat.vnnlib")]
    command = [sys.executable, "-m", "mucg4", "verify", *names, "--timeout", "0", "--store", "off"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "timeout\n", "")


def test_every_command_has_a_help(call: Call) -> None:
    commands = re.findall(r"^    (\w+)\b", call("--help")[1], re.MULTILINE)
    assert {"verify", "recertify", "sweep", "store"} <= set(commands)
    for command in commands:
        status, out, err = call(command, "--help")
        assert (status, err) == (0, "") and f"mucg4 {command}" in out and "--help" in out


def test_version(call: Call) -> None:
    from mucg4 import __version__

    assert call("--version")[:2] == (0, f"{__version__}\n")


def test_empty_box_and_contradictory_bounds_are_unsat(call: Call) -> None:
    for bounds in (("(>= X_0 2)",), ("(<= X_1 -3)", "(>= X_1 5)")):
        Path("p.vnnlib").write_text(prop(*BOX, *bounds, "(>= Y_0 0)"))
        assert call("verify", "net.onnx", "p.vnnlib") == (0, "unsat\n", "")


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["verify"], ["verify", "net.onnx"], ["prove"], ["verify", "a", "b", "c"]])
def test_bad_arguments(call: Call, arguments: list[str]) -> None:
    refused(call(*arguments))


@pytest.mark.parametrize(
    "options", [["--timeout", "soon"], ["--timeout", "-1"], ["--engine", "magic"], ["--seed", "x"], ["--batch", "-1"]]
)
def test_bad_options(call: Call, options: list[str]) -> None:
    refused(call("verify", "net.onnx", "unsat.vnnlib", *options))


def test_missing_files(call: Call) -> None:
    refused(call("verify", "nothing.onnx", "unsat.vnnlib"), "nothing.onnx")
    refused(call("verify", "net.onnx", "nothing.vnnlib"), "nothing.vnnlib")
    refused(call("verify", ".", "unsat.vnnlib"))


def test_empty_truncated_and_foreign_files(call: Call) -> None:
    whole = Path("net.onnx").read_bytes()
    bad = {"empty": b"", "cut": whole[: len(whole) // 2], "text": SAT.encode(), "zeros": bytes(99), "odd": b"\xff" * 9}
    for name, data in bad.items():
        Path(f"{name}.onnx").write_bytes(data)
        refused(call("verify", f"{name}.onnx", "unsat.vnnlib"), f"{name}.onnx")
    Path("cut.onnx.gz").write_bytes(gzip.compress(whole)[:-12])
    refused(call("verify", "cut.onnx.gz", "unsat.vnnlib"), "cut.onnx.gz")
    Path("net2.onnx.gz").write_bytes(whole)
    refused(call("verify", "net2.onnx.gz", "unsat.vnnlib"), "net2.onnx.gz")


@pytest.mark.parametrize(
    "text", ["", "(assert", SAT[:-8], "(assert (>= Q_0 1))", SAT + ")", "\x00\x01", SAT.replace("1.5", "one")]
)
def test_malformed_property(call: Call, text: str) -> None:
    Path("bad.vnnlib").write_text(text)
    refused(call("verify", "net.onnx", "bad.vnnlib"), "bad.vnnlib")


def test_property_of_another_network(call: Call) -> None:
    Path("other.vnnlib").write_text(prop("(>= X_0 0)", "(<= X_0 1)", "(>= Y_0 1)", inputs=1))
    refused(call("verify", "net.onnx", "other.vnnlib"), "other.vnnlib")
    Path("other.vnnlib").write_text(prop(*BOX, "(>= Y_3 1)", outputs=4))
    refused(call("verify", "net.onnx", "other.vnnlib"))


def test_unbounded_input(call: Call) -> None:
    Path("open.vnnlib").write_text(prop(*BOX[:3], "(>= Y_0 1)"))
    status, out, _ = call("verify", "net.onnx", "open.vnnlib", "--timeout", "20", "--json", "run.json")
    word = out.split("\n")[0]
    assert status == 0 and word in ("sat", "unknown")
    assert word == "sat" or "X_1" in json.loads(Path("run.json").read_text())["reason"]


def model(nodes: list[Any], shape: list[Any], constants: list[Any] = ()) -> bytes:  # type: ignore[assignment]
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("X", shape), ("Y", None))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], list(constants))
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString())


def test_unsupported_operator_is_named(call: Call) -> None:
    from onnx import helper

    Path("odd.onnx").write_bytes(model([helper.make_node("Hardmax", ["X"], ["Y"])], [1, 2]))
    refused(call("verify", "odd.onnx", "unsat.vnnlib"), "Hardmax")


def test_dynamic_shape(call: Call) -> None:
    from onnx import helper

    Path("dynamic.onnx").write_bytes(model([helper.make_node("Relu", ["X"], ["Y"])], ["N", "M", 3]))
    refused(call("verify", "dynamic.onnx", "unsat.vnnlib"), "dynamic.onnx")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights(call: Call, value: float) -> None:
    Path("nan.onnx").write_bytes(layers_to_onnx([([[1.0, value], [1.0, -1.0]], [0.0, 0.0]), LAYERS[1]]))
    refused(call("verify", "nan.onnx", "unsat.vnnlib"), "nan.onnx")


def test_several_networks(call: Call) -> None:
    refused(call("verify", "[('f', 'net.onnx'), ('g', 'net.onnx')]", "unsat.vnnlib"), "one network, not 2")
    refused(call("verify", "[('f', 'net.onnx'", "unsat.vnnlib"))
    refused(call("verify", "unsat.vnnlib", "--network", "net.onnx"))
    refused(call("verify", "net.onnx", "unsat.vnnlib", "--network", "f=net.onnx"))


QUERY = """(vnnlib-version <2.0>)
(declare-network f (declare-input X real [1,2]) (declare-output Y real [1]))
(declare-network g (equal-to f) (declare-input U real [1,2]) (declare-output V real [1]))
(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0) (>= X[0,1] -1.0) (<= X[0,1] 1.0)))
(assert (and (== X[0,0] U[0,0]) (== X[0,1] U[0,1])))
"""


def test_the_command_line_of_the_standard(call: Call) -> None:
    Path("q.vnnlib").write_text(QUERY + "(assert (> Y[0] (+ V[0] 0.5)))")
    assert call("verify", "q.vnnlib", "--network", "f=net.onnx", "--timeout", "20.0")[:2] == (0, "unsat\n")
    pair = "[('f', 'net.onnx'), ('g', 'net.onnx')]"
    assert call("verify", pair, "q.vnnlib", "--result", "r.txt")[:2] == (0, "unsat\n")
    assert call("verify", "q.vnnlib", "--network", "f=net.onnx", "--proof", "pair.json")[0] == 0
    status, out, _ = call("check", pair, "q.vnnlib", "pair.json")
    assert (status, out.splitlines()[0]) == (0, "accepted")
    assert "1 tree with" in call("explain", pair, "q.vnnlib", "--proof", "pair.json")[1]
    Path("q.vnnlib").write_text(QUERY + "(assert (>= Y[0] V[0]))")
    assert call("check", pair, "q.vnnlib", "pair.json")[0] == 1
    status, out, _ = call("verify", "q.vnnlib", "--network", "f=net.onnx", "--proof", "p.json")
    lines = out.splitlines()
    assert (status, lines[0]) == (0, "sat")
    assert [line for line in lines if "[" in line] == ["X real [1,2]", "Y real [1]", "U real [1,2]", "V real [1]"]
    assert len(lines) == 11 and all(float(lines[k]) == float(lines[k + 5]) for k in (2, 3, 5))
    arguments = ["--network", "f=net.onnx", "--serialise-assignments", "out"]
    assert call("verify", "q.vnnlib", *arguments)[:2] == (0, "sat\n")
    assert sorted(p.name for p in Path("out").iterdir()) == ["U.pb", "V.pb", "X.pb", "Y.pb"]
    refused(call("verify", "q.vnnlib", "--network", "h=net.onnx"), "no network 'h'")
    refused(call("verify", "q.vnnlib", "--network", "f=net.onnx", "--network", "h=net.onnx"), "no network 'h'")


def test_the_standard_has_a_word_of_its_own_for_time(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    from mucg4.cli.answer import Answer
    from mucg4.cli.options import make_parser

    for arguments, word in ((["q.vnnlib", "--network", "f=n"], "timed-out\n"), (["n", "q.vnnlib"], "timeout\n")):
        args = make_parser().parse_args(["verify", *arguments, "--result", "r.txt"])
        args.start = 0.0
        Answer(args).announce("timeout")
        assert (capsys.readouterr().out, Path("r.txt").read_text()) == (word, "timeout\n")


def test_a_declared_type_asks_for_its_arithmetic(call: Call) -> None:
    text = QUERY.replace("real", "float32") + "(assert (> Y[0] (+ V[0] {})))"
    Path("q.vnnlib").write_text(text.format("0.5"))
    assert call("verify", "q.vnnlib", "--network", "f=net.onnx", "--json", "r.json")[1] == "unsat\n"
    assert json.loads(Path("r.json").read_text())["float32"] == "holds"


def test_supports(call: Call) -> None:
    assert call("supports", "--vnnlib-versions") == (0, "1.0\n2.0\n", "")
    assert call("supports", "--serialise-assignments")[1] == "true\n"
    assert "Relu" in call("supports", "--onnx-operators")[1].splitlines()


@pytest.mark.parametrize("option", ["--json", "--proof"])
def test_outputs_that_cannot_be_written_are_refused_before_the_work(call: Call, option: str) -> None:
    Path("folder").mkdir()
    for target in ("folder", "no/such/place"):
        refused(call("verify", "net.onnx", "unsat.vnnlib", option, target), target)


def test_bad_input_leaves_a_legal_result_file(call: Call) -> None:
    refused(call("verify", "nothing.onnx", "unsat.vnnlib", "--result", "out.txt", "--json", "run.json"))
    assert Path("out.txt").read_text() == "unknown\n"
    assert json.loads(Path("run.json").read_text())["verdict"] == "error"


def test_a_bug_is_no_verdict(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from mucg4.read import instance

    def broken(onnx: Path, vnnlib: Path, shapes: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(instance, "read_query", broken)
    status, out, err = call("verify", "net.onnx", "unsat.vnnlib", "--result", "out.txt")
    assert (status, out) == (3, "unknown\n")
    assert "internal error: ZeroDivisionError" in err and Path("out.txt").read_text() == "unknown\n"


def test_disk_full(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from mucg4.cli import answer

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answer, "write_atomic", full)
    monkeypatch.setattr("mucg4.files.write_atomic", full)
    status, out, err = call("verify", "net.onnx", "unsat.vnnlib", "--json", "run.json", "--result", "out.txt")
    assert (status, out) == (2, "unsat\n")
    assert err == "mucg4: error: cannot write run.json: No space left on device\n"
    assert Path("out.txt").read_text() == "unsat\n"  # in place, over the old word


# --- the store -------------------------------------------------------------------------------------------------


def test_store_is_created_with_its_parents_and_used(call: Call) -> None:
    store = "deep/er/store.sqlite"
    assert call("verify", "net.onnx", "unsat.vnnlib", "--store", store)[:2] == (0, "unsat\n")
    assert Path(store).exists()
    assert call("verify", "net.onnx", "unsat.vnnlib", "--store", store, "--json", "run.json")[:2] == (0, "unsat\n")
    record = json.loads(Path("run.json").read_text())
    assert (record["relation"], record["reused_share"]) == ("identical", 1.0)


def test_store_from_the_environment(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUCG4_STORE", "env.sqlite")
    call("verify", "net.onnx", "unsat.vnnlib")
    assert Path("env.sqlite").exists()


def test_damaged_store_costs_no_verdict(call: Call) -> None:
    Path("s.sqlite").write_bytes(b"this is no database at all" * 100)
    status, out, err = call("verify", "net.onnx", "unsat.vnnlib", "--store", "s.sqlite")
    assert (status, out) == (0, "unsat\n") and "warning" in err


def test_store_of_a_newer_schema_is_left_alone(call: Call) -> None:
    call("verify", "net.onnx", "unsat.vnnlib", "--store", "s.sqlite")
    with sqlite3.connect("s.sqlite") as database:
        database.execute("PRAGMA user_version = 999999")
    database.close()
    before = Path("s.sqlite").read_bytes()
    status, out, err = call("verify", "net.onnx", "unsat.vnnlib", "--store", "s.sqlite")
    assert (status, out) == (0, "unsat\n") and "schema 999999" in err
    assert Path("s.sqlite").read_bytes() == before
    refused(call("store", "--store", "s.sqlite", "list"), "schema 999999")


def test_store_commands(call: Call) -> None:
    call("verify", "net.onnx", "unsat.vnnlib", "--store", "s.sqlite")
    status, out, _ = call("store", "--store", "s.sqlite", "list")
    assert status == 0 and "unsat" in out
    key = out.split()[0]
    status, out, _ = call("store", "--store", "s.sqlite", "show", key)
    assert status == 0 and key in out
    refused(call("store", "--store", "s.sqlite", "show", "nosuchkey"), "nosuchkey")
    assert call("store", "--store", "s.sqlite", "gc")[0] == 0
    assert call("store", "--store", "s.sqlite", "clear")[0] == 0
    status, out, _ = call("store", "--store", "s.sqlite", "list")
    assert status == 0 and "unsat" not in out
    refused(call("store", "--store", "off", "list"))


# --- compress and case -----------------------------------------------------------------------------------------


def test_compress(call: Call) -> None:
    assert call("compress", "net.onnx", "--method", "fp16", "-o", "small.onnx")[0] == 0
    assert call("verify", "small.onnx", "unsat.vnnlib")[:2] == (0, "unsat\n")
    refused(call("compress", "net.onnx", "--method", "magic", "-o", "small.onnx"), "magic")
    refused(call("compress", "net.onnx", "--method", "fp16", "-o", "no/such/folder.onnx"))
    refused(call("compress", "sat.vnnlib", "--method", "fp16", "-o", "small.onnx"))


def test_case(call: Call) -> None:
    from mucg4.read.case import save_case

    save_case(Path("good.json"), LAYERS, UNSAT, kind="example", related=layers_to_onnx(LAYERS), expected="unsat")
    save_case(Path("bad.json"), layers_to_onnx(LAYERS), UNSAT, kind="example", expected="sat")
    status, out, _ = call("case", "good.json")
    assert status == 0 and out.startswith("good.json: fixed")
    assert all(f"{engine}: unsat" in out for engine in ("scratch", "smt", "with store", "again"))
    status, out, _ = call("case", "bad.json")
    assert status == 1 and "still failing" in out
    Path("no.json").write_text("{}")
    refused(call("case", "no.json"), "no.json")


def test_a_stored_proof_is_explained_and_compacted(call: Call, tmp_path: Path) -> None:
    store = str(tmp_path / "store.sqlite")
    refused(call("explain", "net.onnx", "unsat.vnnlib", "--store", store), "no proof")
    refused(call("store", "--store", store, "compact", "net.onnx", "unsat.vnnlib"), "no proof")
    assert call("verify", "net.onnx", "unsat.vnnlib", "--store", store, "--proof", "proof.json")[0] == 0
    for place in (("--store", store), ("--proof", "proof.json")):
        status, out, _ = call("explain", "net.onnx", "unsat.vnnlib", *place)
        assert status == 0 and "1 tree with " in out and "closed by" in out
    status, out, err = call("store", "--store", store, "compact", "net.onnx", "unsat.vnnlib", "--effort", "5")
    assert status == 0 and "holds on tuned" in out and "compact: part 1 of 1" in err
    assert call("verify", "net.onnx", "unsat.vnnlib", "--store", store)[1] == "unsat\n"
    Path("sat.vnnlib").write_text(prop(*BOX, "(>= Y_0 2.6)"))
    refused(call("explain", "net.onnx", "sat.vnnlib", "--proof", "proof.json"), "another network or property")


def test_the_proof_of_a_query_with_many_choices_is_explained_and_compacted(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored, and in proof files, is about cases that leave no choice out."""
    from mucg4.check import vnnlib2
    from mucg4.read import normal2

    monkeypatch.setattr(normal2, "WRITTEN", 4)
    monkeypatch.setattr(vnnlib2, "CHOICES", 4)
    monkeypatch.setattr(vnnlib2._Comparison2, "written", 4)
    store, gaps = (
        str(tmp_path / "store.sqlite"),
        " ".join(f"(or (<= Y[0,0] {k}) (>= Y[0,0] {k + 1.1}))" for k in range(5)),
    )
    text = "(vnnlib-version <2.0>) (declare-network N (declare-input X real [1,2]) (declare-output Y real [1,1]))"
    box = "(>= X[0,0] -1.0) (<= X[0,0] 1.0) (>= X[0,1] -1.0) (<= X[0,1] 1.0)"
    Path("many.vnnlib").write_text(f"{text} (assert (and {box} (>= Y[0,0] 0.5) (<= Y[0,0] 5.0) {gaps}))")
    query = call("verify", "net.onnx", "many.vnnlib", "--store", store, "--proof", "proof.json")
    assert query[1] == "unsat\n"
    for place in (("--store", store), ("--proof", "proof.json")):
        status, out, _ = call("explain", "net.onnx", "many.vnnlib", *place)
        assert status == 0 and "closed by" in out
    assert call("store", "--store", store, "compact", "net.onnx", "many.vnnlib", "--effort", "2")[0] == 0


def test_a_proof_kept_as_a_reference_is_explained_and_compacted(call: Call, tmp_path: Path) -> None:
    store = str(tmp_path / "store.sqlite")
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=(8, 2)).tolist(), [0.1] * 8), (rng.normal(size=(1, 8)).tolist(), [0.0])]
    Path("net.onnx").write_bytes(layers_to_onnx(layers))
    Path("unsat.vnnlib").write_text(prop(*BOX, "(>= Y_0 30)"))
    call("compress", "net.onnx", "--method", "permute", "-o", "other.onnx")
    for name in ("net", "other"):
        assert call("verify", f"{name}.onnx", "unsat.vnnlib", "--store", store)[1] == "unsat\n"
    assert " as " in call("store", "--store", store, "list")[1]
    assert "1 tree with " in call("explain", "other.onnx", "unsat.vnnlib", "--store", store)[1]
    status, out, _ = call("store", "--store", store, "compact", "other.onnx", "unsat.vnnlib", "--effort", "1")
    assert status == 0 and "holds on tuned" in out and " as " not in call("store", "--store", store, "list")[1]
    assert call("verify", "other.onnx", "unsat.vnnlib", "--store", store)[1] == "unsat\n"


def test_compaction_leaves_time_for_its_check(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = str(tmp_path / "store.sqlite"), []
    assert call("verify", "net.onnx", "unsat.vnnlib", "--store", store)[0] == 0
    monkeypatch.setattr("mucg4.reuse.compact.compact", lambda run, proof, effort, gauges: asked.append(effort) or proof)
    for timeout in ([], ["--timeout", "40"]):
        assert (
            call("store", "--store", store, *timeout, "compact", "net.onnx", "unsat.vnnlib", "--effort", "60")[0] == 0
        )
    assert asked[0] == 60 and asked[1] < 30
