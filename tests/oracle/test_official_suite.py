"""The official test suite of the VNN-LIB standard (the package `vnnlib-satisfactory`) through our command line.

Its models and queries are made by the package; each is put to the command `verify` as the suite does it, but one after
the other in a child process, which saves most of the time. Nothing may be answered wrongly, and what is not answered is
named here with the reason. One category runs through the suite's own command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mucg4.read.capabilities import supports

if find_spec("vnntest") is None:
    pytest.skip("vnnlib-satisfactory is not installed", allow_module_level=True)
from vnntest.core import compliance, evaluator, generator, paths
from vnntest.models.test_case import TestCase

CATEGORIES = sorted(p.name for p in paths.CASES_DIR.iterdir() if any(p.glob("*[0-9].py")))
FORBIDDEN = {
    # The standard: `verify` must fail with an error where the element types of a model and its declaration differ.
    "network_isomorphic/network_isomorphic01": "variable X2 is float16, but its model computes in float32",
}
# Reads lists of arguments, a line each, and writes what the command line answers: status, stdout, stderr.
CHILD = """
import contextlib, io, json, sys
from mucg4.cli.main import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(json.loads(line))
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""
ROOT = Path(__file__).resolve().parents[2]


class Verifier:
    """The command `verify` in a child process; started anew where a run that outlives its time has ended it."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[str] | None = None

    def answer(self, entry: dict[str, Any]) -> tuple[int, str, str]:
        """Exit status, stdout and stderr; no stdout where the process ended."""
        folder = entry["folder"]
        networks = [w for n, file in entry["networks"].items() for w in ("--network", f"{n}={folder / file}")]
        arguments = ["verify", str(folder / entry["vnnlib"]), *networks, "--timeout", "20.0"]
        if self.child is None or self.child.poll() is not None:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "MUCG4_STORE": "off"}
            self.child = subprocess.Popen(
                [sys.executable, "-c", CHILD], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(json.dumps(arguments) + "\n")
        self.child.stdin.flush()
        status, out, err = json.loads(self.child.stdout.readline() or '[-1, "", "the process ended"]')
        return status, out, err

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.communicate()


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    made = Verifier()
    yield made
    made.close()


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The suite's manifest; `folder` is where an entry's files are."""
    here = Path.cwd()
    folder = tmp_path_factory.mktemp("suite")
    os.chdir(folder)
    try:
        entries = generator.generate_all_tests(suite="full")
    finally:
        os.chdir(here)
    return [{**e, "folder": folder / paths.ARTIFACTS_DIR / e["category"]} for e in entries]


@pytest.fixture
def solver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An executable as the suite wants it: one path without arguments."""
    monkeypatch.setenv("MUCG4_STORE", "off")
    path = tmp_path / "solver"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m mucg4 "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_nothing_is_skipped(instances: list[dict[str, Any]]) -> None:
    """The suite leaves out what `supports` does not list."""
    listed = [
        {line.split()[0] for line in supports(f"--{name}").splitlines()}
        for name in (
            "onnx-operators",
            "multiple-network-theories",
            "hidden-node-theories",
            "multiple-input-output-theories",
            "arithmetic-complexity-theories",
        )
    ]
    cases = [TestCase.from_manifest_entry(e, e["folder"]) for e in instances]
    runnable, skipped = evaluator.partition_by_support(cases, *listed)
    assert not [s.test_id for s in skipped]
    assert len(runnable) == 178


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_verdict_is_right(category: str, instances: list[dict[str, Any]], verifier: Verifier) -> None:
    for entry in (e for e in instances if e["category"] == category):
        name = f"{category}/{entry['name']}"
        status, out, err = verifier.answer(entry)
        if name in FORBIDDEN:
            assert (status, out) == (2, "") and FORBIDDEN[name] in err
        else:
            assert out.split()[:1] == [entry["expected"].lower()], (name, err)


def test_the_suites_own_command(solver: str, tmp_path: Path) -> None:
    arguments = ["run", "--solver", solver, "--test", "relu", "--timeout", "60"]
    subprocess.run([sys.executable, "-m", "vnntest", *arguments], cwd=tmp_path, check=True, capture_output=True)
    summary = json.loads((tmp_path / paths.CACHE_DIR / "report.json").read_text())["summary"]
    assert (summary["total"], summary["passed"]) == (2, 2)


def test_the_suites_compliance_checks(solver: str) -> None:
    for check in (
        compliance.check_opset_versions,
        compliance.check_vnnlib_versions,
        compliance.check_serialise_assignments,
    ):
        passed, why = check(solver, timeout=60)
        assert passed, why
