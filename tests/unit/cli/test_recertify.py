"""The command `recertify`: a proof made once, and the recipe for a release pipeline."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from mucg4.cli.options import make_parser

from .test_main import Call, call, refused  # noqa: F401 - a fixture

PAGE = Path(__file__).resolve().parents[3] / "docs" / "recertify.md"


def variant(run: Call, method: str) -> str:
    name = f"{method}.onnx"
    assert run("compress", "net.onnx", "--method", method, "-o", name)[0] == 0
    return name


def test_first_line_as_verify_then_what_was_reused(call: Call) -> None:  # noqa: F811
    assert call("verify", "net.onnx", "unsat.vnnlib", "--proof", "p.json.gz", "--proof-network")[0] == 0
    name = variant(call, "int8")
    status, out, err = call("recertify", name, "unsat.vnnlib", "--from", "p.json.gz", "--json", "r.json")
    first, second = out.splitlines()
    assert (status, first, err) == (0, "unsat", "")
    assert re.fullmatch(r"reused \d+ of \d+ leaves of p\.json\.gz \(.+\); \d+ regions searched; checker .*", second)
    assert json.loads(Path("r.json").read_text())["checker"] == "accepted"
    status, out, err = call("recertify", "net.onnx", "sat.vnnlib", "--from", "p.json.gz", "--workers", "1")
    assert status == 0 and out.startswith("sat\n((X_0 ") and out.splitlines()[-1].startswith("no proof was needed")


def test_the_required_verdict(call: Call) -> None:  # noqa: F811
    assert call("verify", "net.onnx", "unsat.vnnlib", "--proof", "p.json")[0] == 0
    start = ["recertify", "net.onnx"]
    assert call(*start, "unsat.vnnlib", "--from", "p.json", "--require", "unsat")[0] == 0
    assert call(*start, "unsat.vnnlib", "--from", "p.json", "--require", "sat")[0] == 1
    assert call(*start, "sat.vnnlib", "--from", "p.json", "--require", "unsat")[0] == 1


def test_a_run_that_has_to_leave_is_not_what_was_required(call: Call) -> None:  # noqa: F811
    assert call("verify", "net.onnx", "unsat.vnnlib", "--proof", "p.json")[0] == 0
    command = [sys.executable, "-m", "mucg4", "recertify", "net.onnx", "unsat.vnnlib", "--from", "p.json"]
    command += ["--timeout", "0"]
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[1])}
    for more, expected in (([], 0), (["--require", "unsat"], 1)):
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout.splitlines()[0]) == (expected, "timeout")


def test_bad_input(call: Call) -> None:  # noqa: F811
    Path("bad.json").write_text("{}")
    start = ["recertify", "net.onnx", "unsat.vnnlib"]
    refused(call(*start, "--from", "none.json"), "none.json")
    refused(call(*start, "--from", "bad.json"), "bad.json", "not a mucg4 proof")
    refused(call(*start, "--from", "."), "no proofs in this folder")
    refused(call(*start), "--from")


def test_the_recipe_of_the_page_is_followed(call: Call) -> None:  # noqa: F811
    """Every `mucg4` command on the page, in order, on small files of the names that it uses."""
    lines = [line.strip().removeprefix("- run: ") for line in PAGE.read_text().splitlines()]
    commands = [line for line in lines if line.startswith("mucg4 ")]
    assert {c.split()[1] for c in commands} >= {"verify", "recertify"}
    Path("proofs").mkdir()
    Path("net.vnnlib").write_text(Path("unsat.vnnlib").read_text())
    variant(call, "int8")
    Path("int8.onnx").rename("release.onnx")
    for command in commands:
        arguments = command.split()[1:]
        make_parser().parse_args(arguments)
        status, out, _ = call(*arguments, "--workers", "1")
        assert status == 0, (command, out)
        if arguments[0] == "recertify":
            assert out.startswith("unsat\nreused ")
